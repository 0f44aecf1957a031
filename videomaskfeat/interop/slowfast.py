"""PySlowFast's YAMLs and checkpoints -> models of ours, and how their clips are cut, hidden and tested."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from videomaskfeat.errors import UserError
from videomaskfeat.interop.slowfast_keys import (
    CLASSIFICATION,
    CLIP,
    DECODER,
    ENCODER,
    PRETRAINING,
    read_yaml,
    typed_options,
)
from videomaskfeat.models import create_unset
from videomaskfeat.models.encoder_base import Triple, as_clips, as_triple
from videomaskfeat.models.weights import LoadReport, load_weights
from videomaskfeat.models.zoo import MODELS, dense_form
from videomaskfeat.recipe import ClassifyRecipe, ClipRecipe
from videomaskfeat.targets.hog import HogTarget
from videomaskfeat.targets.pixels import PixelTarget
from videomaskfeat.targets.target import Target
from videomaskfeat.texts import show_text

Options = Mapping[str, Any]
"""SECTION.KEY -> value, typed."""
_HOG_CELL = 8  # pixels; fixed in PySlowFast
_HOG_BINS = 9
# Keys without which an MViT of PySlowFast is a plain vision transformer.
_POOLING = (
    "MVIT.POOL_Q_STRIDE",
    "MVIT.POOL_KV_STRIDE_ADAPTIVE",
    "MVIT.POOL_KVQ_KERNEL",
    "MVIT.DIM_MUL",
    "MVIT.HEAD_MUL",
)
_SIZES = "bslh"
NAMES: dict[tuple[str, str], tuple[str, ...]] = {
    ("pre-training", "pooling"): ("maskfeat_mvitv2_s", "maskfeat_mvitv2_l"),
    ("pre-training", "plain"): tuple(f"maskfeat_vit_{size}" for size in _SIZES),
    ("pre-training", "image"): tuple(f"maskfeat_vit_{size}_image" for size in _SIZES),
    ("MAE", "plain"): tuple(f"mae_vit_{size}" for size in _SIZES),
    ("MAE", "image"): tuple(f"mae_vit_{size}" for size in _SIZES),
    ("classification", "pooling"): ("mvitv2_s", "mvitv2_b", "mvitv2_l"),
    ("classification", "mlp"): ("maskfeat_mvitv2_s_classifier", "maskfeat_mvitv2_l_classifier"),
    ("classification", "plain"): tuple(f"vit_{size}" for size in _SIZES),
    ("classification", "image"): tuple(f"vit_{size}_image" for size in _SIZES),
}
"""(task, kind of encoder) -> names of ours, the first as a fallback; "mlp" pools and widens in its MLPs."""


@dataclass(frozen=True)
class ClipFacts:
    """How a YAML cuts, tests and labels clips.

    Attributes:
        recipe: clips and views, as far as ours can be the same; mean and std are of red, green and blue.
        dataset: PySlowFast's name of the data set, in small letters: "kinetics", "ssv2" or another.
        flip: whether training clips are flipped.
        channels: "rgb" or "bgr", the order in which the model takes them.
        view_counts: all tested numbers of views; the recipe has the largest.
        offset: views reach from the first frame to the last.
        ensemble: "sum" or "max" over the views.
        multi_label: a video may have several classes.
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
    """What a pre-training YAML hides.

    Attributes:
        kind: "cube", "tube", "frame", "block", "random" or "random_tube", as our masks are called.
        ratio: share of the window's cells.
        window: cells over frames, height and width of a clip.
    """

    kind: str
    ratio: float
    window: tuple[int, int, int]


@dataclass(frozen=True)
class ImportReport:
    """What was read, and what was not.

    Attributes:
        kind: the kind of model, in words.
        weights: how each weight of the checkpoint was used.
        ignored_keys: keys of the YAML without effect on the model, its target and its clips, such as
            ``SOLVER.BASE_LR``.
    """

    kind: str
    weights: LoadReport
    ignored_keys: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.kind}: {self.weights}; {len(self.ignored_keys)} keys have no part in the model"


class ImageTarget(nn.Module):
    """A target of images, [B, C, H, W] -> [B, h, w, K].

    Attributes:
        of_clips: the target of the same as clips of one frame.
    """

    def __init__(self, of_clips: Target) -> None:
        super().__init__()
        self.of_clips = of_clips

    def forward(self, images: Tensor) -> Tensor:
        """Clips of one frame [B, C, 1, H, W] are taken, too, and give the target of clips."""
        target: Tensor = self.of_clips(as_clips(images))
        return target[:, 0] if images.ndim == 4 else target


@dataclass(frozen=True)
class Imported:
    """A model of PySlowFast.

    Attributes:
        model: pre-training: ``model(clips, mask) -> predictions [B, t, h, w, K]``; classification:
            ``model(clips) -> logits [B, L]``. A model for images takes [B, C, H, W] and a mask [B, h, w], and
            predicts [B, h, w, K]; it also takes clips of one frame.
        target: ``target(clips) -> [B, t, h, w, K]``, of images [B, h, w, K]; None for a classifier.
        report: what was loaded, and what was ignored.
        clip: how its clips are cut and tested.
        mask: what is hidden in pre-training; None for a classifier.
    """

    model: nn.Module
    target: Target | ImageTarget | None
    report: ImportReport
    clip: ClipFacts
    mask: MaskFacts | None


def load_slowfast(
    config_path: str | os.PathLike[str], checkpoint_path: str | os.PathLike[str], *, weights_key: str = ""
) -> Imported:
    """Build the model of a PySlowFast YAML and load its checkpoint (``.pyth``).

    Supported are MViTv2 and plain vision transformers, the latter also for images (``MVIT.PATCH_2D``), in
    pre-training by mask tokens (``MODEL.MODEL_NAME: MaskMViT``, HOG or pixels), in classification (``MViT``),
    and the masked autoencoders of video (``MASK.MAE_ON``). Any other option that would change the model is
    refused by name. :mod:`~videomaskfeat.interop.slowfast_keys` has all keys.

    Args:
        config_path: the YAML; absent keys have PySlowFast's defaults.
        checkpoint_path: a checkpoint of the same model. No code inside it is run.
        weights_key: which weights of a checkpoint that holds several; see
            :func:`~videomaskfeat.models.weights.read_weights`.

    Returns:
        Model (in evaluation mode), target, report, and how clips are cut and hidden.

    Raises:
        UserError: a file is missing or damaged, an option is unknown or unsupported, or the weights do not
            fit the YAML.
    """
    path = os.fspath(config_path)
    written = read_yaml(path)
    reader = _reader_of(path, written)
    options, ignored = typed_options(path, written, reader.keys)
    for key, wanted in reader.required.items():
        if options[key] != wanted:
            raise UserError(
                f"{path}: {key} is {options[key]!r} and only {wanted!r} is read here ({reader.kind})"
            )
    model, target = reader.build(path, options)
    weights = load_weights(model, checkpoint_path, key=weights_key, allow_unused=reader.allow_unused)
    return Imported(
        model.eval(),
        ImageTarget(target) if target is not None and options["MVIT.PATCH_2D"] else target,
        ImportReport(reader.kind, weights, ignored),
        clip_facts(path, options),
        None if target is None else mask_facts(path, options),
    )


@dataclass(frozen=True)
class _Reader:
    """How the YAMLs of one MODEL_NAME are read: keys with defaults, values required, weights unused."""

    kind: str
    keys: Mapping[str, Any]
    required: Mapping[str, Any]
    build: Callable[[str, Options], tuple[nn.Module, Target | None]]
    allow_unused: tuple[str, ...] = ()


def _reader_of(path: str, written: Mapping[str, Any]) -> _Reader:
    if not any(key.startswith("MODEL.") for key in written):
        raise UserError(
            f"{path}: is not a PySlowFast YAML: it has no section MODEL; give the YAML that the checkpoint "
            "was trained with"
        )
    name = written.get("MODEL.MODEL_NAME", "SlowFast")
    if not isinstance(name, str) or name not in _READERS:
        architecture = written.get("MODEL.ARCH")
        detail = f" (MODEL.ARCH {show_text(repr(architecture))})" if architecture else ""
        raise UserError(
            f"{path}: MODEL.MODEL_NAME {show_text(repr(name))}{detail} is not read; known kinds: "
            + ", ".join(f"{key} ({reader.kind})" for key, reader in _READERS.items() if key != "MAE")
        )
    return _READERS["MAE" if name == "MaskMViT" and written.get("MASK.MAE_ON") is True else name]


def _build_maskfeat(path: str, options: Options) -> tuple[nn.Module, Target]:
    """Mask tokens before MViTv2 or a vision transformer, with the HOG or the pixel target."""
    encoder = _shortened(path, options, encoder_arguments(path, options))
    output_stride = encoder["cube_stride"]
    if not is_plain(options):
        pools = len(encoder["q_pool_at"])
        strides = zip(output_stride, encoder["q_pool_stride"], strict=True)
        output_stride = as_triple(cube * step**pools for cube, step in strides)
    target: Target
    if options["MASK.PRED_HOG"]:
        target = HogTarget(_HOG_BINS, _HOG_CELL, encoder["cube_stride"], output_stride)
    else:
        target = _pixels(path, options, output_stride)
    name = _nearest_name("pre-training", options, encoder)
    return create_unset(name, **encoder, values_per_token=target.values_per_token), target


def _build_mae(path: str, options: Options) -> tuple[nn.Module, Target]:
    """A masked autoencoder on a vision transformer."""
    if not is_plain(options):
        raise UserError(f"{path}: MASK.MAE_ON True with pooling (MVIT.POOL_Q_STRIDE): {dense_form()}")
    encoder = _shortened(path, options, encoder_arguments(path, options))
    target = _pixels(path, options, encoder["cube_stride"])
    decoder = _decoder_arguments(path, options)
    name = _nearest_name("MAE", options, encoder)
    return create_unset(name, **encoder, **decoder, values_per_token=target.values_per_token), target


def _build_classifier(path: str, options: Options) -> tuple[nn.Module, None]:
    """A classifier on MViTv2, in MaskFeat's form or in that of the supervised models, or on a ViT."""
    encoder = encoder_arguments(path, options)
    head = _head_arguments(path, options)
    return create_unset(_nearest_name("classification", options, encoder), **encoder, **head), None


def _nearest_name(task: str, options: Options, encoder: Mapping[str, Any]) -> str:
    """The named model of this depth and width, or of this depth; all arguments are given anyway."""
    if is_plain(options):
        kind = "image" if options["MVIT.PATCH_2D"] else "plain"
    else:
        kind = "mlp" if task == "classification" and encoder["widen_in"] == "mlp" else "pooling"
    names = NAMES[task, kind]
    same = [name for name in names if MODELS[name].arguments["depth"] == encoder["depth"]]
    same.sort(key=lambda name: MODELS[name].arguments["width"] != encoder["width"])
    return same[0] if same else names[0]


def _pixels(path: str, options: Options, output_stride: Triple) -> PixelTarget:
    """The pixel target; refused are images, whose order differs, and frames that PySlowFast does not read."""
    if options["MVIT.PATCH_2D"]:
        raise UserError(
            f"{path}: MASK.PRED_HOG False with MVIT.PATCH_2D True: pixels of images lie in another order "
            "there and are not read; HOG is"
        )
    first = options["MASK.TIME_STRIDE_LOSS"]
    if not first and not options["MASK.MAE_ON"]:
        raise UserError(f"{path}: MASK.TIME_STRIDE_LOSS False is read with MASK.MAE_ON True alone")
    return PixelTarget(
        normalised=options["MASK.NORM_PRED_PIXEL"],
        frames="first" if first else "all",
        output_stride=output_stride,
    )


_READERS = {
    "MaskMViT": _Reader(
        kind="MaskFeat pre-training",
        keys={**ENCODER, **PRETRAINING, **CLIP},
        required={
            "MASK.ENABLE": True,
            "MASK.MAE_ON": False,
            "MASK.MAE_RND_MASK": False,
            "MASK.HEAD_TYPE": "separate",
        },
        build=_build_maskfeat,
        # The Sobel kernels of PySlowFast's HOG layer are in its checkpoints; ours are part of the target.
        allow_unused=("hogs.*.weight_x", "hogs.*.weight_y"),
    ),
    "MAE": _Reader(
        kind="MAE pre-training",
        keys={**ENCODER, **PRETRAINING, **DECODER, **CLIP},
        required={
            "MASK.ENABLE": True,
            "MASK.MAE_ON": True,
            "MASK.PRED_HOG": False,
            "MASK.HEAD_TYPE": "separate_xformer",
        },
        build=_build_mae,
    ),
    "MViT": _Reader(
        kind="classification",
        keys={**ENCODER, **CLASSIFICATION, **CLIP},
        required={},
        build=_build_classifier,
    ),
}


def is_plain(options: Options) -> bool:
    """Whether no block pools its tokens or changes their width, as in our ViT."""
    return not any(options[key] for key in _POOLING)


def encoder_arguments(path: str, options: Options) -> dict[str, Any]:
    """The arguments of our MViT or ViT for PySlowFast's MVIT section.

    Raises:
        UserError: an option that our encoder does not have.
    """
    if options["DATA.TRAIN_CROP_SIZE"] != options["DATA.TEST_CROP_SIZE"]:
        raise UserError(
            f"{path}: DATA.TRAIN_CROP_SIZE and TEST_CROP_SIZE differ; an MViT of PySlowFast has one size"
        )
    crop = options["DATA.TRAIN_CROP_SIZE"]
    channels = options["DATA.INPUT_CHANNEL_NUM"]
    if not channels:
        raise UserError(f"{path}: DATA.INPUT_CHANNEL_NUM is empty; give the number of channels, such as [3]")
    absolute = "none"
    if options["MVIT.USE_ABS_POS"]:
        absolute = "separable" if options["MVIT.SEP_POS_EMBED"] else "joint"
    common = {
        "clip_size": (options["DATA.NUM_FRAMES"], crop, crop),
        "in_channels": channels[0],
        "depth": options["MVIT.DEPTH"],
        "width": options["MVIT.EMBED_DIM"],
        "heads": options["MVIT.NUM_HEADS"],
        "mlp_ratio": options["MVIT.MLP_RATIO"],
        "qkv_bias": options["MVIT.QKV_BIAS"],
        "class_token": options["MVIT.CLS_EMBED_ON"],
        "absolute_positions": absolute,
        "drop_path": options["MVIT.DROPPATH_RATE"],
        "checkpoint_blocks": options["MODEL.ACT_CHECKPOINT"],
    }
    if is_plain(options):
        return {**common, "cube_stride": _cubes(path, options)}
    if options["MVIT.PATCH_2D"]:
        raise UserError(
            f"{path}: MVIT.PATCH_2D is True and only False is read with pooling (MVIT.POOL_Q_STRIDE); models "
            "for images are read where they are plain vision transformers"
        )
    q_pool_at, q_pool_stride = _query_pooling(path, options)
    return {
        **common,
        "widen_at": _widening(path, options),
        "widen_in": "attention" if options["MVIT.DIM_MUL_IN_ATT"] else "mlp",
        "q_pool_at": q_pool_at,
        "q_pool_stride": q_pool_stride,
        "kv_stride": _triple(path, options, "MVIT.POOL_KV_STRIDE_ADAPTIVE"),
        "pool_kernel": _triple(path, options, "MVIT.POOL_KVQ_KERNEL"),
        "cube_kernel": _triple(path, options, "MVIT.PATCH_KERNEL"),
        "cube_stride": _triple(path, options, "MVIT.PATCH_STRIDE"),
        "cube_padding": _triple(path, options, "MVIT.PATCH_PADDING"),
        "relative_space": options["MVIT.REL_POS_SPATIAL"],
        "relative_time": options["MVIT.REL_POS_TEMPORAL"],
        "residual_pooling": options["MVIT.RESIDUAL_POOLING"],
    }


def _shortened(path: str, options: Options, encoder: Mapping[str, Any]) -> dict[str, Any]:
    """The encoder up to the block that predicts: PySlowFast deletes the blocks after it."""
    last = options["MASK.PRETRAIN_DEPTH"]
    if len(last) != 1 or not 0 <= last[0] < encoder["depth"]:
        raise UserError(
            f"{path}: MASK.PRETRAIN_DEPTH {last} is not supported; one block of 0..{encoder['depth'] - 1} is"
        )
    depth = last[0] + 1
    if is_plain(options):
        return {**encoder, "depth": depth}
    # A width that doubles in the perceptron of the last block kept belongs to the next one, hence depth
    # itself for "mlp".
    widen_limit = depth if encoder["widen_in"] == "mlp" else depth - 1
    return {
        **encoder,
        "depth": depth,
        "widen_at": tuple(block for block in encoder["widen_at"] if block <= widen_limit),
        "q_pool_at": tuple(block for block in encoder["q_pool_at"] if block < depth),
    }


def _decoder_arguments(path: str, options: Options) -> dict[str, Any]:
    """The arguments of our MAE's decoder."""
    width, depth = options["MASK.DECODER_EMBED_DIM"], options["MASK.DECODER_DEPTH"]
    if options["MASK.DECODER_SEP_POS_EMBED"] or not options["MVIT.USE_ABS_POS"]:
        raise UserError(
            f"{path}: MASK.DECODER_SEP_POS_EMBED True and MVIT.USE_ABS_POS False are not supported; the "
            "decoder has one learned table of positions"
        )
    if depth < 1 or width < 64:
        raise UserError(
            f"{path}: MASK.DECODER_DEPTH {depth} must be at least 1, and MASK.DECODER_EMBED_DIM {width} at "
            "least 64, the width of a head"
        )
    return {"decoder_depth": depth, "decoder_width": width, "decoder_heads": width // 64}


def _head_arguments(path: str, options: Options) -> dict[str, Any]:
    """The arguments of our Classifier besides the encoder's."""
    activation = options["MODEL.HEAD_ACT"]
    if activation not in ("softmax", "none"):
        raise UserError(
            f"{path}: MODEL.HEAD_ACT {activation!r} is not supported; "
            "'softmax' and 'none' are, for one class a clip"
        )
    mean = options["MVIT.USE_MEAN_POOLING"]
    if not mean and not options["MVIT.CLS_EMBED_ON"]:
        # PySlowFast then averages after the last norm, which no published model does.
        raise UserError(
            f"{path}: MVIT.CLS_EMBED_ON False needs MVIT.USE_MEAN_POOLING True here: without a class token "
            "the mean over the tokens is what is left to classify from"
        )
    return {
        "classes": options["MODEL.NUM_CLASSES"],
        "head": "mean" if mean else "token",
        "dropout": options["MODEL.DROPOUT_RATE"],
        "head_scale": options["MVIT.HEAD_INIT_SCALE"],
    }


def _query_pooling(path: str, options: Options) -> tuple[tuple[int, ...], Triple]:
    """Blocks that pool their queries, and their common stride."""
    rows = options["MVIT.POOL_Q_STRIDE"]
    depth = options["MVIT.DEPTH"]
    listed = {row[0]: row[1:] for row in rows if len(row) == 4 and all(type(entry) is int for entry in row)}
    if len(rows) != depth or len(listed) != depth or set(listed) != set(range(depth)):
        raise UserError(
            f"{path}: MVIT.POOL_Q_STRIDE must list each of the {depth} blocks once as [block, t, h, w]; "
            "blocks without query pooling (MViTv1) are not supported"
        )
    strides = {stride for stride in listed.values() if stride != (1, 1, 1)}
    if len(strides) > 1:
        raise UserError(f"{path}: MVIT.POOL_Q_STRIDE has several strides {sorted(strides)}; one is supported")
    at = tuple(sorted(block for block, stride in listed.items() if stride != (1, 1, 1)))
    return at, as_triple(strides.pop() if strides else (1, 1, 1))


def _widening(path: str, options: Options) -> tuple[int, ...]:
    """Blocks at which width and heads double."""
    widths, heads = options["MVIT.DIM_MUL"], options["MVIT.HEAD_MUL"]
    if sorted(widths) != sorted(heads) or any(len(row) != 2 or row[1] != 2 for row in widths):
        raise UserError(
            f"{path}: MVIT.DIM_MUL {widths} and MVIT.HEAD_MUL {heads} must be equal, with factor 2"
        )
    return tuple(sorted(block for block, _ in widths))


def _cubes(path: str, options: Options) -> Triple:
    """The cubes of a plain vision transformer; for images they have one frame."""
    image = options["MVIT.PATCH_2D"]
    kernel, stride, padding = (
        _patch(path, options, f"MVIT.PATCH_{name}") for name in ("KERNEL", "STRIDE", "PADDING")
    )
    if kernel != stride or any(padding[image:]):
        raise UserError(
            f"{path}: MVIT.PATCH_KERNEL {kernel}, PATCH_STRIDE {stride} and PATCH_PADDING {padding} (time, "
            "height, width): a vision transformer's stem has the kernel of its stride and no padding"
        )
    if image and options["DATA.NUM_FRAMES"] != 1:
        raise UserError(
            f"{path}: DATA.NUM_FRAMES {options['DATA.NUM_FRAMES']} with MVIT.PATCH_2D True; an image has 1"
        )
    for key in ("MVIT.REL_POS_SPATIAL", "MVIT.REL_POS_TEMPORAL", "MVIT.RESIDUAL_POOLING"):
        if options[key]:
            raise UserError(f"{path}: {key} True is not supported without pooling (MVIT.POOL_Q_STRIDE)")
    return stride


def _patch(path: str, options: Options, key: str) -> Triple:
    """Three numbers; images have two, height and width."""
    value = options[key]
    if options["MVIT.PATCH_2D"] and len(value) == 2:
        value = (1, *value)
    return _triple(path, {key: value}, key)


def _triple(path: str, options: Options, key: str) -> Triple:
    value = options[key]
    if len(value) != 3 or any(type(entry) is not int for entry in value):
        raise UserError(f"{path}: {key} {value} must be three integers (time, height, width)")
    return as_triple(value)


def clip_facts(path: str, options: Options) -> ClipFacts:
    """Clips and views, in training or testing, as the kind of YAML has them.

    Raises:
        UserError: a value does not fit, such as a list of another length.
    """
    dataset = options["TRAIN.DATASET" if "MODEL.NUM_CLASSES" not in options else "TEST.DATASET"].lower()
    segments = dataset == "ssv2"
    crops, crop = options["TEST.NUM_SPATIAL_CROPS"], options["DATA.TEST_CROP_SIZE"]
    mean, std = (_numbers(path, options, key, 3) for key in ("DATA.MEAN", "DATA.STD"))
    # The frames of SSv2 are pictures that PySlowFast reads as blue, green, red; it normalizes them in that
    # order, and reverses the channels after that.
    if segments:
        mean, std = mean[::-1], std[::-1]
    counts = _numbers(path, options, "TEST.NUM_TEMPORAL_CLIPS") or (options["TEST.NUM_ENSEMBLE_VIEWS"],)
    # One center crop is cut from a larger frame; three lie along the longer side, as always in SSv2.
    whole = segments or crops > 1
    short_side = crop if whole else int(_numbers(path, options, "DATA.TRAIN_JITTER_SCALES", 2)[0])
    try:
        clip = ClipRecipe(
            frames=options["DATA.NUM_FRAMES"],
            stride=options["DATA.SAMPLING_RATE"],
            crop=crop,
            target_fps=options["DATA.TARGET_FPS"],
            mean=mean[0] if len(set(mean)) == 1 else mean,
            std=std[0] if len(set(std)) == 1 else std,
        )
    except UserError as error:
        raise UserError(f"{path}: DATA: {error}") from error
    return ClipFacts(
        recipe=ClassifyRecipe(
            clip,
            sampling="segments" if segments else "clip",
            views=1 if segments else int(max(counts)),  # all views of segments are equal in testing
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


def mask_facts(path: str, options: Options) -> MaskFacts:
    """What the loader of pre-training hides, or an MAE itself.

    Raises:
        UserError: a window that is not three numbers.
    """
    ratio, tube = options["AUG.MASK_RATIO"], options["AUG.MASK_TUBE"]
    if options["MVIT.PATCH_2D"] or options["MASK.MAE_ON"]:
        # Drawn on the grid of tokens; the window has no effect.
        step = _numbers(path, options, "MVIT.PATCH_STRIDE")[-2:]
        rows, columns = (int(options["DATA.TRAIN_CROP_SIZE"] // length) for length in step)
        if options["MVIT.PATCH_2D"]:
            return MaskFacts("block", ratio, (1, rows, columns))
        frames = int(options["DATA.NUM_FRAMES"] // options["MVIT.PATCH_STRIDE"][0])
        return MaskFacts("random_tube" if tube else "random", ratio, (frames, rows, columns))
    window = _numbers(path, options, "AUG.MASK_WINDOW_SIZE", 3)
    kind = "tube" if tube else "frame" if options["AUG.MASK_FRAMES"] else "cube"
    return MaskFacts(kind, ratio, (int(window[0]), int(window[1]), int(window[2])))


def _numbers(path: str, options: Options, key: str, count: int | None = None) -> tuple[float, ...]:
    value = options[key]
    plain = all(isinstance(x, int | float) and not isinstance(x, bool) for x in value)
    if not plain or count not in (None, len(value)):
        wanted = "numbers" if count is None else f"{count} numbers"
        raise UserError(f"{path}: {key} {list(value)} must be {wanted}")
    return tuple(map(float, value))
