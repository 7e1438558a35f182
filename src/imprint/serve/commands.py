"""What can be typed in a chat beside messages: lines that begin with / (a message that does is typed //)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from imprint.errors import DataError, UserError, nearest
from imprint.serve.chat import Chat, Said, Speaker
from imprint.serve.keep import append_row

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text


class Leave(Exception):
    """Whoever typed wants to go."""


@dataclass
class Session:
    """A chat with what its commands change. `load_base` gives the base model's speaker; it is called once."""

    chat: Chat
    console: Console
    options: dict[str, Any]
    load_base: Callable[[], Speaker]
    base: Speaker | None = None
    saved: Path | None = None  # the file of the last /save

    def tell(self, text: str) -> None:
        self.console.print(text, style="dim", markup=False, highlight=False)


@dataclass(frozen=True)
class Command:
    """A line of /help, and what it does with the rest of the line."""

    usage: str
    about: str
    run: Callable[[Session, str], None]
    takes: bool = True  # whether anything may stand behind it


def run_command(session: Session, line: str) -> None:
    """Do what a line that begins with one / says; UserError where it says nothing known."""
    word, _, rest = line.strip()[1:].partition(" ")
    name = ALIASES.get(word, word)
    if name not in COMMANDS:
        like = nearest(name, [*COMMANDS, *ALIASES])
        raise UserError(
            f"there is no command /{word}",
            expected="one of those that /help lists, or // before a message that begins with /",
            fix=f"/{like}" if like else "/help",
        )
    command, rest = COMMANDS[name], rest.strip()
    if rest and not command.takes:
        raise UserError(f"/{name} stands alone", found=rest, fix=f"/{name}")
    command.run(session, rest)


def names() -> list[str]:
    """What can be completed: every command with its slash."""
    return [f"/{name}" for name in COMMANDS]


def _help(session: Session, _: str) -> None:
    width = max(len(command.usage) for command in COMMANDS.values())
    for command in COMMANDS.values():
        session.console.print(f"{command.usage:<{width}}  {command.about}", markup=False, highlight=False)
    session.tell("//… sends a message that begins with / · Ctrl-C stops a reply · Ctrl-D leaves")


def _new(session: Session, _: str) -> None:
    session.chat.messages.clear()


def _undo(session: Session, _: str) -> None:
    question = session.chat.undo()
    if question is None:
        raise UserError("there is nothing to take back", fix="ask something first")
    first, *more = question.splitlines() or [""]
    left = len(session.chat.messages) // 2
    session.tell(f"taken back: {first[:60]}{'…' if more or len(first) > 60 else ''} ({left} before it)")


def _system(session: Session, text: str) -> None:
    chat = session.chat
    if not text:
        session.tell(
            f"the system message is: {chat.system}\n/system off takes it away"
            if chat.system
            else "there is no system message; /system TEXT sets one"
        )
        return
    chat.system = "" if text == "off" else text
    session.tell(
        ("no system message" if text == "off" else "the system message is set")
        + (", for the next reply on; what was said stays" if chat.messages else "")
    )


def _temperature(session: Session, text: str) -> None:
    if text:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not 0 <= value < math.inf:
            raise UserError(
                "the temperature is not a number from 0 up",
                found=text,
                expected="0 for the likeliest token each time, about 1 to sample as the model believes",
                fix="/temperature 0.7",
            )
        session.options["temperature"] = value
    value = session.options.get("temperature", 0.0)
    session.tell(f"temperature {value:g}" + (": the likeliest token each time" if value == 0 else ""))


def _compare(session: Session, _: str) -> None:
    speakers = session.chat.speakers
    if len(speakers) > 1:
        del speakers[1:]
        session.tell("the tuned model alone")
        return
    if session.base is None:
        session.tell("loading the base model …")
        session.base = session.load_base()
    speakers[0].name, session.base.name = "tuned", "base"
    speakers.append(session.base)
    session.tell("the base model answers beside the tuned one, and only that one's replies stay")


def _show(session: Session, text: str) -> None:
    if text not in ("", "ids"):
        raise UserError(f"/show has no {text!r}", expected="/show, or /show ids", fix="/show ids")
    said = [(speaker, speaker.said) for speaker in session.chat.speakers if speaker.said is not None]
    if not said:
        raise UserError("nothing was said yet", fix="ask something first")
    for speaker, last in said:
        if len(session.chat.speakers) > 1:
            session.console.print(speaker.name, style="bold", markup=False)
        show = shown_ids if text else shown_tokens
        session.console.print(show(speaker, last, colour=session.console.color_system is not None))


def _save(session: Session, text: str) -> None:
    path = Path(text).expanduser() if text else session.saved
    if path is None:
        raise UserError("/save needs a file", expected="a file of JSON lines", fix="/save good.jsonl")
    if not session.chat.messages:
        raise DataError("there is no exchange to save", where=str(path), fix="ask something first")
    row = session.chat.row()
    number = append_row(path, row)
    session.saved = path
    session.tell(f"{path}:{number}  saved, {len(row['messages'])} messages")


def _quit(_: Session, __: str) -> None:
    raise Leave


COMMANDS = {
    "compare": Command("/compare", "the base model beside the tuned one, on or off", _compare, takes=False),
    "show": Command("/show [ids]", "the last prompt and reply as tokens; with their ids", _show),
    "save": Command("/save FILE", "append the exchange to FILE, a demonstration (JSON lines)", _save),
    "system": Command("/system TEXT", "set the system message; off takes it away", _system),
    "temperature": Command("/temperature X", "0 is greedy; above it, sample", _temperature),
    "undo": Command("/undo", "take the last question and its answer back", _undo, takes=False),
    "new": Command("/new", "begin anew", _new, takes=False),
    "help": Command("/help", "this list", _help, takes=False),
    "quit": Command("/quit", "leave (also Ctrl-D)", _quit, takes=False),
}
ALIASES = {"exit": "quit", "bye": "quit", "?": "help", "reset": "new", "clear": "new"}


# ---- tokens -------------------------------------------------------------------------------------


def shown_tokens(speaker: Speaker, said: Said, *, colour: bool) -> Text:
    """Prompt and reply as `imprint show` prints a turn: newlines marked, control tokens as they are."""
    from rich.text import Text

    from imprint.render.preview import CONTEXT, STOP, TRAINED, pieces, visible

    encoder, stops = speaker.rendering.encoder, speaker.rendering.stop_ids
    stopped = len(said.reply) > 0 and int(said.reply[-1]) in stops
    reply = said.reply[:-1] if stopped else said.reply
    body = Text.assemble((_sizes(said, stopped), "bold"), "\n")
    for i, piece in enumerate(pieces(said.prompt, encoder)):
        body.append(visible(piece), CONTEXT[i % 2])
    body.append("" if colour else "⟦")
    for i, piece in enumerate(pieces(reply, encoder)):
        body.append(visible(piece), TRAINED[i % 2])
    if stopped:
        body.append(visible(encoder.decode(said.reply[-1:])), STOP)
    body.append("" if colour else "⟧")
    return body


def shown_ids(speaker: Speaker, said: Said, *, colour: bool) -> Text:
    """A line for each token: its place, its id, its text. Tokens that share a character stand together."""
    from rich.text import Text

    from imprint.render.preview import visible
    from imprint.render.spans import grouped

    encoder, stops = speaker.rendering.encoder, speaker.rendering.stop_ids
    stopped = len(said.reply) > 0 and int(said.reply[-1]) in stops
    body = Text.assemble((_sizes(said, stopped), "bold"))
    place = 0
    for name, ids in (("prompt", said.prompt), ("reply", said.reply)):
        body.append(f"\n{name}", "bold")
        at = 0
        for piece, count in grouped(ids, encoder):
            shown = visible(piece).replace("↵\n", "↵").replace("⇥\t", "⇥")
            numbers = " ".join(str(token) for token in ids[at : at + count].tolist())
            body.append(f"\n{place:>6}  {numbers:>7}  ").append(f"⟨{shown}⟩", "green" if colour else "")
            at, place = at + count, place + count
    return body


def _sizes(said: Said, stopped: bool) -> str:
    reply = len(said.reply) - stopped
    return f"{len(said.prompt):,} tokens of prompt, {reply:,} of reply, " + (
        "then its stop" if stopped else "without a stop"
    )
