(function () {
  "use strict";

  function element(tag, className, text) {
    const node = document.createElement(tag);
    if (className) node.className = className;
    if (text !== undefined) node.textContent = text;
    return node;
  }

  function drawBlock(block, sequence) {
    const box = element("div", "mv-block");
    box.append(element("small", "", "block " + block.block));
    const cells = element("div", "mv-cells");
    for (const cell of block.cells) {
      const node = element("div", "mv-cell" + (cell.new ? " mv-new" : ""), cell.word || "\u00a0");
      if (cell.word) node.style.background = sequence.fill;
      cells.append(node);
    }
    box.append(cells);
    return box;
  }

  function drawFrame(frame) {
    const body = element("div");
    body.append(element("p", "mv-caption", frame.caption));
    for (const sequence of frame.sequences) {
      const row = element("div", "mv-row");
      row.append(element("span", "mv-name", "request " + sequence.request));
      for (const block of sequence.blocks) row.append(drawBlock(block, sequence));
      body.append(row);
    }
    const counts = frame.ref_counts.map((pair) => pair[0] + ":" + pair[1]).join("  ");
    body.append(element("p", "mv-facts", "Waiting: " + (frame.waiting.join(", ") || "none")));
    body.append(element("p", "mv-facts", "Free queue after the step: " + (frame.free.join(" ") || "empty")));
    body.append(element("p", "mv-facts", "Reference counts after the step (block:count): " + (counts || "none")));
    return body;
  }

  function start(root) {
    const frames = JSON.parse(root.querySelector('script[type="application/json"]').textContent);
    const back = element("button", "mv-back", "\u25c0 back");
    const next = element("button", "mv-next", "next \u25b6");
    const slider = element("input", "mv-slider");
    const label = element("span", "mv-label");
    const body = element("div", "mv-body");
    const bar = element("div", "mv-bar");
    back.type = next.type = "button";
    slider.type = "range";
    slider.min = 0;
    slider.max = frames.length - 1;
    slider.setAttribute("aria-label", "step");
    body.setAttribute("aria-live", "polite");
    bar.append(back, next, slider, label);
    let now = 0;

    function go(target) {
      now = Math.max(0, Math.min(frames.length - 1, target));
      slider.value = now;
      label.textContent = "step " + frames[now].step + " (" + (now + 1) + " of " + frames.length + ")";
      back.disabled = now === 0;
      next.disabled = now === frames.length - 1;
      body.replaceChildren(drawFrame(frames[now]));
    }

    back.addEventListener("click", () => go(now - 1));
    next.addEventListener("click", () => go(now + 1));
    slider.addEventListener("input", () => go(Number(slider.value)));
    root.addEventListener("keydown", (event) => {
      if (event.target === slider) return; // it handles these keys itself
      const targets = { ArrowLeft: now - 1, ArrowRight: now + 1, Home: 0, End: frames.length - 1 };
      if (!(event.key in targets)) return;
      go(targets[event.key]);
      event.preventDefault();
      event.stopPropagation(); // JupyterLab would move to another cell
    });
    root.querySelector(".mv-static").replaceWith(bar, body);
    go(0);
  }

  for (const root of document.querySelectorAll('.minivllm-player[data-key="PLAYER_KEY"]')) {
    if (root.dataset.started) continue;
    root.dataset.started = "yes";
    start(root);
  }
})();
