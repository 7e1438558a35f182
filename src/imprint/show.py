"""`imprint show`: the turns of a recipe, as they will be trained, from the tokenizer alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from itertools import islice
from pathlib import Path
from typing import overload

from imprint.auto import replay_length
from imprint.data.conversation import Conversation, Place
from imprint.data.ledger import Ledger
from imprint.data.spool import Part, Scratch
from imprint.model_facts import read_model_facts
from imprint.preparation import cut_replay, read_and_render, rendered, turns_of
from imprint.recipe import Recipe
from imprint.render.account import Account, Owned, owned, owned_whole
from imprint.render.control import escape_control
from imprint.render.replay import Pieces, read_pieces
from imprint.render.resolve import Rendering
from imprint.render.tokens import Encoder
from imprint.render.turns import LeftOut, Noticed, ReplyText, Turn, reply_texts
from imprint.track.words import plural

UNLIMITED = 1 << 40
CUT = ("everything", "truncated")  # cases in which prompt and completion are parted by tokens, not by text


@dataclass(frozen=True)
class View:
    """A turn with what there is to show of it; `number` counts its conversation's replies from 0."""

    turn: Turn
    number: int
    prompt: str
    completion: str
    owned: Owned


class Turns(Sequence[Turn]):
    """The turns of all conversations in a row, read as they are asked for."""

    def __init__(self, groups: Sequence[Sequence[Turn]]):
        self.groups = groups

    def __iter__(self) -> Iterator[Turn]:
        return (turn for group in self.groups for turn in group)

    def __len__(self) -> int:
        return sum(len(group) for group in self.groups)

    @overload
    def __getitem__(self, index: int) -> Turn: ...
    @overload
    def __getitem__(self, index: slice) -> list[Turn]: ...
    def __getitem__(self, index: int | slice) -> Turn | list[Turn]:
        if isinstance(index, slice):
            ends_early = index.stop is not None and min(index.start or 0, index.stop, index.step or 1) >= 0
            return list(islice(self, index.stop if ends_early else None))[index]
        if index < 0:
            index += len(self)
        for i, turn in enumerate(self if index >= 0 else ()):
            if i == index:
                return turn
        raise IndexError(index)


@dataclass(frozen=True)
class Shown:
    """What there is to show of a recipe: its turns, how they were rendered, and the ledger.

    `groups` holds the turns of each conversation that has any; `held_out` are the rows of a
    validation source, which are not among the turns; nor are the pieces of `replay`.
    """

    groups: Sequence[Sequence[Turn]]
    conversations: Sequence[Conversation]
    held_out: Sequence[Conversation]
    rendering: Rendering
    recipe: Recipe
    ledger: Ledger
    replay: ShownReplay | None = None

    @property
    def turns(self) -> Turns:
        return Turns(self.groups)

    def number(self, turn: Turn) -> int:
        """Which of its conversation's replies a turn is, from 0."""
        return _number(self.conversations[turn.conversation], turn)

    def texts(self, turn: Turn) -> tuple[str, str]:
        """Prompt and completion as the template wrote them: what the ids are the ids of."""
        (view,) = self.views(self.conversations[turn.conversation], [turn])
        return view.prompt, view.completion

    def views(self, conversation: Conversation, turns: Sequence[Turn]) -> list[View]:
        """The turns of one conversation with their texts, and whose each token is."""
        recipe, encoder = self.recipe, self.rendering.encoder
        if not conversation.is_chat:
            return [
                View(turn, i, *_decoded(turn, encoder), owned_whole(turn, encoder))
                for i, turn in enumerate(turns)
            ]
        replies = {
            reply.turn: reply
            for reply in reply_texts(
                conversation,
                0,
                self.rendering.template,
                encoder,
                recipe.train_on,
                recipe.unfaithful,
                recipe.control_tokens,
            )
            if isinstance(reply, ReplyText)
        }
        # what was stored may be refused now (by a limit): then the ids say what was trained
        written = {turn.turn: _decoded(turn, encoder) for turn in turns if turn.turn not in replies}
        written |= {number: (reply.prompt, reply.completion) for number, reply in replies.items()}
        texts = ["".join(written[turn.turn]) for turn in turns]
        said = escape_control(conversation, encoder) if recipe.control_tokens == "escape" else conversation
        views = []
        for turn, known in zip(turns, owned(turns, texts, said, encoder), strict=True):
            prompt, completion = _decoded(turn, encoder) if turn.case in CUT else written[turn.turn]
            views.append(View(turn, _number(conversation, turn), prompt, completion, known))
        return views

    def all_views(self, limit: int | None = None) -> Iterator[View]:
        """The first turns, or all, in the order of the data."""
        left = limit
        for group in self.groups:
            turns = group[:left]
            if not turns:
                return
            yield from self.views(self.conversations[turns[0].conversation], turns)
            left = None if left is None else left - len(turns)

    def account(self) -> Account:
        """How many tokens of each file are trained, and whose; renders all of the data once more."""
        account = Account(self.rendering.stop_ids)
        for group in self.groups:
            conversation = self.conversations[group[0].conversation]
            views = self.views(conversation, group)
            account.add(conversation, group, [view.owned for view in views])
        return account

    def items_of(self, conversation: Conversation) -> list[Turn | LeftOut]:
        """What becomes of each reply of one conversation."""
        items = rendered([conversation], self.recipe, self.rendering)
        found = [item for item in items if not isinstance(item, Noticed)]
        return sorted(found, key=lambda item: item.turn)


@dataclass(frozen=True)
class ShownReplay:
    """The pieces of replay. In `shown` each is a conversation of its own, with one group of turns."""

    shown: Shown
    pieces: Pieces

    def views(self, limit: int | None = None) -> Iterator[tuple[View, bool]]:
        """The first pieces, or all, in the order of the sources; and whether a piece is held out."""
        held_out = set(self.pieces.held_out.numbers)
        seen: dict[int, int] = {}  # pieces of each document so far
        for number, group in enumerate(islice(self.shown.groups, limit)):
            origin = self.pieces.origin[number]
            for view in self.shown.views(self.shown.conversations[number], group):
                yield replace(view, number=view.number + seen.get(origin, 0)), number in held_out
            seen[origin] = seen.get(origin, 0) + 1

    def at(self, place: Place) -> tuple[list[tuple[Conversation, list[Turn]]], int, int]:
        """The documents of a place with their pieces; how many pieces these are, and how many held out."""
        numbers: dict[int, list[int]] = {}
        for number, origin in enumerate(self.pieces.origin):
            numbers.setdefault(origin, []).append(number)
        conversations = self.shown.conversations
        found = [own for own in numbers.values() if conversations[own[0]].source == place]
        parts = [(conversations[own[0]], [t for n in own for t in self.shown.groups[n]]) for own in found]
        every = {number for own in found for number in own}
        return parts, len(every), len(every.intersection(self.pieces.held_out.numbers))

    def told(self) -> str:
        """What there is of it, in a line."""
        recipe, pieces = self.shown.recipe, self.pieces
        of = "conversations" if recipe.replay_share_of == "conversations" else "loss weight"
        return (
            f"{plural(len(pieces.drawable), 'piece')} to draw from, {recipe.replay_share:.3g} of each step's {of}; "
            f"{len(pieces.held_out):,} held out and never trained"
        )


def shown_turns(recipe: Recipe, now: datetime | None = None) -> Shown:
    """What a recipe trains, in the order of its data.

    The model folder needs no weights, and no config.json: then max_length has no default.
    Validation rows taken as a share are shown where they stand in the data. `now` is the date that
    templates see.
    """
    folder = Path(recipe.model)
    if not folder.is_dir():
        read_model_facts(recipe.model, recipe.revision)  # a misspelt folder is found before the hub is asked
    validation = 0.0 if isinstance(recipe.validation, float) else recipe.validation
    loaded, rendering, ledger = read_and_render(recipe, folder, now or datetime.now(), validation)
    if recipe.max_length == "auto":
        facts = read_model_facts(recipe.model) if (folder / "config.json").is_file() else None
        recipe = recipe.model_copy(update={"max_length": (facts.context if facts else None) or UNLIMITED})
    groups = turns_of(loaded.train, recipe, rendering, ledger, "trained")
    replay = _shown_replay(recipe, rendering) if recipe.replay else None
    return Shown(groups, loaded.train, loaded.validation, rendering, recipe, ledger, replay)


def _shown_replay(recipe: Recipe, rendering: Rendering) -> ShownReplay:
    if recipe.replay_length == "auto":
        recipe = recipe.model_copy(update={"replay_length": replay_length(recipe, None).value})
    scratch = Scratch()
    loaded, facts = cut_replay(recipe, rendering, scratch.path)
    pieces = read_pieces(scratch.path, facts, keep=scratch)
    own = Part(loaded.train.spool, [loaded.train.rows[number] for number in pieces.origin])
    return ShownReplay(Shown(pieces.drawable.store, own, [], rendering, recipe, pieces.ledger), pieces)


def _decoded(turn: Turn, encoder: Encoder) -> tuple[str, str]:
    return encoder.decode(turn.prompt), encoder.decode(turn.completion)


def _number(conversation: Conversation, turn: Turn) -> int:
    return sum(message.role == "assistant" for message in conversation.messages[: turn.turn])
