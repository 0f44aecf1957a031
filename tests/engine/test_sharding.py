"""Sharded weights: results, checkpoints on other numbers of ranks, and what damage and kills leave."""

from __future__ import annotations

import errno
import os
import pickle
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.distributed.tensor import DTensor

from tests.engine.processes import end_of_survivor, exit_codes_of_ranks
from tests.engine.toy import CPU, differences, final_state, metrics, train_toy
from videomaskfeat.engine import distributed, sharded_checkpoint
from videomaskfeat.engine.checkpoint import (
    CheckpointFolder,
    DamagedCheckpointError,
    SaveFailed,
)
from videomaskfeat.engine.resume import load_checkpoint
from videomaskfeat.engine.sharding import blocks_of, build_mesh, shard, whole
from videomaskfeat.errors import UserError
from videomaskfeat.models import create_model

# Every rank has its own draws, so nothing is drawn. Four ranks share the eight vectors of a step.
OPTIONS: dict[str, Any] = {"dropout": 0.0, "accumulate": 1}


def train_sharded(folder: Path, parallel: str, epochs: float) -> None:
    train_toy(folder, parallel=parallel, epochs=epochs, **OPTIONS)


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one process, of 18 steps."""
    folder = tmp_path_factory.mktemp("one")
    train_toy(folder, **OPTIONS)
    return folder


def assert_same_losses(folder: Path, reference: Path) -> None:
    """Sums in another order: 1e-5 of every number."""
    rows, expected = metrics(folder), metrics(reference)
    assert len(rows) == len(expected) == 18
    for row, same in zip(rows, expected, strict=True):
        assert row == pytest.approx(same, rel=1e-5)


def whole_state(folder: Path, step: int) -> dict[str, Any]:
    return load_checkpoint(CheckpointFolder(folder / "checkpoints").path(step))


def test_checkpoint_of_four_ranks_is_resumed_on_two_and_on_one(tmp_path: Path, one: Path) -> None:
    assert exit_codes_of_ranks(4, train_sharded, tmp_path, "hybrid", 1) == [0] * 4
    assert (tmp_path / "checkpoints" / "step_00000006" / "__1_0.distcp").is_file()
    assert exit_codes_of_ranks(2, train_sharded, tmp_path, "fsdp", 2) == [0] * 2
    assert (tmp_path / "checkpoints" / "step_00000012" / "__1_0.distcp").is_file()
    train_sharded(tmp_path, "fsdp", 3)  # one process has nothing to divide
    assert_same_losses(tmp_path, one)
    final, expected = (final_state(folder) for folder in (tmp_path, one))
    for name in ("model", "ema"):
        torch.testing.assert_close(final[name], expected[name], atol=1e-6, rtol=1e-5)
    moments = [state["optimizer"]["state"] for state in (final, expected)]
    torch.testing.assert_close(*moments, atol=1e-7, rtol=1e-4)


def test_checkpoint_of_one_process_is_resumed_on_sharded_ranks(tmp_path: Path, one: Path) -> None:
    train_sharded(tmp_path, "ddp", 1)
    assert exit_codes_of_ranks(2, train_sharded, tmp_path, "fsdp", 3) == [0] * 2
    assert_same_losses(tmp_path, one)
    final, expected = whole_state(tmp_path, 18), final_state(one)
    torch.testing.assert_close(final["ema"], expected["ema"], atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(
        final["optimizer"]["state"], expected["optimizer"]["state"], atol=1e-7, rtol=1e-4
    )


def stop_and_resume(folder: Path) -> None:
    """The run that stops after 8 steps continues as the whole one, bit for bit, on as many ranks."""

    def terminate(number: int) -> None:
        if number == 8 and distributed.rank() == 1:
            os.kill(os.getpid(), signal.SIGTERM)

    stopped = train_toy(folder / "stopped", parallel="fsdp", before_forward=terminate)
    assert stopped.status == "interrupted"
    assert stopped.checkpoint.is_dir(), "the checkpoint is complete when the training returns"
    train_toy(folder / "stopped", parallel="fsdp")
    train_toy(folder / "whole", parallel="fsdp")


def test_resumed_ranks_equal_uninterrupted_ones_bit_for_bit(tmp_path: Path) -> None:
    assert exit_codes_of_ranks(2, stop_and_resume, tmp_path) == [0, 0]
    states = [whole_state(tmp_path / name, 18) for name in ("stopped", "whole")]
    for state in states:
        del state["progress"]["seconds"]
    assert differences(*states) == []
    assert metrics(tmp_path / "stopped") == metrics(tmp_path / "whole")


def die_before_the_name(folder: Path) -> None:
    """Rank 0 is killed when all ranks have written the checkpoint of step 8, before it has its name."""
    replace = sharded_checkpoint._replace_folder

    def deadly(new: Path, path: Path) -> None:
        if path.name == "step_00000008":
            os.kill(os.getpid(), signal.SIGKILL)
        replace(new, path)

    sharded_checkpoint._replace_folder = deadly
    train_toy(folder, parallel="fsdp", **OPTIONS)


def test_half_written_checkpoint_is_never_taken(tmp_path: Path, one: Path) -> None:
    codes = exit_codes_of_ranks(2, die_before_the_name, tmp_path)
    assert codes[0] == -signal.SIGKILL
    assert codes[1] not in (0, None)
    checkpoints = tmp_path / "checkpoints"
    assert (checkpoints / ".step_00000008.tmp" / ".metadata").is_file()
    assert CheckpointFolder(checkpoints).steps() == [4]
    train_sharded(tmp_path, "fsdp", 3)
    assert not list(checkpoints.glob(".*")), "what the killed rank left is removed"
    assert_same_losses(tmp_path, one)


@pytest.mark.parametrize("killed_before", ["new", "none"])
def test_replaced_checkpoint_survives_a_kill(tmp_path: Path, killed_before: str) -> None:
    """The old checkpoint of a step is renamed before the new one has its name."""
    folder, old = tmp_path / "step_00000004", tmp_path / ".step_00000004.old"
    old.mkdir()
    (old / "state.pt").write_text("old")
    if killed_before == "none":
        folder.mkdir()
        (folder / "state.pt").write_text("new")
    sharded_checkpoint.recover(tmp_path)
    assert (folder / "state.pt").read_text() == ("old" if killed_before == "new" else "new")
    assert [path.name for path in tmp_path.iterdir()] == ["step_00000004"]


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sharded run of two ranks with checkpoints of steps 4 and 6."""
    folder = tmp_path_factory.mktemp("two")
    assert exit_codes_of_ranks(2, train_sharded, folder, "fsdp", 1) == [0, 0]
    return folder


class Evil:
    """Code in a pickle."""

    def __reduce__(self) -> Any:
        return os.mkdir, ("evil",)


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


def put_code(folder: Path) -> None:
    (folder / ".metadata").write_bytes(pickle.dumps(Evil()))
    (folder / ".metadata.sha256").write_text(sharded_checkpoint.file_sha256(folder / ".metadata"))


DAMAGE = {
    "a flipped bit": (lambda folder: flip(folder / "__1_0.distcp"), "the check sum of __1_0.distcp is wrong"),
    "a missing part": (lambda folder: (folder / "__0_0.distcp").unlink(), "__0_0.distcp is missing"),
    "no table": (lambda folder: (folder / ".metadata").unlink(), ".metadata is missing"),
    "no state.pt": (lambda folder: (folder / "state.pt").unlink(), "state.pt is missing"),
    "code": (put_code, "it contains posix.mkdir"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damaged_checkpoint_is_named_and_the_one_before_is_used(
    kind: str,
    two_ranks: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shutil.copytree(two_ranks, tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    change, words = DAMAGE[kind]
    newest = tmp_path / "run" / "checkpoints" / "step_00000006"
    change(newest)
    with pytest.raises(DamagedCheckpointError, match=words):
        load_checkpoint(newest)
    path, content = CheckpointFolder(newest.parent).load_newest() or pytest.fail("nothing found")
    assert path.name == "step_00000004"
    assert content["progress"]["step"] == 4
    assert words in caplog.text
    assert newest.with_name("step_00000006.damaged").is_dir()
    assert not Path("evil").exists()


def meet_damage_of_rank_1(folder: Path) -> None:
    """Rank 0 reads an intact part and rank 1 a damaged one: both take the checkpoint before it."""
    checkpoints = CheckpointFolder(folder / "checkpoints")

    def accept(content: dict[str, Any], where: str) -> None:
        if distributed.rank() == 1 and where.endswith("6"):
            raise DamagedCheckpointError(f"{where}: the checkpoint is damaged (on rank 1)")

    path, _ = checkpoints.load_newest(accept) or pytest.fail("nothing found")
    assert path.name == "step_00000004"


def test_damage_that_one_rank_sees_counts_for_all(two_ranks: Path, tmp_path: Path) -> None:
    shutil.copytree(two_ranks, tmp_path / "run")
    assert exit_codes_of_ranks(2, meet_damage_of_rank_1, tmp_path / "run") == [0, 0]


def fill_the_disk_of_rank_1(folder: Path) -> None:
    def refuse(self: Any, plan: Any, planner: Any) -> Any:
        if distributed.rank() == 1:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(self, plan, planner)

    write, sharded_checkpoint._Writer.write_data = sharded_checkpoint._Writer.write_data, refuse
    words = r"step_00000004: the checkpoint could not be written: .*No space left on device; earlier"
    with pytest.raises(SaveFailed, match=words):
        train_toy(folder, parallel="fsdp", **OPTIONS)
    assert CheckpointFolder(folder / "checkpoints").steps() == []


def test_full_disk_of_one_rank_ends_all(tmp_path: Path) -> None:
    assert exit_codes_of_ranks(2, fill_the_disk_of_rank_1, tmp_path) == [0, 0]


def use_the_whole(folder: Path) -> None:
    """Inside the context the network is the plain one; after it, it is sharded and unchanged."""
    torch.manual_seed(distributed.rank())  # all ranks get the weights of rank 0
    model = create_model("maskfeat_mvitv2_pico", clip_size=(4, 32, 32), drop_path=0.0)
    kind, names = type(model), list(model.state_dict())
    state = {name: value.clone() for name, value in model.state_dict().items()}
    state = distributed.gather_objects(state)[0]
    assert {type(block).__name__ for block in blocks_of(model)} == {"MultiScaleBlock"}
    shard(model, build_mesh("fsdp", CPU))
    inputs = (
        torch.randn(2, 3, 4, 32, 32, generator=torch.Generator().manual_seed(1)),
        torch.ones(2, 2, 2, 2) > 0,
    )
    with torch.no_grad():
        expected = model(*inputs)
    with whole(model):
        assert type(model) is kind
        assert list(model.state_dict()) == names
        assert differences(state, dict(model.state_dict())) == []
        if distributed.is_main():  # without the other rank
            with torch.no_grad():
                torch.testing.assert_close(model(*inputs), expected, atol=1e-6, rtol=1e-5)
            nn.init.zeros_(next(model.parameters()))
    assert all(isinstance(value, DTensor) for value in model.parameters())
    with torch.no_grad():
        torch.testing.assert_close(model(*inputs), expected, atol=0, rtol=0)
    values_here = sum(distributed.local(value).numel() for value in model.parameters())
    assert values_here < 0.6 * sum(value.numel() for value in state.values())


def test_network_is_whole_inside_the_context_and_sharded_after_it(tmp_path: Path) -> None:
    assert exit_codes_of_ranks(2, use_the_whole, tmp_path) == [0, 0]


def refuse_unequal_machines(folder: Path) -> None:
    os.environ["LOCAL_WORLD_SIZE"] = str(1 + distributed.rank())
    with pytest.raises(
        UserError, match=r"run\.parallel=hybrid with 2 ranks in groups of 1 and 2 per machine"
    ):
        build_mesh("hybrid", CPU)


def test_hybrid_needs_equal_machines(tmp_path: Path) -> None:
    assert exit_codes_of_ranks(2, refuse_unequal_machines, tmp_path) == [0, 0]


def kill_a_sharded_rank(folder: Path) -> None:
    def die(number: int) -> None:
        if number == 3 and distributed.rank() == 1:
            os.kill(os.getpid(), signal.SIGKILL)

    train_toy(folder, parallel="fsdp", before_forward=die, **OPTIONS)


def test_killed_rank_of_a_sharded_run_ends_the_other(tmp_path: Path) -> None:
    """Its collective calls raise errors at once; the message comes after two beats of the lost rank."""
    started = time.monotonic()
    code, error = end_of_survivor(0, kill_a_sharded_rank, tmp_path, timeout_seconds=30)
    assert code == 1
    assert "rank 1 does not answer (last seen at step" in error
    assert time.monotonic() - started < 60
