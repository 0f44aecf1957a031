"""The probe in a pre-training: equal to an evaluation, without effect on the training, and its errors."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import simplejson
import torch

from videomaskfeat.inference import probe
from videomaskfeat.inference.multiview import video_features
from videomaskfeat.jobs.evaluate import Neighbors, ViewOptions, evaluate
from videomaskfeat.models.zoo import create_model

from .test_pretrain import Pretrain, rows


def test_the_probe_is_an_evaluation_of_the_weights_at_that_time(
    pretrain: Pretrain, sample: Path, tmp_path: Path
) -> None:
    """Top-1 of few videos: whole multiples of a percentage, equal exactly."""
    lists = [f"probe.train={sample / 'train.csv'}", f"probe.test={sample / 'val.csv'}", "probe.k=3"]
    code, output = pretrain(*lists, "run.evaluate_epochs=1")
    assert code == 0, output
    recorded = [row["evaluation/knn_top1"] for row in rows(tmp_path / "run") if "evaluation/knn_top1" in row]
    summary = simplejson.loads((tmp_path / "run" / "summary.json").read_text())
    assert len(recorded) > 1
    assert recorded[-1] == summary["knn_top1"]
    assert {"knn_top1_untrained", "linear_top1", "linear_top1_untrained"} <= set(summary)
    result = evaluate(
        tmp_path / "run" / "weights.safetensors",
        str(sample / "val.csv"),
        tmp_path / "evaluation",
        views=ViewOptions(views=1, crops=1, short_side=32),
        neighbors=Neighbors(str(sample / "train.csv"), k=3),
    )
    assert result.accuracy is not None
    assert result.accuracy.top1 == summary["knn_top1"]


def test_probe_does_not_change_the_training(pretrain: Pretrain, sample: Path, tmp_path: Path) -> None:
    assert pretrain()[0] == 0
    plain = [row["loss"] for row in rows(tmp_path / "run")]
    (tmp_path / "run").rename(tmp_path / "plain")
    lists = [f"probe.train={sample / 'train.csv'}", f"probe.test={sample / 'val.csv'}"]
    assert pretrain(*lists, "run.evaluate_epochs=1")[0] == 0
    assert [row["loss"] for row in rows(tmp_path / "run")] == plain


def test_factors_have_their_own_probes_and_share_features(
    pretrain: Pretrain, sample: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A factor with the labels of ``probe.train`` has its accuracies; another one has its own classes."""
    for name in ("train", "val"):
        lines = (sample / f"{name}.csv").read_text().splitlines()
        halves = [f"{path} {int(label) % 2}" for path, label in (line.split(" ") for line in lines)]
        (sample / f"{name}_parity.csv").write_text("\n".join(halves) + "\n")
    passes = []
    monkeypatch.setattr(probe, "video_features", lambda *a: (passes.append(1), video_features(*a))[1])
    files = "{{train: {0}/train{1}.csv, test: {0}/val{1}.csv}}"
    factors = f"same: {files.format(sample, '')}, parity: {files.format(sample, '_parity')}"
    lists = [f"probe.train={sample / 'train.csv'}", f"probe.test={sample / 'val.csv'}"]
    code, output = pretrain(*lists, f"probe.factors={{{factors}}}", "run.evaluate_epochs=1")
    assert code == 0, output
    summary = simplejson.loads((tmp_path / "run" / "summary.json").read_text())
    for kind in ("knn_top1", "linear_top1"):
        for end in ("", "_untrained"):
            assert summary[f"{kind}_same{end}"] == summary[f"{kind}{end}"]
            assert summary[f"{kind}_parity{end}"] in (0.0, 50.0, 100.0)  # two videos
    assert (summary["probe_classes_same"], summary["probe_classes_parity"]) == (12, 2)
    assert summary["probe_videos_parity"] == 2
    recorded = [row for row in rows(tmp_path / "run") if "evaluation/linear_top1_parity" in row]
    assert len(recorded) == 2
    assert recorded[-1]["evaluation/knn_top1_parity"] == summary["knn_top1_parity"]
    assert len(passes) == 2 * (1 + 2 + 1)  # two lists: before, twice during, and after the training
    assert "frozen features, parity, top-1 on 2 videos of 2 classes" in output
    code, output = pretrain(*lists)  # probes are free: a finished run accepts other ones
    assert code == 0, output


@torch.no_grad()
@pytest.mark.parametrize("name", ["maskfeat_mvitv2_pico", "maskfeat_vit_pico", "mae_vit_pico"])
def test_features_of_several_blocks_equal_those_that_hooks_record(name: str) -> None:
    """The same numbers in another order of sums, so 1e-5."""
    model = create_model(name).eval()
    encoder = getattr(model, "encoder", model)
    clips = torch.randn(2, 3, 4, 32, 32)
    seen: list[torch.Tensor] = []
    hooks = [block.register_forward_hook(lambda _m, _i, out: seen.append(out[0])) for block in encoder.blocks]
    last = encoder.features(clips)
    for hook in hooks:
        hook.remove()
    means = [tokens[:, -32:].mean(dim=1) for tokens in seen[1:3]] + [
        last
    ]  # 32 of the grid, without class token
    expected = torch.cat([mean / mean.norm(dim=1, keepdim=True) for mean in means], dim=1)
    actual = probe._LastBlocks(encoder, 3).features(clips)
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-5)


def test_probe_of_several_blocks_has_its_own_accuracies(
    pretrain: Pretrain, sample: Path, tmp_path: Path
) -> None:
    lists = [f"probe.train={sample / 'train.csv'}", f"probe.test={sample / 'val.csv'}"]
    code, output = pretrain(*lists, "probe.blocks=99")
    assert code == 2
    assert re.search(r"probe.blocks=99: the encoder has \d+ blocks; use at most that", output)
    code, output = pretrain(*lists, "probe.blocks=2")
    assert code == 0, output
    assert "linear_top1" in simplejson.loads((tmp_path / "run" / "summary.json").read_text())


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        (["probe.train={sample}/train.csv"], "probe.train is set but probe.test is not; set both"),
        (["probe.test={sample}/val.csv"], "probe.test is set but probe.train is not"),
        (
            ["probe.train={sample}/train.csv", "probe.test={sample}/val.csv", "probe.k=0"],
            "probe.k 0 must be at least 1",
        ),
        (["probe.train={sample}/none.csv", "probe.test={sample}/val.csv"], "none.csv"),
        (["probe.factors={{motion: {sample}/val.csv}}"], "must be {train: LIST, test: LIST}"),
        (["probe.factors={{motion: {{train: a.csv}}}}"], "probe.factors.motion"),
        (["probe.factors={{'a b': {{train: a.csv, test: b.csv}}}}"], "'a b' must start with a letter"),
    ],
)
def test_wrong_probe_is_refused_before_training(
    pretrain: Pretrain, sample: Path, tmp_path: Path, keys: list[str], words: str
) -> None:
    code, output = pretrain(*(key.format(sample=sample) for key in keys))
    assert code == 2
    assert words in output
    assert not (tmp_path / "run").exists()
