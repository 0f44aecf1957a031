"""Hugging Face object detection models as person detectors."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor

from videomaskfeat.errors import UserError, nearest
from videomaskfeat.texts import read_json

_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # defaults, if a model's file has no values
_SIZE = {"shortest_edge": 800, "longest_edge": 1333}  # DETR's, likewise
_PREPROCESSOR = "preprocessor_config.json"


class PersonDetector:
    """Person detection with a DETR model: DETR, YOLOS, RT-DETR, Conditional or Deformable DETR.

    Pictures are resized and normalized as in the model's ``preprocessor_config.json``, without torchvision or
    Pillow.

    Args:
        model: name of a model on Hugging Face's hub (downloaded to its cache), or a folder written by
            ``save_pretrained``.
        label: name of the person class in the model.
        threshold: score threshold; boxes with lower scores are dropped.
        device: auto (a GPU if available), cpu, cuda or cuda:N.

    Raises:
        UserError: transformers is not installed, or there is no such model or class.
    """

    def __init__(
        self, *, model: str, label: str = "person", threshold: float = 0.1, device: str = "auto"
    ) -> None:
        self.device = torch.device(
            ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
        )
        self.model, preprocessor = _load(model)
        self.model = self.model.eval().to(self.device)
        self.threshold = threshold
        names = {str(name).lower(): int(number) for number, name in self.model.config.id2label.items()}
        if label.lower() not in names:
            raise UserError(
                f"model {model!r} has no class {label!r}{nearest(label.lower(), names)}; it has "
                f"{len(names)} classes: {', '.join(list(names)[:5])}, ..."
            )
        self._column = names[label.lower()]
        self._size: Mapping[str, int] = preprocessor.get("size") or _SIZE
        if isinstance(self._size, int):  # in older files
            self._size = {"shortest_edge": self._size, "longest_edge": preprocessor.get("max_size", 1333)}
        normalize = preprocessor.get("do_normalize", True)
        self._mean = _per_channel((preprocessor.get("image_mean") or _MEAN) if normalize else (0.0,) * 3)
        self._std = _per_channel((preprocessor.get("image_std") or _STD) if normalize else (1.0,) * 3)

    @torch.no_grad()
    def __call__(self, pictures: np.ndarray) -> list[np.ndarray]:
        """Detect persons.

        Args:
            pictures: uint8 [n, H, W, 3], RGB.

        Returns:
            n arrays float32 [k, 5]: x1, y1, x2, y2 in pixels of the picture, and a score in 0..1.
        """
        height, width = pictures.shape[1:3]
        output = self.model(pixel_values=self._pixels(pictures))
        scores = _class_scores(output.logits.float(), len(self.model.config.id2label))  # [n, Q, classes]
        x, y, w, h = output.pred_boxes.float().unbind(-1)
        corners = torch.stack([x - w / 2, y - h / 2, x + w / 2, y + h / 2], dim=-1)  # [n, Q, 4]
        corners = corners * corners.new_tensor([width, height, width, height])
        rows = torch.cat([corners, scores[..., self._column, None]], dim=-1).cpu().numpy()  # [n, Q, 5]
        return [picture_rows[picture_rows[:, 4] >= self.threshold] for picture_rows in rows]

    def _pixels(self, pictures: np.ndarray) -> Tensor:
        """uint8 [n, H, W, 3] -> float [n, 3, h, w], resized and normalized."""
        height, width = _resized_size(pictures.shape[1], pictures.shape[2], self._size)
        interpolation = cv2.INTER_AREA if height < pictures.shape[1] else cv2.INTER_LINEAR
        resized = [cv2.resize(picture, (width, height), interpolation=interpolation) for picture in pictures]
        pixels = torch.from_numpy(np.stack(resized)).to(self.device).permute(0, 3, 1, 2).float() / 255
        return (pixels - self._mean.to(self.device)) / self._std.to(self.device)


def _load(model: str) -> tuple[Any, Mapping[str, Any]]:
    """The model, and the content of its preprocessor file."""
    try:
        from transformers import AutoModelForObjectDetection
        from transformers.utils import cached_file
    except ImportError as error:
        raise UserError(
            f"model {model!r} needs the package transformers; pip install 'videomaskfeat[detector]'"
        ) from error
    try:
        network = AutoModelForObjectDetection.from_pretrained(model, use_safetensors=True)
        path = cached_file(model, _PREPROCESSOR, _raise_exceptions_for_missing_entries=False)
    except (OSError, ValueError, ImportError) as error:
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise UserError(
            f"model {model!r} cannot be loaded ({reason}); use the name of an object detection model on the "
            "hub, such as hustvl/yolos-tiny, or a folder that save_pretrained wrote"
        ) from error
    if path is None:
        return network, {}
    preprocessor = read_json(path, what="a preprocessor's JSON")
    if not isinstance(preprocessor, dict):
        raise UserError(f"{path} must contain a JSON object; save the preprocessor again")
    return network, preprocessor


def _class_scores(logits: Tensor, classes: int) -> Tensor:
    """Probabilities [..., classes] from logits [..., C].

    DETR and YOLOS have one more column, for no object, and use a softmax; the other models, trained with the
    focal loss, use a sigmoid.
    """
    if logits.shape[-1] == classes + 1:
        return logits.softmax(dim=-1)[..., :-1]
    return logits.sigmoid()


def _resized_size(height: int, width: int, size: Mapping[str, int]) -> tuple[int, int]:
    """(height, width) after resizing: a fixed size, or by shortest and longest edge."""
    if "height" in size and "width" in size:
        return size["height"], size["width"]
    short, longest = size.get("shortest_edge", 800), size.get("longest_edge", math.inf)
    scale = min(short / min(height, width), longest / max(height, width))
    return max(round(height * scale), 1), max(round(width * scale), 1)


def _per_channel(values: Any) -> Tensor:
    """Three numbers as float32 [3, 1, 1], to broadcast with [n, 3, h, w]."""
    return torch.tensor(values, dtype=torch.float32).view(3, 1, 1)
