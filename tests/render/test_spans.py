"""Whose each character and each token is: found in the rendering, or said to be missing."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imprint.data.conversation import Message
from imprint.errors import TemplateError
from imprint.render.spans import TEMPLATE, TOOLS, Span, attribute, token_offsets, token_spans
from imprint.render.template import PRESETS
from imprint.render.tokens import Encoder
from imprint.render.turns import ReplyText, reply_texts
from render.corpus import (
    CONVERSATIONS,
    TEMPLATES,
    label,
    made_for,
    make_tokenizer,
    named,
    reply,
    template_source,
    user,
)
from render.corpus import TOOLS as DEFINITIONS

FAMILIES = [
    "llamacpp/Qwen-Qwen3-0.6B.jinja",
    "llamacpp/meta-llama-Llama-3.1-8B-Instruct.jinja",
    "llamacpp/ByteDance-Seed-OSS.jinja",  # tools as Python, arguments as XML
    "trl/deepseekv3.jinja",
    "axolotl/mistral_v2v3.jinja",  # tools before the last question, results as JSON
    "axolotl/llama3_2_vision.jinja",
    "chujiezheng/qwen2.5-instruct.jinja",  # nothing between a header and its message
]


def chatml(*messages: Message) -> str:
    return "".join(f"<|im_start|>{m.role}\n{m.content}<|im_end|>\n" for m in messages)


def said(text: str, spans: list[Span]) -> list[tuple[str, int, str]]:
    """What is not the template's, as (role, message, characters)."""
    return [
        (s.role, s.message_index, text[s.start : s.end])
        for s in spans
        if s.role != TEMPLATE and not s.missing
    ]


def assert_covers(text: str, spans: list[Span]) -> None:
    at = 0
    for span in spans:
        assert span.start == at or span.missing, "a gap, or two owners"
        at = max(at, span.end)
    assert at == len(text)


def soundly_attributed(source: str) -> int:
    """Checks every rendering of a template; how many there were."""
    made = made_for(source)
    count = 0
    for conversation in CONVERSATIONS.values():
        for text in reply_texts(conversation, 0, made.template, made.encoder):
            if not isinstance(text, ReplyText):
                continue
            count += 1
            whole = text.prompt + text.completion
            spans = attribute(whole, conversation.messages[: text.turn + 1], conversation.tools)
            assert_covers(whole, spans)
            for index, message in enumerate(conversation.messages[: text.turn + 1]):
                mine = [
                    whole[s.start : s.end] for s in spans if s.message_index == index and s.part == "content"
                ]
                if message.content:
                    assert [part.strip().strip('"') for part in mine] == [message.content], "it is not found"
            trained = {s.role for s in spans if s.end > len(text.prompt) and not s.missing}
            assert trained <= {"assistant", TEMPLATE}
            found_tools = "".join(whole[s.start : s.end] for s in spans if s.role == TOOLS)
            assert "add_up" in found_tools or not conversation.tools
    return count


@pytest.mark.parametrize("name", FAMILIES)
def test_real_templates_are_attributed(name):
    assert soundly_attributed(named(name)) > 1


@pytest.mark.slow
@pytest.mark.parametrize("path", TEMPLATES, ids=label)
def test_every_template_is_attributed(path):
    try:
        soundly_attributed(template_source(path))
    except TemplateError:
        pytest.skip("the template is refused")


def test_a_short_message_is_not_found_in_the_template():
    for word in ("a", "s", "e", "4", "art", "im"):
        messages = [user(word), reply("I do not know what this should mean."), user(word)]
        text = chatml(*messages)
        spans = attribute(text, messages)
        starts = [text.index(f"\n{word}<") + 1, text.rindex(f"\n{word}<") + 1]
        assert [s.start for s in spans if s.role == "user"] == starts, word


def test_a_word_of_another_message_is_not_taken_for_a_short_one():
    messages = [Message("system", "Say yes or no, in this order."), user("Is it so, yes or no?"), reply("no")]
    text = chatml(*messages)
    assert said(text, attribute(text, messages)) == [(m.role, i, m.content) for i, m in enumerate(messages)]
    assert attribute(text, messages)[-2].start == text.rindex("no")


def test_the_same_text_said_again_has_its_own_place():
    messages = [user("Once more, please."), reply("Yes."), user("Once more, please."), reply("Yes.")]
    text = chatml(*messages)
    spans = [s for s in attribute(text, messages) if s.role != TEMPLATE]
    assert [s.message_index for s in spans] == [0, 1, 2, 3]


def test_what_is_not_there_is_missing():
    messages = [user("Hi"), reply("Hello!", reasoning="They greet me, so I greet them."), user("Bye")]
    text = chatml(*messages)
    spans = attribute(text, messages)
    assert_covers(text, spans)
    (missing,) = [s for s in spans if s.missing]
    assert (missing.message_index, missing.part, missing.start) == (1, "reasoning", text.index("Hi") + 2)
    assert [s.message_index for s in spans if s.role != TEMPLATE and not s.missing] == [0, 1, 2]
    assert [s.role for s in attribute(text, messages, DEFINITIONS) if s.missing] == [TOOLS, "assistant"]


def test_a_system_message_may_stand_far_behind():
    messages = [user("First question"), reply("First answer"), user("Second question")]
    text = "[INST] First question [/INST] First answer</s>[INST] Be brief.\n\nSecond question [/INST]"
    found = said(text, attribute(text, [Message("system", "Be brief."), *messages]))
    assert found == [
        ("user", 1, "First question"),
        ("assistant", 2, "First answer"),
        ("system", 0, "Be brief."),
        ("user", 3, "Second question"),
    ]


@pytest.mark.parametrize("style", [{}, {"indent": 4}, {"separators": (",", ":")}, {"ensure_ascii": False}])
def test_json_of_every_style_is_found(style):
    call = {"function": {"name": "look_up", "arguments": {"word": "zwölf\n漢", "many": [1, 2]}}}
    messages = [user("Look"), reply("", tool_calls=(call,)), Message("tool", 'said "zwölf"\n')]
    arguments = json.dumps(call["function"]["arguments"], **style)
    result = json.dumps(messages[2].content.strip(), **style)
    tools = json.dumps(list(DEFINITIONS), **style)
    text = f"TOOLS {tools} USER Look CALL look_up({arguments}) RESULT {result} END"
    assert said(text, attribute(text, messages, DEFINITIONS)) == [
        (TOOLS, -1, tools),
        ("user", 0, "Look"),
        ("assistant", 1, "look_up"),
        ("assistant", 1, arguments),
        ("tool", 2, result[1:-1]),
    ]


def test_the_name_in_a_call_is_no_definition():
    messages = [
        user("Add 1 and 2"),
        reply("", tool_calls=({"function": {"name": "add_up", "arguments": "{}"}},)),
    ]
    text = "USER Add 1 and 2 CALL add_up {} END"
    spans = attribute(text, messages, DEFINITIONS)
    assert [s.missing for s in spans if s.role == TOOLS] == [True]
    assert ("assistant", 1, "add_up") in said(text, spans)


def test_an_inline_thought_is_found_where_the_template_takes_it_apart():
    messages = [user("Hi there, you!"), reply("<think>\nThey greet me.\n</think>\n\nHello to you!")]
    text = "USER Hi there, you! THOUGHT They greet me. SAID Hello to you! END"
    assert [(s.part, text[s.start : s.end]) for s in attribute(text, messages) if s.role == "assistant"] == [
        ("reasoning", "They greet me."),
        ("content", "Hello to you!"),
    ]


def test_thousands_of_messages_are_all_found():
    messages = [
        user(f"What is {i} + {i}?")
        if i % 2
        else reply(f"It is {2 * i}, I think.", reasoning=f"dropped {i} thoughts")
        for i in range(3000)
    ]
    text = chatml(*messages)
    spans = attribute(text, messages)
    assert_covers(text, spans)
    assert [s.message_index for s in spans if s.part == "content"] == list(range(3000))
    assert sum(s.missing for s in spans) == 1500


@settings(max_examples=150, deadline=None)
@given(st.lists(st.text(st.characters(codec="utf-8", exclude_categories=["Cs"])), min_size=1, max_size=6))
def test_any_texts_leave_no_gap_and_never_overlap(texts):
    messages = [user(text) if i % 2 == 0 else reply(text) for i, text in enumerate(texts)]
    text = chatml(*messages)
    spans = attribute(text, messages)
    assert_covers(text, spans)
    for span in spans:
        if span.role != TEMPLATE and not span.missing:
            found = text[span.start : span.end]
            content = messages[span.message_index].content
            forms = [json.dumps(content.strip(), ensure_ascii=ascii)[1:-1] for ascii in (False, True)]
            assert found.strip() in (content.strip(), *forms)


# ---- tokens


@pytest.mark.parametrize("kind", ["bytes", "gpt_neox_20b", "mistral_v1_spm", "mistral_v3_spm"])
def test_offsets_say_which_characters_a_token_holds(kind):
    encoder = Encoder(make_tokenizer(kind))
    text = "Hello,  world\nzwölf 漢字 👋🏽  end"
    ids = encoder.encode([text])[0]
    offsets = token_offsets(encoder, text, ids)
    assert len(offsets) == len(ids)
    assert [start for start, _ in offsets] == sorted(start for start, _ in offsets)
    assert set().union(*(range(*span) for span in offsets)) >= {i for i, c in enumerate(text) if c != " "}
    assert token_offsets(encoder, text, ids[:4]) == offsets[:4]  # a reply that was cut


def test_offsets_of_ids_that_the_text_alone_would_not_have():
    encoder = Encoder(make_tokenizer("gpt_neox_20b"))
    ids = np.concatenate(encoder.encode(["Hel", "lo wor", "ld 👋"]))
    offsets = token_offsets(encoder, "Hello world 👋", ids)
    pieces = ["Hello world 👋"[slice(*span)] for span in dict.fromkeys(offsets)]
    assert len(offsets) == len(ids)
    assert "".join(pieces) == "Hello world 👋"
    assert token_offsets(encoder, "Other text", ids) is None


def test_a_token_of_two_is_the_message_s():
    user, missing = Span(4, 9, "user", 0, "content"), Span(9, 9, "user", 1, "content")
    spans = [Span(0, 4, TEMPLATE), user, missing, Span(9, 12, TEMPLATE)]
    offsets = [(0, 3), (3, 5), (5, 9), (8, 10), (9, 9), (9, 12), (12, 12)]
    owners = token_spans(spans, offsets)
    assert [spans[i].role for i in owners] == [
        TEMPLATE, "user", "user", "user", TEMPLATE, TEMPLATE, TEMPLATE,
    ]  # fmt: skip


def test_presets_are_attributed_too():
    for name in PRESETS:
        made = made_for("", template=name)
        conversation = CONVERSATIONS["several"]
        for text in reply_texts(conversation, 0, made.template, made.encoder):
            whole = text.prompt + text.completion
            spans = attribute(whole, conversation.messages[: text.turn + 1])
            assert not [s for s in spans if s.missing], name
