"""Frame tokenizers: from pictures to one code index per cell of a small grid."""

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
from videomaskfeat.models.layers import per_channel
from videomaskfeat.models.limits import build_checked, check_positive
from videomaskfeat.models.loading import load_into
from videomaskfeat.models.weights import created_as, read_state
from videomaskfeat.tensor_files import read_metadata

_MIN_WIDTH = 8


class ResidualBlock(nn.Module):
    """ReLU, 3x3 convolution, ReLU, 1x1 convolution, with a residual connection (VQ-VAE, section 4.1)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        """[B, D, h, w] -> [B, D, h, w]."""
        return x + self.conv2(F.relu(self.conv1(F.relu(x))))


class FrameEncoder(nn.Module):
    """4x4 convolutions that halve height and width, residual blocks, and a 1x1 convolution.

    Args:
        stride: pixels per grid cell along each side, a power of two above 1.
        width, blocks: channels on the grid (each earlier level has half of the next, at least 8), and number
            of residual blocks on it.
        out_width, channels: output channels, and color channels.

    Raises:
        UserError: a value out of range.
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

    ``in_width``: input channels; other arguments as for :class:`FrameEncoder`.
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
    """Channels after each halving of the frame, the grid's last."""
    if stride < 2 or stride & (stride - 1):
        raise UserError(f"stride={stride} must be a power of two, 2 or more: each layer halves the frame")
    check_positive(width=width, blocks=blocks)
    layers = stride.bit_length() - 1
    return [*(max(width >> (layers - level), _MIN_WIDTH) for level in range(1, layers)), width]


class FrameTokenizer(nn.Module):
    """Base of modules that map each cell of ``stride`` x ``stride`` pixels to one of ``vocabulary`` codes."""

    def __init__(self, *, vocabulary: int, stride: int) -> None:
        super().__init__()
        if vocabulary < 2:
            raise UserError(f"vocabulary={vocabulary} must be 2 or more")
        self.vocabulary = vocabulary
        self.stride = stride

    @abstractmethod
    def tokens(self, pictures: Tensor) -> Tensor:
        """Pictures float32 [B, C, H, W] in 0..1 -> int64 [B, H/stride, W/stride], in 0..V-1."""


class TrainedTokenizer(FrameTokenizer):
    """A tokenizer with a decoder, trained to reconstruct frames from its codes.

    Args:
        vocabulary, code_width: number of codes, V, and values per code.
        stride, width, blocks, channels: see :class:`FrameEncoder`.
        mean, std: normalization of pixels in 0..1, one number or one per channel.

    Raises:
        UserError: a value out of range.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        *,
        vocabulary: int = 8192,
        code_width: int,
        stride: int = 8,
        width: int = 256,
        blocks: int = 2,
        channels: int = 3,
        mean: float | Sequence[float] = 0.45,
        std: float | Sequence[float] = 0.225,
    ) -> None:
        super().__init__(vocabulary=vocabulary, stride=stride)
        check_positive(code_width=code_width)
        self.code_width = code_width
        self._coder = {"stride": stride, "width": width, "blocks": blocks, "channels": channels}
        # Not part of the weights: a weights file contains them as arguments.
        self.register_buffer("mean", per_channel(mean), persistent=False)
        self.register_buffer("std", per_channel(std), persistent=False)
        for name, values in (("mean", self.mean), ("std", self.std)):
            if values.numel() not in (1, channels):
                raise UserError(
                    f"{name} of {values.numel()} numbers must be one number, or one per channel ({channels})"
                )
        if not min(std if isinstance(std, Sequence) else (std,)) > 0:
            raise UserError(f"std={std} must be above 0: pixels are divided by it")

    @abstractmethod
    def decode(self, tokens: Tensor) -> Tensor:
        """Codes int64 [B, h, w] -> normalized pictures float32 [B, C, h*stride, w*stride]."""

    def normalize(self, pictures: Tensor) -> Tensor:
        """Normalize pictures [B, C, H, W] in 0..1 for the encoder.

        Raises:
            UserError: height or width is not a multiple of the stride.
        """
        height, width = pictures.shape[-2:]
        if height % self.stride or width % self.stride:
            raise UserError(
                f"frames of {height}x{width} pixels must be multiples of the tokenizer stride {self.stride}"
            )
        return (pictures - self.mean) / self.std

    def denormalize(self, pictures: Tensor) -> Tensor:
        """Convert a decoder's output to pixels, nominally in 0..1."""
        return pictures.float() * self.std + self.mean


def gumbel_softmax(
    logits: Tensor, noise: Tensor, *, temperature: float, straight_through: bool = False
) -> Tensor:
    """A relaxed sample of one of V codes: ``softmax((logits + noise) / temperature)`` over axis 1.

    With standard Gumbel noise, the largest entry is a sample from ``softmax(logits)``. The lower the
    temperature, the closer the result is to a one-hot vector (arXiv 1611.01144, 1611.00712).

    Args:
        logits, noise: float [B, V, ...]; see :func:`gumbel_noise`.
        temperature: above 0.
        straight_through: return the one-hot vector, with the gradient of the relaxed sample.

    Returns:
        float32 [B, V, ...], sums to 1 over axis 1.
    """
    soft = F.softmax((logits.float() + noise) / temperature, dim=1)
    if not straight_through:
        return soft
    hard = torch.zeros_like(soft).scatter_(1, soft.argmax(1, keepdim=True), 1.0)
    return hard + soft - soft.detach()


def gumbel_noise(like: Tensor) -> Tensor:
    """Standard Gumbel noise, float32 in the shape of ``like``, from torch's global generator."""
    return -torch.empty_like(like, dtype=torch.float32).exponential_().log()


class DvaeCoding(NamedTuple):
    """Output of :class:`DiscreteVAE` in training.

    logits: float [B, V, h, w].
    reconstruction: float [B, C, H, W], normalized.
    """

    logits: Tensor
    reconstruction: Tensor


class DiscreteVAE(TrainedTokenizer):
    """Encoder, codebook and decoder of a discrete VAE of frames (the tokenizer of BEiT and DALL-E).

    The code of a cell is sampled from a categorical distribution, in training by the Gumbel-softmax
    relaxation. The layers are VQ-VAE's, which cost a small part of the published encoder's
    (:mod:`videomaskfeat.models.published_dvae`).

    Args:
        code_width: values per code.
        straight_through: train on one-hot samples, with the gradient of the relaxed ones.
        shared: the other arguments of :class:`TrainedTokenizer`.
    """

    def __init__(self, *, code_width: int = 128, straight_through: bool = False, **shared: Any) -> None:
        super().__init__(code_width=code_width, **shared)
        self.straight_through = straight_through
        self.encoder = FrameEncoder(out_width=self.vocabulary, **self._coder)
        self.codes = nn.Parameter(torch.empty(self.vocabulary, code_width).normal_())
        self.decoder = FrameDecoder(in_width=code_width, **self._coder)

    def forward(self, pictures: Tensor, temperature: float) -> DvaeCoding:
        """Encode pictures float32 [B, C, H, W] in 0..1 by relaxed samples, and decode them."""
        logits = self.encoder(self.normalize(pictures))
        samples = gumbel_softmax(
            logits, gumbel_noise(logits), temperature=temperature, straight_through=self.straight_through
        )
        codes = torch.einsum("bvhw,vd->bdhw", samples, self.codes)
        return DvaeCoding(logits, self.decoder(codes))

    def tokens(self, pictures: Tensor) -> Tensor:
        return torch.argmax(self.encoder(self.normalize(pictures)), dim=1)

    def decode(self, tokens: Tensor) -> Tensor:
        return self.decoder(F.embedding(tokens, self.codes).permute(0, 3, 1, 2)).float()


_CHUNK = 4096  # latents compared with all codes at once: 128 MB of distances for 8192 codes


def nearest_codes(latents: Tensor, codes: Tensor) -> Tensor:
    """Index of the nearest of codes [V, D], the first if equal: latents [..., D] -> int64 [...]."""
    flat = latents.detach().float().reshape(-1, latents.shape[-1])  # [n, D]
    with torch.autocast(flat.device.type, enabled=False):
        half_lengths = codes.square().sum(1) / 2  # [V]; the latent's own length does not matter
        tokens = [(half_lengths - chunk @ codes.t()).argmin(1) for chunk in flat.split(_CHUNK)]
    return torch.cat(tokens).view(latents.shape[:-1])


def count_tokens(tokens: Tensor, vocabulary: int) -> Tensor:
    """Number of occurrences of each token: int64 [...] in 0..V-1 -> int64 [V].

    As :func:`torch.bincount`, which on a GPU makes the host wait for the largest token.
    """
    flat = tokens.flatten()
    counts = torch.zeros(vocabulary, dtype=torch.int64, device=flat.device)
    return counts.scatter_add_(0, flat, torch.ones_like(flat))


@dataclass(frozen=True)
class CodeStatistics:
    """Statistics of a batch for :meth:`Codebook.update`; summed over ranks.

    counts, sums: float32 [V] and [V, D], number and sum of the latents nearest to each code.
    candidates: float32 [V, D], a random latent per code, to replace it if it is dead.
    """

    counts: Tensor
    sums: Tensor
    candidates: Tensor


class Codebook(nn.Module):
    """V codes that are moving averages of the latents nearest to them (VQ-VAE, appendix A.1).

    With n_i latents z nearest to code i in a batch: ``N_i = decay*N_i + (1-decay)*n_i``,
    ``m_i = decay*m_i + (1-decay)*sum(z)``, ``e_i = m_i / N_i``. A code is dead if N_i is below
    ``revive_below`` times the mean of all N. It is then replaced by a latent of the batch and N_i by that
    mean, which gives it time to attract latents. Initially all N are 0, so codes that the first batch does
    not use are replaced from it.

    Args:
        vocabulary, width: number of codes, V, and values per code, D.
        decay: share of the old average at an update, in [0, 1).
        revive_below: see above, in [0, 1); 0 replaces only codes that were never used.

    Raises:
        UserError: a value out of range.
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
                raise UserError(f"{name}={value} must be at least 0 and below 1")
        self.decay = decay
        self.revive_below = revive_below
        self.register_buffer("codes", torch.randn(vocabulary, width))
        self.register_buffer("counts", torch.zeros(vocabulary))
        self.register_buffer("sums", torch.zeros(vocabulary, width))

    def forward(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        """Latents float [..., D] -> code indices int64 [...] and codes float32 [..., D], without gradient."""
        tokens = nearest_codes(latents, self.codes)
        return tokens, F.embedding(tokens, self.codes)

    @torch.no_grad()
    def statistics(self, latents: Tensor, tokens: Tensor) -> CodeStatistics:
        """Statistics of latents [..., D] and their code indices [...]; uses torch's global generator."""
        flat = latents.detach().float().reshape(-1, latents.shape[-1])  # [n, D]
        indices = tokens.reshape(-1)  # [n]
        vocabulary = self.codes.shape[0]
        counts = count_tokens(indices, vocabulary).float()
        sums = torch.zeros_like(self.sums).index_add_(0, indices, flat)
        candidates = torch.randint(flat.shape[0], (vocabulary,), device=flat.device)
        return CodeStatistics(counts, sums, flat[candidates])

    @torch.no_grad()
    def update(self, batch: CodeStatistics) -> Tensor:
        """Update the codes with the statistics of a batch; returns the number of replaced codes, int64 []."""
        self.counts.lerp_(batch.counts, 1 - self.decay)
        self.sums.lerp_(batch.sums, 1 - self.decay)
        mean = self.counts.mean()
        dead = (self.counts < self.revive_below * mean) | (self.counts == 0)  # [V]
        self.counts.copy_(torch.where(dead, mean, self.counts))
        self.sums.copy_(torch.where(dead[:, None], batch.candidates * mean, self.sums))
        self.codes.copy_(self.sums / self.counts[:, None])
        return dead.sum()


class VqCoding(NamedTuple):
    """Output of :class:`VectorQuantizer` in training.

    latents, codes: float32 [B, h, w, D], output of the encoder, and the nearest codes without gradient.
    tokens: int64 [B, h, w], indices of these codes.
    reconstruction: float [B, C, H, W], normalized; its gradient reaches the latents in place of the codes.
    """

    latents: Tensor
    tokens: Tensor
    codes: Tensor
    reconstruction: Tensor


class VectorQuantizer(TrainedTokenizer):
    """Encoder, codebook and decoder of a VQ tokenizer of frames (VQ-VAE; with a perceptual loss, PeCo's).

    Args:
        code_width: values per code; a narrow code keeps more codes in use.
        decay, revive_below: see :class:`Codebook`.
        shared: the other arguments of :class:`TrainedTokenizer`.
    """

    def __init__(
        self, *, code_width: int = 32, decay: float = 0.99, revive_below: float = 0.05, **shared: Any
    ) -> None:
        super().__init__(code_width=code_width, **shared)
        self.encoder = FrameEncoder(out_width=code_width, **self._coder)
        self.codebook = Codebook(
            vocabulary=self.vocabulary, width=code_width, decay=decay, revive_below=revive_below
        )
        self.decoder = FrameDecoder(in_width=code_width, **self._coder)

    def forward(self, pictures: Tensor) -> VqCoding:
        """Encode pictures float32 [B, C, H, W] in 0..1 by the nearest codes, and decode them."""
        latents = self._latents(pictures)
        tokens, codes = self.codebook(latents)
        decoder_input = straight_through(latents, codes).permute(0, 3, 1, 2)
        return VqCoding(latents, tokens, codes, self.decoder(decoder_input))

    def tokens(self, pictures: Tensor) -> Tensor:
        return nearest_codes(self._latents(pictures), self.codebook.codes)

    def decode(self, tokens: Tensor) -> Tensor:
        codes = F.embedding(tokens, self.codebook.codes)  # [B, h, w, D]
        return self.decoder(codes.permute(0, 3, 1, 2)).float()

    def _latents(self, pictures: Tensor) -> Tensor:
        return self.encoder(self.normalize(pictures)).permute(0, 2, 3, 1).float()


def straight_through(latents: Tensor, codes: Tensor) -> Tensor:
    """The value of ``codes`` with the gradient of ``latents`` (VQ-VAE, section 3.2)."""
    return latents + (codes - latents).detach()


TOKENIZERS: dict[str, type[TrainedTokenizer]] = {"dvae": DiscreteVAE, "vq": VectorQuantizer}


def create_tokenizer(kind: str, /, **arguments: Any) -> TrainedTokenizer:
    """Create a tokenizer with fresh weights from torch's global generator (seed it first).

    Args:
        kind: a name in :data:`TOKENIZERS`.
        arguments: arguments that differ from the defaults of its class.

    Returns:
        The tokenizer in training mode; ``created_as`` is (kind, arguments), for
        :func:`~videomaskfeat.models.saving.save_model`.

    Raises:
        UserError: unknown kind or argument, or a value out of range.
    """
    check_name("tokenizer", kind, TOKENIZERS)
    return build_checked(TOKENIZERS[kind], f"tokenizer {kind!r}", kind, arguments)


def load_tokenizer(path: str | os.PathLike[str], *, kind: str | None = None) -> TrainedTokenizer:
    """Build the tokenizer described in a weights file of a train-tokenizer run, and load its weights.

    Args:
        path: a safetensors file, local or remote.
        kind: required kind; None for any.

    Returns:
        The tokenizer in evaluation mode, on the CPU. The random state does not change.

    Raises:
        UserError: the file is missing or damaged, or belongs to another model or kind of tokenizer.
    """
    name = os.fspath(path)
    metadata = read_metadata(name)
    file_kind = metadata.get("model", "")
    if file_kind not in TOKENIZERS:
        content = f"the model {file_kind!r}" if file_kind else "weights without a model name"
        raise UserError(
            f"{name} contains {content}, but a tokenizer is needed; use the weights.safetensors of a "
            "train-tokenizer run"
        )
    if kind not in (None, file_kind):
        raise UserError(
            f"{name} contains a tokenizer of kind {file_kind!r}, but kind {kind!r} is needed; use another "
            "file, or the target for this kind"
        )
    _, arguments = created_as(name)
    try:
        with torch.random.fork_rng(devices=[]):
            tokenizer = create_tokenizer(file_kind, **arguments)
    except UserError as error:
        raise UserError(f"{name}: cannot build the tokenizer described in its metadata: {error}") from error
    load_into(tokenizer, read_state(name), source=name)
    return tokenizer.eval()
