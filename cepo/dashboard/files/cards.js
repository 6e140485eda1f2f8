// The list of curves, and the figures of the newest step.

const CARDS = [
  { title: "Reward", lines: [{ key: "reward/mean", label: "mean" }], zero: true },
  { title: "Accuracy", share: true, lines: [{ key: "accuracy/train", label: "train" }, { key: "accuracy/eval", label: "held out" }] },
  { title: "Tokens with δ > 0.01 nats", share: true, lines: [{ key: "credit/delta_pos_fraction_correct", label: "correct" }, { key: "credit/delta_pos_fraction_wrong", label: "wrong" }] },
  { title: "Tokens with δ < -0.01 nats", share: true, lines: [{ key: "credit/delta_neg_fraction_correct", label: "correct" }, { key: "credit/delta_neg_fraction_wrong", label: "wrong" }] },
  { title: "Mean δ", lines: [{ key: "credit/delta_mean_correct", label: "correct" }, { key: "credit/delta_mean_wrong", label: "wrong" }], zero: true },
  { title: "Quantiles of δ", lines: [{ key: "credit/delta_p05", label: "5 %" }, { key: "credit/delta_p50", label: "50 %" }, { key: "credit/delta_p95", label: "95 %" }], zero: true },
  { title: "λ, share of the evidence", lines: [{ key: "credit/lambda", label: "λ" }], zero: true },
  { title: "Clip rates", share: true, lines: [{ key: "credit/clip_fraction", label: "credit" }, { key: "clip/ppo_low", label: "ratio low" }, { key: "clip/ppo_high", label: "ratio high" }] },
  { title: "Response length", unit: "tokens", lines: [{ key: "length/mean", label: "mean" }, { key: "length/max", label: "longest" }], zero: true },
  { title: "Groups", share: true, lines: [{ key: "groups/all_correct", label: "all correct" }, { key: "groups/all_wrong", label: "all wrong" }, { key: "groups/evidenced", label: "with evidence" }] },
  { title: "Longest queue in the step", unit: "groups", lines: [{ key: "queue/rollout_max", label: "rollout" }, { key: "queue/verify_max", label: "verify" }, { key: "queue/teach_max", label: "teach" }, { key: "queue/ready_max", label: "ready" }], zero: true },
  { title: "Policy version", lines: [{ key: "version/rollout", label: "rollout" }, { key: "version/teacher", label: "teacher" }, { key: "version/trainer", label: "trainer" }], zero: true },
  { title: "Any metric", lines: [{ key: "grad_norm", label: "grad_norm" }], any: true },
];
let cards = [];

function makeCards() {
  cards = CARDS.map((spec) => new Curves(spec));
  $("curves").replaceChildren(...cards.map((card) => card.node));
  const any = cards.at(-1);
  any.select = element("select", { ariaLabel: "Metric" });
  any.select.onchange = () => {
    any.spec.lines = [{ key: any.select.value, label: any.select.value }];
    any.draw();
  };
  any.log.before(any.select);
  new ResizeObserver(() => {
    const width = cards[0].plot.clientWidth;
    if (width === cards[0].measured) return;
    for (const card of cards) card.measured = width;
    changed();
  }).observe($("curves"));
}

function fillMetrics() {
  const any = cards.at(-1);
  const keys = [...new Set(rowsOf().slice(-50).flatMap(Object.keys))].filter((key) => key !== "step").sort();
  if (keys.length === any.select.options.length) return;
  any.select.replaceChildren(...keys.map((key) => element("option", { value: key, selected: key === any.spec.lines[0].key }, key)));
}

const newest = (key) => rowsOf().findLast((each) => Number.isFinite(each[key]))?.[key];

function drawTiles() {
  const rows = rowsOf(), last = rows.at(-1) ?? {};
  const before = rows[0]?.["accuracy/eval_before"];
  const held = newest("accuracy/eval");
  const waiting = Object.values(view.status.queues ?? {}).reduce((a, b) => a + b, 0);
  const share = (value) => (value === undefined ? "–" : percent(value));
  const tiles = [
    ["reward", exact(last["reward/mean"]), rows.length > 1 ? `${exact(rows[0]["reward/mean"])} in step ${rows[0].step}` : ""],
    ["accuracy, train", share(last["accuracy/train"]), rows.length > 1 ? `${share(rows[0]["accuracy/train"])} in step ${rows[0].step}` : ""],
    ["accuracy, held out", share(held ?? before), held !== undefined && before !== undefined ? `${share(before)} before training` : ""],
    ["λ", exact(last["credit/lambda"]), ""],
    ["step time", last["time/step_seconds"] === undefined ? "–" : `${number(last["time/step_seconds"], 1)} s`, ""],
    ["policy", `v${view.status.policy_version ?? 0}`, last["version/rollout"] === undefined ? "" : `rollout v${last["version/rollout"]}${last["version/teacher"] === undefined ? "" : `, teacher v${last["version/teacher"]}`}`],
    ["in the queues", view.status.running ? String(waiting) : "–", view.status.running ? Object.entries(view.status.queues).filter(([, depth]) => depth).map(([name, depth]) => `${name} ${depth}`).join(", ") : ""],
  ];
  $("tiles").replaceChildren(...tiles.map(([name, value, more]) => element("div", {}, element("dt", {}, name), element("dd", {}, value, element("small", {}, more)))));
}

const PHASES = { loading: "loading the model", rollout: "sampling, verifying, teaching", train: "training", publish: "publishing the policy", eval: "evaluating", done: "done", drained: "stopped and saved", unknown: "" };

function drawState() {
  const { phase, running, step, steps } = view.status, done = rowsOf().length;
  const final = phase === "done" || phase === "drained";
  $("light").className = `light ${running ? "on" : final || phase === "unknown" ? "" : "off"}`;
  const words = PHASES[phase] ?? phase ?? "connecting";
  $("phase").textContent = running || final ? words[0].toUpperCase() + words.slice(1) : phase === "unknown" ? "Not running" : phase ? `Not running; last phase: ${words}` : "Connecting";
  const all = steps ?? view.runs[0]?.steps;
  const recent = rowsOf().slice(-5).map((each) => each["time/step_seconds"]).filter(Number.isFinite);
  const seconds = running && all ? (all - done) * recent.reduce((a, b) => a + b, 0) / Math.max(1, recent.length) : 0;
  const clock = seconds >= 3600 ? `${Math.floor(seconds / 3600)} h ${Math.floor(seconds % 3600 / 60)} min` : seconds >= 60 ? `${Math.round(seconds / 60)} min` : `${Math.round(seconds)} s`;
  $("left").textContent = [running ? `step ${step}` : "", all ? `${done} of ${all} steps done` : `${done} steps`, seconds > 0 ? `about ${clock} left` : ""].filter(Boolean).join(" · ");
  $("progress").value = all ? done / all : 1;
}
