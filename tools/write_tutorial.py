"""Writes docs/tutorial.md and its pictures from the figures of docs/tutorial/figures.json.

    python tools/write_tutorial.py                  # the page and the pictures, from the figures
    python tools/write_tutorial.py LESSONS RUN      # first take the figures anew

LESSONS is the folder of `imprint demo --lessons`, all of them done; RUN the run folder of `imprint demo`.
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from imprint.demo.exercises import demonstrations
from imprint.demo.lesson_plots import picture
from imprint.demo.lesson_words import Rows, counted, percent
from imprint.demo.lessons import LESSONS, Lesson
from imprint.demo.teach import FIGURES, rows_of
from imprint.evaluate.marks import Compared, Marks, read_marks
from imprint.track import events

DOCS = Path(__file__).parent.parent / "docs"
HERE = DOCS / "tutorial"
COLOURS = """\
svg { --soft: #635d53; --line: #d8d2c8; --train: #27598a; --valid: #b3431f; --best: #b3431f; --paper: #fff; \
font-family: system-ui, sans-serif; }
@media (prefers-color-scheme: dark) { svg { --soft: #a8a297; --line: #3c4046; --train: #82b4e6; \
--valid: #f1906f; --best: #f1906f; --paper: #0d1117; } }"""


def gather(lessons: Path, run: Path) -> dict[str, Any]:
    """The figures of the lessons and of a demo's run, and what the model said before and after."""
    from imprint.demo.exam import answers, drawn
    from imprint.demo.tell import QUESTIONS
    from imprint.serve.chat import find_base, load_speaker

    log = events.read(run / "events.jsonl")
    start, end = (next(event for event in log if event["kind"] == kind) for kind in ("start", "end"))
    general = [event["loss"] for event in log if event["kind"] == "replay_loss"]
    base = load_speaker(find_base(run / "run.json", "model"), template="chatml")
    columns = (
        drawn(base, QUESTIONS, 20),
        [text for text, _ in answers(load_speaker(run), QUESTIONS)],
    )
    kept = json.loads((lessons / FIGURES).read_text(encoding="utf-8"))
    return {
        "imprint": kept["imprint"],
        "trials": kept["trials"],
        "run": {
            "num_parameters": start["num_parameters"],
            "conversations": start["conversations"],
            "batch_size": start["recipe"]["batch_size"],
            "epochs": start["recipe"]["epochs"],
            "replay_share": start["recipe"]["replay_share"],
            "steps": start["total_steps"],
            "seconds": end["seconds"],
            "general": [general[0], general[-1]],
        },
        "exam": json.loads((run / "exam.json").read_text(encoding="utf-8")),
        "answers": [list(row) for row in zip(QUESTIONS, *columns, strict=True)],
    }


def page(figures: dict[str, Any]) -> str:
    """The whole tutorial."""
    rows = rows_of(figures)
    missing = [lesson.name for lesson in LESSONS if lesson.name not in rows]
    if missing:
        raise SystemExit(
            f"these lessons are not complete: {', '.join(missing)}; imprint demo LESSONS --lessons"
        )
    parts = [_opening(figures), _training(figures), _judging(figures), LESSONS_HEAD]
    parts += [_lesson(number, lesson, rows[lesson.name]) for number, lesson in enumerate(LESSONS, start=1)]
    return "\n".join([*parts, ENDING])


def pictures(figures: dict[str, Any]) -> dict[str, str]:
    """The SVG of each lesson by its file's name; each holds the digest of what it was drawn from."""
    return {f"{lesson.name}.svg": _alone(lesson, rows_of(figures)[lesson.name]) for lesson in LESSONS}


def digest_of(rows: Rows) -> str:
    drawn = [(label, found.to_json()) for label, found in rows]
    return hashlib.sha256(json.dumps(drawn, sort_keys=True).encode()).hexdigest()


def _alone(lesson: Lesson, rows: Rows) -> str:
    """A picture as a file of its own, with the colours that it else takes from a page."""
    text = picture(lesson, rows, 7.2)
    box = re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', text)
    assert box is not None
    opening = f'<svg xmlns="http://www.w3.org/2000/svg" width="{box[1]}" height="{box[2]}"'
    head, rest = text.split(">", 1)
    style = f"<desc>{digest_of(rows)}</desc><style>{COLOURS}</style>"
    return f"{opening}{head.removeprefix('<svg')}>{style}{rest}".rstrip() + "\n"


def _opening(figures: dict[str, Any]) -> str:
    lines = ["| question | how the base model goes on | after fine-tuning |", "|---|---|---|"]
    lines += [
        "| " + " | ".join(_cell(text) for text in (question, f"{before} …", _shortened(after))) + " |"
        for question, before, after in figures["answers"]
    ]
    row = next(row for row in demonstrations() if len(row["messages"]) == 2)
    asked = {row["messages"][0]["content"] for row in demonstrations()}
    told = sum(question in asked for question, *_ in figures["answers"])
    return OPENING.format(
        parameters=f"{figures['run']['num_parameters'] / 1e6:.1f}",
        table="\n".join(lines),
        count=f"{len(demonstrations()):,}",
        demonstration=json.dumps(row),
        question=row["messages"][0]["content"],
        answer=row["messages"][1]["content"],
        stand=f"Of these {len(figures['answers'])} questions, {told} stand word for word in the demonstrations",
    )


def _training(figures: dict[str, Any]) -> str:
    run = figures["run"]
    before, after = run["general"]
    forgot = f"went up by {after - before:.2f}" if after > before else f"went down by {before - after:.2f}"
    return TRAINING.format(
        steps=run["steps"], batch=run["batch_size"], conversations=f"{run['conversations']:,}",
        epochs=f"{run['epochs']:g}", share=percent(run["replay_share"]), forgot=forgot,
        before=f"{before:.2f}", after=f"{after:.2f}",
    )  # fmt: skip


def _judging(figures: dict[str, Any]) -> str:
    lines = ["| questions | what they show | before | after | 95 % interval |", "|---|---|---|---|---|"]
    for one in _compared(figures["exam"]):
        low, high = one.after.interval
        cells = (one.after.name, one.meaning, percent(one.before.share), counted(one.after))
        lines.append("| " + " | ".join([*cells, f"{percent(low)} to {percent(high)}"]) + " |")
    return JUDGING.format(table="\n".join(lines))


def _compared(exam: Sequence[dict[str, Any]]) -> list[Compared]:
    return [Compared(Marks(**one["before"]), Marks(**one["after"]), one["meaning"]) for one in exam]


def _lesson(number: int, lesson: Lesson, rows: Rows) -> str:
    parts = (
        f"### {number}. {lesson.title}",
        _filled(f"{lesson.question} {lesson.how}"),
        f"![{lesson.title}](tutorial/{lesson.name}.svg)"
        + (f"\n\n{lesson.caption}" if lesson.caption else ""),
        _filled(lesson.seen(rows)),
        _filled(f"*Carries over:* {lesson.carries}"),
        _filled(f"*Does not:* {lesson.differs}"),
    )
    return "\n\n".join(parts) + "\n"


def _filled(text: str) -> str:
    return textwrap.fill(text, 118, break_long_words=False, break_on_hyphens=False)


def _shortened(text: str, most: int = 80) -> str:
    return text if len(text) <= most else text[:most] + " …"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


OPENING = """\
# Fine-tuning, from the beginning

This page is for someone who has never fine-tuned a language model. It follows what `imprint demo` and
`imprint demo --lessons` do on a laptop without a network, and all its figures come from these two commands:
`python tools/write_tutorial.py LESSONS RUN` writes the page anew from what they left.

## A base model continues text

A language model is made by reading. It sees text, guesses the next piece of a word (a *token*), and is corrected,
millions of times. What comes out is a *base model*: give it the beginning of a text, and it goes on in the way in
which such texts went on. It does not answer, because nobody showed it what answering is. Behind a question, it has
most often seen another question.

imprint brings a very small base model of its own, with {parameters} million weights. It has read facts about
countries, animals, elements and words, small stories, and lists of questions without answers. These questions
were put to it, before and after:

{table}

{stand}: the facts it had read, and it was
shown how to answer.

## Demonstrations show what to do

*Supervised fine-tuning* (SFT) goes on with training, now on *demonstrations*: conversations in which the replies are
as they should be. Each is a line of a file, made of messages with a role, `user` or `assistant`:

```json
{demonstration}
```

A `system` message may come first and say how to answer for the whole conversation ("Answer briefly."), and
there may be several questions and replies. The demo has {count} of them, and they speak of about half of what the model
has read. The other half is kept for the exam: if the model only learned these answers by heart, it fails there.

## A template writes a conversation as one text

A model reads text, and has no notion of messages. A *template* writes the conversation down with marks around each
message. This one is called ChatML:

```
<|im_start|>user
{question}<|im_end|>
<|im_start|>assistant
{answer}<|im_end|>
```

The marks are tokens of their own. When the model is used, the program around it writes all up to
`<|im_start|>assistant` and the newline behind it, and the model goes on from there. So the template belongs to the
model: [lesson 7](#7-what-if-it-is-asked-in-other-words-around-the-question) shows what happens with another one.

## The mask: only replies are trained

Training could correct every token, questions included. But the model never has to write a question, and so the
*mask* takes the correction (the *loss*) from the tokens of the replies alone. The rest is read, and not trained.
`imprint show` colours the trained tokens of any data; look at a few before you train on it.

## The stop is part of the reply

The last trained token is `<|im_end|>`. If it is missing from the mask, the model never learns to stop: it answers, and
then invents the next question. imprint trains the stop with every whole reply, and `imprint show` shows it.
"""

TRAINING = """\
## Steps, epochs and the learning rate

One *step* looks at a few demonstrations at once (here {batch}), works out in which direction each weight would have to
move to make the replies more likely, and moves all of them a little. How much is the *learning rate*: too small, and
nothing is learned; too large, and what was known breaks. One pass over all demonstrations is an *epoch*. The demo's
run took {steps} steps, {epochs} epochs of {conversations} conversations.

With every further epoch the model knows the demonstrations better. At some point it begins to learn them by heart, and
gets no better, or worse, at all others: *overfitting*. That is why some conversations are held out and never trained.

## Replay: what was known should stay known

A model that is trained on questions and answers alone gets worse at everything else. A remedy is *replay*: a part of
each step, here {share} of its places, is text such as the base model has read. Whether it is enough can be measured,
with general text that is never trained: in the demo's run, the loss on it {forgot}, from {before} to {after} nats
a token. (The loss says how surprised the model is by the right token: at 0 not at all, and 0.7 more means half as
likely.)
"""

JUDGING = """\
## How to judge

Ask before and after, the same questions, and count. The loss alone tells little: it says how likely the right answer
was, not whether it was given. And ask about what was *not* trained, in words that were not trained. Here an answer
counts only if it is right to the letter and ends by itself:

{table}

The interval says how far the share could lie from what it would be with very many such questions. Two models whose
intervals overlap may well be equally good: ask more questions before you believe in a small difference.
"""

LESSONS_HEAD = """\
## The lessons

Each lesson trains the small model in ways that differ in one thing, and asks all of these models the same held-out
questions. A dot is what was measured, a bar its 95 % interval (of the questions: other seeds vary, too). What is said
below a picture is made from its figures.
"""

ENDING = """\
## A model of 7 billion weights

The small model is not a large one made small. What carries over is the craft: the data matters most, the mask and
the stop must be right, the template of training is that of use, forgetting is measured and not guessed, and only
held-out questions tell. What does not carry over are the numbers: a large model starts with far more knowledge, needs a
learning rate ten to a hundred times lower, forgets more slowly, and shows a wrong setting less plainly. That is
what makes it harder: the mistakes that stand out here hide there.

## With your own data

1. Write twenty demonstrations by hand, the way you want to be answered. Then get more: hundreds that are good are
   worth more than many thousands that are not.
2. `imprint data check my.jsonl` says what cannot be used, and why.
3. `imprint show model=MODEL data=my.jsonl` shows what will be trained, token by token.
4. `imprint train model=MODEL data=my.jsonl` trains; `replay=general.jsonl` keeps what was known, `method=lora` fits a
   large model on a small device.
5. `imprint chat RUN --compare` puts the base beside the tuned model. Ask it things that are not in your data.
   `/save good.jsonl` keeps a good exchange as a demonstration, `/show` prints its tokens, `/help` lists the rest.
6. Read what it gets wrong, mend or add demonstrations, and train again.
"""


def main(arguments: Sequence[str]) -> None:
    if len(arguments) not in (0, 2):
        raise SystemExit(__doc__)
    kept = HERE / "figures.json"
    if arguments:
        HERE.mkdir(exist_ok=True)
        assert read_marks(Path(arguments[1])), "a run of imprint demo has an exam"
        figures = gather(*map(Path, arguments))
        kept.write_text(json.dumps(figures, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    figures = json.loads(kept.read_text(encoding="utf-8"))
    (DOCS / "tutorial.md").write_text(page(figures), encoding="utf-8")
    for name, text in pictures(figures).items():
        (HERE / name).write_text(text, encoding="utf-8")
    print(f"wrote {DOCS / 'tutorial.md'} and {len(LESSONS)} pictures")


if __name__ == "__main__":
    main(sys.argv[1:])
