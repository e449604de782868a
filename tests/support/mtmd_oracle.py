"""What libmtmd's own helper computes of a prompt with media, through llama-cpp-python's ctypes: the oracle of tests.

In a process of its own: llama-cpp-python takes llama.cpp's log for itself.
"""

from __future__ import annotations

import ctypes
import pickle
import subprocess
import sys
from array import array
from collections.abc import Sequence
from pathlib import Path

import numpy as np

Medium = tuple[int, int, bytes] | array


def oracle_logits(model: Path, projector: Path, text: str, media: Sequence[Medium]) -> np.ndarray:
    """Of the last token of ``text``, in which each ``<__media__>`` stands for the next of ``media``: a picture as
    (width, height, RGB), or samples of sound."""
    asked = pickle.dumps((model, projector, text, media))
    done = subprocess.run([sys.executable, __file__], input=asked, capture_output=True, check=True)
    return np.frombuffer(done.stdout, np.float32)


class Oracle:
    """One text model and its projector."""

    def __init__(self, model: Path, projector: Path) -> None:
        parameters = llama_cpp.llama_model_default_params()
        self._model = llama_cpp.llama_model_load_from_file(str(model).encode(), parameters)
        mtmd = mtmd_cpp.mtmd_context_params_default()
        mtmd.n_threads, mtmd.use_gpu, mtmd.print_timings = 1, False, False
        self._mtmd = mtmd_cpp.mtmd_init_from_file(str(projector).encode(), self._model, mtmd)
        assert self._mtmd
        self.n_vocab = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self._model))

    def close(self) -> None:
        mtmd_cpp.mtmd_free(self._mtmd)
        llama_cpp.llama_model_free(self._model)

    def logits(self, text: str, media: Sequence[Medium]) -> np.ndarray:
        bitmaps = [self._bitmap(medium) for medium in media]
        chunks = mtmd_cpp.mtmd_input_chunks_init()
        given = mtmd_cpp.mtmd_input_text()
        encoded = text.encode()
        given.text, given.text_len, given.add_special, given.parse_special = encoded, len(encoded), False, True
        several = (mtmd_cpp.mtmd_bitmap_p_ctypes * max(1, len(bitmaps)))(*bitmaps)
        assert mtmd_cpp.mtmd_tokenize(self._mtmd, chunks, ctypes.byref(given), several, len(bitmaps)) == 0
        parameters = llama_cpp.llama_context_default_params()
        parameters.n_ctx, parameters.n_batch, parameters.n_ubatch, parameters.n_seq_max = 4096, 1024, 1024, 1
        parameters.n_threads = parameters.n_threads_batch = 1
        parameters.flash_attn_type = 0
        context = llama_cpp.llama_init_from_model(self._model, parameters)
        n_past = ctypes.c_int32(0)
        code = mtmd_cpp.mtmd_helper_eval_chunks(self._mtmd, context, chunks, 0, 0, 1024, True, ctypes.byref(n_past))
        assert code == 0
        row = llama_cpp.llama_get_logits_ith(context, -1)
        logits = np.ctypeslib.as_array(row, shape=(self.n_vocab,)).copy()
        llama_cpp.llama_free(context)
        mtmd_cpp.mtmd_input_chunks_free(chunks)
        for bitmap in bitmaps:
            mtmd_cpp.mtmd_bitmap_free(bitmap)
        return logits

    def _bitmap(self, medium: Medium) -> object:
        if isinstance(medium, array):
            samples = (ctypes.c_float * len(medium)).from_buffer_copy(medium)
            return mtmd_cpp.mtmd_bitmap_init_from_audio(len(medium), samples)
        width, height, rgb = medium
        pixels = (ctypes.c_uint8 * len(rgb)).from_buffer_copy(rgb)
        return mtmd_cpp.mtmd_bitmap_init(width, height, pixels)


if __name__ == "__main__":
    import llama_cpp
    from llama_cpp import mtmd_cpp

    quiet = llama_cpp.llama_log_callback(lambda level, text, data: None)
    llama_cpp.llama_log_set(quiet, None)
    mtmd_cpp.mtmd_helper_log_set(quiet, None)
    model, projector, text, media = pickle.loads(sys.stdin.buffer.read())
    oracle = Oracle(model, projector)
    sys.stdout.buffer.write(oracle.logits(text, media).astype(np.float32).tobytes())
    oracle.close()
