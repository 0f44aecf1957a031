"""A comparison: its plan, its mistakes in words, and two targets from end to end."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import simplejson
import torch
import yaml

from tests.engine.processes import exit_code
from tests.jobs.conftest import TINY
from tests.jobs.test_finetune import TINY as TINY_FINETUNE
from videomaskfeat.cli import main
from videomaskfeat.config import load_config
from videomaskfeat.config_keys import config_text
from videomaskfeat.errors import RunFailed, UserError
from videomaskfeat.jobs.compare import Command, _Clock, overrides_of, plan_runs
from videomaskfeat.jobs.finetune import build_classifier
from videomaskfeat.methods import METHODS
from videomaskfeat.methods.build import build_method
from videomaskfeat.processes import Verbs
from videomaskfeat.schemas.compare import CompareConfig, CompareSettings
from videomaskfeat.schemas.finetune import FinetuneConfig
from videomaskfeat.targets import TARGETS

SECTION: dict[str, Any] = {
    "folder": "out",
    "pretrain": "configs/pretrain/sample.yaml",
    "finetune": "configs/finetune/sample.yaml",
    "shared": {"pretrain": {"optim": {"epochs": 2}}},
    "targets": {
        "hog": None,
        "pixels": {
            "pretrain": {"target": "pixels"},
            "finetune": {"optim": {"layer_decay": 1.0}},
            "before": {"teacher": {"verb": "pretrain", "keys": {"data": {"train": "{run}/list.csv"}}}},
        },
    },
}


def section(**changes: Any) -> CompareSettings:
    """The section above with changes."""
    return CompareSettings(**{**SECTION, **changes})


def test_every_target_has_its_runs_with_each_seed_in_their_order() -> None:
    runs = plan_runs(section(seeds=2), ["pixels", "hog"])
    assert [(one.target, one.seed) for one in runs] == [
        ("pixels", 1),
        ("pixels", 2),
        ("hog", 1),
        ("hog", 2),
    ]
    second = runs[1]
    assert [command.folder.name for command in second] == ["teacher", "pretrained", "finetuned", "scratch"]
    assert 'data.train="out/pixels/seed_2/list.csv"' in second.before[0].overrides
    config = second.pretrain_config()
    assert (config.target.name, config.optim.epochs, config.run.seed) == ("pixels", 2, 2)
    assert config.run.folder == "out/pixels/seed_2/pretrained"
    assert config.run.evaluate_epochs == 0.5  # 2 epochs, 4 probes
    assert "optim.layer_decay=1.0" in second.finetunes[""].overrides
    assert (
        'model.weights="out/pixels/seed_2/pretrained/weights.safetensors"' in second.finetunes[""].overrides
    )


def test_each_named_fine_tuning_has_its_runs_and_keys() -> None:
    """Keys of the fine-tuning override shared ones; keys of the target override both."""
    shared = {"finetune": {"data": {"train": "all.csv", "cache": "memory"}, "optim": {"epochs": 3}}}
    finetunes = {
        "motion": {},
        "appearance": {"data": {"train": "digits.csv"}, "optim": {"layer_decay": 0.5, "epochs": 4}},
    }
    hog, pixels = plan_runs(section(shared=shared, finetunes=finetunes))
    assert [command.folder.name for command in hog] == [
        "pretrained",
        "finetuned_motion",
        "finetuned_appearance",
        "scratch_motion",
        "scratch_appearance",
    ]
    configs = {
        name: load_config(FinetuneConfig, command.config, command.overrides)
        for name, command in pixels.finetunes.items()
    }
    assert [config.data.train for config in configs.values()] == ["all.csv", "digits.csv"]
    assert [config.data.cache for config in configs.values()] == ["memory", "memory"]
    assert (configs["appearance"].optim.epochs, configs["appearance"].optim.layer_decay) == (4, 1.0)
    assert 'model.weights=""' in pixels.scratch["appearance"].overrides
    without = plan_runs(section(shared=shared, finetunes=finetunes, finetune=""))
    assert [command.folder.name for command in without[0]] == ["pretrained"]


def test_entries_that_fine_tune_alike_share_what_is_trained_from_scratch() -> None:
    alike = {"finetune": {"model": {"name": "vit_nano"}}}
    runs = plan_runs(section(targets={"hog": {}, "mae": alike, "pixels": {}, "hog_vit": alike}))
    scratch = [one.scratch[""] for one in runs]
    folders = [str(one.folder) for one in scratch]
    assert folders == [f"out/{name}/seed_1/scratch" for name in ("hog", "mae", "hog", "mae")]
    assert scratch[0] == scratch[2]
    assert scratch[1] == scratch[3]
    assert {'model.name="vit_nano"', 'model.weights=""'} < set(scratch[1].overrides)


def test_fine_tunings_take_no_clips_from_their_weights() -> None:
    """Otherwise only the runs with pre-training would."""
    hog, _ = plan_runs(section())
    for command in (hog.finetunes[""], hog.scratch[""]):
        assert {"clip.crop=64", "clip.frames=8", "evaluate.short_side=64"} < set(command.overrides)


def test_time_left_is_that_of_runs_of_the_same_verb() -> None:
    hog, pixels = plan_runs(section())
    clock = _Clock([*hog, *pixels, *hog], jobs=1)
    first, second = hog.pretrain, hog.finetunes[""]
    assert clock.started(first) == "run 1 of 7: hog/seed_1/pretrained"
    # Six are left: two pre-trainings of 100 s, and fine-tunings without a time of their own.
    assert clock.finished(first, 100.0).endswith("took 1 min 40 s; about 10 min left for all runs")
    assert clock.started(second).startswith("run 2 of 7: hog/seed_1/finetuned; about 10 min left")
    # Two pre-trainings of 100 s and three fine-tunings of 20 s.
    assert clock.finished(second, 20.0).endswith("took 20 s; about 4 min 20 s left for all runs")


def test_keys_become_overrides() -> None:
    tree = {
        "target": "pixels",
        "mask": {"ratio": 0.9, "cell": [1, 8, 8]},
        "model": {"arguments": {"depth": 2}},
    }
    assert overrides_of(tree) == [
        'target="pixels"',
        "mask.ratio=0.9",
        "mask.cell=[1, 8, 8]",
        'model.arguments={"depth": 2}',
    ]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"folder": ""},
            r"compare\.folder is not set: folder .*; set it, such as compare\.folder=runs/compare",
        ),
        ({"targets": {}}, r"compare\.targets is not set"),
        ({"seeds": 0}, r"compare\.seeds 0 must be at least 1"),
        (
            {"finetunes": {"motion": 1}},
            r"compare\.finetunes\.motion 1 must be a mapping of names to values",
        ),
        ({"shared": {"finetune": 6}}, r"compare\.shared\.finetune 6 must be a mapping of names to values"),
        (
            {"shared": {"pretrain": None}},
            r"compare\.shared\.pretrain None must be a mapping of names to values",
        ),
    ],
)
def test_mistakes_are_said_before_the_first_run(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        plan_runs(section(**changes))


EPOCH = {"optim": {"epoch": 1}}


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ("hog", r"a 'hog' must be a mapping of names to values"),
        ({"pretran": {}}, r"a: key 'pretran' is unknown; did you mean 'pretrain'"),
        ({"pretrain": EPOCH}, r"a: .*unknown key 'optim\.epoch'"),
        ({"pretrain": ["x"]}, r"a\.pretrain \['x'\] must be a mapping of names to values"),
        ({"before": None}, r"a\.before None must be a mapping of names to values"),
        ({"before": {"t": None}}, r"a\.before\.t None must be a mapping of names to values"),
        (
            {"before": {"t": {"verb": "finetune"}}},
            r"a\.before\.t\.verb 'finetune' is unknown; choose from pretrain, train-tokenizer",
        ),
        (
            {"before": {"t": {"verb": "pretrain", "keys": [1]}}},
            r"a\.before\.t\.keys \[1\] must be a mapping of names to values",
        ),
        ({"before": {"t": {"verb": "pretrain", "config": 3}}}, r"a\.before\.t\.config 3 must be a string"),
        ({"before": {"t": {"verb": "pretrain", "keys": EPOCH}}}, r"a: .*unknown key 'optim\.epoch'"),
        ({"before": {"t": {"verb": "train-tokenizer", "config": "nope.yaml"}}}, r"a: nope\.yaml"),
    ],
)
def test_mistakes_in_an_entry_are_said_before_the_first_run(entry: Any, words: str) -> None:
    with pytest.raises(UserError, match=rf"compare\.targets\.{words}"):
        plan_runs(section(targets={"a": entry}))


def test_an_unknown_target_is_named() -> None:
    words = r"--targets: compare\.targets entry 'hogg' is unknown; did you mean 'hog'\? Choose from"
    with pytest.raises(UserError, match=words):
        plan_runs(section(), ["hogg"])


@pytest.mark.parametrize("name", ["sample_images", "factors"])
def test_shipped_comparison_has_every_target_of_the_family(name: str) -> None:
    config = load_config(CompareConfig, f"configs/compare/{name}.yaml")
    runs = {one.target: one for one in plan_runs(config.compare)}
    named = {one.pretrain_config().target.name for one in runs.values()}
    methods = {one.pretrain_config().method.name for one in runs.values()}
    assert named == set(TARGETS)
    assert methods == set(METHODS)
    taught = [
        one
        for one in runs.values()
        if one.pretrain_config().target.name in ("codebook", "features", "combined")
    ]
    assert len(taught) == 3
    assert len({one.before[0].folder for one in taught}) == 1  # the teacher is trained once for all three


def test_comparison_on_real_lists_builds_every_network() -> None:
    """On the meta device; targets that need files of others are only named."""
    config = load_config(CompareConfig, "configs/compare/k400_ssv2.yaml")
    runs = plan_runs(config.compare)
    built = []
    for one in runs:
        pretrain = one.pretrain_config()
        assert list(pretrain.probe.factors) == list(one.finetunes) == ["kinetics", "something"]
        assert (pretrain.optim.epochs, pretrain.optim.batch_size) == (100, 32)
        for name, command in one.finetunes.items():
            tuned = load_config(FinetuneConfig, command.config, [*command.overrides, "model.weights="])
            assert (tuned.clip.sampling, tuned.data.classes) == (
                ("clip", 400) if name == "kinetics" else ("segments", 174)
            )
            with torch.device("meta"):
                assert build_classifier(tuned, tuned.data.classes)[0] is not None
        if not {"weights", "teacher"} & pretrain.target.arguments.keys():
            with torch.device("meta"):
                assert build_method(pretrain).recipe.method == pretrain.method.name
            built.append(one.target)
    assert built == ["hog", "pixels", "simmim", "mae", "latent", "ibot", "byol"]
    assert {one.target for one in runs} == {*built, "dvae", "codebook", "features"}


def test_finished_run_of_another_config_is_not_taken_for_this_one(tmp_path: Path) -> None:
    """Budgets must not be mixed in one table; how often it is probed may differ."""
    shared = {"pretrain": {"optim": {"epochs": 2}}}
    (one,) = plan_runs(section(folder=str(tmp_path), shared=shared, targets={"hog": {}}, finetune=""))
    one.pretrain.folder.mkdir(parents=True)
    (one.pretrain.folder / "config.yaml").write_text(config_text(one.pretrain_config()))
    (one.pretrain.folder / "summary.json").write_text("{}")
    same = {"folder": str(tmp_path), "targets": {"hog": {}}, "finetune": ""}
    assert plan_runs(section(**same, shared=shared, probes=1))[0].pretrain.finished
    with pytest.raises(
        UserError, match=r"config\.yaml belongs to a run of another config: optim\.epochs is 2.* and 9"
    ):
        plan_runs(section(**same, shared={"pretrain": {"optim": {"epochs": 9}}}))


def test_a_run_that_fails_is_named_with_its_last_word(tmp_path: Path) -> None:
    with pytest.raises(
        RunFailed,
        match=r"run: the run failed with exit code 2: .*data\.train is not set.*fix the cause and start",
    ):
        Command(tmp_path / "run", "pretrain", "", ()).run(Verbs())


def write_log_of_verb(path: str, arguments: list[str]) -> None:
    with open(path, "a", encoding="utf-8") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    sys.exit(main(arguments))


def test_two_targets_end_on_one_page_and_are_not_run_twice(
    sample: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The processes are forked from one that has imported torch; the tests above start them as usual."""

    def run_forked(self: Verbs, arguments: list[str], *, log: Any, environment: Any) -> int | None:
        return exit_code(write_log_of_verb, log.name, list(arguments))

    monkeypatch.setattr(Verbs, "run", run_forked)
    lists = {"train": str(sample / "train.csv"), "test": str(sample / "val.csv")}
    tiny = dict(item.split("=", 1) for item in TINY)
    shared: dict[str, dict[str, Any]] = {"data": {"train": lists["train"]}, "probe": lists}
    for name, value in tiny.items():
        section, item = name.split(".")
        shared.setdefault(section, {})[item] = yaml.safe_load(value)
    base = tmp_path / "base.yaml"
    base.write_text(yaml.safe_dump(shared))
    tuning = tmp_path / "finetune.yaml"
    shared = {"data": {"train": lists["train"], "validation": lists["test"]}}
    for name, value in (item.split("=", 1) for item in TINY_FINETUNE):
        section, item = name.split(".")
        shared.setdefault(section, {})[item] = yaml.safe_load(value)
    tuning.write_text(yaml.safe_dump(shared))
    config = {
        "folder": str(tmp_path / "out"),
        "pretrain": str(base),
        "finetune": str(tuning),
        "finetunes": {"motion": {}},
        "probes": 2,
        "targets": {"hog": {}, "fine_hog": {"pretrain": {"target": {"arguments": {"bins": 12}}}}},
    }
    path = tmp_path / "compare.yaml"
    path.write_text(yaml.safe_dump({"compare": config}, sort_keys=False))
    assert main(["compare", "--config", str(path)]) == 0
    output = capfd.readouterr()
    assert f"report  {tmp_path / 'out' / 'report.html'}" in output.out
    assert "run 1 of 5: hog/seed_1/pretrained\n  hog/seed_1/pretrained took " in output.out
    assert "run 5 of 5: fine_hog/seed_1/finetuned_motion; about " in output.out
    assert (tmp_path / "out" / "table.md").read_text().rstrip() in output.out
    content = simplejson.loads((tmp_path / "out" / "table.json").read_text())
    assert [row["target"] for row in content["targets"]] == ["hog", "fine_hog"]
    for row in content["targets"]:
        assert 0 < row["target_ms"] < row["step_ms"]
        assert len(row["knn_top1"]) == len(row["linear_top1_untrained"]) == 1
        summary = tmp_path / "out" / row["target"] / "seed_1" / "pretrained" / "summary.json"
        tuned = summary.parents[1] / "finetuned_motion" / "summary.json"
        assert row["finetuned_top1_motion"] == [simplejson.loads(tuned.read_text())["top1"]]
        scratch = tmp_path / "out" / "hog" / "seed_1" / "scratch_motion" / "summary.json"
        assert row["scratch_top1_motion"] == [simplejson.loads(scratch.read_text())["top1"]]
        assert row["knn_top1"] == [simplejson.loads(summary.read_text())["knn_top1"]]
    markdown = (tmp_path / "out" / "table.md").read_text()
    whole, gains = markdown.split("Points over random weights, fine-tuned:")
    table, chance = whole.strip().split("\n\n")
    assert table.count("\n") == 3  # header, rule, two targets
    assert re.search(
        r"^Chance: probes \S+ % on \d+ videos; fine-tuned, motion \S+ % on \d+ videos\. In", chance
    )
    assert re.search(r"\d \[\d+, \d+\]", table)
    assert "| Target | motion |" in gains
    html = (tmp_path / "out" / "report.html").read_text()
    assert "fine_hog" in html
    assert "k-NN top-1, percent" in html
    (tmp_path / "out" / "report.html").unlink()
    before = (tmp_path / "out" / "hog" / "seed_1" / "pretrained.log").read_text()
    assert main(["compare", "--config", str(path)]) == 0
    assert (tmp_path / "out" / "report.html").exists()
    assert (tmp_path / "out" / "hog" / "seed_1" / "pretrained.log").read_text() == before
    assert main(["compare", "--config", str(path), "--targets", "fine_hog"]) == 0
    assert (tmp_path / "out" / "table.md").read_text() == markdown  # what is finished stays on the page
