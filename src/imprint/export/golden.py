"""The golden file of a run: what the trained model said, frozen from the training process itself.

`RUN/golden.json` holds, for some rows of the user's data, the messages as a client would send them, the
prompt that they become, and what the model makes of it: log-probabilities and a greedy reply. Whatever
is exported is asked the same things again (see `parity`).
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from imprint.errors import RunError

NAME = "golden.json"
VERSION = 1
UNLIKELY = 0.01  # as likely as the likeliest token of a place: tokens below that are not compared
TOP = 5  # likeliest tokens that are kept of each position

Top = tuple[tuple[int, float], ...]


@dataclass(frozen=True, slots=True)
class Continuation:
    """n tokens behind a prompt, with what the model gave them.

    ids       [n]  the stop token, where there is one, last
    tokens    [n]  the text of each, for a person
    logprobs  [n]  natural logarithm of the probability of each, given all before it
    top       [n]  (id, log-probability) of the likeliest tokens at its place, likeliest first
    """

    ids: tuple[int, ...]
    tokens: tuple[str, ...]
    logprobs: tuple[float, ...]
    top: tuple[Top, ...]

    def known(self, place: int) -> dict[int, float]:
        """The log-probabilities that are compared at one place: of tokens that are likely enough to matter.

        That is, at least UNLIKELY times as likely as the likeliest: what is less so, rounding moves most, and
        no reply depends on it.
        """
        least = self.top[place][0][1] + math.log(UNLIKELY)
        every = {**dict(self.top[place]), self.ids[place]: self.logprobs[place]}
        return {number: logprob for number, logprob in every.items() if logprob >= least}

    def wanted(self) -> list[list[int]]:
        """The ids whose log-probabilities are compared, at each place."""
        return [list(self.known(place)) for place in range(len(self.ids))]

    def margin(self, place: int) -> float:
        """How much likelier the likeliest token is than the second, in nats."""
        first, second = self.top[place][:2]
        return first[1] - second[1]


@dataclass(frozen=True, slots=True)
class Example:
    """One prompt of the user's data, and what the trained model made of it.

    `messages` and `tools` are what a server hands to the chat template; `prompt` is the text that it
    makes of them, `prompt_ids` that text's ids. `reply` is the demonstration's own, cut; `greedy` the
    model's, cut at `limit` tokens; `stopped` whether that ended by itself, with the stop as its last id.
    """

    source: str
    part: str  # train or validation
    messages: tuple[Mapping[str, Any], ...]
    tools: tuple[Mapping[str, Any], ...]
    prompt: str
    prompt_ids: tuple[int, ...]
    reply: Continuation
    greedy: Continuation
    text: str  # of the greedy reply, without its stop
    stopped: bool
    limit: int


@dataclass(frozen=True, slots=True)
class Bos:
    """What begins a text. `id` is None where the tokenizer has no such token.

    `added`: how many a tokenizer call with its defaults puts before a text by itself. `twice`: whether the
    template writes one too, so that rendering to text and then tokenising with the defaults gives two.
    """

    id: int | None
    token: str | None
    added: int
    twice: bool = False


@dataclass(frozen=True, slots=True)
class Golden:
    """All that an export must say again.

    `stop_ids` end a reply, the template's own first; `eos_id` is the one that the saved tokenizer names.
    `template` is the sha256 of the saved chat template, `now` the date that it shows where it shows one.
    `weights` are the sha256 of the run's weight files, `kind` the type that these are saved in: the numbers
    are those of the weights as saved. `precision` is the type in which they were computed, `noise` how far
    float32 on the model's own path is from them, in nats; `rounded` says where weights are not quite those
    on the disk. `rounding` is how far rounding the weights to a type (float32 when merged, bfloat16, …) moves this
    model's log-probabilities. `without_adapter` are those of the first reply without the adapter, if any.
    """

    stop_ids: tuple[int, ...]
    stops: tuple[str, ...]
    eos_id: int | None
    bos: Bos
    template: str
    template_name: str
    now: str
    weights: Mapping[str, str]
    kind: str
    precision: str
    noise: float
    rounded: str
    rounding: Mapping[str, float]
    versions: Mapping[str, str]
    examples: tuple[Example, ...]
    without_adapter: tuple[float, ...] = ()
    version: int = VERSION


def write_golden(golden: Golden) -> str:
    """The text of a golden file: readable, one line for each list of numbers."""
    return _readable(asdict(golden)) + "\n"


def read_golden(path: Path) -> Golden:
    """The golden file of a run folder, or at this path; RunError where there is none, or another version."""
    path = path / NAME if path.is_dir() else path
    if not path.is_file():
        raise RunError(
            "this run has no golden file, so nothing can be compared with it",
            where=str(path),
            expected="what a run leaves at its end, unless golden=0",
            fix="train again with golden=16 (its default)",
        )
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        if value.get("version") != VERSION:
            raise ValueError(f"version {value.get('version')!r}")
        return _golden(value)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise RunError(
            "the golden file cannot be read",
            where=str(path),
            found=f"{type(error).__name__}: {error}"[:200],
            expected=f"a golden file of version {VERSION}, as imprint train writes it",
            fix="copy it anew from where the run was trained",
        ) from error


def _golden(value: dict[str, Any]) -> Golden:
    return Golden(
        **value
        | {
            "stop_ids": tuple(value["stop_ids"]),
            "stops": tuple(value["stops"]),
            "without_adapter": tuple(value["without_adapter"]),
            "bos": Bos(**value["bos"]),
            "examples": tuple(_example(item) for item in value["examples"]),
        }
    )


def _example(value: dict[str, Any]) -> Example:
    return Example(
        **value
        | {
            "messages": tuple(value["messages"]),
            "tools": tuple(value["tools"]),
            "prompt_ids": tuple(map(int, value["prompt_ids"])),
            "reply": _continuation(value["reply"]),
            "greedy": _continuation(value["greedy"]),
        }
    )


def _continuation(value: dict[str, Any]) -> Continuation:
    top = tuple(tuple((int(number), float(logprob)) for number, logprob in place) for place in value["top"])
    ids, tokens = tuple(map(int, value["ids"])), tuple(map(str, value["tokens"]))
    logprobs = tuple(map(float, value["logprobs"]))
    lengths = [len(ids), len(tokens), len(logprobs), len(top)]
    if len(set(lengths)) > 1:
        raise ValueError("{} ids, {} texts, {} log-probabilities, likeliest at {} places".format(*lengths))
    return Continuation(ids, tokens, logprobs, top)


def _readable(value: Any, depth: int = 0) -> str:
    """JSON, indented, with lists of plain values in one line each."""
    inner, outer = " " * (depth + 1), " " * depth
    if isinstance(value, Mapping) and value:
        items = (
            f"{inner}{json.dumps(str(key))}: {_readable(item, depth + 1)}" for key, item in value.items()
        )
        return "{\n" + ",\n".join(items) + f"\n{outer}}}"
    if isinstance(value, Sequence) and not isinstance(value, str) and any(_is_deep(item) for item in value):
        return "[\n" + ",\n".join(inner + _readable(item, depth + 1) for item in value) + f"\n{outer}]"
    return json.dumps(value, ensure_ascii=False)


def _is_deep(value: Any) -> bool:
    """Whether a value inside a list asks for lines of its own."""
    return isinstance(value, Mapping) or (
        isinstance(value, Sequence) and not isinstance(value, str) and len(value) > 0
    )
