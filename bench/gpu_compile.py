"""Lets torch.compile do its minutes of work ahead of the benchmark, and keep the result in its caches.

python bench/gpu_compile.py [s m]

Writes a mark per case that is done; `gpu.py` times torch.compile only where the mark is there. Whoever starts it ends
it when time is up.
"""

from __future__ import annotations

import sys
import time

import gpu_sides
import torch
from gpu_aims import GpuCase


def main() -> int:
    if not torch.cuda.is_available():
        print("gpu_compile: no CUDA device that torch can use")
        return 3
    gpu_sides.compile_environment()
    gpu_sides.strict_fp32()
    for variant in sys.argv[1:] or ["s", "m"]:
        case = GpuCase(variant)
        start = time.perf_counter()
        x = torch.rand((1, 3, case.size, case.size), device="cuda").half().contiguous(memory_format=torch.channels_last)
        gpu_sides.compiled(
            gpu_sides.torch_module(variant, half=True), [x, x.clone(memory_format=torch.preserve_format)]
        )
        torch.cuda.synchronize()
        seconds = time.perf_counter() - start
        gpu_sides.write_mark(case, seconds)
        print(f"torch.compile of {case.name}: {seconds:.0f} s", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
