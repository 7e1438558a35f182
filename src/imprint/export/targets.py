"""The frame that every export target plugs into, and how the command line finds it.

A target is a module `imprint.export.NAME` with a constant `TARGET`; NAME stands in KNOWN. The help
lists only those that are there, and nothing of a module is loaded before it is asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from imprint.errors import UserError, nearest

# each with what it makes, for the help: the module itself may be heavy to load
KNOWN = {
    "hf": "a folder for transformers, vLLM, SGLang",
    "hub": "the same folder in a repository of the Hugging Face hub",
    "gguf": "one file for llama.cpp and its kin",
    "ollama": "a Modelfile with its GGUF",
}


@dataclass(frozen=True, slots=True)
class Proof:
    """What became of replaying a run's golden file against what was made.

    `passed` is None where nothing was replayed; `line` says why, or what was found, in one line.
    `facts` becomes parity.json, which is not written where nothing was replayed.
    """

    passed: bool | None
    line: str
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Made:
    """What a target wrote: its main file or folder, and lines for the person who asked for it.

    `trust_remote_code`: whether the run trusted the code that its model brings, so that its proof may run it too.
    """

    path: Path
    notes: tuple[str, ...] = ()
    trust_remote_code: bool = False


@dataclass(frozen=True, slots=True)
class Target:
    """One form that a trained model can be handed over in.

    make(merged, out, options) -> Made
        merged   a standard Hugging Face folder: merged weights in safetensors, config.json, tokenizer,
                 chat_template.jinja, generation_config.json with every stop id. Only read.
        out      an existing folder for this export, empty but for what `make` puts in; it is made aside and gets
                 its name in one move when everything is done, so no path in it may name `out` itself.
        options  what the user gave as KEY=VALUE, keys checked against `options`; values are checked by `make`.
        Raises an ImprintError where the model cannot be handed over in this form.
    prove(golden, made) -> Proof
        replays the run's golden file against what was made, in a fresh process. None: there is no way to.
    options
        KEY → what it means, for the help.
    check(options)
        Raises what `make` would for these settings or a tool or package that is missing, by no model at all.
    foresee(folder, options)
        Raises what `make` would for a model of this config, tokenizer and template: `folder` is as `merged`, but
        its weights may not be there yet. Both are for being refused before anything long is done.
    """

    name: str
    make: Callable[[Path, Path, Mapping[str, str]], Made]
    prove: Callable[[Path, Made], Proof] | None = None
    options: Mapping[str, str] = field(default_factory=dict)
    check: Callable[[Mapping[str, str]], None] = lambda _: None
    foresee: Callable[[Path, Mapping[str, str]], None] = lambda *_: None


def available() -> list[str]:
    """The targets that this installation has, in the order of KNOWN."""
    return [name for name in KNOWN if find_spec(f"imprint.export.{name}") is not None]


def find_target(name: str) -> Target:
    """The target of a name; UserError, with the nearest, where there is none."""
    if name not in available():
        guess = nearest(name, available())
        raise UserError(
            "there is no such target",
            where="--to",
            found=name,
            expected=" or ".join(available()),
            fix=f"--to {guess or 'hf'}",
        )
    target = import_module(f"imprint.export.{name}").TARGET
    assert isinstance(target, Target)
    return target


def check_options(target: Target, given: Mapping[str, str]) -> None:
    """UserError where a KEY=VALUE is none of the target's."""
    for key in given:
        if key in target.options:
            continue
        guess = nearest(key, target.options)
        raise UserError(
            f"--to {target.name} has no such setting",
            where=f"{key}={given[key]}",
            expected=", ".join(target.options) or "no settings of its own",
            fix=f"write {guess}={given[key]}" if guess else "leave it away",
        )
