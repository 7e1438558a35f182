"""What a person sees in the terminal while a run goes on.

A sink of the event log: it knows only what the events say, so that it can show a live run and
a recorded one alike. On a terminal it is a small panel that is redrawn in place; elsewhere
(a file, a cluster's log) it is a plain line now and then.
"""

from __future__ import annotations

from collections import deque
from types import TracebackType
from typing import Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from imprint.track.events import Event
from imprint.track.words import duration, plural, size, token_probability

RECENT = 20  # steps over which speed is averaged
LINES = 20  # plain lines in a run, beside those of validations


class Progress:
    """Shows a run of `total_steps` steps; use it as a context manager, or call `close`."""

    def __init__(self, total_steps: int, console: Console | None = None):
        self.total_steps = total_steps
        self.console = console or Console(stderr=True)
        self.step: Event = {}
        self.validation: Event = {}
        self.best: Event = {}
        self.first_validation: Event = {}
        self.general: list[Event] = []  # the losses on replay that is held out
        self.sample: Event = {}
        self.last: Event = {}
        self._recent: deque[Event] = deque(maxlen=RECENT)
        self._first_step: Event = {}
        self._said = 0
        self._live: Live | None = None
        if self.console.is_terminal:
            self._live = Live(
                get_renderable=self._panel, console=self.console, refresh_per_second=4, transient=True
            )
            self._live.start()

    def event(self, event: Event) -> None:
        """Take in one event of the log, in the order in which they happen."""
        match event["kind"]:
            case "step":
                self._first_step = self._first_step or event
                self.step = event
                self._recent.append(event)
                self._say_step()
            case "validation":
                self.first_validation = self.first_validation or event
                self.validation = event
                if event.get("best"):
                    self.best = event
                self._say(self._validation_line(event))
            case "replay_loss":
                self.general.append(event)
                self._say(f"general text at step {event['step']} · loss {self._general_text()}")
            case "sample":
                self.sample = event
            case "note" | "rehearsal":
                self._print(Text.assemble(("note  ", "dim"), str(event["text"])))
            case "not_finite":
                told = "left out" if event.get("skipped") else "stopped"
                rows = "; ".join(event.get("rows", [])[:4])
                self._print(Text(f"step {event['step']:,} is not finite, {told}: {rows}", "yellow"))
            case "resume":
                self.first_validation = event.get("first_validation", {})
                self.best = event.get("best_validation", {})
                step = event["step"]
                self._print(
                    Text(f"resumed after step {step:,}" if step else "begun again at the first step", "dim")
                )
                for name, fault in event.get("passed_over", {}).items():
                    self._print(Text(f"passed over {name}: {fault}", "yellow"))
            case "early_stop" | "interrupted" | "end":
                self.last = event
                if event["kind"] == "early_stop":
                    self._print(Text(f"stopped early at step {event['step']:,}: {event.get('reason', '')}"))

    def close(self) -> None:
        """Take the panel away and leave the summary. Calling it again does nothing."""
        if self._live is not None:
            self._live.stop()
            self._live = None
        if self.step or self.last:
            self.console.print(self._summary(), highlight=False)
            self.step, self.last = {}, {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # what is known -------------------------------------------------------------------------------

    def seconds_left(self) -> float | None:
        """Time to the last step at the pace so far, validations and checkpoints included."""
        if len(self._recent) < 2:
            return None
        done = self.step["step"] - self._first_step["step"]
        pace = (self.step["time"] - self._first_step["time"]) / max(1, done)
        return float(pace * max(0, self.total_steps - self.step["step"]))

    def _rate(self, field: str) -> float | None:
        """Tokens a second over the recent steps."""
        seconds = sum(event.get("seconds") or 0.0 for event in self._recent)
        return sum(event.get(field) or 0 for event in self._recent) / seconds if seconds else None

    def _saved(self) -> float | None:
        """Share of the tokens that did not have to be computed, over the recent steps."""
        tokens = sum(event.get("tokens") or 0 for event in self._recent)
        computed = sum(event.get("computed_tokens") or 0 for event in self._recent)
        return 1 - computed / tokens if tokens else None

    # the panel of a terminal ---------------------------------------------------------------------

    def _panel(self) -> RenderableType:
        if not self.step:
            return Text("preparing the first step …", "dim")
        facts = Table.grid(padding=(0, 2))
        facts.add_column(style="dim", no_wrap=True, min_width=10)
        facts.add_column(no_wrap=True, overflow="ellipsis")
        loss = self.step.get("loss")
        facts.add_row("loss", _loss(loss))
        if self.validation:
            facts.add_row("validation", self._validation_text())
        if self.general:
            facts.add_row("general", self._general_text() + " · on replay that is held out")
        if self.step.get("replay_weight") is not None:
            facts.add_row("replay", self._replay_text())
        facts.add_row("speed", self._speed())
        facts.add_row("rate", self._small_facts())
        if self.sample:
            facts.add_row(Text("asked"), Text(_one_line(self.sample.get("question")), "italic"))
            facts.add_row(Text("replied"), Text(_one_line(self.sample.get("reply")) or "(nothing)"))
        return Group(self._heading(), facts)

    def _heading(self) -> RenderableType:
        step, total = self.step["step"], max(1, self.total_steps)
        left = self.seconds_left()
        head = Table.grid(expand=True, padding=(0, 2))
        head.add_column(no_wrap=True)
        head.add_column(ratio=1)
        head.add_column(no_wrap=True, justify="right")
        head.add_row(
            Text.assemble((f"step {step:,}", "bold"), (f" of {self.total_steps:,}", "dim"), self._epoch()),
            ProgressBar(total=total, completed=min(step, total), complete_style="cyan"),
            Text("" if left is None else f"{duration(left)} left"),
        )
        return head

    def _epoch(self) -> str:
        epoch = self.step.get("epoch")
        return "" if epoch is None else f" · epoch {epoch:.2f}"

    def _validation_text(self) -> Text:
        now = self.validation
        text = Text(f"{_number(now.get('loss'))}  ")
        if now.get("best"):
            text.append("best", "bold green")
        elif self.best:
            text.append(f"best {_number(self.best['loss'])} at step {self.best['step']:,}", "green")
        if self.first_validation is not now:
            text.append(f" · at step {self.first_validation['step']:,} it was ", "dim")
            text.append(_number(self.first_validation.get("loss")), "dim")
        return text

    def _general_text(self) -> str:
        """The loss on replay that is held out, now and before training."""
        first, now = self.general[0], self.general[-1]
        before = "" if first is now else f" · at step {first['step']:,} it was {_number(first.get('loss'))}"
        return _number(now.get("loss")) + before

    def _replay_text(self) -> str:
        """`3 pieces (12% of the weight)`: what of the step is replay."""
        pieces = plural(self.step.get("replay") or 0, "piece")
        return f"{pieces} ({self.step['replay_weight']:.0%} of the weight)"

    def _speed(self) -> str:
        needed, computed, saved = self._rate("tokens"), self._rate("computed_tokens"), self._saved()
        if needed is None:
            return "–"
        text = f"{needed:,.0f} tokens/s trained on"
        if computed is not None and saved is not None and saved >= 0.0005:
            text += f" · {computed:,.0f} computed · {saved:.0%} saved"
        return text

    def _small_facts(self) -> str:
        parts = []
        if self.step.get("learning_rate") is not None:
            parts.append(f"{self.step['learning_rate']:.2e}")
        if self.step.get("grad_norm") is not None:
            parts.append(f"gradient {self.step['grad_norm']:.3g}")
        if self.step.get("peak_bytes"):
            parts.append(f"memory {size(self.step['peak_bytes'])} at most")
        return " · ".join(parts) or "–"

    # plain lines ---------------------------------------------------------------------------------

    def _print(self, text: Text) -> None:
        self.console.print(text, highlight=False, soft_wrap=True)

    def _say(self, line: str) -> None:
        if not self.console.is_terminal:
            self._print(Text(line))

    def _say_step(self) -> None:
        """Say the first step, the last, and about every twentieth part between."""
        step = self.step["step"]
        part = step * LINES // max(1, self.total_steps)
        if self._first_step is self.step or part > self._said or step == self.total_steps:
            self._said = part
            self._say(self._step_line())

    def _step_line(self) -> str:
        parts = [f"step {self.step['step']}/{self.total_steps}{self._epoch()}"]
        parts.append(f"loss {_number(self.step.get('loss'))}")
        if self.step.get("replay_weight") is not None:
            parts.append(f"replay weight {self.step['replay_weight']:.0%}")
        needed, saved, left = self._rate("tokens"), self._saved(), self.seconds_left()
        if needed is not None:
            parts.append(
                f"{needed:,.0f} tokens/s" + (f" ({saved:.0%} saved)" if saved and saved >= 0.0005 else "")
            )
        if left:
            parts.append(f"{duration(left)} left")
        return " · ".join(parts)

    def _validation_line(self, event: Event) -> str:
        return f"validation at step {event['step']} · loss {_loss(event.get('loss'))}" + (
            " · best" if event.get("best") else ""
        )

    def _summary(self) -> Text:
        ended = self.last.get("kind") in ("end", "early_stop")
        step = int((self.last or self.step)["step"])
        word = "done" if ended else "interrupted" if self.last else "stopped"
        text = Text.assemble((word, "bold green" if ended else "bold yellow"), "  " + plural(step, "step"))
        if self.last.get("seconds") is not None:
            text.append(f" in {duration(self.last['seconds'])}")
        before, best = self.first_validation, self.best
        if best and best is not before:
            text.append(f" · validation loss {_number(before.get('loss'))} → {_number(best['loss'])}")
            text.append(f" (step {best['step']:,})")
        elif self.step.get("loss") is not None:
            text.append(f" · loss {_number(self.step['loss'])}")
        for line in self._forgotten():
            text.append(f"\n      {line}")
        return text

    def _forgotten(self) -> list[str]:
        """What became of general text, and how much of the training was replay."""
        lines = []
        if self.general:
            kept = self.last.get("model_step", self.general[-1]["step"])
            after = next((event for event in self.general if event["step"] == kept), self.general[-1])
            before = _number(self.general[0].get("loss"))
            before = f"{before} → " if after is not self.general[0] else ""
            lines.append(f"general text {before}{_number(after.get('loss'))} (step {after['step']:,})")
        if self.last.get("replay_weight") is not None:
            share = f"{self.last['replay_weight']:.1%} of the loss weight"
            lines.append(f"replay: {plural(self.last['replay'], 'piece')} drawn, {share}")
        return lines


def _loss(loss: float | None) -> str:
    """A loss and the (geometric) mean probability of a token to learn that it stands for."""
    if loss is None:
        return "not a number"
    return f"{loss:.4f} · mean token probability {token_probability(loss):.1%}"


def _number(loss: float | None) -> str:
    return "not a number" if loss is None else f"{loss:.4f}"


def _one_line(text: object) -> str:
    """Model output on one line, without control characters that could move the cursor."""
    return " ".join("".join(c if c.isprintable() else " " for c in str(text or "")).split())[:400]
