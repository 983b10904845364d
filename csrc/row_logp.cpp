// Log-prob of one token, entropy and log-sum-exp of each row of a logits matrix, in one pass; and the
// gradient with respect to the logits, written over them in a second pass: on a CPU. float32 or
// bfloat16 logits, float32 arithmetic. row_math.h has the formulas; unlike row_logp.cu, this file calls
// it with z = x * scale as x and a scale of 1 (row_math.h, head comment). g and h are the upstream
// gradients of logp and entropy.
//
// A row is read once from memory, block by block: the maximum of a block is taken while it is loaded
// into the cache, the block is then summed from there, and merged into the row in float64.

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <tuple>
#include <type_traits>

#include "row_avx512.h"
#include "row_check.h"
#include "row_math.h"
#include "simd.h"

namespace {

using ovlt::RowGrad, ovlt::RowStats, ovlt::RowSums;
using torch::stable::Tensor;

constexpr int64_t kBlock = 4096;  // floats: 16 KiB, half of a first-level cache
constexpr int64_t kElementsPerTask = 1 << 15;  // with fewer a second thread costs more than it saves

// exp(x) for x <= 0, to 2 ulp, in plain arithmetic so that the compiler vectorises the loop around it.
// exp(x) = 2^n exp(r), n = round(x / ln 2), |r| <= ln(2)/2; the series of exp(r) to r^7 errs by 5e-9.
// Inputs below -87 give 0: 2^n would no longer be a normal float, and the exact value is below 2e-38.
// NaN gives NaN.
inline __attribute__((always_inline)) float exp_nonpositive(float x) {
  constexpr float kLog2E = 1.44269504088896341f;
  constexpr float kLn2High = 0.693145751953125f;  // 16 significant bits: n * kLn2High is exact
  constexpr float kLn2Low = 1.42860682030941723e-6f;
  constexpr float kShift = 12582912.0f;  // 1.5 * 2^23: adding it leaves the rounded n in the low bits
  constexpr float kSmallest = -87.0f;
  const float clamped = x < kSmallest ? kSmallest : x;  // this way round, NaN stays NaN
  const float shifted = clamped * kLog2E + kShift;
  const float n = shifted - kShift;
  const float r = (clamped - n * kLn2High) - n * kLn2Low;
  float p = 1.0f / 5040;
  p = p * r + 1.0f / 720;
  p = p * r + 1.0f / 120;
  p = p * r + 1.0f / 24;
  p = p * r + 1.0f / 6;
  p = p * r + 0.5f;
  p = p * r + 1.0f;
  p = p * r + 1.0f;
  const uint32_t bits = std::bit_cast<uint32_t>(shifted) << 23;  // n, in the place of the exponent
  const float power = std::bit_cast<float>(bits + 0x3f800000u);
  return x < kSmallest ? 0.0f : p * power;
}

// Read a logit from memory as float32; write one, rounded to nearest with ties to even.
inline float load(float x) { return x; }
inline float load(uint16_t x) { return std::bit_cast<float>(static_cast<uint32_t>(x) << 16); }
inline void store(float* to, float x) { *to = x; }
inline void store(uint16_t* to, float x) {
  const uint32_t bits = std::bit_cast<uint32_t>(x);
  const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  *to = static_cast<uint16_t>(x == x ? rounded : 0x7fc0u);  // rounding could turn a NaN into inf
}

// The plain loops, for machines without AVX-512. The maximum skips a NaN; the sums become NaN.
template <typename T>
inline __attribute__((always_inline)) float block_max(const T* x, int64_t n, float m) {
#pragma omp simd reduction(max : m)
  for (int64_t i = 0; i < n; ++i) {
    const float z = load(x[i]);
    m = z > m ? z : m;
  }
  return m;
}

template <typename T>
inline __attribute__((always_inline)) void block_sums(
    const T* x, int64_t n, float scale, float m, double& total, double& weighted) {
  float sum = 0.0f, dot = 0.0f;  // over one block only, so their rounding stays small
#pragma omp simd reduction(+ : sum, dot)
  for (int64_t i = 0; i < n; ++i) {
    const float d = load(x[i]) * scale - m;
    const float e = exp_nonpositive(d);
    sum += e;
    dot += e == 0.0f ? 0.0f : e * d;  // a masked token has d = -inf
  }
  total += sum;
  weighted += dot;
}

template <typename T>
inline __attribute__((always_inline)) void gradient(
    T* logits, int64_t vocab, float scale, float base, float shift, float entropy, float g, float h) {
#pragma omp simd
  for (int64_t i = 0; i < vocab; ++i) {
    const float log_p = (load(logits[i]) * scale - base) + shift;
    const float p = exp_nonpositive(log_p < 0.0f ? log_p : log_p == log_p ? 0.0f : log_p);
    const float slope = g + h * (log_p + entropy);
    // A masked token has log_p = -inf, and no gradient.
    store(logits + i, p == 0.0f ? 0.0f : -slope * p * scale);
  }
}

// The same loops compiled again for machines with wider registers.
#define OVLT_LOOPS(name, target)                                                                  \
  namespace name {                                                                                \
  template <typename T>                                                                           \
  target float max(const T* x, int64_t n, float m) {                                              \
    return block_max(x, n, m);                                                                    \
  }                                                                                               \
  template <typename T>                                                                           \
  target void sums(const T* x, int64_t n, float scale, float m, double& sum, double& dot) {       \
    block_sums(x, n, scale, m, sum, dot);                                                         \
  }                                                                                               \
  template <typename T>                                                                           \
  target void grad(                                                                               \
      T* x, int64_t n, float scale, float base, float shift, float entropy, float g, float h) {   \
    gradient(x, n, scale, base, shift, entropy, g, h);                                            \
  }                                                                                               \
  }

OVLT_LOOPS(plain, )
#ifdef OVLT_AVX512
OVLT_LOOPS(avx2, __attribute__((target("avx2,fma"))))
#endif

template <typename T>
struct Loops {
  float (*max)(const T*, int64_t, float);
  void (*sums)(const T*, int64_t, float, float, double&, double&);
  void (*grad)(T*, int64_t, float, float, float, float, float, float);
};

// The best loops that this machine can run (simd.h).
template <typename T>
Loops<T> choose() {
#ifdef OVLT_AVX512
  const ovlt::Simd at_most = ovlt::simd_at_most();
  if (at_most == ovlt::Simd::avx512 && __builtin_cpu_supports("avx512f") &&
      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512vl"))
    return {avx512::block_max<T>, avx512::block_sums<T>, avx512::gradient<T>};
  if (at_most != ovlt::Simd::plain && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
    return {avx2::max<T>, avx2::sums<T>, avx2::grad<T>};
#endif
  return {plain::max<T>, plain::sums<T>, plain::grad<T>};
}

template <typename T>
const Loops<T>& loops() {
  static const Loops<T> chosen = choose<T>();
  return chosen;
}

template <typename T>
RowSums<double> row_sums(const Loops<T>& use, const T* logits, int64_t vocab, float scale) {
  RowSums<double> row{ovlt::kNoToken, 0.0, 0.0};
  for (int64_t begin = 0; begin < vocab; begin += kBlock) {
    const T* x = logits + begin;
    const int64_t n = std::min(kBlock, vocab - begin);
    RowSums<double> block{use.max(x, n, ovlt::kNoToken) * scale, 0.0, 0.0};
    use.sums(x, n, scale, ovlt::origin(block.max), block.sum, block.dot);
    row = ovlt::merge(row, block, [](double d) { return std::exp(d); });
  }
  return row;
}

using torch::headeronly::ScalarType;

// Checks the arguments; returns whether the logits are bfloat16.
bool check(const Tensor& logits, const Tensor& target, const Tensor& inv_temperature) {
  ovlt::check_rows(logits, target, inv_temperature);
  const ScalarType dtype = logits.scalar_type();
  STD_TORCH_CHECK(
      dtype == ScalarType::Float || dtype == ScalarType::BFloat16,
      "logits must be a contiguous float32 or bfloat16 matrix [R, V] on a CPU");
  const int64_t* ids = target.const_data_ptr<int64_t>();
  const int64_t vocab = logits.size(1);
  for (int64_t r = 0; r < logits.size(0); ++r)
    STD_TORCH_CHECK(ids[r] >= 0 && ids[r] < vocab, "target ", ids[r], " is outside [0, ", vocab, ")");
  return dtype == ScalarType::BFloat16;
}

int64_t grain_of(int64_t vocab) { return std::max<int64_t>(1, kElementsPerTask / vocab); }

std::tuple<Tensor, Tensor, Tensor> row_logp(
    const Tensor& logits, const Tensor& target, const Tensor& inv_temperature) {
  const bool half = check(logits, target, inv_temperature);
  const int64_t rows = logits.size(0), vocab = logits.size(1);
  const int64_t* ids = target.const_data_ptr<int64_t>();
  const void* data = logits.data_ptr();

  Tensor logp = torch::stable::new_empty(logits, {rows}, ScalarType::Float);
  Tensor entropy = torch::stable::new_empty(logits, {rows}, ScalarType::Float);
  Tensor lse = torch::stable::new_empty(logits, {rows}, ScalarType::Float);
  float* logp_out = logp.mutable_data_ptr<float>();
  float* entropy_out = entropy.mutable_data_ptr<float>();
  float* lse_out = lse.mutable_data_ptr<float>();
  const float* scales = inv_temperature.const_data_ptr<float>();
  const auto pass = [&](const auto* x) {
    const auto& use = loops<std::remove_cv_t<std::remove_pointer_t<decltype(x)>>>();
    torch::stable::parallel_for(0, rows, grain_of(vocab), [&](int64_t begin, int64_t end) {
      for (int64_t r = begin; r < end; ++r) {
        const float scale = scales[r];
        const RowSums<double> row = row_sums(use, x + r * vocab, vocab, scale);
        const RowStats stats = ovlt::row_stats(row, load(x[r * vocab + ids[r]]) * scale, 1.0);
        logp_out[r] = stats.logp;
        entropy_out[r] = stats.entropy;
        lse_out[r] = stats.lse;
      }
    });
  };
  if (half)
    pass(static_cast<const uint16_t*>(data));
  else
    pass(static_cast<const float*>(data));
  return {logp, entropy, lse};
}

// stats is float32 [3, R]: logp, entropy, lse. upstream is float32 [2, R]: g, h.
void row_logp_grad_(
    Tensor logits, const Tensor& target, const Tensor& stats, const Tensor& upstream,
    const Tensor& inv_temperature) {
  const bool half = check(logits, target, inv_temperature);
  const int64_t rows = logits.size(0), vocab = logits.size(1);
  ovlt::check_per_row(logits, stats, upstream);
  const int64_t* ids = target.const_data_ptr<int64_t>();
  const float* stats_in = stats.const_data_ptr<float>();
  const float* up = upstream.const_data_ptr<float>();
  void* data = logits.data_ptr();
  const float* scales = inv_temperature.const_data_ptr<float>();
  const auto pass = [&](auto* x) {
    const auto& use = loops<std::remove_pointer_t<decltype(x)>>();
    torch::stable::parallel_for(0, rows, grain_of(vocab), [&](int64_t begin, int64_t end) {
      for (int64_t r = begin; r < end; ++r) {
        auto* row = x + r * vocab;
        const RowStats stats_of_row{stats_in[r], stats_in[rows + r], stats_in[2 * rows + r]};
        const float g = up[r], h = up[rows + r], scale = scales[r];
        if (g == 0.0f && h == 0.0f) {  // 0 whatever the row holds, NaN included
          std::memset(row, 0, vocab * sizeof(*row));
          continue;
        }
        const RowGrad as = ovlt::row_grad(stats_of_row, g, h, load(row[ids[r]]) * scale, 1.0f);
        use.grad(row, vocab, scale, as.base, as.shift, as.entropy, g, h);
        store(row + ids[r], as.at_target * scale);
      }
    });
  };
  if (half)
    pass(static_cast<uint16_t*>(data));
  else
    pass(static_cast<float*>(data));
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(ovlt, m) {
  m.def("row_logp(Tensor logits, Tensor target, Tensor inv_temperature) -> (Tensor, Tensor, Tensor)");
  m.def(
      "row_logp_grad_(Tensor(a!) logits, Tensor target, Tensor stats, Tensor upstream, "
      "Tensor inv_temperature) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(ovlt, CPU, m) {
  m.impl("row_logp", TORCH_BOX(&row_logp));
  m.impl("row_logp_grad_", TORCH_BOX(&row_logp_grad_));
}
