"""The charts that the report of a pre-training has beside those of every run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

_METHOD_CHARTS: tuple[tuple[str, Mapping[str, str]], ...] = (
    ("Parts of the loss", {"class_loss": "class token", "cube_loss": "cubes"}),
    (
        "Spread of features, near 0 when collapsed",
        {"feature_std": "features", "projection_std": "projections", "clip_std": "means of clips"},
    ),
    (
        "Entropy of the teacher's mean distribution, nats",
        {"class_entropy": "class token", "cube_entropy": "cubes"},
    ),
    (
        "What the teacher's distributions tell inputs apart by, nats",
        {"class_information": "class token", "cube_information": "cubes"},
    ),
)
_PART = "loss_"
"""Before the name of a target that is one of several."""


def method_charts(recorded: Iterable[str]) -> list[tuple[str, Mapping[str, str]]]:
    """Title and metric -> its name in the chart, of what was recorded.

    Args:
        recorded: names of the run's metrics.
    """
    names = list(recorded)
    parts = {name: name.removeprefix(_PART) for name in names if name.startswith(_PART)}
    charts = [("Parts of the loss", parts)] if parts else []
    return charts + [chart for chart in _METHOD_CHARTS if any(name in chart[1] for name in names)]
