"""Single pictures: a file as a video of one frame, and how pictures of every kind are decoded."""

from __future__ import annotations

import os

import cv2
import numpy as np

from videomaskfeat.data.reader import VideoInfo, VideoReader, VideoReadError
from videomaskfeat.errors import UserError
from videomaskfeat.io import is_file, open_file

PICTURE_SUFFIXES = frozenset((".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"))
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
            raise VideoReadError(path, "no such file")

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
            with open_file(self.path, "rb") as file:
                data = file.read()
        except (OSError, UserError) as error:
            raise VideoReadError(self.path, f"cannot be opened ({error})") from error
        try:
            return decode_picture(data)
        except ValueError as error:
            raise VideoReadError(self.path, str(error)) from error


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
    try:
        picture = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    except cv2.error as error:  # more pixels than OpenCV's limit, for one
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
