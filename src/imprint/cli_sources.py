"""How the verbs of `imprint data` are given what they read: names of sources, and settings of all or of one."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from imprint.errors import RecipeError, nearest

if TYPE_CHECKING:
    from imprint.recipe import Recipe

OF_RECIPE = ("bad_rows", "consecutive_replies", "seed")  # settings of a run that change what is read
_NAMING = re.compile(r"data(?:\.(\d+)(?:\.path)?)?")  # keys that name a source, as a recipe does
_OF_ONE = re.compile(r"data\.(\d+)\.(.+)")


def split_sources(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Paths, and settings; what is there is a path, whatever its name."""
    paths = [one for one in arguments if "=" not in one or Path(one).exists()]
    return paths, [one for one in arguments if one not in paths]


def named_sources(paths: Sequence[str], settings: Sequence[str]) -> tuple[list[str], list[str]]:
    """The sources, and the settings that are left; a source may be named as in a recipe: data=…, data.0.path=…

    RecipeError where sources are named in both ways, or with a gap.
    """
    named: dict[int, str] = {}
    others = []
    for setting in settings:
        key, _, value = setting.partition("=")
        naming = _NAMING.fullmatch(key.strip())
        if naming is None:
            others.append(setting)
            continue
        if paths or int(naming[1] or 0) in named or value.lstrip()[:1] in ("[", "{"):
            raise RecipeError(
                "sources are named by themselves here, and settings say how to read them",
                where=f"argument {setting}",
                found=", ".join(paths) or "several sources in one setting",
                expected="SOURCE … KEY=VALUE …",
                fix=f"write {' '.join([*paths, value])}" if paths else "write FIRST SECOND …",
            )
        named[int(naming[1] or 0)] = value
    if sorted(named) != list(range(len(named))):
        raise RecipeError(
            "the numbers of the sources leave a gap",
            where=", ".join(f"data.{number}" for number in named),
            expected="data.0, data.1, …; or the names alone",
            fix=f"write {' '.join(named.values())}",
        )
    return [*paths, *(named[number] for number in sorted(named))], others


def recipe_of(
    given: Sequence[str], settings: Sequence[str], model: Path | None = None, template: str | None = None
) -> Recipe:
    """A recipe with these sources.

    A setting is of all of them; `data.N.KEY` is of the N-th alone, counted from 0, and goes before.
    """
    from imprint.settings import resolve

    paths, settings = named_sources(given, settings)
    if not paths:
        raise RecipeError("no data is named", expected="a file, folder, glob or hub id", fix="name one")
    made = [f"model={json.dumps(str(model or 'none'))}", "validation=0"]
    made += [f"template={json.dumps(template)}"] if template else []
    made += [f"data.{number}.path={json.dumps(path)}" for number, path in enumerate(paths)]
    of_one = {setting.partition("=")[0].strip() for setting in settings}
    for setting in settings:
        key, _, value = setting.partition("=")
        key = key.strip()
        one = _OF_ONE.fullmatch(key)
        if key in OF_RECIPE:
            made.append(setting)
            continue
        _refuse_unknown(setting, one[2] if one else key)
        if one is None:
            every = (f"data.{number}.{key}" for number in range(len(paths)))
            made += [f"{name}={value}" for name in every if name not in of_one]
        elif int(one[1]) < len(paths):
            made.append(setting)
        else:
            raise RecipeError(
                f"there is no source data.{one[1]}",
                found=", ".join(f"data.{number} = {path}" for number, path in enumerate(paths)),
                expected="the number of a source, counted from 0",
                fix=f"write {one[2]}={value}" + (", for all of them" if len(paths) > 1 else ""),
            )
    return resolve(None, made).recipe


def _refuse_unknown(setting: str, key: str) -> None:
    from imprint.recipe import DataSource

    if key.split(".")[0] in DataSource.model_fields and key != "path":
        return
    given, _, value = setting.partition("=")
    before = given.strip().removesuffix(key)  # data.1. of one source
    known = [*(name for name in DataSource.model_fields if name != "path"), *OF_RECIPE]
    like = nearest(key, known)
    if key == "path":
        fix = f"name the source by itself: {value}"
    elif key in ("model", "template"):
        fix = f"write --{key} {value}, to see the examples as the model does"
    else:
        fix = f"write {before}{like}={value}" if like else "remove it"
    raise RecipeError(
        f"`{key}` is not a setting of data",
        where=f"argument {setting}",
        expected=f"{', '.join(known)}; of one source alone: data.N.KEY, N from 0",
        fix=fix,
    )
