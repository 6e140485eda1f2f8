// One group: its prompt, its responses with their verdicts, and the credit of every token.

// The group that is shown: its place in the run, the chosen response, and the token that a link names.
const opened = { source: "train", number: null, at: 0, sample: 0, token: null, group: null, error: "" };

const linkOf = ({ source, number, at, sample, token }) => `#${[source, number, at, sample, ...(token === null ? [] : [token])].join("/")}`;
const wordsOf = ({ source, number, at }) => `${source === "train" ? `step ${number}` : `held out, v${number}`}, group ${at + 1}`;

// Shows a response of a group; reads the group unless it is the one that is shown.
async function openGroup(place) {
  const same = opened.group && ["source", "number", "at"].every((key) => opened[key] === place[key]);
  Object.assign(opened, { token: null }, place, same ? {} : { group: null, error: "" });
  if (!same) {
    const wanted = linkOf(opened);
    try {
      const group = await ask(`v1/rollouts/${opened.source}/${opened.number}/${opened.at}`);
      if (wanted !== linkOf(opened)) return;
      opened.group = group;
    } catch (error) {
      opened.error = error.message;
    }
  }
  drawGroup();
}

function radios(label, count, at, name, pick) {
  const box = element("div", { className: "tabs", role: "radiogroup", ariaLabel: label }, ...Array.from({ length: count }, (_, i) =>
    element("button", { type: "button", role: "radio", "aria-checked": String(i === at), tabIndex: i === at ? 0 : -1, onclick: () => pick(i) }, ...name(i))));
  box.onkeydown = (event) => {
    const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    if (!step) return;
    event.preventDefault();
    event.stopPropagation();
    pick((at + step + count) % count);
  };
  return box;
}

// The reader of a group stays at it, and the address of the page names what is read.
function pick(change) {
  setFollowing(false);
  Object.assign(opened, { token: null }, change);
  drawGroup();
  history.replaceState(null, "", linkOf(opened));
}

function drawGroup() {
  hideTip();
  const { group, error } = opened;
  markRow();
  if (!group) {
    $("groups").replaceChildren(element("p", { className: "note" }, error));
    return;
  }
  const samples = group.samples;
  opened.sample = Math.min(opened.sample, samples.length - 1);
  const sampleName = (i) => {
    const { outcome, reward } = samples[i];
    const [mark, kind] = markOf(outcome);
    return [element("span", {}, element("span", { className: `mark ${kind}`, ariaLabel: outcome }, mark), ` Response ${i + 1}`),
      element("small", {}, `reward ${reward === null ? "–" : number(reward, 2)}, A ${signed(equalShare(samples[i]), 2)}`)];
  };
  const pictures = element("div", { className: "pictures", hidden: true });
  fillPictures(pictures, group.images ?? []);
  const asked = group.prompt.map((message) => message.content).join("\n\n");
  const toResponse = (at) => {
    pick({ sample: at });
    $("groups").querySelector('[aria-label="Response"] [aria-checked="true"]').focus();
  };
  $("groups").replaceChildren(
    element("p", { className: "note" }, `${wordsOf(opened)} · `, element("a", { href: linkOf(opened), id: "permalink" }, "link")),
    element("h3", {}, asked), pictures,
    element("p", { className: "chips" }, chip("answer", group.answer), ...hints(samples[opened.sample])),
    radios("Response", samples.length, opened.sample, sampleName, toResponse),
    ...drawSample(samples[opened.sample]));
  if (opened.token !== null) showLinked();
}

// The token that a link names: in view, with the focus and its numbers.
function showLinked() {
  const token = $("groups").querySelector(`.token[data-at="${opened.token}"]`);
  if (!token) return;
  token.classList.add("linked");
  token.scrollIntoView({ block: "center" });
  token.focus({ preventScroll: true });
}

async function fillPictures(place, names) {
  const answers = await Promise.all(names.map((name) => fetch(`v1/images/${name}`, { headers: bearer() })));
  const found = answers.filter((answer) => answer.ok);
  drawPictures(place, await Promise.all(found.map(async (answer) => asText(await answer.blob()))));
}

const hints = (sample) => sample.evidence.filter((each) => each.context === "REJECTED" && each.answer).map((each) =>
  chip("r⁻", each.answer, each.source >= 0 ? `from response ${each.source + 1}` : ""));

function median(values) {
  const sorted = [...values].sort((a, b) => a - b);
  return sorted.length ? sorted[sorted.length >> 1] : 0;
}

// The median advantage of the tokens that the policy sampled.
function equalShare(sample) {
  const given = givenOf(sample);
  return median(sample.advantage.filter((_, t) => !given.has(t)));
}

function drawSample(sample) {
  const verdict = element("p", { className: "note" }, `${sample.outcome.replaceAll("_", " ")}${sample.extracted ? `, read as ${sample.extracted}` : ""}${sample.reason ? `: ${sample.reason}` : ""}`);
  const box = element("div", { className: "tokens", role: "listbox", ariaLabel: "Tokens" });
  box.onkeydown = (event) => { if (event.target.closest(".token")) event.stopPropagation(); moveFocus(event); };
  box.onclick = (event) => linkTo(event.target.closest(".token"));
  if (!sample.tokens) {
    box.append(sample.text);
    return [verdict, box];
  }
  const given = givenOf(sample), base = Math.abs(equalShare(sample)), delta = deltaOf(sample);
  sample.tokens.forEach((text, t) => {
    if (given.has(t)) {
      const nodes = drawToken(text, t, (made) => showTip(made, element("strong", {}, visible(text) || "▪"), " given to the model: no credit"));
      paintGiven(nodes[0], text);
      box.append(...nodes);
      return;
    }
    const advantage = sample.advantage[t] ?? 0;
    const shade = base ? (advantage - Math.sign(advantage) * base) / base : 0;
    const nodes = drawToken(text, t, (made) => tellToken(made, sample, t, shade, delta));
    paint(nodes[0], text, { shade, delta: delta?.[t] ?? null, clipped: false });
    box.append(...nodes);
  });
  const legend = element("p", { className: "legend", "aria-hidden": "true" }, element("span", {}, "pushed down"), element("i"), element("span", {}, "pushed up"));
  const pale = sample.advantage.length ? "A is 0: all rewards of the group are equal, so no token gets credit." : "A held-out response: nothing is learned from it, so it has no credit.";
  return [verdict, box, base ? legend : element("p", { className: "note" }, pale)];
}

// A click on a token makes the address of the page a link to it.
function linkTo(token) {
  if (!token) return;
  setFollowing(false);
  opened.token = Number(token.dataset.at);
  document.querySelectorAll(".linked").forEach((other) => other.classList.remove("linked"));
  token.classList.add("linked");
  $("permalink").href = linkOf(opened);
  history.replaceState(null, "", linkOf(opened));
}

const CONTEXTS = { PLAIN: "plain", ANSWER: "given r⁺", REJECTED: "given r⁻" };
const contextName = (name) => CONTEXTS[name] ?? name.toLowerCase();

// log P given r⁺ minus the other evidence; null if the method measured one context only.
function deltaOf(sample) {
  const by = Object.fromEntries(sample.evidence.map((each) => [each.context, each.logps]));
  const against = by.REJECTED ?? by.PLAIN;
  return by.ANSWER && against ? by.ANSWER.map((logp, t) => logp - against[t]) : null;
}

function tellToken(made, sample, t, shade, delta) {
  hideTip();
  made.classList.add("mate");
  const lines = [...sample.evidence.map((each) => [`log P ${contextName(each.context)}`, number(each.logps[t] ?? null)]),
    ...(delta ? [["δ", signed(delta[t])]] : []), ["advantage", signed(sample.advantage[t] ?? null)], ["relative to the median token", `${signed(100 * shade, 0)} %`]];
  showTip(made, element("strong", {}, visible(sample.tokens[t]) || "▪"), ` id ${sample.token_ids[t]}`, element("table", {}, element("tbody", {}, ...lines.map((line) => row(line)))));
}
