"""Small trials on the embedded base model: each trains it once, in some way, and asks it questions."""

from __future__ import annotations

import gc
import hashlib
import json
import math
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from imprint.demo.base import copy_base, write_general
from imprint.demo.exercises import Question, demonstrations, questions_of
from imprint.demo.spoil import fact_of, spoiled
from imprint.evaluate.marks import Marks, mark

if TYPE_CHECKING:
    from imprint.run import Display
    from imprint.serve.chat import Speaker

ALL = 2000  # demonstrations
QUESTIONS = {"held-out entities": 300, "seen": 100}

# What all trials have in common; a trial's own settings stand before these.
SAME = {
    "template": "chatml",
    "epochs": "1",
    "batch_size": "32",
    "learning_rate": "1e-3",
    "precision": "float32",  # in bfloat16 a processor prepares for each new length of a row, and keeps that
    "threads": "1",  # on a busy machine, two wait for each other
    "replay_share": "0.1",
    "validation": "0",
    "samples": "0",
    "final": "last",
    "validate_every": "1000000",  # the loss on general text is measured before and after, not between
}
RIGHT = "chatml"
# Other ways of asking than the one that was trained; where there is no preset, as templates.
THROUGH = {
    RIGHT: "",
    "chatml without the last newline": (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant{% endif %}"
    ),
    "alpaca": "",
    "no template": "{{ messages[-1].content }}",
}


@dataclass(frozen=True, slots=True)
class Trial:
    """What differs from the others: settings, how many demonstrations, how many of them wrong, how it is asked."""

    settings: tuple[str, ...] = ()
    rows: int = ALL
    wrong: float = 0.0
    through: str = RIGHT

    @property
    def run(self) -> Trial:
        """The training that it needs: trials with an equal one share it."""
        return replace(self, through=RIGHT)

    @property
    def key(self) -> str:
        """A name of its own, by which its figures are kept."""
        parts = [f"rows={self.rows}", *self.settings]
        parts += [f"wrong={self.wrong:g}"] if self.wrong else []
        parts += [f"through={self.through}"] if self.through != RIGHT else []
        return " ".join(parts)

    @property
    def whole(self) -> dict[str, str]:
        """All its settings but for the paths."""
        return SAME | pairs(self.settings)

    @property
    def steps(self) -> int:
        """About how many steps it takes."""
        whole = self.whole
        places = self.rows / (1 - float(whole["replay_share"]))
        return int(whole["epochs"]) * math.ceil(places / int(whole["batch_size"]))


@dataclass(frozen=True, slots=True)
class Found:
    """What a trial showed. Losses are nats a token; of general text before and after training."""

    settings: dict[str, str]
    demonstrations: int
    wrong: float
    through: str
    steps: int
    num_trainable: int
    seconds: float
    general_before: float
    general: float
    held_out: Marks
    seen: Marks  # of the demonstrations that it was trained on
    held_out_loss: float  # of the right answers
    seen_loss: float

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Found:
        marks = {name: Marks(**value[name]) for name in ("held_out", "seen")}
        return cls(**{**value, **marks})


def pairs(settings: Sequence[str]) -> dict[str, str]:
    return dict(text.split("=", 1) for text in settings)


def write_materials(folder: Path) -> None:
    """The base model and general text, where they are not yet in the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "base").exists():
        partial = folder / "base.partial"
        shutil.rmtree(partial, ignore_errors=True)
        copy_base(partial).rename(folder / "base")
    if not (folder / "general.jsonl").exists():
        write_general(folder / "general.jsonl")


def digest_of(folder: Path, extra: Sequence[str] = ()) -> str:
    """What the trials of a folder depend on beside their settings: the base, the texts, the questions."""
    asked = [asdict(question) for name in ("held-out entities", "seen") for question in _asked(name)]
    digest = hashlib.sha256(json.dumps([demonstrations(), asked, SAME | pairs(extra), THROUGH]).encode())
    for name in ("base/model.safetensors", "base/tokenizer.json", "general.jsonl"):
        digest.update((folder / name).read_bytes())
    return digest.hexdigest()


def train(trial: Trial, folder: Path, display: Display, extra: Sequence[str] = ()) -> Path:
    """The finished run of a trial, which goes on where it was broken off; Interrupted on Ctrl-C.

    `extra` are settings for every trial: max_steps=2.
    """
    from imprint import run, settings
    from imprint.folder import is_finished

    name = hashlib.sha256(trial.run.key.encode()).hexdigest()[:8]
    path, data = folder / "trials" / name, folder / "trials" / f"{name}.jsonl"
    if path.exists():
        if not is_finished(path):
            run.resume(path, display=display)
        return path
    data.parent.mkdir(exist_ok=True)
    rows = spoiled(demonstrations()[: trial.rows], trial.wrong)
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    paths = {"model": "base", "replay": "general.jsonl"}
    given = [f"{key}={folder / name}" for key, name in paths.items()]
    whole = trial.whole | pairs(extra)
    given += [f"data={data}", f"output={path}", *(f"{key}={value}" for key, value in whole.items())]
    run.train(settings.resolve(None, given).recipe, display=display)
    return path


def examine(trial: Trial, run: Path, extra: Sequence[str] = ()) -> Found:
    """What a finished run shows when it is asked through the trial's template."""
    from imprint.demo.exam import answers
    from imprint.serve.chat import load_speaker
    from imprint.track import events

    log = events.read(run / "events.jsonl")
    general = [event["loss"] for event in log if event["kind"] == "replay_loss"]
    start, end = (next(event for event in log if event["kind"] == kind) for kind in ("start", "end"))
    speaker = spoken_to(load_speaker(run), trial.through)
    marks, losses = {}, {}
    for name in QUESTIONS:
        questions = _asked(name, trial.rows)
        given = answers(speaker, [question.text for question in questions])
        marks[name] = mark(name, [question.answer for question in questions], given)
        losses[name] = loss_of_answers(speaker, questions)
    return Found(
        settings=trial.whole | pairs(extra),
        demonstrations=trial.rows,
        wrong=trial.wrong,
        through=trial.through,
        steps=start["total_steps"],
        num_trainable=start["num_trainable"],
        seconds=end["seconds"],
        general_before=general[0],
        general=general[-1],
        held_out=marks["held-out entities"],
        seen=marks["seen"],
        held_out_loss=losses["held-out entities"],
        seen_loss=losses["seen"],
    )


def forget(trial: Trial, run: Path) -> None:
    """Remove what a trial's run left, on the disk and in memory, once its figures are kept."""
    gc.collect()  # models lie in cycles, and the next one would come on top of them
    shutil.rmtree(run)
    run.with_suffix(".jsonl").unlink(missing_ok=True)


def spoken_to(speaker: Speaker, through: str) -> Speaker:
    """The same model, asked in the words of another template."""
    from imprint.render.template import find_template

    if through == RIGHT:
        return speaker
    source = THROUGH[through] or find_template(through, None)[0]
    template = replace(speaker.rendering.template, source=source, name=through)
    return replace(speaker, rendering=replace(speaker.rendering, template=template))


def loss_of_answers(speaker: Speaker, questions: Sequence[Question], at_once: int = 50) -> float:
    """Nats a token of the right answers, stop included, each behind its question."""
    import torch
    import torch.nn.functional as F
    from torch.nn.utils.rnn import pad_sequence

    from imprint.data.conversation import Message

    template, encoder = speaker.rendering.template, speaker.rendering.encoder
    total, count = 0.0, 0
    for start in range(0, len(questions), at_once):
        some = questions[start : start + at_once]
        asked = encoder.encode(
            [
                template.render(template.inputs([Message("user", q.text)]), add_generation_prompt=True)
                for q in some
            ]
        )
        ids, wanted = [], []
        for prompt, answer in zip(asked, encoder.encode([q.answer for q in some]), strict=True):
            reply = torch.tensor([*answer.tolist(), speaker.rendering.stop_ids[0]])
            before = torch.tensor(prompt.tolist())
            ids.append(torch.cat([before, reply]))
            wanted.append(torch.cat([torch.full_like(before, -100), reply]))
        padded = pad_sequence(ids, batch_first=True)  # behind a text, where a causal model does not look
        target = pad_sequence(wanted, batch_first=True, padding_value=-100)
        with torch.no_grad():
            logits: Any = speaker.model.model(input_ids=padded).logits[:, :-1]
        total += float(
            F.cross_entropy(logits.flatten(0, 1).float(), target[:, 1:].flatten(), reduction="sum")
        )
        count += int((target != -100).sum())
    return total / count


@cache
def _asked(name: str, rows: int = ALL) -> tuple[Question, ...]:
    """The questions of one set; of what is seen, those of the first so many demonstrations."""
    if name != "seen":
        return tuple(questions_of("held-out entities")[: QUESTIONS[name]])
    return tuple(_plain(rows))[: QUESTIONS[name]]


def _plain(rows: int) -> Iterator[Question]:
    """The demonstrations of one question and one answer in a sentence, as questions."""
    for row in demonstrations()[:rows]:
        if len(row["messages"]) == 2:
            question, answer = (message["content"] for message in row["messages"])
            yield Question(question, answer, fact_of(question, answer).kind.name)
