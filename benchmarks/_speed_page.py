"""docs/speed.md and docs/speed.png, made from the figures in benchmarks/results/."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from _common import HERE

DOCS = HERE.parent / "docs"
MEMORY_GOAL = 0.5
USUAL = "packed 2048 bfloat16"  # what a short run measures of the peer

HEAD = """\
# Speed

imprint against TRL's SFTTrainer on one machine, in one run: the same model (a Llama of 19.4 M parameters with
random weights), the same 32 conversations in each update, the same AdamW, two threads. The sides run in turn,
each in a process of its own; every figure is a median over rounds. Both train the same tokens, which the
benchmark asserts, and come to the same loss. Made by `make bench-peers`; all figures, the peer's other settings
and why some did not run are in `benchmarks/results/peers.json`.

![examples a second, imprint over TRL's best setting](speed.png)

"""

SHORT = """
The rows with — were measured in a short run (`python benchmarks/peers.py --short`): two rounds of two updates, the
peer packed into rows of 2,048 in bfloat16; its other settings, its defaults and float32 were not measured anew. {scans}
"""

NOTES = """
- *ratio*: examples a second over those of TRL's best setting, found by a scan over padded, padding-free and
  packed layouts, splits of the update (padded 4 x 8: eight passes of four conversations; packed 2048: rows of so
  many tokens, one a pass) and both precisions. TRL's *default* is its default layout, precision and
  gradient checkpointing, with the same 32 conversations in an update. *Blocks kept*: its best setting once more,
  with glibc told by environment variables to keep large blocks of memory instead of giving them back, which
  TRL's documents do not ask for; it is no part of the ratio.
- *computed / needed*: tokens that went through the model over those of the ideal prefix tree of each update, in
  which what conversations begin with alike stands once.
- *GFLOP/s*: operations that the update needs (matrices, attention pairs that are seen, the head on trained
  tokens) over its time, optimizer included; the share is of the measured rate of a large matrix product.
- *memory beyond*: the process's peak less what it held after its imports and less weights, gradients and AdamW's
  moments in float32.
- *losses apart*: largest relative difference between both sides' losses over the updates; in float32 with TRL's
  conversations one by one.
"""


def read(name: str) -> dict[str, Any] | None:
    path = HERE / f"results/{name}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def table(head: str, rows: list[list[str]]) -> str:
    lines = [head, "|" + "---|" * (head.count("|") - 1), *("| " + " | ".join(row) + " |" for row in rows)]
    return "\n".join(lines) + "\n"


def ratios(workloads: dict[str, Any]) -> str:
    rows = []
    for made in workloads.values():
        ours, best = made["sides"]["ours"], made["sides"][made["best"]]
        default, kept = (made[name].get("examples_per_second") for name in ("default", "kept blocks"))
        spread = f"{min(made['ratios']):.2f} to {max(made['ratios']):.2f}"
        rows.append(
            [
                made["title"],
                f"≥ {made['goal']:g}",
                f"**{made['ratio']:.2f}** ({spread})",
                f"{ours['examples_per_second']:.2f}",
                f"{best['examples_per_second']:.2f} ({made['settings'][made['best']]})",
                f"{default:.2f}" if default else "—",
                f"{kept:.2f}" if kept else "—",
                f"{made['memory_ratio']:.2f}",
            ]
        )
    return table(
        "| workload | goal | ratio | imprint, examples/s | TRL's best | TRL's default | TRL's best, blocks kept "
        f"| memory beyond, ratio (goal ≤ {MEMORY_GOAL}) |",
        rows,
    )


def said(apart: float | None, exact: float | None) -> str:
    """How far the losses are apart, in bfloat16 and, where that was measured, in float32."""
    if apart is None:
        return ""
    return f"{apart:.1e}" + (f"; float32 {exact:.1e}" if exact is not None else "")


def details(workloads: dict[str, Any]) -> str:
    rows = []
    for made in workloads.values():
        for name, side in made["sides"].items():
            label = "imprint" if name == "ours" else f"TRL, {made['settings'][name]}"
            own = made["runs"][name][0].get("setting")  # a peer's is in its name
            precision = own["precision"] if own else label.split()[-1]
            rate = made["machine"]["matrix_rate"][precision]
            apart = made["loss_apart"].get(name)
            rows.append(
                [
                    made["title"],
                    label,
                    f"{side['trained_per_second']:,.0f}",
                    f"{side['computed_over_needed']:.2f}",
                    f"{side['needed_flops'] / 1e9:.0f} ({side['needed_flops'] / rate:.0%})",
                    f"{side['beyond_bytes'] / 1e9:.2f} GB",
                    f"{side['final_loss']:.5f}",
                    said(apart, made["float32"].get("apart")),
                ]
            )
    return table(
        "| workload | side | trained tokens/s | computed / needed | needed GFLOP/s (of the matrix rate) "
        "| memory beyond | final loss | losses apart |",
        rows,
    )


def machine_lines(workloads: dict[str, Any], trl: str) -> str:
    """What each group of rows was measured on: ratios are within a row alone."""
    groups: dict[str, list[str]] = {}
    for name, made in workloads.items():
        groups.setdefault(json.dumps(made["machine"]), []).append(name)
    lines = []
    for said, names in groups.items():
        machine = json.loads(said)
        rates = " and ".join(
            f"{value / 1e9:,.0f} in {kind}" for kind, value in machine["matrix_rate"].items()
        )
        lines.append(
            f"- {', '.join(names)}: {machine['processor']} ({', '.join(machine['flags'])}), {machine['threads']} "
            f"threads; matrix rate {rates} (GFLOP/s); torch {machine['torch']}, transformers "
            f"{machine['transformers']}, TRL {trl}; commit {machine['commit']}."
        )
    return "\nMeasured on:\n\n" + "\n".join(lines) + "\n"


def brief(workloads: dict[str, Any]) -> str:
    """What was measured in a short run, and by how much the peer's best may be faster than its usual best there."""
    if not any(made.get("short") for made in workloads.values()):
        return ""
    over = []
    for made in workloads.values():
        rates = {
            one["name"]: one["examples_per_second"] for one in made["scan"] if "examples_per_second" in one
        }
        if USUAL in rates:
            over.append(max(rates.values()) / rates[USUAL])
    scans = f"Where all were, its best was up to {max(over):.2f} x as fast as that one." if over else ""
    return SHORT.format(scans=scans)


def others() -> str:
    """What the other benchmarks of speed last found."""
    rows = []
    mfu, scale, first = read("mfu"), read("scale"), read("first_step")
    if mfu:
        what = f"{mfu['parameters'] / 1e6:.0f} M parameters, {mfu['needed_tokens']:,.0f} tokens an update"
        rows.append(
            [
                f"needed operations over the bfloat16 matrix rate, optimizer included ({what})",
                f"≥ {mfu['goal']:.0%}",
                f"{mfu['ratio']:.0%}",
                "`python benchmarks/mfu.py`",
            ]
        )
    if scale:
        sizes = ", ".join(f"{size:,}" for size in (one["conversations"] for one in scale["sizes"]))
        rows.append(
            [
                f"cost per trained token, the dearest size over the cheapest ({sizes} conversations)",
                f"≤ {scale['goal']:g}",
                f"{scale['ratio']:.2f}",
                "`python benchmarks/scale.py`",
            ]
        )
    if first:
        rows.append(
            [
                "seconds from the command to its first step, data prepared before",
                f"≤ {first['goal']:g}",
                f"{first['seconds']:.1f}",
                "`python benchmarks/first_step.py`",
            ]
        )
    return "\n## Alone\n\n" + table("| figure | goal | measured | command |", rows) if rows else ""


def plot(workloads: dict[str, Any], path: Path) -> None:
    """Bars of the ratios with their goals; the spread over the rounds as whiskers."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(9, 0.55 * len(workloads) + 1.2), layout="constrained")
    for place, made in enumerate(reversed(workloads.values())):
        low, high = made["ratio"] - min(made["ratios"]), max(made["ratios"]) - made["ratio"]
        axes.barh(place, made["ratio"], color="#3b6ea5", height=0.6, xerr=[[low], [high]], ecolor="#222222")
        axes.plot([made["goal"]] * 2, [place - 0.38, place + 0.38], color="#d1495b", linewidth=2)
        axes.text(max(made["ratio"] + high, made["goal"]), place, f"  {made['ratio']:.1f} ×", va="center")
    axes.axvline(1, color="#888888", linewidth=1, linestyle=":")
    axes.set_yticks(range(len(workloads)), [made["title"] for made in reversed(workloads.values())])
    axes.set_xlabel("examples a second over those of TRL's best (red: goal)")
    axes.margins(x=0.15)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    figure.savefig(path, dpi=130, metadata={"Software": None})
    pyplot.close(figure)


def write_page() -> None:
    """docs/speed.md and its plot from the last figures; nothing where there are none."""
    result = read("peers")
    if not result or not result["workloads"]:
        print("no figures yet: run benchmarks/peers.py")
        return
    from _workloads import WORKLOADS

    # in the order of the goals, whichever was measured last
    workloads = {name: result["workloads"][name] for name in WORKLOADS if name in result["workloads"]}
    plot(workloads, DOCS / "speed.png")
    page = (
        HEAD
        + ratios(workloads)
        + machine_lines(workloads, result["versions"]["trl"])
        + brief(workloads)
        + NOTES
        + "\n"
        + details(workloads)
        + others()
    )
    (DOCS / "speed.md").write_text(page, encoding="utf-8")
    print("written: docs/speed.md, docs/speed.png")


if __name__ == "__main__":
    write_page()
