"""What URLs of servers have in common: how they are taken apart, options, TLS."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import SplitResult, urlsplit

from celeriac.errors import ImproperlyConfigured

if TYPE_CHECKING:  # who uses no TLS does not pay for it
    from ssl import SSLContext

CONNECT_TIMEOUT = 5.0
REPLY_TIMEOUT = 10.0
"""Seconds after which a server that does not answer is given up."""
VERIFY = ("required", "optional", "none")


@dataclass(frozen=True, slots=True)
class Tls:
    """How to verify the server and who we are."""

    verify: str = "required"
    """The server's certificate is `required` to be good, `optional`, or not looked at (`none`)."""
    ca: str | None = None
    certificate: str | None = None
    key: str | None = None
    check_hostname: bool = True

    def context(self) -> SSLContext:
        """A new TLS context. Raises ImproperlyConfigured when a file can't be used."""
        import ssl

        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = self.check_hostname and self.verify == "required"
        context.verify_mode = ssl.VerifyMode[f"CERT_{self.verify.upper()}"]
        try:
            if self.ca:
                context.load_verify_locations(self.ca)
            elif self.verify != "none":
                context.load_default_certs()
            if self.certificate:
                context.load_cert_chain(self.certificate, self.key)
        except OSError as error:  # SSLError is one
            files = ", ".join(name for name in (self.ca, self.certificate, self.key) if name)
            raise ImproperlyConfigured(f"a TLS file ({files}) can't be used: {error}") from error
        return context


def split(url: str, server: str) -> tuple[SplitResult, int | None]:
    """The parts of a URL and its port. Raises ImproperlyConfigured, which names the kind of server and nothing of the
    URL: any part may hold a password."""
    try:
        parts = urlsplit(url)
        return parts, parts.port
    except ValueError as error:
        wrong_port = "ort" in str(error).lower()
        fault = "the port must be a number below 65536" if wrong_port else "its form is not that of a URL"
        raise ImproperlyConfigured(
            f"a {server} URL can't be read: {fault}; special characters of a password must be percent-encoded"
        ) from None


def seconds(options: Mapping[str, Any], name: str, default: float) -> float:
    """A time above 0. Raises ImproperlyConfigured."""
    value = options.get(name)
    if value in (None, "", "None"):
        return default
    try:
        found = float(str(value))
    except ValueError:
        found = 0.0
    if found <= 0:
        raise ImproperlyConfigured(f"{name} must be a number of seconds above 0, not {value!r}")
    return found


def is_on(value: Any) -> bool:
    """What is meant by an option from Python or from a URL."""
    return value.lower() in ("1", "true", "yes", "on") if isinstance(value, str) else bool(value)
