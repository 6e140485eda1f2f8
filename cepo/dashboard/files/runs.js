// Failures with their reasons, and the comparison with other runs.

const SUMMARY = [["reward", "reward/mean"], ["accuracy, train", "accuracy/train"], ["accuracy, held out", "accuracy/eval"], ["mean length", "length/mean"], ["credit clip rate", "credit/clip_fraction"], ["step seconds", "time/step_seconds"]];
const MAX_SHOWN = 100;

async function loadFailures() {
  const { total, failures } = await ask(`v1/failures?limit=${MAX_SHOWN}`);
  $("failures-title").textContent = total ? `Failures (${total})` : "Failures";
  if (!total) {
    $("failures").replaceChildren(element("p", { className: "note" }, "None: every group came back and every response was graded."));
    return;
  }
  const rows = failures.map((each) => [element("button", { type: "button", onclick: () => choose(each.step) }, String(each.step)),
    each.group.split("/").slice(1).join("/") + (each.sample === null ? "" : ` response ${each.sample + 1}`), each.stage, each.error]);
  const more = total > rows.length ? [element("p", { className: "note" }, `The newest ${rows.length} of ${total}; failures.jsonl holds all of them.`)] : [];
  $("failures").replaceChildren(element("div", { className: "scroll", tabIndex: 0 }, tableOf(["step", "group", "stage", "reason"], rows, "Failures", [1, 2, 3])), ...more);
}

async function loadRows(name) {
  const rows = [];
  for (let next = 0; next !== null;) {
    const found = await ask(`v1/metrics?since=${next}${name ? `&run=${encodeURIComponent(name)}` : ""}`);
    rows.push(...found.rows);
    next = found.next;
  }
  return rows;
}

function drawRuns() {
  const others = view.runs.slice(1);
  $("runs").replaceChildren(...others.map((run) => {
    const box = element("input", { type: "checkbox", checked: view.shown.includes(run) });
    box.onchange = () => show(run, box.checked);
    return element("label", {}, box, swatch(run), run.name);
  }));
}

// The runs that the colours stand for, beside the choice of the axis.
function drawLegend() {
  $("legend").replaceChildren(...(many() ? view.shown.map((run) => element("span", {}, swatch(run), run.name)) : []));
}

function show(run, wanted) {
  view.shown = [...view.shown.filter((each) => each !== run), ...(wanted ? [run] : [])];
  changed();
}

function addFile(name, text) {
  const rows = text.split("\n").flatMap((line) => {
    try {
      const row = JSON.parse(line.replaceAll(/\b(?:NaN|-?Infinity)\b/g, "null"));
      return Number.isInteger(row?.step) ? [row] : [];
    } catch {
      return []; // a last line that a crash cut short
    }
  });
  const run = { name, rows };
  view.runs.push(run);
  drawRuns();
  show(run, true);
  drawRuns();
}

function drawCompared() {
  if (view.shown.length < 2) {
    $("compared").replaceChildren(element("p", { className: "note" }, view.runs.length > 1 ? "Tick a run to draw it in its colour." : "Start cepo dashboard with --compare OTHER_RUN_DIR, or add the metrics.jsonl of another run; each run has a colour."));
    return;
  }
  const value = (run, key) => run.rows.findLast((each) => each.step <= view.step && Number.isFinite(each[key]))?.[key];
  const words = (key, found) => (found === undefined ? "–" : key.startsWith("accuracy") || key.endsWith("fraction") ? percent(found) : exact(found));
  $("compared").replaceChildren(tableOf([`up to step ${view.step}`, ...view.shown.map((run) => run.name)],
    SUMMARY.map(([label, key]) => [label, ...view.shown.map((run) => words(key, value(run, key)))]), "Runs compared"));
}
