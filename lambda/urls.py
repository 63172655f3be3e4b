"""https URLs of allowed hosts, fetched such that no caller reaches a network of ours through us (SSRF)."""

from __future__ import annotations

import http.client
import ipaddress
import re
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from typing import Final
from urllib.parse import SplitResult, quote, urljoin, urlsplit

from errors import Refusal, timed_out, too_large, unsupported

Resolve = Callable[[str], list[str]]
Connect = Callable[[str, float], socket.socket]

_HTTPS_PORT: Final = 443
_MAX_REDIRECTS: Final = 3
_REDIRECTS: Final = (301, 302, 303, 307, 308)
# A host's name as DNS has it. The resolver fails at some others, and reads a name with a NUL only as far as that.
_NAME: Final = re.compile(r"([a-z0-9_-]{1,63}\.){1,126}[a-z0-9-]{1,63}")
# What object stores say of files whose kind they were not told.
_UNTYPED: Final = ("application/octet-stream", "binary/octet-stream")
# Addresses that carry an IPv4 address of somebody's choice: NAT64 (RFC 6052, 8215), 6to4 (RFC 3056), Teredo (4380).
_TRANSLATED: Final = tuple(map(ipaddress.IPv6Network, ("64:ff9b::/96", "64:ff9b:1::/48", "2002::/16", "2001::/32")))


def resolve(host: str) -> list[str]:
    """All addresses of a host, as the system's resolver gives them."""
    found = socket.getaddrinfo(host, _HTTPS_PORT, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(sockaddr[0]) for *_, sockaddr in found))


def connect(address: str, timeout_s: float) -> socket.socket:
    """A TCP connection to this very address: no name is looked up a second time (DNS rebinding)."""
    return socket.create_connection((address, _HTTPS_PORT), timeout_s)


@cache
def trusted_tls() -> ssl.SSLContext:
    """TLS that checks certificate and host name; made at the first fetch, since reading the roots takes 20 ms."""
    return ssl.create_default_context()


def is_public(address: str) -> bool:
    """Whether an address lies on the public internet and stands for no other by mapping, translation or tunnel."""
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:
        return False
    if isinstance(ip, ipaddress.IPv6Address):
        if ip.ipv4_mapped:
            return is_public(str(ip.ipv4_mapped))
        if ip.scope_id or ip.is_site_local or any(ip in network for network in _TRANSLATED):
            return False
    return ip.is_global and not ip.is_multicast and not ip.is_reserved


@dataclass(frozen=True, kw_only=True)
class Fetcher:
    """Fetches photos from `allowed_hosts`: exact names, and `*.example.com` for all names below one."""

    allowed_hosts: frozenset[str]
    timeout_s: float
    resolve: Resolve = resolve
    connect: Connect = connect
    tls: Callable[[], ssl.SSLContext] = trusted_tls

    def fetch(self, url: str, *, max_bytes: int) -> bytes:
        """The photo behind `url`, redirects followed and checked one by one.

        Raises Refusal: 403 for what is not allowed, 413, 415, 422 where nothing is to be had, 504 when it takes
        longer than `timeout_s` in all.
        """
        deadline = time.monotonic() + self.timeout_s
        try:
            for _ in range(_MAX_REDIRECTS + 1):
                with self._response(self._checked(url), deadline) as response:
                    if response.status not in _REDIRECTS:
                        return _photo(response, max_bytes)
                    url = urljoin(url, response.headers.get("Location", ""))
        except (OSError, http.client.HTTPException) as error:
            if time.monotonic() >= deadline:
                raise timed_out("url_timeout", f"the URL took longer than {self.timeout_s:g} s") from error
            raise _unavailable(_reason(error)) from error
        except ValueError as error:  # Of urlsplit and urljoin, and of a path that is no text.
            raise _forbidden("the URL cannot be read; expected https://host/path") from error
        raise _unavailable(f"it leads through more than {_MAX_REDIRECTS} redirects")

    def _checked(self, url: str) -> SplitResult:
        """Raises Refusal (403), and ValueError for what is no URL."""
        if not self.allowed_hosts:
            raise _forbidden("this function fetches no URLs; send the photo itself")
        target = urlsplit(url)
        port = _HTTPS_PORT if target.port is None else target.port
        if target.scheme != "https" or port != _HTTPS_PORT or target.username is not None:
            raise _forbidden("only https URLs on port 443, without a user name, are fetched")
        if not self._is_allowed(target.hostname or ""):
            raise _forbidden(f"{(target.hostname or '')[:200]!r} is not among the hosts that photos are fetched from")
        return target

    def _is_allowed(self, host: str) -> bool:
        if not _NAME.fullmatch(host):
            return False
        parents = (host[dot + 1 :] for dot, letter in enumerate(host) if letter == ".")
        return host in self.allowed_hosts or any(f"*.{parent}" in self.allowed_hosts for parent in parents)

    @contextmanager
    def _response(self, target: SplitResult, deadline: float) -> Iterator[http.client.HTTPResponse]:
        host = target.hostname or ""
        with self._line(host, deadline) as line, _cut_off_at(deadline, line):
            tls = self.tls()
            connection = http.client.HTTPSConnection(host, context=tls)  # Else it reads the roots for one of its own.
            # A line that is cut must not look like a body's end, as some builds of Python have it with OpenSSL 3.
            tls.options &= ~getattr(ssl, "OP_IGNORE_UNEXPECTED_EOF", 0)
            connection.sock = tls.wrap_socket(line, server_hostname=host, suppress_ragged_eofs=False)
            with connection.sock:
                headers = {"Accept": "image/*", "Accept-Encoding": "identity", "User-Agent": "kennel-classify"}
                connection.request("GET", _path(target), headers=headers)
                with connection.getresponse() as response:
                    yield response

    def _line(self, host: str, deadline: float) -> socket.socket:
        """A connection to the first address that takes one, all of them being public."""
        failure = OSError(f"no address of {host!r} takes a connection")
        for address in self._public_addresses(host, deadline):
            try:
                return self.connect(address, max(0.1, deadline - time.monotonic()))
            except OSError as error:
                failure = error
        raise failure

    def _public_addresses(self, host: str, deadline: float) -> list[str]:
        # The resolver knows no time-out; one that is left behind ends by itself.
        pool = ThreadPoolExecutor(1)
        pending = pool.submit(self.resolve, host)
        pool.shutdown(wait=False)
        addresses = pending.result(max(0.1, deadline - time.monotonic()))
        if not addresses or not all(map(is_public, addresses)):
            raise _forbidden(f"{host!r} is not on the public internet")
        return addresses


def _path(target: SplitResult) -> str:
    query = f"?{target.query}" if target.query else ""
    return quote((target.path or "/") + query, safe="/?&=%:;,+~@!$'()*")


@contextmanager
def _cut_off_at(deadline: float, line: socket.socket) -> Iterator[None]:
    """End a connection at `deadline`, however slowly it drips: a socket's own time-out starts anew with each byte."""
    twin = line.dup()

    def cut() -> None:
        with suppress(OSError):  # Ended by itself meanwhile.
            twin.shutdown(socket.SHUT_RDWR)

    clock = threading.Timer(deadline - time.monotonic(), cut)
    clock.start()
    try:
        yield
    finally:
        clock.cancel()
        clock.join()
        twin.close()


def _photo(response: http.client.HTTPResponse, max_bytes: int) -> bytes:
    if response.status != 200:
        raise _unavailable(f"its host answered {response.status}")
    content_type = response.headers.get_content_type()
    if not content_type.startswith("image/") and content_type not in _UNTYPED:
        raise unsupported(f"the URL gives {content_type}, not a photo")
    if response.headers.get("Content-Encoding", "identity") != "identity":
        raise unsupported("the URL gives a compressed body, which was not asked for")
    data = b"" if (response.length or 0) > max_bytes else response.read(max_bytes + 1)
    if len(data) > max_bytes or (response.length or 0) > max_bytes:
        raise too_large(f"the photo behind the URL has more than {max_bytes:,} bytes")
    if response.length:
        raise http.client.IncompleteRead(data, response.length)
    return data


def _reason(error: Exception) -> str:
    """What went wrong, in words that tell nothing of our side of the network."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return "its host's certificate cannot be trusted"
    if isinstance(error, socket.gaierror):
        return "its host is not known"
    return "its host broke off, or gave no HTTP answer"


def _forbidden(message: str) -> Refusal:
    return Refusal(403, "url_not_allowed", message)


def _unavailable(reason: str) -> Refusal:
    return Refusal(422, "url_not_available", f"the URL gives no photo: {reason}")
