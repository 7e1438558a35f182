"""The chat template: which text stands for a conversation, and where a reply in it ends."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import cached_property, lru_cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2
from jinja2 import meta

from imprint.data.conversation import Message
from imprint.errors import TemplateError, nearest
from imprint.render.form import PLAIN, Form, as_template_inputs, as_tools
from imprint.render.limits import LimitExceeded, limited
from imprint.render.sandbox import Sandbox

# preset → the special tokens that its text uses beside the tokenizer's own bos and eos
PRESETS: dict[str, tuple[str, ...]] = {
    "chatml": ("<|im_start|>", "<|im_end|>"),
    "llama2": (),
    "llama3": ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
    "mistral": (),
    "gemma": ("<start_of_turn>", "<end_of_turn>"),
    "vicuna": (),
    "zephyr": (),
    "alpaca": (),
    "plain": (),
}

# the variables by which templates think or do not; tried in this order (DESIGN.md, case 2)
SWITCHES = ("enable_thinking", "thinking")

# what every rendering is given; no option may stand for it
_GIVEN = frozenset({"messages", "tools", "documents", "add_generation_prompt"})

_PROBE = "Qx7 probe"  # stands for a reply when the template is asked how it ends one
_NO_PARAMETERS = {"type": "object", "properties": {}, "required": []}
PROBE_TOOLS: tuple[dict[str, Any], ...] = (
    {
        "type": "function",
        "function": {"name": "qx7_probe", "description": "Probes.", "parameters": _NO_PARAMETERS},
    },
)


class Refused(Exception):
    """The template refuses this conversation: it raised, or ran beyond its limits."""


@dataclass(frozen=True)
class Template:
    """A chat template with everything it depends on, so that rendering is a pure function.

    `special` are the tokenizer's named tokens (bos_token, eos_token …), `options` the
    user's variables, `now` the date that `strftime_now` shows, `form` how it takes messages,
    `tool_use` the template for conversations with tools where the tokenizer brings one apart.
    """

    source: str
    name: str
    special: Mapping[str, str]
    now: datetime
    options: Mapping[str, Any] = field(default_factory=dict)
    form: Form = PLAIN
    tool_use: Template | None = None

    def for_tools(self, tools: Sequence[Mapping[str, Any]]) -> Template:
        """The template that a server takes for a conversation with these tools."""
        return self.tool_use if tools and self.tool_use is not None else self

    def inputs(self, messages: Sequence[Message]) -> list[dict[str, Any]]:
        """The messages as this template takes them: what `render` is given."""
        return as_template_inputs(messages, self.form)

    @cached_property
    def _compiled(self) -> jinja2.Template:
        try:
            return _compile(self.source, self.now)
        except (jinja2.TemplateSyntaxError, SyntaxError, RecursionError) as error:
            line = getattr(error, "lineno", None)
            raise TemplateError(
                "the chat template is not valid Jinja",
                where=f"{self.name}:{line}" if line else self.name,
                found=str(error),
                fix="correct the template, or choose another: template=chatml",
            ) from error

    @cached_property
    def variables(self) -> frozenset[str]:
        """Every name that the template takes from outside: what an option can set.

        Not those that it sets itself before it reads them, loop variables among them: an option of such a
        name would have no effect.
        """
        names = meta.find_undeclared_variables(Sandbox(self.now).parse(self.source))
        more = self.tool_use.variables if self.tool_use else frozenset()
        return (frozenset(names) | more) - _GIVEN

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] = (),
        add_generation_prompt: bool = False,
    ) -> str:
        """The text of `messages`, as transformers' `apply_chat_template` gives it; Refused where it raises."""
        try:
            with limited():
                return self._compiled.render(
                    {
                        **self.special,
                        **self.options,
                        "messages": messages,
                        "tools": as_tools(tools) or None,
                        "documents": None,
                        "add_generation_prompt": add_generation_prompt,
                    }
                )
        except LimitExceeded as error:
            raise Refused(str(error)) from error
        except TemplateError:
            raise
        except jinja2.TemplateError as error:
            raise Refused(f"the template refuses it: {error}"[:200]) from error
        except Exception as error:  # whatever a stranger's program does wrong is its refusal
            raise Refused(f"the template fails: {type(error).__name__}: {error}"[:200]) from error

    @cached_property
    def ending(self) -> str:
        """What the template writes after the text of a last reply (`<|im_end|>\\n`)."""
        probe = self.inputs([Message("user", "Qx7 question"), Message("assistant", _PROBE)])
        try:
            try:
                text = self.render(probe)
            except Refused:  # some are made for conversations with tools alone
                text = self.render(probe, PROBE_TOOLS)
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

    @cached_property
    def opening(self) -> str | None:
        """What the template writes between a prompt and a plain reply (Harmony's channel); None if P begins no F."""
        asked = self.inputs([Message("user", "Qx7 question"), Message("assistant", _PROBE)])
        for tools in ((), PROBE_TOOLS):
            try:
                prompt = self.render(asked[:1], tools, add_generation_prompt=True)
                full = self.render(asked, tools)
            except Refused:
                continue
            return full[len(prompt) :].rpartition(_PROBE)[0] if full.startswith(prompt) else None
        return None

    @cached_property
    def offers_tools(self) -> bool:
        """Whether a prompt shows the tools that a conversation has."""
        try:
            prompt = self.render(
                self.inputs([Message("user", "Qx7")]), PROBE_TOOLS, add_generation_prompt=True
            )
        except Refused:
            return False
        return PROBE_TOOLS[0]["function"]["name"] in prompt

    def with_options(self, options: Mapping[str, Any]) -> Template:
        tool_use = self.tool_use.with_options(options) if self.tool_use else None
        return replace(self, options={**self.options, **options}, tool_use=tool_use)

    @cached_property
    def serving_source(self) -> str:
        """The template to save with the model: the user's options become its defaults."""
        # each line ends with a newline, which Jinja removes behind a tag: the source still begins a line
        lines = [
            f"{{%- if {key} is not defined %}}{{%- set {key} = {_literal(value)} %}}{{%- endif %}}\n"
            for key, value in self.options.items()
        ]
        return "".join(lines) + self.source

    @property
    def serving(self) -> str | dict[str, str]:
        """What a tokenizer is to hold as its chat template, so that a server renders as we did."""
        if self.tool_use is None:
            return self.serving_source
        return {"default": self.serving_source, "tool_use": self.tool_use.serving_source}


@lru_cache(maxsize=16)  # the same source is asked with several options and forms
def _compile(source: str, now: datetime) -> jinja2.Template:
    return Sandbox(now).from_string(source)


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
    """(source, name) for a recipe's `template`: `auto`, a preset's name, a .jinja file, or one of the tokenizer's.

    `own` is what the tokenizer brings: a template, several by name, or None. A name of these that is
    a preset's or a file's, too, means the preset or the file.
    """
    several = own if isinstance(own, Mapping) else {}
    if spec == "auto":
        return _own_template(own)
    if spec in PRESETS:
        source = (files("imprint.render") / "presets" / f"{spec}.jinja").read_text(encoding="utf-8")
        return source, f"the preset {spec}"
    path = Path(spec)
    if path.is_file():
        return path.read_text(encoding="utf-8"), str(path)
    if spec in several:
        return several[spec], f"the tokenizer's template `{spec}`"
    guess = nearest(spec, [*PRESETS, *several])
    of_tokenizer = f", one of the tokenizer's ({', '.join(several)})" if several else ""
    raise TemplateError(
        f"there is no template {spec!r}",
        where=f"template={spec}",
        expected=f"auto, a preset ({', '.join(PRESETS)}){of_tokenizer} or the path of a .jinja file",
        fix=f"template={guess}" if guess else "check the path",
    )


def _own_template(own: str | Mapping[str, str] | None) -> tuple[str, str]:
    """The template that a server takes from the tokenizer by itself; TemplateError where there is none."""
    if isinstance(own, Mapping) and own and not own.get("default"):
        raise TemplateError(
            "the tokenizer has several chat templates and no default"
            if len(own) > 1
            else "the tokenizer has one chat template by name and no default",
            where="template=auto",
            found=", ".join(own),
            expected="one of them, chosen by its name: a server would have to be told, too",
            fix=f"template={next(iter(own))}" + (" (or another of them)" if len(own) > 1 else ""),
        )
    source = own.get("default") if isinstance(own, Mapping) else own
    if not source:
        raise TemplateError(
            "the tokenizer has no chat template",
            expected="a template that says how a conversation becomes text",
            fix=f"choose one: template=chatml (also {', '.join([*PRESETS][1:])}), or template=FILE.jinja",
        )
    return source, "the tokenizer's own template"
