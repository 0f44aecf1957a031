"""Tiny methods with a teacher, for video and images, and batches of random clips."""

from __future__ import annotations

from typing import Any

import torch

from videomaskfeat.config import load_config
from videomaskfeat.data.batches import PairBatch, PretrainBatch
from videomaskfeat.methods.build import build_method
from videomaskfeat.methods.method import HeldOutLoss, Method
from videomaskfeat.methods.teaching import TeacherMethod
from videomaskfeat.schemas.pretrain import PretrainConfig

ARGUMENTS = {
    "byol": "{projection: 8, hidden_width: 16}",
    "ibot": "{head: {prototypes: 12, hidden_width: 16, bottleneck: 8}, temperature_warmup_epochs: 1, "
    "ratios: [0.2, 0.5], local: {count: 2, size: 16}}",
    "latent": "{predictor_width: 16, predictor_depth: 1, predictor_heads: 2}",
}
MODELS = {
    "mvit": ["model.name=maskfeat_mvitv2_nano", "model.arguments={depth: 3, width: 8, widen_at: [1]}"],
    "vit": ["model.name=maskfeat_vit_nano", "model.arguments={depth: 2, width: 16, heads: 2}"],
    "image": [
        "model.name=maskfeat_vit_nano_image",
        "model.arguments={depth: 2, width: 16, heads: 2}",
        "clip.frames=1",
        "mask.cell=[1,16,16]",
    ],
}
COMMON = [
    "clip.frames=4",
    "clip.stride=2",
    "clip.crop=32",
    "mask.cell=[2,16,16]",
    "mask.kind=random",
    "optim.epochs=2",
    "optim.batch_size=8",
]


def tiny_method(name: str, model: str = "mvit", *overrides: str) -> TeacherMethod:
    """A method on the CPU, the same weights every time."""
    options = [*COMMON, *MODELS[model], f"method.name={name}", f"method.arguments={ARGUMENTS[name]}"]
    torch.manual_seed(0)
    method = build_method(load_config(PretrainConfig, None, [*options, *overrides]))
    assert isinstance(method, TeacherMethod)
    return method


def make_batch(method: TeacherMethod, videos: int = 3, seed: int = 1) -> Any:
    """Clips of noise, two per video; something is hidden in every clip but the last."""
    generator = torch.Generator().manual_seed(seed)
    frames, crop = method.recipe.clip.frames, method.recipe.clip.crop

    def noise(count: int, size: int) -> torch.Tensor:
        return torch.randint(0, 256, (count, frames, size, size, 3), dtype=torch.uint8, generator=generator)

    count = 2 * videos
    grid = (frames // method.recipe.mask.cell[0], 2, 2)
    mask = torch.rand(count, *grid, generator=generator) < 0.5
    mask[:, 0, 0, 0] = True
    mask[-1] = False
    clips, index = noise(count, crop), torch.arange(videos).repeat_interleave(2)
    if method.recipe.method == "latent":
        return PretrainBatch(clips, mask, index)
    if method.recipe.method == "byol":
        return PairBatch(clips, None, None, index)
    return PairBatch(clips, mask, noise(2 * videos, 16), index)


def heldout_loss(method: Method, *batches: Any) -> HeldOutLoss:
    """The held-out loss of batches in float32."""
    return method.heldout_loss(method.student, batches, autocast=torch.autocast("cpu", enabled=False))
