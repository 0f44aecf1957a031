"""The picture, the tables and the stored figures of docs/comparing.md, from a finished comparison.

    python -m benchmarks.comparison runs/compare_factors --out benchmarks/results/compare_factors.json \
        --picture docs/pictures/compare_factors.svg

With ``--seeds-of EARLIER.json``, a file that this program wrote, its seeds precede those of the folder: a
comparison can run in several parts, or on several machines.

Rows are targets, columns are factors. A cell is the mean gain of a probe over the same encoder before its
first step, in points, with its 95 % confidence interval over the paired seeds.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import vl_convert

from benchmarks.harness import write_json
from videomaskfeat.viz.comparison import Gain, gain_cells
from videomaskfeat.viz.page import chart_spec

COLORS = {"rule": "#e1e4ec", "good": "#18794e", "bad": "#c03030", "card": "#ffffff", "ink": "#1b1f2a"}
"""The page's colors in light mode."""
NAMES = {
    "hog": "HOG",
    "hog_frames": "HOG, hidden frames",
    "hog_vit": "HOG, on ViT",
    "pixels": "pixels (VideoMAE's target)",
    "simmim": "SimMIM",
    "mae": "MAE",
    "dvae": "tokens of a dVAE",
    "codebook": "tokens of a codebook",
    "ibot": "iBOT",
    "byol": "BYOL",
    "latent": "latent",
    "features": "features of the HOG run",
    "hog_features": "HOG and these features",
}
"""Names of targets in the tables; others have the name of the config."""
PROBES = {"linear_top1": "Linear probe", "knn_top1": "k-NN"}
Row = dict[str, Any]


def read_gain(row: Row, factor: str, probe: str) -> Gain:
    """The gain of a target (a row of ``table.json``) in a factor."""
    return Gain(**row["factors"][factor][f"{probe}_gain"])


def join_seeds(earlier: list[Row], rows: list[Row]) -> list[Row]:
    """The rows of a comparison with the seeds of an earlier one before their own.

    A row of an earlier target without a new one stays as it is. One with another number of training steps is
    dropped, since its runs had another budget.
    """
    before = {row["target"]: row for row in earlier}
    joined = []
    for row in rows:
        one = before.get(row["target"])
        joined.append(_join(one, row) if one and one["steps"][0] == row["steps"][0] else row)
    own = {row["target"] for row in rows}
    return joined + [row for row in earlier if row["target"] not in own]


def _join(earlier: Row, row: Row) -> Row:
    joined = {**row, **{name: earlier[name] + row[name] for name in ("steps", "seconds")}}
    joined["factors"] = {name: dict(values) for name, values in row["factors"].items()}
    for name, values in joined["factors"].items():
        for probe in PROBES:
            for key in (probe, f"{probe}_untrained"):
                values[key] = earlier["factors"][name][key] + values[key]
            pairs = zip(values[f"{probe}_untrained"], values[probe], strict=True)
            values[f"{probe}_gain"] = asdict(Gain.of([after - before for before, after in pairs]))
    return joined


def draw_gains(rows: list[Row], probe: str) -> str:
    """The gains of a probe as SVG, as on the page of a comparison."""
    gains = {
        (row["target"], factor): read_gain(row, factor, probe) for row in rows for factor in row["factors"]
    }
    text = json.dumps(chart_spec(gain_cells(gains)))
    for name, color in COLORS.items():
        text = text.replace(f"var(--{name})", color)
    spec = json.loads(text)
    spec["config"] = {"background": "white", "view": {"stroke": None}, "font": "sans-serif"}
    svg: str = vl_convert.vegalite_to_svg(spec)
    return svg


def write_costs(rows: list[Row]) -> str:
    """A Markdown table: clips per second of a training step, and the target's share of it in percent."""
    lines = ["| target | clips per second | share of the target |", "|---|---|---|"]
    for row in rows:
        speed = 1000 * row["clips"] / row["step_ms"]
        share = 100 * row["target_ms"] / row["step_ms"]
        lines.append(f"| {NAMES.get(row['target'], row['target'])} | {speed:.0f} | {share:.0f} % |")
    return "\n".join(lines) + "\n\n"


def write_tables(rows: list[Row]) -> str:
    """A Markdown table per factor: accuracies before and after in percent, and the gains."""
    tables = []
    for factor in rows[0]["factors"]:
        chance = 100 / rows[0]["factors"][factor]["classes"]
        lines = [
            f"### {factor.capitalize()} (chance {chance:.1f} %)\n",
            "| target | linear, random | linear, trained | gain | k-NN, random | k-NN, trained | gain |",
            "|---|---|---|---|---|---|---|",
        ]
        for row in rows:
            cells = [str(NAMES.get(row["target"], row["target"]))]
            for probe in PROBES:
                values = row["factors"][factor]
                before, after = (statistics.fmean(values[key]) for key in (f"{probe}_untrained", probe))
                cells += [f"{before:.1f}", f"{after:.1f}", read_gain(row, factor, probe).text]
            lines.append(f"| {' | '.join(cells)} |")
        tables.append("\n".join(lines))
    return "\n\n".join(tables) + "\n"


def main() -> int:
    """Write the JSON and the picture, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path, help="folder of the comparison, with table.json")
    parser.add_argument("--out", type=Path, required=True, help="JSON file for the results")
    parser.add_argument(
        "--picture", type=Path, required=True, help="SVG file for the gains of the linear probe"
    )
    parser.add_argument("--seeds-of", type=Path, help="JSON file of an earlier call, with other seeds")
    options = parser.parse_args()
    content = json.loads((options.folder / "table.json").read_text(encoding="utf-8"))
    facts, rows = content["machine"], content["targets"]
    if options.seeds_of:
        rows = join_seeds(json.loads(options.seeds_of.read_text(encoding="utf-8"))["targets"], rows)
    rows = sorted(rows, key=lambda row: (*NAMES, row["target"]).index(row["target"]))
    write_json(options.out, {**facts["provenance"], **facts["machine"], "targets": rows})
    options.picture.write_text(draw_gains(rows, "linear_top1"), encoding="utf-8")
    sys.stdout.write(write_costs(rows) + write_tables(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
