"""Who may ask: by the name in `Host`, by the key, and from which web pages."""

import hmac
from collections.abc import Collection
from dataclasses import dataclass, field

from inference.endpoint.apis import ApiError, Headers
from router_data import is_loopback

LOOPBACK_NAMES = frozenset(("localhost", "127.0.0.1", "::1"))
PREFLIGHT_SECONDS = b"7200"  # for which a browser remembers that it may ask


@dataclass(frozen=True)
class Access:
    """The rules.

    Attributes:
        api_key: the key that clients must send; None asks for none.
        allowed_hosts: names that `Host` may have; None allows all. While the endpoint is bound to a loopback address
            only loopback names are allowed, and those a flag names: a web page whose own name was made to point here
            (DNS rebinding) could read answers otherwise.
        allowed_origins: the web pages whose scripts may ask, such as http://localhost:5173.
    """

    api_key: str | None = field(default=None, repr=False)
    allowed_hosts: frozenset[str] | None = None
    allowed_origins: frozenset[str] = frozenset()

    def check_host(self, raw_headers: Headers) -> None:
        """Raises ApiError where `Host` has a name that is not allowed."""
        if self.allowed_hosts is None:
            return
        for name, value in raw_headers:
            if name == b"host" and host_name(value) not in self.allowed_hosts:
                text = f"this endpoint does not answer for the host {value.decode('latin-1')[:80]!r}; name it with "
                raise ApiError(421, "unknown_host", f"{text}--allowed_hosts where it is yours")

    def check_key(self, headers: dict[bytes, bytes]) -> None:
        """Raises ApiError where a key is needed and no header holds it."""
        if self.api_key is None:
            return
        scheme, _, bearer = headers.get(b"authorization", b"").strip().partition(b" ")
        tokens = [headers.get(b"x-api-key", b""), headers.get(b"api-key", b"")]
        tokens.append(bearer.strip() if scheme.lower() == b"bearer" else b"")
        # every one is compared, so that the time says nothing
        if not any([hmac.compare_digest(token, self.api_key.encode()) for token in tokens]):
            wanted = "`Authorization: Bearer <ROUTER_API_KEY>` or `x-api-key: <ROUTER_API_KEY>`"
            raise ApiError(401, "invalid_api_key", f"wrong or missing API key: send {wanted}")

    def allows_origin(self, headers: dict[bytes, bytes]) -> bool:
        """Whether a script of a web page asks that may ask."""
        origin = headers.get(b"origin")
        return origin is not None and origin.decode("latin-1") in self.allowed_origins

    def origin_headers(self, headers: dict[bytes, bytes]) -> Headers:
        """What lets the browser hand an answer to an allowed page's script."""
        return [
            (b"access-control-allow-origin", headers[b"origin"]),
            (b"access-control-expose-headers", b"*, x-request-id, request-id, retry-after"),
            (b"vary", b"Origin"),
        ]

    def preflight_headers(self, headers: dict[bytes, bytes]) -> Headers:
        """What a browser that asks first is told beside `origin_headers`."""
        allowed = [
            (b"access-control-allow-methods", b"GET, POST, DELETE"),
            (b"access-control-allow-headers", headers.get(b"access-control-request-headers", b"*")),
            (b"access-control-max-age", PREFLIGHT_SECONDS),
        ]
        if b"access-control-request-private-network" in headers:
            allowed.append((b"access-control-allow-private-network", b"true"))
        return allowed


def host_name(host: bytes) -> str:
    """The name in a `Host` header, without its port."""
    text = host.decode("latin-1").strip().lower()
    if text.startswith("["):
        return text[1:].partition("]")[0]
    return text.partition(":")[0].rstrip(".")


def hosts_for(bound_host: str, allowed_hosts: Collection[str]) -> frozenset[str] | None:
    """The names that `Host` may have while bound to this address; None: any.

    Args:
        bound_host: the address that the endpoint is bound to.
        allowed_hosts: names that a flag gives.
    """
    named = frozenset(host_name(name.encode("latin-1", "replace")) for name in allowed_hosts)
    if is_loopback(bound_host):
        return named | LOOPBACK_NAMES | {bound_host}
    return named or None
