"use strict";
// Shared by all pages: DOM elements, number formats, the access token, theme and palette.

const $ = (id) => document.getElementById(id);
const bundled = JSON.parse($("data").textContent);

function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key in made && key !== "role") made[key] = value; else made.setAttribute(key, value);
  }
  made.append(...children);
  return made;
}

// ---- images ----

function drawPictures(place, uris) {
  place.replaceChildren(...uris.map((src, at) => element("img", { src, alt: `Image ${at + 1} of the problem` })));
  place.hidden = !uris.length;
}

function asText(file) {
  return new Promise((done, failed) => {
    const reader = new FileReader();
    reader.onload = () => done(reader.result);
    reader.onerror = () => failed(reader.error);
    reader.readAsDataURL(file);
  });
}

// ---- number formats ----

const number = (value, digits = 3) => (value === null ? "–" : (Object.is(Math.round(value * 10 ** digits), -0) ? 0 : value).toFixed(digits));
const signed = (value, digits = 3) => (value > 0 ? "+" : "") + number(value, digits);
const percent = (share) => `${(100 * share).toFixed(1)} %`;
const visible = (text) => text.replaceAll("\n", "↵").replaceAll("\t", "⇥");
const huge = (value) => (value >= 1e4 || (value > 0 && value < 1e-3) ? value.toExponential(1) : value.toFixed(3));

// The Authorization header, from the token field that a page shows after the service has answered 401.
function bearer() {
  const token = document.querySelector("[name=token]").value;
  return token ? { Authorization: `Bearer ${token}` } : {};
}

const THEMES = ["auto", "light", "dark"];

function nextTheme() {
  const root = document.documentElement;
  const theme = THEMES[(THEMES.indexOf(root.dataset.theme ?? "auto") + 1) % THEMES.length];
  if (theme === "auto") delete root.dataset.theme; else root.dataset.theme = theme;
  $("theme").textContent = `Theme: ${theme}`;
}

function nextPalette() {
  const root = document.documentElement;
  const safe = root.dataset.palette !== "safe";
  if (safe) root.dataset.palette = "safe"; else delete root.dataset.palette;
  $("palette").setAttribute("aria-pressed", String(safe));
}

$("palette").onclick = nextPalette;
$("theme").onclick = nextTheme;
