"""``--ray``: offline jobs on a cluster of two nodes give the files of one process; bad addresses."""

from __future__ import annotations

import functools
import importlib.util
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.data.clip_data import write_videos
from videomaskfeat import read_features
from videomaskfeat.data import cluster
from videomaskfeat.data.cluster import call_on_cluster, distribute_calls
from videomaskfeat.data.reader import VideoReadError
from videomaskfeat.errors import RunFailed, UserError
from videomaskfeat.inference.scores import load_scores

from .conftest import Verb

needs_ray = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None, reason="ray is not installed (extra ray)"
)
pytestmark = pytest.mark.timeout(900)


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """A cluster of two nodes with one core each, on this machine."""
    if importlib.util.find_spec("ray") is None:
        pytest.skip("ray is not installed (extra ray)")
    before = dict(os.environ)
    # The niceness is 15 by default: other programs of this machine would come first.
    os.environ |= {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0", "RAY_worker_niceness": "0"}
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))
    from ray.cluster_utils import Cluster

    nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    nodes.add_node(num_cpus=1)
    try:
        yield nodes.address
    finally:
        nodes.shutdown()
        os.environ.clear()
        os.environ.update(before)


def size_of(path: str, factor: int = 1) -> int:
    """Size of a file; some files harm the process that reads them."""
    name = os.path.basename(path)
    if name == "crash":
        os.kill(os.getpid(), signal.SIGSEGV)
    if name == "hang":
        time.sleep(3600)
    if name == "wrong":
        raise UserError(f"{path}: a mistake")
    if name == "bug":
        raise ZeroDivisionError(path)
    return factor * os.path.getsize(path)


def node_of(number: int) -> tuple[int, int]:
    """The call's number, and the process of the node."""
    time.sleep(0.2)
    return number, os.getppid()


@needs_ray
def test_results_are_those_of_worker_processes(
    address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the order of the calls, for relative paths; a file that crashes or stops its readers is named."""
    monkeypatch.chdir(tmp_path)
    names = [f"file {number}" for number in range(20)] + ["crash", "hang"]
    for number, name in enumerate(names):
        Path(name).write_bytes(b"x" * number)
    calls = [(name, 3) for name in names]
    here = list(distribute_calls(size_of, calls, workers=1, read_seconds=20))
    there = list(distribute_calls(size_of, calls, ray=address, read_seconds=20))
    assert there[:20] == here[:20] == [3 * number for number in range(20)]
    for one, other, name, cause in zip(
        here[20:],
        there[20:],
        names[20:],
        ["the decoder crashed (SIGSEGV)", "not read within 20 s"],
        strict=True,
    ):
        assert isinstance(one, VideoReadError)
        assert isinstance(other, VideoReadError)
        assert (other.path, other.cause) == (one.path, one.cause)
        assert one.path == name
        assert one.cause.startswith(cause)


@needs_ray
def test_errors_of_a_node_keep_their_class(address: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="wrong: a mistake"):
        list(distribute_calls(size_of, [(str(tmp_path / "wrong"),)], ray=address))
    with pytest.raises(RuntimeError, match="ZeroDivisionError"):
        list(distribute_calls(size_of, [(str(tmp_path / "bug"),)], ray=address))
    with pytest.raises(
        RunFailed, match=r"a task on the Ray cluster at \S+ failed: \w*Crash\w*: .*same command"
    ):
        list(call_on_cluster(size_of, [(str(tmp_path / "crash"),)], ray=address))


@needs_ray
def test_nodes_share_the_calls_and_keep_their_order(address: str) -> None:
    results = list(call_on_cluster(node_of, [(number,) for number in range(8)], ray=address, device="auto"))
    assert [number for number, _ in results] == list(range(8))
    assert len({node for _, node in results}) == 2
    assert list(call_on_cluster(node_of, [], ray=address)) == []


@needs_ray
def test_other_versions_and_folders_of_nodes_are_named(
    address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    monkeypatch.setattr(cluster.os, "getcwd", functools.partial(str, gone))
    gone.rmdir()
    with pytest.raises(
        UserError, match=r"cannot open the folder \S+/gone \(No such file or directory\); all nodes"
    ):
        list(distribute_calls(size_of, [("a",)], ray=address))
    monkeypatch.chdir(tmp_path)
    monkeypatch.undo()
    monkeypatch.setattr(cluster, "__version__", "0.0")
    with pytest.raises(UserError, match=r"node \S+ .* has videomaskfeat .*, and this machine 0\.0; install"):
        list(distribute_calls(size_of, [("a",)], ray=address))


@pytest.fixture
def videos(tmp_path: Path) -> Path:
    """Six videos, one of them unreadable, and their list."""
    listed = write_videos(tmp_path, 6)
    (tmp_path / "002.mp4").write_bytes(b"this is text")
    return listed


@needs_ray
def test_check_data_finds_the_same(address: str, videos: Path, tmp_path: Path, verb: Verb) -> None:
    shutil.copy(tmp_path / "000.mp4", tmp_path / "004.mp4")
    reports = {}
    for name, where in (("here", []), ("there", ["--ray", address])):
        files = ["--json", tmp_path / f"{name}.json", "--clean", tmp_path / f"{name}.csv"]
        code, _, err = verb("check-data", videos, *files, "--workers", "1", *where)
        assert code == 3, err
        report = json.loads((tmp_path / f"{name}.json").read_text())
        for key in ("scan_seconds", "read_milliseconds"):
            del report["summary"][key]
        reports[name] = report, (tmp_path / f"{name}.csv").read_text()
    assert reports["here"] == reports["there"]
    assert [one["kind"] for one in reports["there"][0]["problems"]] == ["unreadable", "duplicate"]


@needs_ray
def test_prepare_videos_and_pack_write_the_same(
    address: str, videos: Path, tmp_path: Path, verb: Verb
) -> None:
    for name, where in (("here", []), ("there", ["--ray", address])):
        options = ["--out", tmp_path / name, "--short-side", "16", *where]
        code, out, err = verb("prepare-videos", videos, *options)
        assert (code, "5 prepared, 1 left out" in out) == (3, True), err
        assert "002.mp4" in (tmp_path / name / "failures.txt").read_text()
    for file in sorted((tmp_path / "here/videos").iterdir()):
        assert file.read_bytes() == (tmp_path / "there/videos" / file.name).read_bytes(), file.name
    (tmp_path / "there/videos/003.mp4").unlink()
    code, out, err = verb("prepare-videos", videos, *options)  # continues
    assert "5 prepared, 4 of them by an earlier command" in out, err

    listed = tmp_path / "here/train.csv"
    for name, where in (("one", []), ("many", ["--ray", address])):
        code, _, err = verb("pack", listed, "--out", tmp_path / name, "--shard-mb", "0.005", *where)
        assert code == 0, err
    names = sorted(file.name for file in (tmp_path / "one").iterdir())
    assert len(names) > 2
    for name in names:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "many" / name).read_bytes(), name
    (tmp_path / "many" / names[1]).unlink()
    again = ["--overwrite", "--ray", address]
    code, out, err = verb("pack", listed, "--out", tmp_path / "many", "--shard-mb", "0.005", *again)
    assert f"{len(names) - 2} of them by an earlier command" in out, err


@needs_ray
def test_evaluate_gives_the_same_scores(address: str, material: Path, tmp_path: Path, verb: Verb) -> None:
    kinds = {"head": ["best.safetensors"], "knn": ["pretrained.safetensors", "--knn", material / "val.csv"]}
    for kind, (weights, *more) in kinds.items():
        for name, where in (("here", []), ("there", ["--ray", address])):
            options = ["--out", tmp_path / kind / name, "--views", "2", "--videos-per-batch", "1", *more]
            code, out, err = verb(
                "evaluate", material / str(weights), material / "val.csv", *options, "--workers", "0", *where
            )
            assert (code, "004.mp4" in err) == (3, True), err
            assert "top-1" in out
        here, there = (load_scores(str(tmp_path / kind / name)) for name in ("here", "there"))
        assert here.rows.tolist() == there.rows.tolist() == [0, 1, 2, 3, 5, 6, 7, 8, 9]
        np.testing.assert_allclose(there.scores, here.scores, rtol=0, atol=1e-6)
        one, other = (
            json.loads((tmp_path / kind / name / "result.json").read_text()) for name in ("here", "there")
        )
        assert one["protocol"] == other["protocol"]


@needs_ray
def test_extract_features_gives_the_same_and_continues(
    address: str, material: Path, tmp_path: Path, verb: Verb
) -> None:
    words = ["extract-features", material / "pretrained.safetensors", material / "val.csv"]
    options = ["--shard", "2", "--workers", "0"]
    for name, where in (("here", []), ("there", ["--ray", address])):
        code, _, err = verb(*words, tmp_path / name, *options, *where)
        assert code == 3, err
    here, there = (read_features(tmp_path / name) for name in ("here", "there"))
    assert here.paths == there.paths
    np.testing.assert_allclose(there.array, here.array, rtol=0, atol=1e-6)
    assert (tmp_path / "here/failures.csv").read_text() == (tmp_path / "there/failures.csv").read_text()
    times = ["--window", "0.1", "--workers", "0"]
    for name, where in (("windows", []), ("windows there", ["--ray", address])):
        code, _, err = verb(*words, tmp_path / name, *times, *where)
        assert code == 3, err
    files = sorted(file.name for file in (tmp_path / "windows").glob("*.npz"))
    assert len(files) == 9
    for file in files:
        left, right = (np.load(tmp_path / name / file) for name in ("windows", "windows there"))
        np.testing.assert_allclose(left["feats"], right["feats"], rtol=0, atol=1e-6)
        np.testing.assert_array_equal(left["times"], right["times"])
    (tmp_path / "windows there" / files[0]).unlink()
    code, _, err = verb(*words, tmp_path / "windows there", *times, "--ray", address)
    assert code == 3, err
    assert (tmp_path / "windows there" / files[0]).is_file()


@needs_ray
def test_addresses_that_do_not_answer_are_refused_in_one_line(
    videos: Path, verb: Verb, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    code, _, err = verb("check-data", videos, "--ray", f"127.0.0.1:{port}")
    assert code == 2
    assert err.endswith(
        f"videomaskfeat check-data: no Ray cluster answers at 127.0.0.1:{port} (Connection refused); give "
        "the address of its head node, such as host:6379, or local for this machine\n"
    )
    code, _, err = verb("check-data", videos, "--ray", "http://head:1")
    assert (code, err.count("videomaskfeat check-data: ")) == (2, 1)
    assert "ray=http://head:1: must be host:port" in err
    monkeypatch.setattr(cluster, "_ANSWER_SECONDS", 5.0)
    with socket.create_server(("127.0.0.1", 0)) as silent:  # accepts connections, and is no Ray cluster
        place = f"127.0.0.1:{silent.getsockname()[1]}"
        thread = threading.Thread(target=lambda: silent.accept(), daemon=True)
        thread.start()
        started = time.monotonic()
        code, _, err = verb("check-data", videos, "--ray", place)
        assert time.monotonic() - started < 40  # with the import of Ray on a busy machine
    assert (code, err.count("videomaskfeat check-data: ")) == (2, 1)
    assert f"no Ray cluster answers at {place} (no answer of Ray within 5 seconds)" in err


def test_head_counts_as_lost_after_some_time_without_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "_HEAD_POLL_SECONDS", 0.0)
    with socket.create_server(("127.0.0.1", 0)) as server:
        head = cluster._Head(*server.getsockname()[:2])
        monkeypatch.setattr(cluster, "_HEAD_SECONDS", 0.0)
        head.check("head:6379")  # it answers
    monkeypatch.setattr(cluster, "_HEAD_SECONDS", 60.0)
    head.check("head:6379")  # no longer, but not for long
    assert not head.lost
    monkeypatch.setattr(cluster, "_HEAD_SECONDS", 0.0)
    with pytest.raises(
        RunFailed, match=r"cluster at head:6379 has not answered .*\(Connection refused\).*repeat"
    ):
        head.check("head:6379")
    assert head.lost


LOST_HEAD = """
import os, sys
from videomaskfeat.data import cluster
from videomaskfeat.errors import RunFailed
cluster._HEAD_SECONDS, cluster._HEAD_POLL_SECONDS = 2.0, 0.5
try:
    list(cluster.call_on_cluster(os.system, [(f"touch {sys.argv[2]}; sleep 300",)], ray=sys.argv[1]))
except RunFailed as error:
    print("failed:", error)
"""


@needs_ray
def test_lost_head_ends_the_command_with_a_message(address: str, tmp_path: Path) -> None:
    """In less than the 60 seconds after which Ray itself ends the process, without that message."""
    from ray.cluster_utils import Cluster

    nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    place = nodes.address
    try:
        process = subprocess.Popen(
            [sys.executable, "-c", LOST_HEAD, place, str(tmp_path / "started")],
            stdout=subprocess.PIPE,
            text=True,
        )
        until = time.monotonic() + 300
        while not (tmp_path / "started").exists():
            assert time.monotonic() < until
            assert process.poll() is None
            time.sleep(0.1)
        nodes.head_node.kill_gcs_server(check_alive=False)
        out, _ = process.communicate(timeout=50)
    finally:
        nodes.shutdown()
    assert process.returncode == 0
    assert f"failed: the head node of the Ray cluster at {place} has not answered" in out


def test_missing_ray_is_named(videos: Path, verb: Verb, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster.importlib.util, "find_spec", lambda name: None)
    code, _, err = verb("check-data", videos, "--ray", "auto")
    assert code == 2
    expected = "--ray needs the package ray: pip install 'videomaskfeat[ray]'\n"
    assert err.endswith(f"videomaskfeat check-data: {expected}")
