// What the page asks of its server: JSON, and events as they come. The key stays in this tab.

import { storage } from "./dom.js";

const KEY = "llamafast-key";
const tab = storage("sessionStorage");

export class ApiError extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

export const key = {
  get: () => tab.getItem(KEY) ?? "",
  set: (text) => (text ? tab.setItem(KEY, text) : tab.removeItem(KEY)),
};

async function respond(path, body, signal) {
  const headers = { ...(key.get() && { authorization: `Bearer ${key.get()}` }) };
  const options = { headers, signal, cache: "no-store" };
  if (body !== undefined) {
    headers["content-type"] = "application/json";
    Object.assign(options, { method: "POST", body: JSON.stringify(body) });
  }
  let response;
  try {
    response = await fetch(new URL(path, document.baseURI), options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    if (/[^\x20-\x7e]/.test(key.get())) throw new ApiError(401, "a key has printable ASCII characters only");
    throw new ApiError(0, "the server cannot be reached");
  }
  if (response.ok) return response;
  const text = await response.text();
  let message = text.slice(0, 500) || `the server answers with ${response.status}`;
  try {
    message = JSON.parse(text).error.message;
  } catch { /* it is no JSON of ours: a proxy's page, for one */ }
  if (response.status === 401) dispatchEvent(new CustomEvent("key-wanted", { detail: message }));
  throw new ApiError(response.status, message);
}

export async function ask(path) {
  return (await respond(path)).json();
}

/** The data of server-sent events as parsed JSON, until the stream ends or `signal` aborts it. */
export async function* events(path, body, signal) {
  const response = await respond(path, body, signal);
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const lines = (rest + value).split("\n");
    rest = lines.pop();
    for (const line of lines) {
      if (!line.startsWith("data: ") || line === "data: [DONE]") continue;
      const event = JSON.parse(line.slice(6));
      if (event.error) throw new ApiError(response.status, event.error.message);
      yield event;
    }
  }
}
