"""What a template writes that no row holds is told, once, with its length and where it stands."""

import pytest

from imprint.data.conversation import Message
from imprint.render.inserted import inserted_texts
from render.corpus import CONVERSATIONS, TOOLS, made_for, named, reply, talk, user


def told(name: str, *conversations) -> list[tuple[str, str]]:
    made = made_for(named(name))
    found = inserted_texts(conversations or CONVERSATIONS.values(), made.template, made.encoder)
    for item in found:
        assert item.tokens == len(made.encoder.encode([item.text])[0])
    return [(" ".join(item.text.split()), item.where) for item in found]


PLAIN = talk(user("How are the zebras of the north?"), reply("They are well, thank you very much."))
WITH_SYSTEM = talk(Message("system", "You are a walrus of few words."), *PLAIN.messages)


def test_a_default_system_prompt_is_told_where_it_stands():
    text = "You are Qwen, created by Alibaba Cloud. You are a helpful assistant."
    where = "to every prompt that has no system message"
    assert told("llamacpp/Qwen-Qwen2.5-7B-Instruct.jinja", PLAIN, WITH_SYSTEM) == [(text, where)]
    assert told("llamacpp/Qwen-Qwen2.5-7B-Instruct.jinja", WITH_SYSTEM) == []
    assert told("llamacpp/Qwen-Qwen2.5-7B-Instruct.jinja", PLAIN) == [(text, "to every prompt")]


def test_dates_are_told():
    date = "Cutting Knowledge Date: December 2023 Today Date: 26 Jul 2025"  # strftime_now of the corpus
    assert told("llamacpp/meta-llama-Llama-3.2-3B-Instruct.jinja", PLAIN, WITH_SYSTEM) == [
        (date, "to every prompt")
    ]


def test_instructions_for_tools_are_told_without_the_tools():
    with_tools = talk(*WITH_SYSTEM.messages, tools=TOOLS)
    found = told("llamacpp/Qwen-Qwen3-0.6B.jinja", WITH_SYSTEM, with_tools)
    assert {where for _, where in found} == {"to every prompt that has tools"}
    assert "You may call one or more functions" in found[0][0]
    assert not any("Adds two" in text or "walrus" in text for text, _ in found)


@pytest.mark.parametrize("name", ["axolotl/llama3.jinja", "trl/gemma.jinja", "axolotl/chatml.jinja"])
def test_a_template_that_only_marks_roles_adds_nothing(name):
    assert told(name, PLAIN) == []


def test_long_texts_are_cut_and_counted():
    made = made_for(named("axolotl/mistral_v7_tekken.jinja"))
    (item,) = inserted_texts([PLAIN], made.template, made.encoder)
    assert str(item).startswith(f"the template adds {item.tokens:,} tokens to every prompt: 'You are Mistral")
    assert len(str(item)) < 250 < len(item.text)
