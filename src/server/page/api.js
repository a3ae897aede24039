/* api.js - the server: requests, server-sent events, and errors as sentences. */

/* The key of a server that wants one; kept until the window closes. */
function apiKey() {
  try {
    return sessionStorage.getItem(KEEP + "key") || "";
  } catch {
    return memory.get("key") || "";
  }
}

function setApiKey(key) {
  try {
    sessionStorage.setItem(KEEP + "key", key);
  } catch {
    memory.set("key", key);
  }
}

class ServerError extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

async function call(path, options) {
  const headers = { ...(options || {}).headers };
  if (apiKey()) headers.Authorization = "Bearer " + apiKey();
  let response;
  try {
    response = await fetch(path, { ...options, headers, cache: "no-store" });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ServerError(0, "The server does not answer. Is it running?");
  }
  if (!response.ok) throw new ServerError(response.status, await errorSentence(response));
  return response;
}

async function errorSentence(response) {
  const text = await response.text().catch(() => "");
  if (response.status === 401) return "The server wants an API key.";
  try {
    const body = JSON.parse(text);
    const message = (body.error && body.error.message) || body.message || body.detail;
    if (typeof message === "string" && message) return message;
  } catch { /* no JSON */ }
  if (response.status === 503) return "The server is busy or shutting down. Try again in a moment.";
  return "The server answered " + response.status + (text && text.length < 300 ? ": " + text : ".");
}

/* The data of every event of a response, as text. Events may be cut anywhere between two reads, within a character too. */
async function* serverEvents(response) {
  const reader = response.body.getReader();
  const decoder = new TextDecoder();
  let rest = "";
  let data = [];
  try {
    for (;;) {
      const { done, value } = await reader.read();
      rest += decoder.decode(value || new Uint8Array(), { stream: !done });
      const lines = rest.split(/\r\n|\n|\r(?!$)/);
      rest = done ? "" : lines.pop();
      for (const line of lines) {
        if (line.startsWith("data:")) data.push(line.slice(line[5] === " " ? 6 : 5));
        else if (line === "" && data.length) {
          yield data.join("\n");
          data = [];
        }
      }
      if (done) break;
    }
    if (data.length) yield data.join("\n");
  } finally {
    reader.cancel().catch(() => {});
  }
}

/* The chunks of a chat completion. A stream that ends without [DONE] was cut off. */
async function* chatChunks(body, signal) {
  const response = await call("v1/chat/completions", {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify(body),
    signal,
  });
  for await (const data of serverEvents(response)) {
    if (data === "[DONE]") return;
    const chunk = JSON.parse(data);
    if (chunk.error) throw new ServerError(500, chunk.error.message || "The server reported an error.");
    yield chunk;
  }
  throw new ServerError(0, "The connection ended before the answer did.");
}

/* [{id, max_model_len}, ...] */
async function servedModels() {
  const body = await (await call("v1/models")).json();
  return Array.isArray(body.data) ? body.data.filter((m) => typeof m.id === "string") : [];
}

/* The settings and messages as the body of a request. Throws a sentence when the tools are not JSON. */
function requestBody(model, messages, settings) {
  const body = { model, messages: [], stream: true, stream_options: { include_usage: true } };
  if (settings.system.trim()) body.messages.push({ role: "system", content: settings.system });
  for (const m of messages) {
    if (m.role === "tool") body.messages.push({ role: "tool", tool_call_id: m.tool_call_id, content: m.content });
    else if (m.role === "user") body.messages.push({ role: "user", content: m.content });
    else if (m.content || m.tool_calls.length) body.messages.push(assistantMessage(m));
  }
  for (const key of ["temperature", "top_p", "top_k", "max_tokens", "seed"])
    if (settings[key] !== "") body[key] = Number(settings[key]);
  if (settings.tools.trim()) {
    try {
      body.tools = JSON.parse(settings.tools);
    } catch (error) {
      throw new ServerError(0, "The tools in the parameters are not JSON: " + error.message);
    }
  }
  body.chat_template_kwargs = { enable_thinking: settings.thinking };
  return body;
}

function assistantMessage(m) {
  const message = { role: "assistant", content: m.content };
  if (m.tool_calls.length)
    message.tool_calls = m.tool_calls.map((c) => ({ id: c.id, type: "function", function: { name: c.name, arguments: c.arguments } }));
  return message;
}
