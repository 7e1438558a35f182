import random

import pytest

from imprint.data.conversation import Conversation, Message, Place
from imprint.data.split import first_trained, prompt_hash
from imprint.data.split import split as split_hashes


def talk(*texts, system=None, weights=()):
    """user, assistant, user, … with the weights of the replies."""
    messages = [] if system is None else [Message("system", system)]
    for number, text in enumerate(texts):
        weight = weights[number // 2] if number % 2 and weights else None
        messages.append(Message("assistant" if number % 2 else "user", text, weight=weight))
    return Conversation(tuple(messages), Place("a", 1))


def split(conversations, share, seed):
    """(train, validation) conversations."""
    rows = split_hashes([prompt_hash(item, seed) for item in conversations], share)
    return tuple([conversations[row] for row in part] for part in rows)


def many(count, repeats=1):
    return [talk(f"question {i}", f"answer {j}") for i in range(count) for j in range(repeats)]


@pytest.mark.parametrize("share", [0.05, 0.3, 0.9])
def test_share_is_roughly_right_and_nothing_is_lost(share):
    conversations = many(4000)
    train, validation = split(conversations, share, 0)
    assert abs(len(validation) / 4000 - share) < 4 * (share * (1 - share) / 4000) ** 0.5
    kept = set(map(id, train)), set(map(id, validation))
    assert kept[0] | kept[1] == set(map(id, conversations))
    assert not kept[0] & kept[1]
    order = {id(item): number for number, item in enumerate(conversations)}
    for part in (train, validation):
        assert [order[id(item)] for item in part] == sorted(order[id(item)] for item in part)


def test_equal_prompts_are_on_one_side():
    train, validation = split(many(300, repeats=5), 0.2, 1)
    prompts = [{item.messages[0].content for item in part} for part in (train, validation)]
    assert prompts[1]
    assert not prompts[0] & prompts[1]
    assert len(train) % 5 == 0


def test_the_side_depends_on_prompt_and_seed_alone():
    conversations = many(500)
    _, validation = split(conversations, 0.2, 3)
    shuffled = many(500) + many(900)[500:]
    random.Random(0).shuffle(shuffled)
    _, again = split(shuffled, 0.2, 3)
    sides = [{item.messages[0].content for item in part} for part in (validation, again)]
    assert sides[0] <= sides[1]
    assert {item.messages[0].content for item in split(conversations, 0.2, 4)[1]} != sides[0]


def test_small_data_leaves_no_side_empty():
    for seed in range(50):
        for count in (2, 3, 5):
            for share in (1e-6, 0.5, 0.999):
                train, validation = split(many(count), share, seed)
                assert train
                assert validation
                assert len(train) + len(validation) == count
        train, validation = split(many(2), 1e-6, seed)
        assert prompt_hash(validation[0], seed) < prompt_hash(train[0], seed)
    assert [len(part) for part in split(many(1, repeats=4), 0.5, 0)] == [4, 0]
    assert [len(part) for part in split(many(50), 0, 0)] == [50, 0]
    assert split([], 0.5, 0) == ([], [])


def test_the_prompt_is_what_comes_before_the_first_trained_reply():
    assert prompt_hash(talk("a", "b"), 0) == prompt_hash(talk("a", "c", "d", "e"), 0)
    different = [
        talk("a", "b"),
        talk("a ", "b"),
        talk("a", "b", system="s"),
        talk("a", "b", "c", "d", weights=(0, 1)),
        talk("a", "x", "c", "d", weights=(0, 1)),
    ]
    assert len({prompt_hash(item, 0) for item in different}) == 5
    opening = Conversation((Message("assistant", "hi"), *talk("a", "b").messages), Place("a", 1))
    assert first_trained(opening) == 2
    assert first_trained(talk("a", "b", weights=(0,))) is None
