"""Loading a base model: weights from safetensors only, float32, dropout as the recipe says."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig
from transformers.utils.logging import disable_progress_bar

from imprint.errors import ModelError
from imprint.model.attention import NAMES
from imprint.model.quantize import Quantized, loading_options, settle_layers
from imprint.model_facts import may_be_hub_id, no_folder

disable_progress_bar()  # a run has its own display

CPU = torch.device("cpu")
# What transformers raises for a folder that it cannot load; ImportError: for a base that was quantised elsewhere.
UNLOADABLE = (
    *(OSError, ValueError, RuntimeError, KeyError, ImportError),
    *(SafetensorError, StrictDataclassError),
)


def find_model(model: str, revision: str | None = None) -> Path:
    """The folder of a model: a local one, or the hub's, downloaded to (or found in) its cache."""
    path = Path(model).expanduser()
    if path.is_dir():
        _require_safetensors(path)
        return path
    if "/" in model and not may_be_hub_id(model):
        raise no_folder(path)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        found = Path(
            snapshot_download(model, revision=revision, ignore_patterns=["*.bin", "*.pt", "*.pth", "*.gguf"])
        )
    except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise ModelError(
            "there is no such model folder, and the hub does not give it",
            where=f"model={model}",
            found=" ".join(str(error).split())[:300],
            expected="a folder with config.json, *.safetensors and a tokenizer, or a hub id owner/name",
            fix="check the path; gated models need `huggingface-cli login`",
        ) from error
    _require_safetensors(found)
    return found


def _require_safetensors(folder: Path) -> None:
    if not (folder / "config.json").is_file():
        raise ModelError(
            "this folder holds no model",
            where=f"model={folder}",
            found=_listing(folder),
            expected="config.json beside the weights",
            fix="give the folder that config.json lies in",
        )
    if not list(folder.glob("*.safetensors")):
        raise ModelError(
            "the model has no safetensors weights",
            where=f"model={folder}",
            found=_listing(folder),
            expected="model.safetensors, or its shards with model.safetensors.index.json",
            fix="convert the weights with transformers' save_pretrained; pickle files (.bin, .pt) can run code "
            "and are never read",
        )


def _listing(folder: Path) -> str:
    names = sorted(path.name for path in folder.iterdir())
    return ", ".join(names[:12]) + (" …" if len(names) > 12 else "") if names else "an empty folder"


def refuse_remote_code(folder: Path, allowed: bool) -> None:
    """ModelError where the model brings Python code that nobody asked to run."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    if not isinstance(config, dict):
        raise ValueError("config.json does not hold an object")
    if "auto_map" in config and not allowed:
        raise ModelError(
            "this model wants to run its own Python code",
            where=str(folder / "config.json"),
            found=f"auto_map: {config['auto_map']}",
            fix="use an architecture that transformers knows, or read the code and set trust_remote_code=true "
            "(for a hub model with revision=COMMIT)",
        )


def read_config(folder: Path, trust_remote_code: bool) -> Any:
    """What transformers makes of a folder's config.json; ModelError where that is nothing it knows."""
    try:
        refuse_remote_code(folder, trust_remote_code)
        return AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
    except UNLOADABLE as error:
        raise unloadable(f"model={folder}", error) from error


def unloadable(where: str, error: Exception) -> ModelError:
    """What to say where transformers cannot make a model of what it was given."""
    return ModelError(
        "the model cannot be loaded",
        where=where,
        found=" ".join(str(error).split())[:400],
        fix="check that the folder is complete, and that its architecture is a causal language model",
    )


def read_weights(
    folder: Path,
    dropout: float,
    trust_remote_code: bool,
    quantized: Quantized | None = None,
    device: torch.device = CPU,
) -> Any:
    """The model of a folder, whole, in float32; ModelError where anything of it is missing.

    With `quantized`, its linear layers are in four bits, made as they are read, on `device`.
    """
    config = read_config(folder, trust_remote_code)
    try:
        num_rates = set_dropout(config, dropout)
        options = {} if quantized is None else loading_options(quantized, config, device)
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            folder,
            config=config,
            dtype=torch.float32,
            use_safetensors=True,
            trust_remote_code=trust_remote_code,
            output_loading_info=True,
            **options,
        )
    except UNLOADABLE as error:
        raise unloadable(f"model={folder}", error) from error
    if dropout > 0 and not num_rates:
        raise ModelError(
            "this model has no dropout",
            where=f"dropout={dropout:g}",
            found=f"no dropout rate in the config of {config.model_type}",
            fix="dropout=0; with method=lora, lora.dropout has an effect",
        )
    model, info = loaded
    if info["missing_keys"]:  # transformers draws these at random and goes on
        missing = sorted(info["missing_keys"])
        raise ModelError(
            "the model's weights are incomplete",
            where=f"model={folder}",
            found=f"{len(missing):,} tensors are not in the safetensors files: {', '.join(missing[:5])}",
            expected="a tensor for each parameter of its architecture",
            fix="download or convert the model again",
        )
    settle_layers(model)
    return model


def load_model(
    folder: Path,
    *,
    num_tokens: int = 0,
    grow: bool = False,
    dropout: float = 0.0,
    attention: str = "tiles",
    trust_remote_code: bool = False,
    quantized: Quantized | None = None,
    device: torch.device = CPU,
) -> nn.Module:
    """The causal language model of a folder, in float32 on the CPU, ready to be trained on rows.

    `num_tokens` embeddings are needed; where the model has fewer, they are added if `grow`
    (as the mean of the others, so that a new token starts as an average one), else ModelError.
    With `quantized`, its linear layers are held in four bits, and it is on `device`.
    """
    model = read_weights(folder, dropout, trust_remote_code, quantized, device)
    rows = model.get_input_embeddings().weight.shape[0]
    if num_tokens > rows:
        if not grow:
            raise ModelError(
                "the tokenizer has ids beyond the model's embedding",
                where=f"model={folder}",
                found=f"ids up to {num_tokens - 1:,}",
                expected=f"at most {rows - 1:,}: the embedding has {rows:,} rows",
                fix="use the tokenizer that belongs to this model",
            )
        grow_embeddings(model, num_tokens)
    use_attention(model, attention)
    return model  # type: ignore[no-any-return]


def use_attention(model: Any, attention: str) -> bool:
    """Switch a model to attention by `end`; False where its code does not take such a function."""
    model.set_attn_implementation(NAMES[attention])
    return bool(model.config._attn_implementation == NAMES[attention])


@torch.no_grad()
def grow_embeddings(model: Any, num_tokens: int) -> None:
    """Add rows to the embedding, and to the head where it is not tied, each the mean of the old ones."""
    before = model.get_input_embeddings().weight.shape[0]
    model.resize_token_embeddings(num_tokens, mean_resizing=False)
    for module in (model.get_input_embeddings(), model.get_output_embeddings()):
        module.weight[before:] = module.weight[:before].mean(dim=0)
        if getattr(module, "bias", None) is not None:
            module.bias[before:] = module.bias[:before].mean()


def set_dropout(config: Any, dropout: float) -> int:
    """Set every dropout rate of a config, nested ones too, and switch other noise off; how many were set.

    Noise that would make an update depend on how its rows are cut: the jitter of routers, layers
    and paths that are dropped at random.
    """
    count = 0
    for part in [config, *(getattr(config, name, None) for name in getattr(config, "sub_configs", ()))]:
        for key, value in list(vars(part).items()) if part is not None else ():
            if isinstance(value, bool) or not isinstance(value, int | float):
                continue
            if any(noise in key for noise in ("jitter", "layerdrop", "drop_path")):
                setattr(part, key, 0.0)
            elif ("dropout" in key or key.endswith("pdrop")) and not key.startswith(
                ("classifier", "summary")
            ):
                setattr(part, key, dropout or type(value)(0))  # mpt's are ints: 0.0 is refused
                count += 1
    return count


def set_stops(model: Any, stop_ids: Sequence[int], pad_id: int | None) -> None:
    """Greedy generation that ends at the run's stop ids: in both configs, which are saved with the model.

    Some servers read the stops from generation_config.json, others from config.json.
    """
    pad = stop_ids[0] if pad_id is None else pad_id
    for config in (model.config, model.config.get_text_config()):
        config.eos_token_id = list(stop_ids) if len(stop_ids) > 1 else stop_ids[0]
    model.generation_config = GenerationConfig(eos_token_id=list(stop_ids), pad_token_id=pad, do_sample=False)
