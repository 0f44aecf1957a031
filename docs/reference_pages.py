"""Generate the reference pages of the documentation from the code: a hook of MkDocs (see mkdocs.yml).

The pages exist only in the built site. Docstrings are the source of the API pages (mkdocstrings).
"""

from __future__ import annotations

import argparse
import inspect
import posixpath
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from videomaskfeat import import_object
from videomaskfeat.block_masks import MultiBlock
from videomaskfeat.cli import CommandLine
from videomaskfeat.config_keys import keys_of
from videomaskfeat.masking import EXACT, MASKS
from videomaskfeat.methods import METHODS, method_class
from videomaskfeat.models import create_model
from videomaskfeat.models.sizes import HIDDEN_SHARE, ModelFacts, list_facts
from videomaskfeat.models.zoo import MODELS, arguments_of
from videomaskfeat.targets import TARGETS, target_class
from videomaskfeat.verbs import VERBS

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "videomaskfeat"
API_PACKAGES = (
    "data", "targets", "losses", "models", "methods", "metrics", "interop", "inference", "engine", "viz",
)  # fmt: skip
API_MODULES = (
    "masking",
    "block_masks",
    "grid",
    "recipe",
    "stored_recipe",
    "boxes",
    "ava",
    "config",
    "errors",
    "tensor_files",
)
INCLUDED = {
    **{f"datasets/{path.parent.name}/README.md": f"datasets/{path.parent.name}.md"
       for path in ROOT.glob("datasets/*/README.md")},
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
    "CODE_OF_CONDUCT.md": "code_of_conduct.md",
}  # fmt: skip
"""Pages from outside docs/: path in the repository -> path in the site."""

_LINK = re.compile(r"(?<=\]\()(?!https?://|#|mailto:)([^)\s#]+)")
_ROLE = re.compile(r":(?:class|func|meth|mod|data|attr):<code>~?([\w.]+)</code>")


# Pages.


def reference_pages() -> dict[str, str]:
    """Path in the site -> Markdown of each generated page."""
    pages = {
        "reference/verbs/index.md": verbs_page(),
        "reference/targets.md": targets_page(),
        "reference/methods.md": methods_page(),
        "reference/masks.md": masks_page(),
        "reference/models.md": models_page(),
        "reference/configs.md": configs_page(),
    }
    pages |= {f"reference/verbs/{verb}.md": verb_page(verb) for verb in VERBS}
    return pages | {f"reference/api/{name}.md": f"# {name}\n\n::: {name}\n" for name in api_modules()}


def api_modules() -> Iterator[str]:
    """Dotted names of the modules that have an API page."""
    paths = [path for name in API_PACKAGES for path in sorted((PACKAGE / name).rglob("*.py"))]
    paths += [PACKAGE / f"{name}.py" for name in API_MODULES]
    for path in paths:
        if path.name != "__init__.py":
            yield ".".join(path.relative_to(ROOT).with_suffix("").parts)


def table(header: str, rows: Iterator[tuple[str, ...]]) -> str:
    """A Markdown table; ``header`` has its titles, separated by ``|``."""
    titles = [title.strip() for title in header.split("|")]
    lines = [titles, ["---"] * len(titles), *([cell.replace("|", "\\|") for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def verbs_page() -> str:
    """All verbs with their summaries."""
    rows = ((f"[`{verb}`]({verb}.md)", summary_of(VERBS[verb].run)) for verb in VERBS)
    return f"# Commands\n\n`videomaskfeat VERB ...`\n\n{table('verb | what it does', rows)}"


def verb_page(verb: str) -> str:
    """Help and keys of a verb."""
    line = CommandLine(verb)
    parser = line.parser()
    parser.formatter_class = lambda prog: argparse.RawDescriptionHelpFormatter(prog, width=100)  # type: ignore[assignment]
    keys = table(
        "key | default | meaning",
        ((f"`{one.name}`", f"`{one.shown}`", one.rules.explain()) for one in keys_of(line.schema)),
    )
    page = f"# {verb}\n\n{summary_of(VERBS[verb].run)}\n\n## Help\n\n```text\n{parser.format_help()}```\n"
    if not line.flagged:  # the help of other verbs has their keys
        page += f"\n## Keys\n\n{keys}"
    for title, names in VERBS[verb].arguments().items():
        page += f"\n### {title}\n\n" + ("\n".join(f"- `{name}`" for name in names) or "none") + "\n"
    return page


def targets_page() -> str:
    """All targets with their arguments."""
    intro = "What a pre-training predicts: `target=NAME`. [How to choose one](../how_to/choose_a_target.md)."
    return registry_page("Targets", intro, {name: target_class(name) for name in TARGETS}, "target.arguments")


def methods_page() -> str:
    """All methods with their arguments."""
    intro = "How an encoder is pre-trained: `method=NAME`. `masked` predicts the target of `target`."
    return registry_page("Methods", intro, {name: method_class(name) for name in METHODS}, "method.arguments")


def registry_page(title: str, intro: str, classes: Mapping[str, type], where: str) -> str:
    """The docstring, the arguments and the API page of each class."""
    arguments = VERBS["pretrain"].arguments()
    sections = [f"# {title}\n\n{intro}\n"]
    for name, cls in classes.items():
        named = "\n".join(f"- `{one}`" for one in arguments[f"{where} of {name}"]) or "none"
        sections.append(
            f"## {name}\n\n{summary_of(cls)}\n\n{where}:\n\n{named}\n\n"
            f"[API](api/{cls.__module__}.md)\n"
        )  # fmt: skip
    return "\n".join(sections)


def masks_page() -> str:
    """All mask policies."""
    rows = (
        (f"`{name}`", summary_of(import_object(entry)), "yes" if name in EXACT else "no")
        for name, entry in MASKS.items()
    )
    intro = (
        "The hidden cells: `mask.kind`. `mask.ratio` is the fraction of hidden cells, and `mask.cell` the "
        "size of a cell. `multi_block` and `multi_block_exact` have `mask.arguments`: `blocks` (kinds of "
        "blocks, each a number and an area) and `aspect` (its range); the defaults are "
        f"`{MultiBlock().blocks}` and `{MultiBlock().aspect}`.\n\n"
    )
    header = "`mask.kind` | what it hides | same number of hidden cells in every mask"
    return f"# Masks\n\n{intro}{table(header, rows)}"


def models_page() -> str:
    """All named models with their sizes."""
    intro = (
        "`model.name` in a config, or `videomaskfeat.create_model(NAME)`; `videomaskfeat models` prints this "
        "table. Sizes are those of the default arguments. Multiply-adds are those of one clip, attention "
        f"included; of a detector with one box, and of an MAE with {HIDDEN_SHARE[False]:.0%} (videos) or "
        f"{HIDDEN_SHARE[True]:.0%} (images) of the cubes hidden.\n\n"
    )
    header = (
        "name | for | clip (frames x height x width) | depth | width | tokens (t x h x w) | "
        "parameters (millions) | multiply-adds (billions)"
    )
    facts = {one.name: one for one in list_facts()}
    return f"# Models\n\n{intro}{table(header, (model_row(facts[name]) for name in MODELS))}"


def model_row(facts: ModelFacts) -> tuple[str, ...]:
    """Size of a model, built without memory for its weights."""
    with torch.device("meta"):
        model = create_model(facts.name)
    arguments = arguments_of(facts.name)
    return (
        f"`{facts.name}`",
        facts.purpose,
        " x ".join(map(str, facts.clip)),
        str(len(model.blocks)),
        str(arguments["width"]),
        " x ".join(map(str, model.native_grid.shape)),
        f"{facts.parameters / 1e6:.1f}",
        f"{facts.multiply_adds / 1e9:.3g}",
    )


def configs_page() -> str:
    """All configs with their headers."""
    page = "# Configs\n\nFiles in `configs/`. Each contains only what differs from the defaults.\n"
    for path in sorted((ROOT / "configs").rglob("*.yaml")):
        title, *lines = [
            line.lstrip("# ") for line in path.read_text(encoding="utf-8").split("\n\n")[0].splitlines()
        ]
        notes = "\n".join(f"- {line}" for line in lines)
        page += f"\n## {path.relative_to(ROOT).as_posix()}\n\n{title}\n\n{notes}\n"
    return page


def summary_of(documented: Any) -> str:
    """The first paragraph of a docstring, as one line of Markdown."""
    summary = " ".join((inspect.getdoc(documented) or "").partition("\n\n")[0].split())
    return re.sub(r":\w+:`~?(?:[\w.]*\.)?(\w+)`", r"`\1`", summary).replace("``", "`")


# Links.


def site_path(path: str) -> str | None:
    """Where a file of the repository is in the site; None if it is not part of it."""
    return INCLUDED.get(path) or (path.removeprefix("docs/") if path.startswith("docs/") else None)


def move_links(text: str, source: str, destination: str) -> str:
    """Change relative links so that they work from a page's place in the site.

    Args:
        text: Markdown.
        source: path of the page in the repository.
        destination: path of the page in the site.
    """

    def moved(link: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(posixpath.dirname(source), link[1]))
        place = site_path(target)
        return posixpath.relpath(place, posixpath.dirname(destination) or ".") if place else link[1]

    text = _LINK.sub(moved, text)
    outside = (
        r"\[([^\]]+)\]\((?:\.\./)*(?:LICENSE|CITATION\.cff|examples/\w+\.ipynb)\)"  # files that are not pages
    )
    return re.sub(outside, r"\1", text)


# Hooks of MkDocs.


def on_config(config: Any) -> Any:
    """Add the generated pages to the navigation."""
    modules: dict[str, list[str]] = {}
    for name in api_modules():
        _, package, *module = name.split(".")
        modules.setdefault(package if module else "other modules", []).append(f"reference/api/{name}.md")
    section = next(entry["Reference"] for entry in config.nav if "Reference" in entry)
    section.append(
        {"Commands": ["reference/verbs/index.md", *(f"reference/verbs/{verb}.md" for verb in VERBS)]}
    )
    section.append({"API": [{package: pages} for package, pages in modules.items()]})
    return config


def on_files(files: Any, config: Any) -> Any:
    """Add the generated pages, and those from outside docs/."""
    from mkdocs.structure.files import File

    pages = reference_pages()
    for source, place in INCLUDED.items():
        pages[place] = move_links((ROOT / source).read_text(encoding="utf-8"), source, place)
    for place, text in pages.items():
        files.append(File.generated(config, place, content=text))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Point links to pages from outside docs/ at their places in the site."""
    if page.file.generated_by:
        return markdown
    return move_links(markdown, f"docs/{page.file.src_uri}", page.file.src_uri)


def on_page_content(html: str, **_: Any) -> str:
    """Remove the roles of Sphinx from docstrings."""
    return _ROLE.sub(lambda role: f"<code>{role[1].rpartition('.')[2]}</code>", html)
