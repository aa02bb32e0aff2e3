"""What the pages give to clusters is valid: manifests by a schema of the parts that are used, scripts by their shell,
and the commands in them by the command line."""

from __future__ import annotations

import re
import shlex
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from surgery_jax.cli.command import commands, parse
from surgery_jax.hosts.tasks import find_task

PAGE = Path(__file__).resolve().parent.parent / "docs" / "pods.md"
BLOCKS = re.findall(r"^```text\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)

NAME = {"type": str, "pattern": r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?"}
COUNT = {"type": int, "minimum": 0}
QUANTITY = {"type": str, "pattern": r"\d+(\.\d+)?([mkMGT]|[KMGT]i)?"}
WORDS = {"type": list, "items": {"type": str}}
METADATA = {"required": ["name"], "properties": {"name": NAME}}
CONTAINER = {
    "required": ["name", "image"],
    "properties": {
        "name": NAME,
        "image": {"type": str},
        "workingDir": {"type": str, "pattern": "/.*"},
        "command": WORDS,
        "args": WORDS,
        "resources": {"properties": {"requests": {"properties": {"cpu": QUANTITY, "memory": QUANTITY}}}},
        "volumeMounts": {
            "type": list,
            "items": {"required": ["name", "mountPath"], "properties": {"name": NAME, "mountPath": {"type": str}}},
        },
    },
}
VOLUME = {
    "required": ["name"],
    "properties": {
        "name": NAME,
        "persistentVolumeClaim": {"required": ["claimName"], "properties": {"claimName": NAME}},
    },
}
POD = {
    "required": ["containers", "restartPolicy"],
    "properties": {
        "subdomain": NAME,
        "restartPolicy": {"type": str, "enum": ["Never", "OnFailure"]},  # of a Job
        "containers": {"type": list, "items": CONTAINER},
        "volumes": {"type": list, "items": VOLUME},
    },
}
RULE = {
    "required": ["action"],
    "properties": {
        "action": {"type": str, "enum": ["FailJob", "FailIndex", "Ignore", "Count"]},
        "onExitCodes": {
            "required": ["operator", "values"],
            "properties": {
                "operator": {"type": str, "enum": ["In", "NotIn"]},
                "values": {"type": list, "items": {"type": int, "minimum": 1}},
            },
        },
        "onPodConditions": {
            "type": list,
            "items": {
                "required": ["type"],
                "properties": {"type": {"type": str}, "status": {"type": str, "enum": ["True", "False", "Unknown"]}},
            },
        },
    },
}
JOB = {
    "required": ["template"],
    "properties": {
        "completionMode": {"type": str, "enum": ["Indexed", "NonIndexed"]},
        "completions": COUNT,
        "parallelism": COUNT,
        "backoffLimit": COUNT,
        "backoffLimitPerIndex": COUNT,
        "podFailurePolicy": {"required": ["rules"], "properties": {"rules": {"type": list, "items": RULE}}},
        "template": {"required": ["spec"], "properties": {"spec": POD}},
    },
}
REPLICATED = {
    "required": ["name", "template"],
    "properties": {"name": NAME, "replicas": COUNT, "template": {"required": ["spec"], "properties": {"spec": JOB}}},
}
JOB_SET = {
    "required": ["replicatedJobs"],
    "properties": {
        "failurePolicy": {"properties": {"maxRestarts": COUNT}},
        "replicatedJobs": {"type": list, "items": REPLICATED},
    },
}
SERVICE = {
    "required": ["selector"],
    "properties": {
        "clusterIP": {"type": str, "enum": ["None"]},
        "selector": {"properties": {"job-name": NAME}},
    },
}
SPECS = {("batch/v1", "Job"): JOB, ("jobset.x-k8s.io/v1alpha2", "JobSet"): JOB_SET, ("v1", "Service"): SERVICE}


def problems(value: Any, schema: Mapping[str, Any], at: str = "") -> Iterator[str]:
    """What is wrong with a value; a schema without a type is one of a mapping, which has no other keys."""
    kind = schema.get("type", dict)
    if not isinstance(value, kind) or isinstance(value, bool):
        yield f"{at}: {value!r} is no {kind.__name__}"
        return
    if "enum" in schema and value not in schema["enum"]:
        yield f"{at}: {value!r} is none of {schema['enum']}"
    if "pattern" in schema and not re.fullmatch(schema["pattern"], value):
        yield f"{at}: {value!r} does not match {schema['pattern']}"
    if "minimum" in schema and value < schema["minimum"]:
        yield f"{at}: {value} is less than {schema['minimum']}"
    for number, item in enumerate(value if "items" in schema else ()):
        yield from problems(item, schema["items"], f"{at}[{number}]")
    if kind is dict:
        yield from (f"{at}: no {key}" for key in schema.get("required", ()) if key not in value)
        for key, item in value.items():
            known = schema["properties"].get(key)
            yield from problems(item, known, f"{at}.{key}") if known else [f"{at}: unknown key {key}"]


def manifests() -> list[dict[str, Any]]:
    return [part for text in BLOCKS if text.startswith("apiVersion:") for part in yaml.safe_load_all(text)]


def jobs() -> list[dict[str, Any]]:
    """The Jobs of all manifests, those of a JobSet too."""
    found = []
    for one in manifests():
        if one["kind"] == "Job":
            found.append(one["spec"])
        elif one["kind"] == "JobSet":
            found += [part["template"]["spec"] for part in one["spec"]["replicatedJobs"]]
    return found


def commands_of(text: str) -> list[list[str]]:
    """The words of every call of ours in lines of a shell."""
    lines = text.replace("\\\n", " ").replace(" && ", "\n")
    found = re.findall(r"^\s*(?:srun )?surgery-jax (.*)", lines, re.MULTILINE)
    return [[word for word in shlex.split(line, comments=True) if word != "&"] for line in found]


def test_manifests_are_valid():
    assert sorted(one["kind"] for one in manifests()) == ["Job", "Job", "JobSet", "Service"]
    for one in manifests():
        envelope = {"apiVersion": {"type": str}, "kind": {"type": str}, "metadata": METADATA}
        spec = SPECS[one["apiVersion"], one["kind"]]
        schema = {"required": ["apiVersion", "kind", "metadata", "spec"], "properties": envelope | {"spec": spec}}
        assert list(problems(one, schema)) == []


@pytest.mark.parametrize(
    ("path", "value"),
    [(["completions"], "16"), (["completionMode"], "indexed"), (["template", "spec", "restartPolicy"], "Always"),
     (["paralelism"], 4), (["template", "spec", "containers", 0, "name"], "My Name"), (["template"], {})],
)  # fmt: skip
def test_what_is_not_valid_is_found(path, value):
    job = next(one["spec"] for one in manifests() if "podFailurePolicy" in one["spec"])
    place: Any = job
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    assert list(problems(job, JOB))


def test_jobs_are_whole_and_their_tasks_are_as_many_as_their_pods():
    for job in jobs():
        assert job["completionMode"] == "Indexed"
        assert job["parallelism"] <= job["completions"]
        if "backoffLimitPerIndex" in job or "podFailurePolicy" in job:
            assert job["template"]["spec"]["restartPolicy"] == "Never"
        pod = job["template"]["spec"]
        for container in pod["containers"]:
            mounted = {mount["name"] for mount in container["volumeMounts"]}
            assert mounted <= {volume["name"] for volume in pod["volumes"]}
            words = container["command"] + container["args"]
            if "batch" in words:
                word = words[words.index("--task") + 1]
                for index in range(job["completions"]):
                    task = find_task(word, {"JOB_COMPLETION_INDEX": str(index)})
                    assert task is not None
                    assert (task.number, task.count) == (index + 1, job["completions"])


def test_the_commands_are_ours():
    found = [words for text in BLOCKS for words in commands_of(re.sub(r"--command=\"[^\"]*\"", "", text))]
    for job in jobs():
        for container in job["template"]["spec"]["containers"]:
            words = container["command"] + container["args"]
            found += commands_of(words[-1]) if words[0] == "bash" else [words[1:]]
    for text in BLOCKS:
        for word in re.findall(r'--command="([^"]*)"', text):
            found += commands_of(word)
    assert sum(words[0] == "batch" for words in found) >= 4
    for name, *words in found:
        words = ["0" if word.startswith("$") else word for word in words]
        assert parse(commands()[name], words)


def test_the_scripts_of_slurm_are_those_of_a_shell_and_start_with_their_options():
    scripts = [text for text in BLOCKS if text.startswith("#!/bin/bash\n#SBATCH ")]
    assert len(scripts) == 2
    for text in scripts:
        assert subprocess.run(["bash", "-n"], input=text, text=True, check=False).returncode == 0
        for word in re.findall(r"^#SBATCH (.*)", text, re.MULTILINE)[0].split():
            assert re.fullmatch(
                r"--(array=\d+-\d+|nodes=\d+|ntasks-per-node=\d+|cpus-per-task=\d+|time=[\d:]+|requeue)", word
            )
