"""The command line: help, version, options, exit codes, and the commands of the documents."""

from __future__ import annotations

import inspect
import os
import re
import runpy
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import pytest
import simplejson

from videomaskfeat import __version__, cli, terminal
from videomaskfeat.errors import RunFailed, Stopped, UserError

ROOT = Path(__file__).parent.parent
TOOLS = {path.stem for path in ROOT.glob("tools/*.py")}
SCRIPTS = {"demo", "demo_detect", "set_up"}  # tools that are no verbs
DOCUMENTS = sorted([ROOT / "README.md", *ROOT.glob("docs/**/*.md"), *ROOT.glob("datasets/*/README.md")])


@pytest.mark.parametrize("verb", cli.VERBS)
def test_help_of_every_verb_has_examples(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.main([verb, "--help"])
    assert stopped.value.code == 0
    text = capsys.readouterr().out
    assert f"examples:\n  videomaskfeat {verb}" in text


def test_version_is_that_of_the_package(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--version"]) == 0
    version = capsys.readouterr().out
    assert version == f"videomaskfeat {__version__}\n"
    command = [sys.executable, "-m", "videomaskfeat", "--version"]
    assert subprocess.run(command, capture_output=True, text=True).stdout == version


def test_every_verb_of_the_overview_has_a_tool_and_a_tool_is_a_verb(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert cli.main(["--help"]) == 0
    verbs = re.findall(r"^  ([a-z-]+)  ", capsys.readouterr().out, re.MULTILINE)
    assert verbs == list(cli.VERBS)
    assert {verb.replace("-", "_") for verb in verbs} - TOOLS == {
        "average_scores",
        "bench_data",
        "configs",
        "doctor",
        "launch",
        "make_lists",
        "models",
        "pack",
        "plan",
        "prepare_videos",
        "sample_data",
    }
    assert TOOLS - {verb.replace("-", "_") for verb in verbs} == SCRIPTS


@pytest.mark.parametrize("tool", sorted(TOOLS - SCRIPTS))
def test_tool_runs_its_verb(
    tool: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", [f"tools/{tool}.py", "--help"])
    with pytest.raises(SystemExit):
        runpy.run_path(str(ROOT / "tools" / f"{tool}.py"), run_name="__main__")
    signal.signal(signal.SIGINT, signal.default_int_handler)
    assert f"videomaskfeat {tool.replace('_', '-')}" in capsys.readouterr().out


@pytest.mark.parametrize("tool", sorted(TOOLS))
def test_tool_does_nothing_when_a_worker_imports_it(tool: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", [tool, "--help"])
    runpy.run_path(str(ROOT / "tools" / f"{tool}.py"), run_name="__mp_main__")


@pytest.fixture
def doctor(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], None]], int]:
    """``doctor(work)`` runs the verb with other work than its own, and returns the exit code."""

    def run(work: Callable[[], None]) -> int:
        monkeypatch.setattr("videomaskfeat.environment.diagnose", lambda *_, **__: work())
        return cli.main(["doctor"])

    return run


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (UserError("one\n  two"), 2),
        (RunFailed("no space"), 1),
        (KeyboardInterrupt(), 130),
        (BrokenPipeError(), 0),
        (Stopped(signal.SIGTERM), 143),
    ],
)
def test_errors_become_one_line_and_a_code(
    error: BaseException,
    code: int,
    doctor: Callable[[Callable[[], None]], int],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail() -> None:
        raise error

    # A closed stderr, which a broken pipe leaves, would end the test run itself.
    monkeypatch.setattr(sys.stderr, "close", lambda: None)
    assert doctor(fail) == code
    lines = capsys.readouterr().err.splitlines()
    if isinstance(error, UserError):
        assert lines == ["videomaskfeat doctor: one two"]
    assert len(lines) <= 1


def test_keys_are_listed_with_meanings(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["pretrain", "--keys"]) == 0
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("mask.ratio"))
    rule = "[above 0 and below 1]"
    assert line.split(maxsplit=2)[1:] == [
        "0.4",
        f"fraction of hidden mask cells; unused by multi_block {rule}",
    ]


def test_keys_list_the_arguments_of_targets_methods_and_tokenizers(
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


def test_doctor_prints_text_and_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["doctor"]) == 0
    assert "decodes" in capsys.readouterr().out
    assert cli.main(["doctor", "--json"]) == 0
    assert simplejson.loads(capsys.readouterr().out)["versions"]["videomaskfeat"] == __version__


def test_sample_data_writes_videos_of_the_given_size(
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
    """Every `videomaskfeat ...` line of the documents, the configs' headers and the verbs' help."""
    texts = [path.read_text() for path in DOCUMENTS]
    blocks = [block for text in texts for block in re.findall(r"(?ms)^```\w*\n(.*?)^```", text)]
    blocks += [inspect.cleandoc(verb.run.__doc__ or "") for verb in cli.VERBS.values()]
    lines = [
        line.partition("     ")[0]
        for block in blocks
        for line in re.findall(
            r"^ *(?:torchrun .*-m )?(videomaskfeat [a-z][^\n#|]+)", re.sub(r"\\\n *", "", block), re.M
        )
    ]
    for path in sorted((ROOT / "configs").rglob("*.yaml")):
        header = path.read_text().split("\n\n")[0]
        lines += re.findall(r"videomaskfeat (?!\.)[a-z][^\n&]+", header.split("Expected:")[0])
    return sorted({line.strip() for line in lines})


@pytest.mark.parametrize("command", commands())
def test_documented_command_is_understood(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its options are known and have allowed values. Its config exists and has those keys."""
    monkeypatch.chdir(ROOT)
    verb, *words = [word for word in shlex.split(command)[1:] if word != "..."]
    if (
        "..." in command or "--config runs/" in command
    ):  # a config of the user, or the options of the line before
        words = [word for word in words if word != "--config" and not word.endswith("/config.yaml")]
        assert cli.CommandLine(verb).parser().parse_known_intermixed_args(words)[1] == []
    else:
        assert cli.CommandLine(verb).read(words) is not None or "--keys" in words


# A module that is imported when Ctrl-C comes, and turns it into another error, as numpy does.
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
        (["-m", "videomaskfeat", "pretrain"], "omegaconf", "videomaskfeat"),
        (["-m", "videomaskfeat", "pretrain"], "simplejson", "videomaskfeat pretrain"),
        (["tools/pretrain.py"], "argparse", "videomaskfeat"),
    ],
)
def test_ctrl_c_during_imports_is_one_line(tmp_path: Path, start: list[str], module: str, name: str) -> None:
    (tmp_path / f"{module}.py").write_text(INTERRUPTED)
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
    line = [sys.executable, *start, "data.train=list.csv", "run.folder=run"]
    done = subprocess.run(line, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", f"{name}: interrupted\n")


def test_error_after_ctrl_c_is_not_shown(
    doctor: Callable[[Callable[[], None]], int], capsys: pytest.CaptureFixture[str]
) -> None:
    def convert() -> None:
        try:
            signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt as error:
            raise UserError("doctor needs a package that is not installed") from error

    earlier = signal.getsignal(signal.SIGINT)
    assert doctor(convert) == 130
    assert capsys.readouterr().err == "videomaskfeat doctor: interrupted\n"
    assert signal.getsignal(signal.SIGINT) == earlier


def test_ctrl_c_while_its_handler_is_set_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(terminal.Interrupts, "__enter__", interrupted)
    assert cli.main(["doctor"]) == 130
    assert capsys.readouterr().err == "videomaskfeat doctor: interrupted\n"


# Ctrl-C while an object is freed: Python prints the exception and continues.
LOST = """
import signal, sys, time
from videomaskfeat import cli, environment, terminal

class Freed:
    def __del__(self):
        signal.raise_signal(signal.SIGINT)

def work(*arguments, **options):
    Freed()
    time.sleep(30)

terminal._END_SECONDS, environment.diagnose = 0.1, work
sys.exit(cli.main(["doctor"]))
"""


def test_ctrl_c_that_python_loses_ends_the_verb() -> None:
    done = subprocess.run([sys.executable, "-c", LOST], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 130
    assert done.stderr.endswith("\nvideomaskfeat doctor: interrupted\n")


def read(line: str) -> Any:
    """The options of a command line, which is split as in a shell."""
    verb, *arguments = shlex.split(line)
    return cli.CommandLine(verb).read(arguments)


@pytest.mark.parametrize(
    "line",
    [
        "best.safetensors val.csv --views 3 --prefix 'a b' --class-names 1e-3",
        """best.safetensors views=3 'prefix=a b' "class_names='1e-3'" val.csv""",
        "list=val.csv --views=3 'evaluate.prefix=a b' best.safetensors --class-names 1e-3",
    ],
)
def test_options_are_flags_or_words_in_any_order(line: str) -> None:
    options = read(f"evaluate {line}")
    assert (options.weights, options.list) == ("best.safetensors", "val.csv")
    assert (options.views, options.prefix, options.class_names) == (3, "a b", "1e-3")
    assert (options.crops, options.workers, options.out) == (None, 2, "evaluation")


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("predict w v --json a json=b", {"json": "b"}),
        ("predict w v json=b --json a", {"json": "a"}),
        ("predict w v --json a json=null", {"json": None}),
        ("predict w v --json top=3", {"json": "top=3", "top": 5}),
        ("evaluate w l views=3 --views 4 views=5", {"views": 5}),
        ("evaluate w l --views 010 --temperature .5", {"views": 10, "temperature": 0.5}),
        ("report run 'beside=a b'", {"beside": ["a b"]}),
        ("report run 'beside=[a, b]'", {"beside": ["a", "b"]}),
        ("report run --beside a b out=c", {"beside": ["a", "b"], "out": "c"}),
        ("report run out=null", {"out": None}),
        ("export w o --input uint8 --opset 20", {"input": "uint8", "opset": 20}),
        ("export w o opset=20", {"opset": 20}),
        ("export w o.onnx --batch dynamic", {"batch": None, "tolerance": 1e-4}),
        ("evaluate --views 2 -- -w top=1", {"weights": "-w", "list": "top=1", "views": 2}),
        ("evaluate w -- out=x", {"list": "out=x"}),
        (
            "detect-evaluate --groundtruth g --labels l w --scales 224 256 out=o --flip",
            {"scales": [224, 256], "out": "o", "flip": True, "area": None},
        ),
    ],
)
def test_the_last_value_of_an_option_wins(line: str, expected: dict[str, Any]) -> None:
    assert vars(read(line)) == {**vars(read(line)), **expected}


@pytest.mark.parametrize("text", ["-", "a: b", "a #b", "010", "1:30", "[x]", "${x}", "null.json", " é "])
def test_text_is_the_same_in_a_flag_and_in_a_word(text: str) -> None:
    for words in ([f"--json={text}"], [f"json={text}"]):
        assert cli.CommandLine("predict").read(["w", "a.mp4", *words]).json == text


def test_flags_of_verbs_with_sections() -> None:
    detect = "detect w a.mp4 'b${x}.mp4' --no-film --csv --detector-option model=x/y --every 0.5"
    config = read(f"{detect} actions.top=7 told.min_iou=0.2 detector_options.size=3")
    assert config.files.videos == ["a.mp4", "b${x}.mp4"]
    assert config.persons.every == 0.5
    assert config.persons.detector_options == {"model": "x/y", "size": 3}
    actions = config.actions
    assert (actions.film, actions.csv, actions.top, actions.min_iou) == (False, True, 7, 0.2)
    compare = "compare --config configs/compare/factors.yaml --targets hog,mae compare.jobs=1 --seeds 2"
    config = read(compare).compare
    assert (config.only, config.jobs, config.seeds) == (["hog,mae"], 1, 2)
    assert read("pretrain -- run.seed=3").run.seed == 3


def test_file_named_like_an_option_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("out=1.mp4", "take=2.mp4"):
        (tmp_path / name).touch()
    assert read("predict w take=2.mp4").videos == ["take=2.mp4"]
    assert read("predict w -- out=1.mp4").videos == ["out=1.mp4"]
    message = (
        "'out=1.mp4' is both an option and a file; write --out 1.mp4 for the option, or put the file after"
    )
    with pytest.raises(UserError, match=message):
        read("predict w out=1.mp4")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("evaluate w", "LIST is missing: list file or folder, with or without labels (a file with = in"),
        ("score-ava --groundtruth g --labels l", "--detections is missing: rows video,second,x1,y1,x2,y2,"),
        ("evaluate w l more", "unexpected argument 'more'; see videomaskfeat evaluate --help"),
        ("evaluate w l --veiws 3", "unknown option '--veiws'; did you mean '--views'?; see video"),
        ("evaluate w l veiws=3", "argument 'veiws=3' is neither an option nor a file; did you mean 'views'?"),
        ("evaluate w l --nosuch", "unknown option '--nosuch'; see videomaskfeat evaluate --help"),
        ("pretrain --run.seed 3", "unknown option '--run.seed'; write run.seed=VALUE"),
        ("pretrain --confg x", "unknown option '--confg'; did you mean '--config'?"),
        ("compare --targets a compare.sed=2", "unknown key 'compare.sed'; did you mean 'compare.seeds'?"),
        (
            "predict w out=1.mp4",
            "VIDEOS is missing: videos or pictures, or folders with them (a file with = in",
        ),
        ("evaluate w l --views 0x10", "evaluate.views '0x10' must be an integer"),
        ("evaluate w l --views 1:30", "evaluate.views '1:30' must be an integer"),
        ("evaluate w l --views null", "evaluate.views 'null' must be an integer"),
        ("detect-evaluate w --scales 0x10", "detect_evaluate.scales ['0x10'] must be a list of integers"),
        ("evaluate w l --views x", "argument '--views x': evaluate.views 'x' must be an integer"),
        ("evaluate w l crops=2", "argument 'crops=2': evaluate.crops 2 must be 1 or 3"),
        ("evaluate w l --k 0", "argument '--k 0': evaluate.k 0 must be at least 1"),
        ("evaluate w l --reader pyaw", "evaluate.reader 'pyaw' is unknown; did you mean 'pyav'? Choose"),
        ("evaluate w l --views", "argument --views: expected one argument; see videomaskfeat evaluate"),
        ("pretrain data.train", "argument 'data.train' is not of the form section.key=value, such as run."),
        (
            "pretrain --config configs/finetune/sample.yaml",
            "finetune/sample.yaml is a config of finetune: use",
        ),
        (
            "finetune --config configs/pretrain/sample.yaml",
            "pretrain/sample.yaml is a config of pretrain: use",
        ),
        ("pretrain configs/pretrain/sample.yaml", "(write --config before a config file)"),
        ("pretrain data.trian=x", "unknown key 'data.trian'; did you mean 'data.train'?"),
        (
            "pretrain --config configs/pretrain/k400_maskfeat_mvitv2_s.yaml data.trian=x",
            "argument 'data.trian=x': unknown key 'data.trian'; did you mean 'data.train'?",
        ),
        ("", "videomaskfeat: the verb is missing; see --help"),
        ("pretrian", "videomaskfeat: unknown verb 'pretrian'; did you mean 'pretrain'?; see --help"),
    ],
)
def test_mistake_is_one_line_and_exit_code_2(
    line: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(line.split()) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("verb", ["predict", "visualize", "detect"])
def test_former_name_of_the_weights_is_accepted(verb: str) -> None:
    config = cli.CommandLine(verb).read(["checkpoint=best.safetensors", "a.mp4"])
    files = config.files if verb == "detect" else config
    assert (files.weights, files.videos) == ("best.safetensors", ["a.mp4"])
    assert "CHECKPOINT" not in cli.CommandLine(verb).parser().format_help()
