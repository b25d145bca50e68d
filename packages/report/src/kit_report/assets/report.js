// Sorting of tables and the choice of theme; everything else works without this file.
"use strict";

const THEMES = { auto: "Theme: as the system", light: "Theme: light", dark: "Theme: dark" };

function storedTheme() {
  try { return localStorage.getItem("report-theme") || "auto"; } catch { return "auto"; }
}

function applyTheme(theme) {
  if (theme === "auto") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = theme;
}

applyTheme(storedTheme()); // before the page is drawn, so that it does not flash

function compare(a, b, descending) {
  // Cells without a value come last, whatever the direction.
  if (a === null || b === null) return (a === null) - (b === null);
  const order = typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b), "en", { numeric: true });
  return descending ? -order : order;
}

function valueOf(cell) {
  if (cell.dataset.v !== undefined) return Number(cell.dataset.v);
  const text = cell.textContent.trim();
  return text === "" || text === "–" ? null : text;
}

function sortBy(table, heading) {
  const now = heading.getAttribute("aria-sort");
  const first = heading.classList.contains("num") ? "descending" : "ascending"; // the largest number is wanted first
  const next = now === null ? first : now === "ascending" ? "descending" : "ascending";
  const column = heading.cellIndex;
  const body = table.tBodies[0];
  const rows = [...body.rows].map((row) => [valueOf(row.cells[column]), row]);
  rows.sort((one, other) => compare(one[0], other[0], next === "descending"));
  body.append(...rows.map((pair) => pair[1]));
  for (const other of heading.parentElement.cells) other.removeAttribute("aria-sort");
  heading.setAttribute("aria-sort", next);
}

document.addEventListener("DOMContentLoaded", () => {
  for (const table of document.querySelectorAll("table.sortable")) {
    for (const button of table.querySelectorAll("thead th > button")) {
      button.addEventListener("click", () => sortBy(table, button.parentElement));
    }
  }
  const button = document.querySelector("[data-theme-button]");
  let theme = storedTheme();
  const show = () => { applyTheme(theme); button.textContent = THEMES[theme] ?? THEMES.auto; };
  button.hidden = false;
  show();
  button.addEventListener("click", () => {
    const names = Object.keys(THEMES);
    theme = names[(names.indexOf(theme) + 1) % names.length];
    try { localStorage.setItem("report-theme", theme); } catch { /* pages from the disk may have no storage */ }
    show();
  });
});
