/* A run while it trains. */

import { curves, showCurves } from "./curves.js";
import { $, data, make, percent, titleOf } from "./dom.js";

const { rows, epochs, errors } = data;
const last = rows.at(-1);

document.title = `Epoch ${rows.length} of ${epochs}`;
$("headline").textContent = document.title;
const named = { train_acc: "training", val_acc: "held out", test_acc: "test" };
const accuracies = Object.entries(named).filter(([key]) => key in last);
const texts = accuracies.map(([key, name]) => `${name} ${last[key].toFixed(2)}%`);
const state = data.seconds ? "" : " The run is complete.";
$("what").textContent =
  `${data.model}: accuracy ${texts.join(", ")}; ${Math.round(last.images_per_second)} images/s.${state}`;
$("origin").textContent = data.run;

showCurves();
for (const [key, label] of [
  ["learning_rate", "learning rate"],
  ["relative_step", "step relative to the kernels"],
  ["kernel_norm", "norm of the kernels"],
])
  $("curves").append(curves(rows, [[key, "", "var(--accent)"]], label));

function card(error) {
  const box = make("figure", undefined, "neighbour");
  const picture = make("img");
  picture.src = error.picture;
  picture.alt = `test image ${error.index}`;
  const caption = make("figcaption", titleOf(error));
  caption.append(make("div", `#${error.index}, ${percent(error.confidence)}`));
  box.append(picture, caption);
  return box;
}

if (errors.length) {
  $("errors").hidden = false;
  $("tested").textContent = `Of ${data.tested} test images, drawn once; after epoch ${rows.length}.`;
  $("errors").lastElementChild.append(...errors.map(card));
}
if (data.seconds) setTimeout(() => location.reload(), 1000 * data.seconds);
