import pytest

from imprint.data.conversation import Conversation, Message, Place
from imprint.data.replies import PICTURE, UNCLOSED, UNOPENED, check, has_adjacent_replies, merge_replies
from imprint.errors import DataError

USER = Message("user", "q")
CALL = {"type": "function", "function": {"name": "f", "arguments": {}}}


def reply(content, **rest):
    return Message("assistant", content, **rest)


def talk(*messages):
    return Conversation(messages, Place("a", 1), "id", ({"name": "f"},), 2.0)


@pytest.mark.parametrize(
    ("given", "merged"),
    [
        ([USER, reply("a"), reply("b")], [USER, reply("a\n\nb")]),
        (
            [reply("x"), reply("y"), USER, reply("a"), reply("b"), reply("c")],
            [reply("x\n\ny"), USER, reply("a\n\nb\n\nc")],
        ),
        ([USER, reply("a", weight=1.0), reply("b")], [USER, reply("a\n\nb", weight=1.0)]),
        ([USER, reply("a", reasoning="r"), reply("b")], [USER, reply("a\n\nb", reasoning="r")]),
        ([USER, reply("a"), reply("", tool_calls=(CALL,))], [USER, reply("a", tool_calls=(CALL,))]),
        (
            [USER, reply("", tool_calls=(CALL,)), reply("", tool_calls=(CALL,))],
            [USER, reply("", tool_calls=(CALL, CALL))],
        ),
    ],
)
def test_adjacent_replies_are_joined(given, merged):
    assert has_adjacent_replies(talk(*given))
    assert merge_replies(talk(*given)) == talk(*merged)


def test_without_adjacent_replies_nothing_changes():
    conversation = talk(USER, reply("a"), USER, USER, reply("b"))
    assert merge_replies(conversation) is conversation
    assert not has_adjacent_replies(conversation)


@pytest.mark.parametrize(
    ("first", "second", "reason"),
    [
        (reply("a", weight=0.0), reply("b"), "adjacent replies have different weights"),
        (reply("", tool_calls=(CALL,)), reply("b"), "a reply follows a tool call that has no result"),
        (reply("a"), reply("b", reasoning="r"), "the second of two adjacent replies has its own reasoning"),
        (reply("a", name="x"), reply("b", name="y"), "adjacent replies have different names"),
    ],
)
def test_what_cannot_be_joined_has_a_reason(first, second, reason):
    assert merge_replies(talk(USER, first, second)) == reason


@pytest.mark.parametrize(
    "content", ["<think>\n\n</think>\n\n", "<think></think>", " <reasoning> </reasoning>", "\n"]
)
def test_a_reply_that_is_only_an_empty_thought_is_empty(content):
    for reasoning in (None, "r"):
        with pytest.raises(DataError, match="the reply is empty"):
            check((USER, reply(content, reasoning=reasoning)), Place("a", 1))
    check((USER, reply(content, tool_calls=(CALL,))), Place("a", 1))
    check((USER, reply(f"{content}a")), Place("a", 1))


@pytest.mark.parametrize(
    ("content", "odd"),
    [
        ("<b></b>", []),
        ("<think>r</think>a", []),
        ("a <think>r</think>", []),  # as some models do between their calls
        ("write <think> at the head", []),
        ("<think>", [UNCLOSED]),
        ("\n<thinking>r</think>", [UNCLOSED]),
        ("</think>", [UNOPENED]),
        ("r</thought>a", [UNOPENED]),
        ("r</think>a<think>b</think>", [UNOPENED]),
    ],
)
def test_what_is_no_empty_thought_is_a_reply_though_its_tags_may_be_odd(content, odd):
    assert check((USER, reply(content)), Place("a", 1)) == odd
    assert check((Message("user", content), reply("a")), Place("a", 1)) == []


@pytest.mark.parametrize(
    ("content", "odd"),
    [
        ("<image>\nwhat?", [PICTURE]),
        ("what?\n<image> ", [PICTURE]),
        ("Of <image> and <image>, which?", [PICTURE]),
        ("<video>\nwhat?", [PICTURE]),
        ("what is <audio>", [PICTURE]),
        ("<image href='a.png'/>", []),
        ("<image>a</image>", []),
        ("In HTML:\n<video>\n<source src='a'>\n</video>", []),
        ("why does <video> not play?", []),
        ("what?", []),
    ],
)
def test_a_mark_of_a_picture_in_a_prompt_is_odd(content, odd):
    assert check((Message("user", content), reply("a")), Place("a", 1)) == odd
