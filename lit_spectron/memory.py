"""How this process uses the machine's memory."""

import ctypes

# Of glibc's mallopt.
TRIM_THRESHOLD, MMAP_MAX = -1, -4
LARGEST = 2**31 - 1


def keep_freed_memory() -> None:
    """Has the C library keep what is freed, for the next step to use, where that can be had (glibc).

    Otherwise large tensors go back to the system when they are freed, and the next ones come from it anew, cleared page
    by page: in every step, for activations and gradients alike. The process stays as large as it ever was.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(TRIM_THRESHOLD, LARGEST)
        mallopt(MMAP_MAX, 0)
