"""The floors of the house (shared design): imports run downwards only, and light parts stay light."""

import ast
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

SOURCE = Path(__file__).parent.parent / "src"

# A part may import parts of its own floor and of those below. `track` is as low as data, because
# everything reports events; `demo` stands beside run, because it builds recipes and runs them;
# `prepare` and `save` are what run does before and after training, `preparation` is prepare without a
# model, `show` looks at it, `folder` is what run keeps, `build` and `samples` are what it works on,
# `cache` keeps what preparation makes.
FLOOR = {
    "cli": 7, "cli_show": 7, "cli_config": 7, "cli_arguments": 7, "api": 7,
    "cli_data": 7, "cli_check": 7, "cli_sets": 7, "cli_formats": 7, "cli_sources": 7, "cli_examples": 7,
    "cli_left_out": 7, "cli_export": 7, "cli_serve": 7,
    "run": 6, "prepare": 6, "save": 6, "folder": 6, "build": 6, "row_budget": 6, "samples": 6, "demo": 6,
    "build_model": 6, "mishaps": 6, "changes": 6, "ending": 6, "chaos": 3, "cli_chaos": 7,
    "show": 6, "show_row": 6, "show_diff": 6, "show_page": 6, "left_out": 6,
    "preparation": 6, "export_run": 6, "export_card": 6, "export_hub": 6, "export_wanted": 6, "cache": 3,
    "exports": 6, "result": 6,
    "cli_plan": 7, "planning": 6, "rehearse": 6, "licences": 3, "hardware": 1,
    "train": 5, "evaluate": 5, "export": 5, "serve": 5, "studio": 5, "synth": 5,
    "distributed": 4,
    "pack": 3, "model": 3,
    "render": 2, "data": 2, "track": 2,
    "auto": 1, "model_facts": 1, "settings": 1, "layers": 1, "meaning": 1, "schema": 1, "recipe": 1, "extras": 1,
    "disk": 1, "signals": 1,
    "errors": 0,
    "redact": 1, "cli_track": 7,
    "freeze": 6, "parity_run": 6, "cli_parity": 7,
}  # fmt: skip

STRANGERS = {frozenset({"render", "model"}), frozenset({"render", "track"}), frozenset({"data", "track"})}
# Wiring stays apart from doing: a Recipe is read by those that decide, and by the report, which prints it.
SEES_RECIPE = {
    "build",
    "build_model",
    "row_budget",
    "folder",
    "changes",
    "cli",
    "cli_data",
    "cli_check",
    "cli_sources",
    "cli_examples",
    "cli_left_out",
    "cli_plan",
    "planning",
    "licences",
    "left_out",
    "export_run",
    "exports",
    "export_card",
    "api",
    "run",
    "prepare",
    "preparation",
    "show",
    "show_row",
    "demo",
    "evaluate",
    "auto",
    "settings",
    "layers",
    "meaning",
    "schema",
}
HEAVY = {"torch", "transformers", "peft", "accelerate", "datasets"}
LIGHT = (
    "chaos",
    "cli_chaos",
    "disk",
    "signals",
    "recipe",
    "schema",
    "meaning",
    "layers",
    "settings",
    "auto",
    "model_facts",
    "errors",
    "data",
    "render",
    "cache",
    "preparation",
    "track",
    "cli",
    "cli_show",
    "cli_config",
    "cli_arguments",
    "cli_data",
    "cli_check",
    "cli_sets",
    "cli_formats",
    "cli_sources",
    "cli_examples",
    "cli_left_out",
    "cli_export",
    "cli_serve",
    "cli_plan",
    "cli_track",
    "redact",
    "hardware",
    "licences",
    "api",
)


@dataclass(frozen=True)
class Import:
    module: str  # who imports
    line: int
    target: str  # what
    on_load: bool  # whether it happens when the module is imported

    def __str__(self) -> str:
        return f"{self.module}:{self.line} imports {self.target}"


def modules() -> dict[str, Path]:
    found = {}
    for path in sorted((SOURCE / "imprint").rglob("*.py")):
        parts = path.relative_to(SOURCE).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def part_of(module: str) -> str:
    """`imprint.data.readers` belongs to `data`; the package itself to the empty part."""
    return [*module.split("."), ""][1]


def imports_of(module: str, path: Path) -> Iterator[Import]:
    def walk(node: ast.AST, on_load: bool) -> Iterator[Import]:
        for child in ast.iter_child_nodes(node):
            inside = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
                for statement in child.body:
                    yield from walk(ast.Module([statement], []), False)
                for statement in child.orelse:
                    yield from walk(ast.Module([statement], []), on_load)
            elif isinstance(child, ast.Import):
                for alias in child.names:
                    yield Import(module, child.lineno, alias.name, on_load)
            elif isinstance(child, ast.ImportFrom):
                base = child.module or ""
                if child.level:
                    package = module.split(".") if path.name == "__init__.py" else module.split(".")[:-1]
                    base = ".".join([*package[: len(package) - child.level + 1], *base.split(".")]).rstrip(
                        "."
                    )
                for alias in child.names:
                    yield Import(module, child.lineno, f"{base}.{alias.name}", on_load)
            else:
                yield from walk(child, on_load and not inside)

    yield from walk(ast.parse(path.read_text(encoding="utf-8")), True)


MODULES = modules()
IMPORTS = [found for module, path in MODULES.items() for found in imports_of(module, path)]
INNER = [found for found in IMPORTS if found.target.startswith("imprint.") and part_of(found.target) in FLOOR]


def test_every_part_has_a_floor():
    assert {part_of(module) for module in MODULES} - {"", "__main__"} <= set(FLOOR)


def test_imports_run_downwards_only():
    upwards = [
        str(found)
        for found in INNER
        if part_of(found.module) and FLOOR[part_of(found.module)] < FLOOR[part_of(found.target)]
    ]
    assert upwards == []


def test_no_two_parts_import_each_other():
    pairs = {(part_of(found.module), part_of(found.target)) for found in INNER if part_of(found.module)}
    assert [pair for pair in pairs if pair[0] < pair[1] and pair[::-1] in pairs] == []


def test_strangers_do_not_import_each_other():
    met = [
        str(found)
        for found in INNER
        if frozenset({part_of(found.module), part_of(found.target)}) in STRANGERS
    ]
    assert met == []


def test_wiring_stays_apart_from_doing():
    seen = [found for found in INNER if found.target in ("imprint.recipe", "imprint.recipe.Recipe")]
    assert [str(found) for found in seen if part_of(found.module) not in {"", *SEES_RECIPE}] == []


def loaded_by(module: str, seen: set[str]) -> Iterator[Import]:
    """Every import that happens, directly or not, when `module` is imported."""
    if module in seen or module not in MODULES:
        return
    seen.add(module)
    parents = [module.rsplit(".", depth)[0] for depth in range(1, module.count(".") + 1)]
    for parent in parents:
        yield from loaded_by(parent, seen)
    for found in IMPORTS:
        if found.module == module and found.on_load:
            yield found
            yield from loaded_by(found.target, seen)
            yield from loaded_by(found.target.rpartition(".")[0], seen)


@pytest.mark.parametrize("part", LIGHT)
def test_light_parts_do_not_load_heavy_packages(part):
    heavy = {
        str(found)
        for module in MODULES
        if part_of(module) == part
        for found in loaded_by(module, set())
        if found.target.split(".")[0] in HEAVY
    }
    assert heavy == set()


def test_light_parts_do_not_load_torch_through_others():
    """What parsing cannot see: a third package that imports torch by itself."""
    names = [module for module in MODULES if part_of(module) in LIGHT and "__main__" not in module]
    script = f"import sys\nfor name in {names!r}: __import__(name)\nprint('torch' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "False"


def test_the_package_is_what_pyproject_says():
    root = SOURCE.parent
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))
    assert "Typing :: Typed" in project["project"]["classifiers"]
    assert (SOURCE / "imprint" / "py.typed").is_file()
    for name in project["tool"]["hatch"]["build"]["targets"]["sdist"]["include"]:
        assert (root / name).is_file() or any((root / name).glob("**/*")), name


def test_the_table_catches_what_it_should(tmp_path):
    """The parser sees relative, lazy and guarded imports, and tells them apart."""
    path = tmp_path / "x.py"
    path.write_text(
        "import torch\nfrom ..model import load\nfrom typing import TYPE_CHECKING\n"
        "if TYPE_CHECKING:\n    import peft\ndef f():\n    import transformers\n"
    )
    found = {(one.target, one.on_load) for one in imports_of("imprint.data.x", path)}
    assert found >= {
        ("torch", True), ("imprint.model.load", True), ("peft", False), ("transformers", False),
    }  # fmt: skip
