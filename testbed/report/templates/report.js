"use strict";
// Nothing here is needed to read the report: it folds, filters and remembers the colours.
(() => {
  const root = document.documentElement;
  root.classList.add("script");

  // -- colours: the system's, until the reader chooses

  const THEMES = ["auto", "light", "dark"];
  const remembered = () => {
    try { return localStorage.getItem("testbed-theme"); } catch { return null; }
  };
  const remember = (theme) => {
    try { localStorage.setItem("testbed-theme", theme); } catch { /* a file may have no storage */ }
  };
  const apply = (theme) => {
    if (theme === "auto") delete root.dataset.theme;
    else root.dataset.theme = theme;
  };
  let theme = THEMES.includes(remembered()) ? remembered() : "auto";
  apply(theme);

  document.addEventListener("DOMContentLoaded", () => {
    const $ = (selector) => document.querySelector(selector);
    const button = $("#theme");
    const name = () => { button.textContent = button.dataset[theme]; };
    name();
    button.addEventListener("click", () => {
      theme = THEMES[(THEMES.indexOf(theme) + 1) % THEMES.length];
      apply(theme);
      remember(theme);
      name();
    });

    // -- filter

    const form = $("form.filter");
    if (!form) return;  // a run without claims
    const search = form.elements.q;
    const shown = $("#shown");
    const nothing = $("#nothing");
    const unfold = $("#unfold");
    const claims = [...document.querySelectorAll(".claim")];
    const documents = [...document.querySelectorAll(".document")];
    const MARK = "#filter?";
    const texts = new Map();
    const text = (claim) => {  // read once: all evidence of a run is some megabytes
      if (!texts.has(claim)) {
        texts.set(claim, `${claim.textContent} ${claim.dataset.search}`.toLowerCase());
      }
      return texts.get(claim);
    };
    const visible = () => claims.filter((claim) => !claim.hidden);

    const chosen = () => {
      const wanted = new URLSearchParams();
      for (const [key, value] of new FormData(form)) {
        if (value.trim()) wanted.append(key, value.trim());
      }
      return wanted;
    };

    const matches = (claim, wanted, words) => {
      const { verdict, document: number, labs, kind } = claim.dataset;
      const verdicts = wanted.getAll("v");
      if (verdicts.length && !verdicts.includes(verdict)) return false;
      if (wanted.has("u") && !("unexpected" in claim.dataset)) return false;
      if (wanted.has("d") && wanted.get("d") !== number) return false;
      if (wanted.has("lab") && !labs.split(" ").includes(wanted.get("lab"))) return false;
      if (wanted.has("k") && wanted.get("k") !== kind) return false;
      return words.every((word) => text(claim).includes(word));
    };

    const tellFolds = () => {
      const anyFolded = visible().some((claim) => !claim.open);
      unfold.textContent = anyFolded ? unfold.dataset.open : unfold.dataset.close;
    };

    const tell = (element, count, all) => {
      const { all: every, some } = element.dataset;
      element.textContent = count === all ? every : some.replace("{shown}", count);
    };

    const filter = () => {
      const wanted = chosen();
      const words = (wanted.get("q") || "").toLowerCase().split(/\s+/).filter(Boolean);
      let count = 0;
      for (const claim of claims) {
        claim.hidden = !matches(claim, wanted, words);
        count += !claim.hidden;
      }
      for (const one of documents) {
        const mine = [...one.querySelectorAll(".claim")];
        const left = mine.filter((claim) => !claim.hidden).length;
        one.hidden = left === 0;
        tell(one.querySelector(".count"), left, mine.length);
      }
      tell(shown, count, claims.length);
      nothing.hidden = count > 0;
      $("#clear").disabled = ![...wanted].length;
      tellFolds();
      return wanted;
    };

    const keep = () => {
      const query = filter().toString();
      history.replaceState(null, "", query ? MARK + query : location.pathname + location.search);
    };

    const set = (wanted) => {
      for (const element of form.elements) {
        if (element.type === "checkbox") {
          element.checked = wanted.getAll(element.name).includes(element.value);
        } else if (element.name) element.value = wanted.get(element.name) || "";
      }
      filter();
    };
    const clear = () => set(new URLSearchParams());

    const fromAddress = () => {
      const hash = location.hash;
      if (hash.startsWith(MARK)) {
        set(new URLSearchParams(hash.slice(MARK.length)));
        $("#claims").scrollIntoView();
        return;
      }
      const target = hash.length > 1 && document.getElementById(decodeURIComponent(hash.slice(1)));
      if (!target) return;
      if (target.matches(".claim")) {
        if (target.hidden) clear();
        target.open = true;
        target.scrollIntoView();
        target.querySelector("summary").focus({ preventScroll: true });
      } else if (target.hidden) { clear(); target.scrollIntoView(); }
    };

    let timer = 0;
    search.addEventListener("input", () => {
      clearTimeout(timer);
      timer = setTimeout(keep, 120);
    });
    form.addEventListener("change", keep);
    form.addEventListener("submit", (event) => { event.preventDefault(); keep(); });
    $("#clear").addEventListener("click", () => { clear(); keep(); search.focus(); });
    unfold.addEventListener("click", () => {
      const open = visible().some((claim) => !claim.open);
      for (const claim of visible()) claim.open = open;
      tellFolds();
    });
    document.addEventListener("toggle", (event) => {
      if (event.target.matches(".claim")) tellFolds();
    }, true);
    document.addEventListener("keydown", (event) => {
      const typing = event.target.matches("input, select, textarea");
      if (event.key === "/" && !typing && !event.ctrlKey && !event.metaKey && !event.altKey) {
        event.preventDefault();
        search.focus();
      } else if (event.key === "Escape" && event.target === search && search.value) {
        search.value = "";
        keep();
      }
    });
    window.addEventListener("hashchange", fromAddress);
    filter();
    fromAddress();
  });
})();
