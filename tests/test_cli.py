"""The command line: help, versions, exit codes, and the commands that the documents show."""

from __future__ import annotations

import os
import re
import runpy
import signal
import subprocess
import sys
from pathlib import Path

import av
import pytest
import simplejson

from videomaskfeat import __version__, cli
from videomaskfeat.config import FinetuneConfig, PretrainConfig, TokenizerConfig, load_config
from videomaskfeat.errors import RunFailed, Stopped, UserError

ROOT = Path(__file__).parent.parent
VERBS = (
    "pretrain",
    "finetune",
    "evaluate",
    "average-scores",
    "score-ava",
    "predict",
    "extract-features",
    "import-slowfast",
    "export",
    "visualize",
    "report",
    "sample-data",
    "check-data",
    "doctor",
)
DOCUMENTS = sorted([ROOT / "README.md", *ROOT.glob("docs/*.md"), *ROOT.glob("datasets/*/README.md")])


@pytest.mark.parametrize("verb", VERBS)
def test_help_of_every_verb_has_examples(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.main([verb, "--help"])
    assert stopped.value.code == 0
    text = capsys.readouterr().out
    assert f"examples:\n  videomaskfeat {verb}" in text


def test_version_is_the_packages(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["--version"])
    assert capsys.readouterr().out == f"videomaskfeat {__version__}\n"


def test_module_runs_as_the_command() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "videomaskfeat", "--version"], capture_output=True, text=True
    )
    assert done.stdout == f"videomaskfeat {__version__}\n"


@pytest.mark.parametrize(
    "tool",
    [
        "pretrain",
        "finetune",
        "train_tokenizer",
        "evaluate",
        "score_ava",
        "predict",
        "extract_features",
        "import_slowfast",
        "export",
        "visualize",
        "report",
        "check_data",
    ],
)
def test_tools_are_verbs(
    tool: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", [f"tools/{tool}.py", "--help"])
    with pytest.raises(SystemExit):
        runpy.run_path(str(ROOT / "tools" / f"{tool}.py"), run_name="__main__")
    signal.signal(signal.SIGINT, signal.default_int_handler)
    assert f"videomaskfeat {tool.replace('_', '-')}" in capsys.readouterr().out


@pytest.mark.parametrize("tool", sorted(path.name for path in ROOT.glob("tools/*.py")))
def test_tools_do_nothing_where_a_worker_imports_them(tool: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", [tool, "--help"])
    runpy.run_path(str(ROOT / "tools" / tool), run_name="__mp_main__")


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (UserError("one\n  two"), 2),
        (RunFailed("no space"), 1),
        (KeyboardInterrupt(), 130),
        (BrokenPipeError(), 0),
    ],
)
def test_errors_become_one_line_and_a_code(
    error: BaseException, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*arguments: object, **options: object) -> None:
        raise error

    monkeypatch.setattr("videomaskfeat.environment.diagnose", fail)
    # A closed stderr, which a broken pipe leaves, would end the test run itself.
    monkeypatch.setattr(sys.stderr, "close", lambda: None)
    assert cli.main(["doctor"]) == code
    lines = capsys.readouterr().err.splitlines()
    if isinstance(error, UserError):
        assert lines == ["videomaskfeat doctor: one two"]
    assert len(lines) <= 1


def test_keys_are_listed_with_meanings(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["pretrain", "--keys"]) == 0
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("mask.ratio"))
    assert line.split(maxsplit=2)[1:] == ["0.4", "share of the mask's cells to hide, between 0 and 1"]


def test_keys_say_which_arguments_targets_methods_and_tokenizers_take(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert cli.main(["pretrain", "--keys"]) == 0
    text = capsys.readouterr().out
    assert "target.arguments of features\n  teacher, depth=None, frame_stride=2," in text
    assert "method.arguments of byol\n  projection=256," in text
    assert "method.arguments of masked\n  none\n" in text
    assert "clip_mean" not in text
    assert cli.main(["train-tokenizer", "--keys"]) == 0
    assert "model.arguments of vq\n  vocabulary=8192," in capsys.readouterr().out


def test_doctor_speaks_text_and_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["doctor"]) == 0
    assert "decodes" in capsys.readouterr().out
    assert cli.main(["doctor", "--json"]) == 0
    assert simplejson.loads(capsys.readouterr().out)["versions"]["videomaskfeat"] == __version__


def test_sample_data_writes_videos_of_the_asked_size(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--videos", "24", "--size", "48", "--frames", "5", "--ava-videos", "0"]
    assert cli.main(["sample-data", str(tmp_path), *options]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "README.txt")
    videos = sorted((tmp_path / "videos").glob("*.mp4"))
    assert len(videos) == 24
    with av.open(str(videos[0])) as video:
        stream = video.streams.video[0]
        assert (stream.width, stream.height, stream.frames) == (48, 48, 5)


def commands() -> list[str]:
    """Every `videomaskfeat ...` line in a code block of the documents and in the headers of the configs."""
    found = []
    for path in DOCUMENTS:
        for block in re.findall(r"^```\w*\n(.*?)^```", path.read_text(), re.DOTALL | re.MULTILINE):
            joined = block.replace("\\\n", " ")
            found += re.findall(r"^videomaskfeat [^\n#]+", joined, re.MULTILINE)
    for path in sorted((ROOT / "configs").rglob("*.yaml")):
        header = path.read_text().split("\n\n")[0]
        found += re.findall(r"videomaskfeat (?!\.)[a-z][^\n&]+", header.split("Expected:")[0])
    return [command.strip() for command in found]


@pytest.mark.parametrize("command", commands())
def test_documented_command_is_understood(command: str) -> None:
    """It parses, and the config that it names is there and takes its overrides."""
    options = cli.build_parser().parse_args(command.split()[1:])
    schemas: dict[str, type] = {
        "pretrain": PretrainConfig,
        "finetune": FinetuneConfig,
        "train-tokenizer": TokenizerConfig,
    }
    if options.verb in schemas and options.config:
        load_config(schemas[options.verb], str(ROOT / options.config), options.overrides)


# A module that is imported when Ctrl-C comes, and turns it into an error of its own, as numpy does.
INTERRUPTED = """
import os, signal, time
try:
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(30)
except KeyboardInterrupt:
    raise ImportError("multiarray failed to import")
"""


@pytest.mark.parametrize(
    ("start", "module", "name"),
    [
        (["-m", "videomaskfeat", "pretrain"], "argparse", "videomaskfeat"),
        (["-m", "videomaskfeat", "pretrain"], "omegaconf", "videomaskfeat pretrain"),
        (["tools/pretrain.py"], "argparse", "videomaskfeat"),
    ],
)
def test_ctrl_c_during_imports_is_one_line(tmp_path: Path, start: list[str], module: str, name: str) -> None:
    (tmp_path / f"{module}.py").write_text(INTERRUPTED)
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
    line = [sys.executable, *start, "data.train=list.csv", "run.folder=run"]
    done = subprocess.run(line, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", f"{name}: interrupted\n")


def test_error_that_ctrl_c_became_is_not_shown(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def turn(*arguments: object, **options: object) -> None:
        try:
            signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt as error:
            raise UserError("doctor needs a package that is not installed") from error

    earlier = signal.getsignal(signal.SIGINT)
    monkeypatch.setattr("videomaskfeat.environment.diagnose", turn)
    assert cli.main(["doctor"]) == 130
    assert capsys.readouterr().err == "videomaskfeat doctor: interrupted\n"
    assert signal.getsignal(signal.SIGINT) == earlier


def test_ctrl_c_while_its_handler_is_set_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli.Interrupts, "__enter__", interrupted)
    assert cli.main(["doctor"]) == 130
    assert capsys.readouterr().err == "videomaskfeat doctor: interrupted\n"


# Ctrl-C while an object is freed: Python prints the exception and goes on.
LOST = """
import signal, sys, time
from videomaskfeat import cli
from videomaskfeat.cli import verb
from videomaskfeat.jobs import doctor

class Freed:
    def __del__(self):
        signal.raise_signal(signal.SIGINT)

def work(*arguments, **options):
    Freed()
    time.sleep(30)

verb._END_SECONDS, doctor.diagnose = 0.1, work
sys.exit(cli.main(["doctor"]))
"""


def test_ctrl_c_that_python_loses_ends_the_verb_all_the_same() -> None:
    done = subprocess.run([sys.executable, "-c", LOST], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 130
    assert done.stderr.endswith("\nvideomaskfeat doctor: interrupted\n")


def test_stopped_work_has_the_code_of_its_signal(monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*arguments: object, **options: object) -> None:
        raise Stopped(signal.SIGTERM)

    monkeypatch.setattr("videomaskfeat.environment.diagnose", stop)
    assert cli.main(["doctor"]) == 143
