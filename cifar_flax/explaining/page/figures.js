/* The figures of a report: its head, the accuracy of each class, the confusion matrix, and tables. */

import { $, bar, data, MANY, make, names, option, percent } from "./dom.js";

/* How many confusions are listed. */
const WORST = 10;

const sum = (values) => values.reduce((a, b) => a + b, 0);

export function showHead() {
  const wrong = data.count - sum(data.confusion.map((row, i) => row[i]));
  $("headline").textContent = `${wrong.toLocaleString("en")} of ${data.count.toLocaleString("en")} images wrong`;
  document.title = $("headline").textContent;
  const accuracy = `test accuracy ${(100 * data.accuracy).toFixed(2)}%`;
  $("what").textContent = `${data.model}: ${accuracy}, ${data.data}. Maps: ${data.method} at ${data.stage}.`;
  $("origin").textContent = `${data.checkpoint}, SHA-256 ${data.checkpoint_sha256}`;
  if (data.is_sample) {
    $("notice").hidden = false;
    $("notice").textContent =
      "These are figures of the embedded sample of 1,000 test images, not of CIFAR-10; " +
      "the training curves are of the data that the network was trained on.";
  }
}

/* ---- classes and their confusions ---- */

export function showClasses() {
  data.confusion.forEach((row, i) => {
    const total = sum(row);
    if (total) $("classes").append(bar("div", names[i], row[i] / total, percent(row[i] / total)));
  });
}

function heading(name) {
  const cell = make("th");
  cell.append(make("span", name));
  cell.title = name;
  return cell;
}

/* The worst pairs first. */
function worstPairs(choose) {
  const list = make("ol");
  list.id = "pairs";
  const pairs = data.confusion.flatMap((row, i) => row.map((count, j) => ({ i, j, count: i === j ? 0 : count })));
  pairs.sort((a, b) => b.count - a.count);
  for (const { i, j, count } of pairs.slice(0, WORST).filter((pair) => pair.count)) {
    const button = make("button", `${names[i]} taken for ${names[j]}: ${count}`, "plain");
    button.onclick = () => choose(i, j);
    const item = make("li");
    item.append(button);
    list.append(item);
  }
  return list;
}

/* A table of rows of cells, the first one its head. */
function tableOf(className, ...rows) {
  const table = make("table", undefined, className);
  const [head, ...lines] = rows.map((cells) => {
    const line = make("tr");
    line.append(...cells);
    return line;
  });
  table.append(make("thead"), make("tbody"));
  table.firstChild.append(head);
  table.lastChild.append(...lines);
  return table;
}

function scrolling(table) {
  const box = make("div", undefined, "scroll");
  box.append(table);
  return box;
}

function matrix(choose) {
  const many = names.length > MANY;
  const most = Math.max(1, ...data.confusion.map((row, i) => Math.max(0, ...row.filter((_, j) => i !== j))));
  const cellOf = (count, i, j) => {
    const cell = make("td");
    if (many && !count) return cell; // a number only where there is one
    const button = make("button", count, i === j ? "right" : "");
    button.setAttribute("aria-label", `${count} of ${names[i]} predicted as ${names[j]}`);
    if (i !== j) button.style.background = `rgba(var(--wrong), ${(0.6 * count) / most})`;
    button.disabled = !count;
    button.onclick = () => choose(i, j);
    cell.append(button);
    return cell;
  };
  const rows = data.confusion.map((row, i) => [heading(names[i]), ...row.map((count, j) => cellOf(count, i, j))]);
  const table = tableOf("matrix", [make("td"), ...names.map(heading)], ...rows);
  table.id = "confusion";
  table.classList.toggle("many", many);
  return table;
}

/* A slider for how large a table of many classes is. */
function zoomOf(table) {
  const label = make("label", "Zoom ");
  const slider = make("input");
  Object.assign(slider, { type: "range", min: 0.4, max: 1.6, step: 0.1, value: 1 });
  slider.oninput = () => {
    table.style.zoom = slider.value;
  };
  label.id = "zoom";
  label.hidden = !table.classList.contains("many");
  label.append(slider);
  return label;
}

/* Fills #matrix. `choose` is called with the true and the predicted class of a pair. */
export function showConfusions(choose) {
  const table = matrix(choose);
  $("matrix").append(
    make("p", "The most frequent confusions. Choose one to see its images.", "soft"),
    worstPairs(choose),
    make("p", "All of them: rows are true classes, columns predictions.", "soft"),
    zoomOf(table),
    scrolling(table),
  );
}

/* ---- corrupted images ---- */

/* A heat map as Python gives it: orange where it is bad, blue where it is good. */
function heatMap({ title, text, columns, rows, cells, shades }) {
  const box = make("div");
  const cellOf = (number, shade) => {
    const cell = make("td", number, "value");
    const colour = `rgb(var(${shade > 0 ? "--wrong" : "--right"})) ${60 * Math.abs(shade)}%`;
    cell.style.background = `color-mix(in srgb, ${colour}, var(--ground))`;
    return cell;
  };
  const lines = rows.map((name, i) => [heading(name), ...cells[i].map((number, j) => cellOf(number, shades[i][j]))]);
  const table = tableOf("matrix", [make("td"), ...columns.map(heading)], ...lines);
  table.classList.toggle(
    "upright",
    columns.every((name) => name.length < 3),
  );
  table.classList.toggle("many", columns.length > MANY);
  box.append(make("h3", title), make("p", text, "soft"), scrolling(table));
  return box;
}

export function showRobustness() {
  if (!data.robustness) return;
  const { about, heat_maps: heatMaps } = data.robustness;
  $("robustness").hidden = false;
  $("robustness-found").textContent = about[0];
  $("robustness-how").textContent = about[1];
  for (const name of Object.keys(heatMaps)) option($("heat-map"), name, name);
  $("heat-map").onchange = () => $("heat-maps").replaceChildren(...heatMaps[$("heat-map").value].map(heatMap));
  $("heat-map").onchange();
}

/* ---- tables ---- */

/* A table of columns [title, function of a row]. */
export function numbers(columns, rows) {
  const cellOf = (text, i) => make(i ? "td" : "th", text, String(text).length > 24 ? "words" : "");
  const lines = rows.map((row) => columns.map(([, cell], i) => cellOf(cell(row), i)));
  const head = columns.map(([title]) => make("th", title));
  return scrolling(tableOf("numbers", head, ...lines));
}

/* The same of a table as Python gives it. */
export const numbersOf = (table) =>
  numbers(
    table.columns.map((title, i) => [title, (row) => row[i]]),
    table.rows,
  );

export function showPeople() {
  const { people } = data;
  if (!people) return;
  $("people").hidden = false;
  const kinds = Object.entries(people.definitions);
  const definitions = kinds.map(([kind, text]) => `${kind[0].toUpperCase()}${kind.slice(1)}: ${text}.`).join(" ");
  const count = `All ${people.wrong.toLocaleString("en")} wrong predictions of the ${data.data}`;
  $("people").append(make("p", `${count}, and what people say of the same images. ${definitions}`, "soft"));
  const from = (least) => (least === undefined ? "any" : least === 0 ? "less" : `${percent(least)} or more`);
  const columns = [
    ["wrong, at a confidence of", (row) => from(row.confidence_from)],
    ["", (row) => row.wrong],
    ...kinds.map(([kind]) => [kind, (row) => row[kind]]),
  ];
  $("people").append(numbers(columns, [people, ...people.by_confidence]));
  $("people").append(make("p", "Accuracy by what people chose:", "soft"));
  const groups = [
    ["images", ([name]) => name],
    ["number", ([, group]) => group.count.toLocaleString("en")],
    ["accuracy", ([, group]) => (group.accuracy === null ? "" : percent(group.accuracy))],
  ];
  $("people").append(numbers(groups, Object.entries(people.accuracy)));
}

export function showTrust() {
  $("trust").hidden = !data.trust.length;
  data.trust.forEach((table, i) => {
    const details = make("details");
    details.open = i === 0;
    details.append(make("summary", table.title), make("p", table.text, "soft"), numbersOf(table));
    if (table.picture) {
      const picture = make("img");
      picture.src = `data:image/png;base64,${table.picture}`;
      picture.alt = table.title;
      details.append(picture);
    }
    $("trust").append(details);
  });
}
