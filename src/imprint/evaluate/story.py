"""What happened in a run, told from its recipe and its events."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import PurePosixPath
from typing import Any

from imprint.data.ledger import Ledger
from imprint.recipe import Recipe
from imprint.track.words import count, duration, perplexity, plural, size, token_probability

Fields = dict[str, Any]


@dataclass(frozen=True)
class Figure:
    """One number of the headline: what it is, what it was before, what it is now, what it means."""

    label: str
    value: str
    before: str = ""
    note: str = ""


class Story:
    """The facts of a run. Every one may be missing: a run can be looked at before its first step."""

    def __init__(self, recipe: Recipe | None, ledger: Ledger | None, events: list[Fields]):
        self.recipe, self.ledger, self.events = recipe, ledger, events
        self.steps = [event for event in events if event["kind"] == "step"]
        self.validations = [
            event for event in events if event["kind"] == "validation" and event.get("loss") is not None
        ]
        self.general = [
            event for event in events if event["kind"] == "replay_loss" and event.get("loss") is not None
        ]
        self.start = next((event for event in reversed(events) if event["kind"] == "start"), {})
        self.end: Fields = {}
        self.early: Fields = {}
        self.status = "empty"
        for event in events:
            if event["kind"] == "early_stop":
                self.early = event
            if event["kind"] == "end":
                self.status, self.end = "ended", event
            elif event["kind"] == "interrupted":
                self.status = "interrupted"
            elif event["kind"] in ("start", "resume", "step") or self.status == "empty":
                self.status = "open"

    # single facts --------------------------------------------------------------------------------

    @property
    def best(self) -> Fields:
        """The validation that the run called its best, or the one with the lowest loss so far."""
        named = [event for event in self.validations if event.get("best")]
        return (
            named[-1] if named else min(self.validations, key=lambda event: float(event["loss"]), default={})
        )

    @property
    def kept(self) -> int | None:
        """The step whose weights became the model; while the run goes on, the one they would be of."""
        if self.end.get("model_step") is not None:
            return int(self.end["model_step"])
        if not self.best or (self.recipe is not None and self.recipe.final == "last"):
            return self.last_step
        return int(self.best["step"])

    @property
    def last_step(self) -> int:
        return max((int(event["step"]) for event in self.events if "step" in event), default=0)

    @property
    def seconds(self) -> float:
        """How long the run took; while it goes on, how long its steps took."""
        if self.end.get("seconds") is not None:
            return float(self.end["seconds"])
        return self.total("seconds")

    def total(self, field: str) -> float:
        """Sum of a field over all steps."""
        return sum(event.get(field) or 0 for event in self.steps)

    @property
    def model(self) -> str:
        return _name(self.recipe.model) if self.recipe else "a model"

    @property
    def data(self) -> str:
        names = [_name(source.path) for source in self.recipe.data] if self.recipe else ["its data"]
        if len(names) > 3:
            return f"{names[0]}, {names[1]} and {len(names) - 2} more"
        return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)

    @property
    def replay_weight(self) -> float | None:
        """The share of a step's loss weight that replay had, on average over the steps."""
        shares = [event["replay_weight"] for event in self.steps if event.get("replay_weight") is not None]
        return sum(shares) / len(shares) if shares else None

    # sentences -----------------------------------------------------------------------------------

    def method(self) -> str:
        """`Every weight of m was trained on d: 1,200 conversations, 60 more held out.`"""
        if self.recipe is None:
            return ""
        lora = self.recipe.lora
        if self.recipe.method != "full":
            kinds = {"rsLoRA": lora.scaling == "rslora", "DoRA": lora.dora, "PiSSA": lora.init == "pissa"}
            kind = "".join(f", {name}" for name, on in kinds.items() if on)
            four = (
                f", held in four bits ({self.recipe.quantization.type}),"
                if self.recipe.method == "qlora"
                else ""
            )
            how = f"Low-rank adapters (rank {lora.rank}{kind}) on {self.model}{four} were trained"
        elif self.recipe.freeze or self.recipe.train_only:
            part, whole = (self.start.get(key) or 0 for key in ("num_trainable", "num_parameters"))
            how = f"{part:,} of the {whole:,} weights of {self.model} were trained"
        else:
            how = f"Every weight of {self.model} was trained"
        kept = self.ledger.conversations.kept if self.ledger else {}
        extent = ""
        if kept.get("train"):
            extent = f": {plural(kept['train'], 'conversation')}"
            if kept.get("validation"):
                extent += f", and {kept['validation']:,} held out to measure"
        return f"{how} on {self.data}{extent}."

    @property
    def objective(self) -> str:
        """What training minimised, where that is not what validation measures; else empty."""
        if self.recipe is None:
            return ""
        recipe, parts = self.recipe, []
        if recipe.loss != "nll":
            parts.append(f"of {recipe.loss}")
        if recipe.label_smoothing:
            parts.append(f"with label smoothing {recipe.label_smoothing:g}")
        if recipe.z_loss:
            parts.append(f"with z-loss {recipe.z_loss:g}")
        return ", ".join(parts)

    def outcome(self) -> str:
        """What the run changed, in one plain sentence."""
        if not self.steps and not self.validations:
            return "No step has been taken yet."
        extent = f"{self._epochs()}({plural(self.last_step, 'step')}, {duration(self.seconds)})"
        if not self.validations:
            return f"{self._training_loss()} in {extent}. There was no validation."
        first, best, last = self.validations[0], self.best, self.validations[-1]
        if len(self.validations) == 1:
            return f"Validation loss is {number(first['loss'])} at step {first['step']:,}, after {extent}."
        if best["loss"] >= first["loss"]:
            was = f"it was {number(first['loss'])} at step {first['step']:,} and is {number(last['loss'])}"
            return f"Validation loss did not fall: {was} after {extent}{self._choice()}."
        since = "" if first["step"] == 0 else f" (at step {first['step']:,})"
        fell = f"Validation loss fell from {number(first['loss'])}{since} to {number(best['loss'])}"
        return f"{fell} in {extent}{self._choice()}."

    def forgetting(self) -> str:
        """What became of the loss on general text, and how much of the training was replay; empty without replay."""
        told = []
        if len(self.general) > 1:
            before, after = float(self.general[0]["loss"]), float(self._general_kept["loss"])
            change = f"{after - before:+.2f} nats a token"
            told.append(
                f"On general text that was held out the loss went from {number(before)} to {number(after)} ({change})."
            )
        if self.replay_weight is not None:
            share = f"{self.replay_weight:.1%} of the weight of the loss"
            drawn = int(self.total("replay"))
            told.append(f"Replay was {share}: {plural(drawn, 'piece')} of it, repeats included, were drawn.")
        elif self.recipe is not None and self.recipe.replay:
            told.append("No replay was trained: replay_share is 0.")
        return " ".join(told)

    @property
    def _general_kept(self) -> Fields:
        """The loss on general text of the weights that became the model, or the last one."""
        kept = [event for event in self.general if event["step"] == self.kept]
        return kept[-1] if kept else self.general[-1]

    def state(self) -> str:
        """Whether and why the run is over; empty where it simply went to its end."""
        if self.status == "empty":
            return "Nothing has been recorded yet."
        total = self.start.get("total_steps")
        reach = f"step {self.last_step:,}" + (f" of {total:,}" if total else "")
        if self.status == "interrupted":
            return f"Interrupted at {reach}; it can be resumed."
        if self.status == "open":
            when = _moment(self.events[-1].get("time"))
            return f"Not over: still running, or cut off, at {reach}. Last heard of {when}."
        if self.early:
            reason = self.early.get("reason") or "no reason given"
            return f"Stopped early at step {self.early['step']:,}: {reason}."
        return ""

    def _choice(self) -> str:
        """Which weights became the model, where that is known."""
        if self.status != "ended":
            return f", the best so far at step {self.best['step']:,}"
        if self.recipe is not None and self.recipe.final == "last":
            return f", the best at step {self.best['step']:,}; the model kept is the last, as the recipe asks"
        return f"; the model chosen is that of step {self.kept:,}"

    def _epochs(self) -> str:
        epochs = self.steps[-1].get("epoch") if self.steps else None
        if epochs is None:
            return ""
        text = f"{round(epochs, 2):g}"
        return f"{text} epoch{'' if text == '1' else 's'} "

    def _training_loss(self) -> str:
        losses = [event["loss"] for event in self.steps if event.get("loss") is not None]
        if not losses:
            return "Training loss was never a number,"
        few = max(1, len(losses) // 20)
        first, last = sum(losses[:few]) / few, sum(losses[-few:]) / few
        if len(losses) == 1:
            return f"Training loss was {number(first)}"
        return f"Training loss {'fell' if last < first else 'rose'} from {number(first)} to {number(last)}"

    # numbers -------------------------------------------------------------------------------------

    def figures(self) -> list[Figure]:
        """The numbers worth seeing first."""
        figures = []
        if self.validations:
            before, after = float(self.validations[0]["loss"]), float(self.best["loss"])
            figures.append(_change("validation loss", number(before), number(after), "nats a token"))
            figures.append(
                _change("perplexity", perplexity(before), perplexity(after), "equally likely choices")
            )
            figures.append(
                _change(
                    "token probability",
                    f"{token_probability(before):.0%}",
                    f"{token_probability(after):.0%}",
                    "geometric mean",
                )
            )
        if self.general:
            before, after = float(self.general[0]["loss"]), float(self._general_kept["loss"])
            figures.append(_change("general text", number(before), number(after), "loss on held-out replay"))
        if self.steps:
            figures.append(Figure("trained tokens", count(self.total("trained_tokens")), note="with a loss"))
            figures.append(Figure("time", duration(self.seconds), note=plural(self.last_step, "step")))
        peak = max((event.get("peak_bytes") or 0 for event in self.steps), default=0)
        if peak:
            figures.append(Figure("memory", size(peak), note="at its peak"))
        return figures

    def diary(self) -> list[tuple[str, str]]:
        """Moments and what happened then, but for steps and validations."""
        lines = []
        for event in self.events:
            text = _happened(event)
            if text:
                lines.append((_moment(event.get("time")), text))
        return lines


def number(loss: float | None) -> str:
    """A loss in as many digits as are worth reading."""
    if loss is None:
        return "–"
    return f"{loss:.2f}" if loss >= 0.095 else f"{loss:.2g}"


def _change(label: str, before: str, after: str, note: str) -> Figure:
    return Figure(label, after, "" if before == after else before, note)


def _happened(event: Fields) -> str:
    match event["kind"]:
        case "start":
            trainable, whole = event.get("num_trainable"), event.get("num_parameters")
            of = (
                f": {count(trainable)} of {count(whole)} parameters are trained"
                if trainable and whole
                else ""
            )
            return f"Started{of}."
        case "resume":
            return f"Resumed after step {event['step']:,}."
        case "interrupted":
            return f"Interrupted at step {event['step']:,}."
        case "not_finite":
            done = "the update was left out" if event.get("skipped") else "stopped before the update"
            return f"The loss or its gradient was not finite at step {event['step']:,}: {done}; " + "; ".join(
                event.get("rows", [])[:4]
            )
        case "early_stop":
            return f"Stopped early at step {event['step']:,}: {event.get('reason', '')}."
        case "note" | "export":
            return str(event.get("text", ""))
        case "end":
            return f"Ended at step {event['step']:,}" + (
                f": {event['reason']}." if event.get("reason") else "."
            )
    return ""


def _name(path: str) -> str:
    return PurePosixPath(path.replace("\\", "/").rstrip("/")).name or path


def _moment(seconds: float | None) -> str:
    """In UTC, so that a report does not depend on where it was written."""
    return "–" if seconds is None else datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M UTC")
