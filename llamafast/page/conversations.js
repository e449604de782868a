// Conversations, in this browser's IndexedDB and nowhere else. Each is a tree of messages: an edited question or a second
// answer is a sister of the first.

const NAME = "llamafast";
const STORE = "conversations";
let opened;
/** Whether they outlive the tab: it may refuse. */
export let lasting = true;
const ours = new Map();   // those that this tab has changed, by id
const own = new Set();   // the messages that came here, by id: no others change here

function open() {
  opened ??= new Promise((resolve, reject) => {
    const request = indexedDB.open(NAME, 1);
    request.onupgradeneeded = () => request.result.createObjectStore(STORE, { keyPath: "id" });
    request.onsuccess = () => {
      // somebody clears this site's data
      request.result.onclose = () => (opened = undefined);
      resolve(request.result);
    };
    request.onerror = () => reject(request.error);
  });
  return opened;
}

async function transact(mode, work) {
  const database = await open();
  return new Promise((resolve, reject) => {
    const transaction = database.transaction(STORE, mode);
    const request = work(transaction.objectStore(STORE));
    transaction.oncomplete = () => resolve(request.result);
    transaction.onabort = transaction.onerror = () => reject(transaction.error);
  });
}

async function kept(mode, work) {
  try {
    const result = await transact(mode, work);
    lasting ||= mode === "readwrite";
    return result;
  } catch (error) {
    console.warn("conversations are kept for this tab only:", error);
    lasting = false;
  }
}

/** All of them, the newest first. */
export async function all() {
  const found = new Map((await kept("readonly", (store) => store.getAll()))?.map((one) => [one.id, one]));
  for (const [id, one] of ours) if (!(found.get(id)?.changed > one.changed)) found.set(id, one);
  return [...found.values()].sort((a, b) => b.changed - a.changed);
}

export async function save(conversation) {
  conversation.changed = Date.now();
  ours.set(conversation.id, conversation);
  await kept("readwrite", (store) => {
    const before = store.get(conversation.id);
    before.onsuccess = () => {
      // another tab may have gone on with it
      const messages = { ...conversation.messages, ...before.result?.messages };
      for (const id in conversation.messages) if (own.has(id)) messages[id] = conversation.messages[id];
      store.put({ ...conversation, messages });
    };
    return before;
  });
}

export async function remove(id) {
  ours.delete(id);
  await kept("readwrite", (store) => store.delete(id));
}

export function begun() {
  return { id: newId(), title: "", changed: 0, leaf: null, messages: {} };
}

export function newId() {
  return [...crypto.getRandomValues(new Uint8Array(12))].map((byte) => byte.toString(16).padStart(2, "0")).join("");
}

/** From the first message to the one that is looked at. */
export function path(conversation) {
  const found = [];
  for (let id = conversation.leaf; id; id = conversation.messages[id].parent) found.unshift(conversation.messages[id]);
  return found;
}

/** Put a message behind `parent` (null: as a first one) and look at it. */
export function add(conversation, parent, message) {
  const added = { id: newId(), parent, ...message };
  conversation.messages[added.id] = added;
  own.add(added.id);
  conversation.leaf = added.id;
  return added;
}

/** Those that stand where `message` does, itself among them, in the order in which they came. */
export function sisters(conversation, message) {
  return Object.values(conversation.messages).filter((other) => other.parent === message.parent);
}

/** Look at a sister, down to the end of its newest branch. */
export function turnTo(conversation, message) {
  const following = (id) => Object.values(conversation.messages).filter((other) => other.parent === id);
  let leaf = message;
  for (let next = following(leaf.id); next.length; next = following(leaf.id)) leaf = next.at(-1);
  conversation.leaf = leaf.id;
}
