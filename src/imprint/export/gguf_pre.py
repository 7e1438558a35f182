"""Which pre-tokenizer of llama.cpp a byte-level BPE tokenizer has, told by how it cuts text.

A GGUF file does not carry a tokenizer's regular expression, only a name (`tokenizer.ggml.pre`) that
llama.cpp knows. A wrong name raises no error anywhere: the model is simply fed other tokens than it was
trained on. So the name is never guessed from a model's family: the tokenizer at hand and every known
pre-tokenizer cut the same probes, and only an equal cut of all of them counts.

The expressions are those of the models' own tokenizer.json; which name stands for which is a fact of
llama.cpp's src/llama-vocab.cpp.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from imprint.errors import ModelError, nearest

_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_ENDINGS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_REST_SLASH = r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_EDGE = r"[^\r\n\p{L}\p{N}]?"
_PUNCTUATION = r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~]"""

# name → (the expressions that cut one after the other, whether whole words in the vocabulary skip the merges)
PRE_TOKENIZERS: dict[str, tuple[tuple[str, ...], bool]] = {
    "gpt-2": ((_GPT2,), False),
    "smollm": ((r"\p{N}", _GPT2), False),
    "qwen2": ((rf"{_ENDINGS}|{_EDGE}\p{{L}}+|\p{{N}}|{_REST}",), False),
    "qwen35": (
        (
            rf"{_ENDINGS}|{_EDGE}[\p{{L}}\p{{M}}]+|\p{{N}}| ?[^\s\p{{L}}\p{{M}}\p{{N}}]+[\r\n]*"
            r"|\s*[\r\n]+|\s+(?!\S)|\s+",
        ),
        False,
    ),
    "llama-bpe": ((rf"{_ENDINGS}|{_EDGE}\p{{L}}+|\p{{N}}{{1,3}}|{_REST}",), True),
    "smaug-bpe": ((rf"{_ENDINGS}|{_EDGE}\p{{L}}+|\p{{N}}{{1,3}}|{_REST}",), False),
    "tekken": (
        (rf"{_EDGE}{_UPPER}*{_LOWER}+|{_EDGE}{_UPPER}+{_LOWER}*|\p{{N}}|{_REST_SLASH}",),
        True,
    ),
    "gpt-4o": (
        (
            rf"{_EDGE}{_UPPER}*{_LOWER}+{_ENDINGS}?|{_EDGE}{_UPPER}+{_LOWER}*{_ENDINGS}?"
            rf"|\p{{N}}{{1,3}}|{_REST_SLASH}",
        ),
        False,
    ),
    "deepseek-v3": (
        (
            r"\p{N}{1,3}",
            "[一-龥\u3040-ゟ゠-ヿ]+",
            rf"{_PUNCTUATION}[A-Za-z]+|[^\r\n\p{{L}}\p{{P}}\p{{S}}]?[\p{{L}}\p{{M}}]+"
            r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        ),
        False,
    ),
}

PROBES = (
    "I'll say it's theirs, they've 'RE WE'LL don't DON'T 'tis 'Sir o'clock",
    "3 33 333 3333 33333 3.14 1,000,000 2026-11-28 x1y22z333 ½ ² Ⅷ ٣٤٥٦",
    "a  b   c\td\t\te\n\n f \n \n\r\n  g   \n   h    ",
    "end.\n\nnext?!\r\n...\n---\n### title\n*/ //\n/ a/b/c/\n",
    "HelloWorld iPhone XMLHttpRequest ABC abc ǅungla",
    "e\u0301te\u0301 किताब का नाम ภาษาไทย עִבְרִית \u0301alone",
    "你好，世界123。ひらがなカタカナ 한국어 русский языкъ",
    "#tag @name _under_ $5 %x ^y &z (a)[b]{c} <d> =e +f ~g `h` a_b-c.d",
    "🚀🦙 👩\u200d🚀 ✅✅ \u00a0nbsp\u2003em\u200bzero",
    " leading", "  two", "trailing ", "\n", " ", "a", "'", " '", "'s", " 's",
)  # fmt: skip


@dataclass(frozen=True)
class PreTokenizer:
    """What llama.cpp is told of a tokenizer's way to cut text, and what deserves a word about it."""

    name: str
    notes: tuple[str, ...] = ()


def recognise(tokenizer: Any, chosen: str | None = None) -> PreTokenizer:
    """The name of a byte-level BPE tokenizer's (`tokenizers.Tokenizer`) pre-tokenizer in llama.cpp.

    `chosen` overrules what is found, with a note where it cuts otherwise. Raises ModelError for one
    that no known name cuts like.
    """
    cuts = _cuts(tokenizer.pre_tokenizer)
    same = [name for name, (expressions, _) in PRE_TOKENIZERS.items() if cuts == _cuts(built(expressions))]
    if chosen is not None:
        return PreTokenizer(chosen, _doubts(chosen, same, cuts))
    if not same:
        raise ModelError(
            "the tokenizer cuts text in a way that no known pre-tokenizer of llama.cpp does",
            where="tokenizer.json: pre_tokenizer",
            found=_first_difference(cuts),
            expected="the cut of one of " + ", ".join(PRE_TOKENIZERS),
            fix="if llama.cpp knows this tokenizer by a name, give that name: pre=NAME",
        )
    skips = _skips_merges(tokenizer)
    for name in same:
        if skips is None or PRE_TOKENIZERS[name][1] == skips:
            return PreTokenizer(name)
    raise ModelError(
        "the tokenizer cuts text as llama.cpp can, but treats whole words otherwise",
        where="tokenizer.json: model.ignore_merges",
        found=f"ignore_merges = {str(skips).lower()} with the cut of {same[0]}",
        expected=f"ignore_merges = {str(not skips).lower()}, as llama.cpp does for {same[0]}",
        fix="if llama.cpp knows this tokenizer by another name, give that name: pre=NAME",
    )


def built(expressions: tuple[str, ...]) -> Any:
    from tokenizers import Regex, pre_tokenizers

    steps = [pre_tokenizers.Split(Regex(expression), behavior="isolated") for expression in expressions]
    return pre_tokenizers.Sequence(
        [*steps, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )


def _cuts(pre_tokenizer: Any) -> list[list[str]]:
    """The pieces of each probe, in the alphabet of bytes."""
    if pre_tokenizer is None:
        return []
    return [[piece for piece, _ in pre_tokenizer.pre_tokenize_str(probe)] for probe in PROBES]


def _first_difference(cuts: list[list[str]]) -> str:
    """Where the nearest known pre-tokenizer first cuts otherwise."""
    if not cuts:
        return "no pre_tokenizer"

    def agreement(name: str) -> int:
        other = _cuts(built(PRE_TOKENIZERS[name][0]))
        return sum(a == b for a, b in zip(cuts, other, strict=True))

    closest = max(PRE_TOKENIZERS, key=agreement)
    other = _cuts(built(PRE_TOKENIZERS[closest][0]))
    for probe, ours, theirs in zip(PROBES, cuts, other, strict=True):
        if ours != theirs:
            at = next(
                (i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b),
                min(len(ours), len(theirs)),
            )
            return (
                f"{probe[:40]!r} becomes …{ours[at : at + 3]}; {closest}, the nearest known, "
                f"makes …{theirs[at : at + 3]}"
            )
    return "nothing"


def _doubts(chosen: str, same: list[str], cuts: list[list[str]]) -> tuple[str, ...]:
    if chosen in same:
        return ()
    if chosen not in PRE_TOKENIZERS:
        near = nearest(chosen, PRE_TOKENIZERS)
        hint = f" (is {near} meant?)" if near else ""
        return (f"pre-tokenizer {chosen!r} was taken as given: imprint does not know how it cuts text{hint}",)
    other = _cuts(built(PRE_TOKENIZERS[chosen][0]))
    probe = next(probe for probe, a, b in zip(PROBES, cuts, other, strict=True) if a != b)
    return (
        f"pre-tokenizer {chosen!r} was taken as given, but it cuts {probe[:30]!r} otherwise than the tokenizer",
    )


def _skips_merges(tokenizer: Any) -> bool | None:
    """Whether a word that is in the vocabulary is taken whole, without merging; None if it makes no difference."""
    skips = bool(getattr(tokenizer.model, "ignore_merges", False))
    added = {str(token) for token in (one.content for one in tokenizer.get_added_tokens_decoder().values())}
    tokens = [token for token in tokenizer.get_vocab() if token not in added]
    merged = _encode_pieces(tokenizer, tokens)
    if all(len(ids) == 1 for ids in merged):
        return None
    return skips


def _encode_pieces(tokenizer: Any, pieces: list[str]) -> list[list[int]]:
    """The ids that the merges alone make of each piece, which is written in the alphabet of bytes."""
    import json

    from tokenizers import Tokenizer

    model = json.loads(tokenizer.to_str())
    bare = {
        **model,
        "model": {**model["model"], "ignore_merges": False},
        "pre_tokenizer": None,
        "normalizer": None,
        "post_processor": None,
        "added_tokens": [],
    }
    encoder = Tokenizer.from_str(json.dumps(bare))
    return [one.ids for one in encoder.encode_batch(pieces, add_special_tokens=False)]
