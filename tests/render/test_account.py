"""The account of tokens: its sums are those of an independent count, and it sees a mask that is off."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from rich.console import Console

from imprint.data.conversation import Message, Place
from imprint.render.account import EARLIER, REPLY, UNKNOWN, Account, owned
from imprint.render.spans import TEMPLATE
from imprint.render.turns import ReplyText, Turn, render, reply_texts
from render.corpus import CONVERSATIONS, made_for, named, reply, talk, user

MOST = 10**6
QWEN = "llamacpp/Qwen-Qwen3-0.6B.jinja"


def account_of(conversations, made, change=lambda turn: turn, **options) -> tuple[Account, list[Turn]]:
    account, all_turns = Account(made.stop_ids), []
    for conversation in conversations:
        items = render([conversation], made.template, made.encoder, max_length=MOST, **options)
        turns = [change(item) for item in items if isinstance(item, Turn)]
        texts = {
            t.turn: t.prompt + t.completion
            for t in reply_texts(conversation, 0, made.template, made.encoder, **options)
            if isinstance(t, ReplyText)
        }
        known = owned(turns, [texts[turn.turn] for turn in turns], conversation, made.encoder)
        account.add(conversation, turns, known)
        all_turns.append(turns)
    return account, all_turns


@pytest.fixture(scope="module")
def made():
    return made_for("", template="chatml")


def test_the_sums_are_those_of_an_independent_count(made):
    """With one token a byte, what each role wrote can be counted without tokenising."""
    rows = [
        CONVERSATIONS["several"],
        CONVERSATIONS["system"],
        replace(CONVERSATIONS["single"], source=Place("b.jsonl", 1)),
    ]
    account, turns = account_of(rows, made)
    assert list(account.files) == ["rows.jsonl", "b.jsonl"]
    expected, trained, context = Counter(), 0, 0
    for conversation in rows[:2]:
        replies = [i for i, m in enumerate(conversation.messages) if m.role == "assistant"]
        for i, message in enumerate(conversation.messages[:-1]):
            expected["context", EARLIER if i in replies else message.role] += len(message.content.encode())
        trained += sum(len(conversation.messages[i].content.encode()) for i in replies)
    for group in turns[:2]:
        context += len(group[-1].prompt)
    first = account.files["rows.jsonl"]
    found = {("context", kind): share.context for kind, share in first.kinds.items() if kind != TEMPLATE}
    assert {key: count for key, count in found.items() if count} == dict(expected)
    assert first.kinds[REPLY].trained == trained
    assert (
        first.kinds[TEMPLATE].trained == first.kinds[TEMPLATE].stop == 5
    )  # nothing but the stop of each turn
    assert first.total.context == context
    assert first.total.trained == sum(len(turn.completion) for group in turns[:2] for turn in group)
    assert (first.conversations, first.turns, first.total.stop) == (2, 5, 5)
    assert first.longest == max(len(turn) for group in turns[:2] for turn in group)
    assert first.kinds["user"].trained == first.kinds["system"].trained == 0
    assert account.cases == {"prefix": 6}
    assert account.written == {"<|im_end|>": 6}
    assert first.notes() == []


def test_a_mask_that_is_off_shows(made):
    """Planted twin: the completion begins before the reply, in what the user said."""
    header = (
        len("<|im_end|>\n<|im_start|>assistant\n") - len("<|im_end|><|im_start|>") + 2
    )  # tokens of one byte

    def early(turn: Turn) -> Turn:
        cut = len(turn.prompt) - header - 3
        completion = np.concatenate((turn.prompt[cut:], turn.completion))
        return replace(
            turn, prompt=turn.prompt[:cut], completion=completion, weight=np.ones(len(completion), np.float32)
        )

    right, _ = account_of([CONVERSATIONS["several"]], made)
    wrong, _ = account_of([CONVERSATIONS["several"]], made, early)
    assert right.files["rows.jsonl"].kinds["user"].trained == 0
    assert wrong.files["rows.jsonl"].kinds["user"].trained == 9  # three letters of each of three questions


def test_everything_is_said_to_be_trained_where_it_is(made):
    account, _ = account_of([CONVERSATIONS["several"]], made, train_on="everything")
    kinds = account.files["rows.jsonl"].kinds
    assert kinds["user"].trained == sum(
        len(m.content.encode()) for m in CONVERSATIONS["several"].messages if m.role == "user"
    )
    assert account.files["rows.jsonl"].total.context == 1  # the first token is predicted from nothing


def test_weights_of_nothing_are_context(made):
    def without(turn: Turn) -> Turn:
        return replace(turn, weight=np.zeros(len(turn.completion), np.float32))

    account, turns = account_of([CONVERSATIONS["single"]], made, without)
    total = account.files["rows.jsonl"].total
    assert (total.trained, total.stop, total.context) == (0, 0, len(turns[0][0]))


def test_thoughts_that_a_template_drops_are_counted_as_missing():
    made = made_for(named(QWEN))
    account, _ = account_of([CONVERSATIONS["reasoning"]], made)
    one = account.files["rows.jsonl"]
    assert (one.missing, one.lost) == (1, 0)
    assert "1 parts of replies (earlier thoughts, most often)" in one.notes()[0]
    assert account.written["<|im_end|>"] == 2
    thoughts = [m.reasoning for m in CONVERSATIONS["reasoning"].messages if m.reasoning]
    answers = [m.content for m in CONVERSATIONS["reasoning"].messages if m.role == "assistant"]
    assert one.kinds[REPLY].trained == sum(map(len, thoughts + answers))


def test_tools_have_rows_of_their_own():
    account, _ = account_of([CONVERSATIONS["tools"]], made_for(named(QWEN)))
    kinds = account.files["rows.jsonl"].kinds
    assert kinds["tool results"].context == 1
    assert kinds["tool definitions"].context > 100
    assert not any(kinds[kind].trained for kind in ("tool results", "tool definitions", "user"))


def test_the_tables_fit_80_columns(made):
    long = Place("a/" * 60 + "rows.jsonl", 1)
    conversation = talk(Message("system", "Be brief."), user("Hi"), reply("Hello"))
    account, _ = account_of([replace(conversation, source=long)], made)
    console = Console(width=200, color_system=None)
    with console.capture() as capture:
        console.print(account.tables())
    lines = capture.get().splitlines()
    assert max(map(len, lines)) <= 80
    rows = [line.split() for line in lines]
    assert ["user", "2", "0", "0"] in rows
    assert ["the", "reply", "0", "5", "0"] in rows


def test_what_cannot_be_placed_is_said(made):
    """A text that is not the ids', and a user's words that are not in the rendering."""
    conversation = CONVERSATIONS["single"]
    turn = next(iter(render([conversation], made.template, made.encoder, max_length=MOST)))
    account = Account(made.stop_ids)
    account.add(conversation, [turn], owned([turn], ["another text"], conversation, made.encoder))
    one = account.files["rows.jsonl"]
    assert one.kinds[UNKNOWN].trained == len(turn.completion)
    assert one.lost == 1
    assert len(one.notes()) == 3
