"""The functions of the package: the same verbs as the command, as typed values."""

import subprocess
import sys

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import surgery_jax
from surgery_jax import PlanError, StorageError


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_file({"h.0.w": np.ones((2, 3), np.float32), "h.1.w": np.zeros((2, 3), np.float32)}, "a.safetensors")
    return tmp_path


def test_importing_the_package_imports_nothing_else():
    code = "import sys; before = set(sys.modules); import surgery_jax; print(sorted(set(sys.modules) - before))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "surgery_jax.api" not in done.stdout


def test_every_public_name_exists_and_is_documented():
    for name in surgery_jax.__all__:
        assert getattr(surgery_jax, name).__doc__, name
    with pytest.raises(AttributeError, match="nope"):
        surgery_jax.nope  # noqa: B018


def test_inspect_tells_shapes_and_on_request_values(here):
    info = surgery_jax.inspect("a.safetensors", filter=r"h\.0")
    assert [(tensor.name, tensor.shape, tensor.statistics) for tensor in info.tensors] == [("h.0.w", (2, 3), None)]
    found = surgery_jax.inspect("a.safetensors", stats=True).tensors[0].statistics
    assert (found.min, found.max, found.mean) == (1.0, 1.0, 1.0)


def test_explain_agrees_with_the_report_of_the_run(here):
    steps = [{"scale_": {"target": "h.*", "by": 3}}, {"copy": {"from": "h.0.w", "to": "x"}}]
    plan = surgery_jax.plan_of({"inputs": ["a.safetensors"], "transforms": steps, "output": "o.safetensors"})
    account = surgery_jax.explain(plan)
    report = surgery_jax.run(plan, surgery_jax.Options(sync=False))
    assert account.bytes_computed == report.bytes_computed == 72
    assert account.bytes_read == report.bytes_read
    assert account.groups[0].reads == ("h.{0-1}.w",)
    assert account.groups[0].num_components == 2


def test_diff_gives_what_changed_and_by_how_much(here):
    tensors = load_file("a.safetensors")
    tensors["h.1.w"][1, 2] = -4
    save_file(tensors, "b.safetensors")
    found = surgery_jax.diff("a.safetensors", "b.safetensors")
    assert not found.is_empty
    (change,) = found.changed
    assert (change.name, change.kind, change.worst, change.index, change.num_differing) == (
        "h.1.w",
        "values",
        4.0,
        (1, 2),
        1,
    )
    assert surgery_jax.diff("a.safetensors", "b.safetensors", eps=5.0).is_empty


def test_convert_writes_the_same_tensors_and_refuses_what_is_there(here):
    report = surgery_jax.convert("a.safetensors", "dir", surgery_jax.Options(sync=False), shard="none")
    assert report.num_tensors == 2
    assert surgery_jax.diff("a.safetensors", "dir").is_empty
    with pytest.raises(StorageError, match="already"):
        surgery_jax.convert("a.safetensors", "dir")
    with pytest.raises(PlanError) as caught:
        surgery_jax.convert("a.safetensors", "x.foo")
    assert caught.value.where is None


def test_a_wrong_filter_is_a_plan_error(here):
    with pytest.raises(PlanError, match="regular expression"):
        surgery_jax.inspect("a.safetensors", filter="(")
