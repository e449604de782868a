# A projector and what it makes of media. Only the process that encodes media imports this module.
from .headers.mtmd cimport mtmd_context, mtmd_input_chunk, mtmd_input_chunks
from .model cimport Model

cdef class Projector:
    cdef readonly Model model
    cdef mtmd_context *ctx
    cdef readonly int width     # floats of a row

cdef class Chunks:
    cdef Projector projector
    cdef mtmd_input_chunks *chunks

    cdef const mtmd_input_chunk *at(self, Py_ssize_t i) except NULL
