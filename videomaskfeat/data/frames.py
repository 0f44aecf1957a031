"""Pictures: how they are decoded, and files and folders of them read like a video."""

from __future__ import annotations

import os
import re
import struct
from collections import defaultdict
from collections.abc import Sequence

import cv2
import numpy as np

from videomaskfeat.data.frame_lists import FrameFiles
from videomaskfeat.data.reader import NOT_REGULAR, VideoInfo, VideoReader, VideoReadError
from videomaskfeat.errors import UserError
from videomaskfeat.io import exists, is_file, list_folder, open_file

PICTURE_SUFFIXES = frozenset((".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"))
_LARGEST_FILE = 256 << 20  # bytes
_MOST_PIXELS = 8192 * 8192  # a declared size is cheap to write, and what is decoded takes 3 bytes per pixel
_JPEG_START, _JPEG_SCAN, _JPEG_END = b"\xff\xd8", b"\xff\xda", b"\xff\xd9"
EXTRACTED_FPS = 30.0  # of the published lists' frames; the files do not tell


def load_picture(path: str) -> np.ndarray:
    """Read and decode a picture file, with the results and errors of `decode_picture`."""
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
    """Decode a picture of any kind that OpenCV knows (by its bytes, not its name): uint8 [H, W, 3], RGB.

    Gray levels and palettes become RGB, CMYK is converted, 16 bits per channel become 8, transparency is
    dropped, and the picture is turned as its EXIF orientation says. Large JPEGs are decoded in full: the
    decoder's own reduced sizes are averages, which differ from a resized picture wherever there is detail.

    Raises:
        ValueError: not a picture, or damaged; the message is a short phrase.
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


# In a name: what precedes the last number, the number, the rest.
NUMBERED = re.compile(r"(.*?)(\d+)([^\d]*)", re.DOTALL)
# Series made from a video, by their letters.
_MADE = frozenset(("depth", "flow", "flowx", "flowy", "mask", "seg"))
_PAIRS = (frozenset("xy"), frozenset("uv"))  # the same, if both are there: the two directions of optical flow


def choose_frames(names: Sequence[str]) -> list[str]:
    """The names of a video's frames among those of the pictures of a folder, in the order given.

    Raises:
        ValueError: they are several series; the message is a phrase that names them.
    """
    # By what precedes the number. Numbers before the last one, as of a scene, do not make another series.
    series: dict[str, list[tuple[str, str, str]]] = defaultdict(list)
    heads = list[str]()
    for name in names:
        parts = NUMBERED.fullmatch(name)
        heads.append(re.sub(r"\d+", "N", parts[1]) if parts else name)
        if parts:
            series[heads[-1]].append((parts[1], parts[3], parts[2]))
    letters = {head: re.sub(r"[\W_]", "", head).lower() for head in series}
    made = _MADE.union(*(pair for pair in _PAIRS if pair.issubset(letters.values())))
    left_out = {head for head in series if letters[head] in made}
    if len(left_out) == len(series):
        left_out = set()
    several = [head for head in series if head not in left_out and len(series[head]) > 1]
    kinds = [f"{head}N{series[head][0][1]}" for head in several]
    if len(several) == 1:  # the same numbers twice, as img_1.jpg and img_1.png
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
    return [name for name, head in zip(names, heads, strict=True) if head not in left_out]


class PictureReader(VideoReader):
    """Picture files as the frames of a video; only the wanted ones are opened, when they are read.

    Args:
        path: of the video, for messages.
        files: a path per frame.
        fps: frames per second at which they were extracted.
    """

    decoder = "opencv"

    def __init__(self, path: str, files: Sequence[str], *, fps: float = EXTRACTED_FPS) -> None:
        self.path, self.frames, self.fps = path, len(files), fps
        self._files = files

    @property
    def info(self) -> VideoInfo:
        return self._picture_info(self._picture(0), picture_codec(self._files[0]))

    def close(self) -> None:
        """Nothing is kept open."""

    def _read(self, indices: np.ndarray) -> np.ndarray:
        wanted, places = np.unique(indices, return_inverse=True)
        pictures = [self._picture(int(index)) for index in wanted]
        height, width = pictures[0].shape[:2]
        for index, picture in zip(wanted, pictures, strict=True):
            if picture.shape != pictures[0].shape:
                own = f"{picture.shape[1]}x{picture.shape[0]}"
                name = os.path.basename(self._files[int(index)])
                raise VideoReadError(self.path, f"{name} is {own}, others are {width}x{height}")
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
    """Frames whose names count on; one that is missing is an error, and not its neighbor."""

    def __init__(self, files: FrameFiles, *, fps: float) -> None:
        super().__init__(os.path.dirname(files[0]), files, fps=fps)

    def _cause(self, index: int, error: ValueError) -> str:
        if exists(self._files[index]):
            return super()._cause(index, error)
        return (
            f"{os.path.basename(self._files[index])} is missing, frame {index} of {self.frames}; frames "
            f"count on without a gap, {self.fps:g} a second: extract them again, or read the video file "
            "itself"
        )


class FrameFolderReader(PictureReader):
    """The pictures of a folder as a video.

    Frames are numbered from 0 in the order of the names, whose numbers count as numbers: ``f2`` comes before
    ``f10``. Files that are no pictures are left out, and so is optical flow (see ``choose_frames``).

    Raises:
        VideoReadError: there is no such folder, or no picture in it, or several series of pictures.
    """

    def __init__(self, path: str) -> None:
        names = sorted(_pictures_in(path), key=_natural)
        super().__init__(path, [os.path.join(path, name) for name in _one_series(path, names)])


def _pictures_in(folder: str) -> list[str]:
    """The names of the pictures in a folder, at least one; VideoReadError if there is none."""
    try:
        names = list_folder(folder)
    except OSError as error:
        raise VideoReadError(folder, f"no such folder of frames ({type(error).__name__})") from error
    pictures = [name for name in names if is_picture(name)]
    if not pictures:
        raise VideoReadError(folder, f"no pictures in it, among {len(names)} files")
    return pictures


def _one_series(folder: str, names: Sequence[str]) -> list[str]:
    try:
        return choose_frames(names)
    except ValueError as error:
        raise VideoReadError(folder, str(error)) from error


def _natural(name: str) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]


def frames_in_folder(folder: str) -> FrameFiles:
    """The frames in a folder, by the number at the end of their names, from the first to the last.

    A number between them that no file has is a frame all the same: reading it reports that it is missing.
    Other files are left out, and so is optical flow (see ``choose_frames``).

    Raises:
        VideoReadError: there is no such folder, no picture in it, or names that are not numbers of one
        series.
    """
    names = _one_series(folder, _pictures_in(folder))
    parts = [NUMBERED.fullmatch(name) for name in names]
    kinds = {(part[1], part[3]) if part else (name, "") for name, part in zip(names, parts, strict=True)}
    if None in parts or len(kinds) > 1:
        shown = " and ".join(f"{head}N{tail}" if tail else head for head, tail in sorted(kinds)[:2])
        raise VideoReadError(
            folder, f"its pictures are not the frames 1, 2, 3, ... of one video, by their names ({shown})"
        )
    numbers = [part[2] for part in parts if part]
    first, last = min(map(int, numbers)), max(map(int, numbers))
    head, tail = next(iter(kinds))
    return FrameFiles(folder, head, tail, first, min(map(len, numbers)), last - first + 1)
