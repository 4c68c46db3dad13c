"""How much memory this process has used at most."""

import sys

import torch


def peak_memory_bytes() -> int:
    """Return the peak of the CUDA allocator, or of this process's resident memory where there is no device."""
    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    if sys.platform == "win32":
        import psutil  # comes with accelerate

        return int(psutil.Process().memory_info().peak_wset)
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # Linux counts KiB
