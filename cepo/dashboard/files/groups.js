// The groups of a step: prompts, responses with their verdicts, and the credit of every token.

const chosen = { group: 0, sample: 0 };
const OUTCOMES = { correct: ["✓", "right"], wrong: ["✗", "wrong"], unparsed: ["?", "wrong"], truncated: ["…", "wrong"] };
let loaded = { step: null, groups: [], total: 0, error: "" }, loading = 0;

function wantGroups() {
  clearTimeout(loading);
  if (loaded.step !== view.step) loading = setTimeout(loadGroups, 120);
}

async function loadGroups() {
  const step = view.step;
  let found = { groups: [], total: 0, error: "" };
  try {
    found = { ...found, ...(await ask(`v1/steps/${step}/groups?limit=64`)) };
  } catch (error) {
    found.error = error.message;
  }
  if (step !== view.step) return;
  loaded = { ...found, step };
  chosen.group = Math.min(chosen.group, Math.max(0, found.groups.length - 1));
  drawGroups();
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

function pick(change, group) {
  setFollowing(false); // a reader of a group stays at its step
  Object.assign(chosen, change);
  drawGroups();
  $("groups").querySelector(`[aria-label="${group}"] [aria-checked="true"]`).focus();
}

function drawGroups() {
  hideTip();
  $("groups-title").textContent = `Groups of step ${loaded.step ?? "–"}`;
  const { groups, total, error } = loaded;
  if (error || !groups.length) {
    const none = rowsOf().length ? "The run wrote no groups of this step; telemetry.rollouts_per_step sets how many it writes." : "No step yet.";
    $("groups").replaceChildren(element("p", { className: "note" }, error || none));
    return;
  }
  const group = groups[chosen.group], samples = group.samples;
  chosen.sample = Math.min(chosen.sample, samples.length - 1);
  const right = (each) => each.samples.filter((sample) => sample.outcome === "correct").length;
  const names = (i) => [`Group ${i + 1}`, element("small", {}, `${right(groups[i])} of ${groups[i].samples.length} correct`)];
  const sampleName = (i) => {
    const { outcome, reward } = samples[i];
    const [mark, kind] = OUTCOMES[outcome] ?? ["!", "wrong"];
    return [element("span", {}, element("span", { className: `mark ${kind}`, ariaLabel: outcome }, mark), ` Response ${i + 1}`),
      element("small", {}, `reward ${reward === null ? "–" : number(reward, 2)}, A ${signed(median(samples[i].advantage), 2)}`)];
  };
  const pictures = element("div", { className: "pictures", hidden: true });
  fillPictures(pictures, group.images ?? []);
  const asked = group.prompt.map((message) => message.content).join("\n\n");
  const kept = total > groups.length ? ` (${groups.length} of ${total})` : "";
  $("groups").replaceChildren(
    radios("Group", groups.length, chosen.group, names, (at) => pick({ group: at, sample: 0 }, "Group")),
    element("h3", {}, asked), pictures,
    element("p", { className: "chips" }, chip("answer", group.answer), ...hints(samples[chosen.sample]), kept),
    radios("Response", samples.length, chosen.sample, sampleName, (at) => pick({ sample: at }, "Response")),
    ...drawSample(samples[chosen.sample]));
}

async function fillPictures(place, names) {
  const answers = await Promise.all(names.map((name) => fetch(`v1/images/${name}`, { headers: bearer() })));
  const found = answers.filter((answer) => answer.ok);
  drawPictures(place, await Promise.all(found.map(async (answer) => asText(await answer.blob()))));
}

const chip = (name, value, why = "") => element("span", { className: "chip" }, `${name} `, element("b", {}, value), element("small", {}, why && ` ${why}`));

const hints = (sample) => sample.evidence.filter((each) => each.context === "REJECTED" && each.answer).map((each) =>
  chip("r⁻", each.answer, each.source >= 0 ? `from response ${each.source + 1}` : ""));

function median(values) {
  const sorted = [...values].sort((a, b) => a - b);
  return sorted.length ? sorted[sorted.length >> 1] : 0;
}

function drawSample(sample) {
  const verdict = element("p", { className: "note" }, `${sample.outcome.replaceAll("_", " ")}${sample.extracted ? `, read as ${sample.extracted}` : ""}${sample.reason ? `: ${sample.reason}` : ""}`);
  const box = element("div", { className: "tokens", role: "listbox", ariaLabel: "Tokens" });
  box.onkeydown = (event) => { if (event.target.closest(".token")) event.stopPropagation(); moveFocus(event); };
  if (!sample.tokens) {
    box.append(sample.text);
    return [verdict, box];
  }
  const base = Math.abs(median(sample.advantage)), delta = deltaOf(sample);
  sample.tokens.forEach((text, t) => {
    const advantage = sample.advantage[t];
    const shade = base ? (advantage - Math.sign(advantage) * base) / base : 0;
    const nodes = drawToken(text, t, (made) => tellToken(made, sample, t, shade, delta));
    paint(nodes[0], text, { shade, delta: delta?.[t] ?? null, clipped: false });
    box.append(...nodes);
  });
  const legend = element("p", { className: "legend", "aria-hidden": "true" }, element("span", {}, "pushed down"), element("i"), element("span", {}, "pushed up"));
  return [verdict, box, base ? legend : element("p", { className: "note" }, "A is 0: all rewards of the group are equal, so no token gets credit.")];
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
    ...(delta ? [["δ", signed(delta[t])]] : []), ["advantage", signed(sample.advantage[t])], ["relative to the median token", `${signed(100 * shade, 0)} %`]];
  showTip(made, element("strong", {}, visible(sample.tokens[t]) || "▪"), ` id ${sample.token_ids[t]}`, element("table", {}, element("tbody", {}, ...lines.map((line) => row(line)))));
}
