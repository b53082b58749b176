"""The certificates of those whom a download may come from: read for a download, and not before.

aiohttp reads the system's, twice, when it is imported: 2 MiB and a tenth of a second of every daemon's start, which
serves, and mostly fetches nothing.
"""

import ssl
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def none_read() -> Iterator[None]:
    """Import aiohttp within this for the first time: its own TLS contexts then trust nobody. Not thread-safe."""
    ssl.SSLContext.set_default_verify_paths = lambda self: None  # type: ignore[method-assign]
    try:
        yield
    finally:
        del ssl.SSLContext.set_default_verify_paths  # the built-in base class has the real one


def verifying() -> ssl.SSLContext:
    """A context that trusts whom the system trusts (or ``SSL_CERT_FILE``, ``SSL_CERT_DIR``). Blocks: reads files."""
    context = ssl.create_default_context()
    context.set_alpn_protocols(("http/1.1",))
    return context
