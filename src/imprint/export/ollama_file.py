"""A Modelfile, written and read as Ollama reads it (ollama/ollama parser/parser.go @ fb30760).

Its reader drops characters that cannot be printed and ends a value at the first line that closes its quotes, so
what is written here is read again before it is believed.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from imprint.errors import UserError

_BLANK, _LINE = " \t", "\r\n"
_KNOWN = ("from", "license", "template", "system", "adapter", "parameter", "message", "requires")


class Command(NamedTuple):
    """`FROM ./model.gguf`, or of a parameter `PARAMETER stop "…"`: then `name` is its name in small letters."""

    name: str
    value: str


def write_modelfile(commands: Iterable[Command], comments: Iterable[str] = ()) -> str:
    """The text, comments first; UserError where Ollama would read a value otherwise than it is meant."""
    given = list(commands)
    lines = [f"# {comment}" for comment in comments] + [_line(command) for command in given]
    text = "\n".join(lines) + "\n"
    try:
        read = read_modelfile(text)
    except UserError:
        read = []
    for wanted in reversed(given):  # FROM, the first, is never to blame
        if wanted not in read:
            raise UserError(
                f"a Modelfile cannot hold this {wanted.name}",
                found=repr(next((c.value for c in read if c.name == wanted.name), ""))[:80],
                expected=repr(wanted.value)[:80],
                fix='leave """ and characters that cannot be printed out of it',
            )
    return text


def _line(command: Command) -> str:
    name, value = command
    if name in _KNOWN:
        plain = "\n" not in value and value == value.strip() and not value.startswith('"')
        return f"{name.upper()} {value}" if plain and name == "from" else f'{name.upper()} """{value}"""'
    bare = all(char.isalnum() or char in "._-" for char in value)
    return f"PARAMETER {name} " + (value if bare else f'"""{value}"""' if '"' in value else f'"{value}"')


def read_modelfile(text: str) -> list[Command]:
    """The commands of a Modelfile, as Ollama's reader takes it apart; UserError where it refuses."""
    commands: list[Command] = []
    name, buffer, state = "", "", "nil"
    for char in text:
        following = _following(state, char)
        if following != state:
            if state == "name":
                if buffer.lower() not in _KNOWN:
                    raise _refused(f"there is no command {buffer}")
                name = buffer.lower()
                following = "parameter" if name == "parameter" else following
            elif state == "parameter":
                name = buffer
            elif state == "value":
                value, closed = _unquoted(buffer.strip())
                if not closed or char in _BLANK:
                    buffer += char
                    continue
                commands.append(Command(name, value))
            buffer, state = "", following
            if state in ("value", "parameter") or (state == "nil" and char in _LINE + _BLANK):
                continue  # the character that parted them belongs to neither
        if state != "comment" and (char.isprintable() or (state == "value" and char in _LINE + _BLANK)):
            buffer += char
    if state == "value":
        value, closed = _unquoted(buffer.strip())
        if not closed:
            raise _refused("a value is not closed")
        commands.append(Command(name, value))
    if not any(command.name == "from" for command in commands):
        raise _refused("there is no FROM")
    return commands


def _following(state: str, char: str) -> str:
    if state == "nil":
        return "comment" if char == "#" else "nil" if char in _BLANK + _LINE else "name"
    if state == "comment":
        return "nil" if char in _LINE else "comment"
    if state == "value":
        return "nil" if char in _BLANK + _LINE else "value"
    if char in _BLANK:
        return "value"
    if not (
        char.isascii() and (char.isalpha() or (state == "parameter" and (char.isdigit() or char == "_")))
    ):
        raise _refused(f"unexpected {char!r} in a command")
    return state


def _unquoted(text: str) -> tuple[str, bool]:
    """The value without its quotes, and whether they are closed."""
    for quote in ('"""', '"'):
        if text.startswith(quote):
            closed = len(text) >= 2 * len(quote) and text.endswith(quote)
            return (text[len(quote) : -len(quote)], True) if closed else ("", False)
    return text, True


def _refused(found: str) -> UserError:
    return UserError("Ollama cannot read this Modelfile", where="Modelfile", found=found)
