"""A TLS registry under ECR's own host name: what `docker push` needs to run unchanged, undone on exit."""

from __future__ import annotations

import datetime
import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import bcrypt
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from tests.support import wait_until

ACCOUNT, REGION = "123456789012", "eu-west-3"
HOST = f"{ACCOUNT}.dkr.ecr.{REGION}.amazonaws.com"
PASSWORD = f"{ACCOUNT}-auth-token"  # what moto's get-login-password always answers
HOSTS_FILE = Path("/etc/hosts")
CERTIFICATES = Path("/etc/docker/certs.d") / HOST


def missing() -> str | None:
    """Why this machine cannot run the registry, or nothing."""
    if os.geteuid() != 0:
        return "needs root: port 443, a line in /etc/hosts, a CA under /etc/docker/certs.d"
    if not shutil.which("docker-registry"):
        return "needs Debian's docker-registry"
    with socket.socket() as probe:
        return "port 443 of 127.0.0.1 is taken" if probe.connect_ex(("127.0.0.1", 443)) == 0 else None


@contextmanager
def ecr_registry(folder: Path) -> Iterator[str]:
    """Run it and yield its host name."""
    _write_certificate(folder)
    secret = bcrypt.hashpw(PASSWORD.encode(), bcrypt.gensalt(4)).decode().replace("$2b$", "$2y$")
    (folder / "htpasswd").write_text(f"AWS:{secret}\n")
    (folder / "config.yml").write_text(_configuration(folder))
    hosts = HOSTS_FILE.read_text()
    command = ["docker-registry", "serve", str(folder / "config.yml")]
    with (folder / "log").open("w") as log, subprocess.Popen(command, stdout=log, stderr=log) as registry:
        try:
            HOSTS_FILE.write_text(f"{hosts.rstrip()}\n127.0.0.1 {HOST}\n")
            CERTIFICATES.mkdir(parents=True, exist_ok=True)
            shutil.copy(folder / "cert.pem", CERTIFICATES / "ca.crt")
            wait_until(_listens, timeout_s=15, what=f"the registry; its log: {folder / 'log'}")
            yield HOST
        finally:
            HOSTS_FILE.write_text(hosts)
            shutil.rmtree(CERTIFICATES, ignore_errors=True)
            registry.terminate()


def _listens() -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", 443)) == 0


def _configuration(folder: Path) -> str:
    return f"""
version: 0.1
log: {{level: warn}}
storage: {{filesystem: {{rootdirectory: {folder / "storage"}}}}}
http:
  addr: 127.0.0.1:443
  tls: {{certificate: {folder / "cert.pem"}, key: {folder / "key.pem"}}}
auth: {{htpasswd: {{realm: ecr, path: {folder / "htpasswd"}}}}}
"""


def _write_certificate(folder: Path) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, HOST)])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(hours=12))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(HOST)]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    (folder / "cert.pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    (folder / "key.pem").write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
