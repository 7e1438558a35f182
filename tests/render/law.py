"""Law 1 as a predicate: what a run made of a conversation, held against transformers by position.

Unlike `oracle.assert_sound`, which looks for words of a fixed corpus, this asks for the very text
and ids: whatever a random reply holds, tags and control tokens among it, cannot deceive it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jinja2

from imprint.data.conversation import Conversation, Message
from imprint.render.control import escape_control
from imprint.render.resolve import Rendering
from imprint.render.turns import LeftOut, Turn
from render.oracle import arguments_of, thought_of
from render.served import Asked, ask, bare, decode, ids_of, tail_of, text_of
from render.strategies import TOOL_MARK, Drawn, mark_of

TAGS = (
    ("<think>", "</think>"), ("<thinking>", "</thinking>"), ("<thought>", "</thought>"),
    ("<seed:think>", "</seed:think>"), ("<|START_THINKING|>", "<|END_THINKING|>"), ("[THINK]", "[/THINK]"),
    ("Here are my reasoning steps:", "[BEGIN FINAL RESPONSE]"),
)  # fmt: skip
Item = Turn | LeftOut


@dataclass(frozen=True)
class Trained:
    """A turn beside all that it is judged by; `tail` is what the template writes behind a last reply."""

    turn: Turn
    text: str
    asked: Asked
    conversation: Conversation
    made: Rendering
    tail: str

    @property
    def message(self) -> Message:
        return self.conversation.messages[self.turn.turn]


def assert_lawful(items: Sequence[Item], drawn: Drawn, made: Rendering) -> int:
    """AssertionError unless the items are all that a run may make of a row; the number of turns.

    Every reply is a turn or left out with a reason; each turn's prompt is a server's, its completion
    what the template writes for the reply up to the stop, and nothing else is trained.
    """
    given = drawn.conversation
    replies = [i for i, message in enumerate(given.messages) if message.role == "assistant"]
    assert sorted(item.turn for item in items) == replies, "a reply is not accounted for"
    assert all(item.reason.strip() for item in items if isinstance(item, LeftOut)), "no reason is given"
    turns = [item for item in items if isinstance(item, Turn)]
    if not turns:
        return 0
    escape = drawn.control_tokens == "escape"
    conversation = _escaped(given, made) if escape else given
    tail = tail_of(conversation, made)
    for turn in turns:
        try:
            asked = ask(conversation, turn.turn, made)
        except jinja2.TemplateError as error:
            raise AssertionError("the template refuses what is trained") from error
        assert turn.prompt.tolist() == asked.ids, "the prompt is not what a server feeds"
        trained = Trained(turn, text_of(turn.completion, made), asked, conversation, made, tail)
        _check_stop(trained)
        _check_weight(trained)
        _check_marks(trained)
        _check_reply(trained)
        _check_completion(trained)
        if escape:
            _check_control(turn, given, made)
        elif drawn.control_tokens == "leave_out":
            _check_left_out(turn, given, made)
    return len(turns)


# ----------------------------------------------------------------------------- the reply and its end


def _check_completion(trained: Trained) -> None:
    """The completion is what a rendering has behind the prompt, or behind the thought that the prompt opens.

    Where the history is rendered otherwise once a reply stands behind it, the rendering is that
    of the conversation without earlier thoughts.
    """
    asked = trained.asked
    if _fits(trained, asked):
        return
    assert not asked.full.startswith(asked.prompt), "the completion is not the rendering's rest"
    again = ask(trained.conversation, trained.turn.turn, trained.made, bare_history=True)
    assert again.prompt[-10:] == asked.prompt[-10:], "the completion belongs to another prompt"
    assert _fits(trained, again), "the completion is not the rendering's"


def _fits(trained: Trained, shown: Asked) -> bool:
    """Whether the completion stands in `shown` behind the prompt."""
    made, prompt = trained.made, trained.asked
    full = _up_to_stop(shown.full, trained)
    if full is None:
        return False
    if full.startswith(shown.prompt):
        rest = full[len(shown.prompt) :]
        whole, ids = ids_of(prompt.prompt + rest, made), trained.turn.ids.tolist()
        if whole == ids:
            return True
        if whole[: len(prompt.ids)] != prompt.ids and decode(ids, made) == decode(whole, made):
            return True  # no token ends where the prompt does: the server's prompt stays
    return _continues_thought(trained, shown.prompt, full)


def _up_to_stop(full: str, trained: Trained) -> str | None:
    """The rendering up to the stop behind its last reply; None where that is not what ends it."""
    tokenizer, tail = trained.made.encoder.tokenizer, trained.tail
    added = {i: token.content for i, token in tokenizer.added_tokens_decoder.items()}
    last = int(trained.turn.completion[-1])
    stop = added[last]
    if full.endswith(tail):
        body = full[: len(full) - len(tail)]
        if stop in tail:
            return body + tail[: tail.index(stop) + len(stop)]
        written = any(token in tail for token in added.values() if not token.isspace())
        return body + stop if last == tokenizer.eos_token_id and not written else None
    end = full.rfind(stop) + len(stop)  # calls may end otherwise than plain replies
    return full[:end] if stop in full and not full[end:].strip() else None


def _continues_thought(trained: Trained, prompt: str, full: str) -> bool:
    """Whether the completion is the rest of a thought that the prompt opens, and the reply.

    White space in the thought aside; the reply and its end exactly. In place of the thought the
    rendering has its own, empty or not, or none.
    """
    reasoning, answer = thought_of(trained.message)
    found = _opened(prompt)
    if found is None or not full.startswith(prompt[: found[0]]):
        return False
    start, opening, closing, closed = found
    rest, written, thought = bare(full[start:]), bare(trained.text), bare(reasoning or "")
    behind = trained.text
    if not closed:
        tag = next((tag for _, tag in TAGS if written.startswith(thought + bare(tag))), None)
        if not reasoning or tag is None or not _set_off(behind, reasoning):
            return False
        written = written[len(thought + bare(tag)) :]
        behind = behind.split(tag, reasoning.count(tag) + 1)[-1]
    if not _set_off(behind, answer):
        return False
    end, inside = bare(closing), ("", thought)
    own = {"", *(bare(opening) + inner + end for inner in inside), thought + end}
    inline = {"", f"<think>{thought}</think>"} if trained.message.reasoning is None else {""}
    if not any(a + b + written == rest for a in own for b in inline):
        return False
    shown = answer.strip()
    if not shown or trained.message.tool_calls:
        return True
    last = full[full.rfind(shown) :]
    exact = decode(ids_of(last, trained.made), trained.made) == last
    return trained.text.endswith(last) or not exact  # some decoders lose a space beside added tokens


def _set_off(text: str, own: str) -> bool:
    """Whether it begins with newlines, and white space of its own, alone: a space may be the tokenizer's."""
    space = text[: len(text) - len(text.lstrip())]
    return not space.removesuffix(own[: len(own) - len(own.lstrip())]).strip("\n")


def _opened(prompt: str) -> tuple[int, str, str, bool] | None:
    """(start, opening, closing, whether it is closed) of the thought in which a prompt ends."""
    for opening, closing in TAGS:
        found = re.search(rf"{re.escape(opening)}\s*({re.escape(closing)}\s*)?\Z", prompt)
        if found:
            return found.start(), opening, closing, found[1] is not None
    return None


# ----------------------------------------------------------------------------- what must and must not be trained


def _check_stop(trained: Trained) -> None:
    ids, stops = trained.turn.completion.tolist(), trained.made.stop_ids
    assert ids[-1] in stops, "the stop is not trained"
    assert not set(ids[:-1]) & set(stops), "a stop stands inside the reply"


def _check_weight(trained: Trained) -> None:
    own = trained.message.weight
    weight = trained.conversation.weight * (1.0 if own is None else own)
    assert weight != 0, "a reply of weight 0 is trained"
    assert trained.turn.weight.tolist() == [weight] * len(trained.turn.completion), "its weight is another"


def _check_marks(trained: Trained) -> None:
    assert TOOL_MARK not in trained.text, "a tool's description is trained"
    reply = trained.turn.turn
    others = [mark_of(i) for i in range(len(trained.conversation.messages)) if i != reply]
    assert not any(mark in trained.text for mark in others), "the text of another message is trained"
    assert mark_of(reply) not in decode(trained.turn.prompt, trained.made), "the prompt holds the reply"


def _check_reply(trained: Trained) -> None:
    """The reply's answer, its reasoning, and the names and texts of its calls are trained."""
    message, text = trained.message, trained.text
    written = bare(text)
    reasoning, answer = thought_of(message)
    assert bare(answer) in written, "the reply's text is not trained"
    names = [call["function"]["name"] for call in message.tool_calls]
    before = text.partition(names[0])[0] if names else _before(trained, answer)
    assert bare(reasoning or "") in bare(before), "the reply's reasoning is not trained"
    assert all(text.count(name) >= names.count(name) for name in names), "a tool call is not trained"
    for leaf in (leaf for call in message.tool_calls for leaf in _leaves(arguments_of(call))):
        ways = (leaf, json.dumps(leaf)[1:-1], json.dumps(leaf, ensure_ascii=False)[1:-1], repr(leaf)[1:-1])
        assert any(bare(way) in written for way in ways), "an argument of a call is not trained"


def _before(trained: Trained, answer: str) -> str:
    """What is trained before the answer; both may hold the same words."""
    stop = text_of(trained.turn.completion[-1:], trained.made)
    text = bare(trained.text.removesuffix(stop))
    return text.rpartition(bare(answer))[0] if bare(answer) else text


def _leaves(value: Any) -> Iterator[str]:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield key
            yield from _leaves(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _leaves(inner)
    elif isinstance(value, str):
        yield value
    elif isinstance(value, int) and not isinstance(value, bool):
        yield str(value)


# ----------------------------------------------------------------------------- control tokens in the data


def _escaped(conversation: Conversation, made: Rendering) -> Conversation:
    """The conversation as imprint escapes it, seen to hold no control token and else the same characters."""
    out = escape_control(conversation, made.encoder)
    control = _control(made)
    for before, after in zip(conversation.messages, out.messages, strict=True):
        assert bare(before.content) == bare(after.content), "escaping changes more than white space"
        inside = set(ids_of(f"a{after.content}a", made)) - set(ids_of("a", made))
        assert not inside & set(control), "a control token is left after escaping"
    return out


def _control(made: Rendering) -> dict[int, str]:
    """Control tokens by their ids; those of one character cannot be escaped."""
    added = made.encoder.tokenizer.added_tokens_decoder
    return {i: token.content for i, token in added.items() if token.special and len(token.content) > 1}


def _pattern(made: Rendering) -> re.Pattern[str]:
    return re.compile("|".join(map(re.escape, sorted(_control(made).values(), key=len, reverse=True))))


def _check_left_out(turn: Turn, conversation: Conversation, made: Rendering) -> None:
    seen = conversation.messages[: turn.turn + 1]
    assert not any(map(_pattern(made).search, (m.content for m in seen))), (
        "a forged control token is not left out"
    )


def _check_control(turn: Turn, conversation: Conversation, made: Rendering) -> None:
    """As many control tokens act in the prompt as in that of a neutral row of the same shape, and few in the reply."""
    control, pattern = _control(made), _pattern(made)

    def neutral(text: str) -> str:
        while pattern.search(text):
            text = pattern.sub("qq", text)
        return text

    messages = tuple(replace(m, content=neutral(m.content)) for m in conversation.messages)
    asked = ask(replace(conversation, messages=messages), turn.turn, made)
    count = sum(i in control for i in turn.prompt.tolist())
    assert count == sum(i in control for i in asked.ids), "a forged control token acts in the prompt"
    # the reply's own: those that the neutral rendering has beyond its prompt
    whole = sum(i in control for i in ids_of(asked.full, made))
    inside = sum(i in control for i in turn.completion[:-1].tolist())
    assert inside < max(1, whole - count), "a forged control token acts in the reply"
