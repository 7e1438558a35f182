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
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Ids = NDArray[np.int32]
_CACHED_TAIL = 64  # characters; longer tails are not likely to come again
_MOST_TAILS = 4096  # kept
_SPACE = "\u2581"  # SentencePiece's mark of a space: written in a text, it becomes one
_BEFORE = 8  # ids of a prompt behind which a completion is decoded
_CHECKED = 61  # every so many-th turn is compared with whole tokenisation


class PromptAndCompletion(Protocol):
    @property
    def prompt(self) -> str: ...
    @property
    def completion(self) -> str: ...


@dataclass(slots=True)
class _Known:
    """A text, its ids, and its cuts: where they end in the text, and their indices among the ids."""

    text: str
    ids: Ids
    ends: list[int]
    where: list[int]

    def common_cuts(self, text: str) -> int:
        """The number of cuts up to which this text and another are the same."""
        high = bisect_right(self.ends, len(text))
        if not high or text.startswith(self.text[: self.ends[high - 1]]):
            return high
        return bisect_left(range(high), True, key=lambda i: not text.startswith(self.text[: self.ends[i]]))

    def extended(
        self,
        text: str,
        count: int,
        tail: Ids | None = None,
        ends: Sequence[int] = (),
        where: Sequence[int] = (),
    ) -> _Known:
        """`text`, the same up to the last of `count` cuts; `tail`: ids from that cut on, with their own cuts."""
        at = self.where[count - 1]
        ids = self.ids[: at + 1] if tail is None else np.concatenate((self.ids[:at], tail))
        first = self.ends[count - 1] - ends[0] if ends else 0  # where the tail begins in the text
        return _Known(
            text,
            ids,
            self.ends[:count] + [first + end for end in ends[1:]],
            self.where[:count] + [at + i for i in where[1:]],
        )


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
        # some are looked for in the normalised text, where another spelling becomes one of them
        self._normalises = (
            self.backend is not None
            and self.backend.normalizer is not None
            and any(token.special and token.normalized for token in added.values())
        )
        cuts = {i: token.content for i, token in added.items() if not token.normalized}
        self.cuts = _any_of(cuts.values())
        # a cut that stands inside a longer one: only what follows says which of them it is
        self._has_inner_cuts = any(self.cuts.search(text[1:-1]) for text in cuts.values())
        size = max([len(self.tokenizer), *(i + 1 for i in added)])
        self.is_cut = np.zeros(size, dtype=bool)
        self.is_cut[list(cuts)] = True
        self.eos: str | None = self.tokenizer.eos_token
        self.num_tokens = size
        self.exact_shortcut = True
        self.lossless = self._is_lossless()
        # some tokens swallow the white space beside them
        self.may_lose = not self.lossless or any(token.lstrip or token.rstrip for token in added.values())
        # what stands around a text in pretraining: BOS where the tokenizer adds one by itself, end-of-text
        first = self.tokenizer("a").input_ids[:1]
        starts = first if first == [self.tokenizer.bos_token_id] else []
        ends = [] if self.eos is None else [self.tokenizer.eos_token_id]
        self.text_start, self.text_end = np.array(starts, np.int32), np.array(ends, np.int32)
        self._tails: dict[str, Ids] = {}  # added token + what follows it → ids

    def find_control(self, text: str) -> re.Match[str] | None:
        """The first control token that a text would become."""
        found = self.control.search(text)
        if found is None and self._normalises:
            found = self.control.search(self.normalised(text))
        return found

    def normalised(self, text: str) -> str:
        return str(self.backend.normalizer.normalize_str(text))

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
                np.asarray(ids, dtype=np.int32),  # of a list, transformers looks at every number
                skip_special_tokens=False,
                clean_up_tokenization_spaces=False,
            )
        )

    def encode_turns(self, turns: Sequence[PromptAndCompletion]) -> list[tuple[Ids, Ids | str]]:
        """(prompt ids, completion ids) of each turn; a reason in place of the completion where there is none."""
        wholes = self._encode_nested([(turn.prompt, turn.prompt + turn.completion) for turn in turns])
        if self.exact_shortcut:
            texts, ours = [], []
            # a prompt or a whole in turn: texts of long conversations cost more to check than to encode
            for number, i in enumerate(range(0, len(turns), _CHECKED)):
                for side, text in enumerate((turns[i].prompt, turns[i].prompt + turns[i].completion)):
                    if not number or side == number % 2:
                        texts.append(text)
                        ours.append(wholes[i][side])
            if not all(np.array_equal(a, b) for a, b in zip(self.encode(texts), ours, strict=True)):
                self.exact_shortcut = False
        if not self.exact_shortcut:
            prompts = self.encode([turn.prompt for turn in turns])
            full = self.encode([turn.prompt + turn.completion for turn in turns])
            wholes = list(zip(prompts, full, strict=True))
        continued = [
            i
            for i, (prompt, whole) in enumerate(wholes)
            if len(whole) <= len(prompt) or not np.array_equal(whole[: len(prompt)], prompt)
        ]
        behind = dict(
            zip(continued, self._continuations([turns[i].completion for i in continued]), strict=True)
        )
        out: list[tuple[Ids, Ids | str]] = []
        for i, (turn, (prompt, whole)) in enumerate(zip(turns, wholes, strict=True)):
            completion = behind[i] if i in behind else whole[len(prompt) :]
            if i not in behind:
                prompt = whole[: len(prompt)]  # one array in memory, not two
            if completion is None or (i in behind and not self._same_text(prompt, completion, whole)):
                out.append((prompt, "its tokens cannot be cut between prompt and reply"))
            elif self._loses(turn.completion, prompt, completion):
                out.append((prompt, "the tokenizer cannot write all of the reply's text"))
            else:
                out.append((prompt, completion))
        return out

    def _same_text(self, prompt: Ids, completion: Ids, whole: Ids) -> bool:
        """Whether prompt and completion decode to what the whole decodes to."""
        ours = np.concatenate((prompt, completion))
        size = min(len(ours), len(whole))
        same = int(np.argmin(np.append(ours[:size] == whole[:size], False)))
        cuts = np.flatnonzero(self.is_cut[ours[:same]])  # behind one, what is the same need not be decoded
        first = int(cuts[-1]) if len(cuts) else 0
        return self.decode(ours[first:]) == self.decode(whole[first:])

    def _is_lossless(self) -> bool:
        """Whether every text comes back as it was: tried with characters that use every byte of UTF-8."""
        tried = "Tab\tand  spaces\n\n    lines\n"
        tried += "".join(map(chr, (*range(0x20, 0x7F), *range(0xA0, 0x800), *range(0x1000, 0xD000, 0x1000))))
        tried += "".join(map(chr, (0xE000, 0xFFFD, *range(0x10000, 0x110000, 0x40000))))
        return _normal(tried).lstrip() == _normal(self.decode(self.encode([tried])[0])).lstrip()

    def _loses(self, text: str, prompt: Ids, ids: Ids) -> bool:
        """Whether these ids miss characters of their text; a normaliser's changes are no loss.

        Asked only where some can be lost: decoding is slow. The text is what the ids add behind
        the prompt's end, since decoders drop the space of a first word.
        """
        marked = _SPACE in text and any(_SPACE in part for part in self.pattern.split(text))
        if not self.may_lose and not marked:  # inside an added token (DeepSeek's) the mark is only a letter
            return False
        before = prompt[-_BEFORE:]
        ours = self.decode(np.concatenate((before, ids)))[len(self.decode(before)) :]
        return _normal(ours) != _normal(text)

    def _continuations(self, texts: Sequence[str]) -> list[Ids | None]:
        """The ids of texts that stand behind others: no dummy prefix, no special token."""
        out: list[Ids | None] = [None] * len(texts)
        missing = list(range(len(texts)))
        for anchor in ("\n", "a", self.eos or "\n"):
            if not missing:
                break
            before, *both = self.encode([anchor, *(anchor + texts[i] for i in missing)])
            for i, ids in zip(missing, both, strict=True):
                if len(ids) > len(before) and np.array_equal(ids[: len(before)], before):
                    out[i] = ids[len(before) :]
            missing = [i for i in missing if out[i] is None]
        return out

    def _encode_nested(self, pairs: Sequence[tuple[str, str]]) -> list[tuple[Ids, Ids]]:
        """Ids of each (prefix, whole) pair of texts; what a whole shares with a later one is encoded once.

        Three rounds: the wholes that share little with a later one, then what is new in the
        others, then what of each prefix stands behind its last cut.
        """
        owner = [0] * len(pairs)
        containers: list[str] = []
        for i in range(len(pairs) - 1, -1, -1):
            whole = pairs[i][1]
            if not (containers and self._is_close(whole, containers[-1])):
                containers.append(whole)
            owner[i] = len(containers) - 1
        known = [
            _Known(text, ids, *self._marks(text, ids))
            for text, ids in zip(containers, self.encode(containers), strict=True)
        ]
        wholes = self._extend([(whole, known[owner[i]]) for i, (_, whole) in enumerate(pairs)])
        prefixes = self._extend([(prefix, wholes[i]) for i, (prefix, _) in enumerate(pairs)])
        return [(prefix.ids, whole.ids) for prefix, whole in zip(prefixes, wholes, strict=True)]

    def _is_close(self, text: str, container: str) -> bool:
        """Whether most of a text is the beginning of the container too."""
        if self._has_inner_cuts:
            return container.startswith(text)
        return text.startswith(container[: len(text) // 2])

    def _extend(self, wanted: Sequence[tuple[str, _Known]]) -> list[_Known]:
        """Each text, of which a beginning is known from another: only what stands behind the last common cut is new."""
        out: list[_Known | None] = [None] * len(wanted)
        new: dict[str, int] = {}  # texts to encode → their number
        waiting: list[tuple[int, int, str]] = []
        for i, (text, near) in enumerate(wanted):
            if text == near.text:
                out[i] = near
                continue
            count = near.common_cuts(text)
            if not count:
                tail = text
            elif near.ends[count - 1] == len(text):
                out[i] = near.extended(text, count)
                continue
            else:
                tail = self.added[int(near.ids[near.where[count - 1]])] + text[near.ends[count - 1] :]
                found = self._tails.get(tail)
                if found is not None:
                    out[i] = near.extended(text, count, found)
                    continue
            new.setdefault(tail, len(new))
            waiting.append((i, count, tail))
        encoded = self.encode(list(new))
        again: list[int] = []
        for i, count, tail in waiting:
            text, near = wanted[i]
            ids = encoded[new[tail]]
            if not count:
                out[i] = _Known(text, ids, *self._marks(text, ids))
                continue
            if not len(ids) or ids[0] != near.ids[near.where[count - 1]]:  # it reads otherwise up front
                again.append(i)
                continue
            if len(tail) <= _CACHED_TAIL and len(self._tails) < _MOST_TAILS:
                self._tails[tail] = ids
            out[i] = near.extended(text, count, ids, *self._marks(tail, ids))
        for i, ids in zip(again, self.encode([wanted[i][0] for i in again]), strict=True):
            out[i] = _Known(wanted[i][0], ids, *self._marks(wanted[i][0], ids))
        return [found for found in out if found is not None]

    def _marks(self, text: str, ids: Ids) -> tuple[list[int], list[int]]:
        """Where cuts end in the text, and their indices among the ids; none where the two disagree."""
        found = list(self.cuts.finditer(text))
        where = np.flatnonzero(self.is_cut[ids])
        if [match.group() for match in found] != [self.added[i] for i in ids[where].tolist()]:
            return [], []
        return [match.end() for match in found], where.tolist()


def _normal(text: str) -> str:
    """The text without what normalisers change: compositions."""
    return unicodedata.normalize("NFKC", text)


def _any_of(contents: Iterable[str]) -> re.Pattern[str]:
    """Finds the longest of these texts at each place, as tokenizers do."""
    longest_first = sorted(filter(None, contents), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")
