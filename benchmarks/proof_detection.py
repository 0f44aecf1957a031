"""Does pre-training pay in detection? `make proof-detect`: with and without, over several seeds; resumable.

Each seed has its own data sets and encoder, those of `make proof` (benchmarks/proof.py), and videos of
several actors in AVA's format. The pre-trained encoder and the same network from scratch are trained on the
key frames of 75 % of the videos with the same number of steps. The weights of the last step are scored on the
other videos by the official rules, with detected boxes. No hyperparameter was chosen with these seeds. The
chance level is the score of the same boxes with random scores, averaged over 20 draws.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
from rich.console import Console

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from benchmarks.harness import machine  # noqa: E402  (the repository is not installed)
from benchmarks.proof import SEEDS, Job, Place, data_sets, run_jobs  # noqa: E402
from videomaskfeat.metrics.ava_map import average_precision, read_ava  # noqa: E402

AVA_VIDEOS = 240
WAYS = {"pre-trained": "detector", "from scratch": "detector_scratch"}
DRAWS = 20


def main() -> None:
    """Run the missing jobs, then write and print the table."""
    parser = argparse.ArgumentParser(
        description="Does pre-training pay in detection? The same command resumes."
    )
    parser.add_argument("--folder", type=Path, default=Path("runs/proof"))
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="runs at a time")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "proof_detection.json")
    options = parser.parse_args()
    threads = max((os.cpu_count() or 1) // options.jobs, 1)
    console = Console(stderr=True)
    places = [Place(options.folder / f"seed_{seed}", seed) for seed in SEEDS]
    stages = (
        [*data_sets(places), *(actors(place) for place in places)],
        [place.pretraining() for place in places],
        [training(place, way) for place in places for way in WAYS.values()],
    )
    for jobs in stages:
        run_jobs(jobs, options.jobs, threads, console)
    table = {
        title: [
            round(100 * json.loads(result(place, way).read_text(encoding="utf-8"))["mean_ap"], 2)
            for place in places
        ]
        for title, way in WAYS.items()
    }
    table["random scores"] = [round(100 * chance(place), 2) for place in places]
    content = {"machine": machine("cpu"), "ava_videos": AVA_VIDEOS, "mean_ap": table}
    options.out.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    console.print(f"written: {options.out}", highlight=False)
    for title, values in table.items():
        sys.stdout.write(f"{title}: {values}, mean {statistics.mean(values):.1f}\n")


def actors(place: Place) -> Job:
    """Videos of several actors, with lists in AVA's format."""
    folder = place.path / "actors"
    command = ["sample-data", str(folder), "--videos", "12", "--ava-videos", str(AVA_VIDEOS)]
    return Job(folder / "README.txt", [[*command, "--seed", str(place.seed)]])


def training(place: Place, way: str) -> Job:
    """Train a detector, and score the weights of the last step."""
    run, lists = place.path / way, place.path / "actors" / "ava" / "annotations"
    videos, labels = lists.parent / "videos", lists / "ava_action_list_v2.2.pbtxt"
    options = {
        "data.videos": videos,
        "data.label_map": labels,
        "data.train": lists / "ava_train_v2.2.csv",
        "data.train_boxes": f"[{lists / 'ava_train_predicted_boxes.csv'}]",
        "data.train_exclusions": lists / "ava_train_excluded_timestamps_v2.2.csv",
        "data.validation": "",
        "data.validation_boxes": "[]",
        "data.validation_exclusions": "",
        "run.folder": run,
        "run.seed": place.seed,
    }
    if way == "detector":
        options["model.weights"] = place.path / "pretrained" / "weights.safetensors"
    else:  # from scratch, early layers need the full learning rate
        options["optim.layer_decay"] = 1.0
    train = ["detect-train", "--config", "configs/detect/sample.yaml"]
    train += [f"{key}={value}" for key, value in options.items()]
    score = [
        "detect-evaluate",
        "--overwrite",
        str(run / "weights.safetensors"),
        "--videos",
        str(videos),
        "--labels",
        str(labels),
    ]
    score += ["--groundtruth", str(lists / "ava_val_v2.2.csv")]
    score += ["--boxes", str(lists / "ava_val_predicted_boxes.csv")]
    score += ["--exclusions", str(lists / "ava_val_excluded_timestamps_v2.2.csv")]
    return Job(result(place, way), [train, [*score, "--workers", "1", "--out", str(run / "measured")]])


def chance(place: Place) -> float:
    """The frame mAP of the pre-trained detector's rows with random scores, averaged over draws."""
    lists = place.path / "actors" / "ava" / "annotations"
    data = read_ava(
        lists / "ava_val_v2.2.csv",
        result(place, WAYS["pre-trained"]).with_name("detections.csv"),
        lists / "ava_action_list_v2.2.pbtxt",
        lists / "ava_val_excluded_timestamps_v2.2.csv",
    )
    rng, count = np.random.default_rng(place.seed), len(data.detections.scores)
    draws = [replace(data.detections, scores=rng.random(count)) for _ in range(DRAWS)]
    return statistics.mean(
        average_precision(data.groundtruth, drawn, actions=list(data.actions)).mean_ap for drawn in draws
    )


def result(place: Place, way: str) -> Path:
    """The result file of a way."""
    return place.path / way / "measured" / "result.json"


if __name__ == "__main__":
    main()
