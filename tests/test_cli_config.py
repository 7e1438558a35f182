"""The command line: config show and why, messages, exit codes, and what is not imported."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import imprint
from imprint import cli, cli_config
from imprint.cli_arguments import split_arguments
from imprint.errors import Interrupted, RunFailed

BASE = ["model=base", "data=train.jsonl"]


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.delenv("IMPRINT_DEBUG", raising=False)
    Path("base").mkdir()
    Path("base/config.json").write_text('{"hidden_size": 576, "max_position_embeddings": 2048}')
    Path("recipe.yaml").write_text("model: base\ndata: train.jsonl\nmethod: lora\nlora:\n  rank: 8\n")
    return tmp_path


@pytest.fixture
def run(capsys):
    """Runs a verb in this process and gives exit code, stdout and stderr."""

    def call(*arguments: str) -> tuple[int, str, str]:
        try:
            code = cli.main(list(arguments))
        except SystemExit as leave:
            code = int(leave.code or 0)
        return (code, *capsys.readouterr())

    return call


def in_subprocess(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs a verb in a fresh interpreter, which says at the end which heavy packages it has loaded."""
    script = (
        "import atexit, sys\n"
        "heavy = ('torch', 'transformers', 'peft', 'datasets', 'pyarrow', 'numpy')\n"
        "loaded = lambda: [name for name in heavy if name in sys.modules]\n"
        "atexit.register(lambda: print('loaded:', loaded(), file=sys.stderr))\n"
        "from imprint.cli import main\n"
        "sys.exit(main())\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(imprint.__file__).parent.parent)}
    command = [sys.executable, "-c", script, *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment)


# ---- the top


def test_no_arguments_show_the_help(run):
    assert run()[:2] == run("--help")[:2]
    assert run()[0] == 0


def test_the_version_has_one_home(run):
    assert run("--version") == (0, f"imprint {imprint.__version__}\n", "")


@pytest.mark.parametrize("verb", [[], ["config", "show"], ["config", "why"]])
def test_help_fits_and_has_an_example(run, verb):
    code, out, _ = run(*verb, "--help")
    assert code == 0
    assert "Example: imprint config" in out
    assert max(len(line) for line in out.splitlines()) <= 80


def test_an_unknown_verb_and_option(run):
    assert run("configg")[0] == 2
    assert run("config", "show", "--nope")[0] == 2


@pytest.mark.parametrize(
    "arguments", [["--help"], ["config", "show", "recipe.yaml"], ["config", "why", "lora.rank", *BASE]]
)
def test_light_verbs_load_nothing_heavy(arguments):
    done = in_subprocess(*arguments)
    assert done.returncode == 0, done.stderr
    assert done.stderr.strip() == "loaded: []"


def test_the_package_is_lazy():
    assert set(imprint.__all__) <= set(dir(imprint))
    for name in imprint.__all__:
        assert getattr(imprint, name) is not None
    with pytest.raises(AttributeError, match="nothing_here"):
        imprint.nothing_here  # noqa: B018


# ---- arguments


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (None, (None, [])),
        (["a=b"], (None, ["a=b"])),
        (["r.yaml", "a=b"], (Path("r.yaml"), ["a=b"])),
        (["a=b", "r.yaml", "c"], (Path("r.yaml"), ["a=b", "c"])),
    ],
)
def test_the_first_argument_without_equals_is_the_recipe(arguments, expected):
    assert split_arguments(arguments) == expected


# ---- config show


def test_show_tells_value_and_origin(run):
    code, out, _ = run("config", "show", "recipe.yaml", "seed=7")
    assert code == 0
    for line in (
        r"seed +7 +argument seed=7",
        r"lora\.rank +8 +recipe\.yaml:5",
        r"batch_size +32 +default",
        r"betas +\[0\.9, 0\.999\] +default",
        r"learning_rate +0\.0014 +auto: width 576",
        r"max_length +2048 +auto: the model's context",
    ):
        assert re.search(line, out), line
    assert max(len(line) for line in out.splitlines()) <= 80


def test_show_as_json(run):
    _, out, _ = run("config", "show", "recipe.yaml", "--json")
    settings = json.loads(out)["settings"]
    assert settings["lora.rank"] == {
        "key": "lora.rank", "value": 8, "layer": "file", "place": "recipe.yaml:5", "reason": "",
    }  # fmt: skip
    assert settings["max_length"]["reason"] == "the model's context"


def test_show_works_before_the_model_is_there(run):
    code, out, _ = run("config", "show", "model=nowhere", "data=a.json")
    assert code == 0
    assert "there is no such model folder" in out
    assert re.search(r"learning_rate +auto +auto: decided when the model is there", out)


def test_show_says_what_cannot_run_here(run, monkeypatch):
    machine = imprint.auto.Machine(cuda=False, mps=False, cpu_bfloat16="", cores=1)
    monkeypatch.setattr("imprint.auto.detect_machine", lambda: machine)
    code, out, _ = run("config", "show", *BASE, "device=cuda")
    assert code == 0
    assert "there is no cuda device" in out


# ---- config why


def test_why_tells_the_chain(run):
    Path("base/imprint.yaml").write_text("lora:\n  rank: 64\n")
    code, out, _ = run("config", "why", "lora.rank", "recipe.yaml", "lora.rank=4")
    assert code == 0
    lines = [" ".join(line.split()) for line in out.splitlines()]
    assert lines == [
        "lora.rank = 4",
        "set by argument 4 argument lora.rank=4",
        "over file 8 recipe.yaml:5",
        "over preset 64 base/imprint.yaml:2",
        "over default 16",
        "type whole number above 0",
        "means Rank of the update of each adapted matrix.",
    ]


def test_why_of_an_auto_gives_the_reason(run):
    _, out, _ = run("config", "why", "learning_rate", *BASE)
    assert "learning_rate = 0.00014" in out
    assert "width 576: 2e-05 x 4096 / 576" in out


def test_why_as_json(run):
    _, out, _ = run("config", "why", "seed", *BASE, "seed=3", "--json")
    assert json.loads(out) == {
        "key": "seed", "value": 3, "layer": "argument", "place": "argument seed=3", "reason": "",
        "chain": [
            {"layer": "argument", "place": "argument seed=3", "value": "3"},
            {"layer": "default", "place": "default", "value": 0},
        ],
        "type": "whole number, 0 or more",
        "description": "Seed of the order of the data, of adapters and of dropout.",
    }  # fmt: skip


def test_why_of_a_group_tells_all_its_keys(run):
    _, out, _ = run("config", "why", "lora", "recipe.yaml")
    assert [line.split()[0] for line in out.splitlines() if " = " in line] == [
        "lora.rank", "lora.alpha", "lora.scaling", "lora.dora", "lora.init", "lora.dropout", "lora.targets",
        "lora.train_tokens",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("key", "part"),
    [
        ("lora.rnk", "write `lora.rank`"),
        ("zzz", "lists all"),
        ("validation.path", "is not set in this recipe"),
    ],
)
def test_why_of_an_unknown_key(run, key, part):
    code, out, err = run("config", "why", key, "recipe.yaml")
    assert (code, out) == (2, "")
    assert part in err


# ---- errors


def test_an_error_is_a_message_and_a_code(run):
    code, out, err = run("config", "show", "recipe.yaml", "lora.rnk=8")
    assert (code, out) == (2, "")
    assert err == "error argument lora.rnk=8: `lora.rnk` is not a setting\n  to fix    write `lora.rank`\n"


def test_the_traceback_is_there_for_who_wants_it(run, monkeypatch):
    monkeypatch.setenv("IMPRINT_DEBUG", "1")
    with pytest.raises(imprint.ImprintError):
        run("config", "show", "recipe.yaml", "lora.rnk=8")


@pytest.mark.parametrize(
    ("error", "code"), [(RunFailed("it broke"), 1), (Interrupted("stopped"), 130), (KeyboardInterrupt(), 130)]
)
def test_exit_codes(run, monkeypatch, error, code):
    def raises(_):
        raise error

    monkeypatch.setattr(cli_config, "resolved", raises)
    ended, _, err = run("config", "show")
    assert ended == code
    assert err == ("interrupted\n" if isinstance(error, KeyboardInterrupt) else f"error {error}\n")


def test_brackets_in_values_are_not_markup(run):
    code, out, _ = run("config", "show", "model=base", "data=[bold]x.json")
    assert code == 2
    code, out, _ = run("config", "show", "model=base", "data='[bold]x.json'")
    assert "[bold]x.json" in out
