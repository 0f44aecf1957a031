"""The built-in sample data set: videos of motions, pictures of shapes, and their lists."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from videomaskfeat.data.sample_factors import FACTORS, write_factor_lists, write_factor_video
from videomaskfeat.data.sample_images import make_image_folders, write_image, write_image_lists
from videomaskfeat.data.sample_scenes import MOTIONS, Scene, copies_in_view, make_scene
from videomaskfeat.errors import UserError
from videomaskfeat.io import make_folder, whole_file
from videomaskfeat.mp4 import write_mp4

# Tags that separate the random streams of one seed.
_CLIP, _ACTORS, _DETECTOR = 1, 2, 3
_HELD_OUT = 10  # one video in ten is in the validation list, and one in ten in the test list
_FEW = 20  # videos or pictures per class in train_few.csv
_LEAST_FACTORS = 30  # so that each split has some videos
_DENSE = 5  # times per second with boxes in ava_val_tracked_boxes.csv
AVA_FIRST_SECOND = 900  # as in AVA: videos begin at second 900 of a film, and times count from its start
_VISIBLE_FRACTION = 0.4  # minimum visible fraction of an actor's box
_README = """Sample data, made by `videomaskfeat sample-data`.
{videos} videos of {frames} frames, {size}x{size} pixels, {fps:g} frames per second, seed {seed}.
The class is the motion; a single frame contains no information about it. Left and right, up and down, and
directions of rotation are classes, so do not flip or rotate clips when training on labels.

  videos/                       the videos in the lists below
  train.csv val.csv test.csv    Kinetics form, `path label`; paths are relative to this folder
  train_few.csv                 the first {few} videos of each class in train.csv
  classes.txt                   the class names, one per line, in the order of the labels
  something-something-v2-*.json Something-Something-v2 form; ids are file names in videos/ (prefix: videos)
  ava/                          {ava_videos} longer videos with several actors, one action each, in AVA's form
    videos/                     time 0 of a file is second {first_second} of the annotations
    annotations/ava_{{train,val}}_v2.2.csv                      video,second,x1,y1,x2,y2,action,person
    annotations/ava_{{train,val}}_predicted_boxes.csv           video,second,x1,y1,x2,y2,,score
    annotations/ava_val_tracked_boxes.csv                       the true boxes, {dense} times per second
    annotations/ava_{{train,val}}_excluded_timestamps_v2.2.csv  video,second: not scored
    annotations/ava_action_list_v2.2.pbtxt                    the actions
  images/                       {images} pictures whose class is a shape, which may be flipped and rotated
    train/star/000008.png ...   class folders as in ImageNet (data.train=images/train), and val/
    train.csv val.csv           the same as lists, `path label`; classes.txt: the class names in order
    train_few.csv               the first {few} pictures of each class in train.csv
"""
_FACTORS_README = """\
  factors/                      {factors} videos with independent factors, one label each: {names}
    {{train,val,test}}_motion.csv ...  a list per factor; train_few_*.csv: the first {few} of each class
    classes_motion.txt ...             class names per factor
    Digits: Optical Recognition of Handwritten Digits, E. Alpaydin and C. Kaynak, UCI Machine Learning
    Repository, https://doi.org/10.24432/C50P49, CC BY 4.0 (enlarged, textured and moved).
"""


@dataclass(frozen=True)
class _Actor:
    """A box of one actor at one moment, as fractions of the frame."""

    video: str
    second: float
    box: tuple[float, float, float, float]
    action: int
    person: int


_Job = Callable[[], list[_Actor] | None]


def write_sample_data(
    directory: str | os.PathLike[str],
    *,
    videos: int = 400,
    frames: int = 32,
    size: int = 96,
    fps: float = 30.0,
    seed: int = 0,
    ava_videos: int = 12,
    ava_seconds: int = 8,
    images: int = 0,
    factors: int = 0,
    workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Write the sample data set; the bytes do not depend on the number of workers.

    Args:
        directory: created if missing; files of an earlier call are replaced.
        videos: number of classified videos; the label of video i is i modulo 12.
        frames: frames per video.
        size: side of the square frames and pictures in pixels, even and at least 32.
        fps: frame rate.
        seed: random seed.
        ava_videos: number of longer videos with several actors, for detection; 0: no ``ava/``.
        ava_seconds: length of these; all seconds except the first and the last are key frames.
        images: number of pictures of shapes, one in five held out; 0: no ``images/``.
        factors: number of videos with independent factors, see `sample_factors`; 0: no ``factors/``.
        workers: number of threads (default: number of CPUs).
        progress: called with (files written, number of files) after each file.

    Raises:
        UserError: a size or number is out of range.
    """
    _check(videos=videos, frames=frames, size=size, fps=fps, ava_videos=ava_videos, ava_seconds=ava_seconds)
    if factors and factors < _LEAST_FACTORS:
        raise UserError(f"factors={factors}: use at least {_LEAST_FACTORS} videos, or 0 for none")
    root = Path(directory)
    shared: dict[str, Any] = {"size": size, "seed": seed}
    if images:
        make_image_folders(root / "images", images)
    make_folder(root / "videos")
    if ava_videos:
        make_folder(root / "ava" / "videos")
        make_folder(root / "ava" / "annotations")
    splits = _splits(factors) if factors else {}
    if factors:
        make_folder(root / "factors" / "videos")
    clip = {**shared, "frames": frames, "fps": fps}
    jobs: list[_Job] = [
        *(partial(_write_clip, root, n, **clip) for n in range(videos)),
        *(partial(_write_actors, root, n, seconds=ava_seconds, fps=fps, **shared) for n in range(ava_videos)),
        *(partial(write_image, root / "images", n, images=images, **shared) for n in range(images)),
        *(
            partial(write_factor_video, root / "factors", n, held_out=split != "train", **clip)
            for split, numbers in splits.items()
            for n in numbers
        ),
    ]
    results = _run_all(jobs, workers or os.cpu_count() or 1, progress)
    _write_kinetics_lists(root, videos)
    _write_ssv2_lists(root, videos)
    if ava_videos:
        actors = [boxes for boxes in results if boxes is not None]
        _write_ava_lists(root / "ava" / "annotations", actors, ava_seconds, seed)
    if images:
        write_image_lists(root / "images", images, few=_FEW)
    if factors:
        write_factor_lists(root / "factors", splits, few=_FEW, seed=seed)
    text = _README.format(
        videos=videos, frames=frames, size=size, fps=fps, seed=seed, ava_videos=ava_videos,
        first_second=AVA_FIRST_SECOND, few=_FEW, images=images, dense=_DENSE,
    )  # fmt: skip
    if factors:
        text += _FACTORS_README.format(factors=factors, names=", ".join(FACTORS), few=_FEW)
    _write_text(root / "README.txt", text)


def sample_scene(number: int, *, frames: int, size: int, fps: float, seed: int) -> Scene:
    """The scene behind clip ``number``: two or three sprites, all with the motion of its label."""
    rng = np.random.default_rng([_CLIP, seed, number])
    motion = list(MOTIONS)[number % len(MOTIONS)]
    return make_scene([motion] * int(rng.integers(2, 4)), rng, frames=frames, size=size, fps=fps)


def _check(*, videos: int, frames: int, size: int, fps: float, ava_videos: int, ava_seconds: int) -> None:
    if size < 32 or size % 2:
        raise UserError(
            f"size={size}: sample videos need an even side of at least 32 pixels; "
            f"use {max(32, size + size % 2)}"
        )
    if videos < len(MOTIONS):
        raise UserError(
            f"videos={videos}: each of the {len(MOTIONS)} classes needs a video; use at least {len(MOTIONS)}"
        )
    if frames < 1:
        raise UserError(f"frames={frames}: a video needs at least one frame")
    if not 1 <= fps <= 240:
        raise UserError(f"fps={fps:g}: the frame rate must be between 1 and 240")
    if ava_videos and (ava_videos < 2 or ava_seconds < 3):
        raise UserError(
            f"ava_videos={ava_videos}, ava_seconds={ava_seconds}: use 0 videos, or at least 2 (one is held "
            "out) of at least 3 seconds (the first and the last second have no key frame)"
        )


def _run_all(
    jobs: list[_Job], workers: int, progress: Callable[[int, int], None] | None
) -> list[list[_Actor] | None]:
    """Results of the jobs in order; the first error cancels the jobs that have not started."""
    with ThreadPoolExecutor(max_workers=workers) as pool:
        futures = [pool.submit(job) for job in jobs]
        try:
            for done, future in enumerate(as_completed(futures), start=1):
                future.result()
                if progress is not None:
                    progress(done, len(jobs))
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
        return [future.result() for future in futures]


def _write_clip(root: Path, number: int, *, frames: int, size: int, fps: float, seed: int) -> None:
    scene = sample_scene(number, frames=frames, size=size, fps=fps, seed=seed)
    write_mp4(root / "videos" / f"{number:06d}.mp4", scene.frames(), fps=fps)


def _write_actors(root: Path, number: int, *, seconds: int, size: int, fps: float, seed: int) -> list[_Actor]:
    """Write a video of two to four actors with one action each; returns the boxes."""
    rng = np.random.default_rng([_ACTORS, seed, number])
    names = list(MOTIONS)
    actions = rng.permutation(len(names))[: int(rng.integers(2, 5))]
    frames = round(seconds * fps)
    scene = make_scene([names[action] for action in actions], rng, frames=frames, size=size, fps=fps)
    video = f"actors_{number:03d}"
    write_mp4(root / "ava" / "videos" / f"{video}.mp4", scene.frames(), fps=fps)
    boxes: list[_Actor] = []
    for moment in range(_DENSE, (seconds - 2) * _DENSE + 1):
        second = moment / _DENSE
        boxes += _actors_at(scene, video, second, min(round(second * fps), frames - 1))
    return boxes


def _actors_at(scene: Scene, video: str, second: float, frame: int) -> list[_Actor]:
    """The boxes at one moment; an actor visible at two borders of the torus is two persons."""
    names, actors = list(MOTIONS), []
    for person, sprite in enumerate(scene.sprites):
        extent = np.array(sprite.extent(frame))
        for copy, center in enumerate(copies_in_view(sprite, frame)):
            whole = np.array(center * 2) + extent
            box = np.clip(whole, 0, 1)
            if np.prod(box[2:] - box[:2]) < _VISIBLE_FRACTION * np.prod(whole[2:] - whole[:2]):
                continue
            x1, y1, x2, y2 = (round(float(value), 3) for value in box)
            actors.append(
                _Actor(
                    video,
                    AVA_FIRST_SECOND + second,
                    (x1, y1, x2, y2),
                    action=names.index(sprite.motion) + 1,
                    person=person + copy * len(scene.sprites),
                )
            )
    return actors


def _splits(videos: int) -> dict[str, list[int]]:
    """Video numbers of each split; contiguous splits are balanced, since labels are cyclic."""
    held_out = max(videos // _HELD_OUT, 1)
    numbers = list(range(videos))
    return {
        "train": numbers[: videos - 2 * held_out],
        "val": numbers[videos - 2 * held_out : videos - held_out],
        "test": numbers[videos - held_out :],
    }


def _write_kinetics_lists(root: Path, videos: int) -> None:
    for split, numbers in _splits(videos).items():
        rows = [f"videos/{number:06d}.mp4 {number % len(MOTIONS)}\n" for number in numbers]
        _write_text(root / f"{split}.csv", "".join(rows))
        if split == "train":  # balanced, since labels are cyclic
            _write_text(root / "train_few.csv", "".join(rows[: _FEW * len(MOTIONS)]))
    _write_text(root / "classes.txt", "".join(f"{name}\n" for name in MOTIONS))


def _write_ssv2_lists(root: Path, videos: int) -> None:
    """Write JSON files as in Something-Something-v2: no labels in the test list, and numbers as strings."""
    templates = [f"Making [something] {name}" for name in MOTIONS]
    plain = [template.replace("[", "").replace("]", "") for template in templates]
    for split, numbers in _splits(videos).items():
        rows = []
        for number in numbers:
            row = {"id": f"{number:06d}"}
            if split != "test":
                label = number % len(MOTIONS)
                row |= {"label": plain[label].replace("something", "shapes"), "template": templates[label]}
                row |= {"placeholders": ["shapes"]}  # type: ignore[dict-item]
            rows.append(row)
        name = {"val": "validation"}.get(split, split)
        _write_json(root / f"something-something-v2-{name}.json", rows)
    labels = {template: str(index) for index, template in enumerate(plain)}
    _write_json(root / "something-something-v2-labels.json", labels)


def _write_ava_lists(folder: Path, actors: list[list[_Actor]], seconds: int, seed: int) -> None:
    """Write the annotation files; one video in four is in the validation list."""
    rng = np.random.default_rng([_DETECTOR, seed])
    val = max(len(actors) // 4, 1)
    for split, split_videos in {"train": actors[:-val], "val": actors[-val:]}.items():
        dense_boxes = [actor for video_actors in split_videos for actor in video_actors]
        boxes = [actor for actor in dense_boxes if actor.second.is_integer()]  # in the key frames
        rows = [f"{_moment(a)},{_corners(a.box)},{a.action},{a.person}\n" for a in boxes]
        _write_text(folder / f"ava_{split}_v2.2.csv", "".join(rows))
        detected = [row for actor in boxes for row in _detections(actor, rng)]
        _write_text(folder / f"ava_{split}_predicted_boxes.csv", "".join(detected))
        # The first key frame of every second video.
        excluded = sorted({a.video for a in boxes})[::2]
        text = "".join(f"{video},{AVA_FIRST_SECOND + 1:04d}\n" for video in excluded)
        _write_text(folder / f"ava_{split}_excluded_timestamps_v2.2.csv", text)
        if split == "val":
            tracked = [f"{_moment(a)},{_corners(a.box)},,1.000000\n" for a in dense_boxes]
            _write_text(folder / "ava_val_tracked_boxes.csv", "".join(tracked))
    items = [
        f'item {{\n  name: "{name}"\n  id: {number}\n}}\n' for number, name in enumerate(MOTIONS, start=1)
    ]
    _write_text(folder / "ava_action_list_v2.2.pbtxt", "".join(items))


def _detections(actor: _Actor, rng: np.random.Generator) -> list[str]:
    """Simulated detections of an actor: a shifted box or none, and sometimes a false positive."""
    rows = []
    if rng.random() < 0.95:
        box = np.clip(np.array(actor.box) + rng.normal(0, 0.008, size=4), 0, 1)
        rows.append(f"{_moment(actor)},{_corners(tuple(box))},,{rng.uniform(0.85, 1.0):.6f}\n")
    if rng.random() < 0.15:
        x, y = rng.uniform(0, 0.7, size=2)
        rows.append(f"{_moment(actor)},{_corners((x, y, x + 0.3, y + 0.3))},,{rng.uniform(0.1, 0.8):.6f}\n")
    return rows


def _moment(actor: _Actor) -> str:
    second = f"{actor.second:04.0f}" if actor.second.is_integer() else f"{actor.second:.1f}"
    return f"{actor.video},{second}"


def _corners(box: tuple[float, ...]) -> str:
    return ",".join(f"{value:.3f}" for value in box)


def _write_text(path: Path, text: str) -> None:
    with whole_file(path) as file:
        file.write(text)


def _write_json(path: Path, value: object) -> None:
    _write_text(path, json.dumps(value, indent=1) + "\n")
