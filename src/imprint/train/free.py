"""How much memory this process can still get."""

from __future__ import annotations

import os
from pathlib import Path

import torch


def free_bytes(device: torch.device, system: Path = Path("/")) -> int | None:
    """Memory that this process can still get: of the device, or of the machine and its control group.

    Processes on one machine share it alike. None where the system does not say.
    """
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    found = [n for n in (_machine_free(system), _group_free(system)) if n is not None]
    return min(found) // int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if found else None


def _machine_free(system: Path) -> int | None:
    """MemAvailable: free, or in caches that the kernel would give up. Elsewhere than on Linux, half of all memory."""
    try:
        lines = (system / "proc/meminfo").read_text().splitlines()
        return next(int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
            return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
        return None


def _group_free(system: Path) -> int | None:
    """What the control groups of this process leave of their limits, of both versions; None without a limit."""
    try:
        lines = (system / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return None
    found = []
    for _, kinds, name in (line.split(":", 2) for line in lines):
        if kinds and "memory" not in kinds.split(","):
            continue
        root = system / "sys/fs/cgroup" / ("memory" if kinds else "")
        limit, used = (
            ("memory.limit_in_bytes", "memory.usage_in_bytes") if kinds else ("memory.max", "memory.current")
        )
        place = root / name.strip("/")
        for folder in (place, *place.parents):
            found.append(_left(folder, limit, used))
            if folder == root:
                break
    return min((left for left in found if left is not None), default=None)


def _left(folder: Path, limit: str, used: str) -> int | None:
    """What one control group leaves; what it caches of files can be given up."""
    try:
        most = (folder / limit).read_text().strip()
        facts = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
        held = int((folder / used).read_text()) - int(facts.get("inactive_file", 0))
    except OSError:
        return None
    return None if most == "max" or int(most) >= 1 << 60 else max(0, int(most) - held)
