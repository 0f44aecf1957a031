"""Pictures from end to end: pre-training, fine-tuning, scores, predictions; what is refused, in its words."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import simplejson
import torch

from tests.data.make_videos import write_video
from videomaskfeat.data.frames import decode_picture
from videomaskfeat.data.sample_images import SHAPES, make_image_folders, write_image, write_image_lists
from videomaskfeat.data.video import open_video
from videomaskfeat.errors import UserError
from videomaskfeat.inference.classifiers import load_classifier
from videomaskfeat.inference.features import read_features
from videomaskfeat.models import create_model
from videomaskfeat.models.saving import save_model
from videomaskfeat.recipe import ClipRecipe
from videomaskfeat.stored_recipe import CLASSIFY_KEY, ClassifyRecipe, read_classify_recipe, read_recipe

from .conftest import Verb
from .test_pretrain import last_line, rows

IMAGES = 60  # 48 to train on, 12 held out
MVIT = {
    "cube_kernel": [1, 12, 12], "cube_stride": [1, 8, 8], "cube_padding": [0, 2, 2], "pool_kernel": [1, 3, 3],
    "relative_time": False, "depth": 3, "width": 16, "widen_at": [1],
}  # fmt: skip
VIT = {"depth": 2, "width": 24, "heads": 2}
# Model of pre-training, of fine-tuning, arguments of both, and the stride of the predictions in pixels.
NETWORKS = {
    "vit": ("maskfeat_vit_nano_image", "vit_nano_image", VIT, 8),
    "mvit": ("maskfeat_mvitv2_nano", "maskfeat_mvitv2_nano_classifier", MVIT, 16),
}
SHORT = [
    "clip.crop=32", "optim.epochs=2", "optim.batch_size=16", "optim.base_batch_size=16", "data.workers=0",
]  # fmt: skip
SHORTEST = ["optim.epochs=1", "optim.warmup_epochs=0.5"]


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures in class folders, and their lists; tests change copies only."""
    folder = tmp_path_factory.mktemp("shapes")
    make_image_folders(folder, IMAGES)
    for number in range(IMAGES):
        write_image(folder, number, images=IMAGES, size=40, seed=0)
    write_image_lists(folder, IMAGES, few=2)
    return folder


def pretraining(shapes: Path, run: Path, network: str, *more: str) -> list[str]:
    name, _, arguments, step = NETWORKS[network]
    return [
        "pretrain", "--config", "configs/pretrain/sample_images.yaml",
        f"data.train={shapes / 'train'}", f"data.validation={shapes / 'val'}", f"run.folder={run}",
        f"model.name={name}", f"model.arguments={json.dumps(arguments)}",
        f"target.arguments={{cube_stride: [1, {step}, {step}], output_stride: [1, {step}, {step}]}}",
        f"mask.cell=[1, {step}, {step}]", "mask.kind=random", "run.pictures=0", *SHORT, *more,
    ]  # fmt: skip


def finetuning(shapes: Path, run: Path, network: str, *more: str) -> list[str]:
    _, name, arguments, _ = NETWORKS[network]
    return [
        "finetune", "--config", "configs/finetune/sample_images.yaml",
        f"data.train={shapes / 'train'}", f"data.validation={shapes / 'val'}", f"run.folder={run}",
        f"model.name={name}", f"model.arguments={json.dumps(arguments)}",
        "evaluate.short_side=32", *SHORT, *more,
    ]  # fmt: skip


@pytest.mark.parametrize("network", NETWORKS)
def test_pictures_go_the_whole_way(network: str, shapes: Path, tmp_path: Path, verb: Verb) -> None:
    code, _, err = verb(*pretraining(shapes, tmp_path / "pretrained", network, "run.pictures=1"))
    assert code == 0, err
    assert [row["step"] for row in rows(tmp_path / "pretrained")] == list(range(1, 7))
    summary = simplejson.loads((tmp_path / "pretrained/summary.json").read_text())
    assert summary["heldout_clips"] == 12
    weights = tmp_path / "pretrained/weights.safetensors"
    assert read_recipe(weights).clip.frames == 1
    drawings = list((tmp_path / "pretrained/pictures").iterdir())
    assert {path.suffix for path in drawings} == {".png"}  # a film of one frame shows nothing
    height, width = cv2.imread(str(drawings[0])).shape[:2]
    assert width > 2 * height  # what is drawn of one frame lies side by side

    # Augmented and mixed as published pictures are: all of it works on one frame.
    augmented = [
        "augment.randaugment=rand-m9-mstd0.5-inc1",
        "augment.erasing=0.5",
        "mix.mixup=0.8",
        "mix.cutmix=1",
    ]
    code, _, err = verb(
        *finetuning(shapes, tmp_path / "run", network, f"model.weights={weights}", *augmented)
    )
    assert code == 0, err
    best = tmp_path / "run/best.safetensors"
    recipe = read_classify_recipe(best)
    assert (recipe.class_names, recipe.views) == (tuple(SHAPES), 1)

    tops = []
    for listing in (shapes / "val", shapes / "val.csv"):
        folder = tmp_path / f"scores of {listing.name}"
        code, out, err = verb("evaluate", best, listing, "--out", folder, "--workers", "0")
        assert code == 0, err
        assert out.startswith("12 of 12 videos scored (1 x 1 views)")
        tops.append(simplejson.loads((folder / "result.json").read_text())["top1"])
    assert tops[0] == tops[1]

    picture = shapes / "val/star/000058.png"
    code, out, err = verb("predict", best, picture, "--json", "-", "--out", tmp_path / "drawn")
    assert code == 0, err
    (first,) = json.loads(out[: out.rindex("]") + 1])
    assert {entry["name"] for entry in first["predictions"]} <= set(SHAPES)
    drawn = cv2.imread(str(tmp_path / "drawn/000058_labels.png"))
    assert drawn is not None
    assert drawn.shape[1] == 320  # the picture above the bars


# What shrinks the networks of each config to these tests' size.
SMALL = {
    "mae": [f"model.arguments={json.dumps({**VIT, 'decoder_width': 16})}"],
    "simmim": [f"model.arguments={json.dumps(VIT)}"],
    "ibot": [
        f"model.arguments={json.dumps(VIT)}", "method.arguments.temperature_warmup_epochs=1",
        "method.arguments.head={prototypes: 16, hidden_width: 16, bottleneck: 8}",
    ],
}  # fmt: skip


@pytest.mark.parametrize("method", SMALL)
def test_other_methods_learn_from_pictures(method: str, shapes: Path, tmp_path: Path, verb: Verb) -> None:
    code, _, err = verb(
        "pretrain", "--config", f"configs/pretrain/sample_images_{method}.yaml",
        f"data.train={shapes / 'train'}", f"data.validation={shapes / 'val'}",
        f"probe.train={shapes / 'train'}", f"probe.test={shapes / 'val'}", "run.evaluate_epochs=1",
        "run.pictures=0", f"run.folder={tmp_path / 'run'}", *SHORT, *SHORTEST, *SMALL[method],
    )  # fmt: skip
    assert code == 0, err
    assert all(np.isfinite(row["loss"]) for row in rows(tmp_path / "run"))
    assert 0 <= rows(tmp_path / "run")[-1]["evaluation/knn_top1"] <= 100
    weights = tmp_path / "run/weights.safetensors"
    code, _, err = verb(
        *finetuning(shapes, tmp_path / "finetuned", "vit", f"model.weights={weights}", *SHORTEST)
    )
    assert code == 0, err
    loaded = simplejson.loads((tmp_path / "finetuned/weights_loaded.json").read_text())
    assert set(loaded["new"]) <= {
        "head.projection.weight",
        "head.projection.bias",
        "norm.weight",
        "norm.bias",
    }


def test_run_with_former_initial_weights_resumes_by_a_key(shapes: Path, tmp_path: Path, verb: Verb) -> None:
    mae = [
        "pretrain", "--config", "configs/pretrain/sample_images_mae.yaml", f"data.train={shapes / 'train'}",
        "data.validation=", "run.pictures=0", f"run.folder={tmp_path}", *SHORT, *SHORTEST, *SMALL["mae"],
    ]  # fmt: skip
    former = [*mae, "model.initialization=slowfast"]
    assert verb(*former)[0] == 0
    code, _, err = verb(*mae)
    assert code == 2
    assert "model.initialization in effect is None there and 'mae' here; set them back" in err
    assert verb(*former)[0] == 0
    shutil.rmtree(tmp_path / "checkpoints")
    assert verb(*mae)[0] == 0
    assert verb(*mae)[0] == 0


def test_tokens_of_pictures_are_learned_and_predicted(shapes: Path, tmp_path: Path, verb: Verb) -> None:
    lists = [f"data.train={shapes / 'train'}", f"data.validation={shapes / 'val'}"]
    code, _, err = verb(
        "train-tokenizer", "--config", "configs/tokenizer/sample_images_dvae.yaml", *lists,
        f"run.folder={tmp_path / 'dvae'}", "frames.size=32", "data.workers=0", "optim.epochs=1",
        "optim.warmup_epochs=0.5", "optim.batch_size=16",
        "model.arguments={vocabulary: 16, width: 16, code_width: 8}",
    )  # fmt: skip
    assert code == 0, err
    tokens = {"weights": str(tmp_path / "dvae/weights.safetensors"), "output_stride": [1, 8, 8]}
    code, _, err = verb(
        "pretrain", "--config", "configs/pretrain/sample_images_beit.yaml", *lists,
        f"run.folder={tmp_path / 'run'}", *SHORT, *SHORTEST, f"model.arguments={json.dumps(VIT)}",
        f"target.arguments={json.dumps({**tokens, 'vocabulary': 16})}",
    )  # fmt: skip
    assert code == 0, err
    # Cross-entropy of 16 tokens; an untrained network spreads its guesses.
    assert rows(tmp_path / "run")[0]["loss"] == pytest.approx(np.log(16), rel=0.3)


def test_neighbors_and_features_take_class_folders(shapes: Path, tmp_path: Path, verb: Verb) -> None:
    weights = _classifier(tmp_path / "w.safetensors", names=("one", "two", "three"))
    # The folders are of another data set than the weights, and the held-out ones lack a class.
    held_out = Path(shutil.copytree(shapes / "val", tmp_path / "val"))
    shutil.rmtree(held_out / "bar")
    code, _, err = verb(
        "evaluate", weights, held_out, "--knn", shapes / "train", "--k", "3", "--out", tmp_path / "knn",
        "--workers", "0",
    )  # fmt: skip
    assert code == 0, err
    with open(tmp_path / "knn/scores.csv") as file:
        labels = [line.split(",") for line in file.read().splitlines()]
    column = labels[0].index("label")
    assert {int(row[column]) for row in labels[1:]} == set(range(1, 10))  # numbered as the training's
    code, _, err = verb("extract-features", weights, shapes / "val", tmp_path / "features", "--workers", "0")
    assert code == 0, err
    features, paths, labels = read_features(tmp_path / "features")
    assert features.shape == (12, 24)
    assert [Path(path).parent.name for path in paths] == [list(SHAPES)[label] for label in labels]


def test_folder_of_pictures_is_predicted_picture_by_picture(shapes: Path, tmp_path: Path, verb: Verb) -> None:
    weights = _classifier(tmp_path / "w.safetensors")
    code, out, err = verb("predict", weights, shapes / "val/disc", shapes / "val/heart/000055.png")
    assert code == 0, err
    assert [line.rsplit("/", 1)[1] for line in out.splitlines() if line.endswith(".png")] == [
        "000054.png", "000055.png",
    ]  # fmt: skip


def test_library_takes_a_picture_as_an_array(shapes: Path, tmp_path: Path) -> None:
    classifier = load_classifier(_classifier(tmp_path / "w.safetensors"), device="cpu")
    path = shapes / "val/star/000058.png"
    picture = decode_picture(path.read_bytes())
    expected = classifier.predict(path).probabilities
    for pixels in (picture, torch.from_numpy(picture)):
        assert torch.equal(classifier.predict(pixels).probabilities, expected)
    assert torch.equal(classifier.predict(picture[None], fps=1.0).probabilities, expected)


def test_video_in_a_list_of_pictures_gives_its_middle_frame(tmp_path: Path, verb: Verb) -> None:
    weights = _classifier(tmp_path / "w.safetensors")
    write_video(tmp_path / "v.mp4", frames=9)
    classifier = load_classifier(weights, device="cpu")
    with open_video(tmp_path / "v.mp4") as video:
        middle = video.read([(video.frames - 1) // 2])[0]
    expected = classifier.predict(middle).probabilities
    assert torch.equal(classifier.predict(tmp_path / "v.mp4").probabilities, expected)


def _classifier(path: Path, *, names: tuple[str, ...] = (), frames: int = 1) -> Path:
    """Weights of an untrained classifier of pictures."""
    torch.manual_seed(3)
    model = create_model(
        "vit_nano_image", **VIT, clip_size=(frames, 32, 32), classes=len(names) or 10, head_scale=9.0
    )
    recipe = ClassifyRecipe(
        ClipRecipe(frames=frames, stride=1, crop=32), views=1, crops=1, short_side=32, class_names=names
    )
    save_model(model, path, metadata={CLASSIFY_KEY: recipe.to_json()})
    return path


def _spoil(shapes: Path, folder: Path) -> Path:
    """A copy with two damaged pictures to train on and one held out."""
    copy = Path(shutil.copytree(shapes, folder))
    for name in ("train/disc/000004.png", "val/star/000058.png"):
        whole = (copy / name).read_bytes()
        (copy / name).write_bytes(whole[: len(whole) // 2])
    (copy / "train/heart/000015.png").write_text("no picture")
    return copy


def test_damaged_pictures_are_replaced_in_training_and_listed_in_scoring(
    shapes: Path, tmp_path: Path, verb: Verb
) -> None:
    damaged = _spoil(shapes, tmp_path / "damaged")
    code, _, err = verb(
        *finetuning(damaged, tmp_path / "run", "vit", "data.failure_share=0.2", "data.validation=")
    )
    assert code == 3, err
    failures = (tmp_path / "run/failures.jsonl").read_text()
    assert "000004.png" in failures
    assert "000015.png" in failures
    assert "not a picture, or a damaged one" in failures
    weights = _classifier(tmp_path / "w.safetensors")
    code, out, err = verb("evaluate", weights, damaged / "val", "--out", tmp_path / "out", "--workers", "0")
    assert code == 3
    assert out.startswith("11 of 12 videos scored")
    assert "000058.png: not a picture, or a damaged one" in err


def test_check_data_reads_class_folders_and_writes_a_clean_list(
    shapes: Path, tmp_path: Path, verb: Verb
) -> None:
    damaged = _spoil(shapes, tmp_path / "damaged images")
    clean = tmp_path / "clean.csv"
    code, out, _ = verb(
        "check-data", damaged / "train", "--format", "images", "--clean", clean, "--workers", "0"
    )
    assert code == 3
    assert "unreadable 2 rows" in out
    assert "40x40 (46)" in out
    lines = clean.read_text().splitlines()
    assert len(lines) == 46
    assert lines[0] == '"damaged images/train/bar/000000.png" 0'


def test_check_data_says_that_it_takes_class_folders_for_videos(shapes: Path, verb: Verb) -> None:
    _, out, err = verb("check-data", shapes / "train", "--workers", "0")
    assert "10 rows" in out
    assert "10 folders of pictures, read as the frames of videos; set format=images if they are" in err


@pytest.mark.parametrize("name", ["pretrain", "finetune"])
def test_pictures_for_longer_clips_are_refused(name: str, shapes: Path, tmp_path: Path, verb: Verb) -> None:
    words = {"pretrain": pretraining, "finetune": finetuning}[name](shapes, tmp_path / "run", "vit")
    code, _, err = verb(*words, "clip.frames=4", f"data.train={shapes / 'train.csv'}", "data.validation=")
    assert code == 2
    line = last_line(err)
    assert "is a picture (one frame), but clips have 4 frames (48 of 48 rows are pictures)" in line
    assert "use clip.frames=1" in line


def test_network_of_videos_refuses_a_picture(shapes: Path, tmp_path: Path, verb: Verb) -> None:
    weights = _classifier(tmp_path / "w.safetensors", frames=2)
    picture = shapes / "val/star/000058.png"
    code, _, err = verb("predict", weights, picture)
    assert code == 2
    assert "000058.png) is a picture (one frame), but clips have 2" in last_line(err)
    with pytest.raises(UserError, match="is one image, and the clips of this network have 2 frames"):
        load_classifier(weights, device="cpu").predict(np.zeros((40, 40, 3), np.uint8))


def test_one_class_or_none_is_refused(shapes: Path, tmp_path: Path, verb: Verb) -> None:
    for name, words in (("train/star", "is not in a class folder"), (".", "are splits, not classes")):
        code, _, err = verb(*finetuning(shapes, tmp_path / "run", "vit"), f"data.train={shapes / name}")
        assert code == 2
        assert words in last_line(err)
    (tmp_path / "one").mkdir()
    shutil.copytree(shapes / "train/star", tmp_path / "one/star")
    code, _, err = verb(*finetuning(shapes, tmp_path / "run", "vit"), f"data.train={tmp_path / 'one'}")
    assert code == 2
    assert "contains one class folder, star, and a classifier needs at least two" in last_line(err)
    (tmp_path / "none").mkdir()
    code, _, err = verb(*pretraining(shapes, tmp_path / "run", "vit"), f"data.train={tmp_path / 'none'}")
    assert code == 2
    assert "contains no pictures" in last_line(err)
