"""``finetune``: trains a classifier, from pre-trained or random weights, and measures its accuracy."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import simplejson
import torch
from torch import Tensor, nn

from videomaskfeat.data.augment import Augmentation, Mixing, MultiLabelMixing, RandAugment, RandomErasing
from videomaskfeat.data.batches import LabeledBatch
from videomaskfeat.data.formats import check_lists, class_names_beside
from videomaskfeat.data.labeled_clips import (
    LabeledClips,
    MultiLabelClips,
    check_labels,
    left_right_pairs,
    random_segments,
)
from videomaskfeat.data.loader import ClipLoader, FailureCounter
from videomaskfeat.data.operations import ColorJitter
from videomaskfeat.data.records import Records, check_frames
from videomaskfeat.data.sampling import clip_indices_random
from videomaskfeat.data.transforms import ClipTransform, RandomResizedCrop, ShortSideJitterCrop
from videomaskfeat.engine import distributed
from videomaskfeat.engine.average import check_weight_sets
from videomaskfeat.engine.contracts import StepResult
from videomaskfeat.engine.run import BestWeights, Outcome, Run, run_training
from videomaskfeat.engine.sections import loader_options
from videomaskfeat.environment import environment_text
from videomaskfeat.errors import UserError, counted
from videomaskfeat.inference.clip_settings import describe_inherited
from videomaskfeat.inference.lists import ListChoice, read_class_names
from videomaskfeat.inference.multiview import (
    Machine,
    VideoScores,
    build_views,
    evaluate_model,
    hold_videos,
)
from videomaskfeat.losses.labels import multi_label_cross_entropy, soft_cross_entropy
from videomaskfeat.metrics.accuracy import (
    MultiLabelScore,
    accuracy,
    confusion_matrix,
    multi_label_score,
)
from videomaskfeat.metrics.bootstrap import multi_label_interval
from videomaskfeat.models import create_model_from
from videomaskfeat.models.cost import describe_parameters, multiply_adds
from videomaskfeat.models.load_report import LoadReport
from videomaskfeat.models.loading import load_into, load_pretrained
from videomaskfeat.models.lora import add_lora, merge_lora, read_lora
from videomaskfeat.models.saving import save_model
from videomaskfeat.models.weights import read_state
from videomaskfeat.models.zoo import with_default_head
from videomaskfeat.recipe import ClipRecipe, normalize
from videomaskfeat.schemas.finetune import FinetuneConfig, LabeledClipConfig
from videomaskfeat.stored_recipe import CLASSIFY_KEY, ClassifyRecipe, compare_levels
from videomaskfeat.viz.evaluation import (
    accuracy_lines,
    accuracy_text,
    chance_advice,
    confidence_interval,
    mean_ap_text,
)
from videomaskfeat.viz.report import write_report

logger = logging.getLogger(__name__)


def finetune(config: FinetuneConfig) -> Outcome:
    """Fine-tune; a run folder with a checkpoint is resumed.

    Raises:
        UserError: the config, the lists, the videos, the weights or the run folder are wrong.
        RunFailed: the loss is not finite, or a checkpoint cannot be saved.
    """
    check_weight_sets(config.evaluate.weights, averaged=config.optim.ema_decay is not None)
    return run_training(FinetuneRun, config, environment=environment_text, report=write_report)


class FinetuneRun(Run):
    """A classifier, evaluated with one view per video during training, and with all views at the end."""

    kind = "finetune"
    best: BestWeights

    def __init__(self, config: FinetuneConfig, device: torch.device) -> None:
        super().__init__(config, device)
        self.lists = read_lists(config)
        self.recipe = ClassifyRecipe.of(config.clip, config.evaluate, self.lists.names)
        if self.lists.is_multi_label:
            self.recipe = replace(self.recipe, average="sigmoid")
        model, self.load_report = build_classifier(config, self.lists.classes)
        self.lora = read_lora(config.model.lora, weights=config.model.weights)
        if self.lora is not None:
            add_lora(model, **vars(self.lora))
        if self.load_report is not None:
            self.load_warning = compare_levels(
                config.model.weights, self.recipe.clip, self.load_report.normalization
            )
        self.loader = training_loader(config, self.lists)
        self.counter = FailureCounter(len(self.loader.dataset), share=config.data.failure_share)
        mix = vars(config.mix).copy()
        if self.lists.is_multi_label:
            del mix["smoothing"]
            self.mixing: Mixing = MultiLabelMixing(classes=self.lists.classes, **mix)
            self.loss, self.right, self.measure = multi_label_cross_entropy, _any_label, self._mean_ap
        else:
            self.mixing = Mixing(classes=self.lists.classes, **mix)
            self.loss, self.right, self.measure = soft_cross_entropy, largest_share, self._accuracy
        self.evaluates, self.evaluate_epochs = self.lists.validation is not None, config.evaluate.epochs
        if self.lists.validation is not None:  # reports mistakes before the training
            build_views(self.lists.validation, self.recipe)
        self.set_model(model)
        self.fit_memory(model, (torch.zeros(1, 3, *self.recipe.clip.size),))
        self.compare = self.compiled(self.classify)
        self.best = BestWeights(self.path / "best.safetensors", self.save)

    def plan(self) -> list[str]:
        config, clip, lists = self.config, self.config.clip, self.lists
        size = (1, 3, *self.recipe.clip.size)
        how = f"adapters of rank {self.lora.rank} and the head" if self.lora else "the encoder is frozen"
        tokens = self.model.token_grid(size)  # type: ignore[operator]
        sampling = "segments" if clip.sampling == "segments" else f"stride {clip.stride}"
        held_out = "" if lists.validation is None else f", {len(lists.validation)} held out"
        lines = [
            f"model     {config.model.name}: {describe_parameters(self.model, how)}, "
            f"{multiply_adds(self.model, (torch.zeros(size),)) / 1e9:.1f} G multiply-adds per view",
            f"clip      {clip.frames} frames x {sampling}, {size[3]}x{size[4]} pixels: {tokens} = "
            f"{tokens.size} tokens, {counted(clip.samples_per_video, 'clip')} per video and epoch",
            f"data      {lists.train.source}: {len(lists.train)} videos{held_out}, {lists.classes} classes"
            f"{', any number per video: binary cross-entropy, mAP' if lists.is_multi_label else ''}",
        ]
        lines[2:2] = describe_inherited(config.model.weights, self.recipe.clip)
        mix, optim = config.mix, config.optim
        clips = optim.batch_size // distributed.world_size() // optim.accumulate
        if clips <= clip.samples_per_video and (mix.mixup or mix.cutmix) and mix.probability:
            lines.append(
                "mixing    never of two videos: a micro-batch contains one; lower optim.accumulate or the "
                "number of processes, or raise optim.batch_size"
            )
        return lines

    def video_lists(self) -> list[Records]:
        return [*super().video_lists(), *([] if self.lists.validation is None else [self.lists.validation])]

    def prepare(self) -> None:
        self.memory = hold_videos(self)

    def step(self, batch: LabeledBatch) -> StepResult:
        """Loss and ``train_top1`` in percent.

        The class of a mixed clip is the one with the larger share. In a multi-label list the first class is
        right if the clip has it.
        """
        pixels = normalize(batch.clips, mean=self.recipe.clip.mean, std=self.recipe.clip.std)
        clips, targets = self.mixing(pixels, batch.labels)
        loss, logits = self.compare(clips, targets)
        right = self.right(logits.detach().argmax(dim=-1), targets)
        return StepResult(loss, {"train_top1": 100 * right.float().mean()})

    def classify(self, clips: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Clips float [B, C, T, H, W] and targets float [B, L] -> loss float32 [] and logits [B, L]."""
        logits = self.network(clips)
        return self.loss(logits, targets), logits

    def evaluate(self) -> dict[str, float]:
        """Accuracy, or mAP of a multi-label list, with one view per video."""
        return self.measure_sets(self.config.evaluate.weights, self.measure)

    def evaluation_note(self, metrics: Mapping[str, float]) -> str:
        """Chance level and 95 % interval of top-1, during the training."""
        if self.lists.validation is None or "top1" not in metrics:
            return ""
        text = accuracy_text(metrics["top1"], len(self.lists.validation), self.lists.classes)
        return text.partition(" % ")[2]

    def _accuracy(self) -> dict[str, float]:
        score = accuracy(*self.score(replace(self.recipe, views=1, crops=1)))
        return {"top1": score.top1, "top5": score.top5}

    def _mean_ap(self) -> dict[str, float]:
        return {"map": multi_label_score(*self.score(replace(self.recipe, views=1, crops=1))).mean_ap}

    def score(self, recipe: ClassifyRecipe) -> tuple[np.ndarray, np.ndarray]:
        """Scores [n, L] and labels [n] (multi-label: bool [n, L]) of the held-out videos."""
        assert self.lists.validation is not None
        data = self.config.data
        scores: VideoScores = evaluate_model(
            self.model,
            self.lists.validation,
            recipe,
            Machine(
                str(self.device),
                "bf16" if self.bf16 else "fp32",
                data.reader,
                data.workers,
                memory=self.memory,
            ),
        )
        self.unreadable = scores.failures
        if self.lists.is_multi_label:
            return scores.scores, self.lists.validation.multi_hot(scores.rows, self.lists.classes)
        return scores.scores, scores.labels

    def save(self, path: Path) -> None:
        save_model(self.model, path, metadata={CLASSIFY_KEY: self.recipe.to_json()})

    def finish(self) -> dict[str, Any]:
        """Evaluate the best weights with all views of the held-out videos."""
        self.save_last()
        if self.lists.validation is None:
            return {}
        if self.lora is not None:
            merge_lora(self.model)
        load_into(self.model, read_state(self.best.path), source=str(self.best.path))
        # A resumed run may evaluate other views than the one that wrote the file.
        distributed.run_on_main(lambda: self.save(self.best.path))
        scores, labels = self.score(self.recipe)
        facts = {
            "best_weights": str(self.best.path),
            "listed": len(self.lists.validation),
            "classes": self.lists.classes,
            "views": self.recipe.views,
            "crops": self.recipe.crops,
        }
        if self.lists.is_multi_label:
            result = multi_label_score(scores, labels)
            distributed.run_on_main(lambda: self._write_classes(result))
            return facts | {
                "validation_best_map": self.best.score,
                "map": result.mean_ap,
                "map_chance": result.chance,
                "map_interval": multi_label_interval(scores, labels),
                "videos": result.videos,
            }
        score = accuracy(scores, labels)
        confusion = {"class_names": self.lists.names, "counts": confusion_matrix(scores, labels).tolist()}
        distributed.run_on_main(lambda: self.folder.write("confusion.json", simplejson.dumps(confusion)))
        return facts | {
            "validation_best_top1": self.best.score,
            "top1": score.top1,
            "top5": score.top5,
            "mean_class": score.mean_class,
            "videos": score.videos,
        }

    def _write_classes(self, result: MultiLabelScore) -> None:
        names = self.lists.names or tuple(f"class {label}" for label in range(self.lists.classes))
        rows = [
            {"name": name, "videos": int(count), "ap": None if np.isnan(ap) else float(ap)}
            for name, count, ap in zip(names, result.counts, result.ap, strict=True)
        ]
        self.folder.write("average_precision.json", simplejson.dumps(rows))

    def conclude(self, summary: Mapping[str, Any]) -> list[str]:
        lines = [
            f"unreadable held-out video, left out: {failure.path}: {failure.cause}"
            for failure in self.unreadable or ()
        ]
        if "map" in summary:
            ends = summary["map_interval"]
            lines += [
                f"held-out mAP over {summary['views']} x {summary['crops']} views, {summary['videos']} of "
                f"{summary['listed']} videos",
                f"  mAP         {mean_ap_text(summary['map'], summary['map_chance'], ends)}",
                *chance_advice(summary, summary["map_chance"], summary["map"] if ends is None else ends[0]),
                f"best        {summary['best_weights']}   "
                f"({summary['validation_best_map']:.2f} % with one view)",
            ]
        if "top1" in summary:
            counts = summary["videos"], summary["classes"]
            own = (summary["top1"], summary["top5"], summary["mean_class"])
            low = 100 * confidence_interval(summary["top1"] / 100, counts[0])[0]
            lines += [
                f"held-out accuracy over {summary['views']} x {summary['crops']} views, "
                f"{summary['videos']} of {summary['listed']} videos",
                *(f"  {line}" for line in accuracy_lines(*own, videos=counts[0], classes=counts[1])),
                *chance_advice(summary, 100 / counts[1], low),
                f"best        {summary['best_weights']}   "
                f"({summary['validation_best_top1']:.2f} % with one view)",
            ]
        return lines


@dataclass(frozen=True)
class ClassLists:
    """The lists of a run and their classes.

    Attributes:
        train: training records, all with labels.
        validation: held-out records, or None.
        classes: number of classes, L.
        names: class names by label; empty if unknown.
    """

    train: Records
    validation: Records | None
    classes: int
    names: tuple[str, ...]

    @property
    def is_multi_label(self) -> bool:
        """Whether a video has any number of classes."""
        return self.train.is_multi_label


def largest_share(predicted: Tensor, targets: Tensor) -> Tensor:
    """Whether classes int64 [B] have the largest share of targets [B, L]."""
    return predicted == targets.argmax(dim=-1)


def _any_label(predicted: Tensor, targets: Tensor) -> Tensor:
    """Whether classes int64 [B] have a share of at least a half in targets [B, L]."""
    return targets.gather(1, predicted[:, None])[:, 0] >= 0.5


def read_lists(config: FinetuneConfig) -> ClassLists:
    """Read the lists and determine the number of classes.

    Raises:
        UserError: a list is wrong or has no labels, a label is out of range, the number of class names is
            wrong, or a list has pictures although clips have several frames.
    """
    data = config.data
    same_lists = check_lists(data.train, data.validation)
    names_path = data.class_names or class_names_beside(data.train, data.format)
    names = read_class_names(names_path) if names_path else ()
    choice = ListChoice(
        format=data.format,
        labels="yes",
        separator=data.separator,
        prefix=data.prefix,
        class_names=data.class_names,
    )
    stills = config.clip.frames == 1
    train = choice.load(data.train, known_classes=names, stills=stills)
    names = names or train.class_names
    # Class names have the numbers of the training list, even if the held-out list lacks some.
    validation = choice.load(data.validation, known_classes=names, stills=stills) if data.validation else None
    if names and data.classes and len(names) != data.classes:
        raise UserError(
            f"{names_path or data.train} has {len(names)} class names, but data.classes is "
            f"{data.classes}; set data.classes=0 (the number of names), or give the names of these classes"
        )
    if validation is not None and validation.is_multi_label != train.is_multi_label:
        raise UserError(
            f"{data.train} and {data.validation}: one has several labels per video, the other one label; "
            "give two lists of one kind"
        )
    classes = data.classes or len(names) or train.classes
    if not classes:
        raise UserError(f"{data.train}: no video has a label; give a labeled list")
    for records in (train, validation):
        if records is not None:
            check_labels(records, classes, class_names=names_path if names else "")
            check_frames(records, config.clip.frames)
    for warning in (same_lists, label_gap_warning(train, classes)):
        if warning and distributed.is_main():
            logger.warning(warning)
    return ClassLists(train, validation, classes, names)


def label_gap_warning(records: Records, classes: int) -> str:
    """A warning if the labels of a training list start above 0 or have gaps; otherwise an empty string."""
    if records.labels is None:
        return ""
    present = np.unique(records.labels)
    lowest, highest, count = int(present[0]), int(present[-1]), len(present)
    if not lowest and count == highest + 1:
        return ""
    missing = highest + 1 - count
    first = int((np.append(present, -1) != np.arange(count + 1)).argmax())
    remedy = "subtract 1 from every label" if lowest == 1 else "renumber the labels without gaps"
    missing_classes = "1 class" if missing == 1 else f"{missing} classes"
    return (
        f"{records.source}: labels run from {lowest} to {highest}, {counted(count, 'different one')}, and "
        f"count from 0 (data.classes is {classes}): {missing_classes} up to {highest} have no "
        f"video, the first is {first}; if that is not intended, {remedy}"
    )


def build_classifier(config: FinetuneConfig, classes: int) -> tuple[nn.Module, LoadReport | None]:
    """The named model with its initial weights, and the report on them (None without ``model.weights``).

    Raises:
        UserError: the name or an argument is unknown, the model is no classifier, or the weights do not fit.
    """
    clip, keys = config.clip, config.model
    arguments: dict[str, Any] = {
        "clip_size": ClipRecipe.of(clip).size,
        "classes": classes,
        "drop_path": keys.drop_path,
        "dropout": keys.dropout,
        "head_scale": keys.head_scale,
        "checkpoint_blocks": config.run.activation_checkpointing,
    }
    if keys.head:
        arguments["head"] = keys.head
    name = with_default_head(keys.name, "classifier")
    model = create_model_from(name, {**arguments, **keys.arguments})
    return model, load_pretrained(model, keys) if keys.weights else None


def training_loader(config: FinetuneConfig, lists: ClassLists) -> ClipLoader[Any]:
    """Augmented random clips and crops of the training list.

    Raises:
        UserError: the batch size, a clip key or an augmentation is wrong.
    """
    build: Callable[..., LabeledClips] = LabeledClips
    if lists.is_multi_label:
        build = functools.partial(MultiLabelClips, classes=lists.classes)
    dataset = build(
        lists.train,
        sampler=_sampler(config.clip),
        transform=_transform(config.clip),
        augment=_augmentation(config),
        reader=config.data.reader,
        seed=config.run.seed,
        samples_per_video=config.clip.samples_per_video,
        flip_labels=_flip_labels(config, lists.names),
        balanced=config.data.balanced,
        uncropped=config.data.augment_on == "device",
    )
    return ClipLoader(dataset, **loader_options(config))


def _sampler(clip: LabeledClipConfig) -> Callable[..., np.ndarray]:
    if clip.sampling == "segments":
        return functools.partial(random_segments, frames=clip.frames)
    return ClipRecipe.of(clip).frame_sampler(clip_indices_random)


def _transform(clip: LabeledClipConfig) -> ClipTransform:
    crop = ClipRecipe.of(clip).crop
    if clip.crop_kind == "area":
        return RandomResizedCrop(
            crop,
            area=(clip.crop_area[0], clip.crop_area[1]),
            aspect=(clip.crop_aspect[0], clip.crop_aspect[1]),
            flip=clip.flip,
        )
    return ShortSideJitterCrop(
        crop,
        short_side=(clip.short_side[0], clip.short_side[1]),
        inverse_uniform=clip.short_side_inverse,
        flip=clip.flip,
    )


def _augmentation(config: FinetuneConfig) -> Augmentation | None:
    """The augmentation of a config, or None."""
    augment, clip = config.augment, config.clip
    augmentations: dict[str, Any] = {}
    if augment.randaugment:
        augmentations["randaugment"] = RandAugment.from_words(
            augment.randaugment, interpolation=augment.interpolation
        )
    jitter = {name: getattr(augment, name) for name in ("brightness", "contrast", "saturation")}
    if any(jitter.values()):
        augmentations["color"] = ColorJitter(**jitter)
    if augment.erasing:
        area = (augment.erasing_area[0], augment.erasing_area[1])
        augmentations["erasing"] = RandomErasing(
            probability=augment.erasing, area=area, mean=clip.mean, std=clip.std
        )
    return Augmentation(**augmentations) if augmentations else None


def _flip_labels(config: FinetuneConfig, names: tuple[str, ...]) -> Mapping[int, int] | None:
    """Class -> class of the mirrored clip; None if flips keep the class."""
    if not config.clip.flip_swaps_labels:
        return None
    if not config.clip.flip:
        raise UserError(
            "clip.flip_swaps_labels swaps the classes of flipped clips, but clip.flip=0 flips no clip; "
            "set clip.flip=0.5, or leave clip.flip_swaps_labels out"
        )
    if not names:
        raise UserError(
            "clip.flip_swaps_labels needs class names, to find left and right in them: set "
            "data.class_names, such as something-something-v2-labels.json"
        )
    return left_right_pairs({name: label for label, name in enumerate(names)})
