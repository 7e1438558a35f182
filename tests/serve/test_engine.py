"""The engine: whatever is computed beside an ask, its tokens and log-probabilities are those it has alone."""

from __future__ import annotations

import asyncio
import threading
import time

import pytest
import torch
from engines import assert_told_truly, engine_on, gather, one_by_one, plainly, prompts, replies

from imprint.errors import ModelError
from imprint.serve.engine import Ask, Full
from imprint.serve.loading import make_engine
from imprint.serve.runners import FlatRunner, SoloRunner
from tiny import ARCHITECTURES, OTHERS, VOCAB, tiny_model

TOGETHER = (
    "llama",
    "qwen2",
    "gemma2",
    "gemma3_text",
    "gpt2",
    "mixtral",
    "gpt_oss",
    "llama4_text",
    "deepseek_v3",
)
ONE_BY_ONE = ("mamba", "lfm2", "falcon", "bloom")
FREE = frozenset({2})


OTHER_KINDS = sorted({*ARCHITECTURES, *OTHERS} - {*TOGETHER, *ONE_BY_ONE, "recurrent_gemma"})
LAYERS = {  # a layer of each kind: a cache without any attention does not go on in transformers
    "jamba": dict(attn_layer_period=2, attn_layer_offset=1),
}
APART = {"falcon_h1", "gpt_neo", "jamba", "mpt", "qwen3_next", "rwkv", *ONE_BY_ONE}


@pytest.mark.parametrize(
    "kind",
    [*TOGETHER, *ONE_BY_ONE, *(pytest.param(kind, marks=pytest.mark.slow) for kind in OTHER_KINDS)],
)
def test_together_is_as_alone(kind):
    """Staggered arrivals, many lengths: greedy tokens and their log-probabilities are a plain forward's."""
    model = tiny_model(kind, **LAYERS.get(kind, {}))
    asks = [Ask(p, 5 + 3 * (i % 4), FREE, top_logprobs=2) for i, p in enumerate(prompts(9))]
    with engine_on(model) as engine:
        assert isinstance(engine._runner, SoloRunner if kind in APART else FlatRunner)
        assert bool(engine.notes) == (kind in APART)
        together = replies(engine, asks, every=0.002)
        alone = one_by_one(engine, asks[:4])
    for ask, (said, stream) in zip(asks, together, strict=True):
        assert_told_truly(model, ask, said)
        assert stream.finish == ("length" if len(said) == ask.max_new_tokens else "stop")
        assert all(token.top[0][0] == token.id and len(token.top) == 2 for token in said)
    for (said, _), (other, _) in zip(alone, together[:4], strict=True):
        assert [t.id for t in said] == [t.id for t in other]


def test_a_state_in_the_model_itself_means_one_at_a_time():
    """Planted: a model that forgets, at each new text, the state of all others."""
    model = tiny_model("bloom")
    right, kept = model.forward, {}

    def forward(input_ids, past_key_values=None, **rest):
        if past_key_values is not None:
            past_key_values = kept["state"]
        out = right(input_ids, past_key_values=past_key_values, **rest)
        kept["state"] = out.past_key_values
        return out

    model.forward = forward
    asks = [Ask(p, 6) for p in prompts(4)]
    with engine_on(model) as engine:
        assert "each ask waits" in engine.notes[1]
        results = replies(engine, asks)
    model.forward = right
    for ask, (said, stream) in zip(asks, results, strict=True):
        assert stream.finish == "length"
        assert_told_truly(model, ask, said)


def test_a_model_that_cannot_go_on_is_refused():
    """Jamba without an attention layer; RecurrentGemma, which transformers 5.23 steps otherwise than it trains."""
    with pytest.raises(ModelError, match="does not go on from its cache"):
        make_engine(tiny_model("jamba"))
    with pytest.raises(ModelError, match="other logits than in one pass"):
        make_engine(tiny_model("recurrent_gemma", num_hidden_layers=3))


@pytest.fixture(scope="module")
def llama():
    return tiny_model("llama")


def counts_add_up(engine, submitted):
    load = engine.load()
    return load.running + load.waiting + load.finished == submitted


def settle(engine, seconds=10.0):
    """Wait until nothing runs and nothing waits."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        load = engine.load()
        if not load.running and not load.waiting:
            return load
        time.sleep(0.005)
    raise AssertionError(f"still busy: {engine.load()}")


def test_a_wrong_view_is_noticed(llama, monkeypatch):
    """The planted fault of all that follows: a token that sees one place of another ask too many."""
    from imprint.serve import flat

    right = flat._mask
    monkeypatch.setattr(flat, "_mask", lambda at, *rest: right(at + 1, *rest))
    with engine_on(llama) as engine:
        assert isinstance(engine._runner, SoloRunner)  # the trial at loading turns the fast way down
        assert "differ by" in engine.notes[0]


@pytest.mark.parametrize("kind", ["gemma2", "llama", "mistral"])
def test_long_texts_move_to_longer_slots(kind):
    """Prompts and replies beyond the first pool, beside short ones, in stretches of few tokens."""
    model = tiny_model(kind, max_position_embeddings=700)
    asks = [Ask(p, n) for p, n in zip(prompts(3, seed=3, most=300), (200, 4, 290), strict=True)]
    asks += [Ask(p, 40) for p in prompts(3, seed=4, most=10)]
    with engine_on(model) as engine:
        assert [pool.length for pool in engine._runner.slots.pools] == [256, 700]
        for ask, (said, stream) in zip(asks, replies(engine, asks), strict=True):
            assert (len(said), stream.finish) == (ask.max_new_tokens, "length")
            assert_told_truly(model, ask, said)


def test_seeds(llama):
    """A sampled reply is a function of the ask alone, whatever is beside it; another seed is another reply."""
    (prompt,) = prompts(1)
    warm = dict(temperature=1.5, top_p=0.95, top_k=60)
    ask = Ask(prompt, 30, seed=7, **warm)
    beside = [Ask(p, 25, seed=i, temperature=0.5 + i / 10) for i, p in enumerate(prompts(8, seed=1))]
    with engine_on(llama) as engine:
        alone = replies(engine, [ask])[0][0]
        crowded = replies(engine, [*beside, ask, *beside])[len(beside)][0]
        other = replies(engine, [Ask(prompt, 30, seed=8, **warm)])[0][0]
        unseeded = [replies(engine, [Ask(prompt, 30, **warm)])[0][0] for _ in range(2)]
    assert [t.id for t in alone] == [t.id for t in crowded] != [t.id for t in other]
    assert [t.id for t in unseeded[0]] != [t.id for t in unseeded[1]]


def test_log_probabilities_of_sampled_tokens_are_the_models_own(llama):
    ask = Ask(prompts(1)[0], 20, temperature=2.0, top_k=5, seed=1, frequency_penalty=0.5, top_logprobs=3)
    with engine_on(llama) as engine:
        said = replies(engine, [ask])[0][0]
    table = plainly(llama, [*ask.prompt, *(t.id for t in said)])[len(ask.prompt) - 1 :]
    for token, row in zip(said, table, strict=False):
        assert abs(token.logprob - float(row[token.id])) < 1e-5
        values, ids = row.topk(3)
        assert [i for i, _ in token.top] == ids.tolist()
        torch.testing.assert_close(torch.tensor([v for _, v in token.top]), values, atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", ["llama", "gemma2", "mamba", "bloom"])
def test_prompt_scores_are_a_plain_forwards(kind):
    """Whole, in order, in stretches that other asks interrupt; nothing is said where nothing was asked for."""
    model = tiny_model(kind)
    asks = [
        Ask(p, n, score_prompt=True, top_logprobs=2) for p, n in zip(prompts(5), (0, 0, 3, 0, 6), strict=True)
    ]
    asks.append(Ask([5], 0, score_prompt=True))
    with engine_on(model, step_tokens=7) as engine:
        replies(engine, asks[:1])  # known already to the cache of prefixes, which must not be used
        for ask, (said, stream) in zip(asks, replies(engine, [*asks]), strict=True):
            assert [s.id for s in stream.prompt] == list(ask.prompt)
            assert stream.prompt[0].logprob is None
            assert (len(said), stream.finish) == (ask.max_new_tokens, "length")
            table = plainly(model, ask.prompt)
            for at, scored in enumerate(stream.prompt[1:]):
                assert abs(scored.logprob - float(table[at, scored.id])) < 1e-5
                assert [i for i, _ in scored.top] == table[at].topk(len(scored.top)).indices.tolist()
            assert_told_truly(model, ask, said)


@pytest.mark.parametrize("kind", ["llama", "gemma2", "deepseek_v3"])
def test_prefixes_are_reused(kind):
    """What extends an earlier text takes its keys and values from there, and says the same."""
    model = tiny_model(kind)
    head = prompts(1, seed=5, most=1, shared=50)[0]
    first, second, third = (head + p for p in prompts(3, seed=6, most=9))
    with engine_on(model) as engine, engine_on(tiny_model(kind), prefix_bytes=0) as bare:
        said, stream = replies(engine, [Ask(first, 30)])[0]
        assert stream.cached_tokens == 0
        chat = [*first, *(t.id for t in said), 7, 8, 9, 10]  # the dialogue goes on
        for prompt, least in ((second, 48), (chat, 64), (third, 48), (first, 48)):
            ask = Ask(prompt, 12)
            (got, stream), (plain, other) = replies(engine, [ask])[0], replies(bare, [ask])[0]
            assert least <= stream.cached_tokens < len(prompt)
            assert stream.cached_tokens % 16 == 0
            assert other.cached_tokens == 0
            assert_told_truly(model, ask, got)
            assert [t.id for t in got] == [t.id for t in plain]
        assert engine.load().cached_tokens >= 48 + 64 + 48 + 48
        assert bare.load().cached_tokens == 0


def test_a_full_prefix_cache_forgets_the_oldest(llama):
    """Two layers of 2 heads × (8 + 8) floats: a block of 16 tokens takes 4,096 bytes; here are 8 blocks."""
    with engine_on(llama, prefix_bytes=8 * 4096) as engine:
        texts = prompts(6, seed=8, most=1, shared=0)
        texts = [p * 40 for p in texts]  # 40 tokens: 2 whole blocks each
        for text in texts:
            said, stream = replies(engine, [Ask(text, 1)])[0]
            assert stream.cached_tokens == 0
        for text, cached in ((texts[5], 32), (texts[4], 32), (texts[0], 0)):
            ask = Ask(text, 5)
            said, stream = replies(engine, [ask])[0]
            assert stream.cached_tokens == cached
            assert_told_truly(llama, ask, said)
        long = prompts(1, seed=9, most=1, shared=200)[0]  # more than all blocks
        assert_told_truly(llama, Ask(long, 5), replies(engine, [Ask(long, 5)])[0][0])
        ask = Ask(long, 5)
        said, stream = replies(engine, [ask])[0]
        assert 0 < stream.cached_tokens <= 128
        assert_told_truly(llama, ask, said)


def test_stops_limits_and_the_end_of_the_context(llama):
    (prompt,) = prompts(1)
    with engine_on(llama) as engine:
        free = [t.id for t in replies(engine, [Ask(prompt, 20)])[0][0]]
        stop = free[8]
        said, stream = replies(engine, [Ask(prompt, 20, frozenset({stop}))])[0]
        assert [t.id for t in said] == free[: free.index(stop)]
        assert stream.finish == "stop"
        full = (prompt * 300)[: 256 - 5]
        said, stream = replies(engine, [Ask(full, 20)])[0]
        assert (len(said), stream.finish) == (5, "length")
        said, stream = replies(engine, [Ask((prompt * 300)[:256], 20)])[0]
        assert (len(said), stream.finish) == (0, "length")
        with pytest.raises(ModelError, match="longer than the model's context"):
            engine.submit(Ask((prompt * 300)[:257], 1))
        with pytest.raises(ModelError, match="no tokens"):
            engine.submit(Ask([], 1))
        with pytest.raises(ModelError, match="no such adapter"):
            engine.submit(Ask(prompt, 1, adapter="poet"))


def test_penalties(llama):
    """A presence penalty beyond any logit: no token comes twice; a reference for frequencies, step by step."""
    (prompt,) = prompts(1)
    with engine_on(llama) as engine:
        said = replies(engine, [Ask(prompt, 40, presence_penalty=1e3)])[0][0]
        assert len({t.id for t in said}) == 40
        said = replies(engine, [Ask(prompt, 25, frequency_penalty=0.7, presence_penalty=-0.2)])[0][0]
    ids, counts = list(prompt), torch.zeros(VOCAB)
    for token in said:
        row = plainly(llama, ids)[-1]
        assert int((row - 0.7 * counts + 0.2 * (counts > 0)).argmax()) == token.id
        counts[token.id] += 1
        ids.append(token.id)


def test_the_queue_is_bounded(llama):
    (prompt,) = prompts(1)
    with engine_on(llama, max_running=1, max_waiting=2) as engine:
        streams, full = [], 0
        for _ in range(9):
            try:
                streams.append(engine.submit(Ask(prompt, 150)))
            except Full:
                full += 1
            time.sleep(0.002)
        assert full >= 5
        assert len(streams) + full == 9
        assert counts_add_up(engine, len(streams))
        assert all(len(said) == 150 for said in asyncio.run(gather_all(streams)))
        assert settle(engine).finished == len(streams)


async def gather_all(streams):
    return await asyncio.gather(*(gather(stream) for stream in streams))


def test_cancelled_asks_give_their_place_free(llama):
    """One that runs, one that waits; the others say what they would have said."""
    first, second, third = (Ask(p, 120) for p in prompts(3))

    async def scene(engine):
        running, waiting, last = engine.submit(first), engine.submit(second), engine.submit(third)
        got = [await anext(running) for _ in range(3)]
        waiting.cancel()
        running.cancel()
        running.cancel()  # a second time changes nothing
        rest = await gather(running)
        said = await gather(last)
        return got + rest, await gather(waiting), said, (running.finish, waiting.finish, last.finish)

    with engine_on(llama, max_running=1) as engine:
        cut, never, said, finishes = asyncio.run(scene(engine))
        load = settle(engine)
        assert finishes == ("cancelled", "cancelled", "length")
        assert 3 <= len(cut) < 120
        assert never == []
        assert len(said) == 120
        assert_told_truly(llama, third, said)
        assert (load.finished, load.running, load.waiting) == (3, 0, 0)
        assert not any(pool.used for pool in engine._runner.slots.pools)


def test_a_reader_whose_loop_is_gone_does_not_keep_its_place(llama):
    """Nobody cancels: the engine finds the loop of a waiting reader closed."""
    (prompt,) = prompts(1)
    with engine_on(llama) as engine:
        right, hold = engine._runner.compute, threading.Event()
        engine._runner.compute = lambda work: (hold.wait(10), right(work))[1]
        loop = asyncio.new_event_loop()
        stream = engine.submit(Ask(prompt, 200))
        reading = loop.create_task(gather(stream))
        loop.run_until_complete(asyncio.sleep(0))  # now it waits for its first token
        assert stream._waiter is not None
        loop.close()
        hold.set()
        assert settle(engine).finished == 1
        assert stream.finish == "cancelled"
        reading._log_destroy_pending = False


def test_one_fault_ends_one_ask(llama, caplog):
    """A poisoned ask breaks the step of all; each then goes alone, and only that one ends."""
    good = [Ask(p, 12) for p in prompts(5)]
    bad = Ask([3, 96, 96, 3], 12)

    with engine_on(llama) as engine:
        embed, right = llama.model.embed_tokens, llama.model.embed_tokens.forward

        def fail(ids):
            if bool((ids[0, 1:] == 96).logical_and(ids[0, :-1] == 96).any()):
                raise ValueError("planted")
            return right(ids)

        embed.forward = fail
        try:
            results = replies(engine, [*good[:2], bad, *good[2:]])
        finally:
            embed.forward = right
        assert results[2] == ([], results[2][1])
        assert results[2][1].finish == "error"
        for ask, (said, stream) in zip(good, results[:2] + results[3:], strict=True):
            assert stream.finish == "length"
            assert_told_truly(llama, ask, said)
        assert settle(engine).finished == 6
        assert "planted" in caplog.text


def test_what_is_not_finite_ends_and_leaves_no_trace(llama):
    """A model that overflows for one token: that ask ends, and who gets its slot reads none of it."""
    weight = llama.model.embed_tokens.weight
    before = weight[50].clone()
    try:
        with engine_on(llama, max_running=1) as engine:
            with torch.no_grad():
                weight[50] = float("nan")
            said, stream = replies(engine, [Ask([3, 50, 4, 5, 6, 7, 8, 9], 5)])[0]
            assert (said, stream.finish) == ([], "error")
            ask = Ask([3, 4], 5)
            said, stream = replies(engine, [ask])[0]
            assert stream.finish == "length"
            assert_told_truly(llama, ask, said)
    finally:
        with torch.no_grad():
            weight[50] = before


def test_memory_that_runs_out_means_fewer_at_once(llama, caplog):
    """Planted: more than three asks in a step do not fit. All are answered, and right."""
    asks = [Ask(p, 15) for p in prompts(8)]
    with engine_on(llama) as engine:
        right = engine._runner.compute

        def scarce(work):
            if len(work) > 3:
                raise torch.OutOfMemoryError("planted")
            return right(work)

        engine._runner.compute = scarce
        for ask, (said, stream) in zip(asks, replies(engine, asks), strict=True):
            assert stream.finish == "length"
            assert_told_truly(llama, ask, said)
        assert settle(engine).finished == 8
        assert "memory ran out" in caplog.text


def test_little_room_for_keys_and_values(llama):
    """Room for two asks of the longest kind: others wait, or go back to wait and are computed again."""
    slot = 256 * 2 * 2 * 16 * 4  # bytes of a slot: tokens, layers, heads, widths, float32
    asks = [Ask(p, 60, score_prompt=i % 2 == 0) for i, p in enumerate(prompts(7))]
    with engine_on(llama, cache_bytes=2 * slot, prefix_bytes=0) as engine:
        results = replies(engine, asks)
        for ask, (said, stream) in zip(asks, results, strict=True):
            assert (len(said), stream.finish) == (60, "length")
            assert_told_truly(llama, ask, said)
            assert len(stream.prompt) == (len(ask.prompt) if ask.score_prompt else 0)
        assert engine._runner.slots.bytes <= 2 * slot
        assert settle(engine).finished == 7


def test_who_outgrows_memory_is_put_back_and_says_the_same(llama):
    model = tiny_model("llama", max_position_embeddings=600)
    slot = 256 * 2 * 2 * 16 * 4
    asks = [Ask(p, 300, seed=i, temperature=1.0) for i, p in enumerate(prompts(3, most=20))]
    with engine_on(model) as engine:
        wanted = [[t.id for t in said] for said, _ in replies(engine, asks)]
    with engine_on(model, cache_bytes=4 * slot, prefix_bytes=0) as engine:
        put_back, right = [], engine._put_back
        engine._put_back = lambda generation: (put_back.append(generation), right(generation))
        results = replies(engine, asks)
        assert [[t.id for t in said] for said, _ in results] == wanted
        assert put_back
        assert settle(engine).finished == 3


def test_close_ends_everything(llama):
    (prompt,) = prompts(1)
    with engine_on(llama, max_running=1) as engine:
        streams = [engine.submit(Ask(prompt, 10_000)) for _ in range(3)]
        time.sleep(0.02)
        engine.close()
        assert not engine._thread.is_alive()
        assert [s.finish for s in streams] == ["cancelled"] * 3 or streams[0].finish == "length"
        assert engine.load().finished == 3
        with pytest.raises(RuntimeError, match="closed"):
            engine.submit(Ask(prompt, 1))
        asyncio.run(asyncio.wait_for(gather_all(streams), 5))
        engine.close()


@pytest.mark.slow
def test_stress():
    """200 asks of all kinds, a third cancelled at random moments: nobody gets another's tokens, nothing leaks."""
    import random

    model = tiny_model("llama")
    chance = random.Random(0)
    texts = prompts(40, seed=1, most=60, shared=0) + prompts(40, seed=2, most=60, shared=33)
    asks = [
        Ask(
            chance.choice(texts),
            chance.randrange(0, 60),
            frozenset({2, 5}),
            temperature=chance.choice((0.0, 0.0, 0.7, 1.3)),
            top_p=chance.choice((1.0, 0.9)),
            top_k=chance.choice((0, 10)),
            seed=number,
            frequency_penalty=chance.choice((0.0, 0.0, 0.3)),
            top_logprobs=chance.choice((0, 0, 3)),
            score_prompt=chance.random() < 0.2,
        )
        for number in range(200)
    ]
    with engine_on(model, prefix_bytes=0, max_waiting=500) as engine:
        alone = [[t.id for t in said] for said, _ in one_by_one(engine, asks)]

    async def one(engine, ask, delay, cut):
        await asyncio.sleep(delay)
        stream = engine.submit(ask)
        said = []
        async for token in stream:
            said.append(token)
            if len(said) == cut:
                stream.cancel()
        return said, stream

    async def all_of_them(engine):
        return await asyncio.gather(
            *(
                one(engine, ask, chance.random(), chance.randrange(0, 20) if chance.random() < 0.33 else None)
                for ask in asks
            )
        )

    with engine_on(model, max_waiting=500, max_running=24, cache_bytes=1 << 22) as engine:
        results = asyncio.run(asyncio.wait_for(all_of_them(engine), 120))
        load = settle(engine)
        assert not any(pool.used for pool in engine._runner.slots.pools)
    assert load.finished == 200
    assert {stream.finish for _, stream in results} == {"length", "stop", "cancelled"}
    for ask, wanted, (said, stream) in zip(asks, alone, results, strict=True):
        ids = [t.id for t in said]
        assert ids == wanted[: len(ids)]
        assert stream.finish == "cancelled" or ids == wanted
        if not ask.temperature and not ask.frequency_penalty:
            assert_told_truly(model, ask, said)
