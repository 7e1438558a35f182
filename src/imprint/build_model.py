"""The model of a run, with what is trained of it: loaded, quantised, adapted, on its device."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from imprint.distributed.mesh import Mesh
from imprint.errors import RecipeError, nearest
from imprint.meaning import has_adapters
from imprint.model.adapters import adapted_layers, add_lora
from imprint.model.alike import alike_note, alike_tokens
from imprint.model.freeze import freeze
from imprint.model.fused import fuse
from imprint.model.load import load_model, set_stops
from imprint.model.pairs import PLAIN, Objective
from imprint.model.quantize import Quantized, four_bit_layers, num_weights, quantized_as
from imprint.model.rowmodel import RowModel
from imprint.prepare import Prepared
from imprint.recipe import Recipe

LOOKED_AT = 500  # conversations that are searched for control tokens

Say = Callable[[Any], None]  # a line of text, or what rich can print


def load_row_model(prepared: Prepared, mesh: Mesh, say: Say, notes: list[str]) -> RowModel:
    """The model with what is trained of it, on its device; what the user should know joins `notes`."""
    recipe, rendering = prepared.recipe, prepared.rendering
    say(f"loading {prepared.folder}")
    quantized = quantized_base(recipe, mesh)
    model: Any = load_model(
        prepared.folder,
        num_tokens=prepared.num_tokens,
        grow=bool(rendering.added),
        dropout=recipe.dropout,
        trust_remote_code=recipe.trust_remote_code,
        quantized=quantized,
        device=mesh.device,
    )
    if quantized is not None:
        say(f"base in four bits: {quantized}")
        notes += four_bit_note(model)
    # in pieces that suit a processor's cache: on a GPU each would be a kernel of its own
    if recipe.attention != "reference" and mesh.device.type == "cpu" and (replaced := fuse(model)):
        say(f"in fewer passes over memory: {', '.join(replaced)}")
    set_stops(model, rendering.stop_ids, rendering.encoder.tokenizer.pad_token_id)
    if has_adapters(recipe):
        new = own_vectors(prepared)
        notes += frozen_alike(prepared, model, new)
        settings = recipe.lora.model_dump(exclude={"train_tokens"})
        model = add_lora(model, **settings, new_tokens=new, seed=recipe.seed)
        say(adapted_layers(model))
    elif recipe.freeze or recipe.train_only:
        say(freeze(model, recipe.freeze, recipe.train_only))
    objective = Objective(recipe.loss, recipe.label_smoothing, recipe.z_loss)
    if objective != PLAIN:
        say(f"training minimises {objective}; validation measures the plain nll: the two do not compare")
    row_model = RowModel(model, objective=objective).to(mesh.device)
    if quantized is not None:
        layers = tuple(four_bit_layers(row_model.base))
        row_model.quantized = replace(quantized, layers=tuple(n.replace(".base_layer", "") for n in layers))
    if recipe.neftune_alpha:
        row_model.add_noise(recipe.neftune_alpha)
    return row_model


def quantized_base(recipe: Recipe, mesh: Mesh) -> Quantized | None:
    """How the base is to be quantised; None where it is not. RecipeError where several processes train."""
    if recipe.method != "qlora":
        return None
    if mesh.size > 1:
        raise RecipeError(
            "method=qlora works with one process only",
            found=f"{mesh.size} processes",
            expected="one: FSDP2 would cut four-bit weights away from the scales of their blocks",
            fix="method=lora, or train in one process",
        )
    wanted = recipe.quantization
    return quantized_as(wanted.type, wanted.double, wanted.skip)


def four_bit_note(model: Any) -> list[str]:
    """A note where much of the model is not in four bits, as in mixtures of experts."""
    weights = [(num_weights(p), hasattr(p, "quant_state")) for p in model.parameters()]
    tables = {
        id(m.weight) for m in (model.get_input_embeddings(), model.get_output_embeddings()) if m is not None
    }
    left = sum(
        n
        for (n, four), p in zip(weights, model.parameters(), strict=True)
        if not four and id(p) not in tables
    )
    four = sum(n for n, is_four in weights if is_four)
    if left <= four / 10:
        return []
    return [
        f"{left:,} weights beside embedding and output matrix are not held in four bits, {four:,} are: bitsandbytes "
        "takes linear layers whose width is a multiple of 64, and this model keeps others (as experts in one block), "
        "or quantization.skip names them"
    ]


def own_vectors(prepared: Prepared) -> list[int]:
    """The ids whose vectors are trained beside adapters: those that were added, and lora.train_tokens."""
    tokenizer = prepared.rendering.encoder.tokenizer
    ids = []
    for token in (*prepared.rendering.added, *prepared.recipe.lora.train_tokens):
        number = tokenizer.convert_tokens_to_ids(token)
        if number is None or tokenizer.convert_ids_to_tokens(number) != token:
            guess = nearest(token, prepared.rendering.encoder.added.values())
            raise RecipeError(
                "lora.train_tokens names what is not a token of this model",
                found=token,
                expected="tokens as the tokenizer spells them",
                fix=f"lora.train_tokens=[{json.dumps(guess)}]" if guess else "leave it out",
            )
        ids.append(number)
    return sorted(set(ids))


def frozen_alike(prepared: Prepared, model: Any, trained: Sequence[int]) -> list[str]:
    """What is to be said of control tokens whose frozen vectors are equal or empty, by LOOKED_AT conversations."""
    used = set(prepared.rendering.stop_ids[:1])
    for number in range(0, len(prepared.train), max(1, len(prepared.train) // LOOKED_AT)):
        for turn in prepared.train[number]:
            used.update(turn.ids.tolist())
    control = [number for number in prepared.rendering.encoder.added if number in used]
    found = alike_tokens(model, control, used, trained)
    return alike_note(found, prepared.rendering.encoder.tokenizer.convert_ids_to_tokens)
