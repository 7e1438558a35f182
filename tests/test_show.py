"""`imprint show` as it is typed: a row by its place, two templates side by side, the page, and the account."""

import json
import re

import pytest

from conftest import ROWS, write_rows
from imprint.cli_arguments import resolved
from imprint.show import Turns, shown_turns
from imprint.show_row import everything_left_out, find_record, row_at

GOOD = ROWS[0]
TWO_REPLIES = ROWS[8]
NO_REPLY = {"messages": [{"role": "user", "content": "Anyone?"}]}
UNKNOWN = {"nothing": "here"}
WEIGHTLESS = {
    "messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y", "weight": 0}]
}
FORGED = {
    "messages": [
        {"role": "user", "content": "typed <|im_end|> by hand"},
        {"role": "assistant", "content": "I see."},
    ]
}
MIXED = [GOOD, NO_REPLY, TWO_REPLIES, UNKNOWN, WEIGHTLESS, FORGED]


@pytest.fixture
def mixed(tmp_path):
    return write_rows(tmp_path / "mixed.jsonl", MIXED)


@pytest.fixture
def show(tiny, cli, monkeypatch):
    """`imprint show` on the tiny model with chatml, in a terminal so wide that no path is broken."""
    monkeypatch.setenv("COLUMNS", "400")
    return lambda data, *more: cli("show", f"model={tiny}", f"data={data}", "template=chatml", *more)


def flat(text: str) -> str:
    """The text without the line breaks that the terminal's width made."""
    return " ".join(text.split())


def page_data(path) -> dict:
    return json.loads(re.search(r'id="data">(.*?)</script>', path.read_text(encoding="utf-8"))[1])


# ---- in a terminal


def test_the_account_says_that_nothing_of_a_user_is_trained(show, rows, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    done = show(rows, "-n", "1")
    lines = [line.split() for line in done.out.splitlines()]
    table = {tuple(line[:-3]): line[-3:] for line in lines if len(line) > 3 and line[-1].isdigit()}
    assert table["user",][1:] == table["system",][1:] == ["0", "0"]
    assert table["template",][1:] == ["24", "24"]
    assert "16 conversations, 24 turns" in flat(done.out)
    shown = [json.loads(line) for line in show(rows, "--json").out.splitlines()]
    assert table["all", "tokens"][1] == str(sum(len(turn["completion_ids"]) for turn in shown))
    last = {turn["conversation"]: turn for turn in shown}.values()
    assert table["all", "tokens"][0] == str(sum(len(turn["prompt_ids"]) for turn in last))
    assert "24 prefix: " in flat(done.out)
    assert max(map(len, done.out.splitlines())) <= 80


def test_the_template_and_the_stops_are_named(show, rows):
    done = show(rows, "-n", "1")
    assert "template  the preset chatml" in done.err
    assert re.search(r"stops     <\|im_end\|> \(\d+\), <\|endoftext\|> \(0\)", done.err)


def test_a_long_context_is_folded_but_for_a_row_that_is_asked_for(show, tmp_path):
    """A long context; the tiny model's own limit is no matter here."""
    said = " ".join(f"word{i}" for i in range(900))
    messages = [{"role": "user", "content": said}, {"role": "assistant", "content": "Yes."}]
    data = write_rows(tmp_path / "long.jsonl", [{"messages": messages}])
    folded, whole = show(data, "max_length=100000"), show(data, "max_length=100000", "--row", "1")
    assert "tokens more …" in folded.out
    assert "word450" not in folded.out
    assert "word899" in folded.out
    assert "tokens more …" not in whole.out
    assert "word450" in whole.out


# ---- one row


@pytest.mark.parametrize("spec", ["3", ":3", "mixed.jsonl:3", "WHOLE:3"])
def test_a_row_by_its_place(spec, show, mixed):
    done = show(mixed, "--row", spec.replace("WHOLE", str(mixed)))
    assert done.code == 0, done.err
    assert f"{mixed}:3  reply 1" in done.out
    assert f"{mixed}:3  reply 2" in done.out
    assert f"{mixed}:1 " not in done.out
    assert "Red.<|im_end|>" in done.out


def test_a_row_s_ids_are_those_of_all(show, rows):
    alone = [json.loads(line) for line in show(rows, "--row", "12", "--json").out.splitlines()]
    everything = [json.loads(line) for line in show(rows, "--json").out.splitlines()]
    assert alone == [turn for turn in everything if turn["source"].endswith(":12")]
    assert len(alone) == 2


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (2, ["refused", "there is no reply", "add the reply or remove the row"]),
        (4, ["refused", "the columns are of no known format", "columns nothing"]),
        (5, ["conversation left out: no reply has a weight above 0"]),
        (6, ["message 2  reply left out: control tokens in its text", "<|im_end|> in message 1 (user)"]),
    ],
)
def test_a_row_that_is_not_trained_says_why(line, said, show, mixed):
    done = show(mixed, "--row", str(line))
    assert done.code == 0, done.err
    for text in (f"{mixed}:{line}", *said):
        assert text in done.out
    assert "⟦" not in done.out


def test_messages_of_trees_that_lie_apart(show, tmp_path):
    """One message a row: the tree is shown at its root, and the other rows say so; a lost one is refused."""
    keys = ("message_id", "parent_id", "message_tree_id", "role", "text")
    rows = [
        ("u1", None, "t", "prompter", "Hi"),
        ("v1", None, "s", "prompter", "Yo"),
        ("a1", "u1", "t", "assistant", "Hello"),
        ("b1", "v1", "s", "assistant", "Yes?"),
        ("a2", "gone", "t", "assistant", "Lost"),
    ]
    data = write_rows(tmp_path / "flat.jsonl", [dict(zip(keys, row, strict=True)) for row in rows])
    for line, said in [
        (1, "Hello"),
        (2, "Yes?"),
        (4, "the root of its tree"),
        (5, "the parent of a message is missing"),
    ]:
        done = show(data, "--row", str(line), "bad_rows=leave_out")
        assert done.code == 0, done.err
        assert said in done.out
    done = show(data, "--row", "9", "bad_rows=leave_out")
    assert done.code == 2
    assert ":5 (the last line that holds a row)" in done.err


@pytest.mark.parametrize("option", ["--json", "--diff=llama2", "--html=page.html"])
def test_of_a_refused_row_there_is_nothing_else_to_show(option, show, mixed, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = show(mixed, "--row", "2", option)
    assert (done.code, done.out) == (2, "")
    assert "there is no reply" in done.err
    assert not (tmp_path / "page.html").exists()


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("99", "the nearest: PLACE:6 (the last line that holds a row)"),
        ("mixed.jsonl:0", "the nearest: PLACE:1"),
        ("mixd.jsonl:3", "--row mixed.jsonl:3"),
        ("first", "it names no row"),
        ("mixed.jsonl", "FILE:LINE, or LINE where there is one file"),
    ],
)
def test_a_place_that_is_not_there(spec, said, show, mixed):
    done = show(mixed, "--row", spec)
    assert done.code == 2
    assert said.replace("PLACE", str(mixed)) in done.err


def test_between_two_rows_both_are_named(show, tmp_path):
    data = tmp_path / "gap.jsonl"
    data.write_text("\n\n".join(map(json.dumps, ROWS[:3])))
    done = show(data, "--row", "2")
    assert f"the nearest: {data}:1 and {data}:3" in flat(done.err)


def test_which_of_several_files(show, rows, mixed, cli, tiny, tmp_path):
    recipe = tmp_path / "recipe.yaml"
    apart = write_rows(tmp_path / "apart.jsonl", ROWS[2:4])
    recipe.write_text(
        f"model: {tiny}\ndata: [{rows}, {mixed}]\nvalidation: {{path: {apart}}}\n"
        "template: chatml\nbad_rows: leave_out\n"
    )
    done = cli("show", recipe, "--row", "3")
    assert done.code == 2
    assert "it does not say in which file" in done.err
    assert "Red.<|im_end|>" in cli("show", recipe, "--row", "mixed.jsonl:3").out
    done = cli("show", recipe, "--row", "apart.jsonl:2")
    assert "held out for validation" in done.out
    assert "It is white.<|im_end|>" in done.out


# ---- two templates


def test_a_template_beside_itself_is_equal(show, rows):
    done = show(rows, "--diff", "chatml", "-n", "4")
    assert done.code == 0, done.err
    assert done.out.count("  equal") == 4
    assert "4 replies compared: 4 equal" in done.out
    assert "⟦" not in done.out


def test_another_template_differs_in_text_and_tokens(show, rows):
    done = show(rows, "--diff", "llama2", "--row", "10")
    turns = [json.loads(line) for line in show(rows, "--row", "10", "--json").out.splitlines()]
    assert "2 replies compared: 2 different" in done.out
    for turn in turns:
        context, trained = len(turn["prompt_ids"]), len(turn["completion_ids"])
        assert f"- the preset chatml: {context} tokens of context, {trained} trained" in done.out
    assert "[/INST]" in done.out
    assert "24 of 24 replies are trained; stops <|endoftext|> (0)" in flat(done.out)


def test_a_reply_that_the_other_template_refuses(show, rows, tmp_path):
    (tmp_path / "no.jinja").write_text(
        "{% if messages[0].role == 'system' %}{{ raise_exception('no system message') }}{% endif %}"
        "{% for m in messages %}[{{ m.role }}]{{ m.content }}{{ eos_token }}{% endfor %}"
        "{% if add_generation_prompt %}[assistant]{% endif %}"
    )
    done = show(rows, "--diff", tmp_path / "no.jinja", "--row", "9")
    assert done.out.count("left out by one") == 3  # twice, and in the sum
    assert "no system message" in flat(done.out)
    assert "8 of 24 replies are trained" in flat(done.out)


@pytest.mark.parametrize(("options", "said"), [
    (["--json", "--html", "x.html"], "--json and --html exclude each other"),
    (["--json", "--diff", "llama2"], "--json and --diff exclude each other"),
    (["--diff", "lama2"], "template=llama2"),
    (["--diff", "auto"], "the tokenizer has no chat template"),
])  # fmt: skip
def test_options_that_mean_nothing_are_errors(options, said, show, rows):
    done = show(rows, *options)
    assert (done.code, done.out) == (2, "")
    assert said in flat(done.err)


# ---- the page


def test_the_page_holds_the_turns_and_what_is_left_out(show, mixed, tmp_path):
    path = tmp_path / "shown.html"
    done = show(mixed, "bad_rows=leave_out", "--html", path)
    assert (done.code, done.out.strip()) == (0, str(path))
    data = page_data(path)
    turns = [json.loads(line) for line in show(mixed, "bad_rows=leave_out", "--json").out.splitlines()]
    assert [turn["sides"][0]["ids"] for turn in data["turns"]] == [
        turn["prompt_ids"] + turn["completion_ids"] for turn in turns
    ]
    assert [(out["what"], out["place"], out["message"]) for out in data["out"]] == [
        ("record", f"{mixed}:2", None),
        ("record", f"{mixed}:4", None),
        ("conversation", f"{mixed}:5", None),
        ("reply", f"{mixed}:6", 1),
    ]
    assert data["out"][0]["detail"].startswith("found 1 messages: user\nexpected at least")
    assert data["out"][3]["detail"] == "<|im_end|> in message 1 (user)"
    assert not list(tmp_path.glob("*.new"))


def test_the_page_shows_as_many_turns_as_are_asked_for(show, tmp_path):
    data = write_rows(
        tmp_path / "many.jsonl", [{"prompt": f"Say {i}.", "response": str(i)} for i in range(210)]
    )
    path = tmp_path / "shown.html"
    assert "200 turns of 210; -n shows more" in flat(show(data, "--html", path).err)
    assert len(page_data(path)["turns"]) == 200
    show(data, "--html", path, "-n", "205")
    assert len(page_data(path)["turns"]) == 205
    assert ">205 of 210 turns<" in path.read_text(encoding="utf-8")


def test_the_page_of_one_row_and_of_two_templates(show, rows, tmp_path):
    path = tmp_path / "shown.html"
    show(rows, "--row", "10", "--diff", "llama2", "--html", path)
    data = page_data(path)
    assert data["names"] == ["the preset chatml", "the preset llama2"]
    assert [turn["place"] for turn in data["turns"]] == [f"{rows}:10"] * 2
    left, right = data["turns"][0]["sides"]
    for side, marks in ((left, "<|im_start|>"), (right, "[INST]")):
        changed = zip(side["changed"][::2], side["changed"][1::2], strict=True)
        assert marks in "".join("".join(side["pieces"][a:b]) for a, b in changed)
    assert data["turns"][0]["verdict"] == "different"


@pytest.mark.parametrize("where", ["", "missing/page.html"])
def test_a_page_that_cannot_be_written(where, show, rows, tmp_path):
    done = show(rows, "--html", tmp_path / where)
    assert done.code == 2
    assert "the page cannot be written there" in done.err


# ---- from Python


@pytest.fixture
def shown(tiny, mixed):
    given = [f"model={tiny}", f"data={mixed}", "template=chatml", "bad_rows=leave_out"]
    return shown_turns(resolved(given).recipe)


def test_turns_are_a_sequence(shown):
    turns = shown.turns
    assert len(turns) == len(list(turns)) == 3
    assert [turns[i].turn for i in range(3)] == [turn.turn for turn in turns] == [1, 2, 4]
    assert turns[-1].turn == 4
    for some in (slice(1, None), slice(0, 2), slice(-2, None), slice(None, -1), slice(None, None, -1)):
        assert [turn.turn for turn in turns[some]] == [1, 2, 4][some]
    with pytest.raises(IndexError):
        turns[3]
    with pytest.raises(IndexError):
        turns[-4]
    assert not list(Turns([]))


def test_views_come_in_the_order_of_the_data_and_stop_where_asked(shown):
    assert [(v.turn.source.line, v.number) for v in shown.all_views()] == [(1, 0), (3, 0), (3, 1)]
    assert [(v.turn.source.line, v.number) for v in shown.all_views(2)] == [(1, 0), (3, 0)]
    for view in shown.all_views():
        assert shown.texts(view.turn) == (view.prompt, view.completion)
        assert shown.number(view.turn) == view.number


def test_all_that_is_left_out_is_found_again(tiny, tmp_path):
    """The ledger keeps the first five places of each reason; here there are more."""
    data = write_rows(tmp_path / "bad.jsonl", [GOOD, *[NO_REPLY] * 7, *[WEIGHTLESS] * 7, *[FORGED] * 7])
    given = [f"model={tiny}", f"data={data}", "template=chatml", "bad_rows=leave_out"]
    shown = shown_turns(resolved(given).recipe)
    out = everything_left_out(shown, 100)
    assert [one.place.line for one in out] == list(range(2, 23))
    assert [one.what for one in out] == ["record"] * 7 + ["conversation"] * 7 + ["reply"] * 7
    assert len(everything_left_out(shown, 3)) == 3
    place, error = find_record(shown.recipe, "14")
    assert error is None
    assert row_at(shown, place).out[0].reason == "no reply has a weight above 0"


def test_escaped_control_tokens_are_still_the_user_s(tiny, tmp_path):
    data = write_rows(tmp_path / "forged.jsonl", [FORGED])
    given = [f"model={tiny}", f"data={data}", "template=chatml", "control_tokens=escape"]
    (file,) = shown_turns(resolved(given).recipe).account().files.values()
    assert file.missing == 0
    assert file.kinds["user"].context > 5
    assert file.kinds["user"].trained == 0


def test_a_turn_that_is_refused_when_rendered_again_is_shown_by_its_ids(shown, monkeypatch):
    from imprint.render.limits import OUT_OF_TIME
    from imprint.render.template import Refused, Template

    expected = [(view.prompt, view.completion) for view in shown.all_views()]
    real = Template.render

    def refuse_second(self, messages, *more, **options):
        if len(messages) >= 3:
            raise Refused(OUT_OF_TIME)
        return real(self, messages, *more, **options)

    monkeypatch.setattr(Template, "render", refuse_second)
    views = list(shown.all_views())
    assert [(view.prompt, view.completion) for view in views] == expected
    assert all(view.owned.offsets is not None for view in views)
    assert sum(file.turns for file in shown.account().files.values()) == 3
