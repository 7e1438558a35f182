"""The demo's tokenizer loses nothing, and equal texts give equal files in every process."""

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from imprint.demo.tokenizer import SPECIAL, train_tokenizer

FILE = Path(__file__).parent.parent.parent / "src" / "imprint" / "demo" / "demonstrations.jsonl"


def texts() -> list[str]:
    lines = FILE.read_text(encoding="utf-8").splitlines()
    return [message["content"] for line in lines for message in json.loads(line)["messages"]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    train_tokenizer(texts(), folder)
    return folder


def test_every_text_comes_back(folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    strange = ["", " two  spaces ", "naïve 日本 \U0001f642", "tabs\tand\r\nlines\n\n", "don't n't 's"]
    for text in texts() + strange:
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_special_tokens_are_one_token_each_and_have_their_parts(folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert [tokenizer(text)["input_ids"] for text in SPECIAL] == [[0], [1], [2], [3]]
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token) == (
        None,
        "<|endoftext|>",
        "<|pad|>",
    )
    assert tokenizer.decode(tokenizer("".join(SPECIAL))["input_ids"], skip_special_tokens=True) == ""
    assert tokenizer.chat_template is None
    assert len(tokenizer) <= 1024


def test_each_digit_is_a_token(folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.tokenize("2026") == ["2", "0", "2", "6"]


def test_words_that_come_often_are_short(folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert len(tokenizer("What is the capital of France?")["input_ids"]) <= 10


def test_other_processes_write_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    code = (
        "import json, sys; from pathlib import Path; from imprint.demo.tokenizer import train_tokenizer;"
        "train_tokenizer(json.load(sys.stdin), Path(sys.argv[1]))"
    )
    for number in range(2):
        again = tmp_path / str(number)
        subprocess.run(
            [sys.executable, "-c", code, str(again)], input=json.dumps(texts()), text=True, check=True
        )
        for name in ("tokenizer.json", "tokenizer_config.json"):
            digests = {hashlib.sha256((place / name).read_bytes()).hexdigest() for place in (folder, again)}
            assert len(digests) == 1, name
