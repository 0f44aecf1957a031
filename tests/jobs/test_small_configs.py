"""`configs/*/small_*.yaml`: each trains two steps on tiny clips, with its own batch, schedule and crops."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import simplejson

from tests.jobs.action_set import ActionSet, make_action_set
from videomaskfeat.config import load_config
from videomaskfeat.schemas.detect import DetectConfig
from videomaskfeat.schemas.finetune import FinetuneConfig
from videomaskfeat.schemas.pretrain import PretrainConfig

from .conftest import Verb
from .test_pretrain import rows

TINY = [
    "clip.frames=4",
    "clip.crop=32",
    "data.workers=0",
    "model.arguments={depth: 4, width: 8, widen_at: [1, 3]}",
    "optim.epochs=2",
    "optim.warmup_epochs=1",
    "optim.base_batch_size=8",
]
OF_JOB = {  # verb, schema, model, a number of its summary, further keys
    "pretrain": (
        "pretrain",
        PretrainConfig,
        "",
        "heldout_trained",
        ["mask.cell=[2,16,16]", "run.pictures=0"],
    ),
    "finetune": ("finetune", FinetuneConfig, "_classifier", "top1", ["evaluate.short_side=32"]),
    "detect": (
        "detect-train",
        DetectConfig,
        "_detector",
        "mean_ap",
        ["clip.stride=2", "clip.target_fps=null", "clip.short_side=[32,40]", "evaluate.short_side=32"],
    ),
}


@pytest.fixture(scope="module")
def actions(tmp_path_factory: pytest.TempPathFactory) -> ActionSet:
    return make_action_set(tmp_path_factory.mktemp("actions"))


@pytest.mark.parametrize("machine", ["cpu", "gpu"])
@pytest.mark.parametrize("job", OF_JOB)
def test_small_config_trains(
    job: str, machine: str, sample: Path, actions: ActionSet, tmp_path: Path, verb: Verb
) -> None:
    path = f"configs/{job}/small_{machine}.yaml"
    name, schema, ending, number, more = OF_JOB[job]
    config: Any = load_config(schema, path)
    assert (config.optim.accumulate > 1) == (machine == "gpu")
    assert config.optim.batch_size // config.optim.accumulate == 8  # clips at once, as the header states
    per_video = getattr(config.clip, "samples_per_video", 1)
    batch = config.optim.accumulate * per_video
    few = (sample / "train.csv").read_text().splitlines(keepends=True)[: batch // per_video]
    (sample / "few.csv").write_text("".join(few))
    data = [f"data.train={sample / 'few.csv'}", f"data.validation={sample / 'val.csv'}"]
    if job == "finetune":
        data.append(f"data.class_names={sample / 'classes.txt'}")
    if job == "detect":
        data = [f"data.train={actions.train}", f"data.validation={actions.truth}"]
        data += [f"data.label_map={actions.labels}", f"data.videos={actions.videos}"]
    words = [*data, *TINY, *more, f"model.name=maskfeat_mvitv2_nano{ending}", f"optim.batch_size={batch}"]
    code, _, err = verb(name, "--config", path, *words, f"run.folder={tmp_path / 'run'}")
    assert code == 0, err
    summary = simplejson.loads((tmp_path / "run/summary.json").read_text())
    assert summary["steps"] == len(rows(tmp_path / "run")) >= 2
    assert number in summary
