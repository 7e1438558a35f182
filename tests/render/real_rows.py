"""Real rows of shared/data as conversations: through imprint's own readers where it reads the format.

The others (BFCL, tau-bench, OASST trees) are written anew as rows of messages here.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from imprint.data.conversation import Conversation
from imprint.data.formats import converter, merge_replies
from imprint.data.readers import read
from imprint.errors import DataError
from imprint.recipe import DataSource
from render.cells import read as read_row
from render.corpus import DATA
from render.dialogues import Row

Rows = Iterator[Conversation]


def lines(name: str) -> list[Any]:
    path = DATA / name
    if not path.is_file():
        pytest.skip(f"shared/data/{name} is not here")
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def file_rows(name: str) -> Rows:
    """The rows of a file that imprint reads; those that it refuses are left away."""
    path = DATA / name
    if not path.is_file():
        pytest.skip(f"shared/data/{name} is not here")
    source = DataSource(path=str(path))
    convert = converter(source)
    for record in read(source):
        try:
            found = convert(record)
        except DataError:
            continue
        for conversation in found:
            made = merge_replies(conversation)
            if isinstance(made, Conversation):
                yield made


def bfcl(kind: str) -> Rows:
    """Berkeley function calling: a question, the functions on offer, and the first of the right calls."""
    answers = {row["id"]: row["ground_truth"] for row in lines(f"tools/BFCL_v4_{kind}_answers.jsonl")}
    for row in lines(f"tools/BFCL_v4_{kind}.jsonl"):
        calls = [
            {"function": {"name": name, "arguments": _first_choice(arguments)}}
            for answer in answers[row["id"]]
            for name, arguments in answer.items()
        ]
        reply = {"role": "assistant", "content": None, "tool_calls": calls}
        yield read_row({"messages": [*row["question"][0], reply], "tools": row["function"]})


def _first_choice(arguments: Row) -> Row:
    """BFCL lists the values that are right for each argument; "" stands for one that may be left away."""
    return {name: values[0] for name, values in arguments.items() if values[0] != ""}


def bfcl_irrelevance() -> Rows:
    """Questions that no function on offer answers."""
    for row in lines("tools/BFCL_v4_irrelevance.jsonl"):
        reply = {"role": "assistant", "content": "None of the functions on offer can answer this."}
        yield read_row({"messages": [*row["question"][0], reply], "tools": row["function"]})


def bfcl_multi_turn() -> Rows:
    """Several turns of calls, one after the other, each with its result; the functions are not on offer."""
    answers = {row["id"]: row["ground_truth"] for row in lines("tools/BFCL_v4_multi_turn_base_answers.jsonl")}
    for row in lines("tools/BFCL_v4_multi_turn_base.jsonl"):
        messages: list[Row] = []
        for asked, calls in zip(row["question"], answers[row["id"]], strict=True):
            messages += asked
            for number, call in zip(count(len(messages)), calls, strict=False):
                made = {"id": f"call{number:05d}", "type": "function", "function": _parsed(call)}
                messages.append({"role": "assistant", "content": "", "tool_calls": [made]})
                name = made["function"]["name"]
                messages.append({"role": "tool", "content": "ok", "tool_call_id": made["id"], "name": name})
            messages.append({"role": "assistant", "content": "Done."})
        yield read_row({"messages": messages})


def _parsed(call: str) -> Row:
    """`mv(source='a', destination='b')` as a function's name and its arguments."""
    node = ast.parse(call, mode="eval").body
    assert isinstance(node, ast.Call)
    arguments = {f"argument_{i}": ast.literal_eval(value) for i, value in enumerate(node.args)}
    arguments |= {str(one.arg): ast.literal_eval(one.value) for one in node.keywords}
    return {"name": ast.unparse(node.func), "arguments": arguments}


def tau_bench() -> Rows:
    """An airline's customers and its agent. The calls themselves are not in the file: any stand for them."""
    for row in lines("tools/tau_bench_airline_few_shot.jsonl"):
        parts = re.split(r"(?:^|\n)(user|assistant|tool): ", row["messages_display"])[1:]
        messages: list[Row] = []
        for role, text in zip(parts[::2], parts[1::2], strict=True):
            if role == "tool":
                call = {"name": "look_up", "arguments": {"step": len(messages)}}
                messages[-1]["tool_calls"] = [{"function": call}]
            messages.append({"role": role, "content": "" if (role, text) == ("assistant", "None") else text})
        while messages and messages[-1]["role"] != "assistant":
            messages.pop()
        yield read_row({"messages": messages})


def oasst() -> Rows:
    """Every path of a tree from its prompt to its last reply."""
    for row in lines("sft/oasst_en_100_trees.jsonl"):
        for path in _paths(row["prompt"]):
            while path and path[-1]["role"] != "assistant":
                path.pop()
            if path:
                yield read_row({"messages": path})


def _paths(node: Row) -> Iterator[list[Row]]:
    here = {"role": node["role"], "content": node["text"]}
    if not node.get("replies"):
        yield [here]
    for reply in node.get("replies", ()):
        for rest in _paths(reply):
            yield [here, *rest]


SOURCES: dict[str, Callable[[], Rows]] = {
    "glaive": lambda: file_rows("sft/glaive_toolcall_en_demo.json"),
    "reason_tool_use": lambda: file_rows("sft/reason_tool_use_demo_50.jsonl"),
    "bfcl_simple": lambda: bfcl("simple_python"),
    "bfcl_multiple": lambda: bfcl("multiple"),
    "bfcl_parallel": lambda: bfcl("parallel"),
    "bfcl_parallel_multiple": lambda: bfcl("parallel_multiple"),
    "bfcl_irrelevance": bfcl_irrelevance,
    "bfcl_multi_turn": bfcl_multi_turn,
    "tau_bench": tau_bench,
    "loss_weight": lambda: file_rows("sft/loss_weight_messages_demo.jsonl"),
    "tinker": lambda: file_rows("sft/tinker_example_conversations.jsonl"),
    "tulu3": lambda: file_rows("sft/tulu3_sft_sample.jsonl"),
    "oasst": oasst,
}
WITH_TOOLS = tuple(SOURCES)[:9]


def path_of(name: str) -> Path:
    path = DATA / "templates" / f"{name}.jinja"
    if not path.is_file():
        pytest.skip(f"shared/data/templates/{name}.jinja is not here")
    return path
