#!/usr/bin/env node
// Markdown on stdin, HTML on stdout. A reader could get one thing wrong: every piece of text passes `escape` before any
// tag is made of it, so nothing of the input is ever markup.
import { readFileSync } from "node:fs";
import { parseArgs } from "node:util";

const { values: options } = parseArgs({
  options: { title: { type: "string" }, toc: { type: "boolean" }, fragment: { type: "boolean" } },
});
const SAFE_LINK = /^(https?:|mailto:|#|\/|\.{0,2}\/|[\w.-]+(\/|$|[#?]))/i;

const escape = (text) =>
  text.replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;").replace(/"/g, "&quot;");

/** Emphasis, code, links and images within a line; code spans are set aside so that nothing in them is formatted. */
function inline(text) {
  const codes = [];
  const keep = (html) => `\u0000${codes.push(html) - 1}\u0000`;
  const link = (url) => (SAFE_LINK.test(url) ? url : "#");
  return escape(text.replaceAll("\u0000", ""))
    .replace(/(`+)(.+?)\1/g, (_, __, code) => keep(`<code>${code.trim()}</code>`))
    .replace(/!\[([^\]]*)\]\(([^\s)]+)\)/g, (_, alt, url) => keep(`<img src="${link(url)}" alt="${alt}">`))
    .replace(/\[([^\]]+)\]\(([^\s)]+)\)/g, (_, label, url) => `${keep(`<a href="${link(url)}">`)}${label}${keep("</a>")}`)
    .replace(/\*\*(.+?)\*\*/g, "<strong>$1</strong>")
    .replace(/(?<!\w)[*_](.+?)[*_](?!\w)/g, "<em>$1</em>")
    .replace(/~~(.+?)~~/g, "<del>$1</del>")
    .replace(/\u0000(\d+)\u0000/g, (_, index) => codes[index]);
}

const cells = (row) => row.trim().replace(/^\||\|$/g, "").split("|").map((cell) => inline(cell.trim()));
const ITEM = /^(\s*)([-*+]|\d+[.)])\s+(.*)$/;
const headings = [];

function list(lines) {
  const [, indent, marker] = ITEM.exec(lines[0]);
  const tag = /\d/.test(marker) ? "ol" : "ul";
  const items = [];
  for (const line of lines) {
    const match = ITEM.exec(line);
    if (match && match[1].length <= indent.length) items.push({ text: match[3], nested: [] });
    else if (match || items.at(-1).nested.length) items.at(-1).nested.push(line);
    else items.at(-1).text += ` ${line.trim()}`;
  }
  const html = items.map(({ text, nested }) => `<li>${inline(text)}${nested.length ? `\n${list(nested)}` : ""}</li>`);
  return `<${tag}>\n${html.join("\n")}\n</${tag}>`;
}

function slug(text) {
  const base = text.toLowerCase().replace(/[^\p{L}\p{N}]+/gu, "-").replace(/^-|-$/g, "") || "section";
  const same = headings.filter((heading) => heading.base === base).length;
  return { base, id: same ? `${base}-${same}` : base };
}

/** Blocks of a document, from the top; each rule takes the lines it understands and leaves the rest. */
function blocks(lines) {
  const html = [];
  const take = (test) => {
    const taken = [];
    while (lines.length && test(lines[0])) taken.push(lines.shift());
    return taken;
  };
  const special = (line) => !line.trim() || /^(#{1,6}\s|>|```)/.test(line) || ITEM.test(line);
  while (lines.length) {
    const line = lines[0];
    const heading = /^(#{1,6})\s+(.*?)\s*#*$/.exec(line);
    if (!line.trim()) lines.shift();
    else if (heading) {
      lines.shift();
      const { base, id } = slug(heading[2]);
      headings.push({ base, id, level: heading[1].length, html: inline(heading[2]) });
      html.push(`<h${heading[1].length} id="${id}">${inline(heading[2])}</h${heading[1].length}>`);
    } else if (line.startsWith("```")) {
      const language = lines.shift().slice(3).trim();
      const code = take((next) => !next.startsWith("```"));
      lines.shift();
      html.push(`<pre><code${language && ` class="language-${escape(language)}"`}>${escape(code.join("\n"))}</code></pre>`);
    } else if (line.startsWith(">")) {
      const quoted = take((next) => next.startsWith(">")).map((next) => next.replace(/^>\s?/, ""));
      html.push(`<blockquote>\n${blocks(quoted)}\n</blockquote>`);
    } else if (/^(\s*[-*_]){3,}\s*$/.test(line)) {
      lines.shift();
      html.push("<hr>");
    } else if (ITEM.test(line)) html.push(list(take((next) => ITEM.test(next) || /^\s+\S/.test(next))));
    else if (line.includes("|") && /^[\s|:-]+-[\s|:-]*$/.test(lines[1] ?? "")) {
      const [head, , ...rows] = take((next) => next.includes("|"));
      const row = (tag) => (text) => `<tr>${cells(text).map((cell) => `<${tag}>${cell}</${tag}>`).join("")}</tr>`;
      html.push(`<table>\n${[row("th")(head), ...rows.map(row("td"))].join("\n")}\n</table>`);
    } else {
      const first = lines.shift();
      html.push(`<p>${inline([first, ...take((next) => !special(next))].join(" "))}</p>`);
    }
  }
  return html.join("\n");
}

let body = blocks(readFileSync(0, "utf8").split(/\r?\n/));
if (options.toc) {
  const entries = headings.map(({ id, level, html }) => `<li class="level-${level}"><a href="#${id}">${html.replace(/<\/?a[^>]*>/g, "")}</a></li>`);
  body = `<nav>\n<ul>\n${entries.join("\n")}\n</ul>\n</nav>\n${body}`;
}
if (!options.fragment) {
  const style = readFileSync(new URL("../assets/page.css", import.meta.url), "utf8");
  const title = options.title ?? "Document";
  body = `<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>${escape(title)}</title>\n<style>\n${style}</style>\n</head>\n<body>\n${body}\n</body>\n</html>`;
}
process.stdout.write(`${body}\n`);
