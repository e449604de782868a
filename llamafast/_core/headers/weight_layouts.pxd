# What weight_layouts.h declares and documents.
cdef extern from "weight_layouts.h" nogil:
    enum:
        LAYOUTS_CRASH
        LAYOUTS_TILES
    int weight_layouts()
