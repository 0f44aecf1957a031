"""Checkpoints: what is kept, what is refused, and what survives a full disk."""

from __future__ import annotations

import os
import pickle
import re
import resource
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests.engine.processes import exit_code
from tests.engine.toy import toy_model, train_toy
from videomaskfeat import io
from videomaskfeat.engine.checkpoint import (
    CheckpointFolder,
    DamagedCheckpointError,
    SaveFailed,
)
from videomaskfeat.engine.resume import check_fingerprint, check_weights, load_checkpoint
from videomaskfeat.errors import RunFailed, UserError
from videomaskfeat.io import open_file

CONTENT = {"numbers": torch.arange(1000.0), "step": 3}


def saved(folder: Path, *steps: int) -> CheckpointFolder:
    checkpoints = CheckpointFolder(folder, keep_last=9)
    for step in steps:
        checkpoints.save(CONTENT, step)
    return checkpoints


class Bomb:
    """Unpickling it would create a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def test_last_ones_and_milestones_are_kept(tmp_path: Path) -> None:
    checkpoints = CheckpointFolder(tmp_path / "new", keep_last=2, milestone_every=4)
    for step in range(1, 12):
        checkpoints.save(CONTENT, step)
    assert checkpoints.steps() == [4, 8, 10, 11]
    path, content = checkpoints.load_newest() or pytest.fail("nothing found")
    assert path.name == "step_00000011.pt"
    assert torch.equal(content["numbers"], CONTENT["numbers"])


def test_empty_folder_has_no_newest(tmp_path: Path) -> None:
    assert CheckpointFolder(tmp_path).load_newest() is None
    assert CheckpointFolder(tmp_path / "missing").load_newest() is None


@pytest.mark.parametrize("harm", ["cut", "flipped", "emptied", "overwritten"])
def test_damaged_newest_is_skipped_by_name(
    tmp_path: Path, harm: str, caplog: pytest.LogCaptureFixture
) -> None:
    checkpoints = saved(tmp_path, 5, 6)
    newest = checkpoints.path(6)
    damage(newest, harm)
    path, _ = checkpoints.load_newest() or pytest.fail("nothing found")
    assert path == checkpoints.path(5)
    assert "step_00000006.pt" in caplog.text
    assert "resuming from" in caplog.text
    assert checkpoints.steps() == [5]
    assert (tmp_path / "step_00000006.pt.damaged").is_file()


def damage(path: Path, harm: str) -> None:
    content = bytearray(path.read_bytes())
    if harm == "cut":
        content = content[: len(content) // 2]
    elif harm == "flipped":
        content[len(content) // 2] ^= 1
    path.write_bytes({"emptied": b"", "overwritten": b"hello"}.get(harm, bytes(content)))


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        ("cut", "is truncated"),
        ("flipped", "check sum"),
        ("emptied", "empty file"),
        ("overwritten", "unknown format"),
    ],
)
def test_damaged_file_given_is_refused(tmp_path: Path, harm: str, words: str) -> None:
    path = saved(tmp_path, 1).path(1)
    damage(path, harm)
    with pytest.raises(DamagedCheckpointError, match=f"step_00000001.pt: .*{words}"):
        load_checkpoint(path)


def test_only_damaged_ones_are_not_overwritten(tmp_path: Path) -> None:
    checkpoints = saved(tmp_path, 1)
    damage(checkpoints.path(1), "cut")
    with pytest.raises(UserError, match=r"no other checkpoint in .* is intact: start in another folder"):
        checkpoints.load_newest()
    assert checkpoints.path(1).is_file()


def test_missing_file_given_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"step_7\.pt: no such file"):
        load_checkpoint(tmp_path / "step_7.pt")


@pytest.mark.parametrize(
    ("form", "words"),
    [("torch", r"contains pickled code \(\w+\.mkdir\), which"), ("pickle", "contains pickled code, which")],
)
def test_pickled_code_is_refused_and_never_run(tmp_path: Path, form: str, words: str) -> None:
    path = tmp_path / "step_00000001.pt"
    content = {"model": Bomb(tmp_path / "exploded")}
    if form == "torch":
        torch.save(content, path)
    else:
        path.write_bytes(pickle.dumps(content))
    with pytest.raises(UserError, match=words) as info:
        CheckpointFolder(tmp_path).load_newest()
    assert "\n" not in str(info.value)
    assert not (tmp_path / "exploded").exists()


def test_full_disk_leaves_the_previous_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoints = saved(tmp_path, 1)
    monkeypatch.setattr(io, "open_file", lambda path, mode: open_file("/dev/full", mode))
    with pytest.raises(
        SaveFailed, match=r"step_00000002.pt: .*No space left on device; earlier .* are whole"
    ):
        checkpoints.save(CONTENT, 2)
    monkeypatch.undo()
    assert isinstance(SaveFailed(), RunFailed)
    assert checkpoints.load_newest() is not None
    assert checkpoints.steps() == [1]


def test_refused_write_removes_the_temporary_file(tmp_path: Path) -> None:
    """A limit on file sizes stands in for a disk that fills up in mid-file."""
    saved(tmp_path, 1)
    assert exit_code(save_under_a_limit, tmp_path) == 0
    assert sorted(os.listdir(tmp_path)) == ["step_00000001.pt"]


def save_under_a_limit(folder: Path) -> None:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, resource.RLIM_INFINITY))
    with pytest.raises(SaveFailed, match="File too large"):
        CheckpointFolder(folder).save(CONTENT, 2)


def test_other_errors_of_saving_are_not_disguised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: Any) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(RuntimeError, match="a bug"):
        CheckpointFolder(tmp_path).save(CONTENT, 1)
    assert os.listdir(tmp_path) == []


def test_leftover_temporary_file_is_removed(tmp_path: Path) -> None:
    checkpoints = saved(tmp_path, 1)
    (tmp_path / ".step_00000002.pt.77-1.tmp").write_bytes(b"half")
    checkpoints.load_newest()
    assert os.listdir(tmp_path) == ["step_00000001.pt"]


def test_other_config_names_the_keys() -> None:
    current = {f"key{i}": i for i in range(7)} | {"clip.frames": 16}
    check_fingerprint(dict(current), current, "runs/a")
    with pytest.raises(UserError, match=r"runs/a .* clip.frames is 8 there and 16 here; set them back"):
        check_fingerprint(current | {"clip.frames": 8}, current, "runs/a")
    with pytest.raises(UserError, match=r"key0 is None there and 0 here, .* and 3 more;"):
        check_fingerprint({}, {f"key{i}": i for i in range(7)}, "runs/a")


def test_run_folder_of_another_config_is_refused(tmp_path: Path) -> None:
    train_toy(tmp_path, epochs=1)
    with pytest.raises(UserError, match="belongs to a run of another config: width is 12 there and 13 here"):
        train_toy(tmp_path, epochs=1, fingerprint={"width": 13})


def test_other_model_names_parameters() -> None:
    model = nn.Linear(3, 2)
    check_weights(model.state_dict(), model, "a.pt")
    saved_weights = {"weight": torch.zeros(2, 4), "scale": torch.zeros(1)}
    words = (
        r"another model: bias is missing, scale is unknown here, weight is \[2, 4\] there and \[2, 3\] here"
    )
    with pytest.raises(UserError, match=words):
        check_weights(saved_weights, model, "a.pt")


def test_checkpoint_of_another_model_is_refused(tmp_path: Path) -> None:
    train_toy(tmp_path, epochs=1)
    other = nn.Sequential(nn.Linear(6, 6))
    with pytest.raises(UserError, match=r"contains another model: .*1\.weight is unknown here"):
        train_toy(tmp_path, epochs=1, model=other)


def test_weights_alone_are_no_training_checkpoint(tmp_path: Path) -> None:
    saved(tmp_path / "checkpoints", 1)
    torch.save(nn.Linear(1, 1).state_dict(), tmp_path / "checkpoints" / "step_00000001.pt")
    with pytest.raises(UserError, match="is not a checkpoint of a training run"):
        train_toy(tmp_path)


def test_missing_average_is_refused(tmp_path: Path) -> None:
    train_toy(tmp_path, epochs=1, with_ema=False)
    with pytest.raises(UserError, match="contains no averaged weights"):
        train_toy(tmp_path, epochs=1)


def changed(content: dict[str, Any], place: str, value: Any) -> dict[str, Any]:
    """A copy of a checkpoint's content with another value at a place, or without it."""
    part: Any = content
    *above, last = (int(key) if key.isdecimal() else key for key in place.split("/"))
    for key in above:
        part = part[key]
    if value is MISSING:
        del part[last]
    else:
        part[last] = value
    return content


MISSING = object()
NAN = float("nan")


@pytest.mark.parametrize(
    ("place", "value", "words"),
    [
        ("progress", MISSING, "'progress' is missing"),
        ("progress", [], "'progress': it is not a dictionary"),
        ("progress/step", -3, "'progress': step is -3"),
        ("progress/step", torch.tensor(3), r"'progress': step is tensor\(3\)"),
        ("progress/seconds", NAN, "'progress': seconds is nan"),
        ("fingerprint/width", torch.zeros(2), "'fingerprint': width is a Tensor"),
        ("model", [1], "'model': it is not a dictionary"),
        ("model/0.weight", torch.full((12, 6), NAN), "'model': 0.weight is not finite"),
        ("model/0.weight", torch.zeros(12, 6).to_sparse(), "'model': 0.weight is sparse"),
        ("model/0.weight", torch.zeros(12, 6, dtype=torch.complex64), "'model': 0.weight is torch.complex64"),
        ("model/0.weight", torch.zeros(12, 6, device="meta"), "without values"),
        ("model/0.weight", torch.zeros(1).expand(10**9), r"0.weight is \[1000000000\] there and \[12, 6\]"),
        ("optimizer/param_groups", {}, "'optimizer': groups or state are missing"),
        ("optimizer/param_groups/0/lr", "much", "'optimizer': lr is much in a group"),
        ("optimizer/param_groups/0/betas", MISSING, "'optimizer': betas is missing in a group"),
        ("optimizer/state/0/exp_avg", torch.zeros(3), r"exp_avg of parameter 0 has the shape \[3\]"),
        ("optimizer/state/0/exp_avg_sq", MISSING, "exp_avg_sq of parameter 0 is missing"),
        ("optimizer/state/0/step", torch.tensor(-1.0), "step of parameter 0 is negative"),
        ("ema/0.weight", torch.zeros(12, 6).half(), "'ema': 0.weight is torch.float16"),
        ("ema", None, "contains no averaged weights"),
        ("random", {"ranks": {}}, "'random': it is not a list with one state per rank"),
        ("random/ranks/0/cpu", torch.zeros(7, dtype=torch.uint8), "'random': cpu has the shape"),
        ("extra", 3, "'extra': it is not a dictionary"),
    ],
)
def test_content_that_no_run_has_saved_is_damaged_and_the_one_before_is_taken(
    tmp_path: Path, place: str, value: Any, words: str, caplog: pytest.LogCaptureFixture
) -> None:
    train_toy(tmp_path, epochs=1, milestone_every=2, keep_last=9)  # steps 2, 4 and 6
    newest, older = (CheckpointFolder(tmp_path / "checkpoints").path(step) for step in (6, 4))
    content = load_checkpoint(newest)
    torch.save(changed(content, place, value), newest)
    with caplog.at_level("INFO"):
        assert train_toy(tmp_path, epochs=1).progress.step == 6
    assert f"resumed from {older}: step 4 of 6" in caplog.text
    assert re.search(
        rf"step_00000006\.pt:? .*{words}.*; resuming from .*step_00000004\.pt instead", caplog.text
    )
    assert newest.with_name(newest.name + ".damaged").exists()


def test_wrong_checkpoint_leaves_nothing_half_loaded(tmp_path: Path) -> None:
    """The random states stand last in the file, and are found wrong before the model is touched."""
    train_toy(tmp_path, epochs=1, milestone_every=0)
    path = CheckpointFolder(tmp_path / "checkpoints").path(6)
    torch.save(changed(load_checkpoint(path), "random", {"ranks": [{}]}), path)
    model = toy_model()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(
        UserError, match=r"'random': a rank without a state.*no other checkpoint in .* is intact"
    ):
        train_toy(tmp_path, epochs=1, model=model)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("harm", ["folder", "fifo", "pickled code"])
def test_what_is_no_checkpoint_is_skipped_too(tmp_path: Path, harm: str) -> None:
    checkpoints = saved(tmp_path, 5)
    if harm == "folder":
        checkpoints.path(6).mkdir()
    elif harm == "fifo":
        os.mkfifo(checkpoints.path(6))
    else:
        torch.save({"model": Bomb(tmp_path / "exploded")}, checkpoints.path(6))
    path, _ = checkpoints.load_newest() or pytest.fail("nothing found")
    assert path == checkpoints.path(5)
    assert not (tmp_path / "exploded").exists()


def test_all_damaged_ones_are_named(tmp_path: Path) -> None:
    checkpoints = saved(tmp_path, 1, 2, 3)
    for step in (1, 2, 3):
        damage(checkpoints.path(step), "cut")
    words = r"step_00000003.pt: .* is intact \(step_00000002.pt, step_00000001.pt\): start in another folder"
    with pytest.raises(UserError, match=words):
        checkpoints.load_newest()
