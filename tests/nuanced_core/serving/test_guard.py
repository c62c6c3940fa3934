"""Who may use the server: names, origins, tokens."""

from types import SimpleNamespace

import httpx2
import pytest

from nuanced_core.errors import ConfigError
from nuanced_core.serving.guard import Access
from nuanced_core.serving.server import check_access, listen
from tests.nuanced_core.serving.conftest import error_of, fake_studio, served, speech_of

TOKEN = "0123456789abcdef-token"


def test_a_name_of_another_server_is_refused_as_after_dns_rebinding(client: httpx2.Client) -> None:
    for name in ("evil.example", "evil.example:8880", "127.0.0.1.evil.example", "", "[::1", "192.168.0.7"):
        for path in ("/", "/v1/voices"):
            assert error_of(client.get(path, headers={"Host": name}), 421)["code"] == "unknown_host"
    for name in ("localhost", "LOCALHOST:99", "127.0.0.1", "[::1]:80"):
        assert client.get("/v1/voices", headers={"Host": name}).status_code == 200


def test_pages_of_other_origins_are_refused(client: httpx2.Client) -> None:
    own = str(client.base_url).rstrip("/")
    for origin in ("http://evil.example", "null", "http://127.0.0.1:1", "http://localhost", "http://[::1", own + "0"):
        for send in (client.get, client.post):
            assert error_of(send("/v1/voices", headers={"Origin": origin}), 403)["code"] == "foreign_origin"
    for site in ("cross-site", "same-site"):
        assert error_of(client.get("/v1/voices", headers={"Sec-Fetch-Site": site}), 403)["code"] == "foreign_origin"
    assert client.get("/v1/voices", headers={"Origin": own, "Sec-Fetch-Site": "same-origin"}).status_code == 200
    answer = client.get("/", headers={"Sec-Fetch-Site": "cross-site"})  # a link to the page
    assert answer.status_code == 200 and "access-control-allow-origin" not in answer.headers
    assert "frame-ancestors 'none'" in answer.headers["content-security-policy"]


def test_a_form_elsewhere_cannot_ask_for_speech(client: httpx2.Client) -> None:
    body = b'{"model": "tts-1", "input": "Red door.", "voice": "af_sky"}'
    for kind in ("text/plain", "application/x-www-form-urlencoded", None):
        headers = {} if kind is None else {"Content-Type": kind}
        answer = client.post("/v1/audio/speech", content=body, headers=headers)
        assert error_of(answer, 415)["code"] == "unsupported_media_type"


def test_a_token_is_wanted_for_the_api_and_not_for_the_page(fakes: SimpleNamespace) -> None:
    with served(fake_studio(fakes), token=TOKEN) as url, httpx2.Client(base_url=url) as client:
        assert client.get("/").status_code == 200 and client.get("/page.js").status_code == 200
        for authorization in (None, f"Bearer {TOKEN}x", "Bearer", f"Basic {TOKEN}", "Bearer \u00e9"):
            headers = {} if authorization is None else {"Authorization": authorization.encode()}
            answer = client.get("/v1/voices", headers=headers)
            assert error_of(answer, 401)["type"] == "authentication_error"
            assert TOKEN not in answer.text and answer.headers["www-authenticate"] == "Bearer"
        client.headers["Authorization"] = f"Bearer {TOKEN}"
        assert speech_of(client).status_code == 200


def test_the_token_is_required_where_others_can_reach_the_server_and_is_not_shown() -> None:
    for host in ("127.0.0.1", "localhost", "::1", "127.8.8.8"):
        check_access(host, None)
    for host in ("0.0.0.0", "::", "192.168.0.7", "speech.lan"):
        with pytest.raises(ConfigError, match=rf"--host {host}: others can reach it"):
            check_access(host, None)
        check_access(host, TOKEN)
    for token in ("short", "with a space in it .....", "line\nbreak-line-break"):
        with pytest.raises(ConfigError, match="--token: has") as raised:
            check_access("0.0.0.0", token)
        assert token not in str(raised.value)
    assert TOKEN not in repr(Access("0.0.0.0", token=TOKEN))


def test_a_server_for_all_addresses_knows_addresses_and_names_that_were_given() -> None:
    access = Access("0.0.0.0", ["speech.lan"], TOKEN)
    assert [access.knows(name) for name in ("192.168.0.7", "Speech.lan", "evil.example")] == [True, True, False]


def test_an_address_in_use_is_one_line() -> None:
    with listen("127.0.0.1", 0) as first:
        port = first.getsockname()[1]
        with pytest.raises(ConfigError, match=rf"--host 127\.0\.0\.1 --port {port}: cannot be used"):
            listen("127.0.0.1", port)
    with pytest.raises(ConfigError, match=r"--port 70000: give 0 to 65535"):
        listen("127.0.0.1", 70_000)
