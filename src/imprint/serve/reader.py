"""What a reply is made of: its thought, its text, its tool calls, told apart while it comes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from imprint.data.conversation import Message
from imprint.render.probe import completion_of
from imprint.render.split import find_thought
from imprint.render.template import PROBE_TOOLS, Template
from imprint.render.tokens import Encoder
from imprint.serve.calls import Called, CallForm, learn_calls
from imprint.serve.pieces import held_back

Kind = Literal["reasoning", "content"]
_REASONING, _ANSWER = "Qx7 reasoning", "Qx7 answer"
_NAME = PROBE_TOOLS[0]["function"]["name"]


@dataclass(frozen=True, slots=True)
class ReplyForm:
    """How a template writes replies: the marks of a thought, what opens a plain reply, how calls look.

    A thought stands between `think` and `answer`; both are empty where the template has none.
    """

    think: str
    answer: str
    opening: str
    calls: CallForm | None


def learn_form(template: Template, encoder: Encoder) -> ReplyForm:
    """The form of a template's replies, found by rendering probes with it."""
    think = answer = ""
    thoughtful = completion_of(template, encoder, Message("assistant", _ANSWER, reasoning=_REASONING))
    if thoughtful is not None:
        head, _, rest = thoughtful.partition(_REASONING)
        think, answer = head.strip(), rest.partition(_ANSWER)[0].strip()
    calls = learn_calls(template, encoder, think, answer)
    if answer:
        before_call = _before_call(template, encoder, calls)
        if before_call and answer.startswith(before_call):  # Harmony: what follows says what it is
            answer = before_call
    opening = (template.opening or "").strip()
    if find_thought(opening) is not None:  # an empty thought before every reply (Qwen3 without thinking)
        opening = ""
    return ReplyForm(think, answer, opening, calls)


def _before_call(template: Template, encoder: Encoder, calls: CallForm | None) -> str:
    """What stands between a thought and a call."""
    call = {"id": "probe0000", "type": "function", "function": {"name": _NAME, "arguments": {}}}
    reply = Message("assistant", "", reasoning=_REASONING, tool_calls=(call,))
    written = completion_of(template.for_tools(PROBE_TOOLS), encoder, reply, PROBE_TOOLS)
    if calls is None or not calls.lead or written is None:
        return ""
    return written.partition(_REASONING)[2].partition(calls.lead)[0].strip()


@dataclass
class Reader:
    """Takes a reply's text in pieces, gives out thought and text as soon as each is sure; calls come at the end.

    `within` is the closing mark of a thought that the prompt has opened; `tools` those on offer.
    """

    form: ReplyForm
    tools: Sequence[Mapping[str, Any]] = ()
    within: str = ""
    continued: bool = False  # the prompt holds the beginning of the reply itself
    calls: list[Called] = field(default_factory=list)
    _state: Literal["start", "thought", "text", "calls"] = "start"
    _held: str = ""
    _closing: str = ""
    _trims: bool = False  # white space at the beginning of what comes next is no part of it
    _fresh: bool = True  # nothing of the text is out yet

    def __post_init__(self) -> None:
        if self.within:
            self._state, self._closing, self._trims = "thought", self.within, True
        elif self.continued:
            self._state, self._fresh = "text", False

    def add(self, text: str) -> list[tuple[Kind, str]]:
        self._held += text
        out: list[tuple[Kind, str]] = []
        while True:
            state = self._state
            match state:
                case "start":
                    sure = self._begin()
                case "thought":
                    sure = self._think()
                case "text":
                    sure = self._say()
                case "calls":
                    return out
            if sure:
                out.append(("reasoning" if state == "thought" else "content", sure))
            if self._state == state:
                return out

    def end(self) -> list[tuple[Kind, str]]:
        """What was held back; afterwards `calls` holds the calls."""
        held, self._held = self._held, ""
        if self._state == "calls":
            assert self.form.calls is not None
            held, self.calls = self.form.calls.parse(held, self.tools)
        if self._state == "thought":
            held = held.strip() if self._trims else held.rstrip()
            return [("reasoning", held)] if held else []
        if self._trims:
            held = held.lstrip()
        return [("content", held)] if held else []

    # each does one step in its state: gives out what is sure, and may change the state

    def _begin(self) -> str:
        text = self._held.lstrip()
        think = "" if self._closing else self.form.think  # one thought a reply
        marks = [mark for mark in (think, self.form.opening) if mark]
        met = next((mark for mark in marks if text.startswith(mark)), None)
        if met is None and any(mark.startswith(text) for mark in marks):
            return ""
        if met is None:
            self._state = "text"
        elif met == think:
            self._state, self._closing, self._trims = "thought", self.form.answer, True
            self._held = text[len(met) :]
        else:
            self._state, self._held = "text", text[len(met) :]
        return ""

    def _think(self) -> str:
        text = self._begun()
        at = text.find(self._closing)
        if at >= 0:
            self._state, self._held, self._trims = "start", text[at + len(self._closing) :], True
            return text[:at].rstrip()
        return self._sure(text, self._closing)

    def _say(self) -> str:
        text = self._begun()
        form = self.form.calls if self.tools else None
        if form is None:
            self._held = ""
            self._fresh = self._fresh and not text
            return text
        if form.lead:
            at = text.find(form.lead)
            if at < 0:
                return self._sure(text, form.lead)
            self._state, self._held = "calls", text[at:]
            return text[:at].rstrip()
        begun = text.lstrip()
        if self._fresh and (not begun or begun[0] in "{["):
            self._held = text
            self._state = "calls" if begun else "text"
            return ""
        self._held, self._fresh = "", False
        return text

    def _begun(self) -> str:
        """What is held, without the white space before its beginning where that is no part of it."""
        text = self._held.lstrip() if self._trims else self._held
        self._trims = self._trims and not text
        return text

    def _sure(self, text: str, mark: str) -> str:
        """The text without an end that may become the mark, and the white space before that."""
        sure = text[: len(text) - held_back(text, [mark])].rstrip()
        self._held = text[len(sure) :]
        self._fresh = self._fresh and not sure
        return sure
