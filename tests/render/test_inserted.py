"""What a template writes that no row holds is told, once, with its length and where it stands."""

from dataclasses import replace

import pytest

from imprint.data.conversation import Message
from imprint.render import limits
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


def test_a_text_for_two_reasons_together_is_told_with_both():
    with_tools, both = talk(*PLAIN.messages, tools=TOOLS), talk(*WITH_SYSTEM.messages, tools=TOOLS)
    source = "{% if tools and messages[0].role != 'system' %}Use the tools on offer.{% endif %}" + CHATML
    kinds = (PLAIN, WITH_SYSTEM, with_tools, both)
    assert told_by(source.replace("AFTER", ""), *kinds) == [
        ("Use the tools on offer.", "to every prompt that has tools and no system message")
    ]


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


# ---- made-up templates: nothing that is added is missed, and nothing else is told ----------------

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}AFTER<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SYSTEM = "<|im_start|>system\nTEXT<|im_end|>\n"
TURNS = talk(user("hi"), reply("a"), user("b"), reply("c"))
OF_TOOLS = talk(user("hi"), reply("a"), tools=TOOLS)


def told_by(source: str, *conversations) -> list[tuple[str, str]]:
    made = made_for(source)
    return [(item.text, item.where) for item in inserted_texts(conversations, made.template, made.encoder)]


def chatml(system: str = "", after: str = "") -> str:
    return (SYSTEM.replace("TEXT", system) if system else "") + CHATML.replace("AFTER", after)


@pytest.mark.parametrize(
    "text",
    [
        "你是一个有帮助的助手，请认真回答用户的问题。",
        "Be helpful.",
        "2026-11-20",
        "Помогай людям.",
        "今天是2026年",
    ],
)
def test_short_texts_and_those_of_other_scripts_are_told(text):
    assert told_by(chatml(text), PLAIN, TURNS) == [(text, "to every prompt")]


def test_the_date_of_the_run_is_told():
    assert told_by(chatml("{{ strftime_now('%Y-%m-%d') }}"), PLAIN) == [("2025-07-26", "to every prompt")]


@pytest.mark.parametrize("after", ["\nReply short please, in one line.", " Reply short please, in one line."])
def test_a_text_behind_every_message_is_told_without_the_message(after):
    """The users' words stand in the template's: they are not taken for one another."""
    found = told_by(chatml(after="{% if m.role == 'user' %}" + after + "{% endif %}"), TURNS, PLAIN)
    assert found == [(after.strip(), "to every prompt")]


def test_a_text_from_the_second_turn_on_is_told():
    after = "{% if m.role == 'user' and loop.index > 1 %} Mind what was said.{% endif %}"
    assert told_by(chatml(after=after), TURNS) == [
        ("Mind what was said.", "to prompts behind a conversation's first")
    ]
    assert told_by(chatml(after=after), PLAIN) == []  # the data has no second turn


@pytest.mark.parametrize(
    "shown",
    ["{{ tools }}", "{{ tools|tojson }}", "{{ tools|tojson(indent=4) }}", "{% for t in tools %}{{ t }}\n{% endfor %}"],
)  # fmt: skip
def test_the_tools_are_the_rows_however_they_are_printed(shown):
    source = "{% if tools %}" + SYSTEM.replace("TEXT", shown) + "{% endif %}"
    assert told_by(source + chatml(), OF_TOOLS, TURNS) == []
    told = told_by(
        source.replace("\n" + shown, "\nYour tools are these: " + shown) + chatml(), OF_TOOLS, TURNS
    )
    assert told == [("Your tools are these:", "to every prompt that has tools")]


def test_calls_and_their_results_are_the_rows():
    source = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}{% for c in m.tool_calls or [] %}"
        "<tool_call>\n{{ c }}\n</tool_call>{% endfor %}<|im_end|>\n{% endfor %}"
    )
    assert told_by(source, CONVERSATIONS["tools"]) == []


@pytest.mark.parametrize(("user_mark", "reply_mark"), [("GPT4 Correct User: ", "GPT4 Correct Assistant: "),
                                                       ("### Instruction:\n", "### Response:\n"),
                                                       ("用户问题：", "助手回答：")])  # fmt: skip
def test_marks_of_several_words_are_no_texts(user_mark, reply_mark):
    source = (
        "{% for m in messages %}{{ ('USER' if m.role == 'user' else 'REPLY') + m.content + '</s>' }}{% endfor %}"
        "{{ 'REPLY' if add_generation_prompt }}"
    )
    source = source.replace("USER", user_mark).replace("REPLY", reply_mark).replace("\n", "\\n")
    assert told_by(source, TURNS, PLAIN) == []
    assert told_by("Below is a task. Do it.\n\n" + source, TURNS, PLAIN)[0][0].startswith(
        "Below is a task. Do it."
    )


def test_a_template_out_of_time_is_asked_once(monkeypatch):
    monkeypatch.setattr(limits, "SECONDS", 0.05)
    made = made_for(chatml("You are a slow one."))
    asked = []
    loop = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
    slow = replace(made.template, source="{{ asked.append(1) }}" + loop, options={"asked": Asked(asked)})
    assert inserted_texts(CONVERSATIONS.values(), slow, made.encoder) == []
    assert len(asked) == 1


class Asked:
    def __init__(self, into: list):
        self.append = into.append
