"""Every named model: what it is built of, how it is built, and its encoder alone."""

from __future__ import annotations

import functools
import types
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from videomaskfeat import import_object
from videomaskfeat.errors import UserError, check_name
from videomaskfeat.models.encoder_base import Encoder
from videomaskfeat.models.limits import TRAINED, argument_defaults, build_checked

MVIT, VIT = "videomaskfeat.models.mvit:MViT", "videomaskfeat.models.vit:ViT"
MASKFEAT, MAE = "videomaskfeat.models.maskfeat:MaskFeat", "videomaskfeat.models.mae:MAE"
CLASSIFIER, DETECTOR = "videomaskfeat.models.heads:Classifier", "videomaskfeat.models.detector:Detector"


@dataclass(frozen=True)
class NamedModel:
    """The class of a named model, imported on use, and its arguments.

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
    """A class that puts a head on a kind of encoder, such as ``MViTMaskFeat``.

    Args:
        head: MaskFeat, Classifier or Detector.
        encoder: such as MViT.
    """
    doc = {"__doc__": f":class:`{head.__name__}` on :class:`{encoder.__name__}`.", "__module__": __name__}
    name = f"{encoder.__name__}{head.__name__}"
    return types.new_class(name, (head, encoder), exec_body=lambda namespace: namespace.update(doc))


def family(
    name: str, encoder: str, arguments: Mapping[str, Any], *, encoder_name: str, detector: bool = True
) -> dict[str, NamedModel]:
    """The named models on one encoder.

    Args:
        name: name of the classifier; "maskfeat_NAME" is pre-trained, "NAME_detector" detects actions.
        encoder: "module:class" of the encoder.
        arguments: differences from the defaults of that class.
        encoder_name: ``encoder_name`` of that class, the name of the encoder without a head.
        detector: whether there is a detector.
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
# For CPUs: 8 frames of 64x64. Cubes of 8x8 pixels, the size of a HOG cell, leave a quarter of the tokens that
# the published 4x4 would, and one query pooling gives the same 16-pixel positions.
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

_VIT: dict[str, dict[str, Any]] = {
    # For CPUs as well, with cubes of the size of a HOG cell.
    "nano": {
        "depth": 6,
        "width": 96,
        "heads": 3,
        "clip_size": (8, 64, 64),
        "cube_stride": (2, 8, 8),
        "linear_std": 0.1,
    },
    "s": {"depth": 12, "width": 384, "heads": 6},
    "b": {"depth": 12, "width": 768, "heads": 12},
    "l": {"depth": 24, "width": 1024, "heads": 16},
    "h": {"depth": 32, "width": 1280, "heads": 16},
}
# An image is a clip of one frame.
_VIT_IMAGE = {
    size: {
        **video,
        "clip_size": (1, 64, 64) if size == "nano" else (1, 224, 224),
        "cube_stride": (1, 8, 8) if size == "nano" else (1, 16, 16),
        "absolute_positions": "joint",
    }
    for size, video in _VIT.items()
}
_MAE_IMAGE: dict[str, Any] = {"decoder_depth": 8, "decoder_heads": 16}
_MAE_NANO: dict[str, Any] = {
    "decoder_depth": 2,
    "decoder_width": 64,
    "decoder_heads": 2,
    "values_per_token": 192,
}

# Supervised models change width in attention, classify from the class token, and pool the queries once more
# than the MaskFeat ones in pre-training, whose last query pooling is off so that the predictions keep
# 16-pixel positions. Fine-tuning switches it on. Detectors keep the maps of pre-training: boxes are small.
_SUPERVISED = {"widen_in": "attention", "head": "token"}
_MVIT: dict[str, tuple[dict[str, Any], tuple[int, ...], tuple[int, ...]]] = {
    # size: arguments, query poolings in pre-training, and in fine-tuning
    "nano": (_NANO, (1,), (1,)),
    "s": (_S, (1, 3), (1, 3, 14)),
    "l": (_L, (2, 8), (2, 8, 44)),
}
_MVIT_MASKFEAT, _MVIT_CLASSIFIER, _MVIT_DETECTOR = (MASKFEAT, MVIT), (CLASSIFIER, MVIT), (DETECTOR, MVIT)
MODELS: dict[str, NamedModel] = {
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
    _image, _nano = _VIT_IMAGE[_size], _size == "nano"
    MODELS |= family(f"vit_{_size}", VIT, _video, encoder_name="vit_encoder")
    MODELS |= family(f"vit_{_size}_image", VIT, _image, encoder_name="vit_encoder", detector=False)
    MODELS[f"mae_vit_{_size}"] = NamedModel((MAE,), {**_video, **_MAE_NANO} if _nano else _video)
    MODELS[f"mae_vit_{_size}_image"] = NamedModel((MAE,), {**_image, **(_MAE_NANO if _nano else _MAE_IMAGE)})
# An encoder without a head; a weights file of one holds every argument.
MODELS["mvitv2_encoder"] = NamedModel((MVIT,), {**_S, "widen_in": "mlp", "q_pool_at": (1, 3, 14)})
MODELS["vit_encoder"] = NamedModel((VIT,), _VIT["b"])


def dense_form() -> str:
    """Why MViTv2 has no masked autoencoder here, and what there is instead, for messages."""
    return (
        "an MAE encoder sees the visible tokens alone, and MViTv2's pooling needs the whole grid; take the "
        "dense form, a mask token in the hidden places and pixels predicted: model maskfeat_mvitv2_s or "
        "maskfeat_mvitv2_l with target pixels"
    )


def create_model(name: str, **arguments: Any) -> nn.Module:
    """Build a named model with fresh weights, drawn from torch's global generator (seed it first).

    >>> create_model("maskfeat_mvitv2_s", drop_path=0.1)  # doctest: +SKIP

    Args:
        name: a key of :data:`MODELS`: maskfeat_mvitv2_{s,l} (pre-training), maskfeat_mvitv2_{s,l}_classifier
            (their fine-tuning), maskfeat_mvitv2_{s,l}_detector (actions of persons in boxes), mvitv2_{s,b,l}
            (supervised classifiers); maskfeat_vit_{s,b,l,h}, mae_vit_{s,b,l,h} (pre-training), vit_{s,b,l,h}
            (their fine-tuning), vit_{s,b,l,h}_detector, and with the suffix _image those for images, except
            detectors; a nano of each kind for CPUs; mvitv2_encoder and vit_encoder have no head.
        arguments: what differs from the named model; see :class:`~videomaskfeat.models.mvit.MViT`,
            :class:`~videomaskfeat.models.vit.ViT`, :class:`~videomaskfeat.models.maskfeat.MaskFeat`,
            :class:`~videomaskfeat.models.mae.MAE`, :class:`~videomaskfeat.models.heads.Classifier` and
            :class:`~videomaskfeat.models.detector.Detector`. Lists are taken as tuples.

    Returns:
        The model in training mode. Its ``created_as`` holds the name and all arguments, for
        :func:`~videomaskfeat.models.weights.save_weights`.

    Raises:
        UserError: unknown name or argument, a value of the wrong type or outside its range, or a model whose
            training needs more memory than the machine has.
    """
    return create_model_from(name, arguments)


def create_model_from(name: str, arguments: Mapping[str, Any]) -> nn.Module:
    """As :func:`create_model`, for arguments from a config or a file, one of which may be called "name"."""
    without_memory = torch.get_default_device().type == "meta"
    return _create(name, arguments, times=1 if without_memory else TRAINED)


def create_for_inference(name: str, /, **arguments: Any) -> nn.Module:
    """As :func:`create_model`, for a model that is not trained: only its weights must fit into memory."""
    return _create(name, arguments, times=1)


def create_unset(name: str, /, **arguments: Any) -> nn.Module:
    """As :func:`create_for_inference`, for weights that are all to be loaded: they are undefined until then.

    Drawing the initial weights of a large model takes longer than reading it from disk.
    """
    with torch.device("meta"):
        model = _create(name, arguments, times=1)
    return model.to_empty(device="cpu")


def _create(name: str, arguments: Mapping[str, Any], *, times: int) -> nn.Module:
    """As :func:`create_model`; ``times``: memory of its use as a multiple of the weights."""
    if name.startswith("mae_mvit"):
        raise UserError(f"model {name!r}: {dense_form()}")
    check_name("model", name, MODELS)
    named = MODELS[name]
    arguments = {**named.arguments, **arguments}
    return build_checked(named.build, f"model {name!r}", name, arguments, times=times)


def arguments_of(name: str, changes: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Every argument that ``create_model(name, **changes)`` builds with, defaults included.

    Args:
        name: a key of :data:`MODELS`.
        changes: what differs from the named model.
    """
    return {**argument_defaults(MODELS[name].build), **MODELS[name].arguments, **(changes or {})}


def encoder_arguments(encoder: type[Encoder], arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments, of a model with a head, that its encoder alone takes."""
    known = argument_defaults(MODELS[encoder.encoder_name].build)
    return {name: value for name, value in arguments.items() if name in known}


def encoder_of(model: nn.Module) -> Encoder:
    """A copy of a model's encoder, with the same :meth:`~videomaskfeat.models.encoder_base.Encoder.features`.

    Args:
        model: made by :func:`create_model`; it is not changed.

    Returns:
        Such as a "mvitv2_encoder", in evaluation mode, on the CPU: clips [B, C, T, H, W] -> tokens [B, P+N',
        D'].

    Raises:
        UserError: the model was not made by ``create_model``, so that its arguments are not known.
    """
    created_as = getattr(model, "created_as", None)
    if created_as is None or not isinstance(model, Encoder):
        raise UserError(f"a {type(model).__name__} that create_model did not make has no encoder to take out")
    arguments = encoder_arguments(type(model), created_as[1])
    arguments |= {"final_norm": not isinstance(model.norm, nn.Identity), "mean_first": model.mean_first}
    encoder = create_for_inference(model.encoder_name, **arguments)
    assert isinstance(encoder, Encoder)
    state = model.state_dict()
    encoder.load_state_dict({name: state[name] for name in encoder.state_dict()})
    return encoder.eval()
