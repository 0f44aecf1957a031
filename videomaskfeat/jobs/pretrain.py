"""How good an encoder's frozen features are while it is being trained, told by a labelled list."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from videomaskfeat.data.formats import load_records
from videomaskfeat.data.loader import ClipLoader, FailureCounter
from videomaskfeat.data.records import Records
from videomaskfeat.engine import distributed
from videomaskfeat.engine.contracts import StepResult
from videomaskfeat.engine.distributed import stop_if_requested, uses_bf16
from videomaskfeat.engine.loop import TrainResult, train
from videomaskfeat.errors import UserError
from videomaskfeat.inference.multiview import VideoScores, video_features, videos_a_batch
from videomaskfeat.inference.scores import views_of
from videomaskfeat.jobs.plan import describe_plan
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
from videomaskfeat.jobs.visualize import draw_videos, why_not_drawn
from videomaskfeat.methods import build_method
from videomaskfeat.methods.method import HeldOutLoss
from videomaskfeat.metrics.accuracy import accuracy
from videomaskfeat.metrics.features import check_neighbours, knn_scores, linear_probe_scores
from videomaskfeat.models.weights import save_weights
from videomaskfeat.recipe import METADATA_KEY, ClassifyRecipe, ClipRecipe
from videomaskfeat.schemas import DataConfig, PretrainConfig, ProbeConfig
from videomaskfeat.targets.target import margin

logger = logging.getLogger(__name__)


class FeatureProbe:
    """Nearest neighbours and a linear fit on the features of two labelled lists.

    One centre view a video, its tokens averaged and brought to length 1; the labels never reach the encoder.

    Args:
        config: the lists, and how they are asked.
        data: how lists and videos are read.
        clip: how the encoder sees clips.
        device: where the encoder is.
        bf16: run it under bf16 autocast.

    Raises:
        UserError: only one of the lists is given, one is wrong, or a number is out of its range.
    """

    def __init__(
        self, config: ProbeConfig, data: DataConfig, clip: ClipRecipe, *, device: torch.device, bf16: bool
    ) -> None:
        if not (config.train and config.test):
            given, lacking = ("train", "test") if config.train else ("test", "train")
            raise UserError(
                f"probe.{given} is set and probe.{lacking} is not: give both lists, one whose labels are "
                "known and one that is asked"
            )
        check_neighbours(k=config.k, temperature=config.temperature)
        self.config = config
        self._known = _labelled(config.train, data, clip)
        # Class folders are numbered as those of the training are, also where some are lacking.
        self._asked = _labelled(config.test, data, clip, self._known.class_names)
        self._classes = 1 + max(int(_labels(part).max()) for part in (self._known, self._asked))
        # The shorter side is the crop itself, so that the square shows all that it can of the frame.
        recipe = ClassifyRecipe(clip=clip, views=1, crops=1, short_side=clip.crop)
        self._known_views, self._asked_views = (
            views_of(part, recipe, reader=data.reader) for part in (self._known, self._asked)
        )
        self._options: dict[str, Any] = {
            "device": device,
            "bf16": bf16,
            "mean": clip.mean,
            "std": clip.std,
            "workers": data.workers,
            "videos_per_batch": videos_a_batch(views=1, crops=1),
        }

    def __call__(self, encoder: nn.Module) -> dict[str, float]:
        """Top-1 in percent of both probes; all ranks call it, and all get the same numbers.

        Args:
            encoder: has ``features(clips) -> [B, D]``; it is not changed.

        Raises:
            UserError: no video of a list can be read.
            RunFailed: a feature is not finite.
        """
        known = video_features(encoder, self._known_views, **self._options)
        asked = video_features(encoder, self._asked_views, **self._options)
        return distributed.run_on_main(lambda: self._accuracies(known, asked))

    def facts(self) -> dict[str, int]:
        """How many videos are asked for, of how many classes."""
        return {"probe_videos": len(self._asked), "probe_classes": self._classes}

    def _accuracies(self, known: VideoScores, asked: VideoScores) -> dict[str, float]:
        votes = knn_scores(
            known.scores,
            known.labels,
            asked.scores,
            classes=self._classes,
            k=self.config.k,
            temperature=self.config.temperature,
        )
        fitted = linear_probe_scores(
            known.scores, known.labels, asked.scores, classes=self._classes, penalty=self.config.penalty
        )
        return {
            "knn_top1": accuracy(votes, asked.labels).top1,
            "linear_top1": accuracy(fitted, asked.labels).top1,
        }


def _labelled(path: str, data: DataConfig, clip: ClipRecipe, known_classes: Sequence[str] = ()) -> Records:
    return load_records(
        path,
        format=data.format,
        labels="yes",
        separator=data.separator,
        prefix=data.prefix,
        known_classes=known_classes,
        stills=clip.frames == 1,
    )


def _labels(records: Records) -> np.ndarray:
    assert records.labels is not None  # asked for
    return records.labels


# ``pretrain``: from a config to a trained encoder, its held-out loss, its pictures and its report.
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
    with (
        distributed.process_group(device, timeout_seconds=rank_timeout_seconds(config.run)),
        hold_run_folder(config.run.folder),
    ):
        config = with_threads(config, device, lambda: _Run(config, device))
        return _Run(config, device).go()


class _Run:
    """The parts of one run, built from its config."""

    def __init__(self, config: PretrainConfig, device: torch.device) -> None:
        self.config, self.device = config, device
        self.run_folder = RunFolder(config.run.folder, config)
        self.folder = self.run_folder.path
        torch.manual_seed(config.run.seed)
        self.method = build_method(config)
        self.student = self.method.student
        self.loader = self.method.training_loader(
            rank=distributed.rank(), world_size=distributed.world_size()
        )
        self.heldout = self.method.heldout_loader()
        self.bf16 = uses_bf16(config.run.precision, device)
        self.network = distributed.parallel(self.student, device)
        self.method.to(device)
        self.schedule = build_schedule(config.optim)
        self.optimizer = build_optimizer(
            config.optim, self.student, base_lr=self.schedule.base_lr, encoder=self.method.encoder
        )
        self.ema = build_average(config.optim, self.student)
        self.probe = self._build_probe()

    def step(self, batch: Any) -> StepResult:
        """The method's loss of a batch, and what is logged with it."""
        return self.method.loss(self.network, batch)

    def go(self) -> Outcome:
        """Train, then measure, save, draw and report."""
        with self.loader, self.heldout or nullcontext():
            return self._go()

    def _go(self) -> Outcome:
        distributed.run_on_main(self._open_folder)
        before, probed_before = self._untrained(), self._probe()
        counter = FailureCounter(len(self.loader.dataset), share=self.config.data.failure_share)
        result = self._train(counter)
        self.loader.close()  # their memory is free for what follows
        failures = result.progress.failures
        if result.status == "interrupted":
            logger.info("interrupted; saved as %s; the same command goes on from there", result.checkpoint)
            return Outcome(self.folder, finished=False, failures=failures)
        probed = {f"{name}_untrained": value for name, value in probed_before.items()} | self._probe()
        distributed.run_on_main(lambda: self._finish(before, result, probed))
        return Outcome(self.folder, finished=True, failures=failures)

    def _open_folder(self) -> None:
        self.run_folder.open()
        plan = describe_plan(self.config, self.method, self.loader, device=self.device, bf16=self.bf16)
        self.run_folder.say(plan)

    def _train(self, counter: FailureCounter) -> TrainResult:
        self.loader.given_up = counter.given_up
        config, method = self.config, self.method
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
            ema=self.ema,
            fingerprint={**self.run_folder.fingerprint, **method.fingerprint},
            evaluate=self._evaluate if (self.heldout or self.probe) and config.run.evaluate_epochs else None,
            on_failures=self.run_folder.count_failures(counter),
            before_step=method.before_step,
            after_step=method.after_step,
            extra={"failures": counter, **method.state},
        )

    def _evaluate(self) -> dict[str, float]:
        """The held-out loss, computed by rank 0, and the probe; every rank gets the same numbers."""
        results = self._probe()
        if self.heldout:
            with nullcontext() if self.ema is None else self.ema.averaged(self.student):
                loss = distributed.run_on_main(self._heldout_loss)
            constant = {} if loss.constant is None else {"heldout_constant": loss.constant}
            results |= {"heldout_loss": loss.model, **constant}
        return results

    def _build_probe(self) -> FeatureProbe | None:
        config = self.config
        if not (config.probe.train or config.probe.test):
            return None
        return FeatureProbe(
            config.probe, config.data, self.method.recipe.clip, device=self.device, bf16=self.bf16
        )

    def _probe(self) -> dict[str, float]:
        """What the features of the weights that would be saved now are worth; empty without a probe."""
        if self.probe is None:
            return {}
        with nullcontext() if self.ema is None else self.ema.averaged(self.student):
            return self.probe(self.method.weights()["weights.safetensors"])

    def _heldout_loss(self) -> HeldOutLoss:
        assert self.heldout is not None
        autocast = torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.bf16)
        return self.method.heldout(self._heldout_batches(self.heldout), autocast=autocast)

    def _heldout_batches(self, loader: ClipLoader[Any]) -> Iterator[Any]:
        """Batches on the device, the same in every call: epoch 0 of the held-out list."""
        left = min(self.config.run.evaluate_clips, len(loader.dataset))
        for batch in loader.epoch(0):
            if left <= 0:
                return
            stop_if_requested()
            left -= len(batch.index)
            yield batch.to(self.device)

    def _untrained(self) -> HeldOutLoss | None:
        """The held-out loss of the weights that the run starts from."""
        return self._heldout_loss() if self.heldout and distributed.is_main() else None

    def _finish(self, before: HeldOutLoss | None, result: TrainResult, probed: Mapping[str, float]) -> None:
        """Weights (the averaged ones where they are kept), held-out loss, pictures and report.

        Args:
            before: the held-out loss of the untrained weights.
            result: of the training.
            probed: what the probe said of the untrained weights and of the trained ones.
        """
        if self.ema is not None:
            self.student.load_state_dict(self.ema.state_dict())
        for name, model in self.method.weights().items():
            metadata = {METADATA_KEY: self.method.recipe.to_json()}
            save_weights(self.folder / name, model, metadata=metadata)
        summary: dict[str, Any] = {
            "steps": result.progress.step,
            "clips": result.progress.samples,
            "failures": result.progress.failures,
            "seconds": result.progress.seconds,
            "checkpoint": str(result.checkpoint),
            "weights": str(self.folder / "weights.safetensors"),
            **probed,
        }
        if before is not None:
            after = self._heldout_loss()
            summary |= {
                "heldout_clips": after.clips,
                "heldout_measure": self.method.loss_name,
                "heldout_constant": after.constant,
                "heldout_untrained": before.model if self.method.fixed_target else None,
                "heldout_trained": after.model,
            }
        not_drawn = why_not_drawn(self.method.recipe)
        if not_drawn is not None:
            summary["not_drawn"] = not_drawn
        if self.probe is not None:
            summary |= self.probe.facts()
        self.run_folder.write_json("summary.json", summary)
        if not_drawn is None:
            self._draw()
        self.run_folder.say(closing_words(summary, report(self.folder)))

    def _draw(self) -> None:
        """Pictures of the first held-out videos (or of the training list's)."""
        records = (self.heldout or self.loader).dataset.records
        videos = [records[index].path for index in range(min(self.config.run.pictures, len(records)))]
        if not videos:
            return
        drawn = draw_videos(
            self.student,
            videos,
            self.folder / "pictures",
            recipe=self.method.recipe,
            reader=self.config.data.reader,
            workers=min(self.config.data.workers, 1),
        )
        for failure in drawn.failures:
            logger.warning("not drawn: %s", failure)


_NO_MARGIN = "   (the targets are constant: nothing can do better)"


def closing_words(summary: Mapping[str, Any], page: Path) -> str:
    """What the user reads at the end of a run."""
    lines = []
    if "heldout_trained" in summary:
        constant, trained = summary["heldout_constant"], summary["heldout_trained"]
        measure = summary.get("heldout_measure", "mean squared error at hidden positions")
        lines.append(f"loss on {summary['heldout_clips']} held-out clips ({measure})")
        place = ""
        if constant is not None:
            apart = margin(trained, constant)
            place = f"   ({apart[0]:.1f} % {apart[1]} the constant)" if apart else _NO_MARGIN
            lines.append(f"  best constant prediction  {constant:.5f}")
        else:
            lines.append("  best constant prediction  not known of this loss")
        if summary["heldout_untrained"] is not None:
            lines.append(f"  untrained model           {summary['heldout_untrained']:.5f}")
        lines.append(f"  trained model             {trained:.5f}{place}")
    if "knn_top1" in summary:
        asked = f"{summary['probe_videos']} videos of {summary['probe_classes']} classes"
        lines.append(f"frozen features, top-1 on {asked} (before training)")
        lines += [
            f"  {name}  {summary[key]:.1f} %   ({summary[f'{key}_untrained']:.1f} %)"
            for name, key in (("k-NN        ", "knn_top1"), ("linear probe", "linear_top1"))
        ]
    if "not_drawn" in summary:
        lines.append(f"no pictures: {summary['not_drawn']}")
    lines += [
        f"checkpoint  {summary['checkpoint']}",
        f"weights     {summary['weights']}",
        f"report      {page}",
    ]
    return "\n".join(lines)
