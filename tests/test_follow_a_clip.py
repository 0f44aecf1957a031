"""docs/follow_a_clip.md: its files, names and code are today's, and the path stays short."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from videomaskfeat.data.sample import write_sample_data

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "follow_a_clip.md").read_text(encoding="utf-8")
ROWS = re.findall(r"^\| \d+ \| `([\w/.]+)` \| (.*) \|.*\|$", PAGE, flags=re.MULTILINE)


def test_path_has_at_most_twelve_files_and_4500_lines() -> None:
    files = [ROOT / "videomaskfeat" / name for name, _ in ROWS]
    assert len(set(files)) == len(files) == 12
    assert sum(len(path.read_text(encoding="utf-8").splitlines()) for path in files) <= 4500


@pytest.mark.parametrize(("file", "text"), ROWS)
def test_names_of_a_row_are_defined_in_its_file(file: str, text: str) -> None:
    source = (ROOT / "videomaskfeat" / file).read_text(encoding="utf-8")
    names = [name for name in re.findall(r"`([\w.]+)`", text) if not name.startswith("clip.")]
    assert names
    for name in names:
        for part in name.split("."):
            assert re.search(rf"^\s*(?:def|class) {part}\b", source, flags=re.MULTILINE), (file, name)


def test_code_runs_and_gives_the_shapes_of_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The shapes stand in the comments of the code and in the table."""
    write_sample_data(tmp_path / "demo" / "sample", videos=20, frames=28, size=80, seed=3, ava_videos=0)
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    code = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)[0]
    names: dict[str, object] = {}
    exec(code, names)
    shapes = {
        name: list(names[name].shape)  # type: ignore[attr-defined]
        for name in ("pixels", "tokens", "predictions", "target")
    }
    for name, shape in shapes.items():
        line = next(line for line in code.splitlines() if re.match(rf"{name}\b", line))
        assert str(shape) in line, name
        assert str(shape) in PAGE.partition("```")[0], name
    batch = names["batch"]
    assert f"uint8 {list(batch.clips.shape)}, mask bool {list(batch.mask.shape)}" in code  # type: ignore[attr-defined]
