"""Who may ask: the name in `Host`, the key, web pages."""

import json

from routing_endpoint import EASY_PROMPT, INFERIOR_KEY, OWN_KEY, endpoint, user

from inference.endpoint import access
from inference.endpoint.access import Access, hosts_for
from inference.endpoint.settings import Settings
from inference.endpoint.upstreams import Upstream


def test_its_own_key_is_asked_for_and_compared_in_constant_time(router, upstream, monkeypatch):
    compared = []
    compare = access.hmac.compare_digest
    monkeypatch.setattr(access.hmac, "compare_digest", lambda *both: compared.append(both) or compare(*both))
    raw, guarded = json.dumps({"model": "router", "messages": [user(EASY_PROMPT)]}), ("/v1/models", "/metrics")
    with endpoint(router, upstream, api_key=OWN_KEY) as running:
        for wrong in ({}, {"authorization": "Bearer wrong"}, {"authorization": "Bearer"}):
            for response in (running.post(raw, **wrong), *(running.get(path, **wrong) for path in guarded)):
                assert response.status_code == 401 and response.json()["error"]["code"] == "invalid_api_key"
                assert OWN_KEY not in response.text
        assert upstream.bodies == [] and len(compared) == 27
        assert {right for _, right in compared} == {OWN_KEY.encode()}
        assert running.get("/health").status_code == 200
        right = {"authorization": f"Bearer {OWN_KEY}".encode()}
        assert running.post(raw, **right).status_code == 200
        assert all(running.get(path, **right).status_code == 200 for path in guarded)
    assert "own-secret" not in upstream.headers[-1]
    sides = (Upstream(name, "m", upstream.url, INFERIOR_KEY) for name in ("inferior", "superior"))
    assert "secret" not in repr(Settings(*sides, access=Access(OWN_KEY)))


def test_the_key_comes_in_any_usual_form(router, upstream):
    raw = {"model": "router", "messages": [user(EASY_PROMPT)]}
    key = OWN_KEY.encode()
    with endpoint(router, upstream, api_key=OWN_KEY) as running:
        for headers in (
            {"authorization": b"Bearer " + key}, {"authorization": b"bearer " + key},
            {"authorization": b"BEARER  " + key}, {"x-api-key": key}, {"api-key": key},
            {"authorization": "Bearer x", "x-api-key": key},
        ):  # fmt: skip
            assert running.post(raw, **headers).status_code == 200
        for headers in (
            {"authorization": key},
            {"authorization": b"Basic " + key},
            {"x-api-key": b""},
            {"cookie": key},
        ):
            assert running.post(raw, **headers).status_code == 401
        assert (
            running.post(raw, "/v1/messages", **{"x-api-key": "wrong"}).json()["error"]["type"]
            == "authentication_error"
        )


def test_without_the_key_health_says_no_more_than_that_it_is_up(router, upstream):
    with endpoint(router, upstream, api_key=OWN_KEY) as running:
        assert running.get("/health").json() == {"status": "ok"}
        known = running.get("/health", **{"x-api-key": OWN_KEY.encode()}).json()
        assert known["checkpoint"] == router.model_save_dir.name


def test_a_page_whose_name_points_here_is_not_answered(router, upstream):
    raw = {"model": "superior", "messages": [user(EASY_PROMPT)]}
    allowed = hosts_for("127.0.0.1", ["router.test"])
    with endpoint(router, upstream, allowed_hosts=allowed) as running:
        for path in ("/metrics", "/health", "/v1/models", "/v1/files"):
            assert running.get(path, host="evil.example").status_code == 421
        refused = running.post(raw, host="evil.example:8000")
        assert refused.status_code == 421 and "--allowed_hosts" in refused.json()["error"]["message"]
        assert running.send("OPTIONS", "/v1/models", host="evil.example").status_code == 421
        assert upstream.bodies == []
        for host in ("localhost", "LOCALHOST:1", "127.0.0.1:8000", "[::1]:8000", "router.test", "router.test.:80"):
            assert running.post(raw, host=host).status_code == 200
        both = b"GET /health HTTP/1.1\r\nhost: localhost\r\nhost: evil.example\r\nconnection: close\r\n\r\n"
        assert b" 200 " not in running.raw(both).split(b"\r\n")[0]


def test_which_names_are_answered_for():
    assert hosts_for("127.0.0.1", []) == {"localhost", "127.0.0.1", "::1"}
    assert hosts_for("127.0.0.2", ["A.test:80"]) == {"localhost", "127.0.0.1", "::1", "127.0.0.2", "a.test"}
    assert hosts_for("::1", []) == {"localhost", "127.0.0.1", "::1"}
    assert hosts_for("127.example.com", []) is None
    assert hosts_for("0.0.0.0", []) is None and hosts_for("0.0.0.0", ["a.test"]) == {"a.test"}


def test_a_page_of_an_allowed_origin_may_ask_and_no_other(router, upstream):
    origin = "http://localhost:5173"
    asks = {"access-control-request-method": "POST", "access-control-request-headers": "authorization,content-type"}
    raw = {"model": "router", "messages": [user(EASY_PROMPT)]}
    with endpoint(router, upstream, allowed_origins=frozenset({origin}), api_key=OWN_KEY) as running:
        allowed = running.send("OPTIONS", "/v1/chat/completions", origin=origin, **asks)
        assert allowed.status_code == 204 and allowed.headers["access-control-allow-origin"] == origin
        assert allowed.headers["access-control-allow-headers"] == "authorization,content-type"
        answer = running.post(raw, origin=origin, **{"x-api-key": OWN_KEY.encode()})
        assert answer.headers["access-control-allow-origin"] == origin and answer.headers["vary"] == "Origin"
        assert running.post(raw, origin=origin).headers["access-control-allow-origin"] == origin  # 401, readable
        refused = running.send("OPTIONS", "/v1/chat/completions", origin="http://evil.example", **asks)
        assert refused.status_code == 405 and "access-control-allow-origin" not in refused.headers
        assert "access-control-allow-origin" not in running.post(raw, origin="null").headers


def test_what_a_page_can_send_without_asking_is_refused(router, upstream):
    raw = json.dumps({"model": "superior", "messages": []})
    with endpoint(router, upstream, other_paths="superior") as running:
        for content_type in ("text/plain", "multipart/form-data; boundary=x", "application/x-www-form-urlencoded"):
            form = {"content-type": content_type, "origin": "http://evil.example"}
            assert running.send("POST", "/v1/chat/completions", raw, **form).status_code == 415
            assert running.send("POST", "/v1/files", raw, **form).status_code == 403
    assert upstream.bodies == upstream.paths == []
