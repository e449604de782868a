# What llamafast calls of mtmd.h and mtmd-helper.h. They are C, of C++: what may throw says so.
from libc.stdint cimport int32_t, uint32_t

from .llama cimport ggml_backend_dev_t, ggml_log_callback, llama_model, llama_pos, llama_token


cdef extern from "llama.h" nogil:
    # C++ does not convert an int
    cdef enum llama_flash_attn_type:
        LLAMA_FLASH_ATTN_TYPE_AUTO


cdef extern from "mtmd.h" nogil:
    cdef struct mtmd_context:
        pass
    cdef struct mtmd_bitmap:
        pass
    cdef struct mtmd_image_tokens:
        pass
    cdef struct mtmd_input_chunk:
        pass
    cdef struct mtmd_input_chunks:
        pass
    enum: MTMD_INPUT_CHUNK_TYPE_TEXT
    cdef struct mtmd_input_text:
        const char *text
        size_t text_len
        bint add_special
        bint parse_special
    cdef struct mtmd_context_params:
        bint use_gpu
        ggml_backend_dev_t device
        bint print_timings
        int n_threads
        llama_flash_attn_type flash_attn_type
        bint warmup
        int image_min_tokens
        int image_max_tokens
        int32_t batch_max_tokens
    cdef struct mtmd_decoder_pos:
        uint32_t t
        uint32_t x
        uint32_t y
        uint32_t z
    mtmd_context_params mtmd_context_params_default() except +
    const char *mtmd_default_marker()
    mtmd_context *mtmd_init_from_file(const char *path, const llama_model *model, mtmd_context_params params) except +
    void mtmd_free(mtmd_context *ctx)
    bint mtmd_support_vision(const mtmd_context *ctx)
    bint mtmd_support_audio(const mtmd_context *ctx)
    bint mtmd_decode_use_mrope(const mtmd_context *ctx)
    bint mtmd_decode_use_non_causal(const mtmd_context *ctx, const mtmd_input_chunk *chunk)
    int mtmd_get_audio_sample_rate(const mtmd_context *ctx)
    mtmd_bitmap *mtmd_bitmap_init(uint32_t nx, uint32_t ny, const unsigned char *data) except +
    mtmd_bitmap *mtmd_bitmap_init_from_audio(size_t n_samples, const float *data) except +
    size_t mtmd_bitmap_get_n_bytes(const mtmd_bitmap *bitmap)
    const unsigned char *mtmd_bitmap_get_data(const mtmd_bitmap *bitmap)
    bint mtmd_bitmap_is_audio(const mtmd_bitmap *bitmap)
    void mtmd_bitmap_free(mtmd_bitmap *bitmap)
    void mtmd_bitmap_set_mergeable(mtmd_bitmap *bitmap, bint mergeable)
    mtmd_input_chunks *mtmd_input_chunks_init() except +
    size_t mtmd_input_chunks_size(const mtmd_input_chunks *chunks)
    const mtmd_input_chunk *mtmd_input_chunks_get(const mtmd_input_chunks *chunks, size_t i)
    void mtmd_input_chunks_free(mtmd_input_chunks *chunks)
    int mtmd_input_chunk_get_type(const mtmd_input_chunk *chunk)
    const llama_token *mtmd_input_chunk_get_tokens_text(const mtmd_input_chunk *chunk, size_t *n_tokens)
    const mtmd_image_tokens *mtmd_input_chunk_get_tokens_image(const mtmd_input_chunk *chunk)
    size_t mtmd_input_chunk_get_n_tokens(const mtmd_input_chunk *chunk)
    llama_pos mtmd_input_chunk_get_n_pos(const mtmd_input_chunk *chunk)
    mtmd_decoder_pos mtmd_image_tokens_get_decoder_pos(const mtmd_image_tokens *tokens, llama_pos pos_0, size_t i)
    int32_t mtmd_tokenize(
        const mtmd_context *ctx, mtmd_input_chunks *output, const mtmd_input_text *text, const mtmd_bitmap **bitmaps,
        size_t n_bitmaps) except +
    int32_t mtmd_encode_chunk(mtmd_context *ctx, const mtmd_input_chunk *chunk) except +
    float *mtmd_get_output_embd(mtmd_context *ctx)


cdef extern from "mtmd-helper.h" nogil:
    cdef struct mtmd_helper_video:
        pass
    cdef struct mtmd_helper_init_opt:
        pass
    cdef struct mtmd_helper_bitmap_wrapper:
        mtmd_bitmap *bitmap
        mtmd_helper_video *video_ctx
    mtmd_helper_init_opt mtmd_helper_init_opt_default()
    void mtmd_helper_log_set(ggml_log_callback log_callback, void *user_data)
    mtmd_helper_bitmap_wrapper mtmd_helper_bitmap_init_from_buf(
        const mtmd_context *ctx, const unsigned char *buf, size_t len, bint placeholder, mtmd_helper_init_opt opt
    ) except +
