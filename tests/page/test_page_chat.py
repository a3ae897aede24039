"""The page as a person uses it: send, stream, stop, retry, edit, think, call tools, come back."""

import json
import threading

IDLE = "!document.body.classList.contains('running')"
ANSWER = "[...document.querySelectorAll('.message.assistant > .markdown')].map((e) => e.innerText.trim()).join('|')"


def ask(window, text):
    window.js("document.getElementById('prompt').focus()")
    window.type(text)
    window.key("Enter")


def is_answered(window, n=1):
    window.until(f"{IDLE} && document.querySelectorAll('.message.assistant').length === {n}")


def test_an_answer_streams(window, server, picture):
    rest = threading.Event()
    server.answer = [["Forty", "-two ", "is **the", rest, " answer**."]]
    page = window()
    page.until("document.activeElement.id === 'prompt'")
    picture(page, "welcome")
    ask(page, "What is 17 + 25?")
    page.until(f"{ANSWER} === 'Forty-two is **the'")
    assert page.js("document.querySelector('.message.assistant').getAttribute('aria-busy')") == "true"
    assert page.js("[byId('send').hidden, byId('stop').hidden, byId('prompt').value]") == [True, False, ""]
    picture(page, "streaming")
    rest.set()
    is_answered(page)
    assert page.js(ANSWER) == "Forty-two is the answer."
    assert page.js("document.querySelector('.message.assistant strong').innerText") == "the answer"
    assert page.js("document.querySelector('.facts').innerText").startswith("4 tokens · ")
    assert "64 of 80 prompt tokens cached" in page.js("document.querySelector('.facts').innerText")
    page.until("byId('announce').textContent === 'Forty-two is **the answer**.'")
    assert page.js("document.activeElement.id") == "prompt"
    assert page.js("document.title") == "What is 17 + 25? · moebius"
    body = server.requests[0]
    assert body["model"] == "demo" and body["stream"] is True and body["stream_options"] == {"include_usage": True}
    assert body["messages"] == [{"role": "user", "content": "What is 17 + 25?"}]
    assert body["chat_template_kwargs"] == {"enable_thinking": True}
    assert not {"temperature", "top_p", "top_k", "max_tokens", "seed", "tools"} & body.keys()


def test_a_message_before_the_models_are_known_names_its_model(window, server):
    server.answer = [["Hello"]]
    server.models_known.clear()
    page = window()
    ask(page, "Hi")
    page.until("document.body.classList.contains('running')")
    server.models_known.set()
    is_answered(page)
    assert page.js(ANSWER) == "Hello" and server.requests[0]["model"] == "demo"


def test_stop_keeps_what_was_said_and_leaves_the_server(window, server, picture):
    for stop in (lambda page: page.click("#stop"), lambda page: page.key("Escape")):
        server.answer, server.gone = [["A first part", threading.Event()]], 0
        page = window()
        ask(page, "Go on for ever")
        page.until(f"{ANSWER} === 'A first part'")
        stop(page)
        is_answered(page)
        assert page.js("document.querySelector('.note').innerText") == "Stopped."
        picture(page, "stopped")
        server.wait(lambda: server.gone == 1)


def test_retry_and_edit(window, server, picture):
    server.answer = [["one"], ["two"], ["three"], ["four"]]
    page = window()
    ask(page, "first")
    is_answered(page)
    page.click(".foot [aria-label=Retry]")
    page.until(f"{IDLE} && {ANSWER} === 'two'")
    ask(page, "second")
    is_answered(page, 2)
    assert [m["content"] for m in server.requests[2]["messages"]] == ["first", "two", "second"]
    page.click(".message.user [aria-label='Edit message']")
    assert page.js("[document.activeElement.getAttribute('aria-label'), document.activeElement.value]") == ["Edit message", "first"]
    picture(page, "edit")
    page.key("Escape")
    assert page.js("document.querySelectorAll('.editor').length") == 0
    page.click(".message.user [aria-label='Edit message']")
    page.type(" and last")
    page.key("Enter")
    page.until(f"{IDLE} && {ANSWER} === 'four'")
    assert server.requests[3]["messages"] == [{"role": "user", "content": "first and last"}]
    page.click(".toast button")  # Undo
    page.until(f"{ANSWER} === 'two|three'")
    page.reload()
    assert page.js("conversations[0].messages.map((m) => m.content).join()") == "first,two,second,three"


def test_conversations_outlast_a_reload(window, server):
    server.answer = [["kept"], ["another"]]
    page = window()
    ask(page, "remember")
    is_answered(page)
    page.js("document.getElementById('prompt').focus()")
    page.type("a draft")
    page.reload()
    assert page.js(ANSWER) == "kept"
    assert page.js("byId('prompt').value") == "a draft"
    assert page.js("document.querySelector('[aria-current]').innerText") == "remember"
    page.click("#new")
    assert page.js("document.querySelectorAll('.message').length") == 0
    page.js("byId('prompt').value = ''")
    ask(page, "anew")
    is_answered(page)
    assert len(server.requests[1]["messages"]) == 1
    page.click("#conversations li:nth-child(2) .title")
    assert page.js(ANSWER) == "kept"


def test_a_page_that_closes_in_the_middle_keeps_the_part(window, server):
    server.answer = [["the beginning", threading.Event()]]
    page = window()
    ask(page, "tell me")
    page.until(f"{ANSWER} === 'the beginning'")
    page.reload()
    assert page.js(ANSWER) == "the beginning"


def test_thinking_is_folded(window, server, picture):
    rest, end = threading.Event(), threading.Event()
    server.answer = [[{"reasoning_content": "Carry the "}, rest, {"reasoning_content": "one."}, "42", end]]
    page = window()
    ask(page, "What is 17 + 25?")
    page.until("document.querySelector('.thought .label').innerText === 'Thinking…'")
    assert page.js("document.querySelector('.thought').open") is False
    picture(page, "thinking")
    rest.set()
    page.until("document.querySelector('.thought .label').innerText.startsWith('Thought for')")
    end.set()
    is_answered(page)
    page.click(".thought summary")
    assert page.js("document.querySelector('.thought .markdown').innerText") == "Carry the one."
    picture(page, "thought")
    server.answer = [["43"]]
    page.click("#think")
    ask(page, "and one more")
    is_answered(page, 2)
    assert server.requests[1]["chat_template_kwargs"] == {"enable_thinking": False}
    assert server.requests[1]["messages"][1] == {"role": "assistant", "content": "42"}


def test_tool_calls_are_shown_and_answered(window, server, picture):
    call = lambda i, **f: {"tool_calls": [{"index": i, **({"id": f"c{i}"} if "name" in f else {}), "function": f}]}  # noqa: E731
    server.answer = [
        ["I look it up.", call(0, name="weather", arguments=""), call(0, arguments='{"city": "Par'), call(0, arguments='is"}'),
         call(1, name="clock", arguments="{}")],
        ["It is noon and sunny."],
    ]
    page = window()
    page.js("settings.tools = JSON.stringify([{type: 'function', function: {name: 'weather'}}])")
    ask(page, "Weather and time in Paris?")
    is_answered(page)
    assert server.requests[0]["tools"] == [{"type": "function", "function": {"name": "weather"}}]
    assert page.js("document.querySelector('.call pre').innerText") == '{\n  "city": "Paris"\n}'
    picture(page, "tool-call")
    page.click(".call:nth-child(1) textarea")
    page.type("sunny")
    page.click(".call:nth-child(1) button[type=submit]")
    page.until("document.querySelectorAll('.message.tool').length === 1")
    assert len(server.requests) == 1
    page.click(".call:nth-child(2) textarea")
    page.type("12:00")
    page.click(".call:nth-child(2) button[type=submit]")
    is_answered(page, 2)
    picture(page, "tool-result")
    messages = server.requests[1]["messages"]
    assert [m["role"] for m in messages] == ["user", "assistant", "tool", "tool"]
    assert messages[1]["tool_calls"][0] == {"id": "c0", "type": "function",
                                            "function": {"name": "weather", "arguments": '{"city": "Paris"}'}}
    assert messages[3] == {"role": "tool", "tool_call_id": "c1", "content": "12:00"}


def test_events_cut_anywhere(window, server):
    chunk = json.dumps({"choices": [{"delta": {"content": "häß 😀 ok"}}]}, ensure_ascii=False).encode()
    whole = b": hello\r\n\r\nevent: x\r\ndata: " + chunk + b"\r\n\r\ndata:" + chunk + b"\r\n\r\n"
    server.answer = [[part for byte in whole for part in (bytes([byte]), 0.001)]]
    page = window()
    ask(page, "cut")
    is_answered(page)
    assert page.js(ANSWER) == "häß 😀 okhäß 😀 ok"


def test_failures_are_sentences(window, server, picture):
    error = {"error": {"message": "temperature must be from 0 to 2", "type": "invalid_request_error", "param": "temperature"}}
    in_stream = b'data: {"error": {"message": "The step failed."}}\n\n'
    cases = [
        ((400, error), "temperature must be from 0 to 2"),
        ((503, ""), "The server is busy or shutting down. Try again in a moment."),
        ((502, "<html>bad gateway</html>"), "The server answered 502: <html>bad gateway</html>"),
        (["half", in_stream], "The step failed."),
        (["half", RuntimeError], "The connection ended before the answer did."),
    ]
    page = window()
    page.expected |= {f"Failed to load resource: the server responded with a status of {s}" for s in
                      ("400 (Bad Request)", "503 (Service Unavailable)", "502 (Bad Gateway)")}
    ask(page, "go")
    is_answered(page)
    for script, sentence in cases:
        server.answer = [script]
        page.click(".foot [aria-label=Retry]")
        page.until(f"{IDLE} && document.querySelector('.note') && document.querySelector('.note').innerText === {json.dumps(sentence)}")
        assert page.js("document.querySelector('.note').getAttribute('role')") == "alert"
    picture(page, "error")
    assert page.js(ANSWER) == "half"


def test_the_key_is_asked_for(window, server, picture):
    server.key = "open sesame"
    page = window()
    page.expected |= {"Failed to load resource: the server responded with a status of 401 (Unauthorized)"}
    page.until("byId('key').open")
    picture(page, "key")
    page.type("wrong")
    page.key("Enter")
    page.until("byId('key').open && !byId('key-wrong').hidden")
    page.type("open sesame")
    page.key("Enter")
    page.until("!byId('key').open && byId('model-name').innerText === 'demo'")
    server.answer = [["in"]]
    ask(page, "let me in")
    is_answered(page)
    assert page.js(ANSWER) == "in"
    assert "sesame" not in page.js("JSON.stringify(localStorage)")


def test_parameters(window, server, picture):
    server.models = ["small", "large"]
    page = window()
    page.until("!byId('model').hidden")
    page.js("byId('model').value = 'large'")
    page.click("#open-settings")
    for name, text in {"system": "Be brief.", "temperature": "0.5", "top_p": "0.9", "top_k": "20", "max_tokens": "50",
                       "seed": "7"}.items():
        page.js(f"byId('set-{name}').focus()")
        page.type(text)
    picture(page, "parameters")
    page.key("Escape")
    page.until("!byId('settings').open")
    assert page.js("byId('n-set').innerText") == "6"
    server.answer = [["ok"], ["ok"]]
    ask(page, "go")
    is_answered(page)
    sent = server.requests[0]
    assert sent["messages"][0] == {"role": "system", "content": "Be brief."} and sent["model"] == "large"
    wanted = {"temperature": 0.5, "top_p": 0.9, "top_k": 20, "max_tokens": 50, "seed": 7}
    assert {k: sent[k] for k in wanted} == wanted
    page.reload()
    assert page.js("[settings.temperature, byId('n-set').innerText]") == ["0.5", "6"]
    page.js("byId('set-temperature').value = '9'; byId('set-tools').value = '{'; takeSettings()")
    assert page.js("[settings.temperature, settings.tools]") == ["0.5", "{"]
    page.click(".foot [aria-label=Retry]")
    page.until("document.querySelector('.note').innerText.startsWith('The tools in the parameters are not JSON')")
    page.js("resetSettings()")
    page.click(".foot [aria-label=Retry]")
    page.until(f"{IDLE} && {ANSWER} === 'ok'")
    assert not wanted.keys() & server.requests[1].keys()
