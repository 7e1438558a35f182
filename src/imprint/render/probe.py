"""What a template does, found out by asking it: how it takes messages, where it opens thoughts, how calls end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from imprint.data.conversation import Conversation, Message
from imprint.render.faithful import has_escapes, reply_fault
from imprint.render.form import Form
from imprint.render.split import find_thought, split_reply, without_stop
from imprint.render.template import PROBE_TOOLS, SWITCHES, Refused, Template
from imprint.render.tokens import Encoder

_QUESTION, _ANSWER, _VALUE = "Qx7 question", "Qx7 answer", "Qx7 value"
_REASONING = "Qx7 reasoning"


def _call(arguments: dict[str, Any]) -> dict[str, Any]:
    return {
        "id": "probe0000",
        "type": "function",
        "function": {"name": PROBE_TOOLS[0]["function"]["name"], "arguments": arguments},
    }


def find_form(template: Template) -> Form:
    """How the template takes contents and arguments; texts and objects where it takes either."""
    plain = [Message("user", _QUESTION), Message("assistant", _ANSWER)]
    form = Form()
    for parts in (False, True):
        asked = replace(template, form=Form(parts=parts))
        seen = _rendered(asked, plain) or _rendered(asked, plain, PROBE_TOOLS) or ""
        if _QUESTION in seen and _ANSWER in seen:
            form = Form(parts=parts)
            break
    calling = [plain[0], Message("assistant", "", tool_calls=(_call({"qx7": _VALUE}),))]
    asked = replace(template, form=form)
    seen = _rendered(asked, calling, PROBE_TOOLS) or ""
    # Python's way to print an object, and what Jinja makes of quotes beside a text marked as safe
    if _VALUE in seen and "{'qx7'" not in seen and not has_escapes(seen):
        return form
    as_text = replace(form, text_arguments=True)
    seen = _rendered(replace(template, form=as_text), calling, PROBE_TOOLS) or ""
    return as_text if _VALUE in seen and not has_escapes(seen) else form


def _rendered(template: Template, messages: Sequence[Message], tools: Any = ()) -> str | None:
    try:
        return template.render(template.inputs(messages), tools)
    except Refused:
        return None


def stop_of_calls(template: Template, encoder: Encoder) -> str | None:
    """The token that ends a reply with tool calls: another one than elsewhere in Harmony (`<|call|>`)."""
    template = template.for_tools(PROBE_TOOLS)
    reply = Message("assistant", "", tool_calls=(_call({}),))
    completion = completion_of(template, encoder, reply, PROBE_TOOLS)
    if completion is None:
        return None
    spans = encoder.added_spans(completion)
    return completion[slice(*spans[-1])] if spans else None


def completion_of(template: Template, encoder: Encoder, reply: Message, tools: Any = ()) -> str | None:
    """What a model would have to write for `reply`; None where the template has no exact form for it."""
    messages = template.inputs([Message("user", _QUESTION), reply])
    try:
        prompt = template.render(messages[:1], tools, add_generation_prompt=True)
        full = template.render(messages, tools)
        completion, _ = split_reply(prompt, full, reply, template, encoder)
    except Refused:
        return None
    return None if reply_fault(without_stop(completion, template, encoder), reply) else completion


def choose_switch(template: Template, encoder: Encoder, reasoning: float) -> tuple[Template, str]:
    """The template with its own thinking switch set where its default does not fit the data, and a note.

    `reasoning` is the share of the conversations that hold any. What fits most of them is chosen.
    The choice becomes part of the template, and so the default of the saved model: it is then
    served in the context in which it was trained.
    """
    wanted = reasoning >= 0.5
    reply = Message("assistant", _ANSWER, reasoning=_REASONING if wanted else None)
    fits = completion_of(template, encoder, reply) is not None
    if (fits and wanted) or not (wanted or _leaves_thought_open(template)):
        return template, ""
    data = (
        f"{reasoning:.0%} of the conversations have reasoning" if reasoning else "the data has no reasoning"
    )
    others = "" if reasoning in (0, 1) else "; replies of the other kind may be left out"
    default = "by default the template leaves reasoning out" if wanted else "the template opens a thought"
    for key in SWITCHES:
        if key in template.options or key not in template.variables:
            continue
        other = template.with_options({key: wanted})
        if completion_of(other, encoder, reply) is not None:
            value = str(wanted).lower()
            return other, (
                f"{default} and {data}: {key}={value} is set, "
                f"for training and as the default of the saved model{others}"
            )
    return template, ""


def _leaves_thought_open(template: Template) -> bool:
    try:
        prompt = template.render(template.inputs([Message("user", _QUESTION)]), add_generation_prompt=True)
    except Refused:
        return False
    found = find_thought(prompt)
    return found is not None and not found.closed


def share_with_reasoning(conversations: Sequence[Conversation]) -> float:
    """The share of the conversations in which some reply has reasoning, apart or in tags."""
    count = sum(any(m.thought[0] for m in c.messages if m.role == "assistant") for c in conversations)
    return count / max(1, len(conversations))
