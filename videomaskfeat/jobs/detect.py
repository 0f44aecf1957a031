"""``detect-train``: from an encoder to a detector of actions and its frame mAP."""

from __future__ import annotations

import logging
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from videomaskfeat.data.batches import ActionBatch
from videomaskfeat.data.loader import FailureCounter
from videomaskfeat.engine import distributed
from videomaskfeat.engine.contracts import StepResult
from videomaskfeat.engine.distributed import uses_bf16
from videomaskfeat.engine.loop import TrainResult, train
from videomaskfeat.errors import UserError
from videomaskfeat.inference.detection_results import ScoredDetections, closing_words
from videomaskfeat.inference.detectors import BoxScores, score_in_memory
from videomaskfeat.inference.scores import file_sha256
from videomaskfeat.jobs.detect_building import (
    ActionLoss,
    build_detector,
    build_loss,
    read_lists,
    recipe_of,
    training_loader,
    video_places,
)
from videomaskfeat.jobs.detect_evaluate import (
    PassChoice,
    ScoredFiles,
    detect_in_key_frames,
    hashes_of,
    lines_on,
    protocol_of,
    words_on_key_frames,
    write_score,
)
from videomaskfeat.jobs.finetune_building import BestWeights, check_weight_sets, weight_sets
from videomaskfeat.jobs.plan import describe_detection
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
from videomaskfeat.metrics.ava_map import AvaResult
from videomaskfeat.models.weights import load_into, read_state, save_weights
from videomaskfeat.recipe import DETECT_KEY, Levels, compare_levels, normalise
from videomaskfeat.schemas import DetectConfig

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class DetectOutcome:
    """How a training ended.

    Attributes:
        folder: the run folder.
        finished: False where a signal stopped the run, which is saved and can be resumed.
        failures: training key frames that could not be read and were replaced, and held-out ones left out.
        result: of the best weights on all held-out key frames; None without any.
    """

    folder: Path
    finished: bool
    failures: int
    result: AvaResult | None = None


class DetectStep:
    """Batch -> loss: normalise on the device, say what each box does, compare.

    Args:
        model: (clips, boxes) -> logits [R, L], perhaps wrapped for several processes.
        loss: (logits, labels) -> scalar.
        mean: subtracted from pixels in 0..1.
        std: divides them after that.
        compiled: compile network and loss with torch.compile.
    """

    def __init__(
        self, model: nn.Module, loss: ActionLoss, *, mean: Levels, std: Levels, compiled: bool = False
    ) -> None:
        self.model = model
        self.mean = mean
        self.std = std
        self._loss = loss
        self._compare = torch.compile(self.compare) if compiled else self.compare

    def __call__(self, batch: ActionBatch) -> StepResult:
        """The loss of a batch, and how many boxes a process has, as ``boxes``.

        A box weighs the same on every process, whichever of them has more: their losses and gradients are
        averaged, so each loss is scaled by the process' share of the boxes. (A softmax over poses is a mean
        over the boxes that have a pose, so there the scale is near enough and not exact.) Micro-batches of
        one process weigh alike.
        """
        clips = normalise(batch.clips, mean=self.mean, std=self.std)
        loss = self._compare(clips, batch.boxes, batch.labels)
        own = torch.tensor(float(len(batch.boxes)), device=loss.device)
        mean = distributed.mean_over_ranks(own)
        return StepResult(loss * (own / mean.clamp(min=1e-6)), {"boxes": mean})

    def compare(self, clips: Tensor, boxes: Tensor, labels: Tensor) -> Tensor:
        """Clips float [B, C, T, H, W], boxes [R, 5], labels bool [R, L] -> loss float32 []."""
        return self._loss(self.model(clips, boxes), labels)


def detect_train(config: DetectConfig) -> DetectOutcome:
    """Train as the config says; a run folder that holds a checkpoint is resumed.

    Raises:
        UserError: the config, the files, the videos, the weights or the run folder are wrong.
        RunFailed: the loss is not finite, or nothing can be saved.
    """
    for key, value, example in (
        ("data.train", config.data.train, "data.train=ava_train_v2.2.csv"),
        ("data.label_map", config.data.label_map, "data.label_map=ava_action_list_v2.2.pbtxt"),
        ("run.folder", config.run.folder, "run.folder=runs/first"),
    ):
        if not value:
            raise UserError(f"{key} is not set: give it, such as {example}")
    check_weight_sets(config.evaluate.weights, averaged=config.optim.ema_decay is not None)
    if config.evaluate.every_seconds < 1:
        raise UserError(f"evaluate.every_seconds {config.evaluate.every_seconds} must be at least 1")
    device = distributed.choose_device(config.run.device)
    with (
        distributed.process_group(device, timeout_seconds=rank_timeout_seconds(config.run)),
        hold_run_folder(config.run.folder),
    ):
        config = with_threads(config, device, lambda: _Run(config, device))
        return _Run(config, device).go()


class _Run:
    """The parts of one run, built from its config."""

    def __init__(self, config: DetectConfig, device: torch.device) -> None:
        self.config, self.device = config, device
        self.run_folder = RunFolder(config.run.folder, config)
        self.folder = self.run_folder.path
        self.bf16 = uses_bf16(config.run.precision, device)
        self.lists = read_lists(config)
        self.recipe = recipe_of(config, self.lists)
        self.loss = build_loss(config, self.lists, device)
        torch.manual_seed(config.run.seed)
        self.model, self.load_report = build_detector(config, self.lists.classes)
        self.loader = training_loader(config, self.lists.train)
        self.files = ScoredFiles(
            config.data.validation,
            config.data.label_map,
            config.data.validation_exclusions,
            tuple(config.data.validation_boxes),
        )
        self.testing = PassChoice(
            scales=tuple(config.evaluate.scales),
            flip=config.evaluate.flip,
            bf16=self.bf16,
            workers=config.data.workers,
        )
        if self.lists.tested is not None:  # what is wrong is said now rather than after the training
            assert self.lists.truth is not None
            self.sources = video_places(config).find(self.lists.truth, self.lists.tested)
            self._part_of_seconds()
        self.network = distributed.parallel(self.model, device)
        self.step = DetectStep(
            self.network,
            self.loss,
            mean=config.clip.mean,
            std=config.clip.std,
            compiled=config.run.compile,
        )
        self.schedule = build_schedule(config.optim)
        self.optimizer = build_optimizer(config.optim, self.model, base_lr=self.schedule.base_lr)
        self.ema = build_average(config.optim, self.model)
        self.metadata = {DETECT_KEY: self.recipe.to_json()}
        self.best = BestWeights(self.folder / "best.safetensors", self.metadata)

    def go(self) -> DetectOutcome:
        """Train, then score the best weights on all held-out key frames and report."""
        with self.loader:
            return self._go()

    def _go(self) -> DetectOutcome:
        distributed.run_on_main(self._open_folder)
        counter = FailureCounter(
            len(self.loader.dataset),
            share=self.config.data.failure_share,
            unit=self.loader.dataset.unit,
            remedy="check the folder of the videos, or list these key frames in data.train_exclusions",
        )
        result = self._train(counter)
        self.loader.close()
        failures = result.progress.failures
        if result.status == "interrupted":
            logger.info("interrupted; saved as %s; the same command goes on from there", result.checkpoint)
            return DetectOutcome(self.folder, finished=False, failures=failures)
        distributed.run_on_main(self._save_weights)
        found = self._final_scores()
        score = distributed.run_on_main(lambda: self._finish(result, found))
        unreadable = 0 if found is None else len(found.failures)
        return DetectOutcome(self.folder, True, failures + unreadable, score)

    def _open_folder(self) -> None:
        self.run_folder.open()
        plan = describe_detection(
            self.config,
            self.model,
            self.loader,
            boxes=len(self.lists.train.boxes),
            classes=self.lists.classes,
            held_out=None if self.lists.tested is None else len(self.lists.tested),
            device=self.device,
            bf16=self.bf16,
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
        return train(
            model=self.network,
            step=self.step,
            loader=self.loader,
            optimizer=self.optimizer,
            learning_rate=self.schedule,
            folder=self.folder,
            device=self.device,
            options=loop_options(
                config.optim, config.run, self.loader, evaluate_epochs=config.evaluate.epochs, bf16=self.bf16
            ),
            ema=self.ema,
            fingerprint=self.run_folder.fingerprint,
            evaluate=self._validate if self.lists.tested is not None else None,
            on_failures=self.run_folder.count_failures(counter),
            extra={"failures": counter, "best": self.best},
        )

    def _validate(self) -> dict[str, float]:
        """One view of a part of the key frames, for each set of weights; the first competes for the best."""
        tested, truth = self._part_of_seconds()
        plain = replace(self.testing, scales=(), flip=False)
        results: dict[str, float] = {}
        for number, (name, weights) in enumerate(
            weight_sets(self.config.evaluate.weights, self.model, self.ema)
        ):
            with weights:
                found = detect_in_key_frames(
                    self.model, tested, self.sources, self.recipe, plain, device=self.device
                )
                score = score_in_memory(truth, tested, found, self.lists.actions).mean_ap
                results[f"{name}mean_ap"] = score
                if number == 0:
                    self.best.offer(score, self.model)
        return results

    def _part_of_seconds(self) -> tuple[Any, Any]:
        """The key frames, tested and true, that are scored while it trains.

        Raises:
            UserError: there is nothing to find in them.
        """
        every, actions = self.config.evaluate.every_seconds, self.lists.actions
        tested, truth = self.lists.tested, self.lists.truth
        assert tested is not None
        assert truth is not None
        if every > 1:
            tested, truth = (part.select(part.seconds % every == 0) for part in (tested, truth))
        if not truth.labels[:, [number - 1 for number in actions]].any():
            which = f" at each {every}-th second" if every > 1 else ""
            raise UserError(
                f"{self.config.data.validation}: none of its boxes{which} has an action that "
                f"{self.config.data.label_map} lists, so there is nothing to score; take the files of one "
                "version" + (", or a smaller evaluate.every_seconds" if every > 1 else "")
            )
        return tested, truth

    def _save_weights(self) -> None:
        """The weights of the last step: the averaged ones where they are kept."""
        with nullcontext() if self.ema is None else self.ema.averaged(self.model):
            save_weights(self.folder / "weights.safetensors", self.model, metadata=self.metadata)

    def _final_scores(self) -> BoxScores | None:
        """All views of all held-out key frames, with the best weights."""
        if self.lists.tested is None:
            return None
        load_into(self.model, read_state(self.best.path), source=str(self.best.path))
        return detect_in_key_frames(
            self.model, self.lists.tested, self.sources, self.recipe, self.testing, device=self.device
        )

    def _finish(self, result: TrainResult, found: BoxScores | None) -> AvaResult | None:
        summary: dict[str, Any] = {
            "steps": result.progress.step,
            "clips": result.progress.samples,
            "failures": result.progress.failures,
            "seconds": result.progress.seconds,
            "checkpoint": str(result.checkpoint),
            "weights": str(self.folder / "weights.safetensors"),
        }
        scored: ScoredDetections | None = None
        lines: list[str] = []
        if found is not None:
            assert self.lists.tested is not None
            scored = self._write_score(found)
            summary |= {
                "best_weights": str(self.best.path),
                "validation_best_mean_ap": self.best.score,
                "mean_ap": scored.result.mean_ap,
                "key_frames": found.read,
                "listed": found.listed,
                "area": self.recipe.area,
            }
            kind = "detected" if self.files.boxes else "ground-truth"
            lines += [
                closing_words(scored, self.folder / "score"),
                words_on_key_frames(found, self.recipe, kind, undetected=self._undetected()),
                *filter(None, [self.lists.other.words()]),
                f"best        {self.best.path}   (mAP {self.best.score:.4f} in validation)",
            ]
            self.run_folder.write_failures("heldout_failures.jsonl", found.failures)
            lines += [f"unreadable, left out: {line}" for line in lines_on(found.failures)]
        self.run_folder.write_json("summary.json", summary)
        lines += [
            f"checkpoint  {summary['checkpoint']}",
            f"weights     {summary['weights']}",
            f"report      {report(self.folder)}",
        ]
        self.run_folder.say("\n".join(lines))
        return None if scored is None else scored.result

    def _undetected(self) -> int:
        """Key frames of the ground truth in which no box is tested."""
        tested, truth = self.lists.tested, self.lists.truth
        return 0 if tested is None or truth is None else len(truth.absent_from(tested))

    def _write_score(self, found: BoxScores) -> ScoredDetections:
        """Score the best weights' detections into the folder ``score``."""
        assert self.lists.tested is not None
        name, _ = self.model.created_as  # type: ignore[misc]
        about = {
            "title": f"{self.folder.name} on {Path(self.files.groundtruth).name}",
            "model": name,
            "weights": str(self.best.path),
            "weights_sha256": file_sha256(self.best.path),
            "files": hashes_of(self.files),
            "undetected_key_frames": self._undetected(),
            "left_out": asdict(self.lists.other),
            "seen": protocol_of(self.recipe, self.testing, self.files),
        }
        return write_score(self.folder / "score", self.files, self.lists.tested, found, about)
