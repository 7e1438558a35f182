"""--to ollama: a Modelfile with the chat template in Go's language, and the GGUF that it begins from."""

from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

from imprint.data.conversation import Message
from imprint.errors import TemplateError, UserError
from imprint.export import gguf
from imprint.export.card import read_tags
from imprint.export.golden import Example, Golden, read_golden
from imprint.export.gotemplate import parse
from imprint.export.gotemplate_run import prompt_of
from imprint.export.gotemplate_tree import GoError
from imprint.export.ollama_file import Command, read_modelfile, write_modelfile
from imprint.export.ollama_learn import Untranslatable, rendering
from imprint.export.ollama_translate import Translation, difference, translate
from imprint.export.targets import Made, Proof, Target
from imprint.export.verdict import BARS
from imprint.model_facts import read_model_facts
from imprint.render.probe import find_form
from imprint.render.resolve import config_stops, load_tokenizer
from imprint.render.template import Template, find_template
from imprint.render.tokens import Encoder

OPTIONS = {
    **gguf.OPTIONS,
    "name": "the model's name in Ollama, and in the file",
    "num_ctx": "tokens of context that Ollama makes room for (the model's own, at most 8192, by default)",
    "temperature": "0 is greedy (what the model's generation_config.json says, else 0)",
    "system": "a system message for every conversation that has none",
    "now": "the date that the template shows, where it shows one: 2025-07-26 (the run's by default)",
}
MODELFILE = "Modelfile"
NUM_CTX = 8192  # Ollama reserves memory for all of it
_NAME = re.compile(  # types/model/name.go, isValidPart: host, namespace, model, tag
    r"((\w[\w.:-]{0,349}/)?\w[\w-]{0,79}/)?\w[\w.-]{0,79}(:\w[\w.-]{0,79})?", re.ASCII
)
_URL = "http://127.0.0.1:11434/v1"
_BOS = "tokenizer.ggml.bos_token_id"
_ADD_BOS = "tokenizer.ggml.add_bos_token"


def check(options: Mapping[str, str]) -> None:
    """What the GGUF needs, the name, and the date."""
    gguf.check(_of_file(options))
    if not _NAME.fullmatch(name := options.get("name", "tuned")):
        raise UserError(
            "Ollama takes no such name",
            where=f"name={name}",
            expected="MODEL, MODEL:TAG or NAMESPACE/MODEL, of letters, digits, _ and - (. in MODEL and TAG)",
            fix=f"name={re.sub(r'[^A-Za-z0-9_-]+', '-', name).strip('-') or 'mine'}",
        )
    _date(options)


def foresee(folder: Path, options: Mapping[str, str]) -> None:
    """What the GGUF needs of a model, numbers that it cannot take, and a template that Go cannot say."""
    gguf.foresee(folder, _of_file(options))
    _numbers(folder, options)
    _in_go(Encoder(load_tokenizer(str(folder))), options)


def _of_file(options: Mapping[str, str]) -> dict[str, str]:
    return {key: value for key, value in options.items() if key in gguf.OPTIONS}


def _in_go(encoder: Encoder, options: Mapping[str, str]) -> tuple[Translation, bool]:
    """(the chat template in Go's language, whether the GGUF must say that no BOS is added)."""
    template = template_of(encoder.tokenizer, _date(options))
    bos, extra = begins_with(template, encoder)
    translation = translated(template, bos)
    if options.get("system"):
        _check_system(translation, options["system"])
    return translation, extra


def make(merged: Path, out: Path, options: Mapping[str, str]) -> Made:
    """Translate and prove the template, write the GGUF and the Modelfile; TemplateError where Go cannot say it."""
    numbers = _numbers(merged, options)
    encoder = Encoder(load_tokenizer(str(merged)))
    translation, extra = _in_go(encoder, options)
    system = options.get("system", "")
    file = gguf.make(merged, out, _of_file(options))
    if extra:
        leave_bos_out(file.path)
    stops = [encoder.added.get(i) or encoder.decode([i]) for i in config_stops(merged)]
    commands = [Command("from", f"./{file.path.name}"), Command("template", translation.source)]
    commands += [Command("stop", stop) for stop in dict.fromkeys(stops)]
    commands += [
        Command(name, f"{value:g}" if isinstance(value, float) else str(value)) for name, value in numbers
    ]
    commands += [Command("system", system)] if system else []
    commands += _licence(merged, out)
    name = options.get("name", "tuned")
    comments = [
        f"{translation.compared} conversations give the same prompt as the chat template of training",
        *translation.notes,
        f"ollama create {name} -f {MODELFILE}",
    ]
    (out / MODELFILE).write_text(write_modelfile(commands, comments), encoding="utf-8")
    kind = gguf.check_type(options.get("type", "q8_0"))
    return Made(out / MODELFILE, (*file.notes, *translation.notes, *_how(name, kind, extra)))


def _how(name: str, kind: str, extra: bool) -> list[str]:
    lines = ["the GGUF says that no BOS is added, because the chat template writes none"] if extra else []
    weights = (
        f"gguf-{kind}" if f"gguf-{kind}" in BARS else "gguf-q8_0"
    )  # finer types have no bar of their own
    return [
        *lines,
        f"ollama create {name} -f {MODELFILE}   (in the folder of the {MODELFILE})",
        f"ollama run {name}",
        f"imprint parity RUN --url {_URL} --model {name} --weights {weights}   (whether Ollama says the same)",
    ]


def template_of(tokenizer: Any, now: datetime) -> Template:
    """The chat template of a tokenizer, as a server renders it."""
    source, name = find_template("auto", tokenizer.chat_template)
    special = {k: str(v) for k, v in tokenizer.special_tokens_map.items() if isinstance(v, str)}
    made = Template(source, name, special, now)
    return replace(made, form=find_form(made))


def _date(options: Mapping[str, str]) -> datetime:
    given = options.get("now")
    try:
        return datetime.fromisoformat(given) if given else datetime.now()
    except ValueError as error:
        raise UserError("now is no date", where=f"now={given}", expected="a date: 2025-07-26") from error


def begins_with(template: Template, encoder: Encoder) -> tuple[str, bool]:
    """(the BOS that llama.cpp puts before each text by itself, whether it does where the template has none).

    No text may begin with two: what llama.cpp adds, the Go template leaves out.
    """
    if not len(encoder.text_start):
        return "", False
    bos = str(encoder.tokenizer.bos_token)
    text = rendering(template, [Message("user", "Hello")])
    return ("", True) if text is not None and not text.startswith(bos) else (bos, False)


def translated(template: Template, bos: str) -> Translation:
    try:
        return translate(template, bos)
    except Untranslatable as error:
        raise TemplateError(
            "the chat template cannot be said in Ollama's language",
            where=template.name,
            found=str(error),
            expected="a prompt that Ollama's Go template gives equally for every conversation",
            fix="--to gguf: the file holds the chat template, which recent versions of Ollama and llama.cpp read from "
            "it; or train with a preset (template=chatml)",
        ) from error


def _check_system(translation: Translation, system: str) -> None:
    """UserError where the template takes no system message: each question would fail."""
    try:
        prompt_of(translation.source, [("system", system), ("user", "Hello")], datetime.now())
    except GoError as error:
        raise UserError(
            "the chat template takes no system message",
            where=f"system={system[:40]}",
            found=str(error),
            fix="leave system=… away",
        ) from error


def leave_bos_out(path: Path) -> None:
    """Let a GGUF file say that no BOS is added to a text."""
    from gguf import GGUFReader

    field = GGUFReader(path, "r+").fields[_ADD_BOS]
    field.parts[field.data[0]][0] = False


# ---- parameters ---------------------------------------------------------------------------------


def _numbers(merged: Path, options: Mapping[str, str]) -> list[tuple[str, int | float]]:
    """Parameters: the context, and how tokens are drawn. Ollama's own defaults (0.8, 40, 0.9) never apply."""
    path = merged / "generation_config.json"
    said: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    facts = read_model_facts(str(merged))
    room = (facts.context if facts else None) or NUM_CTX
    temperature = float(said.get("temperature") or 1.0) if said.get("do_sample") else 0.0
    temperature = _number(options, "temperature", temperature, math.inf)
    out: list[tuple[str, int | float]] = [
        ("num_ctx", int(_number(options, "num_ctx", min(room, NUM_CTX), room))),
        ("temperature", temperature),
    ]
    if temperature > 0:  # what transformers takes where a model says nothing
        out += [("top_k", int(said.get("top_k") or 0)), ("top_p", float(said.get("top_p") or 1.0))]
        out += [("min_p", float(said["min_p"]))] if said.get("min_p") else []
    return [*out, ("repeat_penalty", float(said.get("repetition_penalty") or 1.0))]


def _number(options: Mapping[str, str], key: str, usual: float, most: float) -> float:
    if key not in options:
        return usual
    try:
        value = float(options[key])
    except ValueError:
        value = math.nan
    least = 1 if key == "num_ctx" else 0
    if not least <= value <= most or (key == "num_ctx" and value != int(value)) or math.isinf(value):
        raise UserError(
            f"{key} is not a number that it can be",
            where=f"{key}={options[key]}",
            expected=f"a whole number from 1 to {most:,}" if key == "num_ctx" else "0 or more",
            fix=f"{key}={usual:g}",
        )
    return value


def _licence(merged: Path, out: Path) -> list[Command]:
    """LICENSE for each licence text; one that a Modelfile cannot hold lies beside it as a file."""
    commands = []
    for path in sorted([*merged.glob("LICENSE*"), *merged.glob("LICENCE*")]):
        if not path.is_file():
            continue
        shutil.copyfile(path, out / path.name)
        command = Command("license", path.read_text(encoding="utf-8", errors="replace").strip())
        try:
            write_modelfile([Command("from", "x"), command])
        except UserError:
            command = Command("license", f"see {path.name}, which came with the model")
        commands.append(command)
    said = read_tags(merged).get("license")
    return commands or ([Command("license", str(said))] if said else [])


# ---- proof --------------------------------------------------------------------------------------


def prove(golden: Path, made: Made) -> Proof:
    """Replay the run's golden file: the GGUF as --to gguf does, and each prompt through the Modelfile's template."""
    frozen = read_golden(golden)
    commands = read_modelfile(made.path.read_text(encoding="utf-8"))
    file = made.path.parent / next(command.value for command in commands if command.name == "from")
    weights = (
        gguf.TARGET.prove(golden, Made(file)) if gguf.TARGET.prove else Proof(None, "weights not replayed")
    )
    line, faults, facts = prove_prompts(frozen, commands, file)
    passed = False if faults or weights.passed is False else weights.passed
    return Proof(passed, f"{line}; {weights.line}", {**weights.facts, "passed": passed, "ollama": facts})


def prove_prompts(
    golden: Golden, commands: list[Command], file: Path
) -> tuple[str, list[str], dict[str, Any]]:
    """(a line, what differs, the facts): golden prompts against those of the Go template, and the stops."""
    source = next(command.value for command in commands if command.name == "template")
    stops = {command.value for command in commands if command.name == "stop"}
    faults = [f"no PARAMETER stop for {stop!r}" for stop in golden.stops if stop not in stops]
    program, bos = parse(source), _added_bos(file)
    equal, apart = 0, 0
    for example in golden.examples:
        pairs = _pairs(example)
        if pairs is None:
            apart += 1
            continue
        wanted = example.prompt.removeprefix(bos)
        try:
            got: str | None = prompt_of(program, pairs, datetime.fromisoformat(golden.now))
        except GoError:
            got = None
        if got == wanted:
            equal += 1
        else:
            faults.append(f"{example.source}: {difference(wanted, got)}")
    tried = len(golden.examples) - apart
    line = f"{equal} of {tried} prompts equal through the Go template"
    line += f" ({apart} with tools or thoughts were not asked)" if apart else ""
    line += f"; {faults[0]}" if faults else ""
    return line, faults, {"prompts": tried, "equal": equal, "not_asked": apart, "faults": faults}


def _added_bos(file: Path) -> str:
    """The text of what llama.cpp puts before each text by itself, by the file's own words."""
    from imprint.export.gguf_reload import read_metadata

    said = read_metadata(file)
    return str(said["tokenizer.ggml.tokens"][said[_BOS]]) if said.get(_ADD_BOS) else ""


def _pairs(example: Example) -> list[tuple[str, str]] | None:
    """(role, content) of a golden row's messages; None where it has what this template cannot take."""
    pairs = []
    for message in example.messages:
        content = message.get("content")
        if isinstance(content, list):
            content = "".join(str(part.get("text", "")) for part in content)
        unsaid = {"tool_calls", "reasoning_content", "thinking"} & {
            key for key, value in message.items() if value
        }
        if example.tools or unsaid or message["role"] not in ("system", "user", "assistant"):
            return None
        pairs.append((str(message["role"]), str(content or "")))
    return pairs


TARGET = Target("ollama", make, prove, OPTIONS, check, foresee)
