"""What `imprint data check` prints: for a person at 80 columns, or as JSON."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from imprint.cli_arguments import console_for, plainly
from imprint.data.check import Shape, Survey, middle, survey, to_json
from imprint.data.conversation import Conversation, Place
from imprint.data.ledger import Tally
from imprint.data.load import settle
from imprint.data.repeats import Repeated
from imprint.data.signs import HELP
from imprint.track.words import plural

if TYPE_CHECKING:
    from rich.console import Console

    from imprint.recipe import Recipe
    from imprint.render.resolve import Rendering
    from imprint.show import View

Keep = Callable[["Recipe", "Rendering | None"], None]
LABEL = 15  # columns of a label
EXCERPT = 300  # characters of a message that are shown
CONTEXT = 400  # tokens of a context that are shown


def print_check(recipe: Recipe, *, has_model: bool, as_json: bool, keep: Keep) -> bool:
    """Look through a recipe's data and print what was found; whether a run would take all of its rows."""
    rendering = None
    if has_model:
        recipe, rendering = _with_model(recipe)
    found = survey(
        recipe.data,
        consecutive_replies=recipe.consecutive_replies,
        seed=recipe.seed,
        control=rendering.encoder.control if rendering else None,
    )
    if rendering and found.reasoning:
        recipe, rendering = _with_model(recipe, found.reasoning)
    keep(recipe, rendering)
    if as_json:
        facts = to_json(found)
        if rendering:
            views = (view for one in found.examples for view in _views(one, recipe, rendering)[0])
            facts["turns"] = list(map(_turn_to_json, views))
        typer.echo(json.dumps(facts, indent=2, ensure_ascii=False, default=str))
    else:
        _print(console_for(), found, recipe, rendering)
    return not found.refused or recipe.bad_rows == "leave_out"


def _with_model(recipe: Recipe, reasoning: float = 0.0) -> tuple[Recipe, Rendering]:
    from imprint.auto import read_model_facts
    from imprint.preparation import rendering_of
    from imprint.show import UNLIMITED

    facts = read_model_facts(recipe.model) if (Path(recipe.model) / "config.json").is_file() else None
    length = (facts.context if facts else None) or UNLIMITED
    return recipe.model_copy(update={"max_length": length}), rendering_of(recipe, datetime.now(), reasoning)


def _views(conversation: Conversation, recipe: Recipe, rendering: Rendering) -> tuple[list[View], str]:
    """The turns of an example, as `imprint show` would show them; and why others are left out."""
    from imprint.data.ledger import Ledger
    from imprint.preparation import rendered
    from imprint.render.turns import LeftOut, Turn
    from imprint.show import Shown

    settled = settle(conversation, recipe.consecutive_replies)
    if isinstance(settled, str):
        return [], settled
    found = list(rendered([settled], recipe, rendering))
    turns = [one for one in found if isinstance(one, Turn)]
    why = "; ".join(
        dict.fromkeys(f"{one.reason} ({one.detail})" for one in found if isinstance(one, LeftOut))
    )
    return Shown([turns], [settled], [], rendering, recipe, Ledger()).views(settled, turns), why


def _turn_to_json(view: View) -> dict[str, Any]:
    from imprint.render.preview import as_json

    return as_json(view.turn, view.number, (view.prompt, view.completion), view.owned.spans)


def _print(console: Console, found: Survey, recipe: Recipe, rendering: Rendering | None) -> None:
    from rich.text import Text

    for shape in found.shapes:
        console.print(Text.assemble((shape.source, "bold cyan"), f"  {shape.format}"))
        _print_pairs(console, _about(shape))
        console.print()
    _print_tallies(console, found)
    if found.examples:
        _print_examples(console, found, recipe, rendering)
    _print_bad(console, found)
    console.print(verdict(found, recipe.bad_rows), markup=False)


def _print_pairs(console: Console, pairs: Iterator[tuple[str, str]]) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table(
        box=None, show_header=False, pad_edge=False, padding=(0, 1, 0, 2), width=min(80, console.width)
    )
    table.add_column(style="dim", width=LABEL, no_wrap=True)
    table.add_column(overflow="fold", ratio=1)
    for label, text in pairs:
        table.add_row(label, Text(text))
    console.print(table)


def _about(shape: Shape) -> Iterator[tuple[str, str]]:
    """What there is to say of the rows of one format."""
    yield "rows", f"{shape.rows:,}, {_recognised(shape)}"
    evidence = shape.evidence
    if evidence and evidence.ignored:
        yield "not used", ", ".join(evidence.ignored)
    if evidence and evidence.alternatives:
        yield "not taken for", ", ".join(evidence.alternatives)
    if not shape.conversations:
        return
    low, half, high = middle(shape.sizes)
    each = (
        f"of {plural(low, 'message')}"
        if low == high
        else f"of {low:,} to {high:,} messages, the median {half:,}"
    )
    if chats := shape.conversations - shape.documents - shape.tokenised:
        yield "conversations", f"{chats:,} {each}"
    if shape.documents:
        yield "documents", f"{shape.documents:,}, for replay: all of their text is trained"
    if shape.tokenised:
        yield "tokenised", f"{shape.tokenised:,}, trained as they are"
    if shape.replies:
        yield "replies", ", ".join([f"{shape.replies:,}", *_of_replies(shape)])
    if shape.with_tools:
        yield "tools", f"offered in {plural(shape.with_tools, 'conversation')}, {plural(shape.calls, 'call')}"
    low, half, high = middle(shape.lengths)
    if high:
        spread = f"{low:,}" if low == high else f"{low:,} to {high:,}, the median {half:,}"
        yield "characters", f"{shape.characters:,}; each has {spread}"
    if high > 4 * half and shape.longest:
        yield "longest", str(shape.longest[1])
    if shape.roles and not shape.roles.keys() <= {"text"}:
        yield "roles", _counted(shape.roles)


def _recognised(shape: Shape) -> str:
    evidence = shape.evidence
    if evidence is None:
        return "as the setting format says"
    columns = " + ".join(evidence.columns)
    if not columns:
        return f"recognised as {evidence.reason}"
    how = f" ({evidence.reason})"
    if evidence.reason.startswith("its columns"):
        how = ", and what they hold" if evidence.reason.endswith("values") else ""
    return f"recognised by {columns}{how}"


def _of_replies(shape: Shape) -> Iterator[str]:
    for count, what in (
        (shape.reasoning, "with reasoning"),
        (shape.untrained, "of weight 0: context only"),
    ):
        if count:
            yield f"{count:,} {what}"


def _counted(counts: Counter[str]) -> str:
    return ", ".join(f"{count:,} {name}" for name, count in counts.most_common())


def _print_tallies(console: Console, found: Survey) -> None:
    """What is no error, but worth a look before training."""
    from rich.table import Table
    from rich.text import Text

    ledger = found.ledger
    left = {f"left out: {reason}": tally for reason, tally in ledger.conversations.left.items()}
    tallies = (left | ledger.warnings | found.signs).items()
    rows = [(reason, tally.count, _where(tally, found)) for reason, tally in tallies]
    rows += _repeated("conversations that repeat another", found.copies, found)
    rows += _repeated("prompts that occurred before, with another reply", found.answers, found)
    for note in ledger.notes:
        console.print(f"note  {note}", markup=False)
    if not rows:
        return
    table = Table(title="Worth a look", title_justify="left", width=min(80, console.width))
    table.add_column("", ratio=5, overflow="fold")
    table.add_column("number", justify="right", min_width=6)
    table.add_column("where", ratio=4, overflow="fold")
    for reason, count, where in rows:
        said = Text(reason)
        if reason in HELP:
            said.append(f"\n{HELP[reason]}", "dim")
        table.add_row(said, f"{count:,}", Text(where))
    console.print(table)
    console.print()


def _repeated(what: str, repeated: Repeated, found: Survey) -> list[tuple[str, int, str]]:
    if not repeated.number:
        return []
    pairs = "; ".join(
        f"{_short(later, found)} as {_short(first, found)}" for later, first in repeated.pairs[:3]
    )
    return [(what, repeated.number, pairs + ("; …" if repeated.number > 3 else ""))]


def _where(tally: Tally, found: Survey) -> str:
    more = ", …" if tally.count > len(tally.places) else ""
    return ", ".join(_short(place, found) for place in tally.places) + more


def _short(place: Place, found: Survey) -> str:
    """A place; without its file where there is one only."""
    return f"{place.unit} {place.line}" if len(found.ledger.files) == 1 else str(place)


def _print_examples(console: Console, found: Survey, recipe: Recipe, rendering: Rendering | None) -> None:
    if rendering is None:
        for one in found.examples:
            console.print(str(one.source), style="bold cyan", markup=False)
            _print_pairs(console, _messages(one))
            console.print()
        return
    from imprint.render.preview import as_text, legend

    colour = console.color_system is not None
    console.print(legend(colour=colour))
    for one in found.examples:
        views, why = _views(one, recipe, rendering)
        if not views:
            console.print(f"{one.source}  nothing of it is trained: {why}", markup=False)
        for view in views[-1:]:
            console.print(
                as_text(
                    view.turn, view.number, rendering.encoder, rendering.stop_ids, colour=colour, most=CONTEXT
                )
            )
    for note in rendering.notes:
        console.print(f"note  {note}", markup=False)


def _messages(conversation: Conversation) -> Iterator[tuple[str, str]]:
    if conversation.tokens is not None:
        ids, weights = conversation.tokens
        yield (
            "ids",
            _excerpt(f"{len(ids):,}, {sum(map(bool, weights)):,} of them trained: {' '.join(map(str, ids))}"),
        )
    for tool in conversation.tools[:1]:
        more = f"\nand {len(conversation.tools) - 1} more" if len(conversation.tools) > 1 else ""
        yield "tools", _excerpt(json.dumps(tool, ensure_ascii=False, default=str)) + more
    for message in conversation.messages[:8]:
        label = message.role + (" (weight 0)" if message.weight == 0 else "")
        if message.reasoning:
            yield label, _excerpt(f"(thinks) {message.reasoning}")
        if message.content or not message.tool_calls:
            yield label, _excerpt(message.content)
        for call in message.tool_calls:
            yield (
                label,
                "calls " + _excerpt(json.dumps(call.get("function", call), ensure_ascii=False, default=str)),
            )
    if len(conversation.messages) > 8:
        yield "…", f"{len(conversation.messages) - 8} messages more"


def _excerpt(text: str) -> str:
    from imprint.render.preview import visible

    shown = visible(text if len(text) <= EXCERPT else text[:EXCERPT].rstrip())
    shown = shown.replace("↵\n", "\n").replace("⇥\t", "  ").strip("\n")
    return shown if len(text) <= EXCERPT else f"{shown} … ({len(text):,} characters)"


def _print_bad(console: Console, found: Survey) -> None:
    """Every reason for which rows are refused, with its first places and the smallest mend."""
    for reason, bad in sorted(found.bad.items(), key=lambda item: -item[1].tally.count):
        console.print(f"refused: {reason}", style="bold yellow", markup=False)
        error = bad.first
        pairs = [
            ("rows", f"{bad.tally.count:,}: {_where(bad.tally, found)}"),
            ("found", error.found),
            ("expected", error.expected),
            ("to fix", error.fix),
        ]
        _print_pairs(console, ((label, plainly(text)) for label, text in pairs if text))
        console.print()


def verdict(found: Survey, bad_rows: str) -> str:
    """One sentence: whether all can be used, and what to do where not."""
    total = found.ledger.records.total
    kept = found.ledger.conversations.kept["train"]
    if not found.refused:
        return f"All {plural(total, 'row')} can be used: {plural(kept, 'conversation')}."
    if bad_rows == "leave_out":
        return f"{plural(total - found.refused, 'row')} can be used; {found.refused:,} are left out, as bad_rows says."
    return (
        f"{found.refused:,} of {plural(total, 'row')} cannot be used: mend them (--left-out FILE writes them down), "
        "or train without them: bad_rows=leave_out."
    )
