"""Ends a test that reaches beyond this machine, or listens where others can reach it."""

import sys

import psutil

LOCAL = ("localhost", "ip6-localhost", "::1", "")
# Those at which this machine is reached from outside: a test may see that nobody answers there.
OWN = frozenset(each.address for part in psutil.net_if_addrs().values() for each in part)


def is_local(host: object) -> bool:
    """Whether ``host`` is this machine and nothing else."""
    name = host.decode() if isinstance(host, bytes) else host
    return name is None or name in LOCAL or str(name).startswith("127.")


def refuse_network(event: str, arguments: tuple) -> None:
    """Audit hook; Unix sockets have no host and pass."""
    if event in ("socket.connect", "socket.bind", "socket.sendto"):
        address = arguments[1]
        is_inet = isinstance(address, tuple) and len(address) >= 2
        is_open = event == "socket.bind" and is_inet and address[0] == ""  # every interface
        is_own = event == "socket.connect" and is_inet and address[0] in OWN
        if is_inet and (is_open or not (is_local(address[0]) or is_own)):
            raise RuntimeError(f"{event} {address}: tests may use this machine's loopback only")
    elif event in ("socket.getaddrinfo", "socket.gethostbyname") and not (
        is_local(arguments[0]) or arguments[0] in OWN
    ):
        raise RuntimeError(f"{event} {arguments[0]}: tests may use this machine's loopback only")


sys.addaudithook(refuse_network)
