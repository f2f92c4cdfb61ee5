// A design of three ports (clk, stimulus, response) that is given one row of stimulus a clock; compiled by test_cells.py.

#include CORE_HEADER
#include "verilated.h"

#include <cstdint>
#include <cstring>

extern "C" void bench_run(const uint32_t* stimulus, uint32_t stimulus_words, uint32_t* response, uint32_t response_words, uint32_t clocks) {
    VerilatedContext context;
    CORE core{&context, "core"};
    for (uint32_t clock = 0; clock < clocks; ++clock) {
        core.clk = 0;
        std::memcpy(&core.stimulus, stimulus + clock * stimulus_words, 4 * stimulus_words);
        core.eval();
        core.clk = 1;
        core.eval();
        std::memcpy(response + clock * response_words, &core.response, 4 * response_words);
    }
}
