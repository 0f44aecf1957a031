"""Key frames and where their pictures are -> what a detector trains and is tested on."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from videomaskfeat.ava import AVA_ACTIONS, read_action_kinds, read_label_map
from videomaskfeat.data.augment import Augmentation
from videomaskfeat.data.ava import (
    ActionClips,
)
from videomaskfeat.data.ava_lists import KeyFrames, training_key_frames
from videomaskfeat.data.loader import ClipLoader
from videomaskfeat.data.operations import ColourJitter
from videomaskfeat.data.transforms import ShortSideJitterCrop
from videomaskfeat.engine import distributed
from videomaskfeat.errors import UserError, check_name
from videomaskfeat.inference.detectors import DetectRecipe
from videomaskfeat.inference.key_frames import OtherVideos, VideoPlaces, read_tested
from videomaskfeat.jobs.finetune_building import LEFT_FROM_PRETRAINING, NEW_IN_A_CLASSIFIER, OTHER_CLASSES
from videomaskfeat.losses import binary_cross_entropy, pose_cross_entropy
from videomaskfeat.models import create_model_from
from videomaskfeat.models.detector import Detector
from videomaskfeat.models.weights import Inflate, LoadReport, load_weights
from videomaskfeat.models.zoo import MODELS
from videomaskfeat.recipe import DETECT_KEY, ClipRecipe, recipe_texts
from videomaskfeat.schemas import DetectConfig

logger = logging.getLogger(__name__)


def video_places(config: DetectConfig) -> VideoPlaces:
    """Where the videos of a run are."""
    data = config.data
    return VideoPlaces(data.videos, tuple(data.frame_lists), data.frames, data.frames_fps, data.start_second)


def training_loader(config: DetectConfig, key_frames: KeyFrames) -> ClipLoader[Any]:
    """Random crops around the training key frames; this rank's share.

    Raises:
        UserError: a video is missing, or the batch or a clip setting is wrong.
    """
    clip, colour = config.clip, config.colour
    changes = {"brightness": colour.brightness, "contrast": colour.contrast, "saturation": colour.saturation}
    dataset = ActionClips(
        key_frames,
        video_places(config).find(key_frames),
        frames=clip.frames,
        stride=clip.stride,
        target_fps=clip.target_fps,
        transform=ShortSideJitterCrop(
            clip.crop, short_side=(clip.short_side[0], clip.short_side[1]), flip=clip.flip
        ),
        augment=Augmentation(colour=ColourJitter(**changes)) if any(changes.values()) else None,
        visible=config.boxes.visible,
        seed=config.run.seed,
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


# The parts of training a detector of actions, each built from the keys that concern it, and checked.
LOSSES = ("sigmoid", "poses")
AVA_POSES = tuple(range(1, 15))
_POSE_KIND = "PERSON_MOVEMENT"  # the label_type of AVA's poses
ActionLoss = Callable[[Tensor, Tensor], Tensor]
"""(logits float [R, L], labels bool [R, L]) -> scalar"""


@dataclass(frozen=True)
class ActionLists:
    """Key frames to train and to test on, and the actions that all of them speak of.

    Attributes:
        train: to train on.
        tested: whose boxes are tested on, a detector's or those of the ground truth; None: no validation.
        truth: what there is to find in them; None: no validation.
        other: detected boxes that are left out of the validation.
        actions: id to name of those that are scored.
        classes: L, ids count from 1 to this.
        poses: ids of which a person has exactly one; empty where the loss knows of none.
    """

    train: KeyFrames
    tested: KeyFrames | None
    truth: KeyFrames | None
    other: OtherVideos
    actions: dict[int, str]
    classes: int
    poses: tuple[int, ...]


def read_lists(config: DetectConfig) -> ActionLists:
    """Read the files and settle the number of actions.

    Raises:
        UserError: a file is missing or wrong, or an action outside the classes.
    """
    data, boxes = config.data, config.boxes
    for key in ("train_score", "train_iou", "score"):
        if not 0 <= (value := getattr(boxes, key)) <= 1:
            raise UserError(f"boxes.{key}={value:g} is not in 0..1")
    actions = read_label_map(data.label_map)
    classes = settle_classes(data.classes, actions, data.label_map)
    train = training_key_frames(
        [data.train],
        data.train_boxes,
        classes=classes,
        score_threshold=boxes.train_score,
        iou_threshold=boxes.train_iou,
        exclusions=[data.train_exclusions] if data.train_exclusions else [],
    )
    tested = truth = None
    other = OtherVideos()
    if data.validation:
        truth, tested, other = read_tested(
            data.validation,
            data.validation_boxes,
            data.validation_exclusions,
            classes=classes,
            score_threshold=boxes.score,
        )
    poses = _poses(config, classes)
    return ActionLists(train, tested, truth, other, actions, classes, poses)


def settle_classes(asked: int, actions: Mapping[int, str], label_map: str) -> int:
    """The number of actions: as asked, or the label map's largest id.

    Raises:
        UserError: the label map has a larger id than asked.
    """
    largest = max(actions)
    if asked and asked < largest:
        raise UserError(
            f"{label_map}: lists the action {largest} ({actions[largest]}), and data.classes is {asked}; "
            f"leave data.classes out, or set it to {largest} or more"
        )
    return asked or largest


def recipe_of(config: DetectConfig, lists: ActionLists) -> DetectRecipe:
    """What the weights file will know of clips, frames and actions."""
    evaluate = config.evaluate
    return DetectRecipe(
        clip=ClipRecipe.of(config.clip),
        actions=lists.actions,
        classes=lists.classes,
        poses=lists.poses,
        short_side=evaluate.short_side,
        area=evaluate.area,
        score_threshold=config.boxes.score,
    )


def build_loss(config: DetectConfig, lists: ActionLists, device: torch.device) -> ActionLoss:
    """What is minimised.

    Raises:
        UserError: an unknown loss, or a number out of its range.
    """
    loss = config.loss
    if loss.focusing < 0 or not 0 <= loss.balance <= 1:
        raise UserError(
            f"loss.focusing {loss.focusing:g} must be 0 or more, and loss.balance {loss.balance:g} in 0..1"
        )
    weights = class_weights(lists.train.labels, power=loss.balance).to(device) if loss.balance else None
    if loss.name == "poses":
        poses = torch.zeros(lists.classes, dtype=torch.bool)
        poses[[number - 1 for number in lists.poses]] = True
        return partial(
            pose_cross_entropy, poses=poses.to(device), focusing=loss.focusing, class_weights=weights
        )
    return partial(binary_cross_entropy, focusing=loss.focusing, class_weights=weights)


def class_weights(labels: np.ndarray, *, power: float) -> Tensor:
    """A factor an action, count^-power, of mean 1; an action that never happens counts as one that does once.

    Args:
        labels: bool [R, L].
        power: 0 (all alike) to 1 (every action counts the same in all).

    Returns:
        float32 [L].
    """
    weights = torch.from_numpy(labels.sum(axis=0)).clamp(min=1).double() ** -power
    return (weights / weights.mean()).float()


def build_detector(config: DetectConfig, classes: int) -> tuple[Detector, LoadReport | None]:
    """The model by its name, made for the config's clips, with the weights that it starts from.

    The last layer of our classifiers is not taken over, whatever its size: their classes are others.

    Returns:
        The model, and what became of the weights (None from scratch).

    Raises:
        UserError: an unknown name or argument, a model that is no detector, or weights that do not fit.
    """
    clip, keys = config.clip, config.model
    if keys.name in MODELS and not issubclass(MODELS[keys.name].build, Detector):
        known = [name for name, named in MODELS.items() if issubclass(named.build, Detector)]
        raise UserError(f"model.name {keys.name!r} is no detector of actions; take one of {', '.join(known)}")
    arguments: dict[str, Any] = {
        "clip_size": (clip.frames, clip.crop, clip.crop),
        "classes": classes,
        "drop_path": keys.drop_path,
        "dropout": keys.dropout,
        "head_scale": keys.head_scale,
        "checkpoint_blocks": config.run.activation_checkpointing,
    }
    model = create_model_from(keys.name, {**arguments, **keys.arguments})
    assert isinstance(model, Detector)
    if not keys.weights:
        return model, None
    report = load_weights(
        model,
        keys.weights,
        key=keys.weights_key,
        leave_out=() if _of_detector(keys.weights) else ("head.*",),
        allow_missing=(*NEW_IN_A_CLASSIFIER, *keys.allow_missing),
        allow_unused=(*LEFT_FROM_PRETRAINING, *keys.allow_unused),
        allow_reset=OTHER_CLASSES,
        inflate=cast(Inflate, keys.inflate),
    )
    return model, report


def _of_detector(path: str) -> bool:
    """Whether the last layer in a file speaks of actions; what others saved counts if it fits."""
    return not path.endswith(".safetensors") or DETECT_KEY in recipe_texts(path)


def _poses(config: DetectConfig, classes: int) -> tuple[int, ...]:
    """The ids of the poses where the loss asks for them.

    Raises:
        UserError: an unknown loss, no poses known, or one outside the classes.
    """
    loss = config.loss
    check_name("loss.name", loss.name, LOSSES)
    if loss.name != "poses":
        return ()
    kinds = read_action_kinds(config.data.label_map)
    poses = tuple(loss.poses) or tuple(number for number, kind in kinds.items() if kind == _POSE_KIND)
    if not poses and classes == AVA_ACTIONS:
        poses = AVA_POSES
    if len(poses) < 2:
        raise UserError(
            f"loss.name=poses needs the ids of two poses or more, and {config.data.label_map} has no "
            f"label_type {_POSE_KIND}: set loss.poses, such as loss.poses=[1,2,3]"
        )
    wrong = [number for number in poses if not 1 <= number <= classes]
    if wrong:
        raise UserError(f"loss.poses holds {wrong[0]}, and there are the actions 1 to {classes}")
    return poses
