"""Map-style datasets in a plain DataLoader: pixels, labels, masks, boxes, randomness, unreadable videos."""

from __future__ import annotations

import pickle
import shutil
from collections.abc import Callable
from multiprocessing.reduction import ForkingPickler
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader

import videomaskfeat
from tests.data.ava_data import write_numbered
from tests.data.clip_data import write_videos
from videomaskfeat.data import ActionDataset, VideoDataset
from videomaskfeat.data.reader import VideoReadError
from videomaskfeat.data.transforms import RandomResizedCrop
from videomaskfeat.errors import UserError

CLIP = {"frames": 2, "stride": 2, "crop": 16, "target_fps": None}
LABEL_MAP = 'item { name: "stand" id: 1 }\nitem { name: "sit" id: 3 }\n'
TRUTH = "".join(
    f"{name},{second},{box},{action},0\n"
    for name in ("a", "b")
    for second in (1, 2)
    for box, action in (("0.1,0.2,0.45,0.9", 1), ("0.6,0.1,0.9,0.7", 3))
)


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight videos of noise, 8 frames of 32x32, and train.csv."""
    return write_videos(tmp_path_factory.mktemp("videos"), 8).parent


def mirror(clip: Tensor) -> Tensor:
    """A transform [T, C, H, W], at module level for workers."""
    assert clip.dtype == torch.uint8
    return clip.flip(3)


def halve(clip: Tensor) -> Tensor:
    """A transform that returns floats in 0..1."""
    return clip.float() / 510.0


def test_clip_outside_training_is_the_middle_of_the_video(videos: Path) -> None:
    dataset = VideoDataset(videos / "train.csv", clip=CLIP, training=False)
    item = dataset[3]
    with videomaskfeat.open_video(videos / "003.mp4") as video:
        # 8 frames, 2 of them at a stride of 2: the span of 4 frames starts at floor((8 - 4) / 2).
        frames = video.read([2, 5])
    # The short side of 32 pixels is resized to 16: bilinear interpolation means over 2x2 pixels.
    small = frames.astype(np.float64).reshape(2, 16, 2, 16, 2, 3).mean(axis=(2, 4))
    expected = (torch.from_numpy(small).permute(3, 0, 1, 2) / 255 - 0.45) / 0.225
    assert item["clip"].shape == (3, 2, 16, 16)
    assert item["clip"].dtype == torch.float32
    # Pixels are rounded to integers after the resizing: half a level of 255, divided by std.
    torch.testing.assert_close(item["clip"].double(), expected, atol=0.5 / 255 / 0.225 + 1e-6, rtol=0)
    assert (int(item["label"]), int(item["index"])) == (3, 3)
    assert torch.equal(dataset[-1]["clip"], dataset[7]["clip"])
    with pytest.raises(IndexError, match="index 8 of 8 videos"):
        dataset[8]
    assert len(list(dataset)) == len(dataset) == 8  # the protocol of sequences ends with IndexError


def test_datasets_are_pickled_for_processes_that_do_not_fork(videos: Path) -> None:
    mask = {"kind": "random", "ratio": 0.5, "cell": [2, 4, 4]}
    dataset = VideoDataset(videos / "train.csv", clip=CLIP, mask=mask, transform=mirror)
    copy = pickle.loads(ForkingPickler.dumps(dataset))
    torch.manual_seed(5)
    expected = dataset[2]
    torch.manual_seed(5)
    assert all(torch.equal(value, expected[name]) for name, value in copy[2].items())


def test_loader_processes_return_the_same_samples(videos: Path) -> None:
    dataset = VideoDataset(videos / "train.csv", clip=CLIP, training=False, transform=mirror)
    own = [dataset[index] for index in range(8)]
    batches = list(DataLoader(dataset, batch_size=4, num_workers=2))
    for name in ("clip", "label", "index"):
        joined = torch.cat([batch[name] for batch in batches])
        assert torch.equal(joined, torch.stack([item[name] for item in own]))


def test_training_clips_follow_torchs_seed_and_differ_between_epochs(videos: Path) -> None:
    dataset = VideoDataset(videos, clip=CLIP)

    def epoch(seed: int | None = None) -> Tensor:
        if seed is not None:
            torch.manual_seed(seed)
        return torch.stack([dataset[index]["clip"] for index in range(4)])

    first, second = epoch(seed=1), epoch()
    assert torch.equal(epoch(seed=1), first)
    assert not any(torch.equal(one, other) for one, other in zip(first, second, strict=True))
    assert dataset[0].keys() == {"clip", "index"}


@pytest.mark.parametrize(
    ("transform", "expected"),
    [(mirror, lambda clip: clip.flip(3)), (halve, lambda clip: (clip * 0.225 + 0.45) / 2 / 0.225 - 2)],
)
def test_transform_changes_pixels_before_normalization(
    transform: Callable[[Tensor], Tensor], expected: Callable[[Tensor], Tensor], videos: Path
) -> None:
    plain = VideoDataset(videos, clip=CLIP, training=False)[1]["clip"]
    changed = VideoDataset(videos, clip=CLIP, training=False, transform=transform)[1]["clip"]
    # float32: levels up to 255, rounded and divided by 255 and std.
    torch.testing.assert_close(changed, expected(plain), atol=1e-5, rtol=0)
    wrong = VideoDataset(videos, clip=CLIP, transform=lambda clip: clip[0])
    with pytest.raises(UserError, match=r"transform returned \(3, 16, 16\) for a clip \(2, 3, 16, 16\)"):
        wrong[0]


def test_masks_hide_their_share(videos: Path) -> None:
    mask = {"kind": "random", "ratio": 0.5, "cell": [2, 4, 4]}
    dataset = VideoDataset(videos, clip=CLIP, mask=mask)
    masks = torch.stack([dataset[index]["mask"] for index in range(8)])
    assert masks.shape == (8, 1, 4, 4)
    assert masks.dtype == torch.bool
    assert masks.flatten(1).sum(1).tolist() == [8] * 8  # ceil(0.5 * 16)
    assert len({tuple(one.flatten().tolist()) for one in masks}) > 1
    with pytest.raises(UserError, match=r"mask\.cell \[2, 5, 4\] does not tile a clip"):
        VideoDataset(videos, clip=CLIP, mask={**mask, "cell": [2, 5, 4]})
    with pytest.raises(UserError, match=r"mask: key 'rate' is unknown; did you mean 'ratio'"):
        VideoDataset(videos, clip=CLIP, mask={"rate": 0.5})


def test_labels_of_class_folders_and_lists(videos: Path, tmp_path: Path) -> None:
    for number, name in enumerate(("walk", "run", "walk")):
        (tmp_path / name).mkdir(exist_ok=True)
        shutil.copy(videos / f"00{number}.mp4", tmp_path / name)
    train = VideoDataset(tmp_path, clip=CLIP, labels=True)
    assert train.class_names == ("run", "walk")
    assert [int(train[index]["label"]) for index in range(3)] == [0, 1, 1]
    known = VideoDataset(tmp_path, clip=CLIP, labels=True, class_names=("walk", "sit", "run"))
    assert [int(known[index]["label"]) for index in range(3)] == [2, 0, 0]
    assert "label" not in VideoDataset(tmp_path, clip=CLIP)[0]
    assert "label" not in VideoDataset(videos / "train.csv", clip=CLIP, labels=False)[0]
    with pytest.raises(UserError, match=r"000\.mp4 is not in a class folder"):
        VideoDataset(videos, clip=CLIP, labels=True)
    with pytest.raises(UserError, match=r"clip\.frame|key 'frame' is unknown; did you mean 'frames'"):
        VideoDataset(videos, clip={**CLIP, "frame": 2})


def test_unreadable_video_is_replaced_in_training_and_raises_otherwise(
    videos: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copy(videos / "001.mp4", tmp_path / "b.mp4")
    (tmp_path / "a.mp4").write_bytes(b"no video")
    (tmp_path / "list.csv").write_text("a.mp4 4\nb.mp4 2\n")
    train = VideoDataset(tmp_path / "list.csv", clip=CLIP)
    item = train[0]
    assert (int(item["index"]), int(item["label"])) == (1, 2)
    assert "a.mp4 cannot be read (" in caplog.text
    with pytest.raises(VideoReadError, match=r"a\.mp4"):
        VideoDataset(tmp_path / "list.csv", clip=CLIP, training=False)[0]
    with pytest.raises(VideoReadError, match=r"a\.mp4"):
        list(DataLoader(VideoDataset(tmp_path / "list.csv", clip=CLIP, training=False)))


def test_saved_recipe_cuts_the_same_clips(
    videos: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    names = ("a", "b", "c", "d", "e")
    dataset = VideoDataset(videos / "train.csv", clip=CLIP, training=False, class_names=names)
    sizes = {"depth": 1, "width": 16, "heads": 2, "clip_size": (2, 16, 16), "head_scale": 20.0}
    model = videomaskfeat.create_model("vit_nano", num_classes=5, **sizes).eval()
    videomaskfeat.save_model(model, tmp_path / "model.safetensors", recipe=dataset.recipe)
    with torch.no_grad():
        expected = model(dataset[2]["clip"][None]).softmax(1)[0]
    classifier = videomaskfeat.load_classifier(tmp_path / "model.safetensors", device="cpu")
    predictions = classifier.predict(videos / "002.mp4")
    torch.testing.assert_close(predictions.probabilities, expected)
    assert predictions.top(1)[0].name == names[int(expected.argmax())]
    assert expected.max() > 0.25  # the classes differ


@pytest.fixture(scope="module")
def actions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("actions")
    write_numbered(folder / "videos", ("a", "b"), seconds=3, size=48)  # 72x48 pixels
    (folder / "truth.csv").write_text(TRUTH)
    (folder / "labels.pbtxt").write_text(LABEL_MAP)
    return folder


def test_actions_have_boxes_in_pixels_of_the_clip(actions: Path) -> None:
    files = {"videos": actions / "videos", "label_map": actions / "labels.pbtxt"}
    dataset = ActionDataset(actions / "truth.csv", **files, clip=CLIP, training=False)
    assert len(dataset) == 4
    assert dataset.actions == {1: "stand", 3: "sit"}
    item = dataset[2]
    # Frames of 72x48 become 24x16, and the center crop starts at column 4.
    expected = np.array([[0.1, 0.2, 0.45, 0.9], [0.6, 0.1, 0.9, 0.7]]) * [24, 16, 24, 16] - [4, 0, 4, 0]
    np.testing.assert_allclose(item["boxes"], expected.clip(0, 16), atol=1e-5)  # float32
    assert item["labels"].tolist() == [[True, False, False], [False, False, True]]
    batch = next(iter(DataLoader(dataset, batch_size=4, collate_fn=dataset.collate, num_workers=1)))
    assert batch["clip"].shape == (4, 3, 2, 16, 16)
    assert batch["boxes"][:, 0].tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert torch.equal(batch["boxes"][4:6, 1:], item["boxes"])
    assert batch["labels"].shape == (8, 3)
    sizes = {"depth": 1, "width": 16, "heads": 2, "clip_size": (2, 16, 16)}
    model = videomaskfeat.create_model("vit_nano_detector", num_classes=dataset.classes, **sizes)
    assert model(batch["clip"], batch["boxes"]).shape == (8, 3)


def test_training_crops_of_actions_are_random_and_contain_a_box(actions: Path, tmp_path: Path) -> None:
    dataset = ActionDataset(
        actions / "truth.csv",
        videos=actions / "videos",
        label_map=actions / "labels.pbtxt",
        clip=CLIP,
        crop=RandomResizedCrop(16, area=(0.1, 0.3)),
    )
    items = [dataset[0] for _ in range(6)]
    assert all(1 <= len(item["boxes"]) == len(item["labels"]) for item in items)
    assert len({tuple(item["boxes"].flatten().tolist()) for item in items}) > 1
    model = videomaskfeat.create_model(
        "vit_nano_detector", num_classes=3, depth=1, width=16, heads=2, clip_size=(2, 16, 16)
    )
    videomaskfeat.save_model(model, tmp_path / "model.safetensors", recipe=dataset.recipe)
    detector = videomaskfeat.load_detector(tmp_path / "model.safetensors", device="cpu")
    assert detector.recipe.actions == {1: "stand", 3: "sit"}
