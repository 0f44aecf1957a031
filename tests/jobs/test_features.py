"""``extract-features``: features of the network on disk, with the same bytes after any interruption."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import simplejson

from tests.data.make_videos import write_video
from tests.engine.processes import exit_codes_of_ranks
from tests.jobs.weights_files import RECIPE, write_classifier, write_pretrained
from videomaskfeat import load_encoder, read_features
from videomaskfeat.cli import main
from videomaskfeat.errors import RunFailed, UserError
from videomaskfeat.inference import features
from videomaskfeat.inference.lists import ListChoice
from videomaskfeat.inference.multiview import Machine
from videomaskfeat.jobs.features import extract_features

Extract = Callable[..., features.Features]
FILES = ("features.npy", "index.csv", "failures.csv", "meta.json")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights; list.csv of 9 labeled videos, rows 3, 4 and 8 unreadable."""
    folder = tmp_path_factory.mktemp("data")
    write_pretrained(folder / "weights.safetensors")
    write_classifier(folder / "classifier.safetensors")
    (folder / "videos").mkdir()
    rows = []
    for row in range(9):
        path = folder / f"videos/{row}, a.mp4"  # a comma, to be quoted in the index
        if row in (3, 4, 8):
            path.write_bytes(b"no video")
        else:
            write_video(path, frames=10 + row, width=48, height=32)
        rows.append(f'"videos/{path.name}" {row % 4}\n')
    (folder / "list.csv").write_text("".join(rows))
    return folder


@pytest.fixture
def extract(data: Path, tmp_path: Path) -> Extract:
    """``extract(name="out", **options)``: the features of the list on the CPU, two videos per shard."""

    def extract_list(name: str = "out", **options: Any) -> features.Features:
        machine = {
            key: options.pop(key) for key in ("precision", "workers", "clips_at_once") if key in options
        }
        options = {"videos_per_shard": 2, "machine": Machine("cpu", **machine), **options}
        weights = options.pop("weights", data / "weights.safetensors")
        path = str(options.pop("list_path", data / "list.csv"))
        if "prefix" in options:
            options["lists"] = ListChoice(prefix=options.pop("prefix"))
        extract_features(weights, path, tmp_path / name, **options)
        return read_features(tmp_path / name)

    return extract_list


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a folder, at any depth."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


GOOD = [0, 1, 2, 5, 6, 7]


@pytest.mark.parametrize(
    ("weights", "arguments"),
    [
        ("weights.safetensors", {}),
        ("classifier.safetensors", {}),
        ("weights.safetensors", {"depth": 1}),
        ("weights.safetensors", {"depth": 2, "views": 3, "crops": 3}),
        ("classifier.safetensors", {"depth": 1, "grid": True}),
        ("classifier.safetensors", {"grid": True, "dtype": "float16"}),
    ],
)
def test_rows_are_the_encoders_features_in_the_lists_order(
    data: Path, extract: Extract, weights: str, arguments: dict
) -> None:
    array, paths, labels = extract(weights=data / weights, **arguments)
    assert paths == [str(data / f"videos/{row}, a.mp4") for row in GOOD]
    assert labels.tolist() == [row % 4 for row in GOOD]
    encoder = load_encoder(data / weights, device="cpu")
    dtype = arguments.pop("dtype", "float32")
    pooled = not arguments.pop("grid", False)
    subset = [0, 3, 5]
    expected = np.stack([encoder.features(paths[row], pooled=pooled, **arguments).numpy() for row in subset])
    assert array.dtype == dtype
    assert isinstance(array, np.memmap)
    assert not array.flags.writeable
    # float32: the clips of two videos went through together; float16: 11 bits
    close = 1e-5 if dtype == "float32" else 1e-3
    np.testing.assert_allclose(array[subset], expected, atol=close, rtol=close)
    assert np.abs(expected[0] - expected[1]).max() > 2 * close  # else the order is not tested


def test_folder_has_the_array_its_index_and_its_inputs(data: Path, extract: Extract, tmp_path: Path) -> None:
    array = extract(depth=2).array
    out = tmp_path / "out"
    assert sorted(path.name for path in out.iterdir()) == sorted(FILES)
    np.testing.assert_array_equal(np.load(out / "features.npy"), array)
    lines = (out / "index.csv").read_text().splitlines()
    assert lines[:2] == ["row,path,label", f'0,"{data}/videos/0, a.mp4",0']
    assert (out / "failures.csv").read_text().splitlines() == [
        "path,cause",
        *(f'"{data}/videos/{row}, a.mp4",not a video file' for row in (3, 4, 8)),
    ]
    meta = simplejson.loads((out / "meta.json").read_text())
    assert meta["finished"] is True
    assert (meta["videos"], meta["failures"], meta["shape"]) == (9, 3, [6, 32])
    assert meta["settings"]["depth"] == 2
    assert len(meta["settings"]["list_sha256"]) == 64


def test_folder_of_videos_has_no_labels(data: Path, extract: Extract) -> None:
    _, paths, labels = extract(list_path=data / "videos")
    assert len(paths) == 6
    assert labels.tolist() == [-1] * 6


def test_unreadable_videos_are_listed_each_time(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["extract-features", str(data / "weights.safetensors"), str(data / "list.csv")]
    options = [str(tmp_path / "out"), "--shard", "4", "--workers", "0", "--device", "cpu"]
    for _ in range(2):  # the second finds all done
        assert main([*command, *options]) == 3
        output = capsys.readouterr()
        assert output.out == f"{tmp_path}/out/features.npy  float32 [6, 32]\n"
        failures = [line for line in output.err.splitlines() if line.startswith("videomaskfeat")]
        assert failures == [
            f"videomaskfeat extract-features: {data}/videos/{row}, a.mp4: not a video file"
            for row in (3, 4, 8)
        ]


def test_resume_after_a_kill_gives_the_same_bytes(data: Path, extract: Extract, tmp_path: Path) -> None:
    extract("whole", videos_per_shard=1)
    out = tmp_path / "killed"
    command = ["-m", "videomaskfeat", "extract-features", str(data / "weights.safetensors")]
    options = ["--shard", "1", "--workers", "0", "--device", "cpu"]
    process = subprocess.Popen(
        [sys.executable, *command, str(data / "list.csv"), str(out), *options],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stderr=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 120
    while not (out / "shards/features-00000.json").exists():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    with pytest.raises(UserError, match="its features are not finished; run the same command again"):
        read_features(out)
    first = out / "shards/features-00000.npy"
    inode = first.stat().st_ino
    written: list[Path] = []
    save = features.FeatureFolder.save
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            features.FeatureFolder,
            "save",
            lambda self, number, *rest: (written.append(number), save(self, number, *rest)),
        )
        patch.setattr(features.FeatureFolder, "finish", lambda *_: ((), []))
        with pytest.raises(UserError, match="not finished"):
            extract("killed", videos_per_shard=1)
    assert 0 not in written  # what was done is kept, the very file
    assert first.stat().st_ino == inode
    extract("killed", videos_per_shard=1)
    assert contents(out) == contents(tmp_path / "whole")


class Killed(BaseException):
    """An exception that is not caught anywhere, like a kill."""


def test_end_at_any_file_operation_changes_no_byte(
    data: Path, extract: Extract, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For each flush, rename and removal: a run that ends right before it, and a resumed run."""
    three = tmp_path / "three.csv"
    three.write_text(
        "".join((data / "list.csv").read_text().replace('"v', f'"{data}/v').splitlines(True)[1:4])
    )
    keywords = {"list_path": three, "videos_per_shard": 1}
    extract("whole", **keywords)
    count, last = 0, 0

    def dying(operation: Callable[..., object]) -> Callable[..., object]:
        def count_and_run(*arguments: object, **options: object) -> object:
            nonlocal count
            count += 1
            if count == last:
                raise Killed
            return operation(*arguments, **options)

        return count_and_run

    for module, name in (
        (features.os, "replace"),
        (features.os, "fsync"),
        (Path, "unlink"),
        (features.shutil, "rmtree"),
    ):
        monkeypatch.setattr(module, name, dying(getattr(module, name)))
    ended = False
    while not ended:
        last, count = last + 1, 0
        try:
            extract(f"killed_{last}", **keywords)
            ended = True
        except Killed:
            count = last  # past the deadly one
            extract(f"killed_{last}", **keywords)
        assert contents(tmp_path / f"killed_{last}") == contents(tmp_path / "whole")
    # 3 shards, 2 with an array, their joining, index, failures and twice the meta
    assert last - 1 == 3 * (3 + 2) + (1 + 2 * 2 + 3) + 3 * 4 + 1


def test_joining_needs_the_disk_space_of_one_shard(
    extract: Extract, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bytes in the folder never exceed the array's and one shard's by more than the small files."""
    out = tmp_path / "out"
    most = 0
    fsync = os.fsync

    def measure(file: int) -> None:
        nonlocal most
        fsync(file)
        most = max(most, sum(path.stat().st_size for path in out.rglob("*.np*")))

    monkeypatch.setattr(features.os, "fsync", measure)
    array = extract(grid=True, depth=1, videos_per_shard=1).array
    assert array.nbytes + array[0].nbytes <= most <= array.nbytes + array[0].nbytes + 7 * 128


def test_other_settings_list_or_weights_are_refused(data: Path, extract: Extract, tmp_path: Path) -> None:
    whole = extract(depth=2)
    weights = write_pretrained(tmp_path / "other.safetensors", seed=3)
    for arguments, words in (
        ({"depth": 3}, "depth 2 there and 3 now"),
        ({"depth": 2, "views": 4}, "views 1 there and 4 now"),
        ({"depth": 2, "grid": True}, "grid False there and True now"),
        ({"depth": 2, "precision": "bf16"}, "precision fp32 there and bf16 now"),
        ({"dtype": "float16"}, "depth 2 there and None now; dtype float32 there and float16 now"),
        ({"depth": 2, "videos_per_shard": 4}, "videos_per_shard 2 there and 4 now"),
        ({"depth": 2, "weights": weights}, "other weights"),
        ({"depth": 2, "list_path": data / "videos"}, "another or a changed list"),
    ):
        with pytest.raises(UserError, match=f"out has features with other settings: {words}; choose another"):
            extract(**arguments)
    again = extract(depth=2, clips_at_once=1, workers=1)  # these may change
    np.testing.assert_array_equal(again.array, whole.array)


def test_folder_with_other_files_does_not_change(data: Path, extract: Extract, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out/thesis.tex").write_text("years of work")
    with pytest.raises(UserError, match=r"out has files but no features \(no meta.json\)"):
        extract()
    with pytest.raises(UserError, match=r"out has no features \(no meta.json\)"):
        read_features(tmp_path / "out")
    (tmp_path / "out/meta.json").write_text('{"camera": "mine"}')
    with pytest.raises(UserError, match=r"meta.json: was not written by extract-features"):
        extract()
    assert len(list((tmp_path / "out").iterdir())) == 2


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"depth": 9}, r"depth=9: the encoder has blocks 1\.\.4"),
        ({"views": 2, "grid": True}, "views=2, crops=1 on the grid: token grids of several views"),
        ({"views": 0}, "views=0, crops=1: there must be at least 1 view"),
        ({"crops": 2}, "crops=2: .*1 crop"),
        ({"dtype": "float46"}, "dtype 'float46' is unknown; did you mean 'float16'"),
        ({"videos_per_shard": 0}, "videos_per_shard=0: must be at least 1"),
        ({"clips_at_once": 0}, "clips_at_once=0: must be at least 1"),
        ({"list_path": "nowhere.csv"}, "nowhere.csv: no such file"),
        ({"weights": "model.pyth"}, "model.pyth is a PyTorch checkpoint, .*import-slowfast"),
    ],
)
def test_wrong_arguments_are_named_and_leave_no_folder(
    extract: Extract, tmp_path: Path, arguments: dict, words: str
) -> None:
    with pytest.raises(UserError, match=words):
        extract(**arguments)
    assert not (tmp_path / "out").exists()


def test_folder_below_a_file_is_refused(extract: Extract, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"out: cannot be a folder, since .*file is a file"):
        extract("file/out")


def test_video_instead_of_a_list_is_refused(data: Path, extract: Extract) -> None:
    with pytest.raises(UserError, match="is a video; give a list or a folder of videos"):
        extract(list_path=data / "videos/0, a.mp4")


def test_list_without_a_readable_video_is_refused(data: Path, extract: Extract, tmp_path: Path) -> None:
    (tmp_path / "bad.csv").write_text(f'"{data}/videos/3, a.mp4"\n"{data}/videos/4, a.mp4"\n')
    with pytest.raises(UserError, match=r"none of its 2 videos could be read; the first: .*not a video file"):
        extract(list_path=tmp_path / "bad.csv")


def test_wrong_prefix_can_be_corrected_in_the_same_folder(
    data: Path, extract: Extract, tmp_path: Path
) -> None:
    words = r"none of its 9 videos could be read; .*; check the folder that the paths start from \(--prefix\)"
    with pytest.raises(UserError, match=words):
        extract(prefix=str(tmp_path / "nowhere"))
    mended = extract(prefix=str(data))
    np.testing.assert_array_equal(mended.array, extract("other", prefix=str(data)).array)
    with pytest.raises(UserError, match="has features with other settings: another or a changed list"):
        extract(prefix=str(tmp_path / "nowhere"))  # what holds features stays


def test_features_that_float16_cannot_hold_are_refused(data: Path, extract: Extract, tmp_path: Path) -> None:
    from safetensors.torch import load_file, safe_open, save_file

    state = load_file(data / "weights.safetensors")
    with safe_open(data / "weights.safetensors", "pt") as file:
        metadata = file.metadata()
    state["blocks.3.mlp.fc2.bias"] += 1e5
    save_file(state, tmp_path / "large.safetensors", metadata)
    assert np.abs(extract("wide", weights=tmp_path / "large.safetensors").array).max() > 65504
    with pytest.raises(RunFailed, match=r"a feature is too large for float16 \(65504\); use float32"):
        extract(weights=tmp_path / "large.safetensors", dtype="float16")


def test_short_videos_fail_if_the_recipe_forbids_them(extract: Extract, tmp_path: Path) -> None:
    recipe = replace(RECIPE, clip=replace(RECIPE.clip, short_video="error", stride=4))  # spans 16 frames
    weights = write_classifier(tmp_path / "strict.safetensors", recipe)
    assert len(extract(weights=weights).paths) == 2  # of 10, 11, 12, 15, 16 and 17 frames
    causes = (tmp_path / "out/failures.csv").read_text()
    assert causes.count("too short: ") == 4


def _on_a_rank(weights: str, path: str, out: str) -> None:
    with pytest.raises(UserError, match="reader 'none' is unknown"):
        extract_features(weights, path, f"{out}_refused", machine=Machine("cpu", reader="none"))
    extract_features(weights, path, out, videos_per_shard=2, machine=Machine("cpu"))


def test_ranks_share_the_list_and_end_together(data: Path, extract: Extract, tmp_path: Path) -> None:
    extract("one")
    arguments = (str(data / "weights.safetensors"), str(data / "list.csv"), str(tmp_path / "two"))
    assert exit_codes_of_ranks(2, _on_a_rank, *arguments) == [0, 0]
    assert contents(tmp_path / "two") == contents(tmp_path / "one")


def test_progress_includes_finished_shards(data: Path, extract: Extract, tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(features.FeatureFolder, "finish", lambda *_: ((), []))
        with pytest.raises(UserError, match="not finished"):
            extract()
    (tmp_path / "out/shards/features-00001.json").unlink()
    (tmp_path / "out/shards/features-00004.json").unlink()
    calls: list[tuple[int, int]] = []
    extract(progress=lambda done, total: calls.append((done, total)))
    assert calls == [(8, 9), (9, 9)]  # 6 were done; shard 1 is two videos, shard 4 is one


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("meta.json", b"{", "meta.json:1: not valid JSON"),
        ("meta.json", b"[]", "meta.json: was not written by extract-features"),
        (
            "meta.json",
            b'{"format": 1, "settings": {}, "finished": true, "shape": 5}',
            "was not written by extract-features",
        ),
        ("index.csv", b"row,path\n0,a\n", "index.csv is damaged"),
        ("index.csv", b"row,path,label\n0,a,1e9\n", "its features are damaged"),
        ("index.csv", b'row,path,label\n0,"' + b"x" * 200_000, "index.csv is damaged"),
        ("features.npy", b"\x93NUMPY\x01\0\x02\0{(", "its features are damaged"),
        ("features.npy", b"", "its features are damaged"),
    ],
)
def test_damaged_folder_is_named(tmp_path: Path, name: str, content: bytes, words: str) -> None:
    meta = {"format": 1, "settings": {}, "finished": True, "shape": [1, 2]}
    (tmp_path / "meta.json").write_text(simplejson.dumps(meta))
    (tmp_path / "index.csv").write_text("row,path,label\n0,a,1\n")
    np.save(tmp_path / "features.npy", np.zeros((1, 2), np.float32))
    assert features.read_features(tmp_path).paths == ["a"]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=words):
        features.read_features(tmp_path)
