// Curves over steps: one SVG a card, all with the same cursor. Paths are drawn when data or width change, the cursor alone
// when the step does.

const HEIGHT = 170, LEFT = 44, RIGHT = 8, TOP = 8, BOTTOM = 20;
const view = { runs: [], shown: [], step: 0, hover: null, following: true, status: {}, failures: 0 };

const rowsOf = () => view.shown[0].rows;
const here = () => view.hover ?? view.step;

function svg(name, attributes = {}, ...children) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

// Steps of the first and last row of all runs that are shown.
function span() {
  const ends = view.shown.filter((run) => run.rows.length).flatMap((run) => [run.rows[0].step, run.rows.at(-1).step]);
  return ends.length ? [Math.min(...ends), Math.max(...ends)] : [0, 1];
}

function rowAt(run, step) {
  let low = 0, high = run.rows.length - 1;
  while (low <= high) {
    const middle = (low + high) >> 1;
    if (run.rows[middle].step === step) return run.rows[middle];
    if (run.rows[middle].step < step) low = middle + 1; else high = middle - 1;
  }
  return undefined;
}

const pointsOf = (run, key) => run.rows.filter((each) => Number.isFinite(each[key])).map((each) => [each.step, each[key]]);

// At most the lowest and highest point of every pixel column, in their order.
function thinned(points, xOf) {
  if (points.length < 1200) return points;
  const kept = [];
  let column = null, low, high;
  const close = () => { if (low) kept.push(...(low === high ? [low] : low[0] < high[0] ? [low, high] : [high, low])); };
  for (const point of points) {
    const at = Math.round(xOf(point[0]));
    if (at !== column) { close(); [column, low, high] = [at, point, point]; }
    if (point[1] < low[1]) low = point;
    if (point[1] > high[1]) high = point;
  }
  close();
  return kept;
}

// Three to five round values that enclose the range.
function ticks(low, high) {
  const raw = (high - low) / 3 || Math.abs(high) || 1;
  const unit = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 2.5, 5, 10].map((times) => times * unit).find((size) => size >= raw * 0.999);
  const first = Math.floor(low / step + 1e-9), last = Math.max(first + 1, Math.ceil(high / step - 1e-9));
  return Array.from({ length: last - first + 1 }, (_, i) => Number(((first + i) * step).toPrecision(12)));
}

function short(value) {
  const size = Math.abs(value);
  if (size >= 1e4) return `${Number((value / 1000).toPrecision(3))}k`;
  return size && size < 1e-3 ? value.toExponential(0) : String(Number(value.toPrecision(3)));
}

const sampleOf = (style, at) => svg("svg", { class: "sample", width: 18, height: 8 }, svg("path", { class: at ? "line other" : "line", style, d: "M0,4L18,4" }));
const exact = (value) => (value === undefined || value === null ? "–" : Number.isInteger(value) ? String(value) : Math.abs(value) >= 100 ? String(Math.round(value)) : Math.abs(value) < 1e-3 && value ? value.toExponential(1) : number(value, 3));

// spec: title, unit, lines [{ key, label }], share (0 to 1, as %), zero (the axis starts at 0).
class Curves {
  constructor(spec) {
    this.spec = spec;
    this.title = element("span", {}, spec.title);
    this.keys = element("p", { className: "keys" });
    this.cursor = svg("g");
    this.lines = svg("g");
    this.plot = svg("svg", { class: "plot", role: "img" });
    this.plot.append(this.lines, this.cursor);
    this.table = element("div", { className: "scroll", tabIndex: 0 });
    const details = element("details", {}, element("summary", {}, "Table"), this.table);
    details.ontoggle = () => this.fill();
    this.details = details;
    this.head = element("h3", {}, this.title, element("small", {}, spec.unit ?? ""));
    this.node = element("article", { className: "card curve" }, this.head, this.keys, this.plot, details);
    this.plot.onpointermove = (event) => hoverAt(this.stepAt(event));
    this.plot.onpointerleave = () => hoverAt(null);
    this.plot.onclick = (event) => choose(this.stepAt(event));
  }

  get width() { return this.measured ||= this.plot.clientWidth || 320; }

  stepAt(event) {
    const box = this.plot.getBoundingClientRect();
    const [first, last] = span();
    const share = (event.clientX - box.left - LEFT) / (box.width - LEFT - RIGHT);
    return Math.round(first + Math.max(0, Math.min(1, share)) * (last - first));
  }

  words(value) { return this.spec.share && Number.isFinite(value) ? percent(value) : exact(value); }

  draw() {
    const { lines, zero, share } = this.spec;
    const data = view.shown.flatMap((run, at) => lines.map((line, colour) => ({ at, colour, points: pointsOf(run, line.key) })));
    const values = data.flatMap((each) => each.points.map((point) => point[1]));
    this.present = new Set(data.filter((each) => each.points.length).map((each) => lines[each.colour].key));
    let low = values.reduce((a, b) => Math.min(a, b), zero || share ? 0 : Infinity), high = values.reduce((a, b) => Math.max(a, b), zero ? 0 : -Infinity);
    if (!values.length) [low, high] = [0, 1];
    if (low === high && share) high = low + 0.1;
    const marks = ticks(low, high);
    const [first, last] = span(), width = this.width;
    const middle = (LEFT + width - RIGHT) / 2;
    this.xOf = (step) => (first === last ? middle : LEFT + (step - first) / (last - first) * (width - LEFT - RIGHT));
    this.yOf = (value) => HEIGHT - BOTTOM - (value - marks[0]) / (marks.at(-1) - marks[0]) * (HEIGHT - TOP - BOTTOM);
    const parts = marks.flatMap((mark) => [svg("line", { class: "grid", x1: LEFT, x2: width - RIGHT, y1: this.yOf(mark), y2: this.yOf(mark) }),
      svg("text", { x: LEFT - 6, y: this.yOf(mark) + 4, "text-anchor": "end" }, share ? `${short(100 * mark)}%` : short(mark))]);
    for (const [step, anchor] of first === last ? [[first, "middle"]] : [[first, "start"], [last, "end"]]) {
      parts.push(svg("text", { x: this.xOf(step), y: HEIGHT - 4, "text-anchor": anchor }, String(step)));
    }
    for (const { at, colour, points } of data.reverse()) parts.push(...this.line(at, colour, points));
    if (!values.length) parts.push(svg("text", { x: middle, y: HEIGHT / 2, "text-anchor": "middle" }, "no values yet"));
    this.lines.replaceChildren(...parts);
    this.plot.setAttribute("aria-label", this.spoken());
    this.point();
    this.fill();
  }

  line(at, colour, points) {
    const style = `--c: var(--c${colour + 1})`;
    const place = thinned(points, this.xOf).map(([step, value]) => `${this.xOf(step).toFixed(1)},${this.yOf(value).toFixed(1)}`);
    const made = [svg("path", { class: at ? "line other" : "line", style, d: place.length ? `M${place.join("L")}` : "" })];
    const sparse = points.length && points.length < 40;
    if (sparse && !at) made.push(...place.map((spot) => svg("circle", { class: "dot", style, r: 2.4, cx: spot.split(",")[0], cy: spot.split(",")[1] })));
    return made;
  }

  // What the cursor points at.
  point() {
    if (!this.xOf) return;
    const step = here(), parts = [], keys = [];
    const [first, last] = span();
    if (step >= first && step <= last) parts.push(svg("line", { class: "cursor", x1: this.xOf(step), x2: this.xOf(step), y1: TOP, y2: HEIGHT - BOTTOM }));
    const rows = view.shown.map((run) => rowAt(run, step));
    this.spec.lines.forEach((line, colour) => {
      if (!this.present.has(line.key)) return;
      const style = `--c: var(--c${colour + 1})`;
      const figures = rows.map((row, at) => {
        const value = row?.[line.key];
        if (Number.isFinite(value)) parts.push(svg("circle", { class: "mark", style, r: 3.5, cx: this.xOf(step), cy: this.yOf(value) }));
        return at ? element("span", { title: view.shown[at].name }, sampleOf(style, at), this.words(value)) : element("b", {}, this.words(value));
      });
      keys.push(element("span", {}, sampleOf(style, 0), line.label, ...figures));
    });
    this.cursor.replaceChildren(...parts);
    this.keys.replaceChildren(...keys);
  }

  spoken() {
    const parts = this.spec.lines.map((line) => {
      const points = pointsOf(view.shown[0], line.key);
      return points.length ? `${line.label} from ${this.words(points[0][1])} at step ${points[0][0]} to ${this.words(points.at(-1)[1])} at step ${points.at(-1)[0]}` : `${line.label} without values`;
    });
    return `${this.spec.title}: ${parts.join("; ")}. The table below has every step.`;
  }

  fill() {
    if (!this.details.open) return;
    const columns = view.shown.flatMap((run, at) => this.spec.lines.map((line) => ({ run, key: line.key, label: at ? `${line.label}, ${run.name}` : line.label })));
    const steps = [...new Set(view.shown.flatMap((run) => run.rows.map((each) => each.step)))].sort((a, b) => b - a);
    this.table.replaceChildren(tableOf(["step", ...columns.map((each) => each.label)],
      steps.map((step) => [step, ...columns.map((each) => this.words(rowAt(each.run, step)?.[each.key]))]), this.spec.title));
  }
}

function tableOf(head, rows, label, words = []) {
  const cells = (kind) => (cell, at) => element(kind, { className: words.includes(at) ? "words" : "" }, cell);
  return element("table", { className: "rows", ariaLabel: label }, element("thead", {}, element("tr", {}, ...head.map(cells("th")))),
    element("tbody", {}, ...rows.map((each) => element("tr", {}, ...each.map(cells("td"))))));
}
