"""How a model did on sets of questions with one right answer each, before and after training."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from math import sqrt
from pathlib import Path

NAME = "exam.json"


@dataclass(frozen=True, slots=True)
class Marks:
    """How a model did on one set of questions."""

    name: str
    asked: int
    right: int
    stopped: int  # answers that ended by themselves
    different: int  # distinct answers
    begun: int = 0  # answers that begin with the right one, those that are right included
    things: int = 0  # what is asked about, where several questions ask for the same

    @property
    def share(self) -> float:
        return self.right / self.asked

    @property
    def interval(self) -> tuple[float, float]:
        """Of the share, 19 times of 20; questions about one thing count as one, since they fail together."""
        return (
            wilson(self.share * self.things, self.things) if self.things else wilson(self.right, self.asked)
        )


@dataclass(frozen=True, slots=True)
class Compared:
    """One set of questions before and after, in the words that a report uses."""

    before: Marks
    after: Marks
    meaning: str = ""  # what it shows


def mark(name: str, right: Sequence[str], given: Sequence[tuple[str, bool]]) -> Marks:
    """Marks of answers (text, whether it ended by itself): right is what equals the right one, and ended."""
    pairs = list(zip(right, given, strict=True))
    return Marks(
        name=name,
        asked=len(pairs),
        right=sum(text == wanted and stopped for wanted, (text, stopped) in pairs),
        stopped=sum(stopped for _, (_, stopped) in pairs),
        different=len({text for _, (text, _) in pairs}),
        begun=sum(text.strip().startswith(wanted) for wanted, (text, _) in pairs),
        things=len(set(right)),
    )


def wilson(right: float, asked: int, z: float = 1.96) -> tuple[float, float]:
    """The 95 % interval of a share (Wilson, 1927), which stays within 0 and 1 at both ends."""
    if not asked:
        return 0.0, 1.0
    share, n = right / asked, asked
    middle = share + z * z / (2 * n)
    spread = z * sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    scale = 1 + z * z / n
    return max(0.0, (middle - spread) / scale), min(1.0, (middle + spread) / scale)


def write_marks(run: Path, compared: Sequence[Compared]) -> Path:
    """Write `run`/exam.json, from which the report takes its table."""
    path = run / NAME
    aside = path.with_suffix(".new")
    aside.write_text(json.dumps([asdict(one) for one in compared], indent=2) + "\n", encoding="utf-8")
    os.replace(aside, path)
    return path


def read_marks(run: Path) -> list[Compared]:
    """What write_marks left in a run folder; nothing where there was no exam."""
    path = run / NAME
    if not path.exists():
        return []
    return [
        Compared(Marks(**one["before"]), Marks(**one["after"]), one["meaning"])
        for one in json.loads(path.read_text(encoding="utf-8"))
    ]
