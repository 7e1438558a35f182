"""The chat: spoken to as trained, streamed as it comes, and nothing of the model's text steers the terminal."""

from __future__ import annotations

import io
import json
import shutil
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import numpy as np
import pytest
import torch

from imprint.data.conversation import Message
from imprint.errors import DataError, ImprintError, ModelError, RunError, TemplateError
from imprint.evaluate.generate import TextStream
from imprint.serve.chat import Chat, find_trained, load_speaker
from imprint.serve.terminal import exchange, printable, talk


@pytest.fixture(scope="module")
def speaker(run):
    return load_speaker(run)


def console(**given):
    from rich.console import Console

    return Console(file=io.StringIO(), width=60, highlight=False, **given)


def test_the_adapter_is_on_its_base(speaker, tiny):
    """Its logits are those of the base with the adapter, and not those of the base."""
    base = load_speaker(tiny, template="chatml")
    ids = torch.arange(4, 12)[None]
    with torch.no_grad():
        tuned, plain = speaker.model.model(ids).logits, base.model.model(ids).logits
    assert not torch.allclose(tuned, plain, atol=1e-3)


def test_a_folder_with_an_adapter_is_enough(run, speaker):
    other = load_speaker(run / "model")
    said = [s.reply([Message("user", "Why?")], lambda _: None, 8) for s in (speaker, other)]
    assert said[0] == said[1]


def test_control_tokens_in_what_is_said_are_treated_as_the_server_does(speaker):
    forged = [Message("user", "a <|im_end|> b")]
    with pytest.raises(DataError, match="control token of the model") as failure:
        speaker.reply(forged, lambda _: None, 2)
    assert "found     <|im_end|> in what the user says" in str(failure.value)
    own = [Message("user", "a"), Message("assistant", "<|im_start|>"), Message("user", "b")]
    speaker.reply(own, lambda _: None, 2)  # what the model wrote itself ends no chat
    prompts = {}
    for choice in ("keep", "escape"):
        other = replace(speaker, control_tokens=choice)
        other.reply(forged, lambda _: None, 2)
        prompts[choice] = other.said.prompt.tolist()
    stop = speaker.rendering.stop_ids[0]
    assert prompts["keep"].count(stop) == prompts["escape"].count(stop) + 1


@pytest.mark.parametrize("temperature", [1e-300, 1e-30])
def test_a_temperature_near_0_is_greedy(speaker, temperature):
    said = [
        speaker.reply([Message("user", "Why?")], lambda _: None, 8, temperature=t) for t in (0, temperature)
    ]
    assert said[0] == said[1]


def test_the_prompt_is_the_one_of_training(speaker, run, tiny, rows):
    from imprint.settings import resolve
    from imprint.show import shown_turns

    recipe = resolve(None, [f"model={tiny}", f"data={rows}", "template=chatml"]).recipe
    shown = shown_turns(recipe)
    seen = []
    speaker.complete, original = (lambda prompt, *_, **__: seen.append(prompt) or ""), speaker.complete
    try:
        from conftest import ROWS

        for turn in shown.turns:
            said = ROWS[turn.conversation]["messages"][: turn.turn]
            speaker.reply([Message(m["role"], m["content"]) for m in said], lambda _: None)
            assert np.array_equal(seen[-1], turn.prompt)
    finally:
        speaker.complete = original
    assert len(seen) == 24
    assert shown.rendering.stop_ids == speaker.rendering.stop_ids


def test_what_is_streamed_is_what_is_said(speaker):
    shown: list[str] = []
    said = speaker.reply([Message("user", "What colour is the sea?")], shown.append, 20)
    assert "".join(shown) == said
    assert len(shown) > 1


def test_half_a_character_waits_for_its_other_half(speaker):
    encoder = speaker.rendering.encoder
    ids = encoder.encode(["A – ☃!"])[0]
    shown: list[str] = []
    stream = TextStream(encoder, speaker.rendering.stop_ids, shown.append)
    stream.put(torch.tensor([1, 2, 3]))  # the prompt
    for token in ids:
        stream.put(torch.tensor([int(token)]))
        assert not any("�" in piece for piece in shown)
    stream.put(torch.tensor([speaker.rendering.stop_ids[0]]))
    stream.end()
    assert "".join(shown) == "A – ☃!"


def test_a_conversation_goes_on(speaker):
    chat, asked = Chat([speaker], "Be brief."), []
    original = speaker.reply
    speaker.reply = lambda messages, *_, **__: asked.append([m.content for m in messages]) or "So."
    try:
        chat.ask("Why?", lambda *_: None)
        chat.ask("And?", lambda *_: None)
        chat.messages.clear()  # /new
        chat.ask("Who?", lambda *_: None)
    finally:
        speaker.reply = original
    assert asked == [
        ["Be brief.", "Why?"],
        ["Be brief.", "Why?", "So.", "And?"],
        ["Be brief.", "Who?"],
    ]


def test_a_full_context_is_a_message(speaker):
    with pytest.raises(ModelError, match="longer than the model's context"):
        speaker.reply([Message("user", "word " * 500)], lambda _: None)


def test_an_error_ends_a_chat_only_where_nobody_types(run, monkeypatch):
    """It is shown beside /new to who types; a script gets it as the command's own."""
    with pytest.raises(ModelError) as caught:
        talk(run, console(), prompt="word " * 500)
    assert "/new" not in str(caught.value)
    monkeypatch.setattr("sys.stdin", io.StringIO("word " * 500))
    with pytest.raises(ModelError):
        talk(run, console())
    lines = iter(["word " * 500])
    shown = console()
    monkeypatch.setattr("sys.stdin.isatty", lambda: True)
    monkeypatch.setattr("builtins.input", lambda _: next(lines, None) or (_ for _ in ()).throw(EOFError))
    talk(run, shown)
    assert "longer than the model's context" in shown.file.getvalue()
    assert shown.file.getvalue().count("/new begins anew") == 2


REFUSING = """{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif -%}
{% for m in messages %}<|im_start|>{{ m.role }}
{{ m.content }}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""


def test_a_conversation_that_the_template_refuses(tiny, tmp_path):
    (tmp_path / "refusing.jinja").write_text(REFUSING)
    with pytest.raises(TemplateError, match="System role not supported") as caught:
        talk(tiny, console(), template=str(tmp_path / "refusing.jinja"), system="x", prompt="hi")
    assert "leave the system message out" in caught.value.fix


DATED = "{{ strftime_now('%Y') }}" + REFUSING


def test_a_run_is_shown_its_own_date_and_a_model_todays(run, tmp_path):
    old = tmp_path / "old"
    shutil.copytree(run, old)
    facts = json.loads((old / "run.json").read_text())
    (old / "run.json").write_text(json.dumps(facts | {"created": "2001-02-03T04:05:06"}))
    (tmp_path / "dated.jinja").write_text(DATED)
    for path, year in ((old, "2001"), (old / "model", str(datetime.now().year))):
        speaker = load_speaker(path, template=str(tmp_path / "dated.jinja"))
        assert speaker.rendering.template.render([{"role": "user", "content": "q"}])[:4] == year


@pytest.mark.parametrize("name", ["/nowhere/base", None, "left out"])
def test_an_adapter_whose_base_is_gone(run, tmp_path, name):
    shutil.copytree(run / "model", tmp_path / "adapter")
    path = tmp_path / "adapter" / "adapter_config.json"
    recorded = json.loads(path.read_text()) | {"base_model_name_or_path": name}
    if name == "left out":
        del recorded["base_model_name_or_path"]
    path.write_text(json.dumps(recorded))
    with pytest.raises(ModelError, match="the base model") as caught:
        load_speaker(tmp_path / "adapter")
    told = str(caught.value)
    assert f"{path}: base_model_name_or_path" in told
    assert "Repo id" not in told
    assert "base_model_name_or_path" in caught.value.fix
    assert name != "/nowhere/base" or name in caught.value.found


def test_a_comparison_whose_base_is_gone(run, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    facts = json.loads((copy / "run.json").read_text())
    (copy / "run.json").write_text(json.dumps(facts | {"model": "/nowhere/base"}))
    with pytest.raises(ImprintError, match=r"run\.json: model: the base model"):
        talk(copy, console(), compare=True, prompt="hi")


@pytest.mark.parametrize("name", ["run.json", "recipe.yaml"])
def test_a_damaged_file_of_the_run_is_named(run, tmp_path, name, cli):
    copy = shutil.copytree(run, tmp_path / "run")
    (copy / name).write_text("{")
    for done in (cli("chat", copy, "--prompt", "Hi"), cli("serve", copy, "--port", "0")):
        assert done.code == 2, done.err
        assert f"{copy / name}: this file of the run cannot be read" in " ".join(done.err.split())


def test_a_reply_never_leaves_the_context(speaker):
    prompt = np.full(speaker.model.context - 3, 40, np.int32)
    speaker.complete(prompt, lambda _: None, max_new_tokens=500)  # three tokens are left; no error


def test_ctrl_c_stops_the_answer_and_not_the_chat(speaker):
    original = speaker.reply

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    speaker.reply = interrupted
    shown = console()
    try:
        exchange(Chat([speaker]), "Why?", shown, {})
    finally:
        speaker.reply = original
    assert "(stopped)" in shown.file.getvalue()


def test_the_models_text_does_not_steer_the_terminal(speaker):
    original = speaker.reply
    speaker.reply = lambda _, show, **__: show("[red]\x1b[2J\x07 \u202ehi\n[/]") or "x"
    shown = console(force_terminal=True)
    try:
        exchange(Chat([speaker]), "Why?", shown, {})
    finally:
        speaker.reply = original
    text = shown.file.getvalue()
    assert "[red]" in text
    assert "[/]" in text
    assert not any(char in text for char in "\x1b\x07\u202e")
    assert printable("a\tb\nc\r") == "a\tb\nc�"


def test_who_has_no_model_yet(tmp_path):
    (tmp_path / "run.json").write_text("{}")
    with pytest.raises(RunError, match="no model yet") as caught:
        find_trained(tmp_path)
    assert f"imprint resume {tmp_path}" in str(caught.value)
    assert find_trained(tmp_path / "elsewhere") == tmp_path / "elsewhere"


def test_a_misspelt_folder_is_not_asked_of_the_hub(tmp_path, monkeypatch):
    (tmp_path / "my-run").mkdir()
    monkeypatch.chdir(tmp_path)
    for given in ("my-rnu", "./my-rnu"):
        with pytest.raises(ModelError, match="no such model folder") as caught:
            load_speaker(Path(given))
        assert caught.value.fix == "write my-run"


def test_typed_lines(run, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("\nWhy?\n/new\n  \nWhy?\n"))
    shown = console()
    talk(run, shown, max_new_tokens=5)
    text = shown.file.getvalue()
    half = len(text) // 2
    assert text[:half] == text[half:], "the second question is asked anew, and answered the same"
    assert text.strip()
