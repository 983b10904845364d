// Log-prob of one token, entropy and log-sum-exp of each row of a logits matrix, in one pass; and the
// gradient with respect to the logits, written over them in a second pass. float32 or bfloat16 logits,
// float32 arithmetic.
//
// With z = logits * inv_temperature (one number for each row) and m = max z:  S = sum exp(z-m),  D = sum exp(z-m) (z-m),
//   lse = m + log S,   logp = z[target] - lse,   entropy = log S - D / S.
// A row is read once from memory, block by block: the maximum of a block is found while it is loaded
// into the cache, S and D are rescaled when the maximum grows, and the block is then summed from cache.
//
// With the upstream gradients g of logp and h of the entropy, and p = exp(z - lse):
//   dL/dlogits_v = (g (1[v = target] - p_v) - h p_v (log p_v + entropy)) * inv_temperature

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <tuple>
#include <type_traits>

#include "row_avx512.h"
#include "simd.h"

namespace {

using torch::stable::Tensor;

constexpr int64_t kBlock = 4096;               // floats: 16 KiB, half of a first-level cache
constexpr int64_t kElementsPerTask = 1 << 15;  // below this a second thread costs more than it saves

// exp(x) for x <= 0, to 2 ulp, in plain arithmetic so that the compiler vectorises the loop round it.
// exp(x) = 2^n exp(r), n = round(x / ln 2), |r| <= ln(2)/2; the series of exp(r) to r^7 leaves 5e-9.
// Inputs under -87 (where 2^n would leave the normal floats, and the exact value is under 2e-38) give
// 0; NaN gives NaN.
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

// A logit as it lies in memory, read as float32 and rounded (to nearest, ties to even) when written.
inline float load(float x) { return x; }
inline float load(uint16_t x) { return std::bit_cast<float>(static_cast<uint32_t>(x) << 16); }
inline void store(float* to, float x) { *to = x; }
inline void store(uint16_t* to, float x) {
  const uint32_t bits = std::bit_cast<uint32_t>(x);
  const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  *to = static_cast<uint16_t>(x == x ? rounded : 0x7fc0u);  // rounding could turn a NaN into inf
}

struct RowSums {
  float max;   // of the logits as they lie there
  double sum;  // S
  double dot;  // D
};

// The plain loops, for every other machine. NaN is passed over by the maximum and met by the sums.
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
  float sum = 0.0f, dot = 0.0f;  // of one block only: their rounding stays small
#pragma omp simd reduction(+ : sum, dot)
  for (int64_t i = 0; i < n; ++i) {
    const float d = load(x[i]) * scale - m;
    const float e = exp_nonpositive(d);
    sum += e;
    dot += e == 0.0f ? 0.0f : e * d;  // a token that is left out has d = -inf
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
    // a token that is left out has log_p = -inf, and no gradient
    store(logits + i, p == 0.0f ? 0.0f : -slope * p * scale);
  }
}

// The same loops again for the wider registers that a machine may have.
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

// The best that this machine has (simd.h).
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
RowSums row_sums(const Loops<T>& use, const T* logits, int64_t vocab, float scale) {
  constexpr float kNone = -std::numeric_limits<float>::infinity();
  RowSums row{kNone, 0.0, 0.0};
  for (int64_t begin = 0; begin < vocab; begin += kBlock) {
    const T* x = logits + begin;
    const int64_t n = std::min(kBlock, vocab - begin);
    const float highest = use.max(x, n, row.max);
    if (highest == kNone) {  // every token so far is left out: no sum
      for (int64_t i = 0; i < n; ++i)
        if (std::isnan(load(x[i]))) row.sum = std::numeric_limits<double>::quiet_NaN();
      continue;
    }
    if (highest > row.max && row.sum > 0.0) {
      const double step = static_cast<double>(row.max * scale) - highest * scale;
      const double factor = std::exp(step);
      row.dot = factor * (row.dot + step * row.sum);
      row.sum *= factor;
    }
    row.max = highest;
    use.sums(x, n, scale, highest * scale, row.sum, row.dot);
  }
  return row;
}

using torch::headeronly::ScalarType;

bool check(const Tensor& logits, const Tensor& target, const Tensor& inv_temperature) {
  const ScalarType dtype = logits.scalar_type();
  STD_TORCH_CHECK(
      logits.dim() == 2 && logits.is_contiguous() && logits.size(1) > 0 &&
          (dtype == ScalarType::Float || dtype == ScalarType::BFloat16),
      "logits must be a contiguous float32 or bfloat16 matrix [R, V]");
  STD_TORCH_CHECK(
      target.dim() == 1 && target.size(0) == logits.size(0) && target.is_cpu() &&
          target.is_contiguous() && target.scalar_type() == ScalarType::Long,
      "target must be a contiguous int64 vector [R] on the CPU");
  STD_TORCH_CHECK(
      inv_temperature.dim() == 1 && inv_temperature.size(0) == logits.size(0) &&
          inv_temperature.is_cpu() && inv_temperature.is_contiguous() &&
          inv_temperature.scalar_type() == ScalarType::Float,
      "inv_temperature must be a contiguous float32 vector [R] on the CPU");
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
        const RowSums row = row_sums(use, x + r * vocab, vocab, scale);
        const double max = row.max * scale, log_sum = std::log(row.sum);
        const float z = load(x[r * vocab + ids[r]]) * scale;
        // z - max before - log S: both small, where max + log S would already have been rounded
        logp_out[r] = static_cast<float>((z - max) - log_sum);
        entropy_out[r] = static_cast<float>(log_sum - row.dot / row.sum);
        lse_out[r] = static_cast<float>(max + log_sum);
      }
    });
  };
  if (half)
    pass(static_cast<const uint16_t*>(data));
  else
    pass(static_cast<const float*>(data));
  return {logp, entropy, lse};
}

// stats and upstream are float32 [3, R] and [2, R]: logp, entropy, lse; g, h.
void row_logp_grad_(
    Tensor logits, const Tensor& target, const Tensor& stats, const Tensor& upstream,
    const Tensor& inv_temperature) {
  const bool half = check(logits, target, inv_temperature);
  const int64_t rows = logits.size(0), vocab = logits.size(1);
  for (const Tensor& t : {stats, upstream})
    STD_TORCH_CHECK(
        t.dim() == 2 && t.size(1) == rows && t.is_cpu() && t.is_contiguous() &&
            t.scalar_type() == ScalarType::Float,
        "stats and upstream must be contiguous float32 [3, R] and [2, R] on the CPU");
  STD_TORCH_CHECK(stats.size(0) == 3 && upstream.size(0) == 2, "stats is [3, R], upstream [2, R]");
  const int64_t* ids = target.const_data_ptr<int64_t>();
  const float* logp = stats.const_data_ptr<float>();
  const float* up = upstream.const_data_ptr<float>();
  void* data = logits.data_ptr();
  const float* scales = inv_temperature.const_data_ptr<float>();
  const auto pass = [&](auto* x) {
    const auto& use = loops<std::remove_pointer_t<decltype(x)>>();
    torch::stable::parallel_for(0, rows, grain_of(vocab), [&](int64_t begin, int64_t end) {
      for (int64_t r = begin; r < end; ++r) {
        auto* row = x + r * vocab;
        const float lp = logp[r], entropy = logp[rows + r], lse = logp[2 * rows + r];
        const float g = up[r], h = up[rows + r], scale = scales[r];
        if (g == 0.0f && h == 0.0f) {  // whatever it holds
          std::memset(row, 0, vocab * sizeof(*row));
          continue;
        }
        // Logits far from 0 make lse large and its rounding the error of every p: measure from the
        // target instead where its log-prob is the smaller number. log p_v = (z_v - base) + shift.
        const bool near = std::fabs(lp) < std::fabs(lse);
        const float base = near ? load(row[ids[r]]) * scale : 0.0f;
        // The target's own gradient from its log-prob: p - 1 would cancel.
        float at_target = -g * std::expm1(lp);
        if (h != 0.0f) at_target -= h * std::exp(lp) * (lp + entropy);
        use.grad(row, vocab, scale, base, near ? lp : -lse, entropy, g, h);
        store(row + ids[r], at_target * scale);
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
