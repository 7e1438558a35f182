"""The tokenizer and the template of a run, made ready together: what is added, what stops a reply."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from imprint.errors import ModelError, TemplateError, nearest
from imprint.render.probe import choose_switch, find_form, stop_of_calls
from imprint.render.split import find_stop
from imprint.render.template import PRESETS, Template, find_template
from imprint.render.tokens import Encoder

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# names of end-of-text in the vocabularies of well-known base models that name none in a config
_END_OF_TEXT = ("<|endoftext|>", "</s>", "<|end_of_text|>", "<eos>", "<|eos|>", "[EOS]")


@dataclass(frozen=True)
class Rendering:
    """How this run turns conversations into ids.

    `stop_ids` are all ids at which a server must stop, the template's own first; `added` the
    tokens that the preset needed and the tokenizer lacked; `notes` what the user should know.
    """

    template: Template
    encoder: Encoder
    stop_ids: tuple[int, ...]
    added: tuple[str, ...] = ()
    notes: tuple[str, ...] = field(default=())


def load_tokenizer(folder: str, revision: str | None = None, trust_remote_code: bool = False) -> Any:
    """The tokenizer of a model folder or hub id; a folder that holds only a tokenizer.json is enough."""
    from huggingface_hub.errors import StrictDataclassError  # of config.json, which is read beside it
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    path = Path(folder)
    bare = path / "tokenizer.json"
    if bare.is_file() and not (path / "tokenizer_config.json").is_file():
        tokenizer: Any = PreTrainedTokenizerFast(tokenizer_file=str(bare))
    else:
        try:
            tokenizer = AutoTokenizer.from_pretrained(
                folder, revision=revision, trust_remote_code=trust_remote_code
            )
        except (OSError, ValueError, KeyError, TypeError, ImportError, StrictDataclassError) as error:
            raise ModelError(
                "the tokenizer cannot be loaded",
                where=f"model={folder}",
                found=" ".join(str(error).split())[:300],
                expected="tokenizer.json, or the files that transformers' AutoTokenizer reads",
                fix="copy the tokenizer's files into the model folder",
            ) from error
    if tokenizer.eos_token is None:
        _name_end_of_text(tokenizer, path)
    return tokenizer


def _name_end_of_text(tokenizer: Any, folder: Path) -> None:
    """Give a tokenizer that names no end-of-text the one of the model's config, or a well-known one."""
    config = folder / "config.json"
    number = _read_object(config).get("eos_token_id") if config.is_file() else None
    if isinstance(number, list):
        number = number[0] if number else None
    if number is not None:
        tokenizer.eos_token = tokenizer.convert_ids_to_tokens(number)
        return
    known = tokenizer.get_added_vocab()
    tokenizer.eos_token = next((name for name in _END_OF_TEXT if name in known), None)


def prepare_rendering(
    tokenizer: PreTrainedTokenizerBase,
    *,
    template: str = "auto",
    options: Mapping[str, Any] | None = None,
    now: datetime,
    reasoning: float = 0.0,
    config_stops: Sequence[int] = (),
) -> Rendering:
    """Find the template, add the tokens that a preset needs, settle the thinking switch and the stop set.

    `reasoning` is the share of the conversations that have any (see `choose_switch`).

    Raises TemplateError where there is no template, or where nothing could end a reply.
    """
    source, name = find_template(template, tokenizer.chat_template)
    added: list[str] = []
    notes: list[str] = []
    if template in PRESETS:
        added = _add_missing(tokenizer, PRESETS[template])
        if added:
            notes.append(
                f"added to the tokenizer for the {template} template: {', '.join(added)} "
                "(their embeddings are new, trained and saved)"
            )
    special = {
        key: str(value) for key, value in tokenizer.special_tokens_map.items() if isinstance(value, str)
    }
    made = _in_its_form(Template(source, name, special, now, dict(options or {})))
    own = tokenizer.chat_template
    if template == "auto" and isinstance(own, Mapping) and own.get("tool_use", source) != source:
        for_tools = replace(made, source=own["tool_use"], name=f"{name} for tools")
        made = replace(made, tool_use=_in_its_form(for_tools))
    _check_options(made)
    encoder = Encoder(tokenizer)
    made, note = choose_switch(made, encoder, reasoning)
    notes += [note] if note else []
    stop, note = _stop_of(made, encoder)
    notes += [note] if note else []
    eos: Any = tokenizer.eos_token_id
    if template in PRESETS:
        tokenizer.eos_token = stop  # so that tools that read only the tokenizer stop there too
    first: Any = tokenizer.convert_tokens_to_ids([stop, stop_of_calls(made, encoder) or stop])
    others = [int(i) for i in (eos, *config_stops) if i is not None and int(i) < encoder.num_tokens]
    return Rendering(made, encoder, tuple(dict.fromkeys([*first, *others])), tuple(added), tuple(notes))


def as_saved(rendering: Rendering) -> Rendering:
    """The rendering as a server has it, which sees no data: every switch at the template's own default.

    What a run has chosen is the default of the template that it saved (`Template.serving`).
    """
    template = rendering.template
    tool_use = replace(template.tool_use, options={}) if template.tool_use else None
    return replace(rendering, template=replace(template, options={}, tool_use=tool_use))


def _stop_of(template: Template, encoder: Encoder) -> tuple[str, str]:
    """The token that ends a reply, and a note where the template names none that the tokenizer has."""
    ending = template.ending
    span = find_stop(ending, encoder)
    if span:
        return ending[slice(*span)], ""
    if encoder.eos is None:
        raise TemplateError(
            "nothing would ever stop this model's replies",
            where=template.name,
            found=f"the template writes {ending!r} after a reply, and the tokenizer has no eos token",
            fix="use template=chatml, which adds its own stop, or set eos_token in tokenizer_config.json",
        )
    written = f"{ending.strip()!r}, which is no token of this tokenizer" if ending.strip() else "nothing"
    asked = "; is this template made for this tokenizer?" if ending.strip() else ""
    return (
        encoder.eos,
        f"the template ends a reply with {written}: {encoder.eos} is trained as the stop instead{asked}",
    )


def _in_its_form(template: Template) -> Template:
    return replace(template, form=find_form(template))


def _check_options(template: Template) -> None:
    """TemplateError where an option would have no effect, or could not be written into the saved template."""
    for key, value in template.options.items():
        if key not in template.variables:
            like = nearest(key, template.variables)
            raise TemplateError(
                f"the template has no option {key!r}",
                where=template.name,
                found=f"template_options.{key}={value!r}",
                expected=f"a variable that it reads: {', '.join(sorted(template.variables)) or 'it has none'}",
                fix=f"write {like}" if like else "remove it",
            )
        try:
            json.dumps(value)
        except (TypeError, ValueError) as error:
            raise TemplateError(
                f"the option {key!r} is neither a text, a number, a list nor an object",
                where=template.name,
                found=f"template_options.{key}={value!r}",
                fix="write it in quotes",
            ) from error


def _add_missing(tokenizer: Any, wanted: Sequence[str]) -> list[str]:
    from tokenizers import AddedToken

    missing = [token for token in wanted if token not in tokenizer.get_added_vocab()]
    tokenizer.add_tokens(
        [AddedToken(token, special=True, normalized=False) for token in missing], special_tokens=True
    )
    return missing


def config_stops(folder: Path) -> list[int]:
    """Ids at which the model's own generation_config.json or config.json stops."""
    found: list[int] = []
    for name in ("generation_config.json", "config.json"):
        path = folder / name
        if path.is_file():
            ids = _read_object(path).get("eos_token_id")
            found += ids if isinstance(ids, list) else [] if ids is None else [ids]
    return list(dict.fromkeys(found))


def _read_object(path: Path) -> dict[str, Any]:
    """The object in a JSON file of the model folder; ModelError where it holds none."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        value, found = None, str(error)
    else:
        found = type(value).__name__
    if not isinstance(value, dict):
        raise ModelError(
            f"{path.name} is not a JSON object",
            where=str(path),
            found=found,
            fix="copy it anew from where the model came from",
        )
    return value
