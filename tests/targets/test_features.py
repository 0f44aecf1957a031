"""The feature target: the teacher's input, its features, and that it is frozen."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from videomaskfeat.errors import UserError
from videomaskfeat.models import create_model
from videomaskfeat.models.saving import save_model
from videomaskfeat.targets.features import EncoderTeacher, FeatureTarget, load_teacher
from videomaskfeat.targets.target import CosineTally

SMALL: dict[str, Any] = {"clip_size": (4, 32, 32), "depth": 4, "width": 8, "widen_at": (1, 3)}


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Pre-training weights with drop path: stride 2x8x8, 2x16x16 from block 2; widths 16, then 32."""
    path = tmp_path_factory.mktemp("teacher") / "weights.safetensors"
    torch.manual_seed(0)
    save_model(create_model("maskfeat_mvitv2_nano", **SMALL, drop_path=0.5), path)
    return str(path)


@pytest.fixture(scope="module")
def image_teacher(tmp_path_factory: pytest.TempPathFactory) -> str:
    """An image encoder with patches of 8x8, pooled to 16x16."""
    path = tmp_path_factory.mktemp("teacher") / "image.safetensors"
    torch.manual_seed(1)
    frames: dict[str, Any] = {"cube_kernel": (1, 8, 8), "cube_stride": (1, 8, 8), "cube_padding": (0, 0, 0)}
    arguments = {**SMALL, **frames, "clip_size": (1, 32, 32), "pool_kernel": (1, 3, 3)}
    save_model(create_model("maskfeat_mvitv2_nano", **arguments), path)
    return str(path)


def test_target_is_the_normalized_feature_of_the_whole_clip(teacher: str) -> None:
    target = FeatureTarget(teacher=teacher, teacher_mean=0.4, teacher_std=0.2, clip_mean=0.5, clip_std=0.25)
    encoder = target.teacher.encoder
    clips = torch.randn(2, 3, 4, 32, 32)
    seen = (clips * 0.25 + 0.5 - 0.4) / 0.2
    features = encoder.features(seen, pooled=False)  # type: ignore[operator,union-attr]
    mean = features.mean(-1, keepdim=True)
    deviation = features.var(-1, keepdim=True, unbiased=False).add(1e-5).sqrt()
    torch.testing.assert_close(target(clips), (features - mean) / deviation, atol=1e-5, rtol=1e-5)
    assert target(clips).shape[-1] == target.values_per_token == 32
    assert target.output_stride == (2, 16, 16)
    assert target.files == (teacher,)
    # Without teacher_mean and teacher_std, the run's normalization is kept.
    unit = FeatureTarget(teacher=teacher, normalize="l2", clip_mean=0.5, clip_std=0.25)
    plain = encoder.features(clips, pooled=False)  # type: ignore[operator,union-attr]
    torch.testing.assert_close(unit(clips), F.normalize(plain, dim=-1), atol=1e-5, rtol=1e-5)


def test_each_channel_has_its_own_normalization(teacher: str) -> None:
    means = [0.485, 0.456, 0.406]
    target = FeatureTarget(teacher=teacher, normalize="none", teacher_mean=means, teacher_std=[0.2, 0.3, 0.4])
    clips = torch.randn(1, 3, 4, 32, 32)
    seen = [(clips[:, c] * 0.225 + 0.45 - means[c]) / (0.2, 0.3, 0.4)[c] for c in range(3)]
    expected = target.teacher(torch.stack(seen, dim=1))
    torch.testing.assert_close(target(clips), expected, atol=1e-4, rtol=1e-4)  # of values up to 10


def test_teacher_can_run_in_bf16(teacher: str) -> None:
    """Tolerance 0.1 after four blocks, for features of variance 1; the target is float32."""
    clips = torch.randn(2, 3, 4, 32, 32)
    exact, output = FeatureTarget(teacher=teacher)(clips), FeatureTarget(teacher=teacher, bf16=True)(clips)
    assert output.dtype == torch.float32
    assert not torch.equal(output, exact)
    torch.testing.assert_close(output, exact, atol=0.1, rtol=0)


@pytest.mark.parametrize("depth", [1, 2, 3, 4])
def test_depth_sets_width_and_grid(teacher: str, depth: int) -> None:
    target = FeatureTarget(teacher=teacher, depth=depth)
    output = target(torch.zeros(1, 3, 4, 32, 32))
    grid = [size // step for size, step in zip((4, 32, 32), target.output_stride, strict=True)]
    assert list(output.shape) == [1, *grid, target.values_per_token]
    assert target.output_stride == ((2, 8, 8) if depth == 1 else (2, 16, 16))


@pytest.mark.parametrize("loss", ["mse", "smooth_l1"])
def test_several_depths_are_normalized_apart_and_their_losses_averaged(teacher: str, loss: str) -> None:
    """Blocks 2 and 4 have width 16 and 32: the mean over values weighs them 1 to 2; 1e-6 of about 1."""
    target = FeatureTarget(teacher=teacher, depth=[2, 4], loss=loss)
    singles = [FeatureTarget(teacher=teacher, depth=depth, loss=loss) for depth in (2, 4)]
    clips = torch.randn(2, 3, 4, 32, 32)
    truth, parts = target(clips), [one(clips) for one in singles]
    assert target.values_per_token == truth.shape[-1] == 48
    torch.testing.assert_close(truth, torch.cat(parts, dim=-1), atol=1e-6, rtol=1e-6)
    predictions, mask = torch.randn_like(truth), torch.rand(2, 2, 2, 2) < 0.5
    losses = [
        one.loss(own, part, mask)
        for one, own, part in zip(singles, predictions.split((16, 32), dim=-1), parts, strict=True)
    ]
    expected = (16 * losses[0] + 32 * losses[1]) / 48
    torch.testing.assert_close(target.loss(predictions, truth, mask), expected, atol=1e-6, rtol=1e-6)


def test_impossible_depths_are_refused(teacher: str) -> None:
    for depth, words in (
        ([1, 4], r"depths \[1, 4\]: their features are on different grids; set target\.arguments\.depth"),
        ([], r"teacher depth \[\] must be a block, a list of blocks, or null"),
    ):
        with pytest.raises(UserError, match=words):
            FeatureTarget(teacher=teacher, depth=depth)
    with pytest.raises(UserError, match="'cosine' compares features of one depth"):
        FeatureTarget(teacher=teacher, depth=[2, 4], loss="cosine")


def test_teacher_of_images_sees_the_first_frame_of_each_cube(image_teacher: str) -> None:
    target = FeatureTarget(teacher=image_teacher, frame_stride=2, normalize="none", clip_mean=0, clip_std=1)
    assert target.output_stride == (2, 16, 16)
    clips = torch.randn(2, 3, 4, 32, 32)
    output = target(clips)
    encoder = target.teacher.encoder
    for time in (0, 1):
        frame = clips[:, :, 2 * time][:, :, None]
        alone = encoder.features(frame, pooled=False)  # type: ignore[operator,union-attr]
        torch.testing.assert_close(output[:, time], alone[:, 0], atol=1e-5, rtol=1e-5)
    changed = clips.clone()
    changed[:, :, 1::2] += 1
    assert torch.equal(target(changed), output)


def test_teacher_gets_no_gradient_and_no_dropout(teacher: str) -> None:
    target = FeatureTarget(teacher=teacher, loss="mse").train()
    clips = torch.randn(1, 3, 4, 32, 32, requires_grad=True)
    output = target(clips)
    assert torch.equal(target(clips), output)  # drop path 0.5 would change it
    assert not output.requires_grad
    predictions = torch.randn_like(output, requires_grad=True)
    target.loss(predictions, output, torch.ones(1, 2, 2, 2, dtype=torch.bool)).backward()
    assert predictions.grad is not None
    assert clips.grad is None
    assert all(not parameter.requires_grad for parameter in target.parameters())
    assert all(parameter.grad is None for parameter in target.parameters())


@pytest.mark.parametrize(
    ("loss", "name"), [("smooth_l1", "smooth L1 error"), ("cosine", "one minus the cosine")]
)
def test_losses_equal_torchs(teacher: str, loss: str, name: str) -> None:
    target = FeatureTarget(teacher=teacher, loss=loss, beta=0.5)
    predictions, truth = torch.randn(2, 2, 2, 2, 32), torch.randn(2, 2, 2, 2, 32)
    mask = torch.rand(2, 2, 2, 2) < 0.5
    own = target.loss(predictions, truth, mask)
    p, t = predictions[mask], truth[mask]
    expected = (
        F.smooth_l1_loss(p, t, beta=0.5) if loss == "smooth_l1" else (1 - F.cosine_similarity(p, t)).mean()
    )
    torch.testing.assert_close(own, expected, atol=1e-6, rtol=1e-6)
    assert target.loss_name == name
    assert isinstance(target.tally(), CosineTally) == (loss == "cosine")


class HuggingFaceLike(nn.Module):
    """A class token and the mean color of each patch; the second block adds 1."""

    def __init__(self) -> None:
        super().__init__()
        self.config = SimpleNamespace(patch_size=8, hidden_size=3)

    def forward(
        self, pixel_values: Tensor, output_hidden_states: bool = False, interpolate_pos_encoding: bool = False
    ) -> Any:
        assert interpolate_pos_encoding
        patches = F.avg_pool2d(pixel_values, 8).flatten(2).transpose(1, 2)
        tokens = torch.cat([torch.full_like(patches[:, :1], 99.0), patches], dim=1)
        states = (tokens - 1, tokens, tokens + 1)
        return SimpleNamespace(
            last_hidden_state=10 * tokens, hidden_states=states if output_hidden_states else None
        )


class TimmLike(nn.Module):
    """The same with timm's interface, ImageNet's normalization, and two prefix tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.patch_embed = nn.Module()
        self.patch_embed.patch_size = (8, 8)  # type: ignore[assignment]
        self.embed_dim = 3
        self.pretrained_cfg = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}

    def forward_features(self, frames: Tensor) -> Tensor:
        patches = F.avg_pool2d(frames, 8).flatten(2).transpose(1, 2)
        return torch.cat([torch.full_like(patches[:, :2], 99.0), patches], dim=1)


@pytest.fixture
def foreign(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("foreign_models")
    module.hugging_face, module.timm = HuggingFaceLike, TimmLike  # type: ignore[attr-defined]
    module.no_module, module.number = dict, 3  # type: ignore[attr-defined]
    module.linear = lambda: nn.Linear(2, 2)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "foreign_models", module)


@pytest.mark.usefixtures("foreign")
def test_other_models_are_applied_per_frame() -> None:
    clips = torch.randn(2, 3, 4, 16, 24)
    means = F.avg_pool3d(clips[:, :, ::2], (1, 8, 8)).permute(0, 2, 3, 4, 1)  # [B, t, h, w, C]
    whole = load_teacher("foreign_models:hugging_face")
    assert (whole.output_stride, whole.widths, whole.mean) == ((2, 8, 8), (3,), None)
    torch.testing.assert_close(whole(clips), 10 * means)
    torch.testing.assert_close(load_teacher("foreign_models:hugging_face", depth=2)(clips), means + 1)
    both = load_teacher("foreign_models:hugging_face", depth=[2, 1])
    torch.testing.assert_close(both(clips), torch.cat([means + 1, means], dim=-1))
    timm = load_teacher("foreign_models:timm")
    assert timm.std == (0.229, 0.224, 0.225)
    torch.testing.assert_close(timm(clips), means)
    target = FeatureTarget(teacher="foreign_models:timm", normalize="none")
    scaled = [(means[..., c] * 0.225 + 0.45 - timm.mean[c]) / timm.std[c] for c in range(3)]  # type: ignore[index]
    torch.testing.assert_close(target(clips), torch.stack(scaled, dim=-1), atol=1e-5, rtol=1e-5)


@pytest.mark.usefixtures("foreign")
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"teacher": "gone/weights.safetensors"}, r"gone/weights\.safetensors: no such file"),
        ({"teacher": "gone_models:vit"}, r"gone_models cannot be imported .*install its package"),
        ({"teacher": "foreign_models:vit"}, r"foreign_models has no callable 'vit'"),
        ({"teacher": "foreign_models:number"}, r"foreign_models has no callable 'number'"),
        ({"teacher": "foreign_models:no_module"}, r"returned a dict; it must return a torch module"),
        ({"teacher": "foreign_models:linear"}, r"a Linear has neither Hugging Face's interface"),
        ({"teacher": "foreign_models:timm", "depth": 2}, r"only Hugging Face models support depth"),
        ({"teacher": "hf:gone"}, r"hf:gone: there is no folder with a config\.json; .*nothing is downloaded"),
        ({"teacher": "foreign_models:timm", "frame_stride": 0}, r"frame_stride 0 must be 1 or more"),
        ({"teacher": "foreign_models:timm", "loss": "cosin"}, r"feature loss 'cosin'.*did you mean 'cosine'"),
        (
            {"teacher": "foreign_models:timm", "normalize": "layr"},
            r"feature normalization 'layr'.*mean 'layer'",
        ),
        ({"teacher": "foreign_models:timm", "beta": 0}, r"feature beta 0 must be above 0"),
    ],
)
def test_invalid_teacher_is_refused(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        FeatureTarget(**arguments)


def test_hugging_face_folder_is_loaded_with_its_normalization(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    sizes = {"hidden_size": 12, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
    config = transformers.ViTConfig(image_size=32, patch_size=8, **sizes)
    model = transformers.ViTModel(config, add_pooling_layer=False).eval()
    model.save_pretrained(tmp_path)
    facts = {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.3, 0.4]}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(facts))
    teacher = load_teacher(f"hf:{tmp_path}")
    assert (teacher.mean, teacher.std) == (facts["image_mean"], facts["image_std"])
    assert {Path(path).name for path in teacher.files} >= {"config.json", "model.safetensors"}
    clips = torch.randn(1, 3, 4, 32, 48)  # wider than the model's own pictures
    for depth in (None, 1):
        states = model(clips[:, :, 2], output_hidden_states=True, interpolate_pos_encoding=True)
        tokens = states.last_hidden_state if depth is None else states.hidden_states[depth]
        output = load_teacher(f"hf:{tmp_path}", depth=depth)(clips)
        torch.testing.assert_close(output[:, 1], tokens[:, 1:].unflatten(1, (4, 6)), atol=1e-5, rtol=1e-5)


def test_error_without_transformers_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "config.json").write_text("{}")
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(
        UserError, match=r"the package transformers is not installed; pip install 'videomaskfeat\[teachers\]'"
    ):
        load_teacher(f"hf:{tmp_path}")


def test_unknown_teacher_depth_is_refused(teacher: str) -> None:
    with pytest.raises(UserError, match=r"teacher depth 5: the teacher has blocks 1\.\.4"):
        load_teacher(teacher, depth=5)


def test_grid_remedy_lists_the_grids_of_blocks(teacher: str) -> None:
    loaded = load_teacher(teacher)
    assert isinstance(loaded, EncoderTeacher)
    words = (
        "set target.arguments.depth (the teacher's features have strides of "
        "2x8x8 up to block 1, 2x16x16 up to block 4"
    )
    assert loaded.grid_remedy.startswith(words)


def test_grid_remedy_for_one_grid_is_another_teacher(tmp_path: Path) -> None:
    path = tmp_path / "vit.safetensors"
    sizes: dict[str, Any] = {"clip_size": (4, 32, 32), "depth": 2, "width": 8, "heads": 2}
    save_model(create_model("maskfeat_vit_nano", **sizes), path)
    loaded = load_teacher(str(path), depth=1)
    assert loaded(torch.zeros(1, 3, 4, 32, 32)).shape == (1, 2, 4, 4, 8)
    words = "use another teacher (its features have a stride of 2x8x8 frames, rows and columns)"
    assert loaded.grid_remedy == words


def test_grid_remedy_for_an_image_teacher_is_frame_stride(image_teacher: str) -> None:
    assert load_teacher(image_teacher).grid_remedy.startswith(
        "set target.arguments.frame_stride to the frames per cube of the model"
    )
