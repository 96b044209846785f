/* The page: asks the server every two seconds while somebody looks, and shows what it says. Text goes in as text only. */
const $ = id => document.getElementById(id);
const home = new URL(location.pathname.replace(/\/?$/, "/"), location.origin);
const EVERY = 2, LONGEST_WAIT = 30, MOST_POLLS = 90;
const RATE_SECONDS = 10;
const NOTHING = "–";

let timer = 0, asking = false, failures = 0, last = null;
let polls = [], samples = [], events = [];
const chart = new MemoryChart($("chart"), $("readout"));
const rows = new Map();

const element = (name, className, ...children) => {
  const node = document.createElement(name);
  if (className) node.className = className;
  node.append(...children);
  return node;
};
const put = (node, value) => { if (node.textContent !== value) node.textContent = value; };
/* A figure in large type, its unit small. */
const figure = (node, parts, tail = "") => {
  if (parts === null) return put(node, NOTHING);
  const [formatter, value] = parts;
  const small = part => ["unit", "percentSign", "literal"].includes(part.type);
  node.replaceChildren(...formatter.formatToParts(value).map(part => small(part) ? element("small", "", part.value) : part.value),
    ...(tail ? [element("small", "", tail)] : []));
};

/* The server */
let key = null;
try { key = sessionStorage.getItem("key"); } catch { /* no storage: this visit alone remembers */ }
function setKey(value) {
  key = value;
  try {
    if (value === null) sessionStorage.removeItem("key");
    else sessionStorage.setItem("key", value);
  } catch { /* as above */ }
}

const call = (where, options = {}) => fetch(new URL(where, home), {
  cache: "no-store", signal: AbortSignal.timeout(10_000), ...options,
  headers: {
    Accept: "application/json",
    ...(options.body ? { "Content-Type": "application/json" } : {}),
    ...(key === null ? {} : { Authorization: `Bearer ${key}` }),
  },
});

async function poll() {
  clearTimeout(timer);
  if (asking || document.hidden || $("key-dialog").open) return;
  asking = true;
  const data = await ask();
  asking = false;
  if (data === "locked") return askForKey();
  const wait = data ? EVERY : Math.min(LONGEST_WAIT, 2 ** (failures + 1));
  timer = setTimeout(poll, wait * 1000);
  if (data) {
    if (failures) say(words.back, 6);
    failures = 0;
    take(data);
  } else {
    failures += 1;
    say(words.lost(unit("second", 0).format(wait)), 0, true);
    showState();
  }
}

/* What the server says; null when it does not. */
async function ask() {
  try {
    const answer = await call(`api/status${samples.length ? `?since=${samples.at(-1)[0]}` : ""}`);
    return answer.status === 401 ? "locked" : answer.ok ? await answer.json() : null;
  } catch {
    return null;
  }
}

function take(data) {
  const restarted = last && (last.process.pid !== data.process.pid || last.started !== data.started);
  if (restarted) [polls, samples, events] = [[], [], []];
  else if (last) note(last.models, data);
  last = data;
  // The clock was set back: the answer holds all that there is.
  if (samples.length && samples.at(-1)[0] > data.time) samples = [];
  samples = samples.concat(data.memory.history);
  samples = samples.filter(sample => sample[0] >= samples.at(-1)[0] - data.memory.history_seconds);
  polls = [...polls, { at: data.uptime_seconds, requests: data.requests.requests_per_second, latency: data.requests.latency_p50,
    tokens: data.generation.generated_tokens, queued: data.queue.queued }].slice(-MOST_POLLS);
  render();
}

/* Loads and unloads between two polls, for the chart. */
function note(before, { models, time }) {
  for (const model of models) {
    const old = before.find(other => other.name === model.name);
    if (!old) continue;
    if (model.loads > old.loads) events.push({ time, kind: "load", text: () => words.loaded(model.name) });
    if (model.unloads > old.unloads) events.push({ time, kind: "unload", text: () => words.unloaded(model.name) });
  }
}

async function act(name, verb) {
  const row = rows.get(name);
  if (row.button.getAttribute("aria-disabled") === "true") return;
  row.pending = true;
  render();
  try {
    const body = JSON.stringify({ model: row.served });
    const answer = await call(`api/${verb}`, { method: "POST", body, signal: AbortSignal.timeout(600_000) });
    if (answer.status === 401) askForKey();
    else if (!answer.ok) {
      const problem = await answer.json().catch(() => null);
      say(words.failed(name, problem?.error?.message ?? String(answer.status)), 20, true);
    } else say(verb === "load" ? words.loaded(name) : words.unloaded(name), 6);
  } catch {
    say(words.failed(name, words.gone), 20, true);
  }
  row.pending = false;
  await poll();
}

/* What happened, for eyes and for screen readers. */
let forget = 0;
function say(sentence, seconds = 0, bad = false) {
  clearTimeout(forget);
  put($("notice"), sentence);
  $("notice").classList.toggle("bad", bad);
  if (seconds) forget = setTimeout(() => put($("notice"), ""), seconds * 1000);
}

function askForKey() {
  const dialog = $("key-dialog");
  put($("key-error"), key === null ? "" : words.keyWrong);
  setKey(null);
  $("key").value = "";
  if (!dialog.open) dialog.showModal();
  showState();
}

/* Figures from two polls */
const tokenRates = () => polls.slice(1).map((poll, n) => Math.max(0, poll.tokens - polls[n].tokens) / Math.max(poll.at - polls[n].at, 0.1));
function tokenRate() {
  const now = polls.at(-1), then = polls.find(poll => poll.at >= now.at - RATE_SECONDS);
  return now === then ? 0 : Math.max(0, now.tokens - then.tokens) / (now.at - then.at);
}

/* Showing */
function showState() {
  const state = $("key-dialog").open ? "locked" : failures ? "gone" : !last ? "connecting" : last.status;
  put($("state"), words[state]);
  $("lamp").className = `lamp ${{ serving: "ready", loading: "busy", draining: "busy", gone: "failed" }[state] ?? ""}`;
  document.title = `${words[state]} · model_manager`;
  document.body.classList.toggle("stale", failures > 0);
  $("retry").hidden = !failures;
}

function render() {
  showState();
  if (!last) return;
  const { models, memory, generation, queue, cache, requests } = last;
  put($("version"), last.version);
  const ready = models.filter(model => model.state === "ready").length;
  put($("summary"), words.summary(format.number(ready), format.number(models.length), format.duration(last.uptime_seconds)));

  figure($("requests"), format.rate(requests.requests_per_second), ` ${words.perSecond}`);
  put($("requests-note"), words.requestsNote(requests.requests, requests.failures, requests.in_flight));
  spark($("requests-spark"), polls.map(poll => poll.requests));
  figure($("latency"), requests.latency_p50 === null ? null : format.timing(requests.latency_p50));
  put($("latency-note"), requests.latency_p95 === null ? words.noRequests : words.latencyNote(format.seconds(requests.latency_p95)));
  spark($("latency-spark"), polls.map(poll => poll.latency));
  figure($("tokens"), format.rate(tokenRate()), ` ${words.tokensPerSecond}`);
  put($("tokens-note"), words.generationNote(generation));
  spark($("tokens-spark"), tokenRates());
  figure($("queue"), [intl({}), queue.queued], ` ${words.waiting}`);
  put($("queue-note"), words.queueNote(queue.texts, queue.batches));
  spark($("queue-spark"), polls.map(poll => poll.queued));
  figure($("cache"), cache.hit_ratio === null ? null : format.share(cache.hit_ratio));
  $("cache-meter").firstElementChild.style.width = `${(cache.hit_ratio ?? 0) * 100}%`;
  put($("cache-note"), !cache.max_entries ? words.cacheOff : cache.hit_ratio === null ? words.noLookups
    : words.cacheNote(cache.hits, cache.hits + cache.misses, cache.entries, cache.max_entries));

  put($("memory-process"), format.bytes(memory.resident));
  put($("memory-models"), format.bytes(memory.models));
  const card = memory.device;
  $("card").hidden = card === null;
  if (card !== null) {
    put($("memory-card"), words.cardMemory(card.name, format.bytes(card.models), card.free === null ? null : format.bytes(card.free)));
  }
  $("budget").hidden = memory.budget === null;
  if (memory.budget !== null) put($("memory-budget"), format.bytes(memory.budget));
  chart.show(samples, events, memory.budget);
  showLoads(models);
  showModels(models);
  showExample();
  showFooter(last.process);
}

function showLoads(models) {
  const loaded = models.filter(model => model.load_seconds !== null);
  const longest = Math.max(...loaded.map(model => model.load_seconds), 0);
  $("loads-none").hidden = loaded.length > 0;
  $("loads").replaceChildren(...loaded.map(model => {
    const bar = element("i");
    bar.style.width = `${longest ? model.load_seconds / longest * 100 : 0}%`;
    return element("li", "", element("div", "row", element("span", "", model.name), element("b", "", format.seconds(model.load_seconds))),
      element("div", "track", bar), element("p", "note", words.loadNote(model.loads, format.seconds(model.load_median_seconds))));
  }));
}

function makeRow(name) {
  const row = { pending: false, about: element("div", "about"), state: element("div"), size: element("div", "value"),
    stay: element("div", "stay"), action: element("div", "action"), problem: element("p", "problem") };
  row.title = element("h3", "", name);
  row.source = element("p", "note");
  row.traits = element("p", "note");
  row.about.append(row.title, row.source, row.traits);
  [row.lamp, row.word] = [element("span", "lamp"), element("span")];
  row.state.append(row.lamp, row.word);
  row.left = element("p", "note");
  row.meter = element("span", "meter", element("i"));
  row.meter.setAttribute("aria-hidden", "true");
  row.stay.append(row.left, row.meter);
  row.button = element("button");
  row.button.type = "button";
  row.button.addEventListener("click", () => act(name, row.verb));
  row.action.append(row.button);
  row.item = element("li", "", row.about, element("div", "now", row.state, row.size), row.stay, row.action, row.problem);
  return row;
}

function showModels(models) {
  const names = models.map(model => model.name);
  for (const name of rows.keys()) if (!names.includes(name)) { rows.get(name).item.remove(); rows.delete(name); }
  for (const model of models) {
    if (!rows.has(model.name)) {
      rows.set(model.name, makeRow(model.name));
      $("models").append(rows.get(model.name).item);
    }
    showModel(rows.get(model.name), model);
  }
}

function showModel(row, model) {
  const { state } = model;
  const aliases = model.served_as.filter(name => name !== model.name);
  put(row.source, model.source ?? words.ownObject);
  put(row.traits, [words[model.kind], model.dtype, model.dimension && words.dimensions(model.dimension),
    aliases.length && `${words.served} ${aliases.join(", ")}`].filter(Boolean).join(" · "));
  row.state.className = `state ${state}`;
  row.lamp.className = `lamp ${{ ready: "ready", loading: "busy" }[state] ?? (model.last_error ? "failed" : "")}`;
  put(row.word, state === "loading" ? words.loadingModel : words[state]);
  put(row.size, state === "ready" && model.bytes ? format.bytes(model.bytes) : "");
  const leaves = model.unload_in_seconds;
  put(row.left, [state === "ready" && staying(model), state === "absent" && expected(model), saved(model), model.queued && words.queuedTexts(model.queued)].filter(Boolean).join(" · "));
  row.meter.hidden = leaves === null;
  if (leaves !== null) row.meter.firstElementChild.style.width = `${Math.min(1, leaves / model.keep_alive) * 100}%`;
  row.served = model.served_as[0];
  row.action.hidden = !last.admin || !row.served;
  row.verb = state === "ready" ? "unload" : "load";
  const waiting = row.pending || state === "loading";
  put(row.button, waiting ? "…" : words[row.verb]);
  row.button.setAttribute("aria-label", words[`${row.verb}Model`](model.name));
  /* Not `disabled`: the keyboard's place on the page would be lost. */
  row.button.setAttribute("aria-disabled", waiting);
  row.problem.hidden = !model.last_error;
  put(row.problem, model.last_error ?? "");
}

function staying(model) {
  if (model.leases) return words.busyNow;
  if (model.unload_in_seconds !== null) {
    return model.unload_in_seconds > 0 ? words.leavesIn(format.countdown(model.unload_in_seconds)) : words.leavesNow;
  }
  return model.pinned ? words.pinned : words.forever;
}

function expected(model) {
  return model.expected_in_seconds === null ? "" : words.expectedIn(format.countdown(model.expected_in_seconds));
}

/* What keep_alive auto has saved, compared with a fixed timer. */
function saved(model) {
  if (!model.saved) return "";
  const { cold_starts, resident_seconds } = model.saved;
  return [cold_starts > 0 && words.savedLoads(cold_starts), resident_seconds >= 60 && words.savedMemory(format.countdown(resident_seconds))]
    .filter(Boolean).join(", ");
}

function showExample() {
  const body = JSON.stringify({ model: last.default_model, input: words.tryText }).replaceAll("'", "'\\''");
  put($("example"), [`curl ${new URL("v1/embeddings", home)} \\`, ...(key !== null ? ['  -H "Authorization: Bearer $API_KEY" \\'] : []),
    "  -H 'Content-Type: application/json' \\", `  -d '${body}'`].join("\n"));
}

function showFooter(process) {
  const facts = { cpu: process.cpu, cores: format.number(process.cores), threads: format.number(process.threads),
    isa: process.isa, device: process.device, platform: process.platform, python: process.python,
    pid: process.workers > 1 ? words.oneOf(process.pid, process.workers) : String(process.pid) };
  const shown = Object.entries(facts).map(([name, value]) => element("div", "", element("dt", "", words[name]), element("dd", "", value)));
  $("facts").replaceChildren(...shown);
  if ($("links").childElementCount) return;
  for (const where of last.links) {
    const link = element("a", "", `/${where}`);
    link.href = new URL(where, home);
    $("links").append(link);
  }
}

function speak(chosen) {
  if (chosen) {
    language = chosen;
    words = WORDS[language];
    try { localStorage.setItem("language", language); } catch { /* only this visit remembers */ }
  }
  document.documentElement.lang = language;
  for (const node of document.querySelectorAll("[data-t]")) put(node, words[node.dataset.t]);
  for (const node of document.querySelectorAll("[data-aria]")) node.setAttribute("aria-label", words[node.dataset.aria]);
  for (const button of document.querySelectorAll("[data-language]")) {
    button.setAttribute("aria-pressed", button.dataset.language === language);
  }
  render();
}

document.querySelector(".languages").addEventListener("click", event => {
  if (event.target.dataset.language) speak(event.target.dataset.language);
});
document.addEventListener("visibilitychange", () => { if (document.hidden) clearTimeout(timer); else poll(); });
$("retry").addEventListener("click", () => { say(words.trying, 0, true); poll(); });
$("copy").addEventListener("click", async () => {
  try {
    await navigator.clipboard.writeText($("example").textContent);
    put($("copy"), words.copied);
    setTimeout(() => put($("copy"), words.copy), 2000);
  } catch {
    getSelection().selectAllChildren($("example"));
  }
});
$("key-dialog").addEventListener("cancel", event => event.preventDefault());
/* Browsers let a page veto that only once; the second time they close the dialog without asking. */
$("key-dialog").addEventListener("close", () => { if (key === null) askForKey(); });
$("key-form").addEventListener("submit", event => {
  event.preventDefault();
  const given = $("key").value.trim();
  /* Other characters cannot stand in a header. */
  if (!/^[ -~]+$/.test(given)) return put($("key-error"), words.keyWrong);
  setKey(given);
  $("key-dialog").close();
  poll();
});
addEventListener("resize", render);
speak();
poll();
