"""What limits the layers that use the least of the machine's peak, by hand, for `results/network_layers.md`.

Fill in after reading that file: it lists per case the ten layers with the smallest share, with a '-' where nothing is
said of one here. Then `python bench/report.py --write`. A reason under "*" holds for a layer of that name in all cases;
a few words, without '|':

    "*": {"neck.neck4.blocks.bottlenecks.0.cv1": "10x10 pixels: too little work for two threads"},
"""

# Shares of the time are of a profile of the kernel alone, on one AVX-512 core.
_STEM = "27 products an output: its 48 channels are written about as fast as the memory takes them"
_FEW_TILES = "25 tiles: the transform of the weights takes a quarter (256 channels) to half (64) of the time"
_SMALL_MAP = "9 tiles of 4x4 for 10x10 pixels, a third of them outside; half of the time transforms weights"
_32_CHANNELS = "32 channels: half of the time transforms inputs and outputs"
_48_CHANNELS = "48 channels: 40 % of the time is transforms, and the second block of 32 channels is half empty"
_THIRD = "a third of the time transforms inputs, weights and outputs, as fast as the second-level cache is written"
_DISTURBED = f"{_THIRD}; what is below its twins' share was another program"
_STAGE1 = tuple(f"backbone.stage1.blocks.bottlenecks.{i}.cv{j}" for i in (0, 1) for j in (1, 2))

LIMITS: dict[str, dict[str, str]] = {
    "*": {"backbone.stem.conv": _STEM},
    "s_640_1_2": {
        **dict.fromkeys(_STAGE1, _32_CHANNELS),
        **{f"neck.neck2.blocks.bottlenecks.{i}.cv{j}": _48_CHANNELS for i in (0, 1) for j in (1, 2)},
        **{f"neck.neck4.blocks.bottlenecks.{i}.cv{j}": _FEW_TILES for i in (0, 1) for j in (1, 2)},
    },
    "m_640_1_2": {
        **dict.fromkeys(_STAGE1, _THIRD),
        **{f"backbone.stage2.blocks.bottlenecks.{i}.cv{j}": _THIRD for i in range(3) for j in (1, 2)},
        **{f"backbone.stage3.blocks.bottlenecks.{i}.cv{j}": _DISTURBED for i in range(5) for j in (1, 2)},
        **{f"backbone.stage4.blocks.bottlenecks.{i}.cv{j}": _THIRD for i in range(2) for j in (1, 2)},
        **{f"neck.neck2.blocks.bottlenecks.{i}.cv{j}": _THIRD for i in range(3) for j in (1, 2)},
        "heads.head3.cls_pred": "80 channels: the third block of 32 is half empty, and little work for two threads",
    },
    "l_640_1_2": {
        **dict.fromkeys(_STAGE1, _THIRD),
        **{f"neck.neck4.blocks.bottlenecks.{i}.cv{j}": _FEW_TILES for i in range(4) for j in (1, 2)},
    },
    "s_320_1_2": {
        **{f"backbone.stage4.blocks.bottlenecks.{i}.cv{j}": _SMALL_MAP for i in (0, 1) for j in (1, 2)},
        **{f"backbone.stage3.blocks.bottlenecks.{i}.cv{j}": _FEW_TILES for i in range(5) for j in (1, 2)},
        **{f"neck.neck{n}.blocks.bottlenecks.{i}.cv{j}": _FEW_TILES for n in (1, 3) for i in (0, 1) for j in (1, 2)},
    },
}


def limit(case: str, layer: str) -> str:
    """What is said of a layer of a case of the network benchmark, else '-'."""
    return LIMITS.get(case, {}).get(layer) or LIMITS["*"].get(layer, "-")
