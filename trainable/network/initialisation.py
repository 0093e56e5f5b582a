"""Initial weights drawn from an explicit generator."""

import math

from torch import Generator, nn


def initialise(network: nn.Module, generator: Generator) -> None:
    """Initialise every convolution as torch does, with draws from `generator`.

    torch's constructors can only use its global generator. The distribution is that of
    `nn.Conv2d.reset_parameters`: uniform in ±1/√fan_in, for weights and biases.
    """
    for layer in network.modules():
        if not isinstance(layer, nn.Conv2d):
            continue
        nn.init.kaiming_uniform_(layer.weight, a=math.sqrt(5), generator=generator)
        if layer.bias is not None:
            bound = 1 / math.sqrt(layer.weight[0].numel())
            nn.init.uniform_(layer.bias, -bound, bound, generator=generator)
