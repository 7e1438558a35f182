"""The tree of a Go template: what `gotemplate` reads and `gotemplate_run` executes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


class GoError(Exception):
    """The template cannot be read, or fails where it runs; the place is an offset in its text."""


@dataclass(frozen=True)
class Constant:
    value: Any


@dataclass(frozen=True)
class Get:
    """A value and the fields taken of it: `.A.B` (of dot), `$x.A`, `(pipe).A`, or a function's result."""

    base: Any  # "." | "$name" | Pipe | Function
    fields: tuple[str, ...] = ()


@dataclass(frozen=True)
class Function:
    name: str


@dataclass(frozen=True)
class Pipe:
    """Commands, each a list of operands; the value of one is the last argument of the next."""

    commands: tuple[tuple[Any, ...], ...]
    names: tuple[str, ...] = ()  # variables that take the result
    assigns: bool = False  # to variables that are there


@dataclass(frozen=True)
class Text:
    text: str


@dataclass(frozen=True)
class Action:
    pipe: Pipe


@dataclass(frozen=True)
class Branch:
    kind: str  # if | range | with
    pipe: Pipe
    body: tuple[Any, ...]
    other: tuple[Any, ...] = ()


@dataclass(frozen=True)
class Call:
    name: str
    pipe: Pipe | None


@dataclass(frozen=True)
class Jump:
    kind: str  # break | continue


@dataclass(frozen=True)
class Program:
    """The nodes of a template, and of those that it defines."""

    body: tuple[Any, ...]
    defined: dict[str, tuple[Any, ...]] = field(default_factory=dict)
