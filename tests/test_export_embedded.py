"""The embedded model, tuned and merged, beside its adapter: each in a process of its own, asked 100 questions."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from conftest import environment, imprint

ASK = """
import sys, torch
from pathlib import Path
from imprint.demo.exam import answers
from imprint.demo.exercises import questions_of
from imprint.data.conversation import Message
from imprint.serve.chat import load_speaker

speaker = load_speaker(Path(sys.argv[1]))
names = ("seen", "held-out entities", "held-out phrasings")
questions = [one.text for name in names for one in questions_of(name)[:34]][:100]
replies = answers(speaker, questions)
template, found = speaker.rendering.template, []
wide = speaker.model.base.double()
for text, (reply, _) in zip(questions, replies):
    prompt = template.render(template.inputs([Message("user", text)]), add_generation_prompt=True)
    ids = torch.from_numpy(speaker.rendering.encoder.encode([prompt + reply])[0].astype("int64"))[None]
    with torch.no_grad():
        found.append(wide(input_ids=ids).logits[0].log_softmax(-1))
torch.save({"replies": replies, "logprobs": found}, sys.argv[2])
"""


def asked(path: Path, out: Path) -> dict:
    command = [sys.executable, "-c", ASK, str(path), str(out)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment(), timeout=300)
    assert done.returncode == 0, done.stderr
    return torch.load(out)


@pytest.mark.slow
def test_merged_is_the_adapter_on_100_questions(tmp_path):
    from imprint.demo.base import copy_base, demonstrations

    base, run = copy_base(tmp_path / "base"), tmp_path / "run"
    given = ("method=lora", "template=chatml", "max_steps=12", "samples=0", "threads=1", "validation=0")
    ended = imprint(
        "train", f"model={base}", f"data={demonstrations()}", f"output={run}", *given, timeout=400
    )
    assert ended.code == 0, ended.err
    ended = imprint("export", run, "--dtype", "float32", timeout=300)
    assert ended.code == 0, ended.err
    assert "16 of 16 greedy replies equal" in ended.err
    adapter = asked(run, tmp_path / "adapter.pt")
    merged = asked(run / "export" / "hf", tmp_path / "merged.pt")
    assert len(merged["replies"]) == 100
    assert len(set(merged["replies"])) > 50
    assert merged["replies"] == adapter["replies"]
    # transformers computes norms and rotary angles in float32 whatever the weights are: few values show its noise
    pairs = zip(merged["logprobs"], adapter["logprobs"], strict=True)
    apart = torch.cat([(m - a).abs().flatten() for m, a in pairs]).sort().values
    assert float(apart[int(0.99 * len(apart))]) < 1e-5
    assert float(apart[-1]) < 1e-3
