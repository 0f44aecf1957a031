"""A VQ tokenizer of frames: the nearest of V codes a cell; the codes follow what falls to them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from videomaskfeat.errors import UserError
from videomaskfeat.models.frame_layers import FrameDecoder, FrameEncoder
from videomaskfeat.models.frame_tokenizer import TrainedTokenizer

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
    """What a batch says about the codes; ranks add up theirs.

    counts: float32 [V], latents that fell to each code.
    sums: float32 [V, D], their sums.
    candidates: float32 [V, D], a latent drawn for each code that may turn out dead.
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
        """What latents [..., D] and their numbers [...] say; candidates from torch's global generator."""
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
    """What a VQ tokenizer makes of pictures in training.

    latents: float32 [B, h, w, D], of the encoder.
    tokens: int64 [B, h, w], numbers of the nearest codes.
    codes: float32 [B, h, w, D], those codes; no gradient reaches them.
    reconstruction: float [B, C, H, W], normalised; its gradient passes the codes as if they were the latents.
    """

    latents: Tensor
    tokens: Tensor
    codes: Tensor
    reconstruction: Tensor


class VectorQuantizer(TrainedTokenizer):
    """Encoder, codebook and decoder of a VQ tokenizer of frames (VQ-VAE; with a perceptual loss, PeCo's).

    Args:
        vocabulary: codes, V.
        stride: pixels behind a cell, a power of two.
        width: channels on the grid.
        blocks: residual blocks of the encoder, and of the decoder.
        code_width: numbers a code; few of them keep more codes in use.
        decay, revive_below: see :class:`Codebook`.
        channels: colour channels.
        mean: subtracted from pixels in 0..1: of every channel, or one a channel.
        std: divides them after that, likewise.

    Raises:
        UserError: a value outside its range.
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
            code_width=code_width,
            channels=channels,
            mean=mean,
            std=std,
        )
        self.encoder = FrameEncoder(
            stride=stride, width=width, blocks=blocks, out_width=code_width, in_channels=channels
        )
        self.codebook = Codebook(
            vocabulary=vocabulary, width=code_width, decay=decay, revive_below=revive_below
        )
        self.decoder = FrameDecoder(
            stride=stride, width=width, blocks=blocks, in_width=code_width, out_channels=channels
        )

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
        """Numbers int64 [B, h, w] -> normalised pictures float32 [B, C, H, W]."""
        codes = F.embedding(tokens, self.codebook.codes)  # [B, h, w, D]
        return self.decoder(codes.permute(0, 3, 1, 2)).float()

    def _latents(self, pictures: Tensor) -> Tensor:
        """float32 [B, h, w, D]."""
        return self.encoder(self.normalise(pictures)).permute(0, 2, 3, 1).float()


def straight_through(latents: Tensor, codes: Tensor) -> Tensor:
    """The value of ``codes`` with the gradient of ``latents`` (VQ-VAE, section 3.2)."""
    return latents + (codes - latents).detach()
