"""The areas of the package import each other in one direction only (docs/design.md, "Package")."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

import videomaskfeat

PACKAGE = Path(__file__).parent.parent / "videomaskfeat"
TOP_LEVEL = {"__version__", "import_object", "import_submodule"}  # not modules
GROUND = {
    "errors", "io", "texts", "yaml_files", "processes", "grid", "mp4", "machine", "openmp", "tensor_files",
    "values", "csv_columns", "ava", "boxes", "durations", "config", "config_keys", "provenance", "plugins",
}  # fmt: skip
ROOMS = {
    "data", "masking", "block_masks", "targets", "models", "interop", "losses", "metrics", "engine", "viz",
    "recipe", "stored_recipe",
}  # fmt: skip
SIDEWAYS = {
    ("interop", "recipe"),
    ("interop", "stored_recipe"),
    ("engine", "config"),
    ("engine", "models"),
    ("engine", "config_keys"),
    ("interop", "models"),
    ("interop", "targets"),
    ("targets", "models"),
    ("targets", "losses"),
    ("targets", "recipe"),
    ("targets", "stored_recipe"),
    ("data", "masking"),
    ("block_masks", "masking"),
    ("data", "recipe"),
    ("data", "stored_recipe"),
    ("viz", "targets"),
    ("recipe", "masking"),
    ("stored_recipe", "recipe"),
    ("stored_recipe", "config_keys"),
}
ABOVE = {
    "cli": {"verbs", "terminal", *GROUND},
    "verbs": {
        "interop",
        "jobs",
        "environment",
        "methods",
        "inference",
        "targets",
        "models",
        "schemas",
        "terminal",
        "data",
        *GROUND,
    },
    "jobs": {"schemas", "environment", "methods", "inference", *ROOMS, *GROUND},
    "methods": {"schemas", "inference", *ROOMS, *GROUND},
    "inference": {"schemas", *ROOMS, *GROUND},
    "schemas": {"config_keys"},
    "terminal": {"texts"},
    "environment": {"data", "engine", "models", "machine", "openmp", "mp4", "provenance"},
    "config": {"config_keys", "errors", "io", "texts", "yaml_files"},
    "config_keys": {"errors", "texts", "yaml_files", "plugins"},
    "durations": set(),
    "errors": set(),
    "io": {"errors"},
    "processes": {"errors"},
    "plugins": {"errors"},
    "provenance": set(),
    "texts": {"errors", "io"},
    "mp4": {"errors", "io"},
    "csv_columns": {"errors", "io", "texts"},
    "ava": {"errors", "io", "texts", "csv_columns"},
    "boxes": {"errors"},
    "grid": {"errors"},
    "machine": set(),
    "openmp": {"machine"},
    "tensor_files": {"errors", "io", "texts"},
    "values": {"errors", "texts"},
    "yaml_files": {"errors", "texts"},
}


def area_of(path: Path) -> str:
    """The first part of a module's path below the package, without its suffix."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported_areas(path: Path) -> Iterator[tuple[str, int]]:
    """Areas of the package that a file imports, with the line, imports inside functions included."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names: list[str] = []
        if isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path}:{node.lineno} imports relatively"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        for name in names:
            package, _, rest = name.partition(".")
            area = rest.partition(".")[0]
            if package == "videomaskfeat" and area and area not in TOP_LEVEL:
                yield area, node.lineno


def allowed(area: str) -> set[str]:
    """The areas that an area may import besides itself."""
    if area in ABOVE:
        return ABOVE[area]
    return GROUND | {other for owner, other in SIDEWAYS if owner == area}


def test_areas_import_in_one_direction() -> None:
    wrong = []
    for path in sorted(PACKAGE.rglob("*.py")):
        area = area_of(path)
        if area in {"__init__", "__main__"}:
            continue
        for other, line in imported_areas(path):
            if other != area and other not in allowed(area):
                wrong.append(f"{path.relative_to(PACKAGE)}:{line} imports {other}")
    assert not wrong, "\n".join(wrong)


def modules() -> dict[str, Path]:
    """The modules of the package, by dotted name."""
    return {
        ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__"): path
        for path in PACKAGE.rglob("*.py")
    }


def imported_modules(path: Path, known: Iterable[str], *, inside_functions: bool) -> set[str]:
    """Modules of the package that a file imports, apart from the package itself."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    imported = set()
    for node in ast.walk(tree) if inside_functions else tree.body:
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            imported |= {name if name in known else node.module for name in names}
        elif isinstance(node, ast.Import):
            imported |= {alias.name for alias in node.names}
    return (imported & set(known)) - {PACKAGE.name}


def test_no_job_imports_another() -> None:
    known, prefix = modules(), "videomaskfeat.jobs."
    wrong = [
        f"{name} imports {other}"
        for name, path in known.items()
        if name.startswith(prefix)
        for other in imported_modules(path, known, inside_functions=True)
        if other.startswith(prefix)
    ]
    assert not wrong, "\n".join(wrong)


def test_no_circular_imports_between_files() -> None:
    """Removing modules that import nothing that is left must remove them all."""
    known = modules()
    left = {name: imported_modules(path, known, inside_functions=False) for name, path in known.items()}
    while leaves := [name for name, others in left.items() if not others & left.keys()]:
        for name in leaves:
            del left[name]
    assert not left, f"these modules import each other: {sorted(left)}"


def test_package_import_is_quick() -> None:
    """Importing the package pulls in neither torch nor a video reader."""
    code = (
        "import sys, videomaskfeat; print([m for m in ('torch', 'av', 'decord', 'cv2') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def run_python(code: str) -> str:
    """What a fresh process prints."""
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.strip()


def test_every_module_is_reached_from_the_package() -> None:
    """`import videomaskfeat` is enough for `videomaskfeat.metrics.ava_map.evaluate_files`."""
    code = """
import videomaskfeat
package = videomaskfeat
print(package.interop.load_slowfast.__name__, package.targets.hog.hog_features.__name__)
print(package.models.create_model.__name__, package.data.video.open_video.__name__)
print(package.metrics.ava_map.evaluate_files.__name__)
print(package.inference.detectors.load_detector.__name__)
"""
    expected = "load_slowfast hog_features create_model open_video evaluate_files load_detector"
    assert run_python(code).split() == expected.split()


def test_packages_offer_their_modules() -> None:
    missing = [
        str(path.relative_to(PACKAGE))
        for path in PACKAGE.rglob("__init__.py")
        if "__getattr__" not in path.read_text(encoding="utf-8")
    ]
    assert not missing


def test_dir_lists_submodules_and_imports_nothing() -> None:
    code = "import sys, videomaskfeat; print(*dir(videomaskfeat)); print('torch' in sys.modules)"
    names, imported = run_python(code).splitlines()
    assert {"interop", "targets", "models", "data", "masking", "create_model"} <= set(names.split())
    assert imported == "False"


@pytest.mark.parametrize("name", ["nonsense", "data.video", "_private"])
def test_unknown_names_are_an_attribute_error(name: str) -> None:
    for package in (videomaskfeat, videomaskfeat.data):
        with pytest.raises(AttributeError, match=f"module '{package.__name__}' has no attribute '{name}'"):
            getattr(package, name)
    assert not hasattr(videomaskfeat, name)


def test_no_drawer_modules() -> None:
    names = {path.stem for path in PACKAGE.rglob("*.py")}
    assert not names & {"utils", "util", "helper", "helpers", "misc", "common"}


def test_map_of_the_design_names_every_module_and_no_other() -> None:
    """Every file of the package is described once."""
    design = (PACKAGE.parent / "docs" / "design.md").read_text(encoding="utf-8")
    package = design.partition("\n## Package\n")[2].partition("\nDirection of imports")[0]
    named = set(re.findall(r"\w+\.py\b", package))
    modules = {path for path in PACKAGE.rglob("*.py") if not path.name.startswith("__")}
    assert named <= {path.name for path in modules}
    mapped = {path.name for path in modules}
    assert mapped <= named


def test_every_public_name_is_there() -> None:
    assert all(getattr(videomaskfeat, name).__name__ == name for name in videomaskfeat._LAZY)


@pytest.mark.parametrize(
    "registry",
    ["targets:TARGETS", "methods:METHODS", "data.formats:FORMATS", "engine.log:LOGGERS", "masking:MASKS"],
)
def test_every_entry_of_a_registry_names_a_class_or_function(registry: str) -> None:
    entries = videomaskfeat.import_object(f"videomaskfeat.{registry}")
    assert all(callable(videomaskfeat.import_object(entry)) for entry in entries.values())


def test_every_named_model_has_a_class() -> None:
    from videomaskfeat.models.encoder_base import Encoder
    from videomaskfeat.models.zoo import MODELS

    assert all(issubclass(named.build, Encoder) for named in MODELS.values())
    assert all(MODELS[named.build.encoder_name].build in named.build.__mro__ for named in MODELS.values())


def module_level_closure(root: str) -> set[str]:
    """Modules that are imported with a module, without the imports inside functions."""
    known = modules()
    closure, pending = set[str](), [root]
    while pending:
        name = pending.pop()
        if name in closure or name == PACKAGE.name:
            continue
        closure.add(name)
        pending += [*imported_modules(known[name], known, inside_functions=False), name.rpartition(".")[0]]
    return closure


def test_pretraining_imports_a_small_part_of_the_package() -> None:
    """Parts of the package that a plain run does not use are imported on use."""
    known = modules()
    closure = module_level_closure("videomaskfeat.jobs.pretrain")
    lines = sum(len(known[name].read_text(encoding="utf-8").splitlines()) for name in closure)
    assert len(closure) <= 66
    assert lines <= 12_500
    # Other encoders and methods, weights of other projects, pages, and readers of rare files.
    unused = (
        "models.vit",
        "models.mae",
        "methods.ibot",
        "interop",
        "viz",
        "inference",
        "data.readers_pyav",
        "data.memory",
    )
    assert not [name for name in closure if name.startswith(tuple(f"videomaskfeat.{one}" for one in unused))]


def test_drawing_a_pretraining_does_not_import_classifiers() -> None:
    closure = module_level_closure("videomaskfeat.inference.drawing")
    assert not closure & {f"videomaskfeat.{name}" for name in ("inference.classifiers", "models.loading")}
