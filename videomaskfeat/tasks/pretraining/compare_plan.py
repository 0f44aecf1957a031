"""What a comparison runs: each target's runs with each seed, as commands of the package."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from videomaskfeat.config import FinetuneConfig, PretrainConfig, TokenizerConfig, load_config
from videomaskfeat.config.compare import CompareSettings
from videomaskfeat.errors import RunFailed, UserError, nearest
from videomaskfeat.io import is_file, make_folder
from videomaskfeat.processes import Verbs
from videomaskfeat.tasks.classification import classify
from videomaskfeat.tasks.pretraining import pretrain
from videomaskfeat.tasks.run_folder import RunFolder
from videomaskfeat.tasks.tokenizing import tokenizer

CONFIGS: dict[str, tuple[type, tuple[str, ...]]] = {
    "pretrain": (PretrainConfig, pretrain.FREE_KEYS),
    "finetune": (FinetuneConfig, classify.FREE_KEYS),
    "train-tokenizer": (TokenizerConfig, tokenizer.FREE_KEYS),
}
"""Config class of a verb, and the keys that a run which goes on may change."""
ENTRY_KEYS = ("pretrain", "finetune", "before")
BEFORE_KEYS = ("verb", "config", "keys", "folder")
BEFORE_VERBS = ("pretrain", "train-tokenizer")


@dataclass(frozen=True)
class Command:
    """One run: a verb of the package with its config.

    Attributes:
        folder: of the run; it holds ``summary.json`` once the run is finished.
        verb: pretrain, finetune or train-tokenizer.
        config: config file; empty: the defaults.
        overrides: ``section.key=value`` on top.
    """

    folder: Path
    verb: str
    config: str
    overrides: tuple[str, ...]

    @property
    def finished(self) -> bool:
        """Whether it has come to its end."""
        return is_file(self.folder / "summary.json")

    @property
    def run_folder(self) -> RunFolder:
        """Its folder with its resolved config.

        Raises:
            UserError: a key or a value is wrong.
        """
        kind, free_keys = CONFIGS[self.verb]
        config: Any = load_config(kind, self.config, self.overrides)
        return RunFolder(str(self.folder), config, free_keys=free_keys)

    def check(self) -> None:
        """Whether it can be run, and where it was run already, that it was this run.

        Raises:
            UserError: a key or a value is wrong, or the folder holds a finished run of another config.
        """
        folder = self.run_folder
        if self.finished:
            folder.check()

    def run(self, verbs: Verbs, *, threads: int | None = None) -> None:
        """Run it in a process of its own, from where it was stopped; what it says goes to ``FOLDER.log``.

        Args:
            verbs: runs it.
            threads: of its computations; None: as many as it chooses.

        Raises:
            RunFailed: it did not finish, or a signal stopped it.
        """
        make_folder(self.folder.parent)
        log_path = self.folder.with_suffix(".log")
        environment = {} if threads is None else {"OMP_NUM_THREADS": str(threads)}
        config = ["--config", self.config] if self.config else []
        with log_path.open("a", encoding="utf-8") as log:
            code = verbs.run([self.verb, *config, *self.overrides], log=log, environment=environment)
        if not self.finished:
            raise RunFailed(
                f"{self.folder}: ended with code {code} and is not finished: "
                f"{_last_line(log_path)} (all of it in {log_path}); mend that, and the same command goes on"
            )


@dataclass(frozen=True)
class TargetRuns:
    """The runs of one target with one seed, to be done in this order.

    Attributes:
        target: its name in the comparison.
        seed: of all its runs.
        before: what must be there first, such as a tokenizer.
        pretrain: the run that is compared.
        finetune: of its encoder, or None.
        scratch: the same fine-tuning from random weights, or None; entries that fine-tune alike share it.
    """

    target: str
    seed: int
    before: tuple[Command, ...]
    pretrain: Command
    finetune: Command | None
    scratch: Command | None

    def __iter__(self) -> Iterator[Command]:
        yield from self.before
        yield self.pretrain
        for command in (self.finetune, self.scratch):
            if command is not None:
                yield command

    def pretrain_config(self) -> PretrainConfig:
        """The resolved config of the pre-training.

        Raises:
            UserError: a key or a value is wrong.
        """
        return load_config(PretrainConfig, self.pretrain.config, self.pretrain.overrides)


def plan_runs(settings: CompareSettings, targets: Sequence[str] = ()) -> list[TargetRuns]:
    """All runs, target by target, and each target's by seed.

    Args:
        settings: see :class:`~videomaskfeat.config.compare.CompareSettings`.
        targets: names of the entries to run; none: all of them.

    Raises:
        UserError: a key is missing or unknown, a target is unknown, a config does not load, or a finished run
            is one of another config.
    """
    _check_settings(settings)
    names = list(targets) or list(settings.targets)
    for name in names:
        if name not in settings.targets:
            known = ", ".join(settings.targets)
            raise UserError(
                f"--targets: {name!r} is no entry of compare.targets{nearest(name, settings.targets)}; "
                f"there are {known}"
            )
    runs = []
    for name in names:  # a mistake in the last of them is said before the first has begun
        with naming(name):
            runs += [_runs(settings, name, seed) for seed in range(1, settings.seeds + 1)]
            for command in itertools.chain(*runs[-settings.seeds :]):
                command.check()
    return runs


@contextmanager
def naming(target: str) -> Iterator[None]:
    """Say in which entry a mistake is."""
    try:
        yield
    except UserError as error:
        raise UserError(f"compare.targets.{target}: {error}") from error


def overrides_of(tree: Mapping[str, Any]) -> list[str]:
    """Section -> key -> value as ``section.key=value`` arguments; a section may be its name alone."""
    arguments = []
    for section, values in tree.items():
        if not isinstance(values, Mapping):
            arguments.append(f"{section}={json.dumps(values)}")
            continue
        arguments += [f"{section}.{name}={json.dumps(value)}" for name, value in values.items()]
    return arguments


def _check_settings(settings: CompareSettings) -> None:
    for name in ("folder", "pretrain", "targets"):
        if not getattr(settings, name):
            raise UserError(f"compare.{name} is not set; see configs/compare/sample.yaml for an example")
    for name, least in (("seeds", 1), ("jobs", 1), ("probes", 0)):
        value = getattr(settings, name)
        if value < least:
            raise UserError(f"compare.{name}={value}: must be at least {least}")
    _check_keys("compare.shared", settings.shared, ENTRY_KEYS[:2])
    for part, keys in settings.shared.items():
        _check_mapping(f"compare.shared.{part}", keys, "of sections such as optim")
    for name, entry in settings.targets.items():
        where = f"compare.targets.{name}"
        _check_keys(where, entry, ENTRY_KEYS)
        for part in (entry or {}).keys() & {"pretrain", "finetune"}:
            _check_mapping(f"{where}.{part}", entry[part], "of sections such as optim")
        before = (entry or {}).get("before", {})
        _check_mapping(f"{where}.before", before, "of names to runs")
        for step, run in before.items():
            _check_mapping(f"{where}.before.{step}", run, f"of {', '.join(BEFORE_KEYS)}")
            _check_keys(f"{where}.before.{step}", run, BEFORE_KEYS)
            _check_mapping(f"{where}.before.{step}.keys", run.get("keys", {}), "of sections such as optim")
            for key in ("config", "folder"):
                if not isinstance(run.get(key, ""), str):
                    raise UserError(f"{where}.before.{step}.{key} is {run[key]!r}, and must be a path")
            if run.get("verb") not in BEFORE_VERBS:
                raise UserError(
                    f"{where}.before.{step}.verb is {run.get('verb')!r}, and must be "
                    f"{' or '.join(BEFORE_VERBS)}"
                )


def _check_keys(where: str, entry: Any, known: Sequence[str]) -> None:
    if entry is None:
        return
    _check_mapping(where, entry, f"of {', '.join(known)}")
    for key in entry:
        if key not in known:
            raise UserError(
                f"{where}: unknown key {key!r}{nearest(key, known)}; there are {', '.join(known)}"
            )


def _check_mapping(where: str, value: Any, content: str) -> None:
    if not isinstance(value, Mapping):
        raise UserError(f"{where} is {value!r}, and must be a mapping {content}")


def _runs(settings: CompareSettings, name: str, seed: int) -> TargetRuns:
    folder = Path(settings.folder)
    run = folder / name / f"seed_{seed}"
    entry = settings.targets[name] or {}
    places = {"{folder}": str(folder), "{run}": str(run), "{seed}": str(seed)}

    def command(
        verb: str, config: str, part: str, *trees: Mapping[str, Any], place: str = "{run}"
    ) -> Command:
        own = {"run": {"seed": seed, "folder": f"{place}/{part}"}}
        texts = [f"{place}/{part}", config, *(text for tree in (*trees, own) for text in overrides_of(tree))]
        for word, value in places.items():
            texts = [text.replace(word, value) for text in texts]
        return Command(Path(texts[0]), verb, texts[1], tuple(texts[2:]))

    shared = settings.shared
    before = tuple(
        command(
            step["verb"],
            step.get("config", ""),
            part,
            step.get("keys", {}),
            place=step.get("folder", "{run}"),
        )
        for part, step in entry.get("before", {}).items()
    )
    keys = (shared.get("pretrain", {}), entry.get("pretrain", {}))
    pretrain = command("pretrain", settings.pretrain, "pretrained", *keys)
    if settings.probes:
        epochs = load_config(PretrainConfig, pretrain.config, pretrain.overrides).optim.epochs
        rhythm = {"run": {"evaluate_epochs": epochs / settings.probes}}
        pretrain = command("pretrain", settings.pretrain, "pretrained", *keys, rhythm)
    if not settings.finetune:
        return TargetRuns(name, seed, before, pretrain, None, None)

    def tuned(part: str, weights: str, place: str) -> Command:
        trees = (shared.get("finetune", {}), entry.get("finetune", {}), {"model": {"weights": weights}})
        return command("finetune", settings.finetune, part, *trees, place=place)

    first = next(
        other
        for other in settings.targets
        if _finetune_keys(settings, other) == _finetune_keys(settings, name)
    )
    finetune = tuned("finetuned", "{run}/pretrained/weights.safetensors", "{run}")
    return TargetRuns(
        name, seed, before, pretrain, finetune, tuned("scratch", "", f"{{folder}}/{first}/seed_{seed}")
    )


def _finetune_keys(settings: CompareSettings, name: str) -> Mapping[str, Any]:
    """What an entry's fine-tuning has that others' may not have."""
    return (settings.targets[name] or {}).get("finetune", {})


def _last_line(path: Path) -> str:
    lines = path.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return lines[-1].strip() if lines else "it said nothing"
