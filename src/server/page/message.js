/* message.js - one message as elements: what a person asked, an answer with its thinking and its tool calls. */

class MessageView {
  /* `actions` are the conversation's: retry(message), edit(message, text), giveResult(message, call, text). */
  constructor(message, actions) {
    this.message = message;
    this.actions = actions;
    this.element = h("article.message." + message.role, { tabindex: "-1" });
    if (message.role === "assistant") this.buildAnswer();
    else this.buildText();
  }

  /* ---- A person's message, or a tool's result */

  buildText() {
    const { message, element } = this;
    const isTool = message.role === "tool";
    element.setAttribute("aria-label", isTool ? "Tool result" : "You");
    const text = h("div.bubble", {}, message.content);
    if (isTool) {
      element.replaceChildren(h("div.tool-result", {}, h("div.tool-name", {}, "Result of ", h("code", {}, message.name || "tool")), text));
      return;
    }
    const tools = h("div.actions", {},
      iconButton("copy", "Copy message", (event) => copyText(message.content, event.currentTarget)),
      iconButton("edit", "Edit message", () => this.beginEdit()));
    element.replaceChildren(text, tools);
  }

  beginEdit() {
    const field = h("textarea", { "aria-label": "Edit message", rows: "1" });
    field.value = this.message.content;
    const cancel = () => {
      this.buildText();
      this.element.querySelector("[aria-label='Edit message']").focus();
    };
    const send = () => {
      if (field.value.trim()) this.actions.edit(this.message, field.value);
    };
    field.addEventListener("keydown", (event) => {
      if (event.key === "Escape") {
        event.stopPropagation();
        cancel();
      } else if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
        event.preventDefault();
        send();
      }
    });
    field.addEventListener("input", () => growField(field));
    this.element.replaceChildren(h("div.editor", {}, field, h("div.row", {},
      h("button.quiet", { type: "button", onclick: cancel }, "Cancel"),
      h("button.primary", { type: "button", onclick: send }, "Send again"))));
    growField(field);
    field.focus();
    field.setSelectionRange(field.value.length, field.value.length);
  }

  /* ---- An answer */

  buildAnswer() {
    this.element.setAttribute("aria-label", "Answer");
    this.summary = h("span.label", {}, "Thinking");
    this.thoughtText = h("div.markdown");
    this.thought = h("details.thought", { hidden: true }, h("summary", {}, icon("chevron"), this.summary), this.thoughtText);
    this.text = h("div.markdown");
    this.calls = h("div.calls");
    this.wait = h("div.wait", { hidden: true }, h("span.dot", { "aria-hidden": "true" }), h("span", {}, "Waiting for the first token"));
    this.note = h("p.note", { hidden: true });
    this.foot = h("div.foot", { hidden: true });
    this.element.append(this.thought, this.text, this.calls, this.wait, this.note, this.foot);
    this.update(false);
  }

  /* Shows the message as it is now; `running` while tokens still come. */
  update(running) {
    const m = this.message;
    const isThinking = running && m.reasoning && !m.content && !m.tool_calls.length;
    this.element.setAttribute("aria-busy", String(running));
    this.element.classList.toggle("thinking", Boolean(isThinking));
    this.thought.hidden = !m.reasoning;
    if (m.reasoning) {
      const seconds = m.usage && m.usage.thought_seconds;
      this.summary.textContent = isThinking ? "Thinking…" : seconds ? "Thought for " + shortTime(seconds) : "Thought";
      showMarkdown(this.thoughtText, m.reasoning);
    }
    showMarkdown(this.text, m.content);
    this.showCalls(running);
    this.wait.hidden = !(running && !m.reasoning && !m.content && !m.tool_calls.length);
    this.note.hidden = !(m.note || m.error) || running;
    this.note.className = m.error ? "note error" : "note";
    if (m.error) this.note.setAttribute("role", "alert");
    this.note.textContent = m.error || m.note;
    this.foot.hidden = running;
    if (!running) this.showFoot();
  }

  showCalls(running) {
    const calls = this.message.tool_calls;
    calls.forEach((call, i) => {
      let card = this.calls.children[i];
      if (!card) {
        card = h("section.call", {}, h("h3.tool-name", {}, icon("tool"), h("code")), h("pre", { tabindex: "0" }, h("code")));
        this.calls.append(card);
      }
      card.setAttribute("aria-label", "Tool call " + call.name);
      card.querySelector(".tool-name code").textContent = call.name;
      card.querySelector("pre").setAttribute("aria-label", "Arguments of " + call.name);
      card.querySelector("pre code").textContent = prettyJson(call.arguments, running);
      if (!running && !card.querySelector("form") && this.actions.wantsResult(this.message, call)) card.append(this.resultForm(call));
    });
  }

  resultForm(call) {
    const field = h("textarea", { rows: "1", "aria-label": "Result of " + call.name, placeholder: "What the tool answers" });
    field.addEventListener("input", () => growField(field));
    return h("form", {
      onsubmit: (event) => {
        event.preventDefault();
        this.actions.giveResult(this.message, call, field.value);
      },
    }, field, h("button.primary", { type: "submit" }, "Give result"));
  }

  showFoot() {
    const m = this.message;
    const facts = h("span.facts", {}, factsOf(m.usage));
    this.foot.replaceChildren(h("div.actions", {},
      iconButton("copy", "Copy answer", (event) => copyText(m.content, event.currentTarget)),
      iconButton("retry", "Retry", () => this.actions.retry(m))), facts);
  }
}

function prettyJson(text, running) {
  if (running) return text;
  try {
    return JSON.stringify(JSON.parse(text), null, 2);
  } catch {
    return text;
  }
}

/* "142 tokens · 1,831 tokens/s · first after 12 ms · 64 of 80 prompt tokens cached" */
function factsOf(usage) {
  if (!usage) return "";
  const parts = [];
  const count = (n, noun) => n.toLocaleString("en-US") + " " + noun + (n === 1 ? "" : "s");
  if (usage.n_tokens > 0) parts.push(count(usage.n_tokens, "token"));
  if (usage.tok_s > 0) parts.push(shortNumber(usage.tok_s) + " tokens/s");
  if (usage.first_seconds > 0) parts.push("first after " + shortTime(usage.first_seconds));
  if (usage.n_cached > 0) parts.push(usage.n_cached.toLocaleString("en-US") + " of " + count(usage.n_prompt, "prompt token") + " cached");
  return parts.join(" · ");
}

function growField(field) {
  field.style.height = "auto";
  field.style.height = Math.min(field.scrollHeight + 2, window.innerHeight * 0.4) + "px";
}
