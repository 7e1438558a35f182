"""The tokenizer of the embedded base model: byte-level BPE, trained on the demo's own texts."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

END, PAD = "<|endoftext|>", "<|pad|>"
TURN_START, TURN_END = "<|im_start|>", "<|im_end|>"
SPECIAL = (END, PAD, TURN_START, TURN_END)  # their ids are 0, 1, 2, 3


def train_tokenizer(texts: Iterable[str], folder: Path, vocab_size: int = 1024) -> None:
    """Train on the texts and save what `AutoTokenizer.from_pretrained(folder)` loads.

    Every text has tokens and comes back as it was: all 256 bytes are in the vocabulary, nothing
    is normalised, and no space is added. Each digit is a token of its own, so that a number is
    read in one way only. There is no bos and no chat template; equal texts give equal files.
    """
    assert vocab_size >= len(SPECIAL) + 256, "the bytes alone need 256 tokens"
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        special_tokens=list(SPECIAL),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.json").write_text(
        tokenizer.to_str(pretty=True) + "\n", encoding="utf-8", newline="\n"
    )
    config = {
        # The name that transformers 4 and 5 both know.
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": None,
        "eos_token": END,
        "pad_token": PAD,
        "clean_up_tokenization_spaces": False,
    }
    text = json.dumps(config, indent=2) + "\n"
    (folder / "tokenizer_config.json").write_text(text, encoding="utf-8", newline="\n")
