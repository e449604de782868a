"""Tiny projectors (GGUF files of libmtmd) with made-up weights, for tests and benchmarks. Deterministic.

Of each kind that treats rows in a way of its own: pictures whose rows have two coordinates (qwen3vl), whose rows all
see each other (gemma3), that are cut into slices (idefics3); sound in windows of 30 seconds (ultravox), with rows by
the hundred (qwen2a). The number in a name is the width of the text model.

    python -m recipes.tiny_mmproj OUT [NAME...]
"""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path
from typing import Literal

import numpy as np
from gguf import GGUFWriter
from msgspec import Struct

from recipes.written import written

# A changed recipe must not find the files of the old one.
CACHE = Path(__file__).parents[1] / ".cache" / "models" / hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:12]

Vision = Literal["qwen3vl_merger", "gemma3", "idefics3"]
Audio = Literal["ultravox", "qwen2a"]


class Tower(Struct, frozen=True, kw_only=True):
    """An encoder's sizes. A feed-forward block is twice as wide: libmtmd tells its two halves apart by that."""

    width: int = 32
    heads: int = 2
    layers: int = 1


class Projector(Struct, frozen=True, kw_only=True):
    """What a file holds: of pictures, of sound, or of both, for a text model that is ``text`` wide. Pictures are cut
    into patches of ``patch`` pixels, ``image`` pixels a side at first. What each of the first ``deepstack`` blocks has
    seen is added to their rows, for as many blocks of the text model."""

    text: int
    deepstack: int = 0
    vision: Vision | None = None
    audio: Audio | None = None
    tower: Tower = Tower()
    image: int = 64
    patch: int = 16


class ProjectorFile:
    """One GGUF being written. Tensor shapes are numpy's: (out, in) where ggml says {in, out}."""

    def __init__(self, path: Path, projector: Projector) -> None:
        self.rng = np.random.default_rng(2)
        self.projector = projector
        self.both = projector.vision is not None and projector.audio is not None
        self.writer = writer = GGUFWriter(path, "clip")
        writer.add_string("general.type", "mmproj")
        writer.add_name("tiny projector")
        writer.add_file_type(0)
        if projector.vision is not None:
            self._vision(projector.vision)
        if projector.audio is not None:
            self._audio(projector.audio)

    def save(self) -> None:
        self.writer.write_header_to_file()
        self.writer.write_kv_data_to_file()
        self.writer.write_tensors_to_file()
        self.writer.close()

    def _tensor(self, name: str, *shape: int, scale: float | None = None, half: bool = False) -> None:
        """Gaussian weights that keep the variance of their input, or of ``scale``."""
        spread = np.prod(shape[1:]) ** -0.5 if scale is None else scale
        values = self.rng.standard_normal(shape) * spread
        self.writer.add_tensor(name, values.astype(np.float16 if half else np.float32))

    def _filled(self, name: str, value: float, *shape: int) -> None:
        self.writer.add_tensor(name, np.full(shape, value, np.float32))

    def _norm(self, name: str, width: int) -> None:
        self._filled(f"{name}.weight", 1.0, width)
        self._filled(f"{name}.bias", 0.0, width)

    def _linear(self, name: str, n_in: int, n_out: int, *, bias: bool = True) -> None:
        self._tensor(f"{name}.weight", n_out, n_in)
        if bias:
            self._filled(f"{name}.bias", 0.01, n_out)

    def _begin(self, kind: str, name: str) -> None:
        tower = self.projector.tower
        self.writer.add_bool(f"clip.has_{kind}_encoder", True)
        self.writer.add_string(f"clip.{kind}.projector_type" if self.both else "clip.projector_type", name)
        for key, value in {
            "embedding_length": tower.width,
            "attention.head_count": tower.heads,
            "feed_forward_length": 2 * tower.width,
            "block_count": tower.layers,
            "projection_dim": self.projector.text,
        }.items():
            self._key(kind, key, value)
        self.writer.add_float32(f"clip.{kind}.attention.layer_norm_epsilon", 1e-6)

    def _key(self, kind: str, name: str, value: int) -> None:
        self.writer.add_uint32(f"clip.{kind}.{name}", value)

    def _blocks(self, prefix: str, *, fused: bool, key_bias: bool) -> None:
        width = self.projector.tower.width
        for i in range(self.projector.tower.layers):
            block = f"{prefix}.blk.{i}"
            if fused:
                self._linear(f"{block}.attn_qkv", width, 3 * width)
            else:
                self._linear(f"{block}.attn_q", width, width)
                self._linear(f"{block}.attn_k", width, width, bias=key_bias)
                self._linear(f"{block}.attn_v", width, width)
            self._linear(f"{block}.attn_out", width, width)
            self._norm(f"{block}.ln1", width)
            self._norm(f"{block}.ln2", width)
            self._linear(f"{block}.ffn_up", width, 2 * width)
            self._linear(f"{block}.ffn_down", 2 * width, width)

    def _vision(self, name: Vision) -> None:
        projector, width, text = self.projector, self.projector.tower.width, self.projector.text
        self._begin("vision", name)
        self._key("vision", "image_size", projector.image)
        self._key("vision", "patch_size", projector.patch)
        for key in ("mean", "std"):
            self.writer.add_array(f"clip.vision.image_{key}", [0.5, 0.5, 0.5])
        self.writer.add_bool("clip.use_gelu", True)
        patches = (projector.image // projector.patch) ** 2
        self._tensor("v.patch_embd.weight", width, 3, projector.patch, projector.patch)
        self._filled("v.patch_embd.bias", 0.0, width)
        self._tensor("v.position_embd.weight", patches, width, scale=0.5)
        self._blocks("v", fused=name == "qwen3vl_merger", key_bias=True)
        self._norm("v.post_ln", width)
        match name:
            case "idefics3":
                self._key("vision", "projector.scale_factor", 2)
                self._key("vision", "preproc_image_size", 2 * projector.image)
                self._tensor("mm.model.fc.weight", text, 4 * width)
            case "gemma3":
                self._key("vision", "projector.scale_factor", 2)
                self._tensor("mm.input_projection.weight", width, text, scale=width**-0.5)
                self._filled("mm.soft_emb_norm.weight", 1.0, width)
            case "qwen3vl_merger":
                self._key("vision", "spatial_merge_size", 2)
                self._tensor("v.patch_embd.weight.1", width, 3, projector.patch, projector.patch)
                self._linear("mm.0", 4 * width, 2 * width)
                self._linear("mm.2", 2 * width, text)
                for i in range(projector.deepstack):
                    self._norm(f"v.deepstack.{i}.norm", 4 * width)
                    self._linear(f"v.deepstack.{i}.fc1", 4 * width, 2 * width)
                    self._linear(f"v.deepstack.{i}.fc2", 2 * width, text)

    def _audio(self, name: Audio) -> None:
        width, text, mels, stack = self.projector.tower.width, self.projector.text, 16, 50
        self._begin("audio", name)
        self._key("audio", "num_mel_bins", mels)
        self._key("audio", "projector.stack_factor", stack)
        for i, n_in in enumerate((mels, width), 1):
            self._tensor(f"a.conv1d.{i}.weight", width, n_in, 3, half=True)
            self._filled(f"a.conv1d.{i}.bias", 0.0, width, 1)
        # of a window of 30 s: half of its 3,000 frames
        self._tensor("a.position_embd.weight", 1500, width, scale=0.5)
        self._blocks("a", fused=False, key_bias=False)
        self._norm("a.post_ln", width)
        match name:
            case "ultravox":
                self._filled("mm.a.norm_pre.weight", 1.0, width * stack)
                self._tensor("mm.a.mlp.1.weight", 64, width * stack)
                self._filled("mm.a.norm_mid.weight", 1.0, 32)
                self._tensor("mm.a.mlp.2.weight", text, 32)
            case "qwen2a":
                self._linear("mm.a.fc", width, text)


LARGE = Tower(width=768, heads=12, layers=8)

PROJECTORS: dict[str, Projector] = {
    "mmproj-qwen3vl-64": Projector(text=64, vision="qwen3vl_merger"),
    "mmproj-qwen3vl-64-deepstack": Projector(text=64, vision="qwen3vl_merger", tower=Tower(layers=3), deepstack=2),
    "mmproj-gemma3-64": Projector(text=64, vision="gemma3"),
    "mmproj-idefics3-64": Projector(text=64, vision="idefics3"),
    "mmproj-ultravox-64": Projector(text=64, audio="ultravox"),
    "mmproj-qwen2a-64": Projector(text=64, audio="qwen2a"),
    "mmproj-qwen3vl-ultravox-64": Projector(text=64, vision="qwen3vl_merger", audio="ultravox"),
    "mmproj-qwen3vl-576": Projector(text=576, vision="qwen3vl_merger"),
    # not tiny: encoding takes as long as a real projector's
    "mmproj-qwen3vl-64-large": Projector(text=64, vision="qwen3vl_merger", tower=LARGE, image=512),
    "mmproj-qwen3vl-576-large": Projector(text=576, vision="qwen3vl_merger", tower=LARGE, image=512),
    "mmproj-gemma3-ultravox-576": Projector(text=576, vision="gemma3", audio="ultravox"),
}


def build(name: str, folder: Path = CACHE) -> Path:
    """The file of projector ``name`` in ``folder``, written first when it is not there. Raises KeyError."""
    projector = PROJECTORS[name]
    return written(folder / f"{name}.gguf", lambda path: ProjectorFile(path, projector).save())


def main(arguments: list[str]) -> None:
    if not arguments or not set(arguments[1:]) <= PROJECTORS.keys():
        sys.exit(f"usage: tiny_mmproj.py OUT [NAME...]   names: {' '.join(PROJECTORS)}")
    for name in arguments[1:] or PROJECTORS:
        path = build(name, Path(arguments[0]))
        print(f"{path.stat().st_size:>10,} bytes  {path}")


if __name__ == "__main__":
    main(sys.argv[1:])
