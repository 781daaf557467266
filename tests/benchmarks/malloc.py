"""The malloc settings of docs/performance.md, for benchmarks that start processes."""

# Freed memory stays with the process, in one heap, on huge pages.
TUNED = ":".join(
    f"glibc.malloc.{name}={value}"
    for name, value in {
        "hugetlb": 1,
        "mmap_max": 0,
        "trim_threshold": 16 << 30,
        "top_pad": 64 << 20,
        "arena_max": 1,
    }.items()
)
