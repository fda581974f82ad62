"""The networks on a GPU: ours in fp16, fp32 and int8 against torch eager, in a CUDA graph and compiled.

Needs an NVIDIA GPU with its driver, torch for CUDA, and a build with `yolonas._cuda`; `bash bench/gpu_all.sh` builds,
tests and measures in one go. Says so and ends with 3 elsewhere.

python bench/gpu.py [--save | --output FILE] [--rounds 9] [--seconds 300] [--cases s_640_1 ...]

Weights are the tests' recipe; the mean average precision is that of the checkpoint in `../shared`, where that is.
torch.compile takes minutes: it is timed where `gpu_compile.py` has done that work before.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gpu_aims as aims
import numpy as np
from gpu_aims import CASES, GpuCase
from gpu_timer import CLOCKS, Budget, Clock, CudaClock, clocks_while_busy, compare, in_turn, limited, query
from timing import ROOT, machine, save, versions

if TYPE_CHECKING:
    from gpu_sides import Detection, Side

ABOUT_L2 = (
    "inputs rotate over more bytes than the L2 cache has; weights stay in it as far as they fit; "
    "`apart_ms`: the cache was overwritten before every call"
)
PACKAGES = ("torch", "triton", "nvidia-cudnn-cu13", "numpy")
SECONDS = {"case": 25.0, "batch": 40.0, "steps": 10.0, "tuning": 30.0, "accuracy": 45.0}  # about, for the time limit
STEP_ROUNDS = 20
COMPILE_SECONDS = 60.0

# Says why a side's results are wrong, or "", and what to note about them.
Judge = Callable[[str, list[np.ndarray]], tuple[str, dict[str, float]]]


def is_first(case: GpuCase) -> bool:
    """Whether it is the case that goes from pixels to boxes too."""
    return case.variant == "s" and case.single


def missing_here() -> str:
    """Why nothing can be measured here; empty if it can."""
    import torch

    from yolonas import _native

    advice = "run `bash bench/gpu_all.sh` on a machine with an NVIDIA GPU"
    if not torch.cuda.is_available():
        built = torch.version.cuda or "no CUDA"
        return f"no CUDA device that torch {torch.__version__} (built for {built}) can use; {advice}"
    module = _native.cuda()
    if module is None:
        return f"this build has no yolonas._cuda (no CUDA compiler was found); {advice}, which builds it"
    if not hasattr(module, "Engine"):
        return "yolonas._cuda has no Engine in this build"
    if module.device_count() < 1:
        return f"the driver shows yolonas no device; {advice}"
    return ""


def measure_ceilings(torch: Any, clock: Clock, rounds: int = 5) -> dict[str, float]:
    """The rates of large matrix products and of a copy, through torch."""
    n = 8192
    found = {}

    def product(name: str, a: Any, b: Any, multiply: Callable[..., Any], scale: float = 1e-9) -> None:
        try:
            times = compare({name: lambda: multiply(a, b)}, clock, rounds=rounds, seconds=0.1)
        except RuntimeError as error:
            print(f"  {name}: not measured: {first_line(error)}")
            return
        found[name] = round(2.0 * n**3 / times[name]["median_ms"] * scale, 1)

    a, b = (torch.randn((n, n), device="cuda") for _ in range(2))
    product("fp32_tflops", a, b, torch.matmul)
    product("fp16_tflops", a.half(), b.half(), torch.matmul)
    ints = [torch.randint(-127, 128, (n, n), device="cuda", dtype=torch.int8) for _ in range(2)]
    product("int8_tops", ints[0], ints[1].t(), torch._int_mm)
    source = torch.empty(1 << 30, dtype=torch.float32, device="cuda").normal_()
    target = torch.empty_like(source)
    times = compare({"copy": lambda: target.copy_(source)}, clock, rounds=rounds, seconds=0.05)
    found["copy_gbs"] = round(2.0 * source.nbytes / times["copy"]["median_ms"] * 1e-6, 1)
    return found


def first_line(error: BaseException) -> str:
    return (f"{type(error).__name__}: {error}".splitlines() or [""])[0]


# --- one case ---


def run_case(
    case: GpuCase,
    makers: Mapping[str, Callable[[], Side]],
    judge: Judge,
    clock: Clock,
    *,
    inputs: Mapping[str, int],
    rounds: int,
    apart: tuple[str, ...] = (),
) -> dict[str, Any]:
    """Times of the sides that run here, in turn, and what is wrong with the others.

    Args:
        inputs: how many inputs each side has. apart: sides that are also timed call by call with empty caches.
    """
    row: dict[str, Any] = {"case": case.name}
    row |= {name: {} for name in ("about", "missing", "wrong", "found", "apart_ms", "times")}
    sides: dict[str, Side] = {}
    for name, make in makers.items():
        try:
            side = make()
            side.run(0)
            row["wrong"][name], row["found"][name] = judge(name, side.read())
        except Exception as error:
            row["missing"][name] = first_line(error)
            traceback.print_exc()
            continue
        row["about"][name] = side.about
        sides[name] = side
    row["wrong"] = {name: text for name, text in row["wrong"].items() if text}
    if sides:
        runs = {name: in_turn(side.run, inputs[name]) for name, side in sides.items()}
        row["times"] = compare(runs, clock, rounds=rounds)
        for name in apart:
            if name in sides:
                row["apart_ms"][name] = float(np.median(clock.measure_apart(runs[name], 50)))
    return row


def print_case(key: str, row: Mapping[str, Any], ceilings: Mapping[str, float]) -> None:
    print(f"\n{row['case']} ({key}): {row.get('gflop', 0.0):.1f} GFLOP as a direct convolution counts them")
    width = max(map(len, [*row["about"], *row["missing"]]), default=0)
    for side, times in row["times"].items():
        rate = row.get("gflop", 0.0) / times["median_ms"]
        ceiling = ceilings.get("int8_tops" if "int8" in side else "fp32_tflops" if "fp32" in side else "fp16_tflops")
        share = f" ({rate / ceiling:4.0%} of the ceiling)" if ceiling and "boxes" not in side else ""
        apart = f", apart {row['apart_ms'][side]:.3f}" if side in row["apart_ms"] else ""
        noted = ", ".join(f"{name} {value:.3g}" for name, value in row["found"][side].items())
        print(
            f"  {side:<{width}} {times['median_ms']:8.3f} ms ({times['min_ms']:.3f} to {times['max_ms']:.3f}{apart})"
            f" {rate:6.1f} TFLOP/s{share}   {noted}"
        )
    for side, reason in row["wrong"].items():
        print(f"  {side:<{width}} WRONG: {reason}")
    for side, reason in row["missing"].items():
        print(f"  {side:<{width}} not timed: {reason}")
    sys.stdout.flush()


def print_ratios(found: list[dict[str, Any]]) -> None:
    print("\nWhat was aimed at:")
    for line in found:
        peer = f", {line['peer']}" if line["peer"] and line["peer"] not in line["what"] else ""
        print(f"  {line['case']:<9} {line['what']}{peer}: {line['ratio']:.3f}   {aims.reached(line)}".rstrip())


def judge_heads(
    name: str, outputs: list[np.ndarray], single: list[np.ndarray], integer: list[np.ndarray] | None
) -> Any:
    """A side's logits against the CPU engine's: float32, or int8 bit for bit."""
    noted = {"difference": aims.difference(outputs, single), "sqnr_db": aims.sqnr_db(outputs, single)}
    if name != aims.INT8:
        limit = aims.TOLERANCE[aims.FP32 if "fp32" in name else aims.FP16]
        fine = noted["difference"] <= limit
        return "" if fine else f"differs by {noted['difference']:.1e} of the largest value, at most {limit:.0e}", noted
    assert integer is not None
    exact = all(map(np.array_equal, outputs, integer))
    noted["equal_to_cpu"] = float(exact)
    if not exact:
        return f"not the bits of the CPU engine: differs by {aims.difference(outputs, integer):.1e}", noted
    return "" if noted["sqnr_db"] >= aims.LEAST_SQNR else f"{noted['sqnr_db']:.1f} dB", noted


def judge_boxes(found: np.ndarray, expected: np.ndarray) -> tuple[str, dict[str, float]]:
    share = aims.matched(found, expected, pixels=2.0, score=2e-2)
    noted = {"boxes": float(len(found)), "cpu_boxes": float(len(expected)), "matched": share}
    return "" if share >= 0.9 else f"only {share:.0%} of the boxes are those of the CPU engine", noted


class Bench:
    """The parts of the benchmark, in the order of their weight. Each adds to `result`."""

    def __init__(self, arguments: argparse.Namespace):
        import gpu_sides
        import torch

        self.arguments, self.torch, self.sides = arguments, torch, gpu_sides
        gpu_sides.compile_environment()
        gpu_sides.strict_fp32()
        self.clock = CudaClock(torch)
        self.budget = Budget(arguments.seconds)
        self.models: dict[str, Any] = {}
        self.engines: dict[tuple[str, str], Any] = {}
        self.result: dict[str, Any] = {
            "machine": machine(),
            "gpu": query(),
            "device": gpu_sides.device_name(),
            "versions": versions(PACKAGES) | {"cuda": torch.version.cuda, "cudnn": str(torch.backends.cudnn.version())},
            "rounds": arguments.rounds,
            "command": " ".join(["python", "bench/gpu.py", *sys.argv[1:]]),
            "caches": ABOUT_L2,
            "clocks": {"before": query(CLOCKS)},
            "ceilings": {},
            "ratios": [],
            **{name: {} for name in ("rows", "steps", "tuning", "accuracy", "failed")},
            "left_out": self.budget.left_out,
        }

    def run(self) -> None:
        self.part("ceilings", 10.0, self.ceilings)
        cases = [CASES[key] for key in self.arguments.cases]
        for case in (case for case in cases if case.single):
            self.part(case.key, SECONDS["case"], lambda case=case: self.case(case))
        if any(is_first(case) for case in cases):
            self.part("accuracy", SECONDS["accuracy"], self.accuracy)
        for case in (case for case in cases if not case.single):
            self.part(case.key, SECONDS["batch"], lambda case=case: self.case(case))
        for case in cases:
            self.part(f"steps of {case.key}", SECONDS["steps"], lambda case=case: self.steps(case))
        for case in cases:
            self.part(f"tuning of {case.key}", SECONDS["tuning"], lambda case=case: self.tuning(case))
        self.result["clocks"]["after"] = query(CLOCKS)
        self.write()

    def part(self, name: str, seconds: float, function: Callable[[], None]) -> None:
        """Does it if there is time, notes what went wrong, and saves what there is so far."""
        if self.budget.allows(name, seconds):
            try:
                function()
            except Exception as error:
                traceback.print_exc()
                self.result["failed"][name] = first_line(error)
            self.torch.cuda.empty_cache()
        self.write()

    def write(self) -> None:
        if self.arguments.output:
            self.arguments.output.write_text(json.dumps(self.result, indent=1) + "\n", encoding="utf-8")

    def ceilings(self) -> None:
        self.result["ceilings"] = measure_ceilings(self.torch, self.clock)
        print(f"{self.result['device']}; ceilings: {self.result['ceilings']}", flush=True)

    def model(self, variant: str, *, integer: bool = False) -> Any:
        """The folded network, with int8 scales if asked for."""
        key = f"{variant} int8" if integer else variant
        if key not in self.models:
            model = self.sides.folded(variant)
            self.models[key] = self.sides.quantize_(model) if integer else model
        return self.models[key]

    def engine(self, case: GpuCase, side: str) -> Any:
        key = (case.variant, side)
        if key not in self.engines:
            model = self.model(case.variant, integer=side == aims.INT8)
            self.engines[key] = self.sides.native_engine(self.sides.graph_of(model), half=side == aims.FP16)
        return self.engines[key]

    def case(self, case: GpuCase) -> None:
        from yolonas.native_engine import NativeEngine

        sides = self.sides
        inputs = sides.Inputs(case)
        some = sorted({0, case.batch - 1})  # of a batch, the first and last are compared
        cpu = NativeEngine.of_module(self.model(case.variant))
        single = sides.cpu_heads(cpu, inputs.host[some])
        makers: dict[str, Callable[[], Side]] = {aims.FP16: lambda: sides.ours(self.engine(case, aims.FP16), inputs)}
        integer = None
        if case.variant != "l":
            quantised = NativeEngine.of_module(self.model(case.variant, integer=True))
            integer = sides.cpu_heads(quantised, inputs.host[some])
            makers[aims.INT8] = lambda: sides.ours(self.engine(case, aims.INT8), inputs)
        detection: Detection | None = None
        counts = {}
        if is_first(case):
            detection = sides.Detection(cpu)
            makers[aims.DETECT] = lambda: sides.detector(self.engine(case, aims.FP16), detection)
            counts[aims.DETECT] = sides.PICTURES
        half = sides.torch_module(case.variant, half=True)
        makers[aims.EAGER] = lambda: sides.eager(half, inputs.half)
        makers[aims.GRAPH] = lambda: sides.captured(half, inputs.half)
        if sides.compiled_mark(case).exists():
            makers[aims.COMPILED] = lambda: self.compiled(half, inputs.half)
        if case.single:
            makers[aims.FP32] = lambda: sides.ours(self.engine(case, aims.FP32), inputs)
            whole = sides.torch_module(case.variant, half=False)
            makers[aims.GRAPH_FP32] = lambda: sides.captured(whole, inputs.single)

        def judge(name: str, outputs: list[np.ndarray]) -> tuple[str, dict[str, float]]:
            if name == aims.DETECT:
                assert detection is not None
                return judge_boxes(outputs[0], detection.expected)
            return judge_heads(name, [level[some] for level in outputs], single, integer)

        row = run_case(
            case,
            makers,
            judge,
            self.clock,
            inputs={name: counts.get(name, inputs.count) for name in makers},
            rounds=self.arguments.rounds,
            apart=(aims.FP16, aims.INT8, aims.DETECT, aims.GRAPH),
        )
        if aims.COMPILED not in makers and case.single:
            row["missing"][aims.COMPILED] = "gpu_compile.py has not prepared it"
        work = sum(map(aims.flop, cpu.native.plan(case.size, case.size, 1)))
        row["gflop"] = round(work * case.batch * 1e-9, 2)
        self.result["rows"][case.key] = row
        self.result["ratios"] += aims.ratios(case, row, self.result["ceilings"])
        print_case(case.key, row, self.result["ceilings"])
        if is_first(case) and aims.FP16 in row["times"]:
            again = sides.ours(self.engine(case, aims.FP16), inputs)
            single_ms = row["times"][aims.FP16]["median_ms"]
            busy = clocks_while_busy(in_turn(again.run, inputs.count), self.clock, single_ms)
            self.result["clocks"]["busy"] = busy
            print(f"  clocks while that runs: {busy}")

    def compiled(self, module: Any, xs: Any) -> Side:
        """From the caches that gpu_compile.py has filled, which takes seconds."""
        with limited(COMPILE_SECONDS, "torch.compile from its caches"):
            return self.sides.compiled(module, xs)

    def steps(self, case: GpuCase) -> None:
        for side in (aims.FP16, aims.INT8) if case.variant != "l" else (aims.FP16,):
            engine = self.engine(case, side)
            plan = engine.plan(case.size, case.size, case.batch)
            times = engine.time_steps(case.size, case.size, case.batch, STEP_ROUNDS)
            timed = [{**step, "ms": ms} for step, ms in zip(plan, times, strict=True)]
            rows = aims.floors(timed, self.result["ceilings"], case.batch)
            self.result["steps"][f"{case.key} {side}"] = rows
            total, least = (sum(row[name] for row in rows) for name in ("ms", "floor_ms"))
            print(f"\n{case.name}, {side}: {len(rows)} steps, one after another {total:.3f} ms, floors {least:.3f} ms")
            for row in aims.slowest(rows):
                print(
                    f"  {row['name']:<44} {row['algorithm']:<12} {row['input']:>12} -> {row['output']:<12}"
                    f" {row['ms'] * 1e3:7.1f} us, floor {row['floor_ms'] * 1e3:6.1f} ({row['bound']})"
                )

    def tuning(self, case: GpuCase) -> None:
        """Ours as it chooses by itself, and as `yolonas tune` measures it."""
        from yolonas import cuda_engine
        from yolonas.tuning import tune

        inputs = self.sides.Inputs(case)
        tuned = cuda_engine.CudaEngine.of_module(self.model(case.variant), self.torch.device("cuda", 0), half=True)
        tune(tuned, (case.size, case.size), case.batch)
        pair = {"as it is": self.engine(case, aims.FP16), "tuned": tuned.native}
        runs = {name: in_turn(self.sides.ours(engine, inputs).run, inputs.count) for name, engine in pair.items()}
        times = compare(runs, self.clock, rounds=self.arguments.rounds)
        changed = sum(bool(step.get("tuned")) for step in tuned.native.plan(case.size, case.size, case.batch))
        self.result["tuning"][case.key] = {"times": times, "changed_steps": changed}
        shown = ", ".join(f"{name} {value['median_ms']:.3f} ms" for name, value in times.items())
        print(f"\n{case.name}, tuning: {shown}; {changed} steps run in another way", flush=True)

    def accuracy(self) -> None:
        """mAP of a fine-tuned network on the CPU and in each precision on the GPU."""
        folder = shared_folder()
        if folder is None:
            self.budget.left_out["accuracy"] = "no ../shared with weights/ and data/ (or YOLONAS_TEST_DATA)"
            print("\naccuracy: left out, no ../shared with weights/ and data/ (or YOLONAS_TEST_DATA)")
            return
        from yolonas import NAS, cuda_engine
        from yolonas.native_engine import NativeEngine
        from yolonas.val import Validator, ValOptions

        data, device = folder / "data" / "bccd" / "bccd.yaml", self.torch.device("cuda", 0)
        model = NAS(str(folder / "weights" / "bccd_s.pth")).fuse()
        with tempfile.TemporaryDirectory() as runs:
            quantised = model.quantize(data=str(data), n=128, verbose=False, project=runs)
            engines: dict[str, Callable[[], Any]] = {
                "CPU fp32": lambda: NativeEngine.of_module(model.model),
                aims.FP32: lambda: cuda_engine.CudaEngine.of_module(model.model, device, half=False),
                aims.FP16: lambda: cuda_engine.CudaEngine.of_module(model.model, device, half=True),
                "CPU int8": lambda: NativeEngine.of_module(quantised.model),
                aims.INT8: lambda: cuda_engine.CudaEngine.of_module(quantised.model, device, half=False),
            }
            for side, make in engines.items():
                options = ValOptions.of(data=str(data), project=runs, name=side, plots=False, verbose=False)
                run = Validator(make(), dict(model.names), model.preprocess, side, "bccd_s.pth", options)
                coco = run.run().coco
                self.result["accuracy"][side] = {name: coco[name] for name in ("AP", "AP50", "AP75")}
                print(f"  mAP of bccd_s.pth, {side:<13} {coco['AP']:.4f}, mAP50 {coco['AP50']:.4f}", flush=True)


def shared_folder() -> Path | None:
    """The folder of real weights and pictures."""
    named = os.environ.get("YOLONAS_TEST_DATA")
    for folder in [Path(named)] if named else [ROOT.parent / "shared", ROOT / "shared"]:
        if (folder / "weights" / "bccd_s.pth").is_file() and (folder / "data" / "bccd").is_dir():
            return folder
    return None


def failures(result: Mapping[str, Any]) -> list[str]:
    """Parts that failed and results that are wrong; aims that were not reached are none."""
    found = [f"{part}: {text}" for part, text in result["failed"].items()]
    for key, row in result["rows"].items():
        found += [f"{key}, {side}: {text}" for side, text in row["wrong"].items() if side.startswith("yolonas")]
        found += [f"{key}, {side}: {text}" for side, text in row["missing"].items() if side.startswith("yolonas")]
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--save", action="store_true", help="write bench/results/gpu.json")
    parser.add_argument("--output", type=Path, metavar="FILE", help="write this file, after every part")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--seconds", type=float, default=300.0, help="parts that would take longer are left out")
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    arguments = parser.parse_args()
    if reason := missing_here():
        print(f"gpu: {reason}")
        return 3
    with tempfile.TemporaryDirectory() as cache:
        os.environ["XDG_CACHE_HOME"] = cache  # what tuning finds is not kept
        bench = Bench(arguments)
        bench.run()
    result = bench.result
    print_ratios(result["ratios"])
    for part, reason in result["left_out"].items():
        print(f"left out: {part}: {reason}")
    for line in failures(result):
        print(f"FAILED: {line}")
    if arguments.save:
        print(f"saved {save('gpu', result)}")
    return 1 if failures(result) else 0


if __name__ == "__main__":
    sys.exit(main())
