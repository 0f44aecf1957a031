"""``compare``: several targets under one budget, on one page.

The runs are commands of the package in processes of their own; a comparison that was stopped goes on with
what is missing. A target's cost is measured in this process.
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

from videomaskfeat.config import check_config, load_config
from videomaskfeat.durations import duration_text
from videomaskfeat.engine import distributed
from videomaskfeat.engine.distributed import uses_bf16
from videomaskfeat.engine.lock import FolderLock
from videomaskfeat.engine.run import RunFolder
from videomaskfeat.engine.threads import choose_threads
from videomaskfeat.environment import environment_text
from videomaskfeat.errors import RunFailed, UserError, check_name
from videomaskfeat.io import is_file, make_folder, remove_temporary_files, whole_file
from videomaskfeat.machine import keep_freed_memory
from videomaskfeat.methods.build import build_method, training_loader
from videomaskfeat.methods.method import Method
from videomaskfeat.processes import Verbs
from videomaskfeat.schemas import (
    CompareConfig,
    CompareSettings,
    FinetuneConfig,
    PretrainConfig,
    TokenizerConfig,
)
from videomaskfeat.texts import read_json, show_text
from videomaskfeat.values import build_dataclass
from videomaskfeat.viz.comparison import SeedResult, TargetCost, TargetResults, render_comparison
from videomaskfeat.viz.report import read_run

CONFIGS: dict[str, type] = {
    "pretrain": PretrainConfig,
    "finetune": FinetuneConfig,
    "train-tokenizer": TokenizerConfig,
}
"""Config class of a verb."""
TIMED_STEPS = 5
"""Steps whose median is a target's cost; two precede them."""
Say = Callable[[str], object]


def compare(config: CompareConfig, *, targets: Sequence[str] = (), say: Say = print) -> Path:
    """Run what is missing, then write the page, ``table.json`` and ``table.md`` into the folder.

    They hold every finished entry, also those that are not among ``targets``. All entries have the schedule
    of the shared config unless they set their own.

    Args:
        config: see :class:`~videomaskfeat.config.CompareSettings`.
        targets: entries to run; empty: all.
        say: gets a line when a run is done.

    Returns:
        The page.

    Raises:
        UserError: the config is wrong; raised before the first run.
        RunFailed: a run did not finish; the same command goes on.
    """
    settings = config.compare
    runs = plan_runs(settings, targets)
    with FolderLock(settings.folder, remedy="choose another compare.folder"), Verbs() as verbs:
        remove_temporary_files(settings.folder)
        # Targets that need no other run come first: a mistake in one's arguments shows before hours pass.
        for one in sorted(_first_seeds(runs), key=lambda one: bool(one.before)):
            _measure_cost(one, verbs, say)
        _run_all(runs, verbs, jobs=settings.jobs, say=say)
        finished = [one for one in plan_runs(settings) if all(command.finished for command in one)]
        for one in _first_seeds(finished):  # an earlier one may have been moved here without its cost
            _measure_cost(one, verbs, say)
        return write_page(finished, Path(settings.folder))


def _run_all(runs: Sequence[TargetRuns], verbs: Verbs, *, jobs: int, say: Say) -> None:
    """Run what is not finished, ``jobs`` targets at a time."""
    threads = max((os.cpu_count() or 1) // jobs, 1) if jobs > 1 else None
    turns = {command.folder: Lock() for one in runs for command in one}  # several targets may need one run

    def run(commands: TargetRuns) -> None:
        for command in commands:
            with turns[command.folder]:
                if not command.finished:
                    command.run(verbs, threads=threads)

    with ThreadPoolExecutor(jobs) as pool:
        futures = [pool.submit(run, one) for one in runs]
        for number, (one, future) in enumerate(zip(runs, futures, strict=True), start=1):
            try:
                future.result()
            except BaseException:
                pool.shutdown(wait=True, cancel_futures=True)
                raise
            say(f"{number} of {len(runs)}: {one.target}, seed {one.seed}")


# The plan: the runs of each target with each seed.


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
        """Whether the run has finished."""
        return is_file(self.folder / "summary.json")

    @property
    def run_folder(self) -> RunFolder:
        """Its folder with its resolved config.

        Raises:
            UserError: a key or a value is wrong.
        """
        return RunFolder(self.folder, load_config(CONFIGS[self.verb], self.config, self.overrides))

    def check(self) -> None:
        """Refuse a wrong config, and a finished run of another one.

        Raises:
            UserError: names key and value.
        """
        folder = self.run_folder
        if self.finished:
            folder.check()

    def run(self, verbs: Verbs, *, threads: int | None = None) -> None:
        """Run it in a process of its own, from where it was stopped; its output goes to ``FOLDER.log``.

        Args:
            verbs: runs it.
            threads: CPU threads; None: as many as it chooses.

        Raises:
            RunFailed: it did not finish, or a signal stopped it.
        """
        make_folder(self.folder.parent)
        path = self.folder.with_suffix(".log")
        environment = {} if threads is None else {"OMP_NUM_THREADS": str(threads)}
        config = ["--config", self.config] if self.config else []
        with path.open("a", encoding="utf-8") as log:
            code = verbs.run([self.verb, *config, *self.overrides], log=log, environment=environment)
        if not self.finished:
            lines = path.read_text(encoding="utf-8", errors="replace").strip().splitlines()
            raise RunFailed(
                f"{self.folder}: ended with code {code} and is not finished: "
                f"{lines[-1].strip() if lines else 'no output'} (all of it in {path}); mend that, and the "
                "same command goes on"
            )


@dataclass(frozen=True)
class TargetRuns:
    """The runs of one target with one seed, in their order.

    Attributes:
        target: its name in the comparison.
        seed: of all its runs.
        before: runs that the others need, such as a tokenizer's.
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
        rest = (self.pretrain, self.finetune, self.scratch)
        return iter([*self.before, *(command for command in rest if command is not None)])

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


def plan_runs(settings: CompareSettings, targets: Sequence[str] = ()) -> list[TargetRuns]:
    """All runs, target by target, and each target's by seed.

    Args:
        settings: see :class:`~videomaskfeat.config.CompareSettings`.
        targets: names of the entries to run; empty: all.

    Raises:
        UserError: a key is missing or unknown, a target is unknown, a config does not load, or a finished run
            belongs to another config.
    """
    check_config(CompareConfig(settings))
    shared = build_dataclass(_Shared, settings.shared, name="compare.shared")
    entries = {
        name: build_dataclass(_Entry, {} if entry is None else entry, name=f"compare.targets.{name}")
        for name, entry in settings.targets.items()
    }
    runs = []
    for name in targets or entries:  # a mistake in the last one is reported before the first run begins
        check_name("--targets: compare.targets entry", name, entries)
        with _naming(name):
            own = [_plan_target(settings, shared, entries, name, seed + 1) for seed in range(settings.seeds)]
            for command in itertools.chain(*own):
                command.check()
        runs += own
    return runs


def _plan_target(
    settings: CompareSettings, shared: _Shared, entries: Mapping[str, _Entry], name: str, seed: int
) -> TargetRuns:
    """The runs of an entry with a seed."""
    folder, entry = Path(settings.folder), entries[name]
    places = {"{folder}": str(folder), "{run}": str(folder / name / f"seed_{seed}"), "{seed}": str(seed)}

    def plan(verb: str, config: str, part: str, *trees: Mapping[str, Any], place: str = "{run}") -> Command:
        own = {"run": {"seed": seed, "folder": f"{place}/{part}"}}
        texts = [f"{place}/{part}", config, *(text for tree in (*trees, own) for text in overrides_of(tree))]
        for word, value in places.items():
            texts = [text.replace(word, value) for text in texts]
        return Command(Path(texts[0]), verb, texts[1], tuple(texts[2:]))

    def plan_finetuning(part: str, weights: str, place: str) -> Command:
        trees = (shared.finetune, entry.finetune, {"model": {"weights": weights}})
        return plan("finetune", settings.finetune, part, *trees, place=place)

    before = tuple(
        plan(run.verb, run.config, part, run.keys, place=run.folder) for part, run in entry.before.items()
    )
    keys = (shared.pretrain, entry.pretrain)
    pretrain = plan("pretrain", settings.pretrain, "pretrained", *keys)
    if settings.probes:
        epochs = load_config(PretrainConfig, pretrain.config, pretrain.overrides).optim.epochs
        rhythm = {"run": {"evaluate_epochs": epochs / settings.probes}}
        pretrain = plan("pretrain", settings.pretrain, "pretrained", *keys, rhythm)
    if not settings.finetune:
        return TargetRuns(name, seed, before, pretrain, None, None)
    alike = next(other for other, one in entries.items() if one.finetune == entry.finetune)
    finetune = plan_finetuning("finetuned", "{run}/pretrained/weights.safetensors", "{run}")
    scratch = plan_finetuning("scratch", "", f"{{folder}}/{alike}/seed_{seed}")
    return TargetRuns(name, seed, before, pretrain, finetune, scratch)


def overrides_of(tree: Mapping[str, Any]) -> list[str]:
    """Section -> key -> value as ``section.key=value`` arguments; a section may be its name alone."""
    arguments = []
    for section, values in tree.items():
        if not isinstance(values, Mapping):
            arguments.append(f"{section}={json.dumps(values)}")
            continue
        arguments += [f"{section}.{name}={json.dumps(value)}" for name, value in values.items()]
    return arguments


@contextmanager
def _naming(target: str) -> Iterator[None]:
    """Name the entry that a mistake is in."""
    try:
        yield
    except UserError as error:
        raise UserError(f"compare.targets.{target}: {error}") from error


def _first_seeds(runs: Sequence[TargetRuns]) -> list[TargetRuns]:
    """The first seed of each target, in the targets' order."""
    firsts: dict[str, TargetRuns] = {}
    for one in runs:
        firsts.setdefault(one.target, one)
    return list(firsts.values())


# The cost of a target, kept in cost.json beside its runs.


def method_cost(config: PretrainConfig, *, steps: int = TIMED_STEPS) -> TargetCost:
    """Time steps on one batch of the config's training list, in this process, without data and optimizer.

    Args:
        config: of a pre-training; its run folder is not touched.
        steps: whose median counts; two more precede them.

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
        parameters=sum(part.numel() for part in method.student.parameters() if part.requires_grad),
    )


def method_on_batch(config: PretrainConfig) -> tuple[Method, Any, torch.device]:
    """The config's method with fresh weights, and one batch of its training list, on the config's device.

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
    """Milliseconds of a call, the median of several after two that do not count."""
    times = []
    for _ in range(2 + steps):
        start = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(1e3 * (time.perf_counter() - start))
    return sorted(times[2:])[steps // 2]


def _measure_cost(runs: TargetRuns, verbs: Verbs, say: Say) -> None:
    """Time a step and its target, unless that is done for this config; what the target needs is run first."""
    path, fingerprint = _cost_path(runs), runs.pretrain.run_folder.fingerprint
    if is_file(path):
        try:
            if _read_cost(path)[0] == fingerprint:
                return
        except UserError as error:  # cut off by a kill: it is measured again
            say(str(error))
    for command in runs.before:
        if not command.finished:
            command.run(verbs)
            say(f"{runs.target}: {command.folder.name} is ready")
    with _naming(runs.target):
        cost = method_cost(runs.pretrain_config())
    make_folder(path.parent)
    with whole_file(path) as file:
        file.write(json.dumps({"of": fingerprint, "cost": vars(cost)}))
    step, target = duration_text(cost.step_ms / 1e3), duration_text(cost.target_ms / 1e3)
    say(f"{runs.target}: time per step {step}, of which the target takes {target}")


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
        raise UserError(f"{path}: is damaged ({show_text(error)}); remove it, and start again") from error


# The page.


def write_page(runs: Sequence[TargetRuns], folder: Path) -> Path:
    """The page of finished runs, and its table as JSON and as Markdown."""
    results = [
        TargetResults(
            name=first.target,
            model=first.pretrain_config().model.name,
            cost=_read_cost(_cost_path(first))[1],
            seeds=[_seed_result(one, folder) for one in runs if one.target == first.target],
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
        {} if command is None else read_run(command.folder).summary or {}
        for command in (runs.finetune, runs.scratch)
    )
    return SeedResult(
        seed=runs.seed,
        reports=[os.path.relpath(command.folder / "report.html", folder) for command in runs],
        metrics=facts.metrics,
        summary=facts.summary or {},
        finetuned=tuned,
        scratch=scratch,
    )
