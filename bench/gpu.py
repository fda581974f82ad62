"""The networks on a GPU: ours in fp16, fp32 and int8 against torch eager, in a CUDA graph and compiled.

Needs an NVIDIA GPU with its driver, torch for CUDA, and a build with `yolonas._cuda`; `bash bench/gpu_all.sh` builds,
tests and measures in one go. Says so and ends with 3 elsewhere.

python bench/gpu.py [--save | --output FILE] [--rounds 9] [--seconds 300] [--cases s_640_1 ...] [--experiments]

Every case runs in a process of its own, and once more without the side that has made the GPU fail. Weights are the
tests' recipe; the mean average precision is that of the checkpoint in `../shared`, where that is. torch.compile takes
minutes: it is timed where `gpu_compile.py` has done that work before.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import tempfile
import traceback
from collections.abc import Callable, Mapping
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gpu_aims as aims
import gpu_process
import numpy as np
from gpu_aims import CASES, GpuCase
from gpu_case import first_line, judge_boxes, judge_heads, outputs_after, print_case, print_ratios, run_case
from gpu_experiments import EXPERIMENTS
from gpu_process import DEAD, LATE, DeadError, Doing
from gpu_timer import CLOCKS, Budget, Clock, CudaClock, clocks_while_busy, compare, in_turn, limited, query
from timing import ROOT, machine, save, versions

if TYPE_CHECKING:
    from gpu_sides import Detection, Side

ABOUT_L2 = (
    "inputs rotate over more bytes than the L2 cache has; weights stay in it as far as they fit; "
    "`apart_ms`: the cache was overwritten before every call"
)
PACKAGES = ("torch", "triton", "nvidia-cudnn-cu13", "numpy")
# About, for the time limit; the start of a process is among them.
SECONDS = {"case": 30.0, "batch": 40.0, "accuracy": 50.0, "tuning": 35.0, "experiment": 20.0, "ceilings": 8, "steps": 8}
QUIET = 150.0  # seconds that tuning and calibration may say nothing: they are a few calls, each of maybe a minute
MOST_LOST = 4  # sides that a case is repeated without
STEP_ROUNDS = 20
COMPILE_SECONDS = 45.0


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


class Bench:
    """The parts of the benchmark, for a process each. Each adds to `result`, which is saved as it grows."""

    def __init__(self, arguments: argparse.Namespace, result: dict[str, Any], doing: Doing | None = None):
        import gpu_sides
        import torch

        self.arguments, self.torch, self.sides, self.result = arguments, torch, gpu_sides, result
        gpu_sides.KEPT = arguments.doing.parent if arguments.doing else None
        self.doing = doing or Doing()
        gpu_sides.compile_environment()
        gpu_sides.strict_fp32()
        self.clock: Clock = CudaClock(torch)
        self.budget = Budget(arguments.seconds)
        self.models: dict[str, Any] = {}
        self.engines: dict[tuple[str, str], Any] = {}
        if "machine" not in result:
            packages = versions(PACKAGES) | {"cuda": torch.version.cuda, "cudnn": str(torch.backends.cudnn.version())}
            result |= {"machine": machine(), "gpu": query(), "device": gpu_sides.device_name(), "versions": packages}
            result["machine"]["commit"] = result["machine"]["commit"] or os.environ.get("YOLONAS_COMMIT", "")

    def run(self, part: str) -> None:
        """Does one of `parts_of`."""
        if part in CASES:
            case = CASES[part]
            if not self.result["ceilings"]:
                self.part("ceilings", SECONDS["ceilings"], self.ceilings)
            self.part(part, 0.0, lambda: self.case(case))
            self.part(f"steps of {part}", SECONDS["steps"], lambda: self.steps(case))
            return
        functions = {"accuracy": self.accuracy} | {name: partial(do, self) for name, do in EXPERIMENTS.items()}
        functions |= {f"tuning of {case.key}": partial(self.tuning, case) for case in CASES.values()}
        self.part(part, 0.0, functions[part])

    def part(self, name: str, seconds: float, function: Callable[[], None]) -> None:
        """Does it if there is time, notes what went wrong, and saves what there is so far."""
        lost = next((one[name] for one in self.result["lost"].values() if name in one), "")
        if lost:
            self.result["failed"][name] = lost
        elif self.budget.allows(name, seconds):
            self.doing(name)
            try:
                function()
            except DeadError:
                raise
            except Exception as error:
                traceback.print_exc()
                self.result["failed"][name] = first_line(error)
            with contextlib.suppress(Exception):  # that of a device that has failed
                self.torch.cuda.empty_cache()
        self.result["left_out"] |= self.budget.left_out
        works = self.clock.works()
        reason = "" if works else self.result["failed"].pop(name, "the device has failed")
        self.write()
        if not works:
            raise DeadError(reason)

    def write(self) -> None:
        if self.arguments.output:
            gpu_process.write(self.arguments.output, self.result)

    def ceilings(self) -> None:
        self.result["ceilings"] = measure_ceilings(self.torch, self.clock)
        print(f"{self.result['device']}; ceilings: {self.result['ceilings']}", flush=True)

    def model(self, variant: str, *, integer: bool = False) -> Any:
        """The folded network, with int8 scales if asked for."""
        key = f"{variant} int8" if integer else variant
        if key not in self.models:
            model = self.sides.folded(variant)
            self.doing(self.doing.name)  # it takes seconds, and does not hang
            self.models[key] = self.sides.quantize_(model) if integer else model
            self.doing(self.doing.name)
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
        self.doing(self.doing.name)
        makers: dict[str, Callable[[], Side]] = {aims.FP16: lambda: sides.ours(self.engine(case, aims.FP16), inputs)}
        integer = None
        if case.variant != "l":
            quantised = NativeEngine.of_module(self.model(case.variant, integer=True))
            integer = sides.cpu_heads(quantised, inputs.host[some])
            makers[aims.INT8] = lambda: sides.ours(self.engine(case, aims.INT8), inputs)
        detection: Detection | None = None
        counts = {}
        if is_first(case):
            self.doing(self.doing.name)
            detection = sides.Detection(cpu)
            makers[aims.DETECT] = lambda: sides.detector(self.engine(case, aims.FP16), detection)
            counts[aims.DETECT] = sides.PICTURES
        half = sides.torch_module(case.variant, half=True)
        makers[aims.EAGER] = lambda: sides.eager(half, inputs.half)
        makers[aims.GRAPH] = lambda: sides.captured(half, inputs.half)
        if sides.compiled_mark(case).exists():
            about = sides.compiled_mark(case).read_text(encoding="utf-8").strip()
            makers[aims.COMPILED] = lambda: self.compiled(half, inputs.half, about)
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
            lost=self.result["lost"].get(case.key),
            doing=self.doing,
        )
        if aims.COMPILED not in makers and case.single:
            row["missing"][aims.COMPILED] = "gpu_compile.py has not prepared it"
        work = sum(map(aims.flop, cpu.native.plan(case.size, case.size, 1)))
        row["gflop"] = round(work * case.batch * 1e-9, 2)
        self.result["rows"][case.key] = row
        ratios = aims.ratios(case, row, self.result["ceilings"])
        self.result["ratios"] += ratios
        self.write()
        print_case(case.key, row, self.result["ceilings"])
        print_ratios(ratios, "")
        if is_first(case) and aims.FP16 in row["times"]:
            self.doing("clocks")
            again = sides.ours(self.engine(case, aims.FP16), inputs)
            single_ms = row["times"][aims.FP16]["median_ms"]
            busy = clocks_while_busy(in_turn(again.run, inputs.count), self.clock, single_ms)
            self.result["clocks"]["busy"] = busy
            print(f"  clocks while that runs: {busy}")

    def compiled(self, module: Any, xs: Any, about: str) -> Side:
        """From the caches that gpu_compile.py has filled, which takes seconds."""
        with limited(COMPILE_SECONDS, "torch.compile from its caches"):
            return self.sides.compiled(module, xs, about)

    def steps(self, case: GpuCase) -> None:
        lost = self.result["lost"].get(case.key, {})
        for side in (aims.FP16, aims.INT8) if case.variant != "l" else (aims.FP16,):
            if side in lost:
                continue
            self.doing(f"steps of {side}")
            engine = self.engine(case, side)
            plan = engine.plan(case.size, case.size, case.batch)
            times = engine.time_steps(case.size, case.size, case.batch, STEP_ROUNDS)
            timed = [{**step, "ms": ms} for step, ms in zip(plan, times, strict=True)]
            rows = aims.floors(timed, self.result["ceilings"], case.batch)
            self.result["steps"][f"{case.key} {side}"] = rows
            self.write()
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
        made = {name: self.sides.ours(engine, inputs) for name, engine in pair.items()}
        runs = {name: in_turn(side.run, inputs.count) for name, side in made.items()}
        times = compare(runs, self.clock, rounds=self.arguments.rounds, before=self.doing)
        outputs = [outputs_after(made[name], (1, 0)) for name in ("tuned", "as it is")]
        apart = aims.difference(*outputs)
        changed = sum(bool(step.get("tuned")) for step in tuned.native.plan(case.size, case.size, case.batch))
        self.result["tuning"][case.key] = {"times": times, "changed_steps": changed, "difference": apart}
        shown = ", ".join(f"{name} {value['median_ms']:.3f} ms" for name, value in times.items())
        print(f"\n{case.name}, tuning: {shown}; {changed} steps run in another way, outputs differ by {apart:.1e}")

    def accuracy(self) -> None:
        """mAP of a fine-tuned network on the CPU and in each precision on the GPU."""
        folder = shared_folder()
        assert folder is not None
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
                self.doing(side)
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


def no_accuracy() -> str:
    """Why the mean average precision cannot be had here; empty if it can."""
    if shared_folder() is None:
        return "no ../shared with weights/ and data/ (or YOLONAS_TEST_DATA)"
    return "" if find_spec("pycocotools") else "pycocotools is not installed"


def failures(result: Mapping[str, Any]) -> list[str]:
    """Parts that failed and results that are wrong; aims that were not reached are none."""
    found = [f"{part}: {text}" for part, text in result["failed"].items()]
    for key, tuned in result["tuning"].items():
        if tuned["difference"] > aims.TOLERANCE[aims.FP16]:
            found.append(f"tuning of {key}: outputs differ by {tuned['difference']:.1e}")
    for name, one in result["experiments"].items():
        found += [f"{name}: {one['wrong']}"] if one.get("wrong") else []
    for part, lost in result["lost"].items():
        found += [f"{part}, {name}: {text}" for name, text in lost.items() if part not in result["rows"]]
    for key, row in result["rows"].items():
        found += [f"{key}, {side}: {text}" for side, text in row["wrong"].items() if side.startswith("yolonas")]
        found += [f"{key}, {side}: {text}" for side, text in row["missing"].items() if side.startswith("yolonas")]
    return found


# --- a process for each part ---


def parts_of(keys: list[str], *, experiments: bool) -> list[tuple[str, float]]:
    """What is to be done, by weight, and about how long each takes. Tuned networks come after those as they are."""
    cases = [CASES[key] for key in keys]
    found = [(case.key, SECONDS["case" if case.single else "batch"]) for case in cases]
    first = any(map(is_first, cases))
    if first:
        found.append(("accuracy", SECONDS["accuracy"]))
    tuned = [(f"tuning of {case.key}", SECONDS["tuning"]) for case in cases if case.single]
    tried = [(name, SECONDS["experiment"]) for name in EXPERIMENTS if first and experiments]
    return found + tuned[:1] + tried + tuned[1:]


def all_parts(arguments: argparse.Namespace, folder: Path, budget: Budget) -> dict[str, Any] | None:
    """Runs the parts, each in a process that adds to the file `arguments.output`. None: nothing can be measured here.

    Args:
        folder: for what processes say.
    """
    result: dict[str, Any] = {
        "rounds": arguments.rounds,
        "command": " ".join(["python", "bench/gpu.py", *sys.argv[1:]]),
        "caches": ABOUT_L2,
        "clocks": {"before": query(CLOCKS)},
        "ratios": [],
        **{name: {} for name in ("ceilings", "rows", "steps", "tuning", "accuracy", "experiments")},
        **{name: {} for name in ("failed", "left_out", "lost")},
    }
    gpu_process.write(arguments.output, result)
    for part, seconds in parts_of(arguments.cases, experiments=arguments.experiments):
        reason = no_accuracy() if part == "accuracy" else ""
        for turn in range(1 + MOST_LOST):
            if reason or not budget.allows(part, seconds):
                break
            doing = folder / f"doing {part} {turn}"
            options = {"--part": part, "--doing": doing, "--output": arguments.output, "--rounds": arguments.rounds}
            words = [str(word) for pair in options.items() for word in pair]
            command = [sys.executable, str(Path(__file__).resolve()), *words, "--seconds", f"{budget.left:.1f}"]
            quiet = QUIET if part.startswith(("tuning", "accuracy")) else gpu_process.STALLED
            code, why = gpu_process.watch(command, doing, budget.left, quiet)
            if code == 3:
                return None
            result = gpu_process.read(arguments.output)
            if not code or not note_end(result, part, code, why, *gpu_process.last_done(doing)):
                break
            gpu_process.write(arguments.output, result)
        if reason:
            budget.left_out[part] = reason
        result["left_out"] |= budget.left_out
        gpu_process.write(arguments.output, result)
    for key in arguments.cases:
        if key not in result["rows"]:
            result["ratios"] += aims.ratios(CASES[key], {}, {})
    result["clocks"]["after"] = query(CLOCKS)
    gpu_process.write(arguments.output, result)
    return result


def note_end(result: dict[str, Any], part: str, code: int, why: str, name: str, said: str) -> bool:
    """Notes that a process died, doing what. Whether the part is worth another process, which leaves that out."""
    if code == LATE:
        result["left_out"][part] = why
        return False
    reason = f"{why}; {said}" if said else why
    print(f"  {part}, {name or 'at the start'}: {reason}", flush=True)
    lost = result["lost"].setdefault(part, {})
    if part not in CASES or part in result["rows"] or name in ("", part, *lost):
        result["failed"][part if name in ("", part) else f"{part}, {name}"] = reason
        return False
    lost[name] = reason
    return True


def one_part(arguments: argparse.Namespace) -> int:
    """A part in this process."""
    if reason := missing_here():
        print(f"gpu: {reason}")
        return 3
    doing = Doing(arguments.doing)
    doing(arguments.part)
    try:
        Bench(arguments, gpu_process.read(arguments.output), doing).run(arguments.part)
    except DeadError as error:
        doing.failed(str(error))
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(DEAD)  # what would be cleaned up is on the device
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--save", action="store_true", help="write bench/results/gpu.json")
    parser.add_argument("--output", type=Path, metavar="FILE", help="write this file, after every part")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--seconds", type=float, default=300.0, help="parts that would take longer are left out")
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--experiments", action="store_true", help="also without overlap, without graphs; replays")
    for name, kind in (("--part", str), ("--doing", Path)):  # of the processes that this one starts
        parser.add_argument(name, type=kind, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.part:
        return one_part(arguments)
    budget = Budget(arguments.seconds)
    with tempfile.TemporaryDirectory() as folder:
        os.environ["XDG_CACHE_HOME"] = folder  # what tuning finds is not kept
        arguments.output = arguments.output or Path(folder, "gpu.json")
        result = all_parts(arguments, Path(folder), budget)
    if result is None:
        return 3
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
