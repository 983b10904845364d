// The arithmetic of one row that the passes for CPUs (row_logp.cpp) and for GPUs (row_logp.cu) share.
//
// x are the logits, z = x * scale with scale = 1 / temperature > 0 of the row, and m = max x. Sums are
// measured from m so that nothing overflows:
//   S = sum exp((x - m) scale)      D = sum exp((x - m) scale) (x - m)
//   lse = m scale + log S    logp = (x[target] - m) scale - log S    entropy = log S - scale D / S
//
// With the upstream gradients g of logp and h of entropy, and p = exp(z - lse):
//   dL/dx_v = (g (1[v = target] - p_v) - h p_v (log p_v + entropy)) scale
//
// The two callers apply the scale at different places. row_logp.cu passes x and the scale as above: the
// scale is then part of the factor log2(e) of its exponents. row_logp.cpp passes z as x, with a scale of
// 1: its loops scale each logit as they load it, and it multiplies the gradient by the scale itself. The
// two round differently, so neither can take over the other's convention without changing its bits.

#pragma once

#include <cmath>
#include <limits>

#ifdef __CUDACC__
#define OVLT_INLINE __device__ __forceinline__
#else
#define OVLT_INLINE inline __attribute__((always_inline))
#endif

namespace ovlt {

constexpr float kNoToken = -std::numeric_limits<float>::infinity();  // logit of a masked token

// Partial sums over a subset of a row's tokens. If all are masked: max = kNoToken, S = D = 0. If a logit
// is NaN, S and D are NaN; the maximum never is.
template <typename Real>
struct RowSums {
  float max;  // m
  Real sum;   // S
  Real dot;   // D
};

// What sums with this maximum are measured from; not -inf, since -inf - -inf is NaN.
OVLT_INLINE float origin(float max) { return max == kNoToken ? 0.0f : max; }

// The sums over two disjoint subsets together; exp(d) is e^(d scale).
template <typename Real, typename Exp>
OVLT_INLINE RowSums<Real> merge(const RowSums<Real>& a, const RowSums<Real>& b, Exp exp) {
  const float max = a.max > b.max ? a.max : b.max;
  const Real down_a = a.max == kNoToken ? Real(0) : Real(a.max) - Real(max);
  const Real down_b = b.max == kNoToken ? Real(0) : Real(b.max) - Real(max);
  const Real factor_a = exp(down_a), factor_b = exp(down_b);
  // With logits of -3e38, which are finite, down * S overflows: skip what adds nothing anyway.
  const Real dot_a = factor_a == 0 ? Real(0) : factor_a * (a.dot + down_a * a.sum);
  const Real dot_b = factor_b == 0 ? Real(0) : factor_b * (b.dot + down_b * b.sum);
  return {max, factor_a * a.sum + factor_b * b.sum, dot_a + dot_b};
}

struct RowStats {
  float logp, entropy, lse;
};

template <typename Real>
OVLT_INLINE RowStats row_stats(const RowSums<Real>& row, float x_target, Real scale) {
  const Real log_sum = std::log(row.sum);
  // (x - m) - log S: both are small, while m + log S would already have been rounded.
  return {
      static_cast<float>((Real(x_target) - Real(row.max)) * scale - log_sum),
      static_cast<float>(log_sum - row.dot / row.sum * scale),
      static_cast<float>(Real(row.max) * scale + log_sum)};
}

// The numbers of a row from which the gradient of each of its logits follows.
struct RowGrad {
  float base, shift, scale;  // log p_v = (x_v - base) scale + shift
  float entropy;
  float g, h;       // upstream gradients of logp and entropy, times -scale
  float at_target;  // gradient of the target's logit; computed apart, since p - 1 would cancel
};

OVLT_INLINE RowGrad row_grad(const RowStats& row, float g, float h, float x_target, float scale) {
  // If the logits are far from 0, lse is large and its rounding is the error of every p: measure from
  // the target's logit instead if its log-prob is the smaller number.
  const bool near = std::fabs(row.logp) < std::fabs(row.lse);
  const float p = std::exp(row.logp);
  float at_target = -g * std::expm1(row.logp);
  if (p != 0.0f) at_target -= h * p * (row.logp + row.entropy);  // 0 * -inf is NaN
  return {
      near ? x_target : 0.0f, near ? row.logp : -row.lse, scale, row.entropy,
      -g * scale, -h * scale, at_target * scale};
}

// dL/dx of a token other than the target; exp(x) is e^x.
template <typename Exp>
OVLT_INLINE float logit_grad(float x, const RowGrad& row, Exp exp) {
  const float log_p = (x - row.base) * row.scale + row.shift;
  const float p = exp(log_p);
  // A masked token has log_p = -inf, and no gradient.
  return p == 0.0f ? 0.0f : (row.g + row.h * (log_p + row.entropy)) * p;
}

}  // namespace ovlt
