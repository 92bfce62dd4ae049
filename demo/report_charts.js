// Drawing for the report: one figure with lines, bands, stacked areas, levels and lanes over time, redrawn at its container's width.
// Used by report_page.js alone. Knows nothing of rollouts; every text that it shows is handed in.
"use strict";

const SVG = "http://www.w3.org/2000/svg";

function node(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) if (value != null) element.setAttribute(name, value);
  element.append(...children.filter((child) => child != null));
  return element;
}

function shape(tag, attributes = {}, ...children) {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) if (value != null) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

const CHARACTER = 6.3; // width of one character of the axis font, pixels: decides which labels have room

function timeTicks(from, to, width) {
  const steps = [1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400, 21600, 43200, 86400, 172800, 604800];
  const step = steps.find((size) => (to - from) / size <= width / 70) || 2592000;
  const ticks = [];
  for (let at = Math.ceil(from / step) * step; at <= to + 1e-6; at += step) ticks.push(at);
  return ticks;
}

function linearTicks(low, high, count) {
  const raw = (high - low) / count;
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = power * [1, 2, 5, 10].find((factor) => factor * power >= raw);
  const ticks = [];
  for (let index = Math.ceil(low / step - 1e-9); index * step <= high + step * 1e-6; index += 1) ticks.push(index * step);
  return ticks;
}

function logTicks(low, high) {
  const decades = Math.log10(high / low);
  const stride = Math.max(1, Math.ceil(decades / 5));
  const ticks = [];
  for (let power = Math.ceil(Math.log10(low) - 1e-9); 10 ** power <= high * 1.0001; power += stride) ticks.push(10 ** power);
  return ticks;
}

function valueDomain(spec) {
  if (spec.y.domain) return spec.y.domain;
  const values = [...spec.lines.flatMap((line) => line.points.map((point) => point[1])), ...(spec.levels || []).map((level) => level.y)];
  const known = values.filter((value) => value != null && Number.isFinite(value));
  if (!known.length) return [0, 1];
  const low = spec.y.zero ? 0 : Math.min(...known), high = Math.max(...known);
  const room = (high - low || Math.abs(high) || 1) * 0.08;
  return [spec.y.zero ? 0 : low - room, high + room];
}

// The value that a series shows at x: its last point at or before x, not older than `reach` and not across a gap.
function valueAt(points, x, reach) {
  let found = null;
  for (const point of points) {
    if (point[0] > x + 1e-9) break;
    found = point;
  }
  return found && x - found[0] <= reach ? found : null;
}

function figure(spec) {
  const holder = node("div", { class: "plot" });
  const tip = node("div", { class: "tip", hidden: "" });
  const legend = node("ul", { class: "legend" });
  for (const entry of [...(spec.stack || []), ...spec.lines, ...(spec.bands || []), ...(spec.levels || []), ...(spec.moments || [])]) {
    if (!entry.name || entry.points?.length === 0) continue;
    const swatch = shape("svg", { width: 22, height: 10, "aria-hidden": "true" });
    const area = entry.area || spec.stack?.includes(entry);
    swatch.append(
      area ? shape("rect", { x: 2, width: 18, height: 10, class: `area ${entry.cls}` })
        : entry.x != null ? shape("path", { d: "M11 0v10", class: `moment ${entry.cls}` })
          : shape("path", { d: "M0 5h22", class: `line ${entry.cls}` }));
    legend.append(node("li", {}, swatch, entry.name));
  }
  const result = node("figure", {}, node("figcaption", {}, node("b", {}, spec.title), spec.note ? node("span", {}, spec.note) : ""), legend, holder, tip);
  holder.style.height = `${plotHeight(spec)}px`; // before the first drawing, so that the page does not jump
  new ResizeObserver(() => {
    const width = Math.floor(holder.clientWidth);
    if (width > 60 && holder.dataset.width !== String(width)) {
      holder.dataset.width = width;
      holder.replaceChildren(draw(spec, width, tip, result));
    }
  }).observe(holder);
  return result;
}

const LANE = 18;

function plotHeight(spec) {
  return (spec.height || 190) + (spec.lanes || []).length * LANE;
}

function draw(spec, width, tip, owner) {
  const lanes = spec.lanes || [];
  const height = plotHeight(spec);
  const [low, high] = valueDomain(spec);
  const ticks = spec.y.log ? logTicks(low, high) : linearTicks(low, high, 5);
  const left = Math.max(...ticks.map((tick) => spec.y.text(tick).length)) * CHARACTER + 30;
  const box = { left, right: width - 10, top: 6 + lanes.length * LANE, bottom: height - 34 };
  const [from, to] = spec.x.domain;
  const x = (value) => box.left + ((value - from) / (to - from || 1)) * (box.right - box.left);
  const share = spec.y.log
    ? (value) => Math.log(Math.max(value, 1e-300) / low) / Math.log(high / low)
    : (value) => (value - low) / (high - low);
  const y = (value) => box.bottom - Math.max(-0.02, Math.min(1.02, share(value))) * (box.bottom - box.top);
  const root = shape("svg", { width, height, role: "img", "aria-label": `${spec.title}. ${spec.y.label} over ${spec.x.label}.` });

  for (const tick of ticks) {
    root.append(shape("path", { d: `M${box.left} ${y(tick)}H${box.right}`, class: "grid" }));
    root.append(shape("text", { x: box.left - 6, y: y(tick) + 4, class: "tick end" }, spec.y.text(tick)));
  }
  for (const tick of timeTicks(from, to, box.right - box.left)) {
    const room = x(tick) < box.left + 8 ? "start" : x(tick) > box.right - 16 ? "end" : "middle";
    root.append(shape("path", { d: `M${x(tick)} ${box.bottom}v4`, class: "axis" }));
    root.append(shape("text", { x: x(tick), y: box.bottom + 15, class: `tick ${room}` }, spec.x.text(tick)));
  }
  root.append(shape("text", { x: (box.left + box.right) / 2, y: height - 5, class: "tick middle" }, spec.x.label));
  root.append(shape("text", { class: "tick middle", transform: `translate(10 ${(box.top + box.bottom) / 2}) rotate(-90)` }, spec.y.label));

  lanes.forEach((spans, index) => {
    const top = 4 + index * LANE;
    for (const span of spans) {
      const start = Math.max(box.left, x(span.from)), end = Math.min(box.right, x(span.to));
      if (end - start < 0.5) continue;
      const label = [span.label, span.short].find((text) => text && text.length * CHARACTER + 6 <= end - start);
      root.append(shape("rect", { x: start + 0.5, y: top, width: Math.max(1, end - start - 1), height: LANE - 3, rx: 2, class: `lane ${span.cls || ""}` }));
      if (label) root.append(shape("text", { x: (start + end) / 2, y: top + 11.5, class: "tick middle lanetext" }, label));
    }
  });

  const clip = `clip${Math.random().toString(36).slice(2)}`;
  root.append(shape("clipPath", { id: clip }, shape("rect", { x: box.left, y: box.top, width: box.right - box.left, height: box.bottom - box.top })));
  const inside = shape("g", { "clip-path": `url(#${clip})` });
  root.append(inside);
  drawStack(spec.stack || [], inside, x, y);
  for (const band of spec.bands || []) {
    for (const run of runs(band.points, (point) => point[1] != null || point[2] != null)) {
      const upper = run.map((point) => `${x(point[0])},${point[2] == null ? box.top - 5 : y(point[2])}`);
      const lower = run.map((point) => `${x(point[0])},${point[1] == null ? box.bottom + 5 : y(point[1])}`).reverse();
      inside.append(shape("path", { d: `M${[...upper, ...lower].join("L")}Z`, class: `area ${band.cls}` }));
    }
  }
  for (const level of spec.levels || []) inside.append(shape("path", { d: `M${box.left} ${y(level.y)}H${box.right}`, class: `line ${level.cls}` }));
  for (const moment of spec.moments || []) inside.append(shape("path", { d: `M${x(moment.x)} ${box.top}V${box.bottom}`, class: `moment ${moment.cls}` }));
  for (const line of spec.lines) {
    for (const run of runs(line.points, (point) => point[1] != null)) {
      if (run.length === 1) inside.append(shape("circle", { cx: x(run[0][0]), cy: y(run[0][1]), r: 2.5, class: `dot ${line.cls}` }));
      inside.append(shape("path", { d: `M${run.map((point) => `${x(point[0])},${y(point[1])}`).join("L")}`, class: `line ${line.cls}` }));
    }
  }
  root.append(shape("path", { d: `M${box.left} ${box.bottom}H${box.right}`, class: "axis" }));
  attachTip(spec, root, box, { from, to, x }, tip, owner);
  return root;
}

function runs(points, known) {
  const found = [[]];
  for (const point of points) {
    if (known(point)) found[found.length - 1].push(point);
    else found.push([]);
  }
  return found.filter((run) => run.length);
}

// Areas on top of each other; all layers share the same x values.
function drawStack(layers, inside, x, y) {
  if (!layers.length) return;
  const floor = layers[0].points.map(() => 0);
  for (const layer of layers) {
    const top = layer.points.map((point, index) => [x(point[0]), y(floor[index] + point[1])]);
    const bottom = layer.points.map((point, index) => [x(point[0]), y(floor[index])]).reverse();
    inside.append(shape("path", { d: `M${[...top, ...bottom].map((pair) => pair.join(",")).join("L")}Z`, class: `area ${layer.cls}` }));
    layer.points.forEach((point, index) => { floor[index] += point[1]; });
  }
}

function attachTip(spec, root, box, scale, tip, owner) {
  const cross = shape("path", { class: "cross", visibility: "hidden" });
  const zone = shape("rect", { x: box.left, y: 0, width: box.right - box.left, height: box.bottom, fill: "transparent" });
  root.append(cross, zone);
  const reach = spec.x.reach || (scale.to - scale.from) / 12;
  const hide = () => { tip.hidden = true; cross.setAttribute("visibility", "hidden"); };
  zone.addEventListener("pointerleave", hide);
  zone.addEventListener("pointermove", (event) => {
    const place = root.getBoundingClientRect();
    const at = scale.from + ((event.clientX - place.left - box.left) / (box.right - box.left)) * (scale.to - scale.from);
    const rows = [];
    for (const spans of spec.lanes || []) {
      const span = spans.find((one) => one.from <= at && at <= one.to);
      if (span) rows.push(node("div", {}, node("i", {}, span.title || span.label)));
    }
    for (const entry of [...(spec.stack || []), ...spec.lines]) {
      const point = valueAt(entry.points, at, reach);
      if (point && point[1] != null && !entry.hidden?.(point[1])) rows.push(node("div", {}, node("span", {}, entry.short || entry.name), node("b", {}, (entry.hover || spec.y.hover)(point[1], point))));
    }
    for (const band of spec.bands || []) {
      const point = valueAt(band.points, at, reach);
      if (point && (point[1] != null || point[2] != null)) {
        const ends = [point[1], point[2]].map((end) => (end == null ? "open" : spec.y.hover(end)));
        rows.push(node("div", {}, node("span", {}, band.short || band.name), node("b", {}, ends.join(" … "))));
      }
    }
    for (const level of spec.levels || []) rows.push(node("div", {}, node("span", {}, level.short || level.name), node("b", {}, level.value || spec.y.hover(level.y))));
    tip.replaceChildren(node("div", { class: "when" }, spec.x.hover(at)), ...rows);
    tip.hidden = false;
    const frame = owner.getBoundingClientRect();
    const want = event.clientX - frame.left + 14;
    tip.style.left = `${Math.max(4, want + tip.offsetWidth > frame.width ? want - tip.offsetWidth - 28 : want)}px`;
    tip.style.top = `${Math.max(0, event.clientY - frame.top - tip.offsetHeight - 12)}px`;
    cross.setAttribute("d", `M${scale.x(at)} ${box.top}V${box.bottom}`);
    cross.setAttribute("visibility", "visible");
  });
}
