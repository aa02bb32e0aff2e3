"""Which names say that a tensor is quantised, as the programs that write such checkpoints name them."""

import time

import pytest

from surgery_jax.core.dtypes import BY_CODE, BY_NAME
from surgery_jax.core.quantised import can_be_quantised, companions


def found(**tensors: str) -> dict[str, str]:
    """Companions of tensors given as name=dtype; two underscores stand for a dot."""
    known = {dtype.name: dtype for dtype in BY_CODE.values()}
    return companions([(name.replace("__", "."), known[dtype]) for name, dtype in tensors.items()])


SCHEMES = {
    "blocks of float8": ({"q__weight": "float8_e4m3fn", "q__weight_scale_inv": "float32"}, "q.weight"),
    "float8 by tensor": ({"q__weight": "float8_e4m3fn", "q__weight_scale": "float32"}, "q.weight"),
    "NVFP4": ({"q__weight": "uint8", "q__weight_scale": "float16", "q__weight_scale_2": "float32"}, "q.weight"),
    "the scale of NVFP4": ({"q__weight_scale": "float8_e4m3fn", "q__weight_scale_2": "float32"}, "q.weight_scale"),
    "packed FP4": ({"q__weight_packed": "uint8", "q__weight_scale": "float16"}, "q.weight_packed"),
    "int8 of bitsandbytes": ({"q__weight": "int8", "q__SCB": "float32"}, "q.weight"),
    "4 bits of bitsandbytes": ({"q__weight": "uint8", "q__weight__absmax": "float32"}, "q.weight"),
    "their map alone": ({"q__weight": "uint8", "q__weight__quant_map": "float32"}, "q.weight"),
    "GPTQ": ({"q__qweight": "int32", "q__g_idx": "int32", "q__scales": "float16"}, "q.qweight"),
    "zeros of AWQ": ({"q__qzeros": "int32", "q__qweight": "int32"}, "q.qzeros"),
    "MXFP4": ({"e__gate_up_proj_blocks": "uint8", "e__gate_up_proj_scales": "uint8"}, "e.gate_up_proj_blocks"),
    "exponents of MXFP4": ({"e__down_proj_blocks": "uint8", "e__down_proj_scales": "uint8"}, "e.down_proj_scales"),
    "fused experts": ({"e__down_proj": "float8_e4m3fn", "e__down_proj_scale_inv": "float32"}, "e.down_proj"),
    "a scale of its own name": ({"q__weight": "float8_e4m3fn", "q__scale": "float32"}, "q.weight"),
    "MLX": ({"q__weight": "uint32", "q__scales": "float16", "q__biases": "float16"}, "q.weight"),
    "HQQ": ({"q__W_q": "uint8", "q__scale": "float16"}, "q.W_q"),
    "Quanto": ({"q__weight___data": "int8", "q__weight___scale": "float32"}, "q.weight._data"),
    "torchao": ({"q___weight_qdata": "int8", "q___weight_scale": "float32"}, "q._weight_qdata"),
    "no module at all": ({"weight": "int8", "SCB": "float32"}, "weight"),
}


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_tensor_with_scales_beside_it_is_quantised(scheme: str) -> None:
    tensors, name = SCHEMES[scheme]
    companion = found(**tensors)[name]
    assert companion != name and companion.replace(".", "") in {other.replace("__", "") for other in tensors}


@pytest.mark.parametrize(
    "tensors",
    [
        {"q__weight": "bfloat16", "q__weight_scale": "float32"},  # a float of its own
        {"q__weight": "float8_e4m3fn", "q__input_scale": "float32"},  # of activations
        {"q__weight": "float8_e4m3fn", "k__weight_scale": "float32"},  # of another module
        {"n__num_batches_tracked": "int64", "n__scale": "float32"},
        {"h__attn__bias": "uint8", "h__attn__scale": "float32"},  # a mask
        {"ids": "int64", "step": "int32"},
        {"q__weight": "int8", "q__weight_shape": "int64"},
    ],
    ids=str,
)
def test_what_has_no_scales_of_its_own_is_plain(tensors: dict[str, str]) -> None:
    assert not found(**tensors)


def test_only_integers_and_narrow_floats_can_be_quantised() -> None:
    wide = [name for name in ("bool", "float16", "bfloat16", "float32", "complex64") if can_be_quantised(BY_NAME[name])]
    assert not wide and all(can_be_quantised(BY_NAME[name]) for name in ("int8", "uint32", "float8_e5m2"))


def test_many_tensors_of_one_module_take_no_longer_than_many_modules() -> None:
    began = time.process_time()
    assert not companions([(f"w{number}x", BY_NAME["int8"]) for number in range(20_000)])
    assert time.process_time() - began < 20  # comparing each with each takes minutes
