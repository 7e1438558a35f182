"""TRL's training twins of chat templates, held against our turns: which tokens each of the two trains.

TRL marks replies in a copy of the template (`X_training.jinja`, with `{% generation %}`) and trains
all that stands between the marks, in one rendering of the whole conversation. We train what a model
must produce behind each prompt of X itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from difflib import SequenceMatcher
from itertools import groupby
from pathlib import Path
from typing import Any

from imprint.data.conversation import Conversation, Message
from imprint.render.resolve import Rendering
from imprint.render.turns import Turn
from render.cells import conversations, reasoned, rendering_for, turns_of
from render.corpus import TEMPLATES, template_source
from render.oracle import as_openai, openai_tools

# shape of a difference, or our reason → why we do otherwise
ARGUMENTS: dict[str, str] = {
    "…[+↵+]": "the newline behind the stop: a server has stopped by then, so the model never produces it; it is the "
    "template's, and part of the next prompt",
    "…[+↵<|endoftext|>+]": "what the template writes behind the last message's stop: the server stops at `<|end|>`, "
    "and in an earlier reply the token does not stand there at all",
    "[+↵+]…[+↵+]": "the newline behind `<|im_start|>assistant` is in the prompt that a server feeds; the one behind "
    "the stop is never produced",
    "…[+ +]": "a space behind the stop, which is never produced",
    "[+<|start|>assistant+]…": "the header of the reply is in the prompt that a server feeds",
    "[+<|start|>assistant+]…[-<|return|>-][+<|end|>+]": "the header is in the prompt; and a final reply is ended by "
    "`<|return|>`, at which a server stops: TRL sees it as history, where the template writes `<|end|>`, and so "
    "trains `<|return|>` in the last reply alone",
    "[-<|channel|>analysis<|message|>THOUGHT<|end|>-]…[-<|return|>-][+<|end|>+]": "a thought of an earlier reply, "
    "which the template drops from the history: TRL never trains it; we train each reply as the last one, where it "
    "is shown (TRL's `<|start|>assistant` is then taken from the thought's header). `<|return|>` as above",
    "[-<|channel|>analysis<|message|>TEXT<|end|>-]…": "the text beside a call, which the template writes as a thought "
    "and drops from the history: as above",
    "[-<|channel|>analysis<|message|>THOUGHT<|end|>-]…": "the thought before a call, dropped from the "
    "history: as above",
    "[-THOUGHT↵</think>↵↵-][+<｜Assistant｜>+]…": "`<｜Assistant｜>` is in the prompt, and so is the `<think>` "
    "behind it, which TRL's rendering of the whole lacks: it trains replies without the thought that a "
    "server's prompt opens",
    "[-THOUGHT↵</think>-][+<｜Assistant｜>+]…": "the same, of a thought in tags as the row sets them",
    "[+<｜tool▁outputs▁end｜>+]…": "the end of the tool's results is in the prompt: TRL trains the model to write it",
    "the prompt opens a thought and the row has no reasoning": "a server's prompt ends in `<think>`; TRL trains the "
    "reply behind a prompt that no server feeds",
    "an opening reply answers nothing: context only": "no server asks for it",
    "no user message before it: context only": "no server asks for it",
    "its weight is 0: context only": "the row asks for it; TRL's mask knows no weights",
    "control tokens in its text": "a text that forges the end of a message; `control_tokens: keep` trains it",
    "the template has no place for tools": "the reply calls a function that the prompt does not show",
    "the template drops the reply's reasoning": "TRL trains the reply without its thought, in silence; "
    "`unfaithful: keep` does",
    "the template drops the reply's tool calls": "TRL trains an empty reply, or the first call of several, in silence",
    "the template drops or changes a tool message": "the reply's context lacks the result that it answers",
    "the template changes the reply's text": "TRL trains a text that the row does not hold",
    "the prompt is not the beginning of the conversation": "the rendering with the reply shows another history than a "
    "server's prompt",
}

PAIRS = [
    (path, twin)
    for path in TEMPLATES
    if path.parent.name == "trl"
    for twin in [path.with_name(f"{path.stem}_training.jinja")]
    if twin in TEMPLATES
]


@dataclass(frozen=True, slots=True)
class Difference:
    """One reply on which the two disagree, and how: in `shape`, … stands for tokens that both train,
    [-…-] for some that only we train, [+…+] for some that only TRL trains; or our reason, where we
    train nothing of the reply.
    """

    template: str
    kind: str
    conversation: str
    message: int
    shape: str

    @property
    def why(self) -> str | None:
        """The argument for it; None where there is none."""
        return ARGUMENTS.get(self.shape)


@dataclass(slots=True)
class Compared:
    """Replies on which the two agree, the differences, and what TRL's twin cannot render."""

    template: str
    equal: int
    differences: list[Difference]
    unrendered: list[tuple[str, str]]  # conversation, what it raised


def compare(path: Path, twin: Path, tokenizer: str = "bytes") -> Compared:
    """Every conversation of the corpus with both."""
    out = Compared(path.stem, 0, [], [])
    for kind, group in conversations().items():
        for name, conversation in group.items():
            made = rendering_for(template_source(path), tokenizer, reasoned(conversation))
            assert isinstance(made, Rendering), made
            try:
                theirs = spans_of(twin, conversation, made)
            except Exception as error:  # a template may raise anything
                out.unrendered.append((name, f"{type(error).__name__}: {error}"[:90]))
                continue
            for found in _differences(path.stem, kind, name, conversation, made, theirs):
                if found is None:
                    out.equal += 1
                else:
                    out.differences.append(found)
    return out


def spans_of(twin: Path, conversation: Conversation, made: Rendering) -> list[list[int]]:
    """The tokens of each reply that TRL trains, by transformers' assistant mask."""
    found: Any = made.encoder.tokenizer.apply_chat_template(
        as_openai(conversation.messages, made.template.form.parts),
        tools=openai_tools(conversation.tools) or None,
        chat_template=template_source(twin),
        tokenize=True,
        return_dict=True,
        return_assistant_tokens_mask=True,
        **made.template.options,
    )
    pairs = zip(found["input_ids"], found["assistant_masks"], strict=True)
    return [[token for token, _ in run] for marked, run in groupby(pairs, key=lambda p: p[1]) if marked]


def _differences(
    template: str, kind: str, name: str, conversation: Conversation, made: Rendering, theirs: list[list[int]]
) -> Iterator[Difference | None]:
    """One entry per reply: None where both train the same tokens."""
    replies = [i for i, message in enumerate(conversation.messages) if message.role == "assistant"]
    assert len(replies) == len(theirs), f"{template}: {len(theirs)} marked runs for {len(replies)} replies"
    ours = {item.turn: item for item in turns_of(conversation, made)}
    for reply, marked in zip(replies, theirs, strict=True):
        item, message = ours[reply], conversation.messages[reply]
        if not isinstance(item, Turn):
            shape = item.reason
        elif item.completion.tolist() == marked:
            yield None
            continue
        else:
            shape = _shape(item.completion.tolist(), marked, message, made)
        yield Difference(template, kind, name, reply, shape)


def _shape(ours: list[int], theirs: list[int], message: Message, made: Rendering) -> str:
    """How two runs of tokens differ; the thought, and the reply's text, by name."""
    reasoning, answer = message.thought
    out = ""
    for kind, a, b, c, d in SequenceMatcher(None, ours, theirs, autojunk=False).get_opcodes():
        only = made.encoder.decode(ours[a:b]), made.encoder.decode(theirs[c:d])
        for text, mark in zip(only, "-+", strict=True) if kind != "equal" else ():
            if reasoning:
                text = text.replace(reasoning, "THOUGHT").replace(reasoning.strip(), "THOUGHT")
            if answer.strip():
                text = text.replace(answer.strip(), "TEXT")
            out += f"[{mark}{text}{mark}]" if text else ""
        out += "…" if kind == "equal" else ""
    return out.replace("\n", "↵")
