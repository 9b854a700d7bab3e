// What the page does in the browser itself: tells old decisions from current ones, keeps the history, builds snippets.
window.routerPage = (() => {
  const DRAFT = "router-page-draft", HISTORY = "router-page-history";
  const MAX_ROWS = 100, MAX_KEPT = 20000;       // rows; characters of a prompt
  const SAME_TRY = 2000, UNANSWERED = 4000;     // milliseconds
  const SUPERIOR = "ROUTE_TO_SUPERIOR";
  let changedAt = 0, lastKept = 0;

  const box = () => document.querySelector("#prompt textarea");
  const card = () => document.querySelector("#decision .card");
  const read = (key, otherwise) => { try { return JSON.parse(localStorage.getItem(key)) ?? otherwise; } catch { return otherwise; } };
  const keep = (key, value) => { try { localStorage.setItem(key, JSON.stringify(value)); } catch { /* full, or switched off */ } };

  const table = [...Array(256).keys()].map((n) => {
    for (let k = 0; k < 8; k++) n = n & 1 ? 0xedb88320 ^ (n >>> 1) : n >>> 1;
    return n >>> 0;
  });
  let summed = null, sum = 0;
  function checksum(text) {                     // CRC-32 of the text's UTF-8, as the server writes it into the card
    if (text === summed) return sum;
    let crc = 0xffffffff;
    for (const byte of new TextEncoder().encode(text)) crc = table[(crc ^ byte) & 255] ^ (crc >>> 8);
    [summed, sum] = [text, (crc ^ 0xffffffff) >>> 0];
    return sum;
  }

  const isBlank = (text) => !/\S/.test(text || "");
  function isCurrent() {
    const text = box()?.value ?? "", about = card()?.dataset.checksum;
    return about === undefined ? isBlank(text) : Number(about) === checksum(text);
  }

  // A decision on another text than the one in the box is dimmed; if it stays so, the server may be gone.
  function markStale() {
    const now = card();
    if (!now) return;
    const stale = !isCurrent();
    if (now.classList.contains("stale") !== stale) {
      now.classList.toggle("stale", stale);
      now.setAttribute("aria-busy", stale);
    }
    if (!stale) changedAt = 0;
    else if (!changedAt) changedAt = Date.now();
  }
  async function checkServer() {
    markStale();
    const overdue = changedAt && Date.now() - changedAt > UNANSWERED;
    const banner = document.querySelector("#connection");
    if (!banner || (!overdue && !banner.dataset.gone)) return;
    let reached = false;
    try { reached = (await fetch(root() + "/gradio_api/startup-events", { signal: AbortSignal.timeout(3000) })).status < 500; } catch { /* gone */ }
    if (reached === !banner.dataset.gone) return;
    banner.dataset.gone = reached ? "" : "yes";
    banner.innerHTML = reached ? "" : '<p class="error">The router cannot be reached. Is the program still running? What stands below may be out of date.</p>';
    if (reached) location.reload();             // a new server does not know this page; the text comes back
  }
  const root = () => (window.gradio_config?.root || location.href.split(/[?#]/)[0]).replace(/\/$/, "");

  // History: a text that is still being typed replaces the try before it.
  const rows = () => read(HISTORY, []).map((r) => [r.prompt, percent(r.score), r.route === SUPERIOR ? "superior" : "inferior", r.time.slice(5, 16).replace("T", " ")]);
  const percent = (score) => (100 * score).toFixed(1) + "%";
  function asTable() {
    return { headers: ["Prompt", "Superior", "Route", "Time"], data: rows(), metadata: null };
  }
  function remember(settled) {
    const text = box()?.value ?? "", now = card();
    markStale();
    if (isBlank(text) || text.length > MAX_KEPT || !now?.dataset.decision || !isCurrent()) return asTable();
    const tries = read(HISTORY, []), last = tries[0];
    const goesOn = last && !last.settled && (Date.now() - lastKept < SAME_TRY || text.startsWith(last.prompt));
    const others = (goesOn ? tries.slice(1) : tries).filter((each) => each.prompt !== text);  // tried again, it moves up
    const known = tries.some((each) => each.prompt === text && each.settled);
    others.unshift({
      prompt: text, score: Number(now.dataset.score), route: now.dataset.decision, threshold: Number(now.dataset.threshold),
      time: new Date().toISOString(), settled: settled || known,
    });
    lastKept = Date.now();
    keep(HISTORY, others.slice(0, MAX_ROWS));
    return asTable();
  }
  function exportHistory() {
    const lines = read(HISTORY, []).map((r) => JSON.stringify({
      prompt: r.prompt, router_score: r.score, router_label: r.route, threshold: r.threshold, time: r.time,
    }).replaceAll("ROUTE_TO_", "ROUTE\\u005fTO\\u005f") + "\n");  // so that grep finds labels only
    const link = Object.assign(document.createElement("a"), { download: "prompts-tried.jsonl" });
    link.href = URL.createObjectURL(new Blob(lines, { type: "application/jsonl" }));
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  }
  function clearHistory() { keep(HISTORY, []); return asTable(); }

  function restore() {
    dress();
    return [box()?.value || read(DRAFT, ""), asTable()];  // who types before the page is complete is not interrupted
  }
  function enable(text, count) {
    keep(DRAFT, text.length > MAX_KEPT ? "" : text);
    markStale();
    return Array(count).fill({ interactive: !isBlank(text), __type__: "update" });
  }

  const CUT = 2000;
  function snippets(text, threshold) {
    const prompt = isBlank(text) ? "What is the capital of France?" : text.slice(0, CUT), at = Number(threshold) || 0;
    const shell = (value) => "'" + value.replaceAll("'", "'\\''") + "'";
    const literal = (value) => JSON.stringify(value);
    return [
      `curl -s ${root()}/gradio_api/run/predict \\\n  -H 'Content-Type: application/json' \\\n  -d ${shell(JSON.stringify({ data: [prompt, at] }))}`,
      `from gradio_client import Client\n\nclient = Client(${literal(root())})\nanswer = client.predict(${literal(prompt)}, ${at}, api_name="/predict")\nprint(answer["route"], answer["superior_probability"])`,
      `# Needs the endpoint: python3 inference/serve_openai_api.py\nfrom openai import OpenAI\n\nclient = OpenAI(base_url="http://127.0.0.1:8000/v1", api_key="unused")\nanswer = client.chat.completions.create(\n    model="router-${at}",\n    messages=[{"role": "user", "content": ${literal(prompt)}}],\n)\nprint(answer.model, answer.choices[0].message.content)`,
    ];
  }

  function showPrompt() {                       // whoever works by keyboard goes on there
    document.querySelector("#main button[role=tab]")?.click();
    setTimeout(() => box()?.focus());           // once its tab is shown
  }

  // Text may run from right to left. With dir="auto" Chromium needs seconds to lay out a megabyte, and does so several
  // times a change, so the direction of a long text is that of its first letter.
  const MAX_AUTO = 20000;                       // characters
  const FROM_RIGHT = /^[\u0590-\u08ff\ufb1d-\ufdff\ufe70-\ufefc\u{10800}-\u{10fff}\u{1e800}-\u{1efff}]/u;
  function direct(area, text) {
    if (text.length <= MAX_AUTO) area.dir = "auto";
    else area.dir = FROM_RIGHT.test(text.match(/\p{L}/u)?.[0] ?? "") ? "rtl" : "ltr";
  }
  function dress() {
    for (const area of document.querySelectorAll("#prompt textarea, #both textarea")) direct(area, area.value);
    for (const list of document.querySelectorAll("#words .textfield")) list.dir = "auto";
    for (const wide of document.querySelectorAll("#model_card")) wide.tabIndex = 0;  // so that a keyboard can scroll it
    for (const header of document.querySelectorAll(".toast-header[role]")) {  // a button around the button that closes it
      header.removeAttribute("role");
      header.removeAttribute("tabindex");
    }
  }
  document.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey) && event.target === box()) {
      event.preventDefault();
      document.querySelector("#explain")?.click();
    }
  });
  // Before the text is laid out, and before gradio's listeners, which measure the box
  document.addEventListener("beforeinput", (event) => { if (event.target === box()) direct(box(), box().value + (event.data ?? "")); }, true);
  document.addEventListener("input", (event) => { if (event.target === box()) { direct(box(), box().value); markStale(); } }, true);
  new MutationObserver(() => { markStale(); dress(); }).observe(document.documentElement, { childList: true, subtree: true });
  setInterval(checkServer, 1000);
  return { remember, restore, enable, snippets, exportHistory, clearHistory, showPrompt };
})();
