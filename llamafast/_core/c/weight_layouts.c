/*
 * GCC before 11.5, 12.4 and 13.3 drops the stores to the tile configuration that ldtilecfg reads (its bug 114098): a
 * libggml-cpu compiled by it crashes in the first product of a quantised matrix, on CPUs with AMX only. Nothing in the
 * library tells, so a child process tries it.
 */
#include "weight_layouts.h"

#include <ggml-alloc.h>
#include <ggml-backend.h>
#include <ggml.h>
#include <pthread.h>
#include <signal.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

/* Rows of weights, columns of weights, rows of a batch: more than one, for one row takes no tiles. */
enum { N_OUT = 64, N_IN = 256, N_ROWS = 2 };

static int found;

static void multiply(ggml_backend_reg_t reg, ggml_backend_dev_t cpu, ggml_backend_buffer_type_t layout)
{
    const struct ggml_init_params size = {
        .mem_size = 16 * ggml_tensor_overhead() + ggml_graph_overhead(), .no_alloc = true,
    };
    struct ggml_context *weights = ggml_init(size), *values = ggml_init(size);
    struct ggml_tensor *a = ggml_new_tensor_2d(weights, GGML_TYPE_Q8_0, N_IN, N_OUT);
    struct ggml_tensor *b = ggml_new_tensor_2d(values, GGML_TYPE_F32, N_IN, N_ROWS);
    struct ggml_tensor *product = ggml_mul_mat(values, a, b);
    struct ggml_cgraph *graph = ggml_new_graph(values);
    static char zeros[N_IN * N_OUT * sizeof(float)];
    ggml_backend_t backend = ggml_backend_dev_init(cpu, NULL);
    ggml_backend_set_n_threads_t set_n_threads =
        (ggml_backend_set_n_threads_t) ggml_backend_reg_get_proc_address(reg, "ggml_backend_set_n_threads");
    set_n_threads(backend, 1);
    ggml_backend_alloc_ctx_tensors_from_buft(weights, layout);
    ggml_backend_alloc_ctx_tensors(values, backend);
    ggml_backend_tensor_set(a, zeros, 0, ggml_nbytes(a));
    ggml_backend_tensor_set(b, zeros, 0, ggml_nbytes(b));
    ggml_build_forward_expand(graph, product);
    ggml_backend_graph_compute(backend, graph);
}

static void try_layouts(void)
{
    ggml_backend_reg_t reg = ggml_backend_reg_by_name("CPU");
    ggml_backend_dev_t cpu = reg ? ggml_backend_reg_dev_get(reg, 0) : NULL;
    void *extra_bufts = reg ? ggml_backend_reg_get_proc_address(reg, "ggml_backend_dev_get_extra_bufts") : NULL;
    ggml_backend_buffer_type_t *layout = extra_bufts ? ((ggml_backend_dev_get_extra_bufts_t) extra_bufts)(cpu) : NULL;
    found = LAYOUTS_PLAIN;
    for (; layout && *layout; layout++) {
        if (strcmp(ggml_backend_buft_name(*layout), "AMX") != 0) {
            continue;
        }
        const pid_t child = fork();
        if (child == 0) {
            signal(SIGSEGV, SIG_DFL);
            signal(SIGILL, SIG_DFL);
            multiply(reg, cpu, *layout);
            _exit(0);
        }
        int status = 0;
        found = child > 0 && waitpid(child, &status, 0) == child && status == 0 ? LAYOUTS_TILES : LAYOUTS_CRASH;
    }
}

int weight_layouts(void)
{
    static pthread_once_t tried = PTHREAD_ONCE_INIT;
    pthread_once(&tried, try_layouts);
    return found;
}
