// ---- saving the page as a file and the panels as a picture ----

function download(name, url) {
  const link = element("a", { href: url, download: name });
  document.body.append(link);
  link.click();
  link.remove();
}

function pageWithData() {
  const copy = document.documentElement.cloneNode(true);
  const find = (id) => copy.querySelector(`#${id}`);
  find("data").textContent = JSON.stringify({ ...bundled, items, request: state.request, reply: state.reply, live: false }).replaceAll("<", "\\u003c");
  for (const id of ["panels", "responses", "images", "chosen", "drafts", "tip", "note", "error", "list-table"]) find(id).replaceChildren();
  find("tip").hidden = true;
  find("own").hidden = find("drop").hidden = true;
  return `<!doctype html>\n${copy.outerHTML}\n`;
}

function savePage() {
  const url = URL.createObjectURL(new Blob([pageWithData()], { type: "text/html" }));
  download("token-credit.html", url);
  setTimeout(() => URL.revokeObjectURL(url), 10_000);
}

function picture() {
  const scale = 2, gap = 24, line = 30, size = 17, narrowest = 340;
  let width = 560;
  const style = getComputedStyle(document.documentElement);
  const colour = (name) => style.getPropertyValue(`--${name}`).trim();
  const mono = `${size}px ${colour("mono")}`, sans = '14px system-ui, "DejaVu Sans", sans-serif';
  const canvas = element("canvas");
  const pen = canvas.getContext("2d");
  const draw = (real) => {
    let lowest = 0, longest = narrowest;
    state.panels.forEach((panel, index) => {
      const left = gap + index * (width + gap);
      const article = $("panels").children[index];
      const label = article.querySelector("select").selectedOptions[0].textContent;
      const rate = article.querySelector("dd").textContent;
      if (real) {
        pen.fillStyle = colour("ink");
        pen.font = `600 18px ${sans.slice(5)}`;
        pen.fillText(label, left, 62);
        pen.font = sans;
        pen.fillStyle = colour("soft");
        pen.fillText(`clip rate ${rate}, λ ${state.lam.toFixed(2)}, ε ${state.eps.toFixed(2)}`, left + 130, 62);
      }
      let x = left, y = 100;
      pen.font = mono;
      for (const made of article.querySelectorAll(".token")) {
        for (const letter of made.textContent) {
          const wide = pen.measureText(letter).width;
          if (x + wide > left + width) [x, y] = [left, y + line];
          if (real) {
            pen.fillStyle = getComputedStyle(made).backgroundColor;
            pen.fillRect(x, y - size - 2, wide + 0.5, size + 9);
            pen.fillStyle = made.classList.contains("break") ? colour("soft") : colour("ink");
            pen.fillText(letter, x, y);
            if (made.classList.contains("clipped")) pen.fillRect(x + 1, y + 4, wide / 2, 1.5);
          }
          x += wide;
          longest = Math.max(longest, x - left);
        }
        if (made.classList.contains("break")) [x, y] = [left, y + line];
      }
      lowest = Math.max(lowest, y);
    });
    return [longest, lowest + gap];
  };
  const [longest, height] = draw(false);
  width = Math.ceil(longest);
  canvas.width = scale * (gap + state.panels.length * (width + gap));
  canvas.height = scale * height;
  pen.scale(scale, scale);
  pen.fillStyle = colour("card");
  pen.fillRect(0, 0, canvas.width, canvas.height);
  pen.fillStyle = colour("ink");
  pen.font = `600 15px ${sans.slice(5)}`;
  pen.fillText(`${$("question").textContent.split("\n")[0].slice(0, 90)}   r⁺ ${$("positive").textContent}   r⁻ ${$("negative").textContent}`, gap, 30);
  draw(true);
  return canvas.toDataURL("image/png");
}
