"""What a replay of the golden file found, what is asked of each type of weights, and how it is said."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from imprint.export.cause import ROUNDED
from imprint.export.golden import Golden
from imprint.export.targets import Proof

SLACK = 2  # times the measured effect of rounding: two programs do not round quite alike
MERGED = 1.1  # times the measured effect of merging in float32: every program rounds the same sums
NOISY = 4  # times the noise of float32: the target has noise of its own

# how far log-probabilities may be apart, in nats, by the type that the target keeps its weights in
BARS = {
    "float32": 1e-5,
    "float16": 1e-2,
    "bfloat16": 5e-2,
    "gguf-f32": 1e-4,
    "gguf-f16": 1e-2,
    "gguf-bf16": 5e-2,
    "gguf-q8_0": 5e-2,
}


@dataclass(frozen=True, slots=True)
class Divergence:
    """The first token that differs: in the prompt or in the greedy reply of an example (from 0)."""

    example: int
    source: str
    inside: str  # prompt or reply
    position: int
    expected: str
    found: str

    def __str__(self) -> str:
        return (
            f"{self.inside} of example {self.example + 1} ({self.source}), token {self.position + 1}: "
            f"expected {self.expected!r}, found {self.found!r}"
        )


@dataclass(frozen=True, slots=True)
class Parity:
    """What a replay found. None stands for what the target could not show.

    `difference` is the largest one of log-probabilities, in nats; `bar` None where none is asked of this
    type. `excused` greedy replies differ where the trained model's first two tokens are closer than the bar.
    """

    target: str
    kind: str
    bar: float | None
    examples: int
    prompts_equal: int | None
    stops_equal: bool | None
    bos_equal: bool | None
    difference: float | None
    compared: int  # log-probabilities
    replies_equal: int | None
    excused: int
    divergence: Divergence | None
    cause: str
    faults: tuple[str, ...]  # each thing that is not as in training, in words
    notes: tuple[str, ...]  # what could not be shown, and what else there is to know

    @property
    def equal(self) -> bool:
        """Whether all that was shown is as in training, and something was."""
        return not self.faults

    def to_json(self) -> dict[str, Any]:
        """For parity.json: with the verdict and its words in front, for who reads it."""
        return {"equal": self.equal, "words": in_words(self), **asdict(self)}


def parity_of(value: Mapping[str, Any]) -> Parity:
    """A Parity of its JSON."""
    given = {key: item for key, item in value.items() if key not in ("equal", "words")}
    divergence = given["divergence"]
    given["divergence"] = Divergence(**divergence) if divergence else None
    return Parity(**{**given, "faults": tuple(given["faults"]), "notes": tuple(given["notes"])})


def bar_for(kind: str, golden: Golden, precision: str = "float32") -> float | None:
    """The bar of a type of weights, for a target that computes in `precision`; None for those with none.

    Types of 4 bits keep too little to be held to a bar. The bars of BARS are wider where this very model asks
    for it: where float32's own noise in it is larger, or where rounding to that type was measured to move it
    further. Weights that training itself saved in that type lose nothing more: float32's bar is theirs, and what
    merging them with their base in float32 was measured to cost.
    """
    if kind not in BARS:
        return None
    family, _, name = kind.rpartition("-")  # gguf-f16
    name = {"f32": "float32", "f16": "float16", "bf16": "bfloat16"}.get(name, name)
    bars = [BARS[kind], SLACK * golden.rounding.get(name, 0.0)]
    if name == golden.kind:
        bars = [BARS["gguf-f32" if family else "float32"], MERGED * golden.rounding.get("float32", 0.0)]
    if precision != golden.precision or precision == "float32":
        bars.append(NOISY * golden.noise)
    return max(*bars, ROUNDED if golden.rounded else 0.0)


def in_words(parity: Parity) -> str:
    """One paragraph for a person: what was compared, and where it is not equal, the first place and why."""
    what = [
        f"{equal} of {parity.examples} {name} equal"
        for equal, name in ((parity.prompts_equal, "prompts"), (parity.replies_equal, "greedy replies"))
        if equal is not None
    ]
    if parity.excused and parity.bar is not None:
        what.append(f"{parity.excused} too close to call")
    if parity.difference is not None:
        bar = "no bar for its type" if parity.bar is None else f"at most {parity.bar:.2g} is asked"
        what.append(f"log-probabilities within {parity.difference:.2g} nats ({bar})")
    if parity.stops_equal:
        what.append("the same stops")
    found = "; ".join(what) or "nothing could be compared"
    if parity.equal:
        return f"{parity.target} says what the trained model said: {found}"
    first = f". First difference: {parity.divergence}" if parity.divergence else ""
    cause = f". Likely cause: {parity.cause}" if parity.cause else ""
    return f"{parity.target} is not what was trained: {'; '.join(parity.faults)}{first}{cause}. Compared: {found}"


def proof_of(parity: Parity) -> Proof:
    """What an export target answers after a replay (see `targets`)."""
    return Proof(parity.equal, in_words(parity), parity.to_json())
