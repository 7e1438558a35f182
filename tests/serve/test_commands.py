"""What can be typed beside messages: through the chat's own loop, and at a real terminal."""

from __future__ import annotations

import io
import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from contextlib import closing

import pytest

from conftest import environment
from imprint.data.conversation import Message
from imprint.errors import ImprintError, RunError, UserError
from imprint.serve import terminal
from imprint.serve.chat import Chat, load_speaker
from imprint.serve.commands import COMMANDS, Leave, Session, names, run_command, shown_ids, shown_tokens


@pytest.fixture(scope="module")
def speaker(run):
    return load_speaker(run)


@pytest.fixture
def session(run, speaker, tmp_path, monkeypatch):
    from rich.console import Console

    monkeypatch.chdir(tmp_path)
    speaker.said, speaker.name = None, "run"
    console = Console(file=io.StringIO(), width=80)
    options = {"max_new_tokens": 6, "temperature": 0.0, "seed": 1}
    return Session(Chat([speaker]), console, options, lambda: terminal.base_of(run, speaker))


def typed(session, *lines):
    """What is shown for lines that are typed."""
    start = session.console.file.tell()
    for line in lines:
        terminal.answer(session, line)
    session.console.file.seek(start)
    return session.console.file.read()


def test_the_base_is_loaded_once(session, monkeypatch):
    loaded = []
    original = session.load_base
    session.load_base = lambda: loaded.append(1) or original()
    both = typed(session, "/compare", "Why?")
    assert "tuned  " in both
    assert "base  " in both
    alone = typed(session, "/compare", "Why?")
    assert "base  " not in alone
    assert "base  " in typed(session, "/compare", "Why?")
    assert loaded == [1]
    assert len(session.chat.messages) == 6, "only the tuned one's replies stay"


def test_the_comparison_is_that_of_the_option(run, session):
    """Beside each other in the session = with --compare from the start."""
    inside = typed(session, "/compare", "What colour is the sea?").partition("stay\n")[2]
    from rich.console import Console

    outside = Console(file=io.StringIO(), width=80)
    terminal.talk(run, outside, compare=True, prompt="What colour is the sea?", **session.options)
    assert inside == outside.file.getvalue()
    assert inside.count("  ") >= 2


def test_a_model_has_no_base_and_an_adapter_has(tiny, run, speaker):
    with pytest.raises(RunError, match="knows its base"):
        terminal.base_of(tiny, speaker)
    of_run, of_adapter = (
        terminal.base_of(path, speaker).reply([Message("user", "Why?")], lambda _: None, 6)
        for path in (run, run / "model")
    )
    assert of_run == of_adapter


def test_the_tokens_are_those_that_were_said(session, speaker):
    typed(session, "Why?", "And?")
    rendered = speaker.rendering.template.render(
        [{"role": m.role, "content": m.content} for m in session.chat.messages[:3]],
        add_generation_prompt=True,
    )
    said = speaker.said
    assert speaker.rendering.encoder.decode(said.prompt) == rendered
    reply = speaker.rendering.encoder.decode(said.reply)
    assert reply.startswith(session.chat.messages[-1].content)
    shown = typed(session, "/show")
    assert rendered.replace("\n", "↵\n") in shown.replace("\n\n", "\n"), "control tokens as they are"
    assert f"{len(said.prompt)} tokens of prompt" in shown
    with_ids = typed(session, "/show ids")
    lines = re.findall(r"^ +(\d+) +([\d ]+)  ⟨(.*)⟩$", with_ids, re.MULTILINE)
    ids = [int(number) for _, numbers, _ in lines for number in numbers.split()]
    assert ids == [*said.prompt.tolist(), *said.reply.tolist()]
    assert [int(place) for place, _, _ in lines] == [
        sum(len(numbers.split()) for _, numbers, _ in lines[:i]) for i in range(len(lines))
    ]


def test_a_stop_is_told_from_a_cut_reply(session, speaker):
    import numpy as np

    from imprint.serve.chat import Said

    stop = speaker.rendering.stop_ids[0]
    prompt = speaker.rendering.encoder.encode(["a"])[0]
    for reply, words in (([5, stop], "then its stop"), ([5, 6], "without a stop"), ([], "without a stop")):
        said = Said(prompt, np.array(reply, np.int32))
        for show in (shown_tokens, shown_ids):
            for colour in (False, True):
                assert words in show(speaker, said, colour=colour).plain


def test_saved_rows_are_demonstrations(session, tmp_path, cli):
    typed(session, "/system Be brief.", "Why?", "And?")
    said = typed(session, "/save good.jsonl", "/undo", "/save")
    assert "good.jsonl:1  saved, 5 messages" in said
    assert "good.jsonl:2  saved, 3 messages" in said
    rows = [json.loads(line) for line in (tmp_path / "good.jsonl").read_text().splitlines()]
    assert [m["role"] for m in rows[0]["messages"]] == ["system", "user", "assistant", "user", "assistant"]
    assert rows[1]["messages"] == rows[0]["messages"][:3]
    done = cli("data", "check", str(tmp_path / "good.jsonl"))
    assert done.code == 0
    assert "All 2 rows can be used" in done.out


def test_undo_takes_one_exchange(session):
    typed(session, "Why?", "And?")
    first = session.chat.messages[:2]
    assert "taken back: And? (1 before it)" in typed(session, "/undo")
    assert session.chat.messages == first
    typed(session, "/undo")
    with pytest.raises(UserError, match="nothing to take back"):
        typed(session, "/undo")


def test_the_system_message(session, speaker):
    typed(session, "/system Be  [brief].", "Why?")
    prompt = speaker.rendering.encoder.decode(speaker.said.prompt)
    assert "system\nBe  [brief]." in prompt
    assert "Be  [brief]." in typed(session, "/system")
    typed(session, "/system off", "Why?")
    assert "brief" not in speaker.rendering.encoder.decode(speaker.said.prompt)
    assert "no system message" in typed(session, "/system")


def test_the_temperature_is_used(session, speaker, monkeypatch):
    seen = []
    monkeypatch.setattr(speaker.model, "generate", lambda **options: seen.append(options) or 1 / 0)
    for line in ("/temperature 0.7", "/temperature 0"):
        typed(session, line)
        with pytest.raises(ZeroDivisionError):
            typed(session, "Why?")
    assert [options["do_sample"] for options in seen] == [True, False]
    assert seen[0]["temperature"] == 0.7
    for wrong in ("hot", "-1", "nan", "inf"):
        with pytest.raises(UserError, match="not a number from 0 up"):
            typed(session, f"/temperature {wrong}")
    assert session.options["temperature"] == 0


@pytest.mark.parametrize(
    ("line", "fix"), [("/shwo", "/show"), ("/compar", "/compare"), ("/etc/passwd", "/help"), ("/", "/help")]
)
def test_an_unknown_command_is_told(session, line, fix):
    with pytest.raises(UserError, match="there is no command") as caught:
        typed(session, line)
    assert caught.value.fix == fix
    assert session.chat.messages == []


def test_a_message_may_begin_with_a_slash(session):
    typed(session, "//show me", "  a /show")
    assert [m.content for m in session.chat.messages[::2]] == ["/show me", "  a /show"]


@pytest.mark.parametrize(
    "line", ["/undo", "/show", "/show all", "/save", "/save x.jsonl", "/compare now", "/save x.csv"]
)
def test_what_cannot_be_done_says_how(session, line):
    with pytest.raises(ImprintError) as caught:
        typed(session, line)
    assert caught.value.fix


def test_every_command_is_in_the_help(session):
    told = typed(session, "/help")
    assert all(command.usage in told and command.about in told for command in COMMANDS.values())
    assert max(map(len, told.splitlines())) <= 80
    for line in ("/quit", "/exit", "/bye"):
        with pytest.raises(Leave):
            run_command(session, line)
    assert "there is no" not in typed(session, "/?", "/reset")


def test_the_tab_key_completes_commands():
    assert terminal._complete("/sh", 0) == "/show "
    assert [terminal._complete("/", i) for i in range(len(names()))] == [f"{name} " for name in names()]
    assert terminal._complete("/sh", 1) is None
    assert terminal._complete("sh", 0) is None


def test_a_stopped_reply_is_shown_and_no_part_of_the_conversation(session, speaker, monkeypatch):
    generate = speaker.model.generate

    def interrupted(*, streamer, **options):
        put, count = streamer.put, 0

        def counted(value):
            nonlocal count
            put(value)
            count += 1
            if count == 4:
                raise KeyboardInterrupt

        streamer.put = counted
        return generate(streamer=streamer, **options)

    monkeypatch.setattr(speaker.model, "generate", interrupted)
    assert "stopped" in typed(session, "Why?")
    assert session.chat.messages == []
    assert len(speaker.said.reply) == 3
    assert "without a stop" in typed(session, "/show")


def test_commands_from_a_pipe(run, monkeypatch, tmp_path):
    from rich.console import Console

    def talk(lines):
        monkeypatch.setattr("sys.stdin", io.StringIO(lines))
        console = Console(file=io.StringIO(), width=80)
        terminal.talk(run, console, max_new_tokens=4)
        return console.file.getvalue()

    path = tmp_path / "good.jsonl"
    assert f"{path}:1" in talk(f"Why?\n/save {path}\n/quit\nnever asked\n").replace("\n", "")
    with pytest.raises(UserError, match="no command"):
        talk("/shwo\n")


PROMPT = "> \x1b[0m"
COLOURS = re.compile(r"(?<!> )\x1b\[[0-9;]*m")


class Terminal:
    """A command at a pseudo-terminal of 80 columns."""

    def __init__(self, *arguments, cwd):
        self.leader, follower = pty.openpty()
        import fcntl
        import struct
        import termios

        fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 80, 0, 0))
        self.process = subprocess.Popen(
            [sys.executable, "-m", "imprint.cli", *arguments],
            stdin=follower,
            stdout=follower,
            stderr=follower,
            cwd=cwd,
            env=environment() | {"TERM": "xterm"},
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )
        os.close(follower)
        self.seen = ""

    def wait_for(self, words, seconds=60.0):
        """What was shown up to and with `words`."""
        end = time.monotonic() + seconds
        while words not in self.seen:
            assert time.monotonic() < end, f"{words!r} was not shown:\n{self.seen}"
            if select.select([self.leader], [], [], 0.2)[0]:
                try:
                    read = os.read(self.leader, 4096).decode("utf-8", "replace")
                    self.seen = COLOURS.sub("", self.seen + read)
                except OSError:
                    assert words in self.seen, f"ended without {words!r}:\n{self.seen}"
        shown, _, self.seen = self.seen.partition(words)
        return shown + words

    def type(self, text):
        os.write(self.leader, text.encode())

    def answer(self, text, words):
        """Type at the next prompt, and wait for words."""
        self.wait_for(PROMPT)
        self.type(text)
        return self.wait_for(words)

    def close(self):
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
        os.close(self.leader)


@pytest.mark.slow
def test_at_a_real_terminal(run, tmp_path):
    """Editing keys, an error that does not end it, Ctrl-C that stays, Ctrl-D that leaves."""
    with closing(Terminal("chat", str(run), "--max-tokens", "100000", cwd=tmp_path)) as there:
        there.wait_for("/help lists more")
        there.answer("/shwo\n", "to fix    /show")
        there.answer("Whx?\x1b[D\x7fy\n", "\n")  # left, backspace: edited, not shown as they are
        shown = there.answer("/show\n", "assistant↵")
        assert "<|im_start|>user↵" in shown
        assert "Why?<|im_end|>" in shown
        there.answer("half a line\x03", "Ctrl-D leaves")
        there.answer("\x1b[A\n", "tokens of prompt")  # the arrow up finds what was typed before
        there.answer("/temp\t50\n", "temperature 50")
        there.answer("Who?\n", "Who?")
        there.type("\x03")  # in the reply, or a moment before or after it: the chat stays
        there.answer("/temperature 40\n", "temperature 40")
        there.answer("\x04", "\n")
        assert there.process.wait(20) == 0
