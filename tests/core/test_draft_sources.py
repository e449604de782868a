"""What followed when the last tokens stood there before: in a text itself, and in what others were answered."""

from __future__ import annotations

import random
from array import array

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.inside import Answers, Chains, n_products, set_times
from core.test_drafts import Drafting

TEXTS = st.lists(st.integers(0, 3), min_size=1, max_size=80)


def naive(text):
    """The longest match of the end that goes on, at least three tokens; the latest of equals: behind it, its length."""
    best = (0, 0)
    for at in range(3, len(text)):
        n = 0
        while n < min(at, 64) and text[at - 1 - n] == text[-1 - n]:
            n += 1
        best = max(best, (n, at))
    return None if best[0] < 3 else (best[1], best[0])


@given(TEXTS, st.integers(1, 30))
def test_the_longest_match_is_found(text, most):
    """Of the latest sixteen of a hash: of so few tokens there may be more, so longer ones are looked for there."""
    chains, data = Chains(), array("i", text)
    while chains.index(data, most) < len(text):
        pass
    found, expected = chains.find(data), naive(text)
    same = [at for at in range(3, len(text)) if text[at - 3 : at] == text[-3:]]
    if expected is None or len(same) <= 15:
        assert (found and found[:2]) == expected
    else:
        assert found[0] in same


@given(TEXTS)
def test_a_text_may_grow_between_two_looks(text):
    chains, other = Chains(), Chains()
    for n in range(1, len(text) + 1):
        grown = array("i", text[:n])
        chains.index(grown, 4096)
    whole = array("i", text)
    other.index(whole, 4096)
    assert chains.find(whole) == other.find(whole)


def test_what_followed_once_differently_is_believed_less():
    chains = Chains()
    sure, unsure = ([1, 2, 3, 4, 9, 1, 2, 3], [1, 2, 3, 4, 9, 1, 2, 3, 5, 9, 1, 2, 3])
    chains.index(array("i", sure), 99)
    assert chains.find(array("i", sure)) == (3, 3, 1.0)
    chains = Chains()
    chains.index(array("i", unsure), 99)
    assert chains.find(array("i", unsure)) == (8, 4, pytest.approx(1.5 / 2.5))


def test_where_it_went_on_last_time_is_looked_at_first():
    """Twenty places that are as good as it hide the one that has been right so far."""
    block = [1, 2, 3, *range(100, 140)]
    text = [
        *range(50, 60),
        *block,
        *(token for k in range(20) for token in (200 + k, 1, 2, 3)),
        *range(50, 60),
        1,
        2,
        3,
    ]
    chains = Chains()
    chains.index(array("i", text), 1 << 20)
    assert chains.find(array("i", text))[1] == 3
    assert chains.find(array("i", text), 13) == (13, 13, pytest.approx(1.0))


def test_an_answer_is_told_again_to_those_of_its_salt():
    answers = Answers(1 << 16)
    answers.keep(array("i", range(100, 140)), b"a", 1)
    assert answers.propose(array("i", [7, 110, 111, 112]), b"a", 1, 5) == [113, 114, 115, 116, 117]
    assert answers.propose(array("i", [7, 110, 111, 112]), b"b", 2, 5) == []
    # one whose digest is the same by chance
    assert answers.propose(array("i", [7, 110, 111, 112]), b"b", 1, 5) == []
    assert answers.propose(array("i", [7, 137, 138, 139]), b"a", 1, 5) == []
    assert answers.propose(array("i", [136, 137, 138]), b"a", 1, 5) == [139]


@given(st.lists(st.tuples(st.integers(0, 2), st.lists(st.integers(0, 5), min_size=8, max_size=60)), max_size=60))
def test_what_is_proposed_was_answered_in_its_salt(kept):
    """However often the ring is overwritten, and however alike the answers are."""
    answers = Answers(1 << 14)
    said = {0: [], 1: [], 2: []}
    for salt, answer in kept:
        answers.keep(array("i", answer), b"salt%d" % salt, 7)
        said[salt].append(answer)
        tail = answer[len(answer) // 3 : len(answer) // 2 + 3]
        for other in range(3):
            proposed = answers.propose(array("i", tail), b"salt%d" % other, 7, 6)
            if proposed:
                windows = [one[i : i + 3 + len(proposed)] for one in said[other] for i in range(len(one))]
                assert [*tail[-3:], *proposed] in windows


def test_the_ring_keeps_to_its_budget_whatever_comes():
    answers = Answers(1 << 18)
    chance = random.Random(2)
    for k in range(400):
        answers.keep(
            array("i", [chance.randrange(50_000) for _ in range(chance.randrange(8, 4000))]), b"x" * (k % 500), k
        )
        assert answers.n_bytes <= 1 << 18
    last = array("i", range(1000, 2000))
    answers.keep(last, b"me", 1)
    assert answers.propose(last[500:600], b"me", 1, 8) == list(range(1600, 1608))


@pytest.mark.parametrize("n_bytes", [15_000, 20_000, 1 << 17, (1 << 20) - 1, 1 << 24])
def test_the_ring_is_within_its_bytes_whatever_they_are(n_bytes):
    answers = Answers(n_bytes)
    assert answers.n_bytes <= n_bytes
    for k in range(3000):
        answers.keep(array("i", range(8)), b"%0500d" % k, k)
    assert answers.n_bytes <= n_bytes


def test_a_salt_that_is_very_long_drives_nobody_out():
    answers = Answers(1 << 16)
    answers.keep(array("i", range(100, 140)), b"a", 1)
    answers.keep(array("i", range(200, 240)), b"x" * 10_000, 2)
    assert answers.propose(array("i", [210, 211, 212]), b"x" * 10_000, 2, 5) == []
    assert answers.propose(array("i", [110, 111, 112]), b"a", 1, 2) == [113, 114]


def test_what_is_private_is_not_told_again(chain):
    for private, least in ((True, 0), (True, 0), (False, 0), (False, 40)):
        sequence = chain.sequence([78], 1, max_tokens=60, salt=b"mine", seed=9, private=private)
        assert counted(chain, "draft_answers_accepted", sequence)[2] >= least
        if not least:
            assert counted(chain, "draft_answers_accepted", chain.sequence([5], 2, max_tokens=1))[2] == 0


def test_without_room_nothing_is_kept():
    answers = Answers(0)
    answers.keep(array("i", range(100)), b"", 0)
    assert answers.propose(array("i", range(50)), b"", 0, 8) == []


CHEAP = [1 + 0.05 * k for k in range(64)]


@pytest.fixture(scope="module")
def chain(tiny_model):
    """A model whose greedy answers are loops of 64 tokens."""
    rig = Drafting(tiny_model("tiny-llama-chain"), most=16)
    set_times(rig.drafter, CHEAP)
    yield rig
    rig.close()


def counted(rig, key, *sequences):
    before = rig.runner.counts()
    heard = rig.run(*sequences)
    after = rig.runner.counts()
    return heard, after["draft_tokens_verified"] - before["draft_tokens_verified"], after[key] - before[key]


def test_a_text_that_repeats_itself_is_drafted_from_itself(chain):
    first = chain.sequence([40], 1, max_tokens=300)
    _, n_drafted, n_steps = counted(chain, "steps", first)
    assert n_steps < 64 + 300 / 8
    assert n_drafted > 150
    without = chain.sequence([40], 2, max_tokens=300, speculative=False)
    _, n_drafted, n_steps = counted(chain, "steps", without)
    assert (n_drafted, n_steps) == (0, 300)
    assert list(first.tokens()) == list(without.tokens())


def test_drafts_are_short_until_a_few_tokens_came_as_proposed(tiny_model):
    """Whose draft may fail makes a step but a little longer, however likely it looks."""
    rig = Drafting(tiny_model("tiny-llama-chain"), most=16)
    set_times(rig.drafter, [1 + 0.08 * k for k in range(64)])
    sequence = rig.sequence([40], 1, max_tokens=200)
    rig.runner.add(sequence)
    in_a_row, saved, rows = 0, 0, []
    while rig.runner.n_running:
        before = rig.runner.counts()
        rig.runner.run(1)
        after = rig.runner.counts()
        drafted, came = (
            after[f"draft_tokens_{key}"] - before[f"draft_tokens_{key}"] for key in ("verified", "accepted")
        )
        rows.append(drafted)
        # of 1.2 times a step there are two rows more
        assert drafted <= (2 if in_a_row < 8 and saved < 4 else max(2, in_a_row))
        saved += came
        in_a_row = in_a_row + after["generated_tokens"] - before["generated_tokens"] if drafted == came > 0 else 0
        rig.tidy()
    assert max(rows) > 8
    rig.collect()
    rig.close()


def test_what_somebody_was_answered_is_drafted_for_those_of_its_salt(chain):
    """Sixty tokens, none of which comes twice."""
    for salt, seed, least, most in ((b"one", 1, 0, 0), (b"one", 1, 40, 60), (b"two", 2, 0, 0)):
        sequence = chain.sequence([77], 1, max_tokens=60, salt=salt, seed=seed)
        _, _, n_accepted = counted(chain, "draft_answers_accepted", sequence)
        assert least <= n_accepted <= most
    chain.drafter.forget_answers()
    sequence = chain.sequence([77], 1, max_tokens=60, salt=b"one", seed=1)
    assert counted(chain, "draft_answers_accepted", sequence)[2] == 0


def test_what_a_client_predicts_is_drafted_and_what_came_of_it_counted(chain):
    answer = chain.sequence([99], 1, max_tokens=60, salt=b"first")
    expected = chain.run(answer)
    predicted = array("i", answer.tokens()[1:31]) + array("i", [5, 6, 7, 8]) + array("i", answer.tokens()[35:61])
    sequence = chain.sequence([99], 1, max_tokens=60, salt=b"other", prediction=predicted)
    heard, _, n_accepted = counted(chain, "draft_prediction_accepted", sequence)
    assert heard == expected
    assert n_accepted > 30
    assert 45 <= sequence.n_predicted <= 56


def test_a_drafter_that_knows_no_times_drafts_nothing(tiny_model):
    rig = Drafting(tiny_model("tiny-llama-chain"))
    assert counted(rig, "steps", rig.sequence([40], 1, max_tokens=200))[1:] == (0, 200)
    measured = rig.drafter.time_steps(40, 0.2)
    assert set(measured) >= {1, 4}
    assert rig.runner.n_cells == 0
    assert counted(rig, "draft_tokens_accepted", rig.sequence([40], 1, max_tokens=200))[2] > 0


def test_without_time_three_steps_are_timed(tiny_model):
    """Two of one row, for the first may be slow, and one of four, however long they take."""
    rig = Drafting(tiny_model("tiny-llama-chain"))
    rig.run(rig.sequence([40], 1, max_tokens=8, ignore_eos=True))
    of_a_step = n_products(rig.context) / rig.runner.counts()["steps"]
    before = n_products(rig.context)
    assert sorted(rig.drafter.time_steps(40, 0)) == [1, 4]
    assert n_products(rig.context) - before == 3 * of_a_step
    assert rig.runner.n_cells == 0


def test_without_time_a_micro_batch_of_one_row_is_timed_twice(tiny_model):
    """No step of four rows fits into it."""
    rig = Drafting(tiny_model("tiny-llama-chain"), n_ubatch=1)
    rig.run(rig.sequence([40], 1, max_tokens=8, ignore_eos=True))
    of_a_step = n_products(rig.context) / rig.runner.counts()["steps"]
    before = n_products(rig.context)
    assert list(rig.drafter.time_steps(40, 0)) == [1]
    assert n_products(rig.context) - before == 2 * of_a_step


def test_beyond_its_most_sequences_nobody_drafts(tiny_model):
    rig = Drafting(tiny_model("tiny-llama-chain"), drafts_for=1)
    set_times(rig.drafter, CHEAP)
    pair = [rig.sequence([40 + tag], tag, max_tokens=150) for tag in (1, 2)]
    assert counted(rig, "steps", *pair)[1:] == (0, 150)


def test_what_costs_more_than_it_saves_ends(tiny_model):
    """Others' rows are said to be free, and are not: nothing that was drafted comes."""
    rig = Drafting(tiny_model("tiny-llama"), most=8)
    chance = random.Random(1)
    prompt = [chance.choice([50, 60, 70]) for _ in range(400)]
    set_times(rig.drafter, [1 + 0.3 * k for k in range(64)])
    sampling = {"temperature": 3.0, "seed": 1, "logit_bias": tuple((token, 20.0) for token in (50, 60, 70))}
    sequence = rig.sequence(prompt, 1, max_tokens=300, sampling=sampling)
    _, n_drafted, n_accepted = counted(rig, "draft_tokens_accepted", sequence)
    assert (n_drafted - n_accepted) * 0.3 < n_accepted + 1 + 0.01 * 300 + 2.4
