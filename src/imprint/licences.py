"""What a tuned model may be used for: the licences of its base, of that one's base, and of its data, as one verdict.

Read from what lies here: model cards (README.md with a YAML head) of folders and of the hub's local cache, and the
table of open sets. Cards are what their authors say of themselves. A help to choose, no legal advice.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import yaml

from imprint.data.sets import OPENAI, SETS
from imprint.model_facts import may_be_hub_id
from imprint.recipe import DataSource

Commercial = Literal["yes", "with conditions", "no", "unknown"]
RANK: tuple[Commercial, ...] = (
    "yes",
    "with conditions",
    "unknown",
    "no",
)  # the worst of all parts is the verdict's
DEEPEST = 8  # models in a chain of bases


class Terms(NamedTuple):
    """What a licence says: whether one may sell what is made with it, and what must be done for it."""

    name: str
    commercial: Commercial
    duties: tuple[str, ...] = ()


_ATTRIBUTE = "keep its notice, and name its authors"
_SHARE = "what is adapted from it is shared under the same licence"
_META = (
    "a licence of Meta's own is asked for above 700 million monthly users",
    "pass on the licence and its notice",
    "'Built with Llama' is shown, and the model's name begins with Llama",
    "Meta's acceptable use policy holds",
)
TERMS = {
    "apache-2.0": Terms("Apache-2.0", "yes", (_ATTRIBUTE,)),
    "mit": Terms("MIT", "yes", (_ATTRIBUTE,)),
    "bsd-3-clause": Terms("BSD 3-Clause", "yes", (_ATTRIBUTE,)),
    "bsd-2-clause": Terms("BSD 2-Clause", "yes", (_ATTRIBUTE,)),
    "isc": Terms("ISC", "yes", (_ATTRIBUTE,)),
    "cc0-1.0": Terms("CC0", "yes"),
    "unlicense": Terms("Unlicense", "yes"),
    "odc-by": Terms("ODC-BY", "yes", (_ATTRIBUTE,)),
    "cc-by-4.0": Terms("CC BY 4.0", "yes", (_ATTRIBUTE,)),
    "cc-by-3.0": Terms("CC BY 3.0", "yes", (_ATTRIBUTE,)),
    "cc-by-sa-4.0": Terms("CC BY-SA 4.0", "yes", (_ATTRIBUTE, _SHARE)),
    "cc-by-sa-3.0": Terms("CC BY-SA 3.0", "yes", (_ATTRIBUTE, _SHARE)),
    "cc-by-nc-4.0": Terms("CC BY-NC 4.0", "no", (_ATTRIBUTE,)),
    "cc-by-nc-sa-4.0": Terms("CC BY-NC-SA 4.0", "no", (_ATTRIBUTE, _SHARE)),
    "cc-by-nc-nd-4.0": Terms("CC BY-NC-ND 4.0", "no", ("nothing adapted from it may be passed on",)),
    "llama2": Terms("Llama 2 Community", "with conditions", (_META[0], _META[1], _META[3])),
    "llama3": Terms("Llama 3 Community", "with conditions", _META),
    "llama3.1": Terms("Llama 3.1 Community", "with conditions", _META),
    "llama3.2": Terms("Llama 3.2 Community", "with conditions", _META),
    "llama3.3": Terms("Llama 3.3 Community", "with conditions", _META),
    "llama4": Terms("Llama 4 Community", "with conditions", _META),
    "gemma": Terms("Gemma Terms of Use", "with conditions", ("pass on the terms and the use policy with the model",)),
    "openrail": Terms("OpenRAIL", "with conditions", ("its use restrictions are passed on",)),
    "bigscience-openrail-m": Terms("OpenRAIL-M", "with conditions", ("its use restrictions are passed on",)),
    "bigcode-openrail-m": Terms("OpenRAIL-M", "with conditions", ("its use restrictions are passed on",)),
    "gpl-3.0": Terms("GPL-3.0", "with conditions", (_ATTRIBUTE, _SHARE)),
    "agpl-3.0": Terms("AGPL-3.0", "with conditions", (_ATTRIBUTE, _SHARE, "also where it is only served")),
    "academic research only": Terms("academic research only", "no"),
    "qwen-research": Terms("Qwen Research", "no"),
    "mrl": Terms("Mistral Research", "no"),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Part:
    """One thing that the tuned model is made of: what its licence is, by what source, and what follows."""

    what: str  # "base model", "its base", "data"
    name: str
    licence: str
    commercial: Commercial
    duties: tuple[str, ...]
    source: str


@dataclass(frozen=True, slots=True)
class Verdict:
    """The parts, and what holds for all of them together."""

    parts: tuple[Part, ...]

    @property
    def commercial(self) -> Commercial:
        return max((part.commercial for part in self.parts), key=RANK.index, default="unknown")

    @property
    def duties(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(duty for part in self.parts for duty in part.duties))

    def sentence(self) -> str:
        """The verdict in one line, with the parts that decide it."""
        deciding = [part.name for part in self.parts if part.commercial == self.commercial]
        names = ", ".join(deciding[:4]) + (" …" if len(deciding) > 4 else "")
        return {
            "yes": "commercial use is allowed by every part",
            "with conditions": f"commercial use is allowed on conditions: {names}",
            "no": f"no commercial use: {names}",
            "unknown": f"nobody here can say: no licence is known of {names}",
        }[self.commercial]


def verdict(model: str, sources: Sequence[DataSource], revision: str | None = None) -> Verdict:
    """What may be done with a model tuned from `model` on `sources`; nothing is asked of a network."""
    return Verdict((*_models(model, revision), *(_data(source) for source in sources)))


def terms_of(licence: str) -> Terms | None:
    """The terms of a licence by its name, as cards and the table of sets write it."""
    key = re.sub(r"[\s_]+", "-", licence.strip().lower())
    return TERMS.get(key) or TERMS.get(licence.strip().lower())


def _models(model: str, revision: str | None) -> Iterator[Part]:
    """The base model and the chain of those that it was made from, as far as it can be followed here."""
    seen: set[str] = set()
    waiting: list[tuple[str, str | None]] = [(model, revision)]
    while waiting and len(seen) < DEEPEST:
        name, commit = waiting.pop(0)
        what = "its base" if seen else "base model"
        if name in seen:
            continue
        seen.add(name)
        file = _card_file(name, commit)
        if file is None:
            found = _licence_text(Path(name)) if Path(name).is_dir() else None
            licence, source = found or ("unknown", "no model card here")
            yield _part(what, name, licence, source)
            continue
        head = card_head(file)
        licence = _named_licence(head)
        source = f"{file.parent.name}/README.md" if Path(name).is_dir() else f"the model card of {name}"
        if not licence and Path(name).is_dir() and (found := _licence_text(Path(name))):
            licence, source = found
        yield _part(what, name, licence or "unknown", source)
        bases = head.get("base_model") or []
        for base in [bases] if isinstance(bases, str) else bases if isinstance(bases, list) else []:
            if isinstance(base, str):
                waiting.append((base, None))


def _part(what: str, name: str, licence: str, source: str, *duties: str) -> Part:
    terms = terms_of(licence)
    commercial: Commercial = terms.commercial if terms else "unknown"
    shown = terms.name if terms else licence
    return Part(
        what, Path(name).name or name, shown, commercial, (*(terms.duties if terms else ()), *duties), source
    )


def _data(source: DataSource) -> Part:
    path = Path(source.path).expanduser()
    known = next((one for one in SETS if source.path.lower() in (one.name, one.hub.lower())), None)
    if known is not None:
        part = _part(
            "data", known.hub, known.licence, "imprint data sets", *([known.catch] if known.catch else [])
        )
        if OPENAI in known.catch and part.commercial == "yes":
            return Part(part.what, part.name, part.licence, "with conditions", part.duties, part.source)
        return part
    folder = path if path.is_dir() else path.parent
    card = folder / "README.md"
    if path.exists() and card.is_file() and (licence := _named_licence(card_head(card))):
        return _part("data", source.path, licence, f"{folder.name or '.'}/README.md")
    if path.exists() and path.is_dir() and (found := _licence_text(path)):
        return _part("data", source.path, *found)
    why = "your own file: you know where its rows come from" if path.exists() else "not in the table of sets"
    return _part("data", source.path, "unknown", why)


def _card_file(name: str, revision: str | None) -> Path | None:
    """A model's README.md: in its folder, or in the hub's cache here."""
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder / "README.md" if (folder / "README.md").is_file() else None
    if not may_be_hub_id(name):
        return None
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(name, "README.md", revision=revision)
    return Path(found) if isinstance(found, str) else None


def card_head(file: Path) -> dict[str, Any]:
    """The YAML head of a card; empty where there is none, or none that can be read."""
    text = file.read_text(encoding="utf-8", errors="replace")
    found = re.match(r"\ufeff?---\s*\n(.*?)\n---\s*(\n|$)", text, re.DOTALL)
    if not found:
        return {}
    try:
        head = yaml.safe_load(found[1])
    except yaml.YAMLError:
        return {}
    return head if isinstance(head, dict) else {}


def _named_licence(head: dict[str, Any]) -> str:
    """The licence that a card names; `other` stands for the name beside it."""
    licence = head.get("license")
    if isinstance(licence, list):
        licence = licence[0] if len(licence) == 1 else ", ".join(map(str, licence))
    name = head.get("license_name")
    if str(licence).lower() in ("other", "none") and isinstance(name, str):
        licence = name
    return str(licence) if licence else ""


# the beginnings of licences, as their texts have them
_TEXTS = (
    (r"Apache License\s+Version 2\.0", "apache-2.0"),
    (r"MIT License|Permission is hereby granted, free of charge", "mit"),
    (r"LLAMA 2 COMMUNITY LICENSE", "llama2"),
    (r"META LLAMA 3 COMMUNITY LICENSE", "llama3"),
    (r"LLAMA (3\.[123]|4) COMMUNITY LICENSE", "llama{}"),
    (r"Gemma Terms of Use", "gemma"),
    (r"Creative Commons Attribution-NonCommercial", "cc-by-nc-4.0"),
    (r"Creative Commons Attribution-ShareAlike", "cc-by-sa-4.0"),
    (r"Creative Commons Attribution", "cc-by-4.0"),
)


def _licence_text(folder: Path) -> tuple[str, str] | None:
    """(licence, source) by the text of a folder's LICENSE; its hash is named, for texts change."""
    for name in ("LICENSE", "LICENSE.txt", "LICENSE.md", "LICENCE"):
        file = folder / name
        if not file.is_file():
            continue
        data = file.read_bytes()
        text = data.decode("utf-8", "replace")[:4000]
        source = f"{name}, SHA-256 {hashlib.sha256(data).hexdigest()[:12]}…"
        for pattern, licence in _TEXTS:
            if found := re.search(pattern, text, re.IGNORECASE):
                return licence.format(*found.groups()), source
        return "its own text", source
    return None


def to_json(found: Verdict) -> dict[str, Any]:
    parts = [
        {**{key: getattr(part, key) for key in ("what", "name", "licence", "commercial", "source")},
         "duties": list(part.duties)}
        for part in found.parts
    ]  # fmt: skip
    made = {
        "commercial": found.commercial,
        "verdict": found.sentence(),
        "duties": list(found.duties),
        "parts": parts,
    }
    return json.loads(json.dumps(made))  # type: ignore[no-any-return]
