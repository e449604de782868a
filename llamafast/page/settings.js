// What is sent beside the messages: the system prompt, sampling, the answer's form, reasoning, tools.

import { $, button, h, storage } from "./dom.js";

const KEY = "llamafast-settings";
// Numbers: name in the request, what it says, least, most.
const NUMBERS = [
  ["temperature", "Temperature", 0, 2],
  ["top_p", "Top p", 0, 1],
  ["top_k", "Top k", 0, 1000],
  ["min_p", "Min p", 0, 1],
  ["repetition_penalty", "Repetition penalty", 0.5, 2],
  ["max_tokens", "Most tokens", 1, 1e6],
  ["seed", "Seed", 0, 2 ** 31 - 1],
];
const REASONING = { "": "as the model does", on: "on", off: "off", low: "low effort", medium: "medium effort", high: "high effort" };

const local = storage("localStorage");
let kept = read();

function read() {
  try {
    return JSON.parse(local.getItem(KEY)) ?? {};
  } catch {
    return {};
  }
}

function parsed(text, what) {
  try {
    return JSON.parse(text);
  } catch (error) {
    throw new Error(`${what} is no JSON: ${error.message}`);
  }
}

/** The messages that come first, and the fields of a request. Raises Error where the settings make none. */
export function asked() {
  const fields = {};
  for (const [name] of NUMBERS) if (typeof kept[name] === "number") fields[name] = kept[name];
  if (kept.schema) {
    const schema = parsed(kept.schema, "The JSON schema");
    fields.response_format = { type: "json_schema", json_schema: { name: "answer", strict: true, schema } };
  }
  if (kept.tools) fields.tools = parsed(kept.tools, "The list of tools");
  if (kept.reasoning === "on" || kept.reasoning === "off") fields.chat_template_kwargs = { enable_thinking: kept.reasoning === "on" };
  else if (kept.reasoning) fields.reasoning_effort = kept.reasoning;
  return { first: kept.system ? [{ role: "system", content: kept.system }] : [], fields };
}

function tell() {
  const set = Object.keys(kept).length;
  $("settings-said").textContent = set ? `Settings (${set})` : "Settings";
}

function field(label, input, hint) {
  const id = `set-${input.name}`;
  input.id = id;
  return h("div", { class: "field" }, h("label", { for: id }, label), input, hint && h("small", { class: "quiet" }, hint));
}

export function openSettings() {
  const dialog = $("settings");
  const area = (name, rows) => h("textarea", { name, rows, spellcheck: "false", value: kept[name] ?? "" });
  const form = h(
    "form", { method: "dialog" },
    h("h2", { id: "settings-title" }, "Settings"),
    field("System prompt", area("system", 3)),
    h("div", { class: "numbers" }, NUMBERS.map(([name, label, min, max]) =>
      field(label, h("input", { name, type: "number", min, max, step: "any", inputmode: "decimal", value: kept[name] ?? "", placeholder: "model's" })))),
    field("Reasoning", h("select", { name: "reasoning" }, Object.entries(REASONING).map(([value, text]) => h("option", { value, selected: value === (kept.reasoning ?? "") }, text)))),
    field("JSON schema of the answer", area("schema", 4), "The answer follows it from the first character to the last."),
    field("Tools", area("tools", 4), "A JSON list as in OpenAI's API. Calls are shown; you answer them."),
    h("p", { class: "wrong", role: "alert", id: "settings-wrong" }),
    h("div", { class: "row" },
      button("Reset", () => { kept = {}; local.removeItem(KEY); tell(); openSettings(); }, { class: "flat" }),
      h("span", { class: "grow" }),
      button("Cancel", () => dialog.close(), { class: "flat" }),
      h("button", { class: "primary" }, "Done")),
  );
  form.onsubmit = (event) => {
    const before = kept;
    kept = {};
    for (const input of form.elements) {
      const text = input.name && input.value.trim();
      if (text) kept[input.name] = input.type === "number" ? Number(text) : text;
    }
    try {
      asked();
      local.setItem(KEY, JSON.stringify(kept));
      tell();
    } catch (error) {
      event.preventDefault();
      kept = before;
      $("settings-wrong").textContent = error.message;
    }
  };
  dialog.replaceChildren(form);
  if (!dialog.open) dialog.showModal();
}

tell();
