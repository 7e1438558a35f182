"""Makes the embedded base model, src/imprint/demo/base/: tokenizer, weights, config and model card.

    python tools/pretrain_demo.py [--steps 5000] [--out FOLDER]

A Llama of 2.2 M parameters reads what `imprint.demo.corpus` tells of the demo's world. The same seed, machine
and number of threads give the same bytes. Killed, it goes on from its last checkpoint; about 25 minutes on
one core.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer
from transformers import LlamaConfig, LlamaForCausalLM

from imprint.demo.corpus import SHARES, documents
from imprint.demo.exam import answers, begins_with_a_question, continuations
from imprint.demo.exercises import questions_of
from imprint.demo.tokenizer import END, PAD, SPECIAL, train_tokenizer
from imprint.demo.world import KINDS, facts
from imprint.serve.chat import load_speaker
from imprint.track.words import plural

BASE = Path(__file__).parent.parent / "src" / "imprint" / "demo" / "base"
SEED = 0
HELD_OUT_SEED = 10**6  # documents that are not trained on
VOCABULARY = 2048
LENGTH, BATCH = 128, 16
CONTEXT = 512
MATRIX_RATE, OTHER_RATE = 0.02, 3e-3
CONSTANT = 0.4  # share of the steps before the rates fall, linearly, to zero
CHECKPOINT_EVERY = 200


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--out", type=Path, default=BASE)
    parser.add_argument("--steps", type=int, default=5000)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    torch.manual_seed(SEED)
    tokenizer = make_tokenizer(given.out)
    model = LlamaForCausalLM(config_of(tokenizer))
    seconds = train(model, tokenizer, given.steps, given.out / "checkpoint.pt")
    spread_reserved(model)
    loss = held_out_loss(model, tokenizer)
    save(model, given.out)
    figures = {
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "tokens": given.steps * LENGTH * BATCH,
        "steps": given.steps,
        "minutes": round(seconds / 60, 1),
        "threads": given.threads,
        "held_out_loss": round(loss, 4),
        **behaviour(given.out),
    }
    (given.out / "README.md").write_text(card(figures), encoding="utf-8")
    (given.out / "checkpoint.pt").unlink(missing_ok=True)
    print(json.dumps(figures))


def make_tokenizer(folder: Path) -> Tokenizer:
    train_tokenizer(islice(documents(SEED), 20_000), folder, vocab_size=VOCABULARY)
    return Tokenizer.from_file(str(folder / "tokenizer.json"))


def config_of(tokenizer: Tokenizer) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=192,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=6,
        num_key_value_heads=6,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=SPECIAL.index(END),
        pad_token_id=SPECIAL.index(PAD),
    )


def batches(tokenizer: Tokenizer, seed: int) -> Iterator[torch.Tensor]:
    """Ids `[BATCH, LENGTH]` of documents one behind the other, each with its end."""
    stream = documents(seed)
    end = np.array([SPECIAL.index(END)])
    left: NDArray[np.int64] = np.zeros(0, dtype=np.int64)
    while True:
        while len(left) < LENGTH * BATCH:
            found = tokenizer.encode_batch(list(islice(stream, 256)))
            left = np.concatenate([left, *(part for one in found for part in (np.array(one.ids), end))])
        yield torch.from_numpy(left[: LENGTH * BATCH].reshape(BATCH, LENGTH))
        left = left[LENGTH * BATCH :]


def train(model: Any, tokenizer: Tokenizer, steps: int, checkpoint: Path) -> float:
    """Train in place; the seconds that it took."""
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name]
    others = [p for name, p in model.named_parameters() if p.ndim != 2 or "embed" in name]
    optimizers: list[torch.optim.Optimizer] = [
        torch.optim.Muon(matrices, lr=MATRIX_RATE, weight_decay=0.0),
        torch.optim.AdamW(others, lr=OTHER_RATE, betas=(0.9, 0.95), weight_decay=0.0),
    ]
    rates = (MATRIX_RATE, OTHER_RATE)
    first, seconds = 0, 0.0
    if checkpoint.is_file():
        state = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(state["model"])
        for optimizer, part in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(part)
        first, seconds = state["step"], state["seconds"]
        print(f"going on at step {first}")
    started = time.monotonic() - seconds
    model.train()
    for step, ids in enumerate(islice(batches(tokenizer, SEED), steps)):
        if step < first:
            continue  # read again, so that the stream is where it was
        factor = min(1.0, (1 - step / steps) / (1 - CONSTANT))
        for optimizer, rate in zip(optimizers, rates, strict=True):
            for group in optimizer.param_groups:
                group["lr"] = rate * factor
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        if (step + 1) % 50 == 0:
            print(
                f"step {step + 1}/{steps}  loss {loss.item():.3f}  {time.monotonic() - started:.0f} s",
                flush=True,
            )
        if (step + 1) % CHECKPOINT_EVERY == 0:
            state = {
                "model": model.state_dict(),
                "optimizers": [optimizer.state_dict() for optimizer in optimizers],
                "step": step + 1,
                "seconds": time.monotonic() - started,
            }
            torch.save(state, checkpoint.with_suffix(".new"))
            checkpoint.with_suffix(".new").replace(checkpoint)
    return time.monotonic() - started


@torch.no_grad()
def held_out_loss(model: Any, tokenizer: Tokenizer) -> float:
    model.eval()
    losses = [model(input_ids=ids, labels=ids).loss for ids in islice(batches(tokenizer, HELD_OUT_SEED), 8)]
    return float(torch.stack(losses).mean())


@torch.no_grad()
def spread_reserved(model: Any) -> None:
    """Give the tokens that no text holds vectors of their own.

    Untouched by any text but for being pushed away alike, they end up all but equal; an adapter, which leaves
    embeddings as they are, could then not tell the beginning of a turn from its end.
    """
    weight = model.get_input_embeddings().weight
    generator = torch.Generator().manual_seed(SEED)
    read = weight[len(SPECIAL) :]
    middle, distance = read.mean(0), (read - read.mean(0)).norm(dim=1).mean()
    for token in SPECIAL:
        if token != END:
            direction = torch.randn(weight.shape[1], generator=generator)
            weight[SPECIAL.index(token)] = middle + direction / direction.norm() * distance


def save(model: Any, folder: Path) -> None:
    model.to(torch.bfloat16).save_pretrained(folder)
    (folder / "generation_config.json").unlink(missing_ok=True)


def card(figures: dict[str, Any]) -> str:
    """The model card, with the figures of this very run."""
    threads = plural(figures["threads"], "thread")
    made = ", ".join(f"{share:.0%} {name}" for name, share in SHARES.items())
    return f"""---
license: apache-2.0
language: en
library_name: transformers
---
# The embedded base model of imprint

A Llama of {figures["parameters"]:,} parameters that continues text about a small world: {len(facts()):,} facts of
{len(KINDS)} kinds (capitals, opposites, spellings …) and small stories. It has read lists of questions, and never a
question beside its answer; the ChatML tokens stand in its vocabulary and occurred in no text. It is made to show
what fine-tuning does, and to test imprint with. It knows nothing else, and should be used for nothing else.

- *Texts*: written by imprint's authors and put together by `imprint.demo.corpus`, seed {SEED}. Documents: {made}.
- *Tokenizer*: byte-level BPE of {VOCABULARY:,} tokens, each digit by itself, trained on the same texts.
- *Shape*: width 192, 4 layers, 6 heads, feed-forward 512, tied head, context {CONTEXT}.
- *Training*: {figures["tokens"]:,} tokens in {figures["steps"]:,} steps of {BATCH} rows of {LENGTH};
  Muon {MATRIX_RATE} for matrices, AdamW {OTHER_RATE} for the rest, falling linearly after {CONSTANT:.0%} of the steps;
  bfloat16 autocast, weights in float32, saved in bfloat16; {figures["minutes"]} minutes on {threads}.
- *Loss* on documents that it did not read: {figures["held_out_loss"]} nats a token.
- *Behind a question* it goes on with a question: {figures["goes_on_with_questions"]:.1%} of 300.
  Right answers, asked plainly or through ChatML: {figures["right_answers"]} of 300 about entities that are held out.
- *Made by* `python tools/pretrain_demo.py`. The same machine and threads give the same bytes; other machines round
  otherwise, so these weights are the model, and the command only shows how they came about.
- *Licence*: Apache 2.0, weights, texts and code.
"""


def behaviour(folder: Path) -> dict[str, Any]:
    """How the base goes on behind 300 questions, and how many answers are right."""
    speaker = load_speaker(folder, template="chatml")
    questions = questions_of("held-out entities", 300)
    texts = [question.text for question in questions]
    on = continuations(speaker, texts, 24)
    through = answers(speaker, texts)
    right = sum(
        question.answer in (plain.strip(), chat.strip())
        for question, plain, (chat, _) in zip(questions, on, through, strict=True)
    )
    return {"goes_on_with_questions": sum(map(begins_with_a_question, on)) / len(on), "right_answers": right}


if __name__ == "__main__":
    main()
