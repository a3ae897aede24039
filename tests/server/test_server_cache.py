"""The prefix cache, seen through the API."""

from server_support import DEMO


def test_different_keys_do_not_share_the_prefix_cache(start):
    server = start(DEMO, "--api-key", "a", "--api-key", "b")

    def cached(key, **fields):
        server.key = key
        return server.complete("Once upon a time " * 20, max_tokens=1, **fields)["usage"]["prompt_tokens_details"]["cached_tokens"]

    assert cached("a") == 0
    assert cached("a") > 0
    assert cached("b") == 0
    assert cached("b") > 0
    assert cached("b", cache_salt="x") == 0
    assert cached("b", cache_salt="x") > 0
    assert cached("b", cache_salt="y") == 0
