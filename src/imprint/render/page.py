"""The page of `imprint show --html`: one file that shows every token, and needs nothing beside it.

What is shown comes from strangers' rows and is hostile until proven otherwise: the tokens travel as
ASCII JSON in which no tag can begin, the script writes them as text only, Jinja escapes the rest,
and the page forbids itself the network and every script but its own.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from imprint.render.account import KINDS, UNKNOWN, Owned, kind_of
from imprint.render.compare import Range
from imprint.render.spans import grouped
from imprint.render.tokens import Encoder
from imprint.render.turns import Turn


def side_of(
    turn: Turn, owned: Owned, encoder: Encoder, stop_ids: Sequence[int], changed: Sequence[Range] = ()
) -> dict[str, Any]:
    """One rendering of a turn, as the page's script reads it.

    ids      [tokens]
    pieces   the text of each token; parts of one character are one piece
    joined   {index of a piece: how many tokens make it}, where there are several
    prompt   how many tokens are context
    weights  [weight, tokens, …] of the completion, run by run
    owners   [kind, message, tokens, …] of all, run by run; message -1 is none
    changed  [first, behind, …] characters that another template writes otherwise
    stop     whether the last token is a stop that is trained
    """
    pieces, joined = _pieces(turn, owned, encoder)
    kinds = [UNKNOWN] * len(turn)
    messages = [-1] * len(turn)
    if owned.owners is not None:
        spans = [owned.spans[i] for i in owned.owners]
        kinds = [kind_of(span, turn.turn) for span in spans]
        messages = [span.message_index for span in spans]
    owners = [(KINDS.index(kind), message) for kind, message in zip(kinds, messages, strict=True)]
    return {
        "ids": turn.ids.tolist(),
        "pieces": pieces,
        "joined": joined,
        "prompt": len(turn.prompt),
        "weights": _runs([(float(weight),) for weight in turn.weight]),
        "owners": _runs(owners),
        "changed": _tokens_of(changed, pieces),
        "stop": int(turn.completion[-1]) in stop_ids and bool(turn.weight[-1]),
        "missing": sorted({f"message {s.message_index + 1} ({s.part})" if s.message_index >= 0 else "the tools"
                           for s in owned.spans if s.missing}),
    }  # fmt: skip


def _pieces(turn: Turn, owned: Owned, encoder: Encoder) -> tuple[list[str], dict[int, int]]:
    """The text of each token, and which pieces are of several tokens."""
    pieces: list[str] = []
    counts: list[int] = []
    if owned.offsets is None:
        for piece, count in grouped(turn.ids, encoder):
            pieces.append(piece)
            counts.append(count)
    else:
        at = 0
        for _, end in owned.offsets:
            if end <= at and pieces:  # a further part of a character
                counts[-1] += 1
            else:
                pieces.append(owned.text[at:end])
                counts.append(1)
                at = max(at, end)
    return pieces, {i: count for i, count in enumerate(counts) if count != 1}


def _runs(values: Sequence[tuple[Any, ...]]) -> list[Any]:
    """Values run by run, flat: each value's parts, then how often it comes in a row."""
    out: list[Any] = []
    width = len(values[0]) + 1 if values else 1
    for value in values:
        if out and tuple(out[-width:-1]) == value:
            out[-1] += 1
        else:
            out += [*value, 1]
    return out


def _tokens_of(ranges: Sequence[Range], pieces: Sequence[str]) -> list[int]:
    """The pieces that hold any of the characters: [first, behind, …]."""
    out: list[int] = []
    waiting = iter(ranges)
    current = next(waiting, None)
    at = 0
    for i, piece in enumerate(pieces):
        end = at + len(piece)
        while current is not None and current[1] <= at:
            current = next(waiting, None)
        if current is not None and piece and current[0] < end:
            if out and out[-1] == i:
                out[-1] = i + 1
            else:
                out += [i, i + 1]
        at = end
    return out


def write(facts: Mapping[str, Any], data: Mapping[str, Any]) -> str:
    """The page. `facts` is what stands in it as text, `data` what its script shows (`kinds` is added)."""
    here = Path(__file__).parent
    script = (here / "page.js").read_text(encoding="utf-8")
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(here),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["count"] = lambda number: f"{number:,}"
    return environment.get_template("page.html.jinja").render(
        facts,
        style=Markup((here / "page.css").read_text(encoding="utf-8")),
        script=Markup(script),
        digest="sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        data=Markup(as_script_data({**data, "kinds": list(KINDS)})),
    )


def as_script_data(value: Any) -> str:
    """JSON that may stand in a script element: ASCII, and without a character that HTML reads."""
    text = json.dumps(value, ensure_ascii=True, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
