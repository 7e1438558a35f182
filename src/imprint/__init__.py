"""imprint: supervised fine-tuning in which nothing goes wrong silently.

`imprint.train(model=…, data=…)` makes a whole run; the names below are what it is made of.
They are imported on first use, so `import imprint` costs nothing and does not import torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from imprint import train as train
    from imprint.api import make_recipe as make_recipe
    from imprint.api import train as train_recipe
    from imprint.auto import Decision as Decision
    from imprint.auto import resolve_auto as resolve_auto
    from imprint.auto import resolve_intervals as resolve_intervals
    from imprint.data.conversation import Conversation as Conversation
    from imprint.data.conversation import Message as Message
    from imprint.data.conversation import Place as Place
    from imprint.data.ledger import Ledger as Ledger
    from imprint.data.load import load as load_data
    from imprint.distributed.mesh import Mesh as Mesh
    from imprint.distributed.mesh import start_mesh as start_mesh
    from imprint.distributed.shard import shard as shard
    from imprint.errors import ImprintError as ImprintError
    from imprint.errors import UserError as UserError
    from imprint.evaluate.generate import answer as answer
    from imprint.evaluate.report import write_report as write_report
    from imprint.model.adapters import add_lora as add_lora
    from imprint.model.checks import choose_layout as choose_layout
    from imprint.model.load import find_model as find_model
    from imprint.model.load import load_model as load_model
    from imprint.model.load import set_stops as set_stops
    from imprint.model.rowmodel import RowModel as RowModel
    from imprint.model_facts import read_model_facts as read_model_facts
    from imprint.pack.collate import collate as collate
    from imprint.pack.plan import Plan as Plan
    from imprint.pack.plan import share_out as share_out
    from imprint.pack.row import Row as Row
    from imprint.pack.row import check_row as check_row
    from imprint.pack.row import positions as positions
    from imprint.pack.tree import build_rows as build_rows
    from imprint.recipe import DataSource as DataSource
    from imprint.recipe import Export as Export
    from imprint.recipe import Lora as Lora
    from imprint.recipe import Recipe as Recipe
    from imprint.render.resolve import Rendering as Rendering
    from imprint.render.resolve import load_tokenizer as load_tokenizer
    from imprint.render.resolve import prepare_rendering as prepare_rendering
    from imprint.render.template import Template as Template
    from imprint.render.tokens import Encoder as Encoder
    from imprint.render.turns import LeftOut as LeftOut
    from imprint.render.turns import Noticed as Noticed
    from imprint.render.turns import Turn as Turn
    from imprint.render.turns import render as render_turns
    from imprint.result import ExportsFailed as ExportsFailed
    from imprint.result import Result as Result
    from imprint.run import resume as resume
    from imprint.save import save_model as save_model
    from imprint.serve.chat import load_speaker as load_speaker
    from imprint.settings import dump as write_recipe
    from imprint.settings import load as read_recipe
    from imprint.settings import resolve as resolve_recipe
    from imprint.train.checkpoint import Counters as Counters
    from imprint.train.checkpoint import latest_checkpoint as latest_checkpoint
    from imprint.train.checkpoint import load_checkpoint as load_checkpoint
    from imprint.train.checkpoint import save_checkpoint as save_checkpoint
    from imprint.train.optim import Schedule as Schedule
    from imprint.train.optim import adamw as adamw
    from imprint.train.step import TrainState as TrainState
    from imprint.train.step import evaluate as validate
    from imprint.train.step import train_step as train_step

# Where each name of `__all__` lives: module, or module:name where it has another name there.
_HOMES = {
    # a run from its settings
    "make_recipe": "imprint.api",
    "train_recipe": "imprint.api:train",
    "resume": "imprint.run",
    "Result": "imprint.result",
    "ExportsFailed": "imprint.result",
    "Recipe": "imprint.recipe",
    "DataSource": "imprint.recipe",
    "Export": "imprint.recipe",
    "Lora": "imprint.recipe",
    "resolve_recipe": "imprint.settings:resolve",
    "read_recipe": "imprint.settings:load",
    "write_recipe": "imprint.settings:dump",
    "Decision": "imprint.auto",
    "read_model_facts": "imprint.model_facts",
    "resolve_auto": "imprint.auto",
    "resolve_intervals": "imprint.auto",
    "ImprintError": "imprint.errors",
    "UserError": "imprint.errors",
    # demonstrations
    "Conversation": "imprint.data.conversation",
    "Message": "imprint.data.conversation",
    "Place": "imprint.data.conversation",
    "Ledger": "imprint.data.ledger",
    "load_data": "imprint.data.load:load",
    # turns
    "load_tokenizer": "imprint.render.resolve",
    "prepare_rendering": "imprint.render.resolve",
    "Rendering": "imprint.render.resolve",
    "Template": "imprint.render.template",
    "Encoder": "imprint.render.tokens",
    "Turn": "imprint.render.turns",
    "LeftOut": "imprint.render.turns",
    "Noticed": "imprint.render.turns",
    "render_turns": "imprint.render.turns:render",
    # rows
    "Row": "imprint.pack.row",
    "positions": "imprint.pack.row",
    "check_row": "imprint.pack.row",
    "build_rows": "imprint.pack.tree",
    "Plan": "imprint.pack.plan",
    "share_out": "imprint.pack.plan",
    "collate": "imprint.pack.collate",
    # the model
    "find_model": "imprint.model.load",
    "load_model": "imprint.model.load",
    "set_stops": "imprint.model.load",
    "RowModel": "imprint.model.rowmodel",
    "add_lora": "imprint.model.adapters",
    "choose_layout": "imprint.model.checks",
    # training
    "Mesh": "imprint.distributed.mesh",
    "start_mesh": "imprint.distributed.mesh",
    "shard": "imprint.distributed.shard",
    "TrainState": "imprint.train.step",
    "train_step": "imprint.train.step",
    "validate": "imprint.train.step:evaluate",
    "Schedule": "imprint.train.optim",
    "adamw": "imprint.train.optim",
    "Counters": "imprint.train.checkpoint",
    "save_checkpoint": "imprint.train.checkpoint",
    "load_checkpoint": "imprint.train.checkpoint",
    "latest_checkpoint": "imprint.train.checkpoint",
    # afterwards
    "answer": "imprint.evaluate.generate",
    "save_model": "imprint.save",
    "load_speaker": "imprint.serve.chat",
    "write_report": "imprint.evaluate.report",
}

__all__ = [
    "__version__",
    "train",
    "make_recipe",
    "train_recipe",
    "resume",
    "Result",
    "ExportsFailed",
    "Recipe",
    "DataSource",
    "Export",
    "Lora",
    "resolve_recipe",
    "read_recipe",
    "write_recipe",
    "Decision",
    "read_model_facts",
    "resolve_auto",
    "resolve_intervals",
    "ImprintError",
    "UserError",
    "Conversation",
    "Message",
    "Place",
    "Ledger",
    "load_data",
    "load_tokenizer",
    "prepare_rendering",
    "Rendering",
    "Template",
    "Encoder",
    "Turn",
    "LeftOut",
    "Noticed",
    "render_turns",
    "Row",
    "positions",
    "check_row",
    "build_rows",
    "Plan",
    "share_out",
    "collate",
    "find_model",
    "load_model",
    "set_stops",
    "RowModel",
    "add_lora",
    "choose_layout",
    "Mesh",
    "start_mesh",
    "shard",
    "TrainState",
    "train_step",
    "validate",
    "Schedule",
    "adamw",
    "Counters",
    "save_checkpoint",
    "load_checkpoint",
    "latest_checkpoint",
    "answer",
    "save_model",
    "load_speaker",
    "write_report",
]


def __getattr__(name: str) -> Any:
    if name == "train":  # a package that can be called: see its __init__.py
        return import_module("imprint.train")
    if name not in _HOMES:
        raise AttributeError(f"module 'imprint' has no attribute {name!r}")
    module, _, inner = _HOMES[name].partition(":")
    value = getattr(import_module(module), inner or name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
