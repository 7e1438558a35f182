"""What `imprint data check` finds: counts against counts made here, signs against texts that have them or not."""

from __future__ import annotations

import json
import re
import tracemalloc
from pathlib import Path

import pytest

from imprint.data import signs as s
from imprint.data.check import middle, survey
from imprint.data.check_json import to_json
from imprint.data.signs import signs
from imprint.recipe import DataSource

SHARED = Path(__file__).parents[3] / "shared" / "data"


def rows(path, *given):
    path.write_text(
        "".join(
            (row if isinstance(row, str) else json.dumps(row, ensure_ascii=False)) + "\n" for row in given
        )
    )
    return DataSource(path=str(path))


def pair(prompt, response, **more):
    return {"prompt": prompt, "response": response, **more}


def test_sizes_roles_and_evidence_of_each_format(tmp_path):
    talk = [
        {"role": "system", "content": "Be."},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Yo"},
    ]
    more = [*talk, {"role": "user", "content": "Go"}, {"role": "assistant", "content": "No", "weight": 0}]
    source = rows(
        tmp_path / "a.jsonl",
        {"messages": talk, "topic": "t"},
        {"messages": more},
        {"instruction": "A", "input": "", "output": "B", "text": "A B"},
        {"text": "Once upon a time."},
        {"input_ids": [1, 2, 3], "labels": [-100, 2, 3]},
    )
    found = survey([source])
    shapes = {shape.format: shape for shape in found.shapes}
    assert {name: shape.rows for name, shape in shapes.items()} == {
        "messages": 2, "alpaca": 1, "text": 1, "tokens_labels": 1
    }  # fmt: skip
    chat = shapes["messages"]
    assert (chat.conversations, chat.replies, chat.untrained) == (2, 3, 1)
    assert middle(chat.sizes) == (3, 3, 5)
    assert chat.characters == 2 * len("Be.HiYo") + len("GoNo")
    assert dict(chat.roles) == {"system": 2, "user": 3, "assistant": 3}
    assert chat.evidence.columns == ("messages",)
    assert chat.unused.words() == "`topic` in 1 of 2 rows"
    assert shapes["alpaca"].unused.words() == "`text`"
    assert (shapes["text"].documents, shapes["tokens_labels"].tokenised) == (1, 1)
    assert [str(one.source)[-7:] for one in found.examples] == ["jsonl:1", "jsonl:3"]  # of two formats
    assert found.refused == 0
    json.dumps(to_json(found))


def test_cells_that_stand_for_nothing_are_told(tmp_path):
    (tmp_path / "a.csv").write_text("prompt,response\na,NULL\nb,c\nd,NA\n")
    found = survey([DataSource(path=str(tmp_path / "a.csv"))])
    assert {sign: [place.line for place in tally.places] for sign, tally in found.signs.items()} == {
        s.NOTHING: [2, 4]
    }


def test_a_table_that_mixes_shapes_is_told_row_by_row(tmp_path):
    (tmp_path / "a.csv").write_text("prompt,response,text\na,b,\n,,a story\nc,,\n")
    found = survey([DataSource(path=str(tmp_path / "a.csv"))])
    shapes = [(shape.format, shape.rows, shape.documents, shape.evidence.columns) for shape in found.shapes]
    assert shapes == [("prompt_response", 1, 0, ("prompt", "response")), ("text", 1, 1, ("text",))]
    assert found.refused == 1


def test_refused_rows_by_reason_with_the_first_places_and_the_mend(tmp_path):
    source = rows(
        tmp_path / "a.jsonl", pair("a", "b"), pair("a", ""), "{broken", pair("b", " "), pair("c", "d")
    )
    found = survey([source])
    assert found.ledger.records.total == 5
    assert found.refused == 3
    assert {
        reason: (bad.all.tally.count, [place.line for place in bad.all.tally.places])
        for reason, bad in found.bad.items()
    } == {
        "the reply is empty": (2, [2, 4]),
        "not valid JSON": (1, [3]),
    }
    assert found.bad["the reply is empty"].all.first.fix == "write the response or remove the row"
    assert [bad["count"] for bad in to_json(found)["bad_rows"]] == [2, 1]


def test_columns_without_end_are_counted_to_a_bound(tmp_path):
    source = rows(tmp_path / "a.jsonl", *(pair("a", "b", **{f"column {n}": n}) for n in range(1200)))
    (shape,) = survey([source]).shapes
    assert len(shape.unused.columns) == 1000
    assert shape.unused.words().endswith("; and 980 others at least")


def test_repetitions_are_exact(tmp_path):
    first = rows(tmp_path / "a.jsonl", pair("a", "b"), pair("a", "c"), pair("d", "e"), pair("a", "b"))
    second = rows(tmp_path / "b.jsonl", pair("d", "e "), pair("d", "e"), {"messages": [
        {"role": "user", "content": "d"}, {"role": "assistant", "content": "e"}]})  # fmt: skip
    found = survey([first, second])
    named = [(f"{a.file[-7]}{a.line}", f"{b.file[-7]}{b.line}") for a, b in found.copies.pairs]
    assert found.copies.number == 3
    assert named == [("a4", "a1"), ("b2", "a3"), ("b3", "a3")]
    assert found.answers.number == 2  # a, c and d, e-with-a-space; copies are not counted twice
    assert [str(a)[-9:] for a, _ in found.answers.pairs] == ["a.jsonl:2", "b.jsonl:1"]


def test_branches_of_a_tree_are_no_repetitions():
    file = SHARED / "sft" / "oasst_en_100_trees.jsonl"
    if not file.is_file():
        pytest.skip(f"{file} is not on this machine")
    found = survey([DataSource(path=str(file))])
    assert (found.copies.number, found.answers.number) == (0, 0)


def test_what_would_be_left_out_is_counted(tmp_path):
    two = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b"},
        {"role": "assistant", "content": "c"},
    ]
    source = rows(tmp_path / "a.jsonl", {"messages": two}, pair("a", "b", weight=0), pair("c", "d"))
    assert {k: t.count for k, t in survey([source]).ledger.conversations.left.items()} == {
        "no reply has a weight above 0": 1
    }
    left = survey([source], consecutive_replies="leave_out").ledger.conversations.left
    assert {k: t.count for k, t in left.items()} == {
        "no reply has a weight above 0": 1,
        "two replies in a row": 1,
    }


def test_settings_of_the_source_are_used(tmp_path):
    source = rows(tmp_path / "a.jsonl", {"q": "a", "gold": "b", "why": "c"})
    assert survey([source]).refused == 1
    found = survey([source.model_copy(update={"fields": {"prompt": "q", "response": "gold"}})])
    assert found.refused == 0
    assert found.shapes[0].format == "prompt_response"
    assert found.shapes[0].evidence.reason == "the recipe's fields"


def test_replies_cut_at_one_length(tmp_path):
    many = [pair(f"p{n}", ("word " * 400)[: 500 if n % 4 == 0 else 100 + n]) for n in range(80)]
    assert survey([rows(tmp_path / "a.jsonl", *many)]).signs[s.ALL_CUT].count == 20
    natural = [pair(f"p{n}", ("word " * 400)[: 100 + 3 * n]) for n in range(80)]
    assert s.ALL_CUT not in survey([rows(tmp_path / "b.jsonl", *natural)]).signs


FOUND = [
    (s.PLACEHOLDER, "Hello! I am {{name}}, made by {{author}}."),
    (s.PLACEHOLDER, "Dear {{ customer_name }}, thank you."),
    (s.CONTROL, "and then<|im_end|>"),
    (s.CONTROL, "[INST] say it [/INST]"),
    (s.CONTROL, "The answer is 4.</s>"),
    (s.MOJIBAKE, "un cafÃ© Ã\xa0 Paris"),
    (s.MOJIBAKE, "it cost Â£15"),
    (s.MOJIBAKE, "he said â€œnoâ€\x9d"),
    (s.MOJIBAKE, "ï»¿first"),
    (s.REPLACED, "caf\ufffd"),
    (s.ENTITIES, "Fish &amp; chips"),
    (s.NO_INPUT, "Write a poem.\n\n<noinput>"),
    (s.NO_INPUT, "Write a poem.\n\nnan"),
    (s.NO_INPUT, "Write a poem.\n\nNULL"),
    (s.NOTHING, "NULL"),
    (s.NOTHING, " null\n"),
    (s.NOTHING, "NA"),
    (s.NOTHING, "#N/A"),
    (s.NO_TEXT, "nan"),
    (s.NO_TEXT, " [object Object]"),
]
NOT_FOUND = [
    "In Jinja, {{ name }} is printed and {% if x %} is a test.",
    "Use `{{name}}` for the name.",
    "```html\n<p>{{ title }}</p>\n```",
    r"the set \frac{{a}}{{b}} and x_{{index}}",
    "{{{raw}}} in Mustache",
    "Write &lt;b&gt; for <b> in HTML.",
    "The entity &amp; is an ampersand.",
    "São Paulo, Ângela, CORAÇÃO, Às vezes; für, naïve, façade",
    "a <b>bold</b> word, x < y, 2 <| 3, a || b",
    "None",
    "undefined",
    "NULL is a value.",
    "Write it so:\n\nNULL",
    "Nan is my grandmother.",
    "The tag </s> ends what <s> began.",
]


@pytest.mark.parametrize(("sign", "text"), FOUND)
def test_signs_that_are_there(sign, text):
    assert list(signs(text)) == [sign]


@pytest.mark.parametrize("text", NOT_FOUND)
def test_texts_that_only_look_so(text):
    assert list(signs(text, reply=True)) == []


@pytest.mark.parametrize(
    ("text", "open_"),
    [
        ("Here:\n```python\nprint(1)", True),
        ("Here:\n```python\nprint(1)\n```", False),
        ("````md\n```\nx\n```\n````", False),
        ("````md\n```\nx\n```", True),
        ("```one line``` only", False),
    ],
)
def test_a_reply_that_ends_inside_code(text, open_):
    assert (s.OPEN_CODE in signs(text, reply=True)) is open_
    assert s.OPEN_CODE not in signs(text)


def test_control_tokens_of_the_tokenizer_take_the_place_of_the_well_known():
    own = re.compile(r"<stop>")
    assert list(signs("a<stop>", control=own)) == [s.CONTROL]
    assert list(signs("a<|im_end|>", control=own)) == []
    assert list(signs("a<stop>")) == []


def test_every_sign_says_what_to_do():
    names = {
        value
        for name, value in vars(s).items()
        if name.isupper() and not name.startswith("_") and isinstance(value, str)
    }
    assert names == set(s.HELP)


@pytest.mark.slow
def test_signs_are_rare_in_real_data():
    """In sets that people use, what is found is what a person would call wrong too: by name, and counted by hand."""
    if not (SHARED / "sft").is_dir():
        pytest.skip(f"{SHARED} is not on this machine")
    expected = {
        "alpaca_5000.json": {s.NO_INPUT: 8},
        "identity_template.json": {s.PLACEHOLDER: 85},
        "llms_from_scratch_instructions.json": {},
        "gsm8k_train.jsonl.gz": {},
        "fastchat_dummy_conversation.json": {},
        "tulu3_sft_sample.jsonl": {},
        "t0_p3_templated.jsonl.gz": {s.ENTITIES: 98, s.MOJIBAKE: 56},
    }
    for name, signs_of in expected.items():
        found = survey([DataSource(path=str(SHARED / "sft" / name))])
        assert {sign: tally.count for sign, tally in found.signs.items()} == signs_of, name


@pytest.mark.slow
def test_memory_grows_by_a_few_bytes_a_row(tmp_path):
    def peak(count):
        source = rows(
            tmp_path / f"{count}.jsonl", *(pair(f"question {n}", f"answer {n} " * 20) for n in range(count))
        )
        tracemalloc.start()
        assert survey([source]).ledger.records.total == count
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return most

    small, large = peak(5_000), peak(40_000)
    assert large - small < 35_000 * 150  # a row's text alone is over 200 bytes


def test_each_remedy_of_one_reason_is_told(tmp_path):
    broken = ["// a", "{'a': 1}", "// b", '{"a": 1},', '{"a" 1}', '{"a": nan}', '{"a": None}', '{"a": True}']
    found = survey([rows(tmp_path / "a.jsonl", pair("a", "b"), *broken)])
    refused = found.bad["not valid JSON"]
    told = {fix: [place.line for place in bad.tally.places] for fix, bad in refused.by_fix.items()}
    assert len(told) == 5
    assert told["remove the comment: JSON has none"] == [2, 4]
    assert told["remove the comma behind the row"] == [5]
    assert (refused.all.tally.count, refused.num_untold) == (8, 2)
    (told,) = to_json(found)["bad_rows"]
    assert [one["count"] for one in told["by_fix"]] == [2, 1, 1, 1, 1]
    assert told["fix"] == told["by_fix"][0]["fix"]


def test_replies_that_open_are_counted(tmp_path):
    def talk(*given):
        return {"messages": [{"role": role, "content": "x", **more} for role, more in given]}

    user, reply, system = ("user", {}), ("assistant", {}), ("system", {})
    given = [
        talk(reply, user, reply),
        talk(system, reply, user, reply),
        talk(("assistant", {"weight": 0}), user, reply),
        talk(user, reply),
    ]
    (shape,) = survey([rows(tmp_path / "a.jsonl", *given)]).shapes
    assert (shape.replies, shape.opening, shape.untrained) == (7, 2, 1)
