"""Real chat templates, tokenizers and conversations: what the tests of `render` begin with."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from copy import copy
from datetime import datetime
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import pytest

from imprint.data.conversation import Conversation, Message, Place
from imprint.render.probe import share_with_reasoning
from imprint.render.resolve import Rendering, prepare_rendering
from render.oracle import assert_sound as assert_sound  # where the other tests look for it

DATA = Path(__file__).parents[3] / "shared" / "data"
NOW = datetime(2025, 7, 26, 3, 4, 5)
HERE = Place("rows.jsonl", 1)

TEMPLATES = sorted((DATA / "templates").glob("*/*.jinja"))
needs_templates = pytest.mark.skipif(not TEMPLATES, reason="shared/data/templates is not here")


@contextmanager
def fixed_clock() -> Iterator[None]:
    """`strftime_now` in transformers shows NOW, the date that the tests render with."""
    from transformers.utils import chat_template_utils as module

    class Clock(module.datetime):  # type: ignore[misc]
        @classmethod
        def now(cls, tz: Any = None) -> datetime:
            return NOW

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "datetime", Clock)
        yield


def template_source(path: Path) -> str:
    """A template as its users load it; those of chujiezheng have their indentation and newlines removed."""
    text = path.read_text(encoding="utf-8")
    return text.replace("    ", "").replace("\n", "") if path.parent.name == "chujiezheng" else text


def named(name: str) -> str:
    """The source of the one template whose path ends so."""
    found = [path for path in TEMPLATES if path.as_posix().endswith(name)]
    if not found:
        pytest.skip(f"shared/data/templates has no {name}")
    return template_source(found[0])


def label(path: Path) -> str:
    return f"{path.parent.name}/{path.stem}"


def user(text: str) -> Message:
    return Message("user", text)


def reply(text: str, **more: Any) -> Message:
    return Message("assistant", text, **more)


def talk(*messages: Message, **more: Any) -> Conversation:
    return Conversation(messages, HERE, **more)


TOOLS: tuple[dict[str, Any], ...] = (
    {
        "type": "function",
        "function": {
            "name": "add_up",
            "description": "Adds two <whole> numbers.",
            "parameters": {
                "type": "object",
                "properties": {
                    "a": {"type": "integer", "description": "the first"},
                    "b": {"type": "integer", "description": "the second"},
                },
                "required": ["a", "b"],
            },
        },
    },
)
CALL = {
    "id": "abcde1234",
    "type": "function",
    "function": {"name": "add_up", "arguments": '{"a": 1, "b": 2}'},
}

# users say zebra, systems say walrus, and no reply says either
CONVERSATIONS = {
    "single": talk(user("zebra: what is 2 + 2?"), reply("It is 4.")),
    "several": talk(
        user("Hi zebra"), reply("Hello! How are you?"), user("zebra\n\n2 + 2 zebra"), reply("It is\n 4."),
        user("Bye zebra"), reply("Goodbye 👋🏽"),
    ),
    "system": talk(
        Message("system", "Be a walrus."), user("Hi zebra"), reply("Hello!"), user("2 zebras?"), reply("4")
    ),
    "tools": talk(
        user("zebra: add 1 and 2"),
        reply("", tool_calls=(CALL,)),
        Message("tool", "3", name="add_up", tool_call_id="abcde1234"),
        reply("It is 3."),
        tools=TOOLS,
    ),
    "reasoning": talk(
        user("Hi zebra"),
        reply("Hello!", reasoning="They greet me."),
        user("What is 2 + 2, zebra?"),
        reply("It is 4.", reasoning="Two and two\nare four."),
    ),
}  # fmt: skip


# how the templates' own models name begin and end of text, by what the template writes
NAMES = [
    ("<｜", "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"),
    ("<|eot_id|>", "<|begin_of_text|>", "<|eot_id|>"),
    ("<|end_of_text|>", "<|begin_of_text|>", "<|end_of_text|>"),
    ("<end_of_turn>", "<bos>", "<eos>"),
    ("<seed:eos>", "<seed:bos>", "<seed:eos>"),
    ("<|return|>", "<|startoftext|>", "<|return|>"),
    ("<|im_end|>", "<|endoftext|>", "<|im_end|>"),
    ("<|end|>", "<s>", "<|endoftext|>"),
    ("", "<s>", "</s>"),
]
_CONTROL = re.compile(
    r"<\|[\w ▁]+\|>|<｜[\w▁]+｜>|<(?:start|end)_of_(?:turn|utterance)>|<seed:\w+>|<sep>"
    r"|\[/?[A-Z]{4,}(?:_[A-Z]+)*\]"
)


@cache
def tokenizer_json(kind: str) -> Any:
    """A fast tokenizer's backend: of shared/data/tokenizers, or of bytes alone."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    if kind == "bytes":  # loses nothing, and is made at once
        vocab = {char: i for i, char in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
        made = Tokenizer(models.BPE(vocab=vocab, merges=[]))
        made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        made.decoder = decoders.ByteLevel()
        return made
    folder = DATA / "tokenizers" / kind
    if not folder.is_dir():
        pytest.skip(f"{folder} is not here")
    if kind == "gpt2":
        vocab = json.loads((folder / "encoder.json").read_text(encoding="utf-8"))
        lines = (folder / "vocab.bpe").read_text(encoding="utf-8").split("\n")[1:]
        merges = [tuple(line.split(" ")) for line in lines if line]
        made = Tokenizer(models.BPE(vocab=vocab, merges=merges))
        made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        made.decoder = decoders.ByteLevel()
        return made
    (file,) = folder.glob("*tokenizer.json")  # torchtune's has a prefix of its own
    return Tokenizer.from_file(str(file))


BYTE_LEVEL = ("gpt_neox_20b", "gpt2", "torchtitan_2k", "torchtune_tiny_bpe")
SENTENCEPIECE = ("mistral_v1_spm", "mistral_v3_spm")


def make_tokenizer(kind: str, chat_template: str | None = None, **names: str) -> Any:
    """A tokenizer of shared/data, with the control tokens of a template as added tokens."""
    from tokenizers import AddedToken, Tokenizer
    from transformers import LlamaTokenizer, PreTrainedTokenizerFast

    if kind in SENTENCEPIECE:
        folder = DATA / "tokenizers" / kind
        if not folder.is_dir():
            pytest.skip(f"{folder} is not here")
        made: Any = LlamaTokenizer.from_pretrained(str(folder), **names)
    else:
        backend = Tokenizer.from_str(tokenizer_json(kind).to_str())
        made = PreTrainedTokenizerFast(tokenizer_object=backend, **names)
    if chat_template is not None:
        found = sorted(set(_CONTROL.findall(chat_template)))
        made.add_tokens([AddedToken(t, special=True, normalized=False) for t in found], special_tokens=True)
        made.chat_template = chat_template
    return made


def names_for(source: str) -> dict[str, str]:
    bos, eos = next((bos, eos) for mark, bos, eos in NAMES if mark in source)
    return {"bos_token": bos, "eos_token": eos}


def made_for(source: str, kind: str = "bytes", **more: Any) -> Rendering:
    """A template with a tokenizer that has its control tokens, as a run prepares them."""
    if "conversations" in more:
        more["reasoning"] = share_with_reasoning(more.pop("conversations"))
    names = names_for(source)
    if kind in SENTENCEPIECE:
        names = {key: value for key, value in names.items() if value in ("<s>", "</s>")}
    # a preset adds tokens, an own template leaves the tokenizer as it is
    make = make_tokenizer if "template" in more else _tokenizer_for
    return prepare_rendering(make(kind, source, **names), now=NOW, **more)


@lru_cache(maxsize=8)
def _shared(kind: str, controls: str, **names: str) -> Any:
    return make_tokenizer(kind, controls, **names)


def _tokenizer_for(kind: str, source: str, **names: str) -> Any:
    """A tokenizer for this template; templates of the same control tokens share what is large in it."""
    made = copy(_shared(kind, controls_of(source), **names))
    made.chat_template = source
    return made


def controls_of(source: str) -> str:
    """The control tokens that a template writes."""
    return " ".join(sorted(set(_CONTROL.findall(source))))
