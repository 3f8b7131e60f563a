"""The servers that other tests start do what their switches say."""

from __future__ import annotations

import gzip
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import urllib3

from servers import S3_LATENCY, Azurite, FakeGcs, Hub, Nginx, SeaweedS3

CHECK = Path(__file__).parents[2] / "tools" / "check"
DATA = bytes(range(256)) * 400
RANGE = {"Range": "bytes=256-1023"}


@pytest.fixture
def web(tmp_path: Path, serve: Callable[..., Nginx]) -> Nginx:
    (tmp_path / "a.tar").write_bytes(DATA)
    (tmp_path / "b.json").write_text("{}")
    return serve(folder=tmp_path)


def fetch(url: str, **headers: str) -> urllib3.BaseHTTPResponse:
    with urllib3.PoolManager(retries=False) as pool:
        return pool.request("GET", url, headers=headers, redirect=False, decode_content=False)


def test_a_folder_is_served_whole_and_in_ranges(web: Nginx) -> None:
    assert fetch(f"{web.url}/a.tar").data == DATA
    part = fetch(f"{web.url}/a.tar", **RANGE)
    assert (part.status, part.data) == (206, DATA[256:1024])
    tag = part.headers["ETag"]
    assert fetch(f"{web.url}/a.tar", **{**RANGE, "If-Match": tag}).status == 206
    assert fetch(f"{web.url}/a.tar", **{**RANGE, "If-Match": '"other"'}).status == 412


@pytest.mark.parametrize(
    ("rule", "status", "header"),
    [
        ({"status": 503}, 503, ("Retry-After", None)),
        ({"status": 503, "retry_after": 0}, 503, ("Retry-After", "0")),
        ({"status": 429, "retry_after": 7}, 429, ("Retry-After", "7")),
        ({"status": 403, "text": "<Code>ExpiredToken</Code>"}, 403, ("Content-Length", "25")),
        ({"status": 404}, 404, ("Content-Length", "0")),
        ({"redirect": "file:///etc/passwd"}, 302, ("Location", "file:///etc/passwd")),
        ({"redirect": "http://x/y?z=1", "status": 307}, 307, ("Location", "http://x/y?z=1")),
        ({"headers": {"ETag": '"other"'}}, 206, ("ETag", '"other"')),
        ({"headers": {"ETag": ""}}, 206, ("ETag", None)),
        ({"ignore": ["Range"]}, 200, ("Content-Length", str(len(DATA)))),
        ({"zeros": 100_000, "status": 206}, 206, ("Content-Length", "100000")),
    ],
)
def test_an_answer_is_replaced(
    web: Nginx, rule: dict[str, Any], status: int, header: tuple[str, str | None]
) -> None:
    web.fail("*.tar", **rule)
    answer = fetch(f"{web.url}/a.tar", **RANGE)
    assert (answer.status, answer.headers.get(header[0])) == (status, header[1])
    assert fetch(f"{web.url}/b.json").data == b"{}"
    web.heal()
    assert fetch(f"{web.url}/a.tar", **RANGE).data == DATA[256:1024]


def test_a_body_is_compressed_though_nobody_asked(web: Nginx) -> None:
    web.fail("/a.tar", gzip=True)
    answer = fetch(f"{web.url}/a.tar", **{"Accept-Encoding": "identity"})
    assert answer.headers["Content-Encoding"] == "gzip"
    assert gzip.decompress(answer.data) == DATA


@pytest.mark.parametrize("sent", [0, 100])
def test_a_body_is_cut_once(web: Nginx, sent: int) -> None:
    web.fail("/a.tar", cut=sent, times=1)
    with pytest.raises(
        urllib3.exceptions.ProtocolError, match=rf"\({sent} bytes read, {768 - sent} "
    ):
        fetch(f"{web.url}/a.tar", **RANGE)
    assert fetch(f"{web.url}/a.tar", **RANGE).data == DATA[256:1024]


@pytest.mark.parametrize("sent", [0, 100])
def test_a_server_falls_silent(web: Nginx, sent: int) -> None:
    web.fail(stall=0.5, at=sent)
    with urllib3.PoolManager(retries=False, timeout=0.2) as pool:
        with pytest.raises(urllib3.exceptions.ReadTimeoutError):
            pool.request("GET", f"{web.url}/a.tar")
        answer = pool.request("GET", f"{web.url}/a.tar", timeout=5.0)
    assert answer.data == DATA


def test_a_stall_ends_with_the_fault(web: Nginx) -> None:
    web.fail(stall=600.0, at=100)
    with urllib3.PoolManager(retries=False, timeout=30.0) as pool:
        answer = pool.request("GET", f"{web.url}/a.tar", preload_content=False)
        assert answer.read(100) == DATA[:100]
        web.heal()
        assert answer.read() == DATA[100:]


def test_some_requests_fail_and_others_do_not(web: Nginx) -> None:
    web.fail("/a.tar", status=503, after=1, times=2, method="GET,PUT")
    assert [fetch(f"{web.url}/a.tar").status for _ in range(5)] == [200, 503, 503, 200, 200]
    web.fail(status=503, probability=0.5)
    assert 10 < [fetch(f"{web.url}/b.json").status for _ in range(60)].count(503) < 50


def test_requests_are_counted_and_their_headers_kept(web: Nginx) -> None:
    web.fail("/b.json", status=503)
    fetch(f"{web.url}/a.tar?x=1&y=%2F", Authorization="Bearer a b&c=d")
    fetch(f"{web.url}/a.tar")
    fetch(f"{web.url}/b.json")
    assert web.counts() == {("GET", "/a.tar"): 2, ("GET", "/b.json"): 1}
    first = web.requests()[0]
    assert (first.method, first.target) == ("GET", "/a.tar?x=1&y=%2F")
    assert first.headers["authorization"] == "Bearer a b&c=d"
    web.forget()
    assert web.counts() == {}
    assert web.requests() == []


def test_latency_and_rate_are_those_of_a_distant_store(web: Nginx, tmp_path: Path) -> None:
    (tmp_path / "large").write_bytes(bytes(8 << 20))
    web.pace(latency=0.2, rate=20e6)
    start = time.monotonic()
    assert len(fetch(f"{web.url}/large").data) == 8 << 20
    assert time.monotonic() - start > 0.4


def test_only_one_of_three_certificates_is_good(
    tmp_path: Path, serve: Callable[..., Nginx]
) -> None:
    (tmp_path / "a").write_bytes(b"1")
    web = serve(folder=tmp_path, tls=True)
    with urllib3.PoolManager(retries=False, ca_certs=str(web.authority)) as pool:
        assert pool.request("GET", f"{web.tls}/a").data == b"1"
        with pytest.raises(urllib3.exceptions.SSLError, match="expired"):
            pool.request("GET", f"{web.expired}/a")
        with pytest.raises(urllib3.exceptions.SSLError, match="Hostname mismatch"):
            pool.request("GET", f"{web.wrong_host}/a")
    with pytest.raises(urllib3.exceptions.SSLError, match="unable to get local issuer"):
        fetch(f"{web.tls}/a")


def test_s3_knows_conditions_and_who_may_do_what(s3: SeaweedS3) -> None:
    from botocore import UNSIGNED
    from botocore.config import Config
    from botocore.exceptions import ClientError

    bucket, owner, reader = s3.bucket(), s3.client(), s3.client(s3.reader_keys)
    owner.put_object(Bucket=bucket, Key="a b+c", Body=b"1", IfNoneMatch="*")
    with pytest.raises(ClientError, match="PreconditionFailed"):
        owner.put_object(Bucket=bucket, Key="a b+c", Body=b"2", IfNoneMatch="*")
    assert reader.get_object(Bucket=bucket, Key="a b+c")["Body"].read() == b"1"
    with pytest.raises(ClientError, match="AccessDenied"):
        reader.put_object(Bucket=bucket, Key="b", Body=b"2")
    nobody = s3.client(config=Config(signature_version=UNSIGNED))
    with pytest.raises(ClientError, match="AccessDenied"):
        nobody.get_object(Bucket=bucket, Key="a b+c")
    owner.put_object(Bucket="public", Key="a", Body=b"3")
    assert nobody.get_object(Bucket="public", Key="a")["Body"].read() == b"3"


def test_s3_behind_nginx_fails_as_it_is_told(s3: SeaweedS3, serve: Callable[..., Nginx]) -> None:
    from botocore.exceptions import ClientError

    web, bucket = serve(upstream=s3.url, latency=S3_LATENCY), s3.bucket()
    client = s3.client(url=web.url)
    client.put_object(Bucket=bucket, Key="a b+c.tar", Body=DATA)
    web.fail("*.tar", headers={"ETag": '"other"'})
    part = client.get_object(Bucket=bucket, Key="a b+c.tar", Range="bytes=256-1023")
    assert (part["ETag"], part["Body"].read()) == ('"other"', DATA[256:1024])
    web.fail("*.tar", method="PUT", status=400, text="<Error><Code>ExpiredToken</Code></Error>")
    assert client.head_object(Bucket=bucket, Key="a b+c.tar")["ContentLength"] == len(DATA)
    with pytest.raises(ClientError, match="ExpiredToken"):
        client.put_object(Bucket=bucket, Key="b.tar", Body=DATA)
    web.fail("*.tar", cut=100)
    body = client.get_object(Bucket=bucket, Key="a b+c.tar")["Body"]
    with pytest.raises(Exception, match="IncompleteRead"):
        body.read()
    assert web.counts()["GET", f"/{bucket}/a b+c.tar"] == 2


def test_s3_starts_again_with_what_it_held_and_forgets_old_credentials(s3: SeaweedS3) -> None:
    from botocore.exceptions import ClientError

    bucket, before = s3.bucket(), s3.client()
    before.put_object(Bucket=bucket, Key="a", Body=DATA)
    s3.rotate()
    assert s3.client().get_object(Bucket=bucket, Key="a")["Body"].read() == DATA
    with pytest.raises(ClientError, match="403"):
        before.head_object(Bucket=bucket, Key="a")


def test_azure_and_google_are_emulated(azure: Azurite, gcs: FakeGcs) -> None:
    fsspec = pytest.importorskip("fsspec")

    az = fsspec.filesystem("az", connection_string=azure.connection_string)
    gs = fsspec.filesystem("gs", **gcs.options)
    for files, bucket in ((az, azure.bucket()), (gs, gcs.bucket())):
        files.pipe_file(f"{bucket}/a", DATA)
        assert files.cat_file(f"{bucket}/a", start=256, end=1024) == DATA[256:1024]


def test_the_hub_answers_as_documented(hub: Hub, tmp_path: Path) -> None:
    files = tmp_path / "files"
    for name in ("a.tar", "train/b.tar", "train/c.tar", "README.md"):
        (files / name).parent.mkdir(parents=True, exist_ok=True)
        (files / name).write_bytes(name.encode())
    secret = "hf_only_for_tests"  # noqa: S105  of no real hub
    commit = hub.add("org/name", files, token=secret)
    base, user = f"{hub.url}/api/datasets/org/name", {"Authorization": f"Bearer {secret}"}

    assert fetch(f"{base}/revision/main").headers["X-Error-Code"] == "RepoNotFound"
    info = json.loads(fetch(f"{base}/revision/main", **user).data)
    assert info["sha"] == commit
    assert fetch(f"{base}/revision/dev", **user).headers["X-Error-Code"] == "RevisionNotFound"

    listed, url = list[str](), f"{base}/tree/{commit}?recursive=true"
    while url:
        page = fetch(url, **user)
        listed += [entry["path"] for entry in json.loads(page.data)]
        url = page.headers.get("Link", "").partition(">")[0][1:]
    assert listed == ["README.md", "a.tar", "train", "train/b.tar", "train/c.tar"]
    below = json.loads(fetch(f"{base}/tree/main/train", **user).data)
    assert [entry["lfs"]["size"] for entry in below] == [11, 11]

    small = fetch(f"{hub.url}/datasets/org/name/resolve/main/README.md", **user)
    assert (small.status, small.headers["X-Repo-Commit"]) == (307, commit)
    assert fetch(hub.url + small.headers["Location"], **user).data == b"README.md"

    large = fetch(f"{hub.url}/datasets/org/name/resolve/main/train/b.tar", **user)
    assert (large.status, large.headers["X-Linked-Size"]) == (302, "11")
    assert large.headers["X-Linked-Etag"].strip('"') == below[0]["lfs"]["oid"]
    assert fetch(large.headers["Location"], Range="bytes=0-4").data == b"train"
    assert "authorization" not in hub.cdn.requests()[0].headers
    hub.lifetime(0)
    late = fetch(f"{hub.url}/datasets/org/name/resolve/main/train/b.tar", **user)
    assert fetch(late.headers["Location"]).status == 403


def test_a_server_ends_with_the_process_that_started_it(web: Nginx, tmp_path: Path) -> None:
    del web  # skips where nginx is not installed
    code = f"""
import os, pathlib, sys
sys.path.insert(0, {str(CHECK)!r})
from servers import Nginx
server = Nginx(pathlib.Path({str(tmp_path / "other")!r}), folder=pathlib.Path("/")).start()
print(server._process.pid, flush=True)
os.read(0, 1)
"""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", code], **pipes) as starter:  # type: ignore[call-overload]
        server = int(starter.stdout.readline())
        os.kill(starter.pid, signal.SIGKILL)
    deadline = time.monotonic() + 20
    while Path(f"/proc/{server}/exe").exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)
