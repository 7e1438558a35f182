"""What can go wrong, and what each kind of failure means for the person who runs imprint.

ImprintError
├── UserError             the user can mend it                        exit code 2
│   ├── RecipeError       a setting: unknown, ill-typed, meaningless
│   ├── DataError         a demonstration or a data file
│   ├── TemplateError     the chat template
│   ├── ModelError        the model folder or its tokenizer
│   └── RunError          the run folder: exists, is missing, does not match
├── RunFailed             a run broke while it ran                    exit code 1
└── Interrupted           stopped at a safe point, can be resumed     exit code 130
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class ImprintError(Exception):
    """Something went wrong, said in four parts.

    `what` is one sentence. `where` is the place (`train.jsonl:317`, `recipe.yaml:12`),
    `found` and `expected` are what was there and what should have been, `fix` is the
    smallest change that mends it.
    """

    exit_code = 1

    def __init__(self, what: str, *, where: str = "", found: str = "", expected: str = "", fix: str = ""):
        self.what, self.where, self.found, self.expected, self.fix = what, where, found, expected, fix
        super().__init__(str(self))

    def __str__(self) -> str:
        lines = [f"{self.where}: {self.what}" if self.where else self.what]
        for label, text in (("found", self.found), ("expected", self.expected), ("to fix", self.fix)):
            if text:
                lines.append(f"  {label:<9} " + text.replace("\n", "\n" + " " * 12))
        return "\n".join(lines)


class UserError(ImprintError):
    """The user can mend this; nothing was written over."""

    exit_code = 2


class RecipeError(UserError):
    """A setting is unknown, has the wrong type, or has no meaning beside the others."""


class DataError(UserError):
    """A demonstration or a data file cannot be used."""


class TemplateError(UserError):
    """The chat template is missing, broken, or does not do what training needs."""


class ModelError(UserError):
    """The model folder or its tokenizer cannot be used."""


class RunError(UserError):
    """The run folder exists already, is missing, or does not match what is asked of it."""


class RunFailed(ImprintError):
    """A run broke while it ran; its last checkpoint is still valid."""


class Interrupted(ImprintError):
    """A run was stopped at a safe point; `imprint resume RUN` goes on from there."""

    exit_code = 130


def nearest(word: str, known: Iterable[str]) -> str | None:
    """The known word most like `word`, if any is alike at all."""
    known = list(known)
    by_lower = {name.lower(): name for name in known}
    found = difflib.get_close_matches(word.lower(), by_lower, n=1, cutoff=0.6)
    return by_lower[found[0]] if found else None
