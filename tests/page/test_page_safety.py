"""What a model, a file or a server may send: nothing of it runs, leaves the origin, or hangs the page."""

import json

import pytest
from scripted_server import ScriptedServer
from test_page_chat import ANSWER, IDLE, ask, is_answered

HOSTILE = r"""
<script>window.pwned = 1</script> <img src=x onerror="window.pwned = 1"> <svg onload="window.pwned = 1">
<iframe srcdoc="<script>parent.pwned = 1</script>"></iframe> <style>body { display: none }</style> <base href="//evil.example/">

[a](javascript:window.pwned=1) [b](JaVaScRiPt:window.pwned=1) [c](data:text/html,<script>window.pwned=1</script>)
[d]( javascript:window.pwned=1) [e](vbscript:x) [f](//evil.example) [g](java&#115;cript:x) [h](\x01javascript:x) [i](blob:x)
![picture](https://evil.example/pixel.png) ![j](javascript:window.pwned=1) <javascript:window.pwned=1> <https://ok.example/"onclick="x>
[good "title" <b>](https://ok.example/a_(b)?c=1&d="onmouseover="window.pwned=1) https://ok.example/<script>

| <b>x</b> | [k](javascript:window.pwned=1) |
|---|---|
| <script>window.pwned = 1</script> | `<img src=x onerror=window.pwned=1>` |

```html"><script>window.pwned=1</script>
<script>window.pwned = 1</script>
```
# <img src=x onerror=window.pwned=1>
- <details ontoggle="window.pwned=1" open>
> <a href="javascript:window.pwned=1">x</a>
"""


def test_hostile_markdown_stays_text(window, server, picture):
    server.answer = [[{"reasoning_content": HOSTILE}, HOSTILE, {"tool_calls": [{"index": 0, "id": "<b>", "function": {
        "name": "<img src=x onerror=window.pwned=1>", "arguments": "<script>window.pwned=1</script>"}}]}]]
    page = window()
    ask(page, HOSTILE)
    is_answered(page)
    page.js("document.querySelector('.thought').open = true")
    picture(page, "hostile")
    found = page.js("""[...new Set([...document.querySelectorAll('.message *')].map((e) => e.tagName.toLowerCase()))]""")
    assert not {"script", "img", "iframe", "style", "base", "object", "embed", "b", "link", "meta"} & set(found), found
    links = page.js("[...document.querySelectorAll('.message a')].map((a) => [a.getAttribute('href'), a.rel, a.target])")
    assert links and all(href.startswith("https://") and "noopener" in rel and target == "_blank" for href, rel, target in links)
    attributes = page.js("""[...document.querySelectorAll('.message *')].flatMap((e) => e.getAttributeNames())
                            .filter((name) => name.startsWith('on') || name === 'style' || name === 'src' || name === 'srcdoc')""")
    assert attributes == []
    assert page.js("typeof window.pwned") == "undefined"
    page.reload()
    assert page.js("typeof window.pwned") == "undefined"
    assert {url.split("/")[2] for url in page.addresses() if url.startswith("http")} == {server.url.split("/")[2]}


def test_the_policy_lets_no_other_script_run(window):
    page = window()
    for act in ("document.body.innerHTML = '<p>x</p>'", "new Function('return 1')", "eval('1')",
                "document.body.setAttribute('onclick', 'window.pwned = 1'); document.body.click()",
                "document.body.append(Object.assign(document.createElement('img'), {src: 'https://evil.example/x.png'}))"):
        assert page.js(f"(() => {{ try {{ {act}; return true; }} catch {{ return true; }} }})()")
    reached = page.js("fetch('https://evil.example/').then(() => 'reached', () => 'refused')")
    assert reached == "refused" and page.js("typeof window.pwned") == "undefined"
    assert page.js("document.querySelectorAll('body > p').length") == 0
    complaints = " ".join(page.complaints())
    assert "TrustedHTML" in complaints or "Content Security Policy" in complaints
    page.expected = set(page.complaints())


PATTERNS = {
    "brackets": "[" * 50000, "links": "[a](" * 20000, "closed": "[" * 20000 + "]" * 20000 + "(https://x.y)",
    "stars": "*a " * 30000, "pairs": "*a **b " * 15000 + "c** d* " * 15000, "runs": "*" * 60000 + "a", "mixed": "*_~~" * 20000,
    "ticks": "".join("`" * (i % 200) + " " for i in range(600)), "fences": "```" + " " * 50000 + "`\n", "tildes": "~" * 50000 + "`",
    "dollars": "$a " * 30000, "brackets of formulas": "\\(" * 40000 + "\\)", "blocks": "$$a\n" * 20000,
    "quotes": ">" * 50000, "lists": "".join(" " * i + "- a\n" for i in range(300)), "items": "- a\n" * 5000,
    "table": "|" * 30000 + "\n" + "|-" * 30000, "rule": "-" + " " * 50000 + "x", "dashes": "a|b\n" + " " * 50000 + "-x",
    "hashes": "# " + "#" * 50000 + "x", "urls": "https://" * 10000, "angles": "<" * 50000, "blank": "\n" * 100000,
    "tasks": "- [" * 20000, "words": "a" * 100000, "lines": "a\n" * 5000,
}


@pytest.mark.parametrize("name", PATTERNS)
def test_no_text_hangs_the_page(markdown_window, name):
    """Each takes some 10 to 500 ms; a renderer of quadratic time took minutes for several. The best of three counts."""
    script = f"""(() => {{
        const text = {json.dumps(PATTERNS[name])};
        const begun = performance.now();
        showMarkdown(document.createElement('div'), text);
        return (performance.now() - begun) / 1000;
    }})()"""
    assert any(markdown_window.js(script) < 10 for _ in range(3))


@pytest.fixture(scope="module")
def markdown_window(browser):
    server = ScriptedServer()
    page = browser.page(server.url)
    yield page
    page.close()
    server.close()


SHAPES = {
    "a\nb": "<p>a<br>b</p>",
    "**a *b* c** _d_ snake_case_name ~~e~~ 2 * 3 * 4": "<p><strong>a <em>b</em> c</strong> <em>d</em> snake_case_name <s>e</s> 2 * 3 * 4</p>",
    "***both***": "<p><em><strong>both</strong></em></p>",
    "`` a`b `` and \\*no\\*": "<p><code>a`b</code> and *no*</p>",
    "1. a\n2. b\n   - c\n\n   more\n3. d": "<ol><li><p>a</p></li><li><p>b</p><ul><li>c</li></ul><p>more</p></li>"
    "<li><p>d</p></li></ol>",
    "5) a\n6) b": '<ol start="5"><li>a</li><li>b</li></ol>',
    "- [x] a\n- [ ] b": '<ul><li><span>☑ </span>a</li><li><span>☐ </span>b</li></ul>',
    "- a\n\n- b\n\ntext": "<ul><li>a</li><li>b</li></ul><p>text</p>",
    "* a\n* b\n1. c": "<ul><li>a</li><li>b</li></ul><ol><li>c</li></ol>",
    "## H ##\ntext": "<h4>H</h4><p>text</p>",
    "> a\n> > b": "<blockquote><p>a</p><blockquote><p>b</p></blockquote></blockquote>",
    "a|b\n:-:|-:\n1|2\\|3": "<div><table><thead><tr><th>a</th><th>b</th></tr></thead><tbody><tr><td>1</td><td>2|3</td></tr></tbody></table></div>",
    "---\n***": "<hr><hr>",
    "Costs $5 and $6; $x_1 * y_1$ and \\(a*b*c\\)": "<p>Costs $5 and $6; <span>x_1 * y_1</span> and <span>a*b*c</span></p>",
    "$$\na_1\n$$": "<div>a_1</div>",
    "[t](https://a.b/c_(d) \"x\") <https://e.f> (https://g.h/i).": '<p><a href="https://a.b/c_(d)">t</a> <a href="https://e.f">https://e.f</a> '
    '(<a href="https://g.h/i">https://g.h/i</a>).</p>',
    "&amp; <b>": "<p>&amp;amp; &lt;b&gt;</p>",
}


@pytest.mark.parametrize("text", SHAPES)
def test_markdown(markdown_window, text):
    shape = markdown_window.js(f"""(() => {{
        const box = document.createElement('div');
        showMarkdown(box, {json.dumps(text)});
        for (const e of box.querySelectorAll('*'))
            for (const name of e.getAttributeNames()) if (name !== 'href' && name !== 'start') e.removeAttribute(name);
        return box.innerHTML;
    }})()""")
    assert shape == SHAPES[text]


def test_markdown_does_not_depend_on_how_the_text_came(markdown_window):
    text = "\n\n".join(SHAPES) + "\n```c\nint x;\n```\n"
    assert markdown_window.js(f"""(() => {{
        const text = {json.dumps(text)};
        const [whole, grown] = [document.createElement('div'), document.createElement('div')];
        showMarkdown(whole, text);
        for (let n = 0; n <= text.length; n++) showMarkdown(grown, text.slice(0, n));
        return whole.innerHTML === grown.innerHTML;
    }})()""")


def test_a_finished_block_stays_while_the_text_grows(markdown_window):
    assert markdown_window.js("""(() => {
        const box = document.createElement('div');
        showMarkdown(box, 'a\\n\\nb');
        const first = box.firstChild;
        showMarkdown(box, 'a\\n\\nb c');
        return box.firstChild === first && box.children.length === 2;
    })()""")


def test_what_is_kept_may_be_broken(window):
    page = window()
    page.js("""localStorage.setItem('moebius.chat.aaaa', '{');
               localStorage.setItem('moebius.chat.bbbb', JSON.stringify({messages: [null, {role: 'assistant', tool_calls: 5, usage: 7}, {role: 'x'}]}));
               localStorage.setItem('moebius.chat.cccc', '[]');
               localStorage.setItem('moebius.settings', '{"temperature": {}, "thinking": "no"}')""")
    page.reload()
    page.until("typeof livePanel !== 'undefined'")
    assert page.js("[conversations.length, settings.temperature, settings.thinking]") == [1, "", True]
    page.js("openConversation(conversations[0])")
    assert page.js("document.querySelectorAll('.message').length") == 1


def test_a_full_or_missing_storage_does_not_stop_the_page(window, server):
    server.answer = [["fine"]]
    page = window()
    page.js("Storage.prototype.setItem = () => { throw new DOMException('full', 'QuotaExceededError'); }")
    ask(page, "hello")
    is_answered(page)
    assert page.js(ANSWER) == "fine"
    assert "no room left" in page.js("byId('toast').innerText")


def test_export_import_delete_undo(window, server):
    server.answer = [["one"], ["two"]]
    page = window()
    ask(page, "first")
    is_answered(page)
    page.click("#new")
    ask(page, "second")
    is_answered(page)
    page.js("globalThis.saved = []; download = (name, type, text) => saved.push([name, text]); exportAll(); byId('export-text').click()")
    (name, body), (text_name, text) = page.js("saved")
    assert name == "moebius-conversations.json" and len(json.loads(body)["conversations"]) == 2
    assert text_name == "second.md" and text == "# second\n\n## You\n\nsecond\n\n## Answer\n\ntwo\n"
    page.click("#conversations li .icon-button")
    assert page.js("[conversations.length, document.querySelectorAll('.message').length]") == [1, 0]
    page.click(".toast button")
    assert page.js("conversations.length") == 2
    page.js("deleteAll()")
    page.reload()
    assert page.js("conversations.length") == 0
    page.js(f"importFile(new File([{json.dumps(body)}], 'a.json'))")
    page.until("conversations.length === 2")
    page.js("importFile(new File(['{}'], 'b.json'))")
    page.until("byId('toast').innerText.startsWith('b.json cannot be imported')")


def test_two_windows_share_the_list(window, server):
    server.answer = [["one"]]
    page = window()
    frame = page.js(f"""new Promise((done) => {{ globalThis.other = window.open({json.dumps(server.url)}); setTimeout(() => done(!!other), 500); }})""")
    if not frame:
        pytest.skip("this browser opens no second window")
    page.until("other.document.readyState === 'complete' && other.document.getElementById('prompt')")
    ask(page, "seen by both")
    is_answered(page)
    page.until("other.document.querySelector('#conversations').innerText.includes('seen by both')")
    page.js("other.close()")


def test_metrics_are_read(window, server):
    page = window()
    assert page.js("""(() => {
        const families = parseMetrics('# HELP x\\nvllm:num_requests_running{engine="0",model_name="a} b"} 3\\n'
            + 'vllm:num_requests_running{engine="1"} 4.0 1700000000\\nvllm:x_bucket{le="+Inf"} 1e3\\nbroken\\n');
        return [metric(families, 'num_requests_running'), metric(families, 'x_bucket'), String(metric(families, 'none'))];
    })()""") == [7, 1000, "NaN"]
    c = server.counters
    c.update(num_requests_running=3, num_requests_waiting=2, kv_cache_usage_perc=0.425)
    page.until("livePanel.history.length > 0")
    c.update(prefix_cache_queries_total=200, prefix_cache_hits_total=150, time_to_first_token_seconds_sum=0.5,
             time_to_first_token_seconds_count=10, inter_token_latency_seconds_sum=1, inter_token_latency_seconds_count=100)
    page.until("[...document.querySelectorAll('#plots dd')].map((e) => e.innerText).slice(4).join() === '42.5 %,75 %,50 ms,10 ms'")
    page.until("[...document.querySelectorAll('#plots dd')].map((e) => e.innerText).slice(0, 2).join() === '3,2'")
    c["generation_tokens_total"] = 5000
    page.until("livePanel.history.some((v) => v.tokens[0] > 100)")


def test_the_panel_tells_why_it_is_empty(window, server):
    page = window()
    server.counters = {}
    page.expected |= {"Failed to load resource: the server responded with a status of 404 (Not Found)",
                      "Failed to load resource: net::ERR_CONNECTION_REFUSED",
                      "Failed to load resource: net::ERR_EMPTY_RESPONSE"}
    page.until("byId('live-state').innerText === 'This server has no /metrics'")
    server.close()
    page.until("byId('live-state').innerText === 'No connection'")
    ask(page, "anyone?")
    page.until(f"{IDLE} && document.querySelector('.note')")
    assert page.js("document.querySelector('.note').innerText") == "The server does not answer. Is it running?"
