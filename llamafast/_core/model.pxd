# A loaded GGUF: where it is computed, and how its weights may lie.
from .headers.llama cimport llama_model
from .headers.pthread cimport pthread_mutex_t

cdef class Model:
    cdef llama_model *model
    # llama.cpp's list of the model's adapters: whoever changes it, or plans graphs by it, holds this
    cdef pthread_mutex_t adapters
    cdef readonly bint on_cpu               # no device but CPUs computes anything of it
    cdef readonly bint with_heads           # what drafts the token after the next was loaded with it
    cdef readonly bint use_extra_bufts      # its weights may lie as suits the CPU's matrix units
