"""The demonstrations are what the script writes, and no question has two answers."""

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parent.parent.parent
FILE = ROOT / "src" / "imprint" / "demo" / "demonstrations.jsonl"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location(
        "write_demonstrations", ROOT / "tools" / "write_demonstrations.py"
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def conversations() -> list[list[dict[str, str]]]:
    return [json.loads(line)["messages"] for line in FILE.read_text(encoding="utf-8").splitlines()]


def test_the_file_is_what_the_script_writes(script: ModuleType, tmp_path: Path) -> None:
    script.main(tmp_path / "again.jsonl")
    assert (tmp_path / "again.jsonl").read_bytes() == FILE.read_bytes()


def test_roles_alternate_and_nothing_is_empty() -> None:
    for messages in conversations():
        roles = [message["role"] for message in messages if message["role"] != "system"]
        assert roles == ["user", "assistant"] * (len(roles) // 2)
        assert all(message["content"].strip() == message["content"] != "" for message in messages)


def test_a_context_has_one_answer() -> None:
    answers: dict[str, str] = {}
    for messages in conversations():
        for place, message in enumerate(messages):
            if message["role"] == "assistant":
                context = json.dumps(messages[:place])
                assert answers.setdefault(context, message["content"]) == message["content"], context


def test_there_are_enough_of_every_sort() -> None:
    found = conversations()
    assert len(found) == 2000
    assert sum(len(messages) == 4 for messages in found) >= 100
    assert len({json.dumps(messages) for messages in found}) >= 1990
    assert FILE.stat().st_size <= 400_000
    assert FILE.read_bytes().isascii()


def test_spelling_and_letters_are_right() -> None:
    checked = 0
    for messages in conversations():
        question, answer = messages[0]["content"], messages[1]["content"]
        words = question.rstrip("?.").split()
        if question.startswith("Spell "):
            assert answer == f"The spelling of {words[1]} is {'-'.join(words[1])}."
        elif question.startswith("Reverse "):
            assert answer == f"The reverse of {words[1]} is {words[1][::-1]}."
        elif question.endswith("in capital letters."):
            assert answer == f"In capital letters {words[1]} is {words[1].upper()}."
        else:
            continue
        checked += 1
    assert checked >= 100
