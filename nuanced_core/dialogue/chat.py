"""A client of chat endpoints in the form of OpenAI's API: POST URL/chat/completions.

Vendors and local servers (llama.cpp, Ollama, vLLM, LM Studio) have it. The key is sent, and never part of a message.
"""

import ipaddress
import json
import logging
import re
import time
from dataclasses import dataclass, field
from typing import Any

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
        if not self.model:
            raise ConfigError("--model: is empty; name the endpoint's model")
        if self.key and not (self.key.isascii() and self.key.isprintable()):
            raise ConfigError("--key: holds characters that no key has, such as line breaks; export it again")
        if self.key and url.scheme == "http" and not _is_here(url.host):
            logger.warning("--llm %s: the key is sent without encryption; use https", self.url)


def ask(endpoint: ChatEndpoint, messages: list[Message]) -> str:
    """Return the text with which the endpoint's model answers messages.

    Raises:
        EndpointError: the endpoint cannot be reached, does not answer in time, answers with an error, or with something
            else than a chat completion that has text.
    """
    place = f"--llm {endpoint.url}"
    url = endpoint.url.rstrip("/") + "/chat/completions"
    headers = {"Authorization": f"Bearer {endpoint.key}"} if endpoint.key else {}
    timeout = httpx2.Timeout(endpoint.seconds, connect=min(CONNECT_SECONDS, endpoint.seconds))
    body = {"model": endpoint.model, "messages": messages, "stream": False}
    end = time.monotonic() + endpoint.seconds
    try:
        # A redirection would take the key and the words elsewhere.
        with (
            httpx2.Client(timeout=timeout, headers=headers, follow_redirects=False) as client,
            client.stream("POST", url, json=body) as response,
        ):
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
        raise EndpointError(f"{place}: no connection in {timeout.connect:g} s; is the server running there?") from None
    except httpx2.TimeoutException:
        raise EndpointError(
            f"{place}: no answer in {endpoint.seconds:g} s; give it more time with --timeout, or take a smaller model"
        ) from None
    except httpx2.ConnectError as error:
        raise EndpointError(f"{place}: cannot be reached ({one_line(error)}); is the server running there?") from None
    except httpx2.HTTPError as error:
        raise EndpointError(f"{place}: the connection failed ({one_line(error)}); try again") from None
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
