"""The verbs around a training: plan, bench-data, launch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from videomaskfeat import import_object
from videomaskfeat.config_keys import key, section
from videomaskfeat.schemas.detect import DetectConfig
from videomaskfeat.schemas.finetune import FinetuneConfig
from videomaskfeat.schemas.pretrain import PretrainConfig
from videomaskfeat.schemas.tokenizer import TokenizerConfig
from videomaskfeat.terminal import DONE, SOME_FAILED
from videomaskfeat.texts import printable
from videomaskfeat.verbs.verb import Verb


def plan(config: PretrainConfig | FinetuneConfig | DetectConfig | TokenizerConfig) -> int:
    """Measure a few steps of a training on this machine: duration, memory, and what to change.

    videomaskfeat plan --config configs/pretrain/k400_maskfeat_mvitv2_s.yaml data.train=train.csv
    videomaskfeat plan --config configs/finetune/k400_maskfeat_mvitv2_s.yaml run.device=cpu ...
    """
    from videomaskfeat.jobs.plan import plan_training

    print(printable(plan_training(config, _run_class(config)).text()))
    return DONE


def _run_class(config: Any) -> Any:
    """The class of `Run` that trains with a config."""
    runs: dict[type, str] = {
        PretrainConfig: "pretrain:PretrainRun",
        FinetuneConfig: "finetune:FinetuneRun",
        DetectConfig: "detect:DetectRun",
        TokenizerConfig: "tokenizer:TokenizerRun",
    }
    name = next(name for kind, name in runs.items() if isinstance(config, kind))
    return import_object(f"videomaskfeat.jobs.{name}")


@dataclass
class BenchSettings:
    """Benchmark of the data."""

    clips: int = key(64, "number of clips to measure", least=1, flag="clips")
    seconds: float = key(
        20.0, "time after which no further batch is measured", unit="seconds", above=0, flag="seconds"
    )
    out: str | None = key(None, "JSON file for the figures", flag="out")
    overwrite: bool = key(False, "replace this file if it exists", flag="overwrite")


@dataclass
class BenchPretrainConfig(PretrainConfig):
    """Pre-training whose data is measured."""

    bench: BenchSettings = section(BenchSettings)


@dataclass
class BenchFinetuneConfig(FinetuneConfig):
    """Fine-tuning whose data is measured."""

    bench: BenchSettings = section(BenchSettings)


@dataclass
class BenchDetectConfig(DetectConfig):
    """Training of a detector whose data is measured."""

    bench: BenchSettings = section(BenchSettings)


@dataclass
class BenchTokenizerConfig(TokenizerConfig):
    """Training of a tokenizer whose data is measured."""

    bench: BenchSettings = section(BenchSettings)


def bench_data(
    config: BenchPretrainConfig | BenchFinetuneConfig | BenchDetectConfig | BenchTokenizerConfig,
) -> int:
    """Measure the loading of a training by stage, and how many loader workers its steps need.

    videomaskfeat bench-data --config configs/pretrain/k400_maskfeat_mvitv2_s.yaml data.train=train.csv
    videomaskfeat bench-data --config ... --clips 256 --out data.json data.train=s3://bucket/shards/index.json
    """
    from videomaskfeat.jobs.bench_data import bench_data
    from videomaskfeat.jobs.plan import plan_training

    def measure_step() -> tuple[int, float]:
        plan = plan_training(config, _run_class(config))
        return plan.clips, plan.computing_seconds

    bench = config.bench
    result = bench_data(
        config,
        _run_class(config),
        measure_step,
        clips=bench.clips,
        seconds=bench.seconds,
        json_path=bench.out,
        overwrite=bench.overwrite,
    )
    print(printable(result.text()))
    return SOME_FAILED if result.failures else DONE


@dataclass
class LaunchOptions:
    """options"""

    command: list[str] = key([], "verb and its arguments, after --", positional=True)
    nodes: int = key(1, "number of nodes", least=1)
    gpus_per_node: int = key(1, "GPUs per node; 0: a run on CPUs", least=0)
    processes_per_node: int | None = key(None, "ranks per node", least=1, null="one per GPU")
    cpus_per_node: int | None = key(None, "cores per node", least=1, null="the default of the cluster")
    memory_gb: float | None = key(
        None, "memory per node", unit="GB", above=0, null="the default of the cluster"
    )
    partition: str = key("", "partition; empty: the default one")
    hours: float = key(24.0, "time limit, after which the job is requeued", unit="hours", above=0)
    name: str = key("videomaskfeat", "name of the job")
    logs: str = key("launch", "folder of scripts and logs, shared by all nodes")
    save_seconds: int = key(120, "time to save before the job is stopped", unit="seconds", least=1)
    requeues: int = key(100, "maximum number of starts after a time limit", least=0)
    restarts: int = key(3, "restarts of the ranks after a failure", least=0)
    slurm: dict[str, Any] = key({}, "other options of sbatch, such as account=vision")
    cluster: str = key(
        "slurm", "where the job runs", choices={"slurm": "", "local": "this machine, in the background"}
    )


def launch(options: LaunchOptions) -> int:
    """Submit a command to SLURM on several nodes; it is requeued when it is preempted or out of time.

      videomaskfeat launch --nodes 4 --gpus-per-node 8 --partition gpu -- pretrain \\
          --config configs/pretrain/k400_maskfeat_mvitv2_s.yaml data.train=train.csv run.folder=runs/s
      videomaskfeat launch --nodes 2 --gpus-per-node 8 --slurm qos=high -- evaluate best.safetensors val.csv
      videomaskfeat launch --cluster local --gpus-per-node 0 --processes-per-node 2 -- pretrain --config ...
    """
    from videomaskfeat.jobs.launch import launch

    print(printable(launch(**vars(options)).text()))
    return DONE


VERBS = {
    "plan": Verb(plan, sized=True),
    "bench-data": Verb(bench_data, sized=True),
    "launch": Verb(launch),
}
