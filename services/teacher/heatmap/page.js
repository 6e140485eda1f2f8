"use strict";
// Everything the page shows is computed from three log-probs a token: the sliders need no further call.

const EXPONENT_BOUND = 20;
const FULL_SHADE = 0.3; // a multiplier this far from 1 has the full colour
const METHODS = { rlsd: "RLSD", cepo: "CEPO", grpo: "GRPO" };
const $ = (id) => document.getElementById(id);
const bundled = JSON.parse($("data").textContent);
const state = { request: bundled.request, reply: bundled.reply, response: 0, lam: 0.5, eps: 0.5, panels: [] };

// ---- credit, as cepo.algo.core computes it ----

function deltaOf(method, token) {
  if (method === "rlsd") return token.logp_positive - token.logp_plain;
  return method === "cepo" && token.logp_negative !== null ? token.logp_positive - token.logp_negative : 0;
}

function creditOf(method, token, advantage) {
  const delta = deltaOf(method, token);
  const exponent = Math.sign(advantage) * delta;
  const weight = Math.exp(Math.max(-EXPONENT_BOUND, Math.min(EXPONENT_BOUND, exponent)));
  const clippedWeight = Math.max(1 - state.eps, Math.min(1 + state.eps, weight));
  const multiplier = method === "grpo" ? 1 : 1 - state.lam + state.lam * clippedWeight;
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

// ---- words ----

const number = (value, digits = 3) => (value === null ? "–" : (Object.is(Math.round(value * 10 ** digits), -0) ? 0 : value).toFixed(digits));
const signed = (value, digits = 3) => (value > 0 ? "+" : "") + number(value, digits);
const percent = (share) => `${(100 * share).toFixed(1)} %`;
const visible = (text) => text.replaceAll("\n", "↵").replaceAll("\t", "⇥");
const huge = (value) => (value >= 1e4 || (value > 0 && value < 1e-3) ? value.toExponential(1) : value.toFixed(3));

function spoken(token, credit) {
  const text = token.text === "" ? "part of a character" : token.text.replaceAll("\n", " line break ").trim() || "space";
  const change = Math.round(100 * Math.abs(credit.shade));
  const push = change === 0 ? "equal share" : `pushed ${credit.shade > 0 ? "up" : "down"} ${change} percent`;
  return `${text}: ${push}, delta ${signed(credit.delta, 2)}${credit.clipped ? ", clipped" : ""}`;
}

function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key in made && key !== "role") made[key] = value; else made.setAttribute(key, value);
  }
  made.append(...children);
  return made;
}

// ---- drawing ----

function show() {
  const request = state.request;
  $("question").textContent = request.messages ? request.messages.map((m) => m.content).join("\n\n") : request.prompt ?? "(given as token ids)";
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
  const own = { single: "One response has no group to compare with: A is +1 for a right one and −1 for a wrong one.", group: "", given: "" };
  $("note").textContent = response.advantage === 0 ? "The rewards of the group are equal, so A is 0 and no token is credited." : own[response.advantage_from];
  $("panels").replaceChildren(...state.panels.map(drawPanel));
  recolour();
}

function drawPanel(panel, at) {
  const options = [...replies().keys()].flatMap((policy) => Object.keys(METHODS).map((method) => ({ method, policy })));
  const several = replies().size > 1;
  const select = element("select", { ariaLabel: `Method of panel ${at + 1}` }, ...options.map((option) =>
    element("option", { selected: option.method === panel.method && option.policy === panel.policy },
      METHODS[option.method] + (several ? ` · ${option.policy}` : ""))));
  select.onchange = () => {
    Object.assign(panel, options[select.selectedIndex]);
    recolour();
  };
  const figure = (name, title) => element("div", { title }, element("dt", {}, name), element("dd", {}));
  const tokens = element("div", { className: "tokens", role: "listbox", ariaLabel: `Tokens, panel ${at + 1}` });
  responseOf(panel).tokens.forEach((token, t) => tokens.append(...drawToken(token, at, t)));
  if (!tokens.children.length) tokens.append(element("p", { className: "empty" }, "This response has no tokens."));
  return element("article", { className: "panel" }, element("header", {}, select, element("dl", { className: "figures" },
    figure("clip rate", "tokens whose weight lies outside 1 ± ε"), figure("δ > 0", "tokens favoured by the evidence"), figure("δ < 0", "tokens disfavoured by the evidence"))), tokens);
}

function drawToken(token, panel, at) {
  const special = token.text === "" ? "piece" : token.text.trim() === "" && token.text.includes("\n") ? "break" : "";
  const shown = special === "piece" ? "▪" : special === "break" ? visible(token.text) : token.text;
  const made = element("span", { className: `token ${special}`, role: "option", tabIndex: at ? -1 : 0 }, shown);
  made.dataset.at = at;
  made.onpointerenter = made.onfocus = () => point(panel, at, made);
  made.onpointerleave = made.onblur = hideTip;
  return special === "break" ? [made, "\n".repeat(token.text.split("\n").length - 1)] : [made];
}

function recolour() {
  $("lam-value").textContent = state.lam.toFixed(2);
  $("eps-value").textContent = state.eps.toFixed(2);
  state.panels.forEach((panel, at) => {
    const response = responseOf(panel);
    const credits = response.tokens.map((token) => creditOf(panel.method, token, response.advantage));
    const article = $("panels").children[at];
    article.querySelectorAll(".token").forEach((made, t) => {
      const credit = credits[t];
      const alpha = 0.75 * Math.min(1, Math.abs(credit.shade) / FULL_SHADE) ** 0.7;
      made.style.backgroundColor = `rgb(var(--${credit.shade > 0 ? "up" : "down"}) / ${alpha.toFixed(3)})`;
      made.classList.toggle("clipped", credit.clipped && panel.method !== "grpo");
      made.setAttribute("aria-label", spoken(response.tokens[t], credit));
    });
    const share = (test) => percent(credits.filter(test).length / Math.max(1, credits.length));
    const figures = article.querySelectorAll("dd");
    [(c) => c.clipped, (c) => c.delta > 0, (c) => c.delta < 0].forEach((test, i) => { figures[i].textContent = share(test); });
  });
}

// ---- one token ----

function point(panel, at, made) {
  document.querySelectorAll(".mate").forEach((other) => other.classList.remove("mate"));
  document.querySelectorAll(`[data-at="${at}"]`).forEach((other) => other.classList.add("mate"));
  const shown = state.panels[panel];
  const response = responseOf(shown);
  const token = response.tokens[at];
  const row = (cells, kind = "td") => element("tr", {}, ...cells.map((cell) => element(kind, {}, cell)));
  const credits = state.panels.map((each) => creditOf(each.method, responseOf(each).tokens[at], responseOf(each).advantage));
  const compared = element("table", {}, element("thead", {}, row(["", ...state.panels.map((each) => METHODS[each.method])], "th")),
    element("tbody", {}, row(["δ", ...credits.map((c) => signed(c.delta))]), row(["weight", ...credits.map((c) => huge(c.weight))]),
      row(["weight, clipped", ...credits.map((c) => number(c.clippedWeight))]), row(["advantage", ...credits.map((c) => signed(c.advantage))])));
  const logps = element("table", {}, element("tbody", {}, row(["log P plain", number(token.logp_plain)]),
    row(["log P given r⁺", number(token.logp_positive)]), row(["log P given r⁻", number(token.logp_negative)])));
  $("tip").replaceChildren(element("strong", {}, visible(token.text) || "▪"), ` id ${token.id}, characters ${token.start}–${token.end}`, logps, compared);
  $("tip").hidden = false;
  const place = made.getClientRects()[0] ?? made.getBoundingClientRect();
  const tip = $("tip").getBoundingClientRect();
  const below = place.bottom + 10 + tip.height < innerHeight;
  $("tip").classList.toggle("above", place.top > innerHeight / 2);
  $("tip").style.left = `${Math.max(8, Math.min(place.left, innerWidth - tip.width - 8))}px`;
  $("tip").style.top = `${below ? place.bottom + 10 : Math.max(8, place.top - tip.height - 10)}px`;
}

function hideTip() {
  $("tip").hidden = true;
  document.querySelectorAll(".mate").forEach((other) => other.classList.remove("mate"));
}

function moveFocus(event) {
  const here = event.target.closest(".token");
  if (!here) return;
  const tokens = [...here.parentElement.querySelectorAll(".token")];
  const at = tokens.indexOf(here);
  const line = (step) => {
    const top = here.offsetTop;
    const others = tokens.filter((t) => Math.sign(t.offsetTop - top) === step && Math.abs(t.offsetTop - top) > 6);
    const near = (t) => [Math.abs(t.offsetTop - top), Math.abs(t.offsetLeft - here.offsetLeft)];
    return others.sort((a, b) => near(a)[0] - near(b)[0] || near(a)[1] - near(b)[1])[0];
  };
  const goal = { ArrowRight: tokens[at + 1], ArrowLeft: tokens[at - 1], Home: tokens[0], End: tokens.at(-1), ArrowDown: line(1), ArrowUp: line(-1) };
  if (!(event.key in goal)) return;
  event.preventDefault();
  const next = goal[event.key] ?? here;
  tokens.forEach((token) => { token.tabIndex = token === next ? 0 : -1; });
  next.focus();
}
