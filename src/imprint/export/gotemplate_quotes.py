"""Texts as Go quotes them: https://go.dev/ref/spec#String_literals."""

from __future__ import annotations

import re

from imprint.export.gotemplate_tree import GoError

_ESCAPE = re.compile(
    r"\\(?:([abfnrtv\\'\"])|x([0-9a-fA-F]{2})|u([0-9a-fA-F]{4})|U([0-9a-fA-F]{8})|([0-7]{3}))"
)
_NAMED = {"a": 7, "b": 8, "f": 12, "n": 10, "r": 13, "t": 9, "v": 11, "\\": 92, "'": 39, '"': 34}


def unquoted(text: str) -> str:
    """The text that a Go string literal stands for; bytes that are no UTF-8 as surrogate escapes."""
    if text[0] == "`":
        return text[1:-1].replace("\r", "")
    out, at, inner = b"", 0, text[1:-1]
    while at < len(inner):
        if inner[at] != "\\":
            out += inner[at].encode("utf-8", "surrogateescape")
            at += 1
            continue
        found = _ESCAPE.match(inner, at)
        if found is None:
            raise GoError(f"unknown escape in {text}")
        named, byte, short, long, octal = found.groups()
        if named:
            out += bytes([_NAMED[named]])
        elif byte or octal:
            out += bytes([int(byte, 16) if byte else int(octal, 8)])
        else:
            out += chr(int(short or long, 16)).encode("utf-8")
        at = found.end()
    return out.decode("utf-8", "surrogateescape")


def quoted(text: str) -> str:
    """`text` as a Go string literal of printable ASCII alone."""
    out = []
    for char in text:
        if char in '"\\':
            out.append("\\" + char)
        elif " " <= char <= "~":
            out.append(char)
        elif char in "\n\t\r":
            out.append({"\n": "\\n", "\t": "\\t", "\r": "\\r"}[char])
        else:
            code = ord(char)
            out.append(f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}")
    return '"' + "".join(out) + '"'
