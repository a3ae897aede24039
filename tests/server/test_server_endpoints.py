"""What every path answers."""

import json

import pytest


def test_what_the_server_says_of_itself(server):
    assert server.get("/health").json() == {"status": "ok"}
    assert server.get("/ping").status == 200
    assert server.get("/ready").json() == {"status": "ready"}
    assert server.get("/version").json()["version"]
    assert server.get("/load").json() == {"server_load": 0}
    models = server.get("/v1/models").json()
    assert [model["id"] for model in models["data"]] == ["demo", "alias"]
    assert models["object"] == "list" and models["data"][0]["max_model_len"] == 2048


def test_the_page_is_one_file_with_a_policy(server):
    page = server.get("/")
    assert page.status == 200 and page.headers["Content-Type"] == "text/html; charset=utf-8"
    assert "default-src 'none'" in page.headers["Content-Security-Policy"]
    assert b"<html" in page.body


def test_head_has_the_headers_of_get_alone(server):
    reply = server.request("HEAD", "/v1/models")
    assert reply.status == 200 and reply.body == b"" and int(reply.headers["Content-Length"]) > 50


def test_a_chat(server):
    reply = server.chat("What is 17 + 25?")
    choice = reply["choices"][0]
    assert reply["object"] == "chat.completion" and reply["model"] == "demo" and reply["id"].startswith("chatcmpl-")
    assert choice["message"]["role"] == "assistant" and choice["message"]["content"] == "17 + 25 = 42."
    assert "10 + 20 = 30" in choice["message"]["reasoning_content"]
    assert choice["finish_reason"] == "stop" and choice["index"] == 0
    usage = reply["usage"]
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    assert usage["prompt_tokens_details"]["cached_tokens"] >= 0


def test_thinking_can_be_switched_off_and_hidden(server):
    quick = server.chat(chat_template_kwargs={"enable_thinking": False})["choices"][0]["message"]
    assert "reasoning_content" not in quick and "15" in quick["content"]
    hidden = server.chat(include_reasoning=False)["choices"][0]["message"]
    assert "reasoning_content" not in hidden and "15" in hidden["content"]


@pytest.mark.parametrize("fields", [{}, {"n": 3, "temperature": 1.5, "seed": 5}, {"max_tokens": 7}, {"stop": ["<", "Ones"]}])
def test_a_streamed_chat_is_the_whole_one_in_pieces(server, fields):
    body = {"messages": [{"role": "user", "content": "What is 7 + 8?"}], "temperature": 0, **fields}
    whole = server.post("/v1/chat/completions", body).json()
    chunks = server.stream("/v1/chat/completions", {**body, "stream_options": {"include_usage": True}})
    assert chunks[-1]["choices"] == [] and chunks[-1]["usage"]["completion_tokens"] == whole["usage"]["completion_tokens"]
    assert len({chunk["id"] for chunk in chunks}) == 1 and {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    for choice in whole["choices"]:
        mine = [c for chunk in chunks for c in chunk["choices"] if c["index"] == choice["index"]]
        assert mine[0]["delta"] == {"role": "assistant", "content": ""}
        content = "".join(c["delta"].get("content") or "" for c in mine)
        assert content == (choice["message"]["content"] or "")
        reasoning = "".join(c["delta"].get("reasoning_content", "") for c in mine)
        assert reasoning == choice["message"].get("reasoning_content", "")
        assert [c["finish_reason"] for c in mine] == [None] * (len(mine) - 1) + [choice["finish_reason"]]


def test_usage_in_every_chunk(server):
    body = {"prompt": "Once", "max_tokens": 4, "stream_options": {"include_usage": True, "continuous_usage_stats": True}}
    counts = [chunk["usage"]["completion_tokens"] for chunk in server.stream("/v1/completions", body)]
    assert counts == sorted(counts) and counts[-1] == 4


def test_completions_of_several_prompts(server):
    texts = server.complete(["What", "Once"], n=2, max_tokens=6)
    assert [c["index"] for c in texts["choices"]] == [0, 1, 2, 3]
    alone = [server.complete(prompt, max_tokens=6)["choices"][0]["text"] for prompt in ("What", "Once")]
    assert [c["text"] for c in texts["choices"]] == [alone[0], alone[0], alone[1], alone[1]]
    assert texts["usage"]["completion_tokens"] == 24


def test_prompts_as_token_ids(server):
    first = server.complete("What is", max_tokens=8, return_token_ids=True)["choices"][0]
    ids = first["prompt_token_ids"]
    for prompt in (ids, [ids]):
        again = server.complete(prompt, max_tokens=8, return_token_ids=True)["choices"][0]
        assert (again["text"], again["token_ids"]) == (first["text"], first["token_ids"])
    assert server.complete(ids, max_tokens=8, echo=True)["choices"][0]["text"] == "What is" + first["text"]


def test_the_default_is_sixteen_tokens_for_completions(server):
    assert server.complete(ignore_eos=True)["usage"]["completion_tokens"] == 16


def test_content_as_text_parts(server):
    parts = [{"type": "text", "text": "What is"}, {"type": "text", "text": "7 + 8?"}]
    assert server.chat(parts)["choices"] == server.chat("What is\n7 + 8?")["choices"]


def test_an_empty_kv_transfer_is_echoed(server):
    assert server.chat(max_tokens=1, kv_transfer_params={})["kv_transfer_params"] == {}
    assert server.chat(max_tokens=1)["kv_transfer_params"] is None


def test_unknown_fields_are_ignored_with_one_warning(server):
    for _ in range(2):
        server.chat(max_tokens=1, a_field_of_tomorrow=1)
    assert server.messages.count(b'"a_field_of_tomorrow"') == 1


def test_the_metrics_have_the_names_of_vllm(server):
    before = server.metrics()
    server.chat(max_tokens=5, ignore_eos=True)
    after = server.metrics()
    label = 'engine="0",model_name="demo"'
    assert after["generation_tokens_total"][label] == before["generation_tokens_total"][label] + 5
    success = f'{label},finished_reason="length"'
    assert after["request_success_total"][success] == before["request_success_total"][success] + 1
    for name in (
        "time_to_first_token_seconds", "inter_token_latency_seconds", "time_per_output_token_seconds",
        "e2e_request_latency_seconds", "request_queue_time_seconds", "request_inference_time_seconds",
        "request_prefill_time_seconds", "request_decode_time_seconds", "request_prompt_tokens",
        "request_generation_tokens", "request_params_n", "request_params_max_tokens", "iteration_tokens_total",
    ):  # fmt: skip
        assert after[name + "_count"][label] > before[name + "_count"][label], name
        buckets = [value for key, value in after[name + "_bucket"].items()]
        assert buckets == sorted(buckets) and buckets[-1] == after[name + "_count"][label]
    for name in ("num_requests_running", "num_requests_waiting", "kv_cache_usage_perc", "num_preemptions_total",
                 "prefix_cache_queries_total", "prefix_cache_hits_total", "prompt_tokens_total"):  # fmt: skip
        assert label in after[name]
    config = [key for key in after["cache_config_info"]]
    assert 'block_size="64"' in config[0] and 'num_gpu_blocks="256"' in config[0]


def test_a_connection_serves_many_requests(server):
    connection = server.connect()
    for i in range(5):
        connection.request("POST", "/v1/completions", json.dumps({"prompt": "Once", "max_tokens": 2, "stream": i % 2 == 0}))
        response = connection.getresponse()
        assert response.status == 200 and response.read()
    connection.close()
