// The engine alive: what each step computes for whom, where tokens lie, how fast it goes. One snapshot a second.

import { events } from "./api.js";
import { $, bar, bytes, count, h, rate, span, svg } from "./dom.js";

const AGAIN = 3000;
const SHOWN_STEPS = 96;
const SHOWN_SECONDS = 90;
const KINDS = ["decode", "prompt", "media", "draft"];
const PHASES = {
  waiting: "waits", restoring: "restores", following: "follows", prefilling: "reads its prompt", decoding: "answers",
  parked: "waits for its grammar", ended: "ended",
};

const WIDTH = 960;
const ROWS_HEIGHT = 130;
const MOST_LANE = 14;
const LANES_HEIGHT = 224;
const LEFT = 44;

let modelId = () => "";
let shown = false;
let watching = null;
let newest = null;
let steps = new Map();   // by number, in their order
let history = [];

/** `idOf` gives the id of the model that is watched. */
export function begin(idOf) {
  modelId = idOf;
  $("engine").replaceChildren(...layout());
}

/** Whether this view is on the screen. */
export function looked(is) {
  shown = is;
  if (is) again();
  else watching?.abort();
}

export function modelChanged() {
  steps = new Map();
  history = [];
  if (shown) again();
}

export async function again() {
  watching?.abort();
  if (!shown) return;
  const own = (watching = new AbortController());
  while (!own.signal.aborted) {
    try {
      for await (const told of events(`engine/events?model=${encodeURIComponent(modelId())}`, undefined, own.signal)) {
        status("");
        take(told);
        draw();
      }
      status("The server has ended this view.");
    } catch (error) {
      if (own.signal.aborted) return;
      status(error.message);
      if (error.status === 401) return;
    }
    await new Promise((resolve) => setTimeout(resolve, AGAIN));
  }
}

function take(told) {
  newest = told;
  const first = told.n_steps - told.steps.length;
  if (steps.size && Math.max(...steps.keys()) > told.n_steps) {
    steps = new Map();
    history = [];
  }
  told.steps.forEach((step, i) => steps.set(first + i, step));
  for (const n of [...steps.keys()].slice(0, -SHOWN_STEPS)) steps.delete(n);
  history.push(told);
  history = history.slice(-SHOWN_SECONDS);
}

const status = (text) => {
  $("engine-status").textContent = text;
  $("engine-status").hidden = !text;
};

function layout() {
  const tile = (id, name, title) => h("div", { class: "tile", title }, h("h2", {}, name), h("p", { id: `${id}-now`, class: "now" }, "–"), h("div", { id: `${id}-line`, class: "line" }));
  const key = (kind, text) => h("span", { class: "key" }, h("i", { class: kind }), text);
  const card = (id, name, keys, ...children) => h("section", { class: "card", "aria-labelledby": `${id}-title` },
    h("div", { class: "row" }, h("h2", { id: `${id}-title` }, name), h("span", { class: "grow" }), keys), children);
  const region = (name, props, child) => h("div", { tabindex: "0", role: "region", "aria-label": name, ...props }, child);
  return [
    h("p", { id: "engine-status", class: "wrong", role: "status", hidden: true }),
    h("div", { class: "tiles" },
      tile("generated", "Tokens answered / s", "Tokens generated for everybody, in a second of the clock"),
      tile("prompt", "Prompt tokens / s", "Prompt tokens computed; cached ones are not among them"),
      tile("gap", "Between two tokens", "Median and 99th percentile of the gaps between a stream's tokens, last 10 s"),
      tile("running", "Running", "Sequences that share each step, and those that wait for room")),
    card("steps", "Steps", [key("decode", "answers"), key("draft", "drafts"), key("prompt", "prompts"), key("media", "media")],
      h("p", { class: "quiet" }, "Each column is one pass through the model, with everybody's rows in it; each lane is a slot, and whoever comes next takes it in the next step."),
      region("Drawing of the steps", { id: "steps", class: "drawing" })),
    card("sequences", "Sequences",
      [key("cached", "lent by a running one"), key("restored", "from RAM or disk"), key("prompt", "prompt computed"), key("decode", "answer")],
      h("p", { class: "quiet" }, "A bar is a request's tokens. What it begins with like another one is computed once: the lender's number stands beside it."),
      region("Table of sequences", { class: "scroll" }, h("table", { class: "sequences" },
        h("thead", {}, h("tr", {}, ["No.", "Does", "Tokens", "Prompt", "Lent", "Answer", "Age"].map((name) => h("th", { scope: "col" }, name)))),
        h("tbody", { id: "sequences" })))),
    card("memory", "Memory", [], h("div", { id: "memory" })),
  ];
}

function draw() {
  const { rates, gap_seconds: gap } = newest;
  $("generated-now").textContent = rate(rates.generated);
  $("prompt-now").textContent = rate(rates.prompt || rates.embedded);
  $("gap-now").replaceChildren(gap ? `${span(gap.p50)} ` : "–", gap ? h("small", {}, `p99 ${span(gap.p99)}`) : "");
  $("running-now").replaceChildren(count(newest.running), h("small", {}, ` of ${count(newest.slots)} slots, ${count(newest.waiting)} wait`));
  line("generated", [["decode", (told) => told.rates.generated]]);
  line("prompt", [["prompt", (told) => told.rates.prompt || told.rates.embedded]]);
  line("gap", [["second", (told) => told.gap_seconds?.p99], ["decode", (told) => told.gap_seconds?.p50]]);
  line("running", [["second", (told) => told.running + told.waiting], ["decode", (told) => told.running]]);
  $("steps").replaceChildren(drawSteps());
  drawSequences();
  drawMemory();
}

function line(id, values) {
  const width = 240, height = 44;
  const most = Math.max(1e-9, ...history.flatMap((told) => values.map(([, value]) => value(told) ?? 0)));
  const x = (i) => width - (history.length - 1 - i) * (width / (SHOWN_SECONDS - 1));
  const paths = values.map(([kind, value]) => {
    let d = "", open = false;
    history.forEach((told, i) => {
      const now = value(told);
      if (now == null) open = false;
      else {
        d += `${open ? "L" : "M"}${at(x(i))} ${at(height - 2 - (now / most) * (height - 6))}`;
        open = true;
      }
    });
    return svg("path", { d, class: `stroke ${kind}` });
  });
  $(`${id}-line`).replaceChildren(svg("svg", { viewBox: `0 0 ${width} ${height}`, preserveAspectRatio: "none", "aria-hidden": "true" }, paths));
}

const at = (n) => n.toFixed(1);
const box = (x, y, w, h) => `M${at(x)} ${at(y)}h${at(w)}v${at(h)}h${at(-w)}z`;

/** Above, the rows of each step; below, which slot had some. One path for all that has one colour. */
function drawSteps() {
  const numbers = [...steps.keys()];
  const columns = numbers.map((n) => steps.get(n));
  const used = columns.flatMap((step) => step.slice(1).map(([slot]) => slot));
  const slots = Math.max(8, ...used.map((slot) => slot + 1));
  const lane = Math.min(MOST_LANE, LANES_HEIGHT / slots);
  const total = (step) => step.slice(1).reduce((sum, part) => sum + part[3], 0);
  const most = Math.max(4, ...columns.map(total));
  const w = (WIDTH - LEFT) / SHOWN_STEPS;
  const top = ROWS_HEIGHT + 18, height = top + slots * lane + 6;
  const d = { decode: "", prompt: "", media: "", draft: "" };
  const marks = [], before = new Map();
  let gaps = "";
  columns.forEach((step, i) => {
    const x = WIDTH - (columns.length - i) * w;
    if (i && numbers[i] !== numbers[i - 1] + 1) gaps += `M${at(x)} 0V${height}`;
    const sums = { decode: 0, prompt: 0, media: 0, draft: 0 };
    for (const [slot, id, kind, rows, drafted] of step.slice(1)) {
      sums[KINDS[kind]] += rows - drafted;
      sums.draft += drafted;
      const y = top + slot * lane;
      const begins = before.get(slot) !== id;
      const left = begins ? 1.4 : 0;
      d[KINDS[kind]] += box(x + left, y + 0.7, w - left + 0.1, lane - 1.4);
      if (drafted) d.draft += box(x, y + lane * 0.55, w, lane * 0.38);
      if (begins && lane > 9) marks.push([x + 3, y + lane - 3.5, id]);
      before.set(slot, id);
    }
    let y = ROWS_HEIGHT;
    for (const kind of KINDS) {
      const tall = (sums[kind] / most) * (ROWS_HEIGHT - 8);
      y -= tall;
      if (tall) d[kind] += box(x + 0.5, y, w - 1, tall);
    }
  });
  const words = (x, y, content, kind = "beside") => svg("text", { x, y, class: kind }, content);
  const last = columns.at(-1);
  const label = last
    ? `The last step took ${last[0].toFixed(1)} milliseconds for ${total(last)} rows of ${last.length - 1} sequences`
    : "No step yet";
  return svg("svg", { viewBox: `0 0 ${WIDTH} ${height}`, role: "img", "aria-label": label },
    svg("path", { d: `M${LEFT} ${ROWS_HEIGHT + 0.5}H${WIDTH}`, class: "axis" }),
    words(LEFT - 6, 12, count(most)), words(LEFT - 6, 26, "rows"), words(LEFT - 6, top + 10, "slots"),
    Array.from({ length: slots }, (_, i) => svg("rect", { x: LEFT, y: top + i * lane + 0.7, width: WIDTH - LEFT, height: lane - 1.4, class: "lane" })),
    KINDS.map((kind) => svg("path", { d: d[kind], class: `fill ${kind}` })),
    svg("path", { d: gaps, class: "gap" }),
    marks.filter(([x], i, all) => all.every(([other, y], k) => k <= i || y !== all[i][1] || other - x > 26)).map(([x, y, id]) => words(x, y, id, "number")));
}

function drawSequences() {
  const all = [...newest.sequences, ...newest.queue];
  const longest = Math.max(...all.map((one) => one[6]), 1);
  const widest = Math.min(longest, Math.max(...all.map((one) => Math.max(one[3], one[4])), 1) * 1.5);
  const rows = all.map(([id, slot, phase, prompt, tokens, past, most, lent, lender, restored, drafted, accepted, age]) => {
    const answered = Math.max(0, tokens - prompt);
    const computed = Math.max(0, Math.min(past, prompt) - lent - restored);
    const parts = [["lent", Math.min(lent, past), "cached"], ["restored", restored, "restored"], ["computed", computed, "prompt"],
      ["to be computed", Math.max(0, prompt - Math.max(past, lent + restored)), "ahead"], ["answer", answered, "decode"]];
    const text = `${prompt} tokens of prompt, ${answered} of answer, ${lent} lent by ${lender || "nobody"}`;
    const drafts = drafted ? h("small", { title: "drafted tokens that came, of those decoded" }, ` ${count(accepted)}/${count(drafted)} drafts`) : "";
    return h("tr", { class: phase },
      h("th", { scope: "row" }, `${id}`),
      h("td", {}, h("span", { class: `phase ${phase}` }, PHASES[phase] ?? phase), phase === "following" ? ` ${lender}` : ""),
      h("td", { class: "bars" }, bar(parts, widest, text)),
      h("td", { class: "n" }, count(prompt)),
      h("td", { class: "n" }, lent ? [count(lent), h("small", { title: "the lender" }, ` of ${lender}`)] : restored ? [count(restored), h("small", {}, " kept")] : "–"),
      h("td", { class: "n" }, count(answered), drafts),
      h("td", { class: "n" }, span(age)));
  });
  const note = (text) => rows.push(h("tr", {}, h("td", { colspan: "7", class: "quiet" }, text)));
  const others = newest.waiting - newest.queue.length;
  if (others > 0) note(`and ${count(others)} more that wait`);
  if (!rows.length) note("Nobody asks for anything.");
  $("sequences").replaceChildren(...rows);
}

function drawMemory() {
  const { cells, tiers, totals } = newest;
  const reserved = Math.max(0, Math.min(cells.reserved, cells.total) - Math.min(cells.used, cells.total));
  const of = (name, value, id) => h("span", {}, h("b", { "data-value": id }, value), ` ${name}`);
  const row = (name, track, ...facts) => h("div", { class: "memory" }, h("h3", {}, name), track, h("p", {}, facts));
  const hits = Math.max(1, totals.prefix_hits);
  const tier = (name, told, kind) => told && row(name, bar([[name, told.bytes, kind]], told.max_bytes, `${name}: ${bytes(told.bytes)} of ${bytes(told.max_bytes)}`),
    of("", bytes(told.bytes)), ` of ${bytes(told.max_bytes)} · `, of(`prompt tokens from here, ${Math.round((100 * told.hit_tokens) / hits)} % of all reused`, count(told.hit_tokens)));
  $("memory").replaceChildren(...[
    row("KV cells", bar([["used", cells.used, "decode"], ["reserved", reserved, "reserved"]], cells.total, `${cells.used} of ${cells.total} cells used`),
      of("used · ", count(cells.used), "used"), of("reserved · ", count(cells.reserved), "reserved"), of("free", count(cells.free), "free")),
    tier("Running", tiers.running, "cached"),
    tier("RAM", tiers.ram, "restored"),
    tier("Disk", tiers.disk, "restored"),
    h("p", { class: "totals" },
      of("prompt tokens computed", count(totals.prompt_tokens), "prompt_tokens"), of("reused", count(totals.prefix_hits), "prefix_hits"),
      of("generated", count(totals.generated_tokens), "generated_tokens"), of("steps", count(totals.steps), "steps"),
      of("finished", count(totals.completed), "completed"), of("cancelled", count(totals.cancelled), "cancelled"),
      totals.draft_tokens_verified ? of(`of ${count(totals.draft_tokens_verified)} drafts accepted`, count(totals.draft_tokens_accepted)) : ""),
  ].filter(Boolean));
}
