const valueOf = (cell) => cell.dataset.value ?? cell.textContent;

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
      const key = (row) => valueOf(row.cells[column]);
      const compare = (a, b) => {
        if (!isNumber) return sign * key(a).localeCompare(key(b));
        if (key(a) === "" || key(b) === "") return (key(a) === "") - (key(b) === "");
        return sign * (Number(key(a)) - Number(key(b)));
      };
      body.append(...[...body.rows].sort(compare));
      table.dispatchEvent(new Event("rows"));
    });
  });
};

document.querySelectorAll("table.sortable").forEach(sortable);

const CATEGORY = 1;

const filterTasks = (table) => {
  const text = document.getElementById("filter");
  const category = document.getElementById("category");
  const show = () => {
    const wanted = text.value.toLowerCase();
    const rows = [...table.tBodies[0].rows];
    for (const row of rows) {
      const isOfCategory = category.value === "*" || row.cells[CATEGORY].textContent === category.value;
      row.hidden = !isOfCategory || !row.textContent.toLowerCase().includes(wanted);
    }
    const count = rows.filter((row) => !row.hidden).length;
    document.getElementById("chosen").textContent = count < rows.length ? `${count} of ${rows.length} tasks` : "";
    table.dispatchEvent(new Event("rows"));
  };
  text.addEventListener("input", show);
  category.addEventListener("change", show);
};

const taskTable = document.getElementById("tasks");
if (taskTable) filterTasks(taskTable);
