"""The model and the conversations that imprint and its peers are measured on.

Everything is made from real files by rules that are written here, once, into benchmarks/work/ (which git
ignores): a Llama of 19.4 M parameters with random weights, or of 103 M, and one file of conversations for
each workload. Every conversation has one reply, so a conversation is one turn and one sequence of a peer.
"""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

from _common import HERE, SHARED

WORK = HERE / "work"
TOKENIZER = SHARED / "tokenizers/mistral_v1_spm"
BATCH = 32  # conversations in an update
MAX_LENGTH = 2048
CONVERSATIONS = 1024  # of each workload; a run takes whole steps from the first epoch

Row = dict[str, Any]

# A template of plain text: no control tokens but bos and eos, so that no side has to add any.
TEMPLATE = """\
{{- bos_token -}}
{%- if tools -%}
{{- '### Tools\\n' -}}
{%- for tool in tools -%}{{- (tool | tojson) + '\\n' -}}{%- endfor -%}
{{- '\\n' -}}
{%- endif -%}
{%- for message in messages -%}
{%- if message.role == 'assistant' -%}
{{- '### Assistant\\n' + (message.content or '') -}}
{%- for call in message.tool_calls or [] -%}
{{- (call.function.name | tojson) + ' ' + (call.function.arguments | tojson) -}}
{%- endfor -%}
{{- eos_token -}}
{%- else -%}
{{- '### ' + message.role.capitalize() + '\\n' + message.content + '\\n\\n' -}}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '### Assistant\\n' -}}{%- endif -%}
"""

# About 330 tokens, as a product would put before each question.
SYSTEM = """\
You are Abacus, the tutor of a school's evening study hall. Pupils between nine and fourteen bring you word \
problems from their arithmetic books, and you show them how such a problem is solved.

How you work:
- Read the whole problem first. Say to yourself what is asked for and in which unit the answer has to be.
- Solve it in short steps. Each step is one sentence with one calculation, and the calculation is written out \
with its result, so that a pupil can check it with a pencil.
- Use only numbers that stand in the problem or that an earlier step has found. Where a number of days in a \
week, months in a year or minutes in an hour is needed, say so.
- Money is given in dollars, lengths in the unit of the problem. Round only where the problem asks for it.
- Never skip a step because it looks easy. The pupil who asks may be the one for whom it is not.

How you write:
- Plain words and short sentences. No greeting, no praise, no jokes, no repetition of the problem.
- No headings, no lists and no tables: a few lines of text are enough.
- If the problem cannot be solved with what it says, name what is missing, and stop there.

How you end:
- The last line holds nothing but four number signs, a space and the final answer as a bare number, without a \
unit and without a full stop, because a program reads it.
"""


@dataclass(frozen=True)
class Workload:
    """One line of the table of goals: its conversations, its settings, and how long it is measured."""

    name: str
    title: str
    goal: float  # examples a second, imprint over the peer's best
    rows: Callable[[], Iterator[Row]]
    updates: int  # measured in each process, after one to warm up
    recipe: Row = field(default_factory=dict)

    @property
    def lora(self) -> bool:
        return self.recipe.get("method") == "lora"

    @property
    def file(self) -> Path:
        """The workload's conversations; written where they are not there yet."""
        path = WORK / "peers" / f"{self.name}.jsonl"
        if not path.is_file():
            path.parent.mkdir(parents=True, exist_ok=True)
            lines = [json.dumps(row) + "\n" for row in islice(self.rows(), CONVERSATIONS)]
            path.write_text("".join(lines), encoding="utf-8")
        return path

    def settings(self, model: Path, updates: int) -> Row:
        """The recipe of a run that trains and does nothing else."""
        return {
            "model": str(model),
            "data": str(self.file),
            "validation": 0,
            "samples": 0,
            "final": "last",
            "max_length": MAX_LENGTH,
            "batch_size": BATCH,
            "max_steps": updates,
            "epochs": 1000,
            "save_every": 10**6,
            "learning_rate": 1e-3 if self.lora else 2e-4,
            "schedule": "constant",
            "warmup": 0,
            "threads": 2,
            **self.recipe,
        }


def gsm8k() -> Iterator[Row]:
    """Questions of grade-school mathematics with their solutions."""
    with gzip.open(SHARED / "sft/gsm8k_train.jsonl.gz", "rt", encoding="utf-8") as lines:
        for line in lines:
            row = json.loads(line)
            yield conversation(row["question"], row["answer"])


def conversation(question: str, answer: str, system: str | None = None) -> Row:
    before = [{"role": "system", "content": system}] if system else []
    asked = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return {"messages": before + asked}


def alpaca() -> Iterator[Row]:
    """Instructions and outputs; their preamble is the template's."""
    yield from json.loads((SHARED / "sft/alpaca_5000.json").read_text(encoding="utf-8"))


def with_system() -> Iterator[Row]:
    for row in gsm8k():
        yield {"messages": [{"role": "system", "content": SYSTEM}, *row["messages"]]}


def four_answers() -> Iterator[Row]:
    """Each question with its solution and three others that say the same."""
    for row in gsm8k():
        question, answer = (message["content"] for message in row["messages"])
        for told in (answer, *reworded(answer)):
            yield conversation(question, told)


def reworded(answer: str) -> tuple[str, str, str]:
    """A solution without the calculator's notes, one in numbered steps, one of its calculations alone."""
    body, _, result = answer.rpartition("\n#### ")
    lines = [re.sub(r"<<[^>]*>>", "", line) for line in body.split("\n")]
    plain = " ".join(lines) + f" So the answer is {result}."
    steps = "\n".join(f"Step {number}. {line}" for number, line in enumerate(lines, start=1))
    sums = [f"{found}" for line in body.split("\n") for found in re.findall(r"<<([^>]*)>>", line)] or lines
    return plain, f"{steps}\nTherefore the result is {result}.", "; ".join(sums) + f"\n#### {result}"


NUM_TOOLS = 15  # functions in the list: about 1,500 tokens


def tools() -> Iterator[Row]:
    """Requests that one call answers, each with the same list of functions.

    The pairs of a request and its call are those of Glaive's conversations whose function is in the list.
    They are fewer than are needed, so they come again with a number that tells them apart.
    """
    pairs, schemas = glaive_calls()
    listed = sorted(schemas, key=lambda name: -sum(called == name for _, called, _ in pairs))[:NUM_TOOLS]
    offered = [{"type": "function", "function": schemas[name]} for name in listed]
    chosen = [pair for pair in pairs if pair[1] in listed]
    for number in range(CONVERSATIONS):
        request, name, arguments = chosen[number % len(chosen)]
        told = f"Request {number + 1}. {request}"
        calls = [{"type": "function", "function": {"name": name, "arguments": arguments}}]
        reply = {"role": "assistant", "content": "", "tool_calls": calls}
        yield {"messages": [{"role": "user", "content": told}, reply], "tools": offered}


def glaive_calls() -> tuple[list[tuple[str, str, Row]], dict[str, Row]]:
    """((request, function, arguments) …, the first schema of each function) of Glaive's demonstration file."""
    pairs: list[tuple[str, str, Row]] = []
    schemas: dict[str, Row] = {}
    for row in json.loads((SHARED / "sft/glaive_toolcall_en_demo.json").read_text(encoding="utf-8")):
        for schema in json.loads(row["tools"] or "[]"):
            schemas.setdefault(schema["name"], schema)
        said = row["conversations"]
        for before, after in pairwise(said):
            if before["from"] == "human" and after["from"] == "function_call":
                call = json.loads(after["value"])
                arguments = call["arguments"]
                if isinstance(arguments, str):
                    arguments = json.loads(arguments)
                pairs.append((before["value"], call["name"], arguments))
    return pairs, schemas


WORKLOADS = {
    workload.name: workload
    for workload in (
        Workload("gsm8k", "GSM8K, no system prompt", 3, gsm8k, 5),
        Workload(
            "alpaca", "Alpaca in its template (shared preamble)", 3.5, alpaca, 6, {"template": "alpaca"}
        ),
        Workload("system", "GSM8K with a fixed system prompt of 330 tokens", 8, with_system, 3),
        Workload("tools", "Tool conversations that share one list of 1,500 tokens", 15, tools, 2),
        Workload("four", "Four answers per question", 4, four_answers, 5, {"keep_together": "prompt"}),
        Workload("lora", "LoRA, GSM8K", 3, gsm8k, 5, {"method": "lora", "lora": {"rank": 16}}),
    )
}

SIZES = {  # hidden, layers, heads, intermediate
    "19m": (384, 4, 6, 1024),
    "100m": (768, 12, 12, 2048),
}


def model_folder(size: str = "19m") -> Path:
    """A Llama with random weights, its tokenizer and TEMPLATE; made where it is not there yet. Needs torch."""
    folder = WORK / "peers" / f"llama-{size}"
    if (folder / "model.safetensors").is_file():
        return folder
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from imprint import load_tokenizer

    hidden, layers, heads, intermediate = SIZES[size]
    tokenizer: Any = load_tokenizer(str(TOKENIZER))
    tokenizer.chat_template = TEMPLATE
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        intermediate_size=intermediate,
        max_position_embeddings=MAX_LENGTH * 2,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    torch.manual_seed(0)
    tokenizer.save_pretrained(folder)
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder
