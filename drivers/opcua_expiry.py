"""When the certificates end that a connection rests on: our own, the user's, the server's, its issuers'.

Rule: ours are read as they lie there now; the server's are those with which it was trusted last, since its own need not lie
in any folder: one whose issuer is trusted comes with the connection only.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

from drivers import opcua_certificate as cert
from drivers import opcua_pki as pki
from drivers.opcua_settings import Connection, SecretRef
from edge_agent.contract import Expiry


def expiries(connection: Connection, server: Sequence[Expiry] | None) -> list[Expiry]:
    """Of this connection. server: what `opcua_trust.Verdict` said last; None: it was not met yet.

    Raises OSError or, in words, ValueError when our own or the user's cannot be read.
    """
    return [*_ours(connection), *_servers(connection, server)]


def _ours(connection: Connection) -> Iterator[Expiry]:
    if connection.user_certificate is not None:
        yield _in_secret(connection.user_certificate, "user_certificate", "user")
    if connection.certificate is not None:
        yield _in_secret(connection.certificate, "certificate", "own")
    elif connection.security != "none":
        yield _own(Path(connection.home)) if connection.home is not None else Expiry("", "own", 0)


def _servers(connection: Connection, server: Sequence[Expiry] | None) -> Sequence[Expiry]:
    if connection.security == "none":
        return ()
    return (Expiry("", "server", 0),) if server is None else server


def _in_secret(secret: SecretRef | str, key: str, whose: str) -> Expiry:
    """secret: its text, which the agent has put in the place of its name."""
    if isinstance(secret, SecretRef):
        raise ValueError(f"{key}: the secret {secret.secret!r} was not found")  # noqa: TRY004  # a file's fault
    return cert.expiry(cert.certificates_in(secret.encode(), Path(key))[0], whose)


def _own(folder: Path) -> Expiry:
    path = folder / pki.OWN / pki.OWN_CERTIFICATE
    try:
        return cert.expiry(cert.certificates_in(path.read_bytes(), path)[0], "own")
    except FileNotFoundError:  # it is made with the first connection
        return Expiry("", "own", 0)
