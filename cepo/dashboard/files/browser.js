// The rollout browser: a list of responses, searched and sorted by the service.

const PAGE_ROWS = 50;
const TYPING_MS = 250;
const LATE_MS = 1500; // the groups of a step reach the disk a moment after its metrics
let loaded = { step: null, rows: [], total: 0, error: "" }, loading = 0, asked = "";

const fields = () => $("find").elements;

// The step slider moved, or a row arrived.
function wantGroups() {
  if (loaded.step === view.step) return;
  const first = loaded.step === null;
  loaded.step = view.step;
  opened.error = "";
  if (first || fields().scope.value === "step") soon(120);
}

function soon(delay) {
  clearTimeout(loading);
  loading = setTimeout(() => findRows(0), delay);
}

function conditions() {
  const { text, scope, source, outcome, reason, order, lowest, highest } = fields();
  const values = { text: text.value, outcome: outcome.value, reason: reason.value, order: order.value, lowest: lowest.value, highest: highest.value };
  if (scope.value === "step") Object.assign(values, { source: "train", number: view.step }); else values.source = source.value;
  return new URLSearchParams(Object.entries(values).filter(([, value]) => value !== ""));
}

async function findRows(offset) {
  clearTimeout(loading);
  const query = conditions();
  asked = query.toString();
  let reply = { rows: [], total: 0 }, error = "";
  try {
    reply = await ask(`v1/rollouts?${query}&offset=${offset}&limit=${PAGE_ROWS}`);
  } catch (failure) {
    error = failure.message;
  }
  if (asked !== query.toString()) return;
  loaded = { ...loaded, total: reply.total, rows: offset ? [...loaded.rows, ...reply.rows] : reply.rows, error };
  drawList();
  if (!offset) openFirst();
  if (!reply.total && view.status.running) loading = setTimeout(() => findRows(0), LATE_MS);
}

// Opens the row at the same place in the list's step as before, otherwise the first row.
function openFirst() {
  if (linked) return;
  const { rows, error } = loaded;
  const row = rows.find(({ at, sample }) => fields().scope.value === "step" && at === opened.at && sample === opened.sample) ?? rows[0];
  if (row) {
    openGroup({ source: row.source, number: row.number, at: row.at, sample: row.sample });
    return;
  }
  const none = rowsOf().length ? "The run has no groups of this step on disk; telemetry.rollouts_per_step and telemetry.rollouts_gigabytes limit them." : "No step yet.";
  Object.assign(opened, { group: null, error: error || (fields().scope.value === "step" && !fields().text.value ? none : "No response fits.") });
  drawGroup();
}

function drawList() {
  const { rows, total } = loaded, inStep = fields().scope.value === "step";
  $("groups-title").textContent = inStep ? `Rollouts of step ${view.step}` : "Rollouts of all steps";
  $("found-count").textContent = total ? `${total.toLocaleString("en")} ${total === 1 ? "response" : "responses"}` : "";
  $("list").replaceChildren(...rows.map((row) => {
    const [mark, kind] = markOf(row.outcome);
    const where = `${row.source === "train" ? "" : "v"}${row.number}/${row.at + 1}/${row.sample + 1}`;
    const made = element("button", { type: "button", role: "option", className: "hit", onclick: () => openRow(row) },
      element("span", { className: `mark ${kind}`, ariaLabel: row.outcome }, mark), element("span", {}, where),
      element("small", {}, `reward ${row.reward === null ? "–" : number(row.reward, 2)} · ${row.length} tokens`),
      element("span", { className: "words" }, visible(row.text.trim().slice(-90))));
    made.dataset.place = [row.source, row.number, row.at, row.sample].join("/");
    return made;
  }));
  $("more").hidden = rows.length >= total;
  markRow();
}

function openRow({ source, number, at, sample }) {
  setFollowing(false);
  openGroup({ source, number, at, sample });
  history.replaceState(null, "", linkOf({ source, number, at, sample, token: null }));
}

function markRow() {
  const place = [opened.source, opened.number, opened.at, opened.sample].join("/");
  for (const row of $("list").children) row.setAttribute("aria-selected", String(row.dataset.place === place));
}

// The outcomes and reasons that the run has, for the two lists.
async function loadSummary() {
  const { outcomes, reasons } = await ask("v1/rollouts/summary");
  const fill = (select, all, values) => {
    const before = select.value;
    select.replaceChildren(element("option", { value: "" }, all), ...Object.entries(values).map(([value, count]) =>
      element("option", { value }, `${value.replaceAll("_", " ")} (${count.toLocaleString("en")})`)));
    select.value = value(before, values);
  };
  const value = (before, values) => (before in values ? before : "");
  fill(fields().outcome, "any outcome", outcomes);
  fill(fields().reason, "any reason", reasons);
}

// #train/19/3/0/12: token 12 of the first response of the fourth group of step 19.
let linked = false;
async function followLink() {
  const parts = location.hash.match(/^#(train|held-out)\/(\d+)\/(\d+)\/(\d+)(?:\/(\d+))?$/);
  if (!parts) return;
  const [number, at, sample] = parts.slice(2, 5).map(Number);
  linked = true;
  if (parts[1] === "train") choose(number); else fields().scope.value = "all";
  setFollowing(false);
  await openGroup({ source: parts[1], number, at, sample, token: parts[5] === undefined ? null : Number(parts[5]) });
  await findRows(0);
  linked = false;
}

function startBrowser() {
  $("find").onsubmit = (event) => { event.preventDefault(); findRows(0); };
  $("find").oninput = (event) => {
    if (event.target === fields().text && fields().text.value) fields().scope.value = "all";
    if (event.target === fields().source && fields().source.value !== "train") fields().scope.value = "all";
    soon(TYPING_MS);
  };
  $("list").onkeydown = (event) => {
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key], rows = [...$("list").children];
    if (!step) return;
    event.preventDefault();
    const next = rows[rows.indexOf(document.activeElement) + step];
    next?.focus();
    next?.click();
  };
  $("more").onclick = () => findRows(loaded.rows.length);
  addEventListener("hashchange", followLink);
}
