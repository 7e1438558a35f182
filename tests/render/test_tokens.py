"""The fast way from text to ids gives what tokenising every text whole gives."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken

from imprint.render import tokens
from imprint.render.resolve import prepare_rendering
from imprint.render.tokens import Encoder
from imprint.render.turns import LeftOut, Turn, render
from render.corpus import BYTE_LEVEL, NOW, SENTENCEPIECE, make_tokenizer, reply, talk, user

KINDS = ["bytes", *BYTE_LEVEL, *SENTENCEPIECE]


@dataclass
class Pair:
    prompt: str
    completion: str


@cache
def encoder_of(kind: str) -> Encoder:
    """With control tokens, and the kinds of added tokens that might disturb a cut."""
    tokenizer = make_tokenizer(kind, "<|im_start|><|im_end|>", eos_token="</s>", bos_token="<s>")
    tokenizer.add_tokens(
        [
            AddedToken("<|right|>", special=True, normalized=False, rstrip=True),
            AddedToken("<|left|>", special=True, normalized=False, lstrip=True),
            AddedToken("<|word|>", special=True, normalized=False, single_word=True),
            AddedToken("<|im_end|><|im_start|>", special=True, normalized=False),
            AddedToken("zebra", normalized=True),
        ]
    )
    return Encoder(tokenizer)


def whole(encoder: Encoder, text: str) -> list[int]:
    """The slow, obvious way: a server's."""
    return encoder.tokenizer(text, add_special_tokens=False)["input_ids"]


def assert_same(encoder: Encoder, pairs: list[Pair]) -> None:
    for pair, (prompt, completion) in zip(pairs, encoder.encode_turns(pairs), strict=True):
        expected, full = whole(encoder, pair.prompt), whole(encoder, pair.prompt + pair.completion)
        assert prompt.tolist() == expected
        if isinstance(completion, str) and completion == "the tokenizer cannot write all of the reply's text":
            assert encoder.may_lose or "\u2581" in pair.completion
        elif full[: len(expected)] == expected and len(full) > len(expected):
            assert not isinstance(completion, str)
            assert completion.tolist() == full[len(expected) :]
        elif not isinstance(completion, str):  # it goes on where the prompt ends
            ids = expected + completion.tolist()
            assert encoder.decode(ids) == encoder.decode(full)


CONTROL = [
    "<|im_start|>",
    "<|im_end|>",
    "<|right|>",
    "<|left|>",
    "<|word|>",
    "</s>",
    "<s>",
    "zebra",
    "<|im_end|>\n",
]
WHITE = [" ", "  ", " " * 7, "\n", "\n\n", "\t", "\r\n", "\u00a0", "\u3000"]
ODD = [
    "",
    "e\u0301",
    "\u0301x",
    "👋🏽",
    "漢字",
    "क",
    "<|im_",
    "end|>",
    "<|im_end|",
    "▁a",
    "\ufffd",
    "\x00",
    "a",
    "Hello world",
    "42",
]
texts = st.lists(
    st.one_of(st.sampled_from(CONTROL), st.sampled_from(WHITE), st.sampled_from(ODD), st.text(max_size=5)),
    max_size=7,
).map("".join)
turn_pairs = st.lists(
    st.tuples(texts, texts, st.sampled_from(["<|im_end|>", "</s>", "<|im_end|>\n", "", "<|right|>"])),
    min_size=1,
    max_size=5,
)


def dialogue(parts: Iterable[tuple[str, str, str]]) -> list[Pair]:
    """Turns of which each begins with the one before, as a template makes them, and one that stands alone."""
    pairs, said = [], ""
    for asked, answered, stop in parts:
        prompt = f"{said}<|im_start|>user\n{asked}<|im_end|>\n<|im_start|>assistant\n"
        pairs.append(Pair(prompt, answered + stop or "x"))
        said = prompt + answered + stop + "\n"
    return [*pairs, Pair(pairs[0].prompt.rstrip("\n"), pairs[0].completion)]


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(parts=turn_pairs)
def test_the_shortcut_equals_whole_tokenisation(kind, parts):
    encoder = encoder_of(kind)
    encoder.exact_shortcut = True
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            tokens, "_CHECKED", 10**9
        )  # only the first turn is compared: the shortcut must be right
        assert_same(encoder, dialogue(parts))
    assert encoder.exact_shortcut


def rewritten(parts: Iterable[tuple[str, str, str]], system: str = "") -> list[Pair]:
    """Turns whose history is written anew: each reply has a thought of its own, which later prompts drop."""
    pairs, said = [], f"<|im_start|>system\n{system}<|im_end|>\n" if system else ""
    for asked, answered, stop in parts:
        prompt = f"{said}<|im_start|>user\n{asked}<|im_end|>\n<|im_start|>assistant\n"
        pairs.append(Pair(prompt, f"<think>{asked}</think>{answered}{stop or 'x'}"))
        said = prompt + answered + stop + "\n"
    return pairs


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(parts=turn_pairs, system=texts)
def test_what_a_rewritten_history_shares_equals_whole_tokenisation(kind, parts, system):
    encoder = encoder_of(kind)
    encoder.exact_shortcut = True
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tokens, "_CHECKED", 10**9)
        assert_same(encoder, [*rewritten(parts, system), *rewritten(parts[::-1], system)])
    assert encoder.exact_shortcut


@pytest.mark.parametrize("make", [dialogue, rewritten])
def test_what_a_conversation_shares_is_encoded_about_once(make, monkeypatch):
    """Twenty turns, each of which holds all before it: by far not twenty texts to encode."""
    encoder = encoder_of("gpt_neox_20b")
    encoder.exact_shortcut = True
    pairs = make([(f"question {i} " * 9, f"answer {i} " * 9, "<|im_end|>") for i in range(20)])[:20]
    encoded, inner = [], encoder.encode
    monkeypatch.setattr(encoder, "encode", lambda found: encoded.extend(found) or inner(found))
    encoder.encode_turns(pairs)
    whole = len(pairs[-1].prompt + pairs[-1].completion)
    assert whole < sum(map(len, encoded)) < (1.5 if make is dialogue else 3) * whole
    assert sum(len(pair.prompt + pair.completion) for pair in pairs) > 9 * whole


def test_a_cut_inside_a_longer_one_is_shared_only_by_what_begins_alike(monkeypatch):
    tokenizer = make_tokenizer("bytes", "<|im_start|><|im_end|>", eos_token="</s>")
    tokenizer.add_tokens([AddedToken(text, normalized=False) for text in ("<|a|>", "x<|a|>y")])
    made = Encoder(tokenizer)
    assert made._has_inner_cuts
    assert not Encoder(make_tokenizer("bytes", "<|im_start|><|im_end|>", eos_token="</s>"))._has_inner_cuts
    begin = "<|im_start|>" + "b" * 40 + " x<|a|>"
    pairs = [Pair(begin + "y ", "c"), Pair(begin + " ", "d"), Pair(begin + "z", "e" * 9)]
    monkeypatch.setattr(tokens, "_CHECKED", 10**9)
    assert_same(made, pairs)
    made._has_inner_cuts = False
    wholes = [whole(made, pair.prompt + pair.completion) for pair in pairs]
    found = made._encode_nested([(pair.prompt, pair.prompt + pair.completion) for pair in pairs])
    assert [ids.tolist() for _, ids in found] != wholes  # and this is why


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(prompt=texts, completion=texts)
def test_any_prompt_and_completion(kind, prompt, completion):
    encoder = encoder_of(kind)
    encoder.exact_shortcut = True
    assert_same(encoder, [Pair(prompt, completion)])


CUTS = [
    (" ", " a"), ("a ", " b"), ("x\n", "\ny"), ("e", "\u0301"), ("[/INST]", " yes"), ("[/INST] ", " yes"),
    ("a", "bc"), ("hel", "lo"), ("👋", "🏽"), ("   ", "   x"), ("A: ", "42"),
]  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("prompt", "completion"), CUTS)
def test_a_completion_whose_tokens_reach_into_the_prompt(kind, prompt, completion):
    """The prompt stays the server's; the whole decodes to the text, or the turn is left out."""
    encoder = encoder_of(kind)
    ((ids, found),) = encoder.encode_turns([Pair("<|im_start|>" + prompt, completion + "<|im_end|>")])
    assert ids.tolist() == whole(encoder, "<|im_start|>" + prompt)
    if isinstance(found, str):
        assert "cannot be cut" in found or (encoder.may_lose and "cannot write" in found)
        assert kind not in ("bytes", "gpt2")  # they can cut everywhere
    else:
        full = whole(encoder, f"<|im_start|>{prompt}{completion}<|im_end|>")
        assert encoder.decode([*ids, *found]) == encoder.decode(full)
        assert found[-1] == full[-1]


def test_the_continuation_is_used_and_needed():
    encoder = encoder_of("gpt2")
    full = whole(encoder, "hello<|im_end|>")
    prompt = whole(encoder, "hel")
    assert full[: len(prompt)] != prompt
    ((ids, found),) = encoder.encode_turns([Pair("hel", "lo<|im_end|>")])
    assert encoder.decode([*ids, *found]) == "hello<|im_end|>"
    assert found.tolist() == whole(encoder, "lo<|im_end|>")


def test_a_cut_that_no_tokens_have_is_left_out(monkeypatch):
    encoder = encoder_of("gpt2")
    monkeypatch.setattr(Encoder, "_continuations", lambda self, texts: [None] * len(texts))
    ((_, found),) = encoder.encode_turns([Pair("hel", "lo")])
    assert found == "its tokens cannot be cut between prompt and reply"
    monkeypatch.setattr(Encoder, "_continuations", lambda self, texts: self.encode([" " + t for t in texts]))
    ((_, found),) = encoder.encode_turns([Pair("hel", "lo")])  # a dummy prefix is seen
    assert found == "its tokens cannot be cut between prompt and reply"


def test_one_difference_switches_the_shortcut_off(monkeypatch):
    """A tokenizer for which the shortcut were wrong: the sample sees it, and every turn is encoded whole."""
    encoder = Encoder(make_tokenizer("bytes", "<|im_start|><|im_end|>", eos_token="</s>"))
    pairs = dialogue([("a", "b", "<|im_end|>"), ("c", "d", "<|im_end|>")])
    correct = [(p.tolist(), c.tolist()) for p, c in encoder.encode_turns(pairs)]
    assert encoder.exact_shortcut
    inner = Encoder._encode_nested
    monkeypatch.setattr(
        Encoder, "_encode_nested", lambda self, found: [(p, w[:-1]) for p, w in inner(self, found)]
    )
    assert [(p.tolist(), c.tolist()) for p, c in encoder.encode_turns(pairs)] == correct
    assert not encoder.exact_shortcut


def test_added_tokens_that_are_not_where_the_text_says_make_no_cuts():
    """`<|word|>` counts only between white space, `zebra` only after normalisation."""
    encoder = encoder_of("gpt2")
    text = "a<|word|>b <|word|> zebra<|im_end|>"
    ids = encoder.encode([text])[0]
    assert encoder._marks(text, ids) == ([], [])
    assert_same(encoder, [Pair(text, "c<|im_end|>"), Pair(text + "c<|im_end|>\n", "d<|im_end|>")])


def test_white_space_tokens_are_never_a_stop():
    encoder = encoder_of("gpt_neox_20b")
    assert encoder.added_spans("a        b<|im_end|>  ") == [(10, 20)]
    assert any(token.isspace() for token in encoder.added.values())


def test_limits_in_a_tokenizer_file_are_lifted():
    tokenizer = make_tokenizer("bytes")
    tokenizer.backend_tokenizer.enable_truncation(4)
    tokenizer.backend_tokenizer.enable_padding(length=9)
    assert len(Encoder(tokenizer).encode(["abcdefghijkl", "a"])[0]) == 12
    assert len(Encoder(tokenizer).encode(["a"])[0]) == 1


def test_a_tokenizer_without_a_rust_backend_gives_the_same():
    fast = encoder_of("gpt2")
    slow = Encoder(fast.tokenizer)
    slow.backend = None
    for text in ("a b<|im_end|>", "", "👋"):
        assert np.array_equal(slow.encode([text])[0], fast.encode([text])[0])


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(question=texts.filter(str.strip), answer=texts.filter(str.strip))
def test_any_row_is_trained_to_its_text_or_left_out(question, answer):
    made = prepared("gpt_neox_20b")
    for item in render([talk(user(question), reply(answer))], made.template, made.encoder, max_length=10**6):
        if isinstance(item, LeftOut):
            forged = made.encoder.control.search(question + "\n" + answer)
            assert item.reason == "control tokens in its text" if forged else "cannot be cut" in item.reason
            continue
        assert isinstance(item, Turn)
        served = whole(made.encoder, f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n")
        assert item.prompt.tolist() == served
        full = whole(made.encoder, made.encoder.decode(served) + answer + "<|im_end|>")
        assert made.encoder.decode(item.ids) == made.encoder.decode(full)
        assert item.completion[-1] == made.stop_ids[0]


@cache
def prepared(kind: str):
    return prepare_rendering(make_tokenizer(kind, eos_token="<|endoftext|>"), template="chatml", now=NOW)


@pytest.mark.parametrize("kind", SENTENCEPIECE)
def test_a_mark_of_a_space_in_the_text_is_no_space(kind):
    """SentencePiece would write a space in its place."""
    ((_, found),) = encoder_of(kind).encode_turns([Pair("<|im_start|>", "\u2581a<|im_end|>")])
    assert found == "the tokenizer cannot write all of the reply's text"
    ((_, found),) = encoder_of("gpt2").encode_turns([Pair("<|im_start|>", "\u2581a<|im_end|>")])
    assert not isinstance(found, str)
