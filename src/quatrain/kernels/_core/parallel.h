// parallel_for: tasks on a few threads. OpenMP shares torch's own pool of threads; without it, plain std::thread.
#pragma once
#include <pthread.h>
#include <unistd.h>

#include <atomic>
#include <cstdint>
#if !defined(QT_OPENMP)
#include <thread>
#include <vector>
#endif

namespace quatrain {

// OpenMP's threads are gone in a forked child and its runtime waits for them for ever: there everything runs on one.
// The process that loads the library is the one that may use threads.
inline const pid_t loaded_by = getpid();

template <class F> void parallel_for(int64_t tasks, int64_t threads, const F& task) {
    if (threads > tasks) threads = tasks;
    if (threads <= 1 || getpid() != loaded_by) {
        for (int64_t i = 0; i < tasks; ++i) task(i);
        return;
    }
#if defined(QT_OPENMP)
#pragma omp parallel for schedule(dynamic, 1) num_threads(threads)
    for (int64_t i = 0; i < tasks; ++i) task(i);
#else
    std::atomic<int64_t> next{0};
    auto run = [&] {
        for (int64_t i; (i = next.fetch_add(1, std::memory_order_relaxed)) < tasks;) task(i);
    };
    std::vector<std::thread> pool;
    for (int64_t i = 1; i < threads; ++i) pool.emplace_back(run);
    run();
    for (auto& thread : pool) thread.join();
#endif
}

}  // namespace quatrain
