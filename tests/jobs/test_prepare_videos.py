"""``prepare-videos``: pixels, order, size and rate of the new files; labels; damage; restart after a kill."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import av
import cv2
import numpy as np
import pytest

from tests.data.make_videos import numbered_picture, read_number, write_video
from videomaskfeat.cli import main
from videomaskfeat.data.formats import load_records
from videomaskfeat.data.prepare import Encoding, fit_picture, peak_signal_to_noise, prepare_video
from videomaskfeat.data.reader import VideoReadError
from videomaskfeat.data.readers_pyav import PyAvReader
from videomaskfeat.data.video import open_video
from videomaskfeat.errors import RunFailed, UserError
from videomaskfeat.jobs.prepare_videos import prepare_videos

HALF = Encoding(short_side=32)


def _numbers(path: Path) -> list[int]:
    with PyAvReader(str(path)) as video:
        return [read_number(picture) for _, picture in video.iter_frames(np.arange(video.frames))]


def _key_frames(path: Path) -> list[int]:
    with av.open(str(path)) as container:
        packets = [packet for packet in container.demux(video=0) if packet.size]
    times = sorted(packet.pts for packet in packets)
    return sorted(times.index(packet.pts) for packet in packets if packet.is_keyframe)


def test_every_frame_is_kept_in_order_at_the_new_size_without_sound(tmp_path: Path) -> None:
    source = write_video(tmp_path / "a.mp4", audio=True, group=48)
    prepared = prepare_video(str(source), str(tmp_path / "b.mp4"), HALF)
    assert (prepared.frames, prepared.fps, prepared.size) == (48, 30.0, (48, 32))
    assert _numbers(tmp_path / "b.mp4") == list(range(48))
    assert _key_frames(tmp_path / "b.mp4") == [0, 12, 24, 36]
    with av.open(str(tmp_path / "b.mp4")) as container:
        assert not container.streams.audio
    assert prepared.bytes == (source.stat().st_size, (tmp_path / "b.mp4").stat().st_size)
    # The PSNR of the eight compared frames, computed here from whole arrays.
    places = np.round(np.linspace(0, 47, 8)).astype(int)
    with open_video(source, "pyav") as old, open_video(tmp_path / "b.mp4", "pyav") as new:
        before, after = old.read(places), new.read(places)
    resized = [cv2.resize(picture, (48, 32), interpolation=cv2.INTER_AREA) for picture in before]
    errors = ((after.astype(float) - np.stack(resized)) ** 2).mean(axis=(1, 2, 3))
    assert prepared.psnr == pytest.approx((10 * np.log10(255**2 / errors)).mean(), abs=1e-9)  # the same sums
    assert prepared.psnr > 25


def test_psnr_of_known_differences() -> None:
    picture = np.full((4, 4, 3), 100, np.uint8)
    assert peak_signal_to_noise(picture, picture) == 100
    assert peak_signal_to_noise(picture + np.uint8(5), picture) == pytest.approx(20 * np.log10(255 / 5))


@pytest.mark.parametrize(
    ("height", "width", "short_side", "expected"),
    [
        (1080, 1920, 256, (256, 456)),  # 455.1 rounds to an even number
        (1920, 1080, 256, (456, 256)),
        (33, 51, 64, (32, 50)),  # small enough: the last row and column are dropped
        (33, 51, None, (32, 50)),
        (1, 9, 64, (2, 8)),
    ],
)
def test_sizes_are_even(height: int, width: int, short_side: int | None, expected: tuple[int, int]) -> None:
    assert fit_picture(np.zeros((height, width, 3), np.uint8), short_side).shape[:2] == expected


def test_small_frames_keep_their_pixels() -> None:
    picture = np.random.default_rng(0).integers(0, 256, (33, 51, 3), np.uint8)
    assert np.array_equal(fit_picture(picture, 64), picture[:32, :50])


def test_rotation_becomes_pixels(tmp_path: Path) -> None:
    source = write_video(tmp_path / "phone.mp4", frames=5, rotation=-90)
    prepared = prepare_video(str(source), str(tmp_path / "b.mp4"), Encoding(short_side=None))
    with PyAvReader(str(tmp_path / "b.mp4")) as new, PyAvReader(str(source)) as old:
        assert prepared.size == (64, 96) == (new.info.width, new.info.height)
        assert (new.info.rotation_degrees, old.info.rotation_degrees) == (0, 90)
    assert prepared.psnr > 25  # against the rotated frames


def test_variable_rate_becomes_constant(tmp_path: Path) -> None:
    """Frames of 100 ms and, from frame 4 on, 25 ms: at 40 per second the first four are repeated."""
    times = [0, 100, 200, 300, *range(400, 600, 25)]
    source = write_video(tmp_path / "a.mkv", frames=12, milliseconds=times, b_frames=0)
    prepared = prepare_video(str(source), str(tmp_path / "b.mp4"), Encoding(short_side=None, fps=40.0))
    nearest = [min(range(12), key=lambda i: (abs(times[i] - 25 * k), -i)) for k in range(prepared.frames)]
    assert _numbers(tmp_path / "b.mp4") == nearest
    assert prepared.frames == pytest.approx(
        24, abs=1
    )  # the container does not store the end of the last frame
    with PyAvReader(str(tmp_path / "b.mp4")) as video:
        assert not video.info.variable_frame_rate
        assert video.fps == 40


def test_a_single_frame_and_a_folder_of_frames(tmp_path: Path) -> None:
    source = write_video(tmp_path / "one.mp4", frames=1)
    assert prepare_video(str(source), str(tmp_path / "a.mp4"), HALF).frames == 1
    (tmp_path / "frames").mkdir()
    for number in range(3):
        cv2.imwrite(
            str(tmp_path / f"frames/img_{number:03d}.png"), numbered_picture(number, 64, 48)[..., ::-1]
        )
    assert prepare_video(str(tmp_path / "frames"), str(tmp_path / "b.mp4"), HALF).frames == 3
    assert _numbers(tmp_path / "b.mp4") == [0, 1, 2]


def test_a_damaged_video_leaves_no_file(tmp_path: Path) -> None:
    source = write_video(tmp_path / "a.mp4")
    source.write_bytes(source.read_bytes()[:-4000])
    with pytest.raises(VideoReadError, match="truncated or damaged"):
        prepare_video(str(source), str(tmp_path / "b.mp4"), HALF)
    assert [path.name for path in tmp_path.iterdir()] == ["a.mp4"]


def test_a_full_disk_stops_the_command(tmp_path: Path, full_disk: object) -> None:
    source = write_video(tmp_path / "a.mp4")
    with full_disk(1000), pytest.raises(RunFailed, match=r"b\.mp4: could not be written"):  # type: ignore[operator]
        prepare_video(str(source), str(tmp_path / "b.mp4"), HALF)
    assert not (tmp_path / "b.mp4").exists()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three videos in a list with labels; one is damaged."""
    (tmp_path / "in/day 2").mkdir(parents=True)
    write_video(tmp_path / "in/a.mp4", frames=6)
    write_video(tmp_path / "in/day 2/b.avi", frames=6, codec="mjpeg", pixels="yuvj420p", b_frames=0)
    (tmp_path / "in/bad.mp4").write_bytes(b"no video")
    (tmp_path / "in/train.csv").write_text('a.mp4 3\n"day 2/b.avi" 0\nbad.mp4 1\na.mp4 4\n')
    return tmp_path


def test_new_list_has_the_labels_and_damaged_videos_are_named(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = folder / "out"
    words = ["prepare-videos", str(folder / "in/train.csv"), "--out", str(out), "--short-side", "32"]
    assert main([*words, "--workers", "1"]) == 3
    printed = capsys.readouterr()
    assert "2 prepared, 1 left out" in printed.out
    assert all(word in printed.out for word in ("MB before", "per clip of 16 frames", "PSNR"))
    assert "bad.mp4: not a video file" in printed.err
    assert "bad.mp4: not a video file" in (out / "failures.txt").read_text()
    records = load_records(out / "train.csv")
    assert [(os.path.relpath(one.path, out), one.label) for one in records] == [
        ("videos/a.mp4", 3),
        ("videos/day 2/b.mp4", 0),
        ("videos/a.mp4", 4),
    ]
    # Again: complete files are kept, even if their sources are gone.
    (folder / "in/a.mp4").write_bytes(b"")
    before = (out / "videos/a.mp4").stat().st_mtime_ns
    again = prepare_videos(str(folder / "in/train.csv"), str(out), encoding=HALF)
    assert (again.earlier, len(again.videos), list(again.failures)) == (2, 2, [str(folder / "in/bad.mp4")])
    assert (out / "videos/a.mp4").stat().st_mtime_ns == before
    with pytest.raises(UserError, match=r"out was prepared with short_side=32; use these, or choose another"):
        prepare_videos(str(folder / "in/train.csv"), str(out), encoding=Encoding())


def test_multi_label_lists_and_folders(folder: Path) -> None:
    (folder / "in/train.csv").write_text("path labels\na.mp4 7,3\nday 2/b.avi -1\n")
    prepare_videos(str(folder / "in/train.csv"), str(folder / "out"), encoding=HALF)
    assert [one.labels for one in load_records(folder / "out/train.csv")] == [(3, 7), ()]
    (folder / "in/train.csv").unlink()
    prepared = prepare_videos(str(folder / "in"), str(folder / "other"), encoding=HALF)
    assert prepared.path == str(folder / "other/in.csv")
    assert (folder / "other/in.csv").read_text().splitlines() == ["videos/a.mp4", '"videos/day 2/b.mp4"']


def test_sources_are_never_replaced(folder: Path) -> None:
    shutil.move(folder / "in", folder / "videos")
    (folder / "train.csv").write_text("videos/a.mp4 1\n")
    with pytest.raises(UserError, match=r"contains the video .*a\.mp4 of the list; choose another folder"):
        prepare_videos(str(folder / "videos"), str(folder), encoding=HALF)


def test_no_readable_video_is_an_error(folder: Path) -> None:
    (folder / "in/train.csv").write_text("bad.mp4 1\n")
    with pytest.raises(UserError, match=r"no video can be prepared; the first: .*bad\.mp4: not a video file"):
        prepare_videos(str(folder / "in/train.csv"), str(folder / "out"), encoding=HALF)
    assert not (folder / "out/train.csv").exists()


def test_command_continues_after_a_kill(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for number in range(6):
        write_video(tmp_path / f"in/{number}.mp4", frames=24)
    out = tmp_path / "out"
    command = [sys.executable, "-m", "videomaskfeat", "prepare-videos", str(tmp_path / "in")]
    running = subprocess.Popen(
        [*command, "--out", str(out), "--workers", "1", "--short-side", "32"], start_new_session=True
    )
    deadline = time.monotonic() + 60
    while not list(out.glob("videos/*.mp4")) and time.monotonic() < deadline:
        time.sleep(0.01)
    os.killpg(running.pid, signal.SIGKILL)
    running.wait()
    (out / "videos/.5.mp4.1-1.tmp").write_bytes(b"half")
    finished = [json.loads(line)["source"] for line in (out / "prepared.jsonl").read_text().splitlines()[1:]]
    prepared = prepare_videos(str(tmp_path / "in"), str(out), encoding=HALF)
    assert prepared.earlier == len(finished)
    assert sorted(path.name for path in (out / "videos").iterdir()) == [f"{n}.mp4" for n in range(6)]
    assert all(_numbers(path) == list(range(24)) for path in (out / "videos").iterdir())


@pytest.mark.parametrize("name", ["list.csv", "failures.txt"])
def test_files_of_something_else_are_not_replaced(tmp_path: Path, name: str) -> None:
    write_video(tmp_path / "a.mp4", frames=2)
    (tmp_path / "lists").mkdir()
    source = tmp_path / "lists/list.csv"
    source.write_text(f"{tmp_path}/a.mp4 3\n")
    out = tmp_path / "out"
    out.mkdir()
    (out / name).write_text("mine")
    with pytest.raises(UserError, match=rf"{name} exists, and is not of prepare-videos"):
        prepare_videos(str(source), str(out), encoding=HALF)
    assert [path.read_text() for path in out.iterdir()] == ["mine"]


def test_list_is_not_replaced_by_the_new_one(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4", frames=2)
    source = tmp_path / "list.csv"
    source.write_text(f"{tmp_path}/a.mp4 3\n")
    prepared = prepare_videos(str(source), str(tmp_path / "out"), encoding=HALF)
    for path in (str(source), prepared.path):
        before = Path(path).read_text()
        with pytest.raises(UserError, match="choose another folder"):
            prepare_videos(path, os.path.dirname(path), encoding=HALF)
        assert Path(path).read_text() == before
