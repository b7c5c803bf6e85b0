// Threads that live for one call: nothing survives a fork, nothing is shared between callers.
#pragma once

#include <algorithm>
#include <atomic>
#include <cfenv>
#include <cstdint>
#include <exception>
#include <new>
#include <thread>
#include <vector>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace vqtok {

// Rounding to nearest and no flushing of denormals, whatever the calling thread was set to.
class DefaultFloatingPoint {
  public:
    DefaultFloatingPoint() {
        std::fegetenv(&saved_);
        std::fesetenv(FE_DFL_ENV);
    }
    ~DefaultFloatingPoint() { std::fesetenv(&saved_); }
    DefaultFloatingPoint(const DefaultFloatingPoint&) = delete;
    DefaultFloatingPoint& operator=(const DefaultFloatingPoint&) = delete;

  private:
    std::fenv_t saved_;
};

// Memory on a cache line's boundary; throws std::bad_alloc.
template <class T>
class Buffer {
  public:
    explicit Buffer(int64_t count)
        : data_(static_cast<T*>(::operator new(std::max<int64_t>(count, 1) * sizeof(T), std::align_val_t(64)))) {}
    ~Buffer() { ::operator delete(data_, std::align_val_t(64)); }
    Buffer(const Buffer&) = delete;
    Buffer& operator=(const Buffer&) = delete;
    T* get() const { return data_; }

  private:
    T* data_;
};

// Asks for large pages under memory that is about to be written for the first time: of a fresh map of features, a third
// of the time is the system's, handing out small ones.
inline void large_pages(void* memory, int64_t bytes) {
#if defined(__linux__)
    constexpr uintptr_t kPage = 4096;
    const uintptr_t begin = (reinterpret_cast<uintptr_t>(memory) + kPage - 1) / kPage * kPage;
    const uintptr_t end = (reinterpret_cast<uintptr_t>(memory) + static_cast<uintptr_t>(bytes)) / kPage * kPage;
    if (bytes >= int64_t{4} << 20) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#else
    (void)memory, (void)bytes;
#endif
}

// Of several threads' values the lowest stays.
inline void lower_to(std::atomic<int64_t>& target, int64_t value) {
    int64_t seen = target.load();
    while (value < seen && !target.compare_exchange_weak(seen, value)) {
    }
}

// Starting a thread costs about as much as this many multiply-adds, so less work than this is not shared.
constexpr int64_t kWorkPerThread = int64_t{1} << 21;

inline int useful_threads(double work, int64_t tasks, int threads) {
    const auto worth = static_cast<int64_t>(std::min(work / kWorkPerThread, 1e6));
    return static_cast<int>(std::max<int64_t>(1, std::min({worth, tasks, static_cast<int64_t>(threads)})));
}

// Runs body(task, worker) once for every task in 0..tasks-1; tasks are begun in order, worker < threads.
// `body` must not throw. Where the system gives fewer threads, fewer do the work.
template <class Body>
void parallel(int64_t tasks, int threads, const Body& body) {
    std::atomic<int64_t> next{0};
    const auto work = [&](int worker) {
        const DefaultFloatingPoint environment;
        for (int64_t task; (task = next.fetch_add(1, std::memory_order_relaxed)) < tasks;) body(task, worker);
    };
    std::vector<std::thread> others;
    others.reserve(threads - 1);
    try {
        for (int worker = 1; worker < threads; ++worker) others.emplace_back(work, worker);
    } catch (const std::exception&) {  // no more threads or no memory for one
    }
    work(0);
    for (auto& other : others) other.join();
}

}  // namespace vqtok
