"""Folds batch norm into the preceding convolutions, for a network that is only evaluated."""

import copy

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from trainable.network.fused_norm import NormReluDropout
from trainable.network.model import DepthwiseSeparableNet


def folded(network: DepthwiseSeparableNet, dtype: torch.dtype) -> DepthwiseSeparableNet:
    """Copy `network` with batch norm folded into its convolutions: the same function as in evaluation mode.

    The weights are folded in their own precision and then rounded to `dtype`, which the input images must have too. The
    state dict of the copy, which is in evaluation mode, differs from that of a `DepthwiseSeparableNet`.
    """
    # The copy never applies dropout, so it shares the pool of draws instead of copying it.
    copied = copy.deepcopy(network, {id(network.dropout_noise): network.dropout_noise}).eval()
    for block in copied.blocks:
        assert isinstance(block, nn.Sequential)
        _fold_block(block)
    return copied.to(dtype)


def _fold_block(block: nn.Sequential) -> None:
    for i, layer in enumerate(block):
        if isinstance(layer, nn.BatchNorm2d):
            before = block[i - 1]
            # In a depthwise-separable pair, the pointwise convolution is the last layer.
            owner, name = (before, len(before) - 1) if isinstance(before, nn.Sequential) else (block, i - 1)
            convolution = owner[name]
            assert isinstance(convolution, nn.Conv2d)
            owner[name] = fuse_conv_bn_eval(convolution, layer)
            block[i] = nn.ReLU(inplace=True) if isinstance(layer, NormReluDropout) else nn.Identity()
        elif isinstance(layer, nn.ReLU):
            block[i] = nn.ReLU(inplace=True)
