"""How large rows may be, by step: lowered where memory runs out, and kept, so that a resumed run cuts the same ones.

The recipe of a run says how it begins. Where memory runs out in a step, its gradients are dropped, the
change is written to rows.json beside the checkpoints, and the same update is made with smaller rows: it
depends on the examples alone. Each checkpoint names the budget that it was made under.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from imprint.disk import write_text
from imprint.errors import RunError, RunFailed
from imprint.pack.row import Row
from imprint.render.turns import Turn
from imprint.train.checkpoint import Counters

NAMED = 4  # turns that an error names, at most


@dataclass(frozen=True)
class Change:
    """What holds from update `step` on (the first is 1), and what the user is told of it."""

    step: int
    row_tokens: int
    activation_checkpointing: bool
    text: str


def changes_in(file: Path) -> list[Change]:
    """What rows.json holds; RunError where it is damaged: other rows than before are other last digits."""
    if not file.exists():
        return []
    try:
        return [Change(**change) for change in json.loads(file.read_text(encoding="utf-8"))]
    except (ValueError, TypeError) as error:
        raise RunError(
            "what is known of the lengths of rows is damaged",
            where=str(file),
            found=str(error),
            expected="a list of changes, as it was written",
            fix="put a copy back; or remove it: the run then ends with the same weights to rounding, not to the bit",
        ) from None


class Budget:
    """The most tokens of a row, and whether activations are recomputed: as it is now, and how it came about.

    What is in force stands in the counters, and so in each checkpoint; `file` holds the changes of the
    run, so that one that is resumed from before a change makes it at the same step.
    """

    def __init__(self, file: Path, model: nn.Module, counters: Counters, row_tokens: int):
        self.file, self.model, self.counters = file, model, counters
        counters.row_tokens = counters.row_tokens or row_tokens
        if counters.activation_checkpointing:
            recompute_activations(model)
        self.changes = changes_in(file)

    @property
    def row_tokens(self) -> int:
        return self.counters.row_tokens

    def ask(self, step: int, row_tokens: int) -> None:
        """Have rows of at most `row_tokens` from update `step` on, because the user wants them."""
        text = f"rows hold at most {row_tokens:,} tokens from step {step:,} on, as asked for"
        self._record(Change(step, row_tokens, self.counters.activation_checkpointing, text))

    def recorded(self, step: int) -> list[Change]:
        """Put into force what this run has changed at this update before; the changes."""
        found = [change for change in self.changes if change.step == step]
        for change in found:
            self._apply(change)
        return found

    def lower(self, step: int, tokens: int, turns: Sequence[Turn], layout: str) -> Change | None:
        """Make rows smaller, or else have activations recomputed, from this update on; None where all is done.

        `tokens` are those of the row that had no room, `turns` those of the step. The change is on the
        disk before it is in force.
        """
        smaller = lowered(self.row_tokens, tokens, longest_of(turns), layout)
        if smaller is None and not can_recompute(self.model):
            return None
        become = (
            "activations are computed a second time in the backward pass: no row can be shorter"
            if smaller is None
            else f"rows hold at most {smaller:,} tokens"
        )
        change = Change(
            step,
            smaller or self.row_tokens,
            self.counters.activation_checkpointing or smaller is None,
            f"memory ran out in a row of {tokens:,} tokens at step {step:,}; from this step on {become}",
        )
        self._record(change)
        self._apply(change)
        return change

    def _record(self, change: Change) -> None:
        self.changes = [before for before in self.changes if before.step <= change.step] + [change]
        self.file.parent.mkdir(parents=True, exist_ok=True)
        write_text(self.file, json.dumps([asdict(change) for change in self.changes], indent=1))

    def _apply(self, change: Change) -> None:
        self.counters.row_tokens = change.row_tokens
        if change.activation_checkpointing and not self.counters.activation_checkpointing:
            self.counters.activation_checkpointing = True
            recompute_activations(self.model)


def lowered(budget: int, tokens: int, longest: int, layout: str) -> int | None:
    """Half of what had no room, but not below the longest turn of the step; None where that makes no row smaller."""
    now = min(budget, tokens)  # where a step fills less than a row, the budget is not what made it so long
    smaller = max(longest, now // 2)
    return None if layout == "separate" or smaller >= now else smaller


def longest_of(turns: Sequence[Turn]) -> int:
    """Tokens of the longest turn in a row: its last one is only ever a target."""
    return max(len(turn) for turn in turns) - 1


def recompute_activations(model: Any) -> None:
    """Have a RowModel compute its activations a second time in the backward pass, in place of keeping them."""
    base = model.base  # transformers renamed it on the way to 6
    enable = getattr(base, "activation_checkpointing_enable", None) or base.gradient_checkpointing_enable
    enable({"use_reentrant": False})


def can_recompute(model: Any) -> bool:
    """Whether a RowModel could recompute its activations, and does not yet."""
    does = any(getattr(module, "gradient_checkpointing", False) for module in model.modules())
    return not does and bool(getattr(model.base, "supports_gradient_checkpointing", False))


def no_room(step: int, row: Row, said: str, turns: Sequence[Turn]) -> RunFailed:
    """The error where nothing is left to try; it names the turns of the row that memory ran out in."""
    inside = turns_in(row, turns)
    named = [f"{turn.source}, message {turn.turn}" for turn in inside[:NAMED]]
    more = f" and {len(inside) - NAMED:,} more" if len(inside) > NAMED else ""
    longest = max((len(turn) for turn in inside), default=row.num_tokens)
    return RunFailed(
        f"memory ran out at step {step:,} in a row that cannot be made smaller",
        where="; ".join(named) + more,
        found=f"{row.num_tokens:,} tokens; {said[:200]}",
        expected="room for it: rows are as short as the longest turn allows, and activations are recomputed "
        "where the model can",
        fix=f"begin a new run with max_length={longest * 3 // 4} (longer turns are then left out), "
        "with method=lora, or with a smaller model",
    )


def others_wait(change: Change, rank: int) -> RunFailed:
    """The error of a process among several: the others stand in a collective that it cannot enter again.

    What they see is that this one has left. The change is on the disk, so the run goes on with it.
    """
    now = f"rows of at most {change.row_tokens:,} tokens"
    if change.activation_checkpointing:
        now += " and recomputed activations"
    return RunFailed(
        f"memory ran out on process {rank} at step {change.step:,}; resumed, the run goes on with {now}",
        fix="resume the run: it makes this step again, from its last checkpoint on",
    )


def turns_in(row: Row, turns: Sequence[Turn]) -> list[Turn]:
    """Those of `turns` that are laid in a row: what their last prediction sees is all they hold."""
    index = torch.arange(row.num_tokens, device=row.end.device)
    paths = {_ids(row.tokens[(index <= s) & (row.end > s)]) for s in row.source.unique()}
    return [turn for turn in turns if turn.ids[:-1].astype(np.int64).tobytes() in paths]


def _ids(tokens: Tensor) -> bytes:
    return tokens.cpu().numpy().astype(np.int64).tobytes()
