"""A tokenizer as llama.cpp reads it from a GGUF file: tokens, types, merges or scores, special ids, template.

Two kinds exist among the families that imprint writes: byte-level BPE ("gpt2": merges and the name of a
pre-tokenizer) and SentencePiece's BPE ("llama": a score for each token, and tokens for single bytes).
Everything is read from the tokenizer that training used, however its folder keeps it (tokenizer.json or
tokenizer.model), and what llama.cpp cannot do is refused, or said where it touches rare texts alone.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from imprint.errors import ModelError
from imprint.export.gguf_pre import recognise

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6  # gguf.TokenType
_BYTE = re.compile(r"<0x[0-9A-F]{2}>")
SPACE = "▁"

# Where llama.cpp stops generating whatever a file says, told by the text of a token (src/llama-vocab.cpp).
STOPS_BY_TEXT = frozenset({
    "<|eot_id|>", "<|im_end|>", "<|end|>", "<|return|>", "<|call|>", "<|flush|>", "<|calls|>",
    "<end_of_turn>", "<|endoftext|>", "</s>", "<|eom_id|>", "<EOT>", "_<EOT>", "[EOT]", "[EOS]",
    "<|end_of_text|>", "<end_of_utterance>", "<eos>", "<turn|>", "<|tool_response>", "<｜end▁of▁sentence｜>",
})  # fmt: skip


@dataclass(frozen=True)
class Vocabulary:
    """What the `tokenizer.` keys of a GGUF file say."""

    model: str  # "gpt2": byte-level BPE; "llama": SentencePiece
    pre: str
    tokens: tuple[str, ...]  # one for each row of the embedding
    types: tuple[int, ...]
    scores: tuple[float, ...] | None
    merges: tuple[str, ...] | None
    ids: dict[str, int]  # "bos", "eos", "eot", "eom", "unk", "pad", where there is one
    add_bos: bool
    add_eos: bool
    add_space_prefix: bool | None
    template: str | None
    notes: tuple[str, ...]


def read_vocabulary(folder: Path, rows: int, pre: str | None = None) -> Vocabulary:
    """The vocabulary of the tokenizer in a folder, for an embedding of so many rows.

    `pre` overrules the recognised pre-tokenizer. Raises ModelError for what llama.cpp cannot tokenize alike.
    """
    from transformers import AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise _cannot(folder, "the kind of tokenizer", type(tokenizer).__name__, "a fast one (tokenizers)")
    spec = json.loads(backend.to_str())
    texts, types = _tokens(tokenizer, rows, folder)
    notes = [*_added_notes(tokenizer)]
    before, after = _around(tokenizer, folder)
    if before and _begins_without_bos(tokenizer):
        before = False
        notes.append(
            f"the file says that no {tokenizer.bos_token} is put before a text: llama.cpp would put it before a chat "
            "too, where the chat template has none"
        )
    scores, merges, space = None, None, None
    if _has(spec["pre_tokenizer"], "ByteLevel") and spec["model"]["type"] == "BPE":
        kind, known = "gpt2", recognise(backend, pre)
        name = known.name
        notes += [*known.notes, *_normalizer_notes(spec, folder, ("NFC",))]
        merges = tuple(" ".join(pair) for pair in _pairs(spec))
        notes += _byte_notes(spec)
    elif spec["model"]["type"] == "BPE" and spec["model"].get("byte_fallback"):
        kind, name = "llama", "default"
        scores = _scores(spec, texts, types, folder)
        notes += _normalizer_notes(spec, folder, ("Prepend", "Replace", "Precompiled", "NFKC"))
        space, said = _space_prefix(tokenizer, backend)
        notes += said
        if pre is not None:
            notes.append("pre=… has no effect: a SentencePiece tokenizer has no pre-tokenizer in llama.cpp")
    else:
        what = f"{spec['model']['type']} with {(spec['pre_tokenizer'] or {}).get('type', 'no')} pre-tokenizer"
        raise _cannot(folder, "model", what, "byte-level BPE, or SentencePiece BPE with tokens for bytes")
    ids, said = _special_ids(tokenizer, folder, texts)
    return Vocabulary(
        kind, name, tuple(texts), tuple(types), scores, merges, ids, before, after, space,
        _template(tokenizer), (*notes, *said),
    )  # fmt: skip


def _tokens(tokenizer: Any, rows: int, folder: Path) -> tuple[list[str], list[int]]:
    """Text and type of every id below `rows`; ids that no token has are marked as unused."""
    added = tokenizer.added_tokens_decoder
    by_id = {number: text for text, number in tokenizer.get_vocab().items()}
    if max(by_id) >= rows:
        raise ModelError(
            "the tokenizer has more tokens than the model",
            where=f"{folder.name}/config.json: vocab_size",
            found=f"{max(by_id) + 1} tokens, {rows} rows in the embedding",
            expected="a row for every token",
            fix="use the tokenizer of this model, or resize the embedding before training",
        )
    texts, types = [], []
    for number in range(rows):
        text = by_id.get(number)
        if text is None:
            texts.append(f"[PAD{number}]")
            types.append(UNUSED)
        elif number in added:
            special = added[number].special or number == tokenizer.unk_token_id
            texts.append(text if special else text.replace(SPACE, " "))
            types.append(CONTROL if special else USER_DEFINED)
            if number == tokenizer.unk_token_id and tokenizer.unk_token_id != tokenizer.eos_token_id:
                types[-1] = UNKNOWN
        else:
            texts.append(text)
            types.append(BYTE if _BYTE.fullmatch(text) else NORMAL)
    if len(set(texts)) != len(texts):
        twice = next(text for i, text in enumerate(texts) if text in texts[:i])
        raise _cannot(folder, "the vocabulary", f"two tokens with the text {twice!r}", "different texts")
    return texts, types


def _pairs(spec: dict[str, Any]) -> list[tuple[str, str]]:
    """The merges, first come first, as pairs: tokenizer.json has them as lists or as "a b"."""
    merges = spec["model"]["merges"]
    return [tuple(one) if isinstance(one, list) else tuple(one.split(" ", 1)) for one in merges]


def _scores(
    spec: dict[str, Any], texts: Sequence[str], types: Sequence[int], folder: Path
) -> tuple[float, ...]:
    """A score for each token that makes llama.cpp merge as the tokenizer's merges do.

    llama.cpp joins the two neighbours whose join is the token of the highest score. That is the order of
    the merges if all pairs that spell a token stand in them, and stand together. Raises ModelError if not.
    """
    vocabulary, last = spec["model"]["vocab"], None
    rank: dict[str, int] = {}
    pairs = _pairs(spec)
    for number, (left, right) in enumerate(pairs):
        token = left + right
        if token in rank and last != token:
            raise _other_merges(folder, f"{left!r} + {right!r} far from the other merges that make {token!r}")
        rank.setdefault(token, number)
        last = token
    known, plain = set(pairs), {text for text, type in zip(texts, types, strict=True) if type == NORMAL}
    for token in plain:
        for cut in range(1, len(token)):
            pair = (token[:cut], token[cut:])
            if pair not in known and pair[0] in plain and pair[1] in plain and token in vocabulary:
                raise _other_merges(
                    folder, f"no merge of {pair[0]!r} and {pair[1]!r}, though {token!r} is a token"
                )
    return tuple(float(-rank[text]) if text in rank else -1e6 if type == NORMAL else 0.0
                 for text, type in zip(texts, types, strict=True))  # fmt: skip


def _space_prefix(tokenizer: Any, backend: Any) -> tuple[bool, list[str]]:
    """Whether llama.cpp shall put a space before a text, and which texts it then tokenizes otherwise.

    It does so at the start and after every special token, or nowhere; tokenizers know more ways. Where a
    tokenizer has a chat template, what stands behind special tokens counts, else what stands alone.
    """
    special = [str(one.content) for one in tokenizer.added_tokens_decoder.values() if one.special]
    control = next(iter(special), "")
    alone = {"a text that stands alone": "a", "a text that stands alone and begins with a space": " a"}
    behind = {
        "a text behind a special token": f"{control}a",
        "a text behind a special token that begins with a space": f"{control} a",
    }
    probes = ({**behind, **alone} if tokenizer.chat_template else {**alone, **behind}) if control else alone

    def differing(prefix: bool) -> list[str]:
        found = []
        for what, text in probes.items():
            tokens = backend.encode(text, add_special_tokens=False).tokens
            made = "".join(token for token in tokens if token != control)
            expected = SPACE * prefix + text.removeprefix(control).replace(" ", SPACE)
            found += [what] * (made != expected)
        return found

    prefix = min((True, False), key=lambda flag: [what in differing(flag) for what in probes])
    lost = differing(prefix)
    return prefix, [f"llama.cpp tokenizes {' and '.join(lost)} otherwise: its spaces differ"] if lost else []


def _around(tokenizer: Any, folder: Path) -> tuple[bool, bool]:
    """Whether bos comes before a text and eos after it, told by encoding one."""
    bare = tokenizer("a", add_special_tokens=False)["input_ids"]
    whole = tokenizer("a")["input_ids"]
    for bos in ([], [tokenizer.bos_token_id]):
        for eos in ([], [tokenizer.eos_token_id]):
            if whole == [*bos, *bare, *eos]:
                return bool(bos), bool(eos)
    raise _cannot(folder, "post_processor", f"{whole} from {bare}", "bos before, eos after, or nothing")


def _begins_without_bos(tokenizer: Any) -> bool:
    """Whether there is a chat template whose prompts do not begin with the bos token."""
    from jinja2 import TemplateError

    if _template(tokenizer) is None:
        return False
    try:
        asked = [{"role": "user", "content": "Hello"}]
        text = tokenizer.apply_chat_template(asked, tokenize=False, add_generation_prompt=True)
    except TemplateError:  # it wants another conversation: what the tokenizer does to texts stands
        return False
    return not text.startswith(str(tokenizer.bos_token))


def _special_ids(tokenizer: Any, folder: Path, texts: Sequence[str]) -> tuple[dict[str, int], list[str]]:
    """The ids that have a key of their own; every stop id has one, or is a stop for llama.cpp by its text."""
    ids = {"bos": tokenizer.bos_token_id, "unk": tokenizer.unk_token_id, "pad": tokenizer.pad_token_id}
    stops = stop_ids(folder) or ([] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id])
    if tokenizer.eos_token_id in stops:
        stops = [tokenizer.eos_token_id, *(id for id in stops if id != tokenizer.eos_token_id)]
    rest = sorted(stops[1:], key=lambda id: texts[id] in STOPS_BY_TEXT)
    for key, id in zip(("eos", "eot", "eom"), [*stops[:1], *rest], strict=False):
        ids[key] = id
    notes, known = [], set(ids[key] for key in ("eos", "eot", "eom") if key in ids)
    lost = [texts[id] for id in stops if id not in known and texts[id] not in STOPS_BY_TEXT]
    if lost:
        notes.append(
            f"llama.cpp will not stop at {', '.join(lost)} (a GGUF file names three stops): "
            "give it as a stop word where you serve"
        )
    more = [text for id, text in enumerate(texts) if text in STOPS_BY_TEXT and id not in stops]
    if more:
        notes.append(f"llama.cpp also stops at {', '.join(more)}, because of the text of this token")
    return {key: id for key, id in ids.items() if id is not None}, notes


def stop_ids(folder: Path) -> list[int]:
    """The ids that end a reply, as a folder says: generation_config.json, else config.json."""
    for name in ("generation_config.json", "config.json"):
        path = folder / name
        found = json.loads(path.read_text(encoding="utf-8")).get("eos_token_id") if path.is_file() else None
        if found is not None:
            return [found] if isinstance(found, int) else list(found)
    return []


def _template(tokenizer: Any) -> str | None:
    template = tokenizer.chat_template
    if isinstance(template, dict):
        template = template.get("default")
    return template or None


def _has(node: Any, type: str) -> bool:
    """Whether a part of tokenizer.json, or one within it, is of a type."""
    return type in _types(node)


def _types(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        if isinstance(node.get("type"), str):
            yield node["type"]
        for value in node.values():
            yield from _types(value)
    elif isinstance(node, list):
        for value in node:
            yield from _types(value)


def _normalizer_notes(spec: dict[str, Any], folder: Path, allowed: Sequence[str]) -> list[str]:
    found = [type for type in _types(spec["normalizer"]) if type != "Sequence"]
    strange = [type for type in found if type not in allowed]
    if strange:
        raise _cannot(folder, "normalizer", ", ".join(strange), f"none, or {', '.join(allowed)}")
    forms = [type for type in found if type not in ("Prepend", "Replace")]
    if not forms:
        return []
    return [
        f"llama.cpp does not normalise ({forms[0]}): texts that are not {forms[0]} get other tokens there"
    ]


def _byte_notes(spec: dict[str, Any]) -> Iterator[str]:
    from tokenizers import pre_tokenizers

    missing = set(pre_tokenizers.ByteLevel.alphabet()) - set(spec["model"]["vocab"])
    if missing:
        yield (
            f"the tokenizer has no token for {len(missing)} of the 256 bytes and drops them; "
            "llama.cpp tokenizes texts with such a byte otherwise"
        )


def _added_notes(tokenizer: Any) -> Iterator[str]:
    for flag in ("lstrip", "rstrip", "single_word"):
        with_it = [one.content for one in tokenizer.added_tokens_decoder.values() if getattr(one, flag)]
        if with_it:
            yield f"llama.cpp ignores {flag} of {', '.join(with_it[:3])}{' …' if len(with_it) > 3 else ''}"


def _cannot(folder: Path, where: str, found: str, expected: str) -> ModelError:
    return ModelError(
        "llama.cpp cannot tokenize as this tokenizer does",
        where=f"{folder.name}/tokenizer.json: {where}",
        found=found,
        expected=expected,
        fix="serve the exported folder itself: imprint export RUN --to hf",
    )


def _other_merges(folder: Path, found: str) -> ModelError:
    return _cannot(
        folder, "model.merges", found, "merges in SentencePiece's order, every pair that spells a token"
    )
