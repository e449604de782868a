# What llamafast calls of ggml.h, ggml-backend.h, ggml-cpu.h, ggml-rpc.h, gguf.h and llama.h, in their order. Enums are
# declared as int: C converts both ways.
from libc.stdint cimport int8_t, int32_t, int64_t, uint8_t, uint32_t, uint64_t


cdef extern from "stdbool.h" nogil:
    ctypedef bint c_bool "bool"


cdef enum:
    LLAMA_MAX_SEQ = 256     # llama-cparams.h: sequence ids of a context

cdef extern from "ggml.h" nogil:
    cdef enum ggml_log_level:
        GGML_LOG_LEVEL_INFO
        GGML_LOG_LEVEL_WARN
        GGML_LOG_LEVEL_ERROR
        GGML_LOG_LEVEL_CONT
    ctypedef void (*ggml_log_callback)(ggml_log_level level, const char *text, void *user_data) noexcept nogil
    enum: GGML_TYPE_F32
    enum: GGML_OP_FLASH_ATTN_EXT
    enum: GGML_OP_MUL_MAT
    enum: GGML_OP_MUL_MAT_ID
    cdef struct ggml_backend_buffer:
        pass
    cdef struct ggml_tensor:
        int type
        int op
        ggml_backend_buffer *buffer
        int64_t ne[4]
        ggml_tensor *src[4]     # of GGML_MAX_SRC
        ggml_tensor *view_src
        void *data
        char name[64]
    cdef struct ggml_context:
        pass
    c_bool ggml_is_quantized(int type)
    const char *ggml_type_name(int type)
    ggml_tensor *ggml_get_tensor(ggml_context *ctx, const char *name)
    void ggml_free(ggml_context *ctx)
    c_bool ggml_is_contiguous(const ggml_tensor *tensor)
    int64_t ggml_nrows(const ggml_tensor *tensor)


cdef extern from "ggml-backend.h" nogil:
    ctypedef c_bool (*ggml_backend_sched_eval_callback)(ggml_tensor *t, c_bool ask, void *user_data) noexcept nogil
    c_bool ggml_backend_buffer_is_host(ggml_backend_buffer *buffer)
    void *ggml_backend_buffer_get_base(ggml_backend_buffer *buffer)
    size_t ggml_backend_buffer_get_size(ggml_backend_buffer *buffer)
    void *ggml_backend_buffer_get_type(ggml_backend_buffer *buffer)
    void *ggml_backend_cpu_buffer_type()
    # pointers to what nobody looks into
    ctypedef void *ggml_backend_buffer_type_t
    ctypedef void *ggml_backend_dev_t
    ctypedef void *ggml_backend_reg_t
    enum: GGML_BACKEND_DEVICE_TYPE_CPU
    enum: GGML_BACKEND_DEVICE_TYPE_GPU
    enum: GGML_BACKEND_DEVICE_TYPE_IGPU
    enum: GGML_BACKEND_DEVICE_TYPE_ACCEL
    enum: GGML_BACKEND_DEVICE_TYPE_META
    cdef struct ggml_backend_dev_props:
        const char *name
        const char *description
        size_t memory_free
        size_t memory_total
        int type
        const char *device_id
    const char *ggml_backend_buft_name(ggml_backend_buffer_type_t buft)
    const char *ggml_backend_dev_name(ggml_backend_dev_t device)
    const char *ggml_backend_dev_description(ggml_backend_dev_t device)
    int ggml_backend_dev_type(ggml_backend_dev_t device)
    void ggml_backend_dev_get_props(ggml_backend_dev_t device, ggml_backend_dev_props *props)
    ggml_backend_reg_t ggml_backend_dev_backend_reg(ggml_backend_dev_t device)
    ggml_backend_buffer_type_t ggml_backend_dev_buffer_type(ggml_backend_dev_t device)
    const char *ggml_backend_reg_name(ggml_backend_reg_t reg)
    void *ggml_backend_reg_get_proc_address(ggml_backend_reg_t reg, const char *name)
    void ggml_backend_register(ggml_backend_reg_t reg)
    ggml_backend_reg_t ggml_backend_reg_by_name(const char *name)
    size_t ggml_backend_dev_count()
    ggml_backend_dev_t ggml_backend_dev_get(size_t index)


cdef extern from "ggml-cpu.h" nogil:
    enum: GGML_NUMA_STRATEGY_COUNT


cdef extern from "ggml-rpc.h" nogil:
    enum: RPC_PROTO_MAJOR_VERSION
    enum: RPC_PROTO_MINOR_VERSION


cdef extern from "gguf.h" nogil:
    enum: GGUF_TYPE_UINT32
    enum: GGUF_TYPE_INT32
    enum: GGUF_TYPE_FLOAT32
    enum: GGUF_TYPE_STRING
    enum: GGUF_TYPE_ARRAY
    cdef struct gguf_context:
        pass
    cdef struct gguf_init_params:
        bint no_alloc
        ggml_context **ctx
    gguf_context *gguf_init_from_file(const char *fname, gguf_init_params params)
    void gguf_free(gguf_context *ctx)
    int64_t gguf_find_key(const gguf_context *ctx, const char *key)
    int gguf_get_kv_type(const gguf_context *ctx, int64_t key_id)
    int gguf_get_arr_type(const gguf_context *ctx, int64_t key_id)
    uint32_t gguf_get_val_u32(const gguf_context *ctx, int64_t key_id)
    int32_t gguf_get_val_i32(const gguf_context *ctx, int64_t key_id)
    const char *gguf_get_val_str(const gguf_context *ctx, int64_t key_id)
    float gguf_get_val_f32(const gguf_context *ctx, int64_t key_id)
    size_t gguf_get_arr_n(const gguf_context *ctx, int64_t key_id)
    const void *gguf_get_arr_data(const gguf_context *ctx, int64_t key_id)
    int64_t gguf_get_n_tensors(const gguf_context *ctx)
    const char *gguf_get_tensor_name(const gguf_context *ctx, int64_t tensor_id)
    int gguf_get_tensor_type(const gguf_context *ctx, int64_t tensor_id)
    size_t gguf_get_data_offset(const gguf_context *ctx)
    size_t gguf_get_tensor_offset(const gguf_context *ctx, int64_t tensor_id)
    size_t gguf_get_tensor_size(const gguf_context *ctx, int64_t tensor_id)


cdef extern from "llama.h" nogil:
    cdef struct llama_vocab:
        pass
    cdef struct llama_model:
        pass
    cdef struct llama_context:
        pass
    cdef struct llama_adapter_lora:
        pass
    ctypedef void *llama_memory_t
    ctypedef int32_t llama_pos
    ctypedef int32_t llama_token
    ctypedef int32_t llama_seq_id
    ctypedef c_bool (*llama_progress_callback)(float progress, void *user_data) noexcept nogil

    enum: LLAMA_ROPE_TYPE_MROPE
    enum: LLAMA_ROPE_TYPE_IMROPE
    enum: LLAMA_POOLING_TYPE_NONE
    enum: LLAMA_POOLING_TYPE_MEAN
    enum: LLAMA_POOLING_TYPE_CLS
    enum: LLAMA_POOLING_TYPE_RANK
    enum: LLAMA_SPLIT_MODE_NONE
    enum: LLAMA_CONTEXT_TYPE_MTP
    enum: LLAMA_KV_OVERRIDE_TYPE_INT
    enum: LLAMA_KV_OVERRIDE_TYPE_FLOAT
    enum: LLAMA_KV_OVERRIDE_TYPE_BOOL
    enum: LLAMA_KV_OVERRIDE_TYPE_STR

    ctypedef struct llama_batch:
        int32_t n_tokens
        llama_token *token
        float *embd
        llama_pos *pos
        int32_t *n_seq_id
        llama_seq_id **seq_id
        int8_t *logits

    cdef struct llama_model_kv_override:
        int tag
        char key[128]
        int64_t val_i64
        double val_f64
        bint val_bool
        char val_str[128]

    cdef struct llama_model_tensor_buft_override:
        const char *pattern
        ggml_backend_buffer_type_t buft

    cdef struct llama_model_params:
        ggml_backend_dev_t *devices
        const llama_model_tensor_buft_override *tensor_buft_overrides
        int32_t n_gpu_layers
        int split_mode
        int load_mode
        int32_t main_gpu
        const float *tensor_split
        llama_progress_callback progress_callback
        void *progress_callback_user_data
        const llama_model_kv_override *kv_overrides
        bint vocab_only
        bint use_extra_bufts
        bint load_mtp
        bint no_alloc

    cdef struct llama_context_params:
        uint32_t n_ctx
        uint32_t n_batch
        uint32_t n_ubatch
        uint32_t n_seq_max
        uint32_t n_rs_seq
        uint32_t n_outputs_max
        int32_t n_threads
        int32_t n_threads_batch
        int rope_scaling_type
        int pooling_type
        int attention_type
        int flash_attn_type
        ggml_backend_sched_eval_callback cb_eval
        void *cb_eval_user_data
        float rope_freq_base
        float rope_freq_scale
        float yarn_ext_factor
        float yarn_attn_factor
        float yarn_beta_fast
        float yarn_beta_slow
        uint32_t yarn_orig_ctx
        int type_k
        int type_v
        bint embeddings
        bint offload_kqv
        bint no_perf
        bint op_offload
        bint swa_full
        bint kv_unified
        int ctx_type
        llama_context *ctx_other

    llama_model_params llama_model_default_params()
    llama_context_params llama_context_default_params()
    void llama_backend_init()
    void llama_numa_init(int numa)

    llama_model *llama_model_load_from_file(const char *path_model, llama_model_params params)
    void llama_model_free(llama_model *model)
    llama_context *llama_init_from_model(llama_model *model, llama_context_params params)
    void llama_free(llama_context *ctx)

    size_t llama_max_devices()
    bint llama_supports_rpc()
    uint32_t llama_n_ctx(const llama_context *ctx)
    uint32_t llama_n_ctx_seq(const llama_context *ctx)
    uint32_t llama_n_batch(const llama_context *ctx)
    uint32_t llama_n_ubatch(const llama_context *ctx)
    uint32_t llama_n_seq_max(const llama_context *ctx)
    uint32_t llama_n_rs_seq(const llama_context *ctx)

    llama_memory_t llama_get_memory(const llama_context *ctx)
    int llama_pooling_type(const llama_context *ctx)
    const llama_vocab *llama_model_get_vocab(const llama_model *model)
    int32_t llama_model_n_ctx_train(const llama_model *model)
    int32_t llama_model_n_embd_inp(const llama_model *model)
    int32_t llama_model_n_embd_out(const llama_model *model)
    int llama_model_rope_type(const llama_model *model)
    uint32_t llama_model_n_cls_out(const llama_model *model)
    int32_t llama_model_n_layer_nextn(const llama_model *model)
    int32_t llama_model_n_swa(const llama_model *model)
    int32_t llama_vocab_n_tokens(const llama_vocab *vocab)
    int32_t llama_model_meta_val_str(const llama_model *model, const char *key, char *buf, size_t buf_size)
    int32_t llama_model_desc(const llama_model *model, char *buf, size_t buf_size)
    uint64_t llama_model_size(const llama_model *model)
    const char *llama_model_chat_template(const llama_model *model, const char *name)
    bint llama_model_has_encoder(const llama_model *model)
    bint llama_model_is_recurrent(const llama_model *model)
    bint llama_model_is_hybrid(const llama_model *model)

    void llama_memory_clear(llama_memory_t mem, bint data)
    bint llama_memory_seq_rm(llama_memory_t mem, llama_seq_id seq_id, llama_pos p0, llama_pos p1)
    void llama_memory_seq_cp(llama_memory_t mem, llama_seq_id src, llama_seq_id dst, llama_pos p0, llama_pos p1)
    llama_pos llama_memory_seq_pos_max(llama_memory_t mem, llama_seq_id seq_id)

    size_t llama_state_seq_get_size(llama_context *ctx, llama_seq_id seq_id)
    size_t llama_state_seq_set_data(llama_context *ctx, const uint8_t *src, size_t size, llama_seq_id dest_seq_id)
    # what of a state cannot be cut: with PARTIAL_ONLY a hybrid's recurrent part alone
    enum:
        LLAMA_STATE_SEQ_FLAGS_PARTIAL_ONLY
    size_t llama_state_seq_get_size_ext(llama_context *ctx, llama_seq_id seq_id, uint32_t flags)
    size_t llama_state_seq_get_data_ext(
        llama_context *ctx, uint8_t *dst, size_t size, llama_seq_id seq_id, uint32_t flags)

    llama_adapter_lora *llama_adapter_lora_init(llama_model *model, const char *path_lora)
    void llama_adapter_lora_free(llama_adapter_lora *adapter)
    int32_t llama_set_adapters_lora(
        llama_context *ctx, llama_adapter_lora **adapters, size_t n_adapters, float *scales)

    llama_batch llama_batch_init(int32_t n_tokens, int32_t embd, int32_t n_seq_max)
    void llama_batch_free(llama_batch batch)
    llama_batch llama_batch_get_one(llama_token *tokens, int32_t n_tokens)
    int32_t llama_encode(llama_context *ctx, llama_batch batch)
    int32_t llama_decode(llama_context *ctx, llama_batch batch)
    void llama_set_causal_attn(llama_context *ctx, bint causal_attn)
    void llama_set_n_threads(llama_context *ctx, int32_t n_threads, int32_t n_threads_batch)
    int32_t llama_n_threads(llama_context *ctx)
    int32_t llama_n_threads_batch(llama_context *ctx)
    void llama_synchronize(llama_context *ctx)
    float *llama_get_logits(llama_context *ctx)
    float *llama_get_logits_ith(llama_context *ctx, int32_t i)
    float *llama_get_embeddings_ith(llama_context *ctx, int32_t i)
    float *llama_get_embeddings_seq(llama_context *ctx, llama_seq_id seq_id)

    const char *llama_vocab_get_text(const llama_vocab *vocab, llama_token token)
    bint llama_vocab_is_eog(const llama_vocab *vocab, llama_token token)
    bint llama_vocab_is_control(const llama_vocab *vocab, llama_token token)
    llama_token llama_vocab_bos(const llama_vocab *vocab)
    llama_token llama_vocab_eos(const llama_vocab *vocab)
    llama_token llama_vocab_sep(const llama_vocab *vocab)
    bint llama_vocab_get_add_bos(const llama_vocab *vocab)
    bint llama_vocab_get_add_eos(const llama_vocab *vocab)
    bint llama_vocab_get_add_sep(const llama_vocab *vocab)

    int32_t llama_tokenize(const llama_vocab *vocab, const char *text, int32_t text_len, llama_token *tokens,
                           int32_t n_tokens_max, bint add_special, bint parse_special)
    int32_t llama_token_to_piece(const llama_vocab *vocab, llama_token token, char *buf, int32_t length,
                                 int32_t lstrip, bint special)
    int32_t llama_detokenize(const llama_vocab *vocab, const llama_token *tokens, int32_t n_tokens, char *text,
                             int32_t text_len_max, bint remove_special, bint unparse_special)

    void llama_log_set(ggml_log_callback log_callback, void *user_data)
