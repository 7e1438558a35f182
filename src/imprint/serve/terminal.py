"""The chat in a terminal: a line in, a reply that streams out."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from imprint.errors import ImprintError, RunError
from imprint.serve.chat import Chat, Speaker, find_base, load_speaker

if TYPE_CHECKING:
    from rich.console import Console


def talk(
    path: Path,
    console: Console,
    *,
    compare: bool = False,
    prompt: str | None = None,
    system: str = "",
    template: str = "auto",
    **options: Any,
) -> None:
    """Talk to a run or a model until the input ends; with `prompt`, one exchange.

    Where somebody types, an error is shown and the chat goes on; elsewhere it is raised.
    """
    speakers = [load_speaker(path, template=template)]
    if compare:
        speakers.append(base_of(path, speakers[0]))
        speakers[0].name, speakers[1].name = "tuned", "base"
    chat = Chat(speakers, system)
    if prompt is not None:
        exchange(chat, prompt, console, options)
        return
    typed = sys.stdin.isatty()
    if typed:
        console.print("Ctrl-D leaves, /new begins anew", style="dim")
    while True:
        try:
            text = console.input("[bold cyan]> [/]") if typed else sys.stdin.readline()
        except (EOFError, KeyboardInterrupt):
            console.print()
            return
        if not text:
            if typed:
                continue
            return
        if text.strip() == "/new":
            chat.messages.clear()
        elif text.strip():
            try:
                exchange(chat, text.rstrip("\n"), console, options)
            except ImprintError as error:
                if not typed:
                    raise
                console.print(str(error), style="red", markup=False)
                console.print("/new begins anew", style="dim")


def exchange(chat: Chat, text: str, console: Console, options: dict[str, Any]) -> None:
    """One question and everybody's answer, shown as it comes."""
    labelled = len(chat.speakers) > 1
    current = ""

    def show(name: str, piece: str) -> None:
        nonlocal current
        if labelled and name != current:
            if current:
                console.print()
            console.print(f"{name}  ", style="bold", end="")
            current = name
        # the model's text is text: no markup, and no control characters for the terminal
        console.print(printable(piece), end="", markup=False, highlight=False, soft_wrap=True)

    try:
        chat.ask(text, show, **options)
    except KeyboardInterrupt:
        console.print(" (stopped)", style="dim", end="")
    console.print()


def printable(text: str) -> str:
    """The text without the characters that would steer the terminal."""
    return "".join(char if char in "\n\t" or char.isprintable() else "�" for char in text)


def base_of(path: Path, tuned: Speaker) -> Speaker:
    """The base model of a run, spoken to through the run's own template and tokenizer."""
    facts = path / "run.json"
    if not facts.is_file():
        raise RunError("only a run knows its base model", where=str(path), fix="--compare needs a run folder")
    folder = find_base(facts, "model")
    from imprint.model.rowmodel import RowModel
    from imprint.serve.chat import load_weights

    tokens = len(tuned.rendering.encoder.tokenizer)
    return Speaker("base", RowModel(load_weights(folder, None, tokens)).eval(), tuned.rendering)
