// Log-prob of one token, entropy and log-sum-exp of each row of a logits matrix, in one pass.
//
// With z = logits * inv_temperature and m = max z:  S = sum exp(z-m),  D = sum exp(z-m) (z-m),
//   lse = m + log S,   logp = z[target] - lse,   entropy = log S - D / S.
// A row is read once from memory, block by block: the maximum of a block is found while it is loaded
// into the cache, S and D are rescaled when the maximum grows, and the block is then summed from cache.

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>
#include <tuple>

namespace {

using torch::stable::Tensor;

constexpr int64_t kBlock = 4096;               // floats: 16 KiB, half of a first-level cache
constexpr int64_t kElementsPerTask = 1 << 15;  // below this a second thread costs more than it saves

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
// One baseline binary that still uses the wide registers of the machine it runs on.
#define OVLT_CLONES __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define OVLT_CLONES
#endif

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

struct RowSums {
  float max;   // m
  double sum;  // S
  double dot;  // D
};

OVLT_CLONES RowSums row_sums(const float* logits, int64_t vocab, float inv_temperature) {
  RowSums row{-std::numeric_limits<float>::infinity(), 0.0, 0.0};
  for (int64_t begin = 0; begin < vocab; begin += kBlock) {
    const float* x = logits + begin;
    const int64_t n = std::min(kBlock, vocab - begin);
    float m = row.max;
#pragma omp simd reduction(max : m)
    for (int64_t i = 0; i < n; ++i) {
      const float z = x[i] * inv_temperature;
      m = z > m ? z : m;
    }

    if (m == -std::numeric_limits<float>::infinity()) {  // every token so far is left out: no sum
      for (int64_t i = 0; i < n; ++i)
        if (std::isnan(x[i])) row.sum = std::numeric_limits<double>::quiet_NaN();
      continue;
    }
    if (m > row.max && row.sum > 0.0) {
      const double step = static_cast<double>(row.max) - m;
      const double factor = std::exp(step);
      row.dot = factor * (row.dot + step * row.sum);
      row.sum *= factor;
    }
    row.max = m;

    float sum = 0.0f, dot = 0.0f;  // of one block only: their rounding stays small
#pragma omp simd reduction(+ : sum, dot)
    for (int64_t i = 0; i < n; ++i) {
      const float d = x[i] * inv_temperature - m;
      const float e = exp_nonpositive(d);
      sum += e;
      dot += e == 0.0f ? 0.0f : e * d;  // a token that is left out has d = -inf
    }
    row.sum += sum;
    row.dot += dot;
  }
  return row;
}

std::tuple<Tensor, Tensor, Tensor> row_logp(
    const Tensor& logits, const Tensor& target, double inv_temperature) {
  STD_TORCH_CHECK(
      logits.dim() == 2 && logits.is_contiguous() && logits.size(1) > 0 &&
          logits.scalar_type() == torch::headeronly::ScalarType::Float,
      "row_logp: logits must be a contiguous float32 matrix [R, V]");
  const int64_t rows = logits.size(0), vocab = logits.size(1);
  STD_TORCH_CHECK(
      target.dim() == 1 && target.size(0) == rows && target.is_cpu() && target.is_contiguous() &&
          target.scalar_type() == torch::headeronly::ScalarType::Long,
      "row_logp: target must be a contiguous int64 vector [R] on the CPU");
  const float* x = logits.const_data_ptr<float>();
  const int64_t* ids = target.const_data_ptr<int64_t>();
  for (int64_t r = 0; r < rows; ++r)
    STD_TORCH_CHECK(
        ids[r] >= 0 && ids[r] < vocab, "row_logp: target ", ids[r], " is outside [0, ", vocab, ")");

  Tensor logp = torch::stable::new_empty(logits, {rows});
  Tensor entropy = torch::stable::new_empty(logits, {rows});
  Tensor lse = torch::stable::new_empty(logits, {rows});
  float* logp_out = logp.mutable_data_ptr<float>();
  float* entropy_out = entropy.mutable_data_ptr<float>();
  float* lse_out = lse.mutable_data_ptr<float>();
  const float scale = static_cast<float>(inv_temperature);
  const int64_t grain = std::max<int64_t>(1, kElementsPerTask / vocab);
  torch::stable::parallel_for(0, rows, grain, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      const RowSums row = row_sums(x + r * vocab, vocab, scale);
      const double log_sum = std::log(row.sum);
      const float z = x[r * vocab + ids[r]] * scale;
      // z - m before - log S: both small, where m + log S would already have been rounded
      logp_out[r] = static_cast<float>((static_cast<double>(z) - row.max) - log_sum);
      entropy_out[r] = static_cast<float>(log_sum - row.dot / row.sum);
      lse_out[r] = static_cast<float>(row.max + log_sum);
    }
  });
  return {logp, entropy, lse};
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(ovlt, m) {
  m.def("row_logp(Tensor logits, Tensor target, float inv_temperature) -> (Tensor, Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(ovlt, CPU, m) {
  m.impl("row_logp", TORCH_BOX(&row_logp));
}
