"""From conversations to turns: each reply, in the context in which a server would ask for it.

No marker is searched for. The prompt is rendered as a server renders it, the reply is what
the template's own rendering of the conversation adds to it (DESIGN.md, "Turn").
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from imprint.data.conversation import Conversation, Place
from imprint.data.ledger import Ledger
from imprint.errors import DataError, TemplateError
from imprint.render.control import escape_control, find_control
from imprint.render.documents import turns_without_template
from imprint.render.faithful import Fault, context_fault, repeated_fault, reply_fault
from imprint.render.form import without_thoughts
from imprint.render.limits import OUT_OF_TIME, SECONDS
from imprint.render.split import graft, split_reply, without_stop
from imprint.render.template import Refused, Template
from imprint.render.tokens import Encoder, Ids
from imprint.render.turn import LeftOut as LeftOut
from imprint.render.turn import Noticed as Noticed
from imprint.render.turn import TooLong as TooLong
from imprint.render.turn import Turn as Turn
from imprint.render.turn import fit as fit

TrainOn = Literal["replies", "last_reply", "everything"]
Unfaithful = Literal["leave_out", "error", "keep"]
ControlTokens = Literal["leave_out", "escape", "keep"]

CHUNK = 512  # conversations tokenised in one call, or fewer of so many characters:
CHUNK_CHARACTERS = 16 << 20
CONTEXT_ONLY = "context only"  # so ends the reason where the data itself asks that a reply is not trained
NOT_LAST = "not the last reply (train_on: last_reply)"
_SLOW = 3  # renderings out of time after which the template is given up


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
    conversation: Conversation,
    index: int,
    template: Template,
    encoder: Encoder,
    train_on: TrainOn = "replies",
    unfaithful: Unfaithful = "leave_out",
    control_tokens: ControlTokens = "leave_out",
) -> Iterator[ReplyText | LeftOut | Noticed]:
    """Each reply of a conversation with its prompt, as text, by the three cases of DESIGN.md.

    With unfaithful="error", DataError for the first reply that the template refuses, swallows or changes.
    """
    source = conversation.source
    forged = find_control(conversation, encoder)
    if forged and control_tokens != "leave_out":
        escaped = control_tokens == "escape"
        conversation = escape_control(conversation, encoder) if escaped else conversation
        yield Noticed(f"control tokens in its text: {'escaped' if escaped else 'kept'}", source)
        forged = None
    template = template.for_tools(conversation.tools)
    inputs = template.inputs(conversation.messages)
    checked, context = 0, None  # messages up to here were looked for in a prompt; what was missing
    for i, reason in _replies(conversation, train_on):
        if not reason and forged and forged.message <= i:
            yield LeftOut("control tokens in its text", source, i, str(forged))
            continue
        if reason:
            yield LeftOut(reason, source, i)
            continue
        completion = None
        try:
            prompt = template.render(inputs[:i], conversation.tools, add_generation_prompt=True)
            completion, case = _split(prompt, inputs[: i + 1], conversation, i, template, encoder)
        except Refused as error:
            fault: Fault | None = Fault(*error.args) if len(error.args) == 2 else Fault(str(error), "")
        else:
            context = context or context_fault(prompt, conversation, checked, i, template)
            checked = i
            body = without_stop(completion, template, encoder)
            fault = (
                context
                or reply_fault(body, conversation.messages[i], template.opening)
                or repeated_fault(body, conversation, i)
            )
        if fault is not None and unfaithful == "error":
            raise _unfaithful(template, source, i, fault)
        if completion is None or (fault is not None and unfaithful == "leave_out"):
            assert fault is not None
            yield LeftOut(fault.reason, source, i, fault.detail)
            continue
        if fault is not None:
            yield Noticed(f"trained as rendered (unfaithful: keep), although {fault.reason}", source)
        if train_on == "everything":
            prompt, completion, case = "", prompt + completion, "everything"
        yield ReplyText(prompt, completion, _weight(conversation, i), source, index, i, case)


def _split(
    prompt: str,
    inputs: list[dict[str, Any]],
    conversation: Conversation,
    reply: int,
    template: Template,
    encoder: Encoder,
) -> tuple[str, str]:
    """(completion, case) of a reply, the last of `inputs`; Refused where it has no exact one."""
    message, tools = conversation.messages[reply], conversation.tools
    full = template.render(inputs, tools)
    try:
        return split_reply(prompt, full, message, template, encoder)
    except Refused:
        earlier = conversation.messages[:reply]
        if full.startswith(prompt) or not any(m.reasoning or m.tool_calls for m in earlier):
            raise
        bare = [without_thoughts(item) for item in inputs[:-1]]
        bare_prompt = template.render(bare, tools, add_generation_prompt=True)
        full_again = graft(prompt, bare_prompt, template.render([*bare, inputs[-1]], tools))
        if full_again is None:
            raise
        return split_reply(prompt, full_again, message, template, encoder)[0], "rerendered"


def _replies(conversation: Conversation, train_on: TrainOn) -> Iterator[tuple[int, str]]:
    """Each reply's index, and why it is not to be trained; an empty reason where it is."""
    messages = conversation.messages
    replies = [i for i, message in enumerate(messages) if message.role == "assistant" and i > 0]
    if train_on == "everything":  # one turn: the last rendering holds all the earlier ones
        weighted = any(message.weight not in (None, 1.0) for message in messages)
        yield replies[-1], "a message has a weight (train_on: everything knows none)" if weighted else ""
        return
    if messages[0].role == "assistant":
        yield 0, f"an opening reply answers nothing: {CONTEXT_ONLY}"
    for i in replies:
        if train_on == "last_reply" and i != replies[-1]:
            yield i, NOT_LAST
        elif _weight(conversation, i) == 0:
            yield i, f"its weight is 0: {CONTEXT_ONLY}"
        elif all(m.role in ("system", "assistant") for m in messages[:i]):
            yield i, f"no user message before it: {CONTEXT_ONLY}"
        else:
            yield i, ""


def _weight(conversation: Conversation, reply: int) -> float:
    weight = conversation.messages[reply].weight
    return conversation.weight * (1.0 if weight is None else weight)


def _unfaithful(template: Template, source: Place, reply: int, fault: Fault) -> DataError:
    return DataError(
        fault.reason,
        where=f"{source}, message {reply + 1}",
        found=fault.detail,
        expected=f"a rendering by {template.name} that holds all of the row",
        fix="choose another template, mend the row, or unfaithful=leave_out",
    )


def _too_slow(template: Template, source: Place) -> TemplateError:
    return TemplateError(
        "the template is too slow",
        where=template.name,
        found=f"{_SLOW} replies, the last of {source}, were not rendered within {SECONDS:g} s of computing each",
        expected="well under a millisecond, as templates need",
        fix="choose another template: template=chatml, or mend the loops of this one",
    )


def render(
    conversations: Sequence[Conversation],
    template: Template,
    encoder: Encoder,
    *,
    train_on: TrainOn = "replies",
    max_length: int,
    document_length: int | None = None,
    too_long: TooLong = "leave_out",
    unfaithful: Unfaithful = "leave_out",
    control_tokens: ControlTokens = "leave_out",
    stop_ids: Sequence[int] = (),
) -> Iterator[Turn | LeftOut | Noticed]:
    """The turns of `conversations`, in order, every reply that is left out, and what is to be told.

    Documents are cut to `document_length` tokens (none: `max_length`). `stop_ids` are those at which a
    server stops: none may stand inside a reply.

    Raises TemplateError where the template runs out of time again and again.
    """
    stops = tuple(map(int, stop_ids))
    waiting: list[ReplyText | Turn | LeftOut] = []
    size, slow = 0, 0

    def tokenised() -> Iterator[Turn | LeftOut]:
        ids = iter(encoder.encode_turns([item for item in waiting if isinstance(item, ReplyText)]))
        for item in waiting:
            made = _turn(item, *next(ids), stops) if isinstance(item, ReplyText) else item
            yield fit(made, max_length, too_long) if isinstance(item, ReplyText) else item
        waiting.clear()

    for index, conversation in enumerate(conversations, 1):
        items: Iterable[ReplyText | Turn | LeftOut | Noticed]
        if conversation.is_chat:
            items = reply_texts(
                conversation, index - 1, template, encoder, train_on, unfaithful, control_tokens
            )
        else:
            length = max_length if conversation.tokens is not None else document_length or max_length
            items = turns_without_template(conversation, index - 1, encoder, length, too_long)
        for item in items:
            if isinstance(item, ReplyText | Turn):
                waiting.append(item)
                size += len(item) if isinstance(item, Turn) else len(item.prompt) + len(item.completion)
            else:
                slow += isinstance(item, LeftOut) and item.reason == OUT_OF_TIME
                if slow == _SLOW:
                    raise _too_slow(template, item.source)
                yield item
        if index % CHUNK == 0 or size > CHUNK_CHARACTERS:
            yield from tokenised()
            size = 0
    yield from tokenised()


def _turn(text: ReplyText, prompt: Ids, completion: Ids | str, stops: Sequence[int]) -> Turn | LeftOut:
    if isinstance(completion, str):
        return LeftOut(completion, text.source, text.turn)
    if text.case == "everything":  # the first token is predicted from nothing
        prompt, completion = completion[:1], completion[1:]
    elif any((completion[:-1] == stop).any() for stop in {int(completion[-1]), *stops}):
        return LeftOut("a stop token stands inside the reply", text.source, text.turn)
    elif stops and int(completion[-1]) not in stops:
        return LeftOut("the reply does not end with a stop token", text.source, text.turn)
    if not len(prompt) or not len(completion):
        return LeftOut("its prompt or its reply has no tokens", text.source, text.turn)
    weight = np.full(len(completion), text.weight, np.float32)
    return Turn(prompt, completion, weight, text.source, text.conversation, text.turn, text.case)


def accounted(items: Iterable[Turn | LeftOut | Noticed], ledger: Ledger, kind: str) -> Iterator[Turn]:
    """The turns; what becomes of every reply goes into the ledger."""
    for item in items:
        if isinstance(item, Noticed):
            ledger.warn(item.warning, item.source)
            continue
        ledger.turn(item.source)
        if isinstance(item, LeftOut):
            ledger.leave_turn_out(item.source, item.reason, item.detail)
            continue
        ledger.keep_turn(item.source, kind)
        if item.case == "truncated":
            ledger.warn("a reply is cut at max_length; its stop is not trained", item.source)
        yield item
