"""The commands of `make demo`: sample videos, pre-training, fine-tuning with and without it, a report."""

import json
import sys
from pathlib import Path

from videomaskfeat.processes import run_in_order

DEMO = Path("demo")
FINETUNE = ["finetune", "--config", "configs/finetune/sample.yaml"]
COMMANDS = [
    ["sample-data", "demo/sample", "--videos", "600"],
    ["pretrain", "--config", "configs/pretrain/sample.yaml"],
    [*FINETUNE, "model.weights=demo/run/weights.safetensors"],
    # The same steps and learning rates, without layer decay: from scratch, early layers need the full rate.
    [*FINETUNE, "run.folder=demo/scratch", "optim.layer_decay=1.0"],
    *(
        [
            "evaluate",
            f"demo/{run}/weights.safetensors",
            "demo/sample/test.csv",
            "--out",
            f"demo/{run}/test",
            "--overwrite",
        ]
        for run in ("finetuned", "scratch")
    ),
    [
        "report",
        "demo/finetuned",
        "--beside",
        "demo/scratch",
        "--out",
        "demo/finetuned/report.html",
        "--overwrite",
    ],
]


def main() -> int:
    """Run the commands in sequence until one fails or is stopped."""
    code = run_in_order(COMMANDS, again="make demo")
    if code == 0:
        print(format_results())
    return code


def format_results() -> str:
    """Losses, accuracies and paths as text."""
    loss = json.loads((DEMO / "run/summary.json").read_text(encoding="utf-8"))
    ends = {
        run: json.loads((DEMO / run / "test/result.json").read_text(encoding="utf-8"))
        for run in ("scratch", "finetuned")
    }
    share = 100 * (1 - loss["heldout_trained"] / loss["heldout_constant"])
    return f"""
loss on {loss["heldout_clips"]} held-out clips (mean squared error at hidden positions)
  best constant prediction  {loss["heldout_constant"]:.5f}
  untrained model           {loss["heldout_untrained"]:.5f}
  trained model             {loss["heldout_trained"]:.5f}   ({share:.1f} % below the constant)
top-1 accuracy on {ends["scratch"]["videos"]} test videos, fine-tuned with 20 labels per class (chance 8.3 %)
  from scratch              {ends["scratch"]["top1"]:.1f} %
  from the trained model    {ends["finetuned"]["top1"]:.1f} %
checkpoint  {loss["checkpoint"]}
report      {DEMO / "run/report.html"} (pre-training)
report      {DEMO / "finetuned/report.html"} (both fine-tunings, side by side)"""


if __name__ == "__main__":
    sys.exit(main())
