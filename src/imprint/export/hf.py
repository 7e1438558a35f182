"""--to hf: the merged folder itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from imprint.export.targets import Made, Proof, Target


def make(merged: Path, out: Path, options: Mapping[str, str]) -> Made:
    """`merged` was written into `out` already: this target asks for nothing more."""
    assert merged == out
    assert not options
    return Made(out)


def prove(golden: Path, made: Made) -> Proof:
    """The folder, loaded by plain transformers in a process of its own, beside the golden file."""
    from imprint.export.folder import replay_folder
    from imprint.export.verdict import proof_of

    found = replay_folder(golden, made.path, trust_remote_code=made.trust_remote_code)
    return proof_of(replace(found, target="the exported folder"))


TARGET = Target("hf", make, prove)
