"""The run that all trainings share: folder, plan, threads, resuming, failures, summary and final lines."""

from __future__ import annotations

import logging
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from videomaskfeat.config_keys import check_config
from videomaskfeat.engine import distributed
from videomaskfeat.engine.average import ExponentialMovingAverage, weight_sets
from videomaskfeat.engine.checkpoint import LENGTH_KEY
from videomaskfeat.engine.contracts import LoopOptions, Stateful, StepResult
from videomaskfeat.engine.distributed import stop_if_requested, uses_bf16
from videomaskfeat.engine.kernels import choose_run_kernels
from videomaskfeat.engine.lock import lock_for_all_ranks
from videomaskfeat.engine.log import log_pictures
from videomaskfeat.engine.loop import Training, TrainResult, count_steps, train
from videomaskfeat.engine.run_folder import RunFolder
from videomaskfeat.engine.sections import build_optimizer, build_schedule, build_weight_decay
from videomaskfeat.errors import RunFailed, UserError, counted
from videomaskfeat.texts import printable_name

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Outcome:
    """How a training ended.

    Attributes:
        folder: the run folder.
        finished: False if a signal stopped the run, which is saved and can be resumed.
        failures: number of unreadable inputs: replaced in training, or left out of the evaluation.
        summary: content of summary.json; empty unless the run has finished.
    """

    folder: Path
    finished: bool
    failures: int
    summary: Mapping[str, Any]


class BestWeights:
    """A file with the weights of the highest score so far; the first of equal scores wins.

    Args:
        path: path of the file.
        save: writes the model's present weights to a path; only rank 0 calls it.
    """

    def __init__(self, path: Path, save: Callable[[Path], None]) -> None:
        self.path, self.score = path, -1.0
        self._save = save

    def offer(self, score: float) -> None:
        """Save the present weights if their score is higher; all ranks must call it."""
        if score > self.score:
            self.score = score
            distributed.run_on_main(lambda: self._save(self.path))

    def state_dict(self) -> dict[str, Any]:
        """The highest score so far."""
        return {"score": self.score}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.score = state["score"]


class Extensions:
    """Extensions of a run by ``run.extend``.

    Attributes:
        rows: for each extension the epoch at which it began, and the length of the run before and after it.
    """

    def __init__(self) -> None:
        self.rows: list[tuple[float, float, float]] = []

    def state_dict(self) -> dict[str, Any]:
        """The rows."""
        return {"rows": list(self.rows)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.rows = [(float(epoch), float(before), float(after)) for epoch, before, after in state["rows"]]

    def lines(self) -> list[str]:
        """A line of the log per extension."""
        return [
            f"extended  from {before:g} to {after:g} epochs; all schedules follow the new length from epoch "
            f"{epoch:g} on"
            for epoch, before, after in self.rows
        ]


class Run(ABC):
    """One training, from its config to its summary.

    ``__init__`` of a job's class builds and checks everything, so that mistakes are reported before anything
    is written. It sets ``loader`` and ``counter`` and calls :meth:`set_model`. Then `run_training` calls on
    all ranks :meth:`prepare`, the loop with :meth:`step` and :meth:`evaluate`, and :meth:`finish`. On rank 0
    it also calls :meth:`plan` before the loop, and :meth:`conclude` after it.

    Attributes:
        kind: kind of the training in summary.json.
        unit: name of the samples.
        usual_steps: steps that small models usually need; 0: unknown.
        loader: training batches, a context manager with ``close()``.
        heldout: loader of the batches that `heldout_batches` yields, or None.
        counter: counts unreadable inputs: ``add(failures)``, which may end the run, and ``skipped_records``.
        evaluate_epochs: epochs between evaluations; 0: only at the end.
        evaluates: whether the loop evaluates.
        unreadable: failures of the final evaluation; None: not evaluated.
        best: weights with the highest score, if the job selects weights.
        load_report: report on the initial weights from ``model.weights``, if there are any.
        load_warning: warning to log with the report.
        kernels: the kernels with the reason for them.
        memory_note: the estimated memory of a step; empty if it was not estimated.
    """

    kind: ClassVar[str]
    unit: ClassVar[str] = "clips"
    usual_steps: ClassVar[int] = 0
    loader: Any
    heldout: Any = None
    counter: Any
    evaluate_epochs: float = 0.0
    evaluates: bool = False
    unreadable: Sequence[Any] | None = None
    best: BestWeights | None = None
    load_report: Any = None
    load_warning: str = ""
    kernels: str = ""
    memory_note: str = ""

    def __init__(self, config: Any, device: torch.device) -> None:
        self.config, self.device = config, device
        self.folder = RunFolder(config.run.folder, config)
        self.path = self.folder.path
        self.bf16 = uses_bf16(config.run.precision, device)
        if config.run.compile_mode != "default":
            from videomaskfeat.engine.compiling import check_compile_mode

            check_compile_mode(config, device, obstacle=self.graph_obstacle(config))
        self.extensions = Extensions()
        torch.manual_seed(config.run.seed)

    @classmethod
    def graph_obstacle(cls, config: Any) -> str:
        """What prevents CUDA graphs in this kind of training, for a message; empty: nothing."""
        return ""

    def set_model(self, model: nn.Module, *, followers: Sequence[nn.Module] = ()) -> None:
        """Set the model, which is on the CPU, and build optimizer, schedule and average.

        Args:
            model: the model.
            followers: networks on the device that follow its weights, such as teachers.
        """
        optim, average = self.config.optim, self.config.optim.ema_decay
        self.model, sharded = model, self._is_sharded()
        choice = choose_run_kernels(self.config, model, bf16=self.bf16, device=self.device)
        self.kernels = str(choice)
        self._set_run_keys(kernels=str(choice.kernels))
        if self.config.run.compile:
            from videomaskfeat.engine.compiling import compile_network

            compile_network(self.config.run, model, self._sharded_parts(model))
        if not sharded:
            self.network = distributed.parallel(model, self.device)
        self.ema = None if average is None else ExponentialMovingAverage(model.to(self.device), decay=average)
        self._networks = [model, *followers, *([] if self.ema is None else [self.ema.module])]
        if sharded:
            from videomaskfeat.engine.sharding import build_mesh, shard

            mesh = build_mesh(self.config.run.parallel, self.device)
            for network in self._networks:
                shard(network, mesh)
            self.network = model
        self.schedule, self.weight_decay = build_schedule(optim), build_weight_decay(optim)
        self.optimizer = build_optimizer(optim, model, base_lr=self.schedule.base_lr)

    def _is_sharded(self) -> bool:
        """Whether the weights are divided over the ranks; one rank has nothing to divide."""
        return self.config.run.parallel != "ddp" and distributed.world_size() > 1

    def _sharded_parts(self, model: nn.Module) -> list[nn.Module]:
        """The parts of the model that are sharded one by one."""
        if not self._is_sharded():
            return []
        from videomaskfeat.engine.sharding import blocks_of

        return blocks_of(model)

    def whole(self) -> AbstractContextManager[None]:
        """A context in which every rank has the whole model, its average and its followers.

        All ranks must enter it.
        """
        if not self._is_sharded():
            return nullcontext()
        from videomaskfeat.engine.sharding import whole

        return whole(*self._networks)

    def fit_memory(self, encoder: nn.Module, example: Sequence[torch.Tensor]) -> None:
        """Estimate the memory of a step, and recompute blocks of the encoder to fit ``run.memory_gb``.

        Without the key, the estimate is made on a GPU only, and a step that does not fit is warned of. Clips
        of a teacher, and other networks than the model, are not counted. Does nothing if weights are divided
        over the ranks.

        Args:
            encoder: part of the model with ``blocks``.
            example: arguments of the model for one sample.

        Raises:
            UserError: a step does not fit even if all blocks are recomputed.
        """
        if not hasattr(encoder, "blocks") or self._is_sharded():
            return
        from videomaskfeat.engine.memory import plan_memory

        self.memory_note, recomputed = plan_memory(
            self.config,
            self.model,
            list(cast(nn.ModuleList, encoder.blocks)),
            [x.to(self.device) for x in example],
            bf16=self.bf16,
        )
        encoder.recomputed_blocks = frozenset(recomputed)  # type: ignore[assignment]

    def _set_run_keys(self, **keys: Any) -> None:
        """Set keys that this run has chosen itself, so that the run folder has them."""
        self.config = replace(self.config, run=replace(self.config.run, **keys))
        self.folder = RunFolder(self.path, self.config)

    @abstractmethod
    def step(self, batch: Any) -> StepResult:
        """The result of a batch on the device."""

    @abstractmethod
    def plan(self) -> list[str]:
        """Lines on model and data for the log."""

    def _log_initial_weights(self) -> None:
        """Log which initial weights were loaded, and write weights_loaded.json."""
        if self.load_report is not None:
            self.folder.log(f"weights from {self.config.model.weights}\n{self.load_report.table()}")
            self.folder.write_json("weights_loaded.json", self.load_report.to_dict())
            if self.load_warning:
                self.folder.log(self.load_warning)

    def video_lists(self) -> list[Any]:
        """Lists whose videos ``data.cache=memory`` decodes."""
        return [loader.dataset.records for loader in (self.loader, self.heldout) if loader is not None]

    def prepare(self) -> None:  # noqa: B027
        """Measure the untrained model."""

    def evaluate(self) -> dict[str, float]:
        """Metrics of the present weights, the same on every rank."""
        return {}

    def evaluation_note(self, metrics: Mapping[str, float]) -> str:
        """What the log adds to the metrics of :meth:`evaluate`, such as the chance level."""
        return ""

    @property
    def state(self) -> Mapping[str, Stateful]:
        """State that a resumed run needs besides the model, by name."""
        return {} if self.best is None else {"best": self.best}

    @property
    def facts(self) -> Mapping[str, Any]:
        """Facts that a resumed run must share besides the config."""
        return {}

    def set_progress(self, progress: float) -> None:  # noqa: B027
        """Set schedules to the completed share of the run, 0..1, after a resume."""

    def before_step(self) -> None:  # noqa: B027
        """See ``before_step`` of `train`."""

    def compiled(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """A function of network and loss, compiled if the run is."""
        from videomaskfeat.engine.compiling import compile_function, compiled_mode

        return compile_function(function, compiled_mode(self.config.run))

    def after_step(self, progress: float, states: Sequence[Any]) -> Mapping[str, float | Tensor] | None:
        """See ``after_step`` of `train`."""
        return None

    def watch(self, figures: Mapping[str, float], progress: float) -> None:  # noqa: B027
        """See ``watch`` of `train`."""

    @abstractmethod
    def save(self, path: Path) -> None:
        """Write the model's present weights."""

    @abstractmethod
    def finish(self) -> dict[str, Any]:
        """Write the weights of the last step, evaluate, and return the results for the summary."""

    @abstractmethod
    def conclude(self, summary: Mapping[str, Any]) -> list[str]:
        """Draw pictures, and return the final lines of the log."""

    def averaged(self) -> AbstractContextManager[Any]:
        """A context in which the model has the weights to save: the averaged ones if there are any."""
        return nullcontext() if self.ema is None else self.ema.averaged(self.model)

    def save_last(self) -> None:
        """Write weights.safetensors; all ranks may call it."""
        with self.averaged():
            distributed.run_on_main(lambda: self.save(self.path / "weights.safetensors"))

    def measure_sets(self, choice: str, measure: Callable[[], dict[str, float]]) -> dict[str, float]:
        """Metrics of each chosen set of weights; the first metric of the first set decides which are best."""
        results: dict[str, float] = {}
        for number, (prefix, weights) in enumerate(weight_sets(choice, self.model, self.ema)):
            with weights:
                metrics = measure()
                results |= {f"{prefix}{name}": value for name, value in metrics.items()}
                if number == 0 and self.best is not None:
                    self.best.offer(next(iter(metrics.values())))
        return results

    def heldout_batches(self, samples: int) -> Iterator[Any]:
        """This rank's share of the first held-out samples, in batches on the device.

        The batches are the same in every call and for any number of ranks, which take turns. All ranks must
        read all of their batches; an error or a signal on one rank stops all.
        """
        rank, ranks = distributed.rank(), distributed.world_size()
        count = math.ceil(min(samples, len(self.heldout.dataset)) / self.heldout.batch_size)
        batches = self.heldout.epoch(0)
        for first in range(0, count, ranks):
            batch, error = None, None
            try:
                stop_if_requested()
                if first + rank < count:
                    batch = next(batches)
            except (UserError, RunFailed) as caught:  # raised on all ranks below
                error = caught
            distributed.raise_together(error)
            if batch is not None:
                yield batch.to(self.device)

    def train(self, *, environment: Callable[[Path], str], report: Callable[[Path], Path]) -> Outcome:
        """Run from start to end; all ranks must call it. For the arguments see `run_training`."""
        with ExitStack() as stack:
            for loader in (self.loader, self.heldout):
                if loader is not None:
                    stack.enter_context(loader)
            with self.whole():
                distributed.run_on_main(lambda: self._open(environment))
                self.prepare()
            result = self._loop()
            self.loader.close()  # frees memory for the final evaluation
            failures = result.progress.failures
            if result.status == "interrupted":
                logger.info("interrupted; saved as %s; the same command resumes from it", result.checkpoint)
                return Outcome(self.path, False, failures, {})
            stack.enter_context(self.whole())
            summary = {
                "kind": self.kind,
                "steps": result.progress.step,
                self.unit: result.progress.samples,
                "failures": failures,
                "seconds": result.progress.seconds,
                "checkpoint": str(result.checkpoint),
                "weights": str(self.path / "weights.safetensors"),
                **self._origin(),
                **self.finish(),
            }
            distributed.run_on_main(lambda: self._close(summary, report))
        return Outcome(self.path, True, failures + len(self.unreadable or ()), summary)

    def _origin(self) -> dict[str, Any]:
        """Facts for the summary on initial weights and extensions."""
        facts: dict[str, Any] = {}
        if self.load_report is not None:
            kinds = ("loaded", "resized", "inflated", "new", "unused")
            counts = {kind: len(getattr(self.load_report, kind)) for kind in kinds}
            facts["initial_weights"] = {"file": self.config.model.weights, **counts}
        if self.extensions.rows:
            names = ("epoch", "epochs_before", "epochs")
            facts["extensions"] = [dict(zip(names, row, strict=True)) for row in self.extensions.rows]
        return facts

    def _resumed(self, fingerprint: Mapping[str, Any], epoch: float, progress: float) -> None:
        """Record an extension, and set the schedules; see ``on_resume`` of `train`."""
        length = self.config.optim.epochs
        before = fingerprint.get(LENGTH_KEY, length)
        if before != length:
            self.extensions.rows.append((epoch, float(before), float(length)))
        if self.extensions.rows and distributed.is_main():
            self.folder.log("\n".join(self.extensions.lines()))
        self.set_progress(progress)

    def _open(self, environment: Callable[[Path], str]) -> None:
        self.folder.open(lambda: environment(self.path))
        self.folder.log("\n".join([*self.plan(), *self.plan_of_training()]))
        self._log_initial_weights()

    def _close(self, summary: Mapping[str, Any], report: Callable[[Path], Path]) -> None:
        self.folder.write_json("summary.json", summary)
        if self.unreadable is not None:
            self.folder.write_failures("heldout_failures.jsonl", self.unreadable)
        lines = self.conclude(summary)
        log_pictures(self.config.run.loggers, self.path, summary["steps"])
        lines += [f"checkpoint  {summary['checkpoint']}", f"weights     {summary['weights']}"]
        self.folder.log("\n".join([*lines, f"report      {report(self.path)}"]))

    def _loop(self) -> TrainResult:
        self.loader.skipped_records = self.counter.skipped_records
        return train(
            Training(
                model=self.network,
                step=self.step,
                loader=self.loader,
                optimizer=self.optimizer,
                learning_rate=self.schedule,
                weight_decay=self.weight_decay,
                folder=self.path,
                device=self.device,
                options=self._options(),
                ema=self.ema,
                fingerprint={**self.folder.fingerprint, **self.facts},
                upgrade_fingerprint=self.folder.upgrade_fingerprint,
                evaluate=self._evaluate_whole if self.evaluates else None,
                on_failures=self._count_failures,
                name_of=lambda index: printable_name(self.loader.dataset.records[index].path),
                before_step=self.before_step,
                after_step=self.after_step,
                watch=self.watch,
                on_resume=self._resumed,
                extra={"failures": self.counter, "extensions": self.extensions, **self.state},
            )
        )

    def _evaluate_whole(self) -> dict[str, float]:
        with self.whole():
            return self.evaluate()

    def _count_failures(self, failures: Sequence[Any]) -> None:
        """Count failures, and list them in failures.jsonl even if the counter ends the run."""
        try:
            self.counter.add(failures)
        finally:
            if distributed.is_main():  # the whole file, so that steps repeated after a resume add nothing
                self.folder.write_failures("failures.jsonl", self.counter.failures.values())

    @property
    def _steps_per_epoch(self) -> int:
        return self.loader.batches_per_epoch // self.config.optim.accumulate

    @property
    def total_steps(self) -> int:
        """Optimizer steps of the whole run, at least 1."""
        return count_steps(self.config.optim.epochs, self._steps_per_epoch)

    def _options(self) -> LoopOptions:
        """Options of the loop, which counts steps where the config counts epochs."""
        optim, run = self.config.optim, self.config.run
        return LoopOptions(
            epochs=optim.epochs,
            accumulate=optim.accumulate,
            clip_norm=optim.gradient_clip,
            clip_norm_each=getattr(optim, "gradient_clip_each", None),
            precision="bf16" if self.bf16 else "fp32",
            seed=run.seed,
            save_minutes=run.checkpoint_minutes,
            keep_last=run.keep_checkpoints,
            milestone_every=round(run.checkpoint_epochs * self._steps_per_epoch),
            evaluate_every=round(self.evaluate_epochs * self._steps_per_epoch),
            unit=self.unit,
            loggers=tuple(run.loggers),
            check_lag=int(self.device.type == "cuda"),
            step_seconds=60 * run.step_timeout_minutes,
            evaluation_note=self.evaluation_note,
        )

    def plan_of_training(self) -> list[str]:
        """Lines on batch, schedule, device and folder."""
        optim, run = self.config.optim, self.config.run
        ranks = distributed.world_size()
        micro = optim.batch_size // ranks // optim.accumulate
        scale = optim.batch_size / optim.base_batch_size
        dataset = self.loader.dataset
        rest = len(dataset) - self._steps_per_epoch * optim.batch_size // dataset.samples_per_video
        left_out = f" (each leaves out {rest} of {len(dataset)} {dataset.unit}s)" if rest else ""
        steps = f", x {optim.step_factor:g} at epochs {list(optim.step_epochs)}"
        return [
            f"batch     {optim.batch_size} {self.unit} per step: {ranks} process{'es' * (ranks > 1)} x "
            f"{optim.accumulate} micro-batch{'es' * (optim.accumulate > 1)} of {micro}",
            f"plan      {optim.epochs:g} epochs of {counted(self._steps_per_epoch, 'step')}{left_out}, "
            f"warm-up {optim.warmup_epochs:g} epochs; learning rate {optim.learning_rate * scale:.3g} = "
            f"{optim.learning_rate:g} x {optim.batch_size} / {optim.base_batch_size} {self.unit}"
            f"{steps if optim.schedule == 'steps' else ''}",
            f"device    {self.device}, {'bf16 autocast' if self.bf16 else 'fp32'}, "
            f"{counted(torch.get_num_threads(), 'thread')}"
            f"{f', compiled ({run.compile_mode})' if run.compile else ''}",
            f"kernels   {self.kernels}",
            *([f"memory    {self.memory_note}"] if self.memory_note else []),
            f"run       {run.folder}",
        ]


def run_training(
    build: Callable[[Any, torch.device], Run],
    config: Any,
    *,
    environment: Callable[[Path], str],
    report: Callable[[Path], Path],
) -> Outcome:
    """Train; a run folder with a checkpoint is resumed.

    Args:
        build: the job's class of `Run`.
        config: config of the training.
        environment: run folder -> text of environment.json.
        report: run folder -> path of the report that it writes there.

    Raises:
        UserError: the config, the inputs, the weights or the run folder are wrong.
        RunFailed: the loss is not finite, or nothing can be saved.
    """
    from videomaskfeat.engine.memory import explained_out_of_memory

    check_config(config)
    device = distributed.choose_device(config.run.device)
    with (
        explained_out_of_memory(config, device),
        distributed.process_group(
            device,
            timeout_seconds=60 * config.run.rank_timeout_minutes,
            join_seconds=60 * config.run.join_timeout_minutes,
        ),
        # Before anything is built or measured, to refuse a second process at once.
        lock_for_all_ranks(config.run.folder, remedy="choose another run.folder"),
    ):
        if device.type == "cpu":
            from videomaskfeat.engine.threads import with_threads

            config = with_threads(config, lambda: build(config, device))
        return build(config, device).train(environment=environment, report=report)
