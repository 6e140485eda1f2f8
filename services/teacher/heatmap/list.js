// The list of responses: each with the token that decided it, the strongest first. A row opens the response.

const DECISIVE = 0.5; // the first token with this share of the strongest evidence decides a response, as in cepo.credit.decisive
const MAX_LISTED = 1000;
const WORD = /[\p{L}\p{N}_]+(?:[.,][\p{L}\p{N}_]+)*/gu;
let items = bundled.items ?? [];

// The decisive token of a response, or undefined: see `decisive_token` of cepo.credit.decisive.
function decisiveToken(response, band) {
  const sign = Math.sign(response.advantage);
  const strongest = Math.max(0, ...response.tokens.map((token) => sign * token.delta));
  return strongest > band ? response.tokens.find((token) => sign * token.delta >= DECISIVE * strongest) : undefined;
}

// The whole word or number that a token is part of, and the line it stands in. Offsets count characters, not UTF-16 units.
function placeOf(text, token) {
  const letters = [...text], before = letters.slice(0, token.start).join("");
  const [start, end] = [before.length, letters.slice(0, token.end).join("").length];
  const found = [...text.matchAll(WORD)].find((match) => match.index + match[0].length > start && match.index < end);
  return { word: found?.[0] ?? (visible(token.text).trim() || "a line end"), line: before.split("\n").length };
}

function listed() {
  const rows = items.flatMap(({ request, reply }, at) => reply.responses.map((response, which) => {
    const token = decisiveToken(response, reply.dead_band);
    return { at, which, request, response, token, strength: token ? Math.abs(token.delta) : 0 };
  }));
  const wanted = $("list-filter").value;
  const kept = rows.filter(({ response }) => wanted === "all" || (wanted === "wrong") === response.advantage < 0);
  return kept.sort((a, b) => b.strength - a.strength);
}

const questionOf = (request) => (request.messages?.findLast((message) => message.role === "user")?.content ?? request.prompt ?? "").trim().split("\n")[0];

function drawList() {
  $("list").hidden = items.length < 2 && !bundled.live || !items.length;
  if (!items.length) return;
  const rows = listed();
  $("list-title").textContent = `${rows.length} ${rows.length === 1 ? "response" : "responses"}, the most decided first`;
  const cells = rows.slice(0, MAX_LISTED).map(({ at, which, request, response, token, strength }) => {
    const place = token && placeOf(response.text, token);
    const told = token ? `${response.advantage < 0 ? "went wrong at" : "decided at"} ` : response.advantage ? "no token stands out" : "no credit: A is 0";
    const open = element("button", { type: "button", onclick: () => openRow(at, which, token) }, `${at + 1}.${which + 1}`);
    const verdict = response.grade?.outcome ?? (response.advantage > 0 ? "above the mean" : "below the mean");
    return element("tr", {}, element("td", {}, open), element("td", { className: response.advantage > 0 ? "right" : "wrong" }, verdict),
      element("td", {}, told, ...(place ? [element("code", {}, place.word), ` in line ${place.line}`] : [])),
      element("td", { className: "figure" }, token ? number(strength, 2) : ""), element("td", { className: "words" }, questionOf(request).slice(0, 160)));
  });
  const head = element("tr", {}, ...["", "verdict", "where", "|δ|", "problem"].map((name) => element("th", {}, name)));
  $("list-table").replaceChildren(element("table", { className: "rows" }, element("thead", {}, head), element("tbody", {}, ...cells)));
  $("list-more").textContent = rows.length > MAX_LISTED ? `The first ${MAX_LISTED} of ${rows.length}.` : "";
}

function openRow(at, which, token) {
  open(items[at].request, items[at].reply);
  state.response = which;
  show();
  $("panels").scrollIntoView({ block: "nearest" });
  const index = token ? state.reply.responses[which].tokens.indexOf(token) : -1;
  $("panels").lastElementChild?.querySelector(`[data-at="${Math.max(0, index)}"]`)?.focus();
}

$("list-filter").onchange = drawList;
