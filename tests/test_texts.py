"""Text files: their kind, encoding, depth and size."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from videomaskfeat import texts
from videomaskfeat.errors import UserError
from videomaskfeat.io import open_file
from videomaskfeat.texts import open_rows, parse_json, printable_name, read_rows, read_text, show_text
from videomaskfeat.yaml_files import YAML_BYTES, dump_yaml, parse_yaml

TEXT = "größe 1\nb 2\n"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("ends", ["\n", "\r\n", "\r"])
def test_unambiguous_encodings_and_line_ends_are_read(tmp_path: Path, encoding: str, ends: str) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(TEXT.replace("\n", ends).encode(encoding))
    assert read_text(path, what="text") == TEXT
    assert read_rows(path) == TEXT.encode()


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (
            TEXT.encode("latin-1"),
            "a.txt:1: byte 0xf6 is not UTF-8, .* probably windows-1252; .*iconv",
        ),
        ("b\n视频片段".encode("gb18030"), "a.txt:2: byte 0x.* probably gb18030; .*iconv -f gb18030"),
        ("a,b,c,d\n".encode("utf-16le"), "a.txt is probably UTF-16LE without a byte order mark; .*iconv"),
        ("a,b,c,d\n".encode("utf-16be"), "a.txt is probably UTF-16BE"),
        ("a,b,c,d\n".encode("utf-32le"), "a.txt is probably UTF-32LE"),
        (b"\xff\xfea\0\0\xd8b", "a.txt has the byte order mark of UTF-16 and is not valid UTF-16"),
        (b"a\nb\0c", "a.txt:2: NUL byte, so this is not text"),
        (b"\x1f\x8b\x08\0", "a.txt is a gzip file, not text; unpack it first"),
        (b"PK\x03\x04", "a.txt is a zip file, as PyTorch's checkpoints are, not text; give text"),
        (b"\x7fELF\x02", r"a.txt is an executable \(ELF\), not text"),
        (b"\x80\x04\x95", "a.txt is a pickle file, not text"),
        (b"\0\0\0\x18ftypmp42", "a.txt is a video, not text"),
        (b"\x93NUMPY\x01", "a.txt is a NumPy array"),
        (b"\x08\0\0\0\0\0\0\0" + b'{"a":1}', "a.txt is a safetensors file"),
        (b"version https://git-lfs.github.com/spec/v1\n", "a.txt is a Git LFS pointer, .*git lfs pull"),
    ],
)
def test_file_that_is_not_text_is_named(tmp_path: Path, data: bytes, words: str) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(data)
    with pytest.raises(UserError, match=words) as caught:
        read_text(path, what="text")
    assert str(caught.value).isprintable()


def test_lists_keep_names_of_any_bytes(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"\xe9.mp4 1\r\n")
    assert read_rows(path) == b"\xe9.mp4 1\n"
    with open_rows(path, what="a list") as rows:
        assert [os.fsencode(row) for row in rows] == [b"\xe9.mp4 1\n"]


def test_only_regular_files_are_read(tmp_path: Path) -> None:
    """Opening a pipe without a writer would block forever."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    place = tmp_path / "socket"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(os.path.relpath(place))
        for path, kind in ((pipe, "named pipe"), (place, "socket"), (Path("/dev/zero"), "device")):
            with pytest.raises(UserError, match=f"^{path} is a {kind}, but a regular file is needed"):
                open_file(path, "rb")
    for path, words in (
        ("a\0b", "is not a valid path"),
        ("\ud800", "is not a valid path"),
        ("a" * 5000, "cannot be read"),
    ):
        with pytest.raises(UserError, match=words):
            open_file(path, "rb")


def test_size_is_limited(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    with path.open("wb") as file:
        file.write(b"# text\n" * 10_000)
        file.truncate(1 << 34)  # sparse: 16 GB of zeros
    with pytest.raises(UserError, match="has more than 100000 bytes, too many for a config"):
        read_text(path, what="a config", limit=100_000)
    with pytest.raises(UserError, match=f"may have {YAML_BYTES} at most"):
        parse_yaml("#" * YAML_BYTES + "\n", "a.yaml")


def test_size_of_lists_is_limited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "list.csv"
    path.write_text("a.mp4 1\n" * 4)
    monkeypatch.setattr(texts, "LIST_BYTES", 32)
    assert read_rows(path) == path.read_bytes()
    with open_rows(path, what="a list") as rows:
        assert len(list(rows)) == 4
    monkeypatch.setattr(texts, "LIST_BYTES", 31)
    words = r"list\.csv has more than 31 bytes, too many for a list"
    with pytest.raises(UserError, match=words):
        read_rows(path)
    with pytest.raises(UserError, match=words), open_rows(path, what="a list"):
        pass


def test_yaml_is_plain_data() -> None:
    text = "a: &x {b: 1e-6, c: [1, .5, 010, true, ~, 2024-01-01]}\nd: {<<: *x, b: 2}\n'1': =\n"
    values = [1, 0.5, 8, True, None, "2024-01-01"]
    assert parse_yaml(text, "") == {
        "a": {"b": 1e-6, "c": values},
        "d": {"b": 2, "c": values},
        "1": "=",
    }
    assert parse_yaml("# nothing\n", "") is None
    odd = {"path": "\udce9 a", "number": "1e-3", "yes": "yes"}
    assert parse_yaml(dump_yaml(odd), "") == odd


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: 1\nb: 2\na: 3", "y, line 3: not valid YAML: the key 'a' is repeated"),
        ("~: 1", "y, line 1: .*the key ~ is not text"),
        ("a:\n  1: 2", "y, line 2: .*the key 1 is not text"),
        ("? [a]\n: 1", "the key sequence is not text"),
        ("a: !!set {b}", "y, line 1: the tag !!set is not supported"),
        ("a: !!python/object:os.system x", "the tag !!python/object:os.system is not supported"),
        ("a: !foo x", "the tag !foo is not supported"),
        ("a: &a [*a]", "y, line 1: the anchor &a contains itself"),
        ("a: &a {<<: *a}", "the anchor &a contains itself"),
        ("a: *b", "found undefined alias"),
        ("a: 1\n---\nb: 2", "y, line 2: a second YAML document begins"),
        ("a: " + "9" * 6000, "y, line 1: .* is not a valid int of at most 64 bits"),
        ("a: 0x_", "'0x_' is not a valid int"),
        ("a: !!float x", "'x' is not a valid float"),
        ("a:\n\t- 1", "y, line 2: not valid YAML"),
        ("a: \x07", "not valid YAML"),
        ("a: !!map x", "expected a mapping"),
    ],
)
def test_invalid_yaml_is_refused(text: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        parse_yaml(text, "y")


@pytest.mark.parametrize("opening", ["[", "{a: ", "- ", "? "])
@pytest.mark.parametrize("depth", [17, 1_000, 60_000])
def test_yaml_depth_is_checked_before_libyaml_crashes(opening: str, depth: int) -> None:
    with pytest.raises(UserError, match="y, line 1: YAML nested more than 16 levels deep"):
        parse_yaml(opening * depth, "y")


def test_aliases_count_as_their_content() -> None:
    lines = ["a0: &a0 [1]"] + [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 10)]
    with pytest.raises(UserError, match=r"line 6: more than 10000 values \(an alias counts"):
        parse_yaml("\n".join(lines), "y")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[" * 100_000, "nested more than 64 levels"),
        ("[" * 65 + "]" * 65, "nested more than 64 levels"),
        ('{"a": 1, "b": 2, "a": 3}', "the key 'a' is repeated"),
        ("[NaN]", "NaN is not a finite number"),
        ("[1e400]", "the number 1e400 is too large"),
        ("[" + "9" * 6000 + "]", "has more than 64 bits"),
        ('{"a": 1', r"j:1: not valid JSON .*; give JSON"),
        (b"\xff\xfe", r"j:1: not valid JSON"),
        (b'{"\xe9": 1}', "probably windows-1252"),
    ],
)
def test_invalid_json_is_refused(text: str | bytes, words: str) -> None:
    with pytest.raises(UserError, match=words):
        parse_json(text, "j", remedy="give JSON")


def test_json_is_read_in_any_marked_encoding() -> None:
    assert parse_json('{"ä": [1, 2.5, null]}'.encode("utf-16"), "j") == {"ä": [1, 2.5, None]}
    assert parse_json("[" * 64 + "]" * 64, "j") is not None
    assert parse_json("[Infinity]", "j", allow_nan=True) == [float("inf")]


def test_values_in_messages_are_short_and_printable() -> None:
    assert show_text("a\nb\x1b[31m\udce9") == "a\\nb\\x1b[31m\\udce9"
    assert len(show_text("x" * 10_000)) == 80


def test_names_of_any_bytes_can_be_logged(tmp_path: Path) -> None:
    with open_file(tmp_path / "log.txt", "a") as file:
        file.write("\udce9 \ud800")
    assert (tmp_path / "log.txt").read_bytes() == b"\\udce9 \\ud800"


def test_any_name_is_printed_on_one_line() -> None:
    assert printable_name("caf\udce9 \u89c6\n\t\x1b[1m") == "caf\\xe9 \u89c6\\n\\t\\x1b[1m"
