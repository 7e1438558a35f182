"""What `imprint data check` prints: for a person at 80 columns, or as JSON."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from imprint.cli_arguments import console_for, plainly, print_pairs
from imprint.cli_examples import print_examples, turn_to_json, views
from imprint.data.check import Shape, Survey, middle, survey
from imprint.data.check_json import to_json
from imprint.data.conversation import Place
from imprint.data.ledger import Tally
from imprint.data.repeats import Repeated
from imprint.data.signs import HELP
from imprint.track.words import plural

if TYPE_CHECKING:
    from rich.console import Console

    from imprint.recipe import Recipe
    from imprint.render.resolve import Rendering

Keep = Callable[["Recipe", "Rendering | None"], None]


def print_check(recipe: Recipe, *, has_model: bool, as_json: bool, keep: Keep) -> bool:
    """Look through a recipe's data and print what was found; whether a run would start."""
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
            shown = (view for one in found.examples for view in views(one, recipe, rendering)[0])
            facts["turns"] = list(map(turn_to_json, shown))
        typer.echo(json.dumps(facts, indent=2, ensure_ascii=False, default=str))
    else:
        _print(console_for(), found, recipe, rendering)
    trained = found.ledger.conversations.kept["train"] > 0
    return trained and (not found.refused or recipe.bad_rows == "leave_out")


def _with_model(recipe: Recipe, reasoning: float = 0.0) -> tuple[Recipe, Rendering]:
    from imprint.model_facts import read_model_facts
    from imprint.preparation import rendering_of
    from imprint.show import UNLIMITED

    facts = read_model_facts(recipe.model) if (Path(recipe.model) / "config.json").is_file() else None
    length = (facts.context if facts else None) or UNLIMITED
    return recipe.model_copy(update={"max_length": length}), rendering_of(recipe, datetime.now(), reasoning)


def _print(console: Console, found: Survey, recipe: Recipe, rendering: Rendering | None) -> None:
    from rich.text import Text

    for shape in found.shapes:
        console.print(Text.assemble((shape.source, "bold cyan"), f"  {shape.format}"))
        print_pairs(console, _about(shape))
        console.print()
    _print_tallies(console, found)
    if found.examples:
        print_examples(console, found.examples, recipe, rendering)
    _print_bad(console, found, several=len(recipe.data) > 1)
    console.print(verdict(found, recipe.bad_rows), markup=False)


def _about(shape: Shape) -> Iterator[tuple[str, str]]:
    """What there is to say of the rows of one format."""
    yield "rows", f"{shape.rows:,}, {_recognised(shape)}"
    evidence = shape.evidence
    if unused := shape.unused.words():
        yield "not used", unused
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
        (shape.opening, "opening: context only"),
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
    return ", ".join(_short(place, found) for place in tally.places) + tally.more


def _short(place: Place, found: Survey) -> str:
    """A place; without its file where there is one only."""
    return f"{place.unit} {place.line}" if len(found.ledger.files) == 1 else str(place)


def _print_bad(console: Console, found: Survey, *, several: bool) -> None:
    """Every reason for which rows are refused, with its first places and the smallest mend."""
    say = str if several else plainly
    for reason, refused in sorted(found.bad.items(), key=lambda item: -item[1].all.tally.count):
        console.print(f"refused: {reason}", style="bold yellow", markup=False)
        expected = ""
        for bad in sorted(refused.by_fix.values(), key=lambda bad: -bad.tally.count):
            error = bad.first
            pairs = [
                ("rows", f"{bad.tally.count:,}: {_where(bad.tally, found)}"),
                ("found", error.found),
                ("expected", error.expected if error.expected != expected else ""),
                ("to fix", error.fix),
            ]
            expected = error.expected
            print_pairs(console, ((label, say(text)) for label, text in pairs if text))
        if refused.num_untold:
            others = f"{refused.num_untold:,} others, each told in the file of --left-out FILE"
            print_pairs(console, [("rows", others)])
        console.print()


def verdict(found: Survey, bad_rows: str) -> str:
    """One sentence: whether all can be used, and what to do where not."""
    total, conversations = found.ledger.records.total, found.ledger.conversations
    kept, left = conversations.kept["train"], conversations.num_left
    rows = plural(total, "row")
    if not kept:
        none = "The one row cannot be trained" if total == 1 else f"None of the {rows} can be trained"
        return f"{none}: mend what is said above (--left-out FILE writes the rows down), or give other data."
    if not found.refused:
        more = f"; {left:,} more left out, as said above" if left else ""
        all_rows = "The one row" if total == 1 else f"All {rows}"
        taken = found.ledger.records.kept["used"]
        some = f", and share takes {taken:,} of them" if taken < total else ""
        return f"{all_rows} can be used{some}: {plural(kept, 'conversation')}{more}."
    if bad_rows == "leave_out":
        return f"{plural(total - found.refused, 'row')} can be used; {found.refused:,} are left out, as bad_rows says."
    return (
        f"{found.refused:,} of {rows} cannot be used: mend them (--left-out FILE writes them down), "
        "or train without them: bad_rows=leave_out."
    )
