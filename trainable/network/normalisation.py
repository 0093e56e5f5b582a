"""Converts uint8 images to the network's input."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Normalise(nn.Module):
    """Scales 0-255 images to zero mean and unit standard deviation per channel, and puts the channels first.

    Args:
        mean, std: mean and standard deviation per channel, RGB, for pixels scaled to 0 to 1.
        memory_format: memory format of the result.
    """

    scale: Tensor
    shift: Tensor

    def __init__(
        self,
        mean: Sequence[float],
        std: Sequence[float],
        memory_format: torch.memory_format = torch.channels_last,
    ) -> None:
        super().__init__()
        self._memory_format = memory_format
        deviation = torch.tensor(std, dtype=torch.float64)
        scale = 1 / (255 * deviation)
        shift = -torch.tensor(mean, dtype=torch.float64) / deviation
        self.register_buffer("scale", scale.float(), persistent=False)
        self.register_buffer("shift", shift.float(), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """(N, H, W, 3) uint8 → (N, 3, H, W) float32."""
        normalised = (images.float() * self.scale + self.shift).permute(0, 3, 1, 2)
        return normalised.contiguous(memory_format=self._memory_format)
