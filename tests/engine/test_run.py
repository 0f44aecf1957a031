"""What lies in a run folder is whole, and a run goes on in its folder whenever it was killed."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from tests.engine.processes import exit_code
from videomaskfeat.config_keys import flat, free_keys
from videomaskfeat.engine import run_folder
from videomaskfeat.engine.checkpoint import CheckpointFolder
from videomaskfeat.engine.run_folder import RunFolder
from videomaskfeat.errors import RunFailed, UserError
from videomaskfeat.schemas.detect import DetectConfig
from videomaskfeat.schemas.finetune import FinetuneConfig
from videomaskfeat.schemas.pretrain import PretrainConfig
from videomaskfeat.schemas.tokenizer import TokenizerConfig


def open_folder(path: Path, *, epochs: float = 3.0) -> None:
    config = PretrainConfig()
    config.optim.epochs = epochs
    RunFolder(str(path), config).open()


@pytest.mark.parametrize("schema", [PretrainConfig, FinetuneConfig, DetectConfig, TokenizerConfig])
def test_keys_that_runs_of_earlier_versions_lack_are_free(schema: type) -> None:
    """Their checkpoints were saved without them, and would count as those of another config."""
    keys = flat(schema()).keys()
    added = {"run.threads", "run.rank_timeout_minutes", "data.read_seconds", "model.weights_key"}
    assert added & keys <= free_keys(schema) <= keys


def test_fingerprint_of_an_earlier_version_has_the_defaults_of_keys_added_since() -> None:
    config = PretrainConfig()
    config.model.arguments = {"depth": 3}
    folder = RunFolder("run", config)
    earlier = dict(folder.fingerprint)
    for name in ("model.weights", "model.allow_unused", "mask.ratio"):
        del earlier[name]
    assert folder.upgrade_fingerprint(earlier) == folder.fingerprint
    config.mask.ratio = 0.5
    assert folder.upgrade_fingerprint(earlier) != folder.fingerprint


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run with a checkpoint."""
    open_folder(tmp_path / "run")
    CheckpointFolder(tmp_path / "run" / "checkpoints").save({"step": 1}, 1)
    return tmp_path / "run"


def die_while_writing_the_config(path: Path) -> None:
    write = run_folder.whole_file

    def half(name: Path) -> AbstractContextManager[object]:
        context = write(name)
        file = context.__enter__()
        file.write("run:\n  fol")
        file.flush()
        os.kill(os.getpid(), 9)
        return context

    run_folder.whole_file = half  # type: ignore[assignment]
    open_folder(path)


def test_run_killed_while_its_config_is_written_goes_on(run: Path) -> None:
    before = (run / "config.yaml").read_text()
    assert exit_code(die_while_writing_the_config, run) == -9
    assert (run / "config.yaml").read_text() == before
    open_folder(run)
    assert not list(run.glob(".*"))  # what the kill left
    with pytest.raises(UserError, match=r"config\.yaml belongs to a run of another config: optim\.epochs"):
        open_folder(run, epochs=4.0)


def test_config_left_empty_by_an_earlier_version_is_written_anew(run: Path) -> None:
    before = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text("")
    open_folder(run)
    assert (run / "config.yaml").read_text() == before


def test_full_disk_leaves_the_old_config(
    run: Path, full_disk: Callable[[int], AbstractContextManager[None]]
) -> None:
    before = (run / "config.yaml").read_text()
    with (
        full_disk(100),
        pytest.raises(RunFailed, match=r"config\.yaml: could not be written: File too large"),
    ):
        open_folder(run)
    assert (run / "config.yaml").read_text() == before
    open_folder(run)


def test_removed_folder_is_not_made_again(run: Path) -> None:
    folder = RunFolder(str(run), PretrainConfig())
    for path in sorted(run.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    run.rmdir()
    with pytest.raises(RunFailed, match="the run folder was removed during the run"):
        folder.write_json("summary.json", {})
    assert not run.exists()
