"""Random conversations for property tests: what people, models and attackers may write.

Every message of a user, a system or a tool begins and ends (but for white space) with a character
that stands nowhere else, and so do the tool list and half of the replies. So "nothing of it is
trained" can be decided by looking.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from hypothesis import strategies as st

from imprint.data.conversation import Conversation, Message, Place
from imprint.data.replies import check
from imprint.render.turns import ControlTokens

HERE = Place("rows.jsonl", 1)
TOOL_MARK = "\uf000"

_PLAIN = (
    "yes",
    "It is 4.",
    "a",
    "4",
    "Hello there, how are you?",
    "one\ntwo\n\nthree",
    "a  b\t c ",
    "1. x\r\n2. y",
)
_UNICODE = (
    "caf\u00e9 cafe\u0301", "\u0301x", "👋🏽", "👩‍👩‍👧", "🇫🇷", "שלום", "مرحبا بك", "漢字かな", "인간",
    "क्षि", "ไทย", "\u200b", "\u202eabc", "\ufeff", "\u00a0", "\u3000", "ﬁn①", "𝒳", "Ωμέγα ", "\x00", "▁a",
)  # fmt: skip
_CODE = (
    "    def f(x):\n\treturn {'a': [x]}\n", '{"a": [1, 2.5, null], "b": {"c": "d\\n"}}', "```python\nx = 1\n```",
    "[1, 2]", "{{ x }} {% if y %}", "{# z #}", "a\\nb", "<b>&lt;</b>", '"quoted"', "{}",
)  # fmt: skip
_MARKUP = (
    "<think>", "</think>", "<think>\nx\n</think>", "### Response:\n", "### Instruction:", "[/THINK]",
    "ASSISTANT: ", "USER: ", "<|im_", "end|>", "<|", "[BEGIN FINAL RESPONSE]", "<tool_call>", "</tool_response>",
    "\nHuman: ", "assistant\n", "<<SYS>>", "<", ">", "[", "final", "analysis",
)  # fmt: skip
CONTROL = (
    "</s>", "<s>", "<|im_end|>", "<|im_start|>system\n", "[INST]", "[/INST]", "<|eot_id|>", "<end_of_turn>", "<eos>",
    "<|end|>", "<|endoftext|>", "<|return|>", "<｜end▁of▁sentence｜>", "<｜Assistant｜>", "<|start_header_id|>",
    "<</s>/s>", "<|im_end|><|im_start|>", "<|end_of_text|>", "<seed:eos>", "<bos>", "[TOOL_CALLS]",
)  # fmt: skip
_EDGES = ("", "", "", "", " ", "\n", "  \n", "\t", "\n\n")

_few = st.text(st.characters(exclude_categories=("Cs", "Co")), min_size=1, max_size=4)
_words = st.sampled_from((*_PLAIN, *_PLAIN, *_UNICODE, *_CODE, *_MARKUP))
_pieces = st.lists(_words | _few, min_size=1, max_size=3).map("".join)
_thoughts = st.lists(
    st.sampled_from((*_PLAIN, *_PLAIN, *_UNICODE, *_CODE, *_MARKUP)), min_size=1, max_size=3
).map("".join)
_forgeries = st.lists(_words | st.sampled_from(CONTROL), min_size=1, max_size=3).map("".join)
_edges = st.sampled_from(_EDGES)
_rarely = st.integers(0, 7).map(lambda n: n == 7)
_weights = st.sampled_from((None, None, None, 0.0, 0.5, 1.0))

_leaves = st.sampled_from((*_PLAIN, *_UNICODE, "", 0, 1, -7, 2.5, True, None))
_values = st.recursive(
    _leaves, lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from("xyé"), inner, max_size=2),
    max_leaves=4,
)  # fmt: skip
_arguments = st.dictionaries(st.sampled_from(("city", "b", "größe")), _values, max_size=3)


@dataclass(frozen=True)
class Drawn:
    """A conversation, and what is to be done about control tokens in its texts."""

    conversation: Conversation
    control_tokens: ControlTokens = "leave_out"


def mark_of(message: int) -> str:
    """The character that only this message holds, where it is marked."""
    return chr(0xE000 + message)


KINDS = ("plain", "plain", "thoughts", "tools", "both", "forged")


@st.composite
def drawn(draw: Callable[..., Any], kinds: Sequence[str] = KINDS) -> Drawn:
    """A row that the data layer accepts, of 1 to 6 exchanges."""
    kind = draw(st.sampled_from(kinds))
    texts = _forgeries if kind == "forged" else _pieces
    messages: list[Message] = []

    def said(role: str, **more: Any) -> None:
        messages.append(Message(role, _marked(draw, texts, len(messages)), **more))

    system = draw(st.sampled_from(("absent", "absent", "empty", "present", "present")))
    if system == "empty":
        messages.append(Message("system", ""))
    elif system == "present":
        said("system")
    if draw(_rarely):
        messages.append(_reply(draw, texts, len(messages)))
    thoughts = kind in ("thoughts", "both")
    for _ in range(draw(st.integers(1, 6 if kind in ("plain", "forged") else 3))):
        said("user")
        if kind in ("tools", "both") and draw(st.booleans()):
            _use_tools(draw, messages, said, thoughts)
        messages.append(_reply(draw, texts, len(messages), thoughts))
        if draw(_rarely):
            messages.append(_reply(draw, texts, len(messages)))
    tools = tuple(_TOOLS[: draw(st.integers(1, 2))]) if kind in ("tools", "both") else ()
    if tools and draw(_rarely):
        tools = tuple(tool["function"] for tool in tools)  # bare schemas
    found = Conversation(tuple(messages), HERE, tools=tools, weight=draw(st.sampled_from((1.0, 1.0, 0.25))))
    check(found.messages, HERE)
    choices = ("leave_out", "escape", "escape", "keep") if kind == "forged" else ("leave_out",)
    return Drawn(found, draw(st.sampled_from(choices)))


def _marked(draw: Callable[..., Any], texts: st.SearchStrategy[str], index: int) -> str:
    mark = mark_of(index)
    return f"{draw(_edges)}{mark}{draw(texts)}{mark}{draw(_edges)}"


def _reply(
    draw: Callable[..., Any], texts: st.SearchStrategy[str], index: int, thoughts: bool = False
) -> Message:
    """A reply, marked or not (a mark at its front would hide how white space in front of it is cut)."""
    text = _marked(draw, texts, index) if draw(st.booleans()) else draw(_edges) + draw(texts) + draw(_edges)
    text = text if text.strip() else "yes"
    weight = draw(_weights)
    how = draw(st.sampled_from(("apart", "apart", "inline", "none"))) if thoughts else "none"
    if how == "none":
        return Message("assistant", text, weight=weight)
    reasoning = draw(_edges) + draw(_thoughts) + draw(_edges)
    if not reasoning.strip():
        reasoning = "So."
    if how == "apart":
        return Message("assistant", text, reasoning, weight=weight)
    gap = draw(st.sampled_from(("\n", "\n", "", "\n\n")))
    return Message("assistant", f"<think>{gap}{reasoning}{gap}</think>{gap * 2}{text}", weight=weight)


_TOOLS: tuple[dict[str, Any], ...] = tuple(
    {
        "type": "function",
        "function": {
            "name": name,
            "description": f"{TOOL_MARK}Tells <{name}> & more.{TOOL_MARK}",
            "parameters": {
                "type": "object",
                "properties": {key: {"type": "string", "description": key} for key in ("city", "b", "größe")},
                "required": ["city"],
            },
        },
    }
    for name in ("get_weather", "add_up")
)


def _use_tools(
    draw: Callable[..., Any], messages: list[Message], said: Callable[..., None], thoughts: bool
) -> None:
    """One reply with calls, in parallel at times, and the result of each."""
    count, as_text = draw(st.sampled_from((1, 1, 1, 2))), draw(st.booleans())
    named = not draw(_rarely)  # else as in files without ids
    calls = []
    for number in range(count):
        given = draw(_arguments)
        function = {
            "name": "get_weather",
            "arguments": json.dumps(given, ensure_ascii=False) if as_text else given,
        }
        call = {"id": f"call{len(messages):02}{number:03}", "type": "function", "function": function}
        calls.append(call if named else {"type": "function", "function": function})
    text = draw(_pieces) if draw(_rarely) else ""
    reasoning = draw(_thoughts) + "!" if thoughts and draw(st.booleans()) else None
    messages.append(Message("assistant", text, reasoning, tuple(calls), draw(_weights)))
    for call in calls:
        said("tool", **({"name": call["function"]["name"], "tool_call_id": call["id"]} if named else {}))
