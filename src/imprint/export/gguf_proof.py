"""Whether a GGUF file says what the trained model said: replayed through transformers, and in llama.cpp itself.

Run as `python -m imprint.export.gguf_proof GOLDEN FILE OUT --kind gguf-q8_0`: a process of its own, which
gets nothing but the file. llama.cpp is asked where the user has it; where not, the proof says so.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from imprint.errors import ImprintError, ModelError
from imprint.export.folder import FolderCandidate, in_fresh_process
from imprint.export.gguf_reload import load_model, load_tokenizer, read_metadata, stop_ids
from imprint.export.gguf_tokens import STOPS_BY_TEXT
from imprint.export.golden import Example, Golden, read_golden
from imprint.export.llama_cpp import VARIABLE, LlamaServer, find_server, serving
from imprint.export.parity import BARS, Asked, Parity, Reply, bar_for, parity_of, replay
from imprint.export.targets import Made, Proof

NOT_ASKED = f"not verified in llama.cpp (no llama-server on PATH, and {VARIABLE} names none)"
GELU_TABLE = 1e-2  # nats: llama.cpp looks gelu (gemma) up in a table of half precision


class FileCandidate(FolderCandidate):
    """A GGUF file in transformers: its weights, tokenizer, template and stops, and nothing beside it."""

    def __init__(self, path: Path, golden: Golden):
        import torch
        from transformers import GenerationConfig

        self.name = f"{path.name} in transformers"
        self.folder, self.now = path.parent, datetime.fromisoformat(golden.now)
        self.ends = stops_of(read_metadata(path), golden)
        self.tokenizer: Any = load_tokenizer(path)
        self.model: Any = load_model(path).to(getattr(torch, golden.precision))
        self.model.config.eos_token_id = self.ends
        self.generation: Any = GenerationConfig(
            eos_token_id=self.ends, pad_token_id=self.tokenizer.pad_token_id
        )

    def stops(self) -> Mapping[str, Sequence[int]]:
        return {"the GGUF file": self.ends}

    def bos(self) -> None:
        """Seen in the prompts: what counts for a file is whether llama.cpp puts one before a chat."""

    def prompt(self, example: Example) -> Asked:
        """As llama.cpp makes it: what the file puts around a text, also around a chat, but never a second bos."""
        asked = super().prompt(example)
        if asked.text is None or not asked.ids:
            return asked
        bos = str(self.tokenizer.bos_token)
        text = asked.text.removeprefix(bos) if self.tokenizer("").input_ids else asked.text
        return Asked(list(self.tokenizer(text).input_ids), asked.text)


class LlamaCppCandidate:
    """A GGUF file in a running llama-server: its template engine, tokenizer and arithmetic."""

    def __init__(self, path: Path, server: LlamaServer, golden: Golden):
        self.name = f"{path.name} in llama.cpp"
        self.server = server
        self.said = read_metadata(path)
        self.ends = stops_of(self.said, golden)

    def stops(self) -> Mapping[str, Sequence[int]]:
        return {"the GGUF file": self.ends}

    def bos(self) -> None:
        """Seen in the prompts, as in a FileCandidate."""

    def prompt(self, example: Example) -> Asked:
        try:
            text = self.server.render(example.messages, example.tools)
        except ImprintError as error:
            return Asked([], f"(llama.cpp cannot render it: {error.found})"[:200])
        return Asked(self.server.tokenize(text, around=True), text)

    def logprobs(
        self, prompt: Sequence[int], continuation: Sequence[int], wanted: Sequence[Sequence[int]]
    ) -> Sequence[Mapping[int, float]]:
        found = []
        for place, ids in enumerate(wanted):
            told = self.server.likeliest([*prompt, *continuation[:place]])
            found.append({number: told[number] for number in ids if number in told})
        return found

    def greedy(self, example: Example) -> Reply:
        asked = self.prompt(example).ids
        if not asked:
            return Reply([], "", False)
        ids, text, stopped = self.server.greedy(asked, example.limit)
        if ids and stopped and ids[-1] in self.ends:
            ids = ids[:-1]
        return Reply(ids, text, stopped)

    def token(self, number: int) -> str:
        return self.server.detokenize([number])


def stops_of(said: Mapping[str, Any], golden: Golden) -> list[int]:
    """The ids at which llama.cpp ends a reply: those with a key, and those of training that it knows by text."""
    texts = said["tokenizer.ggml.tokens"]
    known = [number for number in golden.stop_ids if texts[number] in STOPS_BY_TEXT]
    return list(dict.fromkeys([*stop_ids(said), *known]))


def prove(golden: Path, made: Made) -> Proof:
    """Replay a golden file against a GGUF file in a process of its own."""
    kind = f"gguf-{made.path.stem.rpartition('-')[2].lower()}"
    return proof_of(replay_file(golden, made.path, kind))


def proof_of(found: Mapping[str, Any]) -> Proof:
    """The proof that both replays make together, in one line."""
    here, there = parity_of(found["transformers"]), found["llama.cpp"]
    lines, passed = [in_words(here)], here.equal
    if isinstance(there, str):
        lines.append(there)
        passed = passed and there == NOT_ASKED
    else:
        in_llama = parity_of(there)
        lines.append(in_words(in_llama))
        passed = passed and in_llama.equal
    return Proof(passed, "; ".join(lines), {"passed": passed, **found})


def in_words(parity: Parity) -> str:
    """What one replay found, in one line."""
    if not parity.equal:
        place = f"; {parity.divergence}" if parity.divergence else ""
        cause = f" ({parity.cause})" if parity.cause else ""
        return f"{parity.target} is not what was trained: {', '.join(parity.faults)}{cause}{place}"
    counts = [
        f"{equal} of {parity.examples} {what}"
        for equal, what in ((parity.prompts_equal, "prompts"), (parity.replies_equal, "greedy replies"))
        if equal is not None
    ]
    excused = f" ({parity.excused} too close to call)" if parity.excused else ""
    bar = f" (bar {parity.bar:.2g})" if parity.bar is not None else " (too few bits for a bar)"
    difference = (
        "" if parity.difference is None else f", log-probabilities within {parity.difference:.2g}{bar}"
    )
    return f"{parity.target}: {' and '.join(counts)} equal{excused}{difference}"


def replay_file(golden: Path, path: Path, kind: str) -> dict[str, Any]:
    """{"transformers": a Parity as JSON, "llama.cpp": another, or why there is none}, from another process."""
    done, why = in_fresh_process("imprint.export.gguf_proof", golden, path, ["--kind", kind])
    if done is None:
        raise ModelError(
            "the GGUF file cannot be loaded by transformers",
            where=str(path),
            found=why,
            fix="export it anew",
        )
    return dict(done)


def compare(golden: Golden, path: Path, kind: str) -> dict[str, Any]:
    """As `replay_file`, in this process."""
    here = replay(golden, FileCandidate(path, golden), kind, bar_for(kind, golden, golden.precision))
    return {"transformers": here.to_json(), "llama.cpp": compare_in_llama_cpp(golden, path, kind)}


def llama_cpp_bar(golden: Golden, kind: str, architecture: str) -> float | None:
    """The bar of a type of weights in llama.cpp, which rounds what it multiplies them with to that type as well."""
    bar = bar_for(kind, golden)
    if bar is None:
        return None
    if kind != "gguf-f32":
        bar = 2 * max(bar, BARS[kind])
    return max(bar, GELU_TABLE) if architecture.startswith("gemma") else bar


def compare_in_llama_cpp(golden: Golden, path: Path, kind: str) -> dict[str, Any] | str:
    """The replay in the user's llama.cpp as JSON; NOT_ASKED, or what went wrong, in words."""
    command = find_server()
    if command is None:
        return NOT_ASKED
    bar = llama_cpp_bar(golden, kind, read_metadata(path)["general.architecture"])
    try:
        with serving(path, command) as server:
            return replay(golden, LlamaCppCandidate(path, server, golden), kind, bar).to_json()
    except ImprintError as error:
        return f"llama.cpp fails: {error.what} ({error.found})"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m imprint.export.gguf_proof")
    parser.add_argument("golden", type=Path)
    parser.add_argument("file", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--kind", required=True)
    given = parser.parse_args(arguments)
    found = compare(read_golden(given.golden), given.file, given.kind)
    given.out.write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main()
