"""Learning rate schedule."""

from fractions import Fraction
from typing import Any

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import StepLR


class StepDecay(StepLR):
    """torch's StepLR, generalised to steps of a fractional number of epochs.

    In epoch e (counted from 0), the learning rate is lr · gamma^floor(e / step_epochs), for `step_epochs` greater than
    0. If that is a whole number, learning rates and state dict equal those of StepLR bit for bit.
    """

    def __init__(self, optimizer: Optimizer, step_epochs: Fraction, gamma: float) -> None:
        # Fractions are exact. In floats, 27 / 1.8 may be slightly below 15, which would delay the decay by an epoch.
        self._step_epochs = step_epochs
        super().__init__(optimizer, _as_number(step_epochs), gamma)  # type: ignore[arg-type]

    def get_lr(self) -> list[float | Tensor]:
        n_now = self.last_epoch // self._step_epochs
        n_before = max(0, self.last_epoch - 1) // self._step_epochs
        return [group["lr"] * self.gamma ** (n_now - n_before) for group in self.optimizer.param_groups]

    def state_dict(self) -> dict[str, Any]:
        """State in the format of StepLR: JSON numbers only, without the Fraction."""
        return {name: value for name, value in super().state_dict().items() if name != "_step_epochs"}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load the state of a `StepDecay` or StepLR.

        Raises:
            ValueError: the state has another step or factor.
        """
        for name in ("step_size", "gamma"):
            if state_dict.get(name) != getattr(self, name):
                raise ValueError(f"its `{name}` is {state_dict.get(name)}, but must be {getattr(self, name)}")
        super().load_state_dict(state_dict)


def _as_number(step_epochs: Fraction) -> int | float:
    return step_epochs.numerator if step_epochs.denominator == 1 else float(step_epochs)
