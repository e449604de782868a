# A loaded GGUF: where it is computed, and how its weights may lie.
from .headers.llama cimport llama_model

cdef class Model:
    cdef llama_model *model
    cdef readonly bint on_cpu               # no device but CPUs computes anything of it
    cdef readonly bint with_heads           # what drafts the token after the next was loaded with it
    cdef readonly bint use_extra_bufts      # its weights may lie as suits the CPU's matrix units
