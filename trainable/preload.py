"""Imports and compiles for training. Idle workers import this module, so that their first trial starts sooner."""

import torch

import trainable.ray_trainable  # noqa: F401 -- imports Ray's own trainables
from trainable.compute import choose_precision
from trainable.network.fused_norm import compile_for

# torch imports its compiler when the first optimizer is made, which takes as long as importing torch.
torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
compile_for(choose_precision("auto", "cpu")[0])
