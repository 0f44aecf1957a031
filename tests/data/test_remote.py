"""Shards on a web server and in an object store: ranges, retries, the cache, and errors with names."""

from __future__ import annotations

import importlib
import logging
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from tests.data.clip_data import equal, make_clips, write_videos
from videomaskfeat.cli import main
from videomaskfeat.data import remote
from videomaskfeat.data.formats import load_records
from videomaskfeat.data.loader import ClipLoader
from videomaskfeat.data.remote import RemoteError, read_range
from videomaskfeat.data.shards import PackedVideo
from videomaskfeat.errors import UserError
from videomaskfeat.jobs.pack import pack

needs_urllib3 = pytest.mark.skipif(not find_spec("urllib3"), reason="urllib3 is not installed (extra shards)")
needs_s3 = pytest.mark.skipif(
    not (find_spec("s3fs") and find_spec("moto")), reason="s3fs or moto is not installed"
)


class Server(ThreadingHTTPServer):
    """A local web server with byte ranges.

    Attributes:
        folder: the files.
        failures: number of requests to answer with 503 first.
        ranged: whether it supports ranges.
        requests: method and path of each request.
    """

    folder: Path
    failures = 0
    ranged = True

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.folder = folder
        self.requests: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    server: Any
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def log_message(self, format: str, *arguments: object) -> None:
        """Print nothing."""

    def _answer(self, *, with_body: bool) -> None:
        self.server.requests.append(f"{self.command} {self.path}")
        path = self.server.folder / self.path[1:]
        status, body = 200, b""
        if self.server.failures:
            self.server.failures -= 1
            status = 503
        elif not path.is_file():
            status = 404
        else:
            body = path.read_bytes()
        span = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        if span and status == 200 and self.server.ranged:
            status, body = 206, body[int(span[1]) : int(span[2]) + 1]
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if with_body:
            self.wfile.write(body)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    """Twelve videos in shards below ``out``, on a server."""
    listed = write_videos(tmp_path, 6)
    pack(str(listed), str(tmp_path / "out"), shard_mb=0.02)
    with Server(tmp_path / "out") as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        try:
            yield running
        finally:
            running.shutdown()
            thread.join()


@needs_urllib3
def test_batches_from_a_server_are_those_from_files(server: Server, tmp_path: Path) -> None:
    expected = list(ClipLoader(make_clips(tmp_path / "train.csv"), batch_size=2, read_ahead=False).epoch(0))
    records = load_records(f"{server.url}/index.json")
    assert records[3].label == 3
    with ClipLoader(make_clips(records), batch_size=2, workers=1, read_ahead=False) as loader:
        assert equal(tuple(loader.epoch(0)), tuple(expected))
    assert sum(request.startswith("GET /0") for request in server.requests) == 6  # one per video


@needs_urllib3
def test_busy_servers_are_asked_again_and_dead_ones_named(server: Server, tmp_path: Path) -> None:
    record = load_records(f"{server.url}/index.json")[0]
    video = PackedVideo.parse(record.path)
    assert video is not None
    server.failures = 2
    assert video.read() == (tmp_path / "000.mp4").read_bytes()
    server.failures = 100
    clips = make_clips(load_records(tmp_path / "out/index.json"), tries=2)
    clips.records = type(clips.records).from_paths([record.path], None, source="remote")
    with pytest.raises(UserError, match=r"000000\.tar#\d+:\d+#000\.mp4 \(the server answers 503"):
        next(iter(ClipLoader(clips, batch_size=1).epoch(0)))


@needs_urllib3
def test_silent_server_gets_one_try_until_it_answers(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten videos must fail before a training ends, so five tries of 20 seconds for each would take long."""
    monkeypatch.setattr(remote, "_READ_SECONDS", 0.2)
    remote._http_pool.cache_clear()
    try:
        with socket.create_server(("127.0.0.1", 0), backlog=100) as silent:
            place = silent.getsockname()[1]
            for tries in ("5 requests", "1 request"):
                with pytest.raises(RemoteError, match=rf"no answer to {tries} \(Read timed out"):
                    read_range(f"http://127.0.0.1:{place}/000000.tar", 0, 10)
        monkeypatch.setattr(remote, "_silent_servers", {server.url.partition("//")[2]})
        assert len(read_range(f"{server.url}/000000.tar", 0, 10)) == 10
        assert not remote._silent_servers
    finally:
        remote._http_pool.cache_clear()


@needs_urllib3
def test_missing_shards_and_indexes_are_named(server: Server) -> None:
    (server.folder / "000001.tar").unlink()
    with pytest.raises(UserError, match=r"shards are missing \(000001\.tar\)"):
        load_records(f"{server.url}/index.json")
    with pytest.raises(UserError, match=r"/other\.json: no such file on the server; check the address"):
        load_records(f"{server.url}/other.json")
    with pytest.raises(
        UserError,
        match=r"http://127\.0\.0\.1:9/index\.json: no answer to 5 requests \((?!HTTP)[^(]*refused\); check",
    ):
        load_records("http://127.0.0.1:9/index.json")
    with pytest.raises(UserError, match=r"ftp://host/index\.json: cannot read ftp://; use http"):
        load_records("ftp://host/index.json")


@needs_urllib3
def test_servers_without_ranges_are_refused(server: Server) -> None:
    server.ranged = False
    video = PackedVideo.parse(load_records(f"{server.url}/index.json")[0].path)
    assert video is not None
    with pytest.raises(Exception, match="the server ignores the Range header"):
        video.read()


@needs_urllib3
def test_cached_videos_need_no_request(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(remote.CACHE, str(tmp_path / "cache"))
    video = PackedVideo.parse(load_records(f"{server.url}/index.json")[0].path)
    assert video is not None
    content = video.read()
    server.failures, before = 100, len(server.requests)
    assert video.read() == content == (tmp_path / "000.mp4").read_bytes()
    assert len(server.requests) == before
    monkeypatch.setattr(remote, "_FREE_SHARE", 1.0)  # as on a full disk: nothing more is kept
    server.failures = 0
    other = PackedVideo.parse(load_records(f"{server.url}/index.json")[1].path)
    assert other is not None
    assert other.read() == (tmp_path / "001.mp4").read_bytes()
    assert len(list((tmp_path / "cache").rglob("*.*"))) == 0
    assert len([path for path in (tmp_path / "cache").rglob("*") if path.is_file()]) == 1


def test_a_missing_package_names_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    import_module = importlib.import_module

    def fail(name: str) -> object:
        if name in ("urllib3", "s3fs"):
            raise ModuleNotFoundError(name)
        return import_module(name)

    remote._http_pool.cache_clear()
    monkeypatch.setattr(importlib, "import_module", fail)
    with pytest.raises(UserError, match=r"need the package urllib3: pip install 'videomaskfeat\[shards\]'"):
        load_records("https://host/index.json")
    with pytest.raises(UserError, match=r"need the package s3fs: pip install 'videomaskfeat\[shards\]'"):
        load_records("s3://bucket/index.json")


def refused(path: str, capsys: pytest.CaptureFixture[str]) -> str:
    """The message of a command that reads a list; it is one line, and the exit code is 2."""
    capsys.readouterr()
    assert main(["check-data", path]) == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    return message


@needs_s3
def test_object_stores_are_read_and_their_errors_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import s3fs
    from moto.server import ThreadedMotoServer

    pack(str(write_videos(tmp_path, 4)), str(tmp_path / "out"), shard_mb=0.01)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    monkeypatch.setattr(logging.getLogger("werkzeug"), "level", logging.ERROR)  # the log of moto's server
    store = ThreadedMotoServer(port=0)
    store.start()
    try:
        host, port = store.get_host_and_port()
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        s3fs.S3FileSystem.clear_instance_cache()
        files = s3fs.S3FileSystem()
        files.mkdir("videos")
        for path in (tmp_path / "out").iterdir():
            files.put_file(str(path), f"videos/set/{path.name}")
        records = load_records("s3://videos/set/index.json")
        video = PackedVideo.parse(records[3].path)
        assert video is not None
        assert video.read() == (tmp_path / "003.mp4").read_bytes()
        assert records[3].label == 3
        expected = list(ClipLoader(make_clips(tmp_path / "train.csv"), batch_size=2).epoch(0))
        with ClipLoader(make_clips(records), batch_size=2, workers=2) as loader:
            assert equal(tuple(loader.epoch(0)), tuple(expected))
        loaders = [ClipLoader(make_clips(records), batch_size=2, rank=rank, world_size=2) for rank in (0, 1)]
        read = [int(index) for one in loaders for batch in one.epoch(0) for index in batch.index]
        assert sorted(read) == [0, 1, 2, 3]  # each video once
        with pytest.raises(UserError, match=r"s3://other/index\.json: no such file or bucket"):
            load_records("s3://other/index.json")
        assert refused("s3://other/index.json", capsys) == (
            "videomaskfeat check-data: s3://other/index.json: no such file or bucket; check the address\n"
        )
        files.rm_file("videos/set/000001.tar")
        files.invalidate_cache()
        with pytest.raises(UserError, match=r"shards are missing \(000001\.tar\)"):
            load_records("s3://videos/set/index.json")
    finally:
        store.stop()
        s3fs.S3FileSystem.clear_instance_cache()


@needs_s3
@pytest.mark.parametrize("store", ["s3", "gs"])
def test_silent_object_stores_are_named_in_time(
    store: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """A server that accepts connections and answers nothing: five (gcsfs: six) tries, with waits between."""
    pytest.importorskip("gcsfs")
    with socket.create_server(("127.0.0.1", 0), backlog=100) as silent:
        address = f"http://127.0.0.1:{silent.getsockname()[1]}"
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            monkeypatch.setenv(name, "test")
        monkeypatch.setenv("AWS_ENDPOINT_URL", address)
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", address)
        monkeypatch.setattr(remote, "_CONNECT_SECONDS", 0.3)
        monkeypatch.setattr(remote, "_READ_SECONDS", 0.3)
        started = time.monotonic()
        assert main(["check-data", f"{store}://bucket/index.json"]) == 2
        assert time.monotonic() - started < 5 * 0.3 + (10 if store == "s3" else 45)
    message = capfd.readouterr().err
    assert message.startswith(f"videomaskfeat check-data: {store}://bucket/index.json: cannot be read (")
    assert message.endswith("; check the address and the network\n")
    assert message.count("\n") == 1, message


@needs_s3
def test_missing_google_bucket_is_one_line(server: Server) -> None:
    """In a process of its own, since gcsfs chooses and logs its way of access when it is imported."""
    pytest.importorskip("gcsfs")
    program = (
        "import sys; from videomaskfeat.cli import main; code = main(['check-data', 'gs://none/index.json']);"
        " print(code, 'gcsfs.extended_gcsfs' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
            "STORAGE_EMULATOR_HOST": server.url,
        },
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.stdout == "2 False\n"
    assert done.stderr == (
        "videomaskfeat check-data: gs://none/index.json: no such file or bucket; check the address\n"
    )


@needs_s3
def test_missing_credentials_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import s3fs

    s3fs.S3FileSystem.clear_instance_cache()
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "missing"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    with pytest.raises(UserError, match=r"s3://bucket/index\.json: no permission .*set credentials"):
        load_records("s3://bucket/index.json")
    assert "no permission" in refused("s3://bucket/index.json", capsys)
