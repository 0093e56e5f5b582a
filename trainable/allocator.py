"""How the C library keeps memory between training steps."""

# What glibc reads when a process starts: freed memory is kept for the next step instead of being given back
# to the kernel, which would have to clear every page again. 32 MiB is the largest threshold that it accepts.
# Elsewhere these do nothing.
ALLOCATOR_ENVIRONMENT = {
    "MALLOC_MMAP_THRESHOLD_": str(32 * 2**20),
    "MALLOC_TRIM_THRESHOLD_": str(2**40),
    "MALLOC_TOP_PAD_": str(256 * 2**20),
}
