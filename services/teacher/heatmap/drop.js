// A file of responses is scored as soon as it is dropped or chosen, a batch at a time; the list grows with the replies.

const BATCH = 8;
const MAX_REQUESTS = 1000;
let dropping = 0;

async function dropped(file) {
  const own = (dropping += 1), problems = [];
  const say = (text) => { $("drop-status").textContent = text; };
  $("drop-error").textContent = "";
  items = [];
  drawList();
  try {
    const all = requestsOf(file.name, await file.text(), $("drop-answer").value.trim()), sent = all.slice(0, MAX_REQUESTS);
    for (let at = 0; at < sent.length && own === dropping; at += BATCH) {
      say(`Scored ${at} of ${sent.length} problems of ${file.name}.`);
      await scoreBatch(sent.slice(at, at + BATCH), at, problems, () => own === dropping);
    }
    if (own !== dropping) return;
    const left = all.length - sent.length;
    say(`${items.length} problems of ${file.name}${left ? `; the first ${sent.length} of ${all.length} were scored` : ""}.`);
    $("drop-error").textContent = problems.slice(0, 5).join("\n") + (problems.length > 5 ? `\nand ${problems.length - 5} more` : "");
    if (items.length) open(items[0].request, items[0].reply);
  } catch (error) {
    say("");
    $("drop-error").textContent = error.message;
  }
}

async function scoreBatch(batch, first, problems, wanted) {
  const method = { name: "cepo", lam: state.lam, eps_w: state.eps };
  const requests = batch.map((request) => ({ method, ...request }));
  const headers = { "Content-Type": "application/json", Accept: "application/x-ndjson", ...bearer() };
  const answer = await fetch("v1/credit", { method: "POST", headers, body: JSON.stringify(requests) });
  if (answer.status === 401) $("token-field").hidden = false;
  if (!answer.ok) throw new Error((await answer.json()).detail.replace(/^(\d+)\./, (_, at) => `problem ${first + Number(at) + 1}: `));
  const lines = (await answer.text()).split("\n").filter((line) => line);
  if (!wanted()) return;
  lines.map((line) => JSON.parse(line)).forEach((reply, at) => {
    if (reply.detail) problems.push(`problem ${first + at + 1}: ${reply.detail}`);
    else items.push({ request: requests[at], reply });
  });
  drawList();
}

function startDropping() {
  const over = (event) => {
    if (![...event.dataTransfer.types].includes("Files")) return;
    event.preventDefault();
    $("drop").classList.add("over");
  };
  document.addEventListener("dragover", over);
  document.addEventListener("dragleave", (event) => { if (!event.relatedTarget) $("drop").classList.remove("over"); });
  document.addEventListener("drop", (event) => {
    $("drop").classList.remove("over");
    if (!event.dataTransfer.files.length) return;
    event.preventDefault();
    dropped(event.dataTransfer.files[0]);
  });
  $("drop-file").onchange = (event) => { if (event.target.files.length) dropped(event.target.files[0]); };
}
