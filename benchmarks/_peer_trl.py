"""One run of TRL's SFTTrainer, measured: `.venv-peers/bin/python benchmarks/_peer_trl.py SPEC.json OUT.json`.

SPEC: {"model", "steps" (a file of _steps.py), "updates", "threads", "learning_rate", "lora_rank", "limit"
(seconds that an update may take, or null) and "setting": {"layout": padded | padding_free | packed,
"precision", "batch": sequences (packed: rows) in a forward pass, "row": tokens of a packed row, "defaults"}}.

The trainer gets token ids and labels, so it has nothing left to tokenise; its updates hold the conversations
that imprint's hold, whatever the layout. Packed rows are made for each update by TRL's own `pack_dataset`
(best fit, decreasing); where an update has fewer rows than another, some of its rows are split at a
conversation's end, for the trainer accumulates the same number of passes for all. That costs nothing: a
packed row is not padded, and a shorter one has less attention.
"""

from __future__ import annotations

import json
import math
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl import SFTConfig, SFTTrainer
from trl.data_utils import pack_dataset

Row = dict[str, Any]


class TooSlowError(Exception):
    """An update took longer than SPEC's limit: this setting cannot be the best."""


def memory(field: str) -> int:
    """Bytes of /proc/self/status: VmRSS, what is in memory now; VmHWM, the most that ever was."""
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith(field))


def labelled(row: Row) -> Row:
    """What the trainer calls a row: -100 where nothing is trained."""
    return {"input_ids": row["ids"], "labels": [-100] * row["prompt"] + row["ids"][row["prompt"] :]}


def packed(steps: list[list[Row]], length: int, batch: int) -> tuple[list[Row], int]:
    """(rows of all updates in order, forward passes in each): equally many rows for every update."""
    packs = [list(pack_dataset(Dataset.from_list(rows), length, "bfd")) for rows in steps]
    count = math.ceil(max(map(len, packs)) / batch) * batch
    for rows in packs:
        while len(rows) < count:
            most = max(range(len(rows)), key=lambda i: len(rows[i]["seq_lengths"]))
            rows.extend(split_off(rows.pop(most)))
    return [row for rows in packs for row in rows], count // batch


def split_off(row: Row) -> list[Row]:
    """A packed row as two: its first conversation, and the others."""
    first, *others = row["seq_lengths"]
    if not others:
        raise SystemExit("an update has fewer conversations than rows are wanted")
    halves = (slice(None, first), slice(first, None))
    return [
        {"input_ids": row["input_ids"][half], "labels": row["labels"][half], "seq_lengths": lengths}
        for half, lengths in zip(halves, ([first], others), strict=True)
    ]


class Clock(TrainerCallback):
    """When each update was done, and whether one takes too long."""

    def __init__(self, limit: float | None):
        self.limit, self.times, self.begun, self.peak = limit, [], 0.0, 0

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        self.begun = time.perf_counter()
        if not self.times:
            self.times.append(self.begun)

    def on_substep_end(self, *_: Any, **__: Any) -> None:
        if self.limit and time.perf_counter() - self.begun > self.limit:
            raise TooSlowError

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.times.append(time.perf_counter())
        self.peak = memory("VmHWM")
        if self.limit and self.times[-1] - self.times[-2] > self.limit:
            raise TooSlowError


class Counted(SFTTrainer):
    """The trainer, which also keeps what each pass computed; the loss that it logs is rounded."""

    passes: list[tuple[float, int, int]]

    def training_step(self, model: Any, inputs: Any, *rest: Any, **named: Any) -> torch.Tensor:
        fed, labels = inputs["input_ids"].numel(), inputs["labels"]
        loss: torch.Tensor = super().training_step(model, inputs, *rest, **named)
        self.passes.append((float(loss), fed, int((labels[..., 1:] != -100).sum())))
        return loss


def config(spec: Row, accumulation: int, folder: str) -> SFTConfig:
    """The setting as TRL's own: every option that is not named here is at its default."""
    setting = spec["setting"]
    layout, bf16 = setting["layout"], setting["precision"] == "bfloat16"
    return SFTConfig(
        output_dir=folder,
        use_cpu=True,
        bf16=bf16,
        per_device_train_batch_size=setting["batch"],
        gradient_accumulation_steps=accumulation,
        max_steps=spec["updates"],
        learning_rate=spec["learning_rate"],
        lr_scheduler_type="constant",
        weight_decay=0.0,
        max_length=None if layout == "padding_free" else setting.get("row") or 2048,
        packing=layout == "packed",
        padding_free=layout == "padding_free",
        dataset_kwargs={"skip_prepare_dataset": True},
        train_sampling_strategy="sequential",
        gradient_checkpointing=bool(setting.get("defaults")),
        dataloader_pin_memory=False,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        seed=0,
    )


def trainer_of(spec: Row, folder: str, clock: Clock) -> Counted:
    setting = spec["setting"]
    lines = Path(spec["steps"]).read_text(encoding="utf-8").splitlines()[: spec["updates"]]
    steps = [[labelled(row) for row in json.loads(line)] for line in lines]
    if setting["layout"] == "packed":
        rows, accumulation = packed(steps, setting["row"], setting["batch"])
    else:
        rows, accumulation = [row for step in steps for row in step], len(steps[0]) // setting["batch"]
    model: Any = AutoModelForCausalLM.from_pretrained(
        spec["model"], dtype=torch.float32, attn_implementation="sdpa"
    )
    if spec["lora_rank"]:
        rank = spec["lora_rank"]
        adapters = LoraConfig(
            r=rank, lora_alpha=32, lora_dropout=0.0, target_modules="all-linear", task_type="CAUSAL_LM"
        )
        torch.manual_seed(0)  # as imprint draws the first factors
        model = get_peft_model(model, adapters)
    trainer = Counted(
        model=model,
        args=config(spec, accumulation, folder),
        train_dataset=Dataset.from_list(rows),
        processing_class=AutoTokenizer.from_pretrained(spec["model"]),
        callbacks=[clock],
    )
    trainer.passes = []
    return trainer


def measured(spec: Row) -> Row:
    """What was measured, or {"too_slow": …}."""
    imported = memory("VmRSS")
    clock = Clock(spec["limit"])
    with tempfile.TemporaryDirectory() as folder:
        trainer = trainer_of(spec, folder, clock)
        try:
            trainer.train()
        except TooSlowError:
            return {"too_slow": f"more than {spec['limit']:.1f} s for an update"}
    passes = trainer.args.gradient_accumulation_steps
    sums = [
        [sum(column) for column in zip(*trainer.passes[at : at + passes], strict=True)]
        for at in range(0, len(trainer.passes), passes)
    ]
    counted = list(trainer.model.parameters())
    total, trained = (
        sum(p.numel() for p in counted),
        sum(p.numel() for p in counted if p.requires_grad),
    )
    times = clock.times
    return {
        "first_seconds": times[1] - times[0],
        "seconds": [b - a for a, b in pairwise(times[1:])],
        "losses": [loss for loss, _, _ in sums],
        "computed_tokens": [fed for _, fed, _ in sums],
        "trained_tokens": [count for _, _, count in sums],
        "passes": passes,
        "imported_bytes": imported,
        "state_bytes": 4 * total + 12 * trained,
        "peak_bytes": clock.peak,
    }


def main() -> None:
    spec = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    torch.set_num_threads(spec["threads"])
    Path(sys.argv[2]).write_text(json.dumps(measured(spec)), encoding="utf-8")


if __name__ == "__main__":
    main()
