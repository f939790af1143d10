// Threads from the arena that the caller runs in: inside OpenVINO, its own.
#pragma once

#include "linear.hpp"

namespace qefficient {

Parallel threads_here();

}  // namespace qefficient
