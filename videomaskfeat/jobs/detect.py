"""``detect-train``: trains a detector of actions and measures its frame mAP."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from videomaskfeat.ava import AVA_ACTIONS, read_action_kinds, read_label_map
from videomaskfeat.data.augment import Augmentation
from videomaskfeat.data.ava import ActionBatch, ActionClips
from videomaskfeat.data.ava_lists import KeyFrames, training_key_frames
from videomaskfeat.data.loader import ClipLoader, FailureCounter
from videomaskfeat.data.operations import ColorJitter
from videomaskfeat.data.transforms import ShortSideJitterCrop
from videomaskfeat.engine import distributed
from videomaskfeat.engine.average import check_weight_sets
from videomaskfeat.engine.contracts import StepResult
from videomaskfeat.engine.run import BestWeights, Outcome, Run, run_training
from videomaskfeat.engine.sections import loader_options
from videomaskfeat.environment import environment_text
from videomaskfeat.errors import UserError
from videomaskfeat.inference.ava_scores import ScoredFiles, write_key_frame_score
from videomaskfeat.inference.clip_settings import describe_inherited
from videomaskfeat.inference.detectors import BoxScores, VideoDetector, score_in_memory, score_key_frames
from videomaskfeat.inference.key_frames import (
    EvaluationFrames,
    IgnoredBoxes,
    VideoLocations,
    describe_key_frames,
    format_failures,
    read_key_frames,
)
from videomaskfeat.inference.multiview import Machine
from videomaskfeat.inference.results import describe_detection, describe_weights
from videomaskfeat.losses.labels import binary_cross_entropy, pose_cross_entropy
from videomaskfeat.models import create_model_from
from videomaskfeat.models.cost import describe_parameters, multiply_adds
from videomaskfeat.models.detector import Detector
from videomaskfeat.models.load_report import LoadReport
from videomaskfeat.models.loading import load_into, load_pretrained
from videomaskfeat.models.lora import add_lora, merge_lora, read_lora
from videomaskfeat.models.saving import save_model
from videomaskfeat.models.weights import read_state
from videomaskfeat.models.zoo import DETECTOR, MODELS, named_model, with_default_head
from videomaskfeat.recipe import ClipRecipe, normalize
from videomaskfeat.schemas.detect import DetectConfig
from videomaskfeat.stored_recipe import DETECT_KEY, DetectRecipe, compare_levels, recipe_texts
from videomaskfeat.viz.evaluation import chance_advice
from videomaskfeat.viz.report import write_report

AVA_POSES = tuple(range(1, 15))
_POSE_KIND = "PERSON_MOVEMENT"  # label_type of AVA's poses
ActionLoss = Callable[[Tensor, Tensor], Tensor]
"""(logits float [R, L], labels bool [R, L]) -> scalar"""


def detect_train(config: DetectConfig) -> Outcome:
    """Train a detector; a run folder with a checkpoint is resumed.

    Raises:
        UserError: the config, the files, the videos, the weights or the run folder are wrong.
        RunFailed: the loss is not finite, or a checkpoint cannot be saved.
    """
    check_weight_sets(config.evaluate.weights, averaged=config.optim.ema_decay is not None)
    return run_training(DetectRun, config, environment=environment_text, report=write_report)


class DetectRun(Run):
    """A detector, evaluated on some key frames during training, and on all at the end."""

    kind = "detect"
    best: BestWeights

    def __init__(self, config: DetectConfig, device: torch.device) -> None:
        super().__init__(config, device)
        self.lists = read_lists(config)
        self.recipe = build_recipe(config, self.lists)
        self.loss = build_loss(config, self.lists, device)
        model, self.load_report = build_detector(config, self.lists.classes)
        self.lora = read_lora(config.model.lora, weights=config.model.weights)
        if self.lora is not None:
            add_lora(model, **vars(self.lora))
        if self.load_report is not None:
            self.load_warning = compare_levels(
                config.model.weights, self.recipe.clip, self.load_report.normalization
            )
        self.loader = training_loader(config, self.lists.train)
        self.counter = FailureCounter(
            len(self.loader.dataset),
            share=config.data.failure_share,
            unit=self.loader.dataset.unit,
            remedy="check the folder of the videos, or list these key frames in data.train_exclusions",
        )
        self.files = ScoredFiles(
            config.data.validation,
            config.data.label_map,
            config.data.validation_exclusions,
            tuple(config.data.validation_boxes),
        )
        self.machine = Machine(str(device), "bf16" if self.bf16 else "fp32", workers=config.data.workers)
        self.evaluates, self.evaluate_epochs = self.lists.tested is not None, config.evaluate.epochs
        if self.lists.tested is not None:  # reports mistakes before the training
            assert self.lists.truth is not None
            self.sources = video_locations(config).find_videos(self.lists.truth, self.lists.tested)
            self.validated = self.select_seconds(self.lists.tested, self.lists.truth)
        self.set_model(model)
        self.compare = self.compiled(self.detect)
        self.best = BestWeights(self.path / "best.safetensors", self.save)

    @classmethod
    def graph_obstacle(cls, config: Any) -> str:
        return "each step has another number of boxes, and a CUDA graph has fixed shapes"

    def plan(self) -> list[str]:
        config, clip, lists, model = self.config, self.config.clip, self.lists, self.model
        size = (1, 3, *self.recipe.clip.size)
        inputs = (torch.zeros(size), torch.tensor([[0.0, 0.0, 0.0, size[4], size[3]]]))
        how = f"adapters of rank {self.lora.rank} and the head" if self.lora else ""
        tokens, maps = model.token_grid(size), model.output_grid(size)  # type: ignore[operator]
        tested = "" if lists.tested is None else f", {len(lists.tested)} held out"
        return [
            f"model     {config.model.name}: {describe_parameters(model, how)}, "
            f"{multiply_adds(model, inputs) / 1e9:.1f} G multiply-adds per clip with one box",
            f"clip      {clip.frames} frames x stride {clip.stride}, {size[3]}x{size[4]} pixels: "
            f"{tokens} = {tokens.size} tokens, boxes are cut from maps of {maps}",
            *describe_inherited(config.model.weights, self.recipe.clip),
            f"data      {self.loader.dataset.records.source}: {len(self.loader.dataset)} key frames with "
            f"{len(lists.train.boxes)} boxes{tested}, {lists.classes} actions",
        ]

    def step(self, batch: ActionBatch) -> StepResult:
        """Loss of a batch, and the mean number of ``boxes`` per rank.

        All boxes have the same weight: gradients are averaged over ranks, so the loss of each rank is scaled
        by its share of the boxes. For a softmax over poses, a mean over the boxes with a pose, this is an
        approximation. Micro-batches of one rank have the same weight.
        """
        clips = normalize(batch.clips, mean=self.recipe.clip.mean, std=self.recipe.clip.std)
        loss = self.compare(clips, batch.boxes, batch.labels)
        own = torch.full((), float(len(batch.boxes)), device=loss.device)
        mean = distributed.mean_over_ranks(own)
        return StepResult(loss * (own / mean.clamp(min=1e-6)), {"boxes": mean})

    def detect(self, clips: Tensor, boxes: Tensor, labels: Tensor) -> Tensor:
        """Clips float [B, C, T, H, W], boxes [R, 5], labels bool [R, L] -> loss float32 []."""
        return self.loss(self.network(clips, boxes), labels)

    def select_seconds(self, tested: KeyFrames, truth: KeyFrames) -> tuple[KeyFrames, KeyFrames]:
        """The key frames that are scored during training, and their ground truth.

        Raises:
            UserError: the ground truth has no action to score.
        """
        every = self.config.evaluate.every_seconds
        if every > 1:
            tested, truth = (frames.select(frames.seconds % every == 0) for frames in (tested, truth))
        if not truth.labels[:, [number - 1 for number in self.lists.actions]].any():
            which = f" at each {every}-th second" if every > 1 else ""
            raise UserError(
                f"{self.config.data.validation}: none of its boxes{which} has an action that "
                f"{self.config.data.label_map} lists, so there is nothing to score; use files of one "
                "version" + (", or a smaller evaluate.every_seconds" if every > 1 else "")
            )
        return tested, truth

    def evaluate(self) -> dict[str, float]:
        """Frame mAP of one view of some key frames."""
        tested, truth = self.validated

        def measure() -> dict[str, float]:
            scores = self.score(tested)
            return {"mean_ap": score_in_memory(truth, tested, scores, self.lists.actions).mean_ap}

        return self.measure_sets(self.config.evaluate.weights, measure)

    def score(self, key_frames: KeyFrames, *, scales: Sequence[int] = (), flip: bool = False) -> BoxScores:
        """The scores of all boxes with the present weights."""
        detector = VideoDetector(self.model, self.recipe, self.machine)
        scores = score_key_frames(detector, key_frames, self.sources, scales=scales, flip=flip)
        self.unreadable = scores.failures
        return scores

    def save(self, path: Path) -> None:
        save_model(self.model, path, metadata={DETECT_KEY: self.recipe.to_json()})

    def finish(self) -> dict[str, Any]:
        """Evaluate the best weights with all views of all held-out key frames, into the folder ``score``."""
        self.save_last()
        if self.lists.tested is None:
            return {}
        if self.lora is not None:
            merge_lora(self.model)
        load_into(self.model, read_state(self.best.path), source=str(self.best.path))
        evaluate = self.config.evaluate
        scores = self.score(self.lists.tested, scales=evaluate.scales, flip=evaluate.flip)
        means, self.final_lines = distributed.run_on_main(lambda: self.write_score(scores))
        return {
            "best_weights": str(self.best.path),
            "validation_best_mean_ap": self.best.score,
            **means,
            "key_frames": scores.read,
            "listed": scores.listed,
            "area": self.recipe.area,
        }

    def write_score(self, scores: BoxScores) -> tuple[dict[str, Any], list[str]]:
        """Write the folder ``score``; return its mAP, chance level and interval, and the final log lines."""
        tested, truth = self.lists.tested, self.lists.truth
        assert tested is not None
        assert truth is not None
        frames = EvaluationFrames(truth, tested, self.lists.other)
        name, _ = self.model.created_as  # type: ignore[misc]
        about = {
            "title": f"{self.path.name} on {Path(self.files.groundtruth).name}",
            "model": name,
            **describe_weights(self.best.path),
            "seen": describe_detection(
                self.recipe,
                detected=bool(self.files.boxes),
                scales=self.config.evaluate.scales,
                flip=self.config.evaluate.flip,
                precision=self.machine.precision_used,
            ),
        }
        scored = write_key_frame_score(self.path / "score", self.files, frames, scores, about)
        lines = [
            scored.text(self.path / "score"),
            *describe_key_frames(frames, scores, self.recipe),
            f"best        {self.best.path}   (mAP {self.best.score:.4f} in validation)",
            *(f"unreadable, left out: {line}" for line in format_failures(scores.failures)),
        ]
        facts = {"chance": scored.chance, "interval": scored.interval}
        means = {f"mean_ap_{name}": value for name, value in facts.items() if value is not None}
        return {"mean_ap": scored.result.mean_ap, **means}, lines

    def conclude(self, summary: Mapping[str, Any]) -> list[str]:
        if "mean_ap" not in summary:
            return []
        low = (summary.get("mean_ap_interval") or [summary["mean_ap"]])[0]
        return [*self.final_lines, *chance_advice(summary, summary.get("mean_ap_chance") or 0.0, low)]


@dataclass(frozen=True)
class ActionLists:
    """Key frames of a run and their actions.

    Attributes:
        train: training key frames.
        tested: held-out key frames with a detector's boxes or those of the ground truth; None: no validation.
        truth: ground truth of the held-out key frames; None: no validation.
        other: detected boxes that are left out of the validation.
        actions: id -> name of the scored actions.
        classes: L, the largest possible id; ids start at 1.
        poses: ids of mutually exclusive actions; empty if the loss does not use them.
    """

    train: KeyFrames
    tested: KeyFrames | None
    truth: KeyFrames | None
    other: IgnoredBoxes
    actions: dict[int, str]
    classes: int
    poses: tuple[int, ...]


def read_lists(config: DetectConfig) -> ActionLists:
    """Read the files and determine the number of actions.

    Raises:
        UserError: a file is missing or wrong, or an action is out of range.
    """
    data, boxes = config.data, config.boxes
    actions = read_label_map(data.label_map)
    classes = count_classes(data.classes, actions, data.label_map)
    train = training_key_frames(
        [data.train],
        data.train_boxes,
        classes=classes,
        score_threshold=boxes.train_score,
        iou_threshold=boxes.train_iou,
        exclusions=[data.train_exclusions] if data.train_exclusions else [],
    )
    tested = truth = None
    other = IgnoredBoxes()
    if data.validation:
        truth, tested, other = read_key_frames(
            data.validation,
            data.validation_boxes,
            data.validation_exclusions,
            classes=classes,
            score_threshold=boxes.score,
        )
    poses = _poses(config, classes)
    return ActionLists(train, tested, truth, other, actions, classes, poses)


def count_classes(classes: int, actions: Mapping[int, str], label_map: str) -> int:
    """The number of actions: ``data.classes``, or the largest id in the label map if that is 0.

    Raises:
        UserError: the label map has a larger id.
    """
    largest = max(actions)
    if classes and classes < largest:
        raise UserError(
            f"{label_map}: lists the action {largest} ({actions[largest]}), but data.classes is {classes}; "
            f"leave data.classes out, or set it to {largest} or more"
        )
    return classes or largest


def _poses(config: DetectConfig, classes: int) -> tuple[int, ...]:
    """The ids of the poses if the loss uses them."""
    loss = config.loss
    if loss.name != "poses":
        return ()
    kinds = read_action_kinds(config.data.label_map)
    poses = tuple(loss.poses) or tuple(number for number, kind in kinds.items() if kind == _POSE_KIND)
    if not poses and classes == AVA_ACTIONS:
        poses = AVA_POSES
    if len(poses) < 2:
        raise UserError(
            f"loss.name=poses needs the ids of two poses or more, and {config.data.label_map} has no "
            f"label_type {_POSE_KIND}: set loss.poses, such as loss.poses=[1,2,3]"
        )
    wrong = [number for number in poses if not 1 <= number <= classes]
    if wrong:
        raise UserError(f"loss.poses contains {wrong[0]}; ids of actions are 1 to {classes}")
    return poses


def build_recipe(config: DetectConfig, lists: ActionLists) -> DetectRecipe:
    """Clips, frames and actions, for the weights file."""
    evaluate, clip = config.evaluate, ClipRecipe.of(config.clip)
    if not isinstance(clip.crop, int):
        raise UserError(
            f"clip.crop {list(clip.crop)}: detection trains on square crops of the frame; set one number "
            "(whole frames are used at test time)"
        )
    return DetectRecipe(
        clip=clip,
        actions=lists.actions,
        classes=lists.classes,
        poses=lists.poses,
        short_side=evaluate.short_side,
        area=evaluate.area,
        score_threshold=config.boxes.score,
    )


def build_detector(config: DetectConfig, classes: int) -> tuple[Detector, LoadReport | None]:
    """The named model with its initial weights, and the report on them (None without ``model.weights``).

    The last layer of this framework's classifiers is not loaded, since its classes are other ones.

    Raises:
        UserError: the name or an argument is unknown, the model is no detector, or the weights do not fit.
    """
    clip, keys = config.clip, config.model
    full_name = with_default_head(keys.name, "detector")
    if not issubclass(named_model(full_name).build, Detector):
        known = [name for name, named in MODELS.items() if named.classes[0] == DETECTOR]
        raise UserError(
            f"model.name {keys.name!r} is not a detector of actions; use one of {', '.join(known)}"
        )
    arguments: dict[str, Any] = {
        "clip_size": ClipRecipe.of(clip).size,
        "classes": classes,
        "drop_path": keys.drop_path,
        "dropout": keys.dropout,
        "head_scale": keys.head_scale,
        "checkpoint_blocks": config.run.activation_checkpointing,
    }
    model = create_model_from(full_name, {**arguments, **keys.arguments})
    assert isinstance(model, Detector)
    if not keys.weights:
        return model, None
    # The last layer of another framework's file is loaded if it fits.
    of_actions = not keys.weights.endswith(".safetensors") or DETECT_KEY in recipe_texts(keys.weights)
    return model, load_pretrained(model, keys, leave_out=() if of_actions else ("head.*",))


def build_loss(config: DetectConfig, lists: ActionLists, device: torch.device) -> ActionLoss:
    """The loss with its class weights."""
    loss = config.loss
    weights = class_weights(lists.train.labels, power=loss.balance).to(device) if loss.balance else None
    if loss.name == "poses":
        poses = torch.tensor([number - 1 for number in sorted(set(lists.poses))], device=device)
        return partial(pose_cross_entropy, poses=poses, focusing=loss.focusing, class_weights=weights)
    return partial(binary_cross_entropy, focusing=loss.focusing, class_weights=weights)


def class_weights(labels: np.ndarray, *, power: float) -> Tensor:
    """The weight count^-power of each action, float32 [L], with mean 1; the minimum count is 1.

    Args:
        labels: bool [R, L].
        power: 0 (equal weights) to 1 (equal total weight of all actions).
    """
    weights = torch.from_numpy(labels.sum(axis=0)).clamp(min=1).double() ** -power
    return (weights / weights.mean()).float()


def training_loader(config: DetectConfig, key_frames: KeyFrames) -> ClipLoader[Any]:
    """Random crops of this rank's training key frames.

    Raises:
        UserError: a video is missing, or the batch size or a clip key is wrong.
    """
    clip = config.clip
    jitter = {name: getattr(config.color, name) for name in ("brightness", "contrast", "saturation")}
    dataset = ActionClips(
        key_frames,
        video_locations(config).find_videos(key_frames),
        frames=clip.frames,
        stride=clip.stride,
        target_fps=clip.target_fps,
        transform=ShortSideJitterCrop(
            ClipRecipe.of(clip).crop,
            short_side=(clip.short_side[0], clip.short_side[1]),
            flip=clip.flip,
        ),
        augment=Augmentation(color=ColorJitter(**jitter)) if any(jitter.values()) else None,
        visible=config.boxes.visible,
        seed=config.run.seed,
        uncropped=config.data.augment_on == "device",
    )
    return ClipLoader(dataset, **loader_options(config))


def video_locations(config: DetectConfig) -> VideoLocations:
    """The locations of the videos of a run."""
    data = config.data
    return VideoLocations(
        data.videos, tuple(data.frame_lists), data.frames, data.frames_fps, data.start_second
    )
