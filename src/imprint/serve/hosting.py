"""A run or a model, with adapters beside it, made ready to be served by name."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from imprint.errors import ModelError, RunError
from imprint.export.card import lora_rank_for_vllm, not_in_vllm
from imprint.model.quantize import read_quantized
from imprint.render.resolve import Rendering, as_saved, config_stops, load_tokenizer, prepare_rendering
from imprint.serve.calls import Objects
from imprint.serve.chat import find_base, find_trained, shown_date, trained_with
from imprint.serve.hosted import ControlTokens, Host, Hosted, Limits
from imprint.serve.loading import load_engine

_PARSERS = {
    "<tool_call>": "hermes",
    "[TOOL_CALLS]": "mistral",
    "": "llama3_json",
}  # vLLM's, by what begins a call
VLLM_PORT = 8000  # vLLM's default
_PLAIN = {"temperature": 1.0, "top_p": 1.0, "top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0}  # OpenAI's


def host_of(
    path: Path,
    *,
    name: str | None = None,
    adapters: Mapping[str, Path] | None = None,
    template: str = "auto",
    control_tokens: ControlTokens | None = None,
    limits: Limits = Limits(),
    **engine: Any,
) -> Host:
    """What `imprint serve` serves; `engine` goes to `load_engine`.

    `control_tokens` None: as the run was trained, and refused where that left such rows out.
    """
    adapters = dict(adapters or {})
    served = load_engine(path, adapters=adapters, template=template, **engine)
    first = Hosted(
        name or served.name,
        as_saved(served.rendering),
        folder=path,
        control_tokens=control_tokens or trained_with(path),
    )
    models = [first]
    for adapter, where in adapters.items():
        if adapter in {model.name for model in models}:
            served.engine.close()
            raise RunError(
                "two models of one name", where=f"--adapter {adapter}=…", fix="--name OTHER, or another NAME="
            )
        rendering = _of_adapter(where, first)
        models.append(
            replace(
                first,
                name=adapter,
                rendering=rendering,
                adapter=adapter,
                parent=first.name,
                folder=where,
                control_tokens=control_tokens or trained_with(where),
            )
        )
    return Host(served.engine, tuple(models), limits, has_own_template=template == "auto")


def _of_adapter(path: Path, first: Hosted) -> Rendering:
    """An adapter's own template and tokenizer, where it brings them: it is spoken to as it was trained."""
    folder = find_trained(path)
    if not any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer_config.json")):
        return first.rendering
    tokenizer = load_tokenizer(str(folder))
    stops = [*config_stops(folder), *first.rendering.stop_ids]
    made = as_saved(prepare_rendering(tokenizer, now=shown_date(path), config_stops=stops))
    if made.encoder.num_tokens > first.rendering.encoder.num_tokens:
        raise ModelError(
            "this adapter has tokens that the model beside it lacks",
            where=str(path),
            found=f"{made.encoder.num_tokens:,} tokens",
            expected=f"at most {first.rendering.encoder.num_tokens:,}",
            fix="serve it by itself",
        )
    return made


def vllm_commands(host: Host, parser: str | None = None) -> list[str]:
    """What serves the same with vLLM: for a run, its export first.

    Adapters go on the base that they were trained on, never on merged weights. Where vLLM does not take them, or
    they have templates of their own (vLLM knows one), each is merged, and served on a port of its own.
    """
    # its own defaults: a folder's generation_config would set others than OpenAI's
    words = ["--generation-config", "vllm"]
    if parser:
        words += ["--enable-auto-tool-choice", "--tool-call-parser", parser]
    if len(host.models) > 1 and _fit_together(host):
        return _vllm_of_adapters(host, words)
    commands = []
    for number, one in enumerate(host.models):
        folder = one.folder or Path(one.name)
        if (folder / "run.json").is_file():
            exported = folder / "export" / "hf"
            if not exported.is_dir():
                commands.append(shlex.join(["imprint", "export", str(folder), "--to", "hf"]))
            folder = exported
        port = ["--port", str(VLLM_PORT + number)] if number else []
        commands.append(
            shlex.join(["vllm", "serve", str(folder), "--served-model-name", one.name, *port, *words])
        )
    return commands


def _adapter_configs(host: Host) -> dict[str, Path]:
    """The adapter_config.json of each model that is an adapter, by name."""
    found = {one.name: find_trained(one.folder) / "adapter_config.json" for one in host.models if one.folder}
    return {name: path for name, path in found.items() if path.is_file()}


def _fit_together(host: Host) -> bool:
    """Whether one vLLM can serve all of a host's models: one template, and adapters that it takes."""
    configs = _adapter_configs(host).values()
    templates = {json.dumps(one.rendering.template.serving) for one in host.models}
    taken = all(
        read_quantized(path.parent) is None and not not_in_vllm(json.loads(path.read_text(encoding="utf-8")))
        for path in configs
    )
    return taken and len(templates) == 1


def _vllm_of_adapters(host: Host, words: Sequence[str]) -> list[str]:
    """The first model, or the base that it is an adapter of, with all adapters beside it."""
    configs, first = _adapter_configs(host), host.models[0]
    ranks = [json.loads(path.read_text(encoding="utf-8"))["r"] for path in configs.values()]
    adapters = ["--enable-lora", "--max-lora-rank", str(lora_rank_for_vllm(max(ranks)))]
    adapters += ["--lora-modules", *(f"{name}={path.parent}" for name, path in configs.items())]
    if first.name not in configs:
        [*before, serve] = vllm_commands(replace(host, models=(first,)))
        return [*before, f"{serve} {shlex.join([*words[2:], *adapters])}"]
    own = configs[first.name]
    base = find_base(own, "base_model_name_or_path")
    template = ["--chat-template", str(own.parent / "chat_template.jinja")]
    stops = _stops_for_vllm(own.parent) or words[:2]
    return [shlex.join(["vllm", "serve", str(base), *adapters, *template, *stops, *words[2:]])]


def _stops_for_vllm(adapter: Path) -> list[str]:
    """vLLM reads stops where it is told to read sampling: of an adapter it would take the base's, not training's."""
    path = adapter / "generation_config.json"
    if not path.is_file():
        return []
    said = json.loads(path.read_text(encoding="utf-8"))
    changed = {key: value for key, value in _PLAIN.items() if said.get(key) not in (None, value)}
    override = ["--override-generation-config", json.dumps(changed)] if changed else []
    return ["--generation-config", str(adapter), *override]


def vllm_parser(host: Host) -> str | None:
    """The name of vLLM's parser for this model's tool calls, where it has one."""
    first = host.models[0]
    form = host.form(first, first.rendering.template).calls
    return _PARSERS.get(form.lead) if isinstance(form, Objects) else None


def told(host: Host, url: str, token_env: str | None) -> Sequence[tuple[str, str]]:
    """What a user is told once the server is there: (label, text)."""
    names = ", ".join(model.name for model in host.models)
    token = f'-H "Authorization: Bearer ${token_env}" ' if token_env else ""
    body = '{"messages": [{"role": "user", "content": "Hello"}]}'
    curl = f"curl {url}/v1/chat/completions {token}-H 'Content-Type: application/json' -d '{body}'"
    lines = [("serving", f"{url}/v1"), ("models", names), ("try", curl)]
    if not host.has_own_template:
        return [
            *lines,
            ("vLLM", "needs a template in the model's folder: train with one, or --chat-template FILE"),
        ]
    commands = [*vllm_commands(host, vllm_parser(host)), *_stops_unknown_to_vllm(host)]
    return [*lines, *(("vLLM", command) for command in commands)]


def _stops_unknown_to_vllm(host: Host) -> list[str]:
    """What to mend in a model's folder that names fewer stops than its template has: vLLM knows those alone."""
    first = host.models[0]
    if (
        first.folder is None or not (first.folder / "config.json").is_file()
    ):  # runs and adapters name them all
        return []
    ids, encoder = first.rendering.stop_ids, first.rendering.encoder
    missing = set(ids) - {*config_stops(first.folder), encoder.tokenizer.eos_token_id}
    if not missing:
        return []
    names = ", ".join(encoder.added.get(i) or encoder.decode([i]) for i in sorted(missing))
    path = first.folder / "generation_config.json"
    return [f'would not stop at {names}: write "eos_token_id": {list(ids)} into {path} first']
