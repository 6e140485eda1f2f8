// The page computes the credit of every method and slider position from the three log-probs of each token, without
// another call. `bundled.methods` says which two log-probs a method contrasts.

const EXPONENT_BOUND = 20;
const METHODS = bundled.methods;
const state = { request: bundled.request, reply: bundled.reply, response: 0, lam: 0.5, eps: 0.5, panels: [] };

// ---- credit, as cepo.algo.core computes it ----

// A token without one of the two log-probs has no evidence: its delta is 0.
function deltaOf(method, token) {
  const [numerator, denominator] = [token[METHODS[method].numerator], token[METHODS[method].denominator]];
  return numerator === null || denominator === null ? 0 : numerator - denominator;
}

function creditOf(method, token, advantage) {
  const delta = deltaOf(method, token);
  const exponent = Math.sign(advantage) * delta;
  const weight = Math.exp(Math.max(-EXPONENT_BOUND, Math.min(EXPONENT_BOUND, exponent)));
  const clippedWeight = Math.max(1 - state.eps, Math.min(1 + state.eps, weight));
  const multiplier = 1 - state.lam + state.lam * clippedWeight;
  return { delta, weight, clippedWeight, clipped: weight !== clippedWeight, multiplier, advantage: advantage * multiplier,
    shade: Math.sign(advantage) * (multiplier - 1) };
}

function replies() {
  const seen = new Map();
  for (const reply of [state.reply, ...state.reply.compared]) {
    const name = policyName(reply.policy);
    if (!seen.has(name)) seen.set(name, reply);
  }
  return seen;
}

const policyName = (policy) => (policy.version ? `v${policy.version} ${policy.sha256.slice(0, 8)}` : "base");
const responseOf = (panel) => replies().get(panel.policy).responses[state.response];

// ---- drawing ----

function show() {
  const request = state.request;
  $("question").textContent = request.messages ? request.messages.map((m) => m.content).join("\n\n") : request.prompt ?? "(given as token ids)";
  drawPictures($("images"), request.images ?? []);
  $("positive").textContent = state.reply.positive;
  drawTabs();
  drawResponse();
  const reply = state.reply;
  $("provenance").textContent = `Scored with policy ${[...replies().keys()].join(" and ")} (${reply.engine}), temperature ${reply.temperature}, tokenizer ${reply.tokenizer_sha256.slice(0, 12)}.`;
}

function drawTabs() {
  const tabs = state.reply.responses.map((response, at) => {
    const verdict = response.grade ? response.grade.outcome : response.reward === null ? "" : `reward ${number(response.reward, 2)}`;
    const chosen = at === state.response;
    return element("button", { type: "button", role: "radio", "aria-checked": String(chosen), tabIndex: chosen ? 0 : -1,
      onclick: () => choose(at) }, `Response ${at + 1}`, element("small", {}, `${verdict}${verdict ? ", " : ""}A ${signed(response.advantage, 2)}`));
  });
  $("responses").replaceChildren(...tabs);
}

function choose(at) {
  state.response = (at + state.reply.responses.length) % state.reply.responses.length;
  drawTabs();
  drawResponse();
  $("responses").children[state.response].focus();
}

function drawResponse() {
  hideTip();
  const response = state.reply.responses[state.response];
  const negative = response.negative;
  const from = negative.source >= 0 ? `from response ${negative.source + 1}` : negative.reason.replaceAll("_", " ");
  $("negative").textContent = negative.answer || negative.context;
  $("negative-why").textContent = from;
  const own = { single: "A single response has no group to compare with: A is +1 if it is right and −1 if it is wrong.", group: "", given: "" };
  $("note").textContent = response.advantage === 0 ? "The advantage A of this response is 0, so its tokens get no credit." : own[response.advantage_from];
  $("panels").replaceChildren(...state.panels.map(drawPanel));
  recolour();
}

function drawPanel(panel, at) {
  const options = [...replies().keys()].flatMap((policy) => Object.keys(METHODS).map((method) => ({ method, policy })));
  const several = replies().size > 1;
  const select = element("select", { ariaLabel: `Method of panel ${at + 1}` }, ...options.map((option) =>
    element("option", { selected: option.method === panel.method && option.policy === panel.policy },
      METHODS[option.method].title + (several ? ` · ${option.policy}` : ""))));
  select.onchange = () => {
    Object.assign(panel, options[select.selectedIndex]);
    recolour();
  };
  const figure = (name, title) => element("div", { title }, element("dt", {}, name), element("dd", {}));
  const tokens = element("div", { className: "tokens", role: "listbox", ariaLabel: `Tokens, panel ${at + 1}` });
  responseOf(panel).tokens.forEach((token, t) => tokens.append(...drawToken(token.text, t, (made) => point(at, t, made))));
  if (!tokens.children.length) tokens.append(element("p", { className: "empty" }, "This response has no tokens."));
  return element("article", { className: "panel" }, element("header", {}, select, element("dl", { className: "figures" },
    figure("clip rate", "Share of tokens whose weight is outside 1 ± ε"), figure("δ > 0", "Share of tokens that the evidence favours, beyond the dead band"), figure("δ < 0", "Share of tokens that the evidence disfavours, beyond the dead band"))), tokens);
}

function recolour() {
  $("lam-value").textContent = state.lam.toFixed(2);
  $("eps-value").textContent = state.eps.toFixed(2);
  state.panels.forEach((panel, at) => {
    const response = responseOf(panel);
    const given = givenOf(response);
    const credits = response.tokens.map((token) => creditOf(panel.method, token, response.advantage));
    const article = $("panels").children[at];
    article.querySelectorAll(".token").forEach((made, t) => {
      const text = response.tokens[t].text;
      given.has(t) ? paintGiven(made, text) : paint(made, text, credits[t]);
    });
    const own = credits.filter((_, t) => !given.has(t));
    const share = (test) => percent(own.filter(test).length / Math.max(1, own.length));
    const figures = article.querySelectorAll("dd");
    const band = state.reply.dead_band;
    [(c) => c.clipped, (c) => c.delta > band, (c) => c.delta < -band].forEach((test, i) => { figures[i].textContent = share(test); });
  });
}

// ---- one token ----

function point(panel, at, made) {
  hideTip();
  document.querySelectorAll(`[data-at="${at}"]`).forEach((other) => other.classList.add("mate"));
  const shown = state.panels[panel];
  const response = responseOf(shown);
  const token = response.tokens[at];
  if (givenOf(response).has(at)) {
    showTip(made, element("strong", {}, visible(token.text) || "▪"), ` id ${token.id}, given to the model: no log-prob, no credit`);
    return;
  }
  const credits = state.panels.map((each) => creditOf(each.method, responseOf(each).tokens[at], responseOf(each).advantage));
  const compared = element("table", {}, element("thead", {}, row(["", ...state.panels.map((each) => METHODS[each.method].title)], "th")),
    element("tbody", {}, row(["δ", ...credits.map((c) => signed(c.delta))]), row(["weight", ...credits.map((c) => huge(c.weight))]),
      row(["weight, clipped", ...credits.map((c) => number(c.clippedWeight))]), row(["advantage", ...credits.map((c) => signed(c.advantage))])));
  const logps = element("table", {}, element("tbody", {}, row(["log P plain", number(token.logp_plain)]),
    row(["log P given r⁺", number(token.logp_positive)]), row(["log P given r⁻", number(token.logp_negative)])));
  showTip(made, element("strong", {}, visible(token.text) || "▪"), ` id ${token.id}, characters ${token.start}–${token.end}`, logps, compared);
}
