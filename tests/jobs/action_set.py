"""A small data set in AVA's form, a tiny detector on it, and its overrides."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tests.data.ava_data import write_numbered
from videomaskfeat.models import create_model
from videomaskfeat.models.saving import save_model
from videomaskfeat.recipe import ClipRecipe
from videomaskfeat.stored_recipe import DETECT_KEY, DetectRecipe

TRAIN, HELD_OUT = ("a", "b", "c", "d"), ("v", "w")
SECONDS = (1, 2, 3)
LEFT, RIGHT = "0.100,0.200,0.450,0.900", "0.600,0.100,0.900,0.700"
SHIFTED = "0.120,0.210,0.460,0.880"  # a detector's box for the left one
STRAY = "0.400,0.400,0.700,0.800"  # and one where nobody is
ACTIONS = {1: "stand", 2: "sit", 4: "talk to"}
CLASSES = 4
ENCODER: dict[str, Any] = {"depth": 3, "width": 8, "widen_at": (1,), "clip_size": (4, 32, 32)}
CLIP = ClipRecipe(frames=4, stride=2, crop=32, target_fps=None)


@dataclass(frozen=True)
class ActionSet:
    """Where everything is."""

    folder: Path

    def __getattr__(self, name: str) -> str:
        """``set.truth`` is the path of truth.csv, and so on."""
        if name not in ("train", "train_boxes", "truth", "boxes", "excluded"):
            raise AttributeError(name)
        return str(self.folder / f"{name}.csv")

    @property
    def labels(self) -> str:
        """The label map."""
        return str(self.folder / "labels.pbtxt")

    @property
    def videos(self) -> str:
        """The folder of the videos."""
        return str(self.folder / "videos")

    def overrides(self, run: Path) -> list[str]:
        """A training of two epochs of two steps."""
        return [
            f"data.train={self.train}",
            f"data.train_boxes=[{self.train_boxes}]",
            f"data.validation={self.truth}",
            f"data.validation_boxes=[{self.boxes}]",
            f"data.validation_exclusions={self.excluded}",
            f"data.label_map={self.labels}",
            f"data.videos={self.videos}",
            "data.workers=0",
            "clip.frames=4",
            "clip.stride=2",
            "clip.target_fps=null",
            "clip.crop=32",
            "clip.short_side=[32,40]",
            "boxes.train_iou=0.5",
            "model.name=maskfeat_mvitv2_nano_detector",
            "model.arguments={depth: 3, width: 8, widen_at: [1]}",
            "optim.optimizer=adamw",
            "optim.epochs=2",
            "optim.warmup_epochs=1",
            "optim.batch_size=6",
            "optim.base_batch_size=6",
            "optim.learning_rate=1e-3",
            "optim.start_learning_rate=1e-5",
            "evaluate.epochs=1",
            "evaluate.short_side=32",
            f"run.folder={run}",
        ]

    def evaluation(self) -> list[str]:
        """Arguments of ``detect-evaluate`` besides the weights and the boxes."""
        return [
            "--groundtruth", self.truth, "--labels", self.labels, "--exclusions", self.excluded,
            "--videos", self.videos, "--workers", "0",
        ]  # fmt: skip


def make_action_set(folder: Path) -> ActionSet:
    """Videos of two persons at each second; the left one stands, the right one sits and talks."""
    write_numbered(folder / "videos", (*TRAIN, *HELD_OUT), seconds=4.0, fps=8.0, size=48)
    for name, videos in (("train", TRAIN), ("truth", HELD_OUT)):
        rows = [
            f"{video},{second:04d},{box},{action},{person}\n"
            for video in videos
            for second in SECONDS
            for box, action, person in ((LEFT, 1, 0), (RIGHT, 2, 1), (RIGHT, 4, 1))
        ]
        (folder / f"{name}.csv").write_text("".join(rows))
    for name, videos in (("train_boxes", TRAIN), ("boxes", HELD_OUT)):
        rows = [
            f"{video},{second:04d},{box},,{score}\n"
            for video in videos
            for second in SECONDS
            for box, score in ((SHIFTED, 0.95), (RIGHT, 0.99), (STRAY, 0.92), (STRAY, 0.3))
        ]
        (folder / f"{name}.csv").write_text("".join(rows))
    (folder / "excluded.csv").write_text("v,0002\n")
    items = "".join(f'item {{ name: "{name}" id: {number} }}\n' for number, name in ACTIONS.items())
    (folder / "labels.pbtxt").write_text(items)
    return ActionSet(folder)


def write_detector(path: Path, *, poses: tuple[int, ...] = (), **changes: Any) -> Path:
    """Weights that were never trained."""
    torch.manual_seed(1)
    model = create_model("maskfeat_mvitv2_nano_detector", **ENCODER, classes=CLASSES, head_scale=20.0)
    recipe = DetectRecipe(CLIP, ACTIONS, CLASSES, poses=poses, short_side=32, **changes)
    save_model(model, path, metadata={DETECT_KEY: recipe.to_json()})
    return path
