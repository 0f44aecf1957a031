"""README and docs/: links, Python code, commands, messages, and the table of PySlowFast's models."""

from __future__ import annotations

import ast
import functools
import importlib
import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import yaml

from videomaskfeat.cli import CommandLine, main
from videomaskfeat.config_keys import keys_of
from videomaskfeat.data.sample import write_sample_data
from videomaskfeat.errors import UserError
from videomaskfeat.interop import load_slowfast
from videomaskfeat.interop.slowfast_export import slowfast_options, slowfast_state
from videomaskfeat.models import create_model
from videomaskfeat.verbs import VERBS

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
PAGES = sorted(
    [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("datasets/*/README.md")], key=os.fspath
)
NAMES = [path.relative_to(ROOT).as_posix() for path in PAGES]
EXAMPLES = ("docs/extending.md", "docs/how_to/export.md")  # their code is run by tests of its own


@functools.cache
def script(path: str) -> ModuleType:
    """A script of the repository, which is in no package."""
    spec = importlib.util.spec_from_file_location(Path(path).stem, ROOT / path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def reference() -> ModuleType:
    """The generator of the reference pages."""
    return script("docs/reference_pages.py")


def without_code(text: str) -> str:
    return re.sub(r"(?ms)^ *```.*?^ *```|`[^`\n]+`", "", text)


def blocks(path: Path, language: str) -> list[str]:
    return re.findall(rf"(?ms)^```{language}\n(.*?)^```", path.read_text(encoding="utf-8"))


def anchors(path: Path) -> set[str]:
    """Anchors of the headings, as GitHub and MkDocs make them."""
    headings = re.findall(r"(?m)^#+ (.*)", re.sub(r"(?ms)^```.*?^```", "", path.read_text(encoding="utf-8")))
    plain = [re.sub(r"[^\w\s-]", "", heading.lower()).strip() for heading in headings]
    return {re.sub(r"[\s]", "-", heading) for heading in plain}


@pytest.mark.parametrize("name", NAMES)
def test_relative_links_and_anchors_resolve(name: str) -> None:
    path = ROOT / name
    for link in re.findall(r"\]\(([^)\s]+)\)", without_code(path.read_text(encoding="utf-8"))):
        if link.startswith(("http://", "https://")):
            continue
        file, _, anchor = link.partition("#")
        target = (path.parent / file).resolve() if file else path
        assert target.is_file() or target.is_dir(), link
        assert not anchor or anchor in anchors(target), link


@pytest.mark.parametrize("name", NAMES)
def test_page_refers_only_to_files_that_exist(name: str) -> None:
    """Paths such as `configs/pretrain/sample.yaml` and `benchmarks/run.py` in code."""
    text = (ROOT / name).read_text(encoding="utf-8")
    folders = "videomaskfeat|configs|datasets|tools|tests|benchmarks|docs"
    for file in re.findall(rf"`((?:{folders})/[\w./*-]+)`", text):
        is_example = name == "docs/extending.md" and file.startswith("videomaskfeat/")
        assert is_example or "results/gpu_" in file or list(ROOT.glob(file)), file


def test_source_files_and_keys_in_the_text_exist() -> None:
    """Names such as `engine/loop.py`, and keys such as `clip.frames`."""
    sources = [f"/{path.relative_to(ROOT).as_posix()}" for path in ROOT.glob("[!.]*/**/*.py")]
    keys = {one.name for verb in VERBS for one in keys_of(CommandLine(verb).schema)}
    sections = {key.partition(".")[0] for key in keys if "." in key}
    unknown = []
    for name in set(NAMES) - {"docs/extending.md", "CHANGELOG.md"}:
        for code in re.findall(r"`([^`\n]+)`", (ROOT / name).read_text(encoding="utf-8")):
            files = re.findall(r"^[\w/]+\.py$", code)
            unknown += [file for file in files if not any(source.endswith(f"/{file}") for source in sources)]
            named = re.findall(r"^(\w+\.(?!py$|html$|safetensors$)\w+)(?:[=.].*)?$", code)
            unknown += [key for key in named if key.partition(".")[0] in sections and key not in keys]
    assert set(unknown) <= {"get_ava_performance.py", "model.features"}  # of ActivityNet; a method


@pytest.mark.parametrize("name", [name for name in NAMES if name not in EXAMPLES])
def test_python_code_compiles_and_its_names_exist(name: str) -> None:
    for block in blocks(ROOT / name, "python"):
        check_names(ast.parse(block))


def check_names(tree: ast.Module) -> None:
    """Check imports from the package, and attributes and calls of ``videomaskfeat``."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("videomaskfeat"):
            module = importlib.import_module(node.module or "")
            assert all(hasattr(module, alias.name) for alias in node.names), node.module
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            module = importlib.import_module("videomaskfeat")
            assert node.value.id != "videomaskfeat" or hasattr(module, node.attr), node.attr


def test_messages_of_troubleshooting_exist() -> None:
    """Each heading is part of a message of the package."""
    headings = re.findall(r"(?m)^### `(.+)`$", (ROOT / "docs/troubleshooting.md").read_text(encoding="utf-8"))
    sources = [path.read_text(encoding="utf-8") for path in (ROOT / "videomaskfeat").rglob("*.py")]
    messages = re.sub(r'"\s*f?"', "", "\n".join(sources))  # strings that continue on the next line
    assert len(headings) >= 15
    for heading in headings:
        assert heading in messages, heading


# PySlowFast.

SMALL_MVIT = {"depth": 2, "width": 8, "widen_at": [1], "q_pool_at": [1], "clip_size": (4, 32, 32)}
SMALL_VIT = {"depth": 2, "width": 64, "heads": 1, "clip_size": (4, 32, 32)}
SMALL_IMAGE = {**SMALL_VIT, "clip_size": (1, 32, 32)}
IMAGE_STEM = {
    "clip_size": (1, 32, 32),
    "cube_kernel": (1, 7, 7),
    "cube_stride": (1, 4, 4),
    "cube_padding": (0, 3, 3),
}
DECODER = {"decoder_depth": 1, "decoder_width": 64, "decoder_heads": 1}
MODELS: dict[str, tuple[str, dict[str, Any]] | None] = {
    "MaskFeat on MViTv2, videos": ("maskfeat_mvitv2_s", {**SMALL_MVIT, "values_per_token": 27}),
    "MaskFeat on ViT, videos": ("maskfeat_vit_s", SMALL_VIT),
    "MaskFeat on ViT, images": ("maskfeat_vit_s_image", SMALL_IMAGE),
    "MAE on ViT, videos": ("mae_vit_s", {**SMALL_VIT, **DECODER}),
    "MAE on ViT, images": ("mae_vit_s_image", {**SMALL_IMAGE, **DECODER}),
    "classifier on MViTv2, videos": ("mvitv2_s", SMALL_MVIT),
    "classifier on MViTv2, images": (
        "mvitv2_s",
        {**SMALL_MVIT, **IMAGE_STEM, "class_token": False, "head": "norm_mean"},
    ),
    "classifier on ViT, videos": ("vit_s", SMALL_VIT),
    "classifier on ViT, images": ("vit_s_image", SMALL_IMAGE),
    "action detector on MViTv2 or ViT": (
        "maskfeat_mvitv2_s_detector",
        {**SMALL_MVIT, "widen_in": "attention"},
    ),
    "MViTv1, SlowFast, X3D, ResNets and other models": None,
}
"""Row of the table in docs/how_to/come_from_pyslowfast.md -> a small model of ours, or None."""


def slowfast_rows() -> dict[str, tuple[str, str]]:
    page = (ROOT / "docs/how_to/come_from_pyslowfast.md").read_text(encoding="utf-8")
    return {
        name: (read, written)
        for name, read, written in re.findall(r"\| (.+) \| (yes|no) \| (yes|no) \|", page)
    }


def test_table_of_pyslowfast_lists_these_models() -> None:
    assert slowfast_rows().keys() == MODELS.keys()


@pytest.mark.parametrize("name", MODELS)
def test_pyslowfast_models_are_imported_and_exported_as_the_table_says(name: str, tmp_path: Path) -> None:
    imported, exported = slowfast_rows()[name]
    assert (imports(name, tmp_path), exports(name)) == (imported == "yes", exported == "yes")


def exports(name: str) -> bool:
    if MODELS[name] is None:
        return False
    try:
        slowfast_state(small_model(name))
    except UserError:
        return False
    return True


def imports(name: str, folder: Path) -> bool:
    """Whether a YAML and checkpoint of the model are read."""
    checkpoint, config = folder / "checkpoint.pyth", folder / "config.yaml"
    state = dict[str, Any]()
    if exports(name):
        model = small_model(name)
        state, options = slowfast_state(model), slowfast_options(model)
    elif name == "MAE on ViT, images":
        options = slowfast_options(small_model("MAE on ViT, videos"))
        options["MVIT"] |= {
            "PATCH_2D": True,
            "PATCH_KERNEL": [16, 16],
            "PATCH_STRIDE": [16, 16],
            "PATCH_PADDING": [0, 0],
        }
        options["DATA"]["NUM_FRAMES"] = 1
    elif name == "action detector on MViTv2 or ViT":
        options = slowfast_options(small_model("classifier on MViTv2, videos"))
        options["DETECTION"] = {"ENABLE": True, "SPATIAL_SCALE_FACTOR": 8}
        options["MODEL"] |= {"NUM_CLASSES": 80, "HEAD_ACT": "sigmoid"}
        state = small_model(name).state_dict()
    else:
        options = {"MODEL": {"MODEL_NAME": "SlowFast", "ARCH": "slowfast"}}
    torch.save({"model_state": state}, checkpoint)
    config.write_text(yaml.safe_dump(plain(options)), encoding="utf-8")
    try:
        load_slowfast(config, checkpoint)
    except UserError:
        return False
    return True


def small_model(name: str) -> torch.nn.Module:
    named = MODELS[name]
    assert named is not None
    return create_model(named[0], **named[1])


def plain(tree: Any) -> Any:
    """Tuples become lists, which YAML has."""
    if isinstance(tree, dict):
        return {key: plain(value) for key, value in tree.items()}
    return [plain(value) for value in tree] if isinstance(tree, list | tuple) else tree


# The commands of README.


def commands_in(text: str) -> Iterator[list[str]]:
    """The words of each command in the blocks of a page or section."""
    for block in re.findall(r"(?ms)^```bash\n(.*?)^```", text):
        for line in re.sub(r"\\\n *", "", block).splitlines():
            words = shlex.split(line, comments=True)
            if words:
                yield words


TINY = {
    "pretrain": ["clip.frames=4", "clip.stride=1", "clip.crop=32", "mask.cell=[2,16,16]", "data.workers=0"],
    "finetune": ["clip.frames=4", "clip.stride=1", "clip.crop=32", "data.workers=0"],
}
MODEL = {
    "pretrain": ["model.name=maskfeat_mvitv2_nano"],
    "finetune": ["model.name=maskfeat_mvitv2_nano_classifier", "evaluate.views=1"],
}
SHORT = ["model.arguments={depth: 4, width: 8, widen_at: [1, 3]}", "optim.epochs=1", "optim.warmup_epochs=0"]
SHORT += ["optim.batch_size=4", "optim.base_batch_size=4", "run.threads=1"]


def test_commands_of_readme_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """On tiny videos, with tiny models; `make` and `pip` are checked to name what exists."""
    write_sample_data(tmp_path, videos=20, frames=8, size=40, seed=3, ava_videos=0, images=0)
    (tmp_path / "videos").rename(tmp_path / "my_videos")
    for name in ("train", "val"):
        list_file = tmp_path / f"{name}.csv"
        list_file.write_text(list_file.read_text().replace("videos/", "my_videos/"))
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    monkeypatch.chdir(tmp_path)
    targets = set(re.findall(r"(?m)^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8")))
    ran = set()
    for program, *words in commands_in(README.read_text(encoding="utf-8")):
        if program == "make":
            assert set(words) <= targets
        elif program == "pip":
            assert words == ["install", "."]
        else:
            assert program == "videomaskfeat"
            verb = words[0]
            short = [*TINY[verb], *MODEL[verb], *SHORT] if verb in TINY else []
            short += ["--workers", "1"] if verb == "check-data" else []
            words = [word.replace("my_videos/one.mp4", "my_videos/000000.mp4") for word in words]
            assert main([*words, *short]) == 0, (words, capsys.readouterr().err)
            ran.add(verb)
    assert ran == {"check-data", "pretrain", "extract-features", "finetune", "evaluate", "predict"}
    for code in blocks(README, "python"):
        exec(code.replace("my_videos/one.mp4", "my_videos/000000.mp4"), {})


SMALL = {
    "sample-data": ["--videos", "20", "--frames", "8", "--size", "40", "--ava-videos", "4", "--images", "0"],
    "pretrain": [*TINY["pretrain"], *SHORT, "run.pictures=0"],
    "finetune": [*TINY["finetune"], *SHORT, "optim.warmup_epochs=0.5", "evaluate.views=1"],
    "detect-train": [*TINY["finetune"], *SHORT, "clip.short_side=[32,40]", "evaluate.short_side=32"],
    "evaluate": ["--workers", "0"],
}
"""Changes of the demos' commands, by verb."""


def test_demos_of_readme_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`make demo` and `make demo-detect` start these scripts; the commands run on tiny videos and models."""
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    monkeypatch.chdir(tmp_path)

    def run_small(commands: list[list[str]], *, again: str) -> int:
        assert again in (ROOT / "README.md").read_text(encoding="utf-8")
        for verb, *words in commands:
            assert main([verb, *words, *SMALL.get(verb, [])]) == 0, (words, capsys.readouterr().err)
        return 0

    for name, results in (
        ("demo", ("from the trained model ", "report      demo/finetuned/report.html")),
        ("demo_detect", ("from the trained encoder ", "film        demo/film/")),
    ):
        assert f"tools/{name}.py" in (ROOT / "Makefile").read_text(encoding="utf-8")
        demo = script(f"tools/{name}.py")
        monkeypatch.setattr(demo, "run_in_order", run_small)
        assert demo.main() == 0
        printed = capsys.readouterr().out
        assert all(words in printed for words in results)
        for path in re.findall(r"demo/\S+\.(?:html|mp4|safetensors|pt)", printed):
            assert (tmp_path / path).is_file(), path


def test_commands_of_prepare_data_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """On tiny videos; each command reads what the one before it wrote, and training accepts the result."""
    write_sample_data(tmp_path / "k400", videos=20, frames=8, size=40, seed=3, ava_videos=0, images=0)
    listed = tmp_path / "k400/train.csv"
    listed.write_text(listed.read_text().replace("videos/", ""))  # relative to the prefix
    monkeypatch.chdir(tmp_path)
    page = ROOT / "docs/how_to/prepare_data.md"
    text = page.read_text(encoding="utf-8")
    ran = []
    for program, verb, *words in commands_in(text):
        assert program == "videomaskfeat"
        assert main([verb, *words]) == 0, (words, capsys.readouterr().err)
        ran.append(verb)
    assert ran == ["prepare-videos", "pack"]
    written = [*re.findall(r"`(k400_\w+/[\w.]*\w)`", text), "k400_256/prepared.jsonl"]
    assert {"k400_256/train.csv", "k400_shards/index.json"} <= set(written)
    for name in written:
        assert (tmp_path / name).is_file(), name
    sources = re.findall(r"^    (data\.train=k400_\S+)", text, re.M)
    assert sources == ["data.train=k400_shards/index.json"]
    for source in sources:
        words = [*TINY["pretrain"], *MODEL["pretrain"], *SHORT, source, "run.folder=run"]
        assert main(["pretrain", *words]) == 0, capsys.readouterr().err
    capsys.readouterr()
    for option in re.findall(r"`(--[\w-]+)[ `]", text):
        assert any(option in help_of(verb, capsys) for verb in ran), option


OWN_CLASSES = {
    "pretrain": [*TINY["pretrain"], *MODEL["pretrain"], *SHORT, "optim.accumulate=1", "run.pictures=0"],
    "finetune": [*TINY["finetune"], *MODEL["finetune"], *SHORT, "optim.accumulate=1"],
    "plan": [*TINY["pretrain"], *SHORT],
}
"""Changes of the commands of the tutorial, by verb."""


def test_commands_of_own_classes_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """From a folder of class folders to weights, as in the tutorial; the last command is of two folders."""
    write_sample_data(tmp_path / "made", videos=24, frames=8, size=40, seed=3, ava_videos=0, images=0)
    for number, video in enumerate(sorted((tmp_path / "made/videos").glob("*.mp4"))):
        folder = tmp_path / "my_videos" / ("left", "right")[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        video.rename(folder / video.name)
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    monkeypatch.chdir(tmp_path)
    page = (ROOT / "docs/tutorials/fine_tune.md").read_text(encoding="utf-8")
    section = page.partition("\n## Your own classes\n")[2].partition("\n## ")[0]
    ran = []
    for program, verb, *words in commands_in(section):
        assert program == "videomaskfeat"
        if "data.train=my_videos/train" in words:
            for part in ("train", "val"):
                shutil.copytree(tmp_path / "my_videos/left", tmp_path / f"my_videos/{part}/left")
                shutil.copytree(tmp_path / "my_videos/right", tmp_path / f"my_videos/{part}/right")
            words = [word.replace("runs/first", "runs/small_gpu") for word in words]
        assert main([verb, *words, *OWN_CLASSES.get(verb, [])]) == 0, (words, capsys.readouterr().err)
        ran.append(verb)
    assert ran == ["make-lists", "pretrain", "finetune", "plan", "prepare-videos", "finetune"]
    for written in ("lists/classes.txt", "small/train.csv", "runs/small_gpu_finetuned/best.safetensors"):
        assert (tmp_path / written).is_file(), written


def help_of(verb: str, capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit):
        main([verb, "--help"])
    return capsys.readouterr().out


# The site.


def test_reference_covers_every_command_target_method_mask_and_model() -> None:
    generated = reference().reference_pages()
    from videomaskfeat.masking import MASKS
    from videomaskfeat.methods import METHODS
    from videomaskfeat.models.zoo import MODELS as ZOO
    from videomaskfeat.targets import TARGETS

    assert {f"reference/verbs/{verb}.md" for verb in VERBS} <= generated.keys()
    for page, names in (("targets", TARGETS), ("methods", METHODS)):
        assert re.findall(r"(?m)^## (\w+)$", generated[f"reference/{page}.md"]) == list(names)
    for page, names in (("masks", MASKS), ("models", ZOO)):
        assert re.findall(r"(?m)^\| `(\w+)` \|", generated[f"reference/{page}.md"]) == list(names)
    assert "| 34.5 | 64.5 |" in generated["reference/models.md"]  # mvitv2_s, as published
    assert "| `mask.ratio` | `0.4` |" in generated["reference/verbs/pretrain.md"]
    assert "::: videomaskfeat.targets.hog" in generated["reference/api/videomaskfeat.targets.hog.md"]


def test_links_between_pages_are_moved_to_their_places_in_the_site() -> None:
    text = "[a](../../docs/tutorials/ava.md#results) [b](../sample/README.md) [c](https://x.org)"
    text += " [d](../../LICENSE)"
    moved = reference().move_links(text, "datasets/ava/README.md", "datasets/ava.md")
    assert moved == "[a](../tutorials/ava.md#results) [b](sample.md) [c](https://x.org) d"


@pytest.mark.slow
def test_site_is_built_without_warnings_and_needs_no_network(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs", reason="the extra docs is not installed: make docs")
    built = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "-q", "-d", str(tmp_path)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
    )
    assert built.returncode == 0, built.stderr
    pages = list(tmp_path.rglob("*.html"))
    assert len(pages) > 100
    for page in pages:
        loaded = re.findall(
            r"<(?:script|img|link)\b[^>]*?(?:src|href)=\"?(https?:[^\s\">]+)", page.read_text()
        )
        assert not loaded, (page, loaded)
