/* The report. */

import { startCompared } from "./compared.js";
import { fit, load, startColors, startOpacity } from "./draw.js";
import { showClasses, showConfusion, showCurves, showHead, showPeople, showTrust } from "./figures.js";
import { showCell, startGallery } from "./gallery.js";
import { startLive } from "./live.js";

showHead();
showCurves();
showClasses();
showConfusion(showCell);
showPeople();
showTrust();
startOpacity();
startColors();
for (const canvas of document.querySelectorAll("canvas")) fit(canvas, 256);
load(() => {
  startGallery();
  startLive();
  startCompared();
});
