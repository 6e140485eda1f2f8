// ---- the form and the event handlers ----

function open(request, reply) {
  const first = reply.method.name;
  const [left, right] = reply.compared.length ? [reply, reply.compared[0]].map((r) => r.method.name) : first === "cepo" ? ["rlsd", "cepo"] : [first, "cepo"];
  const policies = [reply.policy, (reply.compared[0] ?? reply).policy].map(policyName);
  Object.assign(state, { request, reply, response: 0, lam: reply.method.lam, eps: reply.method.eps_w,
    panels: [{ method: left, policy: policies[0] }, { method: right, policy: policies[1] }] });
  $("lam").value = state.lam;
  $("eps").value = state.eps;
  show();
}

function addDraft(text = "", reward = "") {
  const count = $("drafts").children.length + 1;
  const select = element("select", { name: "reward", ariaLabel: `Reward of response ${count}` },
    ...[["", "graded"], ["1", "right"], ["0", "wrong"]].map(([value, label]) => element("option", { value, selected: value === reward }, label)));
  $("drafts").append(element("div", { className: "draft" },
    element("label", {}, `Response ${count}`, element("textarea", { name: "response", rows: 4, required: true, value: text })), select));
}

function fillForm(request) {
  const form = $("form");
  form.question.value = request.messages.at(-1).content;
  form.positive.value = request.positive;
  form.negative.value = request.negative ?? "";
  chooseImages(request.images ?? []);
  $("drafts").replaceChildren();
  for (const response of request.responses) addDraft(response.text, response.reward === undefined ? "" : String(response.reward));
}

let chosenImages = [];

function chooseImages(uris) {
  chosenImages = uris;
  drawPictures($("chosen"), uris);
  $("no-images").hidden = !uris.length;
  if (!uris.length) $("form").images.value = "";
}

function asked(form) {
  const texts = [...form.querySelectorAll("[name=response]")], rewards = [...form.querySelectorAll("[name=reward]")];
  const request = {
    messages: [{ role: "user", content: form.question.value }],
    ...(chosenImages.length && { images: chosenImages }),
    responses: texts.map((text, at) => ({ text: text.value, ...(rewards[at].value && { reward: Number(rewards[at].value) }) })),
    positive: form.positive.value,
    method: { name: "cepo", lam: state.lam, eps_w: state.eps },
  };
  return form.negative.value ? { ...request, negative: form.negative.value } : request;
}

async function score(event) {
  event.preventDefault();
  const form = $("form");
  const request = asked(form);
  $("error").textContent = "";
  $("score").disabled = true;
  try {
    const headers = { "Content-Type": "application/json", ...bearer() };
    const answer = await fetch("v1/credit", { method: "POST", headers, body: JSON.stringify(request) });
    const body = await answer.json();
    if (answer.status === 401) $("token-field").hidden = false;
    if (answer.ok) {
      open(request, body);
      $("panels").scrollIntoView({ block: "nearest" });
    } else {
      $("error").textContent = body.detail;
    }
  } catch (error) {
    $("error").textContent = `The teacher does not answer: ${error.message}`;
  } finally {
    $("score").disabled = false;
  }
}

$("lam").oninput = (event) => { state.lam = Number(event.target.value); recolour(); };
$("eps").oninput = (event) => { state.eps = Number(event.target.value); recolour(); };
$("panels").onkeydown = moveFocus;
$("responses").onkeydown = (event) => {
  const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
  if (step) { event.preventDefault(); choose(state.response + step); }
};
$("save-page").onclick = savePage;
$("save-picture").onclick = () => download("token-credit.png", picture());
$("form").onsubmit = score;
$("form").images.onchange = async (event) => chooseImages(await Promise.all([...event.target.files].map(asText)));
$("no-images").onclick = () => chooseImages([]);
$("add").onclick = () => addDraft();
$("sample").onclick = () => { fillForm(bundled.request); open(bundled.request, bundled.reply); };
if (bundled.live) {
  $("own").hidden = $("drop").hidden = false;
  startDropping();
  fillForm(bundled.request);
}
open(bundled.request, bundled.reply);
drawList();
