"""SGD that reads its hyperparameters on the device: a CUDA graph of its step stays valid when they change."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

HYPERPARAMETERS = ("lr", "momentum", "weight_decay")

# What else torch.optim.SGD keeps in a group: a state dict of either can be loaded into the other.
_NOT_USED = {
    "dampening": 0,
    "nesterov": False,
    "maximize": False,
    "foreach": None,
    "differentiable": False,
    "fused": None,
}


class TensorSGD(Optimizer):
    """SGD with momentum and weight decay: the law of `torch.optim.SGD` without dampening and Nesterov's rule.

    Groups and state dict are those of `torch.optim.SGD`: the hyperparameters are floats, which StepLR multiplies
    and JSON takes. A step reads them from 0-d tensors on the parameters' device, which `upload` keeps equal.
    Buffers and these tensors stay where they are for the optimizer's life, also through `load_state_dict`.

    Args:
        parameters: dense, floating point, all on one device.
        lr, momentum, weight_decay: at least 0.

    Raises:
        ValueError: a hyperparameter is negative or NaN, or there is more than one group of parameters.
    """

    def __init__(
        self, parameters: Iterable[Tensor], lr: float, momentum: float = 0.0, weight_decay: float = 0.0
    ) -> None:
        wanted = _checked(lr=lr, momentum=momentum, weight_decay=weight_decay)
        super().__init__(parameters, {**wanted, **_NOT_USED})
        if len(self.param_groups) != 1:
            raise ValueError(f"`parameters` are {len(self.param_groups)} groups, but must be one.")
        for parameter in self._parameters:
            self.state[parameter] = {"momentum_buffer": torch.zeros_like(parameter, requires_grad=False)}
        first = self._parameters[0]
        # In the parameters' dtype: with another one, foreach takes a kernel a tensor.
        self._on_device = {name: torch.zeros((), dtype=first.dtype, device=first.device) for name in HYPERPARAMETERS}
        self._uploaded = dict.fromkeys(HYPERPARAMETERS, 0.0)
        self.upload()

    @property
    def momentum_buffers(self) -> list[Tensor]:
        """In the order of the parameters, like which they are shaped."""
        return [self.state[parameter]["momentum_buffer"] for parameter in self._parameters]

    def upload(self) -> None:
        """Bring to the device what has changed in the group, without waiting for it.

        `step` begins with this; who replays a captured step must call it before each replay.
        """
        for name, tensor in self._on_device.items():
            value = self.param_groups[0][name]
            if value != self._uploaded[name]:
                tensor.fill_(value)
                self._uploaded[name] = value

    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient; nothing is read back from the device.

        Six kernels, whatever the number of parameters.
        """
        self.upload()
        with_gradient = [parameter for parameter in self._parameters if parameter.grad is not None]
        if with_gradient:
            self._update(with_gradient)

    def restart(self, lr: float, momentum: float, weight_decay: float) -> None:
        """Be as new, with other hyperparameters, in the same tensors.

        Raises:
            ValueError: a hyperparameter is negative or NaN.
        """
        self.param_groups[0].update(_checked(lr=lr, momentum=momentum, weight_decay=weight_decay))
        # A scheduler of the last run leaves it here, and the next one would take it for its own.
        self.param_groups[0].pop("initial_lr", None)
        torch._foreach_zero_(self.momentum_buffers)
        self.upload()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over what a `TensorSGD` or a `torch.optim.SGD` was, in the same tensors.

        Raises:
            ValueError: it is of other parameters, or used dampening, Nesterov's rule or maximisation.
        """
        for name in ("dampening", "nesterov", "maximize"):
            if any(group.get(name) for group in state_dict["param_groups"]):
                raise ValueError(f"`{name}` was set, but TensorSGD does not have it.")
        buffers = self.momentum_buffers
        super().load_state_dict(state_dict)
        for parameter, buffer in zip(self._parameters, buffers, strict=True):
            loaded = self.state[parameter].get("momentum_buffer")
            # torch.optim.SGD has no buffer before its first step, which then goes as from zeros.
            buffer.zero_() if loaded is None else buffer.copy_(loaded)
            self.state[parameter] = {"momentum_buffer": buffer}
        self.upload()

    @property
    def _parameters(self) -> list[Tensor]:
        parameters: list[Tensor] = self.param_groups[0]["params"]
        return parameters

    @torch.no_grad()
    def _update(self, parameters: list[Tensor]) -> None:
        # In torch.optim.SGD's order of operations, but multiplying and adding are rounded apart.
        buffers = [self.state[parameter]["momentum_buffer"] for parameter in parameters]
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        decayed = torch._foreach_mul(parameters, self._on_device["weight_decay"])
        torch._foreach_add_(decayed, gradients)
        torch._foreach_mul_(buffers, self._on_device["momentum"])
        torch._foreach_add_(buffers, decayed)
        torch._foreach_sub_(parameters, torch._foreach_mul(buffers, self._on_device["lr"]))


def _checked(**values: float) -> dict[str, float]:
    for name, value in values.items():
        if not value >= 0:
            raise ValueError(f"`{name}` is {value}, but must be at least 0.")
    return values
