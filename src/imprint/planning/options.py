"""One way to train on one machine: memory, time, and what it costs."""

from __future__ import annotations

import resource
import statistics
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch

from imprint.auto import detect_machine
from imprint.hardware import Hardware
from imprint.planning.memory import Teller
from imprint.planning.past import Correction
from imprint.planning.work import Work
from imprint.prepare import Prepared
from imprint.recipe import Recipe
from imprint.train.free import free_bytes
from imprint.train.memory import WORKSPACE
from imprint.train.miniature import Foretold

BETWEEN = 0.4  # of a row, on a processor: what lies between its blocks, beside WORKSPACE (0034)
KERNEL = 0.6 * (1 << 20)  # of oneDNN, for one product of one shape in bfloat16: 0.53 to 0.67 MiB each (0034)
MOST_KERNELS = 1024  # that it keeps
BEFORE = 4  # lengths of rows that a run computes beside those of its steps: checks, measurements, samples
CUDA_WORKSPACE = 700 << 20  # kernels, cuBLAS, and what the allocator cannot use
# numbers that an optimizer keeps for each trained parameter, in float32
MOMENTS = {"adamw": 2.0, "adamw_8bit": 0.52, "muon": 1.3}
SPREAD = {"cpu": 0.15, "cuda": 0.25, "mps": 0.3}  # of a forecast that no run has corrected yet
EFFICIENCY = {"cpu": 0.45, "cuda": 0.45, "mps": 0.35}  # of the matrix rate, where no run says better
TIME_SPREAD = 0.4
LAUNCHES = 0.02  # seconds an update at least, where a device waits for its kernels to be launched
SLACK = 0.92  # of a machine's memory that a plan fills


class Range(NamedTuple):
    """A figure with the lowest and the highest that it may turn out to be."""

    low: float
    expected: float
    high: float

    def times(self, factor: float) -> Range:
        return Range(self.low * factor, self.expected * factor, self.high * factor)


@dataclass(frozen=True, slots=True)
class Memory:
    """Peak bytes by what holds them, and their sum as a range."""

    process: float
    weights: float
    gradients: float
    optimizer: float
    row: float
    snapshot: float  # copies of what is trained and of the optimizer's state, while a checkpoint is written
    workspace: float
    total: Range


@dataclass(frozen=True, slots=True)
class Option:
    """One way to train on one machine. `fits` at the highest of the range; `tight` only at the expected.

    Rows have `row_tokens` at most: as many as there is room for, but those of the longest turn. `recompute`
    tells that activations must be computed twice for it (activation_checkpointing).
    """

    method: str
    machine: str
    row_tokens: int
    recompute: bool
    memory: Memory
    room: float
    fits: bool
    tight: bool
    seconds: Range
    dollars: tuple[float, float] | None
    note: str = ""


def this_machine(recipe: Recipe) -> Hardware:
    """The device that the recipe would train on here, with its measured matrix rate."""
    machine = detect_machine()
    kind = recipe.device if recipe.device != "auto" else machine.best
    device = torch.device(kind)
    memory = float(free_bytes(device) or 0)
    narrow = recipe.precision in ("bfloat16", "float16")
    return Hardware("this machine", kind, memory, matrix_rate(device, narrow), 20e9, bfloat16=narrow)


def matrix_rate(device: torch.device, narrow: bool, size: int = 768) -> float:
    """Operations a second of a square product, the median of five; it takes a fraction of a second."""
    dtype = torch.bfloat16 if narrow else torch.float32
    a, b = (torch.full((size, size), 0.5, dtype=dtype, device=device) for _ in range(2))
    seconds = []
    for _ in range(6):
        begun = time.perf_counter()
        out = a @ b
        float(out[0, 0])  # a GPU has then really done it
        seconds.append(time.perf_counter() - begun)
    return 2 * size**3 / statistics.median(seconds[1:])


def option(
    prepared: Prepared,
    told: Teller,
    method: str,
    machine: Hardware,
    work: Work,
    found: Correction,
    price: float | None = None,
) -> Option:
    """Memory, time and cost of one method on one machine.

    Where rows of the longest turn alone do not fit, activations are recomputed, if that makes them fit.
    """
    here = machine.name == "this machine"
    compute = prepared.recipe.precision if here else "bfloat16" if machine.bfloat16 else "float16"
    narrow = "float32" if compute == "float32" else "bfloat16"  # float16 takes as much
    room = machine.memory + (current_bytes() if here and machine.kind == "cpu" else 0)
    limit = SLACK * room
    own = prepared.recipe.activation_checkpointing
    for recompute in (True,) if own else (False, True):
        model = told(method, machine.kind, narrow, recompute)
        tokens, memory = fitted(model, work, prepared.longest, machine, narrow, found, limit)
        if memory.total.expected <= limit:
            break
    else:
        recompute = own  # neither has room
    operations = (6 if method == "full" else 4) * work.cost + 2 * work.validation_cost
    operations += 2 * work.cost if recompute else 0
    rate = machine.rate * EFFICIENCY[machine.kind] / (1.35 if method == "qlora" else 1.0)
    state = 28.0 * model.trained  # bytes that AdamW reads and writes for each parameter
    launched = 0.0 if machine.kind == "cpu" else LAUNCHES * work.steps
    seconds = (max(operations / rate, launched) + work.steps * state / machine.bandwidth) * found.seconds
    spread = found.seconds_spread or TIME_SPREAD
    times = Range(seconds * (1 - spread), seconds, seconds * (1 + spread))
    hourly = (price, price) if price is not None else machine.price
    unfit = method == "qlora" and not machine.nf4
    return Option(
        method,
        machine.name,
        tokens,
        recompute,
        memory,
        room,
        fits=not unfit and memory.total.high <= limit,
        tight=not unfit and memory.total.high > limit >= memory.total.expected,
        seconds=times,
        dollars=(hourly[0] * times.low / 3600, hourly[1] * times.high / 3600) if hourly else None,
        note="nf4 needs a CUDA device or a CPU" if unfit else "",
    )


def impossible(method: str, machine: Hardware, why: str) -> Option:
    """A method that the model cannot be trained by anywhere."""
    none = Range(0.0, 0.0, 0.0)
    nothing = Memory(0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, none)
    return Option(method, machine.name, 0, False, nothing, machine.memory, False, False, none, None, note=why)


def fitted(
    told: Foretold, work: Work, longest: int, machine: Hardware, compute: str, found: Correction, limit: float
) -> tuple[int, Memory]:
    """The longest rows that are sure to fit, up to the largest of the data; the longest turn's where none do."""
    low, high = min(longest, work.largest_row), work.largest_row
    while low < high:
        middle = (low + high + 1) // 2
        if memory_of(told, work, middle, machine, compute, found).total.high <= limit:
            low = middle
        else:
            high = middle - 1
    return low, memory_of(told, work, low, machine, compute, found)


def memory_of(
    told: Foretold, work: Work, row_tokens: int, machine: Hardware, compute: str, found: Correction
) -> Memory:
    """The peak of the process on a CPU, of the device elsewhere."""
    row = told.need.of(row_tokens, told.at_once(min(work.most_predictions, row_tokens)))
    optimizer = MOMENTS[work.optimizer] * told.gradients
    if machine.kind == "cpu":
        process, snapshot = float(current_bytes()), told.gradients + optimizer
        kernels = (
            min(MOST_KERNELS, told.products * (work.row_lengths + BEFORE)) if compute == "bfloat16" else 0
        )
        workspace = WORKSPACE + BETWEEN * row + KERNEL * kernels
    else:
        process, snapshot, workspace = 0.0, 0.0, float(CUDA_WORKSPACE)
    parts = (
        process,
        float(told.weights),
        float(told.gradients),
        optimizer,
        row,
        snapshot,
        workspace,
    )
    expected = sum(parts) * found.memory
    spread = found.memory_spread or SPREAD[machine.kind] + min(0.2, told.off / 4)
    return Memory(*parts, Range(expected * (1 - spread), expected, expected * (1 + spread)))


def current_bytes() -> int:
    """What this process holds now; where the system does not say, the most that it ever held."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return pages * resource.getpagesize()
    except (OSError, IndexError, ValueError):
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
