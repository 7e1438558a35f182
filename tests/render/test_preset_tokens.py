"""What the presets make of tokenizers: every turn sound, the reply and one stop learned, BOS where it belongs."""

from functools import cache
from typing import Any

import pytest

from imprint.data.conversation import Conversation, Message
from imprint.errors import TemplateError
from imprint.render.resolve import Rendering, prepare_rendering
from imprint.render.template import PRESETS, find_template
from imprint.render.turns import LeftOut, Turn, render
from render.corpus import (
    BYTE_LEVEL,
    CALL,
    NOW,
    SENTENCEPIECE,
    TOOLS,
    assert_sound,
    make_tokenizer,
    reply,
    talk,
    user,
)

SPECIAL = {"bos_token": "<s>", "eos_token": "</s>"}
# what the model writes in front of a reply's own text, and what ends it (None: the tokenizer's eos)
FRAME = {
    "chatml": ("", "<|im_end|>"), "llama2": (" ", None), "llama3": ("", "<|eot_id|>"),
    "mistral": (" ", None), "gemma": ("", "<end_of_turn>"), "vicuna": (" ", None), "zephyr": ("", None),
    "alpaca": ("", None), "plain": (" ", None),
}  # fmt: skip
BOS = ("llama2", "llama3", "mistral", "gemma", "vicuna", "plain")
KINDS = ("bytes", *BYTE_LEVEL, *SENTENCEPIECE)
LOSSY = ("torchtitan_2k", "torchtune_tiny_bpe")  # have no token for some characters, or none for a space
ASK, AGAIN = user("Hi zebra"), user("What is 2 + 2, zebra?")
CONVERSATIONS: dict[str, Conversation] = {
    "one turn": talk(ASK, reply("Hello!")),
    "several": talk(ASK, reply("Hello! How are you?"), AGAIN, reply("It is\n 4."), user("zebra"), reply("4")),
    "system": talk(Message("system", "Be a walrus"), ASK, reply("Hello!"), AGAIN, reply("It is 4.")),
    "white space": talk(user(" \n zebra \n"), reply("  Hello\n"), user("zebra\t"), reply("\n\n4 ")),
    "opens with a reply": talk(Message("system", "Be a walrus"), reply("Welcome!"), ASK, reply("Hello.")),
    "adjacent": talk(ASK, reply("Hello!"), reply("How are you?"), AGAIN, reply("It is 4.")),
    "two users": talk(ASK, AGAIN, reply("It is 4.")),
    "code": talk(ASK, reply('```python\ndef f(x):\n    return {"a": [x]}\n```')),
}
RESULT = Message("tool", "3", name="add_up", tool_call_id="abcde1234")
BY_CHATML_ALONE = {
    "calls": talk(
        Message("system", "Be a walrus"), user("zebra: add"), reply("", tool_calls=(CALL,)), RESULT,
        reply("I check.", tool_calls=(CALL, CALL)), RESULT, RESULT, reply("It is 3."), tools=TOOLS,
    ),
    "thoughts": talk(
        ASK, reply("Hello!", reasoning="They greet me."), user("zebra: add"),
        reply("", tool_calls=(CALL,), reasoning="I must\n\nadd."), RESULT, reply("3", reasoning="So it is."),
    ),
    "some thoughts": talk(ASK, reply("Hello!"), AGAIN, reply("4", reasoning="2 + 2"), user("zebra"), reply("4")),
}  # fmt: skip


@cache
def tokenizer_for(kind: str, tokens: tuple[str, ...]) -> Any:
    """Presets of the same tokens share it: the first to come adds them, and all name the same stop."""
    return make_tokenizer(kind, **SPECIAL)


def ready(name: str, kind: str) -> Rendering:
    return prepare_rendering(tokenizer_for(kind, PRESETS[name]), template=name, now=NOW)


def outcomes(made: Rendering, conversation: Conversation) -> list[Turn | LeftOut]:
    found = render([conversation], made.template, made.encoder, max_length=10**6)
    return [item for item in found if isinstance(item, Turn | LeftOut)]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", PRESETS)
def test_every_turn_is_sound(name, kind):
    made = ready(name, kind)
    more = BY_CHATML_ALONE if name == "chatml" else {}
    for title, conversation in {**CONVERSATIONS, **more}.items():
        replies = [i for i, message in enumerate(conversation.messages) if message.role == "assistant"]
        found = outcomes(made, conversation)
        assert sorted(item.turn for item in found) == replies, title
        for item in found:
            if isinstance(item, Turn):
                assert_sound(item, conversation, made)
            elif title == "opens with a reply" and item.turn == 1:
                assert item.reason == "no user message before it: context only"
            else:
                assert kind in LOSSY, (title, item)
                assert "token" in item.reason, (title, item)


def assert_framed(made: Rendering, name: str) -> None:
    """The tokens to learn are the reply and its stop, and nothing else; BOS stands where the family has it."""
    before, own_stop = FRAME[name]
    stop = own_stop or SPECIAL["eos_token"]
    assert all("added to the tokenizer" in note for note in made.notes), "it has no stop of its own"
    for title in ("one turn", "several", "system"):
        conversation = CONVERSATIONS[title]
        for turn in outcomes(made, conversation):
            assert isinstance(turn, Turn), turn
            space = " " if name == "llama2" else ""  # Llama 2's own puts one before its stop
            text = made.encoder.decode(turn.completion)
            learned = before + conversation.messages[turn.turn].content + space + stop
            assert text == learned, "another text is learned"
            assert turn.completion[-1] == made.stop_ids[0], "the stop is not one token"
            bos = turn.prompt.tolist().count(made.encoder.tokenizer.bos_token_id)
            asked = sum(message.role == "user" for message in conversation.messages[: turn.turn])
            assert bos == (asked if name == "llama2" else int(name in BOS)), "BOS elsewhere"


@pytest.mark.parametrize("name", PRESETS)
def test_the_reply_and_its_stop_are_learned_and_nothing_else(name):
    made = ready(name, "bytes")
    assert_framed(made, name)
    assert made.encoder.tokenizer.eos_token == (FRAME[name][1] or SPECIAL["eos_token"])


# preset, what it has, what the twin has in its place, how it shows
TWINS = {
    "none": ("llama3", "<|eot_id|>", "<|eot_id|>", ""),
    "no stop": ("plain", " + (eos_token or '')", "", "no stop of its own"),
    "no stop token": ("llama3", "| trim + '<|eot_id|>'", "| trim", "no stop of its own"),
    "half a stop": ("gemma", "trim + '<end_of_turn>\\n' -}}\n{%- else", "trim + '<end_of_' -}}\n{%- else", "no stop"),
    "its header is learned": ("plain", "{{- 'Assistant:' -}}", "", "another text"),
    "a user's header is learned": (
        "vicuna", "content + (eos_token or '')", "content + ' USER: ' + (eos_token or '')", "another text"
    ),
    "two BOS": ("gemma", "bos_token or ''", "(bos_token or '') * 2", "BOS elsewhere"),
    "no BOS": ("mistral", "{{- bos_token or '' -}}", "", "BOS elsewhere"),
}  # fmt: skip


@pytest.mark.parametrize("twin", TWINS)
def test_a_planted_fault_is_caught(twin, tmp_path):
    name, right, wrong, shows = TWINS[twin]
    source, _ = find_template(name, None)
    assert source.count(right) == 1
    file = tmp_path / "twin.jinja"
    file.write_text(source.replace(right, wrong), encoding="utf-8")
    eos = FRAME[name][1] or SPECIAL["eos_token"]  # as a preset's stop becomes the tokenizer's
    tokenizer = make_tokenizer("bytes", "".join(PRESETS[name]), bos_token="<s>", eos_token=eos)
    tokenizer.chat_template = None
    made = prepare_rendering(tokenizer, template=str(file), now=NOW)
    if not shows:  # the way of looking finds no fault where there is none
        assert_framed(made, name)
        return
    with pytest.raises(AssertionError, match=shows):
        assert_framed(made, name)


@pytest.mark.parametrize("name", PRESETS)
def test_a_tokenizer_without_bos_gets_none_and_one_without_eos_only_what_brings_a_stop(name):
    made = prepare_rendering(make_tokenizer("bytes", eos_token="</s>"), template=name, now=NOW)
    assert made.template.special.get("bos_token") is None
    messages = made.template.inputs(CONVERSATIONS["system"].messages)
    assert made.template.render(messages) == made.template.with_options({"bos_token": ""}).render(messages)
    if PRESETS[name]:
        made = prepare_rendering(make_tokenizer("bytes"), template=name, now=NOW)
        assert made.stop_ids == (made.encoder.tokenizer.convert_tokens_to_ids(FRAME[name][1]),)
    else:
        with pytest.raises(TemplateError, match="nothing would ever stop"):
            prepare_rendering(make_tokenizer("bytes"), template=name, now=NOW)
