"""Machines that one may train on: memory, matrix rate, and roughly what an hour of them costs.

Memory and dense bfloat16 rates are the makers' (data sheets of NVIDIA, AMD, Apple and Intel); a GPU gives less
memory to a program than it has. Prices are what was commonly asked for an hour on demand in 2026, from the cheapest
market to the large clouds: they change monthly, so `imprint plan --price` takes your own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from imprint.errors import RecipeError, nearest

GB = 10**9
Kind = Literal["cuda", "mps", "cpu"]


@dataclass(frozen=True, slots=True)
class Hardware:
    """`memory` in bytes that training can use, `rate` dense bfloat16 operations a second, `bandwidth` bytes a second.

    `price` is dollars an hour, from and to; None where it is bought, not rented. `nf4` tells whether QLoRA runs.
    """

    name: str
    kind: Kind
    memory: float
    rate: float
    bandwidth: float
    price: tuple[float, float] | None = None
    nf4: bool = True
    bfloat16: bool = True


def _gpu(
    name: str, gigabytes: float, teraflops: float, bandwidth: float, *price: float, bf16: bool = True
) -> Hardware:
    usable = gigabytes * 2**30 - 0.6 * GB  # the driver's context and kernels
    rented = (price[0], price[1]) if price else None
    return Hardware(name, "cuda", usable, teraflops * 1e12, bandwidth * GB, rented, True, bf16)


def _apple(name: str, gigabytes: float, teraflops: float, bandwidth: float) -> Hardware:
    # the system keeps a quarter; what lies in it is shared with everything else
    return Hardware(name, "mps", 0.75 * gigabytes * GB, teraflops * 1e12, bandwidth * GB, None, False)


MACHINES = (
    _gpu("RTX 3060 12GB", 12, 51, 360),
    _gpu("T4 16GB", 16, 65, 320, 0.15, 0.55, bf16=False),
    _gpu("RTX 4060 Ti 16GB", 16, 88, 288),
    _gpu("RTX 4080 16GB", 16, 195, 717, 0.25, 0.45),
    _gpu("RTX 3090 24GB", 24, 71, 936, 0.15, 0.35),
    _gpu("RTX 4090 24GB", 24, 165, 1008, 0.30, 0.70),
    _gpu("L4 24GB", 24, 121, 300, 0.40, 0.85),
    _gpu("A10 24GB", 24, 125, 600, 0.50, 1.10),
    _gpu("RTX 5090 32GB", 32, 210, 1792, 0.45, 0.95),
    _gpu("A100 40GB", 40, 312, 1555, 0.80, 3.70),
    _gpu("L40S 48GB", 48, 362, 864, 0.80, 1.90),
    _gpu("A100 80GB", 80, 312, 2039, 1.10, 5.10),
    _gpu("H100 80GB", 80, 989, 3350, 1.90, 6.90),
    _gpu("H200 141GB", 141, 989, 4800, 2.30, 7.90),
    _gpu("B200 180GB", 180, 2250, 8000, 3.50, 10.0),
    _apple("Apple M3 16GB", 16, 7, 100),
    _apple("Apple M3 Max 64GB", 64, 28, 400),
    _apple("Apple M2 Ultra 192GB", 192, 54, 800),
)


def find(name: str) -> Hardware:
    """The machine of this name, or the one whose name holds all its words; RecipeError with what is known."""
    words = name.lower().replace("-", " ").split()
    exact = [machine for machine in MACHINES if machine.name.lower() == " ".join(words)]
    like = exact or [m for m in MACHINES if words and all(word in m.name.lower() for word in words)]
    if len(like) == 1 or exact:
        return like[0]
    guess = nearest(name, [machine.name for machine in MACHINES])
    raise RecipeError(
        "several machines have this name" if like else "no machine of this name is in the table",
        where=f"--on {name}",
        found=", ".join(machine.name for machine in like),
        expected="one of: " + ", ".join(machine.name for machine in MACHINES),
        fix=f'--on "{like[0].name if like else guess}"'
        if like or guess
        else "leave --on out to see them all",
    )
