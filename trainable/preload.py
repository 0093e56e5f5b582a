"""Imported by workers before they have a trial, so that the first one need not wait for it."""

import torch

import trainable.fit_evaluate
import trainable.ray_trainable

# torch imports its compiler with the first optimizer, which takes as long as importing torch.
torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)

__all__ = ["trainable"]
