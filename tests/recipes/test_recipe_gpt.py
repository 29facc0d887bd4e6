"""The GPT-like decoder: its sizes, what each position sees, and what is refused."""

import pytest
import torch

from setpoint.recipes.models.gpt import GPT


def build(**options: int | bool) -> GPT:
    torch.manual_seed(0)
    return GPT(**{"vocabulary": 40, "context": 16, "width": 24, "depth": 2, "heads": 4} | options)  # type: ignore[arg-type]


def parameters(model: GPT) -> int:
    return sum(p.numel() for p in model.parameters())


def test_sizes_of_gpt2() -> None:
    with torch.device("meta"):
        model = GPT(vocabulary=50_257, context=1024, width=768, depth=12, heads=12, tied=True)
    assert parameters(model) == 124_439_808


def test_tokens_become_logits_and_every_parameter_learns() -> None:
    model = build()
    tokens = torch.randint(40, (3, 16))
    logits = model(tokens)
    assert logits.shape == (3, 16, 40)
    torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens.flatten()).backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in model.parameters())


def test_a_position_sees_itself_and_what_came_before() -> None:
    model = build().eval()
    tokens = torch.randint(40, (1, 10))
    other = tokens.clone()
    other[:, 6] = (other[:, 6] + 1) % 40
    before, after = model(tokens), model(other)
    assert torch.equal(before[:, :6], after[:, :6])
    assert bool((before[:, 6:] != after[:, 6:]).any(-1).all())


def test_a_tied_head_is_the_embedding() -> None:
    tied, untied = build(tied=True), build()
    assert tied.head.weight is tied.tokens.weight
    assert parameters(untied) - parameters(tied) == 40 * 24


def test_what_is_not_possible_is_refused() -> None:
    with pytest.raises(ValueError, match="width=24 was asked for with heads=5"):
        build(heads=5)
    with pytest.raises(ValueError, match="depth=0 was asked for"):
        build(depth=0)
    with pytest.raises(ValueError, match="a sequence of 17 tokens was given; up to context=16"):
        build()(torch.zeros(1, 17, dtype=torch.long))
