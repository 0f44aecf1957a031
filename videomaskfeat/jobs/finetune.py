"""``finetune``: from a pre-trained encoder, or from scratch, to a classifier and its accuracy."""

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

from videomaskfeat.data.augment import Augmentation, Mixing, RandAugment, RandomErasing
from videomaskfeat.data.batches import LabelledBatch
from videomaskfeat.data.clips import LabelledClips, check_labels, left_right_pairs, random_segments
from videomaskfeat.data.formats import class_names_beside
from videomaskfeat.data.loader import ClipLoader, FailureCounter
from videomaskfeat.data.operations import ColorJitter
from videomaskfeat.data.records import Records, check_frames
from videomaskfeat.data.sampling import clip_indices_random
from videomaskfeat.data.transforms import ClipTransform, RandomResizedCrop, ShortSideJitterCrop
from videomaskfeat.engine import distributed
from videomaskfeat.engine.contracts import Stateful, StepResult
from videomaskfeat.engine.run import BestWeights, Outcome, Run, run_training
from videomaskfeat.engine.teacher import check_weight_sets
from videomaskfeat.environment import environment_text
from videomaskfeat.errors import UserError, counted
from videomaskfeat.inference.lists import ListChoice, read_class_names
from videomaskfeat.inference.multiview import Machine, VideoScores, build_views, evaluate_model
from videomaskfeat.losses import soft_cross_entropy
from videomaskfeat.metrics.accuracy import accuracy, confusion_matrix
from videomaskfeat.models import create_model_from
from videomaskfeat.models.cost import multiply_adds
from videomaskfeat.models.weights import LoadReport, load_into, load_pretrained, read_state, save_weights
from videomaskfeat.recipe import CLASSIFY_KEY, ClassifyRecipe, compare_levels, normalize
from videomaskfeat.schemas import FinetuneConfig, LabeledClipConfig
from videomaskfeat.viz.report import write_report

logger = logging.getLogger(__name__)


def finetune(config: FinetuneConfig) -> Outcome:
    """Fine-tune as the config says; a run folder that holds a checkpoint is resumed.

    Raises:
        UserError: the config, the lists, the videos, the weights or the run folder are wrong.
        RunFailed: the loss is not finite, or nothing can be saved.
    """
    check_weight_sets(config.evaluate.weights, averaged=config.optim.ema_decay is not None)
    return run_training(FinetuneRun, config, environment=environment_text, report=write_report)


class FinetuneRun(Run):
    """A classifier, validated with one view per video while it trains, and with all views at the end."""

    kind = "finetune"

    def __init__(self, config: FinetuneConfig, device: torch.device) -> None:
        super().__init__(config, device)
        self.lists = read_lists(config)
        self.recipe = ClassifyRecipe.of(config.clip, config.evaluate, self.lists.names)
        model, self.load_report = build_classifier(config, self.lists.classes)
        self.loader = training_loader(config, self.lists)
        self.counter = FailureCounter(len(self.loader.dataset), share=config.data.failure_share)
        self.mixing = Mixing(classes=self.lists.classes, **vars(config.mix))
        self.evaluates, self.evaluate_epochs = self.lists.validation is not None, config.evaluate.epochs
        if self.lists.validation is not None:  # a mistake is reported now rather than after the training
            build_views(self.lists.validation, self.recipe)
        self.learn(model)
        self.compare = torch.compile(self.classify) if config.run.compile else self.classify
        self.best = BestWeights(self.path / "best.safetensors", self.save)

    def plan(self) -> list[str]:
        """Model, cost, tokens, data, and whether videos are mixed at all."""
        config, clip, lists = self.config, self.config.clip, self.lists
        size = (1, 3, clip.frames, clip.crop, clip.crop)
        total = sum(parameter.numel() for parameter in self.model.parameters())
        learned = sum(parameter.numel() for parameter in self.model.parameters() if parameter.requires_grad)
        share = f"{learned / 1e6:.2f} M" if learned >= 10_000 else f"{learned / 1e3:.2f} K"
        frozen = "" if learned == total else f" ({share} learned, the encoder is frozen)"
        tokens = self.model.token_grid(size)  # type: ignore[operator]
        sampling = "segments" if clip.sampling == "segments" else f"stride {clip.stride}"
        held_out = "" if lists.validation is None else f", {len(lists.validation)} held out"
        lines = [
            f"model     {config.model.name}: {total / 1e6:.2f} M parameters{frozen}, "
            f"{multiply_adds(self.model, (torch.zeros(size),)) / 1e9:.1f} G multiply-adds per view",
            f"clip      {clip.frames} frames x {sampling}, {clip.crop}x{clip.crop} pixels: {tokens} = "
            f"{tokens.size} tokens, {clip.samples_per_video} per opening of a video",
            f"data      {lists.train.source}: {len(lists.train)} videos{held_out}, {lists.classes} classes",
        ]
        mix, optim = config.mix, config.optim
        clips = optim.batch_size // distributed.world_size() // optim.accumulate
        if clips <= clip.samples_per_video and (mix.mixup or mix.cutmix) and mix.probability:
            lines.append(
                "mixing    never of two videos: a micro-batch holds one; lower optim.accumulate or the "
                "number of processes, or raise optim.batch_size"
            )
        return lines

    def opened(self) -> None:
        """Log what became of the weights that the run starts from."""
        if self.load_report is not None:
            path = self.config.model.weights
            self.log_weights(path, self.load_report, compare_levels(path, self.recipe.clip))

    def step(self, batch: LabelledBatch) -> StepResult:
        """Normalize on the device, mix clips and labels, classify, compare.

        ``train_top1`` is the share of clips, in percent, whose class wins: of a mixed clip the class of the
        greater part, as its target says.
        """
        pixels = normalize(batch.clips, mean=self.recipe.clip.mean, std=self.recipe.clip.std)
        clips, targets = self.mixing(pixels, batch.labels)
        loss, logits = self.compare(clips, targets)
        right = logits.detach().argmax(dim=-1) == targets.argmax(dim=-1)
        return StepResult(loss, {"train_top1": 100 * right.float().mean()})

    def classify(self, clips: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Clips float [B, C, T, H, W] and targets float [B, L] -> loss float32 [] and logits [B, L]."""
        logits = self.network(clips)
        return soft_cross_entropy(logits, targets), logits

    @property
    def state(self) -> Mapping[str, Stateful]:
        """The best score so far."""
        return {"best": self.best}

    def evaluate(self) -> dict[str, float]:
        """One view per video."""

        def measure() -> dict[str, float]:
            score = accuracy(*self.score(replace(self.recipe, views=1, crops=1)))
            return {"top1": score.top1, "top5": score.top5}

        return self.measure_sets(self.config.evaluate.weights, self.best, measure)

    def score(self, recipe: ClassifyRecipe) -> tuple[np.ndarray, np.ndarray]:
        """Scores [n, L] and labels [n] of the held-out videos with the model's present weights."""
        assert self.lists.validation is not None
        data = self.config.data
        scores: VideoScores = evaluate_model(
            self.model,
            self.lists.validation,
            recipe,
            Machine(str(self.device), "bf16" if self.bf16 else "fp32", data.reader, data.workers),
        )
        self.unreadable = scores.failures
        return scores.scores, scores.labels

    def save(self, path: Path) -> None:
        """Write the model with its recipe."""
        save_weights(path, self.model, metadata={CLASSIFY_KEY: self.recipe.to_json()})

    def finish(self) -> dict[str, Any]:
        """All views of the held-out list, with the best weights."""
        self.save_last()
        if self.lists.validation is None:
            return {}
        load_into(self.model, read_state(self.best.path), source=str(self.best.path))
        # A resumed run may test with other views than the one that wrote the file.
        distributed.run_on_main(lambda: self.save(self.best.path))
        scores, labels = self.score(self.recipe)
        score = accuracy(scores, labels)
        confusion = {"class_names": self.lists.names, "counts": confusion_matrix(scores, labels).tolist()}
        distributed.run_on_main(lambda: self.folder.write("confusion.json", simplejson.dumps(confusion)))
        return {
            "best_weights": str(self.best.path),
            "validation_best_top1": self.best.score,
            "top1": score.top1,
            "top5": score.top5,
            "mean_class": score.mean_class,
            "videos": score.videos,
            "listed": len(self.lists.validation),
            "classes": self.lists.classes,
            "views": self.recipe.views,
            "crops": self.recipe.crops,
        }

    def conclude(self, summary: Mapping[str, Any]) -> list[str]:
        """The accuracy, and what could not be read."""
        lines = [
            f"unreadable held-out video, left out: {failure.path}: {failure.cause}"
            for failure in self.unreadable or ()
        ]
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
        return lines


@dataclass(frozen=True)
class LabelledLists:
    """The lists of a run and the classes that both speak of.

    Attributes:
        train: records to train on, all labelled.
        validation: held-out records, or None.
        classes: number of classes, L.
        names: a name a class, or none.
    """

    train: Records
    validation: Records | None
    classes: int
    names: tuple[str, ...]


def read_lists(config: FinetuneConfig) -> LabelledLists:
    """Read the lists and settle the number of classes.

    Raises:
        UserError: a list is wrong or without labels, a label outside the classes, names of another number, or
            pictures where clips have more than one frame.
    """
    data = config.data
    names_path = data.class_names or class_names_beside(data.train)
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
    # Words are numbered as in training, also where the held-out list lacks some of them.
    validation = choice.load(data.validation, known_classes=names, stills=stills) if data.validation else None
    if names and data.classes and len(names) != data.classes:
        raise UserError(
            f"{names_path or data.train}: holds {len(names)} class names, and data.classes is "
            f"{data.classes}; leave data.classes out, or give the names of these classes"
        )
    assert train.labels is not None
    classes = data.classes or len(names) or int(train.labels.max()) + 1
    for records in (train, validation):
        if records is not None:
            check_labels(records, classes)
            check_frames(records, config.clip.frames)
    words = words_on_gaps(train, classes)
    if words and distributed.is_main():
        logger.warning(words)
    return LabelledLists(train, validation, classes, names)


def words_on_gaps(records: Records, classes: int) -> str:
    """What is odd about the labels of a list to train on: they start above 0, or have gaps; else nothing."""
    if records.labels is None:
        return ""
    present = np.unique(records.labels)
    lowest, highest, found = int(present[0]), int(present[-1]), len(present)
    if not lowest and found == highest + 1:
        return ""
    missing = highest + 1 - found
    first = int((np.append(present, -1) != np.arange(found + 1)).argmax())
    remedy = "subtract 1 from every label" if lowest == 1 else "renumber the labels without gaps"
    classless = "1 class" if missing == 1 else f"{missing} classes"
    return (
        f"{records.source}: labels run from {lowest} to {highest}, {counted(found, 'different one')}, and "
        f"count from 0 (data.classes is {classes}): {classless} up to {highest} have no "
        f"video, the first is {first}; if that is not intended, {remedy}"
    )


def build_classifier(config: FinetuneConfig, classes: int) -> tuple[nn.Module, LoadReport | None]:
    """The model by its name, made for the config's clips, with the weights that it starts from.

    Returns:
        The model, and what became of the weights (None from scratch).

    Raises:
        UserError: an unknown name or argument, a model that does not classify, or weights that do not fit.
    """
    clip, keys = config.clip, config.model
    arguments: dict[str, Any] = {
        "clip_size": (clip.frames, clip.crop, clip.crop),
        "classes": classes,
        "drop_path": keys.drop_path,
        "dropout": keys.dropout,
        "head_scale": keys.head_scale,
        "checkpoint_blocks": config.run.activation_checkpointing,
    }
    if keys.head:
        arguments["head"] = keys.head
    model = create_model_from(keys.name, {**arguments, **keys.arguments})
    return model, load_pretrained(model, keys) if keys.weights else None


def training_loader(config: FinetuneConfig, lists: LabelledLists) -> ClipLoader[Any]:
    """Random clips and crops of the training list, augmented.

    Raises:
        UserError: the batch, a clip setting or an augmentation is wrong.
    """
    dataset = LabelledClips(
        lists.train,
        sampler=_sampler(config.clip),
        transform=_transform(config.clip),
        augment=_augmentation(config),
        reader=config.data.reader,
        seed=config.run.seed,
        samples_per_video=config.clip.samples_per_video,
        flip_labels=_flip_labels(config, lists.names),
        balanced=config.data.balanced,
    )
    return ClipLoader(
        dataset,
        batch_size=config.optim.batch_size,
        accumulate=config.optim.accumulate,
        workers=config.data.workers,
        read_seconds=config.data.read_seconds,
        rank=distributed.rank(),
        world_size=distributed.world_size(),
        pin_memory=config.run.device != "cpu",
    )


def _sampler(clip: LabeledClipConfig) -> Callable[..., np.ndarray]:
    if clip.sampling == "segments":
        return functools.partial(random_segments, frames=clip.frames)
    return functools.partial(
        clip_indices_random,
        frames=clip.frames,
        stride=clip.stride,
        target_fps=clip.target_fps,
        short=clip.short_video,  # type: ignore[arg-type]
    )


def _transform(clip: LabeledClipConfig) -> ClipTransform:
    if clip.crop_kind == "area":
        return RandomResizedCrop(
            clip.crop,
            area=(clip.crop_area[0], clip.crop_area[1]),
            aspect=(clip.crop_aspect[0], clip.crop_aspect[1]),
            flip=clip.flip,
        )
    return ShortSideJitterCrop(
        clip.crop,
        short_side=(clip.short_side[0], clip.short_side[1]),
        inverse_uniform=clip.short_side_inverse,
        flip=clip.flip,
    )


def _augmentation(config: FinetuneConfig) -> Augmentation | None:
    """What the config asks for, or None where that is nothing."""
    augment, clip = config.augment, config.clip
    shapes = (
        RandAugment.from_words(augment.randaugment, interpolation=augment.interpolation)
        if augment.randaugment
        else None
    )
    changes = (augment.brightness, augment.contrast, augment.saturation)
    color = (
        ColorJitter(brightness=changes[0], contrast=changes[1], saturation=changes[2])
        if any(changes)
        else None
    )
    area = (augment.erasing_area[0], augment.erasing_area[1])
    erasing = (
        RandomErasing(probability=augment.erasing, area=area, mean=clip.mean, std=clip.std)
        if augment.erasing
        else None
    )
    if shapes is None and color is None and erasing is None:
        return None
    return Augmentation(randaugment=shapes, color=color, erasing=erasing)


def _flip_labels(config: FinetuneConfig, names: tuple[str, ...]) -> Mapping[int, int] | None:
    """Class -> class of the mirrored clip, where flips are to swap them."""
    if not config.clip.flip_swaps_labels:
        return None
    if not config.clip.flip:
        raise UserError(
            "clip.flip_swaps_labels swaps the classes of flipped clips, and clip.flip=0 flips none; "
            "set clip.flip=0.5, or leave clip.flip_swaps_labels out"
        )
    if not names:
        raise UserError(
            "clip.flip_swaps_labels needs the names of the classes to find left and right in: "
            "set data.class_names, such as something-something-v2-labels.json"
        )
    return left_right_pairs({name: label for label, name in enumerate(names)})
