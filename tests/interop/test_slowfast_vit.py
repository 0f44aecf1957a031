"""PySlowFast's plain vision transformers, for clips and images: recorded numbers, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.interop.test_slowfast import write_config
from videomaskfeat.errors import UserError
from videomaskfeat.interop import load_slowfast
from videomaskfeat.interop.slowfast import ImageTarget
from videomaskfeat.losses import masked_mse
from videomaskfeat.models.heads import Classifier
from videomaskfeat.models.mae import MAE
from videomaskfeat.models.maskfeat import MaskFeat
from videomaskfeat.models.vit import ViT
from videomaskfeat.models.zoo import with_head
from videomaskfeat.targets.pixels import PixelTarget

RECORDED = Path(__file__).parents[1] / "golden"
VIDEO = RECORDED / "mae_vit_video"
IMAGE = RECORDED / "maskfeat_vit_image"


@pytest.mark.parametrize(("case", "kind"), [(VIDEO, MAE), (IMAGE, with_head(MaskFeat, ViT))])
def test_recorded_pretraining_step_is_reproduced(case: Path, kind: type) -> None:
    imported = load_slowfast(case / "config.yaml", case / "checkpoint.pyth")
    expected = torch.load(case / "expected.pt", weights_only=True)
    clips, mask = expected["clip"], expected["mask"]
    assert isinstance(imported.model, kind)
    assert imported.target is not None
    predictions, target = imported.model(clips, mask), imported.target(clips)
    assert predictions.shape == target.shape == (*mask.shape, target.shape[-1])
    # The tolerances are those the values were recorded for: float32, another order of summation.
    torch.testing.assert_close(predictions[mask], expected["pred_masked"], atol=1e-4, rtol=0)
    torch.testing.assert_close(target[mask], expected["target_masked"], atol=1e-5, rtol=0)
    if case == IMAGE:  # the same as clips of one frame
        once_more = imported.model(clips[:, :, None], mask[:, None])
        assert torch.equal(once_more[:, 0], predictions)
        assert torch.equal(imported.target(clips[:, :, None])[:, 0], target)
        predictions, target, mask = predictions[:, None], target[:, None], mask[:, None]
    loss = masked_mse(predictions, target, mask)
    assert loss.item() == pytest.approx(expected["loss"], abs=1e-6)
    loss.backward()
    norms = {name: weight.grad.norm().item() for name, weight in imported.model.named_parameters()}
    assert norms.keys() == expected["grad_norm"].keys()
    for name, norm in norms.items():
        assert norm == pytest.approx(expected["grad_norm"][name], rel=1e-4, abs=1e-8), name


def test_facts_of_the_recorded_yamls_are_told() -> None:
    video = load_slowfast(VIDEO / "config.yaml", VIDEO / "checkpoint.pyth")
    assert video.mask is not None
    assert (video.mask.kind, video.mask.ratio, video.mask.window) == ("random", 0.9, (2, 4, 4))
    assert isinstance(video.target, PixelTarget)
    assert str(video.report).startswith("MAE pre-training: 64 weights loaded; ")
    image = load_slowfast(IMAGE / "config.yaml", IMAGE / "checkpoint.pyth")
    assert image.mask is not None
    assert (image.mask.kind, image.mask.ratio, image.mask.window) == ("block", 0.4, (1, 4, 4))
    assert isinstance(image.target, ImageTarget)
    assert image.clip.recipe.clip.mean == (0.485, 0.456, 0.406)
    assert image.model.created_as[0] == "maskfeat_vit_b_image"  # none has its depth: the arguments decide


def test_tubes_and_pixels_of_all_frames_are_read(tmp_path: Path) -> None:
    checkpoint = torch.load(VIDEO / "checkpoint.pyth", weights_only=True)
    state = checkpoint["model_state"]
    for name in ("pred_head.projections.0.weight", "pred_head.projections.0.bias"):
        state[name] = torch.cat([state[name]] * 2)  # of both frames of a cube
    torch.save(checkpoint, tmp_path / "all.pyth")
    changes = {"AUG.MASK_TUBE": True, "MASK.TIME_STRIDE_LOSS": False, "MASK.NORM_PRED_PIXEL": False}
    imported = load_slowfast(write_config(tmp_path, changes, of=VIDEO), tmp_path / "all.pyth")
    assert imported.mask is not None
    assert imported.mask.kind == "random_tube"
    assert imported.target is not None
    clips = torch.randn(1, 3, 4, 64, 64)
    cube = clips[0, :, 2:4, 16:32, 32:48].permute(1, 2, 3, 0)  # [frame, row, column, colour]
    assert torch.equal(imported.target(clips)[0, 1, 1, 2], cube.flatten())


@pytest.mark.parametrize("image", [True, False])
def test_classifier_on_a_vision_transformer_is_read(tmp_path: Path, image: bool) -> None:
    case = IMAGE if image else VIDEO
    checkpoint = torch.load(case / "checkpoint.pyth", weights_only=True)
    state = {
        name: value
        for name, value in checkpoint["model_state"].items()
        if not name.startswith(("pred_head", "decoder", "mask_token", "hogs", "norm"))
    }
    generator = torch.Generator().manual_seed(0)
    for name, shape in (("norm.weight", (32,)), ("norm.bias", (32,)), ("head.projection.bias", (5,))):
        state[name] = torch.randn(shape, generator=generator)
    state["head.projection.weight"] = torch.randn(5, 32, generator=generator)
    torch.save({"model_state": state}, tmp_path / "classifier.pyth")
    changes = {
        "MODEL": {"MODEL_NAME": "MViT", "ARCH": "mvit", "NUM_CLASSES": 5, "DROPOUT_RATE": 0.0},
        "MVIT.USE_MEAN_POOLING": True,
        "MASK": ...,
    }
    imported = load_slowfast(write_config(tmp_path, changes, of=case), tmp_path / "classifier.pyth")
    model = imported.model
    assert isinstance(model, with_head(Classifier, ViT))
    clips = torch.randn(2, 3, 64, 64) if image else torch.randn(2, 3, 4, 64, 64)
    logits = model(clips)
    tokens, _ = model.through_blocks(*model.patch_embed(clips[:, :, None] if image else clips))
    features = torch.nn.functional.layer_norm(
        tokens[:, 1:].mean(1), (32,), state["norm.weight"], state["norm.bias"], eps=1e-6
    )
    by_hand = features @ state["head.projection.weight"].t() + state["head.projection.bias"]
    torch.testing.assert_close(logits, by_hand, atol=1e-5, rtol=1e-5)
    assert imported.target is None


@pytest.mark.parametrize(
    ("case", "changes", "words"),
    [
        (VIDEO, {"MVIT.PATCH_KERNEL": [3, 16, 16]}, r"PATCH_KERNEL \(3, 16, 16\).*kernel of its stride"),
        (VIDEO, {"MVIT.PATCH_PADDING": ...}, r"PATCH_PADDING \(2, 4, 4\) \(time, height, width\)"),
        (VIDEO, {"MVIT.REL_POS_SPATIAL": True}, r"REL_POS_SPATIAL True is not supported without pooling"),
        (VIDEO, {"MASK.DECODER_SEP_POS_EMBED": True}, r"DECODER_SEP_POS_EMBED True .* not supported"),
        (VIDEO, {"MASK.DECODER_DEPTH": 0}, r"MASK.DECODER_DEPTH 0 must be at least 1"),
        (VIDEO, {"MASK.PRED_HOG": True}, r"MASK.PRED_HOG is True and only False .*MAE pre-training"),
        (VIDEO, {"MASK.HEAD_TYPE": "separate"}, r"MASK.HEAD_TYPE is 'separate' and only 'separate_xformer'"),
        (IMAGE, {"DATA.NUM_FRAMES": 8}, r"DATA.NUM_FRAMES 8 with MVIT.PATCH_2D True; an image has 1"),
        (IMAGE, {"MASK.PRED_HOG": False}, r"pixels of images lie in another order there and are not read"),
        (IMAGE, {"MVIT.PATCH_STRIDE": [16]}, r"MVIT.PATCH_STRIDE \(16,\) must be three integers"),
    ],
)
def test_option_that_would_change_the_model_is_refused_by_name(
    tmp_path: Path, case: Path, changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(UserError, match=words):
        load_slowfast(write_config(tmp_path, changes, of=case), case / "checkpoint.pyth")
