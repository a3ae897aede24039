/* markdown.js - the markdown that models write, as elements. HTML in it stays text, a picture becomes a link, and links
 * lead to http, https and mailto only. Every pass is linear in the text, and nesting has a limit, so no text can hang
 * the page. */

const MAX_DEPTH = 12;

/* ---- Blocks: each has the lines that it was made from, so that a growing text redraws its last block only. */

const FENCE = /^( {0,3})(```+|~~~+)/;
const HEADING = /^ {0,3}(#{1,6})(?=[ \t]|$)/;
const RULE = /^ {0,3}([-*_])(?:[ \t]*\1){2,}[ \t]*$/;
const QUOTE = /^ {0,3}> ?/;
const ITEM = /^([ \t]*)([-*+]|\d{1,9}[.)])(?:([ \t]+)|$)/;
const MATH_BLOCK = /^[ \t]*(\$\$|\\\[)/;

const isBlank = (line) => line.trim() === "";
const indentOf = (line) => line.length - line.trimStart().length;

/* The fence that a line opens, as [indent, fence, what follows]; null: none. */
function fenceOf(line) {
  const match = FENCE.exec(line);
  const info = match && line.slice(match[0].length);
  return match && !(match[2][0] === "`" && info.includes("`")) ? [match[1], match[2], info] : null;
}

function startsBlock(lines, i) {
  const line = lines[i];
  return fenceOf(line) || HEADING.test(line) || RULE.test(line) || QUOTE.test(line) || ITEM.test(line)
    || MATH_BLOCK.test(line) || startsTable(lines, i);
}

function startsTable(lines, i) {
  if (i + 1 >= lines.length || !lines[i].includes("|") || !/^[|:\- \t]+$/.test(lines[i + 1])) return false;
  const sides = cellsOf(lines[i + 1]);
  return sides.every((side) => /^:?-+:?$/.test(side)) && cellsOf(lines[i]).length === sides.length;
}

function parseBlocks(lines, depth) {
  const blocks = [];
  for (let i = 0; i < lines.length;) {
    if (isBlank(lines[i])) {
      i++;
      continue;
    }
    const block = parseBlock(lines, i, depth);
    block.raw = lines.slice(i, block.end).join("\n");
    blocks.push(block);
    i = block.end;
  }
  return blocks;
}

function parseBlock(lines, i, depth) {
  const line = lines[i];
  let match;
  if ((match = fenceOf(line))) return parseFence(lines, i, match);
  if ((match = HEADING.exec(line))) {
    const text = line.slice(match[0].length).trim().replace(/(^|[ \t])#+$/, "");
    return { kind: "heading", level: match[1].length, text, end: i + 1 };
  }
  if (RULE.test(line)) return { kind: "rule", end: i + 1 };
  if ((match = MATH_BLOCK.exec(line))) {
    const block = parseMath(lines, i, match[1] === "$$" ? "$$" : "\\]");
    if (block) return block;
  }
  if (depth < MAX_DEPTH && QUOTE.test(line)) return parseQuote(lines, i, depth);
  if (depth < MAX_DEPTH && ITEM.test(line)) return parseList(lines, i, depth);
  if (startsTable(lines, i)) return parseTable(lines, i);
  let end = i + 1;
  while (end < lines.length && !isBlank(lines[end]) && !(depth < MAX_DEPTH && startsBlock(lines, end))) end++;
  return { kind: "paragraph", text: lines.slice(i, end).map((l) => l.trimStart()).join("\n"), end };
}

function parseFence(lines, i, [indent, fence, info]) {
  let end = i + 1;
  const text = [];
  for (; end < lines.length; end++) {
    const bare = lines[end].trim();
    if (bare.length >= fence.length && bare === fence[0].repeat(bare.length) && indentOf(lines[end]) < 4) break;
    text.push(lines[end].slice(Math.min(indent.length, indentOf(lines[end]))));
  }
  return { kind: "code", language: info.trim().split(/\s/)[0], text: text.join("\n"), end: Math.min(end + 1, lines.length) };
}

function parseMath(lines, i, close) {
  const limit = Math.min(lines.length, i + 100);
  for (let end = i; end < limit && !(end > i && isBlank(lines[end])); end++) {
    const tail = lines[end].trimEnd();
    if (tail.endsWith(close) && (end > i || tail.trim().length > 2)) {
      const text = lines.slice(i, end + 1).join("\n").trim();
      return { kind: "math", text: text.slice(2, -2).trim(), end: end + 1 };
    }
  }
  return null;
}

function parseQuote(lines, i, depth) {
  const inner = [];
  let end = i;
  for (; end < lines.length && QUOTE.test(lines[end]); end++) inner.push(lines[end].replace(QUOTE, ""));
  return { kind: "quote", blocks: parseBlocks(inner, depth + 1), end };
}

function parseList(lines, i, depth) {
  const first = ITEM.exec(lines[i]);
  const ordered = /\d/.test(first[2]);
  const base = first[1].length;
  const items = [];
  let end = i;
  while (end < lines.length) {
    const match = ITEM.exec(lines[end]);
    if (!match || /\d/.test(match[2]) !== ordered || match[1].length > base + 1 || match[1].length < base) break;
    if (RULE.test(lines[end])) break;
    const content = match[1].length + match[2].length + Math.min((match[3] || " ").length, 4);
    const inner = [lines[end].slice(match[0].length)];
    for (end++; end < lines.length; end++) {
      const line = lines[end];
      if (isBlank(line)) {
        if (end + 1 >= lines.length || indentOf(lines[end + 1]) < Math.min(content, base + 2)) break;
        inner.push("");
      } else if (indentOf(line) >= Math.min(content, base + 2)) {
        inner.push(line.slice(Math.min(content, indentOf(line))));
      } else if (startsBlock(lines, end)) {
        break;
      } else {
        inner.push(line.trimStart()); // a paragraph may go on without its indent
      }
    }
    items.push(parseItem(inner, depth));
    let next = end;
    while (next < lines.length && isBlank(lines[next])) next++;
    const after = next < lines.length && ITEM.exec(lines[next]);
    if (!after || next > end + 1) break;
    if (/\d/.test(after[2]) === ordered && Math.abs(after[1].length - base) < 2) end = next;
  }
  return { kind: "list", ordered, start: ordered ? parseInt(first[2], 10) : 1, items, end };
}

function parseItem(lines, depth) {
  const task = /^\[([ xX])\][ \t]+/.exec(lines[0]);
  if (task) lines[0] = lines[0].slice(task[0].length);
  return { done: task ? task[1] !== " " : null, blocks: parseBlocks(lines, depth + 1) };
}

/* The cells of a table's line; \| is no border. */
function cellsOf(line) {
  const cells = [""];
  const text = line.trim().replace(/^\|/, "");
  for (let i = 0; i < text.length; i++) {
    if (text[i] === "\\" && text[i + 1] === "|") cells[cells.length - 1] += text[++i];
    else if (text[i] === "|") cells.push("");
    else cells[cells.length - 1] += text[i];
  }
  if (cells.length > 1 && isBlank(cells[cells.length - 1])) cells.pop();
  return cells.map((cell) => cell.trim());
}

function parseTable(lines, i) {
  const head = cellsOf(lines[i]);
  const sides = cellsOf(lines[i + 1]).map((c) => (c.endsWith(":") ? (c.startsWith(":") ? "center" : "right") : "left"));
  const rows = [];
  let end = i + 2;
  for (; end < lines.length && lines[end].includes("|") && !isBlank(lines[end]); end++) rows.push(cellsOf(lines[end]));
  return { kind: "table", head, sides, rows, end };
}

/* ---- Inlines */

const safeLink = (url) => /^(https?:\/\/|mailto:)[^\s]+$/i.test(url);
const ESCAPABLE = "\\`*_{}#+-.!|~<>\"'$&/:;=?@^,%";

/* Where each [ of the text closes; unclosed ones are missing. */
function closingBrackets(text) {
  const closes = new Map();
  const open = [];
  for (let i = 0; i < text.length; i++) {
    if (text[i] === "\\") i++;
    else if (text[i] === "[") open.push(i);
    else if (text[i] === "]" && open.length) closes.set(open.pop(), i);
  }
  return closes;
}

/* The target of "(url "title")" at `at`: {url, end}, or null. */
function linkTarget(text, at) {
  if (text[at] !== "(") return null;
  const limit = Math.min(text.length, at + 2000);
  let depth = 0;
  for (let i = at; i < limit; i++) {
    if (text[i] === "\n") return null;
    if (text[i] === "(") depth++;
    else if (text[i] === ")" && --depth === 0) {
      const inner = text.slice(at + 1, i).trim();
      const url = inner.split(/[ \t]/)[0].replace(/^<|>$/g, "");
      return { url, end: i + 1 };
    }
  }
  return null;
}

class Inlines {
  constructor(text, depth, inLink) {
    this.text = text;
    this.depth = depth;
    this.inLink = inLink;
    this.closes = closingBrackets(text);
    this.next = new Map(); // where a closing mark comes next
    this.items = [];       // nodes, and runs of * _ ~ in between
    this.plain = "";
  }

  flush() {
    if (this.plain) this.items.push({ node: document.createTextNode(this.plain) });
    this.plain = "";
  }

  push(node) {
    this.flush();
    this.items.push({ node });
  }

  /* Where `mark` comes next from `from` on, -1 when it does not. `from` only grows, so no part is searched twice. */
  find(mark, from) {
    const known = this.next.get(mark);
    if (known !== undefined && (known < 0 || known >= from)) return known;
    const at = this.text.indexOf(mark, from);
    this.next.set(mark, at);
    return at;
  }

  parse() {
    for (let i = 0; i < this.text.length;) i = this.at(i);
    this.flush();
    return emphasised(this.items);
  }

  /* Takes what starts at i; answers where the next begins. */
  at(i) {
    const c = this.text[i];
    const taken = c === "`" ? this.code(i)
      : c === "$" || c === "\\" ? this.math(i)
      : c === "[" || (c === "!" && this.text[i + 1] === "[") ? this.link(i)
      : c === "<" || c === "h" || c === "H" ? this.autolink(i)
      : c === "*" || c === "_" || c === "~" ? this.run(i)
      : 0;
    if (taken) return taken;
    if (c === "\\" && i + 1 < this.text.length && ESCAPABLE.includes(this.text[i + 1])) {
      this.plain += this.text[i + 1];
      return i + 2;
    }
    if (c === "\n") {
      this.plain = this.plain.replace(/ {1,8}$|\\$/, "");
      this.push(h("br"));
      return i + 1;
    }
    this.plain += c;
    return i + 1;
  }

  code(i) {
    let n = 1;
    while (this.text[i + n] === "`") n++;
    const fence = "`".repeat(n);
    for (let end = this.find(fence, i + n); end >= 0; end = this.find(fence, end)) {
      let length = n;
      while (this.text[end + length] === "`") length++;
      if (length === n) {
        const code = this.text.slice(i + n, end).replace(/\n/g, " ");
        this.push(h("code", {}, /^ .*[^ ].* $/.test(code) ? code.slice(1, -1) : code));
        return end + n;
      }
      end += length;
    }
    this.plain += fence;
    return i + n;
  }

  /* \(…\), \[…\], $$…$$ and $…$, shown as written: stars and underscores in formulas are no emphasis. */
  math(i) {
    const two = this.text.slice(i, i + 2);
    const close = { "\\(": "\\)", "\\[": "\\]", "$$": "$$" }[two] || (this.text[i] === "$" ? "$" : null);
    if (!close) return 0;
    const start = i + close.length;
    const end = this.find(close, start);
    if (end <= start || end - i > 4000) return 0;
    const body = this.text.slice(start, end);
    if (close === "$" && (/^\s|\s$/.test(body) || /[0-9]/.test(this.text[end + 1] || "") || body.includes("\n"))) return 0;
    this.push(h("span.math", {}, body.trim()));
    return end + close.length;
  }

  link(i) {
    const open = this.text[i] === "!" ? i + 1 : i;
    const close = this.closes.get(open);
    const target = close === undefined || this.inLink || this.depth >= MAX_DEPTH ? null : linkTarget(this.text, close + 1);
    if (!target || !safeLink(target.url)) return 0;
    const label = this.text.slice(open + 1, close);
    const nodes = label ? inlineNodes(label, this.depth + 1, true) : [target.url];
    this.push(anchor(target.url, nodes));
    return target.end;
  }

  autolink(i) {
    if (this.inLink) return 0;
    if (this.text[i] === "<") {
      const end = this.find(">", i);
      const url = end < 0 || end - i > 2000 ? "" : this.text.slice(i + 1, end);
      if (!safeLink(url)) return 0;
      this.push(anchor(url, url));
      return end + 1;
    }
    if (i > 0 && /[\w/]/.test(this.text[i - 1])) return 0;
    const match = /^https?:\/\/[^\s<>"'`\\|]{1,2000}/i.exec(this.text.slice(i, i + 2010));
    if (!match) return 0;
    let url = match[0].replace(/[.,:;!?*_~]{1,20}$/, "");
    if (url.endsWith(")") && !url.includes("(")) url = url.slice(0, -1);
    if (!/^https?:\/\/./i.test(url)) return 0;
    this.push(anchor(url, url));
    return i + url.length;
  }

  /* A run of * _ ~ that may begin or end emphasis. */
  run(i) {
    const mark = this.text[i];
    let n = 1;
    while (this.text[i + n] === mark) n++;
    if (mark === "~" && n !== 2) return 0;
    const before = i > 0 ? this.text[i - 1] : " ";
    const after = i + n < this.text.length ? this.text[i + n] : " ";
    const isSpace = (c) => /\s/.test(c);
    const isPunctuation = (c) => /[\p{P}\p{S}]/u.test(c);
    const left = !isSpace(after) && (!isPunctuation(after) || isSpace(before) || isPunctuation(before));
    const right = !isSpace(before) && (!isPunctuation(before) || isSpace(after) || isPunctuation(after));
    const inWord = mark === "_" && left && right && !isPunctuation(before) && !isPunctuation(after);
    this.flush();
    this.items.push({ mark, n, opens: left && !inWord, closes: right && !inWord });
    return i + n;
  }
}

/* Pairs the runs of * _ ~ and wraps what stands between. Looks back only as far as an opening run may still be. */
function emphasised(items) {
  const out = [];
  const floor = { "*": 0, _: 0, "~": 0 };
  for (const item of items) {
    if (item.closes) closeRun(out, item, floor);
    if (item.node || item.n > 0) out.push(item);
  }
  return out.map((item) => item.node || document.createTextNode(item.mark.repeat(item.n)));
}

function closeRun(out, item, floor) {
  while (item.n > 0) {
    let at = out.length - 1;
    const bottom = Math.min(floor[item.mark], out.length);
    while (at >= bottom && !(out[at].mark === item.mark && out[at].opens)) at--;
    if (at < bottom) {
      floor[item.mark] = out.length;
      return;
    }
    const opener = out[at];
    const n = Math.min(opener.n, item.n, 2); // for ~ always 2
    let depth = 1;
    for (let i = at + 1; i < out.length; i++) depth = Math.max(depth, 1 + (out[i].depth || 0));
    if (depth > MAX_DEPTH) { // earlier runs are around the same
      for (const mark of Object.keys(floor)) floor[mark] = out.length;
      return;
    }
    const inner = out.splice(at + 1).map((o) => o.node || document.createTextNode(o.mark.repeat(o.n)));
    const wrapped = h(item.mark === "~" ? "s" : n === 2 ? "strong" : "em", {}, inner);
    opener.n -= n;
    item.n -= n;
    if (opener.n === 0) out.pop();
    out.push({ node: wrapped, depth });
    for (const mark of Object.keys(floor)) floor[mark] = Math.min(floor[mark], out.length);
  }
}

function inlineNodes(text, depth, inLink) {
  return new Inlines(text, depth || 0, inLink || false).parse();
}

function anchor(url, children) {
  return h("a", { href: url, target: "_blank", rel: "noopener noreferrer nofollow" }, children);
}

/* ---- Elements */

function codeBlock(text, language) {
  const copy = iconButton("copy", "Copy code", (event) => copyText(text, event.currentTarget));
  const body = h("pre", { tabindex: "0", role: "region", "aria-label": (language || "Code") + ", code" }, h("code", {}, text));
  return h("div.code", {}, h("div.code-head", {}, h("span", {}, language || "text"), copy), body);
}

function tableElement(block) {
  const cell = (tag, text, i) => h(tag + "." + (block.sides[i] || "left"), tag === "th" ? { scope: "col" } : {}, inlineNodes(text));
  const row = (tag, cells) => h("tr", {}, block.sides.map((_, i) => cell(tag, cells[i] || "", i)));
  return h("div.table", { tabindex: "0", role: "region", "aria-label": "Table" },
    h("table", {}, h("thead", {}, row("th", block.head)), h("tbody", {}, block.rows.map((cells) => row("td", cells)))));
}

function listElement(block) {
  const element = h(block.ordered ? "ol" : "ul", block.ordered && block.start !== 1 ? { start: block.start } : {});
  const tight = block.items.every((item) => item.blocks.filter((b) => b.kind === "paragraph").length < 2);
  for (const item of block.items) {
    const children = item.blocks.flatMap((b) => (tight && b.kind === "paragraph" ? inlineNodes(b.text) : [blockElement(b)]));
    if (item.done !== null) children.unshift(h("span.task", { role: "img", "aria-label": item.done ? "done" : "to do" }, item.done ? "☑ " : "☐ "));
    element.append(h("li", {}, children));
  }
  return element;
}

function blockElement(block) {
  switch (block.kind) {
  case "heading": return h("h" + Math.min(block.level + 2, 6) + ".h" + block.level, {}, inlineNodes(block.text));
  case "rule": return h("hr");
  case "code": return codeBlock(block.text, block.language);
  case "math": return h("div.math", {}, block.text);
  case "quote": return h("blockquote", {}, block.blocks.map(blockElement));
  case "list": return listElement(block);
  case "table": return tableElement(block);
  default: return h("p", {}, inlineNodes(block.text));
  }
}

const drawnBlocks = new WeakMap(); // container -> what each of its blocks was made from

/* Shows markdown in a container; blocks that have not changed stay, with their selection and focus. */
function showMarkdown(container, text) {
  const blocks = parseBlocks(text.replace(/\r\n?/g, "\n").split("\n"), 0);
  const drawn = drawnBlocks.get(container) || [];
  let same = 0;
  while (same < drawn.length && same < blocks.length && drawn[same] === blocks[same].raw) same++;
  while (container.childNodes.length > same) container.lastChild.remove();
  for (const block of blocks.slice(same)) container.append(blockElement(block));
  drawnBlocks.set(container, blocks.map((block) => block.raw));
}
