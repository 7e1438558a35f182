"""imprint export RUN --to hub: the folder of --to hf, made or found, shown, and sent where that was asked for."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from imprint.errors import RecipeError, RunError, RunFailed
from imprint.export.hub import Upload, check_name, connect, plan_upload, send
from imprint.export.targets import Proof
from imprint.export.verdict import in_words, parity_of
from imprint.export_run import (
    FACTS,
    PARITY,
    Exported,
    Say,
    export,
    find_run,
    identity,
)
from imprint.export_wanted import Wanted, default_folder
from imprint.track.words import size
from imprint.train.checkpoint import is_valid


@dataclass(frozen=True)
class Sent:
    """What was, or would be, sent, and the commit's address; empty where nothing was sent."""

    exported: Exported
    upload: Upload
    address: str

    def lines(self) -> list[str]:
        """What a person sees: each file with its size, and what would happen."""
        upload = self.upload
        width = max(len(name) for name, _ in upload.files)
        lines = [
            f"{name:<{width}}  {size(num):>8}"
            + ("  (replaces the one there)" if name in upload.overwritten else "")
            for name, num in upload.files
        ]
        lines.append(f"{len(upload.files)} files, {size(upload.num_bytes)}")
        if upload.exists:
            lines.append(f"to {upload.name}, which is there and {upload.visible}")
        else:
            lines.append(
                f"to {upload.name}, which {'was' if self.address else 'would be'} made, {upload.visible}"
            )
        lines.append(self.address or "nothing was sent: --yes sends it")
        return lines

    def to_json(self) -> dict[str, Any]:
        upload = self.upload
        return {
            "repository": upload.name,
            "exists": upload.exists,
            "visible": upload.visible,
            "files": dict(upload.files),
            "bytes": upload.num_bytes,
            "sent": self.address,
        }


def to_hub(
    run: Path, name: str, wanted: Wanted, *, public: bool, yes: bool, say: Say, api: Any = None
) -> Sent:
    """Export `run`, unless the very same export is there already, and send it to `name` if `yes`.

    The repository is made private unless `public`. An export whose proof failed is never sent.
    """
    check_name(name)
    api = api if api is not None else connect()
    exported = made_before(run, wanted) or export(run, replace(wanted, to="hf"), say)
    if exported.proof.passed is False:
        raise RunFailed(
            "an export that failed its proof is not sent",
            where=str(exported.folder),
            found=exported.proof.line,
            fix="see its parity.json",
        )
    refuse_local_base(exported)
    upload = plan_upload(exported.folder, name, True if public else None, api)
    return Sent(exported, upload, send(upload, api) if yes else "")


def refuse_local_base(exported: Exported) -> None:
    """RecipeError where an adapter names a folder of this machine as its base: nobody else could load it."""
    path = exported.folder / "adapter_config.json"
    base = json.loads(path.read_text(encoding="utf-8"))["base_model_name_or_path"] if path.is_file() else ""
    if Path(base).is_absolute():
        raise RecipeError(
            "this adapter's base is a folder of this machine",
            where=f"{path}: base_model_name_or_path",
            found=base,
            expected="a model of the hub, which others can load",
            fix="send the merged model: leave --adapter-only away",
        )


def made_before(run: Path, wanted: Wanted) -> Exported | None:
    """The export that stands where this one would go, if it is the same; RunError where it is another one."""
    folder = default_folder(run, replace(wanted, to="hf"))
    if not folder.exists():
        return None
    same = False
    if is_valid(folder) and (folder / FACTS).is_file():
        facts = json.loads((folder / FACTS).read_text(encoding="utf-8"))
        asked = identity(find_run(run, wanted.base, wanted.scale), replace(wanted, to="hf"))
        same = all(facts.get(key) == value for key, value in asked.items())
    if not same:
        raise RunError(
            "another export stands where this one would go",
            where=str(folder),
            found="made of other weights, with other settings, or changed since",
            fix="choose another place: --out FOLDER",
        )
    return Exported(folder, folder, proof_of(folder, str(facts["proof"])), tuple(facts["how"]))


def proof_of(folder: Path, line: str) -> Proof:
    """What the last replay on an export found (`imprint parity` writes it there too); `line` where there was none."""
    path = folder / PARITY
    if not path.is_file():
        return Proof(None, line)
    found = parity_of(json.loads(path.read_text(encoding="utf-8")))
    return Proof(found.equal, in_words(found))
