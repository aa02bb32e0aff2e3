"""Documents of models: which come along, and what plans make of them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from memory_place import MemoryPlace
from running import write_checkpoint

from surgery_jax import Options, Problems, batch, check, load_plan, plan_of, run
from surgery_jax.api import compile_plan
from surgery_jax.cli.main import main
from surgery_jax.core.errors import AssertionFailed, StorageError
from surgery_jax.core.notes import Note
from surgery_jax.execute.observers import Observer
from surgery_jax.storage.places.found import place_of

CONFIG = """{
  "architectures": [ "LlamaForCausalLM" ],
  "model_type": "llama",
  "num_attention_heads": 4,
  "rms_norm_eps": 1e-5,
  "torch_dtype": "float32"
}
"""
DOCUMENTS = {
    "config.json": CONFIG,
    "tokenizer.json": "{}",
    "LICENSE": "yours",
    "additional_chat_templates/t.jinja": "x",
}
OTHERS = {"trainer_state.json": "{}", "model.safetensors.index.bak.json": "{}", "big.png": "x"}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = write_checkpoint(tmp_path / "m" / "model.safetensors", {"w": np.arange(6, dtype=np.float32)}).parent
    lay(path, DOCUMENTS | OTHERS)
    return path


def lay(directory: Path, texts: dict[str, str]) -> None:
    for name, text in texts.items():
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_text(text)


def go(model: Path, steps: Any, output: Any = "out", alias: str = "m", **options: Any) -> Path:
    place = model.parent / (output if isinstance(output, str) else output["path"])
    where = str(place) if isinstance(output, str) else output | {"path": str(place)}
    plan = plan_of({"inputs": [f"{alias}::{model}"], "transforms": steps, "output": where})
    run(plan, Options(**{"sync": False, "receipt": False} | options))
    return place


def documents(place: Path) -> dict[str, str]:
    found = (path for path in place.rglob("*") if path.is_file() and path.suffix != ".safetensors")
    texts = {path.relative_to(place).as_posix(): path.read_text() for path in found}
    return {name: text for name, text in texts.items() if name != "model.safetensors.index.json"}


@pytest.mark.parametrize("format", ["safetensors", "torch", "orbax"])
def test_documents_come_along_when_the_output_is_a_directory(format: str, model: Path) -> None:
    found = go(model, [], {"path": "out", "format": format})
    for name, text in DOCUMENTS.items():
        assert (found / name).read_text() == text
    assert not any((found / name).exists() for name in OTHERS)


def test_an_output_that_is_a_file_has_none(model: Path) -> None:
    assert go(model, [], "out.safetensors").is_file()
    assert sorted(path.name for path in model.parent.iterdir()) == ["m", "out.safetensors"]


@pytest.mark.parametrize(
    ("asked", "names"),
    [("none", set()), (["config.json"], {"config.json"}), (["LIC*", "tok*"], {"LICENSE", "tokenizer.json"})],
)
def test_a_plan_says_which_documents_come_along(asked: Any, names: set[str], model: Path) -> None:
    assert documents(go(model, [], {"path": "out", "documents": asked})).keys() == names
    save = {"save": {"path": str(model.parent / "mid"), "shard": "1GB", "documents": asked}}
    go(model, [save], "again")
    assert documents(model.parent / "mid").keys() == names


def test_the_config_keeps_what_no_step_names(model: Path) -> None:
    steps = [
        {"config": {"set": {"model_type": "mixtral", "rope.theta": 1e6}, "rename": {"num_attention_heads": "heads"}}},
        {"config": {"delete": "architectures"}},
    ]
    assert documents(go(model, steps))["config.json"] == (
        '{\n  "model_type": "mixtral",\n  "heads": 4,\n  "rms_norm_eps": 1e-5,\n  "torch_dtype": "float32",\n'
        '  "rope": {\n    "theta": 1000000.0\n  }\n}\n'
    )


def test_values_speak_of_the_config_as_it_is_at_their_place(model: Path) -> None:
    (model.parent / "plan.yaml").write_text(f"""
params: {{ times: {{ type: int, default: 3 }}, out: {{ type: path }} }}
named: '${{config.num_attention_heads}}'
most: .inf
inputs: [ 'm::{model}' ]
transforms:
  - config: {{ set: {{ num_attention_heads: 8, deep: {{ list: [1, 2] }} }} }}
  - foreach:
      n: [1, 2]
      do:
        - config:
            set:
              num_attention_heads: '${{config.num_attention_heads * times + n}}'
              deep.list: '${{[v * n for v in config.deep.list] + [len(config.deep.list)]}}'
              told: 'of \\${{x}} ${{config.model_type}} ${{n}} and ${{named}}'
              old: '${{named}}'
              heads: '${{min(config.num_attention_heads, most)}}'
output: '${{out}}'
""")
    run(load_plan(model.parent / "plan.yaml", f"out={model.parent / 'out'}"), Options(sync=False))
    found = json.loads((model.parent / "out" / "config.json").read_text())
    assert found["num_attention_heads"] == (8 * 3 + 1) * 3 + 2
    assert found["deep"] == {"list": [2, 4, 4, 3]}
    assert found["told"] == "of ${x} llama 2 and 4"
    assert found["old"] == 4
    assert found["heads"] == 8 * 3 + 1


def test_a_config_of_another_input_is_named_by_its_alias(model: Path) -> None:
    other = write_checkpoint(model.parent / "o" / "model.safetensors", {"v": np.ones(2)}).parent
    lay(other, {"config.json": '{"width": 7}'})
    (model.parent / "plan.yaml").write_text(f"""
inputs: [ 'm::{model}', 'o::{other}' ]
transforms:
  - config: {{ alias: m, set: {{ one: '${{m.config.model_type}}', deep.n: '${{config.num_attention_heads}}' }} }}
  - config: {{ alias: m, defaults_of: '${{m.config.model_type}}', set: {{ two: '${{config.deep.n + 5}}' }} }}
  - config: {{ alias: m, set: {{ width: '${{config.o.width + o.config.width + config.num_attention_heads}}' }} }}
  - prefixes: {{ mode: remove, alias: o }}
output: '{model.parent / "out"}'
""")
    run(load_plan(model.parent / "plan.yaml"), Options(sync=False))
    found = json.loads((model.parent / "out" / "config.json").read_text())
    assert (found["width"], found["one"], found["two"]) == (7 + 7 + 4, "llama", 9)


def test_other_keys_of_the_step_speak_of_the_config_of_the_input(model: Path) -> None:
    (model.parent / "plan.yaml").write_text(f"""
inputs: [ 'm::{model}' ]
transforms:
  - config: {{ set: {{ model_type: other }} }}
  - config: {{ defaults_of: '${{config.model_type}}', delete: '${{config.torch_dtype and "torch_dtype"}}' }}
output: '{model.parent / "out"}'
""")
    run(load_plan(model.parent / "plan.yaml"), Options(sync=False))
    found = json.loads((model.parent / "out" / "config.json").read_text())
    assert found["hidden_act"] == "silu" and "torch_dtype" not in found


def test_a_key_that_the_config_at_its_place_has_not_is_named(model: Path) -> None:
    plan = model.parent / "plan.yaml"
    plan.write_text(f"""
inputs: [ 'm::{model}' ]
transforms:
  - config: {{ delete: num_attention_heads }}
  - config: {{ set: {{ heads: '${{config.num_attention_heads}}' }} }}
output: '{model.parent / "out"}'
""")
    with pytest.raises(Problems, match=r"plan.yaml:5:29: .*unknown key 'num_attention_heads' of config.json of m"):
        run(load_plan(plan), Options(sync=False))


def test_the_summary_of_such_steps_is_a_plan_again(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan = model.parent / "plan.yaml"
    head = f"inputs: [ 'm::{model}' ]\n"
    plan.write_text(
        f"""{head}
by: 2
transforms:
  - config:
      set: {{ heads: '${{config.num_attention_heads * by}}', text: '\\${{x}} ${{config.num_attention_heads}}' }}
"""
    )
    assert main(["run", str(plan), f"output={model.parent / 'a'}", "--quiet", "--no-sync"]) == 0
    summary = capsys.readouterr().out
    assert "heads: ${config.num_attention_heads * 2}" in summary
    plan.write_text(head + summary)
    assert main(["run", str(plan), f"output={model.parent / 'b'}", "--quiet", "--no-sync"]) == 0
    assert documents(model.parent / "a")["config.json"] == documents(model.parent / "b")["config.json"]


def test_defaults_of_the_architecture_are_written_out_where_the_config_leaves_them_open(model: Path) -> None:
    transformers = pytest.importorskip("transformers")
    found = json.loads(documents(go(model, [{"config": {"defaults_of": "llama"}}]))["config.json"])
    meant = transformers.LlamaConfig(num_attention_heads=4, rms_norm_eps=1e-5).to_dict()
    meant["rope_theta"] = meant["rope_parameters"]["rope_theta"]
    more = {key: value for key, value in found.items() if key not in json.loads(CONFIG)}
    assert more == {key: meant[key] for key in more}
    assert {"rope_theta", "num_key_value_heads", "hidden_act"} <= more.keys()


@pytest.mark.parametrize("kind", ["llama", "mistral", "mixtral", "olmo2", "phi3", "qwen2", "qwen3"])
def test_the_defaults_are_those_of_transformers(kind: str) -> None:
    transformers = pytest.importorskip("transformers")
    from surgery_jax.core.model_config import defaults_of

    meant = transformers.AutoConfig.for_model(kind)
    known = defaults_of(kind, {"num_attention_heads": meant.num_attention_heads})
    known_theta = known.pop("rope_theta")
    assert known_theta == meant.rope_parameters["rope_theta"]
    assert known == {key: getattr(meant, key) for key in known}


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"num_key_value_heads": None}, {"num_key_value_heads": 4, "rope_theta": 10000.0}),
        ({"num_key_value_heads": 2, "rope_parameters": {"rope_type": "default"}}, {"rope_theta": 10000.0}),
        ({"num_key_value_heads": 2, "rope_parameters": {"rope_theta": 5e5}}, {}),
    ],
)
def test_defaults_of_what_is_null_or_half_said(config: dict[str, Any], expected: dict[str, Any]) -> None:
    transformers = pytest.importorskip("transformers")
    from surgery_jax.core.model_config import defaults_of

    found = defaults_of("qwen2", {"num_attention_heads": 4} | config)
    assert {key: found[key] for key in ("num_key_value_heads", "rope_theta") if key in found} == expected
    meant = transformers.Qwen2Config(num_attention_heads=4, **config)
    assert meant.num_key_value_heads == found.get("num_key_value_heads", 2)


def test_the_dtype_of_the_config_follows_the_tensors(model: Path) -> None:
    found = go(model, [{"cast": {"from": "w", "to": "v", "dtype": "bfloat16"}}, {"delete": {"target": "w"}}])
    assert documents(found)["config.json"] == CONFIG.replace('"float32"', '"bfloat16"')


def test_a_save_in_the_middle_sees_the_documents_of_its_place(model: Path) -> None:
    mid = str(model.parent / "mid")
    steps = [
        {"document": {"write": "NOTICE", "text": "merged"}},
        {"save": {"path": mid, "shard": "1GB"}},
        {"config": {"set": {"late": True}}},
        {"document": {"delete": "L*"}},
    ]
    out = documents(go(model, steps))
    assert documents(Path(mid)) == DOCUMENTS | {"NOTICE": "merged"}
    assert out.keys() == (DOCUMENTS.keys() | {"NOTICE"}) - {"LICENSE"}
    assert '"late": true' in out["config.json"]


def test_documents_are_copied_from_another_model_and_from_files(model: Path) -> None:
    donor = write_checkpoint(model.parent / "d" / "model.safetensors", {"v": np.ones(2)}).parent
    lay(donor, {"tokenizer.json": "[1]", "tokenizer.model": "p", "config.json": "{}"})
    lay(model.parent, {"card.md": "# mine"})
    steps = [
        {"load": {"path": str(donor), "alias": "d"}},
        {"document": {"copy": "tokenizer*", "from": "d", "alias": "m"}},
        {"document": {"copy": str(model.parent / "card.md"), "to": "README.md", "alias": "m"}},
        {"prefixes": {"mode": "remove", "alias": "d"}},
    ]
    more = {"tokenizer.json": "[1]", "tokenizer.model": "p", "README.md": "# mine"}
    assert documents(go(model, steps)) == DOCUMENTS | more


def test_dry_run_and_its_end_leave_documents_as_they_were(model: Path) -> None:
    steps = [{"set": {"dry-run": True}}, {"config": {"set": {"a": 1}}}, {"set": {"dry-run": False}}]
    assert documents(go(model, steps)) == DOCUMENTS


def test_an_assertion_speaks_of_the_config_as_it_is_then(model: Path) -> None:
    holds = {"assert": {"config": {"model_type": "llama", "m::num_attention_heads": 4}}}
    go(model, [holds, {"config": {"set": {"a": {"b": [1]}}}}, {"assert": {"config": {"a.b": [1]}}}])
    with pytest.raises((AssertionFailed, Problems), match="model_type is 'llama', not 'gpt2', missing is missing"):
        go(model, [{"assert": {"config": {"model_type": "gpt2", "missing": 1}}}], "no")


@pytest.mark.parametrize(
    ("steps", "output", "words"),
    [
        ([{"config": {"delete": "nothing"}}], "out", "has no nothing"),
        ([{"config": {"rename": {"model_type": "torch_dtype"}}}], "out", "has torch_dtype already"),
        ([{"config": {"defaults_of": "lama"}}], "out", "did you mean llama"),
        ([{"config": {}}], "out", "nothing to do"),
        ([{"document": {"delete": "x*"}}], "out", "no document of m matches 'x\\*'"),
        ([{"document": {"copy": "nowhere.md"}}], "out", "does not exist"),
        ([{"document": {"write": "../x", "text": "x"}}], "out", "not the name of a document"),
        ([{"document": {"write": "x.md"}}], "out", "text what it says"),
        ([{"document": {"copy": "LICENSE", "from": "m", "alias": "n"}}], "out", "unknown model alias: 'n'"),
        ([{"document": {"copy": "LICENSE", "from": "n"}}], "out", "unknown model alias: 'n'"),
        ([{"document": {"write": "x.md", "text": "x", "alias": "n"}}], "out", "unknown model alias: 'n'"),
        ([{"config": {"set": {"a": 1}, "alias": "n"}}], "out", "unknown model alias: 'n'"),
        ([], {"path": "out", "documents": ["x*"]}, "no document of m matches"),
        ([], {"path": "o.safetensors", "documents": ["*"]}, "in a directory"),
        ([], {"path": "out", "documents": 3}, "none, or a list of patterns"),
    ],
)
def test_what_cannot_be_is_an_error_before_anything_is_written(
    steps: Any, output: Any, words: str, model: Path
) -> None:
    with pytest.raises(Exception, match=words):
        go(model, steps, output)
    assert [path.name for path in model.parent.iterdir()] == ["m"]


@pytest.mark.parametrize("text", ["[1]", '{"b": 1, "b": 2}', "", "null", "{"])
@pytest.mark.parametrize("steps", [[{"config": {"set": {"a": 1}}}], []])
def test_what_a_config_says_must_be_an_object_with_every_key_once(model: Path, text: str, steps: Any) -> None:
    lay(model, {"config.json": text})
    with pytest.raises(Problems, match="no JSON object"):
        go(model, steps)
    if not steps:
        assert documents(go(model, steps, config_check=False))["config.json"] == text


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[1]", r"config\.json:1:1: .* no JSON object\n.*\[1\]"),
        ("null", "null"),
        ('{\n "a" 1}', r"config\.json:2:6: .*"),
    ],
)
def test_expressions_over_a_config_that_is_no_object_say_where(model: Path, text: str, words: str) -> None:
    lay(model, {"config.json": text})
    (model.parent / "p.yaml").write_text(f"inputs: ['m::{model}']\ntransforms: [{{ note: '${{config.a}}' }}]\n")
    with pytest.raises(StorageError, match=words) as caught:
        load_plan(model.parent / "p.yaml")
    assert caught.value.exit_code == 3


def test_expressions_speak_of_the_config_of_an_input_wherever_it_is(model: Path) -> None:
    place = place_of("mem://")
    assert isinstance(place, MemoryPlace)
    files = place.files
    files.clear()
    go(model, [], {"path": "out"})
    for file in (model.parent / "out").iterdir():
        if file.is_file():
            files[f"mem://bucket/m/{file.name}"] = bytearray(file.read_bytes()), 0
    (model.parent / "p.yaml").write_text(
        "inputs: ['m::mem://bucket/m']\ntransforms: [{ note: '${config.model_type}' }]\n"
    )
    assert "llama" in str(check(load_plan(model.parent / "p.yaml")).symbolic.warnings[0])
    files.clear()


def test_documents_that_are_there_are_replaced_only_if_that_is_asked_for(model: Path) -> None:
    lay(model.parent / "out", {"tokenizer.json": "[2]", "vocab.txt": "old"})
    with pytest.raises(StorageError, match="documents already"):
        go(model, [])
    assert documents(model.parent / "out") == {"tokenizer.json": "[2]", "vocab.txt": "old"}
    assert documents(go(model, [], overwrite=True)) == DOCUMENTS | {"vocab.txt": "old"}


def test_documents_of_a_replaced_model_that_stay_are_told(model: Path) -> None:
    found = go(model, [])
    with pytest.warns(Note, match=r"kept, although the model there is replaced: .*config\.json"):
        go(model, [], {"path": "out", "documents": "none"}, overwrite=True)
    assert documents(found) == DOCUMENTS


def test_a_model_is_written_over_itself_with_its_documents(model: Path) -> None:
    go(model, [{"config": {"set": {"a": 1}}}], "m", overwrite=True)
    assert (model / "config.json").read_text() == CONFIG.replace('32"\n', '32",\n  "a": 1\n')
    assert {name: (model / name).read_text() for name in OTHERS} == OTHERS


def test_a_document_that_changes_during_the_run_is_named(model: Path) -> None:
    plan = plan_of({"inputs": [f"m::{model}"], "output": str(model.parent / "out")})
    compiled = compile_plan(plan)
    lay(model, {"LICENSE": "mine, and longer"})
    with pytest.raises(StorageError, match="changed after"):
        run(plan, Options(sync=False), compiled=compiled)
    assert not (model.parent / "out").exists()


def test_a_job_whose_document_changed_is_not_finished(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(model.parent)
    plan = "{ inputs: ['m::m'], transforms: [{ document: { copy: card.json, to: README.md } }] }"
    Path("jobs.yaml").write_text(f"plan: {plan}\nset: {{ output: 'out/${{job}}' }}\njobs: [{{ name: a }}]\n")
    lay(Path(), {"card.json": "{}"})
    options = Options(sync=False, overwrite=True)
    for name, status in (("", "done"), ("", "skipped"), ("card.json", "done"), ("m/LICENSE", "done"), ("", "skipped")):
        if name:
            Path(name).write_text("another text")
        assert [job.status for job in batch("jobs.yaml", options).jobs] == [status]


def test_observers_hear_of_every_byte_of_a_document(model: Path) -> None:
    heard: dict[str, int] = {}

    class Ear(Observer):
        wants_ranges = True

        def written(self, written: Any) -> None:
            heard[written.path] = heard.get(written.path, 0) + written.nbytes

    out = model.parent / "out"
    plan = plan_of({"inputs": [f"m::{model}"], "transforms": [{"config": {"set": {"a": 1}}}], "output": str(out)})
    run(plan, Options(sync=False), observers=[Ear()])
    assert heard == {str(path): path.stat().st_size for path in out.rglob("*") if path.is_file()}


def test_transformers_loads_what_was_written_as_the_model_that_it_is(tmp_path: Path) -> None:
    transformers, torch = pytest.importorskip("transformers"), pytest.importorskip("torch")
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = transformers.LlamaConfig(**sizes, vocab_size=64)
    transformers.LlamaForCausalLM(config).save_pretrained(tmp_path / "m")
    steps = [
        {"cast": {"from": "(.+)", "to": "new.\\1", "dtype": "bfloat16"}},
        {"delete": {"target": "(?!new\\.).+"}},
        {"move": {"from": "new\\.(.+)", "to": "\\1"}},
    ]
    out = go(tmp_path / "m", steps)
    model, told = transformers.AutoModelForCausalLM.from_pretrained(out, output_loading_info=True)
    assert not any(told.values())
    assert model.dtype == torch.bfloat16
    before, after = ((path / "config.json").read_text() for path in (tmp_path / "m", out))
    assert after == before.replace('"float32"', '"bfloat16"')
