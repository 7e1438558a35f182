"""Whether a device can be computed on."""

from __future__ import annotations

import torch

from imprint.errors import ModelError


def check_device(name: str) -> None:
    """ModelError for a device that torch does not know, or that this machine does not have."""
    try:
        usable = torch.zeros(1, device=name).tolist() == [0.0]
        found = "it holds no numbers"
    except (RuntimeError, AssertionError, NotImplementedError, ValueError) as error:
        usable, found = False, str(error).partition("\n")[0].partition(": ")[0]
    if not usable:
        raise ModelError(
            "this device cannot be used",
            where=f"device={name}",
            found=found,
            expected="cpu, cuda, cuda:1, mps … as torch names what this machine has",
            fix="leave it out",
        )
