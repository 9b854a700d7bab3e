"""The address that a server of this stage is bound to."""

import socket

from router_data import InputError


def bind(host: str, port: int, remedy: str) -> socket.socket:
    """A socket of this address; it fails before anything slow is loaded.

    Args:
        host: the address.
        port: 0 for any that is free.
        remedy: what to do where the address can't be used, for the error.

    Raises:
        InputError: the address can't be used.
    """
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except (OSError, OverflowError) as error:
        listener.close()
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"port {port} of {host} can't be used ({reason}); {remedy}") from error
    return listener
