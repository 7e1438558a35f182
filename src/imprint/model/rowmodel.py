"""RowModel: the root module of a run. A row goes in, the loss of each of its predictions comes out."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from imprint.model.attention import base_model, generating
from imprint.model.freeze import fits_in
from imprint.model.loss import pair_loss
from imprint.model.pairs import PLAIN, Head, Objective, Pairs, dense_loss
from imprint.model.quantize import Quantized, multiply_in
from imprint.model.ropes import rotate_each_row_afresh
from imprint.model.view import View
from imprint.pack.row import Row


class RowModel(nn.Module):
    """Backbone and head in one forward, so that FSDP2 can wrap it.

    `model` is a transformers causal language model, with or without PEFT adapters.
    `follows_end` is False for models that cannot take several turns in a row: they are
    then given one turn at a time, in their own attention. `objective` is what training minimises;
    out of training mode the loss is the plain negative log-likelihood, whatever that is.
    """

    def __init__(self, model: nn.Module, follows_end: bool = True, objective: Objective = PLAIN):
        super().__init__()
        self.model = model
        self.follows_end = follows_end
        self.objective = objective
        rotate_each_row_afresh(self.base)
        self.held: torch.dtype | None = (
            None  # the type that frozen matrices are kept in, where it is a narrow one
        )
        self.own_head = False  # True where the model's logits are not what `logits` computes
        self.quantized: Quantized | None = None  # how the base is held in four bits, where it is
        self.noise_alpha = 0.0
        self._spread: Tensor | None = (
            None  # of the noise on each token's embedding [T], while a row is computed
        )

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
        """Loss of each prediction, in nats: float32 (or the model's wider type) [P].

        The gradient is made for Σ row.weight · loss: any multiple of that costs no more (see `pair_loss`).
        """
        if self.noise_alpha and self.training:
            view = View(row.end)
            index = torch.arange(row.num_tokens, device=row.end.device)
            self._spread = self.noise_alpha * (view.position + row.end - index).float().rsqrt()
        try:
            return self._loss(row)
        finally:
            self._spread = None

    def _loss(self, row: Row) -> Tensor:
        pairs = Pairs.of(row.source, row.target)
        objective = self.objective if self.training else PLAIN
        if self.own_head:
            out = self.base(**self._inputs(row), logits_to_keep=pairs.sources)
            return pairs.spread(dense_loss(out.logits[0], pairs.slot, pairs.target, objective))
        # each place once: its gradient is then written, not added in an order that threads decide
        hidden = self.hidden(row)[0].index_select(0, pairs.sources)
        return pair_loss(self.head, hidden, pairs, row.weight, objective)

    def hidden(self, row: Row) -> Tensor:
        """Last hidden states [1, T, H]."""
        hidden: Tensor = self.backbone(**self._inputs(row)).last_hidden_state
        return hidden

    @property
    def head(self) -> Head:
        """How the model's family makes logits of hidden states."""
        config = self.base.config.get_text_config()
        multiplier = getattr(config, "logit_scale", None) or 1.0  # cohere
        divisor = getattr(config, "logits_scaling", None) or 1.0  # granite
        cap = getattr(config, "final_logit_softcapping", None)  # gemma 2
        return Head(self.base.get_output_embeddings(), multiplier / divisor, cap)

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits [..., V] of hidden states [..., H], with the scaling that the model's family applies."""
        return self.head.logits(hidden)

    def logprobs(self, row: Row, plain: bool = False) -> Tensor:
        """Log-probability of every token at each source of a row, float32 or wider [P, V].

        As training computes it; `plain`: by the model's own forward and attention, for a row of one text.
        """
        if plain:
            with generating(self.model):
                logits = self.model(input_ids=row.tokens[None], use_cache=False).logits[0, row.source]
        elif self.own_head:
            logits = self.base(**self._inputs(row), logits_to_keep=row.source).logits[0]
        else:
            logits = self.logits(self.hidden(row)[0].index_select(0, row.source))
        wide = torch.promote_types(logits.dtype, torch.float32)
        logprobs: Tensor = logits.log_softmax(dim=-1, dtype=wide)
        return logprobs

    def add_noise(self, alpha: float) -> None:
        """NEFTune (arXiv 2310.05914): in training, uniform noise within alpha / √(L · H) on each embedding [H].

        L are the tokens of the turn, whatever lies in its row beside it: rows then hold whole turns that share
        nothing, so a token's place and what follows it within its `end` are all of them.
        """

        def noisy(module: nn.Module, _: Any, out: Tensor) -> Tensor:
            if self._spread is None:
                return out
            spread: Tensor = (self._spread / out.shape[-1] ** 0.5).to(out.dtype)
            return out + torch.empty_like(out).uniform_(-1, 1) * spread[None, :, None]

        self.base.get_input_embeddings().register_forward_hook(noisy)
        self.noise_alpha = alpha

    def hold_frozen(self, dtype: torch.dtype, exactly: bool = False) -> int:
        """Keep the frozen matrices in the type in which they are multiplied; bytes that this saves.

        Autocast rounds them to it in each row anyway, so no product changes. Embeddings stay as they
        are: what is looked up in them is added, not multiplied. `exactly`: only those that lose nothing,
        because they are saved with the model.
        """
        looked_up = {
            id(p) for m in self.modules() if isinstance(m, nn.Embedding) for p in m.parameters(recurse=False)
        }
        saved = 0
        for module in self.modules():
            if not (isinstance(module, nn.Linear) or type(module).__name__.endswith(("Conv1D", "Experts"))):
                continue
            for weight in module.parameters(recurse=False):
                if weight.dim() < 2 or weight.requires_grad or id(weight) in looked_up:
                    continue
                if hasattr(weight, "quant_state"):  # four bits: what is made of them in each row
                    multiply_in(module, dtype)
                    self.held = dtype
                elif weight.is_floating_point() and not (exactly and not fits_in(weight, dtype)):
                    saved += weight.numel() * (weight.element_size() - dtype.itemsize)
                    weight.data = weight.data.to(dtype)
                    self.held = dtype
        for parameter in self.parameters() if saved else ():
            # a mapped file of weights stays resident, all of it, for as long as one tensor of it is in use
            if parameter.is_floating_point() and parameter.dtype != dtype and parameter.device.type == "cpu":
                parameter.data = parameter.data.clone()
        return saved

    def generate(self, **inputs: Any) -> Tensor:
        """transformers' generation on the trained weights; ids int64 [B, prompt + new]."""
        device = next(self.parameters()).device.type
        with generating(self.model), torch.autocast(device, self.held, enabled=self.held is not None):
            out: Tensor = self.model.generate(**inputs)  # type: ignore[operator]
        return out

    def _inputs(self, row: Row) -> dict[str, Any]:
        inputs: dict[str, Any] = {"input_ids": row.tokens[None], "use_cache": False}
        if self.follows_end:
            view = View(row.end)
            inputs |= {"position_ids": view.position[None], "end": view}
        return inputs
