// One step of projected gradient descent.
//
// reference.py says what every kernel computes; this file says it for a GPU. NVRTC compiles it on the user's machine,
// and g++ compiles the same text in the tests, where a simulator runs each CUDA thread as a fiber.
//
// Images, adversarial images and their arithmetic are float32; gradients (G) and model inputs (Y) may be bfloat16 or
// float16. Sums over an image are float64: a gradient of 1e-30 has a square that float32 cannot hold. An image is one
// run of `size` numbers, channel by channel or pixel by pixel; an index inside an image has 32 bits, the offset of an
// image 64. A block works on one chunk of one image. There are no atomics,
// and the order of every sum depends on the launch alone: the same call gives the same bits.
//
// Compile with --fmad=false, so that a * b + c rounds twice, as it does in the reference.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#ifndef SHARED_ARRAY  // the simulator poisons shared memory, for which it must see each array
#define SHARED_ARRAY(T, name, count) __shared__ T name[count]
#endif

// Every kernel leaves room for two such blocks, hence up to 64 registers. Left to itself the compiler aims at more
// blocks and spills to get there.
#define MAX_THREADS 512

namespace paretune {

// How the batch is cut: block b works on chunk b % chunks of image b / chunks.
struct Batch {
  unsigned size;    // numbers in an image, below 2^31
  unsigned chunks;  // blocks that share an image
};

// A number in device memory, so that a replayed graph sees a new one, or by value where `at` is null.
struct Amount {
  const float* at;
  float value;
  __device__ __forceinline__ float get() const { return at == nullptr ? value : *at; }
};

// Where the numbers of a channel lie, and its mean and standard deviation.
//
// i / divisor is the channel of a planar image (NCHW; divisor = height * width) and the pixel of an interleaved one
// (channels last; divisor = channels). It is computed as i * magic >> shift, which is exact for i < 2^31 when
// shift = 31 + ceil(log2 divisor) and magic = ceil(2^shift / divisor): Granlund & Montgomery, "Division by invariant
// integers using multiplication" (PLDI 1994), theorem 4.2.
struct Channels {
  const float* mean;
  const float* std;
  unsigned divisor;
  unsigned magic;
  unsigned shift;
  unsigned interleaved;

  __device__ __forceinline__ unsigned quotient(unsigned i) const {
    return static_cast<unsigned>((static_cast<unsigned long long>(i) * magic) >> shift);
  }
  __device__ __forceinline__ unsigned channel(unsigned i) const {
    const unsigned q = quotient(i);
    return interleaved ? i - q * divisor : q;
  }
};

struct Nothing {};  // as Y: no model input is wanted
template <typename T> struct Wanted { static constexpr bool value = true; };
template <> struct Wanted<Nothing> { static constexpr bool value = false; };

template <int W> struct Width { static constexpr int value = W; };
template <typename T, int W> struct alignas(sizeof(T) * W) Pack { T v[W]; };

template <int W, typename T> __device__ __forceinline__ Pack<T, W> load(const T* from) {
  return *reinterpret_cast<const Pack<T, W>*>(from);
}
template <int W, typename T> __device__ __forceinline__ void store(T* to, const Pack<T, W>& pack) {
  *reinterpret_cast<Pack<T, W>*>(to) = pack;
}

__device__ __forceinline__ float to_float(float v) { return v; }
__device__ __forceinline__ float to_float(__half v) { return __half2float(v); }
__device__ __forceinline__ float to_float(__nv_bfloat16 v) { return __bfloat162float(v); }
template <typename T> __device__ __forceinline__ T from_float(float v);
template <> __device__ __forceinline__ float from_float<float>(float v) { return v; }
template <> __device__ __forceinline__ __half from_float<__half>(float v) { return __float2half_rn(v); }
template <> __device__ __forceinline__ __nv_bfloat16 from_float<__nv_bfloat16>(float v) { return __float2bfloat16_rn(v); }

// torch.sign: 0 for NaN.
__device__ __forceinline__ float sign(float v) { return static_cast<float>(v > 0.f) - static_cast<float>(v < 0.f); }
// torch.maximum and torch.minimum: NaN if either is; fmaxf and fminf would swallow it.
__device__ __forceinline__ float maximum(float v, float low) { return v >= low || v != v ? v : low; }
__device__ __forceinline__ float minimum(float v, float high) { return v <= high || v != v ? v : high; }

// Each number of this block's chunk once: act(Width<V>{}, i) for aligned groups of V, act(Width<1>{}, i) for the few
// before the first and after the last. `offset` is where the image begins in the batch, whose base is aligned to V.
template <int V, typename Act>
__device__ __forceinline__ void each(const Batch& batch, unsigned chunk, unsigned long long offset, Act act) {
  unsigned head = static_cast<unsigned>((V - offset % V) % V);
  head = head < batch.size ? head : batch.size;
  const unsigned groups = (batch.size - head) / V;
  for (unsigned p = chunk * blockDim.x + threadIdx.x; p < groups; p += batch.chunks * blockDim.x) {
    act(Width<V>{}, head + p * V);
  }
  if (V > 1 && chunk == 0) {
    const unsigned rest = batch.size - groups * V;
    for (unsigned r = threadIdx.x; r < rest; r += blockDim.x) act(Width<1>{}, r < head ? r : r + groups * V);
  }
}

template <bool NORMALISE, typename G>
__device__ __forceinline__ float image_gradient(G g, const Channels& channels, unsigned i) {
  return NORMALISE ? to_float(g) / channels.std[channels.channel(i)] : to_float(g);
}

template <bool NORMALISE, typename Y>
__device__ __forceinline__ Y model_input(float v, const Channels& channels, unsigned i) {
  if (NORMALISE) {
    const unsigned c = channels.channel(i);
    v = (v - channels.mean[c]) / channels.std[c];
  }
  return from_float<Y>(v);
}

// ---------------------------------------------------------------------------------------------------------- Linf

__device__ __forceinline__ float project_linf(float v, float x, float epsilon) {
  return minimum(maximum(v, maximum(x - epsilon, 0.f)), minimum(x + epsilon, 1.f));
}

// The gradient may be with respect to the normalised input: dividing by std > 0 changes no sign.
template <typename G, typename Y, bool NORMALISE, int V>
__global__ void __launch_bounds__(MAX_THREADS, 2)
linf_step(const G* __restrict__ gradient, const float* __restrict__ images, const float* __restrict__ images_adv,
          float* __restrict__ out, Y* __restrict__ input, Batch batch, Channels channels, Amount step_size, Amount epsilon) {
  const unsigned image = blockIdx.x / batch.chunks;
  const unsigned long long offset = static_cast<unsigned long long>(image) * batch.size;
  const float alpha = step_size.get(), eps = epsilon.get();
  gradient += offset, images += offset, images_adv += offset, out += offset;
  if constexpr (Wanted<Y>::value) input += offset;
  each<V>(batch, blockIdx.x % batch.chunks, offset, [&](auto width, unsigned i) {
    constexpr int W = decltype(width)::value;
    const Pack<G, W> g = load<W>(gradient + i);
    const Pack<float, W> x = load<W>(images + i), a = load<W>(images_adv + i);
    Pack<float, W> moved;
    Pack<Y, W> y;
#pragma unroll
    for (int k = 0; k < W; ++k) {
      moved.v[k] = project_linf(a.v[k] + alpha * sign(to_float(g.v[k])), x.v[k], eps);
      if constexpr (Wanted<Y>::value) y.v[k] = model_input<NORMALISE, Y>(moved.v[k], channels, i + k);
    }
    store<W>(out + i, moved);
    if constexpr (Wanted<Y>::value) store<W>(input + i, y);
  });
}

// ------------------------------------------------------------------------------------------------------------ L2

// With d the change so far and g the gradient of one image: |g|^2, <g, d> and |d|^2.
struct Sums {
  double gg, gd, dd;
};

__device__ __forceinline__ double warp_sum(double v) {
#pragma unroll
  for (int lanes = 16; lanes > 0; lanes >>= 1) v += __shfl_xor_sync(0xffffffffu, v, lanes);
  return v;
}

// The sums of all threads of the block, in every thread; blockDim.x is a multiple of 32. Once a kernel: shared memory
// is not guarded against a second call.
__device__ __forceinline__ Sums block_sum(Sums sums) {
  SHARED_ARRAY(double, gg, 32);
  SHARED_ARRAY(double, gd, 32);
  SHARED_ARRAY(double, dd, 32);
  sums = {warp_sum(sums.gg), warp_sum(sums.gd), warp_sum(sums.dd)};
  const unsigned lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32;
  if (lane == 0) gg[warp] = sums.gg, gd[warp] = sums.gd, dd[warp] = sums.dd;
  __syncthreads();
  const bool there = lane < warps;
  sums = {there ? gg[lane] : 0., there ? gd[lane] : 0., there ? dd[lane] : 0.};
  return {warp_sum(sums.gg), warp_sum(sums.gd), warp_sum(sums.dd)};
}

// The move is images_adv + scale * (lift * gradient), then the change shrunk by `shrink` if that is below 1. `lift` is a
// power of two that keeps `scale` within float32 for gradients near the smallest and the largest numbers.
struct Move {
  float lift, scale, shrink;
};

// |d + s g|^2 = |d|^2 + 2 s <d, g> + s^2 |g|^2 needs one pass over the image where computing d + s g first needs two.
// It cancels only where the sum is far below its terms, hence inside the ball, where the length is not used.
__device__ __forceinline__ Move l2_plan(const Sums& sums, float step_size, float epsilon) {
  const double length = sqrt(sums.gg);  // 0: nothing moves. NaN or infinite: so will every number of the image be NaN
  const double s = isfinite(length) ? static_cast<double>(step_size) / (length == 0. ? 1. : length) : length - length;
  const double size = fabs(s), limit = static_cast<double>(epsilon);
  const double lift = size > 1e30 ? 0x1p64 : size < 1e-30 ? 0x1p-64 : 1.;
  const double change = sqrt(fma(s, fma(s, sums.gg, 2. * sums.gd), sums.dd));
  return {static_cast<float>(lift), static_cast<float>(s / lift), change > limit ? static_cast<float>(limit / change) : 1.f};
}

template <typename G, bool NORMALISE, int V>
__device__ __forceinline__ Sums l2_sum(const G* gradient, const float* images, const float* images_adv, const Batch& batch,
                                       unsigned chunk, unsigned long long offset, const Channels& channels) {
  Sums sums{0., 0., 0.};
  each<V>(batch, chunk, offset, [&](auto width, unsigned i) {
    constexpr int W = decltype(width)::value;
    const Pack<G, W> g = load<W>(gradient + i);
    const Pack<float, W> x = load<W>(images + i), a = load<W>(images_adv + i);
#pragma unroll
    for (int k = 0; k < W; ++k) {
      const double step = static_cast<double>(image_gradient<NORMALISE>(g.v[k], channels, i + k));
      const double change = static_cast<double>(a.v[k] - x.v[k]);
      sums.gg = fma(step, step, sums.gg), sums.gd = fma(step, change, sums.gd), sums.dd = fma(change, change, sums.dd);
    }
  });
  return sums;
}

template <typename G, typename Y, bool NORMALISE, int V>
__device__ __forceinline__ void l2_apply(const G* gradient, const float* images, const float* images_adv, float* out, Y* input,
                                         const Batch& batch, unsigned chunk, unsigned long long offset,
                                         const Channels& channels, const Move& move) {
  each<V>(batch, chunk, offset, [&](auto width, unsigned i) {
    constexpr int W = decltype(width)::value;
    const Pack<G, W> g = load<W>(gradient + i);
    const Pack<float, W> x = load<W>(images + i), a = load<W>(images_adv + i);
    Pack<float, W> moved;
    Pack<Y, W> y;
#pragma unroll
    for (int k = 0; k < W; ++k) {
      float v = a.v[k] + move.scale * (move.lift * image_gradient<NORMALISE>(g.v[k], channels, i + k));
      if (move.shrink < 1.f) v = x.v[k] + (v - x.v[k]) * move.shrink;  // not times 1, which would round what is inside
      moved.v[k] = minimum(maximum(v, 0.f), 1.f);
      if constexpr (Wanted<Y>::value) y.v[k] = model_input<NORMALISE, Y>(moved.v[k], channels, i + k);
    }
    store<W>(out + i, moved);
    if constexpr (Wanted<Y>::value) store<W>(input + i, y);
  });
}

// One block an image (batch.chunks = 1): one launch.
template <typename G, typename Y, bool NORMALISE, int V>
__global__ void __launch_bounds__(MAX_THREADS, 2)
l2_step(const G* __restrict__ gradient, const float* __restrict__ images, const float* __restrict__ images_adv,
        float* __restrict__ out, Y* __restrict__ input, Batch batch, Channels channels, Amount step_size, Amount epsilon) {
  const unsigned image = blockIdx.x;
  const unsigned long long offset = static_cast<unsigned long long>(image) * batch.size;
  gradient += offset, images += offset, images_adv += offset, out += offset;
  if constexpr (Wanted<Y>::value) input += offset;
  const Sums sums = block_sum(l2_sum<G, NORMALISE, V>(gradient, images, images_adv, batch, 0, offset, channels));
  const Move move = l2_plan(sums, step_size.get(), epsilon.get());
  l2_apply<G, Y, NORMALISE, V>(gradient, images, images_adv, out, input, batch, 0, offset, channels, move);
}

// Several blocks an image: l2_sums writes what each block found, (batch, chunks, 3); l2_move adds it up and moves.
template <typename G, bool NORMALISE, int V>
__global__ void __launch_bounds__(MAX_THREADS, 2)
l2_sums(const G* __restrict__ gradient, const float* __restrict__ images, const float* __restrict__ images_adv,
        double* __restrict__ partial, Batch batch, Channels channels) {
  const unsigned image = blockIdx.x / batch.chunks, chunk = blockIdx.x % batch.chunks;
  const unsigned long long offset = static_cast<unsigned long long>(image) * batch.size;
  const Sums sums = block_sum(l2_sum<G, NORMALISE, V>(gradient + offset, images + offset, images_adv + offset, batch, chunk,
                                                      offset, channels));
  if (threadIdx.x == 0) {
    double* to = partial + 3ull * blockIdx.x;
    to[0] = sums.gg, to[1] = sums.gd, to[2] = sums.dd;
  }
}

template <typename G, typename Y, bool NORMALISE, int V>
__global__ void __launch_bounds__(MAX_THREADS, 2)
l2_move(const G* __restrict__ gradient, const float* __restrict__ images, const float* __restrict__ images_adv,
        float* __restrict__ out, Y* __restrict__ input, const double* __restrict__ partial, Batch batch, Channels channels,
        Amount step_size, Amount epsilon) {
  const unsigned image = blockIdx.x / batch.chunks, chunk = blockIdx.x % batch.chunks;
  const unsigned long long offset = static_cast<unsigned long long>(image) * batch.size;
  gradient += offset, images += offset, images_adv += offset, out += offset;
  if constexpr (Wanted<Y>::value) input += offset;
  Sums sums{0., 0., 0.};
  for (unsigned c = threadIdx.x; c < batch.chunks; c += blockDim.x) {
    const double* from = partial + 3ull * (static_cast<unsigned long long>(image) * batch.chunks + c);
    sums.gg += from[0], sums.gd += from[1], sums.dd += from[2];
  }
  const Move move = l2_plan(block_sum(sums), step_size.get(), epsilon.get());
  l2_apply<G, Y, NORMALISE, V>(gradient, images, images_adv, out, input, batch, chunk, offset, channels, move);
}

}  // namespace paretune
