"""Files of a result: ``result.json``, CSV tables and ``report.html``, and descriptions of its inputs.

In ``result.json`` the ``kind`` of the result comes first; the provenance and the version come last.
"""

from __future__ import annotations

import csv
import hashlib
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import simplejson

from videomaskfeat import __version__
from videomaskfeat.data.batches import Failure
from videomaskfeat.data.records import Records
from videomaskfeat.io import file_sha256, whole_file
from videomaskfeat.models.weights import weights_file
from videomaskfeat.provenance import describe_provenance
from videomaskfeat.stored_recipe import ClassifyRecipe, DetectRecipe

PathLike = str | os.PathLike[str]


def write_result(folder: Path, kind: str, result: Mapping[str, Any]) -> dict[str, Any]:
    """Write result.json into an existing folder, and return its content.

    Args:
        folder: the folder.
        kind: "classification" or "detection".
        result: scores and inputs, as plain data.
    """
    content = {"kind": kind, **result, "provenance": describe_provenance(), "version": __version__}
    write_json(folder / "result.json", content)
    return content


def write_json(path: PathLike, content: Any) -> None:
    """Write plain data as JSON; non-finite numbers become null."""
    with whole_file(path) as file:
        file.write(simplejson.dumps(content, indent=2, ignore_nan=True) + "\n")


def write_table(path: PathLike, rows: Iterable[Sequence[object]]) -> None:
    """Write a CSV file; the first row is the header."""
    with whole_file(path, newline="", errors="surrogateescape") as file:
        csv.writer(file, lineterminator="\n").writerows(rows)


def write_page(path: PathLike, html: str) -> None:
    """Write an HTML page."""
    with whole_file(path) as file:
        file.write(html)


def describe_failures(failures: Iterable[Failure]) -> list[dict[str, Any]]:
    """Unreadable videos as plain data; rows count from 1, as in editors."""
    return [{"row": failure.index + 1, "path": failure.path, "cause": failure.cause} for failure in failures]


def describe_views(recipe: ClassifyRecipe) -> dict[str, Any]:
    """How videos are cut at test time, as plain data."""
    clip = recipe.clip
    # Stride, frame rate and short_video have no effect with segments.
    pace = {"stride": clip.stride, "target_fps": clip.target_fps, "short_video": clip.short_video}
    return {
        "views": recipe.views,
        "crops": recipe.crops,
        "sampling": recipe.sampling,
        "frames": clip.frames,
        **(pace if recipe.sampling == "clip" else {}),
        "crop": clip.crop,
        "short_side": recipe.short_side,
        "mean": clip.mean,
        "std": clip.std,
    }


def describe_detection(
    recipe: DetectRecipe, *, detected: bool, scales: Sequence[int] = (), flip: bool = False, precision: str
) -> dict[str, Any]:
    """How key frames are cut and scored at test time, as plain data.

    Args:
        recipe: recipe of the detector.
        detected: whether boxes are detected, or those of the ground truth.
        scales: short sides over which scores are averaged; empty: that of the recipe alone.
        flip: whether scores are averaged over each clip and its mirror image.
        precision: "fp32" or "bf16".
    """
    return {
        "boxes": "detected" if detected else "ground truth",
        **({"score_threshold": recipe.score_threshold} if detected else {}),
        "area": recipe.area,
        "short_sides": list(scales) or [recipe.short_side],
        "flip": flip,
        "frames": recipe.clip.frames,
        "stride": recipe.clip.stride,
        "target_fps": recipe.clip.target_fps,
        "mean": recipe.clip.mean,
        "std": recipe.clip.std,
        "scores": "softmax of the poses, sigmoid of the rest" if recipe.poses else "sigmoid",
        "precision": precision,
    }


def describe_weights(weights: PathLike) -> dict[str, str]:
    """Path and SHA-256 of a weights file."""
    return {"weights": os.fspath(weights), "weights_sha256": file_sha256(weights_file(weights))}


def hash_files(files: Mapping[str, PathLike | None]) -> dict[str, dict[str, str]]:
    """Path and SHA-256 of each named file; empty paths are left out."""
    return {
        name: {"path": os.fspath(path), "sha256": file_sha256(path)} for name, path in files.items() if path
    }


def hash_records(records: Records) -> str:
    """SHA-256 of paths and labels in order, which does not depend on the format of the list."""
    digest = hashlib.sha256()
    for record in records:
        label = "" if record.label is None else str(record.label)
        digest.update(os.fsencode(record.path) + b"\0" + label.encode() + b"\0")
    return digest.hexdigest()
