"""Writes what the sides of the network benchmark read: one network with the tests' recipe weights, in every format.

Each writer runs in a process of its own, so that the benchmark's stays small and quiet.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from timing import ROOT

OUTPUTS = ("cls8", "cls16", "cls32", "reg8", "reg16", "reg32")  # class and box logits, (N, C, h, w) each
sys.path.append(str(ROOT / "tests"))  # the recipe


@dataclass(frozen=True)
class Case:
    """A network and how it is run."""

    variant: str
    size: int = 640
    batch: int = 1
    threads: int = 2

    @property
    def name(self) -> str:
        batch = "" if self.batch == 1 else f", batch {self.batch}"
        return f"{self.variant.upper()} at {self.size}{batch}, {self.threads} thread{'s'[: self.threads - 1]}"

    def path(self, folder: Path, suffix: str) -> Path:
        return folder / f"{self.variant}_{self.size}_{self.batch}.{suffix}"


def picture(case: Case) -> np.ndarray:
    """The input `(N, 3, H, W)`: other values for every picture of a batch."""
    from golden_recipe import make_input

    return np.concatenate([make_input(seed, (1, 3, case.size, case.size)) for seed in range(case.batch)])


def network(variant: str) -> Any:
    """The folded network, as a torch module that returns `OUTPUTS`."""
    import torch
    from golden_recipe import fill_

    from yolonas.nn import YoloNAS, fuse_

    class Flat(torch.nn.Module):
        def __init__(self, model: YoloNAS):
            super().__init__()
            self.model = model

        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
            # not forward_heads: its checks of the input would become part of a traced graph
            cls, reg = self.model.heads(*self.model.neck(*self.model.backbone(x)))
            return (*cls, *reg)

    return Flat(fuse_(fill_(YoloNAS(variant)).eval())).eval()


def write_reference(case: Case, folder: Path) -> None:
    """Input, outputs in float64, and the operations of a direct convolution."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    x, module = picture(case), network(case.variant)
    np.save(case.path(folder, "input.npy"), x)
    with FlopCounterMode(display=False) as counter, torch.no_grad(), torch.device("meta"):
        module.to("meta")(torch.empty(x.shape))
    module = network(case.variant).double()
    with torch.inference_mode():
        outputs = [module(torch.from_numpy(one[None]).double()) for one in x]
    joined = [torch.cat(level).numpy() for level in zip(*outputs, strict=True)]
    np.savez(case.path(folder, "reference.npz"), **dict(zip(OUTPUTS, joined, strict=True)))
    case.path(folder, "json").write_text(json.dumps({"gflop": counter.get_total_flops() / 1e9}))


def write_onnx(case: Case, folder: Path) -> None:
    import torch

    with torch.no_grad():
        torch.onnx.export(
            network(case.variant),
            (torch.from_numpy(picture(case)),),
            case.path(folder, "onnx"),
            input_names=["x"],
            output_names=list(OUTPUTS),
            dynamo=True,
            external_data=False,
        )


def write_openvino(case: Case, folder: Path) -> None:
    """OpenVINO's own format, which it maps into memory, from the ONNX file."""
    import openvino

    model = openvino.Core().read_model(case.path(folder, "onnx"))
    openvino.save_model(model, case.path(folder, "xml"), compress_to_fp16=False)


def write_ncnn(case: Case, folder: Path) -> None:
    """ncnn has no batch: its file is that of one picture."""
    import pnnx
    import torch

    x = torch.from_numpy(picture(case)[:1])
    with torch.no_grad():
        pnnx.export(network(case.variant), str(case.path(folder, "pt")), (x,), check_trace=False, fp16=False)


def write_yolonas(case: Case, folder: Path) -> None:
    """The native engine's own form, which is read without torch."""
    from yolonas.native_engine import NativeEngine

    case.path(folder, "engine").write_bytes(NativeEngine.of_module(network(case.variant).model).native.serialize())


# What writes a format, and the suffix of the file that it writes last.
WRITERS: dict[str, tuple[Callable[[Case, Path], None], str]] = {
    "reference": (write_reference, "json"),
    "onnx": (write_onnx, "onnx"),
    "openvino": (write_openvino, "bin"),
    "ncnn": (write_ncnn, "ncnn.bin"),
    "yolonas": (write_yolonas, "engine"),
}


def write(case: Case, folder: Path, formats: Iterable[str], *, reuse: bool = False) -> dict[str, str]:
    """Writes a case's files. Returns the formats that could not be written, with the reason.

    Args:
        reuse: keep what is there already. Our own file is always written again.
    """
    failed = {}
    for name in formats:
        path = case.path(folder, WRITERS[name][1])
        if reuse and name != "yolonas" and path.exists():
            continue
        path.unlink(missing_ok=True)
        arguments = [name, case.variant, str(case.size), str(case.batch), str(folder)]
        done = subprocess.run(
            [sys.executable, __file__, *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )
        if done.returncode or not path.exists():
            failed[name] = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
    return failed


def program(source: str, folder: Path, *flags: str) -> Path | None:
    """Compiles a C++ file of this folder; None without a compiler that can."""
    path = folder / Path(source).stem
    command = [os.environ.get("CXX", "c++"), "-O2", "-std=c++17", *flags, str(ROOT / "bench" / source), "-o", str(path)]
    try:
        subprocess.run(command, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return path


if __name__ == "__main__":
    WRITERS[sys.argv[1]][0](Case(sys.argv[2], int(sys.argv[3]), int(sys.argv[4])), Path(sys.argv[5]))
