// Starts the page: which model, which view, which colours, whose key.

import { ask, key } from "./api.js";
import * as chat from "./chat.js";
import { $, drawer, h, storage } from "./dom.js";
import * as engine from "./engine.js";

const THEME = "llamafast-theme";
const THEMES = { "": "as the system", light: "light", dark: "dark" };
const AGAIN = 2000;

const local = storage("localStorage");
let models = [];

const chosen = () => models.find((one) => one.id === $("model").value) ?? { id: "", modalities: [] };

async function findModels() {
  try {
    models = (await ask("v1/models")).data;
  } catch (error) {
    // 503: it loads; a key is asked for elsewhere
    if (error.status === 401) return;
    $("model").replaceChildren(h("option", { value: "" }, error.status === 503 ? "loading …" : error.message));
    return setTimeout(findModels, AGAIN);
  }
  const before = $("model").value;
  $("model").replaceChildren(...models.map((one) => h("option", { value: one.id }, one.id)));
  if (models.some((one) => one.id === before)) $("model").value = before;
  for (const one of models) one.modalities ??= one.meta?.modalities ?? ["text"];
  modelChanged();
}

function modelChanged() {
  chat.modelChanged();
  engine.modelChanged();
}

function view() {
  const name = location.hash === "#engine" ? "engine" : "chat";
  for (const one of ["chat", "engine"]) {
    $(one).hidden = one !== name;
    $(`tab-${one}`).ariaCurrent = one === name ? "page" : null;
  }
  document.body.dataset.view = name;
  document.title = name === "engine" ? "Engine · llamafast" : "llamafast";
  engine.looked(name === "engine");
}

function theme(name) {
  document.documentElement.dataset.theme = name;
  $("theme").ariaLabel = $("theme").title = `Colours: ${THEMES[name] ?? THEMES[""]}`;
}

function askForKey(why) {
  $("key-said").textContent = why;
  $("key-text").value = key.get();
  if (!$("key-dialog").open) $("key-dialog").showModal();
}

$("key").onclick = () => askForKey("");
$("key-forget").onclick = () => {
  key.set("");
  $("key-text").value = "";
};
$("key-form").onsubmit = () => {
  key.set($("key-text").value.trim());
  findModels();
  engine.again();
};
addEventListener("key-wanted", ({ detail }) => askForKey(detail));
$("theme").onclick = () => {
  const names = Object.keys(THEMES);
  const name = names[(names.indexOf(document.documentElement.dataset.theme) + 1) % names.length];
  local.setItem(THEME, name);
  theme(name);
};
$("drawer").onclick = () => {
  if (drawer(!document.body.classList.contains("drawn"))) $("new").focus();
};
$("model").onchange = modelChanged;
addEventListener("hashchange", view);
addEventListener("keydown", (event) => {
  if (event.altKey && (event.key === "1" || event.key === "2")) {
    event.preventDefault();
    location.hash = event.key === "1" ? "chat" : "engine";
  }
});

theme(local.getItem(THEME) ?? "");
engine.begin(() => (models.length ? chosen().id : ""));
view();
await chat.begin(chosen);
await findModels();
