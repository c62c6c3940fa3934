"""The client of chat endpoints, against a real HTTP server."""

import json
import logging
import socket
import sys
import time
from pathlib import Path

import pytest

from nuanced_core.dialogue.chat import MOST_BYTES, ChatEndpoint, ask, speakable
from nuanced_core.errors import ConfigError, EndpointError
from tests.nuanced_core.dialogue.conftest import FakeChat

KEY = "sk-test-0123456789abcdef"
MESSAGES = [{"role": "user", "content": "How are you?"}]


def test_a_question_is_asked_as_openai_s_api_wants_it_and_answered(chat: FakeChat) -> None:
    assert ask(ChatEndpoint(chat.url + "/", "tiny", KEY), MESSAGES) == "Fine, thanks."
    ((path, headers, body),) = chat.requests
    assert path == "/v1/chat/completions" and headers["authorization"] == f"Bearer {KEY}"
    assert body == {"model": "tiny", "messages": MESSAGES, "stream": False}
    chat.content = [{"type": "text", "text": "In"}, {"type": "image"}, {"type": "text", "text": "parts."}]  # type: ignore[assignment]
    assert ask(ChatEndpoint(chat.url, "tiny"), MESSAGES).split() == ["In", "parts."]
    assert "authorization" not in chat.requests[-1][1]


@pytest.mark.parametrize(
    ("status", "body", "message"),
    [
        (
            401,
            b'{"error": {"message": "Incorrect API key: sk-test-0123*"}}',
            r"HTTP 401: Incorrect API key: \*\*\*; check",
        ),
        (404, b'{"detail": "no such model"}', "HTTP 404: no such model; check the URL, .* the model 'tiny'"),
        (429, b"", "HTTP 429; wait, or check your quota"),
        (500, b"<html><b>Oops</b></html>", "HTTP 500: Oops; try again later"),
        (302, b"", "HTTP 302; it redirects"),
        (200, b"<html>Welcome</html>", "the answer is no JSON: '<html>Welcome</html>'"),
        (200, b"\xff\xfe", "the answer is no JSON"),
        (200, b"[]", "no chat completion"),
        (200, b'{"choices": []}', "no chat completion"),
        (200, b'{"choices": [{"message": null}]}', "no chat completion"),
        (200, b'{"choices": [{"message": {"content": null}}]}', "no text to speak"),
        (200, b'{"choices": [{"message": {"content": " ... "}}]}', "no text to speak"),
        (200, b'{"choices": [{"message": {"content": "<think>Hm, I"}}]}', "no text to speak"),
        (200, b'"' + b"a" * MOST_BYTES + b'"', "more than 4 MiB"),
    ],
)
def test_what_is_no_answer_is_one_line(status: int, body: bytes, message: str, chat: FakeChat) -> None:
    chat.status, chat.body = status, body
    chat.headers = {"Location": "http://127.0.0.1:1/"} if status == 302 else {}
    with pytest.raises(EndpointError, match=message) as raised:
        ask(ChatEndpoint(chat.url, "tiny", KEY), MESSAGES)
    line = str(raised.value)
    assert line.startswith(f"--llm {chat.url}: ") and "\n" not in line and "sk-test" not in line and len(line) < 500
    assert len(chat.requests) == 1


def test_a_server_that_is_slow_absent_or_cut_off_is_one_line(chat: FakeChat) -> None:
    chat.cut = True
    with pytest.raises(EndpointError, match="the connection failed"):
        ask(ChatEndpoint(chat.url, "tiny", seconds=1), MESSAGES)
    chat.delay = 3
    began = time.monotonic()
    with pytest.raises(EndpointError, match=r"no answer in 0\.3 s; give it more time"):
        ask(ChatEndpoint(chat.url, "tiny", seconds=0.3), MESSAGES)
    assert time.monotonic() - began < 2.5
    chat.delay, chat.cut, chat.drip = 0.0, False, 0.1
    with pytest.raises(EndpointError, match=r"no answer in 0\.5 s"):  # each byte is in time, the answer is not
        ask(ChatEndpoint(chat.url, "tiny", seconds=0.5), MESSAGES)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    for url in (f"http://127.0.0.1:{port}/v1", "http://no-such-host.invalid/v1"):
        with pytest.raises(EndpointError, match=r"cannot be reached \(.*is the server running there\?"):
            ask(ChatEndpoint(url, "tiny"), MESSAGES)


def test_an_endpoint_that_cannot_be_is_refused_and_its_key_is_not_shown(caplog: pytest.LogCaptureFixture) -> None:
    for url in ("localhost:8080/v1", "ftp://a/v1", "http://", "", "http://[::1/v1"):
        with pytest.raises(ConfigError, match=r"--llm .*: not a URL"):
            ChatEndpoint(url, "tiny")
    with pytest.raises(ConfigError, match="--model: is empty"):
        ChatEndpoint("http://localhost/v1", "")
    with pytest.raises(ConfigError, match="--key: holds characters that no key has") as raised:
        ChatEndpoint("http://localhost/v1", "tiny", f"{KEY}\nX: y")
    assert KEY not in str(raised.value)
    assert KEY not in repr(ChatEndpoint("http://localhost/v1", "tiny", KEY))
    with caplog.at_level(logging.WARNING):
        ChatEndpoint("https://api.example/v1", "tiny", KEY)
        ChatEndpoint("http://127.0.0.1/v1", "tiny", KEY)
        assert not caplog.records
        ChatEndpoint("http://api.example/v1", "tiny", KEY)
    assert "sent without encryption" in caplog.text and KEY not in caplog.text


@pytest.mark.parametrize("host", ["a..b", ".a", "a" * 64, "a." + "b" * 64 + ".c"])
def test_a_host_that_no_socket_takes_is_refused(host: str) -> None:
    with pytest.raises(ConfigError, match=r"--llm http://.*/v1: not a URL: a part of its host is empty or has more"):
        ChatEndpoint(f"http://{host}/v1", "tiny")
    ChatEndpoint(f"http://{'a' * 63}.b./v1", "tiny")


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        (
            "ALL_PROXY",
            "socks://127.0.0.1:7891/",
            r"\$ALL_PROXY: not the URL of a proxy; give http://HOST:PORT or .*unset",
        ),
        (
            "all_proxy",
            "socks5://127.0.0.1:7891/",
            r"\$all_proxy: a SOCKS proxy needs another package: pip install socksio",
        ),
        ("HTTP_PROXY", "http://me:secret@[::1", r"\$HTTP_PROXY: not the URL of a proxy"),
        ("SSL_CERT_FILE", "absent.pem", r"\$SSL_CERT_FILE: absent\.pem: no certificates \(.*No such file.*or unset it"),
        ("SSL_CERT_FILE", "empty.pem", r"\$SSL_CERT_FILE: empty\.pem: no certificates \("),
    ],
)
def test_an_environment_in_which_nothing_can_be_asked_is_one_line_before_the_work(
    variable: str, value: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chat: FakeChat
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty.pem").touch()
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    endpoint = ChatEndpoint(chat.url, "tiny")
    monkeypatch.setitem(sys.modules, "socksio", None)
    monkeypatch.setenv(variable, value)
    for attempt in (lambda: ChatEndpoint(chat.url, "tiny"), lambda: ask(endpoint, MESSAGES)):
        with pytest.raises(ConfigError, match=message) as raised:
            attempt()
        assert "\n" not in str(raised.value) and "secret" not in str(raised.value)
    assert not chat.requests


def test_a_proxy_whose_host_no_socket_takes_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("http_proxy", raising=False)
    monkeypatch.setenv("HTTP_PROXY", "http://a..b:80")
    with pytest.raises(EndpointError, match=r"cannot be reached \(.*check the proxy's host: \$HTTP_PROXY"):
        ask(ChatEndpoint("http://llm.invalid/v1", "tiny"), MESSAGES)


def test_thoughts_code_and_markdown_are_not_spoken() -> None:
    text = "<think>They are sad.</think>\n## Well\n- **Take** your *time*, see [this](http://x.y).\n"
    text += "```py\nx = 1\n```\n2 * 3 is 6."
    assert speakable(text).split() == ["Well", "Take", "your", "time,", "see", "this.", "2", "*", "3", "is", "6."]
    assert json.dumps(speakable("Plain text, 5 > 3.")) == '"Plain text, 5 > 3."'
