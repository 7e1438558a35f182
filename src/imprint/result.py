"""What a run leaves, and the error that tells of exports that are not among it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from imprint.errors import RunFailed

if TYPE_CHECKING:
    from imprint.train.loop import Outcome


@dataclass(frozen=True)
class Result:
    """What a finished run leaves: its folder, and how it ended."""

    run: Path
    model: Path
    outcome: Outcome
    is_main: bool = True


class NotMade(NamedTuple):
    """An export that a recipe asks for and that is not there: why, and what to do."""

    name: str
    why: str
    fix: str


class ExportsFailed(RunFailed):
    """A run has ended and its model is saved, but exports of it are missing. `result` is that of the run."""

    def __init__(self, result: Result, missing: Sequence[NotMade]):
        self.result, self.missing = result, tuple(missing)
        several = len(missing) > 1
        names = ", ".join(one.name for one in missing)
        super().__init__(
            f"the model is trained and saved, but {'these exports' if several else 'this export'} "
            f"could not be made: {names}",
            where=str(result.run),
            found="\n".join(f"{one.name}: {one.why}" if several else one.why for one in missing),
            fix="\n".join(f"{one.name}: {one.fix}" if several else one.fix for one in missing),
        )
