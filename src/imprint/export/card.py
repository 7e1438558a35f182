"""The model card: what a stranger who finds the folder has to know, from what the run recorded."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from imprint.licences import card_head

UNKNOWN = "unknown"


@dataclass(frozen=True)
class Licence:
    """What is known of somebody's terms: `licence` as its page says it, `catch` what that alone does not tell."""

    name: str  # of what it is the licence
    licence: str = UNKNOWN
    catch: str = ""
    link: str = ""


@dataclass(frozen=True)
class Card:
    """What the card tells. Texts are plain; `figures` are (what, before, after)."""

    title: str
    base: Licence
    base_id: str  # a hub id, or empty where the base is a folder of somebody's own
    base_tags: Mapping[str, Any]  # of the base's own card
    data: Sequence[Licence]
    data_ids: Sequence[str]  # hub ids
    method: str
    outcome: Sequence[str]
    figures: Sequence[tuple[str, str, str]]
    ledger: Sequence[tuple[str, int, str]]  # level, how many, what became of them
    how: Sequence[str]  # how the weights were made: merged, scaled, rounded
    proof: str
    stops: Sequence[str]
    template: str
    recipe: str  # YAML
    hashes: Sequence[tuple[str, str]]
    versions: Mapping[str, str]
    adapter: bool = False
    quantized: str = ""  # how the base was held, in words
    rank: int = 0
    no_vllm: str = ""  # why vLLM does not take it
    base_path: str = ""  # where an adapter's base is loaded from


def read_tags(folder: Path) -> dict[str, Any]:
    """The front matter of a folder's own card; empty where there is none, or it cannot be read."""
    path = folder / "README.md"
    return card_head(path) if path.is_file() else {}


def licence_of(name: str, folder: Path) -> Licence:
    """The licence that a folder's own card states, or the file that holds it."""
    tags = read_tags(folder)
    stated = str(tags.get("license_name") or tags.get("license") or "")
    files = [path.name for pattern in ("LICENSE*", "LICENCE*") for path in sorted(folder.glob(pattern))]
    if not stated and files:
        stated = f"see {files[0]}"
    return Licence(name, stated or UNKNOWN, "", str(tags.get("license_link") or ""))


def write_card(card: Card) -> str:
    """README.md, with the front matter that the hub reads."""
    parts = [
        f"# {card.title}",
        card.method,
        *card.outcome,
        "## Use",
        _use(card),
        "## Before and after",
        _table(("", "before", "after"), card.figures)
        if card.figures
        else "Nothing was measured in this run.",
        "## Data",
        _table(("level", "number", "of which"), [(level, f"{n:,}", text) for level, n, text in card.ledger]),
        "## Licences",
        _table(("what", "licence", "mind"), [_terms(one) for one in (card.base, *card.data)]),
        "These are what the pages of the base and of the data said when this card was written. The strictest of them "
        "binds this model too. This is no legal advice.",
        "## How these weights were made",
        "\n".join(f"- {line}" for line in (*card.how, card.proof)),
        "## Recipe",
        f"Settings that are not imprint's defaults:\n\n```yaml\n{card.recipe.strip()}\n```",
        "## Hashes and versions",
        _table(("what", "SHA-256"), [(f"`{name}`", f"`{value}`") for name, value in card.hashes]),
        ", ".join(f"{name} {version}" for name, version in card.versions.items()),
    ]
    return front_matter(_tags(card)) + "\n\n".join(part for part in parts if part) + "\n"


def front_matter(tags: Mapping[str, Any]) -> str:
    """The head of a card, as the hub reads it."""
    return f"---\n{yaml.safe_dump(dict(tags), sort_keys=False, allow_unicode=True)}---\n"


def _tags(card: Card) -> dict[str, Any]:
    tags: dict[str, Any] = {}
    for key in ("license", "license_name", "license_link", "language"):
        if key in card.base_tags:
            tags[key] = card.base_tags[key]
    tags["library_name"] = "peft" if card.adapter else "transformers"
    tags["pipeline_tag"] = "text-generation"
    if card.base_id:
        tags["base_model"] = card.base_id
        tags["base_model_relation"] = "adapter" if card.adapter else "finetune"
    if card.data_ids:
        tags["datasets"] = list(card.data_ids)
    tags["tags"] = ["imprint", "sft"]
    return tags


def serve_line(folder: str, base: str = "", rank: int = 0) -> str:
    """What to type so that vLLM serves a folder, or an adapter on its base, as it was trained.

    vLLM would otherwise take its sampling defaults from generation_config.json; the stops it reads there all the
    same. Of an adapter it would read the base's: its own file names the stops and no sampling.
    """
    if not base:
        return shlex.join(["vllm", "serve", folder, "--generation-config", "vllm"])
    name = Path(folder).name or "tuned"
    allowed = str(lora_rank_for_vllm(rank))
    adapter = ["--enable-lora", "--lora-modules", f"{name}={folder}", "--max-lora-rank", allowed]
    as_trained = ["--chat-template", f"{folder}/chat_template.jinja", "--generation-config", folder]
    return shlex.join(["vllm", "serve", base, *adapter, *as_trained])


def lora_rank_for_vllm(rank: int) -> int:
    """The smallest of vLLM's values of --max-lora-rank that has room for adapters of a rank."""
    return next((most for most in (8, 16, 32, 64, 128, 256, 320, 512) if most >= rank), rank)


def not_in_vllm(config: Mapping[str, Any]) -> str:
    """Why vLLM does not take an adapter, by its adapter_config.json; empty where it does."""
    if config.get("use_dora"):
        return "vLLM takes no DoRA adapters: serve the merged export"
    if config.get("modules_to_save") or config.get("trainable_token_indices"):
        return "vLLM takes no adapters with trained embeddings or heads: serve the merged export"
    return ""


def _use(card: Card) -> str:
    base = card.base_id or card.base_path
    kind = "AutoPeftModelForCausalLM" if card.adapter else "AutoModelForCausalLM"
    package = "peft" if card.adapter else "transformers"
    imports = f"from {package} import {kind}\nfrom transformers import AutoTokenizer"
    if not card.adapter:
        imports = f"from {package} import {kind}, AutoTokenizer"
    code = (
        f"{imports}\n\n"
        'tokenizer = AutoTokenizer.from_pretrained(".")\n'
        f'model = {kind}.from_pretrained(".")\n'
        'messages = [{"role": "user", "content": "Hello"}]\n'
        "inputs = tokenizer.apply_chat_template(\n"
        '    messages, add_generation_prompt=True, return_tensors="pt", return_dict=True\n'
        ")\n"
        "reply = model.generate(**inputs, max_new_tokens=256)[0, inputs.input_ids.shape[1] :]\n"
        "print(tokenizer.decode(reply, skip_special_tokens=True))"
    )
    line = serve_line(".", base, card.rank) if card.adapter else serve_line(".")
    stops = ", ".join(f"`{stop}`" for stop in card.stops)
    parts = [
        f"In this folder:\n\n```python\n{code}\n```",
        card.no_vllm or f"or, with vLLM:\n\n```\n{line}\n```",
        f"A reply ends at {stops}. The chat template is {card.template}, in the tokenizer; the model was trained on "
        "prompts as that writes them, and on no others.",
    ]
    if card.quantized:
        parts.append(
            f"The adapter was trained on a base in {card.quantized}: load the base the same way (see "
            "`quantized_base.json`), or take a merged export, which holds those values."
        )
    return "\n\n".join(parts)


def _terms(one: Licence) -> tuple[str, str, str]:
    return one.name, f"[{one.licence}]({one.link})" if one.link else one.licence, one.catch


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    if not rows:
        return ""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(
        "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in line) + " |"
        for line in lines
    )
