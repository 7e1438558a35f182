"""Ledger: what became of every record, conversation and turn, and why."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from imprint.data.conversation import Place

if TYPE_CHECKING:
    from rich.constrain import Constrain

PLACES = 5


@dataclass(slots=True)
class Tally:
    """How often something happened, and where first: each place once, however often it happened there."""

    count: int = 0
    places: list[Place] = field(default_factory=list)

    def add(self, place: Place) -> None:
        self.count += 1
        if len(self.places) < PLACES and place not in self.places:
            self.places.append(place)

    @property
    def more(self) -> str:
        """What stands behind the places where they may not be all."""
        return ", …" if self.count > len(self.places) >= PLACES else ""

    def __str__(self) -> str:
        return ", ".join(map(str, self.places)) + self.more

    def brief(self, names: Mapping[str, str]) -> str:
        """The places, each file said once, by its name in `names`; of a file whose name is empty, the numbers alone."""
        groups: dict[tuple[str, str], list[str]] = {}
        for place in self.places:
            groups.setdefault((names.get(place.file, place.file), place.unit), []).append(str(place.line))
        told = []
        for (file, unit), numbers in groups.items():
            word = "" if file and unit == "line" else unit + ("s " if len(numbers) > 1 else " ")
            told.append(f"{file}:{word}{', '.join(numbers)}" if file else f"{word}{', '.join(numbers)}")
        return "; ".join(told) + self.more


@dataclass(slots=True)
class Level:
    """One of the three levels of the account: total = sum of `kept` + sum of `left`."""

    total: int = 0
    kept: dict[str, int] = field(default_factory=dict)
    left: dict[str, Tally] = field(default_factory=dict)

    def keep(self, kind: str, count: int = 1) -> None:
        self.kept[kind] = self.kept.get(kind, 0) + count

    def leave(self, place: Place, reason: str) -> None:
        self.left.setdefault(reason, Tally()).add(place)

    @property
    def num_left(self) -> int:
        return sum(tally.count for tally in self.left.values())


class Ledger:
    """The account of a run's data.

    records read = used + refused; conversations = train + validation + left out;
    turns = trained + left out. Whoever reads a record, makes a conversation or a turn says so
    once (`read`, `conversation`, `turn`), and says once what became of it; `check` compares.
    A reason is a short stable sentence, so that equal ones add up.
    """

    def __init__(self) -> None:
        self.records = Level(kept={"used": 0})
        self.conversations = Level(kept={"train": 0, "validation": 0})
        self.turns = Level(kept={"trained": 0})
        self.pieces = Level()  # of replay alone: what is drawn at once
        self.files: dict[str, int] = {}
        self.warnings: dict[str, Tally] = {}
        self.remarks: dict[str, Tally] = {}  # what is worth knowing, and no warning
        self.notes: list[str] = []  # on all of the data: what the template adds to it
        self.details: dict[str, str] = {}  # of a turn's reason: what was seen where it first happened

    def read(self, place: Place) -> None:
        """A record was read."""
        self.records.total += 1
        self.files[place.file] = self.files.get(place.file, 0) + 1

    def use(self, place: Place) -> None:
        """A record became a conversation."""
        self.records.keep("used")

    def pass_over(self, place: Place, reason: str) -> None:
        """A record is not wanted; it is read, and no more is done with it."""
        self.read(place)
        self.records.keep(reason)

    def refuse(self, place: Place, reason: str) -> None:
        """A record is a bad row."""
        self.records.leave(place, reason)

    def conversation(self, place: Place) -> None:
        """A conversation was made."""
        self.conversations.total += 1

    def keep(self, part: str, count: int) -> None:
        """`count` conversations went into `part`, "train" or "validation"."""
        assert part in self.conversations.kept, part
        self.conversations.keep(part, count)

    def leave_out(self, place: Place, reason: str) -> None:
        """A conversation is in neither part."""
        self.conversations.leave(place, reason)

    def turn(self, place: Place) -> None:
        """A reply to learn was found."""
        self.turns.total += 1

    def keep_turn(self, place: Place, kind: str = "trained") -> None:
        """A turn will be trained, or validated."""
        self.turns.keep(kind)

    def leave_turn_out(self, place: Place, reason: str, detail: str = "") -> None:
        """A turn is not used; `detail` is what was seen there, kept of the first of its kind."""
        self.turns.leave(place, reason)
        self.details.setdefault(reason, detail)

    def withdraw(self, part: str, place: Place, reason: str) -> None:
        """A conversation that was kept turns out to have nothing to learn."""
        self.conversations.keep(part, -1)
        self.conversations.leave(place, reason)

    def warn(self, warning: str, place: Place) -> None:
        """Something that the user should know and that changes no count."""
        self.warnings.setdefault(warning, Tally()).add(place)

    def tell(self, text: str, tally: Tally, *, warning: bool, detail: str) -> None:
        """What was found in several places at once, a warning or a remark; `detail` is what to do about it."""
        (self.warnings if warning else self.remarks)[text] = tally
        if warning:
            self.details[text] = detail

    def note(self, text: str) -> None:
        """Something that holds for all of the data, or a kind of it."""
        self.notes.append(text)

    def check(self) -> None:
        """Assert that the three sums hold and that the files' records add up."""
        for name, level in self._levels():
            kept = " + ".join(f"{count} {kind}" for kind, count in level.kept.items())
            told = f"{level.total} {name}, but {kept} + {level.num_left} {_left_word(name)}"
            assert level.total == sum(level.kept.values()) + level.num_left, told
        in_files = sum(self.files.values())
        assert in_files == self.records.total, f"{self.records.total} records, but {in_files} in the files"

    def to_json(self) -> dict[str, Any]:
        """The account as values that JSON can hold; `from_json` reads it back."""
        levels = {
            name: {"total": level.total, "kept": level.kept, "left": _tallies_to_json(level.left)}
            for name, level in self._levels()
            if level.total or name != "pieces"
        }
        told = {"warnings": _tallies_to_json(self.warnings), "remarks": _tallies_to_json(self.remarks)}
        return levels | {"files": self.files} | told | {"details": self.details, "notes": self.notes}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Ledger:
        """The ledger that `to_json` wrote."""
        ledger = cls()
        for name, level in ledger._levels():
            if name not in value:
                continue
            level.total, level.kept = value[name]["total"], dict(value[name]["kept"])
            level.left = _tallies_from_json(value[name]["left"])
        ledger.files, ledger.warnings = dict(value["files"]), _tallies_from_json(value["warnings"])
        ledger.remarks = _tallies_from_json(value.get("remarks", {}))
        ledger.details = dict(value["details"])
        ledger.notes = list(value["notes"])
        return ledger

    def table(self, title: str = "What became of the data") -> Constrain:
        """The account, at most 80 columns wide: every count, every reason and its first places."""
        from rich.constrain import Constrain
        from rich.table import Table

        table = Table(title=title, title_justify="left", expand=True)
        table.add_column("", ratio=4, overflow="fold")
        table.add_column("number", justify="right", min_width=7)
        table.add_column("where", ratio=5, overflow="fold")
        names = _short_names(list(self.files))
        for name, level in self._levels():
            if not level.total and name != "records":
                continue
            whole = "records read" if name == "records" else name
            table.add_row(whole, str(level.total), self._in_files() if name == "records" else "")
            for kind, count in level.kept.items():
                table.add_row(f"  {kind}", str(count))
            for reason, tally in _by_count(level.left):
                table.add_row(f"  {_left_word(name)}: {reason}", str(tally.count), tally.brief(names))
            table.add_section()
        for kind, told in (("warning", self.warnings), ("note", self.remarks)):
            for text, tally in _by_count(told):
                table.add_row(f"{kind}: {text}", str(tally.count), tally.brief(names))
        return Constrain(table, 80)

    def _in_files(self) -> str:
        """How many records were read of each file, of the first few."""
        told = [f"{count} in {file}" for file, count in list(self.files.items())[:PLACES]]
        return "; ".join([*told, f"… ({len(self.files):,} files)"] if len(self.files) > PLACES else told)

    def _levels(self) -> tuple[tuple[str, Level], ...]:
        return (
            ("records", self.records),
            ("conversations", self.conversations),
            ("turns", self.turns),
            ("pieces", self.pieces),
        )


def _short_names(files: list[str]) -> dict[str, str]:
    """What files are called where their paths stand elsewhere: one alone nothing, others by as little as tells them."""
    if len(files) == 1:
        return {files[0]: ""}
    last = [file.rpartition("/")[2] for file in files]
    return dict(zip(files, last if len(set(last)) == len(last) else files, strict=True))


def _left_word(level: str) -> str:
    return "refused" if level == "records" else "left out"


def _by_count(tallies: dict[str, Tally]) -> Iterable[tuple[str, Tally]]:
    return sorted(tallies.items(), key=lambda item: -item[1].count)


def _tallies_to_json(tallies: dict[str, Tally]) -> dict[str, Any]:
    return {
        reason: {
            "count": tally.count,
            "places": [[place.file, place.line, place.unit] for place in tally.places],
        }
        for reason, tally in tallies.items()
    }


def _tallies_from_json(value: dict[str, Any]) -> dict[str, Tally]:
    return {
        reason: Tally(item["count"], [Place(*place) for place in item["places"]])
        for reason, item in value.items()
    }
