"""Quantize: a float network and pictures in, an int8 network with a card that says what it costs out.

Every number of the card is measured on the integer network as it runs. Which pictures are used is in `quantize_setup`,
what happens to the numbers in `quantization`.
"""

from __future__ import annotations

import copy
import logging
import math
import os
import tempfile
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from . import __version__
from .checkpoint import save_checkpoint
from .errors import QuantizationError, UnprovenError
from .lowering import lower
from .options import (
    anything,
    as_list,
    build,
    data_split,
    flag,
    image_size,
    map_points,
    one_of,
    option,
    text,
    unit_fraction,
    whole,
)
from .progress import Progress
from .quantization import METHODS, collect_histograms
from .quantization.card import Card, Scores, Side, Trial, decibels, sensitivity_lines, trial_lines
from .quantization.pictures import Reading, read_batches
from .quantization.ranges import set_ranges
from .quantization.sensitivity import StepLoss, fewest_in_float, matching, quantised_steps, ranked, with_int8
from .quantize_engines import OnCpu, OnCuda, choose
from .quantize_setup import Measure, QuantizeSetup, set_up
from .quantized_graph import quantized_graph
from .runs import project_folder, run_folder

if TYPE_CHECKING:
    from .config import DetectSettings
    from .lowering import Graph
    from .nn import YoloNAS
    from .preprocess import Preprocess
    from .quantization.counting import AnyEngine

LOGGER = logging.getLogger("yolonas")

PERCENT = 99.99  # of method="percentile"
FEW = 32  # pictures, below which a warning is due
LARGE_LOSS = 3.0  # points of mAP50-95, above which a warning is due
TIMED_SECONDS, TIMED_MOST = 2.0, 30  # how long, and how often at most, each network is timed

ASKED, FOR_LIMIT = "asked for", "for the wanted mAP"  # why a layer is in float


def _percent(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= 100:
        raise ValueError(f"{name} must be above 0 and at most 100, got {value!r}")
    return float(value)


def _layers(name: str, value: Any) -> tuple[str, ...]:
    """Names from a list, or from text with commas, in brackets or not."""
    value = as_list(value)
    is_list = isinstance(value, list | tuple | set | frozenset)
    names = tuple(value) if is_list else ()
    if not is_list or not all(isinstance(name, str) and name for name in names):
        raise ValueError(f"{name} must be names of layers or patterns, got {value!r}")
    return names


def _beside(path: Path) -> tuple[Path, Path]:
    """The card and the chart of a network in this file."""
    return path.with_suffix(".json"), path.with_name(f"{path.stem}-sensitivity.png")


def _model_file(name: str, value: Any) -> str:
    if Path(str(value)).suffix != ".safetensors":
        raise ValueError(f"{name} must end in .safetensors, got {str(value)!r}; NAS.save compiles it to .yolonas")
    return str(value)


@dataclass(frozen=True, kw_only=True)
class QuantizeOptions:
    """Settings of `quantize`."""

    data: Any = option(
        None, anything, "data yaml, COCO json or a name such as coco8; or pictures without labels: folder, glob, list"
    )
    split: str = option("val", data_split, "part of the data that networks are scored on; the train part calibrates")
    images: str | None = option(None, text, "folder of the pictures of a COCO json (default: found beside it)")
    annotations: str | None = option(None, text, "COCO json of the same boxes as YOLO labels (default: found)")
    download: bool = option(False, flag, "fetch coco8, coco128 or coco if they are not here")
    fraction: float = option(1.0, unit_fraction, "score on the first part of the pictures, 0..1")
    n: int = option(128, whole(1, 1_000_000), "pictures to calibrate with, evenly spaced")
    method: str = option("mse", one_of(*METHODS), f"ranges of activations: {', '.join(METHODS)}")
    percent: float | None = option(None, _percent, "percentile: share of values inside the range, % (default: 99.99)")
    imgsz: tuple[int, int] | None = option(None, image_size, "input side or (height, width) (default: the model's)")
    batch: int = option(16, whole(1, 4096), "pictures per network call; does not change the result")
    float_layers: tuple[str, ...] | None = option(
        None, _layers, "layers that stay in float: names, beginnings or patterns such as heads.*,backbone.stem"
    )
    equalize: bool = option(True, flag, "try to equalise channels across layers; kept if it scores better")
    correct_bias: bool = option(True, flag, "try to correct the mean of each layer; kept if it scores better")
    sensitivity: bool = option(False, flag, "quantise each layer alone, rank and plot what it costs")
    sensitivity_n: int = option(64, whole(1, 100_000), "pictures on which outputs are compared and layers ranked")
    max_map_drop: float | None = option(
        None, map_points, "keep as few layers in float as needed to lose at most so many points of mAP50-95"
    )
    save: str | None = option(None, _model_file, "file to write (default: NAME-int8.safetensors in the run folder)")
    project: str | None = option(None, text, "folder for run folders (default: runs/detect)")
    name: str | None = option(None, text, "run folder (default: quantize, quantize-2, ...)")
    exist_ok: bool = option(False, flag, "write into an existing run folder, or over the file of save")
    workers: int | None = option(None, whole(0, 256), "threads that read pictures (default: one per core, at most 4)")
    verbose: bool = option(True, flag, "print progress and the card")
    device: Any = option(
        None, anything, "where networks run: cpu, or 0, 1 for a CUDA device (default: that of NAS.to, else the CPU)"
    )

    def __post_init__(self) -> None:
        if self.data is None or (isinstance(self.data, str) and not self.data.strip()):
            raise ValueError("quantize: data must name a data yaml or pictures, such as data=cells.yaml")
        if self.percent is not None and self.method != "percentile":
            raise ValueError(f"percent is for method='percentile', got method={self.method!r}; give both or none")
        folder = project_folder(self.project)
        if self.save is not None:
            path = Path(self.save).expanduser()
            folder = path.parent
            if not folder.is_dir():
                raise FileNotFoundError(f"save must be in an existing folder, there is no folder {folder}")
            there = next((file for file in (path, *_beside(path)) if file.exists()), None)
            if there is not None and not self.exist_ok:
                raise FileExistsError(f"save: {there} exists; exist_ok=True replaces it")
        # Told now, not after minutes of work. A run folder is made when there is something to put into it.
        nearest = next(one for one in (folder, *folder.absolute().parents) if one.exists())
        if not nearest.is_dir() or not os.access(nearest, os.W_OK):
            raise PermissionError(
                f"quantize: {nearest} must be a folder that can be written to; save=FILE.safetensors chooses one"
            )

    @classmethod
    def of(cls, **values: Any) -> QuantizeOptions:
        """From user values; see `options.build`."""
        return build(cls, values, renamed=_RENAMED, dropped=_DROPPED)


_RENAMED: dict[str, tuple[str, Callable[[Any], Any]]] = {}
_DROPPED = ("task", "mode", "quantize", "int8", "half", "plots", "seed")


def legacy_names() -> tuple[str, ...]:
    """Names that `QuantizeOptions.of` takes without effect."""
    return (*_RENAMED, *_DROPPED)


@dataclass(frozen=True)
class _Candidate:
    """A quantised network and the float one that it was made from. Layers may have to be in float beyond `model`."""

    model: YoloNAS
    plain: YoloNAS
    in_int8: frozenset[str]
    trial: Trial


@dataclass
class Quantizer:
    """One quantisation. `run()` does it; `model` stays as it is.

    Attributes:
        names: of the classes, with those of the data where the model has none. preprocess: at the size that was asked
            for. moved_to: the device that the user has moved the model to, if any. card: what the result costs.
        path: its file. setup: the pictures.
    """

    model: YoloNAS
    names: dict[int, str]
    preprocess: Preprocess
    settings: DetectSettings
    source: str  # for people: the file of the model
    options: QuantizeOptions
    moved_to: Any = None
    card: Card | None = None
    path: Path | None = None
    setup: QuantizeSetup | None = None

    def run(self) -> YoloNAS:
        """Quantises, measures, writes the files and returns the network.

        Raises:
            ValueError: the model is quantised already, the data cannot be used or does not fit it, or networks cannot
                run on the device. NotImplementedError: nor with these widths. MemoryError: a batch does not fit there.
            UnprovenError: the device was named, and kernels compute something else there than on the CPU.
            FileNotFoundError: there is no such data set. SourceError: not one picture could be used.
            QuantizationError: `max_map_drop` cannot be met; the text has the table of what was tried.
        """
        from .nn import fuse_

        options = self.options
        if self.model.activation_scales:
            raise ValueError("quantize: model must be in float, this one is quantised; load what it was made from")
        place = choose(options.device, self.moved_to)
        plain = fuse_(copy.deepcopy(self.model).eval()).to(device="cpu")  # where it is changed, wherever engines run
        layers = [step["name"] for step in lower(plain).steps if "weight" in step]
        asked = matching(layers, options.float_layers or ())
        if len(asked) == len(layers):
            raise ValueError("float_layers must leave some layer to quantise, got all of them")
        if options.imgsz is not None:
            self.preprocess = self.preprocess.with_size(options.imgsz)
        self.setup = set_up(options, self.names, self.preprocess)
        self.names = self.setup.names
        engines, engine = self._engines(place, plain)
        run = _Run(self.setup, engines, engine, plain, asked, len(layers))
        best = run.calibrated()
        limit = math.inf if options.max_map_drop is None else options.max_map_drop
        too_much = run.lost(best) > limit
        losses = run.sensitivity(best) if options.sensitivity or too_much else []
        if too_much:
            best = run.within_limit(best, losses, limit)
        in_float = {name: ASKED if name in asked else FOR_LIMIT for name in layers if name not in best.in_int8}
        quantized = _finished(best)
        ms = _milliseconds(engines, (run.engine, engines.of_module(quantized)), self.setup)
        float_bytes = self._float_bytes(plain)

        file = self._file()  # from here on nothing takes long: an interrupt hardly leaves a network without its card
        self.path = self._save(file, quantized)
        self.card = Card(
            yolonas=__version__,
            model=self.source,
            network=f"YOLO-NAS {quantized.variant.name.upper()}, {quantized.num_classes} classes",
            file=str(file),
            calibration={
                "source": self.setup.source,
                "pictures": len(self.setup.items),
                "offered": self.setup.offered,
                "left_out": run.left_out,
                "method": options.method,
                "percent": (options.percent or PERCENT) if options.method == "percentile" else None,
            },
            evaluation=run.measure.about(),
            machine=engines.machine(),
            asked={item.name: getattr(options, item.name) for item in fields(options) if item.name in _IN_CARD},
            float32=Side(run.float_scores, ms[0], float_bytes),
            int8=Side(best.trial.scores, ms[1], file.stat().st_size),
            layers=len(layers),
            in_float=in_float,
            applied=run.applied,
            trials=[replace(trial, kept=trial is best.trial) for trial in run.trials],
            sensitivity=losses,
        )
        card, chart = _beside(file)
        self.card.write(card)
        chart.unlink(missing_ok=True)  # that of another network
        if losses:
            _plot(chart, losses, in_float, run.measure)
        if options.verbose:
            self._print_end(card, losses)
        if run.lost(best) > LARGE_LOSS:
            LOGGER.warning(
                "quantize: int8 loses %.1f points of mAP50-95; another method, more pictures or max_map_drop may help",
                run.lost(best),
            )
        return quantized

    def _engines(self, place: OnCpu | OnCuda, plain: YoloNAS) -> tuple[OnCpu | OnCuda, AnyEngine]:
        """Where networks run, which is the CPU if it cannot be a device that nobody named; the float one's engine."""
        try:
            return place, place.of_module(plain)
        # A network of other widths than those of S, M and L; or kernels that are wrong on this device.
        except (NotImplementedError, UnprovenError) as error:
            if self.options.device is not None:
                raise
            LOGGER.warning("quantize: networks run on the CPU: %s", error)
        cpu = OnCpu()
        return cpu, cpu.of_module(plain)

    def _file(self) -> Path:
        options = self.options
        if options.save is not None:
            return Path(options.save).expanduser()
        folder = run_folder(options.project, options.name, mode="quantize", exist_ok=options.exist_ok)
        return folder / f"{Path(self.source).stem}-int8.safetensors"

    def _save(self, path: Path, model: YoloNAS) -> Path:
        return save_checkpoint(path, model, names=self.names, preprocess=self.preprocess, settings=self.settings)

    def _float_bytes(self, plain: YoloNAS) -> int:
        """Of the file of the float network, in the same form."""
        with tempfile.TemporaryDirectory() as folder:
            return self._save(Path(folder, "float32.safetensors"), plain).stat().st_size

    def _print_end(self, card_path: Path, losses: Sequence[StepLoss]) -> None:
        assert self.card is not None
        if losses:
            print(f"\nEach layer alone in int8, {self.card.evaluation['compared']} pictures:")
            print("\n".join(sensitivity_lines(losses)))
        if len(self.card.trials) > 1:
            print()
            print("\n".join(trial_lines(self.card.trials, self.card.float32.scores.map)))
        print()
        print("\n".join(self.card.lines()))
        print(f"Model saved to {self.path}")
        print(f"Card saved to {card_path}", flush=True)


_IN_CARD = ("n", "batch", "imgsz", "split", "fraction", "float_layers", "equalize", "correct_bias", "max_map_drop")


class _Run:
    """The networks that are tried on the way to a result, each measured."""

    def __init__(
        self,
        setup: QuantizeSetup,
        engines: OnCpu | OnCuda,
        engine: AnyEngine,
        plain: YoloNAS,
        asked: Collection[str],
        layers: int,
    ):
        self.setup, self.engines, self.plain, self.asked, self.layers = setup, engines, plain, asked, layers
        self.options = setup.options
        self.engine = engine
        self.trials: list[Trial] = []
        self.applied: dict[str, bool] = {}  # what was asked to be tried, and whether it is in the result
        self.left_out = 0  # of the calibration pictures
        self._print_start()
        self.measure = Measure(setup, self.options.sensitivity_n)
        self.float_scores = self.measure.float32(self.engine)
        self._say("float32", self.float_scores)

    def calibrated(self) -> _Candidate:
        """The network in int8, with what is asked to be tried where it scores better."""
        best = self._calibrated(self.plain, self.engine, "int8")
        if self.options.equalize:
            from .quantization.equalization import equalize_

            with self._progress("equalisation") as progress, _same_digits():
                alone = (picture[None] for batch in self._batches() for picture in batch)
                equal = equalize_(copy.deepcopy(self.plain), alone, progress=progress.advance)
            tried = self._calibrated(equal, self.engines.of_module(equal), "int8, equalised")
            best = self._better(best, tried, "equalisation")
        if self.options.correct_bias:
            from .quantization.bias_correction import correct_bias_

            what = f"{best.trial.what}, bias corrected"
            with self._progress(what) as progress:
                model = correct_bias_(
                    copy.deepcopy(best.model),
                    self._batches(),
                    progress=progress.advance,
                    engine_of=self.engines.of_graph,
                )
            best = self._better(best, self._measured(model, best.plain, best.in_int8, what), "bias correction")
        return best

    def sensitivity(self, best: _Candidate) -> list[StepLoss]:
        """What each layer costs alone, the most sensitive first."""
        graph, plain = lower(best.model), lower(best.plain)
        names = [step["name"] for step in graph.steps if step["name"] in best.in_int8]
        engines = (self._engine(best.model, with_int8(graph, plain, [name])) for name in names)
        losses = []
        for name, scores in zip(names, self.measure.on_compared(self.engine, engines, len(names)), strict=True):
            assert scores.sqnr is not None
            losses.append(StepLoss(name, scores.sqnr, None if scores.map is None else -100 * scores.map))
        return ranked(losses)

    def within_limit(self, best: _Candidate, losses: Sequence[StepLoss], limit: float) -> _Candidate:
        """The network with as few of the most sensitive layers in float as keep mAP within the limit."""
        order = [loss.name for loss in losses]
        tried = {0: best}

        def meets(count: int) -> bool:
            if count not in tried:
                what = f"{len(self.asked) + count} in float"
                tried[count] = self._measured(best.model, best.plain, order[count:], what)
            return self.lost(tried[count]) <= limit

        count = fewest_in_float(len(order), meets)
        if count is None:
            least = min(self.lost(candidate) for candidate in tried.values())
            table = "\n".join(trial_lines(self.trials, self.float_scores.map))
            raise QuantizationError(
                f"quantize: max_map_drop={limit:g} cannot be met, the least loss was {least:.2f} points of mAP50-95; "
                f"allow more, or calibrate in another way\n{table}"
            )
        if 2 * (count + len(self.asked)) > len(order) + len(self.asked):
            LOGGER.warning("quantize: more than half of the layers stay in float, which gains little speed")
        return tried[count]

    def lost(self, candidate: _Candidate) -> float:
        """Points of mAP50-95; 0 where there are no labels."""
        scores = candidate.trial.scores
        if scores.map is None or self.float_scores.map is None:
            return 0.0
        return round(100 * (self.float_scores.map - scores.map), 6)  # 0.5 points are not 0.50000001

    def _better(self, best: _Candidate, tried: _Candidate, what: str) -> _Candidate:
        """The one of both that scores better. A gain has to show in the outputs and, with labels, must not cost mAP."""
        old, new = best.trial.scores, tried.trial.scores
        assert old.sqnr is not None
        assert new.sqnr is not None
        gains = new.sqnr.worst > old.sqnr.worst
        if old.map is not None and new.map is not None:
            gains = gains and new.map >= old.map
        self.applied[what] = gains
        if self.options.verbose:
            print(f"{what}: {'a gain, kept' if gains else 'no gain, not kept'}", flush=True)
        return tried if gains else best

    def _calibrated(self, plain: YoloNAS, engine: AnyEngine, what: str) -> _Candidate:
        options, model = self.options, copy.deepcopy(plain)
        with self._progress(f"{what}: calibration") as progress:
            histograms = collect_histograms(engine, self._batches(), progress=progress.advance)
        zero = [name for name, histogram in histograms.items() if histogram.largest == 0]
        if zero and not self.trials:  # the same ones later
            LOGGER.warning("calibration: all values are 0 in %s: there is no range, the scale is 1", ", ".join(zero))
        set_ranges(model, histograms, options.method, options.percent or PERCENT)
        _keep_in_float(model, plain, self.asked)
        return self._measured(model, plain, quantised_steps(lower(model)), what)

    def _measured(self, model: YoloNAS, plain: YoloNAS, in_int8: Collection[str], what: str) -> _Candidate:
        scores = self.measure(self._engine(model, with_int8(lower(model), lower(plain), in_int8)), what)
        self.trials.append(Trial(what, scores, self.layers - len(in_int8)))
        self._say(what, scores)
        return _Candidate(model, plain, frozenset(in_int8), self.trials[-1])

    def _engine(self, model: YoloNAS, graph: Graph) -> AnyEngine:
        """Of a graph of the model, some of whose steps may be in float."""
        return self.engines.of_graph(quantized_graph(graph, model.activation_scales), model.num_classes)

    @contextmanager
    def _progress(self, what: str) -> Iterator[Progress]:
        progress = Progress(what, len(self.setup.items), verbose=self.options.verbose)
        try:
            yield progress
        finally:
            progress.close()

    def _batches(self) -> Iterator[np.ndarray]:
        """The calibration pictures. Those that cannot be used are told of and left out from then on."""
        setup, reading = self.setup, Reading()
        yield from setup.calibration_batches(reading)
        setup.items = setup.usable(setup.items, reading)
        self.left_out += len(reading.left_out)
        if self.trials:  # the warnings were given
            return
        if len(reading.blank) == reading.seen:
            LOGGER.warning(
                "quantize: all %d calibration pictures are of one colour, such as %s; ranges from them mean nothing",
                *(reading.seen, reading.blank[0]),
            )
        if reading.seen < FEW:
            LOGGER.warning(
                "quantize: ranges come from %d picture%s; take at least %d that are like those to come",
                *(reading.seen, "s" * (reading.seen != 1), FEW),
            )

    def _print_start(self) -> None:
        setup, options = self.setup, self.options
        if not options.verbose:
            return
        height, width = setup.preprocess.size
        how = f"{options.method} {options.percent or PERCENT:g}" if options.method == "percentile" else options.method
        print(
            f"calibration: {len(setup.items):,} of {setup.offered:,} pictures of {setup.source}, "
            f"{height}x{width}, {how}"
        )
        print(f"measured on: {setup.measured_on}", flush=True)

    def _say(self, what: str, scores: Scores) -> None:
        if not self.options.verbose:
            return
        parts = []
        if scores.map is not None and scores.map50 is not None:
            parts.append(f"mAP50-95 {scores.map:.4f}, mAP50 {scores.map50:.4f}")
        if scores.sqnr is not None:
            parts.append(f"SQNR {decibels(scores.sqnr)}")
        if parts:
            print(f"{what}: {'; '.join(parts)}", flush=True)


@contextmanager
def _same_digits() -> Iterator[None]:
    """One thread for torch, whose last digits depend on their number. They depend on the pictures of a batch too."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _keep_in_float(model: YoloNAS, plain: YoloNAS, names: Collection[str]) -> None:
    """Makes layers of a quantised network those of the float network again, in place."""
    import torch

    with torch.no_grad():
        for step, other in zip(lower(model).steps, lower(plain).steps, strict=True):
            if step["name"] in names:
                for module, source in zip(step["modules"], other["modules"], strict=True):
                    del module.weight_scale
                    module.bias.copy_(source.bias)


def _finished(best: _Candidate) -> YoloNAS:
    """The network with scales for what stays in int8 only."""
    model = copy.deepcopy(best.model)
    _keep_in_float(model, best.plain, set(quantised_steps(lower(model))) - best.in_int8)
    steps = lower(model).steps
    views = [view for step in steps if step["name"] in best.in_int8 for view in (step["input"], step.get("residual"))]
    read = {view.buffer for view in views if view is not None}
    needed = {"input"} | {step["name"] for step in steps if step["output"].buffer in read}
    model.activation_scales = {name: scale for name, scale in model.activation_scales.items() if name in needed}
    return model


def _milliseconds(place: OnCpu | OnCuda, engines: Sequence[AnyEngine], setup: QuantizeSetup) -> list[float]:
    """Of each network for one picture: the median of runs in turn."""
    (picture,) = read_batches(setup.items[:1], setup.preprocess, 1, Reading())
    runs = [place.stopwatch(engine, picture) for engine in engines]  # type: ignore[arg-type]
    for run in runs:
        run()
    spent: list[list[float]] = [[] for _ in engines]
    end = time.perf_counter() + TIMED_SECONDS
    while len(spent[0]) < TIMED_MOST and (time.perf_counter() < end or not spent[0]):
        for run, times in zip(runs, spent, strict=True):
            times.append(run())
    return [float(np.median(times)) for times in spent]


def _plot(path: Path, losses: Sequence[StepLoss], in_float: Collection[str], measure: Measure) -> None:
    from .plots import plot_sensitivity

    drops = [loss.map_drop for loss in losses]
    plot_sensitivity(
        path,
        [loss.name for loss in losses],
        [loss.sqnr.cls for loss in losses],
        [loss.sqnr.box for loss in losses],
        None if None in drops else drops,  # type: ignore[arg-type]
        in_float,
        note=f"{measure.compared} pictures of {measure.about()['source']}",
    )
