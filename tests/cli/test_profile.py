"""`surgery-jax run --profile`."""

import gzip
import json

MOVES = "inputs: [ a.safetensors ]\ntransforms:\n  - move: { from: norm, to: ln }\noutput: out.safetensors\n"
SCALES = (
    "inputs: [ a.safetensors ]\ntransforms:\n  - scale_: { target: 'h\\..+', by: 2 }\noutput: out/model.safetensors\n"
)


def assert_stages(path, names):
    """A file that Perfetto opens: complete events with a beginning and a length in microseconds."""
    trace = json.loads(path.read_text(encoding="utf-8"))
    events = trace["traceEvents"]
    assert {event["name"] for event in events} == names
    for event in events:
        assert event["ph"] == "X"
        assert isinstance(event["pid"], int) and isinstance(event["tid"], int)
        assert 0 <= event["ts"] < 120e6 and 0 <= event["dur"] < 120e6


def test_a_run_that_moves_writes_its_stages_only(surgery, plan, place):
    done = surgery("run", plan(MOVES), "--no-sync", "--profile", "traces/first")
    assert done.returncode == 0, done.stderr
    assert [path.name for path in (place / "traces" / "first").iterdir()] == ["stages.trace.json"]
    assert_stages(place / "traces" / "first" / "stages.trace.json", {"move"})


def test_a_run_that_computes_also_writes_the_trace_of_jax(surgery, plan, place):
    done = surgery("run", plan(SCALES), "--no-sync", "--profile", "traces")
    assert done.returncode == 0, done.stderr
    assert_stages(place / "traces" / "stages.trace.json", {"move", "read", "compute", "write"})
    (found,) = (place / "traces").glob("plugins/profile/*/perfetto_trace.json.gz")
    events = json.loads(gzip.decompress(found.read_bytes()))["traceEvents"]
    assert any(event.get("ph") == "X" and event["dur"] > 0 for event in events)


def test_nothing_is_written_without_it(surgery, plan, place):
    before = {path.name for path in place.iterdir()}
    assert surgery("run", plan(SCALES), "--no-sync").returncode == 0
    assert {path.name for path in place.iterdir()} == {*before, "plan.yaml", "out"}
    assert [path.name for path in (place / "out").iterdir()] == ["model.safetensors"]


def test_a_folder_that_cannot_be_is_noticed_before_anything_is_written(surgery, plan, place):
    before = {path.name for path in place.iterdir()}
    done = surgery("run", plan(MOVES), "--profile", "a.safetensors")
    assert done.returncode == 3
    assert done.stderr.startswith("error: a.safetensors: ")
    assert {path.name for path in place.iterdir()} == {*before, "plan.yaml"}


def test_the_time_of_compiling_is_reported(surgery, plan):
    computed = json.loads(surgery("run", plan(SCALES), "--no-sync", "--quiet", "--json").stdout)
    assert 0 < computed["compile_s"] <= computed["stream_s"]
    moved = json.loads(surgery("run", plan(MOVES), "--no-sync", "--quiet", "--json").stdout)
    assert moved["compile_s"] == 0


def test_a_clock_counts_time_once_and_only_while_it_is_entered():
    from surgery_jax.execute.devices import CompileClock

    clock = CompileClock()
    for span in [(5.0, 6.0), (1.0, 4.0), (2.0, 3.0), (3.5, 4.5)]:  # one in another, two that overlap, one apart
        clock.add(*span)
    assert clock.seconds == 4.5
    with CompileClock() as outer, CompileClock() as inner:
        pass
    assert outer.seconds == inner.seconds == 0
