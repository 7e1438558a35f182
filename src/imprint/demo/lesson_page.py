"""lessons.html: the lessons on one page that needs nothing else to be read, and no script."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import jinja2
from markupsafe import Markup

from imprint.demo.lesson_plots import picture
from imprint.demo.lessons import LESSONS
from imprint.demo.teach import NAMES, PAGE, cells
from imprint.demo.trials import QUESTIONS, SAME, Found


def write_page(folder: Path, found: Mapping[str, Found]) -> Path:
    """Write `folder`/lessons.html from the figures, with every lesson that is complete."""
    told = []
    for lesson in LESSONS:
        if all(trial.key in found for _, trial in lesson.trials):
            rows = [(label, found[trial.key]) for label, trial in lesson.trials]
            told.append(
                {
                    "lesson": lesson,
                    "seen": lesson.seen(rows).replace(" %", "\u00a0%"),
                    "wide": Markup(picture(lesson, rows)),
                    "narrow": Markup(picture(lesson, rows, 4.2)),
                    "heads": [NAMES[panel] for panel in lesson.panels],
                    "rows": [
                        (label, f, [" · ".join(cells(panel, f)) for panel in lesson.panels])
                        for label, f in rows
                    ],
                }
            )
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = environment.get_template("lessons.html.jinja").render(
        told=told, missing=len(LESSONS) - len(told), same=SAME, questions=QUESTIONS
    )
    path = folder / PAGE
    aside = path.with_suffix(".new")
    aside.write_text(page, encoding="utf-8")
    os.replace(aside, path)
    return path
