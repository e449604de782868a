"""The generated models: same bytes every time, loadable, and behaving as their names promise."""

from __future__ import annotations

from array import array
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from core.inside import last_position

from llamafast._core.context import Batch, Context
from llamafast._core.model import Model
from llamafast._core.vocab import Vocab
from recipes import tiny_gguf
from recipes.tiny_gguf import build
from recipes.tiny_gguf_chain import SCRIPTS, chain_output, loops
from recipes.tiny_gguf_vocabulary import ALPHABET, NORMAL, Vocabulary, learn_merges

SMALL = sorted(tiny_gguf.MODELS.keys() - {"tiny-llama-v152k"})


@pytest.mark.parametrize("name", SMALL)
def test_two_builds_give_the_same_bytes(name: str, tmp_path: Path) -> None:
    first, second = build(name, tmp_path / "a"), build(name, tmp_path / "b")
    assert first.name == f"{name}.gguf"
    assert first.read_bytes() == second.read_bytes()


def test_a_file_that_exists_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "tiny-llama.gguf"
    path.write_bytes(b"here already")
    assert build("tiny-llama", tmp_path) == path
    assert path.read_bytes() == b"here already"


def test_a_failed_build_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(path: Path) -> None:
        path.write_bytes(b"half a file")
        raise OSError("disk full")

    monkeypatch.setitem(tiny_gguf.MODELS, "tiny-llama", fail)
    with pytest.raises(OSError, match="disk full"):
        build("tiny-llama", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_name_is_refused(tmp_path: Path) -> None:
    with pytest.raises(KeyError):
        build("tiny-gpt", tmp_path)


@pytest.mark.parametrize("name", sorted(tiny_gguf.MODELS))
def test_every_model_loads_and_decodes(name: str) -> None:
    context = Context(Model(str(build(name))), n_ctx=512, n_batch=64, n_ubatch=64, n_seq_max=2, n_threads=1,
                      n_threads_batch=1, kv_unified=True)  # fmt: skip
    batch = Batch(64)
    for seq_id in (0, 1):
        for pos in range(20):
            batch.add(40 + pos, pos, seq_id, pos == 19)
    assert context.decode(batch) == 0
    batch.clear()
    batch.add(70, 20, 0, True)
    batch.add(80, 20, 1, True)
    for _ in range(3):
        assert context.decode(batch) == 0
        batch.advance()
    assert last_position(context, 1) == 22


def test_the_large_vocabulary_is_as_large_as_its_name() -> None:
    vocab = Vocab(Model(str(build("tiny-llama-v152k"))))
    assert vocab.n_tokens == 151_936
    assert vocab.piece(100_000).startswith(b" w")


def test_kinds_of_memory() -> None:
    assert Model(str(build("tiny-gemma3-swa"))).n_swa == 64
    assert Model(str(build("tiny-qwen35"))).is_hybrid
    assert Model(str(build("tiny-mamba"))).is_recurrent
    assert not Model(str(build("tiny-llama"))).is_hybrid


def test_merges_make_distinct_tokens_out_of_earlier_ones() -> None:
    made = set(ALPHABET.values())
    for left, right in learn_merges("low lower lowest slow slower", 30):
        assert {left, right} <= made
        assert left + right not in made
        made.add(left + right)


def test_merges_stop_when_there_is_nothing_left() -> None:
    assert learn_merges("ab", 10) == [("a", "b"), ("Ġ", "ab")]


def test_a_vocabulary_that_cannot_hold_its_marks_is_refused() -> None:
    with pytest.raises(ValueError, match="too few"):
        Vocabulary(300)


def test_loops_visit_their_tokens_in_turn_and_never_leave_text() -> None:
    vocab = Vocabulary(512)
    successors = loops(vocab)
    assert all(vocab.types[token] == NORMAL for token in successors)
    start = token = int(successors[vocab.id("<|im_start|>")])
    seen = []
    while token not in seen:
        seen.append(token)
        token = int(successors[token])
    assert token == start
    assert len(seen) == 64


def test_the_chain_head_prefers_the_successor_by_far() -> None:
    vocab = Vocabulary(512)
    successors = loops(vocab)
    embeddings = np.random.default_rng(3).standard_normal((len(vocab), 64), np.float32)
    hidden = embeddings / np.sqrt(np.mean(embeddings**2, axis=1, keepdims=True))
    logits = hidden @ chain_output(embeddings, successors).T
    assert (logits.argmax(axis=1) == successors).all()
    second, best = np.sort(logits, axis=1)[:, -2:].T
    assert (best - second).min() > 2
    assert np.median(best - second) > 10


def test_scripts_are_single_tokens_that_spell_their_answer() -> None:
    vocab = Vocab(Model(str(build("tiny-scripted"))))
    ids = Vocabulary(640, pieces=[piece for script in SCRIPTS.values() for piece in script], control=list(SCRIPTS))
    for trigger, script in SCRIPTS.items():
        assert list(vocab.tokenize(trigger, add_special=True, parse_special=True)) == [ids.id(trigger)]
        assert vocab.is_control(ids.id(trigger))
        assert vocab.detokenize(array("i", map(ids.id, script))) == "".join(script)
    assert ids.id("<|im_end|>") in vocab.eog_tokens()


def test_nothing_but_its_trigger_starts_a_script(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    tables = []
    monkeypatch.setattr(tiny_gguf, "llama", lambda path, vocab, *, successors, **_: tables.append((vocab, successors)))
    tiny_gguf.scripted(tmp_path)
    ((vocab, successors),) = tables
    for trigger, script in SCRIPTS.items():
        ids = [vocab.id(trigger), *map(vocab.id, script), vocab.id("<|im_end|>")]
        assert [int(successors[id]) for id in ids[:-1]] == ids[1:]
        assert not np.isin(ids[0], successors)
        assert all(np.count_nonzero(successors == id) == 1 for id in ids[1:-1])
    assert np.count_nonzero(successors == vocab.id("<|im_end|>")) == len(SCRIPTS)


def test_no_script_shares_a_step_with_another() -> None:
    steps = [step for script in SCRIPTS.values() for step in pairwise(script)]
    assert len({piece for script in SCRIPTS.values() for piece in script}) == len(steps) + len(SCRIPTS)


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny_gguf.main([str(tmp_path), "tiny-llama"])
    assert str(tmp_path / "tiny-llama.gguf") in capsys.readouterr().out
    with pytest.raises(SystemExit, match="usage"):
        tiny_gguf.main([str(tmp_path), "tiny-gpt"])
