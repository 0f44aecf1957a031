"""PySlowFast's options -> how its clips are cut, hidden and tested.

Facts from PySlowFast at commit 287ec00: `slowfast/datasets/kinetics.py`, `ssv2.py` and `utils.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from videomaskfeat.errors import UserError

Colours = tuple[float, float, float]


@dataclass(frozen=True)
class ClipFacts:
    """What a YAML says of clips and of testing.

    Attributes:
        dataset: PySlowFast's name of it, in small letters: "kinetics", "ssv2" or another.
        sampling: "clip", or for SSv2 "segments".
        frames: frames a clip.
        stride: PySlowFast's sampling rate, counted at ``target_fps``.
        target_fps: frames a second.
        crop: height and width in pixels.
        short_side: pixels that the short side is resized to in testing.
        flip: whether training clips are flipped.
        mean: subtracted from pixels in 0..1: of red, green and blue.
        std: divides them after that: of red, green and blue.
        channels: "rgb" or "bgr", the order in which the model takes them.
        views: clips a video in testing; the greatest number where several are tested.
        view_counts: all numbers that are tested.
        crops: crops a clip in testing.
        offset: views reach from the first frame to the last.
        average: "softmax" or "logits", what is added up over the views.
        ensemble: "sum" or "max" over the views.
        multi_label: a video may have several classes.
        classes: None in pre-training.
    """

    dataset: str
    sampling: str
    frames: int
    stride: int
    target_fps: float
    crop: int
    short_side: int
    flip: bool
    mean: Colours
    std: Colours
    channels: str
    views: int
    view_counts: tuple[int, ...]
    crops: int
    offset: bool
    average: str
    ensemble: str
    multi_label: bool
    classes: int | None


@dataclass(frozen=True)
class MaskFacts:
    """What a pre-training YAML hides.

    Attributes:
        kind: "cube", "tube", "frame", "block", "random" or "random_tube", as our masks are called.
        ratio: share of the window's cells.
        window: cells over frames, height and width of a clip.
    """

    kind: str
    ratio: float
    window: tuple[int, int, int]


def clip_facts(path: str, options: Mapping[str, Any]) -> ClipFacts:
    """Clips and views, in training or testing whatever the kind of YAML is for.

    Raises:
        UserError: a list that is not made of the numbers it should hold.
    """
    pretraining = "MODEL.NUM_CLASSES" not in options
    dataset = options["TRAIN.DATASET" if pretraining else "TEST.DATASET"].lower()
    segments = dataset == "ssv2"
    crops, crop = options["TEST.NUM_SPATIAL_CROPS"], options["DATA.TEST_CROP_SIZE"]
    mean, std = _colours(path, options, "DATA.MEAN"), _colours(path, options, "DATA.STD")
    # The frames of SSv2 are pictures that PySlowFast reads as blue, green, red; it normalises them in that
    # order, and reverses the channels after that.
    if segments:
        mean, std = mean[::-1], std[::-1]
    counts = _numbers(path, options, "TEST.NUM_TEMPORAL_CLIPS") or (options["TEST.NUM_ENSEMBLE_VIEWS"],)
    return ClipFacts(
        dataset=dataset,
        sampling="segments" if segments else "clip",
        frames=options["DATA.NUM_FRAMES"],
        stride=options["DATA.SAMPLING_RATE"],
        target_fps=options["DATA.TARGET_FPS"],
        crop=crop,
        # One centre crop is cut from a larger frame; three lie along the longer side, as always in SSv2.
        short_side=crop
        if segments or crops > 1
        else int(_numbers(path, options, "DATA.TRAIN_JITTER_SCALES", 2)[0]),
        flip=options["DATA.RANDOM_FLIP"],
        mean=mean,
        std=std,
        channels="bgr" if segments != options["DATA.REVERSE_INPUT_CHANNEL"] else "rgb",
        views=1 if segments else int(max(counts)),  # in testing all views of segments are equal
        view_counts=tuple(int(count) for count in counts),
        crops=crops,
        offset=options["DATA.USE_OFFSET_SAMPLING"],
        average="logits" if options.get("MODEL.HEAD_ACT") == "none" else "softmax",
        ensemble=options["DATA.ENSEMBLE_METHOD"],
        multi_label=options["DATA.MULTI_LABEL"],
        classes=options.get("MODEL.NUM_CLASSES"),
    )


def mask_facts(path: str, options: Mapping[str, Any]) -> MaskFacts:
    """What the loader of pre-training hides, or an MAE model by itself.

    Raises:
        UserError: a window that is not three numbers.
    """
    ratio, tube = options["AUG.MASK_RATIO"], options["AUG.MASK_TUBE"]
    if options["MVIT.PATCH_2D"] or options["MASK.MAE_ON"]:
        # Drawn on the grid of tokens whatever the window.
        step = _numbers(path, options, "MVIT.PATCH_STRIDE")[-2:]
        rows, columns = (int(options["DATA.TRAIN_CROP_SIZE"] // length) for length in step)
        if options["MVIT.PATCH_2D"]:
            return MaskFacts("block", ratio, (1, rows, columns))
        frames = int(options["DATA.NUM_FRAMES"] // options["MVIT.PATCH_STRIDE"][0])
        return MaskFacts("random_tube" if tube else "random", ratio, (frames, rows, columns))
    window = _numbers(path, options, "AUG.MASK_WINDOW_SIZE", 3)
    kind = "tube" if tube else "frame" if options["AUG.MASK_FRAMES"] else "cube"
    return MaskFacts(kind, ratio, (int(window[0]), int(window[1]), int(window[2])))


def _colours(path: str, options: Mapping[str, Any], key: str) -> Colours:
    first, second, third = _numbers(path, options, key, 3)
    return (first, second, third)


def _numbers(path: str, options: Mapping[str, Any], key: str, count: int | None = None) -> tuple[float, ...]:
    value = options[key]
    plain = all(isinstance(x, int | float) and not isinstance(x, bool) for x in value)
    if not plain or count not in (None, len(value)):
        wanted = "numbers" if count is None else f"{count} numbers"
        raise UserError(f"{path}: {key} {list(value)} must be {wanted}")
    return tuple(map(float, value))
