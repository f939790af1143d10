#include "parallel.hpp"

#include <tbb/blocked_range.h>
#include <tbb/parallel_for.h>
#include <tbb/partitioner.h>
#include <tbb/task_arena.h>

namespace qefficient {
namespace {

// Each thread gets one range, so that it walks through one part of the weights.
void share(std::size_t count, Parallel::Body body, void* context) {
    tbb::parallel_for(
        tbb::blocked_range<std::size_t>(0, count),
        [=](const tbb::blocked_range<std::size_t>& range) { body(context, range.begin(), range.end()); },
        tbb::static_partitioner());
}

}  // namespace

Parallel threads_here() {
    const int threads = tbb::this_task_arena::max_concurrency();
    return threads > 1 ? Parallel{share, static_cast<std::size_t>(threads)} : serial;
}

}  // namespace qefficient
