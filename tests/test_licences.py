import json

import pytest

from imprint.licences import card_head, terms_of, to_json, verdict
from imprint.recipe import DataSource


def model(folder, card="", licence=""):
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    if card:
        (folder / "README.md").write_text(card, encoding="utf-8")
    if licence:
        (folder / "LICENSE").write_text(licence, encoding="utf-8")
    return folder


def head(**values):
    return (
        "---\n"
        + "".join(f"{key}: {json.dumps(value)}\n" for key, value in values.items())
        + "---\n# A model\n"
    )


@pytest.mark.parametrize(
    ("licence", "commercial"),
    [("apache-2.0", "yes"), ("Apache-2.0", "yes"), ("MIT", "yes"), ("cc-by-nc-4.0", "no"), ("CC BY-NC 4.0", "no"),
     ("llama3.1", "with conditions"), ("gemma", "with conditions"), ("CC BY-SA 3.0", "yes")],
)  # fmt: skip
def test_licences_are_known_by_the_names_of_cards_and_of_the_table(licence, commercial):
    found = terms_of(licence)
    assert found is not None
    assert found.commercial == commercial


def test_the_chain_of_bases_decides(tmp_path):
    root = model(tmp_path / "root", head(license="cc-by-nc-4.0"))
    middle = model(tmp_path / "middle", head(license="apache-2.0", base_model=str(root)))
    top = model(tmp_path / "top", head(license="mit", base_model=[str(middle)]))
    found = verdict(str(top), [])
    assert [part.name for part in found.parts] == ["top", "middle", "root"]
    assert found.commercial == "no"
    assert "root" in found.sentence()
    assert verdict(str(model(tmp_path / "free", head(license="mit"))), []).commercial == "yes"


def test_a_chain_that_leads_back_ends(tmp_path):
    a, b = tmp_path / "a", tmp_path / "b"
    model(a, head(license="mit", base_model=str(b)))
    model(b, head(license="mit", base_model=str(a)))
    assert len(verdict(str(a), []).parts) == 2


def test_other_stands_for_the_name_beside_it(tmp_path):
    folder = model(tmp_path / "m", head(license="other", license_name="llama3.2"))
    (part,) = verdict(str(folder), []).parts
    assert part.licence == "Llama 3.2 Community"
    assert any("Built with Llama" in duty for duty in part.duties)


@pytest.mark.parametrize(
    ("text", "licence"),
    [("Apache License\n Version 2.0, January 2004", "Apache-2.0"), ("MIT License\n\nCopyright", "MIT"),
     ("LLAMA 3.1 COMMUNITY LICENSE AGREEMENT", "Llama 3.1 Community"), ("All rights reserved.", "its own text")],
)  # fmt: skip
def test_without_a_card_the_text_of_the_licence_is_read(text, licence, tmp_path):
    (part,) = verdict(str(model(tmp_path / "m", licence=text)), []).parts
    assert part.licence == licence
    assert "SHA-256" in part.source
    assert part.commercial == ("unknown" if licence == "its own text" else part.commercial)


def test_a_model_without_anything_is_unknown_and_so_is_the_verdict(tmp_path):
    found = verdict(str(model(tmp_path / "m")), [])
    assert found.commercial == "unknown"
    assert "nobody here can say" in found.sentence()


def test_data_known_by_the_table_of_sets(tmp_path):
    folder = str(model(tmp_path / "m", head(license="apache-2.0")))
    assert verdict(folder, [DataSource(path="alpaca")]).commercial == "no"
    assert verdict(folder, [DataSource(path="databricks/databricks-dolly-15k")]).commercial == "yes"
    taught = verdict(folder, [DataSource(path="capybara")])
    assert taught.commercial == "with conditions"  # its teacher's terms
    assert any("OpenAI" in duty for duty in taught.duties)
    own = tmp_path / "rows.jsonl"
    own.write_text("{}")
    assert verdict(folder, [DataSource(path=str(own))]).commercial == "unknown"
    (tmp_path / "README.md").write_text(head(license="cc0-1.0"))
    assert verdict(folder, [DataSource(path=str(own))]).commercial == "yes"


@pytest.mark.parametrize(
    "text", ["", "no head", "---\n: [\n---\n", "---\n- a list\n---\n", "---\nlicense: mit\n"]
)
def test_cards_that_cannot_be_read_say_nothing(text, tmp_path):
    file = tmp_path / "README.md"
    file.write_text(text)
    assert card_head(file) == {}


def test_json(tmp_path):
    found = to_json(verdict(str(model(tmp_path / "m", head(license="mit"))), [DataSource(path="alpaca")]))
    assert found["commercial"] == "no"
    assert {"what", "name", "licence", "commercial", "source", "duties"} == set(found["parts"][0])
    assert json.loads(json.dumps(found)) == found
