// Image preprocessing on CPUs: bicubic resize, normalise, cut into patches; and all three in one pass,
// in which the resized image exists as one row of blocks at a time, in the cache.
//
// bicubic.h and patches.h say what is computed. The rows of the output are divided among the threads;
// each works down its share in bands, and keeps the horizontally resized rows that the next band needs.

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <limits>
#include <memory>
#include <vector>

#include "bicubic.h"
#include "patches.h"

namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr int64_t kBandRows = 16;  // of a resize without patches: few rows are kept for the next band
constexpr int64_t kBytesPerTask = 1 << 18;  // less is done before a second thread has started

int64_t round_up(int64_t x, int64_t to) { return (x + to - 1) / to * to; }

// An image and how it is resized; shared by the threads, which only read it.
struct Resize {
  const uint8_t* image;  // [y.in, x.in, 3]
  ovlt::Axis y, x;
  int64_t band;       // rows of the output that are made together
  int64_t most_rows;  // rows of the image that any band needs
  bool height_first;  // Pillow's order of the passes, which shows in the pixels (see bicubic.h)
#ifdef OVLT_X86
  ovlt::Plan plan;
#endif

  Resize(const uint8_t* image, int64_t h, int64_t w, int64_t height, int64_t width, int64_t band)
      : image(image), y(ovlt::make_axis(h, height)), x(ovlt::make_axis(w, width)), band(band),
        most_rows(0), height_first(height < h && h - height > 2 * (w - width)) {
    for (int64_t i = 0; i < height; i += band)
      most_rows = std::max<int64_t>(most_rows, y.last(std::min(i + band, height) - 1) - y.first[i]);
#ifdef OVLT_X86
    if (ovlt::has_avx512() && !x.identity()) plan = ovlt::make_plan(x);
#endif
  }
};

// The work of one thread, from top to bottom.
class Worker {
 public:
  explicit Worker(const Resize& r)
      : r_(r), in_bytes_(3 * r.x.in), out_bytes_(3 * r.x.out), stride_(round_up(3 * r.x.out, 64)),
        rows_(r.most_rows) {
    if (!r.x.identity()) padded_ = std::make_unique<uint8_t[]>(4 * (in_bytes_ + ovlt::kOverread));
    if (!r.x.identity() && !r.y.identity() && !r.height_first)
      kept_.reset(new uint8_t[r.most_rows * stride_]);
  }

  // Writes rows [begin, end) of the output, at most a band, to out; begin never decreases.
  void run(int64_t begin, int64_t end, uint8_t* out, int64_t stride) {
    if (r_.y.identity()) {
      if (!r_.x.identity()) return horizontal(begin, end, out, stride);
      for (int64_t i = begin; i < end; ++i)
        std::memcpy(out + (i - begin) * stride, r_.image + i * in_bytes_, in_bytes_);
      return;
    }
    const int64_t first = r_.y.first[begin], last = r_.y.last(end - 1);
    if (r_.x.identity() || r_.height_first) {
      for (int64_t j = first; j < last; ++j) rows_[j - first] = r_.image + j * in_bytes_;
    } else {
      keep(first, last);
      for (int64_t j = first; j < last; ++j) rows_[j - first] = kept_.get() + (j - first) * stride_;
    }
    const bool both = r_.height_first && !r_.x.identity();
    const int64_t bytes = both ? in_bytes_ : out_bytes_;
    const uint8_t* in[4];
    uint8_t* to[4];
    for (int64_t i = begin; i < end;) {
      const int n = end - i >= 4 ? 4 : 1;
      for (int r = 0; r < n; ++r, ++i) {
        to[r] = out + (i - begin) * stride;
        uint8_t* made = both ? padded(r) : to[r];
        vertical(i, rows_.data() + (r_.y.first[i] - first), bytes, made);
        in[r] = made;
      }
      if (both) horizontal(n, in, to);
    }
  }

 private:
  // Fills kept_ with rows [first, last) of the image, resized in width.
  void keep(int64_t first, int64_t last) {
    const int64_t again = std::max<int64_t>(0, kept_end_ - first);
    if (again > 0)
      std::memmove(kept_.get(), kept_.get() + (first - kept_begin_) * stride_, again * stride_);
    horizontal(first + again, last, kept_.get() + again * stride_, stride_);
    kept_begin_ = first;
    kept_end_ = last;
  }

  // Rows [begin, end) of the image, resized in width.
  void horizontal(int64_t begin, int64_t end, uint8_t* out, int64_t stride) {
    const uint8_t* in[4];
    uint8_t* to[4];
    for (int64_t j = begin; j < end;) {
      const int n = end - j >= 4 ? 4 : 1;
      for (int r = 0; r < n; ++r) {
        in[r] = readable(j + r, r);
        to[r] = out + (j + r - begin) * stride;
      }
      horizontal(n, in, to);
      j += n;
    }
  }

  void horizontal(int n, const uint8_t* const* in, uint8_t* const* to) {
#ifdef OVLT_X86
    if (ovlt::has_avx512() && r_.plan.fits) {
      if (r_.plan.wide)
        return n == 4 ? ovlt::horizontal_avx512<true, 4>(r_.x, r_.plan, in, to)
                      : ovlt::horizontal_avx512<true, 1>(r_.x, r_.plan, in, to);
      return n == 4 ? ovlt::horizontal_avx512<false, 4>(r_.x, r_.plan, in, to)
                    : ovlt::horizontal_avx512<false, 1>(r_.x, r_.plan, in, to);
    }
#endif
    wide_.resize(4 * (r_.x.in + 3));
    for (int r = 0; r < n; ++r) ovlt::horizontal_plain(r_.x, in[r], to[r], wide_.data());
  }

  // Row j of the image, followed by kOverread bytes that may be read.
  const uint8_t* readable(int64_t j, int slot) {
    const uint8_t* row = r_.image + j * in_bytes_;
    if ((r_.y.in - 1 - j) * in_bytes_ >= ovlt::kOverread) return row;
    std::memcpy(padded(slot), row, in_bytes_);
    return padded(slot);
  }

  uint8_t* padded(int slot) { return padded_.get() + slot * (in_bytes_ + ovlt::kOverread); }

  void vertical(int64_t i, const uint8_t* const* rows, int64_t bytes, uint8_t* out) const {
    const ovlt::Axis& y = r_.y;
#ifdef OVLT_X86
    if (ovlt::has_avx512()) {
      const ovlt::Digits* digits = &y.digits[i * y.fours];
      return y.count[i] <= 4 ? ovlt::vertical_avx512<true>(rows, digits, y.count[i], bytes, out)
                             : ovlt::vertical_avx512<false>(rows, digits, y.count[i], bytes, out);
    }
#endif
    ovlt::vertical_plain(rows, &y.weight[i * y.fours * 4], y.count[i], bytes, out);
  }

  const Resize& r_;
  const int64_t in_bytes_, out_bytes_, stride_;
  std::vector<const uint8_t*> rows_;
  std::unique_ptr<uint8_t[]> padded_;      // four rows, each followed by what may be read beyond it
  std::unique_ptr<uint8_t[]> kept_;        // most_rows rows of out_bytes_
  std::vector<int32_t> wide_;              // scratch of horizontal_plain
  int64_t kept_begin_ = 0, kept_end_ = 0;  // rows of the image that kept_ holds
};

void check_image(const Tensor& image) {
  STD_TORCH_CHECK(
      image.dim() == 3 && image.size(2) == 3 && image.size(0) > 0 && image.size(1) > 0 &&
          image.is_cpu() && image.is_contiguous() && image.scalar_type() == ScalarType::Byte,
      "image must be a contiguous uint8 tensor [h, w, 3] on the CPU, with h, w > 0");
  STD_TORCH_CHECK(
      std::max(image.size(0), image.size(1)) < std::numeric_limits<int32_t>::max() / 8,
      "image has too long a side");
}

void check_size(int64_t height, int64_t width) {
  STD_TORCH_CHECK(
      height > 0 && width > 0 && std::max(height, width) < std::numeric_limits<int32_t>::max() / 8,
      "height and width must be > 0, not ", height, " and ", width);
}

ovlt::Patches check_patches(
    const Tensor& out, int64_t height, int64_t width, const Tensor& scale_shift, int64_t patch,
    int64_t merge, int64_t temporal) {
  STD_TORCH_CHECK(
      patch > 0 && merge > 0 && temporal > 0 && height % (patch * merge) == 0 &&
          width % (patch * merge) == 0,
      "height and width must be multiples of patch * merge");
  STD_TORCH_CHECK(
      scale_shift.dim() == 2 && scale_shift.size(0) == 2 && scale_shift.size(1) == 3 &&
          scale_shift.is_cpu() && scale_shift.is_contiguous() &&
          scale_shift.scalar_type() == ScalarType::Float,
      "scale_shift must be a contiguous float32 tensor [2, 3] on the CPU");
  const float* scale = scale_shift.const_data_ptr<float>();
  const ovlt::Patches p{patch, merge, temporal, scale, scale + 3};
  STD_TORCH_CHECK(
      out.dim() == 2 && out.size(0) == (height / patch) * (width / patch) &&
          out.size(1) == p.values() && out.is_cpu() && out.is_contiguous() &&
          out.scalar_type() == ScalarType::Float,
      "out must be a contiguous float32 tensor [patches, 3 * temporal * patch * patch] on the CPU");
  return p;
}

// Calls f(begin, end) over the bands, each of which reads and writes about `bytes` bytes.
template <typename F>
void over_bands(int64_t bands, int64_t bytes, bool parallel, const F& f) {
  const int64_t grain = std::max<int64_t>(1, kBytesPerTask / std::max<int64_t>(1, bytes));
  if (parallel && bands > grain)
    torch::stable::parallel_for(0, bands, grain, f);
  else
    f(0, bands);
}

void resize_bicubic(const Tensor& image, Tensor out, bool parallel) {
  check_image(image);
  STD_TORCH_CHECK(
      out.dim() == 3 && out.size(2) == 3 && out.is_cpu() && out.is_contiguous() &&
          out.scalar_type() == ScalarType::Byte,
      "out must be a contiguous uint8 tensor [height, width, 3] on the CPU");
  const int64_t height = out.size(0), width = out.size(1), stride = 3 * width;
  check_size(height, width);
  const Resize resize(
      image.const_data_ptr<uint8_t>(), image.size(0), image.size(1), height, width, kBandRows);
  uint8_t* data = out.mutable_data_ptr<uint8_t>();
  const int64_t bands = (height + kBandRows - 1) / kBandRows;
  const int64_t bytes = (height * width + image.size(0) * image.size(1)) * 3 / bands;
  over_bands(bands, bytes, parallel, [&](int64_t begin, int64_t end) {
    Worker worker(resize);
    for (int64_t b = begin; b < end; ++b) {
      const int64_t row = b * kBandRows;
      worker.run(row, std::min(row + kBandRows, height), data + row * stride, stride);
    }
  });
}

void patchify(
    const Tensor& image, const Tensor& scale_shift, Tensor out, int64_t patch, int64_t merge,
    int64_t temporal, bool parallel) {
  check_image(image);
  const int64_t height = image.size(0), width = image.size(1);
  const ovlt::Patches p = check_patches(out, height, width, scale_shift, patch, merge, temporal);
  const int64_t values = p.band() * width * 3 * temporal;  // floats of one band
  const uint8_t* rows = image.const_data_ptr<uint8_t>();
  float* data = out.mutable_data_ptr<float>();
  over_bands(height / p.band(), values * sizeof(float), parallel, [&](int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; ++b)
      ovlt::write_band(p, rows + b * p.band() * 3 * width, 3 * width, width, data + b * values);
  });
}

void preprocess(
    const Tensor& image, int64_t height, int64_t width, const Tensor& scale_shift, Tensor out,
    int64_t patch, int64_t merge, int64_t temporal, bool parallel) {
  check_image(image);
  check_size(height, width);
  const ovlt::Patches p = check_patches(out, height, width, scale_shift, patch, merge, temporal);
  const Resize resize(
      image.const_data_ptr<uint8_t>(), image.size(0), image.size(1), height, width, p.band());
  const int64_t values = p.band() * width * 3 * temporal, stride = round_up(3 * width, 64);
  float* data = out.mutable_data_ptr<float>();
  over_bands(height / p.band(), values * sizeof(float), parallel, [&](int64_t begin, int64_t end) {
    Worker worker(resize);
    const std::unique_ptr<uint8_t[]> rows(new uint8_t[p.band() * stride]);
    for (int64_t b = begin; b < end; ++b) {
      worker.run(b * p.band(), (b + 1) * p.band(), rows.get(), stride);
      ovlt::write_band(p, rows.get(), stride, width, data + b * values);
    }
  });
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(ovlt, m) {
  m.def("resize_bicubic(Tensor image, Tensor(a!) out, bool parallel) -> ()");
  m.def(
      "patchify(Tensor image, Tensor scale_shift, Tensor(a!) out, int patch, int merge, "
      "int temporal, bool parallel) -> ()");
  m.def(
      "preprocess(Tensor image, int height, int width, Tensor scale_shift, Tensor(a!) out, "
      "int patch, int merge, int temporal, bool parallel) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(ovlt, CPU, m) {
  m.impl("resize_bicubic", TORCH_BOX(&resize_bicubic));
  m.impl("patchify", TORCH_BOX(&patchify));
  m.impl("preprocess", TORCH_BOX(&preprocess));
}
