"""LoRA (arXiv 2106.09685): a frozen encoder with trained low-rank changes of its linear layers, by peft."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from videomaskfeat.errors import UserError, check_name
from videomaskfeat.models.detector import Detector
from videomaskfeat.models.heads import Classifier
from videomaskfeat.models.layers import GeluLinear
from videomaskfeat.models.limits import check_positive
from videomaskfeat.values import build_dataclass

TARGETS = ("attn.qkv", "attn.proj")
"""Default linear layers of a block."""
_ADAPTER = "default"  # peft's name of the only adapter
_TRAINED = ("head.", "norm.")  # the last norm is new, too, in fine-tuning after a pre-training


@dataclass(frozen=True)
class LoraOptions:
    """The arguments of :func:`add_lora`, as ``model.lora`` of a config has them."""

    rank: int = 8
    alpha: float = 16.0
    targets: tuple[str, ...] = TARGETS


def read_lora(arguments: Mapping[str, Any], *, weights: str) -> LoraOptions | None:
    """The arguments of the adapters in ``model.lora`` of a config; None: all weights are trained.

    Args:
        arguments: ``model.lora``; may be empty.
        weights: ``model.weights``.

    Raises:
        UserError: an argument is wrong, or there are no initial weights.
    """
    if not arguments:
        return None
    if not weights:
        raise UserError(
            "model.lora changes a trained encoder, but model.weights is not set; set it to the weights of a "
            "run, or leave model.lora out"
        )
    return build_dataclass(LoraOptions, arguments, name="model.lora")


def add_lora(
    model: nn.Module, *, rank: int = 8, alpha: float = 16.0, targets: Sequence[str] = TARGETS
) -> None:
    """Freeze a classifier or detector, in place, except for new adapters, its head and its last norm.

    An adapter adds ``alpha / rank * B A x`` to a linear layer, with A [rank, D] drawn from torch's global
    generator and B [D', rank] = 0, so the outputs stay the same at first. ``save_model`` writes the merged
    weights, which need neither adapters nor peft.

    Args:
        model: created by ``create_model``; its head must not be a probe.
        rank: rank of the change.
        alpha: scale of the change times its rank.
        targets: linear layers of every block, such as "attn.qkv", "attn.proj" and "mlp.fc1".

    Raises:
        UserError: peft is missing, the model is neither a classifier nor a detector, or it is a probe, a
            number is not positive, or no block has such a layer.
    """
    if not isinstance(model, Classifier | Detector):
        raise UserError(f"lora needs a classifier or a detector, not a {type(model).__name__}")
    if isinstance(model, Classifier) and model.frozen:
        raise UserError(
            f"lora trains the encoder, but head {model.head_kind!r} keeps it frozen; use head 'mean', "
            "'norm_mean' or 'token'"
        )
    check_positive(rank=rank)
    if alpha <= 0:
        raise UserError(f"lora: alpha {alpha:g} must be above 0")
    layers = _find_layers(model, targets)
    try:
        peft: Any = importlib.import_module("peft")
    except ImportError as error:
        raise UserError(
            "lora needs the package peft, which is not installed; pip install 'videomaskfeat[lora]'"
        ) from error
    config = peft.LoraConfig(r=rank, lora_alpha=alpha, target_modules=layers)
    peft.inject_adapter_in_model(config, model, adapter_name=_ADAPTER)  # freezes all other parameters
    for name, parameter in model.named_parameters():
        if name.startswith(_TRAINED):
            parameter.requires_grad_(True)


def _find_layers(model: nn.Module, targets: Sequence[str]) -> list[str]:
    """Full names of the layers.

    A layer with GELU before its product is left out: the adapter would get the values before the GELU.
    """
    names = [
        name
        for name, layer in model.named_modules()
        if name.startswith("blocks.") and isinstance(layer, nn.Linear) and not isinstance(layer, GeluLinear)
    ]
    known = sorted({name.split(".", 2)[2] for name in names})
    for target in targets:
        check_name("lora: target", target, known)
    if not targets:
        raise UserError(f"lora: targets is empty; choose from {', '.join(known)}")
    return [name for name in names if name.split(".", 2)[2] in targets]


def merged_state(model: nn.Module) -> dict[str, Tensor]:
    """The state dict of a model with its adapters merged, under the names of the model without adapters."""
    changes = {
        f"{name}.weight": layer.get_delta_weight(_ADAPTER)
        for name, layer in model.named_modules()
        if hasattr(layer, "get_delta_weight")
    }
    state = {
        name.replace(".base_layer.", "."): value
        for name, value in model.state_dict().items()
        if ".lora_" not in name
    }
    return state | {name: state[name] + change.to(state[name]) for name, change in changes.items()}


@torch.no_grad()
def merge_lora(model: nn.Module) -> None:
    """Merge the adapters into the weights, in place: the model is as before :func:`add_lora`, but frozen."""
    state = merged_state(model)
    adapted = [name for name, layer in model.named_modules() if hasattr(layer, "get_delta_weight")]
    for name in adapted:
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, model.get_submodule(name).base_layer)
    model.load_state_dict(state)
