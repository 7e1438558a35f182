"""The 25 faults as a user meets them: the real command, and every word that it then says.

What each has to do stands in test_faults.py, with the tests that prove it. Here is what is told: where, found,
expected, fix; or, where a run goes on, what its account and its notes say. FOLDER is where the command runs:
of what was there before, not a byte is other afterwards.
"""

# ruff: noqa: E501 - messages stand here as they are printed

from __future__ import annotations

import json
import pickle
import re
import shutil
import signal
from collections import namedtuple
from pathlib import Path

import pytest

from conftest import ROWS, Ended, settings, tree, write_rows
from imprint.disk import is_valid

MORE = ("validation=0", "max_steps=2", "save_every=1", "rehearse=false")


def talk(*messages: tuple[str, object]) -> dict[str, object]:
    return {"messages": [{"role": role, "content": content} for role, content in messages]}


QUESTION, ANSWER = ("user", "Why?"), ("assistant", "So.")
GOOD = ROWS[0]
# name: (rows of data.jsonl, what is given to `imprint train`)
REFUSED: dict[str, tuple[list, tuple[str, ...]]] = {
    "5 a type that changes": (
        [GOOD, {"prompt": "q", "response": 7}, {"prompt": "q", "response": ["a"]}, GOOD], ()
    ),
    "8 an unknown role": ([GOOD, talk(QUESTION, ("asistant", "So."))], ()),
    "8 a misordered role": ([GOOD, talk(QUESTION, ("system", "Be brief."), ANSWER)], ()),
    "9 a prompt beyond the limit": ([GOOD, talk(("user", "word " * 600), ANSWER)], ("too_long=error",)),
    "9 no prompt within it": ([talk(("user", "word " * 600), ANSWER)], ()),
    "14 no template": ([GOOD], ("template=auto",)),
    "17 a misspelt option": ([GOOD], ("learning_rat=1e-3",)),
    "17 a conflicting option": ([GOOD], ("lora.rank=4",)),
    "18 a type": ([GOOD], ("precision=float8",)),
    "18 a device": ([GOOD], ("device=mps",)),
    "18 a kernel": ([GOOD], ("attention=flex",)),
}  # fmt: skip

# what is said of the data where training goes on
TOLD: dict[str, tuple[list, tuple[str, ...]]] = {
    "9 a prompt beyond the limit is left out": ([GOOD, talk(("user", "word " * 600), ANSWER)], ()),
    "10 a reply is cut": ([GOOD, talk(QUESTION, ("assistant", "word " * 600))], ("too_long=truncate",)),
    "11 duplicates": ([*ROWS, ROWS[2], ROWS[5]], ()),
    "11 few duplicates": ([*({"prompt": f"q{i}", "response": "a"} for i in range(150)), GOOD, GOOD], ()),
    "11 a validation row that is trained on": (ROWS, ("validation=held.jsonl",)),
    "13 control tokens": ([GOOD, talk(("user", "What is <|im_end|>?"), ANSWER)], ()),
    "13 control tokens are text": (
        [GOOD, talk(("user", "What is <|im_end|>?"), ANSWER)], ("control_tokens=escape",)
    ),
}  # fmt: skip


@pytest.fixture
def here(tmp_path, tiny, monkeypatch):
    """The current directory: a model, and data to be written."""
    shutil.copytree(tiny, tmp_path / "model")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("IMPRINT_CACHE", "off")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    return tmp_path


@pytest.fixture
def train(here, cli):
    """Runs `imprint train` on rows; the data and the model stay as they were."""

    def train(rows, *given: str) -> Ended:
        write_rows(here / "data.jsonl", rows)
        write_rows(here / "held.jsonl", ROWS[:3])
        keys = {argument.partition("=")[0] for argument in given}
        more = [argument for argument in MORE if argument.partition("=")[0] not in keys]
        before = tree(here)
        done = cli("train", *settings("model", "data.jsonl", "run", *more, *given))
        after = {name: content for name, content in tree(here).items() if name.split("/")[0] != "run"}
        assert {name: content for name, content in before.items() if name.split("/")[0] != "run"} == after
        assert "Traceback" not in done.err
        return done

    return train


def message(done: Ended, here: Path) -> str:
    """The error, whole, which is the last that is said."""
    assert done.err.count("\nerror ") + done.err.startswith("error ") == 1, done.err
    return plain(done.err[re.search("^error ", done.err, re.MULTILINE).start() :], here)


def account(done: Ended) -> str:
    """What is said of the turns, and all that is warned of, as the table and the lines below have it."""
    told = done.err[done.err.index("│ turns ") : done.err.index("\ndata  ")]
    cells = [
        [cell.strip() for cell in line.strip("│").split("│")] for line in told.splitlines() if line[0] == "│"
    ]
    below = [line for line in told.splitlines() if line[0] not in "│├└"]
    return "".join(line.rstrip(" |") + "\n" for line in [*(" | ".join(row) for row in cells), *below])


def plain(text: str, here: Path) -> str:
    return text.replace(str(here), "FOLDER")


REFUSALS: dict[str, str] = {
    "5 a type that changes": """\
error data.jsonl:2: a column is not a text
  found     response: 7, a number
            and 1 more:
            a message is not an object × 1 (data.jsonl:3)
  expected  a text
  to fix    write it in double quotes
            or train without the bad rows: bad_rows=leave_out
""",
    "8 an unknown role": """\
error data.jsonl:2: unknown role
  found     message 2: "asistant"
  expected  system, user, assistant, tool (also developer, human, prompter, gpt, model, bot, ai, chatgpt, bing, bard, function_call, tool_call, tool_calls, function, observation, function_response, tool_response, tool_result, ipython)
  to fix    write "assistant"
            or train without the bad rows: bad_rows=leave_out
""",
    "8 a misordered role": """\
error data.jsonl:2: a system message is not at the front
  found     message 2 is a system message
  expected  one system message or none, then user, assistant and tool messages
  to fix    move it to the front or remove it
            or train without the bad rows: bad_rows=leave_out
""",
    "9 a prompt beyond the limit": """\
error data.jsonl:2, message 1: a turn is longer than max_length
  found     1,813 tokens, of which 1,809 are its prompt
  expected  at most 128 tokens
  to fix    raise max_length, shorten the row, or too_long=leave_out (too_long=truncate cuts replies)
""",
    "9 no prompt within it": """\
error data.jsonl: 0 trainable rows: every reply was left out
  found     1 × none of its replies can be trained (data.jsonl:1)
            1 × its prompt alone fills max_length (data.jsonl:1)
            1,813 tokens, of which 1,809 are its prompt
  expected  at least one reply that the template renders and max_length has room for
  to fix    raise max_length, or shorten the row; or see what becomes of each row: give the same arguments to `imprint show`
""",
    "14 no template": """\
error the tokenizer has no chat template
  expected  a template that says how a conversation becomes text
  to fix    choose one: template=chatml (also llama2, llama3, mistral, gemma, vicuna, zephyr, alpaca, plain), or template=FILE.jinja
""",
    "17 a misspelt option": """\
error argument learning_rat=1e-3: `learning_rat` is not a setting
  to fix    write `learning_rate`
""",
    "17 a conflicting option": """\
error argument lora.rank=4: `lora.rank` has no meaning here: method is full, so there are no adapters
  found     lora.rank: 4
  to fix    set method to lora, or remove it
""",
    "18 a type": """\
error argument precision=float8: `precision` cannot be float8
  found     float8
  expected  auto, float32, bfloat16 or float16
  to fix    write `float32`
""",
    "18 a device": """\
error there is no mps device
  found     device: mps
  expected  a device of this machine: cpu
  to fix    set device to auto or cpu
""",
    "18 a kernel": """\
error attention=flex needs a CUDA device
  found     device: cpu
  expected  attention: auto, tiles or reference
  to fix    set attention to auto: it takes what is best on each device
""",
}

ACCOUNTS: dict[str, str] = {
    "9 a prompt beyond the limit is left out": """\
turns | 2
trained | 1
left out: its prompt alone | 1 | line 2
fills max_length
its prompt alone fills max_length: 1,813 tokens, of which 1,809 are its prompt;
to train it: raise max_length, or shorten the row
""",
    "10 a reply is cut": """\
turns | 2
trained | 2
warning: a reply is cut at | 1 | line 2
max_length; its stop is not
trained
""",
    "11 duplicates": """\
turns | 26
trained | 26
warning: a conversation | 2 | lines 17, 18
repeats an earlier one
a conversation repeats an earlier one: each is trained as often as it stands
there: keep one of each, or leave it if you mean it; `imprint data check` says
which repeats which
""",
    "11 few duplicates": """\
turns | 152
trained | 152
note: a conversation repeats | 1 | line 152
an earlier one
""",
    "11 a validation row that is trained on": """\
turns | 27
trained | 24
validated | 3
warning: a validation | 3 | held.jsonl:1, 2, 3
conversation is also trained
on
a validation conversation is also trained on: what was trained on says little of
what was learned: remove these rows from one of the two
""",
    "13 control tokens": """\
turns | 2
trained | 1
left out: control tokens | 1 | line 2
in its text
control tokens in its text: <|im_end|> in message 1 (user); to train it:
control_tokens=escape makes ordinary text of them
""",
    "13 control tokens are text": """\
turns | 2
trained | 2
warning: control tokens in | 1 | line 2
its text: escaped
""",
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name, here, train):
    rows, given = REFUSED[name]
    done = train(rows, *given)
    assert (done.code, done.out) == (2, "")
    assert not (here / "run").exists()
    assert message(done, here) == REFUSALS[name]


SOONEST = ("10 a reply is cut", "11 duplicates", "11 a validation row that is trained on")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in SOONEST else pytest.mark.slow) for name in TOLD]
)
def test_told(name, here, train):
    rows, given = TOLD[name]
    done = train(rows, *given)
    assert done.code == 0, done.err
    assert account(done) == ACCOUNTS[name]


def test_a_type_that_is_emulated_is_announced(here, train, monkeypatch):
    """18: it trains, slowly, and says so."""
    import imprint.auto

    monkeypatch.setattr("imprint.auto.detect_machine", lambda: imprint.auto.Machine(False, False, "", 1))
    done = train(ROWS, "precision=float16")
    assert done.code == 0, done.err
    assert [line for line in done.err.splitlines() if line.startswith("note  ")] == [
        "note  precision=float16 is emulated: this processor has neither amx_fp16 nor avx512_fp16; "
        "precision=float32 is faster here"
    ]


# ---- runs that begin, and models that are not what they seem


class Bomb:
    """Makes a file when it is unpickled."""

    def __reduce__(self):
        return (open, ("ran", "w"))


def an_id_beyond(here, monkeypatch):
    from tokenizers import AddedToken, Tokenizer

    tokenizer = Tokenizer.from_file(str(here / "model/tokenizer.json"))
    tokenizer.add_tokens([AddedToken("tomato", normalized=False)])
    tokenizer.save(str(here / "model/tokenizer.json"))


def little_disk(here, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**9, 10**9 - 2_000_000, 2_000_000))


def full_while_saving(here, monkeypatch):
    from imprint import disk
    from imprint.train import checkpoint

    save, calls = checkpoint.save_file, []

    def full(*given, **named):
        calls.append(given)
        if len(calls) >= 3:
            raise OSError(28, "No space left on device")
        return save(*given, **named)

    monkeypatch.setattr(disk, "PATIENCE", 0.1)
    monkeypatch.setattr(disk, "PAUSE", 0.05)
    monkeypatch.setattr(checkpoint, "save_file", full)


def no_memory(here, monkeypatch):
    from imprint.train import step

    def short(state, hand, *more):
        for _ in hand:
            raise MemoryError("planted")

    monkeypatch.setattr(step, "accumulate", short)


def pickled(here, monkeypatch):
    (here / "model/model.safetensors").unlink()
    (here / "model/pytorch_model.bin").write_bytes(pickle.dumps(Bomb()))


def remote_code(here, monkeypatch):
    config = json.loads((here / "model/config.json").read_text())
    config |= {
        "auto_map": {"AutoModelForCausalLM": "mine.Mine", "AutoConfig": "mine.Config"},
        "model_type": "mine",
    }
    (here / "model/config.json").write_text(json.dumps(config))
    (here / "model/mine.py").write_text("open('ran', 'w').close()\n")


def escaping_template(here, monkeypatch):
    (here / "t.jinja").write_text("{{ messages.__class__.__mro__ }}")


def nothing(here, monkeypatch):
    pass


# name: (what is done before, what is given, exit code)
BROKEN = {
    "16 an id beyond the embedding": (an_id_beyond, (), 2),
    "19 too little disk": (little_disk, ("rehearse=true",), 2),
    "19 a disk that is full while it saves": (full_while_saving, (), 1),
    "22 a loss that is not finite": (nothing, ("learning_rate=1e30",), 1),
    "23 memory that runs out": (no_memory, (), 1),
    "24 weights that are a pickle": (pickled, (), 2),
    "24 code of its own": (remote_code, (), 2),
    "24 a template that tries to escape": (escaping_template, ("template=t.jinja",), 2),
}
ENDS: dict[str, str] = {
    "16 an id beyond the embedding": """\
error data.jsonl:1: the tokenizer has a token that the model's embedding has not
  found     token 512, 'tomato'
  expected  ids below 512, the rows of the embedding in model
  to fix    use the tokenizer that belongs to this model
""",
    "19 too little disk": """\
error run: the disk has no room for this run
  found     2 MB free
  expected  2.85 MB, for 4 checkpoints at the most, the model and its exports
  to fix    free some space, choose another output=…, or train adapters: method=lora
""",
    "19 a disk that is full while it saves": """\
error run: the run cannot write its files
  found     [Errno 28] No space left on device
  expected  a disk with room for the model and for four checkpoints
  to fix    free some space, then go on from the last checkpoint: imprint resume run
""",
    "22 a loss that is not finite": """\
error data.jsonl:12, message 2; data.jsonl:12, message 4; data.jsonl:9, message 2; data.jsonl:9, message 4 and 2 more: the loss or its gradient is not finite at step 2
  found     loss nan, gradient norm nan
  expected  finite numbers; no weight was changed by this step
  to fix    look at these rows; imprint resume run on_nonfinite=skip leaves such updates out. Where it is not the rows, begin a new run with a lower learning_rate, or with precision=float32
""",
    "23 memory that runs out": """\
error data.jsonl:10, message 2; data.jsonl:10, message 4: memory ran out at step 1 in a row that cannot be made smaller
  found     92 tokens; planted
  expected  room for it: rows are as short as the longest turn allows, and activations are recomputed where the model can
  to fix    begin a new run with max_length=69 (longer turns are then left out), with method=lora, or with a smaller model
""",
    "24 weights that are a pickle": """\
error model=model: the model has no safetensors weights
  found     config.json, generation_config.json, pytorch_model.bin, tokenizer.json, tokenizer_config.json
  expected  model.safetensors, or its shards with model.safetensors.index.json
  to fix    convert the weights with transformers' save_pretrained; pickle files (.bin, .pt) can run code and are never read
""",
    "24 code of its own": """\
error model/config.json: this model wants to run its own Python code
  found     auto_map: {'AutoModelForCausalLM': 'mine.Mine', 'AutoConfig': 'mine.Config'}
  to fix    use an architecture that transformers knows, or read the code and set trust_remote_code=true (for a hub model with revision=COMMIT)
""",
    "24 a template that tries to escape": """\
error t.jinja: the chat template cannot render a question and its answer
  found     the template refuses it: access to attribute '__class__' of 'list' object is unsafe.
  to fix    choose another template: template=chatml, or a .jinja file
""",
    "21 while it reads": """\
error stopped by SIGTERM while the data was read and tokenised; nothing was begun
  to fix    give the same command again
""",
    "21 while it loads": """\
error stopped by SIGTERM while the model was loaded and checked; nothing was begun
  to fix    give the same command again
""",
    "21 while it trains": """\
error FOLDER/run: stopped by SIGTERM after step 1 of 2
  to fix    imprint resume FOLDER/run
""",
    "21 while it saves": """\
error FOLDER/run: stopped by SIGTERM after step 2 of 2
  to fix    imprint resume FOLDER/run
""",
    "21 while it ends": """\
error FOLDER/run: stopped by SIGTERM while the model was saved; every step is done and saved
  to fix    imprint resume FOLDER/run
""",
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken(name, here, cli, monkeypatch):
    arrange, given, code = BROKEN[name]
    write_rows(here / "data.jsonl", ROWS)
    arrange(here, monkeypatch)
    keys = {argument.partition("=")[0] for argument in given}
    more = [argument for argument in MORE if argument.partition("=")[0] not in keys]
    before = tree(here)
    done = cli("train", *settings("model", "data.jsonl", "run", *more, *given))
    assert done.code == code, done.err
    assert {name: content for name, content in tree(here).items() if name.split("/")[0] != "run"} == before
    assert all(is_valid(path) for path in (here / "run/checkpoints").glob("step-*"))
    assert not (here / "ran").exists()
    assert message(done, here) == ENDS[name]


# name: (before which call of which function, what is told)
SIGNALLED = {
    "21 while it reads": ("imprint.run.prepare", 1),
    "21 while it loads": ("imprint.build_model.load_model", 1),
    "21 while it trains": ("imprint.train.loop.train_step", 1),
    "21 while it saves": ("imprint.train.writer.write_checkpoint", 1),
    "21 while it ends": ("imprint.save._write", 1),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", SIGNALLED)
def test_signalled(name, here, start):
    write_rows(here / "data.jsonl", ROWS)
    function, call = SIGNALLED[name]
    given = settings(here / "model", here / "data.jsonl", here / "run", *MORE)
    done = start("train", *given, signal_before=(function, call, signal.SIGTERM)).wait()
    assert done.code == 130, done.err
    assert message(done, here) == ENDS[name]
