"""Tokenizers of frames: pictures in, a number of a code for each cell of a small grid out."""

from __future__ import annotations

import os
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from videomaskfeat.errors import UserError, check_name
from videomaskfeat.models.limits import build_checked
from videomaskfeat.models.weights import created_as, load_into, read_metadata, read_state

_LEAST_WIDTH = 8


class ResidualBlock(nn.Module):
    """ReLU, 3x3 convolution, ReLU, 1x1 convolution, added to the input (VQ-VAE, section 4.1)."""

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
        channels: color channels.

    Raises:
        UserError: the stride is no power of two above 1, or a number is below 1.
    """

    def __init__(self, *, stride: int, width: int, blocks: int, out_width: int, channels: int = 3) -> None:
        super().__init__()
        widths = _level_widths(stride, width, blocks)
        self.down = nn.ModuleList(
            nn.Conv2d(before, after, 4, stride=2, padding=1)
            for before, after in zip([channels, *widths[:-1]], widths, strict=True)
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
    """The inverse of :class:`FrameEncoder`: a 3x3 convolution, residual blocks, transposed 4x4 convolutions.

    Args:
        in_width: channels of the input.
        stride, width, blocks, channels: see :class:`FrameEncoder`.
    """

    def __init__(self, *, stride: int, width: int, blocks: int, in_width: int, channels: int = 3) -> None:
        super().__init__()
        widths = _level_widths(stride, width, blocks)
        self.first = nn.Conv2d(in_width, width, 3, padding=1)
        self.blocks = nn.Sequential(*(ResidualBlock(width) for _ in range(blocks)))
        backwards = widths[::-1]
        self.up = nn.ModuleList(
            nn.ConvTranspose2d(before, after, 4, stride=2, padding=1)
            for before, after in zip(backwards, [*backwards[1:], channels], strict=True)
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


def channel_levels(value: float | Sequence[float]) -> Tensor:
    """A number, or one per channel, float32 in the shape that meets pictures [B, C, H, W]."""
    return torch.as_tensor(value, dtype=torch.float32).reshape(-1, 1, 1)


class FrameTokenizer(nn.Module):
    """A module that describes each cell of a frame by one of ``vocabulary`` numbers.

    Args:
        vocabulary: number of codes, V.
        stride: pixels behind a cell.
    """

    def __init__(self, *, vocabulary: int, stride: int) -> None:
        super().__init__()
        if vocabulary < 2:
            raise UserError(f"vocabulary={vocabulary}: must be 2 or more, or there is nothing to tell apart")
        self.vocabulary = vocabulary
        self.stride = stride

    @abstractmethod
    def tokens(self, pictures: Tensor) -> Tensor:
        """Pictures float32 [B, C, H, W] in 0..1 -> int64 [B, H/stride, W/stride], each in 0..V-1."""


class TrainedTokenizer(FrameTokenizer):
    """A tokenizer with a decoder, trained by how well that reconstructs frames from its numbers.

    Args:
        vocabulary: number of codes, V.
        stride: pixels behind a cell, a power of two.
        width: channels on the grid.
        blocks: residual blocks of the encoder, and of the decoder.
        code_width: values per code.
        channels: color channels.
        mean: subtracted from pixels in 0..1: one number, or one per channel.
        std: divides them after that, likewise.

    Raises:
        UserError: a value outside its range.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        *,
        vocabulary: int,
        stride: int,
        width: int,
        blocks: int,
        code_width: int,
        channels: int,
        mean: float | Sequence[float],
        std: float | Sequence[float],
    ) -> None:
        super().__init__(vocabulary=vocabulary, stride=stride)
        if code_width < 1:
            raise UserError(f"code_width={code_width}: must be 1 or more")
        self.code_width = code_width
        self._coder = {"stride": stride, "width": width, "blocks": blocks, "channels": channels}
        # Not among the weights: a weights file holds them as arguments.
        self.register_buffer("mean", channel_levels(mean), persistent=False)
        self.register_buffer("std", channel_levels(std), persistent=False)
        for name, levels in (("mean", self.mean), ("std", self.std)):
            if levels.numel() not in (1, channels):
                raise UserError(
                    f"{name} of {levels.numel()} numbers: must be one, or one for each of {channels}"
                )
        if not min(std if isinstance(std, Sequence) else (std,)) > 0:
            raise UserError(f"std={std}: must be above 0: pixels are divided by it")

    @abstractmethod
    def decode(self, tokens: Tensor) -> Tensor:
        """Numbers int64 [B, h, w] -> normalized pictures float32 [B, C, h*stride, w*stride]."""

    def normalize(self, pictures: Tensor) -> Tensor:
        """Pictures in 0..1 [B, C, H, W] -> as encoder and decoder see them.

        Raises:
            UserError: height or width is not a multiple of the stride.
        """
        height, width = pictures.shape[-2:]
        if height % self.stride or width % self.stride:
            raise UserError(
                f"frames of {height}x{width} pixels are no multiple of the tokenizer's stride {self.stride}"
            )
        return (pictures - self.mean) / self.std

    def denormalize(self, pictures: Tensor) -> Tensor:
        """The way back: what a decoder gives, as pixels that are meant to lie in 0..1."""
        return pictures.float() * self.std + self.mean


def gumbel_softmax(
    logits: Tensor, noise: Tensor, *, temperature: float, straight_through: bool = False
) -> Tensor:
    """A relaxed draw of one of V numbers: ``softmax((logits + noise) / temperature)`` over axis 1.

    With noise of the standard Gumbel distribution the largest entry is a draw from ``softmax(logits)``; the
    lower the temperature, the closer the result to a single 1 (Jang et al., arXiv 1611.01144; Maddison et
    al., arXiv 1611.00712).

    Args:
        logits: float [B, V, ...].
        noise: float [B, V, ...], see :func:`gumbel_noise`.
        temperature: above 0.
        straight_through: the value is the single 1 itself, the gradient that of the relaxed draw.

    Returns:
        float32 [B, V, ...], sums to 1 over axis 1.
    """
    soft = F.softmax((logits.float() + noise) / temperature, dim=1)
    if not straight_through:
        return soft
    hard = torch.zeros_like(soft).scatter_(1, soft.argmax(1, keepdim=True), 1.0)
    return hard + soft - soft.detach()


def gumbel_noise(like: Tensor) -> Tensor:
    """Standard Gumbel noise float32 in the shape of ``like``, from torch's global generator."""
    return -torch.empty_like(like, dtype=torch.float32).exponential_().log()


class DvaeCoding(NamedTuple):
    """Pictures in the training of a discrete VAE.

    logits: float [B, V, h, w], of each cell's number.
    reconstruction: float [B, C, H, W], normalized.
    """

    logits: Tensor
    reconstruction: Tensor


class DiscreteVAE(TrainedTokenizer):
    """Encoder, codebook and decoder of a discrete VAE of frames (the tokenizer of BEiT and DALL-E).

    A code per cell is drawn from a categorical distribution, through the Gumbel-softmax relaxation in
    training. The layers are VQ-VAE's, which cost a small part of the published encoder's
    (:mod:`videomaskfeat.models.published_dvae`).

    Args:
        straight_through: train on hard draws, with the gradient of the relaxed ones.
        vocabulary, stride, width, blocks, code_width, channels, mean, std: see :class:`TrainedTokenizer`.
    """

    def __init__(
        self,
        *,
        vocabulary: int = 8192,
        stride: int = 8,
        width: int = 256,
        blocks: int = 2,
        code_width: int = 128,
        straight_through: bool = False,
        channels: int = 3,
        mean: float | Sequence[float] = 0.45,
        std: float | Sequence[float] = 0.225,
    ) -> None:
        super().__init__(
            vocabulary=vocabulary,
            stride=stride,
            width=width,
            blocks=blocks,
            code_width=code_width,
            channels=channels,
            mean=mean,
            std=std,
        )
        self.straight_through = straight_through
        self.encoder = FrameEncoder(out_width=vocabulary, **self._coder)
        self.codes = nn.Parameter(torch.empty(vocabulary, code_width).normal_())
        self.decoder = FrameDecoder(in_width=code_width, **self._coder)

    def forward(self, pictures: Tensor, temperature: float) -> DvaeCoding:
        """Pictures float32 [B, C, H, W] in 0..1, coded by relaxed draws at a temperature and decoded."""
        logits = self.encoder(self.normalize(pictures))
        draw = gumbel_softmax(
            logits, gumbel_noise(logits), temperature=temperature, straight_through=self.straight_through
        )
        codes = torch.einsum("bvhw,vd->bdhw", draw, self.codes)
        return DvaeCoding(logits, self.decoder(codes))

    def tokens(self, pictures: Tensor) -> Tensor:
        """The likeliest number of each cell: pictures in 0..1 [B, C, H, W] -> int64 [B, h, w]."""
        return torch.argmax(self.encoder(self.normalize(pictures)), dim=1)

    def decode(self, tokens: Tensor) -> Tensor:
        """Numbers int64 [B, h, w] -> normalized pictures float32 [B, C, H, W]."""
        return self.decoder(F.embedding(tokens, self.codes).permute(0, 3, 1, 2)).float()


_CHUNK = 4096  # latents compared with all codes at once; 8192 codes make 128 MB of distances


def nearest_codes(latents: Tensor, codes: Tensor) -> Tensor:
    """The number of the code with the least Euclidean distance, the first of equals.

    Args:
        latents: float [..., D].
        codes: float [V, D].

    Returns:
        int64 [...].
    """
    flat = latents.detach().float().reshape(-1, latents.shape[-1])  # [n, D]
    with torch.autocast(flat.device.type, enabled=False):
        half_lengths = codes.square().sum(1) / 2  # [V]; the latent's own length decides nothing
        parts = [(half_lengths - part @ codes.t()).argmin(1) for part in flat.split(_CHUNK)]
    return torch.cat(parts).view(latents.shape[:-1])


@dataclass(frozen=True)
class CodeStatistics:
    """Statistics of a batch for the codes; ranks add up theirs.

    counts: float32 [V], latents nearest to each code.
    sums: float32 [V, D], their sums.
    candidates: float32 [V, D], a latent drawn for each code in case it is dead.
    """

    counts: Tensor
    sums: Tensor
    candidates: Tensor


class Codebook(nn.Module):
    """V codes that are moving averages of the latents nearest to them (VQ-VAE, appendix A.1).

    With n_i latents z nearest to code i in a batch: ``N_i = decay*N_i + (1-decay)*n_i``,
    ``m_i = decay*m_i + (1-decay)*sum(z)``, ``e_i = m_i / N_i``. A code is dead where N_i falls below
    ``revive_below`` of the mean of all N; it is put on a latent of the batch and given that mean, so that it
    has time to find its own. At the start all N are 0: what the first batch leaves unused is drawn from it.

    Args:
        vocabulary: codes, V.
        width: numbers a code, D.
        decay: share kept at an update, in [0, 1).
        revive_below: share of the mean use below which a code is dead, in [0, 1); 0 revives only codes that
            were never used.

    Raises:
        UserError: a value outside its range.
    """

    codes: Tensor
    counts: Tensor
    sums: Tensor

    def __init__(
        self, *, vocabulary: int, width: int, decay: float = 0.99, revive_below: float = 0.05
    ) -> None:
        super().__init__()
        for name, value in (("decay", decay), ("revive_below", revive_below)):
            if not 0 <= value < 1:
                raise UserError(f"{name}={value}: must be at least 0 and below 1")
        self.decay = decay
        self.revive_below = revive_below
        self.register_buffer("codes", torch.randn(vocabulary, width))
        self.register_buffer("counts", torch.zeros(vocabulary))
        self.register_buffer("sums", torch.zeros(vocabulary, width))

    def forward(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        """Latents float [..., D] -> their numbers int64 [...] and codes float32 [..., D]; no gradient."""
        tokens = nearest_codes(latents, self.codes)
        return tokens, F.embedding(tokens, self.codes)

    @torch.no_grad()
    def statistics(self, latents: Tensor, tokens: Tensor) -> CodeStatistics:
        """Of latents [..., D] and their numbers [...]; candidates from torch's global generator."""
        flat = latents.detach().float().reshape(-1, latents.shape[-1])  # [n, D]
        numbers = tokens.reshape(-1)  # [n]
        vocabulary = self.codes.shape[0]
        counts = torch.bincount(numbers, minlength=vocabulary).float()
        sums = torch.zeros_like(self.sums).index_add_(0, numbers, flat)
        drawn = torch.randint(flat.shape[0], (vocabulary,), device=flat.device)
        return CodeStatistics(counts, sums, flat[drawn])

    @torch.no_grad()
    def update(self, batch: CodeStatistics) -> Tensor:
        """Move the codes by a batch; returns how many dead ones were revived, int64 []."""
        self.counts.lerp_(batch.counts, 1 - self.decay)
        self.sums.lerp_(batch.sums, 1 - self.decay)
        mean = self.counts.mean()
        dead = (self.counts < self.revive_below * mean) | (self.counts == 0)  # [V]
        self.counts.copy_(torch.where(dead, mean, self.counts))
        self.sums.copy_(torch.where(dead[:, None], batch.candidates * mean, self.sums))
        self.codes.copy_(self.sums / self.counts[:, None])
        return dead.sum()


class VqCoding(NamedTuple):
    """Pictures in the training of a VQ tokenizer.

    latents: float32 [B, h, w, D], of the encoder.
    tokens: int64 [B, h, w], numbers of the nearest codes.
    codes: float32 [B, h, w, D], those codes; no gradient reaches them.
    reconstruction: float [B, C, H, W], normalized; its gradient passes the codes as if they were the latents.
    """

    latents: Tensor
    tokens: Tensor
    codes: Tensor
    reconstruction: Tensor


class VectorQuantizer(TrainedTokenizer):
    """Encoder, codebook and decoder of a VQ tokenizer of frames (VQ-VAE; with a perceptual loss, PeCo's).

    Args:
        decay, revive_below: see :class:`Codebook`.
        vocabulary, stride, width, blocks, code_width, channels, mean, std: see :class:`TrainedTokenizer`; a
            narrow code keeps more codes in use.
    """

    def __init__(
        self,
        *,
        vocabulary: int = 8192,
        stride: int = 8,
        width: int = 256,
        blocks: int = 2,
        code_width: int = 32,
        decay: float = 0.99,
        revive_below: float = 0.05,
        channels: int = 3,
        mean: float | Sequence[float] = 0.45,
        std: float | Sequence[float] = 0.225,
    ) -> None:
        super().__init__(
            vocabulary=vocabulary,
            stride=stride,
            width=width,
            blocks=blocks,
            code_width=code_width,
            channels=channels,
            mean=mean,
            std=std,
        )
        self.encoder = FrameEncoder(out_width=code_width, **self._coder)
        self.codebook = Codebook(
            vocabulary=vocabulary, width=code_width, decay=decay, revive_below=revive_below
        )
        self.decoder = FrameDecoder(in_width=code_width, **self._coder)

    def forward(self, pictures: Tensor) -> VqCoding:
        """Pictures float32 [B, C, H, W] in 0..1, coded by the nearest codes and decoded."""
        latents = self._latents(pictures)
        tokens, codes = self.codebook(latents)
        passed = straight_through(latents, codes)
        return VqCoding(latents, tokens, codes, self.decoder(passed.permute(0, 3, 1, 2)))

    def tokens(self, pictures: Tensor) -> Tensor:
        """The number of each cell's nearest code: pictures in 0..1 [B, C, H, W] -> int64 [B, h, w]."""
        return nearest_codes(self._latents(pictures), self.codebook.codes)

    def decode(self, tokens: Tensor) -> Tensor:
        """Numbers int64 [B, h, w] -> normalized pictures float32 [B, C, H, W]."""
        codes = F.embedding(tokens, self.codebook.codes)  # [B, h, w, D]
        return self.decoder(codes.permute(0, 3, 1, 2)).float()

    def _latents(self, pictures: Tensor) -> Tensor:
        """float32 [B, h, w, D]."""
        return self.encoder(self.normalize(pictures)).permute(0, 2, 3, 1).float()


def straight_through(latents: Tensor, codes: Tensor) -> Tensor:
    """The value of ``codes`` with the gradient of ``latents`` (VQ-VAE, section 3.2)."""
    return latents + (codes - latents).detach()


TOKENIZERS: dict[str, type[TrainedTokenizer]] = {"dvae": DiscreteVAE, "vq": VectorQuantizer}


def create_tokenizer(kind: str, /, **arguments: Any) -> TrainedTokenizer:
    """A tokenizer with fresh weights, drawn from torch's global generator (seed it first).

    Args:
        kind: a name in :data:`TOKENIZERS`.
        arguments: of :class:`DiscreteVAE` or :class:`VectorQuantizer`, where they differ from the defaults.

    Returns:
        The tokenizer in training mode. Its ``created_as`` holds kind and arguments, for
        :func:`~videomaskfeat.models.weights.save_weights`.

    Raises:
        UserError: unknown kind or argument, or a value outside its range.
    """
    check_name("tokenizer", kind, TOKENIZERS)
    return build_checked(TOKENIZERS[kind], f"tokenizer {kind!r}", kind, arguments)


def load_tokenizer(path: str | os.PathLike[str], *, kind: str | None = None) -> TrainedTokenizer:
    """Build the tokenizer that a file of a train-tokenizer run describes, and load its weights.

    Args:
        path: a safetensors file; remote paths are fetched.
        kind: required kind; None: any.

    Returns:
        The tokenizer in evaluation mode, on the CPU. No random number is drawn.

    Raises:
        UserError: no such file, a damaged one, or one of another model or another kind of tokenizer.
    """
    name = os.fspath(path)
    metadata = read_metadata(name)
    held = metadata.get("model", "")
    if held not in TOKENIZERS:
        what = f"the model {held!r}" if held else "weights without a model's name"
        raise UserError(
            f"{name}: holds {what}, and a tokenizer is needed; give the weights.safetensors of a "
            "train-tokenizer run"
        )
    if kind not in (None, held):
        raise UserError(
            f"{name}: holds a tokenizer of kind {held!r}, and one of kind {kind!r} is needed; give another "
            "file, or take the target that belongs to it"
        )
    _, arguments = created_as(name)
    try:
        with torch.random.fork_rng(devices=[]):
            tokenizer = create_tokenizer(held, **arguments)
    except UserError as error:
        raise UserError(
            f"{name}: the tokenizer that its metadata describes cannot be built: {error}"
        ) from error
    load_into(tokenizer, read_state(name), source=name)
    return tokenizer.eval()
