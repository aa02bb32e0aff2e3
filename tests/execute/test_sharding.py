"""A tensor that is too large for one device is spread over several, and the bits do not depend on how many."""

import re
from functools import cache
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from running import Bench, read_checkpoint, simulated

from surgery_jax import BudgetError, Options, check, explain, plan_of
from surgery_jax.compile.blueprint import whole_blueprint
from surgery_jax.compile.program import Component, Eqn, Group, Result
from surgery_jax.compile.sharding import Partition, mesh_size, partition
from surgery_jax.core.dtypes import BY_NAME, by_numpy
from surgery_jax.core.specs import Spec, parse_size
from surgery_jax.execute.reservations import device_bytes
from surgery_jax.kit.base import TensorOp
from surgery_jax.lora.factors import AddFactors, ChangeEnergies, ExtractFactors
from surgery_jax.ops.matmul import Matmul
from surgery_jax.ops.permute import Permute
from surgery_jax.ops.phlora import BestFactors, LowRank
from surgery_jax.reports.simulate import Machines, simulate

__all__ = ["Bench", "read_checkpoint"]  # what the programs below take from here
COUNTS = (2, 8)
F32 = BY_NAME["float32"]


def size(nbytes: int) -> str:
    return f"{nbytes / 1024}KiB"


def drawn(dtype: str, *shape: int, seed: int = 0) -> np.ndarray:
    made = np.random.default_rng([seed, *shape]).standard_normal(shape)
    return made.astype(getattr(ml_dtypes, dtype) if dtype == "bfloat16" else dtype)


def near(rank: int, dtype: str, *shape: int) -> np.ndarray:
    """Matrices of some rank, and noise of 1 %, so that the best approximation is well defined."""
    rng = np.random.default_rng(shape)
    m, n = shape[-2:]
    made = rng.standard_normal((*shape[:-2], m, rank)) @ rng.standard_normal((*shape[:-2], rank, n)) / np.sqrt(rank)
    made += 0.01 * rng.standard_normal(shape)
    return made.astype(getattr(ml_dtypes, dtype) if dtype == "bfloat16" else dtype)


def best(x: np.ndarray, rank: int) -> np.ndarray:
    u, s, vt = np.linalg.svd(x.astype(np.float64), full_matrices=False)
    return (u[..., :rank] * s[..., None, :rank]) @ vt[..., :rank, :]


def products(dtype: str, *shapes: tuple[tuple[int, ...], tuple[int, ...]]) -> list[Any]:
    return [(Matmul(), [drawn(dtype, *a), drawn(dtype, *b, seed=1)]) for a, b in shapes]


SHAPES: tuple[tuple[tuple[int, ...], tuple[int, ...]], ...] = (
    ((301, 299), (299, 303)),  # rows and columns
    ((1000, 37), (37, 20)),  # rows
    ((37, 70), (70, 2001)),  # columns
    ((20, 3001), (3001, 30)),  # the inner axis
    ((2, 1, 131, 40), (3, 40, 67)),
    ((3001,), (3001,)),
    ((70,), (70, 2000)),
    ((501, 300), (300,)),
)


@cache
def cases() -> dict[str, tuple[TensorOp, list[np.ndarray]]]:
    """Operations and their operands, each of which is cut."""
    found = [
        *products("float32", *SHAPES),
        *products("bfloat16", SHAPES[0]),
        *products("float16", SHAPES[1]),
        *products("float64", SHAPES[3]),
        *products("int16", SHAPES[3]),
    ]
    found += [(LowRank(5, method), [near(5, "float32", 531, 900)]) for method in ("exact", "randomized")]
    found += [
        (LowRank(30, "auto"), [near(30, "float32", 1999, 40)]),
        (LowRank(30, "exact"), [near(30, "float32", 50, 57)]),
        (BestFactors(4, "auto"), [near(4, "float16", 33, 1501)]),
        (BestFactors(4, "auto"), [near(4, "float64", 1501, 33)]),
    ]
    for turned, shape in ((False, (901, 50)), (True, (3, 50, 501))):
        base = drawn("float32", *shape)
        tuned = base + near(4, "float32", *shape)
        found.append((ExtractFactors(4, "auto", F32, turned, 4.0, 4.0), [base, tuned]))
        out, inner = shape[-2:][:: -1 if turned else 1]
        many = shape[0] if len(shape) == 3 else 1
        adapter = [drawn("float32", 4 * many, inner), drawn("float32", out, 4 * many)]
        found.append((AddFactors((turned,), (0.5,)), [base.astype(ml_dtypes.bfloat16), *adapter]))
    base = drawn("bfloat16", 901, 50)
    found.append((ChangeEnergies(4, "auto"), [base, (base + near(4, "bfloat16", 901, 50)).astype(base.dtype)]))
    named = {}
    for number, (op, arrays) in enumerate(found):
        shapes = " ".join("x".join(map(str, array.shape)) for array in arrays)
        named[f"{number} {type(op).__name__} {arrays[0].dtype} {shapes}"] = (op, arrays)
    return named


def group_of(op: TensorOp, arrays: list[np.ndarray]) -> Group:
    specs = tuple(Spec(array.shape, by_numpy(array.dtype)) for array in arrays)  # type: ignore[arg-type]
    results = op.infer(*specs)
    eqn = Eqn(op, tuple(range(len(specs))), results)
    outputs = [Result(len(specs) + index) for index in range(len(results))]
    return Group(False, False, [Component((eqn,), (), specs, outputs, [], op.numbers(), ())])


def layout_of(group: Group) -> Partition:
    found = partition(whole_blueprint(group))
    assert found is not None
    return found


# Every case on 2 and 8 devices: the digest of its results, what a device held by the account of the compiler, and
# whether the results of all are close to those of float64.
ALL_CASES = """
import hashlib, json
import jax, numpy as np
import test_sharding as given
from surgery_jax.compile.blueprint import whole_blueprint
from surgery_jax.compile.lower import GroupFunction
from surgery_jax.numerics.blas import one_thread_each

if jax.config.jax_compilation_cache_dir is None:
    jax.config.update("jax_compilation_cache_dir", "compiled")  # every function is compiled once
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
found = {}
with one_thread_each():
    for name, (op, arrays) in given.cases().items():
        group = given.group_of(op, arrays)
        function = GroupFunction(group, whole_blueprint(group))
        digests, held = [], []
        for count in given.COUNTS:
            devices = tuple(jax.devices()[:count])
            outputs, verdicts = function.on_mesh(arrays, op.numbers(), devices)
            assert all(verdicts)
            digests.append(hashlib.sha256(b"".join(out.tobytes() for out in outputs)).hexdigest())
            jitted, places = function.spread.compiled(devices, tuple(function.leaving))
            with jax.enable_x64(True):
                inputs = [
                    jax.ShapeDtypeStruct(shape, arrays[number].dtype, sharding=sharding)
                    for (number, _), (shape, sharding) in zip(function.partition.inputs, places)
                ]
                numbers = [np.float64(number) for number in op.numbers()]
                used = jitted.lower((np.int32(0), np.int64(0)), numbers, inputs).compile().memory_analysis()
            held.append(used.argument_size_in_bytes + used.output_size_in_bytes + used.temp_size_in_bytes)
        found[name] = {"digests": digests, "held": held, "error": given.error_of(op, arrays, outputs)}
print(json.dumps(found))
"""


def error_of(op: TensorOp, arrays: list[np.ndarray], found: list[np.ndarray]) -> float:
    """The largest difference to what NumPy finds in float64, by the largest magnitude there."""
    wide = [array.astype(np.float64) for array in arrays]
    made = [array.astype(np.float64) for array in found]
    if isinstance(op, Matmul):
        if arrays[0].dtype.kind == "i":
            pairs = [(found[0], np.matmul(*arrays))]
        else:
            pairs = [(made[0], np.matmul(*wide))]
    elif isinstance(op, LowRank):
        pairs = [(made[0], best(wide[0], op.rank))]
    elif isinstance(op, BestFactors):
        pairs = [(made[1] @ made[0], best(wide[0], op.rank))]
    elif isinstance(op, AddFactors):
        pairs = [(made[0], merged(op, *wide))]
    elif isinstance(op, ExtractFactors):
        change = wide[1] - wide[0]
        change = np.swapaxes(change, -1, -2) if op.transposed else change
        change = change.reshape(-1, *change.shape[-2:])
        many, out, inner = change.shape
        product = made[1].reshape(out, -1, many).transpose(2, 0, 1) @ made[0].reshape(many, -1, inner)
        rest = change - best(change, int(op.rank))
        pairs = [(product, best(change, int(op.rank))), (made[2][0], np.square(change).sum())]
        pairs.append((made[2][1], np.square(rest).sum()))
    else:
        assert isinstance(op, ChangeEnergies)
        change = wide[1] - wide[0]
        energies = np.square(np.linalg.svd(change, compute_uv=False))
        pairs = [(made[0][0, 0], np.square(change).sum()), (made[0][0, 2:], energies[: op.count])]
    return max(float(np.abs(a - b).max() / np.abs(b).max()) for a, b in pairs)


def merged(op: AddFactors, base: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    many = base.shape[0] if base.ndim == 3 else 1
    change = b.reshape(b.shape[0], -1, many).transpose(2, 0, 1) @ a.reshape(many, -1, a.shape[1])
    change = np.swapaxes(change, 1, 2) if op.transposed[0] else change
    return base + op.scales[0] * change.reshape(base.shape)


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return simulated(ALL_CASES, tmp_path_factory.mktemp("cases"))


def test_work_over_2_and_8_devices_gives_the_same_bits(measured: Any) -> None:
    assert list(measured) == list(cases())
    assert not [name for name, found in measured.items() if len(set(found["digests"])) != 1]


def test_work_over_devices_is_right_against_float64(measured: Any) -> None:
    limits = {"float64": 1e-12, "float32": 1e-5, "float16": 2e-3, "bfloat16": 1e-2, "int16": 0.0}
    wrong = {
        name: found["error"]
        for name, found in measured.items()
        if not found["error"] <= (1e-3 if "ndomized" in name else limits[str(cases()[name][1][0].dtype)])
    }
    assert not wrong


def test_no_device_holds_more_than_is_reserved_for_it(measured: Any) -> None:
    for name, found in measured.items():
        spread = layout_of(group_of(*cases()[name]))
        reserved = [spread.device_bytes(count) for count in COUNTS]
        assert all(held <= room for held, room in zip(found["held"], reserved, strict=True)), (name, found, reserved)


def test_more_devices_each_need_less() -> None:
    for name, case in cases().items():
        group = group_of(*case)
        needs = [layout_of(group).device_bytes(count) for count in (1, 2, 4, 8, 16)]
        assert needs == sorted(needs, reverse=True), name
    large = Group(False, False, group_of(*cases()["0 Matmul float32 301x299 299x303"]).components)
    assert layout_of(large).device_bytes(8) < device_bytes(whole_blueprint(large)) / 2


def test_a_power_of_two_of_devices_share_a_tensor() -> None:
    assert [mesh_size(count) for count in (1, 2, 3, 5, 8, 15, 16, 17, 100)] == [1, 2, 2, 4, 8, 8, 16, 16, 16]


def test_a_cut_axis_is_padded_by_shapes_alone_and_told_from_others() -> None:
    for name, case in cases().items():
        spread = layout_of(group_of(*case))
        specs = spread.blueprint.value_specs()
        for spec, axis in zip(specs, spread.axes, strict=True):
            padded = spread.padded(spec, axis).shape
            others = [n for number, n in enumerate(padded) if number != axis]
            assert axis is None or padded[axis] >= spec.shape[axis], name
            assert axis is None or padded[axis] % (16 * spread.rows[padded[axis]]) == 0, name
            assert not set(others) & set(spread.rows), name


def test_operations_that_move_elements_are_not_spread() -> None:
    x = drawn("float32", 40, 30)
    assert partition(whole_blueprint(group_of(Permute((1, 0)), [x]))) is None


BOTH = """
import json
import jax, numpy as np
import test_sharding as given
from surgery_jax.numerics.mesh_kernel import AXIS, MeshKernel

w, x = given.drawn("float32", 640, 50), given.drawn("float32", 50, 7)
found = []
for count in given.COUNTS:
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:count]), (AXIS,))
    kernel = MeshKernel((np.int32(0), np.int64(0)), mesh, {640: 10})

    @jax.jit
    def both(w, x):
        image = kernel.matmul(w, x)
        return image, kernel.matmul(w.T, image)

    found.append([np.asarray(part) for part in both(w, x)])
assert all(np.array_equal(a, b) for made in found for a, b in zip(made, found[0]))
wide = w.astype(np.float64), x.astype(np.float64)
right = wide[0] @ wide[1], wide[0].T @ (wide[0] @ wide[1])
print(json.dumps([float(np.abs(a - b).max() / np.abs(b).max()) for a, b in zip(found[0], right)]))
"""


def test_a_product_and_the_product_with_its_transpose_are_right_and_the_same(tmp_path: Path) -> None:
    assert max(simulated(BOTH, tmp_path)) < 1e-6


# The same through the engine: whole components with steps before and after, checks, sharing with other work.
STEPS: list[dict[str, Any]] = [
    {"scale": {"from": "x", "to": "double", "by": 2.0}},
    {"matmul": {"from_a": "double", "from_b": "x", "to": "square"}},
    {"clamp_": {"target": "square", "min": 1.0}},
    {"matmul": {"from_a": "square", "from_b": "thin", "to": "last"}},
    {"add": {"from_a": "last", "from_b": "thin", "to": "last"}},
    {"phlora": {"target": "tall", "target_a": "a", "target_b": "b", "rank": 4}},
    {"phlora_": {"target": "wide", "rank": 4}},
    {"scale_": {"target": "flat\\d", "by": 0.5}},
    {"assert": {"not": {"iszero": "square"}}},
]


def bench(root: Path) -> Bench:
    flat = {f"flat{number}": drawn("float32", 50_000, seed=number) for number in range(6)}
    tall = {"tall": near(4, "float32", 9000, 40), "wide": near(4, "bfloat16", 40, 9000)}
    return Bench(root, m={"x": drawn("float32", 601, 601), "thin": drawn("float32", 601, 20), **tall, **flat})


ENGINE = """
import hashlib, json
from pathlib import Path
import test_sharding as given
found = {}
bench = given.bench(Path("."))
for devices in given.COUNTS:
    tensors = bench.tensors(given.STEPS, devices=devices, device_memory="6600KiB", workers=4)
    found[devices] = {name: hashlib.sha256(array.tobytes()).hexdigest() for name, array in tensors.items()}
assert found[2] == found[8]
assert len(tensors) == 14
print(json.dumps(given.errors(given.read_checkpoint(Path("m.safetensors")), tensors)))
"""


def errors(given: dict[str, np.ndarray], found: dict[str, np.ndarray]) -> dict[str, float]:
    """The largest difference of what the steps gave to NumPy in float64, by the largest magnitude there."""
    given, found = ({n: x.astype(np.float64) for n, x in tensors.items()} for tensors in (given, found))
    square = np.maximum(2 * given["x"] @ given["x"], 1)
    pairs = {
        "square": (found["square"], square),
        "last": (found["last"], square @ given["thin"] + given["thin"]),
        "factors": (found["b"] @ found["a"], best(given["tall"], 4)),
        "wide": (found["wide"], best(given["wide"], 4)),
        "flat": (found["flat3"], given["flat3"] / 2),
    }
    return {name: float(np.abs(a - b).max() / np.abs(b).max()) for name, (a, b) in pairs.items()}


def test_steps_around_work_over_devices_give_the_same_bits_and_are_right(tmp_path: Path) -> None:
    found = simulated(ENGINE, tmp_path)
    assert found.pop("wide") < 1e-2
    assert max(found.values()) < 1e-5


def test_explain_and_simulate_know_what_is_spread_over_devices(tmp_path: Path) -> None:
    program = bench(tmp_path).compile(STEPS)
    small = Options(device_memory="6MiB")
    kinds = [group.kind for group in explain(program, small).groups]
    assert kinds.count("sharded") == 3 and "sharded" not in [group.kind for group in explain(program).groups]

    def seconds(devices: int) -> float:
        forecast = simulate([program.program], small, Machines(devices=devices, compute=1e6, whole=1e6))
        return forecast.passes[0].hosts[0].device_s

    assert seconds(4) > seconds(8) > seconds(16)
    with pytest.raises(BudgetError, match="does not fit the devices"):
        seconds(2)


PRODUCT = [{"matmul": {"from_a": "x", "from_b": "z", "to": "y"}}]


def factors_of_a_product() -> dict[str, np.ndarray]:
    return {"x": drawn("float32", 501, 501), "z": drawn("float32", 501, 501, seed=1)}


def test_what_does_not_fit_the_devices_even_so_is_refused_with_what_it_needs(tmp_path: Path) -> None:
    square = Bench(tmp_path, m=factors_of_a_product())
    plan = plan_of(square.plan(PRODUCT))
    spread = layout_of(square.compile(PRODUCT).program.groups[0])
    needs = {count: spread.device_bytes(count) for count in (2, 4, 8, 16)}

    def refused(devices: int, room: int) -> str:
        with pytest.raises(BudgetError, match="does not fit the devices") as error:
            check(plan, Options(device_memory=size(room), devices=devices))
        return str(error.value)

    def asked(said: str, count: int) -> int:
        found = re.search(rf"--device-memory of at least ([\d.]+ \w+) for each of {count} devices", said)
        assert found is not None, said
        return parse_size(found[1], binary=True) or 0

    said = refused(3, needs[2] - 1)
    assert needs[2] <= asked(said, 2) < 1.01 * needs[2]
    assert "or --devices 4" in said and "--devices 3" in said
    for devices in (0, 40):
        assert needs[16] <= asked(refused(devices, needs[16] - 1), 16) < 1.01 * needs[16]
    for count, need in needs.items():
        assert check(plan, Options(device_memory=size(need), devices=count))
    assert check(plan, Options(device_memory=size(needs[16])))  # as many devices as there may be


TOO_FEW = """
import json
from pathlib import Path
import test_sharding as given
from surgery_jax import BudgetError
square = given.Bench(Path("."), m=given.factors_of_a_product())
spread = given.layout_of(square.compile(given.PRODUCT).program.groups[0])
before, said = square.left(), ""
try:
    square.report(given.PRODUCT, device_memory=given.size(spread.device_bytes(8) - 1))
except BudgetError as error:
    said = str(error)
after = square.left()
square.report(given.PRODUCT, device_memory=given.size(spread.device_bytes(8)))
print(json.dumps([before, after, square.left(), said]))
"""


def test_devices_that_turn_out_to_be_too_few_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    before, after, done, said = simulated(TOO_FEW, tmp_path)
    assert before == after == ["m.safetensors"] and "out.safetensors" in done
    assert "for each of 8 devices" in said and "--devices 8" in said


FAILING = """
import json
from pathlib import Path
import numpy as np
import test_sharding as given
from surgery_jax import SurgeryError
x = given.near(4, "float32", 5000, 40)
x[4321, 7] = np.nan
bench = given.Bench(Path("."), m={"tall": x} | given.factors_of_a_product())
said = []
for steps in (
    [{"phlora_": {"target": "tall", "rank": 4}}],
    [*given.PRODUCT, {"assert": {"iszero": "y"}}],
    [*given.PRODUCT, {"assert": {"equal": {"left": "y", "right": "x", "eps": 1e9}}}],
):
    try:
        bench.report(steps, devices=4, device_memory="2400KiB")
        said.append("")
    except SurgeryError as error:
        said.append(str(error))
print(json.dumps([*said, bench.left()]))
"""


def test_what_fails_over_devices_names_the_tensor_and_the_place_and_writes_nothing(tmp_path: Path) -> None:
    not_finite, not_zero, equal, left = simulated(FAILING, tmp_path)
    assert "cannot be factored: tall holds NaN or infinity" in not_finite
    x, z = (array.astype(np.float64) for array in factors_of_a_product().values())
    worst = np.unravel_index(np.abs(x @ z).argmax(), x.shape)
    assert "iszero: y: 251001 of 251001 elements are off" in not_zero
    assert f"[{worst[0]}, {worst[1]}]" in not_zero
    assert equal == "" and left == ["m.safetensors", "out.safetensors"]
