"""The model card of a published model, from the folder of its run: data, recipe, results and license."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from videomaskfeat import __version__
from videomaskfeat.durations import duration_text
from videomaskfeat.errors import UserError
from videomaskfeat.io import is_file, is_folder
from videomaskfeat.texts import printable_name, read_json
from videomaskfeat.viz.evaluation import confidence_interval
from videomaskfeat.viz.page import finite_number
from videomaskfeat.yaml_files import dump_yaml, read_yaml

_RECIPE = ("clip", "augment", "mix", "mask", "target", "method", "model", "optim")
_LISTS = {
    "data.train": "training",
    "data.validation": "held out",
}
_SHARES = {  # of independent videos: title, guesses per video, keys of the numbers of videos and classes
    "top1": ("top-1 accuracy", 1, "videos", "classes"),
    "top5": ("top-5 accuracy", 5, "videos", "classes"),
    "knn_top1": ("k-NN, frozen features", 1, "probe_videos", "probe_classes"),
    "linear_top1": ("linear probe, frozen features", 1, "probe_videos", "probe_classes"),
}
_OTHERS = {  # title, factor to percent
    "mean_class": ("mean class accuracy", 1),
    "map": ("mAP", 1),
    "mean_ap": ("frame mAP", 100),
}


def model_card(
    title: str,
    *,
    name: str,
    parameters: int,
    task: str | None,
    license: str | None = None,
    run: str | os.PathLike[str] | None = None,
) -> str:
    """The text of ``README.md``, with the YAML header that the Hugging Face Hub reads.

    Args:
        title: heading; for the Hub the repository, ``OWNER/NAME``.
        name: name of the model in ``create_model``.
        parameters: number of its parameters.
        task: task of the Hub, such as "video-classification"; None: no task.
        license: identifier of the license of the weights, such as "apache-2.0"; None: not stated.
        run: folder of the run; None: the card has no data, recipe and results.

    Raises:
        UserError: the folder is not that of a run.
    """
    header: dict[str, Any] = {"library_name": "videomaskfeat", "license": license or "unknown"}
    if task is not None:
        header["pipeline_tag"] = task
    header["tags"] = ["video", "masked-video-pretraining", name]
    sections = [f"---\n{dump_yaml(header)}---", f"# {title}"]
    sections.append(
        f"Weights of `{name}` ({parameters / 1e6:.2f} M parameters), written by videomaskfeat {__version__}."
    )
    sections.append(
        "## Use\n\n```python\nimport videomaskfeat\n\n"
        f"model = videomaskfeat.from_pretrained({title!r})\n```\n\n"
        "`model.safetensors` also contains how clips are cut and normalized, and the class names: "
        "`videomaskfeat predict FOLDER VIDEO` reads the downloaded folder."
    )
    if run is not None:
        sections += _run_sections(Path(run))
    stated = license or "not stated; ask the authors before you use the weights"
    sections.append(f"## License\n\n{stated}")
    return "\n\n".join(sections) + "\n"


def _run_sections(run: Path) -> Iterator[str]:
    if not is_folder(run) or not is_file(run / "config.yaml"):
        raise UserError(f"run {os.fspath(run)!r} is not the folder of a run: it has no config.yaml")
    config = read_yaml(run / "config.yaml", what="a config")
    summary = _read_object(run / "summary.json")
    lists = [
        f"| {meaning} | `{_file_name(value)}` |"
        for key, meaning in _LISTS.items()
        if (value := _value_at(config, key))
    ]
    initial = _value_at(config, "model.weights")
    lists += [f"| initial weights | `{_file_name(initial)}` |"] if initial else []
    yield "\n".join(["## Data", "", "| | file |", "|---|---|", *lists])
    recipe = {section: config[section] for section in _RECIPE if config.get(section)}
    if isinstance(recipe.get("model"), dict):
        recipe["model"] = {key: value for key, value in recipe["model"].items() if key != "weights"}
    yield "\n".join(["## Recipe", "", *_training(run, summary), "```yaml", f"{dump_yaml(recipe)}```"])
    rows = list(_result_rows(summary))
    if rows:
        head = ["## Results", "", "| metric | value | 95 % interval | chance |", "|---|---|---|---|"]
        yield "\n".join([*head, *rows, "", *_protocol(summary)]).rstrip()


def _training(run: Path, summary: Mapping[str, Any]) -> list[str]:
    """A sentence on the length of the training and its versions."""
    versions = _read_object(run / "environment.json").get("provenance", {})
    facts = [f"{summary['steps']} steps" if "steps" in summary else ""]
    seconds = finite_number(summary.get("seconds"))
    facts.append("" if seconds is None else f"{duration_text(seconds)} of training")
    facts += [f"{key} {versions[key]}" for key in ("videomaskfeat", "commit", "torch") if key in versions]
    sentence = ", ".join(printable_name(fact) for fact in facts if fact)
    return [f"{sentence}.", ""] if sentence else []


def _result_rows(summary: Mapping[str, Any]) -> Iterator[str]:
    for key, (title, guesses, videos_key, classes_key) in _SHARES.items():
        value, videos, classes = (finite_number(summary.get(one)) for one in (key, videos_key, classes_key))
        if value is None or (guesses > 1 and classes and classes <= guesses):
            continue
        interval = ""
        if videos:
            low, high = confidence_interval(value / 100, videos)
            interval = f"{100 * low:.1f} to {100 * high:.1f} %"
        chance = f"{100 * guesses / classes:.1f} %" if classes else ""
        yield f"| {title} | {value:.2f} % | {interval} | {chance} |"
    for key, (title, factor) in _OTHERS.items():
        value, level = (finite_number(summary.get(one)) for one in (key, f"{key}_chance"))
        if value is not None:
            chance = "" if level is None else f"{factor * level:.2f} %"
            ends = summary.get(f"{key}_interval")
            interval = "" if ends is None else f"{factor * ends[0]:.1f} to {factor * ends[1]:.1f} %"
            yield f"| {title} | {factor * value:.2f} % | {interval} | {chance} |"
    loss, constant = (finite_number(summary.get(f"heldout_{name}")) for name in ("trained", "constant"))
    if loss is not None:
        measure = printable_name(str(summary.get("heldout_measure", "loss")))
        best = "" if constant is None else f"best constant: {constant:.4g}"
        yield f"| held-out loss ({measure}) | {loss:.4g} | | {best} |"


def _protocol(summary: Mapping[str, Any]) -> list[str]:
    """A sentence on the held-out videos of the results."""
    if "videos" not in summary or "views" not in summary:
        return []
    return [
        f"{summary['videos']} of {summary['listed']} held-out videos, {summary['views']} x "
        f"{summary['crops']} views per video. The interval is Wilson's, of the videos alone; it does not "
        "contain the variation between training runs."
    ]


def _read_object(path: Path) -> dict[str, Any]:
    content = read_json(path, what="a file of a run") if is_file(path) else {}
    return content if isinstance(content, dict) else {}


def _value_at(config: Mapping[str, Any], key: str) -> Any:
    section, _, name = key.partition(".")
    values = config.get(section)
    return values.get(name) if isinstance(values, Mapping) else None


def _file_name(path: object) -> str:
    """The last part of a path: the folders above it concern only the machine of the run."""
    return printable_name(os.path.basename(os.path.normpath(str(path))))
