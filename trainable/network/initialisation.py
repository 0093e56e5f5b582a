"""Starting weights drawn from an explicit generator."""

import math

from torch import Generator, nn


def initialise(network: nn.Module, generator: Generator) -> None:
    """Give every convolution the starting weights that torch gives it, drawn from `generator`.

    torch's own constructors draw from its global generator only. The law is that of
    `nn.Conv2d.reset_parameters`: uniform within ±1/√fan_in, for weights and biases.
    """
    for layer in network.modules():
        if not isinstance(layer, nn.Conv2d):
            continue
        nn.init.kaiming_uniform_(layer.weight, a=math.sqrt(5), generator=generator)
        if layer.bias is not None:
            bound = 1 / math.sqrt(layer.weight[0].numel())
            nn.init.uniform_(layer.bias, -bound, bound, generator=generator)
