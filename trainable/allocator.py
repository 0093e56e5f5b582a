"""Settings of glibc's memory allocator for training processes."""

# glibc reads these variables when a process starts. They make it keep freed memory for the next training step;
# otherwise it returns the memory to the kernel, which clears every page again. 32 MiB is the largest threshold that
# glibc accepts. Other C libraries ignore the variables.
ALLOCATOR_ENVIRONMENT = {
    "MALLOC_MMAP_THRESHOLD_": str(32 * 2**20),
    "MALLOC_TRIM_THRESHOLD_": str(2**40),
    "MALLOC_TOP_PAD_": str(256 * 2**20),
}
