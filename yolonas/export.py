"""Export: a network in, a file for another runtime out, which has been run and compared before it gets its name.

The writers are in `exporting`, what a file takes and gives is settled in `export_setup`, compared in `export_check`.
"""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .errors import ExportError, SourceError
from .export_setup import FORMATS, INT8_FORMATS, TARGETS, destinations, make_spec
from .exported import ExportedNetwork
from .exporting import targets
from .exporting.dataflow import check_weights, dataflow
from .exporting.onnx_builder import IR_VERSIONS
from .exporting.onnx_file import OPSET, write_onnx
from .exporting.spec import INPUT_NAME, OUTPUTS, SUPPRESSED, ExportSpec
from .native_engine import CpuDevice, NativeEngine
from .options import (
    anything,
    build,
    data_split,
    flag,
    image_size,
    map_points,
    one_of,
    option,
    precision,
    text,
    unit_fraction,
    whole,
    with_quantize,
)

if TYPE_CHECKING:
    from .config import DetectSettings
    from .export_check import AnchorDifference, Difference, MapCheck
    from .exported_engine import ExportedEngine
    from .nn import YoloNAS
    from .preprocess import Preprocess

LOGGER = logging.getLogger("yolonas")

SAMPLES = 4  # pictures of a data set that detections are compared on


def _dynamic(name: str, value: Any) -> bool | str:
    return str(value) if value in ("batch", "size") else flag(name, value)


def _gib(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e6:
        raise ValueError(f"{name} must be a positive number of GiB, got {value!r}")
    return float(value)


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """Settings of `export`. None means what the target, else the format, else the checkpoint says."""

    format: str = option("onnx", one_of(*FORMATS), f"kind of file: {', '.join(FORMATS)}")
    target: str | None = option(
        None,
        one_of(*TARGETS),
        f"what runs it: {', '.join(TARGETS)}; sets the options that it needs and writes its configuration",
    )
    imgsz: tuple[int, int] | None = option(None, image_size, "input side or (height, width) (default: the model's)")
    batch: int | None = option(
        None, whole(1, 65536), "pictures per call (default: 1); with dynamic: the most, for engines and triton"
    )
    dynamic: bool | str = option(
        False, _dynamic, "takes any number of pictures and any sides in multiples of 32; 'batch', 'size': one of both"
    )
    quantize: str | None = option(
        None, precision, "precision: 32/'fp32', 16/'fp16', 8/'int8' (default: int8 for a quantised network, else fp32)"
    )
    outputs: str | None = option(
        None,
        one_of(*OUTPUTS),
        "'batch': number, boxes, scores, classes; 'flat': a row of 7 for each detection; 'rows': the same, a fixed "
        "number; 'raw': all boxes and scores; 'heads': logits (default: batch; torchscript, pt2: raw; ncnn: heads)",
    )
    nms: bool | None = option(None, flag, "thresholds and NMS in the graph; False means outputs='raw'")
    conf: float | None = option(None, unit_fraction, "lowest score, 0..1 (default: the checkpoint's)")
    iou: float | None = option(None, unit_fraction, "NMS drops boxes that overlap more (default: the checkpoint's)")
    max_det: int | None = option(None, whole(1, 100_000), "detections per picture (default: the checkpoint's)")
    top_k: int | None = option(None, whole(1, 1_000_000), "candidates before NMS (default: the checkpoint's)")
    agnostic_nms: bool | None = option(None, flag, "NMS across classes (default: the checkpoint's)")
    multi_label: bool | None = option(None, flag, "several classes for one box (default: the checkpoint's)")
    preprocess: bool | None = option(
        None, flag, "the input is bytes, which the graph scales; False: scaled float32 (default: True but for ncnn)"
    )
    layout: str | None = option(None, one_of("nchw", "nhwc"), "axes of the input, nchw or nhwc (default: nchw)")
    channels: str | None = option(
        None,
        one_of("rgb", "bgr"),
        "rgb or bgr: what the caller sends, whatever the network was trained with (default: rgb)",
    )
    opset: int = option(OPSET, whole(min(IR_VERSIONS), max(IR_VERSIONS)), "version of the ONNX operators, 13 to 21")
    workspace: float | None = option(None, _gib, "engine: scratch memory of the build, GiB")
    check: bool = option(True, flag, "run the file and compare it with the network")
    source: Any = option(None, anything, "picture to compare on (default: some of data, else a drawn one)")
    data: str | None = option(None, text, "labelled data: mAP of the network and of the file; calibrates int8 as well")
    split: str = option("val", data_split, "part of the data that mAP is measured on")
    fraction: float = option(1.0, unit_fraction, "measure on the first part of the pictures, 0..1")
    max_map_drop: float = option(1.0, map_points, "with data: points of mAP50-95 that the file may lose")
    save: str | None = option(None, text, "file or folder to write (default: beside the model)")
    exist_ok: bool = option(False, flag, "replace what no export has written, a folder with all that is in it")
    verbose: bool = option(True, flag, "print what was written and how it compares")
    simplify: bool = option(True, flag, "no effect: there is nothing to simplify", ignored=True)
    optimize: bool = option(False, flag, "no effect", ignored=True)
    device: Any = option(None, anything, "no effect: files are written on the CPU", ignored=True)
    name: Any = option(None, anything, "no effect", ignored=True)

    def __post_init__(self) -> None:
        if self.data is not None and not self.check:
            raise ValueError("check must be True with data, which is there to measure the file; leave one out")
        if self.quantize == "int8" and self.format not in INT8_FORMATS:
            raise NotImplementedError(
                f"export: format {self.format!r} has no int8; {', '.join(map(repr, INT8_FORMATS))} have"
            )

    @classmethod
    def of(cls, **values: Any) -> ExportOptions:
        """From user values, with the names of older releases; see `options.build`."""
        return build(cls, with_quantize(values), renamed=_RENAMED, dropped=_DROPPED)


_RENAMED: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "end2end": ("nms", lambda value: value),
    "num_pre_nms_predictions": ("top_k", lambda value: value),
    "max_predictions_per_image": ("max_det", lambda value: value),
    "confidence_threshold": ("conf", lambda value: value),
    "nms_threshold": ("iou", lambda value: value),
    "batch_size": ("batch", lambda value: value),
    "input_image_shape": ("imgsz", lambda value: value),
    "output_predictions_format": ("outputs", lambda value: value),
}
_DROPPED = ("task", "mode", "keras", "seed", "plots", "rect", "project")


def legacy_names() -> tuple[str, ...]:
    """Names of other libraries that `ExportOptions.of` takes."""
    return ("precision", "half", "int8", *_RENAMED, *_DROPPED)


@dataclass
class Exporter:
    """One export. `run()` does it.

    Attributes:
        model: folded, on the CPU. card: of the quantisation, as `Card.to_dict` has it. spec: what the file takes and
            gives. path: the file or folder; beside: what goes with it. runtime, difference, anchors, scores: what ran
            it and how it compares, where that was asked for and possible.
    """

    model: YoloNAS
    names: Mapping[int, str]
    preprocess: Preprocess
    settings: DetectSettings
    source: Path  # of the model
    options: ExportOptions
    card: Mapping[str, Any] | None = None
    spec: ExportSpec | None = None
    path: Path | None = None
    beside: Sequence[Path] = ()
    runtime: str = ""
    difference: Difference | None = None
    anchors: AnchorDifference | None = None
    scores: MapCheck | None = None

    def run(self) -> Path:
        """Writes the file, checks it, and returns its path.

        Raises:
            ValueError, NotImplementedError: options that do not go together, or a network that cannot be exported.
            ImportError: a package that writes the format is not installed.
            ExportError: the file does not give what the network gives; none is left behind.
            OSError: it cannot be written.
        """
        options = self.options
        self.spec = make_spec(
            options,
            variant=self.model.variant.name,
            names=self.names,
            preprocess=self.preprocess,
            settings=self.settings,
            quantized=bool(self.model.activation_scales),
            card=self.card,
        )
        _check_reader(options, self.model, self.spec, self.source.stem)
        path, *beside = check_destination(options, self.source)
        native = NativeEngine.of_module(self.model)  # refuses weights that are not finite
        samples = self._samples() if options.check else []
        start = time.perf_counter()
        with _workplace(path) as folder:
            checked = self._write(folder / path.name)
            spent = time.perf_counter() - start
            if options.check:
                self._check(native, checked, samples)
            for one in (path, *beside):
                _put(folder / one.name, one)
        self.path, self.beside = path, beside
        if options.verbose:
            self._print(spent)
        return self.path

    def _write(self, draft: Path) -> Path:
        """Writes the file or folder, and what goes beside it. Returns what is to be compared with the network."""
        options, spec = self.options, self.spec
        assert spec is not None
        if options.target is not None:
            return self._write_target(draft)
        if options.format == "onnx":
            write_onnx(draft, self.model, spec, opset=options.opset)
            return draft
        if options.format == "openvino":
            from .exporting.openvino import write_openvino

            draft.mkdir()
            with tempfile.TemporaryDirectory(dir=draft.parent) as folder:
                onnx_file = Path(folder, "network.onnx")
                write_onnx(onnx_file, self.model, spec, opset=options.opset)
                write_openvino(draft, onnx_file, spec)
            return draft
        if options.format == "ncnn":
            from .exporting.ncnn import write_ncnn

            draft.mkdir()
            write_ncnn(draft, self.model, spec)
            return draft
        if options.format == "engine":
            return self._write_engine(draft)
        from .exporting import torch_formats

        writers = {"torchscript": torch_formats.write_torchscript, "pt2": torch_formats.write_pt2}
        writers[options.format](draft, self.model, spec)
        return draft

    def _write_engine(self, draft: Path) -> Path:
        """An engine with its ONNX file beside it, or that file alone."""
        from .exporting.tensorrt import write_engine

        options, spec = self.options, self.spec
        assert spec is not None
        if draft.suffix == ".onnx":
            write_onnx(draft, self.model, spec, opset=options.opset, for_tensorrt=True)
            return draft
        graph = draft.with_name(f"{draft.stem}-tensorrt.onnx")
        write_onnx(graph, self.model, spec, opset=options.opset, for_tensorrt=True)
        most = options.batch or targets.MAX_BATCH
        write_engine(draft, graph, spec, workspace_gib=options.workspace, max_batch=most, verbose=options.verbose)
        return draft

    def _write_target(self, draft: Path) -> Path:
        options, spec = self.options, self.spec
        assert spec is not None
        if options.target == "frigate":
            write_onnx(draft, self.model, spec, opset=options.opset)
            draft.with_name(f"{draft.stem}-labels.txt").write_text(targets.frigate_labels(spec), encoding="utf-8")
            return draft
        draft.mkdir()
        if options.target == "deepstream":
            onnx_file = draft / f"{self.source.stem}.onnx"
            config = targets.deepstream_config(spec, onnx_file.name, targets.LABELS_FILE, batch=options.batch or 1)
            texts: Mapping[str, bytes | None] = {
                "config_infer_primary.txt": config.encode(),
                targets.LABELS_FILE: targets.labels(spec).encode(),
                onnx_file.name: None,
            }
        else:
            texts = targets.triton_files(spec, self.source.stem, max_batch=options.batch or targets.MAX_BATCH)
        for name, content in texts.items():
            file = draft / name
            file.parent.mkdir(parents=True, exist_ok=True)
            if content is None:
                write_onnx(file, self.model, spec, opset=options.opset)
                written = file
            else:
                file.write_bytes(content)
        return written

    def _check(self, native: NativeEngine, written: Path, samples: Sequence[np.ndarray]) -> None:
        """Compares the file with the network. Raises ExportError where it is too far from it."""
        from . import export_check

        options, spec = self.options, self.spec
        assert spec is not None
        try:
            exported = _engine_of(written, spec, options.format)
            self.difference = export_check.compare(native, exported, samples, spec)
            self.anchors = export_check.compare_all(native, self._without_nms(exported, written), samples)
        except ImportError as error:
            if options.data is not None:
                raise
            LOGGER.warning("export: the file was not compared with the network: %s", error)
            return
        except RuntimeError as error:
            raise ExportError(f"export: the file does not run: {error}; nothing was kept") from error
        self.runtime = exported.describe()
        compared = [one for one in (self.difference, self.anchors) if one is not None]
        if not all(one.lies_within(spec) for one in compared):
            raise ExportError(
                f"export: {self.runtime} does not give what the network gives: {'; '.join(map(str, compared))}; "
                "nothing was kept. Please report this with the versions of both"
            )
        if options.data is None:
            return
        self.scores = export_check.measure(
            native,
            exported,
            spec,
            data=options.data,
            split=options.split,
            fraction=options.fraction,
            verbose=options.verbose,
        )
        if self.scores.drop > options.max_map_drop:
            raise ExportError(
                f"export: the file loses {self.scores.drop:.2f} points of mAP50-95, {self.scores.before[0]:.4f} to "
                f"{self.scores.after[0]:.4f}; max_map_drop={options.max_map_drop:g} allows no more; nothing was kept"
            )

    def _without_nms(self, exported: ExportedEngine, written: Path) -> ExportedEngine | None:
        """A file that shows what goes into the thresholds: the file itself, or its twin where they are in the graph.

        The twin differs behind the heads only. None for an engine, which takes minutes to build.
        """
        options, spec = self.options, self.spec
        assert spec is not None
        if spec.outputs not in SUPPRESSED:
            return exported
        if written.suffix == ".engine":
            return None
        twin = replace(self, options=replace(options, target=None), spec=replace(spec, outputs="raw"))
        with tempfile.TemporaryDirectory(dir=written.parent) as folder:
            file = twin._write(Path(folder, written.name))
            return _engine_of(file, twin.spec, options.format)

    def _samples(self) -> list[np.ndarray]:
        """Pictures to compare on, BGR."""
        from .data.arrays import bgr_from_array, check_array
        from .data.images import read_image
        from .demo import draw_scene

        options = self.options
        if isinstance(options.source, np.ndarray):
            return [bgr_from_array(picture) for picture in check_array(options.source)]
        if options.source is not None:
            try:
                return [read_image(str(options.source))]
            except SourceError as error:
                raise SourceError(f"source: {error}") from None
        if options.data is None:
            return [draw_scene()]
        from .data.catalog import locate
        from .data.dataset import open_dataset

        pictures: list[np.ndarray] = []
        for image in open_dataset(locate(options.data), options.split).images:
            try:
                pictures.append(read_image(image.path))
            except SourceError as error:
                LOGGER.warning("export: not compared on %s", error)
            if len(pictures) == SAMPLES:
                break
        if not pictures:
            raise SourceError(f"data: not one picture of {options.data} could be read")
        return pictures

    def _print(self, spent: float) -> None:
        from .inspection import protocol_lines

        assert self.path is not None
        assert self.spec is not None
        print(f"{self.source.name} -> {self.path} ({_bytes(self.path) / 1e6:.1f} MB, written in {spent:.1f} s)")
        for one in self.beside:
            print(f"{'beside it':<11} {one}")
        for line in protocol_lines(self.spec):
            print(line)
        if self.difference is not None:
            print(f"{'checked':<11} {self.runtime} against the network: {self.difference}")
            if self.anchors is not None:
                print(f"{'':<11} {self.anchors}")
            if not self.difference.detections:
                print(f"{'':<11} source=PICTURE or data=... compares on pictures with objects")
        else:
            print(f"{'checked':<11} no")
        if self.scores is not None:
            print(f"\n{'':<14}{'mAP50-95':>10}{'mAP50':>10}   {self.scores.pictures} pictures of {self.scores.source}")
            for name, values in (("yolonas", self.scores.before), (self.runtime.split()[0], self.scores.after)):
                print(f"{name:<14}{values[0]:>10.4f}{values[1]:>10.4f}")
        self._print_use()

    def _print_use(self) -> None:
        assert self.path is not None
        assert self.spec is not None
        options, spec, path = self.options, self.spec, self.path
        if options.format == "engine" and path.suffix == ".onnx":
            engine = path.with_name(path.name.replace("-tensorrt.onnx", ".engine"))
            most = options.batch or targets.MAX_BATCH
            print("\nBuild the engine on the machine that runs it:\n")
            print(targets.trtexec_line(spec, str(path), str(engine), max_batch=most, workspace=options.workspace))
        elif options.target == "frigate":
            labels = path.with_name(f"{path.stem}-labels.txt")
            print(f"\n{targets.frigate_config(spec, f'/config/{path.name}', f'/config/{labels.name}')}")
        elif options.target == "triton":
            print(f"\nServe it with:\n\ntritonserver --model-repository={path.resolve()}")
        elif options.target == "deepstream":
            print(f"\nIn a pipeline:\n\nnvinfer config-file-path={path.resolve() / 'config_infer_primary.txt'}")


class _TorchSession:
    """A TorchScript or torch.export file that this process has just written, and nobody else."""

    name = "torch"
    device = CpuDevice()

    def __init__(self, path: Path, format: str):
        import torch

        from .exporting import torch_formats

        readers = {"torchscript": torch_formats.read_torchscript, "pt2": torch_formats.read_pt2}
        self.version = torch.__version__
        self._module, _ = readers[format](path)

    def run(self, x: np.ndarray) -> list[np.ndarray]:
        import torch

        with torch.inference_mode():
            found = self._module(torch.from_numpy(x))
        outputs = found if isinstance(found, list | tuple) else [found]
        return [output.numpy() for output in outputs]


def check_destination(options: ExportOptions, source: Path) -> list[Path]:
    """Where the file goes, and what goes beside it; see `export_setup.destinations`."""
    return destinations(options, source, builds_engine=options.format == "engine" and _has_tensorrt())


def _engine_of(written: Path, spec: ExportSpec, format: str) -> ExportedEngine:
    if format not in ("torchscript", "pt2"):
        return ExportedNetwork(written, spec).engine()
    from .exported_engine import ExportedEngine

    return ExportedEngine(_TorchSession(written, format), spec)


def _check_reader(options: ExportOptions, model: YoloNAS, spec: ExportSpec, name: str) -> None:
    """Raises ValueError or NotImplementedError, before anything is written, for what its reader cannot take."""
    if options.target == "frigate":
        targets.frigate_config(spec, "", "")
    elif options.target == "triton":
        targets.triton_config(spec, name, max_batch=options.batch or targets.MAX_BATCH)
    elif options.target == "deepstream":
        targets.deepstream_config(spec, "", "", batch=options.batch or 1)
    if options.format == "ncnn":
        from .exporting.ncnn import check_ncnn_spec

        check_ncnn_spec(model, spec)
    elif options.format in ("torchscript", "pt2"):
        from .exporting.torch_module import check_torch_spec

        check_torch_spec(model, spec)
        check_weights(dataflow(model, input_name=INPUT_NAME), spec.precision)


def _has_tensorrt() -> bool:
    """Whether engines can be built here; a warning says why not."""
    from .exporting.tensorrt import import_tensorrt

    try:
        import_tensorrt("export: TensorRT engines")
    except ImportError as error:
        LOGGER.warning("%s; writing the ONNX file for it", error)
        return False
    return True


@contextmanager
def _workplace(path: Path) -> Iterator[Path]:
    """A folder beside the destination for what is not finished; nothing of it stays."""
    folder = Path(tempfile.mkdtemp(prefix=f".{path.name[:100]}.", dir=path.parent))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _put(draft: Path, path: Path) -> None:
    """Gives what is finished its name. A folder that is there already goes away with the workplace, and comes back if
    something prevents that.
    """
    old = draft.with_name(f"{draft.name}.old")
    try:
        if path.is_dir() or (draft.is_dir() and os.path.lexists(path)):
            path.rename(old)
        draft.replace(path)
    except BaseException:
        if os.path.lexists(old) and not os.path.lexists(path):
            old.rename(path)
        raise


def _bytes(path: Path) -> int:
    return (
        sum(file.stat().st_size for file in path.rglob("*") if file.is_file()) if path.is_dir() else path.stat().st_size
    )
