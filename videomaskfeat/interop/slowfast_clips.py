"""Clips, test protocol and masks of a PySlowFast YAML."""

from __future__ import annotations

from dataclasses import dataclass

from videomaskfeat.errors import UserError
from videomaskfeat.interop.slowfast_keys import (
    Options,
)
from videomaskfeat.recipe import ClipRecipe
from videomaskfeat.stored_recipe import ClassifyRecipe


@dataclass(frozen=True)
class ClipFacts:
    """Clips, test protocol and classes of a YAML.

    Attributes:
        recipe: clips and views, as far as we support them; mean and std are in RGB order.
        dataset: PySlowFast's name of the data set in lower case: "kinetics", "ssv2", "imagenet", "ava" or
            another.
        flip: whether training clips are flipped.
        channels: "rgb" or "bgr", the model's channel order.
        view_counts: all numbers of views to test; the recipe has the largest.
        offset: whether views cover the first to the last frame.
        ensemble: "sum" or "max" over the views.
        multi_label: whether a video may have several classes.
        classes: number of classes; None in pre-training.
    """

    recipe: ClassifyRecipe
    dataset: str
    flip: bool
    channels: str
    view_counts: tuple[int, ...]
    offset: bool
    ensemble: str
    multi_label: bool
    classes: int | None


@dataclass(frozen=True)
class MaskFacts:
    """Masks of a pre-training YAML.

    Attributes:
        kind: our name: "cube", "tube", "frame", "block", "random" or "random_tube".
        ratio: share of hidden cells.
        window: number of cells over frames, height and width of a clip.
    """

    kind: str
    ratio: float
    window: tuple[int, int, int]


def clip_facts(options: Options) -> ClipFacts:
    """Clips and views of a YAML.

    Raises:
        UserError: an invalid value, such as a list of another length.
    """
    dataset = options["TRAIN.DATASET" if "MODEL.NUM_CLASSES" not in options else "TEST.DATASET"].lower()
    segments, images = dataset == "ssv2", bool(options["MVIT.PATCH_2D"])
    crops, crop = options["TEST.NUM_SPATIAL_CROPS"], options["DATA.TEST_CROP_SIZE"]
    mean, std = (_numbers(options, key, 3) for key in ("DATA.MEAN", "DATA.STD"))
    # PySlowFast reads SSv2 frames as BGR, normalizes them in that order, then reverses the channels.
    if segments:
        mean, std = mean[::-1], std[::-1]
    counts = _numbers(options, "TEST.NUM_TEMPORAL_CLIPS") or (options["TEST.NUM_ENSEMBLE_VIEWS"],)
    if images:  # one center crop, whatever the YAML has
        counts, crops = (1,), 1
    # A single center crop comes from a larger frame; three crops, and those of SSv2, cover the longer side.
    covering = segments or crops > 1
    short_side = crop if covering else int(_numbers(options, "DATA.TRAIN_JITTER_SCALES", 2)[0])
    ratio = options["DATA.IN_VAL_CROP_RATIO"]
    if images:
        short_side = int(crop / ratio) if ratio > 0 else crop
    try:
        clip = ClipRecipe(
            frames=options["DATA.NUM_FRAMES"],
            stride=1 if images else options["DATA.SAMPLING_RATE"],
            crop=crop,
            target_fps=options["DATA.TARGET_FPS"],
            mean=mean[0] if len(set(mean)) == 1 else mean,
            std=std[0] if len(set(std)) == 1 else std,
        )
    except UserError as error:
        raise UserError(f"{options.path}: DATA: {error}") from error
    return ClipFacts(
        recipe=ClassifyRecipe(
            clip,
            sampling="segments" if segments else "clip",
            views=1 if segments else int(max(counts)),  # all test views of segments are equal
            crops=crops,
            short_side=short_side,
            average="logits" if options.get("MODEL.HEAD_ACT") == "none" else "softmax",
        ),
        dataset=dataset,
        flip=options["DATA.RANDOM_FLIP"],
        channels="bgr" if segments != options["DATA.REVERSE_INPUT_CHANNEL"] else "rgb",
        view_counts=tuple(int(count) for count in counts),
        offset=options["DATA.USE_OFFSET_SAMPLING"],
        ensemble=options["DATA.ENSEMBLE_METHOD"],
        multi_label=options["DATA.MULTI_LABEL"],
        classes=options.get("MODEL.NUM_CLASSES"),
    )


def mask_facts(options: Options) -> MaskFacts:
    """Masks of pre-training.

    Raises:
        UserError: a window that is not three numbers.
    """
    ratio, tube = options["AUG.MASK_RATIO"], options["AUG.MASK_TUBE"]
    if options["MVIT.PATCH_2D"] or options["MASK.MAE_ON"]:
        # The mask is drawn on the token grid; the window has no effect.
        step = _numbers(options, "MVIT.PATCH_STRIDE")[-2:]
        rows, columns = (int(options["DATA.TRAIN_CROP_SIZE"] // length) for length in step)
        if options["MVIT.PATCH_2D"]:
            return MaskFacts("block", ratio, (1, rows, columns))
        frames = int(options["DATA.NUM_FRAMES"] // options["MVIT.PATCH_STRIDE"][0])
        return MaskFacts("random_tube" if tube else "random", ratio, (frames, rows, columns))
    window = _numbers(options, "AUG.MASK_WINDOW_SIZE", 3)
    kind = "tube" if tube else "frame" if options["AUG.MASK_FRAMES"] else "cube"
    return MaskFacts(kind, ratio, (int(window[0]), int(window[1]), int(window[2])))


def _numbers(options: Options, key: str, count: int | None = None) -> tuple[float, ...]:
    value = options[key]
    plain = all(isinstance(x, int | float) and not isinstance(x, bool) for x in value)
    if not plain or count not in (None, len(value)):
        expected = "numbers" if count is None else f"{count} numbers"
        raise UserError(f"{options.path}: {key} {list(value)} must be {expected}")
    return tuple(map(float, value))
