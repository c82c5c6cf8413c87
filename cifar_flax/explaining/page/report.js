/* The report. */

import { startCompared } from "./compared.js";
import { showCurves } from "./curves.js";
import { $, make } from "./dom.js";
import { fit, load, startColors, startOpacity } from "./draw.js";
import { showClasses, showConfusions, showHead, showPeople, showRobustness, showTrust } from "./figures.js";
import { showCell, startGallery } from "./gallery.js";
import { startLive } from "./live.js";
import { showBehind } from "./neighbours.js";
import { startSlices } from "./slices.js";

/* A button for each section that is shown. A link would end what the address says of images and filters. */
function showContents() {
  for (const title of document.querySelectorAll("main h2")) {
    if (title.closest("[hidden]")) continue;
    const button = make("button", title.textContent, "plain");
    title.tabIndex = -1;
    button.onclick = () => {
      title.scrollIntoView();
      title.focus({ preventScroll: true });
    };
    $("contents").append(button);
  }
}

showHead();
showCurves();
showClasses();
showConfusions(showCell);
showBehind();
showPeople();
showTrust();
showRobustness();
startOpacity();
startColors();
for (const canvas of document.querySelectorAll("canvas:not(#legend)")) fit(canvas, 256);
load(() => {
  startGallery();
  startSlices();
  startLive();
  startCompared();
  showContents();
});
