"""The network: four blocks of dilated and depthwise-separable convolutions, 118,546 parameters for 10 classes."""

from collections.abc import Sequence

import torch
from torch import Generator, Tensor, nn

from spaces.schema import Pooling
from trainable.network.dropout import DropoutNoise
from trainable.network.fused_norm import NormReluDropout


class DepthwiseSeparable(nn.Sequential):
    """A 3×3 depthwise convolution followed by a 1×1 pointwise convolution, both without bias.

    Source: Chollet, "Xception" (CVPR 2017).
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(
            nn.Conv2d(in_channels, in_channels, 3, padding=1, groups=in_channels, bias=False),
            nn.Conv2d(in_channels, out_channels, 1, bias=False),
        )


class Block(nn.Sequential):
    """Two dilated convolutions (24 and 48 channels), then two depthwise-separable convolutions (64 and 64).

    (N, in_channels, H, W) → (N, 64, H - 4, W - 4).

    Args:
        in_channels: 3 for the first block, 64 for the others.
        dropout: probability that a unit is zeroed, in [0, 1).
        noise: source of the masks of `NormReluDropout`; None for torch's own layers, with the same state dict.
    """

    def __init__(self, in_channels: int, dropout: float, noise: DropoutNoise | None) -> None:
        super().__init__(
            nn.Conv2d(in_channels, 24, 3, dilation=2, padding=1, bias=False),
            *_norm_relu_dropout(24, dropout, noise),
            nn.Conv2d(24, 48, 3, dilation=2, padding=1, bias=False),
            *_norm_relu_dropout(48, dropout, noise),
            DepthwiseSeparable(48, 64),
            *_norm_relu_dropout(64, dropout, noise),
            DepthwiseSeparable(64, 64),
            *_norm_relu(64, noise),
        )


class DepthwiseSeparableNet(nn.Module):
    """Computes log-probabilities of the classes for normalised images.

    Args:
        n_classes: number of classes, 2 or more.
        dropout: probability that a unit is zeroed, in [0, 1).
        generator: source of the initial weights, which have torch's default distribution; None for torch's global
            generator.
        fused: whether batch norm, ReLU and dropout are one module, which is faster on a CPU. The distribution and
            the state dict do not depend on it.
        pooling: whether the classifier gets the average or the maximum of the last feature maps, over all places. The
            state dict does not depend on it.

    Attributes:
        dropout_noise: source of the masks of fused dropout; None if `fused` is False.
    """

    def __init__(
        self,
        n_classes: int = 10,
        dropout: float = 0.1,
        generator: Generator | None = None,
        fused: bool = True,
        pooling: Pooling = "average",
    ) -> None:
        super().__init__()
        self.dropout_noise = DropoutNoise(dropout) if fused else None
        # Constructors draw weights from the global generator. Fork it, so that the caller's draws do not change.
        with torch.random.fork_rng(devices=[], enabled=generator is not None):
            if generator is not None:
                torch.default_generator.set_state(generator.get_state())
            self.blocks = nn.Sequential(*(Block(n_in, dropout, self.dropout_noise) for n_in in (3, 64, 64, 64)))
            self.pooling: Pooling = pooling
            self.pool = nn.AdaptiveAvgPool2d(1) if pooling == "average" else nn.AdaptiveMaxPool2d(1)
            self.classifier = nn.Conv2d(64, n_classes, 1)

    def forward(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) float, normalised, H and W at least 17 → (N, n_classes) float32."""
        features = self.pool(self.blocks(images))
        # Always in fp32: in bf16 the loss would have only two or three significant digits.
        return torch.log_softmax(self.classifier(features).flatten(1).float(), dim=1)


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


def receptive_field_px(module: nn.Module) -> int:
    """Side of the input square that one output pixel depends on: 1 + Σ (kernel - 1) · dilation, at stride 1."""
    layers = [layer for layer in module.modules() if isinstance(layer, nn.Conv2d)]
    return 1 + sum((layer.kernel_size[0] - 1) * layer.dilation[0] for layer in layers)


def count_parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def summary(network: DepthwiseSeparableNet, image_size: int) -> str:
    """Plain-text table of the network's stages for images of `image_size` × `image_size` pixels."""
    rows = []
    for number, block in enumerate(network.blocks, 1):
        side = image_size - 4 * number
        rows.append((f"block {number}", f"64 x {side} x {side}", count_parameters(block)))
    rows.append((f"{network.pooling} pool", "64 x 1 x 1", 0))
    rows.append(("classifier", f"{network.classifier.out_channels}", count_parameters(network.classifier)))
    lines = [f"{'stage':<12}{'output':>16}{'parameters':>14}"]
    lines += [f"{name:<12}{shape:>16}{n_parameters:>14,}" for name, shape, n_parameters in rows]
    lines.append(f"{'total':<28}{count_parameters(network):>14,}")
    field_px = receptive_field_px(network.blocks)
    lines.append(f"receptive field {field_px} x {field_px} pixels, image {image_size} x {image_size}")
    return "\n".join(lines)


# Identity layers replace the fused ones, so that all later layers keep their names in the state dict.
def _norm_relu_dropout(n_channels: int, dropout: float, noise: DropoutNoise | None) -> tuple[nn.Module, ...]:
    if noise is None:
        return nn.BatchNorm2d(n_channels), nn.ReLU(), nn.Dropout(dropout)
    return NormReluDropout(n_channels, noise), nn.Identity(), nn.Identity()


def _norm_relu(n_channels: int, noise: DropoutNoise | None) -> tuple[nn.Module, ...]:
    if noise is None:
        return nn.BatchNorm2d(n_channels), nn.ReLU()
    return NormReluDropout(n_channels, None), nn.Identity()
