"""Quantities as a person would say them."""

from __future__ import annotations

import math


def duration(seconds: float) -> str:
    """A length of time: `4.5 s`, `45 s`, `4 min`, `2 h 5 min`."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    if seconds < 119.5:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"


def size(num_bytes: float) -> str:
    """A number of bytes, in decimal units: `1.23 GB`."""
    for unit in ("B", "kB", "MB", "GB"):
        if num_bytes < 999.5:
            return f"{num_bytes:.3g} {unit}"
        num_bytes /= 1000
    return f"{num_bytes:,.3g} TB"


def count(number: float) -> str:
    """A large number in three digits: `950`, `1.23 M`."""
    for unit in ("", " k", " M", " G"):
        if number < 999.5:
            return f"{number:.3g}{unit}"
        number /= 1000
    return f"{number:,.3g} T"


def perplexity(loss: float) -> str:
    """exp(loss), and no overflow where a run has gone wrong."""
    if loss >= 100:
        return "beyond measure"
    value = math.exp(loss)
    return f"{value:.3g}" if value < 999.5 else count(value)


def token_probability(loss: float) -> float:
    """exp(-loss): the geometric mean of the probabilities that the model gave the tokens to learn."""
    return math.exp(-max(loss, 0.0))


def plural(number: int, noun: str) -> str:
    """`1 step`, `1,200 steps`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
