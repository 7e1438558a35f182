"""Control tokens with equal or empty vectors, which adapters would leave as they are, are named."""

from typing import Any

import pytest
import torch

from imprint.model.adapters import add_lora
from imprint.model.alike import alike_note, alike_tokens
from tiny import tiny_model

CONTROL = [5, 6, 7, 8]


def model_with(
    same: tuple[int, int] | None = None, empty: int | None = None, near: float = 0.0, **extra: Any
) -> Any:
    model = tiny_model("llama", **extra)
    with torch.no_grad():
        weight = model.get_input_embeddings().weight
        if same:
            weight[same[0]] = weight[same[1]] * (1 + near)
        if empty is not None:
            weight[empty] *= 1e-4
    return model


def test_vectors_of_their_own_are_no_finding() -> None:
    assert alike_tokens(model_with(), CONTROL, range(3, 90), []) == []
    assert alike_note([], str) == []


@pytest.mark.parametrize("near", [0.0, 5e-4])
@pytest.mark.parametrize("tied", [False, True])
def test_equal_vectors(near: float, tied: bool) -> None:
    model = model_with((5, 6), near=near, tie_word_embeddings=tied)
    (found,) = alike_tokens(model, CONTROL, [5, 6, 20], [])
    assert (found.matrix, found.groups, found.empty) == ("embedding", [[5, 6]], [])


def test_vectors_that_only_look_alike_are_no_finding() -> None:
    assert alike_tokens(model_with((5, 6), near=5e-3), CONTROL, CONTROL, []) == []


def test_a_control_token_that_is_like_an_ordinary_one() -> None:
    model = model_with((5, 50))
    assert alike_tokens(model, CONTROL, [50], [])[0].groups == [[5, 50]]
    assert alike_tokens(model, CONTROL, [51], []) == [], "what the demonstrations do not hold does no harm"
    assert alike_tokens(model_with((40, 50)), CONTROL, [40, 50], []) == [], "the base model's own affair"


def test_vectors_of_nothing() -> None:
    (found,) = alike_tokens(model_with(empty=7), CONTROL, CONTROL, [])
    assert (found.groups, found.empty) == ([], [7])


def test_an_output_of_its_own_is_looked_at_too() -> None:
    model = tiny_model("llama", tie_word_embeddings=False)
    with torch.no_grad():
        head = model.get_output_embeddings().weight
        head[8] = head[5]
    (found,) = alike_tokens(model, CONTROL, CONTROL, [])
    assert (found.matrix, found.groups) == ("output", [[5, 8]])


def test_what_is_trained_is_not_frozen() -> None:
    model = model_with((5, 6), empty=7)
    assert alike_tokens(model, CONTROL, CONTROL, [5, 7]) == []


def test_what_is_said() -> None:
    found = alike_tokens(model_with((5, 6), empty=7), CONTROL, CONTROL, [])
    (said,) = alike_note(found, lambda token: f"<t{token}>")
    assert "<t5> = <t6> (embedding)" in said
    assert "<t7> (nothing in the embedding)" in said
    assert 'lora.train_tokens=["<t5>", "<t6>", "<t7>"]' in said
    assert "method=full" in said


def test_the_remedy_gives_them_vectors_of_their_own() -> None:
    """Frozen, both tokens give the same states for ever; with the remedy, one step tells them apart."""
    ids = torch.tensor([[9, 5, 11], [9, 6, 11]])
    for tokens in ([], [5, 6]):
        model: Any = add_lora(
            model_with((5, 6)), rank=2, alpha=4, dropout=0.0, targets="attention", new_tokens=tokens, seed=1
        )
        optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.5)
        for _ in range(3):
            logits = model(input_ids=ids).logits[:, -1]
            torch.nn.functional.cross_entropy(logits, torch.tensor([20, 30])).backward()
            optimizer.step()
            optimizer.zero_grad()
        with torch.no_grad():
            first, second = model(input_ids=ids).logits[:, -1]
        assert torch.equal(first, second) == (not tokens)
