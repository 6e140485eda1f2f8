// Requests from a file of another model's responses: JSON, JSON Lines, CSV, or a chat log.
// Rows with the same question and answer become one request, so that their responses are contrasted as siblings.

const QUESTIONS = ["question", "problem", "prompt", "instruction", "query", "input"];
const RESPONSES = ["responses", "response", "completions", "completion", "outputs", "output", "generations", "generation", "prediction", "choices"];
const ANSWERS = ["positive", "answer", "reference_answer", "reference", "ground_truth", "solution", "expected", "target", "label"];
const CHATS = ["messages", "conversations", "conversation", "chat"];
const ROLES = { human: "user", user: "user", question: "user", q: "user", gpt: "assistant", assistant: "assistant", model: "assistant", bot: "assistant", answer: "assistant", a: "assistant", system: "system" };
const SPEAKER = /^\s*(?:\*\*|#+\s*)?(human|user|question|q|gpt|assistant|model|bot|answer|a|system)(?:\*\*)?\s*:(?:\*\*)?\s*/i;
const MAX_SIBLINGS = 64;

// name: of the file; answer: the right answer of rows that have none.
function requestsOf(name, text, answer) {
  const groups = new Map();
  rowsOf(name, text.replace(/^\ufeff/, "")).forEach((row, at) => {
    let request;
    try {
      request = requestOf(row, answer);
    } catch (error) {
      throw new Error(`${name}, row ${at + 1}: ${error.message}`);
    }
    const { responses, ...asked } = request;
    const key = JSON.stringify(asked), group = groups.get(key);
    if (group && group.responses.length + responses.length <= MAX_SIBLINGS) group.responses.push(...responses);
    else groups.set(group ? `${key}${groups.size}` : key, request);
  });
  if (!groups.size) throw new Error(`${name} holds no rows`);
  return [...groups.values()];
}

function rowsOf(name, text) {
  if (/\.(csv|tsv)$/i.test(name)) return tableRows(text, /\.tsv$/i.test(name) ? "\t" : ",");
  const parsed = parsedJson(text);
  if (Array.isArray(parsed)) return areTurns(parsed) ? [parsed] : parsed;
  if (parsed) return [parsed];
  const lines = text.split("\n").filter((line) => line.trim());
  const rows = lines.map(parsedJson);
  if (rows.length && rows[0]) {
    const bad = rows.findIndex((row) => !row);
    if (bad >= 0) throw new Error(`${name}, line ${bad + 1} is not JSON`);
    return rows;
  }
  const turns = turnsOfLog(text);
  if (turns.length) return [turns];
  throw new Error(`${name} is neither JSON, JSON Lines or CSV nor a chat log with lines such as "User: ..." and "Assistant: ..."`);
}

function parsedJson(text) {
  try {
    const value = JSON.parse(text);
    return value && typeof value === "object" ? value : null;
  } catch {
    return null;
  }
}

// Rows of a table whose cells may be quoted and hold line breaks.
function tableRows(text, comma) {
  const rows = [[""]];
  let quoted = false;
  for (let at = 0; at < text.length; at += 1) {
    const letter = text[at], row = rows.at(-1);
    if (quoted && letter === '"' && text[at + 1] === '"') { row[row.length - 1] += '"'; at += 1; }
    else if (letter === '"' && (quoted || row.at(-1) === "")) quoted = !quoted;
    else if (!quoted && letter === comma) row.push("");
    else if (!quoted && letter === "\n") rows.push([""]);
    else if (quoted || letter !== "\r") row[row.length - 1] += letter;
  }
  const [head, ...cells] = rows.filter((row) => row.length > 1 || row[0] !== "");
  return cells.map((row) => Object.fromEntries(head.map((column, at) => [column.trim(), row[at] ?? ""])));
}

function turnsOfLog(text) {
  const turns = [];
  for (const line of text.split("\n")) {
    const speaker = SPEAKER.exec(line);
    if (speaker) turns.push({ role: ROLES[speaker[1].toLowerCase()], content: line.slice(speaker[0].length) });
    else if (turns.length) turns.at(-1).content += `\n${line}`;
  }
  return turns.map((turn) => ({ ...turn, content: turn.content.trim() }));
}

const areTurns = (value) => Array.isArray(value) && value.length > 0 && value.every((turn) => turn && typeof turn === "object" && ("role" in turn || ("from" in turn && "value" in turn)));

// Chat turns with role and content, also from ShareGPT's from and value.
const chatTurns = (turns) => turns.map((turn) => ({ role: turn.role ?? ROLES[String(turn.from).toLowerCase()] ?? turn.from, content: textOf(turn.content ?? turn.value ?? "") }));

const textOf = (content) => (Array.isArray(content) ? content.map((part) => part.text ?? "").join("") : String(content));

const firstOf = (row, names) => names.find((name) => row[name] !== undefined && row[name] !== null && row[name] !== "");

function requestOf(row, answer) {
  if (Array.isArray(row)) return ofChat(row, {}, answer);
  if (typeof row !== "object" || row === null) throw new Error("is no object with a question and a response");
  if (Array.isArray(row.responses) && row.positive !== undefined && (row.messages || row.prompt || row.prompt_token_ids)) return row;
  if (Array.isArray(row.samples) && areTurns(row.prompt)) return ofGroup(row);
  const chat = CHATS.find((name) => areTurns(row[name])), response = firstOf(row, RESPONSES);
  if (chat && !response) return ofChat(row[chat], row, answer);
  const question = chat ?? firstOf(row, QUESTIONS);
  if (!question) throw new Error(`has no question; name a column ${QUESTIONS.slice(0, 3).join(", ")} or messages`);
  if (!response) throw new Error(`has no response; name a column ${RESPONSES.slice(0, 4).join(", ")} or output`);
  const turns = areTurns(row[question]) ? chatTurns(row[question]) : [{ role: "user", content: String(row[question]) }];
  const given = Array.isArray(row[response]) ? row[response] : [row[response]];
  return finished(turns, given.map((each) => givenResponse(each, row)), row, answer);
}

// A chat whose last turn is the response.
function ofChat(turns, row, answer) {
  const chat = chatTurns(turns), last = chat.at(-1);
  if (last.role !== "assistant" || chat.length < 2) throw new Error("is a chat that does not end with a model's answer");
  return finished(chat.slice(0, -1), [givenResponse(last.content, row)], row, answer);
}

// A group of a run's rollouts.
function ofGroup(row) {
  const responses = row.samples.map((sample) => ({ token_ids: sample.token_ids, ...(Number.isFinite(sample.reward) && { reward: sample.reward }) }));
  return { messages: row.prompt, responses, positive: String(row.answer) };
}

function givenResponse(given, row) {
  const text = typeof given === "object" && given ? given.text ?? given.content ?? given.message?.content : given;
  if (typeof text !== "string") throw new Error("holds a response that is no text");
  const reward = given?.reward ?? row.reward ?? row.correct ?? row.score;
  const value = reward === "" || reward === undefined || reward === null ? NaN : Number({ true: 1, false: 0 }[String(reward).toLowerCase()] ?? reward);
  return Number.isFinite(value) ? { text, reward: value } : { text };
}

function finished(messages, responses, row, answer) {
  const key = firstOf(row, ANSWERS), right = key ? row[key] : row.reward_model?.ground_truth ?? answer;
  if (right === undefined || right === "") throw new Error('has no right answer; add a column "answer", or give one for all rows above');
  const wrong = row.negative ?? row.wrong_answer;
  return { messages, responses, positive: String(right), ...(wrong ? { negative: String(wrong) } : {}) };
}
