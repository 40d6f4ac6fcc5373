"use strict";
// The dashboard asks the API once a second and draws what is new; it never reloads.

const PERIOD_MS = 1000;
const MAX_LOG_LINES = 2000;

const byId = (id) => document.getElementById(id);

async function get(path) {
  const response = await fetch(path, { signal: AbortSignal.timeout(10 * PERIOD_MS) });
  if (!response.ok) throw new Error(`${path}: ${response.status}`);
  return response.json();
}

// Cells are text, or an element; nothing from a job is ever parsed as markup.
function fill(table, rows) {
  const body = byId(table).tBodies[0];
  body.replaceChildren(...rows.map((cells) => {
    const row = document.createElement("tr");
    for (const cell of cells) {
      const td = document.createElement("td");
      td.append(cell ?? "");
      row.append(td);
    }
    return row;
  }));
}

function marked(status) {
  const span = document.createElement("span");
  span.className = status;
  span.textContent = status;
  return span;
}

function link(job) {
  const a = document.createElement("a");
  a.href = `/jobs/${job.id}`;
  a.textContent = job.name;
  return a;
}

// Why a job is where it is; how it ended is its status already, unless there is more to say.
const reason = (job) => (job.why === job.status ? "" : job.why);

const time = (ms) => (ms ? new Date(ms).toLocaleString() : "");

async function index() {
  const [{ jobs }, { nodes }] = await Promise.all([get("/api/jobs"), get("/api/nodes")]);
  fill("jobs", jobs.map((j) => [link(j), j.kind, marked(j.status), reason(j), time(j.submitted_ms), j.id]));
  fill("nodes", nodes.map((n) => [n.name, marked(n.status), n.device, n.machine, `${n.busy} of ${n.slots}`, n.id]));
}

// No tool bar: it covers the picture, and dragging zooms without it.
const SHOWN = { responsive: true, displayModeBar: false };

const id = location.pathname.split("/").pop();
const seen = { series: 0, logs: 0, traces: new Map(), report: false };

function layout() {
  const style = getComputedStyle(document.body);
  const [ink, line] = [style.color, resolved(style, "--line")];
  const axis = { gridcolor: line, zerolinecolor: line, automargin: true };
  return {
    font: { color: ink }, paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
    margin: { l: 50, r: 10, t: 10, b: 40 }, legend: { orientation: "h", y: -0.25, yanchor: "top" },
    xaxis: { ...axis, title: { text: "step" } }, yaxis: { ...axis },
  };
}

// The last two are of what is known of another domain without labels; they are there where there is one.
const CHARTS = ["loss", "accuracy", "entropy", "snd"];

// One trace per phase and metric; points are appended as they arrive.
function plot(chart, row) {
  const tasks = Object.keys(row.values).filter((m) => m.startsWith("tasks.") && m.endsWith(`.${chart}`));
  for (const metric of [`train.${chart}`, `val.${chart}`, `target.${chart}`, ...tasks]) {
    if (!(metric in row.values)) continue;
    const name = `${row.phase.split("/")[0]} ${metric}`;
    const key = `${chart} ${name}`;
    const mode = metric.startsWith("train.") ? "lines" : "lines+markers";
    const trace = seen.traces.get(key) ?? { chart, name, mode, x: [], y: [] };
    // A step that was done again replaces what it was.
    const last = trace.x.length - 1;
    if (last >= 0 && trace.x[last] >= row.step) {
      const from = trace.x.findIndex((x) => x >= row.step);
      trace.x.length = from;
      trace.y.length = from;
    }
    trace.x.push(row.step);
    trace.y.push(row.values[metric]);
    seen.traces.set(key, trace);
  }
}

async function series() {
  let fresh = false;
  for (;;) {
    const { cursor, rows } = await get(`/api/jobs/${id}/series?cursor=${seen.series}&limit=2000`);
    rows.forEach((row) => CHARTS.forEach((chart) => plot(chart, row)));
    seen.series = cursor;
    fresh ||= rows.length > 0;
    if (rows.length < 2000) break;
  }
  if (!fresh) return;
  for (const chart of CHARTS) {
    const traces = [...seen.traces.values()].filter((t) => t.chart === chart);
    const cell = byId(chart).parentElement;
    if (traces.length) cell.hidden = false;
    if (cell.hidden) continue;
    const data = traces.map(({ name, mode, x, y }) => ({ name, mode, x: [...x], y: [...y] }));
    await Plotly.react(chart, data, layout(), SHOWN);
  }
}

async function logs() {
  const { cursor, lines } = await get(`/api/jobs/${id}/logs?cursor=${seen.logs}`);
  if (!lines.length) return;
  seen.logs = cursor;
  const text = lines.map((l) => `${l.phase} #${l.generation} rank ${l.rank}: ${l.text}`);
  const all = byId("logs").textContent.split("\n").concat(text);
  byId("logs").textContent = all.slice(-MAX_LOG_LINES).join("\n");
}

// A colour of the style sheet as the browser shows it: the plotting library knows nothing of light-dark().
function resolved(style, name) {
  const probe = document.createElement("span");
  probe.style.color = style.getPropertyValue(name);
  document.body.append(probe);
  const colour = getComputedStyle(probe).color;
  probe.remove();
  return colour;
}

const percent = (x) => `${(100 * x).toFixed(1)} %`;

// What a network came to in another domain, and how far apart the two lie, before and after.
function shift(metrics) {
  const pair = (name, show) => {
    const [before, after] = [metrics[`${name}_before`], metrics[name]];
    if (after === undefined) return "";
    return before === undefined ? show(after) : `${show(before)} → ${show(after)}`;
  };
  const distance = pair("shift.a_distance", (x) => x.toFixed(2));
  return [pair("target.accuracy", percent), distance && `A-distance ${distance}`].filter(Boolean).join(", ");
}

// What is gone of the task that the weights were trained on.
function forgotten(metrics) {
  const points = metrics["source.forgotten"];
  if (points === undefined) return "";
  return points < 0 ? `gained ${(-points).toFixed(1)} points` : `forgot ${points.toFixed(1)} points`;
}

// What each step has come to.
function results(phases) {
  const done = phases.filter((p) => p.result_json?.metrics);
  byId("results").hidden = done.length === 0;
  fill("figures", done.map((p) => {
    const { metrics, steps, samples, prefix } = p.result_json;
    const [train, val] = samples ?? [];
    const frozen = prefix?.needed ? `${prefix.computed} of ${prefix.needed}` : "";
    // Of few-shot episodes there is an interval, and no figure by class.
    const interval = metrics["val.interval"] === undefined ? "" : ` ± ${(100 * metrics["val.interval"]).toFixed(1)}`;
    const f1 = metrics["val.macro_f1"] === undefined ? "" : percent(metrics["val.macro_f1"]);
    return [p.step, percent(metrics["val.accuracy"]) + interval, f1,
      metrics["val.loss"]?.toFixed(4), shift(metrics), forgotten(metrics), steps, train, val, frozen];
  }));
}

// Which epoch each criterion picks, where the best one is kept or a network is brought to another domain.
function picked(phases) {
  const rows = phases.flatMap((p) => (p.result_json?.selection ?? []).map((c) => [
    p.step, c.criterion, c.epoch, c.value?.toFixed(4), c.accuracy === undefined ? "" : percent(c.accuracy),
    c.used ? "the job goes by it" : "",
  ]));
  byId("selection").hidden = rows.length === 0;
  fill("picked", rows);
}

// Few-shot episodes have no classes in common: what they came to, and what there was to beat on the same ones.
function episodes(step, { evaluation, baselines, overlap }) {
  const [cell, title, list] = ["div", "h2", "ul"].map((tag) => document.createElement(tag));
  const { count, shape } = evaluation.episodes;
  title.textContent = `Episodes: ${step}, ${count} of ${shape.way}-way ${shape.shot}-shot`;
  const line = (name, e) => `${name}: ${percent(e.accuracy)} ± ${(100 * e.episodes.interval).toFixed(1)}`;
  const lines = [line("this model", evaluation), ...(baselines ?? []).map((b) => line(b.name, b.evaluation))];
  if (overlap?.length) lines.push(`${overlap.length} of the classes that were judged were trained on too`);
  list.append(...lines.map((text) => {
    const item = document.createElement("li");
    item.textContent = text;
    return item;
  }));
  cell.append(title, list);
  return cell;
}

// Phases that one still waits for.
function waits(job, phase) {
  if (phase.status !== "waiting") return "";
  const done = new Set(job.phases.filter((p) => p.status === "succeeded").map((p) => p.id));
  return phase.needs.filter((id) => !done.has(id)).join(", ");
}

// Candidate and baselines side by side, and what that comes to.
function compared(c) {
  byId("compared").hidden = !c;
  if (!c) return;
  const [scale, digits, unit] = [c.scale, c.unit === "points" ? 1 : 4, c.scale === 100 ? " %" : ""];
  const interval = (m, by) => (m.half === null ? "" : ` ± ${(by * m.half).toFixed(digits)}`);
  const value = (m) => (m ? `${(scale * m.mean).toFixed(digits)}${interval(m, scale)}${unit}` : "");
  const gain = (m) => (m ? `${m.mean < 0 ? "" : "+"}${m.mean.toFixed(digits)}${interval(m, 1)}` : "");
  byId("summary").textContent = c.summary;
  byId("metric").textContent = c.metric;
  fill("sides", c.rows.map((r) => [r.name, value(r.value), gain(r.gain), `${r.value?.runs ?? 0} of ${r.steps}`]));
}

async function confusions() {
  for (const [step, report] of Object.entries(await get(`/api/jobs/${id}/report`))) {
    if (report?.evaluation?.episodes) {
      byId("confusions").append(episodes(step, report));
      continue;
    }
    const tasks = Object.entries(report?.tasks ?? {}).map(([task, t]) => [`${step}, task ${task}`, t.evaluation]);
    for (const [name, evaluation] of tasks.length ? tasks : [[step, report?.evaluation]]) {
      if (evaluation) await confusion(name, evaluation);
    }
  }
}

// Classes beyond which their matrix is more than a page can draw.
const DRAWN_CLASSES = 1000;

// What true classes were predicted as, row by row: as a report of few classes has it, or from the cells that are not zero.
function matrix(confusion) {
  if (Array.isArray(confusion)) return confusion;
  const { classes, cells } = confusion;
  const rows = Array.from({ length: classes }, () => new Array(classes).fill(0));
  for (const [truth, said, n] of cells) rows[truth][said] = n;
  return rows;
}

async function confusion(name, evaluation) {
  const names = evaluation.classes.map((c) => c.class);
  const [cell, title, chart] = ["div", "h2", "div"].map((tag) => document.createElement(tag));
  title.textContent = `Confusion: ${name}, ${percent(evaluation.accuracy)} right`;
  chart.className = "chart";
  cell.append(title, chart);
  byId("confusions").append(cell);
  if (names.length > DRAWN_CLASSES) {
    chart.textContent = `${names.length} classes: report.txt names those that were confused most.`;
    return;
  }
  const axes = layout();
  axes.xaxis.title.text = "predicted";
  axes.yaxis = { ...axes.yaxis, title: { text: "true" }, autorange: "reversed" };
  const style = getComputedStyle(document.body);
  // From the colour of the page to that of links: none is none, in the dark too.
  const colorscale = ["--panel", "--link"].map((name, i) => [i, resolved(style, name)]);
  const texttemplate = names.length <= 20 ? "%{z}" : "";
  const z = matrix(evaluation.confusion);
  const map = { type: "heatmap", x: names, y: names, z, colorscale, texttemplate, showscale: false };
  await Plotly.react(chart, [map], axes, SHOWN);
}

// Pictures that a run has left, but for those that this page draws itself.
const DRAWN_HERE = ["curves.svg", "confusion.svg"];

async function pictures() {
  const { pictures } = await get(`/api/jobs/${id}/pictures`);
  for (const { step, file } of pictures.filter((p) => !DRAWN_HERE.includes(p.file))) {
    const [title, image] = ["h2", "img"].map((tag) => document.createElement(tag));
    const name = file.replace(".svg", "");
    title.textContent = `${name[0].toUpperCase()}${name.slice(1)}: ${step}`;
    image.src = `/api/jobs/${id}/pictures/${encodeURIComponent(step)}/${encodeURIComponent(file)}`;
    image.alt = title.textContent;
    byId("pictures").append(title, image);
  }
}

async function job() {
  const job = await get(`/api/jobs/${id}`);
  document.title = `tl: ${job.name}`;
  byId("name").replaceChildren(job.name, " ", marked(job.status));
  byId("why").textContent = job.failure?.hint ? `${reason(job)} (${job.failure.hint})` : reason(job);
  byId("files").hidden = job.status !== "succeeded";
  byId("fetch").textContent = `tlctl fetch ${job.id}`;
  results(job.phases);
  picked(job.phases);
  compared(job.compared_json);
  fill("phases", job.phases.map((p) => {
    const a = p.activity;
    const now = a && p.status === "running" ? `${a.name} ${a.done}/${a.total}` : "";
    const attempt = p.kind === "gate" ? "" : p.generation;
    return [p.id, marked(p.status), attempt, p.ranks.length || "", waits(job, p), now];
  }));
  byId("events").replaceChildren(...job.phases.flatMap((p) => p.history.map((text) => {
    const item = document.createElement("li");
    item.textContent = `${p.id}: ${text}`;
    return item;
  })));
  await Promise.all([series(), logs()]);
  if (job.finished_ms && !seen.report) {
    seen.report = true;
    await Promise.all([confusions(), pictures()]);
  }
}

async function run() {
  const draw = document.body.dataset.page === "job" ? job : index;
  for (;;) {
    try {
      await draw();
      byId("state").textContent = "";
    } catch (e) {
      byId("state").textContent = `not up to date: ${e.message}`;
    }
    await new Promise((done) => setTimeout(done, PERIOD_MS));
  }
}

run();
