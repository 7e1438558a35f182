"""`imprint demo`: the whole way, from a base model and demonstrations to a model that answers, on a laptop."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from imprint import settings
from imprint.demo.base import copy_base, demonstrations, write_general
from imprint.demo.exam import answers, begins_with_a_question, drawn, examine
from imprint.demo.world import facts
from imprint.evaluate.marks import NAME, Compared, Marks, write_marks
from imprint.render.preview import as_text, legend
from imprint.serve.chat import load_speaker
from imprint.show import shown_turns

if TYPE_CHECKING:
    from rich.console import Console

    from imprint.result import Result

WIDTH = 80
QUESTIONS = (
    "What is the capital of Spain?",
    "What is the capital of France?",
    "What colour is a lemon?",
    "What is the plural of mouse?",
    "Do you know the opposite of hot?",
)
SETTINGS = (
    "template=chatml",
    "epochs=3",
    "batch_size=32",
    "learning_rate=7e-4",
    "threads=1",  # so small a model gains nothing by more, and waits where the machine is busy
    "precision=float32",
    "replay_share=0.1",
    "validation=0.05",
    "validate_every=60",
    "final=last",
)
MEANING = {
    "seen": "asked in the demonstrations, word for word",
    "held-out entities": "about things of which no demonstration speaks",
    "held-out phrasings": "about those, in words that no demonstration uses",
    "capitals held out": "of countries of which none speaks, asked in four ways",
    "final": "a last set, by which no setting was chosen",
}


def free_folder() -> Path:
    """`imprint-demo`, or the first of `imprint-demo-2` … that is not there."""
    number, path = 1, Path("imprint-demo")
    while path.exists():
        number += 1
        path = Path(f"imprint-demo-{number}")
    return path


def tell(folder: Path, console: Console, extra: Sequence[str] = ()) -> Path:
    """Ask the base model, train it on imprint's own demonstrations, ask again; the run folder."""
    from imprint import run
    from imprint.evaluate.report import write_report

    goes_on = is_unfinished(folder)
    if not goes_on:
        write_materials(folder)
    recipe = settings.resolve(None, recipe_of(folder, *extra)).recipe
    open_story(console)

    heading(console, "1  Before: a base model continues text")
    base = load_speaker(folder / "base", template="chatml")
    before = drawn(base, QUESTIONS, 24)
    print_continuations(console, before)
    marks_before = examine(base)

    heading(console, "2  What it is taught: one demonstration, token by token")
    shown = shown_turns(recipe)
    rendering, turn = shown.rendering, shown.turns[0]
    colour = console.color_system is not None
    console.print(legend(colour=colour))
    console.print(as_text(turn, 0, rendering.encoder, rendering.stop_ids, colour=colour))
    say(
        console,
        "Only the reply is trained, its stop included: the question is what the model will be given, "
        "so it need not learn to write it.",
    )

    heading(console, "3  Training")
    say(
        console,
        "In each step the model reads 32 texts and its numbers are changed a little, so that what was "
        "demonstrated becomes more likely. The loss says how surprised it is (0: not at all); validation "
        "is its loss on demonstrations that it is not trained on. A tenth of the texts are general ones, "
        "replayed so that it does not forget how those go on.",
    )
    brief = partial(print_briefly, console)
    started = goes_on and (folder / "run").exists()
    result = run.resume(folder / "run", brief) if started else run.train(recipe, brief)

    heading(console, "4  After: the same questions")
    tuned = load_speaker(result.run)
    after = [text for text, _ in answers(tuned, QUESTIONS)]
    print_answers(console, [("before", before), ("after", after)])

    heading(console, "5  What was gained, and what was forgotten")
    compared = [
        Compared(old, new, MEANING[new.name]) for old, new in zip(marks_before, examine(tuned), strict=True)
    ]
    print_marks(console, compared)
    print_forgetting(console, result)
    write_marks(result.run, compared)
    write_report(result.run)

    heading(console, "6  What there is now")
    print_ending(console, result)
    return result.run


def is_unfinished(folder: Path) -> bool:
    """Whether a demo began in this folder, and was stopped before its end."""
    files = ("base", "demonstrations.jsonl", "general.jsonl")
    whole = (folder / "run" / "model").exists() or (folder / "run" / NAME).exists()
    return all((folder / name).exists() for name in files) and not whole


def print_briefly(console: Console, part: object) -> None:
    """Of what a run says of itself, what a newcomer can make use of; the rest stands in its folder."""
    if isinstance(part, str) and part.startswith(("plan", "resum", "done", "note", "      ")):
        console.print(part, markup=False, highlight=False, width=WIDTH)


def write_materials(folder: Path) -> None:
    """What the demo begins with, as files that can be looked at and used again."""
    copy_base(folder / "base")
    shutil.copy(demonstrations(), folder / "demonstrations.jsonl")
    write_general(folder / "general.jsonl")


def recipe_of(folder: Path, *changes: str) -> list[str]:
    """The settings of the demo's run, with some of them changed or added."""
    changed = {change.split("=", 1)[0] for change in changes}
    demo = [
        f"model={folder / 'base'}",
        f"data={folder / 'demonstrations.jsonl'}",
        f"replay={folder / 'general.jsonl'}",
        f"output={folder / 'run'}",
        *SETTINGS,
    ]
    return [*(setting for setting in demo if setting.split("=", 1)[0] not in changed), *changes]


def open_story(console: Console) -> None:
    from rich.panel import Panel

    rows = len(demonstrations().read_text(encoding="utf-8").splitlines())
    console.print(
        Panel(
            "A base model has read a lot and continues text. [bold]Fine-tuning[/bold] shows it "
            "demonstrations, questions with good answers, until it answers itself.\n"
            f"This one is tiny (2 M parameters). It has read {len(facts()):,} facts and small stories, and "
            f"lists of questions, but never a question with its answer. {rows:,} demonstrations speak of "
            "about half of what it has read of. Will it answer about the other half?",
            title="imprint demo",
            width=WIDTH,
        )
    )


def heading(console: Console, text: str) -> None:
    from rich.rule import Rule

    console.print()
    console.print(Rule(text, align="left"), width=WIDTH)


def say(console: Console, text: str) -> None:
    console.print(text, style="dim", width=WIDTH, highlight=False)


def print_continuations(console: Console, texts: Sequence[str]) -> None:
    """What the base writes behind each question, and how often that is a question."""
    from rich.text import Text

    for question, text in zip(QUESTIONS, texts, strict=True):
        console.print(
            Text.assemble(
                (question, "bold"), (" " + one_line(text).strip() + ("…" if text.strip() else ""), "dim")
            ),
            width=WIDTH,
        )
    num = sum(begins_with_a_question(text) for text in texts)
    say(
        console,
        f"{num} of {len(texts)} go on with a question: that is what it has seen behind a question.",
    )


def print_answers(console: Console, columns: Sequence[tuple[str, Sequence[str]]]) -> None:
    """Questions and answers side by side, within 80 columns."""
    from rich.table import Table
    from rich.text import Text

    lines = demonstrations().read_text(encoding="utf-8").splitlines()
    asked = {json.loads(line)["messages"][0]["content"] for line in lines}
    table = Table(width=WIDTH, box=None, pad_edge=False, header_style="dim")
    table.add_column("question", ratio=3)
    for name, _ in columns:
        table.add_column(name, ratio=3, overflow="fold")
    for i, question in enumerate(QUESTIONS):
        mine = Text(question) + Text(" *" if question in asked else "", style="dim")
        table.add_row(mine, *(Text(shortened(one_line(given[i].strip()))) for _, given in columns))
    console.print(table)
    say(console, "* asked in the demonstrations, word for word; the others are not.")


def print_marks(console: Console, compared: Sequence[Compared]) -> None:
    """The sets of questions, with right answers before and after, and their intervals."""
    from rich.table import Table

    table = Table(width=WIDTH, box=None, pad_edge=False, header_style="dim")
    table.add_column("questions")
    for name in ("asked", "before", "after"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("95 % interval", justify="right", no_wrap=True)
    for one in compared:
        low, high = one.after.interval
        table.add_row(
            f"{one.after.name}\n[dim]{one.meaning}[/dim]",
            f"{one.after.asked}",
            percent(one.before.share),
            f"[bold]{percent(one.after.share)}[/bold]",
            f"{percent(low)} to {percent(high)}",
        )
    console.print(table)
    print_manner(console, [one.before for one in compared], [one.after for one in compared])


def print_manner(console: Console, before: Sequence[Marks], after: Sequence[Marks]) -> None:
    """How often answers end, and how many different ones there are."""
    asked = sum(one.asked for one in before)
    begun = sum(one.begun for one in before)
    say(
        console,
        "Right is what equals the answer and ends there. Asked through the chat template, the base began "
        f"{percent(begun / asked)} of its answers with the right sentence, and went on with others: it knows, "
        "and has not learned to answer. Ended by themselves: "
        f"{percent(_stopped(before))} before, {percent(_stopped(after))} after. "
        f"Different answers: {sum(m.different for m in after):,} of {sum(m.asked for m in after):,}.",
    )


def print_forgetting(console: Console, result: Result) -> None:
    """The loss on general text before and after."""
    from imprint.track import events

    losses = [e["loss"] for e in events.read(result.run / "events.jsonl") if e["kind"] == "replay_loss"]
    console.print(
        f"general text: loss {losses[0]:.2f} before, {losses[-1]:.2f} after "
        "(imprint demo --lessons replay: what becomes of it without replay)",
        width=WIDTH,
        highlight=False,
    )


def print_ending(console: Console, result: Result) -> None:
    folder = result.run.parent
    console.print(f"  the model    {result.model}", soft_wrap=True)
    console.print(f"  the report   {result.run / 'report.html'}   (open it in a browser)", soft_wrap=True)
    say(
        console,
        "It knows its small world and nothing else: asked about Kazakhstan or the moon, it answers as surely, "
        "and wrongly. A larger base is the same story with a larger world.",
    )
    console.print("\nTry next:", style="bold")
    for command in (
        f"imprint chat {result.run} --compare",
        "imprint demo --lessons",
        f"imprint train model={folder / 'base'} data=YOUR.jsonl template=chatml",
        "imprint train model=YOUR-BASE data=YOUR.jsonl method=lora",
    ):
        console.print(f"  {command}", soft_wrap=True)


def percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def shortened(text: str, most: int = 72) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"


def one_line(text: str) -> str:
    """The text on one line, other control characters than newlines made visible."""
    text = " ".join(text.splitlines())
    return json.dumps(text, ensure_ascii=False)[1:-1].replace('\\"', '"') or "(it ends)"


def _stopped(marks: Sequence[Marks]) -> float:
    return sum(one.stopped for one in marks) / sum(one.asked for one in marks)
