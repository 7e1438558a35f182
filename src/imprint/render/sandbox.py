"""A Jinja environment for chat templates that came with a model, and so from a stranger.

The same filters, globals and tags as transformers offers to templates, because what is
rendered here must be what a server renders; in a sandbox, with a limit on time and size.
"""

from __future__ import annotations

import ctypes
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.compiler import CodeGenerator, Frame
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

SECONDS = 5.0  # for one rendering; real ones take well under a millisecond
CHARACTERS = 10_000_000  # of one text, finished or half made

# str methods that make a text of any length from a number
_PADDING = frozenset({"center", "ljust", "rjust", "zfill", "expandtabs", "format", "format_map"})


class LimitExceeded(Exception):
    """A template ran too long or made too much text."""


def _checked(text: Any) -> Any:
    if isinstance(text, str | bytes | list | tuple) and len(text) > CHARACTERS:
        raise LimitExceeded(f"the template makes a text of more than {CHARACTERS:,} characters")
    return text


class _LimitedCode(CodeGenerator):
    """Compiles `a ~ b` to a concatenation whose length is checked."""

    def visit_Concat(  # noqa: N802 - Jinja's name
        self, node: nodes.Concat, frame: Frame
    ) -> None:
        self.write("environment.join(")
        for part in node.nodes:
            self.visit(part, frame)
            self.write(", ")
        self.write(")")


class _GenerationTag(Extension):
    """`{% generation %}…{% endgeneration %}`: marks replies for other trainers; renders its body."""

    tags = {"generation"}

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_body"), [], [], body).set_lineno(line)

    def _body(self, caller: Any) -> str:
        return str(caller())


class Sandbox(ImmutableSandboxedEnvironment):
    """Templates can read what they are given, and nothing else."""

    code_generator_class = _LimitedCode
    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def __init__(self, now: datetime):
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationTag, loopcontrols])
        self.filters["tojson"] = _to_json
        self.globals["raise_exception"] = _raise
        self.globals["strftime_now"] = now.strftime

    def join(self, *parts: Any) -> str:
        return str(_checked("".join(map(str, parts))))

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        if operator == "+":
            return _checked(left + right)
        if operator == "*":
            size = len(left) * right if hasattr(left, "__len__") and isinstance(right, int) else 0
            size = size or (len(right) * left if hasattr(right, "__len__") and isinstance(left, int) else 0)
            if size > CHARACTERS:
                raise LimitExceeded(f"the template makes a text of more than {CHARACTERS:,} characters")
        elif operator == "**" and (abs(right) > 64 or abs(left) > 1_000_000):
            raise LimitExceeded("the template computes a power too large for a chat template")
        elif operator == "%" and isinstance(left, str):
            raise LimitExceeded("the template formats text with %, which is not allowed here")
        return super().call_binop(context, operator, left, right)

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        if isinstance(obj, str) and attr in _PADDING:
            return False
        return super().is_safe_attribute(obj, attr, value)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: Any = None,
    separators: Any = None,
    sort_keys: bool = False,
) -> str:
    # Jinja's own filter escapes <, > and & for HTML; templates for models must not
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _raise(message: str) -> None:
    raise jinja2.TemplateError(message)


class _Watchdog:
    """Ends renderings that exceed their time, in whatever thread they run."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.deadlines: dict[int, float] = {}
        self.thread: threading.Thread | None = None

    @contextmanager
    def limit(self, seconds: float) -> Iterator[None]:
        me = threading.get_ident()
        if self.thread is None or not self.thread.is_alive():
            self.thread = threading.Thread(target=self._watch, name="template-watchdog", daemon=True)
            self.thread.start()
        self.deadlines[me] = time.monotonic() + seconds
        try:
            yield
        finally:
            with self.lock:  # after this, no exception can be on its way to this thread
                self.deadlines.pop(me, None)

    def _watch(self) -> None:
        while True:
            time.sleep(0.2)
            with self.lock:
                now = time.monotonic()
                for thread, deadline in list(self.deadlines.items()):
                    if now > deadline:
                        del self.deadlines[thread]
                        ctypes.pythonapi.PyThreadState_SetAsyncExc(
                            ctypes.c_ulong(thread), ctypes.py_object(LimitExceeded)
                        )


_watchdog = _Watchdog()


@contextmanager
def time_limit(seconds: float = SECONDS) -> Iterator[None]:
    """Raises LimitExceeded inside the block once it has run for `seconds`."""
    with _watchdog.limit(seconds):
        yield
