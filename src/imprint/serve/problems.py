"""What is wrong with a request, as OpenAI's clients read it: {"error": {message, type, param, code}}."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from imprint.errors import nearest

INVALID = "invalid_request_error"


class Problem(Exception):
    """A request is refused, or could not be finished; `status` is that of HTTP."""

    def __init__(
        self,
        message: str,
        *,
        status: int = 400,
        param: str | None = None,
        code: str | None = None,
        kind: str = INVALID,
        headers: Mapping[str, str] | None = None,
    ):
        super().__init__(message)
        self.message, self.status, self.param, self.code, self.kind = message, status, param, code, kind
        self.headers = dict(headers or {})

    @property
    def body(self) -> dict[str, Any]:
        return {"error": {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}}


def too_busy() -> Problem:
    return Problem(
        "all places are taken and the queue is full: try again in a second",
        status=429,
        code="queue_full",
        kind="rate_limit_error",
        headers={"Retry-After": "1"},
    )


def out_of_time(seconds: float) -> Problem:
    """After the server's limit. The official client would ask again by itself, and wait as long again."""
    return Problem(
        f"the request was not finished within {seconds:g} s, this server's limit (--time-limit)",
        status=408,
        code="timeout",
        kind="timeout",
        headers={"x-should-retry": "false"},
    )


def ended(finish: str) -> Problem:
    """The engine gave a request up: it stops, or something broke."""
    if finish == "cancelled":
        return Problem("the server is stopping", status=503, code="stopping", kind="server_error")
    return Problem(
        "the model failed on this request; the server's own output says why", status=500, kind="server_error"
    )


def of_validation(error: ValidationError, model: type[BaseModel], sent: Any) -> Problem:
    """The first thing that is wrong with a body, in words that name its place, and the nearest known field."""
    faults = error.errors(include_url=False, include_context=False)
    unknown = [fault for fault in faults if fault["type"] == "extra_forbidden"]
    # an object of another kind has other fields: its kind is what is wrong with it
    kinds = [f for f in faults if f["type"] == "literal_error" and f["loc"][-1] == "type"]
    other = [k for k in kinds if any(u["loc"][:-1] == k["loc"][:-1] for u in unknown)]
    if unknown and not other:
        return _unknown_field(unknown[0]["loc"], model)
    fault = (other or faults)[0]
    top = str(fault["loc"][0]) if fault["loc"] else ""
    field = model.model_fields.get(top)
    if fault["type"] == "none_required" and field is not None:
        return Problem(
            f"`{top}` is not supported by this server: {field.description or 'leave it out'}",
            param=top,
            code="unsupported_parameter",
        )
    known = set(model.model_fields) | set(_inner_fields(model))
    # pydantic puts a name of its own behind the place where a value may be of several kinds
    size = next(
        (i for i, part in enumerate(fault["loc"]) if part not in known and isinstance(part, str)), None
    )
    place = _place(fault["loc"][:size])
    if fault["type"] == "missing":
        return Problem(f"`{place}` is missing", param=place, code="missing_required_parameter")
    said = fault["msg"][:1].lower() + fault["msg"][1:]
    if size is not None:
        name = [part for part in fault["loc"][:size] if isinstance(part, str)][-1]
        several = model.model_fields.get(name) or _inner_fields(model)[name]
        said = f"expected {several.description}" if several.description else said
    elif fault["type"] == "literal_error" and field is not None and field.description:
        said = f"expected {field.description}"
    found = f"{said}, found {_shown(_at(sent, fault['loc'][:size]))}"
    return Problem(f"`{place}`: {found}" if place else found, param=place or None, code="invalid_value")


def _at(value: Any, loc: Iterable[int | str]) -> Any:
    for part in loc:
        value = value[part]
    return value


def _unknown_field(loc: tuple[int | str, ...], model: type[BaseModel]) -> Problem:
    name = str(loc[-1])
    known = model.model_fields if len(loc) == 1 else _inner_fields(model)
    like = nearest(name, [key for key in known if key != name])
    place = _place(part for part in loc if isinstance(part, int) or "[" not in part)
    return Problem(
        f"there is no field `{place}`" + (f"; the nearest is `{like}`" if like else ""),
        param=place,
        code="unknown_parameter",
    )


def _inner_fields(model: type[BaseModel]) -> dict[str, FieldInfo]:
    """The fields of every model below a model."""
    found: dict[str, FieldInfo] = {}
    waiting: list[Any] = [field.annotation for field in model.model_fields.values()]
    while waiting:
        kind = waiting.pop()
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            found |= kind.model_fields
            waiting += [field.annotation for field in kind.model_fields.values()]
        else:
            waiting += get_args(kind)
    return found


def _place(loc: Iterable[int | str]) -> str:
    """messages[0].content"""
    text = ""
    for part in loc:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
