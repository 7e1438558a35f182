"""Text to ids, exactly as a server's tokenizer gives them, and without encoding anything twice.

An added token (`<|im_start|>`) splits a text: what stands on either side of it is encoded
on its own. So a prefix that ends at an added token has a prefix of the ids, and a short
tail behind one (`assistant\\n`) has the same ids wherever it stands. Tokens that are looked
for only after normalisation are no such cuts. A sample of every chunk is compared with
whole tokenisation; one difference switches the shortcut off.
"""

from __future__ import annotations

import re
import unicodedata
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Ids = NDArray[np.int32]
_CACHED_TAIL = 64  # characters; longer tails are not likely to come again
_MOST_TAILS = 4096  # kept
_CHECKED = 61  # every so many-th turn is compared with whole tokenisation


class PromptAndCompletion(Protocol):
    @property
    def prompt(self) -> str: ...
    @property
    def completion(self) -> str: ...


class Encoder:
    """A tokenizer as training sees it: no special token is ever added to a text."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase):
        self.tokenizer: Any = tokenizer
        self.backend: Any = getattr(tokenizer, "backend_tokenizer", None)
        if self.backend is not None:  # a tokenizer.json may bring limits of its own
            self.backend.no_truncation()
            self.backend.no_padding()
        added = {int(i): token for i, token in self.tokenizer.added_tokens_decoder.items()}
        self.added = {i: token.content for i, token in added.items()}
        self.pattern = _any_of(self.added.values())
        # what a text must not hold: a single character is never one (nothing could escape it)
        control = [token.content for token in added.values() if token.special and len(token.content) > 1]
        self.control = _any_of(text for text in control if not text.isspace())
        cuts = {i: token.content for i, token in added.items() if not token.normalized}
        self.cuts = _any_of(cuts.values())
        size = max([len(self.tokenizer), *(i + 1 for i in added)])
        self.is_cut = np.zeros(size, dtype=bool)
        self.is_cut[list(cuts)] = True
        self.eos: str | None = self.tokenizer.eos_token
        self.num_tokens = size
        self.exact_shortcut = True
        self.lossless = self._is_lossless()
        self._tails: dict[str, Ids] = {}  # added token + what follows it → ids

    def added_spans(self, text: str) -> list[tuple[int, int]]:
        """Where added tokens stand in a text; those made of white space (GPT-NeoX has some) do not count."""
        return [match.span() for match in self.pattern.finditer(text) if not match.group().isspace()]

    def encode(self, texts: Sequence[str]) -> list[Ids]:
        """The ids of each text."""
        if not texts:
            return []
        if self.backend is not None:
            encodings = self.backend.encode_batch_fast(list(texts), add_special_tokens=False)
            return [np.array(encoding.ids, dtype=np.int32) for encoding in encodings]
        found = self.tokenizer(list(texts), add_special_tokens=False)["input_ids"]
        return [np.array(ids, dtype=np.int32) for ids in found]

    def decode(self, ids: Ids | Sequence[int]) -> str:
        return str(
            self.tokenizer.decode(
                [int(i) for i in ids], skip_special_tokens=False, clean_up_tokenization_spaces=False
            )
        )

    def encode_turns(self, turns: Sequence[PromptAndCompletion]) -> list[tuple[Ids, Ids | str]]:
        """(prompt ids, completion ids) of each turn; a reason in place of the completion where there is none."""
        wholes = self._encode_nested([(turn.prompt, turn.prompt + turn.completion) for turn in turns])
        if self.exact_shortcut:
            checked = range(0, len(turns), _CHECKED)
            texts = [turns[i].prompt for i in checked] + [
                turns[i].prompt + turns[i].completion for i in checked
            ]
            ours = [wholes[i][0] for i in checked] + [wholes[i][1] for i in checked]
            if not all(np.array_equal(a, b) for a, b in zip(self.encode(texts), ours, strict=True)):
                self.exact_shortcut = False
        if not self.exact_shortcut:
            prompts = self.encode([turn.prompt for turn in turns])
            full = self.encode([turn.prompt + turn.completion for turn in turns])
            wholes = list(zip(prompts, full, strict=True))
        return [
            self._completion(turn, prompt, whole) for turn, (prompt, whole) in zip(turns, wholes, strict=True)
        ]

    def _completion(self, turn: PromptAndCompletion, prompt: Ids, whole: Ids) -> tuple[Ids, Ids | str]:
        size = len(prompt)
        if len(whole) > size and np.array_equal(whole[:size], prompt):
            if self._loses(turn.completion, whole[size:]):
                return prompt, "the tokenizer cannot write all of the reply's text"
            return whole[:size], whole[size:]
        completion = self._continuation(turn.completion)
        if completion is None or self.decode(np.concatenate((prompt, completion))) != self.decode(whole):
            return prompt, "its tokens cannot be cut between prompt and reply"
        if self._loses(turn.completion, completion):
            return prompt, "the tokenizer cannot write all of the reply's text"
        return prompt, completion

    def _is_lossless(self) -> bool:
        """Whether every text comes back as it was: tried with characters that use every byte of UTF-8."""
        tried = "Tab\tand  spaces\n\n    lines\n"
        tried += "".join(map(chr, (*range(0x20, 0x7F), *range(0xA0, 0x800), *range(0x1000, 0xD000, 0x1000))))
        tried += "".join(map(chr, (0xE000, 0xFFFD, *range(0x10000, 0x110000, 0x40000))))
        return _normal(tried) == _normal(self.decode(self.encode([tried])[0]))

    def _loses(self, text: str, ids: Ids) -> bool:
        """Whether these ids miss characters of their text; a normaliser's changes are no loss."""
        return not self.lossless and _normal(self.decode(ids)) != _normal(text)

    def _continuation(self, text: str) -> Ids | None:
        """The ids of a text that stands behind another: no dummy prefix, no special token."""
        for anchor in ("\n", "a", self.eos or "\n"):
            before, both = self.encode([anchor, anchor + text])
            if len(both) > len(before) and np.array_equal(both[: len(before)], before):
                return both[len(before) :]
        return None

    def _encode_nested(self, pairs: Sequence[tuple[str, str]]) -> list[tuple[Ids, Ids]]:
        """Ids of each (prefix, whole) pair of texts; wholes that lie in a later whole are not encoded again."""
        containers: list[str] = []
        owner = [0] * len(pairs)
        for i in range(len(pairs) - 1, -1, -1):
            whole = pairs[i][1]
            if not (containers and containers[-1].startswith(whole) and self._ends_at_cut(whole)):
                containers.append(whole)
            owner[i] = len(containers) - 1
        encoded = self.encode(containers)
        marks = [self._marks(text, ids) for text, ids in zip(containers, encoded, strict=True)]
        wanted: dict[str, int] = {}  # texts still to encode → their number
        waiting: list[tuple[int, int, Ids, str]] = []
        nothing = np.empty(0, np.int32)
        out = [[nothing, nothing] for _ in pairs]
        for i, pair in enumerate(pairs):
            text, ids, (ends, where) = containers[owner[i]], encoded[owner[i]], marks[owner[i]]
            for side, prefix in enumerate(pair):
                count = bisect_right(ends, len(prefix))
                if len(prefix) == len(text):
                    out[i][side] = ids
                    continue
                head = ids[: where[count - 1] + 1] if count else ids[:0]
                tail = prefix[ends[count - 1] :] if count else prefix
                if not tail:
                    out[i][side] = head
                    continue
                tail = (self.added[int(head[-1])] if count else "") + tail
                known = self._tails.get(tail) if count else None
                if known is not None:
                    out[i][side] = np.concatenate((head[:-1], known))
                else:
                    wanted.setdefault(tail, len(wanted))
                    waiting.append((i, side, head, tail))
        found = self.encode(list(wanted))
        for i, side, head, tail in waiting:
            ids = found[wanted[tail]]
            if len(head) and (not len(ids) or ids[0] != head[-1]):  # the token reads otherwise up front
                out[i][side] = self.encode([pairs[i][side]])[0]
                continue
            if len(head) and len(tail) <= _CACHED_TAIL and len(self._tails) < _MOST_TAILS:
                self._tails[tail] = ids
            out[i][side] = np.concatenate((head[:-1], ids))
        return [(prefix, whole) for prefix, whole in out]

    def _ends_at_cut(self, text: str) -> bool:
        end = text[-_CACHED_TAIL:]
        return any(match.end() == len(end) for match in self.cuts.finditer(end))

    def _marks(self, text: str, ids: Ids) -> tuple[list[int], list[int]]:
        """Where cuts end in the text, and their indices among the ids; none where the two disagree."""
        ends = [match.end() for match in self.cuts.finditer(text)]
        where = np.flatnonzero(self.is_cut[ids]).tolist()
        return (ends, where) if len(ends) == len(where) else ([], [])


def _normal(text: str) -> str:
    """The text without what normalisers and a dummy prefix change: compositions, the space in front."""
    return unicodedata.normalize("NFKC", text).lstrip()


def _any_of(contents: Iterable[str]) -> re.Pattern[str]:
    """Finds the longest of these texts at each place, as tokenizers do."""
    longest_first = sorted(filter(None, contents), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")
