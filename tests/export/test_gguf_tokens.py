"""Tokenizers in GGUF files: pre-tokenizers told by how they cut, SentencePiece's merges as scores, equal ids."""

from __future__ import annotations

import io
import itertools
import json
import shutil
from pathlib import Path

import pytest
from gguf_models import write_model
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import AutoTokenizer, GPT2Tokenizer, PreTrainedTokenizerFast

from imprint.demo.base import demonstrations
from imprint.errors import ModelError
from imprint.export.gguf import write_gguf
from imprint.export.gguf_pre import PRE_TOKENIZERS, PROBES, _cuts, built, recognise
from imprint.export.gguf_reload import load_tokenizer, read_metadata
from imprint.export.gguf_tokens import BYTE, CONTROL, UNKNOWN, USER_DEFINED, read_vocabulary

pytest.importorskip("gguf")

DATA = Path(__file__).parents[2] / ".." / "shared" / "data"
ADDED = ["<|im_start|>", "<|im_end|>"]
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
WITH_BOS = "{{ bos_token }}" + CHATML
TEXTS = [
    *PROBES,
    "<|im_start|>user\nWhat is 12 + 345?<|im_end|>\n<|im_start|>assistant\nIt is 357.<|im_end|>\n",
    "  two  spaces   three\n\n\n\tx", "a\r\n b \n\n c", "naïve café 日本語 😀 \u200b", "<|im_end|> x<|im_end|>  y",
]  # fmt: skip


def corpus():
    return demonstrations().read_text(encoding="utf-8").splitlines()[:400]


def byte_level(pre_tokenizer, ignore_merges=False, size=600):
    tokenizer = Tokenizer(models.BPE(ignore_merges=ignore_merges))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizer, decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=["<|end|>", *ADDED], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(corpus(), trainer)
    return tokenizer


def saved(folder, backend, **special):
    words = PreTrainedTokenizerFast(tokenizer_object=backend, clean_up_tokenization_spaces=False, **special)
    words.save_pretrained(folder)
    return folder


# ---- pre-tokenizers ---------------------------------------------------------------------------


def test_the_probes_tell_all_known_pre_tokenizers_apart():
    """Two names share a cut only if they differ in how whole words are merged."""
    for (a, (cut_a, whole_a)), (b, (cut_b, whole_b)) in itertools.combinations(PRE_TOKENIZERS.items(), 2):
        same = _cuts(built(cut_a)) == _cuts(built(cut_b))
        assert not same or whole_a != whole_b, (a, b)


@pytest.mark.parametrize("name", PRE_TOKENIZERS)
def test_each_known_pre_tokenizer_is_recognised(name):
    expressions, whole = PRE_TOKENIZERS[name]
    found = recognise(byte_level(built(expressions), whole)).name
    assert (
        PRE_TOKENIZERS[found][0] == expressions
    )  # a name of the same cut, where whole words make no difference


def test_another_spelling_of_the_same_cut_is_recognised():
    """GPT-2's own expression lies inside ByteLevel; digits may be cut by a step of their own."""
    assert recognise(byte_level(pre_tokenizers.ByteLevel(add_prefix_space=False))).name == "gpt-2"
    steps = [
        pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)
    ]  # fmt: skip
    assert recognise(byte_level(pre_tokenizers.Sequence(steps))).name == "smollm"


def test_an_unknown_cut_is_refused_and_can_be_overruled():
    strange = byte_level(built((r"\p{N}{1,2}|\p{L}+|[^\p{L}\p{N}]+",)))
    with pytest.raises(ModelError) as refused:
        recognise(strange)
    assert "nearest known" in refused.value.found
    assert "pre=NAME" in refused.value.fix
    chosen = recognise(strange, "llama-bpe")
    assert chosen.name == "llama-bpe"
    assert "otherwise than the tokenizer" in chosen.notes[0]
    assert "is qwen2 meant?" in recognise(strange, "qwen22").notes[0]
    assert recognise(byte_level(built(PRE_TOKENIZERS["qwen2"][0])), "qwen2").notes == ()


def test_a_prefix_space_is_refused():
    with pytest.raises(ModelError, match="no known pre-tokenizer"):
        recognise(byte_level(pre_tokenizers.ByteLevel(add_prefix_space=True)))


def with_a_word_no_merge_makes(backend, text="Ġzebra"):
    spec = json.loads(backend.to_str())
    spec["model"]["vocab"][text] = len(spec["model"]["vocab"])
    return Tokenizer.from_str(json.dumps(spec))


def test_whole_words_beside_the_merges_decide_between_names():
    llama = PRE_TOKENIZERS["llama-bpe"][0]
    assert recognise(with_a_word_no_merge_makes(byte_level(built(llama), True))).name == "llama-bpe"
    assert recognise(with_a_word_no_merge_makes(byte_level(built(llama), False))).name == "smaug-bpe"
    odd = with_a_word_no_merge_makes(byte_level(built(PRE_TOKENIZERS["qwen2"][0]), True))
    with pytest.raises(ModelError, match="ignore_merges = true"):
        recognise(odd)


@pytest.mark.parametrize("name", PRE_TOKENIZERS)
def test_byte_level_ids_come_back(tmp_path, name):
    expressions, whole = PRE_TOKENIZERS[name]
    words = saved(tmp_path / "words", byte_level(built(expressions), whole), eos_token="<|im_end|>")
    model = write_model(tmp_path / "m", words, num_hidden_layers=1)
    again = load_tokenizer(write_gguf(model, tmp_path / "m.gguf", "q8_0").path)
    ours = AutoTokenizer.from_pretrained(model)
    for text in TEXTS:
        assert again(text)["input_ids"] == ours(text)["input_ids"], text
        assert again.decode(again(text)["input_ids"]) == text


def test_added_tokens_bos_and_template(tmp_path):
    from tokenizers import AddedToken, processors

    backend = byte_level(built(PRE_TOKENIZERS["llama-bpe"][0]))
    backend.add_tokens([AddedToken("<think>", normalized=False), AddedToken("<x>", rstrip=True)])
    backend.post_processor = processors.TemplateProcessing("<|end|> $A", special_tokens=[("<|end|>", 0)])
    words = saved(
        tmp_path / "w", backend, bos_token="<|end|>", eos_token="<|im_end|>", chat_template=WITH_BOS
    )
    model = write_model(tmp_path / "m", words, num_hidden_layers=1)
    written = write_gguf(model, tmp_path / "m.gguf", "f16")
    said = read_metadata(written.path)
    types = dict(zip(said["tokenizer.ggml.tokens"], said["tokenizer.ggml.token_type"], strict=True))
    assert (types["<think>"], types["<|im_end|>"]) == (USER_DEFINED, CONTROL)
    assert said["tokenizer.ggml.add_bos_token"] is True
    assert said["tokenizer.chat_template"] == WITH_BOS
    assert "llama.cpp ignores rstrip of <x>" in written.notes
    assert (
        load_tokenizer(written.path)("<think>a")["input_ids"]
        == AutoTokenizer.from_pretrained(model)("<think>a")["input_ids"]
    )


def test_a_bos_that_the_chat_template_does_not_write_is_left_out(tmp_path):
    """llama.cpp puts before a chat what a file says is put before a text."""
    from tokenizers import processors

    backend = byte_level(built(PRE_TOKENIZERS["llama-bpe"][0]))
    backend.post_processor = processors.TemplateProcessing("<|end|> $A", special_tokens=[("<|end|>", 0)])
    special = dict(bos_token="<|end|>", eos_token="<|im_end|>")
    without = read_vocabulary(saved(tmp_path / "a", backend, chat_template=CHATML, **special), 700)
    assert without.add_bos is False
    assert any("no <|end|> is put before a text" in note for note in without.notes)
    strict = "{{ raise_exception('no') }}"
    for template in (WITH_BOS, None, strict):
        words = saved(tmp_path / str(hash(template)), backend, chat_template=template, **special)
        assert read_vocabulary(words, 700).add_bos is True


# ---- SentencePiece ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pieces(tmp_path_factory):
    """A SentencePiece model trained here, with byte tokens: (tokens, scores)."""
    sentencepiece = pytest.importorskip("sentencepiece")
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(corpus()), model_writer=model, vocab_size=700, model_type="bpe",
        byte_fallback=True, pad_id=-1, minloglevel=2, character_coverage=0.999, num_threads=1,
        remove_extra_whitespaces=False, normalization_rule_name="identity", add_dummy_prefix=True,
    )  # fmt: skip
    spm = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    return spm, [spm.id_to_piece(i) for i in range(len(spm))], [spm.get_score(i) for i in range(len(spm))]


def spm_backend(pieces, *, legacy=True, prefix=True):
    """The tokenizer.json that such a model has: every pair that spells a piece, in the order of scores."""
    _, tokens, scores = pieces
    plain = {text: score for text, score in zip(tokens[3:], scores[3:], strict=True) if text[:3] != "<0x"}
    pairs = [
        (score, i, (text[:i], text[i:]))
        for text, score in plain.items()
        for i in range(1, len(text))
        if text[:i] in plain and text[i:] in plain
    ]
    merges = [pair for _, _, pair in sorted(pairs, key=lambda one: -one[0])]
    vocabulary = {text: i for i, text in enumerate(tokens)}
    backend = Tokenizer(
        models.BPE(vocab=vocabulary, merges=merges, byte_fallback=True, fuse_unk=True, unk_token="<unk>")
    )
    if legacy:
        steps = [normalizers.Prepend("▁")] if prefix else []
        backend.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", "▁")])
    else:
        backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    backend.add_special_tokens(["<unk>", "<s>", "</s>", *ADDED])
    return backend


SPM = dict(bos_token="<s>", eos_token="</s>", unk_token="<unk>")


@pytest.mark.parametrize(("family", "prefix"), [("llama", True), ("gemma", False)])
def test_sentencepiece_ids_come_back(tmp_path, pieces, family, prefix):
    words = saved(tmp_path / "words", spm_backend(pieces, prefix=prefix), **SPM)
    model = write_model(tmp_path / "m", words, family, num_hidden_layers=1)
    written = write_gguf(model, tmp_path / "m.gguf", "f16")
    said = read_metadata(written.path)
    assert (said["tokenizer.ggml.model"], said["tokenizer.ggml.add_space_prefix"]) == ("llama", prefix)
    assert said["tokenizer.ggml.token_type"][:4] == [UNKNOWN, CONTROL, CONTROL, BYTE]
    backend, again = spm_backend(pieces, prefix=prefix), load_tokenizer(written.path)
    for text in TEXTS:
        expected = backend.encode(text, add_special_tokens=False).ids
        assert again(text, add_special_tokens=False)["input_ids"] == expected, text


def test_scores_rank_as_sentencepiece_does(tmp_path, pieces):
    """The order of the made-up scores is that of the model's own, which the folder no longer holds."""
    spm, tokens, scores = pieces
    words = saved(tmp_path / "words", spm_backend(pieces), **SPM)
    made = read_vocabulary(words, len(tokens) + 2).scores
    long = [i for i, text in enumerate(tokens) if len(text) > 1 and text[0] != "<"]
    assert sorted(long, key=lambda i: -scores[i]) == sorted(long, key=lambda i: -made[i])
    for text in ("What colour is the sea?", "a b  c", "naïve 日本語"):
        assert AutoTokenizer.from_pretrained(words)(text, add_special_tokens=False)[
            "input_ids"
        ] == spm.encode(text)


def test_merges_that_scores_cannot_rank_are_refused(tmp_path, pieces):
    """Merges learned by a BPE trainer hold one pair for each token; llama.cpp would join others too."""
    spec = json.loads(spm_backend(pieces).to_str())
    spec["model"]["merges"] = spec["model"]["merges"][::2]
    words = saved(tmp_path / "words", Tokenizer.from_str(json.dumps(spec)), **SPM)
    with pytest.raises(ModelError, match="no merge of"):
        read_vocabulary(words, 800)
    spec = json.loads(spm_backend(pieces).to_str())
    merges = spec["model"]["merges"]
    twice = next(i for i, pair in enumerate(merges[:-1]) if "".join(pair) == "".join(merges[i + 1]))
    merges.append(merges.pop(twice + 1))
    words = saved(tmp_path / "others", Tokenizer.from_str(json.dumps(spec)), **SPM)
    with pytest.raises(ModelError, match="far from the other merges"):
        read_vocabulary(words, 800)


def test_a_prefix_at_the_start_alone_is_decided_by_the_chat_template_and_said(tmp_path, pieces):
    backend = spm_backend(pieces, legacy=False)
    plain = read_vocabulary(saved(tmp_path / "plain", backend, **SPM), 800)
    chat = read_vocabulary(saved(tmp_path / "chat", backend, chat_template=CHATML, **SPM), 800)
    assert (plain.add_space_prefix, chat.add_space_prefix) == (True, False)
    assert any("behind a special token" in note for note in plain.notes)
    assert any("a text that stands alone" in note for note in chat.notes)


def test_other_kinds_of_tokenizers_are_refused(tmp_path):
    words = saved(tmp_path / "words", Tokenizer(models.WordLevel({"<unk>": 0, "a": 1}, unk_token="<unk>")))
    with pytest.raises(ModelError, match="WordLevel"):
        read_vocabulary(words, 10)
    backend = byte_level(built(PRE_TOKENIZERS["gpt-2"][0]))
    backend.normalizer = normalizers.Lowercase()
    with pytest.raises(ModelError, match="Lowercase"):
        read_vocabulary(saved(tmp_path / "low", backend), 700)
    backend.normalizer = normalizers.NFC()
    assert any("NFC" in note for note in read_vocabulary(saved(tmp_path / "nfc", backend), 700).notes)


# ---- real tokenizers --------------------------------------------------------------------------


def real_tokenizer(name: str, folder: Path) -> Path:
    """A folder with a tokenizer of shared/data; skips where it is not there."""
    source = DATA / "tokenizers"
    if not source.is_dir():
        pytest.skip("shared/data is not there")
    if name == "gpt2":
        vocabulary = json.loads((source / name / "encoder.json").read_text())
        lines = (source / name / "vocab.bpe").read_text(encoding="utf-8").split("\n")[1:]
        merges = [tuple(line.split()) for line in lines if line]
        GPT2Tokenizer(vocab=vocabulary, merges=merges).save_pretrained(folder)
    elif name.endswith("spm"):  # from tokenizer.model, saved as tokenizer.json
        folder.mkdir()
        shutil.copy(source / name / "tokenizer.model", folder)
        config = {"tokenizer_class": "LlamaTokenizer", "add_bos_token": True, **SPM}
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
        words = AutoTokenizer.from_pretrained(folder)
        words.chat_template = WITH_BOS
        words.save_pretrained(folder)
    elif name == "torchtitan_2k":
        shutil.copytree(source / name, folder)
    else:
        file = next((source / name).glob("*tokenizer.json"))
        PreTrainedTokenizerFast(tokenizer_file=str(file), eos_token="<|endoftext|>").save_pretrained(folder)
    return folder


REAL = {
    "gpt2": ("gpt-2", ()),
    "gpt_neox_20b": ("gpt-2", ("NFC", "13 of the 256 bytes")),
    "mistral_v1_spm": ("default", ("stands alone",)),
    "mistral_v3_spm": ("default", ("stands alone",)),
    "torchtitan_2k": ("gpt-2", ("162 of the 256 bytes",)),
    "torchtune_tiny_bpe": ("qwen2", ("NFC", "160 of the 256 bytes")),
}


def real_texts() -> list[str]:
    lines = (DATA / "text" / "udhr_multilingual.jsonl").read_text(encoding="utf-8").splitlines()
    nasty = json.loads((DATA / "eval" / "big_list_of_naughty_strings.json").read_text(encoding="utf-8"))
    return [*(json.loads(line)["text"][:300] for line in lines[:100]), *nasty[:400], *TEXTS]


@pytest.mark.slow
@pytest.mark.parametrize("name", REAL)
def test_ids_of_real_tokenizers_come_back(tmp_path, name):
    """Also through tokenizer.model. Texts that a note excepts (not NFC, alone without a template) are made fit."""
    import unicodedata

    pre, noted = REAL[name]
    model = write_model(
        tmp_path / "m", real_tokenizer(name, tmp_path / "words"), num_hidden_layers=1, intermediate_size=32
    )
    written = write_gguf(model, tmp_path / "m.gguf", "q8_0")
    ours, again = AutoTokenizer.from_pretrained(model), load_tokenizer(written.path)
    assert read_metadata(written.path)["tokenizer.ggml.pre"] == pre
    assert all(any(word in note for note in written.notes) for word in noted)
    before = "</s>" if name.endswith("spm") else ""
    for text in real_texts():
        text = before + unicodedata.normalize("NFC", text)
        assert again(text)["input_ids"] == ours(text)["input_ids"], text
