"use strict";
document.documentElement.classList.add("js");

const order = new Intl.Collator("en", { numeric: true });
const value = (row, column) => {
  const cell = row.cells[column];
  return cell.dataset.v === undefined ? cell.textContent.trim() : Number(cell.dataset.v);
};
const compare = (a, b) => (typeof a === "number" && typeof b === "number" ? a - b : order.compare(a, b));

for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0];
  const planned = [...body.rows];
  for (const button of table.querySelectorAll("thead button")) {
    button.addEventListener("click", () => {
      const head = button.closest("th");
      const before = head.getAttribute("aria-sort");
      const next = { null: "ascending", ascending: "descending", descending: null }[before];
      for (const other of table.querySelectorAll("th[aria-sort]")) other.removeAttribute("aria-sort");
      if (next === null) return body.append(...planned);
      head.setAttribute("aria-sort", next);
      const column = Number(button.dataset.column);
      const sign = next === "ascending" ? 1 : -1;
      const keyed = planned.map((row) => [value(row, column), row]);
      // a missing number stays at the end, whichever way
      keyed.sort(([a], [b]) => (a === "") - (b === "") || sign * compare(a, b));
      body.append(...keyed.map(([, row]) => row));
    });
  }
}

const form = document.getElementById("filter");
if (form) {
  const rows = [...document.querySelectorAll("table.filtered tbody tr")];
  const texts = new Map(rows.map((row) => [row, row.textContent.toLowerCase()]));
  const filter = () => {
    const words = form.elements.words.value.toLowerCase().split(/\s+/).filter(Boolean);
    const chosen = [...form.querySelectorAll("select")].filter((select) => select.value !== "");
    let shown = 0;
    for (const row of rows) {
      const fits = (select) => {
        const mine = row.dataset[select.name];
        return mine === undefined || ` ${mine} `.includes(` ${select.value} `);  // of several ablations, any
      };
      row.hidden =
        !words.every((word) => texts.get(row).includes(word)) ||
        !chosen.every(fits) ||
        (form.elements.last?.checked && row.dataset.last === undefined);
      shown += !row.hidden;
    }
    document.getElementById("shown").textContent = `${shown} of ${rows.length} rows`;
  };
  form.addEventListener("input", filter);
  form.addEventListener("reset", () => setTimeout(filter));
  form.addEventListener("submit", (event) => event.preventDefault());
  filter();
}
