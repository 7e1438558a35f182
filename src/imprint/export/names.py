"""Parameter names: as a model has them in memory, and as its files name them.

transformers renames tensors while it loads them, and joins the experts of a layer into one; its own
conversions, turned round, say what a changed parameter is called on disk.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from imprint.errors import ModelError


def model_without_memory(folder: Path, *, tied: bool | None = None, trust_remote_code: bool = False) -> Any:
    """The architecture of a model folder on the meta device; `tied` overrides what its config says of the head."""
    from transformers import AutoConfig, AutoModelForCausalLM

    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
        if tied is not None:
            config.tie_word_embeddings = tied
        with torch.device("meta"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise ModelError(
            "the architecture of the base model cannot be built",
            where=str(folder),
            found=" ".join(str(error).split())[:400],
            fix="check that its config.json is the one that was trained with",
        ) from error


def name_on_disk(model: Any, name: str, known: Iterable[str]) -> str | None:
    """What `known`, the tensors of a model's files, call the parameter `name`; None where it is several there."""
    known = known if isinstance(known, set | dict | frozenset) else set(known)
    prefix = f"{model.base_model_prefix}."
    for candidate in (name, name.removeprefix(prefix), f"{prefix}{name}"):
        if candidate in known:
            return candidate
    shape = model.get_parameter(name).shape if _has(model, name) else (1,)
    turned = list(parts_on_disk(model, name, torch.empty(shape, device="meta")))
    for candidate in turned if len(turned) == 1 else ():
        for named in (candidate, candidate.removeprefix(prefix), f"{prefix}{candidate}"):
            if named in known:
                return named
    return None


def _has(model: Any, name: str) -> bool:
    return any(name == other for other, _ in model.named_parameters(remove_duplicate=False))


def parts_on_disk(model: Any, name: str, value: Tensor) -> dict[str, Tensor]:
    """A parameter as the tensors that its files hold; a sum of two parameters becomes the sum of their parts."""
    from transformers.core_model_loading import revert_weight_conversion

    return dict(revert_weight_conversion(model, {name: value}))
