"""A template renders as its family's does, says how it ends a reply, and is saved with its options."""

import json

import pytest

from imprint.data.conversation import Message
from imprint.errors import TemplateError
from imprint.render.form import as_template_input
from imprint.render.template import Refused, Template, find_template
from render.corpus import CALL, CONVERSATIONS, NOW, TOOLS, make_tokenizer, named, needs_templates, reply, user

SPECIAL = {"bos_token": "<s>", "eos_token": "</s>"}


def preset(name: str, **special: str) -> Template:
    return Template(*find_template(name, None), special or SPECIAL, NOW)


def made(source: str, **options) -> Template:
    return Template(source, "test", SPECIAL, NOW, options)


def messages_of(name: str) -> list:
    return [as_template_input(message) for message in CONVERSATIONS[name].messages]


# ----------------------------------------------------------------------------- presets


@needs_templates
@pytest.mark.parametrize("name", ["single", "several", "system"])
@pytest.mark.parametrize("generate", [False, True])
def test_chatml_is_the_chatml_of_others(name, generate):
    messages = messages_of(name)[: -1 if generate else None]
    ours = preset("chatml").render(messages, (), generate)
    assert ours == made(named("axolotl/chatml.jinja")).render(messages, (), generate)
    # chujiezheng's begins with BOS and trims
    assert "<s>" + ours == made(named("chujiezheng/chatml.jinja")).render(messages, (), generate)


@needs_templates
@pytest.mark.parametrize("name", ["single", "several", "system"])
def test_llama2_is_llama2_chat_with_its_system_folded(name):
    messages = messages_of(name)
    for i in range(1, len(messages) + 1):
        if messages[i - 1]["role"] == "system":
            continue
        ours = preset("llama2").render(messages[:i], (), messages[i - 1]["role"] == "user")
        assert ours == made(named("chujiezheng/llama-2-chat.jinja")).render(messages[:i])
    if name == "system":
        assert ours.startswith("<s>[INST] <<SYS>>\nBe a walrus.\n<</SYS>>\n\nHi zebra [/INST]")


@needs_templates
def test_alpaca_is_the_alpaca_of_others():
    """Of chujiezheng's, but for its `</s>` (axolotl has it, too) and the words that no system message brings."""
    theirs = made(named("chujiezheng/alpaca.jinja"))
    system = messages_of("system")[:2]
    assert preset("alpaca").render(system, (), True) == theirs.render(system, (), True).removeprefix("<s>")
    single = messages_of("single")
    assert preset("alpaca").render(single) == (
        "Below is an instruction that describes a task. Write a response that appropriately completes the "
        "request.\n\n### Instruction:\nzebra: what is 2 + 2?\n\n### Response:\nIt is 4.</s>"
    )


@pytest.mark.parametrize("name", ["llama2", "alpaca"])
def test_presets_refuse_what_they_have_no_place_for(name):
    template = preset(name)
    with pytest.raises(Refused, match="no place for tools"):
        template.render(messages_of("single"), TOOLS)
    with pytest.raises(Refused, match="no place for tool calls"):
        template.render([as_template_input(user("a")), as_template_input(reply("", tool_calls=(CALL,)))])
    with pytest.raises(Refused, match="no place for the role tool"):
        template.render([as_template_input(Message("tool", "3"))])


# ----------------------------------------------------------------------------- rendering


def test_rendering_is_a_pure_function_of_what_the_template_holds():
    source = (
        "{{ strftime_now('%Y-%m-%d') }} {{ flag }} {{ bos_token }}{{ tools is none }}{{ documents is none }}"
    )
    assert made(source, flag=True).render([]) == "2025-07-26 True <s>TrueTrue"
    assert made(source, bos_token="<b>").render([]) == "2025-07-26  <b>TrueTrue"  # as in transformers


def test_invalid_jinja_names_the_line():
    with pytest.raises(TemplateError, match="test:2") as failure:
        made("{{ 1 }}\n{% if %}").render([])
    assert "valid Jinja" in str(failure.value)
    deep = "{% for a in b %}" * 30 + "{% endfor %}" * 30  # more blocks than Python nests
    with pytest.raises(TemplateError, match="valid Jinja"):
        made(deep).render([])


@pytest.mark.parametrize(
    ("source", "ending"),
    [
        ("{% for m in messages %}<{{ m.content }}>\n{% endfor %}", ">\n"),
        ("{% for m in messages %}{{ m.content }}{% endfor %}", ""),
        ("{% for t in tools %}{% endfor %}{% for m in messages %}{{ m.content }}!{% endfor %}", "!"),
    ],
)
def test_the_ending_is_what_follows_a_reply(source, ending):
    assert made(source).ending == ending


@pytest.mark.parametrize("source", ["{{ raise_exception('never') }}", "{{ messages[0].content }}"])
def test_a_template_that_shows_no_reply_is_an_error(source):
    with pytest.raises(TemplateError) as failure:
        print(made(source).ending)
    assert "template=chatml" in str(failure.value)


def test_variables_are_what_an_option_can_set():
    source = (
        "{% set a = b %}{% if not c is defined %}{% set c = 1 %}{% endif %}{{ messages }}{{ tools }}{{ x.y }}"
    )
    assert {"b", "c", "x"} <= made(source).variables
    assert not {"messages", "tools", "y"} & made(source).variables


def test_a_name_that_the_template_sets_itself_is_no_option():
    source = (
        "{% set a = 1 %}{% set ns = namespace(k=2) %}{% for m in messages %}{% if a %}{% set c = x %}{% endif %}"
        "{{ m.content }}{{ loop.index }}{{ ns.k }}{{ c }}{% if not a %}{{ raise_exception(m) }}{% endif %}{% endfor %}"
    )
    template = made(source)
    assert {"x", "c"} <= template.variables  # c is set in one branch only: from outside in the other
    assert not {"a", "m", "loop", "ns", "namespace", "raise_exception"} & template.variables
    for name in ("a", "m", "loop", "ns"):
        changed = template.with_options({name: "other"})
        assert changed.render([{"content": "hi"}]) == template.render([{"content": "hi"}])
    assert template.with_options({"x": "new"}).render([{"content": "hi"}]) == "hi12new"


# ----------------------------------------------------------------------------- the saved template

VALUES = [
    True, False, None, 3, -2.5, "plain", "it's", 'a "quoted" {% word %} {{ x }}', "new\nline\\ and \t", "é漢👋", "",
    {"a": [1, "b'", None], "c": {"d": True}}, [], ["x", {"y": 1}],
]  # fmt: skip


@pytest.mark.parametrize("value", VALUES, ids=repr)
def test_options_are_the_defaults_of_the_saved_template(value):
    source = "  {{ '[' }}{{ flag|tojson }}{{ flag is none }}{{ other }}]\n"
    source += "{% for m in messages %}{{ m.content }}{% endfor %}"
    ours = made(source, flag=value, other="o")
    tokenizer = make_tokenizer("bytes", ours.serving_source, **SPECIAL)
    messages = messages_of("several")
    assert tokenizer.apply_chat_template(messages, tokenize=False) == ours.render(messages)
    assert json.dumps(value, ensure_ascii=False) in ours.render(messages)
    asked = tokenizer.apply_chat_template(
        messages, tokenize=False, flag="asked"
    )  # a request may still differ
    assert asked == made(source, flag="asked", other="o").render(messages)


BEGINNINGS = [
    "", "\n", "\n\n", "  ", "    {% if true %}x{% endif %}", "\t{{ 1 }}", "{#- c -#}\n y", "{%- set a = 1 %}\n z",
]  # fmt: skip


@pytest.mark.parametrize("begin", BEGINNINGS)
def test_a_default_changes_nothing_at_the_beginning(begin):
    source = begin + "{{ flag }}{% for m in messages %}{{ m.content }}{% endfor %}"
    ours = made(source, flag=True)
    assert Template(ours.serving_source, "saved", SPECIAL, NOW).render(messages_of("single")) == ours.render(
        messages_of("single")
    )


def test_without_options_the_template_is_saved_as_it_is():
    assert made("{{ x }}").serving_source == "{{ x }}"


@needs_templates
def test_qwen3_without_thinking_is_served_as_it_was_trained():
    source = named("llamacpp/Qwen-Qwen3-0.6B.jinja")
    ours = made(source, enable_thinking=False)
    tokenizer = make_tokenizer("bytes", ours.serving_source, **SPECIAL)
    for name in ("single", "several", "system", "tools"):
        messages, tools = messages_of(name)[:-1], list(CONVERSATIONS[name].tools)
        served = tokenizer.apply_chat_template(
            messages, tools=tools or None, tokenize=False, add_generation_prompt=True
        )
        assert served == ours.render(messages, tools, True)
        assert served.endswith("<think>\n\n</think>\n\n")


# ----------------------------------------------------------------------------- finding it


def test_finding_a_template(tmp_path):
    assert find_template("auto", "own") == ("own", "the tokenizer's own template")
    assert find_template("auto", {"tool_use": "t", "default": "d"})[0] == "d"
    file = tmp_path / "mine.jinja"
    file.write_text("é", encoding="utf-8")
    assert find_template(str(file), "own") == ("é", str(file))
    assert "<|im_start|>" in find_template("chatml", "own")[0]
    with pytest.raises(TemplateError, match="no chat template"):
        find_template("auto", None)
    with pytest.raises(TemplateError, match="chatml") as failure:
        find_template("chatlm", None)
    assert "template=chatml" in str(failure.value)


def test_a_tokenizer_with_several_templates(tmp_path, monkeypatch):
    own = {"rag": "R", "chatml": "mine", "tool_use": "T"}
    assert find_template("rag", own) == ("R", "the tokenizer's template `rag`")
    assert find_template("default", own | {"default": "D"}) == ("D", "the tokenizer's template `default`")
    assert find_template("auto", own | {"default": "D"}) == ("D", "the tokenizer's own template")
    assert find_template("chatml", own)[1] == "the preset chatml"
    with pytest.raises(TemplateError, match="no default") as failure:  # as transformers: none is the first
        find_template("auto", own)
    assert "rag, chatml, tool_use" in str(failure.value)
    assert "template=rag" in failure.value.fix
    with pytest.raises(TemplateError, match="no default"):
        find_template("auto", {"rag": "R"})
    with pytest.raises(TemplateError, match="one of the tokenizer's") as failure:
        find_template("rg", own)
    assert failure.value.fix == "template=rag"
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rag").write_text("a file", encoding="utf-8")
    assert find_template("rag", own) == ("a file", "rag")


# ----------------------------------------------------------------------------- messages


def arguments(value) -> object:
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": value}}
    return as_template_input(reply("", tool_calls=(call,)))["tool_calls"][0]["function"]["arguments"]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ('{"b": 1, "a": "é"}', {"b": 1, "a": "é"}),
        ("{}", {}),
        ({"a": 1}, {"a": 1}),
        ("not json", "not json"),
        ("[1, 2]", "[1, 2]"),
        ('"text"', '"text"'),
        ("", ""),
        (None, None),
    ],
)
def test_arguments_given_as_json_text_become_an_object(given, expected):
    assert arguments(given) == expected
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
    as_template_input(reply("", tool_calls=(call,)))
    assert call["function"]["arguments"] == '{"a": 1}'  # the row itself stays as it was read


def test_a_message_has_only_the_keys_that_it_has():
    assert as_template_input(user("a")) == {"role": "user", "content": "a"}
    full = Message("assistant", "a", "why", (CALL,), 0.5, "n", "id")
    assert set(as_template_input(full)) == {
        "role", "content", "reasoning_content", "thinking", "tool_calls", "name", "tool_call_id"
    }  # fmt: skip
