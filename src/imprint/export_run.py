"""From a run folder to what is handed over: found, merged, proven, and only then given its name."""

from __future__ import annotations

import hashlib
import json
import shlex
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from imprint import __version__, settings
from imprint.disk import file_hash, is_valid, seal
from imprint.errors import ModelError, RunError
from imprint.evaluate.report import write_report
from imprint.export.adapter import copy_adapter
from imprint.export.base import open_base
from imprint.export.card import front_matter, not_in_vllm, read_tags, serve_line, write_card
from imprint.export.golden import NAME as GOLDEN
from imprint.export.golden import read_golden
from imprint.export.merge import Plan
from imprint.export.standard import Trained, write_json, write_standard
from imprint.export.targets import Made, Proof, Target, check_options, find_target
from imprint.export_card import card_of, named, rank_of
from imprint.export_wanted import (
    DTYPES,
    Wanted,
    failed_name,
    free_folder,
    partial_folder,
    refuse_meaningless,
    remove_leftovers,
)
from imprint.folder import read_facts
from imprint.model.fingerprint import model_fingerprint
from imprint.model.load import find_model
from imprint.model.quantize import bitsandbytes, read_quantized
from imprint.model_facts import may_be_hub_id
from imprint.render.resolve import load_tokenizer

PARITY = "parity.json"
FACTS = "export.json"  # of an export: what it was made from, and how
LEAST = 0.5  # of the update must be left where nobody asked for so narrow a type
GOOD = 0.95
Say = Callable[[str], None]


@dataclass(frozen=True)
class Exported:
    """What stands where, what its proof says, what else there is to know, and what to type to serve it."""

    folder: Path
    main: Path
    proof: Proof
    notes: tuple[str, ...]
    serve: str = ""


def export(run: Path, wanted: Wanted, say: Say = lambda _: None) -> Exported:
    """Hand a finished run over; UserError before anything is written, and nothing is written over.

    What is made gets its name when it is whole and proven. Where its proof fails, it is kept as NAME.failed.
    """
    target = find_target(wanted.to)
    check_options(target, wanted.options)
    target.check(wanted.options)
    trained = find_run(run, wanted.base, wanted.scale)
    refuse_meaningless(run, trained, wanted)
    if (run / GOLDEN).is_file():
        read_golden(run)  # one that cannot be read is told before anything is made
    out = free_folder(run, wanted)
    partial = partial_folder(out)
    try:
        for path in remove_leftovers(out):
            say(f"removed {path}, which an export that was killed has left")
        partial.mkdir(parents=True)
        made, how = make(target, trained, partial, with_date(target, run, wanted), say)
        say("proving that it says what the trained model said")
        proof = prove(run, target, trained, made, wanted)
        finish(run, trained, partial, wanted, how, proof, out.name)
        done = out if proof.passed is not False else failed_name(out)
        seal(partial, done)
    except OSError as error:
        raise RunError(
            "the export cannot be written",
            where=str(out),
            found=str(error),
            fix="free some space, or choose another place: --out FOLDER",
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    if (run / "report.html").is_file():
        write_report(run)  # it lists what was proven of each export
    line = serving(done, wanted) if target.name == "hf" else ""
    return Exported(done, done / made.path.relative_to(partial), proof, (*how, *made.notes), line)


def with_date(target: Target, run: Path, wanted: Wanted) -> Wanted:
    """Where a target fixes the date that a template shows, the run's: it was trained, and is replayed, with that."""
    if "now" not in target.options:
        return wanted
    return replace(wanted, options={"now": read_facts(run)["created"], **wanted.options})


def make(
    target: Target, trained: Trained, out: Path, wanted: Wanted, say: Say
) -> tuple[Made, tuple[str, ...]]:
    """What the target makes of the merged folder in `out`, and how the weights of that came about, in words."""
    if wanted.adapter_only:
        say(f"copying the adapter {trained.model}")
        copy_adapter(trained.model, out, open_base(trained.base, trained.trust_remote_code).model)
        if wanted.base is not None:  # it was moved since: the adapter names the place where it is now
            change_json(out / "adapter_config.json", base_model_name_or_path=str(trained.base.resolve()))
        return Made(out), ("the adapter alone, as it was trained",)
    merged = out if target.name == "hf" else out.with_name(f"{out.name}.merged")
    try:
        merged.mkdir(exist_ok=True)
        say(
            f"merging {trained.model} into {trained.base}"
            if trained.is_adapter
            else f"copying {trained.model}"
        )
        plan = write_standard(
            trained,
            merged,
            dtype=kept_type(target, trained, wanted),
            scale=wanted.scale,
            look=lambda folder: target.foresee(folder, wanted.options),
        )
        how = told(plan, trained, wanted)
        if merged != out and (tags := read_tags(trained.base)):  # of which formats take the licence
            (merged / "README.md").write_text(front_matter(tags), encoding="utf-8")
        made = target.make(merged, out, wanted.options)
    finally:
        if merged != out:
            shutil.rmtree(merged, ignore_errors=True)
    return made, how


def kept_type(target: Target, trained: Trained, wanted: Wanted) -> torch.dtype | None:
    """The type of the merged weights: other formats round by themselves, so they are given all digits."""
    if wanted.dtype:
        return DTYPES[wanted.dtype]
    return torch.float32 if target.name != "hf" and (trained.is_adapter or wanted.scale != 1) else None


def told(plan: Plan, trained: Trained, wanted: Wanted) -> tuple[str, ...]:
    """How the weights were made; RunError where rounding left too little of the update and nobody asked for it."""
    name = str(plan.dtype).removeprefix("torch.")
    lines = []
    if trained.is_adapter:
        lines.append(f"the adapter was merged into the base in float32 and saved in {name}")
    else:
        lines.append(f"every weight, saved in {name}")
        if not trained.base.exists():
            lines.append("the base model is gone: its licence and notices could not be taken over")
    if trained.is_adapter and (quantized := read_quantized(trained.model)):
        lines.append(
            f"it was trained on a base in {quantized}: {len(quantized.layers)} matrices are what these four bits held"
        )
        if (now := str(bitsandbytes().__version__)) != quantized.version:
            lines.append(f"WARNING: they were quantised anew by bitsandbytes {now}")
    if wanted.scale != 1:
        lines.append(
            f"scale {wanted.scale:g}: base + {wanted.scale:g} · (tuned - base), not the model that was trained"
        )
    if plan.untied:
        lines.append(
            "the head is a tensor of its own: training changed it apart from the embedding it was tied to"
        )
    rounding = plan.rounding
    if rounding.update:
        share = f"{rounding.kept:.1%} of the update is left in {name}, with {rounding.noise:.1%} of noise"
        if rounding.kept < LEAST and not wanted.dtype:
            raise RunError(
                "most of what was trained would be lost to rounding",
                where=f"the base model's type, {name}",
                found=share,
                expected=f"at least {LEAST:.0%}",
                fix=f"--dtype float32, or --adapter-only; --dtype {name} has it all the same",
            )
        lines.append(
            share if rounding.kept >= GOOD else f"WARNING: only {share}: --dtype float32 keeps it all"
        )
    return tuple(lines)


def prove(run: Path, target: Target, trained: Trained, made: Made, wanted: Wanted) -> Proof:
    """The run's golden file replayed against what was made; why not, where that cannot be."""
    golden = run / GOLDEN
    if not golden.is_file():
        return Proof(
            None, f"not proven: the run has no {GOLDEN} (golden=0, or a run of before there was one)"
        )
    if wanted.adapter_only and read_quantized(trained.model):
        return Proof(None, "not proven: its base must be loaded in four bits, as quantized_base.json says")
    if wanted.scale != 1:
        return Proof(None, f"not proven: at scale {wanted.scale:g} it is not the model that was trained")
    if target.prove is None:
        return Proof(None, f"not proven: --to {target.name} has no replay")
    return target.prove(golden, replace(made, trust_remote_code=trained.trust_remote_code))


def finish(
    run: Path, trained: Trained, out: Path, wanted: Wanted, how: tuple[str, ...], proof: Proof, title: str
) -> None:
    """What is written about an export into it: its facts, its proof, and its card."""
    if proof.passed is not None:
        write_json(out / PARITY, dict(proof.facts))
    write_json(out / FACTS, identity(trained, wanted) | {"how": how, "proof": proof.line})
    if wanted.to != "hf":
        return
    recipe = settings.load(run / "recipe.yaml")
    if wanted.adapter_only and may_be_hub_id(recipe.model):  # so that it is found on other machines
        named_there = {"base_model_name_or_path": recipe.model, "revision": recipe.revision}
        change_json(out / "adapter_config.json", **named_there)
    hashes = [(file.name, file_hash(file)) for file in sorted(out.glob("*.safetensors"))]
    name = f"{named(recipe.model)}, fine-tuned" if title in ("hf", "adapter") else title
    card = card_of(run, trained, how, proof.line, hashes, name, wanted.adapter_only)
    (out / "README.md").write_text(write_card(card), encoding="utf-8")


def change_json(path: Path, **given: Any) -> None:
    """Give some keys of a JSON file other values."""
    write_json(path, json.loads(path.read_text(encoding="utf-8")) | given)


def identity(trained: Trained, wanted: Wanted) -> dict[str, Any]:
    """What decides the bytes of an export: the model, and what was asked of it."""
    weights = hashlib.sha256()
    for file in sorted(trained.model.glob("*.safetensors")):
        weights.update(file_hash(file).encode())
    return {
        "imprint": __version__,
        "to": wanted.to,
        "dtype": wanted.dtype,
        "scale": wanted.scale,
        "adapter_only": wanted.adapter_only,
        "options": dict(wanted.options),
        "trained": weights.hexdigest(),
    }


def serving(folder: Path, wanted: Wanted) -> str:
    """The command that serves an export with vLLM, or why there is none."""
    if not wanted.adapter_only:
        return serve_line(str(folder))
    config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    line = serve_line(str(folder), config["base_model_name_or_path"], rank_of(config))
    return not_in_vllm(config) or line


# ---- the run ----------------------------------------------------------------------------------


def find_run(run: Path, base: Path | None, scale: float = 1) -> Trained:
    """What there is to export in a run folder; an error where it is not finished, or its base is another one now.

    A whole model is exported without its base too, where that is gone and nothing of it is needed.
    """
    facts = read_facts(run)
    model = run / "model"
    if not is_valid(model):
        whole = model.is_dir()
        raise RunError(
            "the run's model is damaged" if whole else "this run has no model yet",
            where=str(model if whole else run),
            found="files that are not as training wrote them"
            if whole
            else "no model/: it was stopped, or still runs",
            fix="put it back from a copy"
            if whole
            else f"go on with it: imprint resume {shlex.quote(str(run))}",
        )
    recipe = settings.load(run / "recipe.yaml")
    try:
        folder = find_base(run, facts, base)
    except ModelError:
        folder = Path(facts["model"])
        needed = base is not None or scale != 1 or recipe.trust_remote_code or folder.exists()
        if needed or (model / "adapter_config.json").is_file():
            raise
    return Trained(
        model,
        folder,
        facts["stop_ids"],
        len(load_tokenizer(str(model), None, recipe.trust_remote_code)),
        recipe.trust_remote_code,
    )


def find_base(run: Path, facts: Mapping[str, Any], base: Path | None) -> Path:
    """The folder of the base model, which must be the one that was trained on, file by file."""
    try:
        folder = find_model(str(base or facts["model"]))
    except ModelError as error:
        raise ModelError(
            f"the base model cannot be used: {error.what}",
            where=error.where,
            found=error.found,
            expected="the model that this run was trained on",
            fix="name its place now: --base FOLDER",
        ) from error
    if model_fingerprint(folder) != facts["fingerprints"]["model"]:
        raise ModelError(
            "the base model is not the one that was trained on",
            where=str(folder),
            found="other files than when the run began",
            expected=f"the fingerprint in {run / 'run.json'}",
            fix="put its files back, or name the place where they are: --base FOLDER",
        )
    return folder


__all__ = ["Exported", "Wanted", "export"]
