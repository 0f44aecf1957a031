"""``compare``: several targets under one budget, on one page."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Lock
from typing import Any

import simplejson

from videomaskfeat import __version__
from videomaskfeat.config.compare import CompareConfig, CompareSettings
from videomaskfeat.durations import duration_text
from videomaskfeat.errors import UserError
from videomaskfeat.io import is_file, make_folder, remove_temporary_files, whole_file
from videomaskfeat.processes import Verbs
from videomaskfeat.tasks.doctor import diagnose
from videomaskfeat.tasks.folder_lock import FolderLock
from videomaskfeat.tasks.pretraining.compare_plan import TargetRuns, naming, plan_runs
from videomaskfeat.tasks.pretraining.method_cost import method_cost
from videomaskfeat.tasks.report import read_run
from videomaskfeat.texts import read_json, show_text
from videomaskfeat.values import from_parts
from videomaskfeat.viz.comparison import SeedResult, TargetCost, TargetResults, render_comparison


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
        config: see :class:`~videomaskfeat.config.compare.CompareSettings`.
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
        ("report.html", render_comparison(results, version=__version__, title=folder.name)),
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
