"""libmtmd: a projector, the rows that it makes of pictures and sound, and where these lie in a prompt."""
from cpython.array cimport array, clone
from cpython.bytes cimport PyBytes_FromStringAndSize
from libc.stdint cimport int32_t, uint32_t
from libc.string cimport memcpy, memset

from .devices cimport device_named
from .gguf cimport Gguf
from .headers.llama cimport llama_model_n_embd_inp, llama_token
from .headers.mtmd cimport (
    MTMD_INPUT_CHUNK_TYPE_TEXT, llama_flash_attn_type, mtmd_bitmap, mtmd_bitmap_free, mtmd_bitmap_get_data,
    mtmd_bitmap_get_n_bytes, mtmd_bitmap_init, mtmd_bitmap_init_from_audio, mtmd_bitmap_is_audio,
    mtmd_bitmap_set_mergeable, mtmd_context_params, mtmd_context_params_default, mtmd_decode_use_mrope,
    mtmd_decode_use_non_causal, mtmd_decoder_pos, mtmd_default_marker, mtmd_encode_chunk, mtmd_free,
    mtmd_get_audio_sample_rate, mtmd_get_output_embd, mtmd_helper_bitmap_init_from_buf, mtmd_helper_bitmap_wrapper,
    mtmd_helper_init_opt_default, mtmd_helper_log_set, mtmd_image_tokens_get_decoder_pos, mtmd_init_from_file,
    mtmd_input_chunk, mtmd_input_chunk_get_n_pos, mtmd_input_chunk_get_n_tokens, mtmd_input_chunk_get_tokens_image,
    mtmd_input_chunk_get_tokens_text, mtmd_input_chunk_get_type, mtmd_input_chunks_free, mtmd_input_chunks_get,
    mtmd_input_chunks_init, mtmd_input_chunks_size, mtmd_input_text, mtmd_support_audio, mtmd_support_vision,
    mtmd_tokenize,
)
from .llama_log cimport check_ptr, forget_log, log_callback
from .model cimport Model

from llamafast.errors import ModelLoadError

cdef enum:
    # mtmd.h knows these as RGB
    CHANNELS = 3

mtmd_helper_log_set(log_callback(), NULL)


def projector_kinds(str path not None):
    """By libmtmd's names, those that the GGUF at ``path`` says it has. Raises ModelLoadError for what is none."""
    cdef Gguf head
    try:
        head = Gguf(path)
    except ValueError as error:
        raise ModelLoadError(f"cannot load {path}") from error
    kinds = map(head.text, ("clip.projector_type", "clip.vision.projector_type", "clip.audio.projector_type"))
    return [kind for kind in kinds if kind is not None]


cdef class Projector:
    """A projector's GGUF beside the model that it is for, whose weights are not read. Not thread-safe, but for
    ``image`` and ``audio`` beside ``Chunks.encode``.

    ``device`` is the name of the one that computes, None for CPUs. ``image_max_tokens`` bounds what a projector of
    pictures of any size makes of one; ``flash_attn`` is llama.h's flash_attn_type. Raises ModelLoadError with libmtmd's
    reason, ValueError for a device that is not there.
    """

    def __cinit__(
        self, Model model not None, str path not None, *, int n_threads, int batch_max_tokens, image_max_tokens=None,
        flash_attn=None, device=None,
    ):
        cdef mtmd_context_params params = mtmd_context_params_default()
        cdef bytes raw_path = path.encode()
        cdef const char *c_path = raw_path
        if llama_model_n_embd_inp(model.model) <= 0:
            raise ValueError("of a vocabulary alone it is not known how wide rows are")
        # else libmtmd takes the first one of the machine
        params.use_gpu = device is not None
        if device is not None:
            params.device = device_named(device)
        params.print_timings = False
        params.n_threads = n_threads
        params.batch_max_tokens = batch_max_tokens
        if image_max_tokens is not None:
            params.image_max_tokens = image_max_tokens
        if flash_attn is not None:
            params.flash_attn_type = <llama_flash_attn_type> <int> flash_attn
        self.model = model
        self.width = llama_model_n_embd_inp(model.model)
        forget_log()
        with nogil:
            self.ctx = mtmd_init_from_file(c_path, model.model, params)
        check_ptr(self.ctx, f"cannot load {path}")

    def __dealloc__(self):
        if self.ctx != NULL:
            mtmd_free(self.ctx)

    @property
    def has_vision(self):
        return mtmd_support_vision(self.ctx)

    @property
    def has_audio(self):
        return mtmd_support_audio(self.ctx)

    @property
    def sample_rate(self):
        """Of the sound that it takes, in Hz; -1 where it takes none."""
        return mtmd_get_audio_sample_rate(self.ctx)

    def image(self, uint32_t width, uint32_t height, const unsigned char[::1] rgb=None, int n_frames=1):
        """The Chunks of a picture, or of two frames of a video, of which some projectors make one picture. Without
        their ``rgb``, (n_frames, height, width, 3), they can be laid out and not encoded.

        Raises ValueError where libmtmd does not take it.
        """
        cdef size_t n_bytes = <size_t> width * height * CHANNELS
        cdef mtmd_bitmap *bitmaps[2]
        cdef int i, n = 0
        if not 1 <= n_frames <= 2:
            raise ValueError(f"{n_frames} frames")
        if rgb is not None and (<size_t> rgb.shape[0] != n_frames * n_bytes or not n_bytes):
            raise ValueError(f"{rgb.shape[0]} bytes for {n_frames} x {width} x {height} pixels")
        try:
            for i in range(n_frames):
                if rgb is None:
                    bitmaps[i] = mtmd_bitmap_init(width, height, NULL)
                else:
                    bitmaps[i] = mtmd_bitmap_init(width, height, &rgb[<Py_ssize_t> (i * n_bytes)])
                n += 1
                mtmd_bitmap_set_mergeable(bitmaps[i], n_frames > 1)
            return tokenized(self, bitmaps, n)
        finally:
            for i in range(n):
                mtmd_bitmap_free(bitmaps[i])

    def audio(self, size_t n_samples, const float[::1] samples=None):
        """The Chunks of sound, ``samples`` at ``sample_rate``; as ``image``."""
        cdef const float *data = NULL
        cdef mtmd_bitmap *bitmap
        if samples is not None:
            if <size_t> samples.shape[0] != n_samples or not n_samples:
                raise ValueError(f"{samples.shape[0]} of {n_samples} samples")
            data = &samples[0]
        bitmap = mtmd_bitmap_init_from_audio(n_samples, data)
        try:
            return tokenized(self, &bitmap, 1)
        finally:
            mtmd_bitmap_free(bitmap)

    def decode_audio(self, const unsigned char[::1] data not None):
        """The samples (float32, at ``sample_rate``) in a WAV, MP3 or FLAC file. Raises ValueError for what is none."""
        cdef mtmd_helper_bitmap_wrapper found
        cdef size_t n_bytes
        cdef array samples
        if data.shape[0] == 0:
            raise ValueError("an empty file")
        with nogil:
            found = mtmd_helper_bitmap_init_from_buf(
                self.ctx, &data[0], <size_t> data.shape[0], False, mtmd_helper_init_opt_default())
        if found.bitmap == NULL:
            raise ValueError("no sound that can be read")
        try:
            if not mtmd_bitmap_is_audio(found.bitmap):
                raise ValueError("no sound")
            n_bytes = mtmd_bitmap_get_n_bytes(found.bitmap)
            samples = clone(array("f"), <Py_ssize_t> (n_bytes // sizeof(float)), False)
            memcpy(samples.data.as_voidptr, mtmd_bitmap_get_data(found.bitmap), n_bytes)
        finally:
            mtmd_bitmap_free(found.bitmap)
        return samples


cdef Chunks tokenized(Projector projector, mtmd_bitmap **bitmaps, int n):
    """The chunks of some bitmaps behind each other."""
    cdef Chunks self = Chunks.__new__(Chunks)
    cdef mtmd_input_text text
    cdef bytes markers = <bytes> mtmd_default_marker() * n
    cdef int32_t code
    memset(&text, 0, sizeof(text))
    text.text = markers
    text.text_len = len(markers)
    text.parse_special = True
    self.projector = projector
    self.chunks = mtmd_input_chunks_init()
    with nogil:
        code = mtmd_tokenize(projector.ctx, self.chunks, &text, <const mtmd_bitmap **> bitmaps, <size_t> n)
    if code != 0:
        raise ValueError(f"mtmd_tokenize returned {code}")
    return self


cdef class Chunks:
    """What a picture or a sound becomes in a prompt: chunks of tokens, and of rows."""

    def __dealloc__(self):
        if self.chunks != NULL:
            mtmd_input_chunks_free(self.chunks)

    def __len__(self):
        return <Py_ssize_t> mtmd_input_chunks_size(self.chunks)

    cdef const mtmd_input_chunk *at(self, Py_ssize_t i) except NULL:
        if not 0 <= i < <Py_ssize_t> mtmd_input_chunks_size(self.chunks):
            raise IndexError(i)
        return mtmd_input_chunks_get(self.chunks, <size_t> i)

    def tokens(self, Py_ssize_t i):
        """The tokens of chunk ``i`` as int32 bytes; None where it has rows."""
        cdef const mtmd_input_chunk *chunk = self.at(i)
        cdef size_t n = 0
        cdef const llama_token *tokens
        if mtmd_input_chunk_get_type(chunk) != MTMD_INPUT_CHUNK_TYPE_TEXT:
            return None
        tokens = mtmd_input_chunk_get_tokens_text(chunk, &n)
        return (<const char *> tokens)[:n * sizeof(llama_token)]

    def span(self, Py_ssize_t i):
        """Of chunk ``i``, which has rows: how many, over how many positions, whether they are causal, and the offsets
        of these positions as ``Span`` takes them."""
        cdef const mtmd_input_chunk *chunk = self.at(i)
        cdef size_t k, n = mtmd_input_chunk_get_n_tokens(chunk)
        cdef mtmd_decoder_pos place
        cdef bytes offsets = b""
        cdef int32_t *planes
        if mtmd_decode_use_mrope(self.projector.ctx) and mtmd_input_chunk_get_tokens_image(chunk) != NULL:
            offsets = PyBytes_FromStringAndSize(NULL, <Py_ssize_t> (4 * n * sizeof(int32_t)))
            planes = <int32_t *> <char *> offsets
            for k in range(n):
                place = mtmd_image_tokens_get_decoder_pos(mtmd_input_chunk_get_tokens_image(chunk), 0, k)
                planes[k] = <int32_t> place.t
                planes[n + k] = <int32_t> place.y
                planes[2 * n + k] = <int32_t> place.x
                planes[3 * n + k] = <int32_t> place.z
        causal = not mtmd_decode_use_non_causal(self.projector.ctx, chunk)
        return <int> n, <int> mtmd_input_chunk_get_n_pos(chunk), causal, offsets

    def encode(self, Py_ssize_t i, float[:, ::1] rows not None):
        """Fill ``rows`` (n_rows, width) with those of chunk ``i``. Raises RuntimeError where libmtmd fails.

        It must have been made with data: libmtmd computes nothing of a chunk without.
        """
        cdef const mtmd_input_chunk *chunk = self.at(i)
        cdef size_t n = mtmd_input_chunk_get_n_tokens(chunk)
        cdef int32_t code
        cdef float *found
        if <size_t> rows.shape[0] != n or rows.shape[1] != self.projector.width:
            raise ValueError(f"room for {rows.shape[0]} x {rows.shape[1]} of {n} x {self.projector.width}")
        with nogil:
            code = mtmd_encode_chunk(self.projector.ctx, chunk)
        found = mtmd_get_output_embd(self.projector.ctx) if code == 0 else NULL
        if found == NULL:
            raise RuntimeError(f"mtmd_encode_chunk returned {code}")
        memcpy(&rows[0, 0], found, n * <size_t> self.projector.width * sizeof(float))
