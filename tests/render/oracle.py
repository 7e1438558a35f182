"""What must hold of every accepted turn, found out with transformers alone.

Nothing of imprint's rendering is used here but what a saved model carries as well: the tokenizer,
the template's source, the options that became its defaults, and the stop set.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from typing import Any

from imprint.data.conversation import Conversation, Message
from imprint.render.resolve import Rendering
from imprint.render.turns import Turn
from render.dialogues import MARKS, Row

_THOUGHT = re.compile(
    r"(?:<(think|thinking|thought|reasoning|seed:think)>|<\|START_THINKING\|>|\[THINK\]"
    r"|Here are my reasoning steps:)\s*$"
)
_HTML = ("&#34;", "&#39;", "&quot;", "&lt;", "&gt;", "&amp;")
_INLINE = re.compile(r"\s*<think>(.*?)</think>(.*)", re.DOTALL)
_CLOSING = (
    "</think>", "</thinking>", "</thought>", "</reasoning>", "</seed:think>", "<|END_THINKING|>", "[/THINK]",
    "[BEGIN FINAL RESPONSE]",
)  # fmt: skip


def assert_sound(turn: Turn, conversation: Conversation, rendering: Rendering) -> None:
    """AssertionError, with what is wrong, unless a complete turn is what a server would ask for and get.

    The prompt is what a server feeds and holds what it should; prompt and completion are the
    beginning of the template's own rendering (where that holds the reply's reasoning); the stop is
    trained, is the last id, and no stop stands before it; the reply with its thought and its calls
    is trained at its weight, and no word of a user, a system or a tool; no BOS stands where the
    rendering has none.
    """
    tokenizer = rendering.encoder.tokenizer
    message = conversation.messages[turn.turn]
    served = _served(turn, conversation, rendering)
    assert served is not None, "the prompt is not what a server feeds"
    prompt, full, messages = served
    _check_weights(turn, conversation, message)
    trained = turn.completion.tolist()
    assert trained[-1] in rendering.stop_ids, "the stop is not trained"
    assert not set(trained[:-1]) & set(rendering.stop_ids), "there is a stop before the end"
    completion = _decode(tokenizer, trained)
    for mark in MARKS:
        assert mark not in completion or mark in _words(message), f"a prompt's text is trained: {mark}"
    row = json.dumps([[_words(m) for m in conversation.messages], conversation.tools])
    for escape in _HTML:  # Markup + text escapes the text
        assert escape not in prompt + completion or escape in row, f"HTML is escaped: {escape}"
    _check_context(conversation, turn.turn, prompt)
    _check_reply(tokenizer, message, prompt, completion)
    ids = turn.prompt.tolist() + trained
    if turn.case == "prefix":
        _check_beginning(tokenizer, ids, full)
    elif turn.case == "rerendered":  # the history of the prompt is another one than that of the rendering
        bare: list[Row] = [_without_thoughts(message) for message in messages]
        ask = _apply(rendering, bare[:-1], conversation.tools, True)[1]
        full = _apply(rendering, [*bare[:-1], messages[-1]], conversation.tools, False)[1]
        assert full.startswith(ask), "without thoughts, too, the prompt is not the rendering's beginning"
        assert _as_decoded(tokenizer, full[len(ask) :]).startswith(completion.strip()), "its end is another"
    else:
        bos = tokenizer.bos_token_id
        assert bos is None or bos not in trained[:-1], "there is a BOS in the reply"
        _check_thought(tokenizer, message, prompt, completion, full)
        if full.startswith(prompt) and _shows_thought(message, full):
            _check_beginning(tokenizer, ids, full)  # the white space around the thought too


def _shows_thought(message: Message, full: str) -> bool:
    thought = (thought_of(message)[0] or "").strip()
    return thought != "" and any(f"{thought}{gap}{tag}" in full for tag in _CLOSING for gap in ("", "\n"))


def _served(
    turn: Turn, conversation: Conversation, rendering: Rendering
) -> tuple[str, str, list[Row]] | None:
    """(the prompt's text, the rendering with the reply, its messages) of a server that feeds the turn's prompt.

    A server gives contents as texts, or as parts to templates that walk over them; and arguments of
    calls as objects, or as they came to templates that glue them to a text.
    """
    wanted = turn.prompt.tolist()
    made = rendering.template.inputs(conversation.messages)
    form = rendering.template.for_tools(conversation.tools).form
    stated = (form.parts, form.text_arguments)  # the prompt of a first reply holds no call: it fits both
    for typed, as_text in dict.fromkeys((stated, *product((False, True), repeat=2))):
        messages: list[Row] = [*as_openai(conversation.messages, typed, as_text, made)[: turn.turn + 1]]
        try:
            ids, text = _apply(rendering, messages[:-1], conversation.tools, True)
            full = _apply(rendering, messages, conversation.tools, False)[1] if ids == wanted else ""
        except Exception:  # a stranger's program: it may raise anything
            continue
        if ids == wanted:
            return text, full, messages
    return None


def _apply(
    rendering: Rendering, messages: Sequence[Row], tools: Sequence[Row], ask: bool
) -> tuple[list[int], str]:
    """(ids of a prompt, else none; the text) that transformers gives for these messages."""
    apply = rendering.encoder.tokenizer.apply_chat_template
    template = rendering.template.for_tools(tools)
    given: Any = {
        **template.options,
        "tools": openai_tools(tools) or None,
        "chat_template": template.source,
        "add_generation_prompt": ask,
    }
    text = apply(messages, tokenize=False, **given)
    return (apply(messages, tokenize=True, return_dict=False, **given) if ask else []), text


def _without_thoughts(message: Row) -> Row:
    """An earlier message without its reasoning, and without the text beside a call, which Harmony takes for one."""
    kept = {key: value for key, value in message.items() if key not in ("reasoning_content", "thinking")}
    return {**kept, "content": ""} if "tool_calls" in kept else kept


def openai_tools(tools: Sequence[Row]) -> list[Row]:
    return [tool if "function" in tool else {"type": "function", "function": tool} for tool in tools]


def as_openai(
    messages: Sequence[Message], typed: bool = False, as_text: bool = False, made: Sequence[Row] = ()
) -> list[dict[str, Any]]:
    """The messages as a server hands them to a template: OpenAI's form, with arguments as objects.

    Every call has an id, and every result the id and the name of its call. Any id will do where the
    row has none: those that imprint made are taken, from the same messages in `made`.
    """
    out: list[dict[str, Any]] = []
    waiting: list[dict[str, Any]] = []
    for number, message in enumerate(messages):
        item: dict[str, Any] = {"role": message.role, "content": message.content}
        if typed:
            item["content"] = [{"type": "text", "text": message.content}]
        if message.reasoning is not None:
            item |= {"reasoning_content": message.reasoning, "thinking": message.reasoning}
        if message.tool_calls:
            item["tool_calls"] = waiting = [
                {**call, "function": {**call["function"], "arguments": _arguments(call, as_text)}}
                for call in message.tool_calls
            ]
            waiting = list(waiting)
            for i, call in enumerate(waiting):
                if not call.get("id") and made:
                    call["id"] = made[number]["tool_calls"][i]["id"]
        item |= {
            key: value for key in ("name", "tool_call_id") if (value := getattr(message, key)) is not None
        }
        if message.role == "tool" and waiting:
            named = [call for call in waiting if call.get("id") == message.tool_call_id]
            call = (named or waiting)[0]
            waiting.remove(call)
            item.setdefault("name", call["function"]["name"])
            if "id" in call:
                item.setdefault("tool_call_id", call["id"])
        out.append(item)
    return out


def thought_of(message: Message) -> tuple[str | None, str]:
    """(reasoning, answer) of a reply whose reasoning stands apart, or in tags before the answer."""
    inline = _INLINE.fullmatch(message.content)
    if message.reasoning is not None or inline is None:
        return message.reasoning, message.content
    return inline[1].strip() or None, inline[2]


def _arguments(call: Row, as_text: bool) -> Any:
    given = call["function"].get("arguments")
    if not as_text:
        return arguments_of(call)
    return given if isinstance(given, str) else json.dumps(given, ensure_ascii=False)


def arguments_of(call: Row) -> Any:
    """A call's arguments as an object, where they are one or the JSON text of one."""
    given = call["function"].get("arguments")
    if not isinstance(given, str):
        return given
    try:
        found = json.loads(given)
    except ValueError:
        return given
    return found if isinstance(found, dict) else given


def _check_context(conversation: Conversation, until: int, prompt: str) -> None:
    """The prompt holds what stands before the reply.

    But templates may drop earlier thoughts, and what was called for earlier questions.
    """
    asked = max((i for i, m in enumerate(conversation.messages[:until]) if m.role == "user"), default=0)
    for tool in openai_tools(conversation.tools):
        assert tool["function"]["name"] in prompt, "the prompt lacks a tool"
    for i, earlier in enumerate(conversation.messages[:until]):
        if earlier.role in ("user", "system"):
            assert earlier.content.strip() in prompt, f"the prompt lacks what a {earlier.role} said"
        elif earlier.role == "tool" and i > asked:  # results that are JSON may be written anew
            words = re.findall(r"[^\W_]+", earlier.content)
            escaped = (word if word in prompt else json.dumps(word)[1:-1] for word in words)
            assert all(word in prompt for word in escaped), "the prompt lacks a tool's result"


def _check_weights(turn: Turn, conversation: Conversation, message: Message) -> None:
    weight = conversation.weight * (1.0 if message.weight is None else message.weight)
    assert message.role == "assistant", "a message that is no reply is trained"
    assert weight != 0, "a reply of weight 0 is trained"
    assert all(abs(float(w) - weight) < 1e-6 for w in turn.weight), "a token is not trained at its weight"


def _check_reply(tokenizer: Any, message: Message, prompt: str, completion: str) -> None:
    """The reply's text, its thought, and the leaves of its calls' arguments are trained."""
    reasoning, answer = thought_of(message)
    decoded = [_as_decoded(tokenizer, part) for part in (answer, reasoning or "")]
    assert _bare(decoded[0] + decoded[1]) == _bare(answer + (reasoning or "")), (
        "the tokenizer loses a part of the reply"
    )
    assert decoded[0] in completion, "the reply is not trained"
    before = completion.rpartition(decoded[0])[0] if decoded[0] else completion
    assert decoded[1] in before, "the thought is not trained"
    for call in message.tool_calls:
        assert call["function"]["name"] in completion, "a tool call is not trained"
        for leaf in _leaves(arguments_of(call)):
            shown = (leaf, json.dumps(leaf)[1:-1], json.dumps(leaf, ensure_ascii=False)[1:-1])
            decoded = {_as_decoded(tokenizer, one) for one in shown}
            assert any(one in completion for one in decoded), "a tool call's argument is not trained"


def _bare(text: str) -> str:
    """The text without what tokenizers are free to change: white space, and how characters are composed."""
    return "".join(unicodedata.normalize("NFKC", text).split())


def _leaves(value: Any) -> Iterator[str]:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield key
            yield from _leaves(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _leaves(inner)
    elif isinstance(value, str):
        yield value
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield str(value)


def _check_beginning(tokenizer: Any, ids: list[int], full: str) -> None:
    """Prompt and completion are the beginning of the rendering: as ids, or (cut elsewhere) as text.

    The stop may be one that the template does not write.
    """
    whole = tokenizer(full, add_special_tokens=False).input_ids
    if whole[: len(ids)] == ids:
        return
    bos, text = tokenizer.bos_token_id, _decode(tokenizer, whole)
    if bos is not None:
        assert ids[:-1].count(bos) <= whole.count(bos), "there is a BOS that the rendering lacks"
    if text.startswith(_decode(tokenizer, ids)):
        return
    before = _decode(tokenizer, ids[:-1])
    added = ids[-1] == tokenizer.eos_token_id and text.startswith(before) and not text[len(before) :].strip()
    assert added, "it is another text than the template's"


def _check_thought(tokenizer: Any, message: Message, prompt: str, completion: str, full: str) -> None:
    """Behind an open thought: the reasoning, one closing tag, the reply, and its end as in the rendering."""
    reasoning, answer = thought_of(message)
    if _THOUGHT.search(prompt):
        assert reasoning, "an open thought is not continued"
        tags = {_as_decoded(tokenizer, tag) for tag in _CLOSING}
        used = [tag for tag in tags for _ in range(completion.count(tag))]
        assert len(used) == 1, "the thought is not closed once"
        thought, completion = completion.split(used[0])
        assert thought.strip() == _as_decoded(tokenizer, reasoning), "the thought is another text"
    if message.tool_calls:
        return
    content = _as_decoded(tokenizer, answer)
    before, _, end = completion.rpartition(content)
    assert not before.strip(), "something stands before the reply"
    written = _as_decoded(tokenizer, full).rpartition(content)[2]
    assert written.startswith(end) or written == end.removesuffix(tokenizer.eos_token or "").rstrip(), (
        "its end is another"
    )


def _words(message: Message) -> str:
    return " ".join((message.content, message.reasoning or "", json.dumps(message.tool_calls)))


def _decode(tokenizer: Any, ids: list[int]) -> str:
    return str(tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))


def _as_decoded(tokenizer: Any, text: str) -> str:
    """The text as it reads after the tokenizer, without the space around it."""
    return _decode(tokenizer, tokenizer(text.strip(), add_special_tokens=False).input_ids).strip()
