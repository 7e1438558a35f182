"""What auto becomes, and the reasons given."""

from pathlib import Path

import pytest

from imprint.auto import (
    ROW_TOKENS,
    Machine,
    detect_machine,
    free_output,
    old_cuda_device,
    resolve_auto,
    resolve_intervals,
)
from imprint.errors import RecipeError
from imprint.model_facts import ModelFacts, read_model_facts
from imprint.recipe import DataSource, Lora, Recipe

LAPTOP = Machine(cuda=False, mps=False, cpu_bfloat16="", cores=4)
FACTS = ModelFacts(width=576, context=2048, vocab=49152, model_type="llama", tied=True)


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    return tmp_path


def recipe(**given) -> Recipe:
    return Recipe(**{"model": "base", "data": [DataSource(path="train.jsonl")], **given})


def decided(given: Recipe, *, facts=FACTS, machine=LAPTOP, **more):
    resolved, decisions = resolve_auto(given, model_facts=facts, machine=machine, **more)
    return resolved, {decision.key: decision for decision in decisions}


def test_a_hub_model_that_is_not_here_yet_is_decided_later(monkeypatch):
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *_, **__: None)
    assert read_model_facts("owner/name") is None
    resolved, why = decided(recipe(model="owner/name"), facts=None)
    assert resolved.learning_rate == resolved.max_length == "auto"
    assert why["learning_rate"].reason == why["max_length"].reason == "decided when the model is there"


# ---- decisions


@pytest.mark.parametrize(
    ("width", "method", "rate"),
    [
        (4096, "full", 2e-5),
        (576, "full", 1.4e-4),
        (16, "full", 1e-3),
        (16384, "full", 1e-5),
        (4096, "lora", 2e-4),
        (576, "lora", 1.4e-3),
        (16, "lora", 5e-3),
        (16384, "lora", 1e-4),
        (None, "full", 2e-5),
    ],
)
def test_the_learning_rate_goes_by_width_and_method(width, method, rate):
    facts = ModelFacts(width, 2048, 10, "llama", True)
    resolved, why = decided(recipe(method=method), facts=facts)
    assert resolved.learning_rate == rate
    assert method in why["learning_rate"].reason
    assert str(width or 4096) in why["learning_rate"].reason


@pytest.mark.parametrize(
    ("given", "rate", "words"),
    [
        (dict(method="qlora"), 2e-4, "ten times that for method qlora"),
        (dict(method="lora", lora=Lora(dora=True)), 1e-4, "half of it for DoRA"),
        (dict(method="lora", lora=Lora(init="pissa")), 2e-5, "as for method full: PiSSA"),
        (dict(method="lora", lora=Lora(scaling="rslora", rank=16)), 5e-5, "over √16 for rslora"),
        (dict(optimizer="muon"), 2e-5, "muon's updates have the size of adamw's"),
        (dict(optimizer="adamw_8bit"), 2e-5, "for method full"),
    ],
)
def test_the_learning_rate_of_each_method(given, rate, words):
    resolved, why = decided(recipe(**given), facts=ModelFacts(4096, 2048, 10, "llama", True))
    assert resolved.learning_rate == rate
    assert words in why["learning_rate"].reason


@pytest.mark.parametrize("given", [dict(method="qlora"), dict(optimizer="adamw_8bit")])
def test_a_missing_extra_is_told_before_anything_is_read(given, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(RecipeError, match=r"pip install 'imprint-sft\[qlora\]'"):
        decided(recipe(**given))


@pytest.mark.parametrize(
    ("listed", "found"),
    [
        ("Tesla T4, 7.5\n", "Tesla T4, compute capability 7.5"),
        ("NVIDIA A100-SXM4-80GB, 8.0\nTesla V100-SXM2, 7.0\n", "Tesla V100-SXM2, compute capability 7.0"),
        ("NVIDIA H200, 9.0\n", ""),
        ("NVIDIA-SMI has failed because it couldn't communicate with the driver.\n", ""),
        ("", ""),
    ],
)
def test_devices_without_bfloat16(listed, found):
    assert old_cuda_device(listed) == found


def test_float16_where_cuda_has_no_bfloat16():
    machine = Machine(True, False, "", 4, "Tesla T4, compute capability 7.5")
    resolved, why = decided(recipe(), machine=machine)
    assert resolved.precision == "float16"
    assert "Tesla T4, compute capability 7.5, does not multiply in bfloat16" in why["precision"].reason


def test_what_is_given_is_not_decided():
    given = recipe(
        learning_rate=1e-4,
        max_length=64,
        device="cpu",
        precision="float32",
        threads=1,
        row_tokens=9,
        output="o",
    )
    resolved, why = decided(given)
    assert set(why) == {"layout", "attention", "validate_every", "save_every"}
    assert resolved == given


def test_max_length():
    assert decided(recipe())[0].max_length == 2048
    resolved, why = decided(recipe(), facts=ModelFacts(64, None, 10, "x", True))
    assert resolved.max_length == 2048
    assert "names no context" in why["max_length"].reason


@pytest.mark.parametrize(
    ("machine", "device", "precision"),
    [
        (LAPTOP, "cpu", "float32"),
        (Machine(False, False, "amx_bf16", 4), "cpu", "bfloat16"),
        (Machine(True, False, "", 4), "cuda", "bfloat16"),
        (Machine(False, True, "", 4), "mps", "bfloat16"),
    ],
)
def test_the_machine_decides(machine, device, precision):
    resolved, why = decided(recipe(), machine=machine)
    assert (resolved.device, resolved.precision, resolved.row_tokens) == (device, precision, "auto")
    most = f"{ROW_TOKENS[device]:,}"
    assert why["row_tokens"].reason == f"measured on the loaded model: what has room, up to {most}"


def test_falling_back_to_the_cpu_is_said():
    assert decided(recipe())[1]["device"].reason == "no CUDA device: training on the CPU"


def test_a_device_that_is_not_there_is_refused():
    with pytest.raises(RecipeError) as caught:
        decided(recipe(device="cuda"))
    assert str(caught.value) == (
        "there is no cuda device\n"
        "  found     device: cuda\n"
        "  expected  a device of this machine: cpu\n"
        "  to fix    set device to auto or cpu"
    )


def test_an_explicit_cpu_is_measured_as_a_cpu():
    resolved, why = decided(recipe(device="cpu"), machine=Machine(True, False, "", 4))
    assert resolved.precision == "float32"
    assert f"{ROW_TOKENS['cpu']:,}" in why["row_tokens"].reason


@pytest.mark.parametrize(
    ("local", "world", "threads"), [(None, 1, 4), ("2", 1, 2), (None, 4, 1), ("8", 8, 1)]
)
def test_processes_share_the_cores(monkeypatch, local, world, threads):
    if local:
        monkeypatch.setenv("LOCAL_WORLD_SIZE", local)
    assert decided(recipe(), world_size=world)[0].threads == threads


def test_layout_and_attention_stay_auto():
    resolved, why = decided(recipe())
    assert resolved.layout == resolved.attention == "auto"
    assert "checks" in why["layout"].reason


# ---- intervals


@pytest.mark.parametrize(
    ("given", "steps", "validate", "save"),
    [
        ({}, 100, 10, 10),
        ({}, 3, 1, 1),
        ({"validate_every": 7}, 100, 7, 7),
        ({"save_every": 7}, 100, 10, 7),
        ({"validation": 0}, 100, 10, 10),
        ({"validation": 0, "samples": 0}, 100, 100, 10),
        ({"validation": 0, "samples": 0}, 0, 1, 1),
    ],
)
def test_intervals(given, steps, validate, save):
    resolved, decisions = resolve_intervals(recipe(**given), steps)
    assert (resolved.validate_every, resolved.save_every) == (validate, save)
    assert {decision.key for decision in decisions} == {"validate_every", "save_every"} - set(given)


def test_intervals_wait_for_the_data():
    resolved, why = decided(recipe())
    assert resolved.validate_every == "auto"
    assert why["save_every"].reason == "decided when the steps are counted"
    resolved, (validate, save) = resolve_intervals(resolved, 200)
    assert (resolved.validate_every, validate.value, save.reason) == (20, 20, "at each validation")


# ---- the run folder


@pytest.mark.parametrize(
    ("model", "data", "output"),
    [
        ("models/base", "data/train.jsonl.gz", "runs/base-train"),
        ("owner/Name-1.5B", "owner/set", "runs/Name-1.5B-set"),
        (".", "my data.json", "runs/place-my-data"),
        ("base/", "a.v2.csv", "runs/base-a.v2"),
    ],
)
def test_the_output_is_named_by_model_and_data(tmp_path, monkeypatch, model, data, output):
    (tmp_path / "place").mkdir()
    monkeypatch.chdir(tmp_path / "place")
    assert free_output(recipe(model=model, data=[DataSource(path=data)])) == output


def test_a_taken_output_gets_a_number():
    Path("runs/base-train").mkdir(parents=True)
    Path("runs/base-train-2").mkdir()
    assert decided(recipe())[0].output == "runs/base-train-3"


# ---- the machine


def test_the_machine_is_detected(tmp_path):
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/cpuinfo").write_text("flags : sse avx512_bf16 amx_bf16\n")
    machine = detect_machine({}, tmp_path)
    assert (machine.cuda, machine.cpu_bfloat16) == (False, "amx_bf16")
    assert machine.cores >= 1
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev/nvidia0").touch()
    assert detect_machine({}, tmp_path).cuda
    assert not detect_machine({"CUDA_VISIBLE_DEVICES": ""}, tmp_path).cuda
    assert not detect_machine({"CUDA_VISIBLE_DEVICES": "-1"}, tmp_path).cuda


def test_a_system_without_proc(tmp_path):
    assert detect_machine({}, tmp_path).cpu_bfloat16 == ""
