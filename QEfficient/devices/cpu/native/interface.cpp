// The kernel without OpenVINO, for tests and measurements.
#include <tbb/task_arena.h>

#include "linear.hpp"
#include "parallel.hpp"

#define EXPORTED extern "C" __attribute__((visibility("default")))

// False, and nothing done, if the numbers are none that the kernels know. `zeros` may be null.
EXPORTED bool qeff_compressed_linear(const qefficient::Weights* weights, const float* x, std::size_t rows, float* y,
                                     int threads) {
    if (!qefficient::known(*weights)) return false;
    const qefficient::Product product = {*weights, y};
    if (threads <= 1) {
        qefficient::multiply(&product, 1, x, rows, qefficient::serial);
    } else {
        tbb::task_arena arena(threads);
        arena.execute([&] { qefficient::multiply(&product, 1, x, rows, qefficient::threads_here()); });
    }
    return true;
}

EXPORTED bool qeff_choose_path(const char* name) { return qefficient::choose_path(name); }

EXPORTED const char* qeff_path_name() { return qefficient::path_name(); }
