"""Before anything is trained: the model found, the data read and rendered, every auto settled.

Nothing is written here. What is wrong with the input is found here, before weights are loaded.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from imprint.auto import Decision, ModelFacts, read_model_facts, resolve_auto, resolve_intervals
from imprint.data.conversation import Conversation
from imprint.data.ledger import Ledger
from imprint.data.load import Loaded, load
from imprint.errors import DataError, ModelError, RecipeError
from imprint.pack.plan import Plan
from imprint.recipe import DataSource, Recipe
from imprint.render.resolve import Rendering, config_stops, load_tokenizer, prepare_rendering
from imprint.render.turns import LeftOut, Turn, render
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
    train: list[list[Turn]]
    validation: list[list[Turn]]
    ledger: Ledger
    plan: Plan

    @property
    def num_tokens(self) -> int:
        """Embedding rows that the data, the stops and added tokens need."""
        return max(_largest_id([*self.train, *self.validation]), *self.rendering.stop_ids) + 1

    @property
    def longest(self) -> int:
        """Tokens of the longest turn."""
        return max(len(turn) for turns in [*self.train, *self.validation] for turn in turns)


def prepare(recipe: Recipe, folder: Path, now: datetime, world_size: int = 1) -> Prepared:
    """Read, render and plan; UserError with place and remedy for whatever is wrong."""
    facts = read_model_facts(str(folder))
    assert facts is not None, "a folder has a config.json, or is refused"
    recipe, decisions = resolve_auto(recipe, model_facts=facts, world_size=world_size)
    check_length(recipe, facts)
    loaded, rendering, ledger = read_and_render(recipe, folder, now, recipe.validation)
    train = turns_of(loaded.train, recipe, rendering, ledger, "trained")
    validation = turns_of(loaded.validation, recipe, rendering, ledger, "validated")
    ledger.check()
    if not train:
        raise nothing_left("trainable", ledger, recipe.data)
    if not validation and isinstance(recipe.validation, DataSource):
        raise nothing_left("validation", ledger, [recipe.validation])
    if not validation and loaded.validation:
        ledger.warn("no held-out reply is left: nothing is validated", loaded.validation[0].source)
    plan = Plan(
        num_conversations=len(train),
        batch_size=recipe.batch_size,
        epochs=recipe.epochs,
        seed=recipe.seed,
        fingerprint=loaded.fingerprint,
        max_steps=recipe.max_steps,
    )
    recipe, settled = resolve_intervals(recipe, plan.total_steps)
    settled_keys = {decision.key for decision in settled}
    decisions = [decision for decision in decisions if decision.key not in settled_keys] + settled
    made = Prepared(recipe, decisions, folder, facts, rendering, loaded, train, validation, ledger, plan)
    check_ids(made)
    return made


def read_and_render(
    recipe: Recipe, folder: Path, now: datetime, validation: float | DataSource
) -> tuple[Loaded, Rendering, Ledger]:
    """The conversations, the tokenizer with its template, and the ledger so far."""
    tokenizer = load_tokenizer(str(folder), recipe.revision, recipe.trust_remote_code)
    ledger = Ledger()
    loaded = load(
        recipe.data,
        validation=validation,
        bad_rows=recipe.bad_rows,
        consecutive_replies=recipe.consecutive_replies,
        seed=recipe.seed,
        ledger=ledger,
    )
    rendering = prepare_rendering(
        tokenizer,
        template=recipe.template,
        options=recipe.template_options,
        now=now,
        conversations=loaded.train,
        config_stops=config_stops(folder),
    )
    return loaded, rendering, ledger


def turns_of(
    conversations: Sequence[Conversation], recipe: Recipe, rendering: Rendering, ledger: Ledger, kind: str
) -> list[list[Turn]]:
    """The turns of each conversation that has any; what becomes of every reply goes into the ledger."""
    found: list[list[Turn]] = [[] for _ in conversations]
    assert isinstance(recipe.max_length, int)
    for item in render(
        conversations,
        rendering.template,
        rendering.encoder,
        train_on=recipe.train_on,
        max_length=recipe.max_length,
        too_long=recipe.too_long,
    ):
        ledger.turn(item.source)
        if isinstance(item, LeftOut):
            ledger.leave_turn_out(item.source, item.reason, item.detail)
            continue
        ledger.keep_turn(item.source, kind)
        if item.case == "truncated":
            ledger.warn("a reply is cut at max_length; its stop is not trained", item.source)
        found[item.conversation].append(item)
    part = "train" if kind == "trained" else "validation"
    for conversation, turns in zip(conversations, found, strict=True):
        if not turns:
            ledger.withdraw(part, conversation.source, "none of its replies can be trained")
    return [turns for turns in found if turns]


def check_length(recipe: Recipe, facts: ModelFacts) -> None:
    """RecipeError where turns may be longer than what the model has positions for."""
    assert isinstance(recipe.max_length, int)
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
    for turns in [*prepared.train, *prepared.validation]:
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


def _largest_id(groups: Sequence[Sequence[Turn]]) -> int:
    return max((int(turn.ids.max()) for turns in groups for turn in turns), default=0)


def nothing_left(kind: str, ledger: Ledger, sources: Sequence[DataSource]) -> DataError:
    """The error that says why no reply can be used."""
    reasons = [
        f"{tally.count:,} × {reason} ({tally})"
        for level in (ledger.records, ledger.conversations, ledger.turns)
        for reason, tally in level.left.items()
    ]
    details = [detail for detail in ledger.details.values() if detail]
    return DataError(
        f"0 {kind} rows: every reply was left out",
        where=", ".join(source.path for source in sources),
        found="\n".join(reasons + details[:2]),
        expected="at least one reply that the template renders and max_length has room for",
        fix="see what becomes of each row: give the same arguments to `imprint show`",
    )


def overview(prepared: Prepared) -> Iterator[Any]:
    """What will be done, for a terminal of 80 columns: the data's account, the plan, each auto and why."""
    from rich.constrain import Constrain
    from rich.table import Table
    from rich.text import Text

    plan = prepared.plan
    yield prepared.ledger.table()
    for reason, detail in prepared.ledger.details.items():
        if detail:
            yield Text(f"{reason}: {detail}", "dim")
    turns = [turn for group in prepared.train for turn in group]
    trained = sum(len(turn.completion) for turn in turns)
    yield Text.assemble(
        ("plan  ", "bold"),
        f"{plural(plan.total_steps, 'step')} of "
        f"{plural(min(plan.batch_size, plan.num_conversations), 'conversation')}: "
        f"{plan.total_steps / plan.steps_per_epoch:.3g} times all "
        f"{plan.num_conversations:,}, which hold {sum(map(len, turns)):,} tokens, {trained:,} of them trained",
    )
    table = Table(box=None, pad_edge=False, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    table.add_column(style="dim", ratio=1)
    for decision in prepared.decisions:
        if decision.value != "auto":
            table.add_row(decision.key, str(decision.value), decision.reason)
    yield Constrain(table, 80)
