"""What ends an answer of a real tiny model, and what is told of it: stops, tokens, limits."""

from __future__ import annotations

from array import array

from support.engines import collect, config, plan, settled

from llamafast.engine.load import load_engine
from llamafast.engine.types import SamplingParams


async def test_nothing_to_generate_ends_at_once(engine):
    generation = engine.submit(plan(40, max_tokens=0))
    assert await collect(generation) == [("", "length")]
    full = engine.submit(plan(*[40] * 512, max_tokens=None))
    assert await collect(full) == [("", "length")]


async def test_the_context_bounds_the_answer(engine):
    generation = engine.submit(plan(*[40] * 500, max_tokens=None, ignore_eos=True))
    assert (await collect(generation))[0][1] == "length"
    assert generation.completion_tokens == 12


async def test_tokens_that_end_a_choice(engine):
    """A stop token leaves no text and cannot come too soon; it counts as generated."""
    always = SamplingParams(temperature=0, logit_bias=((97, 1000.0),))
    generation = engine.submit(plan(40, 41, sampling=always, stop_token_ids=(97,)))
    assert await collect(generation) == [("", "stop")]
    assert generation.completion_tokens == 1
    generation = engine.submit(plan(40, 41, sampling=always, stop_token_ids=(97,), min_tokens=5))
    ((_, reason),) = await collect(generation)
    assert (generation.completion_tokens, reason) == (6, "stop")
    eos = engine.tokenizer.eog_tokens()[0]
    ending = SamplingParams(temperature=0, logit_bias=((eos, 1000.0),))
    generation = engine.submit(plan(40, 41, sampling=ending, min_tokens=3))
    await collect(generation)
    assert generation.completion_tokens == 4


async def test_which_stop_was_met_is_told(engine):
    async def last(**options):
        events = [event async for batch in engine.submit(plan(40, 41, **options)) for event in batch]
        assert [event.matched_stop for event in events[:-1]] == [None] * (len(events) - 1)
        return events[-1].finish_reason, events[-1].matched_stop

    ((text, _),) = await collect(engine.submit(plan(40, 41, ignore_eos=True)))
    shorter, longer = text[3:5], text[2:5]
    assert text.index(longer) == 2
    always = SamplingParams(temperature=0, logit_bias=((97, 1000.0),))
    for keep_stop in (False, True):
        assert await last(stop=("absent", shorter, longer), keep_stop=keep_stop) == ("stop", longer)
    assert await last(stop=("absent",), stop_token_ids=(96, 97), sampling=always) == ("stop", 97)
    assert await last(stop=("absent",), stop_token_ids=(96,), ignore_eos=True) == ("length", None)
    ending = SamplingParams(temperature=0, logit_bias=((engine.tokenizer.eog_tokens()[0], 1000.0),))
    assert await last(stop=("absent",), sampling=ending) == ("stop", None)


async def test_a_control_token_can_be_what_stops(engine):
    tokens = engine.tokenizer
    ends = tokens.eog_tokens()
    mark = next(id for id in range(tokens.n_tokens) if tokens.is_control(id) and id not in ends)
    text = tokens.piece(mark).decode()
    always = SamplingParams(temperature=0, logit_bias=((mark, 1000.0),))
    for fields, expected in (({"preserved_tokens": (mark,)}, ("stop", text)), ({}, ("length", None))):
        stopped = engine.submit(plan(40, 41, sampling=always, stop=(text,), max_tokens=5, **fields))
        events = [event async for batch in stopped for event in batch]
        assert "".join(event.text for event in events) == ""
        assert (events[-1].finish_reason, events[-1].matched_stop) == expected


async def test_the_ids_of_all_tokens_are_told_where_they_are_wanted(engine):
    async def ids(*prompt, **options):
        generation = engine.submit(plan(*prompt, tell_tokens=True, **options))
        told = [
            id for event in [event async for batch in generation for event in batch] for id in event.token_ids or ()
        ]
        assert len(told) == generation.completion_tokens
        return told

    ((text, _),) = await collect(engine.submit(plan(40, 41, skip_special_tokens=False)))
    told = await ids(40, 41)
    assert engine.tokenizer.detokenize(array("i", told)) == text
    stopped = await ids(40, 41, stop=(text[1:3],))
    assert 0 < len(stopped) < len(told)
    assert stopped == told[: len(stopped)]
    eos = engine.tokenizer.eog_tokens()[0]
    ending = SamplingParams(temperature=0, logit_bias=((eos, 1000.0),))
    assert await ids(40, 41, sampling=ending) == [eos]
    # beside log probabilities
    scored = engine.submit(plan(40, 41, tell_tokens=True, top_logprobs=1))
    events = [event async for batch in scored for event in batch]
    assert [id for event in events for id in event.token_ids or ()] == told
    plain = [event async for batch in engine.submit(plan(40, 41)) for event in batch]
    assert all(event.token_ids is None for event in plain)


async def test_no_tokens_are_the_prompt_only_which_is_kept(tiny_model):
    engine = load_engine(config(tiny_model("tiny-llama"), ram_bytes=1 << 26), tiny_model("tiny-llama"))
    engine.start()
    prompt = [40 + i % 60 for i in range(200)]
    prefill = engine.submit(plan(*prompt, max_tokens=0))
    assert (await collect(prefill), prefill.completion_tokens) == ([("", "length")], 0)
    await settled(engine)
    after = engine.submit(plan(*prompt, 50, 51))
    await collect(after)
    assert after.cached_tokens >= 190
    await engine.close()


async def test_a_long_prompt_is_announced_with_what_was_cached(tiny_model):
    engine = load_engine(config(tiny_model("tiny-llama"), ram_bytes=1 << 26, n_batch=32), tiny_model("tiny-llama"))
    engine.start()

    async def told(*prompt, **options):
        """The text, the number of tokens and of cached ones each time that something becomes known, and the answer."""
        generation, pushed = engine.submit(plan(*prompt, **options)), []
        push = generation.push
        generation.push = lambda *args: (pushed.append((args[1], args[2], args[4])), push(*args))
        answer = await collect(generation)
        return pushed, answer

    prompt = [40 + i % 60 for i in range(200)]
    pushed, cold = await told(*prompt, announce=True)
    assert pushed[0] == ("", 0, 0)
    assert all(n_tokens for _, n_tokens, _ in pushed[1:])
    await settled(engine)
    pushed, warm = await told(*prompt[:150], *range(100, 200), announce=True)
    text, n_tokens, n_cached = pushed[0]
    assert (text, n_tokens, n_cached > 100) == ("", 0, True)
    assert {cached for _, _, cached in pushed} == {n_cached}
    await settled(engine)
    pushed, plain = await told(*prompt)
    assert all(n_tokens for _, n_tokens, _ in pushed)
    assert plain == cold != warm
    await engine.close()


async def test_a_stop_string_may_stay(engine):
    ((text, _),) = await collect(engine.submit(plan(40, 41, ignore_eos=True)))
    stop = text[2:4]
    for keep_stop in (False, True):
        ((cut, reason),) = await collect(engine.submit(plan(40, 41, stop=(stop,), keep_stop=keep_stop)))
        assert (cut, reason) == (text[: text.index(stop)] + stop * keep_stop, "stop")
