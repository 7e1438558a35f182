"""Answers from a model: to a batch of prompts, or streamed to a person."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from imprint.model.rowmodel import RowModel
from imprint.render.tokens import Encoder

Ids = NDArray[np.int32]


@torch.no_grad()
def answer(
    model: RowModel, prompts: Sequence[Ids], *, stop_ids: Sequence[int], max_new_tokens: int
) -> list[tuple[Ids, bool]]:
    """(reply ids without the stop, whether it stopped by itself) of each prompt, greedily.

    Prompts of models with attention are padded on the left and answered together. Others are
    answered one by one (recurrent state would see the padding), and so are all where the longest
    leaves too little room in the model's context.
    """
    if not prompts:
        return []
    longest = max(len(prompt) for prompt in prompts)
    room = max_new_tokens if model.context is None else model.context - longest
    if len(prompts) > 1 and (room < max_new_tokens or not model.follows_end):
        return [
            answer(model, [prompt], stop_ids=stop_ids, max_new_tokens=max_new_tokens)[0] for prompt in prompts
        ]
    max_new_tokens = min(max_new_tokens, room)  # a reply ends where the model's positions do
    if max_new_tokens < 1:
        return [(prompts[0][:0], False)]
    device = next(model.parameters()).device
    ids = torch.full((len(prompts), longest), stop_ids[0], dtype=torch.int64)
    mask = torch.zeros_like(ids)
    for i, prompt in enumerate(prompts):
        ids[i, longest - len(prompt) :] = torch.from_numpy(prompt.astype(np.int64))
        mask[i, longest - len(prompt) :] = 1
    out = model.generate(
        input_ids=ids.to(device), attention_mask=mask.to(device), **greedy(stop_ids, max_new_tokens)
    )
    replies = out[:, longest:].cpu().numpy().astype(np.int32)
    return [until_stop(reply, stop_ids) for reply in replies]


def greedy(stop_ids: Sequence[int], max_new_tokens: int) -> dict[str, Any]:
    """Arguments for transformers' generate that leave nothing to a model's own defaults."""
    return {
        "max_new_tokens": max_new_tokens,
        "do_sample": False,
        "num_beams": 1,
        "eos_token_id": list(stop_ids),
        "pad_token_id": stop_ids[0],
        "temperature": None,
        "top_p": None,
        "top_k": None,
        "repetition_penalty": 1.0,
    }


def until_stop(reply: Ids, stop_ids: Sequence[int]) -> tuple[Ids, bool]:
    """The part of a reply before its first stop id, and whether there was one."""
    stops = np.flatnonzero(np.isin(reply, list(stop_ids)))
    return (reply[: stops[0]], True) if len(stops) else (reply, False)


class TextStream:
    """A transformers streamer that hands on text as soon as it can no longer change."""

    def __init__(self, encoder: Encoder, stop_ids: Sequence[int], show: Callable[[str], None]):
        self.encoder, self.stop_ids, self.show = encoder, set(stop_ids), show
        self.ids: list[int] = []
        self.shown = ""
        self.is_prompt = True

    def put(self, value: torch.Tensor) -> None:
        if self.is_prompt:  # transformers puts the prompt first
            self.is_prompt = False
            return
        self.ids += [int(i) for i in value.flatten().tolist() if int(i) not in self.stop_ids]
        text = self.encoder.decode(self.ids)
        if not text.endswith("�"):  # half of a character may still become a whole one
            self.show(text[len(self.shown) :])
            self.shown = text

    def end(self) -> None:
        text = self.encoder.decode(self.ids)
        self.show(text[len(self.shown) :])
        self.shown = text
