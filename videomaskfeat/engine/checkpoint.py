"""Checkpoints that are either whole or not there, and are read without running code."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from videomaskfeat.errors import RunFailed, UserError
from videomaskfeat.io import (
    is_folder,
    list_folder,
    make_folder,
    remove_temporary_files,
    whole_file,
)
from videomaskfeat.tensor_files import DamagedFile, PickledCode, read_torch_file
from videomaskfeat.texts import show_text

logger = logging.getLogger(__name__)

_NAME = re.compile(r"step_(\d{8,})\.pt")
_DAMAGED = ".damaged"
_SHOWN = 4  # names listed in a message before "and N more"
_LONGEST = 200  # characters of a value in a message


class SaveFailed(RunFailed):
    """A checkpoint could not be written (a full disk, say); earlier ones are untouched."""


class DamagedCheckpointError(UserError):
    """A checkpoint file that is cut, altered or no checkpoint at all."""


class CheckpointFolder:
    """The checkpoints of one run: ``step_00001234.pt`` files in a local (or mounted) folder.

    Args:
        folder: where they are; created at the first save.
        keep_last: how many of the newest are kept, 1 or more.
        milestone_every: checkpoints whose step is a multiple of this are kept for ever; 0 = none.
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

    def path(self, step: int) -> Path:
        """The file of a step."""
        return self.folder / f"step_{step:08d}.pt"

    def steps(self) -> list[int]:
        """The steps that have a checkpoint, ascending."""
        names = list_folder(self.folder) if is_folder(self.folder) else []
        return sorted(int(match.group(1)) for match in map(_NAME.fullmatch, names) if match)

    def save(self, content: Mapping[str, Any], step: int) -> Path:
        """Write a checkpoint and remove those that need not be kept.

        At any moment, killed or without power, the folder holds the old checkpoints whole, and the new one
        whole or not at all (:func:`~videomaskfeat.io.whole_file`).

        Raises:
            SaveFailed: the operating system refused to write; the temporary file is removed.
        """
        path = self.path(step)
        try:
            make_folder(self.folder)
        except UserError as error:  # in the midst of a run, whatever stands in the way came after its start
            raise SaveFailed(f"{path}: the checkpoint could not be written: {error}") from error
        try:
            with whole_file(path, "wb") as file:
                torch.save(dict(content), file)
        except RuntimeError as error:
            cause = _system_error(error)
            if cause is None:
                raise
            raise SaveFailed(
                f"{path}: the checkpoint could not be written: {cause.strerror or cause}; earlier checkpoints"
                " are whole; free space and start the same command again to resume"
            ) from error
        self._prune(step)
        return path

    def load_newest(
        self, take: Callable[[dict[str, Any], str], None] | None = None
    ) -> tuple[Path, dict[str, Any]] | None:
        """The path and content of the newest whole checkpoint; None if there is none yet.

        Left-over temporary files are removed. A damaged checkpoint is renamed to ``*.damaged`` with a warning
        that names it, and the one before it is taken.

        Args:
            take: is given the content and the path; raises DamagedCheckpointError for a content that cannot
                be resumed from, which is then damaged, too.

        Raises:
            UserError: there are checkpoints but none is whole.
        """
        if not is_folder(self.folder):
            return None
        remove_temporary_files(self.folder)
        damaged: list[DamagedCheckpointError] = []
        for step in reversed(self.steps()):
            try:
                content = _read_part(self.path(step))
                if take is not None:
                    take(content, str(self.path(step)))
            except DamagedCheckpointError as error:
                damaged.append(error)
                continue
            for bad in damaged:
                logger.warning("%s; resuming from %s instead", bad, self.path(step))
            for later in self.steps():
                if later > step:
                    self.path(later).rename(f"{self.path(later)}{_DAMAGED}")
            return self.path(step), content
        if damaged:
            others = ", ".join(self.path(step).name for step in reversed(self.steps()[:-1]))
            raise UserError(
                f"{damaged[0]}; no other checkpoint in {self.folder} is whole"
                f"{f' ({others})' if others else ''}: start in another folder"
            )
        return None

    def _prune(self, newest: int) -> None:
        older = [step for step in self.steps() if step <= newest]
        for step in older[: -self.keep_last]:
            if not (self.milestone_every and step % self.milestone_every == 0):
                self.path(step).unlink()


def load_checkpoint(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a checkpoint (to the CPU) as plain data; its check sums are verified and no code in it is run.

    Raises:
        DamagedCheckpointError: the file is cut, altered or no checkpoint, or it holds pickled code.
        UserError: there is no such file.
    """
    text = os.fspath(path)
    try:
        content = read_torch_file(text)
    except PickledCode as error:
        name = f" ({error.name})" if error.name else ""  # one changed byte makes another name of one
        raise DamagedCheckpointError(_pickled(text, name)) from error
    except DamagedFile as error:
        raise DamagedCheckpointError(f"{text}: the checkpoint is damaged ({error.reason})") from error
    if not isinstance(content, dict):
        raise DamagedCheckpointError(
            f"{text}: is no checkpoint of a run (it holds a {type(content).__name__})"
        )
    return content


def _read_part(path: Path) -> dict[str, Any]:
    """A checkpoint of a run's own folder: what is no file there, such as a folder or a pipe, is damaged."""
    if not path.is_file():
        raise DamagedCheckpointError(f"{path}: the checkpoint is damaged (not a regular file)")
    return load_checkpoint(path)


def check_fingerprint(
    saved: Mapping[str, Any], current: Mapping[str, Any], where: str | os.PathLike[str]
) -> None:
    """Refuse to resume a run under another configuration.

    Args:
        saved: flat settings in the checkpoint.
        current: the settings of this run; leave out those that may change, such as the number of workers.
        where: path for the message.

    Raises:
        UserError: names the first keys that differ, with both values.
    """
    keys = [key for key in sorted(saved.keys() | current.keys()) if saved.get(key) != current.get(key)]
    if keys:
        shown = [
            f"{key} is {show_text(repr(saved.get(key)), _LONGEST)} there and "
            f"{show_text(repr(current.get(key)), _LONGEST)} here"
            for key in keys[:_SHOWN]
        ]
        raise UserError(
            f"{where}: belongs to a run of another config: {_listed(shown, len(keys))};"
            " set them back, or use another run folder"
        )


def check_weights(saved: Mapping[str, Tensor], model: nn.Module, where: str | os.PathLike[str]) -> None:
    """Refuse weights of another model.

    Raises:
        UserError: names some parameters that are missing, unknown or of another shape.
    """
    own = model.state_dict()
    findings = [f"{name} is missing" for name in own if name not in saved]
    findings += [f"{name} is unknown here" for name in saved if name not in own]
    findings += [
        f"{name} is {list(saved[name].shape)} there and {list(own[name].shape)} here"
        for name in own
        if name in saved and saved[name].shape != own[name].shape
    ]
    if findings:
        raise UserError(
            f"{where}: holds another model: {_listed(findings[:_SHOWN], len(findings))};"
            " use the config that it was trained with, or another run folder"
        )


def _pickled(path: str | os.PathLike[str], what: str = "") -> str:
    return (
        f"{os.fspath(path)}: holds pickled code{what}, which is never executed here; resume only from"
        " checkpoints that this program wrote, and bring weights as .safetensors"
    )


def _listed(shown: list[str], total: int) -> str:
    return ", ".join(shown) + (f" and {total - len(shown)} more" if total > len(shown) else "")


def _system_error(error: BaseException) -> OSError | None:
    """The operating system's error behind one that torch.save raised while unwinding its zip writer."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, OSError):
        cause = cause.__cause__ or cause.__context__
    return cause
