"""What is done to rows and to bytes: each function damages one thing, chosen by a random generator."""

from __future__ import annotations

import copy
import json
from random import Random
from typing import Any

# ---- what is done to one row; some leave a mark, which becomes JSON that Python does not write

RAW = {
    "@deep": "[" * 50_000 + "]" * 50_000,
    "@deeper": '{"a":' * 500 + "1" + "}" * 500,
    "@twice": '{"role": "user", "role": "assistant", "content": "x", "content": "y"}',
    "@half": '"a \\ud83d b"',
    "@huge": "9" * 6000,
    "@far": "1e999",
    "@nan": "NaN",
    "@python": "None",
    "@escape": '"\\x"',
}
ODD: tuple[Any, ...] = (
    None, True, 0, -1, 1.5, 10**30, "", "   ", "\n\u00a0", "null", "nan", [], {}, [[]], [None], {"a": {}}, ["a", 1],
    "[]", "{}", '[{"role": "user"}]', "assistant", *RAW,
)  # fmt: skip
STRANGE = "\u202e\u200d\u200b\ufeff\u0301\u2028\u0085\ud7a3\ue000\U0001f469\U000e0041\0\x1b\x07\r\n\t\"'\\,;|{}[]<>&%"
KEYS = (
    "messages", "text", "input", "output", "system", "tools", "weight", "id", "prompt", "chosen", "label", "history",
    "input_ids", "labels", "role", "from", "value", "content", "name", "tool_calls", "function_call", "train", "0", "",
)  # fmt: skip

Where = tuple[Any, Any]  # a list or an object, and the index or key of something in it


def _places(value: Any) -> list[Where]:
    found: list[Where] = []
    waiting = [value]
    while waiting:
        one = waiting.pop()
        keys: Any = one if isinstance(one, dict) else range(len(one)) if isinstance(one, list) else ()
        found += [(one, key) for key in keys]
        waiting += [one[key] for key in keys]
    return found


def _pick(row: Any, random: Random, kind: type | None = None) -> Where | None:
    places = [place for place in _places(row) if kind is None or isinstance(place[0][place[1]], kind)]
    return random.choice(places) if places else None


def wrong_type(row: Any, random: Random) -> None:
    if place := _pick(row, random):
        place[0][place[1]] = copy.deepcopy(random.choice(ODD))


def wrong_column(row: Any, random: Random) -> None:
    if isinstance(row, dict) and row:
        row[random.choice(list(row))] = copy.deepcopy(random.choice(ODD))


def wrapped(row: Any, random: Random) -> None:
    if place := _pick(row, random):
        inner = place[0][place[1]]
        for _ in range(random.choice((1, 1, 2, 40))):
            inner = [inner] if random.random() < 0.5 else {random.choice(KEYS): inner}
        place[0][place[1]] = inner


def as_text(row: Any, random: Random) -> None:
    if place := _pick(row, random):
        inner = place[0][place[1]]
        place[0][place[1]] = json.dumps(inner) if random.random() < 0.7 else repr(inner)


def strange_text(row: Any, random: Random) -> None:
    if place := _pick(row, random, str):
        text = place[0][place[1]]
        at = random.randint(0, len(text))
        place[0][place[1]] = text[:at] + "".join(random.choices(STRANGE, k=random.randint(1, 5))) + text[at:]


def renamed(row: Any, random: Random) -> None:
    """One letter of a key is dropped, doubled, swapped, or of another case; the order stays."""
    objects = [one for one in ([row] + [o[k] for o, k in _places(row)]) if isinstance(one, dict) and one]
    if not objects:
        return
    one = random.choice(objects)
    old = random.choice(list(one))
    at = random.randrange(len(old)) if old else 0
    new = random.choice(
        (
            old[:at] + old[at + 1 :],
            old[:at] + old[at : at + 1] * 2 + old[at + 1 :],
            old[:at] + old[at : at + 2][::-1] + old[at + 2 :],
            old.upper(),
            f" {old}",
            old + "s",
        )
    )
    items = [(new if key == old else key, value) for key, value in one.items()]
    one.clear()
    one.update(items)


def fewer(row: Any, random: Random) -> None:
    if place := _pick(row, random):
        del place[0][place[1]]


def more(row: Any, random: Random) -> None:
    if isinstance(row, dict):
        objects = [one for one in ([row] + [o[k] for o, k in _places(row)]) if isinstance(one, dict)]
        one = random.choice(objects) if random.random() < 0.5 else row
        one[random.choice(KEYS)] = copy.deepcopy(random.choice((*ODD, "a text", [1, 2])))


def swapped(row: Any, random: Random) -> None:
    if isinstance(row, dict) and len(row) > 1:
        one, other = random.sample(list(row), 2)
        row[one], row[other] = row[other], row[one]


def reordered(row: Any, random: Random) -> None:
    if place := _pick(row, random, list):
        values = place[0][place[1]]
        how = random.randrange(3)
        if how == 0:
            values.reverse()
        elif values:
            values[:] = values + values[-1:] if how == 1 else values[:-1]


def long_text(row: Any, random: Random) -> None:
    if place := _pick(row, random, str):
        place[0][place[1]] *= 1 + 200_000 // (1 + len(place[0][place[1]]))


ROW_DAMAGE = (
    wrong_type, wrong_type, wrong_column, wrapped, as_text, strange_text, strange_text, renamed, renamed, fewer, more,
    more, swapped, reordered, long_text,
)  # fmt: skip

# ---- what is done to the bytes of a file


def _spliced(data: bytes, random: Random, added: bytes, gone: int = 0) -> bytes:
    at = random.randint(0, len(data))
    return data[:at] + added + data[at + gone :]


def truncated(data: bytes, random: Random) -> bytes:
    return data[: random.randint(0, len(data))]


def without_a_piece(data: bytes, random: Random) -> bytes:
    return _spliced(data, random, b"", random.randint(1, 30))


def flipped(data: bytes, random: Random) -> bytes:
    found = bytearray(data)
    for _ in range(random.choice((1, 1, 2, 8)) if data else 0):
        found[random.randrange(len(found))] ^= 1 << random.randrange(8)
    return bytes(found)


def noise(data: bytes, random: Random) -> bytes:
    return _spliced(data, random, random.randbytes(random.choice((1, 3, 200))))


def nulls(data: bytes, random: Random) -> bytes:
    return _spliced(data, random, b"\0" * random.choice((1, 2, 64)))


def mixed_ends(data: bytes, random: Random) -> bytes:
    """Each line end becomes one of the three; or all become carriage returns."""
    ends = (b"\r",) if random.random() < 0.3 else (b"\n", b"\r\n", b"\n\n", b"\r")
    return b"".join(line + random.choice(ends) for line in data.splitlines())


def windows_ends(data: bytes, random: Random) -> bytes:
    return data.replace(b"\n", b"\r\n")


def marked(data: bytes, random: Random) -> bytes:
    return b"\xef\xbb\xbf" + data


def marked_inside(data: bytes, random: Random) -> bytes:
    return _spliced(data, random, b"\xef\xbb\xbf")


def encoded(data: bytes, random: Random) -> bytes:
    codec = random.choice(
        ("utf-16", "utf-16-le", "utf-32", "gb18030", "latin-1", "cp1252", "shift-jis", "utf-7")
    )
    return data.decode("utf-8", "replace").encode(codec, "ignore")


def unbalanced(data: bytes, random: Random) -> bytes:
    return _spliced(
        data, random, random.choice((b'"', b"'", b'""', b'"""', b"\\", b"{", b"]", b",", b";", b"\t"))
    )


def emptied(data: bytes, random: Random) -> bytes:
    return random.choice(
        (b"", b"\n", b" \n\t\n", b"\xef\xbb\xbf", b"[]", b"{}", b"null", b"\0", b'""', b"[]\n[]")
    )


def repeated(data: bytes, random: Random) -> bytes:
    """The first line, a table's header, stands again further down."""
    first, *others = data.splitlines(keepends=True) or [b""]
    at = random.randint(0, len(others))
    return b"".join((first, *others[:at], first, *others[at:]))


def shuffled(data: bytes, random: Random) -> bytes:
    first, *others = data.splitlines(keepends=True) or [b""]
    random.shuffle(others)
    return b"".join((first, *others))


def joined(data: bytes, random: Random) -> bytes:
    lines = data.splitlines(keepends=True)
    at = random.randrange(len(lines)) if lines else 0
    return b"".join(line.rstrip(b"\r\n") if at == i else line for i, line in enumerate(lines))


def commented(data: bytes, random: Random) -> bytes:
    lines = data.splitlines(keepends=True)
    said = random.choice(
        (b"// a comment\n", b"# a comment\n", b"...\n", b",\n", b"[\n", b"<html>\n", b"sep=;\n")
    )
    at = random.randint(0, len(lines))
    return b"".join((*lines[:at], said, *lines[at:]))


def trailing_commas(data: bytes, random: Random) -> bytes:
    return b"".join(line.rstrip(b"\n") + b",\n" for line in data.splitlines(keepends=True))


def giant(data: bytes, random: Random) -> bytes:
    line = random.choice((b"x", b"[", b'"', b" ", b"1", b"{")) * 300_000
    return data + line + b"\n"


def with_header_of(data: bytes, random: Random) -> bytes:
    """Another name in the first line."""
    first, _, rest = data.partition(b"\n")
    return first.replace(b"o", random.choice((b"0", b"", b"oo"))) + b"\n" + rest


BYTE_DAMAGE = (
    truncated, without_a_piece, flipped, noise, nulls, mixed_ends, windows_ends, marked, marked_inside, encoded,
    unbalanced, unbalanced, emptied, repeated, shuffled, joined, commented, trailing_commas, giant, with_header_of,
)  # fmt: skip
PACKED_DAMAGE = (truncated, flipped, without_a_piece, noise, nulls)
