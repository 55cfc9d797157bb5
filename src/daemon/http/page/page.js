"use strict";
// Shows the daemon's state twice a second and asks for the next picture as soon as the last one is there. Everything that
// comes from outside is put in as text. A connection that breaks is tried again.

const POLL_MS = 500, RETRY_MS = 2000;
// A browser opens six connections to a server; the state and commands need theirs.
const MOST_PICTURES = 3;

const shown = new Map(); // parts of the page by id of their camera
let waiting = 0; // pictures asked for

const $ = id => document.getElementById(id);

function text(node, value) {
  if (node.textContent !== value) node.textContent = value;
}

// A copy of a template with its named parts.
function parts(template) {
  const root = $(template).content.firstElementChild.cloneNode(true);
  const named = { root };
  for (const node of root.querySelectorAll("[data-is]")) named[node.dataset.is] = node;
  return named;
}

function facts(list, pairs) {
  const rows = pairs.filter(([, value]) => value !== null && value !== undefined);
  while (list.children.length > 2 * rows.length) list.lastElementChild.remove();
  while (list.children.length < 2 * rows.length) list.append(document.createElement(list.children.length % 2 ? "dd" : "dt"));
  rows.forEach(([name, value], i) => {
    text(list.children[2 * i], name);
    text(list.children[2 * i + 1], String(value));
  });
}

const path = (...names) => "/api/cameras/" + names.map(encodeURIComponent).join("/");

// Asks for something; gives nothing back, or why it was refused.
async function post(address, body) {
  try {
    const options = { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) };
    const answer = await fetch(address, options);
    if (answer.ok) return null;
    const said = await answer.json().catch(() => ({}));
    return said.error || `the daemon answers ${answer.status}`;
  } catch {
    return "the daemon cannot be reached";
  }
}

async function change(camera, address, body) {
  const refused = await post(address, body);
  const error = shown.get(camera)?.error;
  if (error) {
    text(error, refused ? `Not done: ${refused}` : "");
    error.hidden = !refused;
  }
  await refresh();
  return refused;
}

// Words that topics need for themselves.
const RESERVED = new Set(["frame", "status", "detect", "query", "background", "all"]);

// An id of the text, as topics can have it, that no other query of the camera has.
function idOf(words, taken) {
  const plain = words.toLowerCase().replace(/[^a-z0-9]+/g, "-").slice(0, 40).replace(/^-+|-+$/g, "") || "query-1";
  let id = plain;
  for (let n = 2; taken.has(id) || RESERVED.has(id); n++) id = `${plain}-${n}`;
  return id;
}

function newCamera(id) {
  const part = parts("camera");
  part.queryParts = new Map();
  part.history = [];
  text(part.name, id);
  text(part.label, `Look for, on ${id}`);
  part.text.id = `look-for-${id}`;
  part.label.htmlFor = part.text.id;
  part.detect.setAttribute("aria-label", `Detection of ${id}`);
  part.detect.addEventListener("change", async () => {
    part.detect.disabled = true;
    await change(id, path(id) + "/detect", { on: part.detect.checked });
    part.detect.disabled = false;
    part.detect.checked = part.state.detect;
  });
  part.add.addEventListener("submit", async event => {
    event.preventDefault();
    const words = part.text.value.trim();
    const button = part.add.querySelector("button");
    if (!words || button.disabled) return;
    button.disabled = true;
    text(button, "Adding…");
    const query = idOf(words, new Set(Object.keys(part.state.queries)));
    const refused = await change(id, `${path(id)}/queries/${query}`, { prompts: [words] });
    button.disabled = false;
    text(button, "Add");
    if (!refused) part.text.value = "";
  });
  part.picture.alt = `Live picture of ${id}`;
  part.picture.addEventListener("load", () => pictureCame(part, true));
  part.picture.addEventListener("error", () => pictureCame(part, false));
  $("cameras").append(part.root);
  return part;
}

function newQuery(camera, part, id) {
  const query = parts("query");
  text(query.name, id);
  query.bar.setAttribute("aria-label", `Best score of ${id}`);
  query.threshold.setAttribute("aria-label", `Threshold of ${id}`);
  query.remove.setAttribute("aria-label", `Remove ${id}`);
  query.remove.addEventListener("click", async () => {
    query.remove.disabled = true;
    await change(camera, `${path(camera)}/queries/${encodeURIComponent(id)}/remove`, {});
    query.remove.disabled = false;
  });
  query.threshold.addEventListener("input", () => {
    query.held = true; // until the daemon has answered, the state does not move it
    showCut(query, Number(query.threshold.value));
  });
  // No change follows where it is put back to where it was.
  const letGo = () => setTimeout(() => { query.held = query.held && query.sending > 0; }, 200);
  for (const end of ["pointerup", "pointercancel", "keyup", "blur"]) query.threshold.addEventListener(end, letGo);
  query.sending = 0;
  query.threshold.addEventListener("change", async () => {
    query.sending++;
    const body = { ...query.state.query, threshold: Number(query.threshold.value) };
    await change(camera, `${path(camera)}/queries/${encodeURIComponent(id)}`, body);
    query.sending--;
    query.held = false;
  });
  part.queries.append(query.root);
  return query;
}

function showCut(query, cut) {
  query.mark.style.left = `${100 * cut}%`;
  text(query.cut, cut.toFixed(2));
}

function showQuery(query, state) {
  query.state = state;
  const { score, threshold } = state;
  const prompts = state.query.prompts || [];
  text(query.prompts, prompts.join(" · ") === query.name.textContent.replaceAll("-", " ") ? "" : prompts.join(" · "));
  text(query.there, state.there ? `${state.there} there` : "");
  if (state.color) query.swatch.style.background = state.color;
  text(query.score, score === null ? "–" : score.toFixed(2));
  query.fill.style.width = `${100 * (score || 0)}%`;
  query.bar.classList.toggle("present", score !== null && threshold !== null && score >= threshold);
  query.bar.setAttribute("aria-valuenow", (score || 0).toFixed(2));
  if (threshold !== null && !query.held) {
    query.threshold.value = threshold;
    showCut(query, threshold);
  }
}

// Frames per second over the last seconds.
function rate(part, frames) {
  const now = performance.now();
  part.history.push([now, frames]);
  while (part.history.length > 2 && now - part.history[0][0] > 5000) part.history.shift();
  const [then, before] = part.history[0];
  return now - then < 900 ? null : Math.max(0, (frames - before) * 1000 / (now - then));
}

function showCamera(part, id, state) {
  part.state = state;
  const status = state.detect ? state.status || "starting" : "disabled";
  text(part.status, status.replace("_", " "));
  part.status.className = `badge ${status}`;
  if (!part.detect.disabled) part.detect.checked = state.detect;
  const ids = Object.keys(state.queries);
  for (const [query, old] of part.queryParts) {
    if (!(query in state.queries)) {
      old.root.remove();
      part.queryParts.delete(query);
    }
  }
  for (const query of ids) {
    if (!part.queryParts.has(query)) part.queryParts.set(query, newQuery(id, part, query));
    showQuery(part.queryParts.get(query), state.queries[query]);
  }
  part.empty.hidden = ids.length > 0;
  const fps = rate(part, state.frames);
  const frame = state.frame;
  text(part.caption, !state.detect ? "Detection is off." : status !== "online" ? "No frames." :
    [frame && `${frame.size[0]} × ${frame.size[1]}`, fps !== null && `${fps.toFixed(1)} frames/s`].filter(Boolean).join(" · "));
  facts(part.facts, [
    ["Source", state.source],
    ["Frames", state.frames],
    ["Looks by model input", Object.entries(state.looks).map(([side, count]) => `${count} at ${side} px`).join(", ")],
    ["Skipped for newer ones", state.skipped],
    ["Left out, nothing moved", state.still],
    ["Lost or damaged", state.lost + state.corrupt],
    ["Not processed", state.failed],
    ["Source opened", state.opened],
    ["Age at the end", frame && `${frame.age_ms.toFixed(1)} ms`],
  ]);
  facts(part.stages, frame ? Object.entries(frame.stage_ms).map(([name, ms]) => [name, `${ms.toFixed(1)} ms`]) : []);
}

function pictureCame(part, good) {
  if (!part.asked) return; // its camera is gone
  waiting -= 1;
  part.asked = false;
  part.picture.classList.toggle("off", !good);
  part.pause = good ? 0 : performance.now() + RETRY_MS;
  askPictures();
}

// Asks for the next pictures, the camera first that was longest without.
function askPictures() {
  if (document.hidden) return;
  const now = performance.now();
  const due = [...shown.values()].filter(part =>
    !part.asked && part.state?.detect && part.state.status === "online" && now >= (part.pause || 0));
  due.sort((a, b) => (a.last || 0) - (b.last || 0));
  for (const part of due.slice(0, Math.max(0, MOST_PICTURES - waiting))) {
    waiting += 1;
    part.asked = true;
    part.last = now;
    part.picture.src = `${path(part.name.textContent)}/picture?at=${Math.round(now)}`;
  }
}

function showState(state) {
  text($("summary"), [state.state.replace("_", " "), state.model, state.provider].filter(Boolean).join(" · "));
  for (const [id, part] of shown) {
    if (!(id in state.cameras)) {
      if (part.asked) waiting -= 1;
      part.asked = false;
      part.root.remove();
      shown.delete(id);
    }
  }
  for (const [id, camera] of Object.entries(state.cameras)) {
    if (!shown.has(id)) shown.set(id, newCamera(id));
    showCamera(shown.get(id), id, camera);
  }
  const mqtt = state.mqtt;
  facts($("facts"), [
    ["Version", state.version],
    ["Up", `${Math.floor(state.uptime_s / 3600)} h ${Math.floor(state.uptime_s / 60) % 60} min ${state.uptime_s % 60} s`],
    ["Memory", state.memory_bytes && `${(state.memory_bytes / 2 ** 20).toFixed(0)} MiB`],
    ["Broker", mqtt ? (mqtt.connected ? "connected" : "away") : "none"],
    ["Messages sent", mqtt && mqtt.sent],
    ["Messages dropped", mqtt && mqtt.dropped],
    ["Events waiting on disk", mqtt && mqtt.spooled],
  ]);
  trouble(state.failing ? "Frames cannot be processed; the daemon's log says why." : "");
}

function trouble(what) {
  text($("trouble"), what);
  $("trouble").hidden = !what;
}

async function refresh() {
  try {
    const answer = await fetch("/api/state");
    const state = await answer.json();
    if (!answer.ok) throw new Error(state.error);
    showState(state);
    askPictures();
    return true;
  } catch (error) {
    trouble(error instanceof TypeError ? "The daemon cannot be reached; trying again." : error.message);
    return false;
  }
}

async function poll() {
  const good = document.hidden || await refresh();
  setTimeout(poll, good ? POLL_MS : RETRY_MS);
}

// A token in the address has given its cookie; it need not stay in the history.
if (location.search) history.replaceState(null, "", location.pathname);
poll();
