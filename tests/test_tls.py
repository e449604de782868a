"""Certificates and keys that cannot be served are told before anything else happens."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import trustme
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.asymmetric.types import CertificateIssuerPrivateKeyTypes
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
)
from cryptography.x509.oid import NameOID

from llamafast.config import ServerConfig
from llamafast.errors import ConfigError
from llamafast.tls import tls_options

Files = tuple[str, str]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With ``cert.pem`` and ``key.pem``, which belong together, ``ca.pem``, ``other.pem``, the key of another, and
    ``text.pem``."""
    folder = tmp_path_factory.mktemp("tls")
    authority = trustme.CA()
    authority.cert_pem.write_to_path(folder / "ca.pem")
    leaf, other = authority.issue_cert("localhost"), authority.issue_cert("localhost")
    leaf.cert_chain_pems[0].write_to_path(folder / "cert.pem")
    leaf.private_key_pem.write_to_path(folder / "key.pem")
    other.private_key_pem.write_to_path(folder / "other.pem")
    (folder / "text.pem").write_text("Bäume")
    return folder


@pytest.fixture
def certified(tmp_path: Path) -> Callable[..., Files]:
    """A function from a key, and how it is written, to the files of a certificate of its own and of the key."""

    def written(
        key: CertificateIssuerPrivateKeyTypes, form: PrivateFormat = PrivateFormat.PKCS8, encrypted: bool = False
    ) -> Files:
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
        now = datetime.now(UTC)
        builder = x509.CertificateBuilder(
            name, name, key.public_key(), 1, now - timedelta(days=1), now + timedelta(days=1)
        )
        algorithm = None if isinstance(key, ed25519.Ed25519PrivateKey) else hashes.SHA256()
        certificate, file = tmp_path / "cert.pem", tmp_path / "key.pem"
        certificate.write_bytes(builder.sign(key, algorithm).public_bytes(Encoding.PEM))
        file.write_bytes(
            key.private_bytes(Encoding.PEM, form, BestAvailableEncryption(b"secret") if encrypted else NoEncryption())
        )
        return str(certificate), str(file)

    return written


def options(certificate: str, key: str, **more: object) -> dict[str, object]:
    return tls_options(ServerConfig(ssl_certfile=certificate, ssl_keyfile=key, **more))  # type: ignore[arg-type]


def test_without_a_certificate_there_is_no_tls() -> None:
    assert tls_options(ServerConfig()) == {}


@pytest.mark.parametrize(
    ("fault", "told"),
    [
        ({"ssl_certfile": "none.pem"}, "server.ssl_certfile: {}/none.pem: no certificate in PEM: No such file"),
        ({"ssl_certfile": "."}, "server.ssl_certfile: {}: no certificate in PEM"),
        ({"ssl_certfile": "text.pem"}, "server.ssl_certfile: {}/text.pem: no certificate in PEM"),
        ({"ssl_certfile": "key.pem"}, "server.ssl_certfile: {}/key.pem: no certificate in PEM"),
        ({"ssl_certfile": "\0"}, "server.ssl_certfile: {}/\0: no certificate in PEM"),
        ({"ssl_keyfile": "none.pem"}, "server.ssl_keyfile: {}/none.pem: cannot be read: No such file"),
        ({"ssl_keyfile": "."}, "server.ssl_keyfile: {}: cannot be read: Is a directory"),
        ({"ssl_keyfile": "text.pem"}, "server.ssl_keyfile: {}/text.pem: no private key in PEM"),
        ({"ssl_keyfile": "cert.pem"}, "server.ssl_keyfile: {}/cert.pem: no private key in PEM"),
        ({"ssl_keyfile": "\0"}, "server.ssl_keyfile: {}/\0: cannot be read"),
        (
            {"ssl_keyfile": "other.pem"},
            "server.ssl_keyfile: {}/other.pem: cannot be used with server.ssl_certfile: key",
        ),
        ({"ssl_ca_certs": "none.pem"}, "server.ssl_ca_certs: {}/none.pem: no certificate in PEM: No such file"),
        ({"ssl_ca_certs": "text.pem"}, "server.ssl_ca_certs: {}/text.pem: no certificate in PEM"),
    ],
)
def test_files_that_are_not_what_they_should_be(folder: Path, fault: dict[str, str], told: str) -> None:
    files = {"ssl_certfile": "cert.pem", "ssl_keyfile": "key.pem", "ssl_ca_certs": "ca.pem"} | fault
    config = ServerConfig(**{key: f"{folder}/{name}" for key, name in files.items()}, ssl_cert_reqs=2)
    with pytest.raises(ConfigError) as caught:
        tls_options(config)
    assert str(caught.value).startswith(told.format(folder))


FORMS = pytest.mark.parametrize("form", [PrivateFormat.PKCS8, PrivateFormat.TraditionalOpenSSL])


@FORMS
def test_an_encrypted_key_needs_its_password(certified: Callable[..., Files], form: PrivateFormat) -> None:
    files = certified(ec.generate_private_key(ec.SECP256R1()), form, encrypted=True)
    for given, told in ((None, "password is not set"), ("wrong", "password does not open it")):
        with pytest.raises(ConfigError, match=rf"^server\.ssl_keyfile: .* is encrypted, .*{told}") as caught:
            options(*files, ssl_keyfile_password=given)
        assert "wrong" not in str(caught.value)
    key = options(*files, ssl_keyfile_password="secret")["ssl_key"]
    assert isinstance(key, Path)
    assert key.resolve().read_text().startswith("-----BEGIN PRIVATE KEY-----")
    assert not [name for name in Path(files[1]).parent.iterdir() if str(name) not in files]


def test_a_password_of_a_plain_key_is_a_mistake(folder: Path) -> None:
    with pytest.raises(ConfigError, match="is not encrypted"):
        options(f"{folder}/cert.pem", f"{folder}/key.pem", ssl_keyfile_password="secret")


def test_a_key_that_is_too_small(certified: Callable[..., Files]) -> None:
    with pytest.raises(ConfigError, match=r"^server\.ssl_keyfile: .*ee key too small"):
        options(*certified(rsa.generate_private_key(65537, 1024)))


def test_what_only_granian_refuses(certified: Callable[..., Files]) -> None:
    with pytest.raises(ConfigError, match=r"^server\.ssl_certfile: Granian cannot serve with it: .*private key"):
        options(*certified(ec.generate_private_key(ec.SECP521R1())))


@pytest.mark.parametrize(
    ("key", "form"),
    [
        (ec.generate_private_key(ec.SECP256R1()), PrivateFormat.TraditionalOpenSSL),
        (ec.generate_private_key(ec.SECP384R1()), PrivateFormat.PKCS8),
        (rsa.generate_private_key(65537, 2048), PrivateFormat.TraditionalOpenSSL),
        (ed25519.Ed25519PrivateKey.generate(), PrivateFormat.PKCS8),
    ],
    ids=["P-256", "P-384", "RSA", "Ed25519"],
)
def test_keys_as_openssl_writes_them(
    certified: Callable[..., Files], key: CertificateIssuerPrivateKeyTypes, form: PrivateFormat
) -> None:
    certificate, file = certified(key, form)
    found = options(certificate, file)
    assert (found["ssl_cert"], found["ssl_key"]) == (Path(certificate), Path(file))
    assert (found["ssl_protocol_min"], found["ssl_client_verify"], found["ssl_ca"]) == ("tls1.3", False, None)


def test_certificate_and_key_may_be_one_file(folder: Path, tmp_path: Path) -> None:
    both = tmp_path / "both.pem"
    both.write_bytes((folder / "key.pem").read_bytes() + (folder / "cert.pem").read_bytes())
    authorities = str(folder / "ca.pem")
    for required in (1, 2):
        found = options(str(both), str(both), ssl_ca_certs=authorities, ssl_cert_reqs=required)
        assert (found["ssl_ca"], found["ssl_client_verify"]) == (Path(authorities), required == 2)
