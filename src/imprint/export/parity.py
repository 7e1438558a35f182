"""Whether an export says what the trained model said: the golden file, asked again.

A target is asked through a `Candidate`: how it renders and tokenises, at which ids it stops, how likely it
holds given tokens, and what it replies. What a target cannot show is said, never guessed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from itertools import accumulate

from imprint.export.candidate import TOKENIZER as TOKENIZER
from imprint.export.candidate import Asked as Asked
from imprint.export.candidate import Candidate as Candidate
from imprint.export.candidate import Reply as Reply
from imprint.export.cause import cause_of_difference, cause_of_prompt, common
from imprint.export.golden import Continuation, Example, Golden
from imprint.export.verdict import BARS as BARS
from imprint.export.verdict import Divergence as Divergence
from imprint.export.verdict import Parity as Parity
from imprint.export.verdict import bar_for as bar_for
from imprint.export.verdict import in_words as in_words
from imprint.export.verdict import parity_of as parity_of
from imprint.export.verdict import proof_of as proof_of
from imprint.track.words import plural

FARTHEST = 1e6  # nats: what stands for a log-probability that is no number
SHOWN = 24  # characters of a text that differs


@dataclass
class _Findings:
    """What is gathered while a candidate is asked."""

    prompts: list[bool] = field(default_factory=list)
    replies: list[bool] = field(default_factory=list)
    excused: int = 0
    worst: float | None = None
    compared: int = 0
    by_base: float = 0.0  # how far the first reply's log-probabilities are from those without the adapter
    divergence: Divergence | None = None
    faults: list[str] = field(default_factory=list)
    causes: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def note(self, text: str) -> None:
        if text not in self.notes:
            self.notes.append(text)

    def blame(self, cause: str) -> None:
        if cause not in self.causes:
            self.causes.append(cause)


def replay(golden: Golden, candidate: Candidate, kind: str, bar: float | None) -> Parity:
    """Ask `candidate` everything that the golden file holds; `kind` names its type of weights (see BARS).

    Log-probabilities are asked behind the golden prompt's ids, so that a wrong prompt and wrong weights
    are two findings and not one.
    """
    found = _Findings()
    stops = _compare_stops(golden, candidate, found)
    bos = _compare_bos(golden, candidate, found)
    for number, example in enumerate(golden.examples):
        _compare_prompt(golden, number, example, candidate, found)
    for number, example in enumerate(golden.examples):
        for continuation in (example.reply, example.greedy):
            _compare_logprobs(golden, number, example, continuation, candidate, found)
        _compare_reply(number, example, candidate, bar, found)
    _judge(golden, bar, found)
    return Parity(
        target=candidate.name,
        kind=kind,
        bar=bar,
        examples=len(golden.examples),
        prompts_equal=sum(found.prompts) if found.prompts else None,
        stops_equal=stops,
        bos_equal=bos,
        difference=found.worst,
        compared=found.compared,
        replies_equal=sum(found.replies) if found.replies else None,
        excused=found.excused,
        divergence=found.divergence,
        cause="; ".join(found.causes),
        faults=tuple(found.faults),
        notes=tuple(found.notes),
    )


def _compare_stops(golden: Golden, candidate: Candidate, found: _Findings) -> bool | None:
    places = candidate.stops()
    if places is None:
        found.note("the stop ids cannot be seen from outside: only where its replies end")
        return None
    equal = True
    for place, ids in places.items():
        wanted = {golden.eos_id} if place == TOKENIZER else set(golden.stop_ids)
        if set(ids) != wanted:
            equal = False
            said, expected = (
                ", ".join(f"{candidate.token(i)} ({i})" for i in some if i is not None) or "nothing"
                for some in (ids, sorted(wanted, key=lambda i: (i is None, i)))
            )
            found.faults.append(f"{place} stops at {said}; training ended replies with {expected}")
    if not equal:
        found.blame("stop set: the ids that end a reply are not those of training")
    return equal


def _compare_bos(golden: Golden, candidate: Candidate, found: _Findings) -> bool | None:
    added = candidate.bos()
    if added is None:
        return None
    if added != golden.bos.added:
        found.faults.append(
            f"its tokenizer puts {added} BOS before a text by itself, in training it put {golden.bos.added}"
        )
        found.blame("BOS: the tokenizer does not begin a text as in training")
    elif golden.bos.twice:
        found.note(
            f"the template and the tokenizer both write {golden.bos.token}: a client that tokenises the "
            "rendered text itself needs add_special_tokens=False"
        )
    return added == golden.bos.added


def _compare_prompt(
    golden: Golden, number: int, example: Example, candidate: Candidate, found: _Findings
) -> None:
    asked = candidate.prompt(example)
    if asked is None or (asked.ids is None and asked.text is None and asked.count is None):
        found.note("it does not show how it renders and tokenises a prompt")
        return
    if asked.ids is None:
        equal = _alike_without_ids(example, asked, found)
    else:
        equal = list(asked.ids) == list(example.prompt_ids)
    found.prompts.append(equal)
    if equal:
        return
    found.blame(cause_of_prompt(golden, example, asked.ids, asked.text, asked.count))
    if found.divergence is None and asked.ids is not None:
        at = common(example.prompt_ids, asked.ids)
        expected, seen = (
            candidate.token(ids[at]) if at < len(ids) else "" for ids in (example.prompt_ids, asked.ids)
        )
        found.divergence = Divergence(
            number, example.source, "prompt", at, expected or "(its end)", seen or "(its end)"
        )


def _alike_without_ids(example: Example, asked: Asked, found: _Findings) -> bool:
    """Whether a prompt seems the same to who sees its text, or only how long it is."""
    if asked.text is not None:
        found.note("it does not show the ids of a prompt, only its text")
        return asked.text == example.prompt
    found.note("it does not show a prompt, only how many tokens it has")
    return asked.count == len(example.prompt_ids)


def _compare_logprobs(
    golden: Golden,
    number: int,
    example: Example,
    continuation: Continuation,
    candidate: Candidate,
    found: _Findings,
) -> None:
    if not continuation.ids:
        return
    given = candidate.logprobs(example.prompt_ids, continuation.ids, continuation.wanted())
    if given is None:
        found.note("it does not tell the log-probabilities of given tokens")
        return
    for place, told in enumerate(given):
        known = continuation.known(place)
        for token, logprob in known.items():
            if token in told:
                found.compared += 1
                found.worst = max(found.worst or 0.0, _apart(told[token], logprob))
        own = told.get(continuation.ids[place])
        if number == 0 and continuation is example.reply and golden.without_adapter and own is not None:
            found.by_base = max(found.by_base, _apart(own, golden.without_adapter[place]))


def _apart(a: float, b: float) -> float:
    """The distance of two log-probabilities; FARTHEST where one of them is no number."""
    distance = abs(a - b)
    return min(distance, FARTHEST) if math.isfinite(distance) else FARTHEST


def _compare_reply(
    number: int, example: Example, candidate: Candidate, bar: float | None, found: _Findings
) -> None:
    reply = candidate.greedy(example)
    if reply is None:
        found.note("it gives no greedy replies")
        return
    ours = example.greedy.ids[:-1] if example.stopped else example.greedy.ids
    if reply.ids is None and reply.text is None:
        found.note("it shows some greedy replies neither as ids nor as text")
        return
    if reply.ids is None:
        assert reply.text is not None
        equal, at = reply.text == example.text, _token_at(example, reply.text)
        seen = reply.text[len("".join(example.greedy.tokens[:at])) :][:SHOWN] or "(it stopped)"
    else:
        equal, at = tuple(reply.ids) == ours, common(ours, reply.ids)
        seen = candidate.token(reply.ids[at]) if at < len(reply.ids) else "(it stopped)"
    if equal and reply.stopped != example.stopped:
        equal, at = False, len(ours)
        seen = "(it stopped)" if reply.stopped else "(it went on)"
    if not equal and (bar is None or (at < len(example.greedy.ids) and example.greedy.margin(at) < bar)):
        found.excused += 1
        return
    found.replies.append(equal)
    if not equal and found.divergence is None:
        tokens = example.greedy.tokens
        expected = tokens[at] if at < len(tokens) else "(its end)"
        found.divergence = Divergence(number, example.source, "reply", at, expected, seen)


def _token_at(example: Example, text: str) -> int:
    """The number of the golden reply's token in which another text parts from it."""
    same = common(text, "".join(example.greedy.tokens))
    ends = accumulate(len(token) for token in example.greedy.tokens)
    return next((place for place, end in enumerate(ends) if end > same), len(example.greedy.tokens))


def _judge(golden: Golden, bar: float | None, found: _Findings) -> None:
    """Say which of the findings are faults, and what they look like."""
    wrong = found.prompts.count(False)
    if wrong:
        found.faults.append(f"{wrong} of {plural(len(found.prompts), 'prompt')} become other tokens")
    if bar is not None and found.worst is not None and found.worst > bar:
        found.faults.append(
            f"log-probabilities differ by up to {found.worst:.2g} nats, where {bar:g} is the most"
        )
        as_base = bool(golden.without_adapter) and found.by_base < found.worst / 10
        found.blame(cause_of_difference(golden, found.worst, as_base))
    missed = found.replies.count(False)
    if missed:
        found.faults.append(f"{missed} of {len(golden.examples)} greedy replies differ")
        if not found.causes:
            found.blame("generation: how it chooses tokens, how long it may go on, or where it stops")
    if found.excused:
        why = (
            f"where the trained model's first two tokens are less than {bar:g} nats apart"
            if bar is not None
            else "as weights of so few bits may"
        )
        found.note(f"greedy replies that differ {why}: {found.excused}: not counted")
    if not found.prompts and not found.compared and not found.replies:
        found.faults.append("nothing could be compared")
