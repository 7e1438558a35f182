"""What will be trained, token by token: for a person in a terminal, for a program as JSON lines."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from imprint.render.tokens import Encoder, Ids
from imprint.render.turns import Turn

if TYPE_CHECKING:
    from rich.console import Group
    from rich.text import Text

# two shades each, in turn, so that one sees where a token ends
TRAINED = ("black on green3", "black on dark_sea_green2")
STOP = "bold white on dark_green"
CONTEXT = ("grey66", "grey50")
_LONGEST_CHARACTER = 8  # tokens that may wait for one character to end


def as_json(turn: Turn, number: int, texts: tuple[str, str]) -> dict[str, Any]:
    """One turn for a program. `number` counts the conversation's replies from 0, `texts` are its two sides."""
    prompt, completion = texts
    return {
        "source": str(turn.source),
        "conversation": turn.conversation,
        "turn": number,
        "message": turn.turn,
        "case": turn.case,
        "prompt": prompt,
        "completion": completion,
        "prompt_ids": turn.prompt.tolist(),
        "completion_ids": turn.completion.tolist(),
        "weights": turn.weight.tolist(),
    }


def as_text(
    turn: Turn, number: int, encoder: Encoder, stop_ids: Sequence[int], *, colour: bool = True
) -> Group:
    """One turn for a person: context in grey, what is trained on green, its stop in dark green.

    Without `colour` (a file, a pipe) brackets ⟦ ⟧ stand around what is trained.
    """
    from rich.console import Group
    from rich.text import Text

    trained = sum(1 for weight in turn.weight if weight)
    head = Text.assemble(
        (str(turn.source), "bold cyan"),
        (f"  reply {number + 1}", "bold"),
        f"  {len(turn.prompt):,} tokens of context, {trained:,} trained",
        ("" if turn.case == "prefix" else f"  ({turn.case})", "yellow"),
    )
    body = Text()
    for i, piece in enumerate(pieces(turn.prompt, encoder)):
        body.append(visible(piece), CONTEXT[i % 2])
    stop = len(turn.completion) - 1 if turn.completion[-1] in stop_ids else -1
    trained_ids = turn.completion[:stop] if stop >= 0 else turn.completion
    body.append("" if colour else "⟦")
    for i, piece in enumerate(pieces(trained_ids, encoder)):
        body.append(visible(piece), TRAINED[i % 2])
    if stop >= 0:
        body.append(visible(encoder.decode(turn.completion[stop:])), STOP)
    body.append("" if colour else "⟧")
    if stop < 0:
        body.append(" (no stop is trained)", "bold red")
    return Group(head, body, Text())


def legend(*, colour: bool = True) -> Text:
    """What the colours mean, or the brackets where there are none."""
    from rich.text import Text

    if not colour:
        return Text("context ⟦trained, with its stop⟧   ↵ is a newline")

    return Text.assemble(
        ("context", CONTEXT[0]),
        "  ",
        ("trained", TRAINED[0]),
        (" token by token", TRAINED[1]),
        "  ",
        ("the stop", STOP),
        "   ↵ is a newline",
    )


def pieces(ids: Ids, encoder: Encoder) -> list[str]:
    """The text of each token, which together give the text of all.

    Tokens that hold parts of one character come as one piece; a token's text is what it adds
    behind the piece before it, since many tokenizers drop the space of a first word.
    """
    out: list[str] = []
    before: list[int] = []
    waiting: list[int] = []
    for token in ids.tolist():
        waiting.append(token)
        text = encoder.decode(before + waiting)
        if text.endswith("�") and len(waiting) < _LONGEST_CHARACTER:
            continue
        out.append(text[len(encoder.decode(before)) :])
        before, waiting = waiting, []
    rest = encoder.decode(before + waiting)[len(encoder.decode(before)) :]
    return out + ([rest] if rest else [])


def visible(text: str) -> str:
    """The text with its newlines marked, and control characters shown."""
    marked = text.replace("\n", "↵\n").replace("\t", "⇥\t").replace("\r", "␍")
    return "".join(
        char if char in "\n\t" or char.isprintable() else char.encode("unicode_escape").decode("ascii")
        for char in marked
    )
