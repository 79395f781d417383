"use strict";

const figures = JSON.parse(document.getElementById("figures").textContent);
const dark = matchMedia("(prefers-color-scheme: dark)");
const touch = matchMedia("(pointer: coarse), (max-width: 640px)").matches;
const config = {
  responsive: true,
  displaylogo: false,
  displayModeBar: touch ? false : "hover",
  modeBarButtons: [["toImage", "zoomIn2d", "zoomOut2d", "resetScale2d"]], // none that would send data anywhere
};

// Figures name the variables of the style sheet where plotly wants colours.
function coloured(value, key, style) {
  if (Array.isArray(value)) return value.map((item) => coloured(item, key, style));
  if (value && typeof value === "object") {
    return Object.fromEntries(Object.entries(value).map(([name, item]) => [name, coloured(item, name, style)]));
  }
  return /color$/.test(key) && typeof value === "string" ? style.getPropertyValue(value).trim() : value;
}

function draw() {
  const style = getComputedStyle(document.documentElement);
  for (const [id, figure] of Object.entries(figures)) {
    const { data, layout } = coloured(figure, "", style);
    layout.font.family = layout.hoverlabel.font.family = getComputedStyle(document.body).fontFamily;
    if (touch) layout.dragmode = false; // a finger scrolls the page
    Plotly.react(id, data, layout, config);
  }
}

function sortBy(header) {
  const table = header.closest("table");
  const column = header.cellIndex;
  const order = header.ariaSort === "ascending" ? -1 : 1;
  for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
  header.setAttribute("aria-sort", order > 0 ? "ascending" : "descending");
  const numeric = header.classList.contains("number");
  const key = (row) => row.cells[column].dataset.value ?? row.cells[column].textContent;
  const compare = (a, b) => (numeric ? a - b : a.localeCompare(b, undefined, { numeric: true }));
  const rows = [...table.tBodies[0].rows];
  rows.sort((a, b) => {
    const [left, right] = [key(a), key(b)];
    if (left === "" || right === "") return (left === "") - (right === ""); // what is not known stays last
    return order * compare(left, right);
  });
  table.tBodies[0].append(...rows);
}

for (const button of document.querySelectorAll("th button")) {
  button.addEventListener("click", () => sortBy(button.closest("th")));
}
dark.addEventListener("change", draw);
draw();
