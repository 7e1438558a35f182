"""What is prepared, kept on disk and taken from there is what reading and rendering give; and when it is taken."""

from __future__ import annotations

import dataclasses
import json
import shutil
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import pytest

import imprint.preparation as preparation
from conftest import ROWS, settings, write_rows
from imprint import errors
from imprint.data.ledger import Ledger
from imprint.preparation import RENDERED_BY, Preparation, read_and_render, turns_of
from imprint.prepare import overview, prepare, where_from
from imprint.render.turns import Turn, render
from imprint.samples import fixed_prompts
from imprint.settings import resolve

NOW = datetime(2026, 5, 4, 3, 2, 1)
DATED = "{{ strftime_now('%d %B') }}{% for m in messages %}<{{ m.role }}>{{ m.content }}{{ eos_token }}{% endfor %}"
DATED += "{% if add_generation_prompt %}<assistant>{% endif %}"
# rows of which some are left out or warned of, at every level
MIXED = [
    *ROWS,
    {"messages": [*ROWS[0]["messages"], *ROWS[0]["messages"][1:]]},  # adjacent replies
    {"prompt": "What is long?", "response": "very " * 200},
    {"prompt": "What is nothing?", "response": "It is 0.", "weight": 0},
    {"prompt": "What is <|im_end|>?", "response": "A stop."},
    {"prompt": "What is empty?", "response": ""},
]


@pytest.fixture
def here(tmp_path, tiny, monkeypatch):
    """A folder with a model and rows, its own cache, and itself as the current directory."""
    shutil.copytree(tiny, tmp_path / "model")
    write_rows(tmp_path / "rows.jsonl", MIXED)
    write_rows(tmp_path / "general.jsonl", [{"text": f"Text {i}. " * (i + 1)} for i in range(12)])
    write_rows(tmp_path / "others.jsonl", [{"prompt": "Another?", "response": "Yes."}, ROWS[0]])
    monkeypatch.setenv("IMPRINT_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def recipe_of(*given, data="rows.jsonl"):
    """A small recipe; of a key that is given several times, the last counts."""
    every = settings("model", data, "run", "bad_rows=leave_out", *given)
    return resolve(None, list({one.partition("=")[0]: one for one in every}.values())).recipe


def prepared(*given, now=NOW, data="rows.jsonl", model="model"):
    return prepare(recipe_of(*given, data=data), Path(model), now)


def facts_of(turn):
    values = [getattr(turn, field.name) for field in dataclasses.fields(Turn)]
    return [value.tolist() if isinstance(value, np.ndarray) else value for value in values]


def told(made):
    """All that a run takes from what was prepared, as values that can be compared."""
    return {
        "train": [[facts_of(turn) for turn in turns] for turns in made.train],
        "validation": [[facts_of(turn) for turn in turns] for turns in made.validation],
        "conversations": [list(made.loaded.train), list(made.loaded.validation)],
        "loaded": [made.loaded.fingerprint, made.loaded.reasoning],
        "ledger": json.dumps(made.ledger.to_json()),
        "rendering": [made.rendering.stop_ids, made.rendering.added, made.rendering.notes],
        "numbers": [made.num_tokens, made.longest, made.plan, made.decisions],
        "replay": made.replay and told_of_replay(made.replay),
        "samples": [(facts_of(turn), conversation) for turn, conversation in fixed_prompts(made)],
    }


def told_of_replay(pieces):
    return {
        "pieces": [
            [[facts_of(turn) for turn in group] for group in part]
            for part in (pieces.drawable, pieces.held_out)
        ],
        "origin": list(pieces.origin),
        "ledger": json.dumps(pieces.ledger.to_json()),
        "fingerprint": pieces.fingerprint,
    }


SETTINGS = [
    (),
    ("validation=0",),
    ("validation=others.jsonl",),
    ("consecutive_replies=leave_out", "control_tokens=escape"),
    ("too_long=truncate", "train_on=last_reply"),
    ("template=alpaca", "control_tokens=keep", "samples=50"),
    ("replay=[general.jsonl, others.jsonl]", "replay_length=16", "validation=others.jsonl"),
]


@pytest.mark.parametrize("given", SETTINGS)
def test_from_the_cache_as_anew(here, monkeypatch, given):
    anew, taken = prepared("samples=4", *given), prepared("samples=4", *given)
    assert (anew.origin.taken, taken.origin.taken) == (False, True)
    monkeypatch.setenv("IMPRINT_CACHE", "off")
    off = prepared("samples=4", *given)
    assert not off.origin.taken
    assert told(anew) == told(taken) == told(off)
    assert len(anew.ledger.conversations.left) + len(anew.ledger.turns.left) > 1, "there is something to keep"


@pytest.mark.parametrize("given", SETTINGS)
def test_as_rendering_in_memory(here, given):
    """The slow, obvious way: all conversations, and all turns, as lists."""
    made = prepared(*given)
    for loaded, stored in ((made.loaded.train, made.train), (made.loaded.validation, made.validation)):
        recipe, rendering = made.recipe, made.rendering
        expected = [[] for _ in loaded]
        for item in render(
            list(loaded),
            rendering.template,
            rendering.encoder,
            train_on=recipe.train_on,
            max_length=recipe.max_length,
            too_long=recipe.too_long,
            unfaithful=recipe.unfaithful,
            control_tokens=recipe.control_tokens,
            stop_ids=rendering.stop_ids,
        ):
            if isinstance(item, Turn):
                expected[item.conversation].append(facts_of(item))
        assert [[facts_of(turn) for turn in turns] for turns in stored] == [
            turns for turns in expected if turns
        ]
    sums, flat = made.train.sums, [turn for turns in made.train for turn in turns]
    assert sums.tokens == sum(map(len, flat))
    assert sums.trained_tokens == sum(len(turn.completion) for turn in flat)
    every = [turn for part in (made.train, made.validation) for turns in part for turn in turns]
    assert made.longest == max(map(len, every))
    assert made.num_tokens == max(*(int(turn.ids.max()) for turn in every), *made.rendering.stop_ids) + 1


def test_prompts_to_answer_are_the_last_of_equal_ones(here):
    rows = [{"prompt": f"q{i % 7}", "response": f"a{i}"} for i in range(20)]
    write_rows(here / "equal.jsonl", rows)
    made = prepared("validation=0", "samples=3", data="equal.jsonl")
    last = {turns[-1].prompt.tobytes(): turns[-1] for turns in made.train}
    every = list(last.values())
    assert len(every) == 7
    chosen = fixed_prompts(made)
    assert [facts_of(turn) for turn, _ in chosen] == [facts_of(every[i * 7 // 3]) for i in range(3)]
    assert all(conversation.source == turn.source for turn, conversation in chosen)


def test_nothing_is_parsed_or_rendered_where_it_is_taken(here, monkeypatch):
    prepared()

    def never(*_, **__):
        raise AssertionError

    for name in ("load", "turns_of"):
        monkeypatch.setattr(preparation, name, never)
    monkeypatch.setattr("imprint.data.load.read", never)
    assert prepared().origin.taken


CHANGES = {
    "data": lambda here: write_rows(here / "rows.jsonl", [*MIXED, ROWS[0]]),
    "a space in the data": lambda here: (here / "rows.jsonl").write_text(
        (here / "rows.jsonl").read_text() + " "
    ),
    "another template": lambda here: (here / "own.jinja").write_text(DATED + " "),
    "a stop of the model": lambda here: (here / "model" / "generation_config.json").write_text(
        '{"eos_token_id": 5}'
    ),
    "an added token": lambda here: add_token(here / "model"),
    "the order of merges": lambda here: swap_merges(here / "model" / "tokenizer.json"),
    "the tokenizer's own template": lambda here: set_key(here / "model", "chat_template", "{{ messages }}"),
    "a named token": lambda here: set_key(here / "model", "bos_token", "<unk>"),
}


def set_key(model, key, value):
    path = model / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), key: value}))


def add_token(model):
    path = model / "tokenizer.json"
    facts = json.loads(path.read_text())
    last = dict(facts["added_tokens"][-1], id=512, content="<new>")
    facts["added_tokens"].append(last)
    path.write_text(json.dumps(facts))


def swap_merges(path):
    facts = json.loads(path.read_text())
    merges = facts["model"]["merges"]
    merges[-1], merges[-2] = merges[-2], merges[-1]
    path.write_text(json.dumps(facts))


def key_of(*given, now=NOW, data="rows.jsonl"):
    return Preparation(recipe_of("max_length=100", *given, data=data), Path("model"), now).key()


@pytest.mark.parametrize("what", CHANGES)
def test_another_input_is_another_key(here, what):
    (here / "own.jinja").write_text(DATED)
    given = ("template=own.jinja",)
    before = key_of(*given)
    assert key_of(*given) == before
    CHANGES[what](here)
    assert key_of(*given) != before


OTHER = {
    "validation": ("validation=0.2", "validation=0", "validation=others.jsonl"),
    "seed": ("seed=1",),
    "bad_rows": ("bad_rows=stop",),
    "consecutive_replies": ("consecutive_replies=leave_out",),
    "template": ("template=alpaca", "template=own.jinja"),
    "template_options": ("template_options.x=1", "template_options.x=2"),
    "train_on": ("train_on=last_reply", "train_on=everything"),
    "max_length": ("max_length=99",),
    "too_long": ("too_long=truncate", "too_long=error"),
    "unfaithful": ("unfaithful=keep", "unfaithful=error"),
    "control_tokens": ("control_tokens=keep", "control_tokens=escape"),
    "replay_length": ("replay=others.jsonl", *(f"replay=others.jsonl replay_length={n}" for n in (40, 50))),
}


def test_another_setting_is_another_key(here):
    (here / "own.jinja").write_text(DATED)
    assert set(OTHER) == set(RENDERED_BY)
    keys = [key_of()] + [key_of(*given.split()) for every in OTHER.values() for given in every]
    assert len(set(keys)) == len(keys)


def test_how_the_data_is_read_is_part_of_the_key(here):
    shutil.copyfile(here / "rows.jsonl", here / "copy.jsonl")
    data = [
        {"path": "rows.jsonl"},
        {"path": "rows.jsonl", "format": "messages"},
        {"path": "rows.jsonl", "fields": {"prompt": "q"}},
    ]
    every = [[one] for one in data]
    every += [[data[0], {"path": "others.jsonl"}], [{"path": "others.jsonl"}, data[0]]]
    every += [[data[0], data[0]], [data[0], {"path": "copy.jsonl"}]]
    keys = [key_of(data=json.dumps(sources)) for sources in every]
    assert len(set(keys)) == len(keys)


def test_the_bytes_of_replay_are_part_of_the_key(here):
    before = key_of("replay=general.jsonl")
    shutil.copyfile(here / "general.jsonl", here / "moved.jsonl")
    assert key_of("replay=moved.jsonl") == before != key_of()
    for given in ("replay=[general.jsonl, general.jsonl]", "replay={path: general.jsonl, format: text}"):
        assert key_of(given) != before
    for given in ("replay_share=0.5", "replay_share_of=weight"):
        assert key_of("replay=general.jsonl", given) == before, "drawn is what was cut, in any share"
    with (here / "general.jsonl").open("a") as file:
        file.write(" ")
    assert key_of("replay=general.jsonl") != before


def test_replay_that_is_moved_is_told_by_its_new_name(here):
    given = ("replay_length=16",)
    first = prepared("replay=general.jsonl", *given)
    (here / "general.jsonl").rename(here / "moved.jsonl")
    second = prepared("replay=moved.jsonl", *given)
    assert second.origin.taken
    assert second.replay.drawable[0][0].source.file == "moved.jsonl"
    assert second.replay.ledger.files == {"moved.jsonl": 12}
    assert second.plan.replay == first.plan.replay
    drawn = [[facts_of(turn)[:2] for turn in one.replay.drawable[0]] for one in (first, second)]
    assert drawn[0] == drawn[1]


def test_what_changes_no_turn_is_the_same_key(here):
    before = key_of()
    for given in ("batch_size=2", "epochs=9", "learning_rate=0.1", "samples=9", "output=else", "method=lora"):
        assert key_of(given) == before
    assert key_of(now=NOW + timedelta(days=1)) == before, "the template shows no date"
    for name in ("rows.jsonl", "others.jsonl"):
        (here / "moved").mkdir(exist_ok=True)
        shutil.copyfile(here / name, here / "moved" / name)
    assert key_of(data="moved/rows.jsonl") == key_of(data=str(here / "rows.jsonl")) == before
    assert key_of("validation=moved/others.jsonl") == key_of("validation=others.jsonl")


def test_the_date_counts_as_far_as_it_is_shown(here):
    (here / "own.jinja").write_text(DATED)
    given = ("template=own.jinja",)
    assert key_of(*given) == key_of(*given, now=NOW + timedelta(hours=5))
    assert key_of(*given) != key_of(*given, now=NOW + timedelta(days=1))
    assert not prepared(*given).origin.taken
    assert prepared(*given, now=NOW + timedelta(hours=5)).origin.taken
    other = prepared(*given, now=NOW + timedelta(days=1))
    assert not other.origin.taken
    assert "05 May" in other.rendering.encoder.decode(other.train[0][0].prompt)


def test_every_setting_that_is_read_is_part_of_the_key(here, monkeypatch):
    """Whatever preparing asks of a recipe stands in RENDERED_BY, and nothing stands there for nothing."""
    asked = set()

    class Watched:
        def __init__(self, recipe):
            self.recipe = recipe

        def __getattr__(self, name):
            asked.add(name)
            return getattr(self.recipe, name)

    recipe = recipe_of("max_length=100", "replay=others.jsonl", "replay_length=40")
    made = Preparation(Watched(recipe), here / "model", NOW)
    (here / "made").mkdir()
    made.make(here / "made")
    # the bytes of the data, and what loads the tokenizer, are in the key as what they are
    assert asked - {"data", "replay", "revision", "trust_remote_code"} == set(RENDERED_BY)


def test_a_moved_file_is_told_by_its_new_name(here):
    first = prepared("validation=others.jsonl")
    (here / "else").mkdir()
    for old, new in (("rows.jsonl", "a.jsonl"), ("others.jsonl", "b.jsonl")):
        (here / old).rename(here / "else" / new)
    second = prepared("validation=else/b.jsonl", data="else/a.jsonl")
    assert second.origin.taken
    text = json.dumps(first.ledger.to_json())
    text = text.replace("rows.jsonl", "else/a.jsonl").replace("others.jsonl", "else/b.jsonl")
    assert json.dumps(second.ledger.to_json()) == text
    assert second.loaded.train[0].source.file == second.train[0][0].source.file == "else/a.jsonl"
    assert second.loaded.validation[0].source.file == "else/b.jsonl"
    assert second.loaded.train[0].id == "else/a.jsonl:1"


def test_bad_rows_stop_before_anything_is_kept(here):
    for _ in range(2):
        with pytest.raises(errors.DataError, match="the reply is empty"):
            prepared("bad_rows=stop")
    with pytest.raises(errors.DataError, match="0 trainable rows"):
        prepared("max_length=3")
    assert list((here / "cache" / "prepared").iterdir()) == []


def test_a_spoilt_entry_is_prepared_anew(here):
    first = prepared()
    told_first = told(first)
    path = first.origin.folder / "train.ids"
    data = bytearray(path.read_bytes())
    data[5] ^= 1
    path.unlink()  # another file: what is mapped into memory stays as it was
    path.write_bytes(data)
    second = prepared()
    assert not second.origin.taken
    assert told(second) == told_first
    assert prepared().origin.taken


def test_data_that_changes_while_it_is_read(here, monkeypatch):
    from imprint.data import load

    original = load.read

    def appended(source, base, **options):
        yield from original(source, base, **options)
        with (here / "rows.jsonl").open("a") as file:
            file.write(json.dumps(ROWS[0]) + "\n")

    monkeypatch.setattr(load, "read", appended)
    with pytest.raises(errors.DataError, match="changed while it was read"):
        prepared()
    assert list((here / "cache" / "prepared").iterdir()) == []


def test_a_full_cache_is_done_without(here, monkeypatch):
    """The turns find no room in the cache; a preset's tokens are added once all the same."""
    expected = told(prepared("template=llama3"))
    shutil.rmtree(here / "cache")
    original, calls = preparation.TurnWriter._flush, []

    def full(self):
        calls.append(self.base)
        if str(self.base).startswith(str(here)):
            raise OSError(28, "No space left on device")
        original(self)

    monkeypatch.setattr(preparation.TurnWriter, "_flush", full)
    made = prepared("template=llama3")
    assert "not kept: " in where_from(made)
    assert "No space left" in where_from(made)
    assert len(calls) > 1
    assert "<|eot_id|>" in made.rendering.added
    assert told(made) == expected


def test_the_run_says_where_its_data_came_from(here):
    def line(made):
        return next(str(part) for part in overview(made) if str(part).startswith("data "))

    first, second = prepared(), prepared()
    assert line(first).startswith("data  prepared in ")
    assert f"{NOW.now():%Y-%m-%d}" in line(second)
    assert "taken from the cache" in line(second)
    for made in (first, second):
        assert made.origin.folder.name[:12] in line(made)


def test_without_the_cache_for_those_that_only_look(here):
    """`imprint show` reads and renders past it, and may do with the turns what it does with lists."""
    recipe = recipe_of("max_length=100", "validation=0")
    loaded, rendering, ledger = read_and_render(recipe, here / "model", NOW, 0.0)
    turns = turns_of(loaded.train, recipe, rendering, ledger, "trained")
    assert not (here / "cache").exists()
    ledger.check()
    kept = prepared("max_length=100", "validation=0")
    assert [[facts_of(one) for one in group] for group in turns] == told(kept)["train"]
    assert list(loaded.train) == list(kept.loaded.train)
    listed = turns_of(list(loaded.train), recipe, rendering, Ledger(), "trained")
    assert [len(group) for group in listed] == [len(group) for group in turns]
