"""Secrets: what is taken out, what is left, and that a recipe with one is refused without repeating it."""

import pytest

from imprint.errors import RecipeError
from imprint.redact import HIDDEN, redactor
from imprint.settings import resolve

HF = "hf_" + "aB3" * 12
OPENAI = "sk-proj-" + "x9Y" * 14
AWS = "AKIA" + "ABCDEFGH12345678"


@pytest.mark.parametrize("secret", [HF, OPENAI, AWS, "ghp_" + "a1" * 20])
def test_what_looks_like_a_secret_is_taken_out(secret):
    redact = redactor({})
    assert redact(f"pulled with {secret} today") == f"pulled with {HIDDEN} today"
    assert redact({secret: [1, (secret, {"deep": secret})]}) == {HIDDEN: [1, (HIDDEN, {"deep": HIDDEN})]}


def test_values_of_the_environment_are_taken_out_unless_they_are_places(tmp_path):
    redact = redactor(
        {
            "WANDB_API_KEY": "correct horse battery",
            "SSH_KEY": str(tmp_path),
            "KEY": "short",
            "HOME": "a long home",
            "AWS_SECRET_ACCESS_KEY": "/wJalrXUtnFEMI/K7MDENG",  # base64 may begin like a path
            "TOKEN_FILE": "/run/secrets/of-another-machine",
        }
    )
    assert redact("correct horse battery!") == f"{HIDDEN}!"
    assert redact("with /wJalrXUtnFEMI/K7MDENG.") == f"with {HIDDEN}."
    for text in (str(tmp_path), "short", "a long home", "/run/secrets/of-another-machine"):
        assert redact(text) == text


def test_texts_under_telling_keys_are_taken_out():
    given = {"api_key": "anything", "hub_token": "x", "password": "y", "auth": {"secret": "z"}}
    assert redactor({})(given) == {
        "api_key": HIDDEN,
        "hub_token": HIDDEN,
        "password": HIDDEN,
        "auth": {"secret": HIDDEN},
    }


@pytest.mark.parametrize(
    "innocent",
    [
        {"key": "learning_rate", "value": 1e-4},
        {"tokens": 10, "row_tokens": "auto", "control_tokens": "leave_out", "train_tokens": ["<|im_end|>"]},
        "sk-learn-is-the-name-of-a-data-set-of-long-words",
        "runs/hf_mirror/model",
        "https://example.org:8000/v1",
    ],
)
def test_what_only_resembles_one_is_left(innocent):
    assert redactor({})(innocent) == innocent


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ((f"model={HF}", "data=d.jsonl"), "`model` holds a secret"),
        (("model=m", f"data=https://me:{'pass' * 4}@host/d.jsonl"), "`data.0.path` holds a secret"),
        (("model=m", "data=d.jsonl", "template_options.api_key=quite-secret"), "`template_options.api_key`"),
        (("model=m", "data=d.jsonl", f"template_options.{HF}=1"), f"`template_options.{HIDDEN}`"),
        (("model=m", "data=d.jsonl", f"output=runs/{OPENAI}"), "`output` holds a secret"),
    ],
)
def test_a_recipe_with_a_secret_is_refused_and_the_secret_not_repeated(given, named):
    with pytest.raises(RecipeError) as caught:
        resolve(None, given)
    assert named in str(caught.value)
    assert "argument" in str(caught.value)
    for secret in (HF, OPENAI, "passpass", "quite-secret"):
        assert secret not in str(caught.value)


def test_the_environments_secret_in_a_recipe_file(tmp_path, monkeypatch):
    monkeypatch.setenv("MY_SERVICE_TOKEN", "0123-4567-89ab-cdef")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("model: m\ndata: d.jsonl\ntemplate_options: {note: 0123-4567-89ab-cdef}\n")
    with pytest.raises(RecipeError) as caught:
        resolve(recipe, ())
    assert str(caught.value).startswith(f"{recipe}:3: `template_options.note` holds a secret")
    assert "0123" not in str(caught.value)
