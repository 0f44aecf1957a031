"""PySlowFast's lists of extracted frames."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest

from videomaskfeat.data.frame_lists import load_frame_lists
from videomaskfeat.errors import UserError

HEADER = "original_vido_id video_id frame_id path labels\n"


def write(folder: Path, text: str, name: str = "train.csv") -> Path:
    (folder / name).write_text(text)
    return folder / name


def ava_rows(video: str, number: int, count: int) -> str:
    return "".join(f'{video} {number} {i} {video}/{video}_{i + 1:06d}.jpg ""\n' for i in range(count))


@pytest.mark.parametrize("header", [HEADER, HEADER.replace("vido", "video"), "\ufeff" + HEADER])
def test_lists_contain_the_paths_of_every_video_in_order(tmp_path: Path, header: str) -> None:
    path = write(tmp_path, header + ava_rows("-5KQ66BBWC4", 0, 1200) + "\n" + ava_rows("1j20qq1JyX4", 1, 3))
    other = write(tmp_path, HEADER + ava_rows("c", 0, 2), "more.csv")
    videos = load_frame_lists([path, other], prefix="/frames")
    assert list(videos) == ["-5KQ66BBWC4", "1j20qq1JyX4", "c"]
    expected = [f"/frames/-5KQ66BBWC4/-5KQ66BBWC4_{number:06d}.jpg" for number in range(1, 1201)]
    assert [videos["-5KQ66BBWC4"][index] for index in range(1200)] == expected
    assert list(videos["c"]) == ["/frames/c/c_000001.jpg", "/frames/c/c_000002.jpg"]
    with pytest.raises(IndexError, match="frame 1200 of 1200"):
        videos["-5KQ66BBWC4"][1200]
    assert len(pickle.dumps(videos)) < 1500  # one pattern per video


@pytest.mark.parametrize(
    "names",
    [
        ["a_1.jpg", "a_2.jpg", "a_10.jpg"],
        ["a_09.jpg", "a_10.jpg", "a_11.jpg"],
        ["a_9.jpg", "a_10.jpg"],
        ["a_09.jpg", "a_9.jpg"],
        ["x y/a 1.jpg", "x y/a 2.jpg"],
        ["first.png", "second.png"],
        ["a1.jp2", "a2.jp2"],
        ["f3/7", "f3/8"],
        ["s3://bucket/1.jpg", "s3://bucket/2.jpg"],
        ["/absolute/1.jpg", "other/1.jpg"],
    ],
)
def test_names_of_any_kind_are_kept(tmp_path: Path, names: list[str]) -> None:
    text = "".join(f'v 0 {7 + index} {name} ""\n' for index, name in enumerate(names))
    files = load_frame_lists([write(tmp_path, HEADER + text)], prefix="root")["v"]
    assert len(files) == len(names)
    assert list(files) == [name if "/" in name[:5] and name[0] in "/s" else f"root/{name}" for name in names]


def test_paths_may_be_quoted(tmp_path: Path) -> None:
    files = load_frame_lists([write(tmp_path, HEADER + 'v 0 0 "v/1.jpg" "80,3"\n')], prefix="")
    assert list(files["v"]) == ["v/1.jpg"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", r"train\.csv:1: the header '' is not `original_vido_id video_id frame_id path labels`"),
        (
            "v 0 0 v/1.jpg 3\n",
            r"train\.csv:1: the header 'v 0 0 v/1\.jpg 3' is not .*; is this a list of frames",
        ),
        (HEADER, r"train\.csv has a header but no rows"),
        (
            HEADER + "v 0 0 v/1.jpg\n",
            r"train\.csv:2: 4 columns; a row is `original_vido_id .*`, separated by spaces",
        ),
        (HEADER + "\nv,0,0,v/1.jpg,3\n", r"train\.csv:3: 1 columns; a row is"),
        (
            HEADER + 'v 0 one v/1.jpg ""\n',
            r"train\.csv:2: the frame_id 'one' is not a whole number; a row is",
        ),
        (
            HEADER + ava_rows("v", 0, 3) + 'v 0 4 v/v_000005.jpg ""\n',
            r"train\.csv:5: frame 4 of v follows frame 2; the frame numbers of a video must be consecutive",
        ),
        (
            HEADER + ava_rows("v", 0, 2) + ava_rows("w", 1, 2) + ava_rows("v", 0, 2),
            r"train\.csv:6: v has earlier rows; all rows of a video must be adjacent, in one list",
        ),
    ],
)
def test_list_that_is_wrong_is_refused_by_file_and_line(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        load_frame_lists([write(tmp_path, text)], prefix="")
