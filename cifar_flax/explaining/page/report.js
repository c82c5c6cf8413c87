/* The report. */

import { startCompared } from "./compared.js";
import { fit, load, startColors, startOpacity } from "./draw.js";
import { showClasses, showConfusions, showCurves, showHead, showPeople, showRobustness, showTrust } from "./figures.js";
import { showCell, startGallery } from "./gallery.js";
import { startLive } from "./live.js";
import { showBehind } from "./neighbours.js";
import { startSlices } from "./slices.js";

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
for (const canvas of document.querySelectorAll("canvas")) fit(canvas, 256);
load(() => {
  startGallery();
  startSlices();
  startLive();
  startCompared();
});
