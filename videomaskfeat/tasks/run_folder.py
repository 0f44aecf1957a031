"""The run folder of a training: whose it is, what it leaves behind for people, and which videos failed."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import simplejson
import torch

from videomaskfeat.config import config_text, flat, load_config
from videomaskfeat.data.batches import Failure
from videomaskfeat.data.loader import FailureCounter
from videomaskfeat.engine import distributed
from videomaskfeat.engine.checkpoint import CheckpointFolder, check_fingerprint
from videomaskfeat.errors import RunFailed, UserError
from videomaskfeat.io import append_text, is_file, make_folder, remove_temporary_files, whole_file
from videomaskfeat.tasks.doctor import diagnose
from videomaskfeat.tasks.folder_lock import lock_for_all_ranks

logger = logging.getLogger(__name__)


def hold_run_folder(path: str) -> AbstractContextManager[None]:
    """Hold a run folder for this process while the context is open; all ranks must call it.

    It is taken before anything is built or measured, so that a second process is refused at once.

    Raises:
        UserError: another process holds it.
    """
    return lock_for_all_ranks(path, remedy="choose another run.folder")


class RunFolder:
    """One folder, one config: a run that goes on must share every setting that changes what is learnt.

    Args:
        path: of the folder.
        config: the config of the task.
        free_keys: keys that may change between a run and its resumption.
    """

    def __init__(self, path: str, config: Any, *, free_keys: Collection[str]) -> None:
        self.path = Path(path)
        self._config = config
        self._free_keys = frozenset(free_keys)

    @property
    def fingerprint(self) -> dict[str, Any]:
        """The settings that a resumed run must share with what it resumes."""
        return self._without_free_keys(self._config)

    def open(self) -> None:
        """Write config and environment; only rank 0 calls it.

        Raises:
            UserError: the folder holds a run of another config or of another task.
        """
        config = self.path / "config.yaml"
        # Earlier versions left it empty if they were killed while they wrote it; checkpoints know theirs too.
        written = is_file(config) and config.stat().st_size > 0
        if written and CheckpointFolder(self.path / "checkpoints").steps():
            self.check()
        make_folder(self.path)
        for folder in (self.path, self.path / "pictures", self.path / "score"):
            remove_temporary_files(folder)
        self.write("config.yaml", config_text(self._config))
        self.write("environment.json", diagnose(self.path).to_json())
        Path(self.path, "summary.json").unlink(missing_ok=True)  # of an earlier end; the run goes on

    def check(self) -> None:
        """Compare the config that lies in the folder with this one.

        Raises:
            UserError: it is that of another run or of another task.
        """
        config_path = self.path / "config.yaml"
        try:
            earlier = load_config(type(self._config), str(config_path))
        except UserError as error:
            raise UserError(
                f"{self.path}: holds a run of another task or version ({error}); choose another run.folder"
            ) from error
        check_fingerprint(self._without_free_keys(earlier), self.fingerprint, config_path)

    def write(self, name: str, text: str) -> None:
        """Write a text file of the folder."""
        if not self.path.is_dir():
            raise RunFailed(f"{self.path}: the run folder was removed while the run went on")
        with whole_file(self.path / name) as file:
            file.write(text)

    def write_json(self, name: str, value: Any) -> None:
        """Write plain data as JSON."""
        self.write(name, simplejson.dumps(value, indent=2, ignore_nan=True))

    def say(self, text: str) -> None:
        """Tell the user, and keep it in the run's log, which is open only while the loop runs."""
        logger.info(text)
        append_text(self.path / "log.txt", text + "\n")

    def write_failures(self, name: str, failures: Iterable[Failure]) -> None:
        """Write path and cause of each as a line of JSON."""
        rows = ({"path": failure.path, "cause": failure.cause} for failure in failures)
        self.write(name, "".join(simplejson.dumps(row) + "\n" for row in rows))

    def count_failures(self, counter: FailureCounter) -> Callable[[Sequence[Any]], None]:
        """Count failures, and leave them in failures.jsonl even where the counter ends the run."""

        def take(failures: Sequence[Any]) -> None:
            try:
                counter.add(failures)
            finally:
                if distributed.is_main():  # whole every time, so that steps replayed by a resume add nothing
                    self.write_failures("failures.jsonl", counter.failures.values())

        return take

    def _without_free_keys(self, config: Any) -> dict[str, Any]:
        return {key: value for key, value in flat(config).items() if key not in self._free_keys}


def uses_bf16(precision: str, device: torch.device) -> bool:
    """Whether the network runs under bf16 autocast: asked for, or on a GPU unless refused.

    Raises:
        UserError: no such precision.
    """
    known = ("auto", "fp32", "bf16")
    if precision not in known:
        raise UserError(f"precision {precision!r} is not one of {', '.join(known)}")
    return precision == "bf16" or (precision == "auto" and device.type == "cuda")
