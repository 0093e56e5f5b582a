"""How a run's arithmetic is done. What is computed stays the same; how fast, and in which rounding, does not."""

from dataclasses import dataclass
from typing import Any

import torch

from spaces.schema import Precision
from trainable.devices import choose_device

# Without these instructions oneDNN emulates bf16, which is slower than fp32.
_CPU_BF16_INSTRUCTIONS = ("amx_bf16", "avx512_bf16", "sve_bf16", "bf16")


@dataclass(frozen=True, slots=True)
class Compute:
    """What a run computes with.

    Attributes:
        device: `cpu`, `cuda` or `cuda:N`.
        precision: of activations and their gradients; weights, sums and batch norm's statistics stay fp32.
        channels_last: memory order of images and activations.
        fused: `NormReluDropout` in place of torch's batch norm, ReLU and dropout; on a CPU it is one kernel.
        folded_evaluation: evaluate with batch norm folded into the convolutions.
        resident: images lie on the device as a whole and are augmented there, in batches, instead of one by one
             with albumentations on the host; where the device has too little free memory, the host does it after all.
    """

    device: str = "cpu"
    precision: Precision = "fp32"
    channels_last: bool = True
    fused: bool = True
    folded_evaluation: bool = True
    resident: bool = False

    @property
    def device_type(self) -> str:
        return torch.device(self.device).type

    @property
    def memory_format(self) -> torch.memory_format:
        return torch.channels_last if self.channels_last else torch.contiguous_format

    @property
    def dtype(self) -> torch.dtype:
        """Of activations."""
        return torch.bfloat16 if self.precision == "bf16" else torch.float32


def choose_compute(device: str, precision: str) -> tuple[Compute, str]:
    """What to compute with, and why in that precision.

    Args:
        device: a space's `resources.device`.
        precision: its `training.precision`.

    Raises:
        InputError: CUDA is asked for and not there.
    """
    device = choose_device(device)
    chosen, reason = choose_precision(precision, device)
    return Compute(device, chosen, resident=torch.device(device).type == "cuda"), reason


def choose_precision(wanted: str, device: str) -> tuple[Precision, str]:
    """The precision for `training.precision` on `device`, and why, in words.

    `auto` takes bf16 where the processor has instructions for it.
    """
    if wanted == "fp32":
        return "fp32", "as the space says"
    if wanted == "bf16":
        return "bf16", "as the space says"
    if torch.device(device).type == "cuda":
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return "bf16", "the GPU has bf16 instructions"
        return "fp32", "the GPU has no bf16 instructions"
    instructions = next((name for name in _CPU_BF16_INSTRUCTIONS if _cpu_capabilities().get(name)), None)
    if instructions:
        return "bf16", f"the processor has {instructions.upper().replace('_', '-')}"
    return "fp32", "the processor has no bf16 instructions"


def _cpu_capabilities() -> dict[str, Any]:
    return dict(torch.cpu.get_capabilities())
