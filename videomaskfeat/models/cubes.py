"""The stem: from a clip to one token a spacetime cube."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from torch import Tensor, nn

from videomaskfeat.errors import UserError
from videomaskfeat.grid import TokenGrid
from videomaskfeat.models.dense import linear

Triple = tuple[int, int, int]


def as_triple(values: Iterable[int]) -> Triple:
    """Three numbers, for time, height and width, as a tuple."""
    t, h, w = values
    return (t, h, w)


class CubeEmbed(nn.Module):
    """One strided convolution: each cube of ``stride`` pixels becomes a token (MViTv2, section 3).

    The kernel may be larger than the stride, as in the published models (3x7x7 over cubes of 2x4x4): a
    token then also sees a rim of its neighbours' pixels.

    Args:
        in_channels: colour channels of the clip, C.
        width: width of a token, D.
        kernel: frames, rows and columns that a token sees.
        stride: frames, rows and columns from one token to the next: the size of a cube.
        padding: zeros before and after each axis.

    Raises:
        UserError: kernel, stride and padding do not give exactly one token a cube.
    """

    def __init__(
        self, in_channels: int, width: int, *, kernel: Triple, stride: Triple, padding: Triple
    ) -> None:
        super().__init__()
        for size, step, pad in zip(kernel, stride, padding, strict=True):
            # n cubes of `step` give floor((n*step + 2*pad - size) / step) + 1 tokens, which must be n.
            if not 0 < size - 2 * pad <= step:
                raise UserError(
                    f"cube_kernel {kernel}, cube_stride {stride}, cube_padding {padding}: an axis does "
                    "not give one token a cube; take padding = (kernel - stride + 1) // 2"
                )
        self.in_channels = in_channels
        self.width = width
        self.stride = stride
        self.proj = nn.Conv3d(in_channels, width, kernel, stride, padding)

    def grid(self, clip_shape: Sequence[int]) -> TokenGrid:
        """The token grid of a clip whose shape ends in (T, H, W)."""
        frames, height, width = clip_shape[-3:]
        return TokenGrid.from_clip(frames=frames, height=height, width=width, stride=self.stride)

    def forward(self, clips: Tensor) -> tuple[Tensor, TokenGrid]:
        """Clips float [B, C, T, H, W] -> tokens [B, N, D] and their grid.

        Raises:
            UserError: the clips are not five-dimensional, have other channels than the stem, or an axis is
                not a multiple of the cube.
        """
        self.check(clips)
        grid = self.grid(clips.shape)
        return self.proj(clips).flatten(2).transpose(1, 2), grid  # [B, D, t, h, w] -> [B, N, D]

    def check(self, clips: Tensor) -> None:
        """Refuse what is not [B, C, T, H, W] with the stem's channels.

        Raises:
            UserError: it is not.
        """
        if clips.ndim != 5 or clips.shape[1] != self.in_channels:
            raise UserError(
                f"clips of shape {tuple(clips.shape)} are not [B, {self.in_channels}, T, H, W]; "
                "put the channels before the frames"
            )

    def embed_cubes(self, cubes: Tensor) -> Tensor:
        """Cubes of :func:`cut_cubes` [..., C*kt*kh*kw] -> tokens [..., D], where the kernel is the cube."""
        return linear(cubes, self.proj.weight.flatten(1), self.proj.bias)


def cut_cubes(clips: Tensor, stride: Triple) -> Tensor:
    """The pixels of each cube.

    Args:
        clips: float [B, C, T, H, W].
        stride: frames, rows and columns of a cube.

    Returns:
        [B, N, C*kt*kh*kw], in the order of a convolution's kernel: channel, frame, row, column.
    """
    cut = clips
    for axis, step in zip((2, 4, 6), stride, strict=True):
        cut = cut.unflatten(axis, (-1, step))  # at the end [B, C, t, kt, h, kh, w, kw]
    return cut.permute(0, 2, 4, 6, 1, 3, 5, 7).flatten(4).flatten(1, 3)
