"""From conversations to turns: each reply, in the context in which a server would ask for it.

No marker is searched for. The prompt is rendered as a server renders it, the reply is what
the template's own rendering of the conversation adds to it (DESIGN.md, "Turn").
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from imprint.data.conversation import Conversation, Message, Place
from imprint.errors import DataError
from imprint.render.template import OPEN_THOUGHT, Refused, Template, as_template_input, closing_tag
from imprint.render.tokens import Encoder

Ids = NDArray[np.int32]
TrainOn = Literal["replies", "last_reply", "everything"]
TooLong = Literal["leave_out", "truncate", "error"]

CHUNK = 512  # conversations tokenised in one call


@dataclass(frozen=True, slots=True, eq=False)
class Turn:
    """One reply to learn, in its context.

    prompt      int32   [m]  the ids that a server would feed
    completion  int32   [n]  the ids that the model must then produce, the stop token last
    weight      float32 [n]  share of each in the loss
    """

    prompt: Ids
    completion: Ids
    weight: NDArray[np.float32]
    source: Place
    conversation: int  # index in the list that was rendered
    turn: int  # index of the reply's message
    case: str = "prefix"

    def __post_init__(self) -> None:
        assert len(self.prompt) > 0, "the first token to learn is predicted from a prompt"
        assert len(self.completion) == len(self.weight) > 0, "a turn has one weight per token to learn"

    @property
    def ids(self) -> Ids:
        return np.concatenate((self.prompt, self.completion))

    def __len__(self) -> int:
        return len(self.prompt) + len(self.completion)


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A reply that is not trained: why (a short, stable reason) and where (with what was seen)."""

    reason: str
    source: Place
    turn: int
    detail: str = ""


@dataclass(frozen=True, slots=True)
class ReplyText:
    """A reply before tokenisation: `prompt + completion` is the text to encode."""

    prompt: str
    completion: str
    weight: float
    source: Place
    conversation: int
    turn: int
    case: str


def reply_texts(
    conversation: Conversation, index: int, template: Template, encoder: Encoder, train_on: TrainOn
) -> Iterator[ReplyText | LeftOut]:
    """Each reply of a conversation with its prompt, as text, by the three cases of DESIGN.md."""
    rendered = [as_template_input(message) for message in conversation.messages]
    replies = [i for i, message in enumerate(conversation.messages) if message.role == "assistant" and i > 0]
    if conversation.messages[0].role == "assistant":
        yield LeftOut("an opening reply answers nothing: context only", conversation.source, 0)
    if train_on == "last_reply":
        for i in replies[:-1]:
            yield LeftOut("not the last reply (train_on: last_reply)", conversation.source, i)
        replies = replies[-1:]
    for i in replies:
        message = conversation.messages[i]
        weight = conversation.weight * (1.0 if message.weight is None else message.weight)
        if weight == 0:
            yield LeftOut("its weight is 0: context only", conversation.source, i)
            continue
        if all(m.role in ("system", "assistant") for m in conversation.messages[:i]):
            yield LeftOut("no user message before it: context only", conversation.source, i)
            continue
        try:
            prompt = template.render(rendered[:i], conversation.tools, add_generation_prompt=True)
            full = template.render(rendered[: i + 1], conversation.tools)
            prompt, completion, case = split_reply(prompt, full, message, template, encoder)
        except Refused as error:
            yield LeftOut(error.args[0], conversation.source, i, *error.args[1:2])
            continue
        if train_on == "everything":
            yield ReplyText("", prompt + completion, weight, conversation.source, index, i, "everything")
            continue
        yield ReplyText(prompt, completion, weight, conversation.source, index, i, case)


def split_reply(
    prompt: str, full: str, message: Message, template: Template, encoder: Encoder
) -> tuple[str, str, str]:
    """(prompt, completion with its stop, case) of one reply; Refused where no case fits."""
    if full.startswith(prompt):
        completion, case = full[len(prompt) :], "prefix"
    else:
        thought = OPEN_THOUGHT.search(prompt)
        base = prompt[: thought.start()] if thought else ""
        if thought is None or not full.startswith(base):
            shown = f"prompt ends {prompt[-60:]!r}, rendering ends {full[-60:]!r}"
            raise Refused("the prompt is not the beginning of the conversation", shown)
        completion, case = full[len(base) :], "thought"
        if not thought["close"]:
            if not message.reasoning:
                raise Refused("the prompt opens a thought and the row has no reasoning")
            # the template drops the reasoning from its rendering: put it where the model must write it
            tag = closing_tag(thought["open"])
            completion = f"{message.reasoning.strip()}\n{tag}\n\n{completion.lstrip()}"
    completion = cut_after_stop(completion, template, encoder)
    if message.content.strip() not in completion:
        raise Refused("the template changes the reply's text", f"{completion[-80:]!r}")
    if not completion:
        raise Refused("the template renders an empty reply")
    return prompt, completion, case


def cut_after_stop(completion: str, template: Template, encoder: Encoder) -> str:
    """The completion up to and including its stop token.

    What the template writes after a reply is known (`Template.ending`): the stop is the
    first added token in it. A template that ends replies with none gets the tokenizer's
    end-of-text, since nothing else would ever stop the model.
    """
    ending = template.ending
    if ending and completion.endswith(ending):
        reply, tail = completion[: -len(ending)], ending
    elif ending:
        # tool calls may end otherwise than plain replies: take the last run of added tokens
        found = encoder.added_spans(completion)
        if not found:
            raise Refused("the template ends this reply with no stop token", f"{completion[-60:]!r}")
        return completion[: found[-1][1]]
    else:
        reply, tail = completion, ""
    spans = encoder.added_spans(tail)
    if spans:
        return reply + tail[: spans[0][1]]
    if encoder.eos is None:
        raise Refused("neither the template nor the tokenizer has a stop token")
    return reply + encoder.eos


def render(
    conversations: Sequence[Conversation],
    template: Template,
    encoder: Encoder,
    *,
    train_on: TrainOn = "replies",
    max_length: int,
    too_long: TooLong = "leave_out",
) -> Iterator[Turn | LeftOut]:
    """The turns of `conversations`, in order, and every reply that is left out."""
    numbered = iter(enumerate(conversations))
    while chunk := list(islice(numbered, CHUNK)):
        texts: list[ReplyText] = []
        for index, conversation in chunk:
            found = list(reply_texts(conversation, index, template, encoder, train_on))
            kept = [item for item in found if isinstance(item, ReplyText)]
            # loss on every token: the last rendering holds all the earlier ones
            texts += kept[-1:] if train_on == "everything" else kept
            yield from (item for item in found if isinstance(item, LeftOut))
        for text, (prompt, completion) in zip(texts, encoder.encode_turns(texts), strict=True):
            yield fit(_turn(text, prompt, completion), max_length, too_long, text)


def _turn(text: ReplyText, prompt: Ids, completion: Ids | str) -> Turn | LeftOut:
    if isinstance(completion, str):
        return LeftOut(completion, text.source, text.turn)
    if text.case == "everything":  # the first token is predicted from nothing
        prompt, completion = completion[:1], completion[1:]
    if not len(prompt) or not len(completion):
        return LeftOut("its prompt or its reply has no tokens", text.source, text.turn)
    weight = np.full(len(completion), text.weight, np.float32)
    return Turn(prompt, completion, weight, text.source, text.conversation, text.turn, text.case)


def fit(turn: Turn | LeftOut, max_length: int, too_long: TooLong, text: Any = None) -> Turn | LeftOut:
    """The turn as it is, cut, or left out, so that it has at most `max_length` tokens."""
    if isinstance(turn, LeftOut) or len(turn) <= max_length:
        return turn
    size = f"{len(turn):,} tokens, of which {len(turn.prompt):,} are its prompt"
    if too_long == "error":
        raise DataError(
            "a turn is longer than max_length",
            where=f"{turn.source}, message {turn.turn}",
            found=size,
            expected=f"at most {max_length:,} tokens",
            fix="raise max_length, shorten the row, or too_long=leave_out (too_long=truncate cuts replies)",
        )
    room = max_length - len(turn.prompt)
    if room < 1:
        return LeftOut("its prompt alone is longer than max_length", turn.source, turn.turn, size)
    if too_long == "leave_out":
        return LeftOut("it is longer than max_length", turn.source, turn.turn, size)
    return Turn(
        turn.prompt,
        turn.completion[:room],
        turn.weight[:room],
        turn.source,
        turn.conversation,
        turn.turn,
        "truncated",
    )
