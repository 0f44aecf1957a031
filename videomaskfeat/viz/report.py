"""The report of a run: what its folder holds, as one page."""

from __future__ import annotations

import json
import math
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from videomaskfeat.errors import UserError
from videomaskfeat.io import is_file, is_folder, list_folder, open_file, whole_file
from videomaskfeat.targets.target import margin
from videomaskfeat.texts import json_rows, parse_json, parse_yaml
from videomaskfeat.viz.charts import Curve, line_chart
from videomaskfeat.viz.page import data_url, flattened, number, render_page, table

MEDIA_BYTES = 32 * 2**20
"""Pictures and films that a page takes in, together; the rest is named with its place."""
_TEXT_CHARACTERS = 1 << 24  # of a config or a summary, at most
_WEBP_QUALITY = 75  # of pictures on a page; the files in the run folder stay exact
_FAILURES_SHOWN = 200
_NOW = 50  # steps behind "loss now"

KINDS = ("pretrain", "finetune", "detect", "tokenizer")
# Which metrics a page draws, and under which names.
_CURVES = json.loads((Path(__file__).parent / "templates/curves.json").read_text(encoding="utf-8"))


@dataclass(frozen=True)
class RunFacts:
    """What is known of a run; None if nothing was recorded.

    Attributes:
        name: of the run.
        metrics: float [n] per name, one value per recorded step, NaN if a step lacks it: always ``step``.
        summary: written when a run ends; whatever it holds is listed.
        settings: ``section.key`` -> value of the config.
        config: the resolved config as text.
        environment: versions, machine, devices; may be nested.
        failures: a mapping each time a video could not be read, with ``path`` and ``cause``.
        heldout_failures: likewise for held-out videos, which nothing stands in for.
        media: file name and content of pictures (PNG) and films (mp4).
        notes: what could not be read or was left out, a sentence each.
    """

    name: str
    metrics: Mapping[str, np.ndarray]
    summary: Mapping[str, Any] | None
    settings: Mapping[str, Any]
    config: str | None
    environment: Mapping[str, Any] | None
    failures: Sequence[Mapping[str, Any]] | None
    heldout_failures: Sequence[Mapping[str, Any]]
    media: Sequence[tuple[str, bytes]]
    notes: Sequence[str]

    def finite(self, key: str) -> np.ndarray:
        """The finite values of a metric, float [m]; empty if it was not recorded."""
        values = self.metrics.get(key, np.empty(0))
        return values[np.isfinite(values)]


def write_report(
    folder: str | os.PathLike[str],
    out: str | os.PathLike[str] | None = None,
    *,
    beside: Sequence[str | os.PathLike[str]] = (),
) -> Path:
    """Write the report of a run, finished or not.

    Args:
        folder: run folder with at least ``metrics.jsonl``; the page says what else is missing.
        out: HTML file; None is ``report.html`` in the run folder.
        beside: other run folders, whose curves and accuracies are shown side by side with this run's.

    Returns:
        Where the page was written.

    Raises:
        UserError: there is no such folder, or it holds no metrics.
    """
    run = Path(folder)
    others = [read_run(Path(other)) for other in beside]
    html = render_page("report", report_data(read_run(run), others))
    target = run / "report.html" if out is None else Path(out)
    with whole_file(target) as file:
        file.write(html)
    return target


def read_run(run: Path) -> RunFacts:
    """Gather what a run folder holds.

    A line or file that is cut off, as in a run that was killed, is left out and noted.

    Raises:
        UserError: there is no such folder, or it holds no metrics.
    """
    if not is_folder(run):
        raise UserError(f"{run}: no such run folder; give the run.folder of a training")
    if not is_file(run / "metrics.jsonl"):
        raise UserError(f"{run}: holds no metrics.jsonl; give the folder of a run that has made a step")
    notes: list[str] = []
    metrics = metric_columns(_lines(run / "metrics.jsonl", notes))
    if not len(metrics["step"]):
        raise UserError(f"{run / 'metrics.jsonl'}: holds no step yet; wait for the first one")
    failures: list[dict[str, Any]] | None = None
    if is_file(run / "failures.jsonl"):
        failures = list(_lines(run / "failures.jsonl", notes))
    elif "failures" in metrics and metrics["failures"][-1] == 0:
        failures = []  # the file is made by the first failure
    held_out = run / "heldout_failures.jsonl"
    config = _text(run / "config.yaml")
    return RunFacts(
        name=run.resolve().name,
        metrics=metrics,
        summary=_mapping(run / "summary.json", notes),
        settings=_settings(config),
        config=config,
        environment=_mapping(run / "environment.json", notes),
        failures=failures,
        heldout_failures=list(_lines(held_out, notes)) if is_file(held_out) else [],
        media=_media(run / "pictures", notes),
        notes=notes,
    )


def metric_columns(rows: Iterable[Mapping[str, Any]]) -> dict[str, np.ndarray]:
    """Rows of metrics.jsonl as one float [n] per name, by ascending step; NaN if a row lacks a number.

    A step that was recorded twice, as by a run that was killed and resumed, counts as it was last.
    """
    by_step = {row["step"]: row for row in rows if number(row.get("step")) is not None}
    steps = sorted(by_step)
    columns: dict[str, np.ndarray] = {}
    for place, step in enumerate(steps):
        for name, value in by_step[step].items():
            if isinstance(value, int | float) and not isinstance(value, bool):
                columns.setdefault(name, np.full(len(steps), math.nan))[place] = value
    return {**columns, "step": np.array(steps, dtype=np.float64)}


def run_kind(facts: RunFacts) -> str:
    """Which training a run is: ``pretrain``, ``finetune``, ``detect`` or ``tokenizer``.

    Its summary says so; a run that is not finished, or older than that, is known by what it recorded.
    """
    summary = facts.summary or {}
    if summary.get("kind") in KINDS:
        return str(summary["kind"])
    if "top1" in summary or "train_top1" in facts.metrics:
        return "finetune"
    if "mean_ap" in summary or "boxes" in facts.metrics:
        return "detect"
    return "tokenizer" if "used_codes" in facts.metrics else "pretrain"


def report_data(facts: RunFacts, beside: Sequence[RunFacts] = ()) -> dict[str, Any]:
    """What the page of a run shows, as plain data.

    Args:
        facts: what is known of the run.
        beside: other runs whose curves are drawn together with this one's.
    """
    summary = facts.summary or {}
    numbers = {key: value for key in summary if (value := number(summary[key])) is not None}
    kind = run_kind(facts)
    held_out = [(str(one.get("path", "")), str(one.get("cause", ""))) for one in facts.heldout_failures]
    return {
        "title": facts.name,
        "kind": kind,
        "finished": facts.summary is not None,
        "notes": facts.notes,
        "model": facts.settings.get("model.name"),
        "data": facts.settings.get("data.train"),
        "held_out": numbers,
        "measure": str(summary.get("heldout_measure") or "mean squared error at hidden positions"),
        "apart": margin(numbers.get("heldout_trained"), numbers.get("heldout_constant")),
        "area": summary.get("area"),
        "beside": _side_by_side([facts, *beside]) if beside else None,
        "run": _run_numbers(facts),
        "charts": _run_charts(facts, kind, numbers.get("heldout_constant")),
        "media": [_medium(name, content) for name, content in facts.media],
        "not_drawn": summary.get("not_drawn"),
        "failures": _training_failures(facts.failures),
        "heldout_failures": table(("Video", "Cause"), held_out, limit=_FAILURES_SHOWN),
        "config": facts.config,
        "environment": None if facts.environment is None else flattened(facts.environment),
        "summary": flattened(summary),
        "has_charts": True,
    }


def _side_by_side(runs: Sequence[RunFacts]) -> dict[str, Any]:
    """Held-out accuracy or loss, and training loss, of several runs over their steps."""
    charts = []
    for key, title in _CURVES["beside"].items():
        curves = [
            Curve(run.name, run.metrics["step"], run.metrics[key], place)
            for place, run in enumerate(runs)
            if len(run.finite(key))
        ]
        if curves:
            charts.append(line_chart(title, curves, from_zero=True, smooth=not key.startswith("evaluation/")))
    ends = []
    for run in runs:
        if run.summary and "top1" in run.summary:
            tops = (number(run.summary.get(key)) for key in ("top1", "top5", "mean_class"))
            ends.append((run.name, *("" if top is None else f"{top:.1f} %" for top in tops)))
    return {"charts": charts, "table": table(("Run", "Top-1", "Top-5", "Mean of the classes"), ends)}


def _run_numbers(facts: RunFacts) -> dict[str, Any]:
    """Where the run stands and how fast it is; None for what was not recorded."""
    data, step, loss = facts.finite("data_ms"), facts.finite("step_ms"), facts.finite("loss")
    speed, memory, epoch = (facts.finite(key) for key in ("samples_per_second", "memory_mb", "epoch"))
    failures = facts.failures
    return {
        "steps": int(facts.metrics["step"][-1]),
        "epoch": float(epoch[-1]) if len(epoch) else None,
        "epochs": number(facts.settings.get("optim.epochs")),
        "loss": float(loss[-_NOW:].mean()) if len(loss) else None,
        "loss_steps": len(loss[-_NOW:]),
        "first_loss": float(loss[0]) if len(loss) else None,
        "clips_per_second": float(np.median(speed)) if len(speed) else None,
        "step_seconds": float(np.median(step)) / 1e3 if len(step) else None,
        "waiting": float(data.sum() / step.sum()) if len(data) and step.sum() else None,
        "memory_mb": float(memory.max()) if len(memory) else None,
        "unreadable": None if failures is None else len({str(one.get("path", "")) for one in failures}),
    }


def _run_charts(facts: RunFacts, kind: str, constant: float | None) -> list[dict[str, Any]]:
    # A tokenizer's constant is one of the reconstruction, of which the loss is more than that.
    levels = {} if constant is None or kind == "tokenizer" else {"best constant": constant}
    parts = {name: name.removeprefix("loss_") for name in facts.metrics if name.startswith("loss_")}
    loss, *others = _CURVES["run"]
    drawn = []
    for entry in (
        {**loss, "levels": levels},
        {"title": "Parts of the loss", "curves": parts, "from_zero": True},
        *others,
    ):
        curves = [
            Curve(name, facts.metrics["step"], facts.metrics[key])
            for key, name in entry["curves"].items()
            if len(facts.finite(key))
        ]
        if curves or entry.get("always"):
            options = {key: entry[key] for key in ("log", "from_zero", "smooth", "levels") if key in entry}
            drawn.append(line_chart(entry["title"], curves, **options))
    return drawn


def _training_failures(failures: Sequence[Mapping[str, Any]] | None) -> dict[str, Any] | None:
    """Videos that others stood in for, and how often."""
    if failures is None:
        return None
    times = Counter((str(one.get("path", "")), str(one.get("cause", ""))) for one in failures)
    rows = [(path, cause, count) for (path, cause), count in times.most_common()]
    return table(("Video", "Cause", "Times"), rows, limit=_FAILURES_SHOWN)


def _medium(name: str, content: bytes) -> dict[str, str]:
    if name.lower().endswith(".mp4"):
        return {"name": name, "source": data_url("video/mp4", content)}
    small = _compressed(content)
    return {"name": name, "source": data_url("image/webp" if small else "image/png", small or content)}


def _settings(config: str | None) -> dict[str, Any]:
    """``section.key`` -> value of a config of whatever task and version; empty if it is no such YAML."""
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


def _media(folder: Path, notes: list[str]) -> list[tuple[str, bytes]]:
    """The pictures and films of a folder, as many as fit on a page; a clip's film after its picture."""
    if not is_folder(folder):
        return []
    names = [name for name in list_folder(folder) if name.lower().endswith((".png", ".mp4"))]
    names.sort(key=lambda name: (Path(name).stem, Path(name).suffix.lower() != ".png"))
    media = []
    room, left_out = MEDIA_BYTES, 0
    for name in names:
        with open_file(folder / name, "rb") as file:
            content = file.read(room + 1)
        if len(content) > room:
            left_out += 1
            continue
        room -= len(content)
        media.append((name, content))
    if left_out:
        notes.append(f"{left_out} file(s) of {folder.name}/ left out: the page would be too large.")
    return media


def _compressed(png: bytes) -> bytes:
    """A picture as WebP; empty if that is not smaller, or the picture is damaged or too large for WebP."""
    pixels = cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_COLOR) if png else None
    if pixels is None or max(pixels.shape) > 16383:
        return b""
    done, webp = cv2.imencode(".webp", pixels, [cv2.IMWRITE_WEBP_QUALITY, _WEBP_QUALITY])
    return webp.tobytes() if done and len(webp) < len(png) else b""
