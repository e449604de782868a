"""A loaded GGUF."""
from cpython.mem cimport PyMem_Free, PyMem_Malloc
from libc.stdint cimport int32_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy

from .devices cimport buffers_named, device_named, offloads
from .gguf cimport Gguf
from .headers.llama cimport (
    LLAMA_KV_OVERRIDE_TYPE_BOOL, LLAMA_KV_OVERRIDE_TYPE_FLOAT, LLAMA_KV_OVERRIDE_TYPE_INT, LLAMA_KV_OVERRIDE_TYPE_STR,
    LLAMA_SPLIT_MODE_NONE, c_bool, ggml_backend_dev_t, llama_max_devices, llama_model_chat_template,
    llama_model_default_params, llama_model_desc, llama_model_free, llama_model_has_encoder, llama_model_is_hybrid,
    llama_model_is_recurrent, llama_model_kv_override, llama_model_load_from_file, llama_model_meta_val_str,
    llama_model_n_cls_out, llama_model_n_ctx_train, llama_model_n_embd_out, llama_model_n_layer_nextn,
    llama_model_n_swa, llama_model_params, llama_model_size, llama_model_tensor_buft_override,
)
from .headers.pthread cimport pthread_mutex_destroy, pthread_mutex_init
from .headers.simd cimport SIMD_AVX2, simd_level
from .headers.weight_layouts cimport LAYOUTS_CRASH, LAYOUTS_TILES, weight_layouts
from .leaks cimport MODEL, born, died
from .llama_log cimport check_ptr, forget_log
from .progress cimport weights_read
from .simd cimport simd_limit


cdef class Model:
    """Owns a llama_model. The Vocab and every Context made from it hold a reference to it.

    ``on_progress(fraction)`` is called while loading, on the loading thread; an exception in it stops the load and is
    raised. The other keywords are fields of llama_model_params; None leaves llama.h's default, and
    ``use_extra_bufts`` to whether this machine computes faster with them what the file holds.

    With ``with_heads`` the layers that draft (MTP) are loaded too, where there are any.

    With ``no_alloc`` it has no weights, nor have its contexts memory: what they would take is told all the same
    (``drain_sizes``), and none of them computes.

    With no ``split_mode`` (0) and a negative ``main_gpu``, or with no ``devices`` ([]), llama.cpp uses no GPU at all.
    ``n_gpu_layers`` 0 alone keeps them for the products of large batches.

    ``devices`` are names, None for those that llama.cpp chooses; ``tensor_buft_overrides`` are pairs of a pattern and
    the name of a type of buffers: what is no pattern is a ModelLoadError.

    Raises ModelLoadError with llama.cpp's reason, ValueError for a parameter llama.cpp cannot take.
    """

    def __cinit__(self, str path, *, devices=None, tensor_buft_overrides=None, n_gpu_layers=None, split_mode=None,
                  main_gpu=None, tensor_split=None, load_mode=None, use_extra_bufts=None, dict kv_overrides=None,
                  bint vocab_only=False, bint with_heads=False, bint no_alloc=False, on_progress=None):
        cdef llama_model_params params = llama_model_default_params()
        cdef bytes raw_path = path.encode()
        cdef const char *c_path = raw_path
        cdef float *split = NULL
        cdef llama_model_kv_override *overrides = NULL
        cdef ggml_backend_dev_t *chosen = NULL
        cdef llama_model_tensor_buft_override *placed = NULL
        cdef list patterns, progress = [on_progress, None]
        if n_gpu_layers is not None:
            params.n_gpu_layers = n_gpu_layers
        if split_mode is not None:
            params.split_mode = split_mode
        if main_gpu is not None:
            params.main_gpu = main_gpu
        if load_mode is not None:
            params.load_mode = load_mode
        params.vocab_only = vocab_only
        params.no_alloc = no_alloc
        params.load_mtp = self.with_heads = with_heads
        self.on_cpu = (params.split_mode == LLAMA_SPLIT_MODE_NONE and params.main_gpu < 0) or not (
            supports_gpu_offload() if devices is None else devices
        )
        if use_extra_bufts is None:
            use_extra_bufts = vocab_only or gains_by_layouts(self.on_cpu, may_be_quantised(path))
        params.use_extra_bufts = self.use_extra_bufts = use_extra_bufts
        params.progress_callback = weights_read
        if on_progress is not None:
            params.progress_callback = report_progress
            params.progress_callback_user_data = <void *> progress
        try:
            if devices is not None:
                chosen = devices_read(devices)
                params.devices = chosen
            if tensor_buft_overrides:
                patterns = [pattern.encode() for pattern, _ in tensor_buft_overrides]
                placed = buft_overrides_read(patterns, [name for _, name in tensor_buft_overrides])
                params.tensor_buft_overrides = placed
            if tensor_split is not None:
                split = tensor_split_read(tensor_split)
                params.tensor_split = split
            if kv_overrides:
                overrides = overrides_read(kv_overrides)
                params.kv_overrides = overrides
            forget_log()
            with nogil:
                self.model = llama_model_load_from_file(c_path, params)
        finally:
            PyMem_Free(split)
            free(overrides)
            free(chosen)
            free(placed)
        if progress[1] is not None:
            raise progress[1]
        check_ptr(self.model, f"cannot load {path}")
        pthread_mutex_init(&self.adapters, NULL)
        born(MODEL)

    def __dealloc__(self):
        if self.model != NULL:
            llama_model_free(self.model)
            pthread_mutex_destroy(&self.adapters)
            died(MODEL)

    @property
    def n_ctx_train(self):
        """The context the model was trained for, in tokens."""
        # a model loaded vocab_only has read no hyper-parameters, but it has the GGUF's keys
        return (llama_model_n_ctx_train(self.model)
                or int(self.metadata(f"{self.metadata('general.architecture')}.context_length") or 0))

    @property
    def n_embd_out(self):
        """The width of an embedding."""
        return llama_model_n_embd_out(self.model)

    @property
    def n_cls_out(self):
        """The numbers a classification head gives; 1 where there is no head."""
        return llama_model_n_cls_out(self.model)

    @property
    def n_heads(self):
        """Layers that draft."""
        return llama_model_n_layer_nextn(self.model)

    @property
    def n_swa(self):
        """The sliding window in tokens, 0 where attention is full."""
        return llama_model_n_swa(self.model)

    @property
    def size(self):
        """Bytes of all tensors."""
        return llama_model_size(self.model)

    @property
    def has_encoder(self):
        return bool(llama_model_has_encoder(self.model))

    @property
    def is_recurrent(self):
        return bool(llama_model_is_recurrent(self.model))

    @property
    def is_hybrid(self):
        return bool(llama_model_is_hybrid(self.model))

    @property
    def description(self):
        """Architecture, size and quantisation in a few words."""
        cdef char text[256]
        cdef int32_t n = llama_model_desc(self.model, text, sizeof(text))
        return text[:min(n, 255)].decode("utf-8", "replace")

    def metadata(self, str key):
        """The value of a scalar GGUF key as a string, None where the key is absent or an array."""
        cdef bytes raw = key.encode()
        cdef const char *c_key = raw
        cdef int32_t n = llama_model_meta_val_str(self.model, c_key, NULL, 0)
        if n < 0:
            return None
        cdef bytearray text = bytearray(n + 1)
        llama_model_meta_val_str(self.model, c_key, text, n + 1)
        return text[:n].decode("utf-8", "replace")

    def chat_template(self, str name=None):
        """The GGUF's Jinja chat template (``name`` None: the default one), None where there is none."""
        cdef bytes raw = b"" if name is None else name.encode()
        cdef const char *c_name = raw
        cdef const char *text
        if name is None:
            text = llama_model_chat_template(self.model, NULL)
        else:
            text = llama_model_chat_template(self.model, c_name)
        return None if text == NULL else text.decode("utf-8", "replace")


def supports_gpu_offload():
    """Whether the linked llama.cpp can compute on other devices of this machine than CPUs, and it has one."""
    return offloads()


def layouts_work():
    """Whether llama.cpp can compute with its own layouts of quantised weights for this CPU."""
    return weight_layouts() != LAYOUTS_CRASH


cdef bint gains_by_layouts(bint on_cpu, bint quantised) noexcept:
    """Whether weights are to lie as ggml's code for this CPU likes them best. Products of ours read them as the file
    has them, and only a matrix unit is faster than these; where it crashes, nothing of ggml's is asked."""
    if on_cpu and simd_level(simd_limit()) >= SIMD_AVX2:
        return quantised and weight_layouts() == LAYOUTS_TILES
    return not quantised or weight_layouts() != LAYOUTS_CRASH


cdef bint may_be_quantised(str path):
    """Whether the GGUF holds a quantised tensor, or is a part of a model whose other parts may."""
    cdef Gguf head
    try:
        head = Gguf(path)
    except ValueError:
        return True
    return head.has_key("split.count") or head.is_quantised()


cdef c_bool report_progress(float fraction, void *user_data) noexcept with gil:
    """llama_progress_callback: [callable, exception or None]; False stops the load."""
    cdef list progress = <list> user_data
    weights_read(fraction, NULL)
    try:
        progress[0](fraction)
    except BaseException as error:
        progress[1] = error
        return False
    return True


cdef float *tensor_split_read(object shares) except? NULL:
    """llama.cpp reads llama_max_devices() floats; missing ones are 0."""
    cdef size_t n_devices = llama_max_devices()
    cdef list values = [float(share) for share in shares]
    cdef size_t n_values = <size_t> len(values)
    if n_values > n_devices:
        raise ValueError(f"tensor_split has {len(values)} shares, llama.cpp takes {n_devices}")
    cdef float *split = <float *> PyMem_Malloc((n_devices + 1) * sizeof(float))
    if split == NULL:
        raise MemoryError
    cdef size_t i
    for i in range(n_devices):
        split[i] = values[i] if i < n_values else 0.0
    return split


cdef ggml_backend_dev_t *devices_read(object names) except NULL:
    """An array ended by NULL. Raises ValueError for a name that is no device's."""
    cdef list wanted = list(names)
    cdef ggml_backend_dev_t *array = <ggml_backend_dev_t *> calloc(len(wanted) + 1, sizeof(ggml_backend_dev_t))
    cdef Py_ssize_t i
    if array == NULL:
        raise MemoryError
    try:
        for i in range(len(wanted)):
            array[i] = device_named(wanted[i])
    except BaseException:
        free(array)
        raise
    return array


cdef llama_model_tensor_buft_override *buft_overrides_read(list patterns, list names) except NULL:
    """An array ended by an entry without a pattern. Raises ValueError for a name that is no type's of buffers."""
    cdef llama_model_tensor_buft_override *array = <llama_model_tensor_buft_override *> calloc(
        len(patterns) + 1, sizeof(llama_model_tensor_buft_override))
    cdef Py_ssize_t i
    if array == NULL:
        raise MemoryError
    try:
        for i in range(len(patterns)):
            array[i].pattern = <const char *> patterns[i]
            array[i].buft = buffers_named(names[i])
    except BaseException:
        free(array)
        raise
    return array


cdef llama_model_kv_override *overrides_read(dict overrides) except NULL:
    """An array ended by an entry with an empty key."""
    cdef llama_model_kv_override *array = <llama_model_kv_override *> calloc(
        len(overrides) + 1, sizeof(llama_model_kv_override))
    cdef bytes key, text
    cdef Py_ssize_t i = 0
    if array == NULL:
        raise MemoryError
    try:
        for name, value in overrides.items():
            key = name.encode()
            if not 0 < len(key) < <Py_ssize_t> sizeof(array[i].key):
                raise ValueError(f"kv_overrides: the key {name!r} must have 1 to 127 bytes")
            memcpy(array[i].key, <const char *> key, len(key))
            if isinstance(value, bool):
                array[i].tag = LLAMA_KV_OVERRIDE_TYPE_BOOL
                array[i].val_bool = value
            elif isinstance(value, int):
                array[i].tag = LLAMA_KV_OVERRIDE_TYPE_INT
                array[i].val_i64 = value
            elif isinstance(value, float):
                array[i].tag = LLAMA_KV_OVERRIDE_TYPE_FLOAT
                array[i].val_f64 = value
            else:
                array[i].tag = LLAMA_KV_OVERRIDE_TYPE_STR
                text = value.encode()
                if len(text) >= <Py_ssize_t> sizeof(array[i].val_str):
                    raise ValueError(f"kv_overrides: the value of {name!r} must have at most 127 bytes")
                memcpy(array[i].val_str, <const char *> text, len(text))
            i += 1
    except BaseException:
        free(array)
        raise
    return array
