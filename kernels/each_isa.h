// FLAMVID_BODY, a file as seen from here, once for each instruction set.
//
// No include guard: the includer defines FLAMVID_BODY. The body finds FLAMVID_ISA, a namespace,
// FLAMVID_FN, the attributes of its functions, and FLAMVID_LANES, the floats of a vector.

#define FLAMVID_ISA plain
#define FLAMVID_FN inline
#define FLAMVID_LANES 4
#include FLAMVID_BODY
#undef FLAMVID_ISA
#undef FLAMVID_FN
#undef FLAMVID_LANES

#if defined(__x86_64__) && defined(__GNUC__)
#define FLAMVID_ISA avx2
#define FLAMVID_FN __attribute__((target("avx2,fma"))) inline
#define FLAMVID_LANES 8
#include FLAMVID_BODY
#undef FLAMVID_ISA
#undef FLAMVID_FN
#undef FLAMVID_LANES

#define FLAMVID_ISA avx512
#define FLAMVID_FN __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma"))) inline
#define FLAMVID_LANES 16
#include FLAMVID_BODY
#undef FLAMVID_ISA
#undef FLAMVID_FN
#undef FLAMVID_LANES
#endif
#undef FLAMVID_BODY
