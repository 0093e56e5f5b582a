"""Imported by workers before they have a trial, so that the first one need not wait for it."""

import torch

import trainable.ray_trainable  # noqa: F401 -- imports Ray's own trainables
from trainable.compute import choose_precision
from trainable.network.fused_norm import compile_for

# torch imports its compiler with the first optimizer, which takes as long as importing torch.
torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
compile_for(choose_precision("auto", "cpu")[0])
