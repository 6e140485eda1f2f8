// A comparison of runs. Every run has a colour and a name, in the tables and in all curves.

const HEIGHT = 180, SECONDS_AN_HOUR = 3600;
const FIRST = ["reward/mean", "accuracy/eval", "length/mean", "credit/delta_mean_correct", "rollout/logp_gap"];
const axis = { name: "step", smooth: 0, log: false, zoom: null };
const ink = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
const colour = (at) => `c${(at % 5) + 1}`;
const named = (at) => element("span", { className: "run", style: `--c: var(--${colour(at)})` }, bundled.names[at]);
const short = (value) => (Math.abs(value) >= 1e4 || (value && Math.abs(value) < 1e-3) ? value.toExponential(1) : String(Number(value.toPrecision(3))));
const share = (value) => `${Math.round(100 * value)} %`;
let curves = [];

function tableOf(head, rows, label) {
  const cells = (kind) => (cell) => element(kind, {}, cell);
  return element("table", { className: "rows", ariaLabel: label }, element("thead", {}, element("tr", {}, ...head.map(cells("th")))),
    element("tbody", {}, ...rows.map((each) => element("tr", {}, ...each.map(cells("td"))))));
}

// ---- curves ----

// The place of every row on the x axis: its step, or the tokens or hours up to its end.
function places(rows) {
  const key = { tokens: "tokens/generated", hours: "time/step_seconds" }[axis.name];
  if (!key) return rows.map((row) => row.step);
  let sum = 0;
  return rows.map((row) => (sum += row[key] ?? 0) / (axis.name === "hours" ? SECONDS_AN_HOUR : 1));
}

// The range of the x axis that holds every run.
function whole() {
  const all = bundled.rows.flatMap(places);
  const [low, high] = all.length ? [Math.min(...all), Math.max(...all)] : [0, 1];
  return low === high ? [low - 1, high + 1] : [low, high];
}

// [places, values] of a run, each value averaged with those before it.
function points(rows, key) {
  const xs = places(rows), found = [[], []];
  let mean = null;
  rows.forEach((row, at) => {
    const value = row[key];
    if (value === undefined || (axis.log && value <= 0)) return;
    mean = mean === null ? value : axis.smooth * mean + (1 - axis.smooth) * value;
    found[0].push(xs[at]);
    found[1].push(mean);
  });
  return found;
}

class Curve {
  constructor(key, choosable) {
    this.key = key;
    this.plot = element("div", { className: "plot", role: "img" });
    this.keys = element("p", { className: "keys" });
    const title = element("span", { title: bundled.described[key] ?? "" }, choosable ? "Any metric" : key);
    this.head = element("h3", {}, title);
    if (choosable) {
      this.select = element("select", { ariaLabel: "Metric" }, ...bundled.keys.map((each) => element("option", { value: each, selected: each === key }, each)));
      this.select.onchange = () => { this.key = this.select.value; this.draw(); };
      this.head.append(this.select);
    }
    this.node = element("article", { className: "card curve" }, this.head, this.keys, this.plot);
  }

  draw() {
    const found = bundled.rows.map((rows) => points(rows, this.key));
    const data = uPlot.join(found.map(([xs, ys]) => [xs, ys]));
    const lines = found.map((_, at) => ({ label: bundled.names[at], stroke: ink(colour(at)), width: 2, spanGaps: true, points: { show: found[at][0].length < 30, size: 5, fill: ink(colour(at)) } }));
    const look = { font: "11px system-ui, sans-serif", stroke: ink("soft"), ticks: { show: false }, grid: { stroke: ink("line"), width: 1 } };
    this.chart?.destroy();
    this.chart = new uPlot({
      width: this.plot.clientWidth || 320, height: HEIGHT, padding: [8, 12, 0, 0], legend: { show: false }, series: [{}, ...lines],
      scales: { x: { time: false, range: () => axis.zoom ?? whole() }, y: { distr: axis.log ? 3 : 1 } },
      axes: [{ ...look, size: 26, grid: { show: false }, values: (_, marks) => marks.map((mark) => (mark >= 1e4 ? `${short(mark / 1000)}k` : short(mark))) },
        { ...look, size: 52, values: (_, marks) => marks.map((mark) => (mark === null ? "" : short(mark))) }],
      cursor: { y: false, drag: { x: true, y: false, setScale: false, dist: 5 }, sync: { key: "all" }, bind: { dblclick: () => () => zoomTo(null) } },
      hooks: { setSelect: [(made) => this.selected(made)], setCursor: [(made) => this.point(made.cursor.idx)] },
    }, data, this.plot);
    this.point(null);
    this.plot.setAttribute("aria-label", `${this.key}: ${found.map(([, ys], at) => `${bundled.names[at]} ${ys.length ? `from ${short(ys[0])} to ${short(ys.at(-1))}` : "without values"}`).join("; ")}`);
  }

  selected(chart) {
    const { left, width } = chart.select;
    if (!width) return;
    chart.setSelect({ left: 0, top: 0, width: 0, height: 0 }, false);
    zoomTo([left, left + width].map((place) => chart.posToVal(place, "x")));
  }

  // The value of each run under the cursor, or its last one.
  point(at) {
    const [, ...series] = this.chart.data;
    this.keys.replaceChildren(...series.map((values, run) => {
      const value = at === null || at === undefined ? values.findLast((each) => each != null) : values.slice(0, at + 1).findLast((each) => each != null);
      return element("span", { className: "run", style: `--c: var(--${colour(run)})` }, `${bundled.names[run]} ${value == null ? "–" : short(value)}`);
    }));
  }
}

function zoomTo(range) {
  axis.zoom = range;
  $("unzoom").hidden = !range;
  drawCurves();
}

const drawCurves = () => curves.forEach((curve) => curve.draw());

// ---- credit and problems ----

function tokensOf(sample) {
  const box = element("div", { className: "tokens", role: "listbox", ariaLabel: "Tokens" });
  if (!sample.tokens) box.append(sample.text);
  (sample.tokens ?? []).forEach((text, t) => {
    const shade = sample.shades[t] ?? 0;
    const nodes = drawToken(text, t, (made) => {
      hideTip();
      showTip(made, element("strong", {}, visible(text) || "▪"), ` ${signed(100 * shade, 0)} % of the median token`);
    });
    paint(nodes[0], text, { shade, delta: null, clipped: false });
    box.append(...nodes);
  });
  box.onkeydown = moveFocus;
  return box;
}

const verdict = (sample) => element("span", { className: sample.outcome === "correct" ? "right" : "wrong" }, `${sample.outcome}${sample.extracted ? `, read as ${sample.extracted}` : ""}`);

function drawPairs() {
  $("pairs").replaceChildren(...bundled.pairs.flatMap((pair, at) => (pair ? [element("article", { className: "card" },
    element("h2", {}, `Credit of the same problem at step ${pair.step}`), element("h3", {}, `${pair.question.trim()}\nanswer ${pair.answer}`),
    element("div", { className: "sides" }, ...pair.samples.map((sample, side) => element("div", {}, named(side ? at + 1 : 0), " ", verdict(sample), tokensOf(sample)))))] : [])));
}

function drawFlips() {
  $("flips").replaceChildren(...bundled.flips.flatMap((found, at) => {
    if (!found.length) return [];
    const gained = found.filter((each) => each.shares[1] > each.shares[0]).length;
    const rows = found.map((each) => [each.question.trim(), each.answer, ...each.samples.map((sample, side) => element("details", {},
      element("summary", {}, verdict(sample), ` ${share(each.shares[side])} of its responses are correct`), element("pre", {}, sample.text)))]);
    return [element("article", { className: "card" }, element("h2", {}, `Problems that flipped: ${gained} solved, ${found.length - gained} lost`),
      element("div", { className: "scroll", tabIndex: 0 }, tableOf(["problem", "answer", named(0), named(at + 1)], rows, "Problems that flipped")))];
  }));
}

// ---- the page ----

$("names").replaceChildren(...bundled.names.map((_, at) => named(at)));
$("accuracy").replaceChildren(tableOf(["run", "before", "after", "difference to the first", ""], bundled.accuracy.map((cells, at) => [named(at), ...cells]), "Held-out accuracy"));
$("settings").replaceChildren(bundled.settings.length ? tableOf(["key", ...bundled.names.map((_, at) => named(at))], bundled.settings, "Settings that differ")
  : element("p", { className: "note" }, "None: the runs have the same configuration."));
curves = [...FIRST.filter((key) => bundled.keys.includes(key)).map((key) => new Curve(key, false)), ...(bundled.keys.length ? [new Curve(bundled.keys.includes("grad_norm") ? "grad_norm" : bundled.keys[0], true)] : [])];
$("curves").replaceChildren(...curves.map((curve) => curve.node));
$("axis").onchange = () => { axis.name = $("axis").value; zoomTo(null); };
$("smooth").oninput = () => { axis.smooth = Number($("smooth").value); $("smooth-value").textContent = axis.smooth.toFixed(2); drawCurves(); };
$("log").onclick = () => { axis.log = !axis.log; $("log").setAttribute("aria-pressed", String(axis.log)); drawCurves(); };
$("unzoom").onclick = () => zoomTo(null);
$("theme").addEventListener("click", drawCurves);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawCurves);
addEventListener("resize", drawCurves);
drawPairs();
drawFlips();
drawCurves();
