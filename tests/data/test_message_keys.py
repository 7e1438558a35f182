"""What a message says beside its role and text, under the names that tools give it; and misspelt keys."""

import pytest

from imprint.data.conversation import Message, Place, Record
from imprint.data.formats import converter
from imprint.errors import DataError
from imprint.recipe import DataSource

U, A = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}
USER, REPLY = Message("user", "q"), Message("assistant", "a")


def call(name, arguments):
    return {"type": "function", "function": {"name": name, "arguments": arguments}}


@pytest.mark.parametrize(
    ("flag", "weight"),
    [
        ({"training": True}, 1.0), ({"trainable": False}, 0.0), ({"train_on_turn": False}, 0.0),
        ({"masked": True}, 0.0), ({"mask": False}, 1.0), ({"masked": None}, None),
        ({"mask": True, "train": False, "weight": 0}, 0.0),
    ],
)  # fmt: skip
def test_the_flags_of_other_tools(convert, flag, weight):
    assert convert([{**U, "masked": True}, {**A, **flag}]).messages == (
        Message("user", "q", weight=0.0),
        Message("assistant", "a", weight=weight),
    )
    assert convert([{**U, "masked": False}, A]).messages == (USER, REPLY)  # which asks for nothing


@pytest.mark.parametrize("key", ["training", "trainable", "train_on_turn", "masked", "mask"])
@pytest.mark.parametrize("value", [1, 0, "true", [1, 0]])
def test_a_flag_is_true_or_false(convert, key, value):
    with pytest.raises(DataError, match=f"`{key}` is neither true nor false") as caught:
        convert([U, {**A, key: value}])
    assert caught.value.found.startswith("message 2: ")


def test_flags_that_contradict_each_other(convert):
    with pytest.raises(DataError, match="two weights for one message"):
        convert([U, {**A, "masked": True, "train": True}])
    with pytest.raises(DataError, match="a weight on a message that is not a reply"):
        convert([{**U, "train_on_turn": True}, A])


@pytest.mark.parametrize(
    ("key", "value", "like"),
    [
        ("wieght", 0, "weight"), ("Weight", 0, "weight"), ("Train", False, "train"), ("nmae", "x", "name"),
        ("tool_cals", [call("f", {})], "tool_calls"), ("reasoning_contnt", "hm", "reasoning_content"),
        ("loss-weight", 0, "loss_weight"), ("functioncall", {"name": "f"}, "function_call"),
    ],
)  # fmt: skip
def test_a_misspelt_key_is_refused(convert, key, value, like):
    with pytest.raises(DataError, match="a message has an unknown key") as caught:
        convert([U, {**A, key: value}])
    assert caught.value.found.startswith(f"message 2: {key}: ")
    assert caught.value.fix == f"rename {key} to {like}, or remove it"
    assert convert([U, {**A, key: None}]).messages == (USER, REPLY)
    convert([U, {**A, key: value, like: None}])  # the right one is there


def test_a_text_beside_calls_under_a_misspelt_key(convert):
    said = {"role": "assistant", "contnet": "I add.", "tool_calls": [call("f", {})]}
    with pytest.raises(DataError, match="a message has an unknown key") as caught:
        convert([U, said])
    assert caught.value.fix.startswith("rename contnet to content")


@pytest.mark.parametrize("key", ["thought", "thoughts", "chain_of_thought", "Reasoning_Text"])
def test_a_thought_under_another_name_is_refused(convert, key):
    with pytest.raises(DataError, match="a message has an unknown key") as caught:
        convert([U, {**A, key: "I think."}])
    assert caught.value.fix == f"rename {key} to reasoning_content, or remove it"
    for nothing in ("", None, True, False, 3, []):
        assert convert([U, {**A, key: nothing}]).messages == (USER, REPLY)


@pytest.mark.parametrize(
    ("key", "value"),
    [("attachments", ["a.pdf"]), ("images", [{"bytes": b"x", "path": None}]), ("files", ["x"])],
)
def test_what_is_attached_to_a_message_is_refused(convert, key, value):
    with pytest.raises(DataError, match="a message holds more than text") as caught:
        convert([{**U, key: value}, A])
    assert caught.value.found.startswith(f"message 1: {key}: ")
    assert convert([{**U, key: []}, A]).messages == (USER, REPLY)


def test_keys_that_may_belong_to_the_conversation_are_told():
    notes = []
    convert = converter(DataSource(path="x"), warn=lambda note, place: notes.append(note))
    convert(
        Record({"messages": [{**U, "context": "c", "date": "x"}, {**A, "explanation": "b"}]}, Place("x", 1))
    )
    assert notes == [
        "the key `context` of a message is not used",
        "the key `explanation` of a message is not used",
    ]


def test_what_other_keys_hold_is_let_be(convert):
    others = {"date": "x", "index": 1, "form": 3, "game": "chess", "rate": 5, "context": "c", "valid": True}
    assert convert([{**U, **others}, {**A, **others}]).messages == (USER, REPLY)


def test_two_roles_or_two_texts(convert):
    for both, reason in (
        ({**U, "from": "gpt"}, "two roles for one message"),
        ({**U, "value": "other"}, "two texts for one message"),
        ({**U, "value": [{"type": "text", "text": "other"}]}, "two texts for one message"),
    ):
        with pytest.raises(DataError, match=reason) as caught:
            convert([both, A])
        assert caught.value.fix == "keep one of them"
    for same in (
        {"from": "Human", "value": "q"},
        {"from": "Ann", "value": 0.7},
        {"from": None, "value": None},
    ):
        assert convert([{**U, **same}, A]).messages == (USER, REPLY)
    nulls = {"role": None, "content": None}  # as Arrow gives them, where the messages of a file mix
    assert convert(
        [{**nulls, "from": "human", "value": "q"}, {"from": None, "value": None, **A}]
    ).messages == (USER, REPLY)


@pytest.mark.parametrize("key", ["name", "tool_call_id"])
@pytest.mark.parametrize("value", [{"x": 1}, ["x"], True])
def test_a_name_that_is_no_text(convert, key, value):
    with pytest.raises(DataError, match=f"`{key}` is not a text"):
        convert([{**U, key: value}, A])
    assert convert([{**U, key: 7}, A]).messages == (Message("user", "q", **{key: "7"}), REPLY)
