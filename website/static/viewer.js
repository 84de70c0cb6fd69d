// Elements .viewer: maps over patches, from the numbers in the page. A patch mixer's by layer and unit; attention's by layer,
// head and the patch that asks.
"use strict";

const SVG = "http://www.w3.org/2000/svg";

function element(name, properties = {}, ...children) {
  const made = Object.assign(document.createElement(name), properties);
  made.append(...children);
  return made;
}

function color(value, most) {
  const share = Math.round(100 * Math.abs(value) / (most || 1));
  return `color-mix(in srgb, ${value < 0 ? "var(--s1)" : "var(--s0)"} ${share}%, var(--pst-color-background))`;
}

// A map of values; ask: what happens when a patch is pointed at; asked: the patch to outline.
function map(values, columns, title, ask, asked) {
  const rows = values.length / columns;
  const most = Math.max(...values.map(Math.abs));
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("viewBox", `-0.05 -0.05 ${columns + 0.1} ${rows + 0.1}`);
  svg.setAttribute("role", "img");
  svg.setAttribute("aria-label", `${title}: largest ${most}`);
  values.forEach((value, i) => {
    const cell = document.createElementNS(SVG, "rect");
    const place = { x: i % columns, y: Math.floor(i / columns), width: 0.96, height: 0.96 };
    Object.entries(place).forEach(([key, at]) => cell.setAttribute(key, at));
    cell.style.fill = color(value, most);
    if (i === asked) cell.classList.add("asked");
    cell.append(Object.assign(document.createElementNS(SVG, "title"), { textContent: String(value) }));
    if (ask) cell.addEventListener("pointerenter", () => ask(i));
    svg.append(cell);
  });
  return element("figure", {}, svg, element("figcaption", { textContent: `${title}; largest ${most}` }));
}

function slider(label, count, change) {
  const input = element("input", { type: "range", min: 1, max: count, value: 1 });
  const told = element("output", { textContent: `1 of ${count}` });
  input.addEventListener("input", () => { told.textContent = `${input.value} of ${count}`; change(); });
  return { input, value: () => input.value - 1, shown: element("label", { textContent: label }, input, told) };
}

function mixer({ label, source, columns, layers }) {
  const maps = element("div", { className: "maps" });
  const draw = () => {
    const { takes, gives } = layers[layer.value()];
    maps.replaceChildren(map(takes[unit.value()], columns, "takes from"), map(gives[unit.value()], columns, "gives to"));
  };
  const layer = slider("layer", layers.length, () => draw());
  const unit = slider("unit, strongest first", layers[0].takes.length, () => draw());
  draw();
  return element("section", { className: "mixer" }, element("h3", { textContent: `${label}: a hidden unit over patches` }),
    layer.shown, unit.shown, maps, element("small", { textContent: source }));
}

function attention({ label, source, columns, layers }) {
  const maps = element("div", { className: "maps" });
  const count = layers[0][0].length;
  const draw = () => {
    const values = layers[layer.value()][head.value()][patch.value()];
    maps.replaceChildren(map(values, columns, `patch ${patch.value() + 1} attends to`, ask, patch.value()));
  };
  const ask = (i) => { patch.input.value = i + 1; patch.input.dispatchEvent(new Event("input")); };
  const layer = slider("layer", layers.length, () => draw());
  const head = slider("head", layers[0].length, () => draw());
  const patch = slider("patch that asks", count, () => draw());
  draw();
  return element("section", { className: "attention" }, element("h3", { textContent: `${label}: attention, mean over images` }),
    layer.shown, head.shown, patch.shown, maps, element("small", { textContent: source }));
}

document.querySelectorAll(".viewer").forEach((viewer) => {
  const data = JSON.parse(viewer.querySelector("script").textContent);
  viewer.replaceChildren(mixer(data.mixer), ...(data.attention ? [attention(data.attention)] : []));
});
