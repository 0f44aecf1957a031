"""``train-tokenizer``: from a config to a tokenizer of frames, its held-out figures and its report."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from videomaskfeat.config import TokenizerConfig
from videomaskfeat.data.loader import ClipLoader, FailureCounter
from videomaskfeat.engine import distributed
from videomaskfeat.engine.loop import TrainResult, train
from videomaskfeat.engine.signals import stop_if_requested
from videomaskfeat.errors import UserError, counted
from videomaskfeat.models.weights import save_weights
from videomaskfeat.targets.tally import margin
from videomaskfeat.tasks.protocol import file_sha256
from videomaskfeat.tasks.report import report
from videomaskfeat.tasks.run_folder import RunFolder, hold_run_folder, uses_bf16
from videomaskfeat.tasks.threads import with_threads
from videomaskfeat.tasks.tokenizing.tokenizer_parts import (
    RECIPE_KEY,
    build_optimizer,
    build_perceptual,
    build_step,
    build_tokenizer,
    check_keys,
    heldout_loader,
    recipe_text,
    training_loader,
)
from videomaskfeat.tasks.tokenizing.tokenizer_steps import HeldOutFrames, heldout_frames, pictures_of
from videomaskfeat.tasks.training_parts import build_schedule, loop_options, rank_timeout_seconds
from videomaskfeat.viz.reconstructions import write_reconstructions

logger = logging.getLogger(__name__)

_FEW_CODES = 0.25  # share of the codes that could be in use, below which a word is said
# What may change between a run and its resumption without changing what is learnt.
FREE_KEYS = (
    "data.validation",
    "data.workers",
    "data.read_seconds",
    "data.failure_share",
    "run.folder",
    "run.device",
    "run.threads",
    "run.checkpoint_minutes",
    "run.rank_timeout_minutes",
    "run.checkpoint_epochs",
    "run.keep_checkpoints",
    "run.evaluate_epochs",
    "run.evaluate_frames",
    "run.pictures",
)


@dataclass(frozen=True)
class TokenizerOutcome:
    """How a training ended.

    Attributes:
        folder: the run folder.
        finished: False where a signal stopped the run, which is saved and can be resumed.
        failures: videos that could not be read and were replaced, all epochs together.
    """

    folder: Path
    finished: bool
    failures: int


def train_tokenizer(config: TokenizerConfig) -> TokenizerOutcome:
    """Train a tokenizer as the config says; a run folder that holds a checkpoint is resumed.

    Raises:
        UserError: the config, the lists, the videos or the run folder are wrong.
        RunFailed: the loss is not finite, or nothing can be saved.
    """
    if not config.data.train:
        raise UserError("data.train is not set: give a list file or a folder, such as data.train=videos.csv")
    if not config.run.folder:
        raise UserError("run.folder is not set: give the folder of this run, such as run.folder=runs/tokens")
    check_keys(config)
    device = distributed.choose_device(config.run.device)
    with (
        distributed.process_group(device, timeout_seconds=rank_timeout_seconds(config.run)),
        hold_run_folder(config.run.folder),
    ):
        config = with_threads(config, device, lambda: _Run(config, device))
        return _Run(config, device).go()


class _Run:
    """The parts of one run, built from its config."""

    def __init__(self, config: TokenizerConfig, device: torch.device) -> None:
        self.config, self.device = config, device
        self.run_folder = RunFolder(config.run.folder, config, free_keys=FREE_KEYS)
        self.folder = self.run_folder.path
        torch.manual_seed(config.run.seed)
        self.tokenizer = build_tokenizer(config)
        self.perceptual = build_perceptual(config)
        self.loader = training_loader(config)
        self.heldout = heldout_loader(config)
        self.bf16 = uses_bf16(config.run.precision, device)
        self.network = distributed.parallel(self.tokenizer, device)
        if self.perceptual is not None:
            self.perceptual.to(device)
        self.step = build_step(config, self.network, self.tokenizer, self.perceptual)
        self.schedule = build_schedule(config.optim)
        self.optimizer = build_optimizer(config, self.tokenizer, base_lr=self.schedule.base_lr)

    def go(self) -> TokenizerOutcome:
        """Train, then measure, save, draw and report."""
        with self.loader, self.heldout or nullcontext():
            return self._go()

    def _go(self) -> TokenizerOutcome:
        distributed.run_on_main(self._open_folder)
        before = self._measure() if self.heldout and distributed.is_main() else None
        counter = FailureCounter(len(self.loader.dataset), share=self.config.data.failure_share)
        result = self._train(counter)
        self.loader.close()
        failures = result.progress.failures
        if result.status == "interrupted":
            logger.info("interrupted; saved as %s; the same command goes on from there", result.checkpoint)
            return TokenizerOutcome(self.folder, finished=False, failures=failures)
        distributed.run_on_main(lambda: self._finish(before, result))
        return TokenizerOutcome(self.folder, finished=True, failures=failures)

    def _open_folder(self) -> None:
        self.run_folder.open()
        self.run_folder.say(self._plan())

    def _plan(self) -> str:
        """What the run is about to do, a line each."""
        config, tokenizer = self.config, self.tokenizer
        records = self.loader.dataset.records
        parameters = sum(parameter.numel() for parameter in tokenizer.parameters())
        side = config.frames.size // tokenizer.stride
        steps = self.loader.batches_per_epoch // config.optim.accumulate
        lines = [
            f"tokenizer {config.model.name}: {tokenizer.vocabulary} codes, "
            f"{parameters / 1e6:.2f} M parameters",
            f"frames    {config.frames.size}x{config.frames.size} pixels: {side}x{side} tokens of "
            f"{tokenizer.stride}x{tokenizer.stride} pixels, {config.frames.per_video} from each opening of a "
            "video",
            f"loss      squared error of the pixels{self._perceptual_words()}",
            f"data      {records.source}: {len(records)} videos",
            f"plan      {config.optim.epochs:g} epochs x {steps} steps of {config.optim.batch_size} frames",
            f"device    {self.device}, {'bf16 autocast' if self.bf16 else 'fp32'}, "
            + counted(torch.get_num_threads(), "thread"),
            f"run       {config.run.folder}",
        ]
        return "\n".join(lines)

    def _perceptual_words(self) -> str:
        if self.perceptual is None:
            return ""
        depths = ", ".join(map(str, self.perceptual.depths))
        return (
            f", and of the features of {self.config.perceptual.weights} after block {depths}, "
            f"times {self.config.perceptual.weight:g}"
        )

    def _train(self, counter: FailureCounter) -> TrainResult:
        self.loader.given_up = counter.given_up
        config = self.config
        options = loop_options(
            config.optim, config.run, self.loader, evaluate_epochs=config.run.evaluate_epochs, bf16=self.bf16
        )
        return train(
            model=self.network,
            step=self.step,
            loader=self.loader,
            optimizer=self.optimizer,
            learning_rate=self.schedule,
            folder=self.folder,
            device=self.device,
            options=options,
            fingerprint={**self.run_folder.fingerprint, **self._content()},
            evaluate=self._evaluate if self.heldout and config.run.evaluate_epochs else None,
            on_failures=self.run_folder.count_failures(counter),
            after_step=self.step.after_step,
            extra={"failures": counter, "step": self.step},
        )

    def _content(self) -> dict[str, str]:
        """The hash of the file that the run depends on besides its config."""
        path = self.config.perceptual.weights
        return {f"the content of {path}": file_sha256(path)} if path else {}

    def _evaluate(self) -> dict[str, float]:
        """Held-out figures, computed by rank 0; every rank gets the same numbers."""
        figures = distributed.run_on_main(self._measure)
        return {
            "reconstruction": figures.reconstruction,
            "perplexity": figures.perplexity,
            "used_codes": float(figures.used),
        }

    def _measure(self) -> HeldOutFrames:
        assert self.heldout is not None
        return heldout_frames(self.tokenizer, self._frames(self.heldout, self.config.run.evaluate_frames))

    def _frames(self, loader: ClipLoader[Any], count: int) -> Iterator[Tensor]:
        """The first frames of a list in 0..1, the same in every call."""
        left = min(count, len(loader.dataset))
        for batch in loader.epoch(0):
            if left <= 0:
                return
            stop_if_requested()
            left -= len(batch.index)
            yield pictures_of(batch.to(self.device).clips)

    def _finish(self, before: HeldOutFrames | None, result: TrainResult) -> None:
        """Weights, held-out figures, pictures and report."""
        weights = self.folder / "weights.safetensors"
        recipe = recipe_text(self.config, self.tokenizer)
        save_weights(weights, self.tokenizer, metadata={RECIPE_KEY: recipe})
        summary: dict[str, Any] = {
            "steps": result.progress.step,
            "frames": result.progress.samples,
            "failures": result.progress.failures,
            "seconds": result.progress.seconds,
            "vocabulary": self.tokenizer.vocabulary,
            "checkpoint": str(result.checkpoint),
            "weights": str(weights),
        }
        if before is not None:
            after = self._measure()
            summary |= {
                "heldout_frames": after.frames,
                "heldout_tokens": after.tokens,
                "heldout_constant": after.constant,
                "heldout_untrained": before.reconstruction,
                "heldout_trained": after.reconstruction,
                "heldout_perplexity": after.perplexity,
                "heldout_used_codes": after.used,
            }
        self.run_folder.write_json("summary.json", summary)
        self._draw()
        self.run_folder.say(closing_words(summary, report(self.folder)))

    @torch.no_grad()
    def _draw(self) -> None:
        """Held-out frames (or the training list's), their tokens, and what the decoder makes of these."""
        count = self.config.run.pictures
        if count < 1:
            return
        loader = self.heldout or self.loader
        pictures = next(self._frames(loader, count))[:count]  # [n, C, H, W]
        tokens = self.tokenizer.tokens(pictures)
        decoded = self.tokenizer.denormalise(self.tokenizer.decode(tokens))
        write_reconstructions(
            self.folder / "pictures" / "reconstructions.png",
            frames=_as_bytes(pictures),
            reconstructions=_as_bytes(decoded),
            tokens=tokens.cpu().numpy(),
        )


def _as_bytes(pictures: Tensor) -> Any:
    """Pictures float [n, C, H, W] in 0..1 -> uint8 [n, H, W, C]; what lies outside is cut off."""
    return (pictures.clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy()


def closing_words(summary: Mapping[str, Any], page: Path) -> str:
    """What the user reads at the end of a run."""
    lines = []
    if "heldout_trained" in summary:
        constant, trained = summary["heldout_constant"], summary["heldout_trained"]
        apart = margin(trained, constant)
        place = f"{apart[0]:.1f} % {apart[1]} the one colour" if apart else "the frames have one colour"
        lines += [
            f"reconstruction of {summary['heldout_frames']} held-out frames (mean squared error, "
            "normalised pixels)",
            f"  best one colour      {constant:.5f}",
            f"  untrained tokenizer  {summary['heldout_untrained']:.5f}",
            f"  trained tokenizer    {trained:.5f}   ({place})",
            f"codes used there       {summary['heldout_used_codes']} of {summary['vocabulary']}, "
            f"perplexity {summary['heldout_perplexity']:.1f}",
        ]
        # A short list cannot use more codes than it has tokens.
        if summary["heldout_used_codes"] < _FEW_CODES * min(summary["vocabulary"], summary["heldout_tokens"]):
            lines.append(
                "few codes in use, and a target of few tokens says little: take more epochs, or a smaller "
                "model.arguments.vocabulary"
            )
    lines += [
        f"checkpoint  {summary['checkpoint']}",
        f"weights     {summary['weights']}",
        f"report      {page}",
    ]
    return "\n".join(lines)
