"""Go's text/template, read into a tree: the part of it that Ollama's templates are written in.

Syntax after https://pkg.go.dev/text/template: trim markers, comments, pipelines, variables, if, range,
with, define, template, block, break, continue. `gotemplate_run` executes the tree.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from imprint.export.gotemplate_quotes import unquoted
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

SPACE = " \t\r\n"  # what trim markers remove
FUNCTIONS = frozenset(
    (
        "and", "or", "not", "len", "index", "slice", "eq", "ne", "lt", "le", "gt", "ge",
        "print", "printf", "println", "json", "currentDate",
    )
)  # fmt: skip
_TOKEN = re.compile(
    r"""(?P<space>[ \t\r\n]+)
    |(?P<string>"(?:[^"\\\n]|\\.)*")|(?P<raw>`[^`]*`)|(?P<char>'(?:[^'\\\n]|\\.[^']*)')
    |(?P<number>[+-]?(?:0[xX][0-9a-fA-F_]+|[0-9][0-9_]*(?:\.[0-9]+)?))
    |(?P<variable>\$[A-Za-z0-9_]*)|(?P<field>\.[A-Za-z_][A-Za-z0-9_]*)|(?P<dot>\.)
    |(?P<word>[A-Za-z_][A-Za-z0-9_]*)|(?P<sign>:=|[=|(),])""",
    re.VERBOSE,
)


def parse(source: str) -> Program:
    """The tree of a template; GoError where Go would refuse its text."""
    reader = _Reader(list(_pieces(source)))
    body, end = reader.nodes()
    if end is not None:
        raise GoError(f"unexpected {{{{{end}}}}}")
    program = Program(body, reader.defined)
    if "" in program.defined:
        raise GoError("a defined template needs a name")
    return program


def _pieces(source: str) -> Iterator[tuple[str, str]]:
    """('text', …) and ('action', …) in turn, trimmed as the markers say."""
    at, trim = 0, False
    while True:
        start = source.find("{{", at)
        text = source[at:] if start < 0 else source[at:start]
        if trim:
            text = text.lstrip(SPACE)
        inside = "" if start < 0 else source[start + 2 :]
        trims_left = len(inside) > 1 and inside[0] == "-" and inside[1] in SPACE
        if trims_left:
            text = text.rstrip(SPACE)
        if text:
            yield "text", text
        if start < 0:
            return
        begin = start + 2 + (2 if trims_left else 0)
        end, trim = _end_of_action(source, begin)
        inner = source[begin : end - (5 if trim else 2) + (1 if trim else 0)]
        if not inner.strip(SPACE).startswith("/*"):
            yield "action", inner.strip(SPACE)
        at = end


def _end_of_action(source: str, begin: int) -> tuple[int, bool]:
    """Where an action that begins at `begin` ends, behind its }}; and whether it trims what follows."""
    comment = re.compile(r"\s*/\*.*?\*/( -)?\}\}", re.DOTALL).match(source, begin)
    if comment:
        return comment.end(), bool(comment[1])
    at = begin
    while at < len(source):
        if source.startswith("}}", at):
            trims = at >= begin + 1 and source[at - 1] == "-" and (at - 2 < begin or source[at - 2] in SPACE)
            return at + 2, trims
        if source[at] in "\"'`":
            found = re.compile(r"\"(?:[^\"\\\n]|\\.)*\"|`[^`]*`|'(?:[^'\\\n]|\\.)*'").match(source, at)
            if found is None:
                raise GoError(f"unterminated quote at {at}")
            at = found.end()
        else:
            at += 1
    raise GoError(f"unclosed action at {begin}")


class _Reader:
    """Goes through the pieces, one node at a time."""

    def __init__(self, pieces: list[tuple[str, str]]):
        self.pieces = pieces
        self.at = 0
        self.defined: dict[str, tuple[Any, ...]] = {}
        self.variables: list[str] = ["$"]
        self.loops = 0

    def nodes(self) -> tuple[tuple[Any, ...], str | None]:
        """Nodes up to an `end` or `else`, which is given back, or the end of the text."""
        out: list[Any] = []
        while self.at < len(self.pieces):
            kind, text = self.pieces[self.at]
            self.at += 1
            if kind == "text":
                out.append(Text(text))
                continue
            word = re.match(r"[A-Za-z]*", text)
            name, rest = (word[0], text[word.end() :].strip(SPACE)) if word else ("", text)
            if name in ("end", "else"):
                return tuple(out), text
            if name in ("if", "range", "with"):
                out.append(self.branch(name, rest))
            elif name in ("define", "block"):
                node = self.definition(name, rest)
                out += [node] if node else []
            elif name == "template":
                out.append(self.call(rest))
            elif name in ("break", "continue") and not rest:
                if not self.loops:
                    raise GoError(f"{{{{{name}}}}} outside {{{{range}}}}")
                out.append(Jump(name))
            else:
                out.append(Action(self.pipe(text)))
        return tuple(out), None

    def branch(self, kind: str, text: str) -> Branch:
        scope = len(self.variables)
        pipe = self.pipe(text, in_range=kind == "range")
        self.loops += kind == "range"
        body, end = self.nodes()
        self.loops -= kind == "range"
        other: tuple[Any, ...] = ()
        if end is None:
            raise GoError(f"{{{{{kind}}}}} without {{{{end}}}}")
        if end != "end":
            rest = end.removeprefix("else").strip(SPACE)
            chained = re.match(r"(if|with)\b", rest)
            if chained and chained[1] == kind:
                other = (self.branch(kind, rest[chained.end() :].strip(SPACE)),)
            elif rest:
                raise GoError(f"unexpected {{{{{end}}}}} in {{{{{kind}}}}}")
            else:
                other, end = self.nodes()
                if end != "end":
                    raise GoError(f"{{{{{kind}}}}} … {{{{else}}}} without {{{{end}}}}")
        del self.variables[scope:]
        return Branch(kind, pipe, body, other)

    def definition(self, kind: str, text: str) -> Call | None:
        name, rest = _name(text)
        outer, self.variables = self.variables, ["$"]
        body, end = self.nodes()
        self.variables = outer
        if end != "end":
            raise GoError(f"{{{{{kind}}}}} without {{{{end}}}}")
        self.defined[name] = body
        return Call(name, self.pipe(rest)) if kind == "block" else None

    def call(self, text: str) -> Call:
        name, rest = _name(text)
        return Call(name, self.pipe(rest) if rest else None)

    def pipe(self, text: str, in_range: bool = False) -> Pipe:
        return _PipeReader(text, self.variables).whole(in_range)


def _name(text: str) -> tuple[str, str]:
    found = re.match(r"\"(?:[^\"\\]|\\.)*\"|`[^`]*`", text)
    if found is None:
        raise GoError(f"a template's name in quotes is missing: {text}")
    return unquoted(found[0]), text[found.end() :].strip(SPACE)


class _PipeReader:
    """Reads one pipeline."""

    def __init__(self, text: str, variables: list[str]):
        self.text, self.variables = text, variables
        self.tokens: list[tuple[str, str]] = []
        at = 0
        while at < len(text):
            found = _TOKEN.match(text, at)
            if found is None:
                raise GoError(f"unexpected {text[at]!r} in {{{{{text}}}}}")
            self.tokens.append((found.lastgroup or "", found[0]))
            at = found.end()
        self.at = 0

    def peek(self) -> tuple[str, str]:
        return self.tokens[self.at] if self.at < len(self.tokens) else ("", "")

    def spaces(self) -> None:
        while self.peek()[0] == "space":
            self.at += 1

    def whole(self, in_range: bool) -> Pipe:
        names, assigns = self.declared(in_range)
        pipe = Pipe(self.commands(), names, assigns)
        if self.at < len(self.tokens):
            raise GoError(f"unexpected {self.peek()[1]!r} in {{{{{self.text}}}}}")
        if not assigns:
            self.variables += names
        return pipe

    def declared(self, in_range: bool) -> tuple[tuple[str, ...], bool]:
        found = re.match(r"\s*(\$\w+)(?:\s*,\s*(\$\w+))?\s*(:?=)", self.text)
        if found is None:
            return (), False
        names = tuple(name for name in found.group(1, 2) if name)
        if len(names) > 1 and not in_range:
            raise GoError(f"too many variables in {{{{{self.text}}}}}")
        assigns = found[3] == "="
        for name in names if assigns else ():
            self.known(name)
        end = 0
        while end < found.end():
            end += len(self.tokens[self.at][1])
            self.at += 1
        return names, assigns

    def known(self, name: str) -> None:
        if name not in self.variables:
            raise GoError(f"undefined variable {name!r}")

    def commands(self) -> tuple[tuple[Any, ...], ...]:
        commands = []
        while True:
            operands = []
            self.spaces()
            while self.peek()[1] not in ("", "|", ")"):
                operands.append(self.operand())
                self.spaces()
            if not operands:
                raise GoError(f"missing value in {{{{{self.text}}}}}")
            commands.append(tuple(operands))
            if self.peek()[1] != "|":
                return tuple(commands)
            self.at += 1

    def operand(self) -> Any:
        kind, text = self.peek()
        self.at += 1
        base: Any
        if kind in ("string", "raw"):
            return Constant(unquoted(text).encode("utf-8", "surrogateescape"))
        if kind == "char":
            return Constant(ord(unquoted(f'"{text[1:-1]}"')))
        if kind == "number":
            return Constant(float(text) if "." in text else int(text.replace("_", ""), 0))
        if kind == "word" and text in ("true", "false", "nil"):
            return Constant({"true": True, "false": False, "nil": None}[text])
        if kind == "variable":
            self.known(text)
            base = text
        elif kind == "field":
            self.at -= 1
            base = "."
        elif kind == "dot":
            base = "."
        elif text == "(":
            base = Pipe(self.commands())
            if self.peek()[1] != ")":
                raise GoError(f"unclosed ( in {{{{{self.text}}}}}")
            self.at += 1
        elif kind == "word":
            if text not in FUNCTIONS:
                raise GoError(f"function {text!r} not defined")
            return Get(Function(text))
        else:
            raise GoError(f"unexpected {text!r} in {{{{{self.text}}}}}")
        fields = []
        while self.peek()[0] == "field":
            fields.append(self.peek()[1][1:])
            self.at += 1
        return Get(base, tuple(fields))
