"""Jinja's filters and the methods of texts, with a limit on what they make: for templates from strangers."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import jinja2
from jinja2 import pass_environment
from jinja2.filters import FILTERS, make_attrgetter

from imprint.render.limits import (
    LimitExceeded,
    check_format,
    check_join,
    check_replace,
    check_size,
    size_of,
)


def measured(value: Any) -> Any:
    """A value that becomes text: what is no text is measured first."""
    if not isinstance(value, str):
        size_of(value)
    return value


def _pad(text: str, width: Any = 80, *_: Any, **__: Any) -> None:
    check_size(width)


METHODS: dict[str, Callable[..., None]] = {
    "join": check_join,
    "replace": check_replace,
    "center": _pad,
    "ljust": _pad,
    "rjust": _pad,
    "zfill": _pad,
}


@pass_environment
def _join(environment: jinja2.Environment, value: Any, d: str = "", attribute: Any = None) -> str:
    if attribute is not None:
        value = map(make_attrgetter(environment, attribute), value)
    parts = [str(measured(part)) for part in value]
    check_join(str(d), parts)
    return str(d).join(parts)


def _replace(text: Any, old: Any, new: Any, count: int | None = None) -> str:
    whole, part, other = (str(measured(value)) for value in (text, old, new))
    check_replace(whole, part, other)
    return whole.replace(part, other, -1 if count is None else count)


def _center(value: Any, width: int = 80) -> str:
    check_size(width)
    return str(measured(value)).center(width)


def _indent(value: Any, width: int | str = 4, first: bool = False, blank: bool = False) -> str:
    text = str(measured(value))
    check_size(len(text) + (text.count("\n") + 1) * (len(width) if isinstance(width, str) else width))
    return str(FILTERS["indent"](text, width, first, blank))


def _format(value: Any, *args: Any, **kwargs: Any) -> str:
    check_format(str(value), "%", [*args, *kwargs.values()])
    return str(FILTERS["format"](value, *args, **kwargs))


def _string(value: Any) -> str:
    return str(measured(value))


def _batch(value: Any, linecount: int, fill_with: Any = None) -> Any:
    check_size(linecount)
    return FILTERS["batch"](value, linecount, fill_with)


def _slice(value: Any, slices: int, fill_with: Any = None) -> Any:
    check_size(slices)
    return FILTERS["slice"](value, slices, fill_with)


def _round(value: float, precision: int = 0, method: Any = "common") -> Any:
    if abs(precision) > 64:
        raise LimitExceeded("the template rounds to more digits than a number has")
    return FILTERS["round"](value, precision, method)


@pass_environment
def _sum(environment: jinja2.Environment, iterable: Any, attribute: Any = None, start: Any = 0) -> Any:
    if not isinstance(start, int | float):
        raise LimitExceeded("the template sums what are no numbers")
    return FILTERS["sum"](environment, iterable, attribute, start)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: Any = None,
    separators: Any = None,
    sort_keys: bool = False,
) -> str:
    # Jinja's own filter escapes <, > and & for HTML; templates for models must not
    check_size(size_of(value) * ((len(indent) if isinstance(indent, str) else indent or 0) + 1))
    form = {"indent": indent, "separators": separators}
    return json.dumps(value, sort_keys=sort_keys, ensure_ascii=ensure_ascii, **form)


LIMITED: dict[str, Callable[..., Any]] = {
    "join": _join,
    "replace": _replace,
    "center": _center,
    "indent": _indent,
    "format": _format,
    "string": _string,
    "batch": _batch,
    "slice": _slice,
    "round": _round,
    "sum": _sum,
    "tojson": _to_json,
}


def refuser(name: str) -> Callable[..., Any]:
    def refuse(*_: Any, **__: Any) -> Any:
        raise LimitExceeded(f"the filter {name} is not offered to chat templates")

    return refuse
