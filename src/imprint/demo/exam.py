"""The demo's exam: questions are asked all at once, and only the one right answer counts."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

from imprint.data.conversation import Message
from imprint.demo.exercises import SetName, questions_of
from imprint.demo.world import KINDS
from imprint.evaluate.marks import Marks, mark

if TYPE_CHECKING:
    from imprint.serve.chat import Speaker

SETS: tuple[SetName, ...] = (
    "seen",
    "held-out entities",
    "held-out phrasings",
    "capitals held out",
    "final",
)
LONGEST = 40  # tokens of an answer; the longest right one has fewer
_AT_ONCE = 100


def examine(speaker: Speaker, names: Sequence[SetName] = SETS, most: int = 300) -> list[Marks]:
    """The marks of a model in each of the sets, by at most so many questions of each."""
    marks = []
    for name in names:
        questions = questions_of(name)[:most]
        given = answers(speaker, [question.text for question in questions])
        marks.append(mark(name, [question.answer for question in questions], given))
    return marks


def answers(speaker: Speaker, questions: Sequence[str], system: str = "") -> list[tuple[str, bool]]:
    """The greedy answer to each question through the chat template, and whether it ended by itself."""
    template = speaker.rendering.template
    head = [Message("system", system)] if system else []
    texts = [
        template.render(template.inputs([*head, Message("user", question)]), add_generation_prompt=True)
        for question in questions
    ]
    return _written(speaker, texts, LONGEST)


def continuations(speaker: Speaker, texts: Sequence[str], most: int = LONGEST) -> list[str]:
    """What the model writes behind plain texts, greedily: no template, as a base model is used."""
    return [text for text, _ in _written(speaker, texts, most)]


def drawn(speaker: Speaker, texts: Sequence[str], most: int = LONGEST, seed: int = 0) -> list[str]:
    """The same, drawn as the model's probabilities say: greedily, a small one repeats itself."""
    prompts = speaker.rendering.encoder.encode(list(texts))
    return [
        speaker.complete(prompt, lambda _: None, most, temperature=0.8, seed=seed + number)
        for number, prompt in enumerate(prompts)
    ]


def begins_with_a_question(text: str) -> bool:
    """Whether a text begins with a whole question of the demo's world."""
    text = text.strip()
    return any(re.match(form, text) for form in _question_forms())


@cache
def _question_forms() -> tuple[str, ...]:
    return tuple(
        re.escape(form).replace(r"\{x\}", r"[^.?\n]+")
        for kind in KINDS
        for form in kind.asked + kind.asked_later
    )


def _written(speaker: Speaker, texts: Sequence[str], most: int) -> list[tuple[str, bool]]:
    from imprint.evaluate.generate import answer

    encoder, stops = speaker.rendering.encoder, speaker.rendering.stop_ids
    prompts: list[Any] = encoder.encode(list(texts))
    # Prompts of one length together: the shorter the padding, the less is computed.
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    found: dict[int, tuple[str, bool]] = {}
    for start in range(0, len(order), _AT_ONCE):
        some = order[start : start + _AT_ONCE]
        given = answer(speaker.model, [prompts[i] for i in some], stop_ids=stops, max_new_tokens=most)
        for i, (ids, stopped) in zip(some, given, strict=True):
            found[i] = (encoder.decode(ids), stopped)
    return [found[i] for i in range(len(prompts))]
