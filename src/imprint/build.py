"""From what was prepared to the objects that the loop works on: the model, checked, with its optimizer and rows."""

from __future__ import annotations

import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from imprint.auto import Decision
from imprint.distributed.mesh import Mesh
from imprint.distributed.shard import shard
from imprint.errors import RunError
from imprint.folder import versions
from imprint.model.adapters import adapted_layers, add_lora
from imprint.model.checks import choose_layout
from imprint.model.load import load_model, set_stops
from imprint.model.rowmodel import RowModel
from imprint.pack.plan import share_out
from imprint.pack.row import Row
from imprint.prepare import Prepared
from imprint.recipe import Recipe
from imprint.render.turns import Turn
from imprint.train.loop import Data
from imprint.train.optim import Schedule, adamw
from imprint.train.step import TrainState

Say = Callable[[Any], None]  # a line of text, or what rich can print


@dataclass
class Built:
    """The objects that the loop works on."""

    state: TrainState
    row_model: RowModel
    data: Data
    recipe: Recipe
    decisions: list[Decision]


def build(prepared: Prepared, mesh: Mesh, say: Say) -> Built:
    """Load the model, check that it trains exactly, and make everything that the loop needs."""
    recipe, rendering = prepared.recipe, prepared.rendering
    attention = "segments" if recipe.attention == "auto" else recipe.attention
    torch.manual_seed(recipe.seed)
    say(f"loading {prepared.folder}")
    model: Any = load_model(
        prepared.folder,
        num_tokens=prepared.num_tokens,
        grow=bool(rendering.added),
        dropout=recipe.dropout,
        attention=attention,
        trust_remote_code=recipe.trust_remote_code,
    )
    set_stops(model, rendering.stop_ids, rendering.encoder.tokenizer.pad_token_id)
    lora_dropout = recipe.lora.dropout if recipe.method == "lora" else 0.0
    if recipe.method == "lora":
        new = rendering.encoder.tokenizer.convert_tokens_to_ids(list(rendering.added))
        model = add_lora(model, **dict(recipe.lora), new_tokens=new, seed=recipe.seed)
        say(adapted_layers(model))
    row_model = RowModel(model).to(mesh.device)
    vocab = row_model.base.get_input_embeddings().weight.shape[0]
    wanted = "packed" if recipe.layout == "auto" and (recipe.dropout or lora_dropout) else recipe.layout
    layout, findings = choose_layout(row_model, wanted, prepared.longest, vocab)
    for finding in findings:
        say(f"check {finding.name}: {finding.detail}")
    if layout == "separate" and wanted != "separate":
        say("this model cannot take several turns in a row exactly: it is trained one turn a row")
    if recipe.layout not in ("auto", layout):
        failed = next(finding for finding in findings if not finding.passed)
        raise RunError(
            f"this model cannot be trained with layout={recipe.layout}",
            found=f"{failed.name}: {failed.detail}",
            fix="layout=auto trains it one turn a row",
        )
    if recipe.activation_checkpointing:
        base = row_model.base  # transformers renamed it on the way to 6
        enable = getattr(base, "activation_checkpointing_enable", None) or base.gradient_checkpointing_enable
        enable({"use_reentrant": False})
    row_model.train()
    recipe, decisions = settle(prepared, layout, attention, wanted)
    shard(row_model, mesh)
    optimizer = adamw(row_model, weight_decay=recipe.weight_decay, betas=recipe.betas, epsilon=recipe.epsilon)
    assert isinstance(recipe.learning_rate, float)
    schedule = Schedule(recipe.learning_rate, prepared.plan.total_steps, recipe.schedule, recipe.warmup)
    compute = torch.bfloat16 if recipe.precision == "bfloat16" else torch.float32
    state = TrainState(row_model, optimizer, schedule, mesh, compute, recipe.clip)
    data = rows_of(prepared, recipe, mesh, layout)
    return Built(state, row_model, data, recipe, decisions)


def rows_of(prepared: Prepared, recipe: Recipe, mesh: Mesh, layout: str) -> Data:
    """What is trained on, and this rank's rows of what is only looked at."""
    budget, replay = recipe.row_tokens, prepared.replay
    assert isinstance(budget, int)

    def mine(groups: Sequence[Sequence[Turn]]) -> list[Row]:
        turns = [turn for group in groups for turn in group]
        return share_out(turns, budget, mesh.size, layout)[mesh.rank] if turns else []

    return Data(
        prepared.train,
        mine(prepared.validation),
        budget,
        layout,
        replay=replay.drawable if replay else (),
        held_out=mine(replay.held_out) if replay else (),
        replay_weight=recipe.replay_share if recipe.replay_share_of == "weight" else None,
    )


def settle(prepared: Prepared, layout: str, attention: str, wanted: str) -> tuple[Recipe, list[Decision]]:
    """The recipe with what the checks decided."""
    recipe, decisions = (
        prepared.recipe,
        [d for d in prepared.decisions if d.key not in ("layout", "attention")],
    )
    if recipe.layout == "auto":
        why = {
            "shared": "the model passed the checks: what turns share is computed once",
            "packed": "dropout is on: turns that share a prompt must not share its noise",
            "separate": "the model did not pass the checks: one turn a row",
        }
        decisions.append(Decision("layout", layout, why[layout]))
    if recipe.attention == "auto":
        decisions.append(Decision("attention", attention, "computes only what is seen"))
    changed = {"layout": layout, "attention": attention if layout != "separate" else "auto"}
    return recipe.model_copy(update=changed), decisions


def start_facts(prepared: Prepared, built: Built) -> dict[str, Any]:
    """What the log and the report say of a run before its first step."""
    parameters = list(built.row_model.parameters())
    return {
        "recipe": built.recipe.model_dump(mode="json"),
        "decisions": [decision._asdict() for decision in built.decisions],
        "num_parameters": sum(p.numel() for p in parameters),
        "num_trainable": sum(p.numel() for p in parameters if p.requires_grad),
        "total_steps": prepared.plan.total_steps,
        "steps_per_epoch": prepared.plan.steps_per_epoch,
        "conversations": len(prepared.train),
        "template": prepared.rendering.template.name,
        "stop": [prepared.rendering.encoder.decode([i]) for i in prepared.rendering.stop_ids],
        "versions": versions(),
        "machine": platform.processor() or platform.machine(),
    }
