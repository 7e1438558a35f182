"""The table of open sets, and the short names that stand for hub ids."""

from __future__ import annotations

import pytest

from imprint.data.catalogue import BY_NAME as FORMATS
from imprint.data.gather import read
from imprint.data.locate import HUB_ID, locate
from imprint.data.sets import BY_NAME, SETS, named, on_hub
from imprint.errors import DataError, RecipeError
from imprint.recipe import DataSource


def test_the_table_is_whole():
    assert len(SETS) == len(BY_NAME) >= 40
    assert [one.name for one in SETS] == sorted(BY_NAME)
    for one in SETS:
        assert HUB_ID.fullmatch(one.hub), one
        assert "/" in one.hub, one
        assert one.format in FORMATS, one
        assert all((one.rows, one.origin, one.languages, one.licence, one.good_for)), one


def test_who_made_it_with_openai_is_told():
    for one in SETS:
        if one.origin.startswith(("synthetic: GPT", "synthetic: ChatGPT", "synthetic: text-davinci")):
            assert "OpenAI" in one.catch, one.name


def test_a_short_name_stands_for_the_hub_id_with_its_split_and_configuration():
    assert on_hub(DataSource(path="alpaca")).path == "tatsu-lab/alpaca"
    assert on_hub(DataSource(path="ultrachat")).split == "train_sft"
    assert on_hub(DataSource(path="ultrachat", split="test_sft")).split == "test_sft"
    assert on_hub(DataSource(path="gsm8k")).config == "main"
    assert on_hub(DataSource(path="gsm8k", config="socratic")).config == "socratic"
    pinned = DataSource(path="dolly", revision="abc", share=0.5)
    assert on_hub(pinned) == pinned.model_copy(update={"path": "databricks/databricks-dolly-15k"})
    other = DataSource(path="somebody/alpaca")
    assert on_hub(other) is other


@pytest.mark.parametrize("one", SETS, ids=lambda one: one.name)
def test_every_short_name_is_a_hub_id_and_can_be_pinned(one, tmp_path):
    found = on_hub(DataSource(path=one.name, revision="abc"))
    assert (found.path, found.split, found.config) == (one.hub, one.split, one.config)
    assert found.revision == "abc"
    assert locate(DataSource(path=one.name), tmp_path) is None  # no file: it is looked for on the hub


def test_what_is_not_sure_is_said_to_be():
    for one in SETS:
        if one.licence == "unsure":
            assert "say" in one.catch, one.name


def test_a_file_or_folder_of_that_name_goes_first(tmp_path):
    (tmp_path / "alpaca").write_text('{"prompt": "a", "response": "b"}\n')
    (tmp_path / "dolly").mkdir()
    (tmp_path / "dolly" / "rows.jsonl").write_text('{"prompt": "c", "response": "d"}\n')
    assert locate(DataSource(path="gsm8k"), tmp_path) is None
    for name, asked in (("alpaca", "a"), ("dolly", "c")):
        (record,) = read(DataSource(path=name), tmp_path)
        assert record.value["prompt"] == asked


def test_the_rows_of_a_short_name_are_those_of_the_hub(monkeypatch):
    """Nothing is fetched: the loader is watched."""
    from imprint.data import hub

    asked = []

    def loader(*given):
        asked.append(given)
        return [{"instruction": "Say a.", "input": "", "output": "a"}], "print"

    monkeypatch.setattr(hub, "_dataset", loader)
    (record,) = read(DataSource(path="alpaca"))
    assert asked == [("tatsu-lab/alpaca", None, "train", None)]
    assert str(record.place) == "alpaca:row 1"


def test_a_short_name_that_cannot_be_loaded_says_what_to_do(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path))
    with pytest.raises(DataError) as caught:
        list(read(DataSource(path="dolly")))
    told = str(caught.value)
    assert "dolly stands for databricks/databricks-dolly-15k" in told
    assert "hf download --repo-type dataset databricks/databricks-dolly-15k" in told
    with pytest.raises(DataError, match="write data=dolly, if you meant databricks"):
        list(read(DataSource(path="dolli")))


def test_named():
    assert named("lima") is named("GAIR/lima") is BY_NAME["lima"]
    with pytest.raises(RecipeError, match="write metamath"):
        named("metamat")
    with pytest.raises(RecipeError, match="any dataset of the hub"):
        named("qqqq")
