// Curves over steps: one uPlot chart per card. All charts have the same zoom and the same cursor.

const HEIGHT = 170;
const COLOURS = 5; // --c1 to --c5
const DASHES = [undefined, [6, 4], [2, 3], [9, 3, 2, 3]]; // of the lines of a card, if the colours stand for runs
const view = { runs: [], shown: [], step: 0, hover: null, zoom: null, following: true, status: {}, failures: 0, axis: "step", smoothing: 0 };

// The description of a key of metrics.jsonl, by the key itself or by the longest beginning that ends in a star.
const meanings = bundled.metrics;
function meaning(key) {
  const beginnings = Object.keys(meanings).filter((each) => each.endsWith("*") && key.startsWith(each.slice(0, -1)));
  return meanings[key] ?? meanings[beginnings.sort((a, b) => b.length - a.length)[0]] ?? "";
}

const rowsOf = () => view.shown[0].rows;
const here = () => view.hover ?? view.step;
const ink = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();

function svg(name, attributes = {}, ...children) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

const stepsOf = () => [...new Set(view.shown.flatMap((run) => run.rows.map((each) => each.step)))].sort((a, b) => a - b);

// What a row adds to the horizontal axis; without an entry, the axis shows steps.
const AMOUNTS = { tokens: (row) => row["tokens/generated"] ?? 0, time: (row) => row["time/step_seconds"] ?? 0 };

// The place of each step of a run on the horizontal axis: the step, or the tokens or seconds up to its end.
function placesOf(run) {
  const { axis } = view, cached = run.placed;
  if (cached?.axis === axis && cached.rows === run.rows && cached.count === run.rows.length) return cached.places;
  let sum = 0;
  const places = new Map(run.rows.map((each) => [each.step, AMOUNTS[axis] ? (sum += AMOUNTS[axis](each)) : each.step]));
  run.placed = { axis, rows: run.rows, count: run.rows.length, places };
  return places;
}

const marksOf = () => [...new Set(view.shown.flatMap((run) => [...placesOf(run).values()]))].sort((a, b) => a - b);

// The step of the run whose place is next to a place on the axis.
function stepNear(place) {
  let nearest = null, least = Infinity;
  for (const [step, at] of placesOf(view.shown[0])) {
    if (Math.abs(at - place) < least) [nearest, least] = [step, Math.abs(at - place)];
  }
  return nearest;
}

// The mean of the values so far, in which older ones count less: `weight` times less for each value.
function smoothed(values, weight) {
  let sum = 0, total = 0;
  return values.map((value) => {
    if (value === null) return null;
    [sum, total] = [weight * sum + value, weight * total + 1];
    return sum / total;
  });
}

function axisWords(place) {
  if (view.axis === "step") return String(place);
  if (view.axis === "tokens") return place >= 1e6 ? `${short(place / 1e6)}M` : short(place);
  return place >= 7200 ? `${short(place / 3600)} h` : place >= 120 ? `${short(place / 60)} min` : `${short(place)} s`;
}

// Several runs have a colour each, and the lines of a card a pattern each; one run has a colour for each line.
const many = () => view.shown.length > 1;
const colourOf = (run) => Math.max(0, view.runs.indexOf(run)) % COLOURS;

function allOf(steps) {
  if (!steps.length) return [0, 1];
  return steps.length === 1 ? [steps[0] - 1, steps[0] + 1] : [steps[0], steps.at(-1)];
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

function short(value) {
  const size = Math.abs(value);
  if (size >= 1e4) return `${Number((value / 1000).toPrecision(3))}k`;
  return size && size < 1e-3 ? value.toExponential(0) : String(Number(value.toPrecision(3)));
}

const sampleOf = (style, dash = []) => svg("svg", { class: "sample", width: 18, height: 8 }, svg("path", { class: "line", style, d: "M0,4L18,4", "stroke-dasharray": dash.join(" ") }));
const swatch = (run) => element("i", { className: "swatch", style: `--c: var(--c${colourOf(run) + 1})` });
const exact = (value) => (value === undefined || value === null ? "–" : Number.isInteger(value) ? String(value) : Math.abs(value) >= 100 ? String(Math.round(value)) : Math.abs(value) < 1e-3 && value ? value.toExponential(1) : number(value, 3));

const stepAt = (chart, event) => stepNear(chart.posToVal(event.clientX - chart.over.getBoundingClientRect().left, "x"));

// The range of steps of every chart, [first, last]; null: all steps.
function zoomTo(range) {
  view.zoom = range;
  $("unzoom").hidden = !range;
  for (const card of cards) card.rescale();
}

// spec: title, unit, lines [{ key, label }], share (0 to 1, as %), zero (the axis includes 0).
class Curves {
  constructor(spec) {
    this.spec = spec;
    this.keys = element("p", { className: "keys" });
    this.none = element("p", { className: "none" }, "no values yet");
    this.plot = element("div", { className: "plot", role: "img" }, this.none);
    this.table = element("div", { className: "scroll", tabIndex: 0 });
    this.details = element("details", {}, element("summary", {}, "Table"), this.table);
    this.details.ontoggle = () => this.fill();
    this.log = element("button", { type: "button", className: "log", "aria-pressed": "false", title: "Logarithmic axis; values of 0 and below are left out", ariaLabel: `Logarithmic axis of ${spec.title}` }, "log");
    this.log.onclick = () => {
      this.log.setAttribute("aria-pressed", String(!this.logarithmic));
      this.draw();
    };
    this.head = element("h3", {}, element("span", {}, spec.title), element("small", {}, spec.unit ?? ""), this.log);
    this.node = element("article", { className: "card curve" }, this.head, this.keys, this.plot, this.details);
  }

  get width() { return this.measured ||= this.plot.clientWidth || 320; }

  get logarithmic() { return this.log.getAttribute("aria-pressed") === "true"; }

  words(value) { return this.spec.share && Number.isFinite(value) ? percent(value) : exact(value); }

  draw() {
    const drawn = view.shown.flatMap((run, at) => this.spec.lines.map((line, colour) => ({ run, at, colour, key: line.key })));
    const marks = marksOf(), columns = new Map(marks.map((mark, column) => [mark, column]));
    const values = drawn.map(({ run, key }) => {
      const found = new Array(marks.length).fill(null), places = placesOf(run);
      for (const row of run.rows) if (Number.isFinite(row[key]) && (row[key] > 0 || !this.logarithmic)) found[columns.get(places.get(row.step))] = row[key];
      return view.smoothing ? smoothed(found, view.smoothing) : found;
    });
    this.present = new Set(this.spec.lines.map((line) => line.key).filter((key) => view.shown.some((run) => run.rows.some((row) => Number.isFinite(row[key])))));
    this.none.hidden = values.some((each) => each.some((value) => value !== null));
    this.none.textContent = this.present.size ? "no values above 0" : "no values yet";
    const form = JSON.stringify([drawn.map(({ run, key }) => [run.name, key]), this.logarithmic, view.axis, ink("ink")]);
    if (form === this.form) {
      if (this.chart.width !== this.width) this.chart.setSize({ width: this.width, height: HEIGHT });
      this.chart.setData([marks, ...values]);
    } else {
      this.form = form;
      this.chart?.destroy();
      this.chart = this.made(drawn, [marks, ...values]);
    }
    this.plot.setAttribute("aria-label", this.spoken());
    this.point();
    this.fill();
  }

  made(drawn, data) {
    const lines = drawn.map(({ run, colour, key }) => {
      const stroke = ink(`c${(many() ? colourOf(run) : colour) + 1}`);
      return {
        label: key, stroke, width: 1.8, dash: many() ? DASHES[colour % DASHES.length] : undefined, spanGaps: true,
        points: { show: (chart, which) => chart.data[which].filter((value) => value !== null).length < 40, size: 5, fill: stroke },
      };
    });
    const axis = { font: "11px system-ui, sans-serif", stroke: ink("soft"), ticks: { show: false }, grid: { stroke: ink("line"), width: 1 } };
    const chart = new uPlot({
      width: this.width, height: HEIGHT, padding: [8, 12, 0, 0], legend: { show: false }, series: [{}, ...lines],
      scales: { x: { time: false, range: (made) => view.zoom ?? allOf(made.data[0]) }, y: { distr: this.logarithmic ? 3 : 1, range: (_, low, high) => this.range(low, high) } },
      axes: [
        { ...axis, size: 26, gap: 6, grid: { show: false }, space: 60, incrs: [1, 2, 5].flatMap((times) => Array.from({ length: 13 }, (_, power) => times * 10 ** power)).sort((a, b) => a - b), values: (_, marks) => marks.map(axisWords) },
        { ...axis, size: 46, gap: 4, space: 34, values: (_, marks) => marks.map((mark) => (mark === null ? "" : this.spec.share ? `${short(100 * mark)}%` : short(mark))) },
      ],
      cursor: {
        y: false, drag: { x: true, y: false, setScale: false, dist: 5 }, points: { size: 8, width: 2, fill: ink("card"), stroke: (_, which) => lines[which - 1].stroke },
        bind: { dblclick: () => () => zoomTo(null) },
      },
      hooks: { setSelect: [(made) => this.selected(made)] },
    }, data, this.plot);
    chart.over.addEventListener("mousemove", (event) => hoverAt(stepAt(chart, event)));
    chart.over.addEventListener("mouseleave", () => hoverAt(null));
    chart.over.addEventListener("click", (event) => choose(stepAt(chart, event)));
    return chart;
  }

  range(low, high) {
    const { zero, share } = this.spec;
    if (low === null) return this.logarithmic ? [1, 10] : [0, 1];
    if (this.logarithmic) return uPlot.rangeLog(low, high, 10, false);
    if (zero || share) low = Math.min(0, low);
    if (zero) high = Math.max(0, high);
    const room = 0.06 * (high - low || Math.abs(high) || 1);
    return [low && low - room, high || low === high ? high + room : 0];
  }

  selected(chart) {
    const { left, width } = chart.select;
    if (!width) return;
    chart.setSelect({ left: 0, top: 0, width: 0, height: 0 }, false);
    const [first, last] = [left, left + width].map((place) => chart.posToVal(place, "x"));
    if (last - first >= (view.axis === "step" ? 1 : 0)) zoomTo([first, last]);
  }

  rescale() {
    this.chart?.setData(this.chart.data);
    this.point();
  }

  // Puts the cursor at the step that is pointed at or chosen, with the values of that step.
  point() {
    if (!this.chart) return;
    const step = here(), { min, max } = this.chart.scales.x, place = placesOf(view.shown[0]).get(step);
    const left = place >= min && place <= max ? this.chart.valToPos(place, "x") : -10;
    this.chart.setCursor({ left, top: left < 0 ? -10 : 0 }, false);
    const rows = view.shown.map((run) => rowAt(run, step));
    this.keys.replaceChildren(...this.spec.lines.flatMap((line, colour) => {
      if (!this.present.has(line.key)) return [];
      const figures = rows.map((row, at) => {
        const words = this.words(row?.[line.key]);
        return many() ? element("span", { title: view.shown[at].name }, swatch(view.shown[at]), words) : element("b", {}, words);
      });
      const sample = many() ? sampleOf("--c: var(--soft)", DASHES[colour % DASHES.length]) : sampleOf(`--c: var(--c${colour + 1})`);
      return [element("span", { title: meaning(line.key) }, sample, line.label, ...figures)];
    }));
  }

  spoken() {
    const parts = this.spec.lines.map(({ key, label }) => {
      const rows = rowsOf().filter((each) => Number.isFinite(each[key])), first = rows[0], last = rows.at(-1);
      return last ? `${label} from ${this.words(first[key])} at step ${first.step} to ${this.words(last[key])} at step ${last.step}` : `${label} without values`;
    });
    return `${this.spec.title}: ${parts.join("; ")}. The table below has every step.`;
  }

  fill() {
    if (!this.details.open) return;
    const columns = view.shown.flatMap((run, at) => this.spec.lines.map((line) => ({ run, key: line.key, label: at ? `${line.label}, ${run.name}` : line.label })));
    this.table.replaceChildren(tableOf(["step", ...columns.map((each) => each.label)],
      stepsOf().reverse().map((step) => [step, ...columns.map((each) => this.words(rowAt(each.run, step)?.[each.key]))]), this.spec.title));
  }
}

function tableOf(head, rows, label, words = []) {
  const cells = (kind) => (cell, at) => element(kind, { className: words.includes(at) ? "words" : "" }, cell);
  return element("table", { className: "rows", ariaLabel: label }, element("thead", {}, element("tr", {}, ...head.map(cells("th")))),
    element("tbody", {}, ...rows.map((each) => element("tr", {}, ...each.map(cells("td"))))));
}
