"""Writes what the sides of the benchmarks of networks read: one network with the tests' recipe weights, in all formats.

Each writer runs in a process of its own, so that the benchmark's stays small and quiet.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from timing import ROOT

if TYPE_CHECKING:
    import torch

    from yolonas.nn import YoloNAS

OUTPUTS = ("cls8", "cls16", "cls32", "reg8", "reg16", "reg32")  # class and box logits, (N, C, h, w) each
CALIBRATION_SEEDS = range(1001, 1009)  # one picture each; the input that is timed has seed 0
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

    @property
    def key(self) -> str:
        return f"{self.variant}_{self.size}_{self.batch}_{self.threads}"

    def path(self, folder: Path, suffix: str) -> Path:
        return folder / f"{self.variant}_{self.size}_{self.batch}.{suffix}"


def picture(case: Case) -> np.ndarray:
    """The input `(N, 3, H, W)`: other values for every picture of a batch."""
    from golden_recipe import make_input

    return np.concatenate([make_input(seed, (1, 3, case.size, case.size)) for seed in range(case.batch)])


def calibration(case: Case) -> Iterator[np.ndarray]:
    """Pictures `(1, 3, H, W)` that int8 ranges are taken from, the same for every side."""
    from golden_recipe import make_input

    return (make_input(seed, (1, 3, case.size, case.size)) for seed in CALIBRATION_SEEDS)


def flat(model: YoloNAS) -> torch.nn.Module:
    """A folded network as a torch module that returns `OUTPUTS`."""
    import torch

    class Flat(torch.nn.Module):
        def __init__(self, model: YoloNAS):
            super().__init__()
            self.model = model

        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
            # not forward_heads: its checks of the input would become part of a traced graph
            cls, reg = self.model.heads(*self.model.neck(*self.model.backbone(x)))
            return (*cls, *reg)

    return Flat(model).eval()


def network(variant: str) -> Any:
    """The network with the recipe's weights, as `flat` makes it."""
    from golden_recipe import fill_

    from yolonas.nn import YoloNAS, fuse_

    return flat(fuse_(fill_(YoloNAS(variant)).eval()))


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


def write_nncf(case: Case, folder: Path, *, preset: str = "performance", suffix: str = "int8.xml") -> None:
    """NNCF's int8 of OpenVINO's model, with the settings that it has unasked."""
    import nncf
    import openvino

    quantized = nncf.quantize(
        openvino.Core().read_model(case.path(folder, "xml")),
        nncf.Dataset([{"x": x} for x in calibration(case)]),
        preset=nncf.QuantizationPreset(preset),
    )
    openvino.save_model(quantized, case.path(folder, suffix), compress_to_fp16=False)


def write_onnx_int8(case: Case, folder: Path) -> None:
    """ONNX Runtime's static quantisation. Weights have seven bits, without which its sums saturate on AVX2."""
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class Pictures(CalibrationDataReader):
        def __init__(self) -> None:
            self.inputs = calibration(case)

        def get_next(self) -> dict[str, np.ndarray] | None:
            x = next(self.inputs, None)
            return None if x is None else {"x": x}

    quantize_static(
        case.path(folder, "onnx"),
        case.path(folder, "int8.onnx"),
        Pictures(),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        reduce_range=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
    )


def write_yolonas_int8(case: Case, folder: Path) -> None:
    """Our int8 with the settings that it has unasked."""
    from yolonas.native_engine import NativeEngine
    from yolonas.quantization import collect_histograms
    from yolonas.quantization.ranges import set_ranges

    model = network(case.variant).model
    pictures = (np.ascontiguousarray(x.transpose(0, 2, 3, 1)) for x in calibration(case))
    set_ranges(model, collect_histograms(NativeEngine.of_module(model), pictures))
    case.path(folder, "int8.engine").write_bytes(NativeEngine.of_module(model).native.serialize())


# What writes a format, and the suffix of the file that it writes last.
WRITERS: dict[str, tuple[Callable[[Case, Path], None], str]] = {
    "reference": (write_reference, "json"),
    "onnx": (write_onnx, "onnx"),
    "openvino": (write_openvino, "bin"),
    "ncnn": (write_ncnn, "ncnn.bin"),
    "yolonas": (write_yolonas, "engine"),
    "yolonas int8": (write_yolonas_int8, "int8.engine"),
    "nncf": (write_nncf, "int8.bin"),
    "nncf mixed": (partial(write_nncf, preset="mixed", suffix="mixed.xml"), "mixed.bin"),
    "onnx int8": (write_onnx_int8, "int8.onnx"),
}


def write(case: Case, folder: Path, formats: Iterable[str], *, reuse: bool = False) -> dict[str, str]:
    """Writes a case's files. Returns the formats that could not be written, with the reason.

    Args:
        reuse: keep what is there already. Our own files are always written again.
    """
    failed = {}
    for name in formats:
        path = case.path(folder, WRITERS[name][1])
        if reuse and not name.startswith("yolonas") and path.exists():
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
