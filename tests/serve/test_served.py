"""Served is trained: the same ids, the same probabilities, the same stop, adapters by their names."""

from __future__ import annotations

import asyncio
import json
import shlex
import shutil
from dataclasses import replace

import httpx
import numpy as np
import pytest
import torch

from conftest import ROWS, settings
from imprint.serve.api import make_app
from imprint.serve.chat import load_speaker
from imprint.serve.hosting import host_of, told, vllm_commands

SMALL = {"cache_bytes": 16 << 20, "max_running": 8, "device": "cpu"}


@pytest.fixture(scope="module")
def runs(tiny, rows, tmp_path_factory):
    from imprint.run import train
    from imprint.settings import resolve

    made = []
    for number, template in enumerate(("chatml", "zephyr")):
        path = tmp_path_factory.mktemp("served") / f"run{number}"
        given = settings(
            tiny,
            rows,
            path,
            "max_steps=3",
            "method=lora",
            "learning_rate=1e-2",
            f"template={template}",
            f"seed={number}",
        )
        train(resolve(None, given).recipe)
        made.append(path)
    return made


@pytest.fixture(scope="module")
def host(runs):
    made = host_of(runs[0], adapters={"other": runs[1]}, **SMALL)
    yield made
    made.engine.close()


@pytest.fixture
def ask(host):
    app = make_app(host)

    def asked(path, body):
        async def once():
            transport = httpx.ASGITransport(app)
            async with httpx.AsyncClient(
                transport=transport, base_url="http://localhost", timeout=60
            ) as client:
                answer = await client.post(path, json=body)
                assert answer.status_code == 200, answer.text
                return answer.json()

        return asyncio.run(once())

    return asked


def shown(tiny, rows, template):
    from imprint.settings import resolve
    from imprint.show import shown_turns

    return shown_turns(resolve(None, [f"model={tiny}", f"data={rows}", f"template={template}"]).recipe)


@pytest.mark.parametrize(("name", "template"), [("run0", "chatml"), ("other", "zephyr")])
def test_the_prompts_are_those_of_training(ask, tiny, rows, name, template):
    """Of every turn, each model's in its own template."""
    turns = shown(tiny, rows, template).turns
    assert len(turns) == 24
    for turn in turns:
        messages = ROWS[turn.conversation]["messages"][: turn.turn]
        assert ask("/tokenize", {"model": name, "messages": messages})["tokens"] == turn.prompt.tolist()
        parts = [{**m, "content": [{"type": "text", "text": m["content"]}]} for m in messages]
        assert ask("/tokenize", {"model": name, "messages": parts})["tokens"] == turn.prompt.tolist()


@pytest.mark.parametrize(("name", "number"), [("run0", 0), ("other", 1)])
def test_the_probabilities_are_those_of_a_plain_forward(ask, runs, tiny, rows, name, number):
    speaker = load_speaker(runs[number])
    for turn in shown(tiny, rows, "chatml").turns[:5]:
        ids = np.concatenate((turn.prompt, turn.completion))
        with torch.no_grad():
            plain = (
                speaker.model.model(torch.from_numpy(ids.astype(np.int64))[None]).logits[0].log_softmax(-1)
            )
        body = {"model": name, "prompt": ids.tolist(), "max_tokens": 1, "echo": True, "logprobs": 1}
        told = ask("/v1/completions", body)["choices"][0]["logprobs"]
        assert len(told["tokens"]) == len(ids) + 1  # lm-eval takes the last one off
        expected = plain[torch.arange(len(ids) - 1), torch.from_numpy(ids[1:].astype(np.int64))]
        assert told["token_logprobs"][0] is None
        assert np.allclose(told["token_logprobs"][1:-1], expected, atol=1e-4)
        best = plain[:-1].max(-1).values
        assert np.allclose([max(top.values()) for top in told["top_logprobs"][1:-1]], best, atol=1e-4)


def test_the_replies_are_those_of_the_chat(ask, runs):
    from imprint.data.conversation import Message

    for name, run in (("run0", runs[0]), ("other", runs[1])):
        speaker = load_speaker(run)
        for question in ("What colour is the sea?", "Name snow's colour."):
            said = speaker.reply([Message("user", question)], lambda _: None, 20)
            body = {"model": name, "messages": [{"role": "user", "content": question}]}
            answer = ask("/v1/chat/completions", {**body, "temperature": 0, "max_tokens": 20})
            assert answer["choices"][0]["message"]["content"] == said
            assert answer["model"] == name


def test_a_seed_makes_a_reply(ask):
    body = {"messages": [{"role": "user", "content": "Why?"}], "temperature": 1.5, "max_tokens": 12}
    says = [ask("/v1/chat/completions", {**body, "seed": seed, "n": 2})["choices"] for seed in (1, 1, 2)]
    texts = [[choice["message"]["content"] for choice in choices] for choices in says]
    assert texts[0] == texts[1] != texts[2]
    assert texts[0][0] != texts[0][1]


def test_the_stop_set_is_the_saved_one(host, runs):
    for served, run in zip(host.models, runs, strict=True):
        assert set(served.rendering.stop_ids) >= set(load_speaker(run).rendering.stop_ids)


def test_the_commands_for_vllm(host, runs):
    """These two have templates of their own, and vLLM knows one: each is merged and served by itself."""
    export, serve, export_other, other = vllm_commands(host)
    assert export == f"imprint export {runs[0]} --to hf"
    assert serve == f"vllm serve {runs[0]}/export/hf --served-model-name run0 --generation-config vllm"
    assert export_other == f"imprint export {runs[1]} --to hf"
    assert other.startswith(f"vllm serve {runs[1]}/export/hf --served-model-name other --port 8001")
    alone = replace(host, models=host.models[:1])
    assert vllm_commands(alone) == [export, serve]


def test_adapters_are_served_by_vllm_on_the_base_that_they_were_trained_on(host, runs, tiny):
    first, other = host.models
    same = replace(host, models=(first, replace(other, rendering=first.rendering)))
    [serve] = vllm_commands(same, "hermes")
    assert serve == (
        f"vllm serve {tiny} --enable-lora --max-lora-rank 16 "
        f"--lora-modules run0={runs[0]}/model other={runs[1]}/model "
        f"--chat-template {runs[0]}/model/chat_template.jinja --generation-config {runs[0]}/model "
        "--enable-auto-tool-choice --tool-call-parser hermes"
    )
    plain = replace(same, models=(replace(first, folder=tiny), same.models[1]))
    [serve] = vllm_commands(plain)
    assert serve.startswith(
        f"vllm serve {tiny} --served-model-name run0 --generation-config vllm --enable-lora"
    )
    assert f"--lora-modules other={runs[1]}/model" in serve


def test_vllm_takes_the_stops_of_training_and_not_the_sampling_of_the_base(host, runs, tmp_path):
    """With --generation-config vllm it would read the stops of the base, and go on where training has stopped."""
    changed = shutil.copytree(runs[0], tmp_path / "sampling")
    config = changed / "model" / "generation_config.json"
    said = json.loads(config.read_text())
    assert said["eos_token_id"]
    config.write_text(json.dumps({**said, "temperature": 0.6, "top_p": 1.0, "top_k": 20}))
    first, other = host.models
    same = (replace(first, folder=changed), replace(other, rendering=first.rendering))
    words = shlex.split(vllm_commands(replace(host, models=same))[0])
    assert words[words.index("--generation-config") + 1] == str(changed / "model")
    override = json.loads(words[words.index("--override-generation-config") + 1])
    assert override == {"temperature": 1.0, "top_k": -1}


def test_a_model_whose_files_lack_a_stop_of_its_template_says_so_beside_the_command(
    host, runs, tiny, tmp_path
):
    copy = shutil.copytree(tiny, tmp_path / "model")
    (copy / "generation_config.json").unlink(missing_ok=True)
    config = json.loads((copy / "config.json").read_text())
    first = host.models[0]
    eos = first.rendering.encoder.tokenizer.eos_token_id
    [other, *_] = set(first.rendering.stop_ids) - {eos}
    (copy / "config.json").write_text(json.dumps({**config, "eos_token_id": eos}))
    plain = replace(host, models=(replace(first, folder=copy),))
    said = [text for label, text in told(plain, "http://x", None) if label == "vLLM"]
    assert len(said) == 2
    assert f"would not stop at {first.rendering.encoder.added[other]}" in said[1]
    whole = {"eos_token_id": list(first.rendering.stop_ids)}
    (copy / "generation_config.json").write_text(json.dumps(whole))
    assert sum(label == "vLLM" for label, _ in told(plain, "http://x", None)) == 1


def test_adapters_that_vllm_does_not_take_are_merged(host, runs, tmp_path):
    first, other = host.models
    changed = shutil.copytree(runs[1], tmp_path / "dora")
    config = changed / "model" / "adapter_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "use_dora": True}))
    both = replace(host, models=(first, replace(other, rendering=first.rendering, folder=changed)))
    commands = vllm_commands(both)
    assert not any("--lora-modules" in command for command in commands)
    assert f"imprint export {changed} --to hf" in commands


def test_a_thinking_switch_that_training_has_chosen_is_served():
    """A server sees no data: to choose again would undo what the saved template says."""
    from datetime import datetime

    from imprint.data.conversation import Message
    from imprint.render.resolve import as_saved, prepare_rendering
    from render.corpus import make_tokenizer, named, names_for

    source = named("llamacpp/Qwen-Qwen3-0.6B.jinja")
    for text, reasoning in ((source, 0.0), (source, 1.0)):
        names, now = names_for(text), datetime(2026, 1, 1)
        trained = prepare_rendering(make_tokenizer("bytes", text, **names), now=now, reasoning=reasoning)
        saved = make_tokenizer("bytes", text, **names)
        saved.chat_template = trained.template.serving
        served = as_saved(prepare_rendering(saved, now=now))
        inputs = trained.template.inputs([Message("user", "x")])
        prompts = [one.template.render(inputs, add_generation_prompt=True) for one in (trained, served)]
        assert prompts[0] == prompts[1]
        assert served.template.options == {}
    # the plant: a template that opens a thought, trained with thoughts, asked to choose once more
    tokenizer = make_tokenizer("bytes", OPENS, bos_token="<s>", eos_token="<|im_end|>")
    chosen_again = prepare_rendering(tokenizer, now=now)
    inputs = chosen_again.template.inputs([Message("user", "x")])
    assert not chosen_again.template.render(inputs, add_generation_prompt=True).endswith("<think>\n")
    assert as_saved(chosen_again).template.render(inputs, add_generation_prompt=True).endswith("<think>\n")


OPENS = """{% for m in messages %}<|im_start|>{{ m.role }}
{% if m.role == 'assistant' and m.reasoning_content %}<think>
{{ m.reasoning_content }}
</think>

{% endif %}{{ m.content }}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% if enable_thinking is not defined or enable_thinking %}<think>
{% endif %}{% endif %}"""
