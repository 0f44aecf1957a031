"""Reads frames of plain video files with torchcodec, on the CPU or by NVDEC; see `video.open_video`."""

from __future__ import annotations

import importlib
import os
from typing import Any

import numpy as np

from videomaskfeat.data.containers import is_exact_in_decord
from videomaskfeat.data.reader import VideoReadError
from videomaskfeat.data.readers_decord import InexactIndexError, PlainFileReader
from videomaskfeat.errors import UserError

DEVICES = {"torchcodec": "cpu", "torchcodec-cuda": "cuda"}
"""Names of the readers, and the devices that decode."""
_RATE_TOLERANCE = 1e-3  # of the stated frame rate against that of the frames
_ERRORS = (RuntimeError, ValueError, IndexError, OSError, MemoryError)


class TorchcodecReader(PlainFileReader):
    """Reads the plain mp4 and WebM files that `DecordReader` reads, by torchcodec's exact index of frames.

    Frames of the CPU are those of the other readers. NVDEC converts colors itself: its frames may differ by a
    few levels. They are copied to the CPU, where workers crop them.

    Args:
        path: a local file.
        threads: number of decoding threads of the CPU; 0 uses all cores.
        decoder: a key of `DEVICES`.

    Raises:
        InexactIndexError: this is not a plain file, or not a video.
        VideoReadError: torchcodec does not open the file.
        UserError: torchcodec cannot be loaded, or there is no GPU.
    """

    def __init__(self, path: str, *, threads: int = 1, decoder: str = "torchcodec") -> None:
        video_decoder = load_torchcodec(decoder).decoders.VideoDecoder
        self.path, self.decoder = path, decoder
        if not is_exact_in_decord(path):
            raise InexactIndexError(path)
        try:
            # FFmpeg reads the text before a colon in a relative path as a protocol.
            self._decoder: Any = video_decoder(
                os.path.abspath(path),
                dimension_order="NHWC",
                num_ffmpeg_threads=threads,
                device=DEVICES[decoder],
                seek_mode="exact",
            )
        except UnicodeEncodeError as error:
            cause = "torchcodec cannot open files with names that are not UTF-8"
            raise VideoReadError(path, cause) from error
        except _ERRORS as error:
            raise VideoReadError(path, _message(error)) from error
        self.frames = len(self._decoder)
        self.fps = self._frame_rate()

    def close(self) -> None:
        """Release the file and the decoder; may be called twice."""
        self._decoder = None

    def _frame_rate(self) -> float:
        """The stated rate, if it is that of the frames; otherwise the rate of their times."""
        facts = self._decoder.metadata
        stated, measured = facts.average_fps_from_header, facts.average_fps
        if stated and measured and abs(stated - measured) <= _RATE_TOLERANCE * stated:
            return float(stated)
        return self.info.fps

    def _read(self, indices: np.ndarray) -> np.ndarray:
        try:
            frames = self._decoder.get_frames_at(indices.tolist()).data  # uint8 [T, H, W, 3]
            return frames.cpu().numpy()
        except _ERRORS as error:
            raise VideoReadError(self.path, _message(error)) from error


def load_torchcodec(reader: str = "torchcodec") -> Any:
    """The package torchcodec with its decoders.

    Raises:
        UserError: it is not installed, its libraries cannot be loaded, or the GPU that the reader needs is
            missing.
    """
    try:
        package = importlib.import_module("torchcodec")
        importlib.import_module("torchcodec.decoders")
    except ModuleNotFoundError as error:
        raise UserError(
            f"reader {reader!r} is not installed; pip install 'videomaskfeat[torchcodec]', or set "
            "data.reader=auto"
        ) from error
    except (ImportError, OSError, RuntimeError) as error:
        raise UserError(
            f"reader {reader!r} cannot be loaded: {_message(error)}; it needs the torchcodec of this torch "
            "version and build, and the shared libraries of FFmpeg 4 to 8 (see torchcodec's README); or set "
            "data.reader=auto"
        ) from error
    if DEVICES[reader] == "cuda":
        import torch

        if not torch.cuda.is_available():
            raise UserError(f"reader {reader!r}: there is no GPU; use 'torchcodec', or set data.reader=auto")
    return package


def _message(error: BaseException) -> str:
    """The first line of an error, or of the error that caused it, which names the missing library."""
    cause = error.__cause__ if isinstance(error.__cause__, OSError) else error
    lines = str(cause).strip().splitlines()
    return f"torchcodec: {lines[0].strip()}" if lines else f"torchcodec: {type(error).__name__}"
