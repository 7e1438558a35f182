"""The lessons: their trials are what they say, what is told follows the figures, and a stopped lesson goes on."""

from __future__ import annotations

import io
import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from conftest import Cli
from imprint import settings
from imprint.demo import teach, trials
from imprint.demo.exercises import demonstrations
from imprint.demo.lesson_words import percent, verdict
from imprint.demo.lessons import LESSONS, Lesson
from imprint.demo.spoil import fact_of, spoiled
from imprint.demo.teach import Notebook, parse
from imprint.demo.trials import Found, Trial, loss_of_answers, spoken_to
from imprint.errors import Interrupted, RecipeError, RunError
from imprint.evaluate.marks import Marks

BY_NAME = {lesson.name: lesson for lesson in LESSONS}
EXTRA = ("max_steps=2",)


def marks(right: int, asked: int = 300, stopped: int = 300) -> Marks:
    return Marks("held-out entities", asked, right, stopped, asked)


def found(right: int = 200, general: float = 1.0, loss: float = 0.5, **more: Any) -> Found:
    facts: dict[str, Any] = dict(
        settings={**trials.SAME}, demonstrations=2000, wrong=0.0, through="chatml", steps=139,
        num_trainable=1000, seconds=1.0, general_before=0.8, general=general, held_out=marks(right),
        seen=marks(90, 100, 100), held_out_loss=loss, seen_loss=0.1,
    )  # fmt: skip
    return Found(**(facts | more))


def told(name: str, figures: list[Found]) -> str:
    lesson = BY_NAME[name]
    return lesson.seen([(label, f) for (label, _), f in zip(lesson.trials, figures, strict=True)])


# ---- the trials ------------------------------------------------------------------------------------


@pytest.mark.parametrize("lesson", LESSONS, ids=lambda lesson: lesson.name)
def test_the_settings_of_every_trial_have_a_meaning(lesson: Lesson, tmp_path: Path) -> None:
    for _, trial in lesson.trials:
        given = [f"{key}={value}" for key, value in trial.whole.items()]
        paths = [f"model={tmp_path}", "data=a.jsonl", "replay=b.jsonl", f"output={tmp_path / 'run'}"]
        recipe = settings.resolve(None, [*paths, *given]).recipe
        assert (recipe.validation, recipe.final, recipe.samples) == (0, "last", 0)


def test_no_two_trials_of_a_lesson_are_one_and_lessons_share_the_demo_s_own_run() -> None:
    for lesson in LESSONS:
        keys = [trial.key for _, trial in lesson.trials]
        assert len(set(keys)) == len(keys) >= 3
    sharing = [lesson.name for lesson in LESSONS if any(trial.run == Trial() for _, trial in lesson.trials)]
    assert sharing == ["masking", "replay", "how-many", "noise", "lora", "template"]


def test_what_is_called_equally_many_steps_is() -> None:
    steps = {label: trial.steps for label, trial in BY_NAME["how-many"].trials}
    assert steps == {"100 × 1": 4, "500 × 1": 18, "100 × 18": 72, "500 × 4": 72, "2,000 × 1": 70}


@pytest.mark.parametrize("share", [0.1, 0.3])
def test_wrong_answers_are_those_of_other_things_of_the_kind(share: float) -> None:
    rows = demonstrations()
    changed = [(a, b) for a, b in zip(rows, spoiled(rows, share), strict=True) if a != b]
    assert len(changed) == round(share * len(rows))
    for before, after in changed:
        for at, (old, new) in enumerate(zip(before["messages"], after["messages"], strict=True)):
            if old["role"] != "assistant":
                assert old == new
                continue
            fact = fact_of(before["messages"][at - 1]["content"], old["content"])
            assert old["content"] != new["content"]
            head = fact.say(fact.kind.reply.split("{y}")[0])
            assert new["content"].startswith(head)
    assert spoiled(rows, 0) == rows


# ---- the words -----------------------------------------------------------------------------------


def test_a_verdict_says_which_way_and_whether_it_may_be_chance() -> None:
    assert verdict(marks(280), marks(200)) == "26.7 points more; the intervals do not overlap"
    assert verdict(marks(200), marks(280)) == "26.7 points fewer; the intervals do not overlap"
    assert verdict(marks(201), marks(200)) == "0.3 points more; the intervals overlap: it may be chance"
    assert verdict(marks(200), marks(200)) == "no difference"


def test_all_and_none_are_said_of_all_and_none_only() -> None:
    assert [percent(share) for share in (0, 1 / 900, 0.5, 899 / 900, 1)] == [
        "0 %", "0.1 %", "50 %", "99.9 %", "100 %",
    ]  # fmt: skip


@pytest.mark.parametrize("name", [lesson.name for lesson in LESSONS])
def test_what_is_seen_follows_the_figures(name: str) -> None:
    """The same trials with their figures the other way round are told the other way round."""
    number = len(BY_NAME[name].trials)
    spread = [
        found(right=250 - 30 * i, general=0.9 + i / 10, loss=0.3 + i / 10, num_trainable=1000 // (i + 1))
        for i in range(number)
    ]
    one, other = told(name, spread), told(name, spread[::-1])
    assert one != other
    for text in (one, other):
        assert "held-out" in text
        assert text.endswith(".")


def test_sentences_turn_with_the_sign() -> None:
    good, bad = found(280), found(100)
    assert "60.0 points more" in told("masking", [good, bad] * 3)
    assert "ahead with 3 of 3" in told("masking", [good, bad] * 3)
    assert "60.0 points fewer" in told("masking", [bad, good] * 3)
    low, high = found(general=0.9), found(general=2.0)
    assert "forgot 1.10 nats less than" in told("replay", [high, high, high, low])
    assert "forgot 1.10 nats more than" in told("replay", [low, low, low, high])
    assert "forgot as much as" in told("replay", [low] * 4)
    losses = [found(200 - 10 * i, loss=loss) for i, loss in enumerate((0.5, 0.4, 0.6, 0.9))]
    assert "lowest after 2 epochs (0.400), and rose by 0.500 until 8 epochs" in told("epochs", losses)
    falling = [found(150 + 10 * i, loss=loss) for i, loss in enumerate((0.5, 0.4, 0.3, 0.2))]
    assert "lowest after 8 epochs (0.200), at the end" in told("epochs", falling)
    assert "did no harm" in told("epochs", falling)
    assert "did no harm" not in told("epochs", losses)
    silent = found(held_out=marks(0, stopped=3))
    assert "1 % of the answers ended by themselves" in told("template", [good, bad, bad, silent])


# ---- the command's words ------------------------------------------------------------------------


def test_words_are_lessons_and_at_most_one_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert parse([]) == (Path("imprint-lessons"), list(LESSONS))
    assert parse(["here/it", "noise", "replay"]) == (Path("here/it"), [BY_NAME["replay"], BY_NAME["noise"]])
    with pytest.raises(RecipeError, match="write replay"):
        parse(["replya"])
    with pytest.raises(RecipeError, match="there is no lesson 'one'"):
        parse(["one", "two"])
    Path("replya").mkdir()  # a folder of that name is meant
    assert parse(["replya"])[0] == Path("replya")


def test_a_folder_of_something_else_is_left_alone(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    ended = cli("demo", tmp_path, "--lessons", "noise")
    assert ended.code == 2
    assert "holds something else" in ended.err
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_the_demo_itself_takes_one_folder(cli: Cli) -> None:
    ended = cli("demo", "one", "replay")
    assert ended.code == 2
    assert "imprint demo one" in ended.err


def test_the_help_names_every_lesson(cli: Cli) -> None:
    help_text = " ".join(cli("demo", "--help").out.replace("│", " ").split())
    assert ", ".join(BY_NAME) in help_text


# ---- the whole of it, on a tiny random model -------------------------------------------------------


@pytest.fixture
def place(tmp_path: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder of lessons with a tiny random base, few questions and few demonstrations."""
    folder = tmp_path / "lessons"
    shutil.copytree(tiny, folder / "base")
    monkeypatch.setattr(trials, "QUESTIONS", {"held-out entities": 6, "seen": 4})
    trials._asked.cache_clear()
    yield folder
    trials._asked.cache_clear()


def small(name: str) -> Lesson:
    """A lesson whose trials have sixty demonstrations."""
    lesson = BY_NAME[name]
    return replace(lesson, trials=tuple((label, replace(t, rows=60)) for label, t in lesson.trials))


def lessons_of(place: Path, lesson: Lesson, monkeypatch: pytest.MonkeyPatch, console: Console) -> Path:
    monkeypatch.setattr(teach, "LESSONS", (lesson,))
    monkeypatch.setattr("imprint.demo.lesson_page.LESSONS", (lesson,))
    return teach.teach(place, [lesson], console, EXTRA)


def test_a_lesson_from_its_trials_to_the_page(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    console = Console(width=80, record=True, quiet=False, file=io.StringIO())
    page = lessons_of(place, small("noise"), monkeypatch, console)
    text = console.export_text()
    assert max(map(len, (line for line in text.splitlines() if str(place) not in line))) <= 80
    assert "clean" in text
    assert "30 % wrong" in text
    kept = json.loads((place / "lessons.json").read_text())
    assert list(kept["trials"]) == ["rows=60", "rows=60 wrong=0.1", "rows=60 wrong=0.3"]
    one = kept["trials"]["rows=60"]
    assert (one["steps"], one["held_out"]["asked"], one["seen"]["asked"]) == (2, 6, 4)
    assert one["settings"]["threads"] == "1"
    assert one["general_before"] > 0
    html = page.read_text()
    assert kept["lessons"][0]["seen"].replace(" %", "\u00a0%") in html
    assert html.count("<svg") == 2
    assert not re.search(r"(src|href)=\"(?!#)|https?://(?!www\.w3\.org)|<script", html)
    assert sorted(path.name for path in place.iterdir()) == [
        "base", "general.jsonl", "lessons.html", "lessons.json", "trials",
    ]  # fmt: skip
    assert list((place / "trials").iterdir()) == []


def test_a_stopped_lesson_goes_on_with_what_is_missing(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lesson, console = small("template"), Console(file=io.StringIO(), width=80)
    examined: list[str] = []
    trained: list[str] = []

    def counted(trial: Trial, *arguments: Any) -> Found:
        examined.append(trial.key)
        if len(examined) == 3:
            raise KeyboardInterrupt
        return trials.examine(trial, *arguments)

    def noted(trial: Trial, folder: Path, *arguments: Any) -> Path:
        trained.append(trial.key)
        return trials.train(trial, folder, *arguments)

    monkeypatch.setattr(teach, "examine", counted)
    monkeypatch.setattr(teach, "train", noted)
    with pytest.raises(Interrupted) as stopped:
        lessons_of(place, lesson, monkeypatch, console)
    assert stopped.value.exit_code == 130
    assert "2 trials done" in stopped.value.found
    assert f"imprint demo {place} --lessons" in stopped.value.fix
    before = json.loads((place / "lessons.json").read_text())["trials"]
    assert len(before) == 2
    lessons_of(place, lesson, monkeypatch, console)
    after = json.loads((place / "lessons.json").read_text())["trials"]
    assert len(after) == 4
    assert {key: after[key] for key in before} == before
    assert len(examined) == 5  # the broken one again, and the last
    assert trained == ["rows=60", "rows=60 through=alpaca"]  # its run is still there, and is not made anew
    lessons_of(place, lesson, monkeypatch, console)
    assert (len(examined), len(trained)) == (5, 2)


def test_figures_of_another_base_are_not_mixed_in(place: Path) -> None:
    trials.write_materials(place)
    Notebook(place, "one").add(Trial(), found())
    assert Trial() in Notebook(place, "one")
    with pytest.raises(RunError, match="begun with something else"):
        Notebook(place, "other")
    (place / "lessons.json").write_text("[]")
    with pytest.raises(RunError, match="no figures of lessons"):
        Notebook(place, "one")


def test_the_digest_sees_base_texts_and_settings(place: Path) -> None:
    trials.write_materials(place)
    first = trials.digest_of(place)
    assert first == trials.digest_of(place)
    assert trials.digest_of(place, EXTRA) != first
    general = place / "general.jsonl"
    general.write_text(general.read_text()[:-100])
    assert trials.digest_of(place) != first


def test_other_templates_differ_where_they_say(tiny: Path) -> None:
    from imprint.data.conversation import Message
    from imprint.serve.chat import load_speaker

    speaker = load_speaker(tiny, template="chatml")

    def text(through: str) -> str:
        template = spoken_to(speaker, through).rendering.template
        return template.render(template.inputs([Message("user", "Spell cat.")]), add_generation_prompt=True)

    assert text("chatml") == "<|im_start|>user\nSpell cat.<|im_end|>\n<|im_start|>assistant\n"
    assert text("chatml without the last newline") + "\n" == text("chatml")
    assert text("alpaca").endswith("### Instruction:\nSpell cat.\n\n### Response:\n")
    assert text("no template") == "Spell cat."


def test_the_loss_of_answers_is_that_of_each_alone(tiny: Path) -> None:
    import torch

    from imprint.serve.chat import load_speaker

    speaker = load_speaker(tiny, template="chatml")
    questions = [
        SimpleNamespace(text="Spell cat.", answer="c-a-t."),
        SimpleNamespace(text="And?", answer="Yes, it is."),
    ]
    total, count = 0.0, 0
    for question in questions:
        prompt = f"<|im_start|>user\n{question.text}<|im_end|>\n<|im_start|>assistant\n"
        whole = speaker.rendering.encoder.encode([f"{prompt}{question.answer}<|im_end|>"])[0].tolist()
        start = len(speaker.rendering.encoder.encode([prompt])[0])
        with torch.no_grad():
            logits = speaker.model.model(input_ids=torch.tensor([whole])).logits[0].log_softmax(-1)
        total -= sum(float(logits[at - 1, whole[at]]) for at in range(start, len(whole)))
        count += len(whole) - start
    assert loss_of_answers(speaker, questions) == pytest.approx(total / count, rel=1e-5)


# ---- on the embedded base model -----------------------------------------------------------------------


@pytest.mark.slow
def test_replay_and_the_right_template_matter(tmp_path: Path) -> None:
    """The two lessons whose direction does not hang on the base's quality."""
    folder = tmp_path / "lessons"
    console = Console(file=io.StringIO(), width=80)
    lessons = [replace(BY_NAME["replay"], trials=BY_NAME["replay"].trials[::2]), BY_NAME["template"]]
    teach.teach(folder, lessons, console)
    kept = {
        k: Found.from_json(v) for k, v in json.loads((folder / "lessons.json").read_text())["trials"].items()
    }
    with_replay, without = kept[Trial().key], kept[Trial(("replay_share=0",)).key]
    assert without.general - without.general_before > 2 * (with_replay.general - with_replay.general_before)
    bare = kept[Trial(through="no template").key]
    assert with_replay.held_out.interval[0] > bare.held_out.interval[1]


@pytest.mark.slow
def test_the_replies_alone_are_better_than_every_token(tmp_path: Path) -> None:
    teach.teach(tmp_path / "lessons", [BY_NAME["masking"]], Console(file=io.StringIO()))
    kept = json.loads((tmp_path / "lessons" / "lessons.json").read_text())
    rights = {True: 0, False: 0}
    for key, value in kept["trials"].items():
        rights["everything" in key] += value["held_out"]["right"]
    assert rights[False] > rights[True]
