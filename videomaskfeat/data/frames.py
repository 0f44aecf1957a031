"""Decoding of pictures, and picture files and folders of frames read like a video."""

from __future__ import annotations

import os
import re
import struct
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import cv2
import numpy as np

from videomaskfeat.data.frame_lists import FrameFiles
from videomaskfeat.data.reader import NOT_REGULAR, VideoInfo, VideoReader, VideoReadError, is_picture
from videomaskfeat.errors import UserError
from videomaskfeat.io import exists, is_file, list_folder, open_file

_LARGEST_FILE = 256 << 20  # bytes
_MOST_PIXELS = 8192 * 8192  # a small file can declare any size, and decoding needs 3 bytes per pixel
_JPEG_START, _JPEG_SCAN, _JPEG_END = b"\xff\xd8", b"\xff\xda", b"\xff\xd9"
EXTRACTED_FPS = 30.0  # of the frames in published lists; the files do not store it


def load_picture(path: str) -> np.ndarray:
    """Read and decode a picture file, with the result and errors of `decode_picture`."""
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
    """Decode a picture of any format that OpenCV supports: uint8 [H, W, 3], RGB.

    Grayscale, palettes and CMYK are converted to RGB, 16 bits per channel to 8 bits; transparency is dropped,
    and the EXIF orientation is applied. Large JPEGs are decoded at full size: the decoder's reduced sizes are
    averages, which differ from a resized picture in its details.

    Raises:
        ValueError: not a picture, or damaged; the message is a short phrase.
    """
    if not data:
        raise ValueError("empty file (0 bytes)")
    if _is_truncated(data):
        raise ValueError(f"a JPEG that ends early ({len(data)} bytes)")
    width, height = _declared_size(data)
    if width * height > _MOST_PIXELS:
        raise ValueError(f"a picture of {width}x{height}; at most {_MOST_PIXELS:,} pixels are read")
    try:
        picture = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    except cv2.error as error:  # such as not enough memory
        raise ValueError(f"OpenCV fails to decode it ({error.err})") from error
    if picture is None:
        raise ValueError(f"not a picture, or a damaged one ({len(data)} bytes)")
    return cv2.cvtColor(picture, cv2.COLOR_BGR2RGB, dst=picture)


def _is_truncated(data: bytes) -> bool:
    """Whether the end of a JPEG is missing; OpenCV before 5 silently fills the rest with gray.

    Neither marker can occur inside the coded pixels, and a thumbnail with markers of its own precedes them.
    """
    return data.startswith(_JPEG_START) and data.find(_JPEG_END, data.rfind(_JPEG_SCAN) + 1) < 0


def _declared_size(data: bytes) -> tuple[int, int]:
    """(width, height) in a picture's header; (0, 0) if the format is unknown or the header is damaged."""
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
    """In the first start-of-frame segment; each segment begins with its length."""
    position = 2
    while data[position : position + 1] == b"\xff":
        kind, length = struct.unpack_from(">BH", data, position + 1)
        if 0xC0 <= kind <= 0xCF and kind not in (0xC4, 0xC8, 0xCC):
            height, width = struct.unpack_from(">HH", data, position + 5)
            return width, height
        # Fill bytes and restart markers have no content.
        position += 1 if kind == 0xFF else 2 if 0xD0 <= kind <= 0xD9 else 2 + length
    return 0, 0


def _tiff_size(data: bytes, order: str) -> tuple[int, int]:
    """In the tags 256 and 257 of the first directory, with 16 or 32 bits."""
    directory = struct.unpack_from(order + "I", data, 4)[0]
    sizes = {256: 0, 257: 0}
    for place in range(struct.unpack_from(order + "H", data, directory)[0]):
        entry = directory + 2 + 12 * place
        tag, number_type = struct.unpack_from(order + "HH", data, entry)
        if tag in sizes:
            sizes[tag] = struct.unpack_from(order + ("H" if number_type == 3 else "I"), data, entry + 8)[0]
    return sizes[256], sizes[257]


def _webp_size(data: bytes) -> tuple[int, int]:
    """In the first chunk: extended, lossless or lossy."""
    if data[12:16] == b"VP8X":
        return 1 + int.from_bytes(data[24:27], "little"), 1 + int.from_bytes(data[27:30], "little")
    if data[12:16] == b"VP8L":
        bits = struct.unpack_from("<I", data, 21)[0]
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    width, height = struct.unpack_from("<HH", data, 26)
    return width & 0x3FFF, height & 0x3FFF


# A name: the text before the last number, the number, the rest.
NUMBERED = re.compile(r"(.*?)(\d+)([^\d]*)", re.DOTALL)
# Series computed from a video, by their letters.
_DERIVED = frozenset(("depth", "flow", "flowx", "flowy", "mask", "seg"))
_DERIVED_PAIRS = (frozenset("xy"), frozenset("uv"))  # if both exist: the two directions of optical flow


def choose_frames(names: Sequence[str]) -> list[str]:
    """The names of a video's frames among those of a folder's pictures, in the given order.

    Raises:
        ValueError: there are several series; the message is a phrase that names them.
    """
    # By the text before the last number, whatever numbers (as of a scene) it contains.
    series: dict[str, list[tuple[str, str, str]]] = defaultdict(list)
    heads = list[str]()
    for name in names:
        match = NUMBERED.fullmatch(name)
        heads.append(re.sub(r"\d+", "N", match[1]) if match else name)
        if match:
            series[heads[-1]].append((match[1], match[3], match[2]))
    letters = {head: re.sub(r"[\W_]", "", head).lower() for head in series}
    derived = _DERIVED.union(*(pair for pair in _DERIVED_PAIRS if pair.issubset(letters.values())))
    skipped = {head for head in series if letters[head] in derived}
    if len(skipped) == len(series):
        skipped = set()
    several = [head for head in series if head not in skipped and len(series[head]) > 1]
    kinds = [f"{head}N{series[head][0][1]}" for head in several]
    if len(several) == 1:  # repeated numbers, such as img_1.jpg and img_1.png
        members = series[several[0]]
        if len({(head, int(number)) for head, _, number in members}) < len(members):
            kinds = [f"{several[0]}N{tail}" for tail in dict.fromkeys(tail for _, tail, _ in members)]
    if len(kinds) > 1:
        raise ValueError(
            "its pictures are not the frames 1, 2, 3, ... of one video, by their names "
            f"({' and '.join(sorted(kinds)[:4])}); keep one series in the folder"
        )
    if several:
        return [name for name, head in zip(names, heads, strict=True) if head == several[0]]
    return [name for name, head in zip(names, heads, strict=True) if head not in skipped]


class PictureReader(VideoReader):
    """Picture files as the frames of a video; a file is opened when its frame is read.

    Args:
        path: path of the video, for messages.
        files: one path per frame.
        fps: frames per second at which the frames were extracted.
    """

    decoder = "opencv"

    def __init__(self, path: str, files: Sequence[str], *, fps: float = EXTRACTED_FPS) -> None:
        self.path, self.frames, self.fps = path, len(files), fps
        self._files = files

    @property
    def info(self) -> VideoInfo:
        extension = os.path.splitext(self._files[0])[1].lower()[1:]
        codec = {"jpg": "mjpeg", "jpeg": "mjpeg", "tif": "tiff"}.get(extension, extension)
        return self._picture_info(self._picture(0), codec)

    def close(self) -> None:
        """Do nothing: no file is open."""

    def _read(self, indices: np.ndarray) -> np.ndarray:
        unique, places = np.unique(indices, return_inverse=True)
        pictures = [self._picture(int(index)) for index in unique]
        height, width = pictures[0].shape[:2]
        for index, picture in zip(unique, pictures, strict=True):
            if picture.shape != pictures[0].shape:
                size = f"{picture.shape[1]}x{picture.shape[0]}"
                name = os.path.basename(self._files[int(index)])
                raise VideoReadError(self.path, f"{name} is {size}, others are {width}x{height}")
        return np.stack([pictures[place] for place in places])  # [T, H, W, 3]

    def _picture(self, index: int) -> np.ndarray:
        """Frame ``index``, uint8 [H, W, 3], RGB."""
        try:
            return load_picture(self._files[index])
        except ValueError as error:
            raise VideoReadError(self.path, self._cause(index, error)) from error

    def _cause(self, index: int, error: ValueError) -> str:
        """Why a frame cannot be read."""
        return f"{os.path.basename(self._files[index])}: {error}"


class ImageReader(PictureReader):
    """A picture file as a video of one frame.

    Raises:
        VideoReadError: there is no such file.
    """

    def __init__(self, path: str) -> None:
        super().__init__(path, [path])
        if not is_file(path):
            raise VideoReadError(path, NOT_REGULAR if exists(path) else "no such file")

    def _cause(self, index: int, error: ValueError) -> str:
        return str(error)


class FrameFilesReader(PictureReader):
    """Frames with consecutive numbers; reading a missing one is an error."""

    def __init__(self, files: FrameFiles, *, fps: float) -> None:
        super().__init__(os.path.dirname(files[0]), files, fps=fps)

    def _cause(self, index: int, error: ValueError) -> str:
        if exists(self._files[index]):
            return super()._cause(index, error)
        return (
            f"{os.path.basename(self._files[index])} is missing, frame {index} of {self.frames}; frames must "
            f"have consecutive numbers, {self.fps:g} per second: extract them again, or read the video file "
            "itself"
        )


class FrameFolderReader(PictureReader):
    """The pictures of a folder as a video.

    Frames are in natural order of their names: ``f2`` precedes ``f10``. Other files are skipped, and so is
    optical flow (see ``choose_frames``).

    Raises:
        VideoReadError: the folder does not exist, or has no picture or several series of pictures.
    """

    def __init__(self, path: str) -> None:
        super().__init__(path, [os.path.join(path, name) for name in _series_in(path, key=_natural_key)])


def _series_in(folder: str, key: Callable[[str], Any] | None = None) -> list[str]:
    """The names of a video's frames in a folder, sorted."""
    try:
        names = list_folder(folder)
    except OSError as error:
        raise VideoReadError(folder, f"no such folder of frames ({type(error).__name__})") from error
    pictures = [name for name in names if is_picture(name)]
    if not pictures:
        raise VideoReadError(folder, f"no pictures in it, among {len(names)} files")
    try:
        return choose_frames(sorted(pictures, key=key))
    except ValueError as error:
        raise VideoReadError(folder, str(error)) from error


def _natural_key(name: str) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]


def frames_in_folder(folder: str) -> FrameFiles:
    """The frames in a folder, by the number at the end of their names, from the first to the last.

    A number without a file counts as a frame: reading it reports that it is missing. Other files are skipped,
    and so is optical flow (see ``choose_frames``).

    Raises:
        VideoReadError: the folder does not exist or has no picture, or the names are not numbers of one
            series.
    """
    names = _series_in(folder)
    matches = [NUMBERED.fullmatch(name) for name in names]
    kinds = {
        (match[1], match[3]) if match else (name, "") for name, match in zip(names, matches, strict=True)
    }
    if None in matches or len(kinds) > 1:
        shown = " and ".join(f"{head}N{tail}" if tail else head for head, tail in sorted(kinds)[:2])
        raise VideoReadError(
            folder, f"its pictures are not the frames 1, 2, 3, ... of one video, by their names ({shown})"
        )
    numbers = [match[2] for match in matches if match]
    first, last = min(map(int, numbers)), max(map(int, numbers))
    head, tail = next(iter(kinds))
    return FrameFiles(folder, head, tail, first, min(map(len, numbers)), last - first + 1)
