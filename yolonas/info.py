"""The size of a network in numbers: layers, parameters, gradients and the arithmetic of one forward pass; and where the
native engine spends its time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from .preprocess import check_size

if TYPE_CHECKING:
    from torch import nn

    from .compiled import CompiledNetwork
    from .exported import ExportedNetwork
    from .native_engine import NativeEngine
    from .nn import YoloNAS

TIMED_ROUNDS = 10


class Layer(NamedTuple):
    """One row of the detailed table. A layer is a module without children."""

    name: str
    kind: str
    parameters: int
    output: tuple[int, ...]  # shape for one picture; empty where the layer is not used
    flops: int  # 2 per multiply-add of a convolution, 0 for everything else


def model_info(
    model: YoloNAS, detailed: bool = False, verbose: bool = True, imgsz: int | tuple[int, int] = 640
) -> tuple[int, int, int, float]:
    """Returns `(layers, parameters, gradients, gflops)`; `verbose` prints them, `detailed` every layer before them.

    Gradients counts the parameters that take them. GFLOPs are 2 x multiply-adds of the convolutions for one picture of
    `imgsz` (one side or (height, width)), counted from shapes: nothing is computed.

    Raises:
        ValueError: `imgsz` is not a multiple of 32.
    """
    layers = count_layers(model, _sides(imgsz))
    parameters = sum(parameter.numel() for parameter in model.parameters())
    gradients = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    gflops = sum(layer.flops for layer in layers) / 1e9
    if verbose:
        if detailed:
            _print_table(layers)
        print(
            f"{model.variant.model_name.upper()} summary: {len(layers)} layers, {parameters:,} parameters, "
            f"{gradients:,} gradients, {gflops:.1f} GFLOPs" + "".join(f", {part}" for part in precision(model))
        )
    return len(layers), parameters, gradients, gflops


def precision(model: YoloNAS | CompiledNetwork | ExportedNetwork) -> list[str]:
    """What is quantised, in words: a list of one, or of none for a network in float."""
    if model.form in ("compiled", "exported"):
        return ["INT8"] * model.is_quantized
    if not model.activation_scales:
        return []
    from torch import nn

    layers = [module for module in model.modules() if isinstance(module, nn.Conv2d | nn.ConvTranspose2d)]
    count = sum(hasattr(module, "weight_scale") for module in layers)
    return [f"INT8 in {count} of {len(layers)} layers"]


def compiled_info(
    network: CompiledNetwork, verbose: bool = True, imgsz: int | tuple[int, int] = 640
) -> tuple[int, int, int, float]:
    """The same for a compiled file, from the native engine's steps. Without torch."""
    steps = network.engine.plan(_sides(imgsz))
    parameters = sum(step["parameters"] for step in steps)
    gflops = sum(step["mflop"] for step in steps) / 1e3
    if verbose:
        kinds = [step["dtype"] for step in steps if step["parameters"]]
        quantized = f", INT8 in {kinds.count('int8')} of {len(kinds)} layers" * network.is_quantized
        print(
            f"{network.variant.model_name.upper()} summary: {len(steps)} steps, {parameters:,} parameters, compiled, "
            f"{gflops:.1f} GFLOPs{quantized}"
        )
    return len(steps), parameters, 0, gflops


def exported_info(
    network: ExportedNetwork, verbose: bool = True, imgsz: int | tuple[int, int] = 640
) -> tuple[int, int, int, float]:
    """The same for an exported file: that of the folded network, of which there are shapes alone."""
    import torch

    from .nn import YoloNAS

    with torch.device("meta"):
        model = YoloNAS(network.variant, num_classes=network.num_classes, form="folded").requires_grad_(False)
    layers, parameters, gradients, gflops = model_info(model, verbose=False, imgsz=imgsz)
    if verbose:
        quantized = "".join(f", {part}" for part in precision(network))
        print(
            f"{network.variant.model_name.upper()} summary: {layers} layers, {parameters:,} parameters, exported, "
            f"{gflops:.1f} GFLOPs{quantized}"
        )
    return layers, parameters, gradients, gflops


def print_plan(engine: NativeEngine, imgsz: int | tuple[int, int], *, tuned: bool = False) -> None:
    """Prints what the native engine does for one picture: the algorithm of each step, and its time, measured now.

    `tuned` chooses by measuring before, see `tuning`; steps that this changed are marked.
    """
    size = _sides(imgsz)
    if tuned:
        from .tuning import tune

        tune(engine, size, 1)
    steps, times = engine.plan(size), engine.time_steps(size, TIMED_ROUNDS)
    total = sum(times)
    print(f"{'step':<46} {'algorithm':<12} {'output':<16} {'MFLOPs':>9} {'ms':>8} {'GFLOP/s':>8}")
    for step, ms in zip(steps, times, strict=True):
        shape = "x".join(map(str, step["output"]))
        print(f"{step['name']:<46} {step['algorithm']:<12} {shape:<16} {step['mflop']:>9.1f} {ms:>8.3f}", end=" ")
        speed = f"{step['mflop'] / ms:>8.1f}" if step["mflop"] and ms else f"{'-':>8}"
        print(speed + "  tuned" * step["tuned"])
    mflop = sum(step["mflop"] for step in steps)
    print(
        f"{len(steps)} steps at {size[0]}x{size[1]}, {engine.describe()}: {total:.2f} ms, {mflop / total:.1f} GFLOP/s "
        f"(arithmetic of the direct form; median of {TIMED_ROUNDS} rounds)"
    )


def _sides(imgsz: int | tuple[int, int]) -> tuple[int, int]:
    size = (imgsz, imgsz) if isinstance(imgsz, int) else (imgsz[0], imgsz[1])
    check_size("imgsz", size)
    return size


def count_layers(model: YoloNAS, size: tuple[int, int]) -> list[Layer]:
    """All layers in the module's order, with output shapes and arithmetic for one picture of `size` (height, width)."""
    import torch

    leaves = {name: module for name, module in model.named_modules() if not any(module.children())}
    outputs: dict[str, tuple[int, ...]] = {}

    def record(name: str) -> torch.utils.hooks.RemovableHandle:
        return leaves[name].register_forward_hook(lambda _, __, y: outputs.__setitem__(name, tuple(y.shape)))

    hooks = [record(name) for name in leaves]
    in_training = [module for module in model.modules() if module.training]
    model.eval()  # batch norms refuse a single value per channel in training mode
    try:
        # Meta tensors have shapes only. They stand in for the weights during this call; the model is not copied.
        shapes = {name: tensor.to("meta") for name, tensor in model.state_dict().items()}
        dtype = next(model.parameters()).dtype
        with torch.no_grad():
            torch.func.functional_call(model, shapes, torch.empty(1, 3, *size, dtype=dtype, device="meta"))
    finally:
        for hook in hooks:
            hook.remove()
        for module in in_training:
            module.training = True
    return [
        Layer(
            name,
            type(module).__name__,
            sum(parameter.numel() for parameter in module.parameters()),
            outputs.get(name, ()),
            _convolution_flops(module, outputs.get(name, ())),
        )
        for name, module in leaves.items()
    ]


def _convolution_flops(module: nn.Module, output: tuple[int, ...]) -> int:
    from torch import nn

    if not output or not isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
        return 0
    _, channels, height, width = output
    taps = module.kernel_size[0] * module.kernel_size[1]
    if isinstance(module, nn.ConvTranspose2d):  # each output pixel sees only one tap in stride x stride
        taps //= module.stride[0] * module.stride[1]
    return 2 * channels * height * width * taps * (module.in_channels // module.groups)


def _print_table(layers: list[Layer]) -> None:
    print(f"{'layer':<52} {'type':<16} {'parameters':>10}  {'output':<22} {'MFLOPs':>9}")
    for layer in layers:
        shape = "x".join(map(str, layer.output)) or "unused"
        print(f"{layer.name:<52} {layer.kind:<16} {layer.parameters:>10,}  {shape:<22} {layer.flops / 1e6:>9.2f}")
