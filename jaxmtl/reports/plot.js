// Draws the rows of the table of tasks that are shown, as dots or bars. Colours are Okabe and Ito's, as in the pictures.
const PALETTE = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#767676"];
const SVG = "http://www.w3.org/2000/svg";
const WIDTH = 1000, HEIGHT = 480, LEFT = 64, BOTTOM = 48, TOP = 12, RIGHT = 16;
const BAR = 18, NAMES = 330, LONGEST = 40;

const element = (name, attributes, ...children) => {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
};

const niceTicks = (low, high) => {
  const rough = (high - low) / 5;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((factor) => factor * power).find((size) => size >= rough * 0.999);
  const first = Math.ceil(low / step - 1e-9);
  const last = Math.floor(high / step + 1e-9);
  return Array.from({ length: last - first + 1 }, (_, index) => Number(((first + index) * step).toPrecision(12)));
};

const widened = (values) => {
  const low = Math.min(...values), high = Math.max(...values);
  const space = high > low ? (high - low) * 0.05 : Math.abs(high) * 0.05 || 1;
  return [low - space, high + space];
};

// Ranks with ties at their mean; Spearman's correlation is Pearson's of the ranks.
const ranks = (values) => {
  const order = values.map((_, index) => index).sort((a, b) => values[a] - values[b]);
  const found = new Array(values.length);
  for (let start = 0; start < order.length; ) {
    let end = start;
    while (end + 1 < order.length && values[order[end + 1]] === values[order[start]]) end += 1;
    for (let place = start; place <= end; place += 1) found[order[place]] = (start + end) / 2;
    start = end + 1;
  }
  return found;
};

const correlation = (a, b) => {
  const mean = (values) => values.reduce((sum, value) => sum + value, 0) / values.length;
  const [meanA, meanB] = [mean(a), mean(b)];
  const sum = (f) => a.reduce((total, _, index) => total + f(a[index] - meanA, b[index] - meanB), 0);
  return sum((x, y) => x * y) / Math.sqrt(sum((x) => x * x) * sum((_, y) => y * y));
};

const shortened = (text) => (text.length > LONGEST ? `${text.slice(0, LONGEST - 1)}\u2026` : text);

const drawPlot = (table, figure) => {
  const heads = [...table.tHead.rows[0].cells];
  const name = (column) => heads[column].textContent.trim();
  const numbers = heads.flatMap((head, column) => (head.classList.contains("number") ? [column] : []));
  const [kind, x, y] = ["kind", "x", "y"].map((id) => document.getElementById(id));
  for (const select of [x, y]) {
    select.append(...numbers.map((column) => new Option(name(column), column)));
    select.value = figure.dataset[select.id];
  }
  const categories = [...new Set([...table.tBodies[0].rows].map((row) => row.cells[CATEGORY].textContent))].sort();
  const color = (row) => PALETTE[categories.indexOf(row.cells[CATEGORY].textContent) % PALETTE.length];
  const number = (row, column) => (valueOf(row.cells[column]) === "" ? NaN : Number(valueOf(row.cells[column])));

  const mark = (shape, row, text) => {
    shape.append(element("title", {}, `${row.cells[0].textContent} (${row.cells[CATEGORY].textContent}): ${text}`));
    shape.classList.add("mark");
    shape.addEventListener("click", () => {
      table.querySelectorAll(".picked").forEach((other) => other.classList.remove("picked"));
      row.classList.add("picked");
      row.scrollIntoView({ block: "nearest" });
    });
    return shape;
  };
  const label = (text, attributes) => element("text", { "font-size": 12, fill: "currentColor", ...attributes }, text);
  const line = (x1, y1, x2, y2, extra) => element("line", { x1, y1, x2, y2, class: "grid", ...extra });

  const scatter = (rows) => {
    const points = rows.map((row) => [row, number(row, x.value), number(row, y.value)]);
    const known = points.filter(([, a, b]) => !Number.isNaN(a + b));
    const [xs, ys] = [known.map(([, a]) => a), known.map(([, , b]) => b)];
    if (!known.length) return [null, "no task with both numbers"];
    const [rangeX, rangeY] = [widened(xs), widened(ys)];
    const right = WIDTH - RIGHT, low = HEIGHT - BOTTOM;
    const atX = (value) => LEFT + ((value - rangeX[0]) / (rangeX[1] - rangeX[0])) * (right - LEFT);
    const atY = (value) => low - ((value - rangeY[0]) / (rangeY[1] - rangeY[0])) * (low - TOP);
    const drawn = element("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, width: WIDTH, role: "img" });
    for (const tick of niceTicks(...rangeX)) {
      drawn.append(line(atX(tick), TOP, atX(tick), low), label(tick, { x: atX(tick), y: low + 18, "text-anchor": "middle" }));
    }
    for (const tick of niceTicks(...rangeY)) {
      drawn.append(line(LEFT, atY(tick), right, atY(tick)), label(tick, { x: LEFT - 8, y: atY(tick) + 4, "text-anchor": "end" }));
    }
    const from = Math.max(rangeX[0], rangeY[0]), to = Math.min(rangeX[1], rangeY[1]);
    const metric = (column) => name(column).split(" (")[0];
    if (metric(x.value) === metric(y.value) && from < to) {
      drawn.append(line(atX(from), atY(from), atX(to), atY(to), { class: "equal" }));
    }
    drawn.append(label(name(x.value), { x: (LEFT + right) / 2, y: HEIGHT - 8, "text-anchor": "middle" }));
    const middle = (TOP + low) / 2;
    drawn.append(label(name(y.value), { x: 14, y: middle, "text-anchor": "middle", transform: `rotate(-90 14 ${middle})` }));
    for (const [row, a, b] of known) {
      const dot = element("circle", { cx: atX(a), cy: atY(b), r: 5, fill: color(row), "fill-opacity": 0.75 });
      drawn.append(mark(dot, row, `${name(x.value)} ${a}, ${name(y.value)} ${b}`));
    }
    const rho = correlation(ranks(xs), ranks(ys));
    const said = Number.isFinite(rho) ? `; Spearman's rank correlation ${rho.toFixed(3)}` : "";
    return [drawn, `${known.length} tasks${said}`];
  };

  const bars = (rows) => {
    const known = rows.map((row) => [row, number(row, y.value)]).filter(([, value]) => !Number.isNaN(value));
    if (!known.length) return [null, "no task with this number"];
    const values = known.map(([, value]) => value);
    const range = [Math.min(0, ...values), Math.max(0, ...values)];
    if (range[0] === range[1]) range[1] = 1;
    const right = WIDTH - 56, height = known.length * BAR + BOTTOM;
    const at = (value) => NAMES + ((value - range[0]) / (range[1] - range[0])) * (right - NAMES);
    const drawn = element("svg", { viewBox: `0 0 ${WIDTH} ${height}`, width: WIDTH, role: "img" });
    for (const tick of niceTicks(...range)) {
      drawn.append(line(at(tick), 0, at(tick), height - BOTTOM));
      drawn.append(label(tick, { x: at(tick), y: height - BOTTOM + 16, "text-anchor": "middle" }));
    }
    drawn.append(label(name(y.value), { x: (NAMES + right) / 2, y: height - 8, "text-anchor": "middle" }));
    known.forEach(([row, value], place) => {
      const top = place * BAR, start = at(Math.min(0, value));
      const size = { x: start, y: top + 3, width: Math.max(at(Math.max(0, value)) - start, 1), height: BAR - 6 };
      drawn.append(mark(element("rect", { ...size, fill: color(row) }), row, `${name(y.value)} ${value}`));
      drawn.append(label(shortened(row.cells[0].textContent), { x: NAMES - 8, y: top + BAR - 5, "text-anchor": "end" }));
      drawn.append(label(value.toFixed(2), { x: at(Math.max(0, value)) + 5, y: top + BAR - 5 }));
    });
    return [drawn, `${known.length} tasks, in the order of the table`];
  };

  const draw = () => {
    const rows = [...table.tBodies[0].rows].filter((row) => !row.hidden);
    figure.querySelectorAll(".scatter").forEach((one) => (one.hidden = kind.value !== "scatter"));
    const [drawn, said] = (kind.value === "scatter" ? scatter : bars)(rows);
    if (drawn) drawn.setAttribute("aria-label", `${said}; same numbers as the table`);
    document.getElementById("canvas").replaceChildren(...(drawn ? [drawn] : []), legend(rows));
    document.getElementById("reading").textContent = `${said}.`;
  };
  const legend = (rows) => {
    const list = document.createElement("ul");
    list.className = "legend";
    for (const category of categories.filter((one) => rows.some((row) => row.cells[CATEGORY].textContent === one))) {
      const item = document.createElement("li"), dot = document.createElement("i");
      dot.style.background = PALETTE[categories.indexOf(category) % PALETTE.length];
      item.append(dot, category || "none");
      list.append(item);
    }
    return list;
  };
  for (const select of [kind, x, y]) select.addEventListener("change", draw);
  table.addEventListener("rows", draw);
  draw();
};

const plotFigure = document.getElementById("plot");
if (taskTable && plotFigure) drawPlot(taskTable, plotFigure);
