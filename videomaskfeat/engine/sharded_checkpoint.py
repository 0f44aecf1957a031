"""Checkpoints of sharded runs: folders that all ranks write together and any number of ranks reads.

A folder has ``state.pt``, the checkpoint without its sharded tensors, and the sharded tensors as
torch.distributed.checkpoint writes them: ``.metadata``, and a file ``__RANK_0.distcp`` of each rank. Each of
these files has its SHA-256 beside it, since torch verifies no check sum of them.
"""

from __future__ import annotations

import os
import pickle
import shutil
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata
from torch.distributed.tensor import DTensor

from videomaskfeat.engine import distributed
from videomaskfeat.engine.rank_watch import is_connection_error
from videomaskfeat.io import file_sha256, flush_folder, is_file, make_folder, whole_file
from videomaskfeat.tensor_files import DamagedFile, read_torch_file

STATE_FILE = "state.pt"
_SUM = ".sha256"
_LARGEST_METADATA = 256 * 2**20  # bytes

# The classes in the pickle of torch.distributed.checkpoint; any other one is refused.
_PLAIN_CLASSES = {
    "torch": {
        "Size",
        "device",
        "float32",
        "float64",
        "float16",
        "bfloat16",
        "int64",
        "int32",
        "uint8",
        "bool",
    },
    "torch.serialization": {"_get_layout"},
    "torch.distributed.checkpoint.metadata": {
        "Metadata",
        "MetadataIndex",
        "ChunkStorageMetadata",
        "TensorStorageMetadata",
        "TensorProperties",
        "_MEM_FORMAT_ENCODING",
        "StorageMeta",
    },
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo"},
    "pathlib": {"Path", "PosixPath", "PurePosixPath"},
    "collections": {"OrderedDict"},
}


def _sharded_tensors(content: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], DTensor]]:
    if isinstance(content, DTensor):
        yield path, content
    elif isinstance(content, Mapping):
        for key, value in content.items():
            yield from _sharded_tensors(value, (*path, key))


def _without_shards(content: Any) -> Any:
    if not isinstance(content, Mapping):
        return content
    whole = {key: value for key, value in content.items() if not isinstance(value, DTensor)}
    return {key: _without_shards(value) for key, value in whole.items()}


class BackgroundSave:
    """Writes a checkpoint in a thread while the training continues; every rank has one.

    The folder appears under its name only when the files of all ranks are on the disk.

    Args:
        content: the checkpoint of this rank. The constructor copies its tensors, so the training may change
            them afterwards.
        path: path of the folder.
        group: a group of all ranks for CPU tensors that nothing else uses meanwhile.
        finish: called on rank 0 when the folder is complete.
    """

    def __init__(
        self,
        content: Mapping[str, Any],
        path: Path,
        *,
        group: dist.ProcessGroup,
        finish: Callable[[], None],
    ) -> None:
        self.path = path
        self._group, self._finish = group, finish
        self._temporary = path.with_name(f".{path.name}.tmp")
        sharded = dict(_sharded_tensors(content))
        self._shards = {_key(where): _copy_to_cpu(tensor) for where, tensor in sharded.items()}
        plain = {"content": _without_shards(content), "sharded": {_key(where): where for where in sharded}}
        distributed.run_on_main(lambda: self._begin(plain))
        self._error: BaseException | None = None
        # A daemon: a thread that waits for a lost rank must not keep the process from ending.
        self._thread = threading.Thread(target=self._write, name="checkpoint", daemon=True)
        self._thread.start()

    def _begin(self, plain: dict[str, Any]) -> None:
        _remove_folder(self._temporary)
        make_folder(self._temporary)
        with whole_file(self._temporary / STATE_FILE, "wb") as file:
            torch.save(plain, file)

    def _write(self) -> None:
        try:
            dcp.save(self._shards, storage_writer=_Writer(self._temporary), process_group=self._group)
            if distributed.is_main():
                _replace_folder(self._temporary, self.path)
                self._finish()
        except BaseException as error:  # CheckpointException is no Exception; raised by wait
            self._error = error
        finally:
            self._shards = {}

    def join(self) -> None:
        """Wait for the end of this rank's part."""
        self._thread.join()

    def wait(self) -> None:
        """Wait until the checkpoint is complete; all ranks must call it.

        Raises:
            OSError: it could not be written, on any rank.
        """
        self._thread.join()
        error = self._error
        failed = distributed.gather_objects(None if error is None else _cause(error))
        if error is not None and is_connection_error(error):
            raise error
        for rank, text in enumerate(failed):
            if text is not None:
                raise OSError(f"rank {rank}: {text}") from error


class _Writer(dcp.FileSystemWriter):
    """Writes a check sum beside each file."""

    def write_data(self, plan: Any, planner: Any) -> Any:
        written = super().write_data(plan, planner)
        for name in {result.storage_data.relative_path for result in written.value()}:
            _write_sum(Path(self.path, name))
        return written

    def finish(self, metadata: Metadata, results: Any) -> None:
        super().finish(metadata, results)
        _write_sum(Path(self.path, ".metadata"))


def _write_sum(path: Path) -> None:
    with whole_file(f"{path}{_SUM}") as file:
        file.write(file_sha256(path))


def _cause(error: BaseException) -> str:
    """The first failure of a rank in one line."""
    if isinstance(error, CheckpointException) and error.failures:
        error = next(iter(error.failures.values()))[0]
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(text.split())[:200] or type(error).__name__


def _key(path: tuple[Any, ...]) -> str:
    return "/".join(map(str, path))


def _copy_to_cpu(tensor: DTensor) -> DTensor:
    part = tensor.to_local().detach().to("cpu", copy=True)
    return _of_part(part, tensor, tensor.shape, tensor.stride())


def _of_part(part: Tensor, example: DTensor, shape: torch.Size, stride: tuple[int, ...]) -> DTensor:
    """A tensor with this rank's part, sharded as the example."""
    return DTensor.from_local(
        part, example.device_mesh, example.placements, run_check=False, shape=shape, stride=stride
    )


def _replace_folder(new: Path, path: Path) -> None:
    """Give a complete folder its name; a kill leaves the old or the new one, see :func:`recover`."""
    flush_folder(new)
    old = _old(path)
    if path.is_dir():
        path.rename(old)
    new.rename(path)
    flush_folder(path.parent)
    _remove_folder(old)


def _old(path: Path) -> Path:
    return path.with_name(f".{path.name}.old")


def recover(folder: Path) -> None:
    """Restore a checkpoint whose replacement a kill stopped, and remove what killed writers left."""
    for old in folder.glob(".*.old"):
        path = old.with_name(old.name[1:].removesuffix(".old"))
        if path.exists():
            _remove_folder(old)
        else:
            old.rename(path)
    for leftover in folder.glob(".*.tmp"):
        if leftover.is_dir():
            _remove_folder(leftover)


def remove_checkpoint(path: Path) -> None:
    """Remove the folder of a checkpoint; a kill leaves it whole, or without its name."""
    hidden = path.with_name(f".{path.name}.removed.tmp")
    _remove_folder(hidden)
    path.rename(hidden)
    _remove_folder(hidden)


def _remove_folder(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)


def read_sharded(
    path: Path, example: Callable[[tuple[Any, ...], torch.Size], Tensor | None]
) -> dict[str, Any]:
    """Read a checkpoint folder without the other ranks; no code in it is run.

    Args:
        path: the folder.
        example: see :data:`~videomaskfeat.engine.checkpoint.Example`.

    Returns:
        The checkpoint; tensors with an example are sharded as it is.

    Raises:
        DamagedFile: the folder is incomplete or altered.
        PickledCode: ``state.pt`` contains code.
    """
    if not is_file(path / STATE_FILE):
        raise DamagedFile(str(path), f"{STATE_FILE} is missing")
    plain = read_torch_file(str(path / STATE_FILE))
    metadata = _read_metadata(path)
    if not (isinstance(plain, dict) and plain.keys() == {"content", "sharded"}):
        raise DamagedFile(str(path / STATE_FILE), "it is no part of a sharded checkpoint")
    content, sharded = plain["content"], plain["sharded"]
    if not isinstance(content, dict) or not isinstance(sharded, dict):
        raise DamagedFile(str(path / STATE_FILE), "it is no part of a sharded checkpoint")
    stored = metadata.state_dict_metadata
    if stored.keys() != sharded.keys():
        raise DamagedFile(str(path), f"{STATE_FILE} and .metadata list different tensors")
    _check_files(path, metadata)
    tensors: dict[str, Tensor] = {}
    for key, where in sharded.items():
        kind = stored[key]
        if not isinstance(kind, TensorStorageMetadata):
            raise DamagedFile(str(path), f"{key} is no tensor")
        tensors[key] = _empty(kind, example(where, kind.size))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of reading without the other ranks
            dcp.load(tensors, storage_reader=_Reader(path, metadata), no_dist=True)
    except CheckpointException as error:
        raise DamagedFile(str(path), _cause(error)) from error
    for key, where in sharded.items():
        _insert(content, where, tensors[key], path)
    return content


def _insert(content: dict[Any, Any], where: tuple[Any, ...], tensor: Tensor, path: Path) -> None:
    *parents, name = where
    for key in parents:
        content = content.get(key)  # type: ignore[assignment]
        if not isinstance(content, dict):
            raise DamagedFile(str(path / STATE_FILE), f"{_key(where)} has no place in it")
    content[name] = tensor


def _empty(kind: TensorStorageMetadata, example: Tensor | None) -> Tensor:
    whole = torch.empty(kind.size, dtype=kind.properties.dtype, device="meta")
    if not isinstance(example, DTensor):
        return torch.empty(kind.size, dtype=kind.properties.dtype)
    part = torch.empty(example.to_local().shape, dtype=kind.properties.dtype)
    return _of_part(part, example, kind.size, whole.stride())


class _Reader(dcp.FileSystemReader):
    """Reads tensors with metadata that were checked before."""

    def __init__(self, path: Path, metadata: Metadata) -> None:
        super().__init__(path)
        self._checked = metadata

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        return self._checked


class _PlainUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if name in _PLAIN_CLASSES.get(module, ()):
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"it contains {module}.{name}")


def _read_metadata(path: Path) -> Metadata:
    """The table of the tensors in a folder."""
    file = path / ".metadata"
    _check_sum(file)
    if file.stat().st_size > _LARGEST_METADATA:
        raise DamagedFile(str(file), f"{file.stat().st_size} bytes")
    try:
        with open(file, "rb") as opened:
            metadata = _PlainUnpickler(opened).load()
    except Exception as error:  # altered pickles raise anything
        raise DamagedFile(str(file), " ".join(str(error).split())[:200]) from error
    if not isinstance(metadata, Metadata) or not isinstance(metadata.storage_data, dict):
        raise DamagedFile(str(file), "it is no table of tensors")
    return metadata


def _check_files(path: Path, metadata: Metadata) -> None:
    """Verify the check sums of all files that the table names."""
    names = {info.relative_path for info in metadata.storage_data.values()}
    for name in sorted(names):
        if os.path.basename(name) != name:
            raise DamagedFile(str(path), f"it names the file {name!r}")
        _check_sum(path / name)


def _check_sum(path: Path) -> None:
    for file in (path, Path(f"{path}{_SUM}")):
        if not is_file(file):
            raise DamagedFile(str(path.parent), f"{file.name} is missing")
    expected = Path(f"{path}{_SUM}").read_bytes().decode("ascii", errors="replace")
    if file_sha256(path) != expected:
        raise DamagedFile(str(path.parent), f"the check sum of {path.name} is wrong")
