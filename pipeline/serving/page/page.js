// The page asks only the public API, and proves it by that. What is searched for is in `query`; it is also the address,
// so that a link is a search. Text of rows is put in as text, never as HTML.

const $ = (id) => document.getElementById(id);
const base = new URL(".", location.href);
const api = (path) => new URL(path, base);
const LONGEST_LINK = 6000; // of pictures in an address: beyond it the link leaves them out

let query = { terms: [] }; // terms: [{text | id | image, weight, label, url?}]
let reply = null; // of the last page
let hits = []; // of all pages
let info = null;
let asked = 0; // so that a late answer does not replace a newer one

function fromAddress() {
  const fields = new URLSearchParams(location.hash.slice(1));
  const terms = [];
  for (const [name, value] of fields) {
    const weight = name.startsWith("-") ? -1 : 1;
    const kind = name.replace(/^-/, "");
    if (kind === "text" || kind === "id") terms.push({ [kind]: value, weight });
  }
  return {
    terms,
    table: fields.get("table"),
    column: fields.get("column") || "",
    operator: fields.get("operator") || "eq",
    value: fields.get("value") || "",
    score: fields.get("score"),
    near: fields.has("near"),
    k: fields.get("k") || "20",
  };
}

function toAddress() {
  const fields = new URLSearchParams();
  for (const term of query.terms) {
    const kind = term.text !== undefined ? "text" : term.id !== undefined ? "id" : null;
    if (kind) fields.append((term.weight < 0 ? "-" : "") + kind, term[kind]);
  }
  if (query.table) fields.set("table", query.table);
  if (query.value) for (const name of ["column", "operator", "value"]) fields.set(name, query[name]);
  if (query.score) fields.set("score", query.score);
  if (query.near) fields.set("near", "1");
  if (query.k !== "20") fields.set("k", query.k);
  const text = fields.toString();
  return text.length > LONGEST_LINK ? "" : text;
}

function table() {
  return info?.tables.find((each) => each.table === query.table) || info?.tables[0];
}

function request() {
  const body = {
    query: query.terms.map(({ text, id, image, weight }) => ({ text, id, image, weight })),
    k: Number(query.k),
  };
  if (query.table) body.table = query.table;
  if (query.score) body.min_score = Number(query.score);
  if (query.near) body.dedup = "near";
  if (query.value) body.filter = { column: query.column, [query.operator]: typed(query.value) };
  return JSON.parse(JSON.stringify(body));
}

function typed(text) {
  const kind = table()?.columns[query.column] || "string";
  if (/^(u?int|float|double|half|decimal)/.test(kind) && text.trim() !== "" && isFinite(text)) return Number(text);
  if (kind === "bool") return /^(true|yes|1)$/i.test(text);
  return text;
}

async function fetched(path, options) {
  const response = await fetch(api(path), options);
  const content = await response.json().catch(() => ({}));
  if (!response.ok) {
    const error = new Error(content.detail || `the server answered ${response.status}`);
    error.code = content.code;
    error.after = Number(response.headers.get("retry-after-ms")) || 0;
    throw error;
  }
  return content;
}

function post(body) {
  return fetched("v1/search", {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify(body),
  });
}

const WHAT_TO_DO = {
  overloaded: "The server is busy. Wait a moment and search again.",
  timeout: "Try again, or ask for less.",
  unknown_id: "That row is not in this index any more. Start again with words or a picture.",
  no_direction: "What was added and what was subtracted cancel each other out. Remove one of them.",
  cursor_expired: "A new index answers now. Search again.",
  bad_filter: "Choose another column or value under Filter and options.",
};

async function search({ more = false, push = true } = {}) {
  show();
  if (!query.terms.length) return;
  const mine = ++asked;
  const body = request();
  if (more && reply?.next_cursor) body.cursor = reply.next_cursor;
  if (push) history.pushState(null, "", "#" + toAddress());
  document.body.classList.add("busy");
  $("results").setAttribute("aria-busy", "true");
  say(more ? "Loading more…" : "Searching…");
  const began = performance.now();
  try {
    const found = await post(body);
    if (mine !== asked) return;
    reply = found;
    hits = more ? hits.concat(found.hits) : found.hits;
    problem("");
    draw(more ? found.hits : hits, more);
    const ms = Math.round(performance.now() - began);
    say(`${hits.length} ${hits.length === 1 ? "picture" : "pictures"}`);
    footer(ms);
    if (!hits.length) problem("Nothing was found. Lower the minimum score, or loosen the filter.", true);
  } catch (error) {
    if (mine !== asked) return;
    hits = more ? hits : [];
    if (!more) draw([], false);
    say("");
    problem(`${error.message}. ${WHAT_TO_DO[error.code] || "Change the search, or try again."}`);
  } finally {
    if (mine === asked) {
      document.body.classList.remove("busy");
      $("results").removeAttribute("aria-busy");
    }
  }
}

function say(text) {
  $("said").textContent = text;
}

function problem(text) {
  $("message").textContent = text;
  $("message").hidden = !text;
}

function footer(ms) {
  const here = table();
  if (!here) return;
  const version = reply?.index_version || here.index_version;
  const parts = [`index ${here.table}/${version}`, `${here.ntotal.toLocaleString("en")} pictures`, here.model_id];
  if (ms !== undefined) parts.unshift(`${ms} ms, of these ${Math.round(Object.values(reply.timings_ms).reduce((a, b) => a + b, 0))} at the server`);
  $("facts").textContent = parts.join(" · ");
}

function captionOf(hit) {
  const columns = Object.entries(hit.columns).filter(([, value]) => typeof value === "string" && value);
  const named = columns.find(([name]) => /caption|title|text|alt|name/i.test(name)) || columns[0];
  return named ? named[1] : hit.id;
}

const thumbnail = (id) => {
  const url = api("v1/rows/" + id.split("/").map(encodeURIComponent).join("/") + "/thumbnail");
  if (query.table) url.searchParams.set("table", query.table);
  return url.href;
};

function draw(list, more) {
  const results = $("results");
  if (!more) results.replaceChildren();
  const first = results.children.length;
  for (const hit of list) {
    const item = $("hit").content.cloneNode(true);
    const caption = captionOf(hit);
    const image = item.querySelector("img");
    image.alt = caption;
    image.src = thumbnail(hit.id);
    image.onerror = () => {
      const button = image.parentElement;
      button.classList.add("none");
      button.textContent = "no picture";
      button.setAttribute("aria-label", caption);
    };
    item.querySelector(".caption").textContent = caption;
    item.querySelector(".score").textContent = hit.score.toFixed(3);
    item.querySelector(".picture").onclick = () => detail(hit);
    const like = item.querySelector(".like"), plus = item.querySelector(".plus"), minus = item.querySelector(".minus");
    like.onclick = () => moreLike(hit);
    plus.onclick = () => add({ id: hit.id, weight: 1, label: caption });
    minus.onclick = () => add({ id: hit.id, weight: -1, label: caption });
    like.setAttribute("aria-label", `More like this: ${caption}`);
    plus.setAttribute("aria-label", `Add to the search: ${caption}`);
    minus.setAttribute("aria-label", `Subtract from the search: ${caption}`);
    results.append(item);
  }
  $("more").hidden = !reply?.next_cursor || !results.children.length;
  $("actions").hidden = !query.terms.length;
  if (more && results.children[first]) results.children[first].querySelector("button").focus();
}

function moreLike(hit) {
  query.terms = [{ id: hit.id, weight: 1, label: captionOf(hit) }];
  $("text").value = "";
  search();
  scrollTo({ top: 0 });
}

function add(term) {
  query.terms = query.terms.filter((each) => each.id === undefined || each.id !== term.id);
  query.terms.push(term);
  search();
}

function detail(hit) {
  $("detail-title").textContent = captionOf(hit);
  $("detail-image").src = thumbnail(hit.id);
  $("detail-image").alt = captionOf(hit);
  const list = $("detail-columns");
  list.replaceChildren();
  for (const [name, value] of [["id", hit.id], ["score", hit.score.toFixed(4)], ...Object.entries(hit.columns)]) {
    const term = document.createElement("dt"), text = document.createElement("dd");
    term.textContent = name;
    text.textContent = value === null ? "–" : typeof value === "object" ? JSON.stringify(value) : String(value);
    list.append(term, text);
  }
  $("detail-more").onclick = () => { $("detail").close(); moreLike(hit); };
  $("detail").showModal();
}

function show() {
  const list = $("terms");
  list.replaceChildren();
  query.terms.forEach((term, place) => {
    if (term.text !== undefined && term.weight > 0 && place === 0) return; // it is in the box
    const item = document.createElement("li"), label = document.createElement("span"), remove = document.createElement("button");
    const name = term.label || term.text || term.id || "picture";
    label.textContent = (term.weight < 0 ? "− " : place ? "+ " : "") + name;
    if (term.id !== undefined || term.url) {
      const image = document.createElement("img");
      image.alt = "";
      image.src = term.url || thumbnail(term.id);
      image.onerror = () => image.remove();
      item.append(image);
    }
    remove.type = "button";
    remove.textContent = "✕";
    remove.setAttribute("aria-label", `Remove ${name}`);
    remove.onclick = () => {
      query.terms.splice(place, 1);
      if (query.terms.length) search();
      else { history.pushState(null, "", "#"); clear(); }
    };
    item.append(label, remove);
    list.append(item);
  });
  $("welcome").hidden = query.terms.length > 0;
}

function clear() {
  reply = null;
  hits = [];
  draw([], false);
  problem("");
  say("");
  show();
  footer();
}

function fromBox() {
  const text = $("text").value.trim();
  const others = query.terms.filter((term, place) => !(place === 0 && term.text !== undefined && term.weight > 0));
  query.terms = text ? [{ text, weight: 1 }, ...others] : others;
  if (query.terms.length) search();
  else clear();
}

async function byPicture(file) {
  if (!file) return;
  if (info && file.size > info.limits.max_image_bytes) {
    problem(`The picture has ${Math.ceil(file.size / 1048576)} MB, at most ${Math.floor(info.limits.max_image_bytes / 1048576)} are taken. Choose a smaller one.`);
    return;
  }
  const data = await new Promise((resolve) => {
    const reader = new FileReader();
    reader.onload = () => resolve(String(reader.result));
    reader.readAsDataURL(file);
  });
  $("text").value = "";
  query.terms = [{ image: data.slice(data.indexOf(",") + 1), weight: 1, label: file.name || "pasted picture", url: URL.createObjectURL(file) }];
  search();
}

function options() {
  query.column = $("column").value;
  query.operator = $("operator").value;
  query.value = $("value").value;
  query.near = $("near").checked;
  query.k = $("k").value;
  const score = Number($("score").value);
  query.score = score < 0 ? null : score.toFixed(2);
  $("score-shown").textContent = query.score ?? "none";
}

function controls() {
  $("text").value = query.terms[0]?.text !== undefined && query.terms[0].weight > 0 ? query.terms[0].text : "";
  if (query.column) $("column").value = query.column;
  $("operator").value = query.operator;
  $("value").value = query.value;
  $("near").checked = query.near;
  $("k").value = query.k;
  $("score").value = query.score ?? -0.01;
  $("score-shown").textContent = query.score ?? "none";
  if (query.table) $("table").value = query.table;
}

function columns() {
  const choices = Object.keys(table().columns).map((name) => {
    const option = document.createElement("option");
    option.textContent = name;
    return option;
  });
  $("column").replaceChildren(...choices);
  $("column").disabled = $("value").disabled = !choices.length;
}

function curl() {
  const body = JSON.stringify(request()).replaceAll("'", "'\\''");
  return `curl -s '${api("v1/search")}' -H 'Content-Type: application/json' -d '${body}'`;
}

async function copy(text, what) {
  try {
    await navigator.clipboard.writeText(text);
    say(`${what} copied`);
  } catch {
    say(text); // no clipboard here: then it can be marked
  }
}

async function start() {
  query = fromAddress();
  try {
    info = await fetched("v1/info");
  } catch (error) {
    problem(`The server does not say what it serves: ${error.message}. Reload the page in a moment.`);
    return;
  }
  for (const each of info.tables) $("table").append(new Option(each.table));
  $("tables").hidden = info.tables.length < 2;
  columns();
  controls();
  query.column = $("column").value;
  footer();
  if (query.terms.length) search({ push: false });
}

$("search").addEventListener("submit", (event) => { event.preventDefault(); options(); fromBox(); });
$("file").addEventListener("change", () => { byPicture($("file").files[0]); $("file").value = ""; });
for (const id of ["column", "operator", "value", "near", "k", "score"]) {
  $(id).addEventListener("change", () => { options(); if (query.terms.length) search(); });
}
$("score").addEventListener("input", options);
$("table").addEventListener("change", () => {
  query.table = $("table").value;
  query.terms = query.terms.filter((term) => term.id === undefined);
  columns();
  options();
  footer();
  if (query.terms.length) search();
  else clear();
});
$("more").addEventListener("click", () => search({ more: true, push: false }));
$("link").addEventListener("click", () => copy(location.href, "Link"));
$("curl").addEventListener("click", () => copy(curl(), "Command"));
$("download").addEventListener("click", () => {
  const blob = new Blob([JSON.stringify({ ...reply, hits }, null, 1)], { type: "application/json" });
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = "search.json";
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
});
document.addEventListener("keydown", (event) => {
  if (event.key === "/" && !/^(INPUT|SELECT|TEXTAREA)$/.test(document.activeElement?.tagName) && !$("detail").open) {
    event.preventDefault();
    $("text").focus();
    $("text").select();
  }
});
document.addEventListener("paste", (event) => {
  const file = [...(event.clipboardData?.files || [])].find((each) => each.type.startsWith("image/"));
  if (file) { event.preventDefault(); byPicture(file); }
});
document.addEventListener("dragover", (event) => { event.preventDefault(); document.body.classList.add("dropping"); });
document.addEventListener("dragleave", (event) => { if (!event.relatedTarget) document.body.classList.remove("dropping"); });
document.addEventListener("drop", (event) => {
  event.preventDefault();
  document.body.classList.remove("dropping");
  const file = [...event.dataTransfer.files].find((each) => each.type.startsWith("image/"));
  if (file) byPicture(file);
  else problem("That was no picture. Drop a picture file.");
});
addEventListener("popstate", () => {
  query = { ...fromAddress() };
  controls();
  query.column = $("column").value;
  if (query.terms.length) search({ push: false });
  else clear();
});
start();
