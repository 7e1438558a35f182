"""What the terminal shows is what the events say, at 80 columns, and a tidy line is left."""

import io

from rich.console import Console

from imprint.track.events import Event
from imprint.track.progress import Progress
from imprint.track.words import count, duration, perplexity, plural, size


def a_step(step: int, **changes: object) -> Event:
    return {
        "kind": "step", "time": 1000.0 + 2 * step, "step": step, "epoch": step / 50, "loss": 2.0 - step / 100,
        "learning_rate": 2e-5, "grad_norm": 0.8123, "conversations": 32, "tokens": 8000,
        "computed_tokens": 6000, "trained_tokens": 2000, "seconds": 2.0, "peak_bytes": 1_234_000_000,
    } | changes  # fmt: skip


def a_validation(step: int, loss: float, best: bool) -> Event:
    return {"kind": "validation", "time": 1000.0 + 2 * step, "step": step, "loss": loss, "best": best}


def panel(events: list[Event], total: int, width: int = 80) -> str:
    """The panel as it stands after the events, drawn once."""
    progress = Progress(total, Console(file=io.StringIO()))
    for event in events:
        progress.event(event)
    console = Console(file=io.StringIO(), width=width, force_terminal=True, record=True, color_system=None)
    console.print(progress._panel())
    return console.export_text()


def recorded(events: list[Event], total: int, terminal: bool) -> str:
    """All that is written in a run of these events."""
    console = Console(file=io.StringIO(), width=80, force_terminal=terminal, record=True, color_system=None)
    with Progress(total, console) as progress:
        for event in events:
            progress.event(event)
    return console.export_text()


def test_the_panel_says_what_the_events_say() -> None:
    events: list[Event] = [a_validation(0, 2.3, False)]
    events += [a_step(step) for step in range(1, 51)]
    events += [a_validation(50, 1.25, True), a_step(51), a_validation(51, 1.5, False)]
    events += [
        {"kind": "sample", "time": 0.0, "step": 51, "question": "What is\nup?", "reply": "\x1b[2JThe sky."}
    ]
    text = panel(events, 100)
    for part in [
        "step 51 of 100", "epoch 1.02", "98 s left", "1.4900", "mean token probability 22.5%",
        "1.5000", "best 1.2500 at step 50", "2.3000", "4,000 tokens/s trained on", "3,000 computed",
        "25% saved", "2.00e-05", "gradient 0.812", "1.23 GB", "What is up?", "The sky.",
    ]:  # fmt: skip
        assert part in text, part
    assert "\x1b[2J" not in text
    assert max(map(len, text.splitlines())) <= 80


def test_the_panel_fits_a_narrow_terminal_and_before_the_first_step() -> None:
    text = panel([a_step(1)], 100, width=50)
    assert max(map(len, text.splitlines())) <= 50
    assert "preparing" in panel([], 100)


def test_no_terminal_gets_plain_lines_now_and_then() -> None:
    events: list[Event] = [a_validation(0, 2.3, False)]
    events += [a_step(step) for step in range(1, 1001)]
    events += [a_validation(1000, 0.5, True), {"kind": "end", "time": 0.0, "step": 1000, "seconds": 250.0}]
    lines = recorded(events, 1000, terminal=False).splitlines()
    steps = [line for line in lines if line.startswith("step ")]
    assert steps[0].startswith("step 1/1000")
    assert steps[-1].startswith("step 1000/1000")
    assert 20 <= len(steps) <= 23
    assert "validation at step 1000 · loss 0.5000 · mean token probability 60.7% · best" in lines
    assert max(len(line) for line in lines if line.startswith("validation")) <= 80
    assert sum(line.startswith("validation at step") for line in lines) == 2
    assert lines[-1] == "done  1,000 steps in 4 min · validation loss 2.3000 → 0.5000 (step 1000)".replace(
        "step 1000", "step 1,000"
    )


def test_every_step_of_a_short_run_is_said_once() -> None:
    lines = recorded([a_step(1), a_step(2), a_step(3)], 3, terminal=False).splitlines()
    assert [line[:8] for line in lines[:3]] == ["step 1/3", "step 2/3", "step 3/3"]
    assert lines[3].startswith("stopped  3 steps · loss 1.9700")


def test_a_resumed_run_estimates_from_its_own_steps() -> None:
    console = Console(file=io.StringIO(), width=80)
    progress = Progress(200, console)
    for step in range(101, 111):
        progress.event(a_step(step))
    assert progress.seconds_left() == 180.0


def test_numbers_that_are_missing_or_huge_do_not_break_it() -> None:
    broken = a_step(1, loss=None, grad_norm=None, peak_bytes=0, seconds=0.0, tokens=0, computed_tokens=0)
    assert "800.0" in panel([broken, a_step(2, loss=800.0)], 10)
    assert "not a number" in recorded([broken], 10, terminal=False)


def test_markup_in_a_model_reply_is_text() -> None:
    sample = {"kind": "sample", "time": 0.0, "step": 1, "question": "[bold]q[/bold]", "reply": "[/red] x"}
    text = panel([a_step(1), sample], 10)
    assert "[bold]q[/bold]" in text
    assert "[/red] x" in text


def test_a_terminal_is_left_with_the_summary_alone() -> None:
    console = Console(file=io.StringIO(), width=80, force_terminal=True, color_system=None)
    with Progress(2, console) as progress:
        for event in [a_step(1), a_step(2), {"kind": "end", "time": 0.0, "step": 2, "seconds": 4.0}]:
            progress.event(event)
        written = console.file
    assert isinstance(written, io.StringIO)
    last = written.getvalue().split("\x1b[2K")[-1]
    assert last.strip() == "done  2 steps in 4.0 s · loss 1.9800"


def test_interrupted_and_early_stop_are_said() -> None:
    stopped = [
        a_step(5),
        {"kind": "early_stop", "time": 0.0, "step": 5, "reason": "no better loss in 3 validations"},
    ]
    text = recorded(stopped, 10, terminal=False)
    assert "stopped early at step 5: no better loss in 3 validations" in text
    assert "interrupted  5 steps" in recorded(
        [a_step(5), {"kind": "interrupted", "time": 0.0, "step": 5}], 10, False
    )


def test_replay_and_what_is_forgotten() -> None:
    def measured(step: int, loss: float) -> Event:
        return {"kind": "replay_loss", "time": 1000.0 + 2 * step, "step": step, "loss": loss}

    events = [measured(0, 0.78), a_step(1, replay=3, replay_weight=0.256), a_step(2, replay=1, replay_weight=0.1),
              measured(2, 0.9), a_step(3, replay=4, replay_weight=0.3), measured(3, 0.86)]  # fmt: skip
    text = panel(events, 4)
    for part in ["0.8600 · at step 0 it was 0.7800", "4 pieces (30% of the weight)"]:
        assert part in text, part
    end = {"kind": "end", "time": 0.0, "step": 3, "seconds": 4.0, "model_step": 2, "replay": 8}
    told = recorded([*events, {**end, "replay_weight": 0.2187}], 4, terminal=False)
    assert "step 1/4 · epoch 0.02 · loss 1.9900 · replay weight 26%" in told
    assert "general text at step 0 · loss 0.7800\n" in told
    summary = told[told.index("done  ") :]
    assert "general text 0.7800 → 0.9000 (step 2)" in summary, "of the weights that became the model"
    assert "replay: 8 pieces drawn, 21.9% of the loss weight" in summary
    plain = recorded([a_step(1), a_step(2)], 2, terminal=False)
    assert "replay" not in plain + panel([a_step(1)], 2)
    resumed = recorded([measured(3, 0.86), {**end, "model_step": 3}], 4, terminal=False)
    assert "general text 0.8600 (step 3)" in resumed


def test_quantities_as_a_person_says_them() -> None:
    assert [duration(s) for s in (0.5, 45, 250, 7500)] == ["0.5 s", "45 s", "4 min", "2 h 5 min"]
    assert [size(n) for n in (0, 900, 1500, 1.234e9)] == ["0 B", "900 B", "1.5 kB", "1.23 GB"]
    assert [count(n) for n in (0, 950, 1_234_567)] == ["0", "950", "1.23 M"]
    assert [plural(n, "step") for n in (0, 1, 1200)] == ["0 steps", "1 step", "1,200 steps"]
    assert perplexity(0.0) == "1"


def test_a_resumed_run_ends_with_what_it_began_with() -> None:
    events = [
        {
            "kind": "resume", "step": 9,
            "first_validation": {"step": 0, "loss": 1.8174}, "best_validation": {"step": 9, "loss": 1.6},
        },
        a_step(10),
        {"kind": "validation", "step": 10, "loss": 1.5496, "best": True},
        {"kind": "end", "step": 10, "seconds": 3.0},
    ]  # fmt: skip
    assert "1.8174 → 1.5496 (step 10)" in recorded(events, 10, terminal=False)
