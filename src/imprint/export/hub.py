"""--to hub: an exported folder sent to a repository of the Hugging Face hub. Private, and asked for twice.

The token comes from the environment variable HF_TOKEN alone. It is handed to huggingface_hub, and is never written,
printed, or looked for elsewhere.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from imprint.errors import ModelError, UserError
from imprint.export.targets import Made, Target
from imprint.model_facts import HUB_ID
from imprint.redact import FORMS, secrets_of

TOKEN = "HF_TOKEN"
_SECRETS = {kind: re.compile(form.encode()) for kind, form in FORMS.items()}
_WEIGHTS = (".safetensors", ".gguf")


@dataclass(frozen=True)
class Upload:
    """What would be sent: to where, how visible, and each file with its bytes.

    `exists`: the repository is there already; `visible`: "private" or "public", as it is or would be made.
    """

    name: str
    folder: Path
    files: tuple[tuple[str, int], ...]
    exists: bool
    visible: str
    overwritten: tuple[str, ...]  # files that are there already

    @property
    def num_bytes(self) -> int:
        return sum(size for _, size in self.files)


def check_name(name: str) -> str:
    """A repository's name; UserError where it is none."""
    if not HUB_ID.fullmatch(name):
        raise UserError(
            "this is not the name of a repository",
            where="--to hub",
            found=name or "none",
            expected="OWNER/NAME",
            fix="imprint export RUN --to hub OWNER/NAME",
        )
    return name


def connect(environment: Mapping[str, str] = os.environ) -> Any:
    """The hub's API with the user's token; UserError where there is no token, or the hub is switched off."""
    if not environment.get(TOKEN):
        raise UserError(
            "there is no token for the hub",
            where=TOKEN,
            found="not set in the environment",
            expected="a token that may write, from https://huggingface.co/settings/tokens",
            fix=f"export {TOKEN}=… (imprint reads it there, and writes it nowhere)",
        )
    from huggingface_hub import HfApi, constants

    if constants.HF_HUB_OFFLINE:
        raise UserError(
            "the hub is switched off",
            where="HF_HUB_OFFLINE",
            found="set in the environment",
            fix="unset it where there is a network; the export itself needs none",
        )
    return HfApi(token=environment[TOKEN])


def plan_upload(folder: Path, name: str, public: bool | None, api: Any) -> Upload:
    """Ask the hub what is there, and send nothing. UserError where a file holds a secret."""
    refuse_secrets(folder)
    files = tuple(
        (path.relative_to(folder).as_posix(), path.stat().st_size)
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    )
    found = asked(lambda: _info(api, name), name)
    if found is None:
        return Upload(name, folder, files, False, "public" if public else "private", ())
    visible = "private" if found.private else "public"
    if public is not None and public != (visible == "public"):
        raise UserError(
            "the repository is there already, and of the other kind",
            where=name,
            found=visible,
            expected="public" if public else "private",
            fix="change it on its settings page, or leave --public away" if public else "choose another name",
        )
    there = {one.rfilename for one in found.siblings or ()}
    return Upload(name, folder, files, True, visible, tuple(name for name, _ in files if name in there))


def send(upload: Upload, api: Any) -> str:
    """Make the repository where it is not there yet, and send every file in one commit; its address."""
    if not upload.exists:
        asked(
            lambda: api.create_repo(upload.name, private=upload.visible == "private", repo_type="model"),
            upload.name,
        )
    commit = asked(
        lambda: api.upload_folder(
            repo_id=upload.name,
            folder_path=upload.folder,
            allow_patterns=[re.sub(r"([\[\]*?])", r"[\1]", name) for name, _ in upload.files],
            commit_message="Exported by imprint",
        ),
        upload.name,
    )
    return str(commit.commit_url)


def _info(api: Any, name: str) -> Any:
    from huggingface_hub.errors import RepositoryNotFoundError

    try:
        return api.model_info(name)
    except RepositoryNotFoundError:
        return None


def asked(ask: Any, name: str) -> Any:
    """What the hub answers; its refusals and a missing network as errors that tell no token."""
    # the error of the HTTP library that it uses, whichever that is
    from huggingface_hub.errors import (  # type: ignore[attr-defined]
        HfHubHTTPError,
        HFValidationError,
        HTTPError,
        OfflineModeIsEnabled,
    )

    try:
        return ask()
    except HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else 0
        fix = {
            401: f"make a new token, and set {TOKEN} to it",
            403: "use a token that may write there, and a name whose owner you are",
        }.get(status, "try again later; what was exported stays where it is")
        raise UserError(
            "the hub refuses", where=name, found=without_token(f"{status}: {error}"), fix=fix
        ) from None
    except (HTTPError, OfflineModeIsEnabled, OSError, HFValidationError) as error:
        raise UserError(
            "the hub cannot be reached",
            where=name,
            found=without_token(f"{type(error).__name__}: {error}"),
            fix="try again where there is a network; what was exported stays where it is",
        ) from None


def without_token(text: str) -> str:
    """A text in one line, without the token."""
    token = os.environ.get(TOKEN)
    text = " ".join(text.split())[:300]
    return text.replace(token, "…") if token else text


def refuse_secrets(folder: Path) -> None:
    """UserError where a file that would be sent holds a secret; it is not repeated."""
    found = list(find_secrets(folder, os.environ))
    if found:
        raise UserError(
            "a file that would be sent holds a secret",
            where=str(folder),
            found="; ".join(f"{name}: {what}" for name, what in found[:5]),
            fix="take it out (of the template, of the recipe), change it where it is valid, and export anew",
        )


def find_secrets(folder: Path, environment: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """(file, kind of secret) of what looks like one, or is one of the environment's."""
    own = {key: value.encode() for key, value in secrets_of(environment).items()}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink():
            raise ModelError("an exported folder holds a link", where=str(path), fix="export anew")
        if not path.is_file() or path.suffix in _WEIGHTS:
            continue
        text = path.read_bytes()
        yield from ((name, kind) for kind, form in _SECRETS.items() if form.search(text))
        yield from ((name, f"the value of {key}") for key, value in own.items() if value in text)


def make(merged: Path, out: Path, options: Mapping[str, str]) -> Made:
    """`merged` is what is sent: this target makes nothing of its own (see `imprint.export_hub`)."""
    assert merged == out
    assert not options
    return Made(out)


TARGET = Target("hub", make)
