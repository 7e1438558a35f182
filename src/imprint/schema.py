"""What the schema says of a key path: its type in plain words, its default, its neighbours.

A key path is a tuple of names and list places: `lora.rank` is `("lora", "rank")`,
`data.0.fields.prompt` is `("data", "0", "fields", "prompt")`.
"""

from __future__ import annotations

import types
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from imprint.errors import nearest
from imprint.recipe import DataSource, Export, Recipe

KeyPath = tuple[str, ...]

# A bare string given for such a group stands for this one key of it.
SHORT_FORM: dict[type[BaseModel], str] = {DataSource: "path", Export: "to"}

# Names that people bring from other trainers, where likeness alone would not find ours.
ELSEWHERE = {
    "lr": "learning_rate",
    "r": "lora.rank",
    "lora_r": "lora.rank",
    "base_model": "model",
    "model_name_or_path": "model",
    "dataset": "data",
    "datasets": "data",
    "train_data": "data",
    "num_train_epochs": "epochs",
    "per_device_train_batch_size": "batch_size",
    "max_seq_length": "max_length",
    "sequence_len": "max_length",
    "cutoff_len": "max_length",
    "max_grad_norm": "clip",
    "lr_scheduler_type": "schedule",
    "warmup_ratio": "warmup",
    "warmup_steps": "warmup",
    "gradient_checkpointing": "activation_checkpointing",
    "output_dir": "output",
    "bf16": "precision",
    "fp16": "precision",
    "optim": "optimizer",
    "neftune_noise_alpha": "neftune_alpha",
    "use_rslora": "lora.scaling",
    "use_dora": "lora.dora",
    "init_lora_weights": "lora.init",
    "load_in_4bit": "method",
    "bnb_4bit_quant_type": "quantization.type",
    "bnb_4bit_use_double_quant": "quantization.double",
    "unfrozen_parameters": "train_only",
    "dtype": "precision",
    "packing": "layout",
    "eval_steps": "validate_every",
    "val_set_size": "validation",
    "save_steps": "save_every",
    "chat_template": "template",
    "train_on_inputs": "train_on",
}


class UnknownKey(Exception):
    """The schema has no such key; `known` are those that stand beside it."""

    def __init__(self, path: KeyPath, known: list[str]):
        super().__init__(".".join(path))
        self.path, self.known = path, known


@dataclass(frozen=True, slots=True)
class Spot:
    """What may stand at one key path."""

    annotation: Any
    field: FieldInfo | None = None

    @property
    def group(self) -> type[BaseModel] | None:
        """The group whose keys may stand below; also where a plain value is possible instead."""
        return next((kind for kind in _members(self.annotation) if _is_group(kind)), None)

    @property
    def item(self) -> type[BaseModel] | None:
        """The group of each item, where this is a list of groups."""
        if get_origin(self.annotation) is list and _is_group(get_args(self.annotation)[0]):
            found: type[BaseModel] = get_args(self.annotation)[0]
            return found
        return None

    @property
    def table(self) -> bool:
        """Whether the names below are the user's own."""
        return get_origin(self.annotation) is dict

    @property
    def free(self) -> bool:
        """Whether values have no type but the one they are written with."""
        return self.annotation is Any

    @property
    def has_default(self) -> bool:
        return self.field is not None and not self.field.is_required()

    @property
    def default(self) -> Any:
        return self.field.get_default(call_default_factory=True, validated_data={}) if self.field else None

    @property
    def description(self) -> str:
        return (self.field.description or "") if self.field else ""

    @property
    def words(self) -> str:
        """The type in plain words."""
        metadata = self.field.metadata if self.field and self.field.annotation is self.annotation else []
        return _bounded(self.annotation, metadata)

    @property
    def choices(self) -> list[str]:
        """The fixed words that are allowed, among other values perhaps."""
        found = [get_args(kind) for kind in _members(self.annotation) if get_origin(kind) is Literal]
        return [str(word) for words in found for word in words]


def lookup(path: KeyPath) -> Spot:
    """What may stand at `path`; UnknownKey names the first part that the schema lacks."""
    spot = Spot(Recipe)
    for depth, part in enumerate(path):
        group = spot.group
        if spot.item and part.isdecimal():
            spot = Spot(spot.item)
        elif group and part in group.model_fields:
            field = group.model_fields[part]
            spot = Spot(field.annotation, field)
        elif spot.table and part:
            spot = Spot(get_args(spot.annotation)[1])
        else:
            known = list(group.model_fields) if group else ["0"] if spot.item else []
            raise UnknownKey(path[: depth + 1], known)
    return spot


def nearest_key(path: KeyPath, known: list[str]) -> str | None:
    """The key that was most likely meant by an unknown one, as a full dotted key."""
    word = path[-1].lower().replace("-", "_")
    if word in ELSEWHERE and len(path) == 1:
        return ELSEWHERE[word]
    leaves = {row.key.rpartition(".")[2]: row.key for row in reversed(describe())}
    elsewhere = leaves[word].replace(".N.", ".0.") if word in leaves else None
    beside = nearest(word, known)
    if beside and not (elsewhere and len(path) == 1):  # the very name, in a group, before one that is like it
        return ".".join((*path[:-1], beside))
    return elsewhere


class Setting(NamedTuple):
    """One key, as the help and the documentation show it."""

    key: str
    type: str
    default: str
    description: str


def describe(group: type[BaseModel] = Recipe, above: str = "") -> list[Setting]:
    """Every key of `group` and of the groups in it; the items of a list are called `N`."""
    rows: list[Setting] = []
    for name, field in group.model_fields.items():
        spot, key = Spot(field.annotation, field), above + name
        inner = spot.group
        if inner and inner not in SHORT_FORM:
            rows += describe(inner, f"{key}.")
            continue
        default = shown(spot.default) if spot.has_default else "required"
        rows.append(Setting(key, spot.words, default, spot.description))
        if spot.item:
            rows += describe(spot.item, f"{key}.N.")
    return rows


def leaves(value: Any, above: KeyPath = ()) -> Iterator[tuple[KeyPath, Any]]:
    """Every setting of a recipe by its key path; entries of a table count one by one."""
    if isinstance(value, BaseModel):
        below = [(name, getattr(value, name)) for name in type(value).model_fields]
    elif isinstance(value, list) and value and isinstance(value[0], BaseModel):
        below = [(str(place), item) for place, item in enumerate(value)]
    elif isinstance(value, dict) and value and lookup(above).table:
        below = list(value.items())
    else:
        yield above, value
        return
    for name, item in below:
        yield from leaves(item, (*above, name))


def shown(value: Any) -> str:
    """A value as one would write it in a recipe."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, BaseModel):
        return shown(value.model_dump(exclude_unset=True))
    if isinstance(value, dict):
        return "{" + ", ".join(f"{name}: {shown(item)}" for name, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(shown(item) for item in value) + "]"
    return str(value)


def _is_group(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)


def _members(annotation: Any) -> tuple[Any, ...]:
    """The alternatives of a union; of anything else, itself."""
    if get_origin(annotation) in (Union, types.UnionType):
        return get_args(annotation)
    return (annotation,)


def _bounded(annotation: Any, metadata: Any = ()) -> str:
    if get_origin(annotation) is Annotated:
        base, *metadata = get_args(annotation)
        return _bounded(base, metadata)
    flat = [
        inner for item in metadata for inner in (item.metadata if isinstance(item, FieldInfo) else [item])
    ]
    bounds = {
        name: getattr(item, name)
        for item in flat
        for name in ("gt", "ge", "lt", "le")
        if getattr(item, name, None) is not None
    }
    if any(getattr(item, "pattern", None) for item in flat):
        return "a name of letters, digits, - and _"
    return _type_words(annotation) + _bound_words(bounds)


def _bound_words(bounds: dict[str, Any]) -> str:
    low = f"{bounds['ge']}" if "ge" in bounds else ""
    if low and "lt" in bounds:
        return f" from {low} to below {bounds['lt']}"
    if low and "le" in bounds:
        return f" from {low} to {bounds['le']}"
    if low:
        return f", {low} or more"
    above = f" above {bounds['gt']}" if "gt" in bounds else ""
    return above + (f", at most {bounds['le']}" if above and "le" in bounds else "")


def _keys_of(group: type[BaseModel]) -> str:
    return "its own keys: " + ", ".join(group.model_fields)


def _short_words(group: type[BaseModel]) -> str:
    """`a path, or {path: …}`"""
    key = SHORT_FORM[group]
    return f"{'a path' if key == 'path' else _bounded(group.model_fields[key].annotation)}, or {{{key}: …}}"


def _type_words(annotation: Any) -> str:
    plain = {int: "whole number", float: "number", bool: "true or false", str: "text", type(None): "null"}
    if annotation in plain:
        return plain[annotation]
    members = _members(annotation)
    if len(members) > 1:
        return ", or ".join(_bounded(kind) for kind in members)
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        words = [str(word) for word in inner]
        return " or ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)
    if _is_group(annotation):
        return _short_words(annotation) if annotation in SHORT_FORM else _keys_of(annotation)
    if origin is list:
        return (
            f"{_bounded(inner[0])}, or a list of these"
            if _is_group(inner[0])
            else "list of " + _bounded(inner[0])
        )
    if origin is tuple:
        return f"list of {len(inner)}, each a {_bounded(inner[0])}"
    return "mapping of names to text" if inner[1:] == (str,) else "mapping"
