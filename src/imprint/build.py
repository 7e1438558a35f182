"""From what was prepared to the objects that the loop works on: the model, checked, with its optimizer and rows."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from imprint.auto import Decision, emulated
from imprint.build_model import Say, load_row_model
from imprint.distributed.mesh import Mesh
from imprint.distributed.shard import shard
from imprint.errors import RecipeError, RunError
from imprint.folder import needed, versions
from imprint.meaning import noise
from imprint.model.balance import Balance, routing_note
from imprint.model.checks import Layout, choose_layout
from imprint.model.choose import Choice, choose_attention
from imprint.model.cuda import prepare_cuda
from imprint.model.quantize import num_weights
from imprint.model.ropes import sides_of
from imprint.model.rowmodel import RowModel
from imprint.pack.cost import Cost
from imprint.pack.row import Row
from imprint.pack.sides import Sides, share_out_by_side
from imprint.pack.tree import multiple_for
from imprint.prepare import Prepared
from imprint.recipe import Recipe
from imprint.render.turns import Turn
from imprint.row_budget import RowBudget, row_budget
from imprint.train.budget import recompute_activations
from imprint.train.data import Data
from imprint.train.optim import Optimizer, Schedule, adamw, adamw_8bit, muon
from imprint.train.scaler import LossScale
from imprint.train.step import TrainState


@dataclass
class Built:
    """The objects that the loop works on."""

    state: TrainState
    row_model: RowModel
    data: Data
    recipe: Recipe
    decisions: list[Decision]
    notes: list[str]  # what the user should know of the model
    planned: dict[str, Any] = field(
        default_factory=dict
    )  # peak bytes and seconds, foretold before it was loaded


def build(prepared: Prepared, mesh: Mesh, say: Say, fresh: bool = True) -> Built:
    """Load the model, check that it trains exactly, and make everything that the loop needs.

    Where it is not `fresh`, but taken up again, its rows are those that it began with.
    """
    recipe = prepared.recipe
    if mesh.device.type == "cuda":
        prepare_cuda()
    torch.manual_seed(recipe.seed)
    notes = list(filter(None, [emulated(recipe)]))
    row_model = load_row_model(prepared, mesh, say, notes)
    compute: torch.dtype = getattr(torch, recipe.precision)
    wanted = recipe.layout
    if wanted == "auto" and noise(recipe):
        wanted = "packed"
    attention = choose_attention(row_model, recipe.attention, compute, separate=wanted == "separate")
    layout = checked_layout(row_model, prepared, wanted, say, notes)
    balance = Balance(row_model) if recipe.balance_loss else None
    notes += routing_note(row_model.base, recipe.balance_loss)
    if recipe.activation_checkpointing:
        recompute_activations(row_model)
    whole_model = recipe.method == "full"  # its frozen matrices are saved, and so must lose nothing
    if compute != torch.float32 and (saved := row_model.hold_frozen(compute, exactly=whole_model)) >= 1e6:
        say(f"frozen matrices are kept in {recipe.precision}: {saved / 1e6:,.0f} MB less")
    row_model.train()
    recipe, decisions = settle(prepared, layout, attention, wanted)
    whole = mesh.device.type != "cuda"  # a GPU is measured as it will be used, with its share of the weights
    budget = row_budget(row_model, mesh, compute, recipe, prepared.longest) if fresh and whole else None
    shard(row_model, mesh)
    if fresh and not whole:
        budget = row_budget(row_model, mesh, compute, recipe, prepared.longest)
    if budget is not None:
        recipe, decisions = with_budget(recipe, decisions, budget)
        notes += budget.notes
    for decision in decisions if fresh else ():
        if decision.key in ("layout", "attention", "row_tokens"):  # the overview came before them
            say(f"{decision.key}={decision.value}: {decision.reason}")
    optimizer = optimizer_of(recipe, row_model, mesh)
    assert isinstance(recipe.learning_rate, float)
    schedule = Schedule(recipe.learning_rate, prepared.plan.total_steps, recipe.schedule, recipe.warmup)
    state = TrainState(row_model, optimizer, schedule, mesh, compute, recipe.clip)
    state.balance, state.balance_weight = balance, recipe.balance_loss
    state.loss_scale = LossScale() if compute == torch.float16 else None
    sides = sides_of(row_model.base)
    data = rows_of(prepared, recipe, mesh, layout, cost_of(row_model), sides)
    return Built(state, row_model, data, recipe, decisions, notes)


def optimizer_of(recipe: Recipe, model: RowModel, mesh: Mesh) -> Optimizer:
    """The recipe's optimizer over what is trained; RecipeError where it does not work here."""
    options: dict[str, Any] = {
        "weight_decay": recipe.weight_decay,
        "betas": recipe.betas,
        "epsilon": recipe.epsilon,
    }
    if recipe.optimizer == "adamw_8bit":
        if mesh.size > 1:
            raise RecipeError(
                "optimizer=adamw_8bit works with one process only",
                found=f"{mesh.size} processes",
                expected="one: bitsandbytes takes its blocks from whole tensors, and FSDP2 gives it shards",
                fix="optimizer=adamw, whose state is shared out among the processes",
            )
        return adamw_8bit(model, **options)
    if recipe.optimizer == "muon":
        if mesh.size > 1:
            raise RecipeError(
                "optimizer=muon works with one process only",
                found=f"{mesh.size} processes",
                expected="one: it makes updates orthogonal in bfloat16, and on shards these round to others",
                fix="optimizer=adamw, which makes the same update with any number of processes",
            )
        head = model.base.get_output_embeddings()
        return muon(model, **options, apart=list(head.parameters()) if head is not None else [])
    return adamw(model, **options)


def checked_layout(model: RowModel, prepared: Prepared, wanted: str, say: Say, notes: list[str]) -> Layout:
    """The layout in which the model trains exactly; RunError where the recipe names another one."""
    vocab = model.base.get_input_embeddings().weight.shape[0]
    layout, findings = choose_layout(model, wanted, prepared.longest, vocab)
    for finding in findings:
        say(f"check {finding.name}: {finding.detail}")
    failed = next((finding for finding in findings if not finding.passed), None)
    if failed and prepared.recipe.layout not in ("auto", layout):
        raise RunError(
            f"this model cannot be trained with layout={prepared.recipe.layout}",
            found=f"{failed.name}: {failed.detail}",
            fix="layout=auto trains it one turn a row",
        )
    if failed and layout == "separate" and wanted != "separate":
        why = f"{failed.name}: {failed.detail}"
        notes.append(
            f"this model cannot take several turns in a row exactly, and is trained one turn a row ({why})"
        )
    return layout


def rows_of(
    prepared: Prepared, recipe: Recipe, mesh: Mesh, layout: str, cost: Cost, sides: Sides | None = None
) -> Data:
    """What is trained on, and this rank's rows of what is only looked at."""
    budget, replay = recipe.row_tokens, prepared.replay
    assert isinstance(budget, int)
    multiple = multiple_for(budget)

    def mine(groups: Sequence[Sequence[Turn]]) -> list[Row]:
        turns = [turn for group in groups for turn in group]
        if not turns:
            return []
        options = {"multiple": multiple, "cost": cost}
        return share_out_by_side(turns, budget, mesh.size, layout, sides, **options)[mesh.rank]

    return Data(
        prepared.train,
        mine(prepared.validation),
        budget,
        layout,
        replay=replay.drawable if replay else (),
        held_out=mine(replay.held_out) if replay else (),
        replay_weight=recipe.replay_share if recipe.replay_share_of == "weight" else None,
        multiple=multiple,
        cost=cost,
        sides=sides,
    )


def cost_of(model: RowModel) -> Cost:
    """What rows cost in this model, by the sizes that its config names."""
    config: Any = model.base.config.get_text_config()

    def size(*names: str) -> int | None:
        return next((value for name in names if isinstance(value := getattr(config, name, None), int)), None)

    width, heads, head = size("hidden_size"), size("num_attention_heads"), size("head_dim")
    layers = size("num_hidden_layers")
    if width is None or layers is None:  # a config of its own kind: only the balance of ranks depends on it
        return Cost()
    experts = size("num_experts_per_tok", "top_k") or 1
    inner = size("moe_intermediate_size") or size("intermediate_size", "ffn_dim", "n_inner") or 4 * width
    vocabulary = model.base.get_input_embeddings().weight.shape[0]
    return Cost.of_sizes(width, layers, inner * experts, vocabulary, heads * head if heads and head else None)


def settle(prepared: Prepared, layout: str, attention: Choice, wanted: str) -> tuple[Recipe, list[Decision]]:
    """The recipe with what the checks decided."""
    recipe, decisions = (
        prepared.recipe,
        [d for d in prepared.decisions if d.key not in ("layout", "attention")],
    )
    if recipe.layout == "auto":
        why = {
            "shared": "the model passed the checks: what turns share is computed once",
            "packed": f"{noise(recipe)} is on: turns that share a prompt must not share its noise",
            "separate": "the model did not pass the checks: one turn a row",
        }
        decisions.append(Decision("layout", layout, why[layout]))
    if recipe.attention == "auto":
        decisions.append(Decision("attention", *attention))
    changed = {"layout": layout, "attention": attention.name if layout != "separate" else "auto"}
    return recipe.model_copy(update=changed), decisions


def with_budget(
    recipe: Recipe, decisions: list[Decision], budget: RowBudget
) -> tuple[Recipe, list[Decision]]:
    """The recipe with its rows measured, and the decision in its place."""
    if budget.decision is None:
        return recipe, decisions
    others = [decision for decision in decisions if decision.key != "row_tokens"]
    return recipe.model_copy(update={"row_tokens": budget.tokens}), [*others, budget.decision]


def start_facts(prepared: Prepared, built: Built) -> dict[str, Any]:
    """What the log and the report say of a run before its first step."""
    parameters = list(built.row_model.parameters())
    return {
        "recipe": built.recipe.model_dump(mode="json"),
        "decisions": [decision._asdict() for decision in built.decisions],
        "num_parameters": sum(num_weights(p) for p in parameters),
        "num_trainable": sum(p.numel() for p in parameters if p.requires_grad),
        "total_steps": prepared.plan.total_steps,
        "steps_per_epoch": prepared.plan.steps_per_epoch,
        "conversations": len(prepared.train),
        "planned": built.planned,
        "template": prepared.rendering.template.name,
        "stop": [prepared.rendering.encoder.decode([i]) for i in prepared.rendering.stop_ids],
        "versions": versions(*needed(built.recipe)),
        "machine": platform.processor() or platform.machine(),
    }
