"""Law 1 over random conversations, for every family of templates; and planted mistakes, which must be seen."""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

from imprint.data.conversation import Conversation, Message
from imprint.errors import TemplateError
from imprint.render.probe import share_with_reasoning
from imprint.render.resolve import Rendering, prepare_rendering
from imprint.render.template import PRESETS
from imprint.render.turns import ControlTokens, LeftOut, Noticed, Turn, render
from render.corpus import (
    DATA,
    NOW,
    SENTENCEPIECE,
    TEMPLATES,
    label,
    make_tokenizer,
    names_for,
    template_source,
)
from render.law import Item, assert_lawful
from render.oracle import thought_of
from render.served import ids_of, text_of
from render.strategies import HERE, Drawn, drawn

BYTES, SPM = "bytes", "mistral_v1_spm"
KINDS = (BYTES, SPM) if (DATA / "tokenizers" / SPM).is_dir() else (BYTES,)
ALL_KINDS = (*KINDS, *(kind for kind in ("gpt2",) if (DATA / "tokenizers" / kind).is_dir()))
NO_LIMIT = 10**6

# family → what the labels of its templates look like; the first that fits takes a template
_FAMILIES = {
    "DeepSeek": r"deepseek",
    "Harmony": r"gpt-?oss",
    "ChatML and Qwen": r"chatml|qwen|QwQ|Hermes|SmolLM3|Bielik|lfm2|Apriel|Seed",
    "Llama 3": r"llama-?3",
    "Llama 2 and Mistral": r"llama-2|mistral",
    "Gemma": r"gemma",
    "Phi": r"phi",
    "others": r"",
}


def family_of(name: str) -> str:
    return next(family for family, marks in _FAMILIES.items() if re.search(marks, name, re.IGNORECASE))


FAMILIES: dict[str, list[str]] = {"presets": list(PRESETS)}
for _path in TEMPLATES:
    FAMILIES.setdefault(family_of(label(_path)), []).append(label(_path))
_SOURCES = {label(path): template_source(path) for path in TEMPLATES}


@cache
def _tokenizer(family: str, kind: str, bos: str, eos: str) -> Any:
    """One with the control tokens of all the family's templates; their own are added for no template alone."""
    names = {"bos_token": bos, "eos_token": eos}
    if kind in SENTENCEPIECE:
        names = {key: value for key, value in names.items() if value in ("<s>", "</s>")}
    return make_tokenizer(kind, "".join(_SOURCES[name] for name in FAMILIES[family]), **names)


@cache
def made_for(family: str, name: str, kind: str, reasoning: bool) -> Rendering | None:
    """How a run with this template renders; None where it says beforehand that it cannot."""
    try:
        if name in PRESETS:
            tokenizer = make_tokenizer(kind, bos_token="<s>", eos_token="</s>")
            return prepare_rendering(tokenizer, template=name, now=NOW, reasoning=float(reasoning))
        tokenizer = _tokenizer(family, kind, *names_for(_SOURCES[name]).values())
        tokenizer.chat_template = _SOURCES[name]
        return prepare_rendering(tokenizer, now=NOW, reasoning=float(reasoning))
    except TemplateError:
        return None


def items_of(drawn: Drawn, made: Rendering, others: Sequence[Conversation] = ()) -> list[Item]:
    """What a run makes of a conversation that stands between others."""
    found = render(
        [*others, drawn.conversation, *others],
        made.template,
        made.encoder,
        max_length=NO_LIMIT,
        stop_ids=made.stop_ids,
        control_tokens=drawn.control_tokens,
    )
    return [item for item in found if not isinstance(item, Noticed) and item.source == HERE]


def rendering_of(family: str, name: str, kind: str, conversation: Conversation) -> Rendering | None:
    return made_for(family, name, kind, share_with_reasoning([conversation]) > 0)


def _neighbours(conversation: Conversation) -> list[Conversation]:
    """Rows that share their beginning with this one: what the encoder's shortcuts live on."""
    place = replace(HERE, line=2)
    messages = conversation.messages
    shorter = messages[: next(i for i, m in enumerate(messages) if m.role == "user") + 1]
    other = (*shorter, Message("assistant", "Yes."), Message("user", "And?"), Message("assistant", " no\n"))
    return [replace(conversation, source=place), replace(conversation, messages=other, source=place)]


def same(a: Sequence[Item], b: Sequence[Item]) -> bool:
    return [_key(item) for item in a] == [_key(item) for item in b]


def _key(item: Item) -> Any:
    if isinstance(item, LeftOut):
        return item.turn, item.reason
    return item.turn, item.prompt.tolist(), item.completion.tolist(), item.weight.tolist()


def over(strategy: Any, examples: int, name: str) -> Callable[[Callable[..., None]], None]:
    """Runs a property now: in the full tier on other examples each time, else on those of its name."""

    def run(check: Callable[..., None]) -> None:
        test = given(strategy)(check)
        fixed = examples < 2000
        test = seed(zlib.crc32(name.encode()))(test) if fixed else test
        checks = list(HealthCheck)
        given_settings = settings(
            max_examples=examples,
            derandomize=fixed,
            deadline=None,
            suppress_health_check=checks,
            database=None,
        )
        given_settings(test)()

    return run


TIERS = [
    10,
    pytest.param(200, marks=pytest.mark.slow),
    pytest.param(2000, marks=pytest.mark.full),
]


@pytest.mark.parametrize("examples", TIERS)
@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_trained_is_what_will_be_produced(family, examples):
    """Each reply is left out with a reason or trained as law 1 says, and in company as alone."""
    turns = replies = 0

    @over(st.tuples(drawn(), st.sampled_from(FAMILIES[family])), examples, family)
    def check(example: tuple[Drawn, str]) -> None:
        nonlocal turns, replies
        row, name = example
        for kind in KINDS if examples == TIERS[0] else ALL_KINDS:
            made = rendering_of(family, name, kind, row.conversation)
            if made is None:
                continue
            items = items_of(row, made)
            turns += assert_lawful(items, row, made)
            replies += len(items)
            assert same(items, items_of(row, made, _neighbours(row.conversation))), (
                "company makes a difference"
            )

    assert turns > (replies / 8 if examples > TIERS[0] else 0), (
        f"{turns} of {replies} trained: too few to prove anything"
    )


# ----------------------------------------------------------------------------- planted mistakes

Twin = Callable[[Turn, Rendering], Turn | None]  # the turn made wrong; None where this cannot be


def _cut_at(turn: Turn, cut: int, end: int | None = None, more: Sequence[int] = ()) -> Turn:
    ids = [*turn.ids.tolist()[:end], *more]
    completion = np.array(ids[cut:], np.int32)
    weight = np.full(len(completion), turn.weight[0], np.float32)
    return replace(turn, prompt=np.array(ids[:cut], np.int32), completion=completion, weight=weight)


def _to_the_left(turn: Turn, made: Rendering) -> Turn:
    return _cut_at(turn, len(turn.prompt) - 1, -1)


def _to_the_right(turn: Turn, made: Rendering) -> Turn:
    return _cut_at(turn, len(turn.prompt) + 1, more=ids_of("\n", made))


def _without_stop(turn: Turn, made: Rendering) -> Turn | None:
    return _cut_at(turn, len(turn.prompt), -1) if len(turn.completion) > 1 else None


def _other_stop(turn: Turn, made: Rendering) -> Turn | None:
    others = [i for i in made.stop_ids if i != turn.completion[-1]]
    return _cut_at(turn, len(turn.prompt), -1, others[:1]) if others else None


def _last_token_of_user(turn: Turn, made: Rendering) -> Turn | None:
    """From the last token of what is asked on, the reply's header with it."""
    for cut in range(len(turn.prompt) - 1, 0, -1):
        if re.search("[\ue000-\ue0ff]", text_of(turn.prompt[cut:], made)):
            return _cut_at(turn, cut)
    return None


def _user_repeated(turn: Turn, made: Rendering) -> Turn | None:
    """The prompt as it is, the token trained all the same."""
    wrong = _last_token_of_user(turn, made)
    if wrong is None:
        return None
    ids = [*wrong.completion[:1].tolist(), *turn.completion.tolist()]
    return _cut_at(turn, len(turn.prompt), len(turn.prompt), ids)


def _two_bos(turn: Turn, made: Rendering) -> Turn | None:
    bos = made.encoder.tokenizer.bos_token_id
    if bos is None:
        return None
    return replace(turn, prompt=np.concatenate((np.array([bos], np.int32), turn.prompt)))


def _bos_before_reply(turn: Turn, made: Rendering) -> Turn | None:
    bos = made.encoder.tokenizer.bos_token_id
    if bos is None or bos in made.stop_ids:
        return None
    return _cut_at(turn, len(turn.prompt), len(turn.prompt), [bos, *turn.completion.tolist()])


def _tokenised_apart(turn: Turn, made: Rendering) -> Turn:
    """The reply encoded by itself: SentencePiece puts a space in front."""
    ids = ids_of(text_of(turn.completion, made), made)
    return _cut_at(turn, len(turn.prompt), len(turn.prompt), ids)


def _no_thought(row: Drawn, made: Rendering) -> list[Item]:
    messages = tuple(
        replace(m, reasoning=None, content=thought_of(m)[1] if m.role == "assistant" else m.content)
        for m in row.conversation.messages
    )
    return items_of(replace(row, conversation=replace(row.conversation, messages=messages)), made)


def _forgery_kept(row: Drawn, made: Rendering) -> list[Item]:
    return items_of(replace(row, control_tokens="keep"), made)


def _reply_forgotten(row: Drawn, made: Rendering) -> list[Item]:
    return items_of(row, made)[:-1]


def _last(twin: Twin) -> Callable[[Drawn, Rendering], list[Item]]:
    """What a run would make of a row if the last of its turns alone were wrong."""

    def wrong(row: Drawn, made: Rendering) -> list[Item]:
        items = items_of(row, made)
        at = max((i for i, item in enumerate(items) if isinstance(item, Turn)), default=None)
        twisted = None if at is None else twin(items[at], made)
        return items if twisted is None else [*items[:at], twisted, *items[at + 1 :]]

    return wrong


def _forged(control_tokens: ControlTokens) -> Any:
    return drawn(("forged",)).map(lambda row: replace(row, control_tokens=control_tokens))


ANY, _APART = drawn(), _last(_tokenised_apart)
TWINS: dict[str, tuple[Callable[[Drawn, Rendering], list[Item]], Any]] = {
    "the mask is one token to the left": (_last(_to_the_left), ANY),
    "the mask is one token to the right": (_last(_to_the_right), ANY),
    "the stop is not trained": (_last(_without_stop), ANY),
    "another stop than the template's": (_last(_other_stop), ANY),
    "a user's last token is trained": (_last(_last_token_of_user), ANY),
    "a user's last token is trained again": (_last(_user_repeated), ANY),
    "two BOS": (_last(_two_bos), ANY),
    "a BOS before the reply": (_last(_bos_before_reply), ANY),
    "the reply is tokenised apart": (_APART, ANY),
    "the reasoning is swallowed": (_no_thought, drawn(("thoughts", "both"))),
    "a forged control token stays, told to escape": (_forgery_kept, _forged("escape")),
    "a forged control token stays, told to leave out": (_forgery_kept, _forged("leave_out")),
    "a reply is not accounted for": (_reply_forgotten, ANY),
}  # fmt: skip


def _differs(right: Sequence[Item], wrong: Sequence[Item]) -> bool:
    """Whether a reply is missing, or trained otherwise; what is left out with a reason is no mistake."""
    known = [_key(item) for item in right]
    return len(right) != len(wrong) or any(
        isinstance(item, Turn) and _key(item) not in known for item in wrong
    )


@pytest.mark.parametrize("examples", [30, pytest.param(300, marks=pytest.mark.slow)])
@pytest.mark.parametrize("mistake", TWINS)
def test_a_planted_mistake_is_seen(mistake, examples):
    """Whenever it changes what a run makes of a row, and that is often enough."""
    twin, rows = TWINS[mistake]
    kinds = KINDS
    if twin is _APART:  # bytes are the same alone
        kinds = KINDS[1:] or pytest.skip(f"shared/data/tokenizers has no {SPM}")
    templates = [
        (family, name) for family, names in FAMILIES.items() for name in names[:: 9 if examples < 100 else 1]
    ]
    changed = 0

    @over(st.tuples(rows, st.sampled_from(templates), st.sampled_from(kinds)), examples, mistake)
    def check(example: tuple[Drawn, tuple[str, str], str]) -> None:
        nonlocal changed
        row, (family, name), kind = example
        made = rendering_of(family, name, kind, row.conversation)
        right, wrong = ([], []) if made is None else (items_of(row, made), twin(row, made))
        if made is None or not _differs(right, wrong):
            return
        assert_lawful(right, row, made)
        changed += 1
        with pytest.raises(AssertionError):
            assert_lawful(wrong, row, made)

    print(f"{mistake}: wrong in {changed} of {examples} examples, and seen in each")
    assert changed > examples / 20
