"""Where the settings come from: defaults → the model's preset → the recipe file → `key=value`.

Every value keeps its place and what it overrode. Types are the schema's business alone: a
scalar is read as text, whatever YAML takes it for, so `1e-4` is a number where a number
belongs and `2024` a name where a name belongs.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError
from yaml.nodes import MappingNode, Node, ScalarNode

from imprint import meaning, schema
from imprint.errors import RecipeError, nearest
from imprint.layers import (
    Layers,
    Origin,
    SettingsDumper,
    default_origin,
    parse_argument,
    read_yaml,
)
from imprint.recipe import Recipe
from imprint.redact import named_like_one, redactor
from imprint.schema import KeyPath, UnknownKey, shown

__all__ = ["PRESET", "Origin", "Resolved", "SeveralProblems", "dump", "load", "resolve"]

PRESET = "imprint.yaml"
_OF_THE_RUN = "a preset advises how to train the model that it lies beside"
NOT_IN_PRESET = dict.fromkeys(
    ("model", "data", "output", "validation", "replay", "revision", "trust_remote_code", "export"),
    _OF_THE_RUN,
)


@dataclass(frozen=True, slots=True)
class Resolved:
    """A recipe and, for every setting by its dotted key (`lora.rank`, `data.0.path`), its origin."""

    recipe: Recipe
    origin: dict[str, Origin]


class SeveralProblems(RecipeError):
    """All that is wrong with a recipe: the first problem in full, the others a line each."""

    def __init__(self, problems: Sequence[RecipeError]):
        self.problems = tuple(problems)
        first = self.problems[0]
        super().__init__(
            first.what, where=first.where, found=first.found, expected=first.expected, fix=first.fix
        )

    def __str__(self) -> str:
        return "\n".join([super().__str__(), "also wrong:", *map(_one_line, self.problems[1:])])


def _one_line(problem: RecipeError) -> str:
    where = f"{problem.where}: " if problem.where else ""
    remedy = problem.fix or (f"expected {problem.expected}" if problem.expected else "")
    return f"  {where}{problem.what}" + (f"; {remedy}" if remedy else "")


def resolve(recipe_file: Path | None, assignments: Sequence[str]) -> Resolved:
    """The recipe that the layers give together; RecipeError tells all that is wrong with it.

    `imprint.yaml` in the model's folder is the preset. Paths are relative to the current
    directory, wherever the recipe lies.
    """
    layers = Layers()
    document = _read_recipe(recipe_file)
    arguments = _read_arguments(assignments, layers.problems)
    model = _model_named(document, arguments)
    if model and (Path(model) / PRESET).is_file():
        preset = Path(model) / PRESET
        layers.lay_document(read_yaml(preset), "preset", str(preset), refuse=NOT_IN_PRESET)
    layers.lay_document(document, "file", str(recipe_file))
    for key, text, node in arguments:
        layers.lay_argument(key, node, f"argument {text}")

    recipe = _validated(layers, recipe_file)
    while idle := _idle_advice(recipe, layers):
        for path in idle:
            layers.leaves.pop(path)
        recipe = _validated(layers, recipe_file)
    _refuse_meaningless(recipe, layers)
    return Resolved(recipe, _origins(recipe, layers))


def load(path: Path) -> Recipe:
    """A recipe as it was resolved and written into a run folder: no preset, no advice, types checked."""
    layers = Layers()
    layers.lay_document(read_yaml(path), "file", str(path))
    return _validated(layers, path)


def amend(path: Path, assignments: Sequence[str]) -> Recipe:
    """A run's recipe (see `load`) with `key=value` laid over it; RecipeError tells all that is wrong with them."""
    layers = Layers()
    layers.lay_document(read_yaml(path), "file", str(path))
    for key, text, node in _read_arguments(assignments, layers.problems):
        layers.lay_argument(key, node, f"argument {text}")
    recipe = _validated(layers, path)
    _refuse_meaningless(recipe, layers, "argument")
    return recipe


def dump(recipe: Recipe) -> str:
    """YAML with every setting that has a meaning in this recipe; it resolves to an equal recipe."""
    values = dict(schema.leaves(recipe))
    tree = recipe.model_dump()
    idle = [path for path, _ in meaning.refused(recipe, values)]
    idle += [] if recipe.replay else [("replay_length",)]  # an auto that nothing would ever settle
    for path in dict.fromkeys(idle):
        default = default_origin(path)
        if default is not None and default.value == values[path]:
            _remove(tree, path)
    tree = {"version": tree.pop("version"), **tree}
    return yaml.dump(tree, Dumper=SettingsDumper, sort_keys=False, allow_unicode=True, width=1000)


def _remove(tree: Any, path: KeyPath) -> None:
    """Take one leaf out of nested mappings and lists, and the mappings that it leaves empty."""
    first, *rest = path
    place: Any = int(first) if isinstance(tree, list) else first
    if rest:
        _remove(tree[place], tuple(rest))
    if not rest or tree[place] == {}:
        del tree[place]


def _read_recipe(recipe_file: Path | None) -> Node | None:
    if recipe_file is None:
        return None
    if not recipe_file.exists():
        likely = nearest(recipe_file.name, [path.name for path in recipe_file.parent.glob("*.y*ml")])
        fix = f"write {recipe_file.parent / likely}" if likely else "give a recipe file, or model=… data=…"
        raise RecipeError("there is no such recipe file", where=str(recipe_file), fix=fix)
    if recipe_file.suffix.lower() not in (".yaml", ".yml"):
        fix = f"if this is the data, write data={recipe_file}; if the model, model={recipe_file}"
        raise RecipeError(
            "this is not a recipe", where=str(recipe_file), expected="a .yaml or .yml file", fix=fix
        )
    return read_yaml(recipe_file)


def _read_arguments(assignments: Sequence[str], problems: list[RecipeError]) -> list[tuple[str, str, Node]]:
    """Each argument as key, text and value, wholes before their parts."""
    found: list[tuple[str, str, Node]] = []
    for text in assignments:
        try:
            key, node = parse_argument(text)
        except RecipeError as problem:
            problems.append(problem)
        else:
            found.append((key, text, node))
    for key in [key for key, times in Counter(key for key, _, _ in found).items() if times > 1]:
        first, second = [text for name, text, _ in found if name == key][:2]
        what, fix = f"`{key}` is given twice", "remove one of them"
        problems.append(RecipeError(what, where=f"argument {second}", found=f"first as {first}", fix=fix))
    return sorted(found, key=lambda argument: argument[0].count("."))


def _model_named(document: Node | None, arguments: list[tuple[str, str, Node]]) -> str | None:
    """What `model` will be, known before anything else because its folder may hold a preset."""
    named = [node for key, _, node in arguments if key == "model"]
    if not named and isinstance(document, MappingNode):
        named = [value for key, value in document.value if key.value == "model"]
    return str(named[0].value) if named and isinstance(named[0], ScalarNode) else None


def _validated(layers: Layers, recipe_file: Path | None) -> Recipe:
    """The recipe; raises everything that the layers and the schema have against it."""
    recipe = None
    problems = list(layers.problems)
    layers.problems.clear()
    tree = layers.tree()
    try:
        recipe = Recipe.model_validate(tree)
    except ValidationError as error:
        problems += _schema_problems(error, layers, recipe_file)
    else:
        problems += _endless(recipe, layers)
    problems += layers.problems
    if problems or recipe is None:
        raise problems[0] if len(problems) == 1 else SeveralProblems(problems)
    return recipe


def _schema_problems(error: ValidationError, layers: Layers, recipe_file: Path | None) -> list[RecipeError]:
    """One problem for each key: a union reports each of its alternatives, which are one mistake."""
    missing: dict[KeyPath, bool] = {}
    for detail in error.errors(include_url=False, include_context=False, include_input=False):
        path = _path_of(detail["loc"])
        absent = detail["type"] == "missing" and path not in layers.leaves  # not: a list that is too short
        missing[path] = missing.get(path, True) and absent
    deepest = [path for path in missing if not any(other[: len(path)] == path != other for other in missing)]
    return [
        _missing(path, layers, recipe_file) if missing[path] else _ill_typed(path, layers) for path in deepest
    ]


def _path_of(location: tuple[int | str, ...]) -> KeyPath:
    """The key path in pydantic's location, which also names the alternatives of unions."""
    path: KeyPath = ()
    for part in location:
        try:
            schema.lookup((*path, str(part)))
        except UnknownKey:
            continue
        path = (*path, str(part))
    return path


def _missing(path: KeyPath, layers: Layers, recipe_file: Path | None) -> RecipeError:
    key = ".".join(path)
    near = layers.origin_near(path)
    example = {"model": "FOLDER", "data": "FILE"}.get(key, "…")
    where = near.place if near else str(recipe_file or "")
    in_file = (
        f"add the line `{key}: {example}` to {recipe_file}, or " if recipe_file and len(path) == 1 else ""
    )
    return RecipeError(
        f"`{key}` is missing",
        where=where,
        expected=schema.lookup(path).description,
        fix=f"{in_file}write {key}={example}",
    )


def _ill_typed(path: KeyPath, layers: Layers) -> RecipeError:
    key, spot = ".".join(path), schema.lookup(path)
    near = layers.origin_near(path)
    # What was written: of a whole that is wrong as a whole, only that it was given.
    exact = near is not None and path in layers.leaves
    value = near.value if near and exact else None
    found = shown(value) if exact else "keys of a group"
    likely = nearest(value, spot.choices) if isinstance(value, str) else None
    fix = f"write `{likely}`" if likely else ""
    if not fix and spot.has_default and not spot.group:
        fix = f"write such a value, or remove it for the default: {shown(spot.default)}"
    return RecipeError(
        f"`{key}` cannot be {found if len(found) <= 60 else 'this'}",
        where=near.place if near else "",
        found=found,
        expected=spot.words,
        fix=fix,
    )


def _endless(recipe: Recipe, layers: Layers) -> list[RecipeError]:
    return [
        _ill_typed(path, layers)
        for path, value in schema.leaves(recipe)
        if isinstance(value, float) and not math.isfinite(value) and path[0] != "template_options"
    ]


def _given(recipe: Recipe, layers: Layers, *kinds: str) -> dict[KeyPath, Any]:
    """The settings that these layers gave, with their final values."""
    return {
        path: value
        for path, value in schema.leaves(recipe)
        if path in layers.leaves and layers.leaves[path].layer in kinds
    }


def _idle_advice(recipe: Recipe, layers: Layers) -> list[KeyPath]:
    """Keys of the preset without meaning beside the user's own: such advice is not taken."""
    return [path for path, _ in meaning.refused(recipe, _given(recipe, layers, "preset"))]


def _refuse_secrets(recipe: Recipe, layers: Layers) -> None:
    """A recipe is written into the run folder, its report and its trackers; the message repeats no secret."""
    redact = redactor()
    problems = []
    for path, value in _given(recipe, layers, "preset", "file", "argument").items():
        hides = isinstance(value, str) and len(value) >= 8 and named_like_one(path[-1])
        if hides or redact([*path]) != [*path] or redact({"": value}) != {"": value}:
            key, place = redact(".".join(path)), layers.leaves[path].place
            problems.append(
                RecipeError(
                    f"`{key}` holds a secret",
                    where=f"argument {key}=…" if place.startswith("argument") else place,
                    found="what looks like a token, a key or a password (it is not repeated here)",
                    expected="settings that may be read by all who read the run: they are written into it",
                    fix="take it out; tokens are read from the environment alone: HF_TOKEN, WANDB_API_KEY",
                )
            )
    if problems:
        raise problems[0] if len(problems) == 1 else SeveralProblems(problems)


def _refuse_meaningless(recipe: Recipe, layers: Layers, *kinds: str) -> None:
    _refuse_secrets(recipe, layers)
    given = _given(recipe, layers, *(kinds or ("file", "argument")))
    problems = [
        RecipeError(
            f"`{'.'.join(path)}` has no meaning here: {rule.why}",
            where=layers.leaves[path].place,
            found=f"{'.'.join(path)}: {shown(given[path])}",
            fix=rule.fix,
        )
        for path, rule in meaning.refused(recipe, given)
    ]
    if problems:
        raise problems[0] if len(problems) == 1 else SeveralProblems(problems)


def _origins(recipe: Recipe, layers: Layers) -> dict[str, Origin]:
    return {
        ".".join(path): layers.leaves.get(path) or default_origin(path) or Origin("default", "default", value)
        for path, value in schema.leaves(recipe)
    }
