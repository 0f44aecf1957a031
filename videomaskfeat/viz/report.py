"""The report of a run: the content of its folder as one page."""

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
from videomaskfeat.texts import json_rows, parse_json
from videomaskfeat.viz.charts import Curve, confusion_section, format_number, line_chart
from videomaskfeat.viz.detection import mean_card
from videomaskfeat.viz.evaluation import accuracy_cards, interval_text
from videomaskfeat.viz.page import build_table, data_url, finite_interval, finite_number, flatten, render_page
from videomaskfeat.yaml_files import parse_yaml

MEDIA_BYTES = 32 * 2**20
"""Maximum size of all pictures and films on a page; further ones are left out and counted."""
_TEXT_CHARACTERS = 1 << 24  # maximum length of a config or a summary
_WEBP_QUALITY = (
    50  # of pictures on a page, so that four clips fit into 3 MB; the run folder has the originals
)
_MAX_FAILURES = 200
_RECENT_STEPS = 50  # averaged as the present training loss

KINDS = {
    "pretrain": "pre-training",
    "finetune": "fine-tuning",
    "detect": "training of a detector",
    "tokenizer": "training of a tokenizer",
}
"""Kinds of runs, and their names in messages."""
# Metrics of a page, with the titles of charts and the names of curves.
_CURVES = json.loads((Path(__file__).parent / "templates/curves.json").read_text(encoding="utf-8"))


@dataclass(frozen=True)
class RunFacts:
    """The content of a run folder; None if nothing was recorded.

    Attributes:
        name: name of the run.
        metrics: float [n] by name, one value per recorded step, NaN if a step lacks it; has ``step``.
        summary: written at the end of a run.
        config_values: value of each ``section.key`` of the config.
        config: the resolved config as text.
        environment: provenance, versions, machine, devices; may be nested.
        failures: ``path`` and ``cause`` for each time that a training video could not be read.
        heldout_failures: the same for held-out videos, which are not replaced.
        confusion: int [L, L], number of held-out videos by label and prediction, and L class names.
        media: file name and content of pictures (PNG) and films (mp4).
        notes: sentences about unreadable and omitted content.
    """

    name: str
    metrics: Mapping[str, np.ndarray]
    summary: Mapping[str, Any] | None
    config_values: Mapping[str, Any]
    config: str | None
    environment: Mapping[str, Any] | None
    failures: Sequence[Mapping[str, Any]] | None
    heldout_failures: Sequence[Mapping[str, Any]]
    confusion: tuple[np.ndarray, Sequence[str]] | None
    media: Sequence[tuple[str, bytes]]
    notes: Sequence[str]

    def finite_values(self, key: str) -> np.ndarray:
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
        folder: run folder with at least ``metrics.jsonl``; the page states what else is missing.
        out: HTML file; None: ``report.html`` in the run folder.
        beside: other run folders; their curves and accuracies are shown together with those of this run.

    Returns:
        Path of the page.

    Raises:
        UserError: a folder or its ``metrics.jsonl`` is missing, no step is recorded, or a run beside it is of
            another kind.
    """
    run = read_run(Path(folder))
    others = [read_run(Path(other)) for other in beside]
    for path, other in zip(beside, others, strict=True):
        if run_kind(other) != run_kind(run):
            raise UserError(
                f"{os.fspath(path)} is a {KINDS[run_kind(other)]} and {os.fspath(folder)} a "
                f"{KINDS[run_kind(run)]}; --beside compares runs of one kind"
            )
    data = report_data(run, others)
    environment = run.environment or {}
    provenance = environment.get("provenance", environment.get("versions"))
    html = render_page("report", data, provenance=provenance)
    target = Path(folder) / "report.html" if out is None else Path(out)
    with whole_file(target) as file:
        file.write(html)
    return target


def read_run(run: Path) -> RunFacts:
    """Read a run folder; incomplete lines and files, as after a kill, are left out and noted.

    Raises:
        UserError: the folder or its ``metrics.jsonl`` is missing, or no step is recorded.
    """
    if not is_folder(run):
        raise UserError(f"{run}: no such run folder; give the run.folder of a training")
    if not is_file(run / "metrics.jsonl"):
        raise UserError(f"{run} contains no metrics.jsonl; give the folder of a run with at least one step")
    notes: list[str] = []
    metrics = metric_columns(_read_lines(run / "metrics.jsonl", notes))
    if not len(metrics["step"]):
        raise UserError(f"{run / 'metrics.jsonl'} contains no step yet; wait for the first one")
    failures: list[dict[str, Any]] | None = None
    if is_file(run / "failures.jsonl"):
        failures = list(_read_lines(run / "failures.jsonl", notes))
    elif "failures" in metrics and metrics["failures"][-1] == 0:
        failures = []  # the first failure creates the file
    heldout_failures = run / "heldout_failures.jsonl"
    config = _read_text(run / "config.yaml")
    return RunFacts(
        name=run.resolve().name,
        metrics=metrics,
        summary=_read_object(run / "summary.json", notes),
        config_values=_config_values(config),
        config=config,
        environment=_read_object(run / "environment.json", notes),
        failures=failures,
        heldout_failures=list(_read_lines(heldout_failures, notes)) if is_file(heldout_failures) else [],
        confusion=_read_confusion(run / "confusion.json", notes),
        media=_read_media(run / "pictures", notes),
        notes=notes,
    )


def metric_columns(rows: Iterable[Mapping[str, Any]]) -> dict[str, np.ndarray]:
    """Rows of metrics.jsonl as float [n] by name, by ascending step; NaN if a row lacks a number.

    The last row of a step counts: a resumed run may repeat steps.
    """
    by_step = {row["step"]: row for row in rows if finite_number(row.get("step")) is not None}
    steps = sorted(by_step)
    columns: dict[str, np.ndarray] = {}
    for index, step in enumerate(steps):
        for name, value in by_step[step].items():
            if isinstance(value, int | float) and not isinstance(value, bool):
                columns.setdefault(name, np.full(len(steps), math.nan))[index] = value
    return {**columns, "step": np.array(steps, dtype=np.float64)}


def run_kind(facts: RunFacts) -> str:
    """The kind of a training: ``pretrain``, ``finetune``, ``detect`` or ``tokenizer``.

    Without a kind in the summary (unfinished and older runs) the recorded metrics decide.
    """
    summary = facts.summary or {}
    if str(summary.get("kind")) in KINDS:
        return str(summary["kind"])
    if "top1" in summary or "train_top1" in facts.metrics:
        return "finetune"
    if "mean_ap" in summary or "boxes" in facts.metrics:
        return "detect"
    return "tokenizer" if "used_codes" in facts.metrics else "pretrain"


def report_data(facts: RunFacts, beside: Sequence[RunFacts] = ()) -> dict[str, Any]:
    """The content of the page as plain data; ``beside``: other runs, shown together with this one."""
    summary = facts.summary or {}
    numbers = {key: value for key in summary if (value := finite_number(summary[key])) is not None}
    kind = run_kind(facts)
    environment = facts.environment
    heldout_failures = [
        (str(row.get("path", "")), str(row.get("cause", ""))) for row in facts.heldout_failures
    ]
    return {
        "title": facts.name,
        "kind": kind,
        "finished": facts.summary is not None,
        "notes": facts.notes,
        "model": facts.config_values.get("model.name"),
        "data": facts.config_values.get("data.train"),
        "held_out": numbers,
        "measure": str(summary.get("heldout_measure") or "mean squared error at hidden positions"),
        "baseline": "Initial weights" if "initial_weights" in summary else "Untrained model",
        "margin": margin(numbers.get("heldout_trained"), numbers.get("heldout_constant")),
        "accuracy": accuracy_cards(numbers | {"map_interval": summary.get("map_interval")}),
        "interval": interval_text(numbers),
        "detection": mean_card(
            numbers.get("mean_ap", math.nan),
            chance=numbers.get("mean_ap_chance"),
            interval=finite_interval(summary.get("mean_ap_interval")),
            name="Frame mAP",
        ),
        "area": summary.get("area"),
        "confusion": confusion_section(*facts.confusion) if facts.confusion and kind == "finetune" else None,
        "beside": _compare_runs([facts, *beside]) if beside else None,
        "run": _run_numbers(facts),
        "charts": _run_charts(facts, kind, numbers),
        "media": [_embed(name, content) for name, content in facts.media],
        "not_drawn": summary.get("not_drawn"),
        "failures": _count_failures(facts.failures),
        "heldout_failures": build_table(("Video", "Cause"), heldout_failures, limit=_MAX_FAILURES),
        "config": facts.config,
        "environment": environment
        and flatten({key: value for key, value in environment.items() if key != "provenance"}),
        "summary": flatten(summary),
        "has_charts": True,
    }


def _compare_runs(runs: Sequence[RunFacts]) -> dict[str, Any]:
    charts = []
    for key, title in _CURVES["beside"].items():
        curves = [
            Curve(run.name, run.metrics["step"], run.metrics[key], index)
            for index, run in enumerate(runs)
            if len(run.finite_values(key))
        ]
        if curves:
            charts.append(line_chart(title, curves, from_zero=True, smooth=not key.startswith("evaluation/")))
    rows = []
    for run in runs:
        if run.summary and "top1" in run.summary:
            values = [finite_number(run.summary.get(key)) for key in ("top1", "top5", "mean_class")]
            values.append(_chance(finite_number(run.summary.get("classes"))))
            shown = ("" if value is None else f"{value:.1f} %" for value in values)
            rows.append((run.name, *shown, interval_text(run.summary).partition(": ")[2].rstrip(".")))
    header = (
        "Run",
        "Top-1",
        "Top-5",
        "Mean class accuracy",
        "Chance level of top-1",
        "95 % interval of top-1",
    )
    return {"charts": charts, "table": build_table(header, rows)}


def _chance(classes: float | None) -> float | None:
    return 100 / classes if classes else None


def _run_numbers(facts: RunFacts) -> dict[str, Any]:
    data, step, loss, speed, memory, epoch = map(
        facts.finite_values, ("data_ms", "step_ms", "loss", "samples_per_second", "memory_mb", "epoch")
    )
    failures = facts.failures
    return {
        "steps": int(facts.metrics["step"][-1]),
        "epoch": float(epoch[-1]) if len(epoch) else None,
        "epochs": finite_number(facts.config_values.get("optim.epochs")),
        "loss": float(loss[-_RECENT_STEPS:].mean()) if len(loss) else None,
        "loss_steps": len(loss[-_RECENT_STEPS:]),
        "first_loss": float(loss[0]) if len(loss) else None,
        "clips_per_second": format_number(float(np.median(speed))) if len(speed) else None,
        "step_seconds": float(np.median(step)) / 1e3 if len(step) else None,
        "waiting": float(data.sum() / step.sum()) if len(data) and step.sum() else None,
        "memory_mb": float(memory.max()) if len(memory) else None,
        "unreadable": None if failures is None else len({str(row.get("path", "")) for row in failures}),
    }


def _run_charts(facts: RunFacts, kind: str, numbers: Mapping[str, float]) -> list[dict[str, Any]]:
    constant = numbers.get("heldout_constant")
    # The constant of a tokenizer is one of the reconstruction, and its loss has further terms.
    constant_line = {} if constant is None or kind == "tokenizer" else {"best constant": constant}
    terms = {name: name.removeprefix("loss_") for name in facts.metrics if name.startswith("loss_")}
    loss, *others = _CURVES["run"]
    charts = []
    for entry in (
        {**loss, "reference_lines": constant_line},
        {"title": "Terms of the loss", "curves": terms, "from_zero": True},
        *others,
    ):
        curves = [
            Curve(name, facts.metrics["step"], facts.metrics[key])
            for key, name in entry["curves"].items()
            if len(facts.finite_values(key))
        ]
        chance = _chance(numbers.get(entry.get("classes", "")))
        lines = entry.get("reference_lines", {} if chance is None else {"chance level": chance})
        if curves or entry.get("always"):
            options = {key: entry[key] for key in ("log", "from_zero", "smooth") if key in entry}
            charts.append(line_chart(entry["title"], curves, reference_lines=lines, **options))
    return charts


def _count_failures(failures: Sequence[Mapping[str, Any]] | None) -> dict[str, Any] | None:
    """Unreadable training videos, and how often each was replaced."""
    if failures is None:
        return None
    counts = Counter((str(row.get("path", "")), str(row.get("cause", ""))) for row in failures)
    rows = [(path, cause, count) for (path, cause), count in counts.most_common()]
    return build_table(("Video", "Cause", "Times"), rows, limit=_MAX_FAILURES)


def _embed(name: str, content: bytes) -> dict[str, str]:
    if name.lower().endswith(".mp4"):
        return {"name": name, "source": data_url("video/mp4", content)}
    webp = _encode_webp(content)
    return {"name": name, "source": data_url("image/webp" if webp else "image/png", webp or content)}


def _encode_webp(png: bytes) -> bytes:
    """A picture as WebP; empty if that is not smaller, or the picture is damaged or too large for WebP."""
    pixels = cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_COLOR) if png else None
    if pixels is None or max(pixels.shape) > 16383:
        return b""
    success, webp = cv2.imencode(".webp", pixels, [cv2.IMWRITE_WEBP_QUALITY, _WEBP_QUALITY])
    return webp.tobytes() if success and len(webp) < len(png) else b""


def _config_values(config: str | None) -> dict[str, Any]:
    """``section.key`` -> value of a config of any task and version; empty if it is not YAML of that form."""
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


def _read_lines(path: Path, notes: list[str]) -> Iterator[dict[str, Any]]:
    rows = list(json_rows(path, what="JSON lines"))
    yield from (row for row in rows if row is not None)
    unreadable = rows.count(None)
    if unreadable:
        notes.append(f"{path.name}: {unreadable} unreadable line(s) left out, as a killed run may leave.")


def _read_object(path: Path, notes: list[str]) -> dict[str, Any] | None:
    text = _read_text(path)
    if text is None:
        return None
    try:
        value = parse_json(text, path.name, allow_nan=True)
    except UserError:
        value = None
    if not isinstance(value, dict):
        notes.append(f"{path.name} is not a JSON object, left out.")
        return None
    return value


def _read_confusion(path: Path, notes: list[str]) -> tuple[np.ndarray, list[str]] | None:
    """The confusion matrix of a fine-tuning, and its class names."""
    content = _read_object(path, notes)
    if content is None:
        return None
    try:
        counts = np.array(content["counts"])
        names = [str(name) for name in content["class_names"]]
    except (KeyError, TypeError, ValueError):
        counts, names = np.empty(0), []
    square = counts.ndim == 2 and counts.shape[0] == counts.shape[1] > 0 and counts.dtype.kind == "i"
    if not square or counts.min() < 0 or len(names) not in (0, len(counts)):
        notes.append(f"{path.name} is not a confusion matrix, left out.")
        return None
    return counts, names or [f"class {label}" for label in range(len(counts))]


def _read_text(path: Path) -> str | None:
    if not is_file(path):
        return None
    with open_file(path, errors="replace") as file:
        return str(file.read(_TEXT_CHARACTERS))


def _read_media(folder: Path, notes: list[str]) -> list[tuple[str, bytes]]:
    """The pictures and films of a folder that fit on a page; the film of a clip follows its picture."""
    if not is_folder(folder):
        return []
    names = [name for name in list_folder(folder) if name.lower().endswith((".png", ".mp4"))]
    names.sort(key=lambda name: (Path(name).stem, Path(name).suffix.lower() != ".png"))
    media = []
    free_bytes, left_out = MEDIA_BYTES, 0
    for name in names:
        with open_file(folder / name, "rb") as file:
            content = file.read(free_bytes + 1)
        if len(content) > free_bytes:
            left_out += 1
            continue
        free_bytes -= len(content)
        media.append((name, content))
    if left_out:
        notes.append(f"{left_out} file(s) of {folder.name}/ left out: the page would be too large.")
    return media
