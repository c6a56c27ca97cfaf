// flamvid::feed_few, cross_few and self_few for CPU: checks, threads and the registration.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <memory>
#include <optional>
#include <string>

#include "core.h"

namespace {

namespace step = flamvid::step;
namespace linear = flamvid::linear;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using Tensors = std::vector<Tensor>;

template <typename T>
T* data(const Tensor& x) {
  return static_cast<T*>(x.data_ptr());
}

// Contiguous, of that type and size, on a CPU: what a bare pointer stands for from here on.
void check(const Tensor& x, ScalarType type, int64_t size, const char* name) {
  STD_TORCH_CHECK(x.is_cpu() && x.scalar_type() == type && x.is_contiguous() && x.numel() == size,
                  "step: ", name, " must be a contiguous CPU tensor of ", size, " ",
                  torch::headeronly::toString(type), ", not ", x.numel(), " ",
                  torch::headeronly::toString(x.scalar_type()));
}

const float* floats(const Tensor& x, int64_t size, const char* name) {
  check(x, ScalarType::Float, size, name);
  return data<const float>(x);
}

// A weight and perhaps a bias; none: no norm.
step::Norm norm(const Tensors& parts, int64_t width, double eps, bool rms) {
  STD_TORCH_CHECK(parts.size() <= 2, "step: a norm is of a weight and a bias, not of ",
                  parts.size(), " tensors");
  return {parts.empty() ? nullptr : floats(parts[0], width, "a norm's weight"),
          parts.size() < 2 ? nullptr : floats(parts[1], width, "a norm's bias"),
          static_cast<float>(eps), rms};
}

// Float32 weights, or bytes, scales and offsets.
step::Dense dense(const Tensors& parts, int64_t width, const char* name) {
  STD_TORCH_CHECK((parts.size() == 1 || parts.size() == 3) && parts[0].dim() == 2, "step: ", name,
                  " must be one tensor [outputs,width] or the three of int8");
  const int64_t outputs = parts[0].size(0), size = outputs * width;
  STD_TORCH_CHECK(parts[0].size(1) == width, "step: ", name, " is ", parts[0].size(1),
                  " wide; must be ", width);
  if (parts.size() == 1) return {floats(parts[0], size, name), {}, outputs, width};
  STD_TORCH_CHECK(width % linear::GROUP == 0, "step: ", name, " is ", width,
                  " wide; int8 needs a multiple of ", linear::GROUP);
  check(parts[0], ScalarType::Char, size, name);
  return {nullptr,
          {data<const int8_t>(parts[0]), floats(parts[1], size / linear::GROUP, name),
           floats(parts[2], size / linear::GROUP, name)},
          outputs, width};
}

void check_outputs(const step::Dense& w, int64_t outputs, const char* name) {
  STD_TORCH_CHECK(w.outputs == outputs, "step: ", name, " has ", w.outputs, " outputs; must have ",
                  outputs);
}

step::Activation activation(const std::string& name) {
  if (name == "relu") return step::Activation::relu;
  if (name == "squared_relu") return step::Activation::squared_relu;
  if (name == "gelu") return step::Activation::gelu;
  STD_TORCH_CHECK(name == "silu_gated", "step: no activation ", name);
  return step::Activation::silu_gated;
}

float gate_of(const std::optional<Tensor>& gate) {
  return gate ? std::tanh(*floats(*gate, 1, "gate")) : 1;
}

template <typename T>
step::View<T> view(const Tensor& x, const char* name) {
  STD_TORCH_CHECK(x.is_cpu() && x.scalar_type() == ScalarType::Float && x.dim() == 4 &&
                      (x.size(3) == 1 || x.stride(3) == 1),
                  "step: ", name, " must be a float32 CPU tensor [B,H,K,d], d contiguous");
  return {data<T>(x), x.stride(0), x.stride(1), x.stride(2)};
}

Tensor fresh(const Tensor& x, int64_t rows, int64_t width) {
  return torch::stable::new_empty(x, {rows, width});
}

// All threads at once, or this one where `multiplications` are done before another is awake.
template <typename Part>
void together(int64_t multiplications, Part&& part) {
  const int64_t threads = multiplications < 200'000 ? 1 : torch::stable::get_num_threads();
  step::Team team(threads);
  // noexcept: without memory for one thread the others would wait for it without end.
  torch::stable::parallel_for(0, threads, 1, [&](int64_t first, int64_t last) noexcept {
    thread_local const auto own = std::make_unique<step::Scratch>();
    part(team, team.join(last - first), *own);
  });
}

const step::Isa& isa() {
  static const step::Isa best = step::best_isa();
  return best;
}

Tensor feed_few(const Tensor& given, const Tensors& norm_parts, double eps, bool rms,
                const Tensors& up_parts, const Tensors& down_parts, const std::string& kind,
                const std::optional<Tensor>& gate) {
  STD_TORCH_CHECK(given.dim() == 2, "feed_few: x must be [rows,width]");
  const Tensor x = torch::stable::contiguous(given);
  const int64_t rows = x.size(0), width = x.size(1);
  const step::Activation how = activation(kind);
  const bool gated = how == step::Activation::silu_gated;
  const step::Dense up = dense(up_parts, width, "up");
  const step::Dense down = dense(down_parts, up.outputs / (gated ? 2 : 1), "down");
  check_outputs(up, gated ? 2 * down.width : down.width, "up");
  check_outputs(down, width, "down");
  STD_TORCH_CHECK(!norm_parts.empty(), "feed_few: it has a norm");
  const Tensor wide = fresh(x, rows, up.outputs);
  const Tensor hidden = gated ? fresh(x, rows, down.width) : wide;
  Tensor out = fresh(x, rows, width);
  const step::Feed f{norm(norm_parts, width, eps, rms), up, down, how, gate_of(gate),
                     floats(x, rows * width, "x"), data<float>(wide), data<float>(hidden),
                     data<float>(out), rows, width};
  together(rows * width * (up.outputs + down.width),
           [&](step::Team& team, int64_t member, step::Scratch& own) {
             isa().feed(f, team, member, own);
           });
  return out;
}

Tensor cross_few(const Tensor& given, const Tensors& norm_parts, double eps, const Tensors& q_parts,
                 const Tensor& keys, const Tensor& values, const Tensor& index, int64_t start,
                 int64_t latents, const Tensors& out_parts, const std::optional<Tensor>& gate) {
  STD_TORCH_CHECK(given.dim() == 2, "cross_few: x must be [rows,width]");
  const Tensor x = torch::stable::contiguous(given);
  const int64_t rows = x.size(0), width = x.size(1);
  const step::View<const float> k = view<const float>(keys, "keys"),
                                v = view<const float>(values, "values");
  const int64_t prompts = keys.size(0), heads = keys.size(1), d = keys.size(3);
  STD_TORCH_CHECK(values.size(0) == prompts && values.size(1) == heads &&
                      values.size(2) == keys.size(2) && values.size(3) == d,
                  "cross_few: keys and values must have the same shape");
  STD_TORCH_CHECK(prompts > 0 && rows % prompts == 0, "cross_few: ", rows, " rows of ", prompts,
                  " prompts; must be as many of each");
  STD_TORCH_CHECK(latents > 0 && keys.size(2) % latents == 0, "cross_few: ", keys.size(2),
                  " keys of media with ", latents, " latents each; must be as many of each");
  STD_TORCH_CHECK(!norm_parts.empty(), "cross_few: it has a norm");
  STD_TORCH_CHECK(0 <= start && start <= INT32_MAX, "cross_few: media can't start at ", start);
  const Tensor own_index = torch::stable::contiguous(index);
  check(own_index, ScalarType::Int, rows, "index");
  const auto* at = data<const int32_t>(own_index);
  for (int64_t r = 0; r < rows; ++r) {
    STD_TORCH_CHECK(at[r] == -1 || (start <= at[r] && at[r] < start + keys.size(2) / latents),
                    "cross_few: index is ", at[r], "; must be -1 or one of the ",
                    keys.size(2) / latents, " media from ", start, " on");
  }
  const step::Dense to_q = dense(q_parts, width, "to_q");
  const step::Dense to_out = dense(out_parts, heads * d, "to_out");
  check_outputs(to_q, heads * d, "to_q");
  check_outputs(to_out, width, "to_out");
  const Tensor q = fresh(x, rows, heads * d), attended = fresh(x, rows, heads * d);
  Tensor out = fresh(x, rows, width);
  const step::Cross c{norm(norm_parts, width, eps, false),
                      to_q,
                      to_out,
                      gate_of(gate),
                      1 / std::sqrt(static_cast<float>(d)),
                      k,
                      v,
                      at,
                      start,
                      latents,
                      rows / prompts,
                      heads,
                      d,
                      floats(x, rows * width, "x"),
                      data<float>(q),
                      data<float>(attended),
                      data<float>(out),
                      rows,
                      width};
  together(rows * 2 * heads * d * (width + latents),
           [&](step::Team& team, int64_t member, step::Scratch& own) {
             isa().cross(c, team, member, own);
           });
  return out;
}

Tensor self_few(const Tensor& given, const Tensors& norm_parts, double eps, bool rms,
                const Tensors& qkv_parts, const Tensors& q_norm, const Tensors& k_norm,
                const Tensors& turn, const std::optional<Tensor>& slopes, const Tensor& keys,
                const Tensor& values, int64_t length, const std::optional<Tensor>& real,
                int64_t heads, double scale, const Tensors& out_parts) {
  STD_TORCH_CHECK(given.dim() == 2, "self_few: x must be [rows,width]");
  const Tensor x = torch::stable::contiguous(given);
  const int64_t rows = x.size(0), width = x.size(1);
  const step::View<float> k = view<float>(keys, "keys"), v = view<float>(values, "values");
  const int64_t groups = keys.size(1), d = keys.size(3);
  const int64_t texts = keys.size(0);
  STD_TORCH_CHECK(texts > 0 && rows % texts == 0 && values.size(0) == texts &&
                      values.size(1) == groups && values.size(3) == d,
                  "self_few: keys and values must be [texts,", groups, ",room,", d, "], and the ", rows,
                  " rows as many of each text");
  const int64_t each = rows / texts, room = std::min(keys.size(2), values.size(2));
  STD_TORCH_CHECK(length >= 0 && length <= room - each, "self_few: a cache of ", room,
                  " has no room for ", each, " tokens from ", length, " on");
  STD_TORCH_CHECK(groups > 0 && heads % groups == 0, "self_few: ", heads, " heads of ", groups,
                  " groups; must be as many of each");
  STD_TORCH_CHECK(!norm_parts.empty(), "self_few: it has a norm");
  const step::Dense qkv = dense(qkv_parts, width, "qkv"), out_w = dense(out_parts, heads * d, "out");
  check_outputs(qkv, (heads + 2 * groups) * d, "qkv");
  check_outputs(out_w, width, "out");
  const float *cosine = nullptr, *sine = nullptr;
  int64_t turn_step = 0;
  if (!turn.empty()) {
    STD_TORCH_CHECK(turn.size() == 2 && d % 2 == 0, "self_few: turn is a cosine and a sine");
    turn_step = turn[0].numel() == d ? 0 : d;
    STD_TORCH_CHECK(turn_step || each == 1, "self_few: tokens in succession turn each its own way");
    cosine = floats(turn[0], turn_step ? rows * d : d, "cosine");
    sine = floats(turn[1], turn_step ? rows * d : d, "sine");
  }
  if (real) check(*real, ScalarType::Bool, texts * (length + each), "real");
  const Tensor mixed = fresh(x, rows, qkv.outputs), attended = fresh(x, rows, heads * d);
  Tensor out = fresh(x, rows, width);
  const step::Self s{norm(norm_parts, width, eps, rms),
                     norm(q_norm, heads * d, eps, rms),
                     norm(k_norm, groups * d, eps, rms),
                     qkv,
                     out_w,
                     cosine,
                     sine,
                     turn_step,
                     slopes ? floats(*slopes, heads, "slopes") : nullptr,
                     k,
                     v,
                     real ? data<const uint8_t>(*real) : nullptr,
                     length,
                     each,
                     heads,
                     groups,
                     d,
                     static_cast<float>(scale),
                     floats(x, rows * width, "x"),
                     data<float>(mixed),
                     data<float>(attended),
                     data<float>(out),
                     rows,
                     width};
  together(rows * (width * (qkv.outputs + heads * d) + 2 * heads * d * length),
           [&](step::Team& team, int64_t member, step::Scratch& own) {
             isa().self(s, team, member, own);
           });
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(flamvid, CPU, m) {
  m.impl("feed_few", TORCH_BOX(&feed_few));
  m.impl("cross_few", TORCH_BOX(&cross_few));
  m.impl("self_few", TORCH_BOX(&self_few));
}
