"""Nothing is lost: a run that is killed at any instant ends as if it had not been, to the byte.

The kills are real: SIGKILL ends a process of its own. Most happen at an exact instant, before the
n-th call of a function; some come from outside, when something appears in the run folder.
"""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import signal
from pathlib import Path

import pytest

from conftest import (
    ROWS,
    SOURCE,
    events_of,
    imprint,
    losses,
    settings,
    tree,
    weights_of,
    write_rows,
)

# 9 steps, saved after 2, 4, 6, 8, 9, and after 3, 6, 9 where the validation is the best so far
STEPS = ("max_steps=9", "validation=0.2", "validate_every=3", "save_every=2")
SAMPLED = (*STEPS, "samples=2", "sample_tokens=4", "learning_rate=1e-2")
VARIANTS = {
    "full": SAMPLED,
    "lora": (*SAMPLED, "method=lora", "lora.rank=4"),
    "dropout": (*SAMPLED, "dropout=0.2", "method=lora", "lora.dropout=0.3", "lora.rank=4"),
    "last": (*SAMPLED, "final=last"),
}
KILL = signal.SIGKILL
STEP = "imprint.train.loop.train_step"
SHARED = SOURCE.parents[1] / "shared" / "data"


def same(run: Path, reference: Path) -> None:
    """The run ended as the reference did: bytes, losses, samples; and nothing is told twice."""
    assert tree(run / "model") == tree(reference / "model")
    for kind in ("step", "validation"):
        told = [[(e["step"], e["loss"]) for e in events_of(folder, kind)] for folder in (run, reference)]
        assert told[0] == told[1], kind
    for kind in ("start", "end", "note"):
        assert len(events_of(run, kind)) == len(events_of(reference, kind)), kind
    saved = [event["step"] for event in events_of(run, "checkpoint")]
    assert len(saved) == len(set(saved))
    said = [
        [
            (s["step"], s["prompt"], s["reply"])
            for s in map(json.loads, (folder / "samples.jsonl").read_text().splitlines())
        ]
        for folder in (run, reference)
    ]
    assert said[0] == said[1]
    assert counted(run) == counted(reference)
    assert (run / "report.html").stat().st_size > 1000
    assert not [path for path in run.rglob("*") if path.suffix in (".partial", ".new")]


def counted(run: Path) -> dict[str, float]:
    """The counters of the last checkpoint, but the time that it took."""
    (last,) = sorted((run / "checkpoints").glob("step-*9"))
    counters = json.loads((last / "state.json").read_text())["counters"]
    return {key: value for key, value in counters.items() if key != "seconds"}


@pytest.fixture(scope="module")
def references(tmp_path_factory, tiny, rows):
    """Uninterrupted runs, each made once."""
    from imprint.run import train
    from imprint.settings import resolve

    folder = tmp_path_factory.mktemp("references")

    def reference(variant: str) -> Path:
        if not (folder / variant).exists():
            arguments = settings(tiny, rows, folder / variant, *VARIANTS[variant])
            train(resolve(None, arguments).recipe)
        return folder / variant

    return reference


# ---- killed


@pytest.mark.parametrize(
    ("variant", "function", "call"),
    [
        ("full", "imprint.run.run_loop", 1),  # the folder is there, and nothing else
        ("full", STEP, 2),  # before the first checkpoint
        ("full", STEP, 6),  # between checkpoints
        ("full", "imprint.train.checkpoint.save_file", 4),  # the weights are written, the optimizer is not
        ("full", "os.replace", 5),  # all is written, and has no name yet
        ("full", "imprint.train.checkpoint.remove", 1),  # saved, and the older ones still there
        ("full", "shutil.rmtree", 1),  # an older one has lost its manifest, and is there
        ("full", "imprint.ending.save_model", 1),  # all steps done
        ("full", "imprint.save.seal", 1),  # the model is written, and has no name yet
        ("lora", STEP, 6),
        ("lora", "imprint.save.seal", 1),
        ("dropout", STEP, 6),
        ("last", STEP, 8),
    ],
)
def test_killed_and_resumed_is_uninterrupted(
    variant, function, call, references, tiny, rows, tmp_path, start, cli
):
    run = tmp_path / "run"
    arguments = settings(tiny, rows, run, *VARIANTS[variant])
    assert start("train", *arguments, signal_before=(function, call, KILL)).wait().code == -KILL
    assert not (run / "model").exists()
    done = cli("resume", run)
    assert done.code == 0, done.err
    same(run, references(variant))


def test_killed_three_times(references, tiny, rows, tmp_path, start, cli):
    run = tmp_path / "run"
    arguments = settings(tiny, rows, run, *VARIANTS["full"])
    assert start("train", *arguments, signal_before=(STEP, 4, KILL)).wait().code == -KILL
    assert start("resume", run, signal_before=(STEP, 2, KILL)).wait().code == -KILL  # from 3: after 4
    assert start("resume", run, signal_before=("imprint.track.events.rewind", 1, KILL)).wait().code == -KILL
    assert cli("resume", run).code == 0
    first, second = [event["step"] for event in events_of(run, "resume")]
    assert first in (2, 3)  # the one of step 3 was being written, or done
    assert second in (first, first + 1)
    same(run, references("full"))


def test_killed_when_a_save_appears(tiny, rows, tmp_path, start, cli):
    """From outside, at whatever instant it is then: twenty saves, and the kill lands in one of them."""
    given = ("max_steps=20", "save_every=1", "validation=0", "batch_size=8", "learning_rate=1e-2")
    run, whole = tmp_path / "run", tmp_path / "whole"
    assert cli("train", *settings(tiny, rows, whole, *given)).code == 0
    running = start("train", *settings(tiny, rows, run, *given))
    saves = run / "checkpoints"
    done = running.signal_when(lambda: saves.exists() and any(saves.glob("*.partial")), KILL)
    assert done.code == -KILL
    assert cli("resume", run).code == 0
    assert weights_of(run) == weights_of(whole)
    assert losses(run) == losses(whole)


def test_the_command_itself(references, tiny, rows, tmp_path, start):
    """Resumed as a user resumes: `python -m imprint.cli resume RUN` in a new interpreter."""
    run = tmp_path / "run"
    arguments = settings(tiny, rows, run, *VARIANTS["full"])
    assert start("train", *arguments, signal_before=(STEP, 6, KILL)).wait().code == -KILL
    done = imprint("resume", run, "--json")
    assert done.code == 0, done.err
    assert json.loads(done.out)["model"] == str(run / "model")
    same(run, references("full"))


def test_another_folder_resumes_too(references, tiny, rows, tmp_path, start, cli, monkeypatch):
    """The recipe that a run keeps names its files so that they are found from anywhere."""
    monkeypatch.chdir(tiny.parent)
    shutil.copy(rows, tmp_path / "rows.jsonl")
    run = tmp_path / "run"
    monkeypatch.chdir(tmp_path)
    given = settings(tiny, "rows.jsonl", "run", *VARIANTS["full"])
    assert start("train", *given, signal_before=(STEP, 6, KILL)).wait().code == -KILL
    monkeypatch.chdir("/")
    done = cli("resume", run)
    assert done.code == 0, done.err
    same(run, references("full"))


# ---- interrupted


@pytest.mark.parametrize(
    ("number", "variant", "call"),
    [(signal.SIGINT, "full", 5), (signal.SIGTERM, "lora", 5), (signal.SIGTERM, "dropout", 1)],
)
def test_a_stopped_run_saves_and_says_how_to_go_on(
    number, variant, call, references, tiny, rows, tmp_path, start, cli
):
    run = tmp_path / "run"
    arguments = settings(tiny, rows, run, *VARIANTS[variant])
    done = start("train", *arguments, signal_before=(STEP, call, number)).wait()
    assert done.code == 130
    name = {signal.SIGINT: "Ctrl-C", signal.SIGTERM: "SIGTERM"}[number]
    assert f"stopped by {name} after step {call} of 9" in done.err
    assert f"imprint resume {run}" in done.err
    assert "Traceback" not in done.err
    assert (run / "checkpoints" / f"step-{call:06d}" / "manifest.json").is_file()  # not a step is lost
    assert [event["step"] for event in events_of(run, "interrupted")] == [call]
    assert (run / "report.html").is_file()
    assert cli("resume", run).code == 0
    assert [event["step"] for event in events_of(run, "resume")] == [call]
    same(run, references(variant))


@pytest.mark.parametrize("where", ["imprint.train.loop.evaluate", "imprint.run.answer"])
def test_ctrl_c_before_the_first_step(where, references, tiny, rows, tmp_path, start, cli):
    run = tmp_path / "run"
    arguments = settings(tiny, rows, run, *VARIANTS["full"])
    done = start("train", *arguments, signal_before=(where, 1, signal.SIGINT)).wait()
    assert done.code == 130
    assert "Traceback" not in done.err
    assert cli("resume", run).code == 0
    same(run, references("full"))


def test_ctrl_c_in_the_last_step_leaves_the_model_to_resume(references, tiny, rows, tmp_path, start, cli):
    run = tmp_path / "run"
    arguments = settings(tiny, rows, run, *VARIANTS["full"])
    assert start("train", *arguments, signal_before=(STEP, 9, signal.SIGINT)).wait().code == 130
    assert not (run / "model").exists()
    assert cli("resume", run).code == 0
    same(run, references("full"))


# ---- damaged


def flip(path: Path) -> None:
    """Change one byte in the middle of the tensors."""
    content = bytearray(path.read_bytes())
    content[-len(content) // 3] ^= 1
    path.write_bytes(content)


def stopped_after_8(tiny: Path, rows: Path, run: Path, start, *given: str) -> list[int]:
    """A run stopped after its eighth step; the steps of its checkpoints."""
    arguments = settings(tiny, rows, run, *VARIANTS["full"], *given)
    assert start("train", *arguments, signal_before=(STEP, 8, signal.SIGTERM)).wait().code == 130
    return sorted(int(path.name[5:]) for path in (run / "checkpoints").iterdir())


@pytest.mark.parametrize(
    ("damage", "begins"),
    [
        (lambda saves: flip(saves / "step-000008/weights.safetensors"), 6),
        (lambda saves: flip(saves / "step-000008/optimizer.safetensors"), 6),
        (lambda saves: (saves / "step-000008/optimizer.safetensors").unlink(), 6),
        (lambda saves: (saves / "step-000008/manifest.json").write_text("{"), 6),
        (lambda saves: (saves / "step-000008/state.json").write_text("{}"), 6),
    ],
    ids=["weights", "optimizer", "missing", "manifest", "state"],
)
def test_a_damaged_checkpoint_is_passed_over(damage, begins, references, tiny, rows, tmp_path, start, cli):
    run = tmp_path / "run"
    assert stopped_after_8(tiny, rows, run, start) == [3, 6, 8]  # the best before, the best, and the last
    damage(run / "checkpoints")
    assert cli("resume", run).code == 0
    assert [event["step"] for event in events_of(run, "resume")] == [begins]
    same(run, references("full"))


NONE_VERIFIES = """\
error {run}/checkpoints: none of this run's checkpoints verifies
  found     step-000008: weights.safetensors is damaged: it has another hash
            step-000006: weights.safetensors is damaged: it has another hash
            step-000003: weights.safetensors is damaged: it has another hash
  expected  one that is as it was written
  to fix    put a copy of one back; or train again from the first step, to the same bytes: \
imprint resume {run} --force-changed checkpoints
"""


def test_where_none_verifies_the_owner_is_asked(references, tiny, rows, tmp_path, start, cli):
    """To lose all that was paid for is nothing to be found out a week later."""
    run = tmp_path / "run"
    stopped_after_8(tiny, rows, run, start)
    for file in (run / "checkpoints").glob("*/weights.safetensors"):
        flip(file)
    before = tree(run)
    done = cli("resume", run)
    assert done.code == 2, done.err
    assert done.err[done.err.index("error ") :] == NONE_VERIFIES.format(run=run)
    assert tree(run) == before
    done = cli("resume", run, "--force-changed", "checkpoints")
    assert done.code == 0, done.err
    assert "begun again at the first step" in done.err
    same(run, references("full"))


def test_where_all_are_gone_the_owner_is_asked(references, tiny, rows, tmp_path, start, cli):
    """A disk that is not mounted is no reason to begin a week's run again, and to forget what its log says."""
    run = tmp_path / "run"
    stopped_after_8(tiny, rows, run, start)
    shutil.rmtree(run / "checkpoints")
    before = tree(run)
    done = cli("resume", run)
    assert done.code == 2, done.err
    assert f"error {run}/checkpoints: this run's checkpoints are gone\n" in done.err
    assert "found     none; by the log, the last was made after step 8\n" in done.err
    assert tree(run) == before
    (run / "checkpoints").symlink_to(tmp_path / "unmounted")
    assert f"found     a link to {tmp_path / 'unmounted'}, which is not there; by" in cli("resume", run).err
    (run / "checkpoints").unlink()
    done = cli("resume", run, "--force-changed", "checkpoints")
    assert done.code == 0, done.err
    assert [event["step"] for event in events_of(run, "resume")] == [0]
    same(run, references("full"))


def test_checkpoints_that_lie_elsewhere(references, tiny, rows, tmp_path, start, cli):
    """Moved to a larger disk and linked to: they are read, and only the links are ever removed."""
    run, elsewhere = tmp_path / "run", tmp_path / "elsewhere"
    stopped_after_8(tiny, rows, run, start)
    elsewhere.mkdir()
    for path in (run / "checkpoints").glob("step-*"):
        shutil.move(path, elsewhere)
        path.symlink_to(elsewhere / path.name)
    before = tree(elsewhere)
    done = cli("resume", run)
    assert done.code == 0, done.err
    assert [event["step"] for event in events_of(run, "resume")] == [8]
    assert not (run / "checkpoints" / "step-000003").is_symlink()
    assert tree(elsewhere) == before
    same(run, references("full"))


def test_a_damaged_best_checkpoint_is_never_served(tiny, rows, tmp_path, start, cli):
    """Its weights would become the model: without them, the run goes back to before they were made."""
    run, whole = tmp_path / "run", tmp_path / "whole"
    given = "min_improvement=99"  # only the first validation counts: the best is step 3
    assert cli("train", *settings(tiny, rows, whole, *VARIANTS["full"], given)).code == 0
    assert events_of(whole, "end")[0]["model_step"] == 3
    assert stopped_after_8(tiny, rows, run, start, given) == [2, 3, 8]
    flip(run / "checkpoints/step-000003/weights.safetensors")
    done = cli("resume", run)
    assert done.code == 0, done.err
    assert [event["step"] for event in events_of(run, "resume")] == [2]
    same(run, whole)


def test_the_newest_is_the_best_and_damaged(references, tiny, rows, tmp_path, start, cli):
    """The best one before it was kept for this: the run does not begin anew."""
    run = tmp_path / "run"
    arguments = settings(tiny, rows, run, *VARIANTS["full"])
    assert start("train", *arguments, signal_before=(STEP, 6, signal.SIGTERM)).wait().code == 130
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == ["step-000003", "step-000006"]
    flip(run / "checkpoints/step-000006/weights.safetensors")
    done = cli("resume", run)
    assert done.code == 0, done.err
    assert "passed over step-000006: weights.safetensors is damaged" in done.err
    assert [event["step"] for event in events_of(run, "resume")] == [3]
    same(run, references("full"))


# ---- refused


def change(path: Path, old: str, new: str) -> None:
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new, 1), encoding="utf-8")


@pytest.mark.parametrize(
    ("changed", "name"),
    [
        (lambda here: change(here / "rows.jsonl", "red", "rot"), "the data"),
        (lambda here: change(here / "chat.jinja", "{%", "{#- another -#}{%"), "the template"),
        (lambda here: flip(here / "model/model.safetensors"), "the model"),
        (lambda here: change(here / "model/config.json", '"rms_norm_eps": 1e-06', '"rms_norm_eps": 1e-05'),
         "the model"),
    ],
)  # fmt: skip
def test_what_changed_is_not_resumed(changed, name, tiny, tmp_path, start, cli):
    here = tmp_path / "here"
    shutil.copytree(tiny, here / "model")
    write_rows(here / "rows.jsonl", ROWS)
    preset = SOURCE / "imprint" / "render" / "presets" / "chatml.jinja"
    shutil.copy(preset, here / "chat.jinja")
    run = here / "run"
    arguments = settings(here / "model", here / "rows.jsonl", run, f"template={here / 'chat.jinja'}", *STEPS)
    assert start("train", *arguments, signal_before=(STEP, 4, KILL)).wait().code == -KILL
    before = tree(run)
    changed(here)
    done = cli("resume", run)
    assert done.code == 2
    assert f"{name} changed since this run began" in done.err
    assert "to fix" in done.err
    assert tree(run) == before


def test_a_finished_run_is_not_resumed(references, cli):
    before = tree(references("full"))
    done = cli("resume", references("full"))
    assert done.code == 2
    assert "this run is finished" in done.err
    assert f"imprint chat {references('full')}" in done.err
    assert f"model={references('full') / 'model'}" in done.err
    assert tree(references("full")) == before


def test_a_finished_lora_run_is_no_model_to_begin_with(references, rows, tmp_path, tiny, cli):
    run = references("lora")
    done = cli("resume", run)
    assert f"imprint chat {run}" in done.err
    assert "begin a new run" not in done.err
    refused = cli("train", *settings(run / "model", rows, tmp_path / "next"))
    assert refused.code == 2
    assert "this is a LoRA adapter" in refused.err
    assert f"model={tiny}" in refused.err


@pytest.mark.parametrize("name", ["nothing", "tiny"])
def test_what_is_no_run_is_not_resumed(name, tiny, cli):
    before = tree(tiny)
    done = cli("resume", tiny.parent / name)
    assert done.code == 2
    assert "not a run folder" in done.err
    assert tree(tiny) == before


def test_a_run_that_may_not_be_written_is_refused(tiny, rows, tmp_path, start, cli, monkeypatch):
    """Another user's, or on a disk that is read only (mode bits alone do not hinder root)."""
    run, whole = tmp_path / "run", Path.open
    stopped_after_8(tiny, rows, run, start)

    def forbidden(path, mode="r", *rest, **options):
        if path == run / "run.json" and "+" in mode:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return whole(path, mode, *rest, **options)

    monkeypatch.setattr(Path, "open", forbidden)
    done = cli("resume", run)
    assert done.code == 1, done.err
    assert f"error {run}: the run cannot read or write its files\n" in done.err
    assert f"Permission denied: '{run}/run.json'" in done.err
    assert "  to fix " in done.err


def test_a_damaged_file_beside_the_checkpoints_is_named(references, tiny, rows, tmp_path, start, cli):
    run = tmp_path / "run"
    stopped_after_8(tiny, rows, run, start)
    facts = (run / "run.json").read_text()
    for name, text in (("run.json", ""), ("run.json", facts[:200]), ("run.json", "[]"), ("run.json", "{}"),
                       ("checkpoints/rows.json", "{"), ("checkpoints/rows.json", "[1]")):  # fmt: skip
        (run / name).write_text(text)
        done = cli("resume", run)
        assert done.code == 2, done.err
        message = done.err[done.err.index("error ") :]
        assert message.startswith(f"error {run / name}: ")
        assert re.search(r"(cannot be read|is damaged)\n  found     ", message)
        assert "  to fix    put a copy " in message
        (run / "run.json").write_text(facts)
    (run / "checkpoints/rows.json").unlink()
    assert cli("resume", run).code == 0
    same(run, references("full"))


# ---- the figure


@pytest.fixture(scope="module")
def twenty_million(tmp_path_factory):
    """A Llama of 20 M parameters with the GPT-NeoX tokenizer, which has no config of its own."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    if not SHARED.is_dir():
        pytest.skip("the shared data is not on this machine")
    folder = tmp_path_factory.mktemp("models") / "twenty"
    config = LlamaConfig(
        vocab_size=50304, hidden_size=256, intermediate_size=704, num_hidden_layers=8, num_attention_heads=8,
        max_position_embeddings=1024, tie_word_embeddings=True, bos_token_id=None, eos_token_id=0,
        pad_token_id=None,
    )  # fmt: skip
    torch.manual_seed(0)
    model = LlamaForCausalLM(config)
    assert 18e6 < sum(parameter.numel() for parameter in model.parameters()) < 22e6
    model.save_pretrained(folder)
    shutil.copy(SHARED / "tokenizers" / "gpt_neox_20b" / "tokenizer.json", folder)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["full", "lora"])
def test_gsm8k_killed_and_resumed(variant, twenty_million, tmp_path, start):
    data = SHARED / "sft" / "gsm8k_train.jsonl.gz"
    given = ("validation=0.01", "max_steps=6", "validate_every=2", "samples=1", "sample_tokens=8",
             "final=last", f"method={variant}")  # fmt: skip
    whole, run = tmp_path / "whole", tmp_path / "run"
    done = imprint("train", *settings(twenty_million, data, whole, *given), timeout=300)
    assert done.code == 0, done.err
    running = start("train", *settings(twenty_million, data, run, *given))

    def in_the_middle() -> bool:
        """A checkpoint is whole, and the run has gone on: how far, while it was written, the machine decides."""
        return (run / "events.jsonl").exists() and bool(events_of(run, "checkpoint"))

    assert running.signal_when(in_the_middle, KILL, timeout=300).code == -KILL
    done = imprint("resume", run, timeout=300)
    assert done.code == 0, done.err
    assert [event["step"] for event in events_of(run, "resume")] in ([2], [4])
    assert weights_of(run) == weights_of(whole)
    assert losses(run) == losses(whole)
    assert len(losses(run)) == 6
    told = [[(e["step"], e["loss"]) for e in events_of(folder, "validation")] for folder in (run, whole)]
    assert told[0] == told[1]
    assert [step for step, _ in told[0]] == [0, 2, 4, 6]
