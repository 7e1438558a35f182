"""`imprint demo`: the whole way, from demonstrations to a model that answers, on a laptop."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from imprint import settings
from imprint.data.conversation import Message
from imprint.demo.base import build_base, demonstrations
from imprint.render.preview import as_text, legend
from imprint.serve.chat import Speaker, load_speaker
from imprint.show import shown_turns

if TYPE_CHECKING:
    from rich.console import Console

QUESTIONS = (
    "What is the capital of France?",
    "What is the opposite of hot?",
    "Spell cat.",
    "Count to five.",
    "Who are you?",
)
SETTINGS = (
    "template=chatml",
    "precision=float32",
    "epochs=26",
    "batch_size=16",
    "learning_rate=2.5e-3",
    "final=last",
)


def free_folder() -> Path:
    """`imprint-demo`, or the first of `imprint-demo-2` … that is not there."""
    number, path = 1, Path("imprint-demo")
    while path.exists():
        number += 1
        path = Path(f"imprint-demo-{number}")
    return path


def tell(folder: Path, console: Console, extra: Sequence[str] = ()) -> Path:
    """Make a base model, train it on imprint's own demonstrations, compare; the run folder."""
    from rich.panel import Panel
    from rich.rule import Rule

    from imprint import run

    base = folder / "base"
    size = build_base(base)
    rows = demonstrations().read_text(encoding="utf-8").splitlines()
    console.print(
        Panel(
            f"This demo trains a small Llama ({size / 1e6:.1f} M parameters) with "
            f"[bold]random weights[/bold] on {len(rows)} demonstrations that come with imprint. "
            "A real run starts from a pretrained model; this one starts from nothing, so all "
            "that it will know is in the demonstrations. It takes about a minute.",
            title="imprint demo",
            width=80,
        )
    )
    recipe = settings.resolve(
        None, [f"model={base}", f"data={demonstrations()}", f"output={folder / 'run'}", *SETTINGS, *extra]
    ).recipe

    console.print(Rule("1  What is trained: one demonstration, token by token", align="left"))
    shown = shown_turns(recipe)
    rendering, turn = shown.rendering, shown.turns[0]
    colour = console.color_system is not None
    console.print(legend(colour=colour))
    console.print(as_text(turn, 0, rendering.encoder, rendering.stop_ids, colour=colour))

    console.print(Rule("2  Before: the model is asked", align="left"))
    before = ask(load_speaker(base, template="chatml"))
    print_answers(console, [("before", before)])

    console.print(Rule("3  Training", align="left"))
    result = run.train(recipe, partial(console.print, markup=False))

    console.print(Rule("4  After: the same questions", align="left"))
    after = ask(load_speaker(result.run))
    print_answers(console, [("before", before), ("after", after)])
    console.print(
        "These questions stand in the demonstrations, and it has learned them by heart. It knows nothing "
        "else: the report shows how it does on questions that were held out.",
        style="dim",
    )

    console.print(Rule("5  What there is now", align="left"))
    console.print(f"  the model    {result.model}", soft_wrap=True)
    console.print(f"  the report   {result.run / 'report.html'}   (open it in a browser)", soft_wrap=True)
    console.print("\nTry next:", style="bold")
    for command in (
        f"imprint chat {result.run}",
        f"imprint chat {result.run} --compare",
        "imprint train model=FOLDER data=YOUR.jsonl",
        "imprint train model=FOLDER data=YOUR.jsonl method=lora",
    ):
        console.print(f"  {command}", soft_wrap=True)
    return result.run


def ask(speaker: Speaker) -> list[str]:
    """The speaker's answers to the demo's questions."""
    return [
        speaker.reply([Message("user", question)], lambda _: None, max_new_tokens=24)
        for question in QUESTIONS
    ]


def print_answers(console: Console, columns: Sequence[tuple[str, list[str]]]) -> None:
    """Questions and answers side by side, within 80 columns."""
    from rich.table import Table
    from rich.text import Text

    table = Table(width=80, box=None, pad_edge=False, header_style="dim")
    table.add_column("question", ratio=3)
    for name, _ in columns:
        table.add_column(name, ratio=3, overflow="fold")
    for i, question in enumerate(QUESTIONS):
        table.add_row(question, *(Text(one_line(answers[i])) for _, answers in columns))
    console.print(table)


def one_line(text: str) -> str:
    """The text on one line, control characters made visible."""
    return json.dumps(text, ensure_ascii=False)[1:-1].replace('\\"', '"') or "(nothing)"
