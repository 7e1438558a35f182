"""Writes the pages of docs/ that are made from the code: `python tools/write_docs.py [PAGE.md …]`."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from imprint.data.catalogue import FORMATS, Format
from imprint.data.message_keys import FLAGS, WEIGHT_KEYS
from imprint.schema import Setting, describe

DOCS = Path(__file__).parent.parent / "docs"

RECIPE_HEAD = """\
# The recipe

One run is described by one recipe: a YAML file, `key=value` arguments, or both. Only `model` and
`data` are required. Made from `src/imprint/recipe.py` by `tools/write_docs.py`; a test keeps it up
to date.

Values are laid over each other: defaults, then the preset of the model (`imprint.yaml` in its
folder), then the recipe file, then the arguments. `imprint config show` prints the outcome,
`imprint config why KEY` tells where one value comes from. `auto` is resolved once, when the run is
created, and printed with the reason.

`N` counts the sources of `data` and `replay`, and the exports, from 0; `validation` may be a source of the same keys.
A setting that has no meaning beside the others is refused.

| key | type | default | meaning |
|---|---|---|---|
"""


def recipe_page() -> str:
    """docs/recipe.md: every key of a recipe."""
    return RECIPE_HEAD + "".join(_line(row) for row in describe())


def _line(row: Setting) -> str:
    cells = (f"`{row.key}`", row.type, f"`{row.default}`", row.description)
    return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |\n"


FORMATS_HEAD = """\
# Formats

Every row is recognised by itself, by its columns and, where these do not tell, by its values; rows of
several formats may stand in one file. Made from `src/imprint/data/catalogue.py` by `tools/write_docs.py`;
a test keeps it up to date.

- A list of messages goes before a pair of texts, and that before a text alone. Of formats of one kind, the one
  that needs more of the row's columns is taken. Where several still fit, the row is refused, and the message
  says how to choose: `data.0.format=NAME`.
- Columns with names of your own: `data.0.fields.prompt=COLUMN data.0.fields.response=COLUMN`; the parts are
  the columns below.
- Any row may also have `system` (or `system_prompt`), `tools` (or `functions`; a list or its JSON text), `weight`
  and `id`. Further columns are not used. Of those with a known meaning (a context, a thought, another reply) the
  ledger says so; an instruction, a question or a system text that the model would not see is refused, with the
  ways to use it or to leave it aside. Nothing is said where its text stands in the conversation already.
- Messages may have `name`, `tool_calls` or `function_call`, `tool_call_id`, `reasoning`, and the flags below;
  their content (also `value` or `text`) may be a text or parts (`text`, `refusal`, `thinking`, `tool_use`,
  `tool_result`, ...). A call may have `arguments`, `parameters` or `args`; a result must answer an earlier call,
  where both have ids. Arguments are an object or its JSON text; an empty text is read as none. Images, sounds
  and attachments are refused; a mark such as `<image>` in a prompt is told, as is a tag of a thought without the
  other. A thought both in tags and apart is trained once, and refused where the two differ.
- A `.txt` file is one document. To train on its paragraphs, write them as rows of a column `text`.
- Refused, each with its reason: prompts without a reply, texts alone, ground truth without its question, tasks of
  several turns that a program answers, a text with a label, a conversation that was rendered already, ids of
  several examples packed into one row, and of labelled replies (KTO) those of the label false (beside `prompt` and
  `completion` also 0).
- Lists may stand in the cells of a table as JSON text: `messages`, `tools`, `history`. An empty cell is none.

| format | columns | what becomes of a row | example |
|---|---|---|---|
"""


FLAGS_HEAD = """
## Which messages are trained

Every reply to a prompt is, unless a key of its message says otherwise; the model sees it in either case. The keys
are read in every format. Two that differ are refused, and so is any other value than these. A message that is no
reply may say that it is not trained, and nothing else.

| key of a message | context alone | trained |
|---|---|---|
"""


def formats_page() -> str:
    """docs/formats.md: every format of a row, and the flags of messages."""
    keys = tuple(dict.fromkeys((*WEIGHT_KEYS, *FLAGS)))
    return FORMATS_HEAD + "".join(map(_format_line, FORMATS)) + FLAGS_HEAD + "".join(map(_flag_line, keys))


def _flag_line(key: str) -> str:
    if key not in FLAGS:
        return f"| `{key}` | `0` | a number above 0: that many times the loss |\n"
    trained = bool(FLAGS[key])
    return f"| `{key}` | `{json.dumps(not trained)}` | `{json.dumps(trained)}` |\n"


def _format_line(format: Format) -> str:
    columns = ", ".join(f"`{column}`" for column in format.columns)
    if format.uses:
        columns += "; also " + ", ".join(
            f"`{column}`" for column in format.uses if column not in format.columns
        )
    cells = (
        f"`{format.name}`",
        columns,
        format.becomes,
        f"`{json.dumps(format.example, ensure_ascii=False)}`",
    )
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |\n"


def templates_page() -> str | None:
    """docs/templates.md: what every template accepts, by a run of the whole harness (some minutes)."""
    pages = _harness("pages")
    return pages and pages.templates_page(list(pages.every_cell()))


def twins_page() -> str | None:
    """docs/trl-twins.md: TRL's training templates against our turns."""
    pages = _harness("twins_page")
    return pages and pages.twins_page(list(pages.every_pair()))


def _harness(module: str) -> Any:
    """A module of tests/render, which makes pages from real templates; None where these are not here."""
    folder = str(DOCS.parent / "tests")
    if folder not in sys.path:
        sys.path.insert(0, folder)
    return (
        importlib.import_module(f"render.{module}")
        if importlib.import_module("render.corpus").TEMPLATES
        else None
    )


def ollama_page() -> str | None:
    """docs/ollama.md with its table: every template translated and proven (some seconds)."""
    sys.path.insert(0, str(DOCS.parent / "tests" / "export"))
    page: str | None = importlib.import_module("ollama_table").page()
    return page


PAGES: dict[str, Callable[[], str | None]] = {
    "recipe.md": recipe_page,
    "formats.md": formats_page,
    "trl-twins.md": twins_page,
    "templates.md": templates_page,
    "ollama.md": ollama_page,
}


def main(names: Sequence[str]) -> None:
    DOCS.mkdir(exist_ok=True)
    for name in names or PAGES:
        page = PAGES[name]()
        if page is None:
            print(f"left docs/{name} as it is: the templates that it is made from are not here")
            continue
        (DOCS / name).write_text(page, encoding="utf-8")
        print(f"wrote docs/{name}")


if __name__ == "__main__":
    main(sys.argv[1:])
