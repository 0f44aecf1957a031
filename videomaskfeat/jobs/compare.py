"""What a training step of a method costs, and how much of it is making its target."""

from __future__ import annotations

import itertools
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Lock
from typing import Any

import simplejson
import torch

from videomaskfeat.config import check_config, load_config
from videomaskfeat.durations import duration_text
from videomaskfeat.engine import distributed
from videomaskfeat.engine.distributed import uses_bf16
from videomaskfeat.engine.lock import FolderLock
from videomaskfeat.engine.run import RunFolder
from videomaskfeat.engine.threads import choose_threads
from videomaskfeat.errors import RunFailed, UserError, check_name
from videomaskfeat.io import is_file, make_folder, remove_temporary_files, whole_file
from videomaskfeat.jobs.doctor import diagnose
from videomaskfeat.machine import keep_freed_memory
from videomaskfeat.methods import build_method
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
from videomaskfeat.values import from_parts
from videomaskfeat.viz.comparison import SeedResult, TargetCost, TargetResults, render_comparison
from videomaskfeat.viz.report import read_run

TIMED_STEPS = 5
"""Steps of which the median counts; two come before them."""


def method_cost(config: PretrainConfig, *, steps: int = TIMED_STEPS) -> TargetCost:
    """Time steps on one batch of the config's training list, in this process, without data and optimiser.

    Args:
        config: of a pre-training; its run folder is not touched.
        steps: of which the median counts; two more come before them.

    Raises:
        UserError: a setting of the config is wrong.
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
        UserError: a setting of the config is wrong.
    """
    device = distributed.choose_device(config.run.device)
    if device.type == "cpu":
        keep_freed_memory()
    torch.manual_seed(config.run.seed)
    config = replace(config, data=replace(config.data, workers=0))
    method = build_method(config)
    method.student.to(device)
    method.to(device)
    with method.training_loader(rank=0, world_size=1) as loader:
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


# What a comparison runs: each target's runs with each seed, as commands of the package.
CONFIGS: dict[str, type] = {
    "pretrain": PretrainConfig,
    "finetune": FinetuneConfig,
    "train-tokenizer": TokenizerConfig,
}
"""Config class of a verb."""
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
        config: Any = load_config(CONFIGS[self.verb], self.config, self.overrides)
        return RunFolder(str(self.folder), config)

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
        settings: see :class:`~videomaskfeat.config.CompareSettings`.
        targets: names of the entries to run; none: all of them.

    Raises:
        UserError: a key is missing or unknown, a target is unknown, a config does not load, or a finished run
            is one of another config.
    """
    _check_settings(settings)
    names = list(targets) or list(settings.targets)
    for name in names:
        check_name("--targets: compare.targets entry", name, settings.targets)
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
    check_config(CompareConfig(settings))
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
        check_name(f"{where}: key", key, known)


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


# ``compare``: several targets under one budget, on one page.


def compare(
    config: CompareConfig,
    *,
    targets: Sequence[str] = (),
    say: Any = print,
) -> Path:
    """Run what is left to run, then write the page, ``table.json`` and ``table.md`` into the folder.

    They hold every entry that is finished, also those that were not asked for this time.
    All have the schedule of the shared config unless their entries differ; times and memory stand beside what
    they bought.

    Args:
        config: see :class:`~videomaskfeat.config.CompareSettings`.
        targets: entries to run; none: all.
        say: told a line whenever a run is done.

    Returns:
        The page.

    Raises:
        UserError: the config is wrong; said before the first run.
        RunFailed: a run did not finish; the same command goes on.
    """
    settings = config.compare
    runs = plan_runs(settings, targets)
    with FolderLock(settings.folder, remedy="choose another compare.folder"), Verbs() as verbs:
        return _compare(settings, runs, verbs, say)


def _compare(settings: CompareSettings, runs: Sequence[TargetRuns], verbs: Verbs, say: Any) -> Path:
    all_runs = plan_runs(settings)
    folder = Path(settings.folder)
    remove_temporary_files(folder)
    # Those that need nothing first come first: a mistake in a target's arguments is said before hours pass.
    for one in sorted(_first_of_each(runs), key=lambda one: bool(one.before)):
        _cost_of(one, verbs, say)
    threads = max((os.cpu_count() or 1) // settings.jobs, 1) if settings.jobs > 1 else None
    turns = {command.folder: Lock() for one in runs for command in one}
    with ThreadPoolExecutor(settings.jobs) as pool:
        futures = [pool.submit(_run_all, one, verbs, threads, turns) for one in runs]
        for number, (one, future) in enumerate(zip(runs, futures, strict=True), start=1):
            try:
                future.result()
            except BaseException:
                pool.shutdown(wait=True, cancel_futures=True)
                raise
            say(f"{number} of {len(runs)}: {one.target}, seed {one.seed}")
    finished = [one for one in all_runs if all(command.finished for command in one)]
    for one in _first_of_each(finished):  # one of another time may have been moved here without its cost
        _cost_of(one, verbs, say)
    return write_page(finished, folder)


def write_page(runs: Sequence[TargetRuns], folder: Path) -> Path:
    """The page of finished runs, and its table as JSON and as Markdown."""
    results = [
        TargetResults(
            name=first.target,
            model=first.pretrain_config().model.name,
            cost=_read_cost(_cost_path(first))[1],
            seeds=[_seed_result(one, folder) for one in runs if one.target == first.target],
        )
        for first in _first_of_each(runs)
    ]
    content = {"machine": json.loads(diagnose(folder).to_json()), "targets": [one.row() for one in results]}
    for name, text in (
        ("table.json", simplejson.dumps(content, indent=2, ignore_nan=True)),
        ("table.md", TargetResults.markdown(results)),
        ("report.html", render_comparison(results, title=folder.name)),
    ):
        with whole_file(folder / name) as file:
            file.write(text)
    return folder / "report.html"


def _run_all(runs: TargetRuns, verbs: Verbs, threads: int | None, turns: Mapping[Path, Lock]) -> None:
    for command in runs:
        with turns[command.folder]:  # one run may come before several others
            if not command.finished:
                command.run(verbs, threads=threads)


def _first_of_each(runs: Sequence[TargetRuns]) -> list[TargetRuns]:
    """The first seed of each target, in the targets' order."""
    firsts: dict[str, TargetRuns] = {}
    for one in runs:
        firsts.setdefault(one.target, one)
    return list(firsts.values())


def _seed_result(runs: TargetRuns, folder: Path) -> SeedResult:
    facts = read_run(runs.pretrain.folder)
    reports = [os.path.relpath(one.folder / "report.html", folder) for one in runs]
    tuned, scratch = (
        (read_run(one.folder).summary or {}) if one is not None else {}
        for one in (runs.finetune, runs.scratch)
    )
    return SeedResult(
        seed=runs.seed,
        reports=reports,
        metrics=facts.metrics,
        summary=facts.summary or {},
        finetuned=tuned,
        scratch=scratch,
    )


def _cost_path(runs: TargetRuns) -> Path:
    return runs.pretrain.folder.parent.parent / "cost.json"


def _read_cost(path: Path) -> tuple[Any, TargetCost]:
    """The settings that a cost was measured with, and the cost.

    Raises:
        UserError: the file is damaged.
    """
    plain = read_json(path, what="the cost of a target")
    try:
        return plain["of"], from_parts(TargetCost, plain["cost"])
    except (KeyError, TypeError, UserError) as error:
        raise UserError(f"{path}: is damaged ({show_text(error)}); remove it, and start again") from error


def _cost_of(runs: TargetRuns, verbs: Verbs, say: Any) -> None:
    """Time a step and its target in this process, before any run; kept beside the target's runs.

    What the target needs first (a tokenizer, a teacher) is made first.
    """
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
    with naming(runs.target):
        cost = method_cost(runs.pretrain_config())
    make_folder(path.parent)
    with whole_file(path) as file:
        file.write(json.dumps({"of": fingerprint, "cost": vars(cost)}))
    step, target = duration_text(cost.step_ms / 1e3), duration_text(cost.target_ms / 1e3)
    say(f"{runs.target}: time per step {step}, of which the target takes {target}")
