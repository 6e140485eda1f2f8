// The heat map of a response's tokens. Colours show which tokens are pushed up or down; the tokens are one tab stop,
// and #tip shows the numbers of the token under the pointer or with the focus.

const FULL_SHADE = 0.3; // tokens whose share differs from the equal share by this much get the full colour

function spoken(token, credit) {
  const text = token === "" ? "part of a character" : token.replaceAll("\n", " line break ").trim() || "space";
  const change = Math.round(100 * Math.abs(credit.shade));
  const push = change === 0 ? "equal share" : `pushed ${credit.shade > 0 ? "up" : "down"} ${change} percent`;
  const delta = credit.delta === null ? "" : `, delta ${signed(credit.delta, 2)}`;
  return `${text}: ${push}${delta}${credit.clipped ? ", clipped" : ""}`;
}

function drawToken(text, at, onPoint) {
  const special = text === "" ? "piece" : text.trim() === "" && text.includes("\n") ? "break" : "";
  const shown = special === "piece" ? "▪" : special === "break" ? visible(text) : text;
  const made = element("span", { className: `token ${special}`, role: "option", tabIndex: at ? -1 : 0 }, shown);
  made.dataset.at = at;
  made.onpointerenter = made.onfocus = () => onPoint(made);
  made.onpointerleave = made.onblur = hideTip;
  return special === "break" ? [made, "\n".repeat(text.split("\n").length - 1)] : [made];
}

// shade: the token's share of the credit minus the equal share, which is 1; above 0 the token is pushed up, below 0 down.
function paint(made, text, { shade, delta, clipped }) {
  const alpha = 0.75 * Math.min(1, Math.abs(shade) / FULL_SHADE) ** 0.7;
  made.style.backgroundColor = `rgb(var(--${shade > 0 ? "up" : "down"}) / ${alpha.toFixed(3)})`;
  made.classList.toggle("clipped", clipped);
  made.setAttribute("aria-label", spoken(text, { shade, delta, clipped }));
}

// The indices of the tokens that the model was given between its turns; they have no credit.
const givenOf = (sample) => new Set((sample.given ?? []).flatMap(({ start, end }) => Array.from({ length: end - start }, (_, i) => start + i)));

function paintGiven(made, text) {
  made.classList.add("given");
  made.setAttribute("aria-label", `${text.replaceAll("\n", " line break ").trim() || "space"}: given, no credit`);
}

const row = (cells, kind = "td") => element("tr", {}, ...cells.map((cell) => element(kind, {}, cell)));

function showTip(made, ...children) {
  $("tip").replaceChildren(...children);
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

document.addEventListener("keydown", (event) => { if (event.key === "Escape") hideTip(); });
