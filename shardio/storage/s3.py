"""Objects of S3 and of stores with its interface, by botocore, the core of boto3.

botocore makes one request at a time: it knows credentials, regions and signatures, and its own
retries are off, since shardio.storage.remote makes further attempts. Its checksums are sent only
where they are required, because stores that are not Amazon's refuse others; an object is sent with
the SHA-256 of its file, which the store compares before anybody sees the object.

A file of up to 5 GB is one PUT. A larger one is sent in parts, each of which is attempted again
alone. The parts of an upload that was killed are invisible, but cost; who completes an object
removes what others began of it.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple
from urllib.parse import unquote

from urllib3.exceptions import HTTPError

from shardio.checks import flag, one_of, require
from shardio.errors import RemoteError, SituationError, UsageError, argument, without_secrets
from shardio.storage.base import FileStat
from shardio.storage.local import sha256_of
from shardio.storage.remote import (
    MOST_REQUESTS,
    Client,
    Reason,
    RemoteStorage,
    RequestError,
    check_options,
    keep_logs_out,
    names_of_options,
    parse_range,
    reason_of,
    refuse_altered,
    refuse_other,
    retry_seconds,
    split_path,
    unlogged,
)

_MOST_SINGLE = 5 * 10**9  # bytes of an object that is stored by one request
_PART = 64 << 20  # bytes of a part of a larger one
_MOST_PARTS = 10_000

_REASONS: Mapping[str, Reason] = {
    "ExpiredToken": "expired",
    "ExpiredTokenException": "expired",
    "RequestExpired": "expired",
    "RequestTimeTooSkewed": "expired",
    "TokenRefreshRequired": "expired",
    "ConditionalRequestConflict": "busy",
    "OperationAborted": "busy",
    "RequestTimeout": "busy",
    "SlowDown": "busy",
    "BadDigest": "broken",  # on the way: the digest is that of the file
    "IncompleteBody": "broken",
    "XAmzContentChecksumMismatch": "broken",
    "NoSuchUpload": "exists",  # who completes an object removes the uploads of others
}
"""Why a request failed, by the store's code."""


def open_url(url: str, options: Mapping[str, Any]) -> tuple[S3Storage, str]:
    """Make the storage of a URL as `s3://bucket/key`; a user and password in it are options.

    Raises:
        UsageError: the URL has no bucket, or an option is invalid.
        SituationError: boto3 is not installed.
    """
    place = url.partition("://")[2]
    host, slash, key = place.partition("/")
    user, at, bucket = host.rpartition("@")
    path = f"s3://{bucket}{slash}{key}"
    if not bucket:
        raise UsageError(
            "the URL has no bucket", where=path, remedy="write it as s3://bucket/folder"
        )
    if at:
        name, _, password = user.partition(":")
        options = {"key": unquote(name), "secret": unquote(password), **options}
    _load_botocore()
    check_options(names_of_options(S3Storage), options)
    return S3Storage(**options), path


def _load_botocore() -> Any:
    try:
        import botocore.config  # noqa: PLC0415  an extra
        import botocore.exceptions  # noqa: PLC0415
        import botocore.session  # noqa: PLC0415
    except ImportError as error:
        raise SituationError(
            "s3:// needs boto3, which is not installed", remedy="pip install 'shardio[s3]'"
        ) from error
    return botocore


@dataclass(frozen=True, kw_only=True)
class S3Storage(RemoteStorage):
    """Objects of S3; see shardio.storage.base.Storage.

    What is None is taken from the environment and the files of AWS, as by boto3: AWS_PROFILE,
    AWS_ACCESS_KEY_ID, AWS_ENDPOINT_URL, AWS_REGION, AWS_CA_BUNDLE and others.

    Attributes:
        key: name of the access key.
        secret: secret of the access key.
        token: session token of temporary credentials.
        profile: profile of the files of AWS.
        endpoint_url: address of a store that is not Amazon's.
        region: region of the bucket.
        anon: whether requests are not signed, as for a public bucket.
        requester_pays: whether the caller pays for the requests.
        ca_bundle: file with the certificates of authorities that are trusted.
        addressing: place of the bucket: "path" of the URL, "virtual" host, or "auto".
    """

    environment: ClassVar[tuple[str, ...]] = ("AWS_",)

    key: str | None = field(default=None, repr=False)
    secret: str | None = field(default=None, repr=False)
    token: str | None = field(default=None, repr=False)
    profile: str | None = None
    endpoint_url: str | None = None
    region: str | None = None
    anon: bool = False
    requester_pays: bool = False
    ca_bundle: str | None = None
    addressing: Literal["auto", "path", "virtual"] = "auto"

    def __post_init__(self) -> None:
        super().__post_init__()
        flag("anon", self.anon)
        flag("requester_pays", self.requester_pays)
        one_of("addressing", self.addressing, ("auto", "path", "virtual"))
        if (self.key is None) != (self.secret is None):
            raise UsageError(
                "key and secret belong together",
                remedy=f"give both in {argument('storage_options')}, or neither",
            )
        if self.endpoint_url is not None:
            _check_endpoint(self.endpoint_url)
        if self.ca_bundle is not None:
            good = Path(self.ca_bundle).is_file()
            require(good, "ca_bundle", self.ca_bundle, "a file of certificates")

    def connect(self) -> S3Client:
        """Make a client, with a session of its own.

        Raises:
            UsageError: the configuration of AWS is not valid, as a profile that does not exist.
        """
        return S3Client(self)

    def publish(self, path: str, content: bytes | Path, /, *, only_if_absent: bool = False) -> None:
        """Put a file in its place; one of more than 5 GB in parts."""
        if isinstance(content, Path):
            size = content.stat().st_size
            if size > _MOST_SINGLE:
                self._publish_parts(path, content, size, only_if_absent=only_if_absent)
                return
        super().publish(path, content, only_if_absent=only_if_absent)

    def _publish_parts(self, path: str, file: Path, size: int, *, only_if_absent: bool) -> None:
        """Publish a file in parts.

        Uploads of others are removed when the object is there, and not before: they may be those
        of another pack that still runs.
        """
        upload = self._try(path, lambda client: _ours(client).begin(path))
        try:
            step = max(_PART, -(-size // _MOST_PARTS))
            parts = [
                self._put_part(upload, file, number, step)
                for number in range(1, -(-size // step) + 1)
            ]
            self._try(
                path,
                lambda client: _ours(client).complete(
                    upload, parts, size, only_if_absent=only_if_absent
                ),
            )
        except BaseException:
            with suppress(OSError):
                self._try(path, lambda client: _ours(client).abort(upload))
            raise
        if only_if_absent:
            with suppress(RemoteError):  # who may write may not be allowed to list
                self._try(path, lambda client: _ours(client).abort_others(path))

    def _put_part(self, upload: Upload, file: Path, number: int, step: int) -> SentPart:
        with file.open("rb") as stream:
            stream.seek((number - 1) * step)
            data = stream.read(step)
        return self._try(upload.path, lambda client: _ours(client).put_part(upload, number, data))


class Upload(NamedTuple):
    """An object that is sent in parts.

    Attributes:
        path: URL of the object.
        name: the store's own name of the upload.
    """

    path: str
    name: str


SentPart = Mapping[str, Any]
"""What completes an upload, of one of its parts."""


class S3Client:
    """Requests to S3; see shardio.storage.remote.Client.

    Args:
        storage: options of the requests.
    """

    def __init__(self, storage: S3Storage) -> None:
        botocore = _load_botocore()
        self._errors = botocore.exceptions
        config = botocore.config.Config(
            signature_version=botocore.UNSIGNED if storage.anon else "s3v4",
            connect_timeout=storage.timeout,
            read_timeout=storage.timeout,
            retries={"total_max_attempts": 1, "mode": "standard"},
            max_pool_connections=MOST_REQUESTS,
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
            # The checksum is signed, and the store compares it: no second pass over the file.
            s3={"addressing_style": storage.addressing, "payload_signing_enabled": False},
            user_agent_extra="shardio",
        )
        try:
            session = botocore.session.Session(profile=storage.profile)
            self._s3 = session.create_client(
                "s3",
                region_name=storage.region,
                endpoint_url=storage.endpoint_url,
                # An empty text would turn verification off.
                verify=storage.ca_bundle or session.get_config_variable("ca_bundle") or True,
                aws_access_key_id=storage.key,
                aws_secret_access_key=storage.secret,
                aws_session_token=storage.token,
                config=config,
            )
        except (self._errors.BotoCoreError, ValueError) as error:
            raise UsageError(
                f"the configuration of S3 is not valid ({_one_line(error)})",
                remedy=f"check {argument('storage_options')}, AWS_PROFILE, AWS_ENDPOINT_URL and "
                "what else AWS takes from the environment",
            ) from error
        _check_endpoint(self._s3.meta.endpoint_url)  # which may be of the environment
        for library in ("botocore", "urllib3"):
            keep_logs_out(library)  # which log signatures and session tokens
        self._always = {"RequestPayer": "requester"} if storage.requester_pays else {}
        self._storage, self._session = storage, session

    def stat(self, path: str, /) -> FileStat:
        """Measure an object."""
        try:
            return self._head(path)
        except RequestError as error:
            if error.status in (400, 403):  # the answer to GET says why, as that a token expired
                self.get(path, 0, 1, None).close()
            raise

    def _head(self, path: str) -> FileStat:
        found = self._ask("head_object", path, ChecksumMode="ENABLED")
        return FileStat(found["ContentLength"], _version(found), _sha256(found))

    def get(self, path: str, start: int, end: int | None, version: str | None, /) -> S3Body:
        """Ask for the bytes [start, end) of an object."""
        ranged = start > 0 or end is not None
        arguments = {} if version is None else {"IfMatch": version}
        if ranged:
            arguments["Range"] = f"bytes={start}-{'' if end is None else end - 1}"
        found = self._ask("get_object", path, **arguments)
        body = S3Body(found, self._errors)
        try:
            body.check(start if ranged else None, end, version)
        except RequestError:
            body.close()
            raise
        return body

    def names(self, folder: str, /) -> list[str]:
        """List what is in a folder."""
        bucket, prefix = split_path(folder.rstrip("/") + "/")
        names, more = list[str](), dict[str, Any]()
        while True:
            found = self._request(
                "list_objects_v2",
                {"Bucket": bucket, "Prefix": prefix, "Delimiter": "/", **self._always, **more},
            )
            keys = [each["Key"] for each in found.get("Contents", ())]
            keys += [each["Prefix"].rstrip("/") for each in found.get("CommonPrefixes", ())]
            names += filter(None, (key[len(prefix) :] for key in keys))
            if not found.get("IsTruncated"):
                return names
            more = {"ContinuationToken": found["NextContinuationToken"]}

    def put(self, path: str, content: bytes | Path, /, *, only_if_absent: bool) -> None:
        """Store an object, and compare what is stored."""
        if isinstance(content, Path):
            digest = sha256_of(content)
            with content.open("rb") as stream:
                size = stream.seek(0, 2)
                stream.seek(0)
                self._put(path, stream, size, digest, only_if_absent=only_if_absent)
        else:
            digest = hashlib.sha256(content).hexdigest()
            self._put(path, content, len(content), digest, only_if_absent=only_if_absent)

    def _put(self, path: str, body: Any, size: int, digest: str, *, only_if_absent: bool) -> None:
        stored = self._ask(
            "put_object",
            path,
            Body=body,
            ContentLength=size,
            ChecksumSHA256=base64.b64encode(bytes.fromhex(digest)).decode(),
            **({"IfNoneMatch": "*"} if only_if_absent else {}),
        )
        self._compare(path, stored, size, digest)

    def _compare(self, path: str, stored: Mapping[str, Any], size: int, digest: str | None) -> None:
        found = self._head(path)
        if found.version == stored["ETag"]:  # else somebody has replaced it
            refuse_altered(self, path, (size, digest), (found.size, found.sha256))

    def delete(self, path: str, /) -> None:
        """Remove an object, if it is there."""
        self._ask("delete_object", path)

    def begin(self, path: str) -> Upload:
        """Begin an object that is sent in parts."""
        found = self._ask("create_multipart_upload", path, ChecksumAlgorithm="SHA256")
        return Upload(path, found["UploadId"])

    def put_part(self, upload: Upload, number: int, data: bytes) -> SentPart:
        """Store a part of an object.

        Args:
            upload: object.
            number: number of the part, from 1 on.
            data: bytes of the part.
        """
        digest = base64.b64encode(hashlib.sha256(data).digest()).decode()
        found = self._ask(
            "upload_part",
            upload.path,
            UploadId=upload.name,
            PartNumber=number,
            Body=data,
            ChecksumSHA256=digest,
        )
        return {"PartNumber": number, "ETag": found["ETag"], "ChecksumSHA256": digest}

    def complete(
        self, upload: Upload, parts: Sequence[SentPart], size: int, *, only_if_absent: bool
    ) -> None:
        """Make the object of its parts, and compare its size.

        Args:
            upload: object.
            parts: all parts in order.
            size: size of the object in bytes.
            only_if_absent: leave an object that is there.
        """
        stored = self._ask(
            "complete_multipart_upload",
            upload.path,
            UploadId=upload.name,
            MultipartUpload={"Parts": [*parts]},
            **({"IfNoneMatch": "*"} if only_if_absent else {}),
        )
        self._compare(upload.path, stored, size, None)

    def abort(self, upload: Upload) -> None:
        """Remove the parts of an object."""
        self._ask("abort_multipart_upload", upload.path, UploadId=upload.name)

    def abort_others(self, path: str) -> None:
        """Remove the parts that others have sent of an object."""
        bucket, key = split_path(path)
        found = self._request("list_multipart_uploads", {"Bucket": bucket, "Prefix": key})
        for each in found.get("Uploads", ()):
            if each["Key"] == key:
                self.abort(Upload(path, each["UploadId"]))

    def _ask(self, operation: str, path: str, **arguments: Any) -> Mapping[str, Any]:
        bucket, key = split_path(path)
        if not key:
            raise RequestError("missing", "it is a bucket")
        return self._request(operation, {"Bucket": bucket, "Key": key, **self._always, **arguments})

    def _request(self, operation: str, arguments: Mapping[str, Any]) -> Mapping[str, Any]:
        condition: Reason = "changed" if operation == "get_object" else "exists"
        try:
            with unlogged(), _explained(self._errors, condition):
                found: Mapping[str, Any] = getattr(self._s3, operation)(**arguments)
                return found
        except RequestError as error:
            if error.reason in ("denied", "expired") and error.status:
                error.detail = f"{error.detail.rstrip('. ')}, asked {self._signer()}"
            elif error.reason in ("broken", "untrusted") and not error.status:  # nobody answered
                asked = without_secrets(self._s3.meta.endpoint_url)
                error.detail = f"{error.detail.rstrip('. ')}, asked {asked}"
            raise

    def _signer(self) -> str:
        """Describe who signs the requests; a given key may be a URL's, and is not shown."""
        if self._storage.anon:
            return "without a signature"
        if self._storage.key is not None:
            return "with the credentials that were given"
        found: Any = None
        with unlogged(), suppress(self._errors.BotoCoreError):
            found = self._session.get_credentials()
        profile = self._session.get_config_variable("profile")
        of = "" if profile is None else f" of the profile {profile}"
        known = found is not None and found.access_key != found.secret_key
        return f"with the access key {found.access_key}{of}" if known else f"with the key{of}"


class S3Body:
    """The bytes of an object, as they come; see shardio.storage.remote.Body.

    Args:
        found: botocore's answer.
        errors: botocore.exceptions.

    Attributes:
        total: size of the whole object in bytes.
        version: ETag of the object.
    """

    def __init__(self, found: Mapping[str, Any], errors: Any) -> None:
        self._found = found
        self._body = found["Body"]
        self._errors = errors
        self._left = int(found.get("ContentLength", -1))
        self.total = self._left
        self.version = found.get("ETag", "")

    def check(self, start: int | None, end: int | None, version: str | None) -> None:
        """Compare the answer with what was asked.

        Args:
            start: first byte of the range; None where the whole object was asked for.
            end: end of the bytes; None for the end of the object.
            version: version that the object must have; None for any.

        Raises:
            RequestError: the answer is another one.
        """
        status = self._found["ResponseMetadata"]["HTTPStatusCode"]
        if not self.version or self._left < 0:
            raise RequestError("refused", "the answer has no ETag or no length", status=status)
        refuse_other(version, self.version)
        if start is None:
            return
        first, last, self.total = parse_range(self._found.get("ContentRange"))
        stop = self.total if end is None else min(end, self.total)
        if (first, last, self._left) != (start, stop, stop - start):
            raise RequestError("refused", "another range was given", status=status)

    def readinto(self, buffer: memoryview, /) -> int:
        """Read some bytes; 0 at the end."""
        if not self._left:
            return 0
        with _explained(self._errors, "changed"):
            size: int = self._body.readinto(buffer[: self._left])
        self._left -= size
        return size

    def close(self) -> None:
        """Give the connection back, or close it if bytes are left."""
        self._body.close()


def _check_endpoint(url: str) -> None:
    """Raise UsageError for an endpoint with a user, which errors of botocore would show."""
    shown = url.rpartition("@")[2]
    good = shown == url and shown.startswith(("http://", "https://"))
    require(good, "endpoint_url", shown, "http:// or https:// with a host and no user")


@contextmanager
def _explained(errors: Any, condition: Reason) -> Iterator[None]:
    """Raise RequestError for errors of botocore.

    Args:
        errors: botocore.exceptions.
        condition: reason of a condition that does not hold.
    """
    try:
        yield
    except errors.ClientError as error:
        raise _of_store(error, condition) from error
    except (
        *(errors.NoCredentialsError, errors.PartialCredentialsError),
        *(errors.CredentialRetrievalError, errors.TokenRetrievalError, errors.SSOError),
    ) as error:
        raise RequestError("denied", _without_credentials(error, errors)) from error
    except (
        *(errors.HTTPClientError, errors.ConnectionError),
        *(errors.IncompleteReadError, HTTPError),
    ) as error:
        cause = _cause(error)
        # Python's error of a certificate is a ValueError, and so is urllib3's of a host's name.
        untrusted = isinstance(error, errors.SSLError) and isinstance(cause, ValueError)
        reason: Reason = "untrusted" if untrusted else "broken"
        told = cause.strerror if isinstance(cause, OSError) else None
        raise RequestError(reason, f"{type(error).__name__}: {told or _one_line(cause)}") from error
    except errors.BotoCoreError as error:
        raise RequestError("refused", _one_line(error)) from error
    except RecursionError:  # botocore asks for the region after each redirect, also of that request
        raise RequestError("refused", "the store redirects without an end") from None


def _of_store(error: Any, condition: Reason) -> RequestError:
    """Return what an answer that is an error means."""
    answer = error.response
    about, said = answer.get("ResponseMetadata", {}), answer.get("Error", {})
    code, status = str(said.get("Code", "")), about.get("HTTPStatusCode")
    return RequestError(
        _REASONS.get(code) or reason_of(status or 0, condition),
        ": ".join(filter(None, ("" if code == str(status) else code, said.get("Message")))),
        status=status,
        request_id=about.get("RequestId"),
        retry_after=retry_seconds(about.get("HTTPHeaders", {}).get("retry-after")),
    )


def _without_credentials(error: Exception, errors: Any) -> str:
    """Say that there are no credentials; what a program that gives them printed may be secret."""
    if isinstance(error, errors.NoCredentialsError):
        return (
            "there are no credentials: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY or "
            "AWS_PROFILE, pass key and secret, or anon=True for a public bucket"
        )
    return f"there are no credentials, because of {type(error).__name__}"


def _cause(error: BaseException) -> BaseException:
    """Return the error that began it: botocore's and urllib3's have others inside."""
    inner = [getattr(error, "kwargs", {}).get("error"), getattr(error, "reason", None)]
    inner += [*error.args, error.__cause__, error.__context__]
    found = next((each for each in inner if isinstance(each, BaseException)), None)
    return error if found is None else _cause(found)


def _one_line(error: object) -> str:
    return " ".join(str(error).split())


def _ours(client: Client) -> S3Client:
    assert isinstance(client, S3Client)  # noqa: S101  of S3Storage.connect
    return client


def _version(found: Mapping[str, Any]) -> str:
    if "ETag" not in found:
        raise RequestError("refused", "the answer has no ETag")
    return str(found["ETag"])


def _sha256(found: Mapping[str, Any]) -> str | None:
    """Return the digest of an object's contents; None if it is unknown, or one of digests."""
    checksum = found.get("ChecksumSHA256")
    if checksum is None or "-" in checksum or found.get("ChecksumType") == "COMPOSITE":
        return None
    return base64.b64decode(checksum).hex()
