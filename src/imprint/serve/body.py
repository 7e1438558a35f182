"""The body of a request: read up to a limit, parsed strictly, checked against what it may say."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from starlette.requests import Request

from imprint.serve.problems import Problem, of_validation

MOST_BYTES = 16 << 20
DEEPEST = 100  # levels of lists and objects

M = TypeVar("M", bound=BaseModel)


async def read(request: Request, most: int = MOST_BYTES) -> bytes:
    """The bytes of a JSON body; Problem 415 for another type, 413 for more than `most`."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    # a page of a stranger's may send other types to a loopback address, without asking the browser's user
    if kind != "application/json":
        raise Problem(
            f"the body must be sent as Content-Type: application/json, found {kind or 'none'}", status=415
        )
    declared = request.headers.get("content-length", "")
    if declared.isdigit() and int(declared) > most:
        raise _too_large(most)
    parts, size = [], 0
    async for part in request.stream():
        size += len(part)
        if size > most:
            raise _too_large(most)
        parts.append(part)
    return b"".join(parts)


def parse(data: bytes, model: type[M]) -> tuple[M, dict[str, Any]]:
    """The request as its model reads it, and the object as it was sent; Problem where it is none."""
    value = parse_json(data)
    if not isinstance(value, dict):
        raise Problem(f"the body is no JSON object, but a {type(value).__name__}", code="invalid_json")
    try:
        return model.model_validate(value), value
    except ValidationError as error:
        raise of_validation(error, model, value) from error


def parse_json(data: bytes) -> Any:
    """JSON as the standard has it: UTF-8, finite numbers, no key twice, no half of a surrogate pair."""
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise Problem(
            f"the body is not UTF-8: byte {error.start} is {data[error.start]:#04x}", code="invalid_json"
        ) from error
    try:
        value = json.loads(text, parse_constant=_no_number, object_pairs_hook=_without_doubles)
    except RecursionError as error:
        raise _too_deep() from error
    except json.JSONDecodeError as error:
        raise Problem(f"the body is not JSON: {error}", code="invalid_json") from error
    except ValueError as error:  # a whole number of thousands of digits
        raise Problem(f"the body is not JSON: {error}"[:300], code="invalid_json") from error
    _check(value)
    return value


def _check(value: Any) -> None:
    """Problem for what the standard's grammar lets by and nothing behind it can take."""
    waiting = [(value, 0)]
    while waiting:
        one, depth = waiting.pop()
        if depth > DEEPEST:
            raise _too_deep()
        if isinstance(one, str):
            try:
                one.encode("utf-8")
            except UnicodeEncodeError as error:
                raise Problem(
                    f"a text holds half of a surrogate pair: {one[error.start]!r}", code="invalid_json"
                ) from error
        elif isinstance(one, float) and not math.isfinite(one):
            raise Problem("a number is too large", code="invalid_json")
        elif isinstance(one, Mapping):
            waiting += [(key, depth + 1) for key in one]
            waiting += [(item, depth + 1) for item in one.values()]
        elif isinstance(one, list):
            waiting += [(item, depth + 1) for item in one if type(item) is not int]


def _no_number(name: str) -> Any:
    raise Problem(f"{name} is no JSON number", code="invalid_json")


def _without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        names = [name for name, _ in pairs]
        double = next(name for name in names if names.count(name) > 1)
        raise Problem(f"an object has the key {double[:60]!r} twice", code="invalid_json")
    return made


def _too_large(most: int) -> Problem:
    return Problem(f"the body is larger than {most:,} bytes", status=413, code="body_too_large")


def _too_deep() -> Problem:
    return Problem(f"the body is nested more than {DEEPEST} levels deep", code="invalid_json")
