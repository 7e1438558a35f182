"""A chat with a run or a model in the terminal, through the template that it was trained with."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import yaml

from imprint.data.conversation import Conversation, Message, Place
from imprint.errors import DataError, ModelError, RunError, TemplateError
from imprint.evaluate.generate import TextStream, greedy, until_stop
from imprint.model.adapter_folder import put_adapter
from imprint.model.fingerprint import model_fingerprint
from imprint.model.load import (
    find_model,
    grow_embeddings,
    read_weights,
    refuse_remote_code,
)
from imprint.model.quantize import read_quantized
from imprint.model.rowmodel import RowModel
from imprint.model_facts import may_be_hub_id, no_folder
from imprint.render.control import escape_control, find_control
from imprint.render.resolve import Rendering, as_saved, config_stops, load_tokenizer, prepare_rendering
from imprint.render.template import Refused
from imprint.render.tokens import Ids

Show = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Said:
    """The ids of one exchange: the whole prompt, and what the model wrote behind it, its stop included.

    A reply that was stopped, or that reached its longest, has no stop.
    """

    prompt: Ids
    reply: Ids


@dataclass
class Speaker:
    """A model that answers, and how it is spoken to; `said` is its last exchange."""

    name: str
    model: RowModel
    rendering: Rendering
    said: Said | None = None
    control_tokens: Literal["refuse", "escape", "keep"] = "refuse"

    def reply(
        self, messages: Sequence[Message], show: Show, max_new_tokens: int = 512, **options: Any
    ) -> str:
        """The answer to `messages`, shown as it comes. Greedy unless `temperature` is above 0."""
        template = self.rendering.template
        messages = self._without_control(messages)
        try:
            text = template.render(template.inputs(messages), add_generation_prompt=True)
        except Refused as error:
            system = "leave the system message out, or " if messages[0].role == "system" else ""
            raise TemplateError(
                "the chat template refuses this conversation",
                where=template.name,
                found=str(error),
                fix=f"{system}choose another template: --template chatml",
            ) from error
        prompt = self.rendering.encoder.encode([text])[0]
        return self.complete(prompt, show, max_new_tokens, **options)

    def _without_control(self, messages: Sequence[Message]) -> Sequence[Message]:
        """The messages, no control token in what a person said: as the server has them. The model's own may stay."""
        conversation, encoder = Conversation(tuple(messages), Place("the chat", 1)), self.rendering.encoder
        if self.control_tokens == "escape":
            return escape_control(conversation, encoder).messages
        spoken = replace(conversation, messages=tuple(m for m in messages if m.role != "assistant"))
        forged = find_control(spoken, encoder) if self.control_tokens == "refuse" else None
        if forged is None:
            return messages
        raise DataError(
            "a control token of the model in the text: it would be read as such, not as text",
            found=f"{forged.token} in what the {forged.role} says",
            fix="put a space into it (or train with control_tokens=escape or keep)",
        )

    def complete(
        self,
        prompt: Ids,
        show: Show,
        max_new_tokens: int = 512,
        temperature: float = 0.0,
        seed: int | None = None,
    ) -> str:
        """What the model writes behind the ids `prompt`, up to its stop."""
        context = self.model.context
        room = context - len(prompt) if context else max_new_tokens
        if room < 1:
            raise ModelError(
                "the conversation is longer than the model's context",
                found=f"{len(prompt):,} tokens",
                expected=f"fewer than {context:,}",
                fix="ask with less text before the reply",
            )
        if seed is not None:
            torch.manual_seed(seed)
        stops = self.rendering.stop_ids
        options = greedy(stops, min(max_new_tokens, room))
        if temperature > 0:
            # colder than this, float32 overflows: the likeliest token is certain long before
            options |= {"do_sample": True, "temperature": max(temperature, 1e-6)}
        device = next(self.model.parameters()).device
        ids = torch.from_numpy(prompt.astype("int64"))[None].to(device)
        stream = TextStream(self.rendering.encoder, stops, show)
        try:
            out = self.model.generate(
                input_ids=ids, attention_mask=torch.ones_like(ids), streamer=stream, **options
            )
        except KeyboardInterrupt:
            self.said = Said(prompt, np.array(stream.ids, np.int32))
            raise
        written = out[0, len(prompt) :].cpu().numpy().astype(np.int32)
        reply, stopped = until_stop(written, stops)
        self.said = Said(prompt, written[: len(reply) + stopped])
        return self.rendering.encoder.decode(reply)


def find_trained(path: Path) -> Path:
    """The model folder of a run, or the folder itself where it is a model."""
    if (path / "run.json").is_file():
        if not (path / "model").is_dir():
            raise RunError(
                "this run has no model yet",
                where=str(path),
                found="no model/ in it: it was stopped, or it still runs",
                fix=f"go on with it: imprint resume {path}",
            )
        return path / "model"
    return path


def find_base(recorded: Path, key: str) -> Path:
    """The folder of the base model that `recorded`, a JSON file, names; ModelError where it is gone."""
    try:
        name = os.fspath(json.loads(recorded.read_text(encoding="utf-8"))[key])
    except (ValueError, KeyError, TypeError) as error:
        raise ModelError(
            "the base model is not recorded",
            where=f"{recorded}: {key}",
            found=f"{type(error).__name__}: {error}",
            expected="the folder or the hub id of the model that was tuned",
            fix=f"write it into {key}",
        ) from error
    try:
        return find_model(name)
    except ModelError as error:
        raise ModelError(
            f"the base model cannot be used: {error.what}",
            where=f"{recorded}: {key}",
            found=f"{name}\n{error.found}".rstrip(),
            expected="the model that was tuned, where it was then",
            fix=f"put it back, or correct {key} in {recorded.name}: {error.fix}",
        ) from error


def refuse_another_base(folder: Path, base: Path) -> None:
    """ModelError where the adapter of a run is to be put on a base whose bytes are not those that it was trained on."""
    facts = folder.parent / "run.json"
    if folder.name != "model" or not facts.is_file():
        return
    known = _recorded(facts).get("fingerprints", {}).get("model")
    if known is not None and known != (now := model_fingerprint(base)):
        raise ModelError(
            "the base model is not the one that this adapter was trained on",
            where=str(base),
            found=f"fingerprint {now[:12]}",
            expected=f"fingerprint {known[:12]}, as {facts} says",
            fix="put the base back as it was, or train anew on this one",
        )


def trained_with(path: Path) -> Literal["refuse", "escape", "keep"]:
    """What is done with control tokens in what is said to a run: as in training; refused where that left them out."""
    recipe = path / "recipe.yaml"
    if not recipe.is_file():
        return "refuse"
    said = _recorded(recipe).get("control_tokens")
    return said if said in ("escape", "keep") else "refuse"


def shown_date(path: Path) -> datetime:
    """The date for templates that show one: a run's own; today's for a bare model, as a server would."""
    facts = path / "run.json"
    if not facts.is_file():
        return datetime.now()
    return datetime.fromisoformat(_recorded(facts)["created"])


def _recorded(path: Path) -> dict[str, Any]:
    """What a run says of itself in its run.json or recipe.yaml; RunError where that cannot be read."""
    load = json.loads if path.suffix == ".json" else yaml.safe_load
    try:
        return dict(load(path.read_text(encoding="utf-8")) or {})
    except (ValueError, TypeError, yaml.YAMLError) as error:
        raise RunError(
            "this file of the run cannot be read",
            where=str(path),
            found=str(error),
            expected="what imprint train wrote",
            fix="put it back from a copy",
        ) from error


def load_speaker(path: Path, device: str = "cpu", template: str = "auto") -> Speaker:
    """A run, a model folder, or a folder that holds a PEFT adapter, ready to answer."""
    folder = find_trained(path)
    if not folder.is_dir() and not may_be_hub_id(str(folder)):
        raise no_folder(folder)
    adapter = folder / "adapter_config.json"
    base = find_base(adapter, "base_model_name_or_path") if adapter.is_file() else find_model(str(folder))
    if adapter.is_file():
        refuse_another_base(folder, base)
    tokenizer = load_tokenizer(str(folder))
    stops = list(dict.fromkeys(config_stops(folder) + config_stops(base)))
    rendering = as_saved(
        prepare_rendering(tokenizer, template=template, now=shown_date(path), config_stops=stops)
    )
    model = load_weights(base, folder if adapter.is_file() else None, len(tokenizer))
    row_model = RowModel(model.to(device)).eval()
    return Speaker(path.name, row_model, rendering, control_tokens=trained_with(path))


def load_weights(base: Path, adapter: Path | None, num_tokens: int, **options: Any) -> Any:
    """The model as it is served, in float32 unless `options` say otherwise, adapters on top."""
    from transformers import AutoModelForCausalLM

    refuse_remote_code(base, allowed=False)
    quantized = read_quantized(adapter) if adapter is not None else None
    if quantized is not None:
        model: Any = read_weights(base, 0.0, False, quantized)
    else:
        options = {"dtype": torch.float32, "use_safetensors": True, **options}
        model = AutoModelForCausalLM.from_pretrained(base, **options)
    if num_tokens > model.get_input_embeddings().weight.shape[0]:
        grow_embeddings(model, num_tokens)  # new tokens: those of an adapter are trained, and come with it
    if adapter is not None:
        model = put_adapter(model, adapter)
    return model


@dataclass
class Chat:
    """A conversation that goes on."""

    speakers: list[Speaker]
    system: str = ""
    messages: list[Message] = field(default_factory=list)

    @property
    def head(self) -> list[Message]:
        return [Message("system", self.system)] if self.system else []

    def ask(self, text: str, show: Callable[[str, str], None], **options: Any) -> list[str]:
        """Every speaker's answer to `text`; the first one's becomes part of the conversation."""
        asked = [*self.head, *self.messages, Message("user", text)]
        replies = []
        for speaker in self.speakers:
            replies.append(speaker.reply(asked, partial(show, speaker.name), **options))
        self.messages += [Message("user", text), Message("assistant", replies[0])]
        return replies

    def undo(self) -> str | None:
        """Take the last question and its answer back; the question, or None where there is none."""
        if not self.messages:
            return None
        question = self.messages[-2].content
        del self.messages[-2:]
        return question

    def row(self) -> dict[str, Any]:
        """The conversation so far as one demonstration, in the shape `messages`."""
        said = [{"role": m.role, "content": m.content} for m in (*self.head, *self.messages)]
        return {"messages": said}
