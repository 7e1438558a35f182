"""From conversations to turns: each reply, in the context in which a server would ask for it.

No marker is searched for. The prompt is rendered as a server renders it, the reply is what
the template's own rendering of the conversation adds to it (DESIGN.md, "Turn").
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from imprint.data.conversation import Conversation, Place
from imprint.errors import DataError
from imprint.render.split import split_reply
from imprint.render.template import Refused, Template, as_template_input
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
    source = conversation.source
    rendered = [as_template_input(message) for message in conversation.messages]
    replies = [i for i, message in enumerate(conversation.messages) if message.role == "assistant" and i > 0]
    if train_on == "everything":  # one turn: the last rendering holds all the earlier ones
        replies = replies[-1:]
        if any(message.weight not in (None, 1.0) for message in conversation.messages):
            yield LeftOut("a message has a weight (train_on: everything knows none)", source, replies[0])
            return
    elif conversation.messages[0].role == "assistant":
        yield LeftOut("an opening reply answers nothing: context only", source, 0)
    if train_on == "last_reply":
        for i in replies[:-1]:
            yield LeftOut("not the last reply (train_on: last_reply)", source, i)
        replies = replies[-1:]
    for i in replies:
        message = conversation.messages[i]
        weight = conversation.weight * (1.0 if message.weight is None else message.weight)
        if weight == 0:
            yield LeftOut("its weight is 0: context only", source, i)
            continue
        if all(m.role in ("system", "assistant") for m in conversation.messages[:i]):
            yield LeftOut("no user message before it: context only", source, i)
            continue
        try:
            prompt = template.render(rendered[:i], conversation.tools, add_generation_prompt=True)
            full = template.render(rendered[: i + 1], conversation.tools)
            _check_tools(prompt, conversation.tools)
            completion, case = split_reply(prompt, full, message, template, encoder)
        except Refused as error:
            yield LeftOut(error.args[0], source, i, *error.args[1:2])
            continue
        if train_on == "everything":
            prompt, completion, case = "", prompt + completion, "everything"
        yield ReplyText(prompt, completion, weight, source, index, i, case)


def _check_tools(prompt: str, tools: Sequence[Mapping[str, Any]]) -> None:
    """Refused where the template drops the tools: a model would learn to call what it is not offered."""
    for tool in tools:
        name = str(tool.get("function", tool).get("name", ""))
        if name not in prompt:
            raise Refused("the template has no place for tools", f"{name!r} is not in the prompt")


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
            for item in reply_texts(conversation, index, template, encoder, train_on):
                if isinstance(item, LeftOut):
                    yield item
                else:
                    texts.append(item)
        for text, (prompt, completion) in zip(texts, encoder.encode_turns(texts), strict=True):
            yield fit(_turn(text, prompt, completion), max_length, too_long)


def _turn(text: ReplyText, prompt: Ids, completion: Ids | str) -> Turn | LeftOut:
    if isinstance(completion, str):
        return LeftOut(completion, text.source, text.turn)
    if text.case == "everything":  # the first token is predicted from nothing
        prompt, completion = completion[:1], completion[1:]
    elif (completion[:-1] == completion[-1]).any():
        return LeftOut("the reply's text contains its stop token", text.source, text.turn)
    if not len(prompt) or not len(completion):
        return LeftOut("its prompt or its reply has no tokens", text.source, text.turn)
    weight = np.full(len(completion), text.weight, np.float32)
    return Turn(prompt, completion, weight, text.source, text.conversation, text.turn, text.case)


def fit(turn: Turn | LeftOut, max_length: int, too_long: TooLong) -> Turn | LeftOut:
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
        return LeftOut("its prompt alone fills max_length", turn.source, turn.turn, size)
    if too_long == "leave_out":
        return LeftOut("it is longer than max_length", turn.source, turn.turn, size)
    return replace(turn, completion=turn.completion[:room], weight=turn.weight[:room], case="truncated")
