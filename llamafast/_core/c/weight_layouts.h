/* ggml's layouts of quantised weights for this CPU, other than the file's. */
#pragma once

enum {
    LAYOUTS_CRASH,      /* one for its matrix unit, which the compiler of ggml got wrong */
    LAYOUTS_PLAIN,      /* rows lie beside each other, as vector units like it */
    LAYOUTS_TILES,      /* one for its matrix unit */
};

/* Which of these there are. Tried once a process. */
int weight_layouts(void);
