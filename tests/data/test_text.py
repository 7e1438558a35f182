import json
import random
from pathlib import Path

import pytest

from imprint.data import text as texts
from imprint.data.encodings import guesses, wide
from imprint.data.readers import read
from imprint.data.text import Broken
from imprint.errors import DataError
from imprint.recipe import DataSource

SHARED = Path(__file__).parents[3] / "shared" / "data"

# A sentence as each part of the world writes it, and what iconv calls the encoding that it is stored in.
WORLD = [
    ("cp1252", "WINDOWS-1252", "Où était le café ? « Là-bas », répond-elle à l’élève."),
    ("latin-1", "WINDOWS-1252", "Die Größe der Übung überrascht: schöne Grüße aus Köln."),
    ("gbk", "GB18030", "你好,请问这个问题的答案是什么?我们可以一起来看一下,他说这是对的。"),
    ("big5", "BIG5", "你好,請問這個問題的答案是什麼?我們可以一起來看一下,他說這是對的。"),
    ("cp932", "SHIFT_JIS", "こんにちは、この質問の答えは何ですか。一緒に見てみましょう。"),
    ("euc_jp", "EUC-JP", "こんにちは、この質問の答えは何ですか。一緒に見てみましょう。"),
    ("euc_kr", "EUC-KR", "안녕하세요, 이 질문의 답은 무엇입니까? 함께 보겠습니다."),
    ("cp1251", "WINDOWS-1251", "Здравствуйте, какой ответ на этот вопрос? Давайте посмотрим вместе."),
    ("koi8_r", "KOI8-R", "здравствуйте, какой ответ на этот вопрос? давайте посмотрим вместе."),
]


@pytest.mark.parametrize(("codec", "name", "text"), WORLD)
@pytest.mark.parametrize("kind", ["jsonl", "json", "csv", "txt"])
def test_an_encoding_is_named_with_the_offset_and_the_remedy(write, codec, name, text, kind):
    if kind == "txt":
        content = f"Once upon a time.\n{text}\n"
    elif kind == "csv":
        content = f'prompt,response\nHi.,Hello.\nHi.,"{text}"\n'
    else:
        row = f'{{"prompt": "Hi.", "response": "{text}"}}'
        content = f'[{{"a": 1}},\n{row}]' if kind == "json" else f'{{"a": 1}}\n{row}\n'
    data = content.encode(codec)
    with pytest.raises(UnicodeDecodeError) as own:
        data.decode()
    path = write(f"a.{kind}", data)
    try:
        found = [r.value for r in read(DataSource(path=path.name), path.parent)]
        (error,) = [value.error for value in found if isinstance(value, Broken)]
        assert kind == "jsonl"
    except DataError as caught:
        error = caught
    line = 1 + data.count(b"\n", 0, own.value.start)
    assert error.where == f"a.{kind}:{line}"
    at = own.value.start
    assert error.found.startswith(f"byte 0x{data[at]:02X} at byte offset {at} (perhaps {name}")
    assert error.fix == f"save it as UTF-8: iconv -f {name} -t UTF-8 OLD > NEW"


@pytest.mark.parametrize("codec", ["utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be"])
@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a.tsv", "a.txt", "a.jsonl.gz", "a.data"])
def test_wide_encodings_without_a_mark(write, codec, name):
    path = write(name, '{"prompt": "Hello", "response": "Où?"}\n'.encode(codec) * 3)
    with pytest.raises(DataError) as caught:
        list(read(DataSource(path=path.name), path.parent))
    iconv = codec.upper().replace("-LE", "LE").replace("-BE", "BE")
    assert caught.value.what == f"the file is {iconv}"
    assert "at byte offset" in caught.value.found
    assert f"iconv -f {iconv} -t UTF-8" in caught.value.fix


def test_utf8_is_never_taken_for_something_else(write):
    rng = random.Random(0)
    for _ in range(200):
        text = "".join(rng.choice("aé你🎈ßя \u0000") for _ in range(rng.randrange(1, 60))).replace(
            "\0", "\\u0000"
        )
        path = write("a.jsonl", f'{{"a": "{text}"}}\n')
        (record,) = read(DataSource(path=path.name), path.parent)
        assert isinstance(record.value, dict)


def test_a_guess_of_nothing_in_particular():
    assert guesses(b"") == []
    rng = random.Random(0)
    found = [guesses(rng.randbytes(rng.randrange(1, 300))) for _ in range(300)]
    assert {name for names in found for name in names} <= {name for _, name, _ in WORLD} | {"WINDOWS-1250"}
    assert found.count([]) > 200


@pytest.mark.parametrize(("codec", "name", "text"), WORLD)
def test_an_encoding_is_told_by_a_dozen_characters(codec, name, text):
    for start in range(0, len(text) - 12, 6):
        data = text[start : start + 12].encode(codec)
        assert data.isascii() or guesses(data)[:1] in ([name], [])


def test_chinese_of_real_rows_is_neither_korean_nor_cyrillic():
    path = SHARED / "sft" / "alpaca_gpt4_zh_demo.json"
    if not path.exists():
        pytest.skip("the shared data is not here")
    texts = [row["output"][:40] for row in json.loads(path.read_text(encoding="utf-8")) if row["output"]]
    stored = [text.encode("gb18030") for text in texts if not text.isascii()]
    names = [guesses(data) for data in stored]
    assert sum(found == ["GB18030"] for found in names) >= 0.97 * len(names) > 900
    wides = [wide(text.encode("utf-16-le")) for text in texts if len(text) >= 8]
    assert wides.count("UTF-16LE") >= 0.97 * len(wides)
    assert not any(map(wide, stored))


def test_an_encoding_that_cannot_be_told_is_not_named(write):
    path = write("a.txt", b"\xff\x81\x8d\x8f")
    with pytest.raises(DataError) as caught:
        list(read(DataSource(path=path.name), path.parent))
    assert caught.value.found == "byte 0xFF at byte offset 0 (of which encoding it is, it does not show)"
    assert "iconv" not in caught.value.fix


@pytest.mark.parametrize("name", ["a.txt", "a.csv"])
def test_chinese_of_two_bytes_a_character_has_no_zeros(write, name):
    text = (
        "prompt,response\n" * (name == "a.csv")
        + "你好,请问这个问题的答案是什么?我们可以一起来看一下,他说这是对的。" * 9
    )
    path = write(name, text.encode("utf-16-le"))
    with pytest.raises(DataError, match="the file is UTF-16LE"):
        list(read(DataSource(path=path.name), path.parent))


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.json"])
def test_line_ends_of_old_macs(write, name):
    text = {"a.csv": "a,b\r1,2\r3,4\r"}.get(name, '{"a": "1", "b": "2"}\r{"a": "3", "b": "4"}\r')
    for content in (text, text.rstrip()):
        found = list(read(DataSource(path=(path := write(name, content)).name), path.parent))
        assert [record.value for record in found] == [{"a": "1", "b": "2"}, {"a": "3", "b": "4"}]
        first = 2 if name == "a.csv" else 1
        assert [record.place.line for record in found] == [first, first + 1]


def test_line_ends_may_be_mixed(write):
    path = write("a.jsonl", '{"a": 1}\r\n{"a": 2}\n\r\n{"a":\r3}\n{"a": 4}')
    found = [(r.value["a"], r.place.line) for r in read(DataSource(path=path.name), path.parent)]
    assert found == [(1, 1), (2, 2), (3, 4), (4, 5)]


def test_lines_by_return_that_cross_the_pieces_that_are_read(write, monkeypatch):
    monkeypatch.setattr(texts, "CHUNK", 7)
    path = write("a.jsonl", "".join(f'{{"a": {i}}}\r' for i in range(50)))
    assert [r.value["a"] for r in read(DataSource(path=path.name), path.parent)] == list(range(50))


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.json", "a.txt", "a.jsonl.gz", "mac.jsonl"])
def test_what_is_too_long_is_refused_with_its_place(write, monkeypatch, name):
    for module in ("text", "readers"):
        monkeypatch.setattr(f"imprint.data.{module}.LIMIT", 1000)
    monkeypatch.setattr(texts, "CHUNK", 256)
    end = "\r" if name == "mac.jsonl" else "\n"
    long = "x" * 3000
    content = f'{{"a": "b"}}{end}{{"a": "{long}"}}{end}'
    others = {"a.txt": long, "a.csv": f"a,b\n{long},2\n", "a.json": f'[{{"a": 1}},\n{{"a": "{long}"}}]'}
    content = others.get(name, content)
    if name == "a.json":
        monkeypatch.setattr("imprint.data.parse_document.CHUNK", 256)
    with pytest.raises(DataError, match="is too long to be read") as caught:
        list(read(DataSource(path=(path := write(name, content)).name), path.parent))
    assert caught.value.where == (name if name == "a.txt" else f"{name}:2")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv"])
def test_a_line_of_fifty_megabytes_is_read(write, name):
    long = "word " * 10_000_000
    content = f'{{"a": "{long}"}}\n'
    content = {"a.csv": f"a,b\n{long},2\n", "a.json": f"[{content}]"}.get(name, content)
    (record,) = read(DataSource(path=(path := write(name, content)).name), path.parent)
    assert record.value["a"] == long
