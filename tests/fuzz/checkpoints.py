"""Checkpoints of a resumed run: the newest one is damaged, and an older one is intact."""

from __future__ import annotations

import io
import os
import pickle
import random
import shutil
import zipfile
from pathlib import Path
from typing import Any

import torch

from tests.fuzz.mutations import mutate_bytes, mutate_tree, plain_value
from tests.fuzz.victim import Case, verb
from tests.jobs.conftest import TINY
from videomaskfeat.cli import main
from videomaskfeat.data.sample import write_sample_data

_NEWEST, _OLDER = "step_00000002.pt", "step_00000001.pt"
_TRAIN = (
    "pretrain", *TINY, "data.train=data/train.csv", "run.folder=run", "run.pictures=0", "run.device=cpu",
    "run.evaluate_epochs=0", "run.checkpoint_epochs=1", "optim.batch_size=2",
)  # fmt: skip


def prepare(material: Path) -> None:
    """Train for two steps; keep the run folder with its two checkpoints."""
    write_sample_data(material / "data", videos=12, frames=8, size=32, seed=3, ava_videos=0, images=0)
    train = material / "data" / "train.csv"
    train.write_text("".join(train.read_text().splitlines(keepends=True)[:2]))
    os.chdir(material)
    assert main(list(_TRAIN)) == 0
    for name in (_NEWEST, _OLDER):  # without the duration, so that equal seeds give equal bytes
        path = Path("run", "checkpoints", name)
        content = torch.load(path, weights_only=True)
        content["progress"]["seconds"] = 1.0
        torch.save(content, path)
    for path in Path("run").iterdir():  # files that only the report needs, or that differ from run to run
        if path.name == "tensorboard":
            shutil.rmtree(path)
        elif path.name not in ("config.yaml", "checkpoints"):
            path.unlink()


def make_case(seed: int, material: Path, folder: Path) -> Case:
    """A damaged checkpoint, and its reader."""
    rng = random.Random(f"checkpoints {seed}")
    os.symlink(material / "data", "data")
    shutil.copytree(material / "run", "run")
    path = Path("run", "checkpoints", _NEWEST)
    whole = path.read_bytes()
    choice, has_older = rng.random(), True
    if choice < 0.35:
        path.write_bytes(mutate_bytes(whole, rng))
    elif choice < 0.7:
        path.write_bytes(damaged_archive(whole, rng))
        has_older = False  # some of these contain code, which is rejected
    elif choice < 0.75:
        path.write_bytes(rng.choice([b"", b"PK", b"PK\x05\x06" + b"\x00" * 18, b"text\n" * 9, whole[:-1]]))
    else:
        content = torch.load(path, weights_only=True)
        torch.save(_damaged_content(content, rng), path)
        has_older = False
    if rng.random() < 0.1:
        shutil.copy(path, path.with_name(_OLDER))
        has_older = False
    if choice >= 0.75 or rng.random() < 0.03:  # only the run itself checks the content
        return verb(*_TRAIN)
    name = f"load_newest ({_OLDER} is {'whole' if has_older else 'not relied on'})"
    return Case(name, lambda: _load(has_older))


def _load(has_older: bool) -> None:
    """Read the newest intact checkpoint; with ``has_older`` there is one, which must be found."""
    from videomaskfeat.engine.checkpoint import CheckpointFolder
    from videomaskfeat.errors import UserError

    try:
        newest = CheckpointFolder("run/checkpoints").load_newest()
    except UserError as error:
        if has_older:
            raise RuntimeError("the older whole checkpoint was not taken") from error
        raise
    assert newest is not None
    assert not has_older or newest[1]["progress"]["step"] in (1, 2)


def _damaged_content(content: dict[str, Any], rng: random.Random) -> dict[str, Any]:
    """The content of a checkpoint with a value of another type or size."""
    content = {**content, "model": dict(content["model"])}
    part = rng.choice(["all", "progress", "optimizer", "random", "failures", "fingerprint", "model"])
    if part == "all":
        name = rng.choice(sorted(content))
        content[name] = _other_part(rng)
    elif part == "model" or rng.random() < 0.3:
        name = rng.choice(sorted(content["model"]))
        content["model"][name] = _other_part(rng)
    else:
        content[part] = mutate_tree(content[part], rng, _other_part)
    return content


def _other_part(rng: random.Random) -> Any:
    tensor = rng.choice(
        [torch.zeros(0), torch.full((3,), float("nan")), torch.zeros(2, 2).bool(), torch.ones(())]
    )
    return tensor if rng.random() < 0.3 else plain_value(rng)


def damaged_archive(data: bytes, rng: random.Random) -> bytes:
    """A torch file (a zip archive) with changed members and valid check sums, or a damaged directory."""
    choice = rng.random()
    if choice < 0.3:
        return _damaged_directory(data, rng)
    with zipfile.ZipFile(io.BytesIO(data)) as old:
        members = {name: old.read(name) for name in old.namelist()}
    top = next(iter(members)).partition("/")[0]
    pickled = next(name for name in members if name.endswith("data.pkl"))
    action = rng.randrange(8)
    name = rng.choice(list(members))
    if action < 3:
        members[pickled] = mutate_bytes(members[pickled], rng)
    elif action == 3:
        members[f"{top}/byteorder"] = rng.choice([b"big", b"", b"middle"])
    elif action == 4:
        del members[name]
    elif action == 5:
        members[name] = members[rng.choice(list(members))]
    elif action == 6:
        members[pickled] = pickle.dumps(rng.choice([None, 3, [], {}, {"model": 1}, "x", {1: 2}]), protocol=2)
    else:
        members[name] = members[name][: rng.randrange(len(members[name]) + 1)]
    return _archive(members)


def _archive(members: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as new:
        for name, content in members.items():
            new.writestr(zipfile.ZipInfo(name), content)
    return buffer.getvalue()


def _damaged_directory(data: bytes, rng: random.Random) -> bytes:
    """Changes in the zip directory at the end: flags (such as encryption), methods, sizes, offsets, names."""
    changed = bytearray(data)
    entries = []
    place = data.find(b"PK\x01\x02")
    while place >= 0:
        entries.append(place)
        place = data.find(b"PK\x01\x02", place + 1)
    if rng.random() < 0.2 or not entries:
        start = len(data) - rng.randrange(1, 80)
        return bytes(changed[:start]) + mutate_bytes(bytes(changed[start:]), rng)
    for entry in rng.sample(entries, min(len(entries), rng.choice([1, 1, 3, 10_000]))):
        offset, size = rng.choice(
            [(8, 2), (10, 2), (16, 4), (20, 4), (24, 4), (28, 2), (30, 2), (42, 4), (46, 1)]
        )
        number = rng.choice([0, 1, 8, 12, 93, 0xFFFF, 2**31 - 1, 2**32 - 1, rng.randrange(2**16)])
        changed[entry + offset : entry + offset + size] = (number % (1 << 8 * size)).to_bytes(size, "little")
    return bytes(changed)
