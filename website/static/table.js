// Tables in an element .sortable: a click on a heading sorts, and a field above them searches. Without this they are plain tables.
"use strict";

const number = (text) => parseFloat(text.replace(/,/g, "").replace("−", "-"));

function compare(a, b) {
  const [x, y] = [number(a), number(b)];
  return Number.isNaN(x) || Number.isNaN(y) ? a.localeCompare(b) : x - y;
}

function sortBy(table, column, heading) {
  const downwards = heading.getAttribute("aria-sort") === "ascending";
  table.querySelectorAll("th[aria-sort]").forEach((th) => th.removeAttribute("aria-sort"));
  heading.setAttribute("aria-sort", downwards ? "descending" : "ascending");
  const text = (row) => row.cells[column].textContent.trim();
  const rows = [...table.tBodies[0].rows].sort((a, b) => compare(text(a), text(b)) * (downwards ? -1 : 1));
  table.tBodies[0].append(...rows);
}

function search(table, field, counted) {
  const words = field.value.toLowerCase().split(/\s+/);
  const rows = [...table.tBodies[0].rows];
  rows.forEach((row) => {
    const text = row.textContent.toLowerCase();
    row.hidden = !words.every((word) => text.includes(word));
  });
  counted.textContent = `${rows.filter((row) => !row.hidden).length} of ${rows.length}`;
}

document.querySelectorAll(".sortable table").forEach((table) => {
  [...table.tHead.rows[0].cells].forEach((heading, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...heading.childNodes);
    button.addEventListener("click", () => sortBy(table, column, heading));
    heading.append(button);
  });
  const above = document.createElement("label");
  above.className = "table-search";
  above.textContent = "Search";
  const field = Object.assign(document.createElement("input"), { type: "search", placeholder: "words that a row must have" });
  const counted = document.createElement("output");
  above.append(field, counted);
  field.addEventListener("input", () => search(table, field, counted));
  search(table, field, counted);
  table.closest(".sortable").prepend(above);
  table.querySelectorAll("td").forEach((cell) => {
    const verdict = /^(reproduced|contradicted|not)( comparable| run)?$/.exec(cell.textContent.trim());
    if (verdict) cell.classList.add(`verdict-${verdict[1]}`);
  });
});
