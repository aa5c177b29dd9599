"""Sources: paths and URIs, bounded, given up in time, and never shown with their credentials."""

from __future__ import annotations

import gc
import hashlib
import io
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from fsspec.implementations.memory import MemoryFileSystem
from hypothesis import given
from hypothesis import strategies as st
from sources import Web

from host.fetch import Patience, Source, copy, fetch, parse_source, reason, without_secrets
from host.protocol.errors import ConfigError, HostError

ROOT = Path(__file__).parents[2]
CONTENT = bytes(range(256)) * 8192
LIMIT = 1 << 30


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Keep this machine's proxies and credentials out."""
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("NETRC", raising=False)


@pytest.fixture(scope="module")
def web() -> Iterator[Web]:
    """Give a web server."""
    with Web(CONTENT) as serving:
        yield serving
    gc.collect()


def fetched(text: str, limit_bytes: int = LIMIT, patience: Patience | None = None) -> bytes:
    target = io.BytesIO()
    sha256 = fetch(parse_source(text), target, limit_bytes, lambda *_: None, patience or Patience())
    assert sha256 == hashlib.sha256(target.getvalue()).hexdigest()
    return target.getvalue()


def failed(text: str, kind: type[Exception] = HostError, patience: Patience | None = None) -> str:
    with pytest.raises(kind) as caught:
        fetched(text, patience=patience)
    return str(caught.value)


# -- what a source is -------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("text", "scheme", "shown"),
    [
        ("a.tar", "", "a.tar"),
        ("/a/b.tar", "", "/a/b.tar"),
        ("s3:/a", "", "s3:/a"),
        ("file:///a%20b", "", "/a b"),
        ("file://localhost/a", "", "/a"),
        ("http://h/a", "http", "http://h/a"),
        ("HTTPS://h:8443/a/b?X-Amz-Signature=abc#d", "https", "https://h:8443/a/b?..."),
        ("https://me:secret@h/a", "https", "https://h/a"),
        ("https://token@h/a", "https", "https://h/a"),
        ("http://[::1]:80/a", "http", "http://[::1]:80/a"),
        ("s3://bucket/a/b.tar", "s3", "s3://bucket/a/b.tar"),
        ("s3://key:secret@bucket/a", "s3", "s3://bucket/a"),
    ],
)
def test_a_source_is_shown_without_credentials(text: str, scheme: str, shown: str) -> None:
    source = parse_source(text)
    assert (source.scheme, source.shown) == (scheme, shown)


@pytest.mark.parametrize(
    "text",
    [
        "ftp://me:secret@h/a", "memory://a", "simplecache::s3://secret/b", "zip://a::http://secret/b", "file://h/secret",
        "http://", "http://h", "http://h/", "s3://secret", "s3://b/", "http://me:secret@h:x/a", "http://me:secret@[h/a",
        "http://h/a\nb",
    ],
)  # fmt: skip
def test_what_is_no_source_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="expected") as caught:
        parse_source(text)
    assert "secret" not in str(caught.value) or text.startswith("s3://secret")


@given(st.text(), st.text(min_size=1), st.text())
def test_any_text_is_a_source_or_refused(scheme: str, rest: str, path: str) -> None:
    try:
        assert parse_source(f"{scheme}://{rest}/{path}").shown
    except ConfigError:
        pass


@given(
    st.from_regex(r"[A-Za-z0-9]{8,20}", fullmatch=True),
    st.from_regex(r"[A-Za-z0-9]{8,20}", fullmatch=True),
    st.booleans(),
)
def test_credentials_are_in_no_message(password: str, signature: str, quoted: bool) -> None:
    said = "".join(f"%{ord(char):02X}" for char in password) if quoted else password
    source = parse_source(f"http://me:{said}@h/a?X-Amz-Signature={signature}&b=1")
    for error in (OSError(f"no {source.text}"), FileNotFoundError(source.text), ValueError(f"{password} {signature}")):
        message = reason(error, source)
        assert password not in message
        assert signature not in message
    assert without_secrets("nothing to hide", source) == "nothing to hide"


# -- bounds -----------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("size", "limit"), [(0, 0), (0, 1), (1, 1), (5, 5), (5, 6), (1 << 20, 1 << 20)])
def test_what_is_within_the_limit_is_copied(size: int, limit: int) -> None:
    filesystem = MemoryFileSystem()
    filesystem.pipe("/a", bytes(size))
    target, seen = io.BytesIO(), []
    with filesystem.open("/a", "rb") as reader:
        received = copy(reader, "a", target, None, limit, lambda *progress: seen.append(progress))
    assert received == (size, hashlib.sha256(bytes(size)).hexdigest())
    assert target.getvalue() == bytes(size)
    assert (seen[0], seen[-1]) == ((0, None), (size, None))


@pytest.mark.parametrize(("size", "limit"), [(1, 0), (2, 1), (6, 5), (1 << 22, 1 << 20)])
def test_what_is_larger_is_refused_as_soon_as_it_is_known(size: int, limit: int, tmp_path: Path, web: Web) -> None:
    filesystem = MemoryFileSystem()
    filesystem.pipe("/a", bytes(size))
    target = io.BytesIO()
    with filesystem.open("/a", "rb") as reader, pytest.raises(ConfigError, match=f"a: expected at most {limit} bytes"):
        copy(reader, "a", target, None, limit, lambda *_: None)
    assert len(target.getvalue()) <= limit
    (tmp_path / "a").write_bytes(bytes(size))
    with pytest.raises(ConfigError, match=rf"expected at most {limit} bytes \(max_package_bytes\), received {size}"):
        fetched(str(tmp_path / "a"), limit)


@pytest.mark.parametrize("path", ["package.tar", "unknown", "chunked", "lying"])
def test_the_limit_holds_over_http_whatever_the_server_says(web: Web, path: str) -> None:
    assert fetched(web.url(path), len(CONTENT)) == CONTENT
    with pytest.raises(ConfigError, match=f"expected at most {len(CONTENT) - 1} bytes"):
        fetched(web.url(path), len(CONTENT) - 1)


# -- files ------------------------------------------------------------------------------------------------
def test_a_file_may_be_a_link_and_must_be_a_file(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"content")
    (tmp_path / "b").symlink_to("a")
    assert fetched(str(tmp_path / "b")) == b"content"
    assert fetched(f"file://{tmp_path}/a") == b"content"
    os.mkfifo(tmp_path / "pipe")
    assert failed(str(tmp_path / "pipe"), ConfigError).endswith("expected a file, received a named pipe")
    assert failed(str(tmp_path), ConfigError).endswith("expected a file, received a directory")
    assert failed(str(tmp_path / "none"), ConfigError).endswith("none: cannot be read: No such file or directory")


# -- http -------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("path", ["package.tar", "moved", "headless", "unknown", "chunked", "lying"])
def test_a_package_comes_over_http(web: Web, path: str) -> None:
    assert fetched(web.url(path)) == CONTENT


def test_credentials_of_a_uri_are_used_and_not_shown(web: Web) -> None:
    assert fetched(f"http://somebody:sesame@{web.address}/locked?token=ticket") == CONTENT
    assert web.requests[-1].endswith("/locked?token=ticket")
    message = failed(f"http://somebody:simsim@{web.address}/locked?token=ticket")
    assert message == f"http://{web.address}/locked?...: the server answered 401 Unauthorized"


def test_credentials_may_stand_in_netrc(web: Web, tmp_path: Path) -> None:
    (tmp_path / ".netrc").write_text("machine 127.0.0.1 login somebody password sesame\n")
    assert fetched(web.url("locked")) == CONTENT


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("missing", "the server answered 404 Not Found"),
        ("broken", "the server answered 500 Internal Server Error"),
        ("cut", "Response payload is not completed"),
    ],
)
def test_what_does_not_come_is_said(web: Web, path: str, said: str) -> None:
    message = failed(web.url(path))
    assert message.startswith(f"{web.url(path)}: ")
    assert said in message


@pytest.mark.parametrize("path", ["half", "silent"])
def test_a_server_that_sends_nothing_more_is_given_up(path: str) -> None:
    with Web(CONTENT) as web:
        message = failed(web.url(path), patience=Patience(no_progress_s=0.2))
        assert message == f"{web.url(path)}: does not answer, or sends nothing more"


def test_a_server_that_lets_nobody_in_is_given_up() -> None:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
        assert f"http://127.0.0.1:{port}/a: Cannot connect" in failed(f"http://127.0.0.1:{port}/a")
        # Full: the kernel answers no more.
        sock.listen(0)
        with socket.socket() as first, socket.socket() as second:
            for other in (first, second):
                other.setblocking(False)
                other.connect_ex(("127.0.0.1", port))
            message = failed(f"http://127.0.0.1:{port}/a", patience=Patience(connect_s=0.2, no_progress_s=0.2))
        assert message.endswith("does not answer, or sends nothing more")


# -- s3 ---------------------------------------------------------------------------------------------------
def test_s3_without_its_package_says_what_to_install(tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['s3fs'] = None; from host.cli.main import main; "
        "sys.exit(main(['add', 's3://key:secret@bucket/a.tar', '--repository', sys.argv[1]]))"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        "s3://bucket/a.tar: s3:// needs the package s3fs, which is not installed here: pip install 'modelhost[s3]'\n"
    )
    assert list(tmp_path.iterdir()) == []


def test_errors_of_drivers_are_put_into_words() -> None:
    source = Source("s3://b/k", "s3", "s3://b/k")
    assert reason(FileNotFoundError("b/k"), source) == "found nothing there"
    assert reason(PermissionError("Forbidden"), source) == "access denied: Forbidden"
    assert reason(TimeoutError(), source) == "does not answer, or sends nothing more"
    assert reason(KeyError(), source) == "KeyError"
