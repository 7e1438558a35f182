"""Chat templates in Ollama's language: equal over a corpus, or refused with what differs."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime

import pytest
from ollama_table import BEGIN, END, PAGE, every_template, table, translation_of

from imprint.data.conversation import Message
from imprint.export import ollama_translate
from imprint.export.gotemplate_run import prompt_of
from imprint.export.ollama_learn import SYSTEM, Untranslatable, learn
from imprint.export.ollama_translate import corpus, translate
from imprint.render.probe import find_form
from imprint.render.template import PRESETS, Template, find_template
from render.corpus import TEMPLATES, names_for

NOW = datetime(2025, 7, 26)


def template(source, **special):
    made = Template(source, "test", special or names_for(source), NOW)
    return replace(made, form=find_form(made))


def preset(name):
    return template(find_template(name, None)[0])


def said(source, *pairs):
    return prompt_of(source, pairs, NOW)


@pytest.mark.parametrize("name", PRESETS)
def test_presets(name):
    made = translate(preset(name))
    assert made.compared >= 69
    assert said(made.source, ("user", "Hi")) == preset(name).render(
        [{"role": "user", "content": "Hi"}], add_generation_prompt=True
    )


def test_chatml_reads_as_a_person_would_write_it():
    source = translate(preset("chatml")).source
    assert source.startswith(
        '{{- range .Messages }}\n{{- if eq .Role "system" }}<|im_start|>system\n{{ .Content }}<|im_end|>\n'
    )
    assert source.endswith("{{- end }}<|im_start|>assistant\n")
    assert "$before" not in source


CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LAST = (  # the system message stands in the last question, as Mistral's newer templates have it
    "{% if messages[0].role == 'system' %}{% set s = messages[0].content + '\n\n' %}{% set rest = messages[1:] %}"
    "{% else %}{% set s = '' %}{% set rest = messages %}{% endif %}"
    "{% for m in rest %}{% if m.role == 'user' %}[INST] {{ s if loop.last else '' }}{{ m.content }}[/INST]"
    "{% else %} {{ m.content }}</s>{% endif %}{% endfor %}"
)
DEFAULT = "{% if messages[0].role != 'system' %}<|im_start|>system\nBe good.<|im_end|>\n{% endif %}" + CHATML
TRIMMED = CHATML.replace("{{ m.content }}", "{{ m.content | trim }}")
NO_SYSTEM = "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}" + CHATML


def test_a_system_message_in_the_last_question():
    learned = learn(template(LAST))
    assert not learned.inline
    assert any(SYSTEM in glue for glue in learned.glue.values())
    source = translate(template(LAST)).source
    given = ("system", "S"), ("user", "a"), ("assistant", "b"), ("user", "c")
    assert said(source, *given) == "[INST] a[/INST] b</s>[INST] S\n\nc[/INST]"


def test_a_default_system_message():
    source = translate(template(DEFAULT)).source
    assert said(source, ("user", "a")).startswith(
        "<|im_start|>system\nBe good.<|im_end|>\n<|im_start|>user\na"
    )
    assert "Be good" not in said(source, ("system", "S"), ("user", "a"))


def test_white_space_is_trimmed_as_python_trims_it():
    """Go has no trim: the template looks at bytes, and calls itself."""
    made = translate(template(TRIMMED))
    every = "".join(chr(code) for code in range(0x3001) if chr(code).isspace())
    assert every.strip() == ""
    assert "user\na b<|im_end|>" in said(made.source, ("user", f"{every}a b{every}"))
    assert "user\n<|im_end|>" in said(made.source, ("user", every))
    assert 'define "strip"' not in translate(template(CHATML)).source


def test_a_refused_system_message_is_refused_in_ollama_too():
    from imprint.export.gotemplate_tree import GoError

    made = translate(template(NO_SYSTEM))
    assert any("no system message" in note for note in made.notes)
    assert not any(
        "system" in name and "," in name and name not in made.failing
        for name, _, _ in corpus()
        if ", system" in name
    )
    with pytest.raises(GoError, match="index out of range"):
        said(made.source, ("system", "S"), ("user", "a"))
    assert "no place for a system message" in made.source


def test_the_bos_that_the_tokenizer_adds_is_left_out():
    source = "{{ bos_token }}" + CHATML
    whole, bare = translate(template(source)).source, translate(template(source), "<|endoftext|>").source
    assert said(whole, ("user", "a")) == "<|endoftext|>" + said(bare, ("user", "a"))
    with pytest.raises(Untranslatable, match="does not begin with it"):
        translate(template(CHATML), "<s>")


REFUSED = {
    "counts": (CHATML.replace("{{ m.role }}", "{{ loop.index }} {{ m.role }}"), "changes with the rest"),
    "length": (CHATML + "{{ messages[0].content | length }}", "the chat template writes"),
    "upper": (CHATML.replace("{{ m.content }}", "{{ m.content | upper }}"), "drops, repeats or moves"),
    "quotes": (CHATML.replace("{{ m.content }}", "{{ m.content | replace('\"', '') }}"), "code, 1 rounds"),
    "forgets": (CHATML.replace("in messages %}", "in messages[-2:] %}"), "drops, repeats or moves"),
    "collapses": (
        CHATML.replace("{{ m.content }}", "{{ m.content.split() | join(' ') }}"),
        "white space around",
    ),
    "names": (
        CHATML.replace("{{ m.content }}", "{{ m.content }}{{ ' long' if m.content | length > 99 }}"),
        "long, 1 rounds",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_said_is_refused_with_the_reason(name):
    source, reason = REFUSED[name]
    with pytest.raises(Untranslatable, match=reason):
        translate(template(source))


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("<|im_end|>\n", "<|im_end|>"),
        ("<|im_start|>user", "<|im_start|>User"),
        ("{{ .Content }}", "{{- .Content }}"),
        ("assistant\n", "assistant"),
        ('{{- slice "the chat template', '{{- print "the chat template'),
    ],
)
def test_a_planted_fault_is_found(monkeypatch, right, wrong):
    """One character of the Go template changed: the replay tells it."""
    original = ollama_translate.go_template

    def faulty(learned):
        source = original(learned)
        assert right in source
        return source.replace(right, wrong)

    monkeypatch.setattr(ollama_translate, "go_template", faulty)
    with pytest.raises(Untranslatable, match=r"refuses it|writes"):
        translate(template(CHATML))


def test_the_corpus_has_what_it_says():
    names = [name for name, _, _ in corpus()]
    assert len(names) == len(set(names)) >= 70
    assert all(isinstance(message, Message) for _, messages, _ in corpus() for message in messages)
    roles = {tuple(message.role for message in messages) for _, messages, _ in corpus()}
    assert ("user",) in roles
    assert ("system", *["user", "assistant"] * 3, "user") in roles


@pytest.mark.slow
@pytest.mark.skipif(not TEMPLATES, reason="shared/data/templates is not here")
def test_every_real_template_and_the_page():
    """docs/ollama.md's table is what comes out; of 109 templates two are refused: they take no plain question."""
    written = PAGE.read_text(encoding="utf-8").partition(BEGIN)[2].partition(END)[0].strip()
    assert written == table()
    assert len(list(every_template())) == 109
    assert written.count("| refused: ") == 2


@pytest.mark.skipif(not TEMPLATES, reason="shared/data/templates is not here")
@pytest.mark.parametrize(
    "name", ["Qwen-Qwen3-0.6B", "Llama-3.2-3B-Instruct", "gemma-2-2b-it", "v3_spm", "phi-3"]
)
def test_some_real_templates(name):
    source = next(source for label, source in every_template() if name in label)
    assert translation_of(source).compared >= 31
