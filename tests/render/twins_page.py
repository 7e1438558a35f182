"""docs/trl-twins.md: TRL's training templates against our turns."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence

from render import markdown
from render.corpus import fixed_clock
from render.twins import ARGUMENTS, PAIRS, Compared, Difference, compare


def every_pair() -> Iterator[Compared]:
    """Every template that has a twin, compared with it."""
    with fixed_clock():
        for path, twin in PAIRS:
            yield compare(path, twin)


def twins_page(compared: Sequence[Compared]) -> str:
    """docs/trl-twins.md, from every pair of a template and its twin."""
    differences = [one for pair in compared for one in pair.differences]
    shapes: dict[str, list[Difference]] = defaultdict(list)
    for one in differences:
        shapes[one.shape].append(one)
    letters = {shape: _letter(i) for i, shape in enumerate(ARGUMENTS) if shape in shapes}
    by_pair = [
        (pair.template, f"{pair.equal}", *_two_sides(pair, letters), f"{len(pair.unrendered)}")
        for pair in compared
    ]
    trained = [(shape, letter) for shape, letter in letters.items() if _is_shape(shape)]
    silent = [(shape, letter) for shape, letter in letters.items() if not _is_shape(shape)]
    total = sum(pair.equal for pair in compared) + len(differences)
    same = total - sum(1 for one in differences if not _is_shape(one.shape))
    return f"""\
# TRL's training templates, compared

TRL ships copies of {
        len(compared)
    } chat templates in which `{{% generation %}}` marks the replies, and trains what
stands between the marks, in one rendering of the whole conversation. Here each copy is held against our turns of
the unmarked template, reply by reply, over the conversations of the harness: made by `tools/write_docs.py`, and
kept true by a test, which fails at any difference that has no argument below.

Of {total:,} replies that TRL marks, {same:,} are trained by both; {
        sum(pair.equal for pair in compared):,} on the
same tokens, the others with the differences (A) … below. The rest we leave out, and say why.

{markdown.table(("template", "equal", "other tokens", "left out by us", "refused by both"), by_pair)}

## Where both train, but not the same

`…` stands for tokens that both train, `↵` for a newline, THOUGHT and TEXT for the row's reasoning and reply.

{_shapes_table(trained, shapes)}

## Where TRL trains and we do not

{
        markdown.table(
            ("", "our reason", "replies", "why TRL's mask is no better"),
            [
                (letter, markdown.plain(shape), f"{len(shapes[shape])}", ARGUMENTS[shape])
                for shape, letter in silent
            ],
        )
    }
"""


def _two_sides(pair: Compared, letters: dict[str, str]) -> tuple[str, str]:
    counts = Counter(one.shape for one in pair.differences)
    sides = []
    for side in (True, False):
        mine = [(letters[s], n) for s, n in counts.items() if _is_shape(s) is side]
        sides.append(", ".join(f"{letter} {n}" for letter, n in sorted(mine)) or "–")
    return sides[0], sides[1]


def _shapes_table(shapes: Sequence[tuple[str, str]], found: dict[str, list[Difference]]) -> str:
    rows = []
    for shape, letter in shapes:
        ours, theirs = (_only(shape, mark) for mark in "-+")
        kinds = list(dict.fromkeys(one.kind for one in found[shape]))
        told = "all kinds" if len(kinds) > 6 else ", ".join(kinds)
        names = sorted({one.template for one in found[shape]})
        rows.append((letter, ours, theirs, ", ".join(names), markdown.plain(told), ARGUMENTS[shape]))
    return markdown.table(("", "ours − theirs", "theirs − ours", "templates", "conversations", "why"), rows)


def _only(shape: str, mark: str) -> str:
    """The tokens that one side alone trains, each run with where it stands."""
    bare = re.sub(
        rf"\[{re.escape('+' if mark == '-' else '-')}.*?{re.escape('+' if mark == '-' else '-')}\]", "", shape
    )
    kept = re.sub(rf"\[{re.escape(mark)}(.*?){re.escape(mark)}\]", r"⟦\1⟧", bare)
    return markdown.code(kept.replace("⟦", "").replace("⟧", "")) if "⟦" in kept else "–"


def _is_shape(shape: str) -> bool:
    return "[-" in shape or "[+" in shape


def _letter(number: int) -> str:
    return chr(ord("A") + number)
