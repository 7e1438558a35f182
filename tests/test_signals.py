"""SIGTERM and Ctrl-C in every phase: exit code 130, what stands, how to go on, and nothing is lost."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

from conftest import environment, events_of, losses, settings, tree
from imprint import signals
from imprint.errors import Interrupted

TERM, INT = signal.SIGTERM, signal.SIGINT
GIVEN = ("max_steps=4", "validation=0.2", "validate_every=2", "save_every=1", "learning_rate=1e-2", "samples=1",
         "sample_tokens=2")  # fmt: skip


@pytest.fixture(scope="module")
def whole(tmp_path_factory, tiny, rows):
    """The run that nobody stopped."""
    from imprint.run import train
    from imprint.settings import resolve

    run = tmp_path_factory.mktemp("whole") / "run"
    train(resolve(None, settings(tiny, rows, run, *GIVEN)).recipe)
    return run


def same(run, whole) -> None:
    assert tree(run / "model") == tree(whole / "model")
    assert losses(run) == losses(whole)
    assert len(events_of(run, "end")) == 1
    assert (run / "report.html").is_file()


# ---- nothing was begun


@pytest.mark.parametrize(
    ("function", "number", "while_"),
    [
        ("imprint.run.prepare", INT, "the data was read and tokenised"),
        ("imprint.preparation.turns_of", TERM, "the data was read and tokenised"),
        ("imprint.build_model.load_model", TERM, "the model was loaded and checked"),
        ("imprint.build.choose_layout", INT, "the model was loaded and checked"),
        ("imprint.folder.write_text", TERM, "the model was loaded and checked"),
    ],
)
def test_before_the_run_is_there(function, number, while_, tiny, rows, tmp_path, start, monkeypatch):
    monkeypatch.setenv("IMPRINT_CACHE", str(tmp_path / "cache"))
    run = tmp_path / "run"
    done = start("train", *settings(tiny, rows, run, *GIVEN), signal_before=(function, 1, number)).wait()
    assert done.code == 130, done.err
    name = "Ctrl-C" if number == INT else "SIGTERM"
    assert f"stopped by {name} while {while_}" in done.err
    assert "to fix" in done.err
    assert "Traceback" not in done.err
    assert [path.name for path in tmp_path.glob("run*")] == []
    assert list((tmp_path / "cache").rglob("*.partial*")) == []


def test_while_it_is_imported(tmp_path):
    """In a new interpreter, wherever it is after half a second: importing, mostly."""
    command = [sys.executable, "-m", "imprint.cli", "resume", str(tmp_path / "run")]
    place = environment() | {"PYTHONPATH": f"{environment()['PYTHONPATH']}{os.pathsep}{tmp_path}"}
    slow = "import signal, os\nos.kill(os.getpid(), signal.SIGTERM)\n"
    (tmp_path / "torch.py").write_text(slow)  # the first thing of it that is imported sends the signal
    process = subprocess.run(command, capture_output=True, text=True, env=place, timeout=120)
    assert process.returncode == 130, process.stderr
    assert "stopped by SIGTERM while imprint was starting; the run is as it was" in process.stderr
    assert f"imprint resume {tmp_path / 'run'}" in process.stderr


# ---- in the run


@pytest.mark.parametrize(
    ("function", "call", "number"),
    [
        ("imprint.train.loop.evaluate", 1, TERM),  # validating, before the first step
        ("imprint.run.answer", 2, TERM),  # sampling
        ("imprint.train.loop.train_step", 2, TERM),
        ("imprint.train.loop.evaluate", 2, INT),
        ("imprint.train.writer.write_checkpoint", 1, TERM),  # saving, in its thread
        ("imprint.train.writer.rotate", 2, INT),
        ("imprint.train.loop.train_step", 4, TERM),  # the last step
        ("imprint.train.writer.rotate", 4, INT),  # its checkpoint
        ("imprint.save._write", 1, TERM),  # ending: every step is done
        ("imprint.ending.write_report", 1, TERM),  # the model is saved
    ],
)
def test_in_every_phase_of_a_run(function, call, number, whole, tiny, rows, tmp_path, start, cli):
    run = tmp_path / "run"
    done = start("train", *settings(tiny, rows, run, *GIVEN), signal_before=(function, call, number)).wait()
    assert done.code == 130, done.err
    assert f"stopped by {'Ctrl-C' if number == INT else 'SIGTERM'}" in done.err
    assert f"imprint resume {run}" in done.err
    assert "Traceback" not in done.err
    told = len(losses(run))
    done = cli("resume", run)
    if function == "imprint.ending.write_report":  # it only wrote what was missing
        assert done.code == 2
        assert "this run is finished" in done.err
    else:
        assert done.code == 0, done.err
        assert events_of(run, "resume")[0]["step"] == told, "not a step is lost"
    same(run, whole)


def test_a_second_signal_ends_at_once(tiny, rows, tmp_path, start):
    run = tmp_path / "run"
    running = start("train", *settings(tiny, rows, run, "max_steps=4000", "validation=0", "save_every=4000"))
    deadline = time.monotonic() + 150
    while not (run / "events.jsonl").exists() or not losses(run):
        assert running.process.is_alive()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.kill(running.process.pid, INT)
    os.kill(running.process.pid, TERM)  # before a step of it can end, or after: both are 130
    done = running.wait()
    assert done.code == 130, done.err
    assert f"imprint resume {run}" in done.err
    assert "Traceback" not in done.err
    assert start("resume", run, signal_before=("imprint.train.loop.train_step", 2, TERM)).wait().code == 130
    assert [event["step"] for event in events_of(run, "step")] == list(range(1, len(losses(run)) + 1))


# ---- the module


def sleep_as_a_library() -> None:
    with signals.stoppable():
        signals.doing("it slept", "all is well", "wake it")
        try:
            os.kill(os.getpid(), TERM)
            time.sleep(5)
        except Exception:
            pytest.fail("swallowed")


def test_stopped_is_an_interrupt_that_no_library_swallows():
    with pytest.raises(Interrupted, match="stopped by SIGTERM while it slept; all is well"):
        sleep_as_a_library()


def test_the_handlers_are_put_back():
    before = [signal.getsignal(number) for number in signals.SIGNALS]
    wakeup = signal.set_wakeup_fd(-1)
    signal.set_wakeup_fd(wakeup)
    with signals.stoppable(), signals.stoppable():
        assert not signals.asked()
    assert [signal.getsignal(number) for number in signals.SIGNALS] == before
    assert signal.set_wakeup_fd(-1) == wakeup
    signal.set_wakeup_fd(wakeup)


HANGS = """
import ctypes, os, signal, threading, time
from imprint import signals
signals.GRACE = 0.5

def kill():
    for _ in range(2):
        time.sleep(0.3)
        os.kill(os.getpid(), signal.SIGTERM)

with signals.stoppable(), signals.stop_signals():
    threading.Thread(target=kill, daemon=True).start()
    library, mutex = ctypes.CDLL(None), ctypes.create_string_buffer(64)
    library.pthread_mutex_lock(mutex)
    library.pthread_mutex_lock(mutex)  # never comes back, and so no handler runs
"""


def test_a_second_signal_ends_what_hangs_in_a_library():
    begun = time.monotonic()
    done = subprocess.run([sys.executable, "-c", HANGS], env=environment(), timeout=60, capture_output=True)
    assert done.returncode == 130, done.stderr
    assert time.monotonic() - begun < 25
    assert b"ended at once by a second signal" in done.stderr


def test_beside_the_main_thread_nothing_is_handled():
    import threading

    found = []

    def look():
        with signals.stoppable():
            found.append(signal.getsignal(TERM))

    before = signal.getsignal(TERM)
    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    assert found == [before]
