"""What will be trained, token by token: for a person in a terminal, for a program as JSON lines."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from imprint.render.spans import Span, grouped
from imprint.render.tokens import Encoder, Ids
from imprint.render.turns import Turn

if TYPE_CHECKING:
    from rich.console import Group
    from rich.text import Text

# two shades each, in turn, so that one sees where a token ends
TRAINED = ("black on green3", "black on dark_sea_green2")
STOP = "bold white on dark_green"
CONTEXT = ("grey66", "grey50")


def as_json(turn: Turn, number: int, texts: tuple[str, str], spans: Sequence[Span] = ()) -> dict[str, Any]:
    """One turn for a program. `number` counts the conversation's replies from 0, `texts` are its two sides.

    `spans` say whose the characters of the prompt are; a part that was not found has no characters.
    """
    prompt, completion = texts
    owners = [
        {"start": span.start, "end": min(span.end, len(prompt)), "role": span.role}
        | ({"message": span.message_index, "part": span.part} if span.message_index >= 0 else {})
        for span in spans
        if span.start < len(prompt)
    ]
    return {
        "source": str(turn.source),
        "conversation": turn.conversation,
        "turn": number,
        "message": turn.turn,
        "case": turn.case,
        "prompt": prompt,
        "completion": completion,
        "prompt_spans": owners,
        "prompt_ids": turn.prompt.tolist(),
        "completion_ids": turn.completion.tolist(),
        "weights": turn.weight.tolist(),
    }


def as_text(
    turn: Turn,
    number: int,
    encoder: Encoder,
    stop_ids: Sequence[int],
    *,
    colour: bool = True,
    most: int | None = None,
    mark: str = "",
) -> Group:
    """One turn for a person: context in grey, what is trained on green, its stop in dark green.

    Without `colour` (a file, a pipe) brackets ⟦ ⟧ stand around what is trained. Of a context longer
    than `most` tokens the beginning and the end are shown. `mark` is said of it first.
    """
    from rich.console import Group
    from rich.text import Text

    trained = sum(1 for weight in turn.weight if weight)
    shares = sorted({float(weight) for weight in turn.weight if weight})
    head = Text.assemble(
        (f"{mark}  " if mark else "", "bold magenta"),
        (str(turn.source), "bold cyan"),
        (f"  {'piece' if turn.case == 'document' else 'reply'} {number + 1}", "bold"),
        f"  {len(turn.prompt):,} tokens of context, {trained:,} trained",
        ("" if turn.case == "prefix" else f"  ({turn.case})", "yellow"),
        ("" if shares == [1.0] else f"  weight {', '.join(f'{share:g}' for share in shares)}", "yellow"),
    )
    body = Text()
    for part in _folded(turn.prompt, most):
        if isinstance(part, int):
            body.append(f"\n… {part:,} tokens more …\n", "italic yellow")
            continue
        for i, piece in enumerate(pieces(part, encoder)):
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


def _folded(ids: Ids, most: int | None) -> list[Ids | int]:
    """The ids; of more than `most` the first and the last, and how many lie between."""
    if most is None or len(ids) <= most:
        return [ids]
    return [ids[: most // 2], len(ids) - 2 * (most // 2), ids[-(most // 2) :]]


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
    """The text of each token, which together give the text of all; parts of one character are one piece."""
    return [piece for piece, _ in grouped(ids, encoder)]


def visible(text: str) -> str:
    """The text with its newlines marked, and control characters shown."""
    marked = text.replace("\n", "↵\n").replace("\t", "⇥\t").replace("\r", "␍")
    return "".join(
        char if char in "\n\t" or char.isprintable() else char.encode("unicode_escape").decode("ascii")
        for char in marked
    )
