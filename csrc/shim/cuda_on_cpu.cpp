// The scheduler of fibers, the meeting places of threads and the arithmetic of a tensor core.
#include "cuda_on_cpu.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <limits>
#include <memory>
#include <mutex>
#include <numeric>
#include <vector>

// VQTOK_SHIM_UCONTEXT takes the system's slower fibers where there are faster ones too.
#if defined(__x86_64__) && !defined(VQTOK_SHIM_UCONTEXT)
#define VQTOK_SHIM_SWITCH 1
#else
#define VQTOK_SHIM_SWITCH 0
#include <ucontext.h>
#endif
#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
constexpr size_t kStackBytes = 256 * 1024;
#else
constexpr size_t kStackBytes = 64 * 1024;
#endif

namespace vqtok_shim {

dim3 grid_dim, block_dim, block_idx, thread_idx;

namespace {

constexpr int kLaunchFailure = 719;

// ---- a small generator: the same schedule for the same seed, everywhere (splitmix64, Steele et al. 2014)
uint64_t seed = 1, random_state = 1;
int arithmetic = 0;

uint64_t random_bits() {
    uint64_t z = random_state += 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

void shuffle_order(std::vector<int>& order) {
    for (size_t i = order.size(); i > 1; --i) std::swap(order[i - 1], order[random_bits() % i]);
}

// ---- fibers
#if VQTOK_SHIM_SWITCH
extern "C" void vqtok_shim_switch(void** save, void* load);
asm(R"(
.text
.globl vqtok_shim_switch
.hidden vqtok_shim_switch
.type vqtok_shim_switch, @function
vqtok_shim_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
.size vqtok_shim_switch, .-vqtok_shim_switch
.section .note.GNU-stack,"",@progbits
.text
)");
using Context = void*;
#else
using Context = ucontext_t;
#endif

// A place where threads meet: whoever waits goes on when the generation has changed.
struct Meeting {
    int arrived = 0;
    unsigned generation = 0;
    int line = 0;
};

struct Copy {
    void* to;
    const void* from;
    int group;
};

struct Fiber {
    Context context{};
    std::unique_ptr<char[]> stack{new char[kStackBytes]};
    void* fake_stack = nullptr;
    dim3 index;
    Meeting* waiting = nullptr;
    unsigned seen = 0;
    bool alive = false;
    std::vector<Copy> copies;
    int groups = 0;
};

struct Warp {
    Meeting meeting;
    unsigned char lanes[2][32 * kLaneBytes];
    float products[2][32][4];
    size_t bytes = 0;
};

std::vector<std::unique_ptr<Fiber>> fibers;
std::vector<Warp> warps;
std::vector<int> order;
Meeting block_meeting;
Fiber* current = nullptr;
Context scheduler;
#if defined(__SANITIZE_ADDRESS__)
void* scheduler_fake_stack = nullptr;
const void* scheduler_stack = nullptr;
size_t scheduler_stack_bytes = 0;
#endif
int alive = 0;
bool failed = false;
void (*body)(const void*) = nullptr;
const void* body_context = nullptr;
char* shared = nullptr;
std::mutex one_launch;

void enter_scheduler() {
    Fiber* self = current;
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_start_switch_fiber(self->alive ? &self->fake_stack : nullptr, scheduler_stack, scheduler_stack_bytes);
#endif
#if VQTOK_SHIM_SWITCH
    vqtok_shim_switch(&self->context, scheduler);
#else
    swapcontext(&self->context, &scheduler);
#endif
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(self->fake_stack, nullptr, nullptr);
#endif
}

void enter(Fiber& fiber) {
    current = &fiber;
    thread_idx = fiber.index;
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_start_switch_fiber(&scheduler_fake_stack, fiber.stack.get(), kStackBytes);
#endif
#if VQTOK_SHIM_SWITCH
    vqtok_shim_switch(&scheduler, fiber.context);
#else
    swapcontext(&scheduler, &fiber.context);
#endif
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(scheduler_fake_stack, nullptr, nullptr);
#endif
}

void release_if_complete(Meeting& meeting, int expected) {
    if (meeting.arrived < expected || meeting.arrived == 0) return;
    meeting.arrived = 0;
    ++meeting.generation;
}

void fiber_main() {
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(nullptr, &scheduler_stack, &scheduler_stack_bytes);
#endif
    body(body_context);
    current->alive = false;
    --alive;
    release_if_complete(block_meeting, alive);  // threads that have ended are not waited for
    enter_scheduler();
    std::abort();  // nobody enters a fiber that has ended
}

void start(Fiber& fiber, int number) {
    fiber.index = dim3(number % block_dim.x, number / block_dim.x % block_dim.y, number / (block_dim.x * block_dim.y));
    fiber.waiting = nullptr;
    fiber.alive = true;
    fiber.copies.clear();
    fiber.groups = 0;
    fiber.fake_stack = nullptr;
#if defined(__SANITIZE_ADDRESS__)
    __asan_unpoison_memory_region(fiber.stack.get(), kStackBytes);
#endif
#if VQTOK_SHIM_SWITCH
    auto top = reinterpret_cast<uintptr_t>(fiber.stack.get() + kStackBytes) & ~uintptr_t{15};
    auto** slots = reinterpret_cast<void**>(top) - 2;  // a function begins with its stack 8 below a multiple of 16
    slots[0] = reinterpret_cast<void*>(&fiber_main);
    fiber.context = slots - 6;
    std::fill_n(slots - 6, 6, nullptr);
#else
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack.get();
    fiber.context.uc_stack.ss_size = kStackBytes;
    fiber.context.uc_link = nullptr;
    makecontext(&fiber.context, fiber_main, 0);
#endif
}

void fail(const char* format, int a, int b) {
    if (!failed) {
        std::fprintf(stderr, "cuda_on_cpu: block (%u, %u), thread %u: ", block_idx.x, block_idx.y, thread_idx.x);
        std::fprintf(stderr, format, a, b);
        std::fputc('\n', stderr);
    }
    failed = true;
}

// Waits until `expected` threads have come; the last one does `complete` and goes on at once.
template <class Complete>
void meet(Meeting& meeting, int expected, int line, const Complete& complete) {
    if (meeting.arrived == 0) meeting.line = line;
    if (meeting.line != line) fail("threads wait for each other at different lines: %d and %d", meeting.line, line);
    ++meeting.arrived;
    if (meeting.arrived >= expected) {
        complete();
        release_if_complete(meeting, expected);
        return;
    }
    current->waiting = &meeting;
    current->seen = meeting.generation;
    enter_scheduler();
    current->waiting = nullptr;
}

Warp& warp() { return warps[thread_idx.x / 32]; }

bool ready(const Fiber& fiber) {
    return fiber.alive && (fiber.waiting == nullptr || fiber.waiting->generation != fiber.seen);
}

void run_block() {
    const int threads = static_cast<int>(block_dim.x * block_dim.y * block_dim.z);
    while (static_cast<int>(fibers.size()) < threads) fibers.push_back(std::make_unique<Fiber>());
    warps.assign((threads + 31) / 32, Warp{});
    block_meeting = Meeting{};
    order.resize(threads);
    std::iota(order.begin(), order.end(), 0);
    shuffle_order(order);
    for (int i = 0; i < threads; ++i) start(*fibers[i], i);
    alive = threads;
    while (alive > 0 && !failed) {
        bool moved = false;
        const size_t first = random_bits() % order.size();
        for (size_t i = 0; i < order.size() && !failed; ++i) {
            Fiber& fiber = *fibers[order[(first + i) % order.size()]];
            if (!ready(fiber)) continue;
            enter(fiber);
            moved = true;
        }
        if (!moved) fail("%d threads of %d wait for threads that never come", alive, threads);
    }
}

}  // namespace

void run(dim3 grid, dim3 block, size_t shared_bytes, void (*body_of_thread)(const void*), const void* context) {
    const std::lock_guard<std::mutex> guard(one_launch);
    if (failed) return;
    grid_dim = grid;
    block_dim = block;
    body = body_of_thread;
    body_context = context;
    random_state = seed;
    // Exactly as long as asked for, so that the address sanitizer sees the end.
    void* memory = nullptr;
    if (posix_memalign(&memory, 128, std::max<size_t>(shared_bytes, 1)) != 0) std::abort();
    shared = static_cast<char*>(memory);
    const uint64_t blocks = uint64_t{grid.x} * grid.y * grid.z, shift = blocks > 0 ? random_bits() % blocks : 0;
    const bool backwards = random_bits() & 1;
    for (uint64_t i = 0; i < blocks && !failed; ++i) {
        const uint64_t at = ((backwards ? blocks - 1 - i : i) + shift) % blocks;
        block_idx = dim3(at % grid.x, at / grid.x % grid.y, at / (uint64_t{grid.x} * grid.y));
        std::memset(shared, 0xff, shared_bytes);
        run_block();
    }
    std::free(memory);
}

cudaError_t take_error() {
    const bool had = failed;
    failed = false;
    return had ? kLaunchFailure : cudaSuccess;
}

char* shared_memory() { return shared; }

void fence(const void* piece, int64_t bytes, int64_t gap) {
#if defined(__SANITIZE_ADDRESS__)
    __asan_unpoison_memory_region(piece, static_cast<size_t>(bytes));
    __asan_poison_memory_region(static_cast<const char*>(piece) + bytes, static_cast<size_t>(gap));
#else
    static_cast<void>(piece);
    static_cast<void>(bytes + gap);
#endif
}

int lane() { return static_cast<int>(thread_idx.x % 32); }

void sync_threads(int line) {
    meet(block_meeting, alive, line, [] {});
}

const char* exchange(const void* mine, size_t bytes, int line) {
    Warp& w = warp();
    const unsigned side = w.meeting.generation & 1;
    std::memcpy(w.lanes[side] + lane() * kLaneBytes, mine, bytes);
    meet(w.meeting, 32, line, [] {});
    return reinterpret_cast<const char*>(w.lanes[side]);
}

unsigned ballot(bool mine, int line) {
    const char* all = exchange(&mine, sizeof(mine), line);
    unsigned bits = 0;
    for (int i = 0; i < 32; ++i) bits |= static_cast<unsigned>(all[i * kLaneBytes] != 0) << i;
    return bits;
}

void copy_async(void* to, const void* from) {
    if ((reinterpret_cast<uintptr_t>(to) | reinterpret_cast<uintptr_t>(from)) % 16 != 0)
        fail("an asynchronous copy is not aligned to %d bytes (%d)", 16, 0);
    current->copies.push_back({to, from, current->groups});
}

void end_copies() { ++current->groups; }

void await_copies(int pending) {
    auto& copies = current->copies;
    const int last = current->groups - pending;
    for (const Copy& copy : copies)
        if (copy.group < last) std::memcpy(copy.to, copy.from, 16);
    copies.erase(std::remove_if(copies.begin(), copies.end(), [=](const Copy& c) { return c.group < last; }),
                 copies.end());
}

uint16_t to_half(float x) {
    const _Float16 half = static_cast<_Float16>(x);
    uint16_t bits;
    std::memcpy(&bits, &half, 2);
    return bits;
}

float from_half(uint16_t bits) {
    static const std::vector<float> table = [] {  // the compiler's conversion is a call on most processors
        std::vector<float> values(1 << 16);
        for (uint32_t i = 0; i < values.size(); ++i) {
            const auto half = static_cast<uint16_t>(i);
            _Float16 x;
            std::memcpy(&x, &half, 2);
            values[i] = static_cast<float>(x);
        }
        return values;
    }();
    return table[bits];
}

namespace {

struct Operands {
    uint4 a;
    uint32_t b[2];
    float c[4];
};
static_assert(sizeof(Operands) <= kLaneBytes);

struct Tile {
    float a[16][16], b[16][8], c[16][8];  // b[d][column]
};

Tile gather(const unsigned char* lanes) {
    Tile tile;
    for (int i = 0; i < 32; ++i) {
        Operands in;
        std::memcpy(&in, lanes + i * kLaneBytes, sizeof(in));
        const int g = i / 4, t = i % 4;
        const uint32_t a[4] = {in.a.x, in.a.y, in.a.z, in.a.w};
        for (int half = 0; half < 2; ++half) {
            for (int j = 0; j < 4; ++j)
                tile.a[g + j % 2 * 8][2 * t + half + j / 2 * 8] = from_half(static_cast<uint16_t>(a[j] >> (16 * half)));
            for (int j = 0; j < 2; ++j)
                tile.b[2 * t + half + 8 * j][g] = from_half(static_cast<uint16_t>(in.b[j] >> (16 * half)));
            for (int j = 0; j < 2; ++j) tile.c[g + 8 * j][2 * t + half] = in.c[2 * j + half];
        }
    }
    return tile;
}

// Cut towards zero to a multiple of 2^(exponent - 23).
double cut(double x, int exponent) {
    const double unit = std::ldexp(1.0, exponent - 23);
    return std::trunc(x / unit) * unit;
}

double cut_sum(const Tile& tile, int row, int column) {
    double sum = tile.c[row][column];
    if (!std::isfinite(sum)) return sum;
    for (int first = 0; first < 16; first += 4) {
        double terms[5] = {sum};
        for (int d = 0; d < 4; ++d) terms[d + 1] = double{tile.a[row][first + d]} * tile.b[first + d][column];
        double largest = 0, total = 0;
        for (const double x : terms) largest = std::max(largest, std::fabs(x));
        if (largest == 0 || !std::isfinite(largest)) continue;
        const int exponent = std::ilogb(largest);
        for (const double x : terms) total += cut(x, exponent);
        sum = total == 0 ? 0 : cut(total, std::ilogb(total));
    }
    return sum;
}

// As far off as csrc/cuda/certificate.cuh allows for 16 products: 2^-18 of the magnitudes, less the rounding to float32.
double wrong_sum(const Tile& tile, int row, int column) {
    double magnitude = std::fabs(tile.c[row][column]), sum = tile.c[row][column];
    for (int d = 0; d < 16; ++d) {
        const double product = double{tile.a[row][d]} * tile.b[d][column];
        magnitude += std::fabs(product);
        sum += product;
    }
    const double error = magnitude * (std::ldexp(1.0, -18) - std::ldexp(1.0, -23));
    return std::isfinite(error) ? sum + (random_bits() & 1 ? error : -error) : sum;
}

void multiply(const Tile& tile, float (&out)[16][8]) {
    for (int i = 0; i < 16; ++i) {
        double sums[8];
        for (int j = 0; j < 8; ++j) sums[j] = tile.c[i][j];
        if (arithmetic == 0)
            for (int d = 0; d < 16; ++d)
                for (int j = 0; j < 8; ++j) sums[j] += double{tile.a[i][d]} * tile.b[d][j];
        for (int j = 0; j < 8; ++j) {
            if (arithmetic == 1) sums[j] = cut_sum(tile, i, j);
            if (arithmetic == 2) sums[j] = wrong_sum(tile, i, j);
            out[i][j] = static_cast<float>(sums[j]);
        }
    }
}

}  // namespace

void multiply_tiles(float (&d)[4], const uint4& a, uint32_t b0, uint32_t b1, const float (&c)[4]) {
    Warp& w = warp();
    const unsigned side = w.meeting.generation & 1;
    const int mine = lane();
    const Operands operands{a, {b0, b1}, {c[0], c[1], c[2], c[3]}};
    std::memcpy(w.lanes[side] + mine * kLaneBytes, &operands, sizeof(operands));
    meet(w.meeting, 32, -1, [&] {
        float out[16][8];
        multiply(gather(w.lanes[side]), out);
        for (int i = 0; i < 32; ++i)
            for (int j = 0; j < 4; ++j) w.products[side][i][j] = out[i / 4 + j / 2 * 8][i % 4 * 2 + j % 2];
    });
    std::memcpy(d, w.products[side][mine], sizeof(d));
}

}  // namespace vqtok_shim

void vqtok_shim_configure(uint64_t seed, int32_t arithmetic) {
    vqtok_shim::seed = seed;
    vqtok_shim::arithmetic = arithmetic;
}
