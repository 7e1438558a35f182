"""Of `imprint show`: what the page of `--html` holds."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from imprint.data.ledger import Ledger
from imprint.errors import RunError
from imprint.render.account import CASES, HOW, REPLY, UNKNOWN, Account
from imprint.render.compare import Side, differences, verdict
from imprint.render.page import side_of
from imprint.render.page import write as render_page
from imprint.render.preview import visible
from imprint.render.resolve import Rendering
from imprint.show import Shown, View
from imprint.show_diff import Pair, pairs
from imprint.show_row import Out, Row, everything_left_out

MOST_LEFT_OUT = 2_000  # listed; the ledger counts them all
USERS = ("system", "user", "tool results", "tool definitions")


@dataclass(frozen=True)
class Written:
    """What was written, in a sentence."""

    told: str


def write_page(path: Path, shown: Shown, other: Shown | None, row: Row | None, number: int) -> Written:
    """Write the page; RunError where its folder is not there, or the path is a folder."""
    if path.is_dir() or not path.absolute().parent.is_dir():
        raise RunError(
            "the page cannot be written there",
            where=f"--html {path}",
            expected="a file in a folder that exists",
            fix="--html shown.html",
        )
    sources: dict[str, int] = {}
    turns = list(_turns(shown, other, row, number, sources))
    out = row.out if row else everything_left_out(shown, MOST_LEFT_OUT)
    account = shown.account()
    total = shown.ledger.turns.kept["trained"]
    data = {
        "names": [one.rendering.template.name for one in (shown, other) if one],
        "turns": turns,
        "out": [_out(one, sources) for one in out],
        "sources": list(sources),
    }
    facts = {
        "title": Path(shown.recipe.model).name or shown.recipe.model,
        "files": list(dict.fromkeys(source.path for source in shown.recipe.data)),
        "row": str(row.place) if row else "",
        "held_out": bool(row and row.held_out),
        "template": shown.rendering.template.name,
        "other": other.rendering.template.name if other else "",
        "stops": _stops(shown.rendering),
        "other_stops": _stops(other.rendering) if other else [],
        "notes": [
            *shown.rendering.notes,
            *shown.ledger.notes,
            *(other.rendering.notes if other else ()),
            *_mixed_in(shown),
        ],
        "account": account,
        "sums": _sums(account),
        "how": HOW,
        "reply": REPLY,
        "cases": [(count, case, CASES.get(case, "")) for case, count in account.cases.most_common()],
        "levels": list(_levels(shown.ledger)),
        "warnings": [(text, tally.count, str(tally)) for text, tally in shown.ledger.warnings.items()],
        "num_shown": len(turns),
        "num_turns": total,
        "num_out": len(out),
        "all_out": len(out) if row else shown.ledger.records.num_left + _left(shown.ledger),
    }
    aside = path.with_name(path.name + ".new")
    aside.write_text(render_page(facts, data), encoding="utf-8")
    os.replace(aside, path)
    more = "" if row or other or len(turns) == total else f" of {total:,}; -n shows more"
    return Written(f"{len(turns):,} turns{more}")


def _mixed_in(shown: Shown) -> list[str]:
    """What is said of replay, whose pieces are not on the page."""
    return [f"replay: {shown.replay.told()}; `imprint show` prints some"] if shown.replay else []


def _turns(
    shown: Shown, other: Shown | None, row: Row | None, number: int, sources: dict[str, int]
) -> Iterator[dict[str, Any]]:
    conversations = shown.conversations if row is None else row.conversations
    if other is not None:
        for pair in islice(pairs(shown, other, conversations), number):
            yield _pair(pair, shown, other, sources)
        return
    views: Iterable[View] = shown.all_views(number)
    if row is not None:
        views = row.views(shown, number)
    for view in views:
        rendering = shown.rendering
        left = side_of(view.turn, view.owned, rendering.encoder, rendering.stop_ids)
        yield _head(str(view.turn.source), view.turn.source.file, view.number, sources) | {
            "case": view.turn.case,
            "sides": [left],
        }


def _pair(pair: Pair, shown: Shown, other: Shown, sources: dict[str, int]) -> dict[str, Any]:
    changed: tuple[list[tuple[int, int]], list[tuple[int, int]]] = ([], [])
    if pair.left_view and pair.right_view:
        left, right = pair.left_view, pair.right_view
        changed = differences(left.prompt + left.completion, right.prompt + right.completion)
    case = next((view.turn.case for view in (pair.left_view, pair.right_view) if view), "prefix")
    return _head(pair.place, pair.file, pair.number, sources) | {
        "case": case,
        "verdict": verdict(pair.left, pair.right),
        "sides": [
            _side(pair.left, pair.left_view, shown.rendering, changed[0]),
            _side(pair.right, pair.right_view, other.rendering, changed[1]),
        ],
    }


def _side(
    side: Side, view: View | None, rendering: Rendering, changed: list[tuple[int, int]]
) -> dict[str, Any]:
    if view is None:
        return {"reason": side.reason}
    return side_of(view.turn, view.owned, rendering.encoder, rendering.stop_ids, changed)


def _head(place: str, file: str, number: int, sources: dict[str, int]) -> dict[str, Any]:
    return {"place": place, "source": sources.setdefault(file, len(sources)), "number": number}


def _out(out: Out, sources: dict[str, int]) -> dict[str, Any]:
    return {
        "what": out.what,
        "place": str(out.place),
        "source": sources.setdefault(out.place.file, len(sources)),
        "message": out.message,
        "reason": out.reason,
        "detail": out.detail,
    }


def _stops(rendering: Rendering) -> list[tuple[str, int]]:
    return [(visible(rendering.encoder.decode([i])), i) for i in rendering.stop_ids]


def _sums(account: Account) -> dict[str, int]:
    """The figures that matter: what is trained, and what of it a user, a system or a tool wrote."""
    sums: Counter[str] = Counter(
        conversations=0, turns=0, trained=0, context=0, stops=0, others=0, unknown=0, longest=0
    )
    for file in account.files.values():
        total = file.total
        sums.update(conversations=file.conversations, turns=file.turns, trained=total.trained)
        sums.update(context=total.context, stops=total.stop)
        sums.update(others=sum(share.trained for kind, share in file.rows() if kind in USERS))
        unknown = file.kinds.get(UNKNOWN)
        sums.update(unknown=file.lost + (unknown.trained if unknown else 0))
        sums["longest"] = max(sums["longest"], file.longest)
    return dict(sums)


def _left(ledger: Ledger) -> int:
    """Conversations and replies that are left out, but for conversations whose replies all are."""
    withdrawn = ledger.conversations.left.get("none of its replies can be trained")
    return ledger.conversations.num_left - (withdrawn.count if withdrawn else 0) + ledger.turns.num_left


def _levels(ledger: Ledger) -> Iterator[dict[str, Any]]:
    for name, left, level in (
        ("Records read", "refused", ledger.records),
        ("Conversations", "left out", ledger.conversations),
        ("Turns", "left out", ledger.turns),
    ):
        reasons = sorted(level.left.items(), key=lambda item: -item[1].count)
        yield {
            "name": name,
            "total": level.total,
            "kept": [(kind, count) for kind, count in level.kept.items() if count],
            "left": left,
            "num_left": level.num_left,
            "reasons": [
                (reason, tally.count, str(tally), ledger.details.get(reason, "")) for reason, tally in reasons
            ],
        }
