"""What all formats of other projects' weights share: the content of a file, and its conversion."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from videomaskfeat.errors import UserError
from videomaskfeat.recipe import METADATA_KEY, ClipRecipe, PretrainRecipe
from videomaskfeat.stored_recipe import CLASSIFY_KEY, ENCODER_KEY, ClassifyRecipe
from videomaskfeat.texts import show_text

IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
HALF = {"mean": 0.5, "std": 0.5}
GRAY = {"mean": 0.45, "std": 0.225}
"""Usual normalizations of pixels in 0..1; the last one is PySlowFast's for videos."""
# Attention heads of published vision transformers, by width; other widths have heads of 64 channels.
_HEADS = {640: 8, 1152: 16, 1280: 16, 1408: 16, 1664: 16}
_SIZES = {384: "s", 768: "b", 1024: "l", 1280: "h"}


@dataclass(frozen=True)
class Source:
    """The content of a weights file of another project.

    Attributes:
        path: the file, for messages.
        state: tensors by name, without the prefixes of wrappers such as "module.".
        key: key of the weights in the checkpoint.
        content: the whole checkpoint; plain data and tensors.
        config, preprocessor: ``config.json`` and ``preprocessor_config.json`` beside the file; empty if
            missing.
        choices: values that the user or the model sets: "heads", "frames", "stride", "crop".
    """

    path: str
    state: Mapping[str, Tensor]
    key: str = ""
    content: Mapping[str, Any] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)
    preprocessor: Mapping[str, Any] = field(default_factory=dict)
    choices: Mapping[str, Any] = field(default_factory=dict)

    def with_heads(self, **heads: Any) -> Source:
        """The same source with numbers of heads that its config contains; None: unknown."""
        known = {name: number for name, number in heads.items() if number is not None}
        return replace(self, choices={**self.choices, **known})

    def has(self, *names: str) -> bool:
        """Whether the weights have all these names; a name may begin with "*."."""
        return all(
            any(known.endswith(name[1:]) or known == name[2:] for known in self.state)
            if name.startswith("*.")
            else name in self.state
            for name in names
        )

    def dims(self, suffix: str) -> int:
        """Number of axes of the weight whose name is or ends with ".SUFFIX"; 0 without one."""
        values = (v for name, v in self.state.items() if name == suffix or name.endswith("." + suffix))
        return next((value.ndim for value in values), 0)


@dataclass(frozen=True)
class Converted:
    """Weights of another project in the names of this package.

    Attributes:
        title: what the file is, such as "VideoMAE, fine-tuned".
        name, arguments: of :func:`~videomaskfeat.models.zoo.create_model`.
        state: tensors by our names; names that no rule of the format knows are unchanged.
        recipe: clips and normalization, and views and classes or masks and target.
        unused: patterns of names that belong to parts without an equal here.
        assumed: values of the recipe that the file does not contain, as "clip.stride 4".
    """

    title: str
    name: str
    arguments: dict[str, Any]
    state: dict[str, Tensor]
    recipe: ClassifyRecipe | PretrainRecipe
    unused: tuple[str, ...] = ()
    assumed: tuple[str, ...] = ()

    @property
    def metadata(self) -> dict[str, str]:
        """The recipe as metadata of a weights file."""
        if isinstance(self.recipe, PretrainRecipe):
            return {METADATA_KEY: self.recipe.to_json()}
        return {ENCODER_KEY if self.name.endswith("_encoder") else CLASSIFY_KEY: self.recipe.to_json()}


@dataclass(frozen=True)
class Format:
    """A format of weights.

    Attributes:
        title: the project and its kind of model.
        recognize: whether a file has this format, by names and shapes of its weights.
        convert: the conversion; None if this package has no such model.
        reason: why not, if so.
    """

    title: str
    recognize: Callable[[Source], bool]
    convert: Callable[[str, Source], Converted] | None = None
    reason: str = ""


Rules = Sequence[tuple[str, str | Callable[[re.Match[str]], str]]]
"""Substitutions of names: regular expression and replacement, as in ``re.sub``."""


def rename(state: Mapping[str, Tensor], rules: Rules) -> dict[str, Tensor]:
    """Apply all substitutions in their order to all names."""
    renamed = {}
    for name, value in state.items():
        for pattern, replacement in rules:
            name = re.sub(pattern, replacement, name)
        renamed[name] = value
    return renamed


def fuse_attention(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Concatenate separate weights and biases ``attn.q``, ``attn.k``, ``attn.v`` to ``attn.qkv``.

    A missing bias of the keys is 0, as in VideoMAE and BEiT: it would add the same number to all scores of a
    query, which the softmax ignores.
    """
    fused = {name: value for name, value in state.items() if not re.search(r"\.attn\.[qkv]\.", name)}
    for name, value in state.items():
        if name.endswith(".attn.q.weight"):
            kinds = [name.replace(".q.weight", f".{kind}.weight") for kind in "qkv"]
            fused[name.replace(".q.", ".qkv.")] = torch.cat([state[kind] for kind in kinds])
        elif name.endswith(".attn.q.bias"):
            k, v = name.replace(".q.", ".k."), name.replace(".q.", ".v.")
            keys = state[k] if k in state else torch.zeros_like(value)
            fused[name.replace(".q.", ".qkv.")] = torch.cat([value, keys, state[v]])
    return fused


def vit_arguments(
    source: Source, state: Mapping[str, Tensor], *, heads: Mapping[int, int] = {}, **changes: Any
) -> dict[str, Any]:
    """Arguments of a vision transformer, from the shapes of converted weights.

    Args:
        source, state: the file, and its converted weights.
        heads: attention heads by width, if they differ from those of most published models.
        changes: other arguments.

    Raises:
        UserError: the number of heads does not follow from the width.
    """
    stem = state["patch_embed.proj.weight"]
    width, channels, *cube = stem.shape
    hidden = state["blocks.0.mlp.fc1.weight"].shape[0]
    return {
        "depth": count_blocks(state),
        "width": width,
        "heads": count_heads(source, width, table=heads),
        "in_channels": channels,
        "cube_stride": (1, *cube) if len(cube) == 2 else tuple(cube),
        "mlp_ratio": ratio_of(width, hidden),
        "qkv_bias": "blocks.0.attn.qkv.bias" in state,
        "layer_scale": 0.1 if "blocks.0.gamma_1" in state else None,
        "class_token": "cls_token" in state,
        **changes,
    }


def count_blocks(state: Mapping[str, Tensor]) -> int:
    """Number of blocks of an encoder."""
    return len({match[1] for name in state if (match := re.match(r"blocks\.(\d+)\.", name))})


def count_heads(source: Source, width: int, *, choice: str = "heads", table: Mapping[int, int] = {}) -> int:
    """Number of attention heads: the user's, or that of published models of this width."""
    heads = source.choices.get(choice)
    if heads is None:
        heads = {**_HEADS, **table}.get(width, width // 64 if width % 64 == 0 else None)
    if heads is None:
        raise UserError(
            f"{source.path}: the file does not contain the number of attention heads of width {width}; use "
            f"`videomaskfeat import-weights` with --{choice.replace('_', '-')} N"
        )
    return int(heads)


def ratio_of(width: int, hidden: int) -> float:
    """The MLP ratio r with int(width * r) = hidden."""
    ratio = hidden / width
    return ratio if int(width * ratio) == hidden else math.nextafter(ratio, math.inf)


def vit_name(width: int, *, prefix: str = "", suffix: str = "") -> str:
    """The named vision transformer of this width, or ViT-B for other widths."""
    return f"{prefix}vit_{_SIZES.get(width, 'b')}{suffix}"


def clip_of(
    source: Source, known: Mapping[str, Any], usual: Mapping[str, Any]
) -> tuple[ClipRecipe, tuple[str, ...]]:
    """Clips from known and usual values; returns the recipe and the assumed values as text.

    Args:
        known: values in the file or beside it; None if unknown.
        usual: values of the published models of the format: "frames", "stride", "crop", "target_fps", "mean"
            and "std".
    """
    chosen = {key: value for key, value in source.choices.items() if key in usual and value is not None}
    contained = {**{key: value for key, value in known.items() if value is not None}, **chosen}
    assumed = tuple(
        f"clip.{key} {_shown(value)}"
        for key, value in usual.items()
        if key not in contained and key != "target_fps"
    )
    return ClipRecipe(**{**usual, **contained}), assumed


def _shown(value: Any) -> str:
    return str(list(value)) if isinstance(value, tuple) else f"{value:g}"


def image_processor(source: Source) -> dict[str, Any]:
    """Crop and normalization in a ``preprocessor_config.json`` of transformers; None where unknown."""
    values = source.preprocessor
    crop = values.get("crop_size") or values.get("size") or source.config.get("image_size")
    if isinstance(crop, Mapping):
        crop = crop.get("height") or crop.get("shortest_edge")
    elif isinstance(crop, list):
        crop = crop[0] if crop else None
    mean, std = values.get("image_mean"), values.get("image_std")
    if values.get("do_normalize") is False:
        mean, std = 0.0, 1.0
    return {"crop": crop, "mean": _tuple(mean), "std": _tuple(std)}


def _tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def check_activation(source: Source) -> None:
    """Raise UserError unless the perceptrons use the exact GELU, as far as the config knows."""
    activation = source.config.get("hidden_act", "gelu")
    if activation != "gelu":
        raise UserError(
            f"{source.path}: hidden_act {show_text(repr(activation))} in config.json is not supported, only "
            "'gelu'"
        )


def label_names(names: object, classes: int) -> tuple[str, ...]:
    """Class names from a list, or a mapping of indices to names; empty unless all classes have one."""
    if isinstance(names, Mapping):
        names = [names.get(str(index), names.get(index)) for index in range(classes)]
    if not isinstance(names, list | tuple) or len(names) != classes:
        return ()
    texts = tuple(name for name in names if isinstance(name, str))
    made_up = texts[:1] == ("LABEL_0",)  # transformers' names for unnamed classes
    return () if made_up or len(texts) != classes else texts


def square_grid(positions: int, frames: Iterable[int]) -> tuple[int, int] | None:
    """Time steps and rows of a table of positions with square frames; the first time steps that divide it."""
    for steps in frames:
        side = math.isqrt(positions // steps) if positions % steps == 0 else 0
        if side and side * side * steps == positions:
            return steps, side
    return None
