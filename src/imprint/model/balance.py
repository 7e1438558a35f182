"""Load balancing of mixtures of experts, over the whole step: how it is cut into rows changes nothing.

The loss is that of the Switch Transformer (Fedus, Zoph & Shazeer 2021, equations 4 to 6), for top-k as in
transformers' `load_balancing_loss_func`: E · Σ_e f_e · P_e, with f_e how often expert e is chosen and P_e
its mean probability, both taken over all layers together; k where the load is even. Tokens count by the
weight of the predictions made from them, so shared, packed and separate rows count the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from imprint.errors import ModelError
from imprint.model.rowmodel import RowModel
from imprint.pack.row import Row

OWN_BIAS = ("correction_bias", "expert_bias")  # buffers by which a family balances without a loss


class Balance:
    """Reads what a model's routers decide, by forward hooks that are silent outside `reading`."""

    def __init__(self, model: RowModel):
        """ModelError where the model has no routers that can be read, or balances them by a bias of its own."""
        self._routers = routers(model.base)
        if not self._routers:
            raise ModelError(
                "this model has no routers whose load could be balanced",
                where="balance_loss",
                found=f"{model.base.config.model_type}: transformers names no router in it",
                expected="a mixture of experts whose router scores transformers can record",
                fix="balance_loss=0",
            )
        if biased := balances_by_bias(model.base):
            raise ModelError(
                "this model balances its experts by a bias of its own, not by a loss",
                where="balance_loss",
                found=f"{model.base.config.model_type}: {biased}, which training leaves as it is",
                fix="balance_loss=0",
            )
        self._seen: list[tuple[Tensor, Tensor]] | None = None
        for module, index in self._routers:
            module.register_forward_hook(self._hook(index))

    @property
    def num_routers(self) -> int:
        return len(self._routers)

    def _hook(self, index: int) -> Any:
        def record(module: nn.Module, inputs: Any, output: Any) -> None:
            if self._seen is None:  # outside of a reading, or made again in the backward pass
                return
            scores = output[index] if isinstance(output, tuple) else output
            scores = scores.reshape(-1, scores.shape[-1])
            self._seen.append((scores, _chosen(module, output, scores)))

        return record

    @contextmanager
    def reading(self) -> Iterator[Reading]:
        """Inside this block, one forward pass is read."""
        seen: list[tuple[Tensor, Tensor]] = []
        self._seen = seen
        try:
            yield Reading(seen)
        finally:
            self._seen = None

    def measure(self, model: nn.Module, rows: Sequence[Row], device: torch.device) -> Tensor:
        """Of these rows, the sums of `Reading.loads` and of `Reading.probabilities`: float64 [2, E].

        One pass without gradients, with the noise that the pass for the gradients will have.
        """
        sums: list[Tensor] = []
        cuda = [device] if device.type == "cuda" else []
        with torch.no_grad(), torch.random.fork_rng(devices=cuda):
            for row in rows:
                row = row.to(device)
                with self.reading() as read:
                    model(row)
                weight = row.weight.to(_wide(row.weight))
                sums.append(
                    torch.stack([read.loads(weight, row.source), read.probabilities(weight, row.source)])
                )
        return torch.stack(sums).sum(dim=0)


class Reading:
    """What the routers decided in one forward pass: of each layer scores [T, E] and experts chosen [T, k].

    Both sums are taken over predictions: their weights [P] and the places that they are made from [P].
    """

    def __init__(self, seen: list[tuple[Tensor, Tensor]]):
        self._seen = seen

    def loads(self, weight: Tensor, source: Tensor) -> Tensor:
        """Σ weight · how often each expert is chosen, averaged over layers [E]; without gradient."""
        counted = [
            weight.new_zeros(scores.shape[1]).index_add_(
                0, chosen[source].flatten(), weight.repeat_interleave(chosen.shape[1])
            )
            for scores, chosen in self._layers()
        ]
        return torch.stack(counted).mean(dim=0)

    def probabilities(self, weight: Tensor, source: Tensor) -> Tensor:
        """Σ weight · probability of each expert, averaged over layers [E]: linear in the predictions."""
        parts = []
        for scores, _ in self._layers():
            at = scores.index_select(0, source)
            at = at.to(torch.promote_types(at.dtype, torch.float32)).softmax(dim=-1)
            parts.append((weight[:, None] * at).sum(dim=0, dtype=_wide(at)))
        return torch.stack(parts).mean(dim=0)

    def _layers(self) -> list[tuple[Tensor, Tensor]]:
        assert self._seen, "the forward pass went through no router"
        return self._seen


def routers(base: Any) -> list[tuple[nn.Module, int]]:
    """The routers of a transformers model, and where their scores stand in what they return.

    Each family names them for `output_router_logits`; other models have none as far as can be told.
    """
    found: dict[int, tuple[nn.Module, int]] = {}
    for owner in base.modules():
        recorders = getattr(type(owner), "_can_record_outputs", None) or {}
        named = recorders.get("router_logits", [])
        for recorder in named if isinstance(named, list) else [named]:
            kind = getattr(recorder, "target_class", recorder)
            below = getattr(recorder, "layer_name", None)
            if not isinstance(kind, type):
                continue
            modules: dict[str, nn.Module] = dict(owner.named_modules())
            for name, module in modules.items():
                if isinstance(module, kind) and (below is None or f".{below}." in f".{name}."):
                    found[id(module)] = (module, int(getattr(recorder, "index", 1)))
    return list(found.values())


def balances_by_bias(base: Any) -> str | None:
    """The name of a bias that shifts which experts are chosen (DeepSeek-V3 and its kin), if there is one."""
    tensors = [*base.named_buffers(), *base.named_parameters()]
    return next((name for name, _ in tensors if name.endswith(OWN_BIAS)), None)


def routing_note(base: Any, coefficient: float) -> list[str]:
    """What the log says of a model with routers; nothing for one without."""
    if not (count := len(routers(base))):
        return []
    config = base.config.get_text_config()
    asked = getattr(config, "router_aux_loss_coef", None)
    if coefficient:
        return [
            f"mixture of experts: {count} routers are balanced over the whole step (balance_loss="
            f"{coefficient:g}); that takes one more forward pass"
        ]
    aside = f", though the model's config names a coefficient of {asked:g}" if asked else ""
    return [f"mixture of experts: the load of its {count} routers is not balanced (balance_loss=0){aside}"]


def balance_loss(loads: Tensor, probabilities: Tensor) -> Tensor:
    """E · Σ_e f_e · P_e of load fractions [E] and mean probabilities [E]: [] (k where the load is even)."""
    return len(loads) * (loads * probabilities).sum()


def _chosen(module: nn.Module, output: Any, scores: Tensor) -> Tensor:
    """int64 [T, k]: the experts that the router says it chose, else those of the highest scores."""
    for part in output if isinstance(output, tuple) else ():
        if isinstance(part, Tensor) and part.ndim == 2 and not part.is_floating_point():
            return part.detach()
    return scores.detach().topk(int(getattr(module, "top_k", 1)), dim=-1).indices


def _wide(tensor: Tensor) -> torch.dtype:
    return torch.float32 if tensor.device.type == "mps" else torch.float64
