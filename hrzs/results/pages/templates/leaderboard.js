"use strict";
// Without this script the page is the same table, in its first order and against its first row.
const points = (tenths) => (tenths < 0 ? "" : "+") + (tenths / 10).toFixed(1);

for (const table of document.querySelectorAll("table.board")) {
  const rows = [...table.tBodies[0].rows];
  const select = document.getElementById(table.dataset.select);
  const pairs = JSON.parse(document.getElementById(table.dataset.pairs).textContent);

  // pairs[i][j - i - 1][column] is entry i less entry j, as [difference, low, high] in tenths of a point, or null.
  const difference = (i, j, column) => {
    if (i < j) return pairs[i][j - i - 1][column];
    const turned = pairs[j][i - j - 1][column];
    return turned && [-turned[0], -turned[2], -turned[1]];
  };
  const compare = () => {
    const reference = Number(select.value);
    for (const row of rows) {
      const i = Number(row.dataset.i);
      row.classList.toggle("reference", i === reference);
      row.querySelectorAll(".difference").forEach((place, column) => {
        const found = i === reference ? null : difference(i, reference, column);
        place.textContent = found ? `${points(found[0])}\n[${points(found[1])}, ${points(found[2])}]` : "";
        place.classList.toggle("good", Boolean(found) && found[1] > 0);
        place.classList.toggle("bad", Boolean(found) && found[2] < 0);
      });
    }
  };
  select.addEventListener("change", compare);
  select.closest("p").hidden = false;
  compare();  // a browser that goes back keeps what was selected

  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const isNumber = head.classList.contains("n");
      const was = head.getAttribute("aria-sort");
      const falls = was ? was === "ascending" : isNumber;  // numbers: the highest first
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", falls ? "descending" : "ascending");
      const key = (row) => row.cells[column].dataset.v;
      const order = (a, b) => (isNumber ? key(a) - key(b) : key(a).localeCompare(key(b)));
      const there = rows.filter((row) => key(row) !== ""), missing = rows.filter((row) => key(row) === "");
      there.sort((a, b) => (falls ? order(b, a) : order(a, b)));
      table.tBodies[0].append(...there, ...missing);
    });
  });
}
