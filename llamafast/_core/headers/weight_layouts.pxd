cdef extern from "weight_layouts.h" nogil:
    int weight_layouts_work()
