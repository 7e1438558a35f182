"""Modelfiles: what is written is what Ollama's reader takes out again."""

from __future__ import annotations

import pytest

from imprint.errors import UserError
from imprint.export.ollama_file import Command, read_modelfile, write_modelfile

FROM = Command("from", "./model.gguf")


@pytest.mark.parametrize(
    "command",
    [
        Command("stop", "<|im_end|>"),
        Command("stop", "\n"),
        Command("stop", 'say "no"'),
        Command("stop", " ###"),
        Command("stop", "#"),
        Command("temperature", "0"),
        Command("num_ctx", "8192"),
        Command("template", "{{ .System }}\n\n  a\tb  \n"),
        Command("template", '"quoted"'),
        Command("template", "one line"),
        Command("system", "Be brief.\nPARAMETER stop x\n# no comment"),
        Command("license", "Apache\r\n2.0"),
    ],
)
def test_every_value_comes_back(command):
    text = write_modelfile([FROM, command], ["a comment", "FROM nowhere"])
    assert read_modelfile(text) == [FROM, command]


@pytest.mark.parametrize("value", ['a """\nb', "a\x00b", "zero\u200bwidth", "no\u00a0break"])
def test_what_it_cannot_hold_is_refused(value):
    with pytest.raises(UserError, match="cannot hold this template"):
        write_modelfile([FROM, Command("template", value)])


@pytest.mark.parametrize(
    "text", ["TEMPLATE x\n", "FROM x\nPRAMETER a b\n", 'FROM x\nSYSTEM """a\n', "FROM x\nSYSTEM"]
)
def test_what_ollama_refuses_is_refused(text):
    """After ollama/ollama parser/parser_test.go: no FROM, an unknown command, an open quote."""
    if text == "FROM x\nSYSTEM":
        assert read_modelfile(text) == [Command("from", "x")]  # a command without a value is never begun
        return
    with pytest.raises(UserError):
        read_modelfile(text)


def test_as_people_write_them():
    text = 'from llama3\nPARAMETER temperature 0.7\n\n  # note\nparameter stop "a b"\nSYSTEM You are\nmessage user hi\n'
    found = read_modelfile(text.replace("message user hi\n", "").replace("You are", '"You are"'))
    assert found == [
        Command("from", "llama3"),
        Command("temperature", "0.7"),
        Command("stop", "a b"),
        Command("system", "You are"),
    ]
