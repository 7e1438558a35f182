"""The golden file of a run, replayed on its GGUF files: in transformers here, in llama.cpp where there is one."""

from __future__ import annotations

import itertools
import json
import sys
import unicodedata
from dataclasses import replace
from pathlib import Path

import pytest
from gguf_models import FAMILIES, TEXT, ids_of, load, logprobs, write_model
from test_gguf_tokens import REAL, SPM, TEXTS, pieces, real_texts, real_tokenizer, saved, spm_backend

from imprint.demo.base import copy_base, demonstrations
from imprint.errors import ImprintError, RunFailed
from imprint.export import gguf as writer
from imprint.export import gguf_config, gguf_tensors, gguf_tokens
from imprint.export.gguf import write_gguf
from imprint.export.gguf_proof import GELU_TABLE, NOT_ASKED, compare, proof_of
from imprint.export.golden import read_golden
from imprint.export.llama_cpp import VARIABLE, find_server, serving
from imprint.export.parity import parity_of

pytest.importorskip("gguf")
assert pieces  # the fixture of SentencePiece's pieces

asked_for = find_server()


@pytest.fixture
def no_llama_cpp(monkeypatch, tmp_path):
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A short run of the embedded base model, and the standard folder that it exports."""
    from imprint.cli import main

    folder = tmp_path_factory.mktemp("runs")
    base = copy_base(folder / "base")
    lines = demonstrations().read_text(encoding="utf-8").splitlines(keepends=True)
    (folder / "rows.jsonl").write_text("".join(lines[:24]), encoding="utf-8")
    given = ["threads=1", "precision=float32", "samples=0", "batch_size=8", "max_steps=4", "golden=6"]
    arguments = [f"model={base}", f"data={folder / 'rows.jsonl'}", f"output={folder / 'run'}", *given]
    with pytest.raises(SystemExit, match="0"):
        main(["train", *arguments, "template=chatml", "learning_rate=1e-3"])
    with pytest.raises(SystemExit, match="0"):
        main(["export", str(folder / "run"), "--to", "hf"])
    return folder / "run"


@pytest.fixture(scope="module")
def golden(run):
    return read_golden(run)


def merged(run):
    return run / "export" / "hf"


def test_export_writes_one_file_and_proves_it(run, cli, no_llama_cpp, tmp_path):
    """As a user asks for it; another process reads the file and the golden file, and nothing else."""
    ended = cli(
        "export", run, "--to", "gguf", "type=f32", "name=my model", "--out", tmp_path / "out", "--json"
    )
    assert ended.code == 0, ended.err
    told = json.loads(ended.out)
    assert Path(told["path"]) == tmp_path / "out" / "my-model-F32.gguf"
    assert told["proof"]["passed"] is True
    assert "6 of 6 prompts and 6 of 6 greedy replies equal" in told["proof"]["line"]
    assert NOT_ASKED in told["proof"]["line"]
    facts = json.loads((tmp_path / "out" / "parity.json").read_text())
    assert facts["transformers"]["difference"] < 1e-4
    assert not list((tmp_path / "out").glob("*.safetensors"))


def test_unknown_settings_and_types_are_refused(run, cli, tmp_path):
    ended = cli("export", run, "--to", "gguf", "typ=f32", "--out", tmp_path / "a")
    assert (ended.code, "write type=f32" in ended.err) == (2, True)
    ended = cli("export", run, "--to", "gguf", "type=q9", "--out", tmp_path / "b")
    assert (ended.code, "no GGUF type" in ended.err) == (2, True)
    assert not list(tmp_path.iterdir())


def found(run, golden, path, type="f32"):
    write_gguf(merged(run), path, type)
    return compare(golden, path, f"gguf-{type}")


SLOW = [pytest.param(type, marks=pytest.mark.slow) for type in ("f16", "bf16", "q4_0", "q5_1")]


@pytest.mark.parametrize("type", ["q8_0", *SLOW])
def test_every_type_passes(run, golden, tmp_path, no_llama_cpp, type):
    proof = proof_of(found(run, golden, tmp_path / "a.gguf", type))
    assert proof.passed, proof.line
    assert proof.line.endswith(NOT_ASKED)
    assert ("too few bits for a bar" in proof.line) == (type in ("q4_0", "q5_1"))


def no_permutation(monkeypatch):
    monkeypatch.setattr(gguf_tensors, "interleaved", lambda values, heads: values)


def another_theta(monkeypatch):
    def wrong(folder):
        shape = gguf_config.read_shape(folder)
        return replace(shape, keys={**shape.keys, "rope.freq_base": 500.0})

    monkeypatch.setattr(writer, "read_shape", wrong)


@pytest.mark.parametrize("plant", [no_permutation, pytest.param(another_theta, marks=pytest.mark.slow)])
def test_wrong_weights_and_positions_miss_by_far(run, golden, tmp_path, monkeypatch, no_llama_cpp, plant):
    plant(monkeypatch)
    told = found(run, golden, tmp_path / "a.gguf")
    parity = parity_of(told["transformers"])
    assert parity.difference > 100 * parity.bar
    proof = proof_of(told)
    assert proof.passed is False
    assert "is not what was trained" in proof.line


def changed(monkeypatch, **changes):
    read = gguf_tokens.read_vocabulary

    def wrong(*arguments):
        vocabulary = read(*arguments)
        given = {key: value(getattr(vocabulary, key)) for key, value in changes.items()}
        return replace(vocabulary, **given)

    monkeypatch.setattr(writer, "read_vocabulary", wrong)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (dict(merges=lambda merges: merges[40:]), "prompts become other tokens"),
        pytest.param(
            dict(template=lambda text: text.replace("assistant", "helper")),
            "prompts become other tokens",
            marks=pytest.mark.slow,
        ),
        (dict(ids=lambda ids: {**ids, "eos": 300, "eot": 301}), "the GGUF file stops at"),
        (dict(ids=lambda ids: {**ids, "bos": 0}, add_bos=lambda _: True), "prompts become other tokens"),
    ],
)
def test_a_wrong_tokenizer_is_caught(run, golden, tmp_path, monkeypatch, no_llama_cpp, changes, said):
    changed(monkeypatch, **changes)
    proof = proof_of(found(run, golden, tmp_path / "a.gguf"))
    assert proof.passed is False
    assert said in proof.line


# ---- llama.cpp --------------------------------------------------------------------------------


def test_a_server_that_does_not_come_up_is_told(tmp_path, monkeypatch):
    script = tmp_path / "server.py"
    script.write_text("import sys\nprint('error: cannot load', sys.argv[2])\nsys.exit(1)\n")
    monkeypatch.setenv(VARIABLE, f"{sys.executable} {script}")
    told = pytest.raises(RunFailed, match=r"error: cannot load .*m\.gguf")
    with told, serving(tmp_path / "m.gguf", find_server()):
        pass


@pytest.mark.slow
def test_a_llama_cpp_that_fails_fails_the_proof(run, golden, tmp_path, monkeypatch):
    monkeypatch.setenv(VARIABLE, f"{sys.executable} -c exit(1)")
    proof = proof_of(found(run, golden, tmp_path / "a.gguf"))
    assert proof.passed is False
    assert "llama.cpp fails: llama.cpp cannot serve the file" in proof.line


def test_where_a_server_is_found(tmp_path, monkeypatch):
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_server() is None
    tool = tmp_path / "llama-server"
    tool.write_text("#!/bin/sh\n")
    tool.chmod(0o755)
    assert find_server() == [str(tool)]
    monkeypatch.setenv(VARIABLE, "docker run 'some image'")
    assert find_server() == ["docker", "run", "some image"]


needs_llama_cpp = [
    pytest.mark.slow,
    pytest.mark.skipif(
        asked_for is None,
        reason=f"no llama-server: put one on PATH, or name it in {VARIABLE} (see tools/llama_server.py)",
    ),
]


def in_llama_cpp(path, ids, reference, every=3):
    """(ids of TEXT, largest difference among the five likeliest tokens) as llama.cpp has them."""
    worst = 0.0
    with serving(path, asked_for) as server:
        for place in range(2, len(ids), every):
            told = server.likeliest(ids[: place + 1])
            for token in reference[place].topk(5).indices.tolist():
                worst = max(worst, abs(told.get(token, -1e6) - float(reference[place, token])))
        return server.tokenize(TEXT, around=True), worst


LLAMA_CPP_BARS = {"f32": 1e-4, "f16": 1e-2, "q8_0": 5e-2}
FULL = ("llama", "qwen3", "gemma2")  # families whose files of every type are asked


@pytest.mark.parametrize(
    ("family", "type"),
    [(family, type) for family in FAMILIES for type in LLAMA_CPP_BARS if type == "f32" or family in FULL],
)
class TestFamilies:
    pytestmark = needs_llama_cpp

    def test_llama_cpp_computes_what_transformers_does(self, run, tmp_path, family, type):
        folder = write_model(tmp_path / "m", merged(run), family)
        ids, bar = ids_of(folder), LLAMA_CPP_BARS[type]
        path = write_gguf(folder, tmp_path / "m.gguf", type).path
        tokens, worst = in_llama_cpp(path, ids, logprobs(load(folder), ids))
        assert tokens == ids
        assert worst < (max(bar, GELU_TABLE) if "gemma" in family else bar)


class TestLlamaCpp:
    pytestmark = needs_llama_cpp

    @pytest.mark.parametrize("type", ["f32", "f16", "q8_0"])
    def test_the_golden_file_is_replayed(self, run, golden, tmp_path, type):
        """Its own template engine, tokenizer and arithmetic, on the embedded model."""
        told = found(run, golden, tmp_path / "a.gguf", type)
        assert isinstance(told["llama.cpp"], dict), told["llama.cpp"]
        parity = parity_of(told["llama.cpp"])
        assert parity.equal, parity
        assert parity.prompts_equal == parity.examples == 6
        assert parity.replies_equal + parity.excused == 6
        assert parity.compared > 100

    @pytest.mark.parametrize("plant", [no_permutation, another_theta])
    def test_planted_faults_miss_by_far(self, run, golden, tmp_path, monkeypatch, plant):
        plant(monkeypatch)
        parity = parity_of(found(run, golden, tmp_path / "a.gguf")["llama.cpp"])
        assert parity.difference > 100 * parity.bar

    @pytest.mark.parametrize("name", REAL)
    def test_ids_of_real_tokenizers(self, tmp_path, name):
        """llama.cpp's own tokenizer against the one that trains. Texts that a note excepts are left out."""
        words = real_tokenizer(name, tmp_path / "words")
        model = write_model(tmp_path / "m", words, num_hidden_layers=1, intermediate_size=32)
        path = write_gguf(model, tmp_path / "m.gguf", "q8_0").path
        ours = gguf_tokens_of(model)
        alphabet, before = bytes_of(model), "</s>" if name.endswith("spm") else ""
        compared = 0
        with serving(path, asked_for) as server:
            for text in real_texts():
                text = before + unicodedata.normalize("NFC", text)
                if alphabet is None or set(text.encode()) <= alphabet:
                    compared += 1
                    assert server.tokenize(text, around=True) == ours(text), text
        assert compared > 100

    @pytest.mark.parametrize(("family", "prefix"), [("llama", True), ("gemma", False)])
    def test_ids_of_sentencepiece(self, tmp_path, pieces, family, prefix):
        backend = spm_backend(pieces, prefix=prefix)
        words = saved(tmp_path / "words", backend, **SPM)
        model = write_model(tmp_path / "m", words, family, num_hidden_layers=1)
        path = write_gguf(model, tmp_path / "m.gguf", "f16").path
        with serving(path, asked_for) as server:
            for text in TEXTS:
                assert server.tokenize(text) == backend.encode(text, add_special_tokens=False).ids, text

    def test_stops_and_greedy_replies(self, run, golden, tmp_path):
        """A reply ends at the stop that training taught; a wrong request is refused with what was said."""
        path = write_gguf(merged(run), tmp_path / "a.gguf", "f32").path
        with serving(path, asked_for) as server:
            for example in itertools.islice((one for one in golden.examples if one.stopped), 2):
                ids, text, stopped = server.greedy(example.prompt_ids, example.limit)
                assert stopped
                assert text == example.text
                assert [i for i in ids if i not in golden.stop_ids] == list(example.greedy.ids[:-1])
            with pytest.raises(ImprintError, match="refuses"):
                server.render([{"role": "user"}])


def gguf_tokens_of(folder):
    from transformers import AutoTokenizer

    words = AutoTokenizer.from_pretrained(folder)
    return lambda text: list(words(text)["input_ids"])


def bytes_of(folder):
    """The bytes that a byte-level tokenizer has tokens for; None for others."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    spec = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    if spec["model"].get("byte_fallback"):
        return None
    return {byte for byte, letter in bytes_to_unicode().items() if letter in spec["model"]["vocab"]}
