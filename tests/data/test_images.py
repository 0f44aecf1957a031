"""Single pictures: every kind decodes to the same RGB, turned as EXIF says, and damage is named."""

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
from videomaskfeat.data.frames import ImageReader, decode_picture, is_picture
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
        with pytest.raises(ValueError, match=r"no picture, or a damaged one|ends early"):
            decode_picture(data)
    with pytest.raises(ValueError, match=r"empty file \(0 bytes\)"):
        decode_picture(b"")
    floating = _opencv(PICTURE.astype(np.float32) / 255, ".tif")
    with pytest.raises(ValueError, match="no picture, or a damaged one"):
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
            assert [(index, frame.shape) for index, frame in video.each([0])] == [(0, (40, 56, 3))]
            with pytest.raises(IndexError, match=r"frame 1 is outside 0\.\.0"):
                video.read([1])
    np.testing.assert_array_equal(frames, np.stack([PICTURE, PICTURE]))


def test_missing_and_damaged_files_are_read_errors(tmp_path: Path) -> None:
    with pytest.raises(VideoReadError, match=r"gone\.png: no such file"):
        open_video(tmp_path / "gone.png")
    (tmp_path / "bad.jpg").write_bytes(b"words")
    with (
        pytest.raises(VideoReadError, match=r"bad\.jpg: no picture, or a damaged one \(5 bytes\)"),
        ImageReader(str(tmp_path / "bad.jpg")) as video,
    ):
        video.read([0])


def test_pictures_are_told_by_their_suffix() -> None:
    assert [is_picture(name) for name in ("a/b.JPEG", "x.webp", "x.tif")] == [True] * 3
    assert not any(is_picture(name) for name in ("a.mp4", "jpg", "a/.x.jpg", "x.jpg.txt", "x.gif"))
