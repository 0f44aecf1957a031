"""Pages: offline, escaped, readable without JavaScript, and drawn by an installed library."""

from __future__ import annotations

import base64
import gzip
import re
from pathlib import Path

import numpy as np
import pytest

import videomaskfeat
from tests.viz.pages import Page
from videomaskfeat.viz import page
from videomaskfeat.viz.comparison import SeedResult, TargetCost, TargetResults, render_comparison
from videomaskfeat.viz.page import build_table, finite_number, flatten

MARKUP = "</script><b>\u89c6\u9891 \udce9\n"


@pytest.fixture
def html() -> str:
    """A page of charts; every name in it contains markup."""
    metrics = {"step": np.arange(1.0, 4.0), "loss": np.arange(3.0), "evaluation/knn_top1": np.arange(3.0)}
    seed = SeedResult(1, [f"{MARKUP}/report.html"], metrics, {"seconds": 1.0}, {}, {})
    result = TargetResults(MARKUP, MARKUP, TargetCost(1.0, 1, 0.5, 1), [seed])
    return render_comparison([result], title=MARKUP)


def test_every_text_is_escaped_or_spelled_out(html: str) -> None:
    read = Page(html)
    html.encode()
    shown = "</script><b>\u89c6\u9891 \\xe9\\n"
    assert read.text.count(shown) >= 5
    assert "b" not in {tag for tag, _ in read.tags}
    assert [chart["datasets"]["curves"][0]["curve"] for chart in read.charts] == [shown] * 2


def test_page_needs_no_network(html: str) -> None:
    """The page forbids every request, and contains no address outside of the library."""
    read = Page(html)
    (policy,) = [
        one["content"] for tag, one in read.tags if one.get("http-equiv") == "Content-Security-Policy"
    ]
    assert policy is not None
    assert policy.startswith("default-src 'none';")
    assert not re.search(r"https?:|url\(|@import", policy.split(";", 1)[1])
    assert not {tag for tag, _ in read.tags} & {"link", "iframe", "object"}
    own = re.sub(r'"https://vega.github.io/schema/vega-lite/v6.json"|>[^<]{9999,}</script>', "", html)
    assert not re.search(r"https?:|//[a-z]|url\(|@import", own)


def test_page_holds_the_library_of_the_installed_package(html: str) -> None:
    script_tag = re.search(r'<script id="chart-library" type="application/gzip">([^<]*)</script>', html)
    assert script_tag is not None
    script = gzip.decompress(base64.b64decode(script_tag[1])).decode()
    assert "window.vegaEmbed" in script
    assert len(html) < 600_000


def test_library_is_bundled_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A damaged cache is replaced; a cache that cannot be written is ignored."""
    import vl_convert

    calls: list[str] = []
    monkeypatch.setattr(vl_convert, "javascript_bundle", lambda snippet: calls.append(snippet) or "code")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    libraries = [page._chart_library.__wrapped__() for _ in range(2)]
    (cached,) = (tmp_path / "videomaskfeat").iterdir()
    for damaged in (cached.read_bytes()[:-4], cached.read_bytes()[:10] + b"x" * 20):
        cached.write_bytes(damaged)
        libraries.append(page._chart_library.__wrapped__())
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    libraries.append(page._chart_library.__wrapped__())
    assert {gzip.decompress(base64.b64decode(one)) for one in libraries} == {b"code"}
    assert len(calls) == 4


def test_charts_can_be_read_without_javascript(html: str) -> None:
    text = Page(html).text
    assert "Numbers Step </script><b>\u89c6\u9891 \\xe9\\n 1 0 2 1 3 2" in text
    assert "<noscript>" in html


def test_package_includes_all_templates() -> None:
    setup = (Path(videomaskfeat.__file__).parents[1] / "setup.py").read_text()
    patterns = re.search(r'package_data=\{[^}]*"videomaskfeat\.viz": \[(.*?)\]', setup)
    assert patterns is not None
    templates = Path(page.__file__).parent
    shipped = {path for pattern in re.findall(r'"(.*?)"', patterns[1]) for path in templates.glob(pattern)}
    assert shipped == {path for path in (templates / "templates").iterdir() if path.is_file()}
    assert len(shipped) == 13


def test_numbers_are_finite() -> None:
    values = (1, 2.5, True, "3", None, float("nan"), float("inf"), 10**400)
    assert [finite_number(value) for value in values] == [1.0, 2.5, None, None, None, None, None, None]


def test_omitted_rows_of_a_table_are_counted() -> None:
    rows = [(str(place),) for place in range(5)]
    assert build_table(("a",), rows, limit=3) == {"header": ("a",), "rows": rows[:3], "more": 2}
    assert build_table(("a",), rows)["more"] == build_table(("a",), rows, limit=9)["more"] == 0


def test_names_of_nested_values_are_joined() -> None:
    assert flatten({"a": {"b": {"c": [1, None]}}, "d": 2}) == {"a.b.c": "1, None", "d": "2"}
