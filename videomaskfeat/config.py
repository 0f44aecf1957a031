"""How a config key is declared."""

from __future__ import annotations

import copy
import dataclasses
import math
import re
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, TypeVar

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import (
    ConfigAttributeError,
    ConfigKeyError,
    OmegaConfBaseException,
)

from videomaskfeat.errors import UserError, nearest
from videomaskfeat.texts import dump_yaml, parse_yaml, read_yaml, show_text


def key(
    default: Any,
    meaning: str,
    *,
    unit: str = "",
    choices: Iterable[str] = (),
    least: float | None = None,
    greatest: float | None = None,
    above: float | None = None,
    below: float | None = None,
    free: bool = False,
) -> Any:
    """Declare a config key; :func:`load_config` and :func:`check_config` hold its value to the rules.

    Args:
        default: value if the key is absent.
        meaning: one line for ``--keys``.
        unit: unit of the value, printed after the meaning.
        choices: allowed texts; a mapping explains each in ``--keys``.
        least: smallest allowed number; holds for each value of a list, and never for null.
        greatest: largest allowed number.
        above: number that the value must exceed.
        below: number that the value must stay below.
        free: whether a run that is resumed may change the value.
    """
    rules = _Rules(meaning, unit, choices, least, greatest, above, below, free)
    if isinstance(default, list | dict):
        return field(default_factory=lambda: copy.copy(default), metadata={"rules": rules})
    return field(default=default, metadata={"rules": rules})


@dataclass(frozen=True)
class _Rules:
    """What :func:`key` declares."""

    meaning: str
    unit: str
    choices: Iterable[str]
    least: float | None
    greatest: float | None
    above: float | None
    below: float | None
    free: bool

    def broken_by(self, value: Any) -> str:
        """The rule that a value breaks, in words, or an empty string."""
        values = value if isinstance(value, list) else [value]
        known = tuple(self.choices)
        for one in values:
            if known and one not in known:
                return f"is not one of {', '.join(known)}{nearest(str(one), known)}"
            if isinstance(one, int | float) and not self._contains(one):
                return f"must be {self.span()}"
        return ""

    def _contains(self, number: float) -> bool:
        return (
            (self.least is None or number >= self.least)
            and (self.greatest is None or number <= self.greatest)
            and (self.above is None or number > self.above)
            and (self.below is None or number < self.below)
        )

    def span(self) -> str:
        """The allowed numbers in words, such as ``at least 0 and below 1``, or an empty string."""
        bounds = {"at least": self.least, "above": self.above, "at most": self.greatest, "below": self.below}
        return " and ".join(f"{words} {bound:g}" for words, bound in bounds.items() if bound is not None)

    def explain(self) -> str:
        """Meaning, unit, choices and range in one line."""
        choices = (
            self.choices.items() if isinstance(self.choices, Mapping) else ((c, "") for c in self.choices)
        )
        named = " | ".join(f"{name} ({words})" if words else name for name, words in choices)
        notes = ", ".join(note for note in (self.unit, self.span()) if note)
        return f"{self.meaning}{f': {named}' if named else ''}{f' [{notes}]' if notes else ''}"


def check_config(config: Any, where: Callable[[str], str] = lambda name: "") -> None:
    """Hold every value to the rules of its key.

    Args:
        config: a config, such as a ``PretrainConfig``.
        where: ``section.key`` -> place that set it, such as ``x.yaml: ``, which begins the message.

    Raises:
        UserError: a value that is not among the choices of its key, or outside its range.
    """
    for name, rules, value in _keys(config):
        if value is not None and (broken := rules.broken_by(value)):
            raise UserError(f"{where(name)}{name} {_show(value)} {broken}")


def free_keys(schema: type) -> frozenset[str]:
    """The keys, ``section.key``, that a run that is resumed may change."""
    return frozenset(name for name, rules, _ in _keys(schema()) if rules.free)


def _keys(config: Any) -> Iterator[tuple[str, _Rules, Any]]:
    """Name, rules and value of every key."""
    for section in fields(config):
        keys = getattr(config, section.name)
        for item in fields(keys):
            yield f"{section.name}.{item.name}", item.metadata["rules"], getattr(keys, item.name)


# Reading configs: strict, and with words for people.
T = TypeVar("T")
_DEEPEST_KEY = 16  # parts of an override's key, ``section.key.name``
_LONGEST_INTERPOLATION = 1000  # characters; omegaconf's grammar is recursive
# What omegaconf raises for trees that fit nowhere, besides its own errors.
_MISFITS = (OmegaConfBaseException, TypeError, AttributeError, ValueError, AssertionError, RecursionError)


def load_config(
    schema: type[T],
    path: str | None,
    overrides: Sequence[str] = (),
    *,
    say: Callable[[str], None] | None = None,
) -> T:
    """Read a config: the schema's defaults, then the YAML file, then ``section.key=value`` overrides.

    A section with a ``name`` takes that name alone as well: ``target: pixels`` is ``target: {name: pixels}``.
    The file's ``arguments`` are those of the name that it gives: an override with another name does not get
    them, which ``say`` is told.

    Raises:
        UserError: a file that is missing or no YAML, an unknown key (with the nearest known one), a value of
            the wrong type, a number that is not finite or an integer beyond 64 bits, a value that breaks the
            rules of its key, an interpolation such as ``${oc.env:HOME}`` that cannot be resolved, an override
            without ``=``.
    """
    config = OmegaConf.structured(schema)
    if path:
        tree = _with_names(config, _read_yaml(path))
        _check_filled(tree, path, [override.partition("=")[0].strip() for override in overrides])
        config = _merge(config, tree, where=path)
    trees = [(_argument(override), _with_names(config, _read_override(override))) for override in overrides]
    for dropped in _drop_arguments_of_others(config, [tree for _, tree in trees]):
        if say is not None:
            say(f"{path}: {dropped}")
    for where, tree in trees:
        _check_filled(tree, where, ())
        config = _merge(config, tree, where=where)
    source = path or "the arguments"
    _check_values(config, where=source)
    _check_lengths(config, OmegaConf.structured(schema), where=source)
    try:
        loaded = typing.cast(T, OmegaConf.to_object(config))
    except _MISFITS as error:
        raise UserError(f"{source}: {_first_line(error)}") from error
    check_config(loaded, lambda name: f"{_source(name, overrides) or source}: ")
    return loaded


def _source(name: str, overrides: Sequence[str]) -> str:
    """The last override that sets a key, or an empty string."""
    setters = [one for one in overrides if f"{name}.".startswith(f"{one.partition('=')[0].strip()}.")]
    return _argument(setters[-1]) if setters else ""


def config_text(config: Any) -> str:
    """The whole config as YAML, as it is written into the run folder."""
    tree = OmegaConf.structured(config)
    try:
        return OmegaConf.to_yaml(tree)
    except UnicodeEncodeError:  # a file name whose bytes are not UTF-8
        return dump_yaml(OmegaConf.to_container(tree))


def flat(config: Any) -> dict[str, Any]:
    """The config as one flat dict, ``section.key`` -> plain value."""
    return dict(_leaves(dataclasses.asdict(config), ""))


def key_table(schema: type) -> list[tuple[str, str, str]]:
    """Every key of a task: (``section.key``, default as written in YAML, meaning)."""
    rows = []
    for name, rules, default in _keys(schema()):
        shown = "null" if default is None else '""' if default == "" else str(default)
        rows.append((name, shown, rules.explain()))
    return rows


def _leaves(tree: dict[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for name, value in tree.items():
        if isinstance(value, dict) and value:
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _read_yaml(path: str) -> DictConfig:
    tree = read_yaml(path, what="a config")
    if tree is None:  # empty, or only comments
        return OmegaConf.create({})
    if not isinstance(tree, dict):
        found = "a list" if isinstance(tree, list) else f"the value {show_text(tree, 40)!r}"
        raise UserError(f"{path}: holds {found}, and a config is a mapping of sections (see --keys)")
    return _tree(tree, path)


def _tree(plain: dict[str, Any], where: str) -> DictConfig:
    """Plain data as omegaconf holds it, which parses the interpolations."""
    _check_interpolations(plain, where)
    try:
        return OmegaConf.create(plain)
    except _MISFITS as error:
        raise UserError(f"{where}: {_first_line(error)}") from error


def _check_interpolations(value: Any, where: str) -> None:
    if isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            _check_interpolations(inner, where)
    elif isinstance(value, str) and "${" in value and len(value) > _LONGEST_INTERPOLATION:
        raise UserError(
            f"{where}: an interpolation of {len(value)} characters ({show_text(value, 40)}); "
            f"at most {_LONGEST_INTERPOLATION} are read"
        )


def _read_override(override: str) -> DictConfig:
    """``section.key=value`` as a tree."""
    name, equals, value = override.partition("=")
    if not equals or not name.strip():
        raise UserError(
            f"{_argument(override)} is not of the form section.key=value, such as run.seed=1 "
            "(see --keys for every key)"
        )
    where = _argument(override)
    if name.count(".") + name.count("[") >= _DEEPEST_KEY:
        raise UserError(f"argument {show_text(name, 40)!r}: a key has at most {_DEEPEST_KEY} parts")
    # `key=` is the empty text, as in a shell; `key=null` is None. A file name whose bytes are not UTF-8 is
    # taken as it is, since it cannot be YAML.
    plain = value if not value or _has_bytes(value) else _parse_value(value, where)
    _check_interpolations(plain, where)
    tree = OmegaConf.create({})
    try:
        OmegaConf.update(tree, name, plain)
    except _MISFITS as error:
        raise UserError(f"{where}: {_first_line(error)}") from error
    return tree


def _argument(override: str) -> str:
    return f"argument {show_text(repr(override), 120)}"


def _parse_value(value: str, where: str) -> Any:
    try:
        return parse_yaml(value, "")
    except UserError as error:
        problem = re.sub(r"^(, line \d+)?: (not valid YAML: )?", "", str(error))
        raise UserError(f"{where}: the value is not YAML: {problem}") from error


def _has_bytes(text: str) -> bool:
    return any("\udc80" <= letter <= "\udcff" for letter in text)


def _drop_arguments_of_others(config: DictConfig, trees: Sequence[DictConfig]) -> list[str]:
    """Empty the ``arguments`` of each section that the trees give another name; says which they were."""
    dropped = []
    for tree in trees:
        for section in map(str, tree):
            given, own = _peek(tree, section), _peek(config, section)
            if not isinstance(given, DictConfig) or not isinstance(own, DictConfig):
                continue
            if _peek(given, "name") in (None, _peek(own, "name")):
                continue
            if _peek(own, "arguments"):
                names = ", ".join(map(str, own.arguments))
                dropped.append(
                    f"{section}.arguments ({names}) are those of {own.name}, and not given to {given.name}"
                )
                own.arguments = {}
    return dropped


def _peek(tree: DictConfig, key: str) -> Any:
    """A value, or None if there is none or it cannot be resolved."""
    try:
        return tree.get(key)
    except _MISFITS:
        return None


def _merge(config: DictConfig, tree: DictConfig, *, where: str) -> DictConfig:
    for section in map(str, tree):
        given = _raw(tree, section)
        if section in config and not isinstance(given, DictConfig):
            raise UserError(
                f"{where}: {section} is a section of keys, and got {_show(given)}; set {section}.KEY instead"
            )
    try:
        return typing.cast(DictConfig, OmegaConf.merge(config, tree))
    except (ConfigKeyError, ConfigAttributeError) as error:
        raise UserError(_unknown_key(config, tree, where)) from error
    except _MISFITS as error:
        raise UserError(_wrong_type(config, tree, where, error)) from error


def _with_names(config: DictConfig, tree: DictConfig) -> DictConfig:
    """A section that is a name with its arguments may be given as the name alone: ``method: masked``."""
    for section in map(str, tree):
        given = _raw(tree, section)
        if section in config and "name" in config[section] and isinstance(given, str):
            tree[section] = {"name": given}
    return tree


def _wrong_type(config: DictConfig, tree: DictConfig, where: str, error: Exception) -> str:
    """Say which key holds a value of the wrong type; omegaconf names it for plain values alone."""
    for section in map(str, tree):
        given = _raw(tree, section)
        for item in map(str, given):
            default = config[section].get(item) if section in config else None
            value = _raw(given, item)
            got = f"and got {_show(value)}"
            if isinstance(default, ListConfig) and not isinstance(value, ListConfig):
                return f"{where}: {section}.{item} is a list such as {list(default)}, {got}"
            if isinstance(default, DictConfig) and not isinstance(value, DictConfig):
                return f"{where}: {section}.{item} is a mapping of names to values, {got}"
    name = getattr(error, "full_key", None)
    return f"{where}: {name + ': ' if name else ''}{_first_line(error)}"


def _raw(tree: Any, key: str) -> Any:
    """A value as it is written: an interpolation or ``???`` as text."""
    node = tree._get_node(key)
    value = node if isinstance(node, DictConfig | ListConfig) else node._value()
    special = isinstance(node, DictConfig | ListConfig) and (node._is_interpolation() or node._is_missing())
    return node._value() if special else value


def _show(value: Any) -> str:
    return show_text(repr(value))


def _check_filled(tree: DictConfig, where: str, filled: Sequence[str]) -> None:
    """``???`` stands for a value that an override must give."""
    for name in _missing_keys(OmegaConf.to_container(tree), ""):
        if not any(name.startswith(f"{key}.") for key in filled):
            name = name.removesuffix(".")
            raise UserError(f"{where}: {name} is ???, which stands for a missing value; give {name}=VALUE")


def _missing_keys(plain: Any, prefix: str) -> Iterator[str]:
    """Names of the values that are ``???``, each with a dot at its end."""
    if plain == "???":
        yield prefix
    elif isinstance(plain, dict | list):
        for key, value in plain.items() if isinstance(plain, dict) else enumerate(plain):
            yield from _missing_keys(value, f"{prefix}{key}.")


def _check_values(config: DictConfig, *, where: str) -> None:
    """Every value can be resolved; numbers are finite, and integers have 64 bits at most."""
    for section in map(str, config):
        _check_value(config, section, section, where)


def _check_value(parent: Any, key: Any, name: str, where: str) -> None:
    written = show_text(parent._get_node(key)._value()) if OmegaConf.is_interpolation(parent, key) else ""
    try:
        value = parent[key]
    except _MISFITS as error:
        raise UserError(
            f"{where}: {name}: the interpolation {written!r} cannot be resolved ({_first_line(error)}); "
            "write the value, or correct the name in it"
        ) from error
    if isinstance(value, DictConfig | ListConfig):
        if written:
            raise UserError(
                f"{where}: {name}: the interpolation {written!r} is a mapping or list; write it out"
            )
        for inner in value if isinstance(value, DictConfig) else range(len(value)):
            _check_value(value, inner, f"{name}.{inner!s}", where)
    elif isinstance(value, float) and not math.isfinite(value):
        raise UserError(f"{where}: {name} is {value}; a finite number is needed")
    elif isinstance(value, int) and abs(value) >= 2**63:
        raise UserError(f"{where}: {name} has more than 64 bits; give a smaller integer")
    elif isinstance(value, str) and ("\0" in value or re.search("[\ud800-\udc7f\udd00-\udfff]", value)):
        raise UserError(f"{where}: {name} is {_show(value)}, which holds a character that no text may have")


def _check_lengths(config: DictConfig, defaults: DictConfig, *, where: str) -> None:
    """A list has as many values as its default, of which its meaning speaks; an empty one has any number."""
    for section in map(str, defaults):
        for item, default in defaults[section].items():
            given = config[section][item]
            if not isinstance(default, ListConfig):
                continue
            strange = next((one for one in given if isinstance(one, DictConfig | ListConfig)), None)
            if strange is not None and not any(isinstance(one, DictConfig | ListConfig) for one in default):
                raise UserError(
                    f"{where}: {section}.{item} is a list of plain values, and one is {_show(strange)}"
                )
            if default and len(given) != len(default):
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
                there = f"; {name} has {', '.join(sections[name])} (--keys explains them)"
                return f"{where}: unknown key '{name}.{item}'{close or there}"
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
    if isinstance(error, RecursionError):
        return "it refers to itself, or is nested too deeply"
    return show_text(next(iter(str(error).strip().splitlines()), type(error).__name__), 200)


# The keys of pre-training, and those that every training has.


@dataclass
class DataConfig:
    """Which videos, and how they are read."""

    train: str = key("", "list file, or folder of videos, frame folders or pictures, to train on (required)")
    validation: str = key("", "held-out list or folder; empty: no held-out loss", free=True)
    format: str = key("auto", "auto | kinetics | ssv2 | folder | frames | images: of the lists")
    labels: str = key("auto", "auto | yes | no: whether rows end with a label (not used here, but checked)")
    separator: str = key(
        "auto", "column separator of a list: auto, space, comma, tab, colons (::), semicolon or pipe"
    )
    prefix: str = key("", "folder put before every relative path of the lists")
    reader: str = key("auto", "auto | decord | pyav: video reader; auto falls back to PyAV a file")
    workers: int = key(2, "processes that load clips, a rank; 0 loads in the main process", free=True)
    read_seconds: float = key(
        120.0, "seconds without progress on one record after which a loader process is replaced", free=True
    )
    failure_share: float = key(
        0.01,
        "share of the list that may be unreadable before the run stops, 0..1; above 0, one always may",
        free=True,
    )


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
    mean: Any = key(0.45, "subtracted from pixels in 0..1: a number, or a list of one a channel")
    std: Any = key(0.225, "divides them after that: a number, or a list of one a channel")


@dataclass
class MaskConfig:
    """What is hidden."""

    kind: str = key("cube", "cube | cube_exact | tube | frame | random | random_tube | block")
    ratio: float = key(0.4, "share of the mask's cells to hide, between 0 and 1")
    cell: list[int] = key([2, 32, 32], "size of a mask cell: frames, rows and columns of pixels")


@dataclass
class MethodConfig:
    """How it is pre-trained."""

    name: str = key("masked", "masked (predict the target in the hidden places) | ibot | byol | latent")
    arguments: dict[str, Any] = key({}, "what differs from that method's own arguments")


@dataclass
class ModelConfig:
    """Which network."""

    name: str = key("maskfeat_mvitv2_s", "a name that create_model knows")
    arguments: dict[str, Any] = key({}, "what differs from that model's own arguments")


@dataclass
class TargetConfig:
    """What is predicted, by the method masked."""

    name: str = key("hog", "a name in TARGETS")
    arguments: dict[str, Any] = key({}, "what differs from that target's own arguments")


@dataclass
class OptimConfig:
    """How it is trained."""

    epochs: float = key(300, "passes over the list")
    warmup_epochs: float = key(10, "passes of linear warm-up")
    batch_size: int = key(32, "clips an optimiser step, over all ranks and micro-batches")
    accumulate: int = key(1, "micro-batches an optimiser step, a rank", free=True)
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

    folder: str = key("", "run folder; one that exists is resumed (required)", free=True)
    seed: int = key(0, "of weights, order, clips, crops and whatever else is drawn")
    device: str = key("auto", "auto | cpu | cuda", free=True)
    precision: str = key("auto", "auto (bf16 on a GPU, fp32 on a CPU) | fp32 | bf16 (autocast)")
    threads: int = key(
        0, "CPU threads per rank; 0: measured when a run starts, and kept when it is resumed", free=True
    )
    compile: bool = key(False, "torch.compile the step (needs a C++ compiler on a CPU)", free=True)
    activation_checkpointing: bool = key(
        False, "recompute activations in the backward: less memory, slower", free=True
    )
    checkpoint_minutes: float = key(10.0, "minutes from one checkpoint to the next", free=True)
    checkpoint_epochs: float = key(10.0, "epochs from one milestone, kept for good, to the next", free=True)
    keep_checkpoints: int = key(2, "newest checkpoints kept besides the milestones", free=True)
    rank_timeout_minutes: float = key(
        30.0,
        "minutes that a rank waits for another one before the run ends; the other one is named",
        free=True,
    )


@dataclass
class PretrainRunConfig(RunConfig):
    """Where and how pre-training runs, and what it shows."""

    evaluate_epochs: float = key(
        0.0, "epochs from one held-out loss and probe to the next; 0: only at the end", free=True
    )
    evaluate_clips: int = key(256, "greatest number of held-out clips", free=True)
    pictures: int = key(4, "held-out videos drawn at the end", free=True)


@dataclass
class ProbeConfig:
    """Labelled videos by which frozen features are judged while they are learnt; the labels teach nothing."""

    train: str = key("", "labelled list whose features are known; empty: no probe", free=True)
    test: str = key("", "labelled list whose classes are asked for", free=True)
    k: int = key(20, "neighbours that vote", free=True)
    temperature: float = key(0.07, "of their votes' weights", free=True)
    penalty: float = key(1e-2, "on the squared weights of the linear fit", free=True)


@dataclass
class PretrainConfig:
    """Masked pre-training; the defaults are the published MaskFeat recipe of MViTv2-S on Kinetics-400."""

    data: DataConfig = field(default_factory=DataConfig)
    clip: ClipConfig = field(default_factory=ClipConfig)
    mask: MaskConfig = field(default_factory=MaskConfig)
    method: MethodConfig = field(default_factory=MethodConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    target: TargetConfig = field(default_factory=TargetConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    probe: ProbeConfig = field(default_factory=ProbeConfig)
    run: PretrainRunConfig = field(default_factory=PretrainRunConfig)


# The keys of fine-tuning.


@dataclass
class LabelledDataConfig:
    """Which labelled videos, and how they are read."""

    train: str = key("", "list file, or folder of class folders of pictures, to train on (required)")
    validation: str = key("", "held-out list; empty: no validation")
    format: str = key("auto", "auto | kinetics | ssv2 | images: format of the lists")
    separator: str = key(
        "auto", "column separator of a list: auto, space, comma, tab, colons (::), semicolon or pipe"
    )
    prefix: str = key("", "folder put before every relative path of the lists")
    classes: int = key(0, "number of classes; 0: as the class names, or one more than the largest label")
    class_names: str = key("", "file of class names: one a line in the labels' order, or SSv2's labels JSON")
    balanced: bool = key(False, "draw every class equally often in an epoch")
    reader: str = key("auto", "auto | decord | pyav: video reader; auto falls back to PyAV a file")
    workers: int = key(2, "processes that load clips, a rank; 0 loads in the main process", free=True)
    read_seconds: float = key(
        120.0, "seconds without progress on one record after which a loader process is replaced", free=True
    )
    failure_share: float = key(
        0.01,
        "share of the list that may be unreadable before the run stops, 0..1; above 0, one always may",
        free=True,
    )


@dataclass
class LabelledClipConfig:
    """What is cut from a video in training."""

    sampling: str = key("clip", "clip (frames at a stride) | segments (a frame of each of equal parts: SSv2)")
    frames: int = key(16, "frames a clip")
    stride: int = key(4, "source frames from one frame of the clip to the next, counted at target_fps")
    target_fps: float | None = key(30.0, "frames a second at which the stride counts; null: the source's own")
    short_video: str = key("clamp", "clamp | loop | error: what a video shorter than the clip does")
    crop: int = key(224, "height and width of the clip, pixels")
    crop_kind: str = key(
        "area", "area (random area and aspect, resized) | short_side (resized, then cut out)"
    )
    crop_area: list[float] = key([0.08, 1.0], "area: least and greatest share of the frame")
    crop_aspect: list[float] = key([0.75, 1.3333], "area: least and greatest width/height")
    short_side: list[int] = key([256, 320], "short_side: least and greatest length, pixels")
    short_side_inverse: bool = key(True, "short_side: draw 1/length evenly instead of the length")
    flip: float = key(0.5, "chance of a horizontal flip, 0..1; 0 for SSv2, whose classes know left and right")
    flip_swaps_labels: bool = key(False, "a flipped clip takes the class of the mirrored template (SSv2)")
    samples_per_video: int = key(2, "clips cut from one opening of a video")
    mean: Any = key(0.45, "subtracted from pixels in 0..1: a number, or a list of one a channel")
    std: Any = key(0.225, "divides them after that: a number, or a list of one a channel")


@dataclass
class AugmentConfig:
    """What is done to the colours and shapes of a training clip."""

    randaugment: str = key("rand-m7-n2-mstd0.5-inc1", "RandAugment in timm's words; empty: none")
    interpolation: str = key("bicubic", "bicubic | bilinear: of RandAugment's rotations, shears and shifts")
    brightness: float = key(0.0, "colour jitter: greatest change, a share")
    contrast: float = key(0.0, "colour jitter: greatest change, a share")
    saturation: float = key(0.0, "colour jitter: greatest change, a share")
    erasing: float = key(0.25, "chance that a box, the same in all frames, becomes noise, 0..1")
    erasing_area: list[float] = key([0.02, 0.3333], "least and greatest share of the frame that is erased")


@dataclass
class MixConfig:
    """How clips and labels of a batch are mixed."""

    mixup: float = key(0.8, "mixup's alpha; 0: off")
    cutmix: float = key(1.0, "cutmix's alpha; 0: off")
    probability: float = key(1.0, "chance that a batch is mixed at all, 0..1")
    switch: float = key(0.5, "chance of cutmix where both are on, 0..1")
    smoothing: float = key(0.1, "label smoothing, 0..1, 1 excluded")


@dataclass
class ClassifierConfig:
    """Which network, and the weights it starts from."""

    name: str = key("maskfeat_mvitv2_s_classifier", "a classifier that create_model knows")
    arguments: dict[str, Any] = key({}, "what differs from that model's own arguments")
    head: str = key("", "mean | token | linear | attentive; empty: the model's own")
    drop_path: float = key(0.1, "chance of dropping a residual branch in the last block; rises from 0")
    dropout: float = key(0.0, "before the last linear layer, 0..1")
    head_scale: float = key(0.001, "factor on the last layer's initial weights")
    weights: str = key("", "weights to start from: ours, or a PySlowFast checkpoint; empty: from scratch")
    weights_key: str = key(
        "", "which weights of a checkpoint that holds several, such as model_ema", free=True
    )
    inflate: str = key("repeated", "repeated | centred: an image model's kernel over the frames of a cube")
    allow_missing: list[str] = key([], "further weights that the file may lack: names, or patterns (norm.*)")
    allow_unused: list[str] = key([], "further weights that the file may have in excess")


@dataclass
class FinetuneOptimConfig(OptimConfig):
    """How it is trained; the batch counts clips, so videos times clip.samples_per_video."""

    optimizer: str = key("adamw", "adamw | sgd (momentum, Nesterov)")
    momentum: float = key(0.9, "of sgd")
    accumulate: int = key(1, "micro-batches an optimiser step, a rank")  # not free: clips mix within one
    epochs: float = key(100, "passes over the list")
    warmup_epochs: float = key(20, "passes of linear warm-up")
    learning_rate: float = key(6e-4, "peak, for base_batch_size")
    layer_decay: float = key(0.75, "learning rate factor from a layer to the one before; 1: none")
    gradient_clip: float | None = key(5.0, "greatest L2 norm of the gradient; null: no clipping")


@dataclass
class EvaluateConfig:
    """How it is validated: one view while it trains, all of them at the end."""

    epochs: float = key(5.0, "epochs from one validation to the next; 0: only at the end")
    views: int = key(5, "clips a video at the end, spread evenly over time", free=True)
    crops: int = key(1, "crops a clip at the end: 1 (centre) or 3 (along the longer side)", free=True)
    short_side: int = key(256, "pixels that the short side is resized to before a crop is cut")
    average: str = key("softmax", "softmax | logits: what is averaged over a video's views", free=True)
    weights: str = key("auto", "auto (averaged, where ema_decay is set) | trained | averaged | both")


@dataclass
class FinetuneConfig:
    """Classification; the defaults are the published fine-tuning of MaskFeat MViTv2-S on Kinetics-400."""

    data: LabelledDataConfig = field(default_factory=LabelledDataConfig)
    clip: LabelledClipConfig = field(default_factory=LabelledClipConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    mix: MixConfig = field(default_factory=MixConfig)
    model: ClassifierConfig = field(default_factory=ClassifierConfig)
    optim: FinetuneOptimConfig = field(default_factory=FinetuneOptimConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    run: RunConfig = field(default_factory=RunConfig)


# The keys of training a tokenizer of frames.


@dataclass
class FrameConfig:
    """What is cut from a video."""

    size: int = key(112, "height and width of a frame, pixels; a multiple of the tokenizer's stride")
    per_video: int = key(4, "frames drawn from one opening of a video, each with a crop of its own")
    crop_area: list[float] = key([0.5, 1.0], "least and greatest area of the random crop, share of the frame")
    crop_aspect: list[float] = key([0.75, 1.3333], "least and greatest width/height of the random crop")
    flip: float = key(0.5, "chance of a horizontal flip, 0..1")


@dataclass
class TokenizerModelConfig:
    """Which tokenizer."""

    name: str = key("dvae", "dvae (discrete VAE, as BEiT's) | vq (nearest codes, as PeCo's)")
    arguments: dict[str, Any] = key({}, "what differs from its own: vocabulary, stride, width, blocks, ...")


@dataclass
class GumbelConfig:
    """How a dvae draws codes."""

    start_temperature: float = key(1.0, "of the relaxed draws at the start")
    end_temperature: float = key(0.0625, "at the end of the annealing: lower is closer to single codes")
    anneal: float = key(1.0, "share of the run that the annealing (half a cosine) takes, above 0, up to 1")
    kl_weight: float = key(1e-3, "weight of the KL divergence of a cell's codes to uniform ones, nats")
    kl_warmup: float = key(0.05, "share of the run over which that weight rises from 0, 0..1")


@dataclass
class CommitmentConfig:
    """What a vq adds to its loss; how its codes move stands in model.arguments (decay, revive_below)."""

    weight: float = key(0.25, "weight of the squared distance of the latents to their codes")


@dataclass
class PerceptualConfig:
    """A frozen encoder of this framework that compares frames with their reconstructions, as in PeCo."""

    weights: str = key("", "weights.safetensors of any model of ours; empty: pixels alone count")
    depths: list[int] = key(
        [], "blocks after which features are compared; each costs the encoder up to there"
    )
    weight: float = key(1.0, "weight of the distance beside the squared error of the pixels")


@dataclass
class TokenizerOptimConfig(OptimConfig):
    """How it is trained."""

    epochs: float = key(100, "passes over the list")
    warmup_epochs: float = key(1, "passes of linear warm-up")
    batch_size: int = key(128, "frames an optimiser step, over all ranks and micro-batches")
    accumulate: int = key(1, "micro-batches an optimiser step, a rank")
    base_batch_size: int = key(128, "batch size the learning rates are stated for; they scale linearly")
    learning_rate: float = key(3e-4, "peak, for base_batch_size")
    weight_decay: float = key(1e-4, "none on 1-d parameters")
    gradient_clip: float | None = key(1.0, "greatest L2 norm of the gradient; null: no clipping")


@dataclass
class TokenizerRunConfig(RunConfig):
    """Where and how it runs, and what it shows."""

    compile: bool = key(False, "must stay false: not supported in training a tokenizer")
    activation_checkpointing: bool = key(False, "must stay false: not supported in training a tokenizer")
    evaluate_epochs: float = key(
        0.0, "epochs from one held-out reconstruction to the next; 0: only at the end", free=True
    )
    evaluate_frames: int = key(256, "greatest number of held-out videos, a frame each", free=True)
    pictures: int = key(8, "held-out frames drawn at the end, with what became of them", free=True)


@dataclass
class TokenizerConfig:
    """Training a tokenizer of frames on videos; its tokens are what the targets dvae and codebook predict."""

    data: DataConfig = field(default_factory=DataConfig)
    frames: FrameConfig = field(default_factory=FrameConfig)
    model: TokenizerModelConfig = field(default_factory=TokenizerModelConfig)
    gumbel: GumbelConfig = field(default_factory=GumbelConfig)
    commitment: CommitmentConfig = field(default_factory=CommitmentConfig)
    perceptual: PerceptualConfig = field(default_factory=PerceptualConfig)
    optim: TokenizerOptimConfig = field(default_factory=TokenizerOptimConfig)
    run: TokenizerRunConfig = field(default_factory=TokenizerRunConfig)


# The keys of action detection.


@dataclass
class ActionDataConfig:
    """Which key frames, with which boxes, and where their videos are."""

    train: str = key("", "ground truth to train on: rows video,second,x1,y1,x2,y2,action,person (required)")
    train_boxes: list[str] = key([], "detected boxes to train on besides: rows ...,action or empty,score")
    train_exclusions: str = key("", "rows video,second to leave out of training")
    validation: str = key("", "held-out ground truth; empty: no validation")
    validation_boxes: list[str] = key([], "detected boxes to test on; empty: those of the ground truth")
    validation_exclusions: str = key("", "rows video,second that are not scored")
    label_map: str = key("", "actions that are named and scored (pbtxt; required)")
    classes: int = key(0, "number of actions, ids 1 to this (AVA: 80); 0: the label map's largest id")
    videos: str = key("", "folder of the videos: a file each, or a folder of extracted frames each")
    frame_lists: list[str] = key([], "instead: lists of extracted frames in PySlowFast's format")
    frames: str = key("", "folder put before the paths of frame_lists")
    frames_fps: float = key(30.0, "frames a second at which frames were extracted")
    start_second: float | None = key(
        None, "second, as the rows count, of each video's first frame (AVA: 0 or 900); null: found out"
    )
    workers: int = key(2, "processes that load clips, a rank; 0 loads in the main process", free=True)
    read_seconds: float = key(
        120.0, "seconds without progress on one record after which a loader process is replaced", free=True
    )
    failure_share: float = key(
        0.01,
        "share of the key frames that may be unreadable before the run stops; above 0, one always may",
        free=True,
    )


@dataclass
class ActionClipConfig:
    """What is cut from a video around a key frame."""

    frames: int = key(16, "frames a clip")
    stride: int = key(4, "source frames from one frame of the clip to the next, counted at target_fps")
    target_fps: float | None = key(30.0, "frames a second at which the stride counts; null: the source's own")
    crop: int = key(224, "height and width of the clip in training, pixels")
    short_side: list[int] = key([256, 320], "least and greatest length of the short side in training, pixels")
    flip: float = key(0.5, "chance of a horizontal flip, 0..1; 0 where actions know left and right")
    mean: Any = key(0.45, "subtracted from pixels in 0..1: a number, or a list of one a channel")
    std: Any = key(0.225, "divides them after that: a number, or a list of one a channel")


@dataclass
class ColourConfig:
    """What is done to the colours of a training clip."""

    brightness: float = key(0.0, "greatest change, a share; 0: none")
    contrast: float = key(0.0, "greatest change, a share; 0: none")
    saturation: float = key(0.0, "greatest change, a share; 0: none")


@dataclass
class BoxConfig:
    """Which boxes are trained and tested on."""

    train_score: float = key(0.9, "least score of a detected box in training, 0..1")
    train_iou: float = key(0.9, "overlap with a ground-truth box at which a detected one takes its actions")
    score: float = key(0.8, "least score of a detected box in testing, 0..1")
    visible: float = key(0.0, "training: a box stays, cut, where the crop shows more than this share of it")


@dataclass
class DetectorConfig:
    """Which network, and the weights it starts from."""

    name: str = key("maskfeat_mvitv2_s_detector", "a detector that create_model knows")
    arguments: dict[str, Any] = key({}, "what differs from that model's own arguments (temporal, scene, ...)")
    drop_path: float = key(0.4, "chance of dropping a residual branch in the last block; rises from 0")
    dropout: float = key(0.5, "before the last linear layer, 0..1")
    head_scale: float = key(1.0, "factor on the last layer's initial weights")
    weights: str = key("", "weights to start from: ours, or a PySlowFast checkpoint; empty: from scratch")
    weights_key: str = key(
        "", "which weights of a checkpoint that holds several, such as model_ema", free=True
    )
    inflate: str = key("repeated", "repeated | centred: an image model's kernel over the frames of a cube")
    allow_missing: list[str] = key([], "further weights that the file may lack: names, or patterns (norm.*)")
    allow_unused: list[str] = key([], "further weights that the file may have in excess")


@dataclass
class ActionLossConfig:
    """What is minimised."""

    name: str = key("sigmoid", "sigmoid (each action by itself) | poses (a softmax over the poses)")
    poses: list[int] = key(
        [], "poses: ids of which a person has exactly one; empty: the label map's, or 1..14"
    )
    focusing: float = key(0.0, "gamma of the focal loss of the actions by themselves; 0: cross-entropy")
    balance: float = key(0.0, "actions weigh count^-balance, their mean 1; 0: all alike")


@dataclass
class DetectOptimConfig(FinetuneOptimConfig):
    """How it is trained; the batch counts clips, one a key frame."""

    optimizer: str = key("sgd", "adamw | sgd (momentum, Nesterov)")
    epochs: float = key(30, "passes over the key frames")
    warmup_epochs: float = key(5, "passes of linear warm-up")
    batch_size: int = key(128, "clips an optimiser step, over all ranks and micro-batches")
    base_batch_size: int = key(128, "batch size the learning rates are stated for; they scale linearly")
    learning_rate: float = key(3.6, "peak, for base_batch_size")
    start_learning_rate: float = key(0.01, "at step 0, for base_batch_size")
    end_learning_rate: float = key(0.0036, "at the end, for base_batch_size")
    weight_decay: float = key(1e-8, "none on 1-d parameters")
    layer_decay: float = key(0.875, "learning rate factor from a layer to the one before; 1: none")


@dataclass
class DetectEvaluateConfig:
    """How it is validated."""

    epochs: float = key(5.0, "epochs from one validation to the next; 0: only at the end")
    every_seconds: int = key(1, "while it trains, only key frames at each n-th second; all at the end")
    area: str = key("whole", "whole (the frame in its aspect) | centre (a square crop, boxes cut to it)")
    short_side: int = key(224, "pixels that the short side is resized to")
    flip: bool = key(False, "at the end, average over the clip and its mirror image", free=True)
    scales: list[int] = key(
        [], "at the end, average over these short sides; empty: short_side alone", free=True
    )
    weights: str = key("auto", "auto (averaged, where ema_decay is set) | trained | averaged | both")


@dataclass
class DetectConfig:
    """Detection of actions; nobody published it for MaskFeat: the defaults are Hiera's for AVA."""

    data: ActionDataConfig = field(default_factory=ActionDataConfig)
    clip: ActionClipConfig = field(default_factory=ActionClipConfig)
    colour: ColourConfig = field(default_factory=ColourConfig)
    boxes: BoxConfig = field(default_factory=BoxConfig)
    model: DetectorConfig = field(default_factory=DetectorConfig)
    loss: ActionLossConfig = field(default_factory=ActionLossConfig)
    optim: DetectOptimConfig = field(default_factory=DetectOptimConfig)
    evaluate: DetectEvaluateConfig = field(default_factory=DetectEvaluateConfig)
    run: RunConfig = field(default_factory=RunConfig)


# The keys of finding actions in anybody's videos.


@dataclass
class PersonsConfig:
    """Where the persons are: a file of boxes, or a detector that finds them."""

    boxes: str | None = key(None, "file of rows video,second,x1,y1,x2,y2,,score")
    detector: str | None = key(None, "package.module:name of a Python callable, pictures -> boxes")
    detector_options: dict[str, Any] = key({}, "keyword arguments of the class or function that makes it")
    box_score: float | None = key(None, "least score of a box, 0..1; null: as the detector was tested")
    every: float = key(1.0, "seconds from one key frame to the next; of a file of boxes, at least")
    start_second: float | None = key(None, "of the first picture in the file of boxes; null: found out")


@dataclass
class ToldConfig:
    """What is told of their actions."""

    threshold: float = key(0.4, "least score of an action, 0..1")
    top: int = key(3, "actions a person that are drawn, at most")
    smooth_seconds: float = key(0.7, "standard deviation of the average over a track; 0: none")
    min_iou: float = key(0.3, "least overlap of two boxes of a track, above 0, at most 1")
    max_gap_seconds: float | None = key(None, "that a track may miss; null: twice the key frames' step")
    film: bool = key(True, "write the annotated mp4")
    csv: bool = key(False, "write rows for score-ava")


@dataclass
class MachineConfig:
    """What it runs on."""

    device: str = key("auto", "auto | cpu | cuda | cuda:N")
    precision: str = key("auto", "auto (bf16 on a GPU) | fp32 | bf16")
    clips_at_once: int = key(8, "clips that go through the network together")


@dataclass
class DetectVideoConfig:
    """Who does what in videos."""

    persons: PersonsConfig = field(default_factory=PersonsConfig)
    told: ToldConfig = field(default_factory=ToldConfig)
    machine: MachineConfig = field(default_factory=MachineConfig)


# The keys of a comparison of targets.


@dataclass
class CompareSettings:
    """What is compared, and what all runs share.

    An entry of ``targets`` is a mapping of three keys, each of which may be absent:

    - ``pretrain`` and ``finetune``: section -> key -> value, on top of the shared configs;
    - ``before``: runs that must come first, such as a tokenizer's or a teacher's, a name each -> ``{verb,
      config, keys, folder}``; they lie under ``{run}``, or under a folder that several entries share.

    In every value ``{folder}`` is the comparison's folder, ``{run}`` that of the entry's runs with this seed,
    and ``{seed}`` the seed.
    """

    folder: str = key("", "folder of all runs and of the page; one that exists is gone on with (required)")
    pretrain: str = key("", "config file of pre-training that all entries share (required)")
    finetune: str = key("", "config file of fine-tuning that all share; empty: nothing is fine-tuned")
    shared: dict[str, Any] = key({}, "pretrain, finetune: keys that differ from those files in every entry")
    targets: dict[str, Any] = key({}, "name -> what is different there (required); see docs/comparing.md")
    seeds: int = key(1, "runs of each entry, with run.seed 1, 2, ...")
    jobs: int = key(1, "runs at a time; more than 1 makes the times of steps mean little")
    probes: int = key(4, "times that the frozen features are probed in the course of a pre-training")


@dataclass
class CompareConfig:
    """Several targets under one budget."""

    compare: CompareSettings = field(default_factory=CompareSettings)
