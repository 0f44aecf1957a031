"""Cost of a method's target in a pre-training step at full size, and memory of its teacher.

The configs are those of Kinetics-400 (MViTv2-S, or ViT-B for MAE, 16 frames of 224x224) with two clips per
step, or four if a method compares two clips of a video; on a GPU eight times that number, in bfloat16.
Tokenizers and teachers have the sizes of the configs, and random weights, which cost the same. A step is
target, forward, loss and backward.

The peak memory of computing a target is measured in another process: as in the package, and with autograd for
the teacher.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from benchmarks.bench_loader import FPS, pictures_with_grain
from benchmarks.harness import Row, extra_memory
from videomaskfeat.config import load_config
from videomaskfeat.jobs.compare import method_cost, method_on_batch
from videomaskfeat.methods.masked import MaskedPrediction
from videomaskfeat.methods.teaching import TeacherMethod
from videomaskfeat.models import create_model
from videomaskfeat.models.published_dvae import PublishedEncoder
from videomaskfeat.models.saving import save_model
from videomaskfeat.models.tokenizers import create_tokenizer
from videomaskfeat.mp4 import write_mp4
from videomaskfeat.recipe import normalize
from videomaskfeat.schemas.pretrain import PretrainConfig

CONFIGS = Path(__file__).resolve().parents[1] / "configs" / "pretrain"
STEPS = 3
TEACHER = "teacher.safetensors"
OURS, LEARNING = WAYS = ("as it is", "with autograd")


@dataclass(frozen=True)
class Case:
    """A config of Kinetics-400 with its changes.

    Attributes:
        name: name of the row.
        config: file name of the config.
        clips: clips per step.
        overrides: overrides of the config; "{folder}" is the folder of tokenizers and teachers.
        goal: the target in words.
    """

    name: str
    config: str
    clips: int = 2
    overrides: tuple[str, ...] = ()
    goal: str = ""


def _weights(file: str) -> str:
    return f"target.arguments.weights={{folder}}/{file}"


_FEATURES = "{teacher: '{folder}/teacher.safetensors', normalize: l2, loss: cosine}"
CASES = (
    Case("hog", "k400_maskfeat_mvitv2_s", goal="under 3 % of the step"),
    Case("pixels", "k400_pixels_mvitv2_s"),
    Case("pixels (SimMIM)", "k400_simmim_mvitv2_s"),
    Case("pixels (MAE)", "k400_mae_vit_b", overrides=("clip.samples_per_video=1",)),
    Case("dvae, published size", "k400_beit_mvitv2_s", overrides=(_weights("published.pt"),)),
    Case("dvae, our own", "k400_beit_mvitv2_s", overrides=(_weights("dvae.safetensors"),)),
    Case("codebook", "k400_peco_mvitv2_s", overrides=(_weights("vq.safetensors"),)),
    Case("features of a ViT-B", "k400_features_mvitv2_s", overrides=(f"target.arguments={_FEATURES}",)),
    Case(
        "hog + features",
        "k400_hog_features_mvitv2_s",
        overrides=(
            f"target.arguments.parts={{hog: {{}}, features: {{weight: 0.1, arguments: {_FEATURES}}}}}",
        ),
    ),
    Case("latent", "k400_latent_mvitv2_s"),
    Case("ibot", "k400_ibot_mvitv2_s", clips=4),
    Case("byol", "k400_byol_mvitv2_s", clips=4),
)
DRY_CASES = (Case("hog", "sample"), Case("latent", "sample_latent"))
REMEMBERED = ("features of a ViT-B", "latent")
"""Cases with a memory measurement: an offline teacher and an online teacher."""


def run(*, device: str, dry: bool = False) -> list[Row]:
    """Measure the costs of all targets, then the memory of two teachers."""
    rows = []
    cases = DRY_CASES if dry else CASES
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _make_files(folder, teachers=not dry)
        for case in cases:
            cost = method_cost(_config(case, folder, device), steps=1 if dry else STEPS)
            note = f"{cost.target_ms / cost.step_ms:.1%} of the step, {cost.clips} clips"
            title = f"target {case.name} / whole step"
            rows.append(Row(title, cost.target_ms, cost.step_ms, "ms", target=case.goal, note=note))
        for case in cases:
            if case.name in REMEMBERED:
                ours, learning = (_memory(case, folder, device, way, dry) for way in WAYS)
                title = f"memory of target {case.name} / its teacher with autograd"
                note = f"{case.clips * _factor(device)} clips"
                rows.append(Row(title, ours, learning, "MiB", note=note))
    return rows


def _factor(device: str) -> int:
    """Factor on the number of clips on the CPU."""
    return 1 if device == "cpu" else 8


def _make_files(folder: Path, *, teachers: bool) -> None:
    """Write a video with its list file, tokenizers and a teacher."""
    write_mp4(folder / "video.mp4", pictures_with_grain(256, 340), fps=FPS, crf=23)
    (folder / "train.csv").write_text(f"{folder / 'video.mp4'} 0\n" * 32, encoding="utf-8")
    if not teachers:
        return
    torch.manual_seed(0)
    torch.save(PublishedEncoder().state_dict(), folder / "published.pt")
    for kind in ("dvae", "vq"):
        save_model(create_tokenizer(kind), folder / f"{kind}.safetensors")
    save_model(create_model("vit_b_image"), folder / TEACHER)


def _config(case: Case, folder: Path, device: str) -> PretrainConfig:
    overrides = [text.replace("{folder}", str(folder)) for text in case.overrides]
    return load_config(
        PretrainConfig,
        str(CONFIGS / f"{case.config}.yaml"),
        [
            *overrides,
            f"data.train={folder / 'train.csv'}",
            f"optim.batch_size={case.clips * _factor(device)}",
            f"run.device={device}",
            f"run.folder={folder / 'run'}",
        ],
    )


def _memory(case: Case, folder: Path, device: str, way: str, dry: bool) -> float:
    """MiB of one target, in another process."""
    command = [sys.executable, "-m", "benchmarks.bench_targets", case.name, str(folder), device, way]
    command += ["--dry"] if dry else []
    root = Path(__file__).resolve().parents[1]
    return float(json.loads(subprocess.run(command, cwd=root, stdout=subprocess.PIPE, check=True).stdout))


def _measure(case: Case, folder: Path, device: str, way: str) -> float:
    method, batch, _ = method_on_batch(_config(case, folder, device))
    if way == OURS:
        return extra_memory(lambda: method.make_target(batch), device)
    clip = method.recipe.clip
    pixels = normalize(batch.clips, mean=clip.mean, std=clip.std)
    teacher = _teacher(method).requires_grad_(True)
    outputs: list[Tensor] = []  # its output refers to what a backward pass needs
    return extra_memory(lambda: outputs.append(teacher(pixels)), device)


def _teacher(method: Any) -> nn.Module:
    """The network that computes the target."""
    if isinstance(method, TeacherMethod):
        return _Tokens(method.teacher_encoder)
    return cast(MaskedPrediction, method).target.get_submodule("teacher")


class _Tokens(nn.Module):
    """An encoder's tokens on the token grid."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, pixels: Tensor) -> Tensor:
        """[B, C, T, H, W] -> [B, t, h, w, D']."""
        features = cast(Callable[..., Tensor], self.encoder.features)
        return features(pixels, pooled=False)


def _main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Memory of making one target; MiB on standard output.")
    parser.add_argument("case", choices=REMEMBERED)
    parser.add_argument("folder", type=Path)
    parser.add_argument("device")
    parser.add_argument("way", choices=WAYS)
    parser.add_argument("--dry", action="store_true")
    options = parser.parse_args(arguments)
    case = next(case for case in (DRY_CASES if options.dry else CASES) if case.name == options.case)
    sys.stdout.write(json.dumps(_measure(case, options.folder, options.device, options.way)) + "\n")


if __name__ == "__main__":
    _main()
