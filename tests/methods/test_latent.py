"""Latents: the target against its definition, what teacher and student see."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.methods.tiny import ARGUMENTS, make_batch, tiny_method
from videomaskfeat.errors import UserError
from videomaskfeat.grid import resize_mask
from videomaskfeat.masking import random
from videomaskfeat.methods.latent import Latent, VisibleStudent

RNG = np.random.default_rng(0)


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


def test_visible_context_encodes_the_visible_cubes_only() -> None:
    """Against a loop over clips that runs the blocks on lists of tokens; float32, 1e-5."""
    method = tiny_latent("vit", context="visible")
    batch = make_batch(method)
    pixels, student = method.pixels(batch.clips), method.student
    assert isinstance(student, VisibleStudent)
    encoder, predictor = student.encoder, student.predictor
    masks = torch.stack([torch.from_numpy(random(method.recipe.mask_grid, 0.5, RNG)) for _ in pixels])
    with torch.no_grad():
        predictions = student(pixels, masks)
        for clip, mask, prediction in zip(pixels, masks, predictions, strict=True):
            stem, grid = encoder.patch_embed(clip[None])
            tokens = encoder.placed(stem, grid)
            prefix = tokens.shape[1] - grid.size
            cells = resize_mask(mask[None], grid).flatten().tolist()
            visible = [number for number, hidden in enumerate(cells) if not hidden]
            rows = [*range(prefix), *(prefix + number for number in visible)]
            seen = tokens[:, rows]
            for block in encoder.blocks:
                seen, _ = block(seen, grid)
            narrow = predictor.narrow(encoder.norm(seen)[0, prefix:])
            rows_of_grid = [predictor.mask_token[0, 0]] * grid.size
            for number, row in zip(visible, narrow, strict=True):
                rows_of_grid[number] = row
            full = torch.stack(rows_of_grid)[None] + predictor.positions
            for layer in predictor.layers:
                full, _ = layer(full, grid)
            expected = predictor.widen(predictor.norm(full))[0].unflatten(0, grid.shape)
            torch.testing.assert_close(prediction, expected, atol=1e-5, rtol=1e-4)


def test_visible_context_trains_every_weight() -> None:
    method = tiny_latent("vit", context="visible")
    batch = make_batch(method)
    masks = torch.stack([torch.from_numpy(random(method.recipe.mask_grid, 0.5, RNG)) for _ in batch.mask])
    method.loss(method.student, replace(batch, mask=masks)).loss.backward()
    assert not [key for key, weight in method.student.named_parameters() if weight.grad is None]
    assert method.student(*method.example).shape[0] == 1


@pytest.mark.parametrize(
    ("model", "override", "words"),
    [
        ("mvit", "{context: visible}", "the pooling of MViTv2 needs the whole grid; use a ViT"),
        ("vit", "{context: visible, predictor: mlp}", "needs method.arguments.predictor 'transformer'"),
        ("vit", "{context: hidden}", "context 'hidden'"),
    ],
)
def test_impossible_contexts_are_refused(model: str, override: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        tiny_method("latent", model, f"method.arguments={override}")
    with pytest.raises(UserError, match="'block' does not hide the same number"):
        tiny_method("latent", "vit", "method.arguments={context: visible}", "mask.kind=block")


def test_predictor_may_be_a_perceptron() -> None:
    method = tiny_latent(predictor="mlp")
    method.loss(method.student, make_batch(method)).loss.backward()
    assert not [key for key, weight in method.student.named_parameters() if weight.grad is None]
