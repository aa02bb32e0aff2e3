"""A Llama of transformers goes to MaxText's parameters and back bit for bit, and computes the same there."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
import safetensors.numpy
import yaml
from flax import serialization, traverse_util
from flax_llama import FlaxLlama

from surgery_jax import Options, Problems, diff, load_plan, run, to_flax

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.filterwarnings("ignore")

PLANS = Path(__file__).parent.parent.parent / "plans"
LAYERS, HEADS, KV_HEADS, HIDDEN, WIDTH, VOCABULARY = 12, 4, 2, 64, 40, 48
SIZES = (
    f"heads={HEADS}", f"kv_heads={KV_HEADS}", f"hidden={HIDDEN}", f"head={HIDDEN // HEADS}", f"width={WIDTH}",
    f"layers={LAYERS}", f"vocabulary={VOCABULARY}", "theta=10000", "eps=1e-6", "tied=false",
)  # fmt: skip
quiet = Options(sync=False, overwrite=True)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """A random Llama: twelve layers, so that layer 10 must not come after layer 1."""
    torch.manual_seed(11)
    config = transformers.LlamaConfig(
        hidden_size=HIDDEN, intermediate_size=WIDTH, num_hidden_layers=LAYERS, num_attention_heads=HEADS,
        num_key_value_heads=KV_HEADS, vocab_size=VOCABULARY, max_position_embeddings=32, initializer_range=0.2,
    )  # fmt: skip
    made = transformers.LlamaForCausalLM(config).eval()
    path = tmp_path_factory.mktemp("llama") / "model"
    made.save_pretrained(path)
    return path, made


def convert(plan: str, source: Path, target: Path, *settings: str) -> Any:
    output = [f"output={target}", *(["output.format=flax"] if target.suffix == ".msgpack" else [])]
    told = SIZES if ".msgpack" in str(source) else ()  # there is no config beside such a file
    return run(load_plan(PLANS / plan, f"source={source}", *output, "tree=params", *told, *settings), quiet)


def test_frequencies_that_older_files_hold_are_left_out(llama: tuple[Path, Any], tmp_path: Path) -> None:
    path, _ = llama
    old = shutil.copytree(path, tmp_path / "old")
    tensors = safetensors.numpy.load_file(path / "model.safetensors")
    more = {f"model.layers.{n}.self_attn.rotary_emb.inv_freq": np.ones(8, np.float32) for n in range(LAYERS)}
    safetensors.numpy.save_file(tensors | more, old / "model.safetensors")
    convert("llama_to_maxtext.yaml", old, tmp_path / "params")
    convert("maxtext_to_llama.yaml", tmp_path / "params", tmp_path / "back")
    assert diff(path, tmp_path / "back").is_empty


@pytest.mark.parametrize("axis", [0, 1])
def test_the_parameters_for_maxtext_give_the_logits_of_transformers(
    llama: tuple[Path, Any], tmp_path: Path, axis: int
) -> None:
    path, made = llama
    target = tmp_path / "params.msgpack"
    convert("llama_to_maxtext.yaml", path, target, f"axis={axis}")
    variables = serialization.msgpack_restore(target.read_bytes())
    model = FlaxLlama(LAYERS, HEADS, KV_HEADS, HIDDEN // HEADS, WIDTH, HIDDEN, VOCABULARY, axis)
    tokens = np.random.default_rng(0).integers(0, VOCABULARY, 20)
    wanted = jax.eval_shape(model.init, jax.random.key(0), tokens)
    assert jax.tree.map(np.shape, variables) == jax.tree.map(np.shape, wanted)
    with torch.no_grad():
        expected = made(torch.from_numpy(tokens)[None]).logits[0].numpy()
    found = np.asarray(model.apply(variables, tokens))
    assert np.abs(expected).max() > 1
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-5 * np.abs(expected).max())


@pytest.mark.parametrize(
    ("there", "back"),
    [
        ((), ()),
        (("axis=0",), ("axis=0",)),
        (
            ("query_scale=1", "rope=halves", "tree=params.params"),
            ("query_scale=1", "rope=halves", "tree=params.params"),
        ),
        (("scanned=false",), ("scanned=false",)),
    ],
)
def test_the_way_to_maxtext_and_back_changes_no_bit(
    llama: tuple[Path, Any], tmp_path: Path, there: tuple[str, ...], back: tuple[str, ...]
) -> None:
    convert("llama_to_maxtext.yaml", llama[0], tmp_path / "there.msgpack", *there)
    convert("maxtext_to_llama.yaml", tmp_path / "there.msgpack", tmp_path / "back", *back)
    assert diff(llama[0], tmp_path / "back").is_empty


def test_the_shapes_are_those_of_maxtext(llama: tuple[Path, Any], tmp_path: Path) -> None:
    convert("llama_to_maxtext.yaml", llama[0], tmp_path / "a.msgpack", "tree=params.params")
    tree = serialization.msgpack_restore((tmp_path / "a.msgpack").read_bytes())
    length = HIDDEN // HEADS
    layers = {
        "pre_self_attention_layer_norm.scale": (HIDDEN, LAYERS),
        "post_self_attention_layer_norm.scale": (HIDDEN, LAYERS),
        "self_attention.query.kernel": (HIDDEN, LAYERS, HEADS, length),
        "self_attention.key.kernel": (HIDDEN, LAYERS, KV_HEADS, length),
        "self_attention.value.kernel": (HIDDEN, LAYERS, KV_HEADS, length),
        "self_attention.out.kernel": (HEADS, LAYERS, length, HIDDEN),
        "mlp.wi_0.kernel": (HIDDEN, LAYERS, WIDTH),
        "mlp.wi_1.kernel": (HIDDEN, LAYERS, WIDTH),
        "mlp.wo.kernel": (WIDTH, LAYERS, HIDDEN),
    }
    found = {name: leaf.shape for name, leaf in traverse_util.flatten_dict(tree["params"]["params"], sep=".").items()}
    assert found == {
        "token_embedder.embedding": (VOCABULARY, HIDDEN),
        "decoder.decoder_norm.scale": (HIDDEN,),
        "decoder.logits_dense.kernel": (HIDDEN, VOCABULARY),
        **{f"decoder.layers.{name}": shape for name, shape in layers.items()},
    }


def test_the_parameters_go_to_orbax_and_come_back(llama: tuple[Path, Any], tmp_path: Path) -> None:
    convert("llama_to_maxtext.yaml", llama[0], tmp_path / "there")
    convert("llama_to_maxtext.yaml", llama[0], tmp_path / "there.msgpack")
    with ocp.StandardCheckpointer() as checkpointer:
        found = checkpointer.restore(tmp_path / "there")
    expected = to_flax(tmp_path / "there.msgpack")
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    assert jax.tree.all(jax.tree.map(np.array_equal, found, expected))
    convert("maxtext_to_llama.yaml", tmp_path / "there", tmp_path / "back")
    assert diff(llama[0], tmp_path / "back").is_empty


def test_the_rest_of_a_train_state_is_not_taken_for_a_llama(llama: tuple[Path, Any], tmp_path: Path) -> None:
    convert("llama_to_maxtext.yaml", llama[0], tmp_path / "there.msgpack", "tree=params.params")
    state = to_flax(tmp_path / "there.msgpack") | {"step": 3, "opt_state": {"mu": np.ones(2)}}
    (tmp_path / "state.msgpack").write_bytes(serialization.msgpack_serialize(state))
    with pytest.raises(Problems, match="assertion failed: not: exists: 2 tensors match"):
        source = tmp_path / "state.msgpack"
        convert("maxtext_to_llama.yaml", source, tmp_path / "back", "tree=params.params")
    convert("maxtext_to_llama.yaml", Path(f"{source}#params"), tmp_path / "back")
    assert diff(llama[0], tmp_path / "back").is_empty


def test_layers_that_are_not_scanned_have_the_names_of_maxtext_and_come_back(
    llama: tuple[Path, Any], tmp_path: Path
) -> None:
    convert("llama_to_maxtext.yaml", llama[0], tmp_path / "apart.msgpack", "scanned=false")
    convert("llama_to_maxtext.yaml", llama[0], tmp_path / "scanned.msgpack")
    apart, scanned = (to_flax(tmp_path / f"{name}.msgpack")["params"]["decoder"] for name in ("apart", "scanned"))
    for number in range(LAYERS):
        expected = jax.tree.map(lambda leaf, n=number: leaf[:, n], scanned["layers"])
        assert jax.tree.all(jax.tree.map(np.array_equal, apart[f"layers_{number}"], expected))


def test_a_tensor_that_maxtext_has_no_place_for_is_not_dropped(tmp_path: Path) -> None:
    sizes = {"hidden_size": 64, "intermediate_size": 40, "num_hidden_layers": 1, "num_attention_heads": 4}
    config = transformers.LlamaConfig(**sizes, vocab_size=48, attention_bias=True)
    transformers.LlamaForCausalLM(config).save_pretrained(tmp_path / "m")
    with pytest.raises(Problems, match="assertion failed: not: exists: 4 tensors match"):
        convert("llama_to_maxtext.yaml", tmp_path / "m", tmp_path / "a.msgpack")


@pytest.mark.parametrize("tied", [True, False])
def test_the_way_to_maxtext_and_back_gives_a_model_that_transformers_loads(tied: bool, tmp_path: Path) -> None:
    sizes = {"hidden_size": 64, "intermediate_size": 40, "num_hidden_layers": 3, "num_attention_heads": 4}
    config = transformers.LlamaConfig(
        **sizes, num_key_value_heads=2, vocab_size=48, tie_word_embeddings=tied, rope_theta=5000.0, head_dim=64
    )
    made = transformers.LlamaForCausalLM(config).eval()
    made.save_pretrained(tmp_path / "m")
    convert("llama_to_maxtext.yaml", tmp_path / "m", tmp_path / "there")
    text = yaml.safe_load((tmp_path / "there" / "maxtext.yml").read_text())
    assert (text["logits_via_embedding"], text["head_dim"], text["rope_max_timescale"]) == (tied, 64, 5000.0)
    convert("maxtext_to_llama.yaml", tmp_path / "there", tmp_path / "back")
    convert("llama_to_maxtext.yaml", tmp_path / "m", tmp_path / "there.msgpack")
    more = ("head=64", f"tied={str(tied).lower()}", "theta=5000", f"layers={sizes['num_hidden_layers']}")
    convert("maxtext_to_llama.yaml", tmp_path / "there.msgpack", tmp_path / "bare", *more)
    tokens = torch.arange(20)[None]
    for place in ("back", "bare"):  # with the config that came along, and with one that is written of the numbers
        found, told = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / place, output_loading_info=True)
        assert not any(told.values())
        assert torch.equal(found.eval()(tokens).logits, made(tokens).logits)
