"""Encoders, heads and weights: tensors in, tensors out; no losses and no pictures."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import nn

from videomaskfeat import import_submodule
from videomaskfeat.errors import UserError, check_name
from videomaskfeat.models.limits import TRAINED, build_within_memory, checked_arguments

__getattr__ = partial(import_submodule, __name__)

__all__ = ["arguments_of", "create_model", "create_model_from", "create_unset"]


def create_model(name: str, **arguments: Any) -> nn.Module:
    """Build a named model with fresh weights, drawn from torch's global generator (seed it first).

    >>> create_model("maskfeat_mvitv2_s", drop_path=0.1)  # doctest: +SKIP

    Args:
        name: one of ``videomaskfeat.models.zoo.MODELS``: maskfeat_mvitv2_s, maskfeat_mvitv2_l (pre-training),
            maskfeat_mvitv2_s_classifier, maskfeat_mvitv2_l_classifier (their fine-tuning),
            maskfeat_mvitv2_s_detector, maskfeat_mvitv2_l_detector (actions of persons in boxes), mvitv2_s,
            mvitv2_b, mvitv2_l (supervised classifiers); maskfeat_vit_{s,b,l,h}, mae_vit_{s,b,l,h}
            (pre-training), vit_{s,b,l,h} (their fine-tuning), vit_{s,b,l,h}_detector, and with the ending
            _image those for images, but for detectors; a nano of each kind for CPUs; mvitv2_encoder and
            vit_encoder have no head.
        arguments: what differs from the named model; see :class:`~videomaskfeat.models.mvit.MViT`,
            :class:`~videomaskfeat.models.vit.ViT`, :class:`~videomaskfeat.models.maskfeat.MaskFeat`,
            :class:`~videomaskfeat.models.mae.MAE`,
            :class:`~videomaskfeat.models.heads.Classifier` and
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


def _create(name: str, arguments: Mapping[str, Any], *, times: int) -> nn.Module:
    """As :func:`create_model`; ``times``: memory of its use as a multiple of the weights."""
    from videomaskfeat.models.zoo import MODELS, dense_form

    if name.startswith("mae_mvit"):
        raise UserError(f"model {name!r}: {dense_form()}")
    check_name("model", name, MODELS)
    named = MODELS[name]
    resolved = {**named.arguments, **arguments}
    known = _argument_defaults(named.build)
    for key in resolved:
        check_name(f"model {name!r}: argument", key, known)
    try:
        resolved = checked_arguments(named.build, resolved)
    except UserError as error:
        raise UserError(f"model {name!r}: {error}") from None
    try:
        build = functools.partial(named.build, **resolved)
        model = build_within_memory(build, f"model {name!r}", times=times)
    except TypeError as error:
        raise UserError(f"model {name!r}: an argument of the wrong type: {error}") from error
    model.created_as = (name, resolved)  # type: ignore[assignment]
    return model


def create_for_inference(name: str, /, **arguments: Any) -> nn.Module:
    """As :func:`create_model`, for a model that is not trained: only its weights must fit into memory."""
    return _create(name, arguments, times=1)


def create_unset(name: str, /, **arguments: Any) -> nn.Module:
    """As :func:`create_model`, for weights that are all to be loaded: what they hold is undefined until then.

    Drawing the initial weights of a large model takes longer than reading it from disk.
    """
    with torch.device("meta"):
        model = _create(name, arguments, times=1)
    return model.to_empty(device="cpu")


def arguments_of(name: str, changes: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Every argument that ``create_model(name, **changes)`` builds with, defaults included.

    Args:
        name: a key of ``videomaskfeat.models.zoo.MODELS``.
        changes: what differs from the named model.
    """
    from videomaskfeat.models.zoo import MODELS

    return {**_argument_defaults(MODELS[name].build), **MODELS[name].arguments, **(changes or {})}


def _argument_defaults(build: type[nn.Module]) -> dict[str, Any]:
    """The keyword arguments of a model class and, where it passes the rest on, of its parents."""
    defaults: dict[str, Any] = {}
    for cls in build.__mro__:
        if "__init__" not in vars(cls):
            continue
        parameters = inspect.signature(vars(cls)["__init__"]).parameters.values()
        own = {
            parameter.name: parameter.default
            for parameter in parameters
            if parameter.kind is parameter.KEYWORD_ONLY
        }
        defaults = {**own, **defaults}
        if all(parameter.kind is not parameter.VAR_KEYWORD for parameter in parameters):
            break
    return defaults
