"""The verbs of a run, as they are typed: help, show, train, chat; and the same from Python."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest

from conftest import ROWS, environment, events_of, imprint, settings, weights_of, write_rows

VERBS = ["demo", "show", "train", "resume", "chat", "config show", "config why"]


@pytest.mark.parametrize("verb", VERBS)
def test_the_help_of_a_verb(verb, cli):
    done = cli(*verb.split(), "--help")
    assert done.code == 0
    assert max(map(len, done.out.splitlines())) <= 80
    assert f"imprint {verb} " in done.out.split("Example", 1)[1] + " "


def test_the_help_of_a_group_has_an_example(cli):
    for given in ([], ["config"]):
        done = cli(*given, "--help")
        assert "imprint config show" in done.out.split("Example", 1)[1]
        assert max(map(len, done.out.splitlines())) <= 80


def test_the_help_names_every_verb(cli):
    done = cli("--help")
    assert max(map(len, done.out.splitlines())) <= 80
    for verb in VERBS:
        assert f" {verb.split()[0]} " in done.out


LOADED = """
import atexit, sys
atexit.register(lambda: print(sorted({"torch", "transformers", "peft"} & set(sys.modules)), file=sys.stderr))
from imprint.cli import main
sys.exit(main())
"""


@pytest.mark.parametrize("arguments", ["--help", "show --help", "train --help", "config show", "chat --help"])
def test_these_load_no_torch(arguments, tiny, rows):
    given = [f"model={tiny}", f"data={rows}"] if arguments == "config show" else []
    command = [sys.executable, "-c", LOADED, *arguments.split(), *given]
    done = subprocess.run(command, capture_output=True, text=True, env=environment(), timeout=60)
    assert (done.returncode, done.stderr.strip()) == (0, "[]")


# ---- show


OWN = """{%- if messages[0].role == 'system' %}[{{ messages[0].content }}]
{% endif %}{% for m in messages if m.role != 'system' %}<|im_start|>{{ m.role }}
{{ m.content }}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""


@pytest.fixture
def bare(tiny, tmp_path):
    """A folder that holds a tokenizer.json, and nothing else."""
    folder = tmp_path / "bare"
    folder.mkdir()
    (folder / "tokenizer.json").write_bytes((tiny / "tokenizer.json").read_bytes())
    (tmp_path / "own.jinja").write_text(OWN)
    return folder


def test_show_needs_only_a_tokenizer(bare, rows, tmp_path, cli):
    done = cli("show", f"data={rows}", f"model={bare}", f"template={tmp_path / 'own.jinja'}", "--json")
    assert done.code == 0, done.err
    turns = [json.loads(line) for line in done.out.splitlines()]
    keys = {
        "source",
        "conversation",
        "turn",
        "prompt",
        "completion",
        "prompt_ids",
        "completion_ids",
        "weights",
    }
    assert all(keys <= turn.keys() for turn in turns)
    assert [(t["conversation"], t["turn"]) for t in turns] == [(i, 0) for i in range(8)] + [
        (i, j) for i in range(8, 16) for j in (0, 1)
    ]
    assert [turn["source"] for turn in turns[:2]] == [f"{rows}:1", f"{rows}:2"]
    assert turns[0]["completion"] == "It is red.<|im_end|>"
    assert turns[0]["weights"] == [1.0] * len(turns[0]["completion_ids"])


def test_shown_ids_are_those_of_a_server(bare, rows, tmp_path, cli):
    """transformers' own apply_chat_template is what servers use."""
    from transformers import PreTrainedTokenizerFast

    done = cli("show", f"data={rows}", f"model={bare}", f"template={tmp_path / 'own.jinja'}", "--json")
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(bare / "tokenizer.json"))
    tokenizer.chat_template = OWN
    turns = [json.loads(line) for line in done.out.splitlines()]
    for turn in turns:
        messages = ROWS[turn["conversation"]]["messages"]
        reply = [i for i, message in enumerate(messages) if message["role"] == "assistant"][turn["turn"]]
        served = tokenizer.apply_chat_template(messages[:reply], add_generation_prompt=True)["input_ids"]
        assert turn["prompt_ids"] == list(served)
        whole = tokenizer.apply_chat_template(messages[: reply + 1])["input_ids"]
        size = len(turn["prompt_ids"]) + len(turn["completion_ids"])
        assert turn["prompt_ids"] + turn["completion_ids"] == list(whole)[:size]
    assert len(turns) == 24


def test_shown_ids_are_those_that_are_trained(tiny, rows, tmp_path, cli, monkeypatch):
    import imprint.train.loop as loop

    seen = []
    original = loop.train_step

    def spy(state, rows):
        seen.extend(rows)
        return original(state, rows)

    monkeypatch.setattr(loop, "train_step", spy)
    given = settings(tiny, rows, tmp_path / "run", "validation=0", "epochs=1", "layout=packed")
    assert cli("train", *given).code == 0
    trained = []
    for row in seen:
        start = 0
        while start < row.num_tokens:
            stop = int(row.end[start])
            inside = (row.source >= start) & (row.source < stop)
            if not inside.any():  # what fills the row up
                break
            trained.append((row.tokens[start:stop].tolist(), row.target[inside].tolist()))
            start = stop
    shown = [
        json.loads(line)
        for line in cli("show", f"model={tiny}", f"data={rows}", "template=chatml", "--json").out.splitlines()
    ]
    expected = [((t["prompt_ids"] + t["completion_ids"])[:-1], t["completion_ids"]) for t in shown]
    assert sorted(trained) == sorted(expected)


def test_shown_texts_are_those_of_the_template(tiny, tmp_path, cli):
    """Also where a reply before is left out, and for tokenizers that do not give every text back."""
    messages = [
        {"role": "user", "content": " a "},
        {"role": "assistant", "content": "b", "weight": 0},
        {"role": "user", "content": "c"},
        {"role": "assistant", "content": "d "},
    ]
    write_rows(tmp_path / "two.jsonl", [{"messages": messages}])
    done = cli("show", f"model={tiny}", f"data={tmp_path / 'two.jsonl'}", "template=chatml", "--json")
    (row,) = map(json.loads, done.out.splitlines())
    assert (row["turn"], row["message"]) == (1, 3)
    assert row["completion"] == "d <|im_end|>"
    assert row["prompt"].endswith("b<|im_end|>\n<|im_start|>user\nc<|im_end|>\n<|im_start|>assistant\n")


def test_show_for_a_person(tiny, rows, cli):
    done = cli("show", f"model={tiny}", f"data={rows}", "template=chatml", "-n", "2")
    assert done.code == 0
    assert f"{rows}:2" in done.out.replace("\n", "")
    assert f"{rows}:3" not in done.out.replace("\n", "")
    assert "It is red.<|im_end|>" in done.out
    assert "What became of the data" in done.err


def test_show_counts_in_json_too(tiny, rows, cli):
    done = cli("show", f"model={tiny}", f"data={rows}", "template=chatml", "--json", "-n", "5")
    assert len(done.out.splitlines()) == 5


@pytest.mark.parametrize("as_json", [["--json"], ["-n", "1000"]])
def test_a_reader_that_leaves_is_no_failure(as_json, tiny, tmp_path):
    """`imprint show … | head -1`: the exit code of a shell's own tools, and not a word."""
    data = write_rows(tmp_path / "rows.jsonl", ROWS * 20)
    command = [
        sys.executable,
        "-m",
        "imprint.cli",
        "show",
        f"model={tiny}",
        f"data={data}",
        "template=chatml",
    ]
    quiet = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "env": environment()}
    with subprocess.Popen([*command, *as_json], **quiet) as running:
        assert running.stdout.readline()
        running.stdout.close()
        assert (running.stderr.read(), running.wait(60)) == ("", 141)


# ---- train


@pytest.mark.parametrize(("size", "said"), [(1, "of 1 conversation:"), (2, "of 2 conversations:")])
def test_the_plan_is_told_in_80_columns(size, said, tiny, rows, tmp_path, cli):
    given = ("max_steps=1", "validation=0", f"batch_size={size}")
    done = cli("train", *settings(tiny, rows, tmp_path / "run", *given))
    (plan,) = [line for line in done.err.splitlines() if line.startswith("plan")]
    assert f"1 step {said}" in plan
    assert len(plan) <= 80


def test_train_as_json(tiny, rows, tmp_path, cli):
    run = tmp_path / "run"
    done = cli("train", "--json", *settings(tiny, rows, run, "max_steps=2"))
    facts = json.loads(done.out)  # nothing else is on stdout
    assert facts["run"] == str(run)
    assert facts["model"] == str(run / "model")
    assert facts["reason"] == "all steps done"
    assert facts["best_step"] in (1, 2)
    assert facts["best_loss"] == min(e["loss"] for e in events_of(run, "validation") if e["step"])


def test_train_prints_the_run(tiny, rows, tmp_path, cli):
    done = cli("train", *settings(tiny, rows, tmp_path / "run", "max_steps=1"))
    assert done.out == f"{tmp_path / 'run'}\n"
    assert f"imprint chat {tmp_path / 'run'}" in done.err
    assert "What became of the data" in done.err


def test_train_with_a_recipe(tiny, rows, tmp_path, cli):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("\n".join(s.replace("=", ": ", 1) for s in settings(tiny, rows, tmp_path / "run")))
    assert cli("train", recipe, "max_steps=2").code == 0
    assert len(events_of(tmp_path / "run", "step")) == 2


def test_a_run_names_itself(tiny, rows, tmp_path, cli, monkeypatch):
    monkeypatch.chdir(tmp_path)
    given = [s for s in settings(tiny, rows, "x", "max_steps=1") if not s.startswith("output=")]
    assert cli("train", *given).out == "runs/tiny-rows\n"
    assert cli("train", *given).out == "runs/tiny-rows-2\n"


def test_the_recipe_of_a_run_makes_it_again(tiny, rows, tmp_path, cli):
    run, again = tmp_path / "run", tmp_path / "again"
    assert cli("train", *settings(tiny, rows, run, "max_steps=3", "method=lora")).code == 0
    assert cli("train", run / "recipe.yaml", f"output={again}").code == 0
    assert weights_of(run) == weights_of(again)


def test_two_runs_are_equal_and_another_seed_is_not(tiny, rows, tmp_path, cli):
    for name, seed in [("a", 1), ("b", 1), ("c", 2)]:
        assert cli("train", *settings(tiny, rows, tmp_path / name, "max_steps=3", f"seed={seed}")).code == 0
    assert weights_of(tmp_path / "a") == weights_of(tmp_path / "b") != weights_of(tmp_path / "c")


# ---- the other door


def test_from_python(tiny, rows, tmp_path):
    import imprint as package

    result = package.train(
        model=str(tiny), data=str(rows), output=str(tmp_path / "run"), template="chatml", threads=1,
        precision="float32", method="lora", lora={"rank": 2}, max_steps=2, samples=0, batch_size=4,
    )  # fmt: skip
    assert result.run == tmp_path / "run"
    assert (result.model / "adapter_model.safetensors").is_file()
    assert result.outcome.reason == "all steps done"
    with pytest.raises(package.UserError, match="exists already"):
        package.train(model=str(tiny), data=str(rows), output=str(tmp_path / "run"))
    with pytest.raises(package.UserError, match="learning_rate"):
        package.train(model=str(tiny), data=str(rows), learning_rat=1e-3)


def test_from_python_as_from_the_command(tiny, rows, tmp_path, cli):
    import imprint as package
    from imprint.settings import resolve

    given = settings(tiny, rows, tmp_path / "a", "max_steps=2")
    assert cli("train", *given).code == 0
    recipe = resolve(None, settings(tiny, rows, tmp_path / "b", "max_steps=2")).recipe
    package.train(recipe)
    assert weights_of(tmp_path / "a") == weights_of(tmp_path / "b")
    with pytest.raises(TypeError, match="not both"):
        package.train(recipe, seed=1)


# ---- what is kept


def test_the_served_folder_is_whole(tiny, rows, tmp_path, cli):
    """transformers alone loads it: weights, tokenizer, template, stops."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    run = tmp_path / "run"
    assert cli("train", *settings(tiny, rows, run, "max_steps=2")).code == 0
    model = AutoModelForCausalLM.from_pretrained(run / "model")
    tokenizer = AutoTokenizer.from_pretrained(run / "model")
    assert tokenizer.eos_token == "<|im_end|>"
    assert model.generation_config.eos_token_id == [3, 0]
    shown = cli("show", f"model={run / 'model'}", f"data={rows}", "--json").out.splitlines()
    before = cli("show", f"model={tiny}", f"data={rows}", "template=chatml", "--json").out.splitlines()
    assert shown == before  # the saved template is the one that was trained
    first = json.loads(shown[0])
    messages = ROWS[0]["messages"][:1]
    ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]
    assert np.array_equal(ids, first["prompt_ids"])


def test_the_model_of_a_run_can_be_trained_on(tiny, rows, tmp_path, cli):
    run = tmp_path / "run"
    assert cli("train", *settings(tiny, rows, run, "max_steps=2")).code == 0
    given = [
        s for s in settings(run / "model", rows, tmp_path / "next", "max_steps=1") if "template" not in s
    ]
    assert cli("train", *given).code == 0


def test_a_tokenizer_that_lacks_the_tokens_of_the_preset(tiny, rows, tmp_path, cli):
    """They are added, trained, saved, and said so; full and LoRA; and then served."""
    folder = without_chat_tokens(tiny, tmp_path / "plain")
    for method in ("full", "lora"):
        run = tmp_path / method
        given = settings(folder, rows, run, "max_steps=2", f"method={method}", "learning_rate=1e-2")
        done = cli("train", *given)
        assert done.code == 0, done.err
        (note,) = events_of(run, "note")
        assert "<|im_start|>, <|im_end|>" in note["text"]
        done = cli("chat", run, "--prompt", "What colour is grass?", "--max-tokens", "3")
        assert done.code == 0, done.err
        assert done.out.strip()


def test_chat_with_a_base_that_lacks_the_tokens_of_the_preset(tiny, tmp_path, cli):
    folder = without_chat_tokens(tiny, tmp_path / "plain")
    given = ("--template", "chatml", "--prompt", "Hello", "--max-tokens", "3")
    done = cli("chat", folder, *given)
    assert done.code == 0, done.err


def without_chat_tokens(tiny, folder):
    """The model, with a tokenizer that has the tokens of a plain base model alone."""
    import shutil

    from tokenizers import Tokenizer

    shutil.copytree(tiny, folder)
    spec = json.loads((tiny / "tokenizer.json").read_text())
    spec["added_tokens"] = [t for t in spec["added_tokens"] if not t["content"].startswith("<|im_")]
    for name in ("<|im_start|>", "<|im_end|>"):
        spec["model"]["vocab"][name.replace("|", "")] = spec["model"]["vocab"].pop(name)
    (folder / "tokenizer.json").write_text(json.dumps(spec))
    assert "<|im_end|>" not in Tokenizer.from_file(str(folder / "tokenizer.json")).get_vocab()
    return folder


# ---- chat


@pytest.fixture(scope="module")
def finished(tiny, rows, tmp_path_factory):
    from imprint.run import train
    from imprint.settings import resolve

    run = tmp_path_factory.mktemp("chat") / "run"
    train(resolve(None, settings(tiny, rows, run, "max_steps=3", "learning_rate=1e-2")).recipe)
    return run


def test_chat_through_a_pipe(finished):
    done = imprint("chat", finished, "--max-tokens", "4", stdin="What colour is snow?\n\n/new\nAnd coal?\n")
    assert done.code == 0, done.err
    once = imprint("chat", finished, "--max-tokens", "4", "--prompt", "What colour is snow?")
    assert done.out.startswith(once.out)
    assert "> " not in done.out  # no prompt is printed where nobody types


def test_chat_compares_with_the_base(finished, tiny, cli):
    given = ("--prompt", "What colour is grass?", "--max-tokens", "5")
    both = cli("chat", finished, "--compare", *given)
    tuned = cli("chat", finished, *given).out.rstrip("\n")
    base = cli("chat", tiny, "--template", "chatml", *given).out.rstrip("\n")
    assert tuned != base
    assert both.out == f"tuned  {tuned}\nbase  {base}\n"


def test_chat_compares_runs_alone(tiny, cli):
    done = cli("chat", tiny, "--template", "chatml", "--compare", "--prompt", "x")
    assert (done.code, "only a run or an adapter knows its base model" in done.err) == (2, True)


def test_chat_says_what_the_model_says(finished, cli):
    """The same ids through transformers' generate on the saved folder."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(finished / "model", dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(finished / "model")
    for system in ("", "Answer with one word."):
        messages = [{"role": "system", "content": system}] * bool(system)
        messages += [{"role": "user", "content": "What colour is grass?"}]
        ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt")
        out = model.generate(**ids, max_new_tokens=6, do_sample=False)[0, ids["input_ids"].shape[1] :]
        said = cli(
            "chat", finished, "--prompt", "What colour is grass?", "--system", system, "--max-tokens", "6"
        )
        assert said.out.rstrip("\n") == tokenizer.decode(out, skip_special_tokens=True).rstrip("\n")


def test_a_system_message_matters(finished, cli):
    from imprint.serve.chat import load_speaker

    seen = []
    speaker = load_speaker(finished)
    speaker.complete = lambda prompt, *_, **__: seen.append(speaker.rendering.encoder.decode(prompt)) or ""
    from imprint.serve.chat import Chat

    Chat([speaker], "Answer with one word.").ask("Why?", lambda *_: None)
    assert seen == [
        "<|im_start|>system\nAnswer with one word.<|im_end|>\n<|im_start|>user\nWhy?<|im_end|>\n"
        "<|im_start|>assistant\n"
    ]


def test_a_sampled_answer_repeats_with_its_seed(finished, cli):
    given = ("--prompt", "Hello", "--max-tokens", "12", "--temperature", "2")
    said = [cli("chat", finished, *given, "--seed", seed).out for seed in (1, 1, 2)]
    assert said[0] == said[1] != said[2]
    assert said[0] != cli("chat", finished, "--prompt", "Hello", "--max-tokens", "12").out


def test_a_prompt_beyond_the_context(finished, cli):
    done = cli("chat", finished, "--prompt", "word " * 200)
    assert "longer than the model's context" in done.out + done.err
    assert "Traceback" not in done.err


def test_data_that_is_not_there_is_not_made(tiny, tmp_path, cli):
    data = write_rows(tmp_path / "rows.jsonl", ROWS)
    cli("show", f"model={tiny}", f"data={data}", "template=chatml")
    assert [path.name for path in tmp_path.iterdir()] == ["rows.jsonl"]
