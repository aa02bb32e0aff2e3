"""Fixtures: local servers of the kinds of stores that places speak with."""

from __future__ import annotations

import http.client
import os
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import boto3
import pytest
from servers import SECRET, Files, Proxy, running

KEY = "AKIDEXAMPLE"


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    """Nothing of the user who runs the tests."""
    for name in list(os.environ):
        if name.startswith(("AWS_", "HF_", "GOOGLE_", "STORAGE_")) or name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")


@pytest.fixture(scope="session")
def moto() -> Iterator[str]:
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture(scope="session")
def client(moto: str) -> Iterator[Any]:
    """One for all tests: to make one costs more than most of them."""
    keys = {"aws_access_key_id": KEY, "aws_secret_access_key": SECRET}
    client = boto3.client("s3", endpoint_url=moto, region_name="us-east-1", **keys)
    yield client
    client.close()


@pytest.fixture
def s3(moto: str, client: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """An empty bucket `bucket`, behind a proxy: its client, with the proxy as `proxy`."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    client.create_bucket(Bucket="bucket")
    with running(Proxy(moto)) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        client.proxy = proxy
        yield client
    for item in client.list_objects_v2(Bucket="bucket").get("Contents", ()):
        client.delete_object(Bucket="bucket", Key=item["Key"])
    client.delete_bucket(Bucket="bucket")


@pytest.fixture
def web() -> Iterator[Files]:
    with running(Files()) as server:
        yield server


@pytest.fixture
def blobs() -> Iterator[Files]:
    with running(Files()) as server:
        yield server


@pytest.fixture(scope="session")
def emulator() -> Iterator[str]:
    from gcp_storage_emulator.server import create_server

    server = create_server("127.0.0.1", 0, in_memory=True)
    server.start()
    yield f"http://127.0.0.1:{server._api._httpd.server_address[1]}"
    server.stop()


@pytest.fixture
def gs(emulator: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """An empty bucket `bucket` of a server like Google's, behind a proxy."""
    host = urlsplit(emulator).netloc
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", host)
    for method, path, body in (("GET", "/wipe", None), ("POST", "/storage/v1/b?project=p", b'{"name": "bucket"}')):
        connection = http.client.HTTPConnection(host)
        connection.request(method, path, body, {"Content-Type": "application/json"})
        assert connection.getresponse().status == 200
        connection.close()
    with running(Proxy(emulator)) as proxy:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", proxy.url)
        yield proxy
