"""Pages: a Jinja2 template filled with plain data gives one HTML file that needs no network."""

from __future__ import annotations

import base64
import functools
import gzip
import json
import math
import zlib
from collections.abc import Mapping
from contextlib import suppress
from importlib.metadata import version
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from videomaskfeat import __version__
from videomaskfeat.durations import duration_text
from videomaskfeat.errors import RunFailed, UserError
from videomaskfeat.io import make_folder, open_file, user_cache_folder, whole_file
from videomaskfeat.texts import printable, printable_name


def render_page(template: str, data: Mapping[str, Any], *, provenance: object) -> str:
    """Fill ``templates/<template>.html`` with plain data.

    All texts are escaped for HTML, and characters that cannot be printed are written as escape sequences.

    Args:
        template: name of the template.
        data: variables of the template.
        provenance: ``describe_provenance()`` as it was stored with the results; None if nothing was stored.
    """
    content = {**data, "provenance": _provenance_rows(provenance), "version": __version__}
    return _environment().get_template(f"{template}.html").render(content)


def chart_spec(data: Mapping[str, Any]) -> dict[str, Any]:
    """The Vega-Lite specification of a chart's data, from the template ``<kind>.json``."""
    spec: dict[str, Any] = json.loads(_environment().get_template(f"{data['kind']}.json").render(data))
    return spec


def build_table(
    header: tuple[str, ...], rows: list[tuple[Any, ...]], *, limit: int | None = None
) -> dict[str, Any]:
    """A table of texts and numbers with at most ``limit`` rows; ``more`` counts the rows left out."""
    left_out = 0 if limit is None else max(0, len(rows) - limit)
    return {"header": header, "rows": rows[: len(rows) - left_out], "more": left_out}


def finite_number(value: object) -> float | None:
    """The value as a float if it is a finite number, else None."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value) if math.isfinite(value) else None
    except OverflowError:  # an integer beyond the range of floats
        return None


def finite_interval(value: object) -> tuple[float, float] | None:
    """The value as lower and upper end if it is a list of two finite numbers, else None."""
    if not isinstance(value, list | tuple) or len(value) != 2:
        return None
    low, high = finite_number(value[0]), finite_number(value[1])
    return None if low is None or high is None else (low, high)


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested mappings as one mapping of texts; names are joined by dots."""
    flat: dict[str, str] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    return flat


def data_url(mime_type: str, content: bytes) -> str:
    """The content of a file as an address."""
    return f"data:{mime_type};base64,{base64.b64encode(content).decode('ascii')}"


def _provenance_rows(provenance: object) -> dict[str, str | None]:
    facts = {str(k): str(v) for k, v in provenance.items()} if isinstance(provenance, Mapping) else {}
    packages = [name for name in ("videomaskfeat", "python", "torch") if name in facts]
    return {
        "Command": facts.get("command"),
        "Date": facts.get("date"),
        "Git commit": facts.get("commit"),
        "Versions": ", ".join(f"{name} {facts[name]}" for name in packages) or None,
    }


@functools.lru_cache(maxsize=1)
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("videomaskfeat.viz"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: printable_name(value) if type(value) is str else value,
    )
    environment.filters["lines"] = lambda text: Markup(escape(printable(text)))  # with its line breaks
    environment.filters["duration"] = duration_text
    environment.globals["chart_library"] = _chart_library
    environment.globals["chart_spec"] = chart_spec
    return environment


@functools.lru_cache(maxsize=1)
def _chart_library() -> str:
    """Vega-Lite's JavaScript, compressed, in base64.

    Bundling it takes seconds, so it is cached in the user's cache folder.
    """
    import vl_convert

    path = user_cache_folder() / f"vega-{version('vl-convert-python')}.js.gz"
    try:
        with open_file(path, "rb") as file:
            content: bytes = file.read()
        gzip.decompress(content)
    except (OSError, EOFError, zlib.error, UserError):
        content = gzip.compress(
            vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;").encode(), mtime=0
        )
        with suppress(OSError, RunFailed, UserError):  # the cache is optional
            if path.is_absolute():  # without a home folder it is relative
                make_folder(path.parent)
                with whole_file(path, "wb") as file:
                    file.write(content)
    return base64.b64encode(content).decode("ascii")
