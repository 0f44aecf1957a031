"""Weights & Biases and MLflow: the calls, recorded by a stand-in; the packages themselves, offline."""

from __future__ import annotations

import json
import logging
import sys
import types
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from videomaskfeat.engine import services
from videomaskfeat.engine.log import RunLog, log_pictures
from videomaskfeat.errors import UserError

CONFIG = "optim: {epochs: 3, betas: [0.9, 0.999]}\ntarget: {name: hog, arguments: {}}\n"
FLAT = {
    **{"optim.epochs": 3, "optim.betas": [0.9, 0.999]},
    **{"target.name": "hog", "target.arguments": {}},
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A run folder with a config and a picture."""
    run = tmp_path / "first"
    (run / "pictures").mkdir(parents=True)
    (run / "config.yaml").write_text(CONFIG)
    cv2.imwrite(str(run / "pictures/disc.png"), np.full((4, 6, 3), (30, 60, 90), np.uint8))
    return run


def write_run(folder: Path, name: str, *, first_step: int = 0) -> None:
    """Two steps of a run, the second with an evaluation; then its pictures."""
    step = first_step + 1
    with RunLog(folder, first_step=first_step, total_steps=4, loggers=[name], terminal=False) as log:
        log.write({"step": step, "epoch": 0.5, "loss": 0.5 / step, "grad_norm": None, "note": "text"})
        log.write({"step": step + 1, "epoch": 1.0, "loss": 0.25, "evaluation/top1": 50})
    log_pictures([name], folder, first_step + 2)


class Recorder:
    """Records calls by name, and gives a result from ``results``."""

    def __init__(self, **results: Any) -> None:
        self.calls: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = []
        self.results = results

    def __getattr__(self, name: str) -> Any:
        def record_call(*arguments: Any, **options: Any) -> Any:
            self.calls.append((name, arguments, options))
            result = self.results.get(name)
            if isinstance(result, Exception):
                raise result
            return result

        return record_call

    def named(self, name: str) -> list[tuple[tuple[Any, ...], dict[str, Any]]]:
        return [(arguments, options) for called, arguments, options in self.calls if called == name]


def stand_in_wandb(monkeypatch: pytest.MonkeyPatch, run: Recorder) -> Recorder:
    package = Recorder(init=run, Image="an image")
    monkeypatch.setitem(sys.modules, "wandb", package)
    return package


def stand_in_mlflow(monkeypatch: pytest.MonkeyPatch, client: Recorder) -> Recorder:
    def entity(*values: Any) -> tuple[Any, ...]:
        return values

    opened = Recorder(MlflowClient=client)
    monkeypatch.setitem(sys.modules, "mlflow", types.ModuleType("mlflow"))
    monkeypatch.setitem(sys.modules, "mlflow.tracking", opened)
    entities = types.SimpleNamespace(Metric=entity, Param=entity)
    monkeypatch.setitem(sys.modules, "mlflow.entities", entities)
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return opened


def test_wandb_gets_config_numbers_and_pictures(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Recorder()
    package = stand_in_wandb(monkeypatch, run)
    monkeypatch.setenv("WANDB_PROJECT", "mine")
    write_run(folder, "wandb")
    (opened, _) = [options for _, options in package.named("init")]
    assert (opened["project"], opened["name"], opened["dir"]) == ("mine", "first", str(folder))
    assert opened["config"] == FLAT
    assert run.named("define_metric")[0] == (("*",), {"step_metric": "step"})
    assert [arguments for arguments, _ in run.named("log")] == [
        ({"step": 1, "epoch": 0.5, "loss": 0.5},),
        ({"step": 2, "epoch": 1.0, "loss": 0.25, "evaluation/top1": 50.0},),
        ({"step": 2, "pictures/disc": "an image"},),
    ]
    assert package.named("Image") == [((str(folder / "pictures/disc.png"),), {})]
    assert len(run.named("finish")) == 2
    # Pictures and a resumed run continue the run of the service; a new run gets its own.
    write_run(folder, "wandb", first_step=2)
    write_run(folder, "wandb")
    ids = [options["id"] for _, options in package.named("init")]
    assert ids[0] == ids[1] == ids[2] == ids[3] != ids[4] == ids[5]


def test_mlflow_gets_params_metrics_and_pictures(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    created = types.SimpleNamespace(info=types.SimpleNamespace(run_id="r7"))
    client = Recorder(create_experiment="5", create_run=created)
    opened = stand_in_mlflow(monkeypatch, client)
    write_run(folder, "mlflow")
    uri = (folder.parent / "mlruns").resolve().as_uri()
    assert opened.named("MlflowClient") == [((), {"tracking_uri": uri})] * 2
    assert client.named("create_run") == [(("5",), {"run_name": "first"})]
    first, *batches = client.named("log_batch")
    assert first == (("r7",), {"params": [(key, str(value)) for key, value in FLAT.items()]})
    metrics = [metric for _, options in batches for metric in options["metrics"]]
    assert [(key, value, step) for key, value, _, step in metrics] == [
        *(("epoch", 0.5, 1), ("loss", 0.5, 1)),
        *(("epoch", 1.0, 2), ("loss", 0.25, 2), ("evaluation/top1", 50.0, 2)),
    ]
    assert client.named("log_artifact") == [(("r7", str(folder / "pictures/disc.png"), "pictures"), {})]
    assert client.named("set_terminated") == [(("r7",), {})] * 2
    monkeypatch.setattr(services, "_SECONDS_BETWEEN_SENDS", 0.0)
    write_run(folder, "mlflow", first_step=2)
    assert len(client.named("create_run")) == 1
    assert len(client.named("log_batch")) == len(batches) + 3  # params before; one for each step now


@pytest.mark.parametrize("method", ["init", "log", "finish"])
def test_service_that_fails_is_one_warning(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, method: str
) -> None:
    error = ConnectionError("no route to host\nmore")
    run = Recorder(**{method: error})
    package = stand_in_wandb(monkeypatch, run)
    if method == "init":
        package.results["init"] = error
    (folder / "pictures/disc.png").unlink()
    with caplog.at_level("INFO"):
        write_run(folder, "wandb")
    (warning,) = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert warning.message == (
        "run.loggers: wandb failed and gets no more records (ConnectionError: no route to host); the run "
        "continues, and metrics.jsonl is complete"
    )
    assert len(run.named("log")) == {"init": 0, "log": 1, "finish": 2}[method]
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2]


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_missing_package_names_its_extra(folder: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(
        UserError, match=rf"run\.loggers={name} needs .* pip install 'videomaskfeat\[{name}\]'"
    ):
        write_run(folder, name)


def test_tensorboard_gets_pictures(folder: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    write_run(folder, "tensorboard")
    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    (image,) = events.Images("pictures/disc")
    assert (image.step, image.width, image.height) == (2, 6, 4)
    assert image.encoded_image_string == (folder / "pictures/disc.png").read_bytes()
    assert [event.value for event in events.Scalars("loss")] == [0.5, 0.25]  # the second file hides none


def test_wandb_itself_offline(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb", reason="the extra wandb is not installed")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    write_run(folder, "wandb")
    identity = json.loads((folder / "loggers.json").read_text())["wandb"]
    files = sorted((folder / "wandb").glob(f"offline-run-*/run-{identity}.wandb"))
    assert files
    content = b"".join(file.read_bytes() for file in files)
    assert b"evaluation/top1" in content
    assert list((folder / "wandb").glob("offline-run-*/files/media/images/pictures/disc*.png"))


def test_mlflow_itself_in_files(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tracking = pytest.importorskip("mlflow.tracking", reason="the extra mlflow is not installed")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    write_run(folder, "mlflow")
    write_run(folder, "mlflow", first_step=2)
    client = tracking.MlflowClient((folder.parent / "mlruns").as_uri())
    (run,) = client.search_runs([client.get_experiment_by_name("videomaskfeat").experiment_id])
    assert run.info.run_name == "first"
    assert run.data.params["optim.epochs"] == "3"
    losses = client.get_metric_history(run.info.run_id, "loss")
    assert [(one.step, one.value) for one in losses] == [(1, 0.5), (2, 0.25), (3, 0.5 / 3), (4, 0.25)]
    (picture,) = client.list_artifacts(run.info.run_id, "pictures")
    assert picture.path == "pictures/disc.png"
