// The replay: one held-out problem's response at each policy version, by a slider. Also the script of `cepo replay --html`.

const OUTCOMES = { correct: ["✓", "right"], wrong: ["✗", "wrong"], unparsed: ["?", "wrong"], truncated: ["…", "wrong"] };
const STEP_MS = 900; // of the play button
const markOf = (outcome) => OUTCOMES[outcome] ?? ["!", "wrong"];
const chip = (name, value, why = "") => element("span", { className: "chip" }, `${name} `, element("b", {}, value), element("small", {}, why && ` ${why}`));
const film = { replay: { versions: [], problems: [] }, problem: 0, at: 0, playing: 0 };

function showReplay(replay) {
  film.replay = replay;
  film.problem = Math.min(film.problem, Math.max(0, replay.problems.length - 1));
  film.at = Math.min(film.at, Math.max(0, replay.versions.length - 1));
  if (!replay.problems.length) {
    $("replay").replaceChildren(element("p", { className: "note" }, "No held-out problem was evaluated yet."));
    return;
  }
  buildReplay();
}

const frames = () => film.replay.problems[film.problem].responses;
const frame = () => frames().find((each) => each.version === film.replay.versions[film.at]);

function buildReplay() {
  const { problems, versions } = film.replay;
  const asked = (problem) => problem.question.split("\n")[0];
  const select = element("select", { ariaLabel: "Problem", onchange: () => toProblem(select.selectedIndex) }, ...problems.map((problem, at) =>
    element("option", { value: String(at) }, `${problem.responses.map((each) => markOf(each.outcome)[0]).join("")}  ${asked(problem)}`)));
  const step = (by) => toProblem((film.problem + by + problems.length) % problems.length);
  const slider = element("input", { type: "range", min: 0, max: versions.length - 1, value: film.at, ariaLabel: "Policy version", oninput: () => { stopFilm(); toVersion(Number(slider.value)); } });
  const play = element("button", { type: "button", "aria-pressed": "false", onclick: playFilm }, "Play");
  const marks = element("div", { className: "marks" }, ...versions.map((version, at) =>
    element("button", { type: "button", onclick: () => { stopFilm(); toVersion(at); } })));
  const parts = { select, slider, play, marks, question: element("h3"), chips: element("p", { className: "chips" }), verdict: element("p", { className: "note", role: "status" }), tokens: element("div", { className: "tokens", role: "listbox", ariaLabel: "Tokens of the version", onkeydown: (event) => { if (event.target.closest(".token")) event.stopPropagation(); moveFocus(event); } }), note: element("p", { className: "note" }) };
  film.parts = parts;
  $("replay").replaceChildren(
    element("div", { className: "pick" }, element("button", { type: "button", ariaLabel: "Problem before", onclick: () => step(-1) }, "‹"), select, element("button", { type: "button", ariaLabel: "Problem after", onclick: () => step(1) }, "›")),
    parts.question, parts.chips, element("div", { className: "time" }, play, slider, marks), parts.verdict, parts.tokens, parts.note);
  toProblem(film.problem);
}

function toProblem(at) {
  film.problem = at;
  const { parts } = film, problem = film.replay.problems[at];
  parts.select.selectedIndex = at;
  parts.question.textContent = problem.question;
  parts.chips.replaceChildren(chip("answer", problem.answer), ...(problem.negative ? [chip("r⁻", problem.negative)] : []));
  film.replay.versions.forEach((version, place) => {
    const response = frames().find((each) => each.version === version);
    const [mark, kind] = response ? markOf(response.outcome) : ["·", ""];
    const button = parts.marks.children[place];
    button.ariaLabel = `Version ${version}: ${response?.outcome ?? "no response"}`;
    button.replaceChildren(element("span", { className: kind }, mark), element("span", {}, film.replay.versions.length > 12 && place % 2 ? "" : `v${version}`));
  });
  toVersion(film.at);
}

function toVersion(at) {
  hideTip();
  film.at = at;
  const { parts } = film, response = frame(), version = film.replay.versions[at];
  parts.slider.value = at;
  parts.slider.setAttribute("aria-valuetext", `version ${version}`);
  [...parts.marks.children].forEach((button, place) => button.setAttribute("aria-current", String(place === at)));
  if (!response) {
    parts.verdict.textContent = `v${version}: no response`;
    parts.tokens.replaceChildren();
    return;
  }
  parts.verdict.textContent = `v${version}: ${response.outcome.replaceAll("_", " ")}${response.reason ? `, ${response.reason}` : ""}${response.credit ? `; A ${signed(response.advantage, 2)}` : ""}`;
  drawFrame(response);
  const why = response.credit ? (response.advantage ? `Credit of ${film.replay.method}, scored by the base model. The responses of all versions are one group, so they are contrasted with the same wrong answer.` : "A is 0: the outcome is the same at every version, so no token gets credit.") : "cepo replay RUN_DIR scores these responses and adds the credit of every token.";
  parts.note.textContent = why;
}

function drawFrame(response) {
  const nodes = (response.tokens ?? [response.text]).flatMap((text, t) => {
    const shade = response.advantage ? Math.sign(response.advantage) * (response.credit[t] / response.advantage - 1) : 0;
    const made = drawToken(text, t, (token) => tellFrame(token, response, t, shade));
    paint(made[0], text, { shade, delta: response.delta?.[t] ?? null, clipped: false });
    return made;
  });
  film.parts.tokens.replaceChildren(...nodes);
}

function tellFrame(made, response, t, shade) {
  hideTip();
  if (!response.credit) return;
  made.classList.add("mate");
  const lines = [["δ", signed(response.delta[t])], ["advantage", signed(response.credit[t])], ["relative to an equal share", `${signed(100 * shade, 0)} %`]];
  showTip(made, element("strong", {}, visible(response.tokens[t]) || "▪"), element("table", {}, element("tbody", {}, ...lines.map((line) => row(line)))));
}

function stopFilm() {
  clearInterval(film.playing);
  film.playing = 0;
  film.parts.play.setAttribute("aria-pressed", "false");
}

function playFilm() {
  if (film.playing) return stopFilm();
  film.parts.play.setAttribute("aria-pressed", "true");
  if (film.at === film.replay.versions.length - 1) toVersion(0);
  film.playing = setInterval(() => {
    if (film.at < film.replay.versions.length - 1) toVersion(film.at + 1);
    if (film.at === film.replay.versions.length - 1) stopFilm();
  }, STEP_MS);
}
