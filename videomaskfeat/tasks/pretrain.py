"""``pretrain``: from a config to a trained encoder, its held-out loss, its pictures and its report."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from videomaskfeat.config import PretrainConfig
from videomaskfeat.data.loader import ClipLoader, FailureCounter, PretrainBatch
from videomaskfeat.engine import distributed
from videomaskfeat.engine.loop import TrainResult, train
from videomaskfeat.errors import UserError
from videomaskfeat.losses import masked_mse
from videomaskfeat.memory import keep_freed_memory
from videomaskfeat.models.weights import save_weights
from videomaskfeat.tasks.heldout import HeldOutLoss, heldout_loss
from videomaskfeat.tasks.plan import describe_plan
from videomaskfeat.tasks.pretrain_parts import (
    build_model,
    build_target,
    heldout_loader,
    recipe_of,
    training_loader,
)
from videomaskfeat.tasks.recipe import METADATA_KEY, Levels, normalise
from videomaskfeat.tasks.report import report
from videomaskfeat.tasks.run_folder import RunFolder, uses_bf16
from videomaskfeat.tasks.training_parts import (
    build_average,
    build_optimizer,
    build_schedule,
    loop_options,
)
from videomaskfeat.tasks.visualize import draw_videos

logger = logging.getLogger(__name__)

# What may change between a run and its resumption without changing what is learnt.
FREE_KEYS = (
    "data.validation",
    "data.workers",
    "data.failure_share",
    "optim.accumulate",
    "run.folder",
    "run.device",
    "run.compile",
    "run.activation_checkpointing",
    "run.checkpoint_minutes",
    "run.checkpoint_epochs",
    "run.keep_checkpoints",
    "run.evaluate_epochs",
    "run.evaluate_clips",
    "run.pictures",
)


@dataclass(frozen=True)
class Outcome:
    """How a pre-training ended.

    Attributes:
        folder: the run folder.
        finished: False where a signal stopped the run, which is saved and can be resumed.
        failures: videos that could not be read and were replaced, all epochs together.
    """

    folder: Path
    finished: bool
    failures: int


class PretrainStep:
    """Batch -> loss: normalise on the device, make the target, predict, compare where it was hidden.

    Args:
        model: (clips, mask) -> predictions [B, t, h, w, K], perhaps wrapped for several processes.
        target: clips -> targets [B, t, h, w, K]; runs without gradient and in float32.
        mean: subtracted from pixels in 0..1.
        std: divides them after that.
        compiled: compile network and loss with torch.compile. The target stays outside: on a CPU the compiled
            HOG is several times slower than the eager one (docs/performance.md).
    """

    def __init__(
        self, model: nn.Module, target: nn.Module, *, mean: Levels, std: Levels, compiled: bool = False
    ) -> None:
        self.model = model
        self.target = target
        self.mean = mean
        self.std = std
        self._compare: Callable[..., Tensor] = torch.compile(self.compare) if compiled else self.compare

    def __call__(self, batch: PretrainBatch) -> tuple[Tensor, Mapping[str, Tensor]]:
        """The mean squared error over the hidden positions of a batch."""
        pixels = normalise(batch.clips, mean=self.mean, std=self.std)
        with torch.no_grad():
            target = self.target(pixels)
        return self._compare(pixels, target, batch.mask), {}

    def compare(self, pixels: Tensor, target: Tensor, mask: Tensor) -> Tensor:
        """Pixels [B, C, T, H, W], target [B, t, h, w, K], mask bool [B, t', h', w'] -> loss float32 []."""
        return masked_mse(self.model(pixels, mask), target, mask)


def pretrain(config: PretrainConfig) -> Outcome:
    """Pre-train as the config says; a run folder that holds a checkpoint is resumed.

    Raises:
        UserError: the config, the lists, the videos or the run folder are wrong.
        RunFailed: the loss is not finite, or nothing can be saved.
    """
    if not config.data.train:
        raise UserError("data.train is not set: give a list file or a folder, such as data.train=videos.csv")
    if not config.run.folder:
        raise UserError("run.folder is not set: give the folder of this run, such as run.folder=runs/first")
    device = distributed.choose_device(config.run.device)
    if device.type == "cpu":
        keep_freed_memory()
    with distributed.process_group(device):
        return _Run(config, device).go()


class _Run:
    """The parts of one run, built from its config."""

    def __init__(self, config: PretrainConfig, device: torch.device) -> None:
        self.config, self.device = config, device
        self.run_folder = RunFolder(config.run.folder, config, free_keys=FREE_KEYS)
        self.folder = self.run_folder.path
        self.recipe = recipe_of(config)
        torch.manual_seed(config.run.seed)
        self.target = build_target(config)
        self.model = build_model(config, self.target)
        self.loader = training_loader(config, rank=distributed.rank(), world_size=distributed.world_size())
        self.heldout = heldout_loader(config)
        self.bf16 = uses_bf16(config.run.precision, device)
        self.network = distributed.parallel(self.model, device)
        self.target.to(device)
        self.schedule = build_schedule(config.optim)
        self.optimizer = build_optimizer(config.optim, self.model, base_lr=self.schedule.base_lr)
        self.ema = build_average(config.optim, self.model)

    def go(self) -> Outcome:
        """Train, then measure, save, draw and report."""
        distributed.run_on_main(self._open_folder)
        before = self._untrained()
        counter = FailureCounter(len(self.loader.dataset), share=self.config.data.failure_share)
        result = self._train(counter)
        self.loader.close()
        failures = result.progress.failures
        if result.status == "interrupted":
            logger.info("interrupted; saved as %s; the same command goes on from there", result.checkpoint)
            return Outcome(self.folder, finished=False, failures=failures)
        distributed.run_on_main(lambda: self._finish(before, result))
        return Outcome(self.folder, finished=True, failures=failures)

    def _open_folder(self) -> None:
        self.run_folder.open()
        plan = describe_plan(self.config, self.model, self.loader, device=self.device, bf16=self.bf16)
        self.run_folder.say(plan)

    def _train(self, counter: FailureCounter) -> TrainResult:
        config = self.config
        step = PretrainStep(
            self.network,
            self.target,
            mean=config.clip.mean,
            std=config.clip.std,
            compiled=config.run.compile,
        )
        options = loop_options(
            config.optim, config.run, self.loader, evaluate_epochs=config.run.evaluate_epochs, bf16=self.bf16
        )
        return train(
            model=self.network,
            step=step,
            loader=self.loader,
            optimizer=self.optimizer,
            learning_rate=self.schedule,
            folder=self.folder,
            device=self.device,
            options=options,
            ema=self.ema,
            fingerprint=self.run_folder.fingerprint,
            evaluate=self._evaluate if self.heldout and config.run.evaluate_epochs else None,
            on_failures=self.run_folder.count_failures(counter),
            extra={"failures": counter},
        )

    def _evaluate(self) -> dict[str, float]:
        """The held-out loss, computed by rank 0; every rank gets the same numbers."""
        with nullcontext() if self.ema is None else self.ema.averaged(self.model):
            loss = distributed.run_on_main(self._heldout_loss)
        return {"heldout_loss": loss.model, "heldout_constant": loss.constant}

    def _heldout_loss(self) -> HeldOutLoss:
        assert self.heldout is not None
        autocast = torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.bf16)
        return heldout_loss(self.model, self.target, self._heldout_batches(self.heldout), autocast=autocast)

    def _heldout_batches(self, loader: ClipLoader) -> Iterator[tuple[Tensor, Tensor]]:
        """Normalised clips and masks, the same in every call: epoch 0 of the held-out list."""
        clip = self.config.clip
        left = min(self.config.run.evaluate_clips, len(loader.dataset))
        for batch in loader.epoch(0):
            if left <= 0:
                return
            left -= len(batch.index)
            on_device = batch.to(self.device)
            yield normalise(on_device.clips, mean=clip.mean, std=clip.std), on_device.mask

    def _untrained(self) -> HeldOutLoss | None:
        """The held-out loss of the weights that the run starts from."""
        return self._heldout_loss() if self.heldout and distributed.is_main() else None

    def _finish(self, before: HeldOutLoss | None, result: TrainResult) -> None:
        """Weights (the averaged ones where they are kept), held-out loss, pictures and report."""
        if self.ema is not None:
            self.model.load_state_dict(self.ema.state_dict())
        weights = self.folder / "weights.safetensors"
        save_weights(weights, self.model, metadata={METADATA_KEY: self.recipe.to_json()})
        summary: dict[str, Any] = {
            "steps": result.progress.step,
            "clips": result.progress.samples,
            "failures": result.progress.failures,
            "seconds": result.progress.seconds,
            "checkpoint": str(result.checkpoint),
            "weights": str(weights),
        }
        if before is not None:
            after = self._heldout_loss()
            summary |= {
                "heldout_clips": after.clips,
                "heldout_constant": after.constant,
                "heldout_untrained": before.model,
                "heldout_trained": after.model,
            }
        self.run_folder.write_json("summary.json", summary)
        self._draw()
        self.run_folder.say(closing_words(summary, report(self.folder)))

    def _draw(self) -> None:
        """Pictures of the first held-out videos (or of the training list's)."""
        records = (self.heldout or self.loader).dataset.records
        videos = [records[index].path for index in range(min(self.config.run.pictures, len(records)))]
        if not videos:
            return
        reader = self.config.data.reader
        drawn = draw_videos(self.model, videos, self.folder / "pictures", recipe=self.recipe, reader=reader)
        for failure in drawn.failures:
            logger.warning("not drawn: %s", failure)


def closing_words(summary: Mapping[str, Any], page: Path) -> str:
    """What the user reads at the end of a run."""
    lines = []
    if "heldout_trained" in summary:
        constant, trained = summary["heldout_constant"], summary["heldout_trained"]
        share = 100 * (1 - trained / constant)
        place = f"{abs(share):.1f} % {'below' if share >= 0 else 'above'} the constant"
        lines += [
            f"loss on {summary['heldout_clips']} held-out clips (mean squared error at hidden positions)",
            f"  best constant prediction  {constant:.5f}",
            f"  untrained model           {summary['heldout_untrained']:.5f}",
            f"  trained model             {trained:.5f}   ({place})",
        ]
    lines += [
        f"checkpoint  {summary['checkpoint']}",
        f"weights     {summary['weights']}",
        f"report      {page}",
    ]
    return "\n".join(lines)
