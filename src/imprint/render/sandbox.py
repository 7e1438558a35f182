"""A Jinja environment for chat templates that came with a model, and so from a stranger.

The same filters, globals and tags as transformers offers to templates, because what is
rendered here must be what a server renders; in a sandbox, with a limit on time and size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, MutableMapping
from datetime import datetime
from types import BuiltinMethodType
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.compiler import CodeGenerator, Frame
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import LoopContext
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

from imprint.render.filters import LIMITED, METHODS, measured, refuser
from imprint.render.limits import (
    CHARACTERS,
    Pieces,
    check_format,
    check_join,
    check_power,
    check_product,
    check_size,
)

# not offered: no chat template needs them, and they make texts of any length, or other ones every time
WITHOUT = ("random", "urlize", "xmlattr", "pprint", "wordwrap", "forceescape")
_UNSAFE = frozenset({"format_map", "translate", "expandtabs", "encode", "to_bytes"})

# Nearly all that templates read: what needs no look at the value, since the type alone says that it is safe
_OF_DICT = frozenset(name for kind in dict.__mro__ for name in vars(kind))
_OF_STR = frozenset(name for name in vars(str) if not name.startswith("_")) - _UNSAFE - {"format"}
_OF_LOOP = frozenset({"first", "last", "index", "index0", "revindex", "revindex0", "length", "depth"})
_PLAIN = frozenset({int, bool, str, list, dict})
_NOTHING = object()
_held = object.__getattribute__


class _LimitedCode(CodeGenerator):
    """Compiles concatenations and buffers to those of the sandbox, whose length is checked."""

    def visit_Concat(  # noqa: N802 - Jinja's name
        self, node: nodes.Concat, frame: Frame
    ) -> None:
        self.write("environment.tilde(")
        for part in node.nodes:
            self.visit(part, frame)
            self.write(", ")
        self.write(")")

    def visit_Add(self, node: nodes.BinExpr, frame: Frame) -> None:  # noqa: N802 - Jinja's name
        self.write("environment.plus(")
        self.visit(node.left, frame)
        self.write(", ")
        self.visit(node.right, frame)
        self.write(")")

    def buffer(self, frame: Frame) -> None:
        super().buffer(frame)
        self.writeline(f"{frame.buffer} = environment.pieces()")


class _GenerationTag(Extension):
    """`{% generation %}…{% endgeneration %}`: marks replies for other trainers; renders its body."""

    tags = {"generation"}

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_body"), [], [], body).set_lineno(line)

    def _body(self, caller: Any) -> str:
        return str(caller())


class _Namespace(Namespace):
    """Jinja's namespace, without names that could reach into Python."""

    def __init__(self, /, *args: Any, **kwargs: Any) -> None:
        values = dict(*args, **kwargs)
        for name in values:
            _refuse_private(name)
        object.__setattr__(self, "_values", values)

    def __getattribute__(self, name: str) -> Any:
        if name == "__class__":
            return _held(self, name)
        values = _held(self, "_values")
        if name not in values:
            raise AttributeError(name)
        return values[name]

    def __setitem__(self, name: str, value: Any) -> None:
        if type(name) is not str or name.startswith("_"):
            _refuse_private(name)
        _held(self, "_values")[name] = value

    def __repr__(self) -> str:
        return f"<Namespace {_held(self, '_values')!r}>"


class _Dict:
    """`dict(…)` for templates: makes one, and is not the type itself."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)

    def fromkeys(self, keys: Iterable[Any], value: Any = None) -> dict[Any, Any]:
        return dict.fromkeys(keys, value)


class Sandbox(ImmutableSandboxedEnvironment):
    """Templates can read what they are given, and nothing else."""

    code_generator_class = _LimitedCode
    intercepted_binops = frozenset({"+", "*", "**", "%"})
    pieces = Pieces

    def __init__(self, now: datetime):
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            finalize=measured,
            extensions=[_GenerationTag, loopcontrols],
        )
        self.filters |= {name: refuser(name) for name in WITHOUT} | LIMITED
        self.globals = {
            "range": self.globals["range"],
            "dict": _Dict(),
            "namespace": _Namespace,
            "cycler": self.globals["cycler"],
            "joiner": self.globals["joiner"],
            "raise_exception": _raise,
            "strftime_now": _clock(now),
        }

    def make_globals(self, d: MutableMapping[str, Any] | None) -> MutableMapping[str, Any]:
        return {**self.globals, **(d or {})}  # every rendering copies it: Jinja's ChainMap is slow to copy

    def concat(self, parts: Iterable[str]) -> str:
        if not isinstance(parts, Pieces):
            pieces = Pieces()
            pieces.extend(parts)
            parts = pieces
        return "".join(parts)

    def tilde(self, *parts: Any) -> str:
        """What `a ~ b` compiles to."""
        texts = [part if type(part) is str else str(measured(part)) for part in parts]
        check_join("", texts)
        return "".join(texts)

    def plus(self, left: Any, right: Any) -> Any:
        """What `a + b` compiles to."""
        if type(left) is str and type(right) is str:
            if len(left) + len(right) > CHARACTERS:
                check_size(len(left) + len(right))
        elif hasattr(left, "__len__") and hasattr(right, "__len__"):
            check_size(len(left) + len(right))
        return left + right

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        if operator == "+":
            return self.plus(left, right)
        if operator == "*":
            check_product(left, right)
        elif operator == "**":
            check_power(left, right)
        elif operator == "%" and isinstance(left, str):
            check_format(left, "%", right if isinstance(right, tuple) else (right,))
        return super().call_binop(context, operator, left, right)

    def getattr(self, obj: Any, attribute: str) -> Any:
        kind = type(obj)
        if kind is dict and attribute not in _OF_DICT:
            value = obj.get(attribute, _NOTHING)
            return self.undefined(obj=obj, name=attribute) if value is _NOTHING else value
        if (kind is str and attribute in _OF_STR) or (kind is LoopContext and attribute in _OF_LOOP):
            return getattr(obj, attribute)
        if kind is _Namespace and not attribute.startswith("_"):
            value = _held(obj, "_values").get(attribute)
            if type(value) in _PLAIN:
                return value
        return super().getattr(obj, attribute)

    def getitem(self, obj: Any, argument: Any) -> Any:
        if type(obj) is dict and type(argument) is str and argument not in _OF_DICT:
            value = obj.get(argument, _NOTHING)
            return self.undefined(obj=obj, name=argument) if value is _NOTHING else value
        return super().getitem(obj, argument)

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        return attr not in _UNSAFE and super().is_safe_attribute(obj, attr, value)

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        inner = super().wrap_str_format(value)
        if inner is None:
            return None

        def limited_format(*args: Any, **kwargs: Any) -> str:
            check_format(value.__self__, "{", [*args, *kwargs.values()])
            return str(inner(*args, **kwargs))

        return limited_format

    def call(self, context: Any, obj: Any, /, *args: Any, **kwargs: Any) -> Any:
        check = METHODS.get(getattr(obj, "__name__", "")) if args or kwargs else None
        if check is not None and isinstance(getattr(obj, "__self__", None), str):
            if obj.__name__ == "join":
                args = (list(args[0]),)
            given = {key: value for key, value in kwargs.items() if not key.startswith("_")}
            check(obj.__self__, *args, **given)  # inside loops, Jinja adds _loop_vars of its own
        if type(obj) is BuiltinMethodType and type(obj.__self__) is str:  # as Jinja does in the end
            kwargs.pop("_loop_vars", None)
            kwargs.pop("_block_vars", None)
            return obj(*args, **kwargs)
        return super().call(context, obj, *args, **kwargs)


def _refuse_private(name: Any) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise jinja2.exceptions.SecurityError(f"a namespace has no {name!r}: no name may begin with _")


def _clock(now: datetime) -> Callable[[str], str]:
    def strftime_now(form: str) -> str:
        check_size(len(form) * 10_000)  # strftime, too, can pad
        return now.strftime(form)

    return strftime_now


def _raise(message: str) -> None:
    raise jinja2.TemplateError(message)
