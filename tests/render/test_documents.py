"""Documents and tokenised rows: every token once, in pieces that fit, and nothing that a template wrote."""

from itertools import pairwise

import numpy as np
import pytest
from tokenizers.processors import TemplateProcessing

from imprint.data.conversation import Conversation, Message, Tokens
from imprint.render.resolve import prepare_rendering
from imprint.render.turns import LeftOut, Turn, render
from render.corpus import HERE, NOW, make_tokenizer, reply, talk, user

TEXT = "The walrus lives in the north. It eats clams, and it sings under water. " * 3


@pytest.fixture(scope="module")
def made():
    return prepare_rendering(make_tokenizer("bytes", eos_token="<|endoftext|>"), template="chatml", now=NOW)


def document(text: str, **more) -> Conversation:
    return Conversation((Message("text", text, **more),), HERE)


def items(made, *conversations, max_length=64, **options):
    return list(render(list(conversations), made.template, made.encoder, max_length=max_length, **options))


@pytest.mark.parametrize("max_length", [2, 3, 64, 217, 218, 10**6])
def test_every_token_of_a_document_is_trained_once(made, max_length):
    turns = items(made, document(TEXT), max_length=max_length)
    assert all(isinstance(turn, Turn) and len(turn) <= max_length for turn in turns)
    trained = np.concatenate([turn.completion for turn in turns])
    whole = [*turns[0].prompt.tolist(), *trained.tolist()]
    assert made.encoder.decode(whole) == TEXT + "<|endoftext|>"
    for before, after in pairwise(turns):
        assert (
            after.prompt.tolist() == before.completion[-1:].tolist()
        )  # the piece goes on where the last ended
    assert {turn.case for turn in turns} == {"document"}
    assert all((turn.weight == 1).all() for turn in turns)


def test_a_bos_that_the_tokenizer_adds_stands_in_front():
    tokenizer = make_tokenizer("bytes", eos_token="</s>", bos_token="<s>")
    head = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", tokenizer.bos_token_id)])
    tokenizer.backend_tokenizer.post_processor = head
    made = prepare_rendering(tokenizer, template="chatml", now=NOW)
    (turn,) = items(made, document("A text."), max_length=100)
    assert turn.ids[0] == tokenizer.bos_token_id
    assert made.encoder.decode(turn.completion).strip() == "A text.</s>"


def test_documents_and_conversations_keep_their_order(made):
    row = talk(user("zebra"), reply("walrus"))
    found = items(made, row, document("a b"), row, document("c d"), max_length=1000)
    assert [turn.case for turn in found] == ["prefix", "document", "prefix", "document"]
    assert [turn.conversation for turn in found] == [0, 1, 2, 3]


def test_a_documents_weight_is_that_of_its_tokens(made):
    (turn,) = items(made, Conversation((Message("text", "abc"),), HERE, weight=0.5), max_length=100)
    assert turn.weight.tolist() == [0.5] * 3


def tokenised(ids, weights) -> Conversation:
    return Conversation((), HERE, tokens=Tokens(tuple(ids), tuple(weights)))


def test_tokenised_rows_are_trained_as_they_are(made):
    (turn,) = items(made, tokenised([5, 6, 7, 8, 9], [0, 0, 1, 0, 0.5]))
    assert turn.prompt.tolist() == [5, 6]
    assert turn.completion.tolist() == [7, 8, 9]
    assert turn.weight.tolist() == [1, 0, 0.5]
    assert turn.case == "tokens"


def test_what_follows_the_last_trained_token_is_dropped(made):
    (turn,) = items(made, tokenised([5, 6, 7, 8], [1, 1, 0, 0]))
    assert (turn.prompt.tolist(), turn.completion.tolist()) == ([5], [6])


@pytest.mark.parametrize(("ids", "weights", "reason"), [
    ([5, 10**6], [0, 1], "a token id that the tokenizer has not"),
    ([5, -1], [0, 1], "a token id that the tokenizer has not"),
    ([5, 6], [1, 0], "no token behind the first has a weight"),
    ([5, 6], [0, 0], "no token behind the first has a weight"),
    (range(100), [0] * 99 + [1], "its prompt alone fills max_length"),
    (range(70), [0] + [1] * 69, "it is longer than max_length"),
])  # fmt: skip
def test_tokenised_rows_that_cannot_be_trained(made, ids, weights, reason):
    (item,) = items(made, tokenised(ids, weights))
    assert isinstance(item, LeftOut)
    assert item.reason == reason
