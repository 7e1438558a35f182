"""The lessons of `imprint demo --lessons`: what each asks, which trials answer it, what of it carries over."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

from imprint.demo import lesson_words as words
from imprint.demo.lesson_words import Rows
from imprint.demo.trials import RIGHT, THROUGH, Trial

Panel = Literal["held_out", "seen", "general", "stopped"]

DEMO = Trial()
SEEDS = ("seed=0", "seed=1", "seed=2")
_EVERYTHING = "train_on=everything"


@dataclass(frozen=True, slots=True)
class Lesson:
    """One question about fine-tuning. `trials` are (what differs, in words; the trial), in their order."""

    name: str
    title: str
    question: str
    how: str
    trials: tuple[tuple[str, Trial], ...]
    panels: tuple[Panel, ...]
    seen: Callable[[Rows], str]
    carries: str  # what of it holds for a large model
    differs: str  # what does not

    @property
    def caption(self) -> str:
        """What its picture does not say itself."""
        if self.name == "epochs":
            return "Solid: held-out questions. Dashed: questions that were trained."
        return "Dotted: the loss on general text before training." if "general" in self.panels else ""


def _share(text: str) -> Trial:
    return DEMO if text == "0.1" else Trial((f"replay_share={text}",))


_LORA_RATES = ("3e-3", "1e-2")
_LORA = tuple(
    (f"rank {rank}, rate {rate}", Trial(("method=lora", f"lora.rank={rank}", f"learning_rate={rate}")))
    for rank in (2, 8, 32)
    for rate in _LORA_RATES
)


LESSONS: tuple[Lesson, ...] = (
    Lesson(
        "masking",
        "Train the replies only, or every token?",
        "Does it matter whether the model must also learn to write the questions?",
        "The same conversations, once with loss on the replies and once on every token, with three seeds each.",
        tuple(
            (f"{label}, {seed.replace('=', ' ')}", Trial((*more, *((seed,) if seed != "seed=0" else ()))))
            for seed in SEEDS
            for label, more in (("replies only", ()), ("every token", (_EVERYTHING,)))
        ),
        ("held_out", "general"),
        words.masking,
        "What the loss is taken on decides what is learned: a question is never the model's to write, so it need "
        "not be trained, and a served model never has to produce one.",
        "How much it matters. Here prompts are longer than replies; a large model with long replies and short "
        "prompts often shows little difference, and long prompts with short replies a larger one.",
    ),
    Lesson(
        "replay",
        "How much general text keeps the model from forgetting?",
        "What does fine-tuning cost of what the base model knew, and what does it cost to keep it?",
        "General text such as the base has read takes a share of each step's places; other such text, never "
        "trained, is measured before and after.",
        tuple(
            ("none" if s == "0" else f"{100 * float(s):.0f} %", _share(s))
            for s in ("0", "0.05", "0.1", "0.3")
        ),
        ("general", "held_out"),
        words.replay,
        "A model that is trained on one kind of text gets worse at the others, quietly; some replay is cheap, and "
        "measuring before and after shows whether it is enough.",
        "How fast it goes. A tiny model has no room to spare; a large one at its usual, lower learning rate "
        "forgets more slowly, and its general text is far more various than these stories.",
    ),
    Lesson(
        "how-many",
        "How many demonstrations?",
        "Do more demonstrations help, or would more passes over few of them do as well?",
        "The first 100, 500 and 2,000 of the same demonstrations: each passed over once, and as often as gives the "
        "steps of the largest.",
        (
            ("100 × 1", Trial(rows=100)),
            ("500 × 1", Trial(rows=500)),
            ("100 × 18", Trial(("epochs=18",), rows=100)),
            ("500 × 4", Trial(("epochs=4",), rows=500)),
            ("2,000 × 1", DEMO),
        ),
        ("held_out", "seen"),
        words.how_many,
        "Steps are no substitute for variety: what is repeated is learned by heart first.",
        "The numbers. A large base model knows more of what it is asked for, and a thousand good demonstrations "
        "go further than they do here; a new skill needs more than a new manner.",
    ),
    Lesson(
        "noise",
        "What do wrong answers do?",
        "How much harm is done by demonstrations whose answers are wrong?",
        "In a share of the demonstrations the answer is that of another thing of the same kind. "
        "Marks count true answers.",
        (
            ("clean", DEMO),
            ("10 % wrong", Trial(wrong=0.1)),
            ("30 % wrong", Trial(wrong=0.3)),
        ),
        ("held_out", "seen"),
        words.noise,
        "A model is taught what the data says, wrong answers included; to look at the data is worth "
        "more than most settings.",
        "These errors are scattered by chance, and what is learned from the rest can outvote them. Errors of real "
        "data lean one way, and such ones are learned.",
    ),
    Lesson(
        "epochs",
        "How many times over the same data?",
        "When does learning by heart begin?",
        "500 demonstrations, passed over 1, 2, 4 and 8 times; each point is a run of its own. The loss is that of "
        "the right answers.",
        tuple(
            (f"{n} epoch{'s' if n > 1 else ''}", Trial((f"epochs={n}",) if n != 1 else (), rows=500))
            for n in (1, 2, 4, 8)
        ),
        ("held_out", "seen"),
        words.epochs,
        "The training loss goes on falling whether or not anything useful is learned; only what was held out tells "
        "when to stop.",
        "Where the turn is. Two or three passes are usual for a large model on thousands of demonstrations.",
    ),
    Lesson(
        "lora",
        "Adapters or all weights?",
        "Can a few added numbers do the work, and what do their rank and the learning rate change?",
        "LoRA of three ranks at two learning rates, beside full training at its own.",
        (("full, rate 1e-3", DEMO), *_LORA),
        ("held_out", "general"),
        words.lora,
        "Adapters want a learning rate several times that of full training, and the rate matters more than the rank "
        "over a wide range. What an adapter leaves frozen must be fit for use: marks of a template that the base has "
        "never seen need embeddings that differ.",
        "The saving. Here everything is small; with 7 billion weights, an adapter is what makes training fit on "
        "one device, and the manner of answering needs little rank.",
    ),
    Lesson(
        "template",
        "What if it is asked in other words around the question?",
        "What happens when a server wraps the question in another template than training did?",
        "One tuned model, asked the same questions through the template of its training and through others.",
        tuple((label, replace(DEMO, through=label)) for label in THROUGH),
        ("held_out", "stopped"),
        words.template,
        "A template is part of the model: serve with the one that was trained, to the last newline. imprint saves it "
        "with the model for this reason.",
        "How badly it goes. A large model often understands another template well enough to hide the mistake, and "
        "answers a little worse, or does not stop.",
    ),
)
assert next(iter(THROUGH)) == RIGHT, "the first is what the others are compared with"
