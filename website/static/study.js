// A chart in an element .study: what a point is about, below the chart, when it is pointed at or reached by the keyboard.
"use strict";

document.querySelectorAll(".study").forEach((study) => {
  const told = study.querySelector("output");
  study.querySelectorAll("a.mark").forEach((mark) => {
    const tell = () => { told.textContent = mark.dataset.about; };
    mark.addEventListener("pointerenter", tell);
    mark.addEventListener("focus", tell);
  });
});
