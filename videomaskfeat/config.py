"""Configs: one dataclass a task, strict YAML on top, and ``section.key=value`` on top of that.

Every key has a default and one line of meaning with its unit; a file holds only what differs. Configs are
read once, written whole into the run folder, and never changed; no module below ``tasks/`` sees one.
"""

from __future__ import annotations

import copy
import dataclasses
import typing
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, TypeVar

import yaml
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import (
    ConfigAttributeError,
    ConfigKeyError,
    OmegaConfBaseException,
    ValidationError,
)

from videomaskfeat.errors import UserError, nearest
from videomaskfeat.io import open_file

T = TypeVar("T")


def key(default: Any, meaning: str) -> Any:
    """A config key with its default and its meaning, which ``--keys`` prints."""
    if isinstance(default, (list, dict)):
        return field(default_factory=lambda: copy.copy(default), metadata={"meaning": meaning})
    return field(default=default, metadata={"meaning": meaning})


@dataclass
class DataConfig:
    """Which videos, and how they are read."""

    train: str = key("", "list file, or folder of videos or of frame folders, to train on (required)")
    validation: str = key("", "held-out list or folder; empty: no held-out loss")
    format: str = key("auto", "auto | kinetics | ssv2 | folder | frames: format of the lists")
    labels: str = key("auto", "auto | yes | no: whether rows end with a label (not used here, but checked)")
    separator: str = key("auto", "auto | space | comma | tab: what parts the columns of a Kinetics list")
    prefix: str = key("", "folder put before every relative path of the lists")
    reader: str = key("auto", "auto | decord | pyav: video reader; auto falls back to PyAV a file")
    workers: int = key(2, "processes that load clips, a rank; 0 loads in the main process")
    failure_share: float = key(0.01, "share of the list that may be unreadable before the run stops, 0..1")


@dataclass
class ClipConfig:
    """What is cut from a video."""

    frames: int = key(16, "frames a clip")
    stride: int = key(4, "source frames from one frame of the clip to the next, counted at target_fps")
    target_fps: float | None = key(30.0, "frames a second at which the stride counts; null: the source's own")
    short_video: str = key("clamp", "clamp | loop | error: what a video shorter than the clip does")
    crop: int = key(224, "height and width of the clip, pixels")
    crop_area: list[float] = key([0.5, 1.0], "least and greatest area of the random crop, share of the frame")
    crop_aspect: list[float] = key([0.75, 1.3333], "least and greatest width/height of the random crop")
    flip: float = key(0.5, "chance of a horizontal flip, 0..1")
    samples_per_video: int = key(1, "clips cut from one opening of a video")
    mean: float = key(0.45, "subtracted from pixels in 0..1, every channel")
    std: float = key(0.225, "divides them after that")


@dataclass
class MaskConfig:
    """What is hidden."""

    kind: str = key("cube", "cube | cube_exact | tube | frame | random | block")
    ratio: float = key(0.4, "share of the mask's cells to hide, between 0 and 1")
    cell: list[int] = key([2, 32, 32], "size of a mask cell: frames, rows and columns of pixels")


@dataclass
class ModelConfig:
    """Which network."""

    name: str = key("maskfeat_mvitv2_s", "a name that create_model knows")
    arguments: dict[str, Any] = key({}, "what differs from that model's own arguments")


@dataclass
class TargetConfig:
    """What is predicted."""

    name: str = key("hog", "a name in TARGETS")
    arguments: dict[str, Any] = key({}, "what differs from that target's own arguments")


@dataclass
class OptimConfig:
    """How it is trained."""

    epochs: float = key(300, "passes over the list")
    warmup_epochs: float = key(10, "passes of linear warm-up")
    batch_size: int = key(32, "clips an optimiser step, over all ranks and micro-batches")
    accumulate: int = key(1, "micro-batches an optimiser step, a rank")
    base_batch_size: int = key(32, "batch size the learning rates are stated for; they scale linearly")
    learning_rate: float = key(1e-4, "peak, for base_batch_size")
    start_learning_rate: float = key(1e-6, "at step 0, for base_batch_size")
    end_learning_rate: float = key(1e-6, "at the end, for base_batch_size")
    betas: list[float] = key([0.9, 0.999], "AdamW's two")
    weight_decay: float = key(0.05, "none on 1-d parameters")
    layer_decay: float = key(1.0, "learning rate factor from a layer to the one before; 1: none")
    gradient_clip: float | None = key(0.02, "greatest L2 norm of the gradient; null: no clipping")
    ema_decay: float | None = key(None, "moving average of the weights, a step; null: none")


@dataclass
class RunConfig:
    """Where and how it runs."""

    folder: str = key("", "run folder; one that exists is resumed (required)")
    seed: int = key(0, "of weights, order, clips, crops and masks")
    device: str = key("auto", "auto | cpu | cuda")
    precision: str = key("auto", "auto (bf16 on a GPU, fp32 on a CPU) | fp32 | bf16 (autocast)")
    compile: bool = key(False, "torch.compile the step (needs a C++ compiler on a CPU)")
    activation_checkpointing: bool = key(False, "recompute activations in the backward: less memory, slower")
    checkpoint_minutes: float = key(10.0, "minutes from one checkpoint to the next")
    checkpoint_epochs: float = key(10.0, "epochs from one milestone, kept for good, to the next")
    keep_checkpoints: int = key(2, "newest checkpoints kept besides the milestones")
    evaluate_epochs: float = key(0.0, "epochs from one held-out loss to the next; 0: only at the end")
    evaluate_clips: int = key(256, "greatest number of held-out clips")
    pictures: int = key(4, "held-out videos drawn at the end")


@dataclass
class PretrainConfig:
    """Masked pre-training; the defaults are the published MaskFeat recipe of MViTv2-S on Kinetics-400."""

    data: DataConfig = field(default_factory=DataConfig)
    clip: ClipConfig = field(default_factory=ClipConfig)
    mask: MaskConfig = field(default_factory=MaskConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    target: TargetConfig = field(default_factory=TargetConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    run: RunConfig = field(default_factory=RunConfig)


def load_config(schema: type[T], path: str | None, overrides: Sequence[str] = ()) -> T:
    """Read a config: the schema's defaults, then the YAML file, then ``section.key=value`` overrides.

    Raises:
        UserError: a file that is missing or no YAML, an unknown key (with the nearest known one), a value of
            the wrong type, an override without ``=``.
    """
    config = OmegaConf.structured(schema)
    if path:
        config = _merge(config, _read_yaml(path), where=path)
    for override in overrides:
        name, equals, value = override.partition("=")
        if not equals or not name.strip():
            raise UserError(
                f"argument {override!r} is not of the form section.key=value, such as run.seed=1 "
                "(see --keys for every key)"
            )
        try:
            # `key=` is the empty text, as a shell would have it; `key=null` is none.
            tree = OmegaConf.from_dotlist([override if value else f"{name}=''"])
        except (OmegaConfBaseException, yaml.YAMLError) as error:
            raise UserError(f"argument {override!r}: the value is not YAML: {_first_line(error)}") from error
        config = _merge(config, tree, where=f"argument {override!r}")
    _check_lengths(config, OmegaConf.structured(schema), where=path or "the arguments")
    return typing.cast(T, OmegaConf.to_object(config))


def config_text(config: Any) -> str:
    """The whole config as YAML, as it is written into the run folder."""
    return OmegaConf.to_yaml(OmegaConf.structured(config))


def flat(config: Any) -> dict[str, Any]:
    """The config as one flat dict, ``section.key`` -> plain value."""
    return dict(_leaves(dataclasses.asdict(config), ""))


def key_table(schema: type) -> list[tuple[str, str, str]]:
    """Every key of a task: (``section.key``, default as written in YAML, meaning)."""
    rows = []
    for section in fields(schema):
        owner = section.default_factory  # every section is a dataclass, its own factory
        for item in fields(owner):  # type: ignore[arg-type]
            default = item.default if item.default_factory is dataclasses.MISSING else item.default_factory()
            shown = "null" if default is None else '""' if default == "" else str(default)
            rows.append((f"{section.name}.{item.name}", shown, item.metadata["meaning"]))
    return rows


def _leaves(tree: dict[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for name, value in tree.items():
        if isinstance(value, dict) and value:
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _read_yaml(path: str) -> DictConfig:
    with open_file(path) as file:
        text = file.read()
    try:
        tree = OmegaConf.create(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or _first_line(error)
        raise UserError(f"{path}{line}: not valid YAML: {problem}") from error
    if not isinstance(tree, DictConfig):
        raise UserError(f"{path}: holds a list, and a config is a mapping of sections (see --keys)")
    return tree


def _merge(config: DictConfig, tree: DictConfig, *, where: str) -> DictConfig:
    try:
        return typing.cast(DictConfig, OmegaConf.merge(config, tree))
    except (ConfigKeyError, ConfigAttributeError) as error:
        raise UserError(_unknown_key(config, tree, where)) from error
    except ValidationError as error:
        raise UserError(_wrong_type(config, tree, where, error)) from error


def _wrong_type(config: DictConfig, tree: DictConfig, where: str, error: ValidationError) -> str:
    """Say which key holds a value of the wrong type; omegaconf names it for plain values alone."""
    for section in map(str, tree):
        given = tree[section]
        if section in config and not isinstance(given, DictConfig):
            return f"{where}: {section} is a section of keys, and got {given!r}; set {section}.KEY instead"
        for item in map(str, given or ()):
            default = config[section].get(item) if section in config else None
            if isinstance(default, ListConfig) and not isinstance(given[item], ListConfig):
                return f"{where}: {section}.{item} is a list such as {list(default)}, and got {given[item]!r}"
            if isinstance(default, DictConfig) and not isinstance(given[item], DictConfig):
                return f"{where}: {section}.{item} is a mapping of names to values, and got {given[item]!r}"
    name = getattr(error, "full_key", None)
    return f"{where}: {name + ': ' if name else ''}{_first_line(error)}"


def _check_lengths(config: DictConfig, defaults: DictConfig, *, where: str) -> None:
    """A list has as many values as its default, which is what its meaning speaks of."""
    for section in map(str, defaults):
        for item, default in defaults[section].items():
            given = config[section][item]
            if isinstance(default, ListConfig) and len(given) != len(default):
                raise UserError(
                    f"{where}: {section}.{item} has {len(given)} values, and needs {len(default)}, "
                    f"such as {list(default)}"
                )


def _unknown_key(config: DictConfig, tree: DictConfig, where: str) -> str:
    """Name the first key of ``tree`` that ``config`` does not have, and the known one nearest to it."""
    sections = {str(name): [str(item) for item in config[name]] for name in config}
    known = [f"{name}.{item}" for name, items in sections.items() for item in items]
    for name in map(str, tree):
        if name not in sections:
            close = nearest(name, sections) or _elsewhere(name, known)
            return f"{where}: unknown section {name!r}{close or '; there are ' + ', '.join(sections)}"
        for item in map(str, tree[name] if isinstance(tree[name], DictConfig) else ()):
            if item not in sections[name]:
                close = nearest(item, sections[name]) or _elsewhere(item, known)
                return f"{where}: unknown key '{name}.{item}'{close or '; --keys lists every key'}"
    return f"{where}: unknown key; --keys lists every key"


def _elsewhere(item: str, known: list[str]) -> str:
    """The same word in another section, or the nearest, as the tail of an error message."""
    by_word: dict[str, str] = {}
    for full in known:
        by_word.setdefault(full.partition(".")[2], full)
    if item in by_word:
        return f"; did you mean {by_word[item]!r}?"
    hint = nearest(item, by_word)
    return hint if not hint else f"; did you mean {by_word[hint.split(chr(39))[1]]!r}?"


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0]
