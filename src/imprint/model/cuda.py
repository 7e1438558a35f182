"""What a run asks of CUDA before its first operation there."""

from __future__ import annotations

import os

import torch

WORKSPACE = ":4096:8"  # one of the two settings with which cuBLAS sums in one fixed order


def prepare_cuda() -> None:
    """The same sums in the same order each time, and sums of products in float32.

    A resumed run then equals the uninterrupted one on the same machine. An operation that has no such form
    is told of once by torch and run as it is. To be called before CUDA is first used by this process.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", WORKSPACE)
    torch.use_deterministic_algorithms(True, warn_only=True)
    # nothing is read before it is written
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False
