// How long each phase of a step took, and the same for the steps around it.

const AROUND = 10;
const SPENT = [
  { key: "time/rollout_seconds", label: "rollout" },
  { key: "time/train_seconds", label: "train" },
  { key: "time/publish_seconds", label: "publish" },
  { key: "time/eval_seconds", label: "eval" },
];
const OTHER = "other";

function phasesOf(row) {
  const found = SPENT.map(({ key, label }, colour) => ({ label, colour, seconds: row[key] ?? 0 }));
  const known = found.reduce((sum, phase) => sum + phase.seconds, 0);
  return [...found, { label: OTHER, colour: 4, seconds: Math.max(0, (row["time/step_seconds"] ?? known) - known) }];
}

const seconds = (value) => `${number(value, value < 10 ? 2 : 1)} s`;
const piece = (share, colour) => element("i", { style: `width:${(100 * share).toFixed(2)}%;${colour === undefined ? "background:none" : `--c:var(--c${colour + 1})`}` });

function drawTimes() {
  const row = rowAt(view.shown[0], view.step);
  if (!row) {
    $("waterfall").replaceChildren(element("p", { className: "note" }, "No step yet."));
    $("bars").replaceChildren();
    return;
  }
  drawWaterfall(row);
  drawBars(row);
  $("times-legend").replaceChildren(...[...SPENT, { label: OTHER }].map(({ label }, colour) =>
    element("span", {}, element("i", { style: `--c:var(--c${colour + 1})` }), label)));
}

function drawWaterfall(row) {
  const phases = phasesOf(row), total = phases.reduce((sum, phase) => sum + phase.seconds, 0) || 1;
  let begun = 0;
  const lines = phases.map(({ label, colour, seconds: took }) => {
    const track = element("span", { className: "track" }, piece(begun / total), piece(took / total, colour));
    begun += took;
    return element("div", { className: "phase" }, element("span", {}, label), track, element("span", {}, seconds(took)));
  });
  const beside = [["time/teacher_seconds", "the teacher's forward passes (all groups)"], ["time/publish_to_first_token_seconds", "from publishing to the first token with the policy"]]
    .filter(([key]) => row[key]).map(([key, label]) => `${label} ${seconds(row[key])}`);
  $("waterfall").replaceChildren(...lines, element("p", { className: "note" }, beside.length ? `Meanwhile: ${beside.join("; ")}.` : ""));
}

function drawBars(row) {
  const rows = rowsOf(), at = rows.indexOf(row);
  const first = Math.max(0, Math.min(at - AROUND / 2, rows.length - AROUND));
  const around = rows.slice(first, first + AROUND).map((each) => ({ step: each.step, phases: phasesOf(each), total: phasesOf(each).reduce((sum, phase) => sum + phase.seconds, 0) }));
  const totals = around.map((each) => each.total).sort((a, b) => a - b);
  const full = Math.min(totals.at(-1), 4 * totals[totals.length >> 1]) || 1; // one long step must not make the other bars invisible
  $("bars").replaceChildren(...around.map(({ step, phases, total }) => element("button",
    { type: "button", className: "bar", "aria-current": String(step === view.step), onclick: () => choose(step),
      ariaLabel: `Step ${step}: ${phases.map((phase) => `${phase.label} ${seconds(phase.seconds)}`).join(", ")}` },
    element("span", {}, String(step)), element("span", { className: total > full ? "track cut" : "track" }, ...phases.map((phase) => piece(phase.seconds / full, phase.colour))),
    element("span", {}, seconds(total)))));
}
