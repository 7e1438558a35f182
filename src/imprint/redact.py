"""Secrets: what looks like one, and how it is kept out of everything that a run writes or sends.

Three signs: the forms that makers of keys document, the values of environment variables with telling
names, and texts under a key that is named like one (`api_key: …`). A path that exists is never taken for one.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

HIDDEN = "[redacted]"
SHORTEST = 12  # characters of an environment's secret that is looked for: shorter ones are found by chance
# forms of secrets that their makers document
FORMS = {
    "a Hugging Face token": r"\bhf_[A-Za-z0-9]{30,}",
    "an OpenAI key": r"\bsk-(?:proj-|ant-)?(?=[A-Za-z_-]*[0-9])[A-Za-z0-9_-]{32,}",
    "a GitHub token": r"\b(?:gh[pousr]_[A-Za-z0-9]{36,}|github_pat_[A-Za-z0-9_]{50,})",
    "an AWS key": r"\b(?:AKIA|ASIA)[A-Z0-9]{16}\b",
    "a private key": r"-----BEGIN (?:[A-Z]+ )?PRIVATE KEY-----",
    "a Weights & Biases key": r"(?i:wandb)[\w ]{0,20}(?i:key)\W{1,5}[0-9a-f]{40}",
    "a password in an address": r"(?<=://)[^\s/:@]+:[^\s/:@]{4,}(?=@)",
}
_VARIABLE = re.compile(r"TOKEN|SECRET|PASSWORD|PASSWD|API_?KEY|ACCESS_KEY|CREDENTIAL|_KEY$", re.IGNORECASE)
_PLACE = re.compile(r"(?:FILE|PATH|DIR|FOLDER|HOME|SOCK|SOCKET)$", re.IGNORECASE)
_KEY = re.compile(
    r"(?:^|[_-])(?:token|secret|password|passwd|credentials?)$|(?:api|access|private|secret|auth)[_-]?key$",
    re.IGNORECASE,
)

Redact = Callable[[Any], Any]


def secrets_of(environment: Mapping[str, str]) -> dict[str, str]:
    """The values of the environment that are secrets, by the names of their variables."""
    return {
        name: value
        for name, value in environment.items()
        if _VARIABLE.search(name) and len(value) >= SHORTEST and not _is_place(name, value)
    }


def _is_place(name: str, value: str) -> bool:
    """Whether this variable says where something lies; a secret in base64 may begin with "/" too."""
    try:
        return bool(_PLACE.search(name)) or Path(value).expanduser().exists()
    except (OSError, ValueError, RuntimeError):  # too long for a path, with a zero byte, or of no user
        return False


def redactor(environment: Mapping[str, str] = os.environ) -> Redact:
    """What takes secrets out of a text, or of all the texts in nested mappings and lists, keys included."""
    values = sorted(secrets_of(environment).values(), key=len, reverse=True)
    forms = re.compile("|".join([*map(re.escape, values), *FORMS.values()]))

    def redact(value: Any, key: str = "") -> Any:
        if isinstance(value, str):
            return HIDDEN if value and named_like_one(key) else forms.sub(HIDDEN, value)
        if isinstance(value, dict):
            return {redact(name): redact(item, str(name)) for name, item in value.items()}
        if isinstance(value, (list, tuple)):
            return type(value)(redact(item, key) for item in value)
        return value

    return redact


def named_like_one(key: str) -> bool:
    """Whether a text under this key is a secret whatever it looks like: `api_key`, `hub_token`."""
    return bool(_KEY.search(key))
