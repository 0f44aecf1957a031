"""The commands of `make demo-detect`: detectors from the demo's encoder and from scratch, and a video."""

import json
import sys
from pathlib import Path

from videomaskfeat.processes import run_in_order

DEMO = Path("demo")
ANNOTATIONS = DEMO / "actors/ava/annotations"
ENCODER = DEMO / "run/weights.safetensors"
FIRST = [
    ["sample-data", "demo/sample", "--videos", "600"],
    ["pretrain", "--config", "configs/pretrain/sample.yaml", "run.pictures=0"],
]
AGAIN = "make demo-detect"
TRAIN = ["detect-train", "--config", "configs/detect/sample.yaml"]


def main() -> int:
    """Run the commands in sequence until one fails or is stopped."""
    commands = [] if ENCODER.exists() else FIRST
    commands = [
        *commands,
        ["sample-data", "demo/actors", "--videos", "12", "--ava-videos", "240"],
        [*TRAIN, f"model.weights={ENCODER}"],
        # From scratch, early layers need the full learning rate.
        [*TRAIN, "run.folder=demo/detector_scratch", "optim.layer_decay=1.0"],
    ]
    if code := run_in_order(commands, again=AGAIN):
        return code
    # The actors move far within a second, so the video is drawn from boxes at 5 key frames per second.
    boxes = ANNOTATIONS / "ava_val_tracked_boxes.csv"
    video = boxes.read_text(encoding="utf-8").split(",", 1)[0]
    film = ["detect", "demo/detector/best.safetensors", f"demo/actors/ava/videos/{video}.mp4", "--overwrite"]
    film += ["--every", "0.2", "--threshold", "0.25", "--top", "2"]
    if code := run_in_order([[*film, "--boxes", str(boxes), "--out", "demo/film"]], again=AGAIN):
        return code
    ends = {
        name: json.loads((DEMO / name / "summary.json").read_text(encoding="utf-8"))["mean_ap"]
        for name in ("detector", "detector_scratch")
    }
    print(f"""
frame mAP at IoU 0.5 of 12 actions, detected boxes
  from scratch              {100 * ends["detector_scratch"]:.1f} %
  from the trained encoder  {100 * ends["detector"]:.1f} %
film        demo/film/{video}_actions.mp4
report      demo/detector/report.html""")
    return 0


if __name__ == "__main__":
    sys.exit(main())
