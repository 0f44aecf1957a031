"""Recorded models with random weights in the layouts of other projects' own code."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor


def weights_of(folder: Path) -> Path:
    return folder / "mvit_v2_tiny.pth" if folder.name == "torchvision_mvit" else folder


def state_of(folder: Path) -> dict[str, Tensor]:
    path = weights_of(folder)
    if path.is_file():
        state: dict[str, Tensor] = torch.load(path, weights_only=True)
        return state
    return load_file(path / "model.safetensors")


def expected_of(folder: Path) -> tuple[Tensor, Tensor, Tensor | None]:
    """Clip, output, and mask of an MAE."""
    values = load_file(folder / "expected.safetensors")
    return values["clip"].float(), values["output"], values.get("mask")


def renamed(state: Mapping[str, Tensor], *rules: tuple[str, str]) -> dict[str, Tensor]:
    result = {}
    for name, value in state.items():
        for old, new in rules:
            name = re.sub(old, new, name)
        result[name] = value.clone()
    return result


def with_fused_attention(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """``attn.query``, ``attn.key``, ``attn.value`` as the ``attn.qkv`` of original code."""
    fused = {
        name: value for name, value in state.items() if not re.search(r"attn\.(query|key|value)\.", name)
    }
    for name in state:
        if ".attn.query." in name:
            projections = [state[name.replace("query", kind)] for kind in ("query", "key", "value")]
            fused[name.replace("query", "qkv")] = torch.cat(projections)
    return fused


TO_VIDEOMAE = (
    (r"^videomae\.", "encoder."),
    (r"embeddings\.patch_embeddings\.projection", "patch_embed.proj"),
    (r"encoder\.layer\.|decoder_layers\.", "blocks."),
    (r"attention\.attention\.([qv]_bias)", r"attn.\1"),
    (r"attention\.attention\.", "attn."),
    (r"attention\.output\.dense", "attn.proj"),
    (r"intermediate\.dense", "mlp.fc1"),
    (r"output\.dense", "mlp.fc2"),
    (r"layernorm_before", "norm1"),
    (r"layernorm_after", "norm2"),
    (r"layernorm", "norm"),
)


def videomae_classifier(recorded: Path) -> dict[str, Tensor]:
    """The recorded classifier in the layout of VideoMAE's own code."""
    rules = (*TO_VIDEOMAE, (r"^encoder\.", ""), (r"^classifier", "head"))
    return with_fused_attention(renamed(state_of(recorded / "videomae_classifier"), *rules))


def videomae_pretrained(recorded: Path) -> dict[str, Tensor]:
    """The recorded masked autoencoder in the layout of VideoMAE's own code."""
    return with_fused_attention(renamed(state_of(recorded / "videomae_pretrained"), *TO_VIDEOMAE))


def videomae_of_mmaction2(recorded: Path) -> dict[str, Tensor]:
    """The recorded classifier in the layout of mmaction2."""
    return renamed(
        videomae_classifier(recorded),
        (r"^(?!head)", "backbone."),
        (r"patch_embed\.proj", "patch_embed.projection"),
        (r"mlp\.fc1", "mlp.layers.0.0"),
        (r"mlp\.fc2", "mlp.layers.1"),
        (r"^head", "cls_head.fc_cls"),
    )


def mvit_of_mmaction2(recorded: Path) -> dict[str, Tensor]:
    """The recorded MViT of torchvision in the layout of mmaction2."""
    state = renamed(
        state_of(recorded / "torchvision_mvit"),
        (r"^conv_proj", "backbone.patch_embed.projection"),
        (r"^pos_encoding\.class_token", "backbone.cls_token"),
        (r"^blocks", "backbone.blocks"),
        (r"^norm\.", "backbone.norm1."),
        (r"^head\.1", "cls_head.fc_cls"),
        (r"(pool_[qkv])\.pool", r"\1"),
        (r"pool_([qkv])\.norm_act\.0", r"norm_\1"),
        (r"attn\.project\.0", "attn.proj"),
        (r"mlp\.0", "mlp.fc1"),
        (r"mlp\.3", "mlp.fc2"),
        (r"(blocks\.\d)\.project", r"\1.proj"),
    )
    state["backbone.cls_token"] = state["backbone.cls_token"].reshape(1, 1, -1)
    return state


def vjepa_encoder(recorded: Path) -> dict[str, Tensor]:
    """The recorded encoder of V-JEPA 2 in the layout of its own code."""
    state = renamed(
        state_of(recorded / "vjepa2_encoder"),
        (r"^encoder\.embeddings\.patch_embeddings", "module.backbone.patch_embed"),
        (r"^encoder\.layer\.", "module.backbone.blocks."),
        (r"^encoder\.layernorm", "module.backbone.norm"),
        (r"\.attention\.", ".attn."),
    )
    return with_fused_attention({name: value for name, value in state.items() if "backbone" in name})


TO_PROBE = (
    (r"^pooler\.cross_attention_layer\.layer_norm(\d)", r"pooler.cross_attention_block.norm\1"),
    (r"^pooler\.cross_attention_layer\.mlp", "pooler.cross_attention_block.mlp"),
    (r"^pooler\.cross_attention_layer\.cross_attn\.([qkv])_proj", r"pooler.cross_attention_block.xattn.\1"),
    (r"^pooler\.self_attention_layers\.(\d+)\.layer_norm", r"pooler.blocks.\1.norm"),
    (r"^pooler\.self_attention_layers\.(\d+)\.mlp", r"pooler.blocks.\1.mlp"),
    (r"^pooler\.self_attention_layers\.(\d+)\.self_attn\.out_proj", r"pooler.blocks.\1.attn.proj"),
    (r"^pooler\.self_attention_layers\.(\d+)\.self_attn\.([qkv])_proj", r"pooler.blocks.\1.attn.\2"),
    (r"^classifier", "linear"),
)


def vjepa_probe(recorded: Path) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The recorded classifier of V-JEPA 2 as an encoder and a probe of its own code."""
    state = state_of(recorded / "vjepa2_classifier")
    encoder = renamed(
        {name.removeprefix("vjepa2."): v for name, v in state.items() if ".encoder." in f".{name}"},
        (r"^encoder\.embeddings\.patch_embeddings", "module.backbone.patch_embed"),
        (r"^encoder\.layer\.", "module.backbone.blocks."),
        (r"^encoder\.layernorm", "module.backbone.norm"),
        (r"\.attention\.", ".attn."),
    )
    head = renamed({n: v for n, v in state.items() if n.startswith(("pooler.", "classifier."))}, *TO_PROBE)
    for name in [name for name in head if re.search(r"(xattn\.k|blocks\.\d+\.attn\.q)\.", name)]:
        kinds, fused = ("kv", ".kv.") if ".k." in name else ("qkv", ".qkv.")
        projections = [head.pop(name.replace(f".{kinds[0]}.", f".{kind}.")) for kind in kinds]
        head[name.replace(f".{kinds[0]}.", fused)] = torch.cat(projections)
    return with_fused_attention(encoder), {f"module.{name}": value for name, value in head.items()}


UNSUPPORTED: dict[str, tuple[dict[str, tuple[int, ...]], str]] = {
    "timesformer": (
        {"timesformer.encoder.layer.0.temporal_attention.attention.qkv.weight": (6, 2)},
        "TimeSformer",
    ),
    "original timesformer": ({"model.blocks.0.temporal_attn.qkv.weight": (6, 2)}, "TimeSformer"),
    "swin": ({"backbone.layers.0.blocks.0.attn.relative_position_bias_table": (9, 1)}, "Swin"),
    "clip": ({"visual.class_embedding": (4,)}, "CLIP"),
    "resnet": ({"layer1.0.conv1.weight": (4, 4, 1, 1)}, "ResNet"),
    "slowfast": ({"s1.pathway0_stem.conv.weight": (4, 3, 1, 7, 7)}, "SlowFast or another convolutional"),
    "vit-mae-transformers": (
        {
            "vit.embeddings.patch_embeddings.projection.weight": (4, 3, 2, 2),
            "vit.embeddings.position_embeddings": (1, 5, 4),
            "vit.encoder.layer.0.layernorm_before.weight": (4,),
            "decoder.decoder_pos_embed": (1, 5, 4),
        },
        "ViTMAE",
    ),
}  # fmt: skip


def write_layout(format: str, golden: Path, folder: Path) -> tuple[Path, dict[str, int]]:
    """Write random weights in the layout of a format of the table.

    Args:
        format: a name in ``FORMATS``.
        golden: the folder of recorded values.
        folder: folder to write.

    Returns:
        The file or folder for ``import-weights``, and the numbers that the file does not contain, such as
        "heads".
    """
    recorded = golden / "other_projects"
    folders = {"videomae-transformers": "videomae_classifier", "vjepa2-transformers": "vjepa2_classifier"} | {
        "vit-timm": "timm_vit_token", "vit-transformers": "vit_classifier", "mvitv2-timm": "timm_mvitv2",
        "mvitv2-torchvision": "torchvision_mvit",
    }  # fmt: skip
    if format in folders:
        return weights_of(recorded / folders[format]), {}
    if format in ("hiera", "hiera-pretrained"):
        name = "hiera_video.pth" if format == "hiera" else "mae_hiera_video.pth"
        heads = {} if format == "hiera" else {"decoder_heads": 2}
        return golden / "hiera" / name, {"heads": 1, **heads}
    encoder = vjepa_encoder(recorded)
    if format == "vjepa":
        encoder["module.backbone.pos_embed"] = torch.randn(1, 32, 32)
    if format == "vjepa2.1":
        encoder["module.backbone.norms_block.0.weight"] = torch.ones(32)
    contents: dict[str, Callable[[], object]] = {
        "videomae": lambda: {"module": videomae_classifier(recorded)},
        "videomae-pretrained": lambda: {"model": videomae_pretrained(recorded)},
        "videomae-mmaction2": lambda: {"state_dict": videomae_of_mmaction2(recorded)},
        "mvitv2-mmaction2": lambda: {"state_dict": mvit_of_mmaction2(recorded)},
        "vjepa-probe": lambda: {"classifiers": [vjepa_probe(recorded)[1]]},
        **dict.fromkeys(("vjepa", "vjepa2", "vjepa2.1"), lambda: {"target_encoder": encoder}),
    }
    missing = {"heads": 2, "frames": 4, "crop": 16} if format not in UNSUPPORTED else {}
    if format == "videomae-pretrained":
        missing["decoder_heads"] = 2
    if format.startswith("mvit"):
        missing = {}
    named = {name: torch.randn(shape) for name, shape in UNSUPPORTED.get(format, ({},))[0].items()}
    torch.save(contents[format]() if format in contents else named, folder / "x.pth")
    return folder / "x.pth", missing
