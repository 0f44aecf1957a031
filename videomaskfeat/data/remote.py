"""Reading parts of files over HTTP and from object stores.

urllib3 reads http:// and https://, fsspec's file systems read s3:// and gs://; each retries by itself. A
server that does not answer is reported within two minutes: five tries, or six of gcsfs, of 20 seconds. In a
training, where ten videos in a row must fail, a web server is reported within five minutes.
"""

from __future__ import annotations

import functools
import hashlib
import importlib
import importlib.util
import logging
import os
import re
import shutil
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from videomaskfeat.errors import UserError, counted
from videomaskfeat.io import make_folder, whole_file

logger = logging.getLogger(__name__)
CACHE = "VIDEOMASKFEAT_SHARD_CACHE"
"""Environment variable: folder for videos that were read from remote shards."""
_FREE_SHARE = 0.05  # of the disk stays free
_TRIES = 5
_CONNECT_SECONDS, _READ_SECONDS = 10.0, 20.0  # per try; a worker counts as stuck after data.read_seconds
_silent_servers: set[str] = set()
"""Servers that did not answer the last request of this process: they get one try, until one succeeds."""
_PARALLEL = 16  # requests for the sizes of shards
_OBJECT_STORES = {"s3": "s3fs", "gs": "gcsfs"}


class RemoteError(Exception):
    """A remote file cannot be read, after several tries; the message is a short phrase."""


def read_range(url: str, offset: int, size: int) -> bytes:
    """Bytes of a remote file, from the cache if the environment variable of `CACHE` names a folder.

    Videos are added to the cache until its disk is nearly full, and never removed: in epochs in random order,
    every video of the cache saves one request per epoch.

    Raises:
        RemoteError: the file cannot be read.
        UserError: a package or a permission is missing.
    """
    folder = os.environ.get(CACHE)
    if not folder:
        return _fetch_range(url, offset, size)
    name = hashlib.blake2b(f"{url}#{offset}:{size}".encode(), digest_size=16).hexdigest()
    cached = Path(folder, name[:2], name)
    if cached.is_file() and cached.stat().st_size == size:
        return cached.read_bytes()
    data = _fetch_range(url, offset, size)
    make_folder(cached.parent)
    usage = shutil.disk_usage(folder)
    if len(data) == size and usage.free - size > _FREE_SHARE * usage.total:
        with whole_file(cached, "wb") as file:
            file.write(data)
    return data


def read_file(url: str) -> bytes:
    """A whole remote file; UserError if it cannot be read."""
    try:
        if _is_http(url):
            return _request("GET", url).data
        return _file_system(url).cat_file(url)
    except RemoteError as error:
        raise UserError(f"{url}: {error}; check the address") from error
    except Exception as error:
        raise _store_error(url, error) from error


def file_sizes(urls: Sequence[str]) -> list[int | None]:
    """Sizes of remote files, with several requests at a time; None for a file that does not exist.

    Raises:
        UserError: a server does not answer, or refuses.
    """
    with ThreadPoolExecutor(_PARALLEL) as pool:
        return list(pool.map(_file_size, urls))


def _file_size(url: str) -> int | None:
    try:
        if _is_http(url):
            size = _request("HEAD", url).headers.get("Content-Length")
            if size is None:
                raise UserError(
                    f"{url}: the server states no Content-Length, and shards need a server that does"
                )
            return int(size)
        return int(_file_system(url).size(url))
    except FileNotFoundError:
        return None
    except RemoteError as error:
        raise UserError(f"{url}: {error}; check the address") from error
    except UserError:
        raise
    except Exception as error:
        raise _store_error(url, error) from error


def _fetch_range(url: str, offset: int, size: int) -> bytes:
    if not size:
        return b""
    if _is_http(url):
        response = _request("GET", url, {"Range": f"bytes={offset}-{offset + size - 1}"})
        if response.status != 206:
            raise RemoteError("the server ignores the Range header; serve shards from one that supports it")
        return response.data
    try:
        return _file_system(url).cat_file(url, start=offset, end=offset + size)
    except FileNotFoundError as error:
        raise RemoteError("no such file") from error
    except UserError:
        raise
    except Exception as error:  # each file system has its own errors
        raise RemoteError(f"cannot be read ({_phrase(error)})") from error


def _is_http(url: str) -> bool:
    return url.startswith(("http://", "https://"))


def _request(method: str, url: str, headers: dict[str, str] | None = None) -> Any:
    """The response of a server, with retries.

    Raises:
        FileNotFoundError: 404 or 410.
        RemoteError: no answer, or another error.
    """
    pool, errors = _http_pool(os.getpid())
    server = urlsplit(url).netloc
    tries = _TRIES
    options: dict[str, Any] = {}
    if server in _silent_servers:
        once = _import("urllib3").Retry(total=None, connect=0, read=0, other=0, raise_on_status=False)
        tries, options = 1, {"retries": once}
    try:
        response = pool.request(method, url, headers=headers, **options)
    except errors as error:
        _silent_servers.add(server)
        cause = getattr(error, "reason", None) or error  # of the last try
        count = counted(tries, "request")
        raise RemoteError(f"no answer to {count} ({_phrase(cause)})") from error
    _silent_servers.discard(server)
    if response.status in (404, 410):
        if method == "HEAD":
            raise FileNotFoundError(url)
        raise RemoteError("no such file on the server")
    if response.status >= 400:
        raise RemoteError(f"the server answers {response.status} {response.reason}")
    return response


@functools.cache
def _http_pool(process: int) -> tuple[Any, type[Exception]]:
    """urllib3's connections of a process, and the base of its errors."""
    urllib3 = _import("urllib3")
    retry = urllib3.Retry(
        total=_TRIES - 1,
        backoff_factor=0.2,  # waits 0, 0.4, 0.8, 1.6 seconds
        status_forcelist=(408, 429, 500, 502, 503, 504),
        raise_on_status=False,
    )
    timeout = urllib3.Timeout(connect=_CONNECT_SECONDS, read=_READ_SECONDS)
    logging.getLogger("urllib3").setLevel(logging.ERROR)  # it warns of every retry
    return urllib3.PoolManager(
        retries=retry, timeout=timeout, maxsize=_PARALLEL
    ), urllib3.exceptions.HTTPError


def _file_system(url: str) -> Any:
    scheme = url.partition("://")[0]
    if scheme not in _OBJECT_STORES:
        raise UserError(f"{url}: cannot read {scheme}://; use http://, https://, s3:// or gs://")
    for name in ("gcsfs", "s3fs", "aiobotocore", "botocore"):  # they log what they raise
        logging.getLogger(name).setLevel(logging.CRITICAL)
    # Otherwise gcsfs requests the kind of the bucket over gRPC before each read, and waits 60 seconds for
    # that answer if a firewall passes HTTPS only.
    os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
    _import(_OBJECT_STORES[scheme])
    if scheme == "gs":
        options: dict[str, Any] = {"requests_timeout": _READ_SECONDS}
    else:
        # s3fs tries 5 times itself. botocore's own tries, 60 seconds each, would multiply that.
        limits = {"connect_timeout": _CONNECT_SECONDS, "read_timeout": _READ_SECONDS}
        options = {"config_kwargs": {**limits, "retries": {"max_attempts": 0}}}
    return _import("fsspec").filesystem(scheme, **options)


def _import(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise UserError(
            f"remote shards need the package {name}: pip install 'videomaskfeat[shards]'"
        ) from error


def _store_error(url: str, error: Exception) -> UserError:
    if isinstance(error, UserError):
        return error
    if isinstance(error, FileNotFoundError):
        return UserError(f"{url}: no such file or bucket; check the address")
    if isinstance(error, PermissionError) or type(error).__name__ in ("NoCredentialsError", "HttpError"):
        scheme = url.partition("://")[0]
        variable = "AWS_ACCESS_KEY_ID" if scheme == "s3" else "GOOGLE_APPLICATION_CREDENTIALS"
        return UserError(
            f"{url}: no permission ({_phrase(error)}); set credentials ({variable}), or check the bucket"
        )
    return UserError(f"{url}: cannot be read ({_phrase(error)}); check the address and the network")


def _phrase(error: Exception) -> str:
    words = " ".join(str(error).split()) or type(error).__name__
    words = re.sub(
        r"^HTTPS?Connection(Pool)?\(.*?\): ", "", words
    )  # urllib3 names the server, as the address does
    return words if len(words) <= 200 else f"{words[:200]}..."
