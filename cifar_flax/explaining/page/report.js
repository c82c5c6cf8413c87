/* The report. */

import { startCompared } from "./compared.js";
import { fit, load, startOpacity } from "./draw.js";
import { showClasses, showConfusion, showCurves, showHead, showPeople, showRobustness, showTrust } from "./figures.js";
import { showCell, startGallery } from "./gallery.js";
import { startLive } from "./live.js";

showHead();
showCurves();
showClasses();
showConfusion(showCell);
showPeople();
showTrust();
showRobustness();
startOpacity();
for (const canvas of document.querySelectorAll("canvas")) fit(canvas, 256);
load(() => {
  startGallery();
  startLive();
  startCompared();
});
