"""Each preset is its family's template, and has a place or a refusal for everything."""

import re
from collections.abc import Callable
from typing import Any

import pytest

from imprint.data.conversation import Message
from imprint.errors import TemplateError
from imprint.recipe import Recipe
from imprint.render.template import PRESETS, Refused, Template, find_template
from render.corpus import (
    CALL,
    NOW,
    TOOLS,
    named,
    needs_templates,
    reply,
    user,
)

SPECIAL = {"bos_token": "<s>", "eos_token": "</s>"}
WITHOUT_TOOLS = [name for name in PRESETS if name != "chatml"]


def system(text: str) -> Message:
    return Message("system", text)


def result(text: str) -> Message:
    return Message("tool", text, name="add_up", tool_call_id="abcde1234")


def preset(name: str, special: dict[str, str] = SPECIAL) -> Template:
    return Template(*find_template(name, None), special, NOW)


def theirs(path: str) -> Template:
    return Template(named(path + ".jinja"), path, SPECIAL, NOW)


def shown(template: Template, messages: Any, tools: Any = (), ask: bool = False) -> str:
    return template.render(template.inputs(messages), tools, ask)


SINGLE = (user("What is 2 + 2?"), reply("It is 4."))
SEVERAL = (
    user("Hi"),
    reply("Hello!\nHow are you?"),
    user("2 + 2\n\nnow"),
    reply("4"),
    user("Bye"),
    reply("Bye 👋🏽"),
)
SYSTEM = (system("Be brief.\nBe kind."), user("Hi"), reply("Hello!"), user("2 + 2?"), reply("4"))
SPACES = (user(" Hi\n"), reply("\n Hello! \n"), user("\t2 + 2? "), reply(" 4"))
PLAIN = {"single": SINGLE, "several": SEVERAL, "system": SYSTEM, "spaces": SPACES}


def beginnings(messages: Any) -> list[tuple[Any, bool]]:
    """What is rendered in a conversation's course: each prompt, and each beginning that ends with a reply."""
    return [
        (messages[: i + 1], message.role == "user")
        for i, message in enumerate(messages)
        if message.role != "system"
    ]


# ----------------------------------------------------------------------------- the family's own templates

SAME = {
    "chatml": ["axolotl/chatml"],
    "llama3": ["trl/llama3", "axolotl/llama3", "chujiezheng/llama-3-instruct"],
    "mistral": ["axolotl/mistral_v1", "mistral_common/v1_spm"],
    "gemma": ["trl/gemma3", "axolotl/gemma3"],
}


@needs_templates
@pytest.mark.parametrize(("name", "path"), [(name, path) for name, paths in SAME.items() for path in paths])
@pytest.mark.parametrize("kind", PLAIN)
def test_a_preset_is_its_familys_template(name, path, kind):
    for messages, ask in beginnings(PLAIN[kind]):
        assert shown(preset(name), messages, (), ask) == shown(theirs(path), messages, (), ask)


def _joined_by_spaces(text: str) -> str:
    text = text.replace("\nASSISTANT:", " ASSISTANT:").replace("</s>\nUSER:", "</s>USER:")
    return text.replace("\n\nUSER:", " USER:", 1).removesuffix("\n")


def _with_spaces(text: str) -> str:
    """What a tokenizer of theirs does by itself: a space before [INST] and behind [/INST]."""
    return re.sub(r"\[/INST\](?=.)", "[/INST] ", text, flags=re.DOTALL).replace("[INST]", " [INST]")


def _spaced(text: str) -> str:
    return text.replace("[INST]", " [INST]").replace("[/INST]", " [/INST]")


def _padded(text: str) -> str:
    return text.replace("[INST]", "[INST] ").replace("[/INST]", " [/INST]")


def _without_date(text: str) -> str:
    text = text.replace("Cutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\n", "")
    return text.replace("<|start_header_id|>system<|end_header_id|>\n\n<|eot_id|>", "")


ALL, TRIMMED, NO_SYSTEM = set(PLAIN), set(PLAIN) - {"spaces"}, set(PLAIN) - {"system"}
SYSTEM_LAST = "the system message stands in the last user message, so each prompt re-renders the ones before"
DATES = "a system block with dates, that no user wrote"
REFUSES = "a system message is refused; Gemma 3 puts it before the first user message"
# preset, theirs, the conversations that are alike, once their text is changed so; what they have otherwise
DIFFERENT: list[tuple[str, str, set[str], Callable[[str], str], str]] = [
    ("chatml", "chujiezheng/chatml", TRIMMED, lambda t: t.removeprefix("<s>"), "BOS, which ChatML has not; trims"),
    ("llama3", "trl/llama3_1", ALL, _without_date, DATES),
    ("llama3", "llamacpp/meta-llama-Llama-3.1-8B-Instruct", ALL, _without_date, DATES),
    ("gemma", "trl/gemma", NO_SYSTEM, str, REFUSES),
    ("gemma", "axolotl/gemma", NO_SYSTEM, str, REFUSES),
    ("gemma", "llamacpp/google-gemma-2-2b-it", NO_SYSTEM, str, REFUSES),
    ("gemma", "chujiezheng/gemma-it", ALL, lambda t: "<s>" + t, "BOS is left to the tokenizer, which adds none"),
    ("zephyr", "chujiezheng/zephyr", TRIMMED, str, "trims, as Zephyr's own does not"),
    ("vicuna", "chujiezheng/vicuna", TRIMMED, _joined_by_spaces,
     "new lines, as FastChat's manual shows; the code by which Vicuna was trained writes spaces"),
    ("mistral", "mistral_common/v1", ALL, _with_spaces, "its tokenizer puts the spaces in"),
    ("mistral", "mistral_common/v3_spm", NO_SYSTEM, _spaced, SYSTEM_LAST),
    ("mistral", "axolotl/mistral_v2v3", NO_SYSTEM - {"spaces"}, _spaced, SYSTEM_LAST + "; trims"),
    ("mistral", "mistral_common/v7_spm", NO_SYSTEM, _spaced, "system messages have control tokens of their own"),
    ("mistral", "axolotl/mistral_v3_tekken", NO_SYSTEM, lambda t: _with_spaces(_padded(t)), SYSTEM_LAST),
    ("mistral", "llamacpp/mistralai-Mistral-Nemo-Instruct-2407", NO_SYSTEM, lambda t: _with_spaces(_padded(t)),
     SYSTEM_LAST + "; Tekken has no spaces"),
    ("mistral", "chujiezheng/mistral-instruct", TRIMMED - {"system"}, lambda t: t.replace("[INST]", " [INST]"),
     "the system message stands before [INST]; trims"),
]  # fmt: skip


@needs_templates
@pytest.mark.parametrize(("name", "path", "alike", "as_ours", "why"), DIFFERENT)
def test_where_a_preset_differs_from_a_relative_it_is_meant(name, path, alike, as_ours, why):
    ours, other = preset(name), theirs(path)
    found = {
        kind
        for kind, messages in PLAIN.items()
        if all(
            _shown_as(other, as_ours, *asked) == shown(ours, asked[0], (), asked[1])
            for asked in beginnings(messages)
        )
    }
    assert found == alike, why


def _shown_as(template: Template, as_ours: Callable[[str], str], messages: Any, ask: bool) -> str | None:
    try:
        return as_ours(shown(template, messages, (), ask))
    except Refused:
        return None


@needs_templates
def test_mistrals_later_templates_move_the_system_message_and_ours_does_not():
    for path in ("mistral_common/v3_spm", "axolotl/mistral_v2v3"):
        assert shown(theirs(path), SYSTEM[:4], (), True).endswith(
            "[INST] Be brief.\nBe kind.\n\n2 + 2?[/INST]"
        )
    first, second = (shown(preset("mistral"), SYSTEM[:i], (), True) for i in (2, 4))
    assert second.startswith(first)


# ----------------------------------------------------------------------------- chatml: tools and thoughts

BESIDE = {**CALL, "function": {"name": "add_up", "arguments": {"a": 3, "b": ["é", {"c": None}]}}}
WITH_TOOLS = {
    "call": (user("Add 1, 2"), reply("", tool_calls=(CALL,)), result("3"), reply("It is 3.")),
    "text and calls": (
        system("Be brief."), user("Add"), reply("I add.", tool_calls=(CALL, BESIDE)), result("3"), result("4"),
        reply("3 and 4"), user("Thanks"), reply("Welcome"),
    ),
}  # fmt: skip
QWEN = ["llamacpp/Qwen-Qwen2.5-7B-Instruct", "llamacpp/Qwen-Qwen3-0.6B", "trl/qwen2_5", "axolotl/qwen3"]
# what a template adds to a prompt: axolotl's opens the thought there
OPENED = {"axolotl/qwen3": "<think>\n\n"}


@needs_templates
@pytest.mark.parametrize("path", QWEN)
@pytest.mark.parametrize("kind", WITH_TOOLS)
def test_chatml_calls_tools_as_qwen_does_and_offers_them_in_its_own_words(path, kind):
    """Qwen 3 gives a reply without reasoning an empty thought; ours is as it is without tools."""
    for messages, ask in beginnings(WITH_TOOLS[kind]):
        ours, other = (shown(t, messages, TOOLS, ask) for t in (preset("chatml"), theirs(path)))
        other = other.removesuffix(OPENED.get(path, " ")).replace("<think>\n\n</think>\n\n", "")
        (our_offer, ours), (offer, other) = ours.split("<|im_end|>\n", 1), other.split("<|im_end|>\n", 1)
        assert ours == other
        listed = re.compile(r"<tools>\n(.*)\n</tools>", re.DOTALL)
        assert listed.findall(our_offer) == listed.findall(offer)
        assert our_offer.startswith("<|im_start|>system\n" + ("Be brief.\n\n# " if kind != "call" else "# "))
        assert "<tool_call>\n{" in our_offer


THOUGHTS = {
    "replies": (
        user("Hi"), reply("Hello!", reasoning="A greeting."), user("2 + 2?"),
        reply("4", reasoning="\nTwo and two\n\nare four.\n"),
    ),
    "calls": (
        user("Hi"), reply("Hello!", reasoning="A greeting."), user("Add 1, 2"),
        reply("", tool_calls=(CALL,), reasoning="I must add."), result("3"),
        reply("I check.", tool_calls=(CALL,), reasoning="Sure?"), result("3"), reply("3", reasoning="Yes."),
    ),
}  # fmt: skip


@needs_templates
@pytest.mark.parametrize("path", ["llamacpp/Qwen-Qwen3-0.6B", "trl/qwen3", "axolotl/qwen3"])
@pytest.mark.parametrize("kind", THOUGHTS)
def test_chatml_thinks_as_qwen3_does(path, kind):
    for messages, ask in beginnings(THOUGHTS[kind]):
        other = shown(theirs(path), messages, (), ask).removesuffix(OPENED.get(path, " "))
        assert shown(preset("chatml"), messages, (), ask) == other


def test_a_thought_leaves_the_context_in_whichever_way_it_comes_back():
    template, ask = preset("chatml"), user("2 + 2?")
    answer = "The tag </think> ends it."
    ways = (
        reply(answer),
        reply(answer, reasoning="They ask."),
        reply("\n\n" + answer, reasoning="They ask."),
        reply("<think>\nThey ask.\n</think>\n\n" + answer),
    )
    assert len({shown(template, (user("How?"), way, ask), (), True) for way in ways}) == 1
    # in the turn at hand nothing is taken from the text, nor is a thought put into it that it has not
    for text in (ways[-1].content, answer, "\n\n4"):
        assert shown(template, (ask, reply(text))).endswith(f"assistant\n{text}<|im_end|>\n")


def test_a_tool_result_in_a_users_name_is_no_question():
    called = (user("Add"), reply("", tool_calls=(CALL,), reasoning="I add."))
    by_user = (*called, user("<tool_response>\n3\n</tool_response>"), reply("3"))
    assert shown(preset("chatml"), by_user) == shown(preset("chatml"), (*called, result("3"), reply("3")))
    assert "I add." not in shown(preset("chatml"), (*called, user("3"), reply("3")))


def test_arguments_may_be_an_object_or_text_and_content_null():
    as_text = {"role": "assistant", "content": None, "tool_calls": [CALL]}
    bare = {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"name": "add_up", "arguments": {"a": 1, "b": 2}}],
    }
    ask = {"role": "user", "content": "Add"}
    expected = (
        "<|im_start|>user\nAdd<|im_end|>\n<|im_start|>assistant\n"
        '<tool_call>\n{"name": "add_up", "arguments": {"a": 1, "b": 2}}\n</tool_call><|im_end|>\n'
    )
    assert preset("chatml").render([ask, as_text]) == preset("chatml").render([ask, bare]) == expected


# ----------------------------------------------------------------------------- a place, or a refusal


@pytest.mark.parametrize("name", WITHOUT_TOOLS)
def test_a_preset_refuses_what_it_has_no_place_for(name):
    template = preset(name)
    for messages, tools, what in [
        (SINGLE, TOOLS, "tools"),
        ((user("a"), reply("", tool_calls=(CALL,))), (), "tool calls"),
        ((user("a"), result("3")), (), "the role tool"),
        ((user("a"), reply("b", reasoning="c")), (), "reasoning"),
    ]:
        with pytest.raises(Refused, match=f"the {name} template has no place for {what}$"):
            shown(template, messages, tools)
    # an earlier reply's thought is no part of a context, here as in every template that thinks
    thought = (user("a"), reply("b", reasoning="c"), user("d"))
    assert shown(template, thought, (), True) == shown(template, (user("a"), reply("b"), user("d")), (), True)


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_knows_no_other_role(name):
    with pytest.raises(Refused, match=f"the {name} template has no place for the role developer"):
        shown(preset(name), (Message("developer", "a"), user("b")))


@pytest.mark.parametrize("name", PRESETS)
def test_no_system_message_is_swallowed(name):
    """Every place that one may have: each is shown, before what it stands before, or refused."""
    template = preset(name)
    places = {
        "two": (system("S1"), system("S2"), user("U1")),
        "before an opening reply": (system("S1"), reply("A0"), user("U1")),
        "later": (user("U1"), reply("A1"), system("S1"), user("U2")),
        "last": (user("U1"), system("S1")),
        "alone": (system("S1"),),
    }
    refused = set()
    for place, messages in places.items():
        try:
            text = shown(template, messages, (), True)
        except Refused:
            refused.add(place)
            continue
        at = [text.index(message.content) for message in messages if message.role != "assistant"]
        assert at == sorted(at), "another order"
    for place in refused:
        with pytest.raises(Refused, match="a system message"):
            shown(template, places[place], (), True)
    in_user_message = {"last", "alone"} if name in ("llama2", "mistral", "gemma", "alpaca") else set()
    assert refused == ({"later", "last"} if name in ("vicuna", "plain") else in_user_message)
    with_none = shown(template, (system(""), user("U1")), (), True)
    assert "None" not in with_none


# ----------------------------------------------------------------------------- the list of presets


def test_what_lists_the_presets_lists_them_all():
    described = Recipe.model_fields["template"].description or ""
    assert described.split("preset: ")[1].partition(";")[0].rstrip(".").replace("\n", " ").split(
        ", "
    ) == list(PRESETS)
    for spec in ("auto", "no-such-template"):
        with pytest.raises(TemplateError) as failure:
            find_template(spec, None)
        assert all(re.search(rf"\b{name}\b", str(failure.value)) for name in PRESETS)


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_brings_the_tokens_that_it_writes_and_no_others(name):
    source, _ = find_template(name, None)
    written = set(re.findall(r"<\|im_\w+\|>|<\|\w+_id\|>|<\w+_of_turn>", source))
    assert written == set(PRESETS[name])
