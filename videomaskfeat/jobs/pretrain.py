"""``pretrain``: trains an encoder, with held-out loss, feature probe, pictures and report."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from videomaskfeat.data.formats import check_lists
from videomaskfeat.data.loader import FailureCounter
from videomaskfeat.engine import distributed
from videomaskfeat.engine.contracts import Stateful, StepResult
from videomaskfeat.engine.run import Outcome, Run, run_training
from videomaskfeat.methods.build import build_method, heldout_loader, training_loader
from videomaskfeat.methods.method import HeldOutLoss
from videomaskfeat.models.cost import multiply_adds
from videomaskfeat.models.saving import save_model
from videomaskfeat.recipe import METADATA_KEY
from videomaskfeat.schemas.pretrain import PretrainConfig, ProbeConfig
from videomaskfeat.targets.target import margin

if TYPE_CHECKING:
    from videomaskfeat.inference.probe import FeatureProbe

logger = logging.getLogger(__name__)
_USUAL_STEPS = 1800  # after which small models were below the constant, see docs/design.md
_MEMORIZED = 0.95  # times the constant; a lower training loss, without a low held-out loss, is overfitting


def pretrain(config: PretrainConfig) -> Outcome:
    """Pre-train; a run folder with a checkpoint is resumed.

    Raises:
        UserError: the config, the lists, the videos or the run folder are wrong.
        RunFailed: the loss is not finite, or a checkpoint cannot be saved.
    """
    from videomaskfeat.environment import environment_text
    from videomaskfeat.viz.report import write_report

    return run_training(PretrainRun, config, environment=environment_text, report=write_report)


class PretrainRun(Run):
    """A method's student, its held-out loss, and the probe of its features."""

    kind = "pretrain"
    usual_steps = 900  # of configs/pretrain/small_cpu.yaml on 28 videos

    def __init__(self, config: PretrainConfig, device: torch.device) -> None:
        super().__init__(config, device)
        warning = check_lists(config.data.train, config.data.validation)
        if warning and distributed.is_main():
            logger.warning(warning)
        self.method = build_method(config)
        if config.model.weights:
            from videomaskfeat.models.loading import load_student
            from videomaskfeat.stored_recipe import compare_levels

            self.load_report = load_student(self.method.student, self.method.encoder, config.model)
            self.load_warning = compare_levels(
                config.model.weights, self.method.recipe.clip, self.load_report.normalization
            )
            self.method.follow_loaded_weights()
        self.loader = training_loader(config, self.method)
        self._method_lines = self.method.set_length(self.total_steps)
        self.heldout = heldout_loader(config, self.method)
        self.counter = FailureCounter(len(self.loader.dataset), share=config.data.failure_share)
        self.method.to(device)
        self.set_model(self.method.student, followers=self.method.followers)
        self.fit_memory(self.method.encoder, self.method.example)
        self.probe = self._build_probe() if has_probe(config.probe) else None
        self.evaluate_epochs = config.run.evaluate_epochs
        self.evaluates = bool((self.heldout or self.probe) and config.run.evaluate_epochs)

    def _build_probe(self) -> FeatureProbe:
        from videomaskfeat.inference.probe import FeatureProbe

        config, clip = self.config, self.method.recipe.clip
        return FeatureProbe(config.probe, config.data, clip, device=self.device, bf16=self.bf16)

    def plan(self) -> list[str]:
        config, clip, records = self.config, self.config.clip, self.loader.dataset.records
        encoder: Any = self.method.encoder
        size = (1, 3, *self.method.recipe.clip.size)
        tokens, output = encoder.token_grid(size), encoder.output_grid(size)
        parameters = sum(parameter.numel() for parameter in self.model.parameters())
        lines = [
            f"model     {config.model.name}: {parameters / 1e6:.2f} M parameters, "
            f"{multiply_adds(self.model, self.method.example) / 1e9:.1f} G multiply-adds per clip",
            f"clip      {clip.frames} frames x stride {clip.stride}, {size[3]}x{size[4]} pixels: "
            f"{tokens} = {tokens.size} tokens, predictions on {output}",
            f"target    {self.method.description}",
            *self._method_lines,
        ]
        if encoder.initialization != "slowfast":
            lines.insert(1, f"weights   initial values as in the published code of {encoder.initialization}")
        sections = {name: getattr(config, name) for name in self.method.unused}
        unused = [name for name, section in sections.items() if section != type(section)()]
        if unused:
            lines.append(f"ignored   {', '.join(unused)}: method {config.method.name} does not use it")
        return [*lines, f"data      {records.source}: {len(records)} videos"]

    def step(self, batch: Any) -> StepResult:
        return self.method.loss(self.network, batch)

    def set_progress(self, progress: float) -> None:
        self.method.set_progress(progress)

    @classmethod
    def graph_obstacle(cls, config: PretrainConfig) -> str:
        name = config.method.name
        return "" if name == "masked" else f"method.name={name} has been used without CUDA graphs only"

    def before_step(self) -> None:
        """Let the method freeze weights."""
        self.method.before_step()

    def after_step(self, progress: float, states: Sequence[Any]) -> Mapping[str, float | Tensor]:
        return self.method.after_step(progress, states)

    def watch(self, figures: Mapping[str, float], progress: float) -> None:
        self.method.watch(figures, progress)

    @property
    def state(self) -> Mapping[str, Stateful]:
        return self.method.state

    @property
    def facts(self) -> Mapping[str, Any]:
        """The facts of the method, and the initial weights if they are not PySlowFast's."""
        initialization = getattr(self.method.encoder, "initialization", "slowfast")
        # Not the key itself, which is free: a resumed run would ignore it.
        initial = {} if initialization == "slowfast" else {"model.initialization in effect": initialization}
        return {**self.method.fingerprint, **initial}

    def video_lists(self) -> list[Any]:
        return [*super().video_lists(), *([] if self.probe is None else self.probe.lists)]

    def prepare(self) -> None:
        if self.config.data.cache != "none":
            from videomaskfeat.inference.multiview import hold_videos

            memory = hold_videos(self)
            if self.probe is not None:
                self.probe.memory = memory
        self.untrained = self.heldout_loss()
        self.probed = {f"{name}_untrained": value for name, value in self.probe_features().items()}

    def evaluate(self) -> dict[str, float]:
        """Probe and held-out loss of the weights that would be saved now."""
        with self.averaged():
            results, loss = self.probe_features(), self.heldout_loss()
        if loss is not None:
            results |= {"heldout_loss": loss.model}
            if loss.constant is not None:
                results |= {"heldout_constant": loss.constant}
        return results

    def probe_features(self) -> dict[str, float]:
        """Accuracies of the features; empty without a probe."""
        return {} if self.probe is None else self.probe(self.method.weights()["weights.safetensors"])

    def heldout_loss(self) -> HeldOutLoss | None:
        """The held-out loss, computed on all ranks; None without a held-out list."""
        if self.heldout is None:
            return None
        autocast = torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.bf16)
        batches = self.heldout_batches(self.config.run.evaluate_clips)
        return self.method.heldout_loss(self.model, batches, autocast=autocast)

    def save(self, path: Path) -> None:
        for name, model in self.method.weights().items():
            metadata = {METADATA_KEY: self.method.recipe.to_json()}
            save_model(model, path.parent / name, metadata=metadata)

    def finish(self) -> dict[str, Any]:
        """Write the final weights, which are averaged if there is an average, and evaluate them."""
        if self.ema is not None:
            self.model.load_state_dict(self.ema.state_dict())
        distributed.run_on_main(lambda: self.save(self.path / "weights.safetensors"))
        summary: dict[str, Any] = {**self.probed, **self.probe_features()}
        if self.probe is not None:
            summary |= self.probe.facts()
        before, after = self.untrained, self.heldout_loss()
        if before is not None and after is not None:
            summary |= {
                "heldout_clips": after.clips,
                "heldout_measure": self.method.loss_name,
                "heldout_constant": after.constant,
                "heldout_untrained": before.model if self.method.fixed_target else None,
                "heldout_trained": after.model,
            }
        from videomaskfeat.inference.drawing import explain_undrawable

        reason = explain_undrawable(self.method.recipe)
        return summary if reason is None else {**summary, "not_drawn": reason}

    def conclude(self, summary: Mapping[str, Any]) -> list[str]:
        from videomaskfeat.inference.drawing import draw_videos
        from videomaskfeat.viz.report import read_run

        records = (self.heldout or self.loader).dataset.records
        videos = [records[index].path for index in range(min(self.config.run.pictures, len(records)))]
        if videos and "not_drawn" not in summary:
            pictures = draw_videos(
                self.model,
                videos,
                self.path / "pictures",
                recipe=self.method.recipe,
                reader=self.config.data.reader,
                workers=min(self.config.data.workers, 1),
            )
            for failure in pictures.failures:
                logger.warning("not drawn: %s", failure)
        return final_lines(summary, read_run(self.path).metrics)


def has_probe(config: ProbeConfig) -> bool:
    """Whether features are measured during the training."""
    return bool(config.train or config.test or config.factors)


def _advice(summary: Mapping[str, Any], metrics: Mapping[str, np.ndarray]) -> str:
    """What to try after a run that ends above the best constant prediction."""
    steps, losses = int(summary.get("steps", 0)), metrics.get("loss", np.empty(0))
    latest = float(losses[-max(len(losses) // 10, 1) :].mean()) if len(losses) else math.inf
    if latest < _MEMORIZED * summary["heldout_constant"]:
        heldout = metrics.get("evaluation/heldout_loss", np.empty(0))
        lowest = ""
        if np.isfinite(heldout).any():
            best = int(np.nanargmin(heldout))
            lowest = f" (lowest held-out loss: {heldout[best]:.5f} at step {int(metrics['step'][best])})"
        remedy = (
            f"the training loss {latest:.5f} is not, so the encoder memorizes its videos: use more videos, "
            f"smaller crops (clip.crop_area=[0.1,1.0]), or fewer optim.epochs{lowest}"
        )
    elif steps < _USUAL_STEPS:
        remedy = (
            f"train longer: small models usually need {PretrainRun.usual_steps} to {_USUAL_STEPS} steps, and "
            f"this run had {steps} (run.extend=true with a larger optim.epochs continues it)"
        )
    else:
        remedy = (
            f"after {steps} steps try half of optim.learning_rate, a lower mask.ratio, or more videos; a "
            "training loss far below the held-out loss means too few videos"
        )
    return f"advice      worse than a constant: {remedy}"


def final_lines(summary: Mapping[str, Any], metrics: Mapping[str, np.ndarray] = {}) -> list[str]:
    """The final lines of the log on loss and features, from the summary and the metrics of all steps."""
    from videomaskfeat.viz.evaluation import accuracy_text

    lines = []
    if "heldout_trained" in summary:
        constant, trained = summary["heldout_constant"], summary["heldout_trained"]
        measure = summary.get("heldout_measure", "mean squared error at hidden positions")
        lines.append(f"loss on {summary['heldout_clips']} held-out clips ({measure})")
        comparison = ""
        if constant is None:
            lines.append("  best constant prediction  unknown for this loss")
        else:
            difference = margin(trained, constant)
            comparison = "   (the targets are constant: no prediction can be better)"
            if difference:
                comparison = f"   ({difference[0]:.1f} % {difference[1]} the constant)"
            lines.append(f"  best constant prediction  {constant:.5f}")
        if summary["heldout_untrained"] is not None:
            name = "initial weights" if "initial_weights" in summary else "untrained model"
            lines.append(f"  {name}           {summary['heldout_untrained']:.5f}")
        lines.append(f"  trained model             {trained:.5f}{comparison}")
        if constant is not None and trained > constant:
            lines.append(_advice(summary, metrics))
    ends = [key.removeprefix("probe_classes") for key in summary if key.startswith("probe_classes")]
    for end in ends:
        videos = f"{summary[f'probe_videos{end}']} videos of {summary[f'probe_classes{end}']} classes"
        factor = f", {end[1:]}" if end else ""
        lines.append(f"frozen features{factor}, top-1 on {videos} (before training)")
        counts = summary[f"probe_videos{end}"], summary[f"probe_classes{end}"]
        lines += [
            f"  {name}  {accuracy_text(summary[key + end], *counts)}   "
            f"({summary[f'{key}{end}_untrained']:.1f} %)"
            for name, key in (("k-NN        ", "knn_top1"), ("linear probe", "linear_top1"))
        ]
    return [*lines, f"no pictures: {summary['not_drawn']}"] if "not_drawn" in summary else lines
