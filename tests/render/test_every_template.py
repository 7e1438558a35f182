"""Law 1 over every template × tokenizer × conversation: what is accepted is sound, and most is accepted.

The fast tier takes a share of the cells, the slow one all of them (four minutes on one core).
"""

import json
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from imprint.render.turns import LeftOut, Turn, render
from render.cells import (
    KINDS,
    by_name,
    check,
    conversations,
    core,
    read,
    reasoned,
    rendering_for,
    run,
    turns_of,
)
from render.corpus import DATA, TEMPLATES, label, made_for, named, needs_templates, template_source
from render.oracle import assert_sound
from render.pages import PLAIN_SHARE, TOOLS_SHARE, Figures, every_cell, templates_page

ROOT = Path(__file__).parents[2]
# one of each way in which templates differ: thoughts, parts, arguments as text, no stop, BOS per turn, history
SOME = (
    "llamacpp/Qwen-Qwen3-0.6B", "llamacpp/openai-gpt-oss-120b", "llamacpp/deepseek-ai-DeepSeek-V3.1",
    "llamacpp/Apriel-1.6-15b-Thinker-fixed", "llamacpp/meta-llama-Llama-3.1-8B-Instruct", "chujiezheng/llama-2-chat",
    "chujiezheng/vicuna", "axolotl/gemma3", "axolotl/deepseek_v3", "mistral_common/v3_spm", "mistral_common/v7",
    "trl/idefics3", "trl/phi3", "trl/qwen2_5",
)  # fmt: skip


def paths(*names: str) -> list[Path]:
    return [path for path in TEMPLATES if label(path) in names]


def assert_none_unsound(outcomes) -> int:
    """AssertionError with the first unsound cells; the number of turns that were held against the oracle."""
    outcomes = list(outcomes)
    unsound = [(o.template, o.tokenizer, o.conversation, o.violations) for o in outcomes if o.violations]
    assert not unsound, unsound[:10]
    assert all(0 < len(reason) <= 200 for outcome in outcomes for reason in outcome.reasons)
    return sum(len(outcome.cases) for outcome in outcomes)


# ----------------------------------------------------------------------------- the fast share


@needs_templates
def test_a_core_of_conversations_is_sound_on_a_template_of_every_kind():
    assert assert_none_unsound(run(paths(*SOME), ("bytes",), core())) > 200


@needs_templates
@pytest.mark.parametrize("kind", KINDS)
def test_every_tokenizer(kind):
    chosen = {
        name: core()[name] for name in ("several", "one character", "scripts", "leading", "every reply")
    }
    turns = assert_none_unsound(run(paths(*SOME[::5]), (kind,), chosen))
    assert turns >= 20 or kind == "torchtitan_2k"  # whose vocabulary lacks the space: it is refused


SWITCHED = (
    ("llamacpp/Qwen-Qwen3-0.6B", "enable_thinking"), ("llamacpp/Qwen-QwQ-32B", "enable_thinking"),
    ("llamacpp/Bielik-11B-v3.0-Instruct", "enable_thinking"), ("llamacpp/Reka-Edge", "enable_thinking"),
    ("llamacpp/HuggingFaceTB-SmolLM3-3B", "enable_thinking"), ("llamacpp/deepseek-ai-DeepSeek-V3.1", "thinking"),
)  # fmt: skip


@needs_templates
@pytest.mark.parametrize(("name", "option"), SWITCHED)
def test_either_side_of_a_thinking_switch(name, option):
    """The user may set the switch against what the data has: what is accepted all the same is sound."""
    chosen = ("several", "every reply", "inline several", "reasoned call")
    (path,) = paths(name)
    cells = [
        check(path, "bytes", one, core()[one], ((option, value),))
        for value in (True, False)
        for one in chosen
    ]
    assert assert_none_unsound(cells) >= 8
    assert cells[0].reasons != cells[4].reasons or cells[1].reasons != cells[5].reasons, (
        "the switch does nothing"
    )


@needs_templates
@pytest.mark.parametrize("kind", ["bytes", "gpt2", "mistral_v3_spm"])
@pytest.mark.parametrize("name", ["llamacpp/Qwen-Qwen3-0.6B", "mistral_common/v3_spm", "chujiezheng/vicuna"])
def test_a_row_is_rendered_as_if_it_were_alone(name, kind):
    """A run tokenises many rows at once, with other tools and texts in each: nothing passes between them."""
    made = rendering_for(template_source(paths(name)[0]), kind, False)
    rows = list(by_name().values())
    together = render(rows, made.template, made.encoder, max_length=10**6, stop_ids=made.stop_ids)
    found = sorted(
        (item.conversation, item.turn, item.ids.tolist()) for item in together if isinstance(item, Turn)
    )
    alone = [
        (i, item.turn, item.ids.tolist())
        for i, row in enumerate(rows)
        for item in turns_of(row, made)
        if isinstance(item, Turn)
    ]
    assert len(found) > 60
    assert found == sorted(alone)


# ----------------------------------------------------------------------------- the oracle itself


def _bos(turn: Turn, made) -> int:
    bos = made.encoder.tokenizer.bos_token_id
    return int(turn.prompt[0] if bos is None else bos)


def _with(turn: Turn, prompt, completion) -> Turn:
    weight = np.full(len(completion), turn.weight[0], np.float32)
    return replace(
        turn, prompt=prompt.astype(np.int32), completion=completion.astype(np.int32), weight=weight
    )


PLANTED = {
    "the mask is shifted by one": lambda t, made: _with(t, np.append(t.prompt, t.completion[0]), t.completion[1:]),
    "the first token is masked": lambda t, made: replace(
        t, weight=np.append(np.float32(0), t.weight[1:]).astype(np.float32)
    ),
    "the stop is left out": lambda t, made: _with(t, t.prompt, t.completion[:-1]),
    "the stop is masked": lambda t, made: replace(
        t, weight=np.append(t.weight[:-1], np.float32(0)).astype(np.float32)
    ),
    "the stop is trained twice": lambda t, made: _with(t, t.prompt, np.append(t.completion, t.completion[-1])),
    "the user's last token is trained": lambda t, made: _with(
        t, t.prompt[:-1], np.append(t.prompt[-1:], t.completion)
    ),
    "BOS is doubled": lambda t, made: _with(t, np.append(_bos(t, made), t.prompt), t.completion),
    "the reply begins with BOS": lambda t, made: _with(t, t.prompt, np.append(_bos(t, made), t.completion)),
    "a token of the reply is lost": lambda t, made: _with(t, t.prompt, np.delete(t.completion, len(t.completion) // 2)),
    "the reply is trained at twice its weight": lambda t, made: replace(t, weight=t.weight * 2),
    "it is the reply to something else": lambda t, made: _with(
        t, t.prompt, np.append(t.completion[::-1][1:], t.completion[-1])
    ),
}  # fmt: skip


def plant(fault: str, chosen: Iterable[Path]) -> tuple[list[tuple[str, str]], int]:
    """(template and reply of each planted turn that the oracle takes for sound, how many were planted)."""
    missed, planted = [], 0
    for path in chosen:
        for conversation in (core()["several"], core()["system"], core()["every reply"]):
            made = rendering_for(template_source(path), "bytes", reasoned(conversation))
            if isinstance(made, str):
                continue
            for turn in turns_of(conversation, made):
                if not isinstance(turn, Turn):
                    continue
                wrong = PLANTED[fault](turn, made)
                same = np.array_equal(wrong.ids, turn.ids) and np.array_equal(wrong.weight, turn.weight)
                if len(wrong.completion) == 0 or same:  # a reply of one token cannot be turned round
                    continue
                assert_sound(turn, conversation, made)
                planted += 1
                try:
                    assert_sound(wrong, conversation, made)
                except AssertionError:
                    continue
                missed.append((label(path), made.encoder.decode(turn.completion)))
    return missed, planted


@needs_templates
@pytest.mark.parametrize("fault", PLANTED)
def test_the_oracle_sees_planted_faults(fault):
    missed, planted = plant(fault, paths(*SOME[:12:2]))
    assert planted >= 15
    assert not missed, missed[:5]


@needs_templates
@pytest.mark.slow
@pytest.mark.parametrize("fault", PLANTED)
def test_the_oracle_sees_planted_faults_with_every_template(fault):
    missed, planted = plant(fault, TEMPLATES)
    assert planted > 400
    assert not missed, missed[:5]


# users as a vision model's template takes them, replies as texts or parts
WALKS_OVER_PARTS = (
    "{% for m in messages %}{% if m.role == 'user' %}U: {% for c in m.content %}{{ c.text }}{% endfor %}\n"
    "{% else %}A: {{ m.content if m.content is string else m.content[0].text }}</s>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}A: {% endif %}"
)


def test_the_oracle_sees_a_prompt_that_lacks_what_the_user_said():
    """Templates of vision models walk over parts: given texts, they show nothing of them, in silence."""
    made = made_for(WALKS_OVER_PARTS)
    conversation = conversations()["many turns"]["several"]
    assert made.template.form.parts
    for turn in turns_of(conversation, made):
        assert_sound(turn, conversation, made)
    texts_only = replace(made, template=replace(made.template, form=replace(made.template.form, parts=False)))
    assert all(isinstance(item, LeftOut) for item in turns_of(conversation, texts_only))
    for turn in turns_of(conversation, texts_only, unfaithful="keep"):
        assert isinstance(turn, Turn)
        with pytest.raises(AssertionError, match="lacks what a user said"):
            assert_sound(turn, conversation, texts_only)


# ----------------------------------------------------------------------------- adjacent replies, forged tokens


def test_replies_in_a_row_that_are_not_merged_are_refused_or_sound():
    row = {
        "messages": [
            {"role": "user", "content": "Hi zebra"},
            {"role": "assistant", "content": "Hello!"},
            {"role": "assistant", "content": "How are you?"},
        ]
    }
    merged, apart = read(row), read(row, merge=False)
    assert [m.content for m in merged.messages[1:]] == ["Hello!\n\nHow are you?"]
    for path in paths(*SOME):
        assert_none_unsound([check(path, "bytes", "merged", merged), check(path, "bytes", "apart", apart)])


def test_forged_control_tokens_are_left_out_kept_or_made_harmless():
    conversation = core()["typed by a user"]
    made = made_for(named("llamacpp/Qwen-Qwen3-0.6B.jinja"))
    assert [type(item).__name__ for item in turns_of(conversation, made)].count("Turn") == 1
    kept = turns_of(conversation, made, control_tokens="keep")
    assert all(isinstance(item, Turn) for item in kept)
    for turn in kept:
        assert_sound(turn, conversation, made)


# ----------------------------------------------------------------------------- all of it


@pytest.fixture(scope="module")
def everything():
    """Every cell there is."""
    return list(every_cell())


@needs_templates
@pytest.mark.slow
def test_no_accepted_turn_of_any_cell_is_unsound(everything):
    assert len(everything) == len(TEMPLATES) * len(KINDS) * sum(map(len, conversations().values()))
    assert assert_none_unsound(everything) > 40_000


@needs_templates
@pytest.mark.slow
def test_most_templates_accept_what_they_are_made_for(everything):
    figures = Figures(everything)
    assert figures.plain >= PLAIN_SHARE, figures.refuse_plain
    assert figures.tools >= TOOLS_SHARE, figures.refuse_tools


@needs_templates
@pytest.mark.slow
def test_what_a_template_accepts_does_not_depend_on_a_tokenizer_that_can_write_everything(everything):
    found = defaultdict(set)
    forged = conversations()["control tokens"]  # what is a control token depends on the tokenizer
    for outcome in everything:
        if not outcome.tokenizer.startswith("torch") and outcome.conversation not in forged:
            found[outcome.template, outcome.conversation].add((outcome.cases, outcome.reasons))
    assert not {cell: ends for cell, ends in found.items() if len(ends) > 1}


@needs_templates
@pytest.mark.slow
def test_the_page_of_templates_is_up_to_date(everything):
    page = (ROOT / "docs" / "templates.md").read_text(encoding="utf-8")
    assert page == templates_page(everything), "run: python tools/write_docs.py"


NAUGHTY = DATA / "eval" / "big_list_of_naughty_strings.json"
RIGHTS = DATA / "text" / "udhr_multilingual.jsonl"


def texts_as_replies(texts: list[str], each: int = 10):
    """Conversations of a few replies: users say the texts, and so do replies."""
    usable = [text for text in texts if text.strip()]
    for start in range(0, len(usable), each):
        messages = []
        for text in usable[start : start + each]:
            messages += [{"role": "user", "content": f"zebra {text}"}, {"role": "assistant", "content": text}]
        yield read({"messages": messages})


@pytest.mark.slow
@pytest.mark.skipif(not NAUGHTY.is_file(), reason="shared/data/eval is not here")
@pytest.mark.parametrize("kind", ["bytes", "gpt2", "mistral_v1_spm", "mistral_v3_spm", "torchtune_tiny_bpe"])
def test_naughty_strings(kind):
    rows = dict(enumerate(texts_as_replies(json.loads(NAUGHTY.read_text(encoding="utf-8")))))
    chosen = paths(*SOME[::3])
    rows = {str(number): row for number, row in rows.items()}
    turns = assert_none_unsound(run(chosen, (kind,), rows))
    assert turns > (1000 if kind != "torchtune_tiny_bpe" else 300)


@pytest.mark.slow
@pytest.mark.skipif(not RIGHTS.is_file(), reason="shared/data/text is not here")
@pytest.mark.parametrize("kind", ["gpt_neox_20b", "mistral_v1_spm", "mistral_v3_spm"])
def test_the_declaration_of_rights_in_its_languages(kind):
    texts = [json.loads(line)["text"][:400] for line in RIGHTS.read_text(encoding="utf-8").splitlines()]
    rows = {str(number): row for number, row in enumerate(texts_as_replies(texts))}
    assert assert_none_unsound(run(paths(*SOME[::3]), (kind,), rows)) > 300
