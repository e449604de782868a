"""Events of blocks: what notes of overlapping prompts come to, and how they are written."""

from __future__ import annotations

import random
from array import array
from collections import Counter

import msgspec
import pytest
from support.event_reader import EventReader, digests
from support.fake_store import FakeStore

from llamafast._core.context import UNLIMITED
from llamafast.engine import disk_places
from llamafast.engine.cache import PrefixCache
from llamafast.engine.disk_tier import TieredCache
from llamafast.engine.kv_log import DISK, RAM, RUNNING, Dropped, Held, KVLog
from llamafast.events.blocks import AT_ONCE, BlockIndex, blocks_of
from llamafast.events.wire import AllBlocksCleared, Batch, BlockRemoved, BlockStored, encode, n_blocks

PROMPT = array("i", range(1000, 1050))  # three blocks and two tokens


def told(index, *notes):
    return [event for note in notes for event in index.events(note)]


def apply(reader, events):
    reader.read(encode(Batch(0.0, list(events))))
    return reader


def test_batches_are_written_as_vllm_writes_them():
    first, second, *_ = digests(PROMPT)
    stored = BlockStored([first, second], None, PROMPT[:32].tolist(), 16, None, "GPU", None)
    batch = encode(Batch(1.5, [AllBlocksCleared(), stored, BlockRemoved([first], "CPU")]))
    assert (first, second) == (5831971402388293996, 4987752066426767837)
    golden = (
        "93cb3ff800000000000093"  # an array: the time, three events, no rank
        "81a474797065b0416c6c426c6f636b73436c6561726564"
        "88a474797065ab426c6f636b53746f726564"
        "ac626c6f636b5f68617368657392cf50ef53176397496ccf45380e14031689dd"
        "b1706172656e745f626c6f636b5f68617368c0"
        "a9746f6b656e5f696473dc0020" + "".join(f"cd{token:04x}" for token in PROMPT[:32]) +
        "aa626c6f636b5f73697a6510a76c6f72615f6964c0a66d656469756da3475055a96c6f72615f6e616d65c0"
        "83a474797065ac426c6f636b52656d6f766564"
        "ac626c6f636b5f68617368657391cf50ef53176397496ca66d656469756da3435055c0"
    )  # fmt: skip
    assert batch.hex() == golden


def test_a_block_is_there_as_long_as_anybody_has_it():
    index = BlockIndex()
    longer = PROMPT[:40] + array("i", range(30))
    (stored,) = told(index, Held(RAM, "a", PROMPT, 0))
    assert (list(stored.block_hashes), stored.parent_block_hash) == (digests(PROMPT), None)
    (more,) = told(index, Held(RAM, "b", longer, 0))
    assert list(more.block_hashes) == digests(longer)[2:]
    assert more.parent_block_hash == digests(longer)[1]
    assert list(more.token_ids) == longer[32:64].tolist()
    (gone,) = told(index, Dropped(RAM, "a"))
    assert gone == BlockRemoved(digests(PROMPT)[2:], "CPU")
    (rest,) = told(index, Dropped(RAM, "b"))
    assert rest == BlockRemoved(digests(longer), "CPU")
    assert index.n_blocks == 0
    assert told(index, Dropped(RAM, "b"), Dropped(RAM, None), Dropped(DISK, "never")) == []


def test_each_medium_has_its_own():
    index = BlockIndex()
    events = told(index, Held(RUNNING, "a", PROMPT, 0), Held(RAM, "s", PROMPT, 0), Held(DISK, "s", PROMPT, 0))
    assert [event.medium for event in events] == ["GPU", "CPU", "STORAGE"]
    assert told(index, Dropped(RUNNING, None)) == [BlockRemoved(digests(PROMPT), "GPU")]
    assert told(index, Dropped(RAM, "s")) == [BlockRemoved(digests(PROMPT), "CPU")]
    # its place is known still
    (again,) = told(index, Held(RAM, "s", PROMPT, 0))
    assert again.medium == "CPU"
    assert apply(EventReader(), index.snapshot()).media == {"STORAGE": {*digests(PROMPT)}, "CPU": {*digests(PROMPT)}}


def test_a_part_has_the_block_that_it_completes():
    index = BlockIndex()
    told(index, Held(RAM, "head", PROMPT[:20], 0))
    (stored,) = told(index, Held(RAM, "tail", PROMPT, 20))
    assert list(stored.block_hashes) == digests(PROMPT)[1:]
    assert stored.parent_block_hash == digests(PROMPT)[0]
    assert told(index, Held(RAM, "less", PROMPT[:30], 20)) == []


def test_media_are_not_told():
    assert blocks_of(array("i", [5] * 20 + [-7] * 20), 0) is None
    assert told(BlockIndex(), Held(RAM, "a", array("i", [-1] * 32), 0), Dropped(RAM, "a")) == []


def test_what_is_long_is_told_in_pieces():
    index = BlockIndex()
    tokens = array("i", (i % 5000 for i in range(16 * (2 * AT_ONCE + 3))))
    stored = told(index, Held(RUNNING, "a", tokens, 0))
    assert [n_blocks(event) for event in stored] == [AT_ONCE, AT_ONCE, 3]
    reader = apply(EventReader(), stored)
    assert reader.blocks("GPU") == set(digests(tokens))
    removed = told(index, Dropped(RUNNING, "a"))
    assert [n_blocks(event) for event in removed] == [AT_ONCE, AT_ONCE, 3]
    assert apply(reader, removed).blocks("GPU") == set()


def test_a_digest_is_what_everybody_computes():
    """As docs/decisions/01-digests.md has it, whatever the part begins with."""
    blocks = blocks_of(PROMPT, 16)
    assert blocks is not None
    assert [blocks.parent, *blocks.digests] == digests(PROMPT)


# --- any history -----------------------------------------------------------------------------------------------------


def prompt(seed: int, length: int) -> array[int]:
    """Of few words, so that many have much in common, in whole blocks and within them."""
    fork = (0, 10, 24, 40)[seed % 4]
    return array("i", [7] * min(fork, length) + [seed] * (length - min(fork, length)))


# what may happen, and how often
STEPS = {
    "start": 4, "end": 3, "save": 8, "use": 8, "disk": 4, "idle": 4, "salted": 1, "forget": 1, "clear": 1, "restart": 1,
}  # fmt: skip


def some_values(kind: str, chance: random.Random) -> tuple[int, ...]:
    match kind:
        case "start" | "save" | "use":
            return chance.randrange(8), chance.randrange(16, 90)
        case "end" | "disk":
            return (chance.randrange(8),)
    return ()


class History:
    """Sequences that run over a cache with a disk; what a subscriber knows is compared with what there is."""

    def __init__(self, kind: str, budget: int) -> None:
        self.kind, self.budget = kind, budget
        self.reader = EventReader()
        self.begin(FakeStore({}, 10**7))

    def begin(self, store: FakeStore) -> None:
        self.log, self.index, self.store = KVLog(), BlockIndex(), store
        n_cuttable = 0 if self.kind == "recurrent" else UNLIMITED
        in_parts = self.kind == "parts"
        self.cache: PrefixCache = TieredCache(self.budget, store, 16, in_parts=in_parts, n_cuttable=n_cuttable)
        self.cache.log = self.log
        self.running: dict[object, array[int]] = {}
        apply(self.reader, [AllBlocksCleared()])

    def step(self, kind: str, *values: int) -> None:
        cache = self.cache
        match kind, values:
            case "start", (seed, length):
                owner = object()
                self.running[owner] = prompt(seed, length)
                self.log.hold(RUNNING, owner, self.running[owner], 0)
            case "end", (which,) if self.running:
                owner = list(self.running)[which % len(self.running)]
                del self.running[owner]
                self.log.drop(RUNNING, owner)
            case "save", (seed, length):
                self.save(prompt(seed, length), b"")
            case "salted", ():
                self.save(prompt(3, 64), b"somebody's")
            case "use", (seed, length):
                if found := cache.find(prompt(seed, length), b"", 0):
                    cache.use(found)
                    for part in found:
                        cache.hold(part.state)
                        cache.saved(part.state)
                    self.disk(True)
                    for part in found:
                        cache.let_go(part.state)
            case "disk", (done,):
                self.disk(done > 0)
            case "idle", ():
                cache.settle_idle()
                self.store.run()
                cache.settle(1.0)
            case "restart", ():
                self.cache.close(1.0)
                self.begin(FakeStore(self.store.disk, 10**7))
            case "forget", ():
                cache.forget(lambda salt: salt == b"somebody's")
            case "clear", ():
                cache.clear()

    def save(self, tokens: array[int], salt: bytes) -> None:
        start, stop = self.cache.unsaved(tokens, salt)
        if stop:
            self.cache.put(tokens[:stop], salt, bytes(20_000 + stop - start))

    def disk(self, done: bool) -> None:
        self.store.list_next()
        self.store.carry_out(done)
        self.store.bring(done)
        self.cache.settle(1.0)

    def check(self) -> Counter[str]:
        events = [event for note in self.log.taken() for event in self.index.events(note)]
        apply(self.reader, events)
        there: dict[str, set[int]] = {"GPU": set(), "CPU": set(), "STORAGE": set()}
        for tokens in self.running.values():
            there["GPU"] |= set(digests(tokens))
        tree = self.cache._tree
        for state in tree.below(b""):
            tokens, _ = tree.tokens(state)
            own = set(digests(tokens)[state.start // 16 :])
            if state.saved is not None:
                there["CPU"] |= own
            if state.entry is not None and state.entry.head is not None:
                there["STORAGE"] |= own
        for medium, blocks in there.items():
            assert self.reader.blocks(medium) == blocks, medium
        assert apply(EventReader(), self.index.snapshot()).media == {m: b for m, b in self.reader.media.items() if b}
        assert self.index.n_blocks == sum(map(len, there.values()))
        alone = {"STORAGE alone": int(bool(there["STORAGE"] - there["CPU"]))}
        return Counter(f"{event.medium}{' gone' * isinstance(event, BlockRemoved)}" for event in events) + Counter(
            alone
        )


@pytest.mark.parametrize("kind", ["parts", "whole", "recurrent"])
def test_a_subscriber_knows_what_there_is_after_any_history(kind, monkeypatch):
    monkeypatch.setattr(disk_places, "LEAST_RAM", 0)
    moved = Counter()
    for seed in range(15):
        chance = random.Random(seed)
        history = History(kind, budget=100_000)
        for step in chance.choices(list(STEPS), list(STEPS.values()), k=60):
            history.step(step, *some_values(step, chance))
            moved += history.check()
    # all ways between the media were gone
    assert min(moved[way] for way in ("CPU", "STORAGE", "CPU gone", "STORAGE gone", "STORAGE alone")) > 3, moved


def test_the_decoder_of_a_reader_in_types_takes_it():
    class Stored(msgspec.Struct, tag="BlockStored"):
        block_hashes: list[int]
        token_ids: list[int]
        parent_block_hash: int | None
        block_size: int
        medium: str

    batch = encode(Batch(0.0, told(BlockIndex(), Held(RAM, "a", PROMPT, 0))))
    _, (stored,), _ = msgspec.msgpack.decode(batch, type=tuple[float, list[Stored], int | None])
    assert stored.block_hashes == digests(PROMPT)
