// Builds the report's page from the JSON embedded in it. Runs once when the file is opened; loads nothing, stores nothing.
// Every text comes from the data and is set as text, never as markup.
"use strict";

const data = JSON.parse(document.getElementById("data").textContent);
const VERDICTS = {
  advance: ["✓", "promoted", "good"], abort: ["✕", "rolled back", "bad"], hold: ["‖", "held", "wait"],
  error: ["!", "error", "fault"], continue: ["…", "under way", "wait"],
};
const STAGES = ["gate", "rehearsal", "canary", "watch"];
const TIME_STAGE = { rehearsal: "rehearsal", canary: "canary", watch: "watch", gate: "gate", start: "engine starts", idle: "end" };

const two = (number) => String(number).padStart(2, "0");
const span = (seconds) => {
  const whole = Math.max(0, Math.round(seconds)), hours = Math.floor(whole / 3600), minutes = Math.floor((whole % 3600) / 60);
  return hours ? `${hours}:${two(minutes)}:${two(whole % 60)}` : `${minutes}:${two(whole % 60)}`;
};
const clock = (at) => new Date(at * 1000).toLocaleTimeString([], { hour: "2-digit", minute: "2-digit", second: "2-digit" });
const many = (number) => number.toLocaleString("en");
const lasting = (seconds) => {
  const whole = Math.round(seconds);
  if (whole < 60) return `${whole} s`;
  if (whole < 3600) return `${Math.floor(whole / 60)} min ${whole % 60} s`;
  return `${Math.floor(whole / 3600)} h ${Math.floor((whole % 3600) / 60)} min`;
};
const digits = (value) => {
  const size = Math.abs(value);
  return size === 0 ? "0" : size >= 100 ? value.toFixed(0) : size >= 10 ? value.toFixed(1) : size >= 0.1 ? value.toFixed(2) : value.toPrecision(2);
};
const minus = (text) => text.replace("-", "−");
const signed = (text) => (text.startsWith("-") ? minus(text) : `+${text}`);
const trimmed = (text) => (text.includes(".") ? text.replace(/\.?0+$/, "") : text);
const evidence = (value) => (value >= 1e6 || (value > 0 && value < 1e-3) ? value.toExponential(1) : trimmed(digits(value)));
const tight = (text) => text.replace(/ (%|ms|points)/g, "\u00a0$1"); // a number is not parted from its unit
const UNITS = {
  share: { label: "share of users", factor: 100, suffix: " %", change: " points" },
  milliseconds: { label: "milliseconds", factor: 1000, suffix: " ms", change: " ms" },
  "tokens/s": { label: "tokens/s", factor: 1, suffix: " tok/s", change: " tok/s" },
  score: { label: "score", factor: 1, suffix: "", change: "" },
  plain: { label: "value", factor: 1, suffix: "", change: "" },
};

function header() {
  const met = data.rollouts.filter((rollout) => rollout.as_expected).length;
  const asked = data.rollouts.filter((rollout) => rollout.expected != null).length;
  const facts = [
    [many(data.rollouts.length), data.rollouts.length === 1 ? "rollout" : "rollouts"], [many(data.users), "users in experiments"],
    [many(data.requests), "live requests"], [lasting(data.seconds), "from start to end"],
  ];
  if (data.champion) facts.push([`v${data.champion.version}`, "serves now"]);
  return node("header", {},
    node("p", { class: "brand" }, "Understudy"),
    node("h1", {}, data.title),
    asked ? node("p", { class: met === asked ? "outcome good" : "outcome bad" }, met === asked
      ? `All ${asked} rollouts ended as they should.` : `${met} of ${asked} rollouts ended as they should.`) : null,
    node("dl", { class: "facts" }, ...facts.map(([value, label]) => node("div", {}, node("dd", {}, value), node("dt", {}, label)))));
}

function badge(rollout) {
  const [icon, word, kind] = VERDICTS[rollout.verdict || "continue"];
  return node("span", { class: `badge ${kind}` }, node("span", { "aria-hidden": "true" }, icon), ` ${word}`);
}

function path(rollout) {
  const reached = STAGES.indexOf(rollout.stage);
  const [, , kind] = VERDICTS[rollout.verdict || "continue"];
  return node("ol", { class: "path", "aria-label": `ended in ${rollout.stage}` }, ...STAGES.map((stage, index) =>
    node("li", { class: index < reached ? "passed" : index === reached ? `ended ${kind}` : "" }, stage)));
}

function card(rollout) {
  const users = rollout.users;
  const reach = [];
  if (users.mirrored) reach.push(`${many(users.mirrored)} mirrored`);
  if (users.candidate) reach.push(`${many(users.candidate)} on the candidate`);
  if (users.control) reach.push(`${many(users.control)} on control`);
  return node("a", { class: "card", href: `#${anchor(rollout)}` },
    node("div", { class: "row" }, node("h3", {}, `v${rollout.version}`), badge(rollout)),
    rollout.what ? node("p", { class: "what" }, rollout.what) : null,
    path(rollout),
    node("p", { class: "why" }, tight(rollout.why)),
    node("dl", {},
      rollout.expected != null ? node("div", {}, node("dt", {}, "expected"), node("dd", {}, `${rollout.expected} ${rollout.as_expected ? "✓" : "✕"}`)) : null,
      node("div", {}, node("dt", {}, "took"), node("dd", {}, lasting(rollout.seconds))),
      node("div", {}, node("dt", {}, "users"), node("dd", {}, reach.join(", ") || "none"))));
}

const anchor = (rollout) => `rollout-${rollout.version}-${rollout.id.slice(-6)}`;

// The story's own time axis: seconds since its start.
const since = (at) => at - data.started_at;
const storyTime = {
  label: "minutes:seconds since the start", domain: [0, Math.max(1, data.finished_at - data.started_at)], text: span,
  hover: (at) => `${span(at)} · ${clock(at + data.started_at)}`,
};

function storyLanes() {
  const rollouts = data.rollouts.map((rollout) => {
    const [icon, word, kind] = VERDICTS[rollout.verdict || "continue"];
    const name = `v${rollout.version}`;
    return { from: since(rollout.started_at), to: since(rollout.finished_at ?? data.finished_at), label: `${name} ${icon} ${word}`, short: name, title: `${name} ${word}`, cls: kind };
  });
  return [rollouts, data.rollouts.flatMap((rollout) => stageSpans(rollout, since))];
}

function stageSpans(rollout, time) {
  return rollout.stages.map((one) => {
    const canary = one.stage === "canary";
    const label = canary ? `${trimmed(digits(one.weight / 100))} %` : TIME_STAGE[one.stage];
    return { from: time(one.from), to: time(one.to), label: canary ? `canary ${label}` : label, short: canary ? label : { rehearsal: "reh.", start: "start" }[one.stage], title: canary ? `canary step ${one.step + 1}, ${label} of users` : label, cls: one.stage };
  });
}

function trafficFigure() {
  const size = data.traffic.bucket_seconds;
  const times = [...new Set(data.traffic.points.map((point) => point.at))].sort((a, b) => a - b);
  const totals = new Map(), cells = new Map();
  for (const point of data.traffic.points) {
    totals.set(point.at, (totals.get(point.at) || 0) + point.requests);
    cells.set(`${point.at} ${point.revision}`, point.requests);
  }
  const stack = data.traffic.revisions.map((revision, index) => ({
    name: revision, cls: `revision${index % 7}`,
    hidden: (value) => value === 0,
    points: times.map((at) => [since(at + size / 2), (100 * (cells.get(`${at} ${revision}`) || 0)) / totals.get(at)]),
    hover: (value, point) => `${digits(value)} % of ${many(totals.get(at_of(point[0], size)) || 0)} requests`,
  }));
  return figure({
    title: "Who answered users", note: `live requests in buckets of ${size} s; the mirrored traffic of rehearsals reaches no user and is not in it`, height: 260,
    x: { ...storyTime, reach: size * 2 }, y: { label: "share of requests", domain: [0, 100], text: (value) => `${value} %`, hover: (value) => `${digits(value)} %` },
    stack, lines: [], lanes: storyLanes(),
  });
}

const at_of = (middle, size) => Math.round((middle + data.started_at - size / 2) * 1000) / 1000;

const ARMS = [["stable", "stable"], ["control", "control"], ["candidate", "candidate"]];

// One line an arm over all rollouts: live buckets, and for rehearsals the running estimate of the mirrored pairs.
function armFigure(title, note, field, metric, y) {
  const lines = ARMS.map(([arm, cls]) => ({ name: arm === "control" ? "control (stable's answers to the comparison group)" : arm, short: arm, cls, points: [] }));
  const mirrored = ["control", "candidate"].map((arm) => ({ name: `${arm === "control" ? "stable" : "candidate"}, mirrored in rehearsal`, cls: `${arm} mirrored`, points: [] }));
  for (const rollout of data.rollouts) {
    ARMS.forEach(([arm], index) => {
      for (const point of rollout.series) if (point.arm === arm && point[field] != null) lines[index].points.push([since(point.at + data.series_bucket_seconds / 2), point[field] * y.factor]);
      lines[index].points.push([since(rollout.finished_at ?? data.finished_at), null]);
    });
    for (const reading of rollout.readings[metric] || []) {
      if (reading.stage !== "rehearsal") continue;
      mirrored.forEach((line, index) => {
        const value = reading[index === 0 ? "control" : "candidate"];
        if (value != null) line.points.push([since(reading.at), value * y.factor]);
      });
    }
    mirrored.forEach((line) => line.points.push([since(rollout.finished_at ?? data.finished_at), null]));
  }
  const shown = [...lines, ...mirrored].filter((line) => line.points.some((point) => point[1] != null));
  return figure({ title, note, x: { ...storyTime, reach: data.series_bucket_seconds * 2 }, y, lines: shown, lanes: storyLanes().slice(0, 1) });
}

function feedbackFigure() {
  const lines = ARMS.map(([arm, cls]) => ({ name: arm, cls, points: [], hover: (value, point) => `${digits(value)} % of ${many(point[2])} thumbs` }));
  for (const rollout of data.rollouts) {
    ARMS.forEach(([arm], index) => {
      let up = 0, down = 0;
      for (const point of rollout.series) {
        if (point.arm !== arm) continue;
        up += point.thumbs_up;
        down += point.thumbs_down;
        if (up + down >= 5) lines[index].points.push([since(point.at + data.series_bucket_seconds), (100 * down) / (up + down), up + down]);
      }
      lines[index].points.push([since(rollout.finished_at ?? data.finished_at), null]);
    });
  }
  const y = { label: "thumbs down", zero: true, text: (value) => `${trimmed(digits(value))} %`, hover: (value) => `${digits(value)} %` };
  return figure({
    title: "What users said", note: "share of thumbs that point down, from each rollout's start on; drawn from five thumbs on", x: { ...storyTime, reach: data.series_bucket_seconds * 3 }, y,
    lines: lines.filter((line) => line.points.some((point) => point[1] != null)), lanes: storyLanes().slice(0, 1),
  });
}

function metricFigure(rollout, metric) {
  const readings = rollout.readings[metric.metric];
  const start = rollout.started_at, end = rollout.finished_at ?? data.finished_at;
  const x = {
    label: "minutes:seconds since the rollout's start", domain: [0, Math.max(1, end - start) * 1.02], text: span, reach: Infinity,
    hover: (at) => `${span(at)} · ${clock(at + start)}`,
  };
  const moments = [{ name: rollout.decisive === metric.metric ? "decided here, on this metric" : "decided here", x: (rollout.decided_at ?? end) - start, cls: rollout.decisive === metric.metric ? "decisive" : "" }];
  const lanes = [stageSpans(rollout, (at) => at - start)];
  const common = { x, moments: rollout.verdict ? moments : [], lanes, title: metric.label, height: 180 };
  const withGaps = (value) => {
    const points = [];
    readings.forEach((reading, index) => {
      if (index && (reading.stage !== readings[index - 1].stage)) points.push([reading.at - start, null]);
      points.push([reading.at - start, ...value(reading)]);
    });
    return points;
  };
  const drawn = readings.some((reading) => reading.e_harm != null || reading.e_promote != null)
    ? betFigure(metric, readings, common, withGaps) : intervalFigure(metric, readings, common, withGaps);
  drawn.classList.toggle("decisive", rollout.decisive === metric.metric);
  drawn.append(node("p", { class: "says" }, tight(`${metric.compared} ${metric.judged}`)));
  return drawn;
}

const LEAST = 1e-2; // e-values below say nothing more; drawn at the edge

function betFigure(metric, readings, common, withGaps) {
  const last = readings[readings.length - 1];
  const bets = [["e_harm", "harm_threshold", "evidence of harm", "harm", "harm is shown at"]];
  if (metric.mode === "nonInferior") bets.push(["e_promote", "promote_threshold", "evidence of no harm", "safe", "no harm is shown at"]);
  const shown = bets.filter(([value]) => readings.some((reading) => reading[value] != null));
  const top = Math.max(...shown.flatMap(([value, threshold]) => [last[threshold], ...readings.map((reading) => reading[value] || 0)]));
  return figure({
    ...common, note: "e-value, logarithmic: evidence against the opposite; decided when it reaches its threshold",
    y: { label: "e-value", log: true, domain: [LEAST, Math.min(top, 1e12) * 3], text: (value) => (value >= 1e5 ? `10^${Math.round(Math.log10(value))}` : String(Number(value.toPrecision(1)))), hover: evidence },
    lines: shown.map(([value, , name, cls]) => ({ name, cls, points: withGaps((reading) => [reading[value]]) })),
    levels: shown.map(([, threshold, , cls, shows]) => ({ name: `${shows} ${evidence(last[threshold])}`, short: shows, cls: `${cls} level`, y: last[threshold] })),
  });
}

function intervalFigure(metric, readings, common, withGaps) {
  const unit = UNITS[metric.unit];
  const factor = metric.relative ? 100 : unit.factor, suffix = metric.relative ? " %" : unit.change;
  const scaled = (value) => (value == null ? null : value * factor);
  const margin = factor * (metric.direction === "lower" ? metric.margin : -metric.margin);
  const last = readings[readings.length - 1];
  const near = readings.slice(Math.floor(readings.length / 5)).map((reading) => reading.effect);
  const shown = [0, margin, margin * 1.5, ...[...near, last.lower, last.upper].filter((value) => value != null).map(scaled)];
  const low = Math.min(...shown), high = Math.max(...shown), room = (high - low) * 0.12;
  const text = (value) => signed(digits(value)) + suffix;
  return figure({
    ...common, note: `candidate against ${metric.stage === "rehearsal" ? "stable, mirrored" : "control"}; ${metric.direction} is better; beyond the margin is harm`,
    y: { label: metric.relative ? "relative change" : `change,${suffix}`, domain: [low - room, high + room], text: (value) => signed(String(Number(value.toPrecision(6)))) + suffix, hover: text },
    lines: [{ name: "effect", cls: "candidate", points: withGaps((reading) => [scaled(reading.effect)]) }],
    bands: [{ name: "anytime-valid interval", short: "interval", cls: "interval", area: true, points: withGaps((reading) => (reading.lower == null && reading.upper == null ? [null, null] : [scaled(reading.lower), scaled(reading.upper)])) }],
    levels: [{ name: `margin ${text(margin)}`, short: "margin", cls: "harm level", y: margin }, { name: "no difference", cls: "zero", y: 0, value: "0" }],
  });
}

function section(rollout) {
  const shown = [...rollout.metrics].sort((a, b) => (b.metric === rollout.decisive) - (a.metric === rollout.decisive));
  return node("section", { id: anchor(rollout) },
    node("div", { class: "row" }, node("h2", {}, `v${rollout.version}`, node("small", {}, rollout.what || rollout.revision)), badge(rollout)),
    node("p", { class: "lead" }, rollout.headline),
    ...rollout.sentences.map((text) => node("p", {}, tight(text))),
    node("p", { class: "quiet" }, `${rollout.revision} · rollout ${rollout.id} · ${clock(rollout.started_at)} to ${rollout.finished_at ? clock(rollout.finished_at) : "now"}`),
    shown.length ? node("div", { class: "figures" }, ...shown.map((metric) => metricFigure(rollout, metric))) : node("p", { class: "quiet" }, "It was decided before any traffic, so there is nothing to draw."));
}

function auditTable() {
  const names = new Map(data.rollouts.map((rollout) => [rollout.id, `v${rollout.version}`]));
  const rows = data.audit.map((entry) => node("tr", {},
    node("td", { class: "when", title: new Date(entry.at * 1000).toISOString() }, clock(entry.at)), node("td", {}, names.get(entry.rollout) || "–"),
    node("td", {}, entry.actor), node("td", {}, entry.action), node("td", {}, entry.reason), node("td", { class: "message" }, entry.message)));
  return node("section", { id: "audit" }, node("h2", {}, "Audit trail"),
    node("p", { class: "quiet" }, `${many(data.audit.length)} entries: who did what, when, and why.`),
    node("div", { class: "scroll" }, node("table", {},
      node("thead", {}, node("tr", {}, ...["time", "rollout", "who", "action", "reason", "message"].map((title) => node("th", { scope: "col" }, title)))),
      node("tbody", {}, ...rows))));
}

const READING = [
  ["Arms", "Candidate users are served by the new version. Control users, as many, are served by stable and are the comparison: same minutes, same load. Everyone else is stable."],
  ["E-value", "How strongly the data speak against a claim: after any number of looks, a true claim is refuted with an e-value above 100 in at most 1 of 100 rollouts. Stopping early costs nothing."],
  ["Anytime-valid interval", "Contains the true difference at every moment of the rollout at once with the stated confidence, so looking each second is allowed."],
  ["Margin", "How much worse a metric may be. Harm beyond it rolls back; a metric that must be shown not to be worse than it holds the promotion until it is."],
];

document.title = data.title;
document.getElementById("page").append(
  header(),
  node("section", { class: "cards", "aria-label": "Rollouts" }, ...data.rollouts.map(card)),
  node("section", {}, node("h2", {}, "The whole story"), trafficFigure(),
    node("div", { class: "figures" },
      armFigure("Time to first token", `median in buckets of ${data.series_bucket_seconds} s, measured at the gateway`, "ttft_p50", "ttft",
        { label: "milliseconds", factor: 1000, zero: true, text: (value) => trimmed(digits(value)), hover: (value) => `${digits(value)} ms` }),
      armFigure("Speed of answers", `mean tokens per second in buckets of ${data.series_bucket_seconds} s`, "tokens_per_second", "tokensPerSecond",
        { label: "tokens/s", factor: 1, zero: true, text: (value) => trimmed(digits(value)), hover: (value) => `${digits(value)} tok/s` }),
      feedbackFigure())),
  ...data.rollouts.map(section),
  auditTable(),
  node("section", { class: "glossary" }, node("h2", {}, "How to read this"), node("dl", {}, ...READING.map(([term, text]) => node("div", {}, node("dt", {}, term), node("dd", {}, text)))),
    Object.keys(data.facts).length ? node("dl", { class: "settings" }, ...Object.entries(data.facts).map(([label, text]) => node("div", {}, node("dt", {}, label), node("dd", {}, text)))) : null),
  node("footer", {}, `Made ${new Date(data.generated_at * 1000).toLocaleString()} from the platform's store. The same numbers as data: report.json.`));
