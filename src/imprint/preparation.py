"""From a recipe's data to its turns: read, split, rendered, tokenised, accounted for, and kept on disk."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np

from imprint.cache import key_of
from imprint.data.conversation import Conversation
from imprint.data.ledger import Ledger
from imprint.data.load import Identity, Loaded, identify, load, reopen
from imprint.data.locate import names_of
from imprint.data.spool import Scratch
from imprint.errors import DataError
from imprint.recipe import DataSource, Recipe
from imprint.render.identity import shown_dates, template_texts, tokenizer_digest
from imprint.render.inserted import inserted_texts
from imprint.render.replay import Pieces, read_pieces, write_pieces
from imprint.render.resolve import Rendering, config_stops, load_tokenizer, prepare_rendering
from imprint.render.store import TurnStore, TurnWriter
from imprint.render.template import PRESETS
from imprint.render.turns import LeftOut, Noticed, Turn, accounted, render

# The recipe's keys that decide which turns there are and what becomes of the rows; with the bytes
# of `data`, the tokenizer and the model's own stops, all that `Preparation` depends on.
RENDERED_BY = (
    "validation",
    "seed",
    "bad_rows",
    "consecutive_replies",
    "template",
    "template_options",
    "train_on",
    "max_length",
    "too_long",
    "unfaithful",
    "control_tokens",
    "replay_length",
)
FACTS = "prepared.json"


Made = tuple[Loaded, TurnStore, TurnStore, Ledger, Pieces | None]


class Preparation:
    """What a recipe makes of its data, and the key of everything that it depends on."""

    def __init__(self, recipe: Recipe, folder: Path, now: datetime):
        self.recipe, self.folder, self.now = recipe, folder, now
        self.sources = [*recipe.data, *_held_out(recipe.validation), *recipe.replay]
        self.names = list(dict.fromkeys(name for source in self.sources for name in names_of(source)))
        self.identity = identify(recipe.data, _held_out(recipe.validation))
        self.replay_identity = identify(recipe.replay, [])
        self.tokenizer: Any = self.load_tokenizer()
        self.rendering: Rendering | None = None

    def load_tokenizer(self) -> Any:
        return load_tokenizer(str(self.folder), self.recipe.revision, self.recipe.trust_remote_code)

    def key(self) -> str:
        """Equal keys give equal turns, ledgers and splits. Where a file lies is no part of it."""
        recipe, tokenizer = self.recipe, self.tokenizer
        settings = recipe.model_dump(mode="json", include=set(RENDERED_BY))
        if isinstance(recipe.validation, DataSource):
            settings["validation"] = "a source"
        if recipe.template not in ("auto", *PRESETS):
            settings["template"] = "a file"
        texts = template_texts(recipe.template, tokenizer.chat_template)
        parts = {
            "data": [*self.identity.parts, *self.replay_identity.parts[:1]],
            "names": [[self.names.index(name) for name in names_of(source)] for source in self.sources],
            "settings": settings,
            "tokenizer": tokenizer_digest(tokenizer),
            "templates": texts,
            "dates": shown_dates(texts, self.now),
            "stops": config_stops(self.folder),
        }
        return key_of(parts)

    def render_with(self, reasoning: float) -> Rendering:
        # a template's tokens are added to the tokenizer: what is made twice begins with a new one
        tokenizer, self.tokenizer = self.tokenizer or self.load_tokenizer(), None
        return _rendering(self.recipe, tokenizer, self.folder, self.now, reasoning)

    def make(self, folder: Path) -> None:
        """Read, split, render and tokenise into a folder; what is wrong with the data is raised."""
        recipe, ledger = self.recipe, Ledger()
        loaded = _load(recipe, recipe.validation, ledger, folder, self.identity)
        self.rendering = rendering = self.render_with(loaded.reasoning)
        train = turns_of(loaded.train, recipe, rendering, ledger, "trained", folder)
        validation = turns_of(loaded.validation, recipe, rendering, ledger, "validated", folder)
        ledger.check()
        if not train:
            raise nothing_left("trainable", ledger, recipe.data)
        if not validation and isinstance(recipe.validation, DataSource):
            raise nothing_left("validation", ledger, [recipe.validation])
        if not validation and loaded.validation:
            ledger.warn("no held-out reply is left: nothing is validated", loaded.validation[0].source)
        replay = None
        if recipe.replay:
            _, replay = cut_replay(recipe, rendering, folder, self.replay_identity)
        facts = json.dumps({"names": self.names, "ledger": ledger.to_json(), "replay": replay})
        (folder / FACTS).write_text(facts, encoding="utf-8")

    def read(self, folder: Path, keep: object) -> Made:
        """What `make` wrote, as if the files had always had the names that they have now."""
        facts = json.loads((folder / FACTS).read_text(encoding="utf-8"))
        renamed = dict(zip(facts["names"], self.names, strict=True))
        train, validation = (TurnStore(folder, part, renamed, keep) for part in ("train", "validation"))
        ledger = Ledger.from_json(_with_names(facts["ledger"], renamed))
        replay = facts["replay"] and read_pieces(folder, _with_names(facts["replay"], renamed), renamed, keep)
        return reopen(folder, renamed, keep), train, validation, ledger, replay


def _held_out(validation: float | DataSource) -> list[DataSource]:
    return [validation] if isinstance(validation, DataSource) else []


def _with_names(value: Any, renamed: Mapping[str, str]) -> Any:
    """A ledger's JSON with other names of files."""
    if isinstance(value, list):
        return [_with_names(item, renamed) for item in value]
    if not isinstance(value, dict):
        return value
    made = {key: _with_names(item, renamed) for key, item in value.items()}
    if "places" in made:
        made["places"] = [[renamed.get(file, file), *rest] for file, *rest in made["places"]]
    if "files" in made:
        made["files"] = {renamed.get(file, file): count for file, count in made["files"].items()}
    return made


def _load(
    recipe: Recipe,
    validation: float | DataSource,
    ledger: Ledger,
    folder: Path | None = None,
    identity: Identity | None = None,
) -> Loaded:
    return load(
        recipe.data,
        validation=validation,
        bad_rows=recipe.bad_rows,
        consecutive_replies=recipe.consecutive_replies,
        seed=recipe.seed,
        ledger=ledger,
        folder=folder,
        identity=identity,
    )


def cut_replay(
    recipe: Recipe, rendering: Rendering, folder: Path, identity: Identity | None = None
) -> tuple[Loaded, dict[str, Any]]:
    """Read, render and cut what is replayed into a folder: its rows, and what `read_pieces` needs beside it."""
    assert isinstance(recipe.replay_length, int)
    ledger = Ledger()
    loaded = load(
        recipe.replay,
        validation=0.0,
        bad_rows=recipe.bad_rows,
        consecutive_replies=recipe.consecutive_replies,
        seed=recipe.seed,
        ledger=ledger,
        identity=identity,
        key="replay",
    )
    ledger.turns.kept = {"cut": 0}
    turns = accounted(rendered(loaded.train, recipe, rendering, recipe.replay_length), ledger, "cut")
    write_pieces(folder, loaded.train, turns, ledger)
    ledger.check()
    if not ledger.pieces.kept["to draw from"]:
        raise nothing_left("replay", ledger, recipe.replay)
    return loaded, {"ledger": ledger.to_json(), "fingerprint": loaded.fingerprint}


def _rendering(recipe: Recipe, tokenizer: Any, folder: Path, now: datetime, reasoning: float) -> Rendering:
    return prepare_rendering(
        tokenizer,
        template=recipe.template,
        options=recipe.template_options,
        now=now,
        reasoning=reasoning,
        config_stops=config_stops(folder),
    )


def rendering_of(recipe: Recipe, now: datetime, reasoning: float = 0.0) -> Rendering:
    """How a recipe's model would see conversations of which a share has reasoning; no data is read."""
    folder = Path(recipe.model)
    tokenizer = load_tokenizer(str(folder), recipe.revision, recipe.trust_remote_code)
    return _rendering(recipe, tokenizer, folder, now, reasoning)


def read_and_render(
    recipe: Recipe, folder: Path, now: datetime, validation: float | DataSource
) -> tuple[Loaded, Rendering, Ledger]:
    """The conversations, the tokenizer with its template, and the ledger so far; past the cache."""
    tokenizer = load_tokenizer(str(folder), recipe.revision, recipe.trust_remote_code)
    ledger = Ledger()
    loaded = _load(recipe, validation, ledger)
    return loaded, _rendering(recipe, tokenizer, folder, now, loaded.reasoning), ledger


def rendered(
    conversations: Sequence[Conversation],
    recipe: Recipe,
    rendering: Rendering,
    document_length: int | None = None,
) -> Iterator[Turn | LeftOut | Noticed]:
    """What becomes of every reply, as the recipe wants it; documents are cut to `document_length` tokens."""
    assert isinstance(recipe.max_length, int)
    return render(
        conversations,
        rendering.template,
        rendering.encoder,
        train_on=recipe.train_on,
        max_length=recipe.max_length,
        document_length=document_length,
        too_long=recipe.too_long,
        unfaithful=recipe.unfaithful,
        control_tokens=recipe.control_tokens,
        stop_ids=rendering.stop_ids,
    )


def turns_of(
    conversations: Sequence[Conversation],
    recipe: Recipe,
    rendering: Rendering,
    ledger: Ledger,
    kind: str,
    folder: Path | None = None,
) -> TurnStore:
    """The turns of each conversation that has any; what becomes of every reply goes into the ledger.

    They are written into `folder` (none: a temporary one), and read from there.
    """
    part = "train" if kind == "trained" else "validation"
    scratch = Scratch() if folder is None else None
    place = scratch.path if scratch else folder
    assert place is not None
    if kind == "trained":
        for inserted in inserted_texts(conversations, rendering.template, rendering.encoder):
            ledger.note(str(inserted))
    with TurnWriter(place, part) as writer:
        for turn in accounted(rendered(conversations, recipe, rendering), ledger, kind):
            writer.add(turn)
    store = TurnStore(place, part, keep=scratch)
    for index in np.setdiff1d(np.arange(len(conversations)), store.conversations).tolist():
        ledger.withdraw(part, conversations[index].source, "none of its replies can be trained")
    return store


# what mends the reasons for which replies are left out
REMEDIES = {
    "the template drops the reply's reasoning": "template=chatml shows reasoning in <think> tags; "
    "unfaithful=keep trains the replies without it",
    "the template has no place for tools": "template=chatml has one",
    "the prompt opens a thought and the row has no reasoning": "choose a template that opens none: "
    "template=chatml",
    "control tokens in its text": "control_tokens=escape makes ordinary text of them",
    "its prompt alone fills max_length": "raise max_length, or shorten the row",
    "it is longer than max_length": "raise max_length, or too_long=truncate",
}


def nothing_left(kind: str, ledger: Ledger, sources: Sequence[DataSource]) -> DataError:
    """The error that says why no reply can be used."""
    reasons = [
        f"{tally.count:,} × {reason} ({tally})"
        for level in (ledger.records, ledger.conversations, ledger.turns)
        for reason, tally in level.left.items()
    ]
    details = [detail for reason in ledger.turns.left if (detail := ledger.details.get(reason))]
    most = max(ledger.turns.left, key=lambda reason: ledger.turns.left[reason].count, default="")
    fix = "see what becomes of each row: give the same arguments to `imprint show`"
    return DataError(
        f"0 {kind} rows: every reply was left out",
        where=", ".join(source.path for source in sources),
        found="\n".join(reasons + details[:2]),
        expected="at least one reply that the template renders and max_length has room for",
        fix=f"{REMEDIES[most]}; or {fix}" if most in REMEDIES else fix,
    )
