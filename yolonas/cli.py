"""The command `yolonas [detect] MODE key=value ...`: parses, calls a driver and turns errors into exit codes.

Exit codes: 0 all went well; 1 something failed, or some pictures had to be skipped; 2 the command line is wrong; 130
interrupted.
"""

from __future__ import annotations

import ast
import logging
import os
import re
import sys
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import fields
from pathlib import Path
from typing import Any

from . import __version__
from .options import flag, image_size, unknown_name

LOGGER = logging.getLogger("yolonas")

OK, FAILED, USAGE, INTERRUPTED = 0, 1, 2, 130

NOT_YET = ("track", "benchmark")
TASKS = ("detect",)
VERBATIM = {"model", "name", "project", "source", "data", "images", "annotations", "shard"}  # never Python literals


_SHOWN_PACKAGES = ("torch", "numpy", "opencv-python", "pillow", "pycocotools", "matplotlib", "safetensors", "pyyaml")


class UsageError(ValueError):
    """The command line is wrong."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns its exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    if hasattr(sys.stdout, "reconfigure"):  # a class name that the console has no letters for must not end a run
        sys.stdout.reconfigure(errors="backslashreplace")
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    LOGGER.setLevel(logging.INFO)
    _begin_reading(words)
    try:
        mode, values = parse(words)
        return COMMANDS[mode](values)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # the reader of a pipe has gone (head, less)
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except UsageError as error:
        print(f"yolonas: {error}", file=sys.stderr)
        return USAGE
    except (ValueError, TypeError, NotImplementedError, OSError, RuntimeError, ImportError, MemoryError) as error:
        if os.environ.get("YOLONAS_DEBUG"):
            raise
        print(f"yolonas: {str(error) or type(error).__name__}", file=sys.stderr)
        return USAGE if type(error) in (ValueError, TypeError) else FAILED


def parse(words: Sequence[str]) -> tuple[str, dict[str, Any]]:
    """`(mode, values)` of a command line: `[detect] MODE key=value ...`.

    Forgiven with a warning: spaces around '=', leading '--', trailing commas. A bare option name means True;
    `cfg=FILE` reads options from a yaml file, which those on the command line override. Values: None, True, False in
    any case, Python literals, else text.

    Raises:
        UsageError: no or unknown mode, unknown option (the text has the nearest name), an argument without '='.
    """
    tokens = _join_equals(words)
    mode: str | None = None
    values: dict[str, Any] = {}
    parts: list[str] = []
    for token in tokens:
        if token in ("-h", "--help"):
            return "help", {}
        plain = _plain(token)
        key, equals, value = plain.partition("=")
        if equals:
            if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", key):
                raise UsageError(f"{token!r} must have the form name=value")
            if value == "" and key not in ("name", "project"):
                raise UsageError(f"{key}= has no value")
            values[key] = _verbatim(key, value) if key in VERBATIM and not _is_none(value) else _literal(value)
        elif mode is None and plain in (*COMMANDS, "h", "v"):
            mode = {"h": "help", "v": "version"}.get(plain, plain)
        elif plain in TASKS and mode not in ("merge", "inspect"):
            continue
        elif mode == "val" and plain == "merge":
            mode = "merge"
        elif mode is not None and mode != "inspect" and plain in _option_names(mode):
            values[plain] = True
        elif mode in ("merge", "inspect"):
            parts.append(token)
        else:
            what = "command" if mode is None else "argument"
            raise UsageError(unknown_name(what, plain, (*COMMANDS, *TASKS) if mode is None else _option_names(mode)))
    mode = str(values.pop("mode", None) or mode or "help")
    if mode not in COMMANDS:
        raise UsageError(unknown_name("command", mode, COMMANDS))
    if values.pop("task", "detect") != "detect":
        raise UsageError("task must be 'detect'")
    if "cfg" in values:
        values = {**_read_cfg(str(values.pop("cfg"))), **values}
    for name in values:
        if mode not in NOT_YET and name not in _option_names(mode):
            raise UsageError(unknown_name("argument", name, _option_names(mode)))
    if mode == "merge":
        values["parts"] = parts
    if mode == "inspect":
        values["files"] = parts
    return mode, values


def predict(values: dict[str, Any]) -> int:
    from .errors import SourceError
    from .model import NAS
    from .predict import PredictOptions

    model = values.pop("model", None)
    if model is None:
        model = "yolo_nas_s.pt"
        LOGGER.warning("predict: no model given, using model=%s", model)
    source = values.pop("source", None)
    values.setdefault("save", True)
    values.pop("stream", None)
    # Before the weights are loaded: a wrong option should not cost a download. From here on the names are the new ones.
    options = PredictOptions.of(**values)
    kept = [item.name for item in fields(options) if not item.metadata["ignored"] and item.name != "stream"]
    if options.verbose:
        print(_headline(model))
    detector = NAS(model)
    detector.fuse()
    if options.verbose:
        detector.info()
    found = 0
    results: Any = detector.predict(source, stream=True, **{name: getattr(options, name) for name in kept})
    try:
        with closing(results):  # after Ctrl-C too, so that its files are complete
            for result in results:
                found += len(result)
    except KeyboardInterrupt:
        seen = detector.predictor.seen if detector.predictor else 0
        print(f"interrupted after {seen} pictures; what was written up to here is complete", file=sys.stderr)
        return INTERRUPTED
    except SourceError as error:
        print(f"yolonas: {error}", file=sys.stderr)
        return FAILED
    predictor = detector.predictor
    if options.verbose:
        counted = f"{predictor.seen} picture{'s' * (predictor.seen != 1)}"
        print(f"{found} detection{'s' * (found != 1)} in {counted}")
    return FAILED if predictor.skipped or predictor.notes else OK


def val(values: dict[str, Any]) -> int:
    from .model import NAS
    from .val import ValOptions

    model = values.pop("model", None)
    if model is None:
        model = "yolo_nas_s.pt"
        LOGGER.warning("val: no model given, using model=%s", model)
    # Before the weights are loaded, as for predict.
    options = ValOptions.of(**values)
    if options.verbose:
        print(_headline(model))
    detector = NAS(model)
    detector.fuse()
    if options.verbose:
        detector.info()
    started: list[Any] = []
    detector.add_callback("on_val_start", started.append)
    kept = {item.name: getattr(options, item.name) for item in fields(options) if not item.metadata["ignored"]}
    try:
        metrics = detector.val(**kept)
    except KeyboardInterrupt:
        if not started:
            raise
        for validator in started:
            done = f"{validator.seen} of {validator.setup.planned} pictures"
            print(f"interrupted after {done}; the same command with resume goes on from there", file=sys.stderr)
        return INTERRUPTED
    return FAILED if metrics.left_out else OK


def demo(values: dict[str, Any]) -> int:
    from .demo import DemoOptions, run_demo
    from .model import NAS
    from .weights import SHIPPED

    model = values.pop("model", None) or SHIPPED
    options = DemoOptions.of(**values)  # before the weights are loaded, as for predict
    if options.verbose:
        print(_headline(model))
    return FAILED if run_demo(NAS(model), options).metrics.left_out else OK


def train(values: dict[str, Any]) -> int:
    # Waiting threads that spin take the cores from those that read pictures. It has to be said before torch is loaded.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    from .model import NAS
    from .train import TrainOptions
    from .train_files import find_interrupted

    model = values.pop("model", None)
    # Before the weights are loaded, as for predict.
    options = TrainOptions.of(**values)
    if options.resume:
        model = find_interrupted(options.resume, options.project, options.name).path.with_name("last.safetensors")
    elif model is None:
        model = "yolo_nas_s.pt"
        LOGGER.warning("train: no model given, using model=%s; yolo_nas_s.yaml begins with random weights", model)
    is_first = os.environ.get("RANK", "0") == "0"
    if options.verbose and is_first:
        print(_headline(model))
    detector = NAS(model)
    started: list[Any] = []
    detector.add_callback("on_train_start", started.append)
    try:
        metrics = detector.train(**{item.name: getattr(options, item.name) for item in fields(options)})
    except KeyboardInterrupt:
        if not started:
            raise
        print(_how_to_resume(started[0], "interrupted"), file=sys.stderr)
        return INTERRUPTED
    except OSError as error:
        if not started:
            raise
        print(_how_to_resume(started[0], f"yolonas: {error}"), file=sys.stderr)
        return FAILED
    if options.verbose and is_first:
        if metrics is not None:
            from .val_report import print_table

            print_table(metrics)
        print(f"Results saved to {detector.trainer.save_dir}; weights: {detector.ckpt_path}")
    return OK


def _how_to_resume(trainer: Any, why: str) -> str:
    if trainer.kept == 0:
        return f"{why} in the first epoch; nothing is kept"
    if not trainer.is_kept:
        return f"{why} after the training had ended; its weights are in {trainer.save_dir}"
    return f"{why} after epoch {trainer.kept}; 'yolonas train resume={trainer.save_dir}' goes on from there"


def quantize(values: dict[str, Any]) -> int:
    from .model import NAS
    from .quantize import QuantizeOptions

    model = values.pop("model", None)
    if model is None:
        model = "yolo_nas_s.pt"
        LOGGER.warning("quantize: no model given, using model=%s", model)
    # Before the weights are loaded, as for predict.
    options = QuantizeOptions.of(**values)
    if options.verbose:
        print(_headline(model))
    detector = NAS(model).fuse()
    if options.verbose:
        detector.info()
    kept = {item.name: getattr(options, item.name) for item in fields(options) if not item.metadata["ignored"]}
    try:
        card = detector.quantize(**kept).card
    except KeyboardInterrupt:
        print("interrupted; nothing is half-written", file=sys.stderr)
        return INTERRUPTED
    return FAILED if card.evaluation["left_out"] or card.calibration["left_out"] else OK


def export(values: dict[str, Any]) -> int:
    from .export import ExportOptions
    from .model import NAS

    model = values.pop("model", None)
    if model is None:
        model = "yolo_nas_s.pt"
        LOGGER.warning("export: no model given, using model=%s", model)
    if "format" not in values and "target" not in values:
        LOGGER.warning("export: no format given, using format=onnx")
    # Before the weights are loaded, as for predict.
    options = ExportOptions.of(**values)
    if options.verbose:
        print(_headline(model))
    kept = {item.name: getattr(options, item.name) for item in fields(options) if not item.metadata["ignored"]}
    try:
        NAS(model).export(**kept)
    except KeyboardInterrupt:
        print("interrupted; nothing is half-written", file=sys.stderr)
        return INTERRUPTED
    return OK


def inspect(values: dict[str, Any]) -> int:
    from .errors import CheckpointError
    from .inspection import inspect_lines

    files = values.pop("files")
    if values.get("model") is not None:
        files = [*files, values["model"]]
    if not files:
        raise UsageError("inspect needs files: yolonas inspect model.onnx")
    failed = 0
    for number, file in enumerate(files):
        try:
            print("\n" * (number > failed) + "\n".join(inspect_lines(file)), flush=True)
        except (CheckpointError, OSError) as error:
            failed += 1
            print(f"yolonas: {error}", file=sys.stderr)
    return FAILED if failed else OK


def merge(values: dict[str, Any]) -> int:
    from .merge import merge as merge_parts
    from .options import build
    from .val_report import ReportOptions

    parts = values.pop("parts")
    if not parts:
        raise UsageError("val merge needs folders: yolonas val merge runs/detect/val runs/detect/val-2")
    metrics = merge_parts(parts, build(ReportOptions, values, renamed={}, dropped=()))
    return FAILED if metrics.left_out else OK


def info(values: dict[str, Any]) -> int:
    from .compiled import CompiledFile, is_compiled, read_compiled
    from .engines import Engines
    from .exported import is_exported
    from .info import compiled_info, model_info, print_plan

    if values.get("model") is None:
        raise UsageError("info needs model=FILE or model=yolo_nas_s")
    detailed, plan, tune = (flag(name, values.get(name, False)) for name in ("detailed", "plan", "tune"))
    imgsz = None if values.get("imgsz") is None else image_size("imgsz", values["imgsz"])
    path = Path(values["model"]).expanduser()
    if is_exported(path):
        from .inspection import inspect_lines
        from .model import NAS

        print("\n".join(inspect_lines(path)))
        NAS(path).info(detailed=detailed, imgsz=imgsz, plan=plan, tune=tune)
        return OK
    if not is_compiled(path):
        from .checkpoint import Checkpoint, load_model, read_checkpoint
        from .weights import resolve_weights

        path = resolve_weights(values["model"])
    checkpoint: CompiledFile | Checkpoint = read_compiled(path) if is_compiled(path) else read_checkpoint(path)
    preprocess = checkpoint.preprocess
    size = imgsz or preprocess.size
    lines = {
        "file": f"{path} ({path.stat().st_size / 1e6:.1f} MB)",
        "kind": checkpoint.kind,
        "network": f"YOLO-NAS {checkpoint.variant.upper()}, {checkpoint.form} form",
        "classes": f"{checkpoint.num_classes}: {_shortened(list(checkpoint.names.values()))}",
        "input": f"{preprocess.size[0]}x{preprocess.size[1]}, {preprocess.channels.upper()}, "
        + (f"picture in {preprocess.fit[0]}x{preprocess.fit[1]}" if preprocess.fit else "picture not resized")
        + f", padding {preprocess.padding} with {preprocess.pad_value}",
        "thresholds": f"conf {checkpoint.settings.conf:g}, iou {checkpoint.settings.iou:g}",
    }
    for name, line in lines.items():
        print(f"{name:<11} {line}")
    for note in checkpoint.notes:
        print(f"{'note':<11} {note}")
    model: Any
    if isinstance(checkpoint, CompiledFile):
        model = checkpoint.network
        compiled_info(model, imgsz=size)
    else:
        model = load_model(checkpoint)
        model_info(model, detailed=detailed, imgsz=size)
    if plan or tune:
        device, engines = values.get("device"), Engines()
        print_plan(
            engines.native(model) if device is None else engines.choose(model, device, half=False, name="native"),
            size,
            tuned=tune,
        )
    return OK


def checks(values: dict[str, Any]) -> int:
    """What is installed and what the native part chose; fails if the native module is missing."""
    import platform
    from importlib import metadata

    print(f"{'yolonas':<14} {__version__}")
    print(f"{'python':<14} {platform.python_version()} on {platform.platform()}")
    for package in _SHOWN_PACKAGES:
        try:
            print(f"{package:<14} {metadata.version(package)}")
        except metadata.PackageNotFoundError:
            print(f"{package:<14} not installed as a package")
    from . import _native
    from .folders import datasets_folder, weights_folder

    build = _native.build_info()
    print(f"{'cpu kernels':<14} {build['cpu_isa']} (this processor can run: {build['cpu_isas_available']})")
    print(f"{'threads':<14} {build['threads']}")
    print(f"{'compiler':<14} {build['compiler']}")
    architectures = build["cuda_architectures"]
    print(f"{'cuda kernels':<14} {'not built' if architectures is None else ', '.join(architectures)}")
    import torch

    from .cuda_engine import why_not
    from .cuda_memory import why_no_devices

    if torch.cuda.is_available():
        print(f"{'cuda device':<14} {torch.cuda.get_device_name(0)}")
        print(f"{'cuda engine':<14} {why_not(torch.device('cuda:0')) or 'native'}")
    else:
        print(f"{'cuda device':<14} torch sees none: {why_no_devices()}")
    print(f"{'weights':<14} {weights_folder()}")
    print(f"{'data sets':<14} {datasets_folder()}")
    return OK


def version(values: dict[str, Any]) -> int:
    print(__version__)
    return OK


def show_help(values: dict[str, Any]) -> int:
    from .demo import DemoOptions
    from .export import ExportOptions
    from .predict import PredictOptions
    from .quantize import QuantizeOptions
    from .train import TrainOptions
    from .val import ValOptions

    print(f"""yolonas {__version__}: YOLO-NAS detectors

  yolonas demo                                             a first run without any file: drawn pictures, and their mAP
  yolonas predict model=yolo_nas_s.pt source=bus.jpg       detect objects in pictures, videos, folders, streams
  yolonas val     model=yolo_nas_s.pt data=coco8.yaml      mean average precision on a labelled data set
  yolonas val merge FOLDER FOLDER ...                      joins the parts of a val with shard=1/2, shard=2/2
  yolonas train   model=yolo_nas_s.pt data=cells.yaml      fine-tune on your own pictures; resume=FOLDER goes on
  yolonas quantize model=FILE data=cells.yaml              an INT8 network, and a card of what it costs
  yolonas export  model=FILE format=onnx                   a file for ONNX Runtime, OpenVINO, TensorRT, Frigate, ...
  yolonas inspect FILE ...                                 what exported files say about themselves
  yolonas info    model=FILE [detailed] [imgsz=640] [plan] what a weights file holds; plan: the engine's steps, timed
                                                           (with tune: after choosing by measuring, see predict)
  yolonas checks                                           versions, CPU kernels, devices
  yolonas version                                          the version
  yolonas help                                             this text
  not in this version yet: {", ".join(NOT_YET)}

Options are name=value; a bare name means True. cfg=FILE.yaml reads them from a file.""")
    kinds = {
        "demo": DemoOptions,
        "predict": PredictOptions,
        "val": ValOptions,
        "train": TrainOptions,
        "quantize": QuantizeOptions,
        "export": ExportOptions,
    }
    for mode, kind in kinds.items():
        print(f"\n{mode} takes:\n")
        for item in fields(kind):  # type: ignore[arg-type]
            if item.name == "stream" or item.metadata["ignored"]:
                continue
            default = True if (mode, item.name) == ("predict", "save") else item.default
            shown = "" if default is None else f" [{default}]"
            print(f"  {item.name:<14} {item.metadata['help']}{shown}")
    return OK


def not_yet(mode: str) -> Callable[[dict[str, Any]], int]:
    def run(values: dict[str, Any]) -> int:
        print(
            f"yolonas: '{mode}' is not in this version yet; predict, val, quantize, export, inspect and info are",
            file=sys.stderr,
        )
        return FAILED

    return run


COMMANDS: dict[str, Callable[[dict[str, Any]], int]] = {
    "demo": demo,
    "predict": predict,
    "val": val,
    "train": train,
    "quantize": quantize,
    "export": export,
    "inspect": inspect,
    "merge": merge,
    "info": info,
    "checks": checks,
    "version": version,
    "help": show_help,
    **{mode: not_yet(mode) for mode in NOT_YET},
}


def _option_names(mode: str) -> tuple[str, ...]:
    if mode == "predict":
        from .predict import PredictOptions, legacy_names

        return ("model", "source", *(item.name for item in fields(PredictOptions)), *legacy_names())
    if mode == "val":
        from .val import ValOptions
        from .val import legacy_names as old_names

        return ("model", *(item.name for item in fields(ValOptions)), *old_names())
    if mode == "demo":
        from .demo import DemoOptions

        return ("model", *(item.name for item in fields(DemoOptions)))
    if mode == "train":
        from .train import TrainOptions
        from .train import legacy_names as train_names

        return ("model", *(item.name for item in fields(TrainOptions)), *train_names())
    if mode == "quantize":
        from .quantize import QuantizeOptions
        from .quantize import legacy_names as ignored_names

        return ("model", *(item.name for item in fields(QuantizeOptions)), *ignored_names())
    if mode == "export":
        from .export import ExportOptions
        from .export import legacy_names as export_names

        return ("model", *(item.name for item in fields(ExportOptions)), *export_names())
    if mode == "merge":
        from .val_report import ReportOptions

        return tuple(item.name for item in fields(ReportOptions))
    return {"info": ("model", "detailed", "imgsz", "plan", "tune", "device"), "inspect": ("model",)}.get(mode, ())


def _join_equals(words: Sequence[str]) -> list[str]:
    """Joins 'a = b', 'a =b' and 'a= b' to 'a=b', and lists that the shell split at spaces."""
    tokens: list[str] = []
    for word in words:
        if tokens and (word.startswith("=") or re.fullmatch(r"-*\w+=", tokens[-1]) or _is_open(tokens[-1])):
            tokens[-1] += word
        else:
            tokens.append(word)
    if any("=" in word and (word.startswith("=") or word.endswith("=")) for word in words):
        LOGGER.warning("spaces around '=' are not needed: name=value")
    return tokens


def _is_open(token: str) -> bool:
    """Whether a list has begun that is not closed. File names may hold single brackets, but not begin with them."""
    value = token.partition("=")[2]
    return value[:1] in ("[", "(") and sum(map(value.count, "[(")) > sum(map(value.count, "])"))


def _plain(token: str) -> str:
    stripped = token.lstrip("-") if re.match(r"--?[A-Za-z]", token) else token
    if stripped.endswith(",") and not stripped.endswith("=,"):
        stripped = stripped.rstrip(",")
    if stripped != token:
        LOGGER.warning("read %r as %r", token, stripped)
    return stripped


def _verbatim(key: str, value: str) -> str | list[Any]:
    """The text as it is, but for pictures in brackets, with or without quotes (a shell takes them away)."""
    if key not in ("source", "data") or not re.fullmatch(r"\[.*\]", value):
        return value
    listed = _literal(value)
    if isinstance(listed, list):
        return listed
    # "[ab].jpg" and "[0-9]*" are patterns; one that is a set of letters and commas and nothing else is not.
    return [part.strip(" '\"") for part in value[1:-1].split(",")] if "," in value else value


def _is_none(value: str) -> bool:
    return value.lower() in ("none", "null")


def _literal(value: str) -> Any:
    lowered = value.lower()
    if _is_none(value):
        return None
    if lowered in ("true", "false"):
        return lowered == "true"
    try:
        return ast.literal_eval(value)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return value


def _read_cfg(path: str) -> dict[str, Any]:
    import yaml

    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError, RecursionError) as error:
        raise UsageError(f"cfg: {path} cannot be read as yaml: {error}") from error
    if not isinstance(content, dict):
        raise UsageError(f"cfg: {path} must hold name: value lines")
    return {str(key): value for key, value in content.items() if key not in ("task", "mode")}


def _begin_reading(words: Sequence[str]) -> None:
    """A compiled model is read while the modules that use it are imported: half of such a start is imports."""
    files = [word.removeprefix("model=") for word in words if word.startswith("model=")]
    if files:
        from .compiled import read_ahead

        read_ahead(files[0])


def _headline(model: Any) -> str:
    import platform

    from . import _native
    from .compiled import is_compiled

    with_torch = ""
    if not is_compiled(model):  # such a file needs none, and starts faster without
        import torch

        with_torch = f"torch {torch.__version__}, "
    return (
        f"yolonas {__version__}, Python {platform.python_version()}, {with_torch}"
        f"{_native.build_info()['cpu_isa']} kernels"
    )


def _shortened(names: list[str], limit: int = 8) -> str:
    shown = ", ".join(names[:limit])
    return shown if len(names) <= limit else f"{shown}, ... ({len(names) - limit} more)"


if __name__ == "__main__":
    sys.exit(main())
