"""Every real data set of the workplace, read with no flag: what becomes of each row, counted independently."""

from __future__ import annotations

import csv
import gzip
import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from imprint.data.conversation import Conversation
from imprint.data.formats import converter
from imprint.data.gather import read
from imprint.data.replies import UNOPENED
from imprint.errors import DataError
from imprint.recipe import DataSource

DATA = Path(__file__).parents[3] / "shared" / "data"
pytestmark = pytest.mark.skipif(not DATA.is_dir(), reason="the real data sets are not on this machine")


def rows_of(name: str) -> list[Any]:
    """The rows of a file, by no code of ours; lines that are no JSON are left out."""
    data = (DATA / name).read_bytes()
    text = (gzip.decompress(data) if name.endswith(".gz") else data).decode("utf-8-sig")
    if name.endswith(".json"):
        return json.loads(text)
    if name.endswith(".csv"):
        return list(csv.DictReader(text.splitlines(keepends=True)))
    lines = [line for line in text.split("\n") if line.strip()]
    if name.endswith(".tsv"):
        return [line.split("\t") for line in lines]
    found = []
    for line in lines:
        try:
            found.append(json.loads(line))
        except ValueError:
            continue
    return found


def take(name: str) -> tuple[list[Conversation], Counter[str], Counter[str]]:
    """(conversations, reasons of refused rows, notes) of a file, read as a user gives it."""
    notes: Counter[str] = Counter()
    refused: Counter[str] = Counter()
    source = DataSource(path=name)
    convert = converter(source, warn=lambda note, place: notes.update([note]))
    found: list[Conversation] = []
    errors: list[DataError] = []
    for record in read(source, DATA):
        try:
            found += convert(record)
        except DataError as error:
            refused[error.what] += 1
            errors.append(error)
    assert all(error.where and error.fix for error in errors)
    return found, refused, notes


def turns(conversations: list[Conversation]) -> int:
    return sum(m.role == "assistant" and m.weight != 0 for one in conversations for m in one.messages)


PAIRS = {
    "sft/alpaca_5000.json": ("instruction", "input", "output"),
    "sft/alpaca_gpt4_en_demo.json": ("instruction", "input", "output"),
    "sft/alpaca_gpt4_zh_demo.json": ("instruction", "input", "output"),
    "sft/alpaca_libre_v2.jsonl": ("instruction", "input", "output"),
    "sft/alpaca_tiny_with_text.json": ("instruction", "input", "output"),
    "sft/code_alpaca_2k.json": ("instruction", "input", "output"),
    "sft/identity_template.json": ("instruction", "input", "output"),
    "sft/llms_from_scratch_instructions.json": ("instruction", "input", "output"),
    "sft/dolly_short_no_context.jsonl": ("instruction", "context", "response"),
    "sft/gsm8k_train.jsonl.gz": ("question", None, "answer"),
    "sft/t0_p3_templated.jsonl.gz": ("prompt", None, "completion"),
}


@pytest.mark.parametrize("name", PAIRS)
def test_pairs(name):
    asked, about, said = PAIRS[name]
    expected = []
    for row in rows_of(name):
        prompt = row[asked] + (f"\n\n{row[about]}" if about and row.get(about) else "")
        reply = re.sub(r"<\|endoftext\|>\Z", "", row[said])
        if reply.strip():
            expected.append((prompt, reply))
    found, refused, _ = take(name)
    assert [tuple(m.content for m in one.messages) for one in found] == expected
    assert refused["the reply is empty"] == len(rows_of(name)) - len(expected)
    assert set(refused) <= {"the reply is empty", "not valid JSON"}


def test_lines_that_are_no_json_are_refused():
    assert take("sft/alpaca_libre_v2.jsonl")[1] == {"the reply is empty": 51, "not valid JSON": 14}


CHATS = {  # conversations, replies that are trained, calls of tools
    "sft/fastchat_dummy_conversation.json": "conversations",
    "sft/glaive_toolcall_en_demo.json": "conversations",
    "sft/loss_weight_messages_demo.jsonl": "messages",
    "sft/reason_tool_use_demo_50.jsonl": "messages",
    "sft/tinker_example_conversations.jsonl": "messages",
    "sft/tulu3_sft_sample.jsonl": "messages",
}


def has_stray_end(conversation):
    said = [one.content for one in conversation.messages if one.role == "assistant"]
    return any("</think>" in text and "<think>" not in text for text in said)


@pytest.mark.parametrize("name", CHATS)
def test_chats(name):
    rows = rows_of(name)
    found, refused, notes = take(name)
    stray = sum(has_stray_end(one) for one in found)
    assert (len(found), refused, notes) == (len(rows), {}, {UNOPENED: stray} if stray else {})
    calls = replies = 0
    for row, one in zip(rows, found, strict=True):
        given = row[CHATS[name]]
        assert len(given) == len(one.messages)
        roles = [message.get("role", message.get("from")) for message in given]
        replies += sum(
            role in ("assistant", "gpt", "function_call") and message.get("loss_weight") != 0
            for role, message in zip(roles, given, strict=True)
        )
        calls += roles.count("function_call") + json.dumps(given).count('"type": "tool_call"')
        assert list(one.tools) == (json.loads(row["tools"]) if row.get("tools") else [])
        for before, after in zip(given, one.messages, strict=True):
            content = before.get("content", before.get("value"))
            if isinstance(content, str) and not after.tool_calls:
                assert after.content == content
    assert turns(found) == replies > 0
    assert sum(len(m.tool_calls) for one in found for m in one.messages) == calls


@pytest.mark.parametrize("name", ["sft/self_instruct_seed_tasks.jsonl", "sft/belle_zh_seed_tasks.jsonl",
                                  "sft/self_instruct_user_oriented_252.jsonl"])  # fmt: skip
def test_seeds(name):
    expected = [
        (row["instruction"] + (f"\n\n{one['input']}" if one["input"] else ""), one["output"])
        for row in rows_of(name)
        for one in row["instances"]
    ]
    found, refused, _ = take(name)
    assert not refused
    assert [tuple(m.content for m in one.messages) for one in found] == expected


@pytest.mark.parametrize("name", ["creak", "ecqa", "qasc", "strategyqa"])
def test_flan_s_chains_of_thought(name):
    name = f"sft/flan_cot_{name}.tsv"
    found, refused, _ = take(name)
    assert not refused
    expected = [
        (question.replace("\\n", "\n"), f"{rationale.rstrip()} The answer is {answer}.".replace("\\n", "\n"))
        for question, answer, rationale in rows_of(name)
    ]
    assert [tuple(m.content for m in one.messages) for one in found] == expected


def test_open_assistant_s_trees():
    def replies(node, before):
        before = (*before, node["text"])
        yield from [before] if node["role"] == "assistant" else []
        for reply in node["replies"]:
            yield from replies(reply, before)

    rows = rows_of("sft/oasst_en_100_trees.jsonl")
    expected = {context for row in rows for context in replies(row["prompt"], ())}
    found, refused, notes = take("sft/oasst_en_100_trees.jsonl")
    trained = [
        tuple(m.content for m in one.messages[: index + 1])
        for one in found
        for index, message in enumerate(one.messages)
        if message.role == "assistant" and message.weight != 0
    ]
    assert (len(trained), set(trained), refused, notes) == (len(expected), expected, {}, {})
    assert len({one.group for one in found}) == len(rows)


@pytest.mark.parametrize("kind", ["simple_python", "multiple", "parallel", "parallel_multiple"])
def test_bfcl(kind):
    name = f"tools/BFCL_v4_{kind}.jsonl"
    truth = {row["id"]: row["ground_truth"] for row in rows_of(f"tools/BFCL_v4_{kind}_answers.jsonl")}
    rows = rows_of(name)
    found, refused, _ = take(name)
    assert (len(found), refused) == (len(rows), {})
    for row, one in zip(rows, found, strict=True):
        assert one.messages[0].content == row["question"][0][0]["content"]
        assert list(one.tools) == row["function"]
        calls = [call["function"] for call in one.messages[-1].tool_calls]
        assert [call["name"] for call in calls] == [next(iter(answer)) for answer in truth[row["id"]]]
        for call, answer in zip(calls, truth[row["id"]], strict=True):
            (accepted,) = answer.values()
            schema = next(tool for tool in row["function"] if tool["name"] == call["name"])["parameters"]
            assert set(schema.get("required", ())) <= call["arguments"].keys() <= accepted.keys()
            for argument, value in call["arguments"].items():
                if "{" not in json.dumps(accepted[argument]):
                    assert value in accepted[argument]
                    assert value != ""


REFUSED = {
    "tools/BFCL_v4_irrelevance.jsonl": "no tool fits the question, and the row gives no reply",
    "tools/BFCL_v4_multi_turn_base.jsonl": "the task has several turns: its answer is a program, not a reply",
    **{
        f"tools/BFCL_v4_{kind}_answers.jsonl": "the row is a ground truth without its question"
        for kind in ("multi_turn_base", "simple_python", "multiple", "parallel", "parallel_multiple")
    },
    "sft/oasst_prompt_lottery_250.jsonl": "the row is a text alone: a prompt without a reply",
    "sft/persona_system_prompts.csv": "the row is a prompt without a reply",
    "sft/promptsource_templates.jsonl": "the columns are of no known format",
    "sft/flan_collection_info.csv": "the columns are of no known format",
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_holds_no_demonstrations_is_refused_with_its_reason(name):
    found, refused, _ = take(name)
    assert (len(found), refused) == (0, {REFUSED[name]: len(rows_of(name))})


def test_tau_bench():
    found, refused, notes = take("tools/tau_bench_airline_few_shot.jsonl")
    rows = rows_of("tools/tau_bench_airline_few_shot.jsonl")
    assert (len(found), refused) == (len(rows), {})
    expected = lost = 0
    for row, one in zip(rows, found, strict=True):
        shown = row["messages_display"]
        before = re.split(r"\nassistant: None(?:\n|\Z)", shown)[0]
        if "\ntool: " in before:  # a call was made beside the reply that stands before its result
            before = before.split("\ntool: ")[0].rpartition("\nassistant: ")[0]
        expected += before.count("\nassistant: ")
        lost += "\ntool: " in shown
        assert all(message.content in shown for message in one.messages)
        assert all(message.role in ("user", "assistant") for message in one.messages)
    assert turns(found) == expected == 36
    assert sum(notes.values()) == lost == 18


def test_toolalpaca():
    rows = rows_of("tools/toolalpaca_eval_simulated.json")
    expected = []
    for row in rows:
        names = set(row["Function_Description"]) - {"components"}
        for asked, actions in zip(row["Instructions"], row["Golden_Answers"], strict=True):
            if len(actions) != 1 or actions[0]["Action"] not in names:
                continue
            given = actions[0]["Action_Input"]
            if not re.search(r'\$\{|"\{', given):  # ${animeId from searchAnime}, "{start date}"
                expected.append((asked, actions[0]["Action"], json.loads(given)))
    found, refused, notes = take("tools/toolalpaca_eval_simulated.json")
    made = [
        (one.messages[0].content, call["name"], call["arguments"])
        for one in found
        for call in [one.messages[1].tool_calls[0]["function"]]
    ]
    extra = [one for one in expected if one not in made]
    assert [one for one in made if one not in expected] == []
    # one instruction is answered with a parameter that the API does not have
    assert [one[1:] for one in extra if "filter" not in one[2]] == []
    assert sum(notes.values()) + len(made) + 10 * refused.total() == sum(
        len(row["Instructions"]) for row in rows
    )


def test_every_set_has_its_test():
    tested = {*PAIRS, *CHATS, *REFUSED}
    tested |= {
        f"tools/BFCL_v4_{kind}.jsonl"
        for kind in ("simple_python", "multiple", "parallel", "parallel_multiple")
    }
    tested |= {f"sft/flan_cot_{name}.tsv" for name in ("creak", "ecqa", "qasc", "strategyqa")}
    tested |= {f"sft/{name}_seed_tasks.jsonl" for name in ("self_instruct", "belle_zh")}
    tested |= {"sft/self_instruct_user_oriented_252.jsonl", "sft/oasst_en_100_trees.jsonl"}
    tested |= {"tools/tau_bench_airline_few_shot.jsonl", "tools/toolalpaca_eval_simulated.json"}
    assert tested == {
        str(file.relative_to(DATA)) for part in ("sft", "tools") for file in (DATA / part).iterdir()
    }


@pytest.mark.parametrize("name", ["c4_demo.jsonl", "gutenberg_books.jsonl.gz", "state_union.jsonl.gz",
                                  "udhr_multilingual.jsonl", "tiny_shakespeare.txt", "wikipedia_demo.txt"])  # fmt: skip
def test_documents(name):
    text = f"text/{name}"
    rows = (
        [(DATA / text).read_text("utf-8")]
        if name.endswith(".txt")
        else [row["text"] for row in rows_of(text)]
    )
    found, refused, _ = take(text)
    assert [one.messages[0].content for one in found] == [row for row in rows if row.strip()]
    assert not any(one.is_chat for one in found)
    assert refused.total() == sum(not row.strip() for row in rows)
