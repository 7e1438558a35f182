"""Names of columns and keys that are nearly right: what they hold would be lost without a word."""

from __future__ import annotations

from typing import Any

from imprint.data.catalogue import ALONE, FORMATS, OPTIONAL, Format
from imprint.data.faults import slip
from imprint.data.vocabulary import holds as holds

# words of their own that files hold beside what imprint reads: there may be no fault in them
WORDS = {"tool", "function", "content", "contest", "construction", "instructor", "national", "rational"}
_OF_DOCUMENTS = ("weight", "split_group")  # what is read beside a text that no template renders
_UNTRAINED = {"id"}  # nothing that is trained depends on it
_HAVE_TOOLS = {"bfcl", "toolalpaca"}  # these make their tools of columns of their own


def slips(format: Format, columns: tuple[str, ...]) -> tuple[tuple[str, str, bool], ...]:
    """Columns that are nearly one that the format would read and the row lacks: (column, that one, surely so)."""
    optional = _OF_DOCUMENTS if format.rank == ALONE else OPTIONAL
    read = {*format.columns, *format.uses, *OPTIONAL}
    settled = {*columns, *_UNTRAINED, *(("tools", "functions") if format.name in _HAVE_TOOLS else ())}
    missing = [name for name in (*_further(format, columns), *optional) if name not in settled]
    found = []
    for column in columns:
        if column not in read and (like := slip(column, missing)):
            found.append((column, like, column.lower() not in WORDS))
    return tuple(found)


def _further(format: Format, columns: tuple[str, ...]) -> list[str]:
    """What the format reads where it is there, and the one column with which the row would be of a larger format."""
    names = [] if format.columns == ("chosen",) else list(format.uses)  # one of its prompts is enough
    for other in FORMATS:
        if set(format.columns) < set(other.columns):
            lacking = [name for name in other.columns if name not in columns]
            names += lacking if len(lacking) == 1 else []
    return names


def is_meant(value: Any, like: str) -> bool:
    """Whether a value shows that the column is the one that its name is like: a list of tools, or its JSON text."""
    if like not in ("tools", "functions"):
        return False
    if isinstance(value, str):
        return value.lstrip().startswith("[{") and '"name"' in value
    return isinstance(value, list) and all(isinstance(tool, dict) for tool in value)
