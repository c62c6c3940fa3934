"""A client of chat endpoints in the form of OpenAI's API: POST URL/chat/completions.

Vendors and local servers (llama.cpp, Ollama, vLLM, LM Studio) have it. The key is sent, and never part of a message.
"""

import ipaddress
import json
import logging
import os
import re
import time
from dataclasses import dataclass, field
from typing import Any
from urllib.request import getproxies

import httpx2

from nuanced_core.errors import ConfigError, EndpointError, one_line

__all__ = ["ChatEndpoint", "Message", "ask", "speakable"]

logger = logging.getLogger(__name__)

CONNECT_SECONDS = 10.0
MOST_BYTES = 4 << 20  # of an answer
SHOWN = 200  # characters of an answer that is an error

Message = dict[str, str]  # role, content


@dataclass(frozen=True)
class ChatEndpoint:
    """Where to ask.

    Attributes:
        url: of the API's ``/v1``.
        model: name of the model there.
        key: None: none is sent.
        seconds: until an answer must be there.

    Raises:
        ConfigError: one of these cannot be, or a proxy or certificates that the environment names cannot be used.
    """

    url: str
    model: str
    key: str | None = field(default=None, repr=False)
    seconds: float = 120.0

    def __post_init__(self) -> None:
        try:
            url = httpx2.URL(self.url)
        except (httpx2.InvalidURL, TypeError):
            url = None
        if url is None or url.scheme not in ("http", "https") or not url.host:
            raise ConfigError(f"--llm {self.url}: not a URL; give that of the API's /v1, http://localhost:8080/v1")
        try:
            url.raw_host.decode("ascii").encode("idna")  # as a socket does it, at the first request
        except UnicodeError:
            raise ConfigError(
                f"--llm {self.url}: not a URL: a part of its host is empty or has more than 63 characters; check the "
                "host's name"
            ) from None
        if not self.model:
            raise ConfigError("--model: is empty; name the endpoint's model")
        if self.key and not (self.key.isascii() and self.key.isprintable()):
            raise ConfigError("--key: holds characters that no key has, such as line breaks; export it again")
        if self.key and url.scheme == "http" and not _is_here(url.host):
            logger.warning("--llm %s: the key is sent without encryption; use https", self.url)
        self.client().close()  # what it cannot work with is found before anything long is computed

    def client(self) -> httpx2.Client:
        """Return a client for a request, with the proxies and certificates that the environment names.

        Raises:
            ConfigError: they cannot be used.
        """
        timeout = httpx2.Timeout(self.seconds, connect=min(CONNECT_SECONDS, self.seconds))
        headers = {"Authorization": f"Bearer {self.key}"} if self.key else {}
        try:
            # A redirection would take the key and the words elsewhere.
            return httpx2.Client(timeout=timeout, headers=headers, follow_redirects=False)
        except (ImportError, OSError, ValueError, httpx2.InvalidURL) as error:
            raise ConfigError(_environment_problem(error)) from None


def ask(endpoint: ChatEndpoint, messages: list[Message]) -> str:
    """Return the text with which the endpoint's model answers messages.

    Raises:
        EndpointError: the endpoint cannot be reached, does not answer in time, answers with an error, or with something
            else than a chat completion that has text.
        ConfigError: see ``ChatEndpoint.client``.
    """
    place = f"--llm {endpoint.url}"
    url = endpoint.url.rstrip("/") + "/chat/completions"
    body = {"model": endpoint.model, "messages": messages, "stream": False}
    end = time.monotonic() + endpoint.seconds
    try:
        with endpoint.client() as client, client.stream("POST", url, json=body) as response:
            content = b""
            for block in response.iter_bytes():
                content += block
                if time.monotonic() > end:  # the client's time-out is for each block
                    raise httpx2.ReadTimeout("the whole answer")
                if len(content) > MOST_BYTES:
                    raise EndpointError(
                        f"{place}: the answer has more than {MOST_BYTES >> 20} MiB; is it a chat endpoint?"
                    )
    except httpx2.ConnectTimeout:
        seconds = min(CONNECT_SECONDS, endpoint.seconds)
        raise EndpointError(f"{place}: no connection in {seconds:g} s; is the server running there?") from None
    except httpx2.TimeoutException:
        raise EndpointError(
            f"{place}: no answer in {endpoint.seconds:g} s; give it more time with --timeout, or take a smaller model"
        ) from None
    except httpx2.ConnectError as error:
        raise EndpointError(f"{place}: cannot be reached ({one_line(error)}); is the server running there?") from None
    except httpx2.HTTPError as error:
        raise EndpointError(f"{place}: the connection failed ({one_line(error)}); try again") from None
    except UnicodeError as error:
        raise EndpointError(
            f"{place}: cannot be reached ({one_line(error)}); check the proxy's host: $HTTP_PROXY, $ALL_PROXY"
        ) from None
    text = content.decode("utf-8", "replace")
    if not response.is_success:
        problem = _without_key(_problem(text), endpoint.key)
        raise EndpointError(f"{place}: HTTP {response.status_code}{problem}; {_fix(response.status_code, endpoint)}")
    return _answer(place, text, endpoint.key)


def speakable(text: str) -> str:
    """Return a model's answer without its thoughts, code, and signs of Markdown, which are not to be spoken."""
    text = re.sub(r"<think>.*?(?:</think>|$)", " ", text, flags=re.DOTALL)
    text = re.sub(r"```.*?(?:```|$)", " ", text, flags=re.DOTALL)
    text = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", text)
    text = re.sub(r"^\s*(?:#{1,6}|[-*+>]|\d+[.)])\s+", "", text, flags=re.MULTILINE)
    text = re.sub(r"[*_`~]{1,3}(?=\S)|(?<=\S)[*_`~]{1,3}", "", text)
    return text.strip()


def _environment_problem(error: Exception) -> str:
    """Return which variable of the environment a client cannot work with, and what to do."""
    for scheme, proxy in getproxies().items():
        if scheme not in ("http", "https", "all"):
            continue
        names = [name for name in (f"{scheme}_proxy", f"{scheme.upper()}_PROXY") if os.environ.get(name) == proxy]
        place = f"${names[0]}" if names else f"the system's proxy for {scheme}"
        try:
            httpx2.Client(proxy=proxy if "://" in proxy else f"http://{proxy}", trust_env=False).close()
        except ImportError:
            return f"{place}: a SOCKS proxy needs another package: pip install socksio; or unset it"
        except (ValueError, httpx2.InvalidURL):  # whose message may have a password
            return f"{place}: not the URL of a proxy; give http://HOST:PORT or socks5://HOST:PORT, or unset it"
    for name in ("SSL_CERT_FILE", "SSL_CERT_DIR"):
        if path := os.environ.get(name):
            return f"${name}: {path}: no certificates ({one_line(error)}); name a file that has some, or unset it"
    return f"no connection can be prepared ({one_line(error)})"


def _answer(place: str, text: str, key: str | None) -> str:
    shown = _without_key(" ".join(text.split())[:SHOWN], key)
    try:
        found: Any = json.loads(text)
    except ValueError:
        raise EndpointError(f"{place}: the answer is no JSON: {shown!r}; give the URL of the API's /v1") from None
    try:
        content = found["choices"][0]["message"]["content"]
    except (KeyError, IndexError, TypeError):
        raise EndpointError(f"{place}: the answer is no chat completion: {shown!r}") from None
    if isinstance(content, list):  # of parts, some of which are text
        content = " ".join(str(part.get("text", "")) for part in content if isinstance(part, dict))
    if not isinstance(content, str) or not any(character.isalnum() for character in speakable(content)):
        raise EndpointError(f"{place}: the answer has no text to speak: {shown!r}; ask another model")
    return content


def _problem(text: str) -> str:
    """Return what an error's body says, with a colon before it."""
    try:
        found = json.loads(text)
        error = found.get("error", found.get("detail", found.get("message", "")))
        text = str(error["message"] if isinstance(error, dict) and "message" in error else error)
    except (ValueError, AttributeError):
        text = re.sub(r"<[^>]*>", " ", text)
    text = " ".join(text.split())
    return f": {text[:SHOWN]}" if text else ""


def _fix(status: int, endpoint: ChatEndpoint) -> str:
    if status in (401, 403):
        return (
            "check the key ($OPENAI_API_KEY, or --key env:NAME)" if endpoint.key else "it wants a key: --key env:NAME"
        )
    if status == 404:
        return f"check the URL, which ends with /v1 for most servers, and the model {endpoint.model!r}"
    if status == 429:
        return "wait, or check your quota there"
    if 300 <= status < 400:
        return "it redirects: give the URL that it redirects to"
    return "try again later" if status >= 500 else "check --model and the URL"


def _without_key(text: str, key: str | None) -> str:
    """Mask a key, and what of it a server shows."""
    if key:
        text = text.replace(key, "***")
        text = re.sub(rf"{re.escape(key[:4])}\S*", "***", text) if len(key) > 8 else text
    return text


def _is_here(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
