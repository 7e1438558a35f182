"""How far what imprint foretells of a run is from what then comes of it: peak memory and time.

    python benchmarks/forecast.py [--steps 8] [--only NAME] [--time]

Ten runs on the CPU, each in a process of its own: Llamas of 20 M to 100 M parameters with random weights, full and
LoRA, conversations of about 200, 900 and 3,000 tokens. Memory: what `imprint plan` says before a weight is loaded
(kept in the run's start event, without the corrections of earlier runs) against the peak of the whole process. Time,
with --time: what the rehearsal foretells against what the run took, of the runs up to 50 M (about ten minutes on two
quiet cores). Goals: within 15 % of the peak, inside the range that was said, and within 25 % of the time.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from itertools import islice
from pathlib import Path
from typing import Any

from _common import HERE, SHARED, machine, write_result
from _workloads import TEMPLATE, TOKENIZER, WORK, conversation, gsm8k

GOAL, TIME_GOAL = 0.15, 0.25
SIZES = {
    "20m": {"hidden_size": 384, "intermediate_size": 1024, "num_hidden_layers": 6, "num_attention_heads": 6,
            "num_key_value_heads": 2},
    "50m": {"hidden_size": 640, "intermediate_size": 1728, "num_hidden_layers": 8, "num_attention_heads": 10,
            "num_key_value_heads": 5},
    "100m": {"hidden_size": 768, "intermediate_size": 2048, "num_hidden_layers": 12, "num_attention_heads": 12,
             "num_key_value_heads": 4},
}  # fmt: skip
LENGTHS = {"short": 1, "middle": 5, "long": 16}  # questions and answers of GSM8K in one conversation
BATCH = {"short": 24, "middle": 5, "long": 2}  # conversations of an update: about 5,000 tokens
RUNS = (
    ("20m", "full", "short"), ("20m", "full", "middle"), ("20m", "full", "long"),
    ("20m", "lora", "short"), ("20m", "lora", "long"),
    ("50m", "full", "short"), ("50m", "lora", "middle"),
    ("100m", "full", "middle"), ("100m", "lora", "short"), ("100m", "lora", "long"),
)  # fmt: skip


def model(name: str) -> Path:
    """A folder with random weights of this size, and a tokenizer of 32,000 tokens."""
    folder = WORK / "forecast" / name
    if (folder / "config.json").is_file():
        return folder
    code = (
        "import sys, json, torch; from transformers import LlamaConfig, LlamaForCausalLM;"
        "from imprint import load_tokenizer; folder, source, sizes = sys.argv[1], sys.argv[2], json.loads(sys.argv[3]);"
        "torch.manual_seed(0); load_tokenizer(source).save_pretrained(folder); sizes.setdefault('vocab_size', 32000);"
        "LlamaForCausalLM(LlamaConfig(max_position_embeddings=4096, tie_word_embeddings=True, **sizes))"
        ".save_pretrained(folder)"
    )
    subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, str(folder), str(TOKENIZER), json.dumps(SIZES[name])],
        check=True,
        capture_output=True,
    )
    return folder


def data(length: str) -> Path:
    """Conversations for 16 updates."""
    count = 16 * BATCH[length]
    path = WORK / "forecast" / f"{length}-{count}.jsonl"
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        rows = list(islice(gsm8k(), count * LENGTHS[length]))
        texts = [[m["content"] for m in row["messages"]] for row in rows]
        size = LENGTHS[length]
        with path.open("w", encoding="utf-8") as file:
            for start in range(0, len(texts) - size + 1, size):
                question, answer = (
                    " ".join(parts) for parts in zip(*texts[start : start + size], strict=True)
                )
                file.write(json.dumps(conversation(question, answer)) + "\n")
    return path


def settings(size: str, method: str, length: str, steps: int, rehearse: bool, folder: Path) -> list[str]:
    """What a run is told; each is validated and saved about ten times, as runs are by themselves."""
    template = folder / "plain.jinja"
    template.write_text(TEMPLATE)
    return [
        f"model={model(size)}", f"data={data(length)}", f"template={template}", f"method={method}",
        f"max_steps={steps}", f"batch_size={BATCH[length]}", f"output={folder / 'run'}", "threads=2", "samples=1",
        "sample_tokens=8", "golden=0", "max_length=4096", "epochs=1000", f"rehearse={str(rehearse).lower()}",
    ]  # fmt: skip


def run(size: str, method: str, length: str, steps: int, rehearse: bool) -> dict[str, Any]:
    """One run in a process of its own, with a cache of its own: foretold and observed."""
    with tempfile.TemporaryDirectory(dir=WORK) as folder:
        done = subprocess.run(
            [
                sys.executable,
                "-m",
                "imprint.cli",
                "train",
                *settings(size, method, length, steps, rehearse, Path(folder)),
            ],
            env={**os.environ, "HF_HUB_OFFLINE": "1", "IMPRINT_CACHE": f"{folder}/cache"},
            capture_output=True,
            text=True,
        )
        if done.returncode:
            raise SystemExit(done.stderr[-3000:])
        events = [json.loads(line) for line in (Path(folder) / "run/events.jsonl").read_text().splitlines()]
    start = next(event for event in events if event["kind"] == "start")
    end = next(event for event in events if event["kind"] == "end")
    peak = max(event["peak_bytes"] for event in events if event["kind"] == "step")
    found = {
        "size": size, "method": method, "length": length, "steps": steps, "commit": machine()["commit"],
        "parameters": start["num_parameters"],
        "planned_bytes": start["planned"]["peak_bytes"],
        "planned_low": start["planned"]["low_bytes"],
        "planned_high": start["planned"]["high_bytes"],
        "planned_parts": start["planned"]["parts"],
        "observed_bytes": peak,
        "memory_ratio": start["planned"]["peak_bytes"] / peak,
        "planned_seconds": start["planned"]["seconds"],
        "observed_seconds": end["seconds"],
    }  # fmt: skip
    for event in events:
        if event["kind"] == "rehearsal":
            found["rehearsal_seconds"] = event["seconds"]
            found["foretold_seconds"] = event["predicted_seconds"]
            found["time_ratio"] = event["predicted_seconds"] / end["seconds"]
    return found


def names_of(found: dict[str, Any]) -> tuple[str, str, str]:
    return found["size"], found["method"], found["length"]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument(
        "--only",
        default="",
        help="runs whose name, SIZE-METHOD-LENGTH, begins so; the results keep the others",
    )
    parser.add_argument("--time", action="store_true", help="rehearse, and compare the time too")
    given = parser.parse_args()
    if not SHARED.is_dir():
        print("skipped: the data is not there")
        return 0
    WORK.mkdir(exist_ok=True)
    runs = []
    for names in RUNS:
        if not "-".join(names).startswith(given.only) or (
            given.time and not given.only and names[0] == "100m"
        ):
            continue
        found = run(*names, given.steps, given.time)
        runs.append(found)
        line = f"{'-'.join(names):20} memory {found['memory_ratio']:.2f} of {found['observed_bytes'] / 1e6:,.0f} MB"
        if "time_ratio" in found:
            line += f", time {found['time_ratio']:.2f} of {found['observed_seconds']:.0f} s"
        print(line, flush=True)
    name = "forecast-time" if given.time else "forecast"
    kept = HERE / "results" / f"{name}.json"
    if given.only and kept.is_file():  # the others as they were
        measured = {names_of(found) for found in runs}
        runs += [found for found in json.loads(kept.read_text())["runs"] if names_of(found) not in measured]
    off = max(abs(found["memory_ratio"] - 1) for found in runs)
    outside = [
        found
        for found in runs
        if not found["planned_low"] <= found["observed_bytes"] <= found["planned_high"]
    ]
    late = max((abs(found["time_ratio"] - 1) for found in runs if "time_ratio" in found), default=None)
    print(f"forecast: memory at most {off:.0%} off (goal {GOAL:.0%}), {len(outside)} outside the range"
          + (f", time at most {late:.0%} off (goal {TIME_GOAL:.0%})" if late is not None else ""))  # fmt: skip
    result = {
        "benchmark": "forecast",
        "goal": GOAL,
        "memory_off": off,
        "outside_the_range": len(outside),
        "time_goal": TIME_GOAL,
        "time_off": late,
    }
    runs.sort(key=lambda found: RUNS.index(names_of(found)))
    write_result(name, {**result, "runs": runs, "machine": machine()})
    return 0 if off <= GOAL and not outside and (late or 0) <= TIME_GOAL else 1


if __name__ == "__main__":
    sys.exit(main())
