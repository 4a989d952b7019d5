// The page asks only the public API, and proves it by that. What is searched for is in `query`; it is also the address,
// so that a link is a search. Text of rows is put in as text, never as HTML.

const $ = (id) => document.getElementById(id);
const base = new URL(".", location.href); // document.baseURI keeps a key of the address, and fetch refuses such URLs
const api = (path) => new URL(path, base);
const LONGEST_LINK = 6000; // characters of a search in an address; proxies and chats cut longer ones
const LONGEST_ARGUMENT = 100_000; // of a command: Linux takes 128 KiB
const MIB = 1 << 20;

let query = { terms: [] }; // terms: [{text | id | image, weight, label, url?}]
let reply = null; // of the last page
let hits = []; // of all pages
let info = null;
let asked = 0; // so that a late answer does not replace a newer one
const visited = new Map(); // searches by entry of the history: pictures and labels are not in addresses

const isWords = (term) => term?.text !== undefined && term.weight > 0; // the first term, where it is, is in the box
const hasPicture = () => query.terms.some((term) => term.image !== undefined);

function fromAddress() {
  const fields = new URLSearchParams(location.hash.slice(1));
  const terms = [];
  for (const [name, value] of fields) {
    const kind = name.replace(/^-/, "");
    if (value && (kind === "text" || kind === "id")) terms.push({ [kind]: value, weight: name === kind ? 1 : -1 });
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
  if (hasPicture()) return ""; // half a search would be another one
  const fields = new URLSearchParams();
  for (const term of query.terms) {
    const kind = term.text !== undefined ? "text" : "id";
    fields.append((term.weight < 0 ? "-" : "") + kind, term[kind]);
  }
  if (query.table) fields.set("table", query.table);
  if (query.value) for (const name of ["column", "operator", "value"]) fields.set(name, query[name]);
  if (query.score) fields.set("score", query.score);
  if (query.near) fields.set("near", "1");
  if (query.k !== "20") fields.set("k", query.k);
  const text = query.terms.length ? fields.toString() : "";
  return text.length > LONGEST_LINK ? "" : text;
}

function visit() {
  if (toAddress() === location.hash.slice(1) && !hasPicture()) return;
  const entry = `${performance.timeOrigin}/${visited.size}`; // of this load of the page, and no other
  visited.set(entry, { ...query, terms: [...query.terms] });
  history.pushState(entry, "", "#" + toAddress());
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
  return body;
}

function typed(text) {
  const kind = query.operator === "contains" ? "string" : table()?.columns[query.column] || "string";
  if (/^(u?int|float|double|half|decimal)/.test(kind) && text.trim() !== "" && isFinite(text)) return Number(text);
  if (kind === "bool") return /^(true|yes|1)$/i.test(text);
  return text;
}

async function fetched(path, options) {
  const response = await fetch(api(path), options);
  const content = await response.json().catch(() => ({}));
  if (response.ok) return content;
  const error = new Error(content.detail || `The server answered ${response.status}.`);
  error.code = content.code;
  error.status = response.status;
  throw error;
}

function post(body) {
  return fetched("v1/search", {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify(body),
  });
}

const ADVICE = {
  overloaded: "The server is busy. Wait a moment, then search again.",
  timeout: "The search took too long. Search again, or ask for fewer results.",
  unauthorized: "The server wants a key. Reload the page, and give the key as the password.",
  unknown_id: "A picture of this search is not in the index. Remove it, or search by words or another picture.",
  unknown_table: "The table of this search is not served here. Choose another one, or start again with words.",
  no_direction: "What was added and what was subtracted cancel each other out. Remove one of them.",
  no_tokenizer: "This server cannot search by words. Choose, drop or paste a picture.",
  cursor_expired: "There is a newer index now. Search again to see its results.",
  too_deep: "There are no more results than these. Search for something narrower.",
  bad_filter: "The filter does not fit its column. Change the column, the condition or the value.",
  body_too_large: "The picture is too large. Choose a smaller one.",
};

function advice(error) {
  if (error.status === undefined) return "The server cannot be reached. Check the connection, then search again.";
  if (error.code?.startsWith("image_")) return "This picture cannot be read. Choose another one, or another format.";
  if (error.status >= 500) return ADVICE[error.code] || "Something went wrong at the server. Search again in a moment.";
  return ADVICE[error.code] || "The server cannot answer this search. Change it, then search again.";
}

async function search({ more = false, push = true } = {}) {
  const mine = ++asked;
  const body = request();
  if (more) body.cursor = reply.next_cursor;
  else show();
  if (push) visit();
  busy(true);
  const slow = setTimeout(say, 200, "Searching…"); // said of what takes time, so that nothing flickers
  const began = performance.now();
  try {
    const found = await post(body);
    if (mine !== asked) return;
    const ms = Math.round(performance.now() - began);
    reply = found;
    hits = more ? hits.concat(found.hits) : found.hits;
    if (found.index_version !== table()?.index_version) info = await fetched("v1/info").catch(() => info);
    problem(hits.length ? "" : nothing());
    draw(found.hits, more);
    say(`${hits.length} ${hits.length === 1 ? "picture" : "pictures"}`);
    facts(ms);
  } catch (error) {
    if (mine !== asked) return;
    if (!more) {
      reply = null;
      hits = [];
      draw([]);
    }
    say(more ? `${hits.length} pictures` : "");
    problem(advice(error), error.message, true);
  } finally {
    clearTimeout(slow);
    if (mine === asked) busy(false);
  }
}

function busy(isBusy) {
  document.body.classList.toggle("busy", isBusy);
  $("results").setAttribute("aria-busy", isBusy);
}

function nothing() {
  const ways = [];
  if (query.value) ways.push("change or clear the filter");
  if (query.score) ways.push("lower the minimum score");
  if (!ways.length) ways.push("search for something else");
  const text = ways.join(" or ");
  return `Nothing was found. ${text[0].toUpperCase()}${text.slice(1)}.`;
}

function say(text) {
  $("said").textContent = text;
}

function problem(text, reason = "", isBad = false) {
  $("advice").textContent = text;
  $("reason").textContent = reason;
  $("message").hidden = !text;
  $("message").classList.toggle("bad", isBad);
  if (text) $("message").scrollIntoView({ block: "nearest" });
}

function facts(ms) {
  const here = table();
  if (!here) return;
  const parts = [`index ${here.table}/${reply?.index_version || here.index_version}`, `${here.ntotal.toLocaleString("en")} pictures`, here.model_id];
  if (ms !== undefined) {
    const served = Object.values(reply.timings_ms).reduce((sum, each) => sum + each, 0);
    parts.unshift(`${ms} ms, ${Math.round(served)} of them at the server`);
  }
  $("facts").textContent = parts.join(" · ");
}

function captionOf(hit) {
  const columns = Object.entries(hit.columns).filter(([, value]) => typeof value === "string" && value);
  const named = columns.find(([name]) => /caption|title|text|alt|name/i.test(name)) || columns[0];
  return named ? named[1] : hit.id;
}

function thumbnail(id) {
  const url = api("v1/rows/" + id.split("/").map(encodeURIComponent).join("/") + "/thumbnail");
  if (query.table) url.searchParams.set("table", query.table);
  return url.href;
}

function draw(list, more = false) {
  const results = $("results");
  const first = more ? results.children.length : 0;
  const hadFocus = results.contains(document.activeElement);
  if (!more) results.replaceChildren();
  results.append(...list.map(card));
  $("more").hidden = !reply?.next_cursor || !hits.length;
  $("download").hidden = !hits.length;
  if (more) results.children[first]?.querySelector("button").focus();
  else if (hadFocus) results.focus(); // what had it is gone
}

function card(hit) {
  const item = $("hit").content.cloneNode(true);
  const caption = captionOf(hit);
  const image = item.querySelector("img");
  image.alt = caption;
  image.src = thumbnail(hit.id);
  image.onerror = () => {
    const button = image.parentElement;
    button.classList.add("none");
    button.textContent = "no picture";
    button.setAttribute("aria-label", `no picture: ${caption}`);
  };
  item.querySelector(".caption").textContent = caption;
  item.querySelector(".score").textContent = hit.score.toFixed(3);
  const actions = {
    picture: ["", () => detail(hit)],
    plus: [`+ Add to the search: ${caption}`, () => add({ id: hit.id, weight: 1, label: caption })],
    minus: [`− Subtract from the search: ${caption}`, () => add({ id: hit.id, weight: -1, label: caption })],
    like: [`More like this: ${caption}`, () => moreLike(hit)],
  };
  for (const [name, [label, act]] of Object.entries(actions)) {
    const button = item.querySelector("." + name);
    button.onclick = act;
    if (label) button.setAttribute("aria-label", label);
  }
  return item;
}

function moreLike(hit) {
  $("text").value = "";
  begin([{ id: hit.id, weight: 1, label: captionOf(hit) }]);
}

function add(term) {
  begin([...query.terms.filter((each) => each.id !== term.id), term]);
}

function begin(terms) {
  query.terms = terms;
  scrollTo(0, 0);
  if (terms.length) search();
  else clear();
}

function detail(hit) {
  const image = $("detail-image");
  $("detail-title").textContent = captionOf(hit);
  image.hidden = false;
  image.onerror = () => { image.hidden = true; };
  image.src = thumbnail(hit.id);
  image.alt = captionOf(hit);
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
  const names = query.terms.map((term) => (term.weight < 0 ? "− " : "") + (term.label || term.text || term.id));
  document.title = [names.join(" + ").replaceAll("+ −", "−"), "rayclip"].filter(Boolean).join(" · ");
  $("terms").replaceChildren(...query.terms.map(chip).slice(isWords(query.terms[0]) ? 1 : 0));
  $("welcome").hidden = query.terms.length > 0;
  $("bar").hidden = !query.terms.length;
}

function chip(term, place) {
  const item = document.createElement("li"), label = document.createElement("span"), remove = document.createElement("button");
  const name = term.label || term.text || term.id;
  label.textContent = (term.weight < 0 ? "− " : place ? "+ " : "") + name;
  if (term.text === undefined) {
    const image = document.createElement("img");
    image.alt = "";
    image.src = term.url || thumbnail(term.id);
    image.onerror = () => image.remove();
    item.append(image);
  }
  remove.type = "button";
  remove.className = "round";
  remove.textContent = "✕";
  remove.setAttribute("aria-label", `Remove ${name}`);
  remove.onclick = () => {
    begin(query.terms.filter((each) => each !== term));
    $("text").focus();
  };
  item.append(label, remove);
  return item;
}

function clear({ push = true } = {}) {
  asked += 1;
  busy(false);
  reply = null;
  hits = [];
  if (push) visit();
  show();
  draw([]);
  problem("");
  say("");
  facts();
}

function fromBox() {
  const text = $("text").value.trim();
  const others = isWords(query.terms[0]) ? query.terms.slice(1) : query.terms;
  begin(text ? [{ text, weight: 1 }, ...others] : others);
}

async function byPicture(file) {
  if (!file) return;
  if (info && file.size > info.limits.max_image_bytes) {
    const [got, most] = [Math.ceil(file.size / MIB), Math.floor(info.limits.max_image_bytes / MIB)];
    problem(`The picture has ${got} MiB, and ${most} at most are taken. Choose a smaller one.`, "", true);
    return;
  }
  const read = await new Promise((resolve) => {
    const reader = new FileReader();
    reader.onload = () => resolve(String(reader.result));
    reader.onerror = () => resolve("");
    reader.readAsDataURL(file);
  });
  const image = read.slice(read.indexOf(",") + 1);
  if (!image) {
    problem("This file is empty, or cannot be read. Choose another one.", "", true);
    return;
  }
  $("text").value = "";
  begin([{ image, weight: 1, label: file.name || "picture", url: URL.createObjectURL(file) }]);
}

function options() {
  query.column = $("column").value;
  query.operator = $("operator").value;
  query.value = $("value").value;
  query.near = $("near").checked;
  query.k = $("k").value;
  const score = Number($("score").value);
  query.score = score < 0 ? null : score.toFixed(2);
  showScore();
}

function showScore() {
  $("score-shown").textContent = query.score ?? "none";
  $("score").setAttribute("aria-valuetext", query.score ?? "none");
}

function controls() {
  columns();
  $("text").value = isWords(query.terms[0]) ? query.terms[0].text : "";
  $("table").value = table().table;
  if (query.column) $("column").value = query.column;
  $("operator").value = query.operator;
  $("value").value = query.value;
  $("near").checked = query.near;
  $("k").value = query.k;
  $("score").value = query.score ?? -0.01;
  showScore();
  if (query.value || query.score || query.near) $("options").open = true; // what narrows a search shall be seen
}

function columns() {
  const names = Object.keys(table().columns);
  $("column").replaceChildren(...names.map((name) => new Option(name)));
  for (const id of ["column", "operator", "value"]) $(id).disabled = !names.length;
}

function curl() {
  const body = JSON.stringify(request());
  const command = `curl -s '${api("v1/search")}' -H 'Content-Type: application/json'`;
  if (body.length > LONGEST_ARGUMENT) return `${command} --data-binary @- <<'END'\n${body}\nEND`;
  return `${command} --data-raw '${body.replaceAll("'", "'\\''")}'`;
}

async function copy(text, what) {
  try {
    await navigator.clipboard.writeText(text);
  } catch { // over plain HTTP there is only the old way
    const area = document.createElement("textarea"), before = document.activeElement;
    area.value = text;
    document.body.append(area);
    area.select();
    const isDone = document.execCommand("copy");
    area.remove();
    before?.focus();
    if (!isDone) return say("This browser does not let the page copy");
  }
  say(`${what} copied`);
}

function copyLink() {
  if (toAddress()) copy(location.href, "Link");
  else say("A link cannot hold this search: copy it as curl");
}

function download() {
  const blob = new Blob([JSON.stringify({ ...reply, hits }, null, 1)], { type: "application/json" });
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = "search.json";
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}

function open(wanted) {
  query = { ...wanted, terms: [...wanted.terms] };
  if (!info) return;
  controls();
  query.k = $("k").value || "20";
  query.column ||= $("column").value;
  facts();
  if (query.terms.length) search({ push: false });
  else clear({ push: false });
}

async function start() {
  open(fromAddress());
  try {
    info = await fetched("v1/info");
  } catch (error) {
    problem(error.status === 401 ? ADVICE.unauthorized : "The server is not ready. Reload the page in a moment.", error.message, true);
    return;
  }
  $("table").append(...info.tables.map((each) => new Option(each.table)));
  $("tables").hidden = info.tables.length < 2;
  const box = $("text").value; // of whoever was faster
  open(asked ? query : fromAddress());
  if (!query.terms.length) $("text").value = box;
}

const isTyping = (element) => element.matches?.("input:not([type=checkbox], [type=range], [type=file]), select, textarea");
const pictureIn = (transfer) => [...(transfer?.files || [])].find((each) => each.type.startsWith("image/"));

$("search").addEventListener("submit", (event) => { event.preventDefault(); options(); fromBox(); });
$("file").addEventListener("change", () => { byPicture($("file").files[0]); $("file").value = ""; });
for (const id of ["column", "operator", "value", "near", "k", "score"]) {
  $(id).addEventListener("change", () => { options(); if (query.terms.length) search(); });
}
$("score").addEventListener("input", options);
$("table").addEventListener("change", () => {
  query.table = $("table").value;
  columns();
  options();
  begin(query.terms.filter((term) => term.id === undefined)); // rows are of the other table
});
$("more").addEventListener("click", () => search({ more: true, push: false }));
$("link").addEventListener("click", copyLink);
$("curl").addEventListener("click", () => copy(curl(), "Command"));
$("download").addEventListener("click", download);
$("skip").addEventListener("click", (event) => { event.preventDefault(); $("results").focus(); }); // the address stays
document.addEventListener("keydown", (event) => {
  if (event.key !== "/" || event.ctrlKey || event.metaKey || event.altKey || isTyping(event.target) || $("detail").open) return;
  event.preventDefault();
  $("text").focus();
  $("text").select();
});
document.addEventListener("paste", (event) => {
  const file = pictureIn(event.clipboardData);
  if (!file || event.clipboardData.types.includes("text/plain")) return; // offices put a picture beside copied text
  event.preventDefault();
  byPicture(file);
});
for (const name of ["dragover", "drop"]) {
  document.addEventListener(name, (event) => {
    const isText = isTyping(event.target) && !event.dataTransfer.types.includes("Files");
    if (!isText) event.preventDefault(); // or the browser would leave the page for what was dropped
    document.body.classList.toggle("dropping", name === "dragover" && !isText);
    if (name !== "drop" || isText) return;
    const file = pictureIn(event.dataTransfer);
    if (file) byPicture(file);
    else problem("That was no picture. Drop the file of a picture.", "", true);
  });
}
document.addEventListener("dragleave", (event) => { if (!event.relatedTarget) document.body.classList.remove("dropping"); });
addEventListener("popstate", (event) => open(visited.get(event.state) || fromAddress()));
start();
