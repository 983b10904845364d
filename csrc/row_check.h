// Checks of the arguments of the operators in row_logp.cpp and row_logp.cu, on any device.

#pragma once

#include <torch/csrc/stable/tensor.h>

namespace ovlt {

inline void check_rows(
    const torch::stable::Tensor& logits, const torch::stable::Tensor& target,
    const torch::stable::Tensor& inv_temperature) {
  STD_TORCH_CHECK(
      logits.dim() == 2 && logits.is_contiguous() && logits.size(1) > 0,
      "logits must be a contiguous float32 or bfloat16 matrix [R, V]");
  STD_TORCH_CHECK(
      target.dim() == 1 && target.size(0) == logits.size(0) && target.is_contiguous() &&
          target.device() == logits.device() &&
          target.scalar_type() == torch::headeronly::ScalarType::Long,
      "target must be a contiguous int64 vector [R] on the device of the logits");
  STD_TORCH_CHECK(
      inv_temperature.dim() == 1 && inv_temperature.size(0) == logits.size(0) &&
          inv_temperature.is_contiguous() && inv_temperature.device() == logits.device() &&
          inv_temperature.scalar_type() == torch::headeronly::ScalarType::Float,
      "inv_temperature must be a contiguous float32 vector [R] on the device of the logits");
}

// For row_logp_grad_: stats are logp, entropy, lse; upstream are the gradients g of logp, h of entropy.
inline void check_per_row(
    const torch::stable::Tensor& logits, const torch::stable::Tensor& stats,
    const torch::stable::Tensor& upstream) {
  for (const torch::stable::Tensor* t : {&stats, &upstream})
    STD_TORCH_CHECK(
        t->dim() == 2 && t->size(0) == (t == &stats ? 3 : 2) && t->size(1) == logits.size(0) &&
            t->is_contiguous() && t->device() == logits.device() &&
            t->scalar_type() == torch::headeronly::ScalarType::Float,
        "stats and upstream must be contiguous float32 [3, R] and [2, R] on the device of the logits");
}

}  // namespace ovlt
