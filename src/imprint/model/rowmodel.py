"""RowModel: the root module of a run. A row goes in, the loss of each of its predictions comes out."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from imprint.model.attention import View, base_model, generating
from imprint.pack.row import Row

CHUNK = 1024  # predictions whose logits exist at one time


class RowModel(nn.Module):
    """Backbone and head in one forward, so that FSDP2 can wrap it.

    `model` is a transformers causal language model, with or without PEFT adapters.
    `follows_end` is False for models that cannot take several turns in a row: they are
    then given one turn at a time, in their own attention.
    """

    def __init__(self, model: nn.Module, follows_end: bool = True):
        super().__init__()
        self.model = model
        self.follows_end = follows_end
        self.own_head = False  # True where the model's logits are not what `logits` computes

    @property
    def base(self) -> Any:
        """The transformers model below any adapters."""
        return base_model(self.model)

    @property
    def backbone(self) -> Any:
        """The transformers model without its head."""
        base = self.base
        return base.model if base.base_model is base else base.base_model  # llama4's prefix names nothing

    @property
    def context(self) -> int | None:
        """Most tokens of prompt and reply that the model has positions for, where its config says so."""
        config = self.base.config.get_text_config()
        found: int | None = getattr(config, "max_position_embeddings", None)
        return found or getattr(config, "n_positions", None)

    def forward(self, row: Row) -> Tensor:
        """Negative log-likelihood of each target, in nats: float32 (or the model's wider type) [P]."""
        if self.own_head:
            out = self.base(**self._inputs(row), logits_to_keep=row.source)
            return nll(out.logits[0], row.target)
        hidden = self.hidden(row)[0].index_select(0, row.source)  # [P, H]
        if row.num_predictions <= CHUNK or not torch.is_grad_enabled():
            parts = [
                self._chunk(*piece)
                for piece in zip(hidden.split(CHUNK), row.target.split(CHUNK), strict=True)
            ]
        else:  # logits are made again in the backward pass, a chunk at a time
            parts = [
                checkpoint(self._chunk, *piece, use_reentrant=False)
                for piece in zip(hidden.split(CHUNK), row.target.split(CHUNK), strict=True)
            ]
        return torch.cat(parts)

    def hidden(self, row: Row) -> Tensor:
        """Last hidden states [1, T, H]."""
        hidden: Tensor = self.backbone(**self._inputs(row)).last_hidden_state
        return hidden

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits [..., V] of hidden states [..., H], with the scaling that the model's family applies."""
        config = self.base.config.get_text_config()
        logits: Tensor = self.base.get_output_embeddings()(hidden)
        if getattr(config, "logits_scaling", None):  # granite
            logits = logits / config.logits_scaling
        if getattr(config, "logit_scale", None):  # cohere
            logits = logits * config.logit_scale
        cap = getattr(config, "final_logit_softcapping", None)  # gemma 2
        return torch.tanh(logits / cap) * cap if cap else logits

    def generate(self, **inputs: Any) -> Tensor:
        """transformers' generation on the trained weights; ids int64 [B, prompt + new]."""
        with generating(self.model):
            out: Tensor = self.model.generate(**inputs)  # type: ignore[operator]
        return out

    def _chunk(self, hidden: Tensor, target: Tensor) -> Tensor:
        return nll(self.logits(hidden), target)

    def _inputs(self, row: Row) -> dict[str, Any]:
        inputs: dict[str, Any] = {"input_ids": row.tokens[None], "use_cache": False}
        if self.follows_end:
            view = View(row.end)
            inputs |= {"position_ids": view.position[None], "end": view}
        return inputs


def nll(logits: Tensor, target: Tensor) -> Tensor:
    """Negative log-likelihood [P] of `target` [P] under `logits` [P, V], in float32 or wider."""
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return F.cross_entropy(wide, target, reduction="none")
