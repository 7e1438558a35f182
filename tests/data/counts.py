"""What every file of real data holds, counted from its bytes with Python's own modules and nothing of imprint.

A counter takes the path of a file and gives `Held`: what must be trained, reply by reply with all that
stands before it, and which rows must be refused, and why. `FILES` says which counter a file has, and the
figures that it gave when the file was looked at by hand.
"""

from __future__ import annotations

import csv
import gzip
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

EMPTY, NO_JSON = "the reply is empty", "not valid JSON"
TEXT_ALONE = "the row is a text alone: a prompt without a reply"
NO_REPLY = "the row is a prompt without a reply"
UNKNOWN = "the columns are of no known format"
IRRELEVANT = "no tool fits the question, and the row gives no reply"
SEVERAL = "the task has several turns: its answer is a program, not a reply"
TRUTH = "the row is a ground truth without its question"
NOT_EXACT = "no golden call is given exactly"


class Reply(NamedTuple):
    """A reply to learn: the texts of all messages before it, what it says, thinks and calls."""

    before: tuple[str, ...]
    text: str
    thought: str = ""
    calls: tuple[str, ...] = ()  # "NAME ARGUMENTS", the arguments as sorted JSON


@dataclass
class Held:
    """What a file holds: the number of its rows and conversations, each trained reply, the refused rows by reason.

    `lines` are the lines of the refused rows, where the file has a row on each; `warnings` must be told.
    """

    rows: int = 0
    conversations: int = 0
    replies: Counter[Reply] = field(default_factory=Counter)
    refused: dict[str, int] = field(default_factory=dict)
    lines: dict[str, list[int]] = field(default_factory=dict)
    warnings: dict[str, int] = field(default_factory=dict)

    def refuse(self, reason: str, line: int = 0) -> None:
        self.refused[reason] = self.refused.get(reason, 0) + 1
        self.lines.setdefault(reason, []).append(line)

    def talk(self, *replies: Reply) -> None:
        self.conversations += 1
        self.replies.update(replies)


Count = Callable[[Path], Held]


def text_of(path: Path) -> str:
    """A file's text, its line ends untouched."""
    data = path.read_bytes()
    return str(gzip.decompress(data) if path.suffix == ".gz" else data, "utf-8")


def rows_of(path: Path) -> Iterator[tuple[int, Any]]:
    """(line, row) of JSON lines, (number, row) of an array; a row that is no JSON is None."""
    if path.suffix == ".json":
        yield from enumerate(json.loads(text_of(path)), 1)
        return
    for number, line in enumerate(text_of(path).split("\n"), 1):
        if line.strip():
            try:
                yield number, json.loads(line)
            except ValueError:
                yield number, None


def call_of(name: str, arguments: Any) -> str:
    return f"{name} {json.dumps(arguments, sort_keys=True, ensure_ascii=False)}"


# ---- counters


def pairs(prompts: tuple[str, ...], reply: str, stop: str = "") -> Count:
    """One reply a row: the texts of the prompt's columns that are not empty, a blank line between them.

    `stop` is what every reply ends with and is no part of it; a row whose reply holds nothing but white
    space is refused.
    """

    def count(path: Path) -> Held:
        held = Held()
        for line, row in rows_of(path):
            held.rows += 1
            if row is None:
                held.refuse(NO_JSON, line)
                continue
            said = row[reply].removesuffix(stop)
            if said.strip():
                asked = "\n\n".join(row[name] for name in prompts if row.get(name))
                held.talk(Reply((asked,), said))
            else:
                held.refuse(EMPTY, line)
        return held

    return count


def seeds(path: Path) -> Held:
    """Each instance with an output that is not empty is a conversation."""
    held = Held()
    for _, row in rows_of(path):
        held.rows += 1
        for instance in row["instances"]:
            if instance["output"].strip():
                asked = [row["instruction"], instance["input"]]
                held.talk(Reply(("\n\n".join(filter(None, asked)),), instance["output"]))
    return held


def flan(path: Path) -> Held:
    r"""Three cells a line, cut at tabs alone (quotes are text); a written \n is a line break.

    The reply is the rationale, then the answer in FLAN's words.
    """
    held = Held(warnings={"three columns without a header are read as question, answer, rationale (FLAN)": 1})
    for line in text_of(path).removesuffix("\n").split("\n"):
        held.rows += 1
        question, answer, rationale = (cell.replace("\\n", "\n") for cell in line.split("\t"))
        held.talk(Reply((question,), f"{rationale.rstrip()} The answer is {answer.strip()}."))
    return held


def chats(path: Path) -> Held:
    """Every message of an assistant is a reply; none of these files has two in a row, or weights below 1.

    Messages are {from, value} or {role, content}; the content a text, or parts {type, value} that are read
    by their type. A `function_call` is a reply that is a call and has no text.
    """
    held = Held()
    for _, row in rows_of(path):
        held.rows += 1
        before: list[str] = []
        replies = []
        for message in row.get("messages") or row["conversations"]:
            role = message.get("role") or message["from"]
            content = message["content"] if "content" in message else message["value"]
            parts = content if isinstance(content, list) else [{"type": "text", "value": content}]
            if role == "function_call":
                parts = [{"type": "tool_call", "value": content}]
            text = "".join(part["value"] for part in parts if part["type"] == "text")
            if role in ("assistant", "gpt", "function_call"):
                assert message.get("loss_weight", 1) == 1
                thought = "".join(part["value"] for part in parts if part["type"] == "reasoning")
                made = [json.loads(part["value"]) for part in parts if part["type"] == "tool_call"]
                calls = tuple(call_of(one["name"], one["arguments"]) for one in made)
                replies.append(Reply(tuple(before), text, thought, calls))
            before.append(text)
        held.talk(*replies)
    return held


def trees(path: Path) -> Held:
    """Each assistant's message that is not deleted and did not fail its review is trained once, behind its ancestors.

    There are as many conversations as such messages below which no other one stands.
    """
    held = Held()
    for _, row in rows_of(path):
        held.rows += 1
        waiting: list[tuple[dict[str, Any], tuple[str, ...]]] = [(row["prompt"], ())]
        while waiting:
            node, before = waiting.pop()
            if node.get("deleted") or node.get("review_result") is False:
                continue
            if node["role"] == "assistant":
                held.replies[Reply(before, node["text"])] += 1
                held.conversations += not any(map(_answered, node["replies"]))
            waiting += [(reply, (*before, node["text"])) for reply in node["replies"]]
    return held


def _answered(node: dict[str, Any]) -> bool:
    if node.get("deleted") or node.get("review_result") is False:
        return False
    return node["role"] == "assistant" or any(map(_answered, node["replies"]))


def bfcl(path: Path) -> Held:
    """One reply a row: the calls of the file of answers, of each argument the first accepted value.

    "" among the values says that the argument may be left out, and where it is the first, it is.
    """
    answers = {row["id"]: row["ground_truth"] for _, row in rows_of(path.with_stem(path.stem + "_answers"))}
    held = Held()
    for _, row in rows_of(path):
        held.rows += 1
        needed = {tool["name"]: tool["parameters"].get("required", []) for tool in row["function"]}
        calls = tuple(
            call_of(name, _first(accepted, needed[name]))
            for one in answers[row["id"]]
            for name, accepted in one.items()
        )
        (turn,) = row["question"]
        held.talk(Reply(tuple(message["content"] for message in turn), "", "", calls))
    return held


def _first(accepted: dict[str, list[Any]], needed: list[str]) -> dict[str, Any]:
    chosen = {}
    for name, values in accepted.items():
        first = next(value for value in values if value != "" or name not in needed)
        if first != "":
            chosen[name] = _inner(first)
    return chosen


def _inner(value: Any) -> Any:
    """Objects among the accepted values hold lists of accepted values themselves."""
    if isinstance(value, dict):
        return _first(value, [])
    return [_inner(one) for one in value] if isinstance(value, list) else value


def tau_bench(path: Path) -> Held:
    """The assistant's messages before its first tool call, which the text does not show.

    A message is a call where it is `None`, or where a tool answers it. White space around messages is
    the display's.
    """
    lost = "what follows the first tool call that the text does not show is left out"
    held = Held(warnings={lost: 0})
    for _, row in rows_of(path):
        held.rows += 1
        said: list[tuple[str, str]] = []
        for line in row["messages_display"].split("\n"):
            if mark := re.match("(user|assistant|tool): ", line):
                said.append((mark[1], line[mark.end() :]))
            else:
                said[-1] = (said[-1][0], f"{said[-1][1]}\n{line}")
        before: list[str] = []
        replies = []
        for (role, text), (next_role, _) in zip(said, [*said[1:], ("", "")], strict=True):
            if role == "assistant" and (text.strip() == "None" or next_role == "tool"):
                held.warnings[lost] += 1
                break
            if role == "assistant":
                replies.append(Reply(tuple(before), text.strip()))
            before.append(text.strip())
        held.talk(*replies)
    return held


def toolalpaca(path: Path) -> Held:
    """The instructions with one golden call that is whole: JSON, of an operation of the API, with its arguments.

    Others ask the user first, or hold a placeholder for what an earlier call returns (${ip from getDetails}).
    """
    left = "an instruction without exactly one golden call whose arguments are JSON is left out"
    held = Held(warnings={left: 0})
    for line, row in rows_of(path):
        held.rows += 1
        known = dict(_operations(json.loads(row["Documentation"])))
        exact = []
        for instruction, golden in zip(row["Instructions"], row["Golden_Answers"], strict=True):
            try:
                ((name, given),) = [(one["Action"], json.loads(one["Action_Input"])) for one in golden]
            except ValueError:
                continue
            if name in known and known[name] >= set(given) and "${" not in json.dumps(given):
                exact.append(Reply((instruction,), "", "", (call_of(name, given),)))
        for reply in exact:
            held.talk(reply)
        if exact:
            held.warnings[left] += len(row["Instructions"]) - len(exact)
        else:
            held.refuse(NOT_EXACT, line)
    return held


def _operations(document: dict[str, Any]) -> Iterator[tuple[str, set[str]]]:
    """Each operation of an OpenAPI document and the names of its arguments."""
    for verbs in document["paths"].values():
        for operation in verbs.values():
            names = {parameter["name"] for parameter in operation.get("parameters", [])}
            body = operation.get("requestBody", {}).get("content", {}).get("application/json", {})
            schema = body.get("schema", {})
            while "$ref" in schema:
                found = document
                for step in schema["$ref"].split("/")[1:]:
                    found = found[step]
                schema = found
            yield operation["operationId"], names | set(schema.get("properties", {}))


def none(reason: str) -> Count:
    """No row is a demonstration; a table's header is no row."""

    def count(path: Path) -> Held:
        if path.suffix != ".csv":
            rows = sum(1 for _ in rows_of(path))
            return Held(rows, refused={reason: rows})
        header, *cells = filter(None, csv.reader(text_of(path).splitlines(keepends=True)))
        held = Held(len(cells), refused={reason: len(cells)})
        if reason == UNKNOWN:
            held.warnings[
                f"the first row is taken for a header, of unknown names ({', '.join(header)}); "
                "if it is a row, say which column is which: fields.prompt=0 fields.response=1"
            ] = 1
        return held

    return count


# a prompt "Photo: <image>"; replies that close a thought which no tag opened
PICTURE = "a mark such as <image> stands in a prompt: imprint trains on text, the picture is not there"
UNOPENED = "a thought in a reply is closed and was never opened: </think> without <think>"
ALPACA = pairs(("instruction", "input"), "output")


class File(NamedTuple):
    """How a file is counted, and what was found: rows, conversations, replies."""

    count: Count
    rows: int
    conversations: int = 0
    replies: int = 0


def _rendered(path: Path) -> Held:
    """Alpaca beside the text that it was rendered to, which is not used."""
    held = ALPACA(path)
    held.warnings["the column `text` is not used: it is no part of alpaca"] = held.rows
    return held


def _stopped(path: Path) -> Held:
    """P3's rows as GPT-3 wanted them: each reply ends in a stop mark, which is no text."""
    held = pairs(("prompt",), "completion", "<|endoftext|>")(path)
    told = "<|endoftext|> at the end of a reply is taken off: it is a stop, not text"
    held.warnings[told] = held.conversations
    return held


def _odd(count: Count, *odd: tuple[str, int]) -> Count:
    """A file of which some rows, as a look at them shows, are odd and used all the same."""

    def counted(path: Path) -> Held:
        held = count(path)
        held.warnings.update(odd)
        return held

    return counted


FILES = {
    "sft/alpaca_5000.json": File(ALPACA, 5000, 4998, 4998),
    "sft/alpaca_gpt4_en_demo.json": File(ALPACA, 999, 999, 999),
    "sft/alpaca_gpt4_zh_demo.json": File(ALPACA, 1000, 1000, 1000),
    "sft/alpaca_libre_v2.jsonl": File(_odd(ALPACA, (PICTURE, 1)), 2294, 2229, 2229),  # 14 no JSON, 51 empty
    "sft/alpaca_tiny_with_text.json": File(_rendered, 100, 100, 100),
    "sft/belle_zh_seed_tasks.jsonl": File(seeds, 175, 175, 175),
    "sft/code_alpaca_2k.json": File(ALPACA, 2017, 2015, 2015),
    "sft/dolly_short_no_context.jsonl": File(pairs(("instruction",), "response"), 4347, 4347, 4347),
    "sft/fastchat_dummy_conversation.json": File(chats, 500, 500, 1000),
    "sft/flan_collection_info.csv": File(none(UNKNOWN), 1945),  # names of tasks
    "sft/flan_cot_creak.tsv": File(flan, 6915, 6915, 6915),
    "sft/flan_cot_ecqa.tsv": File(flan, 7112, 7112, 7112),
    "sft/flan_cot_qasc.tsv": File(flan, 1084, 1084, 1084),
    "sft/flan_cot_strategyqa.tsv": File(flan, 2061, 2061, 2061),
    "sft/glaive_toolcall_en_demo.json": File(chats, 300, 300, 957),  # 746 texts, 211 calls
    "sft/gsm8k_train.jsonl.gz": File(pairs(("question",), "answer"), 7473, 7473, 7473),
    "sft/identity_template.json": File(ALPACA, 91, 91, 91),
    "sft/llms_from_scratch_instructions.json": File(ALPACA, 1100, 1100, 1100),
    "sft/loss_weight_messages_demo.jsonl": File(chats, 500, 500, 500),
    "sft/oasst_en_100_trees.jsonl": File(trees, 100, 546, 687),
    "sft/oasst_prompt_lottery_250.jsonl": File(none(TEXT_ALONE), 250),
    "sft/persona_system_prompts.csv": File(none(NO_REPLY), 218),
    "sft/promptsource_templates.jsonl": File(none(UNKNOWN), 198),  # YAML of templates
    "sft/reason_tool_use_demo_50.jsonl": File(_odd(chats, (UNOPENED, 2)), 50, 50, 112),
    "sft/self_instruct_seed_tasks.jsonl": File(seeds, 175, 175, 175),
    "sft/self_instruct_user_oriented_252.jsonl": File(seeds, 252, 252, 252),
    "sft/t0_p3_templated.jsonl.gz": File(_stopped, 7942, 7542, 7542),  # 400 are a stop mark alone
    "sft/tinker_example_conversations.jsonl": File(chats, 128, 128, 128),
    "sft/tulu3_sft_sample.jsonl": File(chats, 100, 100, 134),
    "tools/BFCL_v4_irrelevance.jsonl": File(none(IRRELEVANT), 240),
    "tools/BFCL_v4_multi_turn_base.jsonl": File(none(SEVERAL), 200),
    "tools/BFCL_v4_multi_turn_base_answers.jsonl": File(none(TRUTH), 200),
    "tools/BFCL_v4_multiple.jsonl": File(bfcl, 200, 200, 200),
    "tools/BFCL_v4_multiple_answers.jsonl": File(none(TRUTH), 200),
    "tools/BFCL_v4_parallel.jsonl": File(bfcl, 200, 200, 200),
    "tools/BFCL_v4_parallel_answers.jsonl": File(none(TRUTH), 200),
    "tools/BFCL_v4_parallel_multiple.jsonl": File(bfcl, 200, 200, 200),
    "tools/BFCL_v4_parallel_multiple_answers.jsonl": File(none(TRUTH), 200),
    "tools/BFCL_v4_simple_python.jsonl": File(bfcl, 400, 400, 400),
    "tools/BFCL_v4_simple_python_answers.jsonl": File(none(TRUTH), 400),
    "tools/tau_bench_airline_few_shot.jsonl": File(tau_bench, 19, 19, 36),
    "tools/toolalpaca_eval_simulated.json": File(toolalpaca, 10, 49, 49),
}
