// Conversations with a model: asked, streamed, stopped, edited, answered again.

import { ApiError, events } from "./api.js";
import * as kept from "./conversations.js";
import { $, button, drawer, h, say } from "./dom.js";
import { MessageView, medium } from "./message.js";
import { asked, openSettings } from "./settings.js";

const TITLE = 60;
const MOST_ATTACHED_BYTES = 24e6;
// An answer that grows is kept so often, and after so many times what that takes.
const KEEP_AFTER = 1000, KEEP_REST = 20;

let current = kept.begun();
let running = null;     // an answer's AbortController
let answering = null;   // its promise
let attached = [];
let model = () => ({ id: "", modalities: [] });
const thread = $("thread");
const text = $("text");

/** `modelOf` gives the model that is chosen: {id, modalities}. */
export async function begin(modelOf) {
  model = modelOf;
  $("composer").onsubmit = (event) => {
    event.preventDefault();
    send();
  };
  $("stop").onclick = stop;
  $("new").onclick = anew;
  $("open-settings").onclick = openSettings;
  $("attach").onclick = () => $("file").click();
  $("file").onchange = () => attach([...$("file").files]);
  text.oninput = grow;
  text.onkeydown = (event) => {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
      event.preventDefault();
      send();
    }
  };
  text.onpaste = (event) => event.clipboardData.files.length && attach([...event.clipboardData.files]);
  thread.ondragover = (event) => event.preventDefault();
  thread.ondrop = (event) => {
    event.preventDefault();
    attach([...event.dataTransfer.files]);
  };
  addEventListener("keydown", (event) => {
    if (event.key === "Escape" && running && !document.querySelector("dialog[open]")) stop();
    if (event.key.toLowerCase() === "o" && event.shiftKey && (event.ctrlKey || event.metaKey)) {
      event.preventDefault();
      anew();
    }
  });
  addEventListener("pagehide", stop);
  const found = await kept.all();
  if (found.length) current = found[0];
  draw();
  await list(found);
}

/** The model takes other things now. */
export function modelChanged() {
  const { modalities } = model();
  $("attach").hidden = !modalities.some((kind) => kind !== "text");
  $("file").accept = modalities.filter((kind) => kind !== "text").map((kind) => `${kind}/*`).join();
}

function anew() {
  drawer(false);
  stop();
  current = kept.begun();
  draw();
  list();
  text.focus();
}

async function list(found) {
  const entries = (found ?? (await kept.all())).map((conversation) => {
    const title = conversation.title || "Untitled";
    const open = button(title, () => openConversation(conversation), { class: "open", "aria-current": conversation.id === current.id && "true" });
    const drop = button("✕", () => removeConversation(conversation), { class: "icon", "aria-label": `Delete: ${title}` });
    return h("li", {}, open, drop);
  });
  $("list").replaceChildren(...entries);
  $("kept").textContent = kept.lasting ? "Kept in this browser, nothing on the server." : "This browser keeps nothing new: that ends with the tab.";
}

function openConversation(conversation) {
  drawer(false);
  thread.focus();
  if (conversation.id === current.id) return;
  stop();
  current = conversation;
  draw();
  list();
}

async function removeConversation(conversation) {
  if (!confirm(`Delete “${conversation.title || "Untitled"}”?`)) return;
  const open = conversation.id === current.id;
  if (open) {
    stop();
    await answering;
  }
  await kept.remove(conversation.id);
  if (open) anew();
  else list();
}

function draw() {
  const views = kept.path(current).map((message) => viewOf(message).element);
  thread.replaceChildren(...(views.length ? views : [welcome()]));
  thread.scrollTop = thread.scrollHeight;
}

function welcome() {
  return h("div", { class: "welcome" },
    h("h2", {}, "What it says, and what that costs"),
    h("p", {}, "Under each answer: the time to its first token, tokens a second, and how much of the prompt had to be computed."),
    h("p", {}, h("a", { href: "#engine" }, "Watch the engine"), " while it answers everybody at once."));
}

function viewOf(message) {
  const acts = {
    user: [["Edit", () => edit(message)]],
    assistant: [["Answer again", () => running || answer(message.parent)]],
  }[message.role];
  const sisters = kept.sisters(current, message);
  const view = new MessageView(message, acts, [sisters.length, sisters.indexOf(message), (i) => {
    if (running) return;
    kept.turnTo(current, sisters[i]);
    kept.save(current);
    draw();
  }]);
  if (message.role === "assistant" && message.calls?.length) offerResults(view, message);
  return view;
}

/** A tool's result is for the user to give: nothing here runs anything. */
function offerResults(view, message) {
  message.calls.forEach((call, i) => {
    const answered = Object.values(current.messages).some((other) => other.call === call.id);
    if (answered || !call.id) return;
    const input = h("input", { "aria-label": `Result of ${call.name}`, placeholder: "its result" });
    const form = h("form", { class: "row" }, input, h("button", { class: "flat" }, "Give it"));
    form.onsubmit = (event) => {
      event.preventDefault();
      if (running || !input.value) return;
      kept.add(current, current.leaf, { role: "tool", content: input.value, call: call.id, name: call.name });
      draw();
      const given = new Set(kept.path(current).map((other) => other.call));
      if (message.calls.every((other) => given.has(other.id))) answer(current.leaf);
      else kept.save(current);
    };
    view.calls.children[i].append(form);
  });
}

function edit(message) {
  if (running) return;
  const area = h("textarea", { rows: 3, "aria-label": "Edit the message", value: message.content });
  const form = h("form", { class: "edit" }, area, h("div", { class: "row" }, h("span", { class: "grow" }),
    button("Cancel", draw, { class: "flat" }), h("button", { class: "primary" }, "Send")));
  form.onsubmit = (event) => {
    event.preventDefault();
    if (running || !area.value.trim()) return;
    const { role, media } = message;
    answer(kept.add(current, message.parent, { role, media, content: area.value.trim() }).id);
  };
  area.onkeydown = (event) => event.key === "Escape" && draw();
  [...thread.children][kept.path(current).indexOf(message)].replaceChildren(form);
  area.focus();
}

function grow() {
  text.style.height = "auto";
  text.style.height = `${Math.min(text.scrollHeight, innerHeight * 0.4)}px`;
}

async function attach(files) {
  $("file").value = "";
  const { modalities } = model();
  const faults = [];
  for (const file of files) {
    const type = file.type.split("/")[0];
    const size = attached.reduce((sum, one) => sum + one.url.length, 0) + file.size * 1.4;
    if (!modalities.includes(type)) faults.push(`This model takes no ${type || "such"} files`);
    else if (size > MOST_ATTACHED_BYTES) faults.push("The files are too large");
    else {
      try {
        attached.push({ type, name: file.name, url: await dataUrl(file) });
      } catch {
        faults.push(`${file.name} cannot be read`);
      }
    }
  }
  drawAttached(faults);
}

function dataUrl(file) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = reject;
    reader.readAsDataURL(file);
  });
}

function drawAttached(faults = []) {
  $("attached").replaceChildren(...faults.map((text) => h("p", { class: "wrong", role: "alert" }, text)), ...attached.map((one) => h("span", { class: "chip" }, medium(one),
    button("✕", () => {
      attached = attached.filter((other) => other !== one);
      drawAttached();
    }, { class: "icon", "aria-label": `Remove ${one.name}` }))));
}

function send() {
  const content = text.value.trim();
  if (running || (!content && !attached.length)) return;
  const message = kept.add(current, current.leaf, { role: "user", content, ...(attached.length && { media: attached }) });
  current.title ||= (content || message.media[0].name).slice(0, TITLE);
  text.value = "";
  attached = [];
  drawAttached();
  grow();
  answer(message.id);
}

function stop() {
  running?.abort();
}

function onWire(message) {
  if (message.role === "tool") return { role: "tool", tool_call_id: message.call, content: message.content };
  if (message.role === "assistant") {
    const calls = (message.calls ?? []).map((call) => ({ id: call.id, type: "function", function: { name: call.name, arguments: call.arguments } }));
    return { role: "assistant", content: message.content, ...(calls.length && { tool_calls: calls }) };
  }
  if (!message.media) return { role: "user", content: message.content };
  const parts = message.media.map(({ type, url }) => ({ type: `${type}_url`, [`${type}_url`]: { url } }));
  return { role: "user", content: [...parts, ...(message.content ? [{ type: "text", text: message.content }] : [])] };
}

/** Have what stands behind `parent` answered. */
function answer(parent) {
  answering = answered(parent);
}

async function answered(parent) {
  const conversation = current;
  current.leaf = parent;
  const message = kept.add(current, parent, { role: "assistant", content: "" });
  const own = (running = new AbortController());
  let view;
  busy(true);
  try {
    const { first, fields } = asked();
    const messages = [...first, ...kept.path(current).slice(0, -1).map(onWire)];
    draw();
    view = grown(message);
    await kept.save(conversation);
    list();
    await stream({ ...fields, messages }, message, view, own.signal, conversation);
  } catch (error) {
    if (own.signal.aborted) (message.cost ??= {}).reason = "stopped";
    else message.fault = error instanceof ApiError || view === undefined ? error.message : String(error);
  }
  running = null;
  busy(false);
  view?.tellProgress(null);
  await kept.save(conversation);
  list();
  say(message.fault ?? "The answer is complete");
  if (conversation === current) {
    const atEnd = isAtEnd();
    const { scrollTop } = thread;
    draw();
    if (!atEnd) thread.scrollTop = scrollTop;
  }
}

/** The view of a message that is still being written, on the screen. */
function grown(message) {
  const view = new MessageView(message);
  view.acts.hidden = true;
  thread.lastElementChild.replaceWith(view.element);
  thread.scrollTop = thread.scrollHeight;
  return view;
}

function busy(is) {
  $("send").hidden = is;
  $("stop").hidden = !is;
  thread.setAttribute("aria-busy", is);
  if (!is && document.activeElement === document.body) text.focus();
}

const isAtEnd = () => thread.scrollHeight - thread.scrollTop - thread.clientHeight < 80;

async function stream(asks, message, view, signal, conversation) {
  const sent = performance.now();
  let due = sent + KEEP_AFTER;
  const waits = setInterval(() => {
    if (!view.said && !view.computing) view.tellProgress({ text: `Waiting, ${((performance.now() - sent) / 1000).toFixed(1)} s` });
  }, 200);
  const body = {
    ...asks, model: model().id, stream: true, stream_options: { include_usage: true },
    timings_per_token: true, return_progress: true,
  };
  try {
    for await (const chunk of events("v1/chat/completions", body, signal)) {
      const atEnd = isAtEnd();
      read(chunk, message, view);
      if (atEnd) thread.scrollTop = thread.scrollHeight;
      const now = performance.now();
      if (now < due) continue;
      due = Infinity;
      kept.save(conversation).then(() => (due = performance.now() + Math.max(KEEP_AFTER, KEEP_REST * (performance.now() - now))));
    }
  } finally {
    clearInterval(waits);
    view.draw();
    view.tellCost();
  }
}

function read(chunk, message, view) {
  const progress = chunk.prompt_progress;
  if (progress && !view.said) {
    view.computing = true;
    view.tellProgress({ done: progress.processed, cached: progress.cache, total: progress.total });
  }
  const choice = chunk.choices[0];
  const delta = choice?.delta ?? {};
  if (delta.content || delta.reasoning_content || delta.tool_calls) {
    view.said = true;
    view.tellProgress(null);
    message.content += delta.content ?? "";
    if (delta.reasoning_content) message.reasoning = (message.reasoning ?? "") + delta.reasoning_content;
    for (const { index, id, function: part } of delta.tool_calls ?? []) {
      const call = ((message.calls ??= [])[index] ??= { id: "", name: "", arguments: "" });
      call.id ||= id ?? "";
      call.name += part?.name ?? "";
      call.arguments += part?.arguments ?? "";
    }
    view.drawSoon();
  }
  const cost = (message.cost ??= {});
  if (choice?.finish_reason) cost.reason = choice.finish_reason;
  if (chunk.timings) timed(cost, chunk.timings);
  if (chunk.usage) {
    cost.tokens = chunk.usage.completion_tokens;
    cost.prompt = chunk.usage.prompt_tokens;
    cost.cached = chunk.usage.prompt_tokens_details?.cached_tokens ?? 0;
  }
  if (chunk.timings || chunk.usage) view.tellCost();
}

/** As the server has measured it. */
function timed(cost, timings) {
  const { predicted_n, cache_n, prompt_n, predicted_per_second, prompt_ms, queue_ms, draft_n, draft_n_accepted } = timings;
  if (!predicted_n) return;
  cost.ttft = (prompt_ms + (queue_ms ?? 0)) / 1000;
  // the first token is no gap's end
  if (predicted_n > 1) cost.perSecond = predicted_per_second;
  cost.tokens = predicted_n;
  cost.cached = cache_n;
  cost.prompt = prompt_n + cache_n;
  cost.drafted = draft_n;
  cost.accepted = draft_n_accepted;
}
