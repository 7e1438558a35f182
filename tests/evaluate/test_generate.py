"""Answers to several prompts at once are those to each alone."""

from __future__ import annotations

import numpy as np
import torch

from imprint.evaluate.generate import answer, until_stop
from tiny import VOCAB, row_model, tiny_model

STOPS = (2,)


def prompts(*lengths: int) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.integers(3, VOCAB, length).astype(np.int32) for length in lengths]


def test_together_is_alone():
    torch.set_num_threads(1)
    model = row_model(tiny_model("llama"))
    asked = prompts(3, 9, 5)
    together = answer(model, asked, stop_ids=STOPS, max_new_tokens=8)
    for prompt, (reply, stopped) in zip(asked, together, strict=True):
        [(alone, alone_stopped)] = answer(model, [prompt], stop_ids=STOPS, max_new_tokens=8)
        assert reply.tolist() == alone.tolist()
        assert stopped == alone_stopped


def test_a_long_prompt_does_not_cut_the_others():
    """A reply ends where the model's positions do, each in its own context."""
    model = row_model(tiny_model("llama"))
    context = model.context
    assert context is not None
    asked = prompts(4, context - 3, context)
    replies = [reply for reply, _ in answer(model, asked, stop_ids=(10**6,), max_new_tokens=12)]
    assert [len(reply) for reply in replies] == [12, 3, 0]


def test_what_stands_behind_a_stop_is_no_reply():
    ids = np.array([5, 6, 2, 7, 2], np.int32)
    assert until_stop(ids, STOPS)[0].tolist() == [5, 6]
    assert until_stop(ids, STOPS)[1] is True
    assert until_stop(ids[3:4], STOPS) == (ids[3:4], False)


def test_nothing_asked_is_nothing_answered():
    assert answer(row_model(tiny_model("llama")), [], stop_ids=STOPS, max_new_tokens=4) == []
