"""Two processes on one machine (gloo, FSDP2) train what one process trains, and leave one run folder."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from conftest import Ended, environment, events_of, losses, settings, tree, weights_of

STEPS = ("max_steps=6", "validation=0.2", "validate_every=3", "save_every=2", "learning_rate=1e-2", "samples=1",
         "sample_tokens=4")  # fmt: skip
VARIANTS = [
    pytest.param("method=full"),
    pytest.param("method=lora", marks=pytest.mark.slow),
]


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def launch(*arguments: object, script: Path | None = None) -> subprocess.Popen[str]:
    """`torchrun -n 2 imprint …` in a session of its own, so that nothing of it stays behind."""
    torchrun = [
        sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2",
        "--master-addr", "127.0.0.1", "--master-port", str(free_port()),
        *(["-m", "imprint.cli"] if script is None else [str(script)]),
    ]  # fmt: skip
    return subprocess.Popen(
        [*torchrun, *map(str, arguments)], env=environment() | {"GLOO_SOCKET_IFNAME": "lo"},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
    )  # fmt: skip


def finish(process: subprocess.Popen[str], timeout: float = 150) -> Ended:
    try:
        out, _ = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        out, _ = process.communicate()
        raise AssertionError(f"it hangs: {out}") from None
    return Ended(process.returncode, out, out)


def two(*arguments: object) -> Ended:
    return finish(launch(*arguments))


def near(run: Path, reference: Path) -> None:
    """Equal losses to rounding, and one folder with all that belongs into it."""
    ours, theirs = losses(run), losses(reference)
    assert [step for step, _ in ours] == [step for step, _ in theirs] == [1, 2, 3, 4, 5, 6]
    for (step, a), (_, b) in zip(ours, theirs, strict=True):
        assert abs(a - b) <= 1e-5 * abs(b), f"step {step}: {a} and {b}"
    for kind in ("validation",):
        for a, b in zip(events_of(run, kind), events_of(reference, kind), strict=True):
            assert a["trained_tokens"] == b["trained_tokens"]
            assert abs(a["loss"] - b["loss"]) <= 1e-5 * b["loss"]
    for kind in ("start", "end"):
        assert len(events_of(run, kind)) == 1
    assert tree(run / "model").keys() == tree(reference / "model").keys()
    assert {path.name for path in run.parent.glob("run*")} == {"run"}


@pytest.fixture
def reference(tiny, rows, tmp_path, cli):
    def reference(*given: str) -> Path:
        folder = tmp_path / "one" / "whole"
        folder.parent.mkdir()
        assert cli("train", *settings(tiny, rows, folder, *STEPS, *given)).code == 0
        return folder

    return reference


@pytest.mark.parametrize("method", VARIANTS)
def test_two_processes_train_what_one_does(method, tiny, rows, tmp_path, reference):
    whole, run = reference(method), tmp_path / "run"
    done = two("train", *settings(tiny, rows, run, *STEPS, method))
    assert done.code == 0, done.err
    near(run, whole)
    from safetensors.torch import load_file

    (file,) = (run / "model").glob("*.safetensors")
    ours, theirs = load_file(file), load_file(whole / "model" / file.name)
    assert ours.keys() == theirs.keys()
    assert max(float((ours[name] - theirs[name]).abs().max()) for name in ours) < 1e-4


@pytest.mark.parametrize("method", ["method=lora", pytest.param("method=full", marks=pytest.mark.slow)])
def test_two_processes_stop_and_go_on(method, tiny, rows, tmp_path, reference):
    """SIGTERM to torchrun reaches both; both stop after the same step, and one checkpoint is there."""
    run = tmp_path / "run"
    many = ("max_steps=3000", "validation=0.2", "validate_every=3000", "save_every=3000")
    process = launch("train", *settings(tiny, rows, run, *many, method))
    deadline = time.monotonic() + 120
    while not (run / "events.jsonl").exists() or not events_of(run, "step"):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    done = finish(process)
    assert done.code != 0
    assert f"imprint resume {run}" in done.err
    (stopped,) = [event["step"] for event in events_of(run, "interrupted")]
    assert (run / "checkpoints" / f"step-{stopped:06d}").is_dir()
    assert losses(run)[-1][0] == stopped < 3000


DIES = """
import os, signal, sys
import imprint.train.loop as loop
from imprint.cli import main
original = loop.train_step

def step(state, rows):
    if state.step == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return original(state, rows)

loop.train_step = step
sys.exit(main())
"""


@pytest.mark.slow
@pytest.mark.parametrize("given", [("method=full",), ("method=lora", "dropout=0.3", "lora.dropout=0.2")])
def test_two_processes_resume_what_they_began(given, tiny, rows, tmp_path):
    """Killed in their fourth step, and taken up after the third: the very bytes of the two that were not."""
    whole, run = tmp_path / "whole", tmp_path / "run"
    assert two("train", *settings(tiny, rows, whole, *STEPS, *given)).code == 0
    script = tmp_path / "dies.py"
    script.write_text(DIES)
    process = launch("train", *settings(tiny, rows, run, *STEPS, *given), script=script)
    assert finish(process).code != 0
    assert losses(run)[-1][0] == 3
    done = two("resume", run)
    assert done.code == 0, done.err
    assert events_of(run, "resume")[0]["step"] in (2, 3)  # that of step 3 may not have been whole yet
    near(run, whole)
    assert losses(run) == losses(whole)
    assert weights_of(run) == weights_of(whole)


@pytest.mark.slow
def test_a_message_for_the_user_from_two_processes(tiny, tmp_path):
    done = two("train", f"model={tiny}", f"data={tmp_path / 'nothing.jsonl'}", "template=chatml")
    assert done.code != 0
    assert "nothing.jsonl" in done.err
    assert "  to fix " in done.err


def test_processes_that_see_other_data_do_not_begin(tiny, rows, tmp_path):
    """A stale copy on one machine: refused by all, with the difference named, and nothing is written."""
    stale = tmp_path / "stale.jsonl"
    stale.write_text("".join(rows.read_text().splitlines(keepends=True)[:12]))
    port, started = free_port(), []
    for rank, data in enumerate((rows, stale)):
        place = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
        given = settings(tiny, data, tmp_path / "run", *STEPS)
        started.append(
            subprocess.Popen(
                [sys.executable, "-m", "imprint.cli", "train", *given],
                env=environment() | place | {"MASTER_PORT": str(port), "GLOO_SOCKET_IFNAME": "lo"},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                start_new_session=True,
            )
        )
    ended = [finish(process) for process in started]
    assert [done.code for done in ended] == [2, 2]
    assert "do not see the same things" in ended[0].out
    assert "process 1: " in ended[1].out
    assert not (tmp_path / "run").exists()


def test_an_error_on_another_process_is_told(tiny, rows, tmp_path):
    place = {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2"}
    given = settings(tiny, tmp_path / "nowhere.jsonl", tmp_path / "run", *STEPS)
    done = subprocess.run(
        [sys.executable, "-m", "imprint.cli", "train", *given],
        env=environment() | place, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 2
    assert "process 1: " in done.stderr
    assert "nowhere.jsonl" in done.stderr


def test_when_one_process_dies_the_other_ends(tiny, rows, tmp_path):
    """kill -9 of one of two, without torchrun around them: the other ends by itself, soon, and says why."""
    run, port, started = tmp_path / "run", free_port(), []
    many = ("max_steps=3000", "validation=0", "save_every=2")
    for rank in range(2):
        place = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
        started.append(
            subprocess.Popen(
                [sys.executable, "-m", "imprint.cli", "train", *settings(tiny, rows, run, *many)],
                env=environment() | place | {"MASTER_PORT": str(port), "GLOO_SOCKET_IFNAME": "lo"},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                start_new_session=True,
            )
        )
    main, other = started
    deadline = time.monotonic() + 200
    while not (run / "events.jsonl").exists() or not events_of(run, "step"):
        assert main.poll() is None, main.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    other.kill()
    begun = time.monotonic()
    ended = finish(main)
    other.communicate()
    assert time.monotonic() - begun < 30
    assert ended.code == 1
    told = ended.out[ended.out.index("error ") :].splitlines()
    assert told.pop(1).startswith("  found     ")  # what gloo says, which is not always the same
    assert told == [
        f"error {run}: another process of this run has ended, and so this one does; go on from the last "
        f"checkpoint: imprint resume {run}",
        "  to fix    see what the other process said (out of memory? killed?); then start as many processes again",
    ]
    assert "Traceback" not in ended.out
