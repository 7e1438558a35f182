"""Makes helpers of tests/ and of this folder importable, wherever the run begins."""

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.append(str(Path(__file__).parent))


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """A folder with the embedded base, rows, a template, and the run `lora` that trained it a little."""
    from golden_runs import TEMPLATE, a_little, golden_rows

    from conftest import write_rows
    from imprint.demo.base import copy_base

    folder = tmp_path_factory.mktemp("golden")
    base = copy_base(folder / "base")
    config = json.loads((base / "tokenizer_config.json").read_text())
    (base / "tokenizer_config.json").write_text(json.dumps(config | {"bos_token": "<|endoftext|>"}))
    (folder / "chat.jinja").write_text(TEMPLATE)
    write_rows(folder / "rows.jsonl", golden_rows())
    a_little(folder, "method=lora", f"output={folder / 'lora'}")
    return folder


@pytest.fixture(scope="session")
def full(trained):
    """The same, trained in full."""
    from golden_runs import a_little

    return a_little(trained, "method=full", f"output={trained / 'full'}")
