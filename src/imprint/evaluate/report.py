"""report.html: a run on one page that needs nothing else to be read.

The page is written from the run folder alone, at any time: while the run goes on, after it was
cut off, and when it is over. What a model wrote is untrusted: Jinja escapes it, and the page
forbids itself the network and every script but its own.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from imprint import meaning, schema
from imprint.data.ledger import Ledger, Tally
from imprint.disk import write_text
from imprint.evaluate import curves
from imprint.evaluate.marks import read_marks
from imprint.evaluate.proofs import read_proofs
from imprint.evaluate.story import Fields, Story, number
from imprint.layers import default_origin
from imprint.recipe import Recipe
from imprint.settings import load
from imprint.track import events, words

SAMPLED_STEPS = 24  # more of them than this make the page heavy and the slider no better
LONG = 700  # characters of a text that is folded
GOOD = ("used", "train", "trained", "to draw from", "cut", "to be drawn")  # what became something to train
LINES = 12  # lines of a text that gets a box in which it scrolls


@dataclass(frozen=True)
class Answer:
    """One reply of the model; `stopped` is whether it ended its turn by itself."""

    step: int
    text: str
    stopped: bool | None


@dataclass(frozen=True)
class Question:
    """A prompt that the model answered again and again; `answers` holds one a step, in order."""

    text: str
    prompt: str
    reference: str
    answers: list[Answer]


@dataclass(frozen=True)
class Part:
    """A part of a bar: `share` of the whole; `tone` is good, held or bad."""

    label: str
    num: int
    share: float
    tone: str


@dataclass(frozen=True)
class Level:
    """One level of the ledger: what there was, what became of it, and what was left out.

    A reason has how often, where, and what was seen there, if that was noted.
    """

    title: str
    total: int
    parts: list[Part]
    reasons: list[tuple[str, int, list[str], str]]


def write_report(run: Path) -> Path:
    """Write `run`/report.html and return it. The same run folder gives the same bytes."""
    recipe = load(run / "recipe.yaml") if (run / "recipe.yaml").exists() else None
    ledger, replayed = read_ledger(run / "ledger.json"), read_replay_ledger(run / "ledger.json")
    story = Story(recipe, ledger, events.read(run / "events.jsonl"))
    questions = sampled(events.read(run / "samples.jsonl"), keep=story.kept)
    steps = sorted({answer.step for question in questions for answer in question.answers})
    page = _environment().get_template("report.html.jinja").render(
        story=story,
        title=f"{story.model} on {story.data}",
        questions=questions,
        exam=read_marks(run),
        proofs=read_proofs(run),
        sampled_steps=steps,
        shown_step=story.kept if story.kept in steps else max(steps, default=0),
        levels=levels(ledger) if ledger else [],
        replay_levels=levels(replayed) if replayed else [],
        warnings=[
            f"{text} ({tally})"
            for account in (ledger, replayed)
            if account is not None
            for text, tally in account.warnings.items()
        ],
        loss=[Markup(curve) for curve in _loss(story)],
        epoch_lines=bool(story.steps and curves.epoch_ends(story.steps)),
        small=[(label, Markup(curve)) for label, curve in _small(story)],
        tokens=_tokens(story),
        decisions=decisions(story.start.get("decisions") or []),
        settings=list(settings(recipe)) if recipe else [],
        environment=_environment_facts(story.start),
    )  # fmt: skip
    path = run / "report.html"
    write_text(path, page)
    return path


def read_ledger(path: Path) -> Ledger | None:
    """The ledger of a run folder, if the run has come that far."""
    return Ledger.from_json(json.loads(path.read_text(encoding="utf-8"))) if path.exists() else None


def read_replay_ledger(path: Path) -> Ledger | None:
    """The account of replay's rows, which stands apart in the ledger of a run."""
    value = json.loads(path.read_text(encoding="utf-8")).get("replay") if path.exists() else None
    return Ledger.from_json(value) if value else None


def sampled(samples: list[Fields], keep: int | None = None) -> list[Question]:
    """The samples by prompt and reference; of many steps, some: the first, the last, `keep`, some between."""
    steps = sorted({int(sample["step"]) for sample in samples})
    if len(steps) > SAMPLED_STEPS:
        even = {steps[round(i * (len(steps) - 1) / (SAMPLED_STEPS - 1))] for i in range(SAMPLED_STEPS)}
        steps = [step for step in steps if step in even or step == keep]
    questions: dict[tuple[str, str, str], Question] = {}
    for sample in samples:
        if sample["step"] not in steps:
            continue
        prompt = str(sample.get("prompt") or sample.get("question") or "")
        asked = (str(sample.get("question") or prompt), prompt, str(sample.get("reference") or ""))
        question = questions.setdefault(asked, Question(*asked, []))
        question.answers.append(
            Answer(int(sample["step"]), str(sample.get("reply") or ""), sample.get("stopped"))
        )
    for question in questions.values():
        question.answers.sort(key=lambda answer: answer.step)
    return list(questions.values())


def levels(ledger: Ledger) -> list[Level]:
    """The levels of the ledger, but for those that were not reached."""
    found = []
    for title, level, left in (
        ("Records read", ledger.records, "refused"),
        ("Conversations", ledger.conversations, "left out"),
        ("Turns", ledger.turns, "left out"),
        ("Pieces", ledger.pieces, "left out"),
    ):
        nums = [(name, num, "good" if name in GOOD else "held") for name, num in level.kept.items()]
        nums.append((left, level.num_left, "bad"))
        whole = max(1, sum(num for _, num, _ in nums))
        parts = [Part(name, num, num / whole, tone) for name, num, tone in nums if num]
        tallies = sorted(level.left.items(), key=lambda item: (-item[1].count, item[0]))
        if level.total:
            reasons = [
                (reason, tally.count, _places(tally), ledger.details.get(reason, ""))
                for reason, tally in tallies
            ]
            found.append(Level(title, level.total, parts, reasons))
    return found


def decisions(made: list[Any]) -> list[tuple[str, str, str]]:
    """What each `auto` became, as (setting, value, reason)."""
    return [(made_one["key"], _said(made_one["value"]), made_one["reason"]) for made_one in made]


def settings(recipe: Recipe) -> Iterator[tuple[str, str, str, bool]]:
    """Every setting that means something in the recipe: (key, value, meaning, whether not the default)."""
    values = dict(schema.leaves(recipe))
    idle = {path for path, _ in meaning.refused(recipe, values)}
    for path, value in values.items():
        default = default_origin(path)
        differs = default is None or default.value != value
        if path not in idle or differs:
            yield ".".join(path), schema.shown(value), schema.lookup(path).description, differs


def _loss(story: Story) -> list[str]:
    """The curve of the loss twice, for wide and for narrow screens; none where there is no loss."""
    if not any(event.get("loss") is not None for event in story.steps + story.validations):
        return []
    best = story.best.get("step") if len(story.validations) > 1 else None
    return [curves.loss_curve(story.steps, story.validations, best, width) for width in (8.2, 4.2)]


def _small(story: Story) -> list[tuple[str, str]]:
    steps = [
        event | {"speed": event["tokens"] / event["seconds"]}
        if event.get("seconds") and event.get("tokens") is not None
        else event
        for event in story.steps
    ]
    drawn = [
        ("learning rate", curves.small_curve(steps, "learning_rate", "learning rate", smooth=False)),
        ("gradient norm", curves.small_curve(steps, "grad_norm", "gradient norm", smooth=True)),
        ("tokens a second", curves.small_curve(steps, "speed", "tokens a second", smooth=True)),
    ]
    return [(label, curve) for label, curve in drawn if curve]


def _tokens(story: Story) -> Fields:
    """The sums over the run, and the share of the work that sharing saved."""
    tokens, computed = story.total("tokens"), story.total("computed_tokens")
    if not tokens:
        return {}
    return {
        "tokens": int(tokens),
        "computed": int(computed),
        "trained": int(story.total("trained_tokens")),
        "conversations": int(story.total("conversations")),
        "saved": 1 - computed / tokens,
    }


def _environment_facts(start: Fields) -> list[tuple[str, str]]:
    """Versions first, then whatever else the start event says of the machine."""
    told = {
        "kind",
        "time",
        "recipe",
        "decisions",
        "versions",
        "total_steps",
        "num_parameters",
        "num_trainable",
    }
    facts = [(name, str(version)) for name, version in (start.get("versions") or {}).items()]
    return facts + [(key.replace("_", " "), _said(value)) for key, value in start.items() if key not in told]


def _places(tally: Tally) -> list[str]:
    """Where something happened first, and how often it did elsewhere."""
    more = tally.count - len(tally.places)
    return [str(place) for place in tally.places] + ([f"… and {more:,} more"] if more else [])


def _said(value: Any) -> str:
    """A value as text: text as it is, numbers and the rest as JSON writes them."""
    if isinstance(value, str):
        return value
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) >= 10_000:
        return f"{value:,}"
    return json.dumps(value, ensure_ascii=False, default=str)


def _hash(script: str) -> str:
    """How a content security policy names the one script that it allows."""
    return "sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(number=number, hash=_hash, plural=words.plural)
    environment.globals.update(LONG=LONG, LINES=LINES)
    return environment
