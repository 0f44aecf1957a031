"""Pictures: how every kind decodes, and folders and lists of them as the frames of a video."""

from __future__ import annotations

import io
import os
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from tests.data.pictures import smooth_frames
from videomaskfeat.data import frames as images
from videomaskfeat.data.frame_lists import FrameFiles
from videomaskfeat.data.frames import (
    FrameFilesReader,
    FrameFolderReader,
    ImageReader,
    decode_picture,
    frames_in_folder,
    is_picture,
)
from videomaskfeat.data.reader import VideoReadError
from videomaskfeat.data.video import open_video

PICTURE = smooth_frames(1, 40, 56)[0]  # uint8 [40, 56, 3], RGB


def _bytes(picture: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def _opencv(picture: np.ndarray, suffix: str) -> bytes:
    return cv2.imencode(suffix, picture)[1].tobytes()


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "PPM", "WEBP"])
def test_lossless_kinds_give_the_pixels_back(kind: str) -> None:
    options = {"lossless": True} if kind == "WEBP" else {}
    picture = decode_picture(_bytes(Image.fromarray(PICTURE), kind, **options))
    assert picture.flags.c_contiguous
    np.testing.assert_array_equal(picture, PICTURE)


def test_jpeg_is_as_pillow_decodes_it() -> None:
    data = _bytes(Image.fromarray(PICTURE), "JPEG", quality=90)
    expected = np.asarray(Image.open(io.BytesIO(data)))
    # Two levels: the two libraries may round the inverse transform and the colours differently.
    assert np.abs(decode_picture(data).astype(int) - expected).max() <= 2


def test_cmyk_is_converted() -> None:
    data = _bytes(Image.fromarray(PICTURE).convert("CMYK"), "JPEG", quality=95)
    expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    assert np.abs(decode_picture(data).astype(int) - expected).max() <= 3


def test_grey_palette_and_transparency_become_rgb() -> None:
    grey = PICTURE[..., 0]
    grey_rgb = np.repeat(grey[..., None], 3, axis=2)
    np.testing.assert_array_equal(decode_picture(_bytes(Image.fromarray(grey), "PNG")), grey_rgb)
    palette = Image.fromarray(PICTURE).convert("P")
    np.testing.assert_array_equal(decode_picture(_bytes(palette, "PNG")), np.asarray(palette.convert("RGB")))
    clear = np.dstack([PICTURE, grey])  # what lies under clear pixels counts
    np.testing.assert_array_equal(decode_picture(_bytes(Image.fromarray(clear), "PNG")), PICTURE)


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_sixteen_bits_become_eight(suffix: str) -> None:
    deep = PICTURE[..., ::-1].astype(np.uint16) * 257  # BGR, as OpenCV writes
    np.testing.assert_array_equal(decode_picture(_opencv(deep, suffix)), PICTURE)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_picture_is_turned_as_exif_asks(orientation: int, kind: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = _bytes(Image.fromarray(PICTURE), kind, exif=exif)
    stored = decode_picture(_bytes(Image.fromarray(PICTURE), kind))
    mirrored = stored[:, ::-1]
    # EXIF 2.32, tag 274: which corner of the scene the first stored row and column show.
    expected = {
        1: stored, 2: mirrored, 3: np.rot90(stored, 2), 4: np.rot90(mirrored, 2),
        5: np.rot90(mirrored, 1), 6: np.rot90(stored, -1), 7: np.rot90(mirrored, -1), 8: np.rot90(stored, 1),
    }[orientation]  # fmt: skip
    np.testing.assert_array_equal(decode_picture(data), expected)


def test_damaged_pictures_are_named() -> None:
    jpeg = _bytes(Image.fromarray(PICTURE), "JPEG", quality=90)
    for kept in (len(jpeg) * 3 // 4, len(jpeg) - 2):
        with pytest.raises(ValueError, match=rf"a JPEG that ends early \({kept} bytes\)"):
            decode_picture(jpeg[:kept])
    png = _bytes(Image.fromarray(PICTURE), "PNG")
    for data in (png[: len(png) // 2], png[:40], b"no picture", jpeg[:2]):
        with pytest.raises(ValueError, match=r"not a picture, or a damaged one|ends early"):
            decode_picture(data)
    with pytest.raises(ValueError, match=r"empty file \(0 bytes\)"):
        decode_picture(b"")
    floating = _opencv(PICTURE.astype(np.float32) / 255, ".tif")
    with pytest.raises(ValueError, match="not a picture, or a damaged one"):
        decode_picture(floating)


def test_thumbnail_inside_a_jpeg_does_not_hide_that_the_jpeg_is_cut_off() -> None:
    jpeg = _bytes(Image.fromarray(PICTURE), "JPEG", quality=90)
    thumbnail = _bytes(Image.fromarray(PICTURE[:8, :8]), "JPEG")
    segment = b"\xff\xe1" + (len(thumbnail) + 2).to_bytes(2, "big") + thumbnail
    whole = jpeg[:2] + segment + jpeg[2:]
    np.testing.assert_array_equal(decode_picture(whole), decode_picture(jpeg))
    with pytest.raises(ValueError, match="ends early"):
        decode_picture(whole[:-40])


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".jpg", ".tif", ".webp", ".ppm", ".pgm"])
def test_picture_with_more_pixels_than_the_limit_is_refused(
    suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = _opencv(PICTURE if suffix != ".pgm" else PICTURE[..., 0], suffix)
    height, width = PICTURE.shape[:2]
    decode_picture(data)
    monkeypatch.setattr(images, "_MOST_PIXELS", height * width - 1)
    with pytest.raises(ValueError, match=rf"a picture of {width}x{height}; at most [\d,]+ pixels are read"):
        decode_picture(data)


def test_declared_size_costs_no_memory() -> None:
    with pytest.raises(ValueError, match=r"a picture of 40000x40000; at most 67,108,864 pixels are read"):
        decode_picture(b"P6 40000 40000 255\n" + bytes(100))


def test_picture_file_beyond_the_limit_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(_bytes(Image.fromarray(PICTURE), "PNG"))
    os.truncate(path, 20 << 30)
    with open_video(path) as video, pytest.raises(VideoReadError, match=r"a\.png: larger than 256 MB"):
        video.read([0])


def test_picture_file_is_a_video_of_one_frame(tmp_path: Path) -> None:
    path = tmp_path / "n01_2.JPEG"  # ImageNet's suffix; and some of its files are PNGs within
    path.write_bytes(_bytes(Image.fromarray(PICTURE), "PNG"))
    for reader in ("auto", "decord", "pyav"):
        with open_video(path, reader) as video:
            assert (video.decoder, video.frames) == ("opencv", 1)
            assert (video.info.width, video.info.height, video.info.codec) == (56, 40, "mjpeg")
            frames = video.read([0, 0])
            assert [(index, frame.shape) for index, frame in video.iter_frames([0])] == [(0, (40, 56, 3))]
            with pytest.raises(IndexError, match=r"frame 1 is outside 0\.\.0"):
                video.read([1])
    np.testing.assert_array_equal(frames, np.stack([PICTURE, PICTURE]))


def test_missing_and_damaged_files_are_read_errors(tmp_path: Path) -> None:
    with pytest.raises(VideoReadError, match=r"gone\.png: no such file"):
        open_video(tmp_path / "gone.png")
    (tmp_path / "bad.jpg").write_bytes(b"words")
    with (
        pytest.raises(VideoReadError, match=r"bad\.jpg: not a picture, or a damaged one \(5 bytes\)"),
        ImageReader(str(tmp_path / "bad.jpg")) as video,
    ):
        video.read([0])


def test_pictures_are_told_by_their_suffix() -> None:
    assert [is_picture(name) for name in ("a/b.JPEG", "x.webp", "x.tif")] == [True] * 3
    assert not any(is_picture(name) for name in ("a.mp4", "jpg", "a/.x.jpg", "x.jpg.txt", "x.gif"))


def _write(folder: Path, name: str, value: int, size: tuple[int, int] = (4, 6)) -> None:
    picture = np.zeros((*size, 3), np.uint8)
    picture[..., 0] = value  # red, as RGB
    assert cv2.imwrite(str(folder / name), cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))


def test_frames_are_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    for number in (1, 2, 10, 9):
        _write(tmp_path, f"f_{number}.png", number)
    (tmp_path / "notes.txt").touch()
    with FrameFolderReader(str(tmp_path)) as video:
        assert (video.frames, video.fps) == (4, 30.0)
        assert (video.info.width, video.info.height, video.info.codec) == (6, 4, "png")
        frames = video.read([3, 0, 3, 1])
    assert frames.shape == (4, 4, 6, 3)
    assert frames[:, 0, 0].tolist() == [[10, 0, 0], [1, 0, 0], [10, 0, 0], [2, 0, 0]]


def test_unreadable_frames_are_read_errors(tmp_path: Path) -> None:
    with pytest.raises(VideoReadError, match="no such folder"):
        FrameFolderReader(str(tmp_path / "none"))
    with pytest.raises(VideoReadError, match="no pictures in it, among 0 files"):
        FrameFolderReader(str(tmp_path))
    _write(tmp_path, "1.png", 1)
    (tmp_path / "2.png").write_bytes(b"no picture")
    (tmp_path / "3.png").touch()
    _write(tmp_path, "4.png", 1, (8, 8))
    video = FrameFolderReader(str(tmp_path))
    with pytest.raises(VideoReadError, match=r"2\.png: not a picture, or a damaged one \(10 bytes\)"):
        video.read([1])
    with pytest.raises(VideoReadError, match=r"3\.png: empty file \(0 bytes\)"):
        video.read([2])
    with pytest.raises(VideoReadError, match=r"4\.png is 8x8, others are 6x4"):
        video.read([0, 3])
    with pytest.raises(IndexError, match=r"frame 4 is outside 0\.\.3"):
        video.read([4])


SERIES = {
    "flow": ("img_{:05d}.jpg", "flow_x_{:05d}.jpg", "flow_y_{:05d}.jpg"),
    "cover": ("v_{:06d}.png",),
    "directions": ("frame{}.png", "x_{}.png", "y_{}.png"),
}


@pytest.mark.parametrize("kind", SERIES)
def test_only_the_series_of_the_video_is_read(tmp_path: Path, kind: str) -> None:
    for place, form in enumerate(SERIES[kind]):
        for number in range(1, 4):
            _write(tmp_path, form.format(number), 100 * place + number)
    _write(tmp_path, "cover.png", 250)
    _write(tmp_path, "a1.png", 251)
    (tmp_path / "._img_00001.jpg").write_bytes(b"made by macOS")
    (tmp_path / "Thumbs.db").touch()
    with FrameFolderReader(str(tmp_path)) as video:
        assert video.frames == 3
        assert np.abs(video.read([0, 1, 2])[:, 0, 0, 0].astype(int) - [1, 2, 3]).max() <= 1  # as JPEG rounds
    assert len(frames_in_folder(str(tmp_path))) == 3


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (("left_1.png", "left_2.png", "right_1.png", "right_2.png"), r"\(left_N\.png and right_N\.png\)"),
        (("img_1.png", "img_2.png", "img_1.bmp", "img_2.bmp"), r"\(img_N\.bmp and img_N\.png\)"),
        (("flow_x_1.png", "flow_x_2.png", "flow_y_1.png", "flow_y_2.png"), r"\(flow_x_N\.png and flow_y_N"),
    ],
)
def test_several_series_are_refused(tmp_path: Path, names: tuple[str, ...], words: str) -> None:
    for name in names:
        _write(tmp_path, name, 1)
    for open_frames in (FrameFolderReader, frames_in_folder):
        with pytest.raises(VideoReadError, match=words + r".*; keep one series in the folder"):
            open_frames(str(tmp_path))


def test_a_gap_and_a_change_of_suffix_are_one_series(tmp_path: Path) -> None:
    for number, name in ((1, "img_1.png"), (2, "img_2.bmp"), (5, "img_05.png"), (7, "img_7.png")):
        _write(tmp_path, name, number)
    with FrameFolderReader(str(tmp_path)) as video:
        assert video.read(range(4))[:, 0, 0, 0].tolist() == [1, 2, 5, 7]


def test_only_flow_is_a_video_too(tmp_path: Path) -> None:
    for number in (1, 2):
        _write(tmp_path, f"flow_x_{number}.png", number)
    assert FrameFolderReader(str(tmp_path)).frames == 2


def write_frames(folder: Path, numbers: list[int], *, form: str = "v_{:06d}.png") -> None:
    """Pictures of 6x4 whose red is their number."""
    folder.mkdir(exist_ok=True)
    for number in numbers:
        picture = np.zeros((4, 6, 3), np.uint8)
        picture[..., 2] = number
        assert cv2.imwrite(str(folder / form.format(number)), picture)


def red(frames: np.ndarray) -> list[int]:
    return frames[:, 0, 0, 0].tolist()


def test_frames_of_a_folder_count_from_its_first_number(tmp_path: Path) -> None:
    write_frames(tmp_path / "a", [8, 9, 10, 11], form="v_{}.png")  # no leading zeros
    (tmp_path / "a" / "notes.txt").touch()
    files = frames_in_folder(str(tmp_path / "a"))
    assert (len(files), files[0], files[3]) == (4, f"{tmp_path}/a/v_8.png", f"{tmp_path}/a/v_11.png")
    video = FrameFilesReader(files, fps=25.0)
    assert (video.frames, video.fps, video.decoder) == (4, 25.0, "opencv")
    assert (video.info.width, video.info.height, video.info.duration_seconds) == (6, 4, 0.16)
    assert red(video.read([3, 0, 3, 1])) == [11, 8, 11, 9]


def test_missing_frame_moves_no_other_and_is_named(tmp_path: Path) -> None:
    write_frames(tmp_path / "a", [1, 2, 4, 5])
    video = FrameFilesReader(frames_in_folder(str(tmp_path / "a")), fps=30.0)
    assert video.frames == 5
    assert red(video.read([1, 3, 4])) == [2, 4, 5]
    words = (
        r"v_000003\.png is missing, frame 2 of 5; frames must have consecutive numbers, 30 per second: "
        "extract them again, or read the video file itself"
    )
    with pytest.raises(VideoReadError, match=words):
        video.read([1, 2, 3])


def test_frames_that_are_damaged_or_differ_are_read_errors(tmp_path: Path) -> None:
    write_frames(tmp_path, [1, 2, 3])
    (tmp_path / "v_000002.png").write_bytes(b"no picture")
    assert cv2.imwrite(str(tmp_path / "v_000003.png"), np.zeros((8, 9, 3), np.uint8))
    video = FrameFilesReader(frames_in_folder(str(tmp_path)), fps=30.0)
    with pytest.raises(VideoReadError, match=r"v_000002\.png: not a picture, or a damaged one"):
        video.read([1])
    with pytest.raises(VideoReadError, match=r"v_000003\.png is 9x8, others are 6x4"):
        video.read([0, 2])


def test_folders_without_the_frames_of_one_video_are_refused(tmp_path: Path) -> None:
    with pytest.raises(VideoReadError, match="no such folder of frames"):
        frames_in_folder(str(tmp_path / "none"))
    with pytest.raises(VideoReadError, match="no pictures in it"):
        frames_in_folder(str(tmp_path))
    write_frames(tmp_path / "two", [1, 2], form="a_{:03d}.png")
    write_frames(tmp_path / "two", [1, 2], form="b_{:03d}.png")
    with pytest.raises(VideoReadError, match=r"not the frames 1, 2, 3, \.\.\..*a_N\.png and b_N\.png"):
        frames_in_folder(str(tmp_path / "two"))
    write_frames(tmp_path / "none", [1], form="cover.png")
    with pytest.raises(VideoReadError, match=r"not the frames 1, 2, 3"):
        frames_in_folder(str(tmp_path / "none"))


def test_listed_frames_are_read_by_their_paths(tmp_path: Path) -> None:
    write_frames(tmp_path, [5, 6, 7])
    files = FrameFiles.from_paths([f"v_{number:06d}.png" for number in (5, 6, 7)], str(tmp_path))
    assert red(FrameFilesReader(files, fps=30.0).read([2, 0])) == [7, 5]
