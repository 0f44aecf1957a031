"""Reading of files of tensors: torch's and safetensors, checked before their content is used.

Declared sizes are compared with the size of the file before memory is allocated, and code in a file is never
run.
"""

from __future__ import annotations

import argparse
import os
import pickle
import re
import warnings
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from videomaskfeat.errors import UserError
from videomaskfeat.io import is_file, is_folder, local_path
from videomaskfeat.texts import parse_json

_LARGEST_HEADER = 32 * 2**20  # bytes of a safetensors header: about 250,000 tensors
_LARGEST_PICKLE = 256 * 2**20  # bytes of the pickle in a torch file, without the values of tensors


class DamagedFile(UserError):
    """A file that is truncated, altered, or of another format.

    Attributes:
        reason: what is wrong, without path and remedy.
    """

    def __init__(self, path: str, reason: str = "unknown format", *, message: str = "") -> None:
        problem = f"is truncated or damaged and cannot be read ({reason}); copy or download it again"
        super().__init__(f"{path} {message or problem}")
        self.reason = reason


class PickledCode(UserError):
    """A file of tensors also contains code, which is never run.

    Attributes:
        name: name of the function or class, if known.
    """

    def __init__(self, path: str, name: str = "") -> None:
        super().__init__(
            f"{path} contains pickled code{f' ({name})' if name else ''} besides tensors, which is never "
            "run; if you trust the file, load it with torch, save only its tensors "
            "(torch.save({'model_state': state}, ...)) and give that file"
        )
        self.name = name


def require_file(path: str) -> None:
    """Check that a path is a regular file that may contain tensors.

    Raises:
        UserError: there is no file, or it is a folder, a pipe or a device.
        DamagedFile: it is empty, or a small text in place of the file.
    """
    if not is_file(path):
        if is_folder(path):
            inside = os.path.join(path, "weights.safetensors")
            remedy = f"the weights in it, {inside}" if is_file(inside) else "the weights file itself"
            raise UserError(f"{path} is a folder; give {remedy}")
        if os.path.exists(path):
            raise UserError(f"{path} is not a regular file; give a weights file")
        raise UserError(f"{path}: no such file; check the path")
    start = _read_start(path)
    if not start:
        raise DamagedFile(path, "empty file")
    if start.startswith(b"version https://git-lfs"):
        raise DamagedFile(path, message="is a Git LFS pointer, not the file itself; run `git lfs pull`")
    if start.lstrip()[:15].lower().startswith((b"<!doctype", b"<html", b"<?xml")):
        raise DamagedFile(path, message="is a web page, not the file itself; use the link that downloads it")


def read_torch_file(path: str) -> object:
    """The content of a file that ``torch.save`` wrote, on the CPU.

    Raises:
        UserError: the file does not exist or cannot be opened.
        DamagedFile: it is truncated, altered, or not a torch file.
        PickledCode: it contains more than plain data and tensors.
    """
    require_file(path)
    start, local = _read_start(path), local_path(path)
    if not start.startswith((b"PK", b"\x80")):  # a zip archive, and a pickle of protocol 2 or later
        raise DamagedFile(
            path,
            message="is not a checkpoint: neither a zip archive nor a pickle, as torch writes them; give a "
            ".pyth, .pt, .pth or .safetensors weights file",
        )
    with _refusing_damage(path), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about pickle protocols and old storages
        if start.startswith(b"PK"):
            _check_archive(path, local)
        # The command line of a training program, as VideoMAE saves it, is plain data too.
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(local, map_location="cpu", weights_only=True)


def read_safetensors(path: str) -> dict[str, Tensor]:
    """The tensors in a safetensors file, on the CPU.

    Raises:
        UserError: the file does not exist or cannot be opened.
        DamagedFile: it is truncated, altered, or not a safetensors file.
    """
    read_metadata(path)  # checks the header
    with _refusing_damage(path):
        return load_file(local_path(path))


def read_metadata(path: str) -> dict[str, str]:
    """The metadata of a safetensors file, key -> text; with the errors of :func:`read_safetensors`."""
    require_file(path)
    local = local_path(path)
    with _refusing_damage(path):
        size = os.path.getsize(local)
        with open(local, "rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or length > size - 8:
                raise DamagedFile(path, f"a header of {length} bytes in a file of {size}")
            if length > _LARGEST_HEADER:
                raise DamagedFile(path, f"a header of {length} bytes; the maximum is {_LARGEST_HEADER}")
            text = file.read(length).decode("utf-8")
        try:
            header = parse_json(text, "its header")
        except UserError as error:
            raise DamagedFile(path, str(error)) from error
        if not isinstance(header, dict):
            raise DamagedFile(path, "its header is not a JSON object")
        with safe_open(local, "pt") as opened:  # checks types, sizes and offsets of the tensors
            return opened.metadata() or {}


def _read_start(path: str) -> bytes:
    try:
        with open(local_path(path), "rb") as file:
            return file.read(64)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); check its permissions") from error


def _check_archive(path: str, local: str) -> None:
    """Raise DamagedFile unless the members of a zip archive are as torch writes them."""
    if not zipfile.is_zipfile(local):  # the directory is at the end
        raise DamagedFile(path, "it is truncated: half-written or half-copied")
    with zipfile.ZipFile(local) as archive:
        members = {member.filename: member for member in archive.infolist()}
        if len(members) != len(archive.infolist()):
            raise DamagedFile(path, "two members have the same name")
        if any(name.endswith("/constants.pkl") for name in members):
            raise DamagedFile(path, "a TorchScript program, not weights: save the model's state_dict()")
        for name, member in members.items():
            if member.flag_bits & 1:
                raise DamagedFile(path, f"{name} is encrypted")
            if member.compress_type != zipfile.ZIP_STORED:
                raise DamagedFile(path, f"{name} is compressed, which torch never does")
        total, size = sum(member.file_size for member in members.values()), os.path.getsize(local)
        if total > size:
            raise DamagedFile(path, f"its members have {total} bytes and the file has {size}")
        broken = archive.testzip()
        if broken is not None:
            raise DamagedFile(path, f"the check sum of {broken} is wrong")
        pickles = [name for name in members if name.count("/") == 1 and name.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise DamagedFile(path, "not written by torch.save: data.pkl is missing")
        folder = pickles[0].partition("/")[0]
        order = archive.read(f"{folder}/byteorder") if f"{folder}/byteorder" in members else b"little"
        if order not in (b"little", b"big"):
            raise DamagedFile(path, f"its byte order is {order[:20]!r}")
        if members[pickles[0]].file_size > _LARGEST_PICKLE:
            raise DamagedFile(path, f"a pickle of {members[pickles[0]].file_size} bytes")
        if archive.read(pickles[0])[-1:] != pickle.STOP:
            raise DamagedFile(path, f"{pickles[0]} is truncated")


@contextmanager
def _refusing_damage(path: str) -> Iterator[None]:
    """Convert the many kinds of errors of zipfile, pickle and torch to errors for the user."""
    try:
        yield
    except UserError:
        raise
    except PermissionError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); change its permissions") from error
    except Exception as error:
        if isinstance(error, pickle.UnpicklingError) and "unsupported" in str(error).lower():
            match = re.search(r"GLOBAL (\S+)", str(error))  # a global or an operation that is not plain data
            raise PickledCode(path, match.group(1) if match else "") from error
        lines = str(error).strip().splitlines()
        raise DamagedFile(path, lines[0][:200] if lines else type(error).__name__) from error
