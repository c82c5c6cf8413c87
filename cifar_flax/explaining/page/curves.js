/* The curves of a training. */

import { $, data, make } from "./dom.js";

function svgNode(tag, attributes, text) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  if (text !== undefined) node.textContent = text;
  return node;
}

/* One line for each key that all rows have: [key, name, colour]. A name may be empty. Values are shown times scale. */
export function curves(rows, allKeys, label, scale = 1) {
  const width = 420;
  const height = 206;
  const left = 40;
  const right = width - 8;
  const bottom = 40;
  const top = 12;
  const last = rows.length;
  const keys = allKeys.filter(([key]) => rows.every((row) => Number.isFinite(row[key])));
  const values = rows.flatMap((row) => keys.map(([key]) => scale * row[key]));
  const low = Math.min(...values);
  const high = Math.max(...values);
  const x = (i) => left + (right - left) * (last > 1 ? i / (last - 1) : 0.5);
  const y = (v) => top + (height - top - bottom) * (high > low ? (high - v) / (high - low) : 0.5);
  const svg = svgNode("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": label });
  // Ticks are at round numbers, three of them or a few more.
  const third = (high - low) / 3 || 1;
  const power = 10 ** Math.floor(Math.log10(third));
  const step = power * [5, 2, 1].find((n) => n * power <= third);
  const digits = Math.max(0, -Math.floor(Math.log10(step)));
  const tick = (v, text) => {
    svg.append(svgNode("line", { x1: left, x2: right, y1: y(v), y2: y(v), stroke: "var(--line)" }));
    svg.append(svgNode("text", { x: left - 5, y: y(v) + 4, "text-anchor": "end" }, text));
  };
  if (high === low) tick(low, String(Number(low.toPrecision(3))));
  else for (let v = Math.ceil(low / step) * step; v <= high; v += step) tick(v, v.toFixed(digits));
  let start = left;
  for (const [key, name, color] of keys) {
    const points = rows.map((row, i) => `${x(i)},${y(scale * row[key])}`).join(" ");
    svg.append(svgNode("polyline", { points, fill: "none", stroke: color, "stroke-width": 2 }));
    if (last === 1) svg.append(svgNode("circle", { cx: x(0), cy: y(scale * rows[0][key]), r: 3, fill: color }));
    if (!name) continue;
    svg.append(svgNode("rect", { x: start, y: height - 11, width: 12, height: 3, fill: color }));
    svg.append(svgNode("text", { x: start + 16, y: height - 6 }, name));
    start += 34 + 6 * name.length;
  }
  svg.append(
    svgNode(
      "text",
      { x: right, y: height - 24, "text-anchor": "end" },
      `${label}, ${last} epoch${last > 1 ? "s" : ""}`,
    ),
  );
  return svg;
}

export function showCurves() {
  if (!data.rows.length) $("curves").append(make("p", "The checkpoint brings no training history.", "soft"));
  else
    for (const [key, label, scale] of [
      ["loss", "loss", 1],
      ["accuracy", "accuracy, %", 100],
    ]) {
      const train = data.taught && key === "loss" ? "train: labels and teacher" : "train (augmented)";
      const lines = [
        [`train_${key}`, train, "var(--accent)"],
        [`val_${key}`, "held out", "#009E73"],
        [`test_${key}`, "test", "#D55E00"],
      ];
      $("curves").append(curves(data.rows, lines, label, scale));
    }
}
