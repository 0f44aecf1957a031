"""Plug-ins named in a config: the examples of docs/extending.md as files of a user, in trainings."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

import videomaskfeat
from tests.engine.toy import metrics
from tests.extending import PAGE
from tests.jobs.conftest import TINY
from videomaskfeat.cli import main
from videomaskfeat.data.formats import class_names_beside, load_records
from videomaskfeat.engine.log import LOGGERS, StepLogger, open_logger
from videomaskfeat.errors import PlugInFailed, UserError
from videomaskfeat.grid import TokenGrid
from videomaskfeat.masking import build_policy, is_exact
from videomaskfeat.models.zoo import encoder_of
from videomaskfeat.plugins import find_class, import_class, import_plugin, is_plugin
from videomaskfeat.targets.target import Target

WRONG = """
import numpy as np
from my_format import JsonLines
from videomaskfeat.targets.target import Target
from videomaskfeat.data.reader import VideoReader
from videomaskfeat.engine.log import StepLogger

class Unfinished(Target):
    pass

class Other:
    pass

class BrokenReader(VideoReader):
    frames, fps, decoder = 1, 30.0, "none"
    info = None
    def __init__(self, path): self.missing_method()
    def _read(self, indices): ...
    def close(self): ...

class BrokenLogger(StepLogger):
    def __init__(self, folder, first_step): raise KeyError("no key")
    def write(self, record, step): ...

class NamedLines(JsonLines):
    def class_file(self, path): return f"{path}.names"

class FirstStep(StepLogger):
    def __init__(self, folder, first_step):
        with open("first_steps.txt", "a") as file:
            print(first_step, file=file)
    def write(self, record, step): ...

def small(grid, ratio, rng):
    return np.zeros((1, 1, 1), bool)

number = 3
"""


@pytest.fixture
def plugins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The current folder, with the files of docs/extending.md."""
    page = PAGE.read_text(encoding="utf-8")
    files = re.findall(r"Write `(my_\w+\.py)`:\n\n```python\n(.*?)```", page, re.DOTALL)
    assert len(files) == 7
    for name, code in [*files, ("wrong_plug_ins.py", WRONG), ("broken_plug_in.py", "1 / 0")]:
        (tmp_path / name).write_text(code)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield tmp_path
    for name in [name for name in sys.modules if name.startswith(("my_", "wrong_"))]:
        del sys.modules[name]


@pytest.fixture
def arrays(plugins: Path) -> Path:
    """Nine videos as NumPy files, one of them unreadable, in a JSON Lines list."""
    rng = np.random.default_rng(0)
    for index in range(8):
        np.save(plugins / f"{index}.npy", rng.integers(0, 256, (8, 40, 40, 3), np.uint8))
    rows = [f'{{"video": "{index}.npy", "label": {index % 2}}}\n' for index in range(8)]
    (plugins / "train.jsonl").write_text("".join(rows))
    return plugins / "train.jsonl"


def without(options: list[str], *names: str) -> list[str]:
    return [option for option in options if not option.startswith(names)]


OWN = [
    *without(TINY, "model.", "mask."),
    *("target=my_target:ColorTarget", "target.arguments={output_stride: [2, 8, 8]}"),
    *("model.name=my_encoder:Mixer", "model.arguments={depth: 2, width: 16}"),
    *("mask.kind=my_mask:EverySecond", "mask.arguments={first: 0}", "mask.cell=[2,8,8]"),
    *("data.format=my_format:JsonLines", "data.reader=my_reader:NumpyReader"),
    "run.loggers=[my_logger:CsvLogger,wrong_plug_ins:FirstStep]",
]


def test_plug_ins_pretrain_resume_and_finetune(
    plugins: Path, arrays: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One run with six kinds of plug-ins, whose videos are read in a worker process."""
    run = [*OWN, f"data.train={arrays}", "run.folder=run", "data.workers=1", "run.pictures=0"]
    assert main(["pretrain", *run, "optim.epochs=1", "optim.warmup_epochs=0"]) == 0
    assert (
        main(
            ["pretrain", *run, "optim.epochs=2", "optim.warmup_epochs=0", "run.extend=true", "data.workers=0"]
        )
        == 0
    )
    rows = metrics(plugins / "run")
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    losses = [line.split(",") for line in (plugins / "run" / "losses.csv").read_text().splitlines()]
    assert [(int(step), float(loss)) for step, loss in losses] == [(row["step"], row["loss"]) for row in rows]
    assert (plugins / "first_steps.txt").read_text().split() == ["0", "2"]
    assert not (plugins / "run" / "tensorboard").exists()
    config = (plugins / "run" / "config.yaml").read_text()
    assert "name: my_target:ColorTarget" in config
    assert "reader: my_reader:NumpyReader" in config

    model = videomaskfeat.load_model("run/weights.safetensors")
    assert model.created_as[0] == "my_encoder:Mixer:maskfeat"
    assert model.values_per_token == 3
    encoder = encoder_of(model)
    assert encoder.created_as[0] == "my_encoder:Mixer"
    clips = torch.randn(2, 3, 4, 32, 32)
    assert torch.equal(encoder.features(clips), model.features(clips))

    lists = [f"data.train={arrays}", f"data.validation={arrays}", "data.format=my_format:JsonLines"]
    own = ["model.name=my_encoder:Mixer", "model.arguments={depth: 2, width: 16}", *lists]
    own += ["model.weights=run/weights.safetensors", "data.reader=my_reader:NumpyReader", "run.folder=tuned"]
    own += ["augment.randaugment=", "evaluate.views=1", "evaluate.short_side=32", "mix.mixup=0"]
    tiny = without(TINY, "model.", "mask.", "run.pictures", "optim.epochs", "optim.warmup")
    assert main(["finetune", *tiny, *own, "optim.epochs=1", "optim.warmup_epochs=0", "run.loggers=[]"]) == 0
    capsys.readouterr()
    tuned = videomaskfeat.load_classifier("tuned/best.safetensors", reader="my_reader:NumpyReader")
    assert tuned.model.created_as[0] == "my_encoder:Mixer:classifier"
    assert tuned.predict("1.npy").probabilities.shape == (2,)
    reader = ["--reader", "my_reader:NumpyReader", "--device", "cpu"]
    windows = ["--window", "0.1", "--json", "windows.json"]
    assert main(["predict", "tuned/best.safetensors", "1.npy", *reader, *windows]) == 0
    (document,) = json.loads((plugins / "windows.json").read_text())
    assert len(document["windows"]) == 3  # 8 frames at 30 per second are 0.27 seconds
    capsys.readouterr()
    assert main(["visualize", "run/weights.safetensors", "1.npy", *reader, "--out", "drawn"]) == 2
    assert "target 'my_target:ColorTarget' cannot be drawn; only " in capsys.readouterr().err
    again = videomaskfeat.create_model(
        "my_encoder:Mixer", num_classes=2, depth=2, width=16, clip_size=(4, 32, 32)
    )
    assert again.state_dict().keys() == tuned.model.state_dict().keys()


def test_method_of_the_user_trains(plugins: Path, arrays: Path) -> None:
    options = [*without(OWN, "target", "mask", "run.loggers"), "method=my_method:Arrow", "run.folder=run"]
    options += ["mask.cell=[2,16,16]", "optim.epochs=1", "optim.warmup_epochs=0", f"data.train={arrays}"]
    assert main(["pretrain", *options, "method.arguments={smoothing: 0.1}"]) == 0
    assert all("right" in row for row in metrics(plugins / "run"))
    assert videomaskfeat.load_model("run/weights.safetensors").created_as[0] == "my_encoder:Mixer"


@pytest.mark.parametrize(
    ("key", "words"),
    [
        ("target=wrong_plug_ins:Nothing", r"'wrong_plug_ins:Nothing': wrong_plug_ins has no Nothing"),
        ("target=wrong_plug_ins:Others", r"wrong_plug_ins has no Others; did you mean 'Other'\?"),
        (
            "target=wrong_plug_ins:Other",
            r"target\.name 'wrong_plug_ins:Other' is the class Other; it must be a subclass of "
            r"videomaskfeat\.targets\.target\.Target",
        ),
        ("target=wrong_plug_ins:number", "is of type int; it must be a subclass"),
        ("target=wrong_plug_ins:Unfinished", "'wrong_plug_ins:Unfinished' lacks the method forward"),
        ("target=no_such_module:X", r"there is no module no_such_module, neither installed nor in /"),
        ("target=broken_plug_in:X", "importing broken_plug_in failed: ZeroDivisionError: division by zero"),
        ("target=wrong plug:X", "'wrong plug:X' must have the form package.module:name, such as my_code:MyC"),
        ("method=my_target:ColorTarget", r"method\.name .* it must be a subclass of .*\.Method"),
        ("model.name=my_target:ColorTarget", r"model 'my_target:ColorTarget' is .*\.Encoder"),
        ("model.name=my_encoder:Mixer:head", r"model 'my_encoder:Mixer:head': head 'head' is unknown"),
        ("mask.kind=my_mask:EveryThird", r"mask\.kind 'my_mask:EveryThird': my_mask has no EveryThird"),
        ("mask.arguments={second: 1}", r"mask\.arguments: key 'second' is unknown"),
        ("mask.kind=wrong_plug_ins:number", "is of type int; it must be a function"),
        ("data.format=my_target:ColorTarget", r"format 'my_target:ColorTarget' is .*\.ListFormat"),
        ("run.loggers=[my_target:ColorTarget]", r"run\.loggers .*\.StepLogger"),
        ("run.loggers=[tensorbord]", r"run\.loggers 'tensorbord' is unknown; did you mean 'tensorboard'"),
        ("data.reader=decod", r"data\.reader 'decod' is unknown; did you mean 'decord'"),
    ],
)
def test_wrong_plug_in_is_an_error_of_one_line(
    key: str, words: str, arrays: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["pretrain", *OWN, f"data.train={arrays}", "run.folder=run", key]) == 2
    (line,) = [one for one in capsys.readouterr().err.splitlines() if one.startswith("videomaskfeat")]
    assert re.search(words, line), line


def test_weights_of_a_missing_plug_in_are_refused(plugins: Path) -> None:
    model = videomaskfeat.create_model("my_encoder:Mixer:detector", depth=1, width=16)
    assert model.created_as[0] == "my_encoder:Mixer:detector"
    videomaskfeat.save_model(model, "model.safetensors")
    (plugins / "my_encoder.py").unlink()
    del sys.modules["my_encoder"]
    with pytest.raises(
        UserError, match=r"model\.safetensors: cannot build .*: there is no module my_encoder"
    ):
        videomaskfeat.load_model("model.safetensors")


@pytest.mark.usefixtures("plugins")
def test_results_and_errors_of_plug_ins_are_checked(tmp_path: Path) -> None:
    grid, rng = TokenGrid(4, 2, 2), np.random.default_rng(0)
    mask = build_policy("my_mask:EverySecond", {})(grid, 0.5, rng)
    assert mask.any(axis=(1, 2)).tolist() == [False, True, False, True]
    assert is_exact("my_mask:EverySecond")
    assert not is_exact("wrong_plug_ins:small")
    with pytest.raises(UserError, match=r"returned bool \(1, 1, 1\); it must return bool \(4, 2, 2\)"):
        build_policy("wrong_plug_ins:small", {})(grid, 0.5, rng)
    with pytest.raises(UserError, match="has no arguments"):
        build_policy("wrong_plug_ins:small", {"a": 1})
    with pytest.raises(
        PlugInFailed, match=r"reader 'wrong_plug_ins:BrokenReader' failed on .*missing_method"
    ):
        videomaskfeat.open_video("a.mp4", "wrong_plug_ins:BrokenReader")
    with pytest.raises(videomaskfeat.VideoReadError, match="not a NumPy file"):
        videomaskfeat.open_video("missing.npy", "my_reader:NumpyReader")
    with pytest.raises(PlugInFailed, match=r"run\.loggers 'wrong_plug_ins:BrokenLogger' failed: KeyError"):
        open_logger("wrong_plug_ins:BrokenLogger", tmp_path, 0)
    with pytest.raises(
        UserError, match=r"format=my_format:JsonLines needs a list file, and this is a folder"
    ):
        load_records(tmp_path, format="my_format:JsonLines")


def test_list_format_of_the_user_is_checked_and_named(plugins: Path, arrays: Path) -> None:
    with open(arrays, "a") as file:
        file.write('{"video": "gone.npy", "label": 1}\n')
    own = ["--format", "my_format:JsonLines", "--reader", "my_reader:NumpyReader", "--workers", "0"]
    assert main(["check-data", str(arrays), *own, "--clean", "clean.jsonl"]) == 3
    assert (plugins / "clean.jsonl").read_text().splitlines() == arrays.read_text().splitlines()[:8]
    assert class_names_beside("a.jsonl", "wrong_plug_ins:NamedLines") == "a.jsonl.names"
    assert class_names_beside("a.jsonl", "my_format:JsonLines") == ""


def test_names(plugins: Path) -> None:
    assert [is_plugin(name) for name in ("a.b:C", "hog", "", None)] == [True, False, False, False]
    assert import_plugin("x", "my_target:ColorTarget.forward").__name__ == "forward"
    assert find_class("run.loggers", "tensorboard", LOGGERS, StepLogger).__name__ == "TensorBoard"
    assert issubclass(import_class("x", "videomaskfeat.targets.hog:HogTarget", Target), Target)
    assert sys.path[-1] == str(plugins)
    # A class of the package keeps the name of its encoder.
    videomaskfeat.create_model("videomaskfeat.models.vit:ViT", depth=1, width=16, heads=1)
    from videomaskfeat.models.vit import ViT

    assert ViT.encoder_name == "vit_encoder"
