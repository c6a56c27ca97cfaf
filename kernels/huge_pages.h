// Large outputs on huge pages: the kernel of Linux hands out fresh memory in pages of 4 KiB, each
// with a fault, and gradients of many media took longer to fault in than to compute.
#pragma once

#include <cstddef>
#include <cstdint>

#ifdef __linux__
#include <sys/mman.h>
#endif

namespace flamvid {

// Asks for huge pages inside [data, data + bytes) if that is large; a refusal changes nothing.
inline void huge_pages([[maybe_unused]] void* data, [[maybe_unused]] size_t bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  constexpr uintptr_t PAGE = 2 << 20;
  const uintptr_t from = reinterpret_cast<uintptr_t>(data);
  const uintptr_t begin = (from + PAGE - 1) / PAGE * PAGE, end = (from + bytes) / PAGE * PAGE;
  if (bytes >= 2 * PAGE) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#endif
}

}  // namespace flamvid
