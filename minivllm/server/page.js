(function () {
  "use strict";
  // The palette and the hatches of minivllm/viz/style.py: colour never carries a meaning alone.
  const PALETTE = ["#E69F00", "#0072B2", "#F0E442", "#009E73", "#56B4E9", "#D55E00", "#CC79A7"];
  const HATCHES = [
    "",
    "repeating-linear-gradient(45deg, transparent 0 5px, rgba(0,0,0,.35) 5px 6px)",
    "radial-gradient(rgba(0,0,0,.4) 1px, transparent 1.5px) 0 0 / 6px 6px",
    "repeating-linear-gradient(-45deg, transparent 0 5px, rgba(0,0,0,.35) 5px 6px)",
  ];
  const MAX_CELLS = 1024;
  const PROMPTS = [
    "Explain in two sentences what a page table is.",
    "Write a short poem about memory.",
    "List five animals that live in the sea, with one fact about each.",
  ];
  const $ = (id) => document.getElementById(id);
  const answers = new Map(); // id of an answer -> where its request's number is to be shown
  let frame = null;
  let cells = [];
  let speeds = [];
  let key = "";

  // -- drawing ------------------------------------------------------------------------------------

  function element(tag, className, text) {
    const node = document.createElement(tag);
    if (className) node.className = className;
    if (text !== undefined) node.textContent = text;
    return node;
  }

  function mix(colour) {
    const channel = (at) => Math.round(parseInt(colour.slice(at, at + 2), 16) * 0.55 + 255 * 0.45);
    return `rgb(${channel(1)}, ${channel(3)}, ${channel(5)})`;
  }

  function paint(node, number) {
    const colour = PALETTE[(number - 1) % PALETTE.length];
    node.style.setProperty("--edge", colour);
    node.style.setProperty("--fill", mix(colour));
    const hatch = HATCHES[Math.floor((number - 1) / PALETTE.length) % HATCHES.length];
    if (hatch) node.style.setProperty("--hatch", hatch);
    else node.style.removeProperty("--hatch");
  }

  function makeCells(count) {
    const size = count <= 48 ? 64 : count <= 160 ? 44 : 32;
    const grid = $("grid");
    grid.style.setProperty("--size", size + "px");
    grid.style.setProperty("--font", size > 40 ? "20px" : "12px");
    grid.classList.toggle("small", size < 40);
    cells = Array.from({ length: Math.min(count, MAX_CELLS) }, () => element("div", "cell"));
    grid.replaceChildren(...cells);
  }

  function drawCell(node, id, block, isCached, blockSize) {
    const state = JSON.stringify([block, isCached]);
    if (node.dataset.state === state) return; // most cells stay as they are from frame to frame
    node.dataset.state = state;
    node.dataset.block = id;
    node.replaceChildren(element("span", "id", id));
    node.className = "cell" + (isCached ? " cached" : "");
    for (const name of ["--fill", "--part", "--hatch", "--edge"]) node.style.removeProperty(name);
    if (!block) {
      node.title = `block ${id}: free` + (isCached ? ", the prefix cache still knows it" : "");
      return;
    }
    const [, filled, holders, numbers, mark] = block;
    paint(node, numbers[0]);
    node.classList.add("held");
    if (mark) node.classList.add(mark);
    node.style.setProperty("--part", (100 * filled) / blockSize + "%");
    const slot = 100 / blockSize;
    const lines = `repeating-linear-gradient(to right, transparent 0 calc(${slot}% - 1px), rgba(0,0,0,.18) calc(${slot}% - 1px) ${slot}%)`;
    node.style.setProperty("--slots", cells.length <= 48 ? lines : "none");
    node.append(element("span", "who", numbers.join("+")));
    if (holders > 1) node.append(element("b", "", "×" + holders));
    node.title = `block ${id}: request ${numbers.join(" and ")}, ${filled} of ${blockSize} slots, ` +
      `${holders} holder${holders > 1 ? "s" : ""}${mark === "copy" ? ", a copy made on write" : ""}`;
  }

  function drawPool() {
    if (cells.length !== Math.min(frame.num_blocks, MAX_CELLS)) makeCells(frame.num_blocks);
    const held = new Map(frame.blocks.map((block) => [block[0], block]));
    const cached = new Set(frame.cached);
    cells.forEach((node, id) => drawCell(node, id, held.get(id), cached.has(id), frame.block_size));
    const filled = frame.blocks.reduce((sum, block) => sum + block[1], 0);
    const share = (100 * filled) / (frame.num_blocks * frame.block_size);
    $("held").textContent = `${held.size} of ${frame.num_blocks}`;
    $("filled").textContent = share.toFixed(share < 10 ? 1 : 0) + "%";
    const shown = frame.num_blocks > MAX_CELLS ? `, the first ${MAX_CELLS} shown` : "";
    $("pool-title").textContent = `${frame.num_blocks} blocks of ${frame.block_size} slots${shown}`;
    $("grid").setAttribute("aria-label", `${frame.num_blocks} blocks: ${held.size} held, ${cached.size} free and ` +
      `still known to the prefix cache, ${frame.num_blocks - held.size - cached.size} free and empty.`);
  }

  function drawQueues() {
    for (const state of ["running", "waiting", "swapped"]) {
      const chips = frame.requests.filter((each) => each.state === state).map((each) => {
        const done = state === "running" ? `${each.computed} of ${each.tokens} tokens` : `${each.tokens} tokens`;
        const many = each.sequences > 1 ? ` × ${each.sequences}` : "";
        const blocks = each.blocks ? `, ${each.blocks} blocks` : "";
        const chip = element("li", "chip", `${each.number}: ${done}${many}${blocks}`);
        paint(chip, each.number);
        return chip;
      });
      $(state).replaceChildren(...(chips.length ? chips : [element("li", "", "none")]));
    }
  }

  function drawWords() {
    const why = frame.why.map((text) => element("li", "why", text));
    $("did").replaceChildren(...why, ...frame.did.map((text) => element("li", "", text)));
    const news = frame.news.slice().reverse().map(([step, text]) => {
      const line = element("li", "");
      line.append(element("span", "at", `step ${step + 1}: `), text);
      return line;
    });
    $("news").replaceChildren(...news);
  }

  function drawFacts() {
    speeds.push([frame.time, frame.generated]);
    speeds = speeds.filter(([time]) => time > frame.time - 2);
    const [time, generated] = speeds[0];
    const speed = speeds.length > 1 ? (frame.generated - generated) / (frame.time - time) : 0;
    $("speed").textContent = frame.paused ? "paused" : speed.toFixed(0);
    $("steps").textContent = frame.step;
    $("preemptions").textContent = frame.preemptions;
    $("pause").textContent = frame.paused ? "Resume" : "Pause";
    $("step").disabled = !frame.paused || !frame.requests.length;
    document.body.classList.toggle("paused", frame.paused);
    $("state").textContent = frame.paused ? "paused: press Step" : frame.requests.length ? "running" : "idle";
  }

  function draw(next) {
    frame = next;
    drawFacts();
    drawPool();
    drawQueues();
    drawWords();
    for (const each of frame.requests) {
      const who = answers.get(each.id.replace(/-\d+$/, ""));
      if (who && !who.dataset.number) {
        who.dataset.number = each.number;
        who.textContent = "request " + each.number;
        paint(who.parentNode, each.number);
        who.parentNode.style.borderColor = "var(--edge)";
      }
    }
  }

  // -- talking to the server ------------------------------------------------------------------------

  async function call(path, options) {
    const headers = { "Content-Type": "application/json", ...(key ? { Authorization: "Bearer " + key } : {}) };
    const answer = await fetch(path, { ...options, headers });
    if (answer.status === 401 && (key = prompt("This server asks for an API key:") || "")) return call(path, options);
    return answer;
  }

  // Server-sent events by fetch, because EventSource can send no API key.
  async function* events(answer) {
    const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
    let text = "";
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      const parts = (text + value).split("\n\n");
      text = parts.pop();
      for (const part of parts) if (part.startsWith("data: ") && part !== "data: [DONE]") yield JSON.parse(part.slice(6));
    }
  }

  async function watch() {
    for (;;) {
      try {
        for await (const next of events(await call("/page/events"))) draw(next);
      } catch (error) { /* the server is gone, or not there yet */ }
      $("state").textContent = "no connection";
      await new Promise((resolve) => setTimeout(resolve, 1000));
    }
  }

  async function press(path) {
    const answer = await call(path, { method: "POST" });
    if (!answer.ok) $("state").textContent = (await answer.json()).error.message;
  }

  // -- chat -------------------------------------------------------------------------------------------

  function addMessage(kind, who, text) {
    const box = element("div", "message " + kind);
    box.append(element("span", "who", who), element("span", "text", text));
    $("messages").append(box);
    box.scrollIntoView({ block: "end" });
    return box;
  }

  async function ask(content) {
    addMessage("user", "you", content);
    const n = Number($("n").value);
    const heat = n > 1 ? Math.max(Number($("heat").value), 0.8) : Number($("heat").value); // n equal texts: no use
    const limit = Math.min(Number($("limit").value), frame ? frame.max_model_len : Infinity); // more is refused
    const body = { messages: [{ role: "user", content }], max_tokens: limit, n, temperature: heat, stream: true };
    const boxes = Array.from({ length: n }, () => addMessage("assistant", "waiting", ""));
    const fail = (message) => {
      boxes[0].classList.add("error");
      boxes[0].lastChild.textContent += "\n" + message;
    };
    try {
      const answer = await call("/v1/chat/completions", { method: "POST", body: JSON.stringify(body) });
      if (!answer.ok) return fail((await answer.json()).error.message);
      for await (const chunk of events(answer)) {
        if (chunk.error) return fail(chunk.error.message);
        answers.set(chunk.id, answers.get(chunk.id) || boxes[0].firstChild);
        for (const choice of chunk.choices) {
          boxes[choice.index].lastChild.textContent += choice.delta.content;
          if (choice.finish_reason) boxes[choice.index].dataset.finished = choice.finish_reason;
        }
        if (frame) draw(frame);
      }
    } catch (error) {
      fail("the connection was lost");
    }
  }

  function send() {
    const content = $("text").value.trim();
    if (!content) return;
    $("text").value = "";
    ask(content);
  }

  $("form").addEventListener("submit", (event) => {
    event.preventDefault();
    send();
  });
  $("text").addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.shiftKey) return;
    event.preventDefault();
    send();
  });
  $("three").addEventListener("click", () => PROMPTS.forEach(ask));
  $("pause").addEventListener("click", () => press(frame && frame.paused ? "/page/resume" : "/page/pause"));
  $("step").addEventListener("click", () => press("/page/step"));
  document.addEventListener("keydown", (event) => {
    if (["INPUT", "TEXTAREA"].includes(event.target.tagName) || event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key === "p") $("pause").click();
    if (event.key === "s") $("step").click();
  });
  watch();
})();
