// Rows of 8-bit RGB -> normalised float32 in the order in which a vision tower takes patches.
//
// Patches come in merge x merge blocks, block row by block row. The order within a patch is channel,
// time, y, x, and a still image fills every frame. A value is float(pixel) * scale[c] - shift[c], with
// two roundings: compiled without contraction, so that it equals the numpy statement to the bit.

#pragma once

#include <cstdint>
#include <cstring>
#include <vector>

#include "bicubic.h"

namespace ovlt {

constexpr int64_t kLanes = 16;  // floats of a register

struct Patches {
  int64_t patch, merge, temporal;
  const float* scale;  // [3]
  const float* shift;  // [3]
  float value[3][256];  // the normalised value of each channel and pixel

  Patches(int64_t patch, int64_t merge, int64_t temporal, const float* scale, const float* shift)
      : patch(patch), merge(merge), temporal(temporal), scale(scale), shift(shift) {
    for (int c = 0; c < 3; ++c)
      for (int x = 0; x < 256; ++x) value[c][x] = static_cast<float>(x) * scale[c] - shift[c];
  }

  int64_t band() const { return patch * merge; }  // rows of the image in one row of blocks
  int64_t frame() const { return patch * patch; }
  int64_t staged() const { return frame() + kLanes; }  // floats from one channel to the next, see below
  int64_t values() const { return 3 * temporal * frame(); }  // floats of one patch
};

// Writes one frame of one patch, [3, patch, patch] floats of the pixels at `corner`; the channels begin
// staged() floats apart, since frame_avx512 writes up to a register beyond the end of each.
inline void frame_plain(const Patches& p, const uint8_t* corner, int64_t stride, float* frame) {
  const int64_t patch = p.patch, staged = p.staged();
  for (int64_t y = 0; y < patch; ++y) {
    const uint8_t* rgb = corner + y * stride;
    for (int64_t x = 0; x < patch; ++x, ++frame, rgb += 3)
      for (int c = 0; c < 3; ++c) frame[c * staged] = p.value[c][rgb[c]];
  }
}

#ifdef OVLT_X86

// The same for a patch of at most kLanes pixels on a side: a row is one load, and one register for each
// channel. What a row writes beyond its end is overwritten by the next.
OVLT_AVX512 inline void frame_avx512(
    const Patches& p, const uint8_t* corner, int64_t stride, float* frame) {
  const __mmask64 inside = (__mmask64{1} << (3 * p.patch)) - 1;
  const __mmask64 lowest = 0x1111111111111111;  // the lowest of the four bytes of each lane
  const __m512i lane = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
  const __m512i third = _mm512_mullo_epi32(lane, _mm512_set1_epi32(3));
  __m512i pick[3];
  __m512 scale[3], shift[3];
  for (int c = 0; c < 3; ++c) {
    pick[c] = _mm512_add_epi32(third, _mm512_set1_epi32(c));
    scale[c] = _mm512_set1_ps(p.scale[c]);
    shift[c] = _mm512_set1_ps(p.shift[c]);
  }
  for (int64_t y = 0; y < p.patch; ++y) {
    const __m512i rgb = _mm512_maskz_loadu_epi8(inside, corner + y * stride);
    for (int c = 0; c < 3; ++c) {
      const __m512 x = _mm512_cvtepi32_ps(_mm512_maskz_permutexvar_epi8(lowest, pick[c], rgb));
      const __m512 value = _mm512_sub_ps(_mm512_mul_ps(x, scale[c]), shift[c]);
      _mm512_storeu_ps(frame + c * p.staged() + y * p.patch, value);
    }
  }
}

#endif

// One band of rows, `stride` bytes apart -> the patches of one row of blocks. A frame is made in the
// cache and then copied as a whole: its rows, of 56 bytes, would each end within a cache line.
inline void write_band(
    const Patches& p, const uint8_t* rows, int64_t stride, int64_t width, float* out) {
  std::vector<float> frame(3 * p.staged());
  for (int64_t block = 0; block < width / p.band(); ++block)
    for (int64_t my = 0; my < p.merge; ++my)
      for (int64_t mx = 0; mx < p.merge; ++mx) {
        const uint8_t* corner = rows + my * p.patch * stride + 3 * (block * p.merge + mx) * p.patch;
#ifdef OVLT_X86
        if (has_avx512() && p.patch <= kLanes)
          frame_avx512(p, corner, stride, frame.data());
        else
#endif
          frame_plain(p, corner, stride, frame.data());
        for (int c = 0; c < 3; ++c)
          for (int64_t t = 0; t < p.temporal; ++t, out += p.frame())
            std::memcpy(out, frame.data() + c * p.staged(), p.frame() * sizeof(float));
      }
}

}  // namespace ovlt
