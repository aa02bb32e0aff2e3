"""A hundred merges of tiny models: their configurations, five of each method, and what came of them.

    hundred.py OUT [--each 5]      writes the configurations, OUT/METHOD_NUMBER.yml, of models beside OUT
    hundred.py REPORTS --told      reads what merging them has printed, and prints one report: the most compilations of
                                   a method, all of them, and how many merges there were

Weights, densities and all other numbers differ from one to the next of a method.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from pathlib import Path
from typing import Any

BASED = {"weight": 0.5}
SPARSE = BASED | {"density": 0.5}
# what the models of a method have, and what it has itself; every number grows a little from merge to merge
METHODS: dict[str, tuple[dict[str, float], dict[str, float]]] = {
    "linear": (BASED, {}),
    "slerp": ({}, {"t": 0.3}),
    "nuslerp": (BASED, {}),
    "multislerp": (BASED, {}),
    "karcher": ({}, {"tol": 1e-5}),
    "task_arithmetic": (BASED, {"lambda": 0.9}),
    "ties": (SPARSE, {}),
    "dare_linear": (SPARSE, {}),
    "dare_ties": (SPARSE, {}),
    "della": (SPARSE | {"epsilon": 0.1}, {}),
    "della_linear": (SPARSE | {"epsilon": 0.1}, {}),
    "breadcrumbs": (SPARSE | {"gamma": 0.02}, {}),
    "breadcrumbs_ties": (SPARSE | {"gamma": 0.02}, {}),
    "model_stock": ({}, {}),
    "sce": ({}, {"select_topk": 0.5}),
    "nearswap": ({}, {"t": 0.001}),
    "arcee_fusion": ({}, {}),
    "ram": ({}, {"epsilon": 1e-5}),
    "ramplus_tl": ({}, {"epsilon": 1e-5, "r": 0.1}),
    "passthrough": ({}, {"scale": 1.1}),
}
BASELESS = ("linear", "nuslerp", "multislerp", "karcher", "passthrough")
SINGLE = ("nearswap", "arcee_fusion", "passthrough")


def configuration(method: str, number: int) -> dict[str, Any]:
    """The configuration of a merge of this method."""

    def grown(values: dict[str, float]) -> dict[str, float]:
        return {key: value * (1 + number / 50) for key, value in values.items()}

    own, whole = METHODS[method]
    names = ["first"] if method in SINGLE else ["base", "first"] if method == "slerp" else ["first", "second"]
    models = [{"model": name, "parameters": grown(own)} for name in names]
    base = {} if method in BASELESS else {"base_model": "base"}
    return {"merge_method": method, **base, "models": models, "parameters": grown(whole), "dtype": "bfloat16"}


def write(out: Path, each: int) -> None:
    """So many configurations of each method; models have their places beside them."""
    out.mkdir(parents=True)
    for method in METHODS:
        for number in range(each):
            text = json.dumps(configuration(method, number))
            (out / f"{method}_{number}.yml").write_text(text)


def told(printed: str) -> dict[str, int]:
    """What reports, one after the other, come to."""
    decoder, at, count = json.JSONDecoder(), 0, 0
    found: Counter[str] = Counter()
    while at < len(printed.rstrip()):
        report, at = decoder.raw_decode(printed, at + (printed[at] == "\n"))
        (output,) = report["outputs"]
        found[Path(output).name.rpartition("_")[0]] += report["num_compilations"]
        count += 1
    most = max(found.values(), default=0)
    return {"compilations_per_method": most, "num_compilations": sum(found.values()), "num_merges": count}


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path", type=Path)
    parser.add_argument("--each", type=int, default=5, help="configurations of a method")
    parser.add_argument("--told", action="store_true")
    options = parser.parse_args()
    if options.told:
        print(json.dumps(told(options.path.read_text())))
    else:
        write(options.path, options.each)


if __name__ == "__main__":
    main()
