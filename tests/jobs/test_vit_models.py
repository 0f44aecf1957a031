"""Vision transformers in the tasks: videos to answers, graphs, plans, imports, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from torch import Tensor
from torch.nn import functional

from tests.engine.toy import metrics
from tests.jobs.test_export import SMALL_CLIP, frames, normalized, onnx_run, program_run, write
from videomaskfeat import load_classifier, load_encoder
from videomaskfeat.cli import main
from videomaskfeat.config import load_config
from videomaskfeat.errors import UserError
from videomaskfeat.jobs.export import export
from videomaskfeat.jobs.finetune import build_classifier
from videomaskfeat.jobs.import_weights import import_slowfast
from videomaskfeat.methods.build import build_method
from videomaskfeat.models import create_model
from videomaskfeat.models.cost import multiply_adds
from videomaskfeat.models.loading import load_model
from videomaskfeat.models.mae import MAE
from videomaskfeat.models.saving import save_model
from videomaskfeat.recipe import MaskRecipe, PretrainRecipe
from videomaskfeat.schemas.finetune import FinetuneConfig
from videomaskfeat.schemas.pretrain import PretrainConfig
from videomaskfeat.stored_recipe import ClassifyRecipe

CONFIGS = Path(__file__).parents[2] / "configs" / "pretrain"
SMALL: dict[str, Any] = {"depth": 2, "width": 16, "heads": 2, "clip_size": (4, 32, 32)}
CLASSIFY = ClassifyRecipe(SMALL_CLIP, views=1, short_side=32, class_names=("a", "b", "c"))
CLOSE = {"atol": 1e-4, "rtol": 1e-5}  # float32, sums in another order


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """A classifier's."""
    return write(tmp_path / "vit.safetensors", "vit_nano", CLASSIFY, classes=3, head_scale=40.0, **SMALL)


@torch.no_grad()
def test_video_is_classified_and_gives_features(weights: Path) -> None:
    video = np.random.default_rng(0).integers(256, size=(12, 32, 32, 3), dtype=np.uint8)
    network = load_model(weights)
    span = video[[2, 4, 6, 9]]  # 4 frames at stride 2 span 8 of 12: from 2 on, at 0, 7/3, 14/3 and 7
    expected = network(normalized(span[None]))[0].softmax(0)
    actual = load_classifier(weights, device="cpu").predict(video, fps=30.0).probabilities
    torch.testing.assert_close(torch.as_tensor(actual), expected, **CLOSE)
    features = load_encoder(weights, device="cpu").features(video, fps=30.0, depth=1)
    torch.testing.assert_close(features, network.features(normalized(span[None]), depth=1)[0], **CLOSE)


@pytest.mark.parametrize(
    ("ending", "arguments"),
    [
        ("pt2", {}),
        ("onnx", {"absolute_positions": "sincos", "layer_scale": 0.5}),
        pytest.param("onnx", {}, marks=pytest.mark.slow),
        pytest.param("pt2", {"absolute_positions": "sincos", "layer_scale": 0.5}, marks=pytest.mark.slow),
    ],
)
@torch.no_grad()
def test_classifier_is_exported(tmp_path: Path, ending: str, arguments: dict[str, Any]) -> None:
    weights = write(tmp_path / "a.safetensors", "vit_nano", CLASSIFY, classes=3, **SMALL, **arguments)
    exported = export(weights, tmp_path / f"a.{ending}")
    assert exported.difference.relative < 1e-5
    pixels = frames(2, SMALL_CLIP)
    run = onnx_run(exported.paths[0], clips=pixels) if ending == "onnx" else None
    (actual,) = run or program_run(exported.paths[0], torch.from_numpy(pixels))
    torch.testing.assert_close(actual, load_model(weights)(normalized(pixels)), **CLOSE)


def test_mae_gives_its_encoder_as_a_graph_and_its_weights_whole(tmp_path: Path) -> None:
    recipe = PretrainRecipe(SMALL_CLIP, MaskRecipe(kind="random", ratio=0.75, cell=(2, 8, 8)))
    weights = write(tmp_path / "mae.safetensors", "mae_vit_nano", recipe, **SMALL)
    assert export(weights, tmp_path / "encoder.pt2", part="encoder").difference.relative < 1e-5
    assert export(weights, tmp_path / "whole.safetensors").difference.largest == 0
    with pytest.raises(
        UserError, match=r"mae.safetensors: an MAE model cannot be exported as a graph, .*--part encoder"
    ):
        export(weights, tmp_path / "whole.onnx")


def masked_config(name: str, target: str = "pixels", **mask: Any) -> PretrainConfig:
    config = PretrainConfig()
    config.clip.frames, config.clip.crop = 8, 64
    config.model.name = name
    config.mask.kind, config.mask.ratio, config.mask.cell = "random", 0.9, [2, 8, 8]
    for key, value in mask.items():
        setattr(config.mask, key, value)
    config.target.name = target
    config.target.arguments = {"output_stride": [2, 8, 8]}
    if target == "hog":
        config.target.arguments["cube_stride"] = [2, 8, 8]
    return config


@pytest.mark.parametrize(
    ("name", "target"),
    [("mae_vit_nano", "pixels"), ("mae_vit_nano", "hog"), ("maskfeat_vit_nano", "hog")],
)
def test_pretraining_learns_one_batch(name: str, target: str) -> None:
    torch.manual_seed(0)
    method = build_method(masked_config(name, target))
    student = method.student
    clips = functional.interpolate(torch.randn(2, 3, 4, 8, 8), (8, 64, 64), mode="trilinear")  # no mere noise
    mask = method.example[1].expand(2, -1, -1, -1)
    values = method.target(clips)
    optimizer = torch.optim.AdamW(student.parameters(), lr=3e-3)
    losses = []
    for _ in range(12):
        loss = method.target.loss(student(clips, mask), values, mask)
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < 0.95 * losses[0]


def test_mae_multiply_adds_are_those_of_the_visible_tokens() -> None:
    method = build_method(masked_config("mae_vit_nano"))

    def blocks(tokens: int, width: int, depth: int) -> int:
        return depth * (12 * tokens * width**2 + 2 * tokens**2 * width)

    visible = 25  # of 256: 231 are hidden, the ceiling of 90 %; and the class token
    by_hand = visible * 384 * 96 + blocks(
        visible + 1, 96, 6
    )  # the stem's cubes of 2x8x8x3 pixels, the encoder
    by_hand += (
        (visible + 1) * 96 * 64 + blocks(257, 64, 2) + 256 * 64 * 192
    )  # to the decoder, the decoder, the pixels
    layer_norms = 5 * ((visible + 1) * 96 * 13 + 257 * 64 * 4 + 256 * 64)  # fvcore counts 5 a value
    actual = multiply_adds(method.student, method.example)
    assert actual == pytest.approx(by_hand + layer_norms, rel=2e-3)
    dense = build_method(masked_config("maskfeat_vit_nano"))
    assert actual < 0.3 * multiply_adds(dense.student, dense.example)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "giga"), [("vit_b", 180), ("vit_l", 598)])
def test_multiply_adds_are_the_published_ones(name: str, giga: int) -> None:
    """PySlowFast's MAE page."""
    actual = multiply_adds(create_model(name, classes=400), (torch.zeros(1, 3, 16, 224, 224),))
    assert actual / 1e9 == pytest.approx(giga, rel=0.005)


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)])
def test_sample_config_trains_and_its_weights_start_a_classifier(
    device: str, sample: Path, tmp_path: Path
) -> None:
    overrides = [
        f"run.device={device}",
        f"data.train={sample / 'train.csv'}",
        f"data.validation={sample / 'val.csv'}",
        f"run.folder={tmp_path / 'run'}",
        "data.workers=0",
        "optim.epochs=1",
        "optim.warmup_epochs=0",
        "run.evaluate_clips=2",
        "run.pictures=1",
    ]
    assert main(["pretrain", "--config", str(CONFIGS / "sample_mae.yaml"), *overrides]) == 0
    losses = [row["loss"] for row in metrics(tmp_path / "run") if "loss" in row]
    assert losses
    assert all(0 < loss < 2 for loss in losses)  # of values of variance 1
    config = FinetuneConfig()
    config.clip.frames, config.clip.crop = 8, 64
    config.model.name, config.model.weights = "vit_nano", str(tmp_path / "run" / "weights.safetensors")
    _, report = build_classifier(config, 5)
    assert report is not None
    assert {entry.partition(".")[0] for entry in report.new} == {"head"}


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (
            masked_config("mae_vit_nano", kind="cube", ratio=0.4),
            "mask.kind 'cube' does not hide the same number of positions",
        ),
        (masked_config("mae_vit_nano", ratio=0.999), "mask.ratio 0.999 .*leaves no visible cells"),
        (masked_config("mae_vit_nano", ratio=0.001), "mask.ratio 0.001 .*leaves no hidden cells"),
        (masked_config("mae_mvitv2_nano"), "'mae_mvitv2_nano': .*pooling needs the whole grid; .*dense form"),
        (masked_config("vit_nano"), "model.name 'vit_nano' predicts no target"),
    ],
)
def test_what_cannot_be_is_said_before_training(config: PretrainConfig, words: str) -> None:
    with pytest.raises(UserError, match=words):
        build_method(config)


@pytest.mark.parametrize(("name", "inflated"), [("mae_vit_nano", False), ("maskfeat_vit_nano_image", True)])
def test_fine_tuning_starts_from_pretraining(tmp_path: Path, name: str, inflated: bool) -> None:
    clip = (1, 64, 64) if inflated else (8, 64, 64)
    save_model(create_model(name, clip_size=clip), tmp_path / "pretrained.safetensors")
    overrides = ["data.train=x.csv", "run.folder=x", "clip.frames=8", "clip.crop=64", "model.name=vit_nano"]
    overrides += [f"model.weights={tmp_path / 'pretrained.safetensors'}", "model.inflate=centered"]
    (tmp_path / "config.yaml").write_text("{}")
    config = load_config(FinetuneConfig, str(tmp_path / "config.yaml"), overrides)
    model, report = build_classifier(config, 5)
    assert report is not None
    assert bool(report.inflated) == inflated
    assert {entry.partition(".")[0] for entry in report.new} == {"head"} | ({"norm"} if inflated else set())
    first = model.get_parameter("patch_embed.proj.weight")[:, :, 0]
    assert bool(first.any()) != inflated  # centered, it stands in the second frame
    config.model.inflate = "middle"
    with pytest.raises(UserError, match="inflate 'middle' is unknown; choose from repeated, centered"):
        build_classifier(config, 5)


@pytest.mark.parametrize(
    ("case", "facts"),
    [
        ("mae_vit_video", ("mae_vit_b", "pixels", "random", [2, 16, 16], "auto")),
        ("maskfeat_vit_image", ("maskfeat_vit_b_image", "hog", "block", [1, 16, 16], "images")),
    ],
)
def test_recorded_pretraining_is_imported(
    golden: Path, tmp_path: Path, case: str, facts: tuple[Any, ...]
) -> None:
    folder = golden / case
    outcome = import_slowfast(folder / "config.yaml", folder / "checkpoint.pyth", tmp_path / "out")
    config = load_config(PretrainConfig, str(outcome.config))
    actual = (config.model.name, config.target.name, config.mask.kind, config.mask.cell, config.data.format)
    assert actual == facts
    method = build_method(config)
    method.student.load_state_dict(load_model(outcome.weights).state_dict())
    expected = torch.load(folder / "expected.pt", weights_only=True)
    clips: Tensor = expected["clip"]
    clips = clips if clips.ndim == 5 else clips[:, :, None]
    mask = expected["mask"].reshape(2, *method.student.output_grid(clips.shape).shape)
    loss = method.target.loss(method.student(clips, mask), method.target(clips), mask)
    assert loss.item() == pytest.approx(expected["loss"], abs=1e-6)
    assert isinstance(method.student, MAE) == (case == "mae_vit_video")
    assert yaml.safe_load(outcome.config.read_text())["model"]["arguments"]["width"] == 32
