// Which loops a process may use: the best that the machine can run, or at most what the environment
// variable OVLT_SIMD names, so that the loops for older machines can be tested and measured on any.
#pragma once

#include <torch/headeronly/util/Exception.h>

#include <cstdlib>
#include <string_view>

namespace ovlt {

enum class Simd { plain, avx2, avx512 };

inline Simd simd_at_most() {
  const char* value = std::getenv("OVLT_SIMD");
  const std::string_view name = value ? value : "avx512";
  STD_TORCH_CHECK(
      name == "avx512" || name == "avx2" || name == "plain",
      "OVLT_SIMD must be avx512, avx2 or plain, not ", value ? value : "");
  return name == "avx512" ? Simd::avx512 : name == "avx2" ? Simd::avx2 : Simd::plain;
}

}  // namespace ovlt
