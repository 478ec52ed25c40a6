// Runs every kernel over aligned and odd sizes, on buffers of exactly the size they need, for the sanitizers.
// Prints "driver: all well" and returns 0 if the simulator has nothing to report and every result is a number.
#include <cstdlib>

using namespace paretune;

template <> double paretune::from_float<double>(float v) { return v; }
template <> Nothing paretune::from_float<Nothing>(float) { return {}; }
float to_float(Nothing) { return 0.f; }

template <typename T> struct Buffer {
  T* data = nullptr;
  size_t count;
  explicit Buffer(size_t count, float first = 0.3f) : count(count) {
    if (posix_memalign(reinterpret_cast<void**>(&data), 16, count * sizeof(T) + (count == 0))) std::abort();
    for (size_t i = 0; i < count; ++i) data[i] = from_float<T>(first + 0.001f * static_cast<float>(i % 97));
  }
  ~Buffer() { free(data); }
};

int not_numbers = 0;

template <typename T> void check(const Buffer<T>& buffer) {
  for (size_t i = 0; i < buffer.count; ++i) not_numbers += to_float(buffer.data[i]) != to_float(buffer.data[i]);
}

Channels channels_of(unsigned count, unsigned inner, bool interleaved, const float* mean, const float* std) {
  const unsigned divisor = interleaved ? count : inner;
  unsigned shift = 31;
  while ((1ull << (shift - 31)) < divisor) ++shift;
  const unsigned magic = static_cast<unsigned>(((1ull << shift) + divisor - 1) / divisor);
  return {mean, std, divisor, magic, shift, interleaved};
}

// `threads` is a multiple of 32 of any size: with few warps, slots of missing warps in shared memory stay unwritten.
template <typename G, typename Y, bool NORMALISE, int V>
void exercise(unsigned images, unsigned count, unsigned inner, bool interleaved, unsigned chunks, unsigned threads) {
  const unsigned size = count * inner;
  Buffer<G> gradient(images * size);
  Buffer<float> clean(images * size), adversarial(images * size, 0.31f), out(images * size), mean(count), std(count);
  Buffer<Y> input(Wanted<Y>::value ? images * size : 0);
  Buffer<double> partial(images * chunks * 3);
  Buffer<float> step_size(1), epsilon(1);
  const Channels channels = channels_of(count, inner, interleaved, mean.data, std.data);
  const Amount alpha{step_size.data, 0.f}, eps{epsilon.data, 0.f};
  const Batch cut{size, chunks}, whole{size, 1};
  const dim3 many(images * chunks), one(images), block(threads);
  cusim::launch(many, block, [&] {
    linf_step<G, Y, NORMALISE, V>(gradient.data, clean.data, adversarial.data, out.data, input.data, cut, channels, alpha, eps);
  });
  check(out);
  cusim::launch(one, block, [&] {
    l2_step<G, Y, NORMALISE, V>(gradient.data, clean.data, adversarial.data, out.data, input.data, whole, channels, alpha, eps);
  });
  check(out);
  cusim::launch(many, block, [&] {
    l2_sums<G, NORMALISE, V>(gradient.data, clean.data, adversarial.data, partial.data, cut, channels);
  });
  cusim::launch(many, block, [&] {
    l2_move<G, Y, NORMALISE, V>(gradient.data, clean.data, adversarial.data, out.data, input.data, partial.data, cut, channels, alpha,
                                eps);
  });
  check(out);
  check(input);
}

int main() {
  for (uint64_t order : {0, 5}) {
    cusim::schedule = order;
    for (unsigned inner : {1u, 5u, 12u, 85u}) {
      for (bool interleaved : {false, true}) {
        exercise<float, Nothing, false, 4>(3, 3, inner, interleaved, 2, 64);
        exercise<float, Nothing, false, 1>(2, 3, inner, interleaved, 2, 32);
        exercise<__nv_bfloat16, __nv_bfloat16, true, 4>(3, 3, inner, interleaved, 3, 96);
        exercise<__half, float, true, 1>(2, 4, inner, interleaved, 1, 64);
      }
    }
  }
  if (cusim::errors) std::fprintf(stderr, "%s", cusim::log.c_str());
  if (not_numbers) std::fprintf(stderr, "driver: %d results are not numbers\n", not_numbers);
  if (!cusim::errors && !not_numbers) std::puts("driver: all well");
  return cusim::errors || not_numbers ? 1 : 0;
}
