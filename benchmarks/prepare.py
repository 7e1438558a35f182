"""Reading, rendering and packing real rows, against rendering each conversation once and bare `encode_batch`.

    python benchmarks/prepare.py [--rounds 7]

Ours reads the file, recognises its rows, renders two texts for each reply, tokenises, checks, keeps
conversations and turns on disk, and lays out every step of an epoch from there. The reference gets
the conversations for nothing: it renders each once with transformers' apply_chat_template and encodes
all texts in one call. Same process, same threads, in turn; the figure is the median of the paired
ratios. Goal: at most 2.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from datetime import datetime
from pathlib import Path
from typing import Any

from _common import SHARED, machine, write_result

from imprint.data.ledger import Ledger
from imprint.data.load import Loaded, load
from imprint.data.spool import Scratch
from imprint.pack.plan import Plan, share_out
from imprint.recipe import DataSource
from imprint.render.form import as_template_input
from imprint.render.resolve import load_tokenizer, prepare_rendering
from imprint.render.store import TurnStore, TurnWriter
from imprint.render.turns import Turn, render

GOAL = 2.0


def read(path: Path) -> Loaded:
    """The conversations of a file, as a run reads them."""
    return load(
        [DataSource(path=str(path))],
        validation=0.0,
        bad_rows="stop",
        consecutive_replies="merge",
        seed=0,
        ledger=Ledger(),
    )


def ours(path: Path, tokenizer_folder: Path) -> tuple[float, dict[str, float], int]:
    """(seconds, seconds of each part, turns) from the file to the rows of one epoch."""
    tokenizer = load_tokenizer(str(tokenizer_folder))
    started = time.perf_counter()
    loaded = read(path)
    was_read = time.perf_counter()
    rendering = prepare_rendering(tokenizer, template="chatml", now=datetime(2026, 1, 1))
    scratch = Scratch()
    with TurnWriter(scratch.path, "train") as writer:
        for item in render(loaded.train, rendering.template, rendering.encoder, max_length=2048):
            if isinstance(item, Turn):
                writer.add(item)
    turns = TurnStore(scratch.path, "train", keep=scratch)
    rendered = time.perf_counter()
    plan = Plan(len(turns), 32, 1, 0, loaded.fingerprint)
    for step in range(plan.total_steps):
        share_out([turn for i in plan.conversations(step) for turn in turns[i]], 4096, 1)
    done = time.perf_counter()
    parts = {"read": was_read - started, "render": rendered - was_read, "pack": done - rendered}
    return done - started, parts, len(turns)


def reference(path: Path, tokenizer_folder: Path) -> float:
    """Seconds to render each conversation once and to encode all texts at once."""
    tokenizer: Any = load_tokenizer(str(tokenizer_folder))
    template = prepare_rendering(tokenizer, template="chatml", now=datetime(2026, 1, 1)).template
    loaded = read(path)
    conversations = [[as_template_input(m) for m in c.messages] for c in loaded.train]
    started = time.perf_counter()
    texts = [template.render(messages) for messages in conversations]
    tokenizer.backend_tokenizer.encode_batch(texts, add_special_tokens=False)
    return time.perf_counter() - started


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    rounds = parser.parse_args().rounds
    data, tokenizer = SHARED / "sft/gsm8k_train.jsonl.gz", SHARED / "tokenizers/gpt_neox_20b"
    if not data.is_file():
        print(f"skipped: {data.name} is not there")
        return 0
    ours(data, tokenizer), reference(data, tokenizer)  # warm up
    pairs, parts = [], []
    for _ in range(rounds):
        seconds, split, count = ours(data, tokenizer)
        pairs.append((seconds, reference(data, tokenizer)))
        parts.append(split)
    ratio = statistics.median(a / b for a, b in pairs)
    result = {
        "benchmark": "prepare",
        "goal": GOAL,
        "ratio": ratio,
        "turns": count,
        "ours_seconds": statistics.median(a for a, _ in pairs),
        "reference_seconds": statistics.median(b for _, b in pairs),
        "parts_seconds": {key: statistics.median(part[key] for part in parts) for key in parts[0]},
        "rounds": rounds,
        "machine": machine(),
    }
    print(json.dumps(result, indent=1))
    print(f"prepare: {ratio:.2f} x rendering once and encoding (goal: at most {GOAL:g})")
    write_result("prepare", result)
    return 0 if ratio <= GOAL else 1


if __name__ == "__main__":
    sys.exit(main())
