"""imprint against TRL's SFTTrainer: the same model, conversations, updates, optimizer and processor.

    make bench-peers                                    the peer's own environment, then everything
    python benchmarks/peers.py --quick                  where we stand, in two minutes: GSM8K, one round
    python benchmarks/peers.py --short                  a quarter of an hour: the peer's usual best, no scan
    python benchmarks/peers.py --workloads tools,four   only these (gsm8k alpaca system tools four lora)
    python benchmarks/peers.py --settings packed        only settings of the peer with this in their names
    python benchmarks/peers.py --ours-only --imprint attention=reference --imprint row_tokens=2048
    python benchmarks/peers.py --page                   write docs/speed.md and its plot from the JSON anew

For each workload: a short scan finds the peer's best splits of an update (a setting is broken off once an
update takes 1.6 x the best so far); then imprint and the peer's best settings run in turn, each in a
process of its own on two threads, and the round's ratio is that of their examples a second. The figure is
the median over the rounds. Both sides train the same tokens in the same updates, which is asserted, and
their losses after equal updates are compared, in bfloat16 and, for a few updates, in float32.
Nothing else should run on the machine. The last run's figures are in benchmarks/results/peers.json.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from _common import HERE, SHARED, write_result
from _run_sides import PEER, THREADS, Measured, Setting, Sides, call
from _workloads import WORKLOADS, Workload, model_folder

from imprint.recipe import Recipe

RESULT = HERE / "results/peers.json"
USUAL = Setting("packed", "bfloat16", 1, 2048)  # the best of most workloads, where no scan was made yet
DEFAULTS = Setting("padded", "bfloat16", 8, 2048, defaults=True)
SLOWER = 1.6
LONG = 30  # seconds
CHECKED = 3  # updates that are compared in float32
BARS = {"bfloat16": 1e-2, "float32": 1e-4}  # of the relative difference of the losses

# One precision first: whatever is best of a layout there is tried in the other one too.
SCAN = [
    USUAL,
    Setting("packed", "bfloat16", 1, 1024),
    Setting("packed", "bfloat16", 2, 2048),
    *(Setting("padding_free", "bfloat16", batch) for batch in (1, 2, 4, 8, 16, 32)),
    *(Setting("padded", "bfloat16", batch) for batch in (1, 2, 4, 8, 16, 32)),
]


def shown(measured: Measured) -> str:
    """One line of figures."""
    failed = measured.get("failed") or measured.get("too_slow")
    if failed:
        return failed
    return (
        f"{measured['examples_per_second']:7.2f} examples/s  {measured['trained_per_second']:7,.0f} trained tokens/s  "
        f"{measured['computed_over_needed']:5.2f} x needed tokens  {measured['needed_flops'] / 1e9:6.1f} GFLOP/s  "
        f"{measured['beyond_bytes'] / 1e9:5.2f} GB beyond  loss {measured['losses'][-1]:.5f}"
    )


def scan(workload: Workload, model: Path, wanted: str) -> list[Measured]:
    """The peer's settings, each with two updates; a faster one makes the others give up earlier."""
    found: list[Measured] = []
    with Sides(workload, model, 2) as sides:
        longest = max(one.longest for one in sides.needed)  # a packed row that is shorter would cut it
        for setting in [one for one in SCAN if wanted in one.name and (one.row or longest) >= longest]:
            found.append(scanned(sides, setting, found))
        for layout in ("padded", "padding_free", "packed"):
            best = best_of(found, {layout})
            if best is not None:
                other = Setting(**{**best["setting"], "precision": "float32"})
                if wanted in other.name:
                    found.append(scanned(sides, other, found))
    return found


def scanned(sides: Sides, setting: Setting, before: list[Measured]) -> Measured:
    best = min((one["seconds_per_update"] for one in before if "seconds_per_update" in one), default=None)
    updates = 1 if best and best > LONG else None  # long updates need none before them to warm up
    measured = sides.peer(setting, limit=best and SLOWER * best, updates=updates)
    print(f"  scan {setting.name:40}{shown(measured)}", flush=True)
    return {"name": setting.name, "setting": vars(setting), **measured}


def best_of(scans: list[Measured], layouts: set[str]) -> Measured | None:
    """The fastest of some layouts."""
    ran = [one for one in scans if one["setting"]["layout"] in layouts and "seconds_per_update" in one]
    return min(ran, key=lambda one: one["seconds_per_update"], default=None)


def compare(sides: Sides, peers: dict[str, Setting], rounds: int) -> dict[str, list[Measured]]:
    """Runs of `ours` and of each peer, in turn."""
    runs: dict[str, list[Measured]] = {"ours": [], **{name: [] for name in peers}}
    for _ in range(rounds):
        runs["ours"].append(sides.ours())
        print(f"  {'imprint':45}{shown(runs['ours'][-1])}", flush=True)
        for name, setting in peers.items():
            runs[name].append(sides.peer(setting))
            print(f"  TRL  {setting.name:40}{shown(runs[name][-1])}", flush=True)
            if "failed" in runs[name][-1]:
                raise SystemExit(f"TRL failed where it ran before: {runs[name][-1]['failed']}")
    return runs


def in_float32(workload: Workload, model: Path, changes: list[str]) -> Measured:
    """The losses of both sides in float32, the peer's conversations one by one."""
    with Sides(workload, model, CHECKED, changes) as sides:
        ours = sides.ours(precision="float32")
        peer = sides.peer(Setting("padded", "float32", 1))
    return {"ours": ours["losses"], "peer": peer.get("losses"), "failed": peer.get("failed")}


def apart(ours: list[float], peer: list[float]) -> float:
    """Largest relative difference between the losses of equal updates."""
    return max(abs(a - b) / abs(b) for a, b in zip(ours, peer, strict=True))


def summary(workload: Workload, runs: dict[str, list[Measured]]) -> dict[str, Any]:
    """Medians over the rounds, the ratio to the peer's best, and the differences of the losses."""
    keys = (
        "seconds_per_update",
        "examples_per_second",
        "trained_per_second",
        "computed_over_needed",
        "needed_flops",
        "beyond_bytes",
    )
    sides = {
        name: {
            **{key: statistics.median(run[key] for run in some) for key in keys},
            "final_loss": some[0]["losses"][-1],
        }
        for name, some in runs.items()
    }
    peers = {name: side for name, side in sides.items() if name.startswith("best")}
    made: dict[str, Any] = {"goal": workload.goal, "title": workload.title, "sides": sides}
    if peers:
        best = max(peers, key=lambda name: peers[name]["examples_per_second"])
        pairs = zip(runs["ours"], runs[best], strict=True)
        ratios = [a["examples_per_second"] / b["examples_per_second"] for a, b in pairs]
        made |= {"best": best, "ratios": ratios, "ratio": statistics.median(ratios)}
        made["memory_ratio"] = sides["ours"]["beyond_bytes"] / peers[best]["beyond_bytes"]
        made["loss_apart"] = {
            name: apart(runs["ours"][0]["losses"], runs[name][0]["losses"]) for name in peers
        }
    return made


def full(workload: Workload, model: Path, given: argparse.Namespace) -> dict[str, Any]:
    """Everything of one workload."""
    scans = scan(workload, model, given.settings)
    chosen = {
        "best unpacked": best_of(scans, {"padded"}),
        "best packed": best_of(scans, {"padding_free", "packed"}),
    }
    peers = {name: Setting(**one["setting"]) for name, one in chosen.items() if one is not None}
    if not peers:
        raise SystemExit(f"no setting of the peer ran: {[one.get('failed', one['name']) for one in scans]}")
    with Sides(workload, model, 1 + workload.updates, given.imprint) as sides:
        runs = compare(sides, peers, given.rounds)
        made = summary(workload, runs)
        best = peers[made["best"]]
        for name, setting in (("default", DEFAULTS), ("kept blocks", replace(best, kept_blocks=True))):
            measured = sides.peer(setting, updates=1 + max(1, workload.updates // 2))
            made[name] = {"setting": vars(setting), **measured}
            print(f"  TRL  {setting.name:40}{shown(measured)}", flush=True)
    made["settings"] = {name: setting.name for name, setting in peers.items()}
    made["scan"], made["runs"] = scans, runs
    made["float32"] = in_float32(workload, model, given.imprint)
    if made["float32"]["peer"]:
        made["float32"]["apart"] = apart(made["float32"]["ours"], made["float32"]["peer"])
    return made


def quick(workload: Workload, model: Path, given: argparse.Namespace) -> None:
    """One round of three updates against the peer's best setting of the last scan; nothing is kept."""
    known = read_result()["workloads"].get(workload.name)
    setting = (
        Setting(**best_of(known["scan"], {"padded", "padding_free", "packed"})["setting"]) if known else USUAL
    )
    peers = {} if given.ours_only else {"best": setting}
    with Sides(workload, model, 3, given.imprint) as sides:
        made = summary(workload, compare(sides, peers, given.rounds))
    if peers:
        print(
            f"  {workload.name}: {made['ratio']:.2f} x TRL (goal {workload.goal:g}), memory beyond "
            f"{made['memory_ratio']:.2f} x (goal 0.5), losses apart {made['loss_apart']['best']:.1e}"
        )
    elif known:
        ours = made["sides"]["ours"]["examples_per_second"]
        theirs = known["sides"][known["best"]]["examples_per_second"]
        print(f"  {workload.name}: {ours / theirs:.2f} x TRL as last measured (goal {workload.goal:g})")


def short(workload: Workload, model: Path, given: argparse.Namespace) -> dict[str, Any]:
    """Rounds against the setting that is usually the peer's best, without a scan, its defaults or float32."""
    with Sides(workload, model, 1 + min(workload.updates, 2), given.imprint) as sides:
        runs = compare(sides, {"best packed": USUAL}, given.rounds)
    made = summary(workload, runs)
    return {**made, "short": True, "settings": {"best packed": USUAL.name}, "scan": [], "runs": runs} | {
        name: {} for name in ("default", "kept blocks", "float32")
    }


def read_result() -> dict[str, Any]:
    made: dict[str, Any] = {"workloads": {}}
    return json.loads(RESULT.read_text(encoding="utf-8")) if RESULT.is_file() else made


def verdict(name: str, made: dict[str, Any]) -> bool:
    """Say how a workload stands to its goals; whether the losses agree."""
    agree = max(made["loss_apart"].values(), default=0.0) <= BARS["bfloat16"]
    exact = made["float32"].get("apart", 0.0) <= BARS["float32"]
    print(
        f"  {name}: {made['ratio']:.2f} x TRL's best ({made['settings'][made['best']]}; goal {made['goal']:g}), "
        f"memory beyond {made['memory_ratio']:.2f} x (goal 0.5); the losses "
        f"{'agree' if agree and exact else 'DO NOT AGREE'}: {made['loss_apart']}, "
        f"float32 {made['float32'].get('apart')}",
        flush=True,
    )
    return agree and exact


def measure(chosen: list[Workload], model: Path, given: argparse.Namespace) -> int:
    """The whole measurement, kept after each workload; 1 where losses do not agree."""
    result, failed = read_result(), 0
    for workload in chosen:
        print(f"{workload.title}:", flush=True)
        made = (short if given.short else full)(workload, model, given)
        made["machine"] = json.loads(call("_needed.py", THREADS).splitlines()[-1])
        result["workloads"][workload.name] = made
        result["versions"] = {"trl": "1.16.0", **made["runs"]["ours"][0]["versions"]}
        write_result("peers", result)
        failed |= not verdict(workload.name, made)
    from _speed_page import write_page

    write_page()
    return int(failed)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="three updates, one round, nothing kept")
    parser.add_argument("--short", action="store_true", help="no scan of the peer: packed rows in bfloat16")
    parser.add_argument("--workloads", default="", help="names, with commas between them")
    parser.add_argument(
        "--settings", default="", help="only the peer's settings that have this in their names"
    )
    parser.add_argument("--ours-only", action="store_true", help="as --quick, without the peer")
    parser.add_argument("--imprint", action="append", default=[], metavar="KEY=VALUE", help="of our recipe")
    parser.add_argument("--rounds", type=int, default=0, help="3, with --quick 1")
    parser.add_argument("--page", action="store_true", help="only write docs/speed.md from the last figures")
    given = parser.parse_args()
    given.quick |= given.ours_only
    given.rounds = given.rounds or (1 if given.quick else 3)
    if given.page:
        from _speed_page import write_page

        write_page()
        return 0
    if not SHARED.is_dir() or not (PEER.is_file() or given.ours_only):
        print(
            "skipped: " + ("make bench-peers makes the peer's environment" if SHARED.is_dir() else "no data")
        )
        return 0
    names = given.workloads.split(",") if given.workloads else ["gsm8k"] if given.quick else list(WORKLOADS)
    call("_make_model.py")
    for workload in (chosen := [WORKLOADS[name] for name in names]):
        for key in [key for key in workload.recipe if key not in Recipe.model_fields]:
            print(f"{workload.name}: this imprint has no {key}, so its steps are drawn without it")
            del workload.recipe[key]
    model = model_folder()
    if given.quick:
        for workload in chosen:
            print(f"{workload.title}:", flush=True)
            quick(workload, model, given)
        return 0
    return measure(chosen, model, given)


if __name__ == "__main__":
    sys.exit(main())
