"""Does pre-training pay? `make proof`: few labels, with and without it, over several seeds; resumable.

Each seed has its own sample data set. An encoder is pre-trained on all training videos without labels. Then,
for each number of labels per class, the pre-trained encoder and the same network from scratch are fine-tuned
with the same number of steps, a linear probe is trained on each encoder, and videos are classified by nearest
neighbors. The test videos were used neither in training nor in the choice of hyperparameters. They are scored
with 3 views and the weights of the last step.

Each run is a command of the package with its own folder. The same command resumes: finished runs are skipped,
and stopped runs continue.
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

SEEDS = (1, 2, 3)  # hyperparameters were chosen with seed 100
LABELS = (5, 10, 20, 40)  # per class
VIDEOS = 1200  # 960 for pre-training, 240 for testing
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
    """Commands of the package, which run in sequence unless the last result exists."""

    result: Path
    commands: list[list[str]]

    def run(self, verbs: Verbs, threads: int) -> None:
        """Run the commands; their output goes to the job's log."""
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
    """Run the missing jobs, then write and print the table."""
    parser = argparse.ArgumentParser(description="Does pre-training pay? The same command resumes.")
    parser.add_argument("--folder", type=Path, default=Path("runs/proof"))
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="number of parallel runs")
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
    """Run jobs in parallel; Ctrl-C and SIGTERM stop them, and the same command resumes them."""
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
    """The folder of a seed's data and runs."""

    path: Path
    seed: int

    @property
    def sample(self) -> Path:
        """The data set."""
        return self.path / "sample"

    def few(self, labels: int) -> Path:
        """The list file with this number of labeled videos per class."""
        return self.sample / f"train_{labels}.csv"

    def write_lists(self) -> None:
        """Write lists with few labels (the classes of the rows alternate), and a list of all test videos."""
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
        """Fine-tune or train a probe, and evaluate it."""
        run = self.path / f"{way}_{labels}"
        probe = way.startswith("linear")
        steps_per_epoch = labels * CLASSES // BATCH
        options: dict[str, object] = {
            "data.train": self.few(labels),
            "data.validation": "",
            "data.class_names": self.sample / "classes.txt",
            "optim.epochs": (PROBE_STEPS if probe else FINETUNE_STEPS) / steps_per_epoch,
        }
        options["optim.warmup_epochs"] = float(str(options["optim.epochs"])) / 10
        if probe:
            options |= {"model.head": "linear", "optim.learning_rate": 1e-2}
        if way in ("tuned", "linear"):
            options["model.weights"] = self.path / "pretrained" / "weights.safetensors"
        else:  # from scratch, early layers need the full learning rate
            options["optim.layer_decay"] = 1.0
        result = run / "measured" / "result.json"
        weights = run / "weights.safetensors"
        return Job(result, [self._train("finetune", run, options), self._evaluate(weights, result.parent)])

    def neighbors(self, labels: int, way: str) -> Job:
        """Classify by the nearest labeled videos."""
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
        options = ["--views", "3", "--workers", "1", "--overwrite", "--out", str(out)]
        return ["evaluate", str(weights), measured, *options]


def data_sets(places: list[Place]) -> list[Job]:
    """The data sets; the command uses all cores."""
    options = ["--videos", str(VIDEOS), "--ava-videos", "0", "--seed"]
    return [
        Job(one.sample / "README.txt", [["sample-data", str(one.sample), *options, str(one.seed)]])
        for one in places
    ]


def without_pretraining(places: list[Place]) -> list[Job]:
    """Pre-training, and the runs from scratch."""
    jobs = [one.pretraining() for one in places]
    return jobs + [
        one.training(labels, way)
        for one in places
        for labels in LABELS
        for way in ("scratch", "linear_random")
    ]


def with_pretraining(places: list[Place]) -> list[Job]:
    """The runs that start from weights."""
    both = [(one, labels) for one in places for labels in LABELS]
    jobs = [one.training(labels, way) for one, labels in both for way in ("tuned", "linear")]
    return jobs + [one.neighbors(labels, way) for one, labels in both for way in ("knn", "knn_random")]


def results(places: list[Place]) -> dict[str, dict[str, list[float]]]:
    """Top-1 accuracy in percent per way and number of labels per class, one value per seed."""
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
    """Mean and standard deviation over the seeds, one row per way."""
    lines = [
        "| | " + " | ".join(f"{labels} per class" for labels in LABELS) + " |",
        "|---" * (1 + len(LABELS)) + "|",
    ]
    for title, row in table.items():
        cells = [f"{statistics.mean(x):.1f} ± {statistics.stdev(x):.1f}" for x in row.values()]
        lines.append(f"| {title} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
