"""Certificates are not read at the daemon's start, and are when a download needs them."""

import asyncio
import json
import shutil
import ssl
import subprocess
import sys
from pathlib import Path

import pytest
from aiohttp import ClientConnectorCertificateError, ClientSession, TCPConnector, web

from lmd.library import tls


@pytest.fixture
def authority(tmp_path: Path) -> tuple[Path, Path]:
    """A certificate for localhost that vouches for itself, and its key."""
    certificate, key = tmp_path / "certificate.pem", tmp_path / "key.pem"
    if shutil.which("openssl") is None:
        pytest.skip("no openssl to make a certificate with")
    names = ("-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost")
    files = ("-keyout", key, "-out", certificate)
    command = ("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", *names, *files)
    subprocess.run(command, check=True, capture_output=True)
    return certificate, key


async def test_who_is_trusted_is_read_for_each_download(
    authority: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fetched(url: str) -> int:
        connector = TCPConnector(ssl=await asyncio.to_thread(tls.verifying))
        async with ClientSession(connector=connector) as session, session.get(url) as response:
            return response.status

    async def answer(_: web.Request) -> web.Response:
        return web.Response(text="here")

    app = web.Application()
    app.router.add_get("/", answer)
    runner = web.AppRunner(app)
    await runner.setup()
    try:
        of_server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        of_server.load_cert_chain(*authority)
        site = web.TCPSite(runner, "localhost", 0, ssl_context=of_server)
        await site.start()
        url = f"https://localhost:{runner.addresses[0][1]}/"
        with pytest.raises(ClientConnectorCertificateError):
            await fetched(url)
        monkeypatch.setenv("SSL_CERT_FILE", str(authority[0]))
        assert await fetched(url) == 200
    finally:
        await runner.cleanup()


def test_aiohttp_comes_without_certificates_and_contexts_after_it_with_them(authority: tuple[Path, Path]) -> None:
    script = """
import json, ssl
from lmd.library import tls
with tls.none_read():
    import aiohttp.connector
of_aiohttp = aiohttp.connector._make_ssl_context(True), aiohttp.connector._SSL_CONTEXT_VERIFIED
print(json.dumps([one.cert_store_stats()["x509_ca"] for one in (*of_aiohttp, tls.verifying())]))
"""
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={"SSL_CERT_FILE": str(authority[0]), "SSL_CERT_DIR": "/nonexistent"},
        check=True,
        capture_output=True,
    )
    assert json.loads(done.stdout) == [1, 0, 1]
