"""Throughput of the serving engine: many asks at once against one at a time, and against transformers' own batching.

python benchmarks/serve_engine.py [--model embedded|19m|100m|FOLDER] [--asks 64] [--tokens 64] [--threads N]
    [--transformers] [--profile]

Every ask has its own prompt and a reply of exactly `tokens` greedy tokens. "One at a time": the same engine
gets the next ask when the last is answered; `generate`: transformers' generate, one prompt after the other.
Prints ratios and writes benchmarks/results/serve_engine.json.
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from _common import machine, write_result

GOAL = 4.0


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="embedded")
    parser.add_argument("--asks", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--transformers", action="store_true", help="also transformers' continuous batching")
    parser.add_argument("--profile", action="store_true", help="where the time of a step goes")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    with tempfile.TemporaryDirectory() as folder:
        result = measure(find(given.model, Path(folder)), given)
    result["machine"] = machine()
    write_result("serve_engine", result)
    told = result["seconds_an_ask"]
    for name, seconds in told.items():
        print(f"{name:<34} {seconds * 1e3:9.1f} ms an ask  {given.tokens / seconds:9.0f} tokens/s")
    ratio = told["one at a time"] / told["together"]
    print(f"together / one at a time: {ratio:.1f} x (goal {GOAL:g} x); equal replies: {result['equal']}")


def find(model: str, folder: Path) -> Path:
    """The folder of a model: the embedded one, one of the benchmarks', or the user's."""
    if model == "embedded":
        from imprint.demo.base import copy_base

        return copy_base(folder / "embedded")
    if model in ("19m", "100m"):
        from _workloads import model_folder

        return model_folder(model)
    return Path(model)


def measure(model: Path, given: argparse.Namespace) -> dict[str, Any]:
    from imprint.serve.engine import Ask
    from imprint.serve.loading import load_engine

    served = load_engine(model, template="chatml", max_running=given.asks, prefix_bytes=0)
    engine = served.engine
    vocab = engine._vocab
    generator = torch.Generator().manual_seed(0)
    sizes = torch.randint(8, 48, (given.asks,), generator=generator).tolist()
    prompts = [torch.randint(3, vocab, (n,), generator=generator).tolist() for n in sizes]
    asks = [Ask(prompt, given.tokens) for prompt in prompts]

    async def one(ask: Ask) -> list[int]:
        return [token.id async for token in engine.submit(ask)]

    async def together() -> list[list[int]]:
        return await asyncio.gather(*(one(ask) for ask in asks))

    few = asks[: max(4, given.asks // 8)]

    async def in_turn() -> list[list[int]]:
        return [await one(ask) for ask in few]

    seconds: dict[str, float] = {}
    asyncio.run(together())  # memory and threads are there
    crowd, seconds["together"] = best(lambda: asyncio.run(together()), len(asks), given.rounds)
    single, seconds["one at a time"] = best(lambda: asyncio.run(in_turn()), len(few), given.rounds)
    if given.profile:
        profile(engine, lambda: asyncio.run(together()))
    base = engine._runner.base
    engine.close()
    base.set_attn_implementation("sdpa")
    plain, seconds["generate, one at a time"] = best(lambda: generate(base, few), len(few), 1)
    equal = {"one at a time": single == crowd[: len(few)], "generate": plain == crowd[: len(few)]}
    if given.transformers:
        found, seconds["transformers' continuous batching"] = best(
            lambda: theirs(base, asks, given.tokens), len(asks), given.rounds
        )
        equal["transformers"] = found == crowd
    return {
        "model": given.model,
        "asks": given.asks,
        "tokens": given.tokens,
        "seconds_an_ask": seconds,
        "ratio": seconds["one at a time"] / seconds["together"],
        "goal": GOAL,
        "equal": equal,
    }


def best(run: Callable[[], Any], count: int, rounds: int) -> tuple[Any, float]:
    """(what it gives, least seconds for each of `count`)."""
    least = float("inf")
    for _ in range(rounds):
        start = time.perf_counter()
        found = run()
        least = min(least, time.perf_counter() - start)
    return found, least / count


@torch.inference_mode()
def generate(base: Any, asks: Any) -> list[list[int]]:
    made = []
    for ask in asks:
        ids = torch.tensor([ask.prompt])
        out = base.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=ask.max_new_tokens,
            min_new_tokens=None,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
        )
        made.append(out[0, len(ask.prompt) :].tolist())
    return made


def theirs(base: Any, asks: Any, tokens: int) -> list[list[int]]:
    """transformers' ContinuousBatchingManager on the same prompts, with log-probabilities."""
    from transformers import GenerationConfig
    from transformers.generation.configuration_utils import ContinuousBatchingConfig

    config = GenerationConfig(max_new_tokens=tokens, do_sample=False, eos_token_id=-1, pad_token_id=0)
    batching = ContinuousBatchingConfig(
        num_blocks=len(asks) * 2, page_size=128, max_batch_tokens=512, return_logprobs=True
    )
    found = base.generate_batch(
        [list(ask.prompt) for ask in asks], generation_config=config, continuous_batching_config=batching
    )
    return [list(out.generated_tokens) for out in found.values()]


def profile(engine: Any, run: Callable[[], Any]) -> None:
    """Where the steps of the engine's thread spend their time."""
    import cProfile
    import pstats

    profiler, step = cProfile.Profile(), engine._step

    def watched() -> None:
        profiler.enable()
        step()
        profiler.disable()

    engine._step = watched
    run()
    engine._step = step
    pstats.Stats(profiler).sort_stats("tottime").print_stats(25)


if __name__ == "__main__":
    main()
