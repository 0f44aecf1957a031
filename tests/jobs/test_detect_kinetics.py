"""Lists of AVA-Kinetics: clips of Kinetics that count from their own second, and key frames of nobody."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import simplejson

from tests.data.make_videos import numbered_picture, read_number
from tests.jobs.action_set import ACTIONS, LEFT, RIGHT, STRAY, ActionSet
from tests.reference.ava_map import frame_map
from videomaskfeat.cli import main
from videomaskfeat.data.ava import ActionBatch, KeyFrameBatch
from videomaskfeat.data.ava_lists import KeyFrames
from videomaskfeat.inference import detectors
from videomaskfeat.jobs.detect import DetectRun
from videomaskfeat.mp4 import write_mp4

VIDEOS = {  # the file of each video, and the second of its first picture
    "a": ("a_000010_000014", 10.0),
    "b": ("b_000100_000104", 100.0),
    "c": ("c", 900.0),  # one of AVA's own
    "v": ("v_000050_000054", 50.0),
    "w": ("w_000007_000011", 7.0),
    "n": ("n_000200_000204", 200.0),
}
NOBODY = {"b": 102.5, "w": 9.0, "n": 202.0}  # a key frame each, without a box
FPS = 8.0


def make_kinetics_set(folder: Path) -> ActionSet:
    """Lists as AVA-Kinetics has them: clips that are named by their seconds, and key frames of nobody."""
    actions = ActionSet(folder)
    Path(actions.videos).mkdir(parents=True)
    for stem, _ in VIDEOS.values():
        pictures = (numbered_picture(number, 48, 48) for number in range(32))
        write_mp4(folder / "videos" / f"{stem}.mp4", pictures, fps=FPS)
    both = ((LEFT, 1), (RIGHT, 2), (RIGHT, 4))
    for name, boxes_name, videos in (("train", "train_boxes", "abc"), ("truth", "boxes", "vw")):
        rows, detections = [], []
        for video in videos:
            for second in (1.0, 2.0, 3.0):
                moment = f"{video},{VIDEOS[video][1] + second:g}"
                if NOBODY.get(video) != VIDEOS[video][1] + second:
                    rows += [f"{moment},{box},{action},0\n" for box, action in both]
                    detections += [
                        f"{moment},{box},,{score}\n" for box, score in ((LEFT, 0.95), (RIGHT, 0.99))
                    ]
        for video in (*videos, *(() if name == "train" else "n")):
            if video in NOBODY:
                moment = f"{video},{NOBODY[video]:g}"
                rows.append(f"{moment},,,,,,\n" if video == "w" else f"{moment}\n")
                detections += [f"{moment},{box},,0.97\n" for box in (STRAY, LEFT)]
        (folder / f"{name}.csv").write_text("".join(rows))
        (folder / f"{boxes_name}.csv").write_text("".join(detections))
    (folder / "excluded.csv").write_text("v,52\n")
    items = "".join(f'item {{ name: "{name}" id: {number} }}\n' for number, name in ACTIONS.items())
    (folder / "labels.pbtxt").write_text(items)
    return actions


def picture_at(video: str, seconds: float) -> int:
    return round((seconds - VIDEOS[video][1]) * FPS)


def watch(
    monkeypatch: pytest.MonkeyPatch,
) -> tuple[dict[int, tuple[int, bool]], dict[tuple[str, float], int]]:
    """Which pictures will be seen, by their numbers.

    Returns:
        Of each training key frame the picture in the middle of its clip, and whether anyone acts there; of
        each tested one the picture.
    """
    trained: dict[int, tuple[int, bool]] = {}
    tested: dict[tuple[str, float], int] = {}
    learn, score = DetectRun.step, detectors.score_batches

    def watched_step(self: DetectRun, batch: ActionBatch) -> object:
        for row, index in enumerate(batch.index.tolist()):
            acting = bool(batch.labels[batch.boxes[:, 0] == row].any())
            trained[index] = read_number(batch.clips[row, 2].numpy()), acting
        return learn(self, batch)

    def watched_score(
        detector: Any, batches: Iterable[KeyFrameBatch], key_frames: KeyFrames, **options: Any
    ) -> Any:
        def passing() -> Iterator[KeyFrameBatch]:
            moments = key_frames.moments()
            for batch in batches:
                for clip, index in zip(batch.views[0].clips, batch.index.tolist(), strict=True):
                    tested[moments[index]] = read_number(clip[2].numpy())
                yield batch

        return score(detector, passing(), key_frames, **options)

    monkeypatch.setattr(DetectRun, "step", watched_step)
    monkeypatch.setattr(detectors, "score_batches", watched_score)
    return trained, tested


def test_key_frames_of_ava_kinetics_are_trained_and_scored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Each key frame shows its own picture; those of nobody give negatives, in training and in the mAP."""
    lists = make_kinetics_set(tmp_path / "kinetics")
    trained, tested = watch(monkeypatch)
    whole = ["clip.short_side=[32,32]", "clip.flip=0", "optim.epochs=1", "optim.warmup_epochs=0"]
    whole += ["optim.batch_size=5", "boxes.train_iou=0.9"]
    code = main(["detect-train", *lists.overrides(tmp_path / "run"), *whole])
    text = capfd.readouterr().err
    assert code == 0, text
    assert "2 of 3 videos start at the second in their file names" in text

    moments = [(video, VIDEOS[video][1] + second) for video in "abc" for second in (1.0, 2.0, 3.0)]
    moments = sorted([*moments, ("b", NOBODY["b"])])
    assert trained == {
        index: (picture_at(*moment), NOBODY.get(moment[0]) != moment[1])
        for index, moment in enumerate(moments)
    }
    scored = [("n", 202.0), ("v", 51.0), ("v", 53.0), ("w", 8.0), ("w", 9.0), ("w", 10.0)]  # v at 52 excluded
    assert tested == {moment: picture_at(*moment) for moment in scored}

    summary = simplejson.loads((tmp_path / "run" / "summary.json").read_text())
    assert (summary["key_frames"], summary["listed"]) == (6, 6)
    detections = tmp_path / "run" / "score" / "detections.csv"
    written = list(csv.reader(detections.open()))
    assert sorted({(row[0], float(row[1])) for row in written}) == sorted(scored)
    expected, _ = frame_map(lists.truth, str(detections), lists.labels, lists.excluded)
    assert summary["mean_ap"] == pytest.approx(expected, abs=1e-9)
    assert 0 < expected < 1
    only_acting = tmp_path / "acting.csv"
    rows_kept = [row for row in written if NOBODY.get(row[0]) != float(row[1])]
    only_acting.write_text("".join(",".join(row) + "\n" for row in rows_kept))
    without, _ = frame_map(lists.truth, str(only_acting), lists.labels, lists.excluded)
    assert expected < without  # boxes where nobody is count against it
