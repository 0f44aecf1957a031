"""Videos that were extracted into folders, one picture a frame."""

from __future__ import annotations

import os
import re

import numpy as np

from videomaskfeat.data.frame_series import choose_frames
from videomaskfeat.data.images import is_picture, load_picture, picture_codec
from videomaskfeat.data.reader import VideoInfo, VideoReader, VideoReadError
from videomaskfeat.io import list_folder

_DIGITS = re.compile(r"(\d+)")


class FrameFolderReader(VideoReader):
    """The pictures of a folder as a video.

    Frames are numbered from 0 in the order of the names, whose numbers count as numbers: ``f2`` comes before
    ``f10``. Files that are no pictures are left out, and so is optical flow (see ``frame_series``).
    """

    decoder = "opencv"
    fps = 30.0  # at which the published lists' frames were extracted; the files do not tell

    def __init__(self, path: str) -> None:
        """List the folder; no picture is read.

        Args:
            path: the folder.

        Raises:
            VideoReadError: there is no such folder, or no picture in it, or several series of pictures.
        """
        self.path = path
        try:
            names = list_folder(path)
        except OSError as error:
            raise VideoReadError(path, f"no such folder of frames ({type(error).__name__})") from error
        pictures = sorted((name for name in names if is_picture(name)), key=_natural)
        if not pictures:
            raise VideoReadError(path, f"no pictures among its {len(names)} files")
        try:
            self._names = choose_frames(pictures)
        except ValueError as error:
            raise VideoReadError(path, str(error)) from error
        self.frames = len(self._names)

    @property
    def info(self) -> VideoInfo:
        """All facts; reads the first picture."""
        first = self._picture(0)
        return VideoInfo(
            path=self.path,
            frames=self.frames,
            fps=self.fps,
            duration_seconds=self.frames / self.fps,
            width=first.shape[1],
            height=first.shape[0],
            rotation_degrees=0,
            codec=picture_codec(self._names[0]),
            variable_frame_rate=False,
        )

    def close(self) -> None:
        """Nothing is kept open."""

    def _read(self, indices: np.ndarray) -> np.ndarray:
        wanted, places = np.unique(indices, return_inverse=True)
        pictures = [self._picture(int(index)) for index in wanted]
        for index, picture in zip(wanted, pictures, strict=True):
            if picture.shape != pictures[0].shape:
                raise VideoReadError(
                    self.path,
                    f"{self._names[index]} is {picture.shape[1]}x{picture.shape[0]}, others are "
                    f"{pictures[0].shape[1]}x{pictures[0].shape[0]}",
                )
        return np.stack([pictures[place] for place in places])  # [T, H, W, 3]

    def _picture(self, index: int) -> np.ndarray:
        """Frame ``index``, uint8 [H, W, 3], RGB."""
        name = self._names[index]
        try:
            return load_picture(os.path.join(self.path, name))
        except ValueError as error:
            raise VideoReadError(self.path, f"{name}: {error}") from error


def _natural(name: str) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdigit() else (-1, part) for part in _DIGITS.split(name)]
