"""docs/ollama.md's table: which chat templates can be said in Ollama's language, and what becomes of the others."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from imprint.export.ollama_learn import Untranslatable
from imprint.export.ollama_translate import Translation, corpus, translate
from imprint.render.probe import find_form
from imprint.render.template import PRESETS, Template, find_template
from render.corpus import NOW, TEMPLATES, label, names_for, template_source

BEGIN, END = "<!-- table: made by tools/write_docs.py ollama.md -->", "<!-- end of the table -->"
PAGE = Path(__file__).parents[2] / "docs" / "ollama.md"
_SHORT = {
    "the chat template takes no system message": "no system message",
    "tools are not in the Go template": "tools left out",
    "thoughts in the text": "thoughts stay in history",
    "the chat template shows the date": "date fixed",
}


def every_template() -> Iterator[tuple[str, str]]:
    """(name, source) of the presets and of the real templates."""
    for name in PRESETS:
        yield f"preset {name}", find_template(name, None)[0]
    for path in TEMPLATES:
        yield label(path), template_source(path)


def translation_of(source: str) -> Translation:
    made = Template(source, "a template", names_for(source), NOW)
    return translate(replace(made, form=find_form(made)))


def table() -> str:
    """The counts and a line for each template, in Markdown."""
    rows, equal, compared = [], 0, 0
    for name, source in every_template():
        try:
            made = translation_of(source)
        except Untranslatable as error:
            rows.append(f"| {name} | refused: {error} | |")
            continue
        equal += 1
        compared += made.compared
        said = [short for note in made.notes for begin, short in _SHORT.items() if note.startswith(begin)]
        rows.append(f"| {name} | {made.compared}, {len(made.failing)} | {', '.join(said)} |")
    of = sum(1 for _ in corpus())
    head = [
        f"**{equal} of {len(rows)}** templates are translated and proven equal over {compared:,} prompts "
        f"({of} conversations each); {len(rows) - equal} are refused.",
        "",
        "| template | equal prompts, loud failures | to know |",
        "|---|---|---|",
    ]
    return "\n".join([*head, *rows])


def page() -> str | None:
    """The page with its table made anew; None where the templates are not here."""
    if not TEMPLATES:
        return None
    text = PAGE.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    after = rest.partition(END)[2]
    return f"{before}{BEGIN}\n{table()}\n{END}{after}"
