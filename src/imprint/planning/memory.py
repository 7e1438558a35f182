"""What a model takes by each method, foretold once and kept in the cache."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from functools import cache, partial
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch

import imprint
from imprint.cache import cached, key_of
from imprint.model.adapters import add_lora
from imprint.model.freeze import freeze
from imprint.prepare import Prepared
from imprint.recipe import Recipe
from imprint.train.miniature import Foretold, RowNeed, foretell

NF4_BYTES = (
    0.5 + 4 / 64 / 4 + 4 / 64 / 256
)  # a parameter in nf4 with double quantisation: 4 bits and its scales
FACTS = ("counted", "trained", "frozen", "weights", "gradients", "products", "off")
# (method, kind of device, type of the products, activations recomputed) → what a model takes
Teller = Callable[[str, str, str, bool], Foretold]


def config_of(folder: Path, recipe: Recipe) -> Any:
    from imprint.model.load import read_config

    return read_config(folder, recipe.trust_remote_code)


def adapted(recipe: Recipe, method: str) -> Callable[[Any], Any]:
    """What makes of a model one that trains by this method."""
    if method != "full":
        # however they begin, adapters are as large
        settings = recipe.lora.model_dump(exclude={"train_tokens", "init"})
        return partial(add_lora, **settings, seed=recipe.seed)

    def chosen(model: Any) -> Any:
        if recipe.method == "full" and (recipe.freeze or recipe.train_only):
            freeze(model, recipe.freeze, recipe.train_only)
        return model

    return chosen


def foretold_of(
    config: Any,
    prepared: Prepared,
    method: str,
    fused: bool,
    compute: str,
    recompute: bool,
) -> Foretold:
    """What `miniature.foretell` says, computed once and then taken from the cache."""
    recipe = prepared.recipe
    settings = {
        "computed by": computed_by(),
        "config": config.to_dict(),
        "adapters": recipe.lora.model_dump(mode="json") if method != "full" else None,
        "frozen": [recipe.freeze, recipe.train_only] if recipe.method == "full" else None,
        "compute": compute,
        "recompute": recompute,
        "fused": fused,
        "tokens": prepared.num_tokens,
    }
    options: dict[str, Any] = {
        "adapt": adapted(recipe, method),
        "compute_type": getattr(torch, compute),
        "recompute": recompute,
        "fused": fused,
        "num_tokens": prepared.num_tokens if prepared.rendering.added else 0,
    }

    def make(folder: Path) -> None:
        told = foretell(config, **options)
        facts = {
            **{name: getattr(told, name) for name in FACTS},
            "need": asdict(told.need),
            "chunk": told.at_once(10**9),
        }
        (folder / "foretold.json").write_text(json.dumps(facts), encoding="utf-8")

    def read(folder: Path, _keep: object) -> Foretold:
        facts = json.loads((folder / "foretold.json").read_text(encoding="utf-8"))
        chunk, need = facts.pop("chunk"), RowNeed(**facts.pop("need"))
        return Foretold(need=need, at_once=lambda predictions: min(predictions, chunk), **facts)

    return cached(key_of(settings), make, read)[0]


@cache
def computed_by() -> str:
    """A hash of the code that rows are computed and looked at by: what another version said is nothing to go by."""
    root = Path(imprint.__file__).parent
    files = [
        *(root / "model").glob("*.py"),
        *(root / "train" / name for name in ("memory.py", "miniature.py")),
    ]
    return sha256(b"".join(path.read_bytes() for path in sorted(files))).hexdigest()


def teller(config: Any, prepared: Prepared) -> Teller:
    """`foretold_of` that asks each thing once: qlora computes as lora does, and devices that fuse nothing alike."""
    ask = cache(partial(foretold_of, config, prepared))
    fuses = prepared.recipe.attention != "reference"

    def told(method: str, kind: str, compute: str, recompute: bool) -> Foretold:
        found = ask("full" if method == "full" else "lora", fuses and kind == "cpu", compute, recompute)
        return found.quantized(NF4_BYTES) if method == "qlora" else found

    return told
