"""``compare``: pre-trains with several targets under one budget, and writes one page.

Each run is a command of the package in its own process. A comparison that was stopped continues with the
missing runs. The cost of a target is measured in this process.
"""

from __future__ import annotations

import itertools
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from threading import Lock
from typing import Any, Literal

import simplejson
import torch

from videomaskfeat.config import load_config
from videomaskfeat.config_keys import check_config, flat
from videomaskfeat.durations import duration_text
from videomaskfeat.engine import distributed
from videomaskfeat.engine.distributed import uses_bf16
from videomaskfeat.engine.lock import FolderLock
from videomaskfeat.engine.run_folder import RunFolder
from videomaskfeat.engine.threads import choose_threads
from videomaskfeat.environment import environment_text
from videomaskfeat.errors import RunFailed, UserError, check_name
from videomaskfeat.inference.clip_settings import INHERITED
from videomaskfeat.io import is_file, make_folder, remove_temporary_files, whole_file
from videomaskfeat.machine import keep_freed_memory
from videomaskfeat.methods.build import build_method, training_loader
from videomaskfeat.methods.method import Method
from videomaskfeat.processes import Verbs
from videomaskfeat.schemas.compare import CompareConfig, CompareSettings
from videomaskfeat.schemas.finetune import FinetuneConfig
from videomaskfeat.schemas.pretrain import PretrainConfig
from videomaskfeat.schemas.tokenizer import TokenizerConfig
from videomaskfeat.texts import read_json, show_text
from videomaskfeat.values import build_dataclass, conform
from videomaskfeat.viz.comparison import (
    SeedResult,
    TargetCost,
    TargetResults,
    join_names,
    render_comparison,
)
from videomaskfeat.viz.report import read_run

CONFIGS: dict[str, type] = {
    "pretrain": PretrainConfig,
    "finetune": FinetuneConfig,
    "train-tokenizer": TokenizerConfig,
}
"""Config class of each verb."""
TIMED_STEPS = 5
"""Timed steps per target, after two untimed steps."""
Report = Callable[[str], object]


def compare(config: CompareConfig, *, targets: Sequence[str] = (), report: Report = print) -> Path:
    """Run the missing runs, then write the page, ``table.json`` and ``table.md`` of all finished entries.

    Args:
        config: config of the comparison.
        targets: names of the entries to run; empty: all.
        report: receives lines on the start and the end of each run, with the time left.

    Returns:
        The page.

    Raises:
        UserError: the config is wrong; raised before the first run.
        RunFailed: a run did not finish; the same command continues.
    """
    section = config.compare
    runs = plan_runs(section, targets)
    with FolderLock(section.folder, remedy="choose another compare.folder"), Verbs() as verbs:
        remove_temporary_files(section.folder)
        # Targets that need no other run come first, to report mistakes in arguments early.
        for one in sorted(_first_seeds(runs), key=lambda one: bool(one.before)):
            _measure_cost(one, verbs, report)
        _run_all(runs, verbs, jobs=section.jobs, report=report)
        finished = [one for one in plan_runs(section) if all(command.finished for command in one)]
        for one in _first_seeds(finished):  # a run may have been moved here without its cost
            _measure_cost(one, verbs, report)
        return write_page(finished, Path(section.folder))


def _run_all(runs: Sequence[TargetRuns], verbs: Verbs, *, jobs: int, report: Report) -> None:
    """Run the runs that are not finished, ``jobs`` targets at a time."""
    threads = max((os.cpu_count() or 1) // jobs, 1) if jobs > 1 else None
    turns = {command.folder: Lock() for one in runs for command in one}  # several targets may need one run
    clock = _Clock([command for one in runs for command in one], jobs)

    def run(commands: TargetRuns) -> None:
        for command in commands:
            with turns[command.folder]:
                if not command.finished:
                    report(clock.started(command))
                    start = time.monotonic()
                    command.run(verbs, threads=threads)
                    report(clock.finished(command, time.monotonic() - start))

    with ThreadPoolExecutor(jobs) as pool:
        futures = [pool.submit(run, one) for one in runs]
        for number, (one, future) in enumerate(zip(runs, futures, strict=True), start=1):
            try:
                future.result()
            except BaseException:
                pool.shutdown(wait=True, cancel_futures=True)
                raise
            report(f"{number} of {len(runs)}: {one.target}, seed {one.seed}")


class _Clock:
    """Lines on the progress of the runs, with the time left.

    A run takes as long as the mean of the finished runs of its verb, or of all verbs if none has finished.

    Args:
        commands: all runs; equal folders count once, and finished runs do not count.
        jobs: number of parallel runs.
    """

    def __init__(self, commands: Sequence[Command], jobs: int) -> None:
        self._left = {command.folder: command for command in commands if not command.finished}
        self._total, self._jobs = len(self._left), jobs
        self._seconds: dict[str, list[float]] = {}

    def started(self, command: Command) -> str:
        """The line for a run that starts."""
        return (
            f"run {self._total - len(self._left) + 1} of {self._total}: {_name(command)}{self._time_left()}"
        )

    def finished(self, command: Command, seconds: float) -> str:
        """The line for a run that has finished."""
        del self._left[command.folder]
        self._seconds.setdefault(command.verb, []).append(seconds)
        left = self._time_left() if self._left else ""
        return f"  {_name(command)} took {duration_text(seconds)}{left}"

    def _time_left(self) -> str:
        times = [one for own in self._seconds.values() for one in own]
        if not times:
            return ""
        means = {verb: sum(own) / len(own) for verb, own in self._seconds.items()}
        rest = [means.get(command.verb, sum(times) / len(times)) for command in self._left.values()]
        return f"; about {duration_text(sum(rest) / min(self._jobs, max(len(rest), 1)))} left for all runs"


def _name(command: Command) -> str:
    return "/".join(command.folder.parts[-3:])


# The plan: the runs of each target with each seed.


@dataclass(frozen=True)
class Command:
    """One run: a verb of the package with its config.

    Attributes:
        folder: run folder, with ``summary.json`` if the run is finished.
        verb: pretrain, finetune or train-tokenizer.
        config: config file; empty: the defaults.
        overrides: ``section.key=value`` arguments.
    """

    folder: Path
    verb: str
    config: str
    overrides: tuple[str, ...]

    @property
    def finished(self) -> bool:
        """Whether the run has finished."""
        return is_file(self.folder / "summary.json")

    @property
    def run_folder(self) -> RunFolder:
        """The run folder with the resolved config.

        Raises:
            UserError: a key or a value is wrong.
        """
        return RunFolder(self.folder, load_config(CONFIGS[self.verb], self.config, self.overrides))

    def check(self) -> None:
        """Refuse a wrong config, and a finished run of another config.

        Raises:
            UserError: names key and value.
        """
        folder = self.run_folder
        if self.finished:
            folder.check()

    def run(self, verbs: Verbs, *, threads: int | None = None) -> None:
        """Start or resume the run in its own process, with its output in ``FOLDER.log``.

        Args:
            verbs: starts processes.
            threads: number of CPU threads; None: chosen by the run.

        Raises:
            RunFailed: the run did not finish, or a signal stopped it.
        """
        make_folder(self.folder.parent)
        path = self.folder.with_name(f"{self.folder.name}.log")
        environment = {} if threads is None else {"OMP_NUM_THREADS": str(threads)}
        config = ["--config", self.config] if self.config else []
        with path.open("a", encoding="utf-8") as log:
            code = verbs.run([self.verb, *config, *self.overrides], log=log, environment=environment)
        if not self.finished:
            lines = path.read_text(encoding="utf-8", errors="replace").strip().splitlines()
            raise RunFailed(
                f"{self.folder}: the run failed with exit code {code}: "
                f"{lines[-1].strip() if lines else 'no output'} (full log: {path}); fix the cause and "
                f"start the same command again to continue"
            )


@dataclass(frozen=True)
class TargetRuns:
    """The runs of one target with one seed, in order.

    Attributes:
        target: name of the entry.
        seed: seed of all runs.
        before: runs that the others need, such as a tokenizer's.
        pretrain: the run that is compared.
        finetunes: fine-tunings of its encoder by name ("" for the only one); empty without fine-tuning.
        scratch: the same fine-tunings from random weights; shared by entries with the same keys.
    """

    target: str
    seed: int
    before: tuple[Command, ...]
    pretrain: Command
    finetunes: Mapping[str, Command]
    scratch: Mapping[str, Command]

    def __iter__(self) -> Iterator[Command]:
        return iter([*self.before, self.pretrain, *self.finetunes.values(), *self.scratch.values()])

    def pretrain_config(self) -> PretrainConfig:
        """The resolved config of the pre-training.

        Raises:
            UserError: a key or a value is wrong.
        """
        return load_config(PretrainConfig, self.pretrain.config, self.pretrain.overrides)


@dataclass(frozen=True)
class _Shared:
    """``compare.shared``: section -> key -> value, for all entries."""

    pretrain: Mapping[str, Any] = field(default_factory=dict)
    finetune: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class _Before:
    """A run in ``before`` of an entry."""

    verb: Literal["pretrain", "train-tokenizer"]
    config: str = ""
    keys: Mapping[str, Any] = field(default_factory=dict)
    folder: str = "{run}"


@dataclass(frozen=True)
class _Entry(_Shared):
    """An entry of ``compare.targets``."""

    before: Mapping[str, _Before] = field(default_factory=dict)


def plan_runs(section: CompareSettings, targets: Sequence[str] = ()) -> list[TargetRuns]:
    """All runs by target and seed.

    Raises:
        UserError: a key is missing or unknown, a target is unknown, a config does not load, or a finished run
            belongs to another config.
    """
    check_config(CompareConfig(section))
    tunings = conform(section.finetunes, Mapping[str, Mapping[str, Any]], "compare.finetunes") or {"": {}}
    shared = build_dataclass(_Shared, section.shared, name="compare.shared")
    entries = {
        name: build_dataclass(_Entry, {} if entry is None else entry, name=f"compare.targets.{name}")
        for name, entry in section.targets.items()
    }
    runs = []
    for name in targets or entries:  # reports mistakes in all entries before the first run
        check_name("--targets: compare.targets entry", name, entries)
        with _naming(name):
            own = [
                _plan_target(section, shared, tunings, entries, name, seed + 1)
                for seed in range(section.seeds)
            ]
            for command in itertools.chain(*own):
                command.check()
        runs += own
    return runs


def _plan_target(
    section: CompareSettings,
    shared: _Shared,
    tunings: Mapping[str, Mapping[str, Any]],
    entries: Mapping[str, _Entry],
    name: str,
    seed: int,
) -> TargetRuns:
    """The runs of an entry with a seed."""
    folder, entry = Path(section.folder), entries[name]
    places = {"{folder}": str(folder), "{run}": str(folder / name / f"seed_{seed}"), "{seed}": str(seed)}

    def plan(verb: str, config: str, name: str, *trees: Mapping[str, Any], place: str = "{run}") -> Command:
        own = {"run": {"seed": seed, "folder": f"{place}/{name}"}}
        texts = [f"{place}/{name}", config, *(text for tree in (*trees, own) for text in overrides_of(tree))]
        for word, value in places.items():
            texts = [text.replace(word, value) for text in texts]
        return Command(Path(texts[0]), verb, texts[1], tuple(texts[2:]))

    def plan_finetunings(kind: str, weights: str, place: str) -> dict[str, Command]:
        rest = (entry.finetune, {"model": {"weights": weights}})
        return {
            name: _with_own_clips(
                plan(
                    "finetune",
                    section.finetune,
                    join_names(kind, name),
                    shared.finetune,
                    keys,
                    *rest,
                    place=place,
                )
            )
            for name, keys in tunings.items()
        }

    before = tuple(
        plan(run.verb, run.config, name, run.keys, place=run.folder) for name, run in entry.before.items()
    )
    keys = (shared.pretrain, entry.pretrain)
    pretrain = plan("pretrain", section.pretrain, "pretrained", *keys)
    if section.probes:
        epochs = load_config(PretrainConfig, pretrain.config, pretrain.overrides).optim.epochs
        interval = {"run": {"evaluate_epochs": epochs / section.probes}}
        pretrain = plan("pretrain", section.pretrain, "pretrained", *keys, interval)
    if not section.finetune:
        return TargetRuns(name, seed, before, pretrain, {}, {})
    first = next(other for other, one in entries.items() if one.finetune == entry.finetune)
    finetunes = plan_finetunings("finetuned", "{run}/pretrained/weights.safetensors", "{run}")
    scratch = plan_finetunings("scratch", "", f"{{folder}}/{first}/seed_{seed}")
    return TargetRuns(name, seed, before, pretrain, finetunes, scratch)


def _with_own_clips(command: Command) -> Command:
    """The command with all clip settings of its config, so that it takes none from its weights.

    With and without pre-training, a target is fine-tuned on the same clips.
    """
    values = flat(load_config(FinetuneConfig, command.config, command.overrides))
    own = tuple(f"{name}={json.dumps(values[name])}" for name in INHERITED)
    return replace(command, overrides=(*command.overrides, *own))


def overrides_of(tree: Mapping[str, Any]) -> list[str]:
    """Section -> key -> value as ``section.key=value`` arguments; the value of a section may be a name."""
    arguments = []
    for section, values in tree.items():
        if not isinstance(values, Mapping):
            arguments.append(f"{section}={json.dumps(values)}")
            continue
        arguments += [f"{section}.{name}={json.dumps(value)}" for name, value in values.items()]
    return arguments


@contextmanager
def _naming(target: str) -> Iterator[None]:
    """Name the entry in errors."""
    try:
        yield
    except UserError as error:
        raise UserError(f"compare.targets.{target}: {error}") from error


def _first_seeds(runs: Sequence[TargetRuns]) -> list[TargetRuns]:
    """The first seed of each target."""
    firsts: dict[str, TargetRuns] = {}
    for one in runs:
        firsts.setdefault(one.target, one)
    return list(firsts.values())


# The cost of a target, stored in cost.json next to its runs.


def method_cost(config: PretrainConfig, *, steps: int = TIMED_STEPS) -> TargetCost:
    """Time one micro-batch of the training list, without data loading and optimizer.

    Args:
        config: config of a pre-training; its run folder is not changed.
        steps: number of timed passes, after two untimed ones.

    Raises:
        UserError: a key of the config is wrong.
    """
    method, batch, device = method_on_batch(config)
    bf16 = uses_bf16(config.run.precision, device)

    def step() -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            loss = method.loss(method.student, batch).loss
        loss.backward()
        method.student.zero_grad(set_to_none=True)

    def target() -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            method.make_target(batch)

    if device.type == "cpu":
        choose_threads(step)
    return TargetCost(
        step_ms=_median_ms(step, device, steps),
        clips=config.optim.batch_size // config.optim.accumulate,
        target_ms=_median_ms(target, device, steps),
        parameters=sum(weight.numel() for weight in method.student.parameters() if weight.requires_grad),
    )


def method_on_batch(config: PretrainConfig) -> tuple[Method, Any, torch.device]:
    """The method with initial weights, one batch of the training list, and the device of both.

    Raises:
        UserError: a key of the config is wrong.
    """
    device = distributed.choose_device(config.run.device)
    if device.type == "cpu":
        keep_freed_memory()
    torch.manual_seed(config.run.seed)
    config = replace(config, data=replace(config.data, workers=0))
    method = build_method(config)
    method.student.to(device)
    method.to(device)
    with training_loader(config, method) as loader:
        batch = next(iter(loader.epoch(0))).to(device)
    return method, batch, device


def _median_ms(work: Callable[[], None], device: torch.device, steps: int) -> float:
    """Median milliseconds per call, after two untimed calls."""
    times = []
    for _ in range(2 + steps):
        start = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(1e3 * (time.perf_counter() - start))
    return sorted(times[2:])[steps // 2]


def _measure_cost(runs: TargetRuns, verbs: Verbs, report: Report) -> None:
    """Time a step and its target unless this was done for the config; needed runs come first."""
    path, fingerprint = _cost_path(runs), runs.pretrain.run_folder.fingerprint
    if is_file(path):
        try:
            if _read_cost(path)[0] == fingerprint:
                return
        except UserError as error:  # cut off by a kill: measure again
            report(str(error))
    for command in runs.before:
        if not command.finished:
            command.run(verbs)
            report(f"{runs.target}: {command.folder.name} is ready")
    with _naming(runs.target):
        cost = method_cost(runs.pretrain_config())
    make_folder(path.parent)
    with whole_file(path) as file:
        file.write(json.dumps({"of": fingerprint, "cost": vars(cost)}))
    step, target = duration_text(cost.step_ms / 1e3), duration_text(cost.target_ms / 1e3)
    report(f"{runs.target}: time per micro-batch {step}, target {target}")


def _cost_path(runs: TargetRuns) -> Path:
    return runs.pretrain.folder.parent.parent / "cost.json"


def _read_cost(path: Path) -> tuple[Any, TargetCost]:
    """The config that a cost was measured with, and the cost.

    Raises:
        UserError: the file is damaged.
    """
    plain = read_json(path, what="the cost of a target")
    try:
        return plain["of"], build_dataclass(TargetCost, plain["cost"])
    except (KeyError, TypeError, UserError) as error:
        raise UserError(f"{path} is damaged ({show_text(error)}); remove it, and start again") from error


# The page.


def write_page(runs: Sequence[TargetRuns], folder: Path) -> Path:
    """Write the page of finished runs, and its table as JSON and Markdown."""
    results = [
        TargetResults(
            name=first.target,
            model=first.pretrain_config().model.name,
            cost=_read_cost(_cost_path(first))[1],
            seeds=[_seed_result(one, folder) for one in runs if one.target == first.target],
            micro_batches=first.pretrain_config().optim.accumulate,
        )
        for first in _first_seeds(runs)
    ]
    machine = json.loads(environment_text(folder))
    content = {"machine": machine, "targets": [one.row() for one in results]}
    html = render_comparison(results, title=folder.name, provenance=machine["provenance"])
    for name, text in (
        ("table.json", simplejson.dumps(content, indent=2, ignore_nan=True)),
        ("table.md", TargetResults.markdown(results)),
        ("report.html", html),
    ):
        with whole_file(folder / name) as file:
            file.write(text)
    return folder / "report.html"


def _seed_result(runs: TargetRuns, folder: Path) -> SeedResult:
    facts = read_run(runs.pretrain.folder)
    tuned, scratch = (
        {name: read_run(command.folder).summary or {} for name, command in commands.items()}
        for commands in (runs.finetunes, runs.scratch)
    )
    return SeedResult(
        seed=runs.seed,
        reports=[os.path.relpath(command.folder / "report.html", folder) for command in runs],
        metrics=facts.metrics,
        summary=facts.summary or {},
        finetuned=tuned,
        scratch=scratch,
    )
