"""What Go's templates know of values: when one is true, how it is printed, and the functions that are built in.

After https://pkg.go.dev/text/template; `json` after Go's encoding/json. Texts are bytes, as `gotemplate_run` says.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any


class Struct(dict[str, Any]):
    """A value with fixed fields."""


def truth(value: Any) -> bool:
    """Whether Go's `if` takes a value for true: not for false, 0, nil and what is empty. A struct is always true."""
    return True if isinstance(value, Struct) else bool(value)


def printed(value: Any) -> bytes:
    """A value as fmt prints it."""
    if isinstance(value, bytes):
        return value
    if value is None:
        return b"<no value>"
    if isinstance(value, bool):
        return b"true" if value else b"false"
    if isinstance(value, Mapping):
        return as_json(value)
    if isinstance(value, list):
        if value and all(isinstance(item, Mapping) for item in value):
            return as_json(value)
        return b"[" + b" ".join(map(printed, value)) + b"]"
    return str(value).encode()


def as_json(value: Any) -> bytes:
    """A value as Go's encoding/json writes it: no spaces, keys of maps sorted, <, > and & in escapes."""
    text = json.dumps(_plain(value), ensure_ascii=False, separators=(",", ":"))
    for char in "<>&\u2028\u2029":
        text = text.replace(char, f"\\u{ord(char):04x}")
    return text.encode("utf-8", "replace")


def _plain(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if isinstance(value, Struct):
        return {key[:1].lower() + key[1:]: _plain(item) for key, item in value.items()}
    if isinstance(value, Mapping):
        return {key: _plain(value[key]) for key in sorted(value)}
    return [_plain(item) for item in value] if isinstance(value, list) else value


def _kind(value: Any) -> str:
    for kind, types in (("bool", bool), ("number", (int, float)), ("text", bytes)):
        if isinstance(value, types):
            return kind
    raise ValueError("incomparable type for comparison")


def _equal(first: Any, *others: Any) -> bool:
    if not others:
        raise ValueError("missing argument for comparison")
    if any(_kind(first) != _kind(other) for other in others):
        raise ValueError("incompatible types for comparison")
    return any(first == other for other in others)


def _less(first: Any, second: Any) -> bool:
    if _kind(first) != _kind(second) or _kind(first) == "bool":
        raise ValueError("incompatible types for comparison")
    return bool(first < second)


def _len(value: Any) -> int:
    if not isinstance(value, bytes | list | Mapping):
        raise ValueError("len of this type")
    return len(value)


def _index(value: Any, *keys: Any) -> Any:
    for key in keys:
        if isinstance(value, Mapping):
            value = value.get(key.decode())
            continue
        if not 0 <= key < len(value):
            raise ValueError(f"index out of range: {key}")
        value = value[key]
    return value


def _slice(value: Any, *bounds: int) -> Any:
    begin, end, *_ = (*bounds, *(0, len(value))[len(bounds) :])
    for bound in (begin, end):
        if not 0 <= bound <= len(value):
            raise ValueError(f"index out of range: {bound}")
    if begin > end:
        raise ValueError(f"invalid slice index: {begin} > {end}")
    return value[begin:end]


def _print(*values: Any) -> bytes:
    """Spaces stand between two operands where neither is a text."""
    out = b""
    for number, value in enumerate(values):
        if number and not isinstance(value, bytes) and not isinstance(values[number - 1], bytes):
            out += b" "
        out += printed(value)
    return out


def _printf(form: bytes, *values: Any) -> bytes:
    out, left, at = b"", list(values), 0
    while at < len(form):
        if form[at : at + 1] != b"%":
            out += form[at : at + 1]
            at += 1
            continue
        verb = form[at + 1 : at + 2]
        at += 2
        if verb == b"%":
            out += b"%"
        elif verb in (b"s", b"v", b"d") and left:
            out += printed(left.pop(0))
        else:
            raise ValueError(f"printf %{verb.decode('utf-8', 'replace')} is not known here")
    return out


BUILT_IN: dict[str, Callable[..., Any]] = {
    "not": lambda value: not truth(value),
    "len": _len,
    "index": _index,
    "slice": _slice,
    "eq": _equal,
    "ne": lambda first, second: not _equal(first, second),
    "lt": _less,
    "le": lambda first, second: _less(first, second) or _equal(first, second),
    "gt": lambda first, second: not (_less(first, second) or _equal(first, second)),
    "ge": lambda first, second: not _less(first, second),
    "print": _print,
    "println": lambda *values: b" ".join(map(printed, values)) + b"\n",
    "printf": _printf,
    "json": as_json,
}
