"""How a model is stepped: many asks in one forward pass, or one ask at a time."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from imprint.serve.engine import Ask, Scored
from imprint.serve.flat import NAME, Step, Stretch
from imprint.serve.prefix import PrefixCache
from imprint.serve.sampling import Chance
from imprint.serve.slots import Slots
from imprint.serve.stream import TokenStream


@dataclass(eq=False)
class Generation:
    """One ask under way: `ids` are the prompt and what was said so far; the model has seen `computed` of them."""

    ask: Ask
    stream: TokenStream
    ids: list[int]
    chance: Chance
    computed: int = 0
    state: Any = None  # where its keys and values are: the runner's own
    scored: list[Scored] = field(default_factory=list)
    prompt_done: bool = False
    counted: bool = False  # in the figures of Load

    @property
    def prompt_size(self) -> int:
        return len(self.ask.prompt)

    @property
    def scoring(self) -> bool:
        return self.ask.score_prompt and not self.prompt_done


@dataclass(frozen=True, slots=True)
class Work:
    """The next `count` tokens of one ask; logits are wanted at the last `wanted` of them."""

    of: Generation
    count: int
    wanted: int


class Runner(Protocol):
    """What steps the model. `together`: several asks in one call; else one, whose prompt comes whole."""

    together: bool

    def begin(self, generation: Generation) -> None:
        """Find room for it, and what of its prompt is known already; NoRoom where there is none."""

    def extend(self, generation: Generation, size: int) -> None:
        """Have room for `size` tokens of it; NoRoom where there is none."""

    def compute(self, work: Sequence[Work]) -> Tensor:
        """Logits float32 [Σ wanted, V]. Nothing of the generations themselves is changed."""

    def keep(self, generation: Generation) -> None:
        """Remember what was computed for texts that begin alike."""

    def end(self, generation: Generation, clean: bool = True) -> None:
        """Give its room free; not `clean` where it may hold what is not finite."""


class FlatRunner:
    """All asks in one row (serve/flat.py), with keys and values in slots and a cache of prefixes."""

    together = True

    def __init__(self, base: Any, slots: Slots, prefixes: PrefixCache | None):
        self.base, self.slots, self.prefixes = base, slots, prefixes
        self.device = next(base.parameters()).device
        self.keeps = "logits_to_keep" in inspect.signature(base.forward).parameters
        base.set_attn_implementation(NAME)

    def begin(self, generation: Generation) -> None:
        ids, adapter = generation.ids, generation.ask.adapter
        generation.state = self.slots.take(len(ids))
        if self.prefixes is not None and not generation.scoring:
            rows = self.prefixes.find(ids, adapter)
            generation.computed = self.prefixes.read(rows, generation.state) if rows else 0

    def extend(self, generation: Generation, size: int) -> None:
        if size > generation.state.pool.length:
            generation.state = self.slots.move(generation.state, generation.computed, size)

    def compute(self, work: Sequence[Work]) -> Tensor:
        laid = []
        for piece in work:
            start = piece.of.computed
            ids = piece.of.ids[start : start + piece.count]
            laid.append((Stretch(piece.of.state, start, piece.count), ids))
        step = Step.of(laid, self.device)
        rows = [
            row
            for last, piece in zip(step.rows, work, strict=True)
            for row in range(last - piece.wanted + 1, last + 1)
        ]
        index = torch.tensor(rows or [0], device=self.device)
        inputs = {"input_ids": step.tokens, "position_ids": step.positions, "use_cache": False}
        if self.keeps:
            logits = self.base(**inputs, served=step, logits_to_keep=index).logits[0]
        else:
            logits = self.base(**inputs, served=step).logits[0, index]
        return logits[: len(rows)].float()  # type: ignore[no-any-return]

    def keep(self, generation: Generation) -> None:
        if self.prefixes is not None:
            known = generation.ids[: generation.computed]
            self.prefixes.keep(known, generation.ask.adapter, generation.state)

    def end(self, generation: Generation, clean: bool = True) -> None:
        if generation.state is not None:
            if not clean:
                generation.state.pool.clean(generation.state.slot)
            self.slots.give(generation.state)
            generation.state = None


class SoloRunner:
    """One ask in a forward pass, with the state that its architecture keeps in transformers' own cache.

    `relearn`: the length at which what was computed is thrown away, because rotary scaling changes there.
    """

    together = False

    def __init__(self, base: Any, relearn: int | None = None):
        self.base, self.relearn = base, relearn
        self.device = next(base.parameters()).device
        taken = inspect.signature(base.forward).parameters
        self.keeps, self.places = "logits_to_keep" in taken, "position_ids" in taken

    def begin(self, generation: Generation) -> None:
        generation.state = None

    def extend(self, generation: Generation, size: int) -> None:
        return None

    def compute(self, work: Sequence[Work]) -> Tensor:
        (piece,) = work
        generation = piece.of
        start, stop = generation.computed, generation.computed + piece.count
        state = generation.state or {}
        if self.relearn is not None and start <= self.relearn < stop:
            start, state = 0, {}
        ids = torch.tensor([generation.ids[start:stop]], device=self.device)
        inputs: dict[str, Any] = {"input_ids": ids, **state, "use_cache": True}
        if not start:
            inputs["attention_mask"] = torch.ones_like(ids)
        if self.places:  # a cache of recurrent states alone does not know how long the text is
            inputs["position_ids"] = torch.arange(start, stop, device=self.device)[None]
        if self.keeps:
            inputs["logits_to_keep"] = max(1, piece.wanted)
        out = self.base(**inputs)
        logits = out.logits[0, out.logits.shape[1] - piece.wanted :]
        generation.state = {
            name: out[name]
            for name in ("past_key_values", "cache_params", "state")
            if out.get(name) is not None
        }
        return logits.float()  # type: ignore[no-any-return]

    def keep(self, generation: Generation) -> None:
        return None

    def end(self, generation: Generation, clean: bool = True) -> None:
        generation.state = None
