"""Repositories of a hub: revisions, files that come from elsewhere, tokens that go to the hub only."""

from __future__ import annotations

import json
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha1, sha256
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import numpy as np
import pytest
from running import assert_same_bits, read_checkpoint
from safetensors.numpy import save
from servers import Asked, Files, ranged

from surgery_jax import Options, inspect, plan_of, run
from surgery_jax.cli.main import main
from surgery_jax.core.errors import StorageError
from surgery_jax.storage.files import File
from surgery_jax.storage.formats import open_checkpoint
from surgery_jax.storage.places.found import locate, place_of

TENSORS = {f"t.{n}": np.full((200, 300), n, np.float32) for n in range(4)}
TOKEN = "hf_hidden_token"


class Hub:
    """A hub with one repository `org/name`: its files by revision. Large files come from `elsewhere`."""

    def __init__(self, server: Files, elsewhere: Files) -> None:
        self.server, self.elsewhere = server, elsewhere
        self.revisions: dict[str, dict[str, bytes]] = {"main": {}}

    def put(self, revision: str, files: Mapping[str, bytes]) -> None:
        self.revisions[revision] = dict(files)
        root, tree = f"/org/name/resolve/{revision}", f"/api/models/org/name/tree/{revision}"
        self.server.pages[tree] = lambda asked: self.listed(revision)
        for file in files:
            self.server.pages[f"{root}/{file}"] = lambda asked: self.resolved(revision, asked)

    def listed(self, revision: str) -> tuple[int, Mapping[str, str], bytes]:
        rows = []
        for name, content in self.revisions[revision].items():
            row = {"type": "file", "path": name, "size": len(content), "oid": sha1(content).hexdigest()}
            if name.endswith(".safetensors"):
                row["lfs"] = {"oid": sha256(content).hexdigest(), "size": len(content)}
            rows.append(row)
        return 200, {"Content-Type": "application/json"}, json.dumps(rows).encode()

    def resolved(self, revision: str, asked: Asked) -> tuple[int, Mapping[str, str], bytes]:
        name = unquote(urlsplit(asked.path).path).rpartition("/")[2]
        content = self.revisions[revision][name]
        if not name.endswith(".safetensors"):
            return ranged(asked, content, {"ETag": f'"{sha1(content).hexdigest()}"'})
        self.elsewhere.files[f"/blobs/{sha256(content).hexdigest()}"] = content
        told = {
            "Location": f"{self.elsewhere.url}/blobs/{sha256(content).hexdigest()}?Signature=hidden",
            "X-Linked-Etag": f'"{sha256(content).hexdigest()}"',
            "X-Linked-Size": str(len(content)),
        }
        return 302, told, b""


@pytest.fixture
def hub(web: Files, blobs: Files, monkeypatch: pytest.MonkeyPatch) -> Hub:
    monkeypatch.setenv("HF_ENDPOINT", web.url)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    found = Hub(web, blobs)
    found.put("main", {"model.safetensors": save(TENSORS), "config.json": b'{"hidden_size": 300}'})
    return found


def test_looking_again_at_a_file_does_not_disturb_those_who_read_it(hub: Hub) -> None:
    """Its version is asked for by some threads while others read its bytes from the other server."""
    path = "hf://org/name/model.safetensors"
    place, content = place_of(path), save(TENSORS)
    begun = place.identity(path)

    def read(at: int) -> bytes:
        with File(locate(path)) as file:
            return b"".join(map(bytes, file.blocks(at, 5000)))

    with ThreadPoolExecutor(6) as pool:
        looks = [pool.submit(place.identity, path) for _ in range(60)]
        reads = {at: pool.submit(read, at) for at in range(0, 300_000, 5000)}
        looks += [pool.submit(place.identity, path) for _ in range(60)]
    assert all(look.result() == begun for look in looks)
    assert all(part.result() == content[at : at + 5000] for at, part in reads.items())


def test_a_repository_is_read_as_if_it_were_on_the_disk(hub: Hub, tmp_path: Path) -> None:
    plan = plan_of({"inputs": ["m::hf://org/name"], "transforms": [], "output": str(tmp_path / "out")})
    run(plan, Options(sync=False))
    for name, array in read_checkpoint(tmp_path / "out").items():
        assert_same_bits(array, TENSORS[name])
    assert (tmp_path / "out" / "config.json").read_text() == '{"hidden_size": 300}'
    receipt = (tmp_path / "out" / "surgery.receipt.json").read_text()
    assert "hidden_token" not in receipt and "Signature" not in receipt


def test_a_token_goes_to_the_hub_and_nowhere_else(hub: Hub) -> None:
    inspect("hf://org/name", stats=True)
    assert all(asked.headers.get("Authorization") == f"Bearer {TOKEN}" for asked in hub.server.asked)
    assert hub.elsewhere.asked
    assert not any("Authorization" in asked.headers for asked in hub.elsewhere.asked)


def test_a_revision_is_what_stands_after_the_at(hub: Hub, capsys: Any) -> None:
    hub.put("v2", {"model.safetensors": save({"other": np.zeros(3)})})
    assert set(open_checkpoint("hf://org/name@v2").entries) == {"other"}
    assert set(open_checkpoint("hf://org/name@v2/model.safetensors").entries) == {"other"}
    hub.put("by/me", {"model.safetensors": save({"mine": np.zeros(3)})})
    assert set(open_checkpoint("hf://org/name@by%2Fme").entries) == {"mine"}
    hub.server.pages["/api/models/org/name/tree/v3"] = lambda asked: (404, {"X-Error-Code": "RevisionNotFound"}, b"")
    assert main(["inspect", "hf://org/name@v3"]) == 3
    assert "no such revision" in capsys.readouterr().err


def test_a_file_that_changes_is_an_error_and_a_branch_that_moves_on_is_none(hub: Hub) -> None:
    first = open_checkpoint("hf://org/name")
    hub.put("main", {**hub.revisions["main"], "README.md": b"more"})
    assert inspect(first, stats=True).tensors[3].statistics is not None
    hub.put("main", {"model.safetensors": save({name: array + 1 for name, array in TENSORS.items()})})
    with pytest.raises(StorageError, match="changed"):
        inspect(first, stats=True)


def test_a_signed_address_that_has_ended_is_asked_for_again(hub: Hub) -> None:
    first = open_checkpoint("hf://org/name")
    ended = [f"/blobs/{sha256(save(TENSORS)).hexdigest()}"]

    def once(asked: Asked) -> tuple[int, Mapping[str, str], bytes]:
        hub.elsewhere.pages.pop(ended[0])
        return 403, {}, b""

    hub.elsewhere.pages[ended[0]] = once
    assert inspect(first, stats=True).tensors[0].statistics is not None
    assert ended[0] not in hub.elsewhere.pages


@pytest.mark.parametrize(
    ("status", "code", "words"),
    [
        (401, "RepoNotFound", "no such repository"),
        (403, "GatedRepo", "ask for access"),
        (404, "RepoNotFound", "no such"),
    ],
)
def test_what_a_hub_refuses_is_said_in_words(status: int, code: str, words: str, hub: Hub, capsys: Any) -> None:
    hub.server.pages["/api/models/org/name/tree/main"] = lambda asked: (status, {"X-Error-Code": code}, b"")
    assert main(["inspect", "hf://org/name"]) == 3
    told = capsys.readouterr().err
    assert words in told and TOKEN not in told and "Traceback" not in told


def test_a_hub_is_only_read(hub: Hub, tmp_path: Path, capsys: Any) -> None:
    assert main(["convert", "hf://org/name", "hf://org/other"]) != 0
    assert "can only be read" in capsys.readouterr().err
    assert main(["inspect", "hf://name"]) == 3
    assert "write hf://org/name" in capsys.readouterr().err
