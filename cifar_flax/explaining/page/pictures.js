/* The page of a person's own pictures. */

import { $, bar, data, MANY, make, names, percent, SIDE } from "./dom.js";
import { showConfusions } from "./figures.js";

function img(src, alt, className) {
  const node = make("img", undefined, className);
  node.src = src;
  node.alt = alt;
  return node;
}

function figure(picture, caption, className) {
  const node = make("figure", undefined, className);
  node.append(picture, make("figcaption", caption));
  return node;
}

function isWrong(picture) {
  return picture.true !== undefined && picture.true !== picture.predicted;
}

function article(picture) {
  const box = make("article");
  const top = make("div", undefined, "top");
  const bars = make("div");
  const maps = make("div", undefined, "maps");
  const p = picture.probabilities;
  const ranked = names.map((_, i) => i).sort((a, b) => p[b] - p[a]);
  const wrong = isWrong(picture) ? `; wrong, it is ${picture.true}` : "";
  box.append(make("h2", `${picture.title}: ${picture.predicted}, ${percent(p[ranked[0]])}${wrong}`));
  if (picture.unlike) {
    const apart = `at a distance of ${picture.distance.toFixed(3)}, beyond ${data.threshold.toFixed(3)}`;
    box.append(make("p", `Unlike the training set: ${apart}.`, "notice"));
  }
  bars.append(...ranked.slice(0, MANY).map((i) => bar("div", names[i], p[i], percent(p[i]))));
  const [width, height] = picture.size;
  top.append(
    figure(img(picture.whole, picture.title), `the picture, ${width} x ${height}`, "whole"),
    figure(
      img(picture.input, "what the network sees"),
      `what the network sees: its middle, ${SIDE} x ${SIDE}`,
      "input",
    ),
    bars,
  );
  for (const c of ranked.filter((i) => picture.classes.includes(i))) {
    const stack = make("div", undefined, "stack");
    const layer = picture.layers[picture.classes.indexOf(c)];
    stack.append(img(picture.middle, ""));
    stack.append(layer ? img(layer, `map of ${names[c]}`, "layer") : make("div", "zero map: no evidence", "zero"));
    maps.append(figure(stack, `${names[c]} ${percent(p[c])}`));
  }
  box.append(top, maps);
  if (picture.nearest.length) {
    const near = make("div", undefined, "neighbours");
    picture.nearest.forEach((src, i) => {
      const { index, label, similarity } = picture.neighbours[i];
      const caption = `${label}, cosine ${similarity.toFixed(2)}, #${index}`;
      near.append(figure(img(src, `training image ${index}`), caption, "neighbour"));
    });
    box.append(make("h3", "Nearest training images"), near);
  }
  return box;
}

const count = data.pictures.length;
const unlike = data.pictures.filter((picture) => picture.unlike).length;
const right = data.pictures.filter((picture) => picture.true === picture.predicted).length;
const accuracy = data.accuracy === null ? "" : `: ${right} right, ${percent(data.accuracy)}`;
$("headline").textContent = `${count} picture${count === 1 ? "" : "s"}, explained${accuracy}`;
$("known").textContent = `The network knows ${names.length} classes, and names one of them for anything it is shown.`;
$("what").textContent =
  `${data.method} at ${data.stage}, over the middle of each picture. ` +
  "A map shows what speaks for its class: red most, blue least. Each has a scale of its own: colours cannot be " +
  "compared between maps.";
if (data.rule) {
  $("rule").textContent =
    `${unlike} marked as unlike the training set: ${data.rule} (${data.threshold.toFixed(3)}). ` +
    "So 5% of the data set's own pictures would be marked, and not everything that is strange is.";
}
$("origin").textContent = `${data.checkpoint}, ${data.model}, SHA-256 ${data.checkpoint_sha256}`;
$("opacity").oninput = (event) => document.body.style.setProperty("--opacity", event.target.value / 100);
const ordered = [...data.pictures].sort((a, b) => isWrong(b) - isWrong(a)); // errors first
const articles = ordered.map(article);
$("pictures").append(...articles);

/* Shows only the pictures of one cell of the confusion matrix. */
function choose(isTrue, isPredicted) {
  const is = (picture) => picture.true === names[isTrue] && picture.predicted === names[isPredicted];
  articles.forEach((node, i) => {
    node.hidden = !is(ordered[i]);
  });
  $("chosen").hidden = false;
  $("chosen").firstElementChild.textContent = `${names[isTrue]}, predicted as ${names[isPredicted]}:`;
  $("chosen").scrollIntoView();
}

if (data.confusion) {
  $("matrix").hidden = false;
  showConfusions(choose);
  $("chosen").lastElementChild.onclick = () => {
    $("chosen").hidden = true;
    for (const node of articles) node.hidden = false;
  };
}
