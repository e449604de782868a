"""A draft model behind the engine's door: texts are those of an engine that drafts nothing, and a config that cannot be
followed is told."""

from __future__ import annotations

import asyncio
import logging
import re

import numpy as np
import pytest
from core.inside import drafter_of, set_times
from support.engines import collect, config, loaded, plan, settled

from engine.test_memory_kinds import KINDS, TEXTS, answer, start
from llamafast._core.vocab import Vocab
from llamafast.config import ModelConfig
from llamafast.engine import fit
from llamafast.engine.allocated import allocated
from llamafast.engine.drafting import check_vocabularies, create_drafter
from llamafast.engine.fit import Trial, with_context
from llamafast.engine.load import create_contexts, load_draft, load_engine
from llamafast.engine.look import look
from llamafast.engine.need import memory_need
from llamafast.engine.types import SamplingParams
from llamafast.errors import ConfigError
from recipes import tiny_gguf
from recipes.tiny_gguf_file import ModelFile, Shape
from recipes.tiny_gguf_vocabulary import Vocabulary

FREE = [1.0] * 64
SEEDED = SamplingParams(temperature=1.0, seed=4, repetition_penalty=1.1)


def drafting(tiny_model, kind, small, ram_bytes=0, **settings):
    """An engine for which rows cost nothing beside what steps take, and a draft model as little."""
    path = tiny_model(small)
    settings = {
        "draft_model": "draft-simple",
        "draft_model_path": str(path),
        "draft_model_num_pred_tokens": 4,
    } | settings
    engine = start(tiny_model, kind, ram_bytes, draft=path, **settings)
    set_times(drafter_of(engine._worker.runner), FREE)
    return engine


@pytest.mark.parametrize(
    "kind",
    ["unified", "hybrid", "recurrent", *(pytest.param(k, marks=pytest.mark.heavy) for k in ("partitioned", "window"))],
)
async def test_a_conversation_with_a_draft_model_is_the_one_without(tiny_model, kind):
    """Prefixes that others have saved, lent and restored; several at once and choices of one prompt."""
    name, _ = KINDS[kind]
    drafts = drafting(tiny_model, kind, name if name != "tiny-mamba" else "tiny-llama", 10**8)
    plain = start(tiny_model, kind, 0, draft_model="none")
    history = TEXTS[0][:150]
    for turn in range(2):
        for sampling in (plan(1).sampling, SEEDED):
            expected, _ = await answer(plain, history, 40, sampling=sampling)
            first = await asyncio.gather(*(answer(drafts, history, 40, sampling=sampling) for _ in range(3)))
            await settled(drafts)
            again, cached = await answer(drafts, history, 40, sampling=sampling)
            assert [text for text, _ in first] == [expected] * 3
            assert again == expected
            assert cached > 0
        choices = {"n": 3, "max_tokens": 24, "sampling": SEEDED, "ignore_eos": True}
        told = [await collect(engine.submit(plan(*history, **choices))) for engine in (plain, drafts)]
        assert told[0] == told[1]
        said = plain.tokenizer.tokenize(expected[0], add_special=False, parse_special=False)
        history = [*history, *said, *TEXTS[1][turn * 40 : turn * 40 + 50]]
    counters = drafts.counters()
    if kind == "recurrent":
        assert counters["draft_tokens_verified"] == counters["model_calls"] == 0
    else:
        assert counters["draft_model_accepted"] == counters["draft_tokens_accepted"] > 50
        assert counters["model_failures"] == 0
    for engine in (drafts, plain):
        await engine.close()


async def test_a_draft_model_in_a_memory_that_is_too_small_costs_nobody_its_answer(tiny_model):
    """Who gives way, comes back and is caught up."""
    drafts = drafting(tiny_model, "unified", "tiny-llama", 200_000, n_ctx=640, n_seq_max=4)
    plain = start(tiny_model, "unified", 0)
    drafts._worker.scheduler.LOOKAHEAD = 16  # most bets on short answers are lost
    prompts = [[*TEXTS[k % 3][: 100 + 10 * k], *TEXTS[k % 3][:50]] for k in range(6)]
    expected = [(await answer(plain, prompt, 200))[0] for prompt in prompts]
    for _ in range(2):
        told = await asyncio.gather(*(answer(drafts, prompt, 200) for prompt in prompts))
        assert [text for text, _ in told] == expected
    await settled(drafts)
    counters = drafts.counters()
    assert counters["preempted"] > 0
    assert counters["draft_model_accepted"] > 100
    assert counters["used_cells"] == 0
    for engine in (drafts, plain):
        await engine.close()


async def test_adapters_change_what_is_said_and_not_by_drafts(tiny_model):
    drafts, plain = drafting(tiny_model, "unified", "tiny-llama"), start(tiny_model, "unified", 0, draft_model="none")
    texts = []
    for options in ({}, {"lora": ((0, 1.0),)}):
        told = [await answer(engine, TEXTS[0][:50], 60, **options) for engine in (plain, drafts)]
        assert told[0] == told[1]
        texts.append(told[0][0])
    assert texts[0] != texts[1]
    counters = drafts.counters()
    assert 0 < counters["draft_tokens_accepted"] < counters["draft_tokens_verified"]
    for engine in (drafts, plain):
        await engine.close()


async def test_it_drafts_beside_other_sources_and_for_whom_it_may(tiny_model):
    every = ("prompt-lookup-decoding", "draft-simple")
    engine = drafting(tiny_model, "unified", "tiny-llama", draft_model=every)
    expected, _ = await answer(engine, TEXTS[0][:50], 60, speculative=False)
    counters = engine.counters()
    assert counters["model_calls"] == counters["draft_calls"] == 0
    for _ in range(2):
        assert (await answer(engine, TEXTS[0][:50], 60))[0] == expected
    counters = engine.counters()
    assert counters["draft_model_accepted"] > 20
    assert counters["draft_answers_accepted"] > 20
    await engine.close()


def test_a_model_of_another_vocabulary_is_refused_with_the_tokens(tiny_model, tmp_path):
    path, other = tiny_model("tiny-llama"), tmp_path / "other.gguf"
    tiny_gguf.llama(other, Vocabulary(520))
    asked = config(path, draft_model="draft-simple", draft_model_path=str(other))
    told = (
        r"model\.draft_model: draft-simple needs a model of the same vocabulary: "
        r"token (\d+) is b'.*' in the model and b'.*' in the draft model; token \d+ is .*; token \d+ is .*"
    )
    with pytest.raises(ConfigError, match=told):
        load_engine(asked, path, draft=other)
    with pytest.raises(ConfigError, match=told):
        look(asked.model, path, draft=other)


class Tokens:
    """A vocabulary as it is compared."""

    def __init__(self, *pieces, control=(), bos=0, eos=1):
        self.pieces, self.control, self.bos, self.eos = pieces, control, bos, eos
        self.n_tokens = len(pieces)

    def piece(self, token):
        return self.pieces[token]

    def text(self, token):
        return self.pieces[token].decode()

    def is_control(self, token):
        return token in self.control

    def differing(self, other, most):
        every = range(max(self.n_tokens, other.n_tokens))
        return [token for token in every if self._told(token) != other._told(token)][:most]

    def _told(self, token):
        return (self.piece(token), self.is_control(token)) if token < self.n_tokens else (b"", False)


def test_what_differs_is_told_by_its_bytes():
    ours = Tokens(b"a", b"b", b"<s>", control=(2,))
    check_vocabularies(ours, Tokens(b"a", b"b", b"<s>", b"", control=(2,)))
    for theirs, told in (
        (Tokens(b"a", b"c", b"<s>", control=(2,)), "token 1 is b'b' in the model and b'c' in the draft model"),
        (Tokens(b"a", b"b", b"<s>"), "token 2 is b'<s>' (control) in the model and b'<s>' in the draft model"),
        (Tokens(b"a", b"b"), "token 2 is b'<s>' (control) in the model and none in the draft model"),
        (Tokens(b"a", b"b", b"<s>", control=(2,), bos=-1), "BOS is token 0 (a) in the model and none in the draft"),
        (Tokens(b"a", b"b", b"<s>", control=(2,), eos=0), "EOS is token 1 (b) in the model and token 0 (a) in the"),
    ):
        with pytest.raises(ConfigError, match=re.escape(told)):
            check_vocabularies(ours, theirs)


def gpt2(path, n_positions):
    """A model with a table of positions."""
    model = ModelFile(path, "gpt2", Vocabulary(512), Shape(layers=1, embd=64, heads=4, kv_heads=4, head=16))
    model.writer.add_layer_norm_eps(1e-5)
    model.ends()
    model.tensor("position_embd.weight", model.random(n_positions, 64))
    widths = {"attn_norm": 64, "ffn_norm": 64, "attn_qkv": 192, "attn_output": 64, "ffn_up": 128, "ffn_down": 64}
    for name, width in widths.items():
        model.tensor(f"blk.0.{name}.bias", np.zeros(width, np.float32))
        if name.endswith("norm"):
            model.ones(width, f"blk.0.{name}")
        else:
            model.tensor(f"blk.0.{name}.weight", model.random(width, 128 if name == "ffn_down" else 64))
    model.tensor("output_norm.bias", np.zeros(64, np.float32))
    model.writer.kv_data[0]["gpt2.context_length"].value = n_positions
    model.save()


async def test_a_table_of_positions_is_as_long_as_texts_may_be(tiny_model, tmp_path):
    path, small = tiny_model("tiny-llama"), tmp_path / "small.gguf"
    gpt2(small, 256)
    settings = {"draft_model": "draft-simple", "draft_model_path": str(small), "n_ctx": 512}
    told = "the draft model knows 256 positions, and a text may have 257 tokens; model.max_seq_len says otherwise"
    for looks in (load_engine, lambda asked, path, draft: look(asked.model, path, draft=draft)):
        with pytest.raises(ConfigError, match=told):
            looks(config(path, **settings, max_seq_len=257), path, draft=small)
    look(config(path, **settings, max_seq_len=256).model, path, draft=small)
    engine = load_engine(config(path, **settings, max_seq_len=256), path, draft=small)
    set_times(drafter_of(engine._worker.runner), FREE)
    engine.start()
    text, _ = await answer(engine, TEXTS[0][:56], 200)
    assert len(text) > 0
    assert engine.counters()["model_calls"] > 0
    assert engine.counters()["model_failures"] == 0
    await engine.close()


def test_a_model_that_only_embeds_has_no_drafts(tiny_model, tiny_encoder):
    path, small = tiny_encoder("tiny-bert"), tiny_model("tiny-llama")
    settings = {"draft_model": "draft-simple", "draft_model_path": str(small)}
    for looks in (load_engine, lambda asked, path, draft: look(asked.model, path, draft=draft)):
        with pytest.raises(ConfigError, match="the model only embeds, and nothing is drafted for it"):
            looks(config(path, **settings), path, draft=small)
    encoder = tiny_encoder("tiny-t5")
    settings["draft_model_path"] = str(encoder)
    with pytest.raises(ConfigError, match="the draft model does not generate"):
        load_engine(config(small, **settings), small, draft=encoder)


def test_it_is_counted_before_it_is_loaded(tiny_model, monkeypatch):
    """By the trial, by `check`, by a pool; and what it takes is what was told."""
    path, small = tiny_model("tiny-llama"), tiny_model("tiny-qwen35")
    settings = {"n_ctx": 1024, "n_seq_max": 4, "threads": 1, "n_gpu_layers": 0}
    drafts = {"draft_model": "draft-simple", "draft_model_path": str(small)}
    asked, plain = ModelConfig(path="m", **settings, **drafts), ModelConfig(path="m", **settings)
    laid = Trial(asked, path, draft=small).laid()
    without = Trial(plain, path).laid()
    assert without.drafts.total == 0
    assert laid.contexts == without.contexts
    assert laid.here == without.here + laid.drafts.total
    model = loaded(asked, path)
    context, _ = create_contexts(asked, model)
    allocated()
    create_drafter(asked, context, Vocab(model), load_draft(asked, small))
    (own,) = allocated().contexts
    assert (own.kv, own.state) == (laid.drafts.kv, laid.drafts.state)
    looked = look(asked, path, small.stat().st_size, draft=small)
    assert looked.resolved["memory_bytes"]["context_of_the_draft_model"] == laid.drafts.total
    assert "context of who drafts" in looked.memory({}, 0)
    of_llama = memory_need(asked, path, [path], path) - memory_need(plain, path, [path])
    assert of_llama == pytest.approx(memory_need(plain, path) - 1.1 * path.stat().st_size, abs=2)
    # where others than CPUs have the layers, they have those of the draft model too
    beside = small.stat().st_size
    with monkeypatch.context() as patched:
        patched.setattr(fit, "share_here", lambda config, head: 0.0)
        given, size = Trial(asked, path, beside, draft=small), load_draft(asked, small).size
        laid, without = given.laid(), Trial(plain, path).laid()
    assert laid.elsewhere == without.elsewhere + size + laid.drafts.kv + laid.drafts.state
    assert laid.here == without.here + beside - size + sum(laid.drafts.compute.values())
    # a context that is chosen leaves room for it
    monkeypatch.setattr(fit, "PLAINLY", 0.0)
    room = Trial(plain, path).laid(8192).here
    free = {"threads": 1, "n_gpu_layers": 0}
    alone = with_context(ModelConfig(path="m", **free), path, here=room)
    both = with_context(ModelConfig(path="m", **free, **drafts), path, here=room, draft=path)
    assert both.n_ctx < alone.n_ctx


def test_what_drafts_is_told_at_start(tiny_model, caplog):
    path = tiny_model("tiny-llama-chain")
    caplog.set_level(logging.INFO)
    load_engine(config(path, draft_model=("draft-simple",), draft_model_path=str(path)), path, draft=path)
    assert "from the draft model tiny-llama-chain.gguf" in caplog.text
    assert "context of who drafts" in caplog.text
