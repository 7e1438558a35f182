"""`imprint plan`: will it fit, how long will it take, what does it cost, and what may be done with the result.

Nothing is loaded but the config and the tokenizer; the data is prepared as for training, so its numbers are true
ones. Memory is told by copies of the architecture (`train/miniature`), time by the operations that the rows of
some steps need. Both are corrected by the runs that are found beside this one's folder.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from imprint.build import cost_of
from imprint.data.ledger import Ledger
from imprint.errors import ModelError
from imprint.hardware import MACHINES, Hardware
from imprint.licences import Verdict, verdict
from imprint.model.rowmodel import RowModel
from imprint.planning.memory import Teller, config_of, teller
from imprint.planning.options import Option, Range, impossible, option, this_machine
from imprint.planning.past import Correction, correction
from imprint.planning.work import Work, work_of
from imprint.prepare import Prepared, prepare
from imprint.recipe import Recipe
from imprint.train.miniature import on_meta
from imprint.train.rehearsal import CHECKPOINTS

METHODS = ("full", "lora", "qlora")


@dataclass(frozen=True)
class Outlook:
    """All that `imprint plan` says."""

    recipe: Recipe
    parameters: int
    trainable: dict[str, int]
    context: int | None
    work: Work
    here: Option
    options: list[Option]
    disk: Range
    licences: Verdict
    notes: list[str]
    corrected_by: int


def outlook(
    recipe: Recipe,
    folder: Path,
    *,
    machines: Sequence[Hardware] = MACHINES,
    price: float | None = None,
    methods: Sequence[str] = METHODS,
) -> Outlook:
    """The plan of a recipe; UserError for whatever would stop it from being trained."""
    prepared = prepare(recipe, folder, datetime.now().replace(microsecond=0))
    resolved = prepared.recipe
    config = config_of(folder, resolved)
    meta = RowModel(on_meta(config, lambda model: model))
    work = work_of(prepared, cost_of(meta))
    own: str = resolved.method
    found = correction(Path(resolved.output).parent if resolved.output != "auto" else Path("runs"))
    this = this_machine(resolved)
    told = teller(config, prepared)
    here = option(prepared, told, own, this, work, found, price)
    barred = "" if own != "full" else _without_adapters(told)
    options = [
        impossible(method, machine, barred)
        if barred and method != "full"
        else option(prepared, told, method, machine, work, Correction(), price)
        for machine in machines
        for method in methods
    ]
    trainable = {
        method: told(method, "cuda", "bfloat16", False).trained
        for method in ("full", "lora")
        if method == "full" or not barred
    }
    return Outlook(
        recipe=resolved,
        parameters=sum(p.numel() for p in meta.parameters()),
        trainable=trainable,
        context=prepared.facts.context,
        work=work,
        here=here,
        options=options,
        disk=disk_of(trainable["full" if own == "full" else "lora"], own, meta, len(recipe.export)),
        licences=verdict(recipe.model, [*recipe.data, *recipe.replay], recipe.revision),
        notes=[
            *weights_notes(folder),
            *data_notes(prepared.ledger),
            *length_notes(prepared, work),
            *([f"no lora and no qlora: {barred}"] if barred else []),
        ],
        corrected_by=found.runs,
    )


def _without_adapters(told: Teller) -> str:
    """Why no adapter fits this model, which may be trained in full all the same; nothing where one does."""
    try:
        told("lora", "cuda", "bfloat16", False)
    except ModelError as error:
        return error.what
    return ""


def planned(prepared: Prepared) -> dict[str, Any]:
    """What a run says of itself before it begins: peak bytes, by part, and seconds, as a plan without corrections.

    Kept with the run, and compared with what came of it, they correct the next plan. Empty where the
    architecture cannot be foretold.
    """
    recipe = prepared.recipe
    try:
        config = config_of(prepared.folder, recipe)
        meta = RowModel(on_meta(config, lambda model: model))
        work = work_of(prepared, cost_of(meta))
        told = teller(config, prepared)
        made = option(prepared, told, recipe.method, this_machine(recipe), work, Correction())
    except ModelError:
        return {}
    parts = asdict(made.memory)
    low, expected, high = parts.pop("total")
    return {
        "peak_bytes": expected,
        "low_bytes": low,
        "high_bytes": high,
        "seconds": made.seconds.expected,
        "row_tokens": made.row_tokens,
        "parts": parts,
    }


def without_weights(folder: Path, recipe: Recipe) -> Path:
    """The folder of the model's config and tokenizer: a local one, or the hub's without its weights."""
    if folder.is_dir():
        return folder
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    kinds = ["*.json", "*.jinja", "*.model", "*.txt", "README.md", "LICENSE*"]
    try:
        return Path(snapshot_download(recipe.model, revision=recipe.revision, allow_patterns=kinds))
    except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise ModelError(
            "there is no such model folder, and the hub does not give it",
            where=f"model={recipe.model}",
            found=" ".join(str(error).split())[:300],
            expected="a folder with config.json and a tokenizer (weights are not needed), or a hub id owner/name",
            fix="check the path; gated models need `hf auth login`",
        ) from error


def disk_of(trained: int, method: str, meta: RowModel, exports: int) -> Range:
    """Bytes of the run folder: two checkpoints (weights and moments), three, and the most at one time; the model,
    and the exports of the recipe."""
    whole = 4.0 * sum(p.numel() for p in meta.parameters())
    model = 4.0 * trained if method != "full" else whole
    left = model + whole * exports
    return Range(*(12.0 * trained * count + left for count in (2, 3, CHECKPOINTS)))


def weights_notes(folder: Path) -> Iterator[str]:
    """What will be refused of the weights that lie there. A folder without any can be planned with all the same."""
    others = sorted(path.name for path in folder.iterdir() if path.suffix in (".bin", ".pt", ".pth", ".gguf"))
    if others and not list(folder.glob("*.safetensors")):
        yield (
            f"warning: train will refuse this model: its weights ({others[0]}) are no safetensors; "
            "save them anew with transformers' save_pretrained"
        )


def data_notes(ledger: Ledger) -> Iterator[str]:
    """What the data's account warns of, or remarks."""
    for kind, told in (("warning: ", ledger.warnings), ("", ledger.remarks)):
        for text, tally in told.items():
            detail = f"; {ledger.details[text]}" if ledger.details.get(text) else ""
            yield f"{kind}{text} × {tally.count:,} ({tally}){detail}"


def length_notes(prepared: Prepared, work: Work) -> Iterator[str]:
    """How the data's lengths lie to the model's context."""
    context, limit = prepared.facts.context, prepared.recipe.max_length
    assert isinstance(limit, int)
    if work.left_out:
        yield f"{work.left_out:,} replies are left out (imprint show says why, row by row)"
    if context and work.lengths["longest"] * 4 < context:
        yield (
            f"the context of {context:,} tokens is far longer than any turn ({work.lengths['longest']:,}): "
            "what is served in longer ones was not trained"
        )
    if work.lengths["longest"] >= limit:
        yield f"the longest turn fills max_length ({limit:,}): longer ones are left out or cut (too_long)"
    if work.steps < 10:
        yield f"only {work.steps} updates: a smaller batch_size or more epochs would make more of the same data"
