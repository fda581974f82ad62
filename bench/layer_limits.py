"""What limits the layers that use the least of the machine's peak, by hand, for `results/network_layers.md`.

Fill in after reading that file: it lists per case the ten layers with the smallest share, with a '-' where nothing is
said of one here. Then `python bench/report.py --write`. A reason under "*" holds for a layer of that name in all cases;
a few words, without '|':

    "*": {"neck.neck4.blocks.bottlenecks.0.cv1": "10x10 pixels: too little work for two threads"},
"""

LIMITS: dict[str, dict[str, str]] = {
    "*": {},
    "s_640_1_2": {},
    "m_640_1_2": {},
    "l_640_1_2": {},
    "s_320_1_2": {},
}


def limit(case: str, layer: str) -> str:
    """What is said of a layer of a case of the network benchmark, else '-'."""
    return LIMITS.get(case, {}).get(layer) or LIMITS["*"].get(layer, "-")
