"""What a server holds: an engine, and how each model that it offers by name is spoken to."""

from __future__ import annotations

import json
import time
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import Any, Literal
from weakref import WeakSet

from imprint.errors import nearest
from imprint.render.resolve import Rendering
from imprint.render.template import Template
from imprint.serve.engine import Ask, Engine, Stream
from imprint.serve.problems import Problem, ended
from imprint.serve.reader import ReplyForm, learn_form
from imprint.serve.token_text import TokenNames

ControlTokens = Literal["refuse", "escape", "keep"]
_MOST_FORMS = 64


@dataclass(frozen=True)
class Hosted:
    """A model by its name: `adapter` is the engine's name for it, `parent` the model that it is an adapter of."""

    name: str
    rendering: Rendering
    adapter: str = ""
    parent: str | None = None
    folder: Path | None = None
    control_tokens: ControlTokens = "refuse"

    def template(self, options: Mapping[str, Any] | None, tools: Any = ()) -> Template:
        """The template for a conversation with these variables; Problem for one that it does not read."""
        made = self.rendering.template
        for key in options or ():
            if key in made.variables and key not in made.special:
                continue
            own = sorted(made.variables - set(made.special))
            like = nearest(key, own)
            raise Problem(
                f"the chat template has no variable `{key}`"
                + (f"; the nearest is `{like}`" if like else f"; it reads {', '.join(own) or 'none'}"),
                param=f"chat_template_kwargs.{key}",
                code="unknown_parameter",
            )
        return (made.with_options(options) if options else made).for_tools(tools)


@dataclass(frozen=True)
class Limits:
    """What a request may take: seconds of time, bytes of body, tokens of a reply where it names none."""

    seconds: float = 600.0
    bytes: int = 16 << 20
    reply: int = 4096


@dataclass
class Host:
    """The first model is the one that a request without a name gets."""

    engine: Engine
    models: tuple[Hosted, ...]
    limits: Limits = Limits()
    created: int = field(default_factory=lambda: int(time.time()))
    has_own_template: bool = True  # the first model's folder brings it
    stopping: bool = False  # no new requests are taken
    streams: WeakSet[Stream] = field(default_factory=WeakSet)  # under way
    _forms: OrderedDict[str, ReplyForm] = field(default_factory=OrderedDict)
    _names: dict[str, TokenNames] = field(default_factory=dict)
    _lock: Lock = field(default_factory=Lock)
    _ended: bool = False

    def find(self, name: str | None) -> Hosted:
        if name is None:
            return self.models[0]
        for served in self.models:
            if served.name == name:
                return served
        names = [served.name for served in self.models]
        raise Problem(
            f"there is no model {name!r}; this server has {', '.join(names)}",
            status=404,
            param="model",
            code="model_not_found",
        )

    def submit(self, ask: Ask) -> Stream:
        """Begin a generation; Full where too many wait, Problem 503 where all were ended."""
        if self._ended:
            raise ended("cancelled")
        stream = self.engine.submit(ask)
        self.streams.add(stream)
        return stream

    def cancel_all(self) -> None:
        """End what is under way: their clients are told that the server stops."""
        self._ended = True
        for stream in list(self.streams):
            stream.cancel()

    def form(self, served: Hosted, template: Template) -> ReplyForm:
        """How replies look that this template writes; learned once for each set of variables."""
        key = json.dumps([served.name, template.name, dict(template.options)], sort_keys=True)
        with self._lock:
            if key in self._forms:
                self._forms.move_to_end(key)
                return self._forms[key]
        learned = learn_form(template, served.rendering.encoder)
        with self._lock:
            self._forms[key] = learned
            while len(self._forms) > _MOST_FORMS:
                self._forms.popitem(last=False)
        return learned

    def names(self, served: Hosted) -> TokenNames:
        with self._lock:
            if served.name not in self._names:
                self._names[served.name] = TokenNames(served.rendering.encoder)
            return self._names[served.name]
