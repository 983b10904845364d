// The loops of row_logp.cpp in AVX-512, sixteen logits at a time. The compiler's version of the plain
// loops takes about twice as long: it computes 2^n by integer arithmetic and clears lanes separately,
// which one masked instruction does here, and it needs twice as many registers to convert bfloat16.
#pragma once

#if defined(__x86_64__) && defined(__GNUC__)
#define OVLT_AVX512 1
#pragma GCC diagnostic push  // gcc 12 calls its own intrinsics uninitialised (its bug 105593)
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#include <immintrin.h>
#pragma GCC diagnostic pop

#include <algorithm>
#include <cmath>
#include <cstdint>

namespace avx512 {

#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl")

// exp(x) for x <= 0, to 2 ulp; 0 below -87, where the exact value is below 2e-38; NaN gives NaN.
// exp(x) = 2^n 2^r with n = round(x log2 e), |r| <= 1/2; 2^r is a polynomial through seven Chebyshev
// nodes, exact at 0, that errs by 5e-9. log2 e in two parts keeps r exact to 1e-7 for large |x|.
inline __m512 exp_nonpositive(__m512 x) {
  const __m512 high = _mm512_set1_ps(1.442695f), low = _mm512_set1_ps(1.925963e-8f);
  const __m512 smallest = _mm512_set1_ps(-87.0f);
  const __mmask16 alive = _mm512_cmp_ps_mask(x, smallest, _CMP_NLT_UQ);  // NaN is alive
  x = _mm512_max_ps(smallest, x);  // this way round, NaN stays NaN
  const __m512 n = _mm512_roundscale_ps(
      _mm512_mul_ps(x, high), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  const __m512 r = _mm512_fmadd_ps(x, low, _mm512_fmsub_ps(x, high, n));
  __m512 p = _mm512_set1_ps(1.5453163e-4f);
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.3390863e-3f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(9.618083e-3f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(5.550357e-2f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(2.402265e-1f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(6.931472e-1f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f));
  return _mm512_maskz_scalef_ps(alive, p, n);
}

inline __mmask16 first(int64_t n) {
  return static_cast<__mmask16>((1u << std::min<int64_t>(n, 16)) - 1);
}

// Loads and stores of whole vectors, and masked ones for the last of a row only: on some processors a
// masked store takes several times as long. Lanes outside the row are -inf, as masked tokens are.
inline __m512 load(const float* x) { return _mm512_loadu_ps(x); }
inline __m512 load(const float* x, __mmask16 lanes) {
  return _mm512_mask_loadu_ps(_mm512_set1_ps(-INFINITY), lanes, x);
}
inline __m512 widen(__m256i half) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
}
inline __m512 load(const uint16_t* x) {
  return widen(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(x)));
}
inline __m512 load(const uint16_t* x, __mmask16 lanes) {
  const __m256i outside = _mm256_set1_epi16(static_cast<int16_t>(0xff80));
  return widen(_mm256_mask_loadu_epi16(outside, lanes, x));
}
inline __m256i narrow(__m512 x) {  // to nearest, ties to even
  const __m512i bits = _mm512_castps_si512(x);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  __m512i half = _mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff)), odd);
  half = _mm512_srli_epi32(half, 16);
  const __mmask16 nan = _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q);  // rounding could make it inf
  half = _mm512_mask_mov_epi32(half, nan, _mm512_set1_epi32(0x7fc0));
  return _mm512_cvtepi32_epi16(half);
}
inline void store(float* to, __m512 x) { _mm512_storeu_ps(to, x); }
inline void store(float* to, __m512 x, __mmask16 lanes) { _mm512_mask_storeu_ps(to, lanes, x); }
inline void store(uint16_t* to, __m512 x) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), narrow(x));
}
inline void store(uint16_t* to, __m512 x, __mmask16 lanes) {
  _mm256_mask_storeu_epi16(to, lanes, narrow(x));
}

// The maximum of the unscaled logits; skips NaN.
template <typename T>
inline float block_max(const T* x, int64_t n, float from) {
  __m512 m0 = _mm512_set1_ps(from), m1 = m0;
  int64_t i = 0;
  for (; i + 32 <= n; i += 32) {
    m0 = _mm512_max_ps(load(x + i), m0);
    m1 = _mm512_max_ps(load(x + i + 16), m1);
  }
  for (; i < n; i += 16) m0 = _mm512_max_ps(load(x + i, first(n - i)), m0);
  return _mm512_reduce_max_ps(_mm512_max_ps(m0, m1));
}

// sum += exp(z - m), dot += exp(z - m) (z - m) over a block, z = x scale. The next block is fetched
// from memory while this one is summed from the cache; otherwise the two would take turns waiting.
template <typename T>
inline void block_sums(const T* x, int64_t n, float scale, float m, double& sum, double& dot) {
  const __m512 s = _mm512_set1_ps(scale), shift = _mm512_set1_ps(m);
  const __m512 smallest = _mm512_set1_ps(-87.0f);
  __m512 total = _mm512_setzero_ps(), weighted = _mm512_setzero_ps();
  const auto add = [&](__m512 logits) {
    const __m512 z = _mm512_sub_ps(_mm512_mul_ps(logits, s), shift);  // rounded as the target's is
    const __m512 e = exp_nonpositive(z);
    total = _mm512_add_ps(total, e);
    // 0 * -87 for a masked token, not 0 * -inf
    weighted = _mm512_fmadd_ps(e, _mm512_max_ps(smallest, z), weighted);
  };
  int64_t i = 0;
  for (; i + 16 <= n; i += 16) {
    _mm_prefetch(reinterpret_cast<const char*>(x + n + i), _MM_HINT_T0);
    add(load(x + i));
  }
  if (i < n) add(load(x + i, first(n - i)));
  sum += _mm512_reduce_add_ps(total);
  dot += _mm512_reduce_add_ps(weighted);
}

// x becomes -(g + h (log_p + entropy)) p scale with log_p = (x scale - base) + shift.
template <typename T>
inline void gradient(
    T* x, int64_t n, float scale, float base, float shift, float entropy, float g, float h) {
  const __m512 s = _mm512_set1_ps(scale), b = _mm512_set1_ps(base), c = _mm512_set1_ps(shift);
  const __m512 from = _mm512_set1_ps(-scale * g), slope = _mm512_set1_ps(-scale * h);
  const __m512 level = _mm512_set1_ps(entropy), zero = _mm512_setzero_ps();
  const auto of = [&](__m512 logits) {
    const __m512 z = _mm512_mul_ps(logits, s);
    const __m512 log_p = _mm512_min_ps(zero, _mm512_add_ps(_mm512_sub_ps(z, b), c));
    const __m512 p = exp_nonpositive(log_p);
    // For a masked token: -inf + entropy, times a slope of 0, would be NaN.
    const __m512 above = _mm512_max_ps(_mm512_set1_ps(-1e4f), log_p);
    const __m512 d = _mm512_fmadd_ps(slope, _mm512_add_ps(above, level), from);
    return _mm512_mul_ps(d, p);
  };
  int64_t i = 0;
  for (; i + 16 <= n; i += 16) store(x + i, of(load(x + i)));
  if (i < n) store(x + i, of(load(x + i, first(n - i))), first(n - i));
}

#pragma GCC pop_options

}  // namespace avx512
#endif
