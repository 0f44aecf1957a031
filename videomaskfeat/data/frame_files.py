"""The extracted frames of a video, file by file, read like a video."""

from __future__ import annotations

import os

import numpy as np

from videomaskfeat.data.frame_series import NUMBERED, choose_frames
from videomaskfeat.data.images import is_picture, load_picture, picture_codec
from videomaskfeat.data.reader import VideoInfo, VideoReader, VideoReadError
from videomaskfeat.data.readers_timed import check_size
from videomaskfeat.data.records_frames import FrameFiles
from videomaskfeat.io import exists, list_folder


class FrameFilesReader(VideoReader):
    """Frames whose names count on; one that is missing is an error, and not its neighbour.

    Only the wanted files are opened, and none is looked for before.
    """

    decoder = "opencv"

    def __init__(self, files: FrameFiles, *, fps: float) -> None:
        """Keep the names.

        Args:
            files: a path a frame.
            fps: frames a second at which they were extracted.
        """
        self.path = os.path.dirname(files[0])
        self.frames, self.fps = len(files), fps
        self._files = files

    @property
    def info(self) -> VideoInfo:
        """All facts; reads the first picture."""
        height, width = self._picture(0).shape[:2]
        return VideoInfo(
            path=self.path,
            frames=self.frames,
            fps=self.fps,
            duration_seconds=self.frames / self.fps,
            width=width,
            height=height,
            rotation_degrees=0,
            codec=picture_codec(self._files[0]),
            variable_frame_rate=False,
        )

    def close(self) -> None:
        """Nothing is kept open."""

    def _read(self, indices: np.ndarray) -> np.ndarray:
        wanted, places = np.unique(indices, return_inverse=True)
        pictures = [self._picture(int(index)) for index in wanted]
        for picture in pictures:
            check_size(self.path, picture, pictures[0].shape[:2])
        return np.stack([pictures[place] for place in places])  # [T, H, W, 3]

    def _picture(self, index: int) -> np.ndarray:
        """Frame ``index``, uint8 [H, W, 3], RGB."""
        path = self._files[index]
        name = os.path.basename(path)
        try:
            return load_picture(path)
        except ValueError as error:
            if not exists(path):
                raise VideoReadError(
                    self.path,
                    f"{name} is missing, frame {index} of {self.frames}; frames count on without a gap, "
                    f"{self.fps:g} a second: extract them again, or read the video file itself",
                ) from error
            raise VideoReadError(self.path, f"{name}: {error}") from error


def frames_in_folder(folder: str) -> FrameFiles:
    """The frames in a folder, by the number at the end of their names, from the first to the last.

    A number between them that no file has is a frame all the same: reading it says that it is missing.

    Args:
        folder: its pictures; other files are left out, and so is optical flow (see ``frame_series``).

    Raises:
        VideoReadError: there is no such folder, or no picture in it, or one has no number, or another name
            before it.
    """
    try:
        names = [name for name in list_folder(folder) if is_picture(name)]
    except OSError as error:
        raise VideoReadError(folder, f"no such folder of frames ({type(error).__name__})") from error
    if not names:
        raise VideoReadError(folder, "no pictures in it")
    try:
        names = choose_frames(names)
    except ValueError as error:
        raise VideoReadError(folder, str(error)) from error
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
