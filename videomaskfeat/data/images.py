"""Single pictures: a file as a video of one frame, and how pictures of every kind are decoded."""

from __future__ import annotations

import os
import re
import struct

import cv2
import numpy as np

from videomaskfeat.data.reader import NOT_REGULAR, VideoInfo, VideoReader, VideoReadError
from videomaskfeat.errors import UserError
from videomaskfeat.io import exists, is_file, open_file

PICTURE_SUFFIXES = frozenset((".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"))
_LARGEST_FILE = 256 << 20  # bytes
_MOST_PIXELS = 8192 * 8192  # a declared size is cheap to write, and what is decoded takes 3 bytes per pixel
_JPEG_START, _JPEG_SCAN, _JPEG_END = b"\xff\xd8", b"\xff\xda", b"\xff\xd9"


class ImageReader(VideoReader):
    """A picture file as a video of one frame."""

    decoder = "opencv"
    frames = 1
    fps = 30.0  # of no consequence: there is one frame

    def __init__(self, path: str) -> None:
        """Look for the file; it is decoded when it is read.

        Args:
            path: of the picture.

        Raises:
            VideoReadError: there is no such file.
        """
        self.path = path
        if not is_file(path):
            raise VideoReadError(path, NOT_REGULAR if exists(path) else "no such file")

    @property
    def info(self) -> VideoInfo:
        """All facts; decodes the picture. A turn that the file asks for has been made and is not told."""
        height, width = self._picture().shape[:2]
        return VideoInfo(
            path=self.path,
            frames=1,
            fps=self.fps,
            duration_seconds=1 / self.fps,
            width=width,
            height=height,
            rotation_degrees=0,
            codec=picture_codec(self.path),
            variable_frame_rate=False,
        )

    def close(self) -> None:
        """Nothing is kept open."""

    def _read(self, indices: np.ndarray) -> np.ndarray:
        return np.repeat(self._picture()[None], len(indices), axis=0)  # [T, H, W, 3]

    def _picture(self) -> np.ndarray:
        """uint8 [H, W, 3], RGB."""
        try:
            return load_picture(self.path)
        except ValueError as error:
            raise VideoReadError(self.path, str(error)) from error


def load_picture(path: str) -> np.ndarray:
    """Read and decode a picture file, as ``decode_picture`` does.

    Returns:
        uint8 [H, W, 3], RGB.

    Raises:
        ValueError: the file cannot be read, or is not a picture; the message is a short phrase for people.
    """
    if exists(path) and not is_file(path):
        raise ValueError(NOT_REGULAR)
    try:
        with open_file(path, "rb") as file:
            data = file.read(_LARGEST_FILE + 1)
    except (OSError, UserError) as error:
        raise ValueError(f"cannot be opened ({error})") from error
    if len(data) > _LARGEST_FILE:
        raise ValueError(f"larger than {_LARGEST_FILE >> 20} MB")
    return decode_picture(data)


def decode_picture(data: bytes) -> np.ndarray:
    """Decode a picture of any kind that OpenCV knows; what it is, its bytes say, and not its name.

    Grey levels and palettes become RGB, CMYK is converted, 16 bits a channel become 8, transparency is
    dropped, and the picture is turned as its EXIF orientation asks for.

    Large JPEGs are decoded in full: the decoder's own reduced sizes are averages over pixels, which differ
    from a resized full picture wherever there is detail.

    Returns:
        uint8 [H, W, 3], RGB.

    Raises:
        ValueError: it is none, or damaged; the message is a short phrase for people.
    """
    if not data:
        raise ValueError("empty file (0 bytes)")
    if _is_cut_off(data):
        raise ValueError(f"a JPEG that ends early ({len(data)} bytes)")
    width, height = _declared_size(data)
    if width * height > _MOST_PIXELS:
        raise ValueError(f"a picture of {width}x{height}; at most {_MOST_PIXELS:,} pixels are read")
    try:
        picture = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    except cv2.error as error:  # not enough memory, for one
        raise ValueError(f"OpenCV refuses it ({error.err})") from error
    if picture is None:
        raise ValueError(f"no picture, or a damaged one ({len(data)} bytes)")
    return cv2.cvtColor(picture, cv2.COLOR_BGR2RGB, dst=picture)


def is_picture(name: str) -> bool:
    """Whether a file is a picture by its name; hidden ones (a leading dot) are none."""
    base = os.path.basename(name)
    return os.path.splitext(base)[1].lower() in PICTURE_SUFFIXES and not base.startswith(".")


def picture_codec(name: str) -> str:
    """What a picture of this name is coded with, in FFmpeg's words where the suffix has another."""
    suffix = os.path.splitext(name)[1].lower()[1:]
    return {"jpg": "mjpeg", "jpeg": "mjpeg", "tif": "tiff"}.get(suffix, suffix)


def _is_cut_off(data: bytes) -> bool:
    """Whether a JPEG lacks its end; OpenCV before 5 fills the rest with grey and says nothing.

    Neither mark can occur inside the coded pixels, and a thumbnail with marks of its own comes before them.
    """
    if not data.startswith(_JPEG_START):
        return False
    return data.find(_JPEG_END, data.rfind(_JPEG_SCAN) + 1) < 0


def _declared_size(data: bytes) -> tuple[int, int]:
    """(width, height) by a picture's header; (0, 0) if the kind is another or the header is damaged."""
    try:
        if data.startswith(b"\x89PNG"):
            return struct.unpack_from(">II", data, 16)
        if data.startswith(b"BM"):
            width, height = struct.unpack_from("<ii", data, 18)
            return abs(width), abs(height)
        if data.startswith(_JPEG_START):
            return _jpeg_size(data)
        if data[:4] in (b"II*\0", b"MM\0*"):
            return _tiff_size(data, "<" if data[:1] == b"I" else ">")
        if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
            return _webp_size(data)
        numbers = re.match(rb"P[1-6](?:\s+|#[^\n]*\n)+(\d{1,10})(?:\s+|#[^\n]*\n)+(\d{1,10})", data[:1000])
        return (int(numbers[1]), int(numbers[2])) if numbers else (0, 0)
    except struct.error:
        return 0, 0


def _jpeg_size(data: bytes) -> tuple[int, int]:
    """By the first start-of-frame segment; each segment begins with its length."""
    position = 2
    while data[position : position + 1] == b"\xff":
        kind, length = struct.unpack_from(">BH", data, position + 1)
        if 0xC0 <= kind <= 0xCF and kind not in (0xC4, 0xC8, 0xCC):
            height, width = struct.unpack_from(">HH", data, position + 5)
            return width, height
        # Fill bytes and restart marks stand alone.
        position += 1 if kind == 0xFF else 2 if 0xD0 <= kind <= 0xD9 else 2 + length
    return 0, 0


def _tiff_size(data: bytes, order: str) -> tuple[int, int]:
    """By the tags 256 and 257 of the first directory, which are 16 or 32 bits wide."""
    directory = struct.unpack_from(order + "I", data, 4)[0]
    sizes = {256: 0, 257: 0}
    for place in range(struct.unpack_from(order + "H", data, directory)[0]):
        entry = directory + 2 + 12 * place
        tag, form = struct.unpack_from(order + "HH", data, entry)
        if tag in sizes:
            sizes[tag] = struct.unpack_from(order + ("H" if form == 3 else "I"), data, entry + 8)[0]
    return sizes[256], sizes[257]


def _webp_size(data: bytes) -> tuple[int, int]:
    """By the first chunk: extended, lossless or lossy."""
    if data[12:16] == b"VP8X":
        return 1 + int.from_bytes(data[24:27], "little"), 1 + int.from_bytes(data[27:30], "little")
    if data[12:16] == b"VP8L":
        bits = struct.unpack_from("<I", data, 21)[0]
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    width, height = struct.unpack_from("<HH", data, 26)
    return width & 0x3FFF, height & 0x3FFF
