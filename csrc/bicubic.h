// Antialiased bicubic resize of 8-bit RGB: the weights, and the sums of one row in either direction.
//
// Output pixel i of an axis of n -> m pixels has its centre at c = (i + 1/2) s, s = n / m, among the
// input pixels, whose centres are at j + 1/2. With the cubic convolution kernel f of Keys (1981,
// a = -1/2) stretched by t = max(s, 1), its weights are f((j + 1/2 - c) / t) over |j + 1/2 - c| < 2 t,
// divided by their sum. They are rounded to 22 fractional bits: a sum of products with 8-bit pixels
// then fits an int32 with two bits for the overshoot. Each direction is rounded and clipped to 8 bits,
// the width first, or the height first if it loses more than twice the pixels that the width loses (as
// measured on Pillow 13; up to 12.0 the width was always first). The result is that of Pillow's
// Image.resize to the bit: products and sums are exact integers, so the order of summing is free.
//
// A weight is also kept as three signed digits of base 256: one instruction of AVX-512 VNNI sums four
// products of a byte and a signed byte, so three sums of digits make one sum of weights.

#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

#include "simd.h"

// One baseline binary that still uses the wide registers of the machine it runs on.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define OVLT_CLONES __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define OVLT_CLONES
#endif

#if defined(__x86_64__) && defined(__GNUC__)
#define OVLT_X86
#include <immintrin.h>
#define OVLT_AVX512 \
  __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512vbmi,avx512vnni")))
#endif

namespace ovlt {

constexpr int kBits = 22;
constexpr int32_t kHalf = 1 << (kBits - 1);
constexpr int64_t kOverread = 128;  // bytes beyond a row that the horizontal sums may read

// Whether the machine has the instructions of the AVX-512 functions (Ice Lake, Zen 4, and later) and
// OVLT_SIMD allows them; it may not, to test the portable ones on such a machine.
inline bool has_avx512() {
#ifdef OVLT_X86
  static const bool has = simd_at_most() == Simd::avx512 &&
                          __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
                          __builtin_cpu_supports("avx512dq") &&
                          __builtin_cpu_supports("avx512vbmi") &&
                          __builtin_cpu_supports("avx512vnni");
  return has;
#else
  return false;
#endif
}

using Digits = std::array<uint32_t, 3>;  // of four weights: byte k of digit d is digit d of weight k

// The input pixels of each output pixel of one axis, and their weights.
struct Axis {
  int64_t in, out;
  int64_t fours;                // weights per output pixel, in fours
  std::vector<int32_t> first;   // [out]: the first input pixel
  std::vector<int32_t> count;   // [out]: how many
  std::vector<int32_t> weight;  // [out, 4 fours], 0 behind the last
  std::vector<Digits> digits;   // [out, fours]

  bool identity() const { return in == out; }
  int32_t last(int64_t i) const { return first[i] + count[i]; }  // one past
};

inline double cubic(double x) {
  constexpr double a = -0.5;
  x = std::fabs(x);
  if (x < 1.0) return ((a + 2.0) * x - (a + 3.0)) * x * x + 1.0;
  if (x < 2.0) return (((x - 5.0) * x + 8.0) * x - 4.0) * a;
  return 0.0;
}

inline Axis make_axis(int64_t in, int64_t out) {
  const double scale = static_cast<double>(in) / static_cast<double>(out);
  const double stretch = std::max(scale, 1.0);
  const double reach = 2.0 * stretch, shrink = 1.0 / stretch;
  const int64_t fours = (static_cast<int64_t>(std::ceil(reach)) * 2 + 1 + 3) / 4;
  Axis axis{in, out, fours, {}, {}, {}, {}};
  axis.first.resize(out);
  axis.count.resize(out);
  axis.weight.resize(out * fours * 4);
  axis.digits.resize(out * fours);
  std::vector<double> exact(fours * 4);
  for (int64_t i = 0; i < out; ++i) {
    const double centre = (static_cast<double>(i) + 0.5) * scale;
    const int64_t first = std::max<int64_t>(0, static_cast<int64_t>(centre - reach + 0.5));
    const int64_t count = std::min(in, static_cast<int64_t>(centre + reach + 0.5)) - first;
    double sum = 0.0;
    for (int64_t k = 0; k < count; ++k) {
      exact[k] = cubic((static_cast<double>(k + first) - centre + 0.5) * shrink);
      sum += exact[k];
    }
    axis.first[i] = static_cast<int32_t>(first);
    axis.count[i] = static_cast<int32_t>(count);
    for (int64_t k = 0; k < count; ++k) {
      const double scaled = exact[k] / sum * (1 << kBits);
      const int32_t weight = static_cast<int32_t>(scaled < 0 ? scaled - 0.5 : scaled + 0.5);
      axis.weight[i * fours * 4 + k] = weight;
      const int8_t low = static_cast<int8_t>(weight);
      const int32_t rest = (weight - low) >> 8;
      const int8_t middle = static_cast<int8_t>(rest);
      const int8_t high = static_cast<int8_t>((rest - middle) >> 8);  // |weight| < 2^23
      Digits& digits = axis.digits[i * fours + k / 4];
      const int shift = 8 * static_cast<int>(k % 4);
      digits[0] |= static_cast<uint32_t>(static_cast<uint8_t>(low)) << shift;
      digits[1] |= static_cast<uint32_t>(static_cast<uint8_t>(middle)) << shift;
      digits[2] |= static_cast<uint32_t>(static_cast<uint8_t>(high)) << shift;
    }
  }
  return axis;
}

inline uint8_t to_pixel(int32_t sum) {
  return static_cast<uint8_t>(std::clamp(sum >> kBits, 0, 255));
}

// The portable functions.

typedef int32_t Int4 __attribute__((vector_size(16)));

// One row of pixels -> axis.out pixels. wide: scratch for 4 (axis.in + 3) numbers, one register per
// pixel; the last three have weights of 0.
OVLT_CLONES inline void horizontal_plain(
    const Axis& axis, const uint8_t* in, uint8_t* out, int32_t* wide) {
  for (int64_t j = 0; j < axis.in; ++j)
    for (int c = 0; c < 3; ++c) wide[4 * j + c] = in[3 * j + c];
  const Int4 black = {0, 0, 0, 0}, white = {255, 255, 255, 255};
  // In locals: for the compiler a store of bytes to `out` could change anything in memory.
  const int64_t pixels = axis.out, step = 4 * axis.fours;
  const int32_t* first = axis.first.data();
  const int32_t* count = axis.count.data();
  const int32_t* weight = axis.weight.data();
  for (int64_t i = 0; i < pixels; ++i, out += 3, weight += step) {
    const int32_t* pixel = wide + 4 * static_cast<int64_t>(first[i]);
    Int4 sum = {kHalf, kHalf, kHalf, 0};
    for (int32_t k = 0, n = count[i]; k < n; k += 4)
      for (int j = k; j < k + 4; ++j) {
        Int4 rgb;
        std::memcpy(&rgb, pixel + 4 * j, sizeof rgb);
        sum += rgb * weight[j];
      }
    sum >>= kBits;
    sum = sum < black ? black : sum;
    sum = sum > white ? white : sum;
    for (int c = 0; c < 3; ++c) out[c] = static_cast<uint8_t>(sum[c]);
  }
}

// out[b] = sum_k weight[k] rows[k][b], over the bytes of a row; after the last of `count` weights there
// are zeros, up to a multiple of four.
OVLT_CLONES inline void vertical_plain(
    const uint8_t* const* rows, const int32_t* weight, int64_t count, int64_t bytes, uint8_t* out) {
  constexpr int64_t kStrip = 256;
  int32_t sum[kStrip];
  for (int64_t begin = 0; begin < bytes; begin += kStrip) {
    const int64_t n = std::min(kStrip, bytes - begin);
    for (int64_t b = 0; b < n; ++b) sum[b] = kHalf;
    for (int64_t k = 0; k < count; k += 4) {
      const uint8_t* row[4];
      for (int j = 0; j < 4; ++j) row[j] = rows[std::min(k + j, count - 1)] + begin;
      const int32_t *w = weight + k, w0 = w[0], w1 = w[1], w2 = w[2], w3 = w[3];
      for (int64_t b = 0; b < n; ++b)
        sum[b] += row[0][b] * w0 + row[1][b] * w1 + row[2][b] * w2 + row[3][b] * w3;
    }
    for (int64_t b = 0; b < n; ++b) out[begin + b] = to_pixel(sum[b]);
  }
}

// The same in AVX-512.

#ifdef OVLT_X86

// A horizontal pass in groups of 16 output bytes. A step of a group adds four products to each: the
// bytes that the weights multiply are picked from a window of 64 (or 128) bytes of the input row.
struct Plan {
  struct alignas(64) Step {
    uint8_t pick[64];       // [16 output bytes, 4 weights]: place in the window
    uint32_t digits[3][16];
    int64_t window;         // its first byte in the row
  };
  std::vector<Step> steps;
  std::vector<int32_t> end;  // [groups]: one past the last step of a group
  bool wide = false;         // windows of 128 bytes
  bool fits = true;          // false: the image shrinks so much that it needs even wider windows
};

inline Plan make_plan(const Axis& axis) {
  Plan plan;
  const int64_t bytes = 3 * axis.out;
  plan.steps.reserve((bytes / 16 + 1) * axis.fours);
  for (int64_t begin = 0; begin < bytes; begin += 16) {
    const int64_t n = std::min<int64_t>(16, bytes - begin);
    const int64_t left = begin / 3, right = (begin + n - 1) / 3;
    int64_t fours = 0;
    for (int64_t i = left; i <= right; ++i) fours = std::max<int64_t>(fours, (axis.count[i] + 3) / 4);
    for (int64_t f = 0; f < fours; ++f) {
      Plan::Step& step = plan.steps.emplace_back();
      const int64_t base = std::min<int64_t>(axis.first[left] + 4 * f, axis.in - 1);
      step.window = 3 * base;
      for (int64_t lane = 0; lane < n; ++lane) {
        const int64_t i = (begin + lane) / 3, c = (begin + lane) % 3;
        const Digits& digits = axis.digits[i * axis.fours + f];
        for (int d = 0; d < 3; ++d) step.digits[d][lane] = digits[d];
        for (int64_t k = 4 * f; k < std::min<int64_t>(4 * f + 4, axis.count[i]); ++k) {
          const int64_t place = 3 * (axis.first[i] + k - base) + c;
          plan.wide = plan.wide || place >= 64;
          plan.fits = plan.fits && place < 128;
          step.pick[4 * lane + k % 4] = static_cast<uint8_t>(place);
        }
      }
    }
    if (!plan.fits) break;
    plan.end.push_back(static_cast<int32_t>(plan.steps.size()));
  }
  return plan;
}

// ((high 256 + middle) 256 + low) / 2^22, rounded: low already holds the half.
OVLT_AVX512 inline __m512i join_digits(__m512i low, __m512i middle, __m512i high) {
  middle = _mm512_add_epi32(middle, _mm512_slli_epi32(high, 8));
  return _mm512_srai_epi32(_mm512_add_epi32(low, _mm512_slli_epi32(middle, 8)), kBits);
}

// kRows rows at a time, which share what a step loads. Reads up to kOverread bytes beyond a row.
template <bool kWide, int kRows>
OVLT_AVX512 inline void horizontal_avx512(
    const Axis& axis, const Plan& plan, const uint8_t* const* in, uint8_t* const* out) {
  const int64_t bytes = 3 * axis.out;
  const Plan::Step* step = plan.steps.data();
  for (int64_t g = 0, begin = 0; begin < bytes; ++g, begin += 16) {
    __m512i low[kRows], middle[kRows], high[kRows];
    for (int r = 0; r < kRows; ++r) {
      low[r] = _mm512_set1_epi32(kHalf);
      middle[r] = high[r] = _mm512_setzero_si512();
    }
    for (const Plan::Step* end = plan.steps.data() + plan.end[g]; step < end; ++step) {
      const __m512i pick = _mm512_load_si512(step->pick);
      const __m512i d0 = _mm512_load_si512(step->digits[0]);
      const __m512i d1 = _mm512_load_si512(step->digits[1]);
      const __m512i d2 = _mm512_load_si512(step->digits[2]);
      for (int r = 0; r < kRows; ++r) {
        const uint8_t* window = in[r] + step->window;
        __m512i bytes4 = _mm512_loadu_si512(window);
        if constexpr (kWide)
          bytes4 = _mm512_permutex2var_epi8(bytes4, pick, _mm512_loadu_si512(window + 64));
        else
          bytes4 = _mm512_permutexvar_epi8(pick, bytes4);
        low[r] = _mm512_dpbusd_epi32(low[r], bytes4, d0);
        middle[r] = _mm512_dpbusd_epi32(middle[r], bytes4, d1);
        high[r] = _mm512_dpbusd_epi32(high[r], bytes4, d2);
      }
    }
    for (int r = 0; r < kRows; ++r) {
      const __m512i sum = join_digits(low[r], middle[r], high[r]);
      const __m128i pixels = _mm512_cvtusepi32_epi8(_mm512_max_epi32(sum, _mm512_setzero_si512()));
      if (begin + 16 <= bytes) {
        _mm_storeu_si128(reinterpret_cast<__m128i*>(out[r] + begin), pixels);
      } else {
        uint8_t rest[16];
        _mm_storeu_si128(reinterpret_cast<__m128i*>(rest), pixels);
        std::memcpy(out[r] + begin, rest, bytes - begin);
      }
    }
  }
}

// The digits of a sum over four rows, each in every lane.
struct RowDigits {
  __m512i low, middle, high;
};

OVLT_AVX512 inline RowDigits spread(const Digits& digits) {
  return {
      _mm512_set1_epi32(static_cast<int32_t>(digits[0])),
      _mm512_set1_epi32(static_cast<int32_t>(digits[1])),
      _mm512_set1_epi32(static_cast<int32_t>(digits[2]))};
}

// 64 bytes of an output row. Four input rows are interleaved so that the four bytes of a column are side
// by side; the saturating packs restore the order of the columns. kOne: there are at most four rows,
// whose digits are `one`.
template <bool kOne>
OVLT_AVX512 inline __attribute__((always_inline)) __m512i vertical_block(
    const uint8_t* const* rows, const Digits* digits, const RowDigits& one, int64_t count,
    int64_t begin, __mmask64 mask) {
  __m512i low[4], middle[4], high[4];
  for (int q = 0; q < 4; ++q) {
    low[q] = _mm512_set1_epi32(kHalf);
    middle[q] = high[q] = _mm512_setzero_si512();
  }
  for (int64_t k = 0; k < (kOne ? 4 : count); k += 4, ++digits) {
    const int64_t last = count - 1;  // stands in, with a weight of 0, for rows that do not exist
    const __m512i a = _mm512_maskz_loadu_epi8(mask, rows[k] + begin);
    const __m512i b = _mm512_maskz_loadu_epi8(mask, rows[std::min(k + 1, last)] + begin);
    const __m512i c = _mm512_maskz_loadu_epi8(mask, rows[std::min(k + 2, last)] + begin);
    const __m512i d = _mm512_maskz_loadu_epi8(mask, rows[std::min(k + 3, last)] + begin);
    const __m512i ab0 = _mm512_unpacklo_epi8(a, b), ab1 = _mm512_unpackhi_epi8(a, b);
    const __m512i cd0 = _mm512_unpacklo_epi8(c, d), cd1 = _mm512_unpackhi_epi8(c, d);
    const __m512i columns[4] = {
        _mm512_unpacklo_epi16(ab0, cd0), _mm512_unpackhi_epi16(ab0, cd0),
        _mm512_unpacklo_epi16(ab1, cd1), _mm512_unpackhi_epi16(ab1, cd1)};
    const RowDigits w = kOne ? one : spread(*digits);
    for (int q = 0; q < 4; ++q) {
      low[q] = _mm512_dpbusd_epi32(low[q], columns[q], w.low);
      middle[q] = _mm512_dpbusd_epi32(middle[q], columns[q], w.middle);
      high[q] = _mm512_dpbusd_epi32(high[q], columns[q], w.high);
    }
  }
  __m512i sum[4];
  for (int q = 0; q < 4; ++q) sum[q] = join_digits(low[q], middle[q], high[q]);
  return _mm512_packus_epi16(
      _mm512_packs_epi32(sum[0], sum[1]), _mm512_packs_epi32(sum[2], sum[3]));
}

template <bool kOne>
OVLT_AVX512 inline void vertical_avx512(
    const uint8_t* const* rows, const Digits* digits, int64_t count, int64_t bytes, uint8_t* out) {
  const RowDigits one = spread(*digits);
  int64_t begin = 0;
  for (; begin + 64 <= bytes; begin += 64)
    _mm512_storeu_si512(
        out + begin, vertical_block<kOne>(rows, digits, one, count, begin, ~__mmask64{0}));
  if (begin < bytes) {
    const __mmask64 mask = (__mmask64{1} << (bytes - begin)) - 1;
    _mm512_mask_storeu_epi8(
        out + begin, mask, vertical_block<kOne>(rows, digits, one, count, begin, mask));
  }
}

#endif  // OVLT_X86

}  // namespace ovlt
