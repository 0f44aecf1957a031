"""Write videomaskfeat/models/sizes.json: parameters and multiply-adds of every named model.

``python benchmarks/model_sizes.py [PATTERN]`` measures the models that match, or those that are missing.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

from videomaskfeat.models import create_model, list_models
from videomaskfeat.models.sizes import measure_model
from videomaskfeat.models.vit import ViT

PATH = Path(__file__).resolve().parents[1] / "videomaskfeat" / "models" / "sizes.json"


def measure(name: str) -> tuple[int, int]:
    """Parameters and multiply-adds; those of a ViT from its first two blocks, since all blocks are equal."""
    with torch.device("meta"):
        model = create_model(name)
    if not isinstance(model, ViT):
        parameters, cost = measure_model(name)
        return parameters, round(cost)
    (_, first), (_, second) = (measure_model(name, depth=depth) for depth in (1, 2))
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return parameters, round(first + (len(model.blocks) - 1) * (second - first))


def main() -> None:
    """Measure, and write the file after every model."""
    sizes = json.loads(PATH.read_text(encoding="utf-8")) if PATH.exists() else {}
    names = list_models(sys.argv[1]) if len(sys.argv) > 1 else [n for n in list_models() if n not in sizes]
    for name in names:
        sizes[name] = measure(name)
        lines = ",\n".join(f"  {json.dumps(key)}: {json.dumps(sizes[key])}" for key in sorted(sizes))
        PATH.write_text(f"{{\n{lines}\n}}\n", encoding="utf-8")
        print(name, *sizes[name], flush=True)


if __name__ == "__main__":
    main()
