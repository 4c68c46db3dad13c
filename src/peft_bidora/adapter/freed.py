"""Memory that was freed, given back to the system."""

import ctypes
import sys


def give_back_freed() -> None:
    """Let the C library give the pages that nothing uses back to the system, where it can: glibc.

    What each of many layers needs for a moment is freed between small tensors that stay, and glibc keeps such gaps. The
    next ones fit into them only in part.
    """
    if sys.platform == "linux" and (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)) is not None:
        trim(0)
