"""A run's records, put together for the model card of an export."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any

import yaml

from imprint import settings
from imprint.data.ledger import Ledger
from imprint.data.sets import SETS
from imprint.evaluate.marks import read_marks
from imprint.evaluate.report import read_ledger
from imprint.evaluate.story import Story
from imprint.export.card import UNKNOWN, Card, Licence, licence_of, not_in_vllm, read_tags
from imprint.export.standard import Trained
from imprint.model.quantize import read_quantized
from imprint.model_facts import may_be_hub_id
from imprint.recipe import DataSource, Recipe
from imprint.render.resolve import load_tokenizer
from imprint.track import events

_OF_THE_MACHINE = ("output", "threads", "device")  # settings that say nothing of the model


def card_of(
    run: Path,
    trained: Trained,
    how: Sequence[str],
    proof: str,
    hashes: Sequence[tuple[str, str]],
    title: str,
    adapter: bool = False,
) -> Card:
    """The card of what a run trained; `how` says how the weights were made, `hashes` are of its files.

    `adapter`: the adapter alone is handed over.
    """
    recipe = settings.load(run / "recipe.yaml")
    facts = json.loads((run / "run.json").read_text(encoding="utf-8"))
    ledger = read_ledger(run / "ledger.json")
    story = Story(recipe, ledger, events.read(run / "events.jsonl"))
    base_id = recipe.model if may_be_hub_id(recipe.model) else ""
    config = (
        json.loads((trained.model / "adapter_config.json").read_text(encoding="utf-8")) if adapter else {}
    )
    tokenizer = load_tokenizer(str(trained.model), None, trained.trust_remote_code)
    sources = [*recipe.data, *recipe.replay]
    fingerprints = [(f"fingerprint of the {what}", value) for what, value in facts["fingerprints"].items()]
    return Card(
        title=title,
        base=licence_of(f"the base, {base_id or named(recipe.model)}", trained.base),
        base_id=base_id,
        base_tags=read_tags(trained.base),
        data=[data_licence(source) for source in sources],
        data_ids=list(dict.fromkeys(filter(None, map(hub_id, sources)))),
        method=story.method(),
        outcome=[text for text in (story.outcome(), story.forgetting()) if text],
        figures=list(figures(run, story)),
        ledger=list(levels(ledger)) if ledger else [],
        how=how,
        proof=proof,
        stops=[tokenizer.decode([i]) for i in trained.stop_ids],
        template=facts["template"],
        recipe=brief(recipe),
        hashes=[*hashes, *fingerprints],
        versions={"imprint": facts["imprint"], **facts["versions"]},
        adapter=adapter,
        quantized=str(read_quantized(trained.model) or "") if adapter else "",
        rank=rank_of(config),
        no_vllm=not_in_vllm(config),
        base_path=named(recipe.model),
    )


def rank_of(config: Mapping[str, Any]) -> int:
    """The largest rank of an adapter, by its adapter_config.json; 0 where there is none."""
    return max(int(config.get("r", 0)), *map(int, (config.get("rank_pattern") or {}).values()), 0)


def figures(run: Path, story: Story) -> Iterator[tuple[str, str, str]]:
    """What was measured before and after: validation, general text, an exam where there was one."""
    for figure in story.figures():
        if figure.before:
            yield (
                f"{figure.label} ({figure.note})" if figure.note else figure.label,
                figure.before,
                figure.value,
            )
    for one in read_marks(run):
        before, after = (f"{marks.right} of {marks.asked}" for marks in (one.before, one.after))
        yield f"right answers, {one.after.name}", before, after


def levels(ledger: Ledger) -> Iterator[tuple[str, int, str]]:
    """The ledger in a line a level: how many, and what became of them."""
    for name in ("records", "conversations", "turns"):
        level = getattr(ledger, name)
        kept = [f"{n:,} {kind}" for kind, n in level.kept.items()]
        left = [f"{tally.count:,} left out: {reason}" for reason, tally in level.left.items()]
        yield name, level.total, "; ".join([*kept, *left])


def hub_id(source: DataSource) -> str:
    known = _known(source)
    if known is not None:
        return str(known.hub)
    local = Path(source.path).expanduser()
    return source.path if may_be_hub_id(source.path) and not local.exists() else ""


def _known(source: DataSource) -> Any:
    return next((one for one in SETS if source.path.lower() in (one.name, one.hub.lower())), None)


def data_licence(source: DataSource) -> Licence:
    """What is known of a source's terms: of the sets that imprint lists, and of folders that bring a card."""
    known = _known(source)
    if known is not None:
        return Licence(known.hub, known.licence, known.catch, f"https://hf.co/datasets/{known.hub}")
    hub = hub_id(source)
    if hub:
        return Licence(hub, "see its page", "", f"https://hf.co/datasets/{hub}")
    path = Path(source.path).expanduser()
    if path.is_dir():
        return licence_of(path.name, path)
    return Licence(named(source.path), UNKNOWN, "a file of whoever trained this: ask them")


def named(path: str) -> str:
    """A local path without the folders that lead to it, which are nobody's business; a hub id as it is."""
    if may_be_hub_id(path) and not Path(path).is_absolute():
        return path
    return PurePath(path.rstrip("/")).name or path


def brief(recipe: Recipe) -> str:
    """The settings that are other than the defaults, as YAML, local paths shortened to their last part."""
    given = recipe.model_dump(mode="json", exclude_defaults=True, exclude=set(_OF_THE_MACHINE))
    given["model"] = named(recipe.model)
    for key in ("data", "replay"):
        if key in given:
            given[key] = [source | {"path": named(source["path"])} for source in given[key]]
    validation: Any = given.get("validation")
    if isinstance(validation, Mapping):
        given["validation"] = dict(validation) | {"path": named(str(validation["path"]))}
    if "template" in given and Path(given["template"]).is_absolute():
        given["template"] = named(given["template"])
    return yaml.safe_dump(given, sort_keys=False, allow_unicode=True)
