// What this processor can do, of that which each_isa.h compiles for.
//
// FLAMVID_BEST(x) is x of the best instruction set: plain::x, avx2::x or avx512::x.
// FLAMVID_EACH(DO) is DO(plain), DO(avx2) and DO(avx512), of those that this processor has.
#pragma once

namespace flamvid {

#if defined(__x86_64__) && defined(__GNUC__)
inline bool has_avx2() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }

inline bool has_avx512() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}

#define FLAMVID_BEST(x) \
  (flamvid::has_avx512() ? avx512::x : flamvid::has_avx2() ? avx2::x : plain::x)
#define FLAMVID_EACH(DO)                   \
  do {                                     \
    DO(plain);                             \
    if (flamvid::has_avx2()) DO(avx2);     \
    if (flamvid::has_avx512()) DO(avx512); \
  } while (false)
#else
#define FLAMVID_BEST(x) plain::x
#define FLAMVID_EACH(DO) DO(plain)
#endif

}  // namespace flamvid
