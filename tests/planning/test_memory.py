"""What is asked of the copies of an architecture, and how often."""

from types import SimpleNamespace

import pytest
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from imprint.planning import memory
from imprint.planning.memory import NF4_BYTES, teller
from imprint.recipe import Recipe

CONFIG = CONFIG_MAPPING["llama"](
    hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1,
    vocab_size=256,
)  # fmt: skip


@pytest.fixture
def asked(monkeypatch, tmp_path):
    """The calls of `foretell`, and a teller that makes them."""
    monkeypatch.setenv("IMPRINT_CACHE", str(tmp_path / "cache"))
    calls, original = [], memory.foretell

    def counted(config, **options):
        calls.append(options)
        return original(config, **options)

    monkeypatch.setattr(memory, "foretell", counted)
    recipe = Recipe.model_validate({"model": "m", "data": [{"path": "d"}]})
    prepared = SimpleNamespace(recipe=recipe, num_tokens=256, rendering=SimpleNamespace(added=()))
    return calls, lambda: teller(CONFIG, prepared)


def test_a_plan_asks_each_thing_once(asked):
    calls, made = asked
    told = made()
    for method in ("full", "lora", "qlora"):
        for kind in ("cuda", "mps"):
            told(method, kind, "bfloat16", False)
    assert len(calls) == 2  # full and lora: qlora computes as lora does, and these devices alike
    told("lora", "cpu", "bfloat16", False)
    assert len(calls) == 3  # layers are fused on a processor
    again = made()
    assert again("full", "cuda", "bfloat16", False).need == told("full", "cuda", "bfloat16", False).need
    assert len(calls) == 3  # from the cache


def test_what_other_code_computed_is_asked_anew(asked, monkeypatch):
    calls, made = asked
    made()("full", "cpu", "float32", False)
    monkeypatch.setattr(memory, "computed_by", lambda: "another version")
    made()("full", "cpu", "float32", False)
    assert len(calls) == 2


def test_four_bits_change_what_is_held_and_nothing_else(asked):
    told = asked[1]()
    lora, qlora = (told(method, "cuda", "bfloat16", False) for method in ("lora", "qlora"))
    assert lora.weights - qlora.weights == pytest.approx((2 - NF4_BYTES) * lora.frozen, abs=1)
    assert 0 < lora.frozen < lora.counted
    assert (qlora.need, qlora.trained, qlora.products) == (lora.need, lora.trained, lora.products)
