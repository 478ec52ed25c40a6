// Run CUDA kernels on the CPU, one fiber a CUDA thread. For tests: g++ -include cusim.h, and the CUDA headers of pip.
//
//  * Threads are cooperative fibers, in order or shuffled (cusim::schedule); blocks run one after another.
//  * __syncthreads and warp shuffles are real meetings: a thread that is missing is reported, with the line it waits at.
//  * Shared memory is filled with NaN bits before each block, so that reading what nobody wrote shows.
//  * AddressSanitizer and ThreadSanitizer know each fiber. For the latter only barriers order memory, so a missing one
//    is found whatever the schedule.
//  * float16 and bfloat16 are NVIDIA's own, whose headers have host versions.
//
// It cannot see speed, faults of the real compilers, weak memory order, or races between blocks.
#pragma once
#include <sys/mman.h>
#include <ucontext.h>
#include <vector_functions.h>
#include <vector_types.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <functional>
#include <random>
#include <string>
#include <utility>
#include <vector>

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/common_interface_defs.h>
#endif
#ifdef __SANITIZE_THREAD__
extern "C" {
void* __tsan_create_fiber(unsigned);
void* __tsan_get_current_fiber();
void __tsan_switch_to_fiber(void*, unsigned);
void __tsan_acquire(void*);
void __tsan_release(void*);
}
#else
inline void __tsan_acquire(void*) {}
inline void __tsan_release(void*) {}
#endif

#undef __global__
#undef __device__
#undef __host__
#undef __shared__
#undef __forceinline__
#undef __launch_bounds__
#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define SHARED_ARRAY(T, name, count) \
  static T name[count];              \
  cusim::poison(name, sizeof name)

// The simulator's own state is no business of ThreadSanitizer.
#define CUSIM_QUIET __attribute__((noinline, no_sanitize_thread))

namespace cusim {

constexpr size_t STACK = 256 << 10;
constexpr int WARP = 32;
constexpr int MAX_THREADS_OF_A_BLOCK = 1024;

enum State { RUNS, AT_BLOCK_BARRIER, AT_WARP_BARRIER, DONE };

struct Fiber {
  ucontext_t context;
  void* stack = nullptr;
  uint3 thread{};
  State state = DONE;
  unsigned mask = 0;       // lanes it waits for
  const char* where = "";  // the line it waits at
  void* tsan = nullptr;
  void* asan = nullptr;
};

inline uint64_t schedule = 0;  // 0: in order; else the seed of a shuffle of threads and blocks
inline int errors = 0;
inline std::string log;

inline Fiber* current = nullptr;
inline uint3 block_index{};
inline dim3 block_size{}, grid_size{};
inline ucontext_t scheduler;
inline void* scheduler_asan = nullptr;
inline const void* scheduler_stack = nullptr;
inline size_t scheduler_stack_size = 0;
inline void* scheduler_tsan = nullptr;
inline std::function<void()> body;
inline const void* poisoned[64];
inline int poisoned_count = 0;
inline uint64_t exchanged[MAX_THREADS_OF_A_BLOCK / WARP][WARP];
inline char block_order, warp_order[MAX_THREADS_OF_A_BLOCK / WARP], grid_order;  // addresses for ThreadSanitizer

CUSIM_QUIET inline void report(const std::string& what) {
  ++errors;
  log += "block " + std::to_string(block_index.x) + ": " + what + "\n";
}

CUSIM_QUIET inline uint3 thread_index() { return current->thread; }
CUSIM_QUIET inline unsigned linear() {
  return current->thread.x + block_size.x * (current->thread.y + block_size.y * current->thread.z);
}

// The first thread of a block to declare a shared array fills it with NaN bits.
CUSIM_QUIET inline void poison(void* array, size_t bytes) {
  for (int i = 0; i < poisoned_count; ++i) {
    if (poisoned[i] == array) return;
  }
  poisoned[poisoned_count++] = array;
  for (size_t i = 0; i < bytes; ++i) static_cast<volatile unsigned char*>(array)[i] = 0xFF;
}

CUSIM_QUIET inline void to_scheduler() {
  Fiber* self = current;
#ifdef __SANITIZE_ADDRESS__
  __sanitizer_start_switch_fiber(self->state == DONE ? nullptr : &self->asan, scheduler_stack, scheduler_stack_size);
#endif
#ifdef __SANITIZE_THREAD__
  __tsan_switch_to_fiber(scheduler_tsan, 1);
#endif
  swapcontext(&self->context, &scheduler);
#ifdef __SANITIZE_ADDRESS__
  __sanitizer_finish_switch_fiber(self->asan, nullptr, nullptr);
#endif
}

CUSIM_QUIET inline void entry() {
#ifdef __SANITIZE_ADDRESS__
  __sanitizer_finish_switch_fiber(nullptr, &scheduler_stack, &scheduler_stack_size);
#endif
  __tsan_acquire(&grid_order);
  body();
  __tsan_release(&grid_order);
  current->state = DONE;
  to_scheduler();
}

CUSIM_QUIET inline void resume(Fiber& fiber) {
  current = &fiber;
#ifdef __SANITIZE_ADDRESS__
  __sanitizer_start_switch_fiber(&scheduler_asan, fiber.stack, STACK);
#endif
#ifdef __SANITIZE_THREAD__
  __tsan_switch_to_fiber(fiber.tsan, 1);  // 1: switching alone orders nothing
#endif
  swapcontext(&scheduler, &fiber.context);
#ifdef __SANITIZE_ADDRESS__
  __sanitizer_finish_switch_fiber(scheduler_asan, nullptr, nullptr);
#endif
  current = nullptr;
}

CUSIM_QUIET inline void wait(State state, unsigned mask, char* order, const char* where) {
  __tsan_release(order);
  current->where = where, current->mask = mask, current->state = state;
  to_scheduler();
  __tsan_acquire(order);
}

CUSIM_QUIET inline void block_barrier(const char* where) { wait(AT_BLOCK_BARRIER, 0, &block_order, where); }

CUSIM_QUIET inline void warp_barrier(unsigned mask, const char* where) {
  const unsigned lane = linear() % WARP;
  if (!(mask >> lane & 1)) report("lane " + std::to_string(lane) + " is not in its own mask at " + where);
  wait(AT_WARP_BARRIER, mask, &warp_order[linear() / WARP], where);
}

template <typename T> CUSIM_QUIET inline T shuffle(unsigned mask, T value, unsigned source, const char* where) {
  static_assert(sizeof(T) <= sizeof(uint64_t), "a shuffle moves up to 8 bytes");
  uint64_t* lanes = exchanged[linear() / WARP];
  std::memcpy(&lanes[linear() % WARP], &value, sizeof(T));
  warp_barrier(mask, where);
  T result;
  std::memcpy(&result, &lanes[source % WARP], sizeof(T));
  warp_barrier(mask, where);
  return result;
}

// Lets every warp go on whose lanes have all arrived; false if none has.
CUSIM_QUIET inline bool release_warps(std::vector<Fiber>& fibers, int threads) {
  bool any = false;
  for (int first = 0; first < threads; first += WARP) {
    for (int lane = 0; lane < WARP && first + lane < threads; ++lane) {
      const Fiber& fiber = fibers[first + lane];
      if (fiber.state != AT_WARP_BARRIER) continue;
      const unsigned mask = fiber.mask;
      bool complete = true;
      for (int k = 0; k < WARP && first + k < threads; ++k) {
        if (mask >> k & 1) complete &= fibers[first + k].state == AT_WARP_BARRIER && fibers[first + k].mask == mask;
      }
      if (!complete) continue;
      for (int k = 0; k < WARP && first + k < threads; ++k) {
        if (mask >> k & 1) fibers[first + k].state = RUNS;
      }
      any = true;
    }
  }
  return any;
}

// Lets the block go on if every thread waits at one and the same __syncthreads; reports what keeps it.
CUSIM_QUIET inline bool release_block(std::vector<Fiber>& fibers, int threads) {
  int waiting = 0, done = 0;
  const char* where = nullptr;
  bool same = true;
  for (int i = 0; i < threads; ++i) {
    done += fibers[i].state == DONE;
    if (fibers[i].state != AT_BLOCK_BARRIER) continue;
    ++waiting;
    same &= where == nullptr || where == fibers[i].where;
    where = fibers[i].where;
  }
  if (waiting == 0 || waiting + done < threads) {
    for (int i = 0; i < threads; ++i) {
      if (fibers[i].state == RUNS || fibers[i].state == DONE) continue;
      report("deadlock: thread " + std::to_string(i) + " waits at " + fibers[i].where);
      break;
    }
    return false;
  }
  if (done) report(std::to_string(done) + " threads never reach the __syncthreads at " + where);
  if (!same) report(std::string("threads wait at different __syncthreads, one of them ") + where);
  for (int i = 0; i < threads; ++i) {
    if (fibers[i].state == AT_BLOCK_BARRIER) fibers[i].state = RUNS;
  }
  return true;
}

CUSIM_QUIET inline void run_block(std::vector<Fiber>& fibers, int threads, std::mt19937_64& random) {
  poisoned_count = 0;
  std::memset(exchanged, 0xFF, sizeof exchanged);
  std::vector<int> order(threads);
  for (int i = 0; i < threads; ++i) {
    Fiber& fiber = fibers[i];
    order[i] = i;
    fiber.state = RUNS, fiber.asan = nullptr;
    fiber.thread = uint3{i % block_size.x, i / block_size.x % block_size.y, i / block_size.x / block_size.y};
    if (fiber.stack == nullptr) {
      fiber.stack = mmap(nullptr, STACK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    }
#ifdef __SANITIZE_THREAD__
    if (fiber.tsan == nullptr) fiber.tsan = __tsan_create_fiber(0);
#endif
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack;
    fiber.context.uc_stack.ss_size = STACK;
    fiber.context.uc_link = nullptr;
    makecontext(&fiber.context, entry, 0);
  }
  __tsan_release(&grid_order);
  for (;;) {
    if (schedule) std::shuffle(order.begin(), order.end(), random);
    for (int i : order) {
      if (fibers[i].state == RUNS) resume(fibers[i]);
    }
    if (std::all_of(fibers.begin(), fibers.begin() + threads, [](const Fiber& f) { return f.state == DONE; })) break;
    if (!release_warps(fibers, threads) && !release_block(fibers, threads)) break;
  }
  __tsan_acquire(&grid_order);
}

// kernel<<<grid, block>>>(...), where `call` calls the kernel.
template <typename Call> CUSIM_QUIET void launch(dim3 grid, dim3 block, Call call) {
  static std::vector<Fiber> fibers(MAX_THREADS_OF_A_BLOCK);
#ifdef __SANITIZE_THREAD__
  scheduler_tsan = __tsan_get_current_fiber();
#endif
  body = call, block_size = block, grid_size = grid;
  std::mt19937_64 random(schedule);
  std::vector<unsigned> order(grid.x * grid.y * grid.z);
  for (unsigned i = 0; i < order.size(); ++i) order[i] = i;
  if (schedule) std::shuffle(order.begin(), order.end(), random);
  for (unsigned b : order) {
    block_index = uint3{b % grid.x, b / grid.x % grid.y, b / grid.x / grid.y};
    run_block(fibers, block.x * block.y * block.z, random);
  }
}

// The same, of parameters as cuLaunchKernel takes them.
template <typename... A, size_t... I>
void launch_packed(void (*kernel)(A...), dim3 grid, dim3 block, void** parameters, std::index_sequence<I...>) {
  launch(grid, block, [=] { kernel(*static_cast<A*>(parameters[I])...); });
}
template <typename... A> void launch_packed(void (*kernel)(A...), dim3 grid, dim3 block, void** parameters) {
  launch_packed(kernel, grid, block, parameters, std::index_sequence_for<A...>{});
}

}  // namespace cusim

using std::fabs;
using std::fma;
using std::isfinite;
using std::sqrt;

#define threadIdx (cusim::thread_index())
#define blockIdx (cusim::block_index)
#define blockDim (cusim::block_size)
#define gridDim (cusim::grid_size)
#define CUSIM_TEXT_OF(x) #x
#define CUSIM_TEXT(x) CUSIM_TEXT_OF(x)
#define CUSIM_HERE "line " CUSIM_TEXT(__LINE__)
#define __syncthreads() cusim::block_barrier(CUSIM_HERE)
#define __shfl_xor_sync(mask, value, lanes) cusim::shuffle(mask, value, (cusim::linear() % cusim::WARP) ^ (lanes), CUSIM_HERE)
