// Keeps the page up to date without a reload. The server renders, this only
// carries over what has changed, so that focus, selection and scrolling stay.
"use strict";
(() => {
  const live = document.getElementById("live");
  if (!live) return;
  const text = document.getElementById("live-text");
  const pause = document.getElementById("pause");
  const interval = 2000, longest = 30000;
  let failures = 0, timer = 0, tag = "", paused = false, request = null, seen = Date.now();

  // Brings one element to the state of another, child by child. Children with an
  // id are found again wherever they are; what is typed and focused is left alone.
  function carry(from, to) {
    for (const a of [...from.attributes]) if (!to.hasAttribute(a.name)) from.removeAttribute(a.name);
    for (const a of to.attributes) {
      if (a.name === "value" && from === document.activeElement) continue;
      if (from.getAttribute(a.name) !== a.value) from.setAttribute(a.name, a.value);
    }
    let at = from.firstChild;
    for (const next of [...to.childNodes]) {
      let have = at;
      if (next.nodeType === 1 && next.id) {
        const found = document.getElementById(next.id);
        if (found && found !== at && found.parentNode === from) from.insertBefore(found, at);
        have = found && found.parentNode === from ? found : at;
      }
      if (same(have, next)) {
        if (next.nodeType === 1) carry(have, next);
        else if (have.data !== next.data) have.data = next.data;
        at = have.nextSibling;
      } else {
        from.insertBefore(document.importNode(next, true), at);
      }
    }
    while (at) {
      const gone = at;
      at = at.nextSibling;
      gone.remove();
    }
  }

  function same(a, b) {
    return a && a.nodeType === b.nodeType && a.nodeName === b.nodeName && (a.id || "") === (b.id || "");
  }

  function say(state, words) {
    live.dataset.state = state;
    if (text.textContent !== words) text.textContent = words;
  }

  function wait(ms) {
    clearTimeout(timer);
    if (!paused && !document.hidden) timer = setTimeout(look, ms);
  }

  async function look() {
    if (request) request.abort();
    const mine = request = new AbortController();
    const giveUp = setTimeout(() => mine.abort(), 10000);
    try {
      const headers = tag ? { "If-None-Match": tag } : {};
      const answer = await fetch(location.href, { headers, signal: mine.signal, cache: "no-store", redirect: "manual" });
      if (answer.type === "opaqueredirect" || answer.status === 401) return location.reload();
      if (answer.status !== 304) {
        if (answer.status === 503 || answer.status === 429) throw new Error("busy");
        const page = new DOMParser().parseFromString(await answer.text(), "text/html");
        if (mine !== request) return;
        const main = page.getElementById("main");
        if (!main) throw new Error("not the page");
        tag = answer.headers.get("ETag") || "";
        if (document.title !== page.title) document.title = page.title;
        carry(document.getElementById("main"), main);
        carry(document.getElementById("foot"), page.getElementById("foot"));
      }
      failures = 0;
      seen = Date.now();
      say("on", "live");
    } catch {
      if (mine !== request) return;
      failures++;
      say("lost", "no answer for " + Math.max(1, Math.round((Date.now() - seen) / 1000)) + " s");
    } finally {
      clearTimeout(giveUp);
    }
    if (mine !== request) return;
    request = null;
    wait(failures ? Math.min(longest, interval * 2 ** failures) : interval);
  }

  // Shows another part of the same page.
  function go(address, push) {
    history[push ? "pushState" : "replaceState"](null, "", address);
    tag = "";
    clearTimeout(timer);
    look();
  }

  pause.hidden = false;
  pause.addEventListener("click", () => {
    paused = !paused;
    pause.textContent = paused ? "Resume" : "Pause";
    if (paused) {
      clearTimeout(timer);
      say("off", "paused");
    } else {
      look();
    }
  });
  document.addEventListener("visibilitychange", () => {
    if (document.hidden) clearTimeout(timer);
    else if (!paused) look();
  });
  window.addEventListener("popstate", () => {
    const q = document.getElementById("q");
    if (!q) return location.reload();
    q.value = new URLSearchParams(location.search).get("q") || "";
    tag = "";
    look();
  });

  let typing = 0;
  document.addEventListener("input", (e) => {
    if (e.target.id !== "q") return;
    clearTimeout(typing);
    typing = setTimeout(search, 250);
  });
  document.addEventListener("submit", (e) => {
    if (e.target.id !== "filter") return;
    e.preventDefault();
    clearTimeout(typing);
    search();
  });
  function search() {
    const v = new URLSearchParams(new FormData(document.getElementById("filter")));
    if (!v.get("q")) v.delete("q");
    const query = v.toString();
    go(query ? "./?" + query : "./", false);
  }

  // Links that only show another part of this page need no new one.
  document.addEventListener("click", (e) => {
    const a = e.target.closest && e.target.closest(".pager a, .choice a");
    if (!a || e.button || e.metaKey || e.ctrlKey || e.shiftKey || e.altKey) return;
    e.preventDefault();
    go(a.href, true);
  });
  document.addEventListener("keydown", (e) => {
    const q = document.getElementById("q");
    if (!q) return;
    if (e.key === "/" && !/^(INPUT|TEXTAREA|SELECT)$/.test(document.activeElement.tagName) && !e.ctrlKey && !e.metaKey && !e.altKey) {
      e.preventDefault();
      q.focus();
      q.select();
    } else if (e.key === "Escape" && document.activeElement === q && q.value) {
      q.value = "";
      search();
    }
  });

  say("on", "live");
  wait(interval);
})();
