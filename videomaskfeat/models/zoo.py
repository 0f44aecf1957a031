"""All named models: their classes and arguments, and functions that build them."""

from __future__ import annotations

import functools
import os
import types
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import nn

from videomaskfeat import import_object
from videomaskfeat.errors import UserError, check_name
from videomaskfeat.models.encoder_base import Encoder
from videomaskfeat.models.limits import TRAINED, argument_defaults, build_checked
from videomaskfeat.plugins import import_class, is_plugin

MVIT, VIT = "videomaskfeat.models.mvit:MViT", "videomaskfeat.models.vit:ViT"
MASKFEAT, MAE = "videomaskfeat.models.maskfeat:MaskFeat", "videomaskfeat.models.mae:MAE"
HIERA, HIERA_MAE = "videomaskfeat.models.hiera:Hiera", "videomaskfeat.models.hiera_mae:HieraMAE"
CLASSIFIER, DETECTOR = "videomaskfeat.models.heads:Classifier", "videomaskfeat.models.detector:Detector"


@dataclass(frozen=True)
class NamedModel:
    """The class of a named model, imported on first use, and its arguments.

    Attributes:
        classes: "module:class" of the model, or of a head and of the encoder below it.
        arguments: differences from the defaults of the class.
    """

    classes: tuple[str, ...]
    arguments: dict[str, Any]

    @property
    def build(self) -> type[Encoder]:
        """The class of the model."""
        *head, cls = (import_object(entry) for entry in self.classes)
        return with_head(head[0], cls) if head else cls


@functools.cache
def with_head(head: type[Encoder], encoder: type[Encoder]) -> type[Encoder]:
    """Combine a head (MaskFeat, Classifier or Detector) with an encoder, for example to ``MViTMaskFeat``."""
    doc = {"__doc__": f":class:`{head.__name__}` on :class:`{encoder.__name__}`.", "__module__": __name__}
    name = f"{encoder.__name__}{head.__name__}"
    return types.new_class(name, (head, encoder), exec_body=lambda namespace: namespace.update(doc))


def family(
    name: str, encoder: str, arguments: Mapping[str, Any], *, encoder_name: str, detector: bool = True
) -> dict[str, NamedModel]:
    """The named models of one encoder.

    Args:
        name: name of the classifier; "maskfeat_NAME" is the pre-training model, "NAME_detector" the detector.
        encoder: "module:class" of the encoder.
        arguments: arguments that differ from the defaults of that class.
        encoder_name: ``encoder_name`` of that class, the name of the encoder without a head.
        detector: include the detector.
    """
    classes = {
        encoder_name: (encoder,),
        name: (CLASSIFIER, encoder),
        f"maskfeat_{name}": (MASKFEAT, encoder),
    }
    if detector:
        classes[f"{name}_detector"] = (DETECTOR, encoder)
    return {full_name: NamedModel(entries, dict(arguments)) for full_name, entries in classes.items()}


_S = {"depth": 16, "width": 96, "heads": 1, "widen_at": (1, 3, 14)}
_B = {"depth": 24, "width": 96, "heads": 1, "widen_at": (2, 5, 21)}
_L = {"depth": 48, "width": 144, "heads": 2, "widen_at": (2, 8, 44)}
# For CPUs: 8 frames of 64x64. Cubes of 8x8 pixels, the size of a HOG cell, make a quarter of the tokens of
# the published 4x4, and one query pooling gives the same 16-pixel positions.
_NANO = {
    "depth": 6,
    "width": 64,
    "heads": 1,
    "widen_at": (1,),
    "clip_size": (8, 64, 64),
    "cube_kernel": (3, 12, 12),
    "cube_stride": (2, 8, 8),
    "cube_padding": (1, 2, 2),
    "kv_stride": (1, 2, 2),
    "linear_std": 0.1,
}
# For comparisons on CPUs: 4 frames of 32x32, in 2x4x4 cubes of 8x8 pixels. There is no query pooling, since
# 2x2x2 output positions would be too few.
_PICO = {**_NANO, "depth": 4, "clip_size": (4, 32, 32), "kv_stride": (1, 1, 1)}

# With cubes of the size of a HOG cell.
_VIT_NANO = {
    "depth": 6,
    "width": 96,
    "heads": 3,
    "clip_size": (8, 64, 64),
    "cube_stride": (2, 8, 8),
    "linear_std": 0.1,
}
_VIT: dict[str, dict[str, Any]] = {
    "pico": {**_VIT_NANO, "depth": 4, "clip_size": (4, 32, 32)},
    "nano": _VIT_NANO,
    "s": {"depth": 12, "width": 384, "heads": 6},
    "b": {"depth": 12, "width": 768, "heads": 12},
    "l": {"depth": 24, "width": 1024, "heads": 16},
    "h": {"depth": 32, "width": 1280, "heads": 16},
}
# An image is a clip of one frame.
_VIT_IMAGE = {
    size: {
        **video,
        "clip_size": (1, *video.get("clip_size", (16, 224, 224))[1:]),
        "cube_stride": (1, *video.get("cube_stride", (2, 16, 16))[1:]),
        "absolute_positions": "joint",
    }
    for size, video in _VIT.items()
}
_MAE_IMAGE: dict[str, Any] = {"decoder_depth": 8, "decoder_heads": 16}
_MAE_SMALL: dict[str, Any] = {
    "decoder_depth": 2,
    "decoder_width": 64,
    "decoder_heads": 2,
    "values_per_token": 192,
}

HIERA_SIZES: dict[str, dict[str, Any]] = {
    # 4 frames of 32x32 in mask units of 2x16x16 pixels.
    "pico": {
        "stages": (1, 2, 2),
        "width": 32,
        "heads": 1,
        "q_pool": 2,
        "mask_unit": (1, 4, 4),
        "unit_attention": (True, True, False),
        "clip_size": (4, 32, 32),
        "linear_std": 0.1,
    },
    "t": {"stages": (1, 2, 7, 2), "width": 96, "heads": 1},
    "s": {"stages": (1, 2, 11, 2), "width": 96, "heads": 1},
    "b": {"stages": (2, 3, 16, 3), "width": 96, "heads": 1},
    "bplus": {"stages": (2, 3, 16, 3), "width": 112, "heads": 2},
    "l": {"stages": (2, 6, 36, 4), "width": 144, "heads": 2},
    "h": {"stages": (2, 6, 36, 4), "width": 256, "heads": 4},
}
"""Hiera's sizes (arXiv 2306.00989, table 2, and its published code)."""
_HIERA_IMAGE: dict[str, Any] = {
    "cube_kernel": (1, 7, 7),
    "cube_stride": (1, 4, 4),
    "cube_padding": (0, 3, 3),
    "absolute_positions": "joint",
}

# Supervised models change the width in the attention and classify from the class token. MaskFeat pre-training
# omits the last query pooling, so that predictions have 16-pixel positions; fine-tuning includes it.
# Detectors omit it, because boxes are small.
_SUPERVISED = {"widen_in": "attention", "head": "token"}
_MVIT: dict[str, tuple[dict[str, Any], tuple[int, ...], tuple[int, ...]]] = {
    # size: arguments, query poolings in pre-training, and in fine-tuning
    "pico": (_PICO, (), ()),
    "nano": (_NANO, (1,), (1,)),
    "s": (_S, (1, 3), (1, 3, 14)),
    "l": (_L, (2, 8), (2, 8, 44)),
}
_MVIT_MASKFEAT, _MVIT_CLASSIFIER, _MVIT_DETECTOR = (MASKFEAT, MVIT), (CLASSIFIER, MVIT), (DETECTOR, MVIT)
MODELS: dict[str, NamedModel] = {
    "mvitv2_pico": NamedModel(_MVIT_CLASSIFIER, {**_PICO, **_SUPERVISED, "q_pool_at": ()}),
    "mvitv2_nano": NamedModel(_MVIT_CLASSIFIER, {**_NANO, **_SUPERVISED, "q_pool_at": (1,)}),
    "mvitv2_s": NamedModel(_MVIT_CLASSIFIER, {**_S, **_SUPERVISED, "q_pool_at": (1, 3, 14)}),
    "mvitv2_b": NamedModel(
        _MVIT_CLASSIFIER, {**_B, **_SUPERVISED, "q_pool_at": (2, 5, 21), "clip_size": (32, 224, 224)}
    ),
    "mvitv2_l": NamedModel(
        _MVIT_CLASSIFIER, {**_L, **_SUPERVISED, "q_pool_at": (2, 8, 44), "clip_size": (40, 312, 312)}
    ),
}
for _size, (_shared, _before, _after) in _MVIT.items():
    _name, _pretrained = f"maskfeat_mvitv2_{_size}", {**_shared, "widen_in": "mlp", "q_pool_at": _before}
    MODELS[_name] = NamedModel(_MVIT_MASKFEAT, _pretrained)
    MODELS[f"{_name}_classifier"] = NamedModel(
        _MVIT_CLASSIFIER, {**_pretrained, "q_pool_at": _after, "head": "mean"}
    )
    MODELS[f"{_name}_detector"] = NamedModel(_MVIT_DETECTOR, _pretrained)
for _size, _video in _VIT.items():
    _image, _small = _VIT_IMAGE[_size], _size in ("pico", "nano")
    MODELS |= family(f"vit_{_size}", VIT, _video, encoder_name="vit_encoder")
    MODELS |= family(f"vit_{_size}_image", VIT, _image, encoder_name="vit_encoder", detector=False)
    MODELS[f"mae_vit_{_size}"] = NamedModel((MAE,), {**_video, **_MAE_SMALL} if _small else _video)
    MODELS[f"mae_vit_{_size}_image"] = NamedModel(
        (MAE,), {**_image, **(_MAE_SMALL if _small else _MAE_IMAGE)}
    )
# Pre-training and detectors pool once less, so that outputs have 16-pixel positions (pico: 8).
for _size, _video in HIERA_SIZES.items():
    _side = _video.get("clip_size", (16, 224, 224))[1]
    _image = {**_video, **_HIERA_IMAGE, "clip_size": (1, _side, _side)}
    _dense = {"q_pool": _video.get("q_pool", 3) - 1}
    _decoder = {**_dense, **(_MAE_SMALL if _size == "pico" else {})}
    MODELS[f"hiera_{_size}"] = NamedModel((CLASSIFIER, HIERA), _video)
    MODELS[f"hiera_{_size}_image"] = NamedModel((CLASSIFIER, HIERA), _image)
    MODELS[f"hiera_{_size}_detector"] = NamedModel((DETECTOR, HIERA), {**_video, **_dense})
    MODELS[f"mae_hiera_{_size}"] = NamedModel((HIERA_MAE,), {**_video, **_decoder})
    MODELS[f"mae_hiera_{_size}_image"] = NamedModel((HIERA_MAE,), {**_image, **_decoder})
# An encoder without a head; its weights file contains all arguments.
MODELS["mvitv2_encoder"] = NamedModel((MVIT,), {**_S, "widen_in": "mlp", "q_pool_at": (1, 3, 14)})
MODELS["vit_encoder"] = NamedModel((VIT,), _VIT["b"])
MODELS["hiera_encoder"] = NamedModel((HIERA,), HIERA_SIZES["b"])


SIZES = ("pico", "nano", "s", "b", "l", "h")
"""Sizes in the names of models, ascending."""
PLUGIN_HEADS = {"maskfeat": MASKFEAT, "classifier": CLASSIFIER, "detector": DETECTOR}
"""Heads of a plug-in encoder by the third part of its name, ``package.module:Class:HEAD``."""

DENSE_FORM = (
    "an MAE encoder sees the visible tokens only, but MViTv2's pooling needs the whole grid; use the dense "
    "form, with mask tokens at hidden positions: model "
    "maskfeat_mvitv2_s or maskfeat_mvitv2_l with target pixels"
)
"""Reason and remedy, for error messages, if a masked autoencoder on MViTv2 is requested."""


def named_model(name: str) -> NamedModel:
    """A model of :data:`MODELS`, or a plug-in.

    A plug-in is an :class:`~videomaskfeat.models.encoder_base.Encoder`: ``package.module:Class``, or with a
    head of :data:`PLUGIN_HEADS` ``package.module:Class:HEAD``. Its class gets the first name as
    ``encoder_name``.

    Raises:
        UserError: the name or the head is unknown, or the plug-in cannot be imported or is no encoder.
    """
    if not is_plugin(name):
        check_name("model", name, MODELS)
        return MODELS[name]
    module, cls, *head = name.split(":", 2)
    if head:
        check_name(f"model {name!r}: head", head[0], PLUGIN_HEADS)
    entry = f"{module}:{cls}"
    encoder = import_class("model", entry, Encoder)
    if vars(encoder).get("encoder_name") not in MODELS:
        encoder.encoder_name = entry
    return NamedModel((*(PLUGIN_HEADS[one] for one in head), entry), {})


def with_default_head(name: str, head: str) -> str:
    """The name of a plug-in encoder with a head of :data:`PLUGIN_HEADS`; other names are unchanged.

    Raises:
        UserError: as :func:`named_model`.
    """
    if not is_plugin(name) or name.count(":") > 1:
        return name
    headed = (CLASSIFIER, DETECTOR, "videomaskfeat.models.maskfeat:MaskedModel")
    has_head = issubclass(named_model(name).build, tuple(import_object(entry) for entry in headed))
    return name if has_head else f"{name}:{head}"


def model_of_size(name: str, size: str) -> str:
    """The name of the model of another size, of the same family and kind.

    >>> model_of_size("maskfeat_mvitv2_s", "nano")
    'maskfeat_mvitv2_nano'

    Raises:
        UserError: the family has no such size, or no sizes.
    """
    words = name.split("_")
    place = next((place for place, word in enumerate(words) if word in SIZES), None)
    if name not in MODELS or place is None:
        raise UserError(
            f"model.name {name!r} has no sizes; set model.name to a model of `videomaskfeat models`"
        )
    names = {one: "_".join([*words[:place], one, *words[place + 1 :]]) for one in SIZES}
    known = {one: other for one, other in names.items() if other in MODELS}
    if size not in known:
        family = "_".join([*words[:place], "SIZE", *words[place + 1 :]])
        raise UserError(f"size {size!r} is unknown; the sizes of {family} are {', '.join(known)}")
    return known[size]


def list_models(pattern: str = "*") -> list[str]:
    """The names of :func:`create_model` that match a pattern, sorted.

    >>> list_models("mae_vit_[bl]")
    ['mae_vit_b', 'mae_vit_l']

    Args:
        pattern: ``*`` stands for any letters, ``?`` for one, ``[ab]`` for one of several.
    """
    return sorted(name for name in MODELS if fnmatchcase(name, pattern))


def create_model(
    name: str,
    *,
    num_classes: int | None = None,
    weights: str | os.PathLike[str] | None = None,
    **arguments: Any,
) -> Encoder:
    """Create a named model; new weights are drawn from torch's global generator (seed it first).

    >>> create_model("maskfeat_mvitv2_s", drop_path=0.1)  # doctest: +SKIP
    >>> create_model("vit_b", num_classes=12, weights="runs/first/weights.safetensors")  # doctest: +SKIP

    Args:
        name: a key of :data:`MODELS`: maskfeat_mvitv2_{s,l} (pre-training), maskfeat_mvitv2_{s,l}_classifier
            (fine-tuning), maskfeat_mvitv2_{s,l}_detector (action detection), mvitv2_{s,b,l} (supervised
            classifiers); maskfeat_vit_{s,b,l,h}, mae_vit_{s,b,l,h} (pre-training), vit_{s,b,l,h}
            (fine-tuning), vit_{s,b,l,h}_detector, and all ViTs except detectors for images with the suffix
            _image; hiera_{t,s,b,bplus,l,h} and mae_hiera_{t,...,h}, also with _image; for CPUs a nano
            (8x64x64; not of Hiera) and a pico size (4x32x32) of each kind; mvitv2_encoder, vit_encoder and
            hiera_encoder without a head. Or a plug-in, see :func:`named_model`.
        num_classes: number of classes of a classifier, or of actions of a detector: the argument ``classes``.
        weights: file of initial weights; see :func:`~videomaskfeat.models.loading.load_weights`. Weights
            outside the encoder may be missing, unused or of another shape, and a line of the log reports the
            use of all. None: new weights.
        arguments: arguments that differ from the named model's; see :class:`~videomaskfeat.models.mvit.MViT`,
            :class:`~videomaskfeat.models.vit.ViT`, :class:`~videomaskfeat.models.maskfeat.MaskFeat`,
            :class:`~videomaskfeat.models.mae.MAE`, :class:`~videomaskfeat.models.hiera.Hiera`,
            :class:`~videomaskfeat.models.hiera_mae.HieraMAE`,
            :class:`~videomaskfeat.models.heads.Classifier` and
            :class:`~videomaskfeat.models.detector.Detector`. Lists are converted to tuples.

    Returns:
        The model in training mode; ``created_as`` is (name, arguments), for
        :func:`~videomaskfeat.models.saving.save_model`.

    Raises:
        UserError: an unknown name or argument, a value of the wrong type or out of range, a model whose
            training needs more memory than the machine has, or weights that do not fit.
    """
    if num_classes is not None:
        if "classes" in arguments:
            raise UserError(f"model {name!r}: num_classes and classes are the same; set one of them")
        name = with_default_head(name, "classifier")
        if "classes" not in arguments_of(name):
            raise UserError(
                f"model {name!r} has no classes, so num_classes={num_classes} has no meaning; use a "
                "classifier or a detector, see list_models()"
            )
        arguments["classes"] = num_classes
    model = create_model_from(name, arguments)
    if weights is not None:
        from videomaskfeat.models.loading import load_initial  # imports this module

        load_initial(model, weights)
    return model


def create_unset(name: str, /, **arguments: Any) -> Encoder:
    """:func:`create_model` with undefined weights; all must be loaded afterwards.

    Only the weights must fit into memory. Drawing the initial weights of a large model takes longer than
    reading it from disk.
    """
    with torch.device("meta"):
        model = create_model_from(name, arguments)
    return model.to_empty(device="cpu")


def create_model_from(name: str, arguments: Mapping[str, Any], *, times: int = TRAINED) -> Encoder:
    """:func:`create_model` for arguments from a config or file; an argument may be called "name".

    ``times`` is the required memory as a multiple of the weights; on torch's "meta" device always 1.
    """
    if torch.get_default_device().type == "meta":
        times = 1
    if name.startswith("mae_mvit"):
        raise UserError(f"model {name!r}: {DENSE_FORM}")
    named = named_model(name)
    arguments = {**named.arguments, **arguments}
    return build_checked(named.build, f"model {name!r}", name, arguments, times=times)


def arguments_of(name: str, changes: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """All arguments of ``create_model(name, **changes)``, defaults included."""
    named = named_model(name)
    return {**argument_defaults(named.build), **named.arguments, **(changes or {})}


def encoder_arguments(encoder: type[Encoder], arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a model with a head that belong to its encoder."""
    known = argument_defaults(named_model(encoder.encoder_name).build)
    return {name: value for name, value in arguments.items() if name in known}


def encoder_of(model: nn.Module) -> Encoder:
    """Copy a model's encoder without its head.

    Args:
        model: created by :func:`create_model`; not changed.

    Returns:
        For example "mvitv2_encoder", in evaluation mode, on the CPU, with the same
        :meth:`~videomaskfeat.models.encoder_base.Encoder.features`.

    Raises:
        UserError: the model was not created by ``create_model``, so its arguments are unknown.
    """
    created_as = getattr(model, "created_as", None)
    if created_as is None or not isinstance(model, Encoder):
        raise UserError(
            f"cannot extract the encoder of a {type(model).__name__} that create_model did not create; "
            "create the model with create_model"
        )
    arguments = encoder_arguments(type(model), created_as[1])
    arguments |= {"final_norm": not isinstance(model.norm, nn.Identity), "mean_first": model.mean_first}
    encoder = create_model_from(model.encoder_name, arguments, times=1)
    state = model.state_dict()
    encoder.load_state_dict({name: state[name] for name in encoder.state_dict()})
    return encoder.eval()
