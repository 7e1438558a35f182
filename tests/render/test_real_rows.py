"""Real rows, with templates that know tools: what is accepted is sound, and what should be accepted is."""

import json
from collections import Counter
from itertools import islice

import pytest

from imprint.render.turns import Turn
from render.cells import BY_REQUEST, check, rendering_for, turns_of
from render.corpus import DATA, template_source
from render.real_rows import SOURCES, file_rows, path_of

TEMPLATES = (
    "llamacpp/Qwen-Qwen2.5-7B-Instruct", "trl/qwen3", "llamacpp/meta-llama-Llama-3.1-8B-Instruct", "mistral_common/v3",
    "trl/gptoss", "llamacpp/Qwen3-Coder", "llamacpp/ByteDance-Seed-OSS", "llamacpp/deepseek-ai-DeepSeek-V3.1",
)  # fmt: skip
REASONED = "reason_tool_use"
# what a template cannot write of these rows, and so leaves out
REFUSED = {
    "llamacpp/Qwen-Qwen2.5-7B-Instruct": {"the template drops the reply's reasoning"},
    "llamacpp/meta-llama-Llama-3.1-8B-Instruct": {
        "the template drops the reply's reasoning",
        "the template refuses it: This model only supports single tool-calls at once!",
        "the template changes the reply's text",  # a text beside a call
    },
    "mistral_common/v3": {
        "the template drops the reply's reasoning",
        "the template refuses it: Assistant message cannot have both content and tool calls.",
    },
    "trl/gptoss": {
        "the template drops the reply's tool calls",  # of several at once it writes the first
        "the prompt is not the beginning of the conversation",  # a text beside an earlier call goes
    },
    "llamacpp/Qwen3-Coder": {"the template drops the reply's reasoning"},
    "llamacpp/ByteDance-Seed-OSS": {"the template refuses it: 'dict object' has no attribute 'properties'"},
    "llamacpp/deepseek-ai-DeepSeek-V3.1": {"the template has no place for tools"},
}


def outcomes(source: str, template: str, rows: slice):
    path = path_of(template)
    for number, conversation in enumerate(islice(SOURCES[source](), rows.start, rows.stop, rows.step)):
        yield check(path, "bytes", f"{source} {number}", conversation)


def assert_as_expected(source: str, template: str, rows: slice) -> Counter:
    """All that is accepted is sound; a reason that is not expected of this template is a fault."""
    told: Counter = Counter()
    for outcome in outcomes(source, template, rows):
        assert not outcome.violations, outcome
        told.update(["accepted"] * len(outcome.cases))
        told.update(reason for reason in outcome.reasons if reason not in BY_REQUEST)
    assert set(told) - {"accepted"} <= REFUSED.get(template, set()), told
    return told


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("template", TEMPLATES[1::3])
def test_some_rows_of_every_source(source, template):
    assert assert_as_expected(source, template, slice(0, 30, 10))


@pytest.mark.slow
@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("template", TEMPLATES)
def test_a_quarter_of_the_rows(source, template):
    assert assert_as_expected(source, template, slice(0, None, 4))


@pytest.mark.full
@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("template", TEMPLATES)
def test_every_row(source, template):
    assert assert_as_expected(source, template, slice(0, None))


def test_thoughts_and_calls_of_real_rows_are_trained_where_the_template_writes_them():
    for template in ("trl/qwen3", "llamacpp/ByteDance-Seed-OSS", "trl/gptoss"):
        told = assert_as_expected(REASONED, template, slice(0, 12))
        assert told["accepted"] >= 0.8 * told.total(), (template, told)  # gpt-oss: one call at a time


def test_the_weights_of_a_file_say_which_replies_are_trained():
    """LLaMA-Factory's demonstration gives every message its weight: those of 0 are context."""
    path = DATA / "sft" / "loss_weight_messages_demo.jsonl"
    rows = list(islice(file_rows("sft/loss_weight_messages_demo.jsonl"), 100))
    made = rendering_for(template_source(path_of("trl/qwen3")), "bytes", False)
    raw = [json.loads(line)["messages"] for line in path.read_text(encoding="utf-8").splitlines()]
    for messages, conversation in zip(raw, rows, strict=False):
        trained = {
            item.turn: (made.encoder.decode(item.completion), set(item.weight.tolist()))
            for item in turns_of(conversation, made)
            if isinstance(item, Turn)
        }
        wanted = {i: m for i, m in enumerate(messages) if m["loss_weight"]}
        assert trained.keys() == wanted.keys()
        for i, message in wanted.items():
            text = "".join(part["value"] for part in message["content"])
            assert text in trained[i][0]
            assert trained[i][1] == {message["loss_weight"]}
