"""The oldest test of a trainer: a small model learns 32 conversations by heart, and then says them.

Each reply, its stop included, comes back greedily through `imprint chat`'s own path, in the context in
which it was trained: the second reply of a conversation behind the first.
"""

from __future__ import annotations

import json

import pytest

from conftest import build_model, events_of, imprint, settings, write_rows
from imprint.data.conversation import Message
from imprint.demo.base import demonstrations

LARGEST = 2_000_000


@pytest.fixture(scope="module")
def conversations() -> list[list[Message]]:
    """32 of imprint's own: 16 of one question, 16 of several, some with a system message."""
    lines = [json.loads(line)["messages"] for line in demonstrations().read_text("utf-8").splitlines()]
    several = [messages for messages in lines if sum(m["role"] == "user" for m in messages) > 1]
    one = [messages for messages in lines if sum(m["role"] == "user" for m in messages) == 1]
    chosen = several[:16] + one[:: len(one) // 16][:16]
    assert len({json.dumps(messages) for messages in chosen}) == 32
    return [[Message(m["role"], m["content"]) for m in messages] for messages in chosen]


@pytest.fixture(scope="module")
def data(conversations, tmp_path_factory):
    rows = [{"messages": [{"role": m.role, "content": m.content} for m in said]} for said in conversations]
    return write_rows(tmp_path_factory.mktemp("data") / "32.jsonl", rows)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return build_model(tmp_path_factory.mktemp("models") / "base", hidden=128, initializer_range=0.02)


def overfit(base, data, run, *given: str) -> None:
    from imprint.run import train
    from imprint.settings import resolve

    steps = ("batch_size=32", "validation=0", "schedule=linear", "warmup=5")
    train(resolve(None, settings(base, data, run, *steps, *given)).recipe)
    (start,) = events_of(run, "start")
    assert start["num_parameters"] <= LARGEST
    assert events_of(run, "step")[-1]["loss"] < 0.02


def reproduces(run, conversations) -> int:
    """Asserts that every reply comes back with its stop; how many there were."""
    from imprint.serve.chat import load_speaker

    speaker = load_speaker(run)
    replies, outputs = 0, []
    generate = speaker.model.generate
    speaker.model.generate = lambda **inputs: outputs.append(generate(**inputs)) or outputs[-1]
    for messages in conversations:
        for i, message in enumerate(messages):
            if message.role == "assistant":
                shown: list[str] = []
                said = speaker.reply(messages[:i], shown.append, max_new_tokens=64)
                assert said == message.content
                assert "".join(shown) == said, "what is streamed is what is said"
                assert int(outputs[-1][0, -1]) in speaker.rendering.stop_ids, "it stopped by itself"
                replies += 1
    return replies


def test_a_small_model_learns_32_conversations_by_heart(base, data, conversations, tmp_path, cli):
    run = tmp_path / "run"
    overfit(base, data, run, "epochs=90", "learning_rate=5e-3")
    assert reproduces(run, conversations) >= 48

    for messages in conversations[-8:]:  # and through the command itself
        system = messages[0].content if messages[0].role == "system" else ""
        done = cli("chat", run, "--system", system, "--prompt", messages[-2].content)
        assert done.out == f"{messages[-1].content}\n"

    dialogue = next(m for m in conversations if m[0].role == "user" and len(m) > 2)
    typed = "".join(f"{message.content}\n" for message in dialogue if message.role == "user")
    replies = [message.content for message in dialogue if message.role == "assistant"]
    assert imprint("chat", run, stdin=typed).out == "".join(f"{reply}\n" for reply in replies)


@pytest.mark.slow
def test_and_so_do_adapters(data, conversations, tmp_path):
    """Embeddings and head stay as they were drawn: large enough that a head can be sure of a token."""
    base = build_model(tmp_path / "base", hidden=128, initializer_range=0.2)
    run = tmp_path / "run"
    given = ("method=lora", "lora.rank=32", "epochs=250", "learning_rate=5e-3")
    overfit(base, data, run, *given)
    assert reproduces(run, conversations) >= 48


def test_a_model_that_was_not_trained_says_nothing_of_it(base, conversations):
    """The planted twin: the same path, on the base."""
    from imprint.serve.chat import load_speaker

    speaker = load_speaker(base, template="chatml")
    said = [speaker.reply(m[:-1], lambda _: None, max_new_tokens=8) for m in conversations[-4:]]
    assert not any(
        reply == messages[-1].content for reply, messages in zip(said, conversations[-4:], strict=True)
    )
