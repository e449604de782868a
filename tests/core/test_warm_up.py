"""A context that has computed one token: its memory, and that nothing else of it shows."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from core.test_runner import Rig, prompts

CELLS = 131072


def anonymous_bytes():
    """Resident memory that is no file's; 0 where nobody tells."""
    if not Path("/proc/self/statm").exists():
        return 0
    resident, shared = map(int, Path("/proc/self/statm").read_text().split()[1:3])
    return (resident - shared) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.parametrize(("name", "share"), [("tiny-llama", 0.7), ("tiny-gemma3-swa", 0.4), ("tiny-qwen35", 0.4)])
def test_memory_of_the_cache_is_taken_as_it_is_used(tiny_model, name, share):
    """On Linux. Without it all of the cache is resident; other memory than keys and values may be, too."""
    rig = Rig(tiny_model(name), n_ctx=CELLS, flash_attn_type=1, n_seq_max=4)
    before = anonymous_bytes()
    released = rig.context.warm_up(1)
    if sys.platform == "linux":
        assert released > 1 << 20
        assert before - anonymous_bytes() > share * released
    else:
        assert released == 0
    rig.close()


@pytest.mark.parametrize("name", ["tiny-llama", "tiny-gemma3-swa", "tiny-qwen35", "tiny-mamba"])
@pytest.mark.parametrize("flash", [0, 1])
def test_texts_are_those_of_a_context_that_was_not_warmed_up(tiny_model, name, flash):
    def texts(warm):
        rig = Rig(tiny_model(name), n_ctx=4096, flash_attn_type=flash)
        if warm:
            rig.context.warm_up(5)
        told = rig.run(*(rig.sequence(prompt, tag, max_tokens=20) for tag, prompt in enumerate(prompts(8))))
        if warm:
            # what was given back is there again
            rig.context.warm_up(5)
            again = rig.run(*(rig.sequence(prompt, tag, max_tokens=20) for tag, prompt in enumerate(prompts(8))))
            assert again == told
        rig.close()
        return told

    assert texts(True) == texts(False)


def test_a_model_that_cannot_compute_is_told(tiny_model):
    rig = Rig(tiny_model("tiny-llama"))
    with pytest.raises(RuntimeError, match="llama_decode returned -1"):
        rig.context.warm_up(10_000_000)
    rig.close()
