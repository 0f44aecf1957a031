"""``finetune``: from a pre-trained encoder, or from nothing, to a classifier and its accuracy."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from videomaskfeat.data.augment import Mixing
from videomaskfeat.data.batches import Failure, LabelledBatch
from videomaskfeat.data.loader import FailureCounter
from videomaskfeat.engine import distributed
from videomaskfeat.engine.contracts import StepResult
from videomaskfeat.engine.distributed import uses_bf16
from videomaskfeat.engine.loop import TrainResult, train
from videomaskfeat.errors import UserError
from videomaskfeat.inference.multiview import evaluate_model, videos_a_batch
from videomaskfeat.jobs.finetune_building import (
    BestWeights,
    build_classifier,
    build_mixing,
    check_weight_sets,
    evaluation_views,
    read_lists,
    training_loader,
    weight_sets,
)
from videomaskfeat.jobs.plan import describe_finetuning
from videomaskfeat.jobs.report import report
from videomaskfeat.jobs.run import (
    RunFolder,
    build_average,
    build_optimizer,
    build_schedule,
    hold_run_folder,
    loop_options,
    rank_timeout_seconds,
    with_threads,
)
from videomaskfeat.losses import soft_cross_entropy
from videomaskfeat.metrics.accuracy import Accuracy, accuracy
from videomaskfeat.models.weights import load_into, read_state, save_weights
from videomaskfeat.recipe import CLASSIFY_KEY, ClassifyRecipe, Levels, compare_levels, normalise
from videomaskfeat.schemas import FinetuneConfig

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class FinetuneOutcome:
    """How a fine-tuning ended.

    Attributes:
        folder: the run folder.
        finished: False where a signal stopped the run, which is saved and can be resumed.
        failures: training videos that could not be read and were replaced, and held-out ones left out.
        accuracy: of the best weights over all views of the held-out list; None without one.
    """

    folder: Path
    finished: bool
    failures: int
    accuracy: Accuracy | None = None


class FinetuneStep:
    """Batch -> loss: normalise on the device, mix clips and labels, classify, compare.

    Args:
        model: clips -> logits [B, L], perhaps wrapped for several processes.
        mixing: (clips, labels) -> (clips, targets [B, L]).
        mean: subtracted from pixels in 0..1.
        std: divides them after that.
        compiled: compile network and loss with torch.compile.
    """

    def __init__(
        self, model: nn.Module, mixing: Mixing, *, mean: Levels, std: Levels, compiled: bool = False
    ) -> None:
        self.model = model
        self.mixing = mixing
        self.mean = mean
        self.std = std
        self._compare: Callable[..., tuple[Tensor, Tensor]] = (
            torch.compile(self.compare) if compiled else self.compare
        )

    def __call__(self, batch: LabelledBatch) -> StepResult:
        """The loss of a batch, and in ``train_top1`` the share of its clips, in percent, whose class wins.

        Of mixed clips the class is that of the greater part, as their targets say.
        """
        pixels = normalise(batch.clips, mean=self.mean, std=self.std)
        clips, targets = self.mixing(pixels, batch.labels)
        loss, logits = self._compare(clips, targets)
        right = logits.detach().argmax(dim=-1) == targets.argmax(dim=-1)
        return StepResult(loss, {"train_top1": 100 * right.float().mean()})

    def compare(self, clips: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Clips float [B, C, T, H, W] and targets float [B, L] -> loss float32 [] and logits [B, L]."""
        logits = self.model(clips)
        return soft_cross_entropy(logits, targets), logits


def finetune(config: FinetuneConfig) -> FinetuneOutcome:
    """Fine-tune as the config says; a run folder that holds a checkpoint is resumed.

    Raises:
        UserError: the config, the lists, the videos, the weights or the run folder are wrong.
        RunFailed: the loss is not finite, or nothing can be saved.
    """
    if not config.data.train:
        raise UserError("data.train is not set: give a labelled list, such as data.train=train.csv")
    if not config.run.folder:
        raise UserError("run.folder is not set: give the folder of this run, such as run.folder=runs/first")
    check_weight_sets(config.evaluate.weights, averaged=config.optim.ema_decay is not None)
    device = distributed.choose_device(config.run.device)
    with (
        distributed.process_group(device, timeout_seconds=rank_timeout_seconds(config.run)),
        hold_run_folder(config.run.folder),
    ):
        config = with_threads(config, device, lambda: _Run(config, device))
        return _Run(config, device).go()


class _Run:
    """The parts of one run, built from its config."""

    def __init__(self, config: FinetuneConfig, device: torch.device) -> None:
        self.config, self.device = config, device
        self.run_folder = RunFolder(config.run.folder, config)
        self.folder = self.run_folder.path
        self.bf16 = uses_bf16(config.run.precision, device)
        self.lists = read_lists(config)
        self.recipe = ClassifyRecipe.of(config.clip, config.evaluate, self.lists.names)
        torch.manual_seed(config.run.seed)
        self.model, self.load_report = build_classifier(config, self.lists.classes)
        self.loader = training_loader(
            config, self.lists, rank=distributed.rank(), world_size=distributed.world_size()
        )
        self.mixing = build_mixing(config, self.lists.classes)
        if self.lists.validation is not None:  # said now rather than after the training
            evaluation_views(config, self.lists.validation, views=self.recipe.views, crops=self.recipe.crops)
        self.network = distributed.parallel(self.model, device)
        self.step = FinetuneStep(
            self.network,
            self.mixing,
            mean=config.clip.mean,
            std=config.clip.std,
            compiled=config.run.compile,
        )
        self.schedule = build_schedule(config.optim)
        self.optimizer = build_optimizer(config.optim, self.model, base_lr=self.schedule.base_lr)
        self.ema = build_average(config.optim, self.model)
        self.metadata = {CLASSIFY_KEY: self.recipe.to_json()}
        self.best = BestWeights(self.folder / "best.safetensors", self.metadata)

    def go(self) -> FinetuneOutcome:
        """Train, then score the best weights over all views and report."""
        with self.loader:
            return self._go()

    def _go(self) -> FinetuneOutcome:
        distributed.run_on_main(self._open_folder)
        counter = FailureCounter(len(self.loader.dataset), share=self.config.data.failure_share)
        result = self._train(counter)
        self.loader.close()
        failures = result.progress.failures
        if result.status == "interrupted":
            logger.info("interrupted; saved as %s; the same command goes on from there", result.checkpoint)
            return FinetuneOutcome(self.folder, finished=False, failures=failures)
        distributed.run_on_main(self._save_weights)
        score, unreadable = self._final_score()
        distributed.run_on_main(lambda: self._finish(result, score, unreadable))
        return FinetuneOutcome(self.folder, True, failures + len(unreadable), score)

    def _open_folder(self) -> None:
        self.run_folder.open()
        plan = describe_finetuning(
            self.config, self.model, self.loader, self.lists, device=self.device, bf16=self.bf16
        )
        self.run_folder.say(plan)
        if self.load_report is not None:
            self.run_folder.say(f"weights from {self.config.model.weights}\n{self.load_report.table()}")
            self.run_folder.write_json("weights_loaded.json", self.load_report.to_dict())
            if told := compare_levels(self.config.model.weights, self.recipe.clip):
                self.run_folder.say(told)

    def _train(self, counter: FailureCounter) -> TrainResult:
        self.loader.given_up = counter.given_up
        config = self.config
        options = loop_options(
            config.optim, config.run, self.loader, evaluate_epochs=config.evaluate.epochs, bf16=self.bf16
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
            ema=self.ema,
            fingerprint=self.run_folder.fingerprint,
            evaluate=self._validate if self.lists.validation is not None else None,
            on_failures=self.run_folder.count_failures(counter),
            extra={"failures": counter, "best": self.best},
        )

    def _validate(self) -> dict[str, float]:
        """One view a video, for each set of weights asked for; the first one competes for the best."""
        results: dict[str, float] = {}
        for number, (name, weights) in enumerate(
            weight_sets(self.config.evaluate.weights, self.model, self.ema)
        ):
            with weights:
                score, _ = self._score(views=1, crops=1)
                results |= {f"{name}top1": score.top1, f"{name}top5": score.top5}
                if number == 0:
                    self.best.offer(score.top1, self.model)
        return results

    def _score(self, *, views: int, crops: int) -> tuple[Accuracy, tuple[Failure, ...]]:
        """Accuracy of the model's present weights on the held-out list, and its unreadable videos."""
        assert self.lists.validation is not None
        scores = evaluate_model(
            self.model,
            evaluation_views(self.config, self.lists.validation, views=views, crops=crops),
            device=self.device,
            bf16=self.bf16,
            mean=self.config.clip.mean,
            std=self.config.clip.std,
            average=self.config.evaluate.average,
            videos_per_batch=videos_a_batch(views=views, crops=crops),
            workers=self.config.data.workers,
        )
        return accuracy(scores.scores, scores.labels), scores.failures

    def _save_weights(self) -> None:
        """The weights of the last step: the averaged ones where they are kept."""
        with nullcontext() if self.ema is None else self.ema.averaged(self.model):
            save_weights(self.folder / "weights.safetensors", self.model, metadata=self.metadata)

    def _final_score(self) -> tuple[Accuracy | None, tuple[Failure, ...]]:
        """All views of the held-out list, with the best weights."""
        if self.lists.validation is None:
            return None, ()
        load_into(self.model, read_state(self.best.path), source=str(self.best.path))
        # A resumed run may test with other views than the one that wrote the file.
        distributed.run_on_main(lambda: save_weights(self.best.path, self.model, metadata=self.metadata))
        return self._score(views=self.recipe.views, crops=self.recipe.crops)

    def _finish(self, result: TrainResult, score: Accuracy | None, unreadable: Sequence[Failure]) -> None:
        summary: dict[str, Any] = {
            "steps": result.progress.step,
            "clips": result.progress.samples,
            "failures": result.progress.failures,
            "seconds": result.progress.seconds,
            "checkpoint": str(result.checkpoint),
            "weights": str(self.folder / "weights.safetensors"),
        }
        if score is not None:
            summary |= {
                "best_weights": str(self.best.path),
                "validation_best_top1": self.best.score,
                "top1": score.top1,
                "top5": score.top5,
                "mean_class": score.mean_class,
                "videos": score.videos,
                "listed": self._listed_videos(),
                "views": self.recipe.views,
                "crops": self.recipe.crops,
            }
        self.run_folder.write_json("summary.json", summary)
        self.run_folder.write_failures("heldout_failures.jsonl", unreadable)
        for failure in unreadable:
            self.run_folder.say(f"unreadable held-out video, left out: {failure.path}: {failure.cause}")
        self.run_folder.say(closing_words(summary, report(self.folder)))

    def _listed_videos(self) -> int:
        return 0 if self.lists.validation is None else len(self.lists.validation)


def closing_words(summary: Mapping[str, Any], page: Path) -> str:
    """What the user reads at the end of a run."""
    lines = []
    if "top1" in summary:
        lines += [
            f"held-out accuracy over {summary['views']} x {summary['crops']} views, "
            f"{summary['videos']} of {summary['listed']} videos",
            f"  top-1       {summary['top1']:.2f} %",
            f"  top-5       {summary['top5']:.2f} %",
            f"  mean class  {summary['mean_class']:.2f} %",
            f"best        {summary['best_weights']}   "
            f"({summary['validation_best_top1']:.2f} % with one view)",
        ]
    lines += [
        f"checkpoint  {summary['checkpoint']}",
        f"weights     {summary['weights']}",
        f"report      {page}",
    ]
    return "\n".join(lines)
