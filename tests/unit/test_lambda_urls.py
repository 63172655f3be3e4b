"""Fetching URLs without being led astray (SSRF): real TLS servers; names resolve, and lines lead, where a test says."""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import trustme

from errors import Refusal
from tests.support import encoded, picture
from urls import Fetcher, is_public

HOST = "images.example.com"
PUBLIC = "93.184.215.14"
PHOTO = encoded(picture(), "JPEG")

Serve = Callable[[BaseHTTPRequestHandler], None]


@dataclass
class World:
    """The internet of a test: names, the addresses that they have, and the one server that all lines lead to."""

    port: int
    ca: trustme.CA
    names: dict[str, list[list[str]]] = field(default_factory=lambda: {HOST: [[PUBLIC]]})
    resolved: list[str] = field(default_factory=list)
    dialled: list[str] = field(default_factory=list)

    def resolve(self, host: str) -> list[str]:
        """The next answer for a name; the last one stays."""
        self.resolved.append(host)
        if host not in self.names:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        answers = self.names[host]
        return answers.pop(0) if len(answers) > 1 else answers[0]

    def connect(self, address: str, timeout_s: float) -> socket.socket:
        self.dialled.append(address)
        return socket.create_connection(("127.0.0.1", self.port), timeout_s)

    def tls(self) -> ssl.SSLContext:
        context = ssl.create_default_context()
        context.options |= getattr(ssl, "OP_IGNORE_UNEXPECTED_EOF", 0)  # As Debian's Python 3.11 has it by default.
        self.ca.configure_trust(context)
        return context

    def fetch(
        self, url: str, *, hosts: tuple[str, ...] = (HOST,), max_bytes: int = 1_000_000, timeout_s: float = 5
    ) -> bytes:
        fetcher = Fetcher(
            allowed_hosts=frozenset(hosts),
            timeout_s=timeout_s,
            resolve=self.resolve,
            connect=self.connect,
            tls=self.tls,
        )
        return fetcher.fetch(url, max_bytes=max_bytes)

    def refusal(self, url: str, **options: object) -> Refusal:
        with pytest.raises(Refusal) as error:
            self.fetch(url, **options)  # type: ignore[arg-type]
        return error.value


@contextmanager
def world(serve: Serve, *, certified: str = HOST, trusted: bool = True) -> Iterator[World]:
    ca = trustme.CA()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            serve(self)

        def log_message(self, format: str, *args: object) -> None: ...

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, request: object, client_address: object) -> None:
            """Clients that break off are what these tests are about."""

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    ca.issue_cert(certified).configure_cert(context)
    server = Server(("127.0.0.1", 0), Handler)
    server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    try:
        yield World(server.server_port, ca if trusted else trustme.CA())
    finally:
        server.shutdown()
        server.server_close()


def photo(request: BaseHTTPRequestHandler) -> None:
    answer(request, 200, {"Content-Type": "image/jpeg"}, PHOTO)


def answer(request: BaseHTTPRequestHandler, status: int, headers: Mapping[str, str], body: bytes = b"") -> None:
    request.send_response(status)
    for name, value in {"Content-Length": str(len(body)), **headers}.items():
        request.send_header(name, value)
    request.end_headers()
    request.wfile.write(body)


def redirect(location: str, status: int = 302) -> Serve:
    return lambda request: answer(request, status, {"Location": location})


def test_a_photo_of_an_allowed_host_is_fetched_from_the_address_that_was_checked() -> None:
    with world(photo) as net:
        assert net.fetch(f"https://{HOST}/dogs/rex.jpg?size=large") == PHOTO

    assert (net.resolved, net.dialled) == ([HOST], [PUBLIC])


def test_paths_that_people_paste_are_encoded() -> None:
    paths: list[str] = []

    def serve(request: BaseHTTPRequestHandler) -> None:
        paths.append(request.path)
        photo(request)

    with world(serve) as net:
        net.fetch(f"https://{HOST}/été à la mer/%20rex.jpg#top")

    assert paths == ["/%C3%A9t%C3%A9%20%C3%A0%20la%20mer/%20rex.jpg"]


def test_by_default_nothing_is_fetched() -> None:
    with world(photo) as net:
        refusal = net.refusal(f"https://{HOST}/", hosts=())

    assert (refusal.status, net.resolved, net.dialled) == (403, [], [])


@pytest.mark.parametrize(
    "url",
    [
        "https://other.example.com/",
        "https://images.example.com.evil.example/",
        "https://evil.example/images.example.com",
        "https://images.example.com@evil.example/",
        "https://user:secret@images.example.com/",
        "https://evil.example\\@images.example.com/",
        "http://images.example.com/",
        "ftp://images.example.com/",
        "file:///etc/passwd",
        "gopher://images.example.com/",
        "//images.example.com/",
        "https://images.example.com:8443/",
        "https://images.example.com:22/",
        "https://images.example.com:0/",
        "https://images.example.com:99999/",
        "https://images.example.com./",
        "https://[::1/",
        "https:///rex.jpg",
        "https://",
        "",
        "169.254.169.254",
        "https://169.254.169.254/latest/meta-data/",
        "http://169.254.169.254/latest/meta-data/",
        "https://localhost/",
        "https://127.0.0.1/",
        "https://2130706433/",
        "https://0x7f000001/",
        "https://0177.0.0.1/",
        "https://127.1/",
        "https://0/",
        "https://[::1]/",
        "https://[::ffff:127.0.0.1]/",
        "https://[fd00:ec2::254]/",
        "https://①②⑦.0.0.1/",
    ],
)
def test_a9_84_urls_that_are_not_allowed_are_refused_before_anything_is_looked_up(url: str) -> None:
    with world(photo) as net:
        refusal = net.refusal(url)

    assert (refusal.status, refusal.code) == (403, "url_not_allowed")
    assert (net.resolved, net.dialled) == ([], [])


@pytest.mark.parametrize("name", ["a..b", "", "a" * 64, "a b", "internal\0", "\udcff", "été"])
def test_a9_84_what_no_host_can_be_called_is_refused_below_an_allowed_name_too(name: str) -> None:
    with world(photo) as net:
        refusal = net.refusal(f"https://{name}.example.com/", hosts=("*.example.com",))

    assert (refusal.status, refusal.code) == (403, "url_not_allowed")
    assert net.resolved == []


def test_a_host_without_end_is_neither_looked_at_nor_said_back_at_length() -> None:
    with world(photo) as net:
        assert len(net.refusal(f"https://{'a.' * 1_000_000}example.org/").message) < 500


def test_a_path_that_no_request_can_carry_is_refused() -> None:
    with world(photo) as net:
        assert net.refusal(f"https://{HOST}/half-a-pair-\ud83d.jpg").status == 403


@pytest.mark.parametrize(
    ("allowed", "host", "expected"),
    [
        ("*.example.com", "a.example.com", True),
        ("*.example.com", "a.b.example.com", True),
        ("*.example.com", "example.com", False),
        ("*.example.com", "notexample.com", False),
        ("example.com", "a.example.com", False),
        ("example.com", "EXAMPLE.com", True),
    ],
)
def test_hosts_are_allowed_by_name_or_below_a_name(allowed: str, host: str, expected: bool) -> None:
    with world(photo) as net:
        net.refusal(f"https://{host}/", hosts=(allowed,))  # No such host: but an allowed one is looked up.

    assert net.resolved == ([host.lower()] if expected else [])


@pytest.mark.parametrize(
    "address",
    [
        "169.254.169.254",
        "169.254.170.2",
        "127.0.0.1",
        "127.8.9.10",
        "0.0.0.0",  # noqa: S104 - an address to be refused
        "10.0.0.1",
        "172.16.0.1",
        "172.31.255.255",
        "192.168.1.1",
        "100.64.0.1",
        "192.0.0.170",
        "192.0.2.1",
        "198.18.0.1",
        "198.51.100.1",
        "203.0.113.1",
        "224.0.0.1",
        "239.255.255.250",
        "240.0.0.1",
        "255.255.255.255",
        "::",
        "::1",
        "::ffff:127.0.0.1",
        "::ffff:169.254.169.254",
        "::ffff:10.0.0.1",
        "64:ff9b::7f00:1",
        "64:ff9b::a9fe:a9fe",
        "64:ff9b:1::1",
        "2002:7f00:1::",
        "2002:a9fe:a9fe::1",
        "2001:0:7f00:1::",
        "2001:db8::1",
        "fc00::1",
        "fd00:ec2::254",
        "fe80::1",
        "fe80::1%eth0",
        "fec0::1",
        "ff02::1",
        "ff0e::1",
        "2606:4700::1%eth0",
        "not an address",
    ],
)
def test_a9_84_an_allowed_host_that_leads_into_a_network_of_ours_is_refused(address: str) -> None:
    with world(photo) as net:
        net.names[HOST] = [[address]]
        refusal = net.refusal(f"https://{HOST}/")

    assert (refusal.status, net.dialled) == (403, [])
    assert address not in refusal.message


@pytest.mark.parametrize("address", ["93.184.215.14", "8.8.8.8", "2606:4700::1111", "::ffff:8.8.8.8"])
def test_public_addresses_are_public(address: str) -> None:
    assert is_public(address)


def test_one_private_address_among_public_ones_is_enough_to_refuse() -> None:
    with world(photo) as net:
        net.names[HOST] = [[PUBLIC, "10.0.0.1"]]
        assert net.refusal(f"https://{HOST}/").status == 403

    assert net.dialled == []


def test_dns_rebinding_finds_no_second_lookup() -> None:
    with world(photo) as net:
        net.names[HOST] = [[PUBLIC], ["169.254.169.254"]]
        assert net.fetch(f"https://{HOST}/") == PHOTO

    assert (net.resolved, net.dialled) == ([HOST], [PUBLIC])


def test_dns_rebinding_between_redirects_is_checked_again() -> None:
    with world(redirect("/again")) as net:
        net.names[HOST] = [[PUBLIC], ["169.254.169.254"]]
        assert net.refusal(f"https://{HOST}/").status == 403

    assert (net.resolved, net.dialled) == ([HOST, HOST], [PUBLIC])


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize(
    "location",
    [
        "https://169.254.169.254/latest/meta-data/",
        "http://images.example.com/",
        "https://localhost/",
        "//evil.example/",
        "https://images.example.com:8443/",
        "file:///etc/passwd",
        "https://[::ffff:7f00:1]/",
        "https://[::1/",
    ],
)
def test_a9_84_a_redirect_is_checked_like_the_first_url(status: int, location: str) -> None:
    with world(redirect(location, status)) as net:
        assert net.refusal(f"https://{HOST}/").status == 403

    assert net.dialled == [PUBLIC]


def test_a_redirect_within_the_allowed_hosts_is_followed() -> None:
    def serve(request: BaseHTTPRequestHandler) -> None:
        (photo if request.path == "/new.jpg" else redirect("/new.jpg"))(request)

    with world(serve) as net:
        assert net.fetch(f"https://{HOST}/old.jpg") == PHOTO


def test_redirects_without_end_end() -> None:
    with world(redirect("/again")) as net:
        refusal = net.refusal(f"https://{HOST}/")

    assert (refusal.status, len(net.dialled)) == (422, 4)


def test_a_certificate_of_another_host_or_of_nobody_is_refused() -> None:
    with world(photo, certified="other.example.com") as net:
        assert "certificate" in net.refusal(f"https://{HOST}/").message
    with world(photo, trusted=False) as net:
        refusal = net.refusal(f"https://{HOST}/")

    assert (refusal.status, refusal.code) == (422, "url_not_available")


def test_the_second_address_is_tried_where_the_first_takes_no_connection() -> None:
    with world(photo) as net:
        net.names[HOST] = [["8.8.8.8", PUBLIC]]
        connect = net.connect

        def failing(address: str, timeout_s: float) -> socket.socket:
            line = connect(address, timeout_s)
            if address == "8.8.8.8":
                line.close()
                raise ConnectionRefusedError
            return line

        net.connect = failing  # type: ignore[method-assign]
        assert net.fetch(f"https://{HOST}/") == PHOTO

    assert net.dialled == ["8.8.8.8", PUBLIC]


@pytest.mark.parametrize("status", [204, 206, 304, 400, 401, 404, 500])
def test_a_host_that_has_no_photo_is_told_as_such(status: int) -> None:
    with world(lambda request: answer(request, status, {"Content-Type": "image/jpeg"})) as net:
        refusal = net.refusal(f"https://{HOST}/")

    assert (refusal.status, refusal.code) == (422, "url_not_available")
    assert str(status) in refusal.message


def test_an_unknown_host_is_told_as_such() -> None:
    with world(photo) as net:
        del net.names[HOST]
        assert net.refusal(f"https://{HOST}/").message.endswith("its host is not known")


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Content-Type": "image/png"}, 200),
        ({"Content-Type": "binary/octet-stream"}, 200),
        ({"Content-Type": "text/html; charset=utf-8"}, 415),
        ({"Content-Type": "application/json"}, 415),
        ({"Content-Type": "image/jpeg", "Content-Encoding": "gzip"}, 415),
        ({}, 415),
    ],
)
def test_only_photos_are_taken(headers: Mapping[str, str], status: int) -> None:
    with world(lambda request: answer(request, 200, headers, PHOTO)) as net:
        if status == 200:
            assert net.fetch(f"https://{HOST}/") == PHOTO
        else:
            assert net.refusal(f"https://{HOST}/").status == status


def test_a_photo_over_the_limit_is_refused_by_its_announced_size() -> None:
    with world(photo) as net:
        refusal = net.refusal(f"https://{HOST}/", max_bytes=len(PHOTO) - 1)
        assert net.fetch(f"https://{HOST}/", max_bytes=len(PHOTO)) == PHOTO

    assert (refusal.status, f"{len(PHOTO) - 1:,}" in refusal.message) == (413, True)


@pytest.mark.parametrize("chunked", [True, False])
def test_a_body_without_end_is_cut_at_the_limit(chunked: bool) -> None:
    def serve(request: BaseHTTPRequestHandler) -> None:
        request.send_response(200)
        request.send_header("Content-Type", "image/jpeg")
        request.send_header(*(("Transfer-Encoding", "chunked") if chunked else ("Connection", "close")))
        request.end_headers()
        while True:
            request.wfile.write(b"1000\r\n" + bytes(0x1000) + b"\r\n" if chunked else bytes(0x1000))

    with world(serve) as net:
        assert net.refusal(f"https://{HOST}/", max_bytes=100_000).status == 413


def test_a_body_that_ends_early_is_no_photo() -> None:
    def serve(request: BaseHTTPRequestHandler) -> None:
        answer(request, 200, {"Content-Type": "image/jpeg", "Content-Length": str(len(PHOTO) + 1)}, PHOTO)
        request.close_connection = True

    with world(serve) as net:
        assert net.refusal(f"https://{HOST}/").status == 422


@pytest.mark.parametrize("stage", ["handshake", "status", "headers", "body"])
def test_a_host_that_drips_is_cut_off_in_time_wherever_it_drips(stage: str) -> None:
    over = threading.Event()

    def drip(request: BaseHTTPRequestHandler) -> None:
        beginning = {
            "status": b"",
            "headers": b"HTTP/1.1 200 OK\r\nX-A: ",
            "body": b"HTTP/1.1 200 OK\r\nContent-Type: image/jpeg\r\n\r\n",
        }
        request.wfile.write(beginning[stage])
        while not over.wait(0.1):
            request.wfile.write(b"H" if stage == "status" else b"x")

    with world(drip) as net, _silent_port() as silent:
        if stage == "handshake":
            net.port = silent
        refusal = net.refusal(f"https://{HOST}/", timeout_s=0.5)
        over.set()

    assert (refusal.status, refusal.code) == (504, "url_timeout")


def test_a_name_server_that_hangs_is_not_waited_for() -> None:
    over = threading.Event()

    def hang(host: str) -> list[str]:
        over.wait(20)
        return [PUBLIC]

    with world(photo) as net:
        net.resolve = hang  # type: ignore[method-assign]
        refusal = net.refusal(f"https://{HOST}/", timeout_s=0.3)
        over.set()

    assert (refusal.status, net.dialled) == (504, [])


@contextmanager
def _silent_port() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]
