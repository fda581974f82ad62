"""`NAS`: one object for a detector, in the shape that users of other libraries know. Its methods only call drivers."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .config import COCO_NAMES, VARIANTS, DetectSettings, variant_of_yaml
from .engines import Engines
from .preprocess import Preprocess

if TYPE_CHECKING:
    from .compiled import CompiledNetwork
    from .engines import Engine
    from .exported import ExportedNetwork
    from .metrics import DetMetrics
    from .native_engine import NativeEngine
    from .nn import YoloNAS
    from .on_device import OnDevice
    from .predict import Predictor
    from .quantization.card import Card
    from .results import Results
    from .train import Trainer

LOGGER = logging.getLogger("yolonas")

LARGE_RESULTS = 1 << 30  # bytes of pictures in a list of results, from which on a warning is due

EVENTS = (
    *("on_predict_start", "on_predict_batch_start", "on_predict_postprocess_end", "on_predict_batch_end"),
    *("on_predict_end", "on_val_start", "on_val_batch_start", "on_val_batch_end", "on_val_end"),
    *("on_export_start", "on_export_end"),
    *("on_train_start", "on_train_epoch_start", "on_train_batch_start", "on_train_batch_end", "on_train_epoch_end"),
    *("on_fit_epoch_end", "on_train_end"),
)


class NAS:
    """A YOLO-NAS detector.

    Args:
        model: a weights file of any kind that `checkpoint.read_checkpoint` knows; a compiled file, see `save`; a name
            such as `yolo_nas_s`, which is looked up (see `weights.resolve_weights`); a file that `export` wrote, which
            runs in its own runtime; `yolo_nas_s.yaml` (s, m or l) for random weights, to be trained; or a `YoloNAS`
            module.
        task: only "detect".
        names: class names for a module: a list or a dict by number. Files have their own.
        verbose: True prints what was loaded.

    Attributes:
        model: the network, a `torch.nn.Module`. In eval mode `model(x)` with float `(N, 3, H, W)` gives
            boxes `(N, A, 4)` xyxy in input pixels and scores `(N, A, C)`. Of a compiled file a `CompiledNetwork`, of an
            exported one an `ExportedNetwork`.
        names: class names by number. preprocess: the input convention. settings: the thresholds that the file says.
        ckpt_path: the file, or None. predictor: the latest `predict` run, or None. metrics: of the latest `val` run.
        trainer: the latest `train` run, or None.
        card: what a network that `quantize` returned costs; of others None.

    Raises:
        CheckpointError: the file cannot be used. WeightsNotFoundError: there is no such file.
    """

    task = "detect"
    transforms = None

    def __init__(
        self,
        model: str | os.PathLike[str] | YoloNAS = "yolo_nas_s.pt",
        task: str | None = None,
        *,
        names: Sequence[str] | Mapping[int, str] | None = None,
        verbose: bool = False,
    ):
        if task not in (None, "detect"):
            raise ValueError(f"NAS: task must be 'detect', got {task!r}")
        self.overrides: dict[str, Any] = {}
        self.predictor: Predictor | None = None
        self.trainer: Trainer | None = None
        self.metrics: DetMetrics | None = None
        self.card: Card | None = None
        self._engines = Engines()
        self._callbacks: dict[str, list[Callable[[Any], None]]] = {event: [] for event in EVENTS}
        if isinstance(model, str | os.PathLike):
            if names is not None:
                raise ValueError(
                    "NAS: names are for a module; a file has its own (where it has none, predict takes data=...)"
                )
            self.load(model)
        else:
            self._take_module(model, names)
        if verbose:
            self.info()

    def __call__(self, source: Any = None, stream: bool = False, **options: Any) -> list[Results] | Iterator[Results]:
        """Same as `predict`."""
        return self.predict(source, stream, **options)

    def predict(
        self, source: Any = None, stream: bool = False, predictor: Any = None, **options: Any
    ) -> list[Results] | Iterator[Results]:
        """Detects objects in pictures, videos or streams.

        Args:
            source: file, folder, glob, list, `.txt` list, URL, camera number, array `(H, W, 3)` BGR uint8, PIL
                picture, tensor `(H, W, 3)` BGR uint8 or `(B, 3, H, W)` RGB in 0..1 with sides in multiples of 32,
                what has `__dlpack__`, encoded bytes. Pictures on the engine's CUDA device are not copied to the host
                unless `orig_img` is used. None: a drawn demonstration picture.
            stream: True returns a generator, whose memory does not grow with the source; the source is opened when
                the first result is asked for.
            predictor: taken for compatibility; must be None.
            options: see `predict.PredictOptions`.

        Returns:
            A list of `Results`, one per picture or frame that could be read; those that could not are in
            `predictor.skipped`.

        Raises:
            ValueError: an option is unknown or out of range. SourceError: the source cannot be opened.

        The first call fuses the network in place, in float64; what it computes stays the same. On CPUs and CUDA devices
        the native engine runs it, from a copy of the weights; `engine="torch"` runs the modules themselves. On a CUDA
        device the next batch of a folder or video is on its way while one computes; for code that has its pictures
        there, see `on_device`.
        """
        from .predict import PredictOptions, Predictor, preprocess_of, settings_of

        if predictor is not None:
            raise NotImplementedError("predict: predictor must be None; subclassing the predictor is not supported")
        chosen = PredictOptions.of(**{**self.overrides, **options, "stream": stream})
        if source is None:
            from .demo import draw_scene

            LOGGER.warning(
                "predict: no source given, using a drawn demonstration picture; pass source=... for your own"
            )
            source = draw_scene()
        names = self.names
        if chosen.data is not None and all(name == f"class_{index}" for index, name in names.items()):
            from .data.data_yaml import names_of_yaml

            names = names_of_yaml(chosen.data, len(names))
        preprocess = preprocess_of(chosen, self.preprocess)
        self.predictor = Predictor(
            self._engine_for(chosen.device, half=self._runs_half(chosen.quantize), name=chosen.engine),
            preprocess,
            names,
            settings_of(chosen, self.settings),
            chosen,
            self._run_callbacks,
        )
        results = self.predictor.stream(source)
        return results if chosen.stream else _collect(results)

    def on_device(self, **options: Any) -> OnDevice:
        """Detections on a CUDA device without the host: an object to be called with pictures there.

        Args:
            options: `device` (default: that of `to`, else the first GPU), `precision`, `tune`, and those of `predict`
                that say what is detected: `conf`, `iou`, `imgsz`, `rect`, `protocol`, `batch` (for `tune`), `max_det`,
                `classes`, `agnostic_nms`, `multi_label`.

        Returns:
            `detect`, for `detections, counts = detect(pictures)`: see `OnDevice`. It keeps the weights of now.

        Raises:
            ValueError: an option is wrong, or the native engine does not run there; the text says why.
            MemoryError: the network does not fit there.
        """
        from .on_device import TAKEN, OnDevice
        from .predict import PredictOptions, preprocess_of, settings_of

        if self.model.form == "exported":
            raise ValueError("on_device: model must not be an exported file, which has its own runtime")
        for name in options:
            if name not in TAKEN:
                raise ValueError(f"on_device: {name!r} is no option of it; there are {', '.join(TAKEN)}")
        device = options.pop("device", None)
        if device is None:
            device = self.overrides.get("device", 0)
        own = {name: value for name, value in self.overrides.items() if name in TAKEN}
        chosen = PredictOptions.of(**{**own, **options, "device": device, "engine": "native"})
        engine = self._engine_for(chosen.device, half=self._runs_half(chosen.quantize), name="native")
        if engine.device.type != "cuda":
            raise ValueError(f"on_device: device must be a CUDA device, got {str(engine.device)!r}; predict runs there")
        preprocess = preprocess_of(chosen, self.preprocess)
        if chosen.tune:
            from .tuning import tune

            tune(engine, preprocess.size, chosen.batch)
        return OnDevice(engine, preprocess, settings_of(chosen, self.settings), dict(self.names))

    def val(self, validator: Any = None, **options: Any) -> DetMetrics:
        """Mean average precision and its relatives on a labelled data set.

        Args:
            validator: taken for compatibility; must be None.
            options: see `val.ValOptions`; `data` names the data set.

        Returns:
            The metrics, which are also in `metrics`; files are in the run folder `metrics.save_dir`.

        Raises:
            ValueError: an option is wrong, or the data set cannot be used or does not fit the model.
            FileNotFoundError: there is no such data set; the text says what to put where.

        Under `protocol="sg"`, the default, pictures go through the checkpoint's own pre-processing and super-gradients'
        validation thresholds, boxes are mapped back to the picture, and pycocotools scores them. (super-gradients' own
        metric is computed in the network's frame, with other rules for crowds and 300 boxes per class: its figures
        differ by hundredths to tenths of a point.)

        As `predict`, it fuses the network in place.
        """
        from .val import Validator, ValOptions

        if validator is not None:
            raise NotImplementedError("val: validator must be None; subclassing the validator is not supported")
        chosen = ValOptions.of(**{**self.overrides, **options})
        run = Validator(
            self._engine_for(chosen.device, half=self._runs_half(chosen.quantize), name=chosen.engine),
            dict(self.names),
            self.preprocess,
            self._weights_digest(),
            str(self.ckpt_path or self.model.variant.model_name),
            chosen,
            self._run_callbacks,
        )
        self.metrics = run.run()
        return self.metrics

    def quantize(self, **options: Any) -> NAS:
        """An INT8 network, made with ranges from pictures; this one stays as it is.

        Args:
            options: see `quantize.QuantizeOptions`; `data` names a data set or pictures.

        Returns:
            A new `NAS` whose `ckpt_path` is the file that was written, and whose `card` says what it costs: mAP of the
            float and of the integer network on the data given, milliseconds, bytes, layers in float.

        Raises:
            ValueError: an option is wrong, the network is quantised already, the data cannot be used, or the native
                engine does not run on the device. MemoryError: a batch does not fit there.
            FileNotFoundError: there is no such data set. SourceError: not one picture could be used.
            QuantizationError: `max_map_drop` cannot be met.
        """
        from .quantize import QuantizeOptions, Quantizer

        if self._is_file:
            raise ValueError(
                "quantize: model must be a checkpoint, got a compiled or exported file; load what it is of"
            )
        chosen = QuantizeOptions.of(**options)
        source = str(self.ckpt_path or self.model.variant.model_name)
        moved_to = self.overrides.get("device")
        run = Quantizer(self.model, dict(self.names), self.preprocess, self.settings, source, chosen, moved_to)
        quantized = NAS(run.run(), names=run.names)
        quantized.preprocess, quantized.settings = run.preprocess, self.settings
        quantized.ckpt_path, quantized.card = run.path, run.card
        return quantized

    def info(
        self,
        detailed: bool = False,
        verbose: bool = True,
        imgsz: int | tuple[int, int] | None = None,
        plan: bool = False,
        tune: bool = False,
    ) -> tuple[int, int, int, float]:
        """Prints and returns `(layers, parameters, gradients, GFLOPs)`; `imgsz` is by default the checkpoint's.

        `plan` prints and times the steps of the native engine besides, on the device that `to` named, else on the CPU,
        and fuses the network in place; `detailed` does so too after `to("cuda")`. `tune` measures first how they run
        fastest, see `tuning`, and marks the steps that this changed.
        """
        from .info import compiled_info, exported_info, model_info, print_plan

        size = imgsz or self.preprocess.size
        if self.model.form == "exported":
            if plan or tune:
                raise ValueError("info: plan is of the native engine, which does not run exported files")
            return exported_info(self.model, verbose=verbose, imgsz=size)
        if self._is_compiled:
            numbers = compiled_info(self.model, verbose=verbose, imgsz=size)
        else:
            numbers = model_info(self.model, detailed=detailed, verbose=verbose, imgsz=size)
        on_cuda = str(self.overrides.get("device", "")).startswith("cuda")
        if plan or tune or (detailed and on_cuda):
            engine = self._engine_for(None, half=False, name="native") if on_cuda else self._engines.native(self.model)
            print_plan(engine, size, tuned=tune)
        return numbers

    def fuse(self) -> NAS:
        """Folds branches and batch norms into the convolutions, in place and in float64; idempotent."""
        if not self._is_file:
            from .nn import fuse_

            fuse_(self.model.eval())
        return self

    def load(self, weights: str | os.PathLike[str] = "yolo_nas_s.pt") -> NAS:
        """Replaces the network by the one in a file; nothing in the file is executed."""
        from .compiled import is_compiled, read_compiled
        from .exported import is_exported, read_exported

        variant = variant_of_yaml(weights)
        self._is_new = False
        if variant is not None:
            from .nn import YoloNAS

            self._engines, self.card = Engines(), None
            self._take_module(YoloNAS(variant).eval(), None)
            self._is_new = True
            return self
        exported = is_exported(weights)
        if not exported and not is_compiled(weights):
            from .weights import resolve_weights

            weights = resolve_weights(weights)
        path = Path(weights).expanduser()
        self._engines = Engines()
        self.card = None
        if exported:
            network = read_exported(path)
            spec = network.spec
            self.model: YoloNAS | CompiledNetwork | ExportedNetwork = network
            self.names, self.preprocess, self.settings = dict(spec.names), spec.preprocess, spec.settings
            self.ckpt_path: Path | None = path
            return self
        if is_compiled(path):
            compiled = read_compiled(path)
            self.model = compiled.network
            self.names, self.preprocess, self.settings = compiled.names, compiled.preprocess, compiled.settings
            self.ckpt_path = path
            return self
        from .checkpoint import load_model, read_checkpoint

        checkpoint = read_checkpoint(path)
        self.model = load_model(checkpoint)
        self.names = dict(checkpoint.names)
        self.preprocess = checkpoint.preprocess
        self.settings = checkpoint.settings
        self.ckpt_path = path
        for note in checkpoint.notes:
            LOGGER.info("%s: %s", path, note)
        return self

    def save(self, filename: str | os.PathLike[str] = "yolo_nas.safetensors") -> Path:
        """Writes weights, class names, pre-processing and thresholds to one file and returns its path.

        `.safetensors`: the network in its current form; after `predict` or `fuse` that is the fused one, which cannot
        be trained; a quantised one with int8 weights, in about a quarter of the size. `.yolonas`: compiled for the
        native engine, which starts without torch; this fuses the network.
        """
        if self.model.form == "exported":
            raise ValueError("save: an exported file has no weights to save; load the checkpoint that it is of")
        if Path(filename).suffix == ".yolonas":
            from .compiled import write_compiled

            return write_compiled(
                filename,
                self._on_cpu(),
                self.model.variant,
                names=self.names,
                preprocess=self.preprocess,
                settings=self.settings,
            )
        if self._is_compiled:
            raise ValueError(
                f"save: path must end in .yolonas for a compiled network, got {os.fspath(filename)!r}; "
                "the checkpoint that it was made from can be saved as .safetensors"
            )
        from .checkpoint import save_checkpoint

        return save_checkpoint(
            filename, self.model, names=self.names, preprocess=self.preprocess, settings=self.settings
        )

    @property
    def device(self) -> Any:
        """Where the network runs: the device of the latest run or of `to`, else of the weights.

        A torch device, or of a compiled file on the CPU what stands for it without torch.
        """
        if self.model.form == "exported":
            return self.model.engine(self.overrides.get("device")).device
        if self._engines.device is not None:
            return self._engines.device
        return self.model.engine.device if self._is_compiled else next(self.model.parameters()).device

    def to(self, device: Any) -> NAS:
        """Moves the network; later calls without `device=` use this one."""
        if self._is_file:
            engine = self._engine_for(device, half=False, name=None)  # refuses what it does not run on
            if self._is_compiled:
                self.overrides["device"] = str(engine.device)
            return self
        from .engine import choose_device

        chosen = choose_device(device)
        self.model.to(chosen)
        self.overrides["device"] = str(chosen)
        self._engines = Engines()
        return self

    def cpu(self) -> NAS:
        return self.to("cpu")

    def cuda(self, device: int = 0) -> NAS:
        return self.to(f"cuda:{device}")

    def add_callback(self, event: str, func: Callable[[Any], None]) -> None:
        """Calls `func(predictor)` at an event: one of `EVENTS`."""
        self._event(event).append(func)

    def clear_callback(self, event: str) -> None:
        """Removes all callbacks of one event."""
        self._event(event).clear()

    def reset_callbacks(self) -> None:
        """Removes all callbacks."""
        for functions in self._callbacks.values():
            functions.clear()

    def export(self, **options: Any) -> str:
        """Writes a file for another runtime that carries everything, and checks it against this network.

        Args:
            options: see `export.ExportOptions`; `format` is "onnx" unless said otherwise. `quantize="int8"` of a float
                network with `data` quantises it first, see `quantize`, and leaves the quantised checkpoint in the run
                folder.

        Returns:
            The path of the file or folder, beside the weights unless `save` says otherwise.

        Raises:
            ValueError, NotImplementedError: options that do not go together. ImportError: a package for the format is
                missing. ExportError: the file does not give what the network gives, or loses too much; none is left.

        As `predict`, it fuses the network in place.
        """
        from .export import Exporter, ExportOptions, check_destination
        from .weights import is_shipped

        if self._is_file:
            raise ValueError("export: model must be a checkpoint, got an exported or compiled file; load what it is of")
        chosen = ExportOptions.of(**options)
        source, network = self.ckpt_path or Path(f"{self.model.variant.model_name}.pt"), self
        if is_shipped(source):  # what is made of it belongs to the user, not into the package
            source = Path(source.name)
        if chosen.quantize == "int8" and chosen.data is not None and not self.model.activation_scales:
            source = source.with_name(f"{source.stem}-int8{source.suffix}")
            check_destination(chosen, source)  # told now, not after minutes of work
            network = self.quantize(data=chosen.data, split=chosen.split, imgsz=chosen.imgsz, verbose=chosen.verbose)
        run = Exporter(
            network.fuse().model,
            network.names,
            network.preprocess,
            network.settings,
            source,
            chosen,
            network._card_for_export(),
        )
        self._run_callbacks("on_export_start", run)
        path = run.run()
        self._run_callbacks("on_export_end", run)
        return str(path)

    def train(self, trainer: Any = None, **options: Any) -> DetMetrics | None:
        """Trains the network on labelled pictures; afterwards this object has the weights of the best epoch.

        Args:
            trainer: taken for compatibility; must be None.
            options: see `train.TrainOptions`; `data` names the data set.

        Returns:
            The metrics of the best epoch; None where nothing was measured, and in other processes than the first one.
            `trainer` tells of the rest, such as the run folder `trainer.save_dir`.

        Raises:
            ValueError: an option is wrong, the data set cannot be used, or the network cannot be trained.
            FileNotFoundError: there is no such data set, or nothing to resume. MemoryError: a batch does not fit.
            TrainingError: a loss that is NaN or infinite; the text has the names of the pictures.

        A network of `yolo_nas_s.yaml` begins with random weights, any other with its own. Where the number of classes
        is another one, the last layers of the class branches are new. A quantised network is trained with simulated
        quantisation and stays quantised. The object that stands here is not changed until the training has ended.
        """
        import copy

        from .train import Trainer, TrainOptions
        from .train_setup import trainable

        if trainer is not None:
            raise NotImplementedError("train: trainer must be None; subclassing the trainer is not supported")
        if self._is_file:
            raise ValueError("train: model must be a checkpoint, got a compiled or exported file; load what it is of")
        chosen = TrainOptions.of(**{**self.overrides, **options})
        makes_its_own = bool(chosen.resume) or self._is_new or not chosen.pretrained
        run = self.trainer = Trainer(
            self.model if makes_its_own else copy.deepcopy(trainable(self.model, self.ckpt_path)),
            self._is_new,
            dict(self.names),
            self.preprocess,
            self.settings,
            str(self.ckpt_path or self.model.variant.model_name),
            chosen,
            self._run_callbacks,
        )
        metrics = run.run()
        kept = run.best or run.last
        if kept is not None and kept.exists():  # not where another machine has written it
            self.load(kept)
        else:
            self.model, self.names, self.preprocess = run.model.eval(), dict(run.names), run.preprocess
        self.metrics = metrics
        return metrics

    def benchmark(self, *_: Any, **__: Any) -> Any:
        """Not in this version."""
        raise _not_yet("benchmark")

    def track(self, *_: Any, **__: Any) -> Any:
        """Not in this version."""
        raise _not_yet("track")

    def embed(self, *_: Any, **__: Any) -> Any:
        """Not in this version."""
        raise _not_yet("embed")

    def __repr__(self) -> str:
        from .info import precision

        height, width = self.preprocess.size
        parts = [f"{len(self.names)} classes", f"{height}x{width}", self.model.form, *precision(self.model)]
        return f"NAS({self.model.variant.model_name}, {', '.join(parts)})"

    def _take_module(self, module: Any, names: Sequence[str] | Mapping[int, str] | None) -> None:
        from .nn import YoloNAS

        if not isinstance(module, YoloNAS):
            raise TypeError(f"NAS: model must be a path, a name or a YoloNAS module, got {type(module).__name__}")
        if names is None:
            count = module.num_classes
            names = COCO_NAMES if count == len(COCO_NAMES) else [f"class_{index}" for index in range(count)]
        by_number = dict(names) if isinstance(names, Mapping) else dict(enumerate(names))
        if sorted(by_number) != list(range(module.num_classes)):
            raise ValueError(f"NAS: names must be for {module.num_classes} classes, got {len(by_number)}")
        self._is_new = False
        self.model = module
        self.names = {index: str(name) for index, name in by_number.items()}
        self.preprocess = Preprocess()
        self.settings = DetectSettings()
        self.ckpt_path = None

    @property
    def _is_compiled(self) -> bool:
        return self.model.form == "compiled"

    @property
    def _is_file(self) -> bool:
        """Whether there is no module, but a file for a runtime: compiled for ours, or exported for another."""
        return self.model.form in ("compiled", "exported")

    def _card_for_export(self) -> dict[str, Any] | None:
        """The card of this network's quantisation without its long tables, from the file beside it if need be."""
        from .weights import card_beside

        if not self.model.activation_scales:
            return None
        if self.card is not None:
            stated = self.card.to_dict()
        else:
            stated = None if self.ckpt_path is None else card_beside(self.ckpt_path)
        if stated is None:
            return None
        return {key: value for key, value in stated.items() if key not in ("trials", "sensitivity")}

    def _engine_for(self, device: Any, *, half: bool, name: str | None) -> Engine:
        return self._engines.choose(
            self.model, self.overrides.get("device") if device is None else device, half=half, name=name
        )

    def _on_cpu(self) -> NativeEngine:
        """The native engine on the CPU. A module on another device is not moved."""
        if not self._is_file and next(self.model.parameters()).device.type != "cpu":
            from .native_engine import NativeEngine, graph_of_module, native_of_graph

            return NativeEngine(native_of_graph(graph_of_module(self.model)), self.model.num_classes)
        return self._engines.native(self.model)

    def _runs_half(self, precision: str | None) -> bool:
        """Whether to run in float16. An INT8 network is made by `quantize` and runs as such, whatever is asked for."""
        quantized = self.model.is_quantized if self._is_file else bool(self.model.activation_scales)
        if precision == "int8" and not quantized:
            raise ValueError(
                "quantize='int8' needs a quantised network; make one with NAS.quantize(data=...) or "
                "'yolonas quantize model=... data=...'"
            )
        if precision in ("fp16", "fp32") and quantized:
            LOGGER.warning("quantize=%r has no effect: the network is quantised and runs in int8", precision)
        elif self.model.form == "exported" and precision not in (None, self.model.spec.precision):
            LOGGER.warning("quantize=%r has no effect: the file runs in %s", precision, self.model.spec.precision)
        return precision == "fp16" and not quantized

    def _weights_digest(self) -> str:
        """What tells these weights from others: the SHA-256 of the parameters, which may differ from their file's."""
        import hashlib

        if self._is_compiled:
            return hashlib.sha256(self.model.engine.native.serialize()).hexdigest()
        if self.model.form == "exported":
            return self.model.digest()
        digest = hashlib.sha256()
        for name, tensor in self.model.state_dict().items():
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
        if self.model.activation_scales:
            digest.update(repr(sorted(self.model.activation_scales.items())).encode())
        return digest.hexdigest()

    def _event(self, event: str) -> list[Callable[[Any], None]]:
        if event not in self._callbacks:
            raise ValueError(f"callback: event must be one of {', '.join(EVENTS)}, got {event!r}")
        return self._callbacks[event]

    def _run_callbacks(self, event: str, subject: Any) -> None:
        for function in self._callbacks[event]:
            function(subject)


def _collect(results: Iterator[Results]) -> list[Results]:
    """A list, with a warning when its pictures fill the memory: a live stream never ends."""
    kept, size = [], 0
    for result in results:
        kept.append(result)
        before, size = size, size + 3 * result.orig_shape[0] * result.orig_shape[1]
        if before < LARGE_RESULTS <= size:
            LOGGER.warning("predict: %d results hold %.1f GB so far; stream=True keeps none", len(kept), size / 1e9)
    return kept


def _not_yet(what: str) -> NotImplementedError:
    have = "predict, val, train, quantize, export, info, fuse and save"
    return NotImplementedError(
        f"{what} is not in this version of yolonas, which has {have} for {', '.join(VARIANTS)} models"
    )
