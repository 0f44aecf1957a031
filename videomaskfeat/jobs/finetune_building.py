"""The weights that did best in validation, kept in a file while a training goes on."""

from __future__ import annotations

import functools
import logging
import typing
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from videomaskfeat.data.augment import Augmentation, Mixing, RandAugment, RandomErasing
from videomaskfeat.data.clips import LabelledClips, check_labels, left_right_pairs, random_segments
from videomaskfeat.data.formats import class_names_beside
from videomaskfeat.data.loader import ClipLoader
from videomaskfeat.data.operations import ColourJitter
from videomaskfeat.data.records import Records, check_frames
from videomaskfeat.data.sampling import ShortVideo, clip_indices_random
from videomaskfeat.data.transforms import ClipTransform, RandomResizedCrop, ShortSideJitterCrop
from videomaskfeat.data.views import SAMPLINGS, EvaluationViews, Sampling
from videomaskfeat.engine import distributed
from videomaskfeat.engine.teacher import ExponentialMovingAverage
from videomaskfeat.errors import UserError, check_name, counted
from videomaskfeat.inference.multiview import ListChoice
from videomaskfeat.inference.scores import read_class_names
from videomaskfeat.models import create_model_from
from videomaskfeat.models.weights import Inflate, LoadReport, load_weights, save_weights
from videomaskfeat.schemas import FinetuneConfig, LabelledClipConfig

logger = logging.getLogger(__name__)

WEIGHT_SETS = ("auto", "trained", "averaged", "both")


def check_weight_sets(wanted: str, *, averaged: bool) -> None:
    """Refuse a choice of weights that cannot be.

    Args:
        wanted: one of ``WEIGHT_SETS``.
        averaged: whether an average is kept.

    Raises:
        UserError: an unknown choice, or an average that is not kept.
    """
    check_name("evaluate.weights", wanted, WEIGHT_SETS)
    if not averaged and wanted in ("averaged", "both"):
        raise UserError(f"evaluate.weights is {wanted}, and no average is kept; set optim.ema_decay")


def weight_sets(
    wanted: str, model: nn.Module, average: ExponentialMovingAverage | None
) -> Iterator[tuple[str, AbstractContextManager[Any]]]:
    """Prefix of the metrics' names, and the context in which the model holds these weights."""
    if average is not None and wanted in ("auto", "averaged", "both"):
        yield ("averaged_" if wanted == "both" else ""), average.averaged(model)
    if average is None or wanted in ("trained", "both"):
        yield "", nullcontext()


class BestWeights:
    """Keeps in a file the weights of the highest held-out score so far; the first of equals stays.

    Args:
        path: of the safetensors file.
        metadata: texts that go into it.
    """

    def __init__(self, path: Path, metadata: Mapping[str, str]) -> None:
        self.path = path
        self.score = -1.0
        self._metadata = metadata

    def offer(self, score: float, model: nn.Module) -> None:
        """Write the model's present weights if they are better; all ranks must call it."""
        if score <= self.score:
            return
        self.score = score
        distributed.run_on_main(lambda: save_weights(self.path, model, metadata=self._metadata))

    def state_dict(self) -> dict[str, Any]:
        """The highest score so far."""
        return {"score": self.score}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what :meth:`state_dict` gave."""
        self.score = state["score"]


# The parts of a fine-tuning run, each built from the keys of the config that concern it, and checked.
# What pre-training weights have and a classifier lacks, and the other way round.
NEW_IN_A_CLASSIFIER = ("head.*", "norm.*")
LEFT_FROM_PRETRAINING = ("mask_token", "pred_head.*", "decoder_*", "hogs.*")
OTHER_CLASSES = ("head.projection.*",)


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
    if not keys.weights:
        return model, None
    report = load_weights(
        model,
        keys.weights,
        key=keys.weights_key,
        allow_missing=(*NEW_IN_A_CLASSIFIER, *keys.allow_missing),
        allow_unused=(*LEFT_FROM_PRETRAINING, *keys.allow_unused),
        allow_reset=OTHER_CLASSES,
        inflate=typing.cast(Inflate, keys.inflate),
    )
    return model, report


def training_loader(
    config: FinetuneConfig, lists: LabelledLists, *, rank: int, world_size: int
) -> ClipLoader[Any]:
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
        rank=rank,
        world_size=world_size,
        pin_memory=config.run.device != "cpu",
    )


def evaluation_views(config: FinetuneConfig, records: Records, *, views: int, crops: int) -> EvaluationViews:
    """The views of a held-out list.

    Raises:
        UserError: views, crops or a clip setting that cannot be.
    """
    clip = config.clip
    return EvaluationViews(
        records,
        frames=clip.frames,
        stride=clip.stride,
        target_fps=clip.target_fps,
        short=short_video(clip.short_video),
        sampling=sampling(clip.sampling),
        views=views,
        crops=crops,
        crop=clip.crop,
        short_side=config.evaluate.short_side,
        reader=config.data.reader,
    )


def build_mixing(config: FinetuneConfig, classes: int) -> Mixing:
    """Mixup, cutmix and smoothed labels; with both alphas 0 only the labels are smoothed.

    Raises:
        UserError: a value out of its range.
    """
    mix = config.mix
    return Mixing(
        classes=classes,
        mixup=mix.mixup,
        cutmix=mix.cutmix,
        probability=mix.probability,
        switch=mix.switch,
        smoothing=mix.smoothing,
    )


def short_video(name: str) -> ShortVideo:
    """The policy for short videos, checked.

    Raises:
        UserError: no such policy.
    """
    check_name("clip.short_video", name, typing.get_args(ShortVideo))
    return typing.cast(ShortVideo, name)


def sampling(name: str) -> Sampling:
    """How frames are chosen, checked.

    Raises:
        UserError: no such way.
    """
    if name not in SAMPLINGS:
        raise UserError(f"clip.sampling {name!r} is not clip (Kinetics) or segments (SSv2)")
    return name


def _sampler(clip: LabelledClipConfig) -> Callable[..., np.ndarray]:
    if sampling(clip.sampling) == "segments":
        return functools.partial(random_segments, frames=clip.frames)
    return functools.partial(
        clip_indices_random,
        frames=clip.frames,
        stride=clip.stride,
        target_fps=clip.target_fps,
        short=short_video(clip.short_video),
    )


def _transform(clip: LabelledClipConfig) -> ClipTransform:
    if clip.crop_kind == "area":
        return RandomResizedCrop(
            clip.crop,
            area=(clip.crop_area[0], clip.crop_area[1]),
            aspect=(clip.crop_aspect[0], clip.crop_aspect[1]),
            flip=clip.flip,
        )
    if clip.crop_kind == "short_side":
        return ShortSideJitterCrop(
            clip.crop,
            short_side=(clip.short_side[0], clip.short_side[1]),
            inverse_uniform=clip.short_side_inverse,
            flip=clip.flip,
        )
    raise UserError(f"clip.crop_kind {clip.crop_kind!r} is not area or short_side")


def _augmentation(config: FinetuneConfig) -> Augmentation | None:
    """What the config asks for, or None where that is nothing."""
    augment, clip = config.augment, config.clip
    shapes = (
        RandAugment.from_words(augment.randaugment, interpolation=augment.interpolation)
        if augment.randaugment
        else None
    )
    changes = (augment.brightness, augment.contrast, augment.saturation)
    colour = (
        ColourJitter(brightness=changes[0], contrast=changes[1], saturation=changes[2])
        if any(changes)
        else None
    )
    area = (augment.erasing_area[0], augment.erasing_area[1])
    erasing = (
        RandomErasing(probability=augment.erasing, area=area, mean=clip.mean, std=clip.std)
        if augment.erasing
        else None
    )
    if shapes is None and colour is None and erasing is None:
        return None
    return Augmentation(randaugment=shapes, colour=colour, erasing=erasing)


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
