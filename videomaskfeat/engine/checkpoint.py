"""Checkpoints: written whole or not at all, complete enough to resume a run; resume.py reads them."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor

from videomaskfeat.engine import distributed
from videomaskfeat.errors import RunFailed, UserError
from videomaskfeat.io import (
    is_folder,
    list_folder,
    make_folder,
    remove_temporary_files,
    whole_file,
)

if TYPE_CHECKING:
    from videomaskfeat.engine.sharded_checkpoint import BackgroundSave

logger = logging.getLogger(__name__)

Example = Callable[[tuple[Any, ...], torch.Size], Tensor | None]
"""Keys from the root of a checkpoint to a tensor, and its whole shape -> a tensor of this run of that kind,
whose part this rank needs; None: the whole tensor is needed."""
_NAME = re.compile(r"step_(\d{8,})(?:\.pt)?")
_DAMAGED = ".damaged"
LENGTH_KEY = "optim.epochs"
"""Config key of the length of a run, which may grow."""


class SaveFailed(RunFailed):
    """A checkpoint could not be written, for example on a full disk; earlier ones are untouched."""


class DamagedCheckpointError(UserError):
    """A checkpoint file is cut, altered, or no checkpoint."""


class CheckpointFolder:
    """The checkpoints of one run in a local or mounted folder.

    A checkpoint is a file ``step_00001234.pt``, or a folder ``step_00001234`` if the run is sharded. Both
    have the same content, and a run resumes from either; see `sharded_checkpoint`.

    Args:
        folder: created at the first save.
        keep_last: number of the newest checkpoints that are kept, at least 1.
        milestone_every: checkpoints at multiples of this step are never removed; 0: no milestones.
    """

    def __init__(
        self, folder: str | os.PathLike[str], *, keep_last: int = 2, milestone_every: int = 0
    ) -> None:
        if keep_last < 1:
            raise UserError(
                f"keep_last={keep_last}: at least the newest checkpoint must be kept; set 1 or more"
            )
        self.folder = Path(folder)
        self.keep_last = keep_last
        self.milestone_every = milestone_every
        self._saving: BackgroundSave | None = None
        self._group: dist.ProcessGroup | None = None

    def path(self, step: int) -> Path:
        """The file of a step, or the folder of a sharded checkpoint."""
        path = self.folder / f"step_{step:08d}"
        return path if path.is_dir() else path.with_suffix(".pt")

    def steps(self) -> list[int]:
        """Steps that have a checkpoint, ascending."""
        names = list_folder(self.folder) if is_folder(self.folder) else []
        return sorted({int(match.group(1)) for match in map(_NAME.fullmatch, names) if match})

    def save(self, content: Mapping[str, Any], step: int) -> Path:
        """Write a checkpoint and remove those that need not be kept.

        A kill or a power loss leaves the old checkpoints whole, and the new one whole or missing.

        Raises:
            SaveFailed: the operating system refused to write; the temporary file is removed.
        """
        path = self.folder / f"step_{step:08d}.pt"
        self._make_folder(path)
        try:
            with whole_file(path, "wb") as file:
                torch.save(dict(content), file)
        except RuntimeError as error:
            cause = _system_error(error)
            if cause is None:
                raise
            raise _save_failed(path, cause) from error
        if path.with_suffix("").is_dir():
            self._remove(path.with_suffix(""))  # of the same step, from sharded ranks
        self._prune(step)
        return path

    def save_sharded(self, content: Mapping[str, Any], step: int) -> Path:
        """Begin to write a checkpoint with sharded tensors; all ranks must call it.

        It returns when the tensors are copied, and :meth:`wait` when they are written. The checkpoint has its
        name only when it is complete.

        Raises:
            SaveFailed: this one or the one before could not be written.
        """
        from videomaskfeat.engine.sharded_checkpoint import BackgroundSave

        self.wait()
        if self._group is None:
            self._group = distributed.new_cpu_group()
        path = self.folder / f"step_{step:08d}"

        def finish() -> None:
            self._remove(path.with_suffix(".pt"))  # of the same step, from one process
            self._prune(step)

        distributed.run_on_main(lambda: self._make_folder(path))
        try:
            self._saving = BackgroundSave(content, path, group=self._group, finish=finish)
        except OSError as error:
            raise _save_failed(path, error) from error
        return path

    def wait(self) -> None:
        """Wait for the end of :meth:`save_sharded`; all ranks must call it.

        Raises:
            SaveFailed: the checkpoint could not be written.
        """
        saving, self._saving = self._saving, None
        if saving is None:
            return
        try:
            saving.wait()
        except OSError as error:
            raise _save_failed(saving.path, error) from error

    def join(self) -> None:
        """Let :meth:`save_sharded` end before an error ends the run; an error of it is not raised."""
        if self._saving is not None:
            self._saving.join()

    def load_newest(
        self,
        accept: Callable[[dict[str, Any], str], None] | None = None,
        example: Example | None = None,
    ) -> tuple[Path, dict[str, Any]] | None:
        """Path and content of the newest whole checkpoint; None if there is no checkpoint yet.

        All ranks must call it, and get the same checkpoint. Removes left-over temporary files. Renames a
        damaged checkpoint to ``*.damaged``, logs a warning and reads the one before it.

        Args:
            accept: receives content and path; raises DamagedCheckpointError if the run cannot resume from it.
            example: see :func:`~videomaskfeat.engine.resume.load_checkpoint`.

        Raises:
            UserError: all checkpoints are damaged.
        """
        steps = distributed.run_on_main(self._clean)
        if not steps:
            return None
        from videomaskfeat.engine.resume import read_own

        damaged: list[DamagedCheckpointError] = []
        for step in reversed(steps):
            path, content = self.path(step), {}
            error: Exception | None = None
            try:
                content = read_own(path, example)
                if accept is not None:
                    accept(content, str(path))
            except (UserError, RunFailed) as caught:  # raised on all ranks below
                error = caught
            error = distributed.first_error(error)
            if isinstance(error, DamagedCheckpointError):
                damaged.append(error)
                continue
            if error is not None:
                raise error
            distributed.run_on_main(lambda step=step: self._set_aside(damaged, step))  # type: ignore[misc]
            return self.path(step), content
        if damaged:
            others = ", ".join(self.path(step).name for step in reversed(steps[:-1]))
            raise UserError(
                f"{damaged[0]}; no other checkpoint in {self.folder} is intact"
                f"{f' ({others})' if others else ''}: start in another folder"
            )
        return None

    def _clean(self) -> list[int]:
        """Remove what killed writers left; returns the steps that have a checkpoint."""
        if not is_folder(self.folder):
            return []
        if any(self.folder.glob(".step_*/")) or any(self.folder.glob(".step_*.old")):
            from videomaskfeat.engine.sharded_checkpoint import recover

            recover(self.folder)
        remove_temporary_files(self.folder)
        return self.steps()

    def _set_aside(self, damaged: list[DamagedCheckpointError], step: int) -> None:
        """Rename the checkpoints after a step, which are damaged."""
        for bad in damaged:
            logger.warning("%s; resuming from %s instead", bad, self.path(step))
        for later in self.steps():
            if later > step:
                path = self.path(later)
                path.rename(f"{path}{_DAMAGED}")

    def _make_folder(self, path: Path) -> None:
        try:
            make_folder(self.folder)
        except UserError as error:  # the folder was usable when the run started
            raise SaveFailed(f"{path}: the checkpoint could not be written: {error}") from error

    def _prune(self, newest: int) -> None:
        older = [step for step in self.steps() if step <= newest]
        for step in older[: -self.keep_last]:
            if not (self.milestone_every and step % self.milestone_every == 0):
                self._remove(self.path(step))

    def _remove(self, path: Path) -> None:
        if path.is_dir():
            from videomaskfeat.engine.sharded_checkpoint import remove_checkpoint

            remove_checkpoint(path)
        else:
            path.unlink(missing_ok=True)


def _save_failed(path: Path, cause: OSError) -> SaveFailed:
    return SaveFailed(
        f"{path}: the checkpoint could not be written: {cause.strerror or cause}; earlier checkpoints"
        " are whole; free space and start the same command again to resume"
    )


def _system_error(error: BaseException) -> OSError | None:
    """The OSError behind an error that torch.save raised while closing its zip writer."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, OSError):
        cause = cause.__cause__ or cause.__context__
    return cause
