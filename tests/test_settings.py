"""Layers, places, types by the schema, refusals: what a recipe means and why it is refused."""

import importlib.util
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imprint.errors import RecipeError
from imprint.meaning import RULES
from imprint.recipe import DataSource, Recipe
from imprint.schema import describe, leaves
from imprint.settings import SeveralProblems, dump, load, resolve

BASE = ["model=base", "data=train.jsonl"]


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """Each test works in an empty folder, so that places and messages have short names."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(text: str, name: str = "recipe.yaml") -> Path:
    path = Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def refusal(*assignments: str, text: str | None = None) -> RecipeError:
    recipe_file = None if text is None else write(text)
    with pytest.raises(RecipeError) as caught:
        resolve(recipe_file, assignments)
    return caught.value


# ---- layers and origins


def test_model_and_data_alone_are_enough():
    resolved = resolve(None, BASE)
    assert resolved.recipe == Recipe(model="base", data=[DataSource(path="train.jsonl")])
    assert resolved.origin["model"].place == "argument model=base"
    assert resolved.origin["lora.rank"].layer == "default"


def test_every_leaf_has_an_origin():
    resolved = resolve(None, [*BASE, "validation=held.jsonl", "template_options={a: 1}"])
    assert set(resolved.origin) == {".".join(path) for path, _ in leaves(resolved.recipe)}
    assert {"data.0.path", "validation.path", "template_options.a", "betas"} <= set(resolved.origin)


def test_the_chain_tells_all_four_layers():
    write("lora:\n  rank: 64\n", "base/imprint.yaml")
    recipe = write("model: base\ndata: train.jsonl\nmethod: lora\nlora:\n  alpha: 8\n  rank: 32\n")
    resolved = resolve(recipe, ["lora.rank=8"])
    chain = resolved.origin["lora.rank"].chain
    assert [(step.layer, step.place, step.value) for step in chain] == [
        ("argument", "argument lora.rank=8", "8"),
        ("file", "recipe.yaml:6", "32"),
        ("preset", "base/imprint.yaml:2", "64"),
        ("default", "default", 16),
    ]
    assert (resolved.recipe.lora.rank, resolved.recipe.lora.alpha) == (8, 8)


def test_the_model_of_the_arguments_brings_the_preset():
    write("learning_rate: 1e-3\n", "one/imprint.yaml")
    write("learning_rate: 2e-3\n", "two/imprint.yaml")
    recipe = write("model: one\ndata: train.jsonl\n")
    assert resolve(recipe, []).recipe.learning_rate == 1e-3
    assert resolve(recipe, ["model=two"]).recipe.learning_rate == 2e-3


@pytest.mark.parametrize(
    "key", ["model", "data", "output", "validation", "replay", "revision", "trust_remote_code"]
)
def test_a_preset_may_not_choose_for_the_user(key):
    write(f"seed: 1\n{key}: x\n", "base/imprint.yaml")
    error = refusal(*BASE)
    assert error.where == "base/imprint.yaml:2"
    assert error.what == f"`{key}` cannot be set here"


def test_advice_of_a_preset_that_has_no_meaning_here_is_not_taken():
    write("lora:\n  rank: 64\nlearning_rate: 1e-3\n", "base/imprint.yaml")
    resolved = resolve(None, BASE)
    assert resolved.recipe.lora.rank == 16
    assert resolved.origin["lora.rank"].layer == "default"
    assert resolved.origin["learning_rate"].layer == "preset"


def test_a_whole_replaces_and_a_part_adds():
    recipe = write("model: base\ndata:\n- a.json\n- path: b.json\n  fields: {prompt: x}\n")
    parts = resolve(recipe, ["data.1.fields.response=y", "data.2.path=c.json"]).recipe.data
    assert [source.path for source in parts] == ["a.json", "b.json", "c.json"]
    assert parts[1].fields == {"prompt": "x", "response": "y"}
    whole = resolve(recipe, ["data.0.format=chat", "data=z.json"])  # the whole first, whatever the order
    assert whole.recipe.data == [DataSource(path="z.json", format="chat")]
    assert [step.value for step in whole.origin["data.0.path"].chain] == ["z.json", "a.json"]


def test_a_share_gives_way_to_a_source_and_back():
    recipe = write("model: base\ndata: a.json\nvalidation: {path: held.json, format: chat}\n")
    assert resolve(recipe, []).recipe.validation == DataSource(path="held.json", format="chat")
    assert resolve(recipe, ["validation=0.1"]).recipe.validation == 0.1
    assert resolve(recipe, ["validation=b.json"]).recipe.validation == DataSource(path="b.json")
    assert resolve(None, [*BASE, "validation=0.1"]).origin["validation"].overrode.value == 0.05


# ---- types are the schema's business


@pytest.mark.parametrize("written", ["1e-4", "1.0e-4", "0.0001", "'1e-4'", "1E-4"])
def test_a_number_is_a_number_however_it_is_written(written):
    recipe = write(f"model: base\ndata: a.json\nlearning_rate: {written}\n")
    assert resolve(recipe, []).recipe.learning_rate == 1e-4
    assert resolve(None, [*BASE, f"learning_rate={written}"]).recipe.learning_rate == 1e-4


def test_text_stays_text():
    recipe = write("model: 2024\ndata: [1e-4, yes]\nlora: {targets: [on, null_proj]}\nmethod: lora\n")
    found = resolve(recipe, []).recipe
    assert found.model == "2024"
    assert [source.path for source in found.data] == ["1e-4", "yes"]
    assert found.lora.targets == ["on", "null_proj"]


def test_values_on_the_command_line():
    found = resolve(
        None,
        [
            "model=base",
            "data=[a.json,{path: b#1.json}]",
            "template_options={enable_thinking: false, off: no, rate: 1e-3, clock: 1:30}",
            "betas=[0.9,0.95]",
            "clip=null",
            "output=runs/a: b",
            "warmup=100",
            "activation_checkpointing=yes",
        ],
    ).recipe
    assert [source.path for source in found.data] == ["a.json", "b#1.json"]
    assert found.template_options == {"enable_thinking": False, "off": False, "rate": 1e-3, "clock": "1:30"}
    assert (found.betas, found.clip, found.output) == ((0.9, 0.95), None, "runs/a: b")
    assert (found.warmup, found.activation_checkpointing) == (100, True)


def test_a_group_with_nothing_in_it_sets_nothing():
    assert resolve(write("model: base\ndata: a.json\nlora:\n"), []).origin["lora.rank"].layer == "default"


# ---- refusals, word by word


def test_a_misspelt_key():
    error = refusal(text="model: base\ndata: a.json\nlearnin_rate: 1\n")
    assert str(error) == "recipe.yaml:3: `learnin_rate` is not a setting\n  to fix    write `learning_rate`"


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("batch_sze=1", "batch_size"),
        ("lora.rnk=8", "lora.rank"),
        ("rank=8", "lora.rank"),
        ("lr=1e-4", "learning_rate"),
        ("num_train_epochs=1", "epochs"),
        ("data.0.fromat=chat", "data.0.format"),
        ("validation.pth=x", "validation.path"),
        ("Batch-Size=1", "batch_size"),
    ],
)
def test_the_nearest_key_is_named(written, meant):
    assert refusal(*BASE, written).fix == f"write `{meant}`"


def test_an_unlike_key_lists_what_is_known():
    error = refusal(*BASE, "lora.zzzz=1")
    assert (error.where, error.expected) == (
        "argument lora.zzzz=1",
        "rank, alpha, scaling, dora, init, dropout, targets, train_tokens",
    )
    assert "zzzz" in refusal(*BASE, "seed.zzzz=1").what


def test_a_wrong_value():
    error = refusal(text="model: base\ndata: a.json\nmethod: ful\n")
    assert str(error) == (
        "recipe.yaml:3: `method` cannot be ful\n"
        "  found     ful\n"
        "  expected  full, lora or qlora\n"
        "  to fix    write `full`"
    )


def test_a_value_out_of_range():
    error = refusal(*BASE, "warmup=-1")
    assert str(error) == (
        "argument warmup=-1: `warmup` cannot be -1\n"
        "  found     -1\n"
        "  expected  number from 0 to below 1, or whole number above 0\n"
        "  to fix    write such a value, or remove it for the default: 0.03"
    )


@pytest.mark.parametrize(
    "wrong",
    [
        "batch_size=x", "batch_size=0", "batch_size=1.5", "batch_size=null", "betas=[0.9]", "betas=0.9",
        "lora=8", "learning_rate={a: 1}", "clip=inf", "learning_rate=nan", "validation=2024",
        "validation=false", "data=[]", "data=null", "data=[null]", "version=2", "template_options=3",
        "seed=-1", "data.0.fields.x=null",
    ],
)  # fmt: skip
def test_wrong_types_have_a_place_and_say_what_is_expected(wrong):
    error = refusal(*(item for item in BASE if not wrong.startswith(item.split("=")[0] + "=")), wrong)
    assert not isinstance(error, SeveralProblems)
    assert error.where == f"argument {wrong}"
    assert error.expected


def test_missing_keys_say_how_to_give_them():
    assert refusal("data=a.json").fix == "write model=FOLDER"
    error = refusal(text="seed: 1\n")
    assert error.fix == "add the line `model: FOLDER` to recipe.yaml, or write model=FOLDER"
    assert [problem.what for problem in error.problems] == ["`model` is missing", "`data` is missing"]
    assert refusal("model=m", "data.0.format=chat").where == "argument data.0.format=chat"


def test_all_problems_are_told_together():
    error = refusal("lora.rnk=3", "batch_size=x", text="model: base\nseed: 1\nseed: 2\nepoch: 3\n")
    assert str(error) == (
        "recipe.yaml:3: `seed` is given twice\n"
        "  found     first at recipe.yaml:2\n"
        "  to fix    remove one of them\n"
        "also wrong:\n"
        "  recipe.yaml:4: `epoch` is not a setting; write `epochs`\n"
        "  argument lora.rnk=3: `lora.rnk` is not a setting; write `lora.rank`\n"
        "  recipe.yaml: `data` is missing; add the line `data: FILE` to recipe.yaml, or write data=FILE\n"
        "  argument batch_size=x: `batch_size` cannot be x; "
        "write such a value, or remove it for the default: 32"
    )


@pytest.mark.parametrize(
    "text", ["seed: 1\nseed: 2", "lora:\n  rank: 1\n  rank: 2", "template_options: {a: 1, a: 2}"]
)
def test_a_key_given_twice(text):
    error = refusal(text=f"model: base\ndata: a.json\nmethod: lora\n{text}\n")
    assert "is given twice" in error.what
    assert error.found.startswith("first at recipe.yaml:")


def test_an_argument_given_twice():
    error = refusal(*BASE, "seed=1", "seed=2")
    assert (error.where, error.found) == ("argument seed=2", "first as seed=1")


@pytest.mark.parametrize(
    ("argument", "part"),
    [
        ("epochs", "key=value, as in epochs=2"),
        ("=3", "key=value"),
        ("epochs=", "null is a value"),
        ("betas=[0.9", "not valid YAML"),
        ("data.5.path=x", "write `data.1`"),
        ("data.x.path=y", "is not a setting"),
        ("epochs..=1", "is not a setting"),
    ],
)
def test_a_malformed_argument(argument, part):
    error = refusal(*BASE, argument)
    assert error.where == f"argument {argument}"
    assert part in str(error)


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ("model: base\ndata: [a\nseed: 1\n", "recipe.yaml:3"),
        ("- a\n- b\n", "recipe.yaml"),
        ("just text\n", "recipe.yaml"),
        ("model: base\n---\nmodel: other\n", "recipe.yaml:2"),
        ("model: base\ndata: a.json\nlora.rank: 8\n", "recipe.yaml:3"),
        ("model: base\ndata: a.json\ntemplate_options: &a {x: *a}\n", "recipe.yaml:3"),
        ("model: base\ndata: &a [*a]\n", "recipe.yaml:2"),
        ("model: \x00\n", "recipe.yaml"),
    ],
)
def test_a_file_that_is_no_recipe(text, where):
    error = refusal(text=text)
    first = error.problems[0] if isinstance(error, SeveralProblems) else error
    assert first.where == where


def test_files_that_cannot_be_read():
    write("x", "recipe.yaml")
    with pytest.raises(RecipeError, match=r"write recipe\.yaml"):
        resolve(Path("recpe.yaml"), [])
    write("{}", "train.jsonl")
    with pytest.raises(RecipeError, match=r"write data=train\.jsonl"):
        resolve(Path("train.jsonl"), [])
    Path("latin.yaml").write_bytes(b"model: caf\xe9\n")
    with pytest.raises(RecipeError, match="UTF-8"):
        resolve(Path("latin.yaml"), [])
    Path("folder.yaml").mkdir()
    with pytest.raises(RecipeError, match="cannot be read"):
        resolve(Path("folder.yaml"), [])


# ---- settings without a meaning beside the others

MEANINGLESS = {
    "replay_*": ["replay_length=8"],
    "replay_share_of": ["replay_share_of=weight", "replay=text.txt", "replay_share=0"],
    "lora.*": ["lora.rank=8"],
    "lora.dora": ["lora.dora=true", "lora.init=pissa", "method=lora"],
    "lora.init": ["lora.init=pissa", "method=qlora"],
    "quantization.*": ["quantization.double=false", "method=lora"],
    "freeze": ["freeze=[lm_head.*]", "method=lora"],
    "train_only": ["train_only=[lm_head.*]", "method=qlora"],
    "min_improvement": ["min_improvement=0.1", "validation=0"],
    "patience": ["patience=2", "validation=0"],
    "final": ["final=best", "validation=0"],
    "validate_every": ["validate_every=5", "validation=0", "samples=0"],
    "sample_tokens": ["sample_tokens=8", "samples=0"],
    "export.*.adapter_only": ["export.0.adapter_only=true", "export.0.to=hf"],
    "export.*.dtype": [
        "export.0.dtype=float32",
        "export.0.to=hf",
        "export.0.adapter_only=true",
        "method=lora",
    ],
    "revision": ["revision=abc", "model=folder"],
    "trust_remote_code": ["trust_remote_code=true"],
    "data.*.split": ["data.0.split=test"],
    "data.*.config": ["data.0.config=en"],
    "data.*.revision": ["data.0.revision=v1"],
    "validation.split": ["validation.split=test", "validation=held.json"],
    "validation.config": ["validation.config=en", "validation=held.json"],
    "validation.revision": ["validation.revision=v1", "validation=held.json"],
    "replay.*.split": ["replay.0.split=test", "replay.0.path=text.txt"],
    "replay.*.config": ["replay.0.config=en", "replay.0.path=text.txt"],
    "replay.*.revision": ["replay.0.revision=v1", "replay.0.path=text.txt"],
    "layout": ["layout=shared", "dropout=0.1"],
    "attention": ["attention=reference", "layout=separate"],
}


def test_every_rule_has_a_case():
    assert set(MEANINGLESS) == {rule.keys for rule in RULES}


@pytest.mark.parametrize("keys", MEANINGLESS)
def test_a_setting_without_meaning_is_refused(keys):
    Path("folder").mkdir()
    case = MEANINGLESS[keys]
    base = ["data=train.jsonl", *([] if any("model=" in one for one in case) else ["model=owner/name"])]
    error = refusal(*base, *case)
    assert error.where == f"argument {case[0]}"
    assert error.fix
    assert "has no meaning here" in error.what


@pytest.mark.parametrize(
    "fine",
    [
        ["validation=0", "patience=null", "final=last"],
        ["validation=0", "validate_every=5"],
        ["layout=separate", "attention=auto"],
        ["layout=packed", "dropout=0.1"],
        ["trust_remote_code=true", "revision=" + "a" * 40],
        ["data=owner/name", "data.0.split=test"],
        ["method=lora", "lora.rank=2", "validation=held.json", "patience=2"],
    ],
)
def test_a_setting_with_meaning_is_taken(fine):
    base = ["model=owner/name", *([] if "data=owner/name" in fine else ["data=a.json"])]
    resolve(None, [*base, *fine])


def test_a_branch_does_not_pin_remote_code():
    assert (
        "40 hexadecimal" in refusal("model=a/b", "data=c.json", "trust_remote_code=true", "revision=main").fix
    )


# ---- writing


def test_dump_begins_with_the_version():
    assert dump(resolve(None, BASE).recipe).startswith("version: 1\nmodel: base\n")


def test_a_resolved_recipe_loads_even_where_a_request_would_be_refused():
    recipe = Recipe(model="m", data=[DataSource(path="a.json")], layout="separate", attention="reference")
    assert load(write(dump(recipe))) == recipe


words = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=8)
scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | words
options = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=3)
)
odd_words = words | st.sampled_from(
    ["null", "~", "1e-4", "2024", "yes", "on", "1:30", "2024-01-01", "- a", "a: b", "#"]
)
rates = st.floats(1e-9, 1e3) | st.just("auto")
sources = st.builds(
    DataSource,
    path=odd_words,
    fields=st.dictionaries(odd_words, odd_words, max_size=2),
    config=st.none() | odd_words,
)
recipes = st.builds(
    Recipe,
    model=odd_words,
    revision=st.none() | odd_words,
    data=st.lists(sources, min_size=1, max_size=3),
    validation=st.floats(0, 0.99) | sources,
    template=odd_words,
    template_options=st.dictionaries(odd_words, options | odd_words, max_size=3),
    method=st.sampled_from(["full", "lora"]),
    learning_rate=rates,
    warmup=st.floats(0, 0.99) | st.integers(1, 1000),
    betas=st.tuples(st.floats(0, 0.99), st.floats(0, 0.99)),
    clip=st.none() | st.floats(1e-9, 10),
    samples=st.integers(0, 3),
    output=odd_words,
)


@settings(max_examples=150, deadline=None)
@given(recipes)
def test_what_is_dumped_loads_as_an_equal_recipe(recipe):
    path = write(dump(recipe))
    assert load(path) == recipe
    try:
        assert resolve(path, []).recipe == recipe
    except RecipeError as error:
        assert "has no meaning here" in error.what  # noqa: PT017 - Recipe() can ask for what a user may not


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from([row.key.replace("N", "0") for row in describe()]), words), max_size=5)
)
def test_no_assignment_breaks_the_resolver(pairs):
    try:
        resolve(None, [*BASE, *(f"{key}={value}" for key, value in pairs)])
    except RecipeError as error:
        assert str(error)  # noqa: PT017 - any refusal will do, any other exception will not


# ---- documentation


def test_every_key_is_described():
    assert all(row.description and row.type for row in describe())


def test_the_page_of_the_recipe_is_up_to_date():
    root = Path(__file__).parent.parent
    spec = importlib.util.spec_from_file_location("write_docs", root / "tools" / "write_docs.py")
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    page = (root / "docs" / "recipe.md").read_text(encoding="utf-8")
    assert page == tool.recipe_page(), "run: python tools/write_docs.py"


@pytest.mark.parametrize("name", ["format", "share", "split", "config", "fields", "branches"])
def test_a_setting_of_a_source_given_alone_is_named_in_full(name):
    with pytest.raises(RecipeError) as raised:
        resolve(None, ["model=m", "data=d.jsonl", f"{name}=x"])
    assert f"write `data.0.{name}`" in str(raised.value)
