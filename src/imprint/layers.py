"""Layers of settings: text in, leaf values out, each with its place and what it overrode."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel
from yaml.constructor import SafeConstructor
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from imprint import schema
from imprint.errors import RecipeError
from imprint.schema import KeyPath, UnknownKey

Layer = Literal["default", "preset", "file", "argument"]
PlaceOf = Callable[[Node], str]

MAX_DEPTH = 32  # an alias can make a YAML document contain itself
LISTED = 16  # keys that an error lists
NULL, BOOL, INT, FLOAT, STR = (
    f"tag:yaml.org,2002:{name}" for name in ("null", "bool", "int", "float", "str")
)


class SettingsLoader(yaml.SafeLoader):
    """YAML in which `1e-4` is a number (YAML 1.1 wants `1.0e-4`)."""


class SettingsDumper(yaml.SafeDumper):
    """The reverse: quotes a text that SettingsLoader would take for a number."""


SettingsDumper.add_representer(tuple, SettingsDumper.represent_list)


for _kind in (SettingsLoader, SettingsDumper):
    _kind.add_implicit_resolver(
        FLOAT, re.compile(r"[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
    )


@dataclass(frozen=True, slots=True)
class Origin:
    """Where one value comes from. `value` is as it was written; `overrode` is what stood there before."""

    layer: Layer
    place: str
    value: Any
    overrode: Origin | None = None

    @property
    def chain(self) -> list[Origin]:
        """This origin, then all that it overrode, the newest first."""
        return [self, *(self.overrode.chain if self.overrode else [])]


class Layers:
    """Leaf values by key path, laid over each other; what cannot be laid is a problem.

    Giving a whole (`data`, `validation`, `template_options`) replaces it, giving keys of a
    group (`lora`) adds to it.
    """

    def __init__(self) -> None:
        self.leaves: dict[KeyPath, Origin] = {}
        self.problems: list[RecipeError] = []
        self._replaced: dict[KeyPath, Origin] = {}

    def lay_document(
        self, node: Node | None, layer: Layer, place: str, refuse: dict[str, str] | None = None
    ) -> None:
        """Lay a YAML mapping; the top keys in `refuse` (key: why) may not stand in it."""
        if node is None:
            return
        if not isinstance(node, MappingNode):
            expected = "a mapping: lines of `key: value`"
            self.problems.append(
                RecipeError("this is not a recipe", where=place, found=_kind_of(node), expected=expected)
            )
            return
        self._lay_keys((), node, layer, lambda inner: f"{place}:{inner.start_mark.line + 1}", refuse or {})

    def lay_argument(self, key: str, node: Node, place: str) -> None:
        """Lay one `key=value`."""
        self.lay(tuple(key.split(".")), node, "argument", place, lambda _: place)

    def lay(self, path: KeyPath, node: Node, layer: Layer, place: str, place_of: PlaceOf) -> None:
        """Lay one value; `place` is that of its key, `place_of` tells it for parts inside."""
        try:
            spot = schema.lookup(path)
        except UnknownKey as unknown:
            self.problems.append(_unknown(unknown, place))
            return
        if spot.item:
            self._replace(path)
            items = node.value if isinstance(node, SequenceNode) else [node]
            for index, item in enumerate(items):
                self.lay((*path, str(index)), item, layer, place_of(item), place_of)
            if not items:
                self._put(path, [], layer, place)
        elif spot.group:
            self._lay_group(path, spot.group, node, layer, place, place_of)
        elif spot.table and isinstance(node, MappingNode):
            self._replace(path)
            if not node.value:
                self._put(path, {}, layer, place)
            self._lay_keys(path, node, layer, place_of, {})
        else:
            self._put(path, plain(node, place, typed=spot.free), layer, place)

    def tree(self) -> dict[str, Any]:
        """All leaves as nested mappings and lists, for the schema to check."""
        root: dict[str, Any] = {}
        for path, origin in self.leaves.items():
            below = root
            for part in path[:-1]:
                below = below.setdefault(part, {})
            below[path[-1]] = _as_number(origin.value) if path == ("version",) else origin.value
        for name, value in root.items():
            if schema.lookup((name,)).item and isinstance(value, dict):
                places = sorted(value, key=int)
                root[name] = [value[place] for place in places]
                self._check_gap(name, places)
        return root

    def origin_near(self, path: KeyPath) -> Origin | None:
        """The origin at `path`, else of a key inside it, else of one beside it."""
        if path in self.leaves:
            return self.leaves[path]
        for stem in (path, path[:-1]):
            for leaf, origin in self.leaves.items():
                if stem and leaf[: len(stem)] == stem:
                    return origin
        return None

    def _lay_group(
        self, path: KeyPath, group: type[Any], node: Node, layer: Layer, place: str, place_of: PlaceOf
    ) -> None:
        short = schema.SHORT_FORM.get(group)
        if short:
            self._replace(path)
        if isinstance(node, MappingNode):
            self._lay_keys(path, node, layer, place_of, {})
        elif short and isinstance(node, ScalarNode) and (node.tag == STR or not self._takes_number(path)):
            self._put((*path, short), plain(node, place), layer, place)
        elif short or node.tag != NULL:  # a group with all its keys commented out reads as null
            self._put(path, plain(node, place), layer, place)

    @staticmethod
    def _takes_number(path: KeyPath) -> bool:
        return schema.lookup(path).has_default

    def _lay_keys(
        self, path: KeyPath, node: MappingNode, layer: Layer, place_of: PlaceOf, refuse: dict[str, str]
    ) -> None:
        seen: dict[str, str] = {}
        for key_node, value in node.value:
            place = place_of(key_node)
            key = schema.shown(plain(key_node, place))
            name = ".".join((*path, key))
            if key in seen:
                self.problems.append(_twice(name, seen[key], place))
            elif not path and key in refuse:
                self.problems.append(
                    RecipeError(
                        f"`{key}` cannot be set here", where=place, expected=refuse[key], fix="remove it"
                    )
                )
            elif "." in key and not schema.lookup(path).table:
                self.problems.append(_dotted(name, place))
            else:
                self.lay((*path, key), value, layer, place, place_of)
            seen.setdefault(key, place)

    def _replace(self, path: KeyPath) -> None:
        """Take away what stands at `path` and below it, but remember it for the chain."""
        for leaf in [leaf for leaf in self.leaves if leaf[: len(path)] == path]:
            self._replaced[leaf] = self.leaves.pop(leaf)

    def _put(self, path: KeyPath, value: Any, layer: Layer, place: str) -> None:
        self._replace(path)
        for length in range(1, len(path)):  # validation: 0.1 gives way to validation.path
            if path[:length] in self.leaves:
                self._replaced[path[:length]] = self.leaves.pop(path[:length])
        before = self._replaced.get(path)
        related = [leaf for leaf in self._replaced if leaf[: len(path)] == path or path[: len(leaf)] == leaf]
        if before is None and related:
            before = self._replaced[related[-1]]
        self.leaves[path] = Origin(layer, place, value, before or default_origin(path))

    def _check_gap(self, name: str, places: list[str]) -> None:
        for index, place in enumerate(places):
            if int(place) != index:
                near = self.origin_near((name, place))
                what = f"`{name}.{place}` leaves a gap: there are only {index} before it"
                self.problems.append(
                    RecipeError(what, where=near.place if near else "", fix=f"write `{name}.{index}`")
                )
                return


def default_origin(path: KeyPath) -> Origin | None:
    """The schema's own value for `path`, or for the nearest key above that has one."""
    for length in range(len(path), 0, -1):
        spot = schema.lookup(path[:length])
        if spot.has_default and not isinstance(spot.default, BaseModel):
            return Origin("default", "default", spot.default)
        if spot.field is not None and spot.field.is_required() and length < len(path):
            return None
    return None


def read_yaml(path: Path) -> Node | None:
    """The document as nodes, which know their lines; None for an empty file."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        reason = error.strerror or str(error)
        raise RecipeError("the recipe cannot be read", where=str(path), found=reason) from None
    except UnicodeDecodeError as error:
        found = f"byte {error.object[error.start]:#04x} at offset {error.start}"
        raise RecipeError("the recipe is not UTF-8 text", where=str(path), found=found) from None
    return _compose(text, str(path))


def parse_argument(text: str) -> tuple[str, Node]:
    """`key=value` as key and node. Brackets and quotes are YAML, anything else is one scalar."""
    key, equals, value = text.partition("=")
    key, value = key.strip(), value.strip()
    if not equals or not key:
        raise RecipeError(
            f"`{text}` is not a setting", where=f"argument {text}", expected="key=value, as in epochs=2"
        )
    if not value:
        raise RecipeError(
            f"`{key}` has no value", where=f"argument {text}", expected=f"{key}=VALUE; null is a value"
        )
    if value[0] in "[{\"'":
        node = _compose(value, f"argument {text}")
        assert node is not None
        return key, node
    tag = SettingsLoader("").resolve(ScalarNode, value, (True, False))  # type: ignore[no-untyped-call]
    return key, ScalarNode(tag, value)


def plain(node: Node, place: str, *, typed: bool = False, depth: int = 0) -> Any:
    """A node as Python values: scalars as text and null, or, if `typed`, as YAML takes them."""
    if depth > MAX_DEPTH:
        what = "this value is nested too deeply, or contains itself"
        raise RecipeError(what, where=place, found=f"more than {MAX_DEPTH} levels")
    if isinstance(node, MappingNode):
        return {
            str(key.value): plain(value, place, typed=typed, depth=depth + 1) for key, value in node.value
        }
    if isinstance(node, SequenceNode):
        return [plain(value, place, typed=typed, depth=depth + 1) for value in node.value]
    if node.tag == NULL:
        return None
    return _typed(node) if typed else node.value


def _typed(node: Node) -> Any:
    # `no` and `off` are false here, as PyYAML has it: as text they would be true to a template.
    if node.tag == BOOL:
        return SafeConstructor.bool_values[node.value.lower()]
    try:
        if node.tag == INT:
            return int(node.value, 0)
        if node.tag == FLOAT:
            return float(node.value.lower().replace(".inf", "inf").replace(".nan", "nan"))
    except ValueError:
        pass  # YAML 1.1's octal 010 and sexagesimal 1:30 stay text
    return node.value


def _as_number(value: Any) -> Any:
    """A Literal compares without converting, so version: 1 must be a number already."""
    return int(value) if isinstance(value, str) and value.isdecimal() else value


def _compose(text: str, place: str) -> Node | None:
    try:
        found: Node | None = yaml.compose(text, Loader=SettingsLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = f"{place}:{mark.line + 1}" if mark and not place.startswith("argument") else place
        raise RecipeError("this is not valid YAML", where=where, found=error.problem or "") from None
    except yaml.YAMLError as error:
        raise RecipeError("this is not valid YAML", where=place, found=str(error).splitlines()[0]) from None
    return found


def _kind_of(node: Node) -> str:
    return "a list" if isinstance(node, SequenceNode) else f"the text `{str(node.value)[:60]}`"


def _unknown(unknown: UnknownKey, place: str) -> RecipeError:
    key = ".".join(unknown.path)
    likely = schema.nearest_key(unknown.path, unknown.known)
    known = ", ".join(unknown.known[:LISTED]) or "no keys below this one"
    known += f" or {len(unknown.known) - LISTED} others" if len(unknown.known) > LISTED else ""
    fix = f"write `{likely}`" if likely else "remove it; docs/recipe.md lists all keys"
    return RecipeError(f"`{key}` is not a setting", where=place, expected="" if likely else known, fix=fix)


def _twice(name: str, first: str, second: str) -> RecipeError:
    return RecipeError(
        f"`{name}` is given twice", where=second, found=f"first at {first}", fix="remove one of them"
    )


def _dotted(name: str, place: str) -> RecipeError:
    *groups, last = name.split(".")
    nested = "".join(f"{group}: {{" for group in groups) + f"{last}: …" + "}" * len(groups)
    return RecipeError(
        f"`{name}` is a dotted key", where=place, expected="a nested key", fix=f"write `{nested}`"
    )
