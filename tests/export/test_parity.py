"""A copy that says what was trained passes; each planted fault misses the bar by at least 100 times."""

from __future__ import annotations

import json
import shutil
import warnings
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from imprint.export.folder import FolderCandidate, compare, kind_of, replay_folder
from imprint.export.golden import read_golden
from imprint.export.parity import bar_for, in_words, parity_of, proof_of

FAR = 100  # times the bar


@pytest.fixture(scope="module")
def golden(trained):
    return read_golden(trained / "lora")


@pytest.fixture(scope="module")
def merged(trained):
    """The adapter merged into its base by PEFT, in float32."""
    out, run = trained / "merged", trained / "lora" / "model"
    whole = FolderCandidate(run, "2026-01-01")
    model = whole.model.merge_and_unload()
    model.generation_config = whole.generation
    model.config.eos_token_id = whole.generation.eos_token_id
    model.save_pretrained(out)
    whole.tokenizer.save_pretrained(out)
    return out


@pytest.fixture
def copy(merged, tmp_path):
    return shutil.copytree(merged, tmp_path / "copy")


@pytest.fixture
def adapter(trained, tmp_path):
    return shutil.copytree(trained / "lora" / "model", tmp_path / "adapter")


def change_json(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def change_weights(folder, change, name="model.safetensors"):
    tensors = load_file(folder / name)
    save_file(change(tensors), folder / name, metadata={"format": "pt"})


def far(found):
    """Not equal, and by at least FAR times the bar."""
    assert not found.equal
    assert found.difference >= FAR * found.bar, found
    assert found.bar == 1e-5
    return found


# ---- what is equal passes


def test_what_merging_costs_this_model_widens_the_bar_and_nothing_else_does(golden):
    assert 0 < golden.rounding["float32"] < 1e-5
    sharp = replace(golden, rounding={**golden.rounding, "float32": 5e-5})
    assert bar_for("float32", sharp, "float64") == pytest.approx(5.5e-5)
    assert bar_for("float32", replace(golden, rounding={}), "float64") == 1e-5


def test_the_run_s_own_adapter_and_its_merge_pass(trained, golden, merged):
    found = replay_folder(trained / "lora" / "golden.json", merged)
    assert found.equal, found
    assert found.bar == 1e-5
    assert 0 < found.difference <= 1e-5  # merged in float32: other numbers, to rounding
    assert found.prompts_equal == found.replies_equal == found.examples == 4
    assert found.stops_equal
    assert found.bos_equal
    assert found.compared > 50
    assert found.divergence is None
    assert parity_of(json.loads(json.dumps(found.to_json()))) == found
    assert compare(golden, trained / "lora" / "model", "float32").difference <= 1e-12


@pytest.mark.slow
def test_a_full_run_is_held_to_the_bar_of_float32(full):
    """Its golden file is of the weights as they were saved, in bfloat16: nothing more is lost."""
    golden = read_golden(full)
    assert golden.kind == kind_of(full / "model") == "bfloat16"
    found = compare(golden, full / "model", "bfloat16")
    assert found.equal, found
    assert found.bar == 1e-5


def test_bars_follow_the_type_and_the_model(golden):
    calm = replace(golden, noise=0.0, rounding={}, kind="float32")
    bars = {kind: bar_for(kind, calm) for kind in ("float32", "float16", "bfloat16", "gguf-f32", "gguf-q8_0")}
    assert bars == {"float32": 1e-5, "float16": 1e-2, "bfloat16": 5e-2, "gguf-f32": 1e-4, "gguf-q8_0": 5e-2}
    assert bar_for("gguf-q4_0", calm) is None
    assert bar_for("float32", replace(calm, noise=1e-4)) == 4e-4  # a target that computes in float32
    assert bar_for("float32", replace(calm, noise=1e-4), "float64") == 1e-5
    assert bar_for("gguf-q8_0", replace(calm, rounding={"q8_0": 0.3})) == 0.6
    assert bar_for("gguf-bf16", replace(calm, kind="bfloat16")) == 1e-4
    assert bar_for("bfloat16", replace(calm, kind="bfloat16")) == 1e-5
    assert bar_for("float32", replace(calm, rounded="frozen matrices")) == 5e-2


# ---- weights


def test_a_renamed_key_of_the_adapter(golden, adapter):
    def rename(tensors):
        key = next(key for key in tensors if "lora_B" in key)
        return {name.replace("lora_B", "lora_Z") if name == key else name: t for name, t in tensors.items()}

    change_weights(adapter, rename, "adapter_model.safetensors")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT says so, and goes on
        found = far(compare(golden, adapter, "float32"))
    assert found.prompts_equal == found.examples
    assert "weights or adapter" in found.cause or "precision" in found.cause


def test_no_adapter_at_all(golden, adapter):
    change_weights(
        adapter,
        lambda tensors: {k: torch.zeros_like(t) for k, t in tensors.items()},
        "adapter_model.safetensors",
    )
    assert "the adapter is not applied" in far(compare(golden, adapter, "float32")).cause


def test_an_adapter_on_another_base(golden, adapter, trained, tmp_path):
    other = shutil.copytree(trained / "base", tmp_path / "other")
    generator = torch.Generator().manual_seed(0)

    def other_weights(tensors):
        return {
            k: (t.float() * (1 + 0.05 * torch.randn(t.shape, generator=generator))).to(t.dtype)
            for k, t in tensors.items()
        }

    change_weights(other, other_weights)
    change_json(adapter / "adapter_config.json", base_model_name_or_path=str(other))
    assert "weights or adapter" in far(compare(golden, adapter, "float32")).cause


def test_perturbed_weights(golden, copy):
    def perturb(tensors):
        key = "model.layers.2.mlp.down_proj.weight"
        return tensors | {key: tensors[key] * 1.02}

    change_weights(copy, perturb)
    far(compare(golden, copy, "float32"))


def test_exchanged_heads_of_attention(golden, copy):
    """As a converter would that takes q and k for permuted ones, or does not."""

    def permute(tensors):
        key = "model.layers.0.self_attn.q_proj.weight"
        heads = tensors[key].view(6, 2, 16, 192).transpose(1, 2).reshape(192, 192).contiguous()
        return tensors | {key: heads}

    change_weights(copy, permute)
    far(compare(golden, copy, "float32"))


def test_a_tied_head_that_was_overwritten(golden, copy):
    def untie(tensors):
        head = tensors["model.embed_tokens.weight"].clone()
        head[: len(head) // 2] += 0.01
        return tensors | {"lm_head.weight": head}

    change_weights(copy, untie)
    change_json(copy / "config.json", tie_word_embeddings=False)
    assert "weights" in far(compare(golden, copy, "float32")).cause


def test_rounded_weights_are_called_so(golden, copy):
    change_weights(copy, lambda tensors: {k: t.half().float() for k, t in tensors.items()})
    found = compare(golden, copy, "float32")
    assert not found.equal
    assert "precision" in found.cause
    assert compare(golden, copy, "float16").equal


# ---- prompts


def test_a_changed_template(golden, copy):
    path = copy / "chat_template.jinja"
    path.write_text(path.read_text().replace("<|im_start|>{{ m.role }}\n", "<|im_start|>{{ m.role }} \n"))
    found = compare(golden, copy, "float32")
    assert not found.equal
    assert found.prompts_equal == 0
    assert found.difference <= 1e-5  # of the same ids: the weights are as they were
    assert found.cause.startswith("template: the text parts from the trained one at character ")
    assert found.divergence.inside == "prompt"
    assert found.divergence.position > 0
    assert found.divergence.expected != found.divergence.found


def test_a_template_that_fails(golden, copy):
    path = copy / "chat_template.jinja"
    path.write_text("{{ raise_exception('no') }}")
    found = compare(golden, copy, "float32")
    assert not found.equal
    assert "refuses" in found.cause


def test_a_second_bos_of_the_template(golden, copy):
    path = copy / "chat_template.jinja"
    path.write_text("{{ bos_token }}" + path.read_text())
    found = compare(golden, copy, "float32")
    assert found.prompts_equal == 0
    assert found.cause == "BOS: 2 × <|endoftext|> in the prompt, where training had 1"
    assert (found.divergence.position, found.divergence.expected) == (1, "<|im_start|>")
    assert found.divergence.found == "<|endoftext|>"


def test_a_missing_bos(golden, copy):
    path = copy / "chat_template.jinja"
    path.write_text(path.read_text().replace("{{ bos_token }}", ""))
    assert (
        compare(golden, copy, "float32").cause == "BOS: 0 × <|endoftext|> in the prompt, where training had 1"
    )


def test_a_second_bos_of_the_tokenizer(golden, copy):
    """Nothing that is rendered changes, but who tokenises a rendered text by the defaults gets two."""
    from tokenizers import Tokenizer
    from tokenizers.processors import TemplateProcessing

    path = copy / "tokenizer.json"
    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.post_processor = TemplateProcessing(
        single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", 0)]
    )
    tokenizer.save(str(path))
    found = compare(golden, copy, "float32")
    assert not found.equal
    assert found.bos_equal is False
    assert "puts 1 BOS before a text by itself, in training it put 0" in found.faults[0]
    assert found.cause.startswith("BOS")


def test_a_swapped_tokenizer(golden, copy):
    path = copy / "tokenizer.json"
    value = json.loads(path.read_text())
    vocab = value["model"]["vocab"]
    words = [
        vocab_word for vocab_word, number in vocab.items() if number in set(golden.examples[0].prompt_ids)
    ]
    common = [word for word in words if vocab[word] > 10][:2]
    vocab[common[0]], vocab[common[1]] = vocab[common[1]], vocab[common[0]]
    path.write_text(json.dumps(value))
    found = compare(golden, copy, "float32")
    assert not found.equal
    assert found.prompts_equal < found.examples
    assert found.cause.startswith("tokenizer: the same text becomes other tokens")


# ---- stops


@pytest.mark.parametrize("name", ["generation_config.json", "config.json"])
def test_a_stop_that_was_dropped(golden, copy, name):
    assert len(golden.stop_ids) == 2
    change_json(copy / name, eos_token_id=golden.stop_ids[1])
    found = compare(golden, copy, "float32")
    assert not found.equal
    assert found.stops_equal is False
    assert found.faults[0].startswith(f"{name} stops at <|endoftext|> (0)")
    assert found.cause.startswith("stop set")
    if name == "generation_config.json":  # what transformers follows: its replies run on
        assert found.replies_equal < found.examples
        assert found.divergence.expected == "<|im_end|>"


def test_a_stop_that_the_tokenizer_forgot(golden, copy):
    name = "<|pad|>"
    change_json(copy / "tokenizer_config.json", eos_token=name)
    found = compare(golden, copy, "float32")
    assert not found.equal
    assert found.faults[0].startswith("tokenizer stops at <|pad|>")


# ---- greedy replies


class Like:
    """A candidate that says what the golden file says, but for what a test changes."""

    name = "a copy"

    def __init__(self, golden, **changes):
        self.golden = golden
        self.__dict__.update(changes)

    def stops(self):
        return {"config.json": self.golden.stop_ids}

    def bos(self):
        return self.golden.bos.added

    def prompt(self, example):
        from imprint.export.parity import Asked

        return Asked(example.prompt_ids, example.prompt)

    def logprobs(self, prompt, continuation, wanted):
        for example in self.golden.examples:
            for given in (example.reply, example.greedy):
                if (example.prompt_ids, given.ids) == (tuple(prompt), tuple(continuation)):
                    return [given.known(place) for place in range(len(given.ids))]
        raise AssertionError("it was asked for something else")

    def greedy(self, example):
        from imprint.export.parity import Reply

        ids = example.greedy.ids[:-1] if example.stopped else example.greedy.ids
        return Reply(ids, example.text, example.stopped)

    def token(self, number):
        return f"<{number}>"


def with_margin(golden, margin):
    """The golden file with the first example's second token `margin` nats behind at its third place."""
    first = golden.examples[0]
    (best, logprob), (other, _), *rest = first.greedy.top[2]
    top = (*first.greedy.top[:2], ((best, logprob), (other, logprob - margin), *rest), *first.greedy.top[3:])
    changed = replace(first, greedy=replace(first.greedy, top=top))
    return replace(golden, examples=(changed, *golden.examples[1:])), other


@pytest.mark.parametrize(("margin", "excused"), [(1e-6, True), (2e-5, False)])
def test_a_greedy_reply_may_differ_where_it_hangs_by_a_hair(golden, margin, excused):
    from imprint.export.parity import Reply, replay

    golden, other = with_margin(golden, margin)
    first = golden.examples[0]
    plain = Like(golden).greedy

    def greedy(example):
        if example is not first:
            return plain(example)
        return Reply([*first.greedy.ids[:2], other, 9], "other", True)

    found = replay(golden, Like(golden, greedy=greedy), "float32", 1e-5)
    assert found.excused == excused
    assert found.equal == excused
    if excused:
        assert "less than 1e-05 nats apart" in " ".join(found.notes)
    else:
        assert (found.divergence.inside, found.divergence.position) == ("reply", 2)
        assert found.divergence.expected == first.greedy.tokens[2]
        assert found.cause.startswith("generation")


def test_what_cannot_be_shown_is_said_and_nothing_shown_is_not_equal(golden):
    from imprint.export.parity import replay

    def nothing(*_):
        return None

    blind = Like(golden, stops=nothing, bos=nothing, prompt=nothing, logprobs=nothing, greedy=nothing)
    found = replay(golden, blind, "float32", 1e-5)
    assert not found.equal
    assert found.faults == ("nothing could be compared",)
    assert (found.prompts_equal, found.stops_equal, found.difference, found.replies_equal) == (None,) * 4
    assert len(found.notes) == 4
    assert replay(golden, Like(golden, stops=nothing, logprobs=nothing), "float32", 1e-5).equal


def test_no_number_is_not_near(golden):
    from imprint.export.parity import replay

    def logprobs(prompt, continuation, wanted):
        return [dict.fromkeys(some, float("nan")) for some in wanted]

    found = replay(golden, Like(golden, logprobs=logprobs), "float32", 1e-5)
    assert not found.equal
    json.loads(json.dumps(found.to_json(), allow_nan=False))


def test_it_is_said_in_one_paragraph(golden, copy):
    path = copy / "chat_template.jinja"
    path.write_text("{{ bos_token }}" + path.read_text())
    found = compare(golden, copy, "float32")
    said = in_words(found)
    assert said.startswith(f"{copy} is not what was trained: 4 of 4 prompts become other tokens")
    assert "First difference: prompt of example 1 (rows.jsonl:" in said
    assert "Likely cause: BOS" in said
    proof = proof_of(found)
    assert proof.passed is False
    assert proof.facts["equal"] is False
