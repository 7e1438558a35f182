"""The report tells a run truly, whatever is missing, and shows untrusted text as text."""

import base64
import hashlib
import json
import math
import random
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from imprint.data.conversation import Place
from imprint.data.ledger import Ledger
from imprint.evaluate import curves
from imprint.evaluate.report import levels, sampled, write_report
from imprint.recipe import Recipe
from imprint.settings import dump, load

START = 1_790_000_000.0
QUESTIONS = [
    ("What is the opposite of hot?", "The opposite of hot is cold."),
    ("Why is the sky blue?", "Air scatters short waves more than long ones, so blue comes from everywhere."),
    ("Write a short poem about the sea.", "Grey morning on the water,\nthe gulls have much to say;\nthe tide"
     " takes back its footprints\nand gives the shore the day."),
]  # fmt: skip


def lines(path: Path, events: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(event) + "\n" for event in events), encoding="utf-8")


def step_events(num: int, seed: int = 0) -> list[dict[str, Any]]:
    noise = random.Random(seed)
    events = []
    for step in range(1, num + 1):
        along = step / num
        rate = 2e-4 * min(1.0, step / (0.03 * num + 1)) * 0.5 * (1 + math.cos(math.pi * along))
        loss = (
            0.72 + 1.6 * math.exp(-5 * along) + noise.gauss(0, 0.11) + (1.5 if noise.random() < 0.01 else 0)
        )
        events.append({
            "kind": "step", "time": START + 1.2 * step, "step": step, "epoch": 3 * along, "loss": loss,
            "learning_rate": rate, "grad_norm": 0.4 + 2 * math.exp(-8 * along) + abs(noise.gauss(0, 0.15)),
            "conversations": 16, "tokens": 9000 + noise.randrange(2000), "computed_tokens": 6400,
            "trained_tokens": 2100, "seconds": 1.1 + 0.2 * noise.random(), "peak_bytes": 3_456_000_000,
        })  # fmt: skip
    return events


def write_run(folder: Path, num_steps: int = 212, every: int = 20) -> Path:
    """A run as it would be: overfitting after its best validation, samples at each, a ledger with reasons."""
    recipe = Recipe.model_validate(
        {"model": "models/SmolLM2-135M", "data": [{"path": "data/tasks.jsonl"}], "method": "lora"}
        | {"learning_rate": 2e-4, "batch_size": 16, "validation": 0.05}
    )
    (folder / "recipe.yaml").write_text(dump(recipe))
    (folder / "ledger.json").write_text(json.dumps(a_ledger().to_json()))
    decisions = [
        {"key": "device", "value": "cuda", "reason": "a GPU is there: NVIDIA H100, 80 GB"},
        {
            "key": "row_tokens",
            "value": 16384,
            "reason": "measured: the largest that fits with a tenth to spare",
        },
        {"key": "template", "value": "chatml", "reason": "the tokenizer has none, and knows <|im_start|>"},
    ]
    start = {
        "kind": "start", "time": START, "decisions": decisions, "num_parameters": 134_515_008,
        "num_trainable": 4_884_480, "total_steps": num_steps, "device": "NVIDIA H100 80GB",
        "versions": {"imprint": "0.1.0", "python": "3.11.9", "torch": "2.13.0", "transformers": "5.23.0"},
    }  # fmt: skip
    events: list[dict[str, Any]] = [start]
    samples: list[dict[str, Any]] = []
    validations = sorted({*range(0, num_steps, every), num_steps})
    steps = step_events(num_steps)
    best = math.inf
    for step in range(num_steps + 1):
        if step:
            events.append(steps[step - 1])
        if step in validations:
            along = step / num_steps
            loss = 0.8 + 1.51 * math.exp(-5 * along) + 0.25 * max(0.0, along - 0.8)
            events.append(
                {
                    "kind": "validation",
                    "time": START,
                    "step": step,
                    "loss": loss,
                    "best": step > 0 and loss < best,
                }
            )
            best = min(best, loss) if step else best
            samples += [sample(step, number, along) for number in range(len(QUESTIONS))]
    events.append(
        {
            "kind": "end",
            "time": START + 260,
            "step": num_steps,
            "seconds": 254.0,
            "reason": "all steps are done",
        }
    )
    lines(folder / "events.jsonl", events)
    lines(folder / "samples.jsonl", samples)
    return folder


def sample(step: int, number: int, along: float) -> dict[str, Any]:
    question, reference = QUESTIONS[number]
    reply = reference if along > 0.5 else (question + " ") * (2 if step else 9)
    return {
        "kind": "sample", "time": START, "step": step, "question": question, "reference": reference,
        "reply": reply,
        "prompt": f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n", "stopped": along > 0.2,
    }  # fmt: skip


def a_ledger() -> Ledger:
    """1,240 records, some refused, one conversation in forty twice, four turns too long."""
    ledger = Ledger()
    places = [Place("tasks.jsonl", line) for line in range(1, 1241)]
    for place in places:
        ledger.read(place)
    for place in places[17:26]:
        ledger.refuse(place, "the reply is empty")
    for place in places[401:404]:
        ledger.refuse(place, "not valid JSON")
    for place in places[12:]:
        ledger.use(place)
        ledger.conversation(place)
    ledger.keep("train", 1140)
    ledger.keep("validation", 60)
    for place in places[1212:]:
        ledger.leave_out(place, "the same conversation twice")
    for number in range(2214):
        ledger.turn(places[number % 1240])
        if number % 600:
            ledger.keep_turn(places[number % 1240])
        else:
            ledger.leave_turn_out(places[number % 1240], "longer than max_length (2,048 tokens)")
    for place in places[50:53]:
        ledger.warn("the system prompt is used once only; was a part of it meant to be the question?", place)
    ledger.check()
    return ledger


class Page(HTMLParser):
    """The words of a page, its ids and its elements; fails on a tag that is not closed in its place."""

    VOID = frozenset(["meta", "input", "br"])

    def __init__(self, text: str) -> None:
        super().__init__()
        self.words, self.open, self.tags = "", [""], [("", {"": ""})]
        self.feed(text)
        assert self.open == [""]
        self.words = " ".join(self.words.split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, self.getpos()

    def handle_data(self, data: str) -> None:
        if self.open[-1] not in ("script", "style"):
            self.words += data


def page(run: Path) -> Page:
    return Page(write_report(run).read_text(encoding="utf-8"))


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return write_run(tmp_path)


def test_the_headline_says_what_happened(run: Path) -> None:
    words = page(run).words
    assert "SmolLM2-135M on tasks.jsonl" in words
    outcome = "Validation loss fell from 2.31 to 0.83 in 3 epochs (212 steps, 4 min); the model chosen is"
    assert outcome + " that of step 180." in words
    assert "Low-rank adapters (rank 16)" in words
    assert "1,140 conversations, and 60 held out to measure" in words
    assert "Not over" not in words


def test_every_section_has_its_content(run: Path) -> None:
    words = page(run).words
    for part in [
        "Records read: 1,240", "used 1,228", "the reply is empty9tasks.jsonl:18", "… and 4 more",
        "not valid JSON", "longer than max_length",
        "meant to be the question? (tasks.jsonl:51, tasks.jsonl:52, tasks.jsonl:53)",
        "computed1,356,800", "trained, with a loss445,200", "saved 36% of the computing",
        "measured: the largest that fits", "16,384", "Conversations in one step", "transformers5.23.0",
        "Grey morning on the water", "After step 212 stopped by itself The", "Before training did not stop",
        "4.88 M of 135 M parameters are trained",
    ]:  # fmt: skip
        assert part in words, part


def test_the_page_asks_the_network_for_nothing(run: Path) -> None:
    text = write_report(run).read_text(encoding="utf-8")
    assert not re.findall(r"https?://", text)
    assert not re.findall(r"@import|url\((?!#)", text)
    for tag, attrs in Page(text).tags:
        assert "src" not in attrs
        assert tag not in ("link", "iframe", "img", "object")
        assert attrs.get("href", "#").startswith("#")


def test_the_same_run_gives_the_same_bytes(run: Path) -> None:
    first = write_report(run).read_bytes()
    assert write_report(run).read_bytes() == first
    assert sorted(path.name for path in run.iterdir()) == sorted(
        ["recipe.yaml", "ledger.json", "events.jsonl", "samples.jsonl", "report.html"]
    )


def test_what_a_model_wrote_is_text(run: Path) -> None:
    evil = "</div></script><script>alert(1)</script><img src=x onerror=alert(2)>{{ 7 * 7 }}"
    with (run / "samples.jsonl").open("a") as file:
        for step in (0, 212):
            fields = {"kind": "sample", "step": step, "prompt": "p" + evil, "question": evil, "reply": evil}
            file.write(json.dumps(fields | {"reference": evil * 40, "stopped": False}) + "\n")
    ledger = a_ledger()
    ledger.warn(evil, Place(evil, 1))
    ledger.refuse(Place(evil, 2), evil)
    (run / "ledger.json").write_text(json.dumps(ledger.to_json()))
    clean = page(run)
    assert [tag for tag, _ in clean.tags].count("script") == 1
    assert "img" not in [tag for tag, _ in clean.tags]
    assert evil in clean.words


def test_a_tall_text_scrolls_in_a_box_that_the_keyboard_reaches(run: Path) -> None:
    reply = "tall\n" * 60
    fields = {"kind": "sample", "step": 0, "prompt": "p", "question": "q", "reply": reply, "stopped": False}
    with (run / "samples.jsonl").open("a") as file:
        file.write(json.dumps(fields | {"reference": "long " * 200}) + "\n")
    tall = [attrs for _, attrs in page(run).tags if "tall" in attrs.get("class", "").split()]
    assert [attrs["tabindex"] for attrs in tall] == ["0", "0"]
    assert all(attrs["aria-label"] for attrs in tall)
    assert re.search(r"\.tall \{ max-height: [^;]+; overflow-y: auto", (run / "report.html").read_text())


def test_the_policy_allows_the_script_of_the_page_and_no_other(run: Path) -> None:
    text = write_report(run).read_text(encoding="utf-8")
    script = re.findall(r"<script>(.*?)</script>", text, flags=re.DOTALL)
    assert len(script) == 1
    digest = base64.b64encode(hashlib.sha256(script[0].encode()).digest()).decode()
    policy = next(attrs["content"] for _, attrs in Page(text).tags if attrs.get("http-equiv"))
    assert f"script-src 'sha256-{digest}'" in policy
    assert "default-src 'none'" in policy


def test_figures_take_the_colours_and_fonts_of_the_page(run: Path) -> None:
    text = write_report(run).read_text(encoding="utf-8")
    drawings = re.findall(r"<svg.*?</svg>", text, flags=re.DOTALL)
    assert len(drawings) == 5
    for drawing in drawings:
        assert "aria-label=" in drawing
        assert not re.findall(r"(?:fill|stroke|color): ?#", drawing)
        assert "font-family" not in drawing
        assert "DejaVu" not in drawing
    ids = [attrs["id"] for _, attrs in Page(text).tags if "id" in attrs]
    assert len(ids) == len(set(ids))
    used = re.findall(r"(?:href=\"#|url\(#)([^\")]*)", text)
    assert used
    assert set(used) <= set(ids)


def test_a_long_run_stays_small(tmp_path: Path) -> None:
    path = write_report(write_run(tmp_path, num_steps=1000, every=10))
    assert path.stat().st_size <= 400_000
    assert "the model chosen is that of step" in path.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("events", "expected"),
    [
        ([], "Nothing has been recorded yet."),
        ([{"kind": "start", "time": START, "total_steps": 9}], "No step has been taken yet."),
        (step_events(1), "There was no validation."),
        (
            [{"kind": "validation", "step": 0, "loss": 2.5, "time": START}],
            "Validation loss is 2.50 at step 0",
        ),
        ([{"kind": "step", "step": 1, "loss": None, "grad_norm": None, "time": START}], "never a number"),
        ([*step_events(5), {"kind": "interrupted", "step": 5, "time": START}], "Interrupted at step 5"),
        (
            [
                *step_events(5),
                {"kind": "interrupted", "step": 5, "time": START},
                {"kind": "resume", "step": 5},
            ],
            "Not over: still running, or cut off, at step 5",
        ),
        (
            [
                *step_events(5),
                {"kind": "early_stop", "step": 5, "reason": "no better loss in 3 validations"},
                {"kind": "end", "step": 5, "seconds": 3.0, "best_step": 4},
            ],
            "Stopped early at step 5: no better loss in 3 validations.",
        ),
        (
            [{"kind": "validation", "step": s, "loss": 1 + s / 10} for s in (0, 5)],
            "Validation loss did not fall: it was 1.00 at step 0 and is 1.50 after",
        ),
    ],
)
def test_a_run_of_which_little_is_known_has_a_page_too(
    tmp_path: Path, events: list[dict[str, Any]], expected: str
) -> None:
    if events:
        lines(tmp_path / "events.jsonl", events)
    words = page(tmp_path).words
    assert expected in words
    assert "nan" not in words.lower().split()
    assert "None" not in words


def test_the_last_model_is_named_where_the_recipe_asks_for_it(run: Path) -> None:
    recipe = load(run / "recipe.yaml").model_copy(update={"final": "last"})
    (run / "recipe.yaml").write_text(dump(recipe))
    assert "the model kept is the last, as the recipe asks" in page(run).words


def test_what_was_forgotten_and_what_was_replayed(run: Path) -> None:
    assert "On general text" not in page(run).words
    assert "Replay was" not in page(run).words
    events = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
    for event in events:
        if event["kind"] == "step":
            event.update(replay=2, replay_weight=0.25)
    for step, loss in ((0, 0.78), (180, 0.86), (212, 0.95)):
        events.append({"kind": "replay_loss", "time": START, "step": step, "loss": loss})
    lines(run / "events.jsonl", sorted(events, key=lambda event: event.get("step", 0)))
    replay = Ledger()
    replay.read(Place("books.txt", 1))
    replay.use(Place("books.txt", 1))
    replay.pieces.total = 1000
    replay.pieces.kept = {"to be drawn": 424, "not drawn": 512, "held out": 64}
    account = json.loads((run / "ledger.json").read_text()) | {"replay": replay.to_json()}
    (run / "ledger.json").write_text(json.dumps(account))
    words = page(run).words
    assert "the loss went from 0.78 to 0.86 (+0.08 nats a token)" in words, "at step 180, which is kept"
    assert "Replay was 25.0% of the weight of the loss: 424 pieces" in words
    assert "general text 0.78 → 0.86" in words
    for part in ("Pieces: 1,000", "to be drawn 424", "not drawn 512", "held out 64"):
        assert part in words, part
    assert "Records read: 1,240" in words


def test_thinning_keeps_the_ends_and_every_extreme() -> None:
    x, y = curves.series(
        [{"step": n, "v": math.sin(n)} for n in range(5000)] + [{"step": 5000, "v": 9.0}], "v"
    )
    y[1234], y[4321] = 7.0, -7.0
    thin_x, thin_y = curves.thin(x, y)
    assert len(thin_x) <= curves.POINTS
    assert (thin_x[0], thin_x[-1]) == (0, 5000)
    assert {7.0, -7.0, 9.0} <= set(thin_y)


def test_the_trend_of_a_line_is_the_line() -> None:
    x, y = curves.series([{"step": n, "v": 3.0} for n in range(1000)], "v")
    at, smooth = curves.trend(x, y)
    assert len(at) == curves.POINTS // 2
    assert abs(smooth - 3.0).max() < 1e-12


def test_many_sampled_steps_are_thinned_but_the_best_stays() -> None:
    samples = [{"step": n, "prompt": "p", "reply": str(n), "stopped": True} for n in range(100)]
    (question,) = sampled(samples, keep=41)
    steps = [answer.step for answer in question.answers]
    assert len(steps) <= 25
    assert {0, 41, 99} <= set(steps)
    assert steps == sorted(steps)


def test_the_page_opens_at_the_model_that_is_kept(run: Path) -> None:
    opened = page(run)
    (slider,) = [attrs for _, attrs in opened.tags if attrs.get("type") == "range"]
    steps = slider["data-steps"].split(",")
    assert (steps[int(slider["value"])], slider["data-kept"]) == ("180", "180")
    assert "Show the answer after step 180" in opened.words
    shown = [
        attrs["data-step"]
        for _, attrs in opened.tags
        if attrs.get("class") == "answer" and "hidden" not in attrs
    ]
    assert shown == ["0", "180"] * len(QUESTIONS)
    recipe = load(run / "recipe.yaml").model_copy(update={"final": "last"})
    (run / "recipe.yaml").write_text(dump(recipe))
    (slider,) = [attrs for _, attrs in page(run).tags if attrs.get("type") == "range"]
    assert slider["data-steps"].split(",")[int(slider["value"])] == "212"


def test_one_question_with_other_prompts_or_references_is_shown_each_time() -> None:
    asked = [("[a] q", "r"), ("[b] q", "r"), ("[a] q", "s")]
    samples = [
        {"step": step, "question": "q", "prompt": prompt, "reference": reference, "reply": str(step)}
        for step in (0, 5)
        for prompt, reference in asked
    ]
    found = sampled(samples)
    assert [(question.prompt, question.reference) for question in found] == asked
    assert all([answer.step for answer in question.answers] == [0, 5] for question in found)


def test_the_parts_of_a_level_make_up_its_whole() -> None:
    for level, total in zip(levels(a_ledger()), (1240, 1228, 2214), strict=True):
        assert level.total == total == sum(part.num for part in level.parts)
        assert sum(part.share for part in level.parts) == pytest.approx(1)
