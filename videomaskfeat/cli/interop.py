"""Verbs that bring other projects' files along."""

from __future__ import annotations

import argparse
from typing import Any

from videomaskfeat.cli.verb import DONE, add_verb
from videomaskfeat.texts import printable


def add_import_slowfast(verbs: Any) -> None:
    """``import-slowfast``: PySlowFast's YAML and checkpoint to ours."""
    parser = add_verb(
        verbs,
        "import-slowfast",
        run_import_slowfast,
        summary="turn a PySlowFast YAML and checkpoint (MaskFeat, MViTv2) into weights and a config of ours",
        examples="""\
  videomaskfeat import-slowfast --config MVITv2_S_16x4.yaml --checkpoint MViTv2_S_16x4_k400.pyth zoo/s
  videomaskfeat import-slowfast --config k400_MVITv2_S_16x4_FT.yaml --checkpoint s.pyth zoo/s_ft \\
      --class-names kinetics400_names.txt
  videomaskfeat predict zoo/s_ft/weights.safetensors my_video.mp4""",
    )
    parser.add_argument("--config", required=True, metavar="YAML", help="PySlowFast's config")
    parser.add_argument("--checkpoint", required=True, metavar="PYTH", help="its checkpoint")
    parser.add_argument("out", metavar="OUT", help="folder for weights.safetensors, config.yaml, import.json")
    parser.add_argument(
        "--class-names",
        metavar="FILE",
        help="a name a line in the order of the labels, or SSv2's labels JSON",
    )
    parser.add_argument(
        "--weights-key",
        default="",
        metavar="KEY",
        help="which weights of a checkpoint that holds several, such as model_ema (default: model_state, "
        "state_dict, model or module, the first that is there)",
    )


def run_import_slowfast(options: argparse.Namespace) -> int:
    """Run ``import-slowfast``."""
    from videomaskfeat.tasks.conversion.import_slowfast import import_slowfast

    outcome = import_slowfast(
        options.config,
        options.checkpoint,
        options.out,
        class_names=options.class_names,
        weights_key=options.weights_key,
    )
    print(printable(outcome.text()))
    return DONE
