"""Latents: the target against its definition, what teacher and student see."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tests.methods.tiny import ARGUMENTS, make_batch, tiny_method
from videomaskfeat.methods.latent import Latent


def tiny_latent(model: str = "mvit", **more: object) -> Latent:
    further = "".join(f", {key}: {value}" for key, value in more.items())
    method = tiny_method("latent", model, f"method.arguments={ARGUMENTS['latent'][:-1]}{further}}}")
    assert isinstance(method, Latent)
    return method


def normed(rows: torch.Tensor) -> torch.Tensor:
    """Each row [..., D] without its mean, over its deviation."""
    centered = rows - rows.mean(dim=-1, keepdim=True)
    return centered / (centered.square().mean(dim=-1, keepdim=True) + 1e-5).sqrt()


@pytest.mark.parametrize(("model", "blocks"), [("mvit", 1), ("mvit", 2), ("vit", 2), ("image", 1)])
def test_target_is_the_mean_of_normalized_blocks(model: str, blocks: int) -> None:
    method = tiny_latent(model, blocks=blocks)
    pixels, encoder = method.pixels(make_batch(method).clips), method.teacher_encoder
    depths = range(len(encoder.blocks) - blocks + 1, len(encoder.blocks) + 1)
    with torch.no_grad():
        outputs = [normed(encoder.features(pixels, depth=depth, pooled=False)) for depth in depths]
    torch.testing.assert_close(method.target(pixels), sum(outputs) / blocks, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("beta", [0.0, 0.5])
def test_loss_is_the_error_at_hidden_cells(beta: float) -> None:
    """Against a loop over the hidden cells; float32, 1e-5."""
    method = tiny_latent(beta=beta)
    batch = make_batch(method)
    pixels = method.pixels(batch.clips)
    with torch.no_grad():
        errors = (method.student(pixels, batch.mask) - method.target(pixels)).abs()
    step = errors.shape[2] // batch.mask.shape[2]
    terms = []
    for b, t, h, w in batch.mask.nonzero().tolist():
        error = errors[b, t, h * step : (h + 1) * step, w * step : (w + 1) * step].double()
        if beta:
            error = torch.where(error < beta, error.square() / (2 * beta), error - beta / 2)
        terms.append(error.mean().item())
    loss = method.compare(method.student, batch, progress=0.0).loss
    assert loss.item() == pytest.approx(sum(terms) / len(terms), rel=1e-5)


def test_teacher_sees_the_whole_clip_and_the_student_does_not() -> None:
    """Pixels of a hidden cube change the target and, as the cubes here do not overlap, no prediction."""
    method = tiny_latent("vit")
    batch = make_batch(method)
    mask = torch.zeros_like(batch.mask)
    mask[:, 0, 0, 0] = True
    clips = batch.clips.clone()
    clips[:, :2, :16, :16] = 255 - clips[:, :2, :16, :16]
    before, after = method.pixels(batch.clips), method.pixels(clips)
    with torch.no_grad():
        predictions = [method.student(pixels, mask) for pixels in (before, after)]
    torch.testing.assert_close(*predictions, atol=1e-6, rtol=1e-6)
    assert not torch.allclose(method.target(before), method.target(after), atol=1e-2)
    whole = replace(batch, mask=torch.zeros_like(mask))
    rows = [method.compare(method.student, part, progress=0.0).rows for part in (batch, whole)]
    assert torch.equal(rows[0]["feature_std"], rows[1]["feature_std"])


def test_predictor_may_be_a_perceptron() -> None:
    method = tiny_latent(predictor="mlp")
    method.loss(method.student, make_batch(method)).loss.backward()
    assert not [key for key, weight in method.student.named_parameters() if weight.grad is None]
