"""Latents: the target against its definition, what teacher and student see."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.methods.tiny import ARGUMENTS, make_batch, tiny_method
from videomaskfeat.errors import UserError
from videomaskfeat.grid import TokenGrid, resize_mask
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


def test_target_of_several_depths_is_side_by_side() -> None:
    """V-JEPA 2.1's deep self-supervision; blocks 2 and 3 of MViTv2 share a grid."""
    method = tiny_latent(depths="[2, 3]")
    pixels, encoder = method.pixels(make_batch(method).clips), method.teacher_encoder
    with torch.no_grad():
        outputs = [normed(encoder.features(pixels, depth=depth, pooled=False)) for depth in (2, 3)]
    torch.testing.assert_close(method.target(pixels), torch.cat(outputs, dim=-1), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("rotary", ["false", "true"])
def test_visible_student_of_several_depths_by_hand(rotary: str) -> None:
    """Against a loop over clips; the visible cells have their own output layer; float32, 1e-5."""
    model = f"model.arguments={{depth: 2, width: 16, heads: 2, rotary: {rotary}}}"
    arguments = "{predictor_width: 16, predictor_depth: 1, predictor_heads: 2, context: visible, "
    arguments += "depths: [1, 2], visible_weight: 0.5}"
    method = tiny_method("latent", "vit", model, f"method.arguments={arguments}")
    student = method.student
    assert isinstance(student, VisibleStudent)
    encoder, predictor, depth_features = student.encoder, student.predictor, student.depth_features
    assert depth_features is not None
    norms = [*depth_features.norms, encoder.norm]
    for norm in norms:
        torch.nn.init.normal_(norm.weight)
    pixels = method.pixels(make_batch(method).clips)
    masks = torch.stack([torch.from_numpy(random(method.recipe.mask_grid, 0.5, RNG)) for _ in pixels])
    with torch.no_grad():
        predictions = student(pixels, masks)
        for clip, mask, prediction in zip(pixels, masks, predictions, strict=True):
            stem, grid = encoder.patch_embed(clip[None])
            tokens = encoder.placed(stem, grid)
            cells = resize_mask(mask[None], grid).flatten().tolist()
            visible = torch.tensor([number for number, hidden in enumerate(cells) if not hidden])
            seen = torch.cat([tokens[:, :1], tokens[:, 1:][:, visible]], dim=1)
            outputs = []
            for block, norm in zip(encoder.blocks, norms, strict=True):
                seen, _ = block(seen, grid, visible[None])
                outputs.append(norm(seen[0, 1:]))
            rows = predictor.mask_token[0].repeat(grid.size, 1)
            rows[visible] = predictor.narrow(torch.cat(outputs, dim=-1))
            full = rows[None] if predictor.positions is None else rows[None] + predictor.positions
            for layer in predictor.layers:
                full, _ = layer(full, grid)
            full = predictor.norm(full)[0]
            expected = predictor.widen(full)
            expected[visible] = predictor.widen_visible(full[visible])
            torch.testing.assert_close(prediction, expected.unflatten(0, grid.shape), atol=1e-5, rtol=1e-4)
    assert (predictor.positions is None) == (rotary == "true")


@pytest.mark.parametrize("beta", [0.0, 0.5])
def test_loss_at_visible_cells_weighs_them_by_distance(beta: float) -> None:
    """Loops over visible and hidden cells; float32, 1e-5. The weight rises from 5 to 10 % of the run."""
    method = tiny_latent("vit", visible_weight=0.5, beta=beta)
    batch = make_batch(method)
    pixels = method.pixels(batch.clips)
    with torch.no_grad():
        errors = (method.student(pixels, batch.mask) - method.target(pixels)).abs().double()
    grid = TokenGrid(*errors.shape[1:4])
    if beta:
        errors = torch.where(errors < beta, errors.square() / (2 * beta), errors - beta / 2)
    hidden = resize_mask(batch.mask, grid)
    terms = []
    for sample, mask in enumerate(hidden):
        places = mask.nonzero().tolist()
        for place in (~mask).nonzero().tolist():
            distances = [math.dist(place, other) for other in places]
            weight = min(distances) ** -0.5 if distances else 0.0  # the last clip has no hidden cell
            terms.append(weight * errors[(sample, *place)].mean().item())
    compared = method.compare(method.student, batch, progress=1.0)
    visible = sum(terms) / len(terms)
    assert compared.metrics["visible_loss"].item() == pytest.approx(visible, rel=1e-5)
    first = compared.metrics["hidden_loss"].item()
    for progress, weight in ((0.0, 0.0), (0.05, 0.0), (0.075, 0.25), (0.1, 0.5), (1.0, 0.5)):
        loss = method.compare(method.student, batch, progress=progress).loss.item()
        assert loss == pytest.approx(first + weight * visible, rel=1e-5)


@pytest.mark.parametrize(("model", "context"), [("mvit", "masked"), ("vit", "visible")])
def test_every_weight_of_deep_students_is_trained(model: str, context: str) -> None:
    depths = "[1, 2]" if model == "vit" else "[2, 3]"
    options = {"context": context, "depths": depths, "visible_weight": 1.0, "visible_ramp": "[0, 0]"}
    method = tiny_latent(model, **options)
    batch = make_batch(method)
    masks = torch.stack([torch.from_numpy(random(method.recipe.mask_grid, 0.5, RNG)) for _ in batch.mask])
    method.loss(method.student, replace(batch, mask=masks)).loss.backward()
    assert not [key for key, weight in method.student.named_parameters() if weight.grad is None]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"depths": "[1, 3]"}, r"depths \[1, 3\]: block 1 has another grid .* use blocks from 2 on"),
        ({"depths": "[2]"}, r"depths \[2\] must be ascending .* the last one, 3, such as \[1, 3\]"),
        ({"depths": "[0, 3]"}, r"depths \[0, 3\] must be ascending"),
        ({"depths": "[3]", "blocks": 2}, r"depths \[3\] and method\.arguments\.blocks 2 exclude each other"),
        ({"visible_weight": -1}, r"visible_weight -1 must not be negative"),
        ({"visible_ramp": "[0.5, 0.1]"}, r"visible_ramp \[0\.5, 0\.1\] must be two shares of the run"),
    ],
)
def test_impossible_options_of_the_loss_are_refused(arguments: dict[str, object], words: str) -> None:
    with pytest.raises(UserError, match=words):
        tiny_latent(**arguments)
