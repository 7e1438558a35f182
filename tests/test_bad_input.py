"""Whatever is wrong with the input: one clear message with place and remedy, and nothing is written."""

from __future__ import annotations

import json
import re
import shutil
from array import array

import pytest

from conftest import CONTEXT, ROWS, events_of, imprint, settings, tree, write_rows

GOOD = ROWS[0]


@pytest.fixture
def here(tmp_path, tiny, monkeypatch):
    """A folder with a model and good rows; the current directory."""
    shutil.copytree(tiny, tmp_path / "model")
    write_rows(tmp_path / "rows.jsonl", ROWS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("imprint.render.limits.SECONDS", 0.7)
    return tmp_path


@pytest.fixture
def refused(here, cli):
    """Trains with the given settings, which must end in one message, exit code 2, and nothing written."""

    def refused(*given: str, model="model", data="rows.jsonl", remedy="  to fix ") -> str:
        before = tree(here)
        done = cli("train", *settings(model, data, "run", "max_steps=1", *given))
        assert done.code == 2, done.err
        assert done.out == ""
        assert "Traceback" not in done.err
        lines = done.err.splitlines()
        errors = [i for i, line in enumerate(lines) if line.startswith("error ")]
        assert len(errors) == 1, done.err
        message = "\n".join(lines[errors[0] :])
        assert remedy in message, message
        assert tree(here) == before, "something was written"
        return message

    return refused


def turns(*messages: tuple[str, object]) -> dict[str, object]:
    return {"messages": [{"role": role, "content": content} for role, content in messages]}


# ---- rows


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ('{"messages": [', ["not"]),
        ({"question_text": "Why?", "gold": "So."}, ["columns", "question_text"]),
        ({"instruction": "Why?", "output": None}, ["the reply is empty", "null"]),
        ({"instruction": "Why?", "output": ""}, ["the reply is empty"]),
        ({"prompt": "", "response": "So."}, ["the prompt is empty"]),
        (turns(("user", "Why?"), ("assistant", None)), ["null"]),
        (turns(("user", "Why?"), ("assistant", "")), ["the reply is empty"]),
        (turns(("user", "Why?"), ("assistant", "So."), ("user", "And?")), ["ends with", "user"]),
        (turns(("user", "Why?")), ["reply"]),
        (turns(("user", "Why?"), ("asistant", "So.")), ["unknown role", "asistant", 'write "assistant"']),
        ({"messages": []}, ["empty"]),
        ("3", ["the row is not an object"]),
    ],
)
def test_a_bad_row_is_named_by_its_line(row, told, here, refused):
    text = row if isinstance(row, str) else json.dumps(row)
    (here / "bad.jsonl").write_text(f"{json.dumps(GOOD)}\n{text}\n{json.dumps(GOOD)}\n")
    message = refused(data="bad.jsonl")
    assert message.startswith("error bad.jsonl:2:"), message
    for part in told:
        assert part in message, message
    assert "bad_rows=leave_out" in message


def test_bad_rows_may_be_left_out(here, cli):
    (here / "bad.jsonl").write_text('{"messages": [\n' + "".join(json.dumps(row) + "\n" for row in ROWS))
    assert cli("train", *settings("model", "bad.jsonl", "run", "max_steps=1", "bad_rows=leave_out")).code == 0
    ledger = json.loads((here / "run/ledger.json").read_text())
    assert ledger["records"]["total"] == len(ROWS) + 1
    assert ledger["records"]["kept"]["used"] == len(ROWS)


def test_a_wrong_column_in_a_mapping(here, refused):
    write_rows(here / "qa.jsonl", [{"question_text": "Why?", "gold": "So."}])
    message = refused("data.0.fields.prompt=question_txt", "data.0.fields.response=gold", data="qa.jsonl")
    assert "qa.jsonl:1" in message
    assert "question_text" in message


def test_not_a_single_usable_row(here, refused):
    (here / "bad.jsonl").write_text("[1\n[2\n")
    message = refused("bad_rows=leave_out", data="bad.jsonl")
    assert "0 trainable rows" in message
    assert "bad.jsonl:1, bad.jsonl:2" in message


def test_no_reply_fits(here, refused):
    message = refused("max_length=5")
    assert "0 trainable rows" in message
    assert "its prompt alone fills max_length" in message
    assert "rows.jsonl:1" in message
    assert "imprint show" in message


def test_one_prompt_is_longer_than_the_limit(here, refused):
    write_rows(here / "long.jsonl", [GOOD, turns(("user", "word " * 4 * CONTEXT), ("assistant", "Yes."))])
    message = refused("too_long=error", data="long.jsonl")
    assert message.startswith("error long.jsonl:2")
    assert f"at most {CONTEXT} tokens" in message
    assert "too_long=leave_out" in message


def test_an_empty_file(here, refused):
    (here / "empty.jsonl").write_text("")
    assert "empty.jsonl" in refused(data="empty.jsonl")


def test_no_data_file(here, refused):
    message = refused(data="row.jsonl")
    assert "row.jsonl" in message
    assert "rows.jsonl" in message.split("to fix")[1]


def test_a_file_that_is_no_data(here, refused):
    (here / "rows.parquet").write_bytes(b"PAR1 nothing")
    assert "rows.parquet" in refused(data="rows.parquet")


# ---- settings and folders


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ("learning_rat=1e-3", "learning_rate"),
        ("lora.rnk=4", "lora.rank"),
        ("lr=1e-3", "learning_rate"),
        ("epochs=many", "number"),
        ("final=bset", "best"),
        ("betas=[0.9]", "cannot be [0.9]"),
        ("lora.rank=4", "method"),
        ("revision=main", "remove it"),
        ("device=mps", "device"),
        ("template=chatmi", "template=chatml"),
    ],
)
def test_a_setting(given, told, refused):
    message = refused(given)
    assert given.split("=")[0].split(".")[-1] in message
    assert told in message


def test_an_existing_run_folder(here, refused):
    (here / "run").mkdir()
    (here / "run/notes.txt").write_text("mine")
    assert "output=run: the run folder exists already" in refused()
    (here / "run/notes.txt").unlink()
    (here / "run").rmdir()
    (here / "run").write_text("a file of mine")
    assert "output=run" in refused()


def test_a_folder_that_only_looks_like_the_unfinished_one(here, cli):
    """What the run writes aside first must not remove somebody's own files."""
    (here / "run.partial").mkdir()
    (here / "run.partial/notes.txt").write_text("mine")
    cli("train", *settings("model", "rows.jsonl", "run", "max_steps=1"))
    assert (here / "run.partial/notes.txt").read_text() == "mine"


def test_no_model_folder(refused):
    message = refused(model="modle")
    assert "modle: there is no such model folder" in message


def test_a_folder_that_is_no_model(here, refused):
    (here / "empty").mkdir()
    message = refused(model="empty")
    assert "config.json" in message
    assert "an empty folder" in message


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "nothing.txt"])
def test_a_model_without_safetensors(name, here, refused):
    (here / "model/model.safetensors").rename(here / "model" / name)
    message = refused()
    assert "the model has no safetensors weights" in message
    assert name in message


def test_broken_weights(here, refused):
    file = here / "model/model.safetensors"
    file.write_bytes(file.read_bytes()[:1000])
    assert "the model cannot be loaded" in refused()


def test_a_config_that_is_no_json(here, refused):
    (here / "model/config.json").write_text("{")
    assert "model/config.json: config.json is not valid JSON" in refused(remedy="")


@pytest.mark.parametrize("verb", ["train", "plan"])
@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("model_type", "llamma", "`llamma` but Transformers does not recognize this architecture"),
        ("hidden_act", "silly", "'silly'"),
        ("hidden_size", "wide", "Field 'hidden_size' expected int, got str (value: 'wide')"),
        ("num_attention_heads", 7, "is not a multiple of the number of attention heads (7)"),
    ],
)
def test_a_config_that_transformers_does_not_know(key, value, told, verb, here, cli):
    config = json.loads((here / "model/config.json").read_text())
    (here / "model/config.json").write_text(json.dumps({**config, key: value}))
    done = cli(verb, *settings("model", "rows.jsonl", "run", "max_steps=1"))
    assert done.code == 2, done.err
    assert re.search("error model=model: the (model|tokenizer) cannot be loaded\n", done.err)
    assert told in done.err
    assert not (here / "run").exists()


def test_a_base_that_was_quantised_elsewhere(here, refused):
    """What transformers needs for it is not installed."""
    config = json.loads((here / "model/config.json").read_text())
    config["quantization_config"] = {"quant_method": "gptq", "bits": 4}
    (here / "model/config.json").write_text(json.dumps(config))
    assert "the model cannot be loaded" in refused()


def test_a_model_without_a_tokenizer(here, refused):
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (here / "model" / name).unlink()
    assert "the tokenizer cannot be loaded" in refused()


def test_remote_code_is_not_run(here, refused):
    config = json.loads((here / "model/config.json").read_text())
    config["auto_map"] = {"AutoModelForCausalLM": "modeling_mine.Mine", "AutoConfig": "modeling_mine.Config"}
    config["model_type"] = "mine"
    (here / "model/config.json").write_text(json.dumps(config))
    (here / "model/modeling_mine.py").write_text("open('ran', 'w').close()\n")
    assert "its own Python code" in refused()


def test_an_id_beyond_the_embedding(here, refused):
    from tokenizers import AddedToken, Tokenizer

    tokenizer = Tokenizer.from_file(str(here / "model/tokenizer.json"))
    tokenizer.add_tokens([AddedToken("tomato", normalized=False)])
    tokenizer.save(str(here / "model/tokenizer.json"))
    message = refused()
    assert "rows.jsonl:1" in message
    assert "'tomato'" in message
    assert "ids below 512" in message


def test_a_stop_beyond_the_embedding(here, refused):
    """No row holds it, but every reply would end with it."""
    from tokenizers import AddedToken, Tokenizer

    tokenizer = Tokenizer.from_file(str(here / "model/tokenizer.json"))
    tokenizer.add_special_tokens([AddedToken("<|stop|>", normalized=False, special=True)])
    tokenizer.save(str(here / "model/tokenizer.json"))
    (here / "t.jinja").write_text("{% for m in messages %}{{ m.role }}: {{ m.content }}<|stop|>\n{% endfor %}"
                                  "{% if add_generation_prompt %}assistant: {% endif %}")  # fmt: skip
    assert "embedding" in refused("template=t.jinja")


# ---- templates


def test_no_template(here, refused):
    message = refused("template=auto")
    assert "the tokenizer has no chat template" in message
    assert "template=chatml" in message


@pytest.mark.parametrize(
    ("template", "told"),
    [
        ("{% for %}", "not valid Jinja"),
        ("{{ raise_exception('no thanks') }}", "no thanks"),
        ("{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}", "in time"),
        ("{% for i in range(99999) %}{% for j in range(99999) %}{{ 'word' * 99 }}{% endfor %}{% endfor %}", ""),
        ("{{ 'x' * 99999999 }}", "more than 10,000,000 characters"),
        ("{{ messages.__class__.__mro__ }}", ""),
        ("a fixed text", "does not show the reply"),
        ("{% for m in messages %}{{ m.content.upper() }}{% endfor %}", "does not show the reply"),
    ],
)  # fmt: skip
def test_a_broken_template(template, told, here, refused):
    (here / "t.jinja").write_text(template)
    message = refused("template=t.jinja")
    assert "t.jinja" in message
    assert told in message
    assert "template=chatml" in message


REPLACES = """{% for m in messages %}<|im_start|>{{ m.role }}
{{ m.content | replace('It is', 'It was') }}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""


def test_a_template_that_changes_every_reply(here, refused):
    (here / "t.jinja").write_text(REPLACES)
    write_rows(here / "changed.jsonl", ROWS[:8])
    message = refused("template=t.jinja", data="changed.jsonl")
    assert "the template changes the reply's text" in message
    assert "changed.jsonl:1" in message


def test_a_template_that_changes_some_replies(here, cli):
    (here / "t.jinja").write_text(REPLACES)
    done = cli("train", *settings("model", "rows.jsonl", "run", "max_steps=1", "template=t.jinja"))
    assert done.code == 0, done.err
    left = json.loads((here / "run/ledger.json").read_text())["turns"]["left"]
    assert left["the template changes the reply's text"]["count"] == 8


# ---- no fault


@pytest.mark.parametrize("names", [{"pad_token": "<|endoftext|>"}, {"pad_token": "<|im_end|>"}])
def test_a_pad_that_is_the_end_trains_the_stop(names, here, cli):
    """Elsewhere, masking the pads masks the stop too. Here nothing is compared by id."""
    path = here / "model/tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | names | {"eos_token": names["pad_token"]}))
    (here / "t.jinja").write_text(
        "{% for m in messages %}{{ m.role }}: {{ m.content }}{% if m.role == 'assistant' %}{{ eos_token }}"
        "{% endif %}\n{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"
    )
    shown = cli("show", "model=model", "data=rows.jsonl", "template=t.jinja", "--json")
    for turn in map(json.loads, shown.out.splitlines()):
        assert turn["completion"].endswith(names["pad_token"])
        assert turn["weights"] == [1.0] * len(turn["completion_ids"])
    given = ("max_steps=2", "template=t.jinja", "validation=0", "batch_size=16")
    assert cli("train", *settings("model", "rows.jsonl", "run", *given)).code == 0
    total = sum(len(turn["completion_ids"]) for turn in map(json.loads, shown.out.splitlines()))
    assert [event["trained_tokens"] for event in events_of(here / "run", "step")] == [total, total]


# ---- as a user sees it


def test_in_a_process_of_its_own(here):
    (here / "bad.jsonl").write_text('{"messages": [\n')
    before = tree(here)
    done = imprint("train", *settings(here / "model", here / "bad.jsonl", here / "run"))
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith(f"error {here}/bad.jsonl:1:")
    assert "Traceback" not in done.err
    assert tree(here) == before


@pytest.mark.parametrize("verb", ["chat", "resume"])
def test_other_verbs_refuse_what_is_nothing(verb, here, cli):
    before = tree(here)
    for name in ("nothing", "rows.jsonl"):
        done = cli(verb, name, *(["--prompt", "x"] if verb == "chat" else []))
        assert done.code == 2, done.err
        assert done.err.startswith("error ")
        assert name in done.err
    assert tree(here) == before


def test_chat_refuses_remote_code_and_pickles(here, cli):
    shutil.copytree(here / "model", here / "pickle")
    (here / "pickle/model.safetensors").rename(here / "pickle/pytorch_model.bin")
    done = cli("chat", "pickle", "--prompt", "x", "--template", "chatml")
    assert (done.code, "no safetensors weights" in done.err) == (2, True)
    config = json.loads((here / "model/config.json").read_text())
    (here / "model/config.json").write_text(json.dumps(config | {"auto_map": {"AutoConfig": "x.Y"}}))
    done = cli("chat", "model", "--prompt", "x", "--template", "chatml")
    assert (done.code, "its own Python code" in done.err) == (2, True)


def test_chat_with_a_run_that_was_stopped(here, start, cli):
    import signal

    arguments = settings("model", "rows.jsonl", here / "run")
    kill = ("imprint.train.loop.train_step", 2, signal.SIGKILL)
    assert start("train", *arguments, signal_before=kill).wait().code == -signal.SIGKILL
    done = cli("chat", here / "run", "--prompt", "x")
    assert done.code == 2
    assert f"imprint resume {here / 'run'}" in done.err


# ---- what a second look found


LONG = {"prompt": "x " * 600, "response": "So."}


def test_a_validation_file_with_nothing_to_validate(here, refused):
    write_rows(here / "long.jsonl", [LONG])
    told = refused("validation=long.jsonl")
    assert "0 validation rows" in told
    assert "max_length" in told


def test_a_validation_share_with_nothing_left_is_said(here, cli, monkeypatch):
    """The share is there, its replies are too long: the run says that it validates nothing, and ends."""
    everything = array("q", range(len(ROWS) + 1))
    monkeypatch.setattr("imprint.data.load.split", lambda hashes, share: (everything[:-1], everything[-1:]))
    write_rows(here / "some.jsonl", [*ROWS, LONG])
    done = cli("train", *settings("model", "some.jsonl", "run", "max_steps=1", "validation=0.1", "samples=2"))
    assert done.code == 0, done.err
    assert "nothing is validated" in " ".join(done.err.replace("│", " ").split())
    assert not events_of(here / "run", "validation")


@pytest.mark.parametrize("too_long", ["leave_out", "truncate"])
def test_a_length_beyond_the_context(too_long, here, refused):
    told = refused(f"max_length={CONTEXT + 1}", f"too_long={too_long}")
    assert f"max_length={CONTEXT}" in told


@pytest.mark.parametrize("output", ["rows.jsonl/run", "/proc/nowhere/run"])
def test_an_output_that_cannot_be_made(output, here, cli):
    before = tree(here)
    done = cli("train", *settings("model", "rows.jsonl", output, "max_steps=1"))
    assert done.code == 2, done.err
    assert "cannot be made" in done.err
    assert tree(here) == before


def test_a_full_disk_ends_a_run_with_its_last_checkpoint_valid(here, cli, monkeypatch):
    """The third checkpoint finds no room: exit code 1, how to go on, and going on gives the same model."""
    import imprint.disk as disk
    import imprint.train.checkpoint as checkpoint

    monkeypatch.setattr(disk, "PATIENCE", 0.2)
    monkeypatch.setattr(disk, "PAUSE", 0.05)
    arguments = ["max_steps=4", "save_every=1", "validation=0"]
    assert cli("train", *settings("model", "rows.jsonl", "whole", *arguments)).code == 0
    save, calls = checkpoint.save_file, []

    def full(*given, **named):
        calls.append(given)
        if len(calls) >= 5:
            raise OSError(28, "No space left on device")
        return save(*given, **named)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save_file", full)
        done = cli("train", *settings("model", "rows.jsonl", "run", *arguments))
    assert len(calls) > 6, "it was tried again"
    assert done.code == 1, done.err
    assert "No space left" in done.err
    assert "imprint resume run" in done.err
    assert cli("resume", "run").code == 0
    assert tree(here / "run" / "model") == tree(here / "whole" / "model")
