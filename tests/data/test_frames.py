"""Decoding of every picture format, and folders and lists of frames read like a video."""

from __future__ import annotations

import io
import os
from collections.abc import Callable
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
    PictureReader,
    decode_picture,
    frames_in_folder,
)
from videomaskfeat.data.reader import VideoReadError, is_picture
from videomaskfeat.data.video import open_video

PICTURE = smooth_frames(1, 40, 56)[0]  # uint8 [40, 56, 3], RGB


def _bytes(picture: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def _opencv(picture: np.ndarray, suffix: str) -> bytes:
    return cv2.imencode(suffix, picture)[1].tobytes()


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "PPM", "WEBP"])
def test_lossless_formats_keep_the_pixels(kind: str) -> None:
    options = {"lossless": True} if kind == "WEBP" else {}
    picture = decode_picture(_bytes(Image.fromarray(PICTURE), kind, **options))
    assert picture.flags.c_contiguous
    np.testing.assert_array_equal(picture, PICTURE)


def test_jpeg_equals_pillow() -> None:
    data = _bytes(Image.fromarray(PICTURE), "JPEG", quality=90)
    expected = np.asarray(Image.open(io.BytesIO(data)))
    # Two levels: the two libraries may round the inverse transform and the colors differently.
    assert np.abs(decode_picture(data).astype(int) - expected).max() <= 2


def test_cmyk_is_converted() -> None:
    data = _bytes(Image.fromarray(PICTURE).convert("CMYK"), "JPEG", quality=95)
    expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    assert np.abs(decode_picture(data).astype(int) - expected).max() <= 3


def test_grayscale_palette_and_transparency_become_rgb() -> None:
    gray = PICTURE[..., 0]
    gray_rgb = np.repeat(gray[..., None], 3, axis=2)
    np.testing.assert_array_equal(decode_picture(_bytes(Image.fromarray(gray), "PNG")), gray_rgb)
    palette = Image.fromarray(PICTURE).convert("P")
    np.testing.assert_array_equal(decode_picture(_bytes(palette, "PNG")), np.asarray(palette.convert("RGB")))
    clear = np.dstack([PICTURE, gray])  # the color of transparent pixels is kept
    np.testing.assert_array_equal(decode_picture(_bytes(Image.fromarray(clear), "PNG")), PICTURE)


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_sixteen_bits_become_eight(suffix: str) -> None:
    deep = PICTURE[..., ::-1].astype(np.uint16) * 257  # BGR, as OpenCV writes
    np.testing.assert_array_equal(decode_picture(_opencv(deep, suffix)), PICTURE)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_exif_orientation_is_applied(orientation: int, kind: str) -> None:
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
    for length in (len(jpeg) * 3 // 4, len(jpeg) - 2):
        with pytest.raises(ValueError, match=rf"a JPEG that ends early \({length} bytes\)"):
            decode_picture(jpeg[:length])
    png = _bytes(Image.fromarray(PICTURE), "PNG")
    for data in (png[: len(png) // 2], png[:40], b"no picture", jpeg[:2]):
        with pytest.raises(ValueError, match=r"not a picture, or a damaged one|ends early"):
            decode_picture(data)
    with pytest.raises(ValueError, match=r"empty file \(0 bytes\)"):
        decode_picture(b"")
    if int(cv2.__version__.split(".")[0]) >= 5:  # earlier ones convert it
        floating = _opencv(PICTURE.astype(np.float32) / 255, ".tif")
        with pytest.raises(ValueError, match="not a picture, or a damaged one"):
            decode_picture(floating)


def test_thumbnail_does_not_hide_that_a_jpeg_is_truncated() -> None:
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


def test_declared_size_is_checked_before_decoding() -> None:
    with pytest.raises(ValueError, match=r"a picture of 40000x40000; at most 67,108,864 pixels are read"):
        decode_picture(b"P6 40000 40000 255\n" + bytes(100))


def test_picture_file_beyond_the_limit_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(_bytes(Image.fromarray(PICTURE), "PNG"))
    os.truncate(path, 20 << 30)
    with open_video(path) as video, pytest.raises(VideoReadError, match=r"a\.png: larger than 256 MB"):
        video.read([0])


def test_picture_file_is_a_video_of_one_frame(tmp_path: Path) -> None:
    path = tmp_path / "n01_2.JPEG"  # ImageNet's suffix; some of its files are PNGs
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


def test_pictures_are_recognized_by_their_extension() -> None:
    assert [is_picture(name) for name in ("a/b.JPEG", "x.webp", "x.tif")] == [True] * 3
    assert not any(is_picture(name) for name in ("a.mp4", "jpg", "a/.x.jpg", "x.jpg.txt", "x.gif"))


def write_frame(path: Path, value: int, size: tuple[int, int] = (4, 6)) -> None:
    """A picture of (height, width) 4x6 with ``value`` in its red channel."""
    picture = np.zeros((*size, 3), np.uint8)
    picture[..., 2] = value  # BGR, as OpenCV writes
    assert cv2.imwrite(str(path), picture)


def write_frames(folder: Path, numbers: list[int], *, name: str = "v_{:06d}.png") -> Path:
    folder.mkdir(exist_ok=True)
    for number in numbers:
        write_frame(folder / name.format(number), number)
    return folder


def red(frames: np.ndarray) -> list[int]:
    return frames[:, 0, 0, 0].tolist()


def open_numbered(folder: str) -> FrameFilesReader:
    return FrameFilesReader(frames_in_folder(folder), fps=25.0)


OPEN = pytest.mark.parametrize("open_frames", [FrameFolderReader, open_numbered])


@OPEN
def test_frames_are_in_the_order_of_their_numbers(
    tmp_path: Path, open_frames: Callable[[str], PictureReader]
) -> None:
    write_frames(tmp_path, [8, 9, 11, 10], name="v_{}.png")  # no leading zeros
    (tmp_path / "notes.txt").touch()
    with open_frames(str(tmp_path)) as video:
        fps = 30.0 if open_frames is FrameFolderReader else 25.0
        assert (video.frames, video.fps, video.decoder) == (4, fps, "opencv")
        assert (video.info.width, video.info.height, video.info.codec) == (6, 4, "png")
        assert video.info.duration_seconds == 4 / fps
        assert red(video.read([3, 0, 3, 1])) == [11, 8, 11, 9]
        with pytest.raises(IndexError, match=r"frame 4 is outside 0\.\.3"):
            video.read([4])


def test_frame_files_have_the_paths_of_a_folder_or_a_list(tmp_path: Path) -> None:
    write_frames(tmp_path, [8, 9, 10], name="v_{}.png")
    files = frames_in_folder(str(tmp_path))
    assert list(files) == [f"{tmp_path}/v_{number}.png" for number in (8, 9, 10)]
    listed = FrameFiles.from_paths([f"v_{number}.png" for number in (8, 9, 10)], str(tmp_path))
    assert red(FrameFilesReader(listed, fps=30.0).read([2, 0])) == [10, 8]


@OPEN
def test_unreadable_frames_are_read_errors(
    tmp_path: Path, open_frames: Callable[[str], PictureReader]
) -> None:
    write_frames(tmp_path, [1], name="{}.png")
    (tmp_path / "2.png").write_bytes(b"no picture")
    (tmp_path / "3.png").touch()
    write_frame(tmp_path / "4.png", 1, (8, 9))
    video = open_frames(str(tmp_path))
    for indices, words in (
        ([1], r"2\.png: not a picture, or a damaged one \(10 bytes\)"),
        ([2], r"3\.png: empty file \(0 bytes\)"),
        ([0, 3], r"4\.png is 9x8, others are 6x4"),
    ):
        with pytest.raises(VideoReadError, match=words):
            video.read(indices)


@OPEN
def test_folder_without_frames_is_refused(tmp_path: Path, open_frames: Callable[[str], object]) -> None:
    with pytest.raises(VideoReadError, match="no such folder of frames"):
        open_frames(str(tmp_path / "none"))
    with pytest.raises(VideoReadError, match="no pictures in it, among 0 files"):
        open_frames(str(tmp_path))


SERIES = {
    "flow": ("img_{:05d}.jpg", "flow_x_{:05d}.jpg", "flow_y_{:05d}.jpg"),
    "cover": ("v_{:06d}.png",),
    "directions": ("frame{}.png", "x_{}.png", "y_{}.png"),
}


@pytest.mark.parametrize("kind", SERIES)
def test_only_the_series_of_the_video_is_read(tmp_path: Path, kind: str) -> None:
    for place, name in enumerate(SERIES[kind]):
        for number in range(1, 4):
            write_frame(tmp_path / name.format(number), 100 * place + number)
    write_frame(tmp_path / "cover.png", 250)
    write_frame(tmp_path / "a1.png", 251)
    (tmp_path / "._img_00001.jpg").write_bytes(b"made by macOS")
    (tmp_path / "Thumbs.db").touch()
    with FrameFolderReader(str(tmp_path)) as video:
        assert video.frames == 3
        assert np.abs(video.read([0, 1, 2])[:, 0, 0, 0].astype(int) - [1, 2, 3]).max() <= 1  # as JPEG rounds
    assert len(frames_in_folder(str(tmp_path))) == 3


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (("left_{}.png", "right_{}.png"), r"\(left_N\.png and right_N\.png\)"),
        (("img_{}.png", "img_{}.bmp"), r"\(img_N\.bmp and img_N\.png\)"),
        (("flow_x_{}.png", "flow_y_{}.png"), r"\(flow_x_N\.png and flow_y_N\.png\)"),
    ],
)
@OPEN
def test_several_series_are_refused(
    tmp_path: Path, names: tuple[str, str], words: str, open_frames: Callable[[str], object]
) -> None:
    for name in names:
        write_frames(tmp_path, [1, 2], name=name)
    words = rf"not the frames 1, 2, 3, \.\.\..* {words}; keep one series in the folder"
    with pytest.raises(VideoReadError, match=words):
        open_frames(str(tmp_path))


def test_names_without_a_number_have_no_order(tmp_path: Path) -> None:
    write_frames(tmp_path, [1], name="cover.png")
    with pytest.raises(VideoReadError, match=r"not the frames 1, 2, 3, .* by their names \(cover\.png\)"):
        frames_in_folder(str(tmp_path))


def test_a_gap_and_a_change_of_extension_are_one_series(tmp_path: Path) -> None:
    for number, name in ((1, "img_1.png"), (2, "img_2.bmp"), (5, "img_05.png"), (7, "img_7.png")):
        write_frame(tmp_path / name, number)
    with FrameFolderReader(str(tmp_path)) as video:
        assert red(video.read(range(4))) == [1, 2, 5, 7]


def test_only_flow_is_a_video_too(tmp_path: Path) -> None:
    write_frames(tmp_path, [1, 2], name="flow_x_{}.png")
    assert FrameFolderReader(str(tmp_path)).frames == 2


def test_missing_frame_is_named_and_shifts_no_other(tmp_path: Path) -> None:
    video = FrameFilesReader(frames_in_folder(str(write_frames(tmp_path, [1, 2, 4, 5]))), fps=30.0)
    assert video.frames == 5
    assert red(video.read([1, 3, 4])) == [2, 4, 5]
    words = (
        r"v_000003\.png is missing, frame 2 of 5; frames must have consecutive numbers, 30 per second: "
        "extract them again, or read the video file itself"
    )
    with pytest.raises(VideoReadError, match=words):
        video.read([1, 2, 3])
