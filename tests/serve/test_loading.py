"""An engine from folders: adapters by name beside each other, types, and what is refused."""

from __future__ import annotations

import shutil

import pytest
import torch
from engines import assert_told_truly, one_by_one, replies
from safetensors.torch import load_file, save_file

from conftest import settings
from imprint.errors import ModelError
from imprint.serve.chat import load_speaker
from imprint.serve.engine import Ask
from imprint.serve.loading import load_engine

SMALL = dict(cache_bytes=1 << 24, prefix_bytes=1 << 20)


@pytest.fixture(scope="module")
def runs(tiny, rows, tmp_path_factory):
    """Two LoRA runs on one base, which say different things."""
    from imprint.run import train
    from imprint.settings import resolve

    paths = []
    for seed in (1, 2):
        path = tmp_path_factory.mktemp("engine") / f"run{seed}"
        given = ("max_steps=3", "method=lora", f"learning_rate={seed}e-2", f"seed={seed}")
        train(resolve(None, settings(tiny, rows, path, *given)).recipe)
        paths.append(path)
    return paths


@pytest.fixture
def served(request, tiny, runs):
    first, second = runs
    path, adapters = {
        "base": (tiny, {"one.a": first, "two": second / "model"}),
        "run": (first, {"two": second}),
    }[request.param]
    found = load_engine(path, adapters=adapters, template="chatml", **SMALL)
    yield found
    found.engine.close()


def prompts(served):
    asked = (
        "<|im_start|>user\nWhat colour is thing {}, if it is no tomato?<|im_end|>\n<|im_start|>assistant\n"
    )
    texts = [asked.format(i) for i in range(4)]
    return [ids.tolist() for ids in served.rendering.encoder.encode(texts)]


@pytest.mark.parametrize("served", ["base", "run"], indirect=True)
def test_adapters_beside_each_other(served, tiny, runs):
    """Asks of all adapters at once say what each model says alone; a prompt is cached for its adapter only."""
    names = {"": None, **dict.fromkeys(served.engine.adapters)}
    own = runs[0] if served.name == "run1" else tiny
    models = {"": own, "one.a": runs[0], "two": runs[1]}
    asks = [Ask(p, 12, adapter=name) for p in prompts(served) for name in names]
    together = replies(served.engine, asks)
    again = replies(served.engine, asks)
    alone = one_by_one(served.engine, asks[:4])
    said = {}
    for ask, (tokens, stream), (more, later) in zip(asks, together, again, strict=True):
        model = load_speaker(models[ask.adapter], template="chatml").model.model
        assert_told_truly(model, ask, tokens)
        assert_told_truly(model, ask, more)
        assert stream.cached_tokens <= later.cached_tokens > 0
        said.setdefault(ask.adapter, []).append([(t.id, round(t.logprob, 3)) for t in tokens])
    assert [[t.id for t in x] for x, _ in alone] == [[t.id for t in x] for x, _ in together[:4]]
    assert len({str(text) for text in said.values()}) == len(names)  # they do differ
    assert served.engine.load().finished == 2 * len(asks) + 4


def test_a_sole_run_is_served_with_its_adapter(runs):
    served = load_engine(runs[0], **SMALL)
    try:
        ask = Ask(prompts(served)[0], 12, score_prompt=True)
        ((said, stream),) = replies(served.engine, [ask])
        assert_told_truly(load_speaker(runs[0]).model.model, ask, said)
        assert len(stream.prompt) == len(ask.prompt)
        assert served.engine.adapters == ()
        assert served.engine.context == 128
    finally:
        served.engine.close()


def test_bfloat16(tiny):
    """Rounded weights: what is told is the rounded model's, to its own rounding."""
    served = load_engine(tiny, template="chatml", dtype="bfloat16", **SMALL)
    try:
        assert not served.engine.notes
        model = load_speaker(tiny, template="chatml").model.model.to(torch.bfloat16)
        ask = Ask(prompts(served)[0], 12)
        assert_told_truly(model, ask, replies(served.engine, [ask])[0][0], bar=0.1)
    finally:
        served.engine.close()


def test_eight_bits(tiny, runs):
    """Weights in 8 bits, an adapter on them: many at once as each alone, to the rounding of 8 bits."""
    pytest.importorskip("bitsandbytes")
    served = load_engine(tiny, template="chatml", dtype="int8", adapters={"one": runs[0]}, **SMALL)
    try:
        assert not served.engine.notes
        kinds = {type(m).__name__ for m in served.engine._runner.base.modules()}
        assert "Linear8bitLt" in kinds
        asks = [Ask(p, 8, score_prompt=True, adapter=name) for p in prompts(served) for name in ("", "one")]
        together, alone = replies(served.engine, asks), one_by_one(served.engine, asks)
        for (_, stream), (_, other) in zip(together, alone, strict=True):
            for mine, its in zip(stream.prompt[1:], other.prompt[1:], strict=True):
                assert abs(mine.logprob - its.logprob) < 0.05
    finally:
        served.engine.close()


def test_a_run_on_quantised_weights_is_served_on_them(tiny, rows, runs, tmp_path):
    """As trained: on the 4-bit base, beside adapters of that base only."""
    pytest.importorskip("bitsandbytes")
    from imprint.run import train
    from imprint.settings import resolve

    given = ("max_steps=1", "method=qlora")
    train(resolve(None, settings(tiny, rows, tmp_path / "run", *given)).recipe)
    served = load_engine(tmp_path / "run", **SMALL)
    try:
        assert not served.engine.notes
        model = load_speaker(tmp_path / "run").model.model
        for ask, (said, _) in zip(
            asks := [Ask(p, 8) for p in prompts(served)], replies(served.engine, asks), strict=True
        ):
            assert_told_truly(model, ask, said, bar=1e-4)
    finally:
        served.engine.close()
    with pytest.raises(ModelError, match="served on them"):
        load_engine(tmp_path / "run", dtype="int8")
    with pytest.raises(ModelError, match="weights of another kind"):
        load_engine(tiny, template="chatml", adapters={"x": tmp_path / "run"})


def test_what_is_refused(tiny, runs, tmp_path):
    with pytest.raises(ModelError, match="holds no adapter"):
        load_engine(tiny, template="chatml", adapters={"x": tiny})
    absent = "cuda" if not torch.cuda.is_available() else "cuda:99"
    for device in ("nope", absent, "cpu:x", "meta"):
        with pytest.raises(ModelError, match="this device cannot be used") as failure:
            load_engine(tiny, device=device)
        assert f"device={device}" in str(failure.value)
        assert len(str(failure.value)) < 500
    with pytest.raises(ModelError, match="no such type"):
        load_engine(tiny, template="chatml", dtype="float8")
    other = tmp_path / "other"
    shutil.copytree(tiny, other)
    with pytest.raises(ModelError, match="trained on another model"):
        load_engine(other, template="chatml", adapters={"x": runs[0]})
    torn = tmp_path / "torn"
    shutil.copytree(runs[0] / "model", torn)
    weights = load_file(torn / "adapter_model.safetensors")
    save_file({k: v[:, :-1].contiguous() for k, v in weights.items()}, torn / "adapter_model.safetensors")
    with pytest.raises(ModelError, match="does not fit"):
        load_engine(tiny, template="chatml", adapters={"x": torn})
    with pytest.raises(ModelError, match="no memory for keys and values"):
        load_engine(tiny, template="chatml", cache_bytes=100)


def test_little_memory_means_shorter_texts(tiny):
    """Room for 50 tokens: that is the context then, and the notes say why."""
    served = load_engine(tiny, template="chatml", cache_bytes=50 * 2 * 2 * 32 * 4, prefix_bytes=0)
    try:
        assert served.engine.context == 50
        assert "up to 50 tokens" in served.engine.notes[0]
        prompt = prompts(served)[0][:20]
        ((said, stream),) = replies(served.engine, [Ask(prompt, 99)])
        assert len(prompt) == 20
        assert (len(said), stream.finish) == (30, "length")
    finally:
        served.engine.close()
