// The row passes of row_logp.cpp for GPUs: float32, bfloat16 or float16 logits, float32 arithmetic.
// row_math.h has the formulas; unlike row_logp.cpp, this file calls it with the logits x and their scale
// (row_math.h, head comment). g and h are the upstream gradients of logp and entropy.
//
// Both passes are bound by memory. The first reads each logit once: every thread keeps (m, S, D) of the
// logits that it saw, and these are merged in a tree, so a row (297 KB in bfloat16 at 152k tokens) never
// has to fit into the 227 KB of a block's shared memory, nor into that of a cluster. The second reads
// and writes each logit once. They cannot be one pass: the gradient needs g and h, which autograd
// computes in Python from the [R] statistics of the first pass. Only if a block of logits is small (some
// 50 MB) does the second read come from the 60 MB of second-level cache.
//
// One thread block per row, or a cluster of up to 8 if there are fewer rows than the GPU can hold.
// exp is ex2.approx of the rounded product with log2(e): its relative error is below
// 2^-22 + |exponent| 2^-23, while the float32 log-prob that it takes already has an error of
// |exponent| 2^-24. Results below 2^-126 are 0.

#undef NDEBUG  // a kernel reports a target id outside the vocabulary by assert()

#include <cooperative_groups.h>
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cassert>
#include <cstdint>
#include <tuple>

#include "row_check.h"
#include "row_math.h"

// Weak: a torch without CUDA has no such symbol, and this library must load there too.
extern "C" __attribute__((weak)) AOTITorchError aoti_torch_get_current_cuda_stream(
    int32_t device_index, void** ret_stream);

namespace {

using ovlt::RowGrad, ovlt::RowStats;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using RowSums = ovlt::RowSums<float>;

constexpr int kWarp = 32;
constexpr int kMaxThreads = 512;
constexpr int kBlocksPerSm = 2;  // with the loads below, some 64 KiB in flight: twice what hides memory
constexpr int kMaxCluster = 8;   // the largest that every GPU with clusters can launch
constexpr int kLoads = 4;        // 16-byte loads that a thread has under way at a time
constexpr float kLog2E = 1.44269504088896341f;

struct Exp {
  float factor;  // log2(e), times the scale if the argument is not scaled yet
  __device__ __forceinline__ float operator()(float x) const {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x * factor));
    return y;
  }
};

__device__ __forceinline__ float load(float x) { return x; }
__device__ __forceinline__ float load(__nv_bfloat16 x) { return __bfloat162float(x); }
__device__ __forceinline__ float load(__half x) { return __half2float(x); }
__device__ __forceinline__ void store(float* to, float x) { *to = x; }
__device__ __forceinline__ void store(__nv_bfloat16* to, float x) { *to = __float2bfloat16_rn(x); }
__device__ __forceinline__ void store(__half* to, float x) { *to = __float2half_rn(x); }

template <typename T>
struct alignas(16) Packed {
  static constexpr int kSize = 16 / sizeof(T);
  T at[kSize];
};

template <typename T>
__device__ __forceinline__ void unpack(const Packed<T>& from, float* to) {
#pragma unroll
  for (int i = 0; i < Packed<T>::kSize; ++i) to[i] = load(from.at[i]);
}
// A bfloat16 is the upper half of a float32: one instruction each. nvcc emits two for every other one.
template <>
__device__ __forceinline__ void unpack(const Packed<__nv_bfloat16>& from, float* to) {
  const auto words = reinterpret_cast<const uint32_t(&)[4]>(from);
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    to[2 * i] = __uint_as_float(words[i] << 16);
    to[2 * i + 1] = __uint_as_float(words[i] & 0xffff0000u);
  }
}

// The thread blocks that work on one row: one, or the blocks of a cluster.
struct Team {
  int blocks = 1, rank = 0;
  __device__ __forceinline__ Team() {
#if __CUDA_ARCH__ >= 900
    const auto cluster = cooperative_groups::this_cluster();
    blocks = static_cast<int>(cluster.num_blocks());
    rank = static_cast<int>(cluster.block_rank());
#endif
  }
  __device__ __forceinline__ int64_t row() const { return blockIdx.x / blocks; }
  __device__ __forceinline__ int thread() const { return rank * blockDim.x + threadIdx.x; }
  __device__ __forceinline__ int threads() const { return blocks * blockDim.x; }
  __device__ __forceinline__ void sync() const {
#if __CUDA_ARCH__ >= 900
    if (blocks > 1) return cooperative_groups::this_cluster().sync();
#endif
    __syncthreads();
  }
  // `value` of the block `other`, read from that block's shared memory.
  template <typename T>
  __device__ __forceinline__ T read(T& value, int other) const {
#if __CUDA_ARCH__ >= 900
    if (blocks > 1) return *cooperative_groups::this_cluster().map_shared_rank(&value, other);
#endif
    return value;
  }
};

// One row in pieces of 16 bytes. Its start need not be aligned (an odd vocabulary): `head` logits come
// before the first whole piece, and `tail` is the first after the last.
struct Pieces {
  int64_t head, count, tail, loose;  // loose: how many logits are in no piece, fewer than a warp
  template <typename T>
  __device__ __forceinline__ Pieces(const T* row, int64_t vocab) {
    const auto past = static_cast<int64_t>(reinterpret_cast<uintptr_t>(row) % sizeof(Packed<T>));
    const int64_t missing = past ? (sizeof(Packed<T>) - past) / sizeof(T) : 0;
    head = missing < vocab ? missing : vocab;
    count = (vocab - head) / Packed<T>::kSize;
    tail = head + count * Packed<T>::kSize;
    loose = head + vocab - tail;
  }
  __device__ __forceinline__ int64_t loose_column(int i) const {
    return i < head ? i : tail + (i - head);
  }
};

__device__ __forceinline__ int64_t checked_id(const int64_t* target, int64_t row, int64_t vocab) {
  const int64_t id = target[row];
  assert(id >= 0 && id < vocab && "row_logp: a target id is outside of the vocabulary");
  return id;
}

// Adds a few logits to the sums of `row`.
template <int n>
__device__ __forceinline__ void add(RowSums& row, const float (&x)[n], Exp exp) {
  RowSums few{ovlt::kNoToken, 0.0f, 0.0f};
#pragma unroll
  for (int i = 0; i < n; ++i) few.max = fmaxf(few.max, x[i]);  // skips a NaN
  const float from = ovlt::origin(few.max);
#pragma unroll
  for (int i = 0; i < n; ++i) {
    const float d = x[i] - from;
    const float e = exp(d);
    few.sum += e;
    if (e != 0.0f) few.dot += e * d;  // a masked token has d = -inf
  }
  row = ovlt::merge(row, few, exp);
}

// The sums of all threads of a block; only its thread 0 gets them.
__device__ __forceinline__ RowSums merge_block(RowSums mine, Exp exp) {
  __shared__ RowSums of_warp[kMaxThreads / kWarp];
  const auto merge_warp = [&exp](RowSums row) {
#pragma unroll
    for (int lanes = kWarp / 2; lanes > 0; lanes /= 2) {
      const RowSums other{
          __shfl_xor_sync(~0u, row.max, lanes), __shfl_xor_sync(~0u, row.sum, lanes),
          __shfl_xor_sync(~0u, row.dot, lanes)};
      row = ovlt::merge(row, other, exp);
    }
    return row;
  };
  mine = merge_warp(mine);
  if (threadIdx.x % kWarp == 0) of_warp[threadIdx.x / kWarp] = mine;
  __syncthreads();
  if (threadIdx.x >= kWarp) return mine;
  const bool there = threadIdx.x < blockDim.x / kWarp;
  return merge_warp(there ? of_warp[threadIdx.x] : RowSums{ovlt::kNoToken, 0.0f, 0.0f});
}

template <typename T>
__global__ void __launch_bounds__(kMaxThreads, kBlocksPerSm) row_stats_kernel(
    const T* __restrict__ logits, const int64_t* __restrict__ target,
    const float* __restrict__ inv_temperature, float* __restrict__ logp,
    float* __restrict__ entropy, float* __restrict__ lse, int64_t vocab) {
  constexpr int kSize = Packed<T>::kSize;
  const Team team;
  const int64_t row = team.row();
  const T* x = logits + row * vocab;
  const Pieces pieces(x, vocab);
  const auto* body = reinterpret_cast<const Packed<T>*>(x + pieces.head);
  const float scale = inv_temperature[row];
  const Exp exp{scale * kLog2E};
  const int thread = team.thread(), threads = team.threads();

  RowSums sums{ovlt::kNoToken, 0.0f, 0.0f};
  int64_t i = thread;
  for (; i + (kLoads - 1) * threads < pieces.count; i += kLoads * threads) {
    Packed<T> loaded[kLoads];
    float logit[kLoads * kSize];
#pragma unroll
    for (int j = 0; j < kLoads; ++j) loaded[j] = body[i + j * threads];
#pragma unroll
    for (int j = 0; j < kLoads; ++j) unpack(loaded[j], logit + j * kSize);
    add(sums, logit, exp);
  }
  for (; i < pieces.count; i += threads) {
    const Packed<T> loaded = body[i];
    float logit[kSize];
    unpack(loaded, logit);
    add(sums, logit, exp);
  }
  if (thread < pieces.loose) add(sums, {load(x[pieces.loose_column(thread)])}, exp);

  __shared__ RowSums of_block;
  sums = merge_block(sums, exp);
  if (team.blocks > 1) {
    if (threadIdx.x == 0) of_block = sums;
    team.sync();
    if (thread == 0)
      for (int other = 1; other < team.blocks; ++other)
        sums = ovlt::merge(sums, team.read(of_block, other), exp);
    team.sync();  // a block's shared memory is gone when it ends: not before it was read
  }
  if (thread == 0) {
    const float x_target = load(x[checked_id(target, row, vocab)]);
    const RowStats stats = ovlt::row_stats(sums, x_target, scale);
    logp[row] = stats.logp;
    entropy[row] = stats.entropy;
    lse[row] = stats.lse;
  }
}

template <typename T>
__global__ void __launch_bounds__(kMaxThreads, kBlocksPerSm) row_grad_kernel(
    T* logits, const int64_t* __restrict__ target, const float* __restrict__ inv_temperature,
    const float* __restrict__ stats, const float* __restrict__ upstream, int64_t rows,
    int64_t vocab) {
  constexpr int kSize = Packed<T>::kSize;
  const Team team;
  const int64_t r = team.row();
  T* x = logits + r * vocab;
  const Pieces pieces(x, vocab);
  auto* body = reinterpret_cast<Packed<T>*>(x + pieces.head);
  const int thread = team.thread(), threads = team.threads();
  const int64_t id = checked_id(target, r, vocab);
  const float g = upstream[r], h = upstream[rows + r];
  if (g == 0.0f && h == 0.0f) {  // 0 whatever the row holds, NaN included
    for (int64_t i = thread; i < pieces.count; i += threads)
      reinterpret_cast<uint4*>(body)[i] = uint4{0, 0, 0, 0};
    if (thread < pieces.loose) store(x + pieces.loose_column(thread), 0.0f);
    return;
  }
  const RowStats stats_of_row{stats[r], stats[rows + r], stats[2 * rows + r]};
  const RowGrad row = ovlt::row_grad(stats_of_row, g, h, load(x[id]), inv_temperature[r]);
  const Exp exp{kLog2E};
  team.sync();  // every thread has read the target's logit: now it may be overwritten

  const auto write_over = [&](Packed<T>& piece) {
    float logit[kSize];
    unpack(piece, logit);
#pragma unroll
    for (int j = 0; j < kSize; ++j) store(&piece.at[j], ovlt::logit_grad(logit[j], row, exp));
  };
  int64_t i = thread;
  for (; i + (kLoads - 1) * threads < pieces.count; i += kLoads * threads) {
    Packed<T> piece[kLoads];
#pragma unroll
    for (int j = 0; j < kLoads; ++j) piece[j] = body[i + j * threads];
#pragma unroll
    for (int j = 0; j < kLoads; ++j) {
      write_over(piece[j]);
      body[i + j * threads] = piece[j];
    }
  }
  for (; i < pieces.count; i += threads) {
    Packed<T> piece = body[i];
    write_over(piece);
    body[i] = piece;
  }
  if (thread < pieces.loose) {
    T* alone = x + pieces.loose_column(thread);
    store(alone, ovlt::logit_grad(load(*alone), row, exp));
  }
  team.sync();
  if (thread == 0) store(x + id, row.at_target);
}

void check_cuda(cudaError_t error, const char* what) {
  STD_TORCH_CHECK(error == cudaSuccess, "row_logp: ", what, ": ", cudaGetErrorString(error));
}

int attribute(cudaDeviceAttr which, int device) {
  int value = 0;
  check_cuda(cudaDeviceGetAttribute(&value, which, device), "cudaDeviceGetAttribute");
  return value;
}

// Thread blocks per row: one, or more if part of the GPU would otherwise be idle and each block still
// gets several rounds of loads.
template <typename Kernel>
int blocks_per_row(Kernel* kernel, int64_t rows, int64_t bytes, int device) {
  constexpr int64_t kLeast = 2 * kLoads * 16 * kMaxThreads;
  const int64_t capacity = kBlocksPerSm * attribute(cudaDevAttrMultiProcessorCount, device);
  int blocks = 1;
  while (blocks < kMaxCluster && 2 * blocks * rows <= capacity && 2 * blocks * kLeast <= bytes)
    blocks *= 2;
  if (blocks == 1) return 1;
  cudaFuncAttributes code{};  // code for an older architecture, compiled by the driver, has no clusters
  check_cuda(cudaFuncGetAttributes(&code, kernel), "cudaFuncGetAttributes");
  return code.ptxVersion >= 90 ? blocks : 1;
}

template <typename T, typename... Parameters, typename... Arguments>
void launch(void (*kernel)(Parameters...), const Tensor& logits, Arguments... arguments) {
  const int64_t rows = logits.size(0), bytes = logits.size(1) * static_cast<int64_t>(sizeof(T));
  if (rows == 0) return;
  const int device = logits.get_device_index();
  const torch::stable::accelerator::DeviceGuard guard(device);
  check_cuda(cudaSetDevice(device), "cudaSetDevice");  // for the runtime linked here; guard is torch's
  void* stream = nullptr;
  STD_TORCH_CHECK(
      aoti_torch_get_current_cuda_stream != nullptr, "row_logp: this torch was built without CUDA");
  STD_TORCH_CHECK(
      aoti_torch_get_current_cuda_stream(device, &stream) == AOTI_TORCH_SUCCESS,
      "row_logp: the device has no current stream");

  const int64_t blocks = blocks_per_row(kernel, rows, bytes, device);
  const int64_t warps = (bytes / blocks + 16 * kLoads * kWarp - 1) / (16 * kLoads * kWarp);
  STD_TORCH_CHECK(rows * blocks <= INT32_MAX, "row_logp: ", rows, " rows are more than a grid holds");
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(rows * blocks));
  config.blockDim = dim3(kWarp * static_cast<unsigned>(std::min<int64_t>(warps, kMaxThreads / kWarp)));
  config.stream = static_cast<cudaStream_t>(stream);
  cudaLaunchAttribute cluster{};
  cluster.id = cudaLaunchAttributeClusterDimension;
  cluster.val.clusterDim = {static_cast<unsigned>(blocks), 1, 1};
  config.attrs = &cluster;
  config.numAttrs = blocks > 1 ? 1 : 0;
  check_cuda(cudaLaunchKernelEx(&config, kernel, static_cast<Parameters>(arguments)...), "launch");
}

// Calls run(T{}) with the type of the logits.
template <typename Run>
void with_dtype(const Tensor& logits, Run run) {
  switch (logits.scalar_type()) {
    case ScalarType::Float: return run(float{});
    case ScalarType::BFloat16: return run(__nv_bfloat16{});
    case ScalarType::Half: return run(__half{});
    default: STD_TORCH_CHECK(false, "logits must be float32, bfloat16 or float16 on a GPU");
  }
}

std::tuple<Tensor, Tensor, Tensor> row_logp(
    const Tensor& logits, const Tensor& target, const Tensor& inv_temperature) {
  ovlt::check_rows(logits, target, inv_temperature);
  const int64_t rows = logits.size(0);
  Tensor logp = torch::stable::new_empty(logits, {rows}, ScalarType::Float);
  Tensor entropy = torch::stable::new_empty(logits, {rows}, ScalarType::Float);
  Tensor lse = torch::stable::new_empty(logits, {rows}, ScalarType::Float);
  with_dtype(logits, [&](auto type) {
    using T = decltype(type);
    launch<T>(
        &row_stats_kernel<T>, logits, static_cast<const T*>(logits.data_ptr()),
        target.const_data_ptr<int64_t>(), inv_temperature.const_data_ptr<float>(),
        logp.mutable_data_ptr<float>(), entropy.mutable_data_ptr<float>(),
        lse.mutable_data_ptr<float>(), logits.size(1));
  });
  return {logp, entropy, lse};
}

// stats is float32 [3, R]: logp, entropy, lse. upstream is float32 [2, R]: g, h.
void row_logp_grad_(
    Tensor logits, const Tensor& target, const Tensor& stats, const Tensor& upstream,
    const Tensor& inv_temperature) {
  ovlt::check_rows(logits, target, inv_temperature);
  ovlt::check_per_row(logits, stats, upstream);
  with_dtype(logits, [&](auto type) {
    using T = decltype(type);
    launch<T>(
        &row_grad_kernel<T>, logits, static_cast<T*>(logits.data_ptr()),
        target.const_data_ptr<int64_t>(), inv_temperature.const_data_ptr<float>(),
        stats.const_data_ptr<float>(), upstream.const_data_ptr<float>(), logits.size(0),
        logits.size(1));
  });
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(ovlt, CUDA, m) {
  m.impl("row_logp", TORCH_BOX(&row_logp));
  m.impl("row_logp_grad_", TORCH_BOX(&row_logp_grad_));
}
