// One message on the screen: what was said, thought and called, and what that took.

import { bar, button, count, h, rate, span } from "./dom.js";
import { copied, show } from "./markdown.js";

// An answer is drawn again when so much more time has passed as the last time took.
const REST = 4;

export class MessageView {
  /** `acts` are [label, what to do] beside copying; `turn` is [how many sisters, which one this is, go to another]. */
  constructor(message, acts = [], turn = null) {
    this.message = message;
    this.body = h("div", { class: "text" });
    this.thoughts = h("div", { class: "text" });
    this.folded = h("details", { class: "thoughts", hidden: true }, h("summary", {}, "Reasoning"), this.thoughts);
    this.calls = h("div", { class: "calls" });
    this.progress = h("div", { class: "progress", hidden: true });
    this.cost = h("div", { class: "cost", hidden: true });
    this.fault = h("p", { class: "wrong", role: "alert", hidden: true });
    this.acts = h("div", { class: "acts" },
      turn && turn[0] > 1 && h("span", { class: "turn" },
        button("‹", () => turn[2](turn[1] - 1), { "aria-label": "The one before", disabled: turn[1] === 0 }),
        `${turn[1] + 1} / ${turn[0]}`,
        button("›", () => turn[2](turn[1] + 1), { "aria-label": "The next one", disabled: turn[1] === turn[0] - 1 })),
      button("Copy", () => copied(this.message.content ?? "")),
      acts.map(([label, act]) => button(label, act)));
    const who = { user: "You", assistant: "Answer", tool: `Result of ${message.name ?? "a tool"}` }[message.role];
    this.element = h("article", { class: `message ${message.role}`, "aria-label": who },
      h("h2", { class: "hidden" }, who), this.progress, this.folded, this.body, this.calls, this.fault, this.cost, this.acts);
    this.drawn = 0;
    this.draw();
    this.tellCost();
  }

  /** As soon as the browser has time for it: an answer grows by thousands of tokens. */
  drawSoon() {
    if (this.timer) return;
    this.timer = setTimeout(() => {
      this.timer = null;
      this.draw();
    }, Math.max(16, this.drawn * REST));
  }

  draw() {
    clearTimeout(this.timer);
    this.timer = null;
    const began = performance.now();
    const { message } = this;
    if (message.role === "assistant") show(this.body, message.content ?? "");
    else this.body.textContent = message.content ?? "";
    if (message.media?.length) this.body.prepend(h("div", { class: "attached" }, message.media.map(medium)));
    if (message.reasoning) {
      show(this.thoughts, message.reasoning);
      this.folded.hidden = false;
    }
    this.calls.replaceChildren(...(message.calls ?? []).map((call) =>
      h("div", { class: "call" }, h("b", {}, call.name), h("pre", { tabindex: "0" }, call.arguments), call.answer)));
    this.fault.hidden = !message.fault;
    this.fault.textContent = message.fault ?? "";
    this.drawn = performance.now() - began;
  }

  /** `done` of `total` rows of the prompt, `cached` of which were there; without them: it waits. */
  tellProgress(told) {
    this.progress.hidden = !told;
    if (!told) return;
    if (!told.total) return this.progress.replaceChildren(h("span", { class: "quiet" }, told.text));
    const parts = [["cached", told.cached, "cached"], ["computed", told.done - told.cached, "prompt"]];
    const text = `Prompt ${count(told.done)} of ${count(told.total)}`;
    const track = bar(parts, told.total, text);
    Object.assign(track, { role: "progressbar", ariaValueMin: 0, ariaValueMax: told.total, ariaValueNow: told.done });
    this.progress.replaceChildren(h("span", { class: "quiet" }, `${text}${told.cached ? `, ${count(told.cached)} cached` : ""}`), track);
  }

  tellCost() {
    const cost = this.message.cost;
    if (!cost) return;
    const facts = [];
    const fact = (name, value, title) => facts.push(h("span", { title, "data-fact": name }, h("b", {}, value), ` ${name}`));
    if (cost.ttft !== undefined) fact("to first token", span(cost.ttft), "Waiting included");
    if (cost.perSecond) fact("tok/s", rate(cost.perSecond), "Tokens a second, from the first token on");
    if (cost.tokens !== undefined) fact("tokens", count(cost.tokens), "Tokens of the answer, reasoning included");
    if (cost.prompt !== undefined) {
      const computed = cost.prompt - cost.cached;
      const parts = [["cached", cost.cached, "cached"], ["computed", computed, "prompt"]];
      facts.push(h("span", { class: "of-prompt", "data-fact": "prompt", title: "Tokens of the prompt: cached ones cost next to nothing" },
        h("b", {}, count(computed)), " prompt computed ", bar(parts, cost.prompt, `Prompt: ${computed} computed, ${cost.cached} cached`),
        h("b", {}, count(cost.cached)), " cached"));
    }
    if (cost.drafted) fact("drafts accepted", `${count(cost.accepted)} / ${count(cost.drafted)}`, "Drafted tokens that came, of those decoded");
    if (cost.reason && cost.reason !== "stop") fact("ended it", { length: "its length", tool_calls: "a call", stopped: "you" }[cost.reason] ?? cost.reason, "Why the answer ends");
    this.cost.hidden = false;
    this.cost.replaceChildren(...facts);
  }
}

export function medium({ type, url, name }) {
  if (type === "image") return h("img", { src: url, alt: name || "an attached picture" });
  return h(type, { src: url, controls: true, "aria-label": name || "an attached file" });
}
