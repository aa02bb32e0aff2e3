"""Factors random matrices by one program and says how long one takes, as one line of JSON.

    factor.py PROGRAM [--shape M N] [--rank R] [--spectrum flat|delta] [--count C] [--equal]

`kernel_s` is the time per matrix when C of them are factored, with all cores: ours gives each core a matrix, the others
give each matrix all cores. `residual` is the error in Frobenius norm over the least of that rank. Programs that take a
number of iterations get the least with which the residual is at most 1.001, or with `--equal` at most that of
`ours-auto`. `matmul_share` of `ours-auto` is how many operations of products with the matrix it does per second, over
how many this machine does when it multiplies square matrices of 2048 rows, one on every core. Spectra: normal numbers,
or a difference of a rank of 16 in noise of a fifth of its size.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt

from surgery_jax.numerics.blas import one_thread_each

Matrix = npt.NDArray[np.float32]
Triplets = tuple[Any, Any, Any]
LIMIT = 1.001


def ours(method: str, rank: int) -> Callable[[Matrix], Triplets]:
    """The kernel of this package."""
    from surgery_jax.numerics.host_kernel import HostKernel
    from surgery_jax.numerics.lowrank import factors

    return lambda w: factors(HostKernel(), w, rank, method)


def theirs(program: str, rank: int, rounds: int) -> Callable[[Matrix], Triplets]:
    """A function of a library, with so many iterations."""
    if program == "numpy-svd":
        return lambda w: cut(np.linalg.svd(w, full_matrices=False), rank)
    if program == "sklearn-randomized":
        from sklearn.utils.extmath import randomized_svd

        return lambda w: randomized_svd(w, rank, n_iter=rounds, random_state=0)
    import torch

    if program == "torch-svd":
        return lambda w: cut(torch.linalg.svd(torch.from_numpy(w), full_matrices=False), rank)

    def low(w: Matrix) -> Triplets:
        torch.manual_seed(0)
        u, s, v = torch.svd_lowrank(torch.from_numpy(w), rank + 10, niter=rounds)
        return cut((u, s, v.T), rank)

    return low


def cut(triplets: Any, rank: int) -> Triplets:
    """The leading ones."""
    u, s, vt = triplets
    return u[:, :rank], s[:rank], vt[:rank]


def matrix(spectrum: str, m: int, n: int, seed: int) -> Matrix:
    """Normal numbers, to which a difference of rank 16 may be added."""
    random = np.random.default_rng(seed)
    w = random.standard_normal((m, n), np.float32)
    if spectrum == "delta":
        a, b = random.standard_normal((m, 16), np.float32), random.standard_normal((16, n), np.float32)
        w = np.float32(0.2) * w + a @ b / np.float32(4)
    return w


def residual(w: Matrix) -> Callable[[Triplets], float]:
    """The error over the least of that rank."""
    wide = w.astype(np.float64)
    energies = np.linalg.eigvalsh(wide.T @ wide if w.shape[0] >= w.shape[1] else wide @ wide.T)

    def found(triplets: Triplets) -> float:
        u, s, vt = (np.asarray(part, np.float64) for part in triplets)
        return float(np.linalg.norm(wide - (u * s) @ vt) / np.sqrt(energies[: -len(s)].sum()))

    return found


def operations(w: Matrix, rank: int) -> float:
    """Multiplications and additions of the products with a matrix that the kernel makes, if these are all it needs."""
    from surgery_jax.numerics import lanczos

    columns = 0
    both = lanczos._both

    def counted(rest: Any, x: Any) -> Any:
        nonlocal columns
        columns += x.shape[1]
        return both(rest, x)

    lanczos._both = counted  # type: ignore[assignment]
    ours("auto", rank)(w)
    lanczos._both = both
    return 4.0 * w.size * columns


def seconds(function: Callable[[], object], repeats: int = 3) -> float:
    """The shortest of some runs."""
    taken = []
    for _ in range(repeats):
        begun = time.perf_counter()
        function()
        taken.append(time.perf_counter() - begun)
    return min(taken)


def measure_ours(
    method: str, matrices: list[Matrix], rank: int, error: Callable[[Triplets], float]
) -> dict[str, float]:
    """One matrix for every core."""
    kernel = ours(method, rank)
    with one_thread_each(), ThreadPoolExecutor(os.cpu_count()) as pool:
        taken = seconds(lambda: list(pool.map(kernel, matrices)))
        found = {"kernel_s": taken / len(matrices), "residual": error(kernel(matrices[0]))}
        if method != "auto":
            return found
        sides = [np.ones((2048, 2048), np.float32) for _ in range(os.cpu_count() or 1)]
        rate = 2 * 2048**3 * len(sides) / seconds(lambda: list(pool.map(lambda side: side @ side, sides)))
        return found | {"matmul_share": operations(matrices[0], rank) / found["kernel_s"] / rate}


def measure(
    program: str, shape: tuple[int, int], rank: int, spectrum: str, count: int, is_equal: bool
) -> dict[str, float]:
    """What the program prints."""
    matrices = [matrix(spectrum, *shape, seed) for seed in range(count)]
    error = residual(matrices[0])
    if program.startswith("ours-"):
        return measure_ours(program.removeprefix("ours-"), matrices, rank, error)
    limit = LIMIT
    if is_equal:
        with one_thread_each():
            limit = error(ours("auto", rank)(matrices[0]))
    exact = program.endswith("-svd")
    for rounds in range(1, 60):
        kernel = theirs(program, rank, rounds)
        found = error(kernel(matrices[0]))
        if found <= limit or exact:
            break
    taken = seconds(lambda: [kernel(w) for w in matrices], 1 if exact else 3)
    return {"kernel_s": taken / count, "residual": found, "rounds": rounds}


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    mine = [f"ours-{method}" for method in ("auto", "exact", "randomized")]
    parser.add_argument("program", choices=[*mine, "torch-lowrank", "torch-svd", "sklearn-randomized", "numpy-svd"])
    parser.add_argument("--shape", type=int, nargs=2, default=(5632, 2048))
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--spectrum", choices=("flat", "delta"), default="flat")
    parser.add_argument("--count", type=int, default=4)
    parser.add_argument("--equal", action="store_true", help="as good as ours-auto")
    options = parser.parse_args()
    found = measure(options.program, tuple(options.shape), options.rank, options.spectrum, options.count, options.equal)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
