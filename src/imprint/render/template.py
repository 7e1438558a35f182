"""The chat template: which text stands for a conversation, and where a reply in it ends."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import cached_property
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2

from imprint.data.conversation import Message
from imprint.errors import TemplateError, nearest
from imprint.render.sandbox import CHARACTERS, LimitExceeded, Sandbox, time_limit

# preset → the special tokens that its text uses beside the tokenizer's own bos and eos
PRESETS: dict[str, tuple[str, ...]] = {
    "chatml": ("<|im_start|>", "<|im_end|>"),
    "llama2": (),
    "alpaca": (),
}

# switches by which templates open no thought; tried in this order (DESIGN.md, case 2)
SWITCHES: tuple[dict[str, Any], ...] = ({"enable_thinking": False}, {"thinking": False})

_PROBE = "Qx7 probe"  # stands for a reply when the template is asked how it ends one


class Refused(Exception):
    """The template refuses this conversation: it raised, or ran beyond its limits."""


@dataclass(frozen=True)
class Template:
    """A chat template with everything it depends on, so that rendering is a pure function.

    `special` are the tokenizer's named tokens (bos_token, eos_token …), `options` the
    user's variables, `now` the date that `strftime_now` shows.
    """

    source: str
    name: str
    special: Mapping[str, str]
    now: datetime
    options: Mapping[str, Any] = field(default_factory=dict)

    @cached_property
    def _compiled(self) -> jinja2.Template:
        try:
            return Sandbox(self.now).from_string(self.source)
        except jinja2.TemplateSyntaxError as error:
            raise TemplateError(
                "the chat template is not valid Jinja",
                where=f"{self.name}:{error.lineno}",
                found=str(error.message),
                fix="correct the template, or choose another: template=chatml",
            ) from error

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] = (),
        add_generation_prompt: bool = False,
    ) -> str:
        """The text of `messages`, as transformers' `apply_chat_template` gives it; Refused where it raises."""
        try:
            with time_limit():
                text = self._compiled.render(
                    **self.special,
                    messages=messages,
                    tools=list(tools) or None,
                    documents=None,
                    add_generation_prompt=add_generation_prompt,
                    **self.options,
                )
        except LimitExceeded as error:
            raise Refused(str(error) or "the template did not finish in time") from error
        except (jinja2.TemplateError, TypeError, ValueError, KeyError, RecursionError) as error:
            raise Refused(f"the template refuses it: {error}") from error
        if len(text) > CHARACTERS:
            raise Refused(f"the template makes a text of more than {CHARACTERS:,} characters")
        return text

    @cached_property
    def ending(self) -> str:
        """What the template writes after the text of a last reply (`<|im_end|>\\n`)."""
        question = {"role": "user", "content": "Qx7 question"}
        try:
            text = self.render([question, {"role": "assistant", "content": _PROBE}])
        except Refused as error:
            raise TemplateError(
                "the chat template cannot render a question and its answer",
                where=self.name,
                found=str(error),
                fix="choose another template: template=chatml, or a .jinja file",
            ) from error
        _, found, tail = text.rpartition(_PROBE)
        if not found:
            raise TemplateError(
                "the chat template does not show the reply",
                where=self.name,
                found=repr(text[-80:]),
                expected="a rendering that contains the assistant's text",
                fix="choose another template: template=chatml, or a .jinja file",
            )
        return tail

    def with_options(self, options: Mapping[str, Any]) -> Template:
        return replace(self, options={**self.options, **options})

    @cached_property
    def serving_source(self) -> str:
        """The template to save with the model: the user's options become its defaults."""
        lines = [
            f"{{%- if {key} is not defined %}}{{%- set {key} = {_literal(value)} %}}{{%- endif -%}}"
            for key, value in self.options.items()
        ]
        return "".join(lines) + self.source


def _literal(value: Any) -> str:
    """A JSON-like value written as a Jinja expression."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_literal(k)}: {_literal(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_literal, value)) + "]"
    if value is None or isinstance(value, bool):
        return {None: "none", True: "true", False: "false"}[value]
    return repr(value)


def find_template(spec: str, own: str | Mapping[str, str] | None) -> tuple[str, str]:
    """(source, name) for a recipe's `template`: `auto`, a preset's name, or a .jinja file.

    `own` is what the tokenizer brings: a template, several by name, or None.
    """
    if spec == "auto":
        if isinstance(own, Mapping):
            own = own.get("default") or next(iter(own.values()), None)
        if not own:
            raise TemplateError(
                "the tokenizer has no chat template",
                expected="a template that says how a conversation becomes text",
                fix="choose one: template=chatml (also llama2, alpaca), or template=FILE.jinja",
            )
        return own, "the tokenizer's own template"
    if spec in PRESETS:
        source = (files("imprint.render") / "presets" / f"{spec}.jinja").read_text(encoding="utf-8")
        return source, f"the preset {spec}"
    path = Path(spec)
    if path.is_file():
        return path.read_text(encoding="utf-8"), str(path)
    guess = nearest(spec, PRESETS)
    raise TemplateError(
        f"there is no template {spec!r}",
        where=f"template={spec}",
        expected=f"auto, a preset ({', '.join(PRESETS)}) or the path of a .jinja file",
        fix=f"template={guess}" if guess else "check the path",
    )


def as_template_input(message: Message) -> dict[str, Any]:
    """The message as templates expect it: only the keys that it has."""
    out: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.reasoning is not None:
        # two names for the same thing: Qwen, DeepSeek and GLM read the first, Harmony the second
        out["reasoning_content"] = out["thinking"] = message.reasoning
    if message.tool_calls:
        out["tool_calls"] = list(message.tool_calls)
    if message.name is not None:
        out["name"] = message.name
    if message.tool_call_id is not None:
        out["tool_call_id"] = message.tool_call_id
    return out


OPEN_THOUGHT = re.compile(
    r"(?P<open><(?P<name>think|thinking|thought|reasoning)>|<\|START_THINKING\|>|\[THINK\])\s*"
    r"(?P<close>(?:</(?P=name)>|<\|END_THINKING\|>|\[/THINK\])\s*)?$"
)
CLOSING = {"<|START_THINKING|>": "<|END_THINKING|>", "[THINK]": "[/THINK]"}


def closing_tag(opening: str) -> str:
    """The tag that ends a thought opened by `opening`."""
    return CLOSING.get(opening) or "</" + opening[1:]
