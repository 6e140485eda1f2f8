// Requests, server-sent events, and the handlers of the page.

const SILENT_SECONDS = 40; // the service sends a comment every 15 seconds
const POLL_ENDED_SECONDS = 5;
const LONGEST_WAIT_SECONDS = 2; // a restarted trainer may have only a few steps left to show
class Locked extends Error {}

async function ask(path) {
  const answer = await fetch(path, { headers: bearer() });
  const body = await answer.json();
  if (answer.status === 401) throw new Locked(body.detail);
  if (!answer.ok) throw new Error(body.detail);
  return body;
}

let planned = 0;
function changed() {
  planned ||= requestAnimationFrame(() => {
    planned = 0;
    drawState();
    drawTiles();
    fillMetrics();
    drawLegend();
    for (const card of cards) card.draw();
    drawStep();
  });
}

function drawStep() {
  const rows = rowsOf();
  if (view.following && rows.length) view.step = rows.at(-1).step;
  Object.assign($("step"), { min: rows[0]?.step ?? 0, max: rows.at(-1)?.step ?? 0 });
  $("step").value = view.step;
  $("step-value").textContent = rows.length ? view.step : "–";
  drawTimes();
  drawCompared();
  if (rows.length) wantGroups(); else openFirst();
}

function hoverAt(step) {
  if (step === view.hover) return;
  view.hover = step;
  for (const card of cards) card.point();
}

function setFollowing(following) {
  view.following = following;
  $("follow").setAttribute("aria-pressed", String(following));
}

function choose(step) {
  const rows = rowsOf();
  if (!rows.length) return;
  view.step = Math.max(rows[0].step, Math.min(rows.at(-1).step, step));
  setFollowing(view.step === rows.at(-1).step);
  drawStep();
  for (const card of cards) card.point();
}

function take(name, data) {
  if (name === "status") {
    view.status = { ...view.status, ...data };
  } else if (name === "failures") {
    loadFailures().catch((error) => { $("link").textContent = error.message; });
  } else if (name === "row") {
    rowsOf().push({ ...data, "version/trainer": data.step + 1 });
  }
  changed();
}

// Server-sent events through fetch, because an EventSource cannot send a token. Ends with the run or the connection.
async function listen() {
  const next = (rowsOf().at(-1)?.step ?? -1) + 1;
  const stop = new AbortController();
  let watch = setTimeout(() => stop.abort(), 1000 * SILENT_SECONDS);
  try {
    const answer = await fetch(`v1/events?since=${next}`, { headers: bearer(), signal: stop.signal });
    if (!answer.ok) throw new Error(`the service answers ${answer.status}`);
    const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
    for (let text = ""; ;) {
      const { value, done } = await reader.read();
      if (done) return;
      clearTimeout(watch);
      watch = setTimeout(() => stop.abort(), 1000 * SILENT_SECONDS);
      const events = (text + value).split("\n\n");
      text = events.pop();
      for (const event of events) {
        const [, name, data] = event.match(/^event: (\w+)\ndata: (.*)$/s) ?? [];
        if (name === "restart") return;
        if (name) take(name, JSON.parse(data));
      }
    }
  } finally {
    clearTimeout(watch);
    stop.abort();
  }
}

const pause = (seconds) => new Promise((done) => setTimeout(done, 1000 * seconds));

async function load() {
  const named = (await ask("v1/runs")).map((run) => ({ ...run, rows: [] }));
  const added = view.runs.filter((run) => !named.some((each) => each.name === run.name));
  const first = !view.runs.length;
  for (const run of named) run.rows = (await loadRows(run.name)).map((each) => ({ ...each, "version/trainer": each.step + 1 }));
  const hidden = view.runs.filter((run) => !view.shown.includes(run)).map((run) => run.name);
  view.status = await ask("v1/status");
  view.runs = [...named, ...added];
  view.shown = view.runs.filter((run) => first || !hidden.includes(run.name));
  loaded.step = null;
  const { name, model, algorithm, prompts, samples } = named[0];
  document.title = $("name").textContent = name;
  $("about").textContent = [algorithm?.name?.toUpperCase(), model && `on ${model}`, prompts && `${prompts} prompts × ${samples} responses a step`].filter(Boolean).join(" · ");
  drawRuns();
  await loadFailures();
  await loadSummary();
  showReplay(await ask("v1/replay"));
  changed();
  if (first) await followLink();
}

async function ended() {
  const { phase } = view.status;
  while (view.status.phase === phase) {
    await pause(POLL_ENDED_SECONDS);
    view.status = await ask("v1/status");
  }
}

async function watchRun() {
  for (let wait = 0.5; ; wait = Math.min(LONGEST_WAIT_SECONDS, 2 * wait)) {
    try {
      await load();
      $("token-field").hidden = true;
      $("link").textContent = "";
      wait = 0.5;
      await listen();
      if (["done", "drained"].includes(view.status.phase)) await ended();
    } catch (error) {
      if (error instanceof Locked) {
        $("token-field").hidden = false;
        $("error").textContent = document.querySelector("[name=token]").value ? error.message : "";
        $("phase").textContent = "Waiting for the access token";
        return;
      }
      $("link").textContent = "no answer; retrying";
      $("light").className = "light off";
      await pause(wait);
    }
  }
}

view.runs = [];
view.shown = [{ name: "", rows: [] }];
makeCards();
startBrowser();
$("step").oninput = (event) => choose(Number(event.target.value));
$("back").onclick = () => choose(view.step - 1);
$("forth").onclick = () => choose(view.step + 1);
$("axis").onchange = () => {
  view.axis = $("axis").value;
  zoomTo(null);
  changed();
};
$("smoothing").oninput = () => {
  view.smoothing = Number($("smoothing").value);
  $("smoothing-value").textContent = view.smoothing ? view.smoothing.toFixed(2) : "off";
  changed();
};
$("unzoom").onclick = () => zoomTo(null);
$("follow").onclick = () => { setFollowing(!view.following); changed(); };
$("other").onchange = async (event) => {
  const [file] = event.target.files;
  if (file) addFile(file.name, await file.text());
};
$("token-field").onsubmit = (event) => { event.preventDefault(); watchRun(); };
new MutationObserver(changed).observe(document.documentElement, { attributeFilter: ["data-theme"] });
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", changed);
document.addEventListener("keydown", (event) => {
  const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
  if (!step || event.ctrlKey || event.altKey || event.metaKey || event.target.closest("input, select, [role=radiogroup], .tokens")) return;
  choose(view.step + step * (event.shiftKey ? 10 : 1));
});
watchRun();
