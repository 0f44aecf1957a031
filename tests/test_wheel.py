"""The wheel: it has the configs, and runs from an empty folder without the checkout."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from videomaskfeat.cli import main
from videomaskfeat.config import locate_config, shipped_configs
from videomaskfeat.errors import UserError
from videomaskfeat.verbs.installation import ConfigsOptions, configs

ROOT = Path(__file__).parent.parent


def test_wheel_has_the_configs_and_runs_without_the_checkout(tmp_path: Path) -> None:
    source, installed = tmp_path / "source", tmp_path / "installed"
    source.mkdir()
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE", "videomaskfeat", "configs"):
        os.symlink(ROOT / name, source / name)  # the build writes beside them
    build = "from setuptools import build_meta; build_meta.build_wheel('wheel')"
    subprocess.run([sys.executable, "-c", build], cwd=source, check=True, capture_output=True)
    (wheel,) = (source / "wheel").glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        archive.extractall(installed)
    packed = {name.removeprefix("videomaskfeat/configs/") for name in names if name.endswith(".yaml")}
    assert packed == {f"{name}.yaml" for name in shipped_configs()}
    assert {"videomaskfeat/data/digits.npz", "videomaskfeat/viz/templates/report.html"} <= set(names)
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    command = [sys.executable, "-m", "videomaskfeat", "configs", "--match", "pretrain/sample_mae"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(r"pretrain/sample_mae +MAE \(random masks.*\n", done.stdout)


def test_configs_are_listed_and_copied(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["configs"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == len(shipped_configs()) > 70
    words = ["configs", "--match", "finetune/small", "--copy", str(tmp_path)]
    assert main(words) == 0
    copied = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.yaml"))
    assert copied == ["finetune/small_cpu.yaml", "finetune/small_gpu.yaml"]
    (tmp_path / "finetune/small_cpu.yaml").write_text("mine")
    capsys.readouterr()
    assert main(words) == 0
    assert "small_cpu.yaml exists, kept" in capsys.readouterr().out
    assert (tmp_path / "finetune/small_cpu.yaml").read_text() == "mine"
    with pytest.raises(UserError, match="no config has 'nothing'"):
        configs(ConfigsOptions("nothing"))


def test_configs_of_the_package_are_found_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("configs/pretrain/sample.yaml", "pretrain/sample"):
        assert Path(locate_config(name)) == ROOT / "configs/pretrain/sample.yaml"
    assert locate_config("elsewhere.yaml") == "elsewhere.yaml"
    with pytest.raises(
        UserError, match=r"no such file or config; did you mean 'pretrain/small_cpu'\? `videomask"
    ):
        locate_config("pretrain/smal_cpu")
    (tmp_path / "pretrain").mkdir()
    (tmp_path / "pretrain/sample").write_text("")
    assert locate_config("pretrain/sample") == "pretrain/sample"  # the user's own file comes first


def test_extras_install_by_the_names_that_messages_print() -> None:
    """Every `pip install 'videomaskfeat[NAME]'` in code and docs is an extra of setup.py."""
    setup = (ROOT / "setup.py").read_text()
    extras = set(re.findall(r'^        "(\w+)": \[', setup, re.M))
    files = [*ROOT.glob("videomaskfeat/**/*.py"), *ROOT.glob("docs/**/*.md"), ROOT / "README.md"]
    printed = {
        name
        for file in files
        for group in re.findall(r"videomaskfeat\[([a-z]+(?:,[a-z]+)*)\]", file.read_text())
        for name in group.split(",")
    }
    assert {"export"} <= printed <= extras


def test_container_copies_all_that_the_build_reads() -> None:
    """The files of the wheel's build above, and the versions; torch is the one of tools/set_up.py."""
    text = (ROOT / "Dockerfile").read_text()
    copied = {name for line in re.findall(r"^COPY (.+) \S+$", text, re.M) for name in line.split()}
    needed = {"setup.py", "pyproject.toml", "README.md", "LICENSE", "videomaskfeat", "configs"}
    assert copied == needed | {"constraints.txt"}
    ignored = (ROOT / ".dockerignore").read_text().split()
    assert {name.removeprefix("!") for name in ignored[1:]} == copied
    assert re.findall(r"torch==\S+", text) == re.findall(
        r"torch==[\d.]+", (ROOT / "tools/set_up.py").read_text()
    )


def test_lowest_versions_are_the_lower_bounds_of_the_requirements() -> None:
    """`make test-lowest` installs what setup.py states; torch has its version in the Makefile."""
    setup = (ROOT / "setup.py").read_text()
    required = setup[setup.index("install_requires") : setup.index("extras_require")]
    bounds = dict(re.findall(r"^        [\"']([\w-]+)>=([\w.]+)", required, re.M))
    torch = re.search(r"^TORCH \?= (.+)$", (ROOT / "Makefile").read_text(), re.M)
    assert torch is not None
    lowest = re.findall(r"^([\w-]+)==(.+)$", (ROOT / "constraints-lowest.txt").read_text(), re.M)
    versions = {name.lower(): version for name, version in lowest} | {"torch": torch[1]}
    assert len(bounds) == 16
    for name, bound in bounds.items():
        assert f"{versions[name.lower()]}.".startswith(f"{bound}."), name
