"""The turns that are read from disk are those that were written."""

import dataclasses
import json

import numpy as np
import pytest

from imprint.data.conversation import Place
from imprint.render.store import READ, WRITTEN, TurnStore, TurnWriter
from imprint.render.turns import Turn


def turn(prompt, completion, conversation=0, message=1, weight=1.0, place=("a", 1, "line"), case="prefix"):
    weights = np.full(len(completion), weight) if np.isscalar(weight) else np.array(weight)
    return Turn(
        np.array(prompt, np.int32),
        np.array(completion, np.int32),
        weights.astype(np.float32),
        Place(*place),
        conversation,
        message,
        case,
    )


def stored(folder, turns, name="train"):
    with TurnWriter(folder, name) as writer:
        for one in turns:
            writer.add(one)
    return TurnStore(folder, name)


def assert_same(found, given):
    assert type(found) is Turn
    for field in dataclasses.fields(Turn):
        a, b = getattr(found, field.name), getattr(given, field.name)
        if isinstance(b, np.ndarray):
            assert a.dtype == b.dtype, field.name
            assert a.tolist() == b.tolist(), field.name
        else:
            assert a == b, field.name


def assert_stored(store, turns):
    """Every way of reading gives the turns, grouped by conversation."""
    groups = {}
    for one in turns:
        groups.setdefault(one.conversation, []).append(one)
    expected = list(groups.values())
    assert len(store) == len(expected)
    assert store.conversations.tolist() == list(groups)
    for found in (list(store), [store[i] for i in range(len(store))], store[:], list(reversed(store))[::-1]):
        assert [len(group) for group in found] == [len(group) for group in expected]
        for group, given in zip(found, expected, strict=True):
            for a, b in zip(group, given, strict=True):
                assert_same(a, b)


def dialogue(rng, conversation, replies, shared=True):
    """Turns of one conversation, each of which begins with the one before it, or mostly does."""
    made, before = [], rng.integers(0, 50_000, 5).tolist()
    for i in range(replies):
        prompt = before + rng.integers(0, 50_000, rng.integers(1, 9)).tolist()
        if not shared:
            prompt[int(rng.integers(0, len(prompt)))] += 1
        completion = rng.integers(0, 50_000, rng.integers(1, 9)).tolist()
        made.append(turn(prompt, completion, conversation, 2 * i + 1, place=("a", conversation + 1)))
        before = prompt + completion
    return made


def test_every_kind_of_turn(tmp_path):
    turns = [
        turn([1, 2, 3], [4, 5]),
        turn([1, 2, 3, 4, 5, 6], [7], message=3),  # begins with all of the one before
        turn([1, 2, 3, 4, 9], [7], message=5),  # with a part of its reply
        turn([1, 2], [8], message=7),  # with a part of its prompt
        turn([9], [9, 9], message=9, case="switch"),  # with nothing
        turn([9], [9, 9], 4, 1, 0.25, ("b.parquet", 10**12, "row"), "truncated"),
        turn([1, 2], [8, 2**31 - 1, 0], 5, 1, [0.5, 1.0, 0.0]),  # a weight for each token
        turn([1, 2, 8], [1], 5, 3, 1 / 3),
        turn([1, 2, 8], [1, 2], 5, 5, [1.0, 2.0]),
    ]
    assert_stored(stored(tmp_path, turns), turns)


@pytest.mark.parametrize("count", [0, 1, READ, READ + 1, WRITTEN + 3])
def test_any_number_of_conversations(tmp_path, count):
    rng = np.random.default_rng(count)
    turns = [one for i in range(count) for one in dialogue(rng, 2 * i, 1 + i % 3, i % 2 == 0)]
    store = stored(tmp_path, turns)
    assert_stored(store, turns)
    assert bool(store) == bool(count)


def test_the_block_is_also_limited_by_its_ids(tmp_path, monkeypatch):
    monkeypatch.setattr("imprint.render.store.WRITTEN_IDS", 40)
    turns = [one for i in range(30) for one in dialogue(np.random.default_rng(i), i, 3)]
    assert_stored(stored(tmp_path, turns), turns)


def test_many_replies_take_the_room_of_one_text(tmp_path):
    turns = dialogue(np.random.default_rng(0), 0, 200)
    store = stored(tmp_path, turns)
    assert (tmp_path / "train.ids").stat().st_size == 4 * len(turns[-1])
    assert store.sums.tokens == sum(map(len, turns)) > 50 * len(turns[-1])


def test_sums_are_known_without_reading(tmp_path):
    turns = [one for i in range(40) for one in dialogue(np.random.default_rng(i), i, 2, i % 2 == 0)]
    turns.append(turn([1], [60_000], 99, case="truncated"))
    sums = stored(tmp_path, turns).sums
    assert sums.num_turns == len(turns)
    assert sums.longest == max(map(len, turns))
    assert sums.largest_id == max(int(one.ids.max()) for one in turns) == 60_000
    assert sums.tokens == sum(map(len, turns))
    assert sums.trained_tokens == sum(len(one.completion) for one in turns)
    assert sums.cases == {"prefix": 80, "truncated": 1}


def test_which_last_prompts_are_equal(tmp_path):
    turns = [turn([1], [2], 0), turn([1, 2, 3], [4], 0, 3), turn([1, 2, 3], [5], 1), turn([1, 2], [3, 4], 2)]
    a, b, c = stored(tmp_path, turns).last_prompts.tolist()
    assert a == b != c


def test_several_stores_in_one_folder(tmp_path):
    first, second = [turn([1], [2])], [turn([3], [4])]
    stored(tmp_path, first), stored(tmp_path, second, "validation")
    assert_stored(TurnStore(tmp_path, "train"), first)
    assert_stored(TurnStore(tmp_path, "validation"), second)


def test_other_names_of_the_same_files(tmp_path):
    stored(tmp_path, [turn([1], [2], 0, place=("a", 1)), turn([1], [2], 1, place=("b", 2, "row"))])
    store = TurnStore(tmp_path, "train", {"b": "moved/b"})
    assert [str(group[0].source) for group in store] == ["a:1", "moved/b:row 2"]


def test_turns_in_another_order_are_a_mistake(tmp_path):
    with pytest.raises(AssertionError, match="order"):
        stored(tmp_path, [turn([1], [2], 1), turn([1], [2], 0)])


def test_what_breaks_off_is_no_store(tmp_path):
    with pytest.raises(ZeroDivisionError):
        stored(tmp_path, (turn([1], [2 // i], 0) for i in (1, 0)))
    with pytest.raises(OSError, match=r"train\.json"):
        TurnStore(tmp_path, "train")


def test_a_turn_can_be_changed_without_changing_the_store(tmp_path):
    """Its arrays are copies: torch wants arrays that can be written, and the file may go."""
    store = stored(tmp_path, [turn([1, 2], [3])])
    (one,) = store[0]
    for values in (one.prompt, one.completion, one.weight):
        values[:] = 7
    for file in tmp_path.iterdir():
        file.unlink()
    assert_same(store[0][0], turn([1, 2], [3]))


def test_no_index_beyond_the_end(tmp_path):
    store = stored(tmp_path, [turn([1], [2], i) for i in range(3)])
    assert store[-1][0].conversation == 2
    for index in (3, -4):
        with pytest.raises(IndexError):
            store[index]


def test_the_facts_are_json(tmp_path):
    stored(tmp_path, [turn([1], [2])])
    assert json.loads((tmp_path / "train.json").read_text())["names"] == ["a"]
