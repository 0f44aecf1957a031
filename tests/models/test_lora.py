"""LoRA: what is trained, merged weights against adapters, and a fine-tuning; by peft and by a stand-in."""

from __future__ import annotations

import json
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import videomaskfeat
from tests.data.clip_data import write_videos
from tests.jobs.action_set import CLIP, ENCODER, make_action_set
from tests.jobs.weights_files import write_pretrained
from videomaskfeat.cli import main
from videomaskfeat.errors import UserError
from videomaskfeat.models.lora import add_lora, merge_lora
from videomaskfeat.models.saving import save_model
from videomaskfeat.models.weights import read_state
from videomaskfeat.recipe import METADATA_KEY, PretrainRecipe

MVIT = {"depth": 2, "width": 16, "widen_at": (1,), "clip_size": (4, 32, 32)}
VIT = {"depth": 2, "width": 24, "heads": 2, "clip_size": (4, 32, 32)}
MODELS = {"maskfeat_mvitv2_nano_classifier": MVIT, "vit_nano": VIT}


class AdaptedLinear(nn.Module):
    """peft's layer, by the paper: ``x W^T + b + alpha / rank * x A^T B^T``."""

    def __init__(self, base: nn.Linear, rank: int, alpha: float) -> None:
        super().__init__()
        self.base_layer, self.factor = base, alpha / rank
        self.lora_A = nn.ModuleDict({"default": nn.Linear(base.in_features, rank, bias=False)})
        self.lora_B = nn.ModuleDict({"default": nn.Linear(rank, base.out_features, bias=False)})
        nn.init.zeros_(self.lora_B["default"].weight)

    def get_delta_weight(self, adapter: str) -> Tensor:
        return self.factor * self.lora_B[adapter].weight @ self.lora_A[adapter].weight

    def forward(self, x: Tensor) -> Tensor:
        return self.base_layer(x) + self.factor * self.lora_B["default"](self.lora_A["default"](x))


def stand_in() -> Any:
    """A module like peft."""
    peft: Any = types.ModuleType("peft")

    def inject(config: Any, model: nn.Module, *, adapter_name: str) -> None:
        assert adapter_name == "default"
        for parameter in model.parameters():
            parameter.requires_grad_(False)
        for name in config.target_modules:
            parent, _, child = name.rpartition(".")
            base = model.get_submodule(name)
            adapted = AdaptedLinear(base, config.r, config.lora_alpha)
            setattr(model.get_submodule(parent), child, adapted)
            # As in peft, the weights below are not trained.
            base.requires_grad_(False)

    peft.LoraConfig = types.SimpleNamespace
    peft.inject_adapter_in_model = inject
    return peft


@pytest.fixture(params=["stand-in", "peft"], autouse=True)
def _package(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "peft":
        pytest.importorskip("peft", reason="the extra lora is not installed")
    else:
        monkeypatch.setitem(sys.modules, "peft", stand_in())


def build(name: str) -> Any:
    torch.manual_seed(0)
    return videomaskfeat.create_model(name, num_classes=5, **MODELS[name])


def disturb(model: nn.Module) -> None:
    """Changes of the size of the weights."""
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            nn.init.normal_(parameter, std=0.1)


@pytest.mark.parametrize("name", MODELS)
def test_only_adapters_head_and_last_norm_are_trained(name: str) -> None:
    model = build(name)
    linear = {key: layer for key, layer in model.named_modules() if isinstance(layer, nn.Linear)}
    adapted = [layer for key, layer in linear.items() if key.endswith(("attn.qkv", "mlp.fc1"))]
    clips = torch.randn(3, 3, 4, 32, 32)
    before = model.eval()(clips)
    rest = sum(p.numel() for key, p in model.named_parameters() if key.startswith(("head.", "norm.")))
    add_lora(model, rank=3, alpha=6, targets=("attn.qkv", "mlp.fc1"))
    # B is 0 at first.
    torch.testing.assert_close(model(clips), before, atol=1e-6, rtol=1e-6)
    learned = {key: p for key, p in model.named_parameters() if p.requires_grad}
    count = sum(3 * (layer.in_features + layer.out_features) for layer in adapted)
    assert len(adapted) == 4
    assert sum(p.numel() for p in learned.values()) == count + rest
    assert all("lora_" in key or key.startswith(("head.", "norm.")) for key in learned)
    frozen = {key: p.clone() for key, p in model.named_parameters() if key not in learned}
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(2):  # A has no gradient while B is 0
        F.cross_entropy(model.train()(clips), torch.tensor([0, 1, 2])).backward()
        optimizer.step()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in learned.values())
    assert all(torch.equal(p, frozen[key]) for key, p in model.named_parameters() if key in frozen)


@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_merged_weights_equal_adapters(name: str, tmp_path: Path) -> None:
    model = build(name).eval()
    names, clips = list(model.state_dict()), torch.randn(2, 3, 4, 32, 32)
    plain = model(clips)
    add_lora(model, rank=2, alpha=4, targets=("attn.qkv", "attn.proj", "mlp.fc1"))
    disturb(model)
    adapted = model(clips)
    assert (adapted - plain).abs().max() > 1e-3 * plain.abs().max()
    videomaskfeat.save_model(model, tmp_path / "merged.safetensors")
    assert list(read_state(tmp_path / "merged.safetensors").keys() ^ set(names)) == []
    merged = videomaskfeat.load_model(tmp_path / "merged.safetensors")(clips)
    # Float32: W x + B A x against (W + B A) x.
    torch.testing.assert_close(merged, adapted, atol=1e-6, rtol=1e-6)
    merge_lora(model)
    assert list(model.state_dict()) == names
    torch.testing.assert_close(model(clips), adapted, atol=1e-6, rtol=1e-6)


def test_mistakes_are_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build("vit_nano")
    with pytest.raises(UserError, match=r"target 'attn\.q' is unknown; .* attn\.proj, attn\.qkv, mlp\.fc1$"):
        add_lora(model, targets=["attn.q"])
    with pytest.raises(UserError, match=r"target 'mlp\.fc2' is unknown"):  # GELU comes before its product
        add_lora(model, targets=["mlp.fc2"])
    with pytest.raises(UserError, match="rank 0 must be positive"):
        add_lora(model, rank=0)
    with pytest.raises(UserError, match="lora: alpha 0 must be above 0"):
        add_lora(model, alpha=0)
    with pytest.raises(UserError, match="lora needs a classifier or a detector, not a ViTMaskFeat"):
        add_lora(videomaskfeat.create_model("maskfeat_vit_nano", **VIT))
    probe = videomaskfeat.create_model("vit_nano", head="linear", **VIT)
    with pytest.raises(UserError, match="head 'linear' keeps it frozen"):
        add_lora(probe)
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(UserError, match=r"needs the package peft.* pip install 'videomaskfeat\[lora\]'"):
        add_lora(model)
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_finetuning_resumes_and_writes_merged_weights(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_videos(tmp_path, 4)
    (tmp_path / "list.csv").write_text("".join(f"00{index}.mp4 {index % 2}\n" for index in range(4)))
    pretrained, run = write_pretrained(tmp_path / "pretrained.safetensors"), tmp_path / "run"
    command = [
        *("finetune", f"data.train={tmp_path / 'list.csv'}", f"data.validation={tmp_path / 'list.csv'}"),
        *("model.name=maskfeat_mvitv2_nano_classifier", f"model.weights={pretrained}"),
        "model.arguments={depth: 4, width: 16, widen_at: [1]}",
        "model.lora={rank: 2, alpha: 4, targets: [attn.qkv]}",
        *("clip.frames=4", "clip.stride=2", "clip.crop=32", "clip.samples_per_video=1", "data.workers=0"),
        *("optim.batch_size=2", "optim.base_batch_size=2", "optim.warmup_epochs=0", "evaluate.views=1"),
        *("evaluate.short_side=32", "evaluate.epochs=1", "optim.learning_rate=0.01", "augment.randaugment="),
        *(f"run.folder={run}", "run.threads=1", "run.loggers=[]", "run.device=cpu"),
    ]
    assert main([*command, "optim.epochs=1"]) == 0
    # Blocks of width 16, 32, 32 and 32: (16 + 48) and 3 x (32 + 96) values per rank.
    learned = 2 * (64 + 3 * 128) + 2 * 32 + 2 * 32 + 2
    assert f"({learned / 1e3:.2f} K learned, adapters of rank 2 and the head)" in capsys.readouterr().err
    assert main([*command, "optim.epochs=2", "run.extend=true"]) == 0
    steps = [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert steps == [1, 2, 3, 4]
    start, end = read_state(pretrained), read_state(run / "weights.safetensors")
    assert not [name for name in end if "lora" in name or "base_layer" in name]
    changed = {name for name in start.keys() & end.keys() if not torch.equal(start[name], end[name])}
    assert changed == {f"blocks.{block}.attn.qkv.weight" for block in range(4)}
    assert videomaskfeat.load_classifier(run / "best.safetensors", device="cpu").model.classes == 2
    without = [word for word in command if not word.startswith("model.weights")]
    assert main([*without, "run.folder=other"]) == 2
    assert "model.lora changes a trained encoder, but model.weights is not set" in capsys.readouterr().err
    assert main([*command, "model.lora={rnk: 2}", f"run.folder={tmp_path / 'other'}"]) == 2
    assert "did you mean 'rank'" in capsys.readouterr().err


def test_detector_with_adapters_resumes_and_is_scored_without_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    actions = make_action_set(tmp_path)
    torch.manual_seed(0)
    encoder = videomaskfeat.create_model("maskfeat_mvitv2_nano", **ENCODER)
    pretrained, run = tmp_path / "pretrained.safetensors", tmp_path / "run"
    save_model(encoder, pretrained, metadata={METADATA_KEY: PretrainRecipe(CLIP).to_json()})
    command = [
        *("detect-train", *actions.overrides(run), f"model.weights={pretrained}", "run.loggers=[]"),
        "optim.warmup_epochs=0",
        *("model.lora={rank: 2, alpha: 4, targets: [attn.qkv]}", "optim.learning_rate=0.01"),
    ]
    assert main([*command, "optim.epochs=1"]) == 0
    # Blocks of width 8, 16 and 16, heads of 4 actions: adapters, last layer and last norm.
    learned = 2 * ((8 + 24) + 2 * (16 + 48)) + 4 * 16 + 4 + 2 * 16
    error = capsys.readouterr().err
    assert f"({learned / 1e3:.2f} K learned, adapters of rank 2 and the head)" in error
    assert main([*command, "optim.epochs=2", "run.extend=true"]) == 0
    steps = [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert steps == [1, 2, 3, 4]
    start, end = read_state(pretrained), read_state(run / "weights.safetensors")
    assert not [name for name in end if "lora" in name or "base_layer" in name]
    changed = {name for name in start.keys() & end.keys() if not torch.equal(start[name], end[name])}
    assert changed == {f"blocks.{block}.attn.qkv.weight" for block in range(3)}
    # The score of the merged weights, by another command, is that of the training.
    capsys.readouterr()
    best = str(run / "best.safetensors")
    out = tmp_path / "out"
    assert (
        main(["detect-evaluate", best, *actions.evaluation(), "--boxes", actions.boxes, "--out", str(out)])
        == 0
    )
    summary = json.loads((run / "summary.json").read_text())
    assert json.loads((out / "result.json").read_text())["mean_ap"] == pytest.approx(
        summary["mean_ap"], abs=1e-6
    )
    without = [word for word in command if not word.startswith("model.weights")]
    assert main([*without, f"run.folder={tmp_path / 'other'}"]) == 2
    assert "model.lora changes a trained encoder, but model.weights is not set" in capsys.readouterr().err
