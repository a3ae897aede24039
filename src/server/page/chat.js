/* chat.js - the conversation that is shown, and the answer that is being made. */

const SAVE_MS = 1000;

class Chat {
  /* `changed` is called when the list of conversations should be drawn anew. */
  constructor(settings, model, changed) {
    this.settings = settings;
    this.model = model; // () -> promise of a name
    this.changed = changed;
    this.views = new Map(); // message -> MessageView, of the conversation shown
    this.run = null;        // {conversation, message, controller}
    this.follow = true;
    this.log = byId("log");
    this.scroller = byId("scroller");
    this.scroller.addEventListener("scroll", () => this.noteScroll());
    byId("newest").addEventListener("click", () => this.scrollToEnd());
  }

  show(conversation) {
    this.conversation = conversation;
    this.views.clear();
    this.log.replaceChildren();
    this.showMessages();
    this.scrollToEnd();
  }

  /* Draws messages that have no view and drops views whose messages are gone. */
  showMessages() {
    const messages = this.conversation.messages;
    for (const [message, view] of this.views) {
      if (messages.includes(message)) continue;
      view.element.remove();
      this.views.delete(message);
    }
    for (const message of messages) {
      if (this.views.has(message)) continue;
      const view = new MessageView(message, this);
      this.views.set(message, view);
      this.log.append(view.element);
      if (this.run && this.run.message === message) view.update(true);
    }
    byId("welcome").hidden = messages.length > 0;
    this.showRunning();
  }

  showRunning() {
    const isHere = this.run !== null && this.run.conversation === this.conversation;
    document.body.classList.toggle("running", isHere);
    byId("send").hidden = isHere;
    byId("stop").hidden = !isHere;
  }

  /* ---- What a person does */

  send(text) {
    if (!text.trim() || this.run) return false;
    this.conversation.messages.push({ role: "user", content: text.trim() });
    this.answer();
    return true;
  }

  stop() {
    if (this.run) this.run.controller.abort();
  }

  retry(message) {
    if (this.run) return;
    this.dropFrom(message);
    this.answer();
  }

  edit(message, text) {
    if (this.run) return;
    this.dropFrom(message);
    this.send(text);
    byId("prompt").focus();
  }

  /* Removes the message and what follows. More than a question and its answer can be had back. */
  dropFrom(message) {
    const conversation = this.conversation;
    const at = conversation.messages.indexOf(message);
    if (at < 0) return;
    const dropped = conversation.messages.splice(at);
    if (dropped.length > 2) toast("Later messages were replaced.", { label: "Undo", run: () => this.restore(conversation, at, dropped) });
  }

  restore(conversation, at, dropped) {
    if (this.run && this.run.conversation === conversation) this.stop();
    conversation.messages.splice(at, Infinity, ...dropped);
    saveConversation(conversation);
    if (conversation === this.conversation) this.show(conversation);
    this.changed();
  }

  /* Whether a call of a tool still waits for its result: only those of the last answer do. */
  wantsResult(message, call) {
    const after = this.conversation.messages.slice(this.conversation.messages.indexOf(message) + 1);
    return after.every((m) => m.role === "tool") && !after.some((m) => m.tool_call_id === call.id);
  }

  giveResult(message, call, text) {
    if (this.run) return;
    this.conversation.messages.push({ role: "tool", tool_call_id: call.id, name: call.name, content: text });
    const view = this.views.get(message);
    view.calls.children[message.tool_calls.indexOf(call)].querySelector("form").remove();
    if (message.tool_calls.some((c) => this.wantsResult(message, c))) {
      this.save();
      this.showMessages();
    } else {
      this.answer();
    }
  }

  /* ---- An answer to the messages so far */

  async answer() {
    const conversation = this.conversation;
    const message = { role: "assistant", content: "", reasoning: "", tool_calls: [], note: "", error: "", usage: null };
    const run = { conversation, message, controller: new AbortController() };
    const before = conversation.messages.slice();
    conversation.messages.push(message);
    conversation.changed = Date.now();
    this.run = run;
    this.follow = true;
    this.showMessages();
    this.scrollToEnd();
    this.save();
    this.changed();
    announce("Answering");
    try {
      await this.read(run, requestBody(await this.model(), before, this.settings()));
    } catch (error) {
      if (error.name === "AbortError") message.note = "Stopped.";
      else message.error = error instanceof ServerError ? error.message : "The server's answer could not be read: " + error.message;
      if (error.status === 401) byId("key").dispatchEvent(new Event("wanted"));
    }
    cancelAnimationFrame(this.frame);
    this.run = null;
    saveConversation(conversation);
    this.redraw(message, false);
    this.showRunning();
    this.changed();
    announce(message.error || message.note || message.content || "The model calls a tool");
    if (document.activeElement === document.body && !isDrawer("list")) byId("prompt").focus(); // the stop button is gone
  }

  async read(run, body) {
    const m = run.message;
    const clock = { begun: performance.now(), first: 0, last: 0, text: 0 };
    let saved = clock.begun;
    m.usage = { n_tokens: 0 };
    for await (const chunk of chatChunks(body, run.controller.signal)) {
      const now = performance.now();
      const choice = (chunk.choices || [])[0];
      if (choice && takeDelta(m, choice.delta || {})) {
        clock.first = clock.first || now;
        clock.last = now;
        if (m.content) clock.text = clock.text || now;
        m.usage.n_tokens++;
      }
      if (choice && choice.finish_reason === "length") m.note = "The answer reached the token limit.";
      if (chunk.usage) takeUsage(m.usage, chunk.usage);
      takeTimes(m, clock);
      this.redrawSoon(m);
      if (now - saved > SAVE_MS) {
        saved = now;
        saveConversation(run.conversation);
      }
    }
  }

  /* ---- Drawing while tokens come: once for each frame */

  redrawSoon(message) {
    if (this.pending) return;
    this.pending = true;
    this.frame = requestAnimationFrame(() => {
      this.pending = false;
      if (this.run) this.redraw(message, true);
    });
  }

  redraw(message, running) {
    this.pending = false;
    const view = this.views.get(message);
    if (!view) return;
    view.update(running);
    if (this.follow) this.scrollToEnd();
  }

  noteScroll() {
    const box = this.scroller;
    this.follow = box.scrollHeight - box.scrollTop - box.clientHeight < 60;
    byId("newest").hidden = this.follow;
  }

  scrollToEnd() {
    this.scroller.scrollTop = this.scroller.scrollHeight;
    this.follow = true;
    byId("newest").hidden = true;
  }

  save() {
    saveConversation(this.conversation);
  }
}

/* Adds what a chunk brings; true when it brings something. */
function takeDelta(message, delta) {
  const text = typeof delta.content === "string" ? delta.content : "";
  const thought = delta.reasoning_content ?? delta.reasoning;
  message.content += text;
  if (typeof thought === "string") message.reasoning += thought;
  for (const part of delta.tool_calls || []) {
    const at = Number.isInteger(part.index) && part.index >= 0 && part.index < 128 ? part.index : 0;
    while (message.tool_calls.length <= at) message.tool_calls.push({ id: "", name: "", arguments: "" });
    const call = message.tool_calls[at];
    call.id = part.id || call.id;
    if (part.function && part.function.name) call.name = part.function.name;
    if (part.function && part.function.arguments) call.arguments += part.function.arguments;
  }
  return Boolean(text || thought || (delta.tool_calls || []).length);
}

function takeUsage(usage, given) {
  usage.n_tokens = given.completion_tokens || usage.n_tokens;
  usage.n_prompt = given.prompt_tokens || 0;
  usage.n_cached = (given.prompt_tokens_details || {}).cached_tokens || 0;
}

function takeTimes(message, clock) {
  if (!clock.first) return;
  const seconds = (clock.last - clock.first) / 1000;
  message.usage.first_seconds = (clock.first - clock.begun) / 1000;
  if (message.reasoning) message.usage.thought_seconds = ((clock.text || clock.last) - clock.first) / 1000;
  if (seconds > 0 && message.usage.n_tokens > 1) message.usage.tok_s = (message.usage.n_tokens - 1) / seconds;
}
