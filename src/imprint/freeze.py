"""The golden file of a run, frozen at its end: which prompts are asked, and what else is noted beside them."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from imprint.build import Built
from imprint.data.conversation import Conversation
from imprint.disk import file_hash, write_text
from imprint.export.examine import Examined, Ids, Question, examine, moved, rounded
from imprint.export.folder import kind_of
from imprint.export.golden import NAME, Bos, Example, Golden, write_golden
from imprint.folder import versions
from imprint.model.load import load_model
from imprint.model.quantize import unpack_layers
from imprint.model.rowmodel import RowModel
from imprint.prepare import Prepared
from imprint.render.control import escape_control, find_control
from imprint.render.form import as_tools
from imprint.render.resolve import Rendering
from imprint.render.template import Refused
from imprint.render.turns import Turn
from imprint.save import type_on_disk

LOOKED_AT = 64  # conversations of each part, of which the most different ones are asked
LONGEST = 1024  # tokens of a prompt that is asked, where there are shorter ones
REPLY = 64  # tokens of a reply, given or greedy
SECONDS = 120.0  # after which no further prompt is asked
DOUBLE = 400_000_000  # parameters of a model that is small enough to be computed in float64


def freeze(
    prepared: Prepared,
    built: Built,
    path: Path,
    patient: Callable[[Callable[[], object]], object] = lambda write: write(),
) -> list[str]:
    """Write `path`/golden.json from the model as it stands; what the user should know of it.

    Every rank calls this, after the model was saved. No file is written where golden is 0 or the data
    holds no conversation. `patient` does the writing, and waits where the disk is full.
    """
    recipe, mesh, model = built.recipe, built.state.mesh, built.row_model
    if not recipe.golden:
        return []
    asked = mesh.agree(questions(prepared, recipe.golden) if mesh.is_main else [])
    if not asked:
        return ["no golden file: the data holds no conversation whose prompt a template renders"]
    alone = mesh.size == 1
    inexact = widen_frozen(prepared, model, sharded=not alone)
    as_saved(prepared, model)
    precision = "float64" if alone and _fits_double(model) else "float32"
    model.to(getattr(torch, precision))
    encoder = prepared.rendering.encoder

    def decode(ids: Sequence[int], plainly: bool) -> str:
        text: str = encoder.tokenizer.decode(
            list(ids), skip_special_tokens=plainly, clean_up_tokenization_spaces=False
        )
        return text

    found = examine(
        model, mesh, asked, stop_ids=prepared.rendering.stop_ids, decode=decode, limit=REPLY, seconds=SECONDS
    )
    model.to(torch.float32)
    noise = moved(model, found.examples)
    rounding = effects_of_rounding(model, found.examples, precision == "float64") if alone else {}
    if mesh.is_main:
        golden = describe(prepared, found, path, precision, noise, inexact, rounding)
        patient(lambda: write_text(path / NAME, write_golden(golden)))
    mesh.wait()
    done = len(found.examples)
    return [f"golden: {done} of {len(asked)} prompts in {SECONDS:g} s"] if found.out_of_time else []


def _fits_double(model: RowModel) -> bool:
    """Whether the model is small enough, and its device able, to compute in float64."""
    parameters = list(model.parameters())
    plain = all(parameter.is_floating_point() for parameter in parameters)
    size = sum(parameter.numel() for parameter in parameters)
    return plain and size <= DOUBLE and parameters[0].device.type != "mps"


def describe(
    prepared: Prepared,
    found: Examined,
    path: Path,
    precision: str,
    noise: float,
    inexact: str,
    rounding: dict[str, float],
) -> Golden:
    """The golden file of what was found, with the facts of the rendering."""
    rendering = prepared.rendering
    tokenizer, template = rendering.encoder.tokenizer, rendering.template
    serving = template.serving if isinstance(template.serving, str) else json.dumps(template.serving)
    facts = json.loads((path / "run.json").read_text(encoding="utf-8"))
    return Golden(
        stop_ids=tuple(int(i) for i in rendering.stop_ids),
        stops=tuple(rendering.encoder.decode([i]) for i in rendering.stop_ids),
        eos_id=tokenizer.eos_token_id,
        bos=bos_of(rendering, [example.prompt_ids for example in found.examples]),
        template=hashlib.sha256(serving.encode()).hexdigest(),
        template_name=template.name,
        now=facts["created"],
        weights={file.name: file_hash(file) for file in sorted((path / "model").glob("*.safetensors"))},
        kind=kind_of(path / "model"),
        precision=precision,
        noise=noise,
        rounded=inexact,
        rounding=rounding,
        versions=versions(),
        examples=tuple(found.examples),
        without_adapter=found.without_adapter,
    )


@torch.no_grad()
def effects_of_rounding(
    model: RowModel, examples: Sequence[Example], double: bool = False
) -> dict[str, float]:
    """How far each type of weights moves a model from its examples, in nats. The model is not to be used after.

    What an export in that type has to cost on this very model: adapters are merged first, but beside a base that
    was in four bits, where PEFT's layers cannot merge what was unpacked, and base and adapter are rounded each.
    Merging itself rounds to float32, which a model that was computed in float64 tells.
    """
    inner: Any = model.model
    found = {}
    if hasattr(inner, "merge_adapter") and model.quantized is None:
        model.to(torch.float64 if double else torch.float32)
        inner.merge_adapter()
        model.to(torch.float32)
        if double:
            model.to(torch.float64)
            found["float32"] = moved(model, examples)
            model.to(torch.float32)
    kept = {name: value.clone() for name, value in inner.state_dict().items() if value.is_floating_point()}
    for kind in ("bfloat16", "float16", "q8_0"):
        for name, value in inner.state_dict().items():
            if name in kept:
                value.copy_(rounded(kept[name], kind))
        found[kind] = moved(model, examples)
    return found


def bos_of(rendering: Rendering, prompts: Sequence[Sequence[int]]) -> Bos:
    """What begins a text with this tokenizer, and whether the template writes it too."""
    tokenizer: Any = rendering.encoder.tokenizer
    number = tokenizer.bos_token_id
    if number is None:
        return Bos(None, None, 0)
    added = leading(tokenizer("a").input_ids, number)
    return Bos(
        number, str(tokenizer.bos_token), added, added > 0 and any(ids[0] == number for ids in prompts)
    )


def leading(ids: Sequence[int], number: int) -> int:
    """How often `number` stands at the beginning of `ids`."""
    return next((place for place, i in enumerate(ids) if i != number), len(ids))


@torch.no_grad()
def as_saved(prepared: Prepared, model: RowModel) -> None:
    """Round fully trained weights to the type that they were saved in: a golden file is of what is served."""
    kept = type_on_disk(prepared.folder)
    if prepared.recipe.method != "full" or kept == torch.float32:
        return
    for tensor in model.model.state_dict().values():
        if tensor.is_floating_point():
            tensor.copy_(tensor.to(kept))


def widen_frozen(prepared: Prepared, model: RowModel, sharded: bool) -> str:
    """Give frozen matrices that were kept in a narrow type the values that the base has on disk, in float32.

    What cannot be had so is said: an export takes these matrices from the disk. Sharded ones stay as they
    are, which is exact where the disk holds that type too (products are made in float32 all the same).
    """
    if model.quantized is not None:
        if sharded:
            return f"a base in {model.quantized}, computed in the run's own way"
        unpack_layers(model.model)
        model.held = None
        for parameter in model.parameters():
            parameter.data = parameter.data.float()
        return ""
    held = model.held
    if held is None:
        return ""
    name = str(held).removeprefix("torch.")
    exact = type_on_disk(prepared.folder) == held
    if sharded:
        return "" if exact else f"frozen matrices rounded to {name} from a wider type on disk"
    fresh: dict[str, torch.Tensor] = {}
    if not exact:
        base = load_model(
            prepared.folder,
            num_tokens=prepared.num_tokens,
            grow=bool(prepared.rendering.added),
            trust_remote_code=prepared.recipe.trust_remote_code,
        )
        fresh = dict(base.named_parameters())
    for name, parameter in model.base.named_parameters():
        if parameter.dtype == held:
            value = parameter.data if exact else fresh.pop(name.replace(".base_layer.", ".")).data
            parameter.data = value.to(parameter.device, torch.float32)
    model.held = None
    return ""


# ---- which prompts


def questions(prepared: Prepared, count: int) -> list[Question]:
    """So many prompts, held-out ones first, as different in kind as the data has them; always the same ones."""
    parts = [
        list(_candidates(prepared, "validation", prepared.validation, prepared.loaded.validation)),
        list(_candidates(prepared, "train", prepared.train, prepared.loaded.train)),
    ]
    chosen: dict[bytes, Question] = {}

    def choose(question: Question) -> None:
        if len(chosen) < count:
            chosen.setdefault(question.prompt_ids.tobytes(), question)

    every = [question for part in parts for question in part]
    if every:
        choose(every[0])
    for kind in sorted({kind for question in every for kind in _kinds(question)}):
        if not any(kind in _kinds(question) for question in chosen.values()):
            choose(next(question for question in every if kind in _kinds(question)))
    for part, most in zip(parts, (max(count // 2, count - len(parts[1])), count), strict=True):
        different = list({question.prompt_ids.tobytes(): question for question in part}.values())
        room = max(0, min(most - len(chosen), len(different)))
        for number in range(room):
            choose(different[number * len(different) // room])
        for question in different:  # of those drawn, some were chosen by their kind already
            if len(chosen) < most:
                choose(question)
    return list(chosen.values())


def _candidates(prepared: Prepared, part: str, turns: Any, whole: Any) -> Iterator[Question]:
    """The last reply of evenly spread conversations, those with prompts of a bearable length first."""
    number = min(LOOKED_AT, len(turns))
    found = []
    for i in range(number):
        turn = turns[i * len(turns) // number][-1]
        question = _question(prepared, part, turn, whole[turn.conversation])
        if question is not None:
            found.append(question)
    short = [question for question in found if len(question.prompt_ids) <= LONGEST]
    yield from short or sorted(found, key=lambda question: len(question.prompt_ids))[:2]


def _question(prepared: Prepared, part: str, turn: Turn, conversation: Conversation) -> Question | None:
    """The prompt of a turn as a server is given it; None for a document, or where a server's ids are others."""
    if not conversation.is_chat:
        return None
    encoder = prepared.rendering.encoder
    if prepared.recipe.control_tokens == "escape" and find_control(conversation, encoder):
        conversation = escape_control(conversation, encoder)
    template = prepared.rendering.template.for_tools(conversation.tools)
    messages = template.inputs(conversation.messages)[: turn.turn]
    try:
        text = template.render(messages, conversation.tools, add_generation_prompt=True)
    except Refused:
        return None
    prompt: Ids = encoder.encode([text])[0]
    ids = turn.ids
    if not len(prompt) or not np.array_equal(ids[: len(prompt)], prompt):
        return None
    tools = tuple(json.loads(json.dumps(tool)) for tool in as_tools(conversation.tools))
    return Question(
        source=str(dataclasses.replace(turn.source, file=Path(turn.source.file).name)),
        part=part,
        messages=tuple(json.loads(json.dumps(message)) for message in messages),
        tools=tools,
        prompt=text,
        prompt_ids=prompt,
        reply_ids=ids[len(prompt) :][:REPLY],
    )


def _kinds(question: Question) -> set[str]:
    """What is special about a prompt: what a template may get wrong."""
    roles = [message["role"] for message in question.messages]
    found = {role for role in roles if role != "user"}
    if question.tools:
        found.add("tools")
    if roles.count("user") > 1:
        found.add("turns")
    if any("tool_calls" in message for message in question.messages):
        found.add("calls")
    if any("reasoning_content" in message for message in question.messages):
        found.add("thoughts")
    return found
