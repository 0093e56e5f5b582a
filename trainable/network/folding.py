"""A network for evaluation alone: batch norm folded into the convolutions before it."""

import copy

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from trainable.network.fused_norm import NormReluDropout
from trainable.network.model import DepthwiseSeparableNet


def folded(network: DepthwiseSeparableNet, dtype: torch.dtype) -> DepthwiseSeparableNet:
    """A copy of `network` that computes what it computes in evaluation mode, in fewer operations.

    Folding is done in the weights' own precision; rounding to `dtype` comes after.

    Args:
        network: not changed.
        dtype: of the copy's weights, and of the images that it takes.

    Returns:
        A network in evaluation mode; its state dict is not that of a `DepthwiseSeparableNet`.
    """
    # The copy never draws dropout: the pool of draws is shared, not copied.
    copied = copy.deepcopy(network, {id(network.dropout_noise): network.dropout_noise}).eval()
    for block in copied.blocks:
        assert isinstance(block, nn.Sequential)
        _fold_block(block)
    return copied.to(dtype)


def _fold_block(block: nn.Sequential) -> None:
    for i, layer in enumerate(block):
        if isinstance(layer, nn.BatchNorm2d):
            before = block[i - 1]
            # Of a depthwise-separable pair, the pointwise convolution comes last.
            owner, name = (before, len(before) - 1) if isinstance(before, nn.Sequential) else (block, i - 1)
            convolution = owner[name]
            assert isinstance(convolution, nn.Conv2d)
            owner[name] = fuse_conv_bn_eval(convolution, layer)
            block[i] = nn.ReLU(inplace=True) if isinstance(layer, NormReluDropout) else nn.Identity()
        elif isinstance(layer, nn.ReLU):
            block[i] = nn.ReLU(inplace=True)
