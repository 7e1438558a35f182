"""The chat in a terminal: a line in, a reply that streams out."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from imprint.errors import ImprintError, ModelError, RunError
from imprint.serve.chat import Chat, Speaker, find_base, find_trained, load_speaker
from imprint.serve.commands import Leave, Session, names, run_command

if TYPE_CHECKING:
    from rich.console import Console

_PROMPT = "> "


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
    session = Session(Chat(speakers, system), console, options, lambda: base_of(path, speakers[0]))
    if compare:
        session.base = session.load_base()
        speakers.append(session.base)
        speakers[0].name, speakers[1].name = "tuned", "base"
    if prompt is not None:
        exchange(session.chat, prompt, console, options)
        return
    typed = sys.stdin.isatty()
    if typed:
        _prepare_editing()
        console.print("Ctrl-D leaves, /new begins anew, /help lists more", style="dim")
    while True:
        try:
            text = read_line(console) if typed else sys.stdin.readline()
            if not typed and not text:
                return
        except EOFError:
            console.print()
            return
        except KeyboardInterrupt:  # the line is dropped, the chat stays
            console.print("\n(Ctrl-D leaves)", style="dim")
            continue
        try:
            answer(session, text.rstrip("\n"))
        except KeyboardInterrupt:
            session.tell("(stopped)")
        except Leave:
            return
        except ImprintError as error:
            if not typed:
                raise
            console.print(str(error), style="red", markup=False, highlight=False)
            if isinstance(error, ModelError):  # the conversation outgrew the model
                console.print("/new begins anew, /undo takes the last exchange back", style="dim")


def answer(session: Session, line: str) -> None:
    """Do what a typed line asks: a command, or a message with everybody's reply."""
    said = line.strip()
    if not said:
        return
    if said.startswith("/") and not said.startswith("//"):
        run_command(session, said)
        return
    exchange(session.chat, said[1:] if said.startswith("//") else line, session.console, session.options)


def read_line(console: Console) -> str:
    """A line from who types, with the keys of readline where Python has it."""
    if console.color_system is None or console.no_color:
        return input(_PROMPT)
    # readline counts what stands between \x01 and \x02 as no width; without it they would be shown
    start, end = ("\x01", "\x02") if "readline" in sys.modules else ("", "")
    return input(f"{start}\x1b[1;36m{end}{_PROMPT}{start}\x1b[0m{end}")


def _prepare_editing() -> None:
    """History and arrow keys for this session, and the tab key for commands, where readline is there."""
    try:
        import readline
    except ImportError:  # Windows has none; input() then edits as the console does
        return
    readline.set_completer_delims(" ")
    readline.set_completer(_complete)
    readline.parse_and_bind("tab: complete")


def _complete(text: str, state: int) -> str | None:
    found = [name for name in names() if name.startswith(text)] if text.startswith("/") else []
    return f"{found[state]} " if state < len(found) else None


def exchange(chat: Chat, text: str, console: Console, options: dict[str, Any]) -> None:
    """One question and everybody's answer, shown as it comes.

    Ctrl-C ends the answer; the exchange is then no part of the conversation.
    """
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
        console.print(" (stopped) it is not part of the conversation", style="dim", end="")
    console.print()


def printable(text: str) -> str:
    """The text without the characters that would steer the terminal."""
    return "".join(char if char in "\n\t" or char.isprintable() else "�" for char in text)


def base_of(path: Path, tuned: Speaker) -> Speaker:
    """The base model of a run or an adapter, spoken to through the tuned one's template and tokenizer."""
    facts, adapter = path / "run.json", find_trained(path) / "adapter_config.json"
    if facts.is_file():
        folder = find_base(facts, "model")
    elif adapter.is_file():
        folder = find_base(adapter, "base_model_name_or_path")
    else:
        raise RunError(
            "only a run or an adapter knows its base model",
            where=str(path),
            fix="compare a run folder: imprint chat RUN --compare",
        )
    from imprint.model.rowmodel import RowModel
    from imprint.serve.chat import load_weights

    tokens = len(tuned.rendering.encoder.tokenizer)
    model = RowModel(load_weights(folder, None, tokens)).eval()
    return Speaker("base", model, tuned.rendering, control_tokens=tuned.control_tokens)
