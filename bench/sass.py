"""What the compiler made of the CUDA kernels: instructions of the tensor cores, copies, spills, registers.

Reads `yolonas._cuda` with CUDA's cuobjdump; needs no GPU.

python bench/sass.py [MODULE] [--arch sm_90] [--json FILE]

Ends with 1 where a convolution kernel lacks an instruction that it needs, or keeps values in local memory, and with 3
where the module, its code for the architecture or cuobjdump is missing.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

ARCH = "sm_90"
# What the convolutions are made of, by the beginning of an instruction's name. Between all of them each must be there.
WANTED = {
    "HMMA.16816": "products of 16x8x16 halves on the tensor cores",
    "IMMA.16832": "products of 16x8x32 bytes on the tensor cores",
    "LDGSTS": "copies from global to shared memory past the registers (cp.async)",
    "LDSM": "matrix loads from shared memory (ldmatrix)",
}
# And of those for Hopper alone, which the module has in code for sm_90a.
HOPPER = {
    "HGMMA": "products of halves by four warps (wgmma)",
    "IGMMA": "products of bytes by four warps (wgmma)",
    "LDGSTS": WANTED["LDGSTS"],
}
CONVOLUTIONS = re.compile(r"conv\w*_kernel")
TENSOR_CORES = re.compile(r"conv_kernel")
WARPGROUPS = re.compile(r"conv_warpgroup_kernel")
FAMILIES = (("conv_kernel", TENSOR_CORES, WANTED), ("conv_warpgroup_kernel", WARPGROUPS, HOPPER))
SPILLS = ("STL", "LDL")  # stores to local memory and loads from it
MOST_REGISTERS = 255  # of a thread; more do not exist, and with them a block has at most 256 threads
FUNCTION = re.compile(r"^\s*Function\s*:\s*(\S+)\s*$")
INSTRUCTION = re.compile(r"^\s*/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)")
USAGE = re.compile(r"^\s*Function\s+(\S+):\s*$")


class CannotReadError(Exception):
    """There is nothing to read, or nothing to read it with."""


@dataclass
class Kernel:
    """One kernel of one architecture.

    Attributes:
        symbol: the linker's name. opcodes: how often each instruction is there, with its suffixes. registers, stack,
            shared, local: of a thread, or bytes; static shared memory alone.
    """

    symbol: str
    opcodes: Counter[str] = field(default_factory=Counter)
    registers: int = 0
    stack: int = 0
    shared: int = 0
    local: int = 0
    readable: str = ""

    def count(self, beginning: str) -> int:
        """How many instructions begin so, as whole words: `LDL` is not `LDLX`."""
        return sum(
            number for name, number in self.opcodes.items() if name == beginning or name.startswith(f"{beginning}.")
        )

    @property
    def spills(self) -> int:
        return sum(self.count(name) for name in SPILLS)

    @property
    def name(self) -> str:
        """Without namespaces, return type and arguments: `conv_kernel<Half, 128, 64>`."""
        text = re.sub(r"\(anonymous namespace\)::|\b\w+::", "", self.readable or self.symbol)
        return text.removeprefix("void ").partition("(")[0]


def find_cuobjdump() -> str | None:
    """The program: `CUOBJDUMP`, on the path, beside nvcc, or in a Python package that carries it."""
    places = [os.environ.get("CUOBJDUMP"), shutil.which("cuobjdump")]
    if nvcc := shutil.which("nvcc"):
        places.append(str(Path(nvcc).resolve().parent / "cuobjdump"))
    places.append("/usr/local/cuda/bin/cuobjdump")
    for package, inside in (("triton", "backends/nvidia/bin"), ("nvidia", "cu13/bin")):
        spec = find_spec(package)
        places += (
            [str(Path(path, inside, "cuobjdump")) for path in (spec.submodule_search_locations or ())] if spec else []
        )
    return next((place for place in places if place and os.access(place, os.X_OK) and Path(place).is_file()), None)


def parse_sass(text: str) -> dict[str, Kernel]:
    """Kernels by symbol, from `cuobjdump --dump-sass`."""
    kernels: dict[str, Kernel] = {}
    current = None
    for line in text.splitlines():
        if match := FUNCTION.match(line):
            current = kernels.setdefault(match[1], Kernel(match[1]))
        elif current is not None and (match := INSTRUCTION.match(line)):
            current.opcodes[match[1]] += 1
    return kernels


def add_usage(text: str, kernels: dict[str, Kernel]) -> None:
    """Fills in registers and memory from `cuobjdump --dump-resource-usage`."""
    current = None
    for line in text.splitlines():
        if match := USAGE.match(line):
            current = kernels.setdefault(match[1], Kernel(match[1]))
        elif current is not None and "REG:" in line:
            numbers = {name: int(value) for name, value in re.findall(r"\b(REG|STACK|SHARED|LOCAL):(\d+)", line)}
            current.registers, current.stack = numbers.get("REG", 0), numbers.get("STACK", 0)
            current.shared, current.local = numbers.get("SHARED", 0), numbers.get("LOCAL", 0)
            current = None


def read(module: Path, arch: str = ARCH) -> list[Kernel]:
    """The kernels in a module, by name.

    Raises:
        CannotReadError: no cuobjdump, no such file, or no machine code for the architecture in it.
    """
    program = find_cuobjdump()
    if program is None:
        raise CannotReadError("no cuobjdump here: it comes with CUDA's toolkit (or name it with CUOBJDUMP)")
    if not module.is_file():
        raise CannotReadError(f"no file {module}")

    def dump(what: str) -> str:
        done = subprocess.run([program, what, "-arch", arch, str(module)], capture_output=True, text=True, check=False)
        if done.returncode:
            raise CannotReadError(f"cuobjdump {what}: {(done.stderr or done.stdout).strip()}")
        return done.stdout

    kernels = parse_sass(dump("--dump-sass"))
    if not kernels:
        raise CannotReadError(f"{module} has no machine code for {arch}")
    add_usage(dump("--dump-resource-usage"), kernels)
    for kernel, text in zip(kernels.values(), readable(kernels), strict=True):
        kernel.readable = text
    return sorted(kernels.values(), key=lambda kernel: kernel.name)


def readable(symbols: Iterable[str]) -> list[str]:
    """Symbols as C++ writes them, or as they are without a program that can."""
    symbols, program = list(symbols), shutil.which("c++filt")
    if program is None or not symbols:
        return symbols
    done = subprocess.run([program], input="\n".join(symbols), capture_output=True, text=True, check=False)
    lines = done.stdout.splitlines()
    return lines if len(lines) == len(symbols) else symbols


def of_convolutions(kernels: Iterable[Kernel], pattern: re.Pattern[str] = CONVOLUTIONS) -> list[Kernel]:
    return [kernel for kernel in kernels if pattern.search(kernel.symbol)]


def faults(kernels: Iterable[Kernel], arch: str = ARCH) -> list[str]:
    """What is wrong with the convolution kernels of an architecture from sm_80 on; empty if nothing is."""
    kernels = list(kernels)
    found = []
    for family, pattern, wanted in FAMILIES if arch == ARCH else FAMILIES[:1]:
        fast = of_convolutions(kernels, pattern)
        if not fast:
            found.append(f"no kernel is called {family}")
            continue
        for name, what in wanted.items():
            if not any(kernel.count(name) for kernel in fast):
                found.append(f"no {family} has {name}: {what}")
        products = [name for name in wanted if "MMA" in name]
        for kernel in fast:
            if not any(map(kernel.count, products)):
                found.append(f"{kernel.name} has none of {', '.join(products)}")
    for kernel in of_convolutions(kernels):
        if kernel.spills or kernel.stack or kernel.local:
            found.append(
                f"{kernel.name} keeps values in local memory: {kernel.count('STL')} STL, {kernel.count('LDL')} LDL, "
                f"STACK:{kernel.stack} LOCAL:{kernel.local}"
            )
        if kernel.registers > MOST_REGISTERS:
            found.append(f"{kernel.name} needs {kernel.registers} registers, more than {MOST_REGISTERS}")
    return found


COLUMNS = ("HMMA", "IMMA", "HGMMA", "IGMMA", "LDGSTS", "LDSM", "BAR", "STL", "LDL")


def table(kernels: Iterable[Kernel]) -> list[str]:
    """A line per kernel: registers, memory and how many of the instructions that matter."""
    kernels = list(kernels)
    width = min(72, max((len(kernel.name) for kernel in kernels), default=6))
    lines = [f"{'kernel':<{width}}  regs  stack shared " + " ".join(f"{name:>6}" for name in (*COLUMNS, "all"))]
    for kernel in kernels:
        counts = [*map(kernel.count, COLUMNS), sum(kernel.opcodes.values())]
        lines.append(
            f"{kernel.name[:width]:<{width}}  {kernel.registers:>4} {kernel.stack:>6} {kernel.shared:>6} "
            + " ".join(f"{count:>6}" for count in counts)
        )
    return lines


def as_json(kernels: Iterable[Kernel]) -> list[dict[str, Any]]:
    return [
        {
            **{"name": kernel.name, "registers": kernel.registers, "stack": kernel.stack, "shared": kernel.shared},
            "instructions": {name: kernel.count(name) for name in COLUMNS},
        }
        for kernel in kernels
    ]


def installed() -> Path:
    """The module of the package that Python finds."""
    from yolonas import _native

    module = _native.cuda()
    if module is None:
        raise CannotReadError("this build has no yolonas._cuda")
    return Path(str(module.__file__)).resolve()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("module", type=Path, nargs="?", help="default: that of the installed package")
    parser.add_argument("--arch", default=ARCH)
    parser.add_argument("--json", type=Path, metavar="FILE")
    arguments = parser.parse_args()
    try:
        kernels = read(arguments.module or installed(), arguments.arch)
    except CannotReadError as error:
        print(f"sass: {error}")
        return 3
    print("\n".join(table(kernels)))
    wrong = faults(kernels, arguments.arch)
    if arguments.json:
        arguments.json.write_text(json.dumps({"faults": wrong, "kernels": as_json(kernels)}, indent=1) + "\n")
    print(f"\n{len(kernels)} kernels for {arguments.arch}, {len(of_convolutions(kernels))} of them convolutions")
    for line in wrong:
        print(f"wrong: {line}")
    if not wrong:
        most = max((kernel.registers for kernel in of_convolutions(kernels)), default=0)
        print(f"convolutions: all instructions are there, nothing in local memory, at most {most} registers")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
