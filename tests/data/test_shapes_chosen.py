"""Preferences as several tools write them: the prompt is whole, and the chosen side is what is trained."""

import pytest

from imprint.data.conversation import Message, Place, Record
from imprint.data.formats import converter
from imprint.errors import DataError
from imprint.recipe import DataSource

U, A, B = (
    {"role": role, "content": said} for role, said in (("user", "q"), ("assistant", "a"), ("assistant", "b"))
)
USER, REPLY = Message("user", "q"), Message("assistant", "a")
NOTE = "of a preference, the chosen side alone is trained"


@pytest.fixture
def read():
    """The conversation of a row, and what was said about what is not used."""

    def read(row):
        notes = []
        convert = converter(DataSource(path="rows.jsonl"), warn=lambda note, place: notes.append(note))
        (made,) = convert(Record(row, Place("rows.jsonl", 7)))
        return made, notes

    return read


@pytest.mark.parametrize("row", [
    {"instruction": "q", "input": "", "chosen": "a", "rejected": "b"},
    {"prompt": [U], "chosen": [U, A], "rejected": [U, B]},
    {"prompt": "q", "question": "q", "chosen": "a", "rejected": "b"},
    {"prompt": "q", "chosen": A, "rejected": B},
    {"messages": [U], "chosen": A, "rejected": B},
    {"conversations": [{"from": "human", "value": "q"}], "chosen": {"from": "gpt", "value": "a"},
     "rejected": {"from": "gpt", "value": "b"}},
    {"input": {"messages": [U], "tools": [], "parallel_tool_calls": True}, "preferred_output": [A],
     "non_preferred_output": [B]},
])  # fmt: skip
def test_the_chosen_reply_to_its_prompt(read, row):
    made, notes = read(row)
    assert (made.messages, made.tools, notes) == ((USER, REPLY), (), [NOTE])


def test_the_prompt_is_whole(read):
    row = {
        "instruction": "q",
        "input": "x",
        "chosen": "a",
        "rejected": "b",
        "history": [["r", "s"]],
        "system": "t",
    }
    said = [(message.role, message.content) for message in read(row)[0].messages]
    assert said == [
        ("system", "t"),
        ("user", "r"),
        ("assistant", "s"),
        ("user", "q\n\nx"),
        ("assistant", "a"),
    ]
    tool = {"type": "function", "function": {"name": "f"}}
    assert read({"input": {"messages": [U], "tools": [tool]}, "preferred_output": [A]})[0].tools == (tool,)


@pytest.mark.parametrize(("row", "reason"), [
    ({"prompt": "other", "chosen": [U, A]}, "the prompt is not that of the chosen conversation"),
    ({"prompt": [{"role": "user", "content": "other"}], "chosen": [U, A]}, "the prompt is not that of the chosen"),
    ({"prompt": "other", "chosen": "\n\nHuman: q\n\nAssistant: a"}, "the prompt is not that of the chosen"),
    ({"instruction": "q", "input": "x", "chosen": [U, A]}, "the prompt is not that of the chosen"),
    ({"prompt": "p", "question": "q", "chosen": "a"}, "the row has several prompts"),
    ({"input": {"text": "q"}, "preferred_output": [A]}, "`input` cannot be read"),
    ({"chosen": A, "rejected": B}, "no reply follows a prompt"),
])  # fmt: skip
def test_a_prompt_that_would_be_lost_is_refused(read, row, reason):
    with pytest.raises(DataError, match=reason) as caught:
        read(row)
    assert caught.value.fix
