"""Convolutions between frames and the small grid on which a tokenizer names what it sees."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from videomaskfeat.errors import UserError

_LEAST_WIDTH = 8


class ResidualBlock(nn.Module):
    """ReLU, 3x3 convolution, ReLU, 1x1 convolution, added to what came in (VQ-VAE, section 4.1).

    Args:
        width: channels.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        """[B, D, h, w] -> [B, D, h, w]."""
        return x + self.conv2(F.relu(self.conv1(F.relu(x))))


class FrameEncoder(nn.Module):
    """Frames to a grid: 4x4 convolutions that halve height and width, then residual blocks, then a 1x1.

    Args:
        stride: pixels behind a cell of the grid, a power of two.
        width: channels on the grid; each halving before has half of them, 8 at least.
        blocks: residual blocks on the grid.
        out_width: channels of the result.
        in_channels: colour channels.

    Raises:
        UserError: the stride is no power of two above 1, or a number is below 1.
    """

    def __init__(self, *, stride: int, width: int, blocks: int, out_width: int, in_channels: int = 3) -> None:
        super().__init__()
        widths = _level_widths(stride, width, blocks)
        self.down = nn.ModuleList(
            nn.Conv2d(before, after, 4, stride=2, padding=1)
            for before, after in zip([in_channels, *widths[:-1]], widths, strict=True)
        )
        self.blocks = nn.Sequential(*(ResidualBlock(width) for _ in range(blocks)))
        self.out = nn.Conv2d(width, out_width, 1)

    def forward(self, frames: Tensor) -> Tensor:
        """Frames float [B, C, H, W] -> [B, out_width, H/stride, W/stride]."""
        x = frames
        for number, layer in enumerate(self.down):
            x = layer(F.relu(x) if number else x)  # [B, D/2.., H/2.., W/2..]
        return self.out(F.relu(self.blocks(x)))


class FrameDecoder(nn.Module):
    """The way back: a 3x3 convolution, residual blocks, transposed 4x4 convolutions that double the size.

    Args:
        stride: pixels behind a cell of the grid, a power of two.
        width: channels on the grid; each doubling has half of them, 8 at least.
        blocks: residual blocks on the grid.
        in_width: channels of what comes in.
        out_channels: colour channels.

    Raises:
        UserError: the stride is no power of two above 1, or a number is below 1.
    """

    def __init__(self, *, stride: int, width: int, blocks: int, in_width: int, out_channels: int = 3) -> None:
        super().__init__()
        widths = _level_widths(stride, width, blocks)
        self.first = nn.Conv2d(in_width, width, 3, padding=1)
        self.blocks = nn.Sequential(*(ResidualBlock(width) for _ in range(blocks)))
        backwards = widths[::-1]
        self.up = nn.ModuleList(
            nn.ConvTranspose2d(before, after, 4, stride=2, padding=1)
            for before, after in zip(backwards, [*backwards[1:], out_channels], strict=True)
        )

    def forward(self, codes: Tensor) -> Tensor:
        """Codes float [B, in_width, h, w] -> frames [B, C, h*stride, w*stride]."""
        x = self.blocks(self.first(codes))
        for layer in self.up:
            x = layer(F.relu(x))  # [B, D/2.., 2h.., 2w..]
        return x


def _level_widths(stride: int, width: int, blocks: int) -> list[int]:
    """Channels after each halving of the frame, the last one on the grid."""
    if stride < 2 or stride & (stride - 1):
        raise UserError(f"stride={stride}: must be a power of two, 2 or more: each layer halves the frame")
    for name, value in (("width", width), ("blocks", blocks)):
        if value < 1:
            raise UserError(f"{name}={value}: must be 1 or more")
    levels = stride.bit_length() - 1
    return [*(max(width >> (levels - level), _LEAST_WIDTH) for level in range(1, levels)), width]
