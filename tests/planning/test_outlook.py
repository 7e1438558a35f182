"""`imprint plan`: what it says of true data, and how runs correct it."""

import json
import os

import pytest

from conftest import Cli, settings
from imprint.planning.options import Range
from imprint.planning.outlook import weights_notes
from imprint.planning.past import correction


def plan(cli: Cli, *arguments):
    ended = cli("plan", *arguments, "--json")
    assert ended.code == 0, ended.err
    return json.loads(ended.out)


@pytest.fixture
def recipe(tiny, rows, tmp_path):
    return settings(tiny, rows, tmp_path / "runs" / "new", "max_steps=5")


def test_a_plan_needs_no_weights(tiny, rows, tmp_path, cli):
    bare = tmp_path / "bare"
    bare.mkdir()
    for file in tiny.iterdir():
        if file.suffix != ".safetensors":
            (bare / file.name).write_bytes(file.read_bytes())
    with_weights = plan(cli, *settings(tiny, rows, tmp_path / "a", "max_steps=5"), "--on", "H100")
    without = plan(cli, *settings(bare, rows, tmp_path / "b", "max_steps=5"), "--on", "H100")
    assert not any("refuse this model" in note for note in without["notes"])
    (bare / "pytorch_model.bin").write_bytes(b"")
    (warning,) = [note for note in weights_notes(bare) if "refuse this model" in note]
    assert "pytorch_model.bin" in warning
    assert without["parameters"] == with_weights["parameters"] > 0
    assert without["work"] == with_weights["work"]


def test_it_tells_all_of_a_run(recipe, cli):
    found = plan(cli, *recipe)
    assert found["work"]["steps"] == 5
    assert found["trainable"]["full"] == found["parameters"]
    assert 0 < found["trainable"]["lora"] < found["parameters"]
    here = found["here"]
    parts = ("process", "weights", "gradients", "optimizer", "row", "snapshot", "workspace")
    assert sum(here["memory"][part] for part in parts) == pytest.approx(
        Range(*here["memory"]["total"]).expected
    )
    assert here["fits"]
    checkpoint, model = 12 * found["trainable"]["full"], 4 * found["parameters"]
    assert found["disk"] == pytest.approx([n * checkpoint + model for n in (2, 3, 4)]), (
        "docs/recovery.md says so"
    )
    assert found["licences"]["commercial"] in ("yes", "unknown")
    machines = {option["machine"] for option in found["options"]}
    assert len(machines) > 10
    assert {option["method"] for option in found["options"]} == {"full", "lora", "qlora"}


def test_methods_and_machines_are_told_apart(recipe, cli):
    found = plan(cli, *recipe, "--on", "H100", "--on", "M3 16GB", "--price", "3.6")
    by = {(option["machine"], option["method"]): option for option in found["options"]}
    assert len(by) == 6
    full, lora = by["H100 80GB", "full"], by["H100 80GB", "lora"]
    assert full["memory"]["optimizer"] > lora["memory"]["optimizer"]
    assert by["Apple M3 16GB", "qlora"]["fits"] is False
    low, _, high = full["seconds"]
    assert full["dollars"] == pytest.approx([low * 3.6 / 3600, high * 3.6 / 3600])


def test_a_model_that_takes_no_adapters_is_planned_in_full(recipe, cli, monkeypatch):
    """As recurrent ones: peft refuses them."""
    from imprint.errors import ModelError
    from imprint.planning import memory

    counted = memory.foretold_of

    def refused(config, prepared, method, *rest):
        if method == "lora":
            raise ModelError("the adapters do not fit this model")
        return counted(config, prepared, method, *rest)

    monkeypatch.setattr(memory, "foretold_of", refused)
    found = plan(cli, *recipe, "--on", "H100")
    notes = {option["method"]: option["note"] for option in found["options"]}
    assert notes == {"full": "", **dict.fromkeys(("lora", "qlora"), "the adapters do not fit this model")}
    assert list(found["trainable"]) == ["full"]
    assert "no lora and no qlora: the adapters do not fit this model" in found["notes"]
    ended = cli("plan", *recipe, "--on", "H100")
    assert ended.code == 0, ended.err
    assert cli("plan", *recipe, "method=lora").code == 2


@pytest.mark.slow
def test_a_model_too_large_does_not_fit_but_its_adapters_do(rows, tiny, tmp_path, cli):
    big = tmp_path / "big"
    big.mkdir()
    for file in tiny.iterdir():
        if file.suffix != ".safetensors":
            (big / file.name).write_bytes(file.read_bytes())
    config = json.loads((big / "config.json").read_text())
    config |= {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32,
               "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 128256}  # fmt: skip
    (big / "config.json").write_text(json.dumps(config))
    found = plan(
        cli, *settings(big, rows, tmp_path / "a", "max_steps=5"), "--on", "4090", "--on", "A100 80GB"
    )
    by = {(option["machine"], option["method"]): option for option in found["options"]}
    assert found["parameters"] > 7e9
    assert not by["RTX 4090 24GB", "full"]["fits"]
    assert by["RTX 4090 24GB", "qlora"]["fits"]
    assert by["A100 80GB", "lora"]["fits"]
    assert not by["A100 80GB", "full"]["fits"]  # 8 G parameters in float32 with gradients and moments: 128 GB
    assert found["here"]["fits"] is False


def test_at_eighty_columns(recipe, cli):
    ended = cli("plan", *recipe)
    assert ended.code == 0, ended.err
    assert max(map(len, ended.out.splitlines())) <= 80
    assert "…" not in ended.out
    for word in ("model", "data", "memory", "time", "licence", "RTX 4090", "H100"):
        assert word in ended.out


@pytest.mark.parametrize(
    ("arguments", "says"),
    [(("--on", "H1000"), "no machine of this name"), (("--price", "inf"), "a number of dollars"),
     (("learning_rat=1",), "learning_rate")],
)  # fmt: skip
def test_what_cannot_be_planned_is_refused(arguments, says, recipe, cli):
    ended = cli("plan", *recipe, *arguments)
    assert ended.code == 2
    assert says in ended.err


def run_of(folder, name, planned, peak, seconds, resumed=False):
    path = folder / name
    path.mkdir(parents=True)
    events = [
        {"kind": "start", "planned": {"peak_bytes": planned[0], "seconds": planned[1]}},
        *([{"kind": "resume", "step": 1}] if resumed else []),
        {"kind": "step", "step": 1, "peak_bytes": peak},
        {"kind": "end", "seconds": seconds},
    ]
    (path / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))


def test_runs_correct_the_next_plan(tmp_path):
    assert correction(tmp_path).runs == 0
    for number, factor in enumerate((1.2, 1.25, 1.3)):
        run_of(tmp_path, f"run-{number}", (1000, 10), 1000 * factor, 20 * factor)
    run_of(tmp_path, "resumed", (1000, 10), 9000, 900, resumed=True)
    (tmp_path / "torn").mkdir()
    (tmp_path / "torn/events.jsonl").write_text('{"kind": "start"')
    found = correction(tmp_path)
    assert found.runs == 3
    assert found.memory == pytest.approx(1.25)
    assert found.seconds == pytest.approx(2.5)
    assert found.memory_spread == pytest.approx(0.06)


def test_a_plan_takes_the_runs_beside_it_into_account(recipe, tmp_path, cli):
    before = plan(cli, *recipe)
    for number in range(3):
        run_of(tmp_path / "runs", f"run-{number}", (1000, 10), 2000, 30)
    after = plan(cli, *recipe)
    assert after["corrected_by"] == 3
    ratio = after["here"]["memory"]["total"][1] / before["here"]["memory"]["total"][1]
    assert ratio == pytest.approx(2, rel=0.1)
    assert os.path.exists(tmp_path / "runs")


def test_a_real_run_keeps_what_was_planned_and_what_came(recipe, tmp_path, cli):
    assert cli("train", *recipe).code == 0
    found = correction(tmp_path / "runs")
    assert found.runs == 1
    assert 0.2 < found.memory < 5
