const sortable = (table) => {
  const body = table.tBodies[0];
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    const isNumber = head.classList.contains("number");
    head.querySelector("button").addEventListener("click", () => {
      const next = head.getAttribute("aria-sort") === (isNumber ? "descending" : "ascending");
      const sign = next === isNumber ? 1 : -1;
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", sign === 1 ? "ascending" : "descending");
      const key = (row) => row.cells[column].textContent;
      const compare = (a, b) => {
        if (!isNumber) return sign * key(a).localeCompare(key(b));
        if (key(a) === "" || key(b) === "") return (key(a) === "") - (key(b) === "");
        return sign * (Number(key(a)) - Number(key(b)));
      };
      body.append(...[...body.rows].sort(compare));
    });
  });
};

document.querySelectorAll("table.sortable").forEach(sortable);

document.getElementById("filter")?.addEventListener("input", (event) => {
  const wanted = event.target.value.toLowerCase();
  const rows = document.getElementById("tasks").tBodies[0].rows;
  for (const row of rows) row.hidden = !row.textContent.toLowerCase().includes(wanted);
});
