"""``train-tokenizer``: trains a tokenizer of frames, with held-out metrics and report."""

from __future__ import annotations

import json
import logging
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from videomaskfeat.data.batches import PretrainBatch
from videomaskfeat.data.clips import FrameSampler, PretrainClips
from videomaskfeat.data.formats import check_lists, load_records
from videomaskfeat.data.loader import ClipLoader, FailureCounter
from videomaskfeat.data.transforms import ClipTransform, RandomResizedCrop, UniformCrop
from videomaskfeat.engine import distributed
from videomaskfeat.engine.contracts import Stateful, StepResult
from videomaskfeat.engine.optim import CosineRamp
from videomaskfeat.engine.run import Outcome, Run, run_training
from videomaskfeat.engine.sections import heldout_loader_options, loader_options
from videomaskfeat.environment import environment_text
from videomaskfeat.errors import UserError, counted
from videomaskfeat.inference.multiview import hold_videos
from videomaskfeat.io import file_sha256
from videomaskfeat.losses.distillation import kl_to_uniform
from videomaskfeat.metrics.accuracy import perplexity
from videomaskfeat.models import published_vit
from videomaskfeat.models.loading import load_model
from videomaskfeat.models.perceptual import PerceptualDistance
from videomaskfeat.models.saving import save_model
from videomaskfeat.models.tokenizers import (
    Codebook,
    CodeStatistics,
    DiscreteVAE,
    TrainedTokenizer,
    VectorQuantizer,
    count_tokens,
    create_tokenizer,
)
from videomaskfeat.schemas.tokenizer import TokenizerConfig
from videomaskfeat.stored_recipe import read_clip_recipe
from videomaskfeat.targets.target import margin
from videomaskfeat.viz.pictures import write_reconstructions
from videomaskfeat.viz.report import write_report

logger = logging.getLogger(__name__)

RECIPE_KEY = "tokenizer"
"""Metadata key of facts on a tokenizer besides its arguments, as JSON, in its weights file."""
HELDOUT_BATCH = 32  # maximum number of frames per held-out batch
_FEW_CODES = 0.25  # a smaller share of used codes causes a warning


def train_tokenizer(config: TokenizerConfig) -> Outcome:
    """Train a tokenizer; a run folder with a checkpoint is resumed.

    Raises:
        UserError: the config, the lists, the videos or the run folder are wrong.
        RunFailed: the loss is not finite, or a checkpoint cannot be saved.
    """
    check_keys(config)
    return run_training(TokenizerRun, config, environment=environment_text, report=write_report)


class TokenizerRun(Run):
    """A tokenizer of frames and its reconstruction of held-out frames."""

    kind = "tokenizer"
    unit = "frames"

    def __init__(self, config: TokenizerConfig, device: torch.device) -> None:
        super().__init__(config, device)
        warning = check_lists(config.data.train, config.data.validation)
        if warning and distributed.is_main():
            logger.warning(warning)
        self.tokenizer = build_tokenizer(config)
        self.perceptual = build_perceptual(config)
        self.loader = training_loader(config)
        self.heldout = heldout_loader(config)
        self.counter = FailureCounter(len(self.loader.dataset), share=config.data.failure_share)
        self.set_model(self.tokenizer)
        if self.perceptual is not None:
            self.perceptual.to(device)
        self.reconstruct = build_step(config, self.network, self.tokenizer, self.perceptual)
        self.evaluate_epochs = config.run.evaluate_epochs
        self.evaluates = self.heldout is not None and bool(config.run.evaluate_epochs)

    def plan(self) -> list[str]:
        config, tokenizer, records = self.config, self.tokenizer, self.loader.dataset.records
        parameters = sum(parameter.numel() for parameter in tokenizer.parameters())
        side = config.frames.size // tokenizer.stride
        features = ""
        if self.perceptual is not None:
            depths = ", ".join(map(str, self.perceptual.depths))
            features = (
                f", and of the features of {config.perceptual.weights} after block {depths}, "
                f"times {config.perceptual.weight:g}"
            )
        return [
            f"tokenizer {config.model.name}: {tokenizer.vocabulary} codes, "
            f"{parameters / 1e6:.2f} M parameters",
            f"frames    {config.frames.size}x{config.frames.size} pixels: {side}x{side} tokens of "
            f"{tokenizer.stride}x{tokenizer.stride} pixels, "
            f"{counted(config.frames.per_video, 'frame')} per video and epoch",
            f"loss      squared error of the pixels{features}",
            f"data      {records.source}: {len(records)} videos",
        ]

    def step(self, batch: PretrainBatch) -> StepResult:
        return self.reconstruct(batch)

    def after_step(self, progress: float, states: Sequence[Any]) -> None:
        self.reconstruct.after_step(progress, states)

    def set_progress(self, progress: float) -> None:
        self.reconstruct.progress = progress

    @property
    def state(self) -> Mapping[str, Stateful]:
        return {"step": self.reconstruct}

    @property
    def facts(self) -> Mapping[str, Any]:
        path = self.config.perceptual.weights
        return {f"the content of {path}": file_sha256(path)} if path else {}

    def prepare(self) -> None:
        hold_videos(self)
        self.untrained = self.measure()

    def evaluate(self) -> dict[str, float]:
        """Held-out metrics."""
        metrics = self.measure()
        assert metrics is not None
        return {
            "reconstruction": metrics.reconstruction,
            "perplexity": metrics.perplexity,
            "used_codes": float(metrics.used),
        }

    def measure(self) -> HeldOutFrames | None:
        """Held-out metrics; None without a held-out list."""
        if self.heldout is None:
            return None
        batches = self.heldout_batches(self.config.run.evaluate_frames)
        frames = (frames_of(batch.clips) for batch in batches)
        return heldout_frames(self.tokenizer, frames)

    def save(self, path: Path) -> None:
        recipe = {
            "kind": self.config.model.name,
            "vocabulary": self.tokenizer.vocabulary,
            "stride": self.tokenizer.stride,
            "size": self.config.frames.size,
            "mean": self.tokenizer.mean.flatten().tolist(),
            "std": self.tokenizer.std.flatten().tolist(),
        }
        save_model(self.tokenizer, path, metadata={RECIPE_KEY: json.dumps(recipe)})

    def finish(self) -> dict[str, Any]:
        """Write the weights and measure them."""
        self.save_last()
        summary: dict[str, Any] = {"vocabulary": self.tokenizer.vocabulary}
        before, after = self.untrained, self.measure()
        if before is not None and after is not None:
            summary |= {
                "heldout_frames": after.frames,
                "heldout_tokens": after.tokens,
                "heldout_constant": after.constant,
                "heldout_untrained": before.reconstruction,
                "heldout_trained": after.reconstruction,
                "heldout_perplexity": after.perplexity,
                "heldout_used_codes": after.used,
            }
        return summary

    def conclude(self, summary: Mapping[str, Any]) -> list[str]:
        if self.config.run.pictures > 0:
            self.draw(self.config.run.pictures)
        return final_lines(summary)

    @torch.no_grad()
    def draw(self, count: int) -> None:
        """Draw held-out frames (or training frames), their tokens and their reconstructions."""
        batch = next(iter((self.heldout or self.loader).epoch(0)))
        pictures = frames_of(batch.to(self.device).clips)[:count]  # [n, C, H, W]
        tokens = self.tokenizer.tokens(pictures)
        decoded = self.tokenizer.denormalize(self.tokenizer.decode(tokens))
        write_reconstructions(
            self.path / "pictures" / "reconstructions.png",
            frames=_as_bytes(pictures),
            reconstructions=_as_bytes(decoded),
            tokens=tokens.cpu().numpy(),
        )


def final_lines(summary: Mapping[str, Any]) -> list[str]:
    """The final lines of the log on the reconstruction."""
    lines = []
    if "heldout_trained" in summary:
        constant, trained = summary["heldout_constant"], summary["heldout_trained"]
        difference = margin(trained, constant)
        comparison = "the frames have one color"
        if difference:
            comparison = f"{difference[0]:.1f} % {difference[1]} the one color"
        lines += [
            f"reconstruction of {summary['heldout_frames']} held-out frames (mean squared error, "
            "normalized pixels)",
            f"  best single color    {constant:.5f}",
            f"  untrained tokenizer  {summary['heldout_untrained']:.5f}",
            f"  trained tokenizer    {trained:.5f}   ({comparison})",
            f"codes used there       {summary['heldout_used_codes']} of {summary['vocabulary']}, "
            f"perplexity {summary['heldout_perplexity']:.1f}",
        ]
        # A short list cannot use more codes than it has tokens.
        if summary["heldout_used_codes"] < _FEW_CODES * min(summary["vocabulary"], summary["heldout_tokens"]):
            lines.append(
                "few codes are in use, which makes a weak target: train more epochs, or use a smaller "
                "model.arguments.vocabulary"
            )
    return lines


def check_keys(config: TokenizerConfig) -> None:
    """Refuse keys that the training of a tokenizer does not use.

    Raises:
        UserError: names the first such key.
    """
    optim, run = config.optim, config.run
    useless = {
        "optim.layer_decay": optim.layer_decay != 1,
        "optim.ema_decay": optim.ema_decay is not None,
        "run.compile": run.compile,
        "run.compile_mode": run.compile_mode != "default",
        "run.activation_checkpointing": run.activation_checkpointing,
    }
    for name, changed in useless.items():
        if changed:
            raise UserError(f"{name} is not used in training a tokenizer; leave it at its default")


def build_tokenizer(config: TokenizerConfig) -> TrainedTokenizer:
    """The named tokenizer, checked against the frame size.

    Raises:
        UserError: the name or an argument is unknown, or the stride does not divide the frame size.
    """
    tokenizer = create_tokenizer(config.model.name, **config.model.arguments)
    if config.frames.size < 1 or config.frames.size % tokenizer.stride:
        raise UserError(
            f"frames.size {config.frames.size} is not a multiple of the tokenizer's stride "
            f"{tokenizer.stride}; change it, or model.arguments.stride"
        )
    return tokenizer


def build_perceptual(config: TokenizerConfig) -> PerceptualDistance | None:
    """The perceptual distance of a frozen encoder; None if the config has no ``perceptual.weights``.

    A file that is not safetensors is a checkpoint of
    :func:`~videomaskfeat.models.published_vit.load_published_vit`.

    Raises:
        UserError: the file is missing, is no model of this framework, or has no such depths.
    """
    perceptual = config.perceptual
    if not perceptual.weights:
        if perceptual.depths:
            raise UserError(
                "perceptual.depths is set but perceptual.weights is not; set it to the weights "
                "file of an encoder"
            )
        return None
    depths: dict[str, Any] = {"depths": perceptual.depths, "weights": perceptual.depth_weights or None}
    if not perceptual.weights.endswith(".safetensors"):
        encoder = published_vit.load_published_vit(perceptual.weights)
        size = encoder.clip_size[1]
        return PerceptualDistance(
            encoder, size=size, mean=published_vit.MEAN, std=published_vit.STD, **depths
        )
    clip = read_clip_recipe(perceptual.weights)
    if not isinstance(clip.crop, int):
        raise UserError(
            f"perceptual.weights {perceptual.weights} sees clips of {clip.crop[0]}x{clip.crop[1]} pixels; "
            "the frames of a tokenizer are square; use weights of square clips"
        )
    return PerceptualDistance(
        load_model(perceptual.weights), size=clip.crop, mean=clip.mean, std=clip.std, **depths
    )


def build_step(
    config: TokenizerConfig,
    network: nn.Module,
    tokenizer: TrainedTokenizer,
    perceptual: PerceptualDistance | None,
) -> TokenizerStep:
    """The training step for the kind of tokenizer."""
    shared: dict[str, Any] = {"perceptual": perceptual, "perceptual_weight": config.perceptual.weight}
    if isinstance(tokenizer, DiscreteVAE):
        gumbel = config.gumbel
        relaxation = Relaxation(
            CosineRamp(gumbel.start_temperature, gumbel.end_temperature),
            anneal=gumbel.anneal,
            kl_weight=gumbel.kl_weight,
            kl_warmup=gumbel.kl_warmup,
        )
        return DvaeStep(network, tokenizer, relaxation=relaxation, **shared)
    assert isinstance(tokenizer, VectorQuantizer)
    return VqStep(network, tokenizer, commitment=config.commitment.weight, **shared)


def training_loader(config: TokenizerConfig) -> ClipLoader[Any]:
    """Random crops of random frames of the training list.

    Raises:
        UserError: the list, the batch size or a frame key is wrong.
    """
    frames = config.frames
    transform = RandomResizedCrop(
        frames.size,
        area=(frames.crop_area[0], frames.crop_area[1]),
        aspect=(frames.crop_aspect[0], frames.crop_aspect[1]),
        flip=frames.flip,
    )
    dataset = _dataset(config, config.data.train, random_frame, transform, samples=frames.per_video)
    return ClipLoader(dataset, **loader_options(config))


def heldout_loader(config: TokenizerConfig) -> ClipLoader[Any] | None:
    """The center crop of the middle frame of each held-out video; None without a held-out list.

    Raises:
        UserError: the list is wrong.
    """
    if not config.data.validation:
        return None
    if config.run.evaluate_frames < 1:
        raise UserError(
            f"run.evaluate_frames {config.run.evaluate_frames} must be at least 1; "
            "or leave data.validation empty"
        )
    transform = UniformCrop(config.frames.size, config.frames.size)
    dataset = _dataset(config, config.data.validation, middle_frame, transform, samples=1)
    frames = min(config.run.evaluate_frames, len(dataset))
    return ClipLoader(dataset, **heldout_loader_options(config, frames, largest_batch=HELDOUT_BATCH))


def random_frame(num_frames: int, fps: float, *, rng: np.random.Generator) -> np.ndarray:
    """A random frame of a video, int64 [1]."""
    return rng.integers(num_frames, size=1)


def middle_frame(num_frames: int, fps: float, *, rng: np.random.Generator) -> np.ndarray:
    """The middle frame of a video, int64 [1]; ``rng`` is not used."""
    return np.array([num_frames // 2])


def hide_nothing(*, rng: np.random.Generator) -> np.ndarray:
    """A mask that hides nothing, bool [1, 1, 1]."""
    return np.zeros((1, 1, 1), dtype=bool)


def _dataset(
    config: TokenizerConfig, path: str, sampler: FrameSampler, transform: ClipTransform, *, samples: int
) -> PretrainClips:
    """Clips of one frame of the videos of a list."""
    data = config.data
    records = load_records(
        path, format=data.format, labels=data.labels, prefix=data.prefix, separator=data.separator
    )
    return PretrainClips(
        records,
        sampler=sampler,
        transform=transform,
        mask=hide_nothing,
        reader=data.reader,
        seed=config.run.seed,
        samples_per_video=samples,
    )


def frames_of(clips: Tensor) -> Tensor:
    """Clips uint8 [B, T, H, W, C] -> frames float32 [B*T, C, H, W] in 0..1."""
    return clips.flatten(0, 1).permute(0, 3, 1, 2).float() / 255


def _as_bytes(pictures: Tensor) -> Any:
    """Pictures float [n, C, H, W] in 0..1, clamped -> uint8 [n, H, W, C]."""
    return (pictures.clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy()


class TokenizerStep(ABC):
    """The training step of a tokenizer: batch -> loss with metrics. Its state is part of a checkpoint.

    Args:
        network: the tokenizer, perhaps in a wrapper for several processes.
        tokenizer: the tokenizer without wrapper.
        perceptual: distance between frames and reconstructions, added to the error of the pixels.
        perceptual_weight: weight of this distance.
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
        """Completed share of the run."""

    def __call__(self, batch: PretrainBatch) -> StepResult:
        """The loss of a batch of frames, and metrics."""
        pictures = frames_of(batch.clips)
        tokens, reconstruction, loss, metrics, state = self._code(pictures)
        error = F.mse_loss(reconstruction.float(), self.tokenizer.normalize(pictures))
        loss = loss + error
        metrics["reconstruction"] = error
        if self.perceptual is not None:
            distance = self.perceptual(pictures, self.tokenizer.denormalize(reconstruction))
            loss = loss + self.perceptual_weight * distance
            metrics["perceptual"] = distance
        counts = distributed.mean_over_ranks(count_tokens(tokens, self.tokenizer.vocabulary).float())
        metrics |= {"perplexity": perplexity(counts), "used_codes": (counts > 0).sum()}
        return StepResult(loss, metrics, state)

    @abstractmethod
    def _code(self, pictures: Tensor) -> tuple[Tensor, Tensor, Tensor, dict[str, Tensor], Any]:
        """Tokens, normalized reconstruction, further loss, its metrics, and the state for `after_step`."""

    def after_step(self, progress: float, states: Sequence[Any]) -> None:
        self.progress = progress

    def state_dict(self) -> dict[str, Any]:
        """State that a resumed run needs besides the weights."""
        return {"progress": self.progress}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.progress = state["progress"]


@dataclass(frozen=True)
class Relaxation:
    """Schedules of a discrete VAE (DALL-E, arXiv 2102.12092, A.2).

    Args:
        temperature: temperature of the Gumbel softmax during ``anneal``.
        anneal: share of the run, above 0 and at most 1.
        kl_weight: weight of the KL divergence to uniform codes.
        kl_warmup: share of the run in which this weight rises from 0 along half a cosine.
    """

    temperature: CosineRamp
    anneal: float = 1.0
    kl_weight: float = 0.0
    kl_warmup: float = 0.0

    def at(self, progress: float) -> tuple[float, float]:
        """Temperature and KL weight at a completed share of the run, 0..1."""
        risen = 1.0 if progress >= self.kl_warmup else progress / self.kl_warmup
        temperature = self.temperature(min(progress / self.anneal, 1.0))
        return temperature, CosineRamp(0.0, self.kl_weight)(risen)


class DvaeStep(TokenizerStep):
    """The training step of a discrete VAE: squared error and KL divergence."""

    def __init__(
        self, network: nn.Module, tokenizer: DiscreteVAE, *, relaxation: Relaxation, **perceptual: Any
    ) -> None:
        super().__init__(network, tokenizer, **perceptual)
        self.relaxation = relaxation

    def _code(self, pictures: Tensor) -> tuple[Tensor, Tensor, Tensor, dict[str, Tensor], Any]:
        temperature, kl_weight = self.relaxation.at(self.progress)
        coding = self.network(pictures, temperature)
        divergence = kl_to_uniform(coding.logits)
        metrics = {"kl": divergence, "temperature": torch.full_like(divergence, temperature)}
        return coding.logits.argmax(1), coding.reconstruction, kl_weight * divergence, metrics, None


class VqStep(TokenizerStep):
    """The training step of a vector quantizer: squared error and commitment.

    Each optimizer step updates the codes once, with the statistics of its micro-batches on all ranks.
    """

    def __init__(
        self, network: nn.Module, tokenizer: VectorQuantizer, *, commitment: float, **perceptual: Any
    ) -> None:
        super().__init__(network, tokenizer, **perceptual)
        self.commitment = commitment
        self.codebook: Codebook = tokenizer.codebook

    def _code(self, pictures: Tensor) -> tuple[Tensor, Tensor, Tensor, dict[str, Tensor], Any]:
        coding = self.network(pictures)
        commitment = F.mse_loss(coding.latents, coding.codes)
        statistics = self.codebook.statistics(coding.latents, coding.tokens)
        metrics = {"commitment": commitment}
        return coding.tokens, coding.reconstruction, self.commitment * commitment, metrics, statistics

    def after_step(self, progress: float, states: Sequence[CodeStatistics]) -> None:
        super().after_step(progress, states)
        self.codebook.update(sum_over_ranks(states))


def sum_over_ranks(batches: Iterable[CodeStatistics]) -> CodeStatistics:
    """The statistics of the micro-batches of all ranks, the same on every rank.

    The replacement of a dead code comes from one micro-batch of one rank, by the number of the code.
    """
    own, ranks = list(batches), distributed.world_size()
    turn = torch.arange(len(own[0].counts), device=own[0].counts.device) % (len(own) * ranks)
    candidates = torch.zeros_like(own[0].candidates)
    for number, batch in enumerate(own):
        mine = turn == number * ranks + distributed.rank()
        candidates = torch.where(mine[:, None], batch.candidates, candidates)
    counts = torch.stack([batch.counts for batch in own]).sum(0)[:, None]
    sums = torch.stack([batch.sums for batch in own]).sum(0)
    columns = torch.cat([counts, sums, candidates], dim=1)
    total = distributed.mean_over_ranks(columns) * ranks  # one all-reduce
    counts, sums, candidates = total.split([1, sums.shape[1], sums.shape[1]], dim=1)
    return CodeStatistics(counts[:, 0], sums, candidates)


@dataclass(frozen=True)
class HeldOutFrames:
    """Metrics of a tokenizer on held-out frames.

    Attributes:
        reconstruction: mean squared error of normalized pixels.
        constant: error of the best single color, the variance of the pixels.
        perplexity: perplexity of the codes.
        used: number of used codes.
        frames: number of frames.
        tokens: number of tokens.
    """

    reconstruction: float
    constant: float
    perplexity: float
    used: int
    frames: int
    tokens: int


@torch.no_grad()
def heldout_frames(tokenizer: TrainedTokenizer, batches: Iterable[Tensor]) -> HeldOutFrames:
    """Metrics over the batches of all ranks, in float32; all ranks must call it.

    Args:
        tokenizer: the tokenizer.
        batches: frames float32 [B, C, H, W] in 0..1 of this rank.

    Raises:
        ValueError: there are no batches.
    """
    frames = squared = values = 0.0
    counts = torch.zeros(tokenizer.vocabulary, dtype=torch.float64)
    sums = squares = torch.zeros(3, dtype=torch.float64)  # red, green, blue
    for pictures in batches:
        tokens = tokenizer.tokens(pictures)
        truth = tokenizer.normalize(pictures).double()  # [B, C, H, W]
        squared += float((tokenizer.decode(tokens).double() - truth).square().sum())
        sums = sums + truth.sum((0, 2, 3)).cpu()  # [C]
        squares = squares + truth.square().sum((0, 2, 3)).cpu()
        counts += torch.bincount(tokens.flatten(), minlength=tokenizer.vocabulary).cpu()
        values += truth.numel()
        frames += len(pictures)
    own = torch.cat([torch.tensor([frames, squared, values], dtype=torch.float64), sums, squares, counts])
    total = distributed.sum_over_ranks(own)
    totals, sums, squares, counts = total.split([3, 3, 3, len(counts)])
    frames, squared, values = totals.tolist()
    if not frames:
        raise ValueError("no held-out batches")
    pixels = values / 3
    variance = squares / pixels - (sums / pixels).square()  # [C]
    return HeldOutFrames(
        reconstruction=squared / values,
        constant=max(float(variance.mean()), 0.0),  # rounding may make it negative
        perplexity=float(perplexity(counts)),
        used=int((counts > 0).sum()),
        frames=int(frames),
        tokens=int(counts.sum()),
    )
