"""PySlowFast's YAMLs and checkpoints: recorded values, and refused options."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from videomaskfeat.errors import UserError
from videomaskfeat.grid import TokenGrid, resize_mask
from videomaskfeat.interop import load_slowfast
from videomaskfeat.interop.slowfast import ImageTarget
from videomaskfeat.interop.slowfast_keys import (
    CLASSIFICATION,
    CLIP,
    DECODER,
    ENCODER,
    FIXED,
    NO_EFFECT,
    PRETRAINING,
)
from videomaskfeat.losses.masked import masked_mse
from videomaskfeat.models.heads import Classifier
from videomaskfeat.models.mae import MAE
from videomaskfeat.models.maskfeat import MaskFeat
from videomaskfeat.models.vit import ViT
from videomaskfeat.models.zoo import with_head
from videomaskfeat.targets.pixels import PixelTarget

RECORDED = Path(__file__).parents[1] / "golden"
GOLDEN = RECORDED / "maskfeat_mvitv2_video"
CHECKPOINT = GOLDEN / "checkpoint.pyth"
KINETICS = RECORDED / "mvitv2_kinetics"
VIDEO = RECORDED / "mae_vit_video"
IMAGE = RECORDED / "maskfeat_vit_image"
CLASSIFIERS = ("mvitv2_maskfeat_finetuned", "mvitv2_kinetics")


def write_config(folder: Path, changes: dict[str, Any], *, of: Path = GOLDEN) -> Path:
    """A recorded YAML with changed values by SECTION.KEY; the value ``...`` removes a key."""
    content = yaml.safe_load((of / "config.yaml").read_text())
    for key, value in changes.items():
        section, _, name = key.rpartition(".")
        holder = content.setdefault(section, {}) if section else content
        if value is ...:
            del holder[name]
        else:
            holder[name] = value
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def test_recorded_pretraining_step_is_reproduced() -> None:
    imported = load_slowfast(GOLDEN / "config.yaml", CHECKPOINT)
    expected = torch.load(GOLDEN / "expected.pt", weights_only=True)
    clips, mask = expected["clip"], expected["mask"]
    assert imported.target is not None
    predictions, target = imported.model(clips, mask), imported.target(clips)
    hidden = resize_mask(mask, TokenGrid(*predictions.shape[1:4]))
    # Tolerances of the recorded values: float32, another order of summation.
    torch.testing.assert_close(predictions[hidden], expected["pred_masked"], atol=1e-4, rtol=0)
    torch.testing.assert_close(target[hidden], expected["target_masked"], atol=1e-5, rtol=0)
    loss = masked_mse(predictions, target, mask)
    assert loss.item() == pytest.approx(expected["loss"], abs=1e-6)
    loss.backward()
    norms = {name: weight.grad.norm().item() for name, weight in imported.model.named_parameters()}
    assert norms.keys() == expected["grad_norm"].keys()
    for name, norm in norms.items():
        if not name.endswith("norm_k.bias"):  # the true gradient is 0; the recorded norm is rounding
            assert norm == pytest.approx(expected["grad_norm"][name], rel=1e-4, abs=1e-8), name


@pytest.mark.parametrize("case", CLASSIFIERS)
def test_recorded_logits_are_reproduced(case: str) -> None:
    imported = load_slowfast(RECORDED / case / "config.yaml", RECORDED / case / "checkpoint.pyth")
    expected = torch.load(RECORDED / case / "expected.pt", weights_only=True)
    # Tolerance of the recorded values; the largest difference seen is 3e-7.
    torch.testing.assert_close(imported.model(expected["clip"]), expected["logits"], atol=1e-4, rtol=0)
    assert imported.target is None
    assert imported.mask is None
    assert not imported.model.training
    weights = imported.report.weights
    assert (len(weights.loaded), weights.resized, weights.new, weights.unused) == (107, (), (), ())
    assert {"SOLVER.LR_POLICY", "AUG.ENABLE", "DATA_LOADER.PIN_MEMORY"} <= set(imported.report.ignored_keys)
    assert not {"MODEL.NUM_CLASSES", "DATA.SAMPLING_RATE"} & set(imported.report.ignored_keys)


def test_checkpoint_with_other_classes_is_refused(tmp_path: Path) -> None:
    path = write_config(tmp_path, {"MODEL.NUM_CLASSES": 8}, of=KINETICS)
    words = r"checkpoint.pyth has head.projection.weight in shape \(7, 64\), but the model needs \(8, 64\)"
    with pytest.raises(UserError, match=words):
        load_slowfast(path, KINETICS / "checkpoint.pyth")


@pytest.mark.parametrize(
    ("changes", "facts"),
    [
        (
            {},
            {"sampling": "clip", "views": 5, "crops": 1, "short_side": 256, "channels": "rgb", "flip": True},
        ),
        # Three crops cover the longer side of frames whose short side equals the crop size.
        ({"TEST.NUM_SPATIAL_CROPS": 3}, {"crops": 3, "short_side": 64}),
        ({"TEST.NUM_TEMPORAL_CLIPS": [1, 10, 4]}, {"views": 10, "view_counts": (1, 10, 4)}),
        # SSv2 frames are read as BGR and normalized in that order, then optionally reversed.
        (
            {"TEST.DATASET": "ssv2", "TEST.NUM_ENSEMBLE_VIEWS": 2, "DATA.MEAN": [0.1, 0.2, 0.3]},
            {
                "sampling": "segments",
                "views": 1,
                "short_side": 64,
                "channels": "bgr",
                "mean": (0.3, 0.2, 0.1),
            },
        ),
        (
            {"TEST.DATASET": "Ssv2", "DATA.REVERSE_INPUT_CHANNEL": True, "DATA.STD": [0.1, 0.2, 0.3]},
            {"dataset": "ssv2", "channels": "rgb", "std": (0.3, 0.2, 0.1)},
        ),
        (
            {"DATA.REVERSE_INPUT_CHANNEL": True, "DATA.MEAN": [0.1, 0.2, 0.3]},
            {"channels": "bgr", "mean": (0.1, 0.2, 0.3)},
        ),
        ({"MODEL.HEAD_ACT": "none", "DATA.RANDOM_FLIP": False}, {"average": "logits", "flip": False}),
    ],
)
def test_clips_and_views_match_the_yaml(
    tmp_path: Path, changes: dict[str, Any], facts: dict[str, Any]
) -> None:
    clip = load_slowfast(write_config(tmp_path, changes, of=KINETICS), KINETICS / "checkpoint.pyth").clip
    actual = {**vars(clip.recipe.clip), **vars(clip.recipe), **vars(clip)}
    assert {name: actual[name] for name in facts} == facts
    sizes = (clip.recipe.clip.frames, clip.recipe.clip.stride, clip.recipe.clip.crop)
    assert (*sizes, clip.classes, clip.offset) == (4, 4, 64, 7, True)


def test_masks_match_the_yaml(tmp_path: Path) -> None:
    for changes, kind in (
        ({}, "cube"),
        ({"AUG.MASK_TUBE": True}, "tube"),
        ({"AUG.MASK_FRAMES": True}, "frame"),
    ):
        mask = load_slowfast(write_config(tmp_path, changes), CHECKPOINT).mask
        assert mask is not None
        assert (mask.kind, mask.ratio, mask.window) == (kind, 0.4, (2, 2, 2))


def test_report_names_unused_weights_and_ignored_keys() -> None:
    report = load_slowfast(GOLDEN / "config.yaml", CHECKPOINT).report
    assert len(report.weights.loaded) == 108
    assert set(report.weights.unused) == {"hogs.0.weight_x", "hogs.0.weight_y"}
    assert not report.weights.new
    assert {"SOLVER.BASE_LR", "AUG.RE_PROB", "NUM_GPUS"} <= set(report.ignored_keys)
    assert "MVIT.DEPTH" not in report.ignored_keys
    assert "MaskFeat pre-training: 108 weights loaded" in str(report)


def test_numbers_and_tuples_written_as_strings_are_read(tmp_path: Path) -> None:
    changes = {
        "MVIT.PATCH_STRIDE": "(2, 4, 4)",
        "MVIT.PATCH_KERNEL": "(3, 7, 7)",
        "MVIT.MLP_RATIO": "4",
        "MVIT.DROPPATH_RATE": "1e-6",
        "SOLVER.BASE_LR": "1e-4",
    }
    imported = load_slowfast(write_config(tmp_path, changes), CHECKPOINT)
    assert imported.model.patch_embed.stride == (2, 4, 4)


def test_missing_keys_have_pyslowfast_defaults(tmp_path: Path) -> None:
    # By default PATCH_PADDING is (2, 4, 4), which with a 3x7x7 kernel gives one token too many.
    with pytest.raises(UserError, match=r"cube_padding \(2, 4, 4\)"):
        load_slowfast(write_config(tmp_path, {"MVIT.PATCH_PADDING": ...}), CHECKPOINT)
    with pytest.raises(UserError, match=r"TRAIN_CROP_SIZE and DATA\.TEST_CROP_SIZE must be equal"):
        load_slowfast(write_config(tmp_path, {"DATA.TEST_CROP_SIZE": ...}), CHECKPOINT)


def test_pretrain_depth_shortens_the_encoder(tmp_path: Path) -> None:
    path = write_config(tmp_path, {"MASK.PRETRAIN_DEPTH": [2]})
    checkpoint = torch.load(CHECKPOINT, weights_only=True)
    state = checkpoint["model_state"]
    for name in [name for name in state if name.startswith("blocks.3.")]:
        del state[name]
    state["pred_head.projections.0.weight"] = torch.zeros(27, 64)  # one pooling less: 8-pixel positions
    state["pred_head.projections.0.bias"] = torch.zeros(27)
    torch.save(checkpoint, tmp_path / "short.pyth")
    imported = load_slowfast(path, tmp_path / "short.pyth")
    assert imported.target is not None
    clips = torch.randn(1, 3, 4, 64, 64)
    predictions = imported.model(clips, torch.zeros(1, 2, 2, 2, dtype=torch.bool))
    assert predictions.shape == imported.target(clips).shape == (1, 2, 8, 8, 27)
    with pytest.raises(UserError, match=r"PRETRAIN_DEPTH \(1, 2\)"):
        load_slowfast(write_config(tmp_path, {"MASK.PRETRAIN_DEPTH": [1, 2]}), CHECKPOINT)


REFUSED: dict[Path, list[tuple[dict[str, Any], str]]] = {
    GOLDEN: [
        (
            {"MODEL.MODEL_NAME": "SlowFast"},
            "MODEL_NAME 'SlowFast' .*is not supported; supported names: MaskMViT",
        ),
        (
            {"MVIT.PATCH_2D": True, "DATA.NUM_FRAMES": 1},
            "MVIT.PATCH_2D True is not supported with pooling .* in pre-training",
        ),
        ({"MASK.ENABLE": False}, "MASK.ENABLE is False, but MaskFeat pre-training supports only True"),
        (
            {"MASK.PRED_HOG": False, "MASK.TIME_STRIDE_LOSS": False},
            "MASK.TIME_STRIDE_LOSS False is supported only with MASK.MAE_ON True",
        ),
        (
            {"MASK.MAE_ON": True, "MASK.PRED_HOG": False, "MASK.HEAD_TYPE": "separate_xformer"},
            "MASK.MAE_ON True with pooling .*: an MAE encoder sees the "
            "visible tokens only, but MViTv2's pooling "
            "needs the whole grid; use the dense form, .*: model maskfeat_mvitv2_s",
        ),
        ({"MASK.HEAD_TYPE": "separate_xformer"}, "MASK.HEAD_TYPE is 'separate_xformer'"),
        ({"MVIT.MODE": "avg"}, "MVIT.MODE 'avg' is not supported; only 'conv' is"),
        ({"MVIT.REV": {"ENABLE": True}}, "MVIT.REV.ENABLE True is not supported"),
        ({"MVIT.LAYER_SCALE_INIT_VALUE": 0.1}, "MVIT.LAYER_SCALE_INIT_VALUE 0.1 is not supported"),
        (
            {"MVIT.RESIDUAL_POOLNG": True},
            "unknown key MVIT.RESIDUAL_POOLNG; did you mean 'MVIT.RESIDUAL_POOL",
        ),
        ({"SOVLER.BASE_LR": 1}, "unknown key SOVLER.BASE_LR"),
        ({"MVIT.DEPTH": "deep"}, "MVIT.DEPTH 'deep' must be of type int, such as 16"),
        ({"MVIT.DIM_MUL": [[1, 3.0]]}, "must be equal, and every factor in them must be 2"),
        ({"MVIT.POOL_Q_STRIDE": [[1, 1, 2, 2]]}, "POOL_Q_STRIDE must list each of the 4 blocks once"),
        ({"MVIT.DIM_MUL": [[1, 2.0], 3]}, "MVIT.DIM_MUL .*must be a list of lists of numbers"),
        (
            {"MVIT.DIM_MUL": [[1]], "MVIT.HEAD_MUL": [[1]]},
            "must be equal, and every factor in them must be 2",
        ),
        ({"MVIT.POOL_Q_STRIDE": [[0, 1e300, 2, 2]]}, "POOL_Q_STRIDE .*must be a list of lists of numbers"),
        ({"MVIT.DEPTH": 2**62}, "POOL_Q_STRIDE must list each of the 4611686018427387904 blocks once"),
        ({"MVIT.DEPTH": "9" * 900}, "MVIT.DEPTH .*must be of type int"),
        ({"MVIT.PATCH_KERNEL": [3, "7", 7]}, "MVIT.PATCH_KERNEL .* must be a list of numbers"),
        ({"MASK.PRETRAIN_DEPTH": [[1]]}, "MASK.PRETRAIN_DEPTH .* must be a list of numbers"),
        ({"DATA.INPUT_CHANNEL_NUM": []}, "DATA.INPUT_CHANNEL_NUM is empty"),
        ({"MODEL.MODEL_NAME": ["MViT"]}, r"MODEL_NAME \['MViT'\] .*is not supported"),
        ({"MVIT.POOL_KVQ_KERNEL": ...}, r"MVIT.POOL_KVQ_KERNEL \(\) must be three integers"),
    ],
    KINETICS: [
        ({"MODEL.HEAD_ACT": "sigmoid"}, "MODEL.HEAD_ACT 'sigmoid' is not supported"),
        ({"DETECTION.ENABLE": True}, "MODEL.HEAD_ACT is 'softmax', but action detection supports only"),
        ({"CONTRASTIVE.NUM_MLP_LAYERS": 2}, "CONTRASTIVE.NUM_MLP_LAYERS 2 is not supported; only 1 is"),
        ({"MVIT.NORM_STEM": True}, "MVIT.NORM_STEM True is not supported"),
        (
            {"MVIT.POOL_KV_STRIDE": [[0, 1, 8, 8]], "MVIT.POOL_KV_STRIDE_ADAPTIVE": ...},
            r"MVIT.POOL_KV_STRIDE \[\(0, 1, 8, 8\)\] must list each block once",
        ),
        ({"DATA.NUM_FRAME": 16}, "unknown key DATA.NUM_FRAME; did you mean 'DATA.NUM_FRAMES'"),
        ({"TEST.NUM_VIEWS": 16}, "unknown key TEST.NUM_VIEWS"),
        ({"DATA.MEAN": [0.45]}, r"DATA.MEAN \[0.45\] must be 3 numbers"),
        ({"DATA.STD": [0.2, True, 0.2]}, r"DATA.STD \[0.2, True, 0.2\] must be a list of numbers"),
        (
            {"TEST.NUM_TEMPORAL_CLIPS": ["one"]},
            r"TEST.NUM_TEMPORAL_CLIPS \['one'\] must be a list of numbers",
        ),
    ],
    VIDEO: [
        ({"MVIT.PATCH_KERNEL": [3, 16, 16]}, r"PATCH_KERNEL \(3, 16, 16\).*needs kernel = stride"),
        ({"MVIT.PATCH_PADDING": ...}, r"PATCH_PADDING \(2, 4, 4\) \(time, height, width\)"),
        ({"MVIT.REL_POS_SPATIAL": True}, "REL_POS_SPATIAL True is not supported without pooling"),
        ({"MASK.DECODER_SEP_POS_EMBED": True}, "DECODER_SEP_POS_EMBED True .* not supported"),
        ({"MASK.DECODER_DEPTH": 0}, "MASK.DECODER_DEPTH 0 must be at least 1"),
        ({"MASK.PRED_HOG": True}, "MASK.PRED_HOG is True, but MAE pre-training supports only False"),
        ({"MASK.HEAD_TYPE": "separate"}, "MASK.HEAD_TYPE is 'separate', .* supports only 'separate_xformer'"),
    ],
    IMAGE: [
        ({"DATA.NUM_FRAMES": 8}, "DATA.NUM_FRAMES 8 must be 1 with MVIT.PATCH_2D True"),
        ({"MASK.PRED_HOG": False}, "because the pixel order of images differs; only HOG is"),
        ({"MVIT.PATCH_STRIDE": [16]}, r"MVIT.PATCH_STRIDE \(16,\) must be three integers"),
    ],
}
"""Changes of recorded YAMLs, and the words of their errors."""


@pytest.mark.parametrize(
    ("case", "changes", "words"), [(case, *row) for case, rows in REFUSED.items() for row in rows]
)
def test_option_that_would_change_the_model_is_refused(
    tmp_path: Path, case: Path, changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(UserError, match=words) as caught:
        load_slowfast(write_config(tmp_path, changes, of=case), case / "checkpoint.pyth")
    assert "config.yaml" in str(caught.value) or "cube_" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_yaml_of_a_resnet_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "resnet.yaml"
    content = {
        "TRAIN": {"DATASET": "kinetics", "BATCH_SIZE": 64},
        "RESNET": {"DEPTH": 50, "TRANS_FUNC": "bottleneck_transform"},
        "MODEL": {"NUM_CLASSES": 400, "ARCH": "slow", "MODEL_NAME": "ResNet"},
    }
    path.write_text(yaml.safe_dump(content))
    words = (
        r"resnet.yaml: MODEL.MODEL_NAME 'ResNet' \(MODEL.ARCH 'slow'\) is "
        r"not supported; supported names: MaskMViT "
        r"\(MaskFeat pre-training\), MViT \(classification\)"
    )
    with pytest.raises(UserError, match=words):
        load_slowfast(path, CHECKPOINT)
    content["MODEL"] = {"NUM_CLASSES": 400}  # PySlowFast's default
    path.write_text(yaml.safe_dump(content))
    with pytest.raises(UserError, match=r"MODEL.MODEL_NAME 'SlowFast' is not supported"):
        load_slowfast(path, CHECKPOINT)


@pytest.mark.parametrize("text", ["model: {name: mvitv2_s}\nclip: {frames: 16}\n", "a: 1\n", "{}\n"])
def test_other_yaml_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "ours.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=r"ours.yaml is not a PySlowFast YAML: it has no section MODEL"):
        load_slowfast(path, CHECKPOINT)


def test_pickled_arrays_are_refused_with_a_remedy(tmp_path: Path) -> None:
    """Such as Caffe2 checkpoints, and old ones with numpy numbers next to the weights."""
    path = tmp_path / "old.pyth"
    torch.save({"model_state": {}, "epoch": np.float64(3)}, path)
    with pytest.raises(
        UserError, match=r"old.pyth contains pickled code .* save only its tensors \(torch.save"
    ):
        load_slowfast(GOLDEN / "config.yaml", path)


def test_error_names_a_file_that_is_not_yaml(tmp_path: Path) -> None:
    path = tmp_path / "broken.yaml"
    for text, words in (("a: [1", "not valid YAML"), ("just words", "not a PySlowFast YAML")):
        path.write_text(text)
        with pytest.raises(UserError, match=f"broken.yaml.* {words}"):
            load_slowfast(path, CHECKPOINT)
    with pytest.raises(UserError, match=r"absent.yaml: no such file"):
        load_slowfast(tmp_path / "absent.yaml", CHECKPOINT)


def test_checkpoint_of_another_model_is_refused(tmp_path: Path) -> None:
    checkpoint = torch.load(CHECKPOINT, weights_only=True)
    state = checkpoint["model_state"]
    state["extra"] = state.pop("blocks.3.attn.qkv.weight")
    torch.save(checkpoint, tmp_path / "other.pyth")
    with pytest.raises(UserError, match=r"other.pyth lacks 1 weights .*blocks.3.attn.qkv.weight"):
        load_slowfast(GOLDEN / "config.yaml", tmp_path / "other.pyth")


def test_weights_key_selects_a_set_of_weights(tmp_path: Path) -> None:
    """Names with a prefix, and a moving average next to the model, as saved by other trainers."""
    state = torch.load(CHECKPOINT, weights_only=True)["model_state"]
    path = tmp_path / "both.pyth"
    average = {f"module.{name}": value * 2 for name, value in state.items()}
    torch.save({"model_state": state, "ema": average}, path)
    plain = load_slowfast(GOLDEN / "config.yaml", path)
    assert (plain.report.weights.key, plain.report.weights.beside) == ("model_state", ("ema",))
    chosen = load_slowfast(GOLDEN / "config.yaml", path, weights_key="ema")
    assert chosen.report.weights.prefix == "module."
    assert torch.equal(chosen.model.mask_token, 2 * plain.model.mask_token)


@pytest.mark.parametrize(("case", "kind"), [(VIDEO, MAE), (IMAGE, with_head(MaskFeat, ViT))])
def test_recorded_step_of_a_vision_transformer_is_reproduced(case: Path, kind: type) -> None:
    imported = load_slowfast(case / "config.yaml", case / "checkpoint.pyth")
    expected = torch.load(case / "expected.pt", weights_only=True)
    clips, mask = expected["clip"], expected["mask"]
    assert isinstance(imported.model, kind)
    assert imported.target is not None
    predictions, target = imported.model(clips, mask), imported.target(clips)
    assert predictions.shape == target.shape == (*mask.shape, target.shape[-1])
    # Tolerances of the recorded values: float32, another order of summation.
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


def test_clips_and_masks_of_recorded_yamls() -> None:
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
    cube = clips[0, :, 2:4, 16:32, 32:48].permute(1, 2, 3, 0)  # [frame, row, column, color]
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


def test_each_key_is_in_one_group() -> None:
    groups = (ENCODER, PRETRAINING, DECODER, CLASSIFICATION, CLIP, FIXED, NO_EFFECT)
    keys = [key for group in groups for key in group]
    assert len(set(keys)) == len(keys)
