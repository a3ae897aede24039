/* metrics.js - the panel beside the conversation: reads /metrics every second and draws the last two minutes. */

const SAMPLES = 120;
const PERIOD_MS = 1000;

/* Prometheus text -> Map of name -> [{labels, value}]. */
function parseMetrics(text) {
  const families = new Map();
  for (const line of text.split("\n")) {
    const match = /^([a-zA-Z_:][a-zA-Z0-9_:]*)(\{.*\})?\s+(\S+)/.exec(line);
    if (!match) continue;
    const value = match[3] === "+Inf" ? Infinity : Number(match[3]);
    if (!families.has(match[1])) families.set(match[1], []);
    families.get(match[1]).push({ labels: match[2] || "", value });
  }
  return families;
}

/* The sum over all engines and labels, NaN when there is no such metric. */
function metric(families, ...names) {
  for (const name of names) {
    const samples = families.get("vllm:" + name);
    if (samples) return samples.reduce((sum, s) => sum + s.value, 0);
  }
  return NaN;
}

/* What one reading of /metrics says. */
function readingOf(families, time) {
  const kv = families.get("vllm:kv_cache_usage_perc") || families.get("vllm:gpu_cache_usage_perc") || [];
  return {
    time,
    running: metric(families, "num_requests_running"),
    waiting: metric(families, "num_requests_waiting"),
    generated: metric(families, "generation_tokens_total"),
    prompt: metric(families, "prompt_tokens_total"),
    kv: kv.length ? kv.reduce((sum, s) => sum + s.value, 0) / kv.length : NaN,
    queries: metric(families, "prefix_cache_queries_total"),
    hits: metric(families, "prefix_cache_hits_total"),
    firstSum: metric(families, "time_to_first_token_seconds_sum"),
    firstCount: metric(families, "time_to_first_token_seconds_count"),
    gapSum: metric(families, "inter_token_latency_seconds_sum", "time_per_output_token_seconds_sum"),
    gapCount: metric(families, "inter_token_latency_seconds_count", "time_per_output_token_seconds_count"),
  };
}

/* The growth of counter a by the growth of counter b; NaN where b stood still, or the server began anew. */
function ratio(before, now, a, b) {
  const above = now[a] - before[a];
  const below = now[b] - before[b];
  return below > 0 && above >= 0 ? above / below : NaN;
}

const percent = (value) => (Number.isFinite(value) ? Math.round(value * 1000) / 10 + " %" : "–");

/* A plot each: what its lines are, and how values are written. `share` plots reach from 0 to 1. */
const PLOTS = [
  { id: "requests", title: "Requests", lines: ["running", "waiting"], write: (v) => shortNumber(Math.round(v)) },
  { id: "tokens", title: "Tokens per second", lines: ["output", "prompt"], write: shortNumber },
  { id: "kv", title: "KV cache in use", lines: ["used"], write: percent, share: true },
  { id: "hits", title: "Prefix cache hits", lines: ["of prompt tokens"], write: percent, share: true },
  { id: "first", title: "Time to first token", lines: ["mean"], write: shortTime, sparse: true },
  { id: "gap", title: "Time between tokens", lines: ["mean"], write: shortTime, sparse: true },
];

function valuesOf(before, now) {
  return {
    requests: [now.running, now.waiting],
    tokens: [ratio(before, now, "generated", "time"), ratio(before, now, "prompt", "time")],
    kv: [now.kv],
    hits: [ratio(before, now, "hits", "queries")],
    first: [ratio(before, now, "firstSum", "firstCount")],
    gap: [ratio(before, now, "gapSum", "gapCount")],
  };
}

class LivePanel {
  constructor() {
    this.history = []; // valuesOf each pair of readings, oldest first
    this.last = null;
    this.parts = new Map();
    this.timer = 0;
    for (const plot of PLOTS) byId("plots").append(this.card(plot));
    document.addEventListener("visibilitychange", () => this.schedule(0));
    this.schedule(0);
  }

  card(plot) {
    const values = plot.lines.map(() => h("dd", {}, "–"));
    const lines = plot.lines.map((_, i) => svg("path", { class: "line line-" + i }));
    const area = svg("path", { class: "area" });
    const top = h("span.top", { "aria-hidden": "true" });
    this.parts.set(plot.id, { values, lines, area, top });
    return h("section.card", {}, h("div.card-head", {}, h("h3", {}, plot.title), top),
      h("dl", {}, ...plot.lines.map((name, i) => h("div.key-" + i, {}, values[i], h("dt", {}, name)))),
      h("div.plot", {}, svg("svg", { viewBox: "0 0 240 56", preserveAspectRatio: "none", "aria-hidden": "true" }, area, ...lines)));
  }

  schedule(after) {
    clearTimeout(this.timer);
    if (!document.hidden) this.timer = setTimeout(() => this.read(), after);
  }

  async read() {
    const begun = performance.now();
    try {
      const text = await (await call("metrics")).text();
      this.take(readingOf(parseMetrics(text), performance.now() / 1000));
      this.say("live", "Live");
    } catch (error) {
      this.last = null;
      this.say(error.status === 401 ? "locked" : "lost", error.status === 401 ? "Needs an API key"
        : error.status === 404 ? "This server has no /metrics" : error.status === 0 ? "No connection" : error.message);
    }
    this.schedule(Math.max(200, PERIOD_MS - (performance.now() - begun)));
  }

  say(state, text) {
    byId("live-state").className = "state " + state;
    if (byId("live-state").textContent !== text) byId("live-state").textContent = text;
  }

  take(now) {
    if (this.last) {
      this.history.push(valuesOf(this.last, now));
      if (this.history.length > SAMPLES) this.history.shift();
      for (const plot of PLOTS) this.draw(plot);
    }
    this.last = now;
  }

  draw(plot) {
    const parts = this.parts.get(plot.id);
    const series = plot.lines.map((_, i) => this.history.map((values) => values[plot.id][i]));
    const largest = Math.max(0, ...series.flat().filter(Number.isFinite));
    const top = plot.share ? 1 : largest || 1;
    series.forEach((points, i) => {
      const known = points.filter(Number.isFinite);
      parts.values[i].textContent = plot.write(plot.sparse || plot.share ? known[known.length - 1] : points[points.length - 1]);
      parts.lines[i].setAttribute("d", linePath(points, top));
    });
    parts.area.setAttribute("d", areaPath(series[0], top));
    parts.top.textContent = largest > 0 && !plot.share ? "peak " + plot.write(largest) : "";
  }
}

/* The points with a value, from the left edge to the right; the newest is at the right. */
function placed(points, top) {
  const x = (i) => 240 - (points.length - 1 - i) * (240 / (SAMPLES - 1));
  return points.map((v, i) => [x(i), 53 - 47 * Math.min(v / top, 1)]).filter(([, y]) => Number.isFinite(y));
}

function linePath(points, top) {
  const path = placed(points, top).map(([x, y], i) => (i ? "L" : "M") + x.toFixed(1) + " " + y.toFixed(1));
  return path.length === 1 ? path[0] + " h 0.1" : path.join("");
}

function areaPath(points, top) {
  const at = placed(points, top);
  if (at.length < 2) return "";
  return linePath(points, top) + "L" + at[at.length - 1][0].toFixed(1) + " 54L" + at[0][0].toFixed(1) + " 54Z";
}
