"""By keyboard, by screen reader, in the dark, on a phone, without motion."""

import collections
import re
import threading

import pytest
from test_page_chat import ANSWER, IDLE, ask, is_answered

CONTROLS = {"button", "textbox", "link", "combobox", "switch", "spinbutton", "listbox", "checkbox", "DisclosureTriangle"}
ANSWER_TEXT = """Here is a **short** comparison, with `code`.

| Engine | Batch | Tokens/s |
|:--|--:|--:|
| moebius | 64 | 8,412 |
| other | 64 | 7,110 |

### How it works

1. The scheduler plans a step: *decodes first*.
2. Prefill chunks follow, up to the budget.
   - as many as fit
   - in order of arrival

```c
for (int i = 0; i < n; i++)
    total += x[i]; /* always in this order, so that the same inputs give the same bits on every machine */
```

> A sequence gets the same tokens alone and in any batch.

See [the documentation](https://example.org/docs).
"""
# Text whose contrast with what is behind it is less than 4.5, or 3 where it is large.
LOW_CONTRAST = """(() => {
    const rgb = (text) => (text.match(/[\\d.]+/g) || [0, 0, 0, 0]).map(Number);
    const light = ([r, g, b]) => [r, g, b].map((v) => v / 255).map((v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
        .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
    const behind = (element) => {
        for (let e = element; e; e = e.parentElement) {
            const color = rgb(getComputedStyle(e).backgroundColor);
            if (color.length < 4 || color[3] > 0.99) return color;
        }
        return rgb(getComputedStyle(document.body).backgroundColor);
    };
    const found = [];
    const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    while (walker.nextNode()) {
        const element = walker.currentNode.parentElement;
        if (!walker.currentNode.data.trim() || ['SCRIPT', 'STYLE', 'OPTION'].includes(element.tagName)) continue;
        if (!element.checkVisibility({ visibilityProperty: true }) || element.closest('.sr, .skip')) continue;
        const style = getComputedStyle(element);
        const [a, b] = [light(rgb(style.color)), light(behind(element))].sort((x, y) => y - x);
        const ratio = (a + 0.05) / (b + 0.05);
        const size = parseFloat(style.fontSize);
        const isLarge = size >= 24 || (size >= 18.6 && Number(style.fontWeight) >= 700);
        if (ratio < (isLarge ? 3 : 4.5)) found.push([walker.currentNode.data.trim().slice(0, 40), Math.round(ratio * 100) / 100]);
    }
    return found;
})()"""
OUTSIDE = """[...document.querySelectorAll('main *, header *, dialog[open] *, .list-open #list *, .live-open #live *')]
    .filter((e) => e.checkVisibility() && !e.closest('.sr, .table, pre, svg, #conversations') && e.getBoundingClientRect().right > innerWidth + 1)
    .map((e) => e.outerHTML.slice(0, 80))"""


def tell(page, server):
    """A conversation that shows everything there is."""
    server.answer = [
        [{"reasoning_content": "The person asks for a comparison.\n\nA table is best."}, *re.findall(r"\s*\S+", ANSWER_TEXT)],
        [{"tool_calls": [{"index": 0, "id": "c", "function": {"name": "weather", "arguments": '{"city": "Paris"}'}}]}],
    ]
    ask(page, "Compare the engines, and tell how it works")
    is_answered(page)
    ask(page, "And the weather?")
    is_answered(page, 2)
    page.js("document.querySelector('.thought').open = true")


@pytest.fixture
def told(window, server):
    def start(**options):
        page = window(**options)
        tell(page, server)
        return page

    return start


def nameless(page):
    return [(role, name) for role, name in page.names() if role in CONTROLS and not name.strip()]


def test_every_control_has_a_name(told, picture):
    page = told()
    names = page.names()
    assert len([1 for role, _ in names if role in CONTROLS]) > 15
    assert nameless(page) == []
    landmarks = {role for role, _ in names}
    assert {"banner", "navigation", "main", "complementary", "log", "article", "heading", "table", "switch"} <= landmarks
    repeated = [i for i, n in collections.Counter(page.js("[...document.querySelectorAll('[id]')].map((e) => e.id)")).items() if n > 1]
    assert repeated == []
    dangling = page.js("""[...document.querySelectorAll('[aria-labelledby], [aria-describedby], [aria-controls], label[for]')].flatMap((e) =>
        ['aria-labelledby', 'aria-describedby', 'aria-controls', 'for'].map((n) => e.getAttribute(n)).filter((id) => id && !byId(id)))""")
    assert dangling == []
    page.click("#open-settings")
    page.js("document.querySelector('#settings details').open = true")
    assert nameless(page) == []
    assert ("dialog", "Parameters") in page.names()
    page.key("Escape")
    page.click(".message.user [aria-label='Edit message']")
    assert nameless(page) == []


def test_contrast_in_the_light_and_in_the_dark(told, picture):
    page = told()
    for scheme in ("light", "dark"):
        page.media(**{"prefers-color-scheme": scheme, "prefers-reduced-motion": "reduce"})
        assert page.js(LOW_CONTRAST) == [], scheme
        page.js("chat.scroller.scrollTop = 0")
        picture(page, f"conversation-{scheme}")
        page.js("toast('Conversation deleted.', {label: 'Undo', run() {}}); byId('settings').showModal(); byId('settings').querySelector('details').open = true")
        assert page.js(LOW_CONTRAST) == [], scheme
        picture(page, f"parameters-{scheme}")
        page.js("byId('settings').close()")


def test_the_keyboard_is_enough(window, server, picture):
    server.answer = [["one"], ["two"], ["three"], [threading.Event()]]
    page = window()
    order = []
    page.js("document.activeElement.blur(); document.body.tabIndex = -1; document.body.focus()")
    for _ in range(40):
        page.key("Tab")
        place = page.js("""(() => { const e = document.activeElement; const s = getComputedStyle(e);
            return [e.id || e.className || e.innerText, e === document.body || s.outlineStyle !== 'none' || e.id === 'prompt']; })()""")
        if place[0] in [name for name, _ in order] or place[0] == "":
            break
        order.append(place)
    assert [name for name, _ in order if name in ("skip", "toggle-list", "open-settings", "toggle-live", "new", "prompt", "think", "send")] == [
        "skip", "toggle-list", "open-settings", "toggle-live", "new", "prompt", "think", "send"]
    assert all(visible for _, visible in order), order
    page.js("document.querySelector('.skip').focus()")
    picture(page, "skip-link")
    page.key("Enter")
    assert page.js("document.activeElement.id") == "prompt"
    page.type("first line")
    page.key("Enter", 8)  # Shift
    page.type("second line")
    page.key("Enter")
    is_answered(page)
    assert server.requests[0]["messages"][0]["content"] == "first line\nsecond line"
    page.key("ArrowUp")
    assert page.js("document.activeElement.value") == "first line\nsecond line"
    page.type("!")
    page.key("Enter")
    page.until(f"{IDLE} && {ANSWER} === 'two'")
    assert page.js("document.activeElement.id") == "prompt"
    page.key("o", 2 | 8)  # Control, Shift
    assert page.js("document.querySelectorAll('.message').length") == 0
    page.key("Tab")
    page.key(" ")
    assert page.js("[document.activeElement.id, settings.thinking]") == ["think", False]
    ask(page, "go")
    is_answered(page)
    ask(page, "on")
    page.until("!byId('stop').hidden")
    page.key("Escape")
    page.until(IDLE)
    assert page.js("document.activeElement.id") == "prompt"
    page.js("byId('open-settings').focus()")
    page.key("Enter")
    page.until("byId('settings').open")
    page.key("Escape")
    page.until("!byId('settings').open && document.activeElement.id === 'open-settings'")


def test_an_input_method_is_not_cut_off(window, server):
    page = window()
    page.js("""byId('prompt').value = 'に';
        byId('prompt').dispatchEvent(new KeyboardEvent('keydown', {key: 'Enter', isComposing: true, bubbles: true, cancelable: true}))""")
    assert page.js("[byId('prompt').value, document.querySelectorAll('.message').length]") == ["に", 0]


def test_no_motion_when_none_is_wanted(window, server):
    server.answer = [[threading.Event()]]
    page = window()
    ask(page, "wait")
    page.until("document.querySelector('.dot')")
    assert page.js("getComputedStyle(document.querySelector('.dot')).animationName") == "breathe"
    page.media(**{"prefers-reduced-motion": "reduce"})
    assert page.js("getComputedStyle(document.querySelector('.dot')).animationName") == "none"


@pytest.mark.parametrize("width,height", [(390, 844), (320, 568), (844, 390)])
def test_a_phone(told, server, picture, width, height):
    page = told(width=width, height=height, phone=True)
    name = f"phone-{width}"
    assert page.js("[scrollX, document.scrollingElement.scrollWidth <= innerWidth]") == [0, True]
    assert page.js(OUTSIDE) == []
    page.js("chat.scroller.scrollTop = 0")
    picture(page, name)
    small = page.js("""[...document.querySelectorAll('button')].filter((e) => e.checkVisibility()).map((e) => [e.getAttribute('aria-label') || e.innerText,
        e.getBoundingClientRect().width, e.getBoundingClientRect().height]).filter(([, w, h]) => w < 28 || h < 28)""")
    assert small == []
    assert page.js("[byId('list').inert, byId('live').inert, byId('list').checkVisibility()]") == [True, True, False]
    page.click("#toggle-live")
    assert page.js("[byId('live').checkVisibility(), byId('toggle-live').getAttribute('aria-expanded'), OUT()]".replace("OUT()", OUTSIDE)) == [True, "true", []]
    picture(page, f"{name}-live")
    page.key("Escape")
    assert page.js("[byId('live').checkVisibility(), document.activeElement.id]") == [False, "toggle-live"]
    page.click("#toggle-list")
    assert page.js("[byId('list').checkVisibility(), byId('list').contains(document.activeElement)]") == [True, True]
    picture(page, f"{name}-list")
    page.click("#new")
    assert page.js("[byId('list').checkVisibility(), document.querySelectorAll('.message').length]") == [False, 0]
    page.click("#open-settings")
    assert page.js(OUTSIDE) == []
    picture(page, f"{name}-parameters")


def test_the_end_is_followed_unless_one_reads_above(window, server, picture):
    more = threading.Event()
    server.answer = [["line\n\n" * 60, more, "the end"]]
    page = window(height=600)
    ask(page, "long")
    page.until("chat.scroller.scrollTop > 500 && chat.follow")
    page.js("chat.scroller.scrollTop = 100")
    page.until("!chat.follow && !byId('newest').hidden")
    more.set()
    is_answered(page)
    assert page.js("chat.scroller.scrollTop") == 100
    picture(page, "reading-above")
    page.click("#newest")
    page.until("byId('newest').hidden && chat.scroller.scrollTop > 500")
