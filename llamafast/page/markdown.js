// Markdown of a model, which may say anything, into elements that can do nothing: a short list of tags, no address that
// a browser would fetch by itself. HTML stays text but for bare tags: a parser reports handlers and styles as breaks of
// the page's policy, also in a document that is thrown away.

import { marked } from "./marked.esm.js";
import { button, h, say } from "./dom.js";

const { DOMPurify } = globalThis;
const PICTURE = /^data:image\/(png|jpeg|gif|webp);base64,[a-z0-9+/=]+$/i;
const LINK = /^(https?:\/\/|mailto:)/i;
const BARE = "b br code dd del details dl dt em i kbd p q s small strong sub summary sup u".split(" ");
const HTML = new RegExp(`(</?(?:${BARE.join("|")})\\s*/?>|&(?:\\w+|#\\d+);)|[&<>"']`, "gi");
const RULES = {
  ALLOWED_TAGS: [...BARE, ..."a blockquote h1 h2 h3 h4 h5 h6 hr img li ol pre table tbody td th thead tr ul".split(" ")],
  ALLOWED_ATTR: ["href", "title", "alt", "src", "start", "align", "colspan", "rowspan", "class", "open"],
  ALLOW_DATA_ATTR: false,
  ALLOW_ARIA_ATTR: false,
  RETURN_TRUSTED_TYPE: true,
};

DOMPurify.addHook("uponSanitizeAttribute", (node, data) => {
  if (data.attrName === "class") data.keepAttr = node.nodeName === "CODE" && /^language-[\w+#.-]{1,32}$/.test(data.attrValue);
  if (data.attrName === "href") data.keepAttr = LINK.test(data.attrValue);
  if (data.attrName === "src") data.keepAttr = node.nodeName === "IMG" && PICTURE.test(data.attrValue);
});
DOMPurify.addHook("afterSanitizeAttributes", (node) => {
  if (node.nodeName === "A") {
    node.setAttribute("target", "_blank");
    node.setAttribute("rel", "noopener noreferrer nofollow");
  }
  if (node.nodeName === "IMG") {
    if (!node.hasAttribute("alt")) node.setAttribute("alt", "a picture");
    if (!node.hasAttribute("src")) node.replaceWith(`🖼 ${node.getAttribute("alt")}`);
  }
});

marked.use({
  gfm: true,
  breaks: true,
  renderer: {
    html: ({ text }) => text.replace(HTML, (all, bare) => bare ?? escaped(all)),
    // a picture from elsewhere would tell that place who reads this
    image: ({ href, text, title }) =>
      PICTURE.test(href) ? false : `<a href="${escaped(href)}" title="${escaped(title ?? href)}">🖼 ${escaped(text || href)}</a>`,
    checkbox: ({ checked }) => (checked ? "☑ " : "☐ "),
  },
});

function escaped(text) {
  return text.replace(/[&<>"']/g, (c) => `&#${c.charCodeAt(0)};`);
}

/** Fill `element` with what `text` says. */
export function show(element, text) {
  try {
    element.innerHTML = DOMPurify.sanitize(marked.parse(text), RULES);
  } catch {
    // nested more deeply than a parser goes
    element.replaceChildren(h("pre", {}, text));
  }
  for (const pre of element.querySelectorAll("pre")) {
    const code = pre.textContent;
    const copy = button("Copy", () => copied(code), { class: "copy" });
    pre.tabIndex = 0;
    const box = h("div", { class: "code" }, copy);
    pre.replaceWith(box);
    box.append(pre);
  }
}

export async function copied(text) {
  try {
    await navigator.clipboard.writeText(text);
    say("Copied");
  } catch {
    say("The browser does not let this page copy");
  }
}
