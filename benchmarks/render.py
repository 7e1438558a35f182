"""From conversations to turns, against rendering each conversation once and one `encode_batch`.

    python benchmarks/render.py [--rounds 7] [--only WORD]

Ours renders the prompt and the reply of every turn, makes all checks, and tokenises both. The
reference renders each conversation once with transformers' apply_chat_template and encodes all
texts in one call; beside it stands the same with our own `Template.render`, which is quicker and
so a harder mark. Same process, same threads, in turn; the figures are medians of paired ratios.
Goals: at most 1.5 for one reply, at most 3 for twenty, on the templates of `JUDGED`.
"""

from __future__ import annotations

import argparse
import gc
import random
import re
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from _common import SHARED, machine, write_result

from imprint.data.conversation import Conversation, Message, Place
from imprint.data.ledger import Ledger
from imprint.data.load import load
from imprint.recipe import DataSource
from imprint.render.form import as_tools
from imprint.render.resolve import Rendering, load_tokenizer, prepare_rendering
from imprint.render.turns import Turn, render

GOALS = {"one": 1.5, "twenty": 3.0}
TEMPLATES = {
    "chatml": "",
    "Qwen2.5": "llamacpp/Qwen-Qwen2.5-7B-Instruct.jinja",
    "Qwen3": "llamacpp/Qwen-Qwen3-0.6B.jinja",
    "Llama-3.1": "llamacpp/meta-llama-Llama-3.1-8B-Instruct.jinja",
    "Mistral-v3": "mistral_common/v3.jinja",
    "gpt-oss": "llamacpp/openai-gpt-oss-120b.jinja",
}
JUDGED = ("chatml", "Qwen2.5", "Qwen3", "Llama-3.1")
TOKENIZERS = ("gpt_neox_20b", "mistral_v3_spm")
NOW = datetime(2026, 1, 1)
REPLIES, DIALOGUES, ROWS = 20, 16, 800
# control tokens that a template writes, as its own model's tokenizer has them
CONTROL = re.compile(r"<\|\w+\|>|\[/?[A-Z]{4,}(?:_[A-Z]+)*\]")


def rows(path: Path) -> list[Conversation]:
    """Real conversations of one reply."""
    loaded = load(
        [DataSource(path=str(path))],
        validation=0.0,
        bad_rows="leave_out",
        consecutive_replies="merge",
        seed=0,
        ledger=Ledger(),
    )
    return list(loaded.train)[:ROWS]


def dialogues(words: Sequence[str], system: int = 0, reasoning: bool = False) -> list[Conversation]:
    """Conversations of twenty replies, 20 to 60 words a message; `system`: words in front of them."""
    draw = random.Random(0)

    def text(fewest: int = 20, most: int = 60) -> str:
        return " ".join(draw.choices(words, k=draw.randint(fewest, most)))

    out = []
    for number in range(DIALOGUES):
        messages = [Message("system", text(system, system))] if system else []
        for _ in range(REPLIES):
            messages.append(Message("user", text()))
            messages.append(Message("assistant", text(), reasoning=text() if reasoning else None))
        out.append(Conversation(tuple(messages), Place("made.jsonl", number + 1)))
    return out


def made_for(template: str, tokenizer: str, conversations: Sequence[Conversation]) -> Rendering:
    """A template with a tokenizer that has its control tokens."""
    from tokenizers import AddedToken
    from transformers import LlamaTokenizer

    folder = str(SHARED / "tokenizers" / tokenizer)
    made: Any = LlamaTokenizer.from_pretrained(folder) if "spm" in tokenizer else load_tokenizer(folder)
    share = float(any(m.reasoning for m in conversations[0].messages))
    if not template:
        return prepare_rendering(made, template="chatml", now=NOW, reasoning=share)
    source = (SHARED / "templates" / template).read_text(encoding="utf-8")
    found = sorted(set(CONTROL.findall(source)))
    made.add_tokens([AddedToken(t, special=True, normalized=False) for t in found], special_tokens=True)
    made.chat_template = source
    return prepare_rendering(made, now=NOW, reasoning=share)


def ours(made: Rendering, conversations: Sequence[Conversation]) -> int:
    """The number of turns that are trained."""
    items = render(conversations, made.template, made.encoder, max_length=1 << 20, stop_ids=made.stop_ids)
    return sum(isinstance(item, Turn) for item in items)


def references(made: Rendering, conversations: Sequence[Conversation]) -> dict[str, Callable[[], None]]:
    """What a trainer does at least; the conversations come in the template's form, for nothing."""
    inputs = [made.template.inputs(c.messages) for c in conversations]
    tools = [as_tools(c.tools) or None for c in conversations]
    tokenizer = made.encoder.tokenizer
    tokenizer.chat_template = made.template.source
    options = {**made.template.options, "tokenize": False}

    def transformers() -> None:
        texts = [
            tokenizer.apply_chat_template(m, tools=t, **options) for m, t in zip(inputs, tools, strict=True)
        ]
        tokenizer.backend_tokenizer.encode_batch(texts, add_special_tokens=False)

    def imprint() -> None:
        texts = [made.template.render(m) for m in inputs]
        tokenizer.backend_tokenizer.encode_batch(texts, add_special_tokens=False)

    return {"transformers": transformers, "imprint": imprint}


def timed(run: Callable[[], Any]) -> float:
    gc.collect()
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def compare(made: Rendering, conversations: Sequence[Conversation], rounds: int) -> dict[str, Any]:
    """Medians over `rounds` of our seconds over each reference's, taken in turn."""
    against = references(made, conversations)
    turns = ours(made, conversations)
    taken: dict[str, list[float]] = {name: [] for name in ("ours", *against)}
    for run in against.values():
        run()
    for _ in range(rounds):
        taken["ours"].append(timed(lambda: ours(made, conversations)))
        for name, run in against.items():
            taken[name].append(timed(run))
    ratios = {
        name: statistics.median(a / b for a, b in zip(taken["ours"], taken[name], strict=True))
        for name in against
    }
    replies = sum(m.role == "assistant" for c in conversations for m in c.messages)
    return {
        "ratio": ratios["transformers"],
        "ratios": ratios,
        "seconds": {name: statistics.median(seconds) for name, seconds in taken.items()},
        "turns": turns,
        "replies": replies,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--only", default="", help="cells whose name holds this word")
    given = parser.parse_args()
    sft = SHARED / "sft"
    if not (sft / "gsm8k_train.jsonl.gz").is_file():
        print("skipped: the shared data are not there")
        return 0
    gsm8k, alpaca = rows(sft / "gsm8k_train.jsonl.gz"), rows(sft / "alpaca_5000.json")
    words = [word for c in alpaca for m in c.messages for word in m.content.split()]
    corpora = {
        "one: gsm8k": gsm8k,
        "one: alpaca": alpaca,
        "twenty: plain": dialogues(words),
        "twenty: system of 300 words": dialogues(words, system=300),
        "twenty: reasoning in every reply": dialogues(words, reasoning=True),
    }
    cells: list[dict[str, Any]] = []
    for corpus, conversations in corpora.items():
        goal = corpus.partition(":")[0]
        for template, file in TEMPLATES.items():
            for tokenizer in TOKENIZERS:
                name = f"{corpus} | {template} | {tokenizer}"
                if given.only not in name:
                    continue
                made = made_for(file, tokenizer, conversations)
                if not ours(made, conversations):
                    print(f"{name:70} refused: the template does not show all of the row", flush=True)
                    continue
                found = compare(made, conversations, given.rounds)
                judged = template in JUDGED
                cells.append({"name": name, "goal": goal, "judged": judged, **found})
                two = " ".join(f"{one:5.2f}" for one in found["ratios"].values())
                print(f"{name:70} {two}  {found['turns']:5} of {found['replies']} replies", flush=True)
    worst: dict[str, Any] = {}
    for goal, most in GOALS.items():
        judged = [cell for cell in cells if cell["judged"] and cell["goal"] == goal]
        if judged:
            highest = max(judged, key=lambda cell: cell["ratio"])
            middle = statistics.median(cell["ratio"] for cell in judged)
            worst[goal] = {"ratio": highest["ratio"], "cell": highest["name"], "median": middle}
            print(
                f"{goal}: median {middle:.2f}, at worst {highest['ratio']:.2f} ({highest['name']}); goal {most:g}"
            )
    result = {"benchmark": "render", "goals": GOALS, "worst": worst, "cells": cells}
    result |= {"rounds": given.rounds, "machine": machine()}
    if not given.only:
        write_result("render", result)
    return int(any(found["ratio"] > GOALS[goal] for goal, found in worst.items()))


if __name__ == "__main__":
    sys.exit(main())
