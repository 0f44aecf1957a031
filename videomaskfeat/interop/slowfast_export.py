"""From our models to PySlowFast's parameter names and YAML keys (commit 287ec00)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from videomaskfeat.errors import UserError
from videomaskfeat.models import arguments_of
from videomaskfeat.models.detector import Detector
from videomaskfeat.models.encoder_base import Encoder
from videomaskfeat.models.heads import PROBES, Classifier
from videomaskfeat.models.mae import MAE
from videomaskfeat.models.maskfeat import MaskedModel, MaskFeat
from videomaskfeat.models.mvit import MViT
from videomaskfeat.models.vit import ViT
from videomaskfeat.stored_recipe import ClassifyRecipe

_STEM = "patch_embed.proj.weight"
_DECODER_HEAD_WIDTH = 64
_SOBEL = ((1.0, 0.0, -1.0), (2.0, 0.0, -2.0), (1.0, 0.0, -1.0))


def slowfast_state(model: nn.Module) -> dict[str, Tensor]:
    """A model's weights with the names of PySlowFast's ``model_state``.

    ``torch.save({"model_state": slowfast_state(model)}, path)`` is a PySlowFast checkpoint; with "epoch" it
    would also need the optimizer state. A pre-training model includes the kernels of PySlowFast's HOG layer.

    Args:
        model: an encoder, a pre-training model, or a classifier with head "mean" or "token".

    Returns:
        Tensors on the CPU by name; they share memory with a model on the CPU.

    Raises:
        UserError: PySlowFast has no such model.
    """
    encoder = _check_supported(model)
    state = {name: value.detach().cpu() for name, value in encoder.state_dict().items()}
    if isinstance(encoder, MaskFeat):
        kernel = torch.tensor(_SOBEL).expand(encoder.patch_embed.in_channels, 1, 3, 3)
        state["hogs.0.weight_x"] = kernel.contiguous()
        state["hogs.0.weight_y"] = kernel.transpose(2, 3).contiguous()
    if _of_images(encoder):
        state[_STEM] = state[_STEM].squeeze(2)  # [D, C, h, w]
    return state


def slowfast_options(model: nn.Module) -> dict[str, dict[str, Any]]:
    """The sections of a PySlowFast YAML that describe a model, without training and testing.

    Args:
        model: as for :func:`slowfast_state`, created by :func:`~videomaskfeat.models.create_model`.

    Returns:
        Section -> key -> plain value, for ``yaml.safe_dump``.

    Raises:
        UserError: PySlowFast has no such model.
    """
    encoder = _check_supported(model)
    created_as = getattr(encoder, "created_as", None)
    if created_as is None:
        raise UserError(
            f"the arguments of a {type(model).__name__} that create_model did not create are unknown; "
            "create it with create_model"
        )
    arguments = arguments_of(*created_as)
    frames, height, width = arguments["clip_size"]
    if height != width:
        raise UserError(
            f"clip_size {arguments['clip_size']}: PySlowFast supports square clips only; export a model with "
            "equal height and width"
        )
    pretraining = isinstance(encoder, MaskedModel)
    model_keys = {
        "MODEL_NAME": "MaskMViT" if pretraining else "MViT",
        "ARCH": "maskmvit" if pretraining else "mvit",
        "ACT_CHECKPOINT": arguments["checkpoint_blocks"],
    }
    if isinstance(encoder, Classifier):
        model_keys |= {"NUM_CLASSES": arguments["classes"], "DROPOUT_RATE": arguments["dropout"]}
    options = {
        "DATA": {
            "NUM_FRAMES": frames,
            "TRAIN_CROP_SIZE": height,
            "TEST_CROP_SIZE": height,
            "INPUT_CHANNEL_NUM": [arguments["in_channels"]],
        },
        "MODEL": model_keys,
        "MVIT": _encoder_keys(arguments, plain=isinstance(encoder, ViT), image=_of_images(encoder)),
    }
    if pretraining:
        options["MASK"] = {"ENABLE": True, "PRETRAIN_DEPTH": [arguments["depth"] - 1]}
        options["MASK"] |= (
            _decoder_keys(arguments)
            if isinstance(encoder, MAE)
            else {"PRED_HOG": True, "HEAD_TYPE": "separate"}
        )
    return options


def slowfast_clip_options(recipe: ClassifyRecipe) -> dict[str, dict[str, Any]]:
    """The sections of a PySlowFast YAML about clips and views, as far as PySlowFast supports them."""
    clip, segments = recipe.clip, recipe.sampling == "segments"
    data: dict[str, Any] = {}
    for key, value in (("MEAN", clip.mean), ("STD", clip.std)):
        channels = value if isinstance(value, tuple) else (value,) * 3
        # PySlowFast reads SSv2 frames as BGR, normalizes them, then reverses the channels for our model.
        data[key] = list(channels[::-1] if segments else channels)
    if segments:
        data["REVERSE_INPUT_CHANNEL"] = True
    else:
        data["USE_OFFSET_SAMPLING"] = True  # otherwise views do not cover the first to the last frame
        if recipe.crops == 1:  # PySlowFast resizes for one crop to the smallest training scale
            data["TRAIN_JITTER_SCALES"] = [recipe.short_side, recipe.short_side * 5 // 4]
    for key, number in (("SAMPLING_RATE", clip.stride), ("TARGET_FPS", clip.target_fps)):
        if number is not None and number == int(number):  # PySlowFast accepts integers only
            data[key] = int(number)
    dataset = {"DATASET": "ssv2" if segments else "kinetics"}
    views = {"NUM_ENSEMBLE_VIEWS": recipe.views, "NUM_SPATIAL_CROPS": recipe.crops}
    keys = {"DATA": data, "TRAIN": dataset, "TEST": {**dataset, **views}}
    return keys | ({"MODEL": {"HEAD_ACT": "none"}} if recipe.average == "logits" else {})


def _of_images(encoder: Encoder) -> bool:
    """Whether PySlowFast has this model as one with two-dimensional patches."""
    return isinstance(encoder, ViT) and encoder.patch_embed.stride[0] == encoder.native_grid.t == 1


def _check_supported(model: nn.Module) -> Encoder:
    """The model, if PySlowFast supports it; raises UserError otherwise."""
    if isinstance(model, Classifier) and model.head_kind in PROBES:
        raise UserError(
            f"cannot export head {model.head_kind!r} to PySlowFast, which has 'mean' and 'token' only"
        )
    if isinstance(model, MaskFeat) and model.blank_hidden:
        raise UserError("cannot export blank_hidden true to PySlowFast, which does not blank hidden pixels")
    if isinstance(model, Detector):
        raise UserError(
            "cannot export an action detector to PySlowFast; use format onnx, torch or safetensors, or "
            "--part encoder"
        )
    if not isinstance(model, MViT | ViT):
        raise UserError(
            f"cannot export a {type(model).__name__} to PySlowFast, which has MViT and ViT models only"
        )
    if isinstance(model, ViT) and (
        model.fixed_positions
        or model.rotary
        or model.rel_pos_bias is not None
        or "blocks.0.gamma_1" in model.state_dict()
    ):
        raise UserError(
            "cannot export absolute_positions 'sincos', layer_scale, relative_bias or rotary to PySlowFast; "
            "use a ViT with learned positions and without layer scale"
        )
    if isinstance(model, MAE) and (
        model.decoder_pos_embed is None or model.decoder_width // model.decoder_heads != _DECODER_HEAD_WIDTH
    ):
        raise UserError(
            f"cannot export decoder_width {model.decoder_width}, decoder_heads {model.decoder_heads}, fixed "
            f"positions {model.decoder_pos_embed is None} to PySlowFast: its decoders have heads of width "
            f"{_DECODER_HEAD_WIDTH} and learned positions"
        )
    if isinstance(model, MAE) and _of_images(model):
        raise UserError(
            "cannot export an image MAE to PySlowFast: its pixel order differs; an MAE for clips can be "
            "exported"
        )
    return model


def _decoder_keys(arguments: dict[str, Any]) -> dict[str, Any]:
    """The MASK section of an MAE, with normalized pixels (the default)."""
    _, rows, columns = arguments["cube_stride"]
    return {
        "MAE_ON": True,
        "MAE_RND_MASK": True,
        "PRED_HOG": False,
        "HEAD_TYPE": "separate_xformer",
        "DECODER_DEPTH": arguments["decoder_depth"],
        "DECODER_EMBED_DIM": arguments["decoder_width"],
        "TIME_STRIDE_LOSS": arguments["values_per_token"] == rows * columns * arguments["in_channels"],
    }


def _encoder_keys(arguments: dict[str, Any], *, plain: bool, image: bool) -> dict[str, Any]:
    """The MVIT section, the inverse of ``slowfast.encoder_arguments``."""
    keys = {
        "DEPTH": arguments["depth"],
        "EMBED_DIM": arguments["width"],
        "NUM_HEADS": arguments["heads"],
        "MLP_RATIO": float(arguments["mlp_ratio"]),
        "QKV_BIAS": arguments["qkv_bias"],
        "CLS_EMBED_ON": arguments["class_token"],
        "USE_ABS_POS": arguments["absolute_positions"] != "none",
        "SEP_POS_EMBED": arguments["absolute_positions"] == "separable",
        "DROPPATH_RATE": float(arguments["drop_path"]),
    }
    if "head" in arguments:
        keys |= {
            "USE_MEAN_POOLING": arguments["head"] == "mean",
            "HEAD_INIT_SCALE": float(arguments["head_scale"]),
        }
    if not plain:
        return keys | _pooling_keys(arguments)
    cube = list(arguments["cube_stride"])[int(image) :]
    return keys | {
        "PATCH_2D": image,
        "PATCH_KERNEL": cube,
        "PATCH_STRIDE": cube,
        "PATCH_PADDING": [0] * len(cube),
    }


def _pooling_keys(arguments: dict[str, Any]) -> dict[str, Any]:
    """Keys of MViTv2 that a plain vision transformer does not have."""
    pool = list(arguments["q_pool_stride"])
    rows = [
        [block, *(pool if block in arguments["q_pool_at"] else (1, 1, 1))]
        for block in range(arguments["depth"])
    ]
    return {
        "DIM_MUL": [[block, 2.0] for block in arguments["widen_at"]],
        "HEAD_MUL": [[block, 2.0] for block in arguments["widen_at"]],
        "DIM_MUL_IN_ATT": arguments["widen_in"] == "attention",
        "POOL_Q_STRIDE": rows,
        "POOL_KV_STRIDE_ADAPTIVE": list(arguments["kv_stride"]),
        "POOL_KVQ_KERNEL": list(arguments["pool_kernel"]),
        "PATCH_KERNEL": list(arguments["cube_kernel"]),
        "PATCH_STRIDE": list(arguments["cube_stride"]),
        "PATCH_PADDING": list(arguments["cube_padding"]),
        "REL_POS_SPATIAL": arguments["relative_space"],
        "REL_POS_TEMPORAL": arguments["relative_time"],
        "RESIDUAL_POOLING": arguments["residual_pooling"],
    }
