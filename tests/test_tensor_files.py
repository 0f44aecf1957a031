"""Files of tensors: every kind of damage is named in one line, and equal content makes equal bytes."""

from __future__ import annotations

import io
import json
import os
import pickle
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from videomaskfeat.errors import UserError
from videomaskfeat.models.saving import write_safetensors
from videomaskfeat.tensor_files import (
    DamagedFile,
    PickledCode,
    read_metadata,
    read_safetensors,
    read_torch_file,
)

STATE = {"weight": torch.arange(6.0).reshape(2, 3), "bias": torch.zeros(2)}


def torch_bytes() -> bytes:
    content = io.BytesIO()
    torch.save(STATE, content)
    return content.getvalue()


def rewritten(
    change: Callable[[str, bytes], bytes | None], *, compression: int = zipfile.ZIP_STORED
) -> bytes:
    """The archive with other members and valid check sums."""
    content = io.BytesIO()
    with (
        zipfile.ZipFile(io.BytesIO(torch_bytes())) as old,
        zipfile.ZipFile(content, "w", compression) as new,
    ):
        for name in old.namelist():
            part = change(name, old.read(name))
            if part is not None:
                new.writestr(name, part)
    return content.getvalue()


def encrypted() -> bytes:
    content = bytearray(torch_bytes())
    content[content.find(b"PK\1\2") + 8] |= 1  # the flag in the first entry of the directory
    return bytes(content)


def oversized() -> bytes:
    """The directory declares 1 GB for the first part."""
    content = bytearray(torch_bytes())
    struct.pack_into("<I", content, content.find(b"PK\1\2") + 24, 1 << 30)
    return bytes(content)


def program() -> bytes:
    content = io.BytesIO()
    torch.jit.save(torch.jit.script(nn.Linear(1, 1)), content)
    return content.getvalue()


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: torch_bytes()[:-40], "it is truncated: half-written or half-copied"),
        (lambda: torch_bytes().replace(b"\0\0\x80\x3f", b"\0\0\x80\x40"), "check sum of .*data/0 is wrong"),
        (encrypted, "is encrypted"),
        (oversized, r"its members have 10\d{8} bytes and the file has \d{4}\)"),
        (lambda: rewritten(lambda _, part: part, compression=zipfile.ZIP_DEFLATED), "is compressed"),
        (lambda: rewritten(lambda name, part: part[:8] if name.endswith("data/0") else part), "record size"),
        (
            lambda: rewritten(lambda name, part: None if name.endswith("data.pkl") else part),
            "data.pkl is miss",
        ),
        (
            lambda: rewritten(lambda name, part: b"middle" if name.endswith("byteorder") else part),
            "its byte order is b'middle'",
        ),
        (
            lambda: rewritten(lambda name, part: part[:50] if name.endswith("data.pkl") else part),
            "cannot be re",
        ),
        (program, "a TorchScript program, not weights"),
        (lambda: b"", "empty file"),
        (lambda: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "run `git lfs pull`"),
        (lambda: b"\n<!DOCTYPE html><html>", "is a web page, not the file itself"),
    ],
)
def test_damaged_torch_file_is_named(tmp_path: Path, make: Callable[[], bytes], words: str) -> None:
    path = tmp_path / "model.pt"
    path.write_bytes(make())
    with pytest.raises(DamagedFile, match=rf"model\.pt .*{words}") as caught:
        read_torch_file(str(path))
    assert "\n" not in str(caught.value)


class _MakesFolder:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("zipped", [True, False])
def test_pickled_code_is_named_and_not_run(tmp_path: Path, zipped: bool) -> None:
    path, folder = tmp_path / "model.pt", tmp_path / "made"
    torch.save({**STATE, "extra": _MakesFolder(folder)}, path, _use_new_zipfile_serialization=zipped)
    words = rf"model\.pt contains pickled code .*{os.mkdir.__module__}\.mkdir.* save only its tensors"
    with pytest.raises(PickledCode, match=words) as caught:
        read_torch_file(str(path))
    assert "\n" not in str(caught.value)
    path.write_bytes(pickle.dumps(_MakesFolder(folder)))
    with pytest.raises(UserError, match=r"model\.pt contains pickled code"):
        read_torch_file(str(path))
    assert not folder.exists()


def test_pipe_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "model.pt")
    with pytest.raises(UserError, match=r"model\.pt is not a regular file"):
        read_torch_file(str(tmp_path / "model.pt"))
    with pytest.raises(UserError, match=r"model\.pt is not a regular file"):
        read_safetensors(str(tmp_path / "model.pt"))


def test_torch_file_is_read(tmp_path: Path) -> None:
    (tmp_path / "model.pt").write_bytes(torch_bytes())
    state = read_torch_file(str(tmp_path / "model.pt"))
    assert isinstance(state, dict)
    assert all(torch.equal(state[name], value) for name, value in STATE.items())


def with_header(header: bytes, *, length: int | None = None) -> bytes:
    return struct.pack("<Q", len(header) if length is None else length) + header + bytes(32)


def tensor(**changes: object) -> bytes:
    return json.dumps({"a": {"dtype": "F32", "shape": [8], "data_offsets": [0, 32], **changes}}).encode()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"abc", "a header of .* bytes in a file of 3"),
        (with_header(b"{}", length=10**12), "a header of 1000000000000 bytes in a file of 42"),
        (with_header(b"[]"), "its header is not a JSON object"),
        (with_header(b"\xff{}"), "utf-8"),
        (
            with_header(b'{"__metadata__":' + b"[" * 100_000 + b"}"),
            "nested more than 64 levels deep",
        ),
        (with_header(b'{"a": NaN}'), "NaN is not a finite number"),
        (with_header(b'{"a": 1' + b"0" * 6000 + b"}"), "cannot be read"),
        (with_header(b'{"__metadata__": {"model": 3}}'), "cannot be read"),
        (with_header(tensor(data_offsets=[0, 10**15])), "cannot be read"),
        (with_header(tensor(dtype="F32x")), "cannot be read"),
        (with_header(tensor(shape=[2**62, 4])), "cannot be read"),
        (with_header(tensor(shape=[-8])), "cannot be read"),
    ],
)
def test_damaged_safetensors_file_is_named(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    for read in (read_safetensors, read_metadata):
        with pytest.raises(DamagedFile, match=rf"model\.safetensors .*{words}") as caught:
            read(str(path))
        assert "\n" not in str(caught.value)


def test_large_header_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", 2**31))
        file.truncate(2**31 + 100)  # sparse
    with pytest.raises(DamagedFile, match="a header of 2147483648 bytes; the maximum is 33554432"):
        read_metadata(str(path))


def test_equal_content_makes_equal_bytes_in_every_process(tmp_path: Path) -> None:
    """safetensors writes the metadata in the order of a hash table, which differs from process to process."""
    texts = {f"key {number}": 'é\n"\x01' * number for number in range(12)}
    code = (
        "import sys, torch; from pathlib import Path; from videomaskfeat.models.saving import *\n"
        f"write_safetensors(Path(sys.argv[1]), {{'b': torch.ones(3), 'a': torch.zeros(2)}}, {texts!r})"
    )
    names = ("one", "two", "three")
    for seed, name in enumerate(names):
        environment = {**os.environ, "PYTHONHASHSEED": str(seed)}
        subprocess.run([sys.executable, "-c", code, tmp_path / name], check=True, env=environment)
    first, *others = [(tmp_path / name).read_bytes() for name in names]
    assert others == [first, first]
    header = json.loads(first[8 : 8 + struct.unpack("<Q", first[:8])[0]])
    assert list(header["__metadata__"]) == sorted(texts)
    assert read_metadata(str(tmp_path / "one")) == texts
    assert torch.equal(read_safetensors(str(tmp_path / "one"))["b"], torch.ones(3))


def test_missing_folder_is_a_user_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"model\.safetensors: the folder .* does not exist; create it"):
        write_safetensors(tmp_path / "missing" / "model.safetensors", STATE, {})
