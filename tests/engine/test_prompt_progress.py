"""What a real tiny model tells while it computes: how far each prompt is, and what runs."""

from __future__ import annotations

from support.engines import collect, config, plan, settled, standing

from llamafast.engine.load import load_engine


async def test_each_step_of_a_prompt_is_told(tiny_model):
    engine = load_engine(config(tiny_model("tiny-llama"), ram_bytes=1 << 26, n_batch=32), tiny_model("tiny-llama"))
    engine.start()

    async def told(*prompt, **options):
        """How much is in memory and was cached, and how many tokens there are, each time that something is known."""
        generation, pushed = engine.submit(plan(*prompt, tell_progress=True, **options)), []
        push = generation.push

        def pushing(*args):
            push(*args)
            pushed.append((generation.processed_tokens, generation.cached_tokens, generation.completion_tokens))

        generation.push = pushing
        return pushed, await collect(generation)

    prompt = [40 + i % 60 for i in range(200)]
    pushed, cold = await told(*prompt)
    steps = [processed for processed, _, n_tokens in pushed if not n_tokens]
    assert len(steps) >= 200 // 32
    assert steps == sorted(set(steps))
    assert steps[-1] == 200
    assert {processed for processed, _, n_tokens in pushed if n_tokens} == {200}
    await settled(engine)
    pushed, _ = await told(*prompt[:150], *range(100, 200))
    assert all(processed > cached > 100 for processed, cached, _ in pushed)
    pushed, _ = await told(*range(100, 180), max_tokens=0)
    assert [processed for processed, _, _ in pushed][-2:] == [80, 80]
    assert (await collect(engine.submit(plan(*prompt)))) == cold
    await engine.close()


async def test_what_runs_has_slots(tiny_model):
    engine = load_engine(config(tiny_model("tiny-llama"), n_batch=32), tiny_model("tiny-llama"))
    engine.start()
    assert engine.slots() == []
    generation = engine.submit(plan(*[40 + i % 60 for i in range(60)], n=2, max_tokens=100, ignore_eos=True))
    async with standing(engine, lambda: [slot.n_generated > 0 for slot in engine.slots()] == [True] * 2):
        running = engine.slots()
    assert len({(slot.slot, slot.task) for slot in running}) == 2
    for slot in running:
        assert slot.n_prompt == slot.n_computed + slot.n_cached == 60
        assert slot.n_generated + slot.n_left == 100
        assert abs(slot.n_memory - 60 - slot.n_generated) <= 1
    generation.cancel()
    assert engine.slots() == []
    await engine.close()
