"""Two renderings of one reply: what differs is marked, and what is equal is said to be."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from imprint.render.compare import Side, as_diff, differences, side, verdict
from imprint.render.turns import render
from render.corpus import CONVERSATIONS, made_for


def sides(conversation, template: str) -> list[Side]:
    made = made_for("", template=template)
    turns = render([conversation], made.template, made.encoder, max_length=10**6)
    return [
        side(
            made.template.name,
            turn,
            made.encoder.decode(turn.prompt),
            made.encoder.decode(turn.completion),
            made.encoder,
            made.stop_ids,
        )
        for turn in turns
    ]


def printed(left: Side, right: Side, colour: bool = False) -> list[str]:
    console = Console(width=80, color_system=None)
    with console.capture() as capture:
        console.print(as_diff("rows.jsonl:1", left, right, colour=colour))
    return capture.get().splitlines()


def without(text: str, ranges: list[tuple[int, int]]) -> str:
    for start, end in reversed(ranges):
        text = text[:start] + text[end:]
    return text


@settings(max_examples=150, deadline=None)
@given(st.text("ab \n<|>", max_size=40), st.text("ab \n<|>", max_size=40))
def test_what_is_left_beside_the_differences_is_the_same(left, right):
    a, b = differences(left, right)
    assert without(left, a) == without(right, b)
    assert (left == right) == (not a and not b)
    for ranges in (a, b):
        assert ranges == sorted(ranges)
        assert all(start < end for start, end in ranges)


def test_differences_are_whole_words():
    left, right = "<|im_start|>user\nHi there<|im_end|>\n", "<|user|>\nHi there<|end|>\n"
    a, b = differences(left, right)
    assert [left[slice(*span)] for span in a] == ["<|im_start|>user", "<|im_end|>"]
    assert [right[slice(*span)] for span in b] == ["<|user|>", "<|end|>"]


def test_very_long_differences_are_not_looked_into():
    a, b = differences("a " * 4000, "b " * 4000)
    assert (a, b) == ([(0, 8000)], [(0, 8000)])


def test_a_diff_marks_both_sides():
    left, right = sides(CONVERSATIONS["single"], "chatml"), sides(CONVERSATIONS["single"], "llama2")
    lines = printed(left[0], right[0])
    assert lines[0] == "rows.jsonl:1  different"
    assert lines[1].startswith("- the preset chatml: ")
    assert f"{len(left[0].turn.prompt)} tokens of context" in lines[1]
    assert lines[1].endswith("stop <|im_end|>")
    assert lines[2].startswith("+ the preset llama2: ")
    body = lines[3:]
    assert any(line.startswith("- ") and "‹" in line for line in body)
    assert any(line.startswith("+ ") and "[INST]" in line for line in body)
    assert max(map(len, lines)) <= 80
    assert "‹" not in "".join(printed(left[0], right[0], colour=True))


def test_equal_is_said_and_nothing_more():
    (one,) = sides(CONVERSATIONS["single"], "chatml")
    lines = printed(one, one)
    assert lines[0] == "rows.jsonl:1  equal"
    assert len([line for line in lines if line]) == 3


def test_equal_texts_in_other_tokens_are_told_apart():
    (one,) = sides(CONVERSATIONS["single"], "chatml")
    turn = one.turn
    other = replace(one, turn=replace(turn, prompt=turn.prompt + 1))
    assert verdict(one, other) == "the same text in other tokens"
    parted = replace(one, prompt=one.prompt[:-1], completion=one.prompt[-1] + one.completion)
    assert verdict(one, parted) == "the same text, parted elsewhere"


def test_what_is_left_out_says_why():
    (one,) = sides(CONVERSATIONS["single"], "chatml")
    none = Side("other.jinja", None, reason="the template refuses it: no")
    assert verdict(one, none) == verdict(none, one) == "left out by one"
    assert verdict(none, none) == "left out by both"
    assert "+ other.jinja: left out: the template refuses it: no" in printed(one, none)


@pytest.mark.parametrize("lines", [2, 30])
def test_equal_lines_are_folded(lines):
    same = "".join(f"line {i}\n" for i in range(lines))
    (one,) = sides(CONVERSATIONS["single"], "chatml")
    left = Side("a", one.turn, f"first\n{same}", "end")
    right = Side("b", one.turn, f"other\n{same}", "end")
    text = "\n".join(printed(left, right))
    assert "- ‹first›↵" in text or "- first↵" in text
    assert ("equal lines" in text) == (lines == 30)
    assert "  line 1↵" in text
