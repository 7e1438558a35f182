"""A chat with a run or a model in the terminal, through the template that it was trained with."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import torch

from imprint.data.conversation import Message
from imprint.errors import ModelError, RunError, TemplateError
from imprint.evaluate.generate import TextStream, greedy, until_stop
from imprint.model.load import find_model, grow_embeddings, refuse_remote_code
from imprint.model.rowmodel import RowModel
from imprint.model_facts import may_be_hub_id, no_folder
from imprint.render.resolve import Rendering, config_stops, load_tokenizer, prepare_rendering
from imprint.render.template import Refused

Show = Callable[[str], None]


@dataclass
class Speaker:
    """A model that answers, and how it is spoken to."""

    name: str
    model: RowModel
    rendering: Rendering

    def reply(
        self, messages: Sequence[Message], show: Show, max_new_tokens: int = 512, **options: Any
    ) -> str:
        """The answer to `messages`, shown as it comes. Greedy unless `temperature` is above 0."""
        template = self.rendering.template
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

    def complete(
        self,
        prompt: Any,
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
            options |= {"do_sample": True, "temperature": temperature}
        device = next(self.model.parameters()).device
        ids = torch.from_numpy(prompt.astype("int64"))[None].to(device)
        stream = TextStream(self.rendering.encoder, stops, show)
        out = self.model.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), streamer=stream, **options
        )
        reply, _ = until_stop(out[0, len(prompt) :].cpu().numpy(), stops)
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


def shown_date(path: Path) -> datetime:
    """The date for templates that show one: a run's own; today's for a bare model, as a server would."""
    facts = path / "run.json"
    if not facts.is_file():
        return datetime.now()
    return datetime.fromisoformat(json.loads(facts.read_text(encoding="utf-8"))["created"])


def load_speaker(path: Path, device: str = "cpu", template: str = "auto") -> Speaker:
    """A run, a model folder, or a folder that holds a PEFT adapter, ready to answer."""
    folder = find_trained(path)
    if not folder.is_dir() and not may_be_hub_id(str(folder)):
        raise no_folder(folder)
    adapter = folder / "adapter_config.json"
    base = find_base(adapter, "base_model_name_or_path") if adapter.is_file() else find_model(str(folder))
    tokenizer = load_tokenizer(str(folder))
    stops = list(dict.fromkeys(config_stops(folder) + config_stops(base)))
    rendering = prepare_rendering(tokenizer, template=template, now=shown_date(path), config_stops=stops)
    model = load_weights(base, folder if adapter.is_file() else None, len(tokenizer))
    row_model = RowModel(model.to(device)).eval()
    return Speaker(path.name, row_model, rendering)


def load_weights(base: Path, adapter: Path | None, num_tokens: int) -> Any:
    """The model in float32 as it is served: transformers' own attention, adapters on top."""
    from transformers import AutoModelForCausalLM

    refuse_remote_code(base, allowed=False)
    model: Any = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32, use_safetensors=True)
    if num_tokens > model.get_input_embeddings().weight.shape[0]:
        grow_embeddings(model, num_tokens)  # new tokens: those of an adapter are trained, and come with it
    if adapter is not None:
        from peft import PeftModel

        with warnings.catch_warnings():
            # peft 0.21 asks transformers 5 by a name that is going away
            warnings.simplefilter("ignore", FutureWarning)
            model = PeftModel.from_pretrained(model, adapter)
    return model


@dataclass
class Chat:
    """A conversation that goes on."""

    speakers: list[Speaker]
    system: str = ""
    messages: list[Message] = field(default_factory=list)

    def ask(self, text: str, show: Callable[[str, str], None], **options: Any) -> list[str]:
        """Every speaker's answer to `text`; the first one's becomes part of the conversation."""
        head = [Message("system", self.system)] if self.system else []
        asked = [*head, *self.messages, Message("user", text)]
        replies = []
        for speaker in self.speakers:
            replies.append(speaker.reply(asked, partial(show, speaker.name), **options))
        self.messages += [Message("user", text), Message("assistant", replies[0])]
        return replies
