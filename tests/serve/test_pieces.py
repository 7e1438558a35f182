"""Text from tokens: the same however it is cut, and nothing of a stop in it."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imprint.serve.engine import Scored
from imprint.serve.pieces import Pieces, StopStrings, TokenText, held_back
from imprint.serve.problems import Problem
from imprint.serve.token_text import TokenNames
from render.corpus import BYTE_LEVEL, SENTENCEPIECE, make_tokenizer

KINDS = ("bytes", *BYTE_LEVEL, *SENTENCEPIECE)
TEXTS = ("It is 4.", " Grüße – ☃ 👋🏽!\n\n  So", "中文字符 and Ελλάδα", "a\u0301b", "▁ mark", "")


def encoder_of(kind):
    from imprint.render.tokens import Encoder

    return Encoder(make_tokenizer(kind))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("text", TEXTS)
def test_the_pieces_make_the_decoding_of_the_whole(kind, text):
    encoder = encoder_of(kind)
    ids = [int(i) for i in encoder.encode([text])[0]]
    made = TokenText(encoder)
    pieces = [made.add(i) for i in ids]
    whole = encoder.decode(ids) if ids else ""
    assert "".join(pieces) + made.end() == whole
    if "\ufffd" not in whole:
        assert not any("\ufffd" in piece for piece in pieces)


@pytest.mark.parametrize("kind", KINDS)
def test_a_continuation_keeps_the_space_of_its_first_word(kind):
    encoder = encoder_of(kind)
    ids = [int(i) for i in encoder.encode(["The sky is blue – ☃ today"])[0]]
    whole = encoder.decode(ids)
    for cut in range(1, len(ids)):
        made = TokenText(encoder, ids[:cut])
        text = "".join(map(made.add, ids[cut:])) + made.end()
        assert whole.endswith(text)
        assert encoder.decode(ids[:cut]).rstrip("\ufffd") + text == whole


@pytest.mark.parametrize("kind", KINDS)
def test_half_a_character_at_the_end_is_told_at_last(kind):
    encoder = encoder_of(kind)
    ids = [int(i) for i in encoder.encode(["a ☃"])[0]][:-1]
    made = TokenText(encoder)
    text = "".join(map(made.add, ids))
    assert "\ufffd" not in text
    assert text + made.end() == encoder.decode(ids)


def stopped(text: str, stops: list[str]) -> tuple[str, bool]:
    """Letter by letter, the obvious way: the first stop that is complete, of several the longest."""
    for end in range(1, len(text) + 1):
        met = [stop for stop in stops if text[:end].endswith(stop)]
        if met:
            return text[: end - max(map(len, met))], True
    return text, False


@given(st.text("ab\n", max_size=20), st.lists(st.text("ab\n", min_size=1, max_size=4), max_size=3), st.data())
def test_a_stop_is_found_across_pieces(text, stops, data):
    finder, out, at, met = StopStrings(stops), "", 0, False
    wanted, cut = stopped(text, stops)
    while at < len(text) and not met:
        size = data.draw(st.integers(1, 5))
        sure, met = finder.add(text[at : at + size])
        out, at = out + sure, at + size
        assert wanted.startswith(out), "something of a stop was given out"
    out += "" if met else finder.end()
    assert (out, met) == (wanted, cut)


def test_only_what_may_become_a_stop_is_held_back():
    finder = StopStrings(["\n\nUser:"])
    assert finder.add("Hello\n") == ("Hello", False)
    assert finder.add("you\n\nUs") == ("\nyou", False)
    assert finder.add("ually") == ("\n\nUsually", False)
    assert held_back("xaba", ["abac", "b"]) == 3


class Told:
    """A stream that is known beforehand."""

    prompt, cached_tokens = (), 0

    def __init__(self, ids, finish="stop"):
        self.ids, self.finish, self.cancelled = ids, finish, False

    async def __aiter__(self):
        for i in self.ids:
            yield Scored(i, -1.0)

    def cancel(self):
        self.cancelled = True


def followed(stream, encoder, stops=(), stop_ids=frozenset()):
    pieces = Pieces(stream, TokenText(encoder), StopStrings(stops), stop_ids)

    async def all_of():
        return [piece async for piece in pieces.follow()]

    return asyncio.run(all_of())


@pytest.mark.parametrize("kind", KINDS)
def test_tokens_come_with_their_text(kind):
    """Each once, in order, and no later than the text that follows it."""
    encoder = encoder_of(kind)
    text = "One ☃, two.\nUser: three"
    ids = [int(i) for i in encoder.encode([text])[0]]
    for stops in ((), ("\nUser",), ("wo",), ("nothing",)):
        stream = Told(ids)
        pieces = followed(stream, encoder, stops)
        whole = encoder.decode(ids)
        expected = stopped(whole, list(stops))[0]
        assert "".join(piece.text for piece in pieces) == expected
        told = [token.scored.id for piece in pieces for token in piece.tokens]
        assert told == ids[: len(told)]
        starts = [token.start for piece in pieces for token in piece.tokens]
        assert all(start < len(expected) for start in starts)
        assert len(told) == len(ids) or expected != whole
        assert [piece.finish for piece in pieces][-1] == "stop"
        assert stream.cancelled


def test_a_stop_token_may_be_told_with_the_others():
    encoder = encoder_of("bytes")
    ids = [int(i) for i in encoder.encode(["abcd"])[0]]
    pieces = followed(Told(ids, "length"), encoder, stop_ids=frozenset(ids[2:3]))
    assert "".join(piece.text for piece in pieces) == "ab"
    assert [token.scored.id for piece in pieces for token in piece.tokens] == ids[:3]
    assert pieces[-1].finish == "stop"


@pytest.mark.parametrize(("finish", "status"), [("error", 500), ("cancelled", 503)])
def test_an_engine_that_gives_up_is_told(finish, status):
    stream = Told([], finish)
    with pytest.raises(Problem) as caught:
        followed(stream, encoder_of("bytes"))
    assert caught.value.status == status
    assert stream.cancelled


@pytest.mark.parametrize("kind", KINDS)
def test_the_bytes_of_tokens_make_the_text(kind):
    encoder = encoder_of(kind)
    names = TokenNames(encoder)
    for text in TEXTS[:4]:
        ids = [int(i) for i in encoder.encode([text])[0]]
        data = b"".join(map(names.bytes_of, ids))
        assert data.decode() in (encoder.decode(ids), " " + encoder.decode(ids)) if ids else data == b""
    for part in encoder.encode(["☃"])[0][-1:]:  # two of these tokenizers have no such character
        assert names.text_of(int(part)) == "☃" or names.text_of(int(part)).startswith("bytes:\\x")
