"""What a tokenizer learns from: reconstruction, and what keeps its codes in use."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from videomaskfeat.data.batches import PretrainBatch
from videomaskfeat.engine import distributed
from videomaskfeat.engine.ramps import CosineRamp
from videomaskfeat.losses import kl_to_uniform
from videomaskfeat.metrics.code_usage import code_counts, perplexity, used_codes
from videomaskfeat.models.dvae import DiscreteVAE
from videomaskfeat.models.frame_tokenizer import TrainedTokenizer
from videomaskfeat.models.perceptual import PerceptualDistance
from videomaskfeat.models.vq import Codebook, CodeStatistics, VectorQuantizer


def pictures_of(clips: Tensor) -> Tensor:
    """Clips uint8 [B, T, H, W, C] -> their frames float32 [B*T, C, H, W], in 0..1."""
    return clips.flatten(0, 1).permute(0, 3, 1, 2).float() / 255


class TokenizerStep(ABC):
    """Batch -> loss of a tokenizer, with its figures for the log. What it remembers goes with a checkpoint.

    Args:
        network: the tokenizer, perhaps wrapped for several processes.
        tokenizer: the plain module.
        perceptual: compares frames with their reconstructions; None: pixels alone count.
        perceptual_weight: of that distance.
    """

    def __init__(
        self,
        network: nn.Module,
        tokenizer: TrainedTokenizer,
        *,
        perceptual: PerceptualDistance | None = None,
        perceptual_weight: float = 1.0,
    ) -> None:
        self.network = network
        self.tokenizer = tokenizer
        self.perceptual = perceptual
        self.perceptual_weight = perceptual_weight
        self.progress = 0.0
        """Share of the run that is done."""

    def __call__(self, batch: PretrainBatch) -> tuple[Tensor, Mapping[str, Tensor]]:
        """The loss of a batch of frames, and its parts."""
        pictures = pictures_of(batch.clips)
        tokens, reconstruction, loss, figures = self._code(pictures)
        error = F.mse_loss(reconstruction.float(), self.tokenizer.normalise(pictures))
        loss = loss + error
        figures["reconstruction"] = error
        if self.perceptual is not None:
            distance = self.perceptual(pictures, self.tokenizer.denormalise(reconstruction))
            loss = loss + self.perceptual_weight * distance
            figures["perceptual"] = distance
        counts = distributed.mean_over_ranks(code_counts(tokens, self.tokenizer.vocabulary).float())
        return loss, {**figures, "perplexity": perplexity(counts), "used_codes": used_codes(counts)}

    @abstractmethod
    def _code(self, pictures: Tensor) -> tuple[Tensor, Tensor, Tensor, dict[str, Tensor]]:
        """Tokens, normalised reconstruction, what the loss has besides, and its figures."""

    def after_step(self, progress: float) -> None:
        """Take in that an optimiser step is done, and with it this share of the run."""
        self.progress = progress

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs besides the weights."""
        return {"progress": self.progress}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what :meth:`state_dict` gave."""
        self.progress = state["progress"]


@dataclass(frozen=True)
class Relaxation:
    """How a discrete VAE's draws get harder, and its codes stay in use (DALL-E, arXiv 2102.12092, A.2).

    Args:
        temperature: from start to end, over ``anneal``.
        anneal: share of the run, above 0, up to 1.
        kl_weight: of the KL divergence to uniform codes.
        kl_warmup: share of the run over which that weight rises from 0 along half a cosine.
    """

    temperature: CosineRamp
    anneal: float = 1.0
    kl_weight: float = 0.0
    kl_warmup: float = 0.0

    def at(self, progress: float) -> tuple[float, float]:
        """Temperature and KL weight at a share of the run, 0..1."""
        risen = 1.0 if progress >= self.kl_warmup else progress / self.kl_warmup
        temperature = self.temperature(min(progress / self.anneal, 1.0))
        return temperature, CosineRamp(0.0, self.kl_weight)(risen)


class DvaeStep(TokenizerStep):
    """The step of a :class:`~videomaskfeat.models.dvae.DiscreteVAE`: squared error and KL divergence."""

    def __init__(
        self, network: nn.Module, tokenizer: DiscreteVAE, *, relaxation: Relaxation, **perceptual: Any
    ) -> None:
        super().__init__(network, tokenizer, **perceptual)
        self.relaxation = relaxation

    def _code(self, pictures: Tensor) -> tuple[Tensor, Tensor, Tensor, dict[str, Tensor]]:
        temperature, kl_weight = self.relaxation.at(self.progress)
        coding = self.network(pictures, temperature)
        divergence = kl_to_uniform(coding.logits)
        figures = {"kl": divergence, "temperature": divergence.new_tensor(temperature)}
        return coding.logits.argmax(1), coding.reconstruction, kl_weight * divergence, figures


class VqStep(TokenizerStep):
    """The step of a :class:`~videomaskfeat.models.vq.VectorQuantizer`: squared error and commitment.

    The codes move once an optimiser step, by what all its micro-batches on all ranks say.
    """

    def __init__(
        self, network: nn.Module, tokenizer: VectorQuantizer, *, commitment: float, **perceptual: Any
    ) -> None:
        super().__init__(network, tokenizer, **perceptual)
        self.commitment = commitment
        self.codebook: Codebook = tokenizer.codebook
        self._batches: list[CodeStatistics] = []

    def _code(self, pictures: Tensor) -> tuple[Tensor, Tensor, Tensor, dict[str, Tensor]]:
        coding = self.network(pictures)
        commitment = F.mse_loss(coding.latents, coding.codes)
        self._batches.append(self.codebook.statistics(coding.latents, coding.tokens))
        return coding.tokens, coding.reconstruction, self.commitment * commitment, {"commitment": commitment}

    def after_step(self, progress: float) -> None:
        """Move the codes."""
        super().after_step(progress)
        self.codebook.update(sum_over_ranks(self._batches))
        self._batches = []


def sum_over_ranks(batches: Iterable[CodeStatistics]) -> CodeStatistics:
    """The statistics of several micro-batches, of all ranks; a dead code's candidate comes from one of them.

    The ranks take turns in the candidates by the number of the code, so that every rank has the same.
    """
    own = list(batches)
    turn = torch.arange(len(own[0].counts), device=own[0].counts.device)
    candidates = torch.zeros_like(own[0].candidates)
    for number, batch in enumerate(own):
        mine = (
            turn % (len(own) * distributed.world_size())
            == number * distributed.world_size() + distributed.rank()
        )
        candidates[mine] = batch.candidates[mine]
    parts = [torch.stack([batch.counts for batch in own]).sum(0)[:, None]]
    parts += [torch.stack([batch.sums for batch in own]).sum(0), candidates]
    whole = distributed.mean_over_ranks(torch.cat(parts, dim=1)) * distributed.world_size()  # one all-reduce
    counts, sums, candidates = whole.split([1, own[0].sums.shape[1], own[0].sums.shape[1]], dim=1)
    return CodeStatistics(counts[:, 0], sums, candidates)


@dataclass(frozen=True)
class HeldOutFrames:
    """What a tokenizer makes of frames that it never saw.

    Attributes:
        reconstruction: mean squared error of normalised pixels.
        constant: that of the best one colour in hindsight: the variance of the pixels.
        perplexity: of the codes used.
        used: how many codes were used.
        frames: how many frames there were.
        tokens: how many tokens they have.
    """

    reconstruction: float
    constant: float
    perplexity: float
    used: int
    frames: int
    tokens: int


@torch.no_grad()
def heldout_frames(tokenizer: TrainedTokenizer, batches: Iterable[Tensor]) -> HeldOutFrames:
    """Code and decode frames float32 [B, C, H, W] in 0..1, in float32.

    Raises:
        ValueError: there are no batches.
    """
    squared = values = 0.0
    frames = 0
    counts = torch.zeros(tokenizer.vocabulary, dtype=torch.int64)
    sums = squares = torch.zeros(1, dtype=torch.float64)
    for pictures in batches:
        tokens = tokenizer.tokens(pictures)
        truth = tokenizer.normalise(pictures).double()  # [B, C, H, W]
        squared += float((tokenizer.decode(tokens).double() - truth).square().sum())
        sums = sums + truth.sum((0, 2, 3)).cpu()  # [C]
        squares = squares + truth.square().sum((0, 2, 3)).cpu()
        counts += code_counts(tokens, tokenizer.vocabulary).cpu()
        values += truth.numel()
        frames += len(pictures)
    if not frames:
        raise ValueError("no held-out batches")
    pixels = values / len(sums)
    variance = squares / pixels - (sums / pixels).square()  # [C]
    return HeldOutFrames(
        reconstruction=squared / values,
        constant=max(float(variance.mean()), 0.0),  # rounding may bring it below
        perplexity=float(perplexity(counts)),
        used=int(used_codes(counts)),
        frames=frames,
        tokens=int(counts.sum()),
    )
