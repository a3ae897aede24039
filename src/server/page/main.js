/* main.js - the frame around the conversation: list, parameters, model, key, keyboard. */

let settings = loadSettings();
let conversations = loadConversations();
let models = [];
let modelsAsked; // settled when the first list of models has come, or failed

const chat = new Chat(() => settings, chosenModel, drawList);

/* ---- The list of conversations */

function drawList() {
  writeItem("shown", chat.conversation.id);
  conversations.sort((a, b) => b.changed - a.changed);
  if (chat.conversation.messages.length && !conversations.includes(chat.conversation)) conversations.unshift(chat.conversation);
  const focused = document.activeElement && document.activeElement.closest("#conversations li");
  const focusedId = focused && focused.dataset.id;
  byId("conversations").replaceChildren(...conversations.map(listEntry));
  if (focusedId) {
    const entry = [...byId("conversations").children].find((li) => li.dataset.id === focusedId);
    if (entry) entry.querySelector("button").focus();
  }
  byId("no-conversations").hidden = conversations.length > 0;
  const title = titleOf(chat.conversation);
  document.title = chat.conversation.messages.length ? title + " · moebius" : "moebius";
}

function listEntry(conversation) {
  const isShown = conversation === chat.conversation;
  const open = h("button.title", { type: "button", "aria-current": isShown ? "page" : null, onclick: () => openConversation(conversation) },
    titleOf(conversation));
  const remove = iconButton("trash", "Delete conversation: " + titleOf(conversation), () => deleteConversation(conversation));
  const element = h("li", {}, open, remove);
  element.dataset.id = conversation.id;
  return element;
}

function openConversation(conversation) {
  chat.show(conversation);
  drawList();
  closeDrawers();
}

function startConversation() {
  openConversation(newConversation());
  byId("prompt").focus();
}

function deleteConversation(conversation) {
  if (chat.run && chat.run.conversation === conversation) chat.stop();
  conversations = conversations.filter((c) => c !== conversation);
  removeItem("chat." + conversation.id);
  if (chat.conversation === conversation) startConversation();
  else drawList();
  toast("Conversation deleted.", { label: "Undo", run: () => keepConversations([conversation]) });
}

function deleteAll() {
  const all = conversations;
  chat.stop();
  conversations = [];
  for (const conversation of all) removeItem("chat." + conversation.id);
  startConversation();
  toast(all.length === 1 ? "One conversation deleted." : all.length + " conversations deleted.",
    { label: "Undo", run: () => keepConversations(all) });
}

function keepConversations(some) {
  for (const conversation of some) saveConversation(conversation);
  const ids = new Set(some.map((c) => c.id));
  conversations = conversations.filter((c) => !ids.has(c.id)).concat(some);
  drawList();
}

function exportAll() {
  download("moebius-conversations.json", "application/json", JSON.stringify({ moebius: 1, conversations }, null, 1));
}

async function importFile(file) {
  try {
    const body = JSON.parse(await file.text());
    const found = (Array.isArray(body.conversations) ? body.conversations : [body]).map(checkedConversation).filter((c) => c !== null);
    if (!found.length) throw new Error("no conversations in it");
    keepConversations(found);
    toast(found.length === 1 ? "One conversation imported." : found.length + " conversations imported.");
  } catch (error) {
    toast(file.name + " cannot be imported: " + error.message + ".");
  }
}

/* ---- Models and the key */

async function findModels() {
  const field = byId("model");
  try {
    models = await servedModels();
    field.replaceChildren(...models.map((m) => h("option", { value: m.id }, m.id)));
    const wanted = readItem("model");
    if (models.some((m) => m.id === wanted)) field.value = wanted;
    field.hidden = models.length < 2;
    byId("model-name").hidden = models.length !== 1;
    byId("model-name").textContent = (models[0] || {}).id || "";
  } catch (error) {
    if (error.status === 401) askKey();
    else setTimeout(findModels, 3000);
  }
}

/* A message may be sent before the list of models is here. */
async function chosenModel() {
  await modelsAsked;
  return byId("model").value || (models[0] || {}).id || "default";
}

function askKey() {
  if (byId("key").open) return;
  byId("key-wrong").hidden = !apiKey();
  byId("key-field").value = "";
  byId("key").showModal();
}

/* ---- Parameters */

const FIELDS = ["system", "temperature", "top_p", "top_k", "max_tokens", "seed", "tools"];

function fillSettings() {
  for (const name of FIELDS) byId("set-" + name).value = settings[name];
  showThinking();
}

function takeSettings() {
  for (const name of FIELDS) {
    const field = byId("set-" + name);
    if (field.checkValidity()) settings[name] = field.value;
  }
  saveSettings(settings);
  showThinking();
}

function showThinking() {
  byId("think").setAttribute("aria-checked", String(settings.thinking));
  const n = FIELDS.filter((name) => settings[name] !== "").length;
  byId("n-set").textContent = n ? String(n) : "";
  byId("n-set").hidden = n === 0;
}

function resetSettings() {
  settings = { ...NO_SETTINGS };
  saveSettings(settings);
  fillSettings();
}

/* ---- Drawers: the list and the live panel lie over the conversation where the window is narrow */

const DRAWERS = { list: "(max-width: 860px)", live: "(max-width: 1180px)" };

function isDrawer(name) {
  return matchMedia(DRAWERS[name]).matches;
}

/* On wide windows the choice is kept; on narrow ones both begin closed. */
function showDrawer(name, isOpen, keep) {
  document.body.classList.toggle(name + "-open", isOpen);
  byId(name).inert = !isOpen;
  byId("toggle-" + name).setAttribute("aria-expanded", String(isOpen));
  byId("shade").hidden = !Object.keys(DRAWERS).some((n) => isDrawer(n) && document.body.classList.contains(n + "-open"));
  if (keep && !isDrawer(name)) writeItem(name + "-open", isOpen ? "yes" : "no");
}

function toggleDrawer(name) {
  const isOpen = !document.body.classList.contains(name + "-open");
  if (isOpen && isDrawer(name)) closeDrawers();
  showDrawer(name, isOpen, true);
  if (isOpen && isDrawer(name)) byId(name).querySelector("button, [tabindex]").focus();
}

/* Closes what lies over the conversation; true when something did. */
function closeDrawers() {
  const open = Object.keys(DRAWERS).filter((n) => isDrawer(n) && document.body.classList.contains(n + "-open"));
  for (const name of open) {
    showDrawer(name, false, false);
    byId("toggle-" + name).focus();
  }
  return open.length > 0;
}

function layOut() {
  for (const name of Object.keys(DRAWERS)) showDrawer(name, !isDrawer(name) && readItem(name + "-open") !== "no", false);
}

/* ---- Wiring */

function sendPrompt() {
  const field = byId("prompt");
  if (!chat.send(field.value)) return;
  field.value = "";
  growField(field);
  removeItem("draft");
}

byId("composer").addEventListener("submit", (event) => {
  event.preventDefault();
  sendPrompt();
});
byId("prompt").addEventListener("input", () => {
  growField(byId("prompt"));
  writeItem("draft", byId("prompt").value);
});
byId("prompt").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    sendPrompt();
  } else if (event.key === "ArrowUp" && !byId("prompt").value && !chat.run) {
    const last = chat.conversation.messages.findLast((m) => m.role === "user");
    if (!last) return;
    event.preventDefault();
    chat.views.get(last).beginEdit();
  }
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape" && !document.querySelector("dialog[open]")) {
    if (!closeDrawers()) chat.stop();
  } else if (event.key.toLowerCase() === "o" && event.shiftKey && (event.ctrlKey || event.metaKey)) {
    event.preventDefault();
    startConversation();
  }
});
byId("stop").addEventListener("click", () => chat.stop());
byId("new").addEventListener("click", startConversation);
byId("think").addEventListener("click", () => {
  settings.thinking = !settings.thinking;
  takeSettings();
});
for (const name of Object.keys(DRAWERS)) byId("toggle-" + name).addEventListener("click", () => toggleDrawer(name));
byId("close-live").addEventListener("click", () => toggleDrawer("live"));
byId("shade").addEventListener("click", closeDrawers);
for (const query of Object.values(DRAWERS)) matchMedia(query).addEventListener("change", layOut);

byId("open-settings").addEventListener("click", () => {
  fillSettings();
  byId("settings").showModal();
});
byId("settings").addEventListener("input", takeSettings);
byId("settings").addEventListener("close", takeSettings);
byId("reset-settings").addEventListener("click", resetSettings);
byId("export").addEventListener("click", exportAll);
byId("export-text").addEventListener("click", () =>
  download(titleOf(chat.conversation).replace(/[^\p{L}\p{N}]+/gu, "-").slice(0, 60) + ".md", "text/markdown", conversationText(chat.conversation)));
byId("import").addEventListener("click", () => byId("import-file").click());
byId("import-file").addEventListener("change", (event) => {
  if (event.target.files[0]) importFile(event.target.files[0]);
  event.target.value = "";
});
byId("delete-all").addEventListener("click", deleteAll);
byId("key").addEventListener("wanted", askKey);
byId("key-form").addEventListener("submit", () => {
  setApiKey(byId("key-field").value.trim());
  findModels();
});
byId("model").addEventListener("change", () => writeItem("model", byId("model").value));
for (const button of byId("ideas").querySelectorAll("button"))
  button.addEventListener("click", () => chat.send(button.dataset.prompt));

/* Another window changed what is kept. */
addEventListener("storage", (event) => {
  if (!event.key || !event.key.startsWith(KEEP + "chat.") || chat.run) return;
  const shown = chat.conversation.id;
  conversations = loadConversations();
  const again = conversations.find((c) => c.id === shown);
  if (again) chat.show(again);
  drawList();
});
addEventListener("pagehide", () => chat.save());

chat.show(conversations.find((c) => c.id === readItem("shown")) || newConversation());
drawList();
fillSettings();
layOut();
modelsAsked = findModels();
byId("prompt").value = readItem("draft") || "";
growField(byId("prompt"));
if (!isDrawer("list")) byId("prompt").focus();
const livePanel = new LivePanel();
