// The simulated core as a shared library: its byte streams are driven here, so that Python is called once a frame.
//
// Compiled together with what Verilator makes of the core, class name CORE (a macro), header CORE_HEADER.

#include CORE_HEADER
#include "verilated.h"
#if VM_TRACE
#include "verilated_vcd_c.h"
#endif

#include <cstdint>
#include <memory>

// Verilator writes the two underscores of Amaranth's stream ports as "___05F".
#define PORT(stream, member) stream##___05F##member

namespace {

constexpr uint8_t END = 0xC0;

struct Simulation {
    VerilatedContext context;
    std::unique_ptr<CORE> core;
#if VM_TRACE
    std::unique_ptr<VerilatedVcdC> wave;
#endif
    bool recording = true;
    uint64_t clocks = 0;
    uint64_t random = 0;       // state of the stall generator, 0: no stalls
    uint32_t stall_limit = 0;  // a stream stalls in a clock when a random 32-bit number is below this

    void dump(int phase) {
#if VM_TRACE
        if (wave && recording) wave->dump(10 * clocks + 5 * phase);
#endif
    }

    // First half of a clock: outputs settle for the inputs that have been set.
    void fall() {
        core->clk = 0;
        core->eval();
        dump(0);
    }

    // Second half: registers take their values.
    void rise() {
        core->clk = 1;
        core->eval();
        dump(1);
        ++clocks;
    }

    void tick() {
        fall();
        rise();
    }

    bool stall() {
        if (!random) return false;
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        return static_cast<uint32_t>(random >> 32) < stall_limit;
    }
};

}  // namespace

extern "C" {

// A core after reset. `wave` is the path of a VCD file, or null; a library without VM_TRACE ignores it.
Simulation* core_open(const char* wave, uint64_t seed, uint32_t stall_limit) {
    auto* simulation = new Simulation;
    simulation->random = seed;
    simulation->stall_limit = stall_limit;
#if VM_TRACE
    simulation->context.traceEverOn(true);
#endif
    simulation->core = std::make_unique<CORE>(&simulation->context, "core");
#if VM_TRACE
    if (wave) {
        simulation->wave = std::make_unique<VerilatedVcdC>();
        simulation->core->trace(simulation->wave.get(), 99);
        simulation->wave->open(wave);
    }
#endif
    CORE& core = *simulation->core;
    core.rst = 1;
    core.PORT(rx, valid) = 0;
    core.PORT(rx, payload) = 0;
    core.PORT(tx, ready) = 0;
    simulation->tick();
    simulation->tick();
    core.rst = 0;
    return simulation;
}

void core_close(Simulation* simulation) {
    simulation->core->final();
#if VM_TRACE
    if (simulation->wave) simulation->wave->close();
#endif
    delete simulation;
}

uint64_t core_clocks(const Simulation* simulation) { return simulation->clocks; }

// Switch the recording of waves off or on again; it is on at first.
void core_record(Simulation* simulation, int on) { simulation->recording = on; }

// Clock the core with its input idle and its output blocked.
void core_run(Simulation* simulation, uint64_t clocks) {
    for (uint64_t clock = 0; clock < clocks; ++clock) simulation->tick();
}

// Feed `count` bytes and collect replies in `reply` (at most `room` bytes) until all bytes are accepted and a frame with
// a body is complete, or `patience` clocks have passed without a byte in either direction. Returns the bytes collected.
uint32_t core_exchange(Simulation* simulation, const uint8_t* data, uint32_t count, uint8_t* reply, uint32_t room, uint64_t patience) {
    CORE& core = *simulation->core;
    uint32_t sent = 0, received = 0, body = 0;
    bool offered = false, inside = false, whole = false;
    for (uint64_t idle = 0; idle < patience && received < room && (sent < count || !whole); ++idle) {
        // A byte that was offered stays offered, as the rules of streams demand.
        offered = sent < count && (offered || !simulation->stall());
        core.PORT(rx, valid) = offered;
        core.PORT(rx, payload) = offered ? data[sent] : 0;
        core.PORT(tx, ready) = !simulation->stall();
        simulation->fall();
        const bool accepted = offered && core.PORT(rx, ready);
        const bool taken = core.PORT(tx, valid) && core.PORT(tx, ready);
        const uint8_t byte = core.PORT(tx, payload);
        simulation->rise();
        if (accepted) {
            ++sent;
            offered = false;
            idle = 0;
        }
        if (taken) {
            reply[received++] = byte;
            idle = 0;
            if (byte != END) {
                ++body;
            } else {
                whole |= inside && body > 0;
                inside = true;
                body = 0;
            }
        }
    }
    core.PORT(rx, valid) = 0;
    core.PORT(tx, ready) = 0;
    return received;
}
}
