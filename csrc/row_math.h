// The arithmetic of one row that the passes for CPUs (row_logp.cpp) and for GPUs (row_logp.cu) share.
//
// x are the logits, z = x * scale with scale = 1 / temperature > 0 of the row, and m = max x. Sums are
// measured from m so that nothing overflows, and in x so that the scale enters each exponent once:
//   S = sum exp((x - m) scale)      D = sum exp((x - m) scale) (x - m)
//   lse = m scale + log S    logp = (x[target] - m) scale - log S    entropy = log S - scale D / S
//
// With the upstream gradients g of logp and h of the entropy, and p = exp(z - lse):
//   dL/dx_v = (g (1[v = target] - p_v) - h p_v (log p_v + entropy)) scale

#pragma once

#include <cmath>
#include <limits>

#ifdef __CUDACC__
#define OVLT_INLINE __device__ __forceinline__
#else
#define OVLT_INLINE inline __attribute__((always_inline))
#endif

namespace ovlt {

constexpr float kNoToken = -std::numeric_limits<float>::infinity();  // logit of one that is left out

// Of some tokens of a row; max = kNoToken while all of them are left out, and then S = D = 0, or NaN
// where a logit was NaN. The maximum itself is never NaN: S says it.
template <typename Real>
struct RowSums {
  float max;  // m
  Real sum;   // S
  Real dot;   // D
};

// Where sums with this maximum measure from: -inf - -inf would be NaN.
OVLT_INLINE float origin(float max) { return max == kNoToken ? 0.0f : max; }

// The sums of two sets of tokens together; exp(d) is e^(d scale).
template <typename Real, typename Exp>
OVLT_INLINE RowSums<Real> merge(const RowSums<Real>& a, const RowSums<Real>& b, Exp exp) {
  const float max = a.max > b.max ? a.max : b.max;
  const Real down_a = a.max == kNoToken ? Real(0) : Real(a.max) - Real(max);
  const Real down_b = b.max == kNoToken ? Real(0) : Real(b.max) - Real(max);
  const Real factor_a = exp(down_a), factor_b = exp(down_b);
  // logits of -3e38 are finite, down * S is not
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
  // x - m before - log S: both small, where m + log S would already have been rounded
  return {
      static_cast<float>((Real(x_target) - Real(row.max)) * scale - log_sum),
      static_cast<float>(log_sum - row.dot / row.sum * scale),
      static_cast<float>(Real(row.max) * scale + log_sum)};
}

// What the gradient of a row's logits is made of.
struct RowGrad {
  float base, shift, scale;  // log p_v = (x_v - base) scale + shift
  float entropy;
  float g, h;       // the upstream gradients times -scale
  float at_target;  // the gradient of the target's logit, which p - 1 would cancel in
};

OVLT_INLINE RowGrad row_grad(const RowStats& row, float g, float h, float x_target, float scale) {
  // Logits far from 0 make lse large and its rounding the error of every p: measure from the target
  // instead where its log-prob is the smaller number.
  const bool near = std::fabs(row.logp) < std::fabs(row.lse);
  const float p = std::exp(row.logp);
  float at_target = -g * std::expm1(row.logp);
  if (p != 0.0f) at_target -= h * p * (row.logp + row.entropy);  // 0 * -inf is NaN
  return {
      near ? x_target : 0.0f, near ? row.logp : -row.lse, scale, row.entropy,
      -g * scale, -h * scale, at_target * scale};
}

// dL/dx of a token that is not the target; exp(x) is e^x.
template <typename Exp>
OVLT_INLINE float logit_grad(float x, const RowGrad& row, Exp exp) {
  const float log_p = (x - row.base) * row.scale + row.shift;
  const float p = exp(log_p);
  // a token that is left out has log_p = -inf, and no gradient
  return p == 0.0f ? 0.0f : (row.g + row.h * (log_p + row.entropy)) * p;
}

}  // namespace ovlt
