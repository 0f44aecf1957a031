"""Reading pages as a browser would show them."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from typing import Any

import vl_convert

from videomaskfeat.viz.page import chart_spec


class Page(HTMLParser):
    """The text outside of styles and scripts, the addresses, the tags, and the data of the charts."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.words: list[str] = []
        self.addresses: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.charts: list[dict[str, Any]] = []
        self.script = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attributes)))
        named = ("src", "href", "srcset", "data")
        self.addresses += [value or "" for name, value in attributes if name in named]

    def handle_data(self, data: str) -> None:
        tag, attributes = self.tags[-1] if self.tags else ("", {})
        if tag == "script" and self.cdata_elem == "script":
            if attributes.get("type") == "application/json":
                self.charts.append(json.loads(data))
            else:
                self.script += data
        elif self.cdata_elem is None:
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def drawn_height(chart: dict[str, Any]) -> float:
    """Height of the whole picture, in pixels."""
    svg = vl_convert.vegalite_to_svg(chart_spec(chart["data"]))
    return float(re.search(r'<svg[^>]* height="([\d.]+)"', svg)[1])  # type: ignore[index]
