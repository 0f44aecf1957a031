"""Clips around many key frames of one video in one pass over it: no picture is decoded or resized twice."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from videomaskfeat.data.reader import VideoReadError
from videomaskfeat.data.readers_timed import TimedReader, check_size
from videomaskfeat.data.sampling import key_frame_seconds
from videomaskfeat.data.transforms import ClipGeometry, ClipTransform

_KEY_FRAMES_A_PASS = 32  # a pass holds the packets of its stretch: some 30 s, where a key frame is a second


@dataclass(frozen=True)
class KeyClip:
    """A key frame and the clip around it.

    Attributes:
        number: which of the key frames it is.
        clip: uint8 [T, h, w, 3].
        picture: the key frame as displayed, uint8 [H, W, 3].
        geometry: from pixels of the picture to those of the clip.
    """

    number: int
    clip: np.ndarray
    picture: np.ndarray
    geometry: ClipGeometry


def key_clips(
    video: TimedReader,
    key_seconds: np.ndarray,
    *,
    frames: int,
    stride: float,
    target_fps: float | None = 30.0,
    transform: ClipTransform,
) -> Iterator[KeyClip]:
    """Cut the clips around key frames out of a video.

    Args:
        video: open.
        key_seconds: float [n] after the first picture, ascending.
        frames: in a clip, T.
        stride: from one picture of a clip to the next, in frames at ``target_fps``.
        target_fps: None counts the stride in the video's own frames.
        transform: gives the geometry of all clips; it draws nothing at random.

    Yields:
        The clips, in order.

    Raises:
        UserError: the clip is empty.
        VideoReadError: a picture cannot be decoded, they differ in size, or their sides do in a way that the
            transform does not take.
    """
    fps = video.fps if target_fps is None else target_fps
    times = np.array(
        [
            key_frame_seconds(fps, seconds=second, frames=frames, stride=stride, target_fps=target_fps)
            for second in key_seconds.tolist()
        ]
    )
    geometry: ClipGeometry | None = None
    size: tuple[int, ...] = ()
    for first in range(0, len(times), _KEY_FRAMES_A_PASS):
        part = times[first : first + _KEY_FRAMES_A_PASS]
        wanted = np.column_stack(
            [part, key_seconds[first : first + len(part)]]
        )  # [n, T + 1]: the key frame last
        pending: dict[int, _Pending] = {}
        next_out = 0
        for places, picture in video.each_at(wanted.ravel()):
            if geometry is None:
                size = picture.shape[:2]
                geometry = sample_geometry(transform, video.path, size)
            check_size(video.path, picture, size)
            resized = geometry.apply_clip(picture[None])[0]
            for number, place in zip(*np.divmod(places, frames + 1), strict=True):
                if number not in pending:
                    pending[number] = _Pending(frames, resized.shape)
                pending[number].put(int(place), resized, picture)
            while next_out in pending and pending[next_out].left == 0:
                done = pending.pop(next_out)
                assert done.picture is not None  # put last of all places, like any other
                yield KeyClip(first + next_out, done.clip, done.picture, geometry)
                next_out += 1
        if next_out < len(part):
            raise VideoReadError(video.path, f"the clip around {part[next_out].mean():.2f} s has gaps")


def sample_geometry(transform: ClipTransform, path: str, size: Sequence[int]) -> ClipGeometry:
    """The geometry for a video of this size, (height, width), of a transform that draws nothing at random.

    Raises:
        VideoReadError: the transform does not take pictures of this size.
    """
    try:
        return transform.sample(size[0], size[1], np.random.default_rng(0))
    except ValueError as error:
        raise VideoReadError(path, str(error)) from error


class _Pending:
    """A clip of which not all pictures have come."""

    def __init__(self, frames: int, shape: tuple[int, ...]) -> None:
        self.clip = np.empty((frames, *shape), np.uint8)
        self.picture: np.ndarray | None = None
        self.left = frames + 1

    def put(self, place: int, resized: np.ndarray, picture: np.ndarray) -> None:
        if place < len(self.clip):
            self.clip[place] = resized
        else:
            self.picture = picture.copy()  # the reader's own memory
        self.left -= 1
