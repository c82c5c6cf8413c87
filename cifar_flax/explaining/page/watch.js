/* A run while it trains. */

import { curves, showCurves } from "./curves.js";
import { $, data, make, percent, titleOf } from "./dom.js";

const { rows, epochs, errors } = data;
const names = { train_accuracy: "training", val_accuracy: "held out", test_accuracy: "test" };

/* What the newest epoch gave. */
function figures(last) {
  if (!last) return "The first figures come at the end of the first epoch.";
  const measured = Object.entries(names).filter(([key]) => key in last);
  const texts = measured.map(([key, name]) => `${name} ${(100 * last[key]).toFixed(2)}%`);
  const speed = `the epoch took ${Math.round(last.seconds)} s, ${Math.round(last.images_per_second)} images/s`;
  return `Accuracy: ${texts.join(", ")}; ${speed}.`;
}

document.title = rows.length ? `Epoch ${rows.length} of ${epochs}` : "Training begins";
$("headline").textContent = document.title;
$("what").textContent = `${data.model}. ${figures(rows.at(-1))}${data.seconds ? "" : " The run is complete."}`;
$("origin").textContent = `${data.run}, written ${data.written}`;

$("training").hidden = !rows.length;
if (rows.length) {
  showCurves();
  for (const [key, label] of [
    ["learning_rate", "learning rate"],
    ["relative_step", "step relative to the kernels"],
    ["kernel_norm", "norm of the kernels"],
  ])
    $("curves").append(curves(rows, [[key, "", "var(--accent)"]], label));
}

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
  $("tested").textContent =
    `Of ${data.tested} test images, the same ones each time. The percentage is how sure the network is.`;
  $("errors").lastElementChild.append(...errors.map(card));
}
if (data.seconds) setTimeout(() => location.reload(), 1000 * data.seconds);
