"""``report``: read a run folder, finished or not, and write its HTML page."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from videomaskfeat import __version__
from videomaskfeat.errors import UserError
from videomaskfeat.io import is_file, is_folder, list_folder, open_file, whole_file
from videomaskfeat.texts import json_rows, parse_json, parse_yaml
from videomaskfeat.viz.report import Media, RunFacts, render_report

MEDIA_BYTES = 32 * 2**20
"""Pictures and films that a page takes in, together; the rest is named with its place."""
_TEXT_CHARACTERS = 1 << 24  # of a config or a summary, at most
MOST_BESIDE = 3
"""Runs drawn beside another one: a chart holds four colours."""


def report(
    folder: str | os.PathLike[str],
    out: str | os.PathLike[str] | None = None,
    *,
    beside: Sequence[str | os.PathLike[str]] = (),
) -> Path:
    """Write the report of a run.

    Args:
        folder: run folder with at least ``metrics.jsonl``; whatever else is missing is said to be missing.
        out: HTML file; None is ``report.html`` in the run folder.
        beside: other run folders, whose curves and accuracies are shown side by side with this run's.

    Returns:
        Where the page was written.

    Raises:
        UserError: there is no such folder, or it holds no metrics; or more runs than fit side by side.
    """
    if len(beside) > MOST_BESIDE:
        raise UserError(f"{len(beside)} runs beside another one: {MOST_BESIDE} fit at most; leave some out")
    run = Path(folder)
    others = [read_run(Path(other)) for other in beside]
    html = render_report(read_run(run), version=__version__, beside=others)
    target = run / "report.html" if out is None else Path(out)
    with whole_file(target) as file:
        file.write(html)
    return target


def read_run(run: Path) -> RunFacts:
    """Gather what a run folder holds: metrics, summary, config, environment, failures and pictures.

    A line or file that is cut off, as in a run that was killed, is left out and noted.

    Raises:
        UserError: there is no such folder, or it holds no metrics.
    """
    if not is_folder(run):
        raise UserError(f"{run}: no such run folder; give the run.folder of a training")
    if not is_file(run / "metrics.jsonl"):
        raise UserError(f"{run}: holds no metrics.jsonl; give the folder of a run that has made a step")
    notes: list[str] = []
    rows = list(_lines(run / "metrics.jsonl", notes))
    metrics = metric_columns(rows)
    if not len(metrics["step"]):
        raise UserError(f"{run / 'metrics.jsonl'}: holds no step yet; wait for the first one")
    failures: list[dict[str, Any]] | None = None
    if is_file(run / "failures.jsonl"):
        failures = list(_lines(run / "failures.jsonl", notes))
    elif "failures" in metrics and metrics["failures"][-1] == 0:
        failures = []  # the file is made by the first failure
    held_out = run / "heldout_failures.jsonl"
    config = _text(run / "config.yaml")
    settings = _settings(config)
    epochs = settings.get("optim.epochs")
    return RunFacts(
        name=run.resolve().name,
        metrics=metrics,
        summary=_mapping(run / "summary.json", notes),
        model=_shown(settings.get("model.name")),
        data=_shown(settings.get("data.train")),
        epochs=float(epochs) if isinstance(epochs, (int, float)) else None,
        config=config,
        environment=_mapping(run / "environment.json", notes),
        failures=failures,
        heldout_failures=list(_lines(held_out, notes)) if is_file(held_out) else [],
        media=_media(run / "pictures", notes),
        notes=notes,
    )


def metric_columns(rows: list[dict[str, Any]]) -> dict[str, np.ndarray]:
    """Rows of metrics.jsonl as one float [n] a name, by ascending step; NaN where a row lacks a number.

    A step that was recorded twice, as by a run that was killed and resumed, counts as it was last.
    """
    by_step = {row["step"]: row for row in rows if _is_number(row.get("step")) and math.isfinite(row["step"])}
    steps = sorted(by_step)
    names = {name: None for step in steps for name, value in by_step[step].items() if _is_number(value)}
    columns = {
        name: np.array(
            [by_step[s][name] if _is_number(by_step[s].get(name)) else math.nan for s in steps],
            dtype=np.float64,
        )
        for name in names
    }
    return {**columns, "step": np.array(steps, dtype=np.float64)}


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _shown(value: Any) -> str | None:
    """A value of a config of any content, as text."""
    return None if value is None else str(value)


def _settings(config: str | None) -> dict[str, Any]:
    """``section.key`` -> value of a config of whatever task and version; empty where it is no such YAML."""
    try:
        sections = parse_yaml(config or "", "config.yaml")
    except UserError:
        return {}
    if not isinstance(sections, dict):
        return {}
    return {
        f"{section}.{key}": value
        for section, keys in sections.items()
        if isinstance(keys, dict)
        for key, value in keys.items()
    }


def _lines(path: Path, notes: list[str]) -> Iterator[dict[str, Any]]:
    """The objects of a JSON-lines file."""
    unreadable = 0
    for row in json_rows(path, what="JSON lines"):
        if row is not None:
            yield row
        else:
            unreadable += 1
    if unreadable:
        notes.append(
            f"{path.name}: {unreadable} unreadable line(s) left out, as a run that is killed may leave."
        )


def _mapping(path: Path, notes: list[str]) -> dict[str, Any] | None:
    """The object in a JSON file."""
    text = _text(path)
    if text is None:
        return None
    try:
        value = parse_json(text, path.name, allow_nan=True)
    except UserError:
        value = None
    if not isinstance(value, dict):
        notes.append(f"{path.name}: no JSON object, left out.")
        return None
    return value


def _text(path: Path) -> str | None:
    if not is_file(path):
        return None
    with open_file(path, errors="replace") as file:
        return str(file.read(_TEXT_CHARACTERS))


def _media(folder: Path, notes: list[str]) -> list[Media]:
    """The pictures and films of a folder, as many as fit on a page; a clip's film after its picture."""
    if not is_folder(folder):
        return []
    names = [name for name in list_folder(folder) if name.lower().endswith((".png", ".mp4"))]
    names.sort(key=lambda name: (Path(name).stem, Path(name).suffix.lower() != ".png"))
    media: list[Media] = []
    room, left_out = MEDIA_BYTES, 0
    for name in names:
        with open_file(folder / name, "rb") as file:
            content = file.read(room + 1)
        if len(content) > room:
            left_out += 1
            continue
        room -= len(content)
        media.append(Media(name, content))
    if left_out:
        notes.append(f"{left_out} file(s) of {folder.name}/ left out: the page would be too large.")
    return media
