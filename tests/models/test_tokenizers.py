"""Frame tokenizers: closed forms, slow reference versions, files, and errors."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.reference import codebook as reference
from videomaskfeat.errors import UserError
from videomaskfeat.models import create_model
from videomaskfeat.models.saving import save_model
from videomaskfeat.models.tokenizers import (
    Codebook,
    DiscreteVAE,
    VectorQuantizer,
    count_tokens,
    create_tokenizer,
    gumbel_noise,
    gumbel_softmax,
    load_tokenizer,
    nearest_codes,
    straight_through,
)

TINY: dict[str, Any] = {"vocabulary": 12, "stride": 4, "width": 16, "blocks": 1, "code_width": 6}


def test_tokens_are_counted_as_by_bincount() -> None:
    tokens = torch.tensor([[3, 0, 3], [3, 5, 0]])
    assert torch.equal(count_tokens(tokens, 8), torch.bincount(tokens.flatten(), minlength=8))


def test_gumbel_softmax_in_closed_form() -> None:
    """Three codes: normalized exp((logit + noise) / temperature); float32, 1e-6."""
    logits = torch.tensor([[1.0, 0.0, -1.0]])
    noise = torch.tensor([[0.5, 1.0, 0.25]])
    for temperature in (2.0, 1.0, 0.1):
        weights = [math.exp(value / temperature) for value in (1.5, 1.0, -0.75)]
        expected = [weight / sum(weights) for weight in weights]
        draw = gumbel_softmax(logits, noise, temperature=temperature)
        assert draw[0].tolist() == pytest.approx(expected, abs=1e-6)


def test_low_temperature_gives_a_one_hot_vector() -> None:
    draw = gumbel_softmax(torch.tensor([[0.3, 0.2, 0.1]]), torch.zeros(1, 3), temperature=1e-3)
    assert draw[0].tolist() == pytest.approx([1, 0, 0], abs=1e-6)


def test_straight_through_has_the_hard_value_and_the_soft_gradient() -> None:
    """d softmax_i / d logit_j = p_i (1[i=j] - p_j) / temperature; float32, 1e-6."""
    noise = torch.tensor([[0.1, -0.2, 0.4]])
    logits = torch.tensor([[0.2, 1.5, -0.3]], requires_grad=True)
    temperature = 0.7
    draw = gumbel_softmax(logits, noise, temperature=temperature, straight_through=True)
    assert draw[0].tolist() == pytest.approx([0, 1, 0], abs=1e-6)
    weights = torch.tensor([[2.0, -1.0, 0.5]])
    (draw * weights).sum().backward()
    p = torch.softmax((logits.detach() + noise) / temperature, dim=1)
    expected = p * (weights - (weights * p).sum()) / temperature
    assert logits.grad is not None
    torch.testing.assert_close(logits.grad, expected, atol=1e-6, rtol=0)


def test_argmax_of_noisy_logits_samples_the_softmax() -> None:
    """Frequencies of 40,000 samples; three standard deviations are at most 0.0075."""
    torch.manual_seed(0)
    logits = torch.tensor([0.5, -0.5, 0.0, 1.0])
    draws = (logits + gumbel_noise(torch.empty(40_000, 4))).argmax(1)
    frequencies = torch.bincount(draws, minlength=4) / 40_000
    torch.testing.assert_close(frequencies, torch.softmax(logits, 0), atol=0.0075, rtol=0)


def test_shapes_and_range_of_tokens() -> None:
    torch.manual_seed(0)
    model = DiscreteVAE(**TINY)
    pictures = torch.rand(2, 3, 16, 24)
    coding = model(pictures, temperature=1.0)
    assert coding.logits.shape == (2, 12, 4, 6)
    assert coding.reconstruction.shape == (2, 3, 16, 24)
    tokens = model.tokens(pictures)
    assert tokens.shape == (2, 4, 6)
    assert tokens.dtype == torch.int64
    assert torch.equal(tokens, coding.logits.argmax(1))
    assert model.decode(tokens).shape == (2, 3, 16, 24)


@pytest.mark.parametrize("kind", ["dvae", "vq"])
def test_every_parameter_gets_a_gradient(kind: str) -> None:
    """For a VQ tokenizer, the gradient passes the codebook."""
    torch.manual_seed(0)
    model, pictures = create_tokenizer(kind, **TINY), torch.rand(4, 3, 16, 16)
    coding = model(pictures, temperature=1.0) if kind == "dvae" else model(pictures)
    coding.reconstruction.square().mean().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


def test_frame_size_must_be_a_multiple_of_the_stride() -> None:
    with pytest.raises(UserError, match="frames of 18x16 pixels must be multiples of the tokenizer stride 4"):
        DiscreteVAE(**TINY).tokens(torch.rand(1, 3, 18, 16))


def test_nearest_codes_equal_the_slow_version() -> None:
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(3, 4, 5, generator=generator)
    codes = torch.randn(17, 5, generator=generator)
    expected = [[reference.nearest(one, codes.tolist()) for one in row] for row in latents.tolist()]
    assert nearest_codes(latents, codes).tolist() == expected
    assert nearest_codes(codes, codes).tolist() == list(range(17))


@pytest.mark.parametrize(("decay", "revive_below"), [(0.9, 0.3), (0.5, 0.0)])
def test_updates_equal_the_slow_loop(decay: float, revive_below: float) -> None:
    """Six batches in float32 against Python floats, tolerance 1e-5."""
    torch.manual_seed(0)
    book = Codebook(vocabulary=7, width=3, decay=decay, revive_below=revive_below)
    counts, sums = [0.0] * 7, [[0.0] * 3 for _ in range(7)]
    generator = torch.Generator().manual_seed(1)
    revived = 0
    for _ in range(6):
        latents = torch.randn(2, 5, 3, generator=generator) * torch.tensor([1.0, 0.2, 2.0])
        tokens, codes = book(latents)
        torch.testing.assert_close(codes, book.codes[tokens])
        batch = book.statistics(latents, tokens)
        candidates = batch.candidates.tolist()
        assert all(candidate in latents.view(-1, 3).tolist() for candidate in candidates)
        counts, sums, expected = reference.update(
            counts,
            sums,
            latents.view(-1, 3).tolist(),
            tokens.view(-1).tolist(),
            candidates,
            decay=decay,
            revive_below=revive_below,
        )
        revived += int(book.update(batch))
        torch.testing.assert_close(book.codes, torch.tensor(expected), atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(book.counts, torch.tensor(counts), atol=1e-5, rtol=1e-5)
    assert revived > 0


def test_code_converges_to_the_mean_of_its_latents() -> None:
    """Two clusters, two codes: m_i / N_i is the mean of cluster i after each update; float32, 1e-5."""
    book = Codebook(vocabulary=2, width=1, decay=0.99)
    book.codes.copy_(torch.tensor([[-1.0], [1.0]]))
    latents = torch.tensor([[-3.0], [-5.0], [2.0], [3.0], [4.0]])
    for _ in range(3):
        book.update(book.statistics(latents, book(latents)[0]))
        torch.testing.assert_close(book.codes, torch.tensor([[-4.0], [3.0]]), atol=1e-5, rtol=0)


def test_unused_codes_are_replaced_by_latents() -> None:
    """All latents are nearest to code 0; the others are replaced by latents, and used by the next batch."""
    torch.manual_seed(0)
    book = Codebook(vocabulary=8, width=2)
    book.codes.copy_(torch.tensor([[0.0, 0.0]] + [[100.0, 100.0]] * 7))
    latents = torch.randn(64, 2)
    tokens = book(latents)[0]
    assert tokens.unique().tolist() == [0]
    assert book.update(book.statistics(latents, tokens)) == 7
    distances = (book.codes[1:, None] - latents).norm(dim=2).min(1).values
    assert distances.max() < 1e-6  # rounding of product and division
    assert len(book(latents)[0].unique()) > 5


def test_unused_code_is_replaced_when_its_average_decays() -> None:
    """N of an unused code is 0.9^k after k batches, and the mean of all N is 1: 0.9^k < 0.05 at k = 29."""
    book = Codebook(vocabulary=2, width=1, decay=0.9, revive_below=0.05)
    book.counts.fill_(1.0)
    book.sums.copy_(torch.tensor([[-1.0], [1.0]]))
    book.codes.copy_(book.sums)
    latents = torch.tensor([[1.0], [1.0]])  # both are nearest to code 1
    revived = [int(book.update(book.statistics(latents, book(latents)[0]))) for _ in range(29)]
    first = next(number for number in range(100) if 0.9**number < 0.05)
    assert revived == [0] * (first - 1) + [1] + [0] * (29 - first)


def test_straight_through_passes_the_gradient_to_the_latents() -> None:
    """L = sum(w * x^2) at x = code: dL/dlatent = 2 w code, and no gradient of the codes; float32, 1e-6."""
    latents = torch.tensor([[0.9, 2.1]], requires_grad=True)
    codes = torch.tensor([[1.0, 2.0]], requires_grad=True)
    weights = torch.tensor([[3.0, -1.0]])
    passed = straight_through(latents, codes)
    torch.testing.assert_close(passed, codes, atol=1e-6, rtol=0)
    (weights * passed.square()).sum().backward()
    assert latents.grad is not None
    torch.testing.assert_close(latents.grad, torch.tensor([[6.0, -4.0]]), atol=1e-6, rtol=0)
    assert codes.grad is None


@torch.no_grad()
def test_tokens_decode_to_the_reconstruction() -> None:
    torch.manual_seed(0)
    model = VectorQuantizer(**TINY)
    pictures = torch.rand(2, 3, 16, 24)
    coding = model(pictures)
    assert coding.latents.shape == (2, 4, 6, 6)
    assert coding.tokens.shape == (2, 4, 6)
    assert {"codebook.codes", "codebook.counts", "codebook.sums"} < set(model.state_dict())
    tokens: Tensor = model.tokens(pictures)
    assert torch.equal(tokens, coding.tokens)
    torch.testing.assert_close(model.decode(tokens), coding.reconstruction, atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", ["dvae", "vq"])
def test_loaded_tokenizer_equals_the_saved_one(kind: str, tmp_path: Path) -> None:
    tokenizer = create_tokenizer(kind, **TINY, mean=[0.5, 0.4, 0.3], std=0.25)
    save_model(tokenizer, tmp_path / "tokenizer.safetensors")
    before = torch.get_rng_state()
    loaded = load_tokenizer(tmp_path / "tokenizer.safetensors", kind=kind)
    assert torch.equal(torch.get_rng_state(), before)
    assert not loaded.training
    assert torch.equal(loaded.mean.flatten(), torch.tensor([0.5, 0.4, 0.3]))
    pictures = torch.rand(2, 3, 16, 16)
    assert torch.equal(loaded.tokens(pictures), tokenizer.tokens(pictures))
    assert torch.equal(loaded.decode(loaded.tokens(pictures)), tokenizer.decode(tokenizer.tokens(pictures)))


def test_other_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    with pytest.raises(UserError, match=r"x\.safetensors: no such file"):
        load_tokenizer(path)
    save_model(create_model("mvitv2_encoder", depth=1, width=8, widen_at=(), q_pool_at=()), path)
    with pytest.raises(UserError, match="contains the model 'mvitv2_encoder', but a tokenizer is needed"):
        load_tokenizer(path)
    save_model(create_tokenizer("vq", **TINY), path)
    with pytest.raises(UserError, match="contains a tokenizer of kind 'vq', but kind 'dvae' is needed"):
        load_tokenizer(path, kind="dvae")
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(UserError, match="truncated or damaged"):
        load_tokenizer(path)


@pytest.mark.parametrize(
    ("kind", "arguments", "words"),
    [
        ("dvae", {"stride": 12}, "stride=12 must be a power of two"),
        ("dvae", {"stride": 1}, "stride=1 must be a power of two, 2 or more"),
        ("dvae", {"vocabulary": 1}, "vocabulary=1 must be 2 or more"),
        ("dvae", {"blocks": 0}, "blocks 0 must be positive"),
        ("dvae", {"std": 0.0}, r"std=0\.0 must be above 0"),
        ("dvae", {"mean": [0.4, 0.5]}, "mean of 2 numbers must be one number, or one per channel"),
        ("vq", {"decay": 1.0}, r"decay=1\.0 must be at least 0 and below 1"),
        ("vq", {"revive_below": -0.1}, r"revive_below=-0\.1 must be at least 0"),
        ("vq", {"code_width": 0}, "code_width 0 must be positive"),
        (
            "vq",
            {"vocabluary": 3},
            "argument 'vocabluary' is unknown; did you mean 'vocabulary'",
        ),
        ("vq", {"vocabulary": "many"}, r"tokenizer .vq.: vocabulary .many. must be an integer"),
        ("dvea", {}, "tokenizer 'dvea' is unknown; did you mean 'dvae'"),
    ],
)
def test_invalid_arguments_are_refused(kind: str, arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        create_tokenizer(kind, **{**TINY, **arguments})
