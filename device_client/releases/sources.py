"""Where releases come from: a folder, or a host that is reached by HTTPS and nothing else.

What is read here is not trusted. Who reads bounds the length, a host that is slow on purpose is left, and no
redirect leads out of HTTPS.
"""

from __future__ import annotations

import queue
import ssl
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar, final
from urllib.parse import urljoin, urlsplit
from urllib.request import getproxies, proxy_bypass

import urllib3

from umbel import __version__
from umbel.shared.checks import shown
from umbel.shared.errors import ReleaseError

_CHUNK_BYTES = 1 << 18
_REDIRECTS = (301, 302, 303, 307, 308)
_MOST_REDIRECTS = 5
_ABSENT = (403, 404, 410)
_UNSATISFIABLE = 416
_INCOMPLETE = "The channel is incomplete: tell its publisher. What this device has goes on working."
_Found = TypeVar("_Found")

Begun = tuple[int, Iterator[bytes]]
"""At which byte of a file it begins, and what comes from there on."""


@final
class AbsentError(ReleaseError):
    """There is no such file."""


@final
class UnreachableError(ReleaseError):
    """A host does not answer, or no longer; trying again may help."""


@final
@dataclass(frozen=True, slots=True)
class Patience:
    """How long a host is waited for.

    Attributes:
        gap_s: Between two pieces of an answer, and for a connection.
        head_s: Until an answer begins.
        window_s: In each such span,
        window_bytes: so many bytes must come.
    """

    gap_s: float = 30.0
    head_s: float = 60.0
    window_s: float = 60.0
    window_bytes: int = 16_384


class AbstractSource(ABC):
    """Files by name, such as "metadata/timestamp.json"."""

    @abstractmethod
    def open(self, name: str, start: int = 0) -> Begun:
        """Begins to read a file.

        Args:
            name: Its name.
            start: How many of its bytes are known; where they cannot be left out it begins at 0.

        Raises:
            AbsentError: There is none.
            ReleaseError: It must not be read.
            UnreachableError: Nothing answers; also while it is read.
        """

    def read(self, name: str, most: int) -> bytes:
        """Reads a whole file of at most so many bytes.

        Raises:
            ReleaseError: It is longer; or see `open`.
        """
        data = bytearray()
        for chunk in self.open(name)[1]:
            data += chunk
            if len(data) > most:
                raise ReleaseError(f"{shown(name)} is longer than it may be", [f"more than {most:,} bytes"])
        return bytes(data)


@final
class FolderSource(AbstractSource):
    """A folder."""

    def __init__(self, folder: Path):
        self.folder = folder

    def open(self, name: str, start: int = 0) -> Begun:
        """Begins to read a file of the folder."""
        path = self.folder / name
        if not path.is_file():
            raise AbsentError(f"there is no {path}", hint=_INCOMPLETE)
        return start, _pieces(path, start)


@final
class WebSource(AbstractSource):
    """A host of static files by HTTPS; certificates are checked, `SSL_CERT_FILE` names others to trust."""

    def __init__(self, url: str, patience: Patience | None = None):
        """Opens no connection yet.

        Args:
            url: Where the channel lies, such as "https://example.org/channel".
            patience: How long the host is waited for.

        Raises:
            ReleaseError: It is no such address.
        """
        _check_url(url)
        if urlsplit(url).query or urlsplit(url).fragment:
            raise ReleaseError("the address of a channel is that of a folder", [f"found {shown(url)}"])
        self.url = url.rstrip("/") + "/"
        self._patience = patience or Patience()
        self._pools: dict[str, urllib3.PoolManager] = {}

    def open(self, name: str, start: int = 0) -> Begun:
        """Begins to read a file of the host."""
        response = self._asked(urljoin(self.url, name), start)
        if response.status == 200:
            return 0, self._chunks(response)
        if response.status == 206 and _begins_at(response.headers.get("Content-Range", ""), start):
            return start, self._chunks(response)
        response.close()
        if start and response.status in (206, _UNSATISFIABLE):
            return self.open(name)
        if response.status in _ABSENT:
            raise AbsentError(f"there is no {shown(name)} at {self.url}", hint=_INCOMPLETE)
        raise _unreachable(self.url, f"it answers with {response.status}")

    def _asked(self, url: str, start: int) -> urllib3.BaseHTTPResponse:
        """Asks for a file, and follows redirects that stay in HTTPS."""
        headers = {"User-Agent": f"umbel/{__version__}", "Accept-Encoding": "identity"}
        headers |= {"Range": f"bytes={start}-"} if start else {}
        for _ in range(_MOST_REDIRECTS + 1):
            response = self._answer(url, headers)
            target = response.headers.get("Location")
            if response.status not in _REDIRECTS or target is None:
                return response
            response.close()
            url = _led_to(url, target)
            _check_url(url)
        raise _unreachable(self.url, f"it redirects more than {_MOST_REDIRECTS} times")

    def _answer(self, url: str, headers: Mapping[str, str]) -> urllib3.BaseHTTPResponse:
        timeout = urllib3.Timeout(self._patience.gap_s)

        def ask() -> urllib3.BaseHTTPResponse:
            return self._pool(url).request(
                "GET",
                url,
                headers=headers,
                timeout=timeout,
                retries=False,
                redirect=False,
                preload_content=False,
            )

        try:
            return _within(self._patience.head_s, ask)
        except TimeoutError:
            raise _unreachable(
                self.url, f"its answer did not begin within {self._patience.head_s:g} s"
            ) from None
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise _unreachable(self.url, _reason(error)) from None

    def _pool(self, url: str) -> urllib3.PoolManager:
        host = urlsplit(url).hostname or ""
        proxy = "" if proxy_bypass(host) else getproxies().get("https", "")
        if proxy not in self._pools:
            secure = ssl.create_default_context()
            self._pools[proxy] = (
                urllib3.ProxyManager(proxy, ssl_context=secure)
                if proxy
                else urllib3.PoolManager(ssl_context=secure)
            )
        return self._pools[proxy]

    def _chunks(self, response: urllib3.BaseHTTPResponse) -> Iterator[bytes]:
        """Yields what comes, as long as enough comes in time."""
        since, received = time.monotonic(), 0
        try:
            while chunk := response.read1(_CHUNK_BYTES, decode_content=False):
                received += len(chunk)
                if time.monotonic() - since > self._patience.window_s:
                    if received < self._patience.window_bytes:
                        raise _unreachable(self.url, f"only {received:,} bytes came in a while")
                    since, received = time.monotonic(), 0
                yield chunk
            response.release_conn()
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise _unreachable(self.url, _reason(error)) from None
        finally:
            response.close()


def source_of(place: str) -> AbstractSource:
    """Returns the source that an address or a folder names.

    Raises:
        ReleaseError: It is an address that is not HTTPS, or that looks like one and is none.
    """
    return WebSource(place) if "://" in place else FolderSource(Path(place))


def _pieces(path: Path, start: int) -> Iterator[bytes]:
    with path.open("rb") as stream:
        stream.seek(start)
        while chunk := stream.read(_CHUNK_BYTES):
            yield chunk


def _led_to(url: str, target: str) -> str:
    """Returns where a redirect leads."""
    try:
        return urljoin(url, target)
    except ValueError:
        raise _unreachable(url, f"it redirects to {shown(target)}, which is no address") from None


def _check_url(url: str) -> None:
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError as error:
        raise ReleaseError(
            f"{shown(url)} is no address",
            [str(error)],
            "Give one such as https://example.org/channel, or a folder.",
        ) from None
    if parts.scheme != "https" or not parts.hostname:
        raise ReleaseError(
            "releases are fetched by HTTPS alone",
            [f"found {shown(url)}"],
            "Give an address such as https://example.org/channel, or a folder.",
        )


def _begins_at(content_range: str, start: int) -> bool:
    return content_range.startswith(f"bytes {start}-")


def _within(seconds: float, call: Callable[[], _Found]) -> _Found:
    """Returns what a call gives within a time, or leaves it alone: a host may send its head byte by byte."""
    answers: queue.SimpleQueue[tuple[_Found | None, BaseException | None]] = queue.SimpleQueue()

    def work() -> None:
        try:
            answers.put((call(), None))
        except BaseException as error:
            answers.put((None, error))

    threading.Thread(target=work, daemon=True).start()
    try:
        found, error = answers.get(timeout=seconds)
    except queue.Empty:
        raise TimeoutError from None
    if error is not None:
        raise error
    assert found is not None
    return found


def _unreachable(url: str, why: str) -> UnreachableError:
    return UnreachableError(
        f"{url} cannot be read", [why], "What this device has goes on working. Try again later."
    )


def _reason(error: BaseException) -> str:
    """Returns what lies under an error of urllib3's, in words where there are some, else by its kind."""
    inner = error
    while isinstance(own := getattr(inner, "reason", None) or next(iter(inner.args), None), Exception):
        inner = own
    if isinstance(inner, ssl.SSLCertVerificationError):
        return f"nobody vouches for its certificate: {inner.verify_message}"
    if isinstance(inner, urllib3.exceptions.NameResolutionError):
        return "no host of that name is found, or there is no network"
    if isinstance(inner, urllib3.exceptions.NewConnectionError):
        cause = inner.__cause__
        return ((isinstance(cause, OSError) and cause.strerror) or "no connection").lower()
    return type(inner).__name__
