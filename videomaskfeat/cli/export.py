"""The verb that takes models to other programs."""

from __future__ import annotations

import argparse
from typing import Any

from videomaskfeat.cli.verb import DONE, add_verb
from videomaskfeat.texts import printable


def add_export(verbs: Any) -> None:
    """``export``: a weights file in another format."""
    parser = add_verb(
        verbs,
        "export",
        run_export,
        summary="write a model as ONNX, as a torch.export program, in PySlowFast's names or as safetensors; "
        "the file is read afresh and compared with the model before it is kept",
        examples="""\
  videomaskfeat export runs/s_k400/best.safetensors s_k400.onnx
  videomaskfeat export runs/s_k400/best.safetensors s_k400.pt2 --batch 8 --input float
  videomaskfeat export runs/s_k400/best.safetensors s_k400.pyth        PySlowFast's names, and a YAML beside
  videomaskfeat export runs/s/weights.safetensors encoder.onnx --part encoder --opset 18
  videomaskfeat export runs/s_k400/best.safetensors encoder.safetensors --part encoder""",
    )
    parser.add_argument("weights", help="weights (safetensors) of any run of ours, or of import-slowfast")
    parser.add_argument("out", metavar="OUT", help="file to write")
    parser.add_argument(
        "--format",
        default="auto",
        help="safetensors | slowfast (.pyth and .yaml) | torch (.pt2) | onnx (default: as OUT ends)",
    )
    parser.add_argument(
        "--part", default="model", help="model | encoder: without its head (default: %(default)s)"
    )
    parser.add_argument(
        "--input",
        help="of a graph: uint8 (frames as decoded, [B,T,H,W,C]; normalised inside) | float (clips that the "
        "caller has normalised, [B,C,T,H,W]) (default: uint8)",
    )
    parser.add_argument(
        "--batch",
        type=_batch,
        metavar="N",
        help="of a graph: clips at a time, or dynamic: any number (default: dynamic)",
    )
    parser.add_argument("--opset", type=int, help="version of ONNX's operators, 18 to 23 (default: 20)")
    parser.add_argument(
        "--tolerance",
        type=float,
        default=1e-4,
        help="largest difference that passes, as a share of the largest value (default: %(default)s)",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace OUT where it exists")


def run_export(options: argparse.Namespace) -> int:
    """Run ``export``."""
    from videomaskfeat.tasks.conversion.export import export

    exported = export(
        options.weights,
        options.out,
        format=options.format,
        part=options.part,
        input=options.input,
        batch=options.batch,
        opset=options.opset,
        tolerance=options.tolerance,
        overwrite=options.overwrite,
    )
    print(printable(exported.text()))
    return DONE


def _batch(text: str) -> int | None:
    """A number of clips, or None for "dynamic"."""
    if text == "dynamic":
        return None
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is neither a number of clips nor dynamic") from None
