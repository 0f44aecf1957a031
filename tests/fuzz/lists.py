"""Lists of videos, frames and boxes, class names, scores, features and the files of a run folder."""

from __future__ import annotations

import io
import json
import os
import random
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from tests.fuzz.mutations import (
    mutate_bytes,
    mutate_document,
    mutate_rows,
    mutate_tree,
    plain_value,
    reencode,
    to_text,
)
from tests.fuzz.victim import Case, verb
from tests.jobs.action_set import make_action_set, write_detector
from tests.jobs.scored_videos import make_scored

_ROWS = [(f"{row:03d}.mp4", row % 3) for row in range(4)]
_SSV2 = [{"id": f"{row:03d}", "label": "Pushing a cup", "template": "Pushing [a cup]"} for row in range(4)]
_TABLES: dict[str, tuple[str, str]] = {
    "spaces.csv": (" ", "".join(f"{path} {label}\n" for path, label in _ROWS)),
    "commas.csv": (",", "".join(f"{path},{label}\n" for path, label in _ROWS)),
    "tabs.txt": ("\t", "".join(f"{path}\t{label}\n" for path, label in _ROWS)),
    "paths.txt": (" ", "".join(f"{path}\n" for path, _ in _ROWS)),
    "kinetics.csv": (
        ",",
        "label,youtube_id,time_start,time_end,split\n"
        + "".join(f"push,{path[:3]},1{label},2{label},train\n" for path, label in _ROWS),
    ),
    "frames.csv": (
        " ",
        "original_vido_id video_id frame_id path labels\n"
        + "".join(
            f'v {video} {frame} v/v_{frame + 1:06d}.jpg ""\n' for video in (0, 1) for frame in range(5)
        ),
    ),
    "names.txt": (" ", "push\npull\nturn left\nturn right\nstand\nfall\nZähne putzen\n"),
}
_TREES: dict[str, Any] = {
    "something-train.json": _SSV2,
    "something-labels.json": {"Pushing a cup": "0", "Pushing [a cup]": "1", "Pulling": "2"},
    "names.json": ["push", "pull", "turn left", "turn right", "stand", "fall", "x"],
}
_AVA = ("truth.csv", "train.csv", "boxes.csv", "train_boxes.csv", "excluded.csv", "labels.pbtxt")
_METRICS = {"step": 1, "epoch": 0.5, "loss": 0.12, "lr": 1e-4, "grad": 0.5, "step_ms": 12.0, "failures": 0}
_RUN: dict[str, Any] = {
    "summary.json": {"heldout_trained": 0.1, "heldout_untrained": 0.2, "heldout_clips": 2, "steps": 2},
    "environment.json": {"python": "3", "torch": "2", "cpu": "x", "cores": 2, "gpus": []},
    "config.yaml": {"data": {"train": "x.csv"}, "model": {"name": "x"}, "optim": {"epochs": 2}},
    "failures.jsonl": {"path": "a.mp4", "cause": "no such file"},
    "metrics.jsonl": _METRICS,
}
_CHOICES = {
    "format": ("auto", "auto", "auto", "kinetics", "ssv2"),
    "labels": ("auto", "auto", "auto", "yes", "no"),
    "separator": ("auto", "auto", "auto", "space", "comma", "tab"),
}


def prepare(material: Path) -> None:
    """Write videos, an AVA set, weights, and two files of scores."""
    scored = material / "scored"
    scored.mkdir()
    make_scored(scored)
    make_action_set(material)
    write_detector(material / "detector.safetensors")
    from videomaskfeat.data.batches import Failure
    from videomaskfeat.inference.scores import ScoredList, save_scores

    for member in ("a", "b"):
        powers = np.random.default_rng(ord(member)).random((4, 3), np.float32)
        scored_list = ScoredList(
            scores=powers / powers.sum(1, keepdims=True),
            labels=np.arange(4) % 3,
            rows=np.array([0, 1, 2, 4]),
            paths=("0.mp4", "1.mp4", "2.mp4", "4.mp4"),
            failures=(Failure(3, "3.mp4", "no such file"),),
            listed=5,
            kind="softmax",
            class_names=("push", "pull", "stand"),
        )
        save_scores(material / f"{member}.npz", scored_list)


def make_case(seed: int, material: Path, folder: Path) -> Case:
    """A damaged list, and its reader."""
    rng = random.Random(f"lists {seed}")
    make = rng.choices(
        (_videos, _frames, _names, _ava, _scores, _run_folder, _features), (8, 1, 2, 5, 2, 2, 1)
    )[0]
    return make(rng, material, folder)


def _damaged(name: str, rng: random.Random) -> bytes:
    if name in _TREES:
        return mutate_document(_TREES[name], rng)
    separator, text = _TABLES[name]
    return damaged_table(text.encode(), separator.encode(), rng)


def damaged_table(data: bytes, separator: bytes, rng: random.Random) -> bytes:
    """A table with damaged fields, in another encoding, or with damaged bytes."""
    choice = rng.random()
    if choice < 0.65:
        return mutate_rows(data, rng, separator)
    return reencode(data, rng) if choice < 0.85 else mutate_bytes(data, rng)


def _videos(rng: random.Random, material: Path, folder: Path) -> Case:
    """Lists of videos, read by the library and by two verbs."""
    names = [name for name in (*_TABLES, *_TREES) if not name.startswith(("names", "frames"))]
    name = rng.choice(names)
    Path(name).write_bytes(_damaged(name, rng))
    if name.startswith("something"):
        other = next(other for other in _TREES if other.startswith("something") and other != name)
        Path(other).write_bytes(to_text(_TREES[other]))
        name = "something-train.json"
    choices = {key: rng.choice(values) for key, values in _CHOICES.items()}
    options = [f"--{key}={value}" for key, value in choices.items()]
    videos = ["--prefix", os.fspath(material / "scored"), "--workers", "0"]
    choice = rng.random()
    if choice < 0.25:
        outputs = ["--clean", "clean.csv", "--json", "found.json", "--quick"]
        return verb("check-data", name, *options, *videos, *outputs)
    if choice < 0.3:
        weights = material / "scored" / "best.safetensors"
        return verb("evaluate", weights, name, *options, *videos, "--out", "out")
    return Case(f"load_records {name} {choices}", lambda: _all_rows(name, choices))


def _all_rows(name: str, choices: dict[str, str]) -> None:
    from videomaskfeat.data.formats import load_records

    records = load_records(name, **choices)
    assert len(list(records)) == len(records) > 0


def _frames(rng: random.Random, material: Path, folder: Path) -> Case:
    from videomaskfeat.data.frame_lists import load_frame_lists

    Path("frames.csv").write_bytes(_damaged("frames.csv", rng))

    def run() -> None:
        for frames in load_frame_lists(["frames.csv"], prefix="").values():
            assert len([frames[index] for index in range(min(len(frames), 100))]) > 0

    return Case("load_frame_lists frames.csv", run)


def _names(rng: random.Random, material: Path, folder: Path) -> Case:
    from videomaskfeat.inference.lists import read_class_names

    name = rng.choice(["names.txt", "names.json", "something-labels.json"])
    Path(name).write_bytes(_damaged(name, rng))
    if rng.random() < 0.15:
        scored = material / "scored"
        return verb(
            "evaluate",
            scored / "best.safetensors",
            scored / "val.csv",
            "--class-names",
            name,
            "--workers",
            "0",
        )
    return Case(f"read_class_names {name}", lambda: read_class_names(name))


def _ava(rng: random.Random, material: Path, folder: Path) -> Case:
    """AVA's files of boxes, times and actions."""
    for name in _AVA:
        shutil.copy(material / name, name)
    name = rng.choice(_AVA)
    if name == "labels.pbtxt":
        data = damaged_table(Path(name).read_bytes(), b" ", rng)
    else:
        data = damaged_table(Path(name).read_bytes(), b",", rng)
    Path(name).write_bytes(data)
    choice = rng.random()
    if choice < 0.5:
        return verb(
            "score-ava", "--groundtruth", "truth.csv", "--detections", _with_actions(name, rng),
            "--labels", "labels.pbtxt", "--exclusions", "excluded.csv", "--out", "out",
        )  # fmt: skip
    if choice < 0.6 and name == "boxes.csv":
        return verb(
            "detect", material / "detector.safetensors", material / "videos" / "v.mp4", "--boxes", name
        )
    if choice < 0.65:
        from tests.jobs.action_set import ActionSet

        overrides = ActionSet(folder).overrides(folder / "run")
        videos = f"data.videos={material / 'videos'}"
        return verb("detect-train", *overrides, videos, "optim.epochs=1", "optim.warmup_epochs=0")
    from videomaskfeat.data.ava_lists import training_key_frames

    return Case(
        f"training_key_frames {name}",
        lambda: list(
            training_key_frames(["train.csv"], ["train_boxes.csv"], classes=4, exclusions=["excluded.csv"])
        ),
    )


def _with_actions(name: str, rng: random.Random) -> str:
    """Detections to score: the damaged file, or rows of the ground truth with scores."""
    if name == "boxes.csv":
        return name
    rows = [row.split(b",") for row in Path("train.csv").read_bytes().splitlines()]
    Path("found.csv").write_bytes(b"".join(b",".join([*row[:7], b"0.5"]) + b"\n" for row in rows))
    return "found.csv"


def _scores(rng: random.Random, material: Path, folder: Path) -> Case:
    """Two files of scores, one of them with damaged bytes or a damaged array."""
    data = (material / "a.npz").read_bytes()
    if rng.random() < 0.4:
        data = mutate_bytes(data, rng)
    else:
        with np.load(io.BytesIO(data)) as file:
            arrays = dict(file)
        name = rng.choice(sorted(arrays))
        arrays[name] = _other_array(arrays[name], rng)
        buffer = io.BytesIO()
        np.savez(buffer, **arrays)
        data = buffer.getvalue()
        if rng.random() < 0.2:
            data = _without_member(data, rng)
    Path("a.npz").write_bytes(data)
    return verb("average-scores", "a.npz", material / "b.npz", "--out", "out")


def _other_array(array: np.ndarray, rng: random.Random) -> np.ndarray:
    makers: tuple[Callable[[], np.ndarray], ...] = (
        lambda: array.reshape(-1)[:1],
        lambda: np.zeros((0, 3), array.dtype),
        lambda: np.array(None, object),
        lambda: np.full(array.shape, np.nan),
        lambda: array.astype(np.str_),
        lambda: np.zeros((2, 2, 2)),
        lambda: np.array("x"),
        lambda: np.full(array.shape, 2**40),
        lambda: np.concatenate([np.atleast_1d(array)] * 2),
    )
    return rng.choice(makers)()


def _without_member(data: bytes, rng: random.Random) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(buffer, "w") as new:
        names = old.namelist()
        for name in names:
            if name != names[rng.randrange(len(names))]:
                new.writestr(zipfile.ZipInfo(name), old.read(name))
    return buffer.getvalue()


def _run_folder(rng: random.Random, material: Path, folder: Path) -> Case:
    """A run folder with a damaged text, and its report."""
    run = folder / "run"
    run.mkdir()
    damaged = rng.choice(list(_RUN))
    for name, tree in _RUN.items():
        lines = 3 if name.endswith("jsonl") else 1
        content = [to_text(tree)] * lines
        if name == damaged:
            content[rng.randrange(lines)] = mutate_document(tree, rng)
        (run / name).write_bytes(b"\n".join(content) + b"\n")
    return verb("report", run)


def _features(rng: random.Random, material: Path, folder: Path) -> Case:
    """A folder of features with a damaged file."""
    from videomaskfeat import read_features

    Path("meta.json").write_text(json.dumps({"format": 1, "finished": True, "settings": {}}))
    Path("index.csv").write_text("row,path,label\n0,a.mp4,1\n1,b.mp4,\n")
    np.save("features.npy", np.zeros((2, 3), np.float32))
    name = rng.choice(["meta.json", "index.csv", "features.npy"])
    data = Path(name).read_bytes()
    if name == "meta.json":
        tree = mutate_tree(json.loads(data), rng, plain_value)
        data = to_text(tree) if rng.random() < 0.7 else mutate_document(tree, rng)
    elif name == "index.csv":
        data = damaged_table(data, b",", rng)
    else:
        data = mutate_bytes(data, rng)
    Path(name).write_bytes(data)
    return Case(f"read_features {name}", lambda: read_features(folder))
