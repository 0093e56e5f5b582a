"""Choice and description of the device that a run computes on."""

import torch

from spaces import InputError


def choose_device(wanted: str) -> str:
    """Resolve `auto` to `cuda` if torch finds a CUDA device, otherwise to `cpu`.

    Args:
        wanted: `auto`, `cuda` or `cpu`.

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
