"""Hugging Face's object detection models as detectors of persons."""

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

_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # where a model's own file says nothing
_SIZE = {"shortest_edge": 800, "longest_edge": 1333}  # DETR's, likewise
_PREPROCESSOR = "preprocessor_config.json"


class PersonDetector:
    """Finds persons with a model of the DETR family: DETR, YOLOS, RT-DETR, Conditional or Deformable DETR.

    Pictures are resized and normalised here, as the model's ``preprocessor_config.json`` has it, so neither
    torchvision nor Pillow is needed.
    """

    def __init__(
        self, *, model: str, label: str = "person", threshold: float = 0.1, device: str = "auto"
    ) -> None:
        """Load the model; a name is looked for on Hugging Face's hub, and kept in its cache.

        Args:
            model: a name on the hub, or the folder that ``save_pretrained`` wrote.
            label: which of the model's classes is looked for.
            threshold: scores below are left out here already.
            device: auto (a GPU where there is one), cpu, cuda or cuda:N.

        Raises:
            UserError: transformers is not installed, there is no such model, or it knows no such class.
        """
        self.device = torch.device(
            ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
        )
        self.model, settings = _load(model)
        self.model = self.model.eval().to(self.device)
        self.threshold = threshold
        names = {str(name).lower(): int(number) for number, name in self.model.config.id2label.items()}
        if label.lower() not in names:
            raise UserError(
                f"model {model!r} knows no class {label!r}{nearest(label.lower(), names)}; it has "
                f"{', '.join(list(names)[:5])}, ...: {len(names)} in all"
            )
        self._column = names[label.lower()]
        self._size: Mapping[str, int] = settings.get("size") or _SIZE
        if isinstance(self._size, int):  # as older files have it
            self._size = {"shortest_edge": self._size, "longest_edge": settings.get("max_size", 1333)}
        plain = not settings.get("do_normalize", True)
        self._mean = _column_of((0.0,) * 3 if plain else settings.get("image_mean") or _MEAN)
        self._std = _column_of((1.0,) * 3 if plain else settings.get("image_std") or _STD)

    @torch.no_grad()
    def __call__(self, pictures: np.ndarray) -> list[np.ndarray]:
        """Find persons.

        Args:
            pictures: uint8 [n, H, W, 3], RGB.

        Returns:
            n arrays float32 [k, 5]: x1, y1, x2, y2 in pixels of the picture, and a score in 0..1.
        """
        height, width = pictures.shape[1:3]
        output = self.model(pixel_values=self._pixels(pictures))
        chances = _chances(output.logits.float(), len(self.model.config.id2label))  # [n, Q, classes]
        x, y, w, h = output.pred_boxes.float().unbind(-1)
        corners = torch.stack([x - w / 2, y - h / 2, x + w / 2, y + h / 2], dim=-1)  # [n, Q, 4]
        corners = corners * corners.new_tensor([width, height, width, height])
        rows = torch.cat([corners, chances[..., self._column, None]], dim=-1).cpu().numpy()  # [n, Q, 5]
        return [own[own[:, 4] >= self.threshold] for own in rows]

    def _pixels(self, pictures: np.ndarray) -> Tensor:
        """uint8 [n, H, W, 3] -> float [n, 3, h, w], resized and normalised."""
        size = _resized(pictures.shape[1], pictures.shape[2], self._size)
        resized = [
            cv2.resize(picture, (size[1], size[0]), interpolation=cv2.INTER_AREA)
            if size[0] < pictures.shape[1]
            else cv2.resize(picture, (size[1], size[0]), interpolation=cv2.INTER_LINEAR)
            for picture in pictures
        ]
        pixels = torch.from_numpy(np.stack(resized)).to(self.device).permute(0, 3, 1, 2).float() / 255
        return (pixels - self._mean.to(self.device)) / self._std.to(self.device)


def _load(model: str) -> tuple[Any, Mapping[str, Any]]:
    """The network, and what its preprocessor's file says."""
    try:
        from transformers import AutoModelForObjectDetection
        from transformers.utils import cached_file
    except ImportError as error:
        raise UserError(
            f"model {model!r}: Hugging Face's models need transformers; pip install videomaskfeat[detector]"
        ) from error
    try:
        network = AutoModelForObjectDetection.from_pretrained(model, use_safetensors=True)
        path = cached_file(model, _PREPROCESSOR, _raise_exceptions_for_missing_entries=False)
    except (OSError, ValueError, ImportError) as error:
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise UserError(
            f"model {model!r} does not load ({reason}); give the name of an object detection model on the "
            "hub, such as hustvl/yolos-tiny, or the folder that save_pretrained wrote"
        ) from error
    if path is None:
        return network, {}
    facts = read_json(path, what="a preprocessor's JSON")
    if not isinstance(facts, dict):
        raise UserError(f"{path}: is not an object of settings; save the preprocessor again")
    return network, facts


def _chances(logits: Tensor, classes: int) -> Tensor:
    """Probabilities [..., classes] of logits [..., C].

    DETR and YOLOS have one column more than classes, for no object, and a softmax; the others, trained with
    the focal loss, have a sigmoid per class.
    """
    if logits.shape[-1] == classes + 1:
        return logits.softmax(dim=-1)[..., :-1]
    return logits.sigmoid()


def _resized(height: int, width: int, size: Mapping[str, int]) -> tuple[int, int]:
    """(height, width) that a picture is resized to: a fixed size, or short side and longest side."""
    if "height" in size and "width" in size:
        return size["height"], size["width"]
    short, longest = size.get("shortest_edge", 800), size.get("longest_edge", math.inf)
    scale = min(short / min(height, width), longest / max(height, width))
    return max(round(height * scale), 1), max(round(width * scale), 1)


def _column_of(levels: Any) -> Tensor:
    """Three numbers in the shape that meets pixels [n, 3, h, w]."""
    return torch.tensor(levels, dtype=torch.float32).view(3, 1, 1)
