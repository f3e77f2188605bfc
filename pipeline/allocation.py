"""How a processor's memory is handed out: large blocks that are freed are kept for the next step."""

import ctypes

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
KEPT_BYTES = 2**30  # blocks up to this size; the 256x256 activations of a batch are of a hundred MB


def keep_freed_memory() -> bool:
    """Ask glibc to keep freed blocks; return whether it does.

    By default it gives a block of more than 32 MB back to the kernel when it is freed, and the next step gets the same
    memory again page by page, each a fault that zeroes it. A step frees and asks for gigabytes.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and all(
        mallopt(option, size) for option, size in ((M_MMAP_THRESHOLD, KEPT_BYTES), (M_TRIM_THRESHOLD, 2**31 - 1))
    )
