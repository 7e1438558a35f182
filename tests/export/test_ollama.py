"""--to ollama from a run to the Modelfile, and its proof against the run's own golden file."""

from __future__ import annotations

import json
import shutil
from datetime import datetime
from pathlib import Path

import pytest

pytest.importorskip("gguf", reason="the extra [gguf] is not installed")

from conftest import settings
from imprint.errors import TemplateError, UserError
from imprint.export import ollama
from imprint.export.golden import read_golden
from imprint.export.gotemplate_run import prompt_of
from imprint.export.ollama_file import read_modelfile
from imprint.export.targets import Made
from imprint.render.resolve import load_tokenizer
from imprint.render.tokens import Encoder


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A short run of the embedded base model: its probabilities mean something."""
    from imprint.demo.base import copy_base
    from imprint.run import train
    from imprint.settings import resolve

    here = tmp_path_factory.mktemp("ollama")
    copy_base(here / "base")
    source = Path(ollama.__file__).parents[1] / "demo" / "demonstrations.jsonl"
    rows = source.read_text(encoding="utf-8").splitlines(keepends=True)[:24]
    (here / "rows.jsonl").write_text("".join(rows), encoding="utf-8")
    given = settings(
        here / "base", here / "rows.jsonl", here / "run", "max_steps=2", "template=chatml", "golden=2"
    )
    train(resolve(None, given).recipe)
    return here / "run"


@pytest.fixture(scope="module")
def merged(run):
    return run / "model"


@pytest.fixture(scope="module")
def exported(run, tmp_path_factory):
    from imprint.export_run import export
    from imprint.export_wanted import Wanted

    out = tmp_path_factory.mktemp("out") / "ollama"
    return export(run, Wanted("ollama", out, options={"type": "f32", "name": "mine", "system": "Be brief."}))


def commands_of(path):
    return read_modelfile(path.read_text(encoding="utf-8"))


def values(path, name):
    return [command.value for command in commands_of(path) if command.name == name]


def test_the_folder(exported, run):
    path = exported.main
    assert path.name == "Modelfile"
    (start,) = values(path, "from")
    assert (path.parent / start).is_file()
    golden = read_golden(run)
    assert set(values(path, "stop")) == set(golden.stops)
    assert values(path, "temperature") == ["0"]
    assert values(path, "num_ctx") == ["512"]
    assert values(path, "system") == ["Be brief."]
    told = "\n".join(exported.notes)
    assert "ollama create mine -f Modelfile" in told
    assert "ollama run mine" in told
    assert "imprint parity RUN --url http://127.0.0.1:11434/v1" in told


def test_it_is_proven_on_the_users_own_rows(exported, run):
    count = len(read_golden(run).examples)
    assert count > 0
    assert f"{count} of {count} prompts equal through the Go template" in exported.proof.line
    assert exported.proof.passed is not False


@pytest.mark.parametrize(
    ("right", "wrong", "told"),
    [
        ("<|im_start|>user\n", "<|im_start|>user ", "the Go template"),
        ('PARAMETER stop "<|im_end|>"', "# no stop", "no PARAMETER stop for '<|im_end|>'"),
        ("assistant\n", "assistant", "the Go template"),
        ("{{ .Content }}<|im_end|>", "{{ .Content }}", "the Go template"),
    ],
)
def test_a_planted_fault_fails_the_proof(exported, run, tmp_path, monkeypatch, right, wrong, told):
    copy = tmp_path / "copy"
    shutil.copytree(exported.folder, copy)
    text = (copy / "Modelfile").read_text(encoding="utf-8")
    assert right in text
    (copy / "Modelfile").write_text(text.replace(right, wrong), encoding="utf-8")
    monkeypatch.setattr(ollama.gguf, "TARGET", ollama.gguf.TARGET.__class__("gguf", ollama.gguf.make))
    proof = ollama.prove(run / "golden.json", Made(copy / "Modelfile"))
    assert proof.passed is False
    assert told in proof.line
    assert proof.facts["ollama"]["faults"]


def changed(merged, tmp_path, template=None, **generation):
    folder = tmp_path / "changed"
    shutil.copytree(merged, folder)
    if template is not None:
        (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    if generation:
        path = folder / "generation_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | generation))
    (tmp_path / "out").mkdir()
    return folder, tmp_path / "out"


def test_a_template_that_go_cannot_say_is_refused_before_anything_is_written(merged, tmp_path):
    source = "{% for m in messages %}{{ m.role }}: {{ m.content | upper }}\n{% endfor %}"
    folder, out = changed(merged, tmp_path, source)
    with pytest.raises(TemplateError, match="cannot be said in Ollama's language") as caught:
        ollama.make(folder, out, {})
    assert "--to gguf" in caught.value.fix
    assert list(out.iterdir()) == []


def test_sampling_is_what_the_model_says(merged, tmp_path):
    folder, out = changed(merged, tmp_path, do_sample=True, temperature=0.6, top_k=20, repetition_penalty=1.1)
    (folder / "LICENSE").write_text('Do what "you" like.\n\n"""\nreally\n')
    path = ollama.make(folder, out, {"type": "f32", "num_ctx": "100"}).path
    found = {command.name: command.value for command in commands_of(path)}
    wanted = {"temperature": "0.6", "top_k": "20", "top_p": "1", "repeat_penalty": "1.1", "num_ctx": "100"}
    assert wanted.items() <= found.items()
    assert found["license"] == "see LICENSE, which came with the model"
    assert (out / "LICENSE").is_file()


@pytest.mark.parametrize(
    "wrong", [{"num_ctx": "9999"}, {"num_ctx": "1.5"}, {"temperature": "-1"}, {"temperature": "hot"}]
)
def test_numbers_that_cannot_be(merged, tmp_path, wrong):
    with pytest.raises(UserError, match="not a number that it can be"):
        ollama.make(merged, tmp_path, wrong)


@pytest.mark.parametrize("name", ["mine", "me/mine", "me/mine:v1.2", "my.host:5000/me/mine:latest", "_x"])
def test_names_that_ollama_takes(name):
    ollama.check({"name": name})


@pytest.mark.parametrize("name", ["", "a b", "-x", "a.b/mine", "mine:", "mine!", "/mine", "modèle", "x" * 81])
def test_names_that_ollama_refuses(name):
    with pytest.raises(UserError, match=r"takes no such name|needs a name"):
        ollama.check({"name": name})


def test_no_text_begins_with_two_bos(merged, tmp_path):
    """What llama.cpp adds, the template leaves out; what the template has not, the file does not add."""
    from tokenizers.processors import TemplateProcessing

    from imprint.export.gguf_reload import read_metadata

    tokenizer = load_tokenizer(str(merged))
    bos = tokenizer.eos_token
    tokenizer.bos_token = bos
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=[(bos, tokenizer.bos_token_id)]
    )
    encoder = Encoder(tokenizer)
    plain = tokenizer.chat_template
    assert ollama.begins_with(ollama.template_of(tokenizer, datetime.now()), encoder) == ("", True)
    tokenizer.chat_template = "{{ bos_token }}" + plain
    assert ollama.begins_with(ollama.template_of(tokenizer, datetime.now()), encoder) == (bos, False)

    for name, source, adds in (("with", "{{ bos_token }}" + plain, True), ("without", plain, False)):
        tokenizer.chat_template = source
        folder, out = tmp_path / name, tmp_path / f"{name}.out"
        shutil.copytree(merged, folder)
        tokenizer.save_pretrained(folder)
        out.mkdir()
        path = ollama.make(folder, out, {"type": "f32"}).path
        file = out / values(path, "from")[0]
        assert bool(read_metadata(file)["tokenizer.ggml.add_bos_token"]) is adds
        prompt = prompt_of(values(path, "template")[0], [("user", "Hi")], datetime.now())
        assert prompt.startswith("<|im_start|>"), "where the file adds it, the template does not"


def test_a_template_that_shows_a_date_has_that_of_the_run(run, merged, tmp_path, monkeypatch):
    """It was trained with that date; today's would be another prompt."""
    from imprint import export_run
    from imprint.export_wanted import Wanted
    from imprint.folder import read_facts

    dated = "{{ strftime_now('%d %b %Y') }}" + (merged / "chat_template.jinja").read_text(encoding="utf-8")
    folder, out = changed(merged, tmp_path, dated)
    made = ollama.make(folder, out, {"type": "f32", "now": "2001-02-03"})
    assert "03 Feb 2001" in values(made.path, "template")[0]
    assert any("it stays 03 February 2001" in note for note in made.notes)
    with pytest.raises(UserError, match="no date"):
        ollama.make(folder, out, {"now": "yesterday"})
    created = read_facts(run)["created"]
    given = export_run.with_date(ollama.TARGET, run, Wanted("ollama"))
    assert given.options == {"now": created}
    asked = Wanted("ollama", options={"now": "2001-02-03"})
    assert export_run.with_date(ollama.TARGET, run, asked) == asked
    assert export_run.with_date(ollama.gguf.TARGET, run, Wanted("gguf")).options == {}


def test_the_licence_of_the_base_is_named(merged, tmp_path):
    folder, out = changed(merged, tmp_path)
    (folder / "README.md").write_text("---\nlicense: apache-2.0\n---\n# A model\n")
    path = ollama.make(folder, out, {"type": "f32"}).path
    assert values(path, "license") == ["apache-2.0"]


def test_a_system_message_that_the_template_refuses(merged, tmp_path):
    refusing = "{% if messages[0].role == 'system' %}{{ raise_exception('none') }}{% endif %}"
    folder, out = changed(
        merged, tmp_path, refusing + (merged / "chat_template.jinja").read_text(encoding="utf-8")
    )
    with pytest.raises(UserError, match="takes no system message"):
        ollama.make(folder, out, {"system": "Be brief."})
    assert list(out.iterdir()) == []
