"""Tiny GGUF models with made-up weights, for tests and benchmarks. Deterministic; needs only gguf and numpy.

Two kinds of weights. *Random*: the logits depend on the whole context, so a wrong cache or a wrong position shows.
*Chain*: greedy decoding follows a successor table, whatever came before: attention and feed-forward blocks run at
full cost, but their output projections are scaled down until they move logits without changing the winner.

    python -m recipes.tiny_gguf OUT [NAME...]
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType

from recipes.tiny_gguf_chain import SCRIPTED_CHATML, SCRIPTS, Ids, chain_output, loops
from recipes.tiny_gguf_file import ModelFile, Shape
from recipes.tiny_gguf_vocabulary import CHATML, Vocabulary
from recipes.written import written

# A changed recipe must not find the files of the old one.
_RECIPE = b"".join(path.read_bytes() for path in sorted(Path(__file__).parent.glob("tiny_gguf*.py")))
CACHE = Path(__file__).parents[1] / ".cache" / "models" / hashlib.sha256(_RECIPE).hexdigest()[:12]


def llama(path: Path, vocab: Vocabulary, *, layers: int = 2, embd: int = 64, successors: Ids | None = None,
          tied_as: GGMLQuantizationType | None = None, template: str = CHATML) -> None:  # fmt: skip
    shape = Shape(layers=layers, embd=embd, heads=embd // 16, kv_heads=2, head=16, ff=2 * embd)
    model = ModelFile(path, "llama", vocab, shape, template=template)
    model.key("vocab_size", len(vocab))
    model.key("rope.dimension_count", shape.head)
    model.key("rope.freq_base", 10_000.0)
    model.ends(successors=successors, tied_as=tied_as)
    out = 1.0 if successors is None else 0.02
    for block in (f"blk.{i}" for i in range(layers)):
        model.ones(embd, f"{block}.attn_norm", f"{block}.ffn_norm")
        model.attention(block, out=out)
        model.feed_forward(block, out=out)
    model.save()


def scripted(path: Path) -> None:
    """A chain whose trigger tokens lead into the fixed answers of SCRIPTS, each followed by end-of-turn."""
    vocab = Vocabulary(640, pieces=[piece for script in SCRIPTS.values() for piece in script], control=list(SCRIPTS))
    eos = vocab.id("<|im_end|>")
    paths = [[vocab.id(trigger), *map(vocab.id, script)] for trigger, script in SCRIPTS.items()]
    steps = [id for path in paths for id in path]
    if len(steps) != len(set(steps)):
        raise ValueError("a piece occurs twice in SCRIPTS")
    successors = loops(vocab)
    # nothing outside a script may lead into one
    while (blocked := np.isin(successors, [*steps, eos])).any():
        successors[blocked] = successors[successors[blocked]]
    for script in paths:
        successors[script] = [*script[1:], eos]
    llama(path, vocab, embd=128, successors=successors, template=SCRIPTED_CHATML)


def gemma3(path: Path, vocab: Vocabulary) -> None:
    """Sliding-window attention (window 64) in every other layer."""
    shape = Shape(layers=4, heads=2, kv_heads=1, head=32)
    model = ModelFile(path, "gemma3", vocab, shape)
    model.key("rope.freq_base", 1e6)
    model.key("rope.freq_base_swa", 10_000.0)
    model.key("attention.sliding_window", 64)
    model.key("attention.sliding_window_pattern", [i % 2 == 0 for i in range(shape.layers)])
    model.ends()
    for block in (f"blk.{i}" for i in range(shape.layers)):
        norms = ("attn_norm", "post_attention_norm", "ffn_norm", "post_ffw_norm")
        model.ones(shape.embd, *(f"{block}.{norm}" for norm in norms))
        model.attention(block, norms=True)
        model.feed_forward(block)
    model.save()


def qwen35(path: Path, vocab: Vocabulary, *, heads: int = 0, successors: Ids | None = None,
           drafted: Ids | None = None) -> None:  # fmt: skip
    """Hybrid: three gated-delta-net layers, then one of full attention; with one of ``heads`` a block that drafts the
    token after the next (MTP), by a table of its own where tokens are ``drafted``."""
    layers, out = 4, 1.0 if successors is None else 0.02
    shape = Shape(layers=layers + heads, heads=2, kv_heads=1, head=32)
    state, groups, ranks, kernel, interval = 32, 2, 4, 4, 4
    inner, mixed = state * ranks, 2 * state * groups + state * ranks
    model = ModelFile(path, "qwen35", vocab, shape, pre="qwen35")
    model.key("rope.dimension_count", 16)
    model.key("rope.dimension_sections", [4, 2, 2, 0])
    model.key("rope.freq_base", 1e7)
    model.key("full_attention_interval", interval)
    model.key("ssm.conv_kernel", kernel)
    model.key("ssm.inner_size", inner)
    model.key("ssm.state_size", state)
    model.key("ssm.time_step_rank", ranks)
    model.key("ssm.group_count", groups)
    if heads:
        model.key("nextn_predict_layers", heads)
    embeddings = model.ends(successors=successors)
    for i in range(shape.layers):
        block = f"blk.{i}"
        model.ones(shape.embd, f"{block}.attn_norm", f"{block}.post_attention_norm")
        if i >= layers or (i + 1) % interval == 0:
            model.attention(block, out=out, gated=True, norms=True)
        else:
            model.tensor(f"{block}.attn_qkv.weight", model.random(mixed, shape.embd))
            model.tensor(f"{block}.attn_gate.weight", model.random(inner, shape.embd))
            model.tensor(f"{block}.ssm_conv1d.weight", model.random(mixed, kernel))
            model.tensor(f"{block}.ssm_dt.bias", 0.1 * model.rng.standard_normal(ranks, np.float32))
            model.tensor(f"{block}.ssm_a", -np.linspace(0.05, 1.0, ranks, dtype=np.float32))
            model.tensor(f"{block}.ssm_beta.weight", model.random(ranks, shape.embd))
            model.tensor(f"{block}.ssm_alpha.weight", model.random(ranks, shape.embd))
            model.ones(state, f"{block}.ssm_norm")
            model.tensor(f"{block}.ssm_out.weight", model.random(shape.embd, inner, scale=out))
        model.feed_forward(block, out=out)
        if i >= layers:
            # a chain's keeps the token and not the hidden row, so that it drafts what the model itself would say
            kept = np.eye(shape.embd, 2 * shape.embd, dtype=np.float32)
            joined = model.random(shape.embd, 2 * shape.embd) if successors is None else kept
            model.tensor(f"{block}.nextn.eh_proj.weight", joined)
            model.ones(shape.embd, *(f"{block}.nextn.{norm}" for norm in ("enorm", "hnorm", "shared_head_norm")))
            if drafted is not None:
                model.tensor(f"{block}.nextn.shared_head_head.weight", chain_output(embeddings, drafted))
    model.save()


def mamba(path: Path, vocab: Vocabulary) -> None:
    """Recurrent only: two selective state space layers (the expansion must be 2)."""
    shape = Shape(layers=2, heads=1, kv_heads=1, head=64)
    inner, state, ranks, kernel = 2 * shape.embd, 16, 4, 4
    model = ModelFile(path, "mamba", vocab, shape)
    model.key("ssm.conv_kernel", kernel)
    model.key("ssm.inner_size", inner)
    model.key("ssm.state_size", state)
    model.key("ssm.time_step_rank", ranks)
    model.ends()
    for block in (f"blk.{i}" for i in range(shape.layers)):
        model.ones(shape.embd, f"{block}.attn_norm")
        model.tensor(f"{block}.ssm_in.weight", model.random(2 * inner, shape.embd))
        model.tensor(f"{block}.ssm_conv1d.weight", model.random(inner, kernel))
        model.tensor(f"{block}.ssm_conv1d.bias", 0.1 * model.rng.standard_normal(inner, np.float32))
        model.tensor(f"{block}.ssm_x.weight", model.random(ranks + 2 * state, inner))
        model.tensor(f"{block}.ssm_dt.weight", model.random(inner, ranks))
        model.tensor(f"{block}.ssm_dt.bias", 0.1 * model.rng.standard_normal(inner, np.float32))
        model.tensor(f"{block}.ssm_a", -np.tile(np.linspace(0.05, 1.0, state, dtype=np.float32), (inner, 1)))
        model.tensor(f"{block}.ssm_d", np.ones(inner, np.float32))
        model.tensor(f"{block}.ssm_out.weight", model.random(shape.embd, inner))
    model.save()


def qwen3moe(path: Path, vocab: Vocabulary) -> None:
    """Eight experts, two used."""
    shape, experts, expert_ff = Shape(layers=2, heads=4, kv_heads=2, head=16), 8, 32
    model = ModelFile(path, "qwen3moe", vocab, shape)
    model.key("rope.freq_base", 1e6)
    model.key("expert_count", experts)
    model.key("expert_used_count", 2)
    model.key("expert_feed_forward_length", expert_ff)
    model.ends()
    for block in (f"blk.{i}" for i in range(shape.layers)):
        model.ones(shape.embd, f"{block}.attn_norm", f"{block}.ffn_norm")
        model.attention(block, norms=True)
        model.tensor(f"{block}.ffn_gate_inp.weight", model.random(experts, shape.embd))
        model.tensor(f"{block}.ffn_gate_exps.weight", model.random(experts, expert_ff, shape.embd))
        model.tensor(f"{block}.ffn_up_exps.weight", model.random(experts, expert_ff, shape.embd))
        model.tensor(f"{block}.ffn_down_exps.weight", model.random(experts, shape.embd, expert_ff))
    model.save()


def gpt_oss(path: Path, vocab: Vocabulary) -> None:
    """Sixteen experts of MXFP4, two used, with biases; sinks, and a sliding window (64) in every other layer. Experts
    are chosen clearly and add little: else the last bits of a row would show in the logits."""
    shape, experts, expert_ff = Shape(layers=2, heads=4, kv_heads=2, head=16), 16, 32
    model = ModelFile(path, "gpt-oss", vocab, shape)
    model.key("rope.freq_base", 150_000.0)
    model.key("rope.dimension_count", shape.head)
    model.key("attention.sliding_window", 64)
    model.key("expert_count", experts)
    model.key("expert_used_count", 2)
    model.key("expert_feed_forward_length", expert_ff)
    model.ends()
    for block in (f"blk.{i}" for i in range(shape.layers)):
        model.ones(shape.embd, f"{block}.attn_norm", f"{block}.post_attention_norm")
        model.attention(block)
        model.tensor(f"{block}.attn_output.bias", model.random(shape.embd))
        model.tensor(f"{block}.attn_sinks.weight", model.random(shape.heads))
        model.tensor(f"{block}.ffn_gate_inp.weight", model.random(experts, shape.embd, scale=3.0))
        model.tensor(f"{block}.ffn_gate_inp.bias", model.random(experts))
        for name, rows, columns, scale in (
            ("ffn_gate_exps", expert_ff, shape.embd, 1.0),
            ("ffn_up_exps", expert_ff, shape.embd, 1.0),
            ("ffn_down_exps", shape.embd, expert_ff, 0.1),
        ):
            matrices = model.random(experts, rows, columns, scale=scale)
            model.tensor(f"{block}.{name}.weight", matrices, GGMLQuantizationType.MXFP4)
            model.tensor(f"{block}.{name}.bias", model.random(experts, rows, scale=scale))
    model.save()


def qwen3vl(path: Path, vocab: Vocabulary, *, deepstack: int = 0) -> None:
    """Attention alone, with rows of pictures at positions of two coordinates (M-RoPE). Behind each of the first
    ``deepstack`` blocks, but not the last one, more of a picture is added: its rows are so many times as wide, and once
    more."""
    shape = Shape(layers=2 + (deepstack > 0), heads=2, kv_heads=1, head=32)
    model = ModelFile(path, "qwen3vl", vocab, shape)
    model.key("rope.freq_base", 10_000.0)
    model.key("rope.dimension_count", shape.head)
    model.key("rope.dimension_sections", [6, 5, 5, 0])
    model.key("n_deepstack_layers", deepstack)
    model.ends()
    for block in (f"blk.{i}" for i in range(shape.layers)):
        model.ones(shape.embd, f"{block}.attn_norm", f"{block}.ffn_norm")
        model.attention(block, norms=True)
        model.feed_forward(block)
    model.save()


def chain(path: Path) -> None:
    vocab = Vocabulary(512)
    llama(path, vocab, successors=loops(vocab))


def mtp_chain(path: Path, wrong: float) -> None:
    """What a chain says, and a head that drafts it but for a share of the tokens."""
    vocab = Vocabulary(512)
    right = loops(vocab)
    missed = np.random.default_rng(3).permutation(len(right))[: int(wrong * len(right))]
    drafted = right.copy()
    drafted[missed] = np.roll(right[missed], 1)
    qwen35(path, vocab, heads=1, successors=right, drafted=drafted)


MODELS: dict[str, Callable[[Path], None]] = {
    "tiny-llama": lambda path: llama(path, Vocabulary(512)),
    "tiny-llama-chain": chain,
    "tiny-llama-v152k": lambda path: llama(path, Vocabulary(151_936), layers=1, tied_as=GGMLQuantizationType.Q4_0),
    "tiny-scripted": scripted,
    "tiny-gemma3-swa": lambda path: gemma3(path, Vocabulary(512)),
    "tiny-qwen35": lambda path: qwen35(path, Vocabulary(512)),
    "tiny-qwen35-mtp": lambda path: qwen35(path, Vocabulary(512), heads=1),
    "tiny-qwen35-mtp-chain": lambda path: mtp_chain(path, 0.0),
    "tiny-qwen35-mtp-chain70": lambda path: mtp_chain(path, 0.3),
    "tiny-mamba": lambda path: mamba(path, Vocabulary(512)),
    "tiny-qwen3vl": lambda path: qwen3vl(path, Vocabulary(512)),
    "tiny-qwen3vl-deepstack": lambda path: qwen3vl(path, Vocabulary(512), deepstack=2),
    "tiny-qwen3moe": lambda path: qwen3moe(path, Vocabulary(512)),
    "tiny-gpt-oss": lambda path: gpt_oss(path, Vocabulary(512)),
}


def build(name: str, folder: Path = CACHE) -> Path:
    """The file of model ``name`` in ``folder``, written first when it is not there. Raises KeyError for other names."""
    return written(folder / f"{name}.gguf", MODELS[name])


def main(arguments: list[str]) -> None:
    if not arguments or not set(arguments[1:]) <= MODELS.keys():
        sys.exit(f"usage: tiny_gguf.py OUT [NAME...]   names: {' '.join(MODELS)}")
    for name in arguments[1:] or MODELS:
        path = build(name, Path(arguments[0]))
        print(f"{path.stat().st_size:>10,} bytes  {path}")


if __name__ == "__main__":
    main(sys.argv[1:])
