"""The second law on real demonstrations: shared and packed rows make the update of padded examples.

The embedded base model in float64, with fused layers, attention in tiles and the chunked loss, on what users bring:
instructions in a template with one preamble, several answers to a question, trees of replies, tool calls.
"""

import gzip
import json
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
import transformers.models.llama.modeling_llama as llama

import imprint
from imprint.demo.base import base_model
from imprint.model.fused import fuse
from imprint.pack.tree import build_rows
from imprint.render.turns import Turn
from tiny import difference, padded_gradients, row_gradients

SFT = Path(__file__).parents[3] / "shared" / "data" / "sft"
SETS = {
    "alpaca": ("alpaca_5000.json", "alpaca"),
    "gsm8k, four answers": ("gsm8k_train.jsonl.gz", "chatml"),
    "OpenAssistant trees": ("oasst_en_100_trees.jsonl", "chatml"),
    "tools": ("glaive_toolcall_en_demo.json", "chatml"),
}
MOST = 9  # conversations


@pytest.fixture(scope="module")
def model() -> Iterator[Any]:
    original = llama.apply_rotary_pos_emb
    with base_model() as folder:
        model: Any = imprint.load_model(folder)
    fuse(model)
    yield imprint.RowModel(model.double())
    llama.apply_rotary_pos_emb = original


def four_answers(source: Path, out: Path) -> Path:
    """Three more answers to each question: its solution without the working, the result alone, and a short one."""
    rows = []
    with gzip.open(source, "rt", encoding="utf-8") as file:
        for line in list(file)[:3]:
            row = json.loads(line)
            work, _, result = row["answer"].partition("\n#### ")
            answers = [row["answer"], result, f"It is {result}.", f"{work.splitlines()[-1]}\n#### {result}"]
            rows += [{"prompt": row["question"], "response": answer} for answer in answers]
    path = out / "four.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def turns_of(name: str, folder: Path) -> list[Turn]:
    file, template = SETS[name]
    if not (SFT / file).is_file():
        pytest.skip(f"{file} is not beside the project (shared/data/sft)")
    path = four_answers(SFT / file, folder) if "four" in name else SFT / file
    loaded = imprint.load_data(
        [imprint.DataSource(path=str(path))],
        validation=0.0,
        bad_rows="leave_out",
        consecutive_replies="merge",
        seed=0,
        ledger=imprint.Ledger(),
    )
    with base_model() as base:
        tokenizer = imprint.load_tokenizer(str(base))
    rendering = imprint.prepare_rendering(
        tokenizer, template=template, now=datetime(2026, 1, 1), reasoning=loaded.reasoning
    )
    found: list[Turn] = []
    for item in imprint.render_turns(
        loaded.train, rendering.template, rendering.encoder, max_length=400, stop_ids=rendering.stop_ids
    ):
        if isinstance(item, Turn) and item.conversation < 4 * MOST:
            found.append(item)
        if len({turn.conversation for turn in found}) > MOST:
            break
    return found


@pytest.mark.parametrize("name", SETS)
def test_real_rows_make_the_update_of_padded_examples(name: str, model: Any, tmp_path: Path) -> None:
    turns = turns_of(name, tmp_path)
    assert len(turns) >= 6
    loss, wanted = padded_gradients(model.model, turns)
    alone = sum(len(turn) - 1 for turn in turns)
    for layout, budget in (("shared", 4096), ("shared", 1024), ("packed", 2048)):
        rows = build_rows(turns, budget, layout, multiple=64)
        laid = sum(row.num_tokens - row.num_padding for row in rows)
        assert laid < 0.98 * alone if (layout, budget) == ("shared", 4096) else laid <= alone
        found_loss, found = row_gradients(model, rows)
        assert difference(found, wanted) <= 1e-6
        assert found_loss == pytest.approx(loss, rel=1e-8)
    rows[0].end[int(rows[0].source[0])] = int(rows[0].source[0]) + 1  # the planted twin
    assert difference(row_gradients(model, rows)[1], wanted) >= 1e-4
