import gzip
import io
import json
import sys

import pyarrow
import pyarrow.ipc
import pytest

from imprint.data import piped as piped_module
from imprint.data.ledger import Ledger
from imprint.data.load import load
from imprint.data.locate import absolute, locate, names_of
from imprint.data.readers import NOT_TAKEN, fingerprint, read
from imprint.data.text import Broken
from imprint.errors import DataError
from imprint.recipe import DataSource


def rows_file(path, name, count=3):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        "".join(json.dumps({"prompt": f"{name}{i}", "response": "b"}) + "\n" for i in range(count))
    )


@pytest.fixture
def folder(tmp_path):
    for name in ("data/b.jsonl", "data/a.jsonl", "data/deep/c.jsonl"):
        rows_file(tmp_path / name, name[-7])
    (tmp_path / "data/README.md").write_text("# rows\n")
    (tmp_path / "data/LICENSE.txt").write_text("free\n")
    (tmp_path / "data/.hidden.jsonl").write_text("no\n")
    return tmp_path


def prompts(records):
    return [record.value["prompt"] for record in records]


ALL = [f"{name}{i}" for name in "abc" for i in range(3)]


def test_a_folder_is_all_its_files_in_order(folder):
    ledger = Ledger()
    found = list(read(DataSource(path="data"), folder, ledger=ledger))
    assert prompts(found) == ALL
    assert [str(record.place) for record in found[2:4]] == ["data/a.jsonl:3", "data/b.jsonl:1"]
    assert str(found[-1].place) == "data/deep/c.jsonl:3"
    ((warning, tally),) = ledger.warnings.items()
    assert warning == "a file that is no data was not read"
    assert [place.file for place in tally.places] == ["data/LICENSE.txt", "data/README.md"]
    assert prompts(read(DataSource(path="data/"), folder)) == ALL
    assert prompts(read(DataSource(path=str(folder / "data")))) == ALL


@pytest.mark.parametrize(
    ("pattern", "letters", "first"),
    [
        ("data/*.jsonl", "ab", "data/a.jsonl:1"),
        ("data/**/*.jsonl", "abc", "data/a.jsonl:1"),
        ("./data/[bc]*", "b", "./data/b.jsonl:1"),
        ("*/deep/?.jsonl", "c", "data/deep/c.jsonl:1"),
        ("**", "abc", "data/a.jsonl:1"),
    ],
)
def test_a_glob(folder, pattern, letters, first):
    found = list(read(DataSource(path=pattern), folder))
    rows = [record.value["prompt"] for record in found if "prompt" in record.value]  # LICENSE.txt is a text
    assert sorted({prompt[0] for prompt in rows}) == list(letters)
    assert first in [str(record.place) for record in found]


def test_a_file_whose_name_looks_like_a_glob(tmp_path):
    rows_file(tmp_path / "a[1].jsonl", "a")
    rows_file(tmp_path / "[x]/a.jsonl", "b")
    assert prompts(read(DataSource(path="a[1].jsonl"), tmp_path)) == ["a0", "a1", "a2"]
    assert prompts(read(DataSource(path=f"{tmp_path}/[[]x]/*.jsonl"))) == ["b0", "b1", "b2"]


def test_a_missing_file_is_no_other_of_the_same_suffix(tmp_path):
    rows_file(tmp_path / "list.jsonl", "a")
    for name, found in (("nothere.jsonl", "list.jsonl"), ("lst.json", "a file 'list.jsonl'")):
        with pytest.raises(DataError) as caught:
            locate(DataSource(path=name), tmp_path)
        assert caught.value.found.startswith(found)


def test_nothing_matches(folder):
    for path, says in [
        ("data/*.csv", "in data: .hidden.jsonl, LICENSE.txt, README.md, a.jsonl, b.jsonl, deep"),
        ("data/*.csv", "'data/*.jsonl'"),
        ("nowhere/*.csv", "no folder nowhere"),
        ("data/*.md", "no file that matches is of a kind"),
    ]:
        with pytest.raises(DataError) as caught:
            read(DataSource(path=path), folder)
        assert caught.value.where == path
        assert says in str(caught.value)
    (folder / "void").mkdir()
    (folder / "void/x.md").write_text("x")
    with pytest.raises(DataError, match=r"(?s)holds no data file.*x.md"):
        read(DataSource(path="void"), folder)


@pytest.mark.parametrize(
    "path", ["~nobody-of-this-name/a.jsonl", "a\0.jsonl", "\0*", "long", "~nobody/*", ".."]
)
def test_paths_that_cannot_be(path, tmp_path):
    (tmp_path / "here").mkdir()
    path = "x" * 5000 + ".jsonl" if path == "long" else path
    for use in (read, fingerprint):
        with pytest.raises(DataError) as caught:
            use(DataSource(path=path), tmp_path / "here")
        assert len(str(caught.value)) < 1000


def test_a_folder_of_several_splits_is_not_trained_on_whole(tmp_path):
    for name in ("train-00000-of-00002", "train-00001-of-00002", "test-00000-of-00001"):
        rows_file(tmp_path / f"set/data/{name}.jsonl", name)
    with pytest.raises(DataError) as caught:
        read(DataSource(path="set"), tmp_path)
    assert "the folder holds several splits" in str(caught.value)
    assert "data='set/data/train-0000*'" in caught.value.fix
    assert len(list(read(DataSource(path="set/data/train-0000*"), tmp_path))) == 6
    rows_file(tmp_path / "two/dev.jsonl", "a")
    rows_file(tmp_path / "two/train.jsonl", "a")
    with pytest.raises(DataError, match=r"name the one to train on: two/train.jsonl"):
        read(DataSource(path="two"), tmp_path)


def test_the_fingerprint_of_many_files(folder):
    def of(path):
        return fingerprint(DataSource(path=path), folder)

    first = of("data")
    assert first == of("data/**/?.jsonl") == of(str(folder / "data"))
    (folder / "data/README.md").write_text("other")
    assert of("data") == first
    assert of("data/*.jsonl") != first
    rows_file(folder / "data/b.jsonl", "x")
    assert of("data") != first


def test_a_source_is_the_same_from_another_directory(folder, tmp_path_factory, monkeypatch):
    monkeypatch.chdir(folder)
    sources = [DataSource(path=path) for path in ("data", "data/a.jsonl", "data/**/*.jsonl", "*/*.jsonl")]
    before = [(fingerprint(source), prompts(read(source))) for source in sources]
    moved = [absolute(source) for source in sources]
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
    assert [(fingerprint(source), prompts(read(source))) for source in moved] == before
    assert names_of(moved[1]) == [str(folder / "data/a.jsonl")]
    assert absolute(moved[2]) == moved[2]
    assert absolute(DataSource(path="some/hub-id")).path == "some/hub-id"


def test_an_empty_file_among_others_is_a_warning(folder):
    (folder / "data/a.jsonl").write_text("")
    ledger = Ledger()
    assert len(list(read(DataSource(path="data"), folder, ledger=ledger))) == 6
    assert str(ledger.warnings["the file is empty"]) == "data/a.jsonl:1"
    for name in ("a.jsonl", "b.jsonl", "deep/c.jsonl"):
        (folder / "data" / name).write_text("\n")
    with pytest.raises(DataError, match="empty"):
        list(read(DataSource(path="data"), folder))


# ---- shares


def test_a_share_is_drawn_by_place_and_seed(tmp_path):
    rows_file(tmp_path / "a.jsonl", "a", 4000)
    rows_file(tmp_path / "longer.jsonl", "a", 5000)

    def of(share, seed=0, path="a.jsonl"):
        return prompts(read(DataSource(path=path, share=share), tmp_path, seed=seed))

    tenth, third = of(0.1), of(0.3)
    assert abs(len(tenth) - 400) < 4 * (4000 * 0.1 * 0.9) ** 0.5
    assert abs(len(third) - 1200) < 4 * (4000 * 0.3 * 0.7) ** 0.5
    assert set(tenth) < set(third) < set(of(1))
    assert tenth == of(0.1)
    assert set(tenth) != set(of(0.1, seed=1))
    assert of(0.1, path="longer.jsonl")[: len(tenth)] == tenth
    assert len(of(1.0)) == 4000


def test_a_share_of_a_folder_is_drawn_from_each_file_apart(tmp_path):
    for name in ("a", "b"):
        rows_file(tmp_path / f"data/{name}.jsonl", name, 200)
    taken = prompts(read(DataSource(path="data", share=0.5), tmp_path))
    rows = [{prompt[1:] for prompt in taken if prompt[0] == name} for name in "ab"]
    assert all(60 < len(some) < 140 for some in rows)
    assert rows[0] != rows[1]
    (tmp_path / "data").rename(tmp_path / "moved")
    rows_file(tmp_path / "moved/0.jsonl", "z", 1)
    again = prompts(read(DataSource(path=str(tmp_path / "moved"), share=0.5)))
    assert [prompt for prompt in again if prompt[0] != "z"] == taken


def test_a_share_takes_the_messages_of_a_tree_together(write):
    rows = [{"message_tree_id": f"t{i % 100}", "message_id": f"m{i}"} for i in range(400)]
    path = write("a.jsonl", rows)
    found = read(DataSource(path=path.name, share=0.4), path.parent)
    trees = [record.value["message_tree_id"] for record in found]
    assert 20 < len(set(trees)) < 60
    assert {trees.count(tree) for tree in trees} == {4}


def test_the_ledger_accounts_for_rows_that_are_not_taken(tmp_path):
    rows_file(tmp_path / "a.jsonl", "a", 200)
    ledger = Ledger()
    options = {"validation": 0.0, "bad_rows": "stop", "consecutive_replies": "merge", "seed": 3}
    loaded = load([DataSource(path="a.jsonl", share=0.25)], **options, ledger=ledger, base=tmp_path)
    ledger.check()
    assert ledger.records.total == ledger.files["a.jsonl"] == 200
    assert ledger.records.kept == {"used": len(loaded.train), NOT_TAKEN: 200 - len(loaded.train)}
    assert 25 < len(loaded.train) < 75
    again = load(
        [DataSource(path="a.jsonl", share=0.25)], **options | {"seed": 4}, ledger=Ledger(), base=tmp_path
    )
    assert again.fingerprint != loaded.fingerprint


def test_a_share_that_takes_nothing(tmp_path):
    rows_file(tmp_path / "a.jsonl", "a", 3)
    with pytest.raises(DataError, match=r"(?s)takes no row.*1e-09 of 3 rows.*larger share"):
        list(read(DataSource(path="a.jsonl", share=1e-9), tmp_path))


# ---- standard input, addresses, saved datasets


@pytest.fixture
def pipe(monkeypatch):
    """Puts bytes on standard input, as another process would."""

    def pipe(data, terminal=False):
        stream = io.TextIOWrapper(io.BytesIO(data))
        stream.isatty = lambda: terminal
        monkeypatch.setattr(sys, "stdin", stream)
        piped_module.spooled.cache_clear()

    yield pipe
    piped_module.spooled.cache_clear()


def test_standard_input_is_read_once_and_kept(pipe, write):
    data = b'{"prompt": "a", "response": "b"}\n{"prompt": "c", "response": "d"}\n'
    pipe(data)
    source = DataSource(path="-")
    for _ in range(2):
        found = list(read(source))
        assert prompts(found) == ["a", "c"]
    assert str(found[1].place) == "standard input:2"
    path = write("a.jsonl", data)
    assert fingerprint(source) == fingerprint(DataSource(path=str(path)))
    assert absolute(source) == source
    kept = locate(source).files[0].path
    assert kept.is_file()


@pytest.mark.parametrize(
    ("data", "columns"),
    [
        (b"prompt,response\na,b\n", ["prompt", "response"]),
        (b"\xef\xbb\xbfprompt;response\r\na;b\r\n", ["prompt", "response"]),
        (b"Is it?\tno\tSo.\nOr?\tyes\tWell.\n", ["question", "answer", "rationale"]),
        (gzip.compress(b"prompt\tresponse\na\tb\n", mtime=0), ["prompt", "response"]),
        (b'[{"prompt": "a", "response": "b"}]', ["prompt", "response"]),
        (
            b'\n{"prompt": "a",\n "response": "b"}\n',
            None,
        ),  # a broken line is a bad row, as in a file of JSON lines
    ],
)
def test_standard_input_is_what_its_text_shows(pipe, data, columns):
    pipe(data)
    first = next(iter(read(DataSource(path="-")))).value
    assert isinstance(first, Broken) if columns is None else list(first) == columns


@pytest.mark.parametrize("data", [b"Once upon a time.\n", b"a\nb\n", b"one, two\n", b"1\n2\n"])
def test_other_texts_on_standard_input_are_refused(pipe, data):
    pipe(data)
    with pytest.raises(DataError, match=r"(?s)neither JSON lines nor a table.*COMMAND > data.txt"):
        list(read(DataSource(path="-")))


@pytest.mark.parametrize(("data", "terminal", "says"), [(b"", False, "0 bytes"), (b"x", True, "a terminal")])
def test_nothing_on_standard_input(pipe, data, terminal, says):
    pipe(data, terminal)
    for use in (fingerprint, read):
        with pytest.raises(DataError) as caught:
            use(DataSource(path="-"))
        assert says in caught.value.found
        assert "to resume a run, the same that it began with" in str(caught.value)


def test_standard_input_of_several_processes(pipe, monkeypatch):
    pipe(b"{}\n")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(DataError, match=r"(?s)reaches one process.*data=rows.jsonl"):
        read(DataSource(path="-"))


@pytest.mark.parametrize(
    ("address", "fix"),
    [
        ("https://example.org/d/rows.jsonl.gz?x=1", "curl -L -o rows.jsonl.gz 'https://example.org/d/rows.jsonl.gz?x=1'"),
        ("http://example.org/", "curl -L -o example.org http://example.org/"),
        ("https://huggingface.co/datasets/tatsu-lab/alpaca", "write data=tatsu-lab/alpaca"),
        ("https://huggingface.co/datasets/a/b/viewer/default/train", "write data=a/b"),
        (
            "https://huggingface.co/datasets/a/b/blob/main/x.json",
            "curl -L -o x.json https://huggingface.co/datasets/a/b/resolve/main/x.json",
        ),
        ("hf://datasets/a/b", "write data=a/b"),
        ("s3://bucket/rows.jsonl", "aws s3 cp s3://bucket/rows.jsonl ."),
        ("gs://bucket/rows.jsonl", "gcloud storage cp gs://bucket/rows.jsonl ."),
        ("file:///tmp/rows.jsonl", "write /tmp/rows.jsonl"),
        ("ipfs://x", "download it, then name the file"),
    ],
)  # fmt: skip
def test_addresses_are_refused_with_what_fetches_them(address, fix):
    with pytest.raises(DataError) as caught:
        read(DataSource(path=address))
    assert caught.value.what == "the data is an address, not a file"
    assert caught.value.fix.endswith(fix)


def save(folder, rows, files=2):
    """A folder as save_to_disk of `datasets` leaves it."""
    folder.mkdir(parents=True)
    names = [f"data-{i:05}-of-{files:05}.arrow" for i in range(files)]
    for i, name in enumerate(names):
        table = pyarrow.Table.from_pylist(rows[i::files])
        with pyarrow.ipc.new_stream(folder / name, table.schema) as writer:
            writer.write_table(table)
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": name} for name in names]}))
    (folder / "dataset_info.json").write_text("{}")


def test_saved_datasets_are_read_as_datasets_reads_them(tmp_path):
    import datasets

    rows = [{"prompt": f"q{i}", "response": "a", "meta": {"n": i}} for i in range(50)]
    one = datasets.Dataset.from_list(rows)
    one.save_to_disk(tmp_path / "one", num_shards=3)
    splits = datasets.DatasetDict({"train": one.select(range(40)), "held": one.select(range(40, 50))})
    splits.save_to_disk(tmp_path / "all")
    found = list(read(DataSource(path="one"), tmp_path))
    assert [record.value for record in found] == list(datasets.load_from_disk(tmp_path / "one"))
    assert str(found[-1].place) == "one:row 50"
    for split, part in (("train", rows[:40]), ("held", rows[40:])):
        assert [r.value for r in read(DataSource(path="all", split=split), tmp_path)] == part
    marks = {fingerprint(DataSource(path="all", split=split), tmp_path) for split in ("train", "held")}
    assert len(marks) == 2
    with pytest.raises(DataError, match=r"(?s)no such split.*splits train, held.*split: held"):
        list(read(DataSource(path="all", split="helt"), tmp_path))


def test_a_saved_dataset_without_datasets(tmp_path):
    rows = [{"prompt": f"q{i}", "response": "a"} for i in range(7)]
    save(tmp_path / "one", rows)
    found = [record.value for record in read(DataSource(path="one"), tmp_path)]
    assert found == [*rows[::2], *rows[1::2]]
    (tmp_path / "one/state.json").write_text("{")
    with pytest.raises(DataError, match=r"(?s)saved dataset cannot be read.*state.json"):
        list(read(DataSource(path="one"), tmp_path))
    (tmp_path / "one/state.json").write_text('{"_data_files": [{"filename": "gone.arrow"}]}')
    with pytest.raises(DataError, match=r"Arrow file cannot be read"):
        list(read(DataSource(path="one"), tmp_path))


def test_a_split_of_a_saved_dataset_has_a_meaning(tmp_path, monkeypatch):
    from imprint.errors import RecipeError
    from imprint.settings import resolve

    monkeypatch.chdir(tmp_path)
    (tmp_path / "all").mkdir()
    (tmp_path / "all/dataset_dict.json").write_text('{"splits": ["train", "held"]}')
    given = ["model=x", "data.0.path=all", "data.0.split=held"]
    assert resolve(None, given).recipe.data[0].split == "held"
    (tmp_path / "all/dataset_dict.json").unlink()
    for path in ("all", "-", "*.jsonl", "a.arrow"):
        with pytest.raises(RecipeError, match="only hub datasets"):
            resolve(None, ["model=x", f"data.0.path={path}", "data.0.split=held"])
