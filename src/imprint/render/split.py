"""Where a rendering is cut into prompt and completion: the three cases of DESIGN.md, "Turn"."""

from __future__ import annotations

import re
from functools import lru_cache
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
_SAME_END = 16  # characters at the end of two prompts by which their generation prompts are compared


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

    Whether the completion holds all of the reply is another question (`faithful.reply_fault`).
    `prompt` is the rendering of what stands before the reply, `full` the one that ends with it.
    """
    thought = find_thought(prompt)
    reasoning, _ = message.thought
    if full.startswith(prompt):
        completion, case = full[len(prompt) :], "prefix"
    elif thought and full.startswith(prompt[: thought.start]):
        completion, case = full[thought.start :], "thought"
    else:
        shown = f"prompt ends {prompt[-60:]!r}, rendering ends {full[-60:]!r}"
        raise Refused("the prompt is not the beginning of the conversation", shown)
    if thought and thought.closed and reasoning:
        raise Refused("the prompt closes the thought and the row has reasoning", repr(prompt[-60:]))
    if thought and thought.closed and case == "thought":
        completion = _without_thought(thought, completion)
    elif thought and not thought.closed and (case == "thought" or reasoning):
        completion = _finish_thought(thought, completion, message)
        case = "thought"
    return cut_after_stop(completion, template, encoder, bool(message.tool_calls)), case


def _without_thought(thought: Thought, completion: str) -> str:
    """What follows a thought that the prompt has closed already: a rendering's own, empty one is no part of it."""
    reply = completion.lstrip()
    if not reply.startswith(thought.opening):
        return completion
    inside, closing, rest = reply[len(thought.opening) :].partition(thought.closing)
    if not closing or inside.strip():
        raise Refused("the prompt closes the thought and the rendering opens one", repr(completion[:60]))
    return rest.lstrip()


def _finish_thought(thought: Thought, completion: str, message: Message) -> str:
    """What the model must write behind an open thought: the reasoning, the closing tag, the reply.

    Most such templates drop the reasoning from their rendering, and so say only by the space
    behind the opening tag how the model is to set the closing one.
    """
    reasoning, answer = message.thought
    if not reasoning:
        raise Refused("the prompt opens a thought and the row has no reasoning", repr(thought.opening))
    if _begins_with_thought(completion, reasoning, thought.closing):
        return completion  # the template's own rendering, white space and all
    reply = completion.lstrip().removeprefix(thought.opening).lstrip()
    if _begins_with_thought(reply, reasoning, thought.closing):
        return reply
    reply = reply.removeprefix(thought.closing).lstrip()
    if message.reasoning is None:  # the thought stood in tags, which a template may render as text
        reply = reply.removeprefix(message.content.removesuffix(answer).strip()).lstrip()
    if reply.count(thought.closing) > answer.count(thought.closing):  # a version of its own
        raise Refused("the template changes the reply's reasoning", f"{completion[:80]!r}")
    newline = "\n" if "\n" in thought.gap else ""
    return f"{reasoning.strip()}{newline}{thought.closing}{newline * 2}{reply}"


def _begins_with_thought(completion: str, reasoning: str, closing: str) -> bool:
    """Whether the reasoning stands there as a thought: a reply may begin with the same words."""
    text = completion.lstrip()
    return text.startswith(reasoning.strip()) and text[len(reasoning.strip()) :].lstrip().startswith(closing)


def graft(prompt: str, bare_prompt: str, bare_full: str) -> str | None:
    """`prompt` continued by the reply as it stands in another rendering of the same conversation.

    For templates that write the history anew once a reply stands behind it (Harmony drops the
    thoughts before a final answer): the two bare renderings hold no earlier thought from the
    beginning. None where they do not fit together, or end in another generation prompt.
    """
    if bare_prompt[-_SAME_END:] != prompt[-_SAME_END:]:
        return None
    thought, bare_thought = find_thought(prompt), find_thought(bare_prompt)
    ends = [(len(prompt), len(bare_prompt))]
    ends += [(thought.start, bare_thought.start)] if thought and bare_thought else []
    for end, bare_end in ends:
        if bare_full.startswith(bare_prompt[:bare_end]):
            return prompt[:end] + bare_full[bare_end:]
    return None


def cut_after_stop(completion: str, template: Template, encoder: Encoder, calls: bool = False) -> str:
    """The completion up to and including its stop token.

    What the template writes after a reply is known (`Template.ending`), and the stop in it.
    A template that ends replies with none gets the tokenizer's end-of-text, since nothing
    else would ever stop the model.
    """
    ending = template.ending
    if not completion.endswith(ending):
        if not calls:
            shown = f"{completion[-60:]!r}, where others end {ending!r}"
            raise Refused("the template ends this reply otherwise than others", shown)
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


def without_stop(completion: str, template: Template, encoder: Encoder) -> str:
    """What stands before the stop of a completion: a short reply may be a part of the stop's own text."""
    stop = find_stop(template.ending, encoder)
    tail = template.ending[: stop[1]] if stop else encoder.eos or ""
    if tail and completion.endswith(tail):
        return completion[: -len(tail)]
    spans = encoder.added_spans(completion)
    return completion[: spans[-1][0]] if spans and spans[-1][1] == len(completion) else completion


@lru_cache(maxsize=4)  # every reply of a run asks for the same
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
