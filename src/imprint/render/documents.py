"""What is trained without a template: documents, for replay, and rows that were tokenised elsewhere."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from imprint.data.conversation import Conversation
from imprint.render.tokens import Encoder
from imprint.render.turn import LeftOut, TooLong, Turn, fit

DOCUMENT, TOKENS = "document", "tokens"  # cases of a turn


def turns_without_template(
    conversation: Conversation, index: int, encoder: Encoder, max_length: int, too_long: TooLong
) -> Iterator[Turn | LeftOut]:
    """The turns of a document or of a tokenised row."""
    if conversation.tokens is None:
        yield from _document(conversation, index, encoder, max_length)
    else:
        yield fit(_tokenised(conversation, index, encoder), max_length, too_long)


def _document(
    conversation: Conversation, index: int, encoder: Encoder, max_length: int
) -> Iterator[Turn | LeftOut]:
    """Pieces of at most `max_length` tokens. Each begins with the last token of the one before.

    So every token but the first is trained once. The text begins and ends as the tokenizer marks
    texts in pretraining: with its BOS where it adds one by itself, and with its end-of-text.
    """
    (message,) = conversation.messages
    source = conversation.source
    (text,) = encoder.encode([message.content])
    ids = np.concatenate((encoder.text_start, text, encoder.text_end))
    weight = conversation.weight * (1.0 if message.weight is None else message.weight)
    if len(ids) < 2:
        yield LeftOut("a document of fewer than two tokens", source, 0)
        return
    for start in range(0, len(ids) - 1, max(1, max_length - 1)):
        piece = ids[start : start + max_length]
        weights = np.full(len(piece) - 1, weight, np.float32)
        yield Turn(piece[:1], piece[1:], weights, source, index, 0, DOCUMENT)


def _tokenised(conversation: Conversation, index: int, encoder: Encoder) -> Turn | LeftOut:
    """The ids as they are given; what has no weight at their head is the prompt."""
    tokens, source = conversation.tokens, conversation.source
    assert tokens is not None
    ids = np.array(tokens.ids, dtype=np.int32)
    weights = np.array(tokens.weights, dtype=np.float32) * conversation.weight
    if len(ids) and not 0 <= ids.min() <= ids.max() < encoder.num_tokens:
        wrong = ids[(ids < 0) | (ids >= encoder.num_tokens)][0]
        detail = f"{wrong:,}; the tokenizer has the ids 0 to {encoder.num_tokens - 1:,}"
        return LeftOut("a token id that the tokenizer has not", source, 0, detail)
    trained = np.flatnonzero(weights[1:]) + 1  # nothing predicts the first
    if not len(trained):
        return LeftOut("no token behind the first has a weight", source, 0)
    first, end = int(trained[0]), int(trained[-1]) + 1
    return Turn(ids[:first], ids[first:end], weights[first:end], source, index, 0, TOKENS)
