"""Updates of TRL's SFTTrainer on one device, timed: what `gpu.py --peer` compares with."""

from __future__ import annotations

import importlib.util
import tempfile
import time
from itertools import pairwise
from typing import Any

import torch
from datasets import Dataset
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast, TrainerCallback
from trl import SFTConfig, SFTTrainer
from trl.data_utils import pack_dataset

MEAN = (
    512  # tokens of a turn, about: padded, a pass takes as many turns as a row of that many tokens would hold
)


class Clock(TrainerCallback):
    """When each update begins; the device's peak is counted from the first that is timed."""

    def __init__(self, device: torch.device, warm: int):
        self.device, self.warm, self.times = device, warm, []

    def on_step_begin(self, args: Any, state: Any, *_: Any, **__: Any) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
            if state.global_step == self.warm:
                torch.cuda.reset_peak_memory_stats(self.device)
        self.times.append(time.perf_counter())


def trained(
    model: Any, turns: list[tuple[list[int], int]], *, row: int, updates: int, warm: int, checkpointing: bool
) -> tuple[list[float], int, str]:
    """(seconds of each update, most bytes on the device, how turns were laid) of updates on all `turns`.

    A turn is (ids, length of its prompt). Packed to rows of `row` tokens where flash-attn keeps turns apart,
    padded in order of length where it is not installed.
    """
    device = model.device
    flash = device.type == "cuda" and importlib.util.find_spec("flash_attn") is not None
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    base.set_attn_implementation("flash_attention_2" if flash else "sdpa")
    ordered = sorted(turns, key=lambda turn: len(turn[0]))
    data = Dataset.from_list([{"input_ids": ids, "labels": [-100] * cut + ids[cut:]} for ids, cut in ordered])
    if flash:
        data = pack_dataset(data, row, "bfd")
    batch = 1 if flash else max(1, row // MEAN)
    passes = max(1, len(data) // batch)
    data = data.select(range(passes * batch))
    clock = Clock(device, warm)
    with tempfile.TemporaryDirectory() as folder:
        config = SFTConfig(
            output_dir=folder,
            use_cpu=device.type == "cpu",
            bf16=True,
            per_device_train_batch_size=batch,
            gradient_accumulation_steps=passes,
            max_steps=warm + updates + 1,
            learning_rate=1e-5,
            max_length=None,
            padding_free=flash,
            dataset_kwargs={"skip_prepare_dataset": True},
            train_sampling_strategy="sequential",
            gradient_checkpointing=checkpointing,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        )
        tokenizer = blank_tokenizer(base.config.vocab_size)
        trainer = SFTTrainer(
            model=model, args=config, train_dataset=data, processing_class=tokenizer, callbacks=[clock]
        )
        trainer.train()
    seconds = [b - a for a, b in pairwise(clock.times[warm:])]
    peak = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0
    return seconds, peak, "packed, flash-attn" if flash else "padded, sdpa"


def blank_tokenizer(vocabulary: int) -> Any:
    """Words for every id: the trainer wants a tokenizer, and gets token ids."""
    words = models.WordLevel({f"w{i}": i for i in range(vocabulary)}, unk_token="w0")
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(words), eos_token="w1", pad_token="w0")
