"""Does pre-training pay? `make proof`: few labels, with and without it, over several seeds; resumable.

For each seed, a sample data set of its own: pre-train on all its training videos without labels; then, for
each number of labels a class, fine-tune the pre-trained encoder and the same network from scratch with the
same number of steps, train a linear probe on either encoder, and classify by nearest neighbours. All is
measured on videos that no training and no choice of settings has seen, over 3 views, with the weights of the
last step.

Each run is a command of the package in a folder of its own. A run that is finished is not done again, one
that was stopped goes on where it was: the same command resumes the whole.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from benchmarks.harness import machine  # noqa: E402  (the repository is not installed)
from videomaskfeat.errors import Stopped  # noqa: E402
from videomaskfeat.processes import Verbs  # noqa: E402

SEEDS = (1, 2, 3)  # settings were chosen on seed 100
LABELS = (5, 10, 20, 40)  # a class
VIDEOS = 1200  # 960 to pre-train on, 240 to measure on
CLASSES = 12
BATCH = 8
PRETRAIN_STEPS, FINETUNE_STEPS, PROBE_STEPS = 5000, 600, 300
WAYS = {
    "fine-tuned, pre-trained": "tuned",
    "fine-tuned, from scratch": "scratch",
    "linear probe, pre-trained": "linear",
    "linear probe, random encoder": "linear_random",
    "k-NN, pre-trained": "knn",
    "k-NN, random encoder": "knn_random",
}


@dataclass(frozen=True)
class Job:
    """Commands of the package, done one after the other unless the last one's result is there."""

    result: Path
    commands: list[list[str]]

    def run(self, verbs: Verbs, threads: int) -> None:
        """Do what is left to do; what the commands say goes into the job's log."""
        if self.result.exists():
            return
        environment = {"OMP_NUM_THREADS": str(threads)}
        path = self.result.parent.with_suffix(".log")
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as log:
            for command in self.commands:
                if verbs.run(command, log=log, environment=environment):
                    raise SystemExit(f"{' '.join(command)} failed; see {path}")


def main() -> None:
    """Run what is left, then write and print the table."""
    parser = argparse.ArgumentParser(
        description="Does pre-training pay? Resumable: the same command goes on."
    )
    parser.add_argument("--folder", type=Path, default=Path("runs/proof"))
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="runs at a time")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "proof.json")
    options = parser.parse_args()
    threads = max((os.cpu_count() or 1) // options.jobs, 1)
    console = Console(stderr=True)
    places = [Place(options.folder / f"seed_{seed}", seed) for seed in SEEDS]
    for stage in (data_sets, without_pretraining, with_pretraining):
        run_jobs(stage(places), options.jobs, threads, console)
        if stage is data_sets:
            for place in places:
                place.write_lists()
    table = results(places)
    content = {
        "machine": machine("cpu"),
        "videos": VIDEOS,
        "steps": {"pretrain": PRETRAIN_STEPS, "finetune": FINETUNE_STEPS, "probe": PROBE_STEPS},
        "top1": table,
    }
    options.out.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    console.print(f"written: {options.out}", highlight=False)
    sys.stdout.write(markdown(table))


def run_jobs(jobs: list[Job], at_once: int, threads: int, console: Console) -> None:
    """Run jobs, some at a time; Ctrl-C and SIGTERM end those that run, which the same command resumes."""
    with Verbs() as verbs, ThreadPoolExecutor(at_once) as pool:
        futures = [pool.submit(job.run, verbs, threads) for job in jobs]
        try:
            for number, (job, future) in enumerate(zip(jobs, futures, strict=True), start=1):
                future.result()
                console.print(f"{number} of {len(jobs)}: {job.result.parent}", highlight=False)
        except Stopped as stopped:
            console.print(str(stopped), highlight=False)
            raise SystemExit(stopped.exit_code) from stopped
        finally:
            pool.shutdown(cancel_futures=True)


@dataclass(frozen=True)
class Place:
    """Where a seed's data and runs lie."""

    path: Path
    seed: int

    @property
    def sample(self) -> Path:
        """The data set."""
        return self.path / "sample"

    def few(self, labels: int) -> Path:
        """The list of so many labelled videos a class."""
        return self.sample / f"train_{labels}.csv"

    def write_lists(self) -> None:
        """Few labels (the rows' classes go round and round), and all videos that nothing was trained on."""
        rows = (self.sample / "train.csv").read_text(encoding="utf-8").splitlines(keepends=True)
        for labels in LABELS:
            self.few(labels).write_text("".join(rows[: labels * CLASSES]), encoding="utf-8")
        held_out = [(self.sample / f"{name}.csv").read_text(encoding="utf-8") for name in ("val", "test")]
        (self.sample / "measured.csv").write_text("".join(held_out), encoding="utf-8")

    def pretraining(self) -> Job:
        """Pre-train on every training video."""
        run = self.path / "pretrained"
        options = {
            "data.train": self.sample / "train.csv",
            "data.validation": self.sample / "val.csv",
            "optim.epochs": PRETRAIN_STEPS * BATCH / (VIDEOS * 8 // 10),
            "run.evaluate_epochs": 0,
        }
        return Job(run / "summary.json", [self._train("pretrain", run, options)])

    def training(self, labels: int, way: str) -> Job:
        """Fine-tune, or train a probe, and measure."""
        run = self.path / f"{way}_{labels}"
        probe = way.startswith("linear")
        steps_an_epoch = labels * CLASSES // BATCH
        options: dict[str, object] = {
            "data.train": self.few(labels),
            "data.validation": "",
            "data.class_names": self.sample / "classes.txt",
            "optim.epochs": (PROBE_STEPS if probe else FINETUNE_STEPS) / steps_an_epoch,
        }
        options["optim.warmup_epochs"] = float(str(options["optim.epochs"])) / 10
        if probe:
            options |= {"model.head": "linear", "optim.learning_rate": 1e-2}
        if way in ("tuned", "linear"):
            options["model.weights"] = self.path / "pretrained" / "weights.safetensors"
        else:  # lower rates in early layers would only hold back what knows nothing yet
            options["optim.layer_decay"] = 1.0
        result = run / "measured" / "result.json"
        weights = run / "weights.safetensors"
        return Job(result, [self._train("finetune", run, options), self._evaluate(weights, result.parent)])

    def neighbours(self, labels: int, way: str) -> Job:
        """Classify by the nearest labelled videos."""
        source = "pretrained" if way == "knn" else f"linear_random_{LABELS[0]}"
        folder = self.path / f"{way}_{labels}"
        command = self._evaluate(self.path / source / "weights.safetensors", folder)
        command += ["--knn", str(self.few(labels)), "--k", "5"]
        return Job(folder / "result.json", [command])

    def _train(self, verb: str, run: Path, options: dict[str, object]) -> list[str]:
        options = {**options, "run.folder": run, "run.seed": self.seed}
        config = f"configs/{verb}/sample.yaml"
        return [verb, "--config", config, *(f"{key}={value}" for key, value in options.items())]

    def _evaluate(self, weights: Path, out: Path) -> list[str]:
        measured = str(self.sample / "measured.csv")
        return ["evaluate", str(weights), measured, "--views", "3", "--workers", "1", "--out", str(out)]


def data_sets(places: list[Place]) -> list[Job]:
    """The videos, which the command draws with all cores."""
    options = ["--videos", str(VIDEOS), "--ava-videos", "0", "--seed"]
    return [
        Job(one.sample / "README.txt", [["sample-data", str(one.sample), *options, str(one.seed)]])
        for one in places
    ]


def without_pretraining(places: list[Place]) -> list[Job]:
    """Pre-training itself, and all that does not wait for it."""
    jobs = [one.pretraining() for one in places]
    return jobs + [
        one.training(labels, way)
        for one in places
        for labels in LABELS
        for way in ("scratch", "linear_random")
    ]


def with_pretraining(places: list[Place]) -> list[Job]:
    """What starts from weights."""
    both = [(one, labels) for one in places for labels in LABELS]
    jobs = [one.training(labels, way) for one, labels in both for way in ("tuned", "linear")]
    return jobs + [one.neighbours(labels, way) for one, labels in both for way in ("knn", "knn_random")]


def results(places: list[Place]) -> dict[str, dict[str, list[float]]]:
    """Top-1 in percent by way and number of labels a class, one number a seed."""
    table: dict[str, dict[str, list[float]]] = {}
    for title, way in WAYS.items():
        measured = "result.json" if way.startswith("knn") else "measured/result.json"
        table[title] = {
            str(labels): [
                round(json.loads((one.path / f"{way}_{labels}" / measured).read_text())["top1"], 2)
                for one in places
            ]
            for labels in LABELS
        }
    return table


def markdown(table: dict[str, dict[str, list[float]]]) -> str:
    """Mean and standard deviation over the seeds, a row a way."""
    lines = [
        "| | " + " | ".join(f"{labels} a class" for labels in LABELS) + " |",
        "|---" * (1 + len(LABELS)) + "|",
    ]
    for title, row in table.items():
        cells = [f"{statistics.mean(x):.1f} ± {statistics.stdev(x):.1f}" for x in row.values()]
        lines.append(f"| {title} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
