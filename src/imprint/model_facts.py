"""What is known of a model before it is loaded: its folder or hub id, and the facts in its config.json."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from imprint.errors import ModelError, nearest

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")

# The names that architectures give to the same fact.
WIDTH_NAMES = ("hidden_size", "n_embd", "d_model", "n_embed", "model_dim", "dim", "word_embed_proj_dim")
CONTEXT_NAMES = (
    "max_position_embeddings",
    "n_positions",
    "n_ctx",
    "seq_length",
    "max_seq_len",
    "model_max_length",
)


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """What config.json says of a model; `width` is the size of its hidden states."""

    width: int | None
    context: int | None
    vocab: int | None
    model_type: str
    tied: bool


def read_model_facts(model: str, revision: str | None = None) -> ModelFacts | None:
    """The facts in the model folder's config.json; None for a hub model that is not here yet.

    Raises ModelError where a folder or its config.json is missing or cannot be read, or is an adapter's.
    """
    folder = Path(model)
    config = folder / "config.json"
    if not folder.is_dir():
        if not may_be_hub_id(model):
            raise no_folder(folder)
        cached = _cached_config(model, revision)
        if cached is None:
            return None
        config = cached
    if not config.is_file() and (folder / "adapter_config.json").is_file():
        raise _no_whole_model(folder)
    if not config.is_file():
        raise ModelError(
            "the model folder has no config.json",
            where=model,
            found=", ".join(sorted(path.name for path in folder.iterdir())[:12]) or "an empty folder",
            expected="a folder as save_pretrained writes it: config.json, safetensors, tokenizer",
            fix="give the folder that holds config.json",
        )
    try:
        values = json.loads(config.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelError(
            "config.json is not valid JSON",
            where=str(config),
            found=str(error),
            fix="copy it anew from where the model came from",
        ) from None
    if not isinstance(values, dict):
        raise ModelError("config.json is not a JSON object", where=str(config), found=type(values).__name__)
    return facts_of(values)


def facts_of(config: Mapping[str, Any]) -> ModelFacts:
    """The facts in a parsed config.json; those of the text part, where a model has several."""
    text = config.get("text_config")
    inner: Mapping[str, Any] = {**config, **text} if isinstance(text, dict) else config
    vocab = inner.get("vocab_size")
    return ModelFacts(
        width=_first_count(inner, WIDTH_NAMES),
        context=_first_count(inner, CONTEXT_NAMES),
        vocab=vocab if isinstance(vocab, int) else None,
        model_type=str(config.get("model_type", "unknown")),
        tied=bool(inner.get("tie_word_embeddings", True)),  # transformers' default
    )


def _first_count(config: Mapping[str, Any], names: tuple[str, ...]) -> int | None:
    found = (config.get(name) for name in names)
    return next((value for value in found if isinstance(value, int) and value > 0), None)


def may_be_hub_id(model: str) -> bool:
    """`owner/name`, unless `owner` is a folder here: then a name in it is misspelt."""
    return bool(HUB_ID.fullmatch(model)) and not Path(model).parent.is_dir()


def no_folder(folder: Path) -> ModelError:
    """What to say of a model folder that is not there: the name most like it in its parent."""
    beside = (
        [path.name for path in folder.parent.iterdir() if path.is_dir()] if folder.parent.is_dir() else []
    )
    likely = nearest(folder.name, beside)
    return ModelError(
        "there is no such model folder",
        where=str(folder),
        expected="a folder with config.json, or a hub id of the form owner/name",
        fix=f"write {folder.parent / likely}" if likely else "correct the path",
    )


def _no_whole_model(folder: Path) -> ModelError:
    """What to say of a LoRA adapter where a model is wanted: which model it belongs to."""
    try:
        base = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
        name = str(base["base_model_name_or_path"])
    except (ValueError, KeyError, TypeError):
        name = ""
    return ModelError(
        "this is a LoRA adapter, and training starts from a whole model",
        where=str(folder),
        found=f"adapter_config.json, whose base model is {name or 'not recorded'}, and no config.json",
        fix=f"begin from {f'model={shlex.quote(name)}' if name else 'its base model'}; "
        f"to talk to the adapter: imprint chat {shlex.quote(str(folder))}",
    )


def _cached_config(model: str, revision: str | None) -> Path | None:
    """A hub model's config.json in the local cache, without asking the network."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(model, "config.json", revision=revision)
    return Path(found) if isinstance(found, str) else None
