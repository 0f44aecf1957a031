"""Images and films of videos with a map of the clip: attention, or the positions that raise a class."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

from videomaskfeat.data.sampling import ShortVideoError
from videomaskfeat.data.video import VideoReadError
from videomaskfeat.inference.classifiers import ClassMap, ClipMap
from videomaskfeat.inference.drawing import Visualized, with_suffix
from videomaskfeat.io import make_folder, output_paths
from videomaskfeat.viz.heat import heat_frames, write_heat_film, write_heat_picture


def draw_maps(
    compute: Callable[[str], ClipMap],
    videos: Sequence[str],
    out: str | os.PathLike[str],
    *,
    suffix: str,
    columns: int = 8,
) -> Visualized:
    """Draw a map of the middle clip of each video.

    Args:
        compute: path -> map, such as ``load_encoder(...).attention_map``.
        videos: paths.
        out: folder for ``NAME_SUFFIX.png``, and for ``NAME_SUFFIX.mp4`` if clips have more than one frame.
        suffix: end of the names.
        columns: maximum number of frames in an image.

    Raises:
        UserError: as ``compute``.
    """
    make_folder(out)
    result = Visualized([], [])
    for video, output in zip(videos, output_paths(out, videos, f"_{suffix}"), strict=True):
        try:
            clip_map = compute(video)
        except (VideoReadError, ShortVideoError) as error:
            result.failures.append(error)
            continue
        title = os.path.basename(video)
        if isinstance(clip_map, ClassMap):
            title = f"{title}: {clip_map.prediction.text}"
        frames = clip_map.frames.numpy()
        heat = heat_frames(frames, clip_map.values.numpy())
        result.written.append(with_suffix(output, ".png"))
        write_heat_picture(
            result.written[-1],
            frames,
            heat,
            title=title,
            name=clip_map.name,
            note=clip_map.note,
            columns=columns,
        )
        if len(frames) > 1:
            result.written.append(with_suffix(output, ".mp4"))
            write_heat_film(result.written[-1], frames, heat)
    return result
