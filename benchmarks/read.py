"""Speed and memory of reading: reader, recognition and conversion of rows against bare `json.loads` per line.

    python benchmarks/read.py [--rows 1000000] [--ten-million]

Speed is processor time on one core; bare and ours take turns on the same file. Memory is the most that
was resident in a process of its own, for few and for many rows. Goals: at least 150 MB/s of JSON lines
through reader and recognition, and memory that does not grow with the rows.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from _common import machine, write_result

GOAL, GROWTH = 150.0, 1.1
ROUNDS = 5
SENTENCE = (
    "the quick brown fox jumps over a lazy dog while seven wizards quietly mix potions and write down what "
    "they see in a small green book about numbers names rivers and the history of glass"
)
WORDS = SENTENCE.split()


def text(rng: random.Random, words: int) -> str:
    return " ".join(rng.choices(WORDS, k=words)) + "."


def alpaca(rng: random.Random) -> dict[str, Any]:
    return {"instruction": text(rng, 20), "input": "", "output": text(rng, 60) + "\n" + text(rng, 30)}


def chat(rng: random.Random) -> dict[str, Any]:
    roles = ("user", "assistant") * 2
    return {"messages": [{"role": role, "content": text(rng, 60)} for role in roles]}


def short(rng: random.Random) -> dict[str, Any]:
    return {"prompt": text(rng, 6), "response": text(rng, 4)}


def write(path: Path, rows: Iterator[dict[str, Any]]) -> None:
    """JSON lines, one array, or CSV, by the suffix."""
    with path.open("w", encoding="utf-8") as file:
        if path.suffix == ".csv":
            file.write("prompt,response\n")
        for number, row in enumerate(rows):
            if path.suffix == ".csv":
                file.write(",".join(f'"{cell}"' for cell in row.values()) + "\n")
            elif path.suffix == ".json":
                file.write(f"{',' if number else '['}{json.dumps(row)}\n")
            else:
                file.write(json.dumps(row) + "\n")
        if path.suffix == ".json":
            file.write("]\n")


def bare(path: Path) -> int:
    count = 0
    with path.open("rb") as file:
        for line in file:
            json.loads(line)
            count += 1
    return count


def reader(path: Path) -> int:
    from imprint.data.gather import read
    from imprint.recipe import DataSource

    return sum(1 for _ in read(DataSource(path=str(path))))


def recognised(path: Path) -> int:
    """Read, and the format of every row found."""
    from imprint.data.conversation import Place
    from imprint.data.gather import read
    from imprint.data.recognise import recognise
    from imprint.recipe import DataSource

    nowhere, nothing = Place("", 0), frozenset[str]()
    found = (
        recognise(record.value, nothing, nowhere, "data.0") for record in read(DataSource(path=str(path)))
    )
    return sum(1 for _ in found)


def converted(path: Path) -> int:
    """Read, recognised, checked and made into conversations."""
    from imprint.data.formats import converter
    from imprint.data.gather import read
    from imprint.recipe import DataSource

    source = DataSource(path=str(path))
    convert = converter(source)
    return sum(len(convert(record)) for record in read(source))


def speed(folder: Path, make: Callable[[random.Random], dict[str, Any]], rows: int) -> dict[str, Any]:
    """MB per second of processor time, the medians of several rounds."""
    path, rng = folder / "rows.jsonl", random.Random(0)
    write(path, (make(rng) for _ in range(rows)))
    size = path.stat().st_size / 1e6
    taken: dict[str, list[float]] = {}
    for _ in range(ROUNDS):
        for way in (bare, reader, recognised, converted):
            start = time.process_time()
            assert way(path) == rows
            taken.setdefault(way.__name__, []).append(time.process_time() - start)
    found = {name: size / statistics.median(seconds) for name, seconds in taken.items()}
    return {
        "bytes_per_row": size * 1e6 / rows,
        "mb_per_second": found,
        "reader_of_bare": found["reader"] / found["bare"],
        "recognised_of_bare": found["recognised"] / found["bare"],
        "converted_of_bare": found["converted"] / found["bare"],
    }


def peak(path: Path) -> dict[str, Any]:
    """What a process of its own needs to read and recognise all rows of a file."""
    run = subprocess.run([sys.executable, __file__, "--child", str(path)], check=True, stdout=subprocess.PIPE)
    found: dict[str, Any] = json.loads(run.stdout)
    return found


def memory(folder: Path, suffix: str, counts: list[int]) -> dict[str, Any]:
    found = {}
    for count in counts:
        path, rng = folder / f"many{suffix}", random.Random(0)
        write(path, (short(rng) for _ in range(count)))
        result = peak(path)
        assert result["rows"] == count
        found[str(count)] = {"file_mb": path.stat().st_size / 1e6, "peak_mb": result["peak_mb"]}
        path.unlink()
    first, *others = (one["peak_mb"] for one in found.values())
    return {"rows": found, "growth": max(others) / first}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--ten-million", action="store_true", help="measure memory up to 10 million rows")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        rows = converted(Path(given.child))
        unit = 1 if sys.platform == "darwin" else 1024
        used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6
        print(json.dumps({"rows": rows, "peak_mb": used}))
        return 0
    counts = [10_000, given.rows] + ([10_000_000] if given.ten_million else [])
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        speeds = {make.__name__: speed(folder, make, 30_000) for make in (alpaca, chat)}
        kinds = {suffix: memory(folder, suffix, counts) for suffix in (".jsonl", ".json", ".csv")}
    result = {
        "benchmark": "read",
        "goal": {"mb_per_second": GOAL, "growth": GROWTH},
        "speed": speeds,
        "memory": kinds,
        "machine": machine(),
    }
    print(json.dumps(result, indent=1))
    for shape, one in speeds.items():
        mb = one["mb_per_second"]
        print(
            f"read {shape}: {mb['recognised']:.0f} MB/s read and recognised, {mb['converted']:.0f} MB/s made into "
            f"conversations; json.loads alone {mb['bare']:.0f} MB/s (ratio {one['recognised_of_bare']:.2f})"
        )
    for suffix, kind in kinds.items():
        peaks = ", ".join(f"{value['peak_mb']:.0f} MB at {count}" for count, value in kind["rows"].items())
        print(f"memory {suffix}: {peaks} rows (growth {kind['growth']:.2f})")
    write_result("read", result)
    fast = all(one["mb_per_second"]["recognised"] >= GOAL for one in speeds.values())
    return 0 if fast and all(kind["growth"] <= GROWTH for kind in kinds.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
