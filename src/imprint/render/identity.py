"""What the ids of a conversation depend on beside its text: the tokenizer, and the date that a template shows."""

from __future__ import annotations

import hashlib
import inspect
import json
import tempfile
from collections.abc import Iterable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import jinja2
from jinja2 import nodes

from imprint.errors import TemplateError
from imprint.render.sandbox import Sandbox
from imprint.render.template import find_template

_CLOCK = "strftime_now"


def tokenizer_digest(tokenizer: Any) -> str:
    """SHA-256 of a tokenizer as it is now: its backend, its named tokens, its added tokens, its class."""
    kind = type(tokenizer)
    facts = {
        "class": f"{kind.__module__}.{kind.__qualname__}",
        "named": {key: str(value) for key, value in tokenizer.special_tokens_map.items()},
        "added": {str(number): repr(token) for number, token in tokenizer.added_tokens_decoder.items()},
    }
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        digest.update(backend.to_str().encode())
    if backend is None or not kind.__module__.startswith("transformers."):
        digest.update(_written(tokenizer))  # a program of its own, or SentencePiece: all that it would save
    return digest.hexdigest()


def _written(tokenizer: Any) -> bytes:
    digest = hashlib.sha256()
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        for path in sorted(Path(folder).rglob("*")):
            if path.is_file():
                digest.update(f"{path.name}\n".encode() + path.read_bytes())
    source = inspect.getsourcefile(type(tokenizer))
    if source is not None and Path(source).is_file():
        digest.update(Path(source).read_bytes())
    return digest.digest()


def template_texts(spec: str, own: str | Mapping[str, str] | None) -> list[str]:
    """Every template text that a recipe's `template` may mean: the tokenizer's own ones, and the one it names."""
    texts = [own] if isinstance(own, str) else [f"{name}\n{text}" for name, text in (own or {}).items()]
    try:
        return [*texts, find_template(spec, own)[0]]
    except TemplateError:  # told when it is needed: bad data is told first
        return texts


def shown_dates(texts: Iterable[str], now: datetime) -> list[str]:
    """What templates can show of `now`: equal lists give equal renderings.

    Where a template asks for a date in a form that it computes, that is all of `now`.
    """
    shown: set[str] = set()
    for text in texts:
        forms = _date_forms(text, now)
        shown |= {now.isoformat()} if forms is None else {f"{form}={now.strftime(form)}" for form in forms}
    return sorted(shown)


def _date_forms(text: str, now: datetime) -> set[str] | None:
    """The forms in which a template asks for the date; None where they are not written in it."""
    if _CLOCK not in text:
        return set()
    try:
        tree = Sandbox(now).parse(text)
    except (jinja2.TemplateSyntaxError, SyntaxError, RecursionError):
        return None
    forms: set[str] = set()
    known: set[int] = set()  # places where the clock is named, and what it shows there is known
    for call in tree.find_all(nodes.Call):
        match call:
            case nodes.Call(node=nodes.Name(name=name), args=[nodes.Const(value=str(form))], kwargs=[]) if (
                name == _CLOCK and call.dyn_args is None and call.dyn_kwargs is None
            ):
                forms.add(form)
                known.add(id(call.node))
    for test in tree.find_all(nodes.Test):
        if test.name in ("defined", "undefined", "none", "callable"):
            known.add(id(test.node))
    named = [node for node in tree.find_all(nodes.Name) if node.name == _CLOCK]
    return forms if all(id(node) in known for node in named) else None
