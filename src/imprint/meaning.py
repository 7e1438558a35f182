"""Settings that have no meaning beside the others: refused, so that no option is silent."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from fnmatch import fnmatchcase
from glob import has_magic
from os.path import exists, expanduser
from pathlib import Path
from typing import Any, NamedTuple

from imprint.recipe import DataSource, Export, Recipe
from imprint.schema import KeyPath

DATA_SUFFIXES = {
    *(".json", ".jsonl", ".ndjson", ".csv", ".tsv", ".tab", ".txt", ".parquet", ".arrow", ".feather"),
    *(".gz", ".zst", ".xz", ".bz2"),
}
COMMIT = re.compile(r"[0-9a-f]{40}")


class Rule(NamedTuple):
    """`keys` (a pattern) are refused when `refused(recipe, key)`; `why` and `fix` go to the user."""

    keys: str
    refused: Callable[[Recipe, str], bool]
    why: str
    fix: str


def is_local_model(model: str) -> bool:
    """Whether the model is a folder here, and not a hub id."""
    return Path(model).is_dir()


def is_local_data(path: str) -> bool:
    """Whether a source is here (a file, a folder, a glob, or -), and not a hub id; a missing file is still a file."""
    return (
        path == "-"
        or has_magic(path)
        or Path(path).suffix.lower() in DATA_SUFFIXES
        or exists(expanduser(path))
    )


def _source_is_local(recipe: Recipe, key: str) -> bool:
    top, *rest = key.split(".")
    given = getattr(recipe, top)
    source = given[int(rest[0])] if isinstance(given, list) else given
    if not isinstance(source, DataSource) or not is_local_data(source.path):
        return False
    return rest[-1] != "split" or not (Path(expanduser(source.path)) / "dataset_dict.json").is_file()


def _exported(recipe: Recipe, key: str) -> Export:
    return recipe.export[int(key.split(".")[1])]


def _not_validated(recipe: Recipe, _key: str) -> bool:
    return recipe.validation == 0


def _unpinned(recipe: Recipe, _key: str) -> bool:
    pinned = bool(recipe.revision and COMMIT.fullmatch(recipe.revision))
    return recipe.trust_remote_code and not is_local_model(recipe.model) and not pinned


def has_adapters(recipe: Recipe) -> bool:
    """Whether low-rank adapters are trained, and the base is frozen."""
    return recipe.method in ("lora", "qlora")


def noise(recipe: Recipe) -> str:
    """The key of what makes each turn's activations its own, so that turns cannot share a prompt; or nothing."""
    if recipe.dropout > 0:
        return "dropout"
    if has_adapters(recipe) and recipe.lora.dropout > 0:
        return "lora.dropout"
    return "neftune_alpha" if recipe.neftune_alpha > 0 else ""


_HUB_ONLY = ("the source is a file here, and only hub datasets have this", "remove it")
_NO_VALIDATION = "validation is 0, so no validation loss is ever measured"
_SOURCES = ("data.*", "validation", "replay.*")

RULES: tuple[Rule, ...] = (
    Rule(
        "lora.*",
        lambda r, _: not has_adapters(r),
        "method is full, so there are no adapters",
        "set method to lora, or remove it",
    ),
    Rule(
        "lora.dora",
        lambda r, _: r.lora.dora and r.lora.init == "pissa",
        "PiSSA's adapter can be given back to the original base only as a sum, and DoRA does not add up",
        "set lora.init to zero, or lora.dora to false",
    ),
    Rule(
        "lora.init",
        lambda r, _: r.lora.init == "pissa" and r.method == "qlora",
        "PiSSA takes its directions out of the matrices, and what is left would be quantised to other values "
        "than the base that others load",
        "set method to lora, or lora.init to zero",
    ),
    Rule(
        "quantization.*",
        lambda r, _: r.method != "qlora",
        "nothing is quantised but with method qlora",
        "set method to qlora, or remove it",
    ),
    *(
        Rule(
            key,
            lambda r, _: has_adapters(r),
            "adapters leave every parameter of the model frozen",
            "set method to full, or name the layers with lora.targets",
        )
        for key in ("freeze", "train_only")
    ),
    Rule(
        "replay_*",
        lambda r, _: not r.replay,
        "no replay is given, so there is nothing to mix in",
        "give the general text with replay=FILE, or remove it",
    ),
    Rule(
        "replay_share_of",
        lambda r, _: r.replay_share == 0,
        "replay_share is 0, so no replay is trained",
        "give a replay_share above 0, or remove it",
    ),
    Rule(
        "replay_share_of",
        lambda r, _: r.replay_share_of == "weight" and r.batch_size == 1,
        "batch_size is 1, and a step of one conversation cannot share its weight",
        "set batch_size to 2 or more, or replay_share_of to conversations",
    ),
    Rule("min_improvement", _not_validated, _NO_VALIDATION, "give a validation share, or remove it"),
    Rule("patience", _not_validated, _NO_VALIDATION, "give a validation share, or set patience to null"),
    Rule(
        "final",
        lambda r, k: _not_validated(r, k) and r.final == "best",
        _NO_VALIDATION + ", and the best weights cannot be told",
        "give a validation share, or set final to last",
    ),
    Rule(
        "validate_every",
        lambda r, k: _not_validated(r, k) and r.samples == 0 and not r.replay,
        "validation and samples are both 0, so there is nothing to do at a validation",
        "give a validation share, set samples above 0, or remove it",
    ),
    Rule(
        "sample_tokens",
        lambda r, _: r.samples == 0,
        "samples is 0, so no prompt is answered",
        "set samples above 0, or remove it",
    ),
    Rule(
        "revision",
        lambda r, _: is_local_model(r.model),
        "the model is a folder here, and only hub models have revisions",
        "remove it",
    ),
    Rule(
        "trust_remote_code",
        _unpinned,
        "it would run whatever Python code the hub serves on that day",
        "pin the model with revision: COMMIT (its 40 hexadecimal digits), or remove it",
    ),
    *(
        Rule(f"{source}.{name}", _source_is_local, *_HUB_ONLY)
        for source in _SOURCES
        for name in ("split", "config", "revision")
    ),
    Rule(
        "layout",
        lambda r, _: r.layout == "shared" and bool(noise(r)),
        "with dropout or noise above 0, turns cannot share a prompt: each must draw its own",
        "set layout to packed or auto, or dropout and neftune_alpha to 0",
    ),
    Rule(
        "export.*.adapter_only",
        lambda r, k: _exported(r, k).adapter_only and not has_adapters(r),
        "method is full, so there is no adapter",
        "set method to lora, or remove it",
    ),
    Rule(
        "export.*.adapter_only",
        lambda r, k: _exported(r, k).adapter_only and _exported(r, k).to != "hf",
        "GGUF and Ollama take a whole model",
        "set to to hf, or remove it",
    ),
    Rule(
        "export.*.dtype",
        lambda r, k: _exported(r, k).adapter_only,
        "the adapter is handed over in the type that it was trained in",
        "remove it, or adapter_only",
    ),
    Rule(
        "attention",
        lambda r, _: r.layout == "separate",
        "with layout separate the model's own attention is used",
        "remove it, or choose another layout",
    ),
)


def refused(recipe: Recipe, given: Mapping[KeyPath, Any]) -> list[tuple[KeyPath, Rule]]:
    """The keys of `given` (key path: value) that mean nothing in this recipe, each with its rule.

    null and auto say "nothing in particular", so they are never refused.
    """
    found = []
    for path, value in given.items():
        if value is not None and value != "auto":
            key = ".".join(path)
            rules = (rule for rule in RULES if fnmatchcase(key, rule.keys) and rule.refused(recipe, key))
            found += [(path, rule) for rule in [next(rules, None)] if rule]
    return found
