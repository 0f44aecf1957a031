"""Finding AVA's videos by any spelling of their names, and the second at which each begins."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.data.ava_data import extract, write_numbered, write_truth
from tests.data.make_videos import copy_packets
from videomaskfeat.data.ava_lists import KeyFrames, detected_key_frames, training_key_frames
from videomaskfeat.data.ava_sources import sources_in_folder, sources_of_lists
from videomaskfeat.data.frame_lists import FrameFiles, load_frame_lists
from videomaskfeat.data.reader import VideoReadError
from videomaskfeat.errors import UserError

BOX = "0.1,0.1,0.5,0.5"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A video of 4 s as a.mp4 and b.mkv, and its frames in c/."""
    root = tmp_path_factory.mktemp("videos")
    write_numbered(root, ["a"], seconds=4)
    copy_packets(root / "a.mp4", root / "b.mkv", lambda _: True)
    extract(root / "a.mp4", root).rename(root / "c")
    (root / "notes.txt").touch()
    return root


@pytest.fixture(autouse=True)
def _log_info(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)


def key_frames(folder: Path, names: Sequence[str], seconds: Sequence[float]) -> KeyFrames:
    return write_truth(folder / "truth.csv", names, seconds)


def key_frames_of(folder: Path, text: str) -> KeyFrames:
    (folder / "truth.csv").write_text(text)
    return training_key_frames([folder / "truth.csv"], classes=1)


@pytest.mark.parametrize("names", [["a", "b", "c"], ["a.mp4", "b.mkv", "c"], ["a.webm", "b.mp4", "c.mp4"]])
def test_names_match_with_or_without_a_suffix(folder: Path, tmp_path: Path, names: list[str]) -> None:
    sources = sources_in_folder(key_frames(tmp_path, names, [901]), folder)
    assert [source.path for source in sources] == [str(folder / name) for name in ("a.mp4", "b.mkv", "c")]
    assert [source.frames is None for source in sources] == [True, True, False]


@pytest.mark.parametrize(
    ("seconds", "start"), [([1, 3], 0.0), ([901, 903], 900.0), ([4], 0.0), ([900, 904], 900.0)]
)
def test_start_is_found_from_lengths_and_times(
    folder: Path, tmp_path: Path, seconds: list[int], start: float, caplog: pytest.LogCaptureFixture
) -> None:
    sources = sources_in_folder(key_frames(tmp_path, ["a", "b", "c"], seconds), folder)
    assert {source.start_seconds for source in sources} == {start}
    reason = (
        "900, since their key frames would lie beyond their ends if they started at 0"
        if start
        else "0, since all their key frames lie inside them"
    )
    assert f"{folder}: 3 of 3 videos start at second {reason}" in caplog.text


def test_each_video_has_its_own_start(folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    sources = sources_in_folder(key_frames_of(tmp_path, f"a,2,{BOX},1,0\nb,902,{BOX},1,0\n"), folder)
    assert [source.start_seconds for source in sources] == [0.0, 900.0]
    assert "1 of 2 videos start at second 900" in caplog.text
    assert "1 of 2 videos start at second 0" in caplog.text


def test_given_start_is_used(folder: Path, tmp_path: Path) -> None:
    sources = sources_in_folder(key_frames(tmp_path, ["a", "c"], [12]), folder, start=10.5)
    assert [source.start_seconds for source in sources] == [10.5, 10.5]


def test_missing_videos_are_counted_and_the_first_is_named(folder: Path, tmp_path: Path) -> None:
    words = (
        r"2 of the 4 videos of .*truth\.csv are missing, the first is 'n1'; add them as video files or as "
        "folders of frames with that name, or remove their rows"
    )
    with pytest.raises(UserError, match=words):
        sources_in_folder(key_frames(tmp_path, ["a", "n1", "c", "n2"], [1]), folder)
    with pytest.raises(UserError, match=r"nowhere: no such folder; give the folder with the videos of"):
        sources_in_folder(key_frames(tmp_path, ["a"], [1]), tmp_path / "nowhere")


def test_ambiguous_video_is_named(folder: Path, tmp_path: Path) -> None:
    for name in ("a.mkv", "a.mp4"):
        (tmp_path / name).write_bytes((folder / "a.mp4").read_bytes())
    with pytest.raises(UserError, match=r"'a' exists as a\.mkv and as a\.mp4; keep only one"):
        sources_in_folder(key_frames(tmp_path, ["a"], [1]), tmp_path)
    (source,) = sources_in_folder(key_frames(tmp_path, ["a.mkv"], [1]), tmp_path)
    assert source.path == str(tmp_path / "a.mkv")


MOST = r"\(the start that fits most of its key frames\)"


@pytest.mark.parametrize(
    ("names", "seconds", "start", "words"),
    [
        (
            "abc",
            [901, 905, 906],
            900,
            r":3: 6 key frames of 3 videos lie outside them, the first at 905 s of .*a\.mp4, which lasts "
            r"4\.0 s and begins at second 900; correct the times, give the second at which the files start, "
            "or use the whole files",
        ),
        ("a", [2, 5], 3, r":1: 1 key frame of 1 video lies outside it, .* 2 s of .* at second 3;"),
        ("a", [9, 930], None, r":1: 2 key frames of 1 video lie outside it, the first at 9 .* 0 or 900;"),
        # The start is the one that fits most of the key frames; there are two rows per second.
        ("a", [901, 902, 999, 903], None, rf":5: 1 key frame .* 999 s of .*a\.mp4, .* second 900 {MOST}; "),
        ("a", [901, 3, 902], None, rf":3: 1 key frame of 1 video .* 3 s of .* second 900 {MOST}; "),
        ("a", [1, 2, 902], None, rf":5: 1 key frame of 1 video .* 902 s of .* second 0 {MOST}; "),
    ],
)
def test_times_outside_the_videos_are_refused(
    folder: Path, tmp_path: Path, names: str, seconds: list[int], start: float | None, words: str
) -> None:
    with pytest.raises(UserError, match=rf"truth\.csv{words}"):
        sources_in_folder(key_frames(tmp_path, list(names), seconds), folder, start=start)


def test_other_key_frames_lie_in_the_videos_too(folder: Path, tmp_path: Path) -> None:
    truth = key_frames(tmp_path, ["a", "b"], [901, 903])
    row = f",{BOX},,0.9\n"
    (tmp_path / "boxes.csv").write_text(f"c,902{row}b,902{row}b,930{row}")
    boxes = detected_key_frames([tmp_path / "boxes.csv"], classes=1).of_videos(truth.videos)
    assert (boxes.videos, boxes.moments()) == (("a", "b"), [("b", 902.0), ("b", 930.0)])
    with pytest.raises(UserError, match=r"boxes\.csv:3: 1 key frame of 1 video .* 930 s of .*b\.mkv, which"):
        sources_in_folder(truth, folder, also=[boxes])
    inside = boxes.select(boxes.seconds < 930)
    assert sources_in_folder(truth, folder, also=[inside]) == sources_in_folder(truth, folder)


def test_unreadable_file_causes_a_warning(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "a.mp4").write_bytes((folder / "a.mp4").read_bytes())
    (tmp_path / "b.mp4").write_bytes(b"this is text")
    (tmp_path / "c").mkdir()
    sources = sources_in_folder(key_frames(tmp_path, ["a", "b", "c"], [902]), tmp_path)
    for name, source, cause in (
        ("b.mp4", sources[1], "not a video file"),
        ("c", sources[2], "no pictures in it"),
    ):
        assert f"{tmp_path}/{name} cannot be read: {cause}" in caplog.text
        with pytest.raises(VideoReadError, match=cause):
            source.open()


def test_frames_come_from_lists(folder: Path, tmp_path: Path) -> None:
    rows = [f'v 0 {number} c/a_{number + 1:06d}.png ""\n' for number in range(120)]
    path = tmp_path / "frames.csv"
    path.write_text("original_vido_id video_id frame_id path labels\n" + "".join(rows))
    frames = load_frame_lists([path], prefix=folder)
    (source,) = sources_of_lists(key_frames(tmp_path, ["v"], [902]), frames)
    assert (source.start_seconds, source.path) == (900.0, str(folder / "c"))
    with source.open() as reader:
        assert reader.duration_seconds == 4.0
        assert reader.read_at([2.0]).shape == (1, 64, 96, 3)
    words = (
        r"the lists of frames do not contain 2 of the 3 videos of .*truth\.csv, the first is 'n1'; give "
        "the lists of these videos, or remove their rows"
    )
    with pytest.raises(UserError, match=words):
        sources_of_lists(key_frames(tmp_path, ["n1", "n2", "v"], [902]), frames)
    with pytest.raises(UserError, match=r"1 key frame of 1 video lies outside it, the first at 930 s of"):
        sources_of_lists(key_frames(tmp_path, ["v"], [930]), frames, start=900)


def test_frames_at_another_rate_last_as_long(tmp_path: Path) -> None:
    files = FrameFiles(str(tmp_path), "f_", ".jpg", 1, 6, 100)
    (source,) = sources_of_lists(key_frames(tmp_path, ["v"], [909]), {"v": files}, fps=10.0)
    assert (source.start_seconds, source.fps) == (900.0, 10.0)


@pytest.fixture
def clips(folder: Path, tmp_path: Path) -> Path:
    """Kinetics clips: the video of 4 s under their names."""
    clips = tmp_path / "clips"
    clips.mkdir()
    for name in ("x_y_000010_000014.mp4", "z_000100_000104.mp4", "z_000200_000204.mp4"):
        (clips / name).symlink_to(folder / "a.mp4")
    return clips


def test_kinetics_clip_begins_at_the_second_in_its_name(
    clips: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = key_frames_of(tmp_path, f"x_y,11.5,{BOX},1\nz,203,{BOX},1\n")
    sources = sources_in_folder(rows, clips)
    assert [Path(one.path).name for one in sources] == ["x_y_000010_000014.mp4", "z_000200_000204.mp4"]
    assert [one.start_seconds for one in sources] == [10.0, 200.0]
    assert "2 of 2 videos start at the second in their file names" in caplog.text


@pytest.mark.parametrize(("second", "start"), [(12, 10.0), (3, 0.0)])
def test_key_frames_named_after_a_clip_count_from_either_start(
    clips: Path, tmp_path: Path, second: int, start: float
) -> None:
    """In seconds of the original video, or of the clip."""
    (source,) = sources_in_folder(key_frames(tmp_path, ["x_y_000010_000014"], [second]), clips)
    assert source.start_seconds == start


def test_key_frames_outside_all_clips_of_a_video(clips: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"the video 'z' exists as z_000100.*, but no clip contains all"):
        sources_in_folder(key_frames(tmp_path, ["z"], [102, 203]), clips)
