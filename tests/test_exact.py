"""100 steps = 50 + 50 = 25 × 4, bit for bit, with what early stopping knows."""

from __future__ import annotations

import json
import os
import signal

import pytest

from conftest import events_of, losses, settings, tree

GIVEN = ("max_steps=100", "epochs=50", "validation=0.2", "validate_every=10", "save_every=25", "learning_rate=3e-3",
         "patience=50", "batch_size=2")  # fmt: skip


def trained(tiny, rows, run, stops: list[int], *given: str) -> None:
    """A run that is stopped after each of these steps, and resumed."""
    import imprint.train.loop as loop
    from imprint.errors import Interrupted
    from imprint.run import resume, train
    from imprint.settings import resolve

    original = loop.train_step

    def told(state, rows):
        if state.step + 1 in stops:
            stops.remove(state.step + 1)
            os.kill(os.getpid(), signal.SIGTERM)
        return original(state, rows)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "train_step", told)
        begin = True
        while True:
            try:
                if begin:
                    train(resolve(None, settings(tiny, rows, run, *GIVEN, *given)).recipe)
                else:
                    resume(run)
            except Interrupted:
                begin = False
                continue
            return


@pytest.mark.parametrize("method", ["full", pytest.param("lora", marks=pytest.mark.slow)])
def test_a_hundred_steps(method, tiny, rows, tmp_path):
    cuts = {"whole": [], "halves": [50], "quarters": [25, 50, 75]}
    for name, stops in cuts.items():
        trained(tiny, rows, tmp_path / name, list(stops), f"method={method}")
    whole = tmp_path / "whole"
    assert len(losses(whole)) == 100
    kept = json.loads((whole / "checkpoints/step-000100/state.json").read_text())
    for name in ("halves", "quarters"):
        run = tmp_path / name
        assert len(events_of(run, "resume")) == len(cuts[name])
        assert tree(run / "model") == tree(whole / "model")
        assert losses(run) == losses(whole)
        for file in ("weights.safetensors", "optimizer.safetensors"):
            place = f"checkpoints/step-000100/{file}"
            assert (run / place).read_bytes() == (whole / place).read_bytes()
        ours = json.loads((run / "checkpoints/step-000100/state.json").read_text())
        kept["counters"]["seconds"] = ours["counters"]["seconds"]
        assert ours == kept
