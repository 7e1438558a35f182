"""Before anything is trained: the model found, the data read and rendered, every auto settled.

What is wrong with the input is found here, before weights are loaded. Nothing is written but the
prepared data, into the user's cache.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from imprint.auto import Decision, resolve_auto, resolve_intervals
from imprint.cache import Origin, cached
from imprint.data.ledger import Ledger
from imprint.data.load import Loaded
from imprint.errors import ModelError, RecipeError
from imprint.model_facts import ModelFacts, read_model_facts
from imprint.pack.plan import Plan
from imprint.pack.replay import Replay, share_of_places
from imprint.pack.together import Groups, groups_of
from imprint.preparation import REMEDIES, Preparation
from imprint.preparation import read_and_render as read_and_render
from imprint.preparation import turns_of as turns_of
from imprint.recipe import Recipe
from imprint.render.replay import Pieces
from imprint.render.resolve import Rendering
from imprint.render.store import Sums, TurnStore
from imprint.track.words import plural


@dataclass(frozen=True)
class Prepared:
    """All that a run is, but its weights. `train[i]` are the turns of one conversation."""

    recipe: Recipe
    decisions: list[Decision]
    folder: Path
    facts: ModelFacts
    rendering: Rendering
    loaded: Loaded
    train: TurnStore
    validation: TurnStore
    ledger: Ledger
    plan: Plan
    origin: Origin
    seconds: float
    replay: Pieces | None = None

    @property
    def num_tokens(self) -> int:
        """Embedding rows that the data, the stops and added tokens need."""
        return max(*(sums.largest_id for sums in self._sums), *self.rendering.stop_ids) + 1

    @property
    def longest(self) -> int:
        """Tokens of the longest turn."""
        return max(sums.longest for sums in self._sums)

    @property
    def _sums(self) -> list[Sums]:
        return [self.train.sums, self.validation.sums, *([self.replay.sums] if self.replay else [])]


def prepare(recipe: Recipe, folder: Path, now: datetime, world_size: int = 1) -> Prepared:
    """Read, render and plan; UserError with place and remedy for whatever is wrong.

    What was prepared before, by this or another process, is taken from the cache.
    """
    started = time.perf_counter()
    facts = read_model_facts(str(folder))
    assert facts is not None, "a folder has a config.json, or is refused"
    recipe, decisions = resolve_auto(recipe, model_facts=facts, world_size=world_size)
    check_length(recipe, facts)
    preparation = Preparation(recipe, folder, now)
    (loaded, train, validation, ledger, replay), origin = cached(
        preparation.key(), preparation.make, preparation.read
    )
    rendering = preparation.rendering or preparation.render_with(loaded.reasoning)
    plan = Plan(
        num_conversations=len(train),
        batch_size=recipe.batch_size,
        epochs=recipe.epochs,
        seed=recipe.seed,
        fingerprint=loaded.fingerprint,
        max_steps=recipe.max_steps,
        replay=_mixed_in(recipe, replay),
        groups=by_prompt(loaded, train) if recipe.keep_together == "prompt" else None,
    )
    if replay is not None:
        account_for_draws(replay, plan)
    recipe, settled = resolve_intervals(recipe, plan.total_steps)
    settled_keys = {decision.key for decision in settled}
    decisions = [decision for decision in decisions if decision.key not in settled_keys] + settled
    made = Prepared(
        recipe, decisions, folder, facts, rendering, loaded, train, validation, ledger, plan, origin,
        time.perf_counter() - started, replay,
    )  # fmt: skip
    check_ids(made)
    return made


def _mixed_in(recipe: Recipe, pieces: Pieces | None) -> Replay | None:
    """The plan's part of replay; None where none is drawn."""
    if pieces is None or recipe.replay_share == 0:
        return None
    share = share_of_places(recipe.replay_share, recipe.replay_share_of, recipe.batch_size)
    return Replay(len(pieces.drawable), share, recipe.seed, pieces.fingerprint)


def by_prompt(loaded: Loaded, train: TurnStore) -> Groups:
    """Which of the conversations that are trained on have the same prompt, or are of the same tree."""
    rows = np.fromiter(loaded.train.rows, np.int64, len(loaded.train))[train.conversations]
    return groups_of(np.fromiter(loaded.prompts, np.int64, len(loaded.prompts))[rows])


def kept_together(plan: Plan) -> Iterator[str]:
    """How many groups a run keeps together, where it keeps any."""
    if plan.groups is not None:
        yield (
            f"kept together by their prompt: {plural(plan.num_conversations, 'conversation')} in "
            f"{plural(plan.groups.count, 'group')}, the largest of {plan.groups.largest:,}"
        )


def account_for_draws(pieces: Pieces, plan: Plan) -> None:
    """Say in the ledger of replay how many of its pieces the plan draws, and how many never."""
    kept = pieces.ledger.pieces.kept
    count = kept.pop("to draw from")
    drawn = min(count, plan.num_drawn)
    pieces.ledger.pieces.kept = {"to be drawn": drawn, "not drawn": count - drawn, **kept}


def check_length(recipe: Recipe, facts: ModelFacts) -> None:
    """RecipeError where turns may be longer than what the model has positions for, or pieces than turns."""
    assert isinstance(recipe.max_length, int)
    if isinstance(recipe.replay_length, int) and recipe.replay_length > recipe.max_length:
        raise RecipeError(
            "the pieces of replay are longer than max_length",
            where=f"replay_length={recipe.replay_length}",
            found=f"{recipe.replay_length:,} tokens",
            expected=f"from 2 to {recipe.max_length:,}, which is max_length",
            fix=f"replay_length={recipe.max_length}, or remove it",
        )
    if facts.context is not None and recipe.max_length > facts.context:
        raise RecipeError(
            "max_length is beyond the model's context",
            where=f"max_length={recipe.max_length}",
            found=f"{recipe.max_length:,} tokens",
            expected=f"at most {facts.context:,}, the positions that its config.json gives it",
            fix=f"max_length={facts.context}; a model whose positions reach further says so in config.json",
        )


def check_ids(prepared: Prepared) -> None:
    """ModelError where the tokenizer gives ids that the model's embedding does not have."""
    rows, added = prepared.facts.vocab, prepared.rendering.added
    if rows is None or prepared.num_tokens <= rows:
        return
    encoder = prepared.rendering.encoder
    allowed = {int(i) for i in encoder.tokenizer.convert_tokens_to_ids(list(added))} if added else set()
    replay = prepared.replay.drawable.store if prepared.replay else ()
    for turns in chain(prepared.train, prepared.validation, replay):
        for turn in turns:
            for token in turn.ids[turn.ids >= rows].tolist():
                if token not in allowed:
                    raise ModelError(
                        "the tokenizer has a token that the model's embedding has not",
                        where=str(turn.source),
                        found=f"token {token:,}, {encoder.decode([token])!r}",
                        expected=f"ids below {rows:,}, the rows of the embedding in {prepared.folder}",
                        fix="use the tokenizer that belongs to this model",
                    )


def where_from(prepared: Prepared) -> str:
    """One line: prepared now, or taken from the cache, and where it lies."""
    origin = prepared.origin
    # its whole name is a hash, and longer than a line
    place = f"{origin.folder.parent / origin.folder.name[:12]}…" if origin.folder else ""
    if origin.taken:
        return f"taken from the cache, as prepared on {origin.created:%Y-%m-%d at %H:%M}: {place}"
    kept = f"kept for other runs in {place}" if place else f"not kept: {origin.note}"
    return f"prepared in {prepared.seconds:.1f} s, {kept}"


def replay_in_words(prepared: Prepared, pieces: Pieces) -> str:
    """What of replay is drawn by the whole run, and what is held out."""
    recipe, plan = prepared.recipe, prepared.plan
    held_out = len(pieces.held_out)
    measured = f"; {plural(held_out, 'piece')} held out to measure what is forgotten" if held_out else ""
    if plan.replay is None:
        return f"replay_share is 0: nothing is drawn of {plural(len(pieces.drawable), 'piece')}{measured}"
    of = "each step's weight"
    if recipe.replay_share_of == "conversations":
        piece = pieces.sums.trained_tokens / len(pieces.origin) * recipe.replay_share
        own = prepared.train.sums.trained_tokens / len(prepared.train) * (1 - recipe.replay_share)
        of = f"each step's conversations, about {piece / (piece + own):.0%} of its trained tokens"
    again = plan.num_drawn / len(pieces.drawable)
    drawn = f"{plan.num_drawn:,} of {plural(len(pieces.drawable), 'piece')} drawn"
    if again > 1:
        drawn = f"{plural(len(pieces.drawable), 'piece')} drawn {again:.3g} times"
    return f"{recipe.replay_share:.3g} of {of}: {drawn}{measured}"


def overview(prepared: Prepared) -> Iterator[Any]:
    """What will be done, for a terminal of 80 columns: the data's account, the plan, each auto and why."""
    from rich.constrain import Constrain
    from rich.table import Table
    from rich.text import Text

    plan = prepared.plan
    yield prepared.ledger.table()
    if prepared.replay is not None:
        yield prepared.replay.ledger.table("What becomes of replay")
        yield from (Text.assemble(("note  ", "bold"), note) for note in prepared.replay.ledger.notes)
    for reason, detail in prepared.ledger.details.items():
        if detail:
            remedy = f"; to train it: {REMEDIES[reason]}" if reason in REMEDIES else ""
            yield Text(f"{reason}: {detail}{remedy}", "dim")
    for note in prepared.ledger.notes:
        yield Text.assemble(("note  ", "bold"), note)
    yield Text.assemble(("data  ", "bold"), where_from(prepared))
    sums = prepared.train.sums
    yield Text.assemble(
        ("plan  ", "bold"),
        f"{plural(plan.total_steps, 'step')} of "
        f"{plural(min(plan.batch_size, plan.num_conversations), 'conversation')}: "
        f"{plan.epoch(plan.total_steps):.3g} times all "
        f"{plan.num_conversations:,}, which hold {sums.tokens:,} tokens, {sums.trained_tokens:,} of them trained",
    )
    yield from (Text.assemble(("plan  ", "bold"), text) for text in kept_together(plan))
    if prepared.replay is not None:
        yield Text.assemble(("replay  ", "bold"), replay_in_words(prepared, prepared.replay))
    table = Table(box=None, pad_edge=False, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    table.add_column(style="dim", ratio=1)
    for decision in prepared.decisions:
        if decision.value != "auto":
            table.add_row(decision.key, str(decision.value), decision.reason)
    yield Constrain(table, 80)
