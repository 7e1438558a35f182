"""A PEFT adapter from a folder, put on a model: nothing of it is executed, and none of it is missing."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from imprint.errors import ModelError, nearest

WEIGHTS = "adapter_model.safetensors"
AGAIN = "copy the folder anew from where it was trained"


def put_adapter(model: Any, folder: Path, name: str = "default") -> Any:
    """The model with the adapter of `folder` on it, under `name`; ModelError where it does not fit in every tensor.

    PEFT by itself reads pickles where there is no safetensors file, and leaves adapters as they were drawn
    where the file lacks their tensors.
    """
    from peft import PeftModel

    names = tensors_of(folder)
    with warnings.catch_warnings():
        # peft 0.21 asks transformers 5 by a name that is going away; what is missing is looked at below
        warnings.simplefilter("ignore", FutureWarning)
        warnings.filterwarnings("ignore", message="Found missing adapter keys")
        try:
            if isinstance(model, PeftModel):
                model.load_adapter(folder, name)
            else:
                model = PeftModel.from_pretrained(model, folder, name)
        except (RuntimeError, ValueError, KeyError, TypeError, OSError) as error:
            raise ModelError(
                "this adapter does not fit on the model",
                where=str(folder),
                found=" ".join(str(error).split())[:300],
                expected="an adapter of the same layers, and no more tokens than the model has",
                fix="put it on the model that it was trained on",
            ) from error
    refuse_other_tensors(folder, names, wanted(model, name))
    return model


def tensors_of(folder: Path) -> set[str]:
    """The names of the adapter's tensors; ModelError where they are not in a readable safetensors file."""
    file = folder / WEIGHTS
    if not file.is_file():
        raise ModelError(
            "the adapter has no safetensors weights",
            where=str(folder),
            found=", ".join(sorted(path.name for path in folder.iterdir())[:12]),
            expected=WEIGHTS,
            fix="save it with PEFT's save_pretrained; pickle files (.bin, .pt) can run code and are never read",
        )
    try:
        with safe_open(file, "pt") as opened:
            return set(opened.keys())
    except (SafetensorError, OSError) as error:
        raise ModelError(
            "the adapter's weights are damaged", where=str(file), found=str(error), fix=AGAIN
        ) from error


def wanted(model: Any, name: str) -> set[str]:
    """The tensors of low rank that the adapter `name` has on this model, as PEFT names them in files."""
    inside = {
        key.replace(f".{name}.", ".").removesuffix(f".{name}")
        for key in model.state_dict()
        if ".lora_" in key and (f".{name}." in key or key.endswith(f".{name}"))
    }
    # DoRA's lengths are a module in the model, and one tensor in files
    return {
        key.removesuffix(".weight") if key.endswith("lora_magnitude_vector.weight") else key for key in inside
    }


def refuse_other_tensors(folder: Path, found: set[str], expected: set[str]) -> None:
    """ModelError where tensors of low rank are missing, or are of no layer of the model."""
    found = {key for key in found if ".lora_" in key}
    missing, strange = sorted(expected - found), sorted(found - expected)
    if not missing and not strange:
        return
    told = []
    if missing:
        told.append(f"missing: {', '.join(missing[:2])}" + (f", … ({len(missing)})" * (len(missing) > 2)))
    if strange:
        like = nearest(strange[0], missing or sorted(expected))
        told.append(f"of no layer of the model: {strange[0]} (there are {len(strange)})")
        told += [f"the nearest is {like}"] if like else []
    raise ModelError(
        "the adapter's tensors are not those of the model",
        where=str(folder / WEIGHTS),
        found="\n".join(told),
        expected=f"{len(expected)} tensors, two or more for each adapted layer",
        fix="put it on the model that it was trained on, or " + AGAIN,
    )
