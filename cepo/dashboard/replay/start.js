$("name").textContent = `Replay of ${bundled.name}`;
document.title = `Replay of ${bundled.name}`;
showReplay(bundled.replay);
document.addEventListener("keydown", (event) => {
  const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
  if (!step || event.target.closest("input, select, .tokens")) return;
  stopFilm();
  toVersion(Math.max(0, Math.min(film.replay.versions.length - 1, film.at + step)));
});
