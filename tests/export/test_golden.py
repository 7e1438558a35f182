"""The golden file is of the user's rows, of the weights that are served, and is the same each time."""

from __future__ import annotations

import json
import signal

import golden_runs
import pytest
import torch

from conftest import build_model, settings, write_rows
from imprint.disk import file_hash
from imprint.errors import RunError
from imprint.export.examine import rounded
from imprint.export.golden import read_golden, write_golden


@pytest.fixture(scope="module")
def golden(trained):
    return read_golden(trained / "lora")


def test_it_holds_rows_of_every_kind(golden):
    assert len(golden.examples) == 4
    roles = [tuple(message["role"] for message in example.messages) for example in golden.examples]
    assert any(role[0] == "system" for role in roles)
    assert any(role.count("user") > 1 for role in roles)
    assert any("tool" in role for role in roles)
    assert any(example.tools and "spell: Spells a word." in example.prompt for example in golden.examples)
    assert {example.part for example in golden.examples} >= {"validation"}
    assert len({example.prompt_ids for example in golden.examples}) == 4
    assert all(example.source.startswith("rows.jsonl:") for example in golden.examples)
    assert any(example.greedy.tokens[-1] == "<|im_end|>" for example in golden.examples if example.stopped)


def test_it_is_what_plain_transformers_says_of_the_saved_model(golden, trained):
    """The slow way: one forward pass of the whole text, in float64, and its argmax again and again."""
    from imprint.export.folder import FolderCandidate

    assert golden.precision == "float64"
    plain = FolderCandidate(trained / "lora" / "model", golden.now, precision="float64")
    for example in golden.examples:
        assert plain.tokenizer(example.prompt, add_special_tokens=False).input_ids == list(example.prompt_ids)
        for given in (example.reply, example.greedy):
            ids = torch.tensor([[*example.prompt_ids, *given.ids]])
            with torch.no_grad():
                rows = plain.model(input_ids=ids).logits[0].log_softmax(-1)[len(example.prompt_ids) - 1 : -1]
            for place, row in enumerate(rows):
                best = row.topk(5)
                assert [number for number, _ in given.top[place]] == best.indices.tolist()
                assert torch.allclose(
                    torch.tensor([p for _, p in given.top[place]]).double(), best.values, atol=1e-6
                )
                assert given.logprobs[place] == pytest.approx(float(row[given.ids[place]]), abs=1e-6)
            if given is example.greedy:
                assert [top[0][0] for top in given.top] == list(given.ids)
        assert (example.greedy.ids[-1] in golden.stop_ids) == example.stopped
        assert example.stopped or len(example.greedy.ids) == example.limit
        body = example.greedy.ids[:-1] if example.stopped else example.greedy.ids
        assert plain.tokenizer.decode(list(body), skip_special_tokens=True) == example.text


def test_the_reply_is_the_demonstration_s_own(golden, trained):
    replies = [
        message["content"]
        for line in (trained / "rows.jsonl").read_text().splitlines()
        for message in json.loads(line)["messages"]
        if message["role"] == "assistant"
    ]
    for example in golden.examples:
        said = "".join(example.reply.tokens).removesuffix("<|im_end|>\n").removesuffix("<|im_end|>")
        assert any(reply.startswith(said) for reply in replies), said


def test_it_is_written_readably_and_read_as_it_was(golden, trained, tmp_path):
    path = trained / "lora" / "golden.json"
    assert write_golden(golden) == path.read_text(encoding="utf-8")
    assert max(map(len, path.read_text().splitlines())) < 4000
    (tmp_path / "golden.json").write_text(path.read_text().replace('"version": 1', '"version": 9'))
    with pytest.raises(RunError, match="cannot be read"):
        read_golden(tmp_path)
    (tmp_path / "golden.json").write_text("[]")
    with pytest.raises(RunError, match="cannot be read"):
        read_golden(tmp_path)
    with pytest.raises(RunError, match="no golden file"):
        read_golden(tmp_path / "nowhere")


def test_facts_of_the_run(golden, trained):
    facts = json.loads((trained / "lora" / "run.json").read_text())
    assert golden.stop_ids == tuple(facts["stop_ids"])
    assert golden.template == facts["fingerprints"]["template"]
    assert golden.now == facts["created"]
    assert (golden.bos.id, golden.bos.added, golden.bos.twice) == (0, 0, False)
    assert golden.kind == "float32"
    assert golden.weights == {
        "adapter_model.safetensors": file_hash(trained / "lora" / "model" / "adapter_model.safetensors")
    }
    assert 0 < golden.noise < 1e-3
    assert golden.noise < golden.rounding["float16"] < golden.rounding["bfloat16"] < golden.rounding["q8_0"]
    assert len(golden.without_adapter) == len(golden.examples[0].reply.ids)


def test_frozen_matrices_in_bfloat16_are_taken_from_the_disk(tiny, rows, tmp_path, monkeypatch):
    """The base is in float32 on the disk; training kept it in bfloat16, an export will not."""
    import imprint.freeze as freeze
    from imprint.export.folder import compare
    from imprint.run import train
    from imprint.settings import resolve

    monkeypatch.setattr(freeze, "REPLY", 8)
    given = ("method=lora", "precision=bfloat16", "golden=2", "max_steps=2", "learning_rate=1e-2")

    def run(name):
        path = train(resolve(None, settings(tiny, rows, tmp_path / name, *given)).recipe).run
        return compare(read_golden(path), path / "model", "float32")

    assert run("right").difference <= 1e-5

    def only_widened(prepared, model, sharded):
        for parameter in model.parameters():
            parameter.data = parameter.data.float()
        model.held = None
        return ""

    monkeypatch.setattr(freeze, "widen_frozen", only_widened)  # the planted twin
    assert run("wrong").difference > 1e-3


def test_killed_before_its_golden_file_a_run_makes_it_when_resumed(tiny, rows, tmp_path, start, cli):
    run = tmp_path / "run"
    given = settings(tiny, rows, run, "golden=2", "max_steps=2", "validation=0")
    ended = start("train", *given, signal_before=("imprint.ending.freeze", 1, signal.SIGKILL)).wait()
    assert ended.code == -signal.SIGKILL
    assert (run / "model").is_dir()
    assert not (run / "golden.json").exists()
    assert cli("resume", run).code == 0
    golden = read_golden(run)
    assert len(golden.examples) == 2
    other = tmp_path / "other"
    assert cli("train", *settings(tiny, rows, other, "golden=2", "max_steps=2", "validation=0")).code == 0
    assert golden.examples == read_golden(other).examples


def test_no_conversation_no_golden_file(tiny, tmp_path, cli):
    write_rows(tmp_path / "text.jsonl", [{"text": f"Thing {i} is like that."} for i in range(8)])
    run = tmp_path / "run"
    done = cli(
        "train", *settings(tiny, tmp_path / "text.jsonl", run, "golden=2", "max_steps=1", "validation=0")
    )
    if done.code == 0:
        assert not (run / "golden.json").exists()
        assert "no golden file" in (run / "events.jsonl").read_text()


def test_q8_0_rounds_in_blocks_of_32():
    """Against the obvious way, one weight after another."""
    value = torch.randn(3, 64, generator=torch.Generator().manual_seed(0))
    ours = rounded(value, "q8_0")
    for row in range(3):
        for block in range(2):
            some = value[row, 32 * block : 32 * block + 32].tolist()
            scale = max(map(abs, some)) / 127
            stored = float(torch.tensor(scale).half())
            wanted = [round(weight / scale) * stored for weight in some]
            assert torch.allclose(ours[row, 32 * block : 32 * block + 32], torch.tensor(wanted), atol=1e-7)
    vector = torch.randn(33)
    assert torch.equal(rounded(vector, "q8_0"), vector)
    assert torch.equal(rounded(value, "float16"), value.half().float())


@pytest.mark.slow
def test_two_processes_freeze_what_one_does(trained):
    from test_torchrun import two

    short = ("max_steps=2", "validate_every=2", "learning_rate=1e-4")  # else the trainings drift apart
    for method in ("full", "lora"):
        alone = golden_runs.a_little(
            trained, f"method={method}", f"output={trained / (method + '-alone')}", *short
        )
        two_output = f"output={trained / (method + '-two')}"
        done = two("train", *golden_runs.arguments(trained, f"method={method}", two_output, *short))
        assert done.code == 0, done.out
        ours, theirs = read_golden(trained / f"{method}-two"), read_golden(alone)
        assert ours.precision == "float32"
        for a, b in zip(ours.examples, theirs.examples, strict=True):
            assert a.prompt_ids == b.prompt_ids
            places = zip(a.reply.logprobs, b.reply.logprobs, strict=False)
            assert max(abs(x - y) for x, y in places) < 5e-2  # two trainings, equal to rounding
        from imprint.export.folder import compare

        found = compare(ours, trained / f"{method}-two" / "model", ours.kind)
        assert found.equal, found


def test_a_base_in_four_bits_is_what_the_four_bits_hold(rows, tmp_path, monkeypatch):
    """The adapter belongs to those values; on the original weights it says something else."""
    pytest.importorskip("bitsandbytes")
    import imprint.freeze as freeze
    from imprint.export.folder import compare
    from imprint.run import train
    from imprint.settings import resolve

    monkeypatch.setattr(freeze, "REPLY", 8)
    wide = build_model(tmp_path / "wide", hidden=64)  # blocks of 64 weights do not cross its rows
    given = ("method=qlora", "golden=2", "max_steps=2", "learning_rate=1e-2")
    path = train(resolve(None, settings(wide, rows, tmp_path / "run", *given)).recipe).run
    golden = read_golden(path)
    assert compare(golden, path / "model", "float32").difference <= 1e-5
    (path / "model" / "quantized_base.json").unlink()
    assert compare(golden, path / "model", "float32").difference > 1e-3
