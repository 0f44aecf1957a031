"""The encoder of a model by itself, its head left behind."""

from __future__ import annotations

from torch import nn

from videomaskfeat.errors import UserError
from videomaskfeat.models import arguments_of, create_for_inference
from videomaskfeat.models.encoder_base import Encoder


def encoder_of(model: nn.Module) -> Encoder:
    """A copy of a model's encoder, with the same :meth:`~videomaskfeat.models.encoder_base.Encoder.features`.

    Args:
        model: made by :func:`~videomaskfeat.models.create_model`; it is not changed.

    Returns:
        A "mvitv2_encoder" or "vit_encoder" in evaluation mode, on the CPU: clips [B, C, T, H, W] -> tokens
        [B, P+N', D'].

    Raises:
        UserError: the model was not made by ``create_model``, so that its arguments are not known.
    """
    created_as = getattr(model, "created_as", None)
    if created_as is None or not isinstance(model, Encoder):
        raise UserError(f"a {type(model).__name__} that create_model did not make has no encoder to take out")
    known = arguments_of(model.encoder_name)
    arguments = {name: value for name, value in created_as[1].items() if name in known}
    arguments |= {"final_norm": not isinstance(model.norm, nn.Identity), "mean_first": model.mean_first}
    encoder = create_for_inference(model.encoder_name, **arguments)
    assert isinstance(encoder, Encoder)
    state, names = model.state_dict(), encoder.state_dict()
    encoder.load_state_dict({name: state[name] for name in names})
    return encoder.eval()
