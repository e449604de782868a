"""What a GGUF says of itself, without its weights."""
from libc.stdint cimport int32_t, int64_t, uint16_t, uint32_t, uint8_t
from libc.string cimport memcpy

from .headers.llama cimport (
    GGUF_TYPE_ARRAY, GGUF_TYPE_FLOAT32, GGUF_TYPE_INT32, GGUF_TYPE_STRING, GGUF_TYPE_UINT32, ggml_free,
    ggml_get_tensor, ggml_is_quantized, ggml_tensor, ggml_type_name, gguf_find_key, gguf_free, gguf_get_arr_data,
    gguf_get_arr_n, gguf_get_arr_type, gguf_get_data_offset, gguf_get_kv_type, gguf_get_n_tensors,
    gguf_get_tensor_name, gguf_get_tensor_offset, gguf_get_tensor_size, gguf_get_tensor_type, gguf_get_val_f32,
    gguf_get_val_i32, gguf_get_val_str, gguf_get_val_u32, gguf_init_from_file, gguf_init_params,
)

from collections import namedtuple

# ``shape`` has the length of a row first, ``begin`` and ``size`` are bytes of the file.
Tensor = namedtuple("Tensor", "type shape begin size")


cdef class Gguf:
    """The head of the file at ``path``. Raises ValueError for one that is no GGUF, or whose head is not whole."""

    def __cinit__(self, str path not None):
        cdef bytes raw_path = path.encode()
        cdef gguf_init_params params
        params.no_alloc = True
        params.ctx = &self.tensors_of
        self.gguf = gguf_init_from_file(raw_path, params)
        if self.gguf == NULL:
            raise ValueError(f"{path} is no GGUF")

    def __dealloc__(self):
        gguf_free(self.gguf)
        ggml_free(self.tensors_of)

    @property
    def begin(self):
        """Where the tensors' data begin."""
        return gguf_get_data_offset(self.gguf)

    def has_key(self, str key):
        cdef bytes raw = key.encode()
        return gguf_find_key(self.gguf, raw) >= 0

    def text(self, str key):
        """The value of a key that is a string, None where it is none."""
        cdef bytes raw = key.encode()
        cdef int64_t i = gguf_find_key(self.gguf, raw)
        if i < 0 or gguf_get_kv_type(self.gguf, i) != GGUF_TYPE_STRING:
            return None
        return gguf_get_val_str(self.gguf, i).decode("utf-8", "replace")

    def number(self, str key):
        """The value of a key that is a float of 32 bits, None where it is none."""
        cdef bytes raw = key.encode()
        cdef int64_t i = gguf_find_key(self.gguf, raw)
        if i < 0 or gguf_get_kv_type(self.gguf, i) != GGUF_TYPE_FLOAT32:
            return None
        return gguf_get_val_f32(self.gguf, i)

    def integers(self, str key):
        """The values of a key that is an integer of 32 bits or a list of such, None where it is neither."""
        cdef bytes raw = key.encode()
        cdef int64_t i = gguf_find_key(self.gguf, raw)
        cdef int kind = -1 if i < 0 else gguf_get_kv_type(self.gguf, i)
        cdef const void *data
        cdef list found = []
        cdef size_t k
        if kind == GGUF_TYPE_UINT32:
            return [gguf_get_val_u32(self.gguf, i)]
        if kind == GGUF_TYPE_INT32:
            return [gguf_get_val_i32(self.gguf, i)]
        if kind == GGUF_TYPE_ARRAY:
            kind = gguf_get_arr_type(self.gguf, i)
            if kind in (GGUF_TYPE_UINT32, GGUF_TYPE_INT32):
                data = gguf_get_arr_data(self.gguf, i)
                for k in range(gguf_get_arr_n(self.gguf, i)):
                    found.append((<const int32_t *>data)[k] if kind == GGUF_TYPE_INT32 else (<const uint32_t *>data)[k])
                return found
        return None

    def tensors(self):
        """All of them by name, in the file's order."""
        cdef dict found = {}
        cdef int64_t i
        cdef const char *name
        cdef ggml_tensor *tensor
        for i in range(gguf_get_n_tensors(self.gguf)):
            name = gguf_get_tensor_name(self.gguf, i)
            tensor = ggml_get_tensor(self.tensors_of, name)
            found[name.decode("utf-8", "replace")] = Tensor(
                ggml_type_name(gguf_get_tensor_type(self.gguf, i)).decode(),
                (tensor.ne[0], tensor.ne[1], tensor.ne[2], tensor.ne[3]),
                gguf_get_data_offset(self.gguf) + gguf_get_tensor_offset(self.gguf, i),
                gguf_get_tensor_size(self.gguf, i),
            )
        return found

    def is_quantised(self):
        """Whether one of its tensors is."""
        cdef int64_t i
        for i in range(gguf_get_n_tensors(self.gguf)):
            if ggml_is_quantized(gguf_get_tensor_type(self.gguf, i)):
                return True
        return False


# Whose bits are all set in what is infinite or no number, by type.
cdef dict EXPONENTS = {"f32": 0x7F800000, "f16": 0x7C00, "bf16": 0x7F80}


def all_finite(str type not None, const uint8_t[::1] data not None):
    """Whether numbers of a type (f32, f16 or bf16) are all finite. Raises KeyError for another type."""
    cdef uint32_t exponent = EXPONENTS[type], whole
    cdef uint16_t half
    cdef Py_ssize_t i, size = 4 if type == "f32" else 2
    for i in range(0, data.shape[0] - size + 1, size):
        if size == 4:
            memcpy(&whole, &data[i], 4)
        else:
            memcpy(&half, &data[i], 2)
            whole = half
        if whole & exponent == exponent:
            return False
    return True
