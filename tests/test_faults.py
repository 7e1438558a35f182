"""The 25 bad inputs and faults that imprint promises to meet well, each with the tests that prove it.

Where a test stands elsewhere, it is named, and must exist there. Those of this file begin with what is below;
test_fault_messages.py has the messages, word by word.
Always: one message that says what to do, a non-zero exit, and the source data as it was.
"""

from __future__ import annotations

import ast
import json
import pickle
import shutil
from pathlib import Path

import pytest

from conftest import ROWS, settings, tree, write_rows

TESTS = Path(__file__).parent

# number: (fault, tests that prove it)
FAULTS: dict[int, tuple[str, tuple[str, ...]]] = {
    1: ("broken JSON at line 317", ("data/test_golden_errors.py::test_broken_json_at_line_317",)),
    2: (
        "a UTF-8 mark; UTF-16, GBK; an invalid byte",
        (
            "data/test_readers.py::test_utf8_mark_is_accepted_and_other_encodings_are_named",
            "data/test_readers.py::test_a_byte_that_is_not_utf8_is_named_with_its_offset",
            "data/test_golden_errors.py::test_utf16",
            "data/test_golden_errors.py::test_gbk_and_an_invalid_byte",
        ),
    ),
    3: (
        "an empty file, or every row invalid",
        ("data/test_golden_errors.py::test_an_empty_file_and_one_without_a_single_usable_row",),
    ),
    4: (
        "a wrong column",
        (
            "test_faults.py::test_a_wrong_column",
            "data/test_slips.py::test_a_misspelt_column_is_refused_and_the_remedy_works",
        ),
    ),
    5: (
        "a type that changes between rows",
        (
            "test_fault_messages.py::test_refused",
            "data/test_golden_errors.py::test_a_type_that_changes_between_rows",
        ),
    ),
    6: (
        "a null, empty or blank reply",
        ("test_faults.py::test_a_reply_without_content", "test_faults.py::test_a_reply_that_is_null"),
    ),
    7: (
        "a conversation that ends with the user",
        ("test_faults.py::test_a_conversation_ends_with_the_user",),
    ),
    8: (
        "an unknown or misordered role",
        (
            "test_fault_messages.py::test_refused",
            "test_faults.py::test_an_unknown_role",
            "test_bad_input.py::test_a_bad_row_is_named_by_its_line",
        ),
    ),
    9: (
        "a prompt beyond the limit",
        (
            "test_fault_messages.py::test_refused",
            "test_fault_messages.py::test_told",
            "test_bad_input.py::test_one_prompt_is_longer_than_the_limit",
            "test_bad_input.py::test_no_reply_fits",
        ),
    ),
    10: (
        "a reply that is cut",
        (
            "test_fault_messages.py::test_told",
            "render/test_turns.py::test_too_long_is_left_out_cut_or_an_error",
        ),
    ),
    11: (
        "repetitions; validation rows that are trained on",
        (
            "test_fault_messages.py::test_told",
            "test_faults.py::test_a_validation_row_that_is_trained_on",
            "data/test_check.py::test_repetitions_are_exact",
        ),
    ),
    12: (
        "tool schemas and arguments that differ",
        (
            "data/test_formats.py::test_tool_schemas_come_back_verbatim",
            "render/test_presets.py::test_arguments_may_be_an_object_or_text_and_content_null",
        ),
    ),
    13: (
        "a control token in the content",
        (
            "test_fault_messages.py::test_told",
            "render/test_turns.py::test_control_tokens_in_the_data_leave_out_what_stands_behind_them",
        ),
    ),
    14: (
        "no template",
        (
            "test_fault_messages.py::test_refused",
            "test_bad_input.py::test_no_template",
        ),
    ),
    15: ("pad equals eos", ("test_bad_input.py::test_a_pad_that_is_the_end_trains_the_stop",)),
    16: (
        "an id beyond the embedding",
        (
            "test_fault_messages.py::test_broken",
            "test_bad_input.py::test_an_id_beyond_the_embedding",
        ),
    ),
    17: (
        "a misspelt or conflicting option",
        (
            "test_fault_messages.py::test_refused",
            "test_settings.py::test_a_misspelt_key",
            "test_settings.py::test_a_setting_without_meaning_is_refused",
        ),
    ),
    18: (
        "an unsupported type, device or kernel",
        (
            "test_fault_messages.py::test_refused",
            "test_fault_messages.py::test_a_type_that_is_emulated_is_announced",
            "test_faults.py::test_a_device_or_kernel_that_is_not_there",
        ),
    ),
    19: (
        "too little disk; a disk that is full while saving",
        (
            "test_fault_messages.py::test_broken",
            "test_full_disk.py::test_it_waits_and_goes_on",
            "test_full_disk.py::test_it_stops_and_resumes",
            "train/test_rehearsal.py::test_a_disk_without_room_is_refused_before_the_first_step",
            "train/test_full_disk.py::test_wherever_a_write_finds_no_room",
            "test_bad_input.py::test_a_full_disk_ends_a_run_with_its_last_checkpoint_valid",
        ),
    ),
    20: (
        "a kill while it saves",
        (
            "test_resume.py::test_killed_when_a_save_appears",
            "test_two_processes.py::test_a_hundred_steps",
            "chaos/test_kills.py::test_five_kills",
        ),
    ),
    21: (
        "SIGTERM in any phase",
        (
            "test_fault_messages.py::test_signalled",
            "test_signals.py::test_in_every_phase_of_a_run",
        ),
    ),
    22: (
        "a loss or gradient that is not finite",
        (
            "test_fault_messages.py::test_broken",
            "train/test_step.py::test_a_step_that_is_not_finite_changes_nothing",
        ),
    ),
    23: (
        "memory that runs out",
        (
            "test_fault_messages.py::test_broken",
            "test_row_budget.py::test_memory_that_runs_out_in_a_run_is_told_and_remembered",
            "train/test_rehearsal.py::test_a_row_that_has_no_room_makes_rows_shorter_before_the_first_step",
        ),
    ),
    24: (
        "a corrupt, mismatched or malicious checkpoint, adapter, template",
        (
            "test_fault_messages.py::test_broken",
            "test_faults.py::test_an_adapter_that_is_a_pickle_is_never_read",
            "test_faults.py::test_an_adapter_of_which_tensors_are_missing",
            "test_faults.py::test_an_adapter_that_is_torn",
            "test_faults.py::test_an_adapter_whose_base_changed",
            "test_faults.py::test_a_checkpoint_that_is_a_pickle_is_never_read",
            "test_resume.py::test_a_damaged_checkpoint_is_passed_over",
            "train/test_checkpoint.py::test_another_models_weights_are_refused",
            "test_bad_input.py::test_a_model_without_safetensors",
            "test_bad_input.py::test_remote_code_is_not_run",
            "render/test_sandbox.py::test_escapes_are_refused",
            "render/test_sandbox.py::test_endless_loops_end_and_say_so",
            "render/test_sandbox.py::test_explosions_are_refused_and_eat_no_memory",
        ),
    ),
    25: (
        "a process dies; an export's tool is missing",
        (
            "test_torchrun.py::test_when_one_process_dies_the_other_ends",
            "export/test_gguf.py::test_without_llama_quantize_it_is_said_where_to_get_it",
            "test_faults.py::test_a_tool_that_an_export_needs_is_missing",
            "test_faults.py::test_a_tool_that_an_export_needs_goes_missing",
        ),
    ),
}


def test_every_fault_has_tests_and_they_exist():
    assert list(FAULTS) == list(range(1, 26))
    missing = []
    for number, (_, names) in FAULTS.items():
        assert names, number
        for name in names:
            file, _, function = name.partition("::")
            tree = ast.parse((TESTS / file).read_text(encoding="utf-8"))
            if function not in {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}:
                missing.append(name)
    assert missing == []


@pytest.fixture
def refused(tiny, tmp_path, cli, monkeypatch):
    """The message of a training that is refused, with nothing written."""
    monkeypatch.chdir(tmp_path)

    def refused(*given, rows=ROWS):
        write_rows(tmp_path / "rows.jsonl", rows)
        before = tree(tmp_path)
        done = cli("train", *settings(tiny, "rows.jsonl", "run", "max_steps=1", *given))
        assert (done.code, done.out) == (2, ""), done.err
        assert tree(tmp_path) == before
        return done.err[done.err.index("error ") :]

    return refused


def talk(*messages):
    return {"messages": [{"role": role, "content": content} for role, content in messages]}


QUESTION = ("user", "Why?")


LEAVE = "            or train without the bad rows: bad_rows=leave_out\n"


def test_a_wrong_column(refused):
    assert refused(rows=[ROWS[0], {"mesages": ROWS[0]["messages"]}]) == (
        "error rows.jsonl:2: the columns are of no known format\n"
        "  found     columns mesages\n"
        "  expected  messages | instruction + output | prompt + response | text | … "
        "(imprint data formats lists all)\n"
        "  to fix    rename mesages to messages; or name your columns: "
        "data.0.fields.prompt=COLUMN data.0.fields.response=COLUMN\n" + LEAVE
    )


@pytest.mark.parametrize("content", ["", " \n\t"])
def test_a_reply_without_content(content, refused):
    assert refused(rows=[ROWS[0], talk(QUESTION, ("assistant", content))]) == (
        "error rows.jsonl:2: the reply is empty\n"
        f"  found     message 2 (assistant): {json.dumps(content)}\n"
        "  expected  a text to learn\n"
        "  to fix    write the reply or remove the row\n" + LEAVE
    )


def test_a_reply_that_is_null(refused):
    assert refused(rows=[ROWS[0], talk(QUESTION, ("assistant", None))]) == (
        "error rows.jsonl:2: a message has no content\n"
        "  found     message 2: content is null or missing\n"
        "  expected  a text\n"
        "  to fix    give it a text or remove the message\n" + LEAVE
    )


def test_a_conversation_ends_with_the_user(refused):
    assert refused(rows=[ROWS[0], talk(QUESTION, ("assistant", "So."), ("user", "And?"))]) == (
        "error rows.jsonl:2: the conversation ends with the user\n"
        '  found     message 3 (user): "And?"\n'
        "  expected  an assistant message at the end\n"
        "  to fix    add the reply, or remove what follows the last one\n" + LEAVE
    )


def test_an_unknown_role(refused):
    told = refused(rows=[ROWS[0], talk(QUESTION, ("asistant", "So."))])
    assert told.startswith(
        'error rows.jsonl:2: unknown role\n  found     message 2: "asistant"\n'
        "  expected  system, user, assistant, tool (also developer, "
    )
    assert told.endswith('\n  to fix    write "assistant"\n' + LEAVE)


def test_a_device_or_kernel_that_is_not_there(refused):
    assert refused("device=mps") == (
        "error there is no mps device\n"
        "  found     device: mps\n"
        "  expected  a device of this machine: cpu\n"
        "  to fix    set device to auto or cpu\n"
    )
    assert refused("attention=flex").startswith(
        "error attention=flex needs a CUDA device\n  found     device: cpu\n"
    )


def test_a_validation_row_that_is_trained_on(tiny, tmp_path, cli):
    rows, held = write_rows(tmp_path / "rows.jsonl", ROWS), write_rows(tmp_path / "held.jsonl", ROWS[:3])
    run = tmp_path / "run"
    done = cli("train", *settings(tiny, rows, run, "max_steps=1", f"validation={held}"))
    assert done.code == 0, done.err
    assert "a validation conversation is also trained on" in (run / "ledger.json").read_text()
    assert "warning: a validation" in done.err
    assert "held.jsonl:1, 2, 3" in done.err


# ---- 25: the tool that an export needs


WITH_TOOL = "export=[{to: gguf, options: {type: q4_k_m}}]"
INSTALL = (
    "install llama.cpp (brew install llama.cpp, or a build from https://github.com/ggml-org/llama.cpp/releases), "
    "or take a type that needs no tool: f32, f16, bf16, q8_0, q4_0, q4_1, q5_0, q5_1"
)


def test_a_tool_that_an_export_needs_is_missing(refused, monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    assert refused(WITH_TOOL) == (
        "error export gguf: type: q4_k_m needs llama-quantize, which comes with llama.cpp\n"
        "  found     no llama-quantize on PATH\n"
        "  expected  llama-quantize on PATH\n"
        f"  to fix    {INSTALL}; or leave this export away\n"
    )


def test_a_tool_that_an_export_needs_goes_missing(tiny, rows, tmp_path, cli, monkeypatch):
    """It was there when training began: the weights are saved, and the export can be made afterwards."""
    import imprint.ending as ending

    tool = tmp_path / "bin" / "llama-quantize"
    tool.parent.mkdir()
    tool.write_text('#!/bin/sh\nexec cp "$1" "$2"\n')
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tool.parent}:/usr/bin:/bin")
    run, away = tmp_path / "run", tool.with_name("away")
    with monkeypatch.context() as patch:
        patch.setattr(ending, "freeze", lambda *_: tool.rename(away) and [])
        done = cli("train", *settings(tiny, rows, run, "max_steps=1", WITH_TOOL))
    assert (done.code, done.out) == (1, f"{run}\n")
    again = f"imprint export {run} --to gguf type=q4_k_m"
    assert done.err[done.err.index("error ") :] == (
        f"error {run}: the model is trained and saved, but this export could not be made: gguf\n"
        "  found     q4_k_m needs llama-quantize, which comes with llama.cpp (no llama-quantize on PATH)\n"
        f"  to fix    {INSTALL}; then {again}\n"
    )
    kept = tree(run / "model")
    assert cli("chat", run, "--prompt", "x", "--max-tokens", "2").code == 0
    away.rename(tool)
    done = cli(*again.split()[1:])
    assert done.code == 0, done.err
    assert (run / "export/gguf/model-Q4_K_M.gguf").is_file()
    assert tree(run / "model") == kept


# ---- 24: adapters and checkpoints that are not what they seem


@pytest.fixture(scope="module")
def trained(tiny, rows, tmp_path_factory):
    from imprint.run import train
    from imprint.settings import resolve

    folder = tmp_path_factory.mktemp("faults")
    base = shutil.copytree(tiny, folder / "base")
    given = ("max_steps=2", "method=lora", "save_every=1", "validation=0")
    return train(resolve(None, settings(base, rows, folder / "run", *given)).recipe).run


@pytest.fixture
def adapter(trained, tmp_path):
    return shutil.copytree(trained / "model", tmp_path / "adapter")


class Bomb:
    """Makes a file when it is unpickled."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return (open, (self.path, "w"))


def said(cli, folder):
    done = cli("chat", folder, "--prompt", "x")
    assert (done.code, done.out) == (2, ""), (done.out, done.err)
    assert "Traceback" not in done.err
    return done.err


def test_an_adapter_that_is_a_pickle_is_never_read(adapter, tmp_path, cli):
    (adapter / "adapter_model.safetensors").unlink()
    (adapter / "adapter_model.bin").write_bytes(pickle.dumps(Bomb(tmp_path / "ran")))
    told = said(cli, adapter)
    assert "the adapter has no safetensors weights" in told
    assert "pickle files (.bin, .pt) can run code" in " ".join(told.split())
    assert not (tmp_path / "ran").exists()
    pickle.loads((adapter / "adapter_model.bin").read_bytes()).close()  # the bomb is a real one
    assert (tmp_path / "ran").exists()


def test_an_adapter_of_which_tensors_are_missing(adapter, cli):
    """PEFT alone would leave them as they are drawn, and go on."""
    from safetensors.torch import load_file, save_file

    file = adapter / "adapter_model.safetensors"
    weights = load_file(file)
    gone, renamed = sorted(weights)[:2]
    weights.pop(gone)
    weights[renamed.replace("layers.0", "layers.00")] = weights.pop(renamed)
    save_file(weights, file, metadata={"format": "pt"})
    told = said(cli, adapter)
    assert "the adapter's tensors are not those of the model" in told
    assert gone in told
    assert renamed.replace("layers.0", "layers.00") in told
    assert f"the nearest is {renamed}" in told


def test_an_adapter_that_is_torn(adapter, cli):
    file = adapter / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    assert "the adapter's weights are damaged" in said(cli, adapter)


def test_an_adapter_of_other_widths(adapter, cli):
    from safetensors.torch import load_file, save_file

    weights = load_file(adapter / "adapter_model.safetensors")
    save_file({k: v[:, :-1].contiguous() for k, v in weights.items()}, adapter / "adapter_model.safetensors")
    assert "this adapter does not fit on the model" in said(cli, adapter)


def test_an_adapter_whose_base_changed(trained, tmp_path, cli):
    """The same architecture and names, other weights: it would load, and answer otherwise."""
    config = trained.parent / "base/generation_config.json"
    weights = trained.parent / "base/model.safetensors"
    kept = weights.read_bytes()
    try:
        weights.write_bytes(kept[:-4] + bytes(4))
        told = said(cli, trained)
    finally:
        weights.write_bytes(kept)
    assert "the base model is not the one that this adapter was trained on" in told
    assert "expected  fingerprint " in told
    assert config.exists()
    assert cli("chat", trained, "--prompt", "x", "--max-tokens", "2").code == 0


def test_a_checkpoint_that_is_a_pickle_is_never_read(trained, tmp_path, cli):
    run = shutil.copytree(trained, tmp_path / "run")
    shutil.rmtree(run / "model")
    for folder in (run / "checkpoints").glob("step-*"):
        for file in folder.glob("*.safetensors"):
            file.write_bytes(pickle.dumps(Bomb(tmp_path / "ran")))
    done = cli("resume", run)
    assert done.code == 2
    assert "none of this run's checkpoints verifies" in done.err
    assert not (tmp_path / "ran").exists()
    done = cli("resume", run, "--force-changed", "checkpoints")
    assert done.code == 0, done.err
    assert "passed over" in done.err
    assert not (tmp_path / "ran").exists()
    resumed = [
        e for e in map(json.loads, (run / "events.jsonl").read_text().splitlines()) if e["kind"] == "resume"
    ]
    assert len(resumed[0]["passed_over"]) == 2
    (weights,) = (run / "model").glob("*.safetensors")
    assert weights.read_bytes() == (trained / "model" / weights.name).read_bytes()
