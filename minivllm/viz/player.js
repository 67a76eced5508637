(function () {
  "use strict";

  const PAUSE = 1400; // milliseconds per step while it plays
  const calm = window.matchMedia("(prefers-reduced-motion: reduce)").matches;

  function element(tag, className, text) {
    const node = document.createElement(tag);
    if (className) node.className = className;
    if (text !== undefined) node.textContent = text;
    return node;
  }

  function drawCells(block, colours, isHeld) {
    const cells = element("div", "mv-cells");
    cells.style.width = 54 * Math.min(block.cells.length, block.cells.length > 8 ? 8 : 4) + "px";
    for (const cell of block.cells) {
      const node = element("div", "mv-cell", cell.word || "\u00a0");
      node.style.borderColor = colours.edge;
      if (cell.word && isHeld) node.style.background = colours.fill;
      if (cell.word && !isHeld) node.classList.add("mv-old");
      if (cell.word && cell.new && isHeld) {
        node.classList.add("mv-new");
        node.style.borderColor = "";
      }
      cells.append(node);
    }
    return cells;
  }

  function drawSequence(sequence) {
    const row = element("div", "mv-seq");
    row.dataset.sequence = sequence.sequence;
    row.append(element("span", "mv-name", sequence.label));
    const blocks = element("div");
    sequence.blocks.forEach((block, index) => {
      const line = element("div", "mv-block mv-logical");
      line.dataset.block = block.block;
      line.dataset.edge = sequence.edge;
      const entry = element("span", "mv-entry", block.block);
      line.append(element("small", "", index), drawCells(block, sequence, true), entry);
      blocks.append(line);
    });
    row.append(blocks);
    return row;
  }

  function drawPool(frame) {
    const pool = element("div", "mv-pool");
    const columns = frame.pool.length > 12 ? 2 : 1;
    pool.style.gridTemplateRows = "repeat(" + Math.ceil(frame.pool.length / columns) + ", auto)";
    for (const block of frame.pool) {
      const box = element("div", "mv-block mv-physical");
      box.dataset.block = block.block;
      if (frame.found.includes(block.block)) box.classList.add("mv-found");
      const holders = element("span", "mv-holders", block.holders ? "\u00d7" + block.holders : "");
      if (block.holders > 1) holders.classList.add("mv-shared");
      box.append(element("small", "", block.block), drawCells(block, block, block.holders > 0), holders);
      pool.append(box);
    }
    return pool;
  }

  function drawFrame(frame) {
    const body = element("div");
    body.append(element("p", "mv-caption", frame.caption));
    const stage = element("div", "mv-stage");
    const left = element("div", "mv-left");
    for (const sequence of frame.sequences) left.append(drawSequence(sequence));
    stage.append(left, drawPool(frame));
    body.append(stage);
    body.append(element("p", "mv-facts", "Waiting: " + (frame.waiting.join(", ") || "none")));
    body.append(element("p", "mv-facts", "Free queue after the step: " + (frame.free.join(" ") || "empty")));
    body.append(element("p", "mv-facts", "\u00d7n: holders of a block. Hatched: free, its content still there. Red frame: found in the prefix cache."));
    return body;
  }

  // From each table entry to its block, in place of the arrows that are there; once the boxes are laid out.
  function drawArrows(stage) {
    stage.querySelector(".mv-arrows")?.remove();
    const origin = stage.getBoundingClientRect();
    const space = "http" + "://www.w3.org/2000/svg"; // the name of SVG, not an address
    const svg = document.createElementNS(space, "svg");
    svg.setAttribute("class", "mv-arrows");
    svg.setAttribute("aria-hidden", "true");
    for (const line of stage.querySelectorAll(".mv-logical")) {
      const from = line.querySelector(".mv-entry").getBoundingClientRect();
      const box = stage.querySelector('.mv-physical[data-block="' + line.dataset.block + '"]');
      const to = box.getBoundingClientRect();
      const x0 = from.right - origin.left, y0 = from.top + from.height / 2 - origin.top;
      const x1 = to.left - origin.left - 2, y1 = to.top + to.height / 2 - origin.top;
      const path = document.createElementNS(space, "path");
      const half = (x1 - x0) / 2;
      path.setAttribute("d", "M" + x0 + " " + y0 + "C" + (x0 + half) + " " + y0 + " " + (x1 - half) + " " + y1 + " " + x1 + " " + y1);
      path.setAttribute("fill", "none");
      path.setAttribute("stroke", line.dataset.edge);
      path.setAttribute("stroke-width", "2");
      svg.append(path);
    }
    stage.append(svg);
  }

  function ghost(node, stage, rect) {
    const origin = stage.getBoundingClientRect(), copy = node.cloneNode(true);
    copy.classList.add("mv-ghost");
    copy.style.left = rect.left - origin.left + "px";
    copy.style.top = rect.top - origin.top + "px";
    stage.append(copy);
    return copy;
  }

  function appear(stage, frame, gone) {
    stage.querySelectorAll(".mv-new").forEach((cell, index) =>
      cell.animate([{ opacity: 0, transform: "scale(.3)" }, { opacity: 1, transform: "none" }],
        { duration: 350, delay: Math.min(index * 40, 400), fill: "backwards" }));
    stage.querySelectorAll(".mv-found .mv-cells").forEach((cells) =>
      cells.animate([{ boxShadow: "0 0 0 12px #D55E0000" }, { boxShadow: "0 0 0 3px #D55E00" }], { duration: 700 }));
    for (const [source, destination] of frame.copies) {
      const find = (id) => stage.querySelector('.mv-physical[data-block="' + id + '"] .mv-cells');
      if (!find(source) || !find(destination)) continue;
      const from = find(source).getBoundingClientRect(), to = find(destination).getBoundingClientRect();
      const moving = ghost(find(source), stage, from);
      moving.style.width = from.width + "px";
      for (const cell of moving.querySelectorAll(".mv-new")) { // written after the copy: not on the way
        cell.textContent = "\u00a0";
        cell.classList.remove("mv-new");
        cell.style.background = "";
      }
      const end = "translate(" + (to.left - from.left) + "px," + (to.top - from.top) + "px)";
      moving.animate([{ transform: "none" }, { transform: end }], { duration: 800, easing: "ease-in-out" })
        .finished.then(() => moving.remove());
    }
    for (const [node, rect] of gone) {
      const fading = ghost(node, stage, rect);
      fading.animate([{ opacity: 0.9 }, { opacity: 0 }], { duration: 700 }).finished.then(() => fading.remove());
    }
  }

  function start(root) {
    const frames = JSON.parse(root.querySelector('script[type="application/json"]').textContent);
    const play = element("button", "mv-play");
    const back = element("button", "mv-back", "\u25c0 back");
    const next = element("button", "mv-next", "next \u25b6");
    const slider = element("input", "mv-slider");
    const label = element("span", "mv-label");
    const body = element("div", "mv-body");
    const bar = element("div", "mv-bar");
    play.type = back.type = next.type = "button";
    slider.type = "range";
    slider.min = 0;
    slider.max = frames.length - 1;
    slider.setAttribute("aria-label", "step");
    bar.append(play, back, next, slider, label);
    let now = 0, timer = null;

    function leaving(frame) {
      const nodes = [...body.querySelectorAll(".mv-seq")];
      const stay = new Set(frame.sequences.map((sequence) => String(sequence.sequence)));
      return nodes.filter((node) => !stay.has(node.dataset.sequence)).map((node) => [node, node.getBoundingClientRect()]);
    }

    function go(target) {
      const before = now;
      now = Math.max(0, Math.min(frames.length - 1, target));
      slider.value = now;
      label.textContent = "step " + frames[now].step + " (" + (now + 1) + " of " + frames.length + ")";
      back.disabled = now === 0;
      next.disabled = now === frames.length - 1;
      const gone = leaving(frames[now]);
      body.replaceChildren(drawFrame(frames[now]));
      const stage = body.querySelector(".mv-stage");
      drawArrows(stage);
      if (now === before + 1 && !calm) appear(stage, frames[now], gone);
    }

    // The screen reader speaks each step that the reader asks for, and is silent while it plays.
    function playing(isPlaying) {
      clearInterval(timer);
      timer = isPlaying ? setInterval(advance, PAUSE) : null;
      play.textContent = isPlaying ? "\u275a\u275a pause" : "\u25b6 play";
      body.setAttribute("aria-live", isPlaying ? "off" : "polite");
    }

    function advance() {
      if (now < frames.length - 1) go(now + 1);
      if (now === frames.length - 1) playing(false);
    }

    function toggle() {
      if (timer === null && now === frames.length - 1) go(0);
      playing(timer === null);
    }

    function by_hand(target) {
      playing(false);
      go(target);
    }

    play.addEventListener("click", toggle);
    back.addEventListener("click", () => by_hand(now - 1));
    next.addEventListener("click", () => by_hand(now + 1));
    slider.addEventListener("input", () => by_hand(Number(slider.value)));
    root.addEventListener("keydown", (event) => {
      if (event.target === slider) return; // it handles these keys itself
      const targets = { ArrowLeft: now - 1, ArrowRight: now + 1, Home: 0, End: frames.length - 1 };
      if (event.key in targets) by_hand(targets[event.key]);
      else if (event.key === " " && event.target === root) toggle();
      else return;
      event.preventDefault();
      event.stopPropagation(); // JupyterLab would move to another cell
    });
    root.querySelector(".mv-static").replaceWith(bar, body);
    playing(false);
    go(0);
    // A narrower window moves the boxes; and a player that starts hidden has no boxes to measure yet.
    if ("ResizeObserver" in window) new ResizeObserver(() => drawArrows(body.querySelector(".mv-stage"))).observe(body);
    if (calm || !("IntersectionObserver" in window)) return;
    const seen = new IntersectionObserver((entries) => {
      if (!entries.some((entry) => entry.intersectionRatio > 0.6)) return;
      seen.disconnect();
      if (now === 0 && timer === null) playing(true);
    }, { threshold: 0.6 });
    seen.observe(root);
  }

  for (const root of document.querySelectorAll('.minivllm-player[data-key="PLAYER_KEY"]')) {
    if (root.dataset.started) continue;
    root.dataset.started = "yes";
    start(root);
  }
})();
