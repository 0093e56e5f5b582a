"""Device, precision and implementation of a run. They change speed and rounding, not the training algorithm."""

from dataclasses import dataclass

import torch

from spaces import InputError
from spaces.schema import Precision

# Without these instructions oneDNN emulates bf16, which is slower than fp32.
_CPU_BF16_INSTRUCTIONS = ("amx_bf16", "avx512_bf16", "sve_bf16", "bf16")


@dataclass(frozen=True, slots=True)
class Compute:
    """Device, precision and implementation choices of a run.

    Attributes:
        device: `cpu`, `cuda` or `cuda:N`.
        precision: precision of activations and their gradients. Weights, sums and the statistics of batch norm are
            fp32.
        channels_last: whether images and activations use the channels_last memory format.
        fused: whether `NormReluDropout` replaces torch's batch norm, ReLU and dropout; on a CPU it is one kernel.
        folded_evaluation: whether evaluation uses a copy with batch norm folded into the convolutions.
        resident: whether all images are kept on the device and augmented there in batches. Otherwise, or if the
            device has too little free memory, the host augments them one by one with albumentations.
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
        """Dtype of activations."""
        return torch.bfloat16 if self.precision == "bf16" else torch.float32


def choose_compute(device: str, precision: str) -> tuple[Compute, str]:
    """Choose device and precision from `resources.device` and `training.precision` of a space.

    Returns:
        The choice, and the reason for the precision as text.

    Raises:
        InputError: `device` is `cuda`, but torch finds no CUDA device.
    """
    device = choose_device(device)
    chosen, reason = choose_precision(precision, device)
    return Compute(device, chosen, resident=torch.device(device).type == "cuda"), reason


def choose_precision(wanted: str, device: str) -> tuple[Precision, str]:
    """Resolve `training.precision` on `device`, with the reason as text.

    `auto` becomes bf16 if the processor has bf16 instructions, otherwise fp32.
    """
    if wanted != "auto":
        return ("bf16" if wanted == "bf16" else "fp32"), "as the space says"
    if torch.device(device).type == "cuda":
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return "bf16", "the GPU has bf16 instructions"
        return "fp32", "the GPU has no bf16 instructions"
    capabilities = torch.cpu.get_capabilities()
    instructions = next((name for name in _CPU_BF16_INSTRUCTIONS if capabilities.get(name)), None)
    if instructions:
        return "bf16", f"the processor has {instructions.upper().replace('_', '-')}"
    return "fp32", "the processor has no bf16 instructions"


def choose_device(wanted: str) -> str:
    """Resolve `auto` to `cuda` if torch finds a CUDA device, otherwise to `cpu`.

    Raises:
        InputError: `wanted` is `cuda`, but torch finds no CUDA device.
    """
    if wanted == "cuda" and not torch.cuda.is_available():
        raise InputError("--device is cuda, but torch finds no CUDA device here. Use --device cpu or auto.")
    if wanted == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return wanted


def free_device_bytes(device: torch.device) -> int | None:
    """GPU memory that new tensors of this process can use; None for a CPU."""
    if device.type != "cuda":
        return None
    kept_for_reuse = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return int(torch.cuda.mem_get_info(device)[0]) + kept_for_reuse


def describe_device(device: str) -> str:
    """Name of the device, for manifests and resource plans."""
    if device == "cuda":
        return str(torch.cuda.get_device_name(0))
    return f"CPU ({torch.backends.cpu.get_cpu_capability()})"
