"""Where a rendering is cut into prompt and completion: the three cases of DESIGN.md, "Turn"."""

from __future__ import annotations

import re
from typing import NamedTuple

from imprint.data.conversation import Message
from imprint.render.template import Refused, Template
from imprint.render.tokens import Encoder

_OPEN = re.compile(
    r"(?P<open><(?P<name>think|thinking|thought|reasoning)>|<\|START_THINKING\|>|\[THINK\]"
    r"|Here are my reasoning steps:)(?P<gap>\s*)"
    r"(?P<close>(?:</(?P=name)>|<\|END_THINKING\|>|\[/THINK\])\s*)?$"
)
_CLOSING = {
    "<|START_THINKING|>": "<|END_THINKING|>",
    "[THINK]": "[/THINK]",
    "Here are my reasoning steps:": "[BEGIN FINAL RESPONSE]",
}
_REACH = 80  # characters at the end of a prompt in which it may open a thought


class Thought(NamedTuple):
    """A thought that a prompt opens at its end: where, with what, and whether it also closes it."""

    start: int
    opening: str
    gap: str
    closed: bool

    @property
    def closing(self) -> str:
        return _CLOSING.get(self.opening) or "</" + self.opening[1:]


def find_thought(prompt: str) -> Thought | None:
    """The thought at the end of a prompt, if it opens one."""
    first = max(0, len(prompt) - _REACH)
    found = _OPEN.search(prompt[first:])
    if found is None:
        return None
    return Thought(first + found.start(), found["open"], found["gap"], found["close"] is not None)


def split_reply(
    prompt: str, full: str, message: Message, template: Template, encoder: Encoder
) -> tuple[str, str]:
    """(completion with its stop, case) of the reply `message`; Refused where no case fits.

    `prompt` is the rendering of what stands before the reply, `full` the one that ends with it.
    """
    thought = find_thought(prompt)
    if full.startswith(prompt):
        completion, case = full[len(prompt) :], "prefix"
    elif thought and full.startswith(prompt[: thought.start]):
        completion, case = full[thought.start :], "thought"
    else:
        shown = f"prompt ends {prompt[-60:]!r}, rendering ends {full[-60:]!r}"
        raise Refused("the prompt is not the beginning of the conversation", shown)
    if thought and thought.closed and message.reasoning:
        raise Refused("the prompt closes the thought and the row has reasoning", repr(prompt[-60:]))
    if thought and not thought.closed and (case == "thought" or message.reasoning):
        completion = _finish_thought(thought, completion, message.reasoning)
        case = "thought"
    completion = cut_after_stop(completion, template, encoder)
    _check_complete(completion, message)
    return completion, case


def _finish_thought(thought: Thought, completion: str, reasoning: str | None) -> str:
    """What the model must write behind an open thought: the reasoning, the closing tag, the reply.

    Most such templates drop the reasoning from their rendering, and so say only by the space
    behind the opening tag how the model is to set the closing one.
    """
    if not reasoning:
        raise Refused("the prompt opens a thought and the row has no reasoning", repr(thought.opening))
    reply = completion.lstrip().removeprefix(thought.opening).lstrip()
    if reply.startswith(reasoning.strip()):
        return reply
    reply = reply.removeprefix(thought.closing).lstrip()
    newline = "\n" if "\n" in thought.gap else ""
    return f"{reasoning.strip()}{newline}{thought.closing}{newline * 2}{reply}"


def _check_complete(completion: str, message: Message) -> None:
    """Refused where the template drops what the row wants trained."""
    if message.content.strip() not in completion:
        raise Refused("the template changes the reply's text", f"{completion[-80:]!r}")
    if message.reasoning and message.reasoning.strip() not in completion:
        raise Refused("the template drops the reply's reasoning", f"{completion[:80]!r}")
    for call in message.tool_calls:
        name = call.get("function", call).get("name", "")
        if name not in completion:
            raise Refused("the template drops the reply's tool calls", f"{name!r}: {completion[-80:]!r}")


def cut_after_stop(completion: str, template: Template, encoder: Encoder) -> str:
    """The completion up to and including its stop token.

    What the template writes after a reply is known (`Template.ending`), and the stop in it.
    A template that ends replies with none gets the tokenizer's end-of-text, since nothing
    else would ever stop the model.
    """
    ending = template.ending
    if not completion.endswith(ending):
        # tool calls may end otherwise than plain replies: with the last added token
        spans = encoder.added_spans(completion)
        if not spans or completion[spans[-1][1] :].strip():
            raise Refused("the template ends this reply with no stop token", f"{completion[-60:]!r}")
        return completion[: spans[-1][1]]
    reply = completion[: len(completion) - len(ending)]
    stop = find_stop(ending, encoder)
    if stop is not None:
        return reply + ending[: stop[1]]
    if encoder.eos is None:
        raise Refused("neither the template nor the tokenizer has a stop token")
    return reply + encoder.eos


def find_stop(ending: str, encoder: Encoder) -> tuple[int, int] | None:
    """Where the stop stands in what a template writes after a reply.

    It is the last of the first added tokens that adjoin each other: Command-R ends a reply with
    `<|END_RESPONSE|><|END_OF_TURN_TOKEN|>`, and Phi-3 a whole rendering with `<|end|>\\n<|endoftext|>`.
    """
    stop = None
    for span in encoder.added_spans(ending):
        if stop is not None and span[0] != stop[1]:
            break
        stop = span
        if ending[slice(*span)] == encoder.eos:
            break
    return stop
