"""`imprint export`, from a run to a folder that another program loads."""

from __future__ import annotations

import hashlib
import json
import shutil
import signal

import pytest
import torch
import yaml

from conftest import settings, tree
from imprint.disk import seal


def trained(tiny, rows, path, *given):
    from imprint.cli import main

    with pytest.raises(SystemExit, match="0"):
        main(["train", *settings(tiny, rows, path, "max_steps=2", "warmup=0", *given)])
    return path


@pytest.fixture(scope="module")
def lora(tiny, rows, tmp_path_factory):
    """A run with adapters, of two large steps."""
    run = tmp_path_factory.mktemp("runs") / "lora"
    return trained(tiny, rows, run, "method=lora", "learning_rate=0.02", "lora.rank=4")


@pytest.fixture(scope="module")
def full(tiny, rows, tmp_path_factory):
    """A run that trained every weight."""
    return trained(tiny, rows, tmp_path_factory.mktemp("runs") / "full", "learning_rate=0.01")


@pytest.fixture
def run(lora, tmp_path):
    """A copy of that run, to export from."""
    return shutil.copytree(lora, tmp_path / "run")


def logits(folder, adapter=None):
    from imprint.serve.chat import load_weights

    ids = torch.arange(60).reshape(3, 20) % 500
    with torch.no_grad():
        return load_weights(folder, adapter, 512)(ids).logits


def test_a_merged_run_says_what_its_adapter_says(run, tiny, cli):
    ended = cli("export", run, "--json")
    assert ended.code == 0, ended.err
    facts = json.loads(ended.out)
    assert facts["folder"] == str(run / "export" / "hf")
    adapter, merged, base = logits(tiny, run / "model"), logits(run / "export" / "hf"), logits(tiny)
    assert (merged - adapter).abs().max() < 1e-5
    assert (base - adapter).abs().max() > 1e-2
    assert not (run / "export" / "hf" / "adapter_config.json").exists()


def test_nothing_is_written_over(run, cli):
    assert cli("export", run).code == 0
    before = tree(run)
    ended = cli("export", run)
    assert ended.code == 2
    assert "exists already" in ended.err
    assert tree(run) == before


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (("--to", "gguf", "type=q9"), "there is no GGUF type 'q9'"),
        (("--to", "gguf", "type=q4_k_m"), "no llama-quantize on PATH"),
        (("--to", "gguf", "type=q8_0", "type=f16"), "`type` is given twice"),
        (("--to", "gguf", "name="), "no letter and no digit in it"),
        (("--to", "ollama", "name=my model"), "name=my-model"),
        (("--to", "ollama", "name=mine\nFROM x"), "Ollama takes no such name"),
        (("--to", "ollama", "now=soon"), "now is no date"),
        (("--to", "ollama", "num_ctx=4096"), "a whole number from 1 to 128"),
    ],
)
def test_wrong_settings_are_refused_before_anything_is_merged(given, said, run, cli, monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setattr("imprint.export.standard.write_model", None)  # calling it would be another error
    ended = cli("export", run, *given)
    assert ended.code == 2, ended.err
    assert said in ended.err
    assert not any((run / "export").glob("*"))


def test_what_a_killed_export_left_is_removed(run, cli, start):
    """Only from where the new one goes, and only once its process is gone."""
    stop = ("imprint.export.gguf._write", 1, signal.SIGKILL)
    assert start("export", run, "--to", "gguf", signal_before=stop).wait().code == -signal.SIGKILL
    left = sorted(path.name for path in (run / "export").iterdir())
    assert len(left) == 2  # the export, and the merged model beside it
    assert all(".partial-" in name for name in left)
    assert cli("export", run).code == 0
    assert sorted(path.name for path in (run / "export").iterdir()) == [*left, "hf"]
    ended = cli("export", run, "--to", "gguf")
    assert ended.code == 0, ended.err
    assert ended.err.count("which an export that was killed has left") == 2
    assert sorted(path.name for path in (run / "export").iterdir()) == ["gguf", "hf"]


def test_another_base_is_refused(run, tiny, tmp_path, cli):
    other = shutil.copytree(tiny, tmp_path / "other")
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 1e-5}))
    ended = cli("export", run, "--base", other)
    assert ended.code == 2
    assert "not the one that was trained on" in ended.err
    assert not (run / "export").exists()


def test_an_unknown_target_and_a_setting_without_effect_are_refused(run, cli):
    assert "--to hf" in cli("export", run, "--to", "hff").err
    ended = cli("export", run, "--to", "hf", "type=q8_0")
    assert ended.code == 2
    assert "no such setting" in ended.err


def test_the_adapter_alone(run, tiny, cli):
    ended = cli("export", run, "--adapter-only", "--json")
    assert ended.code == 0, ended.err
    folder = run / "export" / "adapter"
    assert (logits(tiny, folder) - logits(tiny, run / "model")).abs().max() == 0
    card = (folder / "README.md").read_text()
    assert "library_name: peft" in card
    assert f"--lora-modules adapter={folder}" in json.loads(ended.out)["serve"]
    assert not list(folder.glob("model*.safetensors"))


@pytest.mark.parametrize("said", ["", "{", "[1]", "\udcff"])
def test_damaged_facts_of_a_run_are_named(said, run, cli):
    (run / "run.json").write_bytes(said.encode("utf-8", "surrogateescape"))
    for verb in ("export", "parity", "resume"):
        ended = cli(verb, run)
        assert ended.code == 2, ended.err
        assert f"{run}/run.json: the facts of this run cannot be read" in " ".join(ended.err.split())


@pytest.mark.parametrize(
    "given",
    [("--adapter-only", "--scale", "0.5"), ("--adapter-only", "--dtype", "float32"), ("--dtype", "f8")],
)
def test_settings_that_have_no_effect_are_refused(given, run, cli):
    ended = cli("export", run, *given)
    assert ended.code == 2
    assert not (run / "export").exists()


def test_a_damaged_model_is_refused(run, cli):
    file = run / "model" / "adapter_model.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    ended = cli("export", run)
    assert ended.code == 2
    assert "damaged" in ended.err


def test_the_card_tells_what_a_stranger_must_know(run, tiny, cli):
    (tiny / "README.md").write_text("---\nlicense: other\nlicense_name: x-1\nlicense_link: http://x/1\n---\n")
    try:
        assert cli("export", run).code == 0
    finally:
        (tiny / "README.md").unlink()
    folder = run / "export" / "hf"
    card = (folder / "README.md").read_text()
    front = yaml.safe_load(card.split("---\n")[1])
    assert front["license_name"] == "x-1"
    assert "[x-1](http://x/1)" in card
    assert "| turns | 24 |" in card
    assert "validation loss" in card
    assert "vllm serve . --generation-config vllm" in card
    assert "`<|im_end|>`" in card
    assert str(run.parent) not in card  # nobody's folders
    weights = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    assert weights in card
    facts = json.loads((run / "run.json").read_text())
    assert all(value in card for value in facts["fingerprints"].values())


def test_every_stop_stands_in_every_file(run, cli):
    assert cli("export", run).code == 0
    folder, wanted = run / "export" / "hf", json.loads((run / "run.json").read_text())["stop_ids"]
    for name in ("config.json", "generation_config.json"):
        assert json.loads((folder / name).read_text())["eos_token_id"] == wanted


def test_a_stop_that_went_missing_is_caught(run, cli):
    """The run's own folder was changed after training, and sealed anew."""
    from imprint.disk import seal

    model = run / "model"
    config = json.loads((model / "generation_config.json").read_text())
    (model / "generation_config.json").write_text(json.dumps(config | {"eos_token_id": [0]}))
    seal(model, model)
    ended = cli("export", run)
    assert ended.code == 2
    assert "same stops" in ended.err
    assert not (run / "export" / "hf").exists()


def test_what_rounding_would_lose_is_refused(run, tiny, tmp_path, cli, monkeypatch):
    """A base in bfloat16, and an update of a thousandth of its weights."""
    monkeypatch.setattr("imprint.export_run.LEAST", 1.1)
    ended = cli("export", run)
    assert ended.code == 2
    assert "--dtype float32" in ended.err
    assert list((run / "export").iterdir()) == []
    assert cli("export", run, "--dtype", "float32").code == 0


def test_a_whole_model_is_copied_and_scaled(full, tiny, cli, tmp_path):
    for scale, source in ((1.0, full / "model"), (0.0, tiny)):
        out = tmp_path / f"at{scale}"
        ended = cli("export", full, "--scale", scale, "--out", out)
        assert ended.code == 0, ended.err
        assert torch.equal(logits(out), logits(source))
    assert not torch.equal(logits(full / "model"), logits(tiny))
    assert cli("export", full, "--adapter-only", "--out", tmp_path / "x").code == 2


def test_a_failed_proof_is_kept_aside_and_ends_with_1(run, cli, monkeypatch):
    from imprint.export.targets import Proof

    monkeypatch.setattr(
        "imprint.export_run.prove", lambda *_: Proof(False, "prompts differ", {"equal": False})
    )
    for name in ("hf.failed", "hf.failed-2"):
        ended = cli("export", run, "--json")
        assert ended.code == 1
        assert json.loads(ended.out)["folder"].endswith(name)
        assert json.loads((run / "export" / name / "parity.json").read_text()) == {"equal": False}
    assert not (run / "export" / "hf").exists()


@pytest.mark.parametrize("given", [("lora.dora=true", "lora.scaling=rslora"), ("lora.init=pissa",)])
def test_other_adapters_merge_too(given, tiny, rows, tmp_path, cli):
    run = trained(tiny, rows, tmp_path / "run", "method=lora", "learning_rate=0.02", *given)
    assert cli("export", run).code == 0
    adapter, merged = logits(tiny, run / "model"), logits(run / "export" / "hf")
    assert (merged - adapter).abs().max() < 1e-5 * adapter.abs().max()
    assert (logits(tiny) - adapter).abs().max() > 1e-2


def test_a_quantised_base_is_merged_as_its_four_bits_held_it(tiny, rows, tmp_path, cli):
    """The adapter was trained on these values; on the original ones it is another model."""
    pytest.importorskip("bitsandbytes")
    run = trained(tiny, rows, tmp_path / "run", "method=qlora", "learning_rate=0.02")
    ended = cli("export", run)
    assert ended.code == 0, ended.err
    assert "four bits held" in ended.err
    adapter, merged = logits(tiny, run / "model"), logits(run / "export" / "hf")
    assert (merged - adapter).abs().max() < 1e-5 * adapter.abs().max()
    plain = shutil.copytree(run / "model", tmp_path / "plain")
    (plain / "quantized_base.json").unlink()
    assert (logits(tiny, plain) - adapter).abs().max() > 1e-3 * adapter.abs().max()
    assert cli("export", run, "--adapter-only").code == 0
    card = (run / "export" / "adapter" / "README.md").read_text()
    assert "quantized_base.json" in card
    assert (run / "export" / "adapter" / "quantized_base.json").is_file()
    assert not (run / "export" / "hf" / "quantized_base.json").exists()


def test_a_whole_model_outlives_its_base(full, tiny, tmp_path, cli):
    run, base = shutil.copytree(full, tmp_path / "run"), tmp_path / "gone"
    facts = json.loads((run / "run.json").read_text()) | {"model": str(base)}
    (run / "run.json").write_text(json.dumps(facts))
    ended = cli("export", run)
    assert ended.code == 0, ended.err
    assert "the base model is gone: its licence" in ended.err
    assert "the base model is gone" in (run / "export" / "hf" / "README.md").read_text()
    for given in (("--scale", "0.5"), ("--base", str(base))):  # these need it
        ended = cli("export", run, "--out", tmp_path / "out", *given)
        assert ended.code == 2
        assert "--base FOLDER" in ended.err
    shutil.copytree(tiny, base)
    (base / "LICENSE").write_text("mine")
    assert cli("export", run, "--out", tmp_path / "licensed").code == 0
    assert (tmp_path / "licensed" / "LICENSE").read_text() == "mine"


@pytest.fixture(scope="module")
def frozen(tiny, rows, tmp_path_factory):
    """A run with adapters and a golden file."""
    run = tmp_path_factory.mktemp("runs") / "frozen"
    return trained(tiny, rows, run, "method=lora", "learning_rate=0.02", "golden=1")


@pytest.fixture
def golden_run(frozen, tmp_path):
    return shutil.copytree(frozen, tmp_path / "golden")


def test_an_adapter_needs_its_base_and_names_where_that_is_now(golden_run, tiny, tmp_path, cli):
    run = golden_run
    moved = shutil.copytree(tiny, tmp_path / "moved")
    facts = json.loads((run / "run.json").read_text()) | {"model": str(tmp_path / "gone")}
    (run / "run.json").write_text(json.dumps(facts))
    config = run / "model" / "adapter_config.json"
    config.write_text(config.read_text().replace(json.dumps(str(tiny)), json.dumps(str(tmp_path / "gone"))))
    seal(run / "model", run / "model")
    assert str(tmp_path / "gone") in config.read_text()
    assert "--base FOLDER" in cli("export", run, "--adapter-only").err
    told = " ".join(cli("parity", run).err.split())
    assert "the base model of this adapter is not there" in told
    ended = cli("export", run, "--adapter-only", "--base", moved)
    assert ended.code == 0, ended.err
    written = json.loads((run / "export" / "adapter" / "adapter_config.json").read_text())
    assert written["base_model_name_or_path"] == str(moved.resolve())
    assert "says what the trained model said" in ended.err  # loaded with its base, in another process


def test_a_golden_file_that_cannot_be_read_is_told_before_anything_is_made(golden_run, cli):
    run = golden_run
    golden = json.loads((run / "golden.json").read_text())
    golden["examples"][0]["reply"]["logprobs"].pop()
    (run / "golden.json").write_text(json.dumps(golden))
    ended = cli("export", run)
    assert ended.code == 2
    assert "the golden file cannot be read" in ended.err
    assert "merging" not in ended.err
    assert not (run / "export").exists()


def test_a_run_may_have_an_equals_sign_in_its_name(run, cli):
    from imprint.cli_export import split

    named = run.rename(run.with_name("learning_rate=1"))
    assert split([str(named), "type=q8_0"], "gguf") == (named, "", {"type": "q8_0"})
    assert "no such setting" in cli("export", named, "typ=1").err


@pytest.mark.slow
def test_a_model_with_its_own_code_is_trained_exported_and_proven(tiny, rows, tmp_path, cli):
    base = shutil.copytree(tiny, tmp_path / "base")
    (base / "modeling_mine.py").write_text(
        "from transformers import LlamaConfig, LlamaForCausalLM\n"
        "class MineConfig(LlamaConfig):\n    model_type = 'mine'\n"
        "class Mine(LlamaForCausalLM):\n    config_class = MineConfig\n"
    )
    config = json.loads((base / "config.json").read_text())
    names = {"AutoConfig": "modeling_mine.MineConfig", "AutoModelForCausalLM": "modeling_mine.Mine"}
    (base / "config.json").write_text(json.dumps(config | {"model_type": "mine", "auto_map": names}))
    run = trained(base, rows, tmp_path / "run", "golden=1", "trust_remote_code=true")
    ended = cli("export", run)
    assert ended.code == 0, ended.err
    assert "says what the trained model said" in ended.err
    assert cli("parity", run).code == 0
    elsewhere = shutil.copytree(run / "export" / "hf", tmp_path / "elsewhere")
    ended = cli("parity", run, elsewhere)  # nobody said that the code there is the same
    assert ended.code == 2
    assert "trust_remote_code" in ended.err
