"""Go's text/template, executed: what Ollama makes of a template and a conversation.

Texts are bytes inside, because Go's len, index and slice count bytes. Messages and tools are `Struct`s,
whose unknown fields are errors as in Go; what a map lacks is nothing. Functions after Go's documentation;
`json`, `currentDate` and the joining of messages after Ollama (ollama/ollama template/template.go @ fb30760).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from imprint.export.gotemplate import parse
from imprint.export.gotemplate_functions import BUILT_IN, Struct, printed, truth
from imprint.export.gotemplate_tree import (
    Action,
    Branch,
    Call,
    Constant,
    Function,
    Get,
    GoError,
    Jump,
    Pipe,
    Program,
    Text,
)

_DEEPEST = 900  # nested calls; Go allows 100,000, Python fewer


class _Jumped(Exception):
    def __init__(self, kind: str):
        self.kind = kind


class _Run:
    """One execution: the output so far, and the variables, the innermost last."""

    def __init__(self, program: Program, root: Any, now: datetime):
        self.program, self.now = program, now
        self.out: list[bytes] = []
        self.variables: list[list[Any]] = [["$", root]]
        self.depth = 0

    def nodes(self, nodes: Sequence[Any], dot: Any) -> None:
        for node in nodes:
            match node:
                case Text(text):
                    self.out.append(text.encode("utf-8", "surrogateescape"))
                case Action(pipe):
                    value = self.pipe(pipe, dot)
                    if not pipe.names:
                        self.out.append(printed(value))
                case Branch("range"):
                    self.loop(node, dot)
                case Branch(kind, pipe, body, other):
                    scope = len(self.variables)
                    value = self.pipe(pipe, dot)
                    inside = value if kind == "with" else dot
                    self.nodes(*((body, inside) if truth(value) else (other, dot)))
                    del self.variables[scope:]
                case Call(name, pipe):
                    self.call(name, self.pipe(pipe, dot) if pipe else None)
                case Jump(kind):
                    raise _Jumped(kind)

    def call(self, name: str, dot: Any) -> None:
        if name not in self.program.defined:
            raise GoError(f"template {name!r} not defined")
        self.depth += 1
        if self.depth > _DEEPEST:
            raise GoError("templates call each other too deeply")
        outer, self.variables = self.variables, [["$", dot]]
        self.nodes(self.program.defined[name], dot)
        self.variables = outer
        self.depth -= 1

    def loop(self, node: Branch, dot: Any) -> None:
        scope = len(self.variables)
        value = self.pipe(Pipe(node.pipe.commands), dot)
        items: list[tuple[Any, Any]]
        if value is None:
            items = []
        elif isinstance(value, list):
            items = list(enumerate(value))
        elif isinstance(value, Mapping) and not isinstance(value, Struct):
            items = [(key.encode(), value[key]) for key in sorted(value)]
        else:
            raise GoError(f"range can't iterate over {printed(value)[:40]!r}")
        names = node.pipe.names
        for key, item in items:
            given = (item,) if len(names) == 1 else (key, item)
            for name, of in zip(names, given, strict=False):
                self.store(name, of, node.pipe.assigns)
            try:
                self.nodes(node.body, item)
            except _Jumped as jumped:
                if jumped.kind == "break":
                    break
            finally:
                del self.variables[scope:]
        if not items:
            self.nodes(node.other, dot)
        del self.variables[scope:]

    def store(self, name: str, value: Any, assigns: bool) -> None:
        if not assigns:
            self.variables.append([name, value])
            return
        next(cell for cell in reversed(self.variables) if cell[0] == name)[1] = value

    def pipe(self, pipe: Pipe, dot: Any) -> Any:
        value: Any = None
        for number, command in enumerate(pipe.commands):
            value = self.command(command, dot, [value] if number else [])
        for name in pipe.names:
            self.store(name, value, pipe.assigns)
        return value

    def command(self, operands: Sequence[Any], dot: Any, last: list[Any]) -> Any:
        first, *others = operands
        if isinstance(first, Get) and isinstance(first.base, Function):
            name = first.base.name
            if name in ("and", "or"):  # these stop at the first operand that decides
                return self.decide(name, others, dot, last)
            given = [self.value(operand, dot) for operand in others] + last
            return self.function(name, given)
        if others or last:
            raise GoError("a value that is no function was given arguments")
        return self.value(first, dot)

    def decide(self, name: str, operands: Sequence[Any], dot: Any, last: list[Any]) -> Any:
        if not operands and not last:
            raise GoError(f"{name} needs an argument")
        value: Any = None
        for operand in operands:
            value = self.value(operand, dot)
            if truth(value) == (name == "or"):
                return value
        return last[0] if last else value

    def value(self, operand: Any, dot: Any) -> Any:
        if isinstance(operand, Constant):
            return operand.value
        assert isinstance(operand, Get)
        base = operand.base
        value: Any
        if isinstance(base, Function):
            value = self.function(base.name, [])
        elif isinstance(base, Pipe):
            value = self.pipe(base, dot)
        elif base == ".":
            value = dot
        else:
            value = next(cell for cell in reversed(self.variables) if cell[0] == base)[1]
        for name in operand.fields:
            value = _field(value, name)
        return value

    def function(self, name: str, given: list[Any]) -> Any:
        if name == "currentDate":
            return self.now.strftime("%Y-%m-%d").encode()
        try:
            return BUILT_IN[name](*given)
        except (TypeError, ValueError, IndexError, KeyError) as error:
            raise GoError(f"error calling {name}: {error}") from error


def _field(value: Any, name: str) -> Any:
    if isinstance(value, Struct):
        if name not in value:
            raise GoError(f"can't evaluate field {name}")
        return value[name]
    if isinstance(value, Mapping):
        return value.get(name)
    if value is None:
        raise GoError(f"nil pointer evaluating {name}")
    raise GoError(f"can't evaluate field {name} in {printed(value)[:40]!r}")


def execute(program: Program, data: Mapping[str, Any], now: datetime) -> str:
    """The text that a template gives for `data`, whose texts are bytes; GoError where Go would fail."""
    run = _Run(program, data, now)
    run.nodes(program.body, data)
    return b"".join(run.out).decode("utf-8", "surrogateescape")


# ---- as Ollama does it --------------------------------------------------------------------------


def collate(messages: Sequence[tuple[str, str]]) -> tuple[str, list[tuple[str, str]]]:
    """All system messages as one, and the messages, those in a row of one role joined by an empty line."""
    system = "\n\n".join(content for role, content in messages if role == "system")
    joined: list[tuple[str, str]] = []
    for role, content in messages:
        if joined and joined[-1][0] == role != "tool":
            joined[-1] = (role, f"{joined[-1][1]}\n\n{content}")
        else:
            joined.append((role, content))
    return system, joined


def prompt_of(program: Program | str, messages: Sequence[tuple[str, str]], now: datetime) -> str:
    """The prompt that Ollama makes of (role, content) messages with a template over `.Messages`."""
    program = parse(program) if isinstance(program, str) else program
    system, joined = collate(messages)
    fields = {"Thinking": b"", "Images": [], "ToolCalls": [], "ToolName": b"", "ToolCallID": b""}
    data = {
        "System": system.encode("utf-8", "surrogateescape"),
        "Messages": [
            Struct(Role=role.encode(), Content=content.encode("utf-8", "surrogateescape"), **fields)
            for role, content in joined
        ],
        "Tools": [],
        "Response": b"",
        "Think": False,
        "ThinkLevel": b"",
        "IsThinkSet": False,
    }
    return execute(program, data, now)
