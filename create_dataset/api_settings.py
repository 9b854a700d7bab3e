"""How the labelling endpoint is reached: model, key, address and proxy, from the environment or .env.

What can't work is refused in one line before anything slow. A key is never shown.
"""

import os
import re
import unicodedata
import warnings
from typing import Any
from urllib.parse import SplitResult, urlsplit, urlunsplit

from router_data import InputError, is_loopback, printable

DEFAULT_MODEL = "gpt-6-luna"
OPENAI_ADDRESS = "https://api.openai.com/v1"
ROUTES = re.compile(r"/(?:chat/completions|completions|responses|embeddings|models)/*$")  # what the client adds itself
PROXY_VARIABLES = ("ALL_PROXY", "HTTPS_PROXY", "HTTP_PROXY")


def model_name(flag: str | None) -> str:
    """The model: the flag, else OPENAI_MODEL, else the default."""
    return (flag or os.environ.get("OPENAI_MODEL") or DEFAULT_MODEL).strip()


def api_key() -> str:
    """OPENAI_API_KEY without white space around it.

    Raises:
        InputError: there is none, or it holds a character that no key has.
    """
    key = os.environ.get("OPENAI_API_KEY", "").strip()
    if not key:
        raise InputError(
            "no OPENAI_API_KEY: copy .env.example to .env and put your key there (for a local endpoint, any word "
            "will do, and its address as OPENAI_BASE_URL)"
        )
    _refuse_stray_characters("OPENAI_API_KEY", key)
    return key


def base_address() -> str:
    """OPENAI_BASE_URL, else OpenAI's address; without a slash at its end and without the route of a request.

    Raises:
        InputError: it is no address of a server.
    """
    address = os.environ.get("OPENAI_BASE_URL", "").strip()
    if not address:
        return OPENAI_ADDRESS
    _refuse_stray_characters("OPENAI_BASE_URL", address)
    if "://" not in address:
        raise InputError(f"OPENAI_BASE_URL {address} has no http:// or https:// before it; write http://{address}")
    parts = _split(address)
    return urlunsplit(parts._replace(path=ROUTES.sub("", parts.path).rstrip("/"), fragment=""))


def _split(address: str) -> SplitResult:
    try:
        parts = urlsplit(address)
        port_is_valid = parts.port is None or parts.port > 0
    except ValueError:
        port_is_valid = False
    if not port_is_valid or parts.scheme.lower() not in ("http", "https") or not parts.hostname:
        raise InputError("OPENAI_BASE_URL is not an address such as http://127.0.0.1:8000/v1; mend it in .env")
    return parts


def _refuse_stray_characters(name: str, value: str) -> None:
    """Refuse what typing and pasting add: quotation marks, spaces, line breaks, invisible characters."""
    for character in value:
        if not "!" <= character <= "~" or character in "\"'`":
            what = "line break" if character in "\r\n" else unicodedata.name(character, "control character").lower()
            raise InputError(
                f"{name} holds a {what}, which cannot be right; in .env write {name}=, then only the value"
            )


def printable_address(address: str) -> str:
    """The address without the name and password that it may hold."""
    parts = urlsplit(address)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))


def without_key(text: str) -> str:
    """The text on one line, without the key, and without what could steer a terminal."""
    key = os.environ.get("OPENAI_API_KEY", "").strip()
    text = printable(" ".join(text.split()))
    return text.replace(key, "***") if len(key) > 7 else text  # a word such as "x" for a local server is no secret


def is_this_machine(address: str) -> bool:
    """Whether an address is one of this machine, which no proxy reaches."""
    host = (urlsplit(address).hostname or "").rstrip(".")
    return is_loopback(host) or host.endswith(".localhost") or host in ("0.0.0.0", "::")


def proxy_variable(prefix: str = "") -> str | None:
    """The first variable that names a proxy, whose address begins so."""
    names = [name for variable in PROXY_VARIABLES for name in (variable, variable.lower())]
    return next((name for name in names if (proxy := os.environ.get(name)) and proxy.startswith(prefix)), None)


def make_client(timeout: float, max_retries: int, is_async: bool) -> Any:
    """A client of the `openai` package for the endpoint; a server on this machine is asked past any proxy.

    Args:
        timeout: seconds for one whole request.

    Raises:
        InputError: the key, the address or a proxy can't be used.
    """
    import openai

    address, key = base_address(), api_key()
    if urlsplit(address).scheme == "http" and not is_this_machine(address):
        warnings.warn(
            "OPENAI_BASE_URL is http on another machine: the key and the prompts go there in clear", stacklevel=2
        )
    client_type: Any = openai.AsyncOpenAI if is_async else openai.OpenAI
    http_type: Any = openai.DefaultAsyncHttpxClient if is_async else openai.DefaultHttpxClient
    seconds = openai.Timeout(timeout, connect=min(timeout, 10.0))
    try:
        http_client = http_type(trust_env=not is_this_machine(address), base_url=address, timeout=seconds)
        return client_type(
            api_key=key, base_url=address, max_retries=max_retries, timeout=seconds, http_client=http_client
        )
    except ImportError as error:  # httpx wants one more package for SOCKS
        raise InputError(
            f"{proxy_variable('socks')} names a SOCKS proxy, which needs a package: python3 -m pip install socksio; or "
            "unset it"
        ) from error
    except (OSError, ValueError) as error:
        names = ", ".join(name for name in (proxy_variable(), "SSL_CERT_FILE") if name and name in os.environ)
        raise InputError(f"cannot set up connections ({without_key(str(error))}); check {names}") from error
