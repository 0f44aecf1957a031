"""``pack`` and training from shards: bytes, labels, order, ranks; restarts; damaged and missing shards."""

from __future__ import annotations

import json
import os
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.data.clip_data import equal, make_clips, write_videos
from tests.data.make_videos import READERS, read_number, write_video
from videomaskfeat.cli import main
from videomaskfeat.data.batches import PretrainBatch
from videomaskfeat.data.check import check_list
from videomaskfeat.data.clips import PretrainClips
from videomaskfeat.data.formats import load_records
from videomaskfeat.data.loader import ClipLoader
from videomaskfeat.data.reader import VideoReadError
from videomaskfeat.data.shards import PackedVideo
from videomaskfeat.data.video import open_video
from videomaskfeat.errors import UserError
from videomaskfeat.jobs.pack import pack
from videomaskfeat.tensor_files import read_safetensors

from .conftest import TINY, Verb


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Five videos with labels in a list; names with spaces, dots and a hash mark."""
    (tmp_path / "in/day 2").mkdir(parents=True)
    names = ["a.mp4", "day 2/b.c.mp4", "d#1.mp4", "e.mkv", "f.mp4"]
    for number, name in enumerate(names):
        write_video(tmp_path / "in" / name, frames=6 + number, width=48, height=32)
    rows = "".join(f'"{name}" {number}\n' for number, name in enumerate(names))
    (tmp_path / "in/train.csv").write_text(rows)
    return tmp_path


def batches(clips: PretrainClips, *, start: int = 0, **arguments: int) -> list[PretrainBatch]:
    """The batches of the first epoch."""
    keywords: dict[str, int] = {"accumulate": 1, "workers": 0, **arguments}
    with ClipLoader(clips, **keywords) as loader:  # type: ignore[arg-type]
        return list(loader.epoch(0, start))


def _pack(folder: Path, shard_bytes: int = 20_000, **options: bool) -> Path:
    pack(str(folder / "in/train.csv"), str(folder / "out"), shard_mb=shard_bytes / 1e6, **options)
    return folder / "out/index.json"


def test_packed_videos_have_the_bytes_and_labels_of_the_list(folder: Path) -> None:
    before, packed = load_records(folder / "in/train.csv"), load_records(_pack(folder))
    assert len({PackedVideo.parse(one.path).shard for one in packed}) == 2  # type: ignore[union-attr]
    for old, new in zip(before, packed, strict=True):
        video = PackedVideo.parse(new.path)
        assert video is not None
        assert video.read() == Path(old.path).read_bytes()
        assert (video.name, new.label) == (os.path.relpath(old.path, folder / "in"), old.label)


def test_offsets_are_those_of_the_tar_files(folder: Path) -> None:
    index = _pack(folder)
    contents = {}
    for shard in sorted(index.parent.glob("*.tar")):
        with tarfile.open(shard) as archive:
            for member in archive:
                file = archive.extractfile(member)
                assert file is not None
                contents[member.name] = (str(shard), member.offset_data, file.read())
    for row, record in enumerate(load_records(index)):
        video = PackedVideo.parse(record.path)
        assert video is not None
        suffix = Path(video.name).suffix
        assert contents[f"{row:09d}{suffix}"][:2] == (video.shard, video.offset)
        assert contents[f"{row:09d}.cls"][2] == str(row).encode()


def test_webdataset_reads_the_shards(folder: Path) -> None:
    webdataset = pytest.importorskip("webdataset", reason="webdataset is not installed")
    index = _pack(folder)
    shards = sorted(map(str, index.parent.glob("*.tar")))
    samples = list(webdataset.WebDataset(shards, shardshuffle=False).decode())
    assert [(sample["__key__"], sample["cls"]) for sample in samples] == [(f"{n:09d}", n) for n in range(5)]
    assert samples[1]["json"] == {"path": "day 2/b.c.mp4", "label": 1}


@pytest.mark.parametrize("reader", READERS)
def test_every_reader_reads_packed_videos(folder: Path, reader: str) -> None:
    record = load_records(_pack(folder))[1]
    with open_video(record.path, reader) as video:
        assert [read_number(picture) for picture in video.read([6, 0, 3])] == [6, 0, 3]
        assert [index for index, _ in video.iter_frames([2, 4])] == [2, 4]
        assert (video.frames, video.fps) == (7, 30)
        assert (video.info.path, video.info.width) == (record.path, 48)


def test_packed_pictures_are_pictures(tmp_path: Path) -> None:
    import cv2

    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
    cv2.imwrite(str(tmp_path / "a.png"), pixels[..., ::-1])
    (tmp_path / "list.csv").write_text("a.png 0\n")
    pack(str(tmp_path / "list.csv"), str(tmp_path / "out"))
    records = load_records(tmp_path / "out/index.json")
    with open_video(records[0].path) as video:
        assert np.array_equal(video.read([0])[0], pixels)


def test_multi_label_lists_and_class_names(folder: Path) -> None:
    (folder / "in/train.csv").write_text("path labels\na.mp4 7,3\nf.mp4 -1\n")
    assert [one.labels for one in load_records(_pack(folder))] == [(3, 7), ()]
    (folder / "in/train.csv").write_text("a.mp4\nf.mp4\n")
    records = load_records(_pack(folder, overwrite=True))
    assert [one.label for one in records] == [None, None]
    with pytest.raises(UserError, match="has no labels, but labels=yes; pack a list with labels"):
        load_records(folder / "out/index.json", labels="yes")


def test_complete_shards_are_kept_and_stale_ones_are_written_again(folder: Path) -> None:
    index = _pack(folder, 1)
    shards = sorted(index.parent.glob("*.tar"))
    assert len(shards) == 5  # each video is larger than the limit
    index.unlink()
    shards[3].write_bytes(b"half")
    (folder / "in/f.mp4").touch()
    again = pack(str(folder / "in/train.csv"), str(folder / "out"), shard_mb=1e-6)
    assert (again.shards, again.reused) == (5, 3)
    with pytest.raises(UserError, match=r"index\.json exists: .*add --overwrite to replace it"):
        _pack(folder)
    _pack(folder, overwrite=True)
    assert len(list(index.parent.glob("*.tar"))) == 2


def test_missing_and_empty_videos_are_left_out_and_named(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "in/a.mp4").write_bytes(b"")
    (folder / "in/e.mkv").unlink()
    assert main(["pack", str(folder / "in/train.csv"), "--out", str(folder / "out")]) == 3
    printed = capsys.readouterr()
    assert "3 videos in 1 shard" in printed.out
    assert "a.mp4: empty file (0 bytes)" in printed.err
    assert "e.mkv: no such file" in printed.err
    assert [one.label for one in load_records(folder / "out/index.json")] == [1, 2, 4]


def test_missing_and_truncated_shards_are_named_before_training(folder: Path) -> None:
    index = _pack(folder)
    shard = index.parent / "000001.tar"
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-2000])
    with pytest.raises(UserError, match=r"000001\.tar has [\d,]+ bytes instead of [\d,]+: truncated"):
        load_records(index)
    shard.unlink()
    with pytest.raises(UserError, match=r"1 of 2 shards are missing \(000001\.tar\); copy"):
        load_records(index)


def test_a_shard_that_is_lost_later_fails_as_a_video_with_its_name(folder: Path) -> None:
    index = _pack(folder)
    records = load_records(index)
    (index.parent / "000001.tar").write_bytes(b"")
    with pytest.raises(VideoReadError, match=r"000001\.tar#\d+:\d+#f\.mp4: the shard is truncated"):
        open_video(records[4].path)
    report = check_list([(one.path, one.label) for one in records], workers=0)
    bad = [problem.path for problem in report.problems]
    assert report.counts["unreadable"] == len(bad) >= 1
    assert all("000001.tar" in path for path in bad)


@pytest.mark.parametrize(
    "damage",
    ['"version": 2', '"sizes": [-1]', '"names": [1, 2]', '"offsets": []', '"format": "other"', '"bytes": 1'],
)
def test_damaged_indexes_are_refused(folder: Path, damage: str) -> None:

    index = _pack(folder)
    content = json.loads(index.read_text())
    changes = json.loads(f"{{{damage}}}")
    for name, value in changes.items():
        (content if name in content else content["shards"][0])[name] = value
    index.write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"index\.json"):
        load_records(index, format="shards")


def test_batches_from_shards_are_those_from_files_for_ranks_workers_and_after_a_resume(
    tmp_path: Path,
) -> None:
    """Five shards for up to eight readers; every record once per epoch, whatever the number of ranks."""
    listed = write_videos(tmp_path, 12)
    pack(str(listed), str(tmp_path / "out"), shard_mb=0.02)
    files, shards = make_clips(listed), make_clips(tmp_path / "out/index.json")
    assert len(list((tmp_path / "out").glob("*.tar"))) < 8
    expected = batches(files, batch_size=4)
    assert equal(tuple(expected), tuple(batches(shards, batch_size=4, workers=2)))
    seen = []
    for rank in range(4):
        own = batches(shards, batch_size=4, rank=rank, world_size=4)
        seen += [int(batch.index[0]) for batch in own]
        # This rank's share of each step: resumed in mid-epoch with four ranks after steps on one rank.
        resumed = batches(shards, batch_size=4, rank=rank, world_size=4, start=1)
        assert equal(tuple(resumed), tuple(own[1:]))
        for step, batch in enumerate(own):
            assert equal(batch.clips, expected[step].clips[rank : rank + 1])
    assert sorted(seen) == list(range(12))


def test_training_reads_one_shard_with_more_workers_than_shards(
    sample: Path, tmp_path: Path, verb: Verb
) -> None:
    """Readers share a shard, since they read single videos: fewer shards than readers are no mistake."""
    pack(str(sample / "train.csv"), str(tmp_path / "shards"))
    assert len(list((tmp_path / "shards").glob("*.tar"))) == 1
    for name, source in (("files", sample / "train.csv"), ("shards", tmp_path / "shards/index.json")):
        words = [f"data.train={source}", f"run.folder={tmp_path / name}", "data.workers=3", "optim.epochs=1"]
        code, _, err = verb("pretrain", *TINY, *words, "optim.warmup_epochs=0.5", "run.threads=1")
        assert code == 0, err
    left, right = (
        read_safetensors(str(tmp_path / name / "weights.safetensors")) for name in ("files", "shards")
    )
    for key in left:
        assert torch.equal(left[key], right[key]), key
