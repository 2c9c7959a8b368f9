"use strict";
const all = (selector) => [...document.querySelectorAll(selector)];
const get = (id) => document.getElementById(id);
all("[data-script]").forEach((item) => { item.hidden = false; });

// A mode is lit up in all figures, and dark again on the second press.
all("[data-key]").forEach((key) => key.addEventListener("click", () => {
  const chosen = key.getAttribute("aria-pressed") === "true" ? null : key.dataset.key;
  all("[data-key]").forEach((item) => {
    item.setAttribute("aria-pressed", String(item.dataset.key === chosen));
  });
  all(".chart [data-series]").forEach((item) => {
    item.classList.toggle("faint", chosen !== null && item.dataset.series !== chosen);
  });
}));

// Of the tables of all modes, the chosen one is shown.
all("[data-choice]").forEach((choice) => {
  const name = choice.dataset.choice;
  const show = () => all(`[data-pane^="${name}-"]`).forEach((item) => {
    item.hidden = item.dataset.pane !== `${name}-${choice.value}`;
  });
  choice.addEventListener("change", show);
  show();
});

const wipe = get("wipe");
if (wipe) {
  const left = get("panel-left"), right = get("panel-right"), mode = get("panel-mode");
  const stage = document.querySelector(".stage");
  const move = () => {
    stage.style.setProperty("--wipe", `${wipe.value}%`);
    wipe.setAttribute("aria-valuetext",
      `${wipe.value} per cent ${left.value}, the rest ${right.value}`);
  };
  const show = () => {
    const from = get(`panel-${left.value}`), to = get(`${right.value}-${mode.value}`);
    get("stage-left").src = from.src;
    get("stage-left").alt = from.alt;
    get("stage-right").src = to.src;
    get("stage-right").alt = to.alt;
    get("stage-text").textContent = `Left: ${from.alt}. Right: ${to.alt}.`;
    move();
  };
  [left, right, mode].forEach((item) => item.addEventListener("change", show));
  wipe.addEventListener("input", move);
  const drag = (event) => {
    if (event.pointerType === "mouse" && !event.buttons) { return; }
    const box = stage.getBoundingClientRect();
    wipe.value = (event.clientX - box.left) / box.width * 100;
    move();
  };
  stage.addEventListener("pointerdown", drag);
  stage.addEventListener("pointermove", drag);
  show();
}

// Paper cannot be opened.
let closed = [];
addEventListener("beforeprint", () => {
  closed = all("details.print:not([open])");
  closed.forEach((item) => { item.open = true; });
});
addEventListener("afterprint", () => closed.forEach((item) => { item.open = false; }));
