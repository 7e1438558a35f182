"""What `auto` stands for: each such setting is resolved once, when the run is created, with a reason.

No torch here: the model is known by its config.json, the machine by what the system says of
itself. `layout`, `attention` and `row_tokens` stay auto, because only checks on the loaded model
decide them.
"""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from imprint.errors import RecipeError
from imprint.extras import find
from imprint.meaning import DATA_SUFFIXES, has_adapters
from imprint.model_facts import ModelFacts
from imprint.recipe import Recipe

LATER = "decided when the model is there"
# Most tokens of a row: on a processor, what its caches still hold; on a GPU, what keeps it busy.
ROW_TOKENS = {"cpu": 4096, "cuda": 65536, "mps": 8192}
FALLBACK_LENGTH = 2048
REPLAY_LENGTH = 1024  # tokens of a piece of replay, at most

Device = Literal["cpu", "cuda", "mps"]


class Decision(NamedTuple):
    """What an `auto` became, and why."""

    key: str
    value: Any
    reason: str


@dataclass(frozen=True, slots=True)
class Machine:
    """The devices and CPU cores that this process may use."""

    cuda: bool
    mps: bool
    cpu_bfloat16: str  # the processor's feature that multiplies bfloat16, or nothing
    cores: int
    cuda_without_bfloat16: str = ""  # the CUDA device that only emulates it, or nothing
    cpu_float16: str = ""  # the processor's feature that multiplies float16, or nothing

    def has(self, device: str) -> bool:
        return device == "cpu" or (device == "cuda" and self.cuda) or (device == "mps" and self.mps)

    @property
    def best(self) -> Device:
        return "cuda" if self.cuda else "mps" if self.mps else "cpu"


BFLOAT16 = ("amx_bf16", "avx512_bf16")  # what a processor calls it that computes in bfloat16
NO_BFLOAT16 = f"this processor has neither {BFLOAT16[0]} nor {BFLOAT16[1]}"


def detect_machine(environment: Mapping[str, str] = os.environ, system: Path = Path("/")) -> Machine:
    """What this process can use, without asking torch; `system` is the root of the file system."""
    hidden = environment.get("CUDA_VISIBLE_DEVICES", "all").strip() in ("", "-1", "NoDevFiles")
    driver = any(
        (system / name).exists() for name in ("proc/driver/nvidia/version", "dev/nvidia0", "dev/dxg")
    )
    try:
        flags = set((system / "proc/cpuinfo").read_text(errors="replace").split())
    except OSError:
        flags = set()
    feature = next((name for name in BFLOAT16 if name in flags), "")
    half = next((name for name in ("amx_fp16", "avx512_fp16") if name in flags), "")
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    mps = sys.platform == "darwin" and platform.machine() == "arm64"
    cuda = driver and not hidden
    old = old_cuda_device(_nvidia_smi()) if cuda else ""
    return Machine(cuda, mps, feature, cores, cuda_without_bfloat16=old, cpu_float16=half)


def _nvidia_smi() -> str:
    """What the driver's own tool says of the devices, a line each: `Tesla T4, 7.5`; nothing where it is missing."""
    command = ["nvidia-smi", "--query-gpu=name,compute_cap", "--format=csv,noheader"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return ""


def old_cuda_device(listed: str) -> str:
    """The first of the devices `listed` by nvidia-smi whose compute capability is below 8.0, where bfloat16 begins."""
    for line in listed.splitlines():
        name, _, capability = line.rpartition(",")
        if re.fullmatch(r"\s*\d+\.\d+\s*", capability) and float(capability) < 8:
            return f"{name.strip()}, compute capability {capability.strip()}"
    return ""


def resolve_auto(
    recipe: Recipe,
    *,
    model_facts: ModelFacts | None,
    world_size: int = 1,
    machine: Machine | None = None,
) -> tuple[Recipe, list[Decision]]:
    """The recipe with its autos replaced, and what was decided, each with the reason.

    What cannot be known yet stays auto, and its decision says when it will be: the learning rate and
    max_length without the model; the intervals, layout, attention and row_tokens always.
    RecipeError if an explicit device does not exist. `world_size` is the number of processes.
    """
    machine = machine or detect_machine()
    if recipe.method == "qlora":
        find("bitsandbytes", "qlora", "method=qlora")
    if recipe.optimizer == "adamw_8bit":
        find("bitsandbytes", "qlora", "optimizer=adamw_8bit")
    device = _device(recipe, machine)
    name: Device = device.value if recipe.device == "auto" else recipe.device
    _attention(recipe, name)
    decisions = [
        _learning_rate(recipe, model_facts),
        _max_length(model_facts),
        *([replay_length(recipe, model_facts)] if recipe.replay else []),
        device,
        _precision(name, machine),
        _threads(machine, world_size),
        Decision(
            "row_tokens", "auto", f"measured on the loaded model: what has room, up to {ROW_TOKENS[name]:,}"
        ),
        Decision("output", free_output(recipe), "runs/MODEL-DATA, the first name that is not taken"),
        Decision(
            "layout", "auto", "decided by checks on the loaded model: the first of shared, packed, separate"
        ),
        Decision("attention", "auto", "decided by checks on the loaded model"),
        Decision("validate_every", "auto", "decided when the steps are counted"),
        Decision("save_every", "auto", "decided when the steps are counted"),
    ]
    taken = [decision for decision in decisions if getattr(recipe, decision.key) == "auto"]
    return _with(recipe, taken), taken


def resolve_intervals(recipe: Recipe, total_steps: int) -> tuple[Recipe, list[Decision]]:
    """The recipe with validate_every and save_every in steps, and why they are so."""
    nothing = recipe.validation == 0 and recipe.samples == 0 and not recipe.replay
    tenth = max(1, round(total_steps / 10))
    every = max(1, total_steps) if nothing else tenth
    reason = (
        "nothing to validate and no samples: once, at the end"
        if nothing
        else f"a tenth of {total_steps} steps"
    )
    decisions = []
    if recipe.validate_every == "auto":
        decisions.append(Decision("validate_every", every, reason))
    else:
        every = recipe.validate_every
    if recipe.save_every == "auto":
        save, why = (tenth, f"a tenth of {total_steps} steps") if nothing else (every, "at each validation")
        decisions.append(Decision("save_every", save, why))
    return _with(recipe, decisions), decisions


def free_output(recipe: Recipe, taken: Path = Path(".")) -> str:
    """`runs/MODEL-DATA`, or the first of `-2`, `-3` … that does not exist below `taken`."""
    source = Path(recipe.data[0].path)
    stem = source.name
    while Path(stem).suffix.lower() in DATA_SUFFIXES:
        stem = Path(stem).stem
    model = Path(recipe.model)
    name = re.sub(r"[^\w.-]+", "-", f"{model.name or model.resolve().name}-{stem}").strip("-.") or "run"
    number, path = 1, Path("runs") / name
    while (taken / path).exists():
        number += 1
        path = Path("runs") / f"{name}-{number}"
    return path.as_posix()


def _with(recipe: Recipe, decisions: list[Decision]) -> Recipe:
    """The recipe with these values; validated like any other, unlike pydantic's own copy."""
    if not decisions:
        return recipe
    changed = {decision.key: decision.value for decision in decisions}
    return Recipe.model_validate({**recipe.model_dump(), **changed})


def _learning_rate(recipe: Recipe, facts: ModelFacts | None) -> Decision:
    """Full: 2e-5 at width 4096, in inverse proportion to the width; adapters by what is known of each kind.

    lora    ten times that of full ("LoRA Without Regret", Thinking Machines, 2025)
    qlora   as lora: its paper used 2e-4 at width 4096 (arXiv 2305.14314, table 9)
    dora    half of lora's: its paper trained LLaMA-7B at 1e-4 to 2e-4 where LoRA had 3e-4 (arXiv 2402.09353)
    pissa   that of full: it begins with the strongest directions, not with nothing (arXiv 2404.02948 used 2e-5 at 7B)
    rslora  its scale is √rank times as large, and so is each update (arXiv 2312.03732)

    adamw_8bit replaces adamw as it is (arXiv 2110.02861), and muon's updates are scaled to the size
    of adamw's, so that its rates can be kept (arXiv 2502.16982, section 2.2).
    """
    if facts is None:
        return Decision("learning_rate", "auto", LATER)
    if facts.width is None:
        base, why = 2e-5, "config.json names no width, so that of width 4096"
    else:
        base, why = 2e-5 * 4096 / facts.width, f"width {facts.width}: 2e-05 x 4096 / {facts.width}"
    low, high, lora = 1e-5, 1e-3, recipe.lora
    if not has_adapters(recipe):
        rate, why = base, f"{why}, for method full"
    elif lora.init == "pissa":
        rate, why = base, f"{why}, as for method full: PiSSA begins with the strongest directions"
    else:
        low, high = 1e-4, 5e-3
        rate, why = 10 * base, f"{why}, and ten times that for method {recipe.method}"
    rate = min(max(rate, low), high)
    if lora.dora and has_adapters(recipe):
        rate, why = rate / 2, f"{why}, half of it for DoRA"
    if lora.scaling == "rslora" and has_adapters(recipe):
        rate, why = rate / lora.rank**0.5, f"{why}, over √{lora.rank} for rslora's larger scale"
    if recipe.optimizer == "muon":
        why += "; muon's updates have the size of adamw's"
    return Decision("learning_rate", float(f"{rate:.2g}"), f"{why} (within set bounds, two digits)")


def _max_length(facts: ModelFacts | None) -> Decision:
    if facts is None:
        return Decision("max_length", "auto", LATER)
    if facts.context is None:
        return Decision("max_length", FALLBACK_LENGTH, "config.json names no context length")
    return Decision("max_length", facts.context, "the model's context")


def replay_length(recipe: Recipe, facts: ModelFacts | None) -> Decision:
    """How long the pieces of replay are where the recipe does not say it."""
    longest = _max_length(facts).value if recipe.max_length == "auto" else recipe.max_length
    if longest == "auto":
        return Decision("replay_length", "auto", LATER)
    if longest <= REPLAY_LENGTH:
        return Decision("replay_length", max(2, longest), "max_length")
    return Decision("replay_length", REPLAY_LENGTH, "about two pages: a piece counts as one conversation")


def _device(recipe: Recipe, machine: Machine) -> Decision:
    if recipe.device != "auto" and not machine.has(recipe.device):
        raise RecipeError(
            f"there is no {recipe.device} device",
            found=f"device: {recipe.device}",
            expected="a device of this machine: "
            + " or ".join(d for d in ("cuda", "mps", "cpu") if machine.has(d)),
            fix=f"set device to auto or {machine.best}",
        )
    reasons = {
        "cuda": "a CUDA device is there",
        "mps": "no CUDA device: training on the Apple GPU",
        "cpu": "no CUDA device: training on the CPU",
    }
    return Decision("device", machine.best, reasons[machine.best])


def _attention(recipe: Recipe, device: Device) -> None:
    """RecipeError where the attention asked for has kernels on other devices only."""
    if recipe.attention in ("flex", "varlen") and device != "cuda":
        raise RecipeError(
            f"attention={recipe.attention} needs a CUDA device",
            found=f"device: {device}",
            expected="attention: auto, tiles or reference",
            fix="set attention to auto: it takes what is best on each device",
        )


def _precision(device: Device, machine: Machine) -> Decision:
    if device == "cuda" and machine.cuda_without_bfloat16:
        why = f"{machine.cuda_without_bfloat16}, does not multiply in bfloat16"
        return Decision("precision", "float16", f"{why}; the loss is scaled")
    if device != "cpu":
        return Decision("precision", "bfloat16", f"{device} multiplies in bfloat16")
    if machine.cpu_bfloat16:
        return Decision("precision", "bfloat16", f"this processor has {machine.cpu_bfloat16}")
    return Decision("precision", "float32", NO_BFLOAT16)


def emulated(recipe: Recipe, machine: Machine | None = None) -> str:
    """What to say where the precision that was asked for is not the device's own: it trains, but slowly."""
    machine, kind = machine or detect_machine(), recipe.precision
    if recipe.device == "cuda" and kind == "bfloat16" and machine.cuda_without_bfloat16:
        why = f"{machine.cuda_without_bfloat16}, does not multiply in it; precision=float16 is faster here"
    elif recipe.device == "cpu" and kind == "bfloat16" and not machine.cpu_bfloat16:
        why = f"{NO_BFLOAT16}; precision=float32 is faster here"
    elif recipe.device == "cpu" and kind == "float16" and not machine.cpu_float16:
        why = "this processor has neither amx_fp16 nor avx512_fp16; precision=float32 is faster here"
    else:
        return ""
    return f"precision={kind} is emulated: {why}"


def _threads(machine: Machine, world_size: int) -> Decision:
    """The cores of this machine, shared out among its own processes (torchrun says how many)."""
    local = int(os.environ.get("LOCAL_WORLD_SIZE", world_size))
    shared = f", shared by {local} processes" if local > 1 else ""
    return Decision("threads", max(1, machine.cores // local), f"{machine.cores} usable cores{shared}")
