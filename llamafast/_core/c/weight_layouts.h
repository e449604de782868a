#pragma once

/* Whether ggml's layouts of weights for this CPU's matrix units can be computed with. Tried once a process. */
int weight_layouts_work(void);
