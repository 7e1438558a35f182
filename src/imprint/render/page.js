"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const { kinds, sources, names } = data;
  const $ = id => document.getElementById(id);
  const HITS = 5000; // matches that are walked through
  const CHUNK = 40; // left-out rows drawn at once
  const FIRST = 4000; // tokens that are drawn at once, so that the page is never seen empty
  let hits = [], more = false, at = -1, byTurn = new Map(); // matches: a turn, a side and its pieces [first, behind)

  // ---- texts, made visible; everything goes into the page as text, never as markup
  const odd = /[\p{C}\p{Zl}\p{Zp}]|(?! )\p{Zs}|\ufffd/gu;
  const escaped = char => char === "\ufffd" ? char : "\\u{" + char.codePointAt(0).toString(16) + "}";
  const visible = text => text.split("\n").map(line =>
    line.split("\t").map(part => part.replace(odd, escaped)).join("⇥\t")).join("↵\n");
  const quoted = text => JSON.stringify(text).replace(odd, escaped);
  const make = (tag, name, text) => {
    const made = document.createElement(tag);
    if (name) made.className = name;
    if (text !== undefined) made.textContent = text;
    return made;
  };
  const count = (number, word) => number.toLocaleString("en") + " " + word + (number === 1 ? "" : "s");

  // ---- a side: pieces of text, each of one or more tokens
  const unpack = side => {
    if (!side.ids || side.starts) return side;
    side.starts = []; // index of each piece's first token
    let token = 0;
    side.pieces.forEach((_, i) => { side.starts.push(token); token += side.joined[i] ?? 1; });
    const spread = (runs, width) => {
      const all = [];
      for (let i = 0; i < runs.length; i += width + 1)
        for (let n = runs[i + width]; n > 0; n--) all.push(runs.slice(i, i + width));
      return all;
    };
    side.owner = spread(side.owners, 2);
    side.weight = spread(side.weights, 1).map(weight => weight[0]);
    side.differs = new Set();
    for (let i = 0; i < side.changed.length; i += 2)
      for (let piece = side.changed[i]; piece < side.changed[i + 1]; piece++) side.differs.add(piece);
    return side;
  };
  const weightOf = (side, token) => token < side.prompt ? 0 : side.weight[token - side.prompt];
  const isStop = (side, token) => side.stop && token === side.ids.length - 1;
  const trainedIn = side => side.weight.filter(Boolean).length;

  // ---- drawing
  const drawSide = (side, number) => {
    const column = make("div", "side");
    if (names.length > 1) column.append(make("p", "name", names[number]));
    if (!side.ids) {
      column.append(make("p", "why", "left out: " + side.reason));
      return column;
    }
    unpack(side);
    const told = [count(side.prompt, "token") + " of context", trainedIn(side).toLocaleString("en") + " trained"];
    const shares = [...new Set(side.weight)].filter(weight => weight !== 1);
    if (shares.length) told.push("weight " + shares.join(", "));
    if (!side.stop) told.push("no stop is trained");
    if (side.missing.length) told.push("not in this rendering: " + side.missing.join(", "));
    column.append(make("p", "counts", told.join(" · ")));
    const body = make("div", "body");
    body.tabIndex = 0;
    body.setAttribute("role", "group");
    body.setAttribute("aria-label", "the tokens; arrow keys walk through them");
    body.dataset.side = number;
    let run = null, owner = null;
    side.pieces.forEach((text, piece) => {
      const token = side.starts[piece];
      const key = side.owner[token].join() + (token >= side.prompt);
      if (key !== owner) { run = make("span", "run"); body.append(run); owner = key; }
      const span = make("span", "t k" + side.owner[token][0] + (piece % 2 ? " odd" : " even"), visible(text));
      if (weightOf(side, token)) span.classList.add("trained");
      if (isStop(side, token)) span.classList.add("stop");
      if (side.differs.has(piece)) span.classList.add("changed");
      if (text === "") span.classList.add("nothing");
      span.dataset.piece = piece;
      span.tabIndex = -1;
      run.append(span);
    });
    column.append(body);
    return column;
  };
  const articles = data.turns.map((turn, i) => {
    const article = make("article", "turn");
    article.id = "turn-" + i;
    article.dataset.turn = i;
    article.tabIndex = 0;
    const head = make("h3");
    head.append(make("span", "place", turn.place), make("span", "reply", "reply " + (turn.number + 1)));
    if (turn.verdict) head.append(make("span", "chip" + (turn.verdict === "equal" ? " equal" : ""), turn.verdict));
    if (turn.case !== "prefix") head.append(make("span", "chip", turn.case));
    article.append(head);
    const pieces = Math.max(...turn.sides.map(side => side.ids ? side.ids.length : 0));
    article.style.setProperty("--guess", Math.min(80, 5 + pieces / 16).toFixed(0) + "lh");
    return article;
  });
  const draw = article => {
    if (article.dataset.drawn) return;
    article.dataset.drawn = "yes";
    const sides = make("div", "sides" + (names.length > 1 ? " two" : ""));
    data.turns[article.dataset.turn].sides.forEach((side, number) => sides.append(drawSide(side, number)));
    article.append(sides);
    mark(article);
  };
  const near = new IntersectionObserver(seen => seen.forEach(entry => {
    if (entry.isIntersecting) { draw(entry.target); near.unobserve(entry.target); }
  }), { rootMargin: "1500px" });
  $("turns").append(...articles);
  let soon = FIRST;
  articles.forEach(article => {
    near.observe(article);
    const sides = data.turns[article.dataset.turn].sides;
    soon -= sides.reduce((sum, side) => sum + (side.ids ? side.ids.length : 0), 0);
    if (soon > 0) draw(article);
  });
  addEventListener("beforeprint", () => { articles.forEach(draw); drawOuts(Infinity); });

  // ---- what is left out
  const outs = data.out;
  let chosenOuts = outs, drawnOuts = 0;
  const drawOuts = most => {
    const list = $("out-list");
    list.querySelector("button.more")?.remove();
    const until = Math.min(chosenOuts.length, drawnOuts + most);
    for (; drawnOuts < until; drawnOuts++) {
      const out = chosenOuts[drawnOuts];
      const entry = make("div", "out");
      const where = out.place + (out.message === null ? "" : ", message " + (out.message + 1));
      entry.append(make("span", "place", where), make("span", "why", out.what + ": " + out.reason));
      if (out.detail) entry.append(make("code", "seen", visible(out.detail).replaceAll("↵\n", "\n")));
      list.append(entry);
    }
    if (drawnOuts < chosenOuts.length) {
      const button = make("button", "more", "show " + (chosenOuts.length - drawnOuts).toLocaleString("en") + " more");
      button.type = "button";
      button.addEventListener("click", () => drawOuts(1000));
      list.append(button);
    }
  };

  // ---- choosing
  const option = (value, text) => { const made = make("option", "", text); made.value = value; return made; };
  sources.forEach((file, i) => $("source").append(option(String(i), file)));
  $("source").hidden = sources.length < 2;
  const reasons = new Map();
  outs.forEach(out => reasons.set(out.reason, (reasons.get(out.reason) ?? 0) + 1));
  if (reasons.size) {
    const group = make("optgroup");
    group.label = "left out, because";
    reasons.forEach((times, reason) => group.append(option("why:" + reason, reason + " (" + times + ")")));
    $("what").append(group);
  }
  const choose = () => {
    const source = $("source").value, what = $("what").value;
    const reason = what.startsWith("why:") ? what.slice(4) : null;
    const here = one => source === "" || one.source === Number(source);
    let turns = 0;
    articles.forEach((article, i) => {
      article.hidden = what === "out" || reason !== null || !here(data.turns[i]);
      turns += !article.hidden;
    });
    chosenOuts = what === "turns" ? [] : outs.filter(out => here(out) && (reason === null || out.reason === reason));
    drawnOuts = 0;
    $("out-list").replaceChildren();
    drawOuts(CHUNK);
    $("outs").hidden = chosenOuts.length === 0;
    $("none").hidden = turns + chosenOuts.length > 0;
    search();
  };

  // ---- searching
  const matchesOf = (side, kind, wanted) => {
    const found = [];
    if (!side.ids) return found;
    unpack(side);
    if (kind === "text") {
      side.lower ??= side.pieces.map(piece => piece.toLowerCase());
      const text = side.lower.join("");
      const needle = wanted.toLowerCase();
      let piece = 0, begin = 0;
      for (let from = text.indexOf(needle); from >= 0; from = text.indexOf(needle, from + needle.length)) {
        while (begin + side.lower[piece].length <= from) begin += side.lower[piece++].length;
        let last = piece, end = begin + side.lower[piece].length;
        while (end < from + needle.length) end += side.lower[++last].length;
        found.push([piece, last + 1]);
      }
      return found;
    }
    const is = kind === "id"
      ? token => side.ids[token] === Number(wanted)
      : token => kinds[side.owner[token][0]].includes(wanted.toLowerCase());
    side.pieces.forEach((_, piece) => {
      let same = false;
      for (let token = side.starts[piece]; token < (side.starts[piece + 1] ?? side.ids.length); token++) same ||= is(token);
      if (!same) return;
      const before = found[found.length - 1];
      if (kind === "role" && before && before[1] === piece) before[1] = piece + 1;
      else found.push([piece, piece + 1]);
    });
    return found;
  };
  const search = () => {
    const wanted = $("query").value, kind = $("kind").value;
    hits = []; more = false; at = -1; byTurn = new Map();
    if (wanted.trim() || (kind === "text" && wanted)) {
      data.turns.forEach((turn, i) => {
        if (articles[i].hidden) return;
        if (hits.length >= HITS) { more = true; return; }
        const found = kind === "source"
          ? turn.place.toLowerCase().includes(wanted.toLowerCase()) ? [{ turn: i }] : []
          : turn.sides.flatMap((side, number) => matchesOf(side, kind, kind === "text" ? wanted : wanted.trim())
            .map(([first, behind]) => ({ turn: i, side: number, first, behind })));
        if (found.length) byTurn.set(i, found);
        hits.push(...found);
      });
    }
    articles.forEach(mark);
    tell();
  };
  const tell = () => {
    if (!$("query").value) { $("told").textContent = ""; return; }
    const all = (more ? "the first " : "") + hits.length.toLocaleString("en");
    $("told").textContent = !hits.length ? "no match"
      : (at < 0 ? "" : (at + 1).toLocaleString("en") + " of ") + all + (hits.length === 1 ? " match" : " matches")
        + " in " + count(byTurn.size, "turn");
  };
  function mark(article) {
    const turn = Number(article.dataset.turn);
    article.classList.toggle("found", byTurn.has(turn));
    article.querySelectorAll(".hit").forEach(span => span.classList.remove("hit", "now"));
    if (!article.dataset.drawn) return;
    (byTurn.get(turn) ?? []).forEach(hit => pieceSpans(article, hit).forEach(span => {
      span.classList.add("hit");
      if (hit === hits[at]) span.classList.add("now");
    }));
  }
  const pieceSpans = (article, hit) => {
    if (hit.side === undefined) return [];
    const spans = article.querySelector('.body[data-side="' + hit.side + '"]').querySelectorAll(".t");
    return [...spans].slice(hit.first, hit.behind);
  };
  const step = by => {
    if (!hits.length) return;
    at = at < 0 ? (by > 0 ? 0 : hits.length - 1) : (at + by + hits.length) % hits.length;
    const article = articles[hits[at].turn];
    draw(article);
    articles.forEach(mark);
    const spans = pieceSpans(article, hits[at]);
    (spans[0] ?? article).scrollIntoView({ block: "center" });
    if (spans[0]) inspect(spans[0]);
    current = hits[at].turn;
    tell();
  };

  // ---- one token
  const inspect = span => {
    const piece = Number(span.dataset.piece), body = span.closest(".body"), article = span.closest(".turn");
    const side = data.turns[article.dataset.turn].sides[body.dataset.side];
    const token = side.starts[piece], tokens = side.joined[piece] ?? 1;
    const [kind, message] = side.owner[token];
    const weight = weightOf(side, token);
    const facts = [
      ["id", side.ids.slice(token, token + tokens).join(" ")],
      ["text", quoted(side.pieces[piece])],
      ["role", kinds[kind] + (message < 0 ? "" : ", message " + (message + 1))],
      ["is", isStop(side, token) ? "trained, the stop" : weight ? "trained" : "context"],
      ["weight", String(weight)],
      ["position", token.toLocaleString("en") + " of " + side.ids.length.toLocaleString("en")],
    ];
    const list = make("dl");
    facts.forEach(([name, value]) => {
      const fact = make("div");
      fact.append(make("dt", "", name), make("dd", "", value));
      list.append(fact);
    });
    $("token").replaceChildren(list);
    $("token").hidden = false;
    document.querySelector(".t.looked")?.classList.remove("looked");
    span.classList.add("looked");
  };
  const leaveToken = () => {
    $("token").hidden = true;
    document.querySelector(".t.looked")?.classList.remove("looked");
  };
  $("turns").addEventListener("mouseover", event => {
    const span = event.target.closest(".t");
    if (span) inspect(span);
  });
  $("turns").addEventListener("focusin", event => {
    const span = event.target.closest(".t"), article = event.target.closest(".turn");
    if (span) inspect(span);
    if (article) current = Number(article.dataset.turn);
  });
  const walk = (from, key) => {
    const all = [...from.closest(".body").querySelectorAll(".t")];
    const i = from.classList.contains("t") ? all.indexOf(from) : key === "ArrowLeft" ? all.length : -1;
    const to = { ArrowRight: i + 1, ArrowLeft: i - 1, Home: 0, End: all.length - 1 }[key];
    all[Math.max(0, Math.min(all.length - 1, to))]?.focus({ preventScroll: false });
  };

  // ---- keys
  let current = -1;
  const go = by => {
    const seen = articles.map((article, i) => [article, i]).filter(([article]) => !article.hidden);
    const next = by > 0 ? seen.find(([, i]) => i > current) : seen.findLast(([, i]) => i < current);
    if (!next) return;
    draw(next[0]);
    next[0].focus({ preventScroll: true });
    next[0].scrollIntoView({ block: "start" });
  };
  addEventListener("keydown", event => {
    if (event.ctrlKey || event.metaKey || event.altKey || $("keys").open) return;
    const target = event.target, key = event.key;
    if (key === "Escape") {
      leaveToken();
      if (target.closest?.("#tools")) target.blur();
      return;
    }
    if (target.id === "query") {
      if (key === "Enter") { event.preventDefault(); step(event.shiftKey ? -1 : 1); }
      return;
    }
    if (target.closest?.("select, button, summary")) return;
    const body = target.closest?.(".body");
    const keys = { j: () => go(1), k: () => go(-1), n: () => step(1), p: () => step(-1),
      "/": () => { $("query").focus(); $("query").select(); }, "?": () => $("keys").showModal() };
    if (body && ["ArrowLeft", "ArrowRight", "Home", "End"].includes(key)) {
      event.preventDefault();
      walk(target, key);
    } else if (key === "Enter" && target.classList?.contains("turn")) {
      draw(target);
      (target.querySelector(".t.trained") ?? target.querySelector(".t"))?.focus();
    } else if (keys[key]) {
      event.preventDefault();
      keys[key]();
    }
  });
  let waiting = 0;
  $("query").addEventListener("input", () => { clearTimeout(waiting); waiting = setTimeout(search, 120); });
  $("query").addEventListener("change", search);
  $("kind").addEventListener("change", search);
  $("source").addEventListener("change", choose);
  $("what").addEventListener("change", choose);
  $("next").addEventListener("click", () => step(1));
  $("previous").addEventListener("click", () => step(-1));
  $("help").addEventListener("click", () => $("keys").showModal());
  $("tools").addEventListener("submit", event => event.preventDefault());
  choose();
})();
