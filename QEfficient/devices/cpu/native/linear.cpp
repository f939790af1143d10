#include "linear.hpp"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <memory>
#include <vector>

#include "path.hpp"

namespace qefficient {
namespace {

// Best first.
const Path* const paths[] = {
#if defined(__x86_64__)
    &avx512_path,
    &avx2_path,
#endif
    &portable_path,
};

const Path* find(const char* name) {
    for (const Path* path : paths)
        if (path->supported() && (!std::strcmp(name, "best") || !std::strcmp(name, path->name))) return path;
    return nullptr;
}

std::atomic<const Path*>& chosen() {
    static std::atomic<const Path*> path{find("best")};
    return path;
}

template <class Function>
void run(const Parallel& parallel, std::size_t count, const Function& function) {
    if (count == 0) return;
    const auto body = [](void* context, std::size_t begin, std::size_t end) {
        (*static_cast<const Function*>(context))(begin, end);
    };
    parallel.run(count, body, const_cast<Function*>(&function));
}

std::size_t divide_up(std::size_t number, std::size_t by) { return (number + by - 1) / by; }

// The rows of a call in panels of nearly equal size, quantized a chunk of panels at a time.
class Call {
public:
    Call(const Product* products, std::size_t count, const float* x, std::size_t rows, const Parallel& parallel)
        : products_(products),
          product_count_(count),
          weights_(products->weights),
          x_(x),
          rows_(rows),
          panels_(divide_up(rows, panel_rows)),
          parallel_(parallel),
          path_(*chosen().load(std::memory_order_relaxed)) {
        for (std::size_t i = 0; i < count; ++i) tiles_ += products[i].weights.tiles();
    }

    void execute() {
        const std::size_t panel_bytes = weights_.padded_features() * panel_rows;
        const std::size_t size = std::min(panels_, std::max<std::size_t>(1, chunk_bytes / panel_bytes));
        values_.reset(new std::int8_t[size * panel_bytes]);
        scales_.reset(new float[size * weights_.groups() * panel_rows]);
        sums_.reset(new std::int32_t[size * weights_.groups() * panel_rows]);
        for (first_ = 0; first_ < panels_; first_ += size) {
            count_ = std::min(size, panels_ - first_);
            quantize();
            multiply();
        }
    }

private:
    // A chunk's activations stay in the second level of the cache while the weights go by.
    static constexpr std::size_t chunk_bytes = 512 * 1024;
    // Work that is too little to share is cheaper than waking another thread: values to quantize, products to add.
    static constexpr std::size_t least_values = 1 << 14, least_products = 1 << 18;

    std::size_t first_row(std::size_t panel) const { return panel * rows_ / panels_; }

    Panel panel(std::size_t number) const {
        const std::size_t first = first_row(number), place = first - first_row(first_), groups = weights_.groups();
        return {values_.get() + place * weights_.padded_features(), scales_.get() + place * groups,
                sums_.get() + place * groups, first_row(number + 1) - first};
    }

    std::size_t chunk_rows() const { return first_row(first_ + count_) - first_row(first_); }

    void quantize() const {
        const std::size_t groups = weights_.groups();
        const auto some = [&](std::size_t begin, std::size_t end) {
            while (begin < end) {
                const std::size_t number = first_ + begin / groups, group = begin % groups;
                const Range range = {group, std::min(groups, group + end - begin)};
                path_.quantize(weights_, x_ + first_row(number) * weights_.in_features, panel(number), range);
                begin += range.end - range.begin;
            }
        };
        const bool little = chunk_rows() * weights_.padded_features() < least_values;
        run(little ? serial : parallel_, count_ * groups, some);
    }

    // The tiles of all products are counted through. A unit of work is some tiles of some panels: tiles only, unless there are too few for all threads.
    void multiply() const {
        const std::size_t wanted = 4 * parallel_.threads;
        std::size_t step = 4;
        while (step > 1 && divide_up(tiles_, step) < wanted) step /= 2;
        const std::size_t columns = divide_up(tiles_, step);
        const std::size_t bands = std::min(count_, columns < wanted ? divide_up(wanted, columns) : 1);
        const auto some = [&](std::size_t begin, std::size_t end) {
            if (count_ == 1) {  // one long walk through the weights
                multiply({begin * step, std::min(end * step, tiles_)}, {0, 1});
                return;
            }
            for (std::size_t unit = begin; unit < end; ++unit) {
                const std::size_t tile = unit / bands * step, band = unit % bands;
                multiply({tile, std::min(tile + step, tiles_)}, {band * count_ / bands, (band + 1) * count_ / bands});
            }
        };
        const bool little = chunk_rows() * weights_.padded_features() * tiles_ * tile_width < least_products;
        run(little ? serial : parallel_, columns * bands, some);
    }

    void multiply(Range tiles, Range panels) const {
        std::size_t first = 0;
        for (std::size_t i = 0; i < product_count_ && first < tiles.end; ++i) {
            const Product& product = products_[i];
            const std::size_t end = first + product.weights.tiles();
            if (end > tiles.begin)
                multiply(product, {std::max(tiles.begin, first) - first, std::min(tiles.end, end) - first}, panels);
            first = end;
        }
    }

    void multiply(const Product& product, Range tiles, Range panels) const {
        const Weights& weights = product.weights;
        for (std::size_t number = first_ + panels.begin; number < first_ + panels.end; ++number)
            path_.multiply(weights, panel(number), tiles, product.y + first_row(number) * weights.out_features);
    }

    const Product* const products_;
    const std::size_t product_count_;
    const Weights& weights_;  // of the first; what the inputs are quantized for is the same for all
    const float* const x_;
    const std::size_t rows_, panels_;
    const Parallel& parallel_;
    const Path& path_;
    std::size_t tiles_ = 0;               // of all products
    std::size_t first_ = 0, count_ = 0;  // the panels of the chunk
    std::unique_ptr<std::int8_t[]> values_;
    std::unique_ptr<float[]> scales_;
    std::unique_ptr<std::int32_t[]> sums_;
};

}  // namespace

const Parallel serial = {
    [](std::size_t count, Parallel::Body body, void* context) { body(context, 0, count); },
    1,
};

bool known(const Weights& weights) {
    const auto is = [](std::size_t value, auto... one_of) { return ((value == std::size_t(one_of)) || ...); };
    return is(weights.bits, 4, 8) && is(weights.group, 32, 64, 128) && weights.in_features > 0 &&
           weights.out_features > 0;
}

void multiply(const Product* products, std::size_t count, const float* x, std::size_t rows, const Parallel& parallel) {
    if (rows > 0 && count > 0) Call(products, count, x, rows, parallel).execute();
}

const char* path_name() { return chosen().load()->name; }

bool choose_path(const char* name) {
    const Path* path = find(name);
    if (path) chosen().store(path);
    return path != nullptr;
}

}  // namespace qefficient
