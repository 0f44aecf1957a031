"""What all pre-training models share: they are called with clips and masks, and predict on the whole grid."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor

from videomaskfeat.models.encoder_base import Encoder, as_clips


class MaskedModel(Encoder, ABC):
    """An encoder with a head that predicts the target of hidden places; the base of
    :class:`~videomaskfeat.models.maskfeat.MaskFeat` and :class:`~videomaskfeat.models.mae.MAE`.

    Attributes:
        values_per_token: predicted values an output position, K.
    """

    values_per_token: int

    def forward(self, clips: Tensor, mask: Tensor) -> Tensor:  # type: ignore[override]
        """Predict the target everywhere.

        Args:
            clips: float [B, C, T, H, W], normalised; or images [B, C, H, W].
            mask: bool [B, t', h', w'] or for images [B, h', w'], True = hidden; its grid divides the token
                grid.

        Returns:
            [B, t, h, w, K] on :meth:`output_grid`; for images [B, h, w, K].

        Raises:
            UserError: the clip is not a multiple of the cube, or the mask's grid does not divide the token
                grid.
        """
        if clips.ndim == 4:
            return self.predict(as_clips(clips), mask[:, None])[:, 0]
        return self.predict(clips, mask)

    @abstractmethod
    def predict(self, clips: Tensor, mask: Tensor) -> Tensor:
        """As :meth:`forward`, for clips alone."""
