"""Whole runs of each method: what others load is what was trained, and what was stopped goes on to the same bytes."""

from __future__ import annotations

import json
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

from conftest import build_model, environment, events_of, imprint, losses, settings, tree
from fresh import IDS

LORA = ("method=lora", "lora.rank=4", "learning_rate=3e-2", "max_steps=4", "validation=0")
ADAPTERS = {
    "lora": LORA,
    "rslora": (*LORA, "lora.scaling=rslora"),
    "dora": (*LORA, "lora.dora=true", "lora.scaling=rslora"),
    "pissa": (*LORA, "lora.init=pissa", "learning_rate=1e-2"),
    "pissa and rslora": (*LORA, "lora.init=pissa", "lora.scaling=rslora", "learning_rate=1e-2"),
    "qlora": (*LORA, "method=qlora"),
    "qlora and dora": (*LORA, "method=qlora", "lora.dora=true"),
}


def merged(given: tuple[str, ...]) -> list[str]:
    """Later values of a key in the place of earlier ones."""
    return [f"{key}={value}" for key, value in dict(one.split("=", 1) for one in given).items()]


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base whose matrices are whole blocks of 64 weights."""
    return build_model(tmp_path_factory.mktemp("models") / "wide", hidden=64)


@pytest.fixture(scope="module")
def trained(wide: Path, rows: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Runs of each kind of adapter: {name: (run folder, logits in the process that trained it, of its base)}."""
    import imprint.ending as module
    from imprint.model.attention import generating
    from imprint.run import train
    from imprint.settings import resolve

    folder = tmp_path_factory.mktemp("methods")
    found: dict[str, Any] = {}
    original = module.save_model
    with pytest.MonkeyPatch.context() as patch:
        for name, given in ADAPTERS.items():

            def spy(model: Any, *rest: Any, name: str = name) -> None:
                with torch.no_grad(), generating(model.model):
                    with model.model.disable_adapter():
                        before = model.model(input_ids=IDS).logits
                    found[name] = (folder / name, model.model(input_ids=IDS).logits, before)
                original(model, *rest)

            patch.setattr(module, "save_model", spy)
            arguments = settings(wide, rows, folder / name, *merged(given))
            train(resolve(None, arguments).recipe)
    return found


@pytest.fixture(scope="module")
def loaded(trained: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    """Logits of the same adapters in a process that knows PEFT and nothing of imprint."""
    out = tmp_path_factory.mktemp("fresh") / "logits.pt"
    folders = {name: str(run / "model") for name, (run, _, _) in trained.items()}
    command = [sys.executable, str(Path(__file__).with_name("fresh.py")), str(out), *folders.values()]
    alone = environment() | {"PYTHONPATH": ""}
    done = subprocess.run(command, env=alone, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    logits = torch.load(out)
    return {name: logits[path] for name, path in folders.items()}


@pytest.mark.parametrize("name", ADAPTERS)
def test_an_adapter_is_that_of_the_original_base_in_a_fresh_process(
    name: str, trained: Any, loaded: Any
) -> None:
    _, ours, before = trained[name]
    theirs = loaded[name][..., : ours.shape[-1]]
    scale = float(ours.abs().max())
    assert float((ours - theirs).abs().max()) <= 1e-5 * scale
    assert float((ours - before).abs().max()) > 1e-2 * scale  # it did learn: equal is not idle


def test_pissas_own_factors_on_the_original_base_would_not_be_the_model(trained: Any, loaded: Any) -> None:
    """The planted twin: an adapter that is saved as it was trained counts its first directions twice."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    run, ours, _ = trained["pissa"]
    config = json.loads((run / "model/adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["init_lora_weights"]) == (8, 64, True)
    base = AutoModelForCausalLM.from_pretrained(config["base_model_name_or_path"], dtype=torch.float32)
    base.resize_token_embeddings(ours.shape[-1], mean_resizing=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # peft 0.21 asks transformers 5 by an old name
        model = PeftModel.from_pretrained(base, run / "model").eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter[:, 4:] = 0  # the half that takes the first factors away again
        wrong = model(input_ids=IDS).logits
    assert float((ours - wrong).abs().max()) > 1e-3 * float(ours.abs().max())


def test_a_quantised_base_is_recorded(trained: Any) -> None:
    run, _, _ = trained["qlora"]
    facts = json.loads((run / "run.json").read_text())
    held = json.loads((run / "model/quantized_base.json").read_text())
    assert facts["quantized_base"] == {
        "library": "bitsandbytes", "type": "nf4", "double": True, "skip": [], "block": 64,
    }  # fmt: skip
    assert facts["versions"]["bitsandbytes"] == held["version"]
    assert "model.layers.0.self_attn.q_proj" in held["layers"]
    assert len(held["layers"]) == 14
    assert not any("lm_head" in name for name in held["layers"])
    assert not (trained["lora"][0] / "model/quantized_base.json").exists()
    start = events_of(run, "start")[0]
    assert start["num_parameters"] == events_of(trained["lora"][0], "start")[0]["num_parameters"]
    page = (run / "report.html").read_text()
    assert "Low-rank adapters (rank 4) on wide, held in four bits (nf4), were trained" in page
    other = (trained["qlora and dora"][0] / "report.html").read_text()
    assert (
        "Low-rank adapters (rank 4, rsLoRA, DoRA) on wide" in (trained["dora"][0] / "report.html").read_text()
    )
    assert "Low-rank adapters (rank 4, DoRA) on wide, held in four bits (nf4), were trained" in other


def test_a_chat_speaks_with_the_quantised_base(trained: Any) -> None:
    from imprint.model.attention import generating
    from imprint.serve.chat import load_speaker

    run, ours, _ = trained["qlora"]
    model = load_speaker(run).model.model
    with torch.no_grad(), generating(model):
        logits = model(input_ids=IDS).logits
    assert float((logits - ours).abs().max()) <= 1e-5 * float(ours.abs().max())


def test_nothing_is_said_of_kernels(wide: Path, rows: Path, tmp_path: Path) -> None:
    """In a new interpreter, as a user runs it: bitsandbytes warns of a package that would not help."""
    done = imprint(
        "train", *settings(wide, rows, tmp_path / "run", *merged((*LORA, "method=qlora", "max_steps=1")))
    )
    assert done.code == 0, done.err
    assert "kernels-community" not in done.out + done.err
    assert "Warning" not in done.err
    assert "base in four bits: nf4 with double quantisation" in " ".join((done.out + done.err).split())


# ---- stopped and taken up again

STEPS = ("max_steps=6", "validation=0.2", "validate_every=3", "save_every=2", "learning_rate=1e-2")
RESUMED = {
    "qlora with noise": (*STEPS, "method=qlora", "lora.rank=4", "neftune_alpha=5"),
    "dora by muon": (*STEPS, "method=lora", "lora.dora=true", "optimizer=muon"),
    "pissa in eight bits": (*STEPS, "method=lora", "lora.init=pissa", "lora.rank=16", "optimizer=adamw_8bit"),
    "half frozen in float16": (*STEPS, 'freeze=["model.layers.0.*"]', "precision=float16"),
}
ONE_BY_ONE = {
    "qlora": (*STEPS, "method=qlora"),
    "rslora": (*STEPS, "method=lora", "lora.scaling=rslora"),
    "muon": (*STEPS, "optimizer=muon"),
    "eight bits": (*STEPS, "optimizer=adamw_8bit"),
    "float16": (*STEPS, "precision=float16", "method=lora"),
    "noise": (*STEPS, "neftune_alpha=10"),
    "fp4": (
        *STEPS,
        "method=qlora",
        "quantization.type=fp4",
        "quantization.double=false",
        "precision=bfloat16",
    ),
}


class Cut(Exception):
    """Stands for whatever ends a process."""


def check_resumed(given: tuple[str, ...], tiny: Path, rows: Path, folder: Path, cli: Any) -> Path:
    import imprint.train.loop as loop

    whole, run = folder / "whole", folder / "run"
    assert cli("train", *settings(tiny, rows, whole, *given)).code == 0
    original, calls = loop.train_step, 0

    def cut(*arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 4:  # three updates are made, two of them saved
            raise Cut
        return original(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "train_step", cut)
        with pytest.raises(Cut):
            cli("train", *settings(tiny, rows, run, *given))
    done = cli("resume", run)
    assert done.code == 0, done.err
    assert losses(run) == losses(whole)
    assert tree(run / "model") == tree(whole / "model")
    return whole


@pytest.mark.parametrize("name", RESUMED)
def test_stopped_and_resumed_is_uninterrupted(
    name: str, wide: Path, rows: Path, tmp_path: Path, cli: Any
) -> None:
    whole = check_resumed(RESUMED[name], wide, rows, tmp_path, cli)
    if "float16" in name:
        assert all(event["loss_scale"] == 2.0**16 for event in events_of(whole, "step"))


@pytest.mark.slow
@pytest.mark.parametrize("name", ONE_BY_ONE)
def test_each_alone_too(name: str, wide: Path, rows: Path, tmp_path: Path, cli: Any) -> None:
    check_resumed(ONE_BY_ONE[name], wide, rows, tmp_path, cli)


def test_frozen_weights_are_saved_as_they_were(tiny: Path, rows: Path, tmp_path: Path, cli: Any) -> None:
    """In bfloat16, which would round those of a float32 base."""
    from safetensors.torch import load_file

    given = (
        "max_steps=2",
        "validation=0",
        "precision=bfloat16",
        'freeze=["model.layers.0.*"]',
        "learning_rate=1e-2",
    )
    assert cli("train", *settings(tiny, rows, tmp_path / "run", *given)).code == 0
    (file,) = (tmp_path / "run/model").glob("*.safetensors")
    (base,) = tiny.glob("*.safetensors")
    after, before = load_file(file), load_file(base)
    frozen = [name for name in before if ".layers.0." in name]
    page = (tmp_path / "run/report.html").read_text()
    assert "Every weight of" not in page
    assert "weights of tiny were trained" in page
    assert frozen
    assert all(torch.equal(after[name], before[name]) for name in frozen)
    assert not torch.equal(
        after["model.layers.1.mlp.up_proj.weight"], before["model.layers.1.mlp.up_proj.weight"]
    )


@pytest.mark.parametrize("given", ["optimizer=muon", "optimizer=adamw_8bit", "method=qlora"])
def test_what_needs_one_process_is_refused_with_more(given: str, tiny: Path, rows: Path) -> None:
    from imprint.build import optimizer_of
    from imprint.build_model import quantized_base
    from imprint.distributed.mesh import Mesh
    from imprint.errors import RecipeError
    from imprint.settings import resolve

    recipe = resolve(None, [f"model={tiny}", f"data={rows}", given]).recipe
    model: Any = None  # is not looked at
    with pytest.raises(RecipeError, match=f"{given} works with one process only") as caught:
        (quantized_base if "qlora" in given else lambda r, m: optimizer_of(r, model, m))(recipe, Mesh(size=2))
    assert "found     2 processes" in str(caught.value)
    assert caught.value.fix
