/* store.js - conversations and settings, kept in this browser. Each conversation has an entry of its own, so two
 * windows do not overwrite each other's. Where the browser keeps nothing (private windows), memory serves. */

const KEEP = "moebius.";
const memory = new Map();
let keepsData = true;

function readItem(key) {
  try {
    const text = localStorage.getItem(KEEP + key);
    return text === null ? memory.get(key) ?? null : text;
  } catch {
    return memory.get(key) ?? null;
  }
}

function writeItem(key, text) {
  try {
    localStorage.setItem(KEEP + key, text);
    memory.delete(key);
  } catch {
    memory.set(key, text);
    if (keepsData) toast("This browser has no room left: export or delete conversations, or they end with this page.");
    keepsData = false;
  }
}

function removeItem(key) {
  memory.delete(key);
  try {
    localStorage.removeItem(KEEP + key);
  } catch { /* then it was in memory */ }
}

function readJson(key, fallback) {
  try {
    return JSON.parse(readItem(key)) ?? fallback;
  } catch {
    return fallback;
  }
}

function allKeys() {
  const keys = new Set(memory.keys());
  try {
    for (let i = 0; i < localStorage.length; i++) {
      const key = localStorage.key(i);
      if (key.startsWith(KEEP)) keys.add(key.slice(KEEP.length));
    }
  } catch { /* memory alone */ }
  return [...keys];
}

/* ---- Conversations: {id, title, changed, messages: [{role, content, ...}]} */

function newConversation() {
  const id = Date.now().toString(36) + Math.floor(Math.random() * 1e9).toString(36);
  return { id, title: "", changed: Date.now(), messages: [] };
}

/* What an import or an older page may hold: anything. Answers a conversation, or null. */
function checkedConversation(value) {
  if (typeof value !== "object" || value === null || !Array.isArray(value.messages)) return null;
  const text = (v) => (typeof v === "string" ? v : "");
  const messages = value.messages.filter((m) => m && ["user", "assistant", "tool"].includes(m.role)).map((m) => ({
    ...m,
    content: text(m.content),
    reasoning: text(m.reasoning),
    note: text(m.note),
    error: text(m.error),
    tool_calls: (Array.isArray(m.tool_calls) ? m.tool_calls : []).filter((c) => c && typeof c === "object")
      .map((c) => ({ id: text(c.id), name: text(c.name), arguments: text(c.arguments) })),
    usage: typeof m.usage === "object" ? m.usage : null,
  }));
  const id = /^[a-z0-9]{4,40}$/.test(value.id) ? value.id : newConversation().id;
  return { id, title: text(value.title).slice(0, 200), changed: Number(value.changed) || Date.now(), messages };
}

function loadConversations() {
  return allKeys().filter((key) => key.startsWith("chat.")).map((key) => checkedConversation(readJson(key, null)))
    .filter((c) => c !== null).sort((a, b) => b.changed - a.changed);
}

function saveConversation(conversation) {
  if (conversation.messages.length) writeItem("chat." + conversation.id, JSON.stringify(conversation));
}

function titleOf(conversation) {
  if (conversation.title) return conversation.title;
  const first = conversation.messages.find((m) => m.role === "user");
  const line = first ? first.content.trim().split("\n")[0] : "";
  return line.length > 80 ? line.slice(0, 79) + "…" : line || "New conversation";
}

/* A conversation as a markdown text, for people. */
function conversationText(conversation) {
  const parts = ["# " + titleOf(conversation)];
  for (const m of conversation.messages) {
    parts.push("## " + { user: "You", assistant: "Answer", tool: "Tool result" }[m.role]);
    for (const call of m.tool_calls || []) parts.push("Tool call `" + call.name + "`:\n\n```json\n" + call.arguments + "\n```");
    if (m.content) parts.push(m.content);
  }
  return parts.join("\n\n") + "\n";
}

/* ---- Settings: empty fields are not sent, so the server's defaults hold. */

const NO_SETTINGS = { system: "", temperature: "", top_p: "", top_k: "", max_tokens: "", seed: "", tools: "", thinking: true };

function loadSettings() {
  const found = readJson("settings", {});
  const settings = { ...NO_SETTINGS };
  for (const key of Object.keys(settings)) if (typeof found[key] === typeof settings[key]) settings[key] = found[key];
  return settings;
}

function saveSettings(settings) {
  writeItem("settings", JSON.stringify(settings));
}
