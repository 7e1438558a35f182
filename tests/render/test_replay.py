"""Replay cut into pieces: nothing lost, nothing twice, and what is held out is never drawn."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from imprint.data.conversation import Conversation, Message, Place
from imprint.data.ledger import Ledger
from imprint.render.replay import MOST_HELD_OUT, choose_held_out, read_pieces, write_pieces
from imprint.render.resolve import prepare_rendering
from imprint.render.turns import accounted, render
from render.corpus import NOW, make_tokenizer, reply, talk, user


@pytest.fixture(scope="module")
def made():
    return prepare_rendering(make_tokenizer("bytes", eos_token="<|endoftext|>"), template="chatml", now=NOW)


def document(text: str, line: int = 1) -> Conversation:
    return Conversation((Message("text", text),), Place("text.jsonl", line))


def cut(folder, made, conversations, length=20, max_length=500):
    ledger = Ledger()
    for one in conversations:
        ledger.read(one.source)
        ledger.use(one.source)
        ledger.conversation(one.source)
    ledger.keep("train", len(conversations))
    ledger.turns.kept = {"cut": 0}
    items = render(conversations, made.template, made.encoder, max_length=max_length, document_length=length)
    write_pieces(folder, conversations, accounted(items, ledger, "cut"), ledger)
    ledger.check()
    return read_pieces(folder, {"ledger": ledger.to_json(), "fingerprint": "f"})


TEXTS = [f"Text {i}: " + f"the walrus sang {i} songs, and " * (i % 9 + 1) for i in range(200)]


@pytest.mark.parametrize("length", [2, 3, 20, 499])
def test_the_pieces_of_a_document_are_its_tokens(tmp_path, made, length):
    pieces = cut(tmp_path, made, [document(text, i) for i, text in enumerate(TEXTS[:20])], length)
    store, found = pieces.drawable.store, {}
    for number, group in enumerate(store):
        (turn,) = group
        assert len(turn) <= length
        assert (turn.weight == 1).all()
        first = [] if pieces.origin[number] in found else turn.prompt.tolist()
        found.setdefault(pieces.origin[number], first).extend(turn.completion.tolist())
    assert [made.encoder.decode(found[i]) for i in range(20)] == [t + "<|endoftext|>" for t in TEXTS[:20]]


def test_each_piece_is_drawable_or_held_out(tmp_path, made):
    pieces = cut(tmp_path, made, [document(text, i) for i, text in enumerate(TEXTS)])
    drawable, held_out = set(pieces.drawable.numbers), set(pieces.held_out.numbers)
    assert not drawable & held_out
    assert drawable | held_out == set(range(len(pieces.origin)))
    assert len(pieces.drawable) + len(pieces.held_out) == len(pieces.origin)
    assert 30 < len(held_out) <= MOST_HELD_OUT
    of = [{pieces.origin[number] for number in side} for side in (drawable, held_out)]
    assert not of[0] & of[1], "documents are held out whole"
    kept = pieces.ledger
    assert kept.pieces.kept == {"to draw from": len(drawable), "held out": len(held_out)}
    assert kept.conversations.kept == {"to draw from": len(of[0]), "held out": len(of[1])}
    assert pieces.held_out[0][0].source == pieces.drawable.store[pieces.held_out.numbers[0]][0].source
    assert [g[0].ids.tolist() for g in pieces.held_out[:2]] == [
        pieces.held_out[i][0].ids.tolist() for i in (0, 1)
    ]


def test_conversations_and_documents_in_one_replay(tmp_path, made):
    chat = talk(user("zebra"), reply("walrus"), user("dog"), reply("cat"))
    pieces = cut(tmp_path, made, [chat, document(TEXTS[5], 2), chat, document("", 4)])
    groups = list(pieces.drawable.store)
    assert len(groups[0]) == len(groups[-1]) == 2, "both replies of a conversation are one piece"
    assert Counter(pieces.origin)[1] == len(groups) - 2 > 3
    assert [turn.conversation for group in groups for turn in group] == [
        i for i, group in enumerate(groups) for _ in group
    ]
    assert pieces.ledger.turns.left.keys() == {"a document of fewer than two tokens"}
    assert pieces.ledger.conversations.left.keys() == {"nothing of it can be trained"}


def chosen(lengths, same=()):
    """What is held out of documents of so many pieces, as (document, how many of its pieces)."""
    origin = np.repeat(np.arange(len(lengths)), lengths)
    hashes = np.random.default_rng(0).integers(0, 2**63, len(lengths)).astype(np.uint64)
    for a, b in same:
        hashes[b] = hashes[a]
    found = choose_held_out(origin, hashes[origin])
    assert len(set(found.tolist())) == len(found) < len(origin)
    return origin, found, Counter(origin[found].tolist())


def test_whole_documents_where_they_are_short():
    _, found, counted = chosen([3] * 1000)
    assert 60 < len(found) <= MOST_HELD_OUT
    assert set(counted.values()) == {3}


def test_the_ends_of_books():
    origin, found, counted = chosen([5000, 4000])
    assert len(found) == MOST_HELD_OUT
    (book,) = counted
    assert found.tolist() == np.flatnonzero(origin == book)[-MOST_HELD_OUT:].tolist()
    _, found, _ = chosen([100])
    assert found.tolist() == [95, 96, 97, 98, 99]


def test_books_and_short_rows_share_the_room():
    """A book is most of the text: two hundred short rows may not stand for it."""
    _, found, counted = chosen([5400] + [1] * 200)
    assert counted[0] == 62
    assert len(found) == 64


def test_equal_texts_are_on_one_side():
    for seed in range(20):
        rng = np.random.default_rng(seed)
        lengths = rng.integers(1, 4, 60)
        lengths[1] = lengths[0]
        _, _, counted = chosen(lengths, same=[(0, 1)])
        assert counted[0] == counted[1]
    origin, found, counted = chosen([900, 900], same=[(0, 1)])
    assert counted[0] == counted[1] > 10
    assert (found[origin[found] == 1] - 900 == found[origin[found] == 0]).all()


@pytest.mark.parametrize("lengths", [[], [1]])
def test_too_little_to_hold_out(lengths):
    assert not len(
        choose_held_out(np.repeat(np.arange(len(lengths)), lengths), np.zeros(sum(lengths), np.uint64))
    )


def test_it_is_told_where_nothing_can_be_held_out(tmp_path, made):
    pieces = cut(tmp_path, made, [document("A walrus.")])
    assert len(pieces.drawable) == 1
    assert any("what is forgotten is not measured" in warning for warning in pieces.ledger.warnings)
