"use strict";
// Two conveniences; the page is complete without them. Text is only ever set as textContent.

// 1. Show the values under the pointer, or by the arrow keys if a figure has the focus.
for (const figure of document.querySelectorAll("figure[data-readout]")) {
  const data = JSON.parse(figure.dataset.readout);
  const svg = figure.querySelector("svg");
  const cursor = svg.querySelector(".cursor");
  const items = [...figure.querySelectorAll(".legend li:not(.step, .note)")];
  const names = items.map((item) => item.textContent);
  const stepItem = figure.querySelector(".legend li.step");
  const lines = Object.values(data.lines);
  let at = -1;

  const show = (index) => {
    at = index;
    cursor.style.visibility = index < 0 ? "hidden" : "visible";
    stepItem.textContent = index < 0 ? "" : data.names?.[index] ?? "step " + data.steps[index];
    items.forEach((item, i) => {
      item.textContent = index < 0 ? names[i] : names[i] + " " + lines[i][index];
    });
    if (index < 0) return;
    cursor.setAttribute("x1", data.x[index]);
    cursor.setAttribute("x2", data.x[index]);
  };
  svg.addEventListener("pointermove", (event) => {
    const box = svg.getBoundingClientRect();
    const x = ((event.clientX - box.left) / box.width) * svg.viewBox.baseVal.width;
    let nearest = 0;
    data.x.forEach((value, i) => {
      if (Math.abs(value - x) < Math.abs(data.x[nearest] - x)) nearest = i;
    });
    show(nearest);
  });
  svg.addEventListener("pointerleave", () => show(-1));
  figure.addEventListener("blur", () => show(-1));
  figure.addEventListener("keydown", (event) => {
    const move = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!move) return;
    event.preventDefault();
    show(Math.min(data.steps.length - 1, Math.max(0, at + move)));
  });
}

// Mention the keys only if this script runs.
document.querySelector(".keys").hidden = false;

// 2. Go to the next (j) or the previous (k) group of answers, and open it.
document.addEventListener("keydown", (event) => {
  const move = { j: 1, k: -1 }[event.key];
  if (!move || event.ctrlKey || event.metaKey || event.altKey) return;
  const groups = [...document.querySelectorAll("details.group")];
  const here = document.activeElement.closest("details.group");
  let next = groups.indexOf(here) + move;
  if (!here) {
    next = groups.findIndex((group) => group.getBoundingClientRect().top > 60);
    if (move < 0) next = (next < 0 ? groups.length : next) - 1;
  }
  const group = groups[next];
  if (!group) return;
  group.open = true;
  group.querySelector("summary").focus({ preventScroll: true });
  group.scrollIntoView({ block: "start" });
});
