"""What is shown is what is trained: the pieces make the text, and nothing hides in it."""

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from imprint.render.preview import as_json, as_text, legend, pieces, visible
from imprint.render.resolve import prepare_rendering
from imprint.render.spans import attribute
from imprint.render.tokens import Encoder
from imprint.render.turns import Turn, render
from render.corpus import CONVERSATIONS, NOW, made_for, make_tokenizer, named

TEXTS = [
    "",
    "Hello,  world\n",
    "👋🏽 कर्म 漢字 e\u0301",
    "a\ufffdb\ufffd",
    "\ufffd" * 9,
    "😀😃" * 12,
    " x ",
    "<|im_end|> y<|im_end|>",
]


@pytest.mark.parametrize("kind", ["bytes", "gpt_neox_20b", "mistral_v1_spm", "mistral_v3_spm"])
def test_pieces_make_the_text(kind):
    encoder = Encoder(make_tokenizer(kind, "<|im_end|>"))
    for text in TEXTS:
        ids = encoder.encode([text])[0]
        found = pieces(ids, encoder)
        assert "".join(found) == encoder.decode(ids), text
        assert len(found) <= len(ids)


@settings(max_examples=60, deadline=None)
@given(st.text())
def test_pieces_of_bytes_make_any_text(text):
    encoder = BYTES
    found = pieces(encoder.encode([text])[0], encoder)
    assert "".join(found) == text


BYTES = Encoder(make_tokenizer("bytes"))


def test_a_character_split_over_tokens_is_one_piece():
    assert pieces(BYTES.encode(["a👋b"])[0], BYTES) == ["a", "👋", "b"]
    cut = BYTES.encode(["a👋"])[0][:-1]  # a truncated reply may end within a character
    assert "".join(pieces(cut, BYTES)) == BYTES.decode(cut)


def test_control_characters_are_seen():
    assert visible("a\x00b\x1b[2J\u200b\u202ex\r\n\t") == "a\\x00b\\x1b[2J\\u200b\\u202ex␍↵\n⇥\t"
    assert visible("zwölf 漢字 👋") == "zwölf 漢字 👋"


@pytest.fixture(scope="module")
def shown():
    made = prepare_rendering(make_tokenizer("bytes", eos_token="<|endoftext|>"), template="chatml", now=NOW)
    turns = list(render([CONVERSATIONS["several"]] * 2, made.template, made.encoder, max_length=10**6))
    return made, turns


def test_as_json_is_the_turn(shown):
    made, turns = shown
    texts = made.encoder.decode(turns[1].prompt), made.encoder.decode(turns[1].completion)
    row = json.loads(json.dumps(as_json(turns[1], 1, texts)))
    assert row["completion"] == "It is\n 4.<|im_end|>"
    assert (row["prompt_ids"], row["completion_ids"]) == (
        turns[1].prompt.tolist(),
        turns[1].completion.tolist(),
    )
    assert row["weights"] == [1.0] * len(turns[1].completion)
    assert (row["source"], row["turn"], row["message"], row["case"]) == ("rows.jsonl:1", 1, 3, "prefix")


def test_as_json_says_whose_the_prompt_s_characters_are(shown):
    made, turns = shown
    conversation = CONVERSATIONS["several"]
    texts = made.encoder.decode(turns[1].prompt), made.encoder.decode(turns[1].completion)
    spans = attribute("".join(texts), conversation.messages[:4])
    row = json.loads(json.dumps(as_json(turns[1], 1, texts, spans)))
    assert [span["end"] for span in row["prompt_spans"][:-1]] == [
        span["start"] for span in row["prompt_spans"][1:]
    ]
    assert (row["prompt_spans"][0]["start"], row["prompt_spans"][-1]["end"]) == (0, len(row["prompt"]))
    said = [
        (span["role"], span["message"], span["part"], row["prompt"][span["start"] : span["end"]])
        for span in row["prompt_spans"]
        if span["role"] != "template"
    ]
    assert said == [(m.role, i, "content", m.content) for i, m in enumerate(conversation.messages[:3])]


def printed(turn: Turn, made, **more) -> str:
    console = Console(width=200, color_system=None, record=True, file=None, force_terminal=False)
    with console.capture() as capture:
        console.print(as_text(turn, 0, made.encoder, made.stop_ids, **more), legend())
    return capture.get()


def test_as_text_shows_context_reply_and_stop(shown):
    made, turns = shown
    text = printed(turns[1], made)
    assert "rows.jsonl:1  reply 1" in text
    assert f"{len(turns[1].prompt):,} tokens of context, {len(turns[1].completion):,} trained" in text
    assert "It is↵\n 4.<|im_end|>" in text
    assert "no stop is trained" not in text


def test_as_text_says_that_no_stop_is_trained(shown):
    made, turns = shown
    turn = turns[0]
    cut = Turn(turn.prompt, turn.completion[:-1], turn.weight[:-1], turn.source, 0, 1, "truncated")
    assert "(no stop is trained)" in printed(cut, made)
    assert "(truncated)" in printed(cut, made)


def test_a_long_context_shows_its_ends_and_how_much_lies_between(shown):
    made, turns = shown
    turn = turns[2]
    hidden = len(turn.prompt) - 20
    text = printed(turn, made, most=20)
    assert f"… {hidden:,} tokens more …" in text
    whole = visible(made.encoder.decode(turn.prompt))
    assert visible(made.encoder.decode(turn.prompt[:10])) in text
    assert visible(made.encoder.decode(turn.prompt[-10:])).splitlines()[-1] in text
    assert "Goodbye 👋🏽<|im_end|>" in text
    assert "tokens more" not in printed(turn, made, most=len(turn.prompt))
    assert whole.splitlines()[2] in printed(turn, made)


def test_a_weight_that_is_not_one_is_told(shown):
    made, turns = shown
    half = replace(turns[0], weight=np.full(len(turns[0].weight), 0.5, np.float32))
    assert "weight 0.5" in printed(half, made)
    assert "weight" not in printed(turns[0], made)


def test_colours_follow_what_is_trained(shown):
    made, turns = shown
    body = as_text(turns[0], 0, made.encoder, made.stop_ids).renderables[1]
    green = "".join(body.plain[s.start : s.end] for s in body.spans if "green" in str(s.style))
    assert green == "Hello! How are you?<|im_end|>"
    assert np.all(turns[0].weight == 1)


def test_a_thought_is_announced():
    made = made_for(named("trl/deepseekv3.jinja"), conversations=[CONVERSATIONS["reasoning"]])
    turn = next(render([CONVERSATIONS["reasoning"]], made.template, made.encoder, max_length=10**6))
    assert "(thought)" in printed(turn, made)


def test_without_colour_brackets_stand_around_what_is_trained(shown):
    made, turns = shown
    body = as_text(turns[0], 0, made.encoder, made.stop_ids, colour=False).renderables[1]
    before, _, rest = body.plain.partition("⟦")
    assert before == visible(made.encoder.decode(turns[0].prompt))
    assert rest == visible(made.encoder.decode(turns[0].completion)) + "⟧"
    assert "⟦" in legend(colour=False).plain
