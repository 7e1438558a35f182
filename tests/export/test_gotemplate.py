"""Our interpreter of Go's templates: against Ollama's own expectations, and against Go itself where it is there."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path

import go_oracle
import pytest

from imprint.export.gotemplate import parse
from imprint.export.gotemplate_quotes import quoted, unquoted
from imprint.export.gotemplate_run import collate, prompt_of
from imprint.export.gotemplate_tree import GoError

EXPECTED = Path(__file__).parents[3] / "shared" / "data" / "templates" / "ollama_rendered_expectations.jsonl"
NOW = datetime(2025, 7, 26)
SYSTEM, FIRST, REPLY, SECOND = (
    ("system", "You are a helpful assistant."),
    ("user", "Hello, how are you?"),
    ("assistant", "I'm doing great. How can I help you today?"),
    ("user", "I'd like to show off how chat templating works!"),
)
DIALOGUES = {
    "user": [FIRST],
    "user-assistant-user": [FIRST, REPLY, SECOND],
    "system-user-assistant-user": [SYSTEM, FIRST, REPLY, SECOND],
}


@pytest.mark.skipif(not EXPECTED.is_file(), reason="shared/data/templates is not here")
def test_ollamas_own_expectations():
    rows = [json.loads(line) for line in EXPECTED.read_text(encoding="utf-8").splitlines()]
    checked = 0
    for row in rows:
        for name, text in row["expected"].items():
            assert prompt_of(row["go_template"], DIALOGUES[name], NOW) == text, (row["family"], name)
            checked += 1
    assert checked == 30


TALK = [("system", "S\u00e9"), ("user", " a\n"), ("assistant", "b<&>"), ("user", "日本")]
# template → what Go 1.19 makes of TALK (None: it fails); test_against_go asks Go itself
SYNTAX = {
    "a {{- 1 -}} b": "a1b",
    "a {{- /* no */ -}} b": "ab",
    "a{{/* no */}} b": "a b",
    "{{ -1 }}{{- 3 }}": "-13",
    "{{ \"x\\ty\\u00e9\\x41\" }}{{ `r\\n` }}{{ 'a' }}": "x\ty\u00e9Ar\\n97",
    "{{ len .System }} {{ len .Messages }}": "3 4",
    '{{ index .System 0 }}{{ slice .System 1 }}{{ slice "abc" 1 2 }}': "83\u00e9b",
    '{{ slice "abc" 9 }}': None,
    "{{ index .Messages 9 }}": None,
    "{{ range $i, $m := .Messages }}{{ $i }}{{ $m.Role }};{{ end }}": "0system;1user;2assistant;3user;",
    "{{ range .Messages }}{{ if eq .Role `system` `assistant` }}x{{ else if ne .Role `user` }}y"
    "{{ else }}z{{ end }}{{ end }}": "xzxz",
    "{{ range .Tools }}x{{ else }}none{{ end }}": "none",
    "{{ range .Messages }}{{ .Role }}{{ break }}{{ end }}": "system",
    "{{ range .Messages }}{{ if eq .Role `user` }}{{ continue }}{{ end }}{{ .Role }}{{ end }}": "systemassistant",
    "{{ $x := 1 }}{{ if true }}{{ $x = 2 }}{{ $y := 3 }}{{ $y }}{{ end }}{{ $x }}": "32",
    "{{ $x := 1 }}{{ if true }}{{ $x := 2 }}{{ end }}{{ $x }}": "1",
    "{{ range .Messages }}{{ $.System }}{{ break }}{{ end }}": "S\u00e9",
    "{{ with .System }}{{ . }}{{ end }}{{ with .Nothing }}a{{ else }}b{{ end }}": "S\u00e9b",
    "{{ .Nothing }}": "<no value>",
    "{{ range .Messages }}{{ .Nothing }}{{ end }}": None,
    "{{ (index .Messages 1).Role }}": "user",
    "{{ if and .System (gt (len .Messages) 3) }}yes{{ end }}{{ or `` `x` }}{{ not 0 }}": "yesxtrue",
    "{{ and false (index .Messages 99) }}": "false",
    "{{ eq 1 `a` }}": None,
    "{{ eq (index `a` 0) 97 }}{{ lt 1 2 }}{{ le `b` `a` }}{{ ge 2 2 }}": "truetruefalsetrue",
    '{{ printf "%s-%d-%v%%" "a" 3 true }}{{ print 1 2 "c" 3 4 }}{{ println 1 "x" }}': "a-3-true%1 2c3 41 x\n",
    "{{ json (index .Messages 2).Content }}": '"b\\u003c\\u0026\\u003e"',
    '{{ "a" | printf "%s%s" "b" | len }}': "2",
    '{{ define "t" }}[{{ . }}{{ $ }}]{{ end }}{{ template "t" .System }}{{ template "t" 1 }}': "[S\u00e9S\u00e9][11]",
    '{{ define "t" }}{{ if . }}{{ slice . 0 1 }}.{{ template "t" (slice . 1) }}{{ end }}{{ end }}'
    '{{ template "t" "abc" }}': "a.b.c.",
    '{{ template "u" }}': None,
    '{{ block "t" 3 }}{{ . }}{{ end }}': "3",
    "{{ if 1 }}": None,
    "{{ end }}": None,
    "{{ $x }}": None,
    "{{ nope 1 }}": None,
    "{{ 1": None,
    "{{ break }}": None,
    "{{}}": None,
    "{{ len 3 }}": None,
    "{{ .System.More }}": None,
    "{{ true }}{{ 1.5 }}{{ len `` }}": "true1.50",
    "{{if .System}}{{.System}}{{end}}": "S\u00e9",
    "{{ slice `日` 0 1 | len }}": "1",
    "}} a }": "}} a }",
}


def ours(source, messages=TALK):
    try:
        return prompt_of(source, messages, NOW)
    except GoError:
        return None


@pytest.mark.parametrize("source", SYNTAX, ids=range(len(SYNTAX)))
def test_the_language(source):
    assert ours(source) == SYNTAX[source]


def test_messages_are_joined_as_ollama_joins_them():
    given = [
        ("system", "a"),
        ("system", "b"),
        ("user", "c"),
        ("user", "d"),
        ("tool", "e"),
        ("tool", "f"),
        ("system", "g"),
    ]
    assert collate(given) == (
        "a\n\nb\n\ng",
        [("system", "a\n\nb"), ("user", "c\n\nd"), ("tool", "e"), ("tool", "f"), ("system", "g")],
    )


@pytest.mark.parametrize("text", ["", 'a"b\\', "\n\t\r\x00\x1b", "é日👋\u2028\u200b", "{{ }}", '"""'])
def test_go_strings_come_back(text):
    assert unquoted(quoted(text)) == text
    assert quoted(text).isascii()
    assert quoted(text).isprintable()
    assert ours(f"{{{{ {quoted(text)} }}}}") == text


@pytest.fixture(scope="module")
def go(tmp_path_factory):
    if go_oracle.find_go() is None:
        pytest.skip("Go is not installed: its text/template cannot be asked")
    return go_oracle.build(tmp_path_factory.mktemp("go"))


@pytest.mark.slow
def test_against_go(go):
    """Go's own answer to every line of SYNTAX, and to Ollama's templates."""
    system, joined = collate(TALK)
    answers = go_oracle.ask(go, [(source, system, joined) for source in SYNTAX])
    assert dict(zip(SYNTAX, answers, strict=True)) == SYNTAX


@pytest.mark.slow
def test_translations_against_go(go):
    """Every translated template over the whole corpus: Go writes what our interpreter, and so Jinja, writes."""
    from ollama_table import every_template, translation_of

    from imprint.export.ollama_learn import Untranslatable
    from imprint.export.ollama_translate import corpus

    jobs, expected, translated = [], [], 0
    for _, source in every_template():
        try:
            made = translation_of(source)
        except Untranslatable:
            continue
        translated += 1
        for _, messages, _ in corpus():
            pairs = [(message.role, message.content) for message in messages]
            jobs.append((made.source, *collate(pairs)))
            expected.append(ours(made.source, pairs))
    answers = go_oracle.ask(go, jobs)
    different = [job for job, a, b in zip(jobs, answers, expected, strict=True) if a != b]
    assert not different, different[0]
    assert translated >= 9
    assert len(jobs) == translated * sum(1 for _ in corpus())


def test_what_go_refuses_is_refused_where_it_is_read():
    for source in ("{{ if 1 }}", "{{ nope }}", "{{ range .A }}{{ end }}{{ end }}", '{{ "a }}'):
        with pytest.raises(GoError):
            parse(source)
